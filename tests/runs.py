"""Tiny runs of train.py for the tests: in this process, in forked ones, and in a shell."""
import contextlib
import csv
import io
import os
import random
import socket
import subprocess
import sys

import torch

import checkpoint
import common
import data
import train

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TINY = ["--n_layer=1", "--n_head=2", "--n_embd=16", "--batch_size=8", "--block_size=24",
        "--max_iters=6", "--eval_interval=3", "--eval_iters=1", "--log_interval=1",
        "--warmup_iters=2", "--sample_steps=0", "--device=cpu"]
QUICK = {**os.environ, "OMP_NUM_THREADS": "1"}


def write_lines(folder, seed=0):
    """A small data set of short lines, in bytes -> the flag that trains on it"""
    rng = random.Random(seed)
    words = ["for", "x", "in", "range", "(3):", "pass", "y", "=", "1"]
    lines = sorted({" ".join(rng.choices(words, k=rng.randint(1, 5)))[:20] for _ in range(300)})
    with contextlib.redirect_stdout(io.StringIO()):
        data.write_texts(str(folder), lines[:-40], lines[-40:], "bytes", made={})
    return f"--dataset={folder}"


def write_ids(folder, documents, V=8, given=None, **more):
    """A data set of ids below V - 1; its end token is V - 1, not 0. -> data.load's Dataset"""
    given = given or [None] * len(documents)
    rows = list(zip(documents, given))
    with contextlib.redirect_stdout(io.StringIO()):
        tokenizer = data.tokenizer_from(f"numbers-{V}")
        data.write(str(folder), {"train": rows, "val": rows}, tokenizer, made={}, **more)
    return data.load(str(folder), block_size=more.get("block_size", 12))


def quietly(run, argv):
    """Run a script's main function in this process: what it printed, and its Fail's sentence"""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            run(argv)
        except common.Fail as e:
            return out.getvalue(), str(e)
    return out.getvalue(), None


def trained(out_dir, dataset, *flags):
    """A run of train.py that must succeed -> what it printed"""
    printed, fault = quietly(train.train, [*TINY, dataset, f"--out_dir={out_dir}", *flags])
    assert fault is None, fault
    return printed


def resumed(out_dir, *flags):
    """Go on where a run stopped, with its flags and these -> what it printed"""
    printed, fault = quietly(train.train, [f"--out_dir={out_dir}", "--init_from=resume", *flags])
    assert fault is None, fault
    return printed


def refused(*flags):
    """The one sentence that train.py refuses these flags with"""
    _, fault = quietly(train.train, [*TINY, *flags])
    assert fault is not None and "\n" not in fault
    return fault


def forked(processes, *flags):
    """train.py in that many processes that talk through gloo, as torchrun would start them"""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    children = []
    for rank in range(processes):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                os.environ |= dict(RANK=str(rank), LOCAL_RANK=str(rank), MASTER_PORT=str(port),
                                   WORLD_SIZE=str(processes), MASTER_ADDR="127.0.0.1")
                printed, fault = quietly(train.train, list(flags))
                if fault:
                    print(printed, fault, flush=True)
                code = 0 if fault is None else 2
            except BaseException as e:
                print(repr(e), flush=True)
            os._exit(code)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert codes == [0] * processes, codes


def left_with(script, argv):
    """The exit code of a script's main function as a shell would see it"""
    try:
        common.main(lambda: script(argv))
    except SystemExit as e:
        return e.code or 0


def start(script, *flags, **options):
    """A script in a shell of its own: a Popen"""
    options = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=QUICK) | options
    command = [sys.executable, "-u", os.path.join(ROOT, script), *flags]
    return subprocess.Popen(command, cwd=ROOT, **options)


def log_of(folder):
    """log.csv's rows, without the seconds"""
    with open(os.path.join(folder, "log.csv"), newline="") as f:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(f)]


def newest(folder):
    return checkpoint.read(os.path.join(folder, "ckpt.pt"))


def assert_same(a, b):
    """Two runs ended equal to the bit: weights, averages, optimizers, windows, and the two logs."""
    first, second = newest(a), newest(b)
    for part in ("model", "ema"):
        assert first[part].keys() == second[part].keys()
        for name, w in first[part].items():
            assert torch.equal(w, second[part][name]), (part, name)
    for one, other in zip(first["optimizer"], second["optimizer"], strict=True):
        assert one["param_groups"] == other["param_groups"]
        for i, state in one["state"].items():
            assert all(torch.equal(v, other["state"][i][k]) for k, v in state.items())
    assert torch.equal(first["window"], second["window"])
    assert first["window_tokens"] == second["window_tokens"] and first["step"] == second["step"]
    assert log_of(a) == log_of(b)


def assert_close(a, b, tolerance=1e-5):
    """Two runs took the same steps, up to rounding."""
    first, second = newest(a), newest(b)
    assert first["step"] == second["step"]
    for part in ("model", "ema"):
        for name, w in first[part].items():
            assert float((w - second[part][name]).abs().max()) <= tolerance, (part, name)
    for one, other in zip(log_of(a), log_of(b), strict=True):
        for name in ("loss", "unmask", "insert", "val", "gnorm"):
            if one[name]:
                assert abs(float(one[name]) - float(other[name])) <= tolerance * 10, name
