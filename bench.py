"""Speed: what not computing what is not needed is worth, side by side in one process.

    python bench.py                                 # all; some minutes on 2 CPU cores
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
medians. mfu: the FLOPs that the method needs (6 per weight and slot, 2 when sampling: present slots
in the blocks, asked ones in the projection; attention is not counted) over time and over the matmul
rate that this machine reaches. Memory is the peak of a run, on CUDA only.

With 12 blocks of 768 and V = 50257 `ar` is GPT-2 small (its 124M, and 39M for a head of its own)
and `flexmdm` has 170M parameters. Worked number: at a uniform time half of a document's tokens
exist and a quarter are masked, so a flexmdm step there needs 0.25 GFLOP in the blocks and 0.06 in
the projection per document token, of 0.51 and 0.23 for every slot.
"""
import math
import statistics
import time
from contextlib import nullcontext
from dataclasses import dataclass
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import interpolant
import prime
import rates
import sampler
import train
from common import Fail, flag, main, parse, say, whole_numbers, write_csv
from model import Config, Transformer, pack, pick_device
from muon import optimizers_for

PRESETS = {
    "cpu": dict(n_layer=4, n_head=4, n_embd=256, block_size=512, documents=4, slots=512, canvas=128,
                batch=4, steps="32", repeats=3),
    "cuda": dict(n_layer=12, n_head=12, n_embd=768, block_size=1024, documents=64, slots=8192,
                 canvas=1024, batch=16, steps="64,256,1024", repeats=7, csv="bench.csv"),
}
LENGTHS = [324, 478, 540, 582, 628, 681, 743, 822, 921, 1024]   # deciles of OpenWebText's documents
COLUMNS = ("case", "path", "ms", "tokens_per_s", "memory_gb", "mfu", "ratio", "calls")
WIDTH = 768                                                     # of the head's states
LINEAR = interpolant.schedule("linear")


@dataclass
class Args:
    only: str = flag("", "parts, separated by commas: head, train, cost, sample, host; empty: all")
    csv: str = flag("", "also write the table here (on CUDA: bench.csv)")
    V: int = flag(50257, "tokens", low=2)
    n_layer: int = flag(4, "blocks (this and what follows: a CPU's preset)")
    n_head: int = flag(4, "heads")
    n_embd: int = flag(256, "width")
    block_size: int = flag(512, "the most tokens of a document; lengths are scaled to it", low=2)
    documents: int = flag(4, "documents in a training step")
    slots: int = flag(512, "slots of the head")
    canvas: int = flag(128, "tokens of a sampled document", low=2)
    batch: int = flag(4, "documents that are sampled together")
    steps: str = flag("32", "sampling steps, numbers separated by commas")
    repeats: int = flag(3, "how often each is timed, after one run to warm up")
    device: str = flag("auto", "auto, cpu, cuda")


class Bench:
    """Times runs against each other and keeps the table."""

    def __init__(self, device):
        self.device, self.cuda, self.rows = device, device.startswith("cuda"), []
        size, dtype = (8192, torch.bfloat16) if self.cuda else (1024, torch.float32)
        a, b = torch.randn(2, size, size, device=device, dtype=dtype)
        self.ceiling = 2 * size ** 3 / min(self.seconds(lambda: a @ b) for _ in range(10))
        say(f"matmul of {size} x {size}, {dtype}: {self.ceiling / 1e9:,.0f} GFLOP/s")

    def autocast(self):
        return torch.autocast("cuda", torch.bfloat16) if self.cuda else nullcontext()

    def seconds(self, run):
        if self.cuda:
            torch.cuda.synchronize()
        began = time.perf_counter()
        run()
        if self.cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - began

    def memory(self, run):
        """GB at the peak of a run, above what was held before; nan on a CPU"""
        if not self.cuda:
            run()
            return math.nan
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 1e9

    def compare(self, case, runs, tokens, flops, repeats):
        """runs: {path: closure}; the first is what the others are compared with. tokens, flops:
        what a run makes, and what it needs"""
        memory = {path: self.memory(run) for path, run in runs.items()}         # this warms up, too
        taken = {path: [] for path in runs}
        for _ in range(repeats):
            for path, run in runs.items():
                taken[path].append(self.seconds(run))
        first = statistics.median(next(iter(taken.values())))
        for path, times in taken.items():
            median = statistics.median(times)
            mfu = flops / median / self.ceiling
            self.add(case=case, path=path, ms=1000 * median, tokens_per_s=tokens / median,
                     memory_gb=memory[path], mfu=mfu, ratio=first / median)

    def add(self, case, path, ms, **numbers):
        self.rows.append(dict(case=case, path=path, ms=f"{ms:.4g}", **numbers))
        known = [f"{name} {v:.4g}" for name, v in numbers.items() if not math.isnan(v)]
        say(f"{case:<44} {path:<16} {ms:>9.2f} ms  {'  '.join(known)}")


# -----------------------------------------------------------------------------
# the head

def head_run(bench, args, ell, joint):
    code = prime.Code(args.V, ell)
    layer = torch.nn.Linear(WIDTH, args.V, bias=False, device=bench.device)
    torch.manual_seed(0)
    d = code.encode(torch.randint(args.V, (args.slots,)))                       # (M, ell)
    hidden = torch.rand(d.shape) < 0.5
    hidden[:, 0] |= ~hidden.any(1)                                              # no slot without
    y, d = torch.where(hidden, code.mask, d).to(bench.device), d.to(bench.device)
    h = torch.randn(args.slots, WIDTH, device=bench.device, requires_grad=True)

    def run():
        with bench.autocast():
            rates.slot_nll(layer(h), y, d, code, joint).sum().backward()
        layer.weight.grad = h.grad = None
    return run


def bench_head(bench, args):
    kinds = {"plain": (1, True), "prime 4, joint": (4, True), "prime 4, marginal": (4, False)}
    runs = {name: head_run(bench, args, *kind) for name, kind in kinds.items()}
    flops = 6 * args.slots * WIDTH * args.V
    bench.compare(f"head, {args.slots} slots of {WIDTH}", runs, args.slots, flops, 3 * args.repeats)


# -----------------------------------------------------------------------------
# training

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
    return [LENGTHS[int(10 * (i + 0.5) / B)] * block_size // 1024 for i in range(B)]


def settings(method, B, block_size):
    """Flags of train.py"""
    args = parse(train.Args, argv=[f"--method={method}", f"--batch_size={B}", "--targets=sampled",
                                   f"--block_size={block_size}"])
    train.settle(args)
    return args


def network(args, bench, method, block_size):
    ell = 2 if "prime" in method else 1
    net = Transformer(Config(V=args.V, ell=ell, block_size=block_size, n_layer=args.n_layer,
                             insertion=train.METHODS[method], n_head=args.n_head,
                             n_embd=args.n_embd, causal=method == "ar")).to(bench.device)
    if bench.cuda:
        net.trunk = torch.compile(net.trunk, dynamic=True)
    return net


def dense(net):
    """The same network used the usual way: all slots of the padded canvas, all logits; those asked
    for are picked afterwards."""
    def predict(y, n, t, at, given=None):
        logits, log_g = net(y, torch.full_like(n, y.shape[1]), t, torch.ones_like(at))
        return logits[at.flatten().to(logits.device)], log_g
    return predict


class Counted:
    """A predict that counts the slots that exist and those that are asked for"""

    def __init__(self, net):
        self.net, self.present, self.asked = net, 0, 0
        self.inner = sum(p.numel() for name, p in net.named_parameters()
                         if name.startswith("blocks.") and p.ndim == 2 and "adaln" not in name)

    def __call__(self, y, n, t, at, given=None):
        self.present, self.asked = self.present + int(n.sum()), self.asked + int(at.sum())
        return self.net(y, n, t, at)

    def flops(self, per_weight):
        head = self.net.head.weight.numel()
        return per_weight * (self.present * self.inner + self.asked * head)


def step_of(bench, net, predict, batch, args):
    """Loss and gradient"""
    rows = torch.arange(len(batch.x1))

    def run():
        with bench.autocast():
            unmask, insert = train.losses(predict, net.code, batch, rows, args)
        ((unmask.sum() + insert.sum()) / batch.tokens).backward()
        net.zero_grad(set_to_none=True)
    return run


def compare_steps(bench, args, case, method, lengths, paths, repeats):
    L = max(args.block_size, max(lengths))
    net, flags = network(args, bench, method, L), settings(method, len(lengths), L)
    batch = train.make_batch(0, Texts(lengths, args.V), net.code, flags)
    counted = Counted(net)
    with torch.no_grad(), bench.autocast():
        train.losses(counted, net.code, batch, torch.arange(len(lengths)), flags)
    ways = {"dense": dense(net), "ours": net}
    runs = {path: step_of(bench, net, ways[path], batch, flags) for path in paths}
    bench.compare(case, runs, sum(lengths), counted.flops(6), repeats)


def bench_train(bench, args):
    lengths = owt_lengths(args.documents, args.block_size)
    for method in train.METHODS:
        # a fixed canvas is filled up with end tokens: here with documents
        mine = [args.block_size] * len(lengths) if method in ("mdm", "prime") else lengths
        case = f"train, {method}, {len(mine)} documents up to {args.block_size}"
        compare_steps(bench, args, case, method, mine, ("dense", "ours"), args.repeats)


def bench_cost(bench, args):
    total, size, numbers = 4096, 256, (1, 2, 4, 8)
    if bench.cuda:
        total, size, numbers = 65536, 1024, (8, 16, 32, 64)
    for L in (256, 512, 1024, 2048, 4096):              # as many tokens, in longer documents
        lengths = [L] * (total // L)
        compare_steps(bench, args, f"cost, flexmdm, {len(lengths)} of {L}", "flexmdm", lengths,
                      ("ours",), max(1, args.repeats // 3))
    for B in numbers:
        compare_steps(bench, args, f"cost, flexmdm, {B} of {size}", "flexmdm", [size] * B,
                      ("ours",), args.repeats)


# -----------------------------------------------------------------------------
# sampling

def grown(predict, L):
    """The gap head replaced by one that grows documents to L tokens: an untrained one does not."""
    def ask(y, n, t, at, given=None):
        logits, log_g = predict(y, n, t, at)
        if log_g is not None:
            log_g = ((L - n) / (n + 1.0)).log()[:, None].expand(-1, y.shape[1] + 1)
        return logits, log_g
    return ask


def on_whole_canvas(predict, B, L, pad):
    """The sampler asks for no more than is needed; here all slots of all rows are computed."""
    def ask(y, n, t, at, given=None):
        more = (0, L - y.shape[1], 0, B - len(y))
        wide = F.pad(y, (0, 0, *more), value=pad)
        logits, log_g = predict(wide, torch.full((B,), L), t[:1].expand(B), F.pad(at, more))
        return logits, None if log_g is None else log_g[:len(y), :y.shape[1] + 1]
    return ask


def sampling(bench, net, predict, B, L, steps, order="random"):
    def run():
        torch.manual_seed(2)
        with bench.autocast():
            insertion = interpolant.schedule(net.config.insertion)
            sampler.generate(predict, net.code, B, L, steps, insertion, LINEAR, order)
    return run


def bench_sample(bench, args):
    L, B = args.canvas, args.batch
    for order in ("random", "top_prob"):
        for method in ("mdm", "flexmdm"):
            net = network(args, bench, method, L).eval()
            steps = whole_numbers(args.steps, "steps")
            for k in steps if order == "random" else steps[:1]:
                counted = Counted(net)
                sampling(bench, net, grown(counted, L), B, L, k, order)()
                full = on_whole_canvas(dense(net), B, L, net.code.pad)
                runs = {"dense": sampling(bench, net, grown(full, L), B, L, k, order),
                        "ours": sampling(bench, net, grown(net, L), B, L, k, order)}
                bench.compare(f"sample, {method}, {order}, {B} of {L}, {k} steps", runs, B * L,
                              counted.flops(2), max(1, args.repeats // 3))


# -----------------------------------------------------------------------------
# the host

class Calls(TorchDispatchMode):
    """Counts operators: on a GPU about as many kernels are launched."""
    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


def calls_of(run):
    with Calls() as calls:
        run()
    return calls.count


def bench_host(bench, args):
    """What happens before the first kernel: drawing and noising a batch, packing it; and what a
    sampling step costs beside its network, here one that answers at once."""
    B, L = args.documents, args.block_size
    net, flags = network(args, bench, "flexmdm", L), settings("flexmdm", B, L)
    texts = Texts(owt_lengths(B, L), args.V)
    batch = train.make_batch(0, texts, net.code, flags)
    y, n = batch.noised.y, batch.noised.n
    at = (y == net.code.mask).any(2)

    def timed(what, run, per=1, **numbers):
        run()
        ms = 1000 * statistics.median(bench.seconds(run) for _ in range(3 * args.repeats)) / per
        bench.add(f"host, {B} documents up to {L}", what, ms, **numbers)

    timed("make_batch", lambda: train.make_batch(0, texts, net.code, flags))
    timed("pack", lambda: pack(y, n, at, None, net.code.pad, True, False))
    optimizers = optimizers_for(net, flags)
    step = step_of(bench, net, net, batch, flags)
    timed("loss, gradient", step, calls=calls_of(step))
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    for optimizer in optimizers:
        timed(type(optimizer).__name__, optimizer.step, calls=calls_of(optimizer.step))

    def at_once(y, n, t, at, given=None):
        log_g = ((L - n) / (n + 1.0)).log()[:, None].expand(-1, y.shape[1] + 1)
        return torch.zeros(int(at.sum()), 2), log_g

    tiny, steps = Transformer(Config(V=2, n_layer=1, n_head=1, n_embd=2)), 32
    run = sampling(bench, tiny, at_once, B, L, steps)
    timed("a sampling step", run, per=steps, calls=calls_of(run) / steps)


PARTS = {"head": bench_head, "train": bench_train, "cost": bench_cost, "sample": bench_sample,
         "host": bench_host}


def run(argv=None):
    args = parse(Args, __doc__, argv)
    device = pick_device(args.device)
    for name, value in PRESETS["cuda" if device.startswith("cuda") else "cpu"].items():
        if name not in args.named:
            setattr(args, name, value)
    parts = args.only.split(",") if args.only else list(PARTS)
    for part in parts:
        if part not in PARTS:
            raise Fail(f"--only {part}: choose from {', '.join(PARTS)}")
    whole_numbers(args.steps, "steps")
    machine = torch.cuda.get_device_name() if device.startswith("cuda") else "CPU"
    say(f"torch {torch.__version__}, {machine}, {torch.get_num_threads()} threads")
    bench = Bench(device)
    for part in parts:
        PARTS[part](bench, args)
    if args.csv:
        write_csv(args.csv, COLUMNS, bench.rows)


if __name__ == "__main__":
    main(run)
