"""GSM8K and HumanEval-infilling, answered by a model and judged (tasks.py):

    python evaluate.py gsm8k  --out_dir out --problems gsm8k_test.jsonl
    python evaluate.py infill --out_dir out --problems HumanEval-SingleLineInfilling.jsonl.gz
    python evaluate.py gsm8k  --generations canonical --problems gsm8k_test.jsonl

The same command again goes on where it was stopped. A problem that is longer than the model's
block_size counts as failed. The code that a model wrote is run in a sandbox (sandbox.py). With
--sampler llada LLaDA is asked as by its authors (arXiv 2502.09992): temperature 0, as many steps as
tokens, and four solved problems before each question (none without --examples):

    python evaluate.py gsm8k --sampler llada --out_dir LLaDA-8B-Base --problems gsm8k_test.jsonl
        --examples gsm8k_train.jsonl
    python evaluate.py gsm8k --sampler llada --out_dir LLaDA-8B-Instruct --problems gsm8k_test.jsonl
        --chat --block 8

A model that was trained here is asked as it was trained: the question, a new line, the answer.
Never run on LLaDA-8B itself.
"""
import functools
import os
import sys
import zlib
from dataclasses import dataclass

import torch

import checkpoint
from common import Fail, flag, parse, say
from interpolant import below
from model import pick_device
from retrofit import sandbox, tasks
from sampler import ORDERS, draw_tokens, highest, stack, start_from, to_ids


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
    window: int = flag(0, "reveal only among this many leftmost masks; 0: all", low=0)
    length: int = flag(0, "on a fixed canvas: how many tokens an answer has room for; 0: 256 in "
                          "gsm8k, 64 in infill", low=0)
    block: int = flag(0, "--sampler llada: masks that are filled before the next; 0: all", low=0)
    examples: str = flag("", "gsm8k, --sampler llada or --chat: a file of solved problems that are "
                             "shown first")
    shots: int = flag(4, "how many of them")
    chat: bool = flag(False, "gsm8k: the chat template of LLaDA-8B-Instruct")
    seconds: float = flag(10.0, "time limit of a generated program")
    memory: int = flag(1024, "memory limit of a generated program, in MiB")
    workers: int = flag(2, "programs that run at the same time")
    unsafe: bool = flag(False, "run generated code also where this system cannot contain it")
    batch_size: int = flag(8, "problems at a time")
    seed: int = flag(0, "makes the answers the same again, on a CPU", low=0)
    device: str = flag("auto", "auto, cpu, cuda, mps")


# what the law of the answers depends on, and so the settings of a results file
ASKED = ("out_dir", "sampler", "steps", "temperature", "order", "window", "length", "block",
         "examples", "shots", "chat", "seed")

# assumption: the template in the tokenizer of LLaDA-8B-Instruct, for one turn of a user
CHAT = ("<|startoftext|><|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n")
# assumption: how the harness that LLaDA's authors use shows GSM8K to a base model
SHOT = "Question: {}\nAnswer:{}"
STOPS = ("Question:", "<|eot_id|>")             # where an answer to these two has ended


def derive(args, benchmark):
    """Defaults that depend on other flags"""
    args.length = args.length or {"gsm8k": 256, "infill": 64}[benchmark]
    args.block = args.block or args.length
    if args.sampler == "llada" and "steps" not in args.named:
        args.steps = args.length
    if args.sampler == "llada" and "temperature" not in args.named:
        args.temperature = 0.0


def judge_of_code(args):
    """The judge of infill. Raises Fail where generated code must not be run."""
    contained = sandbox.works()
    if not contained and not args.unsafe:
        raise Fail("this system cannot contain a program (no namespaces), so generated code is not "
                   "run: use another machine, or one that you can lose with --unsafe")
    if not contained:
        print("warning: --unsafe: generated code runs with all rights of this user",
              file=sys.stderr)
    return functools.partial(tasks.judge_infilling, seconds=args.seconds, memory=args.memory << 20,
                             unsafe=not contained)


# -----------------------------------------------------------------------------
# asking a model

@torch.no_grad()
def generate_by_blocks(predict, code, y, n, steps, block, temperature=0.0):
    """LLaDA's own sampler on a fixed canvas (low-confidence remasking, semi-autoregressive: arXiv
    2502.09992) -> x (B, L), n.
    y (B, L, 1), n (B,): the state to start from. A row's masks are filled in blocks of `block`,
    from the left; each step reveals (masks left) / (steps left) of the block, those whose drawn
    token is the most probable."""
    given = below(n, y.shape[1]) & (y != code.mask)[:, :, 0]
    number = (y == code.mask)[:, :, 0].cumsum(1)                            # 1, 2, .. at the masks
    blocks = -(-int(number.max()) // block)                                 # rounded up
    per_block = max(1, steps // blocks)
    for b in range(blocks):
        for steps_left in range(per_block, 0, -1):
            at = (y == code.mask)[:, :, 0] & (number <= (b + 1) * block)    # (B, L)
            if not at.any():
                break
            logits, _ = predict(y, n, torch.zeros(len(y)), at, given=given)
            token = draw_tokens(logits, y[at].to(logits.device), code, temperature)
            sure = logits.float().softmax(1).gather(1, token[:, None])[:, 0].cpu()
            scores = torch.zeros(at.shape).masked_scatter(at, sure)
            chosen = highest(scores, at, -(-at.sum(1) // steps_left))
            drawn = y.masked_scatter(at[:, :, None], code.encode(token.cpu()))
            y = torch.where(chosen[:, :, None], drawn, y)
    return to_ids(code, y, n)


class Asker:
    """Puts problems to a model. ask(problems) -> {task_id: answer}, without those that are too
    long for it."""

    def __init__(self, loaded, benchmark, args):
        if args.sampler == "llada" and not (loaded.fixed and loaded.code.ell == 1):
            raise Fail("--sampler llada is for models with a fixed canvas and one digit per token")
        if loaded.config.causal:
            raise Fail("an autoregressive model cannot fill holes: use a flexmdm or mdm model")
        special = getattr(loaded.tokenizer.encoding, "special", ())
        if args.chat and "<|start_header_id|>" not in special:
            raise Fail("--chat is for models whose tokenizer.json has <|start_header_id|>")
        self.loaded, self.benchmark, self.args = loaded, benchmark, args
        self.tokenizer = loaded.tokenizer
        trained_here = bool(loaded.args["dataset"])
        self.pretrained = args.chat or (args.sampler == "llada" and not trained_here)
        if args.examples and not self.pretrained:
            raise Fail("--examples are shown to a LLaDA as it came: add --sampler llada or --chat")
        # LLaDA's canvas ends with the answer; ours is filled up with end tokens, as in training
        self.end = self.tokenizer.eot if trained_here else None
        self.room = args.length if loaded.fixed else 1          # slots of a hole, at the start
        solved = tasks.read_gsm8k(args.examples)[:args.shots] if args.examples else []
        self.shown = "".join(SHOT.format(p["question"], " " + p["answer"]) + "\n\n" for p in solved)

    def given(self, problem):
        """The ids before and after the hole"""
        encode = self.tokenizer.encode
        if self.benchmark == "infill":
            return encode(problem["prompt"]), encode(problem["suffix"])
        question = problem["question"]
        if self.args.chat:
            return self.tokenizer.encoding.encode(CHAT.format(self.shown + question)), []
        if self.pretrained:
            return encode(self.shown + SHOT.format(question, "")), []
        return encode(question + "\n"), []

    def fill(self, pairs):
        """What the model puts between the ids a and z of each pair: lists of ids"""
        loaded, args, code = self.loaded, self.args, self.loaded.code
        starts = [start_from([a, z], [self.room], code, loaded.config.block_size, loaded.fixed,
                             self.end) for a, z in pairs]
        y, n, opened = stack(starts, code)
        if args.sampler == "llada":
            x, n = generate_by_blocks(loaded.predict, code, y, n, args.steps, args.block,
                                      args.temperature)
        else:
            sampler = "exact" if args.sampler == "exact" else "parallel"
            x, n = loaded.documents(len(pairs), (y, n, opened), args.steps, args.order,
                                    args.temperature, sampler, window=args.window)
        answers = []
        for row, (a, z), length in zip(x.tolist(), pairs, n.tolist()):
            stop = len(a) + self.room if loaded.fixed else length - len(z)
            answers.append(row[len(a):stop])
        return answers

    def text(self, ids):
        """The ids of an answer -> its text, up to where the answer ends"""
        if self.tokenizer.eot in ids:
            ids = ids[:ids.index(self.tokenizer.eot)]
        text = self.tokenizer.decode(ids)
        if self.pretrained and self.benchmark == "gsm8k":
            for stop in STOPS:
                text = text.split(stop)[0]
        return text

    def ask(self, problems):
        longest = self.loaded.config.block_size - self.room
        pairs = {p["task_id"]: self.given(p) for p in problems}
        pairs = {name: (a, z) for name, (a, z) in pairs.items() if len(a) + len(z) <= longest}
        if not pairs:
            return {}
        # the answers do not depend on where the command was stopped before
        torch.manual_seed(self.args.seed + zlib.crc32(problems[0]["task_id"].encode()))
        answers = self.fill(list(pairs.values()))
        return {name: self.text(ids) for name, ids in zip(pairs, answers)}


# -----------------------------------------------------------------------------
# the command

def run(argv):
    """argv: `gsm8k` or `infill`, then flags"""
    benchmark = argv[0]
    args = parse(Args, __doc__, argv[1:])
    derive(args, benchmark)
    if not args.problems:
        raise Fail(f"give the problems of {benchmark} with --problems FILE")
    if benchmark == "gsm8k":
        read, judge, solution = tasks.read_gsm8k, tasks.judge_gsm8k, "answer"
    else:
        if args.chat or args.examples:
            raise Fail("--chat and --examples are for gsm8k: in infill there is no question")
        read, judge, solution = tasks.read_infilling, judge_of_code(args), "canonical_solution"
    problems = read(args.problems)[::args.every]
    settings = {"benchmark": benchmark, "problems": os.path.basename(args.problems)}
    if args.generations:
        settings["generations"] = args.generations
        texts = tasks.from_file(args.generations, problems, solution)

        def generate(batch):
            return texts
    else:
        loaded = checkpoint.load(args.out_dir, pick_device(args.device))
        settings |= {name: getattr(args, name) for name in ASKED} | {"step": loaded.step}
        generate = Asker(loaded, benchmark, args).ask
    tasks.evaluate(problems, generate, judge, args.results, settings, args.batch_size,
                   args.workers, say)
