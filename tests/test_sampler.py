"""sampler.py: with the exact posterior (oracle.py) it draws the distribution itself; with any
network it keeps its promises."""
import itertools
import math
from collections import Counter

import pytest
import torch

import sampler
from common import Fail
from interpolant import below, schedule
from oracle import Oracle, random_p, sampling_error, strings, total_variation, two_holes, zeros
from prime import Code
from sampler import ORDERS, State, arrivals, confidence, draw_tokens, generate, insert

LINEAR, INSTANT = schedule("linear"), schedule("instant")
METHODS = ["mdm", "flexmdm", "prime", "flexprime"]
WORLDS = {"mdm": (3, 1, strings(3, 2, 2)), "flexmdm": (2, 1, strings(2, 3)),
          "prime": (4, 2, strings(4, 2, 2)), "flexprime": (4, 2, strings(4, 2))}


def world(method, seed=0, insertion="linear"):
    V, ell, docs = WORLDS[method]
    alpha = schedule(insertion) if "flex" in method else INSTANT
    return Oracle(docs, random_p(len(docs), seed), Code(V, ell), alpha)


def distance(oracle, samples, steps, p=None, predict=None, insertion=None, **options):
    """The total variation between samples of the oracle's answers and its distribution (or p)."""
    x, n = generate(predict or oracle.predict, oracle.code, samples, oracle.L, steps,
                    insertion or oracle.insertion, LINEAR, **options)
    assert (x[~below(n, oracle.L)] == 0).all()
    return total_variation(x, n, oracle.docs, oracle.p if p is None else p)


def noise(p, samples):
    """What exact draws exceed for one seed in 1,000; the seeds are fixed."""
    return sampling_error(p, samples, chance=1e-3)


# -----------------------------------------------------------------------------
# the distribution

@pytest.mark.parametrize("method", METHODS)
def test_generate_reproduces_the_distribution(method):
    """What a step cannot know is what else happens in it: an error of at most 1 / steps here,
    beside that of sampling."""
    oracle, N = world(method), 6_000
    error = noise(oracle.p, N)
    off = {steps: distance(oracle, N, steps) for steps in (2, 8, 32, 128)}
    assert off[2] > off[8] > off[32] and off[2] > 1.4 * error       # coarse steps are visibly wrong
    for steps in (8, 32, 128):
        assert off[steps] < error + 1 / steps
    assert off[128] < error


@pytest.mark.parametrize("insertion, unmasking", [
    ("sin", "linear"), ("polynomial", "cosine"), ("linear", "polynomial,exponent=3"),
    ("geometric", "linear")])
def test_under_other_schedules(insertion, unmasking):
    oracle, N = world("flexmdm", insertion=insertion), 5_000
    x, n = generate(oracle.predict, oracle.code, N, oracle.L, 100, oracle.insertion,
                    schedule(unmasking))
    assert total_variation(x, n, oracle.docs, oracle.p) < noise(oracle.p, N) + 1 / 100


@pytest.mark.parametrize("method", ["mdm", "flexmdm", "flexprime"])
@pytest.mark.parametrize("order", ORDERS[1:])
def test_every_order_reproduces_the_distribution(method, order):
    """Prop. 3: in any order, when tokens are revealed one at a time. In 96 steps two of at most 4
    digits seldom meet (6 / 96)."""
    oracle, N = world(method, seed=1), 4_000
    assert distance(oracle, N, 96, order=order) < noise(oracle.p, N) + 1 / 96


@pytest.mark.parametrize("method", ["mdm", "prime"])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("steps", [1, 3])
def test_one_token_at_a_time_is_exact_however_few_the_steps(method, order, steps):
    """A window of 1 reveals one token per network call (its digits jointly, which is exact): no
    error but that of sampling."""
    oracle, N = world(method, seed=2), 10_000
    assert distance(oracle, N, steps, order=order, window=1) < noise(oracle.p, N)
    if order == "random" and steps == 1:
        assert distance(oracle, N, steps) > 2 * noise(oracle.p, N)      # both at once is not


@pytest.mark.parametrize("window", [1, 2])
def test_a_window_with_insertions(window):
    oracle, N = world("flexprime", seed=3), 4_000
    assert distance(oracle, N, 96, window=window) < noise(oracle.p, N) + 1 / 96


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("order", ORDERS)
def test_the_exact_sampler_has_no_error(method, order):
    """One event at a time: no error but that of sampling, in about 3 calls a token."""
    oracle, N = world(method, seed=4), 4_000
    assert distance(oracle, N, 40, order=order, sampler="exact") < noise(oracle.p, N)


@pytest.mark.parametrize("insertion", ["sin", "polynomial", "cosine"])
def test_the_exact_sampler_under_other_schedules(insertion):
    oracle, N = world("flexmdm", seed=5, insertion=insertion), 6_000
    assert distance(oracle, N, 60, sampler="exact") < noise(oracle.p, N)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("steps", [1, 2, 3, 5, 9])
def test_the_exact_sampler_keeps_to_its_steps(method, steps):
    """What does not fit in the calls is done in parallel steps: then it is as wrong as those."""
    oracle, asked = world(method, seed=4), []

    def predict(y, n, t, at, given=None):
        asked.append(len(y))
        return oracle.predict(y, n, t, at)
    off = distance(oracle, 2_000, steps, predict=predict, sampler="exact")
    assert len(asked) <= 2 * steps + 8                      # two kinds of rows in a step; the rest
    assert off < noise(oracle.p, 2_000) + 1 / steps


def answering(log_g, V=2, gap=None):
    """Tokens are equally likely; log g is log_g(n) in the gap `gap` of a row (None: in all)."""
    def predict(y, n, t, at, given=None):
        g = log_g(n)[:, None].expand(-1, y.shape[1] + 1).clone()
        if gap is not None:
            g[:, torch.arange(y.shape[1] + 1) != gap] = -torch.inf
        return torch.zeros(int(at.sum()), V), g
    return predict


@pytest.mark.parametrize("insertion", ["linear", "sin", "cosine", "polynomial"])
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_step_inserts_with_the_exact_probability(insertion, steps):
    """Where g tokens are expected in the one gap there is, the first step inserts
    Binomial(g rounded at random, alpha(1 / steps)) of them: in mean and at 0, within 4 standard
    errors. With steps = 1 that is also the last step: it inserts, too."""
    g, N, seen, alpha = 1.5, 20_000, [], schedule(insertion)
    predict = answering(lambda n: torch.where(n == 0, math.log(g), -math.inf))

    def watch(t, y, n):
        seen.append(n.clone())
    generate(predict, Code(2), N, 20, steps, alpha, LINEAR, watch=watch)
    mean = g * float(alpha.at(1 / steps))
    assert abs(float(seen[0].double().mean()) - mean) <= 4 * math.sqrt(g / N)
    none = 1.0
    for i, n in enumerate(seen[:steps]):                # and nothing has come by (i + 1) / steps
        p = float(alpha.step(i / steps, (i + 1) / steps))
        none *= 0.5 * (1 - p) + 0.5 * (1 - p) ** 2
        assert abs(float((n == 0).double().mean()) - none) <= 4 * math.sqrt(none * (1 - none) / N)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("method", ["mdm", "prime"])
def test_every_order_reveals_on_schedule(method, order):
    """P(a digit is masked at time t) = 1 - beta(t) on a fixed canvas, in any order: only which ones
    differs."""
    oracle, N, beta, seen = world(method), 4_000, schedule("cosine"), []

    def watch(t, y, n):
        seen.append((t, float((y == oracle.code.mask).double().mean())))
    generate(oracle.predict, oracle.code, N, oracle.L, 7, INSTANT, beta, order=order, watch=watch)
    assert [t for t, _ in seen] == [(i + 1) / 7 for i in range(7)]
    for t, masked in seen:
        left = float(beta.left(t))
        error = math.sqrt(left * (1 - left) / (N * oracle.L * oracle.code.ell))
        assert abs(masked - left) <= 4 * error


@pytest.mark.parametrize("used", ["sin", "polynomial,exponent=3"])
def test_another_schedule_at_sampling_time(used):
    """The network is asked at the time that fits: then it draws the same distribution; if it were
    not told, another one."""
    oracle, N, steps = world("flexmdm", seed=6), 4_000, 64
    told = sampler.retimed(oracle.predict, LINEAR, schedule(used))
    off = distance(oracle, N, steps, predict=told, insertion=schedule(used))
    assert off < noise(oracle.p, N) + 1 / steps
    assert distance(oracle, N, steps, insertion=schedule(used)) > off + 0.02


# -----------------------------------------------------------------------------
# prompts and holes

def given_state(ids, opened, code, B):
    """ids (-1: a mask), and the gaps that are open"""
    ids = torch.tensor(ids)
    y = torch.where((ids < 0)[:, None], code.mask, code.encode(ids.clamp_min(0)))
    gaps = torch.zeros(len(ids) + 1, dtype=torch.bool)
    gaps[opened] = True
    return y.expand(B, -1, -1), torch.full((B,), len(ids)), gaps.expand(B, -1)


SAMPLERS = [("parallel", 48), ("exact", 48)]


@pytest.mark.parametrize("kind, steps", SAMPLERS)
@pytest.mark.parametrize("order", ["random", "margin"])
@pytest.mark.parametrize("ell", [1, 2])
def test_a_prompt_gives_the_conditional_distribution(order, ell, kind, steps):
    """Documents of up to 4 tokens that begin with 1 0; the oracle is that of a model trained with
    given tokens."""
    V, N = (3, 4)[ell - 1], 4_000
    docs, code = [(1, 0, *w) for w in strings(V, 2)], Code(V, ell)
    given = [(True, True, *[False] * (len(x) - 2)) for x in docs]
    oracle = Oracle(docs, random_p(len(docs), 4), code, LINEAR, given)
    start = given_state([1, 0], [2], code, N)
    off = distance(oracle, N, steps, order=order, start=start, sampler=kind)
    assert off < noise(oracle.p, N) + (1 / steps if kind == "parallel" else 0)


@pytest.mark.parametrize("kind, steps", SAMPLERS)
@pytest.mark.parametrize("order", ["random", "entropy"])
@pytest.mark.parametrize("ell", [1, 2])
def test_holes_give_the_conditional_distribution(order, ell, kind, steps):
    """3 [..] 0 [..] 3 with up to 2 and 1 tokens in the holes, which depend on each other."""
    fill = [tuple(c + 1 for c in w) for w in strings(2, 2)]
    pairs = list(itertools.product(fill, fill[:3]))
    docs = [(3, *w, 0, *v, 3) for w, v in pairs]
    given = [(True, *[False] * len(w), True, *[False] * len(v), True) for w, v in pairs]
    code, N = Code(4, ell), 4_000
    oracle = Oracle(docs, random_p(len(docs), 5), code, LINEAR, given)
    start = given_state([3, 0, 3], [1, 2], code, N)
    off = distance(oracle, N, steps, order=order, start=start, sampler=kind)
    assert off < noise(oracle.p, N) + (1 / steps if kind == "parallel" else 0)


@pytest.mark.parametrize("kind, steps", SAMPLERS)
@pytest.mark.parametrize("ell", [1, 2])
def test_holes_that_hold_a_token_give_the_conditional_distribution(ell, kind, steps):
    """As --infill '3[..]0[..]33' begins: one mask in each hole."""
    code, N = Code(4, ell), 4_000
    oracle, p = two_holes(code, 5)
    start = sampler.start_from([[3], [0], [3, 3]], [None, None], code, 8, False, end=None)
    y, n, opened = start
    assert (y[0, :, 0] == code.mask).tolist() == [False, True, False, True, False, False]
    assert opened.tolist() == [[False, True, True, True, True, False, False]]
    start = tuple(s.expand(N, *s.shape[1:]) for s in start)
    limit = noise(p, N) + (1 / steps if kind == "parallel" else 0)
    assert distance(oracle, N, steps, p, start=start, sampler=kind) < limit
    without = oracle.p / oracle.p.sum()
    assert distance(oracle, N, steps, without, start=start, sampler=kind) > limit


@pytest.mark.parametrize("method, order", [("mdm", "random"), ("mdm", "top_prob"),
                                           ("prime", "random")])
def test_given_tokens_on_a_fixed_canvas(method, order):
    oracle, N = world(method, seed=6), 10_000
    p = torch.where(torch.tensor([x[1] == 2 for x in oracle.docs]), oracle.p, 0)
    p = p / p.sum()
    start = given_state([-1, 2], [], oracle.code, N)
    assert distance(oracle, N, 50, p, order=order, start=start) < noise(p, N)


@pytest.mark.parametrize("kind", ["parallel", "exact"])
def test_closed_gaps_stay_closed_and_a_start_is_not_changed(kind):
    code, B = Code(5), 64
    start = given_state([4, 3, 2], [1], code, B)
    before = [s.clone() for s in start]
    x, n = generate(anything(code, log_g=0.5), code, B, 8, 30, LINEAR, LINEAR, start=start,
                    sampler=kind)
    assert all(torch.equal(a, b) for a, b in zip(before, start))
    assert (n > 3).any() and (x[:, 0] == 4).all()
    rows = [row[:length] for row, length in zip(x.tolist(), n.tolist())]
    assert all(row[-2:] == [3, 2] for row in rows)


def test_a_start_without_gaps_named_is_open_everywhere():
    code, B = Code(9), 200
    y, n, _ = given_state([8, 7], [], code, B)
    x, n = generate(anything(code, log_g=0.0), code, B, 12, 10, LINEAR, LINEAR, start=(y, n))
    rows = [row[:length] for row, length in zip(x.tolist(), n.tolist())]
    assert any(r[0] != 8 for r in rows) and any(r[-1] != 7 for r in rows)
    both = [r for r in rows if 8 in r and 7 in r]
    assert any(r.index(7) - r.index(8) > 1 for r in both)


@pytest.mark.parametrize("kind", ["parallel", "exact"])
@pytest.mark.parametrize("fixed", [False, True])
def test_the_network_is_told_which_slots_were_given(kind, fixed):
    """In every call, wherever insertions have moved them; nothing else is."""
    code, B, alpha = Code(9), 16, INSTANT if fixed else LINEAR
    start = given_state([8, -1, 7], [1, 2], code, B)
    inner, told = anything(code, gaps=not fixed, log_g=None if fixed else 0.0), []

    def predict(y, n, t, at, given=None):
        told.append(given.sum())
        text = torch.where(given, y[:, :, 0], -1).tolist()
        assert all([v for v in row if v >= 0] == [8, 7] for row in text)
        answer = inner(y, n, t, at)
        answer[0][:, 7:] = -math.inf                        # 8 and 7 are never drawn
        return answer
    generate(predict, code, B, 9, 20, alpha, LINEAR, start=start, sampler=kind)
    assert told

    def untold(y, n, t, at, given=None):
        assert given is None
        return inner(y, n, t, at)
    generate(untold, code, B, 9, 5, alpha, LINEAR, sampler=kind)


PARTS, END = [[1, 2], [3]], 5


def test_a_hole_of_a_fixed_canvas_has_the_size_that_it_is_given():
    code = Code(6)
    y, n, opened = sampler.start_from(PARTS, [3], code, 8, True, END)
    assert y[0, :, 0].tolist() == [1, 2, 6, 6, 6, 3, END, END] and n.tolist() == [8]
    y, n, _ = sampler.start_from(PARTS, [3], code, 8, True, None)
    assert y[0, :, 0].tolist() == [1, 2, 6, 6, 6, 3]
    y, n, _ = sampler.start_from([[1, 2]], [], code, 6, True, END, end_open=True)
    assert y[0, :, 0].tolist() == [1, 2, 6, 6, 6, 6]
    with pytest.raises(Fail, match="fixed canvas"):
        sampler.start_from(PARTS, [None], code, 8, True, END)


def test_a_hole_begins_as_one_mask_or_as_nothing():
    code = Code(6)
    y, n, opened = sampler.start_from(PARTS, [None], code, 8, False, END)
    assert y[0, :, 0].tolist() == [1, 2, 6, 3]
    assert opened[0].tolist() == [False, False, True, True, False]
    y, n, opened = sampler.start_from(PARTS, [None], code, 8, False, END, anchored=False)
    assert y[0, :, 0].tolist() == [1, 2, 3]
    assert opened[0].tolist() == [False, False, True, False]
    y, n, opened = sampler.start_from([[1, 2]], [], code, 8, False, END, end_open=True)
    assert y[0, :, 0].tolist()[:2] == [1, 2] and bool(opened[0, -1]) and not opened[0, :2].any()


def test_given_text_that_leaves_no_room_is_refused():
    with pytest.raises(Fail, match="no room"):
        sampler.start_from([[1] * 5, [2] * 4], [None], Code(6), 9, False, END)


def test_stacked_starts_are_one_batch():
    code = Code(6)
    one = sampler.start_from([[1], [2, 3]], [None], code, 8, False, END)
    two = sampler.start_from([[4], []], [None], code, 8, False, END)
    y, n, opened = sampler.stack([one, two], code)
    assert n.tolist() == [4, 2]
    assert y[:, :, 0].tolist() == [[1, 6, 2, 3], [4, 6, 7, 7]]
    assert torch.equal(opened[0], one[2][0]) and torch.equal(opened[1, :3], two[2][0])
    assert not opened[1, 3:].any()


# -----------------------------------------------------------------------------
# promises that hold for any network

def anything(code, gaps=True, log_g=None, size=3.0):
    """A network that answers at random, anew at each call; log_g is NaN where it must be
    ignored."""
    def predict(y, n, t, at, given=None):
        B, L, _ = y.shape
        assert not (at & ~below(n, L)).any(), "asked about a slot that is not in use"
        assert ((y == code.mask).any(2) | ~at).all(), "asked about a slot that has no mask"
        assert ((t >= 0) & (t <= 1)).all() and t.shape == (B,)
        logits = torch.randn(int(at.sum()), code.V) * size
        if not gaps:
            return logits, None
        g = torch.randn(B, L + 1) * size - 1
        if log_g is not None:
            g = torch.full((B, L + 1), log_g)
        return logits, g.masked_fill(~below(n + 1, L + 1), torch.nan)
    return predict


class Promises:
    """A `watch` that checks every state: pads at the end only, no overflow, and the slots of the
    state before still there, in order, with no revealed digit changed."""

    def __init__(self, code, block_size, gaps):
        self.code, self.block_size, self.gaps = code, block_size, gaps
        self.before, self.calls = None, 0

    def __call__(self, t, y, n):
        self.calls += 1
        assert 0 <= t <= 1
        if self.before is None or not torch.equal(y, self.before[0]):
            self.check(y, n)
            self.before = y.clone(), n.clone()

    def check(self, y, n):
        code = self.code
        assert y.shape == (len(n), self.block_size, code.ell) and (n <= self.block_size).all()
        outside = ~below(n, self.block_size)
        pads = y == code.pad
        assert torch.equal(pads.any(2), outside) and torch.equal(pads.all(2), outside)
        assert ((y >= 0) & (y <= code.pad)).all()
        if self.before is None:
            return
        old, m = self.before
        assert (n >= m).all()
        if not self.gaps:
            assert torch.equal(n, m) and ((y == old) | (old == code.mask)).all()
            return
        for a, z, i, j in zip(old.tolist(), y.tolist(), m.tolist(), n.tolist()):
            later = iter(z[:j])
            assert all(any(self.becomes(slot, new) for new in later) for slot in a[:i])

    def becomes(self, slot, new):
        return all(u in (v, self.code.mask) for u, v in zip(slot, new))


CODE_OF = {"mdm": Code(7), "flexmdm": Code(7), "prime": Code(7, 3),
           "flexprime": Code(11, 2, torch.randperm(16))}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("order", ORDERS)
def test_every_state_of_every_generation(method, order):
    code, gaps, block_size, B = CODE_OF[method], "flex" in method, 6, 8
    insertions = ("linear", "cosine", "geometric", "sin")
    unmaskings = ("linear", "sin", "polynomial", "cosine")
    for k, (steps, window) in enumerate(itertools.product((1, 2, 9), (0, 1, 3, "exact"))):
        insertion = schedule(insertions[k % 4]) if gaps else INSTANT
        beta = schedule(unmaskings[k // 2 % 4])
        temperature = (1.0, 0.0, 0.7, 1.0, 3.0)[k % 5]
        options = dict(sampler="exact") if window == "exact" else dict(window=window)
        watch = Promises(code, block_size, gaps)
        x, n = generate(anything(code, gaps), code, B, block_size, steps, insertion, beta, order,
                        temperature, watch=watch, **options)
        assert x.shape == (B, block_size) and ((x >= 0) & (x < code.V)).all()
        assert (n <= block_size).all() and (gaps or (n == block_size).all())
        y, m = watch.before
        assert not (y == code.mask).any() and torch.equal(m, n)
        inside = below(n, block_size)
        ids = code.decode(torch.where(inside[:, :, None], y, 0))
        assert torch.equal(x, torch.where(inside, ids, 0))


@pytest.mark.parametrize("method, order", [("mdm", "top_prob"), ("flexprime", "random")])
def test_a_thousand_steps(method, order):
    gaps = method == "flexprime"
    code = Code(4, 2) if gaps else Code(3)
    watch = Promises(code, 3, gaps)
    alpha = LINEAR if gaps else INSTANT
    x, n = generate(anything(code, gaps), code, 2, 3, 1_000, alpha, LINEAR, order, watch=watch)
    assert 1_000 <= watch.calls < 1_010
    assert not (watch.before[0] == code.mask).any() and ((x >= 0) & (x < code.V)).all()


def test_rows_without_a_reveal_are_not_asked_on_a_canvas():
    oracle, asked = world("mdm"), []

    def predict(y, n, t, at, given=None):
        asked.append((len(y), int(at.any(1).sum())))
        return oracle.predict(y, n, t, at)
    generate(predict, oracle.code, 8, oracle.L, 32, oracle.insertion, LINEAR)
    assert all(rows == busy for rows, busy in asked) and {rows for rows, _ in asked} >= {1, 2}


def test_idle_steps_ask_nothing_of_a_network_without_gaps():
    code, asked, inner = Code(3), [], anything(Code(3), gaps=False)

    def predict(y, n, t, at, given=None):
        asked.append(0)
        return inner(y, n, t, at)
    generate(predict, code, 1, 4, 500, INSTANT, LINEAR)
    assert len(asked) <= 4                                  # one for each token


@pytest.mark.parametrize("kind", ["parallel", "exact"])
@pytest.mark.parametrize("log_g", [3.0, 15.0, 80.0, math.inf])
def test_a_canvas_fills_up_and_does_not_overflow(log_g, kind):
    code = Code(5, 2)
    for steps in (1, 3, 20):
        watch = Promises(code, 7, True)
        _, n = generate(anything(code, log_g=log_g), code, 16, 7, steps, LINEAR, LINEAR,
                        watch=watch, sampler=kind)
        assert (n == 7).all()


@pytest.mark.parametrize("kind", ["parallel", "exact"])
def test_nothing_is_inserted_where_nothing_is_expected(kind):
    code = Code(5, 2)
    predict = anything(code, log_g=-math.inf)
    _, n = generate(predict, code, 16, 7, 5, LINEAR, LINEAR, sampler=kind)
    assert (n == 0).all()


@pytest.mark.parametrize("kind", ["parallel", "exact"])
@pytest.mark.parametrize("what", ["logits", "log_g"])
def test_answers_that_are_not_numbers_end_with_a_sentence(what, kind):
    """They would hang torch.binomial, or be drawn as tokens, also as the likeliest ones."""
    code = Code(5)

    def predict(y, n, t, at, given=None):
        logits, log_g = torch.zeros(int(at.sum()), 5), torch.zeros(len(y), y.shape[1] + 1)
        (logits if what == "logits" else log_g).fill_(math.nan)
        return logits, log_g
    with pytest.raises(Fail, match="not finite"):
        generate(predict, code, 4, 7, 5, LINEAR, LINEAR, sampler=kind)
    with pytest.raises(Fail, match="not finite"):
        generate(predict, code, 4, 7, 5, LINEAR, LINEAR, sampler=kind, temperature=0)


def test_on_a_fixed_canvas_the_exact_sampler_takes_a_call_a_token_and_ends():
    calls, states = [], []

    def predict(y, n, t, at, given=None):
        calls.append(int(at.sum()))
        return torch.zeros(calls[-1], 5), None
    generate(predict, Code(5), 1, 7, 50, schedule("instant"), LINEAR, sampler="exact",
             watch=lambda *state: states.append(state))
    assert calls == [1] * 7 and len(states) == 8


def test_the_masks_left_over_are_revealed_in_several_rounds():
    """After one step all of a row's 16 tokens are there and masked: an eighth is revealed, then a
    seventh of the rest, and so on: after k of 8 rounds a share of k / 8."""
    N, L, code, seen = 500, 16, Code(2), []
    predict = answering(lambda n: torch.where(n == 0, math.log(L), -math.inf), gap=0)

    def watch(t, y, n):
        seen.append((t, (y == code.mask).sum((1, 2)).double().mean() / L))
    generate(predict, code, N, L, 1, LINEAR, LINEAR, watch=watch)
    assert len(seen) == 9 and all(t == 1.0 for t, _ in seen)
    for k, (_, masked) in enumerate(seen):
        left = 1 - k / 8
        assert abs(float(masked) - left) <= 4 * math.sqrt(left * (1 - left) / (N * L))


def test_a_random_window_is_not_leftmost():
    """Of the three leftmost masks each is as likely to be the first one revealed; no other is."""
    N, code, states = 3_000, Code(2), []

    def predict(y, n, t, at, given=None):
        return torch.zeros(int(at.sum()), 2), None

    def watch(t, y, n):
        states.append((y == code.mask)[:, :, 0].clone())
    generate(predict, code, N, 6, 30, INSTANT, LINEAR, window=3, watch=watch)
    first = states[0]
    one = (~first).sum(1) == 1
    share = (~first)[one].double().mean(0)
    assert int(one.sum()) > 300
    assert (share[:3] - 1 / 3).abs().max() < 4 * math.sqrt(2 / 9 / int(one.sum()))
    assert (share[3:] == 0).all()


# -----------------------------------------------------------------------------
# the pieces

@pytest.mark.parametrize("g", [0.0, 0.3, 1.0, 2.0, 2.6])
@pytest.mark.parametrize("p", [0.0, 0.2, 1.0])
def test_arrivals_are_binomial(g, p):
    """Binomial(K, p) with K = floor(g) or the next whole number: the whole law, so also that a
    certain g at p = 1 arrives to the last one."""
    N, low, up = 20_000, math.floor(g), g - math.floor(g)
    got = arrivals(torch.full((N // 10, 10), g, dtype=torch.float64), torch.full((N // 10,), p))

    def binomial(n, c):
        return math.comb(n, c) * p ** c * (1 - p) ** max(n - c, 0)
    law = [(1 - up) * binomial(low, c) + up * binomial(low + 1, c) for c in range(5)]
    law = torch.tensor(law, dtype=torch.float64)
    assert float(law.sum()) == pytest.approx(1)
    assert float((law * torch.arange(5)).sum()) == pytest.approx(g * p)
    off = float((torch.bincount(got.flatten(), minlength=5) / N - law).abs().sum() / 2)
    assert off <= (0 if float(law.max()) == 1 else noise(law, N))


def test_neighbouring_gaps_share_what_is_certain():
    """Where five gaps miss 4 tokens together, 4 arrive (p = 1), whatever the split; each gap and
    each run of gaps has its mean, within one."""
    g, N = torch.tensor([0.7, 0.0, 1.6, 0.2, 1.5], dtype=torch.float64), 20_000
    got = arrivals(g.expand(N, 5), torch.ones(N))
    assert (got.sum(1) == 4).all() and (got[:, 1] == 0).all()
    for a, z in itertools.combinations(range(6), 2):
        run, mean = got[:, a:z].sum(1).double(), float(g[a:z].sum())
        assert float((run - mean).abs().max()) < 1
        assert abs(float(run.mean()) - mean) < 4 * 0.5 / math.sqrt(N)


def test_insertions_that_do_not_fit_are_cut_at_random():
    """Counts 1, 3, 0, 2 and room for 2: every pair of the six is equally likely to stay. What fits
    is not touched."""
    counts, N, code = torch.tensor([1, 3, 0, 2]), 20_000, Code(5)

    def inserted(room):
        """the number of new slots in each gap of 0 1 2"""
        y = torch.full((N, 3 + room, 1), code.pad)
        y[:, :3, 0] = torch.arange(3)
        opened = torch.ones(N, 4 + room, dtype=torch.bool)
        state = State(y, torch.full((N,), 3), opened, None)
        y, n, _, _ = insert(state, counts.expand(N, 4), code)
        gap = (y[:, :, 0] < 3).cumsum(1)                    # how many old slots are left of it
        return torch.nn.functional.one_hot(gap, 4).mul(y == code.mask).sum(1), n
    got, n = inserted(2)
    assert (n == 5).all()
    bag = [i for i, c in enumerate(counts.tolist()) for _ in range(c)]
    pairs = itertools.combinations(bag, 2)
    law = Counter(tuple((i == g) + (j == g) for g in range(4)) for i, j in pairs)
    keys = sorted(law)
    p = torch.tensor([law[k] for k in keys], dtype=torch.float64) / sum(law.values())
    index = {k: i for i, k in enumerate(keys)}
    rows = torch.tensor([index[tuple(r)] for r in got.tolist()])
    share = torch.bincount(rows, minlength=len(keys)) / N
    assert float((share - p).abs().sum() / 2) < noise(p, N)
    assert torch.equal(inserted(6)[0], counts.expand(N, 4))
    assert (inserted(0)[0] == 0).all()


def test_insert_is_list_insertion():
    B, L, code = 50, 9, Code(9, 2)
    mask, pad = [code.mask] * 2, [code.pad] * 2
    for _ in range(10):
        n = torch.randint(0, L + 1, (B,))
        n[0], n[1] = 0, L
        used = below(n, L)
        y = torch.where(used[:, :, None], torch.arange(B * L * 2).view(B, L, 2) + 1000, code.pad)
        opened, given = torch.rand(B, L + 1) < 0.6, (torch.rand(B, L) < 0.5) & used
        counts = torch.zeros(B, L + 1, dtype=torch.int64)
        for b in range(B):
            gaps = [j for j in range(int(n[b]) + 1) if opened[b, j]]
            room = int(torch.randint(0, L - int(n[b]) + 1, ()))
            for _ in range(room if gaps else 0):
                counts[b, gaps[int(torch.randint(len(gaps), ()))]] += 1
        y2, n2, opened2, given2 = insert(State(y, n, opened, given), counts, code)
        for b in range(B):
            slots, marks, told = [], [], []
            for j in range(int(n[b]) + 1):
                new = int(counts[b, j])
                slots += [mask] * new
                told += [False] * new
                marks += [True] * new + [bool(opened[b, j])]    # open beside a new slot
                if j < n[b]:
                    slots.append(y[b, j].tolist())
                    told.append(bool(given[b, j]))
            m = len(slots)
            assert int(n2[b]) == m and y2[b].tolist() == slots + [pad] * (L - m)
            assert opened2[b, :m + 1].tolist() == marks
            assert given2[b].tolist() == told + [False] * (L - m)


def slots(code, truth):
    """Slots that a network may be asked about: of each token at least one digit is masked."""
    M = len(truth)
    hidden = torch.rand(M, code.ell) < 0.6
    hidden[torch.arange(M), torch.randint(code.ell, (M,))] = True
    return torch.where(hidden, code.mask, code.encode(truth))


CODES = [Code(6), Code(6, 1, torch.randperm(6)), Code(7, 2), Code(7, 3),
         Code(11, 2, torch.randperm(16))]


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("size", [1.0, 300.0])
def test_no_impossible_token_is_ever_drawn(code, size):
    """Whatever temperature and logits: the token agrees with the revealed digits and has a
    probability above 0."""
    M, rows = 4_000, torch.arange(4_000)
    truth = torch.randint(code.V, (M,))
    y = slots(code, truth)
    logits = torch.randn(M, code.V) * size
    logits[torch.rand(M, code.V) < 0.3] = -torch.inf
    logits[rows, truth] = torch.randn(M)                    # at least one token is possible
    agrees = code.agrees(y)
    possible = logits.masked_fill(~agrees, -torch.inf)
    for temperature in (1.0, 0.0, 0.1, 1e-6, 10.0):
        token = draw_tokens(logits, y, code, temperature)
        assert agrees[rows, token].all() and (logits[rows, token] > -torch.inf).all()
        if temperature == 1:
            assert (possible.softmax(1)[rows, token] > 0).all()
        if temperature <= 1e-6:
            assert (logits[rows, token] >= possible.amax(1) - 1e-3).all()
    for temperature in (0.0, 1.0):
        assert draw_tokens(logits[:0], y[:0], code, temperature).shape == (0,)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_are_drawn_in_proportion(temperature):
    """exp(logit / temperature) among the tokens that agree, in 40,000 draws."""
    code, N = Code(7, 2), 40_000
    logits = torch.randn(7, dtype=torch.float64)
    for y in ([3, 3], [1, 3], [3, 0], [2, 0]):
        y = torch.tensor(y)
        p = torch.where(code.agrees(y[None])[0], (logits / temperature).exp(), 0)
        p = p / p.sum()
        token = draw_tokens(logits.expand(N, 7), y.expand(N, 2), code, temperature)
        share = torch.bincount(token, minlength=7) / N
        assert ((share - p).abs() <= 4 * (p * (1 - p) / N).sqrt()).all()


def sureness(p, order):
    """of a digit with these probabilities, by the order's definition"""
    p = sorted(p, reverse=True)
    if order == "top_prob":
        return p[0]
    if order == "margin":
        return p[0] - p[1]
    return sum(q * math.log(q) for q in p if q > 1e-300)


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("order", ["top_prob", "margin", "entropy"])
def test_confidence_of_each_digit_by_brute_force(code, order):
    M = 40
    y = slots(code, torch.randint(code.V, (M,)))
    logits = torch.randn(M, code.V, dtype=torch.float64)
    got = confidence(logits, y, code, order)
    assert got.shape == (M, code.ell)
    weight = logits.exp() * code.agrees(y)                  # (M, V)
    digits = code.encode(torch.arange(code.V))
    for m, j in itertools.product(range(M), range(code.ell)):
        p = [float(weight[m, digits[:, j] == d].sum() / weight[m].sum()) for d in range(code.b)]
        assert float(got[m, j]) == pytest.approx(sureness(p, order), abs=1e-9)


@pytest.mark.parametrize("order", ORDERS[1:])
@pytest.mark.parametrize("window", [0, 2])
def test_the_surest_masks_of_the_window_are_revealed_first(order, window):
    """Each step of a generation against a list: of the masked digits in the first `window` masked
    slots, the K surest (or leftmost)."""
    code, B, L = Code(7, 2), 6, 5
    table = torch.randn(L, code.V, dtype=torch.float64)
    table = table * torch.linspace(0.5, 3, L)[torch.randperm(L), None]
    states = [torch.full((B, L, 2), code.mask)]

    def predict(y, n, t, at, given=None):
        return table.expand(len(y), L, code.V)[at], None

    def watch(t, y, n):
        states.append(y.clone())

    def score(slot, i):
        if order == "left_to_right":
            return -(2 * i + torch.arange(2.0))
        return confidence(table[i:i + 1], slot[None], code, order)[0]
    generate(predict, code, B, L, 12, INSTANT, LINEAR, order, window=window, watch=watch)
    checked = 0
    for before, after in zip(states, states[1:]):
        for b in range(B):
            hidden = before[b] == code.mask
            revealed = hidden & (after[b] != code.mask)
            eligible = hidden.any(1).nonzero()[:, 0].tolist()[:window or None]
            scores = {}
            for i in eligible:
                sure = score(before[b, i], i)
                scores |= {(i, j): float(sure[j]) for j in range(2) if hidden[i, j]}
            best = sorted(scores, key=scores.get, reverse=True)[:int(revealed.sum())]
            assert sorted(best) == [tuple(p) for p in revealed.nonzero().tolist()]
            checked += 0 < len(best) < len(scores)
    assert checked > 10


# -----------------------------------------------------------------------------
# seeds, and what is refused

@pytest.mark.parametrize("kind", ["parallel", "exact"])
def test_the_global_seed_fixes_a_generation(kind):
    oracle = world("flexprime")

    def draw(seed):
        torch.manual_seed(seed)
        return generate(oracle.predict, oracle.code, 50, 2, 8, LINEAR, LINEAR, sampler=kind)[0]
    assert torch.equal(draw(1), draw(1)) and not torch.equal(draw(1), draw(2))


@pytest.mark.parametrize("insertion", ["instant", "linear"])
def test_an_identity_permutation_gives_the_same_samples_bit_for_bit(insertion):
    docs = strings(3, 2, 2) if insertion == "instant" else strings(3, 2)
    alpha, results = schedule(insertion), []
    for code in (Code(3), Code(3, 1, torch.arange(3))):
        oracle = Oracle(docs, random_p(len(docs), 0), code, alpha)
        torch.manual_seed(0)
        results.append(generate(oracle.predict, code, 200, 2, 10, alpha, LINEAR))
    assert all(torch.equal(a, b) for a, b in zip(*results))


@pytest.mark.parametrize("wrong", [dict(order="leftmost"), dict(steps=0), dict(sampler="euler")])
def test_what_makes_no_sense_is_refused(wrong):
    options = {"steps": 4, "insertion": LINEAR, "unmasking": LINEAR, **wrong}
    with pytest.raises(ValueError):
        generate(anything(Code(3)), Code(3), 1, 4, **options)


# -----------------------------------------------------------------------------
# the baselines

@pytest.mark.parametrize("given", [(), (1,)])
def test_left_to_right_generation_is_exact(given):
    end, N, docs = 2, 10_000, strings(2, 3)
    p = random_p(len(docs), 0)
    p = torch.where(torch.tensor([x[:len(given)] == given for x in docs]), p, 0)
    p = p / p.sum()
    known, prompt = {}, len(given)

    def answer(before):
        if before not in known:
            q = zeros(3)
            for x, w in zip(docs, p):
                x = (*x, end)
                if x[:len(before)] == before and len(x) > len(before):
                    q[x[len(before)]] += w
            known[before] = (q / q.sum()).log() if q.sum() > 0 else zeros(3)
        return known[before]

    def predict(y, n, t, at, given=None):
        assert at[:, -1].all() and int(at.sum()) == len(y)
        assert (given == (torch.arange(y.shape[1]) < prompt)).all()         # as in training
        return torch.stack([answer(tuple(row)) for row in y[:, :-1, 0].tolist()]), None
    start = torch.tensor([given] * N) if given else None
    x, n = sampler.generate_left_to_right(predict, Code(3), N, 4, end, start=start)
    assert x.shape == (N, 4) and total_variation(x, n, docs, p) < noise(p, N)
