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
            self.permutation = permutation.clone()                     # whole, so that a checkpoint can make the same code from it
        number = torch.arange(V) if self.permutation is None else self.permutation[:V]
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
        ok = table[0].index_select(0, y[:, 0])
        for j in range(1, self.ell):
            ok &= table[j].index_select(0, y[:, j])
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


# ---- the paper's figures: python prime.py --------------------------------------------------------------------------------------------

def measured_idle(steps, L, ell, V=256):
    """Idle steps counted in one real run of sample.generate: L tokens, a `predict` that finds every token equally likely."""
    import interpolant
    import sample
    code = Code(V, ell)
    busy = set()

    def watch(t, y, n):
        masks = int((y == code.mask).sum())
        if masks != watch.masks:
            busy.add(t)
        watch.masks = masks

    watch.masks = L * ell
    sample.generate(lambda y, n, t, at: (torch.zeros(int(at.sum()), V), None), code, 1, L, steps,
                    interpolant.schedule("instant"), interpolant.schedule("linear"), watch=watch)
    return steps - len(busy)


def figure_idle(path, L=1024, sizes=(256, 512, 1024, 2048)):
    """Idle steps against T for ell = 1, 2, 4, 8: the formula as lines, one measured run as dots. Prints both."""
    import interpolant
    import matplotlib.pyplot as plt
    linear = interpolant.schedule("linear")
    figure, axes = plt.subplots(figsize=(5.5, 3.6), dpi=100)
    print(f"idle steps of T, L = {L}: formula / measured in one run\n  ell " + "".join(f"{'T = ' + str(T):>18}" for T in sizes))
    for ell in (1, 2, 4, 8):
        formula = [idle_steps(linear, T, L, ell) for T in sizes]
        measured = [measured_idle(T, L, ell) for T in sizes]
        print(f"  {ell:>3} " + "".join(f"{f:>10.1f} / {m:<5}" for f, m in zip(formula, measured)), flush=True)
        line, = axes.plot(sizes, formula, label=f"ell = {ell}")
        axes.plot(sizes, measured, "o", color=line.get_color())
    axes.set(xlabel="sampling steps T", ylabel="steps that reveal nothing", xscale="log", xticks=sizes, xticklabels=sizes)
    axes.minorticks_off()
    axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)


def picture(side=512):
    """A density over side x side from a picture drawn by code: rendered text. (side, side) float64, sums to 1."""
    import matplotlib.pyplot as plt
    figure = plt.figure(figsize=(side / 100, side / 100), dpi=100)
    for text, height, size in (("any", 0.72, 120), ("order", 0.35, 105)):
        figure.text(0.5, height, text, ha="center", va="center", fontsize=size, weight="bold")
    figure.canvas.draw()
    ink = 255.0 - np.asarray(figure.canvas.buffer_rgba(), dtype=np.float64)[:, :, 0]
    plt.close(figure)
    return torch.from_numpy(ink / ink.sum())


class Pair(torch.nn.Module):
    """An MLP `predict` for documents of two tokens. independent: f is a product of digit distributions, as the paper argues against."""

    def __init__(self, code, width=256, independent=False):
        super().__init__()
        self.code, self.independent = code, independent
        self.embed = torch.nn.Embedding(code.b + 1, width // code.ell)
        inside = 2 * code.ell * (width // code.ell)
        outside = 2 * (code.ell * code.b if independent else code.V)
        self.net = torch.nn.Sequential(torch.nn.Linear(inside, width), torch.nn.SiLU(), torch.nn.Linear(width, width), torch.nn.SiLU(),
                                       torch.nn.Linear(width, width), torch.nn.SiLU(), torch.nn.Linear(width, outside))

    def forward(self, y, n, t, at):
        out = self.net(self.embed(y).flatten(1)).unflatten(1, (2, -1))[at]                     # (M, V) or (M, ell * b)
        if self.independent:                                                                   # log f(v) = sum over j of log f_j(digit_j(v))
            out = sum(out.unflatten(1, (self.code.ell, self.code.b)).log_softmax(2)[:, j, self.code.digits[:, j]] for j in range(self.code.ell))
        return out, None


def train_pair(density, ell, independent, iterations=2000, batch=512):
    """Fit a Pair to the density with the joint loss (the paper's)."""
    import interpolant
    import rates
    code = Code(density.shape[0], ell)
    net = Pair(code, independent=independent)
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
    cells = density.flatten().cumsum(0)
    instant, linear = interpolant.schedule("instant"), interpolant.schedule("linear")
    for i in range(iterations):
        cell = torch.searchsorted(cells, torch.rand(batch, dtype=torch.float64) * cells[-1]).clamp_max(len(cells) - 1)
        x1 = torch.stack([cell // density.shape[1], cell % density.shape[1]], 1)
        loss = rates.nll(net, code, x1, torch.full((batch,), 2), torch.rand(batch) * 0.995, instant, linear, "paper").mean()
        optimizer.zero_grad()
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * (1 - i / iterations)
        optimizer.step()
    return net


def figure_pair(path, steps=16, count=60_000):
    """Figure 4: samples of two-token models in few steps. Prints the share of samples that fall on ink (1 for the density itself), and the
    share of draws whose digits spell no token (only a product of digits can do that; the carry-over sampler removes them)."""
    import interpolant
    import matplotlib.pyplot as plt
    import sample
    density = picture()
    side = len(density)
    runs = [("density", None, None), ("MDM (ell = 1)", 1, False), ("Prime, joint (ell = 3)", 3, False), ("Prime, independent (ell = 3)", 3, True)]
    figure, axes = plt.subplots(1, len(runs), figsize=(3 * len(runs), 3.3), dpi=100)
    print(f"two tokens of {side}, {steps} steps: share of {count} samples that fall on ink")
    for axis, (name, ell, independent) in zip(axes, runs):
        image, note = density, ""
        if ell:
            torch.manual_seed(0)
            net = train_pair(density, ell, independent)
            x, _ = sample.generate(net, net.code, count, 2, steps, interpolant.schedule("instant"), interpolant.schedule("linear"))
            image = torch.bincount(x[:, 0] * side + x[:, 1], minlength=side * side).view(side, side).double() / count
            note = f"{100 * float(image[density > 0].sum()):.1f}% on ink"
            print(f"  {name:<30} {note}", flush=True)
        axis.imshow(torch.nn.functional.avg_pool2d(image[None, None], 4)[0, 0] ** 0.5, cmap="gray_r")
        axis.set_title(f"{name}\n{note}", fontsize=9)
        axis.axis("off")
    figure.tight_layout()
    figure.savefig(path, bbox_inches="tight")
    plt.close(figure)


def figures():
    import os
    import matplotlib
    matplotlib.use("Agg")
    os.makedirs("out", exist_ok=True)
    torch.manual_seed(0)
    figure_idle("out/prime-idle.png")
    figure_pair("out/prime-pair.png")
    print("figures: out/prime-idle.png, out/prime-pair.png")


if __name__ == "__main__":
    figures()
