"""owt: OpenWebText as nanoGPT tokenises it: 8,013,769 documents, 9.04 billion tokens for training.

    python data/owt/prepare.py                  # 13 GB of download, 19 GB of disk, hours
    python data/owt/prepare.py --from SOURCE    # the same from files that you have

SOURCE: an archive (.tar, .tar.xz, .xz), a text (.txt, .jsonl, .jsonl.gz), or a folder of them.
Stopped? The same command goes on with the archive that it was at.
"""
import dataclasses
import functools
import itertools
import os
import re
import shutil
import sys
from multiprocessing.pool import ThreadPool

sys.path.insert(0, os.path.abspath(os.path.join(os.path.dirname(__file__), "..", "..")))
import data
from common import Fail, flag, main, say
from data.download import download, expand
from data.files import ARCHIVES, TEXTS, documents
from data.tokenizers import bpe_size, tokenizer_from
from data.writing import finish, read_json, sources, stored, text_hash, token_type, write_json

TOKENIZER, BLOCK_SIZE = "gpt2", 1024
TRAINING = dict(block_size=1024, batch_size=512, n_layer=12, n_head=12, n_embd=768,
                rope_theta=10000.0, learning_rate=3e-4, weight_decay=0.03, max_iters=500_000,
                warmup_iters=2500, ema=0.9999, eval_interval=2000, log_interval=10,
                targets="sampled")
URL = ("https://huggingface.co/datasets/Skylion007/openwebtext/resolve/"
       "8cfd553694d06979cfec29248b200468786f0294/subsets/urlsf_subset{00..20}.tar")
SHARE = 0.0005                  # validation documents: nanoGPT's share, but drawn by a hash


def local(source):
    """-> lists of files: each archive alone, all .txt together. Names what it skips."""
    if os.path.isfile(source):
        return [[source]]
    archives, texts, skipped = [], [], []
    for path in sorted(os.path.join(f, name) for f, _, names in os.walk(source) for name in names):
        if os.path.basename(path).startswith(".") or not path.endswith(ARCHIVES + TEXTS):
            skipped.append(path)
        elif path.endswith(".txt"):
            texts.append(path)
        else:
            archives.append([path])
    known = ", ".join(ARCHIVES + TEXTS)
    if skipped:
        say(f"{len(skipped)} files in {source} are skipped, because they are not of {known}: "
            f"{', '.join(skipped)}")
    if not archives and not texts:
        raise Fail(f"{source} has no files of {known}")
    return archives + [texts] if texts else archives


def tokenise(text, tokenizer, limit):
    """-> what to append to a bin, and to which: 0 train.bin, 1 val.bin"""
    if not isinstance(text, str):
        raise Fail("owt takes texts, no tasks with given tokens: --dataset FILE.jsonl does")
    text = re.sub("\n\n\n+", "\n\n", text).strip()          # as Hugging Face does, so nanoGPT
    content = stored(tokenizer.encode(text), None, tokenizer, token_type(tokenizer))
    return content, int(text_hash(text) < limit)


def fetched(paths, folder):
    """Files as they are; an address is downloaded into `folder`."""
    if not paths[0].startswith("http"):
        return paths
    path = os.path.join(folder, os.path.basename(paths[0].split("?")[0]))
    if not os.path.exists(path):
        download(paths[0], path)
    return [path]


def fill(folder, job, archives, read, tokenizer, workers):
    """Tokenise into train.bin and val.bin -> how many documents they hold. After each archive the
    file `unfinished` says how far they are good: a run that was stopped goes on from there.

    job         what is to be done; another one is begun anew
    archives    lists of files or of addresses; read: a file -> its texts"""
    mark, *paths = [os.path.join(folder, name) for name in ("unfinished", "train.bin", "val.bin")]
    state = read_json(mark)
    if state.get("job") != job or not all(map(os.path.exists, paths)):
        state = {"job": job, "archives": 0, "bytes": [0, 0], "counts": [0, 0]}
    write_json(mark, state)
    if state["archives"]:
        say(f"going on after {sum(state['counts']):,} documents")
    work = functools.partial(tokenise, tokenizer=tokenizer, limit=job["share"] * 2 ** 64)
    # threads are enough: tiktoken, 85% of the time (measured), lets go of Python's lock
    with open(paths[0], "ab") as train, open(paths[1], "ab") as val, ThreadPool(workers) as pool:
        bins = train, val
        for f, size in zip(bins, state["bytes"]):
            f.seek(f.truncate(size))
        for k in range(state["archives"], len(archives)):
            files = fetched(archives[k], folder)
            texts = itertools.chain.from_iterable(map(read, files))
            while group := list(itertools.islice(texts, 64 * workers)):
                for content, side in pool.map(work, group):
                    bins[side].write(content)
                    state["counts"][side] += bool(content)
            for f in bins:
                f.flush()
                os.fsync(f.fileno())
            state |= {"archives": k + 1, "bytes": [f.tell() for f in bins]}
            write_json(mark, state)
            if files != archives[k]:
                os.unlink(files[0])
            say(f"archive {k + 1}/{len(archives)} | {sum(state['counts']):,} documents | "
                f"{sum(state['bytes']) / 1e9:.2f} GB of tokens")
    return state["counts"]


def announce(folder, source, size, plain, tokenizer, workers):
    """Say what will be done, and see whether the disk is large enough for it."""
    text = size if plain else 3 * size                          # assumption: packed to a third
    disk = text * (0.46 if tokenizer.name == "gpt2" else 2.1)   # 4.4 bytes of text a GPT-2 token
    what = f"read {source}" if source else "download, archive by archive,"
    say(f"owt: making {folder}/train.bin: {what} {size / 1e9:.1f} GB; about {disk / 1e9:.1f} GB of "
        f"disk; tokenise on {workers} threads, very roughly {size / 4e9 / workers:.1f} hours (an "
        "estimate). If it is stopped, the same command goes on from there.")
    free = shutil.disk_usage(folder).free
    if free < disk and not os.path.exists(os.path.join(folder, "unfinished")):
        raise Fail(f"{folder} needs about {disk / 1e9:.1f} GB and its disk has {free / 1e9:.1f} GB "
                   "free: make room, or name another --data_dir")


def prepare(folder, tokenizer, source="", url=URL, workers=0, split="file", field="text"):
    if bpe_size(tokenizer):
        raise Fail("owt is read as a stream, and bpe is trained on texts in memory: use "
                   "--tokenizer gpt2, bytes or a model's folder")
    tokenizer, workers = tokenizer_from(tokenizer), workers or os.cpu_count()
    if source:
        made, archives = sources(source, split=split, field=field), local(source)
    else:
        made, archives = {"from": url}, [[address] for address in expand(url)]
    plain = all(name.endswith((".txt", ".jsonl")) for names in archives for name in names)
    announce(folder, source, made.get("bytes", 0.63e9 * len(archives)), plain, tokenizer, workers)
    read = functools.partial(documents, split=split, field=field)
    for share in (SHARE, 0.05, 0.5):        # a small set may have no hash below SHARE
        job = {"made": made, "tokenizer": tokenizer.tag, "share": share}
        counts = fill(folder, job, archives, read, tokenizer, workers)
        if all(counts):
            break
    else:
        raise Fail("there are too few different documents for training and validation: give more "
                   "text, or another --split")
    finish(folder, {"train": counts[0], "val": counts[1]}, tokenizer, token_type(tokenizer), made)
    if sum(counts) != 8013769:
        say(f"owt: {sum(counts):,} documents; the whole set has 8,013,769")


@dataclasses.dataclass
class Args(data.Args):
    url: str = flag(URL, "where the archives are; {00..20} stands for 21 numbers")
    workers: int = flag(0, "threads that tokenise; 0: one a core", low=0)


if __name__ == "__main__":
    main(lambda: data.by_hand("owt", __doc__, Args))
