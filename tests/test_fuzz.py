"""Random input (FUZZ=10 pytest tests/test_fuzz.py: ten times as much). Whatever comes, a user sees
one sentence or a result, never a traceback, and no file appears but in out_dir and data_dir."""
import contextlib
import dataclasses
import io
import json
import os
import random

import pytest

import checkpoint
import common
import data
import evaluate
import maze
import sample
import train
from loaded import HOLE
from retrofit import benchmark

TIMES = int(os.environ.get("FUZZ", 1))
SMALL = ["-1", "0", "1", "2", "3", "5", "8", "16", "24"]
HUGE = ["10" * 9, "-7" * 5, "99999999999999999999999", "1e400"]
WORDS = ["", " ", "nan", "inf", "-inf", "1e-3", "0.5", "True", "no", "x", "\u00fc\u2603", "a=b",
         "--", "-", "%s", "\\", "'", "\n", ",", "..", "/", "/dev/null", "/nosuch/x",
         "linear", "cosine", "sin", "instant", "geometric,start=1", "polynomial,exponent=0",
         "polynomial,exponent=-3", "polynomial,=,", "bytes", "gpt2", "mdm", "prime", "ar",
         "flexprime", "file", "joint", "sampled", "stream", "random", "margin", "[..]", "[..3]"]
TINY = ["--n_layer=1", "--n_head=1", "--n_embd=8", "--batch_size=4", "--block_size=16",
        "--max_iters=2", "--eval_interval=2", "--eval_iters=1", "--log_interval=1",
        "--warmup_iters=1", "--sample_steps=2", "--device=cpu"]


def outcome(run, argv):
    """'done', or the sentence. Anything but a Fail (or --help's exit) comes out as it is, and fails
    the test."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            run(argv)
        except common.Fail as e:
            assert "\n" not in str(e) or any("\n" in word for word in argv), e
            return str(e)
        except SystemExit as e:
            assert e.code in (0, None)
    return "done"


def some_flags(rng, cls, leave, values, most=4):
    """Up to `most` random flags of a dataclass with random values; some misspelt, some with the
    value as a word of its own."""
    flags = []
    fields = [f for f in dataclasses.fields(cls) if f.name not in leave]
    for f in rng.sample(fields, rng.randint(1, most)):
        name = f.name
        if rng.random() < 0.05:
            name = name[:-1] + rng.choice("xyz")
        likely = [*(f.metadata["choices"] or ()), str(f.default)]
        value = rng.choice(likely)
        if rng.random() < 0.7:
            value = rng.choice([*values, *likely])
        forms = [[f"--{name}={value}"], [f"--{name}", value]]
        if isinstance(f.default, bool):
            forms.append([f"--no-{name}"])
        flags += rng.choice(forms)
    return flags


def files(folder, but=()):
    found = {os.path.join(where, f) for where, _, names in os.walk(folder) for f in names}
    skipped = tuple(os.path.join(folder, name) for name in but)
    return {path for path in found if not path.startswith(skipped)} if skipped else found


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder to stand in, with a text, a .jsonl and two trained models"""
    folder = tmp_path_factory.mktemp("fuzz")
    rng, words = random.Random(0), ["if", "x", "in", "(a)", "=", "0"]
    texts = sorted({" ".join(rng.choices(words, k=rng.randint(1, 5)))[:15] for _ in range(300)})
    (folder / "lines.txt").write_text("\n".join(texts))
    (folder / "lines.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in texts))
    for method in ("flexmdm", "prime"):
        argv = [*TINY, f"--method={method}", f"--dataset={folder}/lines.txt", "--split=line",
                f"--data_dir={folder}/data", f"--out_dir={folder}/{method}"]
        assert outcome(train.train, argv) == "done"
    return folder


def test_command_lines_of_train(world, monkeypatch):
    """Whole runs: small sizes, and random flags over them"""
    monkeypatch.chdir(world)
    rng, done, before = random.Random(1), 0, files(world, ("out", "data"))
    leave = ("out_dir", "data_dir", "overwrite", "compile", "device", "max_iters")
    for _ in range(60 * TIMES):
        argv = [*TINY, "--dataset=lines.txt", "--split=line", "--overwrite", "--out_dir=out",
                "--data_dir=data", *some_flags(rng, train.Args, leave, SMALL + WORDS, 2)]
        done += outcome(train.train, argv) == "done"
        assert files(world, ("out", "data")) == before
    assert 5 * TIMES < done < 55 * TIMES                # both kinds were tried


@pytest.mark.parametrize("script", [train, sample, evaluate, maze, benchmark])
def test_flags_that_are_only_read(script):
    """Command lines up to where work would begin, huge numbers among them"""
    rng = random.Random(2)

    def read(argv):
        args = common.parse(script.Args, script.__doc__, argv)
        if script is train:
            train.settle(args)
    for _ in range(150 * TIMES):
        outcome(read, some_flags(rng, script.Args, (), SMALL + WORDS + HUGE, 6))


def test_command_lines_of_sample_and_evaluate(world, monkeypatch):
    monkeypatch.chdir(world)
    rng, before = random.Random(3), files(world, ("data",))
    where = ["flexmdm", "prime", "flexmdm/ckpt.pt", "lines.txt", "nosuch", ""]
    leave = ("out_dir", "save", "trace", "csv", "png", "device", "data_dir", "show", "seconds")
    for _ in range(30 * TIMES):
        argv = [f"--out_dir={rng.choice(where)}", "--device=cpu", "--num_samples=2", "--steps=2"]
        outcome(sample.run, argv + some_flags(rng, sample.Args, leave, SMALL + WORDS))
        argv += ["--documents=4", "--repeats=1", "--data_dir=data", "--dataset=lines.txt"]
        outcome(evaluate.run, argv + some_flags(rng, evaluate.Args, leave, SMALL + WORDS))
    assert files(world, ("data",)) == before


def test_infill_patterns(world):
    """Patterns of brackets, dots, digits and text: filled as they say, or one sentence"""
    rng = random.Random(4)
    pieces = ["[..]", "[..2]", "[..0]", "[..99]", "[..", "..]", "[", "]", ".", "7", "x", "\u00fc",
              "\u2603", "\n", "\0", " ", "[..-1]", "[..1e3]", "x" * 20, "[.." + "9" * 20 + "]"]
    loaded, filled = {name: checkpoint.load(world / name) for name in ("flexmdm", "prime")}, 0
    for _ in range(100 * TIMES):
        pattern = "".join(rng.choices(pieces, k=rng.randint(1, 6)))
        name = rng.choice(list(loaded))
        try:
            text, = loaded[name].generate(infill=pattern, steps=3)
        except common.Fail as e:
            assert "\n" not in str(e) or "\n" in pattern
            continue
        filled += 1
        if name == "flexmdm" and "\0" not in pattern:   # (a NUL is dropped from texts)
            rest = text
            for part in HOLE.split(pattern)[::2]:
                at = rest.find(part)
                assert at >= 0, (pattern, text)
                rest = rest[at + len(part):]
    assert filled > 10 * TIMES


def test_texts_and_jsonl(tmp_path):
    """Lines that are nearly JSON, odd bytes, odd names: loaded, or one sentence and no data set"""
    rng = random.Random(5)
    words = ["x ", "\u2603", "\0", "(", "\ud83d\ude00"] * 9
    good = [json.dumps({"text": w * i}).encode() for i, w in enumerate(words)]
    odd = [b'{"text": 3}', b'{"text": null}', b"[]", b"{", b"nul", b'{"text": "\\ud800"}',
           b"\xff\xfe", b"", b'{"txt": ""}', b"NaN", b'{"text": ' + b"[" * 3000, b"\xc3", b" ",
           b"9" * 5000]
    loaded = 0
    for trial in range(60 * TIMES):
        lines = rng.choices(good, k=rng.randint(0, 20))
        if rng.random() < 0.5:
            lines += rng.choices(odd, k=rng.randint(1, 3))
        rng.shuffle(lines)
        ending = rng.choice([".txt"] * 3 + [".jsonl"] * 5 + ["", ".TXT", ".json"])
        path, kept = tmp_path / f"{trial}{ending}", tmp_path / f"data{trial}"
        path.write_bytes(rng.choice([b"\n", b"\r\n", b"\n\n"]).join(lines))
        options = dict(block_size=rng.choice([2, 5, 64]),
                       split=rng.choice(["line", "paragraph", "file"]))
        fault = outcome(lambda argv: data.load(str(path), str(kept), **options), [])
        loaded += fault == "done"
        assert fault == "done" or not [f for f in files(kept) if f.endswith("meta.json")]
    assert 3 * TIMES < loaded < 57 * TIMES


def test_checkpoint_bytes(world, tmp_path):
    """Bytes changed, cut out, doubled or put in: refused by one sentence, every time"""
    good = (world / "flexmdm" / "ckpt.pt").read_bytes()
    rng, path = random.Random(6), tmp_path / "ckpt.pt"
    for _ in range(100 * TIMES):
        a, z = sorted(rng.randrange(len(good)) for _ in range(2))
        z = min(z, a + rng.choice([1, 8, 1000, len(good)]))
        before, part, after = good[:a], good[a:z], good[z:]
        bad = rng.choice([before, good[a:], before + after, before + part * 2 + after,
                          before + rng.randbytes(z - a) + after, before + bytes(z - a) + after,
                          good + part])
        if bad == good:
            continue
        path.write_bytes(bad)
        with pytest.raises(common.Fail) as fault:
            checkpoint.load(path)
        assert str(path) in str(fault.value) and "\n" not in str(fault.value)
