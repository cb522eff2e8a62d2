"""What a model wrote is run without harm: honest programs work, and whatever else a program does,
it neither passes by it nor touches anything outside, nor outlives its test."""
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from retrofit import sandbox

CHECK = ["def check(f):\n    assert f(1) == 2\n    assert f(5) == 6\n", "check(f)"]
RIGHT = "\ndef f(x): return x + 1\n"
needs_kernel = pytest.mark.skipif(not sandbox.works(), reason="no namespaces on this system")


@pytest.fixture
def own(monkeypatch, tmp_path_factory):
    """The sandbox under a file name of its own, by which its processes are found: a function that
    says whether all of them are gone (or soon will be)."""
    path = tmp_path_factory.mktemp("own") / "sandbox.py"
    shutil.copy(sandbox.__file__, path)
    monkeypatch.setattr(sandbox, "__file__", str(path))
    return lambda: within(10, lambda: not running(path))


def running(path):
    """Process ids of contained interpreters that were started from this file"""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as f:
                if os.fsencode(str(path)) in f.read().split(b"\0"):
                    found.append(int(pid))
        except OSError:
            pass
    return found


def within(seconds, condition):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


def body(code, seconds=5.0, **options):
    return sandbox.run([code, *CHECK], seconds=seconds, **options)


# -----------------------------------------------------------------------------
# honest programs

@needs_kernel
def test_right_code_passes_and_wrong_code_does_not():
    assert body(RIGHT).status == "passed"
    wrong = body("def f(x): return x + 2")
    assert wrong.status == "failed" and wrong.error == "AssertionError: ''"
    assert "NameError" in body("g = 1").error
    assert "SyntaxError" in body("(").error
    assert "null bytes" in body("\0").error
    assert "UnicodeEncodeError" in body("\ud800").error
    assert "EOFError" in body("input()").error
    assert body("(" * 100000).status == "failed"


HONEST = {
    "imports": "import math, re, random, string, hashlib, copy, collections, typing, json, bisect, "
               "itertools, functools, heapq, datetime, decimal, fractions, dataclasses, statistics",
    "logging": "import logging; logging.warning('x')",
    "queue": "import queue; q = queue.Queue(); q.put(1); assert q.get() == 1",
    "zipfile": "import io, zipfile\nwith zipfile.ZipFile(io.BytesIO(), 'w') as z: z.namelist()",
    "thread": "import threading\nt = threading.Thread(target=print)\nt.start()\nt.join()",
    "32 threads": "import concurrent.futures as c, time\nwith c.ThreadPoolExecutor(32) as pool:\n"
                  "  assert sum(pool.map(lambda x: time.sleep(.02) or x, range(64))) == 2016",
    "asyncio": "import asyncio; asyncio.run(asyncio.sleep(0))",
    "printing": "print('x' * 10 ** 6)",
    "reading": "import os; assert open(os.__file__).read()",
}


@needs_kernel
@pytest.mark.parametrize("name", HONEST)
def test_honest_programs_work(name):
    assert body(HONEST[name] + RIGHT) == ("passed", "", pytest.approx(0, abs=5))


# -----------------------------------------------------------------------------
# to leave, or to claim success, is not to pass

LEAVES = {
    "sys.exit(0)": "import sys; sys.exit(0)",
    "os._exit(0)": "import os; os._exit(0)",
    "os._exit(0) in the test": "def f(x): import os; os._exit(0)",
    "sys.exit in the test": "import sys; f = lambda x: sys.exit(0)",
    "SystemExit": "raise SystemExit",
    "KeyboardInterrupt": "raise KeyboardInterrupt",
    "interrupt_main": "import _thread; _thread.interrupt_main(); import time; time.sleep(1)",
    "abort": "import os; os.abort()",
    "alarm": "import signal, time; signal.alarm(1); time.sleep(1.5); 1 / 0",
    "recursion": "def f(x): return f(x)",
    "recursion without a limit": "import sys; sys.setrecursionlimit(10 ** 9)\n"
                                 "def f(x): return [f(x)]",
    "open quote": "x = '''",
    "open bracket": "x = (",
    "open block": "if 0:\n ",
    "become another program": "import os; os.execv('/bin/true', ['true'])",
    "print the success mark": "print('\\npassed'); import sys; sys.stdout.flush(); 1 / 0",
    "write it everywhere": "import os\nfor i in range(256):\n  try: os.write(i, b'passed\\n')\n"
                           "  except OSError: pass\n",
    "patched builtins": "import os, time, builtins as b\nb.len = b.compile = b.exec = os.write = "
                        "os.read = os._exit = time.sleep = lambda *a: 1\n1 / 0",
    "patched assertion": "import builtins\nclass E(BaseException):\n  def __str__(self): 1 / 0\n"
                         "builtins.AssertionError = E\nraise E",
}


@needs_kernel
@pytest.mark.parametrize("name", LEAVES)
def test_to_leave_or_to_claim_success_is_not_to_pass(name):
    assert body(LEAVES[name], seconds=3).status in ("failed", "timed out")


SNOOPS = {                              # each ends without an error if it finds what proves success
    "frames": "import sys\nframe, found = sys._getframe(), []\nwhile frame:\n"
              "  found += filter(proof, frame.f_locals.values())\n  frame = frame.f_back\n",
    "all frames": "import sys\nfound = [v for f in sys._current_frames().values()\n"
                  "         for v in f.f_locals.values() if proof(v)]",
    "heap": "import gc\nfound = list(filter(proof, gc.get_referents(*gc.get_objects())))",
    "arguments": "import sys, os\nfound = list(filter(proof, [*sys.argv, *os.environ.values()]))",
    "input": "import os\nos.lseek(0, 0, 0)\nfound = os.read(0, 10)",
}


@needs_kernel
@pytest.mark.parametrize("name", SNOOPS)
def test_the_proof_of_success_is_not_to_be_found(name):
    proof = ("def proof(v):\n  v = v.decode('latin1') if isinstance(v, bytes) else v\n"
             "  return isinstance(v, str) and len(v) == 32 and set(v) <= set('0123456789abcdef')\n")
    assert sandbox.run([f"x = '{'ab' * 16}'\n{proof}\nassert proof(x)"]).status == "passed"
    assert sandbox.run([proof, SNOOPS[name], "assert found"]).error == "AssertionError: ''"


# -----------------------------------------------------------------------------
# time, memory, output, processes

ENDLESS = ["while True: pass", "import time; time.sleep(1000)", "x = 3 ** 10 ** 9",
           "import re; re.match('(a+)+$', 'a' * 50 + 'b')", "while True: print('x' * 10 ** 6)"]


@needs_kernel
def test_what_does_not_end_is_ended(own):
    with ThreadPoolExecutor(len(ENDLESS)) as pool:
        results = list(pool.map(lambda code: sandbox.run([code], seconds=1), ENDLESS))
    assert [r.status for r in results] == ["timed out"] * len(ENDLESS)
    assert all(r.seconds >= 1 for r in results)
    assert own()


@needs_kernel
@pytest.mark.parametrize("code", [
    "x = [0] * 10 ** 10", "x = 'a' * 10 ** 10", "x = bytearray(2 * 10 ** 9)",
    "x = []\nwhile True: x.append(' ' * 10 ** 7)"])
def test_memory_is_limited(code):
    result = sandbox.run([code], seconds=30, memory=1 << 28)
    assert result.status == "failed" and "MemoryError" in result.error


@needs_kernel
def test_floods_do_not_reach_the_parent():
    flood = ("import os\nwhile True:\n  for i in range(3, 9):\n"
             "    try: os.write(i, b'z' * 4096)\n    except OSError: pass")
    flooded = sandbox.run([flood], seconds=2)
    assert flooded.status == "timed out" and len(flooded.error) <= 300
    short = sandbox.run([flood.replace("while True", "for _ in range(4)")], seconds=20)
    assert short.status == "failed" and len(short.error) <= 300
    assert len(sandbox.run(["raise ValueError('x' * 10 ** 8)"]).error) <= 300


BOMBS = {
    "forks": "import os\nwhile True: os.fork()",
    "detached forks": "import os, time\nwhile True:\n  if os.fork() == 0:\n"
                      "    os.setsid()\n    time.sleep(100)",
    "threads": "import threading, time\n"
               "while True: threading.Thread(target=time.sleep, args=(100,)).start()",
}


@needs_kernel
@pytest.mark.parametrize("name", BOMBS)
def test_bombs_do_not_go_off(name, own):
    assert sandbox.run([BOMBS[name]], seconds=20).status == "failed"
    assert own()


LEFT_OVER = """
import os, signal, time
for _ in range(4):
    if os.fork() == 0:
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if os.fork() == 0:
            time.sleep(100)
        os._exit(0)
"""


@needs_kernel
@pytest.mark.parametrize("code, status", [
    (LEFT_OVER, "passed"), (LEFT_OVER + "time.sleep(100)", "timed out")])
def test_children_do_not_outlive_the_test(code, status, own):
    assert sandbox.run([code], seconds=1).status == status
    assert own()


@needs_kernel
def test_a_killed_parent_leaves_nothing_behind(own):
    code = "import sandbox; sandbox.run(['while True: pass'], seconds=60)"
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=os.path.dirname(sandbox.__file__))
    assert within(20, lambda: len(running(sandbox.__file__)) == 3)  # two guards and the program
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    assert own()


def test_a_process_that_is_left_over_is_not_waited_for():
    """Without namespaces it outlives the program, and holds the pipe of the verdict."""
    started = time.monotonic()
    code = LEFT_OVER.replace("sleep(100)", "sleep(6)") + "os._exit(0)"
    assert sandbox.run([code], seconds=5, unsafe=True).status == "failed"
    assert time.monotonic() - started < 5


# -----------------------------------------------------------------------------
# nothing outside is touched

ATTACKS = {                             # each ends in an exception if it is refused
    "write": "open(FILE, 'w').write('x')",
    "append": "open(FILE, 'a').write('x')",
    "update": "open(FILE, 'r+').write('x')",
    "os.open": "import os; os.open(FILE, os.O_RDWR)",
    "create": "open(FOLDER + '/new', 'x')",
    "create here": "open('new', 'w')",
    "temporary": "import tempfile; tempfile.NamedTemporaryFile()",
    "shared memory": "open('/dev/shm/new', 'w')",
    "remove": "import os; os.remove(FILE)",
    "rename": "import os; os.rename(FILE, FOLDER + '/x')",
    "truncate": "import os; os.truncate(FILE, 0)",
    "chmod": "import os; os.chmod(FILE, 0)",
    "link": "import os; os.link(FILE, FOLDER + '/l')",
    "symlink": "import os; os.symlink('/', FOLDER + '/s')",
    "mkdir": "import os; os.mkdir(FOLDER + '/m')",
    "rmdir": "import os; os.rmdir(FOLDER + '/dir')",
    "rmtree": "import shutil; shutil.rmtree(FOLDER)",
    "utime": "import os; os.utime(FILE, (0, 0))",
    "fifo": "import os; os.mkfifo(FOLDER + '/p')",
    "shell": "import os; assert os.system(f'echo x > {FILE}') == 0",
    "subprocess": "import subprocess; subprocess.run(['rm', FILE], check=True)",
    "mount": "import ctypes; assert ctypes.CDLL(None).mount(None, b'/', None, 0x1020, None) == 0",
    "unmount": "import ctypes; assert ctypes.CDLL(None).umount2(b'/proc', 2) == 0",
    "become root": "import os; os.setuid(0); os.chroot('/')",
    "raise a limit": "import resource as r; r.setrlimit(r.RLIMIT_FSIZE, (1000, 1000))",
    "kill": "import os; os.kill(PID, 9)",
    "kill its group": "import os; os.killpg(PID, 9)",
    "kill the parent": "import os; os.kill(PARENT, 9)",
    "list processes": "import os; assert os.listdir('/proc')",
    "parent's environment": "open(f'/proc/{PARENT}/environ').read()",
    "own environment": "import os; assert 'HOME' in os.environ",
    "connect": "import socket; socket.create_connection(('127.0.0.1', PORT), 1)",
    "own connection": "import socket; s = socket.create_server(('127.0.0.1', 0)); "
                      "socket.create_connection(s.getsockname(), 1)",
    "look up a name": "import socket; socket.getaddrinfo('example.org', 80)",
}


@pytest.fixture
def victim(tmp_path):
    """Lines that name a file, a folder, a process and a port that generated code must not touch"""
    (tmp_path / "dir").mkdir()
    file = tmp_path / "precious"
    file.write_text("precious")
    file.chmod(0o666)
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o777)                 # nothing but the sandbox is in the way
    process = subprocess.Popen(["sleep", "100"], start_new_session=True)
    listener = socket.create_server(("127.0.0.1", 0))
    names, before = sorted(os.listdir(tmp_path)), file.stat()
    yield (f"FILE, FOLDER, PID = {str(file)!r}, {str(tmp_path)!r}, {process.pid}\n"
           f"PORT, PARENT = {listener.getsockname()[1]}, {os.getpid()}\n")
    alive = process.poll() is None
    process.kill()
    process.wait()
    listener.close()
    after = file.stat()
    assert alive and sorted(os.listdir(tmp_path)) == names and file.read_text() == "precious"
    for field in ("st_mode", "st_size", "st_mtime_ns", "st_nlink", "st_ino"):
        assert getattr(before, field) == getattr(after, field)


@needs_kernel
def test_nothing_outside_is_touched(victim, own):
    with ThreadPoolExecutor(2) as pool:
        results = pool.map(lambda code: sandbox.run([victim, code], seconds=20), ATTACKS.values())
        results = dict(zip(ATTACKS, results))
    assert {name: r for name, r in results.items() if r.status != "failed"} == {}
    assert own()


AS_ANOTHER_USER = """
import json, sandbox, sys
for name, parts in json.load(sys.stdin).items():
    print(name, sandbox.run(parts, seconds=20).status, sep=": ")
"""


@needs_kernel
def test_an_ordinary_user_is_contained_too(victim, own):
    """The tests above run as whoever runs them. Under root some are repeated as `nobody`."""
    python = shutil.which("python3", path="/usr/bin")
    if os.getuid() != 0 or python is None:
        pytest.skip("this is an ordinary user, or there is no Python that another user may run")
    os.chmod(os.path.dirname(sandbox.__file__), 0o755)
    os.chmod(os.path.dirname(os.path.dirname(sandbox.__file__)), 0o755)
    programs = {name: [victim, code] for name, code in ATTACKS.items()}
    programs |= {name: [code] for name, code in BOMBS.items()}
    programs |= {f"honest {name}": [code] for name, code in HONEST.items()}
    done = subprocess.run(
        [python, "-B", "-c", AS_ANOTHER_USER], input=json.dumps(programs), text=True,
        capture_output=True, cwd=os.path.dirname(sandbox.__file__), user=65534, group=65534,
        extra_groups=[])
    if "this system does not let" in done.stderr:
        pytest.skip("an ordinary user gets no namespaces here")
    assert done.returncode == 0, done.stderr
    status = dict(line.split(": ") for line in done.stdout.splitlines())
    for name in programs:
        assert status[name] == ("passed" if name.startswith("honest") else "failed"), name
    assert own()


# -----------------------------------------------------------------------------
# a kernel that contains nothing

MISSING = {
    '"unshare"': '"no_such_function"',
    '"mount"': '"no_such_function"',
    "MOUNT_SETATTR, AT_FDCWD, b": "-1, AT_FDCWD, b",
    '"capset"': '"no_such_function"',
    "resource.RLIMIT_NPROC": "-1",
}


@pytest.mark.parametrize("missing", MISSING)
def test_where_the_kernel_refuses_nothing_is_run(tmp_path, missing):
    """Whichever of the layers is not to be had: no piece is run, unless the caller says unsafe."""
    with open(sandbox.__file__) as f:
        source = f.read()
    assert missing in source
    path = tmp_path / "sandbox_without.py"
    path.write_text(source.replace(missing, MISSING[missing]))
    spec = importlib.util.spec_from_file_location("sandbox_without", path)
    without = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(without)
    touched = tmp_path / "touched"
    with pytest.raises(RuntimeError, match="nothing was run"):
        without.run([f"open({str(touched)!r}, 'w')"])
    assert not touched.exists() and not without.works()
    assert without.run([RIGHT, *CHECK], unsafe=True).status == "passed"


def test_unsafe_has_limits_still():
    assert body(RIGHT, unsafe=True).status == "passed"
    assert body("1 / 0", unsafe=True).status == "failed"
    assert sandbox.run(["while True: pass"], seconds=1, unsafe=True).status == "timed out"
    if sys.platform == "linux":
        result = sandbox.run(["x = bytearray(10 ** 10)"], memory=1 << 28, unsafe=True)
        assert "MemoryError" in result.error
