"""Two figures of MDM-Prime (arXiv 2505.18495): about five minutes on one core.

    python figures/prime.py                     # out/prime-idle.png, out/prime-pair.png

prime-idle.png (Prop. A.1): how many sampling steps reveal nothing, the formula against one run.
With ell digits per token there are ell times as many events, so fewer steps are idle.

prime-pair.png (Figure 4): documents of two tokens whose joint distribution is a picture, 512 x 512,
drawn in 16 steps. One digit per token has 2 events, three digits have 6; a product of digit
distributions, which the paper argues against, cannot tell which digits go together.
"""
import os
import sys
from dataclasses import dataclass

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

import interpolant
import rates
import sampler
from common import atomic_open, flag, main, parse, say
from prime import Code, idle_steps

INSTANT, LINEAR = interpolant.schedule("instant"), interpolant.schedule("linear")


@dataclass
class Args:
    out_dir: str = flag("out", "where the pictures go")
    iterations: int = flag(2000, "training steps of each two-token model")
    samples: int = flag(60_000, "documents drawn from each two-token model")
    seed: int = flag(0, "fixes everything", low=0)


def save(figure, path):
    with atomic_open(path, "wb") as f:
        figure.savefig(f, format="png", dpi=100)
    say(path)


# -----------------------------------------------------------------------------
# idle steps

def measured_idle(steps, L, ell, V=256):
    """Idle steps counted in one run of the sampler: L tokens, all values equally likely."""
    code = Code(V, ell)
    masks = [L * ell]                                           # after each step

    def predict(y, n, t, at, given=None):
        return torch.zeros(int(at.sum()), V), None

    def watch(t, y, n):
        masks.append(int((y == code.mask).sum()))

    sampler.generate(predict, code, 1, L, steps, INSTANT, LINEAR, watch=watch)
    return sum(before == after for before, after in zip(masks, masks[1:]))


def figure_idle(path, L=1024, sizes=(256, 512, 1024, 2048)):
    import matplotlib.pyplot as plt
    figure, axes = plt.subplots(figsize=(5.5, 3.6))
    say(f"idle steps of T for {L} tokens: formula / one run")
    say("  ell" + "".join(f"{f'T = {T}':>16}" for T in sizes))
    for ell in (1, 2, 4, 8):
        formula = [idle_steps(LINEAR, T, L, ell) for T in sizes]
        measured = [measured_idle(T, L, ell) for T in sizes]
        say(f"  {ell:>3}" + "".join(f"{a:>9.1f} / {b:<4}" for a, b in zip(formula, measured)))
        line, = axes.plot(sizes, formula, label=f"ell = {ell}")
        axes.plot(sizes, measured, "o", color=line.get_color())
    axes.set(xlabel="sampling steps", ylabel="steps that reveal nothing", xscale="log",
             xticks=sizes, xticklabels=sizes, title=f"{L} tokens: formula (lines), one run (dots)")
    axes.minorticks_off()
    axes.legend(frameon=False)
    figure.tight_layout()
    save(figure, path)


# -----------------------------------------------------------------------------
# two tokens

def picture(side=512):
    """A distribution of two tokens, (side, side) float64 that sums to 1: rendered text"""
    import matplotlib.pyplot as plt
    figure = plt.figure(figsize=(side / 100, side / 100), dpi=100)
    for text, height, size in (("any", 0.72, 120), ("order", 0.35, 105)):
        figure.text(0.5, height, text, ha="center", va="center", fontsize=size, weight="bold")
    figure.canvas.draw()
    ink = 255.0 - np.asarray(figure.canvas.buffer_rgba(), dtype=np.float64)[:, :, 0]
    plt.close(figure)
    return torch.from_numpy(ink / ink.sum())


class Pair(nn.Module):
    """An MLP as `predict` for documents of two tokens. independent: f is a product over digits."""

    def __init__(self, code, independent, width=256):
        super().__init__()
        self.code, self.independent = code, independent
        self.embed = nn.Embedding(code.b + 1, width // code.ell)
        answer = code.ell * code.b if independent else code.V
        self.net = nn.Sequential(
            nn.Linear(2 * code.ell * (width // code.ell), width), nn.SiLU(),
            nn.Linear(width, width), nn.SiLU(),
            nn.Linear(width, width), nn.SiLU(),
            nn.Linear(width, 2 * answer))

    def forward(self, y, n, t, at, given=None):
        code = self.code
        out = self.net(self.embed(y).flatten(1)).unflatten(1, (2, -1))[at]      # (M, V or ell b)
        if self.independent:                    # log f(v) = sum over j of log f_j(digit j of v)
            log_f = out.unflatten(1, (code.ell, code.b)).log_softmax(2)         # (M, ell, b)
            out = sum(log_f[:, j, code.digits[:, j]] for j in range(code.ell))  # (M, V)
        return out, None


def train_pair(density, ell, independent, iterations, batch=512, peak=2e-3):
    """Fit a Pair with the paper's loss (joint: the probability of the token, not of its digits)."""
    side = len(density)
    net = Pair(Code(side, ell), independent)
    optimizer = torch.optim.Adam(net.parameters(), lr=peak)
    cumulative = density.flatten().cumsum(0)
    n1 = torch.full((batch,), 2)
    for i in range(iterations):
        u = torch.rand(batch, dtype=torch.float64) * cumulative[-1]
        cell = torch.searchsorted(cumulative, u).clamp_max(side ** 2 - 1)
        x1 = torch.stack([cell // side, cell % side], 1)                        # (batch, 2)
        t = torch.rand(batch) * 0.995           # assumption: the last 0.5% of time is left out
        loss = rates.nll(net, net.code, x1, n1, t, INSTANT, LINEAR, "paper").mean()
        optimizer.zero_grad()
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = peak * (1 - i / iterations)
        optimizer.step()
    return net


def figure_pair(path, args, steps=16):
    """Samples in few steps, and the share of them that falls on ink (1 for the density itself)"""
    import matplotlib.pyplot as plt
    density = picture()
    side = len(density)
    panels = [("the distribution", density)]
    models = [("MDM (ell = 1)", 1, False), ("Prime, joint (ell = 3)", 3, False),
              ("Prime, a product (ell = 3)", 3, True)]
    say(f"two tokens of {side}, {steps} steps: share of {args.samples} samples that fall on ink")
    for name, ell, independent in models:
        torch.manual_seed(args.seed)
        net = train_pair(density, ell, independent, args.iterations)
        x, _ = sampler.generate(net, net.code, args.samples, 2, steps, INSTANT, LINEAR)
        image = torch.bincount(x[:, 0] * side + x[:, 1], minlength=side * side).view(side, side)
        image = image.double() / args.samples
        share = f"{100 * float(image[density > 0].sum()):.1f}% on ink"
        say(f"  {name:<28} {share}")
        panels.append((f"{name}\n{share}", image))
    figure, axes = plt.subplots(1, len(panels), figsize=(3 * len(panels), 3.4))
    for axis, (title, image) in zip(axes, panels):
        coarse = F.avg_pool2d(image[None, None], 4)[0, 0]
        axis.imshow(coarse.sqrt().numpy(), cmap="gray_r")
        axis.set_title(title, fontsize=10)
        axis.axis("off")
    figure.tight_layout()
    save(figure, path)


def run(argv=None):
    args = parse(Args, __doc__, argv)
    import matplotlib
    matplotlib.use("Agg")
    torch.manual_seed(args.seed)
    figure_idle(os.path.join(args.out_dir, "prime-idle.png"))
    figure_pair(os.path.join(args.out_dir, "prime-pair.png"), args)


if __name__ == "__main__":
    main(run)
