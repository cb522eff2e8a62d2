"""A retrofit from end to end, by its commands: train.py --init_from FOLDER, resume, sample.py,
retrofit/export.py, and on from what was exported. The pretrained model is tiny and random."""
import json
import math
import os
import subprocess
import sys

import pytest
import torch

import checkpoint
import common
import data
import prime
import sample
import train
from common import Fail
from hub import CONFIG, tokenizer_json, write_llada
from retrofit import export, llada, safetensors

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
V, END, MASK = 260, 257, 258


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with a pretrained model that reads bytes, base/, and tasks, sums.jsonl"""
    folder = tmp_path_factory.mktemp("retrofit")
    config = {**CONFIG, "vocab_size": V, "embedding_size": V, "mask_token_id": MASK,
              "eos_token_id": END, "pad_token_id": None}
    write_llada(folder / "base", config)
    content = tokenizer_json([], ["<|x|>", "<|endoftext|>", "<|mask|>"])
    (folder / "base" / "tokenizer.json").write_text(json.dumps(content))
    sums = [{"question": f"{a}+{b}?", "answer": f"{a + b}\n#### {a + b}"}
            for a in range(12) for b in range(12)]
    (folder / "sums.jsonl").write_text("\n".join(map(json.dumps, sums)))
    return folder


def flags(world, out, **changes):
    """What train.py is given; a change replaces a flag."""
    settings = dict(batch_size=4, block_size=48, max_iters=4, eval_interval=2, eval_iters=1,
                    log_interval=1, warmup_iters=1, sample_steps=3, device="cpu", lora=4,
                    learning_rate=1e-2, init_from=world / "base", dataset=world / "sums.jsonl",
                    data_dir=world / "data", out_dir=world / out, **{"compile": False})
    return [f"--{name}={value}" for name, value in {**settings, **changes}.items()]


def trained(world, out, **changes):
    """A run of four steps -> its folder"""
    train.train(flags(world, out, **changes))
    return world / out


@pytest.fixture(scope="module", params=["flexmdm", "mdm"])
def run(world, request):
    return trained(world, request.param, method=request.param)


def question(masks=5):
    """A document of masks alone, all asked for"""
    y = torch.full((1, masks, 1), V)
    return y, torch.tensor([masks]), torch.tensor([0.5]), torch.ones(1, masks, dtype=torch.bool)


def same_answers(a, b):
    keep = torch.arange(V) != MASK
    given = torch.arange(5)[None] < 2
    (z, g), (z2, g2) = a.predict(*question(), given), b.predict(*question(), given)
    return torch.allclose(z[:, keep], z2[:, keep], atol=1e-4) and (
        g is g2 is None or torch.allclose(g, g2, atol=1e-4))


def test_adapters_alone_are_trained_and_saved(world, run):
    before = (world / "base" / "model.safetensors").read_bytes()
    content = checkpoint.read(run / "ckpt.pt")
    names = {name.split(".")[0] for name in content["model"]}
    new = {"time", "shared", "gap", "given"} if run.name == "flexmdm" else set()
    assert names == {"blocks", "head"} | new and {"head.a", "blocks.1.v.b"} <= set(content["model"])
    assert not {"head.weight", "blocks.0.q.weight", "blocks.0.up.weight"} & set(content["model"])
    assert content["base"] == str(world / "base")
    assert all(w.any() for w in content["model"].values())                  # no parameter is idle

    loaded, base = checkpoint.load(run), llada.load(world / "base")
    assert torch.equal(loaded.net.blocks[0].up.weight, base.blocks[0].up.weight)
    logits, _ = loaded.predict(*question())
    assert logits[:, MASK].eq(-math.inf).all() and logits[:, :MASK].isfinite().all()
    assert (world / "base" / "model.safetensors").read_bytes() == before


def test_a_resumed_retrofit_is_the_same_to_the_bit(world, run):
    method = run.name
    again = trained(world, f"{method}-again", method=method, eval_interval=1, keep=5)
    os.remove(again / "ckpt.pt")                        # as if it had been killed after step 3
    train.train([f"--out_dir={again}", "--init_from=resume"])
    a, b = checkpoint.read(run / "ckpt.pt"), checkpoint.read(again / "ckpt.pt")
    assert a["step"] == b["step"] == 4
    for part in ("model", "ema"):
        assert a[part].keys() == b[part].keys()
        assert all(torch.equal(a[part][name], b[part][name]) for name in a[part])


@pytest.mark.parametrize("method", ["flexmdm", "mdm"])
def test_questions_are_given_and_never_noised(world, method):
    args = common.parse(train.Args, "", flags(world, "unused", method=method, batch_size=8))
    train.settle(args)
    documents = data.load(args.dataset, data_dir=args.data_dir, block_size=args.block_size,
                          tokenizer=args.tokenizer).train
    for step in range(5):
        batch = train.make_batch(step, documents, prime.Code(V), args)
        for row, x in enumerate(batch.x1):
            text = documents.tokenizer.decode(x.tolist())
            asked = len(documents.tokenizer.encode(text.split("?")[0] + "?\n"))
            assert batch.given[row].tolist() == [i < asked for i in range(len(x))]
            assert torch.equal(batch.noised.y[row, :asked, 0], x[:asked])


def test_sample(run, capsys):
    sample.run([f"--out_dir={run}", "--num_samples=2", "--steps=4", "--prompt=1+2?",
                "--device=cpu"])
    assert capsys.readouterr().out.count("1+2?") == 2


def test_sample_from_llada_itself(world, capsys):
    sample.run([f"--out_dir={world / 'base'}", "--num_samples=1", "--steps=4", "--prompt=1+2?",
                "--device=cpu"])
    assert "1+2?" in capsys.readouterr().out


def test_an_exported_folder_gives_the_same_answers_and_a_run_goes_on_from_it(world, run, capsys):
    method, folder = run.name, world / f"{run.name}-exported"
    export.run([str(run / "ckpt.pt"), str(folder)])
    assert "adapters merged" in capsys.readouterr().out
    loaded, back = checkpoint.load(run), checkpoint.load(folder)
    assert same_answers(loaded, back) and back.net.never == [MASK]
    assert (back.tokenizer.vocab_size, back.tokenizer.eot) == (V, END)
    assert back.args["unmasking"] == loaded.args["unmasking"] and back.args["method"] == method
    on = trained(world, f"{method}-on", method=method, init_from=folder)
    assert checkpoint.load(on).net.never == [MASK]
    with pytest.raises(Fail, match="holds a model already"):
        export.run([str(run / "ckpt.pt"), str(folder)])


def test_export_to_the_hubs_layout(world, run):
    """As a command of its own. LLaDA's layout takes an mdm, and nothing else."""
    folder = world / f"{run.name}-hub"
    command = [sys.executable, os.path.join(ROOT, "retrofit", "export.py"), run / "ckpt.pt", folder]
    done = subprocess.run([*command, "--hub"], capture_output=True, text=True)
    if run.name == "flexmdm":
        assert done.returncode == 2 and "export without --hub" in done.stderr
        assert "Traceback" not in done.stderr and not folder.exists()
        return
    assert done.returncode == 0, done.stderr
    ours, theirs = safetensors.read_folder(folder), safetensors.read_folder(world / "base")
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}
    assert same_answers(checkpoint.load(run), checkpoint.load(folder))


def test_any_checkpoint_can_be_exported(world, tmp_path):
    out = trained(world, "scratch", init_from="scratch", tokenizer="bytes", n_layer=1, n_embd=16,
                  n_head=2)
    export.run([str(out), str(tmp_path / "e")])
    loaded, back = checkpoint.load(out), checkpoint.load(tmp_path / "e")
    assert back.tokenizer.name == "bytes" and back.config == loaded.config
    pairs = zip(loaded.net.parameters(), back.net.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("changes, says", [
    ({"method": "prime"}, "goes on as --method flexmdm or mdm"),
    ({"block_size": 65}, "more than the 64 tokens"),
    ({"tokenizer": "bytes"}, "use --tokenizer"),
    ({"insertion": "cosine", "method": "mdm"}, "does not go with")])
def test_bad_input_of_a_retrofit_is_one_sentence(world, changes, says):
    with pytest.raises(Fail, match=says):
        train.train(flags(world, "bad", **changes))
