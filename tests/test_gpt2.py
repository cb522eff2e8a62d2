"""retrofit/gpt2.py: GPT-2's formulas written out once more, plainly, for tiny random folders."""
import json
import math

import pytest
import torch

from common import Fail
from hub import tokenizer_json
from retrofit import gpt2, safetensors

CONFIG = {"model_type": "gpt2", "vocab_size": 40, "n_positions": 16, "n_embd": 24, "n_layer": 2,
          "n_head": 3, "n_inner": None, "activation_function": "gelu_new", "eos_token_id": 39,
          "layer_norm_epsilon": 1e-5}


def write_gpt2(folder, config=CONFIG, prefix="", old=False):
    """A random GPT-2 in the hub's layout -> its tensors. old: with the causal masks and the tied
    head, as some folders have them"""
    d, inner = config["n_embd"], config["n_inner"] or 4 * config["n_embd"]
    shapes = {"wte.weight": (config["vocab_size"], d), "wpe.weight": (config["n_positions"], d)}
    for i in range(config["n_layer"]):
        shapes |= {f"h.{i}.attn.c_attn.weight": (d, 3 * d), f"h.{i}.attn.c_proj.weight": (d, d),
                   f"h.{i}.mlp.c_fc.weight": (d, inner), f"h.{i}.mlp.c_proj.weight": (inner, d),
                   f"h.{i}.ln_1.weight": (d,), f"h.{i}.ln_2.weight": (d,)}
    shapes["ln_f.weight"] = (d,)
    tensors = {}
    for name, shape in shapes.items():
        tensors[prefix + name] = 0.3 * torch.randn(shape) + len(shape) % 2
        if not name.startswith(("wte", "wpe")):
            tensors[prefix + name.replace("weight", "bias")] = 0.2 * torch.randn(shape[-1])
    written = dict(tensors)
    if old:
        written["lm_head.weight"] = tensors[prefix + "wte.weight"].clone()
        for i in range(config["n_layer"]):
            written[f"{prefix}h.{i}.attn.bias"] = torch.ones(1, 1, 16, 16).tril()
            written[f"{prefix}h.{i}.attn.masked_bias"] = torch.tensor(-1e4)
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    safetensors.write(folder / "model.safetensors", written)
    return {name.removeprefix(prefix): t for name, t in tensors.items()}


def reference(w, c, ids):
    """GPT-2 for one text: ids (n,) -> logits (n, V) of what follows each. No code in common."""
    n, d, H = len(ids), c["n_embd"], c["n_head"]
    hd = d // H

    def norm(x, name):
        centred = x - x.mean(-1, keepdim=True)
        spread = (centred ** 2).mean(-1, keepdim=True)
        x = centred / (spread + c["layer_norm_epsilon"]).sqrt()
        return x * w[f"{name}.weight"] + w[f"{name}.bias"]

    def linear(x, name):
        return x @ w[f"{name}.weight"] + w[f"{name}.bias"]

    x = torch.stack([w["wte.weight"][id] + w["wpe.weight"][i] for i, id in enumerate(ids)])
    for layer in range(c["n_layer"]):
        qkv = linear(norm(x, f"h.{layer}.ln_1"), f"h.{layer}.attn.c_attn")
        out = torch.zeros(n, d)
        for head in range(H):
            a, z = head * hd, (head + 1) * hd
            q, k, v = qkv[:, a:z], qkv[:, d + a:d + z], qkv[:, 2 * d + a:2 * d + z]
            for i in range(n):                          # slot i looks at slots 0 .. i
                weights = (k[:i + 1] @ q[i] / math.sqrt(hd)).softmax(0)
                out[i, a:z] = weights @ v[:i + 1]
        x = x + linear(out, f"h.{layer}.attn.c_proj")
        h = linear(norm(x, f"h.{layer}.ln_2"), f"h.{layer}.mlp.c_fc")
        h = 0.5 * h * (1 + torch.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h ** 3)))
        x = x + linear(h, f"h.{layer}.mlp.c_proj")
    return norm(x, "ln_f") @ w["wte.weight"].T


def question(lengths, V=40):
    """(y, n, t, at) for all slots in use, and the texts"""
    n, L = torch.tensor(lengths), max(lengths)
    x = torch.randint(0, V, (len(lengths), L))
    at = torch.arange(L) < n[:, None]
    y = torch.where(at, x, V + 1)[:, :, None]
    return (y, n, torch.zeros(len(n)), at), [row[:length] for row, length in zip(x, lengths)]


@pytest.mark.parametrize("prefix, old, inner", [("", False, None), ("transformer.", True, 20)])
def test_it_is_gpt2(tmp_path, prefix, old, inner):
    """Slot i is answered from the slots before it, slot 0 from the end-of-text token alone."""
    config = {**CONFIG, "n_inner": inner}
    w = write_gpt2(tmp_path / "g", config, prefix, old)
    net = gpt2.load(tmp_path / "g")
    lengths = [7, 1, 16]
    ask, texts = question(lengths)
    logits, log_g = net.predict(*ask, given=None)
    assert log_g is None and logits.dtype == torch.float32
    for ours, text in zip(logits.split(lengths), texts):
        theirs = reference(w, config, [39, *text[:-1].tolist()])
        assert torch.allclose(ours, theirs, atol=1e-4, rtol=1e-5)


def test_only_the_slots_that_are_asked_for(tmp_path):
    write_gpt2(tmp_path / "g")
    net = gpt2.load(tmp_path / "g")
    (y, n, t, at), _ = question([7, 16])
    some = at & (torch.rand(at.shape) < 0.4)
    everything, _ = net.predict(y, n, t, at)
    logits, _ = net.predict(y, n, t, some)
    assert torch.allclose(logits, everything[some[at]], atol=1e-5)
    assert net.code.V == 40 and net.code.ell == 1


def test_which_tokenizer(tmp_path):
    """GPT-2's own, or that of the folder"""
    write_gpt2(tmp_path / "g")
    assert gpt2.load(tmp_path / "g").tokenizer == "gpt2"
    (tmp_path / "g" / "tokenizer.json").write_text(json.dumps(tokenizer_json([])))
    assert gpt2.load(tmp_path / "g").tokenizer == tmp_path / "g"


def test_bf16_weights_stay_bf16(tmp_path):
    w = write_gpt2(tmp_path / "g")
    half = {name: t.bfloat16() for name, t in w.items()}
    safetensors.write(tmp_path / "g" / "model.safetensors", half)
    net = gpt2.load(tmp_path / "g")
    assert {w.dtype for w in net.weights.values()} == {torch.bfloat16}
    assert net.predict(*question([5])[0])[0].dtype == torch.float32


def test_mistakes_are_one_sentence(tmp_path):
    w = write_gpt2(tmp_path / "g")
    net = gpt2.load(tmp_path / "g")
    with pytest.raises(Fail, match="reads 16 tokens, not 17"):
        net.predict(*question([17])[0])
    del w["h.1.mlp.c_fc.bias"]
    safetensors.write(tmp_path / "g" / "model.safetensors", w)
    with pytest.raises(Fail, match="do not fit config.json.*h.1.mlp.c_fc.bias"):
        gpt2.load(tmp_path / "g")
    for key, value in [("model_type", "llama"), ("activation_function", "relu"),
                       ("scale_attn_by_inverse_layer_idx", True)]:
        (tmp_path / "g" / "config.json").write_text(json.dumps({**CONFIG, key: value}))
        with pytest.raises(Fail, match=f"config.json: {key} is"):
            gpt2.load(tmp_path / "g")
    (tmp_path / "g" / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(Fail, match="do not fit config.json"):
        gpt2.load(tmp_path / "g")


def test_is_it_a_gpt2(tmp_path):
    write_gpt2(tmp_path / "g")
    assert gpt2.is_folder(tmp_path / "g") and not gpt2.is_folder(tmp_path)
    (tmp_path / "g" / "config.json").write_text(json.dumps({"model_type": "llada"}))
    assert not gpt2.is_folder(tmp_path / "g")
