"""Text, or images, from a trained model.

    python sample.py                                            # ten documents from out/ckpt.pt
    python sample.py --prompt 'import '                         # continue a beginning
    python sample.py --infill 'for [..] in range([..]): pass'   # fill holes of unknown length
    python sample.py --show                                     # watch it in the terminal
    python sample.py --trace out/trace.gif                      # the same as a moving picture
    python sample.py --num_samples 1000 --save samples.jsonl    # one {"text": ...} a line
    python sample.py --png grid.png --num_samples 64            # images; --trace works, too
    python sample.py --png grid.png --keep top                  # paint in the lower half of others

On a fixed canvas (mdm, prime) a hole says how many tokens it has: [..8]. How it works: sampler.py.
"""
import json
import time
from dataclasses import dataclass

import checkpoint
from common import Fail, atomic_open, flag, main, parse, say
from figures import images, movie
from model import pick_device
from sampler import ORDERS, SAMPLERS, generate  # noqa: F401 (sample.generate is what others call)


SETTINGS = ("steps", "order", "temperature", "sampler", "window", "insertion", "unmasking")


@dataclass
class Args:
    out_dir: str = flag("out", "a run's folder, a checkpoint, or a pretrained model's folder")
    num_samples: int = flag(10, "documents to write")
    steps: int = flag(128, "network calls")
    sampler: str = flag("exact", "exact: one event at a time; parallel: many in a step", SAMPLERS)
    order: str = flag("", "which masks are revealed first; empty: margin for short documents "
                      "with insertion, else random", ("", *ORDERS))
    temperature: float = flag(1.0, "1: what the model says; 0: always the likeliest token")
    window: int = flag(0, "reveal only among this many leftmost masks; 0: all", low=0)
    prompt: str = flag("", "a beginning to continue")
    infill: str = flag("", "a text with holes: [..] is one token or more; on a fixed canvas "
                       "[..8] is 8")
    png: str = flag("", "images: save a grid of them here")
    keep: str = flag("", "images: paint in validation images, of which the top half, the left half "
                     "or a random FRACTION of the pixels is told")
    show: bool = flag(False, "play the generation in the terminal")
    trace: str = flag("", "save the generation of at most 6 documents as a .gif")
    save: str = flag("", "write the documents to this .jsonl instead of the terminal")
    insertion: str = flag("", "another insertion schedule than in training")
    unmasking: str = flag("", "another unmasking schedule than in training")
    batch_size: int = flag(64, "documents at a time")
    seed: int = flag(0, "makes the documents the same again, on a CPU", low=0)
    device: str = flag("auto", "auto, cpu, cuda, mps")


def play(loaded, settings, args):
    """How a few documents come about: in the terminal (--show), as a moving picture (--trace)"""
    film, text = movie.record(loaded, args.seed, args.num_samples, **settings)
    if args.show:
        movie.play(film)
    else:
        say(text)
    if args.trace:
        movie.draw_gif(args.trace, film)
        say(f"{args.trace}: how these were written")


def write(loaded, settings, args):
    """Documents in the terminal, or (--save) in a file"""
    texts, seed, began = [], args.seed, time.time()
    while len(texts) < args.num_samples:
        B = min(args.batch_size, args.num_samples - len(texts))
        texts += loaded.generate(B, seed=seed, batch_size=B, **settings)
        seed = None                                       # the first batch's seed fixes all of them
        if args.save:
            say(f"{len(texts)}/{args.num_samples} documents, {time.time() - began:.0f} s")
    if not args.save:
        say("\n".join(texts))
        return
    with atomic_open(args.save, encoding="utf-8") as f:
        f.writelines(json.dumps({"text": text}) + "\n" for text in texts)
    say(f"{args.save}: {len(texts)} documents")


def run(argv=None):
    args = parse(Args, __doc__, argv)
    if args.trace and not args.trace.endswith(".gif"):
        raise Fail(f"--trace {args.trace} must end in .gif")
    if args.save and (args.show or args.trace):
        raise Fail("--save writes documents, --show and --trace draw a few: give one")
    loaded = checkpoint.load(args.out_dir, pick_device(args.device))
    settings = {name: getattr(args, name) for name in SETTINGS}
    if loaded.config.shape:
        return images.draw(loaded, settings, args)
    if args.png or args.keep:
        raise Fail(f"{args.out_dir} writes text: --png and --keep are for images")
    settings |= dict(prompt=args.prompt, infill=args.infill)
    if args.show or args.trace:
        return play(loaded, settings, args)
    write(loaded, settings, args)


if __name__ == "__main__":
    main(run)
