"""rates.py: rates, losses and bounds, proved on distributions so small that every document, x_t and alignment can be listed.

With the exact posterior as `predict` (oracle.py): the rates satisfy the Kolmogorov equation, the loss is at its minimum, and the bounds
are the entropy of the data, or above it by what they are said to be. Float64; integrals over t by quadrature.
"""
import itertools
import math

import pytest
import torch
import torch.nn.functional as F

import rates
from interpolant import Noised, anchors_of, interpolate, schedule
from oracle import BOUNDS, Noise, Oracle, Tabular, bound, entropy, random_p, strings, times, two_holes
from prime import Code
from rates import alignments, jump_rates, phi, terms

LINEAR, INSTANT = schedule("linear"), schedule("instant")


def world(method, insertion="linear", seed=0):
    """A random distribution for a method: fixed length without insertion; up to 3 (plain) or 2 (digits) tokens with it."""
    V, ell, docs = {"mdm": (3, 1, strings(3, 2, 2)), "flexmdm": (2, 1, strings(2, 3)),
                    "prime": (4, 2, strings(4, 2, 2)), "flexprime": (4, 2, strings(4, 2))}[method]
    return Oracle(docs, random_p(len(docs), seed), Code(V, ell), schedule(insertion) if "flex" in method else INSTANT)


METHODS = ["mdm", "flexmdm", "prime", "flexprime"]


# ---- phi -----------------------------------------------------------------------------------------------------------------------------

def test_phi_is_the_divergence_of_poissons():
    value = lambda k, g: float(phi(torch.tensor(float(k), dtype=torch.float64), torch.tensor(g, dtype=torch.float64).log()))
    assert [round(value(*a), 3) for a in ((1, .5), (1, 2), (3, 1), (2, 2), (0, .7))] == [.193, .307, 1.296, 0, .7]
    poisson = lambda k: torch.distributions.Poisson(torch.tensor(k, dtype=torch.float64))
    assert value(2.5, 0.7) == pytest.approx(float(torch.distributions.kl_divergence(poisson(2.5), poisson(0.7))))
    assert value(0, 0.0) == 0 and value(1, 0.0) == math.inf                                    # g = 0 is right where nothing is missing
    log_g = torch.tensor([-math.inf, 0.3, -15.0, 15.0], requires_grad=True)
    k = torch.tensor([0.0, 2.0, 0.0, 5.0])
    phi(k, log_g).sum().backward()
    assert torch.allclose(log_g.grad, log_g.detach().exp() - k)


# ---- Prop. 2 -------------------------------------------------------------------------------------------------------------------------

def states_of(oracle, noise):
    """Every state once: keys (S,) sorted, y (S, L, ell), n (S,), and which one each row of `noise` is."""
    keys, inverse = oracle.key(noise.noised.y, noise.noised.n).unique(return_inverse=True)
    row = torch.zeros(len(keys), dtype=torch.int64).scatter(0, inverse, torch.arange(len(noise)))
    return keys, noise.noised.y[row], noise.noised.n[row], inverse


def generator(oracle, keys, y, n, reveal, insert):
    """The rates as a matrix Q (S, S), rows sum to 0. A rate out of the listed states must be 0."""
    S, L, ell = y.shape
    Q = torch.zeros(S, S, dtype=torch.float64)

    def add(y_new, n_new, flow):
        key = oracle.key(y_new, n_new)
        to = torch.searchsorted(keys, key).clamp_max(S - 1)
        assert (flow[keys[to] != key] <= 1e-12).all(), "a jump to a state that no document can become"
        Q.index_put_((torch.arange(S), to), torch.where(keys[to] == key, flow, 0), accumulate=True)

    for i, j, d in itertools.product(range(L), range(ell), range(oracle.code.b)):
        changed = y.clone()
        changed[:, i, j] = d
        assert (reveal[:, i, j, d][y[:, i, j] != oracle.code.mask] == 0).all(), "a revealed digit (or a pad) cannot change"
        add(changed, n, reveal[:, i, j, d])
    for j in range(L + 1):
        assert (insert[:, j][j > n] == 0).all()
        longer = torch.cat([y[:, :j], torch.full((S, 1, ell), oracle.code.mask), y[:, j:]], 1)
        add(longer, n + 1, insert[:, j])
    return Q - torch.diag(Q.sum(1))


@pytest.mark.parametrize("method, insertion, unmasking", [
    ("mdm", "instant", "linear"), ("mdm", "instant", "sin"), ("flexmdm", "linear", "linear"), ("flexmdm", "sin", "linear"),
    ("flexmdm", "polynomial", "cosine"), ("flexmdm", "geometric", "polynomial"), ("prime", "instant", "cosine"), ("flexprime", "linear", "linear"),
    ("flexprime", "cosine", "polynomial")])
def test_the_rates_satisfy_the_kolmogorov_equation(method, insertion, unmasking):
    """d/dt p_t = p_t Q_t for the marginals p_t of the interpolant and the rates of the exact posterior."""
    oracle = world(method, insertion)
    noise = Noise(oracle)
    alpha, beta = oracle.insertion, schedule(unmasking)
    keys, y, n, inverse = states_of(oracle, noise)
    marginal = lambda t: torch.zeros(len(keys), dtype=torch.float64).index_add(0, inverse, noise.weight(alpha, beta, t)[0])
    for at in (0.02, 0.3, 0.6, 0.95):
        t = torch.tensor([at], dtype=torch.float64)
        Q = generator(oracle, keys, y, n, *jump_rates(oracle.predict, oracle.code, y, n, t.expand(len(y)), alpha, beta))
        h = 1e-5
        change = (marginal(t + h) - marginal(t - h)) / (2 * h)
        assert float(marginal(t).sum()) == pytest.approx(1, abs=1e-12)
        assert (change - marginal(t) @ Q).abs().max() <= 1e-7


# ---- Prop. 1: the minimum ------------------------------------------------------------------------------------------------------------

OPTIONS = {"loose": dict(), "joint": dict(joint=True), "averaged": dict(averaged=True, entropy=False), "tight": dict(averaged=True),
           "averaged joint": dict(averaged=True, joint=True, entropy=False)}


def expected_loss(oracle, noise, predict, t, **options):
    """The integrand of the bound at time t (1,), expectation over all x1 and x_t."""
    unmask, insert = noise.terms(predict, t, **options)
    return (noise.weight(oracle.insertion, LINEAR, t) * (LINEAR.hazard(t) * unmask + oracle.insertion.hazard(t) * insert)).sum()


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("method", METHODS)
def test_the_exact_posterior_minimises_the_loss(method, options):
    oracle = world(method)
    noise = Noise(oracle)
    for at in (0.2, 0.7):
        t = torch.tensor([at], dtype=torch.float64)
        predict = Tabular(oracle, noise, oracle.predict)
        best = expected_loss(oracle, noise, predict, t, **OPTIONS[options])
        best.backward()
        assert predict.theta.grad.abs().max() <= 1e-12 and (predict.eta.grad is None or predict.eta.grad.abs().max() <= 1e-12)
        assert torch.isfinite(best) and torch.isfinite(predict.theta.grad).all()
        for size in (0.01, 0.1, 1.0):
            assert expected_loss(oracle, noise, predict.randomise(size), t, **OPTIONS[options]) > best + 1e-2 * size ** 2


# ---- bounds against the entropy ------------------------------------------------------------------------------------------------------

def value(oracle, name, unmasking="linear", predict=None, nodes=40):
    return float((oracle.p * bound(oracle, oracle.insertion, schedule(unmasking), name, predict, nodes)).sum())


@pytest.mark.parametrize("unmasking", ["linear", "cosine", "sin", "polynomial", "geometric"])
@pytest.mark.parametrize("method", ["mdm", "prime"])
def test_without_insertion_the_bound_is_the_entropy(method, unmasking):
    oracle = world(method)
    assert value(oracle, "loose", unmasking, nodes=80 if unmasking == "geometric" else 40) == pytest.approx(entropy(oracle.p), abs=1e-9)
    assert value(oracle, "tight", unmasking, nodes=10) == value(oracle, "loose", unmasking, nodes=10)    # there is one alignment only


@pytest.mark.parametrize("method, insertion, unmasking", [
    ("flexmdm", "linear", "linear"), ("flexmdm", "sin", "sin"), ("flexmdm", "cosine", "cosine"), ("flexmdm", "polynomial", "linear"),
    ("flexprime", "linear", "linear"), ("flexprime", "cosine", "cosine")])
def test_with_insertion_the_tight_bound_is_the_entropy_and_the_loose_one_is_not(method, insertion, unmasking):
    oracle = world(method, insertion)
    H = entropy(oracle.p)
    assert value(oracle, "tight", unmasking) == pytest.approx(H, abs=1e-8)
    assert value(oracle, "loose", unmasking) > H + 0.2


def test_loose_bounds_known_in_closed_form():
    point = lambda text, V=2: Oracle([text], torch.ones(1, dtype=torch.float64), Code(V), LINEAR)
    # 'ab': only the state "one mask" costs something, ln 2 for which token it is and ln 2 for the gaps; it lasts, weighted by the
    # hazards, integral of 2 * (1-t) * -(1-t) ln(1-t) / (1-t) = 1/2.
    assert value(point((0, 1)), "loose") == pytest.approx(math.log(2), abs=1e-9)
    # n equal tokens: when m are left the n - m others are missing anywhere, each gap expects (n-m)/(m+1); this state weighs 1/(n-m).
    for n in (1, 2, 3, 4):
        gaps = lambda kept: torch.tensor([z - a - 1 for a, z in zip((-1, *kept), (*kept, n))], dtype=torch.float64)
        divergence = lambda k: phi(k, (k.sum() / len(k)).log().expand(len(k))).sum()
        cost = lambda m: torch.stack([divergence(gaps(kept)) for kept in itertools.combinations(range(n), m)]).mean()
        assert value(point((0,) * n), "loose") == pytest.approx(float(sum(cost(m) / (n - m) for m in range(n))), abs=1e-9)
        assert value(point((0,) * n), "tight") == pytest.approx(0, abs=1e-12)                  # it is certain, so its entropy is 0


def test_the_loose_bound_of_flexmdm_by_another_route():
    """At the optimum the loose bound is  integral of lam_um E[entropy of the masked slots] + lam_ins E[sum k log k - g log g]. The second
    factor needs no loss function, only the posterior and the law of the gaps."""
    toy = {"": .05, "a": .1, "ab": .2, "ba": .05, "aab": .15, "bbb": .1, "abab": .25, "bbaa": .10}
    oracle = Oracle([tuple("ab".index(c) for c in s) for s in toy], torch.tensor([*toy.values()], dtype=torch.float64), Code(2), LINEAR)
    noise = Noise(oracle)
    y, n, k = noise.noised.y, noise.noised.n, noise.noised.gaps.double()
    masked = (y == oracle.code.mask).all(2)
    total = 0
    for t, dt in zip(*times(24)):
        log_f, log_g = oracle.predict(y, n, t.expand(len(n)), masked)
        f, g = log_f.exp(), log_g.exp()
        H = torch.zeros(len(n), dtype=torch.float64).index_add(0, masked.nonzero()[:, 0], -torch.special.xlogy(f, f).sum(1))
        divergence = torch.special.xlogy(k, k).sum(1) - torch.special.xlogy(g, g).nan_to_num(0).sum(1)
        total += dt / (1 - t) * (noise.weight(LINEAR, LINEAR, t[None])[0] * (H + divergence)).sum()
    loose = value(oracle, "loose", nodes=24)
    assert entropy(oracle.p) == pytest.approx(1.9434, abs=1e-4)
    assert loose == pytest.approx(float(total), abs=1e-9) and loose == pytest.approx(3.3865, abs=1e-4)


# ---- the objective of the MDM-Prime paper is no bound --------------------------------------------------------------------------------

def hidden_entropies(p, code):
    """h_1..h_ell: the entropy of a digit given the revealed ones, averaged over digits and over which k (it included) are hidden."""
    digits = code.encode(torch.arange(code.V)).tolist()

    def H(places):
        sums = {}
        for d, q in zip(digits, p.tolist()):
            sums[tuple(d[j] for j in places)] = sums.get(tuple(d[j] for j in places), 0) + q
        return -sum(q * math.log(q) for q in sums.values() if q)

    out = []
    for k in range(1, code.ell + 1):
        cases = [(S, j) for S in itertools.combinations(range(code.ell), k) for j in S]
        shown = lambda S: [i for i in range(code.ell) if i not in S]
        out.append(sum(H(sorted(shown(S) + [j])) - H(shown(S)) for S, j in cases) / len(cases))
    return out


@pytest.mark.parametrize("V, ell", [(4, 2), (7, 2), (16, 2), (8, 3), (7, 3), (16, 4)])
def test_the_papers_objective_reads_too_low(V, ell):
    """One token. True H = sum_k h_k; the paper's objective = sum_k mean(h_1..h_k); for ell = 2 the difference is I(digit 1; digit 2) / 2."""
    oracle = Oracle(strings(V, 1, 1), random_p(V, 3), Code(V, ell), INSTANT)
    H, h = entropy(oracle.p), hidden_entropies(oracle.p, oracle.code)
    assert value(oracle, "loose") == pytest.approx(H, abs=1e-12) and sum(h) == pytest.approx(H, abs=1e-12)
    paper = value(oracle, "paper")
    assert paper == pytest.approx(sum(sum(h[:k]) / k for k in range(1, ell + 1)), abs=1e-9) and paper < H - 1e-3
    if ell == 2:
        digit = lambda j: oracle.code.marginals(oracle.p[None])[0, j]
        mutual = entropy(digit(0)) + entropy(digit(1)) - H
        assert H - paper == pytest.approx(mutual / 2, abs=1e-9) and mutual > 1e-2


def test_extremes_of_the_papers_objective():
    # digits that are copies of one bit: H / ell
    for ell in (1, 2, 3, 4):
        V = 2 ** ell
        oracle = Oracle([(0,), (V - 1,)], torch.tensor([.5, .5], dtype=torch.float64), Code(V, ell), INSTANT)
        assert value(oracle, "paper") == pytest.approx(math.log(2) / ell, abs=1e-9)
        assert value(oracle, "loose") == pytest.approx(math.log(2), abs=1e-9)
    # independent digits: no difference
    a, b = random_p(3, 0), random_p(3, 1)
    oracle = Oracle(strings(9, 1, 1), (a[:, None] * b).flatten(), Code(9, 2), INSTANT)
    assert value(oracle, "loose") == pytest.approx(entropy(oracle.p), abs=1e-9)
    assert value(oracle, "paper") == pytest.approx(entropy(oracle.p), abs=1e-9)
    # two correlated tokens
    oracle = world("prime")
    assert value(oracle, "paper") < entropy(oracle.p) - 1e-2


# ---- any predict: the bounds are bounds ----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("method", METHODS)
def test_the_tight_bound_is_never_above_the_loose_one(method, seed):
    """For random answers and at each x_t, averaged over the alignments that x_t has with x1."""
    torch.manual_seed(seed)
    oracle = world(method)
    noise = Noise(oracle)
    predict = Tabular(oracle, noise).randomise(2.0)
    state = oracle.key(noise.noised.y, noise.noised.n)
    _, pair = torch.stack([noise.doc, state]).unique(dim=1, return_inverse=True)               # (x1, x_t)
    t = torch.tensor([0.5], dtype=torch.float64)
    with torch.no_grad():
        loose, tight = (noise.terms(predict, t, averaged=averaged) for averaged in (False, True))
    for sampled, averaged in zip(loose, tight):
        size = torch.zeros(int(pair.max()) + 1, dtype=torch.float64).index_add(0, pair, torch.ones(len(noise), dtype=torch.float64))
        mean = lambda x: torch.zeros_like(size).index_add(0, pair, x[0]) / size
        assert (mean(averaged) <= mean(sampled) + 1e-12).all()
        assert (averaged[0] - mean(averaged)[pair]).abs().max() <= 1e-12                        # the average does not depend on the one drawn
        assert (averaged[0] >= -1e-12).all()
    if "flex" in method:
        assert float((loose[1] - tight[1]).sum()) > 0.1 and float((loose[0] - tight[0]).sum()) > 0.1


@pytest.mark.parametrize("method", METHODS)
def test_both_bounds_exceed_the_models_own_likelihood(method):
    """-log p_model(x1) <= tight(x1) <= loose(x1) for every document, where p_model is the law at t = 1 of the jump process with random
    answers. In tau = -log(1 - t) the linear hazards are 1, so p_model is the solution of dp/dtau = p (A + exp(-tau) B): Runge-Kutta."""
    docs, code = {"mdm": (strings(3, 2, 2), Code(3)), "flexmdm": (strings(2, 2), Code(2)), "prime": (strings(4, 1, 1), Code(4, 2)),
                  "flexprime": (strings(4, 1), Code(4, 2))}[method]
    oracle = Oracle(docs, random_p(len(docs), 0), code, LINEAR if "flex" in method else INSTANT)
    noise = Noise(oracle)
    answers = Tabular(oracle, noise).randomise(1.0)

    def predict(y, n, t, at):                                                                  # g ~ (1 - t), and 0 on a full canvas
        with torch.no_grad():
            logits, log_g = answers(y, n, t, at)
        return logits, None if log_g is None else log_g + torch.log1p(-t)[:, None] + torch.where(n < oracle.L, 0, -torch.inf)[:, None]

    keys, y, n, _ = states_of(oracle, noise)
    zero = torch.zeros(len(y), dtype=torch.float64)
    reveal, insert = jump_rates(predict, code, y, n, zero, oracle.insertion, LINEAR)
    A = generator(oracle, keys, y, n, reveal, torch.zeros_like(insert))
    B = generator(oracle, keys, y, n, torch.zeros_like(reveal), insert)
    p = torch.zeros(len(y), dtype=torch.float64)
    n0 = oracle.L if oracle.insertion is INSTANT else 0
    p[((n == n0) & ((y == code.mask) | (y == code.pad)).flatten(1).all(1)).nonzero()] = 1
    steps, end = 3000, 30.0
    h = end / steps
    slope = lambda p, tau: p @ (A + math.exp(-tau) * B)
    for i in range(steps):
        k1 = slope(p, i * h)
        k2 = slope(p + h / 2 * k1, (i + .5) * h)
        k3 = slope(p + h / 2 * k2, (i + .5) * h)
        p = p + h / 6 * (k1 + 2 * k2 + 2 * k3 + slope(p + h * k3, (i + 1) * h))
    final = torch.searchsorted(keys, oracle.key(rates.digits(code, oracle.x1, oracle.n1), oracle.n1))
    nll = -p[final].log()
    assert float(p[final].sum()) == pytest.approx(1, abs=1e-8)
    tight, loose = (bound(oracle, oracle.insertion, LINEAR, name, predict) for name in ("tight", "loose"))
    assert (nll <= tight + 1e-6).all() and (tight <= loose + 1e-9).all()
    assert float((tight - nll).max()) > 1e-3                                                    # a bound, not an identity
    assert float((oracle.p * tight).sum()) >= entropy(oracle.p)


# ---- the forward-backward pass -------------------------------------------------------------------------------------------------------

def brute_force(y, n, d1, n1, kept, frozen, code):
    """weight and nbar of one document by listing all embeddings."""
    L, fits = len(d1), []
    for s in itertools.combinations(range(int(n1)), int(n)):
        agree = all(int(a) in (int(b), code.mask) for i, k in enumerate(s) for a, b in zip(y[i], d1[k]))
        if agree and all(s[i] == kept[i] if frozen[kept[i]] else not frozen[s[i]] for i in range(int(n))):
            fits.append(s)
    weight, nbar = torch.zeros(L, L, dtype=torch.float64), torch.zeros(L + 1, dtype=torch.float64)
    for s in fits:
        for i, k in enumerate(s):
            weight[i, k] += 1 / len(fits)
        for j, (a, z) in enumerate(zip((-1, *s), (*s, int(n1)))):
            nbar[j] += (z - a - 1) / len(fits)
    return weight, nbar, len(fits)


@pytest.mark.parametrize("V, ell", [(2, 1), (5, 1), (4, 2), (6, 2), (8, 3)])
@pytest.mark.parametrize("given", [0.0, 0.2])
def test_alignments_equal_brute_force(V, ell, given):
    """Repeated tokens (V = 2 over 7 places), partly masked digits, x_t empty, complete, and documents of length 0."""
    code, B, L = Code(V, ell), 60, 7
    x1, n1 = torch.randint(V, (B, L)), torch.randint(0, L + 1, (B,))
    n1[:2] = torch.tensor([0, L])
    t = torch.rand(B)
    t[2:4] = torch.tensor([0.0, 1.0])
    frozen = torch.rand(B, L) < given
    d1 = rates.digits(code, x1, n1)
    noised = interpolate(d1, n1, t, LINEAR, schedule("cosine"), frozen if given else None, mask=code.mask, pad=code.pad)
    weight, nbar = alignments(noised, d1, n1, code, frozen if given else None)
    several, known = 0, (frozen if given else torch.zeros_like(frozen)).tolist()
    for b in range(B):
        w, k, count = brute_force(noised.y[b], noised.n[b], d1[b], n1[b], noised.kept[b].tolist(), known[b], code)
        several += count > 3
        assert (weight[b] - w).abs().max() <= 1e-12 and (nbar[b] - k).abs().max() <= 1e-12
    assert several > 4
    assert (noised.n == 0).any() and (noised.n == n1).any()


def test_alignments_of_long_documents_do_not_overflow():
    """1,200 equal tokens of which 600 are left: 10^360 embeddings. By symmetry each of the 601 gaps has 600 / 601 of the missing."""
    code, L = Code(2), 1200
    y = torch.where(torch.arange(L) < 600, torch.where(torch.arange(L) % 3 > 0, code.mask, 0), code.pad)[None, :, None]
    noised = Noised(y, torch.tensor([600]), torch.zeros(1, L, dtype=torch.int64), torch.zeros(1, L + 1, dtype=torch.int64))
    weight, nbar = alignments(noised, torch.zeros(1, L, 1, dtype=torch.int64), torch.tensor([L]), code)
    assert (nbar[0, :601] - 600 / 601).abs().max() <= 1e-8 and (nbar[0, 601:] == 0).all()
    assert (weight[0, :600].sum(1) - 1).abs().max() <= 1e-10 and (weight[0, 600:] == 0).all()


def test_padding_and_neighbours_do_not_change_the_alignments():
    code, n1 = Code(3), torch.tensor([5, 3, 1])
    d1 = rates.digits(code, torch.randint(3, (3, 5)), n1)
    noised = interpolate(d1, n1, torch.tensor([.5, .7, .5]), LINEAR, LINEAR, mask=code.mask, pad=code.pad)
    weight, nbar = alignments(noised, d1, n1, code)
    wide = Noised(F.pad(noised.y, (0, 0, 0, 4), value=code.pad), noised.n, F.pad(noised.kept, (0, 4)), F.pad(noised.gaps, (0, 4)))
    weight2, nbar2 = alignments(wide, F.pad(d1, (0, 0, 0, 4), value=code.pad), n1, code)
    assert torch.equal(weight2[:, :5, :5], weight) and torch.equal(nbar2[:, :6], nbar) and weight2.sum() == weight.sum()


# ---- Rao-Blackwell -------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("method, joint", [("flexmdm", False), ("flexprime", False), ("flexprime", True)])
def test_averaged_targets_have_the_same_expected_gradient_and_less_variance(method, joint):
    oracle = world(method)
    noise, t = Noise(oracle), torch.tensor([0.6], dtype=torch.float64)
    p = noise.weight(LINEAR, LINEAR, t)[0]
    answers = Tabular(oracle, noise).randomise()
    state = torch.searchsorted(answers.keys, oracle.key(noise.noised.y, noise.noised.n))
    mean, variance = {}, {}
    for averaged in (False, True):
        theta, eta = (x[state].detach().requires_grad_() for x in (answers.theta, answers.eta))  # a copy for each row: its own gradient
        unmask, insert = noise.terms(lambda y, n, t, at: (theta[at], eta), t, joint=joint, averaged=averaged, entropy=False)
        gradient = torch.cat([g.flatten(1) for g in torch.autograd.grad((unmask + insert).sum(), [theta, eta])], 1)      # (R, parameters of a state)
        mean[averaged] = torch.zeros(len(answers.keys), gradient.shape[1], dtype=torch.float64).index_add(0, state, p[:, None] * gradient)
        variance[averaged] = float((p * (gradient ** 2).sum(1)).sum() - (mean[averaged] ** 2).sum())
    assert (mean[True] - mean[False]).abs().max() <= 1e-14 and mean[True].abs().max() > 1e-2
    assert variance[True] < variance[False] - 0.1


# ---- special cases are the plain method, to the bit ----------------------------------------------------------------------------------

def batch(V=5, B=16, L=9):
    n1 = torch.randint(0, L + 1, (B,))
    return torch.randint(V, (B, L)), n1, torch.rand(B)


def network(code, gaps=True, garbage=math.nan, seed=0):
    """A fixed random function of the state: float32 answers, garbage past n."""
    weight = torch.randn(code.b + 2, code.V, generator=torch.Generator().manual_seed(seed))

    def predict(y, n, t, at):
        inside = (torch.arange(y.shape[1]) < n[:, None])[:, :, None, None]
        h = torch.where(inside, weight[y], 0).sum(2)                                           # (B, L, V)
        z = (h + 0.3 * h.sum(1, keepdim=True) + t[:, None, None].float()).sin() * 2
        log_g = F.pad(z[:, :, 0], (0, 1), value=0.5)
        return z[at], torch.where(torch.arange(y.shape[1] + 1) <= n[:, None], log_g, garbage) if gaps else None
    return predict


@pytest.mark.parametrize("insertion", ["instant", "linear"])
@pytest.mark.parametrize("name", ["loose", "paper"])
def test_with_one_digit_the_loss_is_the_plain_one_bit_for_bit(insertion, name):
    """Prop. 1 written out for tokens: the same noise from the same seed, one cross-entropy, one phi."""
    code, (x1, n1, t) = Code(5), batch()
    alpha, beta = schedule(insertion), schedule("cosine")
    predict = network(code, gaps=insertion != "instant")
    torch.manual_seed(7)
    got = rates.nll(predict, code, x1, n1, t, alpha, beta, name)

    torch.manual_seed(7)
    B, L = x1.shape
    real = torch.arange(L) < n1[:, None]
    T1 = alpha.inverse(torch.rand(B, L))
    present = real & (T1 <= t[:, None])
    hidden = torch.rand(B, L) < 1 - beta.step(torch.minimum(T1, t[:, None]), t[:, None])
    expected = []
    for b in range(B):
        kept = present[b].nonzero()[:, 0]
        y = torch.full((1, L, 1), 6)
        y[0, :len(kept), 0] = torch.where(hidden[b, kept], 5, x1[b, kept])
        masked = y[:, :, 0] == 5
        logits, log_g = predict(y, torch.tensor([len(kept)]), t[b:b + 1], masked)
        loss = torch.zeros(1)
        for z, k in zip(logits, kept[hidden[b, kept]]):
            loss = loss + F.cross_entropy(z[None], x1[b, k][None], reduction="none")
        gaps = torch.tensor([z - a - 1.0 for a, z in zip([-1, *kept.tolist()], [*kept.tolist(), int(n1[b])])])
        divergence = torch.zeros(1) if log_g is None else torch.cat([phi(gaps, log_g[0, :len(gaps)]), torch.zeros(L + 1 - len(gaps))]).sum()
        expected.append(beta.hazard(t[b]) * loss + alpha.hazard(t[b]) * divergence)
    assert torch.equal(got, torch.cat(expected))


@pytest.mark.parametrize("averaged", [False, True])
def test_an_identity_permutation_changes_nothing(averaged):
    (x1, n1, t), plain, same = batch(), Code(5), Code(5, 1, torch.arange(5))
    losses = []
    for code in (plain, same):
        torch.manual_seed(3)
        losses.append(rates.nll(network(code), code, x1, n1, t, LINEAR, LINEAR, "tight" if averaged else "loose"))
    assert torch.allclose(*losses, rtol=1e-5) if averaged else torch.equal(*losses)


@pytest.mark.parametrize("insertion", ["instant", "linear"])
def test_grouped_noise_is_the_plain_method(insertion):
    """All digits of a token share one time: the same losses, to the bit, as with tokens of one digit."""
    (x1, n1, t), plain, digits = batch(), Code(5), Code(5, 2)
    predict = network(plain, gaps=insertion != "instant")

    def translated(y, n, t, at):                                                               # a state of digits, read as one of tokens
        one = y[:, :, :1]
        hidden, clean = one == digits.mask, (y < digits.b).all(2, keepdim=True)
        return predict(torch.where(hidden, plain.mask, torch.where(clean, digits.decode(torch.where(clean, y, 0))[:, :, None], plain.pad)), n, t, at)

    for name in ("loose", "tight"):
        torch.manual_seed(5)
        tokens = rates.nll(predict, plain, x1, n1, t, schedule(insertion), LINEAR, name)
        torch.manual_seed(5)
        grouped = rates.nll(translated, digits, x1, n1, t, schedule(insertion), LINEAR, name, grouped=True)
        assert torch.equal(tokens, grouped) if name == "loose" else torch.allclose(tokens, grouped, rtol=1e-6)


def test_grouped_noise_with_the_exact_posterior_gives_the_entropy():
    oracle = world("prime")
    noise = Noise(oracle)
    whole = ((noise.noised.y == oracle.code.mask).sum(2) % 2 == 0).all(1)                      # the rows without half-masked tokens
    t, dt = times(40)
    unmask, _ = noise.terms(oracle.predict, t, joint=True)
    masked = (noise.noised.y == oracle.code.mask).all(2).sum(1)
    p = oracle.p[noise.doc] * (1 - t[:, None]) ** masked * t[:, None] ** (2 - masked)          # one coin for each token
    assert float((dt / (1 - t) * (p * unmask * whole).sum(1)).sum()) == pytest.approx(entropy(oracle.p), abs=1e-9)


# ---- given tokens (prompts, infilling) -----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("ell", [1, 2])
def test_with_given_tokens_the_tight_bound_is_the_conditional_entropy(ell):
    """x1 = 3 w 0 w' 3 3 where only the holes w, w' over {1, 2} are noised: the bound is the entropy of the holes."""
    fill = strings(2, 2)
    docs, frozen = [], []
    for w, v in itertools.product(fill, fill[:3]):
        docs.append((3, *[c + 1 for c in w], 0, *[c + 1 for c in v], 3, 3))
        frozen.append((True, *[False] * len(w), True, *[False] * len(v), True, True))
    oracle = Oracle(docs, random_p(len(docs), 2), Code(4, ell), LINEAR, frozen)
    nodes = 40 if ell == 1 else 24
    assert value(oracle, "tight", nodes=nodes) == pytest.approx(entropy(oracle.p), abs=1e-9 if ell == 1 else 1e-6)
    assert value(oracle, "loose", nodes=nodes) > entropy(oracle.p) + 0.1


@pytest.mark.parametrize("ell", [1, 2])
def test_with_holes_that_begin_as_a_mask_the_tight_bound_is_the_conditional_entropy(ell):
    """By draws, at 40 times: within 4 standard errors for the oracle that knows about anchors, further off for one that does not."""
    oracle, p = two_holes(Code(4, ell), 2)
    naive = Oracle(oracle.docs, p, oracle.code, LINEAR, oracle.frozen)
    t, dt = times(40)
    pick = torch.multinomial(p, 800, replacement=True).repeat(40)
    x1, n1, frozen = (x[pick] for x in (oracle.x1, oracle.n1, oracle.fixed))
    t, dt = t.repeat_interleave(800), dt.repeat_interleave(800) * 40
    anchors = anchors_of(frozen, n1)

    def draws(oracle):
        torch.manual_seed(0)                                           # the same noise for both
        return (rates.nll(oracle.predict, oracle.code, x1, n1, t, LINEAR, LINEAR, "tight", frozen=frozen, anchors=anchors) * dt).view(40, 800).mean(0)

    got, other = draws(oracle), draws(naive)
    error = float(got.std()) / 800 ** 0.5
    assert error < 0.1 and abs(float(got.mean()) - entropy(p)) < 4 * error
    assert float((other - got).mean()) > 3 * float((other - got).std()) / 800 ** 0.5


# ---- rates.nll draws what has been enumerated ----------------------------------------------------------------------------------------

@pytest.mark.parametrize("method, name", [("mdm", "loose"), ("flexmdm", "loose"), ("flexmdm", "tight"), ("prime", "loose"), ("prime", "paper"),
                                          ("flexprime", "loose"), ("flexprime", "tight")])
def test_nll_agrees_with_the_enumeration(method, name):
    """20,000 documents, times and noises drawn by nll itself; within 4 standard errors. t = 1 - (1-u)^2 with weight 2 (1-u), because
    under uniform t the second moment of 1 / (1 - t) is infinite."""
    oracle, M = world(method), 20_000
    u = torch.rand(M, dtype=torch.float64)
    pick = torch.multinomial(oracle.p, M, replacement=True)
    got = rates.nll(oracle.predict, oracle.code, oracle.x1[pick], oracle.n1[pick], 1 - (1 - u) ** 2, oracle.insertion, LINEAR, name) * 2 * (1 - u)
    error = float(got.std()) / M ** 0.5
    assert error < 0.05 and abs(float(got.mean()) - value(oracle, name, nodes=24)) < 4 * error


@pytest.mark.parametrize("name", BOUNDS)
@pytest.mark.parametrize("grouped", [False, True])
def test_nll_is_its_terms_times_their_hazards(name, grouped):
    """The three bounds are three ways to ask terms(); grouped noise needs the joint, which is then the digit's own bound."""
    code, (x1, n1, t) = Code(5, 2), batch()
    alpha, beta = schedule("sin"), schedule("polynomial")
    torch.manual_seed(9)
    got = rates.nll(network(code), code, x1, n1, t, alpha, beta, name, grouped=grouped)
    torch.manual_seed(9)
    d1 = rates.digits(code, x1, n1)
    noised = interpolate(d1, n1, t, alpha, beta, mask=code.mask, pad=code.pad, grouped=grouped)
    unmask, insert = terms(network(code), code, d1, n1, noised, t, **{**BOUNDS[name], **(dict(joint=True) if grouped else {})})
    assert torch.equal(got, beta.hazard(t) * unmask + alpha.hazard(t) * insert) and (unmask > 0).any() and (insert > 0).any()


def test_nll_is_finite_at_every_time():
    """float32, a network whose answers are extreme, documents of length 0 and 1, times up to the last float before 1."""
    for code, insertion in ((Code(5), "linear"), (Code(5), "sin"), (Code(6, 2), "linear"), (Code(6, 2), "instant"), (Code(5), "instant")):
        for name in ("loose", "tight", "paper"):
            for size in (0.0, 100.0):
                x1, n1, _ = batch(B=40)
                x1[n1[:, None] <= torch.arange(9)] = 99                                        # whatever stands beyond n1 is not looked at
                n1[:2] = torch.tensor([0, 1])
                x1 = x1.clamp_max(code.V - 1) if size else torch.where(torch.arange(9) < n1[:, None], x1.clamp_max(4), 99)
                t = torch.rand(40)
                t[:5] = torch.tensor([0.0, 2.0 ** -24, 1 - 2.0 ** -24, 1 - 2.0 ** -20, 0.5])
                scale = torch.tensor(size, requires_grad=True)
                base = network(code, insertion != "instant", garbage=1e6)

                def predict(*a):
                    z, g = base(*a)
                    return z * scale, None if g is None else torch.where(g < 1e6, (g * scale).clamp(-15, 15), g * (1 + scale))
                loss = rates.nll(predict, code, x1, n1, t, schedule(insertion), LINEAR, name)
                assert torch.isfinite(loss).all() and (loss >= (0 if name != "tight" else -1e-2)).all()
                assert (loss[n1 == 0] == 0).all() or insertion != "instant"
                loss.sum().backward()
                assert scale.grad is None or torch.isfinite(scale.grad)


# ---- deferred logits, autoregression -------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("options", [dict(), dict(joint=True), dict(averaged=True), dict(averaged=True, joint=True)])
@pytest.mark.parametrize("ell", [1, 2])
def test_deferred_logits_give_the_same_loss_and_gradient(ell, options):
    code, (x1, n1, t) = Code(6, ell), batch(V=6)
    d1 = rates.digits(code, x1, n1)
    noised = interpolate(d1, n1, t, LINEAR, LINEAR, mask=code.mask, pad=code.pad)
    results = []
    for rows in (None, 1, 7, 10 ** 6):
        head = torch.nn.Linear(code.V, code.V, dtype=torch.float64)
        with torch.no_grad():
            head.weight.copy_(torch.eye(code.V) * 0.7 + 0.1)
            head.bias.fill_(0.2)

        def predict(y, n, t, at):
            logits, log_g = network(code)(y, n, t, at)
            h = logits.double()
            return (head(h) if rows is None else rates.Deferred(h, head, rows)), log_g
        out = terms(predict, code, d1, n1, noised, t, **options)
        out.unmask.sum().backward()
        results.append((out.unmask.detach(), out.insert, head.weight.grad))
    for other in results[1:]:
        assert all(torch.allclose(a, b, rtol=1e-12) for a, b in zip(other, results[0]))
    empty = Noised(torch.full_like(noised.y, code.pad), torch.zeros_like(n1), torch.zeros_like(noised.kept), torch.zeros_like(noised.gaps))
    assert (terms(predict, code, d1, n1, empty, t, **options).unmask == 0).all()               # nothing is asked of the head


def test_next_token_nll_is_the_exact_likelihood():
    end = 2
    docs = [x + (end,) for x in strings(2, 3)]
    p = random_p(len(docs), 0)

    def predict(y, n, t, at):
        out = []
        for b, i in at.nonzero().tolist():
            before = tuple(y[b, :i, 0].tolist())
            q = torch.tensor([sum(float(w) for x, w in zip(docs, p) if x[:i + 1] == (*before, v)) for v in range(3)], dtype=torch.float64)
            out.append((q / q.sum()).log())
        return torch.stack(out), None
    n1 = torch.tensor([len(x) for x in docs])
    x1 = torch.tensor([list(x) + [1] * (4 - len(x)) for x in docs])
    assert torch.allclose(rates.next_token_nll(predict, Code(3), x1, n1).double(), -p.log(), atol=1e-6)


def test_an_unknown_bound_is_refused():
    x1, n1, t = batch()
    with pytest.raises(ValueError, match="loose, tight, paper"):
        rates.nll(network(Code(5)), Code(5), x1, n1, t, LINEAR, LINEAR, "valid")
