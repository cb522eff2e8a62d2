"""sample.py and checkpoint.load(..).generate from end to end, with tiny random networks: prompts
are kept, holes are filled, seeds repeat, pictures are written, a mistake is one sentence."""
import json
import os
import re
from dataclasses import asdict

import pytest
import torch
from PIL import Image

import checkpoint
import data
import sample
from common import Fail
from model import Config, Transformer
from train import METHODS

METHODS_ELL = {"flexmdm": 1, "flexprime": 2, "mdm": 1, "prime": 2, "ar": 1}
INSERTING = ("flexmdm", "flexprime")
V, BLOCK_SIZE = 50, 24


def save_random(folder, method, tokenizer=f"numbers-{V}"):
    """A checkpoint of a tiny network with random weights; its texts are numbers, '3 14 15'"""
    torch.manual_seed(1)
    tokenizer = data.tokenizer_from(tokenizer)
    config = Config(tokenizer.vocab_size, METHODS_ELL[method], BLOCK_SIZE, METHODS[method],
                    causal=method == "ar", n_layer=1, n_head=2, n_embd=16, n_cond=8)
    net = Transformer(config)
    weights = {name: 0.2 * torch.randn(p.shape) for name, p in net.named_parameters()}
    if "gap.down.bias" in weights:                              # few tokens are missing in a gap
        weights["gap.down.bias"].fill_(-1.5)
    args = dict(method=method, insertion=METHODS[method], unmasking="linear")
    checkpoint.save(folder, step=1, model=weights, ema=weights, config=asdict(config), args=args,
                    tokenizer=tokenizer.spec(), permutation=None, base=None)
    return str(folder)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """method -> the folder of its run"""
    folder = tmp_path_factory.mktemp("runs")
    return {method: save_random(folder / method, method) for method in METHODS_ELL}


@pytest.fixture
def texts(runs, capsys):
    """texts(method, *flags): what the command prints, a document a line"""
    def run(method, *flags):
        sample.run([f"--out_dir={runs[method]}", "--steps=8", "--device=cpu", *flags])
        return capsys.readouterr().out.splitlines()
    return run


def numbers(text):
    return [int(word) for word in text.split()]


# -----------------------------------------------------------------------------
# documents

@pytest.mark.parametrize("method", METHODS_ELL)
def test_documents_of_every_method(texts, method):
    lines = texts(method, "--num_samples=7", "--batch_size=3")
    assert len(lines) == 7 and len(set(lines)) > 2
    for line in lines:
        assert len(numbers(line)) <= BLOCK_SIZE and all(v < V - 1 for v in numbers(line))


@pytest.mark.parametrize("method", METHODS_ELL)
def test_a_seed_repeats_and_another_does_not(texts, method):
    first = texts(method, "--num_samples=4", "--seed=5")
    assert first == texts(method, "--num_samples=4", "--seed=5")
    assert first != texts(method, "--num_samples=4", "--seed=6")


@pytest.mark.parametrize("method", METHODS_ELL)
def test_a_prompt_is_kept(texts, method):
    lines = texts(method, "--prompt=7 3 9", "--num_samples=6")
    assert len(lines) == 6 and all(numbers(line)[:3] == [7, 3, 9] for line in lines)
    assert any(len(numbers(line)) > 3 for line in lines)


@pytest.mark.parametrize("method", INSERTING)
@pytest.mark.parametrize("sampler", ("parallel", "exact"))
def test_holes_are_filled_and_given_text_is_unchanged(texts, method, sampler):
    flags = ["--infill=7 3[..]9 9[..]", f"--sampler={sampler}", "--num_samples=12", "--steps=40"]
    lines = texts(method, *flags)
    assert all(re.match(r"7 3 (.+ )?9 9\b", line) for line in lines)
    sizes = {len(numbers(line)) - 4 for line in lines}
    assert len(sizes) > 1 and max(sizes) >= 2                   # holes of any size


@pytest.mark.parametrize("method", ("mdm", "prime"))
def test_a_hole_of_a_fixed_canvas_has_the_size_it_says(runs, method):
    loaded = checkpoint.load(runs[method])
    x, n = loaded.documents(5, loaded.start(infill="7 3[..4]9[..2]8"), steps=6)
    end = loaded.tokenizer.eot
    for row in x[:, :n[0]].tolist():
        assert row[:2] == [7, 3] and row[6] == 9 and row[9:] == [8] + [end] * (BLOCK_SIZE - 10)


@pytest.mark.parametrize("method", ("flexprime", "prime"))
@pytest.mark.parametrize("sampler", ("parallel", "exact"))
@pytest.mark.parametrize("order", ("top_prob", "left_to_right"))
def test_samplers_and_orders(texts, method, sampler, order):
    flags = [f"--sampler={sampler}", f"--order={order}", "--num_samples=2", "--temperature=0.5"]
    assert len(texts(method, *flags)) == 2


def test_other_schedules_and_a_window(texts):
    flags = ["--insertion=sin", "--unmasking=cosine", "--window=2", "--num_samples=2"]
    assert len(texts("flexmdm", *flags)) == 2


def test_temperature_zero_and_one_order_leave_nothing_to_chance(texts):
    flags = ["--temperature=0", "--order=left_to_right", "--num_samples=4"]
    assert len(set(texts("mdm", *flags))) == 1


def test_save(texts, tmp_path):
    said = texts("flexmdm", "--num_samples=5", "--batch_size=2", f"--save={tmp_path}/s.jsonl")
    saved = [json.loads(line)["text"] for line in open(tmp_path / "s.jsonl")]
    assert len(saved) == 5 and "5 documents" in said[-1] and len(said) == 4         # with progress
    assert saved == texts("flexmdm", "--num_samples=5", "--batch_size=2")


def test_bytes_that_are_no_text_are_shown_all_the_same(tmp_path, capsys):
    folder = save_random(tmp_path, "flexmdm", "bytes")
    sample.run([f"--out_dir={folder}", "--steps=4", "--num_samples=3", "--prompt=\u00e9t\u00e9 "])
    assert capsys.readouterr().out.count("\u00e9t\u00e9 ") == 3
    sample.run([f"--out_dir={folder}", "--steps=4", f"--trace={tmp_path}/t.gif"])


# -----------------------------------------------------------------------------
# pictures

@pytest.mark.parametrize("method", METHODS_ELL)
def test_trace_and_show(texts, tmp_path, method):
    path = str(tmp_path / "t.gif")
    lines = texts(method, f"--trace={path}", "--show", "--num_samples=2", "--prompt=7 3")
    with Image.open(path) as picture:
        assert picture.format == "GIF" and picture.n_frames > 2
    assert lines[0].startswith("t = ") and lines[-1].startswith(path)
    assert not any("\033" in line for line in lines)            # this is no terminal
    assert method == "ar" or any("\u2588" in line for line in lines)
    assert "\u2588" not in lines[-2] + lines[-3]               # the last frame holds no mask


def test_what_is_traced_is_what_is_printed(texts, tmp_path):
    plain = texts("flexmdm", "--num_samples=3")
    assert texts("flexmdm", "--num_samples=3", f"--trace={tmp_path}/t.gif")[:3] == plain


# -----------------------------------------------------------------------------
# from Python

def test_generate_in_three_ways(runs):
    loaded = checkpoint.load(runs["flexmdm"])
    assert len(loaded.generate(num_samples=4, steps=8)) == 4
    assert all(text.startswith("7 3") for text in loaded.generate(prompt="7 3", steps=8))
    filled, = loaded.generate(infill="[..]7 3[..]", steps=8)
    assert re.fullmatch(r"\d+ (.+ )?7 3( .+)?", filled)


def test_a_checkpoint_is_named_by_its_file_or_its_folder(runs):
    by_folder = checkpoint.load(runs["mdm"]).generate(seed=3, steps=4)
    by_file = checkpoint.load(os.path.join(runs["mdm"], "ckpt.pt")).generate(seed=3, steps=4)
    assert by_folder == by_file


def test_an_autoregressive_model_needs_no_settings(runs):
    loaded = checkpoint.load(runs["ar"])
    x, n = loaded.documents(2, loaded.start("7 3"))
    assert x[:, :2].tolist() == [[7, 3]] * 2 and (n >= 2).all()


# -----------------------------------------------------------------------------
# mistakes

LONG = " ".join(["7"] * BLOCK_SIZE)


@pytest.mark.parametrize("method, flags, said", [
    ("flexmdm", ["--infill=7 3"], r"has no hole: mark each place to fill with \[\.\.\]"),
    ("flexmdm", ["--prompt=7", "--infill=3[..]"], "give one"),
    ("flexmdm", [f"--prompt={LONG}"], "no room in the model's block_size of 24"),
    ("flexmdm", [f"--infill={LONG}[..]"], "no room"),
    ("flexmdm", ["--insertion=instant"], "does not go with"),
    ("flexmdm", ["--insertion=lineal"], "lineal"),
    ("flexmdm", ["--unmasking=none"], "none"),
    ("flexmdm", ["--order=best"], "invalid choice"),
    ("flexmdm", ["--sampler=ddpm"], "invalid choice"),
    ("flexmdm", ["--steps=0"], "must be between 1"),
    ("flexmdm", ["--temperature=-1"], "must be between 0"),
    ("flexmdm", ["--temperature=nan"], "must be between 0"),
    ("flexmdm", ["--trace=x.mp4"], "must end in .gif"),
    ("flexmdm", ["--save=s.jsonl", "--show"], "give one"),
    ("flexmdm", ["--prompt=word"], "whole numbers below 49"),
    ("flexmdm", ["--promt=7"], "did you mean --prompt?"),
    ("mdm", ["--infill=7[..]3"], r"as in \[\.\.5\]"),
    ("mdm", ["--infill=7[..99]3"], "no room"),
    ("mdm", ["--infill=7[..999999999999]3"], "no room"),
    ("mdm", ["--insertion=linear"], "does not go with"),
    ("ar", ["--infill=7[..]3"], "cannot fill holes"),
])
def test_a_mistake_is_one_sentence(texts, method, flags, said):
    with pytest.raises(Fail, match=said) as fault:
        texts(method, *flags)
    assert "\n" not in str(fault.value)


def test_what_is_no_checkpoint(runs, tmp_path):
    whole = open(os.path.join(runs["mdm"], "ckpt.pt"), "rb").read()
    (tmp_path / "cut.pt").write_bytes(whole[:5000])
    (tmp_path / "empty.pt").write_bytes(b"")
    cases = [("cut.pt", "damaged"), ("empty.pt", "damaged"), ("none", "train one"),
             ("none.pt", "train one")]
    for name, said in cases:
        with pytest.raises(Fail, match=said):
            sample.run([f"--out_dir={tmp_path / name}"])


def test_a_file_that_cannot_be_written(texts, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    for flag in (f"--save={tmp_path}/file/s.jsonl", f"--trace={tmp_path}/file/t.gif"):
        with pytest.raises(Fail, match="cannot write"):
            texts("flexmdm", "--num_samples=1", flag)
