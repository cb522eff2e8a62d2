"""Documents -> token files -> batches of documents of different lengths. No diffusion here.

    dataset = load("python")                        # data/python/prepare.py makes what is missing
    x, n, given = dataset.train.batch(order(seed=0, step=0, batch_size=64, N=len(dataset.train)))
    dataset.tokenizer.decode(x[0, :n[0]])

A data set is a folder in nanoGPT's format: train.bin and val.bin, uint16 token ids, each document
followed by the end-of-text id. They are uint32 where the vocabulary needs it, or where documents
are tasks: the highest bit marks the tokens that a task gives. meta.json says what the set was made
from and with.

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

from common import Fail, fcntl, flag, nearest, parse, say

HERE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "data")
SPLITS = ("paragraph", "line", "file")
__path__ = [HERE]       # this file is the package `data`; the modules of the package are in data/

from data.chunks import GIVEN, scan
from data.tokenizers import Tokenizer, tag_of, tokenizer_for, tokenizer_from
from data.writing import (file_sha256, read_json, ready, sources, split, token_type, write,
                          write_texts)


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
        self.dtype = np.dtype(meta.get("dtype", token_type(tokenizer)))
        try:
            self.file = open(path, "rb", buffering=0)
        except OSError as e:
            raise Fail(f"cannot read {path}: {e.strerror}") from None
        self.size, self.mtime = self.state()
        if self.size == 0 or self.size % self.dtype.itemsize:
            raise Fail(f"{path} is empty, or of odd size for {self.dtype} tokens: delete it and "
                       "prepare the data again")

        table, self.counts, largest, sha256 = scan(self)
        name = os.path.basename(path)
        if meta.get("sha256", {}).get(name, sha256) != sha256:
            raise Fail(f"{path} is not what its meta.json says (the sha256 differs): delete its "
                       "folder to prepare it again")
        if largest >= tokenizer.vocab_size:
            raise Fail(f"{path} holds the id {largest}, and the {tokenizer.name} vocabulary ends "
                       f"at {tokenizer.vocab_size - 1}: it was made with another tokenizer, or it "
                       f"is no file of {self.dtype} tokens")
        if not len(table):
            raise Fail(f"{path} holds no document for --block_size {block_size} and --packing "
                       f"{packing}: name others, or prepare the data again")
        self.starts, self.lengths = table[:, 0].copy(), table[:, 1].astype(np.int32)    # (N,) (N,)
        self.tokens = int(self.lengths.sum(dtype=np.int64))
        content = repr([sha256, block_size, packing])
        self.fingerprint = hashlib.sha256(content.encode()).hexdigest()[:16]

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
        now, counts = f"--block_size {self.block_size}", self.counts
        parts = [(counts["cut"], f"documents longer than {now} are cut"),
                 (counts["left_out"], f"tasks longer than {now} are left out"),
                 (counts["empty"], "empty documents are left out")]
        said = "; ".join(f"{count:,} {what}" for count, what in parts if count)
        if counts["cut"] or counts["left_out"]:
            said += f"; --block_size {counts['longest']} keeps all of them whole"
        return f"{self.path}: {said}" if said else ""


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
    home, prepare, options = data_dir or HERE, None, {"split": split, "field": field, **more}
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
        stem = os.path.basename(dataset).split(".")[0]      # another text is another data set
        digest = hashlib.sha256(made.encode()).hexdigest()[:8]
        folder = os.path.join(home, "text", f"{stem}-{digest}")
    else:
        folder = next(filter(os.path.isdir, [dataset, os.path.join(home, dataset)]), "")
        if not folder:
            raise Fail(f"unknown data set {dataset!r}{nearest(dataset, names())} (known: "
                       f"{', '.join(names())}; and there is no file or folder of that name)")
    make(folder, prepare, tokenizer, options)
    return opened(dataset, folder, tokenizer, block_size or 1024, packing)


def make(folder, prepare, tokenizer, options):
    """Make the set unless it is there. One process does it, the others (torchrun starts many) wait
    as long as it takes; the lock of a process that died is gone."""
    takes = inspect.signature(prepare).parameters if prepare else {}
    if options.get("source") and "source" not in takes:
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
            options = {name: value for name, value in options.items() if value and name in takes}
            prepare(folder, tokenizer, **options)


def check_sources(folder, options):
    """Raises Fail where the set was made from something else than what is named now."""
    source = options.get("source")
    if not source:
        return
    now = {"from": os.path.abspath(source)}
    if os.path.exists(source):
        now = {name: options[name] for name in ("split", "field") if options[name]}
        now |= sources(source)
    made = {"from": "unknown", **read_json(os.path.join(folder, "meta.json")).get("made", {})}
    for name, value in now.items():
        if name in made and made[name] != value:
            raise Fail(f"{folder} was made from something else ({name}: {made[name]}, now "
                       f"{value}): delete it to make it again, or name another --data_dir")


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


def opened(name, folder, asked, block_size, packing):
    """What is in `folder` -> Dataset. asked: a tokenizer or its name; "": that of the set"""
    meta = read_json(os.path.join(folder, "meta.json"))
    if not asked and not meta and os.path.exists(os.path.join(folder, "meta.pkl")):
        raise Fail(f"{folder} holds characters in a code of nanoGPT's own (meta.pkl): name its "
                   f"text instead, --dataset {folder}/input.txt")
    spec = meta.get("tokenizer", {"name": "gpt2"})
    if asked and meta and tag_of(asked) not in spec.values():
        raise Fail(f"{folder} was tokenised as {spec['name']}, not as {tag_of(asked)}")
    tokenizer, vocabulary = asked or spec, os.path.join(folder, "bpe.json")
    if "bpe.json" in meta.get("sha256", {}):
        if not os.path.exists(vocabulary) or file_sha256(vocabulary) != meta["sha256"]["bpe.json"]:
            raise Fail(f"{vocabulary} is not what meta.json says: delete {folder} to prepare it "
                       "again")
        tokenizer = read_json(vocabulary)
    tokenizer, shape, sides = tokenizer_from(tokenizer), meta.get("shape"), []
    if shape:                                       # images: one after the other, all of one size
        block_size, packing = math.prod(shape), "stream"
    for side in ("train", "val"):
        path = os.path.join(folder, f"{side}.bin")
        documents = Documents(path, tokenizer, block_size, packing)
        if shape and documents.size % block_size:
            raise Fail(f"{path} has {documents.size:,} bytes, which are no images of "
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
