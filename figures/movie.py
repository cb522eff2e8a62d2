"""A generation as a moving picture: documents while they are written.

    film, text = record(loaded, prompt="for ")
    play(film)                          # in the terminal
    draw_gif("trace.gif", film)

A film is a list of frames (t, documents), a document a list of cells, one for each slot. Masked slots are blocks:
blue when they were just inserted. Tokens are green when they were just revealed, brown if given.

assumption: a character is one column wide (Chinese and emoji are two in most terminals).
"""
import shutil
import sys
import time
from typing import NamedTuple

import torch

import sampler
from common import atomic_open, say

COLOURS = {     # kind -> terminal code, background and text colour of the picture
    "masked": ("90", "#d3d6da", "#8b9096"),
    "inserted": ("94", "#3d82d1", "#ffffff"),
    "revealed": ("32", "#b4e3b4", "#000000"),
    "given": ("33", "#f6e3c5", "#7a4a00"),
    "": ("", "none", "#000000")}
SYMBOLS = {"\n": "\u21b5", "\t": "\u2192"}


class Cell(NamedTuple):
    digits: tuple
    text: str           # a block where all digits are masked, a pale one where some are
    kind: str           # what happened to it last: given, masked (from the start), inserted, revealed
    since: int          # and in which frame


# -----------------------------------------------------------------------------
# recording

def match(old, new, mask):
    """Which slot of `old` each slot of `new` is: indices, -1 for those inserted since. Old slots keep
    their order and their revealed digits; inserted slots are masked. Where several answers are
    possible (a mask among masks) the old slots are the leftmost."""
    spare = len(new) - len(old)
    # possible[j][k]: can new[j:] be explained if k of new[:j] are inserted?
    possible = [[False] * (spare + 2) for _ in range(len(new) + 1)]
    possible[len(new)][spare] = True

    def stays(j, k):
        i = j - k
        agrees = i < len(old) and all(a in (b, mask) for a, b in zip(old[i], new[j]))
        return agrees and possible[j + 1][k]

    for j in reversed(range(len(new))):
        masked = all(digit == mask for digit in new[j])
        for k in range(min(j, spare) + 1):
            possible[j][k] = stays(j, k) or (masked and possible[j + 1][k + 1])
    found, k = [], 0
    for j in range(len(new)):
        found.append(j - k if stays(j, k) else -1)
        k += found[-1] < 0
    return found


class Recorder:
    """The `watch` of sampler.generate: collects the frames of a film."""

    def __init__(self, code, tokenizer, state):
        self.code, self.tokenizer, self.film = code, tokenizer, []
        self.documents = [[] for _ in state.n]
        for document, row in zip(self.documents, self.rows(state.y, state.n)):
            kinds = ["masked" if code.mask in slot else "given" for slot in row]
            document += [Cell(slot, self.text(slot), kind, -9) for slot, kind in zip(row, kinds)]

    def rows(self, y, n):
        """(B, L, ell), (B,) -> for each document a list of slots, tuples of digits"""
        return [[tuple(slot) for slot in row[:size]] for row, size in zip(y.tolist(), n.tolist())]

    def text(self, slot):
        masked = slot.count(self.code.mask)
        if masked:
            return "\u2588" if masked == len(slot) else "\u2592"
        token = int(self.code.decode(torch.tensor(slot)))
        return self.tokenizer.decode([token]) or "\u00b7"           # an end token has no text

    def __call__(self, t, y, n):
        new = [self.follow(old, row) for old, row in zip(self.documents, self.rows(y, n))]
        if new != self.documents:
            self.film.append((t, new))
            self.documents = new

    def follow(self, old, row):
        """The cells of a document, from those of the frame before and its slots now"""
        now, cells = len(self.film), []
        for slot, i in zip(row, match([cell.digits for cell in old], row, self.code.mask)):
            if i < 0:
                cells.append(Cell(slot, self.text(slot), "inserted", now))
            elif old[i].digits == slot:
                cells.append(old[i])
            else:
                cells.append(Cell(slot, self.text(slot), "revealed", now))
        return cells


def record(loaded, seed=0, num_samples=6, prompt="", infill="", **settings):
    """Generate a few documents: as many as num_samples, but at most 6 short ones, one long one.
    settings: as in Loaded.generate. -> the film, and the documents as one text, one below the other"""
    block_size = loaded.config.block_size
    B = max(1, min(6, num_samples, 512 // block_size))
    torch.manual_seed(seed)
    start = loaded.start(prompt, infill)
    begin = start and [x.expand(B, *x.shape[1:]) for x in start]
    watch = Recorder(loaded.code, loaded.tokenizer,
                     sampler.begin(loaded.code, B, block_size, loaded.fixed, begin))
    x, n = loaded.documents(B, start, watch=watch, **settings)
    if loaded.config.causal:
        watch.documents = [[cell for cell in cells if cell.kind == "given"] for cells in watch.documents]
        write_left_to_right(watch, loaded.code.encode(x), n)
    return watch.film, "\n".join(loaded.texts(x, n, bool(infill)))


def write_left_to_right(watch, y, n):
    """The frames of autoregressive documents: each token is first a mask"""
    for L in range(len(watch.documents[0]), int(n.max())):
        masked = y.clone()
        masked[:, L] = watch.code.mask
        watch(L / int(n.max()), masked, n.clamp_max(L + 1))
        watch((L + 1) / int(n.max()), y, n.clamp_max(L + 1))


# -----------------------------------------------------------------------------
# what the terminal and the picture share

def thin(film, most):
    """At most `most` frames, evenly, with the last: (now, t, documents) each, now in frames of the
    film; and how many of these something counts as new."""
    stride = max(1, -(-len(film) // most))
    kept = [i for i in range(len(film)) if (len(film) - 1 - i) % stride == 0]
    kept = [i for i in kept if any(film[i][1])] or kept[-1:]        # no blank beginning
    return [(i, *film[i]) for i in kept], 2 * stride


def layout(cells, now, recent, width):
    """A document as lines of at most `width` characters: lists of (character, kind)"""
    lines = [[]]
    for cell in cells:
        kind = cell.kind
        if kind in ("inserted", "revealed") and now - cell.since >= recent:
            kind = "masked" if cell.text in "\u2588\u2592" else ""
        for c in cell.text:
            if len(lines[-1]) == width:
                lines.append([])
            lines[-1].append((c if c.isprintable() else SYMBOLS.get(c, "\u00b7"), kind))
            if c == "\n":
                lines.append([])
    return lines


def runs(line):
    """A line as (column, text, kind), one for each run of equal kind"""
    found = []
    for column, (c, kind) in enumerate(line):
        if found and found[-1][2] == kind:
            found[-1][1] += c
        else:
            found.append([column, c, kind])
    return found


def lay_out(film, most, width):
    """-> frames (t, lines), each with equally many lines (documents do not jump), and the kinds that
    occur"""
    frames, recent = thin(film, most)
    laid = [(t, [layout(cells, now, recent, width) for cells in documents])
            for now, t, documents in frames]
    heights = [max(map(len, lines)) for lines in zip(*(documents for _, documents in laid))]
    whole = []
    for t, documents in laid:
        rows = [lines + [[]] * (height - len(lines)) for lines, height in zip(documents, heights)]
        whole.append((t, [runs(line) for lines in rows for line in lines]))
    seen = {kind for _, lines in whole for line in lines for _, _, kind in line}
    return whole, heights, [kind for kind in COLOURS if kind and kind in seen]


# -----------------------------------------------------------------------------
# the terminal

def paint(text, kind, coloured):
    code = COLOURS[kind][0]
    return f"\033[{code}m{text}\033[0m" if coloured and code else text


def play(film, seconds=8.0):
    """Play a film in the terminal, in place; into a file or a pipe, a few frames as plain text."""
    live = sys.stdout.isatty()
    size = shutil.get_terminal_size()
    frames, _, kinds = lay_out(film, 100 if live else 10, size.columns - 1)
    legend = "  ".join(paint(f"\u2588 {kind}", kind, live) for kind in kinds)
    up = ""
    for t, lines in frames:
        shown = ["".join(paint(text, kind, live) for _, text, kind in line) for line in lines]
        shown = [f"t = {t:.2f}   {legend}"] + shown
        if live:
            shown = [line + "\033[K" for line in shown[:size.lines - 1]]
            time.sleep(min(0.25, seconds / len(frames)))
        say(up + "\n".join(shown))
        up = f"\033[{len(shown)}A" if live else ""


# -----------------------------------------------------------------------------
# the picture

CHAR, LINE, GAP = 10, 21, 9             # pixels: a character's width, a line's height, between documents


def draw_gif(path, film, most=100, width=72):
    """Save a film as a .gif of at most `most` frames, the last of which stays for three seconds."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from PIL import Image               # which matplotlib needs itself
    frames, heights, kinds = lay_out(film, most, width)
    columns = max(40, max(column + len(text) for _, lines in frames for line in lines
                          for column, text, _ in line))
    size = (columns + 4) * CHAR, (sum(heights) + 2) * LINE + len(heights) * GAP
    figure = plt.figure(figsize=(size[0] / 100, size[1] / 100), dpi=100)
    images = []
    for t, lines in frames:
        figure.clear()
        draw_frame(figure.add_axes((0, 0, 1, 1)), size, t, lines, heights, kinds)
        figure.canvas.draw()
        image = Image.fromarray(figure.canvas.buffer_rgba().__array__()).convert("RGB")
        images.append(image.quantize(64))
    plt.close(figure)
    with atomic_open(path, "wb") as f:
        images[0].save(f, format="GIF", save_all=True, append_images=images[1:], loop=0,
                       duration=[100] * (len(images) - 1) + [3000])


def draw_frame(axes, size, t, lines, heights, kinds):
    axes.set(xlim=(0, size[0]), ylim=(size[1], 0))
    axes.axis("off")
    font = dict(family="monospace", fontsize=CHAR / 0.602 * 0.72, va="center_baseline", parse_math=False)
    x, y = 2 * CHAR, LINE
    axes.text(x, y, f"t = {t:.2f}", color="#666666", **font)
    x = size[0] - 2 * CHAR - sum(len(kind) + 3 for kind in kinds) * CHAR
    for kind in kinds:
        block(axes, x, y, 1, kind)
        axes.text(x + 1.5 * CHAR, y, kind, color="#444444", **font)
        x += (len(kind) + 3) * CHAR
    ends = [sum(heights[:i + 1]) for i in range(len(heights))]
    for i, line in enumerate(lines):
        y = (i + 2.2) * LINE + GAP * sum(i >= end for end in ends)
        for column, text, kind in line:
            x = (column + 2) * CHAR
            if kind in ("masked", "inserted"):
                for k in range(len(text)):
                    block(axes, x + k * CHAR, y, 1, kind)
            else:
                block(axes, x, y, len(text), kind)
                axes.text(x, y, text, color=COLOURS[kind][2], **font)


def block(axes, x, y, columns, kind):
    """The background of some characters; single blocks can be counted"""
    from matplotlib.patches import Rectangle
    gap = 1.5 if columns == 1 and kind in ("masked", "inserted") else 0
    corner = x + gap / 2, y - 0.42 * LINE
    axes.add_patch(Rectangle(corner, columns * CHAR - gap, 0.84 * LINE, color=COLOURS[kind][1], lw=0))
