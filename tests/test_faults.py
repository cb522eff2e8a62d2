"""What happens to a run from outside: kill -9, SIGTERM, full disks, closed pipes, odd terminals;
and a run that diverges. `KILLS=50 pytest tests/test_faults.py -k kill` kills more often."""
import contextlib
import io
import os
import random
import resource
import signal
import subprocess
import sys
import time

import pytest
import torch

import checkpoint
import common
import runs
import sample
import train
from model import Config, Transformer
from runs import (QUICK, ROOT, TINY, assert_same, left_with, log_of, newest, quietly, refused,
                  start, trained)


@pytest.fixture(scope="module")
def lines(tmp_path_factory):
    return runs.write_lines(tmp_path_factory.mktemp("data") / "lines")


def in_a_child(argv):
    """train.train in a forked process, its output in a pipe -> pid, the pipe to read from"""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        with contextlib.suppress(Exception):
            os.close(read)
            os.dup2(write, 1)
            sys.stdout = io.TextIOWrapper(os.fdopen(1, "wb", 0), write_through=True)
            code = left_with(train.train, argv)
        os._exit(code)
    os.close(write)
    return child, os.fdopen(read)


def exit_code(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


# -----------------------------------------------------------------------------
# stopped

def test_kill_loses_nothing(lines, tmp_path):
    """kill -9 at random moments, and resume each time: the end is that of a run left alone."""
    kills = int(os.environ.get("KILLS", 6))
    flags = [*TINY, lines, f"--max_iters={6 * kills}", "--eval_interval=4", "--log_interval=3"]
    trained(tmp_path / "a", lines, *flags)
    rng, killed = random.Random(1), 0
    out = tmp_path / "b"
    for attempt in range(20 * kills):
        again = ["--init_from=resume"] if checkpoint.found(out) else []
        child, printed = in_a_child([*flags, f"--out_dir={out}", *again])
        left = rng.randint(1, 4) if killed < kills else 10 ** 6
        for line in printed:
            left -= "| loss" in line
            if left == 0:
                time.sleep(rng.random() / 10)           # in a step, a validation or a save
                os.kill(child, signal.SIGKILL)
                killed += 1
                break
        printed.close()
        code = exit_code(child)
        assert code in (0, -signal.SIGKILL)
        if code == 0:
            break
    assert killed == kills
    assert_same(tmp_path / "a", out)
    assert not [name for name in os.listdir(out) if name.endswith(".tmp")]


def test_sigterm_saves_in_a_shell(lines, tmp_path):
    """Once as a user sees it: the exit code is 0 and the last line says how to go on."""
    run = start("train.py", *TINY, lines, f"--out_dir={tmp_path}", "--max_iters=100000")
    for line in run.stdout:
        if line.startswith("step 5/"):
            run.send_signal(signal.SIGTERM)
            break
    rest, errors = run.communicate(timeout=60)
    assert run.returncode == 0 and errors == ""
    assert f"go on with --init_from resume --out_dir {tmp_path}" in rest
    assert newest(tmp_path)["step"] >= 5 and log_of(tmp_path)[-1]["step"] >= "5"


def test_a_second_sigterm_ends_a_run_at_once(lines, tmp_path, monkeypatch):
    codes = []
    monkeypatch.setattr(os, "_exit", codes.append)
    stop = common.Stop()
    os.kill(os.getpid(), signal.SIGTERM)
    assert stop.asked and codes == []
    os.kill(os.getpid(), signal.SIGTERM)
    assert codes == [128 + signal.SIGTERM]


def test_sigterm_during_samples_is_obeyed(lines, tmp_path, monkeypatch):
    """The samples are finished, then one more step, and the run is saved and can be resumed."""
    flags = ["--sample_steps=3", "--eval_interval=2"]
    trained(tmp_path / "a", lines, *flags)
    real = checkpoint.Loaded.generate

    def generate(*args, **more):
        os.kill(os.getpid(), signal.SIGTERM)
        return real(*args, **more)
    monkeypatch.setattr(checkpoint.Loaded, "generate", generate)
    printed = trained(tmp_path / "b", lines, *flags)
    assert "stopped after step 3" in printed
    monkeypatch.setattr(checkpoint.Loaded, "generate", real)
    runs.resumed(tmp_path / "b")
    assert_same(tmp_path / "a", tmp_path / "b")


def test_sigterm_under_torchrun(lines, tmp_path):
    """The launcher passes it on; all processes leave at the same step, and are resumed to the same
    end, to the bit."""
    flags = [*TINY, lines, "--max_iters=150", "--eval_interval=1000"]
    out = f"--out_dir={tmp_path / 'b'}"
    command = [sys.executable, "-u", "-m", "torch.distributed.run", "--standalone",
               "--nproc_per_node=2", os.path.join(ROOT, "train.py"), *flags, out]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                           env=QUICK)
    said = []
    for line in run.stdout:
        said.append(line)
        if line.startswith("step 5/"):
            run.send_signal(signal.SIGTERM)
    run.wait()
    assert "stopped after step" in "".join(said)
    assert 5 <= newest(tmp_path / "b")["step"] < 150
    runs.forked(2, *flags, f"--out_dir={tmp_path / 'a'}")
    runs.forked(2, out, "--init_from=resume")
    assert_same(tmp_path / "a", tmp_path / "b")


def test_what_kills_left_behind_is_removed_by_the_next_run(lines, tmp_path):
    left = [".ckpt.pt.k1.tmp", ".log.csv.k2.tmp", ".loss.png.k3.tmp"]
    for name in left:
        (tmp_path / name).write_bytes(b"half")
    refused("--dataset=nosuch", f"--out_dir={tmp_path}")
    assert not [name for name in os.listdir(tmp_path) if name.endswith(".tmp")]


# -----------------------------------------------------------------------------
# the disk, the terminal

@pytest.fixture
def small_files():
    """small_files(size): no file may grow larger, as on a full disk"""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(size):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    yield limit
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.9])
def test_a_full_disk_leaves_the_last_checkpoint(share, lines, tmp_path, small_files, capsys):
    """One sentence, exit code 2, and what was saved before is whole."""
    trained(tmp_path, lines)
    before = (tmp_path / "ckpt.pt").read_bytes()
    small_files(int(share * len(before)))
    resume = [f"--out_dir={tmp_path}", "--init_from=resume", "--max_iters=9"]
    code = left_with(train.train, resume)
    small_files(resource.RLIM_INFINITY)
    error = capsys.readouterr().err
    assert code == 2 and "the disk is full" in error and error.count("\n") == 1
    assert (tmp_path / "ckpt.pt").read_bytes() == before
    assert not [name for name in os.listdir(tmp_path) if name.endswith(".tmp")]
    runs.resumed(tmp_path, "--max_iters=9")
    assert newest(tmp_path)["step"] == 9


@pytest.mark.parametrize("stdout", ["full", "closed", "ascii"])
def test_printing_never_ends_a_run(stdout, lines, tmp_path):
    """To a full disk, to a reader that went away after a line, to a terminal without umlauts"""
    flags = [*TINY, lines, "--sample_steps=2", f"--out_dir={tmp_path}"]
    environment = {**QUICK, "PYTHONIOENCODING": "ascii"} if stdout == "ascii" else QUICK
    if stdout == "full":
        with open("/dev/full", "w") as full:
            run = start("train.py", *flags, stdout=full)
    else:
        run = start("train.py", *flags, env=environment)
    if stdout == "closed":
        run.stdout.readline()
        run.stdout.close()
        run.stdout = None
    printed, errors = run.communicate(timeout=60)
    assert run.returncode == 0 and errors == "", errors
    assert newest(tmp_path)["step"] == 6
    assert stdout != "ascii" or printed.isascii() and "step 6/6" in printed


def test_say_writes_what_the_terminal_can_show(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    common.say("\u00fc\u2603 x", "\ud800")
    assert raw.getvalue() == b"?? x ?\n"


# -----------------------------------------------------------------------------
# a run that diverges, and what it leaves

DIVERGE = ["--learning_rate=1e30", "--warmup_iters=0", "--eval_interval=1", "--max_iters=4"]


@pytest.mark.parametrize("method", list(train.METHODS))
def test_a_diverged_run_ends_with_a_sentence(method, lines, tmp_path):
    """It does not hang, and leaves no checkpoint with weights that are not finite."""
    _, fault = quietly(train.train, [*TINY, lines, f"--out_dir={tmp_path}", f"--method={method}",
                                     "--sample_steps=3", *DIVERGE])
    assert fault is not None and "not finite" in fault and "\n" not in fault
    for path in checkpoint.found(tmp_path):
        for w in checkpoint.read(path)["model"].values():
            assert w.isfinite().all()


def test_answers_that_are_not_finite_end_sampling(tmp_path):
    """Weights that are finite, but so large that the answers are not"""
    config = Config(V=256, block_size=16, n_layer=1, n_head=1, n_embd=8, n_cond=4)
    net = Transformer(config)
    with torch.no_grad():
        for p in net.parameters():
            p.fill_(1e38)
    weights = net.state_dict()
    checkpoint.save(tmp_path, step=1, model=weights, ema=weights, config=vars(config),
                    args={"method": "flexmdm", "unmasking": "linear"}, tokenizer={"name": "bytes"},
                    permutation=None)
    for more in ([], ["--prompt=x"], ["--infill=a[..]b"], ["--sampler=exact"]):
        _, fault = quietly(sample.run, [f"--out_dir={tmp_path}", "--steps=3", *more])
        assert fault is not None and "not finite" in fault


# -----------------------------------------------------------------------------
# memory

def resident():
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2 ** 20       # MB


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="needs /proc")
def test_memory_is_flat(lines, tmp_path, monkeypatch):
    """With a validation, samples and a checkpoint every 20 steps"""
    real, size = train.make_batch, {}

    def make_batch(step, documents, *rest):
        size.setdefault(step, resident())
        return real(step, documents, *rest)
    monkeypatch.setattr(train, "make_batch", make_batch)
    trained(tmp_path, lines, "--max_iters=400", "--eval_interval=40", "--sample_steps=2",
            "--log_interval=50")
    assert size[400] < size[200] + 10, (size[200], size[400])
    assert os.path.getsize(tmp_path / "log.csv") < 2000
