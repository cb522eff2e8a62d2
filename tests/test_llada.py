"""llada.py: what a safetensors file, a config and a tokenizer.json say is believed only where it fits, and then used exactly.

Equality with the hub's own `tokenizers` package is checked where that package is importable; a naive byte-pair encoder stands in elsewhere.
"""
import json
import math
import os
import pickle
import random
import re
import sys

import pytest
import torch

sys.path.insert(0, os.path.join(os.path.dirname(__file__), ".."))
import common
import evaluate
import llada
import model as project
import prime
import sample
import train
from common import Fail

DATA = os.path.join(os.path.dirname(__file__), "..", "..", "shared")
torch.set_num_threads(1)


# ---- safetensors ---------------------------------------------------------------------------------------------------------------------

def some_tensors():
    """One tensor of every dtype, and the shapes that trip: none, one, zero."""
    torch.manual_seed(0)
    tensors = {}
    for i, dtype in enumerate(llada.DTYPES.values()):
        n = 3 * (i + 1)
        tensors[f"t{i}"] = torch.randint(0, 2, (3, i + 1)).bool() if dtype == torch.bool else torch.randint(0, 256, (n * dtype.itemsize,)).byte().view(dtype).view(3, i + 1)
    return {**tensors, "scalar": torch.tensor(2.5), "none": torch.empty(0, 7), "ünïcode": torch.arange(5).view(5, 1).T}


def same_bits(a, b):
    raw = lambda t: t.contiguous().view(-1).view(torch.uint8)
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(raw(a), raw(b))


def container(header, data=b""):
    """The bytes of a safetensors file with this header (a dict, or bytes) and data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def test_every_dtype_goes_out_and_comes_back(tmp_path):
    tensors = some_tensors()
    llada.write_safetensors(tmp_path / "x.safetensors", tensors)
    back = llada.read_safetensors(tmp_path / "x.safetensors")
    assert set(back) == set(tensors) and all(same_bits(tensors[k], back[k]) for k in tensors)
    assert all(t.data_ptr() % t.dtype.itemsize == 0 for t in back.values())
    assert os.listdir(tmp_path) == ["x.safetensors"]                                           # nothing left aside


def test_a_file_is_mapped_not_copied_and_never_written_to(tmp_path):
    path = tmp_path / "x.safetensors"
    llada.write_safetensors(path, {"w": torch.arange(1 << 16, dtype=torch.float32)})
    before = path.read_bytes()
    w = llada.read_safetensors(path)["w"]
    w.mul_(2)
    assert w[3] == 6 and path.read_bytes() == before
    llada.write_safetensors(path, {"w": w})                                                    # also over the file that is mapped
    assert w[3] == 6 and llada.read_safetensors(path)["w"][3] == 6


def test_unaligned_tensors_are_read(tmp_path):
    header = {"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}, "b": {"dtype": "F32", "shape": [2], "data_offsets": [1, 9]}}
    (tmp_path / "x").write_bytes(container(header, b"\7" + torch.tensor([1.5, -2.0]).numpy().tobytes()))
    tensors = llada.read_safetensors(tmp_path / "x")
    assert tensors["a"].tolist() == [7] and tensors["b"].tolist() == [1.5, -2.0] and tensors["b"].data_ptr() % 4 == 0


GOOD = {"a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}, "b": {"dtype": "BF16", "shape": [4], "data_offsets": [16, 24]}}


def lie(**changes):
    return container({**GOOD, "b": {**GOOD["b"], **changes}}, bytes(24))


@pytest.mark.parametrize("content, says", [
    (b"", "0 bytes"), (b"1234567", "7 bytes"), (bytes(8), "not JSON"), (b"\xff" * 8 + b"{}", "header would have"), (container(b"[1]"), "no JSON object"),
    (container(b"{" * 100000), "not JSON"), (container(b'{"a":' + b"[" * 200000), "not JSON"), (container(b"\xff\xfe{}"), "not JSON"),
    (container(GOOD, bytes(23)), "has 23 for them"), (container(GOOD, bytes(25)), "has 25 for them"), (container(GOOD, bytes(24))[:60], "header would have"),
    (container(b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', b"1"), "twice"),
    (lie(dtype="F4"), "dtype 'F4'"), (lie(dtype=["F32"]), "dtype"), (lie(dtype=None), "dtype"), (lie(shape=[5]), "cannot have 8 bytes"),
    (lie(shape=4), "absurd"), (lie(shape=[4.0]), "absurd"), (lie(shape=[True, 4]), "absurd"), (lie(shape=[-2, -2]), "absurd"), (lie(shape=[1] * 99), "absurd"),
    (lie(shape=[1 << 40, 1 << 40]), "absurd"), (lie(shape=[0, 1 << 40, 1 << 40]), "absurd"), (lie(shape=[1 << 50]), "cannot have"),
    (lie(data_offsets=[0, 8]), "overlaps"), (lie(data_offsets=[8, 16]), "overlaps"), (lie(data_offsets=[20, 28]), "gap"), (lie(data_offsets=[24, 16]), "cannot have"),
    (lie(data_offsets=[-8, 0]), "absurd"), (lie(data_offsets=[1 << 70, (1 << 70) + 8]), "absurd"), (lie(data_offsets=[16]), "absurd"), (lie(data_offsets=None), "absurd"),
    (lie(data_offsets=[1 << 50, (1 << 50) + 8]), "gap"), (container({**GOOD, "b": 7}, bytes(24)), "lacks"), (container({"a": {"dtype": "F32"}}), "lacks"),
    (lie(shape=[1 << 45], data_offsets=[16, 16 + (2 << 45)]), "has 24 for them"), (container(b'{"a":' + b"9" * 5000 + b"}"), "not JSON"),
])
def test_a_lying_header_is_one_sentence(tmp_path, content, says):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(Fail, match=re.escape(says)):
        llada.read_safetensors(tmp_path / "x")


def test_thousands_of_damaged_files_only_ever_fail(tmp_path):
    """Bytes flipped, cut off, repeated; numbers in the header replaced: a Fail, or tensors that fit the file. Nothing else, and no crash."""
    rng, path, outcomes = random.Random(0), tmp_path / "x", {"fail": 0, "read": 0}
    good = container(GOOD, bytes(range(24)))
    for _ in range(4000):
        b = bytearray(good)
        match rng.randrange(5):
            case 0:
                for _ in range(rng.randrange(1, 4)):
                    b[rng.randrange(len(b))] = rng.randrange(256)
            case 1:
                del b[rng.randrange(len(b)):]
            case 2:
                i = rng.randrange(len(b))
                b[i:i] = b[rng.randrange(len(b)):][:rng.randrange(40)]
            case 3:
                b[:8] = rng.choice([rng.randrange(256), 1 << rng.randrange(64), len(b) - 8]).to_bytes(8, "little")
            case 4:
                text = re.sub(rb"\d+", lambda m: rng.choice([m[0], m[0], b"0", b"-1", b"8", b"16", b"1e9", b"9" * rng.randrange(1, 30)]), bytes(b[8:-24]))
                b = bytearray(container(text, bytes(24)))
        path.write_bytes(b)
        try:
            tensors = llada.read_safetensors(path)
            assert sum(t.numel() * t.dtype.itemsize for t in tensors.values()) <= len(b)
            [t.clone() for t in tensors.values()]
            outcomes["read"] += 1
        except Fail:
            outcomes["fail"] += 1
    assert outcomes["fail"] > 2000 and outcomes["read"] > 40, outcomes


def test_no_file_and_no_right_to_read(tmp_path):
    with pytest.raises(Fail, match="there is no file"):
        llada.read_safetensors(tmp_path / "nothing")
    with pytest.raises(Fail, match="there is no file"):
        llada.read_safetensors(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(Fail, match="there is no file"):
        llada.read_safetensors(tmp_path / "pipe")
    with pytest.raises(Fail, match="no dtype torch.complex64"):
        llada.write_safetensors(tmp_path / "x", {"a": torch.zeros(1, dtype=torch.complex64)})


def shards(folder, where, tensors):
    folder.mkdir(exist_ok=True)
    for file in set(where.values()):
        llada.write_safetensors(folder / file, {k: tensors[k] for k in tensors if where[k] == file})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))


def test_shards(tmp_path):
    tensors = {"a": torch.randn(3), "b": torch.randn(4), "c": torch.randn(5)}
    where = {"a": "model-1.safetensors", "b": "model-2.safetensors", "c": "model-2.safetensors"}
    shards(tmp_path / "s", where, tensors)
    back = llada.read_checkpoint(tmp_path / "s")
    assert set(back) == set(tensors) and all(torch.equal(back[k], tensors[k]) for k in tensors)

    index = tmp_path / "s" / "model.safetensors.index.json"
    for bad, says in [({**where, "d": "model-2.safetensors"}, "lacks the tensor 'd'"), ({k: where[k] for k in "ab"}, "holds the tensor 'c'"),
                      ({**where, "c": "model-1.safetensors"}, "holds the tensor 'c'"), ({**where, "c": "model-3.safetensors"}, "lacks the shard model-3.safetensors"),
                      ({**where, "c": "../model-2.safetensors"}, "not in its folder"), ({**where, "c": "/etc/passwd"}, "not in its folder"),
                      ({**where, "c": ".."}, "not in its folder"), ({**where, "c": "a\0b"}, "not in its folder"), ({**where, "c": 7}, "no weight_map"), ([], "no weight_map")]:
        index.write_text(json.dumps({"weight_map": bad}))
        with pytest.raises(Fail, match=re.escape(says)):
            llada.read_checkpoint(tmp_path / "s")
    index.write_text("{")
    with pytest.raises(Fail, match="not JSON"):
        llada.read_checkpoint(tmp_path / "s")
    index.write_text(json.dumps({"weight_map": where}))
    os.remove(tmp_path / "s" / "model-1.safetensors")
    with pytest.raises(Fail, match="lacks the shard model-1.safetensors"):
        llada.read_checkpoint(tmp_path / "s")
    with pytest.raises(Fail, match="neither"):
        llada.read_checkpoint(tmp_path)


# ---- config --------------------------------------------------------------------------------------------------------------------------

CONFIG = {"d_model": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "mlp_hidden_size": 48, "vocab_size": 50, "embedding_size": 50,
          "max_sequence_length": 64, "rope_theta": 500000.0, "rms_norm_eps": 1e-5, "block_type": "llama", "activation_type": "silu",
          "layer_norm_type": "rms", "include_bias": False, "include_qkv_bias": False, "weight_tying": False, "mask_token_id": 47,
          "eos_token_id": 46, "pad_token_id": 46, "architectures": ["LLaDAModelLM"], "mlp_ratio": 4, "use_cache": False}


def test_config(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    options, mask, pad = llada.read_config(tmp_path)
    assert (mask, pad) == (47, 46)
    assert options == {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_kv_head": 2, "n_hidden": 48, "V": 50, "block_size": 64, "rope_theta": 500000.0,
                       "norm_eps": 1e-5, "n_cond": 32, "norm": "rms", "mlp": "swiglu", "adaln": 0, "insertion": "instant"}


@pytest.mark.parametrize("key, value", [
    ("block_type", "sequential"), ("activation_type", "gelu"), ("layer_norm_type", "default"), ("include_bias", True), ("include_qkv_bias", True),
    ("weight_tying", True), ("rope", False), ("rope_scaling", {"factor": 8}), ("alibi", True), ("embedding_size", 64), ("d_model", 0), ("d_model", 32.0),
    ("d_model", True), ("d_model", "32"), ("n_layers", -1), ("n_heads", 5), ("n_heads", 32), ("n_kv_heads", 3), ("vocab_size", 1 << 60), ("mask_token_id", 50),
    ("mask_token_id", None), ("pad_token_id", -1), ("rope_theta", 0), ("rope_theta", None), ("rope_theta", float("nan")), ("rms_norm_eps", "1e-5"),
    ("block_type", None), ("weight_tying", 0), ("n_layers", None), ("max_sequence_length", []), ("rope_theta", 10 ** 400)])
def test_a_config_value_that_is_not_implemented_is_named(tmp_path, key, value):
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, key: value}))
    with pytest.raises(Fail, match=f"config.json: {key} is"):
        llada.read_config(tmp_path)


def test_config_without_a_key_or_without_json(tmp_path):
    for key in ("d_model", "block_type", "activation_type", "layer_norm_type", "rope_theta", "rms_norm_eps", "mask_token_id"):
        (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in CONFIG.items() if k != key}))
        with pytest.raises(Fail, match=key):
            llada.read_config(tmp_path)
    for text in ("", "{", "[]", "7", '{"a": 1, "a": 2}', "[" * 100000):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(Fail, match="config.json"):
            llada.read_config(tmp_path)
    with pytest.raises(Fail, match="cannot read"):
        llada.read_config(tmp_path / "nowhere")


# ---- the model -----------------------------------------------------------------------------------------------------------------------

def checkpoint(folder, config=CONFIG, dtype=torch.float32, shards_=1, seed=0):
    """A random checkpoint in LLaDA's layout."""
    torch.manual_seed(seed)
    d, V, h, kv = config["d_model"], config["vocab_size"], config["mlp_hidden_size"], config["d_model"] // config["n_heads"] * config["n_kv_heads"]
    shapes = {"wte": (V, d), "ln_f": (d,), "ff_out": (V, d)}
    for i in range(config["n_layers"]):
        block = {"attn_norm": (d,), "q_proj": (d, d), "k_proj": (kv, d), "v_proj": (kv, d), "attn_out": (d, d), "ff_norm": (d,), "ff_proj": (h, d), "up_proj": (h, d), "ff_out": (d, h)}
        shapes.update({f"blocks.{i}.{name}": shape for name, shape in block.items()})
    tensors = {f"model.transformer.{name}.weight": (torch.randn(shape) * (0.1 if len(shape) > 1 else 0.2) + (len(shape) == 1)).to(dtype) for name, shape in shapes.items()}
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if shards_ == 1:
        llada.write_safetensors(folder / "model.safetensors", tensors)
    else:
        shards(folder, {name: f"model-{i % shards_}.safetensors" for i, name in enumerate(tensors)}, tensors)
    return tensors


def reference(w, c, ids):
    """LLaDA's forward pass, written out for one text: ids (n,) -> logits (n, V). No code in common with model.py."""
    p, H, K = lambda name: w[f"model.transformer.{name}.weight"], c["n_heads"], c["n_kv_heads"]
    hd, n = c["d_model"] // H, len(ids)

    def rms(x, weight):
        return (x.float() / (x.float() ** 2).mean(-1, keepdim=True).add(c["rms_norm_eps"]).sqrt()).to(x.dtype) * weight

    def rope(x):                                                                               # (n, heads, hd)
        out = torch.empty_like(x)
        for j in range(hd // 2):
            angle = torch.arange(n).float() / c["rope_theta"] ** (2 * j / hd)
            cos, sin = angle.cos()[:, None], angle.sin()[:, None]
            a, b = x[:, :, j].float(), x[:, :, j + hd // 2].float()
            out[:, :, j], out[:, :, j + hd // 2] = a * cos - b * sin, b * cos + a * sin
        return out

    x = p("wte")[ids]
    for i in range(c["n_layers"]):
        b = lambda name: p(f"blocks.{i}.{name}")
        h = rms(x, b("attn_norm"))
        q, k, v = rope((h @ b("q_proj").T).view(n, H, hd)), rope((h @ b("k_proj").T).view(n, K, hd)), (h @ b("v_proj").T).view(n, K, hd)
        heads = []
        for head in range(H):
            shared = head * K // H                                                             # the key and value head of this query head
            heads.append((q[:, head] @ k[:, shared].T / math.sqrt(hd)).softmax(-1) @ v[:, shared])
        x = x + torch.cat(heads, -1) @ b("attn_out").T
        h = rms(x, b("ff_norm"))
        g = h @ b("ff_proj").T
        x = x + (g * torch.sigmoid(g) * (h @ b("up_proj").T)) @ b("ff_out").T
    return rms(x, p("ln_f")) @ p("ff_out").T


def documents(config, lengths, seed=1):
    """Texts of these lengths with masks in them: (y (B, L, 1) for this project, [ids (n,) for LLaDA])."""
    torch.manual_seed(seed)
    V, L = config["vocab_size"], max(lengths)
    y, ids = torch.full((len(lengths), L, 1), V + 1), []
    for b, n in enumerate(lengths):
        hidden = torch.rand(n) < 0.5
        tokens = torch.randint(0, V - 4, (n,))
        y[b, :n, 0] = torch.where(hidden, V, tokens)
        ids.append(torch.where(hidden, config["mask_token_id"], tokens))
    return y, ids


@pytest.mark.parametrize("kv", [1, 2, 4])
@pytest.mark.parametrize("shards_", [1, 3])
def test_the_imported_model_is_llada(tmp_path, kv, shards_):
    config = {**CONFIG, "n_kv_heads": kv}
    w = checkpoint(tmp_path / "c", config, shards_=shards_)
    model = llada.load(tmp_path / "c").eval()
    lengths = [17, 3, 64, 1]
    y, ids = documents(config, lengths)
    at = torch.arange(64)[None] < torch.tensor(lengths)[:, None]
    with torch.no_grad():
        logits, log_g = model(y, torch.tensor(lengths), torch.rand(4), at)
    assert log_g is None and all(p.dtype == torch.float32 for p in model.parameters())
    for mine, theirs in zip(logits.split(lengths), ids):
        assert torch.allclose(mine, reference(w, config, theirs), atol=1e-5, rtol=1e-5)
    assert reference(w, config, ids[0]).std() > 0.3                                            # not all the same


def test_the_retrofit_is_llada_at_the_start(tmp_path):
    """Every adapter, modulation and the end slot in place: the token logits are those of LLaDA with the pad token at the end, at any t."""
    w = checkpoint(tmp_path / "c")
    model = llada.add_lora(llada.load(tmp_path / "c", insertion="linear", adaln=8), r=4).eval()
    lengths = [17, 3, 64, 1]
    y, ids = documents(CONFIG, lengths)
    with torch.no_grad():
        logits, log_g = model(y, torch.tensor(lengths), torch.tensor([0.0, 0.3, 0.9, 1.0]), torch.arange(64)[None] < torch.tensor(lengths)[:, None])
    for mine, theirs in zip(logits.split(lengths), ids):
        assert torch.allclose(mine, reference(w, CONFIG, torch.cat([theirs, torch.tensor([CONFIG["pad_token_id"]])]))[:-1], atol=1e-5, rtol=1e-5)
    assert log_g.shape == (4, 65) and log_g.isfinite().all() and (log_g[0, :18] + 1).abs().max() < 0.5


def test_only_what_is_new_trains_and_is_saved(tmp_path):
    w = checkpoint(tmp_path / "c", dtype=torch.bfloat16)
    build = lambda: llada.add_lora(llada.load(tmp_path / "c", insertion="linear", adaln=8), r=4)
    model = build()
    y, _ = documents(CONFIG, [9, 20])
    n, t, at = torch.tensor([9, 20]), torch.rand(2), y[:, :, 0] == CONFIG["vocab_size"]
    before = {k: v.clone() for k, v in model.state_dict().items()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(2):                                                                         # the first step moves b, the second a too
        logits, log_g = model(y, n, t, at)
        (logits.float().logsumexp(1).sum() + log_g.sum()).backward()
        optimizer.step()
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    new = {name: p.detach() for name, p in model.trained().items()}
    assert changed == set(new) and {k.split(".")[0] for k in changed} == {"blocks", "head", "time", "shared", "gap"}
    assert {k.split(".", 2)[2] for k in changed if k.startswith("blocks")} == {"q.a", "q.b", "k.a", "k.b", "v.a", "v.b"}
    assert all(v.dtype == torch.float32 for v in new.values()) and model.blocks[0].q.weight.dtype == torch.bfloat16

    llada.write_safetensors(tmp_path / "adapters.safetensors", new)                            # saved alone, put back alone
    again = build()
    missing, unexpected = again.load_state_dict(llada.read_safetensors(tmp_path / "adapters.safetensors"), strict=False)
    assert not unexpected and set(missing) == set(before) - set(new)
    ask = lambda m: m.eval()(y, n, t, at)
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(ask(model), ask(again)))
        assert all(torch.equal(w[theirs], dict(model.named_parameters())[ours]) for theirs, ours in [("model.transformer.blocks.0.q_proj.weight", "blocks.0.q.weight")])


def test_merging_changes_nothing(tmp_path):
    checkpoint(tmp_path / "c")
    model = llada.add_lora(llada.load(tmp_path / "c", insertion="linear", adaln=8), r=4).eval()
    with torch.no_grad():
        for p in model.trained().values():
            p.add_(0.05 * torch.randn_like(p))
        y, _ = documents(CONFIG, [9, 20])
        ask = lambda: model(y, torch.tensor([9, 20]), torch.tensor([0.2, 0.7]), y[:, :, 0] == CONFIG["vocab_size"])
        before, names = ask(), set(model.state_dict())
        llada.merge_lora(model)
        assert {k for k in names if not k.endswith((".a", ".b"))} == set(model.state_dict())
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(before, ask()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_exported_model_is_read_back(tmp_path, dtype):
    checkpoint(tmp_path / "c", dtype=dtype)
    model = llada.add_lora(llada.load(tmp_path / "c", insertion="linear", adaln=8), r=4).eval()
    with torch.no_grad():
        for p in model.trained().values():
            p.add_(0.05 * torch.randn_like(p))
        llada.export(model, tmp_path / "out" / "e")                                            # merges
        back = llada.load(tmp_path / "out" / "e").eval()
        y, _ = documents(CONFIG, [9, 20])
        ask = lambda m: m(y, torch.tensor([9, 20]), torch.tensor([0.2, 0.7]), y[:, :, 0] == CONFIG["vocab_size"])
        assert back.config == model.config and all(torch.equal(a, b) for a, b in zip(ask(model), ask(back)))
        assert {k: v.dtype for k, v in back.state_dict().items()} == {k: v.dtype for k, v in model.state_dict().items()}
    import model as project
    digits = project.build({"V": 50, "ell": 2, "n_layer": 1, "n_embd": 16, "n_head": 2}, permutation=torch.randperm(50))
    llada.export(digits, tmp_path / "d")                                                       # any model of this project can be exported
    back = llada.load(tmp_path / "d")
    assert torch.equal(back.code.permutation, digits.code.permutation) and all(torch.equal(a, b) for a, b in zip(back.parameters(), digits.parameters()))
    tensors = llada.read_safetensors(tmp_path / "d" / "model.safetensors")
    llada.write_safetensors(tmp_path / "d" / "model.safetensors", {**tensors, "permutation": torch.zeros(50)})
    with pytest.raises(Fail, match="permutation"):
        llada.load(tmp_path / "d")
    llada.write_safetensors(tmp_path / "d" / "model.safetensors", tensors)
    for options, says in [({"V": "many"}, "describes no model"), ([], "describes no model"), ({"V": 50, "n_layer": 10 ** 12}, "describes no model"), ({"V": 10 ** 12, "n_layer": 1, "n_embd": 16, "n_head": 2}, "implies"),
                          ({"V": 50, "depth": 3}, "depth"), ({"V": 50, "n_layer": 1, "n_embd": 16, "n_head": 2, "adaln": 0}, "of no use")]:
        (tmp_path / "d" / "config.json").write_text(json.dumps({"options": options}))
        with pytest.raises(Fail, match=says):
            llada.load(tmp_path / "d")


def test_a_token_can_be_ruled_out(tmp_path):
    checkpoint(tmp_path / "c")
    model = llada.load(tmp_path / "c").eval()
    y = torch.full((1, 5, 1), CONFIG["vocab_size"])
    ask = y, torch.tensor([5]), torch.tensor([0.0]), torch.ones(1, 5, dtype=torch.bool)
    with torch.no_grad():
        free = model(*ask)[0]
        model.never = [47, 46]
        without = model(*ask)[0]
    assert without[:, [46, 47]].eq(-math.inf).all() and torch.equal(without[:, :46], free[:, :46])


def test_the_parameters_are_the_mapped_file(tmp_path):
    """dtype kept, nothing copied but the embedding, and the file unharmed by training on it."""
    checkpoint(tmp_path / "c", dtype=torch.bfloat16)
    path = tmp_path / "c" / "model.safetensors"
    file = path.read_bytes()
    model = llada.load(tmp_path / "c")
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model.embed.weight.shape == (52, 32) and torch.equal(model.embed.weight[50], model.embed.weight[47]) and torch.equal(model.embed.weight[51], model.embed.weight[46])
    spans = [tuple(map(lambda x: int(x, 16), line.split()[0].split("-"))) for line in open("/proc/self/maps") if str(path) in line] if sys.platform == "linux" else []
    inside = lambda p: any(a <= p.data_ptr() < z for a, z in spans)
    if spans:
        assert all(inside(p) == (name != "embed.weight") for name, p in model.named_parameters())
    with torch.no_grad():
        [p.zero_() for p in model.parameters()]
    assert path.read_bytes() == file


def test_a_checkpoint_that_does_not_fit_is_one_sentence(tmp_path):
    tensors = checkpoint(tmp_path / "c")
    path, q = tmp_path / "c" / "model.safetensors", "model.transformer.blocks.1.q_proj.weight"
    for change, says in [({"lm_head.weight": torch.zeros(1)}, "'lm_head.weight' has no place"), ({q: None}, f"'{q}' is missing"), ({q: torch.zeros(32, 31)}, "blocks.1.q.weight is torch.float32 [32, 31]"),
                         ({q: torch.zeros(32, 32, dtype=torch.int8)}, "is torch.int8"), ({q + "s": torch.zeros(1)}, "has no place"),
                         ({"model.transformer.wte.weight": torch.zeros(40, 32)}, "the embedding is [40, 32]"), ({"model.transformer.wte.weight": torch.tensor(1.0)}, "the embedding is []")]:
        llada.write_safetensors(path, {k: v for k, v in {**tensors, **change}.items() if v is not None})
        with pytest.raises(Fail, match=re.escape(says)):
            llada.load(tmp_path / "c")
    llada.write_safetensors(path, tensors)
    for change, says in [({"n_layers": 3}, "blocks.2.attn_norm.weight' is missing"), ({"n_layers": 1}, "has no place"), ({"n_layers": 1 << 24}, "do not belong together"),
                         ({"d_model": 1 << 23, "n_heads": 1 << 10, "n_kv_heads": 1}, "config.json implies"), ({"n_kv_heads": 4}, "config.json implies")]:
        (tmp_path / "c" / "config.json").write_text(json.dumps({**CONFIG, **change}))
        with pytest.raises(Fail, match=re.escape(says)):
            llada.load(tmp_path / "c")


# ---- tokenizer -----------------------------------------------------------------------------------------------------------------------

BYTES = llada.alphabet()                                                                       # character: byte
CHARS = {b: c for c, b in BYTES.items()}
LLAMA = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def byte_level(prefix=False, regex=True):
    return {"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": True, "use_regex": regex}


def split(regex, behavior="Isolated", invert=False):
    return {"type": "Sequence", "pretokenizers": [{"type": "Split", "pattern": {"Regex": regex}, "behavior": behavior, "invert": invert}, byte_level(regex=False)]}


def tokenizer(pairs, added=(), pre=None, shuffle=None, lists=False, extra=(), normalizer=None, **options):
    """The content of a tokenizer.json with these merges (pairs (a, b) of visible characters); `shuffle` seeds ids out of merge order, with gaps."""
    tokens = list(dict.fromkeys([*BYTES, *(a + b for a, b in pairs), *extra]))
    ids = list(range(len(tokens)))
    if shuffle is not None:
        ids = random.Random(shuffle).sample(range(2 * len(tokens)), len(tokens))
    vocab = dict(zip(tokens, ids))
    added = [{"id": vocab.get(text, max(ids) + 1 + i), "content": text, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
             for i, text in enumerate(added)]
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": normalizer, "pre_tokenizer": pre or byte_level(),
            "post_processor": None, "decoder": byte_level(), "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "vocab": vocab, "merges": [[a, b] if lists else f"{a} {b}" for a, b in pairs], **options}}


def saved(tmp_path, content):
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(content))
    return path


def naive(word, merges):
    """Textbook BPE of one word (of visible characters): again and again the first merge of the list, at its leftmost place."""
    parts, priority = list(word), {pair: i for i, pair in enumerate(merges)}
    while pairs := [(priority[p], i) for i, p in enumerate(zip(parts, parts[1:])) if p in priority]:
        _, i = min(pairs)
        parts[i:i + 2] = [parts[i] + parts[i + 1]]
    return parts


def random_merges(rng, letters="ab ĠĊ".replace(" ", ""), count=40):
    """Merges no training would make: two ways to one token, tokens that nothing reaches, repeated pairs."""
    tokens, merges = list(letters), []
    for _ in range(count):
        pair = rng.choice(tokens), rng.choice(tokens)
        if len("".join(pair)) <= 8:
            merges.append(pair)
            tokens.append("".join(pair))
    return merges


def visible(text):
    return "".join(CHARS[b] for b in text.encode())


def test_any_list_of_merges_equals_the_textbook_algorithm(tmp_path):
    """Ids in merge order are not needed, nor that a token has one merge, nor that a merge is ever reached."""
    rng = random.Random(0)
    for trial in range(60):
        merges = random_merges(rng)
        content = tokenizer(merges, pre=byte_level(regex=False), shuffle=trial, lists=trial % 2 == 0)
        encoding, vocab = llada.tokenizer_json(saved(tmp_path, content)), content["model"]["vocab"]
        for _ in range(40):
            text = "".join(rng.choice("ab \n") for _ in range(rng.randrange(1, 30)))
            assert encoding.encode(text) == [vocab[t] for t in naive(visible(text), merges)], (trial, text)
            assert encoding.decode(encoding.encode(text)) == text
    assert encoding.n_vocab == max(vocab.values()) + 1


def test_a_word_at_a_time_as_in_gpt2(tmp_path):
    merges = [("h", "e"), ("l", "l"), ("he", "ll"), ("Ġ", "w"), ("Ġw", "o"), ("Ġ", "Ġ"), ("Ã", "©")]
    content = tokenizer(merges, added=["<|endoftext|>", "<|mask|>", "<|mask|>x"], shuffle=1)
    vocab, encoding = content["model"]["vocab"], llada.tokenizer_json(saved(tmp_path, content))
    ids = {**vocab, **{t["content"]: t["id"] for t in content["added_tokens"]}}
    spelled = lambda text, **options: [{i: t for t, i in ids.items()}[i] for i in encoding.encode(text, **options)]
    assert spelled("hello  world é") == ["hell", "o", "Ġ", "Ġwo", "r", "l", "d", "Ġ", "Ã©"]
    assert spelled("he<|mask|>xll<|endoftext|>", allowed_special="all") == ["he", "<|mask|>x", "ll", "<|endoftext|>"]     # the longest wins
    assert spelled("he<|mask|>xll", allowed_special={"<|mask|>"}, disallowed_special=()) == ["he", "<|mask|>", "x", "ll"]
    with pytest.raises(ValueError, match="disallowed special token"):
        encoding.encode("he<|mask|>")
    assert encoding.encode_ordinary("<|mask|>") == encoding.encode("<|mask|>", disallowed_special=()) and len(encoding.encode_ordinary("<|mask|>")) == 8
    assert encoding.eot_token == ids["<|endoftext|>"] and encoding.special_tokens_set == {"<|endoftext|>", "<|mask|>", "<|mask|>x"}
    assert encoding.decode([vocab["hell"], ids["<|mask|>"], 10 ** 6]) == "hell<|mask|>"
    assert encoding.encode_single_token("hell") == vocab["hell"] and encoding.decode_single_token_bytes(vocab["Ġwo"]) == b" wo"
    assert encoding.encode_batch(["hello", "é"]) == [encoding.encode("hello"), encoding.encode("é")] == encoding.encode_ordinary_batch(["hello", "é"])
    assert encoding.decode(encoding.encode("\ud800")) == "\ufffd"                              # a lone surrogate, as in tiktoken
    assert pickle.loads(pickle.dumps(encoding)).encode("hello") == encoding.encode("hello")


GPT2_MERGES, GPT2_VOCAB = (os.path.join(DATA, "tiktoken", name) for name in ("6d1cbeee0f20b3d9449abfede4726ed8212e3aee", "6c7ea1a7e38e3a7f062df639a5b80947f075ffe6"))


@pytest.fixture(scope="module")
def gpt2():
    if not os.path.exists(GPT2_MERGES):
        pytest.skip("GPT-2's own files are not here")
    merges = [tuple(line.split(" ")) for line in open(GPT2_MERGES, encoding="utf-8").read().split("\n")[1:-1]]
    content = tokenizer(merges, added=["<|endoftext|>"])
    content["model"]["vocab"] = json.load(open(GPT2_VOCAB))
    content["added_tokens"][0]["id"] = 50256
    return content


TEXT = ("Hello  world!\n\n  it's 12345.67 — naïve café, 日本語と한국어, \U0001f600\U0001f468\u200d\U0001f469 e\u0301 \u00a0\u3000\r\n\tI'LL don't \x00\x85 ½ ﬁ İ ſ\n"
        "def f(x):\n    return x**2  # ok   \n" + "<|endoftext|>")


def test_gpt2_itself(tmp_path, gpt2, monkeypatch):
    """GPT-2's vocabulary written as a tokenizer.json gives tiktoken's own GPT-2 encoding."""
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", os.path.join(DATA, "tiktoken"))
    tiktoken = pytest.importorskip("tiktoken")
    encoding, real = llada.tokenizer_json(saved(tmp_path, gpt2)), tiktoken.get_encoding("gpt2")
    text = TEXT + open(os.path.join(DATA, "data", "tinyshakespeare.txt")).read()[:200_000]
    assert encoding.encode(text, allowed_special="all") == real.encode(text, allowed_special="all")
    assert encoding.decode(encoding.encode(text, allowed_special="all")) == text
    assert encoding.n_vocab == real.n_vocab == 50257 and encoding.eot_token == 50256


def snippets(rng, count):
    pool = ["<|endoftext|>", "<|mask|>", "<|mask|>x", "<|end", " ", "  ", "\n", "\r\n", "\t", "\u00a0", "\u3000", "'s", "'LL", "ſ", "don't", "123", "4567", "½", "Å", "A\u030a",
            "ﬁ", "日本語", "한국", "\u1112\u1161\u11ab", "\U0001f600", "\U0001f468\u200d\U0001f469", "\u200b", "\x00", "\x85", "\u2028", "İ", "ß", "_", "::", "->", "   x", "foo", "Bar",
            "é", "e\u0301", "\U0001d518", "१२", "ا", "\ufeff", "the", " the", "ing"]
    return ["".join(rng.choice(pool) for _ in range(rng.randrange(1, 25))) for _ in range(count)] + ["", " ", TEXT, TEXT * 3]


def test_equals_the_tokenizers_package(tmp_path):
    """A BPE trained here by the hub's own library, with the usual pre-tokenizers: the same ids for unicode, spaces, digits, special tokens."""
    tokenizers = pytest.importorskip("tokenizers")
    corpus = TEXT * 20 + open(__file__, encoding="utf-8").read()
    rng = random.Random(0)
    for pre, normalizer in [(byte_level(), None), (byte_level(prefix=True), None), (byte_level(regex=False), None), (split(LLAMA), None), (split(LLAMA, "Removed", True), None),
                            (split(r"\p{L}+|\p{N}"), None), (split(r"\p{L}+|\p{N}", "Isolated", True), "NFC"), (split(LLAMA), "NFKD")]:
        for shuffle in (False, True):
            blank = tokenizer([], pre=pre, normalizer=normalizer and {"type": normalizer})
            hub = tokenizers.Tokenizer.from_str(json.dumps(blank))
            hub.train_from_iterator(corpus.splitlines(keepends=True), tokenizers.trainers.BpeTrainer(
                vocab_size=900, show_progress=False, initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(), special_tokens=["<|endoftext|>", "<|mask|>", "<|mask|>x"]))
            content = json.loads(hub.to_str())
            if shuffle:                                                                        # the same merges, other ids
                vocab = content["model"]["vocab"]
                for token, i in zip(list(vocab), rng.sample(range(1000), len(vocab))):
                    vocab[token] = i
                for token in content["added_tokens"]:
                    token["id"] = vocab[token["content"]]
                content["added_tokens"].sort(key=lambda token: token["id"])
            path = saved(tmp_path, content)
            hub, encoding = tokenizers.Tokenizer.from_file(str(path)), llada.tokenizer_json(path)
            for text in snippets(rng, 300):
                ids = hub.encode(text, add_special_tokens=False).ids
                assert encoding.encode(text, allowed_special="all") == ids, (pre, normalizer, text)
                assert encoding.decode(ids) == hub.decode(ids, skip_special_tokens=False)
                if normalizer is None and pre == byte_level():
                    assert encoding.decode(ids) == text


def test_equals_the_tokenizers_package_on_merges_no_training_makes(tmp_path):
    tokenizers, rng = pytest.importorskip("tokenizers"), random.Random(1)
    for trial in range(40):
        content = tokenizer(random_merges(rng), shuffle=trial, added=[] if trial % 2 else ["ab"], pre=byte_level(regex=trial % 3 == 0))
        path = saved(tmp_path, content)
        hub, encoding = tokenizers.Tokenizer.from_file(str(path)), llada.tokenizer_json(path)
        if {t["content"]: t["id"] for t in content["added_tokens"]} != {"ab": hub.token_to_id("ab")} and content["added_tokens"]:
            continue                                                                           # that library renumbers some tokens; the file's number counts here
        for _ in range(40):
            text = "".join(rng.choice("ab \n") for _ in range(rng.randrange(1, 30)))
            assert encoding.encode(text, allowed_special="all") == hub.encode(text).ids, (trial, text)


def without(content, *path):
    content = json.loads(json.dumps(content))
    at = content
    for key in path[:-1]:
        at = at[key]
    del at[path[-1]]
    return content


PLAIN = [("a", "b"), ("ab", "c")]


@pytest.mark.parametrize("content, says", [
    ({**tokenizer(PLAIN), "model": {"type": "WordPiece", "vocab": {}}}, "its model is WordPiece"), ({**tokenizer(PLAIN), "model": {"type": "Unigram", "vocab": []}}, "its model is Unigram"),
    ({**tokenizer(PLAIN), "model": None}, "its model is missing"), (tokenizer(PLAIN, normalizer={"type": "Lowercase"}), "its normalizer is Lowercase"),
    (tokenizer(PLAIN, pre={"type": "Whitespace"}), "pre-tokenizer ['Whitespace']"), (tokenizer(PLAIN, pre={"type": "Metaspace"}), "pre-tokenizer ['Metaspace']"),
    ({**tokenizer(PLAIN), "pre_tokenizer": None}, "pre-tokenizer"), (tokenizer(PLAIN, pre=split("x", "MergedWithNext")), "pre-tokenizer"), (tokenizer(PLAIN, pre=split("(")), "regular expression"),
    (tokenizer(PLAIN, pre={"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level()]}), "['Digits', 'ByteLevel']"),
    (tokenizer(PLAIN, byte_fallback=True), "byte_fallback"), (tokenizer(PLAIN, dropout=0.1), "dropout"), (tokenizer(PLAIN, end_of_word_suffix="</w>"), "end_of_word_suffix"),
    ({**tokenizer(PLAIN), "decoder": {"type": "Metaspace"}}, "its decoder is Metaspace"), (without(tokenizer(PLAIN), "model", "vocab", "a"), "vocab lacks the byte 0x61"),
    (without(tokenizer(PLAIN), "model", "vocab", "abc"), "merge 'ab c'"), (tokenizer(PLAIN, merges=["a b c"]), "merge 'a b c'"), (tokenizer(PLAIN, merges=[["a", 7]]), "merge"),
    (tokenizer(PLAIN, merges=[7]), "merge 7"), (tokenizer(PLAIN, merges="a b"), "its model"), (tokenizer(PLAIN, vocab=[]), "vocab"), (tokenizer(PLAIN, vocab={"a": -1}), "vocab"),
    (tokenizer(PLAIN, vocab={"a": 1, "b": 1}), "vocab"), (tokenizer(PLAIN, extra=["zz"], ignore_merges=True), "ignore_merges, and a token, 'zz'"),
    ({**tokenizer(PLAIN), "added_tokens": [{"id": 3, "content": "<x>"}]}, "contradicts"), ({**tokenizer(PLAIN), "added_tokens": [{"id": 999, "content": ""}]}, "added_tokens"),
    ({**tokenizer(PLAIN), "added_tokens": [{"id": 999, "content": "<x>", "lstrip": True}]}, "lstrip"), ({**tokenizer(PLAIN), "added_tokens": 7}, "added_tokens"),
    ([], "no JSON object"), ({}, "its model is missing")])
def test_a_tokenizer_of_another_kind_is_one_sentence(tmp_path, content, says):
    with pytest.raises(Fail, match=re.escape(says)):
        llada.tokenizer_json(saved(tmp_path, content))


def test_a_tokenizer_that_is_not_there(tmp_path):
    with pytest.raises(Fail, match="cannot read"):
        llada.tokenizer_json(tmp_path / "tokenizer.json")


# ---- the whole path: retrofit, resume, sample, export, benchmark ---------------------------------------------------------------------

@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with a tiny pretrained model, GSM8K-like and infilling tasks, and a function that runs a script's main function quietly."""
    folder = tmp_path_factory.mktemp("retrofit")
    checkpoint(folder / "base", {**CONFIG, "vocab_size": 260, "embedding_size": 260, "mask_token_id": 258, "eos_token_id": 257, "pad_token_id": 257})
    saved(folder / "base", tokenizer([], added=["<|x|>", "<|endoftext|>", "<|mask|>"]))
    rng = random.Random(0)
    sums = [(a, b) for a in range(12) for b in range(12)]
    (folder / "sums.jsonl").write_text("\n".join(json.dumps({"question": f"{a}+{b}?", "answer": f"{a + b}\n#### {a + b}"}) for a, b in sums))
    (folder / "code.jsonl").write_text("\n".join(json.dumps({"prefix": f"def f{i}(x):\n", "middle": f" return {i}", "suffix": "\n"}) for i in range(100)))
    problem = {"entry_point": "f", "prompt": "def f(x):\n", "suffix": "\n", "canonical_solution": "    return x", "test": "def check(f):\n    assert f(2) == 2\n"}
    (folder / "infill.jsonl").write_text("\n".join(json.dumps({"task_id": f"t/{i}", **problem}) for i in range(3)))
    return folder


TRAIN = ["--batch_size=4", "--block_size=48", "--max_iters=4", "--eval_interval=2", "--eval_iters=1", "--log_interval=1", "--warmup_iters=1",
         "--sample_steps=3", "--device=cpu", "--lora=4", "--learning_rate=1e-2"]


def retrofitted(world, out, *flags):
    out_dir = str(world / out)
    args = [*TRAIN, f"--init_from={world / 'base'}", f"--dataset={world / 'sums.jsonl'}", f"--data_dir={world / 'data'}", f"--out_dir={out_dir}", *flags]
    train.train(list({a.split("=")[0]: a for a in args}.values()))
    return out_dir


@pytest.mark.parametrize("method", ["flexmdm", "mdm"])
def test_a_retrofit_trains_adapters_alone_and_resumes_to_the_bit(world, method):
    before = (world / "base" / "model.safetensors").read_bytes()
    a, b = retrofitted(world, f"{method}-a", f"--method={method}"), retrofitted(world, f"{method}-b", f"--method={method}", "--eval_interval=1", "--keep=5")
    content = project.read(f"{a}/ckpt.pt")
    assert all(k.startswith(("blocks.", "head.", "time.", "shared.", "gap.")) for k in content["model"])
    assert not any(k in content["model"] for k in ("embed.weight", "head.weight", "blocks.0.q.weight", "blocks.0.up.weight"))
    assert {"head.a", "blocks.1.v.b"} <= set(content["model"]) and ("gap.up.weight" in content["model"]) == (method == "flexmdm")
    os.remove(f"{b}/ckpt.pt")                                          # as if it had been stopped after step 3
    train.train([f"--out_dir={b}", "--init_from=resume"])
    again = project.read(f"{b}/ckpt.pt")
    for part in ("model", "ema"):
        assert all(torch.equal(content[part][k], again[part][k]) for k in content[part])
    assert (world / "base" / "model.safetensors").read_bytes() == before
    loaded = project.load(f"{a}/ckpt.pt")
    assert torch.equal(loaded.model.blocks[0].up.weight, llada.load(world / "base").blocks[0].up.weight)
    y = torch.full((1, 5, 1), loaded.code.mask)
    logits, _ = loaded.predict(y, torch.tensor([5]), torch.tensor([0.5]), torch.ones(1, 5, dtype=torch.bool))
    assert logits[:, 258].eq(-math.inf).all() and logits[:, :258].isfinite().all()             # its own mask token is never drawn


def test_prompts_are_never_noised(world):
    args = common.parse(train.Args, "", [f"--dataset={world / 'sums.jsonl'}", f"--data_dir={world / 'data'}", "--batch_size=8", "--block_size=48", f"--init_from={world / 'base'}"])
    train.check(args)
    dataset = train.open_data(args)
    code = prime.Code(260)
    for method in ("flexmdm", "mdm"):
        args.method, args.insertion = method, train.METHODS[method]
        for step in range(5):
            batch = train.make_batch(step, dataset.train, code, args, 257)
            text = [dataset.tokenizer.decode(row) for row in batch.x1.tolist()]
            for row in range(8):
                question = text[row].split("\n")[0] + "\n"
                given = len(dataset.tokenizer.encode(question))
                assert batch.frozen[row].tolist() == [i < given for i in range(batch.frozen.shape[1])]
                assert batch.noised.y[row, :given, 0].tolist() == batch.x1[row, :given].tolist()


def test_sample_export_and_go_on(world, capsys, monkeypatch):
    out = retrofitted(world, "c", "--overwrite")
    sample.run([f"--out_dir={out}", "--num_samples=2", "--steps=4", "--prompt=1+2?"])
    assert capsys.readouterr().out.count("1+2?") == 2
    monkeypatch.setattr(sys, "argv", ["model.py", "export", f"{out}/ckpt.pt", str(world / "exported")])
    project.command()
    loaded, back = project.load(f"{out}/ckpt.pt"), llada.load(world / "exported").eval()
    ask = torch.full((1, 4, 1), 260), torch.tensor([4]), torch.tensor([0.3]), torch.ones(1, 4, dtype=torch.bool)
    with torch.no_grad():
        (z, g), (z2, g2) = loaded.predict(*ask), back(*ask)
    keep = torch.arange(260) != 258
    assert torch.allclose(z[:, keep], z2[:, keep], atol=1e-4) and torch.allclose(g, g2, atol=1e-4)
    retrofitted(world, "d", f"--init_from={world / 'exported'}")
    assert project.load(str(world / "d" / "ckpt.pt")).model.never == [258]


@pytest.mark.parametrize("model_of, flags", [("flexmdm-a", []), ("mdm-a", ["--sampler=llada", "--block=4", "--temperature=0"]), ("base", ["--sampler=llada"]), ("base", ["--order=top_prob", "--window=4"])])
@pytest.mark.parametrize("benchmark", ["gsm8k", "infill"])
def test_benchmarks_of_a_model(world, benchmark, model_of, flags, capsys):
    """Random models solve nothing (or little); every problem is answered once, in a file that a second run completes."""
    results = world / f"{benchmark}-{model_of}-{len(flags)}.jsonl"
    problems = world / ("sums.jsonl" if benchmark == "gsm8k" else "infill.jsonl")
    argv = [f"--out_dir={world / model_of}", f"--problems={problems}", f"--results={results}", "--steps=6", "--length=8", "--device=cpu", *flags]
    evaluate.run_tasks(benchmark, [*argv, "--every=50" if benchmark == "gsm8k" else "--every=1"])
    first = results.read_text()
    assert len(first.splitlines()) == 4 and "pass@1" in capsys.readouterr().out
    results.write_text("\n".join(first.splitlines()[:2]) + "\n" + '{"task_id": "cut')
    evaluate.run_tasks(benchmark, [*argv, "--every=50" if benchmark == "gsm8k" else "--every=1"])
    strip = lambda text: [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in text.splitlines()]
    if model_of != "base" and "--sampler=llada" not in flags or "--temperature=0" in flags:    # each problem has its own seed
        assert strip(results.read_text()) == strip(first)
    else:
        assert len(results.read_text().splitlines()) == 4


@pytest.mark.parametrize("flags, says", [
    (["--method=prime"], "goes on as --method flexmdm or mdm"), (["--block_size=65"], "longer than the 64 tokens"), (["--fsdp"], "--fsdp needs"),
    (["--tokenizer=bytes"], "vocabulary")])
def test_bad_input_of_a_retrofit(world, flags, says):
    with pytest.raises(Fail, match=says):
        retrofitted(world, "bad", *flags)
