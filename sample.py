"""From a trained model to text: samplers, orders, prompts, infilling, and pictures of a generation.

    python sample.py                                            # ten lines from out/ckpt.pt
    python sample.py --prompt 'import '                         # continue a beginning
    python sample.py --infill 'for [..] in range([..]): pass'   # fill holes of unknown length ([..8]: 8 tokens, on a fixed canvas)
    python sample.py --show                                     # watch insertions and unmaskings in the terminal
    python sample.py --trace out/trace.gif                      # the same as a moving picture
    python sample.py --num_samples 1000 --save samples.jsonl    # one {"text": ...} a line

One step of `generate` from time t to s moves every clock exactly, whatever the step size (spec: Prop. 2 and 3 of arXiv 2509.01025):
a masked digit is revealed with probability (beta(s)-beta(t)) / (1-beta(t)); in gap j, each of the g_j masks expected there is inserted with
probability (alpha(s)-alpha(t)) / (1-alpha(t)). What a step cannot know is what else is revealed in the same instant: that error shrinks as 1/steps.

One worked number: 64 steps, linear: a mask that is there at t = 63/64 is revealed in the last step for sure, and one that is inserted in
the last step is revealed in the extra passes after it, so that a sample never holds a mask.
"""
import json
import os
import re
import sys
import time
from dataclasses import dataclass

import torch

import data
import interpolant
import model
from common import Fail, aside, flag, main, parse
from interpolant import below
from rates import restrict

ORDERS = ("random", "top_prob", "margin", "entropy", "left_to_right")


class Draws:
    """Random numbers for B rows: from torch's global generator, or row b from its own, seeded seeds[b] (a generator uses 32 bits of it).

    With seeds, what a row draws does not depend on the rows beside it: it draws for `size` slots, however long the longest row is.
    """

    def __init__(self, seeds=None, size=1):
        self.generators = None if seeds is None else [torch.Generator().manual_seed(s) for s in seeds]
        self.size = size

    def rows(self, draw, B):
        return draw(slice(0, B), None) if self.generators is None else torch.cat([draw(slice(b, b + 1), g) for b, g in enumerate(self.generators)])

    def uniform(self, B, L, *shape):
        size = L if self.generators is None else self.size
        return self.rows(lambda rows, g: torch.rand(rows.stop - rows.start, size, *shape, dtype=torch.float64, generator=g), B)[:, :L]

    def arrivals(self, g, p):
        """How many of g (B, N) expected tokens come, each with probability p: Binomial(K, p) in each gap, K being g rounded so that E K = g.

        All gaps of a row are rounded with one uniform u, K_j = floor(g_1 + ... + g_j + u) - floor(g_1 + ... + g_(j-1) + u), so that any run of
        neighbouring gaps gets its expected sum, up or down by less than one. In the limit of small p all counts of mean g p are one process.
        This one is exact at every p for a gap, or a run of gaps, where the number missing is certain (independent Poisson counts would
        then insert twice or never), and says no more than the mean where it is not.
        """
        K = (g.cumsum(1) + self.uniform(len(g), 1)).floor().diff(dim=1, prepend=torch.zeros(len(g), 1, dtype=g.dtype))
        draw = lambda rows, generator: torch.binomial(K[rows], torch.full_like(K[rows], p), generator=generator)
        return self.rows(draw, len(g)).long()

    def subset(self, b, N, count):
        """`count` of N things, at random, for row b: their indices."""
        return torch.rand(N, dtype=torch.float64, generator=self.generators and self.generators[b]).argsort()[:count]


def draw_tokens(logits, y, code, temperature, u):
    """One token for each slot from softmax(logits / temperature) over the tokens that agree with its revealed digits; u (M,) in [0, 1).

    By the inverse of the cumulative sum in float64: no Gumbel noise whose tail float32 cuts off. temperature 0: the likeliest token.
    """
    logits = restrict(logits, y, code)
    if temperature == 0:
        return logits.argmax(1)
    cumulative = (logits / temperature).softmax(1).double().cumsum(1)                          # (M, V)
    total = cumulative[:, -1:]
    u = torch.minimum(u.to(total.device)[:, None] * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulative, u, right=True)[:, 0]                                 # the first token with a sum above u: its p > 0


def confidence(logits, y, code, order):
    """How sure the network is of each digit: (M, ell), higher is surer. top_prob: max p; margin: p1 - p2; entropy: -H(p)."""
    p = code.marginals(restrict(logits, y, code).softmax(1))                                   # (M, ell, b)
    if order == "top_prob":
        return p.amax(2)
    if order == "margin":
        top = p.topk(2, dim=2).values
        return top[:, :, 0] - top[:, :, 1]
    return torch.special.xlogy(p, p).sum(2)


def insert(y, n, opened, counts, mask):
    """Insert counts (B, L + 1) masked slots, counts[b, j] of them left of slot j. Returns the new y, n, opened. Gaps beside a new slot are open."""
    B, L, ell = y.shape
    shift = counts.cumsum(1)                                                                   # slot p moves right by shift[p]
    to = (torch.arange(L) + shift[:, :-1]).clamp_max(L)                                        # (B, L); what leaves the canvas is pad: dropped
    n_new = n + shift[:, -1]
    pad = y.new_full((B, L + 1, ell), mask + 1).masked_fill(below(n_new, L + 1)[:, :, None], mask)
    old = below(n, L)
    to = torch.where(old, to, L)
    y_new = pad.scatter(1, to[:, :, None].expand(-1, -1, ell), torch.where(old[:, :, None], y, mask + 1))[:, :L]
    moved = torch.cat([torch.where(old, to, L + 1), (n + shift[:, -1])[:, None]], 1)           # where gap j's right neighbour went
    source = torch.cat([torch.where(old, opened[:, :-1], True), opened.gather(1, n[:, None])], 1)
    opened_new = torch.ones(B, L + 2, dtype=torch.bool).scatter(1, moved, source)[:, :L + 1]
    return y_new, n_new, opened_new


def fit(counts, room, draws):
    """Cut insertions that do not fit: where a row wants more than room[b], a random subset of them stays."""
    counts = torch.where((room > 0)[:, None], counts, 0)
    for b in (counts.sum(1) > room).nonzero()[:, 0].tolist():
        gaps = torch.arange(counts.shape[1]).repeat_interleave(counts[b])                      # the gap of each insertion
        counts[b] = torch.bincount(gaps[draws.subset(b, len(gaps), int(room[b]))], minlength=counts.shape[1])
    return counts


def first(eligible, scores, K):
    """The K[b] eligible places of row b with the highest scores (all of them where K is larger): (B, N) bool."""
    rank = torch.where(eligible, scores, -torch.inf).argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return eligible & (rank < K[:, None])


def begin(code, B, block_size, insertion, start=None):
    """The state at t = 0: (y (B, block_size, ell), n, opened). Empty; or with an `instant` insertion a full canvas of masks; or `start`."""
    if start is not None:
        y, n, *rest = start
        canvas = torch.full((B, block_size, code.ell), code.pad)
        canvas[:, :y.shape[1]] = torch.where(below(n, y.shape[1])[:, :, None], y, code.pad)
        opened = torch.ones(B, block_size + 1, dtype=torch.bool)
        if rest and rest[0] is not None:
            opened[:, :rest[0].shape[1]] = rest[0]
        return canvas, n.clone(), opened
    full = float(insertion.at(0.0)) == 1                                                       # instant: everything is there at t = 0
    n = torch.full((B,), block_size if full else 0)
    return torch.full((B, block_size, code.ell), code.mask if full else code.pad), n, torch.ones(B, block_size + 1, dtype=torch.bool)


@torch.no_grad()
def generate(predict, code, B, block_size, steps, insertion, unmasking, order="random", temperature=1.0, start=None, *,
             window=None, passes=8, seeds=None, watch=None):
    """Draw B documents of at most block_size tokens: (x (B, block_size) ids, 0 beyond n; n (B,)).

    predict, code: see the README ("one seam"); insertion, unmasking: Schedules; steps >= 1 network calls, plus at most a few.
    order: which masks are revealed first. random is the reversed noising process; the others reveal as many digits per step,
        but the surest first (top_prob, margin, entropy) or the leftmost. Values are always drawn from f at `temperature`;
        with temperature 1 any order is exact when one token is revealed at a time (Prop. 3).
    start: (y (B, L, ell), n (B,)[, opened (B, L + 1) bool]): begin with these slots; clean digits in it are never changed, and
        nothing is inserted into a gap that is not opened.
    window: only the leftmost `window` masked slots may be revealed. passes: the masks left after the last step are revealed in this
        many rounds. seeds: one per row, see Draws. watch(t, y, n): called with the state after every step.
    """
    if order not in ORDERS:
        raise ValueError(f"unknown order {order!r}: choose one of {', '.join(ORDERS)}")
    if steps < 1 or window is not None and window < 1:
        raise ValueError(f"steps and window must be at least 1, not {steps} and {window}")
    draws = Draws(seeds, block_size + 1)
    y, n, opened = begin(code, B, block_size, insertion, start)

    def reveal(y, n, t, p):
        """Reveal each masked digit with probability p. Returns the new y and the gap head's answer for the old one."""
        L = max(int(n.max()), 1)
        y = y[:, :L]                                                                           # the current length, not block_size
        hidden = y == code.mask                                                                # (B, L, ell)
        # 1. How many digits are revealed, and which may be.
        u = draws.uniform(B, L, code.ell + 1)                                                  # the last one is for the token
        chosen = hidden & (u[:, :, :-1] < p)
        K = chosen.flatten(1).sum(1)
        eligible = hidden
        if window is not None:
            eligible = hidden & (hidden.any(2).cumsum(1) <= window)[:, :, None]
            if p == 1:
                K = K.clamp_min(1)
        # 2. Which are: known before the network is asked, except where it is asked how sure it is.
        if order == "left_to_right":
            chosen = first(eligible.flatten(1), -torch.arange(L * code.ell).double().expand(B, -1), K).view_as(hidden)
        elif order == "random" and window is not None:
            chosen = first(eligible.flatten(1), draws.uniform(B, L, code.ell).flatten(1), K).view_as(hidden)
        sure = order in ("top_prob", "margin", "entropy")
        at = (eligible & (K > 0)[:, None, None] if sure else chosen).any(2)                    # (B, L)
        # 3. Ask. Without insertions, a row in which nothing is revealed needs no answer.
        if has_gaps is False and not at.any():
            return y, None
        rows = at.any(1) if has_gaps is False else slice(None)
        logits, log_g = predict(y[rows], n[rows], torch.full((B,), float(t))[rows], at[rows])
        # 4. Choose by confidence, then draw one token per slot and reveal its chosen digits.
        row, slot = at.nonzero(as_tuple=True)
        asked = y[row, slot].to(logits.device)
        if sure:
            scores = torch.full(hidden.shape, -torch.inf, dtype=logits.dtype if logits.dtype == torch.float64 else torch.float32)
            scores[row, slot] = confidence(logits, asked, code, order).cpu()
            chosen = first(eligible.flatten(1), scores.flatten(1), K).view_as(hidden)
            used = chosen.any(2)[row, slot]
            row, slot, logits, asked = row[used], slot[used], logits[used.to(logits.device)], asked[used.to(logits.device)]
        token = draw_tokens(logits, asked, code, temperature, u[row, slot, -1]).cpu()
        y = y.clone()
        y[row, slot] = torch.where(chosen[row, slot], code.encode(token), y[row, slot])
        return y, log_g

    has_gaps = None                                                                            # not known before the first answer
    for i in range(steps):
        t, s = i / steps, (i + 1) / steps
        new, log_g = reveal(y, n, t, float(unmasking.step(t, s)))
        has_gaps = log_g is not None
        y[:, :new.shape[1]] = new
        if has_gaps:
            L = log_g.shape[1] - 1
            live = below(n + 1, L + 1) & opened[:, :L + 1]
            missing = torch.where(live, log_g.cpu().double().exp().clamp_max(block_size), 0)    # g: how many are expected
            counts = torch.zeros(B, block_size + 1, dtype=torch.int64)
            counts[:, :L + 1] = draws.arrivals(missing, float(insertion.step(t, s)))
            y, n, opened = insert(y, n, opened, fit(counts, block_size - n, draws), code.mask)
        if watch:
            watch(s, y, n)

    # The masks that the last step inserted (and those that a window left over).
    k = 0
    while (y == code.mask).any():
        new, _ = reveal(y, n, 1.0, 1 / max(passes - k, 1))
        y[:, :new.shape[1]] = new
        k += 1
        if watch:
            watch(1.0, y, n)
    inside = below(n, block_size)
    x = torch.where(inside, code.decode(torch.where(inside[:, :, None], y, 0)), 0)
    assert (x >= 0).all(), "a generated slot spells no token"
    return x, n


@torch.no_grad()
def generate_left_to_right(predict, code, B, block_size, end, temperature=1.0, start=None, seeds=None):
    """The autoregressive baseline: one token per network call, until every row has drawn `end`. Returns (x, n), n without the end token."""
    draws = Draws(seeds)
    x, n = (torch.zeros(B, 0, dtype=torch.int64), 0) if start is None else (start, start.shape[1])
    alive = torch.ones(B, dtype=torch.bool)
    while alive.any() and x.shape[1] < block_size:
        x = torch.cat([x, x.new_zeros(B, 1)], 1)
        L = x.shape[1]
        at = torch.zeros(B, L, dtype=torch.bool)
        at[:, -1] = True
        y = code.encode(x)
        y[:, -1] = code.mask
        logits, _ = predict(y, torch.full((B,), L), torch.ones(B), at)
        token = draw_tokens(logits, y[:, -1].to(logits.device), code, temperature, draws.uniform(B, 1)[:, 0]).cpu()
        x[:, -1] = torch.where(alive, token, end)
        alive &= token != end
    return torch.nn.functional.pad(x, (0, block_size - x.shape[1])), ((x == end).cumsum(1) == 0).sum(1)


@torch.no_grad()
def generate_by_blocks(predict, code, start, steps, block, temperature=0.0):
    """LLaDA's own sampler on a fixed canvas (low-confidence remasking, semi-autoregressive; arXiv 2502.09992), the baseline of a retrofit.

    start: (y (B, L, 1), n (B,)). The masks of a row are filled in blocks of `block`, from the left; in each of a block's steps as many as are
    left over steps left, those whose likeliest (temperature 0) or drawn token is the most probable. Returns (x, n).
    """
    y, n = start[0].clone(), start[1]
    number = (y == code.mask)[:, :, 0].cumsum(1)                                               # 1, 2, ... at the masks
    blocks = -(-int(number.max()) // block)
    for b in range(blocks):
        per_block = max(1, steps // blocks)
        for i in range(per_block):
            at = (y == code.mask)[:, :, 0] & (number <= (b + 1) * block)                       # (B, L)
            if not at.any():
                break
            logits = predict(y, n, torch.zeros(len(y)), at)[0]
            token = draw_tokens(logits, y[at].to(logits.device), code, temperature, torch.rand(len(logits), dtype=torch.float64))
            sure = logits.float().softmax(1).gather(1, token[:, None])[:, 0].cpu()
            scores = torch.full(at.shape, -torch.inf).masked_scatter(at, sure)
            new = y.masked_scatter(at[:, :, None], code.encode(token.cpu()))
            y = torch.where(first(at, scores, -(-at.sum(1) // (per_block - i)))[:, :, None], new, y)
    inside = below(n, y.shape[1])
    return torch.where(inside, code.decode(torch.where(inside[:, :, None], y, 0)), 0), n


def texts(x, n, tokenizer, holes=False):
    """Ids and lengths -> strings. A fixed canvas ends a document with its first end token; with holes, given text follows: end tokens are skipped."""
    rows = [row[:length] for row, length in zip(x.tolist(), n.tolist())]
    if holes:
        return [tokenizer.decode([v for v in row if v != tokenizer.eot]) for row in rows]
    return [tokenizer.decode(row[:row.index(tokenizer.eot)] if tokenizer.eot in row else row) for row in rows]


# ---- the command line ----------------------------------------------------------------------------------------------------------------

@dataclass
class Args:
    out_dir: str = flag("out", "the folder of a training run, or a checkpoint")
    num_samples: int = flag(10, "documents to write")
    steps: int = flag(128, "sampling steps")
    order: str = flag("random", "which masks are revealed first", ORDERS)
    temperature: float = flag(1.0, "1: what the model says; 0: always the likeliest token")
    window: int = flag(0, "reveal only the leftmost masks of this many; 0: any", low=0)
    prompt: str = flag("", "a beginning to continue")
    infill: str = flag("", "a text with holes: [..] is one token or more; on a fixed canvas say how many, as in [..8]")
    show: bool = flag(False, "play the generation in the terminal")
    trace: str = flag("", "save the generation of one document as a .gif")
    save: str = flag("", "write the documents to this .jsonl instead of the terminal")
    insertion: str = flag("", "another insertion schedule than in training; the network is told the time that fits it")
    unmasking: str = flag("", "another unmasking schedule than in training")
    batch_size: int = flag(64, "documents at a time; the documents do not depend on it")
    seed: int = flag(0, "fixes the documents on a CPU", low=0)
    device: str = flag("auto", "auto, cpu, cuda, mps")


HOLE = re.compile(r"\[\.\.(\d*)\]")


def parse_pattern(pattern, encode):
    """'a[..]b[..3]' -> (parts, holes): the given tokens around the holes, and each hole's size (None: unknown). parts has one more."""
    found = list(HOLE.finditer(pattern))
    if not found:
        raise Fail(f"--infill {pattern!r} has no hole: mark each place to fill with [..], as in 'for [..] in range([..]): pass'")
    ends = [0] + [m.end() for m in found]
    starts = [m.start() for m in found] + [len(pattern)]
    return [encode(pattern[a:z]) for a, z in zip(ends, starts)], [int(m[1][:9]) if m[1] else None for m in found]


def start_from(parts, holes, code, block_size, fixed, end, end_open=False, anchored=True):
    """The state that sampling starts from, for one row: (y (1, L, ell), n (1,), opened (1, L + 1)).

    With insertion, each hole begins as one mask (interpolant.anchors_of; anchored=False: as nothing, since it may stay empty) and only the
    gaps at holes are open. On a fixed canvas, holes are as many masks as they say; what follows the last given token is end tokens
    (with end=None: nothing), or masks when it is open (a prompt).
    """
    if fixed and None in holes:
        raise Fail("this model has a fixed canvas: say how many tokens each hole has, as in [..5], or use a flexmdm model")
    if end_open:
        parts, holes = [*parts, []], [*holes, 0]
    if not fixed:
        holes = [int(anchored)] * len(holes)
    size = sum(map(len, parts))
    if size + sum(holes) > block_size:
        raise Fail(f"the given text is {size} tokens long, which leaves no room for the rest in the model's block_size of {block_size}: shorten it")
    ids, opened = list(parts[0]), set()
    for hole, part in zip(holes, parts[1:]):
        opened |= {len(ids), len(ids) + hole}
        ids += [-1] * hole + list(part)
    if fixed and (end_open or end is not None):
        ids += [-1 if end_open else end] * (block_size - len(ids))
    ids = torch.tensor(ids, dtype=torch.int64)[None]
    y = torch.where((ids < 0)[:, :, None], code.mask, code.encode(ids.clamp_min(0)))
    gaps = torch.zeros(1, ids.shape[1] + 1, dtype=torch.bool)
    gaps[0, list(opened)] = True
    return y, torch.tensor([ids.shape[1]]), gaps


def stack(starts, code):
    """Several of start_from's states as one batch."""
    L = max(y.shape[1] for y, _, _ in starts)
    pad = torch.nn.functional.pad
    return (torch.cat([pad(y, (0, 0, 0, L - y.shape[1]), value=code.pad) for y, _, _ in starts]), torch.cat([n for _, n, _ in starts]),
            torch.cat([pad(opened, (0, L + 1 - opened.shape[1])) for _, _, opened in starts]))


def retimed(predict, trained, used):
    """predict under another insertion schedule: the network knows alpha(t) only, so it is given the time at which its own alpha is equal."""
    return lambda y, n, t, at: predict(y, n, trained.inverse(used.at(t)), at)


class Movie:
    """Records the states of one document as frames: lists of (text, kind), kind in given | masked | new | revealed."""

    def __init__(self, code, tokenizer, start=None):
        self.code, self.tokenizer, self.frames, self.before = code, tokenizer, [], None

    def __call__(self, t, y, n):
        row = [tuple(s) for s in y[0, :int(n[0])].tolist()]
        if row != self.before:
            self.frames.append((t, [self.cell(s) for s in row], self.changed(row)))
            self.before = row

    def cell(self, digits):
        """One slot as text: its token; a dark block where nothing is revealed, a light one where some digits are."""
        hidden = sum(d == self.code.mask for d in digits)
        if hidden:
            return "\u2588" if hidden == len(digits) else "\u2592"
        text = self.tokenizer.decode([int(self.code.decode(torch.tensor(digits)))])
        return {"\n": "\u21b5", "\t": "\u2192", "\0": "\u00b7"}.get(text, text)

    def changed(self, row):
        """For each slot, what happened in this step: 'new' (inserted), 'revealed', or ''. Old slots keep their order, so they are found
        by matching greedily from the left: a slot can be the old one if it agrees with its revealed digits."""
        if self.before is None:
            return [""] * len(row)
        out, i, spare = [], 0, len(row) - len(self.before)
        for s in row:
            old = self.before[i] if i < len(self.before) else None
            fits = old is not None and all(a in (b, self.code.mask) for a, b in zip(old, s))
            inserted = all(d == self.code.mask for d in s) and spare > 0 and (not fits or old != s)
            if inserted or not fits:
                out.append("new")
                spare -= 1
            else:
                out.append("" if old == s else "revealed")
                i += 1
        return out


def play(movie, seconds=6.0):
    """Play the frames in the terminal: inserted masks blue, freshly revealed tokens green."""
    colour = {"": "", "new": "\033[44m", "revealed": "\033[30;42m"}
    pause = min(0.25, seconds / max(1, len(movie.frames))) if sys.stdout.isatty() else 0
    for t, cells, changed in movie.frames:
        line = "".join(f"{colour[c]}{s}\033[0m" if c else s for s, c in zip(cells, changed))
        print(("\r\033[K" if pause else "") + f"t={t:.3f} {line}", end="" if pause else "\n", flush=True)
        time.sleep(pause)
    if pause:
        print()


def draw_gif(path, movie, most=120):
    """The same as a .gif: at most `most` frames, the last one held."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.animation import FuncAnimation, PillowWriter
    frames = movie.frames[::max(1, -(-len(movie.frames) // most))]
    frames = frames + [movie.frames[-1]] * 12
    width = 48
    rows = max(1, -(-max(len(f[1]) for f in frames) // width))
    figure = plt.figure(figsize=(0.15 * width, 0.3 * (rows + 1)), dpi=100)
    axes = figure.add_axes((0.01, 0.02, 0.98, 0.96))
    face = {"": "white", "new": "#9ecae1", "revealed": "#a1d99b"}

    def draw(k):
        t, cells, changed = frames[k]
        axes.clear()
        axes.set(xlim=(0, width), ylim=(-rows, 0.95))
        axes.axis("off")
        axes.text(0, 0.35, f"t = {t:.3f}", fontsize=9, family="monospace", color="#666666")
        for i, (s, c) in enumerate(zip(cells, changed)):
            masked = s in "\u2588\u2592"
            x, top = i % width, -(i // width)
            axes.add_patch(plt.Rectangle((x + 0.03, top - 0.92), 0.94, 0.84, color=face[c] if c else "#d9d9d9" if masked else "white"))
            axes.text(x + 0.5, top - 0.48, "" if masked else s.replace("$", r"\$"), ha="center", va="center", fontsize=10, family="monospace")

    animation = FuncAnimation(figure, draw, frames=len(frames))
    temporary = path + ".part.gif"
    try:
        animation.save(temporary, writer=PillowWriter(fps=12))
        os.replace(temporary, path)
    finally:
        plt.close(figure)
        if os.path.exists(temporary):
            os.unlink(temporary)


def checked(args):
    if args.prompt and args.infill:
        raise Fail("--prompt and --infill are two different things: give one (a prompt is --infill 'text[..]')")
    if args.trace and not args.trace.endswith(".gif"):
        raise Fail(f"--trace {args.trace} must end in .gif")
    return args


def draw_documents(loaded, tokenizer, args, watch=None):
    """Yield the texts that the flags ask for. Document i is drawn from seed (args.seed, i), whatever the batch."""
    code, run = loaded.code, loaded.run
    trained = interpolant.schedule(run["insertion"])
    try:
        insertion, unmasking = interpolant.schedule(args.insertion or run["insertion"]), interpolant.schedule(args.unmasking or run["unmasking"])
    except ValueError as e:
        raise Fail(str(e)) from None
    fixed = trained.name == "instant"
    if (insertion.name == "instant") != fixed:
        raise Fail(f"this model was trained {'without' if fixed else 'with'} insertion: leave --insertion {args.insertion} out")
    predict = loaded.predict if args.insertion in ("", run["insertion"]) else retimed(loaded.predict, trained, insertion)
    start = None
    if args.infill:
        start = start_from(*parse_pattern(args.infill, tokenizer.encode), code, loaded.config.block_size, fixed, tokenizer.eot)
    elif args.prompt:
        start = start_from([tokenizer.encode(args.prompt)], [], code, loaded.config.block_size, fixed, tokenizer.eot, end_open=True)
    if run["method"] == "ar" and args.infill:
        raise Fail("an autoregressive model cannot fill holes: give it a --prompt")
    for first in range(0, args.num_samples, args.batch_size):
        B = min(args.batch_size, args.num_samples - first)
        seeds = [(args.seed * 1_000_003 + first + i) % 2 ** 32 for i in range(B)]
        if run["method"] == "ar":
            given = torch.tensor([tokenizer.encode(args.prompt)] * B, dtype=torch.int64).view(B, -1) if args.prompt else None
            x, n = generate_left_to_right(predict, code, B, loaded.config.block_size, tokenizer.eot, args.temperature, given, seeds)
        else:
            begin_at = None if start is None else tuple(s.expand(B, *s.shape[1:]) for s in start)
            x, n = generate(predict, code, B, loaded.config.block_size, args.steps, insertion, unmasking, args.order, args.temperature,
                            begin_at, window=args.window or None, seeds=seeds, watch=watch if first == 0 else None)
        yield from texts(x, n, tokenizer, holes=bool(args.infill))


def run(argv=None):
    args = checked(parse(Args, __doc__, argv))
    path = args.out_dir if args.out_dir.endswith(".pt") else os.path.join(args.out_dir, "ckpt.pt")
    loaded = model.load(path, model.pick_device(args.device))
    tokenizer = data.tokenizer_from(loaded.tokenizer)
    movie = Movie(loaded.code, tokenizer) if args.show or args.trace else None
    began = time.perf_counter()
    if args.show or args.trace:
        args.batch_size = 1
    documents = draw_documents(loaded, tokenizer, args, movie)
    if args.save:
        with aside(args.save) as f:
            for text in documents:
                f.write(json.dumps({"text": text}) + "\n")
        print(f"{args.num_samples} documents in {args.save}, {time.perf_counter() - began:.1f} s")
        return
    for i, text in enumerate(documents):
        if args.show and i == 0:
            play(movie)
        print(text)
        if args.trace and i == 0:
            draw_gif(args.trace, movie)
            print(f"the making of the first is in {args.trace}", file=sys.stderr)


if __name__ == "__main__":
    main(run)
