"""The network: a diffusion transformer (DiT) over the slots of x_t that answers two questions.

    logits, log_g = model(y, n, t, at, given)

    y (B, L, ell), n (B,)   states: digits and how many slots are in use (interpolant.py)
    t (B,)                  times; the network sees alpha(t), which is 1 without insertion
    at (B, L) bool          the slots to predict, usually those with a mask
    given (B, L) bool       slots that were given (a prompt), or None; the digits do not show it
    logits (M, V)           f for the slots asked for, row by row: M = at.sum()
    log_g (B, L + 1)        log of the expected number of tokens missing left of each slot and, at
                            n, after the last one; 0 beyond. None if nothing is ever inserted.

This signature is the `predict` of the whole project: losses and samplers know nothing else. Inputs
may lie on the host: they are packed where they are, then moved.

No padding is computed. All slots of a batch stand in one row (T, d), document after document, and
only attention looks at where documents end. With insertion each has one extra slot at its end, the
symbol `pad`, which answers for the last gap. The vocabulary projection runs only on the slots that
are asked for.

At the size of the paper's OpenWebText model (12 layers of 768, V = 50257) it has 170.4M parameters.
"""
import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn
from torch.utils.checkpoint import checkpoint

import interpolant
from common import Fail, move
from interpolant import below
from prime import Code


@dataclass
class Config:
    V: int                              # tokens
    ell: int = 1                        # digits per token
    block_size: int = 64                # the most tokens of a document
    insertion: str = "linear"           # the schedule alpha; "instant": a fixed canvas, no gap head
    causal: bool = False                # the autoregressive baseline
    n_layer: int = 6
    n_head: int = 4
    n_embd: int = 256
    n_cond: int = 128                   # width of the time embedding
    dropout: float = 0.0
    rope_theta: float = 10000.0
    shape: tuple = ()                   # of images: (height, width, channels)

    def __post_init__(self):
        self.shape = tuple(self.shape)              # json has lists only


# -----------------------------------------------------------------------------
# slots in one row, and attention within each document

class Packed(NamedTuple):
    """The T slots of a batch in one row."""
    y: Tensor                           # (T, ell) digits
    given: Tensor                       # (T, 1) 1.0 where the slot was given
    doc: Tensor                         # (T,) the document that a slot belongs to
    pos: Tensor                         # (T,) its place there
    ends: Tensor                        # (B + 1,) int32: 0, slots of document 0, of 0 and 1, ..
    asked: Tensor                       # (M,) the slots to predict
    longest: int                        # no document has more slots

    def to(self, device):
        return Packed(*(move(x, device) for x in self[:-1]), self.longest)


def pack(y, n, at, given, pad, end_slot, causal):
    """States -> Packed. end_slot: one slot more for each document, for its last gap."""
    L = y.shape[1]
    if given is None:
        given = torch.zeros_like(at)
    y, at, given = F.pad(y, (0, 0, 0, 1)), F.pad(at, (0, 1)), F.pad(given, (0, 1))   # L + 1 slots
    inside = below(n, L + 1)                                                # (B, L + 1)
    y, given = torch.where(inside[:, :, None], y, pad), given & inside
    if causal:                                                              # slot i sees slot i - 1
        y, given = y.roll(1, 1), given.roll(1, 1)
    length = n + 1 if end_slot else n
    used = below(length, L + 1)                                             # (B, L + 1)
    doc, pos = used.nonzero(as_tuple=True)                                  # (T,)
    ends = F.pad(length.cumsum(0), (1, 0)).int()
    asked = at[used].nonzero()[:, 0]
    return Packed(y[used], given[used, None].float(), doc, pos, ends, asked, L + 1)


def flash(q):
    """Can torch's variable-length flash attention take these queries (T, H, hd)?"""
    half = q.dtype in (torch.bfloat16, torch.float16)
    return q.is_cuda and half and q.shape[-1] % 8 == 0 and q.shape[-1] <= 256


def attend(q, k, v, packed, causal):
    """Attention within each document. q, k, v (T, H, hd) -> (T, H, hd)"""
    ends, longest = packed.ends, packed.longest
    if flash(q):
        window = (-1, 0) if causal else (-1, -1)
        return varlen_attn(q, k, v, ends, ends, longest, longest, window_size=window)
    return attend_one_by_one(q, k, v, ends, causal)


@torch.compiler.disable                             # the lengths differ in every step
def attend_one_by_one(q, k, v, ends, causal):
    """The same where there is no flash attention: on a CPU faster than padding to the longest."""
    lengths = ends.diff().tolist()
    rows = [x.transpose(0, 1)[None].split(lengths, 2) for x in (q, k, v)]       # (1, H, n, hd) each
    out = [F.scaled_dot_product_attention(*qkv, is_causal=causal) for qkv in zip(*rows)]
    return torch.cat(out, 2)[0].transpose(0, 1)


def rotate(x, cos, sin):
    """Rotary position embedding: x (T, H, hd); cos, sin (T, 1, hd / 2), in float32"""
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1).to(x.dtype)


def angles(pos, hd, theta):
    """cos and sin (T, 1, hd / 2) of pos * theta^(-2i / hd)"""
    frequencies = theta ** (-torch.arange(0, hd, 2, device=pos.device) / hd)
    angle = pos[:, None, None] * frequencies
    return angle.cos(), angle.sin()


def angles_of_images(pos, hd, theta, shape):
    """The same for pixels: half of the frequencies turn with the row, half with the column."""
    _, width, channels = shape
    pixel = pos // channels
    row, column = angles(pixel // width, hd // 2, theta), angles(pixel % width, hd // 2, theta)
    return torch.cat([row[0], column[0]], -1), torch.cat([row[1], column[1]], -1)


# -----------------------------------------------------------------------------
# the transformer

class ZeroLinear(nn.Linear):
    """Starts at zero, so that a new block is the identity: the "zero" of adaLN-zero."""
    def reset_parameters(self):
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)


class Block(nn.Module):
    def __init__(self, c):
        super().__init__()
        d = c.n_embd
        self.hd, self.causal = d // c.n_head, c.causal
        self.norm1 = nn.LayerNorm(d, bias=False)
        self.q = nn.Linear(d, d, bias=False)
        self.k = nn.Linear(d, d, bias=False)
        self.v = nn.Linear(d, d, bias=False)
        self.out = nn.Linear(d, d, bias=False)
        self.norm2 = nn.LayerNorm(d, bias=False)
        self.mlp = nn.Sequential(nn.Linear(d, 4 * d), nn.GELU(), nn.Linear(4 * d, d))
        self.adaln = None if c.causal else ZeroLinear(c.n_cond, 6 * d)
        self.dropout = nn.Dropout(c.dropout)

    def attention(self, x, cos, sin, packed):
        layers = self.q, self.k, self.v
        q, k, v = (layer(x).unflatten(-1, (-1, self.hd)) for layer in layers)   # (T, H, hd)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        return self.out(attend(q, k, v, packed, self.causal).flatten(1))

    def forward(self, x, cond, cos, sin, packed):
        if self.causal:                             # no time, no modulation: a GPT
            x = x + self.dropout(self.attention(self.norm1(x), cos, sin, packed))
            return x + self.dropout(self.mlp(self.norm2(x)))
        modulation = F.embedding(packed.doc, self.adaln(cond))              # (T, 6d)
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation.chunk(6, -1)
        h = self.norm1(x) * (1 + scale1) + shift1
        x = x + gate1 * self.dropout(self.attention(h, cos, sin, packed))
        h = self.norm2(x) * (1 + scale2) + shift2
        return x + gate2 * self.dropout(self.mlp(h))


def wave(x):
    """(B,) -> (B, 256): sines and cosines of 128 frequencies from 1 down to 1e-4"""
    power = torch.arange(128, device=x.device, dtype=x.dtype) / 128
    angle = x[:, None] * torch.exp(-math.log(10000) * power)
    return torch.cat([angle.cos(), angle.sin()], 1)


class GapHead(nn.Module):
    """log g of every slot's left gap, in float32. It starts at g = 1/e for every gap. It also sees
    the number of slots, which attention cannot count easily: how many are missing depends on how
    many are there."""

    def __init__(self, n_embd, n_cond):
        super().__init__()
        self.norm = nn.LayerNorm(n_embd, bias=False)
        self.count = nn.Linear(256, n_cond)
        self.adaln = ZeroLinear(n_cond, 2 * n_embd)
        self.up = nn.Linear(n_embd, n_embd)
        self.down = nn.Linear(n_embd, 1)

    def start(self):
        nn.init.normal_(self.down.weight, std=1e-3)
        nn.init.constant_(self.down.bias, -1.0)

    def forward(self, x, cond, packed):
        """x (T, d), cond (B, n_cond) -> (T,)"""
        dtype = self.down.weight.dtype
        with torch.autocast(x.device.type, enabled=False):
            slots = packed.ends.diff().to(dtype)                            # (B,)
            cond = F.silu(cond.to(dtype) + self.count(wave(slots)))
            shift, scale = F.embedding(packed.doc, self.adaln(cond)).chunk(2, -1)
            h = self.norm(x.to(dtype)) * (1 + scale) + shift
            return self.down(F.gelu(self.up(h)))[:, 0].clamp(-15, 15)


class Network(nn.Module):
    """What every network here does with a question. A subclass has: config, code, embed, head, gap
    (None: nothing is inserted), and trunk(packed, alpha) -> what the head reads (M, d), log g (T,)
    or None."""
    base = None                                     # the pretrained model's folder, under adapters
    never = ()                                      # tokens that are never sampled

    def forward(self, y, n, t, at, given=None):
        B, L, _ = y.shape
        device = self.head.weight.device
        packed = pack(y, n, at, given, self.code.pad, self.gap is not None, self.config.causal)
        packed = packed.to(device)
        precision = torch.promote_types(self.head.weight.dtype, torch.float32)
        alpha = interpolant.schedule(self.config.insertion).at(t).to(precision)     # (B,)
        alpha = move(alpha, device)
        h, log_g = self.trunk(packed, alpha)
        logits = self.head(h)                                               # (M, V)
        if self.never and not self.training:
            logits = logits.index_fill(1, torch.tensor(self.never, device=device), -torch.inf)
        if log_g is not None:
            log_g = log_g.new_zeros(B, L + 1).index_put((packed.doc, packed.pos), log_g)
        return logits, log_g

    def count(self):
        """parameters: all, and all but the embedding and the vocabulary projection"""
        total = sum(p.numel() for p in self.parameters())
        return total, total - self.embed.weight.numel() - self.head.weight.numel()


def pick_device(name):
    """'auto' -> cuda where there is one, mps, or cpu"""
    if name == "auto":
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError):
        raise Fail(f"--device {name}: there is no such device here; use --device cpu") from None
    return name


class Transformer(Network):
    """Raises ValueError for sizes that do not fit each other."""

    def __init__(self, config, permutation=None):
        super().__init__()
        c = self.config = config
        if c.n_head < 1 or c.n_embd % (2 * c.n_head):
            raise ValueError(f"n_embd {c.n_embd} must be an even multiple of n_head {c.n_head}")
        if c.ell < 1 or c.n_embd % c.ell:
            raise ValueError(f"n_embd {c.n_embd} must be a multiple of ell {c.ell}, the digits")
        if c.shape and math.prod(c.shape) != c.block_size:
            raise ValueError(f"images of {c.shape} are not block_size {c.block_size} numbers")
        if c.shape and c.n_embd % (4 * c.n_head):
            raise ValueError(f"n_embd {c.n_embd} must be a multiple of 4 n_head for images: its "
                             "heads turn with rows and columns")
        self.code = Code(c.V, c.ell, permutation)
        self.embed = nn.Embedding(self.code.b + 2, c.n_embd // c.ell)     # the digits, mask and pad
        self.given = nn.Parameter(torch.zeros(c.n_embd))                    # added to given slots
        if c.shape:                                 # red, green, blue
            self.channel = nn.Parameter(torch.zeros(c.shape[2], c.n_embd))
        self.blocks = nn.ModuleList(Block(c) for _ in range(c.n_layer))
        self.norm = nn.LayerNorm(c.n_embd, bias=False)
        self.head = nn.Linear(c.n_embd, c.V, bias=False)
        self.time = self.adaln = self.gap = None
        if not c.causal:
            self.time = nn.Sequential(nn.Linear(256, c.n_cond), nn.SiLU(),
                                      nn.Linear(c.n_cond, c.n_cond), nn.SiLU())
            self.adaln = ZeroLinear(c.n_cond, 2 * c.n_embd)
            if c.insertion != "instant":
                self.gap = GapHead(c.n_embd, c.n_cond)
        self.checkpointing = False      # recompute blocks in the backward pass: less memory
        self.start()

    def start(self):
        """Standard deviation 1 / sqrt(inputs); embeddings 1; gates 0 (every block starts as the
        identity). Queries start at 0, so that a head first looks at all slots alike, as counting
        needs: from random queries small models never learnt it. The token head starts small, not at
        0 as in the paper: from 0 small models sit at unigram predictions for hundreds of steps."""
        for m in self.modules():
            if isinstance(m, nn.Linear) and not isinstance(m, ZeroLinear):
                nn.init.normal_(m.weight, std=m.in_features ** -0.5)
                if m.bias is not None:
                    nn.init.zeros_(m.bias)
        for block in self.blocks:
            nn.init.zeros_(block.q.weight)
        nn.init.normal_(self.embed.weight)
        nn.init.normal_(self.head.weight, std=0.02)
        if self.gap is not None:
            self.gap.start()

    def trunk(self, packed, alpha):
        """Packed, alpha (B,) -> what the token head reads (M, d), log g (T,). This is compiled."""
        c = self.config
        hd = c.n_embd // c.n_head
        if c.shape:
            cos, sin = angles_of_images(packed.pos, hd, c.rope_theta, c.shape)
        else:
            cos, sin = angles(packed.pos, hd, c.rope_theta)
        cond = None if self.time is None else self.time(wave(1000 * alpha)) # (B, n_cond)
        x = self.embed(packed.y).flatten(1)                              # (T, d): a share per digit
        x = x + packed.given * self.given
        if c.shape:
            x = x + self.channel[packed.pos % c.shape[2]]
        for block in self.blocks:
            if self.checkpointing and self.training:
                x = checkpoint(block, x, cond, cos, sin, packed, use_reentrant=False)
            else:
                x = block(x, cond, cos, sin, packed)
        h = self.norm(x[packed.asked])                                      # (M, d)
        if self.adaln is not None:
            shift, scale = F.embedding(packed.doc[packed.asked], self.adaln(cond)).chunk(2, -1)
            h = h * (1 + scale) + shift
        return h, None if self.gap is None else self.gap(x, cond, packed)
