"""The two benchmarks: a number is found where a reader finds it, right code passes, wrong code does not, and hostile code does no harm."""
import gzip
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal

import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

import tasks as E                                         # noqa: E402
from common import Fail                                                  # noqa: E402

DATA = os.path.join(ROOT, "..", "shared", "data")
CHECK = "def check(f):\n    assert f(1) == 2\n    assert f(5) == 6\n"


def data(name):
    path = os.path.join(DATA, name)
    if not os.path.exists(path):
        pytest.skip(f"{name} is not here")
    return path


# ---- GSM8K ---------------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name, total", [("gsm8k_test.jsonl", 1319), ("gsm8k_train.jsonl", 7473)])
def test_the_number_of_every_reference_answer(name, total):
    problems = E.read_gsm8k(data(name))
    assert len(problems) == total
    for p in problems:
        assert E.number_of(p["answer"]) == Decimal(p["answer"].split("####")[1].replace(",", "").strip())
        assert E.judge_gsm8k(p, p["answer"])["status"] == "passed" and E.judge_gsm8k(p, f"It is ${E.number_of(p['answer']):,}.")["status"] == "passed"
        assert E.judge_gsm8k(p, p["answer"] + "1")["status"] == E.judge_gsm8k(p, "")["status"] == "failed"


@pytest.mark.parametrize("text, number", [
    ("#### 18", 18), ("so 1,234.", 1234), ("$18", 18), ("-$5.50", -5.5), ("$-5", -5), ("50%", 50), ("is -3", -3), ("\u22124", -4), ("7 - 3", 3), ("7-3", 3), ("(7)-3", 3),
    ("a #### 5 and then 6", 5), ("#### x 5 9", 5), ("mark 3 #### none", 3), ("none", None), ("", None), ("1,000,000.5 ok", 1000000.5), ("x = .5", .5), ("<<16-3-4=9>>9 eggs", 9),
    ("3, 4, 5", 5), ("18.00", 18), ("#### 7\nQuestion: #### 8", 7), ("18 dollars.", 18), ("**42**", 42), ("10:30", 30), ("####18", 18), ("$ 18", 18), ("v2", None), ("2.5.", 2.5),
    ("\u0663", None), ("9" * 200, int("9" * 200))])
def test_the_number_of_a_generation(text, number):
    found = E.number_of(text)
    assert found is None if number is None else found == Decimal(number)


# ---- files ---------------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("reader, content, says", [
    (E.read_gsm8k, b"", "is empty"), (E.read_gsm8k, b"not json", "line 1: not JSON"), (E.read_gsm8k, b'{"question": "a", "answer": "#### 1"}\n[]', "line 2: there is no text 'question'"),
    (E.read_gsm8k, b'{"question": "a", "answer": 7}', "no text 'answer'"), (E.read_gsm8k, b'{"question": "a", "answer": "7"}', "problem 1: the answer does not end"),
    (E.read_gsm8k, b'{"question": "\xff"}', "not JSON"), (E.read_gsm8k, b"[" * 100000, "not JSON"), (E.read_infilling, b'{"question": "a", "answer": "#### 1"}', "expected HumanEval-infilling"),
    (E.read_infilling, json.dumps(dict.fromkeys(("task_id", "entry_point", "prompt", "suffix", "canonical_solution", "test"), "x")).encode(), "defines no test"),
    (E.read_infilling, (json.dumps({**dict.fromkeys(("task_id", "entry_point", "prompt", "suffix", "canonical_solution"), "x"), "test": "def check(f): 0"}) + "\n").encode() * 2, "twice")])
def test_a_file_of_another_format_is_one_sentence(tmp_path, reader, content, says):
    for name, pack in ("x.jsonl", bytes), ("x.jsonl.gz", gzip.compress):
        (tmp_path / name).write_bytes(pack(content))
        with pytest.raises(Fail, match=says):
            reader(tmp_path / name)


def test_a_file_that_is_cut_off_or_not_there(tmp_path):
    whole = gzip.compress(os.urandom(10000).hex().encode())
    for content in (whole[:-100], b"plain text", whole[:50] + bytes(100) + whole[150:], b""):
        (tmp_path / "x.gz").write_bytes(content)
        with pytest.raises(Fail):
            E.read_infilling(tmp_path / "x.gz")
    with pytest.raises(Fail, match="cannot read"):
        E.read_gsm8k(tmp_path / "nothing.jsonl")


# ---- right and wrong code ------------------------------------------------------------------------------------------------------------

def judge_all(problems, complete):
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda p: E.judge_infilling(p, complete(p)), problems))


@pytest.mark.parametrize("name, total, every", [("HumanEval-SingleLineInfilling.jsonl.gz", 1033, 20), ("HumanEval-MultiLineInfilling.jsonl.gz", 5815, 400)])
def test_canonical_solutions_pass_and_wrong_ones_do_not(name, total, every):
    problems = E.read_infilling(data(name))
    assert len(problems) == total
    for result in judge_all(problems[::every], lambda p: p["canonical_solution"]):
        assert result["status"] == "passed", result
    wrong = lambda p: p["canonical_solution"][:len(p["canonical_solution"]) - len(p["canonical_solution"].lstrip())] + "raise ValueError\n"
    for result in judge_all(problems[3::6 * every], wrong):
        assert result["status"] == "failed", result


def body(code, f="def f(x): return x + 1"):
    return E.run_program(f"{code}\n{f}\n", CHECK, "check(f)", seconds=2)


def test_what_passes_and_what_does_not():
    assert body("").status == "passed"
    assert body("import math, re, random, string, hashlib, copy, collections, typing, itertools, functools, heapq, datetime, decimal, fractions, dataclasses, statistics, json").status == "passed"
    assert body("print('x' * 10**6)").status == "passed"                                        # printing is harmless, and goes nowhere
    assert body("", "def f(x): return x + 2") == ("failed", "'AssertionError: '", pytest.approx(0, abs=2))
    assert "NameError" in body("", "g = 1").error and "SyntaxError" in body("(").error and "ValueError" in body("\0").error + "ValueError"
    assert body("\ud800").status == "failed" and body("(" * 100000).status == "failed" and "EOFError" in body("input()").error.replace("OSError", "EOFError")


LEAVES = ["import sys; sys.exit(0)", "import os; os._exit(0)", "raise SystemExit", "quit = exit = None; raise KeyboardInterrupt", "import _thread; _thread.interrupt_main()",
          "def f(x): import os; os._exit(0)", "import sys; f = lambda x: sys.exit(0)", "import os; os.abort()", "import signal; signal.alarm(1); import time; time.sleep(1.5)",
          "def f(x): return f(x)", "import sys; sys.setrecursionlimit(10**9)\ndef f(x): return [f(x)]", "x = '''", "x = (", "if 0:\n ", "import sys; sys.stdout.flush(); sys.stdout.write('passed'); 1/0"]


@pytest.mark.parametrize("code", LEAVES)
def test_to_leave_is_not_to_pass(code):
    assert E.run_program(code + "\n", CHECK, "check(f)", seconds=2).status != "passed"


CHEATS = {                                                                                     # ways to say "passed" without passing
    "guess the channel": "import os\nfor fd in range(256):\n  try: os.write(fd, b'passed\\n.\\n')\n  except OSError: pass\n",
    "look down the stack": "import sys\nf = sys._getframe()\nwhile f:\n  if 'token' in f.f_locals: import os; [os.write(i, f\"passed {f.f_locals['token']}\\n.\\n\".encode()) for i in range(3, 9)]\n  f = f.f_back\n",
    "look at other threads": "import sys\nfor f in sys._current_frames().values():\n  f.f_locals\n",
    "look through the heap": "import gc\ngc.get_objects()\n",
    "look into main": "import sys\nm = sys.modules['__main__']\nassert not [v for k, v in vars(m).items() if 'token' in k or 'done' in k]\n",
    "replace os.write": "import os, time, builtins\nos.write = time.sleep = builtins.len = lambda *a: 1/0\n1/0\n",
    "become another program": "import os\nos.execv('/bin/true', ['true'])\n",
    "count as done": "begun = gate = None; done = [None] * 9; 1/0\n",
}


@pytest.mark.parametrize("name", CHEATS)
def test_passing_cannot_be_said_only_done(name):
    assert E.run_program(CHEATS[name], CHECK, "check(f)", seconds=2).status == "failed"


# ---- hostile code --------------------------------------------------------------------------------------------------------------------

def contained():
    """The command lines of contained interpreters that are alive."""
    alive = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as f:
                alive += [pid] if b"\0def run():\n" in f.read() else []
        except OSError:
            pass
    return alive


def none_left():
    deadline = time.monotonic() + 10
    while contained() and time.monotonic() < deadline:
        time.sleep(0.05)
    return not contained()


@pytest.mark.parametrize("code", ["while True: pass", "import time; time.sleep(1000)", "x = 3 ** 10 ** 9", "import re; re.match('(a+)+$', 'a' * 50 + 'b')"])
def test_what_does_not_end_is_ended(code):
    start = time.monotonic()
    result = E.run_program(code, "", "", seconds=1)
    assert result.status == "timed out" and 0.9 < result.seconds < 3 and time.monotonic() - start < 10
    assert none_left()


@pytest.mark.parametrize("code", ["x = [0] * 10**10", "x = 'a' * 10**10", "x = []\nwhile True: x.append(' ' * 10**7)", "x = bytearray(2 * 10**9)"])
def test_memory_is_limited(code):
    result = E.run_program(code, "", "", seconds=30, memory=1 << 28)
    assert result.status == "failed" and "MemoryError" in result.error


def test_floods_do_not_reach_the_parent():
    start = time.monotonic()
    assert E.run_program("import sys\nwhile True: print('x' * 10**6); sys.stderr.write('y' * 10**6)", seconds=1).status == "timed out"
    assert E.run_program("import os\nwhile True:\n  for fd in range(3, 9):\n    try: os.write(fd, b'z' * 4096)\n    except OSError: pass", seconds=5).status == "failed"
    assert E.run_program("raise ValueError('x' * 10**8)", seconds=5).error.count("x") < 400
    assert time.monotonic() - start < 15


def attack(tmp_path, victim):
    """Programs that each try one thing: {name: code}. In each, the attempt ends in an exception if it is refused."""
    f, d = str(tmp_path / "precious"), str(tmp_path)
    return {
        "write": f"open({f!r}, 'w').write('x')", "append": f"open({f!r}, 'a').write('x')", "update": f"open({f!r}, 'r+').write('x')", "create": f"open({d!r} + '/new', 'x')",
        "create here": "open('new', 'w')", "temporary": "import tempfile; tempfile.NamedTemporaryFile()", "os.open": f"import os; os.open({f!r}, os.O_RDWR)",
        "remove": f"import os; os.remove({f!r})", "rename": f"import os; os.rename({f!r}, {d!r} + '/x')", "truncate": f"import os; os.truncate({f!r}, 0)",
        "chmod": f"import os; os.chmod({f!r}, 0)", "link": f"import os; os.link({f!r}, {d!r} + '/l')", "symlink": f"import os; os.symlink('/', {d!r} + '/s')",
        "mkdir": f"import os; os.mkdir({d!r} + '/m')", "rmdir": f"import os; os.rmdir({d!r} + '/dir')", "rmtree": f"import shutil; shutil.rmtree({d!r})",
        "utime": f"import os; os.utime({f!r}, (0, 0))", "mknod": f"import os; os.mkfifo({d!r} + '/p')",
        "fork": "import os, time\nif os.fork() == 0:\n  time.sleep(100)", "kill": f"import os; os.kill({victim}, 9)", "kill its group": f"import os; os.killpg({victim}, 9)",
        "socket": "import socket; s = socket.socket(); s.bind(('127.0.0.1', 0)); s.listen(); c = socket.create_connection(s.getsockname(), 1); socket.create_connection(('127.0.0.1', PORT), 1)",
        "shell": f"import os; assert os.system('echo x > {f}') == 0", "subprocess": f"import subprocess; subprocess.run(['rm', {f!r}], check=True)",
    }


ONLY_HOOK = {"ctypes": "import ctypes", "read": "open('/etc/passwd')", "read out": "import os; open(os.__file__ + '/../../../../../etc/passwd')", "list": "import os; os.listdir('/')",
             "thread": "import threading; threading.Thread(target=print).start()", "fork_exec": "import _posixsubprocess", "limits": "import resource; resource.getrlimit; resource.setrlimit(resource.RLIMIT_CORE, (0, 0))"}


@pytest.fixture
def victim(tmp_path):
    """A file, a folder and a process that generated code must not touch; and a port it must not reach."""
    import socket
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "dir").mkdir()
    before = sorted(os.listdir(tmp_path)), (tmp_path / "precious").stat()
    process, listener = subprocess.Popen(["sleep", "100"], start_new_session=True), socket.create_server(("127.0.0.1", 0))
    yield process.pid, listener.getsockname()[1]
    alive = process.poll() is None
    process.kill()
    process.wait()
    listener.close()
    after = sorted(os.listdir(tmp_path)), (tmp_path / "precious").stat()
    same = lambda s: (s.st_mode, s.st_size, s.st_mtime_ns, s.st_nlink, s.st_ino)
    assert alive and before[0] == after[0] and same(before[1]) == same(after[1]) and (tmp_path / "precious").read_text() == "precious"


LAYERS = {"all": (), "the hook alone": ("seccomp", "namespaces"), "seccomp alone": ("audit", "namespaces", "NPROC", "FSIZE"), "namespaces alone": ("audit", "seccomp", "NPROC", "FSIZE")}


@pytest.mark.parametrize("layer", LAYERS)
def test_nothing_outside_is_touched(tmp_path, victim, layer):
    """Each layer by itself refuses the same attacks: were one of them broken, the next would hold."""
    skip = LAYERS[layer]
    if not E.run_program("pass", skip=skip) or not any(E.LAYERS[skip].values()) and "audit" in skip:
        pytest.skip(f"this machine has no {layer}")
    attacks = {k: v.replace("PORT", str(victim[1])) for k, v in attack(tmp_path, victim[0]).items()}
    if layer in ("all", "the hook alone"):
        attacks.update(ONLY_HOOK)
    if layer == "namespaces alone":                                                            # there, processes may be started, but end with the first one;
        del attacks["fork"], attacks["create here"], attacks["temporary"]                      # the two files would be in a folder that is removed
    with ThreadPoolExecutor(2) as pool:
        results = dict(zip(attacks, pool.map(lambda code: E.run_program(code, seconds=5, skip=skip), attacks.values())))
    assert {name: r for name, r in results.items() if r.status == "passed"} == {}
    assert none_left()


BOMBS = {"fork": "import os\nwhile True: os.fork()", "double fork": "import os, time\nfor _ in range(8):\n  if os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n      os.setsid()\n      time.sleep(100)\n    os._exit(0)\n",
         "threads": "import threading, time\nwhile True: threading.Thread(target=time.sleep, args=(100,)).start()"}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_do_not_go_off(name):
    assert E.run_program(BOMBS[name], seconds=2).status == "failed"
    assert none_left()


def test_processes_end_with_their_namespace():
    """Where starting processes is possible after all, the double-forked and detached ones die too."""
    skip = ("audit", "seccomp", "NPROC")
    E.run_program("pass", skip=skip)
    if not E.LAYERS[skip]["namespaces"]:
        pytest.skip("this machine has no namespaces")
    assert E.run_program(BOMBS["double fork"] + "time.sleep(100)", seconds=1, skip=skip).status == "timed out"
    assert none_left()
    assert E.run_program(BOMBS["double fork"], seconds=5, skip=skip).status == "passed" and none_left()


def test_a_killed_parent_leaves_nothing_behind():
    code = f"import sys; sys.path.insert(0, {ROOT!r}); import tasks as E; E.broken_layers(); print('go', flush=True); E.run_program('while True: pass', seconds=60)"
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert parent.stdout.readline() == b"go\n"
    deadline = time.monotonic() + 20
    while not contained() and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(2)                                                                              # by now it runs what was generated
    assert contained()
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    assert none_left()


# ---- from problems to a number -------------------------------------------------------------------------------------------------------

def test_wilson():
    assert E.wilson(42, 100) == pytest.approx((0.3280, 0.5179), abs=1e-4)                       # the textbook's numbers
    assert E.wilson(0, 10) == pytest.approx((0, 0.2775), abs=1e-4) and E.wilson(10, 10) == pytest.approx((0.7225, 1), abs=1e-4) and E.wilson(0, 0) == (0, 1)


PROBLEMS = [{"task_id": f"t{i}", "answer": f"#### {i}"} for i in range(10)]


def test_results_are_written_resumed_and_not_mixed(tmp_path):
    out, said, asked = tmp_path / "deep" / "r.jsonl", [], []

    def generate(batch):
        asked.extend(p["task_id"] for p in batch)
        if len(asked) == 6 and said == []:
            raise KeyboardInterrupt
        return [f"maybe {int(p['task_id'][1:]) % 4}" for p in batch]

    run = lambda settings: E.evaluate(PROBLEMS, generate, E.judge_gsm8k, out, settings, batch_size=2, say=said.append)
    with pytest.raises(KeyboardInterrupt):
        run({"steps": 4})
    lines = out.read_text().splitlines()
    assert json.loads(lines[0]) == {"settings": {"steps": 4}} and [json.loads(x)["task_id"] for x in lines[1:]] == ["t0", "t1", "t2", "t3"]
    out.write_text(out.read_text() + '{"task_id": "t4", "sta')                                 # as if cut off in the middle of a line
    said.append("resumed")
    assert run({"steps": 4}) == (4, 10) and said[-1] == "pass@1 40.0% (95%: 16.8 to 68.7; 4 of 10)"
    assert asked == ["t0", "t1", "t2", "t3", "t4", "t5"] + [f"t{i}" for i in range(4, 10)]
    assert json.loads(out.read_text().splitlines()[3]) == {"task_id": "t2", "completion": "maybe 2", "status": "passed", "number": "2", "reference": "2"}
    assert run({"steps": 4}) == (4, 10) and len(asked) == 12                                   # nothing left to do
    with pytest.raises(Fail, match="another steps"):
        run({"steps": 8})
    out.write_text("something else\n")
    with pytest.raises(Fail, match="not a results file"):
        run({"steps": 4})


def test_the_command_line(tmp_path):
    name = data("HumanEval-SingleLineInfilling.jsonl.gz")
    command = lambda *a: subprocess.run([sys.executable, os.path.join(ROOT, "evaluate.py"), *a], capture_output=True, text=True, cwd=tmp_path)
    done = command("infill", "--problems", name, "--generations", "canonical", "--every", "300", "--results", "r.jsonl")
    assert done.returncode == 0 and done.stdout == "pass@1 100.0% (95%: 51.0 to 100.0; 4 of 4)\n" and done.stderr == ""
    done = command("gsm8k", "--problems", name, "--generations", "canonical")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "expected GSM8K's test.jsonl" in done.stderr
