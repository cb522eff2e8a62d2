"""Speed: the gain from skipping what is not needed, side by side in one process.

    python bench.py                                 # all; 3 minutes on 2 CPU cores
    python bench.py --only head --csv head.csv
    python bench.py --device cuda                   # 12 x 768, bf16, compiled: not measured

    head    vocabulary projection and loss of the same slots: plain, MDM-Prime's joint loss, digit
            marginals (ell = 4)
    train   loss and gradient of each method on documents of OpenWebText's lengths
    cost    a flexmdm step: time per token against the length and the number of documents
    sample  on a fixed canvas and with insertion, in random order and by confidence
    host    what the host does before the GPU can begin, and how many operators are called

`dense` is the usual way through the same network: every slot of a padded canvas, and logits for all
of them. `ours` computes slots that exist, and logits that are asked for. Runs take turns; times are
medians. ratio: how many times as fast as the first path. mfu: the FLOPs of the matrix products in
the last path (attention is not counted) over time and over the matmul rate that this machine
reaches. Memory is the peak of a run, on CUDA only.

Worked number: with 12 blocks of 768 and V = 50257, at a uniform time, half of a document's tokens
exist and a quarter are masked, so a flexmdm step needs 0.25 GFLOP in the blocks and 0.06 in the
projection per document token, of 0.51 and 0.23 for every slot.
"""
import functools
import math
from dataclasses import dataclass
from statistics import median
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.benchmark import timer             # it waits for the GPU
from torch.utils.flop_counter import FlopCounterMode

import interpolant
import prime
import rates
import sampler
import train
from common import Fail, flag, main, parse, say, whole_numbers, write_csv
from model import pack, pick_device
from muon import optimizers_for

COLUMNS = ("case", "path", "ms", "tokens_per_s", "memory_gb", "mfu", "ratio", "calls")
LENGTHS = [324, 478, 540, 582, 628, 681, 743, 822, 921, 1024]   # deciles of OpenWebText's documents
WIDTH = 768                                                     # of the head's states
HEADS = [      # path, digits a token, the joint loss of its digits?
    ("plain", 1, True), ("prime 4, joint", 4, True), ("prime 4, marginal", 4, False)]
BF16 = torch.autocast("cuda", torch.bfloat16, enabled=torch.cuda.is_available())   # on CUDA only
ON_CUDA = dict(n_layer=12, n_head=12, n_embd=768, block_size=1024, documents=64, slots=8192,
               canvas=1024, batch=16, steps="64,256,1024", csv="bench.csv")     # other defaults


@dataclass
class Args:
    only: str = flag("", "parts, separated by commas: head, train, cost, sample, host; empty: all")
    csv: str = flag("", "also write the table here (on CUDA: bench.csv)")
    V: int = flag(50257, "tokens; at least 9, which have 4 digits", low=9)
    n_layer: int = flag(4, "blocks (this and what follows is for a CPU: CUDA has larger defaults)")
    n_head: int = flag(4, "heads")
    n_embd: int = flag(256, "width")
    block_size: int = flag(256, "the most tokens of a document; lengths are scaled to it", low=2)
    documents: int = flag(4, "documents in a training step")
    slots: int = flag(128, "slots of the head")
    canvas: int = flag(64, "tokens of a sampled document", low=2)
    batch: int = flag(4, "documents that are sampled together")
    steps: str = flag("16", "sampling steps, numbers separated by commas")
    repeats: int = flag(3, "how often each is timed, after one run to warm up")
    device: str = flag("auto", "auto, cpu, cuda")


# -----------------------------------------------------------------------------
# measuring

def seconds(run):
    began = timer()
    run()
    return timer() - began


@functools.cache
def matmul_rate(device):
    """FLOP/s in the product of two large matrices"""
    size, dtype = 1024, torch.float32
    if device.startswith("cuda"):
        size, dtype = 8192, torch.bfloat16
    a, b = torch.randn(2, size, size, device=device, dtype=dtype)
    rate = 2 * size ** 3 / min(seconds(lambda: a @ b) for _ in range(10))
    say(f"matmul of {size} x {size}, {dtype}: {rate / 1e9:,.0f} GFLOP/s")
    return rate


def peak_memory(run, device):
    """GB at the peak of a run, above what was held before; nan on a CPU"""
    if not device.startswith("cuda"):
        run()
        return math.nan
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    return (torch.cuda.max_memory_allocated() - before) / 1e9


def flops_of(run):
    """FLOPs of the matrix products in a run; those of attention are not counted"""
    with torch.compiler.set_stance("force_eager"), FlopCounterMode(display=False) as counter:
        run()
    counts = counter.get_flop_counts()["Global"]
    return counts.get(torch.ops.aten.mm, 0) + counts.get(torch.ops.aten.addmm, 0)


class Calls(TorchDispatchMode):
    """Counts operators: on a GPU about as many kernels are launched."""
    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


def compare(args, case, tokens, run, ways):
    """Time run(way) for each of the ways, {path: way}, in turns; a run makes so many tokens.
    -> rows of the table"""
    runs = {path: functools.partial(run, way) for path, way in ways.items()}
    memory = {path: peak_memory(runs[path], args.device) for path in runs}      # this warms up, too
    times = {path: [] for path in runs}
    for _ in range(args.repeats):
        for path in runs:
            times[path].append(seconds(runs[path]))
    flops = flops_of(runs[path])                                                # of the last path
    first = median(next(iter(times.values())))
    for path in runs:
        taken = median(times[path])
        yield dict(case=case, path=path, ms=1000 * taken, tokens_per_s=tokens / taken,
                   memory_gb=memory[path], mfu=flops / taken / matmul_rate(args.device),
                   ratio=first / taken)


# -----------------------------------------------------------------------------
# the head

def bench_head(args):
    layer = torch.nn.Linear(WIDTH, args.V, bias=False, device=args.device)
    h = torch.randn(args.slots, WIDTH, device=args.device, requires_grad=True)
    questions = {}
    for path, ell, joint in HEADS:
        code = prime.Code(args.V, ell)
        d = code.encode(torch.randint(args.V, (args.slots,)))                   # (M, ell)
        masked = torch.rand(d.shape) < 0.5
        masked[:, 0] |= ~masked.any(1)                      # every slot has something to predict
        y = torch.where(masked, code.mask, d)
        questions[path] = y.to(args.device), d.to(args.device), code, joint

    def run(question):
        with BF16:
            loss = rates.slot_nll(layer(h), *question).sum()
        loss.backward()
        layer.weight.grad = h.grad = None

    case = f"head, {args.slots} slots of {WIDTH}"
    yield from compare(args, case, args.slots, run, questions)


# -----------------------------------------------------------------------------
# training

def network(args, method, B, L):
    """-> the network, and the flags of train.py for batches of B documents of up to L tokens"""
    flags = dict(method=method, batch_size=B, block_size=L, targets="sampled",
                 n_layer=args.n_layer, n_head=args.n_head, n_embd=args.n_embd)
    flags = parse(train.Args, argv=[f"--{name}={value}" for name, value in flags.items()])
    train.settle(flags)
    net = train.build(flags, SimpleNamespace(vocab_size=args.V), None).to(args.device)
    if args.device.startswith("cuda"):
        net.trunk = torch.compile(net.trunk, dynamic=True)
    return net, flags


def dense(net, B, L):
    """The same network used the usual way: all slots of a canvas of B rows of L slots, and all
    logits; those that are asked for are picked afterwards."""
    def predict(y, n, t, at, given=None):
        rows, slots = at.shape
        right, below = L - slots, B - rows
        y = F.pad(y, (0, 0, 0, right, 0, below), value=net.code.pad)
        at = F.pad(at, (0, right, 0, below))
        logits, log_g = net(y, torch.full((B,), L), F.pad(t, (0, below)), torch.ones_like(at))
        if log_g is not None:
            log_g = log_g[:rows, :slots + 1]
        return logits[at.flatten().to(logits.device)], log_g
    return predict


class Texts:
    """Documents of given lengths, of random tokens, as data.Documents"""
    anchored = True
    tokenizer = SimpleNamespace(eot=0)

    def __init__(self, lengths, V):
        self.lengths, self.V = torch.tensor(lengths), V

    def __len__(self):
        return len(self.lengths)

    def batch(self, ids):
        n = self.lengths[torch.as_tensor(ids)]
        return torch.randint(self.V, (len(n), int(n.max()))), n, None


def owt_lengths(B, block_size):
    deciles = [LENGTHS[int(10 * (i + 0.5) / B)] for i in range(B)]
    return [max(1, length * block_size // 1024) for length in deciles]


def step(net, batch, flags, predict):
    """Loss and gradient"""
    with BF16:
        unmask, insert = train.losses(predict, net.code, batch, torch.arange(len(batch.x1)), flags)
    ((unmask.sum() + insert.sum()) / batch.tokens).backward()
    net.zero_grad(set_to_none=True)


def compare_steps(args, case, method, lengths, with_dense):
    net, flags = network(args, method, len(lengths), max(args.block_size, *lengths))
    batch = train.make_batch(0, Texts(lengths, args.V), net.code, flags)
    ways = {"ours": net}
    if with_dense:
        ways = {"dense": dense(net, *batch.x1.shape), "ours": net}
    run = functools.partial(step, net, batch, flags)
    yield from compare(args, case, sum(lengths), run, ways)


def bench_train(args):
    B, L = args.documents, args.block_size
    for method in train.METHODS:
        lengths = owt_lengths(B, L)
        if method in ("mdm", "prime"):      # a fixed canvas is filled up: here with documents
            lengths = [L] * B
        case = f"train, {method}, {B} documents up to {L}"
        yield from compare_steps(args, case, method, lengths, with_dense=True)


def bench_cost(args):
    B, L = args.documents, args.block_size
    sizes = [(4 * B, L // 4), (2 * B, L // 2), (B, L), (B // 2, 2 * L), (B // 4, 4 * L),
             (B // 8, L), (B // 4, L), (B // 2, L)]         # first as many tokens, then fewer
    for number, length in sizes:
        if number and length:
            case, lengths = f"cost, flexmdm, {number} of {length}", [length] * number
            yield from compare_steps(args, case, "flexmdm", lengths, with_dense=False)


# -----------------------------------------------------------------------------
# sampling

def sample(code, B, L, steps, insertion, order, predict):
    """Draw B documents. In place of the gap head, which is not trained and inserts too little,
    stands one that grows documents to L tokens."""
    def grown(y, n, t, at, given=None):
        logits, log_g = predict(y, n, t, at)
        if log_g is not None:
            log_g = ((L - n) / (n + 1.0)).log()[:, None].expand(-1, y.shape[1] + 1)
        return logits, log_g

    torch.manual_seed(2)
    insertion, unmasking = interpolant.schedule(insertion), interpolant.schedule("linear")
    with BF16:
        sampler.generate(grown, code, B, L, steps, insertion, unmasking, order)


def bench_sample(args):
    B, L, steps = args.batch, args.canvas, whole_numbers(args.steps, "steps")
    for method in ("mdm", "flexmdm"):
        net, flags = network(args, method, B, L)
        net.eval()
        ways = {"dense": dense(net, B, L), "ours": net}
        for order, k in [("random", k) for k in steps] + [("top_prob", steps[0])]:
            run = functools.partial(sample, net.code, B, L, k, flags.insertion, order)
            case = f"sample, {method}, {order}, {B} of {L}, {k} steps"
            yield from compare(args, case, B * L, run, ways)


# -----------------------------------------------------------------------------
# the host

def bench_host(args):
    """What happens before the first kernel: drawing and noising a batch, packing it; and what a
    sampling step costs beside its network, here one that answers at once."""
    B, L = args.documents, args.block_size
    net, flags = network(args, "flexmdm", B, L)
    texts = Texts(owt_lengths(B, L), args.V)
    batch = train.make_batch(0, texts, net.code, flags)
    y, n = batch.noised.y, batch.noised.n
    at = (y == net.code.mask).any(2)

    def timed(path, run, per=1):
        with Calls() as calls:
            run()
        taken = median(seconds(run) for _ in range(3 * args.repeats))
        return dict(case=f"host, {B} documents up to {L}", path=path, ms=1000 * taken / per,
                    calls=calls.count / per)

    yield timed("make_batch", lambda: train.make_batch(0, texts, net.code, flags))
    yield timed("pack", lambda: pack(y, n, at, None, net.code.pad, True, False))
    yield timed("loss, gradient", lambda: step(net, batch, flags, net))
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    for optimizer in optimizers_for(net, flags):
        yield timed(type(optimizer).__name__, optimizer.step)

    def at_once(y, n, t, at, given=None):
        return torch.zeros(int(at.sum()), 2), n
    run = functools.partial(sample, prime.Code(2), B, L, 32, "linear", "random", at_once)
    yield timed("a sampling step", run, per=32)


PARTS = {"head": bench_head, "train": bench_train, "cost": bench_cost, "sample": bench_sample,
         "host": bench_host}


def run(argv=None):
    args = parse(Args, __doc__, argv)
    args.device, machine = pick_device(args.device), "CPU"
    if args.device.startswith("cuda"):
        machine = torch.cuda.get_device_name()
        for name in set(ON_CUDA) - args.named:
            setattr(args, name, ON_CUDA[name])
    parts, rows = list(PARTS), []
    if args.only:
        parts = args.only.split(",")
    if not set(parts) <= set(PARTS):
        raise Fail(f"--only {args.only}: choose from {', '.join(PARTS)}")
    whole_numbers(args.steps, "steps")
    say(f"torch {torch.__version__}, {machine}, {torch.get_num_threads()} threads")
    for part in parts:
        for row in PARTS[part](args):
            rows.append(row)
            known = [name for name in COLUMNS[3:] if not math.isnan(row.get(name, math.nan))]
            numbers = "  ".join(f"{name} {row[name]:.4g}" for name in known)
            say(f"{row['case']:<44} {row['path']:<16} {row['ms']:>9.2f} ms  {numbers}")
    if args.csv:
        write_csv(args.csv, COLUMNS, rows)


if __name__ == "__main__":
    main(run)
