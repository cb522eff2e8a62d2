"""owt: OpenWebText as nanoGPT tokenises it: 8,013,769 documents, 9.04 billion tokens for training.

    python data/owt/prepare.py                  # 13 GB of download, 19 GB of disk, hours
    python data/owt/prepare.py --from SOURCE    # the same from files that you have

SOURCE: an archive (.tar, .tar.xz, .xz), a text (.txt, .jsonl, .jsonl.gz), or a folder of them.
Stopped? The same command goes on with the archive that it was at.
"""
import collections
import concurrent.futures
import dataclasses
import glob
import hashlib
import io
import json
import lzma
import multiprocessing
import os
import re
import shutil
import signal
import sys
import threading
import time

sys.path.insert(0, os.path.abspath(os.path.join(os.path.dirname(__file__), "..", "..")))
import data
from common import Fail, flag, main, say
from data.download import download, expand, file_size
from data.files import ARCHIVES, LIMIT, TEXTS, documents, intact, members
from data.tokenizers import bpe_size, tokenizer_from
from data.writing import (encode, finish, plain, read_json, sources, stored, text_hash, token_type,
                          unfinished, write_json)

TOKENIZER, BLOCK_SIZE = "gpt2", 1024
URL = ("https://huggingface.co/datasets/Skylion007/openwebtext/resolve/"
       "8cfd553694d06979cfec29248b200468786f0294/subsets/urlsf_subset{00..20}.tar")
SHARE = 0.0005                  # validation documents: nanoGPT's share, but drawn by a hash
BATCH = 2 ** 20                 # characters that a process tokenises at a time


def local(source):
    """-> a list of lists of files: an archive alone, texts by the thousand. Names what it skips."""
    if os.path.isfile(source):
        return [[source]]
    archives, texts, skipped = [], [], []
    for folder, folders, names in os.walk(source):
        folders.sort()
        for name in sorted(names):
            kind = texts if name.endswith(".txt") else archives
            if name.startswith(".") or not name.endswith(ARCHIVES + TEXTS):
                kind = skipped
            kind.append(os.path.join(folder, name))
    if skipped:
        say(f"{len(skipped)} files in {source} are skipped, because they are not of "
            f"{', '.join(ARCHIVES + TEXTS)}: {', '.join(skipped)}")
    if not archives and not texts:
        raise Fail(f"{source} has no files of {', '.join(ARCHIVES + TEXTS)}")
    return [[f] for f in archives] + [texts[i:i + 1000] for i in range(0, len(texts), 1000)]


def batches(paths, split, field):
    """Files -> lists of texts, and packed archives as they are: (name, bytes)"""
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
    threading.Thread(target=end_with_parent, daemon=True).start()


def end_with_parent():
    multiprocessing.parent_process().join()
    os._exit(1)


def tokenise(batch, limit, dtype):
    """-> what to append to train.bin and val.bin, how many documents each, the smallest hash.
    Documents whose hash is below `limit` are validation data."""
    if isinstance(batch, tuple):
        name, content = batch
        with intact(name):
            batch = list(members(lzma.open(io.BytesIO(content)), name, most=4 * LIMIT))
    contents, counts, smallest = ([], []), [0, 0], 2 ** 64
    for text in batch:
        if not isinstance(text, str):
            raise Fail("owt takes texts, no tasks with given tokens: --dataset FILE.jsonl does")
        text = re.sub("\n\n\n+", "\n\n", text).strip()      # as Hugging Face does, so nanoGPT
        content = stored(*encode(text, worker_tokenizer), worker_tokenizer, dtype)
        if content:
            smallest = min(smallest, text_hash(text))
            side = int(text_hash(text) < limit)
            contents[side].append(content)
            counts[side] += 1
    return [b"".join(side) for side in contents], counts, smallest


def results(pool, ahead, batches, *arguments):
    """tokenise() of every batch, in order. At most `ahead` wait: they cost memory."""
    waiting = collections.deque()
    for batch in batches:
        waiting.append(pool.submit(tokenise, batch, *arguments))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    for future in waiting:
        yield future.result()


def fill(folder, archives, limit, tokenizer, dtype, workers, split, field):
    """Tokenise into folder/train.bin and val.bin. After each archive progress.json says how far
    they are good: a run that was stopped goes on from there. -> the content of progress.json"""
    path = os.path.join(folder, "progress.json")
    files = [os.path.join(folder, name) for name in ("train.bin", "val.bin")]
    fresh = dict(archives=0, bytes=[0, 0], counts=[0, 0], smallest=2 ** 64)
    state = read_json(path) or fresh
    if any(file_size(f) < size for f, size in zip(files, state["bytes"])):
        state = fresh               # stopped while the files were being moved to their place
    if state["archives"]:
        say(f"going on after {sum(state['counts']):,} documents")
    os.makedirs(folder, exist_ok=True)
    began, first = time.monotonic(), state["archives"]
    with (open(files[0], "ab") as train, open(files[1], "ab") as val,
          concurrent.futures.ProcessPoolExecutor(workers, initializer=start_worker,
                                                 initargs=(tokenizer,)) as pool):
        train.truncate(state["bytes"][0])
        val.truncate(state["bytes"][1])
        for k in range(first, len(archives)):
            paths, downloaded = archives[k], ""
            if paths[0].startswith("http"):
                name = os.path.basename(paths[0].split("?")[0])
                downloaded = os.path.join(os.path.dirname(folder), name)
                if not os.path.exists(downloaded):
                    download(paths[0], downloaded)
                paths = [downloaded]
            todo = batches(paths, split, field)
            for contents, counts, smallest in results(pool, 2 * workers, todo, limit, dtype):
                train.write(contents[0])
                val.write(contents[1])
                state["counts"] = [a + b for a, b in zip(state["counts"], counts)]
                state["smallest"] = min(state["smallest"], smallest)
            for f in (train, val):
                f.flush()
                os.fsync(f.fileno())
            state.update(archives=k + 1, bytes=[train.tell(), val.tell()])
            write_json(path, state)
            if downloaded:
                os.unlink(downloaded)
            hours = (time.monotonic() - began) / (k + 1 - first) * (len(archives) - k - 1) / 3600
            say(f"archive {k + 1}/{len(archives)} | {sum(state['counts']):,} documents | "
                f"{sum(state['bytes']) / 1e9:.2f} GB of tokens | eta {hours:.1f} h")
    return state


def announce(folder, source, url, size, tokenizer, workers):
    """Say what will be done, and see whether the disk is large enough for it."""
    disk = size * (0.46 if tokenizer.name == "gpt2" else 2.1)   # 4.4 bytes of text a GPT-2 token
    what = f"read {source} ({size / 1e9:.1f} GB)"
    if not source.endswith((".txt", ".jsonl")):
        disk *= 3                                               # assumption: packed to a third
    if not source:
        disk += 1e9
        what = f"download {size / 1e9:.1f} GB (if it is OpenWebText) and delete what is read"
    hours = size / 13e9 * 3 / workers
    say(f"owt: there is no {folder}/train.bin, so I make it: {what}; about {disk / 1e9:.1f} GB of "
        f"disk; tokenise on {workers} processes, very roughly {hours:.1f} hours (an estimate). If "
        "it is stopped, the same command goes on from there.")
    begun = glob.glob(os.path.join(glob.escape(folder), "making-*", "*.bin"))
    free = shutil.disk_usage(folder).free + sum(map(os.path.getsize, begun))
    if free < disk and (source or url == URL):
        raise Fail(f"{folder} needs about {disk / 1e9:.1f} GB and its disk has {free / 1e9:.1f} GB "
                   "free: make room, or name another --data_dir")


def prepare(folder, tokenizer, source="", url=URL, workers=0, split="file", field="text"):
    if bpe_size(tokenizer):
        raise Fail("owt is read as a stream, and bpe is trained on texts in memory: use "
                   "--tokenizer gpt2, bytes or a model's folder")
    tokenizer = tokenizer_from(tokenizer)
    workers, dtype = workers or os.cpu_count(), token_type(tokenizer, tasks=False)
    if source:
        made, archives = sources(source) | {"split": split, "field": field}, local(source)
    else:
        made, archives = {"from": url}, [[address] for address in expand(url)]
    size = made.get("bytes", 0.63e9 * len(archives))
    announce(folder, source, url, size, tokenizer, workers)

    limit, done = int(SHARE * 2 ** 64), False
    while not done:
        key = hashlib.sha256(json.dumps([made, tokenizer.tag, limit]).encode()).hexdigest()[:8]
        making = os.path.join(folder, f"making-{key}")          # other sources: another folder
        try:
            state = fill(making, archives, limit, tokenizer, dtype, workers, split, field)
        except concurrent.futures.BrokenExecutor:
            raise Fail("a tokenising process died, perhaps for want of memory: run the same "
                       "command with fewer --workers, it goes on from here") from None
        done = all(state["counts"])
        if not done and (sum(state["counts"]) < 2 or limit == state["smallest"] + 1):
            raise Fail("there are no two different documents, and training and validation need one "
                       "each at least: give more text, or another --split")
        limit = state["smallest"] + 1                           # now with one document in val.bin

    finish(making, dict(zip(("train", "val"), state["counts"])), tokenizer, dtype, made)
    with unfinished(folder):
        for name in ("train.bin", "val.bin", "meta.json"):
            os.replace(os.path.join(making, name), os.path.join(folder, name))
    for old in glob.glob(os.path.join(glob.escape(folder), "making-*")):
        shutil.rmtree(old)
    if sum(state["counts"]) != 8013769:
        say("owt: this is not the whole set as nanoGPT counts it: 8,013,769 documents")


@dataclasses.dataclass
class Args(data.Args):
    source: str = flag("", "also written --from: an archive, a text or a folder, and no download")
    url: str = flag(URL, "where the archives are; {00..20} stands for 21 numbers")
    workers: int = flag(0, "processes that tokenise; 0: one a core", low=0)
    split: str = flag("file", "what a document of a .txt is", ["paragraph", "line", "file"])
    field: str = flag("text", "the field of a .jsonl that holds the text")


if __name__ == "__main__":
    words = [re.sub("^--from(?=$|=)", "--source", word) for word in sys.argv[1:]]
    main(lambda: data.by_hand("owt", __doc__, Args, words))
