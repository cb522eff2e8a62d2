"""Tokenizers: text <-> ids. One is known by its name, or by the dict that its spec() returns.

    bytes           utf-8 bytes, V = 256; NUL ends a document, and is dropped from texts
    bpe, bpe-2048   byte-level BPE, trained on the data set (bpe.py); V = 1024, or as named
    gpt2            tiktoken's GPT-2, V = 50257
    numbers-V       ids that stand for themselves, such as the cells of a maze; the last is the end
    intensities-V   the same for the pixels of images, which need no end: eot is -1, which no id is
    FOLDER          that of a pretrained model, with its tokenizer.json and config.json
"""
import functools
import hashlib
import os
import re

import tiktoken

from common import Fail
from data.bpe import PATTERN, train
from retrofit import tokenizer as hub


class Tokenizer:
    """encoding: a tiktoken.Encoding, or what looks like one. eot: the id that ends a document; no
    text has it. tag: the name, with a hash if it is trained or pretrained. ranks: the tokens of a
    trained one, hexadecimal."""

    def __init__(self, name, encoding, vocab_size, eot, tag="", ranks=()):
        self.name, self.encoding, self.vocab_size, self.eot = name, encoding, vocab_size, eot
        self.tag, self.ranks = tag or name, ranks

    def encode(self, text):
        """Ordinary text only: '<|endoftext|>' in a text is thirteen characters, no symbol."""
        return self.encoding.encode_ordinary(text.encode("utf-8", "replace").decode())

    def decode_bytes(self, ids):
        """Never raises: ends of text and ids out of range are left out."""
        ids = [i for i in map(int, ids) if 0 <= i < self.vocab_size and i != self.eot]
        return self.encoding.decode_bytes(ids)

    def decode(self, ids):
        """Never raises: as above, and broken utf-8 becomes U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def spec(self):
        """A plain dict, for checkpoints and files, of which tokenizer_from makes the same again"""
        spec = {"name": self.name, "tag": self.tag}
        return {**spec, "ranks": self.ranks} if self.ranks else spec

    @functools.cached_property
    def blank_line(self):
        """The ids between a and b in 'a\\n\\nb'; [] where a blank line has no ids of its own"""
        if isinstance(self.encoding, Numbers):
            return []
        ids = self.encode("a\n\nb")[1:-1]
        return ids if self.decode(ids) == "\n\n" else []


class Utf8:
    def encode_ordinary(self, text):
        return list(text.encode().replace(b"\0", b""))

    def decode_bytes(self, ids):
        return bytes(ids)


class Numbers:
    """The text of [3, 14] is '3 14'. `end` and more are no numbers."""

    def __init__(self, end):
        self.end = end

    def encode_ordinary(self, text):
        words = text.split()
        if not all(word.isdecimal() and int(word) < self.end for word in words):
            raise Fail(f"{text!r} must be whole numbers below {self.end} with spaces between them")
        return [int(word) for word in words]

    def decode_bytes(self, ids):
        return " ".join(map(str, ids)).encode()


def tokenizer_from(spec):
    """A name, a spec or a Tokenizer -> Tokenizer. Raises Fail for an unknown name, and for an
    untrained BPE."""
    if isinstance(spec, Tokenizer):
        return spec
    if isinstance(spec, dict) and "ranks" in spec:
        return trained(spec.get("name"), spec["ranks"])
    if isinstance(spec, dict):
        spec = spec.get("name")
    name = str(spec)
    if name == "bytes":
        return Tokenizer(name, Utf8(), 256, 0)
    if name == "gpt2":
        return Tokenizer(name, gpt2(), 50257, 50256)
    if found := re.fullmatch(r"numbers-([1-9]\d{0,8})", name):
        V = int(found[1])
        return Tokenizer(name, Numbers(V - 1), V, V - 1)
    if found := re.fullmatch(r"intensities-([1-9]\d{0,8})", name):
        V = int(found[1])
        return Tokenizer(name, Numbers(V), V, -1)
    path = os.path.join(name, "tokenizer.json")
    if os.path.exists(path):
        with open(path, "rb") as f:
            digest = hashlib.file_digest(f, "sha256").hexdigest()
        tag = f"{os.path.basename(os.path.abspath(name))}-{digest[:8]}"
        return Tokenizer(name, *hub.load(name), tag)
    raise Fail(f"unknown tokenizer {name!r}: it is bytes, gpt2, bpe or bpe-SIZE (for a data set "
               "that is made from texts), numbers-V, or a folder with a tokenizer.json")


def tokenizer_for(tokenizer, texts):
    """The same, but bpe and bpe-SIZE are trained on `texts`."""
    size = bpe_size(tokenizer)
    if not size:
        return tokenizer_from(tokenizer)
    ranks = train(texts, size - 1)                  # the last id is the end of text
    return trained(f"bpe-{size}", [token.hex() for token in ranks])


def bpe_size(tokenizer):
    """'bpe' -> 1024, 'bpe-2048' -> 2048, anything else -> 0"""
    found = re.fullmatch(r"bpe(?:-(\d{1,9}))?", str(tokenizer))
    return int(found[1] or 1024) if found else 0


def trained(name, ranks):
    """A byte-level BPE from its tokens, hexadecimal, by rank. The id after the last ends a text."""
    try:
        tokens = {bytes.fromhex(token): rank for rank, token in enumerate(ranks)}
    except (TypeError, ValueError):
        tokens = {}
    if not tokens.keys() >= {bytes([b]) for b in range(256)} or len(tokens) < len(ranks):
        raise Fail(f"the vocabulary of the tokenizer {name!r} is damaged: prepare the data again")
    encoding = tiktoken.Encoding(name, pat_str=PATTERN, special_tokens={}, mergeable_ranks=tokens)
    tag = f"{name}-{hashlib.sha256(repr(list(tokens)).encode()).hexdigest()[:8]}"
    return Tokenizer(name, encoding, len(tokens) + 1, len(tokens), tag, ranks)


@functools.cache
def gpt2():
    try:
        return tiktoken.get_encoding("gpt2")
    except Exception as e:      # no network, a proxy, a damaged file: many kinds are raised
        folder = os.environ.get("TIKTOKEN_CACHE_DIR") or "a folder that TIKTOKEN_CACHE_DIR names"
        raise Fail("the GPT-2 vocabulary is not here and cannot be fetched "
                   f"({type(e).__name__}): get vocab.bpe and encoder.json from "
                   "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/, and put them "
                   "as 6d1cbeee0f20b3d9449abfede4726ed8212e3aee and "
                   f"6c7ea1a7e38e3a7f062df639a5b80947f075ffe6 into {folder}") from None


def tag_of(tokenizer):
    """A Tokenizer or a name -> what names its folders: bpe -> bpe-1024, MODEL -> MODEL-HASH"""
    size = bpe_size(tokenizer)
    return f"bpe-{size}" if size else tokenizer_from(tokenizer).tag
