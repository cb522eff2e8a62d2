"""GPT-2 from a folder of the hub, as a judge of generated texts: python evaluate.py --judge FOLDER

    net = load("gpt2-large")                # config.json, model.safetensors, maybe tokenizer.json
    logits, _ = net.predict(y, n, t, at)    # the `predict` of the whole project; t is not used

Slot i is answered from the slots before it, slot 0 from the end-of-text token, as in its training.
"""
import os

import torch
import torch.nn as nn
import torch.nn.functional as F

from common import Fail
from prime import Code
from retrofit import safetensors

IMPLEMENTED = {         # values of config.json that the code knows; None: the key may be absent
    "model_type": ["gpt2"], "activation_function": ["gelu_new", None],
    "scale_attn_weights": [True, None], "scale_attn_by_inverse_layer_idx": [False, None],
    "add_cross_attention": [False, None], "tie_word_embeddings": [True, None],
}


class Conv1D(nn.Module):
    """A linear layer that stores its weight as (inputs, outputs)."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(inputs, outputs))
        self.bias = nn.Parameter(torch.empty(outputs))

    def forward(self, x):
        return x @ self.weight + self.bias


class Block(nn.Module):
    def __init__(self, d, heads, hidden, eps):
        super().__init__()
        self.heads = heads
        self.ln_1, self.ln_2 = nn.LayerNorm(d, eps), nn.LayerNorm(d, eps)
        self.attn = nn.ModuleDict(dict(c_attn=Conv1D(d, 3 * d), c_proj=Conv1D(d, d)))
        self.mlp = nn.ModuleDict(dict(c_fc=Conv1D(d, hidden), c_proj=Conv1D(hidden, d)))

    def forward(self, x):
        """x (B, L, d)"""
        q, k, v = self.attn.c_attn(self.ln_1(x)).chunk(3, -1)
        q, k, v = (z.unflatten(-1, (self.heads, -1)).transpose(1, 2) for z in (q, k, v))
        heads = F.scaled_dot_product_attention(q, k, v, is_causal=True)     # (B, H, L, hd)
        x = x + self.attn.c_proj(heads.transpose(1, 2).flatten(2))
        h = self.mlp.c_fc(self.ln_2(x))
        return x + self.mlp.c_proj(F.gelu(h, approximate="tanh"))           # the hub's "gelu_new"


class GPT2(nn.Module):
    """Its parameters have the hub's names, and no storage before load(). The head is the embedding.

    tokenizer: "gpt2", or the folder if it has a tokenizer.json: a name for data.tokenizer_from"""

    def __init__(self, c):
        super().__init__()
        V, L, d = c["vocab_size"], c["n_positions"], c["n_embd"]
        hidden, eps = c.get("n_inner") or 4 * d, c.get("layer_norm_epsilon", 1e-5)
        with torch.device("meta"):
            self.wte, self.wpe = nn.Embedding(V, d), nn.Embedding(L, d)
            self.h = nn.ModuleList(Block(d, c["n_head"], hidden, eps) for _ in range(c["n_layer"]))
            self.ln_f = nn.LayerNorm(d, eps)
        self.code, self.block_size, self.tokenizer = Code(V), L, "gpt2"
        self.eot = c.get("eos_token_id", V - 1)

    @torch.no_grad()
    def predict(self, y, n, t, at, given=None):
        """y (B, L, 1), at (B, L) -> logits (at.sum(), V) in float32, None. Masks cannot be read."""
        L, device = y.shape[1], self.wte.weight.device
        if L > self.block_size:
            raise Fail(f"GPT-2 reads {self.block_size} tokens, not {L}: give it shorter texts")
        ids = F.pad(y[:, :-1, 0], (1, 0), value=self.eot)       # slot i reads slot i - 1
        ids = ids.clamp_max(self.code.V - 1).to(device)         # what follows n is never looked at
        x = self.wte(ids) + self.wpe.weight[:L]
        for block in self.h:
            x = block(x)
        x = self.ln_f(x[at.to(device)])                                     # (M, d)
        return (x @ self.wte.weight.T).float(), None


def is_folder(path):
    """Is this the folder of a GPT-2?"""
    config = os.path.join(path, "config.json")
    return os.path.isfile(config) and safetensors.read_json(config).get("model_type") == "gpt2"


def load(folder, device="cpu"):
    """A folder of the hub -> GPT2, in the file's dtype"""
    path = os.path.join(folder, "config.json")
    config = safetensors.read_json(path)
    for key, values in IMPLEMENTED.items():
        if config.get(key) not in values:
            raise Fail(f"{path}: {key} is {config.get(key)!r}, and the code implements {values}")
    weights = {}
    for name, tensor in safetensors.read_folder(folder).items():
        name = name.removeprefix("transformer.")
        if name != "lm_head.weight" and not name.endswith((".attn.bias", ".attn.masked_bias")):
            weights[name] = tensor          # those are the embedding again, and the causal mask
    try:
        net = GPT2(config)
        net.load_state_dict(weights, assign=True)
    except (KeyError, RuntimeError, TypeError, ValueError) as e:
        why = " ".join(str(e).split())
        raise Fail(f"{folder}: the tensors do not fit config.json ({why}): fetch both") from None
    if os.path.isfile(os.path.join(folder, "tokenizer.json")):
        net.tokenizer = folder
    return net.to(device).eval().requires_grad_(False)
