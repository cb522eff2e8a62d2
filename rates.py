"""What the network's two answers mean: rates of events, training losses, bounds on the likelihood.

A network sees x_t and answers, for each slot, f: a distribution over tokens, and for each gap, g: the expected number of tokens
still missing there. With the hazards lam_ins = alpha'/(1-alpha) and lam_um = beta'/(1-beta) they are the rates of a Markov jump process
(Prop. 2 of arXiv 2509.01025): a mask is inserted in gap j at rate lam_ins g_j, a masked digit becomes d at rate lam_um f_ij(d), where
f_ij is the marginal of digit j under f. Its path from the empty string at t = 0 ends at t = 1 in a sample of the model.

The loss (Prop. 1) is the divergence of that process from the noising process, so it bounds -log p_model(x1), in nats:

    loose = integral over t of  E  lam_um(t)  sum_{masked digits ij} -log f_ij(d_ij)
                                 + lam_ins(t) sum_{gaps j} phi(gap_j, g_j)                phi(k, g) = g - k + k log(k / g) >= 0

How large is it? For an MDM, at the optimum, exactly the entropy of the data. With insertion it is larger even for a perfect model:
it pays for saying which tokens survived in x_t, which no sampler needs to know (about 1.2 nats per token for text with unpredictable
gaps). So compare it between runs of one method, and compare methods by the tight bound, which averages that knowledge out.

One worked number: phi(1, 1/2) = 1/2 - 1 + ln 2 = 0.1931 nats for one missing token where half a token was expected.
"""
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from interpolant import Noised, below, interpolate


class Terms(NamedTuple):
    """The two sums of Prop. 1 for each document, (B,) nats, before their hazards."""
    unmask: torch.Tensor
    insert: torch.Tensor


class Deferred(NamedTuple):
    """Logits not yet computed: a network may answer with this instead of (M, V) logits; they are projected `rows` slots at a time."""
    hidden: torch.Tensor        # (M, d)
    head: object                # (m, d) -> (m, V)
    rows: int


def phi(k, log_g):
    """The Poisson divergence g - k + k log(k/g), elementwise, in nats; k >= 0 may be fractional. Takes log g: exact at k = 0, finite at g = 0."""
    return log_g.exp() - torch.where(k == 0, 0, k * log_g) + torch.special.xlogy(k, k) - k


def restrict(logits, y, code):
    """Logits (M, V) -> float32 (or float64) with -inf where a token disagrees with the revealed digits of its slot y (M, ell)."""
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return logits if code.ell == 1 else Restrict.apply(logits, code.agrees(y))


class Restrict(torch.autograd.Function):
    """torch.where(ok, logits, -inf), whose gradient passes as it is: a softmax follows, and its gradient is zero at -inf already."""

    @staticmethod
    def forward(ctx, logits, ok):
        return torch.where(ok, logits, -torch.inf)

    @staticmethod
    def backward(ctx, gradient):
        return gradient, None


def log_marginals(logits, y, code):
    """(M, V), (M, ell) -> (M, ell, b): log f_ij(d), the distribution of each digit given the revealed digits of its slot."""
    logits = restrict(logits, y, code)
    if code.ell == 1 and code.permutation is None:
        return logits.log_softmax(1)[:, None]
    p = code.marginals(logits.softmax(1))
    return p.clamp_min(torch.finfo(p.dtype).tiny ** 0.8).log()                                 # float32: 4e-31, so that hazard / p cannot overflow


def slot_nll(logits, y, d, code, joint=False):
    """-log of the true digits d (M, ell) at slots y (M, ell), summed over a slot's masked digits: (M,) nats.

    joint=False: each masked digit by its marginal, which is what the continuous-time process needs.
    joint=True: the whole token once, the objective of arXiv 2505.18495; a proper training loss, but not a bound for ell > 1.
    """
    if joint or code.ell == 1:
        return F.cross_entropy(restrict(logits, y, code), code.decode(d), reduction="none")
    at_truth = log_marginals(logits, y, code).gather(2, d[:, :, None])[:, :, 0]                # (M, ell)
    return -(at_truth * (y == code.mask)).sum(1)


def slot_kl(logits, y, weight, d1, code, joint=False, entropy=True):
    """KL(q || f) summed over a slot's masked digits, where q averages the true token over alignments: (M,) nats.

    weight (M, L): P(slot m is token k of x1); d1 (M, L, ell): the digits of x1. entropy=False leaves q's entropy out: the
    cross-entropy, a training loss with the gradient of slot_nll's mean over alignments.
    """
    if joint:                                                                                  # one "digit": the token itself
        log_f, hidden = restrict(logits, y, code).log_softmax(1)[:, None], y[:, :1] >= 0
        symbols = code.decode(torch.where(d1 == code.pad, 0, d1))[:, :, None]
    else:
        log_f, symbols, hidden = log_marginals(logits, y, code), d1, y == code.mask
    kl = 0
    for j in range(symbols.shape[2]):
        s = symbols[:, :, j].clamp(0, log_f.shape[2] - 1)                                      # (M, L); pads have weight 0
        term = -(weight * torch.where(weight > 0, log_f[:, j].gather(1, s), 0)).sum(1)
        if entropy:                                                                            # sum_v q(v) log q(v): pool the tokens of equal value
            s, where = s.sort(1)
            group = F.pad(s.diff(dim=1) != 0, (1, 0)).cumsum(1)
            q = torch.zeros_like(weight).scatter_add_(1, group, weight.gather(1, where))
            term = term + torch.special.xlogy(q, q).sum(1)
        kl = kl + term * hidden[:, j]
    return kl


def over_slots(nll, logits, *per_slot):
    """nll(logits, *per_slot) -> (M,), a block of slots at a time where the logits are Deferred (recomputed in the backward pass)."""
    if isinstance(logits, torch.Tensor):
        return nll(logits, *per_slot)
    parts = zip(*(x.split(logits.rows) for x in (logits.hidden, *per_slot)))
    run = lambda h, *a: nll(logits.head(h), *a)
    return torch.cat([checkpoint(run, *part, use_reentrant=False) for part in parts] or [logits.hidden.sum(1)])


def alignments(noised, d1, n1, code, frozen=None):
    """Which token of x1 is each slot of x_t? All embeddings of x_t into x1 are equally likely (Prop. 1 conditions on one of them).

    Returns weight (B, L, L) with weight[b, i, k] = P(slot i is token k of x1 | x_t, x1), and nbar (B, L + 1), the expected number of
    missing tokens in each gap. A forward-backward pass over the table "every revealed digit of slot i is that of token k":
        F[i, k] = the number of ways to embed the first i slots into the first k tokens
                = cumsum_k( match[i-1, k-1] * F[i-1, k-1] ),      and the same from the right.
    These numbers fit float64 up to 1,024 tokens, C(1024, 512) < 2^1024; for longer documents their logarithms are added instead.
    Memory grows as n_t * n_1, time as n_t vector operations of length n_1.
    """
    y, n, kept, _ = noised
    B, L, ell = y.shape
    L1 = d1.shape[1]
    live = below(n, L)
    match = live[:, :, None] & below(n1, L1)[:, None, :]                                       # (B, L, L1)
    for j in range(ell):
        match = match & ((y[:, :, None, j] == d1[:, None, :, j]) | (y[:, :, None, j] == code.mask))
    if frozen is not None:                                                                     # a frozen token is known to be where it is
        fixed = frozen.gather(1, kept)[:, :, None] | frozen[:, None, :]
        match = match & (~fixed | (kept[:, :, None] == torch.arange(L1, device=y.device)))
    short = L1 <= 1024
    one, none, times, scan = (1.0, 0.0, torch.mul, torch.cumsum) if short else (0.0, -torch.inf, torch.add, torch.logcumsumexp)

    # Row i of `table` is F[i] without its last column, and beside it the same from the right (both axes flipped): (L, 2B, L1). There is one
    # way where there is no slot yet.
    apart = torch.cat([~match, ~match.flip(1, 2)]).transpose(0, 1).contiguous()                # (L, 2B, L1)
    dead = torch.cat([~live, ~live.flip(1)]).T[:, :, None]                                     # (L, 2B, 1)
    table = torch.empty(apart.shape, dtype=torch.float64, device=apart.device)
    table[0], table[1:, :, 0] = one, none
    for differs, before, after, gone in zip(apart[:-1, :, :-1], table[:-1, :, :-1], table[1:], dead):
        after[:, 1:] = scan(before.masked_fill(differs, none), 1)
        after.masked_fill_(gone, one)
    left, right = table[:, :B], table[:, B:].flip(0, 2)
    both = times(left, right, out=right).masked_fill_(apart[:, :B], none)                      # in how many ways is slot i token k?
    both = both if short else (both - both.amax(2, keepdim=True).clamp_min(-1e300)).exp()
    weight = both.div_(both.sum(2, keepdim=True).clamp_min(1)).transpose(0, 1)                 # (B, L, L1), 0 past n

    s = weight @ torch.arange(L1, device=y.device, dtype=weight.dtype)                         # E[s_i]
    s = torch.cat([s, s.new_zeros(B, 1)], 1).scatter(1, n[:, None], n1[:, None].to(s.dtype))
    before = torch.cat([s.new_full((B, 1), -1), s[:, :-1]], 1)
    nbar = torch.where(below(n + 1, L + 1), s - before - 1, 0).clamp_min(0)
    return weight, nbar


def terms(predict, code, d1, n1, noised, t, *, joint=False, averaged=False, entropy=True, frozen=None):
    """The two sums of Prop. 1 at one x_t for each document: Terms of (B,) float tensors, in nats, where the network's answers are.

    d1 (B, L, ell), n1 (B,), noised: interpolate(d1, n1, t, ...); t (B,). averaged: replace the sampled token and gap by their averages
    over all alignments of x_t with x1 (spec of the tight bound in the README); entropy: subtract the entropy of those averages too.
    """
    y, n, kept, gaps = noised
    B, L, ell = y.shape
    masked = (y == code.mask).any(2)                                                           # (B, L); pads are not masks
    logits, log_g = predict(y, n, t, masked)
    device = (logits.hidden if isinstance(logits, Deferred) else logits).device
    move = lambda x: x.to(device, non_blocking=True)
    row, slot = masked.nonzero(as_tuple=True)
    averaged = averaged and log_g is not None                                                  # without gaps there is one alignment
    if averaged:
        home, exact = ("cpu", torch.float32) if device.type == "mps" else (device, torch.float64)      # mps has no float64
        some = max(1, 2 ** 24 // (L * d1.shape[1]))                                            # documents at a time: a table of 256 MiB
        weight, nbar = [], []
        for rows in torch.arange(B).split(some):
            at = lambda x: None if x is None else x[rows].to(home)
            w, missing = alignments(Noised(*map(at, noised)), at(d1), at(n1), code, at(frozen))
            weight.append(w[at(masked)].to(device, exact))
            nbar.append(missing.to(device, exact))
        nll = over_slots(lambda z, *a: slot_kl(z, *a, code, joint, entropy), logits, move(y[row, slot]), torch.cat(weight), move(d1[row]))
    else:
        nll = over_slots(lambda z, *a: slot_nll(z, *a, code, joint), logits, move(y[row, slot]), move(d1[row, kept[row, slot]]))
    unmask = nll.new_zeros(B).index_add(0, move(row), nll)
    if log_g is None:
        return Terms(unmask, torch.zeros_like(unmask))
    k, live = (torch.cat(nbar) if averaged else move(gaps)).to(log_g.dtype), move(below(n + 1, L + 1))
    return Terms(unmask, (phi(k, torch.where(live, log_g, 0)) * live).sum(1))                  # what stands past n has no gradient either


BOUNDS = ("loose", "tight", "paper")


def nll(predict, code, x1, n1, t, insertion, unmasking, bound="loose", *, frozen=None, anchors=None, grouped=False):
    """A one-sample estimate, for each document, of a bound on -log p_model(x1) at the times t: (B,) nats.

    x1 (B, L) ids, n1 (B,) lengths, t (B,) in [0, 1). Its mean over uniform t (and over the noise, drawn here) is the bound. No weight is
    capped. `bound`:
      loose   Prop. 1 of arXiv 2509.01025, with digit marginals for ell > 1: valid.
      tight   alignments averaged out: valid, never above loose, equal to the entropy of the data for a perfect model.
      paper   the objective of arXiv 2505.18495 (the joint over digits, once per token): NO bound for ell > 1, it reads too low.
    """
    if bound not in BOUNDS:
        raise ValueError(f"unknown bound {bound!r}: choose one of {', '.join(BOUNDS)}")
    d1 = digits(code, x1, n1)
    noised = interpolate(d1, n1, t, insertion, unmasking, frozen, anchors, mask=code.mask, pad=code.pad, grouped=grouped)
    unmask, insert = terms(predict, code, d1, n1, noised, t, joint=bound == "paper" or grouped, averaged=bound == "tight", frozen=frozen)
    t = t.to(unmask.device)
    return unmasking.hazard(t) * unmask + insertion.hazard(t) * insert


def digits(code, x1, n1):
    """Ids (B, L), whatever stands beyond n1 -> digits (B, L, ell), pad beyond n1."""
    inside = below(n1, x1.shape[1])
    return torch.where(inside[:, :, None], code.encode(torch.where(inside, x1, 0)), code.pad)


def next_token_nll(predict, code, x1, n1):
    """The autoregressive model's exact -log p(x1), in nats, (B,). Its predict answers for slot i from slots < i; x1 includes the end token."""
    at = below(n1, x1.shape[1])
    logits, _ = predict(digits(code, x1, n1), n1, torch.ones(len(x1), device=x1.device), at)
    ce = over_slots(lambda z, x: F.cross_entropy(z.float(), x, reduction="none"), logits, x1[at].to(_device(logits)))
    return ce.new_zeros(len(x1)).index_add(0, at.nonzero()[:, 0].to(ce.device), ce)


def _device(logits):
    return (logits.hidden if isinstance(logits, Deferred) else logits).device


def jump_rates(predict, code, y, n, t, insertion, unmasking):
    """Prop. 2: the rates at which the generator leaves the states y (B, L, ell), n (B,) at times t (B,), per unit of time.

    Returns reveal (B, L, ell, b): digit j of slot i becomes d (0 where it is not masked), and insert (B, L + 1): one masked token in gap j.
    """
    at = (y == code.mask).any(2)
    logits, log_g = predict(y, n, t, at)
    f = log_marginals(logits, y[at], code).exp() * (y[at] == code.mask)[:, :, None]
    reveal = f.new_zeros(*y.shape, code.b)
    reveal[at] = f
    reveal = reveal * unmasking.hazard(t)[:, None, None, None]
    L = y.shape[1]
    insert = f.new_zeros(len(y), L + 1) if log_g is None else torch.where(below(n + 1, L + 1), log_g.exp(), 0) * insertion.hazard(t)[:, None]
    return reveal, insert
