"""Pictures of drawn images; as a script: rows are runs, columns are numbers of steps.

    python figures/images.py --out_dir out-mdm,out-prime --steps 8,32,256 --png assets/glyphs.png
"""
import os
import re
import sys
from dataclasses import dataclass

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image

import checkpoint
import data
from common import Fail, atomic_open, flag, main, parse, say, whole_numbers
from model import pick_device

GREY = 128


def grid(images, across=8):
    """(N, H, W, C) uint8 -> one picture (height, width, 3) with grey lines between the images.
    Small images are enlarged."""
    N, H, W, _ = images.shape
    down = -(-N // across)
    tiles = np.full((down * across, H + 1, W + 1, 3), GREY, dtype=np.uint8)
    tiles[:N, :H, :W] = images                      # of one channel: three times the same
    sheet = tiles.reshape(down, across, H + 1, W + 1, 3).swapaxes(1, 2)
    sheet = sheet.reshape(down * (H + 1), across * (W + 1), 3)
    zoom = max(1, 48 // H)
    return sheet.repeat(zoom, 0).repeat(zoom, 1)


def thin(frames, most=100):
    """At most `most` of the frames, at even distances, the last one included"""
    stride = -(-len(frames) // most)
    return frames[::-1][::stride][::-1]


def save(path, pictures):
    """Write pictures (height, width, 3): several as a .gif, one as a .png"""
    first, *others = map(Image.fromarray, pictures)
    with atomic_open(path, "wb") as f:
        if str(path).endswith(".gif"):
            durations = [100] * len(others) + [3000]
            first.save(f, "GIF", save_all=True, append_images=others, duration=durations, loop=0)
        else:
            first.save(f, "PNG")


def save_figure(path, figure):
    with atomic_open(path, "wb") as f:
        figure.savefig(f, format="png")


def expected(code, y, shape):
    """Digits (B, L, ell) in the making -> (B, H, W, C) uint8: of each number the mean of what it
    can still become. So a mask is grey, and a number whose first digit is known is about right."""
    agrees = code.agrees(y.flatten(0, 1)).float()                       # (B L, V)
    mean = agrees @ torch.arange(code.V).float() / agrees.sum(1)
    return mean.round().view(-1, *shape).byte().numpy()


def record(loaded, num_samples=16, **settings):
    """Draw images. -> the frames of their generation, pictures: about 100, the last included"""
    shape, states = loaded.config.shape, []

    def watch(t, y, n):
        states.append(y.clone())

    drawn = loaded.images(num_samples, batch_size=num_samples, watch=watch, **settings)
    if loaded.config.causal:                        # a row of pixels a frame
        y = loaded.code.encode(torch.from_numpy(drawn).long().flatten(1))       # (B, L, ell)
        for i in range(0, y.shape[1] + 1, shape[1] * shape[2]):
            unknown = torch.full_like(y[:, i:], loaded.code.mask)
            states.append(torch.cat([y[:, :i], unknown], 1))
    return [grid(expected(loaded.code, y, shape), across=4) for y in thin(states)]


def kept_pixels(keep, shape, seed):
    """'top', 'left' or a fraction -> (H, W) bool: the pixels that are told"""
    row, column = np.indices(shape[:2])
    if keep == "top":
        return row < shape[0] // 2
    if keep == "left":
        return column < shape[1] // 2
    if not re.fullmatch(r"0?\.\d+", keep):
        raise Fail(f"--keep {keep}: it is top, left, or a fraction such as 0.2")
    return np.random.default_rng(seed).random(row.shape) < float(keep)


def draw(loaded, settings, args):
    """What sample.py does with a model of images: a grid of them (--png), or a moving picture of
    how they come about (--trace)"""
    if bool(args.png) == bool(args.trace) or args.show or args.save or args.prompt or args.infill:
        raise Fail(f"{args.out_dir} draws images: save a grid with --png grid.png, or a moving "
                   "picture with --trace images.gif")
    if loaded.config.causal and args.keep not in ("", "top"):
        raise Fail("an autoregressive model goes on from above: use --keep top")
    for name in {"sampler", "order"} - args.named:      # images have defaults of their own
        del settings[name]
    B, shape, across = args.num_samples, loaded.config.shape, 8
    if args.trace:
        B = min(B, 16)
    if args.keep:
        val = data.load(loaded.args["dataset"], loaded.args.get("data_dir", "")).val
        known = val.batch(np.arange(B) % len(val))[0].view(-1, *shape).byte().numpy()
        keep = kept_pixels(args.keep, shape, args.seed)
        settings |= dict(known=known, keep=keep)
    settings |= dict(num_samples=B, seed=args.seed)
    if args.trace:
        save(args.trace, record(loaded, **settings))
        return
    drawn = loaded.images(batch_size=args.batch_size, **settings)
    if args.keep:
        told = np.where(keep[:, :, None], known, GREY).astype(np.uint8)
        drawn, across = np.stack([told, drawn, known], 1).reshape(-1, *shape), 9
        say("three columns each: what was told, painted in, the original")
    save(args.png, [grid(drawn, across)])
    say(f"{args.png}: {B} images")


@dataclass
class Args:
    out_dir: str = flag("out", "runs, separated by commas")
    steps: str = flag("8,16,32,64,256", "network calls, numbers separated by commas")
    png: str = flag("images.png", "the picture")
    seed: int = flag(0, "fixes the samples", low=0)
    device: str = flag("auto", "auto, cpu, cuda, mps")


def run(argv=None):
    args = parse(Args, __doc__, argv)
    paths, steps = args.out_dir.split(","), whole_numbers(args.steps, "steps")
    figure = Figure((2 * len(steps) + 0.5, 2 * len(paths) + 0.3), layout="tight")
    for row, path in zip(figure.subplots(len(paths), len(steps), squeeze=False), paths):
        loaded = checkpoint.load(path, pick_device(args.device))
        if not loaded.config.shape:
            raise Fail(f"{path} draws no images: name runs on glyphs, cifar10 or imagenet32")
        for axis, k in zip(row, steps):
            if loaded.config.causal:                # one picture: it takes a step for each number
                k = loaded.config.block_size
                if axis is not row[0]:
                    axis.axis("off")
                    continue
            axis.imshow(grid(loaded.images(16, steps=k, seed=args.seed), across=4))
            axis.set(xticks=[], yticks=[])
            axis.set_title(f"{k} steps", fontsize=8)
        kind = [loaded.args["method"]]
        if loaded.code.ell > 1:
            kind += [f"ell {loaded.code.ell}", loaded.args.get("code", "plain")]
        row[0].set_ylabel("\n".join(kind))
    save_figure(args.png, figure)
    say(args.png)


if __name__ == "__main__":
    main(run)
