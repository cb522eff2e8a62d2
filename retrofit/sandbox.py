"""Run Python that a model wrote, contained:

    run(["def f(x): return x + 1", "assert f(1) == 2"])         # -> Result("passed", "", 0.002)

The pieces run one after the other in one namespace, in a process of their own. They pass if the
last one comes to its end. The kernel contains them:

    namespaces   no network, no other process in sight, all files read-only; when the program ends,
                 the kernel ends all that it started
    identity     no capabilities; under root the id of a user that does not exist
    limits       wall time, processor time, open files, processes, threads, bytes per file, and the
                 memory of each process (not of all together)

Where the kernel refuses any of it (macOS, most Docker containers, Linux before 5.12), nothing is
run and `run` raises RuntimeError, unless unsafe=True: then only the limits are left. This is for a
model's mistakes, not against a program that was written to defeat this very file.
"""
import contextlib
import ctypes
import functools
import json
import os
import resource
import secrets
import signal
import struct
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

TASKS = 64              # processes and threads together


class Result(NamedTuple):
    status: str         # passed | failed | timed out
    error: str          # one line that says why not
    seconds: float


# -----------------------------------------------------------------------------
# outside

def run(parts, seconds=10.0, memory=1 << 30, unsafe=False):
    """Run pieces of Python source: -> Result. Each is compiled by itself, so that an open quote
    cannot swallow the test. `seconds` count from when the child is ready; `memory` is in bytes."""
    token = secrets.token_hex(16)
    token_pipe, end = os.pipe()
    with open(end, "w") as f:
        f.write(token)
    job = dict(parts=parts, token_pipe=token_pipe, seconds=seconds, memory=memory, unsafe=unsafe)
    with tempfile.TemporaryDirectory() as empty, subprocess.Popen(
            [sys.executable, "-I", "-S", "-B", os.path.abspath(__file__)],
            cwd=empty, env={"MALLOC_ARENA_MAX": "2"}, pass_fds=[token_pipe], start_new_session=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            bufsize=0) as child:
        os.close(token_pipe)
        try:
            with contextlib.suppress(BrokenPipeError), child.stdin:
                child.stdin.write(json.dumps(job).encode())
            ready = child.stdout.read(1)                # b"" where the child ended
            begun = time.monotonic()
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(seconds)
            spent = round(time.monotonic() - begun, 3)
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):  # it has ended
                os.killpg(child.pid, signal.SIGKILL)
        os.set_blocking(child.stdout.fileno(), False)   # a left-over process may hold it open
        verdict = (child.stdout.read(300) or b"").decode(errors="replace").strip()
    if not ready:
        raise RuntimeError("this system does not let a program be contained: nothing was run")
    if verdict == f"passed {token}":
        return Result("passed", "", spent)
    if spent >= seconds:
        return Result("timed out", f"still running after {seconds:g} seconds", spent)
    return Result("failed", verdict or "the program ended before its tests did", spent)


@functools.cache
def works():
    """Does this system let a program be contained?"""
    try:
        return run(["import concurrent.futures, logging"]).status == "passed"
    except RuntimeError:
        return False


# -----------------------------------------------------------------------------
# inside: this file is the program of the child, so it imports nothing of the project

NEWNS, NEWIPC, NEWUSER, NEWPID, NEWNET = (1 << i for i in (17, 27, 28, 29, 30))     # unshare(2)
REC, PRIVATE = 1 << 14, 1 << 18                                                     # mount(2)
MOUNT_SETATTR, AT_FDCWD, AT_RECURSIVE, READ_ONLY = 442, -100, 1 << 15, 1
PDEATHSIG, KEEPCAPS, NO_NEW_PRIVS = 1, 8, 38                                        # prctl(2)
DAC_READ_SEARCH = 1 << 2                                                            # capset(2)


def call(name, *arguments):
    """A function of the C library that answers 0 where all went well"""
    values = [ctypes.c_long(x) if isinstance(x, int) else x for x in arguments]
    if getattr(ctypes.CDLL(None, use_errno=True), name)(*values) != 0:
        raise OSError(ctypes.get_errno(), name)


def isolate():
    """What follows runs in a process that sees no network, no file to write and no process but
    those that it starts. Raises OSError or AttributeError where that cannot be had."""
    uid, gid = os.getuid(), os.getgid()
    with open("/proc/self/uid_map") as f:
        is_root = uid == 0 and f.read().split() == ["0", "0", "4294967295"]
    with open("/proc/self/oom_score_adj", "w") as f:
        f.write("1000")                                 # where memory runs out, this one goes first
    other_user = 2 ** 30 + os.getpid()                  # a limit on processes counts a user's

    # 1. Namespaces. An ordinary user may make them inside a user namespace, where it stays itself.
    if is_root:
        call("unshare", NEWNS | NEWIPC | NEWPID | NEWNET)
    else:
        call("unshare", NEWUSER | NEWNS | NEWIPC | NEWPID | NEWNET)
        maps = {"setgroups": "deny", "uid_map": f"{uid} {uid} 1", "gid_map": f"{gid} {gid} 1"}
        for name, text in maps.items():
            with open(f"/proc/self/{name}", "w") as f:
                f.write(text)

    # 2. Files. /proc has other processes, /run the sockets of services: both are covered.
    call("mount", None, b"/", None, REC | PRIVATE, None)
    for folder in filter(os.path.isdir, (b"/proc", b"/run")):
        call("mount", b"none", folder, b"tmpfs", 0, None)
    attributes = struct.pack("4Q", READ_ONLY, 0, 0, 0)
    call("syscall", MOUNT_SETATTR, AT_FDCWD, b"/", AT_RECURSIVE, attributes, len(attributes))

    # 3. Processes. The child is the first of its namespace and ends with this one; when it ends,
    # the kernel ends the grandchild, which runs the program, and all that this has started.
    for _ in range(2):
        call("prctl", PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        child = os.fork()
        if child:
            os.waitpid(child, 0)
            os._exit(0)

    # 4. Identity. Of root's powers only that to read Python's own files is kept.
    kept = 0
    if is_root:
        kept = DAC_READ_SEARCH
        call("prctl", KEEPCAPS, 1, 0, 0, 0)
        os.setgroups([])
        os.setresgid(other_user, other_user, other_user)
        os.setresuid(other_user, other_user, other_user)
    call("capset", struct.pack("Ii", 0x20080522, 0), struct.pack("6I", kept, kept, 0, 0, 0, 0))
    call("prctl", NO_NEW_PRIVS, 1, 0, 0, 0)
    resource.setrlimit(resource.RLIMIT_NPROC, (TASKS, TASKS))


def limit(seconds, memory):
    limits = {"CPU": int(seconds) + 2, "AS": memory, "FSIZE": 0, "NOFILE": 64, "CORE": 0}
    if sys.platform == "darwin":
        del limits["AS"]                                # macOS does not limit the address space
    for name, value in limits.items():
        kind = getattr(resource, f"RLIMIT_{name}")
        hard = resource.getrlimit(kind)[1]
        if hard != resource.RLIM_INFINITY:              # a limit can only be lowered
            value = min(value, hard)
        resource.setrlimit(kind, (value, value))


def execute(parts, token_pipe, out):
    """Run the pieces and end this process. The proof that the last one ended is a word that waits
    in a pipe until then, so that the program finds it in no variable."""
    read, write, leave, space = os.read, os.write, os._exit, {}     # a program may replace os.read
    try:
        write(out, b"\n")
        for code in [compile(part, "<generated>", "exec") for part in parts]:
            exec(code, space)
        write(out, b"passed " + read(token_pipe, 32) + b"\n")
    except BaseException as error:
        text = f"{type(error).__name__}: {str(error)[:200]!r}\n"
        write(out, text.encode("ascii", "replace"))
    finally:
        leave(0)


if __name__ == "__main__":
    job = json.load(sys.stdin)
    out = os.dup(1)
    os.dup2(2, 0)                                       # no input, and what is printed goes nowhere
    os.dup2(2, 1)
    if not job["unsafe"]:
        isolate()
    limit(job["seconds"], job["memory"])
    execute(job["parts"], job["token_pipe"], out)
