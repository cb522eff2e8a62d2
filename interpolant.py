"""The noising process of FlexMDM (arXiv 2509.01025, section 3): how a clean document x1 becomes a partial one x_t.

Time runs from t = 0 (the empty string) to t = 1 (the document). Two increasing schedules say when things happen:
alpha(t), the share of tokens that have been *inserted* by t, and beta(t), the share of digits that have been *unmasked*.
Every token i of x1 draws, independently of its content and of the other tokens,

    T1 ~ alpha                     the time at which it appears, all its digits masked
    T2 ~ beta restricted to [T1,1] the time at which a digit is revealed (one T2 per digit; ell = 1: per token)

and x_t is what has appeared, in the original order:

    absent (t < T1)  ->  masked (T1 <= t < T2)  ->  clean (T2 <= t)

With alpha `instant` every token is there at t = 0 and x_t is the noise of a masked diffusion model (MDM).

One worked number: linear schedules at t = 1/2. Absent 1/2; masked -(1-t) ln(1-t) = 0.3466; clean the rest, 0.1534.
A document of 100 tokens is then 50 slots long, of which 35 are masked:

    >>> d1, n1 = torch.arange(100).view(1, 100, 1), torch.tensor([100])
    >>> noised = interpolate(d1, n1, torch.tensor([0.5]), schedule("linear"), schedule("linear"), mask=100, pad=101)
    >>> noised.n, noised.gaps.sum()                  # slots in use, tokens missing: they add up to 100
"""
import math
from typing import NamedTuple

import torch

TINY = 2.0 ** -24         # torch.rand() never comes nearer to 1 than this, so clamping 1 - t here only guards t = 1 itself


class Schedule:
    """An increasing alpha: [0, 1] -> [0, 1] with alpha(0) = 0 and alpha(1) = 1.

    Each subclass gives three functions of t, or of the time left r = 1 - t, that lose no digits near t = 1 in float32:
    `left(t)` = 1 - alpha(t), `hazard(t)` = alpha'(t) / (1 - alpha(t)) and `inverse(u)` = alpha^-1(u). t is a tensor or a number
    (numbers are computed in float64); the answer is a tensor of the same shape. At t = 1, where the hazard is infinite,
    it is that of t = 1 - 2^-24.
    """

    def __init__(self, name, **parameters):
        self.name, self.parameters = name, parameters

    def __repr__(self):
        return self.name + "".join(f",{k}={v:g}" for k, v in self.parameters.items())

    def at(self, t):
        """alpha(t)."""
        return 1 - self.left(t)

    def step(self, t, s):
        """P(happens in (t, s] | has not happened by t) = (alpha(s) - alpha(t)) / (1 - alpha(t)), exact for any s >= t. No rate * dt."""
        left = self.left(t)
        happens = (left - self.left(s)) / left.clamp_min(torch.finfo(left.dtype).tiny)
        return torch.where(left > 0, happens, 1.0).clamp(0, 1)


def tensor(t):
    return t if isinstance(t, torch.Tensor) else torch.tensor(t, dtype=torch.float64)


def time_left(t):
    """1 - t, at least 2^-24."""
    return (1 - tensor(t)).clamp_min(TINY)


class Linear(Schedule):                                                # alpha = t
    def at(self, t):
        return tensor(t) + 0

    def left(self, t):
        return 1 - tensor(t)

    def hazard(self, t):
        return 1 / time_left(t)

    def inverse(self, u):
        return tensor(u) + 0


class Sin(Schedule):                                                   # alpha = sin(pi t / 2);  1 - alpha = 2 sin^2(pi r / 4)
    def at(self, t):
        return torch.sin(math.pi / 2 * tensor(t))

    def left(self, t):
        return 2 * torch.sin(math.pi / 4 * (1 - tensor(t))) ** 2

    def hazard(self, t):
        return math.pi / 2 / torch.tan(math.pi / 4 * time_left(t))

    def inverse(self, u):
        return 2 / math.pi * torch.asin(tensor(u))


class Cosine(Schedule):                                                # alpha = 1 - cos(pi t / 2);  1 - alpha = sin(pi r / 2)
    def at(self, t):
        return 2 * torch.sin(math.pi / 4 * tensor(t)) ** 2

    def left(self, t):
        return torch.sin(math.pi / 2 * (1 - tensor(t)))

    def hazard(self, t):
        r = time_left(t)
        return math.pi / 2 * torch.where(r > 0.5, torch.tan(math.pi / 2 * (1 - r)), 1 / torch.tan(math.pi / 2 * r))

    def inverse(self, u):
        return (4 / math.pi * torch.asin(torch.sqrt(tensor(u) / 2))).clamp_max(1)


class Polynomial(Schedule):                                            # alpha = t^e;  1 - alpha = -expm1(e log t)
    def __init__(self, name, exponent=2.0):
        super().__init__(name, exponent=exponent)
        self.e = exponent

    def at(self, t):
        return tensor(t) ** self.e

    def left(self, t):
        return -torch.expm1(self.e * torch.log(tensor(t)))

    def hazard(self, t):
        t = tensor(t).clamp(TINY, 1 - TINY)                            # e < 1 rises infinitely fast at t = 0
        return self.e * t ** (self.e - 1) / self.left(t)

    def inverse(self, u):
        return tensor(u) ** (1 / self.e)


class Geometric(Schedule):
    """The authors' alpha = exp(-s(t)) with s(t) = start^(1-t) end^t, stretched to run from 0 to 1 exactly.

    Differs from their code, where alpha(0) = e^-start and alpha(1) = e^-end: with 10 and 0.01 a hundredth of the tokens never comes.
    """

    def __init__(self, name, start=10.0, end=0.01):
        super().__init__(name, start=start, end=end)
        self.end, self.ratio = end, math.log(start / end)
        self.span = -math.expm1(-(start - end))                        # (e^-end - e^-start) / e^-end

    def excess(self, r):                                               # s(t) - end, precise as r -> 0
        return self.end * torch.expm1(self.ratio * r)

    def left(self, t):
        return -torch.expm1(-self.excess(1 - tensor(t))) / self.span

    def hazard(self, t):
        excess = self.excess(time_left(t))
        return (excess + self.end) * self.ratio / torch.expm1(excess)

    def inverse(self, u):
        return (1 - torch.log1p(-torch.log1p(-(1 - tensor(u)) * self.span) / self.end) / self.ratio).clamp(0, 1)


class Instant(Schedule):                                               # everything has happened at t = 0: no insertion, an MDM
    def left(self, t):
        return torch.zeros_like(tensor(t))

    def hazard(self, t):
        return torch.zeros_like(tensor(t))

    def inverse(self, u):
        return torch.zeros_like(tensor(u))


SCHEDULES = {"linear": Linear, "cosine": Cosine, "sin": Sin, "polynomial": Polynomial, "geometric": Geometric, "instant": Instant}


def schedule(name, **parameters):
    """A schedule by name: linear, cosine, sin, polynomial (exponent=2), geometric (start=10, end=0.01), instant.

    The parameters may also stand in the name, as a flag carries them: schedule("polynomial,exponent=1.7").
    Raises ValueError for an unknown name or a parameter that makes no increasing schedule.
    """
    name, *words = name.split(",")
    if name not in SCHEDULES:
        raise ValueError(f"unknown schedule {name!r}: choose one of {', '.join(SCHEDULES)}")
    try:
        parameters |= {k: float(v) for k, v in (w.split("=") for w in words)}
        if parameters and "__init__" not in vars(SCHEDULES[name]):
            raise TypeError
        made = SCHEDULES[name](name, **parameters)
    except (TypeError, ValueError, ArithmeticError):
        raise ValueError(f"schedule {name!r} does not take {parameters or words}") from None
    if name == "polynomial" and not made.e > 0 or name == "geometric" and not parameters.get("start", 10) > made.end > 0:
        raise ValueError(f"schedule {made!r} does not increase")
    return made


class Noised(NamedTuple):
    """x_t, and what is hidden in it. L is that of x1; entries past a row's end are pad (y), 0 (kept, gaps).

    y (B, L, ell) int64: digits, left-aligned. n (B,): slots in use. kept (B, L): slot i holds token kept[i] of x1, increasing
    (the paper's s_t). gaps (B, L + 1): tokens of x1 missing just left of slot j; gap n is the one after the last slot.
    """
    y: torch.Tensor
    n: torch.Tensor
    kept: torch.Tensor
    gaps: torch.Tensor


def below(n, size):
    """(B, size) bool: True at the first n[b] places of row b."""
    return torch.arange(size, device=n.device) < n[:, None]


def interpolate(d1, n1, t, insertion, unmasking, frozen=None, anchors=None, *, mask=None, pad=None, grouped=False):
    """Draw x_t given x1 (the joint interpolant of arXiv 2509.01025).

    d1 (B, L, ell) int64 digits of the documents, n1 (B,) their lengths, t (B,) in [0, 1]; `insertion` and `unmasking` are Schedules.
    frozen (B, L) bool: tokens that are never removed nor masked (a prompt: T1 = T2 = 0).
    anchors (B, L) bool: tokens that are there, masked, from the start (T1 = 0), see `anchors_of`.
    mask, pad: the symbols' values; by default one more and two more than the largest digit in d1: pass the code's.
    grouped: one T2 for all digits of a token (whole-token masks, also for ell > 1).
    """
    B, L, ell = d1.shape
    mask = int(d1.max()) + 1 if mask is None else mask
    pad = mask + 1 if pad is None else pad
    real = below(n1, L)                                                                        # (B, L)
    t = t.to(torch.get_default_dtype()) if not t.is_floating_point() else t

    # 1. T1 = alpha^-1(U). Given that a token is present, a digit is still masked with probability (1-beta(t)) / (1-beta(T1)).
    T1 = insertion.inverse(torch.rand(B, L, device=d1.device, dtype=t.dtype))                  # (B, L)
    if anchors is not None:
        T1 = T1.masked_fill(anchors, 0)
    present = real & (T1 <= t[:, None])
    still = 1 - unmasking.step(torch.minimum(T1, t[:, None]), t[:, None])                      # (B, L)
    hidden = torch.rand(B, L, 1 if grouped else ell, device=d1.device, dtype=t.dtype) < still[:, :, None]
    if frozen is not None:
        present = present | (frozen & real)
        hidden = hidden & ~frozen[:, :, None]
    y = torch.where(hidden, mask, d1)                                                          # (B, L, ell)

    # 2. Close the ranks: a stable sort moves the present tokens to the left in their order.
    n = present.sum(1)
    kept = torch.argsort((~present).to(torch.uint8), dim=1, stable=True)                       # (B, L)
    inside = below(n, L)
    y = torch.where(inside[:, :, None], y.gather(1, kept[:, :, None].expand(-1, -1, ell)), pad)
    kept = torch.where(inside, kept, 0)
    return Noised(y, n, kept, gaps_of(kept, n, n1))


def anchors_of(frozen, n1):
    """One token of each hole, that is of each run of tokens between frozen ones, drawn uniformly: (B, L) bool. Rows without a frozen token have none.

    A hole in a given text holds at least one token, so it begins as one mask. That tells a network where the holes are: without it
    `range()` may well be whole, and nothing would be inserted into the hole of `range([..])`.
    """
    free = ~frozen & below(n1, frozen.shape[1])
    hole = (free & torch.cat([free.new_ones(len(free), 1), frozen[:, :-1]], 1)).cumsum(1)      # 1, 2, ...: which hole
    u = torch.rand(frozen.shape, dtype=torch.float64, device=frozen.device)
    best = torch.nn.functional.pad(torch.zeros_like(u), (0, 1)).scatter_reduce(1, hole, u * free, "amax")
    return free & (u == best.gather(1, hole)) & frozen.any(1, keepdim=True)


def gaps_of(kept, n, n1):
    """(B, L + 1): the number of tokens missing left of each slot and, at n, after the last: s_j - s_(j-1) - 1 with s_-1 = -1, s_n = n1."""
    B, L = kept.shape
    bounds = torch.cat([kept, kept.new_zeros(B, 1)], 1).scatter(1, n[:, None], n1[:, None])    # s_0 .. s_(n-1), n1
    left = torch.cat([bounds.new_full((B, 1), -1), bounds[:, :-1]], 1)
    return torch.where(below(n + 1, L + 1), bounds - left - 1, 0)
