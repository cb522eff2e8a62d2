"""data.py: what a document is, what a bin holds, what a batch is, and that nothing is lost when a preparation is cut, killed or fed rubbish."""
import ast
import gzip
import http.server
import io
import json
import lzma
import os
import pickle
import random
import re
import signal
import subprocess
import sys
import tarfile
import threading
import warnings

import numpy as np
import pytest
import torch

import common
import data
from common import Fail

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
VOCABULARY = os.environ.get("TIKTOKEN_CACHE_DIR") or os.path.join(os.path.dirname(ROOT), "shared", "tiktoken")
needs_gpt2 = pytest.mark.skipif(not os.path.exists(os.path.join(VOCABULARY, "6d1cbeee0f20b3d9449abfede4726ed8212e3aee")),
                                reason="no GPT-2 vocabulary: set TIKTOKEN_CACHE_DIR")
BYTES = data.Tokenizer("bytes")
pytestmark = [pytest.mark.filterwarnings("ignore::DeprecationWarning"), pytest.mark.filterwarnings("ignore::SyntaxWarning")]    # LIBRARY's own


@pytest.fixture(autouse=True)
def vocabulary(monkeypatch):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", VOCABULARY)


def write_bin(path, documents, eot=0):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    np.array([i for d in documents for i in [*d, eot]], dtype=np.uint16).tofile(path)
    return str(path)


def texts(docs):
    return [docs.tokenizer.decode(docs.document(i)) for i in range(len(docs))]


def everything(dataset):
    return texts(dataset.train) + texts(dataset.val)


def fails(match, call, *arguments, **options):
    """The call ends in one sentence, which says `match`."""
    with pytest.raises(Fail, match=match) as e:
        call(*arguments, **options)
    assert "\n" not in str(e.value)


# ---- tokenizers

STRINGS = ["", "def f(x): return x", "naïve — 東京 🙂", "a\n\nb\r\n\tc", "<|endoftext|>", " " * 50, "\ufeffx"]


@pytest.mark.parametrize("name", ["bytes", pytest.param("gpt2", marks=needs_gpt2)])
def test_texts_survive_a_tokenizer(name):
    tokenizer = data.tokenizer_from(data.Tokenizer(name).spec())
    for s in STRINGS:
        ids = tokenizer.encode(s)
        assert tokenizer.decode(ids) == s and all(0 <= i < tokenizer.vocab_size and i != tokenizer.eot for i in ids)
    assert tokenizer.decode([tokenizer.eot, 10**6, -1, *tokenizer.encode("x")]) == "x"
    assert tokenizer.encode("a\n\nb")[1:3] == tokenizer.newline
    assert "?" in tokenizer.decode(tokenizer.encode("\ud800"))
    tokenizer.decode(range(tokenizer.vocab_size))


def test_bytes_are_bytes_and_nul_ends_a_text():
    assert BYTES.encode("é\0!") == [0xc3, 0xa9, 33] and BYTES.decode([0xc3]) == "\ufffd"
    assert (BYTES.vocab_size, BYTES.eot, BYTES.newline) == (256, 0, [10, 10])
    fails("bytes, gpt2, or a folder", data.Tokenizer, "bpe")
    fails("bytes, gpt2, or a folder", data.tokenizer_from, {})


def test_a_tokenizer_lives_in_a_checkpoint(tmp_path):
    torch.save(BYTES.spec(), tmp_path / "c.pt")
    assert data.tokenizer_from(torch.load(tmp_path / "c.pt", weights_only=True)).name == "bytes"


def test_a_missing_gpt2_vocabulary_says_which_files_to_put_where(monkeypatch, tmp_path):
    tiktoken_load = pytest.importorskip("tiktoken.load")

    def no_network(path):
        raise ConnectionError(path)

    monkeypatch.setattr(tiktoken_load, "read_file", no_network)
    monkeypatch.setattr(pytest.importorskip("tiktoken.registry"), "ENCODINGS", {})
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    data.gpt2.cache_clear()
    fails(f"6d1cbeee0f20b3d9449abfede4726ed8212e3aee.*6c7ea1a7e38e3a7f062df639a5b80947f075ffe6 into {tmp_path}", data.Tokenizer("gpt2").encode, "x")


def test_the_names_in_that_sentence_are_those_that_tiktoken_looks_for():
    import hashlib
    source = open(pytest.importorskip("tiktoken_ext.openai_public").__file__).read()
    sentence = open(data.__file__).read()
    for url in re.findall(r'"(https://\S+/gpt-2/\S+)"', source):
        assert hashlib.sha1(url.encode()).hexdigest() in sentence and os.path.dirname(url) in sentence


# ---- bins

def test_a_bin_is_nanogpts():
    """The layout of nanoGPT's prepare.py: uint16, little-endian, the ids of a document and then the end of text."""
    bins, documents, _ = data.tokenise("train", ["ab", "", "c"], BYTES, 0, False)
    assert bins[0] == np.array([97, 98, 0, 99, 0], dtype=np.uint16).tobytes() and documents == [2, 0]


@needs_gpt2
def test_a_folder_made_by_nanogpt_works_as_it_is(tmp_path):
    import tiktoken
    encoder, ids = tiktoken.get_encoding("gpt2"), {}
    for side, documents in (("train", ["one two", "three\n\nfour"]), ("val", ["five"])):
        ids[side] = [encoder.encode_ordinary(d) + [encoder.eot_token] for d in documents]
        array = np.memmap(tmp_path / f"{side}.bin", dtype=np.uint16, mode="w+", shape=(sum(map(len, ids[side])),))     # as prepare.py does
        array[:] = np.concatenate(ids[side])
        array.flush()
    for name, folder in (("owt", tmp_path), (tmp_path.name, tmp_path.parent), (str(tmp_path), "data")):
        d = data.load(name, data_dir=str(folder))
        assert texts(d.train) == ["one two", "three\n\nfour"] and texts(d.val) == ["five"] and d.tokenizer.name == "gpt2"
    stream = data.load("owt", data_dir=str(tmp_path), block_size=2, packing="stream").train
    assert [stream.document(i) for i in range(len(stream))] == np.concatenate(ids["train"])[:len(stream) * 2].reshape(-1, 2).tolist()


def test_a_batch_is_padded_to_its_longest(tmp_path):
    documents = [[1, 2, 3], [4], [5, 6], [7, 8, 9, 10, 11]]
    docs = data.Documents(write_bin(tmp_path / "a.bin", documents), BYTES, 5)
    x, n, given = docs.batch(np.array([1, 2]))
    assert x.tolist() == [[4, 0], [5, 6]] and n.tolist() == [1, 2] and x.dtype == n.dtype == torch.int64
    assert docs.batch([3, 3])[0].shape == (2, 5) and docs.batch([])[0].shape == (0, 0)
    assert len(docs) == 4 and docs.tokens == 11 and docs.lengths.tolist() == [3, 1, 2, 5] and docs.lengths.dtype == np.int32
    assert [docs.document(i) for i in range(4)] == documents


# ---- long documents

def reference(document, block_size):
    """The split as a sentence of the paper's code says it, on lists."""
    if len(document) <= block_size:
        return [document] if document else []
    blank = [i for i in range(len(document) - 1) if document[i:i + 2] == [10, 10]]
    if not blank:
        return [document[i:i + block_size] for i in range(0, len(document), block_size)]
    at = sorted(blank, key=lambda i: (abs(i - len(document) // 2), i))[0]
    return reference(document[:at], block_size) + reference(document[at + 2:], block_size)


def test_the_docstrings_worked_number():
    assert [bytes(c) for c in reference(list(b"ab\n\ncde"), 4)] == [b"ab", b"cde"] and reference([1] * 7, 4) == [[1] * 4, [1] * 3]


@pytest.mark.parametrize("window", [3, 64, 2**24])
def test_long_documents_are_split_as_the_reference_does(tmp_path, monkeypatch, window):
    """Also where a document straddles the windows in which a bin is read. (4 windows hold any of these documents, or all of them are shorter.)"""
    monkeypatch.setattr(data, "WINDOW", window)
    rng = random.Random(window)
    for trial in range(60):
        longest = 4 * min(window, 30) - 1
        documents = [[rng.choice([10, 10, 97, 98, 99]) for _ in range(rng.randrange(longest))] for _ in range(rng.randrange(1, 12))]
        block_size = rng.randrange(2, 12)
        expected = [c for d in documents for c in reference(d, block_size)]
        path = write_bin(tmp_path / f"{trial}.bin", documents)
        if not expected:
            fails("no document", data.Documents, path, BYTES, block_size)
            continue
        for end in (0, 1):                                                           # the last end of text may be missing
            docs = data.Documents(path, BYTES, block_size)
            assert [docs.document(i) for i in range(len(docs))] == expected
            if documents[-1]:
                with open(path, "r+b") as f:
                    f.truncate(os.path.getsize(path) - 2 * (end == 0))


def test_a_document_without_end_is_cut_and_not_held(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "WINDOW", 8)
    docs = data.Documents(write_bin(tmp_path / "a.bin", [[1] * 100, [2] * 3]), BYTES, 4)
    assert sum(docs.lengths) == 103 and docs.document(len(docs) - 1) == [2] * 3


def test_the_index_is_cached_and_a_changed_bin_is_read_again(tmp_path, monkeypatch):
    scans = []
    scan = data.scan
    monkeypatch.setattr(data, "scan", lambda docs: scans.append(docs.path) or scan(docs))
    path = write_bin(tmp_path / "a.bin", [[1, 2], [3]])
    first = data.Documents(path, BYTES, 4)
    assert data.Documents(path, BYTES, 4).lengths.tolist() == [2, 1] and len(scans) == 1
    assert data.Documents(path, BYTES, 2).fingerprint != first.fingerprint and len(scans) == 2
    write_bin(path, [[1], [2, 3]])                                                   # the same size: only its time tells
    os.utime(path, ns=(1, 1))
    second = data.Documents(path, BYTES, 4)
    assert second.lengths.tolist() == [1, 2] and len(scans) == 3 and second.fingerprint != first.fingerprint
    cached = [f for f in os.listdir(tmp_path) if f.endswith(".npy") and ".4." in f]
    assert len(cached) == 1                                                          # the stale one is gone
    for rubbish in (b"", b"\x93NUMPY rubbish", pickle.dumps([1])):                   # a damaged cache is made again, and never unpickled
        (tmp_path / cached[0]).write_bytes(rubbish)
        assert data.Documents(path, BYTES, 4).lengths.tolist() == [1, 2]
    assert len(scans) == 6


def test_a_folder_that_cannot_be_written_is_only_not_cached(tmp_path, monkeypatch):
    path = write_bin(tmp_path / "a.bin", [[1, 2], [3]])

    def refuse(*arguments, **options):
        raise Fail("cannot write")

    monkeypatch.setattr(data, "aside", refuse)
    assert len(data.Documents(path, BYTES, 4)) == 2 and os.listdir(tmp_path) == ["a.bin"]


def test_the_fingerprint_is_that_of_the_content(tmp_path):
    one = data.Documents(write_bin(tmp_path / "a.bin", [[1, 2], [3]]), BYTES, 4)
    same = data.Documents(write_bin(tmp_path / "b.bin", [[1, 2], [3]]), BYTES, 4)
    other = data.Documents(write_bin(tmp_path / "c.bin", [[1, 2], [4]]), BYTES, 4)
    assert one.fingerprint == same.fingerprint != other.fingerprint


# ---- the order of documents

def test_order_is_pure_and_every_epoch_is_a_permutation():
    N, B = 10, 4
    steps = [data.order(7, s, B, N) for s in range(15)]                              # 60 documents: 6 epochs, some batches cross their ends
    drawn = np.concatenate(steps).reshape(6, N)
    assert all(sorted(epoch) == list(range(N)) for epoch in drawn) and len({tuple(e) for e in drawn}) == 6
    data.permutation.cache_clear()
    for s in random.Random(0).sample(range(15), 15):
        assert np.array_equal(data.order(7, s, B, N), steps[s])
    assert not np.array_equal(data.order(8, 0, B, N), steps[0]) and steps[0].dtype == np.int64
    assert sorted(data.order(0, 0, 7, 3)[:6]) == [0, 0, 1, 1, 2, 2]                  # a batch larger than the set
    data.order(-1, 10**12, 2, 5)


# ---- files that are not what they should be

def test_bins_that_are_no_bins(tmp_path):
    for content, sentence in ((b"", "is empty"), (b"abc", "of odd size"), (b"\0\0\0\0", "no document"), (b"\xff\xff\0\0", "holds the id 65535")):
        (tmp_path / "a.bin").write_bytes(content)
        fails(sentence, data.Documents, str(tmp_path / "a.bin"), BYTES, 4)
        fails(sentence if content != b"\0\0\0\0" else "fewer than block_size = 4", data.Documents, str(tmp_path / "a.bin"), BYTES, 4, "stream")
    fails("No such file", data.Documents, str(tmp_path / "none.bin"), BYTES, 4)


def test_a_bin_that_changes_or_shrinks_under_a_running_job_is_noticed(tmp_path):
    path = write_bin(tmp_path / "a.bin", [[1, 2], [3, 4]])
    docs = data.Documents(path, BYTES, 4)
    docs.batch([0, 1])
    os.truncate(path, 6)
    fails("changed while it was in use", docs.batch, [0])
    fails("shrank", docs.document, 1)
    path = write_bin(tmp_path / "b.bin", [[1, 2], [3, 4]])
    docs = data.Documents(path, BYTES, 4)
    write_bin(path, [[1, 2], [3, 5]])
    os.utime(path, ns=(1, 1))
    fails("changed while it was in use", docs.batch, [0])


def test_a_bin_that_is_not_what_its_checksum_says(tmp_path):
    (tmp_path / "t.txt").write_text("\n\n".join(f"text {i}" for i in range(30)))
    folder = os.path.dirname(data.load(str(tmp_path / "t.txt"), str(tmp_path)).train.path)
    with open(os.path.join(folder, "train.bin"), "r+b") as f:
        f.write(b"\x41")
    os.utime(os.path.join(folder, "train.bin"), ns=(1, 1))
    fails("sha256 differs", data.load, str(tmp_path / "t.txt"), str(tmp_path))


def test_half_a_folder_and_no_data_set_at_all(tmp_path):
    write_bin(tmp_path / "x" / "train.bin", [[1]])
    fails("train.bin but no val.bin", data.load, "x", str(tmp_path))
    write_bin(tmp_path / "owt" / "val.bin", [[1]])
    fails("val.bin but no train.bin", data.load, "owt", str(tmp_path))
    os.mkdir(tmp_path / "y")
    fails("no data set", data.load, "y", str(tmp_path))
    fails("did you mean python", data.load, "pyton", str(tmp_path))
    fails("unknown data set", data.load, str(tmp_path / "none.txt"), str(tmp_path))
    fails("too small", data.load, "python", str(tmp_path), block_size=1)
    fails("documents, stream", data.load, "python", str(tmp_path), packing="rows")
    write_bin(tmp_path / "z" / "train.bin", [[1]])
    write_bin(tmp_path / "z" / "val.bin", [[1]])
    (tmp_path / "z" / "meta.pkl").write_bytes(b"cos\nsystem\n(S'false'\ntR.")         # nanoGPT's character sets come with a pickle: not ours to open
    fails("characters in a code of nanoGPT's own", data.load, "z", str(tmp_path))
    assert len(data.load("z", str(tmp_path), tokenizer="bytes").train) == 1
    (tmp_path / "file").write_text("x")
    fails("cannot write", data.load, "brackets", str(tmp_path / "file"))


# ---- what every Python can make

LIBRARY = '''
"""A module's docstring."""
import os, sys  # a comment
x = 1; yy = 22
@decorator("#")
def function(a, b):   # the comment of a header
    """A docstring."""
    if a: return b
    elif b == "#":
        return a
    return (a +
            b)
class Name: pass
async def coroutine(x):
    async with x as y: await y
    async for z in y:
        del z
def long(a,
         b):
    while True:
        try: pass
        finally: raise
    for é in "é": print(é)
    with open("#") as f: pass
    lines = 1, """a
b"""
    return "\\d"
'''


def fake_library(folder):
    os.makedirs(folder / "test")
    (folder / "module.py").write_text(LIBRARY)
    (folder / "test" / "test_module.py").write_text("never = 'seen'")
    (folder / "python2.py").write_text("print 'no'")
    (folder / "latin.py").write_bytes("# -*- coding: latin-1 -*-\nname = 'é'\n".encode("latin-1"))
    (folder / "more.py").write_text("".join(f"name_{i} = {i}\ndef f{i}(a):\n    b = a\n\n    return b + {i}\n" for i in range(60)))
    return str(folder)


def test_one_liners_of_a_small_library(tmp_path):
    found = {s for s in data.one_liners(fake_library(tmp_path / "lib")) if not re.match(r"(name_|def f|return b \+ )\d|b = a", s)}
    assert found == {
        "import os, sys", "x = 1", "yy = 22", "def function(a, b): pass", "if a: pass", "return b", "return a", "class Name: pass", "pass",
        "async def coroutine(x): pass", "async with x as y: pass", "await y", "async for z in y: pass", "del z", "while True: pass", "raise",
        'for é in "é": pass', "print(é)", 'with open("#") as f: pass', 'return "\\d"', "name = 'é'"}


def test_the_python_set_parses_is_split_by_its_text_and_is_made_once(tmp_path, capsys):
    library = fake_library(tmp_path / "lib")
    with warnings.catch_warnings():
        warnings.simplefilter("error")                                               # the library's SyntaxWarnings stay its own
        d = data.load("python", str(tmp_path / "data"), stdlib=library)
    lines = everything(d)
    assert len(lines) == len(set(lines)) > 150 and all(4 <= len(s.encode()) <= 64 and "\n" not in s and ast.parse(s) for s in lines)
    assert 0 < len(d.val) < 20 and capsys.readouterr().out.count("preparing python") == 1
    again = data.load("python", str(tmp_path / "data"), stdlib="/nowhere")
    assert again.train.fingerprint == d.train.fingerprint and not capsys.readouterr().out
    (tmp_path / "lib" / "more.py").write_text("name_1 = 1\n" + "".join(f"other_{i} = {i}\n" for i in range(99)))
    other = data.load("python", str(tmp_path / "other"), stdlib=library)             # another library: who was val stays val
    assert not set(texts(other.val)) & set(texts(d.train)) and not set(texts(other.train)) & set(texts(d.val))
    short = data.load("python", str(tmp_path / "data"), block_size=12, stdlib=library)
    assert all(len(s) <= 12 and ast.parse(s) for s in everything(short))
    fails("no sources", data.load, "python", str(tmp_path / "empty"), stdlib=str(tmp_path / "nothing"))


def test_whole_functions(tmp_path):
    d = data.load("functions", str(tmp_path / "data"), stdlib=fake_library(tmp_path / "lib"))
    found = everything(d)
    assert "def f7(a):\n    b = a\n\n    return b + 7" in found and any(f.startswith('@decorator("#")\ndef function(a, b):') for f in found)
    assert len(found) == 63 and all(isinstance(ast.parse(f).body[0], (ast.FunctionDef, ast.AsyncFunctionDef)) for f in found)


def balanced(word):
    depth = 0
    for c in word:
        depth += {"(": 1, ")": -1}[c]
        if depth < 0:
            return False
    return depth == 0


def test_brackets_are_balanced_and_as_long_as_promised():
    train, val = data.brackets((2000, 300))
    assert (len(train), len(val)) == (2000, 300) and all(map(balanced, train + val)) and data.brackets((2000, 300)) == (train, val)
    for side in (train, val):
        for length, p in ((4, .1), (16, .4), (32, .4), (64, .1)):
            assert abs(sum(len(w) == length for w in side) / len(side) - p) < 4.5 * (p * (1 - p) / len(side)) ** .5
    assert {w for w in val if len(w) > 4}.isdisjoint(train) and {w for w in val if len(w) == 4} == {"(())", "()()"}
    assert {len(w) for w in data.brackets((50, 9), most=16)[0]} == {4, 16}


def test_brackets_are_uniform_over_the_words_of_a_length():
    rng, counts = np.random.default_rng(0), {}
    for _ in range(7000):
        word = data.dyck(4, rng)
        counts[word] = counts.get(word, 0) + 1
    assert len(counts) == 14 and all(map(balanced, counts))                          # Catalan(4)
    assert sum((c - 500) ** 2 / 500 for c in counts.values()) < 40                   # chi-square, 13 degrees of freedom: 1 in 7,000 by chance


def test_brackets_as_a_data_set(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "brackets", lambda most: (["()()", "(())"] * 3, ["(())"]))
    d = data.load("brackets", str(tmp_path))
    assert texts(d.train) == ["()()", "(())"] * 3 and texts(d.val) == ["(())"] and d.train.tokens == 24


# ---- the user's own texts

def test_a_text_by_paragraph_line_and_file(tmp_path):
    (tmp_path / "t.txt").write_bytes("\ufeffone\ntwo\r\n\r\n \r\n\r\nthree\nfour\n".encode())
    path = str(tmp_path / "t.txt")
    assert sorted(everything(data.load(path, str(tmp_path)))) == ["one\ntwo", "three\nfour"]
    assert sorted(everything(data.load(path, str(tmp_path), split="line"))) == [" ", "four", "one", "three", "two"]
    fails("no two different documents.*--split", data.load, path, str(tmp_path), split="file")


def test_jsonl_and_a_source_that_changes(tmp_path):
    rows = [{"text": f"number {i}", "n": i} for i in range(100)]
    for name, opener in (("t.jsonl", open), ("u.jsonl.gz", gzip.open)):
        with opener(tmp_path / name, "wt") as f:
            f.write("\n".join(json.dumps(r) for r in rows) + "\n\n")
        d = data.load(str(tmp_path / name), str(tmp_path))
        assert sorted(everything(d)) == sorted(r["text"] for r in rows) and 0 < len(d.val) < 20
    (tmp_path / "t.jsonl").write_text('{"body": "a"}\n{"body": "b\\ud800"}\n{"body": "\\u0000"}')
    assert sorted(everything(data.load(str(tmp_path / "t.jsonl"), str(tmp_path), field="body"))) == ["a", "b?"]


def test_tasks_keep_what_is_given_apart(tmp_path):
    """Three formats of .jsonl: prompt, question and prefix/suffix are marked as given, and a task longer than block_size is left out, not cut."""
    rows = [{"prompt": f"{i}+1=", "completion": f"{i + 1}"} for i in range(40)] + [{"question": "who?", "answer": "me"}, {"prefix": "(", "middle": "x", "suffix": ")"}]
    rows += [{"prompt": "p" * 30, "completion": "c" * 30}]
    path = tmp_path / "tasks.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    d = data.load(str(path), str(tmp_path), block_size=20)
    assert d.train.dtype == np.uint32 and len(d.train) + len(d.val) == 42
    seen = {}
    for side in (d.train, d.val):
        x, n, given = side.batch(range(len(side)))
        for row in range(len(side)):
            text = "".join(("g" if g else "-") for g in given[row, :n[row]].tolist())
            seen[bytes(x[row, :n[row]].tolist()).decode()] = text
            assert side.document(row) == x[row, :n[row]].tolist()
    assert seen["3+1=4"] == "gggg-" and seen["who?\nme"] == "ggggg--" and seen["(x)"] == "g-g" and not any("p" in text for text in seen)
    again = data.load(str(path), str(tmp_path), block_size=64)
    assert len(again.train) + len(again.val) == 43
    (tmp_path / "bad.jsonl").write_text(json.dumps({"prompt": "a", "answer": "b"}))
    fails("no text in the field 'text'", data.load, str(tmp_path / "bad.jsonl"), str(tmp_path))


def test_the_split_does_not_depend_on_the_order_of_a_file(tmp_path):
    lines = [f"line {i}" for i in range(300)]
    sides = []
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("\n".join(lines))
        sides.append(set(texts(data.load(str(tmp_path / name), str(tmp_path), split="line").val)))
        lines = lines[::-1] + ["one more"]
    assert sides[0] == sides[1] - {"one more"} and 5 <= len(sides[0]) <= 30


@needs_gpt2
def test_gpt2_tokens_if_asked(tmp_path):
    (tmp_path / "t.txt").write_text("one two three\n\nfour five\n\nsix")
    d = data.load(str(tmp_path / "t.txt"), str(tmp_path), tokenizer="gpt2")
    assert d.train.tokens + d.val.tokens == 6 and d.tokenizer.vocab_size == 50257
    folder = os.path.dirname(d.train.path)
    fails("tokenised as gpt2, not as bytes", data.load, folder, tokenizer="bytes")


@pytest.mark.parametrize("name, content, sentence", [
    ("a.txt", b"", "no two different documents"),
    ("a.txt", b"the same\n\nthe same", "no two different documents"),
    ("a.txt", b"one\n\n\xff\xfe", "not utf-8"),
    ("a.jsonl", b'{"text": "a"}\n{"text": ', "line 2 is not JSON"),
    ("a.jsonl", b"[" * 10**5, "line 1 is not JSON"),
    ("a.jsonl", b'{"body": "a"}', "no text in the field 'text': it has body, so name one with --field"),
    ("a.jsonl", b'{"text": 3}', "no text in the field 'text'"),
    ("a.jsonl", b"[1, 2]", "no text in the field 'text'"),
    ("a.jsonl.gz", gzip.compress(b'{"text": "a"}\n' * 9)[:-9], "truncated or damaged"),
    ("a.jsonl.gz", b'{"text": "a"}', "truncated or damaged"),
    ("a.xz", lzma.compress(b"x" * 9999)[:-30], "truncated or damaged"),
    ("a.tar", b"not a tar" * 1000, "truncated or damaged"),
    ("a.parquet", b"PAR1", "pyarrow"),
    ("a.jsonl.zst", b"(\xb5/\xfd", "zstd"),
    ("a.doc", b"x", "no suffix that I know"),
])
def test_rubbish_gets_one_sentence_and_leaves_no_data_set(tmp_path, monkeypatch, name, content, sentence):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "compression.zstd", None)
    (tmp_path / name).write_bytes(content)
    for _ in range(2):
        fails(sentence, data.load, str(tmp_path / name), str(tmp_path / "data"))
    assert not [f for _, _, files in os.walk(tmp_path / "data") for f in files if f.endswith(".bin")]


def test_random_bytes_as_a_text_never_end_in_a_traceback(tmp_path):
    rng = random.Random(0)
    for trial in range(150):
        content = bytes(rng.choice([10, 34, 44, 58, 91, 93, 123, 125, 0, 195, 169, 97, 92]) for _ in range(rng.randrange(60)))
        path = tmp_path / f"{trial}.{rng.choice(['txt', 'jsonl', 'tar', 'xz', 'jsonl.gz'])}"
        path.write_bytes(content)
        try:
            data.load(str(path), str(tmp_path / "data"), split=rng.choice(["line", "paragraph", "file"]))
        except Fail as e:
            assert "\n" not in str(e)


def test_documents_that_are_too_long_are_refused_before_they_are_held(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "LIMIT", 100)
    (tmp_path / "a.txt").write_text("x" * 200)
    fails("line of 100 characters", data.load, str(tmp_path / "a.txt"), str(tmp_path))
    (tmp_path / "a.txt").write_text("x x\n" * 50)
    fails("more than 100 characters", data.load, str(tmp_path / "a.txt"), str(tmp_path))
    (tmp_path / "a.tar").write_bytes(archive({"a.txt": "x" * 200}))
    fails("unpacks to more", data.load, str(tmp_path / "a.tar"), str(tmp_path))
    (tmp_path / "a.tar").write_bytes(archive({f"{i}.xz": lzma.compress(archive({f"{j}.txt": f"{j}" * 90 for j in range(9)})) for i in range(2)}))
    monkeypatch.setattr(data, "LIMIT", 500)
    monkeypatch.setattr(lzma, "open", lambda raw, real=lzma.open: monkeypatch.setattr(data, "LIMIT", 100) or real(raw))
    fails("unpacks to more", data.load, str(tmp_path / "a.tar"), str(tmp_path))


# ---- OpenWebText, over loopback

def archive(members):
    """A tar with these members: name -> text or bytes."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, content in members.items():
            content = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


def story(rng):
    return "\n\n".join(" ".join(rng.choice("a of the tree, runs. over Été 17 moon's".split(" ")) for _ in range(rng.randrange(3, 40)))
                       for _ in range(rng.randrange(1, 6)))


def openwebtext(shards=3, subsets=4, documents=12):
    """The archive's real layout: subsets/urlsf_subset00.tar > openwebtext/urlsf_subset00-1_data.xz > 0000001-<hash>.txt
    One of its texts has a hash that makes it validation data (1 of 2,000 has)."""
    rng, files, stories = random.Random(0), {}, []
    lucky = next(t for t in (f"text {i}" for i in range(10**6)) if data.text_hash(f"{t}\n\n{t}") < 0.0005 * 2**64)
    for s in range(shards):
        packed = {}
        for k in range(1, subsets + 1):
            mine = [story(rng) for _ in range(documents - 1)] + [lucky if s == k == 1 else story(rng)]
            stories += mine
            inner = archive({f"{k:07d}-{rng.getrandbits(128):032x}.txt": f"\n\n\n{t}\n\n\n\n\n{t}\n" for t in mine})
            packed[f"openwebtext/urlsf_subset{s:02d}-{k}_data.xz"] = lzma.compress(inner)
        files[f"/subsets/urlsf_subset{s:02d}.tar"] = archive(packed)
    return files, [f"{t}\n\n{t}" for t in stories]


class Server(http.server.ThreadingHTTPServer):
    """Serves `files`; `cut` maps a path to how many bytes each answer brings before the connection is dropped, `hang` to where it stops for ever."""
    daemon_threads = True

    def __init__(self, files, cut=None, hang=None, ranges=True):
        self.files, self.cut, self.hang, self.ranges, self.asked = files, cut or {}, hang or {}, ranges, []
        self.hung, self.over = threading.Event(), threading.Event()
        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.over.set()
        self.shutdown()
        self.server_close()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/subsets/urlsf_subset{{00..{len(self.files) - 1:02d}}}.tar"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body, start = self.server.files.get(self.path), 0
        self.server.asked.append((self.path, self.headers.get("Range")))
        if not isinstance(body, bytes):
            self.send_error(body or 404)
            return
        if self.server.ranges and (found := re.match(r"bytes=(\d+)-", self.headers.get("Range", ""))):
            start = int(found[1])
            self.send_response(206 if start < len(body) else 416)
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        if self.path in self.server.hang:
            self.wfile.write(body[start:self.server.hang[self.path]])
            self.wfile.flush()
            self.server.hung.set()
            self.server.over.wait()
            return
        self.wfile.write(body[start:][:self.server.cut.get(self.path)])

    def log_message(self, *_):
        pass


def bins(folder):
    return [open(os.path.join(folder, f), "rb").read() for f in ("train.bin", "val.bin", "meta.json")]


@pytest.fixture(scope="module")
def web():
    return openwebtext()


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(data.time, "sleep", lambda seconds: None)


@needs_gpt2
def test_owt_is_downloaded_and_every_text_arrives(web, tmp_path, capsys):
    with Server(web[0]) as server:
        d = data.load("owt", str(tmp_path), url=server.url, workers=1)
    assert sorted(everything(d)) == sorted(web[1]) and len(d.val) == 1 and d.tokenizer.name == "gpt2"
    meta = json.load(open(tmp_path / "owt" / "meta.json"))
    assert meta["documents"] == [143, 1] and meta["tokens"][0] == os.path.getsize(tmp_path / "owt" / "train.bin") // 2
    said = capsys.readouterr().out
    assert "download 3 archives" in said and "GB of disk" in said and "estimate" in said and "144 documents" in said and "8,013,769" in said
    assert not [f for f in os.listdir(tmp_path / "owt") if f.endswith((".tar", ".partial"))]


@pytest.fixture(scope="module")
def plain(web, tmp_path_factory):
    """The bins of an uninterrupted run (bytes as tokens: no vocabulary needed), and the folder that holds its archives for --from."""
    folder = tmp_path_factory.mktemp("plain")
    with Server(web[0]) as server:
        data.load("owt", str(folder), url=server.url, tokenizer="bytes", workers=1)
    os.mkdir(folder / "archives")
    for name, content in web[0].items():
        (folder / "archives" / os.path.basename(name)).write_bytes(content)
    return folder


def tokens_of(folder):
    return bins(os.path.join(folder, "owt-bytes"))[:2]


@pytest.mark.parametrize("ranges", [True, False])
def test_cut_connections_are_taken_up_again(web, plain, tmp_path, quick, ranges):
    with Server(web[0], ranges=ranges) as server:
        server.cut = {p: len(b) // 3 for p, b in web[0].items()} if ranges else {}
        if not ranges:                                                               # a part left by another run, on a server without ranges
            os.makedirs(tmp_path / "owt-bytes")
            (tmp_path / "owt-bytes" / "urlsf_subset00.tar.partial").write_bytes(b"something else")
        data.load("owt", str(tmp_path), url=server.url, tokenizer="bytes", workers=1)
    assert tokens_of(tmp_path) == tokens_of(plain)
    assert not ranges or sum(bool(r) for _, r in server.asked) >= 9


def test_a_server_that_always_cuts_at_the_same_place_is_given_up(web, tmp_path, quick):
    with Server(web[0], ranges=False, cut={p: 1000 for p in web[0]}) as server:
        fails("cannot download .*the connection was cut", data.load, "owt", str(tmp_path), url=server.url, tokenizer="bytes")
        assert len(server.asked) == 6


def test_a_part_that_is_longer_than_the_file_starts_over(web, plain, tmp_path, quick):
    os.makedirs(tmp_path / "owt-bytes")
    (tmp_path / "owt-bytes" / "urlsf_subset00.tar.partial").write_bytes(b"x" * 10**6)
    with Server(web[0]) as server:
        data.load("owt", str(tmp_path), url=server.url, tokenizer="bytes", workers=1)
    assert tokens_of(tmp_path) == tokens_of(plain)


def test_no_network_and_wrong_addresses(web, tmp_path, quick):
    with Server(web[0]) as server:
        url = server.url
        fails("answers 404", data.load, "owt", str(tmp_path), url=url.replace("subsets", "sub"), tokenizer="bytes")
        server.files = {p: 503 for p in web[0]}
        fails("cannot download .*503", data.load, "owt", str(tmp_path), url=url, tokenizer="bytes")
        assert len(server.asked) == 1 + 5
    fails("cannot download .*check the network", data.load, "owt", str(tmp_path), url=url, tokenizer="bytes")
    fails("no web address", data.load, "owt", str(tmp_path), url="htp:/x", tokenizer="bytes")


def test_a_small_disk_is_noticed_before_the_download(tmp_path, monkeypatch):
    monkeypatch.setattr(data.shutil, "disk_usage", lambda path: type("usage", (), {"free": 10**9}))
    monkeypatch.setattr(data, "download", lambda *_: pytest.fail("downloads"))
    fails("needs about .* GB and its disk has 1.0 GB free", data.load, "owt", str(tmp_path), tokenizer="bytes")


def test_from_files_that_one_has(web, plain, tmp_path):
    """--from: the folder of archives; the texts unpacked, by the thousand; one archive; a jsonl. The same documents, whatever they come in."""
    def made(name, source, by="file"):
        data.load("owt", str(tmp_path / name), source=str(source), tokenizer="bytes", workers=1, split=by)
        train, val = (np.frombuffer(b, "<u2").tolist() for b in tokens_of(tmp_path / name))
        return sorted(bytes(train).split(b"\0")), val

    expected = sorted(bytes(np.frombuffer(tokens_of(plain)[0], "<u2").tolist()).split(b"\0")), np.frombuffer(tokens_of(plain)[1], "<u2").tolist()
    assert made("tar", plain / "archives") == expected
    os.makedirs(tmp_path / "texts" / "deep")
    with open(tmp_path / "texts.jsonl", "w") as f:
        for i, t in enumerate(web[1]):
            (tmp_path / "texts" / ("deep" if i % 2 else "") / f"{i}.txt").write_text(t)
            f.write(json.dumps({"text": t}) + "\n")
    assert made("txt", tmp_path / "texts") == expected and made("jsonl", tmp_path / "texts.jsonl") == expected
    (tmp_path / "whole.xz").write_bytes(lzma.compress(archive({f"{i}.txt": t for i, t in enumerate(web[1])})))
    (tmp_path / "whole.tar.xz").write_bytes(lzma.compress(archive({os.path.basename(p): "" for p in web[0]} | {
        f"openwebtext/{i}.xz": lzma.compress(archive({"a.txt": t})) for i, t in enumerate(web[1])})))
    assert made("xz", tmp_path / "whole.xz") == expected and made("tarxz", tmp_path / "whole.tar.xz") == expected
    fails("there is no", made, "empty", tmp_path / "nothing")
    os.makedirs(tmp_path / "empty", exist_ok=True)
    fails("no folder with files of", made, "empty", tmp_path / "empty")


def test_truncated_and_damaged_archives_are_named(web, tmp_path):
    whole = web[0]["/subsets/urlsf_subset00.tar"]
    first = 512 + int(whole[124:135], 8)
    boundary = first + -first % 512                                                  # just after the first member: tarfile alone calls this the end
    inner = lzma.decompress(whole[512:first])
    damaged = bytearray(whole)
    damaged[512 + 200] ^= 1
    header = bytearray(whole)
    header[boundary + 5] ^= 1
    cases = {"middle": whole[:len(whole) // 2], "boundary": whole[:boundary], "flipped": bytes(damaged), "header": bytes(header), "empty": b"",
             "inner": archive({"openwebtext/urlsf_subset00-1_data.xz": lzma.compress(inner[:len(inner) // 2])}),
             "cut": archive({"openwebtext/urlsf_subset00-1_data.xz": lzma.compress(inner)[:-40]})}
    for name, content in cases.items():
        (tmp_path / f"{name}.tar").write_bytes(content)
        fails(f"{name}.tar.* is truncated or damaged", data.load, "owt", str(tmp_path / name), source=str(tmp_path / f"{name}.tar"),
              tokenizer="bytes", workers=1)
        assert not os.path.exists(tmp_path / name / "owt-bytes" / "train.bin")


def test_hostile_member_names_reach_nothing(tmp_path):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, kind in (("../../evil.txt", tarfile.REGTYPE), (str(tmp_path / "evil.txt"), tarfile.REGTYPE), ("link.txt", tarfile.SYMTYPE),
                           ("device.txt", tarfile.CHRTYPE), ("folder", tarfile.DIRTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.size = kind, "/etc/passwd", len(name) if kind == tarfile.REGTYPE else 0
            tar.addfile(info, io.BytesIO(name.encode()))
    (tmp_path / "a.tar").write_bytes(out.getvalue())
    d = data.load(str(tmp_path / "a.tar"), str(tmp_path / "data"))
    assert sorted(everything(d)) == sorted(["../../evil.txt", str(tmp_path / "evil.txt")])
    assert not os.path.exists(tmp_path / "evil.txt") and sorted(os.listdir(tmp_path)) == ["a.tar", "data"]


def command(*words):
    return subprocess.Popen([sys.executable, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            env={**os.environ, "PYTHONPATH": ROOT})


SCRIPT = os.path.join(ROOT, "data.py")


def test_several_processes_make_the_same_bins(plain, tmp_path):
    process = command(SCRIPT, "owt", "--from", str(plain / "archives"), "--data_dir", str(tmp_path), "--tokenizer", "bytes", "--workers", "2")
    out, err = process.communicate()
    assert process.returncode == 0 and "on 2 processes" in out, err
    assert tokens_of(tmp_path) == tokens_of(plain)


def test_killed_in_a_download_and_run_again(web, plain, tmp_path):
    """kill -9 while the second archive arrives: the first is not fetched again, the second is taken up where it stopped."""
    words = [SCRIPT, "owt", "--data_dir", str(tmp_path), "--tokenizer=bytes", "--workers=1"]
    with Server(web[0], hang={"/subsets/urlsf_subset01.tar": len(web[0]["/subsets/urlsf_subset01.tar"]) // 2}) as server:
        process = command(*words, "--url", server.url)
        assert server.hung.wait(60)
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL and not os.path.exists(tmp_path / "owt-bytes" / "train.bin")
        server.hang, server.asked = {}, []
        process = command(*words, "--url", server.url)
        out, err = process.communicate()
    assert process.returncode == 0, err
    assert "going on after 48 documents" in out and "/subsets/urlsf_subset00.tar" not in [p for p, _ in server.asked]
    assert tokens_of(tmp_path) == tokens_of(plain)


KILLER = """
import os, sys
import data
data.NOTE = 2
left, real = [int(sys.argv[3])], data.{where}
def mortal(*arguments):
    left[0] -= 1
    if left[0] < 0:
        os.kill(os.getpid(), 9)
    return real(*arguments)
data.{where} = mortal
data.load("owt", sys.argv[2], source=sys.argv[1], tokenizer="bytes", workers=1, split="file")
"""


@pytest.mark.parametrize("where, lives", [("write_json", 4), ("tokenise", 9), ("sha256", 0)])
def test_killed_anywhere_and_run_again(web, tmp_path, where, lives):
    """A process that kills itself at a write of its journal, at a batch or at a checksum, started until it gets through: the bins of an uninterrupted
    run. Its 2 archives have 12 batches each, and it notes every second one."""
    os.mkdir(tmp_path / "archives")
    for k in range(2):
        packed = {f"{i}.xz": lzma.compress(archive({f"{j}.txt": t for j, t in enumerate(web[1][i:i + 6])})) for i in range(k * 72, k * 72 + 72, 6)}
        (tmp_path / "archives" / f"{k}.tar").write_bytes(archive(packed))
    data.load("owt", str(tmp_path / "straight"), source=str(tmp_path / "archives"), tokenizer="bytes", workers=1)
    for deaths in range(30):
        process = command("-c", KILLER.format(where=where), str(tmp_path / "archives"), str(tmp_path), str(lives if lives else deaths))
        out, err = process.communicate()
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL, err
    assert process.returncode == 0 and deaths >= 2 and tokens_of(tmp_path) == tokens_of(tmp_path / "straight")
    assert not [f for f in os.listdir(tmp_path / "owt-bytes") if f.endswith(".partial") or f == "preparing.json"]


def test_a_journal_that_lies_starts_over(plain, tmp_path):
    os.makedirs(tmp_path / "owt-bytes")
    for journal in ("rubbish", "[1]", '{"key": "another"}'):
        (tmp_path / "owt-bytes" / "preparing.json").write_text(journal)
        (tmp_path / "owt-bytes" / "train.bin.partial").write_bytes(b"rubbish")
        data.load("owt", str(tmp_path), source=str(plain / "archives"), tokenizer="bytes", workers=1, split="file")
        assert tokens_of(tmp_path) == tokens_of(plain)
    (tmp_path / "owt-bytes" / "preparing.json").write_text('{"key": "another", "documents": [7, 0]}')              # hours of another command's work
    fails("7 documents of an unfinished preparation", data.load, "owt", str(tmp_path), source=str(plain / "archives"), tokenizer="bytes")


def test_the_others_wait_while_one_prepares(tmp_path):
    """As under torchrun: four processes at once, one prepares, all see the same data."""
    (tmp_path / "t.txt").write_text("\n\n".join(f"text {i}" for i in range(50)))
    made, out = [], []

    def one():
        out.append(data.load(str(tmp_path / "t.txt"), str(tmp_path / "data")).train.fingerprint)

    real = data.prepare
    data.prepare = lambda *a, **k: made.append(1) or real(*a, **k)
    try:
        threads = [threading.Thread(target=one) for _ in range(4)]                   # flock holds between open files, so also between threads
        [t.start() for t in threads]
        [t.join() for t in threads]
    finally:
        data.prepare = real
    assert len(made) == 1 and len(out) == 4 and len(set(out)) == 1


# ---- the command line

def test_command_line(tmp_path, capsys, monkeypatch):
    (tmp_path / "t.txt").write_text("a\nb\n\nc\nd")
    monkeypatch.setattr(sys, "argv", ["data.py", str(tmp_path / "t.txt"), "--data_dir", str(tmp_path), "--split=line"])
    data.run()
    assert "4 documents" in capsys.readouterr().out
    for words, sentence in (([], "name a data set first"), (["python", "--blok_size=3"], "did you mean --block_size"),
                            (["pyton"], "did you mean python"),
                            (["owt", "--from", str(tmp_path / "none"), "--tokenizer", "bytes", "--data_dir", str(tmp_path)], "there is no")):
        monkeypatch.setattr(sys, "argv", ["data.py", *words])
        fails(sentence, data.run)
        with pytest.raises(SystemExit) as e:
            common.main(data.run)
        err = capsys.readouterr().err
        assert e.value.code == 2 and "Traceback" not in err and err.count("\n") == 1
