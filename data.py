"""Documents -> token files -> batches of variable-length documents. Nothing here knows about diffusion.

    python data.py python                       # prepare a set now, instead of when train.py first wants it
    python data.py owt                          # download and tokenise OpenWebText: 13 GB of download, 19 GB of disk, hours
    python data.py owt --from DIR_OR_FILE       # the same from archives or texts that you already have
    python data.py notes.jsonl --field body     # any .txt, .jsonl or .jsonl.gz of yours

On disk it is nanoGPT's format: train.bin and val.bin, uint16 token ids, each document followed by the end-of-text id (GPT-2: 50256), so that a
folder made by nanoGPT works as it is. uint32 where the vocabulary needs it, or where a .jsonl holds tasks, whose given part is marked by the
highest bit: {"prompt", "completion"}, {"question", "answer"} (GSM8K's) or {"prefix", "middle", "suffix"} a line. meta.json beside them
(tokenizer, counts, checksums) is written last. Documents longer than block_size are split at the blank line nearest the middle, recursively,
and the blank line is dropped (as in FlexMDM's released code).

Worked number: block_size 4 and the 7 bytes `ab\\n\\ncde`: the blank line at 2 is nearest the middle, 3, so the chunks are `ab` and `cde`.
Where there is no blank line, chunks are cut at block_size: `abcdefg` becomes `abcd` and `efg`.

A hash of its text decides whether a document is validation data, so that the split depends neither on the order nor on where a text came from.
"""
import ast
import bisect
import collections
import concurrent.futures
import contextlib
import dataclasses
import errno
import fcntl
import functools
import gc
import glob
import gzip
import hashlib
import http.client
import importlib
import io
import itertools
import json
import lzma
import multiprocessing
import os
import re
import shutil
import signal
import sys
import sysconfig
import tarfile
import textwrap
import threading
import time
import tokenize
import urllib.error
import urllib.request
import warnings
import zlib

import numpy as np

from common import Fail, aside, flag, main, nearest, parse

BUILT_IN = {"python": 64, "functions": 1024, "brackets": 64, "owt": 1024}           # name -> block_size unless asked otherwise
SUFFIXES = (".tar", ".xz", ".txt", ".jsonl", ".jsonl.gz", ".zst", ".parquet")
OWT = "https://huggingface.co/datasets/Skylion007/openwebtext/resolve/8cfd553694d06979cfec29248b200468786f0294/subsets/urlsf_subset{00..20}.tar"
GIVEN = 2**31                                       # added to the ids of tokens that a task gives
LIMIT = 2**26                                       # no document and no member of an archive may be longer (characters, bytes)
BATCH = 2**20                                       # characters that are tokenised at a time
NOTE = 100                                          # batches after which preparing.json is brought up to date
WINDOW = 2**24                                      # tokens of a bin that are looked at at a time


# ---- tokenizers

class Tokenizer:
    """'bytes': utf-8 bytes, V = 256; NUL is the end of text, and dropped from texts. 'gpt2': tiktoken's GPT-2, V = 50257. A folder with a
    tokenizer.json and a config.json: a pretrained model's (llada.py); its pad token ends a text, as in that model's training."""

    def __init__(self, name):
        self.name = name
        if name == "bytes":
            self.vocab_size, self.eot, self.newline = 256, 0, [10, 10]
        elif name == "gpt2":
            self.vocab_size, self.eot, self.newline = 50257, 50256, [198, 198]
        elif isinstance(name, str) and os.path.exists(os.path.join(name, "tokenizer.json")):
            self.vocab_size, self.eot = hub(name)[1:]
            line = self.encode("\n")
            self.newline = line + line if len(line) == 1 else [-1, -1]
        else:
            raise Fail(f"unknown tokenizer {name!r}: it is bytes, gpt2, or a folder with a tokenizer.json")

    def encode(self, text):
        """Ordinary text only: '<|endoftext|>' in a text is thirteen characters, not a symbol."""
        data = text.encode("utf-8", "replace")      # a lone surrogate, which JSON can smuggle in, becomes a question mark
        if self.name == "bytes":
            return list(data.replace(b"\0", b""))
        return (gpt2() if self.name == "gpt2" else hub(self.name)[0]).encode_ordinary(data.decode())

    def decode(self, ids):
        """Never raises: ends of text and ids out of range are dropped, broken utf-8 becomes U+FFFD."""
        ids = [i for i in map(int, ids) if 0 <= i < self.vocab_size and i != self.eot]
        if self.name == "bytes":
            return bytes(ids).decode("utf-8", "replace")
        return (gpt2() if self.name == "gpt2" else hub(self.name)[0]).decode(ids)

    def spec(self):
        return {"name": self.name}

    @functools.cached_property
    def tag(self):
        """The name; for a pretrained model's, one that does not depend on where its folder is."""
        folder = os.path.basename(os.path.abspath(self.name))
        return self.name if self.name in ("bytes", "gpt2") else f"{folder}-{sha256(os.path.join(self.name, 'tokenizer.json'))[:8]}"

    @property
    def wide(self):
        return self.vocab_size > 1 << 16


def tokenizer_from(spec):
    """A name, or what spec() returned (checkpoints and meta.json hold it)."""
    return spec if isinstance(spec, Tokenizer) else Tokenizer(spec.get("name") if isinstance(spec, dict) else spec)


@functools.cache
def gpt2():
    tiktoken = needed("tiktoken", "the gpt2 tokenizer needs tiktoken: pip install tiktoken")
    try:
        return tiktoken.get_encoding("gpt2")
    except Exception as e:                          # no network, a proxy, a damaged file: requests and tiktoken raise many kinds
        folder = os.environ.get("TIKTOKEN_CACHE_DIR") or "a folder and name the folder in the environment variable TIKTOKEN_CACHE_DIR"
        raise Fail(f"the GPT-2 vocabulary is not here and cannot be fetched ({type(e).__name__}): get vocab.bpe and encoder.json from "
                   f"https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/, and put them as 6d1cbeee0f20b3d9449abfede4726ed8212e3aee "
                   f"and 6c7ea1a7e38e3a7f062df639a5b80947f075ffe6 into {folder}") from None


@functools.cache
def hub(folder):
    """(tiktoken.Encoding, vocabulary size, end-of-text id) of a pretrained model's folder."""
    import llada                                    # only here: it needs torch, which the processes that tokenise text do without
    return llada.vocabulary(folder)


def needed(module, sentence):
    try:
        return importlib.import_module(module)
    except ImportError:
        raise Fail(sentence) from None


# ---- batches

def order(seed, step, batch_size, N):
    """The documents of one optimizer step, (batch_size,): a pure function, so that a resumed run sees what it would have seen.
    Every epoch is a fresh permutation of the N documents; a batch may cross the end of an epoch."""
    first, parts = step * batch_size, []
    while batch_size > 0:
        epoch, at = divmod(first, N)
        parts.append(permutation(seed, epoch, N)[at:at + batch_size])
        first, batch_size = first + len(parts[-1]), batch_size - len(parts[-1])
    return np.concatenate(parts).astype(np.int64)


@functools.lru_cache(maxsize=4)                     # train and val, each with its next epoch: at most 4 x 70 MB for OpenWebText
def permutation(seed, epoch, N):
    return np.random.default_rng([seed % 2**64, epoch]).permutation(N).astype(np.uint32)


class Documents:
    """A bin file as documents of 1 to block_size tokens. They are read when asked for, by os.pread: where a mapped file that shrinks kills the
    process (SIGBUS), a read comes back short and is refused."""

    def __init__(self, path, tokenizer, block_size, packing="documents"):
        self.path, self.tokenizer, self.block_size, self.packing = path, tokenizer, block_size, packing
        try:
            self.file = open(path, "rb")
        except OSError as e:
            raise Fail(f"cannot read {path}: {e.strerror}") from None
        self.stamp = size, _ = self.state()
        self.dtype = np.dtype(read_json(os.path.join(os.path.dirname(path), "meta.json")).get("dtype", "<u4" if tokenizer.wide else "<u2"))
        if size == 0 or size % self.dtype.itemsize:
            raise Fail(f"{path} is {'of odd size' if size else 'empty'}, so it is no file of {self.dtype.name} tokens: delete it and prepare the data again")
        table = index(self)
        self.starts, self.lengths = table[1:, 0].copy(), table[1:, 1].astype(np.int32)                  # (N,) (N,)
        self.tokens = int(self.lengths.sum(dtype=np.int64))
        self.fingerprint = hashlib.sha256(repr([int(table[0, 0]), len(self), block_size, packing]).encode()).hexdigest()[:16]
        if not len(self):
            raise Fail(f"{path} holds no document" if packing == "documents" else
                       f"{path} holds fewer than block_size = {block_size} tokens: lower --block_size, or use --packing documents")

    def __len__(self):
        return len(self.starts)

    def state(self):
        s = os.fstat(self.file.fileno())
        return s.st_size, s.st_mtime_ns

    def batch(self, ids):
        """-> x (B, L) int64, right-padded with 0; n (B,) int64, the lengths; given (B, L) bool, what a task gives, or None where nothing is.
        L is the longest of the batch."""
        import torch                                # only here: the processes that tokenise do without its seconds and its 250 MB
        if self.state() != self.stamp:
            raise Fail(f"{self.path} changed while it was in use: put the old file back and resume, or start again")
        n = self.lengths[np.asarray(ids, dtype=np.int64)]                                               # (B,)
        x = np.zeros((len(n), int(n.max(initial=0))), dtype=np.int64)                                   # (B, L)
        for row, i in enumerate(ids):
            x[row, :n[row]] = self.read(i)
        given = torch.from_numpy(x >= GIVEN) if self.dtype.itemsize > 2 else None
        return torch.from_numpy(x % GIVEN), torch.from_numpy(n.astype(np.int64)), given

    def document(self, i):
        return (self.read(i).astype(np.int64) % GIVEN).tolist()

    def read(self, i):
        """The ids of a document; GIVEN is added to those that are given."""
        size, width = int(self.lengths[i]), self.dtype.itemsize
        data = os.pread(self.file.fileno(), width * size, width * int(self.starts[i]))
        if len(data) != width * size:
            raise Fail(f"{self.path} shrank while it was in use: delete it and prepare the data again")
        return np.frombuffer(data, dtype=self.dtype)


# ---- where the documents of a bin begin

def halve(start, end, breaks, block_size):
    """[start, end) -> [(start, length)] of at most block_size tokens. breaks: sorted positions of blank lines, each two tokens."""
    if end - start <= block_size:
        return [(start, end - start)] if end > start else []
    lo, hi = bisect.bisect_left(breaks, start), bisect.bisect_left(breaks, end - 1)                     # those inside
    if lo >= hi:
        return [(s, min(block_size, end - s)) for s in range(start, end, block_size)]
    middle = start + (end - start) // 2
    k = bisect.bisect_left(breaks, middle, lo, hi)
    at = min(breaks[max(k - 1, lo):min(k + 1, hi)], key=lambda p: abs(p - middle))                      # of two equally near, the first
    return halve(start, at, breaks, block_size) + halve(at + 2, end, breaks, block_size)


def chunks(tokens, ends, tokenizer, block_size):
    """Documents that end at `ends` -> (N, 2): start and length of every chunk. Tasks are not cut: one that is too long is left out."""
    starts = np.concatenate([[0], ends[:-1] + 1])
    fits, long = (ends > starts) & (ends - starts <= block_size), ends - starts > block_size
    if tokens.dtype.itemsize > 2 and long.any():
        given = np.concatenate([[0], np.cumsum(tokens >= GIVEN)])
        long &= given[ends] == given[starts]
    breaks = np.flatnonzero((tokens[:-1] == tokenizer.newline[0]) & (tokens[1:] == tokenizer.newline[1]))
    spans = zip(starts[long].tolist(), ends[long].tolist(), np.searchsorted(breaks, starts[long]), np.searchsorted(breaks, ends[long]))
    cut = list(itertools.chain.from_iterable(halve(s, e, breaks[lo:hi].tolist(), block_size) for s, e, lo, hi in spans))
    table = np.concatenate([np.stack([starts, ends - starts], 1)[fits], np.array(cut, dtype=np.int64).reshape(-1, 2)])
    return table[np.argsort(table[:, 0])]


def scan(docs):
    """Read a bin once, a window at a time -> (1 + N, 2) int64: a checksum and the largest id; then start and length of each chunk, in tokens.
    assumption: no document is longer than 4 windows, 67M tokens; a longer one is cut there."""
    width, eot, largest, sha, rows = docs.dtype.itemsize, docs.tokenizer.eot, 0, hashlib.sha256(), []
    total, carry, base = docs.stamp[0] // width, np.empty(0, dtype=docs.dtype), 0                                # a document that has not ended yet, and where it begins
    with open(docs.path, "rb") as f:
        for at in range(0, total, WINDOW):
            data = f.read(width * min(WINDOW, total - at))
            sha.update(data)
            tokens = np.frombuffer(data[:len(data) // width * width], dtype=docs.dtype)
            largest = max(largest, int((tokens.astype(np.int64) % GIVEN).max(initial=0)))
            progress(f"{docs.path}: finding the documents | {at / total:.0%}")
            if docs.packing == "stream":
                continue
            carry = np.concatenate([carry, tokens])
            ends = np.flatnonzero(carry == eot)
            if at + WINDOW >= total or not len(ends) and len(carry) > 4 * WINDOW:    # the last document of a bin may lack its end of text
                ends = np.append(ends, len(carry))
            if len(ends):
                rows.append(chunks(carry, ends, docs.tokenizer, docs.block_size) + [base, 0])
                carry = carry[ends[-1] + 1:]
                base = at + len(tokens) - len(carry)
    if docs.state() != docs.stamp:
        raise Fail(f"{docs.path} changed while it was being read: start again when it is finished")
    said = read_json(os.path.join(os.path.dirname(docs.path), "meta.json")).get("sha256", {}).get(os.path.basename(docs.path))
    if said not in (None, sha.hexdigest()):
        raise Fail(f"{docs.path} is not what its meta.json says (the sha256 differs): delete {os.path.dirname(docs.path)} to prepare it again")
    if docs.packing == "stream":
        starts = np.arange(total // docs.block_size) * docs.block_size
        rows = [np.stack([starts, np.full_like(starts, docs.block_size)], 1)]
    return np.concatenate([[[np.frombuffer(sha.digest(), dtype="<i8")[0], largest]], *rows]).astype(np.int64, copy=False)


def index(docs):
    """scan(), cached beside the bin (where that can be written) under a name that a changed bin does not match."""
    prefix = f"{docs.path}.{docs.tokenizer.tag}.{docs.block_size}.{docs.packing}."
    path, table = f"{prefix}{docs.stamp[0]:x}.{docs.stamp[1]:x}.npy", None
    with contextlib.suppress(OSError, ValueError, EOFError):
        table = np.load(path, allow_pickle=False)
    if table is None or table.dtype != np.int64 or table.ndim != 2 or table.shape[1] != 2 or table[1:].sum(1).max(initial=0) > docs.stamp[0] // docs.dtype.itemsize:
        table = scan(docs)
        with contextlib.suppress(Fail, OSError):
            with aside(path, "wb") as f:
                np.save(f, table)
            for stale in set(glob.glob(glob.escape(prefix) + "*.npy")) - {path}:
                os.unlink(stale)
    if table[0, 1] >= docs.tokenizer.vocab_size:
        raise Fail(f"{docs.path} holds the id {table[0, 1]}, and the {docs.tokenizer.name} vocabulary ends at {docs.tokenizer.vocab_size - 1}: "
                   f"it was made with another tokenizer, or it is no file of {docs.dtype.name} tokens")
    return table


# ---- documents -> bins

def text_hash(text):
    """A number below 2^64 that depends on the text alone."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest(), "big")


def tokenise(kind, payload, tokenizer, cut, tidy, dtype="<u2"):
    """One batch of documents -> [for train and val: the bytes to append], [how many documents], the smallest hash seen.
    kind: 'texts' (val where the hash is below `cut`); 'train', 'val' (texts that know their side); 'xz' ((name, bytes) of a packed tar)."""
    texts = payload
    if kind == "xz":
        with intact(payload[0]):
            texts = list(members(lzma.open(io.BytesIO(payload[1])), payload[0], most=4 * LIMIT))
    bins, documents, least = ([], []), [0, 0], 2**64
    for text in texts:
        parts = [(text, False)] if isinstance(text, str) else text                   # a task: [(text, is it given?)]
        text = "".join(part for part, _ in parts)
        if tidy:                                                                     # as Hugging Face's loader did, so as nanoGPT's tokens
            text = re.sub("\n\n\n+", "\n\n", text).strip()
            parts = [(text, False)]
        tokens = [id + GIVEN * given for part, given in parts for id in tokenizer.encode(part)]
        if any(id < GIVEN for id in tokens):                                         # there is something to learn
            at = text_hash(text)
            side = int(kind == "val" or kind != "train" and at < cut)
            bins[side].append(np.array(tokens + [tokenizer.eot], dtype=dtype).tobytes())
            documents[side] += 1
            least = min(least, at)
    return [b"".join(b) for b in bins], documents, least


def prepare(folder, shards, tokenizer, share, made, workers=1, tidy=False, wide=False):
    """Write folder/train.bin, val.bin and meta.json. `shards`: a list of functions, each yields (kind, payload, fraction of the shard read).

    The bins grow under the name *.partial, and preparing.json says up to which shard, batch and byte they are good: a run that was killed goes on
    from there and ends with the same bytes. Where the hash puts no document into val, the one with the smallest hash goes there."""
    train, val, journal = (os.path.join(folder, f) for f in ("train.bin", "val.bin", "preparing.json"))
    dtype = "<u4" if wide or tokenizer.wide else "<u2"
    fresh = {"shard": 0, "batch": 0, "bytes": [0, 0], "documents": [0, 0], "least": 2**64, "cut": int(share * 2**64), "done": False,
             "key": hashlib.sha256(json.dumps([made, tokenizer.spec(), share, len(shards)], sort_keys=True).encode()).hexdigest()}
    state, sizes = read_json(journal), [os.path.getsize(b + ".partial") if os.path.exists(b + ".partial") else 0 for b in (train, val)]
    if state.get("key") != fresh["key"] and any(state.get("documents", [])):
        raise Fail(f"{folder} holds {sum(state['documents']):,} documents of an unfinished preparation, from other files or with other options: "
                   f"repeat its command to finish it, or delete {folder}")
    if state.get("key") != fresh["key"] or not state["done"] and (sizes[0] < state["bytes"][0] or sizes[1] < state["bytes"][1]):
        state = dict(fresh)
    while not state["done"]:
        fill((train, val), state, journal, shards, tokenizer, workers, tidy, dtype)
        state["done"] = all(state["documents"])
        if not state["done"] and (state["cut"] != fresh["cut"] or state["documents"][0] < 2):
            os.unlink(journal)
            raise Fail(f"{made['name']} holds no two different documents, and training and validation need one each at least: "
                       f"give more text, or another --split (line or paragraph)")
        state = state if state["done"] else {**fresh, "cut": state["least"] + 1}     # once more, now with one document in val
        write_json(journal, state)
    for b in (train, val):
        if os.path.exists(b + ".partial"):
            os.replace(b + ".partial", b)
    meta = {"tokenizer": tokenizer.spec(), "documents": state["documents"], "tokens": [n // int(dtype[-1]) for n in state["bytes"]],
            **({"dtype": dtype} if dtype != "<u2" else {}), "sha256": {"train.bin": sha256(train), "val.bin": sha256(val)}, "made": made}
    write_json(os.path.join(folder, "meta.json"), meta)
    os.unlink(journal)
    print(f"{folder}: {sum(state['documents']):,} documents, {state['documents'][1]:,} of them for validation; {sum(meta['tokens']):,} tokens",
          flush=True)
    return meta


def fill(bins, state, journal, shards, tokenizer, workers, tidy, dtype):
    """Tokenise the shards from where `state` says, and append to the partial bins."""
    began, first = time.monotonic(), None
    with open(bins[0] + ".partial", "ab") as train, open(bins[1] + ".partial", "ab") as val, crew(workers) as pool:
        def note():
            for f in (train, val):
                f.flush()
                os.fsync(f.fileno())
            write_json(journal, state)

        train.truncate(state["bytes"][0])
        val.truncate(state["bytes"][1])
        note()
        if state["shard"] + state["batch"]:
            print(f"{os.path.dirname(journal)}: going on after {sum(state['documents']):,} documents", flush=True)
        for shard in shards[state["shard"]:]:
            batches = itertools.islice(shard(), state["batch"], None)
            for at, (data, documents, least) in results(pool, 2 * workers, batches, tokenizer, state["cut"], tidy, dtype):
                train.write(data[0])
                val.write(data[1])
                state.update(batch=state["batch"] + 1, least=min(state["least"], least), bytes=[a + len(b) for a, b in zip(state["bytes"], data)],
                             documents=[a + b for a, b in zip(state["documents"], documents)])
                if state["batch"] % NOTE == 0:
                    note()
                now = (state["shard"] + at) / len(shards)                            # the fraction that is done
                first = now if first is None else first
                eta = (time.monotonic() - began) * (1 - now) / (now - first) if now > first else 0
                progress(f"shard {state['shard'] + 1}/{len(shards)} | {sum(state['documents']):,} documents | {sum(state['bytes']) / int(dtype[-1]) / 1e6:,.0f}M "
                         f"tokens | {now:.1%} | eta {int(eta // 3600)}h{int(eta // 60 % 60):02d}m")
            state.update(shard=state["shard"] + 1, batch=0)
            note()


def results(pool, ahead, batches, *arguments):
    """What tokenise makes of every batch, in order, with at most `ahead` batches in the air: those that wait cost memory."""
    waiting = collections.deque()
    for kind, payload, at in batches:
        waiting.append((at, pool.submit(tokenise, kind, payload, *arguments)))
        if len(waiting) > ahead:
            at, future = waiting.popleft()
            yield at, future.result()
    for at, future in waiting:
        yield at, future.result()


@contextlib.contextmanager
def crew(workers):
    """A pool of processes (of one thread, for a single worker) that leaves Ctrl-C to its parent and does not outlive it."""
    pool = (concurrent.futures.ThreadPoolExecutor(1) if workers < 2 else
            concurrent.futures.ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), enlist))
    try:
        yield pool
    except concurrent.futures.BrokenExecutor:
        raise Fail("a tokenising process died, perhaps for want of memory: run the same command with fewer --workers, it goes on from here") from None
    finally:
        pool.shutdown(cancel_futures=True)


def enlist():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def read_json(path):
    """A dict, empty where there is none to read."""
    try:
        with open(path) as f:
            value = json.load(f)
        return value if isinstance(value, dict) else {}
    except (OSError, ValueError, RecursionError):
        return {}


def write_json(path, value):
    with aside(path) as f:
        json.dump(value, f, indent=1)


def sha256(path):
    sha = hashlib.sha256()
    with open(path, "rb") as f:
        while block := f.read(2**24):
            sha.update(block)
    return sha.hexdigest()


said = [time.monotonic()]                                                            # when the last progress line was printed


def progress(line):
    """On a terminal a line that rewrites itself, once a second; in a file a line every half minute."""
    terminal = sys.stdout.isatty()
    if time.monotonic() - said[0] > (1 if terminal else 30):
        said[0] = time.monotonic()
        print(f"\r{line}\033[K" if terminal else line, end="\r" if terminal else "\n", flush=True)


# ---- files -> documents

def read(paths, by="paragraph", field="text"):
    """Files -> batches: ('texts', [str], fraction read), or ('xz', (name, bytes), fraction) for the packed archives inside a tar."""
    batch, at = [], 0.0
    for k, path in enumerate(paths):
        with intact(path), open(path, "rb") as raw:
            size = os.path.getsize(path) or 1
            for text in documents(raw, path, by, field):
                at = (k + raw.tell() / size) / len(paths)
                if isinstance(text, tuple):
                    yield "xz", text, at
                    continue
                batch.append(text)
                size_of = lambda text: len(text) if isinstance(text, str) else sum(len(part) for part, _ in text)
                if size_of(text) > BATCH or len(batch) % 64 == 0 and sum(map(size_of, batch)) > BATCH:
                    yield "texts", batch, at
                    batch = []
    if batch:
        yield "texts", batch, at


@contextlib.contextmanager
def intact(path):
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError, tarfile.TarError) as e:
        raise Fail(f"{path} is truncated or damaged ({e}): delete the file, get it again and repeat the command") from None
    except UnicodeDecodeError as e:
        raise Fail(f"{path} is not utf-8 text ({e.reason}): convert it, for example with iconv -f latin1 -t utf-8") from None
    except OSError as e:
        raise Fail(f"cannot read {path}: {e.strerror or e}") from None


def documents(raw, path, by, field):
    """The texts of one file, by its suffix; for members of a tar see there."""
    stem, inner = os.path.splitext(path)
    if inner in (".gz", ".xz", ".zst"):
        opener = {".gz": lambda: gzip, ".xz": lambda: lzma, ".zst": lambda: needed(
            "compression.zstd", f"{path}: this Python reads no zstd (3.14 does): unpack it first, zstd -d {path}")}[inner]()
        raw, inner = opener.open(raw), os.path.splitext(stem)[1] or {".gz": ".jsonl", ".xz": ".tar", ".zst": ".jsonl"}[inner]
    if inner == ".tar":
        yield from members(raw, path)
    elif inner == ".parquet":
        parquet = needed("pyarrow.parquet", f"{path}: reading .parquet needs pyarrow: pip install pyarrow")
        for batch in parquet.ParquetFile(raw).iter_batches(1024, columns=[field]):
            yield from batch.column(0).to_pylist()
    elif inner == ".jsonl":
        for number, line in enumerate(lines(raw, path), 1):
            if line.strip():
                yield json_text(line, field, f"{path} line {number}")
    elif inner == ".txt" and by == "line":
        yield from (line.rstrip("\n") for line in lines(raw, path))
    elif inner == ".txt":
        yield from paragraphs(lines(raw, path), path, by)
    else:
        raise Fail(f"{path} has no suffix that I know: {', '.join(SUFFIXES)}")


def lines(raw, path):
    text = io.TextIOWrapper(raw, encoding="utf-8-sig")
    while line := text.readline(LIMIT):
        if len(line) == LIMIT:
            raise Fail(f"{path} has a line of {LIMIT:,} characters or more: break it up")
        yield line
    text.detach()                                                                    # or it closes `raw` as it goes


def paragraphs(source, path, by):
    """Documents between blank lines; the whole file as one document if by == 'file'."""
    found, characters = [], 0
    for line in source:
        if by == "paragraph" and not line.strip():
            yield "".join(found).strip("\n")
            found, characters = [], 0
            continue
        found.append(line)
        characters += len(line)
        if characters > LIMIT:
            raise Fail(f"{path} has a document of more than {LIMIT:,} characters: use --split line or --split paragraph")
    yield "".join(found).strip("\n")


TASKS = {("question", "answer"): lambda question, answer: [(question + "\n", True), (answer, False)],
         ("prompt", "completion"): lambda prompt, completion: [(prompt, True), (completion, False)],
         ("prefix", "middle", "suffix"): lambda prefix, middle, suffix: [(prefix, True), (middle, False), (suffix, True)]}


def json_text(line, field, where):
    """A text, or for a task its parts: [(text, is it given?)]."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        raise Fail(f'{where} is not JSON: every line must be an object such as {{"{field}": "..."}}') from None
    if isinstance(value, dict) and isinstance(value.get(field), str):
        return value[field]
    for names, parts in TASKS.items() if isinstance(value, dict) else ():
        if all(isinstance(value.get(name), str) for name in names):
            return parts(*(value[name] for name in names))
    has = ", ".join(k for k, v in value.items() if isinstance(v, str))[:100] if isinstance(value, dict) else ""
    raise Fail(f"{where} has no text in the field {field!r}" + (f": it has {has}, so name one with --field" if has else ""))


class Header(tarfile.TarInfo):
    """A member's header. tarfile takes a damaged header, or a file that just stops, for the end of an archive; this one refuses."""

    @classmethod
    def frombuf(cls, *arguments):
        try:
            return super().frombuf(*arguments)
        except tarfile.EOFHeaderError:                                               # the two blocks of zeros that end an archive
            raise
        except tarfile.HeaderError as e:
            raise tarfile.ReadError(f"{e}, and no end-of-archive mark") from None


def members(stream, name, most=float("inf")):
    """The texts of a tar, in order; its .xz members as (name, bytes). Read as a stream: nothing is ever written under a member's name."""
    with tarfile.open(fileobj=stream, mode="r:", tarinfo=Header) as tar:
        while member := tar.next():
            tar.members = []                                                         # tarfile would keep all 8 million
            if not member.isreg() or os.path.basename(member.name).startswith("."):
                continue
            most -= member.size
            if member.size > LIMIT or most < 0:
                raise Fail(f"{name}: {member.name!r} unpacks to more than an archive of texts should ({member.size:,} bytes)")
            data = tar.extractfile(member).read()
            packed = member.name.endswith(".xz") and most == float("inf")            # an archive in an archive in an archive is read as text
            yield (f"{name}: {member.name}", data) if packed else data.decode("utf-8", "replace")
        while stream.read(2**20):                                                    # so that a packed stream's own checksum is checked
            pass


# ---- data sets that every Python can make

def library(root=None):
    """The standard library less its tests: (lines as utf-8, syntax tree) of every file that parses."""
    for folder, folders, files in os.walk(root or sysconfig.get_path("stdlib")):
        folders[:] = [f for f in folders if f not in ("test", "tests", "idle_test", "site-packages", "dist-packages")]
        for name in (f for f in files if f.endswith(".py")):
            with contextlib.suppress(OSError, SyntaxError, ValueError, RecursionError):
                with tokenize.open(os.path.join(folder, name)) as f:
                    text = f.read()
                yield text.encode().split(b"\n"), ast.parse(text)


def statements(tree):
    """All statements below `tree`. (ast.walk would also visit every expression.)"""
    for name in ("body", "orelse", "finalbody", "handlers", "cases"):
        for child in getattr(tree, name, ()):
            if isinstance(child, ast.stmt):
                yield child
            yield from statements(child)


def parses(text):
    try:
        return bool(ast.parse(text).body)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False


def one_liners(root=None, most=64):
    """One-line statements of 4 to `most` bytes: simple ones as they stand, headers closed with ` pass`. Docstrings do not count as statements."""
    headers, found = (ast.For, ast.AsyncFor, ast.While, ast.If, ast.With, ast.AsyncWith, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef), set()
    for source, tree in library(root):
        for s in statements(tree):
            line = source[s.lineno - 1]
            if isinstance(s, headers):
                header = line[s.col_offset:s.body[0].col_offset if s.body[0].lineno == s.lineno else None]
                cuts = [m.start() for m in re.finditer(b"#", header)] + [len(header)]                   # any # may begin its comment: see what parses
                found.update(h + b" pass" for h in (header[:c].rstrip() for c in cuts) if h.endswith(b":"))
            elif not hasattr(s, "body") and not hasattr(s, "cases") and s.lineno == s.end_lineno:
                docstring = isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant) and isinstance(s.value.value, str)
                found.add(b"" if docstring else line[s.col_offset:s.end_col_offset])
    return [t for t in (f.decode() for f in found if 4 <= len(f) <= most) if parses(t)]             # `elif x: pass` does not, and goes


def functions(root=None, most=1024):
    """Whole functions and methods with their decorators, dedented, of 16 to `most` bytes."""
    found = set()
    for source, tree in library(root):
        for s in statements(tree):
            if isinstance(s, (ast.FunctionDef, ast.AsyncFunctionDef)):
                first = min([s.lineno] + [d.lineno for d in s.decorator_list])
                found.add(textwrap.dedent(b"\n".join(source[first - 1:s.end_lineno]).decode()).rstrip())
    return [t for t in found if 16 <= len(t.encode()) <= most and parses(t)]


def dyck(n, rng):
    """A uniform word of n balanced pairs (cycle lemma: of the 2n + 1 rotations of n ups and n + 1 downs, one alone stays up until its last step)."""
    steps = rng.permutation(np.repeat([1, -1], [n, n + 1]))
    start = int(np.argmin(np.cumsum(steps))) + 1                                     # just after the first lowest point
    return "".join("()"[int(s < 0)] for s in np.roll(steps, -start)[:-1])


def brackets(counts=(20000, 2000), most=64, seed=0):
    """Balanced brackets of lengths 4/16/32/64 with probabilities .1/.4/.4/.1 (those of at most `most`) -> train, val.
    The two sides share no word but those of length 4, of which there are 2; of length 16 there are 1,430, so these repeat within a side."""
    lengths, p = np.array([4, 16, 32, 64]), np.array([.1, .4, .4, .1]) * (np.array([4, 16, 32, 64]) <= most)
    if most < 4:
        raise Fail("the shortest of the brackets have 4 characters: use a block_size of 4 or more")
    rng, sides, cut = np.random.default_rng(seed), ([], []), 2**64 * counts[1] // sum(counts)
    for side, count in enumerate(counts):
        for length in rng.choice(lengths, size=count, p=p / p.sum()):
            word = dyck(length // 2, rng)
            while length > 4 and (text_hash(word) < cut) != bool(side):
                word = dyck(length // 2, rng)
            sides[side].append(word)
    return sides


def generate(dataset, folder, tokenizer, most, stdlib):
    print(f"preparing {dataset} in {folder}" + ("" if dataset == "brackets" else " from the standard library, some seconds"), flush=True)
    if dataset == "brackets":
        batches = [(side, texts, 1.0) for side, texts in zip(("train", "val"), brackets(most=most))]
    else:
        gc.disable()                                                                 # syntax trees hold no cycles: 7.4 s -> 5.2 s
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")                                          # the library's own SyntaxWarnings
            texts = {"python": one_liners, "functions": functions}[dataset](stdlib, most)
        gc.enable()
        if not texts:
            raise Fail(f"this Python has no sources of its standard library (in {most} bytes): use --dataset brackets, or the path of a text")
        batches = [("texts", sorted(texts, key=lambda t: (text_hash(t), t)), 1.0)]
    prepare(folder, [lambda: batches], tokenizer, 0.05, {"name": dataset, "most": most, "python": sys.version.split()[0]})


# ---- OpenWebText

def owt(folder, tokenizer, source, url, workers, by, field):
    """Download (or read from `source`) and tokenise; says beforehand what it will do."""
    tokenizer.encode("")                                                             # no vocabulary? better known now than after the download
    workers = workers or os.cpu_count()
    urls = [] if source else expand(url)
    files = local(source) if source else [[u] for u in urls]
    size = sum(os.path.getsize(f) for shard in files for f in shard) if source else len(urls) * 0.63e9
    disk = growth(files[0][0], size, tokenizer) + (0 if source else 1e9)
    print(f"owt: there is no {folder}/train.bin, so I make it: "
          + (f"read {source} ({size / 1e9:.1f} GB)" if source else f"download {len(urls)} archives, {size / 1e9:.1f} GB if they are OpenWebText's, "
             f"each deleted when read, from {urls[0]} on") + f"; about {disk / 1e9:.1f} GB of disk; tokenise on {workers} processes, very roughly "
          f"{size / 13e9 * 3 / workers:.1f} hours (an estimate). If it is stopped, the same command goes on from there.", flush=True)
    check_disk(folder, disk if source or url == OWT else 0)
    shards = [functools.partial(read, shard, by, field) if source else functools.partial(fetched, shard[0], folder) for shard in files]
    made = {"name": "owt", "from": urls} if urls else {
        "name": "owt", "from": source, "bytes": size, "files": sum(map(len, files)), "split": by, "field": field}
    meta = prepare(folder, shards, tokenizer, 0.0005, made, workers, tidy=True)      # nanoGPT's share of validation documents
    if sum(meta["documents"]) != 8013769 or abs(meta["tokens"][0] / 9.04e9 - 1) > 0.001:
        print("owt: this is not the whole set as nanoGPT counts it: 8,013,769 documents, 9.04 billion GPT-2 tokens for training", flush=True)


def expand(url):
    """'x{00..20}.tar' -> the 21 names."""
    if not url.startswith(("http://", "https://")):
        raise Fail(f"{url!r} is no web address: --url takes http://... or https://..., --from takes files")
    found = re.search(r"\{(\d+)\.\.(\d+)\}", url)
    if not found:
        return [url]
    first, last = found.groups()
    return [url[:found.start()] + str(i).zfill(len(first)) + url[found.end():] for i in range(int(first), int(last) + 1)]


def local(source):
    """A file, or a folder -> a list of files for each shard: an archive alone, texts by the thousand."""
    if os.path.isfile(source):
        return [[source]]
    shards = []
    for folder, folders, files in os.walk(source):
        folders.sort()
        files = [os.path.join(folder, f) for f in sorted(files) if f.endswith(SUFFIXES) and not f.startswith(".")]
        texts = [f for f in files if f.endswith(".txt")]
        shards += [[f] for f in files if not f.endswith(".txt")] + [texts[i:i + 1000] for i in range(0, len(texts), 1000)]
    if not shards:
        raise Fail(f"{source} is no folder with files of {', '.join(SUFFIXES)}" if os.path.exists(source) else f"there is no {source}")
    return shards


def fetched(url, folder):
    """A shard that is downloaded when its turn comes, and deleted when it has been read."""
    path = os.path.join(folder, os.path.basename(url.split("?")[0]))
    if not os.path.exists(path):
        download(url, path)
    yield from read([path])
    os.unlink(path)


def download(url, path, tries=5):
    """url -> path. Goes on where a cut connection or a killed run stopped; gives up after `tries` attempts in a row that brought nothing new."""
    partial, failures, most = path + ".partial", 0, 0
    while failures < tries:
        time.sleep(2**failures - 1)
        failures += 1
        have = os.path.getsize(partial) if os.path.exists(partial) else 0
        try:
            with urllib.request.urlopen(urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {}), timeout=60) as r:
                start = have if r.status == 206 else 0                               # a server that knows no ranges sends all of it again
                total = start + int(r.headers.get("Content-Length", -start))
                with open(partial, "r+b" if have else "wb") as f:
                    f.truncate(start)
                    f.seek(start)
                    while block := r.read(2**20):
                        f.write(block)
                        failures, most = (0, f.tell()) if f.tell() > most else (failures, most)
                        progress(f"{url} | {f.tell() / 1e6:,.0f} of {total / 1e6:,.0f} MB")
            if os.path.getsize(partial) == total or not total:
                os.replace(partial, path)
                return
            problem = "the connection was cut"
        except urllib.error.HTTPError as e:
            problem = f"{e.code} {e.reason}"
            if e.code == 416 and have:                                               # there is nothing beyond what we have: not our file, start over
                os.unlink(partial)
            elif e.code < 500 and e.code != 429:
                raise Fail(f"{url} answers {problem}: name another place with --url, or files that you have with --from") from None
        except (OSError, http.client.HTTPException) as e:                            # no network, a time-out, a cut connection
            if getattr(e, "errno", None) == errno.ENOSPC:
                raise
            problem = getattr(e, "reason", e)
        if failures < tries:
            print(f"{url}: {problem}; trying again", flush=True)
    raise Fail(f"cannot download {url} ({problem}): check the network and run the same command again, it goes on where this one stopped; "
               f"or name files that you have with --from")


def growth(path, size, tokenizer):
    """Bytes of bin from bytes of source. assumption: 4.4 bytes of text a GPT-2 token; what is packed was packed to a third."""
    return size * (1 if path.endswith((".txt", ".jsonl")) else 3) * (0.46 if tokenizer.name == "gpt2" else 2.1)


def check_disk(folder, needed):
    free = shutil.disk_usage(folder).free + sum(os.path.getsize(p) for p in glob.glob(os.path.join(glob.escape(folder), "*.partial")))
    if free < needed:
        raise Fail(f"{folder} needs about {needed / 1e9:.1f} GB and its disk has {free / 1e9:.1f} GB free: make room, or name another --data_dir")


# ---- a name -> a data set

@dataclasses.dataclass
class Dataset:
    name: str
    train: Documents
    val: Documents
    tokenizer: Tokenizer


def load(dataset, data_dir="data", block_size=None, tokenizer=None, split="paragraph", field="text", packing="documents", stdlib=None,
         source=None, url=OWT, workers=None):
    """A data set by its name (python, functions, brackets, owt), by the path of a .txt or .jsonl, or by a folder of bins (or its name under
    data_dir). Made if it is not there. packing 'documents': at most block_size tokens each; 'stream': rows of block_size, ends of text included."""
    for value, known in ((packing, ("documents", "stream")), (split, ("paragraph", "line", "file"))):
        if value not in known:
            raise Fail(f"{value!r} is none of {', '.join(known)}")
    block_size = BUILT_IN.get(dataset, 1024) if block_size is None else block_size
    if block_size < 2:
        raise Fail(f"a block_size of {block_size} is too small: a document needs room for 2 tokens at least")
    asked = tokenizer_from(tokenizer) if tokenizer else None
    mine = asked or Tokenizer("gpt2" if dataset == "owt" else "bytes")               # what the set is made with
    suffix = "" if dataset == "owt" and mine.name == "gpt2" or dataset != "owt" and mine.name == "bytes" else f"-{mine.tag}"
    if dataset == "owt":                                                             # --data_dir may also be a folder that nanoGPT made
        folder = data_dir if os.path.exists(os.path.join(data_dir, "train.bin")) else os.path.join(data_dir, dataset + suffix)
        make = lambda: owt(folder, mine, source, url, workers, split, field)
    elif dataset in BUILT_IN:
        most = block_size if dataset == "functions" else min(block_size, 64)
        folder = os.path.join(data_dir, dataset + (f"-{most}" if most != BUILT_IN[dataset] else "") + suffix)
        make = lambda: generate(dataset, folder, mine, most, stdlib)
    elif os.path.isfile(dataset):
        made = {"name": os.path.basename(dataset), "sha256": sha256(dataset), "split": split, "field": field}
        key = hashlib.sha256(json.dumps(made).encode()).hexdigest()[:8]
        folder = os.path.join(data_dir, f"{made['name'].split('.')[0]}-{key}{suffix}")
        make = lambda: text(dataset, folder, mine, made, workers or 1)
    else:
        folder = next((f for f in (dataset, os.path.join(data_dir, dataset)) if os.path.isdir(f)), None)
        make = None
        if not folder:
            raise Fail(f"unknown data set {dataset!r}{nearest(dataset, list(BUILT_IN))} (known: {', '.join(BUILT_IN)}; and there is no file or "
                       f"folder of that name)")
    with locked(folder, make):
        if not ready(folder):
            make()
        return Dataset(dataset, *opened(folder, asked, block_size, packing))


def text(path, folder, tokenizer, made, workers):
    print(f"preparing {path} in {folder}", flush=True)
    check_disk(folder, growth(path, os.path.getsize(path), tokenizer))
    batches = functools.partial(read, [path], made["split"], made["field"])
    tasks = any(not isinstance(text, str) for _, texts, _ in itertools.islice(batches(), 1) for text in texts[:1] if isinstance(texts, list))
    prepare(folder, [batches], tokenizer, 0.05, made, workers, wide=tasks)


@contextlib.contextmanager
def locked(folder, make):
    """One process makes a set, the others (torchrun starts many) wait. The lock of a process that died is gone."""
    if not make and not ready(folder):
        raise Fail(f"{folder} has no train.bin and val.bin, so it is no data set")
    try:
        os.makedirs(folder, exist_ok=True)
        handle = open(os.path.join(folder, ".lock"), "w")
    except OSError as e:
        if not ready(folder):
            raise Fail(f"cannot write {folder} ({e.strerror}): name another --data_dir") from None
        handle = contextlib.nullcontext()                                            # a folder that is only read needs no lock
    with handle:
        if hasattr(handle, "fileno"):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def ready(folder):
    """Are both bins there, and none half made?"""
    train, val, making = (os.path.exists(os.path.join(folder, f)) for f in ("train.bin", "val.bin", "preparing.json"))
    if train != val and not making:
        raise Fail(f"{folder} has {'train.bin but no val.bin' if train else 'val.bin but no train.bin'}: put it there, or delete the other one")
    return train and val and not making


def opened(folder, asked, block_size, packing):
    meta = read_json(os.path.join(folder, "meta.json"))
    if not asked and not meta and os.path.exists(os.path.join(folder, "meta.pkl")):
        raise Fail(f"{folder} holds characters in a code of nanoGPT's own (meta.pkl): name its text instead, --dataset {folder}/input.txt")
    tokenizer = tokenizer_from(meta["tokenizer"]) if "tokenizer" in meta else asked or Tokenizer("gpt2")
    if asked and asked.tag != tokenizer.tag:
        raise Fail(f"{folder} was tokenised as {tokenizer.tag}, not as {asked.tag}")
    return *(Documents(os.path.join(folder, f), tokenizer, block_size, packing) for f in ("train.bin", "val.bin")), tokenizer


@dataclasses.dataclass
class Config:
    data_dir: str = flag("data", "the folder under which data sets live")
    block_size: int | None = flag(None, "tokens in a document at most")
    tokenizer: str | None = flag(None, "bytes, gpt2, or the folder of a pretrained model")
    split: str | None = flag(None, "what a document is in a .txt (default: paragraph; owt: file)", choices=["paragraph", "line", "file"])
    field: str = flag("text", "the field of a .jsonl that holds the text")
    from_: str | None = flag(None, "written --from: an archive, a text or a folder of them, to be read instead of the download (owt)")
    url: str = flag(OWT, "where the archives are; {00..20} stands for 21 numbers (owt)")
    workers: int | None = flag(None, "processes that tokenise (owt; default: one a core)")


def run():
    name, words = (sys.argv[1], sys.argv[2:]) if len(sys.argv) > 1 and not sys.argv[1].startswith("-") else (None, sys.argv[1:])
    c = parse(Config, __doc__, [re.sub("^--from(?=$|=)", "--from_", w) for w in words])
    if not name:
        raise Fail(f"name a data set first: python data.py {'|'.join(BUILT_IN)}|FILE")
    data = load(name, c.data_dir, c.block_size, c.tokenizer, c.split or ("file" if name == "owt" else "paragraph"), c.field,
                source=c.from_, url=c.url, workers=c.workers)
    for docs in (data.train, data.val):
        print(f"{docs.path}: {len(docs):,} documents of at most {docs.block_size} tokens, {docs.tokens:,} tokens, fingerprint {docs.fingerprint}")


if __name__ == "__main__":
    main(run)
