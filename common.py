"""What every script needs and no paper mentions: flags from a dataclass, one-sentence errors, files that are never half-written.

The arguments of a script are one dataclass; its fields are its flags:

    @dataclass
    class Config:
        batch_size: int = flag(64, "documents per optimizer step, over all processes")
        compile: bool = flag(False, "torch.compile the transformer")     # --compile, --compile=False, --no-compile

    config = parse(Config, doc=__doc__)
"""
import argparse
import contextlib
import dataclasses
import difflib
import os
import sys
import tempfile
import typing


class Fail(Exception):
    """A mistake of the user's, or of the world: one sentence that says what is wrong and what mends it. `main` prints it."""


def flag(default, help="", choices=None):
    """A dataclass field with a help text (and choices). Mutable defaults are not needed here."""
    return dataclasses.field(default=default, metadata={"help": help, "choices": choices})


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
    config = cls(**values)
    config.named = {w.split("=")[0].removeprefix("--").removeprefix("no-") for w in argv if w.startswith("--")}
    return config


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
        if e.errno != 28:
            raise
        print(f"{os.path.basename(sys.argv[0])}: the disk is full ({e.filename or e}); free some space and run the same command again",
              file=sys.stderr)
        sys.exit(2)
