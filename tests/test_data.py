"""data.py and data/: what a document is, what a token file holds, what a batch is, and that nothing
is lost when a preparation is cut, killed or fed rubbish."""
import ast
import gzip
import hashlib
import http.server
import importlib
import io
import json
import lzma
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
import warnings

import numpy as np
import pytest
import tiktoken
import torch

import data
from common import Fail
from data import bins, download, files, tokenizers, writing
from data.brackets import prepare as brackets
from data.functions import prepare as functions
from data.owt import prepare as owt
from data.python import prepare as python

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
VOCABULARY = (os.environ.get("TIKTOKEN_CACHE_DIR")
              or os.path.join(os.path.dirname(ROOT), "shared", "tiktoken"))
GPT2_FILE = os.path.join(VOCABULARY, "6d1cbeee0f20b3d9449abfede4726ed8212e3aee")
needs_gpt2 = pytest.mark.skipif(not os.path.exists(GPT2_FILE),
                                reason="no GPT-2 vocabulary: set TIKTOKEN_CACHE_DIR")
BYTES = data.tokenizer_from("bytes")
pytestmark = [pytest.mark.filterwarnings("ignore::DeprecationWarning"),     # the fake library's own
              pytest.mark.filterwarnings("ignore::SyntaxWarning")]


@pytest.fixture(autouse=True)
def vocabulary(monkeypatch):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", VOCABULARY)


def write_bin(path, documents, eot=0, dtype=np.uint16):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    np.array([i for d in documents for i in [*d, eot]], dtype=dtype).tofile(path)
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


# -----------------------------------------------------------------------------
# tokenizers

STRINGS = ["", "def f(x): return x", "naïve — 東京 🙂", "a\n\nb\r\n\tc", "<|endoftext|>", " " * 50,
           "\ufeffx"]


def small_bpe(size=300):
    return data.tokenizer_for(f"bpe-{size}", ["def f(x): return x", "return self.x\n\n"] * 9)


def tokenizer(name):
    return small_bpe() if name == "bpe" else data.tokenizer_from(name)


@pytest.mark.parametrize("name", ["bytes", "bpe", pytest.param("gpt2", marks=needs_gpt2)])
def test_texts_survive_a_tokenizer_and_its_spec(name):
    t = tokenizer(name)
    spec = json.loads(json.dumps(t.spec()))
    again = data.tokenizer_from(spec)
    assert again.spec() == t.spec() and (again.vocab_size, again.eot) == (t.vocab_size, t.eot)
    for s in STRINGS:
        ids = again.encode(s)
        assert ids == t.encode(s) and again.decode(ids) == s
        assert all(0 <= i < t.vocab_size and i != t.eot for i in ids)
        assert t.decode_bytes(ids) == s.encode()
    assert t.decode([t.eot, 10 ** 6, -1, *t.encode("x")]) == "x"
    assert t.decode(t.encode("a\n\nb")[1:-1]) == "\n\n" and t.blank_line == t.encode("a\n\nb")[1:-1]
    assert "?" in t.decode(t.encode("\ud800"))
    t.decode(range(t.vocab_size))


def test_bytes_are_bytes_and_nul_ends_a_text():
    assert BYTES.encode("é\0!") == [0xc3, 0xa9, 33] and BYTES.decode([0xc3]) == "\ufffd"
    assert (BYTES.vocab_size, BYTES.eot, BYTES.blank_line) == (256, 0, [10, 10])
    for name in ("bpe", "word", "", "numbers-0", "numbers-x", {}, {"name": "bpe-1024"}, None):
        fails("unknown tokenizer", data.tokenizer_from, name)


def test_the_end_of_text_of_a_bpe_is_a_token_of_its_own():
    t = small_bpe(270)
    assert t.vocab_size == 270 and t.eot == 269 == len(t.ranks) and t.name == "bpe-270"
    assert tokenizers.bpe_size("bpe") == 1024 and not tokenizers.bpe_size("bpex")


@pytest.mark.parametrize("ranks", [[], ["00"], "zz", None, 3, [[1]], ["00"] * 300])
def test_a_damaged_vocabulary_is_a_sentence(ranks):
    fails("vocabulary .* is damaged", data.tokenizer_from, {"name": "bpe-1024", "ranks": ranks})


def test_numbers_stand_for_themselves():
    t = data.tokenizer_from("numbers-12")
    assert (t.vocab_size, t.eot, t.blank_line) == (12, 11, [])
    assert t.encode("3 10") == [3, 10] and t.decode([3, 11, 10, 99]) == "3 10"
    assert data.tokenizer_from(t.spec()).vocab_size == 12
    for text in ("3 x", "11", "-1"):
        fails("whole numbers below 11", t.encode, text)


def test_a_tokenizer_lives_in_a_checkpoint(tmp_path):
    torch.save(small_bpe().spec(), tmp_path / "c.pt")
    spec = torch.load(tmp_path / "c.pt", weights_only=True)
    assert data.tokenizer_from(spec).encode("return") == small_bpe().encode("return")


def test_a_missing_gpt2_vocabulary_says_which_files_to_put_where(monkeypatch, tmp_path):
    def no_network(path):
        raise ConnectionError(path)

    monkeypatch.setattr(importlib.import_module("tiktoken.load"), "read_file", no_network)
    monkeypatch.setattr(importlib.import_module("tiktoken.registry"), "ENCODINGS", {})
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    tokenizers.gpt2.cache_clear()
    names = "6d1cbeee0f20b3d9449abfede4726ed8212e3aee.*6c7ea1a7e38e3a7f062df639a5b80947f075ffe6"
    fails(f"{names} into {tmp_path}", data.tokenizer_from, "gpt2")


def test_the_names_in_that_sentence_are_those_that_tiktoken_looks_for():
    with open(importlib.import_module("tiktoken_ext.openai_public").__file__) as f:
        source = f.read()
    with open(tokenizers.__file__) as f:
        sentence = f.read()
    for url in re.findall(r'"(https://\S+/gpt-2/\S+)"', source):
        assert hashlib.sha1(url.encode()).hexdigest() in sentence
        assert os.path.dirname(url) in sentence


# -----------------------------------------------------------------------------
# token files

def test_a_file_is_nanogpts(tmp_path):
    """uint16, little-endian, the ids of a document and then the end of text."""
    sides = {"train": [([97, 98], None), ([], None), ([99], None)], "val": [([100], None)]}
    data.write(str(tmp_path), sides, BYTES, made={})
    expected = np.array([97, 98, 0, 99, 0], dtype=np.uint16).tobytes()
    assert (tmp_path / "train.bin").read_bytes() == expected
    meta = json.loads((tmp_path / "meta.json").read_text())
    assert meta["documents"] == {"train": 2, "val": 1} and meta["tokens"] == {"train": 5, "val": 2}
    assert meta["sha256"]["train.bin"] == hashlib.sha256(expected).hexdigest()


@needs_gpt2
def test_a_folder_made_by_nanogpt_works_as_it_is(tmp_path):
    encoder, ids = tiktoken.get_encoding("gpt2"), {}
    for side, documents in (("train", ["one two", "three\n\nfour"]), ("val", ["five"])):
        ids[side] = [encoder.encode_ordinary(d) + [encoder.eot_token] for d in documents]
        np.concatenate(ids[side]).astype(np.uint16).tofile(tmp_path / f"{side}.bin")
    for name, folder in (("owt", tmp_path), (tmp_path.name, tmp_path.parent), (str(tmp_path), "")):
        d = data.load(name, data_dir=str(folder))
        assert texts(d.train) == ["one two", "three\n\nfour"] and texts(d.val) == ["five"]
        assert d.tokenizer.name == "gpt2" and d.folder == str(tmp_path)
    rows = data.load("owt", data_dir=str(tmp_path), block_size=2, packing="stream").train
    expected = np.concatenate(ids["train"])[:len(rows) * 2].reshape(-1, 2)
    assert [rows.document(i) for i in range(len(rows))] == expected.tolist()


def test_a_batch_is_padded_to_its_longest(tmp_path):
    documents = [[1, 2, 3], [4], [5, 6], [7, 8, 9, 10, 11]]
    docs = data.Documents(write_bin(tmp_path / "a.bin", documents), BYTES, 5)
    x, n, given = docs.batch(np.array([1, 2]))
    assert x.tolist() == [[4, 0], [5, 6]] and n.tolist() == [1, 2] and given is None
    assert x.dtype == n.dtype == torch.int64
    assert docs.batch([3, 3])[0].shape == (2, 5) and docs.batch([])[0].shape == (0, 0)
    assert len(docs) == 4 and docs.tokens == 11 and docs.lengths.tolist() == [3, 1, 2, 5]
    assert [docs.document(i) for i in range(4)] == documents and docs.given(0) is None


def test_lists_of_ids_become_a_data_set(tmp_path):
    """As the mazes do it: numbers, given tokens, holes that may be empty."""
    t = data.tokenizer_from("numbers-100000")
    train = [([5, 6, 70000], [True, False, True]), ([7, 8], [False, False]), ([9], [True])]
    data.write(str(tmp_path), {"train": train, "val": [([1, 2], [False, True])]}, t,
               made={"maze": 3}, anchors=False)
    d = data.load(str(tmp_path), block_size=8)
    assert [d.train.document(i) for i in range(len(d.train))] == [[5, 6, 70000], [7, 8], [9]]
    assert d.train.given(0) == [True, False, True] and d.train.given(1) == [False, False]
    x, n, given = d.train.batch([1, 0])
    assert x.tolist() == [[7, 8, 0], [5, 6, 70000]] and n.tolist() == [2, 3]
    assert given.tolist() == [[False] * 3, [True, False, True]]
    assert not d.train.anchored and d.meta["made"] == {"maze": 3}
    assert d.tokenizer.decode([5, 6]) == "5 6" and d.tokenizer.vocab_size == 100000
    sides = {"train": train, "val": [([], [])]}
    fails("no document for val.bin holds a token", data.write, str(tmp_path), sides, t, {})


def test_half_a_character_counts_its_bytes(tmp_path):
    docs = data.Documents(write_bin(tmp_path / "a.bin", [list("aé".encode())]), BYTES, 2)
    assert [BYTES.decode_bytes(docs.document(i)) for i in range(2)] == [b"a\xc3", b"\xa9"]
    assert len(docs.tokenizer.decode(docs.document(1)).encode()) == 3       # which is not counted


# -----------------------------------------------------------------------------
# long documents

def reference(document, block_size, blank=(10, 10)):
    """The split as the docstring says it, on lists."""
    if len(document) <= block_size:
        return [document] if document else []
    k = len(blank)
    found = [i for i in range(len(document) - k + 1) if document[i:i + k] == list(blank)]
    if not found:
        return [document[i:i + block_size] for i in range(0, len(document), block_size)]
    at = sorted(found, key=lambda i: (abs(i - len(document) // 2), i))[0]
    left = reference(document[:at], block_size, blank)
    return left + reference(document[at + k:], block_size, blank)


def test_the_docstrings_worked_number():
    assert [bytes(c) for c in reference(list(b"ab\n\ncde"), 4)] == [b"ab", b"cde"]
    assert reference([1] * 7, 4) == [[1] * 4, [1] * 3]


@pytest.mark.parametrize("window", [64, 2 ** 24])
def test_long_documents_are_split_as_the_reference_does(tmp_path, monkeypatch, window):
    """Also where a document straddles the windows in which a file is read."""
    monkeypatch.setattr(bins, "WINDOW", window)
    rng = random.Random(window)
    for trial in range(60):
        documents = [[rng.choice([10, 10, 97, 98, 99]) for _ in range(rng.randrange(60))]
                     for _ in range(rng.randrange(1, 12))]
        block_size = rng.randrange(2, 12)
        expected = [c for d in documents for c in reference(d, block_size)]
        path = write_bin(tmp_path / f"{trial}.bin", documents)
        if not expected:
            fails("no document", data.Documents, path, BYTES, block_size)
            continue
        for missing_end in (False, True):           # the last end of text may be missing
            if missing_end and documents[-1]:
                os.truncate(path, os.path.getsize(path) - 2)
            docs = data.Documents(path, BYTES, block_size)
            assert [docs.document(i) for i in range(len(docs))] == expected
            long = [d for d in documents if len(d) > block_size]
            assert docs.counts == {"cut": len(long), "left_out": 0, "empty": documents.count([]),
                                   "longest": max(map(len, documents))}


def test_a_blank_line_that_is_one_token_is_found(tmp_path):
    """As in many pretrained tokenizers; in the small BPE "\\n\\n" is one token."""
    t = small_bpe()
    assert len(t.blank_line) == 1
    document = t.encode("xyz\n\nvw")
    docs = data.Documents(write_bin(tmp_path / "a.bin", [document], t.eot), t, len(document) - 2)
    assert texts(docs) == ["xyz", "vw"]
    two = data.Documents(write_bin(tmp_path / "b.bin", [list(b"xyz\n\nvw")]), BYTES, 5)
    assert texts(two) == ["xyz", "vw"]


def test_a_document_without_end_is_cut_and_not_held(tmp_path, monkeypatch):
    monkeypatch.setattr(bins, "WINDOW", 8)
    docs = data.Documents(write_bin(tmp_path / "a.bin", [[1] * 100, [2] * 3]), BYTES, 4)
    assert sum(docs.lengths) == 103 and docs.document(len(docs) - 1) == [2] * 3


def test_what_block_size_does_is_said_in_one_line(tmp_path, capsys):
    documents = [[1] * 9, [2] * 4, [], [3] * 30]
    assert data.Documents(write_bin(tmp_path / "a.bin", documents[1:2]), BYTES, 4).report() == ""
    for side in ("train", "val"):
        write_bin(tmp_path / f"{side}.bin", documents)
    data.load(str(tmp_path), block_size=4, tokenizer="bytes")
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 2 and said[0].endswith(
        "train.bin: 2 documents longer than --block_size 4 are cut; 1 empty documents are left out; "
        "--block_size 30 keeps all of them whole")


def test_the_fingerprint_is_that_of_the_content(tmp_path):
    one, same, other = [data.Documents(write_bin(tmp_path / f"{i}.bin", [[1, 2], [last]]), BYTES, 4)
                        for i, last in enumerate([3, 3, 4])]
    assert one.fingerprint == same.fingerprint != other.fingerprint


# -----------------------------------------------------------------------------
# the order of documents

def test_order_is_pure_and_every_epoch_is_a_permutation():
    N, B = 10, 4
    steps = [data.order(7, s, B, N) for s in range(15)]     # 60 documents: 6 epochs
    drawn = np.concatenate(steps).reshape(6, N)
    assert all(sorted(epoch) == list(range(N)) for epoch in drawn)
    assert len({tuple(epoch) for epoch in drawn}) == 6
    data.permutation.cache_clear()
    for s in random.Random(0).sample(range(15), 15):
        assert np.array_equal(data.order(7, s, B, N), steps[s])
    assert not np.array_equal(data.order(8, 0, B, N), steps[0]) and steps[0].dtype == np.int64
    larger_than_the_set = data.order(0, 0, 7, 3)
    assert sorted(larger_than_the_set[:6]) == [0, 0, 1, 1, 2, 2]
    data.order(-1, 10 ** 12, 2, 5)


# -----------------------------------------------------------------------------
# files that are not what they should be

@pytest.mark.parametrize("content, sentence", [
    (b"", "empty"), (b"abc", "not a multiple"), (b"\0\0\0\0", "no document"),
    (b"\xff\xff\0\0", "holds the id 65535")])
def test_token_files_that_are_none(tmp_path, content, sentence):
    path = tmp_path / "a.bin"
    path.write_bytes(content)
    fails(sentence, data.Documents, str(path), BYTES, 4)
    fails(sentence, data.Documents, str(path), BYTES, 4, "stream")
    fails("No such file", data.Documents, str(tmp_path / "none.bin"), BYTES, 4)


def test_a_file_that_changes_or_shrinks_under_a_running_job_is_noticed(tmp_path):
    path = write_bin(tmp_path / "a.bin", [[1, 2], [3, 4]])
    docs = data.Documents(path, BYTES, 4)
    docs.batch([0, 1])
    os.truncate(path, 6)
    fails("changed while it was in use", docs.batch, [0])
    fails("changed while it was in use", docs.document, 1)
    path = write_bin(tmp_path / "b.bin", [[1, 2], [3, 4]])
    docs = data.Documents(path, BYTES, 4)
    write_bin(path, [[1, 2], [3, 5]])
    os.utime(path, ns=(1, 1))
    fails("changed while it was in use", docs.batch, [0])


def test_files_that_are_not_what_meta_json_says(tmp_path):
    (tmp_path / "t.txt").write_text("\n\n".join(f"text {i}" for i in range(30)))
    words = (str(tmp_path / "t.txt"), str(tmp_path))
    folder = data.load(*words, tokenizer="bpe").folder
    os.rename(os.path.join(folder, "bpe.json"), tmp_path / "bpe.json")
    fails("bpe.json is not what meta.json says", data.load, *words, tokenizer="bpe")
    with open(os.path.join(folder, "bpe.json"), "w") as f:
        f.write((tmp_path / "bpe.json").read_text() + " ")
    fails("bpe.json is not what meta.json says", data.load, *words, tokenizer="bpe")
    shutil.copy(tmp_path / "bpe.json", folder)
    data.load(*words, tokenizer="bpe")
    with open(os.path.join(folder, "train.bin"), "r+b") as f:
        f.write(b"\x41")
    fails("sha256 differs", data.load, *words, tokenizer="bpe")


def test_half_a_folder_and_no_data_set_at_all(tmp_path):
    write_bin(tmp_path / "x" / "train.bin", [[1]])
    fails("one of train.bin and val.bin", data.load, "x", str(tmp_path))
    write_bin(tmp_path / "owt" / "val.bin", [[1]])
    fails("one of train.bin and val.bin", data.load, "owt", str(tmp_path))
    os.mkdir(tmp_path / "y")
    fails("no data set", data.load, "y", str(tmp_path))
    assert not os.listdir(tmp_path / "y")
    known = "did you mean python.*brackets, .*functions, .*owt, .*python"
    fails(known, data.load, "pyton", str(tmp_path))
    fails("unknown data set", data.load, str(tmp_path / "none.txt"), str(tmp_path))
    fails("not made from files", data.load, "python", str(tmp_path), source=str(tmp_path))
    (tmp_path / "file").write_text("x")
    fails("cannot write", data.load, "brackets", str(tmp_path / "file"))


def test_nanogpts_characters_come_with_a_pickle_which_is_not_opened(tmp_path):
    for side in ("train", "val"):
        write_bin(tmp_path / "z" / f"{side}.bin", [[1]])
    (tmp_path / "z" / "meta.pkl").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    fails("characters in a code of nanoGPT's own", data.load, "z", str(tmp_path))
    assert len(data.load("z", str(tmp_path), tokenizer="bytes").train) == 1


# -----------------------------------------------------------------------------
# a set is a folder with a prepare.py

PREPARE = """
import data
TOKENIZER, BLOCK_SIZE = "bytes", 7

def prepare(folder, tokenizer):
    data.write_texts(folder, ["one", "two"], ["three"], tokenizer, made={"name": "mine"})
"""


@pytest.fixture
def folder_of_sets(tmp_path, monkeypatch):
    """A folder in the place of data/, with one more set in it"""
    home = tmp_path / "home"
    os.makedirs(home / "mine_too")
    (home / "mine_too" / "prepare.py").write_text(PREPARE)
    monkeypatch.setattr(data, "HERE", str(home))
    monkeypatch.setattr(data, "__path__", [str(home), *data.__path__])
    monkeypatch.delitem(sys.modules, "data.mine_too", raising=False)
    monkeypatch.delitem(sys.modules, "data.mine_too.prepare", raising=False)
    return home


def test_a_folder_with_a_prepare_py_is_a_data_set(folder_of_sets, tmp_path):
    d = data.load("mine_too")
    assert d.folder == str(folder_of_sets / "mine_too") and texts(d.train) == ["one", "two"]
    assert d.train.block_size == 7 and {*os.listdir(d.folder)} - {"__pycache__"} == {
        ".lock", "meta.json", "prepare.py", "train.bin", "val.bin"}
    other = data.load("mine_too", tokenizer="bpe-257")
    assert other.folder == str(folder_of_sets / "mine_too" / "bpe-257")
    assert texts(other.val) == ["three"]
    assert data.load("mine_too", str(tmp_path)).folder == str(tmp_path / "mine_too")
    fails("known: mine_too;", data.load, "minetoo")


def test_a_set_that_was_not_finished_is_made_again(folder_of_sets):
    d = data.load("mine_too")
    for f in ("train.bin", "meta.json"):
        os.unlink(os.path.join(d.folder, f))
    fails("one of train.bin and val.bin", data.load, "mine_too")
    open(os.path.join(d.folder, "unfinished"), "w").close()         # as a killed process leaves it
    again = data.load("mine_too")
    assert again.train.fingerprint == d.train.fingerprint
    assert not os.path.exists(os.path.join(d.folder, "unfinished"))


def test_a_checkpoints_vocabulary_reads_texts_its_own_way(tmp_path):
    """A trained tokenizer is used as it is, not trained anew; for the set that it comes from the
    folder is that set's."""
    mine = small_bpe()
    (tmp_path / "t.txt").write_text("return self\n\nprint(x)\n\nsomething else")
    d = data.load(str(tmp_path / "t.txt"), str(tmp_path), tokenizer=mine)
    assert d.tokenizer.spec() == mine.spec() and "return self" in everything(d)
    again = data.load(str(tmp_path / "t.txt"), str(tmp_path), tokenizer="bpe-300")
    assert again.folder != d.folder and again.tokenizer.spec() != mine.spec()
    assert data.load(d.folder).tokenizer.spec() == mine.spec()
    assert data.load(d.folder, tokenizer=mine).folder == d.folder
    assert data.load(d.folder, tokenizer="bpe-300").folder == d.folder
    fails("tokenised as bpe-300, not as bytes", data.load, d.folder, tokenizer="bytes")
    assert data.folder_of(d.folder, mine, "bytes") == d.folder
    tag = again.tokenizer.tag
    assert data.folder_of(d.folder, again.tokenizer, "bytes") == os.path.join(d.folder, tag)


# -----------------------------------------------------------------------------
# what every Python can make

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


@pytest.fixture
def library(tmp_path, monkeypatch):
    """A small standard library"""
    folder = tmp_path / "lib"
    os.makedirs(folder / "test")
    (folder / "module.py").write_text(LIBRARY)
    (folder / "test" / "test_module.py").write_text("never = 'seen'")
    (folder / "python2.py").write_text("print 'no'")
    (folder / "latin.py").write_bytes("# -*- coding: latin-1 -*-\nname = 'é'\n".encode("latin-1"))
    (folder / "more.py").write_text("".join(
        f"name_{i} = {i}\ndef f{i}(a):\n    b = a\n\n    return b + {i}\n" for i in range(60)))
    monkeypatch.setattr(python.sysconfig, "get_path", lambda name: str(folder))
    return folder


def test_one_liners_of_a_small_library(library):
    found = {s for s in python.one_liners() if python.parses(s)}
    found = {s for s in found if not re.match(r"(name_|def f|return b \+ )\d|b = a", s)}
    assert found == {
        "import os, sys", "x = 1", "yy = 22", "def function(a, b): pass", "if a: pass", "return b",
        "return a", "class Name: pass", "pass", "async def coroutine(x): pass",
        "async with x as y: pass", "await y", "async for z in y: pass", "del z", "while True: pass",
        "raise", 'for é in "é": pass', "print(é)", 'with open("#") as f: pass', 'return "\\d"',
        "name = 'é'"}


def test_the_python_set_parses_is_split_by_its_text_and_is_made_once(library, tmp_path, capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("error")                          # the library's stay its own
        d = data.load("python", str(tmp_path / "data"), tokenizer="bytes")
    lines = everything(d)
    assert len(lines) == len(set(lines)) > 150 and d.train.block_size == 64
    assert all(4 <= len(s.encode()) <= 64 and "\n" not in s and ast.parse(s) for s in lines)
    assert 0 < len(d.val) < 20 and capsys.readouterr().out.count("preparing") == 1
    more = [f"other_{i} = {i}\n" for i in range(99)]
    (library / "more.py").write_text("name_1 = 1\n" + "".join(more))
    again = data.load("python", str(tmp_path / "data"), tokenizer="bytes")
    assert again.train.fingerprint == d.train.fingerprint and not capsys.readouterr().out
    other = data.load("python", str(tmp_path / "other"), tokenizer="bytes")
    assert not set(texts(other.val)) & set(texts(d.train))      # who was val stays val
    assert not set(texts(other.train)) & set(texts(d.val))
    shutil.rmtree(library)
    fails("no sources", data.load, "python", str(tmp_path / "empty"))


def test_the_python_set_speaks_in_tokens(library, tmp_path):
    d = data.load("python", str(tmp_path / "data"), tokenizer="bpe-300")
    default = data.load("python", str(tmp_path / "data"))
    assert default.folder == str(tmp_path / "data" / "python")
    assert d.folder == os.path.join(default.folder, "bpe-300")
    assert sorted(everything(d)) == sorted(everything(default))
    assert d.tokenizer.vocab_size == 300 and default.meta["tokenizer"]["name"] == "bpe-2048"
    with open(os.path.join(d.folder, "bpe.json")) as f:
        assert data.tokenizer_from(json.load(f)).spec() == d.tokenizer.spec()
    bytes_ = data.load("python", str(tmp_path / "data"), tokenizer="bytes")
    assert d.train.tokens < bytes_.train.tokens and len(d.train) == len(bytes_.train)


def test_whole_functions(library, tmp_path):
    found = everything(data.load("functions", str(tmp_path / "data"), tokenizer="bytes"))
    assert "def f7(a):\n    b = a\n\n    return b + 7" in found and len(found) == 63
    assert any(f.startswith('@decorator("#")\ndef function(a, b):') for f in found)
    for f in found:
        assert isinstance(ast.parse(f).body[0], (ast.FunctionDef, ast.AsyncFunctionDef))
    assert set(found) == set(functions.functions())


def balanced(word):
    depth = 0
    for c in word:
        depth += {"(": 1, ")": -1}[c]
        if depth < 0:
            return False
    return depth == 0


def test_brackets_are_balanced_and_as_long_as_promised():
    train, val = brackets.brackets((2000, 300))
    assert (len(train), len(val)) == (2000, 300) and all(map(balanced, train + val))
    assert brackets.brackets((2000, 300)) == (train, val)
    for side in (train, val):
        for length, p in ((4, .1), (16, .4), (32, .4), (64, .1)):
            share = sum(len(word) == length for word in side) / len(side)
            assert abs(share - p) < 4.5 * (p * (1 - p) / len(side)) ** .5
    assert {word for word in val if len(word) > 4}.isdisjoint(train)
    assert {word for word in val if len(word) == 4} == {"(())", "()()"}


def test_brackets_are_uniform_over_the_words_of_a_length():
    rng, counts = np.random.default_rng(0), {}
    for _ in range(7000):
        word = brackets.dyck(4, rng)
        counts[word] = counts.get(word, 0) + 1
    assert len(counts) == 14 and all(map(balanced, counts))     # Catalan(4)
    # chi-square, 13 degrees of freedom: above 40 in one of 7,000 trials
    assert sum((c - 500) ** 2 / 500 for c in counts.values()) < 40


def test_brackets_as_a_data_set(tmp_path, monkeypatch):
    monkeypatch.setattr(brackets, "brackets", lambda: (["()()", "(())"] * 3, ["(())"]))
    d = data.load("brackets", str(tmp_path))
    assert texts(d.train) == ["()()", "(())"] * 3 and texts(d.val) == ["(())"]
    assert d.train.tokens == 24 and d.tokenizer.name == "bytes"


# -----------------------------------------------------------------------------
# the user's own texts

def test_a_text_by_paragraph_line_and_file(tmp_path):
    (tmp_path / "t.txt").write_bytes("\ufeffone\ntwo\r\n\r\n \r\n\r\nthree\nfour\n".encode())
    words = (str(tmp_path / "t.txt"), str(tmp_path))
    assert sorted(everything(data.load(*words))) == ["one\ntwo", "three\nfour"]
    lines = everything(data.load(*words, split="line"))
    assert sorted(lines) == [" ", "four", "one", "three", "two"]
    fails("no two different documents.*--split", data.load, *words, split="file")


@pytest.mark.parametrize("split", ["line", "paragraph"])
def test_an_empty_document_is_never_the_only_one_to_validate_on(tmp_path, split):
    """The hash of "" is below those of the four words, so it would be the smallest."""
    words = [w for w in map("word {}".format, range(50))
             if writing.text_hash(w) > writing.text_hash("")][:4]
    assert len(words) == 4
    (tmp_path / "t.txt").write_text("\n\n\n\n".join(words))
    d = data.load(str(tmp_path / "t.txt"), str(tmp_path), split=split)
    assert sorted(everything(d)) == sorted(words) and len(d.val) == 1


def test_a_changed_text_is_another_set(tmp_path):
    (tmp_path / "t.txt").write_text("one\n\ntwo")
    words = (str(tmp_path / "t.txt"), str(tmp_path))
    first = data.load(*words)
    (tmp_path / "t.txt").write_text("one\n\nthree")
    assert sorted(everything(data.load(*words))) == ["one", "three"]
    assert re.fullmatch(r"t-[0-9a-f]{8}", os.path.basename(first.folder))
    assert data.load(*words, split="line").folder != data.load(*words, tokenizer="bpe-257").folder


def test_jsonl(tmp_path):
    rows = [{"text": f"number {i}", "n": i} for i in range(100)]
    for name, opener in (("t.jsonl", open), ("u.jsonl.gz", gzip.open)):
        with opener(tmp_path / name, "wt") as f:
            f.write("\n".join(json.dumps(r) for r in rows) + "\n\n")
        d = data.load(str(tmp_path / name), str(tmp_path))
        assert sorted(everything(d)) == sorted(r["text"] for r in rows) and 0 < len(d.val) < 20
    (tmp_path / "t.jsonl").write_text('{"body": "a"}\n{"body": "b\\ud800"}\n{"body": "\\u0000"}')
    d = data.load(str(tmp_path / "t.jsonl"), str(tmp_path), field="body")
    assert sorted(everything(d)) == ["a", "b?"]


@pytest.mark.parametrize("name", ["bytes", "bpe-260"])
def test_tasks_keep_what_is_given_apart(tmp_path, capsys, name):
    """Three formats of .jsonl: prompt, question and prefix/suffix are given. A task longer than
    block_size is left out, not cut, and that is said."""
    rows = [{"prompt": f"{i}+1=", "completion": f"{i + 1}"} for i in range(40)]
    rows += [{"question": "who?", "answer": "me"}, {"prefix": "(", "middle": "x", "suffix": ")"}]
    rows += [{"prompt": "pq" * 30, "completion": "cd" * 30}]
    path = tmp_path / "tasks.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    d = data.load(str(path), str(tmp_path), block_size=20, tokenizer=name)
    assert d.train.ids.dtype == np.uint32 and len(d.train) + len(d.val) == 42
    longest = d.train.counts["longest"]
    assert (f"1 tasks longer than --block_size 20 are left out; --block_size {longest} keeps all "
            "of them whole") in capsys.readouterr().out
    seen = {}
    for side in (d.train, d.val):
        x, n, given = side.batch(range(len(side)))
        for row in range(len(side)):
            ids = x[row, :n[row]].tolist()
            assert side.document(row) == ids and side.given(row) == given[row, :n[row]].tolist()
            marks = [("g" if g else "-") * len(d.tokenizer.decode([i]))
                     for i, g in zip(ids, side.given(row))]
            seen[d.tokenizer.decode(ids)] = "".join(marks)
    assert seen["3+1=4"] == "gggg-" and seen["who?\nme"] == "ggggg--" and seen["(x)"] == "g-g"
    again = data.load(str(path), str(tmp_path), block_size=longest, tokenizer=name)
    assert len(again.train) + len(again.val) == 43
    (tmp_path / "bad.jsonl").write_text(json.dumps({"prompt": "a", "answer": "b"}))
    fails("no text in the field 'text'", data.load, str(tmp_path / "bad.jsonl"), str(tmp_path))


def test_the_split_does_not_depend_on_the_order_of_a_file(tmp_path):
    lines, sides = [f"line {i}" for i in range(300)], []
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("\n".join(lines))
        d = data.load(str(tmp_path / name), str(tmp_path), split="line")
        sides.append(set(texts(d.val)))
        lines = lines[::-1] + ["one more"]
    assert sides[0] == sides[1] - {"one more"} and 5 <= len(sides[0]) <= 30


@needs_gpt2
def test_gpt2_tokens_if_asked(tmp_path):
    (tmp_path / "t.txt").write_text("one two three\n\nfour five\n\nsix")
    d = data.load(str(tmp_path / "t.txt"), str(tmp_path), tokenizer="gpt2")
    assert d.train.tokens + d.val.tokens == 6 and d.tokenizer.vocab_size == 50257
    fails("tokenised as gpt2, not as bytes", data.load, d.folder, tokenizer="bytes")


@pytest.mark.parametrize("name, content, sentence", [
    ("a.txt", b"", "no two different documents"),
    ("a.txt", b"the same\n\nthe same", "no two different documents"),
    ("a.txt", b"one\n\n\xff\xfe", "not utf-8"),
    ("a.jsonl", b'{"text": "a"}\n{"text": ', "line 2 is not JSON"),
    ("a.jsonl", b"[" * 10 ** 5, "line 1 is not JSON"),
    ("a.jsonl", b'{"body": "a"}', "in the field 'text': it has body, so name one with --field"),
    ("a.jsonl", b'{"text": 3}', "no text in the field 'text'"),
    ("a.jsonl", b"[1, 2]", "no text in the field 'text'"),
    ("a.jsonl.gz", gzip.compress(b'{"text": "a"}\n' * 9)[:-9], "truncated or damaged"),
    ("a.jsonl.gz", b'{"text": "a"}', "truncated or damaged"),
    ("a.parquet", b"PAR1", "no suffix that can be read"),
    ("a.doc", b"x", "no suffix that can be read"),
])
def test_rubbish_gets_one_sentence_and_leaves_no_data_set(tmp_path, name, content, sentence):
    (tmp_path / name).write_bytes(content)
    for _ in range(2):
        fails(sentence, data.load, str(tmp_path / name), str(tmp_path / "data"))
    left = [f for _, _, found in os.walk(tmp_path / "data") for f in found]
    assert not [f for f in left if f.endswith(".bin")]


def test_random_bytes_as_a_text_never_end_in_a_traceback(tmp_path):
    rng = random.Random(0)
    for trial in range(150):
        alphabet = [10, 34, 44, 58, 91, 93, 123, 125, 0, 195, 169, 97, 92]
        content = bytes(rng.choice(alphabet) for _ in range(rng.randrange(60)))
        path = tmp_path / f"{trial}.{rng.choice(['txt', 'jsonl', 'jsonl.gz'])}"
        path.write_bytes(content)
        try:
            split = rng.choice(["line", "paragraph", "file"])
            data.load(str(path), str(tmp_path / "data"), split=split)
        except Fail as e:
            assert "\n" not in str(e)


# -----------------------------------------------------------------------------
# archives

def archive(members):
    """A tar with these members: name -> text or bytes"""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, content in members.items():
            content = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


def read_archive(content, **options):
    return list(files.members(io.BytesIO(content), "a.tar", **options))


def test_hostile_member_names_reach_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = io.BytesIO()
    kinds = [("../../evil.txt", tarfile.REGTYPE), (str(tmp_path / "evil.txt"), tarfile.REGTYPE),
             ("link.txt", tarfile.SYMTYPE), ("device.txt", tarfile.CHRTYPE),
             ("folder", tarfile.DIRTYPE)]
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, kind in kinds:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            info.size = len(name) if kind == tarfile.REGTYPE else 0
            tar.addfile(info, io.BytesIO(name.encode()))
    assert read_archive(out.getvalue()) == [name for name, kind in kinds[:2]]
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_of_every_format(form):
    """An archive in an archive is known by how it begins, whatever the length of its name."""
    name, out = "folder/" * 20 + "é" * (form != tarfile.USTAR_FORMAT) + "x.xz", io.BytesIO()
    content = lzma.compress(archive({"a.txt": "packed"}))
    with tarfile.open(fileobj=out, mode="w", format=form) as tar:
        for member in (name, "b.txt"):
            info = tarfile.TarInfo(member)
            info.size = len(content) if member == name else 2
            tar.addfile(info, io.BytesIO(content if member == name else b"hi"))
    assert read_archive(out.getvalue()) == ["packed", "hi"]


def test_archives_go_no_deeper_than_openwebtext():
    inner = lzma.compress(archive({"b.xz": lzma.compress(archive({"c": "c"}))}))
    fails("archive in an archive in an archive", read_archive, archive({"a.xz": inner}))


def giant_header(kind, size):
    """The block of a member that says its header has `size` bytes, and that many zeros: packed"""
    info = tarfile.TarInfo("x")
    info.type, info.size = kind, size
    packer = lzma.LZMACompressor(preset=0)
    packed = packer.compress(info.tobuf(tarfile.GNU_FORMAT))
    zeros = bytes(2 ** 20)
    for _ in range(size // len(zeros)):
        packed += packer.compress(zeros)
    return packed + packer.flush()


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE,
                                  tarfile.GNUTYPE_SPARSE, b"?"])
def test_a_giant_header_takes_no_memory(kind):
    """A name of 256 MB in a packed member: refused by its size, before it is read."""
    packed = giant_header(kind, 2 ** 28)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = files.members(lzma.open(io.BytesIO(packed)), "a.xz", most=2 ** 28)
    fails("unpacks to more", list, found)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 100 * 2 ** (20 if sys.platform == "darwin" else 10)


def test_archives_that_unpack_to_too_much_are_refused(monkeypatch):
    monkeypatch.setattr(files, "LIMIT", 100)
    fails("unpacks to more", read_archive, archive({"a.txt": "x" * 200}))
    many = archive({f"{i}.txt": "x" * 90 for i in range(9)})
    fails("unpacks to more", read_archive, many, most=400)
    negative = tarfile.TarInfo("x")
    negative.size = -5
    fails("unpacks to more", read_archive, negative.tobuf(tarfile.GNU_FORMAT))


# -----------------------------------------------------------------------------
# OpenWebText, over loopback

def story(rng):
    words = "a of the tree, runs. over Été 17 moon's".split(" ")
    return "\n\n".join(" ".join(rng.choice(words) for _ in range(rng.randrange(3, 40)))
                       for _ in range(rng.randrange(1, 6)))


def openwebtext(shards=3, subsets=4, documents=12):
    """The real layout: subsets/urlsf_subset00.tar > openwebtext/urlsf_subset00-1_data.xz > texts.
    One of the texts has a hash that makes it validation data (one of 2,000 has)."""
    rng, served, stories = random.Random(0), {}, []
    limit = int(owt.SHARE * 2 ** 64)
    lucky = next(f"text {i}" for i in range(10 ** 6)
                 if writing.text_hash(f"text {i}\n\ntext {i}") < limit)
    for s in range(shards):
        packed = {}
        for k in range(1, subsets + 1):
            mine = [story(rng) for _ in range(documents)]
            if s == k == 1:
                mine[-1] = lucky
            stories += mine
            inner = archive({f"{i:07d}-{rng.getrandbits(128):032x}.txt": f"\n\n\n{t}\n\n\n\n\n{t}\n"
                             for i, t in enumerate(mine)})
            packed[f"openwebtext/urlsf_subset{s:02d}-{k}_data.xz"] = lzma.compress(inner)
        served[f"/subsets/urlsf_subset{s:02d}.tar"] = archive(packed)
    return served, [f"{t}\n\n{t}" for t in stories]


class Server(http.server.ThreadingHTTPServer):
    """Serves `files`; `cut` maps a path to how many bytes each answer brings before the connection
    is dropped, `hang` to where it stops for ever."""
    daemon_threads = True

    def __init__(self, files, cut=None, hang=None, ranges=True):
        self.files, self.cut, self.hang, self.ranges = files, cut or {}, hang or {}, ranges
        self.asked, self.hung, self.over = [], threading.Event(), threading.Event()
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
        last = len(self.files) - 1
        return f"http://127.0.0.1:{self.server_port}/subsets/urlsf_subset{{00..{last:02d}}}.tar"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body, start = self.server.files.get(self.path), 0
        self.server.asked.append((self.path, self.headers.get("Range")))
        if not isinstance(body, bytes):
            self.send_error(body or 404)
            return
        asked = re.match(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if self.server.ranges and asked:
            start = int(asked[1])
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


@pytest.fixture(scope="module")
def web():
    return openwebtext()


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(download.time, "sleep", lambda seconds: None)


@pytest.fixture(scope="module")
def plain(web, tmp_path_factory):
    """The files of an uninterrupted run (bytes as tokens: no vocabulary needed), and the folder
    that holds its archives for --from"""
    folder = tmp_path_factory.mktemp("plain")
    with Server(web[0]) as server:
        prepared(folder, url=server.url)
    os.mkdir(folder / "archives")
    for name, content in web[0].items():
        (folder / "archives" / os.path.basename(name)).write_bytes(content)
    return folder


def prepared(folder, **options):
    return data.load("owt", str(folder), tokenizer="bytes", workers=1, **options)


def tokens_of(folder):
    both = []
    for name in ("train.bin", "val.bin"):
        with open(os.path.join(folder, "owt", "bytes", name), "rb") as f:
            both.append(f.read())
    return both


def documents_of(folder):
    """The same, whatever order they came in"""
    train, val = (bytes(np.frombuffer(b, "<u2").tolist()) for b in tokens_of(folder))
    return sorted(train.split(b"\0")), val


@needs_gpt2
def test_owt_is_downloaded_and_every_text_arrives(web, tmp_path, capsys):
    with Server(web[0]) as server:
        d = data.load("owt", str(tmp_path), url=server.url, workers=1)
    assert sorted(everything(d)) == sorted(web[1]) and d.tokenizer.name == "gpt2"
    assert d.meta["documents"] == {"train": 143, "val": 1}
    assert d.meta["made"] == {"from": server.url}
    size = os.path.getsize(tmp_path / "owt" / "train.bin")
    assert d.meta["tokens"]["train"] == size // 2
    said = capsys.readouterr().out
    for words in ("download", "1.9 GB", "GB of disk", "estimate", "144 documents", "8,013,769"):
        assert words in said
    assert sorted(os.listdir(d.folder)) == [".lock", "meta.json", "train.bin", "val.bin"]


@pytest.mark.parametrize("ranges", [True, False])
def test_cut_connections_are_taken_up_again(web, plain, tmp_path, quick, ranges):
    with Server(web[0], ranges=ranges) as server:
        if ranges:
            server.cut = {p: len(b) // 3 for p, b in web[0].items()}
        else:               # a part left by another run, on a server without ranges
            os.makedirs(tmp_path / "owt" / "bytes")
            (tmp_path / "owt" / "bytes" / "urlsf_subset00.tar.partial").write_bytes(b"else")
        prepared(tmp_path, url=server.url)
    assert tokens_of(tmp_path) == tokens_of(plain)
    assert not ranges or sum(bool(r) for _, r in server.asked) >= 9


def test_a_server_that_always_cuts_at_the_same_place_is_given_up(web, tmp_path, quick):
    with Server(web[0], ranges=False, cut={p: 1000 for p in web[0]}) as server:
        fails("cannot download .*the connection was cut", prepared, tmp_path, url=server.url)
        assert len(server.asked) == 5


def test_a_part_that_is_longer_than_the_file_starts_over(web, plain, tmp_path, quick):
    os.makedirs(tmp_path / "owt" / "bytes")
    (tmp_path / "owt" / "bytes" / "urlsf_subset00.tar.partial").write_bytes(b"x" * 10 ** 6)
    with Server(web[0]) as server:
        prepared(tmp_path, url=server.url)
    assert tokens_of(tmp_path) == tokens_of(plain)


def test_no_network_and_wrong_addresses(web, tmp_path, quick):
    with Server(web[0]) as server:
        url = server.url
        fails("answers 404", prepared, tmp_path, url=url.replace("subsets", "sub"))
        server.files = {p: 503 for p in web[0]}
        fails("cannot download .*503", prepared, tmp_path, url=url)
        assert len(server.asked) == 1 + 5
    fails("cannot download .*check the network", prepared, tmp_path, url=url)
    fails("no web address", prepared, tmp_path, url="htp:/x")


def test_a_small_disk_is_noticed_before_the_download(tmp_path, monkeypatch):
    usage = type("usage", (), {"free": 10 ** 9})
    monkeypatch.setattr(owt.shutil, "disk_usage", lambda path: usage)
    monkeypatch.setattr(owt, "download", lambda *_: pytest.fail("downloads"))
    fails("needs about .* GB and its disk has 1.0 GB free", prepared, tmp_path)


def test_from_files_that_one_has(web, plain, tmp_path):
    """--from: the folder of archives; the texts unpacked; one archive; a jsonl. The same documents,
    whatever they come in."""
    def made(name, source):
        prepared(tmp_path / name, source=str(source))
        return documents_of(tmp_path / name)

    expected = documents_of(plain)
    assert made("tar", plain / "archives") == expected
    os.makedirs(tmp_path / "texts" / "deep")
    with open(tmp_path / "texts.jsonl", "w") as f:
        for i, t in enumerate(web[1]):
            (tmp_path / "texts" / ("deep" if i % 2 else "") / f"{i}.txt").write_text(t)
            f.write(json.dumps({"text": t}) + "\n")
    assert made("txt", tmp_path / "texts") == expected
    assert made("jsonl", tmp_path / "texts.jsonl") == expected
    whole = archive({f"{i}.txt": t for i, t in enumerate(web[1])})
    (tmp_path / "whole.xz").write_bytes(lzma.compress(whole))
    packed = archive({f"owt/{i}.xz": lzma.compress(archive({"a": t}))
                      for i, t in enumerate(web[1])})
    (tmp_path / "whole.tar.xz").write_bytes(lzma.compress(packed))
    assert made("xz", tmp_path / "whole.xz") == expected
    assert made("tarxz", tmp_path / "whole.tar.xz") == expected


def test_sources_that_owt_cannot_read(tmp_path):
    fails("there is no", prepared, tmp_path, source=str(tmp_path / "nothing"))
    os.makedirs(tmp_path / "empty")
    fails("has no files of .tar", prepared, tmp_path, source=str(tmp_path / "empty"))
    (tmp_path / "a.jsonl").write_text('{"prompt": "a", "completion": "b"}')
    fails("no tasks with given tokens", prepared, tmp_path, source=str(tmp_path / "a.jsonl"))
    fails("trained on texts in memory", data.load, "owt", str(tmp_path), tokenizer="bpe")


def test_what_from_skips_is_named(plain, tmp_path, capsys):
    shutil.copytree(plain / "archives", tmp_path / "archives")
    for name in ("rest.parquet", "notes.md", ".hidden.tar"):
        (tmp_path / "archives" / name).write_text("x")
    prepared(tmp_path, source=str(tmp_path / "archives"))
    said = capsys.readouterr().out
    assert "3 files in" in said and "are skipped" in said
    assert all(name in said for name in ("rest.parquet", "notes.md", ".hidden.tar"))
    assert documents_of(tmp_path) == documents_of(plain)


def test_a_set_from_other_sources_is_not_reused_in_silence(plain, tmp_path, capsys):
    source = tmp_path / "archives"
    shutil.copytree(plain / "archives", source)
    first = prepared(tmp_path, source=str(source))
    assert prepared(tmp_path, source=str(source)).train.fingerprint == first.train.fingerprint
    assert prepared(tmp_path).train.fingerprint == first.train.fingerprint      # nothing is named
    elsewhere = str(plain / "archives")
    fails("made from something else.*from: .*name another", prepared, tmp_path, source=elsewhere)
    fails("split: file, now line", prepared, tmp_path, source=str(source), split="line")
    os.unlink(source / "urlsf_subset02.tar")
    fails("made from something else .*files: 3, now 2", prepared, tmp_path, source=str(source))
    shutil.rmtree(source)                                                       # read, and deleted
    assert prepared(tmp_path, source=str(source)).train.fingerprint == first.train.fingerprint


def test_truncated_and_damaged_archives_are_named(web, tmp_path):
    whole = web[0]["/subsets/urlsf_subset00.tar"]
    first = 512 + int(whole[124:135], 8)
    boundary = first + -first % 512         # after a member: tarfile alone calls this the end
    inner = lzma.decompress(whole[512:first])
    damaged, header = bytearray(whole), bytearray(whole)
    damaged[512 + 200] ^= 1
    header[boundary + 5] ^= 1
    packed = "openwebtext/urlsf_subset00-1_data.xz"
    cases = {
        "middle": whole[:len(whole) // 2], "boundary": whole[:boundary], "flipped": bytes(damaged),
        "header": bytes(header), "empty": b"", "longer": whole + b"x" * 2 ** 20,
        "inner": archive({packed: lzma.compress(inner[:len(inner) // 2])}),
        "cut": archive({packed: lzma.compress(inner)[:-40]})}
    for name, content in cases.items():
        (tmp_path / f"{name}.tar").write_bytes(content)
        source = str(tmp_path / f"{name}.tar")
        fails(f"{name}.tar.* is truncated or damaged", prepared, tmp_path / name, source=source)
        assert not writing.ready(tmp_path / name / "owt" / "bytes")


def command(*words):
    return subprocess.Popen([sys.executable, *words], text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE)


SCRIPT = os.path.join(ROOT, "data", "owt", "prepare.py")


def test_several_threads_make_the_same_files(plain, tmp_path):
    process = command(SCRIPT, "--from", str(plain / "archives"), "--data_dir", str(tmp_path),
                      "--tokenizer", "bytes", "--workers", "2")
    out, err = process.communicate()
    assert process.returncode == 0 and "on 2 threads" in out, err
    assert tokens_of(tmp_path) == tokens_of(plain)


def test_killed_in_a_download_and_run_again(web, plain, tmp_path):
    """kill -9 while the second archive arrives: the first is not fetched again, and the second is
    taken up where it stopped."""
    path = "/subsets/urlsf_subset01.tar"
    words = [SCRIPT, "--data_dir", str(tmp_path), "--tokenizer=bytes", "--workers=1"]
    with Server(web[0], hang={path: len(web[0][path]) // 2}) as server:
        process = command(*words, "--url", server.url)
        assert server.hung.wait(60)
        partial = tmp_path / "owt" / "bytes" / "urlsf_subset01.tar.partial"
        while not (partial.exists() and partial.stat().st_size):
            time.sleep(0.01)
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        assert not writing.ready(tmp_path / "owt" / "bytes")
        server.hang, server.asked = {}, []
        process = command(*words, "--url", server.url)
        out, err = process.communicate()
    assert process.returncode == 0, err
    assert "going on after 48 documents" in out
    assert "/subsets/urlsf_subset00.tar" not in [p for p, _ in server.asked]
    assert any(p == path and r for p, r in server.asked) and tokens_of(tmp_path) == tokens_of(plain)


@pytest.mark.parametrize("where, lives", [
    ("finish", 0), *[("write_json", lives) for lives in range(4)],
    *[("os.replace", lives) for lives in range(5)]])
def test_stopped_anywhere_and_run_again(plain, tmp_path, monkeypatch, where, lives):
    """A run that dies at a note of its progress or while it puts the files in their place, and then
    the same command: the files of an uninterrupted run."""
    holder, name = (owt, where) if "." not in where else (owt.os, "replace")
    left, real = [lives], getattr(holder, name)

    def mortal(*arguments, **options):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    source = str(plain / "archives")
    with monkeypatch.context() as m:
        m.setattr(holder, name, mortal)
        try:
            prepared(tmp_path, source=source)
        except KeyboardInterrupt:
            pass
    prepared(tmp_path, source=source)
    assert left[0] < 0 and tokens_of(tmp_path) == tokens_of(plain)
    left_over = {*os.listdir(tmp_path / "owt" / "bytes")} - {".lock"}
    assert left_over == {"meta.json", "train.bin", "val.bin"}


def test_the_others_wait_while_one_prepares(tmp_path, monkeypatch):
    """As under torchrun: four at once, one prepares, all see the same data."""
    (tmp_path / "t.txt").write_text("\n\n".join(f"text {i}" for i in range(50)))
    made, out, real = [], [], data.write_texts
    monkeypatch.setattr(data, "write_texts", lambda *a, **k: made.append(1) or real(*a, **k))

    def one():
        out.append(data.load(str(tmp_path / "t.txt"), str(tmp_path / "data")).train.fingerprint)

    threads = [threading.Thread(target=one) for _ in range(4)]  # flock also holds between threads
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1 and len(out) == 4 and len(set(out)) == 1


def test_a_ready_folder_that_cannot_be_written_needs_no_lock(tmp_path, monkeypatch):
    for side in ("train", "val"):
        write_bin(tmp_path / f"{side}.bin", [[1]])
    real = open

    def read_only(path, mode="r", *arguments, **options):
        if "w" in mode:
            raise PermissionError(13, "Permission denied")
        return real(path, mode, *arguments, **options)

    monkeypatch.setattr(data, "open", read_only, raising=False)
    assert len(data.load(str(tmp_path), tokenizer="bytes").train) == 1
    assert sorted(os.listdir(tmp_path)) == ["train.bin", "val.bin"]


# -----------------------------------------------------------------------------
# the command line

@pytest.mark.parametrize("words, code, sentence", [
    (["text", "t.txt", "--data_dir=d", "--split=line"], 0, "4 documents"),
    (["text"], 2, "name a text"),
    (["text", "t.txt", "--splt=line"], 2, "did you mean --split"),
    (["owt", "--from", "none", "--tokenizer", "bytes", "--data_dir", "d"], 2, "there is no none"),
    (["brackets", "--help"], 0, "--tokenizer"),
])
def test_by_hand(tmp_path, words, code, sentence):
    (tmp_path / "t.txt").write_text("a\nb\n\nc\nd")
    name, *rest = words
    script = os.path.join(ROOT, "data", name, "prepare.py")
    process = subprocess.run([sys.executable, script, *rest], cwd=tmp_path, capture_output=True,
                             text=True)
    assert process.returncode == code and sentence in process.stdout + process.stderr
    assert "Traceback" not in process.stderr and process.stderr.count("\n") == (code == 2)
