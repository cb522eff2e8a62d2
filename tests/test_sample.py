"""sample.py's samplers: with the exact posterior (oracle.py) they draw the distribution itself; with any network they keep their promises."""
import itertools
import math
from collections import Counter

import pytest
import torch

import sample
from interpolant import schedule
from oracle import Oracle, random_p, sampling_error, strings, total_variation, two_holes
from prime import Code
from sample import ORDERS, Draws, confidence, draw_tokens, fit, generate, insert

LINEAR, INSTANT = schedule("linear"), schedule("instant")
METHODS = ["mdm", "flexmdm", "prime", "flexprime"]


def world(method, seed=0):
    V, ell, docs = {"mdm": (3, 1, strings(3, 2, 2)), "flexmdm": (2, 1, strings(2, 3)),
                    "prime": (4, 2, strings(4, 2, 2)), "flexprime": (4, 2, strings(4, 2))}[method]
    return Oracle(docs, random_p(len(docs), seed), Code(V, ell), LINEAR if "flex" in method else INSTANT)


def distance(oracle, samples, steps, p=None, **options):
    x, n = generate(oracle.predict, oracle.code, samples, oracle.L, steps, oracle.insertion, LINEAR, **options)
    assert (x[torch.arange(oracle.L) >= n[:, None]] == 0).all()
    return total_variation(x, n, oracle.docs, oracle.p if p is None else p)


# ---- the distribution ----------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("method", METHODS)
def test_generate_reproduces_the_distribution(method):
    """What a step cannot know is what else happens in it: an error of at most 1 / steps here, beside the sampling error of 6,000 draws
    (exceeded once in 1,000 seeds; this seed is fixed)."""
    oracle, N = world(method), 6_000
    noise = sampling_error(oracle.p, N, chance=1e-3)
    off = {steps: distance(oracle, N, steps) for steps in (2, 8, 32, 128)}
    assert off[2] > off[8] > off[32] and off[2] > 1.4 * noise                                  # coarse steps are visibly wrong
    for steps in (8, 32, 128):
        assert off[steps] < noise + 1 / steps
    assert off[128] < noise


@pytest.mark.parametrize("insertion, unmasking", [("sin", "linear"), ("polynomial", "cosine"), ("linear", "polynomial,exponent=3"),
                                                  ("geometric", "linear")])
def test_under_other_schedules(insertion, unmasking):
    oracle = world("flexmdm")
    oracle = Oracle(oracle.docs, oracle.p, oracle.code, schedule(insertion))
    x, n = generate(oracle.predict, oracle.code, 5_000, oracle.L, 100, oracle.insertion, schedule(unmasking))
    assert total_variation(x, n, oracle.docs, oracle.p) < sampling_error(oracle.p, 5_000, 1e-3) + 1 / 100


@pytest.mark.parametrize("method", ["mdm", "flexmdm", "flexprime"])
@pytest.mark.parametrize("order", ORDERS[1:])
def test_every_order_reproduces_the_distribution(method, order):
    """Prop. 3: in any order, when tokens are revealed one at a time. In 96 steps two of at most 4 digits seldom meet (6 / 96)."""
    oracle, N = world(method, seed=1), 4_000
    assert distance(oracle, N, 96, order=order) < sampling_error(oracle.p, N, 1e-3) + 1 / 96


@pytest.mark.parametrize("method", ["mdm", "prime"])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("steps", [1, 3])
def test_one_token_at_a_time_is_exact_however_few_the_steps(method, order, steps):
    """A window of 1 reveals one token per network call (its digits jointly, which is exact): no error but that of sampling."""
    oracle, N = world(method, seed=2), 10_000
    assert distance(oracle, N, steps, order=order, window=1) < sampling_error(oracle.p, N, 1e-3)
    if order == "random" and steps == 1:
        assert distance(oracle, N, steps) > 2 * sampling_error(oracle.p, N, 1e-3)              # both at once is not


@pytest.mark.parametrize("window", [1, 2])
def test_a_window_with_insertions(window):
    oracle, N = world("flexprime", seed=3), 4_000
    assert distance(oracle, N, 96, window=window) < sampling_error(oracle.p, N, 1e-3) + 1 / 96


@pytest.mark.parametrize("insertion", ["linear", "sin", "cosine", "polynomial"])
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_step_inserts_with_the_exact_probability(insertion, steps):
    """Where g tokens are expected in the one gap there is, the first step inserts Binomial(g rounded at random, alpha(1 / steps)) of them: in
    mean and at 0, within 4 standard errors. With steps = 1 that is also the last step: it inserts, too."""
    g, N, seen = 1.5, 20_000, []
    answer = lambda y, n, t, at: (torch.zeros(int(at.sum()), 2), torch.where(n == 0, math.log(g), -math.inf)[:, None].expand(-1, y.shape[1] + 1))
    generate(answer, Code(2), N, 20, steps, schedule(insertion), LINEAR, watch=lambda t, y, n: seen.append(n.clone()))
    mean = g * float(schedule(insertion).at(1 / steps))
    assert abs(float(seen[0].double().mean()) - mean) <= 4 * math.sqrt(g / N)
    for i, n in enumerate(seen[:steps]):                                                       # and nothing has come by (i + 1) / steps
        p = [float(schedule(insertion).step(j / steps, (j + 1) / steps)) for j in range(i + 1)]
        none = math.prod(0.5 * (1 - q) + 0.5 * (1 - q) ** 2 for q in p)
        assert abs(float((n == 0).double().mean()) - none) <= 4 * math.sqrt(none * (1 - none) / N)


@pytest.mark.parametrize("method", ["mdm", "prime"])
def test_every_order_reveals_on_schedule(method):
    """P(a digit is masked at time t) = 1 - beta(t) on a fixed canvas, in any order: only which ones differs."""
    oracle, N, beta = world(method), 4_000, schedule("cosine")
    for order in ORDERS:
        seen = []
        look = lambda t, y, n: seen.append((t, (y == oracle.code.mask).double().mean()))
        generate(oracle.predict, oracle.code, N, oracle.L, 7, INSTANT, beta, order=order, watch=look)
        assert [t for t, _ in seen] == [(i + 1) / 7 for i in range(7)]
        for t, masked in seen:
            left = float(beta.left(t))
            assert abs(float(masked) - left) <= 4 * math.sqrt(left * (1 - left) / (N * oracle.L * oracle.code.ell))


# ---- prompts and holes ---------------------------------------------------------------------------------------------------------------

def given_state(ids, opened, code, B):
    y = torch.where((torch.tensor(ids) < 0)[:, None], code.mask, code.encode(torch.tensor(ids).clamp_min(0)))
    gaps = torch.zeros(len(ids) + 1, dtype=torch.bool)
    gaps[opened] = True
    return y.expand(B, -1, -1), torch.full((B,), len(ids)), gaps.expand(B, -1)


@pytest.mark.parametrize("order", ["random", "margin"])
@pytest.mark.parametrize("ell", [1, 2])
def test_a_prompt_gives_the_conditional_distribution(order, ell):
    """Documents of up to 4 tokens that begin with 1 0; the oracle is that of a model trained with given tokens."""
    docs = [(1, 0, *w) for w in strings(4 if ell > 1 else 3, 2)]
    code, N = Code(4 if ell > 1 else 3, ell), 4_000
    oracle = Oracle(docs, random_p(len(docs), 4), code, LINEAR, [(True, True, *[False] * (len(x) - 2)) for x in docs])
    assert distance(oracle, N, 64, order=order, start=given_state([1, 0], [2], code, N)) < sampling_error(oracle.p, N, 1e-3) + 1 / 64


@pytest.mark.parametrize("order", ["random", "entropy"])
@pytest.mark.parametrize("ell", [1, 2])
def test_holes_give_the_conditional_distribution(order, ell):
    """3 [..] 0 [..] 3 with up to 2 and 1 tokens in the holes, which depend on each other."""
    fill = [tuple(c + 1 for c in w) for w in strings(2, 2)]
    docs = [(3, *w, 0, *v, 3) for w, v in itertools.product(fill, fill[:3])]
    frozen = [(True, *[False] * len(w), True, *[False] * len(v), True) for w, v in itertools.product(fill, fill[:3])]
    code, N = Code(4, ell), 4_000
    oracle = Oracle(docs, random_p(len(docs), 5), code, LINEAR, frozen)
    assert distance(oracle, N, 64, order=order, start=given_state([3, 0, 3], [1, 2], code, N)) < sampling_error(oracle.p, N, 1e-3) + 1 / 64


@pytest.mark.parametrize("order", ["random", "margin"])
@pytest.mark.parametrize("ell", [1, 2])
def test_holes_that_hold_a_token_give_the_conditional_distribution(order, ell):
    """As --infill '3[..]0[..]33' begins: one mask in each hole."""
    code, N = Code(4, ell), 4_000
    oracle, p = two_holes(code, 5)
    start = sample.start_from([[3], [0], [3, 3]], [None, None], code, 8, False, end=None)
    assert (start[0][0, :, 0] == code.mask).tolist() == [False, True, False, True, False, False]
    assert start[2].tolist() == [[False, True, True, True, True, False, False]]
    start = tuple(s.expand(N, *s.shape[1:]) for s in start)
    assert distance(oracle, N, 64, p, order=order, start=start) < sampling_error(p, N, 1e-3) + 1 / 64
    assert distance(oracle, N, 64, oracle.p / oracle.p.sum(), order=order, start=start) > sampling_error(p, N, 1e-3) + 1 / 64


@pytest.mark.parametrize("method, order", [("mdm", "random"), ("mdm", "top_prob"), ("prime", "random")])
def test_given_tokens_on_a_fixed_canvas(method, order):
    oracle, N = world(method, seed=6), 10_000
    p = torch.where(torch.tensor([x[1] == 2 for x in oracle.docs]), oracle.p, 0)
    p /= p.sum()
    assert distance(oracle, N, 50, p, order=order, start=given_state([-1, 2], [], oracle.code, N)) < sampling_error(p, N, 1e-3)


def test_closed_gaps_stay_closed_and_a_start_is_not_changed():
    code, B = Code(5), 64
    start = given_state([4, 3, 2], [1], code, B)
    before = [s.clone() for s in start]
    x, n = generate(anything(code, gaps=True, log_g=1.0), code, B, 8, 10, LINEAR, LINEAR, start=start)
    assert all(torch.equal(a, b) for a, b in zip(before, start))
    assert (n > 3).any() and (x[:, 0] == 4).all()
    assert all(row[:length][-2:] == [3, 2] for row, length in zip(x.tolist(), n.tolist()))


def test_a_start_without_gaps_named_is_open_everywhere():
    code, B = Code(9), 200
    y, n, _ = given_state([8, 7], [], code, B)
    x, n = generate(anything(code, log_g=0.0), code, B, 12, 10, LINEAR, LINEAR, start=(y, n))
    rows = [row[:length] for row, length in zip(x.tolist(), n.tolist())]
    assert any(r[0] != 8 for r in rows) and any(r[-1] != 7 for r in rows) and any(r.index(7) - r.index(8) > 1 for r in rows if 8 in r and 7 in r)


# ---- promises that hold for any network ----------------------------------------------------------------------------------------------

def anything(code, gaps=True, log_g=None, size=3.0):
    """A network that answers at random, anew at each call; log_g is NaN where it must be ignored."""
    def predict(y, n, t, at):
        B, L, _ = y.shape
        assert y.shape[1] == max(int(n.max()), 1) and not (at & (torch.arange(L) >= n[:, None])).any()
        assert ((y == code.mask).any(2) | ~at).all(), "asked about a slot that has no mask"
        assert ((t >= 0) & (t <= 1)).all() and t.shape == (B,)
        g = torch.full((B, L + 1), log_g) if log_g is not None else torch.randn(B, L + 1) * size - 1
        return torch.randn(int(at.sum()), code.V) * size, torch.where(torch.arange(L + 1) <= n[:, None], g, torch.nan) if gaps else None
    return predict


class Promises:
    """A `watch` that checks every state: pads at the end only, no overflow, and the slots of the state before still there, in order, with
    no revealed digit changed."""

    def __init__(self, code, block_size, gaps):
        self.code, self.block_size, self.gaps, self.before, self.calls, self.t = code, block_size, gaps, None, 0, 0.0

    def __call__(self, t, y, n):
        code, B = self.code, len(n)
        self.calls += 1
        assert self.t <= t <= 1
        self.t = t
        if self.before is not None and torch.equal(y, self.before[0]) and torch.equal(n, self.before[1]):
            return
        assert y.shape == (B, self.block_size, code.ell) and (n <= self.block_size).all()
        inside = (torch.arange(self.block_size) < n[:, None])[:, :, None]
        assert torch.equal((y == code.pad).any(2), ~inside[:, :, 0]) and torch.equal((y == code.pad).all(2), ~inside[:, :, 0])
        assert ((y >= 0) & (y <= code.pad)).all()
        if self.before is not None:
            old, m = self.before
            assert (n >= m).all()
            if not self.gaps:
                assert torch.equal(n, m) and ((y == old) | (old == code.mask)).all()
            else:
                for a, z, i, j in zip(old.tolist(), y.tolist(), m.tolist(), n.tolist()):
                    later = iter(z[:j])
                    assert all(any(all(u in (v, code.mask) for u, v in zip(slot, new)) for new in later) for slot in a[:i])
        self.before = (y.clone(), n.clone())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("order", ORDERS)
def test_every_state_of_every_generation(method, order):
    code = {"mdm": Code(7), "flexmdm": Code(7), "prime": Code(7, 3), "flexprime": Code(11, 2, torch.randperm(16))}[method]
    gaps, block_size, B = "flex" in method, 6, 8
    for k, (steps, window) in enumerate(itertools.product((1, 2, 9), (None, 1, 3))):
        insertion = schedule(("linear", "cosine", "geometric", "sin")[k % 4]) if gaps else INSTANT
        unmasking, temperature = schedule(("linear", "sin", "polynomial", "cosine")[(k // 2) % 4]), (1.0, 0.0, 0.7, 1.0, 3.0)[k % 5]
        watch = Promises(code, block_size, gaps)
        x, n = generate(anything(code, gaps), code, B, block_size, steps, insertion, unmasking, order, temperature, window=window, watch=watch)
        assert x.shape == (B, block_size) and ((x >= 0) & (x < code.V)).all() and (n <= block_size).all() and watch.calls >= steps
        y, m = watch.before
        assert not (y == code.mask).any() and torch.equal(m, n)
        inside = torch.arange(block_size) < n[:, None]
        assert torch.equal(x, torch.where(inside, code.decode(torch.where(inside[:, :, None], y, 0)), 0))
        assert gaps or (n == block_size).all()


@pytest.mark.parametrize("method, order", [("mdm", "top_prob"), ("flexprime", "random")])
def test_twenty_thousand_steps(method, order):
    code, gaps = (Code(3), False) if method == "mdm" else (Code(4, 2), True)
    watch = Promises(code, 3, gaps)
    answer = lambda y, n, t, at: (torch.randn(int(at.sum()), code.V), torch.randn(2, y.shape[1] + 1) - 1 if gaps else None)
    x, n = generate(answer, code, 2, 3, 20_000, LINEAR if gaps else INSTANT, LINEAR, order, watch=watch)
    assert 20_000 <= watch.calls < 20_010 and not (watch.before[0] == code.mask).any() and ((x >= 0) & (x < code.V)).all()


def test_rows_without_a_reveal_are_not_asked_on_a_canvas():
    oracle, asked = world("mdm"), []

    def predict(y, n, t, at):
        asked.append((len(y), int(at.any(1).sum())))
        return oracle.predict(y, n, t, at)
    generate(predict, oracle.code, 8, oracle.L, 32, oracle.insertion, LINEAR)
    assert asked[0][0] == 8 and all(rows == busy for rows, busy in asked[1:]) and {rows for rows, _ in asked[1:]} >= {1, 2}


def test_idle_steps_ask_nothing_of_a_network_without_gaps():
    code, asked = Code(3), []
    inner = anything(code, gaps=False)
    generate(lambda *a: (asked.append(0), inner(*a))[1], code, 1, 4, 500, INSTANT, LINEAR)
    assert len(asked) <= 1 + 4                                                                 # the first step, and one for each token


@pytest.mark.parametrize("log_g", [3.0, 15.0, 80.0, math.inf])
def test_a_canvas_fills_up_and_does_not_overflow(log_g):
    code = Code(5, 2)
    for steps in (1, 3, 20):
        watch = Promises(code, 7, True)
        _, n = generate(anything(code, log_g=log_g), code, 16, 7, steps, LINEAR, LINEAR, watch=watch)
        assert (n == 7).all()
    _, n = generate(anything(code, log_g=-math.inf), code, 16, 7, 5, LINEAR, LINEAR)
    assert (n == 0).all()


def test_insertions_that_do_not_fit_are_cut_at_random():
    """Counts 1, 3, 0, 2 and room for 2: every pair of the six is equally likely to stay."""
    counts, N, draws = torch.tensor([1, 3, 0, 2]), 20_000, Draws()
    got = fit(counts.expand(N, 4), torch.full((N,), 2), draws)
    bag = [i for i, c in enumerate(counts.tolist()) for _ in range(c)]
    law = Counter(tuple((i == g) + (j == g) for g in range(4)) for i, j in itertools.combinations(bag, 2))
    keys = sorted(law)
    p = torch.tensor([law[k] for k in keys], dtype=torch.float64) / sum(law.values())
    index = {k: i for i, k in enumerate(keys)}
    count = torch.bincount(torch.tensor([index[tuple(r)] for r in got.tolist()]), minlength=len(keys)) / N
    assert float((count - p).abs().sum() / 2) < sampling_error(p, N, 1e-3)
    assert torch.equal(fit(counts.expand(N, 4), torch.full((N,), 6), draws), counts.expand(N, 4))      # what fits is not touched
    assert (fit(counts.expand(N, 4), torch.zeros(N, dtype=torch.int64), draws) == 0).all()


@pytest.mark.parametrize("g", [0.0, 0.3, 1.0, 2.0, 2.6])
@pytest.mark.parametrize("p", [0.0, 0.2, 1.0])
def test_arrivals_are_binomial(g, p):
    """Binomial(K, p) with K = floor(g) or the next whole number: the whole law, so also that a certain g at p = 1 arrives to the last one."""
    N, low, up = 20_000, math.floor(g), g - math.floor(g)
    got = Draws().arrivals(torch.full((N // 10, 10), g, dtype=torch.float64), p).flatten()
    binomial = lambda n, c: math.comb(n, c) * p ** c * (1 - p) ** (n - c) if c <= n else 0.0
    law = torch.tensor([(1 - up) * binomial(low, c) + up * binomial(low + 1, c) for c in range(5)], dtype=torch.float64)
    assert float(law.sum()) == pytest.approx(1) and float((law * torch.arange(5)).sum()) == pytest.approx(g * p)
    count = torch.bincount(got, minlength=5) / N
    assert float((count - law).abs().sum() / 2) <= sampling_error(law, N, 1e-3) * (float(law.max()) < 1)


def test_neighbouring_gaps_share_what_is_certain():
    """Where five gaps miss 4 tokens together, 4 arrive (p = 1), whatever the split; each gap and each run of gaps has its mean, within one."""
    g, N = torch.tensor([0.7, 0.0, 1.6, 0.2, 1.5], dtype=torch.float64), 20_000
    got = Draws().arrivals(g.expand(N, 5), 1.0)
    assert (got.sum(1) == 4).all() and (got[:, 1] == 0).all()
    for a, z in itertools.combinations(range(6), 2):
        run, mean = got[:, a:z].sum(1), float(g[a:z].sum())
        assert float((run - mean).abs().max()) < 1 and abs(float(run.double().mean()) - mean) < 4 * 0.5 / math.sqrt(N)


# ---- the pieces ----------------------------------------------------------------------------------------------------------------------

def test_insert_is_list_insertion():
    B, L, ell, mask = 50, 9, 2, 99
    for _ in range(10):
        n = torch.randint(0, L + 1, (B,))
        n[0], n[1] = 0, L
        y = torch.where((torch.arange(L) < n[:, None])[:, :, None], torch.arange(B * L * ell).view(B, L, ell) + 1000, mask + 1)
        opened = torch.rand(B, L + 1) < 0.6
        counts = torch.zeros(B, L + 1, dtype=torch.int64)
        for b in range(B):
            gaps = [j for j in range(int(n[b]) + 1) if opened[b, j]]
            for _ in range(int(torch.randint(0, L - int(n[b]) + 1, ()))):
                if gaps:
                    counts[b, gaps[int(torch.randint(len(gaps), ()))]] += 1
        y2, n2, opened2 = insert(y, n, opened, counts, mask)
        for b in range(B):
            slots, marks = [], []
            for j in range(int(n[b]) + 1):
                slots += [[mask] * ell] * int(counts[b, j]) + ([y[b, j].tolist()] if j < n[b] else [])
                marks += [True] * int(counts[b, j]) + [bool(opened[b, j])]                      # gaps beside a new slot are open
            assert int(n2[b]) == len(slots) and y2[b].tolist() == slots + [[mask + 1] * ell] * (L - len(slots))
            assert opened2[b, :len(slots) + 1].tolist() == marks


def slots(code, truth):
    """Slots that a network may be asked about: of each token in `truth` at least one digit is masked."""
    hidden = torch.rand(len(truth), code.ell) < 0.6
    hidden[torch.arange(len(truth)), torch.randint(code.ell, (len(truth),))] = True
    return torch.where(hidden, code.mask, code.encode(truth))


CODES = [Code(6), Code(6, 1, torch.randperm(6)), Code(7, 2), Code(7, 3), Code(11, 2, torch.randperm(16))]


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("size", [1.0, 300.0])
def test_no_impossible_token_is_ever_drawn(code, size):
    """Whatever u, temperature and logits: the token agrees with the revealed digits and has a probability above 0."""
    M = 4_000
    truth = torch.randint(code.V, (M,))
    y = slots(code, truth)
    logits = torch.randn(M, code.V) * size
    logits[torch.rand(M, code.V) < 0.3] = -torch.inf
    logits[torch.arange(M), truth] = torch.randn(M)                                            # at least one token is possible
    u = torch.rand(M, dtype=torch.float64)
    u[:3], u[3:6] = 0.0, 1 - 2.0 ** -53
    agrees = code.agrees(y)
    for temperature in (1.0, 0.0, 0.1, 1e-6, 10.0):
        token = draw_tokens(logits, y, code, temperature, u)
        assert agrees[torch.arange(M), token].all() and (logits[torch.arange(M), token] > -torch.inf).all()
        if temperature == 1:
            assert (logits.masked_fill(~agrees, -torch.inf).softmax(1)[torch.arange(M), token] > 0).all()
        if temperature <= 1e-6:
            best = logits.masked_fill(~agrees, -torch.inf).amax(1)
            assert (logits[torch.arange(M), token] >= best - 1e-3).all()
    assert draw_tokens(logits[:0], y[:0], code, 1.0, u[:0]).shape == (0,)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_are_drawn_in_proportion(temperature):
    """Not by chance: u on a grid of 10,000, so each token gets its share to 1 / 10,000."""
    code, N = Code(7, 2), 10_000
    logits = torch.randn(7, dtype=torch.float64)
    for y in ([3, 3], [1, 3], [3, 0], [2, 0]):
        y = torch.tensor(y)
        p = torch.where(code.agrees(y[None])[0], (logits / temperature).exp(), 0)
        token = draw_tokens(logits.expand(N, 7), y.expand(N, 2), code, temperature, (torch.arange(N) + 0.5).double() / N)
        assert (torch.bincount(token, minlength=7) / N - p / p.sum()).abs().max() <= 1.001 / N


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("order", ["top_prob", "margin", "entropy"])
def test_confidence_of_each_digit_by_brute_force(code, order):
    M = 40
    y = slots(code, torch.randint(code.V, (M,)))
    logits = torch.randn(M, code.V, dtype=torch.float64)
    got = confidence(logits, y, code, order)
    assert got.shape == (M, code.ell)
    spelled = code.encode(torch.arange(code.V)).tolist()
    for m in range(M):
        fits = [v for v in range(code.V) if all(a in (d, code.mask) for a, d in zip(y[m].tolist(), spelled[v]))]
        total = sum(math.exp(logits[m, v]) for v in fits)
        for j in range(code.ell):
            p = sorted((sum(math.exp(logits[m, v]) for v in fits if spelled[v][j] == d) / total for d in range(code.b)), reverse=True)
            expected = {"top_prob": p[0], "margin": p[0] - p[1], "entropy": sum(q * math.log(q) for q in p if q > 1e-300)}[order]
            assert float(got[m, j]) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("order", ORDERS[1:])
@pytest.mark.parametrize("window", [None, 2])
def test_the_surest_masks_of_the_window_are_revealed_first(order, window):
    """Each step of a generation against a list: of the masked digits in the first `window` masked slots, the K surest (or leftmost)."""
    code, B, L = Code(7, 2), 6, 5
    table = torch.randn(L, code.V, dtype=torch.float64) * torch.linspace(0.5, 3, L)[torch.randperm(L), None]
    answer = lambda y, n, t, at: (table.expand(len(y), L, code.V)[at], None)
    states = [torch.full((B, L, 2), code.mask)]
    generate(answer, code, B, L, 12, INSTANT, LINEAR, order, window=window, watch=lambda t, y, n: states.append(y.clone()))
    checked = 0
    for before, after in zip(states, states[1:]):
        for b in range(B):
            hidden = before[b] == code.mask
            revealed = hidden & (after[b] != code.mask)
            slots = hidden.any(1).nonzero()[:, 0].tolist()[:window]
            scores = {}
            for i in slots:
                score = confidence(table[i:i + 1], before[b, i:i + 1], code, order)[0] if order != "left_to_right" else -(2 * i + torch.arange(2.0))
                scores |= {(i, j): float(score[j]) for j in range(2) if hidden[i, j]}
            chosen = sorted(scores, key=scores.get, reverse=True)[:int(revealed.sum())]
            assert sorted(chosen) == [tuple(p) for p in revealed.nonzero().tolist()]
            checked += 0 < len(chosen) < len(scores)
    assert checked > 10


# ---- seeds ---------------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("method, order, window", [(m, o, w) for m in METHODS for o, w in (("random", None), ("random", 2), ("margin", None))])
def test_a_seeded_row_does_not_depend_on_its_batch(method, order, window):
    """Rows of very different lengths, some of which fill the canvas; drawn together, in two parts, and in reverse order."""
    code, gaps = {"mdm": (Code(5), False), "flexmdm": (Code(5), True), "prime": (Code(5, 2), False), "flexprime": (Code(5, 2), True)}[method]
    weight = torch.randn(code.b + 2, code.V, dtype=torch.float64)

    def predict(y, n, t, at):                                                                  # a fixed function of the row
        h = torch.where((torch.arange(y.shape[1]) < n[:, None])[:, :, None, None], weight[y], 0).sum(2)
        log_g = torch.full((len(y), y.shape[1] + 1), -0.3) + 2 * h.sum((1, 2)).sin()[:, None]
        return 2 * (h + h.sum(1, keepdim=True)).sin()[at], log_g if gaps else None

    def draw(seeds):
        x, n = generate(predict, code, len(seeds), 12, 10, LINEAR if gaps else INSTANT, LINEAR, order, window=window, seeds=seeds)
        return torch.cat([x, n[:, None]], 1)
    seeds = list(range(100, 112))
    torch.manual_seed(1)
    together = draw(seeds)
    torch.manual_seed(2)
    assert torch.equal(together, torch.cat([draw(seeds[:5]), draw(seeds[5:6]), draw(seeds[6:])]))
    assert torch.equal(together.flip(0), draw(seeds[::-1]))
    assert len({tuple(r) for r in together.tolist()}) > 6
    assert not gaps or (together[:, -1] == 12).any() and len(together[:, -1].unique()) > 2


def test_the_global_seed_fixes_a_generation():
    oracle = world("flexprime")
    draws = []
    for s in (1, 1, 2):
        torch.manual_seed(s)
        draws.append(generate(oracle.predict, oracle.code, 50, oracle.L, 8, LINEAR, LINEAR)[0])
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


@pytest.mark.parametrize("insertion", ["instant", "linear"])
def test_one_digit_with_an_identity_permutation_gives_the_same_samples_bit_for_bit(insertion):
    results = []
    for code in (Code(3), Code(3, 1, torch.arange(3))):
        docs = strings(3, 2, 2 if insertion == "instant" else 0)
        oracle = Oracle(docs, random_p(len(docs), 0), code, schedule(insertion))
        torch.manual_seed(0)
        results.append(generate(oracle.predict, code, 200, 2, 10, schedule(insertion), LINEAR))
    assert all(torch.equal(a, b) for a, b in zip(*results))


@pytest.mark.parametrize("options", [dict(order="leftmost"), dict(steps=0), dict(window=0)])
def test_what_makes_no_sense_is_refused(options):
    options = {"steps": 4, **options}
    with pytest.raises(ValueError):
        generate(anything(Code(3)), Code(3), 1, 4, options.pop("steps"), LINEAR, LINEAR, **options)


# ---- the autoregressive baseline -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("given", [(), (1,)])
def test_left_to_right_generation_is_exact(given):
    end, N = 2, 10_000
    docs = strings(2, 3)
    p = random_p(len(docs), 0)
    p = torch.where(torch.tensor([x[:len(given)] == given for x in docs]), p, 0)
    p = p / p.sum()
    full = [x + (end,) for x in docs]
    known = {}

    def answer(before):
        if before not in known:
            q = torch.tensor([sum(float(w) for x, w in zip(full, p) if x[:len(before) + 1] == (*before, v)) for v in range(3)], dtype=torch.float64)
            known[before] = (q / q.sum()).log() if q.sum() > 0 else torch.zeros(3, dtype=torch.float64)
        return known[before]

    def predict(y, n, t, at):
        return torch.stack([answer(tuple(r)) for r in y[:, :-1, 0].tolist()]), None
    start = torch.tensor([given] * N) if given else None
    x, n = sample.generate_left_to_right(predict, Code(3), N, 4, end, start=start)
    assert x.shape == (N, 4) and total_variation(x, n, docs, p) < sampling_error(p, N, 1e-3)
