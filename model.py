"""The transformer: x_t in, two answers out, and not a cycle spent on padding.

A DiT (adaLN-zero on alpha(t), RoPE, SDPA) over the slots of x_t, with two heads: token logits for the slots that are asked for, and log g,
the log of the expected number of missing tokens, for every gap. One extra slot at the end of each document (it carries the symbol `pad`)
answers for its last gap. The options of Config also cover a Llama-like block (RMSNorm, SwiGLU, grouped-query attention), which is what
llada.py loads pretrained weights into, and `causal`, the autoregressive baseline.

Documents have different lengths, so they are *packed*: all slots of the batch stand in one row of T slots, every matrix product sees
(T, d), and attention runs per document: torch's varlen flash kernel on CUDA; elsewhere SDPA on groups of documents of similar length.
The vocabulary projection runs on the asked slots only.

One worked number: 768 wide, 12 layers, 12 heads, V = 50257, ell = 1 has 170.4M parameters (the paper's OpenWebText model: 170.4M).

    python model.py out/ckpt.pt                       # what is in a checkpoint
    python model.py export out/ckpt.pt DIR            # as safetensors, adapters merged; train.py --init_from DIR goes on from it
"""
import contextlib
import errno
import hashlib
import math
import os
import pickle
import struct
import sys
import zipfile
from dataclasses import asdict, dataclass, fields
from typing import NamedTuple

import torch
import torch.nn as nn
import torch.nn.functional as F

import interpolant
import prime
from common import Fail, aside, main
from rates import Deferred

try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:                                                    # an older torch: SDPA on groups of documents
    varlen_attn = None


@dataclass
class Config:
    V: int                           # tokens
    ell: int = 1                     # digits per token
    block_size: int = 64             # the most slots of a document
    insertion: str = "linear"        # the schedule alpha whose value conditions the network; `instant`: a fixed canvas, no gap head
    n_layer: int = 6
    n_head: int = 4
    n_kv_head: int = 0               # 0: as many as n_head
    n_embd: int = 256
    n_hidden: int = 0                # width of the MLP; 0: 4 * n_embd
    n_cond: int = 128                # width of the conditioning on alpha(t)
    dropout: float = 0.0
    causal: bool = False             # autoregressive: slot i is answered from the slots before it
    norm: str = "layer"              # layer | rms
    norm_eps: float = 1e-5
    mlp: str = "gelu"                # gelu | swiglu
    rope_theta: float = 10000.0
    adaln: int = 1                   # blocks that share one modulation: 1 = adaLN-zero in every block; 8 = LLaDA retrofit; 0 = none

    @property
    def gaps(self):
        return self.insertion != "instant" and not self.causal


# ---- packing: which slots exist, and where -------------------------------------------------------------------------------------------

class Packed(NamedTuple):
    """The slots of a batch in one row of T = sum(n) (+ B end slots), and where each answer is found. All integer tensors."""
    y: torch.Tensor              # (T, ell) digits
    doc: torch.Tensor            # (T,) the document that a slot belongs to
    pos: torch.Tensor            # (T,) its place in it
    cu: torch.Tensor             # (B + 1,) int32: where documents begin
    picks: torch.Tensor          # (M,) the slots whose logits are asked for, row-major
    groups: tuple                # for attention without varlen: (index (G, longest), key mask or None) of documents of similar length
    back: torch.Tensor           # (T,) where each slot stands in the groups' concatenation

    def to(self, device):
        move = lambda x: x.to(device, non_blocking=True) if isinstance(x, torch.Tensor) else x
        return Packed(*(tuple((move(i), move(m)) for i, m in x) if isinstance(x, tuple) else move(x) for x in self))


def pack(y, n, at, pad, end_slot, causal=False, grouped=True):
    """y (B, L, ell), n (B,), at (B, L) -> Packed. end_slot: give each document one more slot with the symbol `pad`."""
    B, L, ell = y.shape
    symbols = torch.cat([y, y.new_full((B, 1, ell), pad)], 1)                                  # (B, L + 1, ell)
    if end_slot:
        symbols = symbols.scatter(1, n[:, None, None].expand(-1, 1, ell), pad)
    if causal:                                                                                 # slot i sees the digits of slot i - 1
        symbols = symbols.roll(1, 1)
        symbols[:, 0] = pad
    length = n + 1 if end_slot else n
    doc, pos = interpolant.below(length, L + 1).nonzero(as_tuple=True)
    start = length.cumsum(0) - length
    row, slot = at.nonzero(as_tuple=True)
    groups, back = group(length.tolist(), y.device) if grouped else ((), pos)
    return Packed(symbols[doc, pos], doc, pos, F.pad(length.cumsum(0), (1, 0)).int(), start[row] + slot, groups, back)


def group(lengths, device):
    """Cut the documents, sorted by length, into groups where padding is cheap: (index, key mask) each, and the way back.

    A new group starts where the next document is under 3/4 as long as the group's longest, if that one is over 16 slots.
    """
    length = torch.tensor(lengths)
    start = length.cumsum(0) - length
    by_length = length.argsort(descending=True, stable=True)
    sizes, cuts = length[by_length].tolist(), [0]
    for i, size in enumerate(sizes):
        if size < 0.75 * sizes[cuts[-1]] and sizes[cuts[-1]] > 16:
            cuts.append(i)
    groups, back, base = [], torch.empty(int(length.sum()), dtype=torch.int64), 0
    for a, z in zip(cuts, cuts[1:] + [len(sizes)]):
        docs, longest = by_length[a:z], sizes[a]
        if longest == 0:
            break
        inside = interpolant.below(length[docs], longest)                                      # (G, longest)
        index = start[docs][:, None] + torch.arange(longest)
        back[index[inside]] = base + inside.flatten().nonzero()[:, 0]
        base += inside.numel()
        groups.append((torch.where(inside, index, 0).to(device), None if inside.all() else inside[:, None, None].to(device)))
    return tuple(groups), back.to(device)


def attend(q, k, v, packed, longest, causal):
    """Attention within each document: q, k, v (T, H, hd) -> (T, H, hd)."""
    if not packed.groups:
        return varlen_attn(q, k, v, packed.cu, packed.cu, longest, longest, window_size=(-1, 0) if causal else (-1, -1))
    out = []
    for index, keys in packed.groups:                          # F.embedding: a row gather whose backward pass is not atomic adds
        qg, kg, vg = (F.embedding(index, x.flatten(1)).unflatten(2, x.shape[1:]).transpose(1, 2) for x in (q, k, v))  # (G, H, longest, hd)
        mask = None if causal else keys                        # causal: the pads come last, so no real slot sees them
        o = F.scaled_dot_product_attention(qg, kg, vg, attn_mask=mask, is_causal=causal)
        out.append(o.transpose(1, 2).flatten(0, 1).flatten(1))                                 # (G * longest, H * hd)
    out = out[0] if len(out) == 1 else torch.cat(out)
    return F.embedding(packed.back, out).unflatten(1, q.shape[1:])


# ---- the network ---------------------------------------------------------------------------------------------------------------------

class Norm(nn.Module):
    """LayerNorm or RMSNorm with a weight and no bias, in float32."""

    def __init__(self, width, config):
        super().__init__()
        self.weight, self.rms, self.eps = nn.Parameter(torch.ones(width)), config.norm == "rms", config.norm_eps

    def forward(self, x):
        high = x if x.dtype == torch.float64 else x.float()
        if not self.rms:
            return F.layer_norm(high, high.shape[-1:], self.weight.to(high.dtype), eps=self.eps).to(x.dtype)
        return (high * torch.rsqrt(high.pow(2).mean(-1, keepdim=True) + self.eps)).to(x.dtype) * self.weight


def modulate(x, shift, scale):
    return x * (1 + scale) + shift


def rotate(x, cos, sin):
    """RoPE, rotate-half form: x (T, H, hd), cos and sin (T, 1, hd / 2)."""
    a, b = (x if x.dtype == torch.float64 else x.float()).chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1).to(x.dtype)


class Block(nn.Module):
    def __init__(self, c):
        super().__init__()
        hidden = c.n_hidden or 4 * c.n_embd
        self.heads, self.kv_heads, self.hd = c.n_head, c.n_kv_head or c.n_head, c.n_embd // c.n_head
        self.norm1, self.norm2 = Norm(c.n_embd, c), Norm(c.n_embd, c)
        self.q = nn.Linear(c.n_embd, self.heads * self.hd, bias=False)
        self.k = nn.Linear(c.n_embd, self.kv_heads * self.hd, bias=False)
        self.v = nn.Linear(c.n_embd, self.kv_heads * self.hd, bias=False)
        self.out = nn.Linear(self.heads * self.hd, c.n_embd, bias=False)
        self.up = nn.Linear(c.n_embd, hidden, bias=c.mlp == "gelu")
        self.gate = nn.Linear(c.n_embd, hidden, bias=False) if c.mlp == "swiglu" else None
        self.down = nn.Linear(hidden, c.n_embd, bias=c.mlp == "gelu")
        self.adaln = ZeroLinear(c.n_cond, 6 * c.n_embd) if c.adaln == 1 else None
        self.dropout, self.causal, self.longest = c.dropout, c.causal, c.block_size + 1

    def mlp(self, h):
        if self.gate is not None:
            return self.down(F.silu(self.gate(h)) * self.up(h))
        return self.down(F.gelu(self.up(h)))

    def attention(self, h, cos, sin, packed):
        q, k, v = (f(h).unflatten(-1, (-1, self.hd)) for f in (self.q, self.k, self.v))        # (T, H, hd)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        if self.kv_heads < self.heads:
            k, v = (x.repeat_interleave(self.heads // self.kv_heads, 1) for x in (k, v))
        return self.out(attend(q, k, v, packed, self.longest, self.causal).flatten(1))

    def forward(self, x, cond, cos, sin, packed):
        """x (T, d). cond: (B, n_cond) for adaLN-zero; or (B, 2 d), a (shift, scale) shared with other blocks; or None."""
        drop = lambda h: F.dropout(h, self.dropout, self.training)
        if self.adaln is not None:
            s1, m1, g1, s2, m2, g2 = F.embedding(packed.doc, self.adaln(cond)).chunk(6, -1)                # (T, d) each
            x = x + g1 * drop(self.attention(modulate(self.norm1(x), s1, m1), cos, sin, packed))
            return x + g2 * drop(self.mlp(modulate(self.norm2(x), s2, m2)))
        shift, scale = (0, 0) if cond is None else F.embedding(packed.doc, cond).chunk(2, -1)
        x = x + drop(self.attention(modulate(self.norm1(x), shift, scale), cos, sin, packed))
        return x + drop(self.mlp(modulate(self.norm2(x), shift, scale)))


class ZeroLinear(nn.Linear):
    """A Linear that starts at zero: the "zero" of adaLN-zero."""

    def reset_parameters(self):
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)


def wave(x):
    """(B,) -> (B, 256): a sinusoid of 128 frequencies from 1 down to 1e-4."""
    angle = x[:, None] * torch.exp(-math.log(10000) * torch.arange(128, device=x.device, dtype=x.dtype) / 128)
    return torch.cat([angle.cos(), angle.sin()], 1)


class TimeEmbedding(nn.Module):
    """alpha(t) in [0, 1] -> (B, width): a sinusoid, then a two-layer MLP."""

    def __init__(self, width):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())

    def forward(self, a):
        return self.mlp(wave(1000 * a).to(self.mlp[0].weight.dtype))


class GapHead(nn.Module):
    """log g for every slot's left gap, in float32: LayerNorm, a hidden layer, one number in [-15, 15]. Starts at g = e^-1 per gap.

    It also sees the number of slots, which rotary attention cannot count easily, and without which nobody knows how many are missing.
    """

    def __init__(self, c):
        super().__init__()
        self.norm, self.up, self.down = Norm(c.n_embd, c), nn.Linear(c.n_embd, c.n_embd), nn.Linear(c.n_embd, 1)
        self.adaln = ZeroLinear(c.n_cond, 2 * c.n_embd) if c.adaln else None
        self.count = nn.Linear(256, c.n_cond) if c.adaln else None

    def forward(self, x, cond, doc, slots):
        with torch.autocast(x.device.type, enabled=False):
            x = x if x.dtype == torch.float64 else x.float()
            w = lambda layer, h: F.linear(h, layer.weight.to(h.dtype), layer.bias.to(h.dtype))
            h = self.norm(x)
            if self.adaln is not None:
                cond = F.silu(cond.to(x.dtype) + w(self.count, wave(slots.to(x.dtype))))
                h = modulate(h, *F.embedding(doc, w(self.adaln, cond)).chunk(2, -1))
            return w(self.down, F.gelu(w(self.up, h)))[:, 0].clamp(-15, 15)


class Transformer(nn.Module):
    """model(y, n, t, at) is the `predict` of the whole project: (logits (M, V), log_g (B, L + 1) or None)."""

    def __init__(self, config):
        super().__init__()
        c = self.config = config
        self.schedule = interpolant.schedule(c.insertion)
        self.code = prime.Code(c.V, c.ell)             # replaced by load() where there is a permutation
        self.defer = 0                                 # > 0: answer with Deferred logits, this many slots at a time (training on a GPU)
        self.embed = nn.Embedding(self.code.b + 2, c.n_embd // c.ell)
        self.time = TimeEmbedding(c.n_cond) if c.adaln else None
        self.blocks = nn.ModuleList(Block(c) for _ in range(c.n_layer))
        self.shared = nn.ModuleList(ZeroLinear(c.n_cond, 2 * c.n_embd) for _ in range(-(-c.n_layer // c.adaln))) if c.adaln > 1 else None
        self.norm = Norm(c.n_embd, c)
        self.adaln = ZeroLinear(c.n_cond, 2 * c.n_embd) if c.adaln == 1 else None
        self.head = nn.Linear(c.n_embd, c.V, bias=False)
        self.gap = GapHead(c) if c.gaps else None
        self.base = None                               # the folder of a pretrained model that stands still under its adapters (llada.retrofit)
        self.never = []                                # tokens that no answer gives a chance, outside training
        self.checkpoint = False                        # recompute each block in the backward pass: memory for a third more time
        self.trunk = self._trunk                       # train.py compiles this one
        self.init()

    def init(self):
        """Weights of standard deviation 1 / sqrt(inputs), embeddings of 1, gates of zero (adaLN-zero: every block starts as the identity).

        Queries start at zero: a head first looks at all slots alike, that is, it counts. From random queries small models never learnt to.
        The head starts small, not at zero as in the paper: from zero, small models sit at unigram predictions for hundreds of steps.
        """
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
            nn.init.normal_(self.gap.down.weight, std=1e-3)
            nn.init.constant_(self.gap.down.bias, -1.0)

    @property
    def device(self):
        return self.embed.weight.device

    def _trunk(self, packed, a):
        """Packed, alpha (B,) -> hidden states (T, d), modulated final states for the token head, log g (T,) or None."""
        c = self.config
        x = self.embed(packed.y).flatten(1)                                                    # (T, d)
        freq = c.rope_theta ** (-torch.arange(0, c.n_embd // c.n_head, 2, device=x.device, dtype=torch.float32) / (c.n_embd // c.n_head))
        angle = packed.pos[:, None, None] * freq
        cos, sin = angle.cos(), angle.sin()                                                    # (T, 1, hd / 2)
        cond = self.time(a) if self.time is not None else None
        for i, block in enumerate(self.blocks):
            given = self.shared[i // c.adaln](cond).to(x.dtype) if self.shared is not None else cond
            if self.checkpoint and self.training:
                x = torch.utils.checkpoint.checkpoint(block, x, given, cos, sin, packed, use_reentrant=False)
            else:
                x = block(x, given, cos, sin, packed)
        log_g = self.gap(x, cond, packed.doc, packed.cu.diff()) if self.gap is not None else None
        h = self.norm(x.index_select(0, packed.picks))
        if self.adaln is not None:
            h = modulate(h, *F.embedding(packed.doc[packed.picks], self.adaln(cond)).chunk(2, -1))
        return h, log_g

    def forward(self, y, n, t, at):
        """y (B, L, ell), n (B,), t (B,), at (B, L) bool, on any device -> answers on the model's. See DESIGN: the predict seam."""
        B, L, _ = y.shape
        device = self.device
        varlen = varlen_attn is not None and device.type == "cuda" and (torch.is_autocast_enabled("cuda") or self.embed.weight.dtype.itemsize == 2)
        packed = pack(y, n, at, self.code.pad, self.gap is not None, self.config.causal, grouped=not varlen).to(device)
        a = self.schedule.at(t).to(device, self.embed.weight.dtype if self.embed.weight.dtype == torch.float64 else torch.float32)
        if len(packed.y) == 0:                                                                 # no slot at all: nothing to run
            return torch.zeros(0, self.config.V, device=device), None
        h, gap = self.trunk(packed, a)
        logits = Deferred(h, self.head, self.defer) if self.defer else self.head(h)
        if self.never and not self.training:
            logits = logits.index_fill(1, torch.tensor(self.never, device=device), -math.inf)
        if gap is None:
            return logits, None
        log_g = gap.new_zeros(B, L + 1).index_put((packed.doc, packed.pos), gap)
        return logits, log_g

    def trained(self):
        """What training changes, {name: parameter}: everything, or adapters and what is new beside a pretrained model that stands still."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    def count(self):
        """Parameters: (all, without the embedding and the vocabulary projection)."""
        total = sum(p.numel() for p in self.parameters())
        return total, total - self.embed.weight.numel() - self.head.weight.numel()


# ---- checkpoints ---------------------------------------------------------------------------------------------------------------------

FORMAT = 1                       # raised when an older reader could no longer make sense of a checkpoint


def save(path, **content):
    """Write a checkpoint, one dict, with a checksum: written aside, flushed, renamed, so the last good one survives anything.

    The file is torch's own zip; the SHA-256 of all that stands before it is the zip's comment.
    """
    with aside(path, "w+b") as f:
        try:
            torch.save({"format": FORMAT, **content}, f)
        except RuntimeError as e:                                      # how torch's writer says that not all bytes could be written
            raise OSError(errno.ENOSPC, str(e).splitlines()[0], str(path)) from None
        f.flush()
        size = f.seek(0, os.SEEK_END)
        f.seek(0)
        digest = digest_of(f, size - 2)                                # the last two bytes of a zip: the length of its comment
        f.seek(size - 2)
        f.write(struct.pack("<H", len(digest)) + digest)


def digest_of(f, size):
    sha = hashlib.sha256()
    while size > 0:
        block = f.read(min(size, 1 << 24))
        if not block:
            break
        sha.update(block)
        size -= len(block)
    return sha.hexdigest().encode()


def read(path, device="cpu"):
    """A checkpoint's dict, verified. Raises Fail, one sentence, for a file that is missing, damaged, from the future, or carries code."""
    try:
        with open(path, "rb") as f:
            size = f.seek(0, os.SEEK_END)
            f.seek(0)
            if f.read(4) != b"PK\x03\x04":
                raise Fail(f"{path} is not a checkpoint of this project (or its beginning is damaged)")
            f.seek(0)
            digest = digest_of(f, size - 66)
            if f.read(2) != struct.pack("<H", 64) or f.read() != digest:
                raise Fail(f"{path} is damaged (its checksum does not match, or it was cut short): restore it, or use an older checkpoint")
        content = torch.load(path, map_location=device, weights_only=True)
    except FileNotFoundError:
        raise Fail(f"there is no checkpoint {path}: train one with python train.py, or name another with --out_dir") from None
    except (IsADirectoryError, PermissionError) as e:
        raise Fail(f"cannot read the checkpoint {path}: {e.strerror}") from None
    except pickle.UnpicklingError:
        raise Fail(f"{path} carries code, which is never run: it is not a checkpoint of this project") from None
    except (RuntimeError, ValueError, EOFError, KeyError, zipfile.BadZipFile, OSError) as e:
        raise Fail(f"{path} cannot be read as a checkpoint ({str(e).splitlines()[0]})") from None
    if not isinstance(content, dict) or not isinstance(content.get("format"), int):
        raise Fail(f"{path} is not a checkpoint of this project")
    if content["format"] > FORMAT:
        raise Fail(f"{path} is of format {content['format']}, this version reads up to {FORMAT}: update the code")
    return content


def checkpoints(out_dir):
    """The checkpoints in out_dir, newest first: ckpt.pt, then ckpt-STEP.pt by falling step."""
    older = sorted((f for f in os.listdir(out_dir) if f.startswith("ckpt-") and f.endswith(".pt") and f[5:-3].isdigit()),
                   key=lambda f: -int(f[5:-3])) if os.path.isdir(out_dir) else []
    return [os.path.join(out_dir, f) for f in ["ckpt.pt"] * os.path.exists(os.path.join(out_dir, "ckpt.pt")) + older]


def save_checkpoint(out_dir, step, last_step, keep, **content):
    """Write ckpt.pt; what it replaces becomes ckpt-STEP.pt, and all but the newest `keep` are removed."""
    newest = os.path.join(out_dir, "ckpt.pt")
    if keep > 1 and last_step is not None and last_step != step and os.path.exists(newest):
        kept = os.path.join(out_dir, f"ckpt-{last_step:08d}.pt")
        with contextlib.suppress(FileExistsError):
            os.link(newest, kept)
    save(newest, step=step, **content)
    for path in checkpoints(out_dir)[max(keep, 1):]:
        os.unlink(path)


def newest_good(out_dir, say):
    """The newest checkpoint that can be read. Raises Fail where there is none."""
    faults = []
    for path in checkpoints(out_dir):
        try:
            content = read(path)
        except Fail as e:
            faults.append(str(e))
            say(f"warning: {e}")
            continue
        if faults:
            say(f"warning: going on from the older {path}, step {content['step']}")
        return content
    raise Fail(faults[-1] if faults else f"there is no checkpoint in {out_dir} to resume: train without --init_from first")


class Loaded:
    """A model ready to be asked: .predict, .code, .config (model.Config), .run (the flags it was trained with), .tokenizer, .step, .model."""

    def __init__(self, model, content):
        self.model, self.code, self.config = model.eval().requires_grad_(False), model.code, model.config
        self.run, self.tokenizer, self.step = content.get("run", {}), content.get("tokenizer"), content.get("step", 0)

    @torch.no_grad()
    def predict(self, y, n, t, at):
        device = self.model.device
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda" and self.model.embed.weight.dtype == torch.float32):
            return self.model(y, n, t, at)


def build(config, permutation=None):
    """Config (or the dict of one, as a checkpoint holds it) -> Transformer."""
    if isinstance(config, dict):
        known = {f.name for f in fields(Config)}
        if not set(config) <= known:
            raise Fail(f"the checkpoint has options that this version does not know: {', '.join(sorted(set(config) - known))}; update the code")
        config = Config(**config)
    try:
        code = prime.Code(config.V, config.ell, permutation)
        interpolant.schedule(config.insertion)
    except ValueError as e:
        raise Fail(str(e)) from None
    if config.n_head < 1 or config.n_embd < 1 or config.n_embd % config.n_head or config.n_embd // config.n_head % 2:
        raise Fail(f"--n_embd {config.n_embd} must be an even multiple of --n_head {config.n_head}")
    if config.n_embd % config.ell:
        raise Fail(f"--ell {config.ell} must divide --n_embd {config.n_embd}: each digit gets n_embd / ell columns of the embedding")
    if config.block_size < 2:
        raise Fail(f"--block_size {config.block_size} must be at least 2")
    model = Transformer(config)
    model.code = code
    return model


def assemble(content):
    """The network that a checkpoint describes, without its weights: new, or for adapters the pretrained model under them."""
    if content.get("base"):
        import llada                                                   # only here: llada.py imports this file
        config = content["config"]
        return llada.retrofit(content["base"], config["insertion"], config["block_size"], content["lora"])
    return build(content["config"], content.get("permutation"))


def load(path, device="cpu", ema=True):
    """Any checkpoint of this project -> Loaded, with its averaged (EMA) weights unless there are none."""
    content = read(path)
    try:
        model = assemble(content)
        weights = content["ema"] if ema and content.get("ema") else content["model"]
        if content.get("base") and set(weights) != set(model.trained()):
            raise Fail(f"{path} has adapters that do not fit {content['base']}")
        model.load_state_dict(weights, strict=not content.get("base"))
    except (KeyError, TypeError, RuntimeError, ValueError) as e:
        raise Fail(f"{path} does not fit its own description ({str(e).splitlines()[0]})") from None
    return Loaded(model.to(device), content)


def pick_device(name="auto"):
    """'auto' -> cuda where there is one, mps, or cpu. One sentence for a device that is not there."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError):
        raise Fail(f"--device {name}: there is no such device here; use --device cpu") from None
    return name


def command():
    words = sys.argv[1:]
    if len(words) == 3 and words[0] == "export":
        import llada
        loaded = load(words[1])
        import data
        llada.export(loaded.model, words[2], data.tokenizer_from(loaded.tokenizer).eot if loaded.tokenizer else None)
        print(f"{words[2]}/: config.json, model.safetensors ({loaded.model.count()[0] / 1e6:.2f}M parameters, adapters merged)")
        return
    if len(words) != 1 or words[0].startswith("-"):
        print(__doc__)
        return
    content = read(words[0])
    model = assemble(content)
    print(f"{words[0]}: step {content.get('step')}, {model.count()[0] / 1e6:.2f}M parameters, sha256 verified")
    for key, value in {**content.get("run", {}), **asdict(model.config)}.items():
        print(f"  {key} = {value}")


if __name__ == "__main__":
    main(command)
