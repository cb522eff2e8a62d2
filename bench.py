"""Speed and memory: what not computing what is not needed is worth, as ratios measured side by side in one process.

    python bench.py                                             # all, a few minutes on a CPU
    python bench.py --only head
    python bench.py --n_layer 12 --n_embd 768 --n_head 12       # the paper's size; on a GPU: --device cuda (bfloat16)

    head      vocabulary projection and loss, forward and backward, on the same slots: plain, MDM-Prime's joint loss, digit marginals
    train     a training step on documents of OpenWebText's lengths: only present slots and masked logits, against every slot of a padded canvas
    sample    sampling steps: reveal first, then project only those slots, against logits for every slot at every step

One worked number: at a uniform time half of a document's tokens exist and a quarter are masked, so at d = 768, 12 layers, V = 50257 a FlexMDM
step needs 104 of the dense path's 247 MFLOP per document token, and the padding of documents to 1024 wastes another factor of 1.6.
"""
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass

import torch

import interpolant
import model
import prime
import rates
import sample
from common import Fail, flag, main, parse


@dataclass
class Args:
    only: str = flag("", "one of the parts", ("", "head", "train", "sample"))
    V: int = flag(50257, "tokens")
    n_layer: int = flag(4, "blocks")
    n_head: int = flag(6, "heads")
    n_embd: int = flag(384, "width")
    block_size: int = flag(1024, "canvas")
    documents: int = flag(4, "documents in a batch")
    slots: int = flag(1024, "slots of the head's benchmark")
    steps: int = flag(64, "sampling steps")
    repeats: int = flag(5, "how often each is timed; the median counts")
    device: str = flag("auto", "auto, cpu, cuda")
    memory_of: str = flag("", "used by this script itself: measure the peak memory of one head and print it")


def timed(device, runs, repeats):
    """{name: median seconds} of interleaved runs, after one warm-up each."""
    seconds = {name: [] for name in runs}
    for k in range(repeats + 1):
        for name, run in runs.items():
            if device.startswith("cuda"):
                torch.cuda.synchronize()
            began = time.perf_counter()
            run()
            if device.startswith("cuda"):
                torch.cuda.synchronize()
            if k:
                seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(s) for name, s in seconds.items()}


def report(title, seconds, base, extra=lambda name: ""):
    print(title)
    for name, s in seconds.items():
        print(f"  {name:<44}{1000 * s:>10.1f} ms   {s / seconds[base]:>6.2f} of the time, {seconds[base] / s:>5.2f}x as fast{extra(name)}", flush=True)


# ---- the head ------------------------------------------------------------------------------------------------------------------------

HEADS = {"plain, ell = 1": (1, True), "MDM-Prime joint, ell = 4": (4, True), "digit marginals, ell = 4": (4, False)}


def head_run(name, args, device):
    """A closure that projects args.slots random states, every one with a masked digit, and runs the loss forward and backward."""
    ell, joint = HEADS[name]
    code = prime.Code(args.V, ell)
    torch.manual_seed(0)
    d = code.encode(torch.randint(args.V, (args.slots,)))
    y = torch.where(torch.rand(d.shape) < 0.5, code.mask, d)
    y[:, 0] = torch.where((y == code.mask).any(1), y[:, 0], code.mask)
    y, d = y.to(device), d.to(device)
    head = torch.nn.Linear(args.n_embd, args.V, bias=False, device=device)
    h = torch.randn(args.slots, args.n_embd, device=device, requires_grad=True)

    def run():
        with torch.autocast(device.split(":")[0], torch.bfloat16, enabled=device.startswith("cuda")):
            rates.slot_nll(head(h), y, d, code, joint).sum().backward()
        head.weight.grad = h.grad = None

    return run


def peak_memory(name, args, device):
    """MB above what the tables and the layer take: the peak of one run."""
    run = head_run(name, args, device)
    if device.startswith("cuda"):
        run()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    run()
    with open("/proc/self/clear_refs", "w") as f:                      # Linux: forget the peak so far
        f.write("5")
    status = lambda key: int(next(line for line in open("/proc/self/status") if line.startswith(key)).split()[1]) / 1e3
    before = status("VmRSS")
    run()
    return status("VmHWM") - before


def bench_head(args, device):
    seconds = timed(device, {name: head_run(name, args, device) for name in HEADS}, args.repeats)
    memory = {}
    for name in HEADS:                                                 # peaks only ever grow, so each is measured in a process of its own
        words = [sys.executable, __file__, f"--memory_of={name}", f"--V={args.V}", f"--n_embd={args.n_embd}", f"--slots={args.slots}", f"--device={device}"]
        memory[name] = float(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
    base = next(iter(HEADS))
    report(f"head: {args.slots} slots, V = {args.V}, d = {args.n_embd}, forward and backward", seconds, base,
           lambda name: f"   {memory[name]:>7.0f} MB, {memory[name] / memory[base]:.2f} of the memory")


# ---- training and sampling -----------------------------------------------------------------------------------------------------------

LENGTHS = [324, 478, 540, 582, 628, 681, 743, 822, 921, 1024]          # OpenWebText split to 1024 tokens: deciles


def network(args, device, insertion):
    config = model.Config(V=args.V, block_size=args.block_size, insertion=insertion, n_layer=args.n_layer, n_head=args.n_head, n_embd=args.n_embd)
    return model.build(config).to(device)


def dense(net, log_g_too=True):
    """The same network used the usual way: every slot of the padded canvas, logits for all of them; those asked for are picked afterwards."""
    def predict(y, n, t, at):
        everything = torch.ones_like(at)
        logits, log_g = net(y, torch.full_like(n, y.shape[1]), t, everything)
        return logits[at.flatten().to(logits.device)], log_g
    return predict


def bench_train(args, device):
    torch.manual_seed(0)
    n1 = torch.tensor([LENGTHS[i % 10] for i in torch.randperm(max(10, args.documents))[:args.documents]]) * args.block_size // 1024
    x1 = torch.randint(args.V, (args.documents, args.block_size))
    linear, instant = interpolant.schedule("linear"), interpolant.schedule("instant")
    for method, insertion, lengths in (("flexmdm", linear, n1), ("mdm", instant, torch.full_like(n1, args.block_size))):
        net = network(args, device, insertion.name)

        def step(predict):
            torch.manual_seed(1)
            t = (torch.arange(args.documents) + 0.5) / args.documents
            with torch.autocast(device.split(":")[0], torch.bfloat16, enabled=device.startswith("cuda")):
                rates.nll(predict, net.code, x1, lengths, t, insertion, linear).sum().backward()
            net.zero_grad(set_to_none=True)

        seconds = timed(device, {"dense": lambda: step(dense(net)), "this project": lambda: step(net)}, args.repeats)
        report(f"train, {method}: {args.documents} documents, {int(lengths.sum())} document tokens, {args.n_layer} x {args.n_embd}", seconds, "dense",
               lambda name: f"   {int(lengths.sum()) / seconds[name]:>9.0f} tokens/s")


def bench_sample(args, device):
    net = network(args, device, "instant").eval()
    instant, linear = interpolant.schedule("instant"), interpolant.schedule("linear")
    L = min(256, args.block_size)

    @torch.no_grad()
    def draw(predict, order):
        torch.manual_seed(2)
        with torch.autocast(device.split(":")[0], torch.bfloat16, enabled=device.startswith("cuda")):
            sample.generate(predict, net.code, 2, L, args.steps, instant, linear, order)

    runs = {f"{how}, {order}": (lambda predict=predict, order=order: draw(predict, order))
            for order in ("random", "top_prob") for how, predict in (("dense", dense(net)), ("this project", net))}
    seconds = timed(device, runs, max(1, args.repeats // 2))
    for order in ("random", "top_prob"):
        report(f"sample, mdm, {order}: 2 canvases of {L}, {args.steps} steps", {k: v for k, v in seconds.items() if k.endswith(order)}, f"dense, {order}")


def run(argv=None):
    args = parse(Args, __doc__, argv)
    device = model.pick_device(args.device)
    if args.memory_of:
        if args.memory_of not in HEADS:
            raise Fail(f"--memory_of takes one of {', '.join(HEADS)}")
        print(peak_memory(args.memory_of, args, device))
        return
    print(f"torch {torch.__version__}, {device}, {torch.get_num_threads()} threads" if device == "cpu" else f"torch {torch.__version__}, {torch.cuda.get_device_name()}")
    for name, bench in (("head", bench_head), ("train", bench_train), ("sample", bench_sample)):
        if args.only in ("", name):
            bench(args, device)


if __name__ == "__main__":
    main(run)
