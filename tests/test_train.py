"""The command lines end to end, with tiny sizes: what a user runs, what is left behind, what survives, what bad input gets."""
import contextlib
import csv
import glob
import io
import itertools
import json
import math
import os
import random
import re
import resource
import signal
import subprocess
import sys
import time

import pytest
import torch

import common
import evaluate
import model
import sample
import train
from prime import Code

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TINY = ["--n_layer=1", "--n_head=2", "--n_embd=16", "--batch_size=8", "--block_size=24", "--max_iters=6", "--eval_interval=3", "--eval_iters=1",
        "--log_interval=1", "--warmup_iters=2", "--sample_steps=4", "--device=cpu"]
METHODS = list(train.METHODS)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A small text file of short lines, and the flags that train on it."""
    folder = tmp_path_factory.mktemp("text")
    rng = random.Random(0)
    words = ["for", "x", "in", "range", "(3):", "pass", "y", "=", "1"]
    lines = {" ".join(rng.choices(words, k=rng.randint(1, 5)))[:20] for _ in range(400)}
    (folder / "lines.txt").write_text("\n".join(sorted(lines)))
    return [f"--dataset={folder / 'lines.txt'}", "--split=line", f"--data_dir={folder / 'data'}"]


def quietly(run, argv):
    """Run a script's main function in this process: (what it printed, its Fail or None)."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            run(argv)
        except common.Fail as e:
            return out.getvalue(), str(e)
    return out.getvalue(), None


def trained(out_dir, text, *flags):
    printed, fault = quietly(train.train, [*TINY, *text, f"--out_dir={out_dir}", *flags])
    assert fault is None, fault
    return printed


def start(script, *flags, **options):
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-u", os.path.join(ROOT, script), *flags], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            text=True, cwd=options.pop("cwd", ROOT), env=env, **options)


def same(a, b):
    """Equal to the bit: two checkpoints' weights, averages and optimizer states, and the two logs."""
    first, second = model.read(f"{a}/ckpt.pt"), model.read(f"{b}/ckpt.pt")
    for part in ("model", "ema"):
        assert all(torch.equal(first[part][k], second[part][k]) for k in first[part]), part
    for one, other in zip(first["optimizer"], second["optimizer"], strict=True):
        for i, state in one["state"].items():
            assert all(torch.equal(v, other["state"][i][k]) for k, v in state.items())
    assert open(f"{a}/log.csv", "rb").read() == open(f"{b}/log.csv", "rb").read()
    return True


# ---- the path of a new user ----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("method", METHODS)
def test_train_sample_evaluate(method, text, tmp_path):
    printed = trained(tmp_path, text, f"--method={method}")
    assert "step 6/6 | loss" in printed and "val" in printed
    assert sorted(f for f in os.listdir(tmp_path) if not f.startswith(".")) == ["ckpt-00000003.pt", "ckpt.pt", "log.csv", "loss.png"]
    rows = list(csv.DictReader(open(tmp_path / "log.csv")))
    assert [r["step"] for r in rows if r["loss"]] == [str(i) for i in range(1, 7)] and all(float(r["val"]) > 0 for r in rows if r["val"])

    save = tmp_path / "s.jsonl"
    quietly(sample.run, [f"--out_dir={tmp_path}", "--num_samples=5", "--steps=4", f"--save={save}"])
    lines = [json.loads(line) for line in open(save)]
    assert len(lines) == 5 and all(set(line) == {"text"} and "\0" not in line["text"] for line in lines)

    printed, fault = quietly(evaluate.run, [f"--out_dir={tmp_path}", "--documents=8", "--repeats=1", "--num_samples=4", "--steps=2", text[2],
                                            f"--csv={tmp_path}/e.csv", f"--png={tmp_path}/e.png", f"--dataset={text[0].split('=')[1]}"])
    assert fault is None, fault
    shown = {"ar": "exact", "flexmdm": "tight", "flexprime": "tight", "prime": "no bound", "mdm": "loose"}[method]
    assert shown in printed and os.path.getsize(tmp_path / "e.png") > 1000 and os.path.exists(tmp_path / "e.csv")


def test_commands_in_a_shell(text, tmp_path):
    """Once through real processes: what is printed, and the exit codes."""
    done = start("train.py", *TINY, *text, f"--out_dir={tmp_path}")
    out, err = done.communicate()
    assert done.returncode == 0 and err == "", err
    assert f"done: {tmp_path}/ckpt.pt" in out
    shown = start("sample.py", f"--out_dir={tmp_path}", "--num_samples=1", "--steps=4", "--show", f"--trace={tmp_path}/t.gif")
    out, err = shown.communicate()
    assert shown.returncode == 0 and "t=1.000" in out and "\033[44m" in out
    assert open(tmp_path / "t.gif", "rb").read(6) == b"GIF89a"
    wrong = start("sample.py", "--out_dirr=x")
    out, err = wrong.communicate()
    assert wrong.returncode == 2 and "did you mean --out_dir?" in err and "Traceback" not in err and err.count("\n") == 1


def test_every_hole_of_an_infilling_task_begins_as_a_mask():
    """In x_t at any time, each hole of a document with given text holds a slot; at t near 0 it is one mask."""
    code, n = Code(5), torch.arange(2, 34)
    documents = type("Documents", (), {"__len__": lambda _: 32, "batch": lambda _, ids: (torch.randint(5, (32, 40)), n, None)})()
    args = train.Args(infill=1.0, batch_size=32, insertion="linear")
    seen = 0
    for step in range(5):
        batch = train.make_batch(step, documents, code, args, 0)
        for kept, size, length, given, y, t in zip(batch.noised.kept, batch.noised.n, n, batch.frozen, batch.noised.y, batch.t):
            here = set(kept[:size].tolist())
            holes = [list(run) for free, run in itertools.groupby(range(int(length)), lambda k: not given[k]) if free]
            if given.any():
                assert all(here & set(hole) for hole in holes)
                seen += len(holes)
                if t < 0.01:
                    assert size - given.sum() == (y[:size, 0] == code.mask).sum() == len(holes)
    assert seen > 100


def test_prompts_and_holes(text, tmp_path):
    trained(tmp_path, text)
    save = tmp_path / "p.jsonl"
    quietly(sample.run, [f"--out_dir={tmp_path}", "--num_samples=8", "--steps=6", "--prompt=for x", f"--save={save}"])
    texts = [json.loads(line)["text"] for line in open(save)]
    assert len(texts) == 8 and all(t.startswith("for x") and 5 < len(t) <= 24 for t in texts) and len(set(texts)) > 1
    save = tmp_path / "s.jsonl"
    quietly(sample.run, [f"--out_dir={tmp_path}", "--num_samples=20", "--steps=6", "--infill=x[..] in [..]:", f"--save={save}"])
    texts = [json.loads(line)["text"] for line in open(save)]
    assert all(re.fullmatch("x.+ in .+:", t, re.DOTALL) and len(t) <= 24 for t in texts)                     # every hole holds something


def test_samples_repeat_and_do_not_depend_on_the_batch(text, tmp_path):
    trained(tmp_path, text)
    runs = [quietly(sample.run, [f"--out_dir={tmp_path}", "--num_samples=7", "--steps=8", "--seed=3", f"--batch_size={b}"])[0] for b in (7, 3, 1, 7)]
    assert runs[0] == runs[1] == runs[2] == runs[3] != quietly(sample.run, [f"--out_dir={tmp_path}", "--num_samples=7", "--steps=8", "--seed=4"])[0]


# ---- the optimizer -------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("shape", [(16, 16), (8, 40), (40, 8)])
def test_muon_moves_along_the_orthogonal_factor(shape):
    """One step from rest: the momentum of a first gradient G is 0.05 G, and Nesterov's look ahead a multiple of G too, so the step is along its U V^T."""
    G = torch.randn(shape)
    u, s, v = torch.linalg.svd(G, full_matrices=False)
    factor = u.T @ train.orthogonal(G) @ v.T
    assert (factor - factor.diag().diag()).abs().max() < 1e-4          # the same singular vectors,
    assert factor.diag()[s > 0.05 * s[0]].min() > 0.3 and factor.diag().max() < 1.6            # singular values near one
    p = torch.nn.Parameter(torch.zeros(shape))
    muon = train.Muon([p], lr=0.1)
    p.grad, muon.found_inf = G, torch.tensor(0.0)
    muon.step()
    assert torch.allclose(p.detach(), -0.1 * 0.2 * max(shape) ** 0.5 * train.orthogonal(G), atol=1e-4)


def test_a_step_that_is_not_finite_changes_nothing():
    net = torch.nn.ModuleDict({"blocks": torch.nn.ModuleList([torch.nn.Linear(4, 6)]), "head": torch.nn.Linear(6, 3)})
    args = train.Args(optimizer="muon")
    optimizers = train.optimizers_for(net, args)
    assert sum(p.numel() for p in optimizers[1].param_groups[0]["params"]) == 24               # the matrix of the block, and nothing else

    def step(bad):
        net["head"](net["blocks"][0](torch.randn(5, 4))).sum().backward()
        if bad:
            net["head"].bias.grad[1] = bad
        return train.apply_gradients(net, optimizers, 0.1, 1.0)
    step(0)
    before, state = [p.clone() for p in net.parameters()], [{k: v.clone() for k, v in of.items()} for o in optimizers for of in o.state.values()]
    for bad in (float("nan"), float("inf")):
        assert not math.isfinite(step(bad))
    after = [of for o in optimizers for of in o.state.values()]
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters())) and all(torch.equal(a[k], b[k]) for a, b in zip(state, after) for k in a)
    step(0)
    assert not all(torch.equal(a, b) for a, b in zip(before, net.parameters()))


# ---- resume, faults, processes -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("method", METHODS)
def test_resume_is_exact(method, text, tmp_path):
    """Six steps straight, and in pieces of 2, 2 and 2 (the learning rate schedule is that of six): equal to the bit."""
    flags = [f"--method={method}", "--eval_interval=3", "--log_interval=4"]
    trained(tmp_path / "a", text, *flags)
    real = train.make_batch

    def stop_after(steps):
        def batch(step, *rest):
            if step == steps and rest[2].infill == 0.1:                # the training batches, not validation's
                os.kill(os.getpid(), signal.SIGTERM)
            return real(step, *rest)
        return batch

    for i, last in enumerate((1, 3, 99)):
        train.make_batch = stop_after(last)
        try:
            printed = trained(tmp_path / "b", text, *flags, *["--init_from=resume"] * (i > 0))
        finally:
            train.make_batch = real
        assert ("--init_from resume" in printed) == (last < 99)
    assert same(tmp_path / "a", tmp_path / "b")


def torchrun(processes, *flags):
    run = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}",
                          os.path.join(ROOT, "train.py"), *flags], capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert run.returncode == 0, run.stderr
    return run.stdout


def nearly_same(a, b, tolerance=1e-5):
    first, second = model.read(a / "ckpt.pt"), model.read(b / "ckpt.pt")
    for part in ("model", "ema"):
        assert max(float((first[part][k] - second[part][k]).abs().max()) for k in first[part]) <= tolerance
    logs = [[float(r["loss"]) for r in csv.DictReader(open(d / "log.csv")) if r["loss"]] for d in (a, b)]
    assert logs[0] == pytest.approx(logs[1], abs=tolerance) and len(logs[0]) == 6
    return True


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_two_processes_take_the_same_steps_as_one(optimizer, text, tmp_path):
    """The same documents, times and noise, so the same loss, weights and averages, whatever is split over what."""
    flags = ["--gradient_accumulation_steps=2", f"--optimizer={optimizer}"]
    trained(tmp_path / "one", text, *flags)
    torchrun(2, *TINY, *text, f"--out_dir={tmp_path / 'two'}", *flags)
    assert nearly_same(tmp_path / "one", tmp_path / "two")


def test_sharded_over_two_processes(text, tmp_path):
    """--fsdp: weights, averages and optimizer in two parts; the same steps as one process, also when it is resumed from the whole checkpoint."""
    flags = ["--gradient_accumulation_steps=2", "--optimizer=adamw"]
    trained(tmp_path / "one", text, *flags)
    printed = torchrun(2, *TINY, *text, f"--out_dir={tmp_path / 'two'}", "--fsdp", *flags)
    assert "2 processes" in printed and nearly_same(tmp_path / "one", tmp_path / "two")
    os.remove(tmp_path / "two" / "ckpt.pt")                            # as if it had been stopped after step 3
    torchrun(2, f"--out_dir={tmp_path / 'two'}", "--init_from=resume")
    assert nearly_same(tmp_path / "one", tmp_path / "two")
    quietly(sample.run, [f"--out_dir={tmp_path / 'two'}", "--num_samples=2", "--steps=3"])


def test_sigterm_saves_and_kill_loses_nothing(text, tmp_path):
    """kill -9 at random moments (KILLS=20: so many), one SIGTERM, and resume after each: the end is that of a run that was left alone."""
    kills = int(os.environ.get("KILLS", 5))
    flags = [*TINY, *text, f"--max_iters={5 * kills}", "--eval_interval=5", "--sample_steps=0", "--log_interval=1"]
    assert start("train.py", *flags, f"--out_dir={tmp_path / 'a'}").wait() == 0
    rng, killed = random.Random(1), 0
    for attempt in range(10 * kills):
        again = glob.glob(f"{tmp_path}/b/ckpt*.pt")
        run = start("train.py", *flags, f"--out_dir={tmp_path / 'b'}", *(["--init_from=resume"] if again else ["--overwrite"]))
        steps = rng.randint(3, 12) if killed < kills else -1
        for line in run.stdout:                                        # let it come some steps further, and some moments more
            steps -= steps > 0 and "| loss" in line
            if steps == 0:
                time.sleep(rng.random() / 50)
                run.send_signal(signal.SIGTERM if attempt == 2 else signal.SIGKILL)
                steps = -1                                             # once: a second SIGTERM would end it without saving
        killed += run.wait() == -signal.SIGKILL
        if run.returncode == 0 and attempt != 2:
            break
        assert attempt != 2 or run.returncode == 0
    assert same(tmp_path / "a", tmp_path / "b")
    print(f"killed {killed} times")
    assert killed >= kills / 2


def test_sigterm_under_torchrun_saves(text, tmp_path):
    """The launcher passes the signal on; the processes finish the step together, save, and can be resumed to the same end, to the bit."""
    flags = [*TINY, *text, "--max_iters=30", "--eval_interval=100", "--sample_steps=0"]
    torchrun(2, *flags, f"--out_dir={tmp_path / 'a'}")
    run = subprocess.Popen([sys.executable, "-u", "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", os.path.join(ROOT, "train.py"), *flags,
                            f"--out_dir={tmp_path / 'b'}"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    said = []
    for line in run.stdout:
        said.append(line)
        if line.startswith("step 5/"):
            run.send_signal(signal.SIGTERM)
    run.wait()
    assert "go on with: torchrun --nproc_per_node=2 train.py --init_from resume" in "".join(said)
    assert 5 <= model.read(tmp_path / "b" / "ckpt.pt")["step"] < 30
    torchrun(2, f"--out_dir={tmp_path / 'b'}", "--init_from=resume")
    assert model.read(tmp_path / "b" / "ckpt.pt")["step"] == 30 and same(tmp_path / "a", tmp_path / "b")


def test_a_full_disk_leaves_the_last_checkpoint(text, tmp_path):
    """A limit on the size of files stands in for a full disk: one sentence, and what was saved before is whole; the log may be on the full disk, too."""
    trained(tmp_path, text)
    before = open(tmp_path / "ckpt.pt", "rb").read()
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, len(before) // 2))
    run = start("train.py", f"--out_dir={tmp_path}", "--init_from=resume", "--max_iters=9", preexec_fn=limit)
    out, err = run.communicate()
    assert run.returncode == 2 and "the disk is full" in err and "Traceback" not in err and err.count("\n") == 1, err
    assert open(tmp_path / "ckpt.pt", "rb").read() == before and not [f for f in os.listdir(tmp_path) if f.startswith(".") and f != ".lock"]
    with open("/dev/full", "w") as full:
        run = subprocess.run([sys.executable, os.path.join(ROOT, "train.py"), f"--out_dir={tmp_path}", "--init_from=resume", "--max_iters=9"], stdout=full,
                             stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert run.returncode == 0 and model.read(tmp_path / "ckpt.pt")["step"] == 9, run.stderr


def test_memory_is_flat_over_5000_steps(text, tmp_path):
    """Resident size after 1,000 steps and after 5,000, with validation, samples and checkpoints between; the files stay small."""
    run = start("train.py", *TINY, *text, f"--out_dir={tmp_path}", "--max_iters=5000", "--log_interval=500", "--eval_interval=1000")
    size = {}
    for line in run.stdout:
        if line.startswith(("step 1500/", "step 5000/")) and "| loss" in line:
            size[line.split("/")[0]] = int(next(l for l in open(f"/proc/{run.pid}/status") if l.startswith("VmRSS")).split()[1]) / 1024
    assert run.wait() == 0 and len(size) == 2
    assert size["step 5000"] < size["step 1500"] + 20, size            # MB
    assert os.path.getsize(tmp_path / "log.csv") < 5_000 and os.path.getsize(tmp_path / "loss.png") < 100_000


def test_a_damaged_checkpoint_is_stepped_over(text, tmp_path):
    trained(tmp_path, text)
    with open(tmp_path / "ckpt.pt", "r+b") as f:
        f.seek(2000)
        f.write(b"\xff" * 8)
    printed, fault = quietly(train.train, [*TINY, *text, f"--out_dir={tmp_path}", "--init_from=resume"])
    assert fault is None and "damaged" in printed and "going on from the older" in printed and "step 6/6" in printed


def test_a_non_finite_gradient_never_reaches_the_weights(text, tmp_path):
    printed, fault = quietly(train.train, [*TINY, *text, f"--out_dir={tmp_path}", "--learning_rate=1e30", "--max_iters=20"])
    assert fault is not None and "is not finite" in fault and "--learning_rate" in fault
    for path in glob.glob(f"{tmp_path}/*.pt"):
        assert all(torch.isfinite(v).all() for v in model.read(path)["model"].values())


def test_one_run_per_folder(text, tmp_path):
    trained(tmp_path, text)
    _, fault = quietly(train.train, [*TINY, *text, f"--out_dir={tmp_path}"])
    assert "holds a run" in fault and "--overwrite" in fault
    held = common.lock(tmp_path)
    _, fault = quietly(train.train, [*TINY, *text, f"--out_dir={tmp_path}", "--init_from=resume"])
    assert "another run is writing" in fault
    held.close()
    trained(tmp_path, text, "--overwrite")


def test_initial_weights_from_a_checkpoint(text, tmp_path):
    trained(tmp_path / "a", text)
    printed = trained(tmp_path / "b", text, f"--init_from={tmp_path / 'a' / 'ckpt.pt'}")
    assert "step 6/6" in printed
    _, fault = quietly(train.train, [*TINY, *text, f"--out_dir={tmp_path / 'c'}", f"--init_from={tmp_path / 'a' / 'ckpt.pt'}", "--n_layer=2"])
    assert "n_layer" in fault


def test_a_fixed_canvas_can_become_one_with_insertion(text, tmp_path):
    """The retrofit of FlexMDM in small: all weights of an MDM are kept, the gap head is new."""
    trained(tmp_path / "mdm", text, "--method=mdm")
    trained(tmp_path / "flex", text, f"--init_from={tmp_path / 'mdm' / 'ckpt.pt'}", "--learning_rate=0")
    mdm, flex = (model.read(tmp_path / d / "ckpt.pt") for d in ("mdm", "flex"))
    assert all(torch.equal(flex["model"][k], v) for k, v in mdm["ema"].items())
    assert {k.split(".")[0] for k in flex["model"].keys() - mdm["ema"].keys()} == {"gap"}


# ---- bad input: one sentence, exit code 2, nothing half-written -----------------------------------------------------------------------

BAD = {
    "--batch_sise=4": "did you mean --batch_size?",
    "--batch_size=four": "invalid int value",
    "--method=flexdm": "invalid choice",
    "--dataset=nosuch": "nosuch",
    "--dataset=/nosuch.txt": "/nosuch.txt",
    "--block_size=1": "--block_size 1 must be at least 2",
    "--n_head=3": "--n_embd",
    "--unmasking=linaer": "unknown schedule",
    "--unmasking=instant": "nothing to learn",
    "--insertion=instant": "leave --insertion instant out",
    "--ell=2": "--method flexprime",
    "--method=prime --ell=3": "must divide --n_embd",
    "--method=prime --ell=-1": "at least 0",
    "--method=flexprime --ell=16": "lower ell",
    "--method=flexmdm --packing=stream": "--packing stream",
    "--gradient_accumulation_steps=3": "divisible",
    "--init_from=/nosuch/ckpt.pt": "there is no checkpoint",
    "--init_from=resume": "there is no checkpoint",
    "--device=cuda": "--device cpu",
    "--max_iters=0": "--max_iters 0 must be at least 1",
}


@pytest.mark.parametrize("flags", BAD)
def test_bad_flags_of_train(flags, text, tmp_path):
    if "cuda" in flags and torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    tiny = [f for f in TINY if f.split("=")[0] not in flags]
    printed, fault = quietly(train.train, [*tiny, *(f for f in text if f.split("=")[0] not in flags), f"--out_dir={tmp_path / 'out'}", *flags.split()])
    assert fault is not None and BAD[flags] in fault and "\n" not in fault
    assert not glob.glob(f"{tmp_path}/out/*.pt")


@pytest.mark.parametrize("flags, expected", [
    (["--method", "flexmdm"], ("sin", 0.0, 64)), (["--method", "mdm"], ("instant", 0.0, 64)),
    (["--insertion", "linear", "--infill", "0.1", "--n_embd", "32"], ("linear", 0.1, 32)),
])
def test_a_preset_gives_way_to_the_method_and_to_flags(flags, expected):
    args = common.parse(train.Args, "", ["--dataset", "brackets", *flags])
    train.check(args)
    assert (args.insertion, args.infill, args.n_embd) == expected


def test_changed_flags_on_resume(text, tmp_path):
    trained(tmp_path, text)
    for flags, said in (("--n_embd=32", "--n_embd 32 differs"), ("--method=mdm", "--method mdm differs"), ("--seed=7", "--seed 7 differs")):
        _, fault = quietly(train.train, [f"--out_dir={tmp_path}", "--init_from=resume", flags])
        assert said in fault
    printed, fault = quietly(train.train, [f"--out_dir={tmp_path}", "--init_from=resume", "--max_iters=8", "--learning_rate=1e-4"])
    assert fault is None and "step 8/8" in printed


def test_bad_input_of_sample(text, tmp_path):
    trained(tmp_path / "flex", text)
    trained(tmp_path / "mdm", text, "--method=mdm")
    (tmp_path / "cut.pt").write_bytes(open(tmp_path / "flex" / "ckpt.pt", "rb").read()[:5000])
    for flags, said in ((["--infill=for x"], "[..]"), (["--prompt=" + "x" * 99], "no room"), (["--order=best"], "invalid choice"),
                        (["--steps=0"], "at least 1"), (["--temperature=-1"], "at least 0"), (["--prompt=a", "--infill=b[..]"], "give one"),
                        ([f"--out_dir={tmp_path / 'cut.pt'}"], "damaged"), ([f"--out_dir={tmp_path / 'none'}"], "there is no checkpoint"),
                        ([f"--out_dir={tmp_path / 'mdm'}", "--infill=a[..]b"], "fixed canvas"), (["--trace=x.mp4"], "must end in .gif"),
                        ([f"--save={tmp_path}/lines.txt/s.jsonl"], "cannot write"), (["--insertion=instant"], "trained with insertion")):
        (tmp_path / "lines.txt").write_text("a file, not a folder")
        _, fault = quietly(sample.run, [f"--out_dir={tmp_path / 'flex'}", "--num_samples=2", "--steps=2", *flags])
        assert fault is not None and said in fault and "\n" not in fault, (flags, fault)
