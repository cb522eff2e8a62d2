"""GPT-2 from a folder of the hub, as a judge of generated texts: python evaluate.py --judge FOLDER

    net = load("gpt2-large")                # config.json, model.safetensors, maybe tokenizer.json
    logits, _ = net.predict(y, n, t, at)    # the `predict` of the whole project; t is not used

Slot i is answered from the slots before it, slot 0 from the end-of-text token, as in its training.
"""
import os

import torch
import torch.nn.functional as F

from common import Fail
from prime import Code
from retrofit import safetensors

# values of config.json that the code knows; None: the key may be absent
IMPLEMENTED = {"model_type": ["gpt2"], "activation_function": ["gelu_new", None],
               "scale_attn_by_inverse_layer_idx": [False, None],
               "scale_attn_weights": [True, None], "tie_word_embeddings": [True, None]}


class GPT2:
    """config: config.json. weights: {the hub's name: tensor}. The head is the embedding.

    tokenizer: "gpt2", or the folder if it has a tokenizer.json: a name for data.tokenizer_from"""

    def __init__(self, config, weights, tokenizer):
        self.config, self.weights, self.tokenizer = config, weights, tokenizer
        self.code, self.block_size = Code(config["vocab_size"]), config["n_positions"]
        self.eot = config.get("eos_token_id", self.code.V - 1)

    def norm(self, x, name):
        w, b = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        return F.layer_norm(x, w.shape, w, b, self.config.get("layer_norm_epsilon", 1e-5))

    def linear(self, x, name):
        return x @ self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    def block(self, x, name):
        """x (B, L, d)"""
        q, k, v = self.linear(self.norm(x, f"{name}.ln_1"), f"{name}.attn.c_attn").chunk(3, -1)
        heads = (self.config["n_head"], -1)
        q, k, v = (z.unflatten(-1, heads).transpose(1, 2) for z in (q, k, v))   # (B, H, L, hd)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.linear(mixed.transpose(1, 2).flatten(2), f"{name}.attn.c_proj")
        h = self.linear(self.norm(x, f"{name}.ln_2"), f"{name}.mlp.c_fc")
        h = F.gelu(h, approximate="tanh")                                   # the hub's "gelu_new"
        return x + self.linear(h, f"{name}.mlp.c_proj")

    @torch.no_grad()
    def predict(self, y, n, t, at, given=None):
        """y (B, L, 1), at (B, L) -> logits (at.sum(), V) in float32, None. Masks cannot be read."""
        L, embed = y.shape[1], self.weights["wte.weight"]
        if L > self.block_size:
            raise Fail(f"GPT-2 reads {self.block_size} tokens, not {L}: give it shorter texts")
        ids = F.pad(y[:, :-1, 0], (1, 0), value=self.eot)       # slot i reads slot i - 1
        ids = ids.clamp_max(self.code.V - 1).to(embed.device)   # what follows n is never looked at
        x = embed[ids] + self.weights["wpe.weight"][:L]
        for i in range(self.config["n_layer"]):
            x = self.block(x, f"h.{i}")
        x = self.norm(x[at.to(x.device)], "ln_f")                           # (M, d)
        return (x @ embed.T).float(), None


def is_folder(path):
    """Is this the folder of a GPT-2?"""
    config = os.path.join(path, "config.json")
    return os.path.isfile(config) and safetensors.read_json(config).get("model_type") == "gpt2"


def load(folder, device="cpu"):
    """A folder of the hub -> GPT2, in the file's dtype"""
    config = safetensors.read_config(folder, IMPLEMENTED)
    tokenizer = "gpt2"
    if os.path.isfile(os.path.join(folder, "tokenizer.json")):
        tokenizer = folder
    with safetensors.must_fit(folder):
        weights = {name.removeprefix("transformer."): tensor.to(device)
                   for name, tensor in safetensors.read_folder(folder).items()}
        net = GPT2(config, weights, tokenizer)
        if (len(weights["wpe.weight"]), len(weights["wte.weight"])) != (net.block_size, net.code.V):
            raise ValueError("its embeddings have another size")
        one = torch.zeros(1, 1, 1, dtype=torch.int64)           # a text, as a test
        net.predict(one, None, None, one[:, :, 0] == 0)
    return net
