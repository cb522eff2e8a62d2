"""brackets: random balanced brackets, of which everything is known: what is right, and how likely.

    python data/brackets/prepare.py         # a second; train.py does it where it is missing

Lengths 4, 16, 32 and 64 with probabilities .1, .4, .4 and .1, uniform over the words of a length.
The two sides share no word but those of length 4, of which there are 2; of length 16 there are
1,430, which repeat within a side.
"""
import os
import sys

import numpy as np

sys.path.insert(0, os.path.abspath(os.path.join(os.path.dirname(__file__), "..", "..")))
import data
from common import main, say
from data.writing import text_hash

TOKENIZER, BLOCK_SIZE = "bytes", 64
TRAINING = dict(insertion="sin", infill=0.0, n_layer=3, n_head=4, n_embd=64, batch_size=128,
                learning_rate=2e-3, warmup_iters=100, max_iters=1800, eval_interval=600)
LENGTHS, SHARES = (4, 16, 32, 64), (.1, .4, .4, .1)


def dyck(n, rng):
    """A uniform word of n balanced pairs. Cycle lemma: of the 2n + 1 rotations of n ups and n + 1
    downs, exactly one stays at 0 or above until its last step."""
    steps = rng.permutation(np.repeat([1, -1], [n, n + 1]))
    lowest = int(np.argmin(np.cumsum(steps)))       # the first of the lowest points
    return "".join("(" if step > 0 else ")" for step in np.roll(steps, -lowest - 1)[:-1])


def brackets(counts=(20000, 2000), seed=0):
    """-> train, val: counts[0] and counts[1] words. A hash decides to which side a word belongs."""
    rng, sides = np.random.default_rng(seed), ([], [])
    limit = 2 ** 64 * counts[1] // sum(counts)
    for side, count in enumerate(counts):
        for length in rng.choice(LENGTHS, size=count, p=SHARES):
            word = dyck(length // 2, rng)
            while length > 4 and (text_hash(word) < limit) != bool(side):
                word = dyck(length // 2, rng)
            sides[side].append(word)
    return sides


def prepare(folder, tokenizer):
    say(f"preparing {folder}")
    train, val = brackets()
    data.write_texts(folder, train, val, tokenizer, made={"name": "brackets"})


if __name__ == "__main__":
    main(lambda: data.by_hand("brackets", __doc__))
