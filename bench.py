"""Speed and memory: what not computing what is not needed is worth, measured side by side in one process.

    python bench.py                                             # all; 5 minutes on 2 CPU cores
    python bench.py --only head --csv head.csv
    python bench.py --device cuda                               # 124M, 64 documents, bfloat16, compiled

    head      vocabulary projection and loss on the same slots: plain, MDM-Prime's joint loss, digit marginals (ell = 4)
    train     a training step of each method on documents of OpenWebText's lengths (mdm and prime: on full canvases)
    cost      time per document token of a flexmdm step against the length of a document, and against their number
    sample    sampling on a fixed canvas and with insertion, in random order and by confidence

`dense` is the usual way through the same network: every slot of a padded canvas, logits for all of them. `ours` is this project's: only
slots that exist go through the blocks, only slots whose answer is needed through the vocabulary projection. Runs take turns; a time is the
median, the brackets hold the fastest and the slowest. memory: the peak above what the process held before the run. mfu: the FLOPs that the
method needs (6 per weight and slot: present slots in the blocks, masked ones in the projection; 2 when sampling; attention not counted)
over time and over the matmul rate that this machine was just seen to reach; a dense path does more work, none of which counts.

One worked number: at a uniform time half of a document's tokens exist and a quarter are masked, so at 768 wide, 12 layers, V = 50257 a
flexmdm step needs 0.31 MFLOP in the blocks and 0.06 in the projection per document token, of 0.53 and 0.23 for every slot.
"""
import csv
import math
import statistics
import time
from dataclasses import dataclass

import torch

import interpolant
import model
import prime
import rates
import sample
import train
from common import Fail, aside, flag, main, parse, trim

PRESETS = {
    "cpu": dict(n_layer=4, n_head=4, n_embd=256, block_size=512, documents=4, slots=512, canvas=128, batch=4, steps="64", repeats=2),
    "cuda": dict(n_layer=12, n_head=12, n_embd=768, block_size=1024, documents=64, slots=8192, canvas=1024, batch=16, steps="64,256,1024", repeats=10),
}
LENGTHS = [324, 478, 540, 582, 628, 681, 743, 822, 921, 1024]          # deciles of OpenWebText's documents, split to 1024 tokens
COLUMNS = ("case", "path", "ms", "tokens_per_s", "memory_mb", "mfu")
LINEAR = interpolant.schedule("linear")
WIDTH = 768                                                            # of the head's states: the paper's model


@dataclass
class Args:
    only: str = flag("", "parts, separated by commas: head, train, cost, sample; empty: all")
    csv: str = flag("", "also write the table here")
    V: int = flag(50257, "tokens", low=2)
    n_layer: int = flag(4, "blocks (this and what follows: the CPU's preset)")
    n_head: int = flag(4, "heads")
    n_embd: int = flag(256, "width")
    block_size: int = flag(512, "the most tokens of a document; lengths are OpenWebText's, to this scale", low=2)
    documents: int = flag(4, "documents in a training step")
    slots: int = flag(512, "slots of the head")
    canvas: int = flag(128, "tokens of a sampled document", low=2)
    batch: int = flag(4, "documents that are sampled together")
    steps: str = flag("64", "sampling steps, separated by commas")
    repeats: int = flag(2, "how often each is timed (the head: three times as often), on CUDA after one more to warm up; on a CPU what takes "
                           "longest (cost; sampling by confidence, or in more than 64 steps) is timed once")
    device: str = flag("auto", "auto, cpu, cuda")


class Bench:
    """Times runs against each other and keeps the table."""

    def __init__(self, args, device):
        self.args, self.device, self.rows = args, device, []
        self.cuda = device.startswith("cuda")
        size = 8192 if self.cuda else 1024
        a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16 if self.cuda else torch.float32) for _ in range(2))
        self.ceiling = 2 * size ** 3 / min(self.seconds(lambda: a @ b) for _ in range(10))
        print(f"matmul of {size} x {size}, {a.dtype}: {self.ceiling / 1e9:,.0f} GFLOP/s", flush=True)

    def seconds(self, run):
        if self.cuda:
            torch.cuda.synchronize()
        began = time.perf_counter()
        run()
        if self.cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - began

    def peak(self, run):
        """MB above what is held before the run, and the seconds of the run."""
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            seconds = self.seconds(run)
            return (torch.cuda.max_memory_allocated() - before) / 1e6, seconds
        try:
            trim()
            with open("/proc/self/clear_refs", "w") as f:              # Linux: forget the peak so far
                f.write("5")
            status = lambda key: int(next(line for line in open("/proc/self/status") if line.startswith(key)).split()[1]) / 1e3
            before = status("VmRSS")
        except (OSError, AttributeError):                              # elsewhere: not measured
            return math.nan, self.seconds(run)
        seconds = self.seconds(run)
        return status("VmHWM") - before, seconds

    def compare(self, case, runs, tokens, flops, repeats):
        """runs: {path: closure}; the first is what the others are compared with. flops: what the case needs. On CUDA a first run warms up."""
        first = {path: self.peak(run) for path, run in runs.items()}
        taken = {path: [] if self.cuda else [seconds] for path, (_, seconds) in first.items()}
        for _ in range(repeats if self.cuda else repeats - 1):
            for path, run in runs.items():
                taken[path].append(self.seconds(run))
        base = next(iter(runs))
        for path, s in taken.items():
            median, memory = statistics.median(s), first[path][0]
            mfu = flops / median / self.ceiling
            self.rows.append(dict(case=case, path=path, ms=f"{1000 * median:.2f}", tokens_per_s=f"{tokens / median:.1f}",
                                  memory_mb=f"{memory:.0f}", mfu=f"{mfu:.3f}"))
            ratio = "" if path == base else f"   {statistics.median(taken[base]) / median:>5.2f}x as fast, {memory / max(1, first[base][0]):.2f}x the memory"
            print(f"{case:<42} {path:<18} {1000 * median:>9.1f} ms [{1000 * min(s):.0f}..{1000 * max(s):.0f}] {tokens / median:>8.0f} tokens/s "
                  f"{memory:>6.0f} MB  mfu {100 * mfu:>4.1f}%{ratio}", flush=True)


# ---- the head ------------------------------------------------------------------------------------------------------------------------

def bench_head(bench, args):
    """Projection of args.slots random states, every one with a masked digit, and the loss, forward and backward."""
    def head(ell, joint):
        code, layer = prime.Code(args.V, ell), torch.nn.Linear(WIDTH, args.V, bias=False, device=bench.device)
        torch.manual_seed(0)
        d = code.encode(torch.randint(args.V, (args.slots,)))
        y = torch.where(torch.rand(d.shape) < 0.5, code.mask, d)
        y[:, 0] = torch.where((y == code.mask).any(1), y[:, 0], code.mask)
        y, d, h = y.to(bench.device), d.to(bench.device), torch.randn(args.slots, WIDTH, device=bench.device, requires_grad=True)

        def run():
            with torch.autocast(bench.device.split(":")[0], torch.bfloat16, enabled=bench.cuda):
                rates.slot_nll(layer(h), y, d, code, joint).sum().backward()
            layer.weight.grad = h.grad = None
        return run

    bench.compare(f"head, {args.slots} slots of {WIDTH}", {"plain": head(1, True), "prime 4, joint": head(4, True), "prime 4, marginal": head(4, False)}, args.slots,
                  6 * args.slots * WIDTH * args.V, 3 * args.repeats)


# ---- training ------------------------------------------------------------------------------------------------------------------------

def network(args, bench, method, block_size):
    net = model.build(model.Config(V=args.V, ell=2 if "prime" in method else 1, block_size=block_size, insertion=train.METHODS[method], n_layer=args.n_layer,
                                   n_head=args.n_head, n_embd=args.n_embd, causal=method == "ar")).to(bench.device)
    if bench.cuda:
        net.trunk = torch.compile(net._trunk, dynamic=True)
    return net


class Counted:
    """A predict that counts the slots which exist and the slots which are asked for."""

    def __init__(self, net):
        self.net, self.present, self.asked = net, 0, 0
        self.inner = sum(p.numel() for name, p in net.named_parameters() if name.startswith("blocks.") and p.ndim == 2 and "adaln" not in name)

    def __call__(self, y, n, t, at):
        self.present, self.asked = self.present + int(n.sum()), self.asked + int(at.sum())
        return self.net(y, n, t, at)

    def flops(self, per_weight):
        return per_weight * (self.present * self.inner + self.asked * self.net.head.weight.numel())


def dense(net):
    """The same network used the usual way: every slot of the padded canvas, all logits at once; those asked for are picked afterwards."""
    def predict(y, n, t, at):
        kept, net.defer = net.defer, 0
        try:
            logits, log_g = net(y, torch.full_like(n, y.shape[1]), t, torch.ones_like(at))
        finally:
            net.defer = kept
        return logits[at.flatten().to(logits.device)], log_g
    return predict


def step_of(net, predict, bench, method, n1, L, backward=True):
    """A training step: draw x_t, the loss, its gradient."""
    x1, insertion = torch.randint(net.config.V, (len(n1), L)), interpolant.schedule(train.METHODS[method])

    def run():
        torch.manual_seed(1)
        t = (torch.arange(len(n1)) + 0.5) / len(n1)
        with torch.autocast(bench.device.split(":")[0], torch.bfloat16, enabled=bench.cuda):
            if method == "ar":
                loss = rates.next_token_nll(predict, net.code, x1, n1)
            else:
                loss = rates.nll(predict, net.code, x1, n1, t, insertion, LINEAR)
        if backward:
            loss.sum().backward()
            net.zero_grad(set_to_none=True)
    return run


def needed(net, bench, method, n1, L):
    """FLOPs of a step without waste."""
    counted = Counted(net)
    with torch.no_grad():
        step_of(net, counted, bench, method, n1, L, backward=False)()
    return counted.flops(6)


def bench_train(bench, args):
    L, B = args.block_size, args.documents
    n1 = torch.tensor([LENGTHS[int(10 * (i + 0.5) / B)] * L // 1024 for i in range(B)])
    for method in train.METHODS:
        net = network(args, bench, method, L)
        net.defer = 8192 if bench.cuda else 0
        lengths = torch.full_like(n1, L) if method in ("mdm", "prime") else n1
        bench.compare(f"train, {method}, {B} documents up to {L}", {"dense": step_of(net, dense(net), bench, method, lengths, L),
                      "ours": step_of(net, net, bench, method, lengths, L)}, int(lengths.sum()),
                      needed(net, bench, method, lengths, L), args.repeats)


def bench_cost(bench, args):
    net = network(args, bench, "flexmdm", 4096)
    net.defer = 8192 if bench.cuda else 0
    total, repeats = (65536, args.repeats) if bench.cuda else (4096, 1)
    for L in (256, 512, 1024, 2048, 4096):                             # the same number of tokens, in longer documents
        n1 = torch.full((total // L,), L)
        bench.compare(f"cost, flexmdm, {len(n1)} of {L}", {"ours": step_of(net, net, bench, "flexmdm", n1, L)}, total,
                      needed(net, bench, "flexmdm", n1, L), repeats)
    for B in (8, 16, 32, 64) if bench.cuda else (1, 2, 4, 8):
        n1 = torch.full((B,), 1024 if bench.cuda else 256)
        bench.compare(f"cost, flexmdm, {B} of {int(n1[0])}", {"ours": step_of(net, net, bench, "flexmdm", n1, int(n1[0]))}, int(n1.sum()),
                      needed(net, bench, "flexmdm", n1, int(n1[0])), repeats)


# ---- sampling ------------------------------------------------------------------------------------------------------------------------

def bench_sample(bench, args):
    """A fixed canvas; and insertion, the gap head replaced by one that grows documents to the whole canvas (an untrained one grows none)."""
    L, B = args.canvas, args.batch
    steps = [int(s) for s in args.steps.split(",")]
    for method, order in (("mdm", "random"), ("flexmdm", "random"), ("mdm", "top_prob"), ("flexmdm", "top_prob")):
        net = network(args, bench, method, L).eval()

        def grown(predict):
            def ask(y, n, t, at):
                logits, log_g = predict(y, n, t, at)
                return logits, None if log_g is None else ((L - n) / (n + 1.0)).log()[:, None].expand(-1, y.shape[1] + 1)
            return ask

        def draw(predict, S):
            @torch.no_grad()
            def run():
                torch.manual_seed(2)
                with torch.autocast(bench.device.split(":")[0], torch.bfloat16, enabled=bench.cuda):
                    sample.generate(predict, net.code, B, L, S, interpolant.schedule(train.METHODS[method]), LINEAR, order)
            return run

        def full(y, n, t, at):                                         # the sampler crops to what is needed; the dense path computes it all
            more = (0, L - y.shape[1], 0, B - len(y))
            wide = torch.nn.functional.pad(y, (0, 0, *more), value=net.code.pad)
            logits, log_g = dense(net)(wide, torch.full((B,), L), t[:1].expand(B), torch.nn.functional.pad(at, more))
            return logits, None if log_g is None else log_g[:, :y.shape[1] + 1]

        for S in steps if order == "random" else steps[:1]:
            counted = Counted(net)
            draw(grown(counted), S)()
            bench.compare(f"sample, {method}, {order}, {B} of {L}, {S} steps", {"dense": draw(grown(full), S), "ours": draw(grown(net), S)}, B * L,
                          counted.flops(2), args.repeats if bench.cuda or (S <= 64 and order == "random") else 1)


PARTS = {"head": bench_head, "train": bench_train, "cost": bench_cost, "sample": bench_sample}


def run(argv=None):
    args = parse(Args, __doc__, argv)
    device = model.pick_device(args.device)
    for name, value in PRESETS["cuda" if device.startswith("cuda") else "cpu"].items():
        if name not in args.named:
            setattr(args, name, value)
    parts = args.only.split(",") if args.only else list(PARTS)
    for part in parts:
        if part not in PARTS:
            raise Fail(f"--only {part}: choose from {', '.join(PARTS)}")
    if not all(s.isdigit() and 0 < int(s) < 10 ** 6 for s in args.steps.split(",")):
        raise Fail(f"--steps {args.steps} must be whole numbers separated by commas, as in 64,256")
    print(f"torch {torch.__version__}, " + (f"{device}, {torch.get_num_threads()} threads" if device == "cpu" else torch.cuda.get_device_name()))
    bench = Bench(args, device)
    for part in parts:
        PARTS[part](bench, args)
    if args.csv:
        with aside(args.csv, newline="") as f:
            table = csv.DictWriter(f, COLUMNS, lineterminator="\n")
            table.writeheader()
            table.writerows(bench.rows)


if __name__ == "__main__":
    main(run)
