"""cifar10: 50,000 colour images of 32 x 32, and 10,000 for validation; their labels are dropped.

    python data/cifar10/prepare.py                                  # downloads 170 MB, as train.py
    python data/cifar10/prepare.py --from cifar-10-binary.tar.gz    # the binary version: no pickles
"""
import os
import re
import sys
import tarfile

import numpy as np

sys.path.insert(0, os.path.abspath(os.path.join(os.path.dirname(__file__), "..", "..")))
import data
from common import Fail, main, say
from data.download import download
from data.files import intact
from data.writing import INTENSITIES, sources, write_images

TOKENIZER, BLOCK_SIZE = INTENSITIES, 32 * 32 * 3
# not measured on a GPU; reveals by the paper's schedule for images, beta = t^3
TRAINING = dict(method="prime", n_layer=12, n_head=12, n_embd=768, batch_size=128,
                unmasking="polynomial,exponent=3", dropout=0.1, learning_rate=1e-3,
                warmup_iters=2500, max_iters=200_000, ema=0.9999, eval_interval=5000)
URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
RECORD = 1 + BLOCK_SIZE                 # a label, then red, green and blue


def channels_last(planes):
    """(N, 3072): the intensities of red, of green, of blue -> (N, 32, 32, 3)"""
    return np.ascontiguousarray(planes.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))


def read(path):
    """The archive -> {"train": [images, ...], "val": [...]}"""
    sides, wanted = {"train": [], "val": []}, f"get the binary version of CIFAR-10, {URL}"
    with intact(path), tarfile.open(path) as archive:
        for member in archive:
            found = re.search(r"(data|test)_batch(_\d)?\.bin$", member.name)
            if not found or not member.isfile():
                continue
            if not 0 < member.size <= 10_000 * RECORD or member.size % RECORD:
                raise Fail(f"{path}: {member.name} has {member.size:,} bytes, which are no 1 to "
                           f"10,000 records of {RECORD}: {wanted}")
            records = np.frombuffer(archive.extractfile(member).read(), dtype=np.uint8)
            planes = records.reshape(-1, RECORD)[:, 1:]
            sides["train" if found[1] == "data" else "val"].append(channels_last(planes))
    if not sides["train"] or not sides["val"]:
        raise Fail(f"{path} has no data_batch_1.bin and test_batch.bin: {wanted}")
    return sides


def prepare(folder, tokenizer, source=""):
    if source:
        made = sources(source)
    else:
        made, source = {"from": URL}, os.path.join(folder, os.path.basename(URL))
        if not os.path.exists(source):
            say(f"downloading {URL}, 170 MB")
            download(URL, source)
    sides = read(source)
    write_images(folder, tokenizer, sides, made)
    if [sum(map(len, parts)) for parts in sides.values()] != [50_000, 10_000]:
        say("cifar10: this is not the whole set, which has 50,000 images and 10,000")


if __name__ == "__main__":
    main(lambda: data.by_hand("cifar10", __doc__))
