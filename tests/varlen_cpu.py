"""A plain CPU kernel behind torch.nn.attention.varlen, so that the path of a GPU runs, forward and
backward, where there is none.

It asserts what the flash kernel needs: 16-bit floats, last stride 1, a head size that is a multiple
of 8 and at most 256, int32 ends, no document longer than `longest`. Float32 inside.

    varlen_cpu.register() monkeypatch.setattr(model, "flash", varlen_cpu.takes)       # under bf16
    autocast, on CPU tensors
"""
import functools

import torch
import torch.nn.attention.varlen as varlen


def takes(q):
    """In place of model.flash: any 16-bit queries."""
    return q.dtype in (torch.bfloat16, torch.float16)


def scores(q, k, causal):
    s = q @ k.transpose(1, 2) / q.shape[-1] ** 0.5                          # (H, n, n)
    if causal:
        future = torch.ones(s.shape[1:], dtype=torch.bool).triu(1)
        s = s.masked_fill(future, -torch.inf)
    return s


def documents(ends, *tensors):
    """The documents of each (T, H, hd) tensor as float32 (H, n, hd), with their places in the
    row."""
    ends = ends.tolist()
    for a, z in zip(ends, ends[1:]):
        if z > a:
            yield a, z, *(x[a:z].float().transpose(0, 1) for x in tensors)


def check(q, k, v, ends, longest):
    for x in (q, k, v):
        assert x.dtype in (torch.bfloat16, torch.float16), x.dtype
        assert x.stride(-1) == 1, x.stride()
        assert x.shape[-1] % 8 == 0 and x.shape[-1] <= 256, x.shape
    assert ends.dtype == torch.int32 and int(ends[0]) == 0 and int(ends[-1]) == len(q)
    assert int(ends.diff().max()) <= longest


def is_causal(window):
    return window is not None and tuple(window) == (-1, 0)


calls = []      # the number of queries of each forward call, for tests that must have come here


def forward(q, k, v, cu_q, cu_k, max_q, max_k, causal=False, scale=None, window_size=None,
            *more, **named):
    check(q, k, v, cu_q, max_q)
    calls.append(len(q))
    causal = causal or is_causal(window_size)
    out, lse = torch.empty_like(q), torch.empty(q.shape[1], q.shape[0])
    for a, z, qd, kd, vd in documents(cu_q, q, k, v):
        s = scores(qd, kd, causal)
        lse[:, a:z] = s.logsumexp(2)
        out[a:z] = (s.softmax(2) @ vd).transpose(0, 1).to(out.dtype)
    return out, lse, torch.zeros(2, dtype=torch.uint64)


def backward(grad, q, k, v, out, lse, cu_q, cu_k, max_q, max_k, causal, rng, scale=None,
             window_size=None, *more, **named):
    assert grad.dtype == q.dtype and grad.stride(-1) == 1, (grad.dtype, grad.stride())
    causal = causal or is_causal(window_size)
    dq, dk, dv = (torch.empty_like(x) for x in (q, k, v))
    for a, z, g, qd, kd, vd in documents(cu_q, grad, q, k, v):
        p = scores(qd, kd, causal).softmax(2)
        dp = g @ vd.transpose(1, 2)
        ds = p * (dp - (dp * p).sum(2, keepdim=True)) / q.shape[-1] ** 0.5
        for d, x in ((dq, ds @ kd), (dk, ds.transpose(1, 2) @ qd), (dv, p.transpose(1, 2) @ g)):
            d[a:z] = x.transpose(0, 1).to(d.dtype)
    return dq, dk, dv


@functools.cache
def register():
    varlen._varlen_attn.register_kernel("cpu")(forward)
    varlen._varlen_attn_backward.register_kernel("cpu")(backward)
