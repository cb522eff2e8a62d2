"""From a network to documents (arXiv 2509.01025, Prop. 2 and 3).

`parallel`: starting from nothing (with insertion) or from a canvas of masks, a step from time t to
s asks the network once and then

    reveals each masked digit with probability (beta(s) - beta(t)) / (1 - beta(t)),
        its value drawn from f,
    inserts each of the g_j masks expected in gap j with probability
        (alpha(s) - alpha(t)) / (1 - alpha(t)).

These probabilities are right for a step of any size. What a step cannot know is what else is
revealed or inserted in the same instant: that error shrinks as 1 / steps. By Prop. 3 the order of
the reveals is free: `order` picks the surest digits, or the leftmost, instead of random ones. It
never changes how many.

`exact`: every row has its own clock and one thing happens at a time, so with enough calls, about
four a token, the only error is the network's. See `one_event`.
"""
from typing import Callable, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from common import Fail
from interpolant import Schedule, below
from prime import Code
from rates import log_marginals, restrict

SURE = ("top_prob", "margin", "entropy")
ORDERS = ("random", *SURE, "left_to_right")
SAMPLERS = ("exact", "parallel")
NOT_FINITE = "the network's answers are not finite numbers: this checkpoint cannot be used"


class State(NamedTuple):
    """B documents in the making, on the host"""
    y: Tensor           # (B, L, ell) digits
    n: Tensor           # (B,) slots in use
    opened: Tensor      # (B, L + 1) bool: may tokens be inserted left of slot j?
    given: Tensor       # (B, L) bool: slots that were given, or None


class Task(NamedTuple):
    """What stays the same during a generation"""
    predict: Callable
    code: Code
    insertion: Schedule
    unmasking: Schedule
    order: str
    temperature: float
    window: int         # reveal only in this many leftmost masked slots; 0: in any

    @property
    def fixed(self):
        """no insertion: a canvas of masks"""
        return self.insertion.name == "instant"


def begin(code, B, block_size, fixed, start=None):
    """The state at t = 0: empty, or (fixed) a canvas of masks, or `start`: (y, n) or (y, n,
    opened), whose clean slots are given: they are never changed."""
    opened = torch.ones(B, block_size + 1, dtype=torch.bool)
    if start is None:
        size, symbol = (block_size, code.mask) if fixed else (0, code.pad)
        y = torch.full((B, block_size, code.ell), symbol)
        return State(y, torch.full((B,), size), opened, None)
    y, n, L = start[0], start[1].clone(), start[0].shape[1]
    if len(start) == 3:
        opened[:, :L + 1] = start[2]
    y = torch.where(below(n, L)[:, :, None], y, code.pad)
    y = F.pad(y, (0, 0, 0, block_size - L), value=code.pad)
    given = below(n, block_size) & ~(y == code.mask).any(2)
    return State(y, n, opened, given)


def used_slots(state):
    """(B, L, ell): the digits up to the longest row's last slot"""
    return state.y[:, :max(int(state.n.max()), 1)]


def with_slots(state, y):
    """The state with new digits in its first slots"""
    return state._replace(y=torch.cat([y, state.y[:, y.shape[1]:]], 1))


def take(state, rows):
    return State(*(None if x is None else x[rows] for x in state))


def put(state, rows, part):
    """state[rows] = part, in place"""
    for x, new in zip(state, part):
        if x is not None:
            x[rows] = new


# -----------------------------------------------------------------------------
# which digit, which token

def draw_tokens(logits, y, code, temperature):
    """(M, V) -> (M,): a token for each slot, among those that agree with the digits it shows"""
    logits = restrict(logits, y, code)
    if len(logits) == 0:
        return logits.new_zeros(0, dtype=torch.int64)
    p = (logits / (temperature or 1)).softmax(1)
    if not p.isfinite().all():
        raise Fail(NOT_FINITE)
    if temperature == 0:
        return logits.argmax(1)
    return p.multinomial(1)[:, 0]


def confidence(logits, y, code, order):
    """How sure the network is of each digit: (M, ell), higher is surer."""
    log_p = log_marginals(logits, y, code)                                      # (M, ell, b)
    p = log_p.exp()
    if order == "top_prob":
        return p.amax(2)
    if order == "margin":
        first, second = p.topk(2, dim=2).values.unbind(2)
        return first - second
    return torch.where(p > 0, p * log_p, 0).sum(2)                              # minus the entropy


def highest(scores, eligible, count):
    """(B, N) bool: the count[b] eligible places of row b with the highest scores"""
    scores = scores.masked_fill(~eligible, -torch.inf)
    order = scores.argsort(dim=1, descending=True, stable=True)
    first = below(count, scores.shape[1])
    return eligible & torch.zeros_like(eligible).scatter(1, order, first)


def ask(task, y, state, t, at):
    """predict at the slots `at`. On a fixed canvas rows that ask for nothing are left out."""
    L, given = y.shape[1], state.given
    rows = torch.arange(len(y))
    if task.fixed:
        rows = at.any(1).nonzero()[:, 0]
        if len(rows) == 0:
            return None, None
    if given is not None:
        given = given[rows, :L]
    return task.predict(y[rows], state.n[rows], t[rows], at[rows], given=given)


def reveal(task, state, t, drawn, eligible, whole=False):
    """Reveal masked digits at times t (B,), in each row as many as `drawn` (B, L, ell) marks: these
    or, by task.order, the first of the `eligible` (B, L, ell). whole: also the other digits of
    their slots. -> the new y (B, L, ell), log g of the old state (B, L + 1)."""
    code, order = task.code, task.order
    B, L, ell = drawn.shape
    y, count = state.y[:, :L], drawn.flatten(1).sum(1)
    if task.window:
        leftmost = eligible.any(2).cumsum(1) <= task.window
        eligible = eligible & leftmost[:, :, None]
    if order in SURE:                               # ask about all of them, in rows that reveal any
        at = eligible.any(2) & (count > 0)[:, None]                         # (B, L)
    else:
        chosen = drawn
        if order == "left_to_right" or task.window:
            scores = -torch.arange(L * ell).float().expand(B, -1)
            if order == "random":
                scores = torch.rand(B, L * ell)
            chosen = highest(scores, eligible.flatten(1), count).view_as(y)
        at = chosen.any(2)
    logits, log_g = ask(task, y, state, t, at)
    if logits is None:
        return y, None
    shown = y[at].to(logits.device)                                         # (M, ell)
    if order in SURE:
        sure = confidence(logits, shown, code, order).float().cpu()
        scores = torch.zeros(y.shape).masked_scatter(at[:, :, None], sure)
        chosen = highest(scores.flatten(1), eligible.flatten(1), count).view_as(y)
        picked = chosen.any(2)
        used = picked[at].nonzero()[:, 0].to(logits.device)
        at, logits, shown = picked, logits[used], shown[used]
    token = draw_tokens(logits, shown, code, task.temperature).cpu()        # (M,)
    if whole:
        chosen = chosen.any(2, keepdim=True) & (y == code.mask)
    new = y.masked_scatter(at[:, :, None], code.encode(token))
    return torch.where(chosen, new, y), log_g


# -----------------------------------------------------------------------------
# insertion

def expected(log_g, state):
    """log g (B, N) -> g in float64, 0 for gaps that are closed or beyond the end"""
    N, block_size = log_g.shape[1], state.y.shape[1]
    live = below(state.n + 1, N) & state.opened[:, :N]
    g = log_g.double().exp().clamp_max(block_size).cpu().where(live, 0)
    if not g.isfinite().all():                      # torch.binomial would never return
        raise Fail(NOT_FINITE)
    return g


def arrivals(g, p):
    """How many of the g (B, N) tokens expected in each gap come: Binomial(K, p (B,)), K being g
    rounded so that E K = g. All gaps of a row are rounded with one uniform number: then any run of
    gaps gets its expected sum, up to one, and what is certain (one token missing in a gap) is
    inserted exactly."""
    u = torch.rand(len(g), 1, dtype=g.dtype)
    K = (g.cumsum(1) + u).floor().diff(dim=1, prepend=torch.zeros_like(u))
    some = K > 0                                    # most gaps get none
    counts = torch.zeros_like(K)
    counts[some] = torch.binomial(K[some], p.to(g.dtype)[:, None].expand_as(K)[some])
    return counts.long()


def insert(state, counts, code):
    """Insert counts (B, N <= L + 1) masks, counts[b, j] of them left of slot j, as far as there is
    room: of too many a random subset stays."""
    if not counts.any():
        return state
    y, n, opened, given = state
    B, L = y.shape[:2]
    counts = fitting(F.pad(counts, (0, L + 1 - counts.shape[1])), L - n)    # (B, L + 1)
    place = torch.arange(L + 1) + counts.cumsum(1)      # where slot j goes, and the end (j = n)
    place = torch.where(below(n + 1, L + 1), place, L + 1)                  # what is beyond: away
    n = n + counts.sum(1)

    def moved(x, new):
        """x (B, <= L + 1) at its new places, among what is new (B, L + 2)"""
        return new.scatter(1, place[:, :x.shape[1]], x)[:, :x.shape[1]]

    empty = torch.where(below(n, L + 2), code.mask, code.pad)               # (B, L + 2)
    y = torch.stack([moved(digit, empty) for digit in y.unbind(2)], 2)
    opened = moved(opened, torch.ones(B, L + 2, dtype=torch.bool))          # open on both sides
    if given is not None:
        given = moved(given, torch.zeros(B, L + 2, dtype=torch.bool))
    return State(y, n, opened, given)


def fitting(counts, room):
    """counts (B, N), and where a row's sum exceeds room (B,) a random subset of so many"""
    total = counts.cumsum(1)                                                # (B, N)
    if (total[:, -1] <= room).all():
        return counts
    index = torch.arange(int(total[:, -1].max())).expand(len(counts), -1).contiguous()   # (B, K)
    stays = highest(torch.rand(index.shape), index < total[:, -1:], room)
    gap = torch.searchsorted(total, index, right=True).clamp_max(counts.shape[1] - 1)
    return torch.zeros_like(counts).scatter_add(1, gap, stays.long())


# -----------------------------------------------------------------------------
# the two samplers

def draw(masked, p):
    """Of the masked digits (B, L, ell) each one with its row's probability p (B,)"""
    return masked & (torch.rand(masked.shape, dtype=torch.float64) < p[:, None, None])


def parallel_step(task, state, t, s):
    """Everything that happens between the times t and s (B,). -> the new state"""
    masked = used_slots(state) == task.code.mask                            # (B, L, ell)
    y, log_g = reveal(task, state, t, draw(masked, task.unmasking.step(t, s)), masked)
    new = with_slots(state, y)
    if log_g is None:
        return new
    counts = arrivals(expected(log_g, state), task.insertion.step(t, s))
    return insert(new, counts, task.code)


class Clock(NamedTuple):
    """Where each of B rows is in time"""
    t: Tensor           # (B,) the time
    proposed: Tensor    # (B,) 0, or the G with which an insertion was proposed for this time
    due: Tensor         # (B,) how many slots were to be revealed by now


def one_event(task, state, clock):
    """One network call, in which at most one thing happens in each row.
    -> the new state, clock, and G (B,), the sum of g over all open gaps.

    Where nothing happens in a row, its clock moves to the next event. Why this is exact:
    1. Insertions. With G held, the next one comes at s, where ((1-alpha(s)) / (1-alpha(t)))^G = u
       for a uniform u. The true G can only fall while nothing happens, so to accept it with
       probability G(s) / G(t) gives the right law (thinning). Its gap is then drawn from g(s).
    2. Reveals. By Prop. 3 they may come at any time, in any order that does not look ahead. Here
       times are drawn from beta, and when a quarter of the masked slots are due, the clock stops
       and reveals them, whole slots, one after the other. So about as many slots are masked as in
       training at that time, and the network is asked about what it knows."""
    t, proposed, due = clock
    masked = used_slots(state) == task.code.mask                            # (B, L, ell)
    slots = masked.any(2).sum(1)                                            # (B,)
    if task.fixed:                                  # the network sees no time: all are due
        due = slots
    first_digit = masked & (masked.cumsum(2) == 1)
    one = highest(torch.rand(masked[..., 0].shape), masked.any(2), slots.clamp_max(1))
    y, log_g = reveal(task, state, t, first_digit & one[:, :, None], first_digit, whole=True)
    g = torch.zeros(len(t), 1, dtype=torch.float64)
    if log_g is not None:
        has_room = state.n < state.y.shape[1]
        g = torch.where(has_room[:, None], expected(log_g, state), 0)
    G = g.sum(1)                                                            # (B,)

    accepted = (proposed > 0) & (torch.rand(len(t), dtype=torch.float64) * proposed < G)
    reveals = ~accepted & (slots > 0) & (due > 0)
    moves = ~accepted & ~reveals
    y = torch.where(reveals[:, None, None], y, used_slots(state))
    state = with_slots(state, y)
    if accepted.any():
        gap = torch.where(accepted[:, None], g, 1).multinomial(1)           # (B, 1)
        counts = torch.zeros(g.shape, dtype=torch.int64)
        state = insert(state, counts.scatter(1, gap, accepted[:, None].long()), task.code)

    later, inserts, next_due = next_event(task, t, slots, G)
    due = torch.where(moves, next_due, due - reveals.long())
    proposed = torch.where(moves & inserts & (later < 1), G, 0)
    return state, Clock(torch.where(moves, later, t), proposed, due), G


def next_event(task, t, slots, G):
    """What comes next after t (B,) in rows with so many masked slots (B,): an insertion, or that a
    quarter of these slots are due. -> its time, is it an insertion, and how many are due then"""
    insertion, unmasking = task.insertion, task.unmasking
    u = torch.rand(len(t), dtype=torch.float64)
    s = insertion.inverse(1 - insertion.left(t) * u ** (1 / G))
    s = torch.where(G > 0, s, 1.0)                                          # 1: never
    k = -(-slots // 4)                                                      # rounded up
    # slots are due at independent times: the share of them that is, when k are, is a Beta
    a, b = k.clamp_min(1).double(), (slots + 1 - k).clamp_min(1).double()
    share = torch.where(slots > 0, torch.distributions.Beta(a, b).sample(), 1.0)
    r = unmasking.inverse(1 - unmasking.left(t) * (1 - share))
    inserts = (slots == 0) | (s < r)
    before = (unmasking.step(t, s) / share).clamp(0, 1)                     # P(due by s | due by r)
    earlier = torch.binomial((k - 1).clamp_min(0).double(), before).long()
    return torch.where(inserts, s, r), inserts, torch.where(inserts, earlier, k)


def run_exactly(task, state, steps, watch):
    """One event at a time in every row, as far as `steps` calls go. A row that has more to do than
    calls left takes a parallel step. (A missing token takes four: two for its insertion, proposed
    and accepted, and two for its mask: the clock stops, it is revealed.)"""
    B = len(state.n)
    clock = Clock(*torch.zeros(2, B, dtype=torch.float64), torch.zeros(B, dtype=torch.int64))
    G, per_slot = torch.zeros(B, dtype=torch.float64), 1 if task.fixed else 2
    for left in range(steps, 0, -1):
        slots = (state.y == task.code.mask).any(2).sum(1)                   # (B,)
        active = (clock.t < 1) | (slots > 0)
        if not active.any():
            break
        more = (per_slot * slots + 4 * G > left) & (clock.proposed == 0)
        behind = active & (more | (left == 1))
        rows = behind.nonzero()[:, 0]
        if len(rows):
            t = clock.t[rows]
            s = t + (1 - t) / left
            put(state, rows, parallel_step(task, take(state, rows), t, s))
            G[rows] *= 1 - task.insertion.step(t, s)                        # roughly
            clock.t[rows], clock.due[rows] = s, 0
        rows = (active & ~behind).nonzero()[:, 0]
        if len(rows):
            now = Clock(*(x[rows] for x in clock))
            part, now, G[rows] = one_event(task, take(state, rows), now)
            put(state, rows, part)
            put(clock, rows, now)
        watch(float(clock.t.mean()), state.y, state.n)
    return state


def run_parallel(task, state, steps, watch):
    ones = torch.ones(len(state.n), dtype=torch.float64)
    for i in range(steps):
        state = parallel_step(task, state, ones * (i / steps), ones * ((i + 1) / steps))
        watch((i + 1) / steps, state.y, state.n)
    return state


def finish(task, state, watch):
    """Reveal what is still masked at t = 1: an eighth of it, a seventh of the rest, .., all."""
    t, rounds = torch.ones(len(state.n), dtype=torch.float64), 8
    while (state.y == task.code.mask).any():
        masked = used_slots(state) == task.code.mask
        y, _ = reveal(task, state, t, draw(masked, t / max(rounds, 1)), masked)
        state = with_slots(state, y)
        rounds -= 1
        watch(1.0, state.y, state.n)
    return state


@torch.no_grad()
def generate(predict, code, B, block_size, steps, insertion, unmasking, order="random",
             temperature=1.0, start=None, sampler="parallel", window=0, watch=None):
    """Draw B documents of at most block_size tokens: ids x (B, block_size), 0 beyond their lengths
    n (B,).

    steps: network calls, and a few more. start: (y, n) or (y, n, opened) to begin with: see
    start_from. order: which masks are revealed first. window: only in the leftmost `window` masked
    slots. watch(t, y, n) is called with every new state. Raises ValueError for what it
    does not know."""
    for value, known in ((order, ORDERS), (sampler, SAMPLERS)):
        if value not in known:
            raise ValueError(f"unknown {value!r}: choose one of {', '.join(known)}")
    if steps < 1:
        raise ValueError(f"there must be at least 1 step, not {steps}")
    task = Task(predict, code, insertion, unmasking, order, temperature, window)
    watch = watch or (lambda t, y, n: None)
    state = begin(code, B, block_size, task.fixed, start)
    run = run_exactly if sampler == "exact" else run_parallel
    state = finish(task, run(task, state, steps, watch), watch)
    return to_ids(code, state.y, state.n)


def to_ids(code, y, n):
    inside = below(n, y.shape[1])
    return torch.where(inside, code.decode(torch.where(inside[:, :, None], y, 0)), 0), n


# -----------------------------------------------------------------------------
# baselines

@torch.no_grad()
def generate_left_to_right(predict, code, B, block_size, end, temperature=1.0, start=None):
    """The autoregressive baseline: a token per call, until every row has drawn `end`. start (B,
    L0): ids of a prompt. -> ids x (B, block_size), lengths n (B,) without the end token. No cache
    of keys and values."""
    x = torch.zeros(B, 0, dtype=torch.int64) if start is None else start
    prompt, running = x.shape[1], torch.ones(B, dtype=torch.bool)
    while running.any() and x.shape[1] < block_size:
        L = x.shape[1] + 1
        at = torch.zeros(B, L, dtype=torch.bool)
        at[:, -1] = True
        y = F.pad(code.encode(x), (0, 0, 0, 1), value=code.mask)                # (B, L, ell)
        given = (torch.arange(L) < prompt).expand(B, L)
        logits, _ = predict(y, torch.full((B,), L), torch.ones(B), at, given=given)
        token = draw_tokens(logits, y[:, -1].to(logits.device), code, temperature).cpu()
        token = torch.where(running, token, end)
        x = torch.cat([x, token[:, None]], 1)
        running &= token != end
    n = ((x == end).cumsum(1) == 0).sum(1)
    return F.pad(x, (0, block_size - x.shape[1])), n


# -----------------------------------------------------------------------------
# prompts and holes

def start_from(parts, holes, code, block_size, fixed, end, end_open=False, anchored=True):
    """The state of one row with given text: (y (1, L, ell), n (1,), opened (1, L + 1)) for
    `generate`.

    parts: the given runs of ids, one more than holes. holes: their sizes, None if unknown. With
    insertion a hole starts as one mask (anchored=False: as nothing, since it may stay empty), and
    only gaps at holes are open. On a fixed canvas a hole is as many masks as it says, and what
    follows the last run are end tokens (end=None: nothing), or masks if the end is open (a
    prompt)."""
    if fixed and None in holes:
        raise Fail("this model has a fixed canvas: say how many tokens each hole has, as in [..5], "
                   "or use a flexmdm model")
    if end_open:
        parts, holes = [*parts, []], [*holes, 0]
    if not fixed:
        holes = [int(anchored)] * len(holes)
    size = sum(map(len, parts))
    if size + sum(holes) > block_size:
        raise Fail(f"the given text is {size} tokens long, which leaves no room in the model's "
                   f"block_size of {block_size}: shorten it")
    ids, opened = list(parts[0]), set()
    for hole, part in zip(holes, parts[1:]):
        opened |= {len(ids), len(ids) + hole}                             # the gaps around the hole
        ids += [-1] * hole + list(part)
    if fixed and end_open:
        ids += [-1] * (block_size - len(ids))
    elif fixed and end is not None:
        ids += [end] * (block_size - len(ids))
    ids = torch.tensor(ids, dtype=torch.int64)[None]                            # (1, L)
    y = torch.where((ids < 0)[:, :, None], code.mask, code.encode(ids.clamp_min(0)))
    gaps = torch.zeros(1, ids.shape[1] + 1, dtype=torch.bool)
    gaps[0, list(opened)] = True
    return y, torch.tensor([ids.shape[1]]), gaps


def stack(starts, code):
    """Several of start_from's states as one batch"""
    L = max(y.shape[1] for y, _, _ in starts)
    y = [F.pad(y, (0, 0, 0, L - y.shape[1]), value=code.pad) for y, _, _ in starts]
    opened = [F.pad(gaps, (0, L + 1 - gaps.shape[1])) for _, _, gaps in starts]
    return torch.cat(y), torch.cat([n for _, n, _ in starts]), torch.cat(opened)


def retimed(predict, trained, used):
    """predict under another insertion schedule than in training: the network knows alpha(t) only,
    so it is asked at the time at which its own alpha has that value."""
    def ask_then(y, n, t, at, given=None):
        return predict(y, n, trained.inverse(used.at(t)), at, given=given)
    return ask_then
