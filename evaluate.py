"""How good is a model? Likelihood bounds that can be believed, and what its samples are worth.

    python evaluate.py                                      # bounds, and the quality of samples
    python evaluate.py --out_dir out,out-mdm --steps 8,32,128 --sampler parallel,exact --png s.png
    python evaluate.py --dataset wiki.test.txt --whole --detokenize wikitext    # zero-shot
    python evaluate.py --judge gpt2-large                   # generative perplexity of the samples
    python evaluate.py --judge gpt2-large --generations texts.jsonl             # of other texts
    python evaluate.py gsm8k --help                         # and infill: retrofit/benchmark.py

Likelihood. Documents that the model was not trained on, cut into rows as in its training, their
lengths included: a model with insertion ends a document by inserting no more, a fixed canvas by end
tokens up to block_size, an autoregressive model by one end token. Tokens that a task gives are told
to the model and counted nowhere. All are upper bounds on -log p(document):

    exact   autoregressive: the likelihood itself
    loose   Prop. 1 of arXiv 2509.01025 (ell > 1: with digit marginals); without insertion it is the
            usual bound of masked diffusion
    tight   with insertion: alignments averaged out; valid, and never above loose
    paper   ell > 1: the objective of arXiv 2505.18495. NOT a bound, it reads too low

in nats per document, nats per token, bits per byte of the text as it is stored, and as perplexity
per token and per word. +- is one standard error, over documents and noise together. Samples:

    valid       not empty, and Python that parses (python, functions), or balanced (brackets)
    length TV   total variation between the lengths of samples and of validation documents, in bins
                of 1/16 of block_size
    distinct-2  different pairs of neighbouring tokens / all such pairs
    entropy     of the tokens, in bits: low means repetition
    copied      share of the samples that are training documents, word for word; nan where these are
                a million or more, or others than the model's
    calls       network calls per sample: at most --steps, and up to 8 for what is masked in the
                end; ar: one a token
    spans       validation documents in which a removed span of 1 to 6 tokens is restored exactly

Images: bits per dimension, that is per intensity, by the same bounds; and of the samples the
Frechet distance (frechet.py) to the training images.

One worked number: a model that knows nothing about bytes has 8 bits per byte, and more for lengths.
"""
import itertools
import math
import sys
import time
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F

import checkpoint
import data
import frechet
import interpolant
import rates
import train
from common import Fail, flag, main, parse, say, whole_numbers, write_csv
from data.files import documents as documents_of
from data.whole import DETOKENIZERS, load as load_whole
from data.writing import plain
from figures import steps as figure
from model import pick_device
from quality import VALID, Judge, batches, entropy, exponential, quality, ratio, share
from retrofit import benchmark
from sampler import ORDERS, SAMPLERS, stack, start_from

MOST = 10_000       # validation documents that samples are compared with
COLUMNS = ("run", "method", "ell", "sampler", "steps", "calls", "valid", "valid_error", "length_tv",
           "mean_length", "distinct_2", "entropy", "copied", "perplexity", "perplexity_error",
           "frechet", "features", "seconds")


@dataclass
class Args:
    out_dir: str = flag("out", "runs, checkpoints or pretrained folders, separated by commas")
    dataset: str = flag("", "another data set than the one trained on")
    data_dir: str = flag("", "where data sets are kept; empty: as in training")
    split: str = flag("", "what a .txt's document is; empty: as in training", ("", *data.SPLITS))
    field: str = flag("", "the field of a .jsonl that holds the text; empty: as in training")
    packing: str = flag("", "documents, or stream: rows of block_size; empty: as in training",
                        ("", "documents", "stream"))
    whole: bool = flag(False, "all documents of the file --dataset, not its validation share")
    detokenize: str = flag("", "--whole: undo a benchmark's marks", ("", *DETOKENIZERS))
    documents: int = flag(512, "documents for the bounds (--whole: all by default); 0: none", low=0)
    repeats: int = flag(8, "times at which each document is noised")
    num_samples: int = flag(1000, "samples to judge; 0: none", low=0)
    spans: int = flag(0, "documents in which to restore a removed span; 0: none", low=0)
    span_steps: int = flag(32, "network calls for these")
    steps: str = flag("128", "network calls for the samples, numbers separated by commas")
    sampler: str = flag("", "exact, parallel, or both separated by a comma; empty: parallel for "
                        "images, else exact")
    order: str = flag("", "which masks are revealed first; empty: margin for short documents "
                      "with insertion, else random", ("", *ORDERS))
    temperature: float = flag(1.0, "1: what the model says; 0: always the likeliest token")
    judge: str = flag("", "a GPT-2 folder, or an ar run: perplexity of the samples")
    generations: str = flag("", "a .jsonl whose texts --judge judges, in place of a model's")
    inception: str = flag("", "images: a TorchScript file for the Frechet distance; empty: pixels")
    batch_size: int = flag(128, "documents at a time")
    csv: str = flag("", "also write the table of samples here")
    png: str = flag("", "also draw quality against network calls here")
    seed: int = flag(0, "fixes documents, noise and samples", low=0)
    device: str = flag("auto", "auto, cpu, cuda, mps")


# -----------------------------------------------------------------------------
# what is judged

def open_data(loaded, args):
    """What the model was trained on, or --dataset, cut into rows as in its training: a data.Dataset
    (--whole: no `train`; words_per_byte is counted before detokenizing)"""
    own, block_size = SimpleNamespace(**loaded.args), loaded.config.block_size
    name, packing = args.dataset or own.dataset, args.packing or own.packing
    reading = dict(split=args.split or own.split, field=args.field or own.field, packing=packing)
    if not name:
        raise Fail("a pretrained model does not say what to judge it on: name a --dataset")
    if args.detokenize and not args.whole:
        raise Fail("--detokenize is for the file of a benchmark: add --whole")
    if args.whole:
        documents, words_per_byte = load_whole(name, loaded.tokenizer, block_size,
                                               detokenize=args.detokenize, **reading)
        meta = {"words_per_byte": words_per_byte}
        dataset = data.Dataset(name, name, None, documents, loaded.tokenizer, meta)
    else:
        data_dir = args.data_dir or loaded.args.get("data_dir", "")
        dataset = data.load(name, data_dir, block_size, loaded.tokenizer, **reading)
        shape = tuple(dataset.meta.get("shape", ()))
        if shape != loaded.config.shape:
            raise Fail(f"{name} has the image shape {shape}, the model {loaded.config.shape} (() "
                       "is text): name another --dataset")
    what = "as in its training"
    if args.whole:
        what = "all of the file, whatever it was trained on"
    elif (name, reading) != (own.dataset, {key: getattr(own, key) for key in reading}):
        what = f"trained on {own.dataset or 'something else'}, --packing {own.packing}"
    say(f"  judged on {name}, --packing {packing}: {what}")
    return dataset


def parts_of(things, loaded, args, what):
    """Batches, small enough for this model"""
    return batches(things, args.batch_size, loaded.code.V * loaded.config.block_size, what)


# -----------------------------------------------------------------------------
# likelihood

def bounds_of(loaded):
    """The names of the bounds that this model has"""
    if loaded.config.causal:
        return ["exact"]
    names = ["loose"]
    if not loaded.fixed:
        names.append("tight")
    if loaded.code.ell > 1:
        names.append("paper")
    return names


@torch.no_grad()
def document_nll(loaded, documents, ids, bound, repeats):
    """A bound for the documents `ids`: (N,) nats, the mean over `repeats` draws of time, noise"""
    x, n, given = documents.batch(ids)
    own = SimpleNamespace(method=loaded.args["method"], block_size=loaded.config.block_size)
    x1, n1 = train.canvas(x, n, own, documents.tokenizer.eot)
    anchors = None
    if given is not None:
        given = F.pad(given, (0, x1.shape[1] - given.shape[1]))
        if documents.anchored:
            anchors = interpolant.anchors_of(given, n1)
    if bound == "exact":
        nll = rates.next_token_nll(loaded.predict, loaded.code, x1, n1, given)
        return nll.double().cpu()
    insertion = interpolant.schedule(loaded.config.insertion)
    unmasking = interpolant.schedule(loaded.args["unmasking"])
    total = torch.zeros(len(x1), dtype=torch.float64)
    for _ in range(repeats):
        t, weight = train.draw_times(len(x1), 2.0)      # often late: masks weigh most there
        nll = rates.nll(loaded.predict, loaded.code, x1, n1, t, insertion, unmasking, bound,
                        given, anchors)
        total += nll.double().cpu() * weight
    return total / repeats


def sizes(documents, ids):
    """What has to be said in each document: tokens (N,), words (N,), bytes (N,). Given tokens are
    not counted, and bytes are those of the text as it is stored."""
    table = []
    for i in ids:
        said, given = documents.document(i), documents.given(i)
        if given is not None:
            said = [v for v, is_given in zip(said, given) if not is_given]
        text = documents.tokenizer.decode_bytes(said)
        table.append((len(said), len(text.split()), len(text)))
    return torch.tensor(table, dtype=torch.float64).unbind(1)


def likelihood(loaded, dataset, args):
    """-> how many documents, tokens, words and bytes were counted, and {bound: {unit: [value,
    standard error]}}"""
    documents = dataset.val
    ids = np.random.default_rng(args.seed).permutation(len(documents))
    if not args.whole or "documents" in args.named:
        ids = ids[:args.documents]
    tokens, words, octets = sizes(documents, ids)
    words_per_byte = dataset.meta.get("words_per_byte", words.sum() / octets.sum())
    counts = {"documents": len(ids), "tokens": int(tokens.sum()),
              "words": round(float(words_per_byte * octets.sum())), "bytes": int(octets.sum())}
    table = {}
    for bound in bounds_of(loaded):
        torch.manual_seed(args.seed)
        nll = torch.cat([document_nll(loaded, documents, part, bound, args.repeats)
                         for part in parts_of(ids, loaded, args, f"{bound}, documents")])
        token, byte = ratio(nll, tokens), ratio(nll, octets)
        row = {"document": ratio(nll, torch.ones_like(nll)), "token": token,
               "bits_per_byte": byte / math.log(2), "perplexity": exponential(token),
               "word_perplexity": exponential(byte / words_per_byte)}
        table[bound] = {unit: estimate.tolist() for unit, estimate in row.items()}
    return counts, table


def print_likelihood(loaded, dataset, args):
    counts, table = likelihood(loaded, dataset, args)
    names = {"exact": "exact", "loose": "loose", "tight": "tight", "paper": "paper (no bound)"}
    if loaded.config.shape:
        names["loose"] = "valid bound"
        for bound, row in table.items():
            value, error = (nats / math.log(2) for nats in row["token"])
            say(f"  {names[bound]:<16} {value:.4f} +- {error:.4f} bits per dimension")
        return
    say("  counted: " + ", ".join(f"{number:,} {what}" for what, number in counts.items()))
    titles = "nats/document", "nats/token", "bits/byte", "perplexity/token", "perplexity/word"
    say(" " * 18 + "".join(f"{title:>24}" for title in titles))
    for bound, row in table.items():
        cells = [f"{value:.4g} +- {error:.2g}" for value, error in row.values()]
        say(f"  {names[bound]:<16}" + "".join(f"{cell:>24}" for cell in cells))


# -----------------------------------------------------------------------------
# samples

def until_end(ids, eot):
    """A fixed canvas ends a document with an end token"""
    return ids[:ids.index(eot)] if eot in ids else ids


def first_of(documents, most):
    """Up to `most` documents, as samples are read: lists of ids"""
    count = min(most, len(documents))
    return [until_end(documents.document(i), documents.tokenizer.eot) for i in range(count)]


def draw(loaded, how, steps, args):
    """-> samples, lists of ids; and network calls per sample"""
    torch.manual_seed(args.seed)
    predict, asked, samples = loaded.predict, [], []

    def counted(y, *rest, **named):
        asked.append(len(y))
        return predict(y, *rest, **named)

    loaded.predict = counted
    for part in parts_of(range(args.num_samples), loaded, args, f"{steps} steps, samples"):
        x, n = loaded.documents(len(part), None, steps, sampler=how, order=args.order,
                                temperature=args.temperature)
        samples += [until_end(row[:length], loaded.tokenizer.eot)
                    for row, length in zip(x.tolist(), n.tolist())]
    loaded.predict = predict
    return samples, sum(asked) / len(samples)


def samplers(loaded, args):
    """Their names, as Loaded.generate and Loaded.images choose where the user does not"""
    if args.sampler:
        return args.sampler.split(",")
    return ["parallel"] if loaded.config.shape else ["exact"]


def draw_all(path, loaded, args):
    """For each sampler and number of steps: samples, and the first columns of their row"""
    settings = itertools.product(samplers(loaded, args), whole_numbers(args.steps, "steps"))
    if loaded.config.causal:
        settings = [("parallel", loaded.config.block_size)]                 # a call for each token
    for how, steps in settings:
        began = time.time()
        samples, calls = draw(loaded, how, steps, args)
        yield samples, dict(run=path, method=loaded.args["method"], ell=loaded.code.ell,
                            sampler=how, steps=steps, calls=calls, seconds=time.time() - began)


def judge_texts(path, loaded, dataset, judge, args):
    """Draw, judge and print. -> rows of the csv"""
    decode, block_size = loaded.tokenizer.decode, loaded.config.block_size
    val, known, rows = first_of(dataset.val, MOST), None, []
    own = dataset.train is not None and dataset.name == loaded.args["dataset"]
    if own and len(dataset.train) < 1e6:
        known = {decode(ids) for ids in first_of(dataset.train, len(dataset.train))}
    mean_length = np.mean([len(ids) for ids in val])
    say(f"  {args.num_samples} samples; validation documents have entropy {entropy(val):.2f} bits, "
        f"mean length {mean_length:.1f}")
    if judge:
        texts = [decode(ids) for ids in val[:args.num_samples or 1000]]
        judge.report("validation documents", texts, args.batch_size)
    if not args.num_samples:
        return []
    say("  sampler    steps   calls   valid          length TV   mean length   distinct-2   "
        "entropy   copied   seconds")
    for samples, row in draw_all(path, loaded, args):
        texts = [decode(ids) for ids in samples]
        row |= quality(samples, texts, val, block_size, VALID.get(dataset.name), known)
        say(f"  {row['sampler']:<8}{row['steps']:>8}{row['calls']:>8.1f}   "
            f"{100 * row['valid']:4.1f}% +- {100 * row['valid_error']:<4.1f}"
            f"{row['length_tv']:>11.3f}{row['mean_length']:>14.1f}{row['distinct_2']:>13.3f}"
            f"{row['entropy']:>10.2f}{100 * row['copied']:>8.1f}%{row['seconds']:>10.1f}")
        if judge:
            report = judge.report("samples", texts, args.batch_size)
            row["perplexity"], row["perplexity_error"] = report
        rows.append(row)
    return rows


# -----------------------------------------------------------------------------
# spans

def remove_spans(documents, count, seed):
    """-> [(what stands before, the span, what follows)]: 1 to 6 tokens, removed at random"""
    rng, cuts = np.random.default_rng(seed), []
    for i in [i for i in rng.permutation(len(documents)) if documents.lengths[i] >= 8][:count]:
        document, size = documents.document(i), int(rng.integers(1, 7))
        at = int(rng.integers(1, len(document) - size))
        cuts.append((document[:at], document[at:at + size], document[at + size:]))
    if not cuts:
        raise Fail("no document is long enough to remove a span: leave out --spans")
    return cuts


def judge_spans(loaded, documents, args):
    """Print, and return, the share that is restored exactly and its standard error. A fixed canvas
    is told how long the spans were."""
    if loaded.config.causal:
        raise Fail("an autoregressive model cannot fill spans: leave out --spans")
    torch.manual_seed(args.seed)
    cuts, right = remove_spans(documents, args.spans, args.seed), []
    for part in parts_of(cuts, loaded, args, "spans"):
        starts = [start_from([before, after], [len(span)], loaded.code, loaded.config.block_size,
                             loaded.fixed, loaded.tokenizer.eot) for before, span, after in part]
        x, n = loaded.documents(len(part), stack(starts, loaded.code), args.span_steps,
                                order=args.order, temperature=args.temperature,
                                sampler=samplers(loaded, args)[0])
        for row, length, (before, span, after) in zip(x.tolist(), n.tolist(), part):
            document = before + span + after
            if loaded.fixed:                                                # end tokens follow
                length = len(document)
            right.append(row[:length] == document)
    p, error = share(right)
    say(f"  spans restored exactly: {100 * p:.1f}% +- {100 * error:.1f} of {len(cuts)}")
    return p, error


# -----------------------------------------------------------------------------
# the command

def judge_model(path, judge, args, device):
    """-> the model's rows of the csv"""
    loaded = checkpoint.load(path, device)
    say(f"{path}: {loaded.args['method']}, ell {loaded.code.ell}, "
        f"{loaded.net.count()[0] / 1e6:.2f}M parameters, step {loaded.step}")
    dataset = open_data(loaded, args)
    if args.documents:
        print_likelihood(loaded, dataset, args)
    if args.spans:
        judge_spans(loaded, dataset.val, args)
    if args.num_samples and loaded.config.shape:
        return frechet.judge(loaded, dataset, args, draw_all(path, loaded, args))
    if args.num_samples or judge:
        return judge_texts(path, loaded, dataset, judge, args)
    return []


def short(value):
    return f"{value:.5g}" if isinstance(value, float) else value


def run(argv=None):
    argv = sys.argv[1:] if argv is None else list(argv)
    if argv and argv[0] in ("gsm8k", "infill"):
        return benchmark.run(argv)
    args = parse(Args, __doc__, argv)
    whole_numbers(args.steps, "steps")
    if args.sampler and not set(args.sampler.split(",")) <= set(SAMPLERS):
        raise Fail(f"--sampler {args.sampler}: it is parallel, exact, or parallel,exact")
    if args.generations and not args.judge:
        raise Fail("--generations are judged by a language model: name one with --judge")
    if args.png and not args.num_samples:
        raise Fail("--png draws samples: leave out --num_samples 0")
    device, rows = pick_device(args.device), []
    judge = Judge(args.judge, device) if args.judge else None
    if args.generations:
        texts = [plain(text) for text in documents_of(args.generations, field=args.field or "text")]
        judge.report(f"texts of {args.generations}", texts, args.batch_size)
        return
    for path in args.out_dir.split(","):
        rows += judge_model(path, judge, args, device)
    if args.csv:
        write_csv(args.csv, COLUMNS, [{k: short(v) for k, v in row.items()} for row in rows])
    if args.png:
        figure.draw(args.png, rows)


if __name__ == "__main__":
    main(run)
