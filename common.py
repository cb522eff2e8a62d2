"""What every script needs and no paper mentions: flags from a dataclass, one-sentence errors, files
that are never half-written, a log, signals.

The arguments of a script are one dataclass; its fields are its flags:

    @dataclass
    class Args:
        batch_size: int = flag(64, "documents per step")
        compile: bool = flag(False, "torch.compile the blocks")     # --compile, --no-compile

    args = parse(Args, __doc__)
"""
import argparse
import contextlib
import csv
import ctypes
import dataclasses
import difflib
import errno
import os
import signal
import sys
import tempfile

import torch

try:
    import fcntl
except ImportError:
    sys.exit("this project runs on Linux and macOS; on Windows use it inside WSL")


class Fail(Exception):
    """A mistake of the user's, or of the world: one sentence that says what is wrong and what mends
    it. `main` prints it."""


# -----------------------------------------------------------------------------
# flags

def flag(default, help="", choices=None, low=None, high=None):
    """A dataclass field with a help text, and choices or bounds. By default whole numbers are at
    least 1, other numbers at least 0, and all of them finite."""
    if type(default) is int:
        low, high = 1 if low is None else low, 2 ** 40 if high is None else high
    if type(default) is float:
        low, high = low or 0.0, sys.float_info.max if high is None else high
    metadata = dict(help=help, choices=choices, low=low, high=high)
    return dataclasses.field(default=default, metadata=metadata)


def boolean(text):
    if text.lower() in ("1", "true", "yes", "on"):
        return True
    if text.lower() in ("0", "false", "no", "off"):
        return False
    raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")


def nearest(word, words):
    """', did you mean X?', or nothing"""
    close = difflib.get_close_matches(word, words, n=1, cutoff=0.5)
    return f", did you mean {close[0]}?" if close else ""


class Parser(argparse.ArgumentParser):
    def error(self, message):
        raise Fail(message)


def parser(cls, doc):
    as_written = argparse.RawDescriptionHelpFormatter
    p = Parser(description=doc, formatter_class=as_written, allow_abbrev=False)
    for f in dataclasses.fields(cls):
        help = f"{f.metadata['help']} (default: {f.default})".replace("%", "%%")
        options = dict(help=help, default=f.default, choices=f.metadata["choices"])
        if type(f.default) is bool:
            options |= dict(type=boolean, nargs="?", const=True, metavar="BOOL")
            p.add_argument(f"--{f.name}", **options)
            hidden = dict(dest=f.name, action="store_false", help=argparse.SUPPRESS)
            p.add_argument(f"--no-{f.name}", **hidden)
        else:
            kind = type(f.default)
            metavar = None if f.metadata["choices"] else kind.__name__.upper()
            p.add_argument(f"--{f.name}", type=kind, metavar=metavar, **options)
    return p


def parse(cls, doc="", argv=None):
    """Flags -> an instance of the dataclass `cls`. `named`: the flags that were given."""
    argv = sys.argv[1:] if argv is None else list(argv)
    p = parser(cls, doc)
    known = [o for action in p._actions for o in action.option_strings]
    for word in argv:
        name = word.split("=")[0]
        if name.startswith("--") and name not in known:
            hint = nearest(name, [o for o in known if not o.startswith("--no-")])
            raise Fail(f"unknown flag {name}{hint} (--help lists them all)")
    args = cls(**vars(p.parse_args(argv)))
    for f in dataclasses.fields(cls):
        low, high, value = f.metadata["low"], f.metadata["high"], getattr(args, f.name)
        if type(value) is not type(f.default):                  # argparse makes [] of --flag=--
            raise Fail(f"--{f.name} needs a value")
        if low is not None and not low <= value <= high:                    # also for nan
            raise Fail(f"--{f.name} {value} must be between {low:g} and {high:g}")
    names = [word.split("=")[0] for word in argv if word.startswith("--")]
    args.named = {name.removeprefix("--").removeprefix("no-") for name in names}
    return args


def whole_numbers(text, name):
    """'16,64' -> [16, 64]"""
    try:
        numbers = [int(word) for word in text.split(",")]
    except ValueError:
        raise Fail(f"--{name} {text} must be whole numbers with commas between them") from None
    if min(numbers) < 1:
        raise Fail(f"--{name} {text}: every number must be at least 1")
    return numbers


# -----------------------------------------------------------------------------
# files

def remove_left(folder, name):
    """Remove what killed processes left of unfinished files of this name."""
    for old in os.listdir(folder):
        if old.startswith(f".{name}.") and old.endswith(".tmp"):
            os.unlink(os.path.join(folder, old))


@contextlib.contextmanager
def atomic_open(path, mode="w", **options):
    """Open a file that appears at `path` whole or not at all: written beside it, flushed, renamed.
    What a killed process left behind is removed by the next one that writes the same file."""
    path = os.path.abspath(path)
    folder, name = os.path.split(path)
    try:
        os.makedirs(folder, exist_ok=True)
        remove_left(folder, name)
        handle, temporary = tempfile.mkstemp(dir=folder, prefix=f".{name}.", suffix=".tmp")
    except OSError as e:
        raise Fail(f"cannot write {path}: {e.strerror}") from None
    try:
        umask = os.umask(0)
        os.umask(umask)
        os.fchmod(handle, 0o666 & ~umask)
        with os.fdopen(handle, mode, **options) as f:
            yield f
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def lock(folder):
    """Claim a folder for this process until it ends. Returns the open lock file: keep it."""
    try:
        os.makedirs(folder, exist_ok=True)
        f = open(os.path.join(folder, ".lock"), "w")
    except OSError as e:
        raise Fail(f"cannot write to {folder}: {e.strerror}") from None
    try:
        fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise Fail(f"another run is writing to {folder}: wait for it, or name another") from None
    return f


class Log:
    """log.csv, one row per logged step. All columns but `seconds` are equal for equal runs."""
    NAMES = ("step", "loss", "unmask", "insert", "val", "lr", "gnorm", "tokens", "seconds")

    def __init__(self, path, upto):
        self.path, self.rows = path, []
        if upto and os.path.exists(path):
            with open(path, newline="") as f:
                rows = list(csv.DictReader(f))
            self.rows = [r for r in rows if (r["step"] or "").isdigit() and int(r["step"]) <= upto]

    def add(self, **row):
        text = {k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()}
        self.rows.append({k: text.get(k, "") for k in self.NAMES})

    def write(self):
        write_csv(self.path, self.NAMES, self.rows)


def write_csv(path, names, rows):
    with atomic_open(path, newline="") as f:
        out = csv.DictWriter(f, names, lineterminator="\n", extrasaction="ignore")
        out.writeheader()
        out.writerows(rows)


# -----------------------------------------------------------------------------
# processes

def say(*words):
    """print, at once. A terminal that cannot show a character, went away or is on a full disk does
    not end a run."""
    text = " ".join(map(str, words))
    encoding = sys.stdout.encoding or "utf-8"
    try:
        print(text.encode(encoding, "replace").decode(encoding), flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def move(x, device):
    """A tensor on a device. The host does not wait for what the device is doing: a GPU fetches the
    tensor by itself, from pinned memory."""
    if torch.device(device).type == "cuda" and x.device.type == "cpu":
        x = x.pin_memory()
    return x.to(device, non_blocking=True)


def trim():
    """Give back the memory that malloc holds and nobody uses (glibc; elsewhere nothing happens).
    Rows have a new length in every step: the holes between tensors would add up to gigabytes."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


class Stop:
    """SIGINT and SIGTERM ask the run to save and end; a second one ends it at once."""

    def __init__(self):
        self.asked = False
        signal.signal(signal.SIGINT, self.ask)
        signal.signal(signal.SIGTERM, self.ask)

    def ask(self, signum, frame):
        if self.asked:
            os._exit(128 + signum)
        self.asked = True


def main(run):
    """Run a script's main function: a Fail is one line on stderr and exit code 2; no traceback for
    Ctrl-C, a closed pipe or a full disk."""
    script = os.path.basename(sys.argv[0])
    try:
        sys.exit(run())
    except Fail as e:
        print(f"{script}: {e}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as e:
        if e.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        print(f"{script}: the disk is full, or a limit on files is reached "
              f"({e.filename or e.strerror}); free some space and run the same command again",
              file=sys.stderr)
        sys.exit(2)
