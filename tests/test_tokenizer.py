"""retrofit/tokenizer.py: the ids of a tokenizer.json, as the textbook's algorithm and the hub's own
library give them. Equality with the package `tokenizers` is tested where it is installed."""
import json
import os
import pickle
import random
import re

import pytest
import tiktoken

from common import Fail
from hub import byte_level, split, tokenizer_json
from retrofit import tokenizer

CHARS = {byte: c for c, byte in tokenizer.alphabet().items()}
LLAMA = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
         r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
TEXT = ("Hello  world!\n\n  it's 12345.67 — naïve café, 日本語と한국어, \U0001f600\U0001f468\u200d"
        "\U0001f469 e\u0301 \u00a0\u3000\r\n\tI'LL don't \x00\x85 ½ ﬁ İ ſ\n"
        "def f(x):\n    return x**2  # ok   \n<|endoftext|>")


def saved(folder, content):
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(content))
    return path


def decode(encoding, ids):
    return encoding.decode_bytes(ids).decode("utf-8", "replace")


def opened(folder, content):
    return tokenizer.read(saved(folder, content))


def naive(word, merges):
    """Textbook BPE of a word of visible characters: again and again the first merge of the list
    that can be done, at its leftmost place."""
    parts, priority = list(word), {pair: i for i, pair in enumerate(merges)}
    while True:
        pairs = [(priority[p], i) for i, p in enumerate(zip(parts, parts[1:])) if p in priority]
        if not pairs:
            return parts
        _, i = min(pairs)
        parts[i:i + 2] = [parts[i] + parts[i + 1]]


def random_merges(rng, count=40):
    """Merges no training would make: two ways to one token, tokens out of reach, repeats."""
    tokens, merges = list("abĠĊ"), []
    for _ in range(count):
        pair = rng.choice(tokens), rng.choice(tokens)
        if len("".join(pair)) <= 8:
            merges.append(pair)
            tokens.append("".join(pair))
    return merges


def visible(text):
    return "".join(CHARS[b] for b in text.encode())


def test_any_list_of_merges_equals_the_textbook_algorithm(tmp_path):
    """Ids need not be in merge order, a token may have two merges, a merge may never be reached."""
    rng = random.Random(0)
    for trial in range(60):
        merges = random_merges(rng)
        content = tokenizer_json(merges, pre=byte_level(regex=False), shuffle=trial,
                                 lists=trial % 2 == 0)
        encoding, vocab = opened(tmp_path, content), content["model"]["vocab"]
        for _ in range(40):
            text = "".join(rng.choice("ab \n") for _ in range(rng.randrange(1, 30)))
            expected = [vocab[t] for t in naive(visible(text), merges)]
            assert encoding.encode(text) == expected, (trial, text)
            assert encoding.encode_ordinary(text) == expected
            assert decode(encoding, expected) == text


def test_words_and_special_tokens(tmp_path):
    merges = [("h", "e"), ("l", "l"), ("he", "ll"), ("Ġ", "w"), ("Ġw", "o"), ("Ġ", "Ġ"), ("Ã", "©")]
    content = tokenizer_json(merges, ["<|endoftext|>", "<|mask|>"], shuffle=1)
    encoding, vocab = opened(tmp_path, content), content["model"]["vocab"]
    special = {token["content"]: token["id"] for token in content["added_tokens"]}
    name = {id: token for token, id in (vocab | special).items()}

    def spelled(text):
        return [name[id] for id in encoding.encode(text)]

    assert spelled("hello  world é") == ["hell", "o", "Ġ", "Ġwo", "r", "l", "d", "Ġ", "Ã©"]
    assert spelled("he<|mask|>ll<|endoftext|>") == ["he", "<|mask|>", "ll", "<|endoftext|>"]
    assert spelled("") == []
    assert len(encoding.encode_ordinary("<|mask|>")) == 8               # text like any other
    ids = [vocab["hell"], special["<|mask|>"], 10 ** 6]
    assert decode(encoding, ids) == "hell<|mask|>"                       # unknown ids: nothing
    assert decode(encoding, encoding.encode("\ud800")) == "\ufffd"       # a lone surrogate
    assert pickle.loads(pickle.dumps(encoding)).encode("hello") == encoding.encode("hello")


def test_a_text_is_normalized(tmp_path):
    encoding = opened(tmp_path, tokenizer_json([], ["<x>"], normalizer={"type": "NFC"}))
    assert decode(encoding, encoding.encode("e\u0301<x>")) == "\u00e9<x>"
    assert decode(encoding, encoding.encode_ordinary("e\u0301")) == "\u00e9"


def test_a_folder_says_which_token_ends_a_text(tmp_path):
    """pad_token_id; where it is absent or null, eos_token_id"""
    saved(tmp_path, tokenizer_json([], ["<end>", "<pad>"]))
    for change, eot in [({"pad_token_id": 257}, 257), ({"pad_token_id": None}, 256), ({}, 256),
                        ({"pad_token_id": 0}, 0)]:
        config = {"vocab_size": 260, "eos_token_id": 256, **change}
        (tmp_path / "config.json").write_text(json.dumps(config))
        tokenizer.load.cache_clear()
        _, V, end = tokenizer.load(str(tmp_path))
        assert (V, end) == (260, eot)
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": 260}))
    tokenizer.load.cache_clear()
    with pytest.raises(Fail, match="which token ends a text"):
        tokenizer.load(str(tmp_path))


# -----------------------------------------------------------------------------
# real tokenizers

def test_gpt2_itself(tmp_path):
    """GPT-2's vocabulary written as a tokenizer.json gives tiktoken's own GPT-2 encoding."""
    folder = os.environ.get("TIKTOKEN_CACHE_DIR", "")
    merges = os.path.join(folder, "6d1cbeee0f20b3d9449abfede4726ed8212e3aee")
    vocab = os.path.join(folder, "6c7ea1a7e38e3a7f062df639a5b80947f075ffe6")
    if not os.path.exists(merges) or not os.path.exists(vocab):
        pytest.skip("GPT-2's own files are not in $TIKTOKEN_CACHE_DIR")
    with open(merges, encoding="utf-8") as f:
        pairs = [tuple(line.split(" ")) for line in f.read().split("\n")[1:-1]]
    content = tokenizer_json(pairs, ["<|endoftext|>"])
    with open(vocab) as f:
        content["model"]["vocab"] = json.load(f)
    content["added_tokens"][0]["id"] = 50256
    encoding, real = opened(tmp_path, content), tiktoken.get_encoding("gpt2")
    with open(__file__, encoding="utf-8") as f:
        text = TEXT * 10 + f.read()
    ids = encoding.encode(text)
    assert ids == real.encode(text, allowed_special="all")
    assert encoding.encode_ordinary(text) == real.encode_ordinary(text)
    assert decode(encoding, ids) == text


def snippets(rng, count):
    pool = ["<|endoftext|>", "<|mask|>", "<|end", " ", "  ", "\n", "\r\n", "\t",
            "\u00a0", "\u3000", "'s", "'LL", "ſ", "don't", "123", "4567", "½", "Å", "A\u030a", "ﬁ",
            "日本語", "한국", "\u1112\u1161\u11ab", "\U0001f600", "\U0001f468\u200d\U0001f469",
            "\u200b", "\x00", "\x85", "\u2028", "İ", "ß", "_", "::", "->", "   x", "foo", "Bar",
            "é", "e\u0301", "\U0001d518", "१२", "ا", "\ufeff", "the", " the", "ing"]
    texts = ["".join(rng.choices(pool, k=rng.randrange(1, 25))) for _ in range(count)]
    return texts + ["", " ", TEXT, TEXT * 3]


PRE_TOKENIZERS = [(byte_level(), None), (byte_level(regex=False), None), (split(LLAMA), None),
                  (split(LLAMA, "Removed", True), None),
                  (split(r"\p{L}+|\p{N}"), None), (split(r"\p{L}+|\p{N}", "Isolated", True), "NFC"),
                  (split(LLAMA), "NFC")]


def trained_by_the_hubs_library(tokenizers, pre, form):
    """The content of a tokenizer.json with 900 tokens, learnt from this file"""
    with open(__file__, encoding="utf-8") as f:
        corpus = TEXT * 20 + f.read()
    blank = tokenizer_json([], pre=pre, normalizer=form and {"type": form})
    hub = tokenizers.Tokenizer.from_str(json.dumps(blank))
    hub.train_from_iterator(corpus.splitlines(keepends=True), tokenizers.trainers.BpeTrainer(
        vocab_size=900, show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|endoftext|>", "<|mask|>"]))
    return json.loads(hub.to_str())


def shuffled(content, rng):
    """The same merges, other ids"""
    vocab = content["model"]["vocab"]
    for token, i in zip(list(vocab), rng.sample(range(1000), len(vocab))):
        vocab[token] = i
    for token in content["added_tokens"]:
        token["id"] = vocab[token["content"]]
    content["added_tokens"].sort(key=lambda token: token["id"])
    return content


@pytest.mark.parametrize("pre, form", PRE_TOKENIZERS)
def test_equals_the_hubs_library(tmp_path, pre, form):
    tokenizers, rng = pytest.importorskip("tokenizers"), random.Random(0)
    content = trained_by_the_hubs_library(tokenizers, pre, form)
    for content in (content, shuffled(content, rng)):
        path = saved(tmp_path, content)
        hub, encoding = tokenizers.Tokenizer.from_file(str(path)), tokenizer.read(path)
        for text in snippets(rng, 300):
            ids = hub.encode(text, add_special_tokens=False).ids
            assert encoding.encode(text) == ids, text
            assert decode(encoding, ids) == hub.decode(ids, skip_special_tokens=False)


def test_equals_the_hubs_library_on_merges_no_training_makes(tmp_path):
    tokenizers, rng = pytest.importorskip("tokenizers"), random.Random(1)
    for trial in range(40):
        added = [] if trial % 2 else ["ab"]
        content = tokenizer_json(random_merges(rng), added, byte_level(regex=trial % 3 == 0), trial)
        path = saved(tmp_path, content)
        hub, encoding = tokenizers.Tokenizer.from_file(str(path)), tokenizer.read(path)
        if added and content["added_tokens"][0]["id"] != hub.token_to_id("ab"):
            continue                    # that library renumbers some tokens; here the file counts
        for _ in range(40):
            text = "".join(rng.choice("ab \n") for _ in range(rng.randrange(1, 30)))
            assert encoding.encode(text) == hub.encode(text).ids, (trial, text)


# -----------------------------------------------------------------------------
# of another kind

PLAIN = [("a", "b"), ("ab", "c")]


def changed(**parts):
    return {**tokenizer_json(PLAIN), **parts}


def without(token):
    content = tokenizer_json(PLAIN)
    del content["model"]["vocab"][token]
    return content


DIGITS = {"type": "Sequence", "pretokenizers": [{"type": "Digits"}, byte_level()]}


@pytest.mark.parametrize("content, says", [
    (changed(model={"type": "WordPiece", "vocab": {}}), "its model has type = 'WordPiece'"),
    (changed(model={"type": "Unigram", "vocab": []}), "its model has type = 'Unigram'"),
    (changed(model=None), "cannot be used"),
    (changed(pre_tokenizer=None), "cannot be used"),
    (changed(decoder={"type": "Metaspace"}), "its decoder has type = 'Metaspace'"),
    (changed(added_tokens=[{"id": 999, "content": "<x>", "lstrip": True}]), "lstrip"),
    (changed(added_tokens=7), "cannot be used"),
    (tokenizer_json(PLAIN, normalizer={"type": "Lowercase"}), "normalizer has type = 'Lowercase'"),
    (tokenizer_json(PLAIN, normalizer={"type": "NFKC"}), "normalizer has type = 'NFKC'"),
    (tokenizer_json(PLAIN, pre=byte_level(prefix=True)), "without a space in front"),
    (tokenizer_json(PLAIN, pre={"type": "Whitespace"}), "pre-tokenizer ['Whitespace']"),
    (tokenizer_json(PLAIN, pre={"type": "Metaspace"}), "pre-tokenizer ['Metaspace']"),
    (tokenizer_json(PLAIN, pre=split("x", "MergedWithNext")), "pre-tokenizer"),
    (tokenizer_json(PLAIN, pre=split("(")), "cannot be used"),
    (tokenizer_json(PLAIN, pre=DIGITS), "['Digits', 'ByteLevel']"),
    (tokenizer_json(PLAIN, byte_fallback=True), "byte_fallback"),
    (tokenizer_json(PLAIN, dropout=0.1), "dropout"),
    (tokenizer_json(PLAIN, end_of_word_suffix="</w>"), "end_of_word_suffix"),
    (tokenizer_json(PLAIN, extra=["zz"], ignore_merges=True), "no merges make its token 'zz'"),
    (tokenizer_json(PLAIN, merges=["a b c"]), "cannot be used"),
    (tokenizer_json(PLAIN, merges=[["a", 7]]), "cannot be used"),
    (without("a"), "lacks 'a'"), (without("abc"), "lacks 'abc'"),
    (without("z"), "lacks 'z'"), ([], "no JSON object"), ({}, "lacks 'model'")])
def test_a_tokenizer_of_another_kind_is_one_sentence(tmp_path, content, says):
    with pytest.raises(Fail, match=re.escape(says)):
        opened(tmp_path, content)


def test_a_tokenizer_that_is_not_there(tmp_path):
    with pytest.raises(Fail, match="cannot read"):
        tokenizer.read(tmp_path / "tokenizer.json")
