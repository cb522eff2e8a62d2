"""All documents of a file, as a benchmark wants them: not split into training and validation, and
with its tokenisation marks undone.

    documents, words_per_byte = load("wiki.test.txt", tokenizer, 1024, detokenize="wikitext")

The marks are undone by the rules that MDLM and its predecessors use, so that zero-shot numbers can
be compared: "a 5 @-@ year plan , it 's said" -> "a 5-year plan, it's said". Differs from MDLM: a
rule for WikiText's years, whose pattern never matches, is left out.
"""
import os
import re
import tempfile

from common import Fail
from data.bins import Documents
from data.files import documents
from data.writing import encode, plain, write


def attach(marks):
    """Rules that make 'a , b' into 'a, b'"""
    return [(rf" [{mark}] ", f"{mark} ") for mark in marks]


def inside(pairs):
    """Rules that make '( a )' into '(a)'"""
    return [(rf"\{left}\s*([^\{right}]*?)\s*\{right}", rf"{left}\1{right}")
            for left, right in pairs]


# what is replaced by what, one after the other
DETOKENIZERS = {
    "wikitext": [
        ("s '", "s'"), (" @-@ ", "-"), (" @,@ ", ","), (r" @\.@ ", "."), *attach(":;.!?,"),
        *inside(["()", "[]", "{}", '""', "''"]), ("= = = =", "===="), ("= = =", "==="),
        ("= =", "=="), (" ° ", "°"), (" \n", "\n"), ("\n ", "\n"), (" N ", " 1 "), (" 's", "'s")],
    "ptb": [
        (" 's", "'s"), ("s ' ", "s' "), (" n't", "n't"), (" \n ", "\n"), (r"\\/", "/"),
        (" N(?= )", " 1"), (r"\$ 1", "$1"), ("# 1", "#1"), ("<unk>", "?")],
    "lm1b": [
        ("http : / / ", "http://"), ("https : / / ", "https://"), (r" '(\w+)", r"'\1"),
        (r" (\w+) \. ", r" \1. "), (r" (\w+) \.$", r" \1."), *attach("?!"), (" ([?!])$", r"\1"),
        *attach(",:;"), (" / ", "/"), (r'" ([^"]+) "', r'"\1"'), ("' ([^']+) '", r"'\1'"),
        (r"\( ([^\(\)]+) \)", r"(\1)"), (r"\[ ([^\[\]]+) \]", r"[\1]"), (r"\$ ", "$"),
        ("£ ", "£")]}


def undo(text, name):
    for marked, ordinary in DETOKENIZERS.get(name, []):
        text = re.sub(marked, ordinary, text)
    return text


def load(path, tokenizer, block_size, split="paragraph", field="text", packing="documents",
         detokenize=""):
    """-> data.Documents, and words per byte: words of the file as it is, bytes of what is judged"""
    if not os.path.isfile(path):
        raise Fail(f"--whole reads a file, and {path} is none: name one with --dataset")
    marked = list(documents(path, split, field))
    words = sum(len(plain(document).split()) for document in marked)
    found = [undo(d, detokenize) if isinstance(d, str) else d for d in marked]  # tasks have none
    size = sum(len(plain(document).encode()) for document in found)
    with tempfile.TemporaryDirectory() as folder:   # what has been opened can still be read
        write(folder, {"val": [encode(d, tokenizer) for d in found]}, tokenizer, made={})
        opened = Documents(os.path.join(folder, "val.bin"), tokenizer, block_size, packing)
    return opened, words / max(1, size)
