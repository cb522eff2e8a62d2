"""Where the documents of a token file begin: its ends of text, and the blank lines at which long
ones are split. halve() is the rule, chunks() applies it to some documents, scan() to a whole file.
"""
import bisect
import hashlib

import numpy as np

GIVEN = 2 ** 31             # added to the ids of tokens that a task gives; only in files of uint32
WINDOW = 2 ** 25            # tokens of a file that are looked at at a time


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


def chunks(tokens, ends, blank_line, block_size, counts):
    """Documents that end at `ends` -> [(start, length)] of their chunks, (N, 2). Adds to `counts`
    how many were cut, left out (tasks that are too long) and empty."""
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts
    width = len(blank_line)
    places = max(0, len(tokens) - width + 1) if width else 0    # where one might begin
    is_break = np.ones(places, dtype=bool)
    for k, token in enumerate(blank_line):
        is_break &= tokens[k:k + places] == token
    breaks = np.flatnonzero(is_break)
    cut = []
    for i in np.flatnonzero(lengths > block_size):
        start, end = int(starts[i]), int(ends[i])
        if (tokens[start:end] >= GIVEN).any():
            counts["left_out"] += 1
            continue
        counts["cut"] += 1
        low, high = np.searchsorted(breaks, [start, end])
        cut += halve(start, end, breaks[low:high].tolist(), width, block_size)
    counts["empty"] += int((lengths == 0).sum())
    counts["longest"] = max(counts["longest"], int(lengths.max()))
    whole = np.stack([starts, lengths], axis=1)[(lengths > 0) & (lengths <= block_size)]
    table = np.concatenate([whole, np.array(cut, dtype=np.int64).reshape(-1, 2)])
    return table[np.argsort(table[:, 0])]


def scan(docs):
    """Read the file of a data.Documents -> [(start, length)] of its chunks, in tokens, (N, 2);
    what block_size did to the documents; the largest id; the sha256 of the file.

    It is read at every start, so that no index can fail to fit it. Cost: .5 s for 50 million
    tokens, so one to two minutes for OpenWebText (extrapolated).
    assumption: no document is longer than a window; a longer one is cut there."""
    total, at, largest, sha = docs.size // docs.dtype.itemsize, 0, 0, hashlib.sha256()
    counts = dict(cut=0, left_out=0, empty=0, longest=0)
    tables = [np.empty((0, 2), dtype=np.int64)]
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
            table = chunks(tokens, ends, docs.tokenizer.blank_line, docs.block_size, counts)
            tables.append(table + [at, 0])
        at += len(tokens)
    if docs.packing == "stream":
        starts = np.arange(total // docs.block_size) * docs.block_size
        tables = [np.stack([starts, np.full_like(starts, docs.block_size)], axis=1)]
    return np.concatenate(tables), counts, largest, sha.hexdigest()
