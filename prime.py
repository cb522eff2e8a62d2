"""The digit code of MDM-Prime (arXiv 2505.18495): a token is `ell` digits, masked and revealed one
by one.

A token id v in 0 .. V-1 is written in the smallest base b with b^ell >= V, most significant digit
first. The symbol b stands for a masked digit, b + 1 for padding. ell = 1 is the plain token: its
one digit is its id. GPT-2 (V = 50257) with ell = 4 has b = 15:

    >>> Code(50257, 4).encode(torch.tensor(50256))
    tensor([14, 13,  5,  6])                        # 14*15^3 + 13*15^2 + 5*15 + 6 = 50256

Once some digits of a slot are revealed, only tokens that agree with them can stand there (the
paper's carry-over): `agrees`. The likelihood bound needs the distribution of each digit:
`log_marginals`.

The paper's figures: python figures/prime.py
"""
import numpy as np
import torch
import torch.nn.functional as F


class Code:
    """Token <-> digits. V tokens, ell digits of base b; `mask` = b, `pad` = b + 1.

    permutation: the number that each id is written as, a permutation of 0 .. V-1, or of 0 .. b^ell
    - 1 to use all numbers (index shuffling, arXiv 2603.16077; a Gray code for images). None: the id
    itself. Raises ValueError for an ell or a permutation that makes no code."""

    def __init__(self, V, ell=1, permutation=None):
        V, ell = int(V), int(ell)
        if V < 2:
            raise ValueError(f"a vocabulary has at least 2 tokens, not {V}")
        if ell < 1:
            raise ValueError(f"ell is the number of digits per token, at least 1, not {ell}")
        if ell > 1 and 2 ** (ell - 1) >= V:
            bits = (V - 1).bit_length()
            raise ValueError(f"ell = {ell} is more than the {bits} bits of {V} tokens: lower ell")
        self.V, self.ell, self.b = V, ell, base(V, ell)
        self.mask, self.pad = self.b, self.b + 1
        self.permutation = None
        if permutation is not None:
            self.permutation = check_permutation(permutation, V, self.b ** ell)
        number = torch.arange(V) if permutation is None else self.permutation[:V]         # (V,)
        self.powers = [self.b ** (ell - 1 - j) for j in range(ell)]
        self.digits = torch.stack([number // p % self.b for p in self.powers], 1)         # (V, ell)
        self.token_of = torch.full((self.b ** ell,), -1)                              # number -> id
        self.token_of[number] = torch.arange(V)
        self.tables = {}

    def on(self, device):
        """The tables of this code on a device: digits (V, ell), token_of (b^ell,), and allowed
        (ell, b + 1, V) bool: may token v stand where digit j shows symbol d? Yes where that is
        masked."""
        device = str(device)
        if device not in self.tables:
            symbol = torch.arange(self.b + 1)[None, :, None]
            allowed = torch.empty(0)
            if self.ell > 1:                        # for ell = 1 it would be V x V, and nobody asks
                allowed = (self.digits.T[:, None] == symbol) | (symbol == self.mask)
            tables = self.digits, self.token_of, allowed
            self.tables[device] = tuple(table.to(device) for table in tables)
        return self.tables[device]

    def encode(self, x):
        """ids (...) -> digits (..., ell)"""
        if self.ell == 1 and self.permutation is None:
            return x[..., None]
        return self.on(x.device)[0][x]

    def decode(self, d):
        """digits (..., ell), all revealed -> ids (...); -1 for digits that spell no token"""
        number = sum(d[..., j] * p for j, p in enumerate(self.powers))
        return self.on(d.device)[1][number]

    def agrees(self, y):
        """y (M, ell) digits, some of them masked -> (M, V) bool: the tokens that agree with y"""
        if self.ell == 1:
            return (y == self.mask) | (y == self.on(y.device)[0][:, 0])
        allowed = self.on(y.device)[2]
        ok = allowed[0][y[:, 0]]
        for j in range(1, self.ell):
            ok = ok & allowed[j][y[:, j]]
        return ok

    def log_marginals(self, log_p):
        """log p of tokens (M, V) -> log p of each digit (M, ell, b): p_j(d) is the sum of p over
        the tokens whose digit j is d. Summed in log space: nothing underflows. p need not sum to
        1."""
        if self.ell == 1 and self.permutation is None:
            return log_p[:, None]
        log_p = log_p.clamp_min(NEVER)
        if self.permutation is None:
            by_number = F.pad(log_p, (0, self.b ** self.ell - self.V), value=NEVER)   # (M, b^ell)
        else:                                       # a number that is no token (-1): the column V
            token_of = self.on(log_p.device)[1] % (self.V + 1)
            by_number = F.pad(log_p, (0, 1), value=NEVER).index_select(1, token_of)
        return digit_sums(by_number, self.b, self.ell)


NEVER = -1e30          # log p of what cannot be; logsumexp has no gradient where all terms are -inf


def digit_sums(x, b, ell):
    """x (M, b^ell), log p of each number -> (M, ell, b), log p of each digit: first the marginals
    of the first half of the digits and of the second, then the same for each half."""
    if ell == 1:
        return x[:, None]
    half = ell // 2
    x = x.view(len(x), b ** half, b ** (ell - half))
    first, second = x.logsumexp(2), x.logsumexp(1)
    return torch.cat([digit_sums(first, b, half), digit_sums(second, b, ell - half)], 1)


def base(V, ell):
    """The smallest b with b^ell >= V. (ceil(V ** (1 / ell)) is wrong for V = 32768, ell = 5.)"""
    if ell == 1:
        return V
    b = 2
    while b ** ell < V:
        b += 1
    return b


def check_permutation(permutation, V, numbers):
    permutation = torch.as_tensor(permutation, dtype=torch.int64).cpu().clone()
    complete = torch.equal(permutation.flatten().sort().values, torch.arange(permutation.numel()))
    if permutation.ndim != 1 or len(permutation) not in (V, numbers) or not complete:
        raise ValueError(f"the permutation must hold each of 0..{V - 1} (or 0..{numbers - 1}) once")
    return permutation


def shuffle(V, ell, ratio=1.0, seed=0):
    """A random permutation for Code: the first ratio * b^ell numbers among themselves (index
    shuffling, arXiv 2603.16077, section 4)."""
    if not 0 <= ratio <= 1:
        raise ValueError(f"the share of shuffled ids is between 0 and 1, not {ratio}")
    numbers = np.arange(base(V, ell) ** ell)
    count = int(ratio * len(numbers))
    numbers[:count] = np.random.default_rng(seed).permutation(count)
    return torch.from_numpy(numbers)


def gray(b, ell):
    """A permutation for Code(b^ell, ell): the reflected Gray code. Numbers that are neighbours
    differ in one digit, by one: 00 01 02 12 11 10 20 21 22 for b = 3, ell = 2."""
    rows = [[]]
    for _ in range(ell):
        rows = [[d, *tail] for d in range(b) for tail in (rows if d % 2 == 0 else rows[::-1])]
    return torch.tensor([sum(d * b ** (ell - 1 - j) for j, d in enumerate(row)) for row in rows])


def idle_steps(unmasking, steps, L, ell):
    """How many of `steps` sampling steps are expected to reveal nothing in a document of L tokens
    (Prop. A.1): the sum over steps of (1 - (beta(t_i+1) - beta(t_i)))^(L ell)."""
    beta = unmasking.at(torch.arange(steps + 1, dtype=torch.float64) / steps)
    return float(((1 - beta.diff()) ** (L * ell)).sum())
