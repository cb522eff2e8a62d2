"""A small distribution over strings, and everything about it that can be known exactly.

`Oracle` lists every string and every way in which some of its tokens can be missing, so its
posterior is a sum over that list: no network, no forward-backward pass, nothing shared with the
code that it tests but the digit code and the schedule. Its `predict` is the exact posterior, the
network that training would end at. `Noise` lists every x_t that a string can become, with its
probability in closed form, so that an expectation over x_t is a sum; `times` makes the integral
over t a sum too.
"""
import itertools
import math

import numpy as np
import torch

import interpolant
import rates
from interpolant import Noised, below


def strings(V, longest, shortest=0):
    """Every tuple over 0..V-1 of these lengths."""
    lengths = range(shortest, longest + 1)
    return [x for length in lengths for x in itertools.product(range(V), repeat=length)]


def random_p(count, seed):
    """A random distribution over `count` things, some of them rare: (count,) float64."""
    generator = torch.Generator().manual_seed(seed)
    p = torch.empty(count, dtype=torch.float64).exponential_(generator=generator)
    return p / p.sum()


def entropy(p):
    return float(-torch.special.xlogy(p, p).sum())


def padded(rows, width, value):
    rows = [list(row) + [value] * (width - len(row)) for row in rows]
    return torch.tensor(rows, dtype=torch.int64).view(len(rows), width)


def zeros(*size):
    return torch.zeros(*size, dtype=torch.float64)


def sum_by(index, values, size):
    """values (R, ...) -> (size, ...): the sum of the rows that have each index"""
    return zeros(size, *values.shape[1:]).index_add(0, index, values)


class Oracle:
    """docs: a list of tuples of ids; p (len(docs),) float64, up to a factor; insertion: the
    Schedule under which tokens go missing.

    given: for each document a tuple of bool: tokens that are given (a prompt, the text around
    holes), so never missing and never masked. One document may be listed several times, with
    another pattern each time: `predict` tells them apart by the `given` that it is told."""

    def __init__(self, docs, p, code, insertion, given=None):
        self.docs, self.p, self.code, self.insertion = docs, p, code, insertion
        self.given = given or [(False,) * len(x) for x in docs]
        self.L = max(len(x) for x in docs)
        self.x1, self.n1 = padded(docs, self.L, 0), torch.tensor([len(x) for x in docs])
        self.fixed = padded(self.given, self.L, 0).bool()
        self.survivors = {m: self.ways_to_keep(m) for m in range(self.L + 1)}

    def ways_to_keep(self, m):
        """Every (document, m of its tokens that survive): document (P,), tokens (P, m), are they
        given (P, m), gaps (P, m + 1)."""
        rows = []
        for i, (x, fixed) in enumerate(zip(self.docs, self.given)):
            for kept in itertools.combinations(range(len(x)), m):
                if all(k in kept for k in range(len(x)) if fixed[k]):
                    rows.append((i, kept))
        gaps = [np.diff([-1, *kept, len(self.docs[i])]) - 1 for i, kept in rows]

        def column(lists):
            values = [[lists[i][k] for k in kept] for i, kept in rows]
            return torch.tensor(values, dtype=torch.int64).view(len(rows), m)
        doc = torch.tensor([i for i, _ in rows], dtype=torch.int64)
        gaps = torch.tensor(np.array(gaps), dtype=torch.float64).view(len(rows), m + 1)
        return doc, column(self.docs), column(self.given).bool(), gaps

    def posterior(self, y, left, shown=None):
        """y (R, m, ell) states of m slots, left (R,) = 1 - alpha(t), shown (R, m) bool: the slots
        that are said to be given (None: nobody says) -> f (R, m, V), g (R, m + 1).

        P(x1, kept | x_t) ~ p(x1) (1 - alpha)^missing [every revealed digit agrees]. A state that no
        document can become is answered with f uniform over the tokens that agree, g = 0."""
        R, m, ell = y.shape
        anything = self.code.agrees(y.flatten(0, 1)).double().view(R, m, self.code.V)
        if m > self.L:
            return anything, zeros(R, m + 1)
        doc, tokens, given, gaps = self.survivors[m]
        d = self.code.encode(tokens)                                                # (P, m, ell)
        agree = (y[:, None] == d) | ((y[:, None] == self.code.mask) & ~given[:, :, None])
        agree = agree.flatten(2).all(2)                                             # (R, P)
        if shown is not None:
            agree = agree & (shown[:, None] == given).all(2)
        w = agree * self.p[doc] * left[:, None] ** gaps.sum(1)                      # (R, P)
        total = w.sum(1, keepdim=True)
        w = torch.where(total > 0, w / total.clamp_min(1e-300), 0)
        one_hot = torch.nn.functional.one_hot(tokens, self.code.V).double()         # (P, m, V)
        f = torch.einsum("rp,pmv->rmv", w, one_hot)
        return torch.where((total == 0)[:, :, None], anything, f), w @ gaps

    def key(self, y, n):
        """One number for each state (B, L, ell), (B,), whatever stands beyond n."""
        B, L, ell = y.shape
        assert (self.code.b + 2.0) ** (L * ell + 1) < 2 ** 62, "too large to enumerate"
        y = torch.where(below(n, L)[:, :, None], y, self.code.pad).flatten(1)
        key = torch.zeros(B, dtype=torch.int64)
        for column in reversed(range(y.shape[1])):      # pads count nothing: any L will do
            key = key * (self.code.b + 2) + (self.code.pad - y[:, column])
        return key

    def predict(self, y, n, t, at, given=None):
        """-> (logits, log_g), float64; NaN where an answer must be ignored. `given` is only looked
        at where some token of some document is given. One posterior for each different (state,
        alpha, given)."""
        B, L, _ = y.shape
        left, which = self.insertion.left(t).unique(return_inverse=True)
        parts = [self.key(y, n), which]
        if not self.fixed.any():
            given = None
        if given is not None:
            given = given & below(n, L)
            parts.append((given.long() * 2 ** torch.arange(L)).sum(1))
        states, inverse = torch.stack(parts).unique(dim=1, return_inverse=True)
        S = states.shape[1]
        one = torch.zeros(S, dtype=torch.int64)         # a row for each state
        one.scatter_(0, inverse, torch.arange(B))
        f = torch.full((S, L, self.code.V), torch.nan, dtype=torch.float64)
        g = torch.full((S, L + 1), torch.nan, dtype=torch.float64)
        for m in n[one].unique().tolist():
            s = (n[one] == m).nonzero()[:, 0]
            rows = one[s]
            shown = None if given is None else given[rows, :m]
            f[s, :m], g[s, :m + 1] = self.posterior(y[rows, :m], left[which[rows]], shown)
        row, slot = at.nonzero(as_tuple=True)
        log_g = None if self.insertion.name == "instant" else g[inverse].log()
        return f[inverse[row], slot].log(), log_g


def two_holes(code, seed):
    """3 w 0 v 3 3 with one or two tokens of {1, 2} in each hole, which depend on each other, when
    every hole begins as one mask: a pair.

    The Oracle, and the probabilities that it should generate. A hole of k tokens of which m are
    there has its anchor, uniform over the k, among these m with probability m / k, whichever they
    are: so the posterior is that without anchors, with p(x1) divided by every hole's k."""
    fill = [tuple(c + 1 for c in w) for w in strings(2, 2, 1)]
    pairs = list(itertools.product(fill, fill))
    docs = [(3, *w, 0, *v, 3, 3) for w, v in pairs]
    given = [(True, *[False] * len(w), True, *[False] * len(v), True, True) for w, v in pairs]
    p = random_p(len(docs), seed)
    sizes = torch.tensor([len(w) * len(v) for w, v in pairs])
    return Oracle(docs, p / sizes, code, interpolant.schedule("linear"), given), p


class Tabular:
    """A `predict` with a free number for each answer in each state: base(y, n, t, at) +
    theta[state]. `noise` says which states exist. Parameters: theta (states, L, V) for the logits,
    eta (states, L + 1) for log g; zero at first."""

    def __init__(self, oracle, noise, base=None):
        self.oracle, self.base = oracle, base or self.nothing
        self.keys = oracle.key(noise.noised.y, noise.noised.n).unique()
        self.theta = zeros(len(self.keys), oracle.L, oracle.code.V).requires_grad_()
        self.eta = zeros(len(self.keys), oracle.L + 1).requires_grad_()

    def nothing(self, y, n, t, at, given=None):
        log_g = None if self.oracle.insertion.name == "instant" else zeros(len(y), y.shape[1] + 1)
        return zeros(int(at.sum()), self.oracle.code.V), log_g

    def randomise(self, size=1.0):
        with torch.no_grad():
            self.theta.normal_().mul_(size)
            self.eta.normal_().mul_(size)
        return self

    def __call__(self, y, n, t, at, given=None):
        logits, log_g = self.base(y, n, t, at, given=given)
        state = torch.searchsorted(self.keys, self.oracle.key(y, n))
        row, slot = at.nonzero(as_tuple=True)
        if log_g is not None:
            log_g = log_g + self.eta[state, :y.shape[1] + 1]
        return logits + self.theta[state[row], slot], log_g


def token_law(insertion, unmasking, t, ell):
    """What has become of a token by t, (..., ell + 2): P(absent); then for k = 0..ell, P(present,
    and of its digits exactly a given k masked).

    That is the integral over the insertion time T1 of w^k (1-w)^(ell-k), w = (1-beta(t)) /
    (1-beta(T1)) being the chance that a digit is still masked. Closed form for `instant` insertion
    and for beta = alpha = a:
        integral of w^m = (1-a) (1 - (1-a)^(m-1)) / (m-1),   and -(1-a) ln(1-a) for m = 1,   a for m
        = 0."""
    left = insertion.left(t)
    counts = range(ell + 1)
    if insertion.name == "instant":
        w = unmasking.left(t)
        return torch.stack([left] + [w ** k * (1 - w) ** (ell - k) for k in counts], -1)
    if insertion.name == unmasking.name:
        moment = [insertion.at(t), -torch.special.xlogy(left, left)]
        moment += [(left - left ** m) / (m - 1) for m in range(2, ell + 1)]

        def law(k):
            signs = [(-1) ** i * math.comb(ell - k, i) for i in range(ell - k + 1)]
            return sum(sign * moment[k + i] for i, sign in enumerate(signs))
        return torch.stack([left] + [law(k) for k in counts], -1)
    # Otherwise by Gauss-Legendre in the square root of tau = -log(1 - T1), where nothing is steep.
    x, weight = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(60))
    end = -torch.log1p(-t)[..., None]
    tau = end * ((x + 1) / 2) ** 2
    T1 = -torch.expm1(-tau)
    w = unmasking.left(t)[..., None] / unmasking.left(T1)
    weight = weight * end * (x + 1) / 2 * torch.exp(-tau) * slope(insertion, T1)
    shares = [(weight * w ** k * (1 - w) ** (ell - k)).sum(-1) for k in counts]
    return torch.stack([left, *shares], -1)


class Noise:
    """Every x_t that the oracle's documents can become, R of them: d1 (R, L, ell), n1 (R,), noised,
    doc (R,), kinds (R, ell + 2).

    kinds counts a row's tokens: absent, and with 0..ell masked digits (given ones are not counted),
    so that the probability of a row is p(x1) * product of token_law ** kinds."""

    def __init__(self, oracle):
        self.oracle, code = oracle, oracle.code
        L, ell = oracle.L, code.ell
        fates = [*itertools.product((False, True), repeat=ell)]     # which digits are masked
        if oracle.insertion.name != "instant":
            fates.insert(0, None)                                   # or the token is absent
        clean = (False,) * ell
        rows = []
        for i, (x, fixed) in enumerate(zip(oracle.docs, oracle.given)):
            digits = code.encode(torch.tensor(x, dtype=torch.int64)).tolist()
            for fate in itertools.product(*[[clean] if f else fates for f in fixed]):
                kept = [k for k, hidden in enumerate(fate) if hidden is not None]
                y = [[code.mask if h else d for d, h in zip(digits[k], fate[k])] for k in kept]
                kinds = [0] * (ell + 2)
                for k, hidden in enumerate(fate):
                    if not fixed[k]:
                        kinds[0 if hidden is None else 1 + sum(hidden)] += 1
                rows.append((i, y, kept, list(np.diff([-1, *kept, len(x)]) - 1), kinds))
        doc, y, kept, gaps, kinds = zip(*rows)
        self.doc = torch.tensor(doc)
        self.kinds = torch.tensor(kinds, dtype=torch.float64)
        pad = [code.pad] * ell
        y = torch.tensor([slots + [pad] * (L - len(slots)) for slots in y])
        n = torch.tensor([len(k) for k in kept])
        self.noised = Noised(y, n, padded(kept, L, 0), padded(gaps, L + 1, 0))
        self.n1 = oracle.n1[self.doc]
        self.d1 = rates.digits(code, oracle.x1, oracle.n1)[self.doc]
        self.given = oracle.fixed[self.doc] if oracle.fixed.any() else None

    def __len__(self):
        return len(self.doc)

    def given_document(self, insertion, unmasking, t):
        """P(x_t, which tokens survived | x1) for times t (T,): (T, R)."""
        law = token_law(insertion, unmasking, t, self.oracle.code.ell)              # (T, ell + 2)
        return torch.where(self.kinds > 0, law[:, None] ** self.kinds, 1).prod(2)

    def weight(self, insertion, unmasking, t):
        """P(x1, x_t, which tokens survived): (T, R)."""
        return self.oracle.p[self.doc] * self.given_document(insertion, unmasking, t)

    def terms(self, predict, t, **options):
        """rates.terms of every row at every time t (T,): two (T, R)."""
        T = len(t)

        def repeat(x):
            return x.repeat(T, *[1] * (x.ndim - 1))
        noised = Noised(*map(repeat, self.noised))
        given = None if self.given is None else repeat(self.given)
        out = rates.terms(predict, self.oracle.code, repeat(self.d1), repeat(self.n1), noised,
                          t.repeat_interleave(len(self)), given=given, **options)
        return out.unmask.view(T, -1), out.insert.view(T, -1)


def times(count):
    """Nodes and weights for an integral over t in [0, 1] whose integrand may grow like a power of
    log(1-t) at the end: 1 - t = x^4."""
    x, weight = np.polynomial.legendre.leggauss(count)
    x, weight = torch.from_numpy(x + 1) / 2, torch.from_numpy(weight) / 2
    return 1 - x ** 4, weight * 4 * x ** 3


def slope(schedule, t):
    """alpha'(t), by differentiating alpha (and itself differentiable)."""
    with torch.enable_grad():
        at = t if t.requires_grad else t.clone().requires_grad_()
        d = torch.autograd.grad(schedule.at(at).sum(), at, create_graph=True)[0]
    return d if t.requires_grad else d.detach()


def rate(schedule, t):
    """alpha'(t) / (1 - alpha(t)) from alpha alone: also nearer to t = 1 than hazard() goes."""
    if schedule.name == "instant":
        return torch.zeros_like(t)
    return slope(schedule, t) / schedule.left(t)


BOUNDS = {"loose": dict(), "tight": dict(averaged=True), "paper": dict(joint=True)}


def bound(oracle, insertion, unmasking, name, predict=None, nodes=40):
    """The bound `name` of rates.nll by enumeration and quadrature, for each document: (len(docs),)
    nats."""
    noise = Noise(oracle)
    t, dt = times(nodes)
    unmask, insert = noise.terms(predict or oracle.predict, t, **BOUNDS[name])      # (T, R)
    integrand = rate(unmasking, t)[:, None] * unmask + rate(insertion, t)[:, None] * insert
    each = (dt[:, None] * noise.given_document(insertion, unmasking, t) * integrand).sum(0)
    return sum_by(noise.doc, each, len(oracle.docs))


def total_variation(x, n, docs, p):
    """Between samples (B, L), (B,) and the distribution p over docs; what is no document counts in
    full."""
    index = {d: i for i, d in enumerate(docs)}
    count = zeros(len(docs) + 1)
    for row, length in zip(x.tolist(), n.tolist()):
        count[index.get(tuple(row[:length]), -1)] += 1
    return float((count / len(x) - torch.cat([p, p.new_zeros(1)])).abs().sum() / 2)


def sampling_error(p, samples, chance=1e-6):
    """What the total variation between `samples` exact draws and p exceeds with less than this
    chance: its mean is at most sum sqrt(p (1-p) / samples) / 2, and it is within sqrt(log(1/chance)
    / (2 samples)) of that (McDiarmid)."""
    mean = (p * (1 - p) / samples).sqrt().sum() / 2
    return float(mean + math.sqrt(math.log(1 / chance) / 2 / samples))
