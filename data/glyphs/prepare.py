"""glyphs: letters and digits in the fonts that matplotlib ships, 16 x 16, 256 greys; no download.

    python data/glyphs/prepare.py           # some seconds; train.py does it where it is missing

62 characters in about 22 fonts, white on black, each image with its own size, slant and shift. Of
the pairs of a character and a font an eleventh is held out: in validation both are known, but not
together.
"""
import os
import string
import sys

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.ft2font import FT2Font, LoadFlags
from matplotlib.path import Path
from matplotlib.transforms import IdentityTransform

sys.path.insert(0, os.path.abspath(os.path.join(os.path.dirname(__file__), "..", "..")))
import data
from common import main, say
from data.writing import INTENSITIES, write_images

TOKENIZER, BLOCK_SIZE = INTENSITIES, 256
TRAINING = dict(method="prime", n_layer=4, n_head=4, n_embd=96, batch_size=32, learning_rate=2e-3,
                max_iters=2800, eval_interval=700, eval_iters=8, sample_steps=32)
SIDE = 16
CHARACTERS = string.ascii_letters + string.digits
SYMBOLS = "LastResort", "cmex", "cmsy"          # fonts in which letters have other shapes


def outlines():
    """Every character in every font that has all of them: [(vertices in em, codes)]"""
    folder, found = os.path.join(matplotlib.get_data_path(), "fonts", "ttf"), []
    for name in sorted(os.listdir(folder)):
        if not name.endswith(".ttf") or name.startswith(SYMBOLS):
            continue
        font = FT2Font(os.path.join(folder, name))
        if not set(map(ord, CHARACTERS)) <= set(font.get_charmap()):
            continue
        font.set_size(100, 72)
        for character in CHARACTERS:
            font.load_char(ord(character), LoadFlags.NO_HINTING)
            vertices, codes = font.get_path()
            found.append((vertices / 100, codes))
    return found


def placed(vertices, codes, rng):
    """An outline in pixels: slanted, 13 to 17 pixels an em but at most 14 in all, about centred"""
    slanted = vertices @ np.array([[1, 0], [rng.uniform(-0.25, 0.25), 1]])
    drawn = slanted[codes != Path.CLOSEPOLY]    # closing a line has no place of its own
    low, high = drawn.min(0), drawn.max(0)
    size = min(rng.uniform(13, 17), 14 / (high - low).max())
    centre = SIDE / 2 + rng.uniform(-1, 1, 2)
    return Path((slanted - (low + high) / 2) * size + centre, codes)


def draw(outlines, count, rng):
    """-> (count, 16, 16, 1) uint8: random ones of these outlines"""
    images = np.empty((count, SIDE, SIDE, 1), dtype=np.uint8)
    renderer = RendererAgg(SIDE, SIDE, 72)
    pen = renderer.new_gc()
    pen.set_linewidth(0)                        # filled, no line around it
    pen.set_snap(False)
    for image in images:
        path = placed(*outlines[rng.integers(len(outlines))], rng)
        renderer.clear()
        renderer.draw_path(pen, path, IdentityTransform(), (1, 1, 1, 1))
        image[:, :, 0] = np.asarray(renderer.buffer_rgba())[:, :, 3]
    return images


def prepare(folder, tokenizer, counts=(60_000, 6_000)):
    say(f"preparing {folder}, some seconds")
    rng, pairs = np.random.default_rng(0), outlines()
    order = [pairs[i] for i in rng.permutation(len(pairs))]
    held_out = len(pairs) // 11
    sides = {"train": [draw(order[held_out:], counts[0], rng)],
             "val": [draw(order[:held_out], counts[1], rng)]}
    made = {"name": "glyphs", "matplotlib": matplotlib.__version__}
    write_images(folder, tokenizer, sides, made)


if __name__ == "__main__":
    main(lambda: data.by_hand("glyphs", __doc__))
