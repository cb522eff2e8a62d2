"""rates.py: rates, losses and bounds, proved on distributions so small that every document, x_t and
alignment can be listed.

With the exact posterior as `predict` (oracle.py) the rates satisfy the Kolmogorov equation, the
loss is at its minimum, and the bounds are the entropy of the data, or above it by what they are
said to be. Float64; integrals over t by quadrature."""
import itertools
import math

import pytest
import torch
import torch.nn.functional as F

import rates
from interpolant import Noised, anchors_of, below, interpolate, schedule
from oracle import BOUNDS, Noise, Oracle, Tabular, bound, entropy, random_p, strings, sum_by, times
from oracle import two_holes, zeros
from prime import Code
from rates import alignments, jump_rates, phi, terms

LINEAR, INSTANT = schedule("linear"), schedule("instant")
METHODS = ["mdm", "flexmdm", "prime", "flexprime"]
WORLDS = {"mdm": (3, 1, strings(3, 2, 2)), "flexmdm": (2, 1, strings(2, 3)),
          "prime": (4, 2, strings(4, 2, 2)), "flexprime": (4, 2, strings(4, 2))}


def world(method, insertion="linear", seed=0):
    """A random distribution for a method: fixed length without insertion; with it up to 3 tokens,
    or 2 of two digits."""
    V, ell, docs = WORLDS[method]
    alpha = schedule(insertion) if "flex" in method else INSTANT
    return Oracle(docs, random_p(len(docs), seed), Code(V, ell), alpha)


# -----------------------------------------------------------------------------
# phi

def test_phi_is_the_divergence_of_poissons():
    def value(k, g):
        k, g = torch.tensor([k, g], dtype=torch.float64)
        return float(phi(k, g.log()))
    pairs = (1, .5), (1, 2), (3, 1), (2, 2), (0, .7)
    assert [round(value(*pair), 3) for pair in pairs] == [.193, .307, 1.296, 0, .7]
    p, q = (torch.distributions.Poisson(torch.tensor(k, dtype=torch.float64)) for k in (2.5, 0.7))
    kl = float(torch.distributions.kl_divergence(p, q))
    assert value(2.5, 0.7) == pytest.approx(kl)
    assert value(0, 0) == 0 and value(1, 0) == math.inf     # g = 0 is right if nothing is missing
    log_g = torch.tensor([-math.inf, 0.3, -15.0, 15.0], requires_grad=True)
    k = torch.tensor([0.0, 2.0, 0.0, 5.0])
    phi(k, log_g).sum().backward()
    assert torch.allclose(log_g.grad, log_g.detach().exp() - k)


# -----------------------------------------------------------------------------
# Prop. 2

def states_of(oracle, noise):
    """Every state once: keys (S,) sorted, y (S, L, ell), n (S,), and which of them each row of
    `noise` is."""
    keys, inverse = oracle.key(noise.noised.y, noise.noised.n).unique(return_inverse=True)
    row = torch.zeros(len(keys), dtype=torch.int64).scatter(0, inverse, torch.arange(len(noise)))
    return keys, noise.noised.y[row], noise.noised.n[row], inverse


def generator(oracle, keys, y, n, reveal, insert):
    """The rates as a matrix Q (S, S), rows sum to 0. A rate out of the listed states must be 0."""
    S, L, ell = y.shape
    mask = oracle.code.mask
    Q = zeros(S, S)

    def add(y_new, n_new, flow):
        key = oracle.key(y_new, n_new)
        to = torch.searchsorted(keys, key).clamp_max(S - 1)
        listed = keys[to] == key
        assert (flow[~listed] <= 1e-12).all(), "a jump to a state that no document can become"
        Q.index_put_((torch.arange(S), to), torch.where(listed, flow, 0), accumulate=True)

    for i, j, d in itertools.product(range(L), range(ell), range(oracle.code.b)):
        flow = reveal[:, i, j, d]
        assert (flow[y[:, i, j] != mask] == 0).all(), "a revealed digit (or a pad) cannot change"
        changed = y.clone()
        changed[:, i, j] = d
        add(changed, n, flow)
    for j in range(L + 1):
        assert (insert[:, j][j > n] == 0).all()
        longer = torch.cat([y[:, :j], torch.full((S, 1, ell), mask), y[:, j:]], 1)
        add(longer, n + 1, insert[:, j])
    return Q - torch.diag(Q.sum(1))


@pytest.mark.parametrize("method, insertion, unmasking", [
    ("mdm", "instant", "linear"), ("mdm", "instant", "sin"), ("flexmdm", "linear", "linear"),
    ("flexmdm", "sin", "linear"), ("flexmdm", "polynomial", "cosine"),
    ("flexmdm", "geometric", "polynomial"), ("prime", "instant", "cosine"),
    ("flexprime", "linear", "linear"), ("flexprime", "cosine", "polynomial")])
def test_the_rates_satisfy_the_kolmogorov_equation(method, insertion, unmasking):
    """d/dt p_t = p_t Q_t for the marginals p_t of the interpolant, rates of the exact posterior."""
    oracle = world(method, insertion)
    noise = Noise(oracle)
    alpha, beta = oracle.insertion, schedule(unmasking)
    keys, y, n, inverse = states_of(oracle, noise)

    def marginal(t):
        return sum_by(inverse, noise.weight(alpha, beta, t)[0], len(keys))
    h = 1e-5
    for at in (0.02, 0.3, 0.6, 0.95):
        t = torch.tensor([at], dtype=torch.float64)
        jumps = jump_rates(oracle.predict, oracle.code, y, n, t.expand(len(y)), alpha, beta)
        Q = generator(oracle, keys, y, n, *jumps)
        change = (marginal(t + h) - marginal(t - h)) / (2 * h)
        assert float(marginal(t).sum()) == pytest.approx(1, abs=1e-12)
        assert (change - marginal(t) @ Q).abs().max() <= 1e-7


# -----------------------------------------------------------------------------
# Prop. 1: the minimum

OPTIONS = {**BOUNDS, "tight joint": dict(averaged=True, joint=True)}


def expected_loss(oracle, noise, predict, t, **options):
    """The integrand of the bound at time t (1,), expectation over all x1 and x_t."""
    unmask, insert = noise.terms(predict, t, **options)
    each = LINEAR.hazard(t) * unmask + oracle.insertion.hazard(t) * insert
    return (noise.weight(oracle.insertion, LINEAR, t) * each).sum()


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("method", METHODS)
def test_the_exact_posterior_minimises_the_loss(method, options):
    oracle, options = world(method), OPTIONS[options]
    noise = Noise(oracle)
    for at in (0.2, 0.7):
        t = torch.tensor([at], dtype=torch.float64)
        predict = Tabular(oracle, noise, oracle.predict)
        best = expected_loss(oracle, noise, predict, t, **options)
        best.backward()
        gradients = [p.grad for p in (predict.theta, predict.eta) if p.grad is not None]
        assert torch.isfinite(best) and all(g.abs().max() <= 1e-12 for g in gradients)
        for size in (0.01, 0.1, 1.0):
            other = expected_loss(oracle, noise, predict.randomise(size), t, **options)
            assert other > best + 1e-2 * size ** 2


# -----------------------------------------------------------------------------
# the bounds against the entropy

def value(oracle, name, unmasking="linear", predict=None, nodes=40):
    each = bound(oracle, oracle.insertion, schedule(unmasking), name, predict, nodes)
    return float((oracle.p * each).sum())


@pytest.mark.parametrize("unmasking", ["linear", "cosine", "sin", "polynomial", "geometric"])
@pytest.mark.parametrize("method", ["mdm", "prime"])
def test_without_insertion_the_bound_is_the_entropy(method, unmasking):
    oracle = world(method)
    nodes = 80 if unmasking == "geometric" else 40
    loose = value(oracle, "loose", unmasking, nodes=nodes)
    assert loose == pytest.approx(entropy(oracle.p), abs=1e-9)
    both = [value(oracle, name, unmasking, nodes=10) for name in ("tight", "loose")]
    assert both[0] == both[1]                               # there is one alignment only


@pytest.mark.parametrize("method, insertion, unmasking", [
    ("flexmdm", "linear", "linear"), ("flexmdm", "sin", "sin"), ("flexmdm", "cosine", "cosine"),
    ("flexmdm", "polynomial", "linear"), ("flexprime", "linear", "linear"),
    ("flexprime", "cosine", "cosine")])
def test_with_insertion_the_tight_bound_is_the_entropy(method, insertion, unmasking):
    oracle = world(method, insertion)
    H = entropy(oracle.p)
    assert value(oracle, "tight", unmasking) == pytest.approx(H, abs=1e-8)
    assert value(oracle, "loose", unmasking) > H + 0.2


def point(*text):
    """A language of one document."""
    return Oracle([text], torch.ones(1, dtype=torch.float64), Code(2), LINEAR)


def test_loose_bound_of_ab():
    """Only the state "one mask" costs something, ln 2 for which token it is and ln 2 for the gaps;
    it lasts, weighted by the hazards, integral of 2 (1-t) * -(1-t) ln(1-t) / (1-t) = 1/2."""
    assert value(point(0, 1), "loose") == pytest.approx(math.log(2), abs=1e-9)


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_loose_bound_of_equal_tokens(n):
    """When m of n are left, the n - m others are missing anywhere: each gap expects (n-m)/(m+1).
    This state weighs 1/(n-m)."""
    def divergence(kept):
        k = [z - a - 1 for a, z in zip((-1, *kept), (*kept, n))]
        k = torch.tensor(k, dtype=torch.float64)
        return float(phi(k, k.mean().log()).sum())

    def cost(m):
        every = [divergence(kept) for kept in itertools.combinations(range(n), m)]
        return sum(every) / len(every)
    expected = sum(cost(m) / (n - m) for m in range(n))
    assert value(point(*[0] * n), "loose") == pytest.approx(expected, abs=1e-9)
    assert value(point(*[0] * n), "tight") == pytest.approx(0, abs=1e-12)      # it is certain


def test_the_loose_bound_of_flexmdm_by_another_route():
    """At the optimum it is  integral of lam_um E[entropy of the masked slots]
    + lam_ins E[sum k log k - g log g]. The second factor needs no loss function, only the posterior
    and the law of the gaps."""
    toy = {"": .05, "a": .1, "ab": .2, "ba": .05, "aab": .15, "bbb": .1, "abab": .25, "bbaa": .10}
    docs = [tuple("ab".index(c) for c in s) for s in toy]
    oracle = Oracle(docs, torch.tensor([*toy.values()], dtype=torch.float64), Code(2), LINEAR)
    noise = Noise(oracle)
    y, n, k = noise.noised.y, noise.noised.n, noise.noised.gaps.double()
    masked = (y == oracle.code.mask).all(2)
    row = masked.nonzero()[:, 0]
    total = 0
    for t, dt in zip(*times(24)):
        log_f, log_g = oracle.predict(y, n, t.expand(len(n)), masked)
        f, g = log_f.exp(), log_g.exp()
        H = sum_by(row, -torch.special.xlogy(f, f).sum(1), len(n))
        gaps = torch.special.xlogy(k, k).sum(1) - torch.special.xlogy(g, g).nan_to_num(0).sum(1)
        weight = noise.weight(LINEAR, LINEAR, t[None])[0]
        total += float(dt / (1 - t) * (weight * (H + gaps)).sum())
    loose = value(oracle, "loose", nodes=24)
    assert entropy(oracle.p) == pytest.approx(1.9434, abs=1e-4)
    assert loose == pytest.approx(total, abs=1e-9) and loose == pytest.approx(3.3865, abs=1e-4)


# -----------------------------------------------------------------------------
# the objective of the MDM-Prime paper is no bound

def hidden_entropies(p, code):
    """h_1..h_ell: the entropy of a digit given the revealed ones, averaged over digits and over
    which k (it included) are hidden."""
    digits = code.encode(torch.arange(code.V)).tolist()

    def H(places):
        sums = {}
        for d, q in zip(digits, p.tolist()):
            seen = tuple(d[j] for j in places)
            sums[seen] = sums.get(seen, 0) + q
        return -sum(q * math.log(q) for q in sums.values() if q)

    out = []
    for k in range(1, code.ell + 1):
        cases = []
        for hidden in itertools.combinations(range(code.ell), k):
            shown = [i for i in range(code.ell) if i not in hidden]
            cases += [H(sorted(shown + [j])) - H(shown) for j in hidden]
        out.append(sum(cases) / len(cases))
    return out


@pytest.mark.parametrize("V, ell", [(4, 2), (7, 2), (16, 2), (8, 3), (7, 3), (16, 4)])
def test_the_papers_objective_reads_too_low(V, ell):
    """One token. The true H = sum_k h_k; the paper's objective = sum_k mean(h_1..h_k); for ell = 2
    the difference is I(digit 1; digit 2) / 2."""
    oracle = Oracle(strings(V, 1, 1), random_p(V, 3), Code(V, ell), INSTANT)
    H, h = entropy(oracle.p), hidden_entropies(oracle.p, oracle.code)
    assert sum(h) == pytest.approx(H, abs=1e-12)
    assert value(oracle, "loose") == pytest.approx(H, abs=1e-12)
    paper = value(oracle, "paper")
    expected = sum(sum(h[:k]) / k for k in range(1, ell + 1))
    assert paper == pytest.approx(expected, abs=1e-9) and paper < H - 1e-3
    if ell == 2:
        first, second = oracle.code.log_marginals(oracle.p.log()[None]).exp()[0]
        mutual = entropy(first) + entropy(second) - H
        assert H - paper == pytest.approx(mutual / 2, abs=1e-9) and mutual > 1e-2


@pytest.mark.parametrize("ell", [1, 2, 3, 4])
def test_the_papers_objective_of_digits_that_are_copies(ell):
    """of one bit: H / ell"""
    docs, half = [(0,), (2 ** ell - 1,)], torch.tensor([.5, .5], dtype=torch.float64)
    oracle = Oracle(docs, half, Code(2 ** ell, ell), INSTANT)
    assert value(oracle, "paper") == pytest.approx(math.log(2) / ell, abs=1e-9)
    assert value(oracle, "loose") == pytest.approx(math.log(2), abs=1e-9)


def test_the_papers_objective_of_independent_digits_is_the_bound():
    p = (random_p(3, 0)[:, None] * random_p(3, 1)).flatten()
    oracle = Oracle(strings(9, 1, 1), p, Code(9, 2), INSTANT)
    assert value(oracle, "loose") == pytest.approx(entropy(p), abs=1e-9)
    assert value(oracle, "paper") == pytest.approx(entropy(p), abs=1e-9)


def test_the_papers_objective_of_two_correlated_tokens():
    oracle = world("prime")
    assert value(oracle, "paper") < entropy(oracle.p) - 1e-2


# -----------------------------------------------------------------------------
# any predict: the bounds are bounds

@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("method", METHODS)
def test_the_tight_bound_is_never_above_the_loose_one(method, seed):
    """For random answers and at each x_t, averaged over the alignments that x_t has with x1."""
    torch.manual_seed(seed)
    oracle = world(method)
    noise = Noise(oracle)
    predict = Tabular(oracle, noise).randomise(2.0)
    state = oracle.key(noise.noised.y, noise.noised.n)
    pair = torch.stack([noise.doc, state]).unique(dim=1, return_inverse=True)[1]    # (x1, x_t)
    size = torch.bincount(pair)
    t = torch.tensor([0.5], dtype=torch.float64)
    with torch.no_grad():
        loose, tight = (noise.terms(predict, t, averaged=averaged) for averaged in (False, True))

    def mean(x):
        return sum_by(pair, x[0], len(size)) / size
    for sampled, averaged in zip(loose, tight):
        assert (mean(averaged) <= mean(sampled) + 1e-12).all()
        # the average does not depend on the alignment that was drawn
        assert (averaged[0] - mean(averaged)[pair]).abs().max() <= 1e-12
        assert (averaged[0] >= -1e-12).all()
    if "flex" in method:
        assert float((loose[1] - tight[1]).sum()) > 0.1 and float((loose[0] - tight[0]).sum()) > 0.1


SMALL = {"mdm": (strings(3, 2, 2), Code(3)), "flexmdm": (strings(2, 2), Code(2)),
         "prime": (strings(4, 1, 1), Code(4, 2)), "flexprime": (strings(4, 1), Code(4, 2))}


@pytest.mark.parametrize("method", METHODS)
def test_both_bounds_exceed_the_models_own_likelihood(method):
    """-log p_model(x1) <= tight(x1) <= loose(x1) for every document, where p_model is the law at
    t = 1 of the jump process with random answers. In tau = -log(1 - t) the linear hazards are 1, so
    p_model is the solution of dp/dtau = p (A + exp(-tau) B): Runge-Kutta."""
    docs, code = SMALL[method]
    alpha = LINEAR if "flex" in method else INSTANT
    oracle = Oracle(docs, random_p(len(docs), 0), code, alpha)
    noise = Noise(oracle)
    answers = Tabular(oracle, noise).randomise(1.0)

    def predict(y, n, t, at, given=None):           # g ~ (1 - t), and 0 on a full canvas
        with torch.no_grad():
            logits, log_g = answers(y, n, t, at)
        if log_g is not None:
            full = torch.where(n < oracle.L, 0, -torch.inf)
            log_g = log_g + (torch.log1p(-t) + full)[:, None]
        return logits, log_g

    keys, y, n, _ = states_of(oracle, noise)
    reveal, insert = jump_rates(predict, code, y, n, zeros(len(y)), alpha, LINEAR)
    A = generator(oracle, keys, y, n, reveal, torch.zeros_like(insert))
    B = generator(oracle, keys, y, n, torch.zeros_like(reveal), insert)
    n0 = oracle.L if alpha is INSTANT else 0
    nothing = ((y == code.mask) | (y == code.pad)).flatten(1).all(1)
    p = ((n == n0) & nothing).double()
    steps, end = 3000, 30.0
    h = end / steps
    for i in range(steps):
        begin, middle, later = (A + math.exp(-(i + part) * h) * B for part in (0, 0.5, 1))
        k1 = p @ begin
        k2 = (p + h / 2 * k1) @ middle
        k3 = (p + h / 2 * k2) @ middle
        p = p + h / 6 * (k1 + 2 * k2 + 2 * k3 + (p + h * k3) @ later)
    d1 = rates.digits(code, oracle.x1, oracle.n1)
    final = torch.searchsorted(keys, oracle.key(d1, oracle.n1))
    nll = -p[final].log()
    assert float(p[final].sum()) == pytest.approx(1, abs=1e-8)
    tight, loose = (bound(oracle, alpha, LINEAR, name, predict) for name in ("tight", "loose"))
    assert (nll <= tight + 1e-6).all() and (tight <= loose + 1e-9).all()
    assert float((tight - nll).max()) > 1e-3                    # a bound, not an identity
    assert float((oracle.p * tight).sum()) >= entropy(oracle.p)


# -----------------------------------------------------------------------------
# the forward-backward pass over alignments

def brute_force(y, n, d1, n1, kept, given, code):
    """weight and nbar of one document, and how many alignments there are, by listing them."""
    L, n, n1 = len(d1), int(n), int(n1)

    def fits(s):
        digits = [(int(a), int(b)) for i, k in enumerate(s) for a, b in zip(y[i], d1[k])]
        agree = all(a in (b, code.mask) for a, b in digits)
        known = all(s[i] == kept[i] if given[kept[i]] else not given[s[i]] for i in range(n))
        return agree and known
    every = [s for s in itertools.combinations(range(n1), n) if fits(s)]
    weight, nbar = zeros(L, L), zeros(L + 1)
    for s in every:
        weight[torch.arange(n), list(s)] += 1 / len(every)
        for j, (a, z) in enumerate(zip((-1, *s), (*s, n1))):
            nbar[j] += (z - a - 1) / len(every)
    return weight, nbar, len(every)


@pytest.mark.parametrize("V, ell", [(2, 1), (5, 1), (4, 2), (6, 2), (8, 3)])
@pytest.mark.parametrize("share", [0.0, 0.2])
def test_alignments_equal_brute_force(V, ell, share):
    """Repeated tokens (V = 2 over 7 places), partly masked digits, x_t empty, complete, and
    documents of length 0; with and without given tokens."""
    code, B, L = Code(V, ell), 60, 7
    x1, n1, t = torch.randint(V, (B, L)), torch.randint(0, L + 1, (B,)), torch.rand(B)
    n1[:2] = torch.tensor([0, L])
    t[2:4] = torch.tensor([0.0, 1.0])
    known = torch.rand(B, L) < share
    given = known if share else None
    d1 = rates.digits(code, x1, n1)
    noised = interpolate(d1, n1, t, LINEAR, schedule("cosine"), given, mask=code.mask, pad=code.pad)
    weight, nbar = alignments(noised, d1, n1, code, given)
    several = 0
    for b in range(B):
        kept = noised.kept[b].tolist()
        w, k, count = brute_force(noised.y[b], noised.n[b], d1[b], n1[b], kept, known[b], code)
        several += count > 3
        assert (weight[b] - w).abs().max() <= 1e-12 and (nbar[b] - k).abs().max() <= 1e-12
    assert several > 4
    assert (noised.n == 0).any() and (noised.n == n1).any()


def log_alignments(noised, d1, n1, code):
    """The weights of `alignments` by adding logarithms (ell = 1): slow, and no number is too
    large."""
    y, n, _, _ = noised
    L = y.shape[1]
    live = below(n, L)
    match = live[:, :, None] & below(n1, L)[:, None]
    match = match & ((y == d1.mT) | (y == code.mask))                               # (B, L, L)

    def log_ways(match, live):
        N = zeros(match.shape)
        for i in range(1, L):
            before = N[:, i - 1].masked_fill(~match[:, i - 1], -torch.inf)
            N[:, i, 0] = -torch.inf
            N[:, i, 1:] = before[:, :-1].logcumsumexp(1)
            N[:, i].masked_fill_(~live[:, i - 1, None], 0)
        return N
    total = log_ways(match, live) + log_ways(match.flip(1, 2), live.flip(1)).flip(1, 2)
    return total.masked_fill(~match, -torch.inf).softmax(2).nan_to_num(0)


@pytest.mark.parametrize("L, t", [(1500, 0.25), (1500, 0.5), (1500, 0.9), (1500, 0.97),
                                  (2600, 0.9)])
def test_alignments_of_long_documents_equal_those_in_log_space(L, t):
    """Tokens of which 19 in 20 are equal: up to 10^800 alignments. Every weight to 1e-10."""
    code, n1 = Code(2), torch.tensor([L, L - 100])
    d1 = rates.digits(code, (torch.rand(2, L) < 0.05).long(), n1)
    noised = interpolate(d1, n1, torch.full((2,), t), LINEAR, LINEAR, mask=code.mask, pad=code.pad)
    weight, nbar = alignments(noised, d1, n1, code)
    assert (weight - log_alignments(noised, d1, n1, code)).abs().max() <= 1e-10
    assert (weight.sum(2) - below(noised.n, L).double()).abs().max() <= 1e-12
    assert (nbar.sum(1) - (n1 - noised.n)).abs().max() <= 1e-8


def test_alignments_of_a_long_document_in_closed_form():
    """1,200 equal tokens of which every second is left: 10^360 alignments. By symmetry each of the
    601 gaps has 600 / 601 of the missing ones."""
    code, L = Code(2), 1200
    place = torch.arange(L)
    y = torch.where(place % 3 > 0, code.mask, 0)
    y = torch.where(place < 600, y, code.pad)[None, :, None]
    kept = torch.where(place < 600, 2 * place, 0)[None]
    noised = Noised(y, torch.tensor([600]), kept, torch.zeros(1, L + 1, dtype=torch.int64))
    d1 = torch.zeros(1, L, 1, dtype=torch.int64)
    weight, nbar = alignments(noised, d1, torch.tensor([L]), code)
    assert (nbar[0, :601] - 600 / 601).abs().max() <= 1e-8 and (nbar[0, 601:] == 0).all()
    assert (weight[0, :600].sum(1) - 1).abs().max() <= 1e-10 and (weight[0, 600:] == 0).all()


def test_padding_and_neighbours_do_not_change_the_alignments():
    code, n1 = Code(3), torch.tensor([5, 3, 1])
    d1 = rates.digits(code, torch.randint(3, (3, 5)), n1)
    t = torch.tensor([.5, .7, .5])
    noised = interpolate(d1, n1, t, LINEAR, LINEAR, mask=code.mask, pad=code.pad)
    weight, nbar = alignments(noised, d1, n1, code)
    y, n, kept, gaps = noised
    y, d1 = (F.pad(x, (0, 0, 0, 4), value=code.pad) for x in (y, d1))
    wide = Noised(y, n, F.pad(kept, (0, 4)), F.pad(gaps, (0, 4)))
    weight2, nbar2 = alignments(wide, d1, n1, code)
    assert torch.equal(weight2[:, :5, :5], weight) and torch.equal(nbar2[:, :6], nbar)
    assert weight2.sum() == weight.sum()


def test_number_0_may_be_no_token():
    """A pad is read as the number 0, which a permutation may give to no token. It has no weight."""
    code, x1 = Code(3, 2, torch.tensor([1, 2, 3, 0])), torch.tensor([[0, 1, 0]] * 20)
    t, n1 = torch.full((20,), 0.5), torch.full((20,), 2)
    d1 = rates.digits(code, x1, n1)
    noised = interpolate(d1, n1, t, LINEAR, LINEAR, mask=code.mask, pad=code.pad)

    def predict(y, n, t, at, given=None):
        return torch.zeros(int(at.sum()), 3), torch.zeros(20, 4)
    unmask, _ = terms(predict, code, d1, n1, noised, t, joint=True, averaged=True)
    assert unmask.isfinite().all()


# -----------------------------------------------------------------------------
# Rao-Blackwell

@pytest.mark.parametrize("method, joint", [("flexmdm", False), ("flexprime", False),
                                           ("flexprime", True)])
def test_averaged_targets_have_the_same_expected_gradient_and_less_variance(method, joint):
    oracle = world(method)
    noise, t = Noise(oracle), torch.tensor([0.6], dtype=torch.float64)
    p = noise.weight(LINEAR, LINEAR, t)[0]
    answers = Tabular(oracle, noise).randomise()
    state = torch.searchsorted(answers.keys, oracle.key(noise.noised.y, noise.noised.n))
    mean, variance = {}, {}
    for averaged in (False, True):
        # a copy of the parameters for each row: its own gradient
        theta, eta = (x[state].detach().requires_grad_() for x in (answers.theta, answers.eta))

        def predict(y, n, t, at, given=None):
            return theta[at], eta
        unmask, insert = noise.terms(predict, t, joint=joint, averaged=averaged)
        gradient = torch.autograd.grad((unmask + insert).sum(), [theta, eta])
        gradient = torch.cat([g.flatten(1) for g in gradient], 1)           # (R, parameters)
        mean[averaged] = sum_by(state, p[:, None] * gradient, len(answers.keys))
        square = (p * (gradient ** 2).sum(1)).sum()
        variance[averaged] = float(square - (mean[averaged] ** 2).sum())
    assert (mean[True] - mean[False]).abs().max() <= 1e-14 and mean[True].abs().max() > 1e-2
    assert variance[True] < variance[False] - 0.1


# -----------------------------------------------------------------------------
# special cases are the plain method, to the bit

def batch(V=5, B=16, L=9):
    n1 = torch.randint(0, L + 1, (B,))
    return torch.randint(V, (B, L)), n1, torch.rand(B)


def network(code, gaps=True, garbage=math.nan, seed=0):
    """A fixed random function of the state: float32 answers, garbage past n."""
    weight = torch.randn(code.b + 2, code.V, generator=torch.Generator().manual_seed(seed))

    def predict(y, n, t, at, given=None):
        B, L, _ = y.shape
        h = torch.where(below(n, L)[:, :, None, None], weight[y], 0).sum(2)         # (B, L, V)
        z = (h + 0.3 * h.sum(1, keepdim=True) + t[:, None, None].float()).sin() * 2
        if not gaps:
            return z[at], None
        log_g = F.pad(z[:, :, 0], (0, 1), value=0.5)
        return z[at], torch.where(below(n + 1, L + 1), log_g, garbage)
    return predict


@pytest.mark.parametrize("insertion", ["instant", "linear"])
@pytest.mark.parametrize("name", ["loose", "paper"])
def test_with_one_digit_the_loss_is_the_plain_one_bit_for_bit(insertion, name):
    """Prop. 1 written out for tokens: the same noise from the same seed, one cross-entropy, one
    phi."""
    code, (x1, n1, t) = Code(5), batch()
    alpha, beta = schedule(insertion), schedule("cosine")
    predict = network(code, gaps=insertion != "instant")
    torch.manual_seed(7)
    got = rates.nll(predict, code, x1, n1, t, alpha, beta, name)

    torch.manual_seed(7)
    B, L = x1.shape
    T1 = alpha.inverse(torch.rand(B, L, dtype=torch.float64))
    now = t[:, None].double()
    present = below(n1, L) & (T1 <= now)
    u = torch.rand(B, L, dtype=torch.float64)
    hidden = u < 1 - beta.step(torch.minimum(T1, now), now)
    expected = []
    for b in range(B):
        kept = present[b].nonzero()[:, 0]
        m = len(kept)
        y = torch.full((1, L, 1), 6)
        y[0, :m, 0] = torch.where(hidden[b, kept], 5, x1[b, kept])
        logits, log_g = predict(y, torch.tensor([m]), t[b:b + 1], y[:, :, 0] == 5)
        loss = torch.zeros(1)
        for z, k in zip(logits, kept[hidden[b, kept]]):
            loss = loss + F.cross_entropy(z[None], x1[b, k][None], reduction="none")
        divergence = torch.zeros(L + 1)
        if log_g is not None:
            pairs = zip([-1, *kept.tolist()], [*kept.tolist(), int(n1[b])])
            gaps = torch.tensor([z - a - 1.0 for a, z in pairs])
            divergence[:m + 1] = phi(gaps, log_g[0, :m + 1])
        at = t[b:b + 1]
        expected.append(beta.hazard(at) * loss + alpha.hazard(at) * divergence.sum())
    assert torch.equal(got, torch.cat(expected))


@pytest.mark.parametrize("name", ["loose", "tight"])
def test_an_identity_permutation_changes_nothing(name):
    x1, n1, t = batch()
    losses = []
    for code in (Code(5), Code(5, 1, torch.arange(5))):
        torch.manual_seed(3)
        losses.append(rates.nll(network(code), code, x1, n1, t, LINEAR, LINEAR, name))
    if name == "loose":
        assert torch.equal(*losses)
    assert torch.allclose(*losses, rtol=1e-5)


# -----------------------------------------------------------------------------
# digits

FAR = 200.0


@pytest.mark.parametrize("averaged", [False, True])
@pytest.mark.parametrize("code", [Code(9, 2), Code(16, 4), Code(5, 1, torch.randperm(5))])
def test_a_token_at_log_f_minus_200_costs_200_nats_and_has_its_gradient(code, averaged):
    """Far below the smallest float32: nothing is floored. All mass is on the last token; the truth
    is the first. Their digits differ everywhere, so each masked digit costs 200 nats."""
    ell, V = code.ell, code.V
    truth, other = 0, V - 1
    logits = torch.full((1, V), -1000.0)
    logits[0, truth], logits[0, other] = -FAR, 0
    logits.requires_grad_()
    y, d = torch.full((1, ell), code.mask), code.encode(torch.tensor([truth]))
    assert (d != code.encode(torch.tensor([other]))).all()
    if averaged:
        loss = rates.slot_kl(logits, y, torch.ones(1, 1, dtype=torch.float64), d[None], code)
    else:
        loss = rates.slot_nll(logits, y, d, code)
    assert float(loss.detach()) == pytest.approx(FAR * ell, rel=1e-6)
    loss.sum().backward()
    expected = torch.zeros(1, V)
    expected[0, truth], expected[0, other] = -ell, ell
    assert torch.allclose(logits.grad, expected, atol=1e-5)


@pytest.mark.parametrize("code", [Code(9, 2), Code(7, 3), Code(11, 2, torch.randperm(16))])
def test_the_gradient_of_a_digits_loss_is_that_of_its_definition(code):
    """-log f_ij(d) with f_ij(d) = (sum of exp(z) over agreeing tokens with digit d) / (the same
    over all agreeing tokens): by autograd of that, in float64. A token that disagrees has none."""
    M = 30
    truth = torch.randint(code.V, (M,))
    d = code.encode(truth)
    y = torch.where(torch.rand(d.shape) < 0.6, code.mask, d)
    z = torch.randn(M, code.V, dtype=torch.float64, requires_grad=True)
    got = torch.autograd.grad(rates.slot_nll(z, y, d, code).sum(), z)[0]
    ok, digits = code.agrees(y), code.encode(torch.arange(code.V))
    e = z.exp() * ok
    total = 0
    for j in range(code.ell):
        same = digits[None, :, j] == d[:, j, None]
        nll = e.sum(1).log() - (e * same).sum(1).log()
        total = total + (nll * (y[:, j] == code.mask)).sum()
    expected = torch.autograd.grad(total, z)[0]
    assert (got - expected).abs().max() <= 1e-12 and expected.abs().max() > 0.1
    assert (got[~ok] == 0).all()


# -----------------------------------------------------------------------------
# given tokens (prompts, infilling)

@pytest.mark.parametrize("ell", [1, 2])
def test_with_given_tokens_the_tight_bound_is_the_conditional_entropy(ell):
    """x1 = 3 w 0 w' 3 3 where only the holes w, w' over {1, 2} are noised: the bound is the entropy
    of the holes."""
    fill = [tuple(c + 1 for c in w) for w in strings(2, 2)]
    docs, given = [], []
    for w, v in itertools.product(fill, fill[:3]):
        docs.append((3, *w, 0, *v, 3, 3))
        given.append((True, *[False] * len(w), True, *[False] * len(v), True, True))
    oracle = Oracle(docs, random_p(len(docs), 2), Code(4, ell), LINEAR, given)
    nodes, error = (40, 1e-9) if ell == 1 else (24, 1e-6)
    H = entropy(oracle.p)
    assert value(oracle, "tight", nodes=nodes) == pytest.approx(H, abs=error)
    assert value(oracle, "loose", nodes=nodes) > H + 0.1


@pytest.mark.parametrize("ell", [1, 2])
def test_with_holes_that_begin_as_a_mask_the_tight_bound_is_the_conditional_entropy(ell):
    """By draws, at 40 times: within 4 standard errors for the oracle that knows about anchors,
    further off for one that does not."""
    oracle, p = two_holes(Code(4, ell), 2)
    naive = Oracle(oracle.docs, p, oracle.code, LINEAR, oracle.given)
    N = 800
    t, dt = times(40)
    pick = torch.multinomial(p, N, replacement=True).repeat(40)
    x1, n1, given = (x[pick] for x in (oracle.x1, oracle.n1, oracle.fixed))
    t, dt = t.repeat_interleave(N), dt.repeat_interleave(N) * 40
    anchors = anchors_of(given, n1)

    def draws(oracle):
        torch.manual_seed(0)                                    # the same noise for both
        nll = rates.nll(oracle.predict, oracle.code, x1, n1, t, LINEAR, LINEAR, "tight",
                        given=given, anchors=anchors)
        return (nll * dt).view(40, N).mean(0)

    got, other = draws(oracle), draws(naive)
    error = float(got.std()) / N ** 0.5
    assert error < 0.1 and abs(float(got.mean()) - entropy(p)) < 4 * error
    assert float((other - got).mean()) > 3 * float((other - got).std()) / N ** 0.5


@pytest.mark.parametrize("averaged", [False, True])
def test_predict_is_told_which_slots_were_given(averaged):
    """`given` of x1 (B, L) arrives as `given` of the slots of x_t; without it, as None."""
    code, (x1, n1, t) = Code(5), batch()
    given = torch.rand(x1.shape) < 0.4
    d1 = rates.digits(code, x1, n1)
    noised = interpolate(d1, n1, t, LINEAR, LINEAR, given, mask=code.mask, pad=code.pad)
    inner, told = network(code), []

    def predict(y, n, t, at, given=None):
        told.append(given)
        return inner(y, n, t, at)
    terms(predict, code, d1, n1, noised, t, given=given, averaged=averaged)
    for b, kept in enumerate(noised.kept.tolist()):
        m = int(noised.n[b])
        expected = [bool(given[b, k]) for k in kept[:m]]
        assert told[0][b].tolist() == expected + [False] * (9 - m)
    terms(predict, code, d1, n1, noised, t, averaged=averaged)
    assert told[1] is None


def test_given_tokens_are_told_apart_from_revealed_ones():
    """The first token of a document is given, or it is not. The exact posterior that is told which
    has the conditional entropy H(x1 | what is given); one that is not told pays more, because a
    slot that is given says nothing about how much is missing, and one that has survived does."""
    docs, share = strings(2, 2, 1), torch.tensor([.6, .4], dtype=torch.float64)
    given = [(first, False)[:len(x)] for x in docs for first in (True, False)]
    p = (random_p(len(docs), 3)[:, None] * share).flatten()
    oracle = Oracle([x for x in docs for _ in share], p, Code(2), LINEAR, given)
    begin = torch.tensor([x[0] if fixed[0] else 2 for x, fixed in zip(oracle.docs, given)])
    H = entropy(p) - entropy(sum_by(begin, p, 3))
    assert value(oracle, "tight") == pytest.approx(H, abs=1e-9)

    def deaf(y, n, t, at, given=None):
        return oracle.predict(y, n, t, at)
    assert value(oracle, "tight", predict=deaf) > H + 0.1


# -----------------------------------------------------------------------------
# rates.nll draws what has been enumerated

@pytest.mark.parametrize("method, name", [
    ("mdm", "loose"), ("flexmdm", "loose"), ("flexmdm", "tight"), ("prime", "loose"),
    ("prime", "paper"), ("flexprime", "loose"), ("flexprime", "tight")])
def test_nll_agrees_with_the_enumeration(method, name):
    """20,000 documents, times and noises drawn by nll itself; within 4 standard errors.
    t = 1 - (1-u)^2 with weight 2 (1-u), because under uniform t the second moment of 1 / (1 - t) is
    infinite."""
    oracle, M = world(method), 20_000
    u = torch.rand(M, dtype=torch.float64)
    pick = torch.multinomial(oracle.p, M, replacement=True)
    x1, n1, t = oracle.x1[pick], oracle.n1[pick], 1 - (1 - u) ** 2
    got = rates.nll(oracle.predict, oracle.code, x1, n1, t, oracle.insertion, LINEAR, name)
    got = got * 2 * (1 - u)
    error = float(got.std()) / M ** 0.5
    assert error < 0.05 and abs(float(got.mean()) - value(oracle, name, nodes=24)) < 4 * error


@pytest.mark.parametrize("name", BOUNDS)
def test_nll_is_its_terms_times_their_hazards(name):
    """The three bounds are three ways to ask terms(); each sum has its own hazard."""
    code, (x1, n1, t) = Code(5, 2), batch()
    alpha, beta = schedule("sin"), schedule("polynomial")
    torch.manual_seed(9)
    got = rates.nll(network(code), code, x1, n1, t, alpha, beta, name)
    torch.manual_seed(9)
    d1 = rates.digits(code, x1, n1)
    noised = interpolate(d1, n1, t, alpha, beta, mask=code.mask, pad=code.pad)
    unmask, insert = terms(network(code), code, d1, n1, noised, t, **BOUNDS[name])
    assert torch.equal(got, beta.hazard(t) * unmask + alpha.hazard(t) * insert)
    assert (unmask > 0).any() and (insert > 0).any()


CASES = [(Code(5), "linear"), (Code(5), "sin"), (Code(6, 2), "linear"), (Code(6, 2), "instant"),
         (Code(5), "instant")]


@pytest.mark.parametrize("name", BOUNDS)
@pytest.mark.parametrize("size", [0.0, 100.0])
@pytest.mark.parametrize("code, insertion", CASES)
def test_nll_is_finite_at_every_time(code, insertion, size, name):
    """float32, a network whose answers are extreme, documents of length 0 and 1, garbage beyond the
    end, times up to the last float before 1."""
    x1, n1, t = batch(V=code.V, B=40)
    n1[:2] = torch.tensor([0, 1])
    x1 = torch.where(below(n1, 9), x1, 99)                      # is not looked at
    t[:5] = torch.tensor([0.0, 2.0 ** -24, 1 - 2.0 ** -24, 1 - 2.0 ** -20, 0.5])
    scale = torch.tensor(size, requires_grad=True)
    base = network(code, insertion != "instant", garbage=1e6)

    def predict(y, n, t, at, given=None):
        z, g = base(y, n, t, at)
        if g is not None:
            g = torch.where(g < 1e6, (g * scale).clamp(-15, 15), g * (1 + scale))
        return z * scale, g
    loss = rates.nll(predict, code, x1, n1, t, schedule(insertion), LINEAR, name)
    assert torch.isfinite(loss).all() and (loss >= (-1e-2 if name == "tight" else 0)).all()
    assert (loss[n1 == 0] == 0).all() or insertion != "instant"
    loss.sum().backward()
    assert torch.isfinite(scale.grad)


# -----------------------------------------------------------------------------
# autoregression

def exact_next_token(docs, p, V):
    """predict(y, ..) of an autoregressive model: p(next token | the slots before it)."""
    def predict(y, n, t, at, given=None):
        out = []
        for b, i in at.nonzero().tolist():
            before = tuple(y[b, :i, 0].tolist())
            q = zeros(V)
            for x, w in zip(docs, p):
                if x[:i] == before and len(x) > i:
                    q[x[i]] += w
            out.append((q / q.sum()).log())
        return torch.stack(out), None
    return predict


def test_next_token_nll_is_the_exact_likelihood():
    end = 2
    docs = [x + (end,) for x in strings(2, 3)]
    p = random_p(len(docs), 0)
    n1 = torch.tensor([len(x) for x in docs])
    x1 = torch.tensor([list(x) + [1] * (4 - len(x)) for x in docs])
    predict = exact_next_token(docs, p, 3)
    nll = rates.next_token_nll(predict, Code(3), x1, n1)
    assert torch.allclose(nll.double(), -p.log(), atol=1e-6)

    # a given beginning is read and not paid for: -log p(the rest | it)
    given = (torch.arange(4) < 1).expand(len(docs), 4)
    nll = rates.next_token_nll(predict, Code(3), x1, n1, given)
    first = torch.stack([p[x1[:, 0] == v].sum() for v in range(3)])
    assert torch.allclose(nll.double(), first[x1[:, 0]].log() - p.log(), atol=1e-6)


def test_an_unknown_bound_is_refused():
    x1, n1, t = batch()
    with pytest.raises(ValueError, match="loose, tight, paper"):
        rates.nll(network(Code(5)), Code(5), x1, n1, t, LINEAR, LINEAR, "valid")
