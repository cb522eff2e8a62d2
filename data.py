"""Documents -> token files -> batches of documents of different lengths. No diffusion here.

    dataset = load("python")                        # data/python/prepare.py makes what is missing
    x, n, given = dataset.train.batch(order(seed=0, step=0, batch_size=64, N=len(dataset.train)))
    dataset.tokenizer.decode(x[0, :n[0]])

A data set is a folder in nanoGPT's format: train.bin and val.bin, uint16 token ids, each document
followed by the end-of-text id. They are uint32 where the vocabulary needs it, or where documents
are tasks: the highest bit marks the tokens that a task gives. meta.json, written last, says what
the set was made from and with.

To add one, add a folder: data/NAME/prepare.py with its TOKENIZER, its BLOCK_SIZE and a function
prepare(folder, tokenizer), which ends with data.write_texts or data.write (data/writing.py).

Documents longer than block_size are split at the blank line nearest the middle, recursively, and
the blank line is dropped (as in FlexMDM's released code). Worked number: block_size 4 and the bytes
`ab\\n\\ncde`: the blank line at 2 is nearest the middle, 3, so the chunks are `ab` and `cde`. Where
there is no blank line, chunks are cut at block_size: `abcdefg` becomes `abcd` and `efg`. Tasks are
never cut: those that are too long are left out, and counted.
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
import torch

from common import Fail, flag, nearest, parse, say

HERE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "data")
__path__ = [HERE]       # this file is the package `data`; the modules of the package are in data/

from data.chunks import COUNTS, GIVEN, index
from data.tokenizers import Tokenizer, tag_of, tokenizer_for, tokenizer_from
from data.writing import (check_sources, exclusive, file_sha256, read_json, ready, split,
                          token_type, write, write_texts)


# -----------------------------------------------------------------------------
# batches

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


@functools.lru_cache(maxsize=4)     # train and val, each with its next epoch: 4 x 70 MB for owt
def permutation(seed, epoch, N):
    return np.random.default_rng([seed % 2 ** 64, epoch]).permutation(N).astype(np.uint32)


class Documents:
    """A token file as documents of 1 to block_size tokens; with packing "stream" as rows of exactly
    block_size tokens, ends of text included. They are read when asked for, by os.pread: where a
    mapped file that shrinks kills the process, a read comes back short.

    lengths     (N,), in tokens; tokens: their sum
    counts      what block_size does to the documents: see chunks.py
    anchored    see `anchors` in writing.py
    fingerprint of content, block_size and packing"""

    def __init__(self, path, tokenizer, block_size, packing="documents"):
        self.path, self.tokenizer = path, tokenizer
        self.block_size, self.packing = block_size, packing
        meta = read_json(os.path.join(os.path.dirname(path), "meta.json"))
        self.anchored = meta.get("anchors", True)
        self.dtype = np.dtype(meta.get("dtype", token_type(tokenizer, tasks=False)))
        try:
            self.file = open(path, "rb", buffering=0)
        except OSError as e:
            raise Fail(f"cannot read {path}: {e.strerror}") from None
        self.size, self.mtime = self.state()
        if self.size == 0 or self.size % self.dtype.itemsize:
            wrong = "of odd size" if self.size else "empty"
            raise Fail(f"{path} is {wrong}, so it is no file of {self.dtype} tokens: delete it and "
                       "prepare the data again")

        table = index(self, meta.get("sha256", {}).get(os.path.basename(path)))
        if table["largest"] >= tokenizer.vocab_size:
            raise Fail(f"{path} holds the id {table['largest']}, and the {tokenizer.name} "
                       f"vocabulary ends at {tokenizer.vocab_size - 1}: it was made with another "
                       f"tokenizer, or it is no file of {self.dtype} tokens")
        self.starts, self.lengths = table["starts"], table["lengths"]           # (N,) (N,)
        self.tokens = int(self.lengths.sum(dtype=np.int64))
        self.counts = dict(zip(COUNTS, table["counts"].tolist()))
        content = [table["digest"].tobytes(), len(self), block_size, packing]
        self.fingerprint = hashlib.sha256(repr(content).encode()).hexdigest()[:16]
        if not len(self):
            how = "raise" if packing == "documents" else "lower"
            raise Fail(f"{path} holds no document for --block_size {block_size}: {how} it, or "
                       "prepare the data again")

    def __len__(self):
        return len(self.starts)

    def state(self):
        s = os.fstat(self.file.fileno())
        return s.st_size, s.st_mtime_ns

    def pread(self, start, size):
        """(size,) tokens from `start` on"""
        width = self.dtype.itemsize
        content = os.pread(self.file.fileno(), width * size, width * start)
        if len(content) != width * size:
            raise Fail(f"{self.path} shrank while it was in use: delete it and prepare the data "
                       "again")
        return np.frombuffer(content, dtype=self.dtype)

    def read(self, i):
        """(n,) int64: the ids of document i; GIVEN is added to those that are given"""
        return self.pread(int(self.starts[i]), int(self.lengths[i])).astype(np.int64)

    def document(self, i):
        """-> list of ids"""
        return (self.read(i) % GIVEN).tolist()

    def given(self, i):
        """-> list of bool: which tokens the task gives; None where none of the file can be given"""
        return (self.read(i) >= GIVEN).tolist() if self.dtype.itemsize > 2 else None

    def text_bytes(self, i):
        """The text of document i as it was before it was tokenised, also where it has been cut in
        the middle of a character"""
        return self.tokenizer.decode_bytes(self.document(i))

    def batch(self, ids):
        """-> x (B, L) int64, right-padded with 0, L the longest of the batch; n (B,) int64, the
        lengths; given (B, L) bool, or None where no token of the file can be given."""
        if self.state() != (self.size, self.mtime):
            raise Fail(f"{self.path} changed while it was in use: put the old file back and "
                       "resume, or start again")
        n = self.lengths[np.asarray(ids, dtype=np.int64)].astype(np.int64)      # (B,)
        x = np.zeros((len(n), n.max(initial=0)), dtype=np.int64)                # (B, L)
        for row, i in enumerate(ids):
            x[row, :n[row]] = self.read(i)
        given = torch.from_numpy(x >= GIVEN) if self.dtype.itemsize > 2 else None
        return torch.from_numpy(x % GIVEN), torch.from_numpy(n), given

    def report(self):
        """One line on what block_size does to the documents, '' where it does nothing"""
        flag_now, parts = f"--block_size {self.block_size}", []
        if self.counts["cut"]:
            parts.append(f"{self.counts['cut']:,} documents longer than {flag_now} are cut")
        if self.counts["left_out"]:
            parts.append(f"{self.counts['left_out']:,} tasks longer than {flag_now} are left out")
        if parts:
            parts.append(f"--block_size {self.counts['longest']} keeps all of them whole")
        if self.counts["empty"]:
            parts.append(f"{self.counts['empty']:,} empty documents are left out")
        return f"{self.path}: {'; '.join(parts)}" if parts else ""


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
         packing="documents", source="", url="", workers=0):
    """A data set, by its name (a folder data/NAME with a prepare.py), by the path of a text (.txt,
    .jsonl, .jsonl.gz), or by a folder of token files (its path, or its name in data_dir). It is
    made where it is missing.

    block_size 0, tokenizer "" (else a name or a Tokenizer): the set's own
    split, field        what a document is in a .txt and in a .jsonl
    source              files to make the set from, where its prepare.py takes some
    url, workers        of data/owt/prepare.py"""
    for name, value, known in (("packing", packing, ["documents", "stream"]),
                               ("split", split or "file", ["paragraph", "line", "file"])):
        if value not in known:
            raise Fail(f"--{name} {value}: it is one of {', '.join(known)}")
    home, prepare = data_dir or HERE, None
    if dataset in names():
        module = importlib.import_module(f"data.{dataset}.prepare")
        prepare, tokenizer = module.prepare, tokenizer or module.TOKENIZER
        block_size = block_size or module.BLOCK_SIZE
        folder = folder_of(os.path.join(home, dataset), tokenizer, module.TOKENIZER)
        if dataset == "owt" and os.path.exists(os.path.join(home, "train.bin")):
            folder = home                                   # a folder that nanoGPT made
        if source and "source" not in inspect.signature(prepare).parameters:
            raise Fail(f"the data set {dataset} is not made from files: leave out {source}")
    elif os.path.isfile(dataset):
        prepare = importlib.import_module("data.text.prepare").prepare
        tokenizer, source, split = tokenizer or "bytes", dataset, split or "paragraph"
        folder = os.path.join(home, "text", text_name(dataset, split, field, tag_of(tokenizer)))
    else:
        folder = next(filter(os.path.isdir, [dataset, os.path.join(home, dataset)]), "")
        if not folder:
            raise Fail(f"unknown data set {dataset!r}{nearest(dataset, names())} (known: "
                       f"{', '.join(names())}; and there is no file or folder of that name)")
    block_size = block_size or 1024
    if block_size < 2:
        raise Fail(f"--block_size {block_size} is too small: a document needs room for 2 tokens")
    with exclusive(folder, prepare):
        if not ready(folder):
            options = dict(source=source, split=split, field=field, url=url, workers=workers)
            takes = inspect.signature(prepare).parameters
            options = {k: value for k, value in options.items() if value and k in takes}
            prepare(folder, tokenizer, **options)
        elif source and dataset in names():
            check_sources(folder, source, split, field)
        return opened(dataset, folder, tokenizer, block_size, packing)


def names():
    """The data sets that can be made: folders with a prepare.py. (data/text: one of any file.)"""
    folders = [f for f in os.listdir(HERE) if os.path.exists(os.path.join(HERE, f, "prepare.py"))]
    return sorted(set(folders) - {"text"})


def folder_of(folder, tokenizer, default):
    """Where a named set is: in data/NAME, and with another tokenizer in data/NAME/TOKENIZER"""
    made = read_json(os.path.join(folder, "meta.json")).get("tokenizer", {})
    if tag_of(tokenizer) in (tag_of(default), made.get("tag")):
        return folder
    return os.path.join(folder, tag_of(tokenizer))


def text_name(path, split, field, tag):
    """STEM-HASH: another text, or other options, are another data set."""
    made = json.dumps([file_sha256(path), split, field, tag])
    stem = os.path.basename(path).split(".")[0]
    return f"{stem}-{hashlib.sha256(made.encode()).hexdigest()[:8]}"


def opened(name, folder, asked, block_size, packing):
    """What is in `folder` -> Dataset. asked: a tokenizer or its name; "": that of the set"""
    meta = read_json(os.path.join(folder, "meta.json"))
    if not asked and not meta and os.path.exists(os.path.join(folder, "meta.pkl")):
        raise Fail(f"{folder} holds characters in a code of nanoGPT's own (meta.pkl): name its "
                   f"text instead, --dataset {folder}/input.txt")
    spec = meta.get("tokenizer", {"name": "gpt2"})
    if asked and meta and tag_of(asked) not in spec.values():
        raise Fail(f"{folder} was tokenised as {spec['name']}, not as {tag_of(asked)}")
    vocabulary = meta.get("sha256", {}).get("bpe.json")
    if vocabulary:
        path = os.path.join(folder, "bpe.json")
        if not os.path.exists(path) or file_sha256(path) != vocabulary:
            raise Fail(f"{path} is not what meta.json says: delete {folder} to prepare it again")
        tokenizer = tokenizer_from(read_json(path))
    else:
        tokenizer = tokenizer_from(asked or spec)
    shape, sides = meta.get("shape"), {}
    if shape:                                       # images: one after the other, all of one size
        block_size, packing = math.prod(shape), "stream"
    for side in ("train", "val"):
        path = os.path.join(folder, f"{side}.bin")
        sides[side] = Documents(path, tokenizer, block_size, packing)
        if shape and sides[side].size % block_size:
            raise Fail(f"{path} has {sides[side].size:,} bytes, which are no images of "
                       f"{' x '.join(map(str, shape))}: delete {folder} to prepare it again")
        if sides[side].report() and os.environ.get("RANK", "0") == "0":
            say(sides[side].report())
    return Dataset(name, folder, sides["train"], sides["val"], tokenizer, meta)


# -----------------------------------------------------------------------------
# python data/NAME/prepare.py

@dataclasses.dataclass
class Args:
    tokenizer: str = flag("", "bytes, gpt2, bpe, bpe-SIZE, a model's folder; empty: the set's own")
    data_dir: str = flag("", "where to put it; empty: data/, beside prepare.py")
    source: str = flag("", "also written --from: files to make it from, where it is made from some")


def by_hand(name, doc, cls=Args, argv=None):
    """What prepare.py does when it is run by hand: make the set, unless it is there."""
    words = sys.argv[1:] if argv is None else argv
    args = parse(cls, doc, [re.sub("^--from(?=$|=)", "--source", word) for word in words])
    dataset = load(name, **dataclasses.asdict(args))
    for docs in (dataset.train, dataset.val):
        say(f"{docs.path}: {len(docs):,} documents, {docs.tokens:,} tokens")
