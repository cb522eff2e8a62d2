"""The digit code of MDM-Prime (arXiv 2505.18495): a token is `ell` base-b digits that are masked and revealed one by one.

A token id v in 0..V-1 is written with the smallest base b such that b^ell >= V, most significant digit first; the symbol b stands
for a masked digit and b + 1 for padding. ell = 1 is the plain token: its one digit is its id. GPT-2 (V = 50257) with ell = 4 has b = 15:

    >>> Code(50257, 4).encode(torch.tensor(50256))
    tensor([14, 13,  5,  6])                       # 14*15^3 + 13*15^2 + 5*15 + 6 = 50256

Once some digits of a slot are revealed, only the tokens that agree with them can stand there (the paper's carry-over): `agrees`.

    python prime.py                                # the paper's figures and their numbers, into out/prime*.png, in minutes on a CPU
"""
import numpy as np
import torch


def base(V, ell):
    """The smallest b with b^ell >= V, by integer search (ceil(V ** (1/ell)) in floating point is wrong for 32768 and ell = 5)."""
    b = 2
    while b ** ell < V:
        b += 1
    return b


class Code:
    """Token <-> digits. Raises ValueError for an ell or a permutation that makes no code.

    V tokens, ell digits of base b; `mask` = b, `pad` = b + 1. `permutation`: the number that each id is written as (a permutation of
    0..V-1, or of 0..b^ell-1 to spread the ids over the unused numbers too); index shuffling, arXiv 2603.16077. None: the id itself.
    """

    def __init__(self, V, ell=1, permutation=None):
        V, ell = int(V), int(ell)
        if V < 2:
            raise ValueError(f"a vocabulary has at least 2 tokens, not {V}")
        if ell < 1:
            raise ValueError(f"ell is the number of digits per token, at least 1, not {ell}")
        if ell > 1 and 2 ** (ell - 1) >= V:
            raise ValueError(f"ell = {ell} digits are more than the {(V - 1).bit_length()} bits that {V} tokens need: lower ell")
        self.V, self.ell = V, ell
        self.b = V if ell == 1 else base(V, ell)
        self.mask, self.pad = self.b, self.b + 1
        self.permutation = None
        if permutation is not None:
            permutation = torch.as_tensor(permutation, dtype=torch.int64).cpu()
            size = len(permutation) if permutation.ndim == 1 else 0
            if size not in (V, self.b ** ell) or not torch.equal(permutation.sort().values, torch.arange(size)):
                raise ValueError(f"the permutation must hold each of 0..{V - 1} (or 0..{self.b ** ell - 1}) once")
            self.permutation = permutation[:V].clone()
        number = torch.arange(V) if self.permutation is None else self.permutation
        self.powers = [self.b ** (ell - 1 - j) for j in range(ell)]
        self.digits = torch.stack([number // p % self.b for p in self.powers], 1)          # (V, ell)
        self.of_number = torch.full((self.b ** ell,), -1).index_copy(0, number, torch.arange(V))
        self._on = {}

    def on(self, device):
        """The tables on a device: digits (V, ell), the inverse, and for ell > 1 `table` (ell, b + 1, V) bool: may token v stand where
        digit j shows symbol d (the row of the mask symbol is all True), and `onehot` (V, ell * b) float32."""
        device = torch.device(device)
        if device not in self._on:
            tables = {"digits": self.digits.to(device), "of_number": self.of_number.to(device)}
            if self.ell > 1:
                symbols = torch.arange(self.b + 1, device=device)[None, :, None]
                tables["table"] = (tables["digits"].T[:, None] == symbols) | (symbols == self.mask)       # (ell, b + 1, V)
                tables["onehot"] = torch.nn.functional.one_hot(tables["digits"], self.b).flatten(1).float()  # (V, ell * b)
            self._on[device] = tables
        return self._on[device]

    def encode(self, x):
        """Ids (...) -> digits (..., ell)."""
        if self.ell == 1 and self.permutation is None:
            return x[..., None].clone()
        return self.on(x.device)["digits"][x]

    def decode(self, d):
        """Digits (..., ell), all revealed -> ids (...). Digits that spell no token give -1."""
        number = sum(d[..., j] * p for j, p in enumerate(self.powers))
        return self.on(d.device)["of_number"][number]

    def agrees(self, y):
        """y (M, ell) digits, some masked -> (M, V) bool: the tokens that agree with every revealed digit (the paper's carry-over)."""
        if self.ell == 1:                                              # a table would be V x V
            tokens = self.on(y.device)["digits"][:, 0]
            return (y == self.mask) | (y == tokens)
        table = self.on(y.device)["table"]
        ok = table[0][y[:, 0]]
        for j in range(1, self.ell):
            ok &= table[j][y[:, j]]
        return ok

    def marginals(self, p):
        """Token probabilities (M, V) -> the distribution of each digit, (M, ell, b): p_j(d) = sum of p(v) over v with digit_j(v) = d."""
        if self.ell == 1:
            return (p if self.permutation is None else p[:, self.permutation.to(p.device).argsort()])[:, None]
        with torch.autocast(p.device.type, enabled=False):             # probabilities stay as precise as they come
            return (p @ self.on(p.device)["onehot"].to(p.dtype)).unflatten(1, (self.ell, self.b))


def shuffle(V, ell, ratio=1.0, seed=0):
    """A random permutation for Code: the first ratio * b^ell numbers among themselves (index shuffling, arXiv 2603.16077, section 4)."""
    if not 0 <= ratio <= 1:
        raise ValueError(f"the ratio of shuffled ids is between 0 and 1, not {ratio}")
    numbers = np.arange(V if ell == 1 else base(V, ell) ** ell)
    k = int(ratio * len(numbers))
    numbers[:k] = np.random.default_rng(seed).permutation(k)
    return torch.from_numpy(numbers)


def idle_steps(unmasking, steps, L, ell):
    """The expected number of sampling steps in which nothing is revealed: sum over i of (1 - (beta(t_i+1) - beta(t_i)))^(L ell), Prop. A.1."""
    grid = unmasking.at(torch.arange(steps + 1, dtype=torch.float64) / steps)
    return float(((1 - grid.diff()) ** (L * ell)).sum())
