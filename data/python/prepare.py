"""python: one-line statements of your own Python's standard library, of at most 64 characters.

    python data/python/prepare.py           # some seconds; train.py does it where it is missing

Simple statements as they stand, headers (if, for, def, class, ...) closed with ` pass`:

    for name in sorted(names): pass
    return self._cache.get(key)
"""
import ast
import contextlib
import os
import re
import sys
import sysconfig
import tokenize
import warnings

sys.path.insert(0, os.path.abspath(os.path.join(os.path.dirname(__file__), "..", "..")))
import data
from common import Fail, main, say
from data.writing import text_hash

TOKENIZER, BLOCK_SIZE = "bpe-2048", 64
MOST = 64                       # bytes
HEADERS = (ast.For, ast.AsyncFor, ast.While, ast.If, ast.With, ast.AsyncWith, ast.FunctionDef,
           ast.AsyncFunctionDef, ast.ClassDef)
NOT_READ = ("test", "tests", "idle_test", "site-packages", "dist-packages")


def library():
    """The standard library less its tests: (lines as utf-8, syntax tree) of what parses"""
    for folder, folders, files in os.walk(sysconfig.get_path("stdlib")):
        folders[:] = [f for f in folders if f not in NOT_READ]
        for name in files:
            if not name.endswith(".py"):
                continue
            with contextlib.suppress(OSError, SyntaxError, ValueError, RecursionError):
                with tokenize.open(os.path.join(folder, name)) as f:
                    text = f.read()
                yield text.encode().split(b"\n"), ast.parse(text)


def parses(text):
    try:
        return bool(ast.parse(text).body)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False


def headers(line, s):
    """A statement that begins a block -> what its header may be: any # may begin a comment"""
    end = s.body[0].col_offset if s.body[0].lineno == s.lineno else None
    header = line[s.col_offset:end]
    for cut in re.finditer(b"#|$", header):
        text = header[:cut.start()].rstrip()
        if text.endswith(b":"):
            yield text + b" pass"


def one_liners():
    """-> set of statements of 4 to MOST bytes. (`elif x: pass` does not parse, and goes.)"""
    found = set()
    for source, tree in library():
        for s in ast.walk(tree):
            if isinstance(s, HEADERS):
                found.update(headers(source[s.lineno - 1], s))
            elif isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant):
                continue                                        # a docstring
            elif isinstance(s, ast.stmt) and s.lineno == s.end_lineno:
                found.add(source[s.lineno - 1][s.col_offset:s.end_col_offset])
    return {text.decode() for text in found if 4 <= len(text) <= MOST}


def harvest(name, find, folder, tokenizer):
    """Make a set of what find() finds in the library."""
    say(f"preparing {folder} from the standard library, some seconds")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")                         # the library's own SyntaxWarnings
        texts = [text for text in find() if parses(text)]
    if not texts:
        raise Fail("this Python has no sources of its standard library: use --dataset brackets, or "
                   "the path of a text")
    texts.sort(key=lambda text: (text_hash(text), text))        # the first ones are a fair sample
    train, val = data.split(texts, 0.05)
    made = {"name": name, "python": sys.version.split()[0]}
    data.write_texts(folder, train, val, tokenizer, made)


def prepare(folder, tokenizer):
    harvest("python", one_liners, folder, tokenizer)


if __name__ == "__main__":
    main(lambda: data.by_hand("python", __doc__))
