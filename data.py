"""Documents -> token files -> batches of documents of different lengths. Nothing here knows about diffusion.

    dataset = load("python")                                # data/python/prepare.py makes what is missing
    x, n, given = dataset.train.batch(order(seed=0, step=0, batch_size=64, N=len(dataset.train)))
    dataset.tokenizer.decode(x[0, :n[0]])

A data set is a folder in nanoGPT's format: train.bin and val.bin, uint16 token ids, each document followed by the
end-of-text id. They are uint32 where the vocabulary needs it, or where the set holds tasks: the highest bit marks
the tokens that a task gives. meta.json, written last, says what the set was made from and with.

To add a data set, add a folder: data/NAME/prepare.py, with TOKENIZER, a name, BLOCK_SIZE and prepare(folder,
tokenizer), which calls data.write or data.write_texts.

Documents longer than block_size are split at the blank line nearest the middle, recursively, and the blank line is
dropped (as in FlexMDM's released code). Worked number: block_size 4 and the 7 bytes `ab\\n\\ncde`: the blank line at
2 is nearest the middle, 3, so the chunks are `ab` and `cde`. Where there is no blank line, chunks are cut at
block_size: `abcdefg` becomes `abcd` and `efg`. Tasks are never cut: one that is too long is left out, and counted.
"""
import contextlib
import dataclasses
import fcntl
import functools
import hashlib
import importlib
import inspect
import json
import os
import sys

import numpy as np
import torch

from common import Fail, flag, nearest, parse, say

HERE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "data")
__path__ = [HERE]           # this file is the package `data`, and the folder data/ holds its modules

from data.chunks import COUNTS, GIVEN, index                                                # noqa: E402
from data.tokenizers import Tokenizer, tag_of, tokenizer_for, tokenizer_from                # noqa: E402, F401
from data.writing import file_sha256, read_json, split, token_type, write, write_texts      # noqa: E402, F401


# -----------------------------------------------------------------------------
# batches

def order(seed, step, batch_size, N):
    """The documents of one optimizer step, (batch_size,): a pure function, so that a resumed run sees what it
    would have seen. Every epoch is a fresh permutation of the N documents; a batch may cross its end."""
    first, parts = step * batch_size, []
    while batch_size > 0:
        epoch, at = divmod(first, N)
        part = permutation(seed, epoch, N)[at:at + batch_size]
        parts.append(part)
        first += len(part)
        batch_size -= len(part)
    return np.concatenate(parts).astype(np.int64)


@functools.lru_cache(maxsize=4)     # train and val, each with its next epoch: 4 x 70 MB for OpenWebText
def permutation(seed, epoch, N):
    return np.random.default_rng([seed % 2 ** 64, epoch]).permutation(N).astype(np.uint32)


class Documents:
    """A token file as documents of 1 to block_size tokens; packing "stream": as rows of block_size tokens, ends of
    text included. They are read when asked for, by os.pread: where a mapped file that shrinks kills the process, a
    read comes back short.

    lengths (N,) and tokens, their sum; fingerprint: of content, block_size and packing; anchored: meta.json's
    "anchors" (see writing.py); counts: what block_size does to the documents (see chunks.py)."""

    def __init__(self, path, tokenizer, block_size, packing="documents"):
        self.path, self.tokenizer, self.block_size, self.packing = path, tokenizer, block_size, packing
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
            raise Fail(f"{path} is {wrong}, so it is no file of {self.dtype} tokens: delete it and prepare the data "
                       "again")

        table = index(self, meta.get("sha256", {}).get(os.path.basename(path)))
        if table["largest"] >= tokenizer.vocab_size:
            raise Fail(f"{path} holds the id {table['largest']}, and the {tokenizer.name} vocabulary ends at "
                       f"{tokenizer.vocab_size - 1}: it was made with another tokenizer, or it is no file of "
                       f"{self.dtype} tokens")
        self.starts, self.lengths = table["starts"], table["lengths"]               # (N,) (N,)
        self.tokens = int(self.lengths.sum(dtype=np.int64))
        self.counts = dict(zip(COUNTS, table["counts"].tolist()))
        content = [table["digest"].tobytes(), len(self), block_size, packing]
        self.fingerprint = hashlib.sha256(repr(content).encode()).hexdigest()[:16]
        if not len(self):
            mend = "prepare it again, or raise --block_size" if packing == "documents" else "lower --block_size"
            raise Fail(f"{path} holds no document for --block_size {block_size}: {mend}")

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
            raise Fail(f"{self.path} shrank while it was in use: delete it and prepare the data again")
        return np.frombuffer(content, dtype=self.dtype)

    def read(self, i):
        """(n,) int64: the ids of document i; GIVEN is added to those that are given"""
        return self.pread(int(self.starts[i]), int(self.lengths[i])).astype(np.int64)

    def document(self, i):
        """-> list of ids"""
        return (self.read(i) % GIVEN).tolist()

    def given(self, i):
        """-> list of bool: which tokens the task gives; None where no token of the file can be given"""
        return (self.read(i) >= GIVEN).tolist() if self.dtype.itemsize > 2 else None

    def text_bytes(self, i):
        """Document i as it was before it was tokenised: half a character stays half a character"""
        return self.tokenizer.decode_bytes(self.document(i))

    def batch(self, ids):
        """-> x (B, L) int64, right-padded with 0, L the longest of the batch; n (B,) int64, the lengths;
        given (B, L) bool, or None where no token of the file can be given."""
        if self.state() != (self.size, self.mtime):
            raise Fail(f"{self.path} changed while it was in use: put the old file back and resume, or start again")
        n = self.lengths[np.asarray(ids, dtype=np.int64)].astype(np.int64)          # (B,)
        x = np.zeros((len(n), n.max(initial=0)), dtype=np.int64)                    # (B, L)
        for row, i in enumerate(ids):
            x[row, :n[row]] = self.read(i)
        given = torch.from_numpy(x >= GIVEN) if self.dtype.itemsize > 2 else None
        return torch.from_numpy(x % GIVEN), torch.from_numpy(n), given

    def report(self):
        """One line about documents that block_size cuts or leaves out; '' where there is none"""
        counts, parts = self.counts, []
        if counts["cut"]:
            parts.append(f"{counts['cut']:,} documents are longer than --block_size {self.block_size} and are cut")
        if counts["left_out"]:
            parts.append(f"{counts['left_out']:,} tasks are longer than --block_size {self.block_size} and are left out")
        if parts:
            parts.append(f"--block_size {counts['longest']} keeps them whole")
        if counts["empty"]:
            parts.append(f"{counts['empty']:,} empty documents are left out")
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


def load(dataset, data_dir="", block_size=0, tokenizer="", split="", field="text", packing="documents", source="",
         url="", workers=0):
    """A data set by its name (a folder data/NAME with a prepare.py), by the path of a text (.txt, .jsonl, .jsonl.gz),
    or by a folder of token files (or its name in data_dir). Made where it is missing.

    tokenizer: a name or a Tokenizer; "": the set's own. block_size 0: the set's own.
    For prepare.py: split, field (what a document is in a text), source (files to read instead of a download), url,
    workers; "" and 0: its defaults."""
    check_choice("packing", packing, ["documents", "stream"])
    check_choice("split", split or "file", ["paragraph", "line", "file"])
    options = dict(source=source, split=split, field=field, url=url, workers=workers)
    home, prepare = data_dir or HERE, None
    if dataset in names():
        module = importlib.import_module(f"data.{dataset}.prepare")
        tokenizer, block_size = tokenizer or module.TOKENIZER, block_size or module.BLOCK_SIZE
        prepare = module.prepare
        folder = with_tokenizer(os.path.join(home, dataset), tokenizer, module.TOKENIZER)
        if dataset == "owt" and os.path.exists(os.path.join(home, "train.bin")):    # a folder that nanoGPT made
            folder = home
        if source and "source" not in inspect.signature(prepare).parameters:
            raise Fail(f"the data set {dataset} is not made from files, so it takes none: leave out {source}")
    elif os.path.isfile(dataset):
        tokenizer, options["source"] = tokenizer or "bytes", dataset
        prepare = importlib.import_module("data.text.prepare").prepare
        folder = os.path.join(home, "text", text_name(dataset, split or "paragraph", field, tag_of(tokenizer)))
    else:
        folder = next(filter(os.path.isdir, [dataset, os.path.join(home, dataset)]), "")
        if not folder:
            raise Fail(f"unknown data set {dataset!r}{nearest(dataset, names())} (there are {', '.join(names())}; and "
                       "there is no file or folder of that name)")
    block_size = block_size or 1024
    if block_size < 2:
        raise Fail(f"--block_size {block_size} is too small: a document needs room for 2 tokens at least")
    with exclusive(folder, prepare):
        if not ready(folder):
            takes = inspect.signature(prepare).parameters
            prepare(folder, tokenizer, **{k: v for k, v in options.items() if v and k in takes})
        elif source and dataset in names():
            check_sources(folder, options)
        return opened(dataset, folder, tokenizer, block_size, packing)


def check_choice(name, value, known):
    if value not in known:
        raise Fail(f"--{name} {value}: it is one of {', '.join(known)}")


def names():
    """The data sets that can be made: folders with a prepare.py. (data/text makes one of any text.)"""
    found = [name for name in os.listdir(HERE) if os.path.exists(os.path.join(HERE, name, "prepare.py"))]
    return sorted(set(found) - {"text"})


def with_tokenizer(folder, tokenizer, default):
    """The folder of a named set: data/NAME, and for another tokenizer than its own data/NAME/TOKENIZER"""
    made = read_json(os.path.join(folder, "meta.json")).get("tokenizer", {})
    own = tag_of(tokenizer) in (tag_of(default), made.get("tag"))
    return folder if own else os.path.join(folder, tag_of(tokenizer))


def text_name(path, split, field, tag):
    """STEM-HASH: a changed text, or other options, are another data set"""
    key = hashlib.sha256(json.dumps([file_sha256(path), split, field, tag]).encode()).hexdigest()[:8]
    return f"{os.path.basename(path).split('.')[0]}-{key}"


def ready(folder):
    """Are both files there, and none half made?"""
    train, val, unfinished = (os.path.exists(os.path.join(folder, f)) for f in ("train.bin", "val.bin", "unfinished"))
    if train != val and not unfinished:
        here, missing = ("train.bin", "val.bin") if train else ("val.bin", "train.bin")
        raise Fail(f"{folder} has {here} but no {missing}: put it there, or delete the other one")
    return train and val and not unfinished


def sources(path):
    """What a set was made from, for meta.json: the path, how many files are there, how many bytes they have"""
    if not os.path.exists(path):
        raise Fail(f"there is no {path}")
    files = [os.path.join(folder, f) for folder, _, files in os.walk(path) for f in files] or [path]
    return {"from": os.path.abspath(path), "files": len(files), "bytes": sum(map(os.path.getsize, files))}


def check_sources(folder, options):
    """Raises Fail where the set in `folder` was made from another source than the one that is named now."""
    made, source = read_json(os.path.join(folder, "meta.json")).get("made", {}), options["source"]
    asked = {"from": os.path.abspath(source)}
    if os.path.exists(source):
        asked = sources(source) | {k: options[k] for k in ("split", "field") if options[k]}
    for key, value in asked.items():
        if made.get(key) != value:
            raise Fail(f"{folder} was made from other sources ({key} {made.get(key, 'unknown')}, now {value}): delete it to "
                       "make it again, or name another --data_dir")


@contextlib.contextmanager
def exclusive(folder, prepare):
    """One process makes a data set, the others (torchrun starts many) wait. The lock of a process that died is gone."""
    if not prepare and not ready(folder):
        raise Fail(f"{folder} has no train.bin and val.bin, so it is no data set")
    try:
        os.makedirs(folder, exist_ok=True)
        lock = open(os.path.join(folder, ".lock"), "w")
    except OSError as e:
        if not ready(folder):
            raise Fail(f"cannot write {folder} ({e.strerror}): name another --data_dir") from None
        yield                       # a folder that is only read needs no lock
        return
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def opened(name, folder, asked, block_size, packing):
    """The files in `folder` -> Dataset. asked: a tokenizer or its name; "": the one that the set was made with"""
    meta = read_json(os.path.join(folder, "meta.json"))
    if not asked and not meta and os.path.exists(os.path.join(folder, "meta.pkl")):
        raise Fail(f"{folder} holds characters in a code of nanoGPT's own (meta.pkl): name its text instead, "
                   f"--dataset {folder}/input.txt")
    made = meta.get("tokenizer") or {"name": tag_of(asked or "gpt2"), "tag": tag_of(asked or "gpt2")}
    if asked and tag_of(asked) not in made.values():
        raise Fail(f"{folder} was tokenised as {made['name']}, not as {tag_of(asked)}")
    if "bpe.json" in meta.get("sha256", {}):
        path = os.path.join(folder, "bpe.json")
        if not os.path.exists(path) or file_sha256(path) != meta["sha256"]["bpe.json"]:
            raise Fail(f"{path} is missing or not what meta.json says: delete {folder} to prepare it again")
        made = read_json(path)
    tokenizer = tokenizer_from(asked if asked and not tag_of(asked).startswith("bpe") else made)
    train, val = (Documents(os.path.join(folder, f), tokenizer, block_size, packing) for f in ("train.bin", "val.bin"))
    if os.environ.get("RANK", "0") == "0":
        for line in filter(None, [train.report(), val.report()]):
            say(line)
    return Dataset(name, folder, train, val, tokenizer, meta)


# -----------------------------------------------------------------------------
# python data/NAME/prepare.py

@dataclasses.dataclass
class Args:
    tokenizer: str = flag("", "bytes, gpt2, bpe, bpe-SIZE or the folder of a pretrained model; empty: the set's own")
    data_dir: str = flag("", "a folder for data sets; empty: data/, beside prepare.py")


def by_hand(name, doc, cls=Args, argv=None):
    """What `python data/NAME/prepare.py` does: make the set, unless it is there."""
    args = parse(cls, doc, sys.argv[1:] if argv is None else argv)
    dataset = load(name, **dataclasses.asdict(args))
    for docs in (dataset.train, dataset.val):
        say(f"{docs.path}: {len(docs):,} documents, {docs.tokens:,} tokens, fingerprint {docs.fingerprint}")
