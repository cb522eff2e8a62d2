"""Two benchmarks with right and wrong answers: GSM8K (a number) and HumanEval-infilling (code that must pass its tests).

    python evaluate.py gsm8k  --problems gsm8k_test.jsonl --out_dir out                         # what a model answers
    python evaluate.py gsm8k  --problems gsm8k_test.jsonl --generations texts.jsonl             # answers from elsewhere
    python evaluate.py infill --problems HumanEval-SingleLineInfilling.jsonl.gz --generations canonical

Generations: one {"task_id": ..., "completion": ...} a line, or `canonical`, the benchmark's own solutions (100% when all is well). The
output has the settings on its first line and one problem on each further line; the same command again goes on where it was stopped.

Generated code is run, so it is contained: in a process of its own (see `confine` and `run`), which ends with what it started.

One worked number: 42 of 100 solved is 42.0%, and with 95% confidence (Wilson) the model solves 32.8% to 51.8% of such problems.
"""
import concurrent.futures
import contextlib
import functools
import gzip
import inspect
import json
import math
import os
import re
import secrets
import selectors
import signal
import subprocess
import sys
import tempfile
import time
import zlib
from decimal import Decimal
from typing import NamedTuple

from common import Fail, aside


# ---- files of one JSON object a line -------------------------------------------------------------------------------------------------

def read_lines(path, fields, what):
    """The objects of a .jsonl or .jsonl.gz file, each with these text fields, or Fail: `what` names the format that is expected."""
    wrong = lambda k, why: Fail(f"{path}, line {k}: {why}; expected {what}, one JSON object with {', '.join(fields)} a line")
    rows, k = [], 0
    try:
        with (gzip.open(path, "rt", encoding="utf-8") if str(path).endswith(".gz") else open(path, encoding="utf-8")) as f:
            for k, line in enumerate(f, 1):
                if line.strip():
                    row = json.loads(line)
                    bad = [name for name in fields if not isinstance(row, dict) or not isinstance(row.get(name), str)]
                    if bad:
                        raise wrong(k, f"there is no text {bad[0]!r}")
                    rows.append(row)
    except (ValueError, RecursionError) as e:                                                  # not JSON, not UTF-8
        raise wrong(k + isinstance(e, UnicodeDecodeError), f"not JSON ({e})") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as e:
        raise Fail(f"{path} is not a whole .gz file ({e}): fetch it again") from None
    except OSError as e:
        raise Fail(f"cannot read {path}: {e.strerror or e}") from None
    if not rows:
        raise Fail(f"{path} is empty; expected {what}")
    ids = [row["task_id"] for row in rows if "task_id" in fields]
    if len(set(ids)) < len(ids):
        raise Fail(f"{path} has the task_id {max(ids, key=ids.count)!r} twice: remove one")
    return rows


# ---- GSM8K ---------------------------------------------------------------------------------------------------------------------------

NUMBER = re.compile(r"(?:(?<![\w.)])-)?\$?(?<![\w.])(?:(?:\d{1,3}(?:,\d{3})+(?!,?\d)|\d+)(?:\.\d+)?|\.\d+)", re.ASCII)


def read_gsm8k(path):
    """GSM8K's own test.jsonl -> [{"task_id": "gsm8k/0", "question", "answer"}]; every answer must end in `#### number`."""
    rows = read_lines(path, ("question", "answer"), "GSM8K's test.jsonl")
    for k, row in enumerate(rows):
        if row["answer"].count("####") != 1 or number_of(row["answer"]) is None:
            raise Fail(f"{path}, problem {k + 1}: the answer does not end in '#### number', as GSM8K's do")
    return [{"task_id": f"gsm8k/{k}", "question": row["question"], "answer": row["answer"]} for k, row in enumerate(rows)]


def number_of(text):
    """The final number of a worked answer, as a Decimal: the first one after '####', or else the last one. None where there is none.

    Understands 1,234 and $18 and 5% and -3 and 0.50 and a full stop at the end; '7 - 3' ends in 3, not in -3.
    """
    text = text.replace("\N{MINUS SIGN}", "-").replace("$-", "-$")
    before, mark, after = text.partition("####")
    found = [m[0] for m in NUMBER.finditer(after if mark else text)] or [m[0] for m in NUMBER.finditer(before)]
    return Decimal((found[0] if mark and NUMBER.search(after) else found[-1]).replace(",", "").replace("$", "")) if found else None


def judge_gsm8k(problem, completion):
    number, right = number_of(completion), number_of(problem["answer"])
    return {"status": "passed" if number == right else "failed", "number": None if number is None else str(number), "reference": str(right)}


# ---- HumanEval-infilling -------------------------------------------------------------------------------------------------------------

def read_infilling(path):
    """HumanEval-*Infilling.jsonl(.gz): prefix `prompt`, `suffix`, the removed middle `canonical_solution`, `test`, which defines check(f)."""
    rows = read_lines(path, ("task_id", "entry_point", "prompt", "suffix", "canonical_solution", "test"), "HumanEval-infilling")
    for row in rows:
        if not row["entry_point"].isidentifier() or "def check(" not in row["test"]:
            raise Fail(f"{path}: {row['task_id']} defines no test check({row['entry_point']}), as HumanEval-infilling does")
    return rows


def judge_infilling(problem, completion, **limits):
    body = problem["prompt"] + completion + problem["suffix"]
    return run_program(body, problem["test"], f"check({problem['entry_point']})", **limits)._asdict()


# ---- running what a model wrote ------------------------------------------------------------------------------------------------------
#
# Three processes. This one starts a fresh interpreter that runs `confine`: it takes away what it can and becomes, through exec, one more
# fresh interpreter that runs `run`, the only one that executes generated code. The layers, from the outside in:
#   limits       address space, CPU time, open files, no further process, no byte written to any file (RLIMIT_FSIZE 0)
#   namespaces   no network interface, no process in sight, the whole file system read-only; all that is left dies with the first process
#   seccomp      only the system calls of a program that computes: no socket, no fork, no kill, no file opened for writing, renamed or removed
#   audit hook   the same and more (no reading outside Python's own library) by Python itself; alone it is no wall
# The kernel's layers do without root; where one is not to be had, warn() says what is then guarded by the audit hook alone.
# Not a target: a program written to defeat this very file. A model's mistakes are.

class Result(NamedTuple):
    status: str                  # passed | failed | timed out
    error: str                   # one line on why not
    seconds: float


LAYERS = {}                      # skip -> which of the kernel's layers a program had


def run_program(*parts, seconds=10.0, memory=1 << 30, skip=None):
    """Run pieces of Python source one after the other in one namespace, contained: -> Result. It passes if the last one ends.

    Each part is compiled by itself, so that an open quote or bracket cannot swallow the test. `seconds` of wall time count from the
    moment the program starts; `memory` bytes of address space; `skip`: layers to leave out, by default those that do not work on this machine.
    """
    skip = broken_layers() if skip is None else skip
    token, said, started, ended = secrets.token_hex(16), b"", None, None
    job = {"parts": parts, "token": token, "memory": memory, "seconds": math.ceil(seconds) + 2, "skip": list(skip)}
    source = lambda f: inspect.getsource(f) + f"\n{f.__name__}()\n"
    with tempfile.TemporaryDirectory() as empty, tempfile.TemporaryFile() as stdin:
        stdin.write(json.dumps(job).encode())
        stdin.seek(0)
        child = subprocess.Popen([sys.executable, "-I", "-S", "-B", "-c", source(confine), source(run), ",".join(skip)], cwd=empty, env={},
                                 stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True)
        try:
            with selectors.DefaultSelector() as ready:
                ready.register(child.stdout, selectors.EVENT_READ)
                deadline = time.monotonic() + 120                                              # for two interpreters to start
                while ready.select(max(0, deadline - time.monotonic())):
                    block = os.read(child.stdout.fileno(), 4096)
                    said += block
                    if started is None and b"\nready\n" in said:
                        started = time.monotonic()
                        deadline = started + seconds
                    if not block or len(said) > 1 << 16 or (started and said.endswith(b"\n.\n")):
                        ended = time.monotonic()
                        break
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.stdout.close()
            code = child.wait()
    if started is None:
        raise Fail(f"a contained Python does not start on this machine (exit code {code}): nothing generated was run")
    lines = said.decode(errors="replace").split("\n")
    LAYERS.setdefault(tuple(skip), json.loads(lines[0]))
    spent = round((ended or time.monotonic()) - started, 3)
    if f"passed {token}" in lines:
        return Result("passed", "", spent)
    if ended is None or spent >= seconds:
        return Result("timed out", f"still running after {seconds:g} seconds", spent)
    errors = [line[6:] for line in lines if line.startswith("error ")]
    return Result("failed", errors[-1][:300] if errors else "the program ended before its tests did", spent)


@functools.cache
def broken_layers():
    """The layers under which not even an empty program passes on this machine: none on any machine that was tried (x86_64 Linux)."""
    for skip in (), ("seccomp",), ("namespaces",), ("seccomp", "namespaces"):
        with contextlib.suppress(Fail):
            if run_program("import hashlib, random, re, typing", skip=skip).status == "passed":
                return skip
    raise Fail("a contained Python does not work on this machine, so nothing generated is run: use Linux, or score the generations elsewhere")


def warning():
    """One sentence about what no layer of the kernel guards on this machine, or None."""
    has = LAYERS[broken_layers()]
    bare = [what for what, layers in {"the network": ("namespaces", "seccomp"), "files": ("read-only", "seccomp"), "processes": ("namespaces", "seccomp")}.items()
            if not any(has[layer] for layer in layers)]
    return bare and f"warning: only Python's audit hook guards {', '.join(bare)} from generated code on this system: better run it in a container of its own"


def confine():
    """In a fresh interpreter: put on what the kernel offers, then exec `run`. Self-contained: its source is what the interpreter is given."""
    import contextlib
    import ctypes
    import json
    import os
    import struct
    import sys
    program, skip = sys.argv[1], sys.argv[2].split(",")
    has = {"namespaces": False, "read-only": False, "seccomp": False}
    linux, machine = sys.platform == "linux", os.uname().machine
    libc = ctypes.CDLL(None, use_errno=True)

    # 1. Namespaces: user (for one who is not root), mount, network, processes, System V objects. All files read-only.
    if linux and "namespaces" not in skip:
        NEWNS, NEWIPC, NEWUSER, NEWPID, NEWNET = 0x20000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
        uid, gid = os.getuid(), os.getgid()
        has["namespaces"] = libc.unshare(NEWNS | NEWIPC | NEWPID | NEWNET) == 0
        if not has["namespaces"] and libc.unshare(NEWUSER | NEWNS | NEWIPC | NEWPID | NEWNET) == 0:
            has["namespaces"] = True
            for file, text in ("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1"):
                with contextlib.suppress(OSError), open(f"/proc/self/{file}", "w") as f:
                    f.write(text)
        if has["namespaces"]:
            libc.mount(None, b"/", None, ctypes.c_ulong(0x44000), None)                        # MS_REC | MS_PRIVATE
            read_only = struct.pack("QQQQ", 1, 0, 0, 0)                                        # mount_setattr(AT_FDCWD, "/", AT_RECURSIVE, ...)
            has["read-only"] = libc.syscall(ctypes.c_long(442), ctypes.c_long(-100), b"/", ctypes.c_long(0x8000), read_only, ctypes.c_long(32)) == 0
            libc.prctl(1, 9, 0, 0, 0)
            child = os.fork()                                                                  # the first process of its namespace
            if child:
                os.close(1)
                os.waitpid(child, 0)
                os._exit(0)
    if linux:
        libc.prctl(1, 9, 0, 0, 0)                                                              # PR_SET_PDEATHSIG: SIGKILL when the parent ends
        for capability in set(range(64)) - {2}:                                                # root without its powers, but for reading its Python
            libc.prctl(24, capability, 0, 0, 0)                                                # PR_CAPBSET_DROP
        libc.prctl(38, 1, 0, 0, 0)                                                             # PR_SET_NO_NEW_PRIVS

    # 2. seccomp: a list of what is allowed; anything else is "not implemented". Three calls depend on an argument.
    plain = {"x86_64": "0 1 3-15 17 19-21 23-25 27 28 32 33 35 39 59-61 63 72 79 89 96-100 102 104 107 108 110 131 158 186 202 204 217 218 228-231 262 267 "
                       "269-271 273 292 309 318 324 332 334 436 439",
             "aarch64": "17 23-25 48 57 61-67 72 73 78-80 93 94 96 98 99 101 113-115 123 124 132 134 135 139 153 160 163 165 168 169 172-179 214-216 221 222 "
                        "226 232 233 260 278 283 291 293 436 439"}.get(machine)
    if linux and plain and "seccomp" not in skip and struct.calcsize("P") == 8:
        arch, clone, openat, prlimit, opens = {"x86_64": (0xC000003E, 56, 257, 302, 2), "aarch64": (0xC00000B7, 220, 56, 261, None)}[machine]
        LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN, ALLOW, REFUSE = 0x20, 0x15, 0x35, 0x45, 0x06, 0x7FFF0000, 0x50000 | 38
        writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
        ops = [(LOAD, 0, 0, 4), (EQUAL, 1, 0, arch), (RETURN, 0, 0, REFUSE), (LOAD, 0, 0, 0)]
        for span in plain.split():
            first, last = (span.split("-") * 2)[:2]
            ops += [(AT_LEAST, 0, 2, int(first)), (AT_LEAST, 1, 0, int(last) + 1), (RETURN, 0, 0, ALLOW)]
        argument = lambda call, i, op, jt, jf, k: [(EQUAL, 0, 4, call), (LOAD, 0, 0, 16 + 8 * i), (op, jt, jf, k), (RETURN, 0, 0, ALLOW), (RETURN, 0, 0, REFUSE)]
        ops += argument(clone, 0, ANY_BIT, 0, 1, 0x10000) + argument(prlimit, 0, EQUAL, 0, 1, 0)        # threads; one's own limits
        ops += argument(openat, 2, ANY_BIT, 1, 0, writing) + (argument(opens, 1, ANY_BIT, 1, 0, writing) if opens is not None else [])
        code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *op) for op in ops + [(RETURN, 0, 0, REFUSE)]))
        has["seccomp"] = libc.prctl(22, 2, struct.pack("HxxxxxxQ", len(ops) + 1, ctypes.addressof(code)), 0, 0) == 0

    os.write(1, json.dumps(has).encode() + b"\n")
    os.execv(sys.executable, [sys.executable, "-I", "-S", "-B", "-c", program])


def run():
    """In the contained interpreter: execute the parts, and prove that the last one ended by saying the token. Self-contained, as `confine`."""
    import _thread
    import errno
    import json
    import os
    import resource
    import sys
    import time
    job = json.loads(sys.stdin.buffer.read())
    out = os.dup(1)                                                                            # the private channel
    os.dup2(2, 0)                                                                              # no input; what is printed goes nowhere
    os.dup2(2, 1)
    write, sleep, leave, count, size, token, problem, done = os.write, time.sleep, os._exit, _thread._count, len, job["token"], [], []

    # 1. Compile. Errors of the language are the program's.
    try:
        codes = [compile(part, "<generated>", "exec") for part in job["parts"]]
    except (SyntaxError, ValueError, RecursionError, MemoryError) as e:
        write(out, f"ready\nerror {type(e).__name__}: {str(e)[:200]!r}\n.\n".encode())
        leave(0)

    # 2. A thread in which nothing but C and the program itself is on the stack: no frame of this function, so no token, can be reached from it.
    gate, begun = _thread.allocate_lock(), _thread.allocate_lock()
    gate.acquire()
    begun.acquire()
    wait, space = compile("begun()\ngate()", "<wait>", "exec"), {}
    _thread.start_new_thread(done.extend, (map(exec, [wait, *codes], [{"begun": begun.release, "gate": gate.acquire}] + [space] * size(codes)),))
    begun.acquire()
    sys.unraisablehook = lambda u: problem.append(f"{type(u.exc_value).__name__}: {u.exc_value}"[:300])

    # 3. Limits.
    limits = {"CPU": job["seconds"], "AS": job["memory"], "NPROC": 0, "FSIZE": 0, "NOFILE": 32, "CORE": 0, "MEMLOCK": 0, "MSGQUEUE": 0}
    for name, value in limits.items():
        if name not in job["skip"] and hasattr(resource, "RLIMIT_" + name):
            try:
                resource.setrlimit(getattr(resource, "RLIMIT_" + name), (value, value))
            except (ValueError, OSError):                                                      # macOS has no limit of the address space
                pass

    # 4. The audit hook, and the few functions that no audit event announces.
    unannounced = {"os": "mkfifo mknod memfd_create eventfd pidfd_open setsid setpgid setpgrp setpriority nice unshare setns posix_openpt sched_setaffinity",
                   "time": "clock_settime clock_settime_ns", "signal": "pidfd_send_signal", "_thread": "start_new_thread start_new start_joinable_thread"}
    unannounced["posix"] = unannounced["os"]
    for module, names in unannounced.items():
        for name in names.split() if "audit" not in job["skip"] else ():
            vars(sys.modules.get(module) or __import__(module)).pop(name, None)
    library = tuple(path for path in sys.path if path)
    families = ("os.", "socket.", "subprocess.", "shutil.", "ctypes.", "mmap.", "fcntl.", "resource.", "signal.", "pty.", "gc.", "_thread.", "sqlite3.", "syslog.",
                "webbrowser.", "ftplib.", "http.", "smtplib.", "poplib.", "imaplib.", "telnetlib.", "nntplib.", "urllib.", "winreg.", "msvcrt.", "tempfile.",
                "sys._current_", "sys.settrace", "sys.setprofile", "sys.addaudithook", "cpython.", "code.__new__")
    modules = {"ctypes", "_ctypes", "_posixsubprocess", "_socket", "_multiprocessing", "_posixshmem", "mmap", "fcntl", "_testcapi", "_testinternalcapi",
               "_xxsubinterpreters", "_interpreters"}
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

    def hook(event, given, Error=PermissionError, string=str, kind=type, starts=str.startswith):
        if event == "open":
            path, flags = given[0], given[2]
            allowed = kind(path) is string and starts(path, library) and ".." not in path and not flags & writing
        elif event == "os.listdir" or event == "os.scandir":
            allowed = kind(given[0]) is string and starts(given[0], library) and ".." not in given[0]
        elif event == "import":
            allowed = given[0] not in modules
        else:
            allowed = not starts(event, families)
        if not allowed:
            raise Error(errno.EPERM, f"{event} is refused to generated code")

    if "audit" not in job["skip"]:
        sys.addaudithook(hook)

    # 5. Go. `done` has one entry for each part that ended.
    parts = size(codes) + 1
    write(out, b"ready\n")
    gate.release()
    while size(done) < parts and count():
        sleep(0.002)
    passed = size(done) == parts
    write(out, f"passed {token}\n.\n".encode() if passed else f"error {problem[0] if problem else 'it left before its tests did'!r}\n.\n".encode())
    leave(0)


# ---- a benchmark from problems to a number -------------------------------------------------------------------------------------------

def wilson(passed, total, z=1.959964):
    """The 95% interval of a proportion (Wilson 1927): where a true rate p has |passed / total - p| <= z sqrt(p (1 - p) / total)."""
    if total == 0:
        return 0.0, 1.0
    p, w = passed / total, z * z / total
    middle, half = (p + w / 2) / (1 + w), math.sqrt(p * (1 - p) * w + w * w / 4) / (1 + w)
    return max(0.0, middle - half), min(1.0, middle + half)


def resume(path, settings):
    """What a results file holds already, {task_id: record}. A last line that was cut off is removed; another run's file is refused."""
    if not os.path.exists(path):
        with aside(path) as f:
            f.write(json.dumps({"settings": settings}) + "\n")
        return {}
    try:
        with open(path, "r+b") as f:
            text = f.read()
            whole = text[:text.rfind(b"\n") + 1]
            if len(whole) < len(text):
                f.truncate(len(whole))
        rows = [json.loads(line) for line in whole.decode().splitlines()]
        before, done = rows[0]["settings"], {row["task_id"]: row for row in rows[1:]}
    except OSError as e:
        raise Fail(f"cannot read {path}: {e.strerror}") from None
    except (ValueError, LookupError, TypeError):
        raise Fail(f"{path} is not a results file of this script: give another --out, or remove it") from None
    if before != json.loads(json.dumps(settings)):
        other = next((k for k in {**before, **settings} if before.get(k) != settings.get(k)), "the settings") if isinstance(before, dict) else "the settings"
        raise Fail(f"{path} was made with another {other}: give another --out, or remove it")
    return done


def evaluate(problems, generate, judge, path, settings, batch_size=8, workers=None, say=print):
    """Solve what is left of `problems` and print pass@1. generate([problem]) -> [text]; judge(problem, text) -> {"status": ...}."""
    done = resume(path, settings)
    left = [p for p in problems if p["task_id"] not in done]
    if done:
        say(f"{len(done)} problems are in {path} already, {len(left)} left")
    with concurrent.futures.ThreadPoolExecutor(workers or os.cpu_count()) as pool, open(path, "a", encoding="utf-8") as f:
        for i in range(0, len(left), batch_size):
            batch = left[i:i + batch_size]
            texts = generate(batch)
            for problem, text, verdict in zip(batch, texts, pool.map(judge, batch, texts)):
                done[problem["task_id"]] = {"task_id": problem["task_id"], "completion": text, **verdict}
                f.write(json.dumps(done[problem["task_id"]]) + "\n")
            f.flush()
    passed = sum(done[p["task_id"]]["status"] == "passed" for p in problems)
    low, high = wilson(passed, len(problems))
    say(f"pass@1 {100 * passed / len(problems):.1f}% (95%: {100 * low:.1f} to {100 * high:.1f}; {passed} of {len(problems)})")
    return passed, len(problems)


def from_file(path, field):
    """A `generate` that looks its answers up: in a file, or with `canonical` in the benchmark itself."""
    if path == "canonical":
        return lambda batch: [problem[field] for problem in batch]
    texts = {row["task_id"]: row["completion"] for row in read_lines(path, ("task_id", "completion"), "generations")}

    def generate(batch):
        for problem in batch:
            if problem["task_id"] not in texts:
                raise Fail(f"{path} has no completion of {problem['task_id']}: add it")
        return [texts[problem["task_id"]] for problem in batch]
    return generate
