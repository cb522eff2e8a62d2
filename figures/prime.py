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
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import interpolant
import rates
import sampler
from common import flag, main, parse, say
from figures import images
from prime import Code, idle_steps

INSTANT, LINEAR = interpolant.schedule("instant"), interpolant.schedule("linear")


@dataclass
class Args:
    out_dir: str = flag("out", "where the pictures go")
    iterations: int = flag(2000, "training steps of each two-token model")
    samples: int = flag(60_000, "documents drawn from each two-token model")
    seed: int = flag(0, "fixes everything", low=0)


# -----------------------------------------------------------------------------
# idle steps

def measured_idle(steps, L, ell, V=256):
    """Idle steps counted in one run of the sampler: L tokens, all values equally likely."""
    code, masks = Code(V, ell), [L * ell]                       # masks after each step

    def predict(y, n, t, at, given=None):
        return torch.zeros(int(at.sum()), V), None

    def watch(t, y, n):
        masks.append(int((y == code.mask).sum()))

    sampler.generate(predict, code, 1, L, steps, INSTANT, LINEAR, watch=watch)
    return int((np.diff(masks) == 0).sum())


def figure_idle(path, L=1024, sizes=(256, 512, 1024, 2048)):
    figure = Figure((5.5, 3.6), layout="tight")
    axes = figure.subplots()
    say(f"idle steps of T = {sizes} for {L} tokens: formula / one run")
    for ell in (1, 2, 4, 8):
        formula = [idle_steps(LINEAR, T, L, ell) for T in sizes]
        measured = [measured_idle(T, L, ell) for T in sizes]
        pairs = [f"{a:9.1f} / {b}" for a, b in zip(formula, measured)]
        say(f"  ell {ell}", *pairs)
        line, = axes.plot(sizes, formula, label=f"ell = {ell}")
        axes.plot(sizes, measured, "o", color=line.get_color())
    axes.set(xlabel="sampling steps", ylabel="steps that reveal nothing", xscale="log",
             xticks=sizes, xticklabels=sizes, title=f"{L} tokens: formula (lines), one run (dots)")
    axes.minorticks_off()
    axes.legend(frameon=False)
    images.save_figure(path, figure)
    say(path)


# -----------------------------------------------------------------------------
# two tokens

def picture(side=512):
    """A distribution of two tokens, (side, side) float64 that sums to 1: rendered text"""
    figure = Figure((side / 100, side / 100), dpi=100)
    figure.text(0.5, 0.5, "any\norder", ha="center", va="center", fontsize=110, weight="bold")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    ink = 255.0 - np.asarray(canvas.buffer_rgba(), dtype=np.float64)[:, :, 0]
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
            nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 2 * answer))

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
    net, n1 = Pair(Code(side, ell), independent), torch.full((batch,), 2)
    optimizer = torch.optim.Adam(net.parameters(), lr=peak)
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0, iterations)
    for _ in range(iterations):
        cell = density.flatten().multinomial(batch, replacement=True)
        x1 = torch.stack([cell // side, cell % side], 1)                        # (batch, 2)
        t = torch.rand(batch) * 0.995           # assumption: the last 0.5% of time is left out
        loss = rates.nll(net, net.code, x1, n1, t, INSTANT, LINEAR, "paper").mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decay.step()
    return net


def figure_pair(path, args, steps=16):
    """Samples in few steps, and the share of them that falls on ink (1 for the density itself)"""
    density = picture()
    side, panels = len(density), [("the distribution\n", density)]
    models = [("MDM (ell = 1)", 1, False), ("Prime, joint (ell = 3)", 3, False),
              ("Prime, a product (ell = 3)", 3, True)]
    for name, ell, independent in models:
        torch.manual_seed(args.seed)
        net = train_pair(density, ell, independent, args.iterations)
        x, _ = sampler.generate(net, net.code, args.samples, 2, steps, INSTANT, LINEAR)
        image = torch.bincount(x[:, 0] * side + x[:, 1], minlength=side * side).view(side, side)
        image = image / args.samples
        share = f"{100 * float(image[density > 0].sum()):.1f}% on ink"
        say(f"{name}, two tokens of {side} in {steps} steps: {share}")
        panels.append((f"{name}\n{share}", image))
    figure = Figure((12, 3.6), layout="constrained")
    for axis, (title, image) in zip(figure.subplots(1, len(panels)), panels):
        coarse = F.avg_pool2d(image[None, None], 4)[0, 0]
        axis.imshow(coarse.sqrt().numpy(), cmap="gray_r")
        axis.set_title(title, fontsize=10)
        axis.axis("off")
    images.save_figure(path, figure)
    say(path)


def run(argv=None):
    args = parse(Args, __doc__, argv)
    torch.manual_seed(args.seed)
    figure_idle(os.path.join(args.out_dir, "prime-idle.png"))
    figure_pair(os.path.join(args.out_dir, "prime-pair.png"), args)


if __name__ == "__main__":
    main(run)
