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
FONT = os.path.join(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSansMono.ttf")
CHAR, LINE = 10, 25                     # pixels: the width of a character, the height of a line


class Cell(NamedTuple):
    digits: tuple
    text: str           # its token, or a block
    kind: str           # what happened last: given, masked (from the start), inserted, revealed
    since: int          # in this frame


# -----------------------------------------------------------------------------
# recording

def follow(old, slots, frame, code, tokenizer):
    """The cells of a document in a frame. old: its cells before (None at t = 0). slots: its digits.

    Old slots keep their order and their revealed digits, so each of them is the leftmost slot that
    agrees. Where a step inserts and reveals, that may be an equal token beside the true one."""
    cells, rest = [], list(old or [])
    for slot in map(tuple, slots):
        masks, before, text = slot.count(code.mask), None, PARTLY
        if rest and all(a in (b, code.mask) for a, b in zip(rest[0].digits, slot)):
            before = rest.pop(0)
        if before and before.digits == slot:
            cells.append(before)
            continue
        if masks == len(slot):
            text = MASKED
        elif masks == 0:
            text = tokenizer.decode([int(code.decode(torch.tensor(slot)))]) or END
        if old is None:
            kind = "masked" if masks else "given"
        else:
            kind = "inserted" if masks and not before else "revealed"
        cells.append(Cell(slot, text, kind, frame))
    return cells


def film_of(states, code, tokenizer, most=100):
    """At most `most` frames of a generation, whose states are [(t, y, n)], the first at t = 0"""
    begun = [i for i, (_, _, n) in enumerate(states) if 2 * (n > 0).sum() >= len(n)]
    shown = images.thin(begun or [0], most)             # no blank beginning
    documents, film = [None] * len(states[0][2]), []
    for i, (t, y, n) in enumerate(states):
        rows = [slots[:size] for slots, size in zip(y.tolist(), n.tolist())]
        documents = [follow(old, row, len(film), code, tokenizer)
                     for old, row in zip(documents, rows)]
        if i in shown:
            film.append((t, documents))
    return film


def record(loaded, seed=0, num_samples=6, prompt="", infill="", **settings):
    """Generate num_samples documents, but at most 6 short ones or one long one. settings: those of
    Loaded.generate. -> the film, and the documents as one text, one below the other"""
    code, block_size = loaded.code, loaded.config.block_size
    B = max(1, min(6, num_samples, 512 // block_size))
    torch.manual_seed(seed)
    start = loaded.start(prompt, infill)
    first = sampler.begin(code, 1, block_size, loaded.fixed, start)
    states = [(0.0, first.y.expand(B, -1, -1), first.n.expand(B))]

    def watch(t, y, n):
        if not torch.equal(y, states[-1][1]):
            states.append((t, y.clone(), n.clone()))

    x, n = loaded.documents(B, start, watch=watch, **settings)
    if loaded.config.causal:
        prompted = int((first.y[0] != code.mask).all(1).sum())
        states = left_to_right(code.encode(x), n, prompted)
    return film_of(states, code, loaded.tokenizer), "\n".join(loaded.texts(x, n, bool(infill)))


def left_to_right(y, n, prompted):
    """The states of autoregressive documents: a token more in each, after those of the prompt"""
    last = max(1, int(n.max()))
    return [(i / last, y, n.clamp_max(i)) for i in range(prompted, last + 1)]


# -----------------------------------------------------------------------------
# what the terminal and the picture share: lines of (character, kind)

def layout(cells, frame, width):
    """A document as lines of at most `width` characters. A line that goes on is indented. What
    happened in this frame or the one before is new."""
    lines = [[]]
    for cell in cells:
        kind = cell.kind
        if kind in ("inserted", "revealed") and cell.since < frame - 1:
            kind = {MASKED: "masked", PARTLY: "some digits"}.get(cell.text, "")
        for c in cell.text:
            if len(lines[-1]) == width:
                lines.append([(" ", "")] * 2)
            lines[-1].append((c if c.isprintable() else SYMBOLS.get(c, END), kind))
            if c == "\n":
                lines.append([])
    return lines


def scenes(film, width, legend):
    """The frames as lines, and at the end one in which nothing is new. The first line has the time
    and, if it is asked for and fits, a legend of the kinds that occur."""
    pages, documents = [], zip(*(documents for _, documents in film))
    heights = [max(len(layout(cells, 0, width)) for cells in frames) for frames in documents]
    for frame, (t, documents) in [*enumerate(film), (len(film) + 1, film[-1])]:
        lines = [plain(f"t = {t:.2f}")]
        for cells, height in zip(documents, heights):   # one height: nothing jumps
            part = layout(cells, frame, width)
            lines += part + [[]] * (height - len(part))
        pages.append(lines)
    seen, words = {kind for lines in pages for line in lines for _, kind in line}, []
    for kind in COLOURS:
        if kind and kind in seen:
            block = PARTLY if kind == "some digits" else MASKED
            words += [*plain("  "), (block, kind), *plain(f" {kind}")]
    if legend and len(pages[0][0]) + len(words) <= width:
        for lines in pages:
            lines[0] += words
    return pages


def plain(text):
    return [(c, "") for c in text]


# -----------------------------------------------------------------------------
# the terminal, the picture

def play(film, seconds=8.0):
    """Play a film in the terminal, in place; into a file or a pipe: a few frames as plain text."""
    live, size = sys.stdout.isatty(), shutil.get_terminal_size()
    frames = scenes(film, size.columns - 1, legend=live)
    if not live:
        for lines in images.thin(frames, 8):
            say("\n".join("".join(c for c, _ in line) for line in lines))
        return
    for i, lines in enumerate(frames):
        last = i + 1 == len(frames)                 # it may be higher than the terminal
        if not last:
            lines = lines[:size.lines - 1]
        for line in lines:
            say("".join(f"\033[{COLOURS[kind][0]}m{c}" for c, kind in line) + "\033[0m\033[K")
        if not last:
            time.sleep(min(0.25, seconds / len(frames)))
            sys.stdout.write(f"\033[{len(lines)}A")


def draw_gif(path, film, width=72):
    """Save a film as a .gif, ten frames a second; the last one stays for three."""
    frames = scenes(film, width, legend=True)
    columns = max(len(line) for lines in frames for line in lines)
    font, pictures = ImageFont.truetype(FONT, 16), []
    for heading, *lines in frames:
        lines = [heading, [], *lines]
        picture = Image.new("RGB", ((columns + 4) * CHAR, len(lines) * LINE), "white")
        draw = ImageDraw.Draw(picture)
        for row, line in enumerate(lines):
            for column, (c, kind) in enumerate(line):
                x, y = (column + 2) * CHAR, row * LINE + 3
                _, behind, colour = COLOURS[kind]
                if c in (MASKED, PARTLY):           # blocks that can be counted
                    draw.rectangle((x + 1, y, x + CHAR - 2, y + LINE - 7), behind)
                else:
                    draw.rectangle((x, y, x + CHAR - 1, y + LINE - 7), behind)
                    draw.text((x, y), c, colour, font)
        pictures.append(np.asarray(picture))
    images.save(path, pictures)
