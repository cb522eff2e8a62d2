"""Train FlexMDM (arXiv 2509.01025), MDM, MDM-Prime (arXiv 2505.18495), both at once, or an
autoregressive baseline.

    python train.py                                     # FlexMDM on lines of Python: minutes
    python train.py --method mdm                        # the same on a fixed canvas
    python train.py --method flexprime --ell 2          # tokens of two digits
    python train.py --dataset notes.txt                 # any text; a document per paragraph
    python train.py --dataset owt                       # OpenWebText
    torchrun --nproc_per_node=8 train.py --dataset owt  # on 8 GPUs: the same steps
    python train.py --init_from resume                  # go on where the last run stopped

The loss is the bound of rates.py in nats per token of the document, with capped hazards: with
--targets averaged the tight bound, which is comparable between methods. Given text costs nothing,
so --infill makes it a little lower than the validation loss, which has none.

A step is a pure function of (weights, moments, seed, step): documents and random numbers are drawn
for the global batch, then every process takes its rows. So resuming is exact, and another number of
processes takes the same steps (but for --dropout).
"""
import math
import os
import sys
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass, fields
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel as DDP

import checkpoint
import data
import interpolant
import parallel
import prime
import rates
import run
from common import Fail, Log, Stop, flag, main, move, parse, say, trim
from figures import curve, images
from interpolant import below
from model import Config, Transformer, pick_device
from muon import optimizers_for
from retrofit import llada

METHODS = {"mdm": "instant", "flexmdm": "linear", "prime": "instant", "flexprime": "linear",
           "ar": "instant"}     # -> the insertion schedule


@dataclass
class Args:
    method: str = flag("flexmdm", "which model", tuple(METHODS))
    ell: int = flag(0, "digits per token; 0: 1, or 2 for prime and flexprime", low=0)
    dataset: str = flag("python", "a folder of data/, a .txt or .jsonl, or a folder with bins")
    data_dir: str = flag("", "where data sets are kept; empty: in data/NAME")
    tokenizer: str = flag("", "bytes, bpe, bpe-SIZE, gpt2, a model's folder; empty: the default")
    split: str = flag("paragraph", "what a document of a .txt is", ("line", "paragraph", "file"))
    field: str = flag("text", "the field of a .jsonl that holds the text")
    packing: str = flag("documents", "documents: a row each; stream: rows of block_size tokens cut "
                        "from the stream (mdm, prime, ar)", ("documents", "stream"))
    out_dir: str = flag("out", "checkpoints, log.csv, loss.png")
    init_from: str = flag("scratch", "scratch, resume, a checkpoint to start from, a LLaDA folder")
    lora: int = flag(128, "rank of the adapters on a LLaDA model; 0: its own weights train", low=0)
    overwrite: bool = flag(False, "remove the run that out_dir holds and start again")
    keep: int = flag(2, "how many checkpoints to keep")
    # model
    block_size: int = flag(64, "the most tokens of a document", low=2, high=checkpoint.LONGEST)
    n_layer: int = flag(4, "blocks")
    n_head: int = flag(4, "attention heads")
    n_embd: int = flag(128, "width")
    rope_theta: float = flag(100.0, "base of the rotary embedding", low=1.0)
    dropout: float = flag(0.0, "dropout in the blocks", high=1.0)
    # noise and loss
    insertion: str = flag("", "schedule alpha: linear, cosine, sin, polynomial, geometric; empty: "
                          "the method's")
    unmasking: str = flag("linear", "schedule beta")
    targets: str = flag("averaged", "averaged over alignments (the tight bound; its time grows as "
                        "length squared), or sampled (Prop. 1)", ("averaged", "sampled"))
    prime_loss: str = flag("marginal", "ell > 1: marginal (a bound) or joint (the paper's)",
                           ("marginal", "joint"))
    infill: float = flag(0.1, "share of documents with given text around holes", high=1.0)
    t_power: float = flag(2.0, "times are 1 - (1 - u)^t_power, weighted to match: 1 is uniform, 2 "
                          "has the least variance", low=0.1, high=10.0)
    weight_cap: float = flag(1000.0, "cap on the hazards in the training loss; never in a bound")
    code: str = flag("plain", "ell > 1: plain digits, or gray: neighbouring numbers differ in one "
                     "digit", ("plain", "gray"))
    shuffle_ids: float = flag(0.0, "ell > 1: share of numbers permuted before they become digits",
                              high=1.0)
    # optimization
    batch_size: int = flag(96, "documents per step, over all processes and pieces")
    gradient_accumulation_steps: int = flag(0, "pieces a process cuts its share of the batch into; "
                                            "0: as many as an 80 GB GPU needs", low=0)
    max_iters: int = flag(2700, "steps")
    optimizer: str = flag("", "muon (AdamW outside the blocks) or adamw; empty: muon, but adamw "
                          "for LLaDA and with --fsdp", ("", "muon", "adamw"))
    learning_rate: float = flag(3e-3, "peak learning rate")
    min_lr: float = flag(0.0, "learning rate at the end")
    warmup_iters: int = flag(60, "steps of linear warm-up", low=0)
    weight_decay: float = flag(0.01, "on matrices only")
    beta2: float = flag(0.99, "AdamW's", high=0.9999)
    grad_clip: float = flag(1.0, "largest gradient norm; 0: any")
    ema: float = flag(0.999, "decay of the averaged weights, which samples and validation use",
                      high=1.0)
    skip_bad_steps: int = flag(0, "how many steps in a row may have a gradient that is not finite",
                               low=0)
    # the run
    eval_interval: int = flag(500, "steps between validation, samples and checkpoint")
    eval_iters: int = flag(16, "batches of validation documents, with fixed noise")
    log_interval: int = flag(50, "steps between progress lines")
    sample_steps: int = flag(64, "sampling steps of the samples that are shown; 0: none", low=0)
    device: str = flag("auto", "auto, cpu, cuda, mps")
    dtype: str = flag("auto", "auto: bfloat16 on CUDA", ("auto", "float32", "bfloat16"))
    compile: bool = flag(torch.cuda.is_available(), "torch.compile the blocks (not with --fsdp)")
    fsdp: bool = flag(False, "shard weights and optimizer over the processes")
    checkpointing: bool = flag(False, "recompute blocks in the backward pass: less memory")
    seed: int = flag(1337, "fixes everything", low=0)


def settle(args):
    """Fill in what follows from other flags. Raises Fail for what does not go together."""
    for name, value in data.training(args.dataset).items():
        fits = name != "insertion" or METHODS[args.method] != "instant"
        if name not in args.named and fits:
            setattr(args, name, value)
    if os.path.exists(os.path.join(args.init_from, "tokenizer.json")):          # a LLaDA
        if args.method not in ("mdm", "flexmdm"):
            raise Fail(f"a LLaDA goes on as --method flexmdm or mdm, not {args.method}")
        args.tokenizer = args.tokenizer or args.init_from
    args.insertion = args.insertion or METHODS[args.method]
    digits = 2 if "prime" in args.method else 1
    args.ell = args.ell or digits
    if args.shuffle_ids and args.code == "gray":
        raise Fail("--code gray and --shuffle_ids are two ways to number tokens: choose one")
    if args.ell > 1 and digits == 1:
        raise Fail(f"--method {args.method} has a digit per token: --ell is for prime and "
                   "flexprime")
    try:
        insertion, unmasking = schedules(args)
    except ValueError as e:
        raise Fail(str(e)) from None
    if (insertion.name == "instant") != (METHODS[args.method] == "instant"):
        raise Fail(f"--insertion {args.insertion} does not go with --method {args.method}")
    if unmasking.name == "instant":
        raise Fail("--unmasking instant would leave nothing to learn: choose another schedule")
    if args.packing == "stream" and insertion.name != "instant":
        raise Fail("--packing stream cuts documents, whose length is what insertion learns: "
                   "use --packing documents")
    if not args.optimizer:
        plain = not args.fsdp and not llada.is_folder(args.init_from)
        args.optimizer = "muon" if plain else "adamw"
    if args.dtype == "auto":
        args.dtype = "bfloat16" if args.device.startswith("cuda") else "float32"
    if args.fsdp and "RANK" not in os.environ:
        raise Fail("--fsdp shards over the processes that torchrun starts: use torchrun, or "
                   "--no-fsdp")
    if args.fsdp and args.optimizer == "muon":
        raise Fail("muon needs whole matrices: use --optimizer adamw with --fsdp")


def schedules(args):
    return interpolant.schedule(args.insertion), interpolant.schedule(args.unmasking)


# -----------------------------------------------------------------------------
# one batch, one loss

def draw_times(B, power):
    """t = 1 - (1 - u)^power for stratified u, in random order, and dt/du, their weight: (B,), (B,).
    With power 2 late times, where a mask weighs 1 / (1 - t), are drawn more often: the variance is
    finite."""
    u = (torch.randperm(B) + torch.rand(B, dtype=torch.float64)) / B
    left = 1 - u.clamp_max(1 - 2 ** -24)
    return 1 - left ** power, power * left ** (power - 1)


MOST_HOLES = 3


def draw_given(n1, L, rows=slice(None)):
    """Text with holes: which tokens of documents of n1 (B,) tokens are given, for some `rows` of
    them: (rows, L) bool.

    1. Run lengths r_0 .. r_k around k holes are drawn by a law that does not look at the document:
       shares of the length of another one. r_0 is 0 in a third of the cases, r_k in another third.
    2. If the runs leave fewer than k tokens for the holes, everything is given, and the document
       teaches nothing. (Nothing given would make short documents too frequent among those without
       given text.)
    3. Otherwise the holes share what is left, all ways to do so being equally likely.

    So with one hole the best answer is exactly p(x1 | given text, the hole is not empty). With k
    holes that hide h tokens in all it is tilted by 1 / C(h - 1, k - 1), the chance of the split:
    towards short holes."""
    B, runs, other = len(n1), MOST_HOLES + 1, n1.roll(1)
    draws = (torch.randint(1, MOST_HOLES + 1, (B, 1)), torch.rand(B, 1), torch.rand(B, runs),
             torch.rand(B, 1), torch.rand(B, L))
    holes, single, share, side, split = (draw[rows] for draw in draws)
    n1, other = n1[rows, None], other[rows, None]                               # (B, 1)
    holes = torch.where(single < 0.5, 1, holes)                                 # (B, 1)
    length = (share * other / holes).long().clamp_min(1)                        # (B, runs)
    i = torch.arange(runs)
    absent = ((i == 0) & (side < 1 / 3)) | ((i == holes) & (side > 2 / 3)) | (i > holes)
    length = length.masked_fill(absent, 0)
    hidden = n1 - length.sum(1, keepdim=True)                               # (B, 1) tokens in holes
    # hidden token p begins a new hole at k - 1 random places of 1 .. hidden - 1
    p = torch.arange(L)
    rank = split.masked_fill((p == 0) | (p >= hidden), 2).argsort(dim=1).argsort(dim=1)
    hole = ((rank < holes - 1) & (p > 0) & (p < hidden)).cumsum(1)              # (B, L) which hole
    before = length.cumsum(1).gather(1, hole.clamp_max(MOST_HOLES))          # given tokens before p
    place = torch.where(p < hidden, p + before, L).clamp_max(L)
    is_hidden = torch.zeros(len(n1), L + 1, dtype=torch.bool).scatter(1, place, True)[:, :L]
    return ~(is_hidden & (hidden >= holes)) & (p < n1)


def canvas(x, n, args, end):
    """The documents as the method sees them: with insertion as they are; on a fixed canvas filled
    up with end tokens, which the model has to predict; autoregressive, with one end token. Images
    have none (end < 0)."""
    if METHODS[args.method] != "instant" or end < 0:
        return x, n
    size = x.shape[1] + 1 if args.method == "ar" else args.block_size
    full = torch.full((len(x), size), end)
    full[:, :x.shape[1]] = torch.where(below(n, x.shape[1]), x, end)
    if args.method == "ar":
        return full, n + 1
    return full, torch.full_like(n, size)


def make_batch(step, documents, code, args, rows=slice(None)):
    """All that is random in a step, a pure function of (seed, step). Documents and random numbers
    are drawn for the global batch; the work on them is done for `rows` of it."""
    torch.default_generator.manual_seed(args.seed * 1_000_003 + step)
    order = data.order(args.seed, step, args.batch_size, len(documents))
    x, length, given = documents.batch(order)                                 # (B, L), (B,), (B, L)
    x1, n1 = canvas(x[rows], length[rows], args, documents.tokenizer.eot)
    B, L = len(x), x1.shape[1]
    tokens = int(length.sum())                                                  # what is to be said
    if given is not None:                                                     # the prompt of a task
        tokens -= int(given.sum())
        given = F.pad(given[rows], (0, L - given.shape[1]))
    elif args.infill and METHODS[args.method] != "instant":
        given = draw_given(length, L, rows)
        given &= torch.rand(B, 1)[rows] < args.infill
    batch = SimpleNamespace(x1=x1, n1=n1, given=given, tokens=tokens)
    if args.method == "ar":
        return batch
    batch.t, batch.weight = (draw[rows] for draw in draw_times(B, args.t_power))
    batch.d1 = rates.digits(code, x1, n1)
    anchors = None
    if given is not None and documents.anchored:
        u = torch.rand(B, L, dtype=torch.float64)
        anchors = interpolant.anchors_of(given, n1, u[rows])
    noise = [draw[rows] for draw in interpolant.draw_noise(B, L, code.ell)]
    batch.noised = interpolant.interpolate(batch.d1, n1, batch.t, *schedules(args), given, anchors,
                                           noise, mask=code.mask, pad=code.pad)
    return batch


def losses(predict, code, batch, rows, args):
    """The integrand of the bound for these rows of the batch, hazards capped: unmask, insert (B,),
    in nats."""
    given = None if batch.given is None else batch.given[rows]
    if args.method == "ar":
        nll = rates.next_token_nll(predict, code, batch.x1[rows], batch.n1[rows], given)
        return nll, torch.zeros_like(nll)
    noised = interpolant.Noised(*(x[rows] for x in batch.noised))
    t, weight = batch.t[rows], batch.weight[rows]
    unmask, insert = rates.terms(predict, code, batch.d1[rows], batch.n1[rows], noised, t,
                                 joint=args.prime_loss == "joint",
                                 averaged=args.targets == "averaged", given=given)
    insertion, unmasking = schedules(args)
    lam_insert = insertion.hazard(t).clamp_max(args.weight_cap) * weight
    lam_unmask = unmasking.hazard(t).clamp_max(args.weight_cap) * weight
    return unmask * move(lam_unmask, unmask.device), insert * move(lam_insert, insert.device)


def learning_rate(step, args):
    """linear warm-up, then a cosine from learning_rate to min_lr"""
    if step < args.warmup_iters:
        return args.learning_rate * (step + 1) / (args.warmup_iters + 1)
    x = min(1.0, (step - args.warmup_iters) / max(1, args.max_iters - args.warmup_iters))
    return args.min_lr + 0.5 * (1 + math.cos(math.pi * x)) * (args.learning_rate - args.min_lr)


def pieces_for(args, config, world):
    """Into how many pieces a process cuts its share of the batch, if the user does not say: 64
    documents of 1024 tokens are a piece for the 170M model with insertion, half as many without.
    assumption: that fits a GPU of 80 GB (not measured)."""
    rows, pieces = args.batch_size // world, args.gradient_accumulation_steps
    if not pieces:
        tokens = 2 ** 16 * (12 * 768) / (config.n_layer * config.n_embd)
        if METHODS[args.method] == "instant":
            tokens /= 2
        pieces = max(1, min(rows, math.ceil(rows * args.block_size / tokens)))
    if rows < pieces:
        raise Fail(f"--batch_size {args.batch_size} is less than a document for each of {world} "
                   f"processes times {pieces} pieces: raise it")
    return pieces


@torch.no_grad()
def validate(net, documents, code, args, pieces, rank, world):
    """The tight bound on fixed documents, times and noise, uncapped: (unmask, insert), nats per
    token. --prime_loss, --infill and --weight_cap do not change it."""
    B = min(args.batch_size, len(documents))
    plain = SimpleNamespace(**vars(args))
    plain.infill, plain.weight_cap, plain.t_power, plain.batch_size = 0.0, math.inf, 2.0, B
    plain.targets, plain.prime_loss = "averaged", "marginal"
    share = -(-B // world)                      # as many rows, and forward passes, on every process
    sums = torch.zeros(3, dtype=torch.float64)                              # unmask, insert, tokens
    for i in range(args.eval_iters):
        rows = torch.arange(share) * world + rank
        batch = make_batch(i, documents, code, plain, rows % B)
        for piece in torch.arange(share).split(-(-share // pieces)):
            unmask, insert = losses(net, code, batch, piece, plain)
            real = (rows[piece] < B).to(unmask.device)
            sums[0] += float(unmask[real].double().sum())
            sums[1] += float(insert[real].double().sum())
        sums[2] += batch.tokens / world
    parallel.total(sums, world)
    return (sums[:2] / sums[2]).tolist()


# -----------------------------------------------------------------------------
# weights

@torch.no_grad()
def swap(net, ema):
    """Exchange the weights with their averages; once more to undo it."""
    for name, p in net.named_parameters():
        if name in ema:
            last = p.clone()
            p.copy_(ema[name])
            ema[name].copy_(last)


@torch.no_grad()
def update_ema(net, ema, step, decay):
    """ema <- d ema + (1 - d) weights, d = min(decay, (1 + step) / (10 + step)): young averages
    forget faster."""
    weights = dict(net.named_parameters())
    d = min(decay, (1 + step) / (10 + step))
    torch._foreach_lerp_(list(ema.values()), [weights[name].detach() for name in ema], 1 - d)


def fit_to_images(args, shape):
    """Images have a size of their own, and nothing to insert."""
    size = math.prod(shape)
    text = " x ".join(map(str, shape))
    if METHODS[args.method] != "instant":
        raise Fail(f"an image of {text} has all of its numbers from the start, and --method "
                   f"{args.method} inserts: use --method mdm, prime or ar")
    if "block_size" in args.named and args.block_size != size:
        raise Fail(f"an image of {text} is {size} numbers, so --block_size {args.block_size} does "
                   "not fit: leave it out")
    args.block_size = size


def build(args, tokenizer, content, shape=()):
    """The network of a run: that of the checkpoint `content`, LLaDA with adapters, or a new one"""
    if content is not None:
        with checkpoint.must_fit(args.out_dir):
            return checkpoint.build(content)
    if llada.is_folder(args.init_from):
        net = llada.retrofit(args.init_from, args.insertion, args.block_size, args.lora)
        if net.config.V != tokenizer.vocab_size:
            raise Fail(f"{args.init_from} has {net.config.V:,} tokens, the data set "
                       f"{tokenizer.vocab_size:,}: use --tokenizer {args.init_from}")
        own = llada.described(args.init_from).get("tokenizer") or {}
        if own.get("ranks") not in (None, tokenizer.spec().get("ranks")):
            raise Fail(f"{args.init_from} was trained with another bpe than that of the data set")
        return net
    permutation = None
    if args.ell > 1 and args.shuffle_ids:
        permutation = prime.shuffle(tokenizer.vocab_size, args.ell, args.shuffle_ids, args.seed)
    if args.ell > 1 and args.code == "gray":
        permutation = prime.gray(prime.base(tokenizer.vocab_size, args.ell), args.ell)
    config = Config(V=tokenizer.vocab_size, ell=args.ell, block_size=args.block_size,
                    insertion=args.insertion, causal=args.method == "ar", n_layer=args.n_layer,
                    n_head=args.n_head, n_embd=args.n_embd, dropout=args.dropout,
                    rope_theta=args.rope_theta, shape=tuple(shape))
    try:
        return Transformer(config, permutation)
    except ValueError as e:
        raise Fail(str(e)) from None


PEAK = {"H100": 989e12, "H200": 989e12, "A100": 312e12}     # dense bf16 FLOP/s


def mfu_text(net, args, tokens, documents, seconds):
    """' | mfu 41%' on a GPU whose peak is known: the FLOPs, forward and backward, of the slots that
    exist (blocks, attention) and of those that are masked (head), over the peak. tokens, documents:
    those of one process."""
    peaks = [peak for name, peak in PEAK.items()
             if args.device.startswith("cuda") and name in torch.cuda.get_device_name()]
    if not peaks:
        return ""
    present, masked = 1.0, 1.0
    if args.method != "ar":                         # measured on noise: it depends on the schedules
        x, n = torch.zeros(256, 64, args.ell, dtype=torch.int64), torch.full((256,), 64)
        t, _ = draw_times(256, args.t_power)
        noised = interpolant.interpolate(x, n, t, *schedules(args), mask=1, pad=2)
        present = float(noised.n.sum() / n.sum())
        masked = float((noised.y == 1).any(2).sum() / n.sum())
    length = 0.62 * args.block_size                 # assumption: of documents, as OpenWebText's
    if METHODS[args.method] == "instant" and args.method != "ar":
        tokens, length = documents * args.block_size, args.block_size       # all of the canvas
    per_slot = sum(p.numel() for name, p in net.blocks.named_parameters()
                   if p.ndim == 2 and "adaln" not in name)
    attention = 2 * net.config.n_layer * net.config.n_embd * present * length
    weights = present * (per_slot + attention) + masked * net.head.weight.numel()
    return f" | mfu {100 * 6 * tokens * weights / seconds / peaks[0]:.0f}%"


# -----------------------------------------------------------------------------
# the loop

class Window:
    """Sums since the last progress line: nats to unmask and to insert, and how many tokens"""

    def __init__(self, device, sums=None, tokens=0):
        self.sums = torch.zeros(2, device=device)
        if sums is not None:
            self.sums += sums.to(device)
        self.tokens = tokens

    def total(self, world):
        """The sums over all processes, on the CPU"""
        return parallel.total(self.sums.cpu().clone(), world)


def step_optimizers(net, optimizers, lr, clip):
    """Clip the gradient and, if it is finite, take a step. -> its norm"""
    norm = torch.nn.utils.clip_grad_norm_(net.parameters(), clip or math.inf)
    if isinstance(net, FSDPModule):
        norm = norm.full_tensor()
    norm = float(norm)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = lr
        if math.isfinite(norm):
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return norm


def evaluate(net, ema, dataset, args, pieces, rank, world, autocast, step):
    """Validate, and draw samples, with the averaged weights. -> the loss, and lines to print"""
    net.eval()
    swap(net, ema)
    with autocast:
        unmask, insert = validate(net, dataset.val, net.code, args, pieces, rank, world)
    lines = [f"step {step}/{args.max_iters} | val {unmask + insert:.3f} "
             f"(unmask {unmask:.3f} insert {insert:.3f})"]
    if not math.isfinite(unmask + insert):
        raise Fail(f"the validation loss of step {step} is not finite: lower --learning_rate")
    asked = checkpoint.Loaded(net, vars(args), dataset.tokenizer, step)
    if args.sample_steps and net.config.shape:
        drawn = asked.images(steps=args.sample_steps, seed=step)
        if rank == 0:
            images.save(os.path.join(args.out_dir, "samples.png"), [images.grid(drawn)])
    elif args.sample_steps:
        texts = asked.generate(3, steps=args.sample_steps, seed=step)
        lines += ["    " + repr(text)[1:-1] for text in texts]
    swap(net, ema)
    net.train()
    return unmask + insert, lines


def train(argv=None):
    # 1. flags, processes, the folder
    argv = sys.argv[1:] if argv is None else argv
    args = parse(Args, __doc__, argv)
    args.device = pick_device(args.device)
    rank, world = parallel.start(args)
    print_once = say if rank == 0 else (lambda line: None)
    content, resume = None, args.init_from == "resume"
    if resume:
        content = checkpoint.newest_good(args.out_dir, print_once)
        device, args = args.device, run.flags(Args, __doc__, argv, content)
        args.device = device
    settle(args)
    held = run.claim(args) if rank == 0 else None   # noqa: F841 (kept until the process ends)

    # 2. data, network, optimizers
    dataset = data.load(args.dataset, data_dir=args.data_dir, block_size=args.block_size,
                        tokenizer=args.tokenizer, split=args.split, field=args.field,
                        packing=args.packing)
    shape = dataset.meta.get("shape", ())
    if shape:
        fit_to_images(args, shape)
    torch.manual_seed(args.seed)
    net = build(args, dataset.tokenizer, content, shape).to(args.device)
    net.checkpointing = args.checkpointing
    pieces = pieces_for(args, net.config, world)
    if not resume and args.init_from != "scratch" and not llada.is_folder(args.init_from):
        run.start_from(net, args.init_from, dataset.tokenizer)
    if args.fsdp:
        parallel.shard(net)
    ema = {name: p.detach().clone() for name, p in run.trained(net).items()}
    optimizers = optimizers_for(net, args)
    step, seconds_before, window = 0, 0.0, Window(args.device)
    if resume:
        with checkpoint.must_fit(args.out_dir):
            run.restore(net, ema, optimizers, content, dataset)
            step, seconds_before = content["step"], float(content["seconds"])
            if rank == 0:
                window = Window(args.device, content["window"])
            window.tokens = int(content["window_tokens"])
    if args.compile and not args.fsdp:
        net.trunk = torch.compile(net.trunk, dynamic=True)
    model = DDP(net) if world > 1 and not args.fsdp else net
    autocast = nullcontext()
    if args.dtype == "bfloat16":
        autocast = torch.autocast(args.device.split(":")[0], torch.bfloat16)

    # 3. what a run keeps
    run_flags = {f.name: getattr(args, f.name) for f in fields(Args)}
    log = Log(os.path.join(args.out_dir, "log.csv"), step) if rank == 0 else None
    if rank == 0 and not resume:                    # --overwrite: no old one may be resumed
        for path in checkpoint.found(args.out_dir):
            path.unlink()
    stop = Stop()
    print_once(f"{args.method} on {args.dataset}: {len(dataset.train):,} documents, "
               f"{dataset.train.tokens:,} tokens | {net.count()[0] / 1e6:.2f}M parameters | "
               f"{args.device} x {world}, {args.dtype}, torch {torch.__version__} | "
               f"{args.out_dir}/")
    start, began = step, time.time()
    clock, clock_step = began, step

    def save():
        sums = window.total(world)
        state = run.state(net, ema, optimizers)
        if rank == 0:
            log.write()             # first: resuming cuts off what is later than the checkpoint
            seconds = seconds_before + time.time() - began
            checkpoint.save(args.out_dir, args.keep, step=step, **state, config=asdict(net.config),
                            args=run_flags, tokenizer=dataset.tokenizer.spec(),
                            permutation=net.code.permutation, base=net.base, lora=args.lora,
                            fingerprint=dataset.train.fingerprint, window=sums,
                            window_tokens=window.tokens, seconds=seconds)
            curve.draw(os.path.join(args.out_dir, "loss.png"), log.rows)

    # 4. steps
    rows = torch.arange(rank * args.batch_size // world, (rank + 1) * args.batch_size // world)
    bad, batch = 0, make_batch(step, dataset.train, net.code, args, rows)
    while True:
        last, asked = step >= args.max_iters, parallel.agreed(stop.asked, world)
        due = step > start and (last or step % args.eval_interval == 0)
        if due:
            val, lines = evaluate(net, ema, dataset, args, pieces, rank, world, autocast, step)
            print_once("\n".join(lines))
            if rank == 0:
                log.add(step=step, val=val)
        if due or asked:
            save()
            clock, clock_step = time.time(), step
        if asked and not last:
            print_once(f"stopped after step {step}: go on with --init_from resume "
                       f"--out_dir {args.out_dir}")
        if asked or last:
            break

        # gradients, in pieces
        if args.dropout:
            torch.manual_seed(((args.seed * 1_000_003 + step) * 4099 + 1 + rank) % 2 ** 63)
        for i, piece in enumerate(torch.arange(len(rows)).tensor_split(pieces)):
            model.require_backward_grad_sync = i + 1 == pieces      # DDP: after the last piece only
            with autocast:
                unmask, insert = losses(model, net.code, batch, piece, args)
            loss = (unmask.sum() + insert.sum()) / batch.tokens
            (loss * world).backward()                               # DDP averages over processes
            window.sums += torch.stack([unmask.detach().sum(), insert.detach().sum()])
        tokens = batch.tokens                       # the next batch, while a GPU is at work
        batch = make_batch(step + 1, dataset.train, net.code, args, rows)

        # one step of the optimizers, and of the averages
        lr = learning_rate(step, args)
        norm = step_optimizers(net, optimizers, lr, args.grad_clip)
        bad = 0 if math.isfinite(norm) else bad + 1
        if bad > args.skip_bad_steps:
            raise Fail(f"the gradient of step {step} is not finite; the weights were left as they "
                       "are: go on from the last checkpoint with a lower --learning_rate")
        update_ema(net, ema, step, args.ema)
        step, window.tokens = step + 1, window.tokens + tokens

        # progress
        if step % args.log_interval == 0 or step == args.max_iters:
            unmask, insert = (window.total(world) / window.tokens).tolist()
            now = time.time()
            seconds = (now - clock) / (step - clock_step)
            left = (args.max_iters - step) * (now - began) / (step - start)
            print_once(f"step {step}/{args.max_iters} | loss {unmask + insert:.3f} (unmask "
                       f"{unmask:.2f} insert {insert:.2f}) | lr {lr:.1e} | gnorm {norm:.2f} | "
                       f"{1000 * seconds:.0f} ms | {tokens / seconds / 1000:.1f}k tok/s"
                       f"{mfu_text(net, args, tokens / world, len(rows), seconds)} | "
                       f"eta {int(left) // 60}m{int(left) % 60:02d}s")
            if rank == 0:
                log.add(step=step, loss=unmask + insert, unmask=unmask, insert=insert, lr=lr,
                        gnorm=norm, tokens=window.tokens,
                        seconds=f"{seconds_before + now - began:.0f}")
            window, clock, clock_step = Window(args.device), now, step
            trim()

    print_once(f"{args.out_dir}/: ckpt.pt, log.csv, loss.png after {time.time() - began:.0f} s")
    if world > 1:
        del model                                   # its reducer must not outlive the processes
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(train)
