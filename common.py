"""What every script needs and no paper mentions: flags from a dataclass, one-sentence errors, files that are never half-written,
processes and signals.

The arguments of a script are one dataclass; its fields are its flags:

    @dataclass
    class Config:
        batch_size: int = flag(64, "documents per optimizer step, over all processes")
        compile: bool = flag(False, "torch.compile the transformer")     # --compile, --compile=False, --no-compile

    config = parse(Config, doc=__doc__)
"""
import argparse
import contextlib
import csv
import ctypes
import dataclasses
import difflib
import errno
import fcntl
import os
import signal
import sys
import tempfile
import typing

import torch
import torch.distributed as dist


class Fail(Exception):
    """A mistake of the user's, or of the world: one sentence that says what is wrong and what mends it. `main` prints it."""


def flag(default, help="", choices=None, low=None, high=None):
    """A dataclass field with a help text, and choices or bounds. Whole numbers are at least 1 and others at least 0, unless `low` says
    otherwise. Mutable defaults are not needed here."""
    return dataclasses.field(default=default, metadata={"help": help, "choices": choices, "low": low, "high": high})


def boolean(text):
    if str(text).lower() in ("1", "true", "yes", "on"):
        return True
    if str(text).lower() in ("0", "false", "no", "off"):
        return False
    raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")


def nearest(word, words):
    """The likeliest meant of `words`, as ', did you mean X?', or nothing."""
    close = difflib.get_close_matches(word, words, n=1, cutoff=0.5)
    return f", did you mean {close[0]}?" if close else ""


class Parser(argparse.ArgumentParser):
    def error(self, message):
        raise Fail(message)


def parser(cls, doc=""):
    p = Parser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    hints = typing.get_type_hints(cls)
    for f in dataclasses.fields(cls):
        kind, optional = hints[f.name], False
        if type(None) in typing.get_args(kind):                         # `float | None`: the flag's type is the other one
            kind, optional = next(k for k in typing.get_args(kind) if k is not type(None)), True
        shown = "" if optional and f.default is None else f" (default: {f.default})"
        options = {"help": (f.metadata.get("help", "") + shown).replace("%", "%%"), "default": f.default}
        if f.metadata.get("choices"):
            options["choices"] = f.metadata["choices"]
        if kind is bool:
            p.add_argument(f"--{f.name}", type=boolean, nargs="?", const=True, metavar="BOOL", **options)
            p.add_argument(f"--no-{f.name}", dest=f.name, action="store_false", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
        else:
            p.add_argument(f"--{f.name}", type=kind, metavar=None if options.get("choices") else kind.__name__.upper(), **options)
    return p


def parse(cls, doc="", argv=None):
    """Flags -> an instance of the dataclass `cls`. `named` on the result is the set of flags that the user gave."""
    argv = sys.argv[1:] if argv is None else list(argv)
    p = parser(cls, doc)
    names = [o for a in p._actions for o in a.option_strings]
    for word in argv:
        name = word.split("=")[0]
        if name.startswith("--") and name not in names:
            raise Fail(f"unknown flag {name}{nearest(name, [n for n in names if not n.startswith('--no-')])} (--help lists them all)")
    values = vars(p.parse_args(argv))
    for f in dataclasses.fields(cls):
        if isinstance(values[f.name], list):                            # argparse drops the "--" of "--name=--"
            raise Fail(f"argument --{f.name}: expected one argument")
        if isinstance(values[f.name], (int, float)) and not isinstance(values[f.name], bool):
            check_bounds(f, values[f.name])
    config = cls(**values)
    config.named = {w.split("=")[0].removeprefix("--").removeprefix("no-") for w in argv if w.startswith("--")}
    return config


def check_bounds(f, value):
    low, high = f.metadata["low"], f.metadata["high"]
    low = low if low is not None else int(isinstance(value, int))
    high = high if high is not None else 2 ** 40 if isinstance(value, int) else sys.float_info.max        # not: inf
    if not low <= value <= high:                                        # also for nan
        limits = f"between {low:g} and {high:g}" if f.metadata["high"] is not None else f"at least {low:g}" if value < low else "a number that is smaller"
        raise Fail(f"--{f.name} {value} must be {limits}")


@contextlib.contextmanager
def aside(path, mode="w", **options):
    """Open a file that appears at `path` whole or not at all: written aside, flushed to disk, renamed."""
    path = os.path.abspath(path)
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=os.path.dirname(path), prefix="." + os.path.basename(path) + ".")
    except OSError as e:
        raise Fail(f"cannot write {path}: {e.strerror}") from None
    try:
        os.fchmod(handle, 0o666 & ~umask())
        with os.fdopen(handle, mode, **options) as f:
            yield f
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def umask():
    """The process's file mode mask (Python can only read it by setting it)."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


class Team:
    """The processes of a run: one, or those that torchrun started."""

    def __init__(self, device):
        self.rank, self.world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        self.local = int(os.environ.get("LOCAL_RANK", 0))
        self.device = f"cuda:{self.local}" if device == "cuda" and self.many else device
        if self.many:
            dist.init_process_group("cpu:gloo,cuda:nccl" if device == "cuda" else "gloo")
            if device == "cuda":
                torch.cuda.set_device(self.device)

    @property
    def many(self):
        return "RANK" in os.environ

    def sum(self, x):
        """Add up a CPU tensor over the processes, in place."""
        if self.many:
            dist.all_reduce(x)
        return x

    def say(self, *words):
        """Print on the first process. A terminal that went away, or a full disk behind it, does not end a run: it goes on in silence."""
        if self.rank == 0:
            try:
                print(*words, flush=True)
            except OSError:
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


class Stop:
    """SIGINT and SIGTERM ask the run to save and end; a second one ends it at once."""

    def __init__(self):
        self.asked = 0
        for s in (signal.SIGINT, signal.SIGTERM):
            signal.signal(s, self.on)

    def on(self, signum, frame):
        if self.asked:
            os._exit(128 + signum)
        self.asked = signum


def trim():
    """Give back the memory that malloc holds and nobody uses (glibc; elsewhere nothing happens). Packed rows have a new length at every step,
    and the holes that tensors of ever other sizes leave on a CPU would add up to gigabytes."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def lock(out_dir):
    """Claim out_dir for this process; a dead process holds no claim. Returns the open file: keep it."""
    try:
        os.makedirs(out_dir, exist_ok=True)
        f = open(os.path.join(out_dir, ".lock"), "w")
    except OSError as e:
        raise Fail(f"cannot write to --out_dir {out_dir}: {e.strerror}") from None
    try:
        fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise Fail(f"another run is writing to {out_dir}: wait for it, or name another --out_dir") from None
    return f


class Log:
    """log.csv: one row per logged step, without clock times, so that equal runs have equal files. Also held in memory for loss.png."""
    NAMES = ("step", "loss", "unmask", "insert", "val", "lr", "gnorm", "tokens")

    def __init__(self, path, upto):
        self.path, self.rows = path, []
        if upto and os.path.exists(path):
            with open(path, newline="") as f:
                self.rows = [r for r in csv.DictReader(f) if (r["step"] or "").isdigit() and int(r["step"]) <= upto]
        self.write()

    def add(self, **row):
        self.rows.append({k: f"{row[k]:.6g}" if isinstance(row.get(k), float) else row.get(k, "") for k in self.NAMES})

    def write(self):
        with aside(self.path, newline="") as f:
            out = csv.DictWriter(f, self.NAMES, lineterminator="\n")
            out.writeheader()
            out.writerows(self.rows)


def main(run):
    """Run a script's main function: a Fail is one line on stderr and exit code 2; Ctrl-C and a closed pipe are no traceback."""
    try:
        sys.exit(run())
    except Fail as e:
        print(f"{os.path.basename(sys.argv[0])}: {e}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as e:
        if e.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        print(f"{os.path.basename(sys.argv[0])}: the disk is full, or a limit on files is reached ({e.filename or e.strerror}); "
              "free some space and run the same command again", file=sys.stderr)
        sys.exit(2)
