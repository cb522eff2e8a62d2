"""A token file as documents of at most block_size tokens.

Longer documents are split at the blank line nearest the middle, recursively, and the blank line is
dropped (as in FlexMDM's released code). Worked number: with block_size 4, the bytes `ab\\n\\ncde`
have their middle at 3 and a blank line at 2, so the chunks are `ab` and `cde`. Where there is no
blank line, chunks are cut at block_size: `abcdefg` becomes `abcd` and `efg`. Tasks are never cut:
those that are too long are left out, and counted.
"""
import hashlib
import os

import numpy as np
import torch

from common import Fail
from data.writing import GIVEN, read_json, token_type

WINDOW = 2 ** 25            # how many tokens of a file are scanned at a time


class Documents:
    """A token file as documents of 1 to block_size tokens. With packing "stream" a document is a
    row of exactly block_size tokens, ends of text included.

    starts, lengths     (N,): where a document begins and how many tokens it has; tokens: their sum
    counts              what block_size does to the documents
    anchored            see `anchors` in writing.py
    fingerprint         a hash of content, block_size and packing"""

    def __init__(self, path, tokenizer, block_size, packing="documents"):
        self.path, self.tokenizer = path, tokenizer
        self.block_size, self.packing = block_size, packing
        meta = read_json(os.path.join(os.path.dirname(path), "meta.json"))
        self.anchored = meta.get("anchors", True)
        dtype = meta.get("dtype", token_type(tokenizer))
        try:
            self.file = open(path, "rb")
            self.ids = np.asarray(np.memmap(self.file, dtype, "r"))     # (size,)
        except (OSError, ValueError) as e:
            raise Fail(f"cannot read {path} as {np.dtype(dtype)} tokens ({e}): delete it and "
                       "prepare the data again") from None
        self.opened = self.state()

        ends, largest, sha256 = self.scan()
        if meta.get("sha256", {}).get(os.path.basename(path), sha256) != sha256:
            raise Fail(f"{path} is not what its meta.json says (the sha256 differs): delete its "
                       "folder to prepare it again")
        if largest >= tokenizer.vocab_size:
            raise Fail(f"{path} holds the id {largest}, and the {tokenizer.name} vocabulary ends "
                       f"at {tokenizer.vocab_size - 1}: it was made with another tokenizer, or it "
                       f"is no file of {self.ids.dtype} tokens")
        self.counts = dict(cut=0, left_out=0, empty=0, longest=0)
        if packing == "stream":
            self.starts = np.arange(len(self.ids) // block_size) * block_size
            self.lengths = np.full(len(self.starts), block_size, dtype=np.int32)
        else:
            self.starts, self.lengths = self.chunks(ends)
        if not len(self):
            raise Fail(f"{path} holds no document for --block_size {block_size} and --packing "
                       f"{packing}: name others, or prepare the data again")
        self.tokens = int(self.lengths.sum(dtype=np.int64))
        content = repr([sha256, block_size, packing])
        self.fingerprint = hashlib.sha256(content.encode()).hexdigest()[:16]

    def __len__(self):
        return len(self.starts)

    def scan(self):
        """-> where documents end (int64), the largest id, the sha256 of the file.

        The file is read at every start, so that no index can fail to fit it. Together with
        chunks() this costs .9 s for 50 million tokens, so two to three minutes for OpenWebText
        (extrapolated)."""
        ends, largest, sha, eot = [], 0, hashlib.sha256(), self.tokenizer.eot
        for at in range(0, len(self.ids), WINDOW):
            ids = self.ids[at:at + WINDOW]
            sha.update(ids)
            ends.append(at + np.flatnonzero(ids == eot))
            if self.ids.itemsize > 2:
                ids = ids % GIVEN
            largest = max(largest, int(ids.max()))
        if self.ids[-1] != eot:             # the last document of a file may lack its end of text
            ends.append([len(self.ids)])
        return np.concatenate(ends), largest, sha.hexdigest()

    def chunks(self, ends):
        """Documents that end at `ends` -> starts and lengths of what block_size makes of them"""
        starts = np.concatenate([[0], ends[:-1] + 1])
        lengths = ends - starts
        self.counts["empty"] = int((lengths == 0).sum())
        self.counts["longest"] = int(lengths.max())
        parts = []
        for i in np.flatnonzero(lengths > self.block_size):
            ids = self.ids[starts[i]:ends[i]]
            if (ids >= GIVEN).any():
                self.counts["left_out"] += 1
            else:
                self.counts["cut"] += 1
                parts += halve(ids, int(starts[i]), self.tokenizer.blank_line, self.block_size)
        fits = (lengths > 0) & (lengths <= self.block_size)
        table = np.stack([starts, lengths], axis=1)[fits]                           # (N, 2)
        table = np.concatenate([table, np.array(parts, dtype=np.int64).reshape(-1, 2)])
        table = table[np.argsort(table[:, 0])]
        return table[:, 0].copy(), table[:, 1].astype(np.int32)

    def state(self):
        s = os.fstat(self.file.fileno())
        return s.st_size, s.st_mtime_ns

    def read(self, i):
        """(n,) int64: the ids of document i; GIVEN is added to those that are given"""
        if self.state() != self.opened:
            raise Fail(f"{self.path} changed while it was in use: put the old file back and "
                       "resume, or start again")
        return self.ids[self.starts[i]:self.starts[i] + self.lengths[i]].astype(np.int64)

    def document(self, i):
        """-> list of ids"""
        return (self.read(i) % GIVEN).tolist()

    def given(self, i):
        """-> list of bool: which tokens the task gives; None where none of the file can be given"""
        return (self.read(i) >= GIVEN).tolist() if self.ids.itemsize > 2 else None

    def batch(self, ids):
        """-> x (B, L) int64, right-padded with 0, L the longest of the batch; n (B,) int64, the
        lengths; given (B, L) bool, or None where no token of the file can be given."""
        n = self.lengths[np.asarray(ids, dtype=np.int64)].astype(np.int64)      # (B,)
        x = np.zeros((len(n), n.max(initial=0)), dtype=np.int64)                # (B, L)
        for row, i in enumerate(ids):
            x[row, :n[row]] = self.read(i)
        given = torch.from_numpy(x >= GIVEN) if self.ids.itemsize > 2 else None
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


def halve(ids, start, blank_line, block_size):
    """A document that begins at `start` -> [(start, length)] of its chunks"""
    if len(ids) <= block_size:
        return [(start, len(ids))] if len(ids) else []
    blanks = places(ids, blank_line)
    if not len(blanks):
        return [(start + at, min(block_size, len(ids) - at))
                for at in range(0, len(ids), block_size)]
    end = int(blanks[abs(blanks - len(ids) // 2).argmin()])     # of two that are as near, the first
    after = end + len(blank_line)
    return (halve(ids[:end], start, blank_line, block_size)
            + halve(ids[after:], start + after, blank_line, block_size))


def places(ids, pattern):
    """Where the pattern stands in `ids`; nowhere if it is empty"""
    found = np.full(max(0, len(ids) - len(pattern) + 1), len(pattern) > 0)
    for k, token in enumerate(pattern):
        found &= ids[k:k + len(found)] == token
    return np.flatnonzero(found)
