"""interpolant.py: schedules against their closed forms, and x_t against its law. Exact where that is claimed: no sampling, or all of it."""
import math

import pytest
import torch

import interpolant
from interpolant import TINY, interpolate, schedule
from oracle import Noise, Oracle, rate, random_p, sampling_error, strings, token_law
from prime import Code

NAMES = ["linear", "cosine", "sin", "polynomial", "polynomial,exponent=0.5", "polynomial,exponent=3", "geometric", "geometric,start=5,end=0.1"]
BETWEEN = torch.linspace(0, 1, 201, dtype=torch.float64)[1:-1]
NEAR_1 = 1 - 2.0 ** -torch.arange(1, 25)                              # float32: 1/2, 3/4, ..., 1 - 2^-24
EVERYWHERE = torch.cat([torch.tensor([0.0, 2.0 ** -149, 1e-30, 2.0 ** -24, 1.0]), NEAR_1, torch.linspace(0, 1, 10001)])


# ---- schedules -----------------------------------------------------------------------------------------------------------------------

def raw(start, end):
    return lambda t: math.exp(-start ** (1 - t) * end ** t)


CLOSED_FORM = {
    "linear": lambda t: t,
    "cosine": lambda t: 1 - math.cos(math.pi * t / 2),
    "sin": lambda t: math.sin(math.pi * t / 2),
    "polynomial": lambda t: t ** 2,
    "polynomial,exponent=0.5": lambda t: math.sqrt(t),
    "polynomial,exponent=3": lambda t: t ** 3,
    "geometric": lambda t: (raw(10, .01)(t) - raw(10, .01)(0)) / (raw(10, .01)(1) - raw(10, .01)(0)),
    "geometric,start=5,end=0.1": lambda t: (raw(5, .1)(t) - raw(5, .1)(0)) / (raw(5, .1)(1) - raw(5, .1)(0)),
    "instant": lambda t: 1,
}


@pytest.mark.parametrize("name", [*NAMES, "instant"])
def test_alpha_is_its_closed_form(name):
    for t in [0.0, 0.01, 0.25, 0.5, 0.75, 0.99, 1.0]:
        assert float(schedule(name).at(t)) == pytest.approx(CLOSED_FORM[name](t), abs=1e-15)
        assert float(schedule(name).left(t)) == pytest.approx(1 - CLOSED_FORM[name](t), abs=1e-15)


def test_worked_numbers():
    assert float(schedule("linear").hazard(0.75)) == 4
    assert float(schedule("sin").hazard(0.0)) == pytest.approx(math.pi / 2)
    assert float(schedule("cosine").hazard(0.5)) == pytest.approx(math.pi / 2)                 # pi/2 tan(pi/4)
    assert float(schedule("polynomial").hazard(0.5)) == pytest.approx(4 / 3)                   # 2t / (1 - t^2)
    assert float(schedule("polynomial").step(0.5, 1.0)) == 1 and float(schedule("sin").step(0.0, 1 / 3)) == pytest.approx(0.5)
    assert float(schedule("instant").at(0.0)) == 1 and float(schedule("instant").step(0.0, 0.5)) == 1 and float(schedule("instant").hazard(0.5)) == 0


@pytest.mark.parametrize("name", NAMES)
def test_the_inverse_undoes_alpha(name):
    s = schedule(name)
    t = torch.cat([BETWEEN, torch.tensor([0.0, 1.0], dtype=torch.float64)])
    assert (s.at(s.inverse(t)) - t).abs().max() <= 1e-14
    assert (s.inverse(s.at(BETWEEN)) - BETWEEN).abs().max() <= 1e-11
    for dtype, error in ((torch.float32, 8 * 2.0 ** -24), (torch.float64, 1e-14)):
        u = torch.linspace(0, 1, 10001, dtype=dtype)
        assert (s.at(s.inverse(u)) - u).abs().max() <= error
        assert (s.inverse(u) >= 0).all() and (s.inverse(u) <= 1).all() and (s.inverse(u).diff() >= 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_a_step_is_the_exact_conditional_probability(name):
    s = schedule(name)
    a, z = torch.meshgrid(BETWEEN[::10], BETWEEN[::10], indexing="ij")
    a, z = a[z >= a], z[z >= a]
    exact = (s.at(z) - s.at(a)) / (1 - s.at(a))
    assert (s.step(a, z) - exact).abs().max() <= 1e-12
    assert (s.step(a.float(), z.float()) - exact).abs().max() <= 3e-6                          # float32 has rounded a and z themselves
    assert (s.step(BETWEEN, BETWEEN) == 0).all()
    assert (s.step(torch.zeros_like(BETWEEN), BETWEEN) - s.at(BETWEEN)).abs().max() <= 1e-15
    assert (s.step(EVERYWHERE, torch.ones_like(EVERYWHERE)) == 1).all()                        # by t = 1 everything has happened, also from t = 1
    t, m, e = torch.rand(3, 1000, dtype=torch.float64).sort(0).values                          # two steps are one
    assert ((1 - s.step(t, m)) * (1 - s.step(m, e)) - (1 - s.step(t, e))).abs().max() <= 1e-12


@pytest.mark.parametrize("name", NAMES)
def test_near_the_end_float32_steps_and_hazards_are_as_good_as_float64(name):
    s, t = schedule(name), NEAR_1                                                              # the times are the same numbers in both
    assert torch.allclose(s.step(t[:-1], t[1:]).double(), s.step(t[:-1].double(), t[1:].double()), rtol=1e-5, atol=0)
    assert torch.allclose(s.hazard(t).double(), s.hazard(t.double()), rtol=1e-5, atol=0)
    assert torch.allclose(s.left(t).double(), s.left(t.double()), rtol=1e-5, atol=0)
    half = s.step(t[-2], t[-1]) if name == "sin" else None                                      # 1 - alpha is quadratic there: 3/4, elsewhere 1/2
    assert float(s.step(t[-2], t[-1])) == pytest.approx(0.5 if half is None else 0.75, abs=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_the_hazard_is_the_derivative(name):
    s = schedule(name)
    assert torch.allclose(s.hazard(BETWEEN), rate(s, BETWEEN), rtol=1e-11, atol=0)             # by differentiating alpha
    h = 1e-6                                                                                    # and once without: P(happens in a short time) / time
    assert torch.allclose(s.hazard(BETWEEN), s.step(BETWEEN - h / 2, BETWEEN + h / 2) / h, rtol=1e-3, atol=1e-7)
    # The survival function is the exponential of the integrated hazard.
    t = torch.linspace(0.25, 0.75, 20001, dtype=torch.float64)
    integral = torch.trapezoid(s.hazard(t), t)
    assert float(torch.exp(-integral)) == pytest.approx(float(s.left(0.75) / s.left(0.25)), rel=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", [*NAMES, "instant"])
def test_nothing_is_infinite_or_negative_at_any_time(name, dtype):
    s, t = schedule(name), EVERYWHERE.to(dtype)
    for value in (s.at(t), s.left(t), s.inverse(t)):
        assert value.dtype == dtype and (value >= 0).all() and (value <= 1).all()
    assert torch.isfinite(s.hazard(t)).all() and (s.hazard(t) >= 0).all()
    for steps in (1, 3, 64, 20000):
        grid = (torch.arange(steps + 1, dtype=torch.float64) / steps).to(dtype)
        p = s.step(grid[:-1], grid[1:])
        assert (p >= 0).all() and (p <= 1).all() and float(p[-1]) == 1
    assert float(s.left(torch.ones((), dtype=dtype))) == 0
    if name != "instant":
        assert float(s.at(torch.zeros((), dtype=dtype))) == 0
        assert torch.equal(s.hazard(torch.ones(1, dtype=dtype)), s.hazard(torch.full((1,), 1 - TINY, dtype=dtype)))


def test_a_schedule_has_a_name_and_parameters():
    assert repr(schedule("polynomial,exponent=1.7")) == "polynomial,exponent=1.7" == repr(schedule("polynomial", exponent=1.7))
    assert repr(schedule(repr(schedule("geometric", start=5, end=0.5)))) == "geometric,start=5,end=0.5"
    for wrong in ("", "line", "linear,exponent=2", "instant,x=1", "polynomial,exponent", "polynomial,exponent=x", "polynomial,exponent=0",
                  "polynomial,exponent=-1", "polynomial,exponent=nan", "geometric,start=0.01", "geometric,end=0", "geometric,end=-1",
                  "geometric,end=10000", "geometric,middle=1"):
        with pytest.raises(ValueError):
            schedule(wrong)


# ---- the law of x_t ------------------------------------------------------------------------------------------------------------------

def test_token_law_closed_forms():
    """Linear: absent 1-t; one digit: masked -(1-t) ln(1-t); two digits: both masked t(1-t), a given one -(1-t) ln(1-t) - t(1-t)."""
    linear = schedule("linear")
    t = torch.tensor([.1, .25, .5, .75, .9, .99], dtype=torch.float64)
    one = token_law(linear, linear, t, 1)
    assert one[:, 1].numpy().round(3).tolist() == [.005, .034, .153, .403, .670, .944]         # clean
    assert one[:, 2].numpy().round(3).tolist() == [.095, .216, .347, .347, .230, .046]         # masked
    two = token_law(linear, linear, t, 2)
    assert torch.allclose(two[:, 3], t * (1 - t)) and torch.allclose(two[:, 2], -(1 - t) * torch.log(1 - t) - t * (1 - t))
    for insertion, unmasking in (("linear", "linear"), ("sin", "polynomial"), ("polynomial", "linear"), ("cosine", "sin"), ("instant", "linear")):
        for ell in (1, 2, 3):
            law = token_law(schedule(insertion), schedule(unmasking), t, ell)
            times = torch.tensor([1.0] + [math.comb(ell, k) for k in range(ell + 1)], dtype=torch.float64)
            assert torch.allclose((law * times).sum(1), torch.ones(6, dtype=torch.float64), atol=1e-9)
    # the two ways of computing it agree: "polynomial,exponent=1" is linear by another name
    assert torch.allclose(token_law(schedule("polynomial,exponent=1"), linear, t, 3), token_law(linear, linear, t, 3), atol=1e-12)


@pytest.mark.parametrize("insertion", [*NAMES, "instant"])
@pytest.mark.parametrize("unmasking", ["linear", "sin"])
def test_marginals_equal_their_closed_form(insertion, unmasking, monkeypatch):
    """Absent, masked, clean. The uniform numbers are the midpoints of a 160 x 160 grid: the border between two regions is monotone, so it
    crosses at most 320 of the 25,600 cells, each off by half a cell or so: 160 / 25,600 = 1/160."""
    N = 160
    grid = (torch.arange(N) + 0.5) / N
    alpha, beta = schedule(insertion), schedule(unmasking)
    d1, n1 = torch.zeros(N, N, 1, dtype=torch.int64), torch.full((N,), N)
    for t in (0.0, 0.1, 0.5, 0.9, 0.999, 1.0):
        draws = iter([grid.expand(N, N), grid[:, None, None].expand(N, N, 1)])                 # first T1's, then the digit's
        monkeypatch.setattr(torch, "rand", lambda *size, **options: next(draws).to(options["dtype"]))
        y, n, _, _ = interpolate(d1, n1, torch.full((N,), t), alpha, beta, mask=1, pad=2)
        got = torch.tensor([(y == 2).sum(), (y == 0).sum(), (y == 1).sum()]) / N ** 2
        at = torch.tensor(t, dtype=torch.float64)
        if t == 1:
            assert got.tolist() == [0, 1, 0]
        elif t == 0:
            assert got.tolist() == ([0, 0, 1] if insertion == "instant" else [1, 0, 0])
        else:
            assert (got - token_law(alpha, beta, at, 1)).abs().max() <= 1 / N
            assert float(got[0]) == pytest.approx(1 - float(alpha.at(at)), abs=1 / N)
        assert int(n.sum()) == round((1 - float(got[0])) * N ** 2)


@pytest.mark.parametrize("insertion, ell", [("instant", 1), ("linear", 1), ("sin", 1), ("instant", 2), ("linear", 2), ("polynomial", 2)])
def test_every_state_has_its_probability(insertion, ell):
    """All x_t of a random distribution, with the survivors: drawn 30,000 times against the list in closed form."""
    docs = strings(3, 2) if insertion != "instant" else strings(3, 2, 2)
    code, alpha, beta = Code(3, ell), schedule(insertion), schedule("linear")
    oracle = Oracle(docs, random_p(len(docs), 1), code, alpha)
    noise = Noise(oracle)
    pick = torch.multinomial(oracle.p, 30_000, replacement=True)
    for t in (0.3, 0.8):
        d1 = torch.where((torch.arange(2) < oracle.n1[pick, None])[:, :, None], code.encode(oracle.x1[pick]), code.pad)
        drawn = interpolate(d1, oracle.n1[pick], torch.full((30_000,), t), alpha, beta, mask=code.mask, pad=code.pad)
        label = lambda noised, doc: [tuple(row) for row in torch.cat([doc[:, None], noised.y.flatten(1), noised.kept, noised.gaps], 1).tolist()]
        index = {row: i for i, row in enumerate(label(noise.noised, noise.doc))}
        assert len(index) == len(noise)
        count = torch.bincount(torch.tensor([index[row] for row in label(drawn, pick)]), minlength=len(noise)) / 30_000
        p = noise.weight(alpha, beta, torch.tensor([t], dtype=torch.float64))[0]
        assert float(p.sum()) == pytest.approx(1, abs=1e-12)
        assert float((count - p).abs().sum() / 2) <= sampling_error(p, 30_000)
        z = (count - p) / (p * (1 - p) / 30_000).sqrt().clamp_min(1e-9)
        assert z[p > 4e-4].abs().max() < 5


# ---- the shape of x_t ----------------------------------------------------------------------------------------------------------------

def random_documents(B=64, L=12, ell=2, b=4):
    n1 = torch.randint(0, L + 1, (B,))
    n1[0], n1[1] = 0, L
    d1 = torch.randint(b, (B, L, ell))
    return torch.where((torch.arange(L) < n1[:, None])[:, :, None], d1, b + 1), n1


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("insertion", ["linear", "sin", "instant"])
def test_x_t_is_left_aligned_and_knows_what_it_keeps(insertion, grouped):
    b = 4
    for _ in range(20):
        d1, n1 = random_documents(b=b)
        frozen = torch.rand(64, 12) < 0.2
        y, n, kept, gaps = interpolate(d1, n1, torch.rand(64), schedule(insertion), schedule("linear"), frozen, mask=b, pad=b + 1, grouped=grouped)
        for r in range(64):
            m = int(n[r])
            survivors = kept[r, :m].tolist()
            assert survivors == sorted(set(survivors)) and all(k < n1[r] for k in survivors)   # increasing, real
            assert (y[r, m:] == b + 1).all() and (y[r, :m] <= b).all()                         # pads at the end, and only there
            shown = y[r, :m] != b
            assert (y[r, :m][shown] == d1[r, survivors][shown]).all()                          # what is shown is true
            assert gaps[r, :m + 1].tolist() == [z - a - 1 for a, z in zip([-1] + survivors, survivors + [int(n1[r])])]
            assert m + int(gaps[r].sum()) == n1[r] and (gaps[r, m + 1:] == 0).all() and (kept[r, m:] == 0).all()
            given = [k for k in range(int(n1[r])) if frozen[r, k]]
            assert set(given) <= set(survivors)                                                # a frozen token is there, and clean
            assert all((y[r, survivors.index(k)] == d1[r, k]).all() for k in given)
            if grouped:
                assert all(s.all() or not s.any() for s in shown)
            if insertion == "instant":
                assert m == n1[r]


def test_at_0_nothing_and_at_1_everything():
    d1, n1 = random_documents(b=4)
    for insertion in NAMES:
        for unmasking in NAMES:
            empty = interpolate(d1, n1, torch.zeros(64), schedule(insertion), schedule(unmasking), mask=4, pad=5)
            assert (empty.n == 0).all() and (empty.y == 5).all() and torch.equal(empty.gaps[:, 0], n1)
            full = interpolate(d1, n1, torch.ones(64), schedule(insertion), schedule(unmasking), mask=4, pad=5)
            assert torch.equal(full.y, d1) and torch.equal(full.n, n1) and (full.gaps == 0).all()
    masked = interpolate(d1, n1, torch.zeros(64), schedule("instant"), schedule("linear"), mask=4, pad=5)
    assert torch.equal(masked.n, n1) and torch.equal(masked.y == 4, d1 < 4)


def test_frozen_documents_are_never_noised():
    d1, n1 = random_documents(b=4)
    got = interpolate(d1, n1, torch.zeros(64), schedule("linear"), schedule("linear"), torch.ones(64, 12, dtype=torch.bool), mask=4, pad=5)
    assert torch.equal(got.y, d1) and torch.equal(got.n, n1)


def test_a_hole_has_one_anchor_which_is_there_from_the_start():
    given = torch.tensor([[0, 1, 1, 0, 0, 0, 1, 0, 0, 0], [1, 1, 1, 1, 1, 0, 0, 0, 0, 0], [0] * 10, [1, 0, 0, 0, 1, 0, 0, 0, 0, 0]]).bool()
    n1 = torch.tensor([9, 5, 10, 4])                                   # holes: 0, 345, 78; none; nothing is given: none; 123
    seen = torch.zeros(4, 10)
    for _ in range(4000):
        anchors = interpolant.anchors_of(given, n1)
        assert anchors[0, 0] and anchors[0, 3:6].sum() == 1 and anchors[0, 7:9].sum() == 1 and anchors.sum(1).tolist() == [3, 0, 0, 1]
        seen += anchors
    share = torch.tensor([[1, 0, 0, 1 / 3, 1 / 3, 1 / 3, 0, .5, .5, 0], [0] * 10, [0] * 10, [0, 1 / 3, 1 / 3, 1 / 3, 0, 0, 0, 0, 0, 0]])
    assert (seen / 4000 - share).abs().max() < 4 * 0.5 / 4000 ** 0.5
    d1 = torch.arange(10).expand(4, 10)[:, :, None]
    for t in (0.0, 0.5, 1.0):
        x_t = interpolate(d1, n1, torch.full((4,), t), schedule("linear"), schedule("linear"), given, anchors, mask=10, pad=11)
        there = [set(kept[:n]) for kept, n in zip(x_t.kept.tolist(), x_t.n.tolist())]
        assert all(set(row.nonzero()[:, 0].tolist()) <= s for row, s in zip(anchors, there))
        if t == 0:
            assert x_t.n.tolist() == [3 + 3, 5, 0, 2] and (x_t.y == 10).sum((1, 2)).tolist() == [3, 0, 0, 1]
        if t == 1:
            assert torch.equal(x_t.n, n1) and not (x_t.y == 10).any()
    one = torch.ones(20_000, dtype=torch.bool)[:, None]
    half = interpolate(one.long()[:, :, None], one.sum(1), torch.full((20_000,), 0.3), schedule("linear"), schedule("cosine"), ~one, one, mask=2, pad=3)
    left = float(schedule("cosine").left(torch.tensor(0.3)))           # masked until T2 ~ beta on [0, 1]
    assert abs(float((half.y == 2).float().mean()) - left) < 4 * (left * (1 - left) / 20_000) ** 0.5


def test_gaps_of_by_hand():
    # a document of 7, of which tokens 1, 2, 5 are left: _ 1 2 _ _ 5 _   ->   gaps 1, 0, 2, 1
    kept, n = torch.tensor([[1, 2, 5, 0, 0, 0, 0], [0] * 7]), torch.tensor([3, 0])
    assert interpolant.gaps_of(kept, n, torch.tensor([7, 4])).tolist() == [[1, 0, 2, 1, 0, 0, 0, 0], [4, 0, 0, 0, 0, 0, 0, 0]]
