"""What the network's two answers mean: rates of a jump process, its training loss, and
likelihood bounds.

The network sees x_t and answers, for each slot, f, a distribution over tokens, and, for each gap
between slots, g, the expected number of tokens that are still missing there. Times the hazards of
the schedules these are the rates of a jump process (arXiv 2509.01025, Prop. 2):

    a mask appears in gap j        at rate  alpha'/(1-alpha) * g_j
    a masked digit ij becomes d    at rate  beta'/(1-beta)   * f_ij(d)

where f_ij is the marginal of f at digit j of slot i. Run from the empty string at t = 0, it ends at
t = 1 in a sample of the model. Its divergence from the noising process, run backwards, is the
training loss and bounds -log p(x1), in nats (Prop. 1): the integral over t of

    E_{x_t | x1} [  beta'/(1-beta)    * sum over masked digits ij of -log f_ij(d_ij)
                  + alpha'/(1-alpha)  * sum over gaps j of phi(gap_j, g_j)  ]

with phi(k, g) = g - k + k log(k / g), e.g. phi(1, 1/2) = 0.19: half a token was expected, one is
missing.

With insertion this is a *loose* bound, even for a perfect model: it also pays for saying which
tokens of x1 have survived in x_t. The *tight* bound averages that out (see `alignments`). Compare
runs of one method by either, methods with each other by the tight one.
"""
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from common import move
from interpolant import below, interpolate, missing_between


def phi(k, log_g):
    """Divergence of Poisson(k) from Poisson(g): g - k + k log(k / g), in nats. Takes log g."""
    return log_g.exp() - k + torch.special.xlogy(k, k) - torch.where(k == 0, 0, k * log_g)


def restrict(logits, y, code):
    """Logits (M, V) in float32 (or float64), -inf where a token disagrees with the digits that its
    slot y (M, ell) already shows: the carry-over of arXiv 2505.18495."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if code.ell == 1:
        return logits
    return torch.where(code.agrees(y), logits, -torch.inf)


def log_marginals(logits, y, code):
    """(M, V), (M, ell) -> log f_ij (M, ell, b): each digit's distribution, given those revealed."""
    return code.log_marginals(restrict(logits, y, code)).log_softmax(2)


# -----------------------------------------------------------------------------
# the two sums of Prop. 1

class Terms(NamedTuple):
    """(B,) nats each, before they are multiplied with their hazards"""
    unmask: Tensor
    insert: Tensor


def slot_nll(logits, y, d, code, joint=False):
    """-log f of the true digits d at slots y, both (M, ell), summed over the masked digits: (M,)
    nats.
    joint: the whole token at once, as in arXiv 2505.18495: a proper loss, but no bound if ell >
    1."""
    if joint or code.ell == 1:
        return F.cross_entropy(restrict(logits, y, code), code.decode(d), reduction="none")
    masked = y == code.mask                                                              # (M, ell)
    log_f = log_marginals(logits, y, code).gather(2, d[:, :, None])[:, :, 0]             # (M, ell)
    return -torch.where(masked, log_f, 0).sum(1)


def slot_kl(logits, y, weight, d1, code, joint=False):
    """KL(q || f), (M,) nats, q being the law of the true digits over all alignments. Slot m is
    token k of its document, whose digits are d1 (M, L, ell), with probability weight[m, k]."""
    masked = y == code.mask                                                              # (M, ell)
    if joint:                                                   # as if the token were one digit
        log_f = restrict(logits, y, code).log_softmax(1)[:, None]
        d1 = code.decode(torch.where(d1 == code.pad, 0, d1))[:, :, None]
        masked = masked.any(1, keepdim=True)
    else:
        log_f = log_marginals(logits, y, code)                                         # (M, ell, b)
    digit = d1.clamp(0, log_f.shape[2] - 1).transpose(1, 2)     # (M, ell, L); a pad has no weight
    weight = weight[:, None].expand(digit.shape).to(log_f.dtype)
    q = torch.zeros_like(log_f).scatter_add(2, digit, weight)                          # (M, ell, b)
    kl = torch.special.xlogy(q, q) - torch.where(q > 0, q * log_f, 0)
    return torch.where(masked, kl.sum(2), 0).sum(1)


def terms(predict, code, d1, n1, noised, t, *, joint=False, averaged=False, given=None):
    """Both sums of Prop. 1 at one x_t for each document: Terms of (B,) nats.

    d1 (B, L, ell), n1 (B,): the documents; noised: interpolate(d1, n1, t, ...); t (B,) times.
    averaged: over all alignments of x_t with x1. given (B, L) bool: tokens of x1 that were
    given."""
    y, n, kept, gaps = noised
    at = (y == code.mask).any(2)                                                         # (B, L)
    told = None
    if given is not None:                           # the given slots of x_t
        told = given.gather(1, kept) & below(n, y.shape[1])                              # (B, L)
    logits, log_g = predict(y, n, t, at, given=told)                            # (M, V), (B, L + 1)
    device = logits.device
    shown = move(y[at], device)                                                          # (M, ell)

    row = at.nonzero()[:, 0]                                                             # (M,)
    if averaged and log_g is not None:              # without insertion there is but one alignment
        weight, gaps = alignments(noised, d1, n1, code, given)
        weight, tokens = move(weight[at], device), move(d1[row], device)    # (M, L), (M, L, ell)
        nll = slot_kl(logits, shown, weight, tokens, code, joint)
    else:
        truth = move(d1[row, kept[at]], device)                                          # (M, ell)
        nll = slot_nll(logits, shown, truth, code, joint)
    unmask = nll.new_zeros(len(y)).index_add(0, move(row, device), nll)
    if log_g is None:
        return Terms(unmask, torch.zeros_like(unmask))

    live = move(below(n + 1, gaps.shape[1]), device)                                    # (B, L + 1)
    divergence = phi(move(gaps.to(log_g.dtype), device), log_g.masked_fill(~live, 0))
    return Terms(unmask, torch.where(live, divergence, 0).sum(1))


def alignments(noised, d1, n1, code, given=None):
    """Which token of x1 is each slot of x_t? Given both, all ways to embed x_t in x1 are equally
    likely.

    -> weight (B, L, L): P(slot i is token k), and nbar (B, L + 1): the expected tokens missing in
    gap j. Time and memory grow as the length squared."""
    y, n, kept, _ = noised
    L = y.shape[1]
    live, place = below(n, L), torch.arange(L, device=y.device)
    match = live[:, :, None] & below(n1, L)[:, None]                                     # (B, L, L)
    for j in range(code.ell):
        slot, token = y[:, :, None, j], d1[:, None, :, j]
        match = match & ((slot == token) | (slot == code.mask))
    if given is not None:                           # a given slot is its own token
        known = given.gather(1, kept)[:, :, None] | given[:, None]
        match = match & (~known | (kept[:, :, None] == place))

    before = ways(match, live, kept)
    after = ways(match.flip(1, 2), live.flip(1), (L - 1 - kept).flip(1)).flip(1, 2)
    weight = before * match * after
    weight = weight / weight.sum(2, keepdim=True).clamp_min(1e-300)
    position = weight @ place.double()                                                   # E[s_i]
    return weight, missing_between(position, n, n1).clamp_min(0)


def ways(match, live, kept):
    """match (B, L, L): may slot i be token k? -> in how many ways can the slots before i be tokens
    before k, in order: N[i, k] = sum over k' < k of match[i-1, k'] N[i-1, k'].

    These numbers outgrow float64 from about 1,000 tokens on, so every 16th row is divided by its
    entry for the alignment that was drawn, N[i, kept[i]]. Equal to log space within 1e-12 up to
    4,096 tokens. assumption: the drawn alignment is typical, that is, a token k whose entry is
    still 1e250 times larger or smaller is one that slot i almost never is."""
    match, live, kept = match.transpose(0, 1), live.T[:, :, None], kept.T[:, :, None]
    N = torch.ones(match.shape, dtype=torch.float64, device=match.device)
    for i in range(1, len(N)):
        N[i, :, 0] = 0
        torch.cumsum((N[i - 1] * match[i - 1])[:, :-1], 1, out=N[i, :, 1:])
        N[i].masked_fill_(~live[i - 1], 1)          # no slot yet: one way
        if i % 16 == 0:
            drawn = N[i].gather(1, kept[i])                                              # (B, 1)
            N[i] = (N[i] / torch.where(drawn > 0, drawn, 1)).clamp_max(1e250)
    return N.transpose(0, 1)


# -----------------------------------------------------------------------------
# bounds on the likelihood

BOUNDS = {"loose": dict(), "tight": dict(averaged=True), "paper": dict(joint=True)}


def nll(predict, code, x1, n1, t, insertion, unmasking, bound="loose", given=None, anchors=None):
    """A one-sample estimate, for each document, of a bound on -log p(x1) at the times t: (B,) nats.
    Its mean over uniform t in [0, 1), and over the noise drawn here, is the bound.

      loose   Prop. 1 of arXiv 2509.01025, with digit marginals for ell > 1. Valid.
      tight   the same, averaged over alignments. Valid, never above loose, and equal to the entropy
              of the data for a perfect model.
      paper   arXiv 2505.18495: the joint of a token's digits. NOT a bound for ell > 1, it reads
              too low.

    x1 (B, L) ids, n1 (B,) lengths; given, anchors: see interpolate. With given tokens it bounds
    -log p(the rest | given)."""
    if bound not in BOUNDS:
        raise ValueError(f"unknown bound {bound!r}: choose one of {', '.join(BOUNDS)}")
    d1 = digits(code, x1, n1)
    noised = interpolate(d1, n1, t, insertion, unmasking, given, anchors,
                         mask=code.mask, pad=code.pad)
    unmask, insert = terms(predict, code, d1, n1, noised, t, given=given, **BOUNDS[bound])
    lam_unmask, lam_insert = unmasking.hazard(t), insertion.hazard(t)
    return move(lam_unmask, unmask.device) * unmask + move(lam_insert, insert.device) * insert


def digits(code, x1, n1):
    """ids (B, L) -> digits (B, L, ell), pad beyond n1"""
    inside = below(n1, x1.shape[1])
    return torch.where(inside[:, :, None], code.encode(torch.where(inside, x1, 0)), code.pad)


def next_token_nll(predict, code, x1, n1, given=None):
    """The autoregressive model's exact -log p(x1), end token included: (B,) nats. Its predict
    answers for slot i from the slots before it. Given tokens (B, L) are read but not paid for."""
    at = below(n1, x1.shape[1])
    if given is not None:
        at = at & ~given
    t = torch.ones(len(x1), device=x1.device)
    logits, _ = predict(digits(code, x1, n1), n1, t, at, given=given)
    row, truth = move(at.nonzero()[:, 0], logits.device), move(x1[at], logits.device)
    nll = F.cross_entropy(restrict(logits, truth[:, None], code), truth, reduction="none")
    return nll.new_zeros(len(x1)).index_add(0, row, nll)


def jump_rates(predict, code, y, n, t, insertion, unmasking):
    """Prop. 2: the rates, per unit of time, at which states y (B, L, ell), n (B,) are left at times
    t. -> reveal (B, L, ell, b): digit j of slot i becomes d. insert (B, L + 1): a mask appears in
    gap j."""
    at = (y == code.mask).any(2)
    logits, log_g = predict(y, n, t, at)
    masked = (y[at] == code.mask)[:, :, None]                                          # (M, ell, 1)
    f = torch.where(masked, log_marginals(logits, y[at], code).exp(), 0)
    reveal = f.new_zeros(*y.shape, code.b).masked_scatter(at[:, :, None, None], f)
    g = f.new_zeros(len(y), y.shape[1] + 1)
    if log_g is not None:
        g = torch.where(below(n + 1, g.shape[1]), log_g.exp(), 0)
    return reveal * unmasking.hazard(t)[:, None, None, None], g * insertion.hazard(t)[:, None]
