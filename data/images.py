"""Images -> a data set. A document is an image: H x W x C intensities of 0 to 255, row by row,
channels last. All have the same length, so no end of text stands between them; meta.json has the
"shape".
"""
import os

import numpy as np

from common import Fail, atomic_open
from data.tokenizers import tag_of, tokenizer_from
from data.writing import finish, unfinished

TOKENIZER = "intensities-256"


def write(folder, tokenizer, sides, made):
    """Make a data set. sides: {"train": [images, ...], "val": [...]}, each (N, H, W, C) uint8;
    lists or generators"""
    if tag_of(tokenizer) != TOKENIZER:
        raise Fail(f"images are no text: leave out --tokenizer {tag_of(tokenizer)}")
    counts = dict.fromkeys(sides, 0)
    with unfinished(folder):
        for side, parts in sides.items():
            with atomic_open(os.path.join(folder, f"{side}.bin"), "wb") as f:
                for images in parts:
                    f.write(images.tobytes())
                    counts[side] += len(images)
                    shape = list(images.shape[1:])
        finish(folder, counts, tokenizer_from(tokenizer), "|u1", made, shape=shape)


def channels_last(planes):
    """(N, 3072): the intensities of red, of green, of blue -> (N, 32, 32, 3)"""
    return np.ascontiguousarray(planes.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
