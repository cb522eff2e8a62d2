"""Train a FlexMDM (arXiv 2509.01025), an MDM, their MDM-Prime forms (arXiv 2505.18495), or an autoregressive baseline.

    python train.py                                             # FlexMDM on one-line Python statements: minutes on a laptop, no download
    python train.py --method mdm                                # the same on a fixed canvas
    python train.py --method flexprime --ell 2                  # tokens of two digits
    python train.py --dataset notes.txt --block_size 256        # any text; a document per paragraph
    python train.py --dataset owt                               # OpenWebText
    torchrun --nproc_per_node=8 train.py --dataset owt          # on 8 GPUs; the same global batch
    python train.py --init_from resume                          # go on where the last run stopped, to the bit

A step is a pure function of (weights, seed, step): its documents, times and noise are drawn for the whole global batch, then every
process takes its rows. So a run that was stopped and resumed, and one on other processes, takes the same steps.

The number that is printed as loss is the tight bound of rates.py in nats per document token, its two parts beside it: comparable
between methods, up to its noise, the infilling tasks and the capped weights. (--targets sampled: the loose bound of Prop. 1, which with
insertion stays far above the entropy for a perfect model too.) val is the tight bound on fixed documents and noise, uncapped, without infilling.
"""
import contextlib
import math
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from types import SimpleNamespace

import torch
import torch.distributed as dist

try:
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import distribute_tensor
except ImportError:                                                    # an older torch: no --fsdp
    fully_shard = None

import data
import interpolant
import llada
import model
import prime
import rates
import sample
from common import Fail, Log, Stop, Team, aside, flag, lock, main, parse, trim
from model import checkpoints, newest_good, save_checkpoint

METHODS = {"mdm": "instant", "flexmdm": "linear", "prime": "instant", "flexprime": "linear", "ar": "instant"}    # -> insertion schedule

# Sizes for a data set, taken where the user names none.
PRESETS = {
    "owt": dict(block_size=1024, batch_size=512, rope_theta=10000.0, n_layer=12, n_head=12, n_embd=768, learning_rate=3e-4, max_iters=500_000, warmup_iters=2500,
                eval_interval=2000, ema=0.9999, dropout=0.0, weight_decay=0.03, log_interval=10, gradient_accumulation_steps=1, targets="sampled"),
    "brackets": dict(insertion="sin", infill=0.0, n_layer=3, n_head=4, n_embd=64, batch_size=128, learning_rate=2e-3, warmup_iters=100, max_iters=1800, eval_interval=600),
    "functions": dict(block_size=1024, batch_size=64, rope_theta=1000.0, n_layer=8, n_head=8, n_embd=512, learning_rate=2e-3, max_iters=2000, eval_interval=500,
                      targets="sampled"),
}


@dataclass
class Args:
    method: str = flag("flexmdm", "which model", tuple(METHODS))
    ell: int = flag(0, "digits per token; 0: 1, or 2 for prime and flexprime", low=0)
    dataset: str = flag("python", "python, functions, brackets, owt, or a path to a .txt or .jsonl")
    data_dir: str = flag("data", "where prepared data sets are kept")
    tokenizer: str = flag("", "bytes or gpt2; empty: what the data set uses")
    split: str = flag("paragraph", "what a document of a .txt is", ("line", "paragraph", "file"))
    field: str = flag("text", "the field of a .jsonl that holds the text")
    packing: str = flag("documents", "documents: one row each; stream: rows of block_size tokens cut from the stream (mdm, prime, ar)",
                        ("documents", "stream"))
    out_dir: str = flag("out", "checkpoints, log.csv, loss.png")
    init_from: str = flag("scratch", "scratch, resume, a checkpoint whose weights to start from, or the folder of a LLaDA model")
    lora: int = flag(128, "rank of the adapters on a LLaDA model's q, k, v and head, which train in place of its weights; 0: its weights train", low=0)
    overwrite: bool = flag(False, "start again in an out_dir that holds a run")
    keep: int = flag(2, "how many checkpoints to keep")
    # model
    block_size: int = flag(64, "the most tokens of a document", low=2)
    n_layer: int = flag(4, "blocks")
    n_head: int = flag(3, "attention heads")
    n_embd: int = flag(96, "width")
    rope_theta: float = flag(100.0, "longest period of the rotary embedding; 10000 for long documents", low=1)
    dropout: float = flag(0.0, "dropout in the blocks", high=1)
    # noise and loss
    insertion: str = flag("", "schedule alpha: linear, cosine, sin, polynomial,exponent=2, geometric, instant; empty: the method's")
    unmasking: str = flag("linear", "schedule beta")
    prime_loss: str = flag("marginal", "ell > 1: marginal (the valid bound) or joint (the paper's)", ("marginal", "joint"))
    targets: str = flag("averaged", "averaged over alignments (the tight bound; its time grows as length squared), or sampled (Prop. 1): the same expected "
                        "gradient, less or more variance",
                        ("averaged", "sampled"))
    infill: float = flag(0.1, "share of documents trained as infilling: random spans are given, the rest is generated (insertion only)", high=1)
    t_power: float = flag(2.0, "times are drawn as 1 - (1 - u)^t_power and weighted to match: 1 is uniform, 2 has the least variance", low=0.1, high=10)
    weight_cap: float = flag(1000.0, "cap on the hazards 1 / (1 - t) in the training loss; never in the bounds")
    shuffle_ids: float = flag(0.0, "ell > 1: share of token ids permuted before they become digits (index shuffling)", high=1)
    # optimization
    batch_size: int = flag(64, "documents per step, over all processes and accumulation steps")
    gradient_accumulation_steps: int = flag(1, "pieces that a process cuts its share of the batch into: less memory, same result")
    max_iters: int = flag(1400, "steps")
    optimizer: str = flag("", "muon (AdamW for all but the blocks' matrices) or adamw; empty: muon, but adamw for a LLaDA model and with --fsdp", ("", "muon", "adamw"))
    learning_rate: float = flag(3e-3, "peak learning rate")
    min_lr: float = flag(0.0, "learning rate at max_iters")
    warmup_iters: int = flag(60, "steps of linear warm-up", low=0)
    weight_decay: float = flag(0.01, "AdamW's, on matrices only")
    beta2: float = flag(0.99, "AdamW's", high=0.9999)
    grad_clip: float = flag(1.0, "largest gradient norm; 0: none")
    ema: float = flag(0.999, "decay of the averaged weights that samples and validation use", high=1)
    skip_bad_steps: int = flag(0, "how many steps in a row may have a non-finite gradient (they are left out) before the run stops", low=0)
    # the run
    eval_interval: int = flag(500, "steps between validation, samples and checkpoint")
    eval_iters: int = flag(16, "batches of validation documents, with fixed noise")
    log_interval: int = flag(50, "steps between progress lines")
    sample_steps: int = flag(64, "sampling steps of the samples shown; 0: none are", low=0)
    device: str = flag("auto", "auto, cpu, cuda, mps")
    dtype: str = flag("auto", "auto (bfloat16 on CUDA), float32, bfloat16", ("auto", "float32", "bfloat16"))
    compile: bool | None = flag(None, "torch.compile the blocks; by default on CUDA only, and not with --fsdp")
    fsdp: bool = flag(False, "shard weights and optimizer over the processes: for models that do not fit one GPU")
    checkpointing: bool = flag(False, "recompute blocks in the backward pass: less memory, a third more time")
    seed: int = flag(1337, "fixes everything", low=0)


MAY_CHANGE = {"max_iters", "learning_rate", "min_lr", "warmup_iters", "weight_decay", "grad_clip", "out_dir", "init_from", "overwrite", "keep", "data_dir",
              "gradient_accumulation_steps", "eval_interval", "eval_iters", "log_interval", "sample_steps", "device", "dtype", "compile",
              "checkpointing", "skip_bad_steps", "infill", "dropout"}


# ---- pieces that maze.py uses too ----------------------------------------------------------------------------------------------------

def learning_rate(step, args):
    """Linear warm-up, then a cosine from learning_rate to min_lr at max_iters."""
    if step < args.warmup_iters:
        return args.learning_rate * (step + 1) / (args.warmup_iters + 1)
    x = min(1.0, (step - args.warmup_iters) / max(1, args.max_iters - args.warmup_iters))
    return args.min_lr + 0.5 * (1 + math.cos(math.pi * x)) * (args.learning_rate - args.min_lr)


class Muon(torch.optim.Optimizer):
    """Muon (K. Jordan et al., 2024; scaled to AdamW's step size as in arXiv 2502.16982): a matrix moves along U V^T of its Nesterov momentum
    U S V^T, found by four Newton-Schulz steps. torch.optim.Muon computes these in bfloat16 everywhere, which CPUs are slow at, and moves
    on a gradient that is not finite; with `found_inf` this one does not."""

    def __init__(self, params, lr, weight_decay=0.0, momentum=0.95):
        super().__init__(params, dict(lr=lr, weight_decay=weight_decay, momentum=momentum))

    @torch.no_grad()
    def step(self):
        skip = self.found_inf > 0
        if not skip.is_cuda and skip:                                  # a GPU is not asked: torch.where keeps its matrices
            return
        keep = (lambda old, new: torch.where(skip, old, new)) if skip.is_cuda else (lambda old, new: new)
        for group in self.param_groups:
            for p in group["params"]:
                average = self.state[p].setdefault("momentum", torch.zeros_like(p))
                after = average.lerp(p.grad, 1 - group["momentum"])
                update = orthogonal(p.grad.lerp(after, group["momentum"])) * (-group["lr"] * 0.2 * max(p.shape) ** 0.5)
                after_p = p * (1 - group["lr"] * group["weight_decay"]) + update
                average.copy_(keep(average, after))
                p.copy_(keep(p, after_p))


# Each row a, b, c is the best next step towards the sign of all singular values (arXiv 2505.16932).
POLAR = ((8.28721, -23.59589, 17.30039), (4.10706, -2.94785, 0.54484), (3.94869, -2.90890, 0.55182), (3.31842, -2.48849, 0.51005))


def orthogonal(x):
    """U V^T of a matrix U S V^T, roughly, by steps x <- (a + b x x^T + c (x x^T)^2) x: singular values above a thousandth of the norm go to about 1."""
    if x.shape[0] > x.shape[1]:
        return orthogonal(x.T).T
    x = x.bfloat16() if x.is_cuda else x
    x = x / (1.01 * x.norm() + 1e-12)
    for a, b, c in POLAR:
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.float()


def optimizers_for(net, args):
    """A list of optimizers: Muon for the matrices of the blocks (--optimizer muon), AdamW, fused where torch has it, for the rest.

    Weight decay on matrices only.
    """
    inner, others = [], []
    for name, p in net.named_parameters():
        if p.requires_grad:
            of_muon = args.optimizer == "muon" and name.startswith("blocks.") and "adaln" not in name and p.ndim == 2
            (inner if of_muon else others).append(p)
    groups = [{"params": [p for p in others if p.ndim >= 2], "weight_decay": args.weight_decay},
              {"params": [p for p in others if p.ndim < 2], "weight_decay": 0.0}]
    fused = others[0].device.type in ("cpu", "cuda", "mps")            # AdamW must be fused to heed found_inf
    adamw = torch.optim.AdamW(groups, lr=args.learning_rate, betas=(0.9, args.beta2), fused=fused)
    return [adamw, Muon(inner, args.learning_rate, args.weight_decay)] if inner else [adamw]


@torch.no_grad()
def apply_gradients(net, optimizers, lr, clip):
    """Clip, then step. A gradient that is not finite leaves the weights as they are (decided on the device). Returns the norm, a tensor."""
    norm = whole(torch.nn.utils.clip_grad_norm_(net.parameters(), clip or math.inf))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.grad_scale, optimizer.found_inf = None, (~torch.isfinite(norm)).float()
        optimizer.step()
    net.zero_grad(set_to_none=True)
    return norm


@torch.no_grad()
def update_ema(ema, net, step, decay):
    """ema <- d ema + (1 - d) weights, with d = min(decay, (1 + step) / (10 + step)): young averages forget faster."""
    weights = net.state_dict()
    torch._foreach_lerp_([local(v) for v in ema.values()], [local(weights[k]) for k in ema], 1 - min(decay, (1 + step) / (10 + step)))


def local(x):
    """This process's part of a sharded tensor (--fsdp); any other tensor as it is."""
    return x.to_local() if hasattr(x, "to_local") else x


def whole(x):
    """A sharded tensor put together; any other as it is. All processes must come here."""
    return x.full_tensor() if hasattr(x, "full_tensor") else x


def put_together(tree):
    """whole() for every tensor in nested dicts and lists, on the CPU where it was sharded."""
    if isinstance(tree, dict):
        return {k: put_together(v) for k, v in tree.items()}
    if isinstance(tree, list):
        return [put_together(v) for v in tree]
    return whole(tree).cpu() if hasattr(tree, "full_tensor") else tree


def shared_out(value, like):
    """A whole tensor, sharded as `like` is."""
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements) if hasattr(like, "full_tensor") else value


def draw_times(B, power):
    """B times t = 1 - (1 - u)^power with u stratified over [0, 1), in random order, and dt/du, which weighs them: (B,), (B,).

    power 1 is uniform. power 2 looks more often at late times, where few tokens are masked and each weighs 1 / (1 - t): with it
    the variance of the loss stays finite (the mean of weight^2 * masked tokens is then flat in u, not 1 / (1 - t)).
    """
    left = 1 - ((torch.randperm(B) + torch.rand(B)) / B).clamp_max(1 - 2 ** -24)
    return (1 - left ** power).clamp_max(1 - 2 ** -24), power * left ** (power - 1)


def spans(n1, L):
    """(B, L) bool: random stretches of a document, about 3 changes each: the given part of an infilling task."""
    change = torch.rand(len(n1), L) < 3 / n1[:, None].clamp_min(6)
    return ((change.cumsum(1) + torch.randint(2, (len(n1), 1))) % 2 == 0) & interpolant.below(n1, L)


def cut(noised, rows):
    return interpolant.Noised(*(x[rows] for x in noised))


# ---- one step ------------------------------------------------------------------------------------------------------------------------

def canvas(x, n, args, end):
    """The documents as the method sees them: with insertion, as they are; on a fixed canvas, filled up with the end token (its pads are
    tokens to predict, as MDMs do); autoregressive, with one end token."""
    if args.method == "ar":
        x = torch.cat([x, x.new_zeros(len(x), 1)], 1).scatter(1, n[:, None], end)
        return x, n + 1
    if args.insertion != "instant":
        return x, n
    full = torch.full((len(x), args.block_size), end)
    full[:, :x.shape[1]] = torch.where(interpolant.below(n, x.shape[1]), x, end)
    return full, torch.full_like(n, args.block_size)


def make_batch(step, documents, code, args, end):
    """All that is random in a step, for the global batch: a pure function of (seed, step)."""
    torch.default_generator.manual_seed(args.seed * 1_000_003 + step)  # the CPU's alone: this may run beside a GPU's dropout
    x, length, given = documents.batch(data.order(args.seed, step, args.batch_size, len(documents)))
    x1, n1 = canvas(x, length, args, end)
    t, dt = draw_times(len(x1), args.t_power)
    tokens = int(length.sum()) - (0 if given is None else int(given.sum()))                    # what there is to say
    batch = SimpleNamespace(x1=x1, n1=n1, t=t, dt=dt, tokens=tokens, frozen=None, noised=None)
    if args.method != "ar":
        insertion, unmasking = schedules(args)
        d1 = rates.digits(code, x1, n1)
        if given is not None:                                          # tasks: prompts are never noised
            batch.frozen = torch.nn.functional.pad(given, (0, d1.shape[1] - given.shape[1]))
        elif args.insertion != "instant" and args.infill > 0:
            batch.frozen = spans(n1, d1.shape[1]) & (torch.rand(len(x1), 1) < args.infill)
        anchors = None if batch.frozen is None else interpolant.anchors_of(batch.frozen, n1)
        batch.noised = interpolant.interpolate(d1, n1, batch.t, insertion, unmasking, batch.frozen, anchors, mask=code.mask, pad=code.pad)
        batch.d1 = d1
    return batch


def losses(predict, code, batch, rows, args):
    """Rows of a batch -> (unmask (B,), insert (B,)): the integrand of the bound, hazards capped, nats per document."""
    if args.method == "ar":
        nll = rates.next_token_nll(predict, code, batch.x1[rows], batch.n1[rows])
        return nll, torch.zeros_like(nll)
    insertion, unmasking = schedules(args)
    frozen = None if batch.frozen is None else batch.frozen[rows]
    terms = rates.terms(predict, code, batch.d1[rows], batch.n1[rows], cut(batch.noised, rows), batch.t[rows], joint=args.prime_loss == "joint",
                        averaged=args.targets == "averaged", frozen=frozen)
    t, dt = batch.t[rows].to(terms.unmask.device), batch.dt[rows].to(terms.unmask.device)
    return tuple(term * schedule.hazard(t).clamp_max(args.weight_cap) * dt for term, schedule in zip(terms, (unmasking, insertion)))


def schedules(args):
    return interpolant.schedule(args.insertion), interpolant.schedule(args.unmasking)


def share(B, rank, world, pieces):
    """The rows of the global batch that a process handles, as `pieces` slices."""
    a, z = rank * B // world, (rank + 1) * B // world
    return [slice(a + i * (z - a) // pieces, a + (i + 1) * (z - a) // pieces) for i in range(pieces)]


# ---- validation, samples, pictures ---------------------------------------------------------------------------------------------------

@torch.no_grad()
def validate(predict, documents, code, args, end, team):
    """The tight bound on validation documents in nats per token: (total, unmask, insert). Same documents, times (see draw_times) and noise at every call."""
    sums = torch.zeros(3, dtype=torch.float64)
    plain = SimpleNamespace(**{**vars(args), "infill": 0.0, "weight_cap": math.inf, "t_power": 2.0, "targets": "averaged",
                               "batch_size": min(args.batch_size, len(documents))})
    for i in range(team.rank, -(-args.eval_iters // team.world) * team.world, team.world):     # as many forward passes on every process: with
        batch = make_batch(i, documents, code, plain, end)                                     # --fsdp they need each other
        for rows in share(len(batch.x1), 0, 1, args.gradient_accumulation_steps):
            unmask, insert = losses(predict, code, batch, rows, plain)
            sums += torch.tensor([unmask.double().sum(), insert.double().sum(), 0.0]) * (i < args.eval_iters)
        sums[2] += batch.tokens * (i < args.eval_iters)
    team.sum(sums)
    unmask, insert = sums[0] / sums[2], sums[1] / sums[2]
    return float(unmask + insert), float(unmask), float(insert)


def show_samples(predict, code, args, tokenizer, count=4, seed=0):
    """A few documents of the model as it stands, as text lines."""
    torch.manual_seed(seed)
    if args.method == "ar":
        x, n = sample.generate_left_to_right(predict, code, count, args.block_size, tokenizer.eot)
    else:
        x, n = sample.generate(predict, code, count, args.block_size, args.sample_steps, *schedules(args))
    return sample.texts(x, n, tokenizer)


def draw_curve(path, rows):
    """loss.png from the rows of log.csv."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    figure, axes = plt.subplots(figsize=(7, 4), dpi=100)
    train, val = [r for r in rows if r["loss"]], [r for r in rows if r["val"]]
    axes.plot([int(r["step"]) for r in train], [float(r["loss"]) for r in train], lw=0.7, alpha=0.6, label="train")
    axes.plot([int(r["step"]) for r in val], [float(r["val"]) for r in val], "o-", ms=3, label="validation (EMA weights)")
    values = sorted(float(r["loss"]) for r in train) or [1.0]
    axes.set(xlabel="step", ylabel="bound, nats per token", ylim=(0, 1.1 * values[int(0.95 * (len(values) - 1))]))
    axes.legend(frameon=False)
    figure.tight_layout()
    with aside(path, "wb") as f:
        figure.savefig(f, format="png")
    plt.close(figure)


# ---- set-up --------------------------------------------------------------------------------------------------------------------------

def check(args):
    """Fill in what follows from the method and the data set; one sentence for what cannot be."""
    for name, value in PRESETS.get(args.dataset, {}).items():
        if name not in args.named and (name != "insertion" or METHODS[args.method] != "instant"):
            setattr(args, name, value)
    args.insertion = args.insertion or METHODS[args.method]
    args.ell = args.ell or (2 if "prime" in args.method else 1)
    pretrained = llada.is_folder(args.init_from)
    if pretrained:
        if args.method not in ("mdm", "flexmdm"):
            raise Fail(f"a LLaDA model goes on as --method flexmdm or mdm, not {args.method}")
        args.tokenizer = args.tokenizer or args.init_from
    args.optimizer = args.optimizer or ("adamw" if args.fsdp or pretrained else "muon")
    if args.fsdp and (args.optimizer != "adamw" or fully_shard is None or "RANK" not in os.environ):
        raise Fail("--fsdp needs --optimizer adamw, a torch that has fully_shard, and torchrun")
    if args.ell > 1 and "prime" not in args.method:
        raise Fail(f"--ell {args.ell} needs --method {'flexprime' if args.method == 'flexmdm' else 'prime'}: {args.method} has one digit per token")
    if (args.insertion == "instant") != (METHODS[args.method] == "instant"):
        raise Fail(f"--method {args.method} {'has no insertion' if METHODS[args.method] == 'instant' else 'inserts'}: leave --insertion {args.insertion} out")
    if args.packing == "stream" and METHODS[args.method] != "instant":
        raise Fail("--packing stream is for mdm, prime and ar; with insertion a document has its own length")
    try:
        _, unmasking = schedules(args)
    except ValueError as e:
        raise Fail(str(e)) from None
    if unmasking.name == "instant":
        raise Fail("--unmasking instant would leave nothing to learn: choose another schedule")
    if args.batch_size % (int(os.environ.get("WORLD_SIZE", 1)) * args.gradient_accumulation_steps):
        raise Fail(f"--batch_size {args.batch_size} must be divisible by the number of processes times --gradient_accumulation_steps")


def resumed(args, content):
    """The flags of the run that is resumed, with those of the user that may change. Fail names one that may not."""
    before = content.get("run") or {}
    for f in fields(Args):
        if f.name in args.named and f.name not in MAY_CHANGE and f.name in before and getattr(args, f.name) != before[f.name]:
            raise Fail(f"--{f.name} {getattr(args, f.name)} differs from the run being resumed ({before[f.name]}): leave it out, or start another --out_dir")
        if f.name in before and f.name not in args.named and f.name not in ("init_from", "out_dir", "overwrite", "device"):
            setattr(args, f.name, before[f.name])
            args.named.add(f.name)                                     # stronger than a preset
    return args


def open_data(args):
    return data.load(args.dataset, data_dir=args.data_dir, block_size=args.block_size, tokenizer=args.tokenizer or None,
                     split=args.split, field=args.field, packing=args.packing)


def build(args, tokenizer, content):
    """The network of a run: that of the checkpoint `content`, a LLaDA model with what training adds, or a new one."""
    if content is not None:
        return model.assemble(content)
    if llada.is_folder(args.init_from):
        return llada.retrofit(args.init_from, args.insertion, args.block_size, args.lora)
    permutation = prime.shuffle(tokenizer.vocab_size, args.ell, args.shuffle_ids, args.seed) if args.ell > 1 and args.shuffle_ids else None
    return model.build(model.Config(V=tokenizer.vocab_size, ell=args.ell, block_size=args.block_size, insertion=args.insertion, n_layer=args.n_layer,
                                    n_head=args.n_head, n_embd=args.n_embd, rope_theta=args.rope_theta, dropout=args.dropout, causal=args.method == "ar"), permutation)


def adopt(net, content, path):
    """Start from the (averaged) weights of a checkpoint. One of a fixed canvas may begin one with insertion: only the gap head is new."""
    differ = [k for k, v in asdict(net.config).items() if content["config"].get(k, v) != v and k != "insertion"]
    if differ or content.get("base"):
        raise Fail(f"{path} has another {' and '.join(differ) or 'kind of weights, adapters'}: give the same flags, or train from scratch")
    missing, unexpected = net.load_state_dict(content.get("ema") or content["model"], strict=False)
    if unexpected or any(not k.startswith("gap.") for k in missing):
        raise Fail(f"{path} has weights that this method does not know ({(unexpected + missing)[0]}): train from scratch")


def shard(net, **options):
    """FSDP: each block, and the rest, is cut over the processes and put together when it is needed."""
    for block in net.blocks:
        fully_shard(block)
    return fully_shard(net, **options)


PEAK = {"H100": 989e12, "H200": 989e12, "A100": 312e12}            # dense bf16 FLOP/s of the GPUs whose MFU is printed


def train(argv=None):
    args = parse(Args, __doc__, argv)
    device = model.pick_device(args.device)
    resume = args.init_from == "resume"
    content = None
    if resume:
        content = newest_good(args.out_dir, lambda w: print(w, file=sys.stderr))
        args = resumed(args, content)
    check(args)
    team = Team(device)
    device = team.device
    if team.rank == 0:
        held = lock(args.out_dir)
        if not resume and checkpoints(args.out_dir) and not args.overwrite:
            raise Fail(f"{args.out_dir} holds a run: go on with --init_from resume, start again with --overwrite, or name another --out_dir")

    # 1. Data, model, optimizer.
    if team.many and team.rank:
        dist.barrier()                                                 # the first process prepares the data
    dataset = open_data(args)
    if team.many and not team.rank:
        dist.barrier()
    tokenizer = dataset.tokenizer
    torch.manual_seed(args.seed)
    if not resume and args.init_from != "scratch" and not llada.is_folder(args.init_from):
        content = model.read(args.init_from)
    net, averaged = (build(args, tokenizer, content if resume else None) for _ in range(2))
    if not resume and content is not None:
        adopt(net, content, args.init_from)
    if net.config.V != tokenizer.vocab_size:
        raise Fail(f"--tokenizer {tokenizer.name} has another vocabulary ({tokenizer.vocab_size:,}) than the model that is started from ({net.config.V:,}): leave it out")
    base = net.base                                                    # a pretrained model whose weights stand still, or None
    if not args.fsdp:
        net.to(device)                                                 # shard() moves a block at a time
    averaged.load_state_dict(net.state_dict(), assign=True)            # what stands still is shared,
    averaged.eval().requires_grad_(False)
    trained = list(net.trained())
    averaged.load_state_dict({k: p.detach().clone() for k, p in net.trained().items()}, strict=False, assign=True)     # what is trained is copied
    code = net.code
    net.checkpoint = args.checkpointing
    net.defer = 8192 if device.startswith("cuda") and code.V > 4096 else 0
    if args.fsdp:
        net, averaged = shard(net), shard(averaged, reshard_after_forward=True)         # no backward pass lets go of its weights
    weights = averaged.state_dict()
    ema = {k: weights[k] for k in trained}                             # update_ema changes them in place
    optimizers = optimizers_for(net, args)
    step = 0
    if resume:
        for optimizer, state in zip(optimizers, content["optimizer"], strict=True):
            if args.fsdp:
                group = [p for g in optimizer.param_groups for p in g["params"]]
                state["state"] = {i: {k: shared_out(v, group[i]) if v.ndim else v for k, v in of.items()} for i, of in state["state"].items()}
            optimizer.load_state_dict(state)
        with torch.no_grad():                                          # copied: other memory alignment would be other last bits
            for kept, weights in ((content["model"], net.state_dict()), (content["ema"], ema)):
                for k, v in kept.items():
                    local(weights[k]).copy_(local(shared_out(v, weights[k])))
        step = content["step"]
        if content["fingerprint"] != dataset.train.fingerprint:
            raise Fail(f"the training data differs from that of the run being resumed: restore {args.data_dir}, or start another --out_dir")
    if args.compile if args.compile is not None else device.startswith("cuda") and not args.fsdp:
        net.trunk = torch.compile(net._trunk, dynamic=True)
    parallel = torch.nn.parallel.DistributedDataParallel(net) if team.many and not args.fsdp else net
    bf16 = args.dtype == "bfloat16" or (args.dtype == "auto" and device.startswith("cuda"))
    cast = lambda: torch.autocast(device.split(":")[0], torch.bfloat16, enabled=bf16)

    # 2. What a run needs beside the loop.
    stop = Stop()
    log = Log(os.path.join(args.out_dir, "log.csv"), step) if team.rank == 0 else None
    run = {f.name: getattr(args, f.name) for f in fields(Args)}
    last_saved, evaluated = (step, content["evaluated"]) if resume else (None, 0)
    total, blocks = net.count()
    team.say(f"{args.method} on {args.dataset}: {len(dataset.train):,} documents, {dataset.train.tokens:,} tokens | {total / 1e6:.2f}M parameters "
             f"({blocks / 1e6:.2f}M in blocks) | {device}, {'bfloat16' if bf16 else 'float32'}, torch {torch.__version__}, "
             f"{team.world} process{'es' * (team.world > 1)} | {args.out_dir}/")

    if args.ell == 1 and "prime_loss" in args.named and not resume:
        team.say("--prime_loss changes nothing: there is one digit per token")

    def save():
        nonlocal last_saved
        both = team.sum(window.cpu().clone()).tolist()
        weights = net.state_dict()
        tensors = put_together({"model": {k: weights[k] for k in trained}, "ema": ema, "optimizer": [o.state_dict() for o in optimizers]})
        if team.rank == 0:
            save_checkpoint(args.out_dir, step, last_saved, args.keep, **tensors, base=base, lora=args.lora, config=asdict(net.config), run=run,
                            tokenizer=tokenizer.spec(), fingerprint=dataset.train.fingerprint, permutation=code.permutation,
                            evaluated=evaluated, window=[*both, window_tokens, window_steps])
            last_saved = step
            log.write()
            draw_curve(os.path.join(args.out_dir, "loss.png"), log.rows)

    def averaged_predict(*inputs):
        with torch.no_grad(), cast():
            return averaged(*inputs)

    prefetch = ThreadPoolExecutor(1) if device.startswith("cuda") else None        # the next batch is drawn while the GPU works
    draw = lambda step: make_batch(step, dataset.train, code, args, tokenizer.eot)
    ahead = None
    window, window_tokens, window_steps = torch.zeros(2, device=device), 0, 0      # since the last progress line
    if resume:
        window_tokens, window_steps = content["window"][2:]
        window += torch.tensor(content["window"][:2], device=device) * (team.rank == 0)
    bad, norms, since = 0, [], 0
    began = clock = time.perf_counter()
    start, content = step, None

    # 3. The loop.
    while True:
        batch = None
        if step < args.max_iters:
            batch = (ahead.result() if ahead else draw(step))
        if (step % args.eval_interval == 0 or step == args.max_iters) and step > evaluated:
            evaluated = step
            val = validate(averaged_predict, dataset.val, code, args, tokenizer.eot, team)
            team.say(f"step {step}/{args.max_iters} | val {val[0]:.3f} (unmask {val[1]:.3f} insert {val[2]:.3f})")
            if team.rank == 0:
                log.add(step=step, val=val[0])
            if args.sample_steps and (team.rank == 0 or args.fsdp):
                for line in show_samples(averaged_predict, code, args, tokenizer, seed=step):
                    team.say("    " + repr(line)[1:-1])
            save()
            clock, since = time.perf_counter(), 0
        if step >= args.max_iters:
            break
        if prefetch:
            ahead = prefetch.submit(draw, step + 1) if step + 1 < args.max_iters else None

        lr = learning_rate(step, args)
        if args.dropout:
            (torch.cuda.manual_seed if prefetch else torch.manual_seed)((args.seed * 1_000_003 + step) * 4099 + 1 + team.rank)
        pieces = share(len(batch.x1), team.rank, team.world, args.gradient_accumulation_steps)
        for i, rows in enumerate(pieces):
            if args.fsdp:
                net.set_requires_gradient_sync(i + 1 == len(pieces))
            with parallel.no_sync() if parallel is not net and i + 1 < len(pieces) else contextlib.nullcontext():
                try:
                    with cast():
                        unmask, insert = losses(parallel, code, batch, rows, args)
                    # DDP averages gradients over processes, so each scales its sum by their number.
                    ((unmask.sum() + insert.sum()) * (team.world / batch.tokens)).backward()
                except torch.OutOfMemoryError:
                    raise Fail(f"out of memory at step {step}: raise --gradient_accumulation_steps to {2 * args.gradient_accumulation_steps} "
                               "(the global batch stays the same), or use --checkpointing") from None
            window += torch.stack([unmask.detach().sum(), insert.detach().sum()])
        norm = apply_gradients(net, optimizers, lr, args.grad_clip)
        update_ema(ema, net, step, args.ema)
        step += 1

        # 4. Has the step before this one been sound? (Looked at one step late, so that a GPU never waits for this process.)
        norms.append((step - 1, norm))
        for at, value in norms[:-1] if device.startswith("cuda") and step < args.max_iters else norms:
            bad = 0 if math.isfinite(value) else bad + 1
            if bad > args.skip_bad_steps:
                where = f"the last good checkpoint is {args.out_dir}/ckpt.pt, step {last_saved}" if last_saved is not None else "nothing was saved yet"
                raise Fail(f"the gradient of step {at} is not finite (documents {data.order(args.seed, at, args.batch_size, len(dataset.train))[:4]}...); "
                           f"the weights were left as they are; {where}: lower --learning_rate, or allow --skip_bad_steps")
            if bad:
                team.say(f"warning: the gradient of step {at} is not finite; the step was left out")
        norms = norms[-1:] if device.startswith("cuda") else []

        # 5. Progress.
        window_tokens, window_steps, since = window_tokens + batch.tokens, window_steps + 1, since + 1
        if step % args.log_interval == 0 or step == args.max_iters:
            unmask, insert = (team.sum(window.cpu()) / window_tokens).tolist()
            now = time.perf_counter()
            seconds, tokens = (now - clock) / since, window_tokens / window_steps
            left = (args.max_iters - step) * (now - began) / (step - start)
            if team.rank == 0:
                log.add(step=step, loss=unmask + insert, unmask=unmask, insert=insert, lr=lr, gnorm=float(norm), tokens=window_tokens)
            team.say(f"step {step}/{args.max_iters} | loss {unmask + insert:.3f} (unmask {unmask:.2f} insert {insert:.2f}) | lr {lr:.1e} | "
                     f"gnorm {norm:.2f} | {1000 * seconds:.0f} ms | {tokens / seconds / 1000:.1f}k tok/s{mfu(net, args, tokens, seconds, team)} | "
                     f"eta {int(left) // 60}m{int(left) % 60:02d}s")
            window, window_tokens, window_steps, since, clock = torch.zeros_like(window), 0, 0, 0, now
            trim()

        # 6. Asked to stop?
        if team.sum(torch.tensor(stop.asked)) > 0:
            save()
            team.say(f"stopped after step {step}; go on with: {resume_command(args, team)}")
            break

    team.say(f"done: {args.out_dir}/ckpt.pt, log.csv, loss.png in {time.perf_counter() - began:.0f} s" if step >= args.max_iters else "")
    if team.many:
        del parallel                                                   # its reducer must not outlive the process group
        dist.barrier()
        dist.destroy_process_group()


def resume_command(args, team):
    start = f"torchrun --nproc_per_node={team.world} " if team.many else "python "
    return f"{start}train.py --init_from resume --out_dir {args.out_dir}"


def mfu(net, args, tokens, seconds, team):
    """' | mfu 41%' on a GPU whose peak is known: 6 FLOPs per weight and present slot in the blocks (half of a document's tokens exist on
    average where tokens are inserted), 6 per weight of the projection and masked slot (a half or a quarter), over the peak."""
    if not team.device.startswith("cuda"):
        return ""
    peak = next((p for name, p in PEAK.items() if name in torch.cuda.get_device_name()), None)
    if peak is None:
        return ""
    present, masked = (1.0, 1.0) if args.method == "ar" else (0.5, 0.25) if net.gap is not None else (1.0, 1 - 1 / (args.ell + 1))
    flops = 6 * tokens * (present * net.count()[1] + masked * net.head.weight.numel())
    return f" | mfu {100 * flops / seconds / team.world / peak:.0f}%"


if __name__ == "__main__":
    main(train)
