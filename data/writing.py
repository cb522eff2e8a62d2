"""Documents -> a data set: a folder with train.bin, val.bin and, written last, meta.json.

    train, val = split(texts, share=0.05)
    write_texts(folder, train, val, "bpe", made={"from": "my texts"})

A document is a text, or a task: a list of parts, (text, is it given?). A hash of its text decides
whether it is validation data, so that the split depends neither on the order of documents nor on
where they came from.
"""
import contextlib
import fcntl
import hashlib
import json
import os

import numpy as np

from common import Fail, atomic_open, say
from data.chunks import GIVEN
from data.tokenizers import tokenizer_for


# -----------------------------------------------------------------------------
# documents -> token files

def text_hash(text):
    """A number below 2^64 that depends on the text alone"""
    content = text.encode("utf-8", "replace")
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big")


def plain(document):
    """The text of a document"""
    return document if isinstance(document, str) else "".join(text for text, _ in document)


def split(documents, share):
    """-> train, val. Where no hash is below `share`, val has the document with the smallest."""
    hashes = [text_hash(plain(document)) for document in documents]
    limit = max(int(share * 2 ** 64), min(hashes, default=0) + 1)
    train = [document for document, h in zip(documents, hashes) if h >= limit]
    val = [document for document, h in zip(documents, hashes) if h < limit]
    if not train or not val:
        raise Fail("there are no two different documents, and training and validation need one "
                   "each at least: give more text, or another --split (line or paragraph)")
    return train, val


def encode(document, tokenizer):
    """-> ids, and given, a bool for each, or None where the document is no task"""
    if isinstance(document, str):
        return np.array(tokenizer.encode(document), dtype=np.uint32), None
    parts = [tokenizer.encode(text) for text, _ in document]
    given = np.repeat([is_given for _, is_given in document], [len(ids) for ids in parts])
    return np.concatenate(parts).astype(np.uint32), given


def token_type(tokenizer, tasks):
    return "<u4" if tasks or tokenizer.vocab_size > 2 ** 16 else "<u2"


def stored(ids, given, tokenizer, dtype):
    """A document -> its bytes in a bin; b"" for one without tokens"""
    if len(ids) == 0:
        return b""
    tokens = np.append(ids, tokenizer.eot).astype(np.int64)
    if given is not None:
        tokens[:-1][np.array(given, dtype=bool)] += GIVEN
    return tokens.astype(dtype).tobytes()


def write(folder, sides, tokenizer, made, anchors=True):
    """Make a data set.

    sides       {"train": [(ids, given), ...], "val": [...]}: ids without the end of text; given:
                for each id whether the task gives it, or None
    tokenizer   a Tokenizer
    made        a dict for meta.json: what the set was made from
    anchors     False: a hole between given tokens may be empty, so it does not begin with a mask
                (see interpolant.anchors_of)"""
    tasks = any(given is not None for documents in sides.values() for _, given in documents)
    dtype, counts = token_type(tokenizer, tasks), {}
    with unfinished(folder):
        for side, documents in sides.items():
            contents = [stored(ids, given, tokenizer, dtype) for ids, given in documents]
            counts[side] = sum(map(bool, contents))
            if not counts[side]:
                raise Fail(f"{folder}: no document for {side}.bin holds a token")
            with atomic_open(os.path.join(folder, f"{side}.bin"), "wb") as f:
                f.writelines(contents)
        finish(folder, counts, tokenizer, dtype, made, anchors)
    empty = sum(map(len, sides.values())) - sum(counts.values())
    if empty:
        say(f"{folder}: {empty:,} documents without a token to learn were left out")


def write_texts(folder, train, val, tokenizer, made):
    """The same for documents. tokenizer: a Tokenizer or a name; "bpe" is trained on `train`."""
    tokenizer = tokenizer_for(tokenizer, [plain(document) for document in train])
    sides = {}
    for side, documents in (("train", train), ("val", val)):
        sides[side] = [encode(document, tokenizer) for document in documents]
    write(folder, sides, tokenizer, made)


@contextlib.contextmanager
def unfinished(folder):
    """While a set is being written, and after a kill, its folder has a file `unfinished`."""
    mark = os.path.join(folder, "unfinished")
    with atomic_open(mark):
        pass
    yield
    os.unlink(mark)


def finish(folder, counts, tokenizer, dtype, made, anchors=True, **more):
    """The bins are written: add the vocabulary and meta.json. counts: {"train": documents, ...}"""
    names, tokens = ["train.bin", "val.bin"], {}
    if tokenizer.ranks:
        names.append("bpe.json")
        write_json(os.path.join(folder, "bpe.json"), tokenizer.spec())
    for side in counts:
        size = os.path.getsize(os.path.join(folder, f"{side}.bin"))
        tokens[side] = size // np.dtype(dtype).itemsize
    sha256 = {name: file_sha256(os.path.join(folder, name)) for name in names}
    write_json(os.path.join(folder, "meta.json"), {
        "made": made, "tokenizer": {"name": tokenizer.name, "tag": tokenizer.tag}, "dtype": dtype,
        "anchors": anchors, "documents": counts, "tokens": tokens, "sha256": sha256, **more})
    say(f"{sum(counts.values()):,} documents, {counts['val']:,} of them for validation; "
        f"{sum(tokens.values()):,} tokens ({tokenizer.tag})")


# -----------------------------------------------------------------------------
# the folder of a data set

def ready(folder):
    """Are both token files there, and complete?"""
    here = [f for f in ("train.bin", "val.bin") if os.path.exists(os.path.join(folder, f))]
    if os.path.exists(os.path.join(folder, "unfinished")):
        return False
    if len(here) == 1:
        missing = "val.bin" if here == ["train.bin"] else "train.bin"
        raise Fail(f"{folder} has {here[0]} but no {missing}: put it there, or delete the other")
    return len(here) == 2


def sources(path):
    """What a set is made from, for meta.json: a path, how many files and how many bytes it has"""
    if not os.path.exists(path):
        raise Fail(f"there is no {path}")
    files = [os.path.join(folder, f) for folder, _, found in os.walk(path) for f in found] or [path]
    size = sum(map(os.path.getsize, files))
    return {"from": os.path.abspath(path), "files": len(files), "bytes": size}


def check_sources(folder, source, split, field):
    """Raises Fail where the set in `folder` was made from something else than what is named now."""
    made = read_json(os.path.join(folder, "meta.json")).get("made", {})
    now = {"from": os.path.abspath(source)}
    if os.path.exists(source):
        now = sources(source)
        if "split" in made:                         # images have neither
            now |= {"field": field, "split": split or made["split"]}
    for key, value in now.items():
        if made.get(key) != value:
            raise Fail(f"{folder} was made from something else ({key}: {made.get(key, 'unknown')}, "
                       f"now {value}): delete it to make it again, or name another --data_dir")


@contextlib.contextmanager
def exclusive(folder, prepare):
    """One process makes a data set, the others (torchrun starts many) wait as long as it takes. The
    lock of a process that died is gone. A folder that is only read needs no lock."""
    if not prepare and not ready(folder):
        raise Fail(f"{folder} has no train.bin and val.bin, so it is no data set")
    try:
        os.makedirs(folder, exist_ok=True)
        lock = open(os.path.join(folder, ".lock"), "w")
    except OSError as e:
        if not ready(folder):
            raise Fail(f"cannot write {folder} ({e.strerror}): name another --data_dir") from None
        lock = None
    if lock is None:
        yield
        return
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def write_json(path, value):
    with atomic_open(path) as f:
        json.dump(value, f, indent=1)


def read_json(path):
    """A dict, empty where there is none to read"""
    try:
        with open(path) as f:
            value = json.load(f)
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def file_sha256(path):
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
