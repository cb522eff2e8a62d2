"""prime.py: the digit code against arithmetic, carry-over and marginals against brute force, idle
steps against the paper's table."""
import itertools
import math

import pytest
import torch

import prime
from interpolant import schedule
from prime import Code, gray, idle_steps

PAPER = [(50257, 1, 50257), (50257, 2, 225), (50257, 3, 37), (50257, 4, 15), (50257, 6, 7),
         (50257, 8, 4), (50257, 16, 2), (256, 1, 256), (256, 2, 16), (256, 3, 7), (256, 4, 4),
         (256, 8, 2), (32000, 15, 2), (512, 2, 23), (512, 3, 8), (512, 9, 2), (126464, 4, 19)]


@pytest.mark.parametrize("V, ell, b", PAPER)
def test_every_id_has_its_own_digits(V, ell, b):
    code = Code(V, ell)
    assert (code.b, code.mask, code.pad) == (b, b, b + 1)
    x = torch.arange(V)
    d = code.encode(x)
    assert d.shape == (V, ell) and (d >= 0).all() and (d < b).all()
    assert torch.equal(code.decode(d), x)
    powers = torch.tensor([b ** (ell - 1 - j) for j in range(ell)])     # most significant first
    assert torch.equal((d * powers).sum(1), x)
    assert b ** ell >= V > (b - 1) ** ell                               # no smaller base would do
    any_shape = x.view(1, 1, V)
    assert torch.equal(code.decode(code.encode(any_shape)), any_shape)


def test_the_base_is_found_by_integers():
    assert Code(32768, 5).b == 8
    assert math.ceil(32768 ** (1 / 5)) == 9             # floating point is wrong here
    for b, ell in itertools.product(range(2, 19), range(2, 6)):
        assert prime.base(b ** ell, ell) == b and prime.base(b ** ell + 1, ell) == b + 1


def test_worked_number():
    assert Code(50257, 4).encode(torch.tensor(50256)).tolist() == [14, 13, 5, 6]


def test_digits_that_spell_no_token():
    code = Code(6, 2)                                       # base 3: 9 numbers, 3 of them unused
    every = torch.tensor(list(itertools.product(range(3), repeat=2)))
    assert code.decode(every).tolist() == [0, 1, 2, 3, 4, 5, -1, -1, -1]


CODES = [Code(5, 1), Code(7, 2), Code(9, 2), Code(7, 3), Code(16, 4), Code(7, 2, torch.randperm(7)),
         Code(7, 2, torch.randperm(9)), Code(5, 1, torch.tensor([3, 0, 4, 1, 2])),
         Code(13, 3, torch.randperm(27)), Code(30, 5)]


@pytest.mark.parametrize("code", CODES)
def test_carry_over_by_brute_force(code):
    states = torch.tensor(list(itertools.product(range(code.b + 1), repeat=code.ell)))
    spelled = [tuple(d) for d in code.encode(torch.arange(code.V)).tolist()]
    assert len(set(spelled)) == code.V
    assert code.decode(torch.tensor(spelled)).tolist() == list(range(code.V))
    ok = code.agrees(states)
    for y, row in zip(states.tolist(), ok.tolist()):
        assert row == [all(a in (d, code.mask) for a, d in zip(y, digits)) for digits in spelled]
    assert ok[(states == code.mask).all(1)].all()           # nothing revealed: every token
    alone = code.agrees(code.encode(torch.arange(code.V)))
    assert torch.equal(alone, torch.eye(code.V, dtype=torch.bool))
    assert code.agrees(states[:0]).shape == (0, code.V)


@pytest.mark.parametrize("code", CODES)
def test_marginals_by_brute_force(code):
    p = torch.rand(10, code.V, dtype=torch.float64).softmax(1)
    marginals = code.log_marginals(p.log()).exp()
    assert marginals.shape == (10, code.ell, code.b) and marginals.dtype == torch.float64
    digits = code.encode(torch.arange(code.V))
    for j, d in itertools.product(range(code.ell), range(code.b)):
        expected = p[:, digits[:, j] == d].sum(1)
        assert torch.allclose(marginals[:, j, d], expected, atol=1e-15)
    assert code.log_marginals(p[:0]).shape == (0, code.ell, code.b)


@pytest.mark.parametrize("code", CODES)
def test_what_cannot_be_has_no_probability_and_a_finite_gradient(code):
    """One token only is possible: the digits of the others have probability 0."""
    log_p = torch.full((1, code.V), -torch.inf)
    log_p[0, 3] = 0.0
    log_p.requires_grad_()
    log_f = code.log_marginals(log_p)
    digits = code.encode(torch.tensor([3]))[:, :, None]
    one_hot = torch.zeros(1, code.ell, code.b).scatter(2, digits, 1)
    assert torch.equal(log_f.exp(), one_hot)
    (log_f * one_hot).sum().backward()
    assert torch.isfinite(log_p.grad).all() and float(log_p.grad[0, 3]) == code.ell


@pytest.mark.parametrize("far", [-100.0, -200.0, -1000.0])
def test_marginals_have_no_floor(far):
    """Digits of tokens that are all unlikely, in float32, where exp(-200) is 0: log(e^far +
    e^far)."""
    code = Code(9, 2)
    log_p = torch.full((1, 9), far)
    log_p[0, 8] = 0.0                                       # 22; so digit 0 has the tokens 0, 1, 2
    expected = far + math.log(3)
    log_f = code.log_marginals(log_p)
    assert float(log_f[0, 0, 0]) == pytest.approx(expected, rel=1e-6)
    assert float(log_f[0, 1, 1]) == pytest.approx(expected, rel=1e-6)
    assert float(log_f[0, 0, 2]) == pytest.approx(0, abs=1e-6)


def test_agreeing_tokens_of_gpt2():
    """How many tokens can stand in a slot with k of 4 digits masked: 15^k, less what the 368 unused
    numbers take."""
    code = Code(50257, 4)
    for k in range(5):
        y = code.encode(torch.randint(50257, (100,)))
        y.scatter_(1, torch.rand(100, 4).argsort(1)[:, :k], code.mask)
        size = code.agrees(y).sum(1)
        assert int(size.max()) == min(15 ** k, 50257) and int(size.min()) >= 15 ** k - 368


def test_marginals_keep_their_precision_under_autocast():
    log_p = torch.rand(8, 50).log_softmax(1)
    with torch.autocast("cpu", torch.bfloat16):
        log_f = Code(50, 2).log_marginals(log_p)
    assert log_f.dtype == torch.float32
    assert torch.allclose(log_f.exp().sum(2), torch.ones(8, 2), atol=1e-6)


@pytest.mark.parametrize("V, ell", [(50257, 4), (256, 8), (50257, 1)])
def test_shuffled_ids(V, ell):
    permutation = prime.shuffle(V, ell, seed=1)
    code, x = Code(V, ell, permutation), torch.arange(V)
    assert torch.equal(code.decode(code.encode(x)), x)
    assert (code.encode(x) != Code(V, ell).encode(x)).any(1).float().mean() > 0.98
    assert torch.equal(permutation, prime.shuffle(V, ell, seed=1))
    assert not torch.equal(permutation, prime.shuffle(V, ell, seed=2))


def test_a_share_of_the_ids_is_shuffled():
    half = prime.shuffle(256, 8, ratio=0.5)
    assert torch.equal(half[128:], torch.arange(128, 256))
    assert not torch.equal(half[:128], torch.arange(128))
    assert torch.equal(half[:128].sort().values, torch.arange(128))
    assert torch.equal(prime.shuffle(256, 8, ratio=0.0), torch.arange(256))
    with pytest.raises(ValueError, match="share"):
        prime.shuffle(256, 8, ratio=1.5)


def test_a_stored_permutation_gives_the_same_code():
    """A permutation of 0..b^ell-1 spreads V ids over more numbers than V; the code keeps all of it,
    and is a copy."""
    permutation = torch.tensor([8, 3, 1, 5, 7, 0, 2, 4, 6])
    code, x = Code(7, 2, permutation), torch.arange(7)
    assert code.encode(x).tolist() == [[2, 2], [1, 0], [0, 1], [1, 2], [2, 1], [0, 0], [0, 2]]
    assert torch.equal(Code(7, 2, code.permutation).encode(x), code.encode(x))
    permutation.zero_()
    assert int(code.permutation[0]) == 8


@pytest.mark.parametrize("b, ell", [(2, 1), (2, 4), (3, 2), (3, 3), (4, 4), (15, 2)])
def test_neighbours_in_a_gray_code_differ_in_one_digit_by_one(b, ell):
    permutation = gray(b, ell)
    code = Code(b ** ell, ell, permutation)                 # refuses what is no permutation
    change = code.encode(torch.arange(b ** ell)).diff(dim=0).abs()
    assert (change.sum(1) == 1).all()
    if (b, ell) == (3, 2):
        spelled = ["".join(map(str, d)) for d in code.encode(torch.arange(9)).tolist()]
        assert " ".join(spelled) == "00 01 02 12 11 10 20 21 22"


@pytest.mark.parametrize("V, ell, permutation", [
    (1, 1, None), (0, 1, None), (256, 0, None), (256, -1, None), (256, 9, None), (50257, 17, None),
    (2, 2, None), (256, 10 ** 6, None), (6, 2, [0, 1, 2]), (6, 2, [0, 1, 2, 3, 4, 4]),
    (6, 2, [1, 2, 3, 4, 5, 6]), (6, 2, [[0, 1, 2, 3, 4, 5]]), (4, 1, [0, 1, 2, 3, 4])])
def test_what_is_no_code_is_refused(V, ell, permutation):
    with pytest.raises(ValueError):
        Code(V, ell, permutation)


def test_idle_steps_of_the_paper():
    """Prop. A.1, L = 1024, linear: the share of idle steps in % for ell = 1, 2, 3, 4, 6, 8."""
    table = {512: [13.51, 1.82, .25, .03, .00, .00], 1024: [36.77, 13.52, 4.97, 1.83, .25, .03],
             2048: [60.65, 36.78, 22.30, 13.53, 4.98, 1.83]}
    for T, row in table.items():
        shares = [idle_steps(schedule("linear"), T, 1024, ell) / T for ell in (1, 2, 3, 4, 6, 8)]
        assert [round(100 * share, 2) for share in shares] == row


@pytest.mark.parametrize("name", ["linear", "cosine", "polynomial", "geometric"])
def test_idle_steps_by_drawing(name):
    """L * ell digits choose the steps in which they are revealed; a step that none has chosen is
    idle."""
    T, digits, rounds = 16, 12, 20_000
    times = schedule(name).inverse(torch.rand(rounds, digits, dtype=torch.float64))
    chosen = (times * T).long().clamp_max(T - 1)
    idle = T - torch.zeros(rounds, T).scatter(1, chosen, 1).sum(1)
    expected = idle_steps(schedule(name), T, 3, 4)
    assert abs(float(idle.mean()) - expected) < 4 * float(idle.std()) / rounds ** 0.5
    assert idle_steps(schedule("instant"), 8, 3, 4) == 8    # nothing left to reveal
