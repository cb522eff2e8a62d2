"""The tokenizer.json of a pretrained model (byte-level BPE, as LLaDA, GPT-2 and Llama 3 have) on
tiktoken's engine: the same ids as the hub's own library, without that library.

    encoding, vocab_size, eot = load("LLaDA-8B-Base")
    encoding.encode_ordinary("x<|endoftext|>")      # text only: thirteen characters after the x
    encoding.encode("x<|endoftext|>")               # special tokens are read: two ids
    encoding.decode_bytes(ids)

What frames a text (a begin-of-text token, padding, truncation) is the caller's. Assumption: no
special token begins with another one.
"""
import functools
import math
import os
import unicodedata

import tiktoken

from common import Fail
from retrofit.safetensors import read_json

# how ByteLevel splits a text into words
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


@functools.cache
def load(folder):
    """A model's folder -> (Encoding, vocabulary size, the id that ends a text: pad_token_id, or
    eos_token_id where that is absent or null)"""
    path = os.path.join(folder, "config.json")
    config = read_json(path)
    V, eot = config.get("vocab_size"), config.get("pad_token_id")
    if eot is None:
        eot = config.get("eos_token_id")
    if type(V) is not int or type(eot) is not int:
        raise Fail(f"{path} does not say which token ends a text: set vocab_size and eos_token_id")
    return read(os.path.join(folder, "tokenizer.json")), V, eot


@functools.cache
def alphabet():
    """Byte-level BPE spells bytes with 256 visible characters: {character: byte}"""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in plain]
    return {chr(b): b for b in plain} | {chr(256 + i): b for i, b in enumerate(rest)}


def spell(token):
    """The bytes of a token of the vocabulary"""
    if all(c in alphabet() for c in token):
        return bytes(alphabet()[c] for c in token)
    return token.encode()                               # a special one


def last_merges(pairs):
    """{(a, b): priority} -> {token: priority of its last merge}, for the tokens that the merges
    make of their own bytes.

    tiktoken merges two neighbours if their concatenation has a rank, tokenizer.json if their pair
    has one. With these ranks both do the same: where two neighbours cover all bytes of a token, no
    merge has crossed its ends, so the merges inside were those of the token by itself, and the two
    neighbours are its last pair. (Otherwise two merges that spell one token would be confused.)"""
    ranks = {}
    for token in {a + b for a, b in pairs}:
        parts = list(token)
        while len(parts) > 1:
            neighbours = enumerate(zip(parts, parts[1:]))
            rank, i = min((pairs.get(pair, math.inf), i) for i, pair in neighbours)
            if rank == math.inf:
                break
            parts[i:i + 2] = [parts[i] + parts[i + 1]]
        else:
            ranks[token] = rank                         # the parts have become one
    return ranks


def words(spec):
    """A pre-tokenizer -> the regular expression of a word. Raises ValueError for one that is not
    implemented."""
    steps = spec["pretokenizers"] if spec["type"] == "Sequence" else [spec]
    match steps:
        case [{"type": "ByteLevel", "add_prefix_space": False, **rest}]:
            return GPT2 if rest.get("use_regex", True) else r"[\s\S]+"
        case [{"type": "Split", "pattern": {"Regex": regex}, "behavior": kept, "invert": invert},
              {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}]:
            if kept == "Isolated":              # what lies between two matches is a word, too
                return rf"(?:{regex})|(?:(?!{regex})[\s\S])+"
            if kept == "Removed" and invert:
                return regex
    kinds = [step["type"] for step in steps]
    raise ValueError(f"its pre-tokenizer {kinds} is not ByteLevel without a space in front, alone "
                     "or after an isolated Split")


def check(part, name, **implemented):
    """Raises ValueError where an option of this part of a tokenizer.json has another value than
    those implemented. A part may be absent, and so may an option."""
    for option, values in implemented.items():
        if part and part.get(option) not in (None, *values):
            raise ValueError(f"its {name} has {option} = {part[option]!r}")


def read(path):
    """A tokenizer.json -> Encoding. Raises Fail where it is of another kind."""
    content = read_json(path)
    try:
        return Encoding(content)
    except (AttributeError, KeyError, TypeError, ValueError) as e:
        why = f"it lacks {e}" if isinstance(e, KeyError) else e
        raise Fail(f"{path} cannot be used: {why}; byte-level BPE as GPT-2's can") from None


class Encoding:
    """content: that of a tokenizer.json"""

    def __init__(self, content):
        bpe, vocab = content["model"], content["model"]["vocab"]
        added = {token["content"]: token["id"] for token in content["added_tokens"]}
        check(bpe, "model", type=["BPE"], dropout=[0], continuing_subword_prefix=[""],
              end_of_word_suffix=[""], byte_fallback=[False])
        check(content.get("normalizer"), "normalizer", type=["NFC"])
        check(content.get("decoder"), "decoder", type=["ByteLevel"])
        for token in content["added_tokens"]:
            check(token, "added token", single_word=[False], lstrip=[False], rstrip=[False])
        self.normal_form = content.get("normalizer") is not None

        # A merge is "a b" or ["a", "b"]. An id of tiktoken is a priority, so here it is called a
        # rank; self.ids has the file's id of each rank.
        merges = [m.split(" ") if isinstance(m, str) else m for m in bpe["merges"]]
        merges = [tuple(m) for m in merges]
        last = last_merges({pair: i for i, pair in enumerate(merges)})
        order = [*alphabet(), *sorted(last, key=last.get)]
        if bpe.get("ignore_merges"):                # a word that is a token stays whole
            for token in vocab.keys() - set(order) - added.keys():
                raise ValueError(f"it has ignore_merges, and no merges make its token {token!r}")
        self.ids = [vocab[token] for token in order] + [*added.values()]
        self.bpe = tiktoken.Encoding(
            "tokenizer.json", pat_str=words(content["pre_tokenizer"]),
            mergeable_ranks={spell(token): rank for rank, token in enumerate(order)},
            special_tokens={text: len(order) + i for i, text in enumerate(added)})
        self.special = self.bpe.special_tokens_set
        self.bytes = {id: spell(token) for token, id in vocab.items()}
        self.bytes |= {id: text.encode() for text, id in added.items()}

    def normalized(self, text):
        return unicodedata.normalize("NFC", text) if self.normal_form else text

    def encode_ordinary(self, text):
        """Text -> ids; special tokens in it are text like any other"""
        return [self.ids[rank] for rank in self.bpe.encode_ordinary(self.normalized(text))]

    def encode(self, text):
        """Text -> ids, with the special tokens in it"""
        ranks = self.bpe.encode(self.normalized(text), allowed_special="all")
        return [self.ids[rank] for rank in ranks]

    def decode_bytes(self, ids):
        return b"".join(self.bytes.get(int(i), b"") for i in ids)           # unknown ids: nothing
