"""What texts are worth: are they well-formed, as long and as varied as they should be, and how
likely does another language model find them?

    quality(samples, texts, val, block_size, VALID.get("python"), known=None)       # -> a dict
    Judge("gpt2-large", device).report("samples", texts, batch_size=8)              # -> perplexity
"""
import ast
import math
import time
import warnings

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

import checkpoint
import data
import rates
from common import Fail, say
from retrofit import gpt2

LOGITS = 2 ** 31    # no batch may ask for more of them: 8 GB in float32


def batches(things, batch_size, logits, what):
    """Slices of at most `batch_size` things, or fewer where one asks for many logits; and every 20
    seconds a line about how far it is"""
    size = max(1, min(batch_size, LOGITS // logits))
    began = last = time.time()
    for first in range(0, len(things), size):
        yield things[first:first + size]
        if time.time() - last > 20:
            last = time.time()
            done = min(first + size, len(things))
            say(f"  {what}: {done}/{len(things)}, {last - began:.0f} s")


# -----------------------------------------------------------------------------
# estimates: a value and its standard error

def ratio(total, size):
    """sum(total) / sum(size) over independent documents, both (N,), by the delta method: (2,)"""
    N, rate = len(total), total.sum() / size.sum()
    variance = (total - rate * size).square().sum() / (N - 1)               # nan for one document
    return torch.stack([rate, (variance / N).sqrt() / size.mean()])


def exponential(estimate):
    value, error = estimate
    return torch.stack([value.exp(), value.exp() * error])


def share(right):
    """Of a list of booleans"""
    p = float(np.mean(right))
    return p, math.sqrt(p * (1 - p) / len(right))


# -----------------------------------------------------------------------------
# form

def balanced(text):
    rest = text
    while "()" in rest:
        rest = rest.replace("()", "")
    return bool(text) and not rest


def parses(text):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            ast.parse(text)
            return bool(text.strip())
        except (SyntaxError, ValueError, MemoryError, RecursionError):
            return False


VALID = {"python": parses, "functions": parses, "brackets": balanced}


def histogram(lengths, block_size):
    width = max(1, block_size // 16)
    bins = np.minimum(lengths, block_size) // width
    return np.bincount(bins, minlength=block_size // width + 1) / len(lengths)


def entropy(documents):
    """Of the tokens of all documents (lists of ids) together, in bits"""
    counts = np.unique(np.concatenate(documents), return_counts=True)[1]
    p = counts / counts.sum()
    return float((p * np.log2(1 / p)).sum())


def quality(samples, texts, val, block_size, valid, known):
    """Samples (lists of ids, and their texts) against validation documents (lists of ids). valid:
    text -> bool, or None; known: the training texts, or None. -> a dict, nan: not known"""
    pairs = [pair for ids in samples for pair in zip(ids, ids[1:])]
    lengths, val_lengths = [len(ids) for ids in samples], [len(ids) for ids in val]
    gap = histogram(lengths, block_size) - histogram(val_lengths, block_size)
    row = {"valid": math.nan, "valid_error": math.nan, "length_tv": float(np.abs(gap).sum() / 2),
           "mean_length": float(np.mean(lengths)), "entropy": entropy(samples),
           "distinct_2": len(set(pairs)) / max(1, len(pairs)), "copied": math.nan}
    if valid:
        row["valid"], row["valid_error"] = share([valid(text) for text in texts])
    if known is not None:
        row["copied"], _ = share([text in known for text in texts])
    return row


# -----------------------------------------------------------------------------
# generative perplexity

class Judge:
    """A language model that says how likely texts are: a folder with GPT-2, or an `ar` run. Both
    start from an end of text. That a text ends is not asked."""

    def __init__(self, path, device):
        self.name = path
        if gpt2.is_folder(path):
            net = gpt2.load(path, device)
            self.tokenizer, self.block_size = data.tokenizer_from(net.tokenizer), net.block_size
        else:
            net = checkpoint.load(path, device)
            if not net.config.causal:
                method = net.args["method"]
                raise Fail(f"--judge {path} is a {method} model: name an ar run or a GPT-2 folder")
            self.tokenizer, self.block_size = net.tokenizer, net.config.block_size
        self.predict, self.code = net.predict, net.code

    @torch.no_grad()
    def nll(self, texts, batch_size):
        """-> nats (N,) and the ids of the N texts that are not empty, of each its first block_size
        tokens: lists, the shortest first"""
        ids = [self.tokenizer.encode(text)[:self.block_size] for text in texts]
        ids = sorted((document for document in ids if document), key=len)   # little padding
        logits, nats = self.code.V * self.block_size, [torch.zeros(0)]
        for part in batches(ids, batch_size, logits, f"{self.name} reads"):
            n = torch.tensor([len(document) for document in part])
            x = pad_sequence([torch.tensor(document) for document in part], batch_first=True)
            nats.append(rates.next_token_nll(self.predict, self.code, x, n).cpu())
        return torch.cat(nats).double(), ids

    def report(self, what, texts, batch_size):
        """Print and return the perplexity per token and its standard error. Beside it the entropy
        of the tokens, without which it means little: repetition has a low perplexity."""
        nats, ids = self.nll(texts, batch_size)
        if not ids:
            say(f"  {self.name}: all {what} are empty")
            return math.nan, math.nan
        lengths = torch.tensor([len(document) for document in ids]).double()
        perplexity, error = exponential(ratio(nats, lengths)).tolist()
        within = np.mean([entropy([document]) for document in ids])     # what papers report
        cut, empty = int((lengths == self.block_size).sum()), len(texts) - len(ids)
        say(f"  {self.name} on {len(ids)} {what}: perplexity {perplexity:.2f} +- {error:.2f}, "
            f"unigram entropy {entropy(ids):.2f} bits, within a text {within:.2f}")
        say(f"      {int(lengths.sum()):,} tokens; {empty} texts were empty; {cut} filled the "
            f"{self.block_size} tokens that are read")
        return perplexity, error
