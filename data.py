"""Documents -> token files -> batches of documents of different lengths. No diffusion here.

    dataset = load("python")                        # data/python/prepare.py makes what is missing
    x, n, given = dataset.train.batch(order(seed=0, step=0, batch_size=64, N=len(dataset.train)))
    dataset.tokenizer.decode(x[0, :n[0]])

A data set is a folder in nanoGPT's format: train.bin and val.bin, uint16 token ids, each document
followed by the end-of-text id. They are uint32 where the vocabulary needs it, or where documents
are tasks: the highest bit marks the tokens that a task gives. meta.json says what the set was made
from and with. How documents are fitted to block_size: data/bins.py.

To add a data set, add a folder: data/NAME/prepare.py with its TOKENIZER, its BLOCK_SIZE and a
function prepare(folder, tokenizer), which ends with data.write_texts or data.write; and, if it
likes, TRAINING: how train.py trains on it where the user names nothing else.
"""
import dataclasses
import functools
import hashlib
import importlib
import inspect
import json
import math
import os
import re
import sys

import numpy as np

from common import Fail, fcntl, flag, nearest, parse, say

HERE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "data")
SPLITS = ("paragraph", "line", "file")
__path__ = [HERE]       # this file is the package `data`; the modules of the package are in data/

from data.bins import Documents
from data.tokenizers import Tokenizer, tag_of, tokenizer_for, tokenizer_from
from data.writing import file_sha256, read_json, ready, sources, split, write, write_texts


def order(seed, step, batch_size, N):
    """The documents of one optimizer step, (batch_size,): a pure function, so that a resumed run
    sees what it would have seen. Every epoch is a fresh permutation of the N documents; a batch may
    cross the end of an epoch."""
    first, parts = step * batch_size, []
    while batch_size > 0:
        epoch, at = divmod(first, N)
        part = permutation(seed, epoch, N)[at:at + batch_size]
        parts.append(part)
        first += len(part)
        batch_size -= len(part)
    return np.concatenate(parts).astype(np.int64)


@functools.lru_cache(maxsize=4)     # train and val, each with its next epoch: 2 x 70 MB for owt
def permutation(seed, epoch, N):
    return np.random.default_rng([seed % 2 ** 64, epoch]).permutation(N).astype(np.uint32)


# -----------------------------------------------------------------------------
# a name -> a data set

@dataclasses.dataclass
class Dataset:
    name: str
    folder: str
    train: Documents
    val: Documents
    tokenizer: Tokenizer
    meta: dict


def load(dataset, data_dir="", block_size=0, tokenizer="", split="", field="text",
         packing="documents", **more):
    """A data set, by its name (a folder data/NAME with a prepare.py), by the path of a text (.txt,
    .jsonl, .jsonl.gz), or by a folder of token files (its path, or its name in data_dir). It is
    made where it is missing.

    block_size 0, tokenizer "" (else a name or a Tokenizer): the set's own
    split, field        what a document is in a .txt and in a .jsonl
    more                for its prepare.py: source, files to make the set from; url; workers"""
    home, prepare = data_dir or HERE, None
    options = {"split": split, "field": field, **more}
    if dataset in names():
        module = importlib.import_module(f"data.{dataset}.prepare")
        prepare, tokenizer = module.prepare, tokenizer or module.TOKENIZER
        block_size = block_size or module.BLOCK_SIZE
        folder = folder_of(os.path.join(home, dataset), tokenizer, module.TOKENIZER)
        if dataset == "owt" and os.path.exists(os.path.join(home, "train.bin")):
            folder = home                                   # a folder that nanoGPT made
    elif os.path.isfile(dataset):
        prepare = importlib.import_module("data.text.prepare").prepare
        tokenizer, split = tokenizer or "bytes", split or "paragraph"
        options |= {"path": dataset, "split": split}
        made = json.dumps([file_sha256(dataset), split, field, tag_of(tokenizer)])
        digest = hashlib.sha256(made.encode()).hexdigest()[:8]     # another text is another set
        folder = os.path.join(home, "text", f"{os.path.basename(dataset).split('.')[0]}-{digest}")
    else:
        folder = dataset if os.path.isdir(dataset) else os.path.join(home, dataset)
        if not os.path.isdir(folder):
            raise Fail(f"unknown data set {dataset!r}{nearest(dataset, names())} (known: "
                       f"{', '.join(names())}; and there is no file or folder of that name)")
    make(folder, prepare, tokenizer, options)
    return opened(dataset, folder, tokenizer, block_size or 1024, packing)


def names():
    """The data sets that can be made: folders with a prepare.py. (data/text: one of any file.)"""
    folders = [f for f in os.listdir(HERE) if os.path.exists(os.path.join(HERE, f, "prepare.py"))]
    return sorted(set(folders) - {"text"})


def training(dataset):
    """How a named data set is trained where the user says nothing else: {flag: value}"""
    if dataset not in names():
        return {}
    return getattr(importlib.import_module(f"data.{dataset}.prepare"), "TRAINING", {})


def folder_of(folder, tokenizer, default):
    """Where a named set is: in data/NAME, and with another tokenizer in data/NAME/TOKENIZER"""
    made = read_json(os.path.join(folder, "meta.json")).get("tokenizer", {})
    if tag_of(tokenizer) in (tag_of(default), made.get("tag")):
        return folder
    return os.path.join(folder, tag_of(tokenizer))


def make(folder, prepare, tokenizer, options):
    """Make the set unless it is there. One process does it, the others (torchrun starts many) wait
    as long as it takes; the lock of a process that died is gone."""
    takes = inspect.signature(prepare).parameters if prepare else {}
    options = {name: value for name, value in options.items() if value}
    if "source" in options and "source" not in takes:
        raise Fail(f"{folder} is not made from files: leave out --from {options['source']}")
    if ready(folder):
        check_sources(folder, options)
        return
    if not prepare:
        raise Fail(f"{folder} has no train.bin and val.bin, so it is no data set")
    try:
        os.makedirs(folder, exist_ok=True)
        lock = open(os.path.join(folder, ".lock"), "w")
    except OSError as e:
        raise Fail(f"cannot write {folder} ({e.strerror}): name another --data_dir") from None
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not ready(folder):
            prepare(folder, tokenizer, **{k: v for k, v in options.items() if k in takes})


def check_sources(folder, options):
    """Raises Fail where the set was made from something else than what --from names now."""
    source = options.get("source")
    if not source:
        return
    now = {"from": os.path.abspath(source)}
    if os.path.exists(source):                              # else it was read, and deleted
        how = {name: options[name] for name in ("split", "field") if name in options}
        now = sources(source, **how)
    made = {"from": "unknown", **read_json(os.path.join(folder, "meta.json")).get("made", {})}
    for name, value in now.items():
        if made.get(name, value) != value:
            raise Fail(f"{folder} was made from something else ({name}: {made[name]}, now "
                       f"{value}): delete it to make it again, or name another --data_dir")


def opened(name, folder, asked, block_size, packing):
    """What is in `folder` -> Dataset. asked: a tokenizer or its name; "": that of the set"""
    meta = read_json(os.path.join(folder, "meta.json"))
    if not asked and not meta and os.path.exists(os.path.join(folder, "meta.pkl")):
        raise Fail(f"{folder} holds characters in a code of nanoGPT's own (meta.pkl): name its "
                   f"text instead, --dataset {folder}/input.txt")
    spec = meta.get("tokenizer", {"name": "gpt2"})
    if asked and meta and tag_of(asked) not in spec.values():
        raise Fail(f"{folder} was tokenised as {spec['name']}, not as {tag_of(asked)}")
    tokenizer = asked or spec
    if "bpe.json" in meta.get("sha256", {}):
        path = os.path.join(folder, "bpe.json")
        if not os.path.exists(path) or file_sha256(path) != meta["sha256"]["bpe.json"]:
            raise Fail(f"{path} is not what meta.json says: delete {folder} to prepare it again")
        tokenizer = read_json(path)
    tokenizer, shape = tokenizer_from(tokenizer), meta.get("shape")
    if shape:                                       # images: one after the other, all of one size
        block_size, packing = math.prod(shape), "stream"
    sides = []
    for path in (os.path.join(folder, "train.bin"), os.path.join(folder, "val.bin")):
        documents = Documents(path, tokenizer, block_size, packing)
        if shape and len(documents.ids) % block_size:
            raise Fail(f"{path} has {len(documents.ids):,} bytes, which are no images of "
                       f"{' x '.join(map(str, shape))}: delete {folder} to prepare it again")
        if documents.report() and os.environ.get("RANK", "0") == "0":
            say(documents.report())
        sides.append(documents)
    return Dataset(name, folder, *sides, tokenizer, meta)


# -----------------------------------------------------------------------------
# python data/NAME/prepare.py

@dataclasses.dataclass
class Args:
    tokenizer: str = flag("", "bytes, gpt2, bpe, bpe-SIZE, a model's folder; empty: the set's own")
    data_dir: str = flag("", "where to put it; empty: data/, beside prepare.py")
    source: str = flag("", "also written --from: files to make it from, where it is made from some")
    split: str = flag("", "a document of a .txt: paragraph, line or file", ("", *SPLITS))
    field: str = flag("text", "the field of a .jsonl that holds the text")


def by_hand(name, doc, cls=Args, argv=None):
    """What prepare.py does when it is run by hand: make the set, unless it is there."""
    words = sys.argv[1:] if argv is None else argv
    args = parse(cls, doc, [re.sub("^--from(?=$|=)", "--source", word) for word in words])
    dataset = load(name, **dataclasses.asdict(args))
    for docs in (dataset.train, dataset.val):
        say(f"{docs.path}: {len(docs):,} documents, {docs.tokens:,} tokens")
