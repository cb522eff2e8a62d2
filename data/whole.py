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

import data
from common import Fail
from data.files import documents
from data.writing import encode, plain, stored, token_type, write_json


def replace(text, *pairs):
    for old, new in pairs:
        text = text.replace(old, new)
    return text


def attach(text, marks):
    """'a , b' -> 'a, b' for each of the marks, one after the other"""
    return replace(text, *((f" {mark} ", f"{mark} ") for mark in marks))


def wikitext(text):
    text = replace(text, ("s '", "s'"), (" @-@ ", "-"), (" @,@ ", ","), (" @.@ ", "."))
    text = attach(text, ":;.!?,")
    for left, right in ("()", "[]", "{}", '""', "''"):
        inside = rf"\{left}\s*([^\{right}]*?)\s*\{right}"
        text = re.sub(inside, rf"{left}\1{right}", text)
    text = replace(text, ("= = = =", "===="), ("= = =", "==="), ("= =", "=="), (" ° ", "°"))
    return replace(text, (" \n", "\n"), ("\n ", "\n"), (" N ", " 1 "), (" 's", "'s"))


def ptb(text):
    text = replace(text, (" 's", "'s"), ("s ' ", "s' "), (" n't", "n't"), (" \n ", "\n"))
    text = text.replace("\\/", "/")
    while " N " in text:                            # a number; neighbours share a space
        text = text.replace(" N ", " 1 ")
    return replace(text, ("$ 1", "$1"), ("# 1", "#1"), ("<unk>", "?"))


def lm1b(text):
    text = replace(text, ("http : / / ", "http://"), ("https : / / ", "https://"))
    for old, new in ((r" '(\w+)", r"'\1"), (r" (\w+) \. ", r" \1. "), (r" (\w+) \.$", r" \1.")):
        text = re.sub(old, new, text)
    text = re.sub(r" ([?!])$", r"\1", attach(text, "?!"))
    text = replace(attach(text, ",:;"), (" / ", "/"))
    for old, new in ((r'" ([^"]+) "', r'"\1"'), (r"' ([^']+) '", r"'\1'"),
                     (r"\( ([^\(\)]+) \)", r"(\1)"), (r"\[ ([^\[\]]+) \]", r"[\1]")):
        text = re.sub(old, new, text)
    return replace(text, ("$ ", "$"), ("£ ", "£"))


DETOKENIZERS = {"wikitext": wikitext, "ptb": ptb, "lm1b": lm1b}


def load(path, tokenizer, block_size, split="paragraph", field="text", packing="documents",
         detokenize=""):
    """-> data.Documents, and words per byte: words of the file as it is, bytes of what is judged"""
    if not os.path.isfile(path):
        raise Fail(f"--whole reads a file, and {path} is none: name one with --dataset")
    undo = DETOKENIZERS.get(detokenize, str)
    words, size, encoded = 0, 0, []
    for document in documents(path, split, field):
        words += len(plain(document).split())
        if isinstance(document, str):               # a task has no marks
            document = undo(document)
        size += len(plain(document).encode())
        encoded.append(encode(document, tokenizer))
    tasks = any(given is not None for _, given in encoded)
    dtype = token_type(tokenizer, tasks)
    with tempfile.TemporaryDirectory() as folder:   # what has been opened can still be read
        bin = os.path.join(folder, "whole.bin")
        with open(bin, "wb") as f:
            f.writelines(stored(ids, given, tokenizer, dtype) for ids, given in encoded)
        write_json(os.path.join(folder, "meta.json"), {"dtype": dtype})
        return data.Documents(bin, tokenizer, block_size, packing), words / max(1, size)
