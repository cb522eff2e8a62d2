"""A generation as a moving picture: documents while they are written.

    film, text = record(loaded, prompt="for ")
    play(film)                          # in the terminal
    draw_gif("trace.gif", film)

A film is a list of frames (t, documents), a document is a list of cells, one for each slot.

assumption: a character is one column wide (Chinese and emoji are two in most terminals).
"""
import shutil
import sys
import time
from typing import NamedTuple

import torch

import sampler
from common import atomic_open, say

COLOURS = {     # kind -> terminal code; background and text colour of the picture
    "masked": ("90", "#d3d6da", "#8b9096"),
    "inserted": ("94", "#3d82d1", "#ffffff"),           # just now; then it counts as masked
    "some digits": ("36", "#d9ecef", "#5d9aa5"),
    "revealed": ("32", "#b4e3b4", "#000000"),           # just now; then it is plain text
    "given": ("33", "#f6e3c5", "#7a4a00"),
    "": ("", "none", "#000000")}
MASKED, PARTLY, END = "\u2588", "\u2592", "\u00b7"       # a full block, a pale one, a dot
SYMBOLS = {"\n": "\u21b5", "\t": "\u2192"}


class Cell(NamedTuple):
    digits: tuple
    text: str           # its token, or a block
    kind: str           # what happened last: given, masked (from the start), inserted, revealed
    since: int          # in this frame


# -----------------------------------------------------------------------------
# recording

def match(old, new, mask):
    """Which slot of `old` each slot of `new` is: indices, -1 for those inserted since. Old slots
    keep their order and their revealed digits; inserted slots are masked. Where several answers
    are possible (a mask among masks) the old slots are the leftmost."""
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
    """The `watch` of sampler.generate. state: sampler.begin's, what there is at t = 0"""

    def __init__(self, code, tokenizer, state):
        self.code, self.tokenizer = code, tokenizer
        documents = [[self.first_cell(slot) for slot in row] for row in self.rows(state.y, state.n)]
        self.film = [(0.0, documents)]

    def first_cell(self, slot):
        kind = "masked" if self.code.mask in slot else "given"
        return Cell(slot, self.text(slot), kind, 0)

    def rows(self, y, n):
        """(B, L, ell), (B,) -> for each document the list of its slots, tuples of digits"""
        return [[tuple(slot) for slot in row[:size]] for row, size in zip(y.tolist(), n.tolist())]

    def text(self, slot):
        masked = slot.count(self.code.mask)
        if masked:
            return MASKED if masked == len(slot) else PARTLY
        token = int(self.code.decode(torch.tensor(slot)))
        return self.tokenizer.decode([token]) or END

    def __call__(self, t, y, n):
        last = self.film[-1][1]
        new = [self.follow(old, row) for old, row in zip(last, self.rows(y, n))]
        if new != last:
            self.film.append((t, new))

    def follow(self, old, row):
        """The cells of a document: from those in the last frame, and its slots now"""
        now, cells = len(self.film), []
        for slot, i in zip(row, match([cell.digits for cell in old], row, self.code.mask)):
            if i >= 0 and old[i].digits == slot:
                cells.append(old[i])
            else:
                kind = "inserted" if i < 0 else "revealed"
                cells.append(Cell(slot, self.text(slot), kind, now))
        return cells


def record(loaded, seed=0, num_samples=6, prompt="", infill="", **settings):
    """Generate num_samples documents, but at most 6 short ones or one long one. settings: those of
    Loaded.generate. -> the film, and the documents as one text, one below the other"""
    code, block_size = loaded.code, loaded.config.block_size
    B = max(1, min(6, num_samples, 512 // block_size))
    torch.manual_seed(seed)
    start = loaded.start(prompt, infill)
    everywhere = start and [x.expand(B, *x.shape[1:]) for x in start]
    state = sampler.begin(code, B, block_size, loaded.fixed, everywhere)
    if loaded.config.causal:                    # nothing is there but the prompt
        clean = (state.y != code.mask).all(2).sum(1)
        watch = Recorder(code, loaded.tokenizer, state._replace(n=clean))
        x, n = loaded.documents(B, start, **settings)
        write_left_to_right(watch, code.encode(x), int(clean[0]), n)
    else:
        watch = Recorder(code, loaded.tokenizer, state)
        x, n = loaded.documents(B, start, watch=watch, **settings)
    return watch.film, "\n".join(loaded.texts(x, n, bool(infill)))


def write_left_to_right(watch, y, first, n):
    """The frames of autoregressive documents (B, L, ell) from token `first` on: each token is a
    mask, then revealed."""
    last = int(n.max())
    for i in range(first, last):
        masked = y.clone()
        masked[:, i] = watch.code.mask
        watch(i / last, masked, n.clamp_max(i + 1))
        watch((i + 1) / last, y, n.clamp_max(i + 1))


# -----------------------------------------------------------------------------
# what the terminal and the picture share

def layout(cells, age, width):
    """A document as lines of at most `width` characters, each with its kind. A line that goes on is
    indented. age(cell) < 0: what happened to it is news."""
    lines = [[]]
    for cell in cells:
        kind = cell.kind
        if kind in ("inserted", "revealed") and age(cell) >= 0:
            kind = {MASKED: "masked", PARTLY: "some digits"}.get(cell.text, "")
        for c in cell.text:
            if len(lines[-1]) == width:
                lines.append([(" ", "")] * 2)
            lines[-1].append((c if c.isprintable() else SYMBOLS.get(c, END), kind))
            if c == "\n":
                lines.append([])
    return lines


def runs(line):
    """Characters of the same kind, together: [column, text, kind]"""
    found = []
    for column, (c, kind) in enumerate(line):
        if found and found[-1][2] == kind:
            found[-1][1] += c
        else:
            found.append([column, c, kind])
    return found


def scenes(film, most, width):
    """At most `most` frames of a film, evenly, and at the end one in which nothing is news: (t,
    lines of runs). The kinds that occur."""
    stride = -(-len(film) // most)
    begun = [i for i, (_, documents) in enumerate(film)         # no blank beginning
             if 2 * sum(map(bool, documents)) >= len(documents)]
    shown = begun[::-1][::stride][::-1] or [0]
    laid = []
    for i, now in [(i, i) for i in shown] + [(shown[-1], len(film) + 2 * stride)]:
        def age(cell):
            return now - cell.since - 2 * stride
        t, documents = film[i]
        laid.append((t, [layout(cells, age, width) for cells in documents]))
    heights = [max(map(len, lines)) for lines in zip(*(documents for _, documents in laid))]
    frames = []
    for t, documents in laid:                                   # documents do not jump
        padded = []
        for lines, height in zip(documents, heights):
            padded += lines + [[]] * (height - len(lines))
        frames.append((t, [runs(line) for line in padded]))
    seen = {kind for _, lines in frames for line in lines for _, _, kind in line}
    return frames, [kind for kind in COLOURS if kind in seen - {""}]


# -----------------------------------------------------------------------------
# the terminal

def paint(text, kind):
    code = COLOURS[kind][0]
    return f"\033[{code}m{text}\033[0m" if code else text


def play(film, seconds=8.0):
    """Play a film in the terminal, in place; into a file or a pipe: a few frames as plain text."""
    live = sys.stdout.isatty()
    size = shutil.get_terminal_size()
    frames, kinds = scenes(film, 100 if live else 8, size.columns - 1)
    legend = ""
    if live and size.columns > 12 + sum(len(kind) + 4 for kind in kinds):
        legend = "".join(f"  {paint(MASKED, kind)} {kind}" for kind in kinds)
    up = ""
    for i, (t, lines) in enumerate(frames):
        shown = ["".join(text for _, text, _ in line) for line in lines]
        if live:
            shown = ["".join(paint(text, kind) for _, text, kind in line) for line in lines]
        shown = [f"t = {t:.2f}{legend}", *shown]
        if live:
            if i + 1 < len(frames):                     # the last one may be higher than the terminal
                shown = shown[:size.lines - 1]
            shown = [line + "\033[K" for line in shown]
            time.sleep(min(0.25, seconds / len(frames)))
        say(up + "\n".join(shown))
        up = f"\033[{len(shown)}A" if live else ""


# -----------------------------------------------------------------------------
# the picture

CHAR, LINE = 10, 25             # pixels: the width of a character, the height of a line


def draw_gif(path, film, most=100, width=72):
    """Save a film as a .gif of about `most` frames, ten a second; the last one stays for three."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from PIL import Image       # matplotlib needs it, too
    frames, kinds = scenes(film, most, width)
    ends = [column + len(text) for _, lines in frames for line in lines for column, text, _ in line]
    legend = 12 + sum(len(kind) + 3 for kind in kinds)
    size = (max(ends + [legend]) + 4) * CHAR, (len(frames[0][1]) + 2) * LINE
    figure = plt.figure(figsize=(size[0] / 100, size[1] / 100), dpi=100)
    images = []
    for t, lines in frames:
        figure.clear()
        draw_frame(figure.add_axes((0, 0, 1, 1)), size, t, lines, kinds)
        figure.canvas.draw()
        images.append(Image.frombuffer("RGBA", size, figure.canvas.buffer_rgba()).convert("RGB"))
    plt.close(figure)
    most_colours = max(images, key=lambda image: len(image.getcolors(size[0] * size[1])))
    palette = most_colours.quantize(128)
    images = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images]
    with atomic_open(path, "wb") as f:
        images[0].save(f, format="GIF", save_all=True, append_images=images[1:], loop=0,
                       duration=[100] * (len(images) - 1) + [3000])


def draw_frame(axes, size, t, lines, kinds):
    axes.set(xlim=(0, size[0]), ylim=(size[1], 0))
    axes.axis("off")
    x, y = 2 * CHAR, 0.7 * LINE
    write(axes, x, y, f"t = {t:.2f}", "#666666")
    x = size[0] - sum(len(kind) + 3 for kind in kinds) * CHAR
    for kind in kinds:
        block(axes, x, y, 1, kind)
        write(axes, x + 1.5 * CHAR, y, kind, "#666666")
        x += (len(kind) + 3) * CHAR
    for i, line in enumerate(lines):
        y = (i + 2) * LINE
        for column, text, kind in line:
            x = (column + 2) * CHAR
            if kind in ("masked", "inserted", "some digits"):       # blocks that can be counted
                for k in range(len(text)):
                    block(axes, x + k * CHAR, y, 1, kind)
            else:
                block(axes, x, y, len(text), kind)
                write(axes, x, y, text, COLOURS[kind][2])


def write(axes, x, y, text, colour):
    points = CHAR / 0.602 * 0.72                # its characters are 0.602 times as wide as high
    axes.text(x, y, text, color=colour, fontfamily="DejaVu Sans Mono", fontsize=points,
              va="center_baseline", parse_math=False)


def block(axes, x, y, columns, kind):
    """The background of some characters"""
    from matplotlib.patches import Rectangle
    gap = 1.5 if columns == 1 else 0
    axes.add_patch(Rectangle((x + gap / 2, y - 0.36 * LINE), columns * CHAR - gap, 0.72 * LINE,
                             color=COLOURS[kind][1], lw=0))
