"""muon.py: a step of Muon against its definition, by value."""
from types import SimpleNamespace

import pytest
import torch

from model import Config, Transformer
from muon import Muon, optimizers_for, orthogonal


def matrix(m, n, smallest=0.05, seed=0):
    """A random U S V^T whose singular values run from 1 down to `smallest`: it, U, S, V^T."""
    generator = torch.Generator().manual_seed(seed)
    u, _, vh = torch.linalg.svd(torch.randn(m, n, generator=generator), full_matrices=False)
    s = torch.logspace(0, torch.tensor(smallest).log10().item(), min(m, n))
    return (u * s) @ vh, u, s, vh


# The first four steps of "Polar Express" (arXiv 2505.16932), as its authors publish them.
PAPER = [(8.28721201814563, -23.595886519098837, 17.300387312530933),
         (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
         (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
         (3.3184196573706015, -2.488488024314874, 0.51004894012372)]


@pytest.mark.parametrize("shape", [(48, 48), (96, 24), (24, 96), (1, 5), (5, 1)])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e3])
def test_singular_values_become_about_one(shape, scale):
    """U and V stay; each singular value s goes through the paper's polynomials, which end between
    .43 and 1.57 for all above a thousandth of the norm."""
    x, u, s, vh = matrix(*shape)
    got = orthogonal(scale * x[None])[0]
    assert got.shape == shape and got.dtype == torch.float32
    expected = s / (1.01 * s.norm())
    for a, b, c in PAPER:
        expected = a * expected + b * expected ** 3 + c * expected ** 5
    assert torch.allclose(got, (u * expected) @ vh, atol=2e-3)
    values = torch.linalg.svdvals(got)
    assert float(values.min()) > 0.43 and float(values.max()) < 1.57


def test_a_batch_equals_its_matrices_one_by_one():
    """Also where their sizes differ by a million, and a matrix of zeros stays zero."""
    x = torch.stack([scale * matrix(12, 30, seed=i)[0] for i, scale in enumerate((1, 1e-6, 1e3))])
    together = orthogonal(torch.cat([x, torch.zeros(1, 12, 30)]))
    for one, got in zip(x, together):
        assert torch.allclose(orthogonal(one[None])[0], got, atol=1e-4)
    assert (together[3] == 0).all()


def steps_of(p, gradients, **options):
    optimizer = Muon([p], **options)
    for g in gradients:
        p.grad = g.clone()
        optimizer.step()
    return p.detach()


def test_three_steps_are_their_formula():
    """m <- .95 m + .05 g;  p <- p (1 - lr decay) - lr * .2 * sqrt(longer side) * U V^T of
    (.05 g + .95 m): the momentum, one step ahead (Nesterov)."""
    lr, decay, beta = 0.02, 0.1, 0.95
    gradients = [torch.randn(8, 18) for _ in range(3)]
    begin = torch.randn(8, 18)
    expected, momentum = begin.clone(), torch.zeros(8, 18)
    for g in gradients:
        momentum = beta * momentum + (1 - beta) * g
        ahead = (1 - beta) * g + beta * momentum
        update = orthogonal(ahead[None])[0]
        expected = expected * (1 - lr * decay) - lr * 0.2 * 18 ** 0.5 * update
    p = torch.nn.Parameter(begin.clone())
    got = steps_of(p, gradients, lr=lr, weight_decay=decay)
    assert torch.allclose(got, expected, atol=1e-5)
    # without Nesterov it would be another matrix
    p = torch.nn.Parameter(begin.clone())
    plain = steps_of(p, gradients[:2], lr=lr, weight_decay=decay, momentum=0.0)
    assert (plain - got).abs().max() > 1e-3


def test_a_step_goes_downhill():
    target, p = torch.randn(6, 9), torch.nn.Parameter(torch.randn(6, 9))
    optimizer, losses = Muon([p], lr=0.1), []
    for _ in range(100):
        loss = (p - target).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.1 * losses[0]


def test_decay_makes_matrices_smaller():
    """Where the gradient is zero nothing but decay is left."""
    p = torch.nn.Parameter(torch.ones(4, 4))
    got = steps_of(p, [torch.zeros(4, 4)] * 3, lr=0.5, weight_decay=0.2)
    assert torch.allclose(got, torch.full((4, 4), 0.9 ** 3))


def test_matrices_of_one_shape_step_as_they_would_alone():
    begin = [torch.randn(6, 10) for _ in range(3)] + [torch.randn(10, 6)]
    gradients = [torch.randn_like(x) for x in begin]
    together = [torch.nn.Parameter(x.clone()) for x in begin]
    for p, g in zip(together, gradients):
        p.grad = g.clone()
    Muon(together, lr=0.1).step()
    for x, g, p in zip(begin, gradients, together):
        alone = steps_of(torch.nn.Parameter(x.clone()), [g], lr=0.1)
        assert torch.allclose(alone, p.detach(), atol=1e-5)


ARGS = dict(optimizer="muon", learning_rate=1e-3, weight_decay=0.1, beta2=0.95)


def network():
    return Transformer(Config(V=11, n_layer=2, n_head=2, n_embd=16, n_cond=8))


def test_muon_takes_the_matrices_of_the_blocks():
    net = network()
    adamw, muon = optimizers_for(net, SimpleNamespace(**ARGS))
    names = {id(p): name for name, p in net.named_parameters()}
    inner = {names[id(p)] for group in muon.param_groups for p in group["params"]}
    parts = ("q", "k", "v", "out", "mlp.0", "mlp.2")
    assert inner == {f"blocks.{i}.{part}.weight" for i in range(2) for part in parts}
    rest = [names[id(p)] for group in adamw.param_groups for p in group["params"]]
    assert len(rest) == len(set(rest)) and inner | set(rest) == set(names.values())
    assert not inner & set(rest)


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_only_matrices_decay(optimizer):
    """By value: with zero gradients a matrix shrinks by 1 - lr * decay and a vector stays."""
    net = network()
    with torch.no_grad():
        for p in net.parameters():
            p.fill_(1.0)
            p.grad = torch.zeros_like(p)
    made = optimizers_for(net, SimpleNamespace(**{**ARGS, "optimizer": optimizer}))
    assert len(made) == (2 if optimizer == "muon" else 1)
    for o in made:
        o.step()
    for name, p in net.named_parameters():
        expected = 1 - 1e-3 * 0.1 if p.ndim == 2 else 1.0
        assert torch.allclose(p.detach(), torch.full_like(p, expected), atol=1e-7), name


def test_frozen_weights_are_in_no_optimizer():
    net = network()
    net.embed.weight.requires_grad_(False)
    net.blocks[0].q.weight.requires_grad_(False)
    made = optimizers_for(net, SimpleNamespace(**ARGS))
    held = {id(p) for o in made for group in o.param_groups for p in group["params"]}
    assert id(net.embed.weight) not in held and id(net.blocks[0].q.weight) not in held
