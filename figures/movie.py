"""A generation as a moving picture: documents while they are written.

    film, text = record(loaded, prompt="for ")
    play(film)                          # in the terminal
    draw_gif("trace.gif", film)

A film is a list of frames (t, documents), a document is a list of cells, one for each slot.

assumption: a character is one column wide (Chinese and emoji are two in most terminals).
"""
import os
import shutil
import sys
import time
from typing import NamedTuple

import matplotlib
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

import sampler
from common import say
from figures import images

COLOURS = {     # kind -> the terminal's code; background and text colour of the picture
    "masked": ("90", "#d3d6da", "#d3d6da"),
    "inserted": ("94", "#3d82d1", "#3d82d1"),           # just now; then it counts as masked
    "some digits": ("36", "#d9ecef", "#5d9aa5"),
    "revealed": ("32", "#b4e3b4", "#000000"),           # just now; then it is plain text
    "given": ("33", "#f6e3c5", "#7a4a00"),
    "": ("0", "#ffffff", "#000000")}
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
    possible = {(len(old), len(new))}       # (i, j): new[j:] can be old[i:] and inserted slots

    def stays(i, j):
        agrees = i < len(old) and all(a in (b, mask) for a, b in zip(old[i], new[j]))
        return agrees and (i + 1, j + 1) in possible

    for j in reversed(range(len(new))):
        masked = all(digit == mask for digit in new[j])
        for i in range(max(0, j - spare), min(j, len(old)) + 1):
            if stays(i, j) or (masked and (i, j + 1) in possible):
                possible.add((i, j))
    found, i = [], 0
    for j in range(len(new)):
        if stays(i, j):
            found.append(i)
            i += 1
        else:
            found.append(-1)
    return found


class Recorder:
    """The `watch` of sampler.generate. state: sampler.begin's, what there is at t = 0"""

    def __init__(self, code, tokenizer, state):
        self.code, self.tokenizer, self.film = code, tokenizer, []
        self(0.0, state.y, state.n)

    def __call__(self, t, y, n):
        before = self.film[-1][1] if self.film else [[]] * len(n)
        now = []
        for old, slots, size in zip(before, y.tolist(), n.tolist()):
            now.append(self.follow(old, [tuple(slot) for slot in slots[:size]]))
        if now != before or not self.film:
            self.film.append((t, now))

    def follow(self, old, slots):
        """The cells of a document: from those in the last frame, and its slots now"""
        cells = []
        for slot, i in zip(slots, match([cell.digits for cell in old], slots, self.code.mask)):
            if i >= 0 and old[i].digits == slot:
                cells.append(old[i])
                continue
            kind = "inserted" if i < 0 else "revealed"
            if not self.film:
                kind = "masked" if self.code.mask in slot else "given"
            cells.append(Cell(slot, self.text(slot), kind, len(self.film)))
        return cells

    def text(self, slot):
        masked = slot.count(self.code.mask)
        if masked:
            return MASKED if masked == len(slot) else PARTLY
        return self.tokenizer.decode([int(self.code.decode(torch.tensor(slot)))]) or END


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
        state = state._replace(n=(state.y != code.mask).all(2).sum(1))
    watch = Recorder(code, loaded.tokenizer, state)
    x, n = loaded.documents(B, start, watch=watch, **settings)
    if loaded.config.causal:
        write_left_to_right(watch, code.encode(x), int(state.n[0]), n)
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
# what the terminal and the picture share: lines of (character, kind)

def layout(cells, news, width):
    """A document as lines of at most `width` characters. A line that goes on is indented. What
    happened after frame `news` is new."""
    lines = [[]]
    for cell in cells:
        kind = cell.kind
        if kind in ("inserted", "revealed") and cell.since <= news:
            kind = {MASKED: "masked", PARTLY: "some digits"}.get(cell.text, "")
        for c in cell.text:
            if len(lines[-1]) == width:
                lines.append([(" ", "")] * 2)
            lines[-1].append((c if c.isprintable() else SYMBOLS.get(c, END), kind))
            if c == "\n":
                lines.append([])
    return lines


def scenes(film, most, width):
    """At most `most` frames of a film, evenly, and at the end one in which nothing is new: (t,
    lines). The kinds that occur."""
    stride = -(-len(film) // most)
    begun = [i for i, (_, documents) in enumerate(film)         # no blank beginning
             if 2 * sum(map(bool, documents)) >= len(documents)]
    shown = begun[::-1][::stride][::-1] or [0]
    pages = []                                                  # a frame: its documents' lines
    for i, news in [(i, i - 2 * stride) for i in shown] + [(shown[-1], len(film))]:
        pages.append([layout(cells, news, width) for cells in film[i][1]])
    heights = [max(map(len, versions)) for versions in zip(*pages)]     # documents do not jump
    frames = []
    for i, page in zip([*shown, shown[-1]], pages):
        lines = []
        for document, height in zip(page, heights):
            lines += document + [[]] * (height - len(document))
        frames.append((film[i][0], lines))
    seen = {kind for _, lines in frames for line in lines for _, kind in line}
    return frames, [kind for kind in COLOURS if kind and kind in seen]


def heading(t, kinds):
    """The first line: the time, and a legend"""
    line = [(c, "") for c in f"t = {t:.2f}"]
    for kind in kinds:
        block = PARTLY if kind == "some digits" else MASKED
        line += [(" ", ""), (" ", ""), (block, kind), *((c, "") for c in f" {kind}")]
    return line


# -----------------------------------------------------------------------------
# the terminal, the picture

def play(film, seconds=8.0):
    """Play a film in the terminal, in place; into a file or a pipe: a few frames as plain text."""
    live, size = sys.stdout.isatty(), shutil.get_terminal_size()
    most = 100 if live else 8
    frames, kinds = scenes(film, most, size.columns - 1)
    if not live or len(heading(0, kinds)) >= size.columns:
        kinds = []
    for i, (t, lines) in enumerate(frames):
        lines = [heading(t, kinds), *lines]
        if not live:
            say("\n".join("".join(c for c, _ in line) for line in lines))
            continue
        if i + 1 < len(frames):                     # the last one may be higher than the terminal
            lines = lines[:size.lines - 1]
        for line in lines:
            say("".join(f"\033[{COLOURS[kind][0]}m{c}" for c, kind in line) + "\033[0m\033[K")
        if i + 1 < len(frames):
            time.sleep(min(0.25, seconds / len(frames)))
            sys.stdout.write(f"\033[{len(lines)}A")


CHAR, LINE = 10, 25             # pixels: the width of a character, the height of a line
FONT = os.path.join(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSansMono.ttf")


def draw_gif(path, film, most=100, width=72):
    """Save a film as a .gif of about `most` frames, ten a second; the last one stays for three."""
    frames, kinds = scenes(film, most, width)
    frames = [[heading(t, kinds), [], *lines] for t, lines in frames]
    columns = max(len(line) for lines in frames for line in lines)
    font, pictures = ImageFont.truetype(FONT, 16), []
    for lines in frames:
        picture = Image.new("RGB", ((columns + 4) * CHAR, len(lines) * LINE), "white")
        draw = ImageDraw.Draw(picture)
        for row, line in enumerate(lines):
            for column, (c, kind) in enumerate(line):
                x, y, gap = (column + 2) * CHAR, row * LINE, 0
                if c in (MASKED, PARTLY):           # blocks that can be counted
                    c, gap = "", 1
                _, behind, colour = COLOURS[kind]
                draw.rectangle((x + gap, y + 3, x + CHAR - 1 - gap, y + LINE - 4), behind)
                draw.text((x, y + 3), c, colour, font)
        pictures.append(np.asarray(picture))
    images.save(path, pictures)
