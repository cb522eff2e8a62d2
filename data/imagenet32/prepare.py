"""imagenet32: ImageNet at 32 x 32 (arXiv 1707.08819), 1,281,167 images, and 50,000 for validation.

    python data/imagenet32/prepare.py --from FOLDER     # train_data_batch_*.npz and val_data.npz

They are at image-net.org, behind a login: Imagenet32_train_npz.zip and Imagenet32_val_npz.zip;
unzip both into one folder. Pickles, which could run code, are refused.
"""
import glob
import os
import sys
import zipfile

import numpy as np

sys.path.insert(0, os.path.abspath(os.path.join(os.path.dirname(__file__), "..", "..")))
import data
from common import Fail, main
from data.cifar10.prepare import TRAINING, channels_last  # noqa: F401 (trained alike)
from data.writing import INTENSITIES, sources, write_images

TOKENIZER, BLOCK_SIZE = INTENSITIES, 32 * 32 * 3


def read(paths):
    """-> [(N, 32, 32, 3) uint8, ...], one for each file: 4 GB for all of ImageNet"""
    images = []
    for path in paths:
        try:
            with np.load(path, allow_pickle=False) as arrays:
                planes = arrays["data"]
        except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as e:
            raise Fail(f"{path} is no .npz of the 32 x 32 ImageNet ({e}): get it again") from None
        if planes.dtype != np.uint8 or planes.shape[1:] != (BLOCK_SIZE,):
            raise Fail(f"{path} holds {planes.dtype} of shape {planes.shape} instead of uint8 (N, "
                       f"{BLOCK_SIZE}): get the 32 x 32 version")
        images.append(channels_last(planes))
    return images


def prepare(folder, tokenizer, source=""):
    if not source:
        raise Fail("imagenet32 is behind a login at image-net.org: get it, and run "
                   "python data/imagenet32/prepare.py --from FOLDER (--help says more)")
    train = sorted(glob.glob(os.path.join(glob.escape(source), "train_data_batch_*.npz")))
    val = sorted(glob.glob(os.path.join(glob.escape(source), "val_data*.npz")))
    if not train or not val:
        raise Fail(f"{source} has no train_data_batch_1.npz and val_data.npz: see --help")
    write_images(folder, tokenizer, {"train": read(train), "val": read(val)}, sources(source))


if __name__ == "__main__":
    main(lambda: data.by_hand("imagenet32", __doc__))
