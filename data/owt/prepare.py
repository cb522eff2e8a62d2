"""owt: OpenWebText, tokenised as nanoGPT does: 8,013,769 documents, 9.04 billion GPT-2 tokens for training.

    python data/owt/prepare.py                          # 13 GB of download, 19 GB of disk, hours
    python data/owt/prepare.py --from DIR_OR_FILE       # the same from archives or texts that you have
                                                        # (.tar, .tar.xz, .xz, .txt, .jsonl, .jsonl.gz)
Stopped? The same command goes on with the archive that it was at.
"""
import dataclasses
import glob
import hashlib
import io
import json
import lzma
import os
import re
import shutil
import signal
import sys
import threading
import time
from collections import deque
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from multiprocessing import parent_process

sys.path.insert(0, os.path.abspath(os.path.join(os.path.dirname(__file__), "..", "..")))
import numpy as np                                                                  # noqa: E402

import data                                                                         # noqa: E402
from common import Fail, flag, main, say                                            # noqa: E402
from data.download import download, expand                                          # noqa: E402
from data.files import ARCHIVES, LIMIT, TEXTS, documents, intact, members           # noqa: E402
from data.tokenizers import bpe_size                                                # noqa: E402
from data.writing import encode, finish, plain, stored, text_hash, unfinished, write_json   # noqa: E402

TOKENIZER, BLOCK_SIZE = "gpt2", 1024
URL = ("https://huggingface.co/datasets/Skylion007/openwebtext/resolve/"
       "8cfd553694d06979cfec29248b200468786f0294/subsets/urlsf_subset{00..20}.tar")
SHARE = 0.0005                  # nanoGPT's share of validation documents; here a hash of the text draws them
BATCH = 2 ** 20                 # characters that a process tokenises at a time
SIDES = ("train", "val")


def local(source):
    """Files that can be read -> a list of lists: an archive alone, texts by the thousand. Names what it skips."""
    if os.path.isfile(source):
        return [[source]]
    files, skipped = [], []
    for folder, folders, names in os.walk(source):
        folders.sort()
        for name in sorted(names):
            known = name.endswith(ARCHIVES + TEXTS) and not name.startswith(".")
            (files if known else skipped).append(os.path.join(folder, name))
    if skipped:
        say(f"skipping {len(skipped)} of {len(files) + len(skipped)} files, which are no archives or texts "
            f"({', '.join(ARCHIVES + TEXTS)}): {', '.join(skipped)}")
    if not files:
        raise Fail(f"{source} has no files of {', '.join(ARCHIVES + TEXTS)}")
    texts = [f for f in files if f.endswith(".txt")]
    return [[f] for f in files if f not in set(texts)] + [texts[i:i + 1000] for i in range(0, len(texts), 1000)]


def batches(paths, split, field):
    """Files -> lists of texts, or packed archives as they are: (name, bytes)"""
    batch, size = [], 0
    for path in paths:
        for document in documents(path, split, field):
            if isinstance(document, tuple):
                yield document
                continue
            batch.append(document)
            size += len(plain(document))
            if size > BATCH:
                yield batch
                batch, size = [], 0
    yield batch


def start_worker(tokenizer):
    """Ctrl-C is for the parent, and no worker outlives it."""
    global worker_tokenizer
    worker_tokenizer = tokenizer
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=lambda: (parent_process().join(), os._exit(1)), daemon=True).start()


def tokenise(batch, limit, dtype):
    """-> what to append to each bin, [how many documents], the smallest hash. Below `limit`: validation data"""
    if isinstance(batch, tuple):
        name, content = batch
        with intact(name):
            batch = list(members(lzma.open(io.BytesIO(content)), name, most=4 * LIMIT))
    bins, counts, smallest = ([], []), [0, 0], 2 ** 64
    for text in batch:
        if not isinstance(text, str):
            raise Fail("tasks have given tokens, which owt has not: name their .jsonl with --dataset")
        text = re.sub("\n\n\n+", "\n\n", text).strip()          # as in Hugging Face's copy: nanoGPT's tokens
        content = stored(*encode(text, worker_tokenizer), worker_tokenizer, dtype)
        if content:
            side = int(text_hash(text) < limit)
            bins[side].append(content)
            counts[side] += 1
            smallest = min(smallest, text_hash(text))
    return [b"".join(b) for b in bins], counts, smallest


def results(pool, batches, *arguments):
    """tokenise() of every batch, in order. Only some are under way at a time: those that wait cost memory."""
    waiting, ahead = deque(), 2 * pool._max_workers
    for batch in batches:
        waiting.append(pool.submit(tokenise, batch, *arguments))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    yield from (future.result() for future in waiting)


def fill(folder, archives, pool, limit, tokenizer, dtype, split, field):
    """Tokenise into folder/train.bin and val.bin. After each archive progress.json says how far they are good:
    a run that was stopped goes on from there. -> its content"""
    path = os.path.join(folder, "progress.json")
    state = data.read_json(path) or {"archives": 0, "bytes": [0, 0], "counts": [0, 0], "smallest": 2 ** 64}
    if state["archives"]:
        say(f"going on after {state['archives']} of {len(archives)} archives, {sum(state['counts']):,} documents")
    began, first = time.monotonic(), state["archives"]
    os.makedirs(folder, exist_ok=True)
    files = [open(os.path.join(folder, f"{side}.bin"), "ab") for side in SIDES]
    for f, size in zip(files, state["bytes"]):
        f.truncate(size)
    for k in range(first, len(archives)):
        paths = archives[k]
        if paths[0].startswith("http"):
            paths = [os.path.join(os.path.dirname(folder), os.path.basename(archives[k][0].split("?")[0]))]
            if not os.path.exists(paths[0]):
                download(archives[k][0], paths[0])
        for contents, counts, smallest in results(pool, batches(paths, split, field), limit, dtype):
            for f, content in zip(files, contents):
                f.write(content)
            state["counts"] = [a + b for a, b in zip(state["counts"], counts)]
            state["smallest"] = min(state["smallest"], smallest)
        for f in files:
            f.flush()
            os.fsync(f.fileno())
        state["archives"], state["bytes"] = k + 1, [os.fstat(f.fileno()).st_size for f in files]
        write_json(path, state)
        if paths is not archives[k]:
            os.unlink(paths[0])
        hours = (time.monotonic() - began) / 3600 * (len(archives) - k - 1) / (k + 1 - first)
        say(f"archive {k + 1}/{len(archives)} | {sum(state['counts']):,} documents | "
            f"{sum(state['bytes']) / np.dtype(dtype).itemsize / 1e6:,.1f}M tokens | eta {hours:.1f} h")
    for f in files:
        f.close()
    return state


def announce(folder, source, url, size, tokenizer, workers):
    """Say what will be done, and see whether the disk is large enough for it."""
    packed = 1 if source.endswith((".txt", ".jsonl")) else 3    # assumption: packed to a third
    disk = size * packed * (0.46 if tokenizer.name == "gpt2" else 2.1)      # 4.4 bytes of text a GPT-2 token
    what = f"read {source}, {size / 1e9:.1f} GB"
    if not source:
        disk += 1e9
        what = f"download {size / 1e9:.1f} GB (if that is OpenWebText: {url}), each archive deleted when it is read"
    say(f"owt: there is no {folder}/train.bin, so I make it: {what}; about {disk / 1e9:.1f} GB of disk; tokenise on "
        f"{workers} processes, very roughly {size / 13e9 * 3 / workers:.1f} hours (an estimate). If it is stopped, the "
        "same command goes on from there.")
    have = glob.glob(os.path.join(glob.escape(folder), "**", "*.bin"), recursive=True)
    free = shutil.disk_usage(folder).free + sum(map(os.path.getsize, have))
    if free < disk and (source or url == URL):
        raise Fail(f"{folder} needs about {disk / 1e9:.1f} GB and its disk has {free / 1e9:.1f} GB free: make room, or "
                   "name another --data_dir")


def prepare(folder, tokenizer, source="", url=URL, workers=0, split="file", field="text"):
    if bpe_size(tokenizer):
        raise Fail("owt is read as a stream, and bpe is trained on texts in memory: use --tokenizer gpt2 or bytes")
    tokenizer = data.tokenizer_from(tokenizer)
    workers, dtype = workers or os.cpu_count(), data.token_type(tokenizer, tasks=False)
    if source:
        made, archives = data.sources(source) | {"split": split, "field": field}, local(source)
    else:
        archives = [[address] for address in expand(url)]
        made = {"from": url}
    announce(folder, source, url, made.get("bytes", len(archives) * 0.63e9), tokenizer, workers)

    limit, done = int(SHARE * 2 ** 64), False
    while not done:
        key = hashlib.sha256(json.dumps([made, tokenizer.tag, limit]).encode()).hexdigest()[:8]
        making = os.path.join(folder, f"making-{key}")
        try:
            with ProcessPoolExecutor(workers, initializer=start_worker, initargs=(tokenizer,)) as pool:
                state = fill(making, archives, pool, limit, tokenizer, dtype, split, field)
        except BrokenExecutor:
            raise Fail("a tokenising process died, perhaps for want of memory: run the same command with fewer "
                       "--workers, it goes on from here") from None
        done = all(state["counts"])
        if not done and (sum(state["counts"]) < 2 or limit == state["smallest"] + 1):
            raise Fail("there are no two different documents, and training and validation need one each at least")
        limit = state["smallest"] + 1               # once more, now with one document for validation

    with unfinished(folder):
        for side in SIDES:
            os.replace(os.path.join(making, f"{side}.bin"), os.path.join(folder, f"{side}.bin"))
        finish(folder, dict(zip(SIDES, state["counts"])), tokenizer, dtype, made)
    for old in glob.glob(os.path.join(glob.escape(folder), "making-*")):
        shutil.rmtree(old)
    if sum(state["counts"]) != 8013769:
        say("owt: this is not the whole set as nanoGPT counts it: 8,013,769 documents")


@dataclasses.dataclass
class Args(data.Args):
    source: str = flag("", "also written --from: an archive, a text or a folder of them, instead of the download")
    url: str = flag(URL, "where the archives are; {00..20} stands for 21 numbers")
    workers: int = flag(0, "processes that tokenise; 0: one a core", low=0)
    split: str = flag("file", "what a document of a .txt is", ["paragraph", "line", "file"])
    field: str = flag("text", "the field of a .jsonl that holds the text")


if __name__ == "__main__":
    words = [re.sub("^--from(?=$|=)", "--source", word) for word in sys.argv[1:]]
    main(lambda: data.by_hand("owt", __doc__, Args, words))
