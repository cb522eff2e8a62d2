"""GSM8K and HumanEval-infilling, answered by a model and judged (tasks.py):

    python evaluate.py gsm8k  --out_dir out --problems gsm8k_test.jsonl
    python evaluate.py infill --out_dir out --problems HumanEval-SingleLineInfilling.jsonl.gz
    python evaluate.py gsm8k  --generations canonical --problems gsm8k_test.jsonl

The results have the settings on their first line and one problem on each further one; the same
command again goes on where it was stopped. A problem that is longer than the model's block_size has
failed. The code that a model wrote is run in a sandbox (sandbox.py).

LLaDA itself, as its authors ask it (arXiv 2502.09992): temperature 0, as many steps as tokens, and
four solved problems before each question (zero without --examples):

    python evaluate.py gsm8k --sampler llada --out_dir LLaDA-8B-Base --problems gsm8k_test.jsonl
        --examples gsm8k_train.jsonl
    python evaluate.py gsm8k --sampler llada --out_dir LLaDA-8B-Instruct --problems gsm8k_test.jsonl
        --chat --block 8

A model that was trained here is asked as it was trained: the question, a new line, the answer.
Not measured: LLaDA-8B itself, by this command.
"""
import os
import sys
import zlib
from dataclasses import dataclass

import torch

import checkpoint
import interpolant
from common import Fail, flag, parse, say
from model import pick_device
from retrofit import sandbox, tasks
from sampler import ORDERS, generate, generate_by_blocks, stack, start_from


@dataclass
class Args:
    out_dir: str = flag("out", "a run's folder, a checkpoint, or a pretrained model's folder")
    problems: str = flag("", "the benchmark's own file")
    results: str = flag("out/results.jsonl", "one problem a line; the same command goes on from it")
    generations: str = flag("", "judge these instead: a .jsonl with a task_id and a completion a "
                                "line, or `canonical`, the benchmark's own solutions")
    every: int = flag(1, "take every n-th problem only")
    sampler: str = flag("ours", "ours; exact: one event at a time; llada: a fixed canvas, "
                                "low-confidence remasking", ("ours", "exact", "llada"))
    steps: int = flag(128, "network calls; --sampler llada: as many as --length, unless given")
    temperature: float = flag(1.0, "1: what the model says; 0: always the likeliest token; "
                                   "--sampler llada: 0, unless given")
    order: str = flag("random", "which masks are revealed first", ORDERS)
    window: int = flag(0, "reveal only the leftmost masks of this many; 0: any", low=0)
    length: int = flag(0, "on a fixed canvas: how many tokens an answer has room for; 0: 256 in "
                          "gsm8k, 64 in infill", low=0)
    block: int = flag(0, "--sampler llada: masks that are filled before the next; 0: all", low=0)
    examples: str = flag("", "gsm8k: a file with solved problems to show a pretrained model")
    shots: int = flag(4, "how many of them")
    chat: bool = flag(False, "gsm8k: the chat template of LLaDA-8B-Instruct")
    seconds: float = flag(10.0, "time limit of a generated program")
    memory: int = flag(1024, "memory limit of a generated program, in MiB")
    workers: int = flag(2, "programs that run at the same time")
    unsafe: bool = flag(False, "run generated code also where this system cannot contain it")
    batch_size: int = flag(8, "problems at a time")
    seed: int = flag(0, "makes the answers the same again, on a CPU", low=0)
    device: str = flag("auto", "auto, cpu, cuda, mps")


# what the answers of a model depend on, and so the settings of a results file
ASKED = ("out_dir", "sampler", "steps", "temperature", "order", "window", "length", "block",
         "examples", "shots", "chat", "seed")

# assumption: the template in the tokenizer of LLaDA-8B-Instruct, for one turn of a user
CHAT = ("<|startoftext|><|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n")
# assumption: how the harness that LLaDA's authors use shows GSM8K to a base model
SHOT = "Question: {question}\nAnswer:{answer}"
STOPS = ("Question:", "<|eot_id|>")             # where an answer to these two has ended


def derive(args, benchmark):
    """Defaults that depend on other flags"""
    if args.length == 0:
        args.length = {"gsm8k": 256, "infill": 64}[benchmark]
    if args.block == 0:
        args.block = args.length
    if args.sampler == "llada" and "steps" not in args.named:
        args.steps = args.length
    if args.sampler == "llada" and "temperature" not in args.named:
        args.temperature = 0.0


def check(args, benchmark):
    if not args.problems:
        raise Fail(f"give the problems of {benchmark} with --problems FILE")
    if benchmark == "infill" and (args.chat or args.examples):
        raise Fail("--chat and --examples are for gsm8k: in infill there is no question")
    if benchmark == "infill" and not sandbox.works() and not args.unsafe:
        raise Fail("this system cannot contain a program (no namespaces), so generated code is not "
                   "run: use another machine, or one that you can lose with --unsafe")


# -----------------------------------------------------------------------------
# asking a model

def fill(loaded, pairs, room, args, end=None):
    """What a model puts between the ids a and z of each pair: lists of ids.

    room: how many masks each hole has on a fixed canvas. end: the token that fills the canvas after
    z; None: nothing does. args has sampler, steps, order, temperature, window and block."""
    code, block_size, fixed = loaded.code, loaded.config.block_size, loaded.fixed
    starts = []
    for (a, z), size in zip(pairs, room):
        holes = [size if fixed else None]
        starts.append(start_from([a, z], holes, code, block_size, fixed, end))
    start = stack(starts, code)
    if args.sampler == "llada":
        x, n = generate_by_blocks(loaded.predict, code, start[:2], args.steps, args.block,
                                  args.temperature)
    else:
        if fixed:
            block_size = start[0].shape[1]
        kind = "exact" if args.sampler == "exact" else "parallel"
        insertion = interpolant.schedule(loaded.config.insertion)
        unmasking = interpolant.schedule(loaded.args["unmasking"])
        x, n = generate(loaded.predict, code, len(pairs), block_size, args.steps, insertion,
                        unmasking, args.order, args.temperature, start, sampler=kind,
                        window=args.window)
    answers = []
    for row, (a, z), size, length in zip(x.tolist(), pairs, room, n.tolist()):
        stop = len(a) + size if fixed else length - len(z)
        answers.append(row[len(a):stop])
    return answers


class Asker:
    """Puts problems to a model. ask(problems) -> an answer each, None where it does not fit in."""

    def __init__(self, loaded, benchmark, args):
        if args.sampler == "llada" and not (loaded.fixed and loaded.code.ell == 1):
            raise Fail("--sampler llada is for models with a fixed canvas and one digit per token")
        if loaded.config.causal:
            raise Fail("an autoregressive model cannot fill holes: use a flexmdm or mdm model")
        self.loaded, self.args, self.tokenizer = loaded, args, loaded.tokenizer
        self.benchmark, self.stops, self.shown = benchmark, (), ""
        # LLaDA's canvas ends with the answer; ours is filled up with end tokens, as in training
        self.end = None if loaded.net.never else self.tokenizer.eot
        self.pretrained = args.chat or (args.sampler == "llada" and loaded.step == 0)
        if self.pretrained and benchmark == "gsm8k":
            self.stops = STOPS
        if args.examples:
            for p in tasks.read_gsm8k(args.examples)[:args.shots]:
                self.shown += SHOT.format(question=p["question"], answer=" " + p["answer"]) + "\n\n"

    def given(self, problem):
        """The ids before and after the hole"""
        encode = self.tokenizer.encode
        if self.benchmark == "infill":
            return encode(problem["prompt"]), encode(problem["suffix"])
        if self.args.chat:
            return self.special(CHAT.format(self.shown + problem["question"])), []
        if self.pretrained:
            return encode(self.shown + SHOT.format(question=problem["question"], answer="")), []
        return encode(problem["question"] + "\n"), []

    def special(self, text):
        """Text -> ids, special tokens in it included"""
        encoding = self.tokenizer.encoding
        if "<|start_header_id|>" not in getattr(encoding, "special", {}):
            raise Fail("--chat is for models whose tokenizer.json has LLaDA's <|start_header_id|>")
        return encoding.encode(text)

    def text(self, ids):
        if self.tokenizer.eot in ids:
            ids = ids[:ids.index(self.tokenizer.eot)]
        text = self.tokenizer.decode(ids)
        for stop in self.stops:
            text = text.split(stop)[0]
        return text

    def ask(self, problems):
        room = self.args.length if self.loaded.fixed else 1
        pairs = {p["task_id"]: self.given(p) for p in problems}
        fits = {key: (a, z) for key, (a, z) in pairs.items()
                if len(a) + len(z) + room <= self.loaded.config.block_size}
        if not fits:
            return [None] * len(problems)
        # the answers do not depend on where the command was stopped before
        torch.manual_seed(self.args.seed + zlib.crc32(problems[0]["task_id"].encode()))
        answers = fill(self.loaded, list(fits.values()), [room] * len(fits), self.args, self.end)
        texts = dict(zip(fits, map(self.text, answers)))
        return [texts.get(p["task_id"]) for p in problems]


# -----------------------------------------------------------------------------
# the command

READERS = {"gsm8k": tasks.read_gsm8k, "infill": tasks.read_infilling}
SOLUTIONS = {"gsm8k": "answer", "infill": "canonical_solution"}


def run(argv):
    """argv: `gsm8k` or `infill`, then flags"""
    benchmark = argv[0]
    args = parse(Args, __doc__, argv[1:])
    derive(args, benchmark)
    check(args, benchmark)
    problems = READERS[benchmark](args.problems)[::args.every]
    settings = {"benchmark": benchmark, "problems": os.path.basename(args.problems)}
    if args.generations:
        settings["generations"] = args.generations
        generate = tasks.from_file(args.generations, SOLUTIONS[benchmark])
    else:
        loaded = checkpoint.load(args.out_dir, pick_device(args.device))
        settings |= {name: getattr(args, name) for name in ASKED} | {"step": loaded.step}
        generate = Asker(loaded, benchmark, args).ask

    def judge_code(problem, completion):
        return tasks.judge_infilling(problem, completion, seconds=args.seconds,
                                     memory=args.memory << 20, unsafe=not sandbox.works())

    judge = tasks.judge_gsm8k
    if benchmark == "infill":
        judge = judge_code
        if not sandbox.works():
            print("warning: --unsafe: generated code runs with all rights of this user",
                  file=sys.stderr)
    results = tasks.Results(args.results, settings)
    tasks.evaluate(problems, generate, judge, results, args.batch_size, args.workers, say)
