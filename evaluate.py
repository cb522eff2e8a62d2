"""Every number of the README's tables: likelihood bounds that can be believed, and what samples are worth.

    python evaluate.py --out_dir out                            # bounds on validation documents, quality of samples
    python evaluate.py --out_dir out,out-mdm --steps 8,32,128,512 --png assets/steps.png
    python evaluate.py --out_dir out --dataset shakespeare.txt  # zero-shot: documents of another data set

Likelihood. The same validation documents for every model, their lengths included: a model with insertion ends a document by inserting no
more, a fixed canvas by end tokens up to block_size, an autoregressive model by one end token. All are upper bounds on
-log p_model(document), in nats per document, nats per token, and bits per byte of text:

    exact   autoregressive: the likelihood itself
    loose   Prop. 1 of arXiv 2509.01025 (and its form with digit marginals): valid; for a fixed canvas the usual MDM bound
    tight   with insertion: alignments averaged out; valid, and never above loose
    paper   the objective of arXiv 2505.18495 for ell > 1: NOT a bound, it reads too low; shown for comparison with that paper only

+- is one standard error over documents and noise together. Samples:

    valid        share that is not empty and well-formed: accepted by ast.parse (python, functions), or balanced (brackets)
    length TV    total variation between the length histograms of samples and validation documents, bins of 1/16 of block_size
    distinct-2   different pairs of neighbouring tokens / all such pairs
    entropy      of the samples' tokens in bits (beside it the validation documents'): low means repetition
    spans        share of validation documents in which a removed span of 1 to 6 tokens is restored exactly (--spans)
    copied       share of the samples that stand in the training documents word for word

One worked number: a model that has learnt nothing about bytes has 8 bits per byte, plus what its lengths cost.

Benchmarks with right and wrong answers (tasks.py), for models that were trained on such tasks or retrofitted from LLaDA:

    python evaluate.py gsm8k --out_dir out --problems gsm8k_test.jsonl --results out/gsm8k.jsonl
    python evaluate.py infill --out_dir out --problems HumanEval-SingleLineInfilling.jsonl.gz --results out/infill.jsonl
    python evaluate.py gsm8k --out_dir LLaDA-8B-Base --sampler llada --length 256 --problems ... --results ...
"""
import ast
import csv
import math
import os
import sys
import time
import warnings
import zlib
from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch

import data
import interpolant
import llada
import model
import rates
import sample
import tasks
import train
from common import Fail, aside, flag, main, parse


@dataclass
class Args:
    out_dir: str = flag("out", "training runs or checkpoints, separated by commas")
    dataset: str = flag("", "another data set than the one trained on")
    split: str = flag("", "what a document of a .txt is: line, paragraph, file; empty: as in training")
    field: str = flag("", "the field of a .jsonl that holds the text; empty: as in training")
    data_dir: str = flag("data", "where prepared data sets are kept")
    documents: int = flag(512, "validation documents for the bounds; 0: none", low=0)
    repeats: int = flag(8, "times at which each document is noised")
    num_samples: int = flag(1000, "samples to judge; 0: none", low=0)
    spans: int = flag(0, "also: restore a removed span in so many validation documents", low=0)
    span_steps: int = flag(32, "sampling steps for these")
    steps: str = flag("128", "sampling steps, separated by commas")
    order: str = flag("random", "which masks are revealed first", sample.ORDERS)
    temperature: float = flag(1.0, "of the samples")
    batch_size: int = flag(128, "documents at a time")
    csv: str = flag("", "also write the table of samples here")
    png: str = flag("", "also draw quality against steps here")
    seed: int = flag(0, "fixes documents, noise and samples", low=0)
    device: str = flag("auto", "auto, cpu, cuda, mps")


def balanced(text):
    depth = 0
    for c in text:
        depth += {"(": 1, ")": -1}.get(c, -10 ** 9)
        if depth < 0:
            return False
    return depth == 0 and bool(text)


def parses(text):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            ast.parse(text)
            return bool(text.strip())
        except (SyntaxError, ValueError, MemoryError, RecursionError):
            return False


VALID = {"python": parses, "functions": parses, "brackets": balanced}


# ---- likelihood ----------------------------------------------------------------------------------------------------------------------

def bounds_of(loaded):
    """The names of the bounds that this model has."""
    if loaded.config.causal:
        return ["exact"]
    return ["loose"] + ["tight"] * loaded.config.gaps + ["paper"] * (loaded.code.ell > 1)


@torch.no_grad()
def document_nll(loaded, documents, ids, bound, repeats, end):
    """One bound for documents `ids`: (N,) nats each, the mean of `repeats` draws of time and noise."""
    args = train.Args(method=loaded.run["method"], insertion=loaded.run["insertion"], block_size=loaded.config.block_size)
    x, n, given = documents.batch(ids)
    x1, n1 = train.canvas(x, n, args, end)
    frozen = None if given is None else torch.nn.functional.pad(given, (0, x1.shape[1] - given.shape[1]))
    if bound == "exact":
        return rates.next_token_nll(loaded.predict, loaded.code, x1, n1).double().cpu()
    schedules = interpolant.schedule(loaded.run["insertion"]), interpolant.schedule(loaded.run["unmasking"])
    total = 0
    for _ in range(repeats):                                           # late times weigh most: they are drawn more often (train.draw_times)
        t, dt = train.draw_times(len(x1), 2.0)
        anchors = None if frozen is None else interpolant.anchors_of(frozen, n1)
        total = total + rates.nll(loaded.predict, loaded.code, x1, n1, t, *schedules, bound, frozen=frozen, anchors=anchors).double().cpu() * dt
    return total / repeats


def likelihood(loaded, documents, tokenizer, args):
    """{bound: (nats per document, nats per token, bits per byte, standard error of that)} on the first args.documents documents."""
    ids = np.random.default_rng(args.seed).permutation(len(documents))[:args.documents]
    asked = [documents.document(i) if loaded.config.causal else [v for v in documents.read(i).tolist() if v < data.GIVEN] for i in ids]
    tokens = torch.tensor([len(document) for document in asked]).double()
    octets = torch.tensor([len(tokenizer.decode(document).encode()) for document in asked]).double()
    table = {}
    for bound in bounds_of(loaded):
        torch.manual_seed(args.seed)
        nll = torch.cat([document_nll(loaded, documents, part, bound, args.repeats, tokenizer.eot)
                         for part in np.array_split(ids, -(-len(ids) // args.batch_size))])
        rate = nll.sum() / octets.sum()                                # nats per byte, a ratio of means
        error = (nll - rate * octets).std() / math.sqrt(len(ids)) / octets.mean()
        table[bound] = [float(v) for v in (nll.mean(), nll.sum() / tokens.sum(), rate / math.log(2), error / math.log(2))]
    return table


# ---- samples -------------------------------------------------------------------------------------------------------------------------

def histogram(lengths, block_size):
    width = max(1, block_size // 16)
    return np.bincount(np.minimum(lengths, block_size) // width, minlength=block_size // width + 1) / len(lengths)


def entropy(documents):
    counts = np.array(list(Counter(t for d in documents for t in d).values()), dtype=float)
    p = counts / counts.sum()
    return float(-(p * np.log2(p)).sum())


def judge(texts, val, tokenizer, block_size, valid, known):
    """The row of numbers for a list of sampled texts, against validation documents `val` (lists of ids)."""
    ids = [tokenizer.encode(t) for t in texts]
    pairs = [p for d in ids for p in zip(d, d[1:])]
    gap = histogram([len(d) for d in ids], block_size) - histogram([len(d) for d in val], block_size)
    row = {"valid": float(np.mean([valid(t) for t in texts])) if valid else math.nan, "length_tv": float(np.abs(gap).sum() / 2),
           "mean_length": float(np.mean([len(d) for d in ids])), "distinct_2": len(set(pairs)) / max(1, len(pairs)),
           "entropy": entropy(ids), "copied": float(np.mean([t in known for t in texts]))}
    p = row["valid"]
    row["valid_error"] = math.sqrt(p * (1 - p) / len(texts)) if valid else math.nan
    return row


def sampled(loaded, tokenizer, steps, args):
    wanted = sample.Args(num_samples=args.num_samples, steps=steps, order=args.order, temperature=args.temperature, seed=args.seed,
                         batch_size=args.batch_size)
    return list(sample.draw_documents(loaded, tokenizer, wanted))


COLUMNS = ("run", "method", "ell", "steps", "valid", "valid_error", "length_tv", "mean_length", "distinct_2", "entropy", "copied", "seconds")


def draw_png(path, rows):
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    panels = [("valid", 100, "valid samples, %")] * (not any(math.isnan(r["valid"]) for r in rows)) + [("length_tv", 1, "length histogram, total variation")]
    figure, axes = plt.subplots(1, len(panels), figsize=(4.5 * len(panels), 3.6), dpi=100, squeeze=False)
    for axis, (key, unit, label) in zip(axes[0], panels):
        for run in dict.fromkeys(r["run"] for r in rows):
            mine = [r for r in rows if r["run"] == run]
            name = mine[0]["method"] + (f" (ell {mine[0]['ell']})" if mine[0]["ell"] > 1 else "")
            axis.plot([r["steps"] for r in mine], [unit * r[key] for r in mine], marker="o", ms=4, label=name)
        axis.set(xlabel="sampling steps", ylabel=label, ylim=(0, None))
        axis.set_xscale("log", base=2)
        axis.legend(frameon=False)
    figure.tight_layout()
    with aside(path, "wb") as f:
        figure.savefig(f, format="png")
    plt.close(figure)


def run(argv=None):
    args = parse(Args, __doc__, argv)
    device = model.pick_device(args.device)
    try:
        steps = [int(s) for s in args.steps.split(",")]
    except ValueError:
        raise Fail(f"--steps {args.steps} must be numbers separated by commas, as in 16,64,256") from None
    if min(steps) < 1:
        raise Fail("--steps must be at least 1")
    rows = []
    for out_dir in args.out_dir.split(","):
        loaded = model.load(out_dir if out_dir.endswith(".pt") else os.path.join(out_dir, "ckpt.pt"), device)
        if "method" not in loaded.run:
            raise Fail(f"{out_dir} does not say which method it was trained with: evaluate.py reads checkpoints of train.py")
        tokenizer = data.tokenizer_from(loaded.tokenizer)
        name = args.dataset or loaded.run["dataset"]
        dataset = data.load(name, data_dir=args.data_dir, block_size=loaded.config.block_size, tokenizer=tokenizer.name,
                            split=args.split or loaded.run["split"], field=args.field or loaded.run["field"])
        print(f"{out_dir}: {loaded.run['method']}, ell {loaded.code.ell}, {loaded.model.count()[0] / 1e6:.2f}M parameters, step {loaded.step}, on {name}")
        if args.documents:
            print(f"  {min(args.documents, len(dataset.val))} validation documents     nats/document   nats/token   bits/byte")
            for bound, (document, token, bits, error) in likelihood(loaded, dataset.val, tokenizer, args).items():
                print(f"  {bound:<6}{'(no bound)' if bound == 'paper' else '':<28}{document:>12.2f}{token:>13.4f}{bits:>12.4f} +- {error:.4f}", flush=True)
        if args.spans:
            if loaded.config.causal:
                raise Fail("an autoregressive model cannot fill spans: leave --spans out")
            share, error = held_out_spans(loaded, dataset.val, tokenizer, args)
            print(f"  spans restored exactly: {100 * share:.1f}% +- {100 * error:.1f} of {args.spans}", flush=True)
        if args.num_samples:
            val = [dataset.val.document(i) for i in range(len(dataset.val))]
            known = {tokenizer.decode(dataset.train.document(i)) for i in range(len(dataset.train))} if len(dataset.train) < 1e6 else set()
            print(f"  {args.num_samples} samples; entropy of the validation documents {entropy(val):.2f} bits, mean length {np.mean([len(d) for d in val]):.1f}")
            print("  steps   valid          length TV   mean length   distinct-2   entropy   copied   seconds")
        for s in steps if args.num_samples else []:
            began = time.perf_counter()
            texts = sampled(loaded, tokenizer, s, args)
            row = judge(texts, val, tokenizer, loaded.config.block_size, VALID.get(name), known)
            row |= {"run": out_dir, "method": loaded.run["method"], "ell": loaded.code.ell, "steps": s, "seconds": time.perf_counter() - began}
            rows.append(row)
            print(f"  {s:>5}   {100 * row['valid']:4.1f}% +- {100 * row['valid_error']:.1f}   {row['length_tv']:9.3f}   {row['mean_length']:11.1f}   "
                  f"{row['distinct_2']:10.3f}   {row['entropy']:7.2f}   {100 * row['copied']:5.1f}%   {row['seconds']:7.1f}", flush=True)
    if args.csv:
        with aside(args.csv, newline="") as f:
            out = csv.DictWriter(f, COLUMNS, lineterminator="\n")
            out.writeheader()
            out.writerows({k: f"{r[k]:.5g}" if isinstance(r[k], float) else r[k] for k in COLUMNS} for r in rows)
    if args.png:
        draw_png(args.png, rows)


def held_out_spans(loaded, documents, tokenizer, args):
    """The share of validation documents in which a span of 1 to 6 tokens, removed at random, is restored exactly; and its standard error.
    A fixed canvas is told how long the span was."""
    rng = np.random.default_rng(args.seed)
    ids = [i for i in rng.permutation(len(documents)) if documents.lengths[i] >= 8][:args.spans]
    right = []
    for part in np.array_split(ids, -(-len(ids) // args.batch_size)):
        pairs, spans = [], []
        for i in part:
            document, size = documents.document(i), int(rng.integers(1, 7))
            at = int(rng.integers(1, len(document) - size))
            pairs.append((document[:at], document[at + size:]))
            spans.append(document[at:at + size])
        wanted = TaskArgs(steps=args.span_steps, order=args.order, temperature=args.temperature)
        got = fill(loaded, pairs, [len(span) for span in spans], wanted, [args.seed * 1_000_003 + int(i) for i in part], tokenizer.eot)
        right += [a == b for a, b in zip(got, spans)]
    p = float(np.mean(right))
    return p, math.sqrt(p * (1 - p) / len(right))


# ---- benchmarks ----------------------------------------------------------------------------------------------------------------------

@dataclass
class TaskArgs:
    out_dir: str = flag("out", "a training run, a checkpoint, or the folder of a LLaDA model")
    problems: str = flag("", "the benchmark's own file")
    generations: str = flag("", "in place of a model: a .jsonl with a task_id and a completion a line, or `canonical`, the benchmark's solutions")
    results: str = flag("out/results.jsonl", "one problem a line; the same command again goes on where it was stopped")
    sampler: str = flag("ours", "ours, or llada: fixed canvas, low-confidence remasking", ("ours", "llada"))
    steps: int = flag(128, "sampling steps")
    order: str = flag("random", "which masks are revealed first", sample.ORDERS)
    window: int = flag(0, "reveal only the leftmost masks of this many; 0: any", low=0)
    temperature: float = flag(1.0, "1: what the model says; 0: always the likeliest token")
    length: int = flag(64, "on a fixed canvas: how many tokens an answer has room for")
    block: int = flag(32, "--sampler llada: masks that are filled before the next ones")
    every: int = flag(1, "take every n-th problem only")
    seconds: float = flag(10.0, "time limit of a generated program")
    memory: int = flag(1024, "memory limit of a generated program, in MiB")
    workers: int = flag(2, "programs that run at the same time")
    batch_size: int = flag(8, "problems at a time")
    seed: int = flag(0, "fixes the samples on a CPU", low=0)
    device: str = flag("auto", "auto, cpu, cuda, mps")


def open_model(path, device):
    """A checkpoint, or LLaDA itself."""
    if not llada.is_folder(path):
        return model.load(path if path.endswith(".pt") else os.path.join(path, "ckpt.pt"), device)
    options = llada.read_json(os.path.join(path, "config.json")).get("options") or {}
    insertion = options.get("insertion", "instant")
    net = llada.retrofit(path, insertion)
    return model.Loaded(net.to(device), {"run": {"method": "mdm" if insertion == "instant" else "flexmdm", "insertion": insertion, "unmasking": "linear"},
                                         "tokenizer": {"name": path}})


def fill(loaded, pairs, room, args, seeds, end=None):
    """What a model puts between the tokens a and z of each pair: lists of ids. room: how many masks each has on a fixed canvas."""
    code, L, fixed = loaded.code, loaded.config.block_size, loaded.config.insertion == "instant"
    y, n, opened = sample.stack([sample.start_from([a, z], [k if fixed else None], code, L, fixed, end) for (a, z), k in zip(pairs, room)], code)
    if args.sampler == "llada":
        x, n = sample.generate_by_blocks(loaded.predict, code, (y, n), args.steps, args.block, args.temperature)
    else:
        schedules = interpolant.schedule(loaded.run["insertion"]), interpolant.schedule(loaded.run["unmasking"])
        x, n = sample.generate(loaded.predict, code, len(pairs), y.shape[1] if fixed else L, args.steps, *schedules, args.order, args.temperature,
                               (y, n, opened), window=args.window or None, seeds=seeds)
    ends = [len(a) + k if fixed else int(size) - len(z) for (a, z), k, size in zip(pairs, room, n)]
    return [row[len(a):to].tolist() for row, (a, _), to in zip(x, pairs, ends)]


def solver(benchmark, loaded, tokenizer, args):
    """[problem] -> [answer]: prompts are given, the answer is one hole (with insertion), or --length masks."""
    if args.sampler == "llada" and (loaded.config.insertion != "instant" or loaded.code.ell > 1):
        raise Fail("--sampler llada is for models with a fixed canvas and one digit per token")

    def generate(problems):
        given = lambda p: (p["question"] + "\n", "") if benchmark == "gsm8k" else (p["prompt"], p["suffix"])
        pairs = [tuple(map(tokenizer.encode, given(p))) for p in problems]
        seeds = [(args.seed * 1_000_003 + zlib.crc32(p["task_id"].encode())) % 2 ** 32 for p in problems]
        end = None if loaded.model.never else tokenizer.eot            # LLaDA's canvas ends with the answer
        answers = fill(loaded, pairs, [args.length] * len(pairs), args, seeds, end)
        return [tokenizer.decode(ids[:ids.index(tokenizer.eot)] if tokenizer.eot in ids else ids) for ids in answers]
    return generate


def run_tasks(benchmark, argv):
    args = parse(TaskArgs, __doc__, argv)
    problems = {"gsm8k": tasks.read_gsm8k, "infill": tasks.read_infilling}[benchmark](args.problems)[::args.every]
    if args.generations:
        generate = tasks.from_file(args.generations, {"gsm8k": "answer", "infill": "canonical_solution"}[benchmark])
        settings = {"generations": args.generations}
    else:
        loaded = open_model(args.out_dir, model.pick_device(args.device))
        generate = solver(benchmark, loaded, data.tokenizer_from(loaded.tokenizer), args)
        settings = {k: v for k, v in vars(args).items() if k in ("out_dir", "sampler", "steps", "order", "window", "temperature", "length", "block", "seed")}
        settings["step"] = loaded.step
        torch.manual_seed(args.seed)
    judge = tasks.judge_gsm8k
    if benchmark == "infill":
        if tasks.warning():
            print(tasks.warning(), file=sys.stderr)
        judge = lambda *a: tasks.judge_infilling(*a, seconds=args.seconds, memory=args.memory << 20)
    settings = {"benchmark": benchmark, "problems": os.path.basename(args.problems), **settings}
    tasks.evaluate(problems, generate, judge, args.results, settings, args.batch_size, args.workers)


def command():
    words = sys.argv[1:]
    return run_tasks(words[0], words[1:]) if words[:1] in (["gsm8k"], ["infill"]) else run(words)


if __name__ == "__main__":
    main(command)
