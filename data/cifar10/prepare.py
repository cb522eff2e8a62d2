"""cifar10: 50,000 colour images of 32 x 32, and 10,000 for validation; their labels are dropped.

    python data/cifar10/prepare.py                                  # downloads 170 MB, as train.py
    python data/cifar10/prepare.py --from cifar-10-binary.tar.gz    # the binary version: no pickles
"""
import dataclasses
import os
import re
import sys
import tarfile

import numpy as np

sys.path.insert(0, os.path.abspath(os.path.join(os.path.dirname(__file__), "..", "..")))
import data
from common import Fail, flag, main, say
from data.download import download
from data.files import intact
from data.images import TOKENIZER, channels_last, write
from data.writing import sources

BLOCK_SIZE = 32 * 32 * 3
URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
RECORD = 1 + BLOCK_SIZE                 # a label, then red, green and blue


def read(path):
    """The archive -> {"train": [images, ...], "val": [...]}"""
    sides = {"train": [], "val": []}
    with intact(path), tarfile.open(path) as archive:
        for member in archive:
            found = re.search(r"(data|test)_batch(_\d)?\.bin$", member.name)
            if not found or not member.isfile():
                continue
            if not 0 < member.size <= 10_000 * RECORD or member.size % RECORD:
                raise Fail(f"{path}: {member.name} has {member.size:,} bytes, which are no 1 to "
                           f"10,000 records of {RECORD}: get the binary version of CIFAR-10, {URL}")
            records = np.frombuffer(archive.extractfile(member).read(), dtype=np.uint8)
            images = channels_last(records.reshape(-1, RECORD)[:, 1:])
            sides["train" if found[1] == "data" else "val"].append(images)
    if not sides["train"] or not sides["val"]:
        raise Fail(f"{path} has no data_batch_1.bin and test_batch.bin: get the binary version of "
                   f"CIFAR-10, {URL}")
    return sides


def prepare(folder, tokenizer, source="", url=URL):
    made = sources(source) if source else {"from": url}
    if not source:
        source = os.path.join(folder, "cifar-10-binary.tar.gz")
        if not os.path.exists(source):
            say(f"downloading {url}, 170 MB")
            download(url, source)
    sides = read(source)
    write(folder, tokenizer, sides, made)
    if [sum(map(len, parts)) for parts in sides.values()] != [50_000, 10_000]:
        say("cifar10: this is not the whole set, which has 50,000 images and 10,000")


@dataclasses.dataclass
class Args(data.Args):
    url: str = flag(URL, "where the archive is")


if __name__ == "__main__":
    main(lambda: data.by_hand("cifar10", __doc__, Args))
