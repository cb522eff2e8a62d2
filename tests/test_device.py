"""What a GPU would notice, without one. torch's `meta` device stands in for it: its tensors have
shapes and no numbers, and mix with none of the host's. So an operation that forgot to move a tensor
fails here, and so does whatever would make the host wait for an answer: .item(), .tolist(),
nonzero, an index that is a mask.

With a GPU at hand, its own tests follow.
"""
import contextlib

import pytest
import torch
from torch.overrides import TorchFunctionMode

import bench
import interpolant
import model
import runs
import sampler
import train
from common import parse
from model import Config, Transformer

METHODS = list(train.METHODS)
LENGTHS = [5, 9, 32, 17, 20, 1, 30, 12]
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def settled(method, *flags):
    args = parse(train.Args, "", [f"--method={method}", "--batch_size=8", "--block_size=32",
                                  "--device=cpu", "--infill=.5", *flags])
    train.settle(args)
    return args


def network(method, ell, device, dtype=torch.float32):
    torch.manual_seed(0)
    net = Transformer(Config(V=50, ell=ell, block_size=32, n_layer=2, n_head=2, n_embd=32,
                             insertion=train.METHODS[method], causal=method == "ar"))
    return net.to(device, dtype)


class ReadBack(TorchFunctionMode):
    """What is copied from `meta` to the host is zero, and counted: the host would wait there, as it
    does for a tensor that is copied to the device by any way but common.move."""
    waits = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        goes = func is torch.Tensor.to and args[0].is_cpu and "meta" in map(str, args[1:])
        if goes and not (kwargs or {}).get("non_blocking"):
            self.waits += 1
        if func is torch.Tensor.__bool__ and args[0].is_meta:
            self.waits += 1
            return True                             # "all of them are finite"
        if func is torch.Tensor.cpu and args[0].is_meta:
            self.waits += 1
            return torch.zeros(args[0].shape, dtype=args[0].dtype)
        return func(*args, **(kwargs or {}))


@pytest.fixture
def flash(monkeypatch):
    """The path of a GPU: variable-length flash attention, whose shapes torch knows on `meta`. Autocast
    fails there, so the weights are bfloat16."""
    monkeypatch.setattr(model, "flash", lambda q: True)
    monkeypatch.setattr(torch, "autocast", lambda *args, **named: contextlib.nullcontext())


def test_the_stand_in_notices_what_a_gpu_would():
    x = torch.ones(3, device="meta")
    for wrong in (lambda: x.sum().item(), x.tolist, x.nonzero, lambda: x[x > 0],
                  lambda: x.cpu(), lambda: x @ torch.ones(3)):
        with pytest.raises((RuntimeError, NotImplementedError)):
            wrong()


@pytest.mark.parametrize("targets", ["averaged", "sampled"])
@pytest.mark.parametrize("method", METHODS)
def test_loss_and_gradient_never_wait_for_the_device(method, targets, flash):
    args = settled(method, f"--targets={targets}")
    net = network(method, args.ell, "meta", torch.bfloat16)
    batch = train.make_batch(0, bench.Texts(LENGTHS, 50), net.code, args)
    net.code.on("meta")                             # its tables are moved once
    with ReadBack() as host:
        unmask, insert = train.losses(net, net.code, batch, torch.arange(8), args)
        (unmask.sum() + insert.sum()).backward()
    assert unmask.device.type == "meta" and unmask.shape == (8,) and host.waits == 0
    assert all(p.grad is not None for p in net.parameters())


@pytest.mark.parametrize("order", ["random", "margin"])
@pytest.mark.parametrize("kind", sampler.SAMPLERS)
@pytest.mark.parametrize("method", ["flexmdm", "mdm", "flexprime", "prime"])
def test_sampling_waits_for_answers_only(method, kind, order, flash):
    """At most six waits a call: to send the question, to read tokens, gaps, confidences and whether
    all are finite"""
    net = network(method, settled(method).ell, "meta", torch.bfloat16)
    linear, steps = interpolant.schedule("linear"), 6
    insertion = interpolant.schedule(train.METHODS[method])
    net.code.on("meta")
    with ReadBack() as host, torch.no_grad():
        x, n = sampler.generate(net, net.code, 4, 32, steps, insertion, linear, order,
                                sampler=kind)
    assert x.shape == (4, 32) and 0 < host.waits <= 6 * (steps + 8)


@needs_gpu
@pytest.mark.parametrize("method", METHODS)
def test_a_gpu_computes_what_the_cpu_computes(method):
    args = settled(method)
    losses = []
    for device in ("cpu", "cuda"):
        net = network(method, args.ell, device)
        batch = train.make_batch(0, bench.Texts(LENGTHS, 50), net.code, args)
        unmask, insert = train.losses(net, net.code, batch, torch.arange(8), args)
        losses.append((unmask + insert).detach().cpu())
    assert torch.allclose(*losses, rtol=1e-3)


@needs_gpu
@pytest.mark.parametrize("method", METHODS)
def test_a_gpu_step_has_no_synchronisation(method):
    args = settled(method)
    net = network(method, args.ell, "cuda")
    batch = train.make_batch(0, bench.Texts(LENGTHS, 50), net.code, args)

    def step():
        with torch.autocast("cuda", torch.bfloat16):
            unmask, insert = train.losses(net, net.code, batch, torch.arange(8), args)
        (unmask.sum() + insert.sum()).backward()
    step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@needs_gpu
@pytest.mark.parametrize("method", METHODS)
def test_a_run_on_a_gpu(method, tmp_path):
    lines = runs.write_lines(tmp_path / "lines")
    flags = [flag for flag in runs.TINY if not flag.startswith("--device")]
    train.train([*flags, lines, f"--method={method}", "--device=cuda", "--compile=False",
                 f"--out_dir={tmp_path / 'out'}"])
