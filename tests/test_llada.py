"""retrofit/llada.py and export.py: LLaDA's formulas written out once more, plainly; its retrofit,
which begins as LLaDA; folders in and out; what does not fit is one sentence."""
import json
import math
import os
import re
import sys
from dataclasses import asdict

import pytest
import torch

import model
from common import Fail
from hub import CONFIG, tokenizer_json, write_llada
from retrofit import export, llada, safetensors

V, MASK, END = CONFIG["vocab_size"], CONFIG["mask_token_id"], CONFIG["pad_token_id"]


# -----------------------------------------------------------------------------
# LLaDA

def reference(w, c, ids):
    """LLaDA for one text: ids (n,) -> logits (n, V). No code in common with model.py."""
    H, K, n = c["n_heads"], c["n_kv_heads"], len(ids)
    hd = c["d_model"] // H

    def weight(name):
        return w[f"model.transformer.{name}.weight"]

    def rms(x, weight):
        size = (x.float() ** 2).mean(-1, keepdim=True).add(c["rms_norm_eps"]).sqrt()
        return (x.float() / size).to(x.dtype) * weight

    def rope(x):                                                            # (n, heads, hd)
        out = torch.empty_like(x)
        for j in range(hd // 2):
            angle = torch.arange(n).float() / c["rope_theta"] ** (2 * j / hd)
            cos, sin = angle.cos()[:, None], angle.sin()[:, None]
            a, b = x[:, :, j].float(), x[:, :, j + hd // 2].float()
            out[:, :, j], out[:, :, j + hd // 2] = a * cos - b * sin, b * cos + a * sin
        return out

    x = weight("wte")[ids]
    for i in range(c["n_layers"]):
        block = f"blocks.{i}."
        h = rms(x, weight(block + "attn_norm"))
        q = rope((h @ weight(block + "q_proj").T).view(n, H, hd))
        k = rope((h @ weight(block + "k_proj").T).view(n, K, hd))
        v = (h @ weight(block + "v_proj").T).view(n, K, hd)
        heads = []
        for head in range(H):
            shared = head * K // H                      # the key and value head of this query head
            scores = q[:, head] @ k[:, shared].T / math.sqrt(hd)
            heads.append(scores.softmax(-1) @ v[:, shared])
        x = x + torch.cat(heads, -1) @ weight(block + "attn_out").T
        h = rms(x, weight(block + "ff_norm"))
        gate = h @ weight(block + "ff_proj").T
        hidden = gate * torch.sigmoid(gate) * (h @ weight(block + "up_proj").T)
        x = x + hidden @ weight(block + "ff_out").T
    return rms(x, weight("ln_f")) @ weight("ff_out").T


def documents(lengths):
    """Texts with masks in them: a question (y, n, t, at) to our network, for all slots in use, and
    [ids (n,)], the same texts for LLaDA"""
    torch.manual_seed(1)
    n, L = torch.tensor(lengths), max(lengths)
    y, texts = torch.full((len(lengths), L, 1), V + 1), []
    for b, length in enumerate(lengths):
        hidden = torch.rand(length) < 0.5
        tokens = torch.randint(0, V - 4, (length,))
        y[b, :length, 0] = torch.where(hidden, V, tokens)
        texts.append(torch.where(hidden, MASK, tokens))
    t = torch.tensor([0.0, 0.3, 0.9, 1.0])[:len(n)]
    return (y, n, t, torch.arange(L) < n[:, None]), texts


def with_masks_only(question):
    y, n, t, _ = question
    return y, n, t, y[:, :, 0] == V


def retrofitted(folder, r=4, insertion="linear", trained=False):
    """A retrofit; trained: as if it had been, with other numbers wherever training writes"""
    net = llada.retrofit(folder, insertion, lora=r).eval()
    if trained:
        with torch.no_grad():
            for p in trained_parameters(net).values():
                p.add_(0.05 * torch.randn_like(p))
    return net


def trained_parameters(net):
    return {name: p for name, p in net.named_parameters() if p.requires_grad}


def answers(net, question, given=None):
    with torch.no_grad():
        return net.eval()(*question, given)


@pytest.mark.parametrize("kv", [1, 2, 4])
@pytest.mark.parametrize("files", [1, 3])
def test_the_imported_model_is_llada(tmp_path, kv, files):
    config = {**CONFIG, "n_kv_heads": kv}
    w = write_llada(tmp_path / "c", config, files=files)
    net = llada.load(tmp_path / "c")
    net.never = []
    lengths = [17, 3, 64, 1]
    question, texts = documents(lengths)
    logits, log_g = answers(net, question)
    assert log_g is None and all(p.dtype == torch.float32 for p in net.parameters())
    for ours, text in zip(logits.split(lengths), texts):
        assert torch.allclose(ours, reference(w, config, text), atol=1e-5, rtol=1e-5)
    assert reference(w, config, texts[0]).std() > 0.3                       # not all the same


def test_the_retrofit_is_llada_at_the_start(tmp_path):
    """Adapters, modulations, the vector for given slots and the end slot are there: the token
    logits are those of LLaDA with its end token after the text, at any time, whatever was given."""
    w = write_llada(tmp_path / "c")
    net = retrofitted(tmp_path / "c")
    net.never = []
    lengths = [17, 3, 64, 1]
    question, texts = documents(lengths)
    logits, log_g = answers(net, question, torch.rand(4, 64) < 0.5)
    for ours, text in zip(logits.split(lengths), texts):
        theirs = reference(w, CONFIG, torch.cat([text, torch.tensor([END])]))[:-1]
        assert torch.allclose(ours, theirs, atol=1e-5, rtol=1e-5)
    assert log_g.shape == (4, 65) and log_g.isfinite().all()
    assert (log_g[0, :18] + 1).abs().max() < 0.5


def test_given_slots_and_time_count_once_it_is_trained(tmp_path):
    write_llada(tmp_path / "c")
    net = retrofitted(tmp_path / "c", trained=True)
    (y, n, t, at), _ = documents([9, 20])
    given = torch.zeros(2, 20, dtype=torch.bool)
    given[0, 2] = True
    plain, marked = answers(net, (y, n, t, at)), answers(net, (y, n, t, at), given)
    assert not torch.allclose(plain[0][:9], marked[0][:9])
    assert not torch.allclose(plain[1], marked[1])
    assert torch.equal(plain[0][9:], marked[0][9:])                         # the other document
    assert not torch.allclose(plain[0], answers(net, (y, n, t + 0.1, at))[0])


def test_one_modulation_for_eight_blocks(tmp_path):
    write_llada(tmp_path / "c", {**CONFIG, "n_layers": 10})
    net = llada.retrofit(tmp_path / "c", "linear")
    assert [m.weight.shape for m in net.shared] == [(64, 32)] * 2


def test_checkpointing_changes_no_gradient(tmp_path):
    write_llada(tmp_path / "c")
    net = retrofitted(tmp_path / "c", trained=True).train()
    question, gradients = documents([9, 20])[0], []
    for net.checkpointing in (False, True):
        net.zero_grad()
        logits, log_g = net(*question)
        (logits.logsumexp(1).sum() + log_g.sum()).backward()
        gradients.append([p.grad.clone() for p in trained_parameters(net).values()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients))


def test_its_own_mask_token_is_never_sampled(tmp_path):
    """Ours is the symbol V. In training its logit is there, so that nothing is divided by 0."""
    write_llada(tmp_path / "c")
    for net in (llada.load(tmp_path / "c"), retrofitted(tmp_path / "c")):
        question, _ = documents([5])
        logits, _ = answers(net, question)
        assert logits[:, MASK].eq(-math.inf).all() and logits[:, :MASK].isfinite().all()
        assert net.train()(*question)[0].isfinite().all()


def test_the_parameters_are_the_mapped_file(tmp_path):
    """dtype kept, nothing copied but the embedding, and the file unharmed by training on it"""
    write_llada(tmp_path / "c", dtype=torch.bfloat16)
    path = tmp_path / "c" / "model.safetensors"
    file, net = path.read_bytes(), llada.load(tmp_path / "c")
    assert {p.dtype for p in net.parameters()} == {torch.bfloat16}
    embed = net.embed.weight
    assert embed.shape == (V + 2, 32)
    assert torch.equal(embed[V], embed[MASK]) and torch.equal(embed[V + 1], embed[END])
    if sys.platform == "linux":
        with open("/proc/self/maps") as f:
            spans = [line.split()[0].split("-") for line in f if str(path) in line]
        spans = [(int(a, 16), int(z, 16)) for a, z in spans]
        for name, p in net.named_parameters():
            inside = any(a <= p.data_ptr() < z for a, z in spans)
            assert inside == (name != "embed.weight"), name
    with torch.no_grad():
        for p in net.parameters():
            p.zero_()
    assert path.read_bytes() == file


# -----------------------------------------------------------------------------
# training and adapters

def test_only_what_is_new_trains_and_is_saved(tmp_path):
    w = write_llada(tmp_path / "c", dtype=torch.bfloat16)
    net = retrofitted(tmp_path / "c").train()
    question = with_masks_only(documents([9, 20])[0])
    given = torch.ones(2, 20, dtype=torch.bool)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    optimizer = torch.optim.AdamW(trained_parameters(net).values(), lr=1e-2)
    for _ in range(2):                                  # the first step moves b, the second a too
        logits, log_g = net(*question, given)
        (logits.float().logsumexp(1).sum() + log_g.sum()).backward()
        optimizer.step()
    new = {name: p.detach() for name, p in trained_parameters(net).items()}
    assert {k for k, v in net.state_dict().items() if not torch.equal(v, before[k])} == set(new)
    assert {k.split(".")[0] for k in new} == {"blocks", "head", "time", "shared", "gap", "given"}
    adapters = {k.split(".", 2)[2] for k in new if k.startswith("blocks")}
    assert adapters == {"q.a", "q.b", "k.a", "k.b", "v.a", "v.b"}
    assert all(v.dtype == torch.float32 for v in new.values())
    frozen = net.blocks[0].q.weight
    assert torch.equal(frozen, w["model.transformer.blocks.0.q_proj.weight"])

    again = llada.retrofit(net.base, "linear", lora=4)      # what a checkpoint does
    missing, unexpected = again.load_state_dict(new, strict=False)
    assert not unexpected and set(missing) == set(before) - set(new)
    assert asdict(again.config) == asdict(net.config)
    for a, b in zip(answers(net, question, given), answers(again, question, given)):
        assert torch.equal(a, b)


def test_without_adapters_all_weights_train(tmp_path):
    write_llada(tmp_path / "c")
    net = llada.retrofit(tmp_path / "c", "instant", block_size=20)
    assert set(trained_parameters(net)) == set(net.state_dict()) and net.config.block_size == 20
    assert net.base == str(tmp_path / "c")
    with pytest.raises(Fail, match="--block_size 65 is more than the 64 tokens"):
        llada.retrofit(tmp_path / "c", "instant", block_size=65)


def test_merging_changes_nothing(tmp_path):
    write_llada(tmp_path / "c")
    net, plain = retrofitted(tmp_path / "c", trained=True), llada.retrofit(tmp_path / "c", "linear")
    plain.load_state_dict(llada.merged(net))                                # strict
    question, _ = documents([9, 20])
    for a, b in zip(answers(net, question), answers(plain, question)):
        assert torch.allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("insertion", ["linear", "instant"])
def test_an_exported_model_is_read_back(tmp_path, insertion):
    """In float32 it gives the same answers, and a run can go on from it."""
    write_llada(tmp_path / "c")
    (tmp_path / "c" / "tokenizer.json").write_text(json.dumps(tokenizer_json([])))
    net = retrofitted(tmp_path / "c", insertion=insertion, trained=True)
    out = tmp_path / "out" / "e"
    export.export(net, out, END, args={"unmasking": "sin"})
    back = llada.load(out)
    question, _ = documents([9, 20])
    assert back.config == net.config and back.never == [MASK]
    keep = torch.arange(V) != MASK
    (a, g), (b, h) = answers(net, question), answers(back, question)
    assert torch.allclose(a[:, keep], b[:, keep], atol=1e-5)
    assert insertion == "instant" or torch.allclose(g, h, atol=1e-5)
    described = json.loads((out / "config.json").read_text())
    assert described["vocab_size"] == V and described["eos_token_id"] == END
    assert described["args"] == {"unmasking": "sin"}
    assert sorted(os.listdir(out)) == ["config.json", "model.safetensors", "tokenizer.json"]
    again = llada.retrofit(out, insertion, block_size=32, lora=2)
    assert again.base == str(out) and "head.a" in trained_parameters(again)
    with pytest.raises(Fail, match=f"has --insertion {insertion}, not cosine"):
        llada.retrofit(out, "cosine")


def kinds(tensors):
    return {name: (t.shape, t.dtype) for name, t in tensors.items()}


def test_an_exported_model_keeps_its_dtypes(tmp_path):
    write_llada(tmp_path / "c", dtype=torch.bfloat16)
    net = retrofitted(tmp_path / "c", trained=True)
    export.export(net, tmp_path / "e", END)
    back = llada.load(tmp_path / "e").state_dict()
    assert kinds(back) == kinds(llada.merged(net))
    assert back["blocks.0.q.weight"].dtype == torch.bfloat16
    assert back["given"].dtype == torch.float32


def test_any_model_of_this_project_can_be_exported(tmp_path):
    config = model.Config(V=50, ell=2, n_layer=1, n_embd=16, n_head=2)
    net = model.Transformer(config, torch.randperm(50))
    export.export(net, tmp_path / "d", 0, tokenizer={"name": "bytes"})
    back = llada.load(tmp_path / "d")
    assert torch.equal(back.code.permutation, net.code.permutation)
    assert all(torch.equal(a, b) for a, b in zip(back.parameters(), net.parameters()))
    described = json.loads((tmp_path / "d" / "config.json").read_text())
    assert described["tokenizer"] == {"name": "bytes"}
    for options in [{"V": "many"}, [], {"V": 50, "depth": 3}, {**asdict(config), "n_embd": 32}]:
        described = {"model": "Transformer", "options": options, "never": []}
        (tmp_path / "d" / "config.json").write_text(json.dumps(described))
        with pytest.raises(Fail, match="do not fit config.json"):
            llada.load(tmp_path / "d")


@pytest.mark.parametrize("r", [0, 4])
def test_the_hubs_layout_has_every_tensor_and_no_other(tmp_path, r):
    """As LLaDA's public modelling code needs it: the same names, shapes and dtypes, the same
    config, and the formulas give the model's answers."""
    w = write_llada(tmp_path / "c", files=2)
    (tmp_path / "c" / "modeling_llada.py").write_text("# theirs")
    net, out = retrofitted(tmp_path / "c", r, "instant", trained=True), tmp_path / "out"
    export.export_hub(net, out)
    back = safetensors.read_folder(out)
    assert kinds(back) == kinds(w)
    head = "model.transformer.ff_out.weight"
    assert not torch.equal(back[head], w[head])
    assert sorted(os.listdir(out)) == ["config.json", "model.safetensors", "modeling_llada.py"]
    assert (out / "config.json").read_bytes() == (tmp_path / "c" / "config.json").read_bytes()
    question, texts = documents([17, 64])
    logits, _ = answers(net, question)
    keep = torch.arange(V) != MASK
    for ours, text in zip(logits.split([17, 64]), texts):
        assert torch.allclose(ours[:, keep], reference(back, CONFIG, text)[:, keep], atol=1e-5)


def test_the_hubs_layout_has_no_place_for_insertion(tmp_path):
    write_llada(tmp_path / "c")
    with pytest.raises(Fail, match="export without --hub"):
        export.export_hub(retrofitted(tmp_path / "c"), tmp_path / "out")


# -----------------------------------------------------------------------------
# config.json, and tensors that do not belong to it

def with_config(folder, **changes):
    """changes: to CONFIG; ... removes a key"""
    config = {k: v for k, v in {**CONFIG, **changes}.items() if v is not ...}
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_config(tmp_path):
    config, mask, pad = llada.read_config(with_config(tmp_path))
    assert (mask, pad) == (47, 46)
    assert config == llada.Config(V=50, block_size=64, n_layer=2, n_head=4, n_kv_head=2, n_embd=32,
                                  n_hidden=48, rope_theta=500000.0, norm_eps=1e-5)
    for absent in (None, ...):
        folder = with_config(tmp_path, pad_token_id=absent, eos_token_id=3, n_kv_heads=absent)
        config, _, pad = llada.read_config(folder)
        assert pad == 3 and config.n_kv_head == 4


@pytest.mark.parametrize("key, value", [
    ("block_type", "sequential"), ("activation_type", "gelu"), ("layer_norm_type", "default"),
    ("include_bias", True), ("include_qkv_bias", True), ("weight_tying", True), ("rope", False),
    ("rope_scaling", {"factor": 8}), ("alibi", True), ("block_type", None), ("block_type", ...),
    ("activation_type", ...), ("layer_norm_type", ...)])
def test_a_config_value_that_is_not_implemented_is_named(tmp_path, key, value):
    with pytest.raises(Fail, match=f"config.json: {key} is"):
        llada.read_config(with_config(tmp_path, **{key: value}))


@pytest.mark.parametrize("key", ["n_layers", "max_sequence_length", "d_model", "vocab_size",
                                 "rope_theta", "rms_norm_eps", "mask_token_id"])
@pytest.mark.parametrize("absent", [None, ...])
def test_a_config_value_that_is_missing_is_named(tmp_path, key, absent):
    with pytest.raises(Fail, match=f"config.json .'{key}'"):
        llada.read_config(with_config(tmp_path, **{key: absent}))


@pytest.mark.parametrize("text", ["", "{", "[]", "7", "[" * 100000])
def test_a_config_that_is_not_json(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(Fail, match="config.json"):
        llada.read_config(tmp_path)
    with pytest.raises(Fail, match="cannot read"):
        llada.read_config(tmp_path / "nowhere")


Q = "model.transformer.blocks.1.q_proj.weight"


@pytest.mark.parametrize("change, says", [
    ({"lm_head.weight": torch.zeros(1)}, "lm_head.weight"), ({Q: None}, "blocks.1.q_proj.weight"),
    ({Q: torch.zeros(32, 31)}, "blocks.1.q.weight"), ({Q + "s": torch.zeros(1)}, "q_proj.weights"),
    ({Q: torch.zeros(32, 32, dtype=torch.int8)}, "floating"),
    ({"model.transformer.wte.weight": torch.zeros(40, 32)}, "out of"),
    ({"model.transformer.wte.weight": torch.tensor(1.0)}, "do not fit")])
def test_tensors_that_do_not_fit_are_one_sentence(tmp_path, change, says):
    tensors = write_llada(tmp_path / "c")
    tensors = {k: v for k, v in {**tensors, **change}.items() if v is not None}
    safetensors.write(tmp_path / "c" / "model.safetensors", tensors)
    with pytest.raises(Fail, match=f"do not fit config.json.*{re.escape(says)}|{says}"):
        llada.load(tmp_path / "c")


def test_shards_that_lack_a_tensor_are_one_sentence(tmp_path):
    """One shard is not in the index: as if that came from another version of the folder"""
    write_llada(tmp_path / "c", files=3)
    index = tmp_path / "c" / "model.safetensors.index.json"
    where = json.loads(index.read_text())["weight_map"]
    for bad in ({"weight_map": {k: f for k, f in where.items() if f != where[Q]}}, {},
                {"weight_map": []}):
        index.write_text(json.dumps(bad))
        with pytest.raises(Fail, match="do not fit config.json"):
            llada.load(tmp_path / "c")


@pytest.mark.parametrize("change", [
    {"n_layers": 3}, {"n_layers": 1}, {"n_layers": -1}, {"n_kv_heads": 4}, {"n_kv_heads": 3},
    {"n_heads": 5}, {"n_heads": 0}, {"n_heads": 32}, {"d_model": "32"}, {"d_model": 0},
    {"vocab_size": 1 << 60}, {"mask_token_id": 50},
    {"d_model": 1 << 23, "n_heads": 1 << 10, "n_kv_heads": 1}])
def test_a_config_of_another_model_is_one_sentence(tmp_path, change):
    write_llada(tmp_path / "c")
    with pytest.raises(Fail, match="do not fit config.json"):
        llada.load(with_config(tmp_path / "c", **change))
