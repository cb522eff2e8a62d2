"""LLaDA (arXiv 2502.09992), a masked diffusion model of 8 billion weights, opened without any
framework, and its retrofit to a FlexMDM (arXiv 2509.01025, section 5), which also inserts.

    net = load("LLaDA-8B-Base")                                 # LLaDA itself, in the files' dtype
    net = retrofit("LLaDA-8B-Base", "linear", lora=128)         # .. with what training adds

Training adds: a gap head, a time embedding, one scale and shift for every 8 blocks, a vector for
given slots, and low-rank adapters on q, k, v and the vocabulary projection. What could change the
token logits starts at zero: they are LLaDA's, for the text with its end token in the extra slot.
Only what is new is trained and saved, so a checkpoint needs the folder again (or export.py). The
adapters of rank 128 are 117M numbers beside 8.0 billion that are frozen:
32 blocks * 3 * 128 * (4096 + 4096) + 128 * (4096 + 126464).
"""
import math
import os
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

import model
from common import Fail
from model import GapHead, ZeroLinear, angles, attend, rotate, wave
from prime import Code
from retrofit import safetensors

GROUP = 8               # blocks that share one scale and shift


@dataclass
class Config:
    V: int
    block_size: int
    n_layer: int
    n_head: int
    n_kv_head: int                      # below n_head: grouped-query attention
    n_embd: int
    n_hidden: int                       # width of the MLP
    rope_theta: float
    norm_eps: float
    insertion: str = "instant"          # LLaDA itself never inserts
    ell: int = 1
    causal: bool = False
    shape = ()                          # no images


# -----------------------------------------------------------------------------
# the network

class Block(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.hd = c.n_embd // c.n_head
        self.copies = c.n_head // c.n_kv_head       # query heads per key and value head
        self.norm1 = nn.RMSNorm(c.n_embd, c.norm_eps)
        self.q = nn.Linear(c.n_embd, c.n_embd, bias=False)
        self.k = nn.Linear(c.n_embd, c.n_kv_head * self.hd, bias=False)
        self.v = nn.Linear(c.n_embd, c.n_kv_head * self.hd, bias=False)
        self.out = nn.Linear(c.n_embd, c.n_embd, bias=False)
        self.norm2 = nn.RMSNorm(c.n_embd, c.norm_eps)
        self.gate = nn.Linear(c.n_embd, c.n_hidden, bias=False)
        self.up = nn.Linear(c.n_embd, c.n_hidden, bias=False)
        self.down = nn.Linear(c.n_hidden, c.n_embd, bias=False)

    def attention(self, x, cos, sin, packed):
        q, k, v = (f(x).unflatten(-1, (-1, self.hd)) for f in (self.q, self.k, self.v))
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)                     # (T, H, hd)
        if self.copies > 1:
            k, v = k.repeat_interleave(self.copies, 1), v.repeat_interleave(self.copies, 1)
        return self.out(attend(q, k, v, packed, causal=False).flatten(1))

    def forward(self, x, modulation, cos, sin, packed):
        """x (T, d); modulation (B, 2d), a shift and a scale for both norms' outputs, or None"""
        shift, scale = 0, 0
        if modulation is not None:
            shift, scale = F.embedding(packed.doc, modulation).chunk(2, -1)
        x = x + self.attention(self.norm1(x) * (1 + scale) + shift, cos, sin, packed)
        h = self.norm2(x) * (1 + scale) + shift
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


class Llada(model.Network):
    """LLaDA's own weights have no storage yet (meta device): load() assigns them the files'.

    With config.insertion = "instant" this is LLaDA and nothing else. It has no vector for given
    slots: where masks fall independently of the tokens, it makes no difference which were given."""

    def __init__(self, config):
        super().__init__()
        c = self.config = config
        self.code = Code(c.V, 1)
        with torch.device("meta"):
            self.embed = nn.Embedding(c.V + 2, c.n_embd)                # tokens, mask, pad
            self.blocks = nn.ModuleList(Block(c) for _ in range(c.n_layer))
            self.norm = nn.RMSNorm(c.n_embd, c.norm_eps)
            self.head = nn.Linear(c.n_embd, c.V, bias=False)
        self.gap, d = None, c.n_embd
        if c.insertion != "instant":                # all that is new is float32
            self.time = nn.Sequential(nn.Linear(256, d), nn.SiLU(), nn.Linear(d, d), nn.SiLU())
            self.shared = nn.ModuleList(ZeroLinear(d, 2 * d) for _ in range(0, c.n_layer, GROUP))
            self.given = nn.Parameter(torch.zeros(d))
            self.gap = GapHead(d, d)
            self.gap.start()
        self.checkpointing = False

    def trunk(self, packed, alpha):
        """Packed, alpha (B,) -> what the token head reads (M, d), log g (T,) or None"""
        c = self.config
        cos, sin = angles(packed.pos, c.n_embd // c.n_head, c.rope_theta)
        x = self.embed(packed.y[:, 0])                                      # (T, d)
        inserts, modulation = self.gap is not None, None
        if inserts:
            cond = self.time(wave(1000 * alpha))                            # (B, d)
            x = x + (packed.given * self.given).to(x.dtype)
        for i, block in enumerate(self.blocks):
            if inserts and i % GROUP == 0:
                modulation = self.shared[i // GROUP](cond).to(x.dtype)      # (B, 2d)
            if self.checkpointing and self.training:
                x = checkpoint(block, x, modulation, cos, sin, packed, use_reentrant=False)
            else:
                x = block(x, modulation, cos, sin, packed)
        log_g = self.gap(x, cond, packed) if inserts else None
        return self.norm(x[packed.asked]), log_g


class LoRA(nn.Module):
    """A frozen weight plus a product of two thin matrices (arXiv 2106.09685): W x + B A x with
    B = 0 at the start, trained in float32. (alpha / r = 1, as in FlexMDM.)"""

    def __init__(self, linear, r):
        super().__init__()
        self.weight = linear.weight
        outputs, inputs = self.weight.shape
        self.a = nn.Parameter(torch.empty(r, inputs, device=self.weight.device))
        self.b = nn.Parameter(torch.zeros(outputs, r, device=self.weight.device))
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))

    def forward(self, x):
        low = F.linear(x, self.a.to(x.dtype))                               # (T, r)
        return F.linear(x, self.weight) + F.linear(low, self.b.to(x.dtype))


def add_lora(net, r):
    """Freeze LLaDA's own weights; give q, k, v of every block and the head an adapter.
    Differs from the authors': no dropout in the adapters."""
    for part in (net.embed, net.blocks, net.norm, net.head):
        part.requires_grad_(False)
    for block in net.blocks:
        block.q, block.k, block.v = LoRA(block.q, r), LoRA(block.k, r), LoRA(block.v, r)
    net.head = LoRA(net.head, r)


def merged(net):
    """{name: tensor}: weights without adapters that compute the same, but for rounding"""
    weights = net.state_dict()
    for name, module in net.named_modules():
        if isinstance(module, LoRA):
            a, b = weights.pop(f"{name}.a"), weights.pop(f"{name}.b")
            w = weights[f"{name}.weight"]
            weights[f"{name}.weight"] = (w.float() + b @ a).to(w.dtype)
    return weights


# -----------------------------------------------------------------------------
# LLaDA's folder

SIZES = {"vocab_size": "V", "max_sequence_length": "block_size", "n_layers": "n_layer",
         "n_heads": "n_head", "n_kv_heads": "n_kv_head", "d_model": "n_embd",
         "mlp_hidden_size": "n_hidden", "rope_theta": "rope_theta", "rms_norm_eps": "norm_eps"}
IMPLEMENTED = {         # values of config.json that the code knows; None: the key may be absent
    "block_type": ["llama"], "activation_type": ["silu"], "layer_norm_type": ["rms"],
    **dict.fromkeys(["rope", "rope_full_precision"], [True, None]),
    **dict.fromkeys(["include_bias", "include_qkv_bias", "weight_tying", "input_emb_norm",
                     "scale_logits", "clip_qkv", "alibi", "rope_scaling"], [False, None]),
}
NAMES = {"wte": "embed", "ln_f": "norm", "ff_out": "head"}          # LLaDA's tensor: our parameter
BLOCK_NAMES = {"attn_norm": "norm1", "q_proj": "q", "k_proj": "k", "v_proj": "v", "attn_out": "out",
               "ff_norm": "norm2", "ff_proj": "gate", "up_proj": "up", "ff_out": "down"}


def names(n_layer):
    """{LLaDA's name of a tensor: ours}"""
    pairs = dict(NAMES)
    for i in range(n_layer):
        pairs |= {f"blocks.{i}.{a}": f"blocks.{i}.{b}" for a, b in BLOCK_NAMES.items()}
    return {f"model.transformer.{a}.weight": f"{b}.weight" for a, b in pairs.items()}


def read_config(folder):
    """config.json of LLaDA -> (Config, its mask token, its pad token). null means absent there."""
    config = safetensors.read_config(folder, IMPLEMENTED)
    config = {key: value for key, value in config.items() if value is not None}
    with safetensors.must_fit(folder):
        config.setdefault("n_kv_heads", config["n_heads"])
        config.setdefault("pad_token_id", config.get("eos_token_id"))
        sizes = {ours: config[theirs] for theirs, ours in SIZES.items()}
        return Config(**sizes), config["mask_token_id"], config["pad_token_id"]


def is_folder(path):
    """Is this the folder of a pretrained model?"""
    return os.path.isfile(os.path.join(path, "config.json"))


def described(folder):
    """config.json. In one that export.py wrote are also `args`, the flags of the training, and
    `tokenizer`, the spec() of a tokenizer that is not the folder's."""
    return safetensors.read_json(os.path.join(folder, "config.json"))


def from_hub(folder, weights, insertion):
    """The network of a folder of the hub. `weights` get our names, and what is new."""
    config, mask, pad = read_config(folder)
    config.insertion = insertion
    for theirs, ours in names(config.n_layer).items():
        weights[ours] = weights.pop(theirs)
    embed = weights["embed.weight"]                 # its copies are the symbols V and V + 1
    weights["embed.weight"] = torch.cat([embed, embed[[mask, pad]]])
    net = Llada(config)
    net.never = [mask]                              # ours is the symbol V
    weights |= {name: p for name, p in net.state_dict().items() if not p.is_meta}
    return net


def load(folder, device="cpu", insertion="instant"):
    """A folder of the hub, or one that export.py wrote -> the network, in the files' dtype.

    insertion: the schedule alpha; all that it needs is new. (An exported network has its own.)"""
    description = described(folder)
    with safetensors.must_fit(folder):
        weights = safetensors.read_folder(folder)
        options = description.get("options")
        if options is None:
            net = from_hub(folder, weights, insertion)
        elif description["model"] == "Llada":
            net = Llada(Config(**options))
            net.never = description["never"]
        else:
            net = model.Transformer(model.Config(**options), weights.pop("permutation", None))
        net.load_state_dict(weights, assign=True)                           # strict
    if isinstance(net, Llada):
        net.base = os.path.abspath(folder)
    return net.to(device)


def retrofit(folder, insertion, block_size=0, lora=0):
    """A folder (also an exported one: a run can go on from it) -> the network to train.

    insertion: the schedule alpha, or "instant". block_size: the longest text, 0: the folder's own.
    lora: rank of LLaDA's adapters; 0: all weights are trained."""
    net = load(folder, insertion=insertion)
    c = net.config
    if c.insertion != insertion:
        raise Fail(f"{folder} has --insertion {c.insertion}, not {insertion}: give the same")
    if block_size > c.block_size:
        raise Fail(f"--block_size {block_size} is more than the {c.block_size} tokens of {folder}")
    c.block_size = block_size or c.block_size
    if lora and isinstance(net, Llada):
        add_lora(net, lora)
    return net
