"""Random input, by the hundred (FUZZ=10 pytest tests/test_fuzz.py: by the thousand). Whatever comes, a user sees one sentence or a result,
never a traceback, and no file appears but in out_dir and data_dir."""
import contextlib
import dataclasses
import io
import json
import os
import random

import pytest

import bench
import common
import data
import evaluate
import maze
import model
import sample
import train

TIMES = int(os.environ.get("FUZZ", 1))
SMALL = ["-1", "0", "1", "2", "3", "5", "8", "16", "24"]
WORDS = ["", " ", "nan", "inf", "-inf", "1e-3", "0.5", "1e400", "99999999999999999999999", "True", "no", "x", "\u00fc\u2603", "a=b", "--", "-", "%s", "\\", "'", "\n",
         "linear", "cosine", "sin", "instant", "geometric,start=1", "polynomial,exponent=0", "polynomial,exponent=-3", "polynomial,=,", ",", "bytes", "gpt2", "mdm",
         "prime", "ar", "flexprime", "file", "joint", "sampled", "stream", "resume", "..", "/", "/dev/null", "/nosuch/x", "random", "margin", "[..]", "[..3]"]
TINY = ["--n_layer=1", "--n_head=1", "--n_embd=8", "--batch_size=4", "--block_size=16", "--max_iters=2", "--eval_interval=2", "--eval_iters=1", "--log_interval=1",
        "--warmup_iters=1", "--sample_steps=2", "--device=cpu"]


def outcome(run, argv):
    """'done', or the sentence. Anything but a Fail (or --help's exit) comes out as it is, and fails the test."""
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
    """Up to `most` random flags of a dataclass with random values; some misspelt, some with the value as a word of its own."""
    out = []
    for f in rng.sample([f for f in dataclasses.fields(cls) if f.name not in leave], rng.randint(1, most)):
        name = f.name if rng.random() < 0.95 else f.name[:-1] + rng.choice("xyz")
        choices = f.metadata.get("choices") or ()
        value = rng.choice([*values, *choices] if rng.random() < 0.7 else [*choices, str(f.default)])
        out += rng.choice([[f"--{name}={value}"], [f"--{name}", value], [f"--no-{name}"] if isinstance(f.default, bool) else [f"--{name}={value}"]])
    return out


def files(folder, but=()):
    return {os.path.join(d, f) for d, _, names in os.walk(folder) for f in names if not any(os.path.join(d, f).startswith(os.path.join(folder, b)) for b in but)}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder to stand in, with a text, a .jsonl and two trained models."""
    folder = tmp_path_factory.mktemp("fuzz")
    rng = random.Random(0)
    lines = sorted({" ".join(rng.choices(["if", "x", "in", "(a)", "=", "0"], k=rng.randint(1, 5)))[:15] for _ in range(300)})
    (folder / "lines.txt").write_text("\n".join(lines))
    (folder / "lines.jsonl").write_text("\n".join(json.dumps({"text": line}) for line in lines))
    for method in ("flexmdm", "prime"):
        assert outcome(train.train, [*TINY, f"--method={method}", f"--dataset={folder}/lines.txt", "--split=line", f"--data_dir={folder}/data",
                                     f"--out_dir={folder}/{method}"]) == "done"
    return folder


def test_command_lines_of_train(world, monkeypatch):
    """Whole runs: small sizes, random flags over them."""
    monkeypatch.chdir(world)
    rng, done, before = random.Random(1), 0, files(world, ("out", "data"))
    for _ in range(150 * TIMES):
        argv = [*TINY, "--dataset=lines.txt", "--split=line", "--overwrite", "--out_dir=out"]
        done += outcome(train.train, argv + some_flags(rng, train.Args, ("out_dir", "data_dir", "overwrite", "compile", "device"), SMALL + WORDS)) == "done"
        assert files(world, ("out", "data")) == before
    assert 10 * TIMES < done < 140 * TIMES                             # both kinds were tried


@pytest.mark.parametrize("script", [train, sample, evaluate, bench, maze])
def test_flags_that_are_only_read(script):
    """Thousands of command lines up to where work would begin, huge numbers among them."""
    rng = random.Random(2)
    check = {train: lambda args: train.check(args) or model.Config(V=256, n_embd=args.n_embd), sample: sample.checked, maze: maze.checked}.get(script, lambda args: args)
    for _ in range(400 * TIMES):
        outcome(lambda argv: check(common.parse(script.Args, "", argv)), some_flags(rng, script.Args, (), SMALL + WORDS + ["10" * 9, "-7" * 5], 6))


def test_command_lines_of_sample_and_evaluate(world, monkeypatch):
    monkeypatch.chdir(world)
    rng, before = random.Random(3), files(world, ("data",))
    for _ in range(120 * TIMES):
        argv = [f"--out_dir={rng.choice(['flexmdm', 'prime', 'flexmdm/ckpt.pt', 'lines.txt', 'nosuch', ''])}", "--device=cpu", "--num_samples=2", "--steps=2"]
        outcome(sample.run, argv + some_flags(rng, sample.Args, ("out_dir", "save", "trace", "device"), SMALL + WORDS))
        argv += ["--documents=4", "--repeats=1", "--data_dir=data", "--dataset=lines.txt"]
        outcome(evaluate.run, argv + some_flags(rng, evaluate.Args, ("out_dir", "csv", "png", "device", "data_dir"), SMALL + WORDS))
    assert files(world, ("data",)) == before


def test_infill_patterns(world):
    """Patterns of brackets, dots, digits and text, long and short: filled as they say, or one sentence."""
    rng = random.Random(4)
    pieces = ["[..]", "[..2]", "[..0]", "[..99]", "[..", "..]", "[", "]", ".", "7", "x", "\u00fc", "\u2603", "\n", "\0", " ", "[..-1]", "[..1e3]", "x" * 20, "[..99999999999999999999]"]
    loaded = {name: model.load(f"{world}/{name}/ckpt.pt") for name in ("flexmdm", "prime")}
    tokenizer = data.tokenizer_from(loaded["prime"].tokenizer)
    filled = 0
    for _ in range(150 * TIMES):
        pattern, name = "".join(rng.choices(pieces, k=rng.randint(1, 6))), rng.choice(list(loaded))
        args = common.parse(sample.Args, "", ["--num_samples=1", "--steps=3", f"--infill={pattern}"])
        try:
            text, = sample.draw_documents(loaded[name], tokenizer, args)
        except common.Fail as e:
            assert "\n" not in str(e)
            continue
        filled += 1
        if name == "flexmdm" and "\0" not in pattern:                  # (a NUL ends a text)
            rest = text
            parts = [p for p in sample.HOLE.split(pattern)[::2] if p]
            for part in parts:
                at = rest.find(part)
                assert at >= 0, (pattern, text)
                rest = rest[at + len(part):]
    assert filled > 20 * TIMES


def test_texts_and_jsonl(tmp_path):
    """Lines that are nearly JSON, odd bytes, odd names: loaded, or one sentence and no data set."""
    rng = random.Random(5)
    good = [json.dumps({"text": w * rng.randint(1, 9)}).encode() for w in ("x ", "\u2603", "\0", "(", "\ud83d\ude00")]
    odd = [b'{"text": 3}', b'{"text": null}', b"[]", b"{", b"nul", b'{"text": "\\ud800"}', b"\xff\xfe", b"", b'{"txt": ""}', b"NaN", b'{"text": ' + b"[" * 3000, b"\xc3", b" ", b"9" * 5000]
    loaded = 0
    for trial in range(150 * TIMES):
        lines = rng.choices(good, k=rng.randint(0, 12)) + (rng.choices(odd, k=rng.randint(1, 3)) if rng.random() < 0.7 else [])
        rng.shuffle(lines)
        path = tmp_path / f"{trial}{rng.choice(['.txt', '.jsonl', '.jsonl', '', '.TXT', '.json'])}"
        path.write_bytes(rng.choice([b"\n", b"\r\n", b"\n\n"]).join(lines))
        kept = tmp_path / f"data{trial}"
        try:
            data.load(str(path), str(kept), block_size=rng.choice([2, 5, 64]), split=rng.choice(["line", "paragraph", "file"]))
            loaded += 1
        except common.Fail as e:
            assert "\n" not in str(e)
            assert not [f for f in files(kept) if f.endswith(".bin")]
    assert 10 * TIMES < loaded < 140 * TIMES


def test_checkpoint_bytes(world, tmp_path):
    """Bytes changed, cut out, doubled or put in: refused by one sentence, every time."""
    good = open(f"{world}/flexmdm/ckpt.pt", "rb").read()
    rng, path = random.Random(6), str(tmp_path / "ckpt.pt")
    for _ in range(300 * TIMES):
        a, z = sorted(rng.randrange(len(good)) for _ in range(2))
        z = min(z, a + rng.choice([1, 8, 1000, len(good)]))
        bad = rng.choice([lambda: good[:a], lambda: good[a:], lambda: good[:a] + good[z:], lambda: good[:a] + good[a:z] * 2 + good[z:],
                          lambda: good[:a] + rng.randbytes(z - a) + good[z:], lambda: good[:a] + bytes(z - a) + good[z:], lambda: good + good[a:z]])()
        if bad == good:
            continue
        with open(path, "wb") as f:
            f.write(bad)
        with pytest.raises(common.Fail) as fault:
            model.load(path)
        assert path in str(fault.value) and "\n" not in str(fault.value)
