"""Documents -> a data set: a folder with train.bin, val.bin and meta.json. While they are written,
and after a kill, it also has a file `unfinished`.

    train, val = split(texts, share=0.05)
    write_texts(folder, train, val, "bpe", made={"from": "my texts"})

A document is a text, or a task: a list of parts, (text, is it given?). A hash of its text decides
whether it is validation data, so that the split depends neither on the order of documents nor on
where they came from.
"""
import hashlib
import json
import os

import numpy as np

from common import Fail, atomic_open, say
from data.tokenizers import tag_of, tokenizer_for, tokenizer_from

GIVEN = 2 ** 31             # added to the ids of tokens that a task gives; only in files of uint32
INTENSITIES = "intensities-256"     # the tokenizer of images


def text_hash(text):
    """A number below 2^64 that depends on the text alone"""
    content = text.encode("utf-8", "replace")
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big")


def plain(document):
    """The text of a document"""
    return document if isinstance(document, str) else "".join(text for text, _ in document)


def split(documents, share):
    """-> train, val. If no hash is below `share`, val is the document with the smallest."""
    documents = [document for document in documents if plain(document)]
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
        return tokenizer.encode(document), None
    ids, given = [], []
    for text, is_given in document:
        part = tokenizer.encode(text)
        ids += part
        given += [is_given] * len(part)
    return ids, given


def token_type(tokenizer, tasks=False):
    if tokenizer.eot < 0:
        return "|u1"                                # images
    return "<u4" if tasks or tokenizer.vocab_size > 2 ** 16 else "<u2"


def stored(ids, given, tokenizer, dtype):
    """A document -> its bytes in a bin; b"" for one without tokens"""
    if len(ids) == 0:
        return b""
    tokens = np.array(ids, dtype=np.int64)
    if given is not None:
        tokens += GIVEN * np.array(given, dtype=np.int64)
    if tokenizer.eot >= 0:
        tokens = np.append(tokens, tokenizer.eot)
    return tokens.astype(dtype).tobytes()


def write_texts(folder, train, val, tokenizer, made):
    """Make a data set of documents. tokenizer: a Tokenizer or a name; "bpe" is trained on `train`.
    made: what the set was made from, a dict for meta.json"""
    tokenizer = tokenizer_for(tokenizer, [plain(document) for document in train])
    sides = {"train": [encode(document, tokenizer) for document in train],
             "val": [encode(document, tokenizer) for document in val]}
    write(folder, sides, tokenizer, made)


def write_images(folder, tokenizer, sides, made):
    """Make a data set of images. A document is an image: H x W x C intensities, row by row,
    channels last. All have the same length, so no end of text stands between them; meta.json has
    the "shape". sides: {"train": [images, ...], "val": [...]}, each (N, H, W, C) uint8"""
    if tag_of(tokenizer) != INTENSITIES:
        raise Fail(f"images are no text: leave out --tokenizer {tag_of(tokenizer)}")
    documents = {side: [(image.ravel(), None) for images in parts for image in images]
                 for side, parts in sides.items()}
    shape = sides["val"][0].shape[1:]
    write(folder, documents, tokenizer_from(tokenizer), made, shape=shape)


def write(folder, sides, tokenizer, made, **more):
    """Make a data set of documents that are tokens already.

    sides       {"train": [(ids, given), ...], "val": [...]}: ids without the end of text; given:
                for each id whether the task gives it, or None where nothing is given
    more        goes to meta.json too. anchors=False: a hole between given tokens may be empty, so
                it does not begin with a mask (see interpolant.anchors_of)"""
    tasks = any(given is not None for documents in sides.values() for _, given in documents)
    dtype, counts = token_type(tokenizer, tasks), dict.fromkeys(sides, 0)
    write_json(os.path.join(folder, "unfinished"), {})
    for side, documents in sides.items():
        with open(os.path.join(folder, f"{side}.bin"), "wb") as f:
            for ids, given in documents:
                counts[side] += f.write(stored(ids, given, tokenizer, dtype)) > 0
        if not counts[side]:
            raise Fail(f"{folder}: no document for {side}.bin holds a token")
    finish(folder, counts, tokenizer, dtype, made, **more)


def finish(folder, counts, tokenizer, dtype, made, **more):
    """The bins are written: add the vocabulary and meta.json. counts: {"train": documents, ...}"""
    tokens, names = {}, [f"{side}.bin" for side in counts]
    for side in counts:
        size = os.path.getsize(os.path.join(folder, f"{side}.bin"))
        tokens[side] = size // np.dtype(dtype).itemsize
    if tokenizer.ranks:
        names.append("bpe.json")
        write_json(os.path.join(folder, "bpe.json"), tokenizer.spec())
    write_json(os.path.join(folder, "meta.json"), {
        "made": made, "tokenizer": {"name": tokenizer.name, "tag": tokenizer.tag}, "dtype": dtype,
        "documents": counts, "tokens": tokens,
        "sha256": {name: file_sha256(os.path.join(folder, name)) for name in names}, **more})
    os.unlink(os.path.join(folder, "unfinished"))
    of_them = f", {counts['val']:,} of them for validation" if "train" in counts else ""
    say(f"{sum(counts.values()):,} documents{of_them}; {sum(tokens.values()):,} tokens "
        f"({tokenizer.tag})")


def ready(folder):
    """Are both token files there, and complete?"""
    if os.path.exists(os.path.join(folder, "unfinished")):
        return False
    here = [os.path.exists(os.path.join(folder, name)) for name in ("train.bin", "val.bin")]
    if any(here) and not all(here):
        raise Fail(f"{folder} has one of train.bin and val.bin: add the other, or delete the one")
    return all(here)


def sources(path, **how):
    """What a set is made from, for meta.json: a path, how many files and how many bytes it has.
    how: the split and the field that the documents were read by"""
    if not os.path.exists(path):
        raise Fail(f"there is no {path}")
    files = [os.path.join(folder, f) for folder, _, found in os.walk(path) for f in found] or [path]
    size = sum(map(os.path.getsize, files))
    return {"from": os.path.abspath(path), "files": len(files), "bytes": size, **how}


def write_json(path, value):
    with atomic_open(path) as f:
        json.dump(value, f, indent=1)


def read_json(path):
    """A dict, empty where there is none to read"""
    try:
        with open(path) as f:
            return json.load(f)
    except (OSError, ValueError):
        return {}


def file_sha256(path):
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
