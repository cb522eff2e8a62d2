"""The noising process of FlexMDM (arXiv 2509.01025, section 3): a document x1 becomes a partial
one, x_t.

Time runs from t = 0 (nothing) to t = 1 (the document). Two increasing schedules drive it: alpha(t)
is the share of tokens that have been *inserted* by time t, beta the law by which they are then
*unmasked*. Every token of x1, independently of all others, draws two times

    T1 ~ alpha                       it appears, masked
    T2 ~ beta restricted to [T1, 1]  it is revealed (MDM-Prime: one T2 for each of its digits)

and x_t is whatever has appeared by time t, in the original order:

    absent (t < T1)  ->  masked (T1 <= t < T2)  ->  clean (T2 <= t)

If alpha is `instant`, every token is there at t = 0 and x_t is the noise of a masked diffusion
model.

Example, linear schedules at t = 1/2: a token is absent with probability 1/2, masked with
probability -(1 - t) ln(1 - t) = 0.35, and clean with probability 0.15.
"""
from dataclasses import dataclass
from math import exp, inf, log, pi
from typing import Callable, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

LAST = 1 - 2 ** -24     # hazards can be infinite at t = 0 and 1: they are evaluated this far inside


@dataclass
class Schedule:
    """alpha: [0, 1] -> [0, 1], increasing, with alpha(0) = 0 (`instant`: 1) and alpha(1) = 1,
    in float64.

    A schedule is given by three functions, written so that they lose no digits close to t = 1,
    where the losses weigh most."""
    name: str
    left_of: Callable       # t -> 1 - alpha
    hazard_of: Callable     # t -> alpha' / (1 - alpha)
    inverse_of: Callable    # u -> alpha^-1(u)

    def at(self, t):
        """alpha(t)"""
        return 1 - self.left(t)

    def left(self, t):
        """1 - alpha(t)"""
        return self.left_of(double(t))

    def hazard(self, t):
        """alpha'(t) / (1 - alpha(t)): the rate at which what has not happened yet happens"""
        return self.hazard_of(double(t).clamp(1 - LAST, LAST))

    def inverse(self, u):
        """alpha^-1(u): schedule.inverse(torch.rand(...)) draws times from alpha"""
        return self.inverse_of(double(u)).clamp(0, 1)

    def step(self, t, s):
        """P(happens in (t, s] | has not happened by t) = (alpha(s) - alpha(t)) / (1 - alpha(t)).
        Exact for a step of any size, unlike hazard * (s - t)."""
        now, later = self.left(t), self.left(s)
        return ((now - later) / now).nan_to_num(1.0).clamp(0, 1)    # 0 / 0: all has happened


def double(t):
    return torch.as_tensor(t, dtype=torch.float64)


def linear():                           # alpha = t
    return Schedule("linear", lambda t: 1 - t, lambda t: 1 / (1 - t), lambda u: u)


def sin():                              # alpha = sin(pi t / 2)
    return Schedule("sin",
                    lambda t: 2 * torch.sin(pi / 4 * (1 - t)) ** 2,
                    lambda t: pi / 2 / torch.tan(pi / 4 * (1 - t)),
                    lambda u: 2 / pi * torch.asin(u))


def cosine():                           # alpha = 1 - cos(pi t / 2)
    return Schedule("cosine",
                    lambda t: torch.sin(pi / 2 * (1 - t)),
                    lambda t: pi / 2 / torch.tan(pi / 2 * (1 - t)),
                    lambda u: 4 / pi * torch.asin((u / 2).sqrt()))


def polynomial(exponent=2.0):           # alpha = t^exponent
    if not 0 < exponent < inf:
        raise ValueError(f"polynomial: the exponent must be positive, not {exponent:g}")
    left = lambda t: -torch.expm1(exponent * torch.log(t))
    return Schedule(f"polynomial,exponent={exponent:g}",
                    left,
                    lambda t: exponent * t ** (exponent - 1) / left(t),
                    lambda u: u ** (1 / exponent))


def geometric(start=10.0, end=0.01):
    """The authors' alpha = exp(-start^(1-t) end^t), stretched to reach 0 and 1. Theirs ends at
    e^-end: with end = 0.01 a hundredth of the tokens never comes."""
    if not inf > start > end > 0:
        raise ValueError(f"geometric: start {start:g} must be above end {end:g}, and both above 0")
    ratio, span = log(start / end), 1 - exp(end - start)
    excess = lambda t: end * torch.expm1(ratio * (1 - t))
    return Schedule(f"geometric,start={start:g},end={end:g}",
                    lambda t: -torch.expm1(-excess(t)) / span,
                    lambda t: (excess(t) + end) * ratio / torch.expm1(excess(t)),
                    lambda u: 1 - torch.log1p(-torch.log1p((u - 1) * span) / end) / ratio)


def instant():                          # everything has happened at t = 0: no insertion, an MDM
    return Schedule("instant", torch.zeros_like, torch.zeros_like, torch.zeros_like)


SCHEDULES = {f.__name__: f for f in (linear, sin, cosine, polynomial, geometric, instant)}


def schedule(name, **options):
    """A schedule by name. Options may stand in the name, as a flag carries them:
    schedule("polynomial", exponent=1.7) or schedule("polynomial,exponent=1.7").
    Raises ValueError for an unknown name or option."""
    name, *words = name.split(",")
    if name not in SCHEDULES:
        raise ValueError(f"unknown schedule {name!r}: choose one of {', '.join(SCHEDULES)}")
    for word in words:
        key, _, value = word.partition("=")
        try:
            options[key] = float(value)
        except ValueError:
            raise ValueError(f"schedule {name}: {word!r} should be option=number") from None
    try:
        return SCHEDULES[name](**options)
    except TypeError:
        raise ValueError(f"schedule {name} has no option {', '.join(options)}") from None


# -----------------------------------------------------------------------------
# x1 -> x_t

class Noised(NamedTuple):
    """x_t and what is hidden in it. L is the width of x1; slots are left-aligned."""
    y: Tensor       # (B, L, ell) digits; `pad` past the last slot
    n: Tensor       # (B,) slots in use
    kept: Tensor    # (B, L) slot i holds token kept[i] of x1, increasing (the paper's s_t)
    gaps: Tensor   # (B, L + 1) tokens of x1 that are missing just left of slot j; j = n: at the end


def below(n, size):
    """(B,) -> (B, size) bool, True at the first n[b] places of row b."""
    return torch.arange(size, device=n.device) < n[:, None]


def draw_noise(B, L, ell, device="cpu"):
    """The uniform numbers behind T1, (B, L), and behind each digit's T2, (B, L, ell)"""
    u = torch.rand(B, L, dtype=torch.float64, device=device)
    return u, torch.rand(B, L, ell, dtype=torch.float64, device=device)


def interpolate(d1, n1, t, insertion, unmasking, given=None, anchors=None, noise=None, *,
                mask, pad):
    """Draw x_t from documents x1, whose digits are d1 (B, L, ell) and lengths n1 (B,), at times t
    (B,).

    given (B, L) bool: tokens that are always there and clean, such as a prompt.
    anchors (B, L) bool: tokens that are always there, at first as a mask (see anchors_of).
    noise: see draw_noise; None: drawn here."""
    B, L, ell = d1.shape
    u, v = noise or draw_noise(B, L, ell, d1.device)
    t = double(t)[:, None]                                                        # (B, 1)
    real = below(n1, L)

    # 1. Which tokens have appeared: T1 <= t.
    T1 = insertion.inverse(u)                                                     # (B, L)
    if anchors is not None:
        T1 = T1.masked_fill(anchors, 0)
    present = (T1 <= t) & real                                                    # (B, L)

    # 2. Which of their digits are still masked: P(T2 > t | T1) = (1 - beta(t)) / (1 - beta(T1)).
    still = 1 - unmasking.step(T1.minimum(t), t)                                  # (B, L)
    hidden = v < still[:, :, None]                                                # (B, L, ell)
    if given is not None:
        present = present | (given & real)
        hidden = hidden & ~given[:, :, None]
    y = torch.where(hidden, mask, d1)                                             # (B, L, ell)

    # 3. Close the ranks: a stable sort moves what is present to the left.
    n = present.sum(1)                                                            # (B,)
    kept = torch.argsort((~present).byte(), dim=1, stable=True)                   # (B, L)
    used = below(n, L)
    y = torch.where(used[:, :, None], y.take_along_dim(kept[:, :, None], 1), pad)
    kept = torch.where(used, kept, 0)
    return Noised(y, n, kept, missing_between(kept, n, n1))


def missing_between(s, n, n1):
    """Slots i < n hold the tokens s[i] of a document of n1 tokens -> (B, L + 1): how many tokens
    are missing left of each slot and after the last: s_j - s_(j-1) - 1, with s_-1 = -1 and s_n =
    n1."""
    right = F.pad(s, (0, 1)).scatter(1, n[:, None], n1[:, None].to(s.dtype))    # s_0 .. s_(n-1), n1
    left = F.pad(right[:, :-1], (1, 0), value=-1)                               # -1, s_0 .. s_(n-1)
    return torch.where(below(n + 1, right.shape[1]), right - left - 1, 0)


def anchors_of(given, n1, u=None):
    """One random token of each hole, that is of each run of tokens between given ones: (B, L) bool.
    u (B, L): uniform numbers in float64; None: drawn here.

    A hole in a given text holds at least one token, so it starts as one mask. That shows the
    network where the holes are: nothing else says that `range()` is to be filled and not
    complete."""
    L = given.shape[1]
    free = ~given & below(n1, L)
    starts = free & F.pad(given[:, :-1], (1, 0), value=True)
    hole = starts.cumsum(1)                                                   # 1, 2, ..: which hole
    if u is None:
        u = torch.rand(given.shape, dtype=torch.float64, device=given.device)
    u = u * free
    best = u.new_zeros(len(u), L + 1).scatter_reduce(1, hole, u, "amax")
    return free & (u == best.gather(1, hole)) & given.any(1, keepdim=True)
