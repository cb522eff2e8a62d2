"""interpolant.py: schedules against their closed forms, and x_t against its law. Exact where that
is claimed: no sampling, or all of it."""
import math

import pytest
import torch

from interpolant import LAST, anchors_of, interpolate, missing_between, schedule
from oracle import Noise, Oracle, rate, random_p, sampling_error, strings, token_law
from prime import Code

NAMES = ["linear", "cosine", "sin", "polynomial", "polynomial,exponent=0.5",
         "polynomial,exponent=3", "geometric", "geometric,start=5,end=0.1"]
LINEAR, INSTANT = schedule("linear"), schedule("instant")
BETWEEN = torch.linspace(0, 1, 201, dtype=torch.float64)[1:-1]
NEAR_1 = 1 - 2.0 ** -torch.arange(1, 25)                # float32: 1/2, 3/4, ..., 1 - 2^-24
NEAR_0 = torch.tensor([0.0, 2.0 ** -149, 1e-30, 2.0 ** -24])
EVERYWHERE = torch.cat([NEAR_0, NEAR_1, torch.linspace(0, 1, 10001)])


# -----------------------------------------------------------------------------
# schedules

def raw(start, end):
    return lambda t: math.exp(-start ** (1 - t) * end ** t)


def stretched(f):
    return lambda t: (f(t) - f(0)) / (f(1) - f(0))


CLOSED_FORM = {
    "linear": lambda t: t,
    "cosine": lambda t: 1 - math.cos(math.pi * t / 2),
    "sin": lambda t: math.sin(math.pi * t / 2),
    "polynomial": lambda t: t ** 2,
    "polynomial,exponent=0.5": lambda t: math.sqrt(t),
    "polynomial,exponent=3": lambda t: t ** 3,
    "geometric": stretched(raw(10, 0.01)),
    "geometric,start=5,end=0.1": stretched(raw(5, 0.1)),
    "instant": lambda t: 1,
}


@pytest.mark.parametrize("name", [*NAMES, "instant"])
def test_alpha_is_its_closed_form(name):
    for t in [0.0, 0.01, 0.25, 0.5, 0.75, 0.99, 1.0]:
        alpha = CLOSED_FORM[name](t)
        assert float(schedule(name).at(t)) == pytest.approx(alpha, abs=1e-15)
        assert float(schedule(name).left(t)) == pytest.approx(1 - alpha, abs=1e-15)


def test_worked_numbers():
    assert float(LINEAR.hazard(0.75)) == 4
    assert float(schedule("sin").hazard(0.0)) == pytest.approx(math.pi / 2)
    assert float(schedule("cosine").hazard(0.5)) == pytest.approx(math.pi / 2)     # pi/2 tan(pi/4)
    assert float(schedule("polynomial").hazard(0.5)) == pytest.approx(4 / 3)       # 2t / (1 - t^2)
    assert float(schedule("polynomial").step(0.5, 1.0)) == 1
    assert float(schedule("sin").step(0.0, 1 / 3)) == pytest.approx(0.5)
    assert float(INSTANT.at(0.0)) == 1
    assert float(INSTANT.step(0.0, 0.5)) == 1
    assert float(INSTANT.hazard(0.5)) == 0


@pytest.mark.parametrize("name", NAMES)
def test_the_inverse_undoes_alpha(name):
    s = schedule(name)
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    t = torch.cat([BETWEEN, ends])
    assert (s.at(s.inverse(t)) - t).abs().max() <= 1e-14
    assert (s.inverse(s.at(BETWEEN)) - BETWEEN).abs().max() <= 1e-11
    u = torch.linspace(0, 1, 10001, dtype=torch.float64)
    assert (s.at(s.inverse(u)) - u).abs().max() <= 1e-14
    assert (s.inverse(u) >= 0).all() and (s.inverse(u) <= 1).all()
    assert (s.inverse(u).diff() >= 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_a_step_is_the_exact_conditional_probability(name):
    s = schedule(name)
    a, z = torch.meshgrid(BETWEEN[::10], BETWEEN[::10], indexing="ij")
    a, z = a[z >= a], z[z >= a]
    exact = (s.at(z) - s.at(a)) / (1 - s.at(a))
    assert (s.step(a, z) - exact).abs().max() <= 1e-12
    assert (s.step(BETWEEN, BETWEEN) == 0).all()
    assert (s.step(0.0, BETWEEN) - s.at(BETWEEN)).abs().max() <= 1e-15
    assert (s.step(EVERYWHERE, 1.0) == 1).all()         # by t = 1 it has happened, also from t = 1
    t, m, e = torch.rand(3, 1000, dtype=torch.float64).sort(0).values
    two_steps = (1 - s.step(t, m)) * (1 - s.step(m, e))
    assert (two_steps - (1 - s.step(t, e))).abs().max() <= 1e-12


@pytest.mark.parametrize("name", NAMES)
def test_float32_times_lose_nothing_near_the_end(name):
    """They are computed in float64, also the last float32 before 1. There a step that halves the
    time left has probability 1/2 (sin, whose 1 - alpha is quadratic there: 3/4)."""
    s, t = schedule(name), NEAR_1
    for f in (s.at, s.left, s.hazard, s.inverse):
        assert f(t).dtype == torch.float64 and torch.equal(f(t), f(t.double()))
    assert torch.equal(s.step(t[:-1], t[1:]), s.step(t[:-1].double(), t[1:].double()))
    half = 0.75 if name == "sin" else 0.5
    assert float(s.step(t[-2], t[-1])) == pytest.approx(half, abs=1e-6)
    assert float(s.hazard(t[-1]) * 2.0 ** -24) == pytest.approx(2 if name == "sin" else 1, abs=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_the_hazard_is_the_derivative(name):
    s = schedule(name)
    # by differentiating alpha (that is how exactly it can be, where alpha = t^3 has just begun)
    assert torch.allclose(s.hazard(BETWEEN), rate(s, BETWEEN), rtol=1e-11, atol=1e-13)
    # without: P(happens in a short time) / time
    h = 1e-6
    short = s.step(BETWEEN - h / 2, BETWEEN + h / 2) / h
    assert torch.allclose(s.hazard(BETWEEN), short, rtol=1e-3, atol=1e-7)
    # the survival function is the exponential of the integrated hazard
    t = torch.linspace(0.25, 0.75, 20001, dtype=torch.float64)
    survival = torch.exp(-torch.trapezoid(s.hazard(t), t))
    assert float(survival) == pytest.approx(float(s.left(0.75) / s.left(0.25)), rel=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", [*NAMES, "instant"])
def test_nothing_is_infinite_or_negative_at_any_time(name, dtype):
    s, t = schedule(name), EVERYWHERE.to(dtype)
    for value in (s.at(t), s.left(t), s.inverse(t)):
        assert (value >= 0).all() and (value <= 1).all()
    assert torch.isfinite(s.hazard(t)).all() and (s.hazard(t) >= 0).all()
    for steps in (1, 3, 64, 20000):
        grid = (torch.arange(steps + 1, dtype=torch.float64) / steps).to(dtype)
        p = s.step(grid[:-1], grid[1:])
        assert (p >= 0).all() and (p <= 1).all() and float(p[-1]) == 1
    assert float(s.left(1.0)) == 0
    if name != "instant":
        assert float(s.at(0.0)) <= 2.0 ** -52           # one rounding, for sin
        assert float(s.hazard(1.0)) == float(s.hazard(LAST))


def test_a_schedule_has_a_name_and_options():
    by_name, by_option = schedule("polynomial,exponent=1.7"), schedule("polynomial", exponent=1.7)
    assert by_name.name == "polynomial,exponent=1.7" == by_option.name
    geometric = schedule("geometric", start=5, end=0.5).name
    assert geometric == "geometric,start=5,end=0.5" == schedule(geometric).name
    assert schedule("polynomial").name == "polynomial,exponent=2"


@pytest.mark.parametrize("wrong", [
    "", "line", "linear,exponent=2", "instant,x=1", "polynomial,exponent", "polynomial,exponent=x",
    "polynomial,exponent=0", "polynomial,exponent=-1", "polynomial,exponent=nan",
    "polynomial,exponent=inf", "geometric,start=0.01", "geometric,end=0", "geometric,end=-1",
    "geometric,end=10000", "geometric,start=inf", "geometric,middle=1"])
def test_what_is_no_schedule_is_refused_by_name(wrong):
    with pytest.raises(ValueError, match=wrong.split(",")[0] or "unknown schedule"):
        schedule(wrong)


# -----------------------------------------------------------------------------
# the law of x_t

def test_token_law_closed_forms():
    """Linear: absent 1-t; one digit: masked -(1-t) ln(1-t); two digits: both masked t(1-t), a given
    one alone -(1-t) ln(1-t) - t(1-t)."""
    t = torch.tensor([.1, .25, .5, .75, .9, .99], dtype=torch.float64)
    one = token_law(LINEAR, LINEAR, t, 1)
    assert one[:, 1].numpy().round(3).tolist() == [.005, .034, .153, .403, .670, .944]     # clean
    assert one[:, 2].numpy().round(3).tolist() == [.095, .216, .347, .347, .230, .046]     # masked
    two = token_law(LINEAR, LINEAR, t, 2)
    assert torch.allclose(two[:, 3], t * (1 - t))
    assert torch.allclose(two[:, 2], -(1 - t) * torch.log(1 - t) - t * (1 - t))
    for pair in ("linear linear", "sin polynomial", "polynomial linear", "cosine sin",
                 "instant linear"):
        insertion, unmasking = map(schedule, pair.split())
        for ell in (1, 2, 3):
            law = token_law(insertion, unmasking, t, ell)
            ways = [1] + [math.comb(ell, k) for k in range(ell + 1)]
            total = law @ torch.tensor(ways, dtype=torch.float64)
            assert (total - 1).abs().max() < 1e-9
    # the two ways of computing it agree: "polynomial,exponent=1" is linear by another name
    other = token_law(schedule("polynomial,exponent=1"), LINEAR, t, 3)
    assert torch.allclose(other, token_law(LINEAR, LINEAR, t, 3), atol=1e-12)


@pytest.mark.parametrize("insertion", [*NAMES, "instant"])
@pytest.mark.parametrize("unmasking", ["linear", "sin"])
def test_marginals_equal_their_closed_form(insertion, unmasking, monkeypatch):
    """Absent, masked, clean. The uniform numbers are the midpoints of a 160 x 160 grid: the border
    between two regions is monotone, so it crosses at most 320 of the 25,600 cells, each off by half
    a cell or so: 160 / 25,600 = 1/160."""
    N = 160
    grid = (torch.arange(N) + 0.5) / N
    alpha, beta = schedule(insertion), schedule(unmasking)
    d1, n1 = torch.zeros(N, N, 1, dtype=torch.int64), torch.full((N,), N)
    for t in (0.0, 0.1, 0.5, 0.9, 0.999, 1.0):
        draws = iter([grid.expand(N, N), grid[:, None, None].expand(N, N, 1)])      # T1, then T2
        monkeypatch.setattr(torch, "rand", lambda *size, **options: next(draws).double())
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


@pytest.mark.parametrize("insertion, ell", [
    ("instant", 1), ("linear", 1), ("sin", 1), ("instant", 2), ("linear", 2), ("polynomial", 2)])
def test_every_state_has_its_probability(insertion, ell):
    """All x_t of a random distribution, with the survivors: drawn 30,000 times against the list in
    closed form."""
    docs = strings(3, 2) if insertion != "instant" else strings(3, 2, 2)
    code, alpha, beta, N = Code(3, ell), schedule(insertion), LINEAR, 30_000
    oracle = Oracle(docs, random_p(len(docs), 1), code, alpha)
    noise = Noise(oracle)
    pick = torch.multinomial(oracle.p, N, replacement=True)
    real = torch.arange(2) < oracle.n1[pick, None]
    d1 = torch.where(real[:, :, None], code.encode(oracle.x1[pick]), code.pad)

    def label(noised, doc):
        parts = [doc[:, None], noised.y.flatten(1), noised.kept, noised.gaps]
        return [tuple(row) for row in torch.cat(parts, 1).tolist()]
    index = {row: i for i, row in enumerate(label(noise.noised, noise.doc))}
    assert len(index) == len(noise)
    for t in (0.3, 0.8):
        drawn = interpolate(d1, oracle.n1[pick], torch.full((N,), t), alpha, beta,
                            mask=code.mask, pad=code.pad)
        rows = torch.tensor([index[row] for row in label(drawn, pick)])
        share = torch.bincount(rows, minlength=len(noise)) / N
        p = noise.weight(alpha, beta, torch.tensor([t], dtype=torch.float64))[0]
        assert float(p.sum()) == pytest.approx(1, abs=1e-12)
        assert float((share - p).abs().sum() / 2) <= sampling_error(p, N)
        z = (share - p) / (p * (1 - p) / N).sqrt().clamp_min(1e-9)
        assert z[p > 4e-4].abs().max() < 5


# -----------------------------------------------------------------------------
# the shape of x_t

def random_documents(B=64, L=12, ell=2, b=4):
    n1 = torch.randint(0, L + 1, (B,))
    n1[0], n1[1] = 0, L
    d1 = torch.randint(b, (B, L, ell))
    return torch.where((torch.arange(L) < n1[:, None])[:, :, None], d1, b + 1), n1


@pytest.mark.parametrize("insertion", ["linear", "sin", "instant"])
def test_x_t_is_left_aligned_and_knows_what_it_keeps(insertion):
    b = 4
    for _ in range(20):
        d1, n1 = random_documents(b=b)
        given = torch.rand(64, 12) < 0.2
        noised = interpolate(d1, n1, torch.rand(64), schedule(insertion), LINEAR, given,
                             mask=b, pad=b + 1)
        for r, (y, n, kept, gaps) in enumerate(zip(*noised)):
            m, length = int(n), int(n1[r])
            survivors = kept[:m].tolist()
            assert survivors == sorted(set(survivors)) and all(k < length for k in survivors)
            assert (y[m:] == b + 1).all() and (y[:m] <= b).all()        # pads: at the end
            shown = y[:m] != b
            assert (y[:m][shown] == d1[r, survivors][shown]).all()      # what is shown is true
            pairs = zip([-1] + survivors, survivors + [length])
            assert gaps[:m + 1].tolist() == [z - a - 1 for a, z in pairs]
            assert m + int(gaps.sum()) == length
            assert (gaps[m + 1:] == 0).all() and (kept[m:] == 0).all()
            told = [k for k in range(length) if given[r, k]]
            assert set(told) <= set(survivors)                          # given: there, and clean
            assert all((y[survivors.index(k)] == d1[r, k]).all() for k in told)
            if insertion == "instant":
                assert m == length


def test_at_0_nothing_and_at_1_everything():
    d1, n1 = random_documents(b=4)
    zero, one, symbols = torch.zeros(64), torch.ones(64), dict(mask=4, pad=5)
    for insertion in map(schedule, NAMES):
        for unmasking in map(schedule, NAMES):
            empty = interpolate(d1, n1, zero, insertion, unmasking, **symbols)
            assert (empty.n == 0).all() and (empty.y == 5).all()
            assert torch.equal(empty.gaps[:, 0], n1)
            full = interpolate(d1, n1, one, insertion, unmasking, **symbols)
            assert torch.equal(full.y, d1) and torch.equal(full.n, n1) and (full.gaps == 0).all()
    masked = interpolate(d1, n1, zero, INSTANT, LINEAR, **symbols)
    assert torch.equal(masked.n, n1) and torch.equal(masked.y == 4, d1 < 4)


def test_given_documents_are_never_noised():
    d1, n1 = random_documents(b=4)
    given = torch.ones(64, 12, dtype=torch.bool)
    got = interpolate(d1, n1, torch.zeros(64), LINEAR, LINEAR, given, mask=4, pad=5)
    assert torch.equal(got.y, d1) and torch.equal(got.n, n1)


# Holes of these: 0, 345, 78; none; none, as nothing is given; 123
HOLES = torch.tensor([[0, 1, 1, 0, 0, 0, 1, 0, 0, 0], [1, 1, 1, 1, 1, 0, 0, 0, 0, 0],
                      [0] * 10, [1, 0, 0, 0, 1, 0, 0, 0, 0, 0]]).bool()
HOLES_N1 = torch.tensor([9, 5, 10, 4])


def test_a_hole_has_one_anchor_wherever_in_it():
    seen, N = torch.zeros(4, 10), 4000
    for _ in range(N):
        anchors = anchors_of(HOLES, HOLES_N1)
        assert anchors[0, 0] and anchors[0, 3:6].sum() == 1 and anchors[0, 7:9].sum() == 1
        assert anchors.sum(1).tolist() == [3, 0, 0, 1]
        seen += anchors
    third = 1 / 3
    share = torch.tensor([[1, 0, 0, third, third, third, 0, .5, .5, 0], [0] * 10, [0] * 10,
                          [0, third, third, third, 0, 0, 0, 0, 0, 0]])
    assert (seen / N - share).abs().max() < 4 * 0.5 / N ** 0.5


def test_an_anchor_is_there_from_the_start_as_a_mask():
    anchors = anchors_of(HOLES, HOLES_N1)
    d1 = torch.arange(10).expand(4, 10)[:, :, None]
    for t in (0.0, 0.5, 1.0):
        x_t = interpolate(d1, HOLES_N1, torch.full((4,), t), LINEAR, LINEAR, HOLES, anchors,
                          mask=10, pad=11)
        for row, kept, n in zip(anchors, x_t.kept.tolist(), x_t.n.tolist()):
            assert set(row.nonzero()[:, 0].tolist()) <= set(kept[:n])
        if t == 0:
            assert x_t.n.tolist() == [3 + 3, 5, 0, 2]
            assert (x_t.y == 10).sum((1, 2)).tolist() == [3, 0, 0, 1]
        if t == 1:
            assert torch.equal(x_t.n, HOLES_N1) and not (x_t.y == 10).any()
    # it stays masked until T2 ~ beta on [0, 1]
    N, cosine = 20_000, schedule("cosine")
    one = torch.ones(N, 1, dtype=torch.bool)
    half = interpolate(one.long()[:, :, None], one.sum(1), torch.full((N,), 0.3), LINEAR, cosine,
                       ~one, one, mask=2, pad=3)
    left = float(cosine.left(0.3))
    masked = float((half.y == 2).float().mean())
    assert abs(masked - left) < 4 * (left * (1 - left) / N) ** 0.5


def test_missing_between_by_hand():
    # a document of 7 of which tokens 1, 2, 5 are left: _ 1 2 _ _ 5 _   ->   gaps 1, 0, 2, 1
    kept, n = torch.tensor([[1, 2, 5, 0, 0, 0, 0], [0] * 7]), torch.tensor([3, 0])
    gaps = missing_between(kept, n, torch.tensor([7, 4]))
    assert gaps.tolist() == [[1, 0, 2, 1, 0, 0, 0, 0], [4, 0, 0, 0, 0, 0, 0, 0]]


def test_one_document_in_two_batches_of_one_seed_has_one_noise():
    """What a row becomes depends on its own uniform numbers only: the batch is drawn row by row."""
    d1, n1 = random_documents(b=4)
    t = torch.rand(64)
    torch.manual_seed(3)
    first = interpolate(d1, n1, t, LINEAR, LINEAR, mask=4, pad=5)
    torch.manual_seed(3)
    changed = d1.clone()
    changed[5:] = (d1[5:] + 1).clamp_max(3)
    again = interpolate(changed, n1, t, LINEAR, LINEAR, mask=4, pad=5)
    assert all(torch.equal(a[:5], b[:5]) for a, b in zip(first, again))
