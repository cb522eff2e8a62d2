"""Where the documents of a token file begin: its ends of text, and the blank lines at which long
ones are split. halve() is the rule, chunks() applies it to some documents, scan() to a whole file,
and index() remembers what scan() found.
"""
import bisect
import contextlib
import hashlib
import io

import numpy as np

from common import Fail, atomic_open

GIVEN = 2 ** 31             # added to the ids of tokens that a task gives; only in files of uint32
WINDOW = 2 ** 25            # tokens of a file that are looked at at a time
CACHED = 2 ** 28            # bytes: the index of a larger file is kept beside it
COUNTS = ("cut", "left_out", "empty", "longest")


def halve(start, end, breaks, width, block_size):
    """[start, end) -> [(start, length)] of at most block_size tokens: split at the blank line
    nearest the middle (of two, the first), recursively. breaks: where blank lines, of `width`
    tokens each, begin."""
    if end - start <= block_size:
        return [(start, end - start)] if end > start else []
    low = bisect.bisect_left(breaks, start)
    high = bisect.bisect_right(breaks, end - width)
    if low >= high:
        return [(at, min(block_size, end - at)) for at in range(start, end, block_size)]
    middle = start + (end - start) // 2
    k = bisect.bisect_left(breaks, middle, low, high)
    at = min(breaks[max(k - 1, low):min(k + 1, high)], key=lambda place: abs(place - middle))
    left = halve(start, at, breaks, width, block_size)
    return left + halve(at + width, end, breaks, width, block_size)


def chunks(tokens, ends, blank_line, block_size):
    """Documents that end at `ends` -> (N, 2), start and length of each chunk; and COUNTS: how many
    were cut, how many were tasks too long, which are left out, how many empty; the longest."""
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts
    long, task = lengths > block_size, np.zeros(len(ends), dtype=bool)
    if tokens.dtype.itemsize > 2:
        given = np.concatenate([[0], np.cumsum(tokens >= GIVEN)])
        task = given[ends] > given[starts]
    width, breaks = len(blank_line), np.empty(0, dtype=np.int64)
    if 0 < width <= len(tokens):
        windows = np.lib.stride_tricks.sliding_window_view(tokens, width)
        breaks = np.flatnonzero((windows == np.array(blank_line, dtype=tokens.dtype)).all(1))
    cut = []
    for i in np.flatnonzero(long & ~task):
        start, end = int(starts[i]), int(ends[i])
        low, high = np.searchsorted(breaks, [start, end])
        cut += halve(start, end, breaks[low:high].tolist(), width, block_size)
    whole = np.stack([starts, lengths], axis=1)[(lengths > 0) & ~long]
    table = np.concatenate([whole, np.array(cut, dtype=np.int64).reshape(-1, 2)])
    counts = [(long & ~task).sum(), (long & task).sum(), (lengths == 0).sum(), lengths.max()]
    return table[np.argsort(table[:, 0])], counts


def scan(docs, sha256=None):
    """Read the file of a data.Documents once -> dict of arrays: starts, lengths (N,), in tokens;
    the digest and the largest id of the file; counts. Raises Fail where its sha256 is another.
    assumption: no document is longer than a window; a longer one is cut there."""
    total, at = docs.size // docs.dtype.itemsize, 0
    largest, sha = 0, hashlib.sha256()
    tables, counts = [np.empty((0, 2), dtype=np.int64)], [[0, 0, 0, 0]]
    while at < total:
        tokens = docs.pread(at, min(WINDOW, total - at))
        ends = np.flatnonzero(tokens == docs.tokenizer.eot)
        unended = at + len(tokens) == total and tokens[-1] != docs.tokenizer.eot
        if unended or not len(ends):        # the last document of a file may lack its end of text
            ends = np.append(ends, len(tokens))
        tokens = tokens[:ends[-1] + 1]      # the next window begins with a document
        sha.update(tokens)
        ids = tokens % GIVEN if tokens.dtype.itemsize > 2 else tokens
        largest = max(largest, int(ids.max()))
        if docs.packing == "documents":
            table, count = chunks(tokens, ends, docs.tokenizer.blank_line, docs.block_size)
            tables.append(table + [at, 0])
            counts.append(count)
        at += len(tokens)
    if docs.state() != (docs.size, docs.mtime):
        raise Fail(f"{docs.path} changed while it was being read: start again when it is finished")
    if sha256 not in (None, sha.hexdigest()):
        raise Fail(f"{docs.path} is not what its meta.json says (the sha256 differs): delete its "
                   "folder to prepare it again")
    if docs.packing == "stream":
        starts = np.arange(total // docs.block_size) * docs.block_size
        tables = [np.stack([starts, np.full_like(starts, docs.block_size)], axis=1)]
    table, counts = np.concatenate(tables), np.array(counts)
    return dict(starts=table[:, 0].copy(), lengths=table[:, 1].astype(np.int32),
                digest=np.frombuffer(sha.digest(), dtype=np.uint8), largest=np.array(largest),
                counts=np.append(counts[:, :3].sum(0), counts[:, 3].max()))


def index(docs, sha256):
    """scan(), kept beside a large file. What is kept begins with a digest of itself and of all that
    it depends on: if the file changed, or a bit of what is kept, the file is read again."""
    if docs.size < CACHED:
        return scan(docs, sha256)
    key = [docs.size, docs.mtime, docs.block_size, docs.packing, docs.tokenizer.tag, sha256]
    path = f"{docs.path}.{docs.block_size}.{docs.packing}.index"
    with contextlib.suppress(OSError):
        with open(path, "rb") as f:
            digest, content = f.read(32), f.read()
        if digest == hashlib.sha256(repr(key).encode() + content).digest():
            return dict(np.load(io.BytesIO(content), allow_pickle=False))
    table, buffer = scan(docs, sha256), io.BytesIO()
    np.savez(buffer, **table)
    content = buffer.getvalue()
    with contextlib.suppress(Fail, OSError):        # a folder that is only read, a full disk
        with atomic_open(path, "wb") as f:
            f.write(hashlib.sha256(repr(key).encode() + content).digest() + content)
    return table
