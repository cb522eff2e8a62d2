"""functions: whole functions of your own Python's standard library, at most 1024 characters each.

    python data/functions/prepare.py        # some seconds; train.py does it where it is missing
"""
import ast
import os
import sys
import textwrap

sys.path.insert(0, os.path.abspath(os.path.join(os.path.dirname(__file__), "..", "..")))
import data
from common import main
from data.python.prepare import harvest, library

TOKENIZER, BLOCK_SIZE = "bpe-2048", 1024
TRAINING = dict(block_size=1024, batch_size=64, n_layer=8, n_head=8, n_embd=512, rope_theta=1000.0,
                learning_rate=2e-3, max_iters=2000, targets="sampled")
MOST = 1024                     # bytes


def functions():
    """-> set of functions and methods with their decorators, dedented, of 16 to MOST bytes"""
    found = set()
    for source, tree in library():
        for s in ast.walk(tree):
            if isinstance(s, (ast.FunctionDef, ast.AsyncFunctionDef)):
                first = min([s.lineno] + [d.lineno for d in s.decorator_list])
                lines = b"\n".join(source[first - 1:s.end_lineno]).decode()
                found.add(textwrap.dedent(lines).rstrip())
    return {text for text in found if 16 <= len(text.encode()) <= MOST}


def prepare(folder, tokenizer):
    harvest("functions", functions, folder, tokenizer)


if __name__ == "__main__":
    main(lambda: data.by_hand("functions", __doc__))
