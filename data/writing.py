"""Documents -> a data set: a folder with train.bin, val.bin and, written last, meta.json.

    train, val = split(texts, share=0.05)
    write_texts(folder, train, val, "bpe", made={"from": "my texts"})

A hash of its text decides whether a document is validation data, so that the split depends neither on the order
nor on where a text came from.
"""
import contextlib
import hashlib
import json
import os

import numpy as np

from common import Fail, atomic_open, say
from data.chunks import GIVEN
from data.tokenizers import tokenizer_for


def text_hash(text):
    """A number below 2^64 that depends on the text alone"""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest(), "big")


def plain(document):
    """A document is a text, or a task: its parts [(text, is it given?)] -> the text of all"""
    return document if isinstance(document, str) else "".join(text for text, _ in document)


def split(documents, share):
    """-> train, val. Where no hash is below `share`, the document with the smallest is validation data."""
    hashes = [text_hash(plain(document)) for document in documents]
    smallest = min(hashes, default=0)
    limit = max(int(share * 2 ** 64), smallest + 1)
    train = [document for document, h in zip(documents, hashes) if h >= limit]
    val = [document for document, h in zip(documents, hashes) if h < limit]
    if not train or not val:
        raise Fail("there are no two different documents, and training and validation need one each at least: "
                   "give more text, or another --split (line or paragraph)")
    return train, val


def encode(document, tokenizer):
    """A text or a task -> ids, and given, a bool for each; None for a text"""
    if isinstance(document, str):
        return np.array(tokenizer.encode(document), dtype=np.uint32), None
    parts = [tokenizer.encode(text) for text, _ in document]
    given = np.repeat([is_given for _, is_given in document], [len(ids) for ids in parts])
    return np.concatenate(parts).astype(np.uint32), given


def token_type(tokenizer, tasks):
    return "<u4" if tasks or tokenizer.vocab_size > 2 ** 16 else "<u2"


def stored(ids, given, tokenizer, dtype):
    """A document -> its bytes in a bin; b"" where there is nothing to learn"""
    if len(ids) == 0 or given is not None and all(given):
        return b""
    tokens = np.append(ids, tokenizer.eot).astype(np.int64)
    if given is not None:
        tokens[:-1][np.array(given, dtype=bool)] += GIVEN
    return tokens.astype(dtype).tobytes()


def write(folder, sides, tokenizer, made, anchors=True):
    """Make a data set.

    sides       {"train": [(ids, given), ...], "val": [...]}: ids without the end of text; given: a bool for
                each id, which of them the task gives, or None
    tokenizer   a Tokenizer; made: a dict for meta.json, what the set was made from
    anchors     False: a hole between given tokens may be empty, so it gets no mask to begin with
                (interpolant.anchors_of), as in the mazes"""
    tasks = any(given is not None for documents in sides.values() for _, given in documents)
    dtype, counts = token_type(tokenizer, tasks), {}
    with unfinished(folder):
        for side, documents in sides.items():
            counts[side] = 0
            with atomic_open(os.path.join(folder, f"{side}.bin"), "wb") as f:
                for ids, given in documents:
                    content = stored(ids, given, tokenizer, dtype)
                    f.write(content)
                    counts[side] += len(content) > 0
            if not counts[side]:
                raise Fail(f"{folder}: there is nothing to learn in the documents for {side}.bin: all are empty")
        finish(folder, counts, tokenizer, dtype, made, anchors)
    empty = sum(map(len, sides.values())) - sum(counts.values())
    if empty:
        say(f"{folder}: {empty:,} documents without any token to learn were left out")


def write_texts(folder, train, val, tokenizer, made):
    """The same for texts and tasks. tokenizer: a Tokenizer or a name, such as "bpe", which is trained on `train`."""
    tokenizer = tokenizer_for(tokenizer, [plain(document) for document in train])
    sides = {}
    for side, documents in (("train", train), ("val", val)):
        sides[side] = [encode(document, tokenizer) for document in documents]
    write(folder, sides, tokenizer, made)


@contextlib.contextmanager
def unfinished(folder):
    """While the bins are being written a file `unfinished` says so."""
    mark = os.path.join(folder, "unfinished")
    with atomic_open(mark):
        pass
    yield
    os.unlink(mark)


def finish(folder, counts, tokenizer, dtype, made, anchors=True):
    """The bins are there: write the vocabulary and meta.json. counts: {"train": documents, "val": documents}"""
    names = ["train.bin", "val.bin"]
    if tokenizer.ranks:
        names.append("bpe.json")
        write_json(os.path.join(folder, "bpe.json"), tokenizer.spec())
    tokens = {}
    for side in counts:
        size = os.path.getsize(os.path.join(folder, f"{side}.bin"))
        tokens[side] = size // np.dtype(dtype).itemsize
    write_json(os.path.join(folder, "meta.json"), {
        "made": made, "tokenizer": {"name": tokenizer.name, "tag": tokenizer.tag}, "dtype": dtype,
        "anchors": anchors, "documents": counts, "tokens": tokens,
        "sha256": {name: file_sha256(os.path.join(folder, name)) for name in names}})
    say(f"{folder}: {sum(counts.values()):,} documents, {counts['val']:,} of them for validation; "
        f"{sum(tokens.values()):,} tokens, {tokenizer.tag}")


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
