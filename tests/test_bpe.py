"""data/bpe.py against the textbook's algorithm: the same vocabulary, the same ids as tiktoken."""
import random
from collections import Counter

import pytest
import regex
import tiktoken

from data.bpe import PATTERN, merge, train


def split_into_words(texts):
    words = [word for text in texts for word in regex.findall(PATTERN, text)]
    return [[bytes([b]) for b in word.encode()] for word in words]


def reference(texts, size):
    """Count all pairs anew before every merge; of equals take the first in the order of bytes."""
    words, ranks = split_into_words(texts), {bytes([b]): b for b in range(256)}
    while len(ranks) < size:
        counts = Counter(a + b for word in words for a, b in zip(word, word[1:]))
        most = max(counts.values(), default=0)
        if most < 2:
            break
        best = min(pair for pair, n in counts.items() if n == most)
        ranks.setdefault(best, len(ranks))
        words = [merge(word, best) for word in words]
    return ranks


def lowest_rank_first(text, ranks):
    """How a text is encoded: of all neighbours that together are a token, the lowest rank first."""
    ids = []
    for word in split_into_words([text]):
        while True:
            pairs = [a + b for a, b in zip(word, word[1:])]
            found = [(ranks[pair], i) for i, pair in enumerate(pairs) if pair in ranks]
            if not found:
                break
            i = min(found)[1]
            word[i:i + 2] = [word[i] + word[i + 1]]
        ids += [ranks[token] for token in word]
    return ids


def random_texts(rng, alphabet, count=40, longest=60):
    return ["".join(rng.choices(alphabet, k=rng.randrange(longest))) for _ in range(count)]


@pytest.mark.parametrize("alphabet", ["ab", "ab ", "aé\n_1 =", "abcdefgh  "])
@pytest.mark.parametrize("size", [257, 280, 400])
def test_the_vocabulary_is_the_references(alphabet, size):
    texts = random_texts(random.Random(size), alphabet)
    ranks = train(texts, size)
    assert list(ranks.items()) == list(reference(texts, size).items())
    assert list(ranks.values()) == list(range(len(ranks))) and len(ranks) <= size


def test_tiktoken_encodes_with_it():
    rng = random.Random(0)
    texts = random_texts(rng, "abc de_f1.\n", count=200)
    ranks = train(texts, 350)
    encoding = tiktoken.Encoding("t", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={})
    for text in random_texts(rng, "abc de_f1.\n", count=50) + ["naïve — 東京 🙂", "", " \t\n"]:
        ids = encoding.encode_ordinary(text)
        assert ids == lowest_rank_first(text, ranks) and encoding.decode(ids) == text


def test_the_docstrings_worked_number():
    assert list(train(["low low lower"], 258))[256:] == [b"lo", b"low"]


def test_merging_goes_from_the_left():
    assert merge([b"a"] * 5, b"aa") == [b"aa", b"aa", b"a"]
    assert merge([b"ab", b"c", b"a", b"bc"], b"abc") == [b"abc", b"abc"]


def test_a_pair_that_occurs_once_is_no_token():
    assert len(train(["abcdef"], 300)) == 256 and len(train([], 300)) == 256
    assert list(train(["abcdef", "ab"], 300))[256:] == [b"ab"]


def test_every_text_is_covered_by_the_pattern():
    for text in random_texts(random.Random(1), "aé1_ .\n\t\u2028\u00a0²ⅷ🙂\u0301\0", count=200):
        assert "".join(regex.findall(PATTERN, text)) == text
