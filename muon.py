"""Muon (Keller Jordan et al., 2024), with step sizes like AdamW's (arXiv 2502.16982): a matrix
moves along U V^T of its momentum U S V^T. torch.optim.Muon works in bfloat16, which a CPU takes 20
times as long for."""
from collections import defaultdict

import torch

# Each row a, b, c is one step X <- (a + b X X^T + c (X X^T)^2) X towards U V^T (arXiv 2505.16932).
POLAR = ((8.28721, -23.59589, 17.30039), (4.10706, -2.94785, 0.54484),
         (3.94869, -2.90890, 0.55182), (3.31842, -2.48849, 0.51005))


def orthogonal(x):
    """x (K, m, n), K matrices U S V^T -> their U V^T, roughly: singular values above a thousandth
    of a matrix' norm end between .43 and 1.57."""
    if x.shape[1] > x.shape[2]:
        return orthogonal(x.mT).mT
    dtype = x.dtype
    if x.is_cuda:
        x = x.bfloat16()
    x = x / (1.01 * x.norm(dim=(1, 2), keepdim=True) + 1e-12)
    for a, b, c in POLAR:
        gram = x @ x.mT                                                     # (K, m, m)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.to(dtype)


class Muon(torch.optim.Optimizer):
    def __init__(self, params, lr, weight_decay=0.0, momentum=0.95):
        super().__init__(params, dict(lr=lr, weight_decay=weight_decay, momentum=momentum))

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            lr, decay, beta = group["lr"], group["weight_decay"], group["momentum"]
            same_shape = defaultdict(list)              # matrices of one shape are one batch
            for p in group["params"]:
                same_shape[p.shape].append(p)
            for shape, params in same_shape.items():
                states = [self.state[p] for p in params]
                momenta = [state.setdefault("momentum", torch.zeros_like(p))
                           for state, p in zip(states, params)]
                gradients = [p.grad for p in params]
                torch._foreach_lerp_(momenta, gradients, 1 - beta)
                nesterov = torch._foreach_lerp(gradients, momenta, beta)
                updates = orthogonal(torch.stack(nesterov))                 # (K, m, n)
                torch._foreach_mul_(params, 1 - lr * decay)
                torch._foreach_add_(params, list(updates), alpha=-lr * 0.2 * max(shape) ** 0.5)


def optimizers_for(net, args):
    """Muon for the matrices of the blocks, AdamW for the rest. Weight decay on matrices only."""
    inner, matrices, vectors = [], [], []
    for name, p in net.named_parameters():
        if not p.requires_grad:
            continue
        in_block = name.startswith("blocks.") and "adaln" not in name
        if p.ndim < 2:
            vectors.append(p)
        elif args.optimizer == "muon" and in_block and p.ndim == 2:
            inner.append(p)
        else:
            matrices.append(p)
    groups = [dict(params=matrices, weight_decay=args.weight_decay),
              dict(params=vectors, weight_decay=0.0)]
    adamw = torch.optim.AdamW(groups, lr=args.learning_rate, betas=(0.9, args.beta2), fused=True)
    if not inner:
        return [adamw]
    return [adamw, Muon(inner, args.learning_rate, args.weight_decay)]
