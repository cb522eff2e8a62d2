"""model.py: what padding, packing and grouping must not change, and what a checkpoint must refuse. Tiny networks with random weights."""
import copy
import math
import os
import pickle
import zipfile
from dataclasses import asdict

import pytest
import torch

import model
import rates
from common import Fail
from interpolant import below, interpolate, schedule
from model import Config, build, load, read, save

SIZES = dict(n_layer=2, n_head=2, n_embd=24, n_cond=16, block_size=160)
KINDS = {
    "flexmdm": Config(V=11, **SIZES),
    "mdm": Config(V=11, insertion="instant", **SIZES),
    "flexprime": Config(V=11, ell=2, **SIZES),
    "ar": Config(V=11, insertion="instant", causal=True, **SIZES),
    "retrofit": Config(V=11, norm="rms", mlp="swiglu", n_kv_head=1, adaln=2, **SIZES),
    "no time": Config(V=11, adaln=0, **SIZES),
}


def awake(config, seed=0, permutation=None):
    """A network that does not start at zero: every parameter is drawn, so that each of them matters."""
    net = build(config, permutation).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in net.parameters():
            p.normal_(std=0.3, generator=generator)
    return net


def states(config, lengths, seed=0):
    """Random states of these lengths, all their slots asked for (those with a mask, as always): y, n, t, at."""
    torch.manual_seed(seed)
    n, L = torch.tensor(lengths), max(max(lengths), 1)
    code = build(config).code
    y = code.encode(torch.randint(config.V, (len(n), L)))
    y = torch.where(torch.rand(y.shape) < 0.5, code.mask, y)
    at = (y == code.mask).any(2) & below(n, L)
    return torch.where(below(n, L)[:, :, None], y, code.pad), n, torch.rand(len(n)), at


def full(net, y, n, t):
    """Logits at every slot (B, L, V), NaN elsewhere, and log g."""
    at = below(n, y.shape[1])
    with torch.no_grad():
        logits, log_g = net(y, n, t, at)
    out = torch.full((*y.shape[:2], net.config.V), torch.nan)
    out[at] = logits
    return out, None if log_g is None else torch.where(below(n + 1, y.shape[1] + 1), log_g, torch.nan)


def close(a, b, atol=1e-5):
    return a is b is None or torch.allclose(a, b, rtol=0, atol=atol, equal_nan=True)


@pytest.mark.parametrize("method", ["flexmdm", "mdm"])
def test_a_new_network_attends_to_all_slots_alike(method):
    """Counting is then one linear map away; from random queries small networks do not learn to count."""
    torch.manual_seed(0)
    net, doc = build(KINDS[method]), torch.tensor([0, 0, 0, 1, 1])
    packed = model.pack(torch.zeros(2, 3, 1, dtype=torch.int64), torch.tensor([3, 2]), torch.zeros(2, 3, dtype=torch.bool), net.code.pad, end_slot=False)
    h, angle = torch.randn(5, 24), packed.pos[:, None, None] * torch.ones(6)
    for block in net.blocks:
        out = block.attention(h, angle.cos(), angle.sin(), packed)
        means = torch.stack([block.v(h)[doc == d].mean(0) for d in (0, 1)])
        assert close(out, block.out(means)[doc])
        assert out.abs().max() > 0.1


# ---- padding, packing, grouping ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("kind", KINDS)
def test_what_stands_past_the_end_changes_nothing(kind):
    net = awake(KINDS[kind])
    y, n, t, _ = states(KINDS[kind], [9, 1, 5, 7])
    expected = full(net, y, n, t)
    garbage = torch.where(below(n, 9)[:, :, None], y, torch.randint(net.code.pad + 1, y.shape))
    assert all(a is b is None or torch.equal(a.nan_to_num(0), b.nan_to_num(0)) for a, b in zip(full(net, garbage, n, t), expected))
    wider = torch.cat([garbage, torch.full((4, 6, net.code.ell), 10 ** 9)], 1)                 # never looked up, or this would crash
    logits, log_g = full(net, wider, n, t)
    assert close(logits[:, :9], expected[0], 0) and (log_g is None or close(log_g[:, :10], expected[1], 0))


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_does_not_depend_on_its_batch(kind):
    """Alone, beside others, in another order, and with lengths so different that attention runs in several groups."""
    config = KINDS[kind]
    net = awake(config)
    lengths = [160, 3, 97, 150, 30, 1, 64, 66] + ([0] if net.gap is not None else [])
    y, n, t, _ = states(config, lengths)
    groups = model.group((n + (net.gap is not None)).tolist(), "cpu")[0]
    assert len(groups) >= 3 and any(keys is None for _, keys in groups) and any(keys is not None for _, keys in groups)
    logits, log_g = full(net, y, n, t)
    for b, length in enumerate(lengths):
        alone, gaps = full(net, y[b:b + 1, :max(length, 1)], n[b:b + 1], t[b:b + 1])
        assert close(alone[0, :length], logits[b, :length])
        assert gaps is None or close(gaps[0, :length + 1], log_g[b, :length + 1])
    order = torch.randperm(len(n))
    shuffled = full(net, y[order], n[order], t[order])
    assert close(shuffled[0], logits[order]) and (log_g is None or close(shuffled[1], log_g[order]))
    assert torch.isfinite(logits[below(n, 160)]).all() and (log_g is None or torch.isfinite(log_g[below(n + 1, 161)]).all())


@pytest.mark.parametrize("kind", KINDS)
def test_a_subset_of_slots_gets_the_full_results_row_major(kind):
    net = awake(KINDS[kind])
    y, n, t, at = states(KINDS[kind], [9, 2, 0, 7] if net.gap is not None else [9, 2, 1, 7])
    logits, log_g = full(net, y, n, t)
    for asked in (at, at & (torch.rand(at.shape) < 0.5), torch.zeros_like(at), below(n, 9)):
        with torch.no_grad():
            some, gaps = net(y, n, t, asked)
        assert some.shape == (int(asked.sum()), 11) and close(some, logits[asked])
        assert (gaps is None) == (log_g is None) and (gaps is None or close(torch.where(below(n + 1, 10), gaps, torch.nan), log_g))
        if gaps is not None:
            assert gaps.dtype == torch.float32 and gaps.shape == (4, 10)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_finite_and_padding_has_none(kind):
    """Groups with padded documents, and an empty document: masked attention rows must not turn into NaN on the way back."""
    net = awake(KINDS[kind]).train()
    y, n, t, at = states(KINDS[kind], [150, 130, 20, 2, 0] if net.gap is not None else [150, 130, 20, 2, 1])
    logits, log_g = net(y, n, t, at)
    loss = logits.logsumexp(1).sum() + (0 if log_g is None else torch.where(below(n + 1, y.shape[1] + 1), log_g, 0).sum())
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in net.parameters() if p.grad is not None)
    pad_is_used = net.gap is not None or net.config.causal                                     # as the end slot, or as the beginning
    assert bool((net.embed.weight.grad[net.code.pad] != 0).any()) == pad_is_used
    missing = [name for name, p in net.named_parameters() if p.grad is None]
    assert not missing or kind == "no time"


def test_the_groups_hold_every_slot_once_and_little_padding():
    for _ in range(50):
        lengths = torch.randint(0, int(torch.randint(1, 300, ())), (int(torch.randint(1, 20, ())),)).tolist()
        groups, back = model.group(lengths, "cpu")
        T = sum(lengths)
        if T == 0:
            continue
        flat = torch.cat([index.flatten() for index, _ in groups])
        assert torch.equal(flat[back], torch.arange(T)) and len(back) == T
        every = lambda index, keys: torch.ones(index.numel(), dtype=torch.bool) if keys is None else keys.flatten()
        inside = torch.cat([every(*g) for g in groups])
        assert int(inside.sum()) == T and sorted(back.tolist()) == inside.nonzero()[:, 0].tolist()
        for index, keys in groups:
            assert keys is None or keys.any() and index.shape[1] <= max(lengths)
            if index.shape[1] > 64:
                assert keys is None or keys.float().mean() >= 0.75
    assert len(model.group([64] * 8, "cpu")[0]) == 1 and model.group([64] * 8, "cpu")[0][0][1] is None      # equal lengths: no mask, so flash


@pytest.mark.parametrize("ell", [1, 2])
def test_a_causal_model_sees_no_future(ell):
    config = Config(V=11, ell=ell, insertion="instant", causal=True, **SIZES)
    net = awake(config)
    y, n, t, _ = states(config, [120, 30, 12])
    y = torch.where(y == net.code.mask, 0, y)
    logits, log_g = full(net, y, n, t)
    assert log_g is None
    for i in (0, 5, 11):
        changed = y.clone()
        changed[:, i:] = torch.where(below(n, 120)[:, i:, None], (y[:, i:] + 1) % net.code.b, y[:, i:])
        again, _ = full(net, changed, n, t)
        assert close(again[:, :i + 1], logits[:, :i + 1])                                      # slot i is answered from slots < i
        assert (again[0, i + 1] - logits[0, i + 1]).abs().max() > 1e-3
    with_future, _ = full(awake(KINDS["mdm"]), *states(KINDS["mdm"], [12])[:3])
    y, n, t, _ = states(KINDS["mdm"], [12])
    y[:, 11] = (y[:, 11] + 1) % 11
    assert (full(awake(KINDS["mdm"]), y, n, t)[0][:, 0] - with_future[:, 0]).abs().max() > 1e-3


def test_time_is_seen_through_alpha_only():
    for name, sees in (("linear", True), ("sin", True), ("instant", False)):
        config = Config(V=11, insertion=name, **SIZES)
        net = awake(config)
        y, n, t, _ = states(config, [9, 5])
        difference = (full(net, y, n, t)[0] - full(net, y, n, 1 - t)[0])[below(n, 9)].abs().max()
        assert (difference > 1e-3) == sees
    sin, linear = awake(Config(V=11, insertion="sin", **SIZES)), awake(Config(V=11, insertion="linear", **SIZES))
    assert close(full(sin, y, n, t)[0], full(linear, y, n, schedule("sin").at(t))[0])


# ---- at the start --------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("kind", KINDS)
def test_at_first_every_token_is_about_equally_likely(kind):
    torch.manual_seed(1)
    net = build(KINDS[kind])
    y, n, t, at = states(KINDS[kind], [9, 4])
    logits, log_g = net(y, n, t, at)
    assert logits.abs().max() < 0.6 and (logits.softmax(1) - 1 / 11).abs().max() < 0.05        # a small head, not zero as in the paper
    assert ((logits.exp().mean(1).log() - logits.mean(1)).abs() < 0.05).all()
    if log_g is not None:
        assert (log_g[below(n + 1, 10)] + 1).abs().max() < 0.1                                 # g = e^-1 in every gap


def test_the_papers_size():
    with torch.device("meta"):
        net = model.Transformer(Config(V=50257, block_size=1024, n_layer=12, n_head=12, n_embd=768, n_cond=128))
    assert round(net.count()[0] / 1e6, 1) == 170.4


@pytest.mark.parametrize("kind", ["flexmdm", "mdm", "flexprime", "ar"])
def test_one_batch_can_be_learnt_by_heart(kind):
    """8 documents, fixed noise: the loss goes to almost nothing beside ln 8, the price of the first token where nothing is given (ar)."""
    torch.manual_seed(0)
    config = Config(**{**asdict(KINDS[kind]), "n_embd": 32, "block_size": 12})
    net = build(config)
    x1, n1 = torch.randint(1, 11, (8, 12)), torch.tensor([12, 12, 9, 7, 5, 12, 3, 1]) if kind != "mdm" else torch.full((8,), 12)
    insertion = schedule(config.insertion)
    t = torch.linspace(0.3, 0.9, 8)
    d1 = rates.digits(net.code, x1, n1)
    noised = interpolate(d1, n1, t, insertion, schedule("linear"), mask=net.code.mask, pad=net.code.pad)

    def loss():
        if kind == "ar":
            return rates.next_token_nll(net, net.code, x1, n1).mean()
        return sum(term.mean() for term in rates.terms(net, net.code, d1, n1, noised, t))
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
    first = float(loss().detach())
    for _ in range(120):
        optimizer.zero_grad()
        value = loss()
        value.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
    assert first > 3 and float(loss().detach()) < 0.05 * first + (math.log(8) if kind == "ar" else 0)


def test_gradient_checkpointing_changes_nothing():
    net = awake(KINDS["flexmdm"]).train()
    y, n, t, at = states(KINDS["flexmdm"], [20, 3, 9])
    grads = []
    for net.checkpoint in (False, True):
        net.zero_grad()
        logits, log_g = net(y, n, t, at)
        (logits.square().sum() + log_g[below(n + 1, 21)].sum()).backward()
        grads.append([p.grad.clone() for p in net.parameters()])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*grads))


# ---- checkpoints ---------------------------------------------------------------------------------------------------------------------

def write(path, net, **more):
    content = dict(model=net.state_dict(), ema={k: v * 0.5 for k, v in net.state_dict().items()}, config=asdict(net.config), step=7,
                   permutation=net.code.permutation, run={"method": "flexmdm"}, tokenizer={"name": "bytes"})
    save(path, **{**content, **more})
    return str(path)


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_gives_the_same_answers(kind, tmp_path):
    net = awake(KINDS[kind])
    y, n, t, at = states(KINDS[kind], [9, 4])
    loaded = load(write(tmp_path / "ckpt.pt", net), ema=False)
    for a, b in zip(loaded.predict(y, n, t, at), net(y, n, t, at)):
        assert a is b is None or torch.equal(a, b) and not a.requires_grad
    assert loaded.step == 7 and loaded.config == KINDS[kind] and loaded.tokenizer == {"name": "bytes"} and not loaded.model.training
    averaged = load(str(tmp_path / "ckpt.pt"))                                                 # the averaged weights, unless told otherwise
    assert torch.equal(averaged.model.embed.weight, net.embed.weight * 0.5)
    assert torch.equal(load(write(tmp_path / "no_ema.pt", net, ema=None)).model.embed.weight, net.embed.weight)


@pytest.mark.parametrize("size", [11, 16])
def test_a_checkpoint_keeps_its_digit_code(size, tmp_path):
    """Shuffled ids, among themselves or over all b^ell numbers."""
    net = awake(KINDS["flexprime"], permutation=torch.randperm(size))
    code = load(write(tmp_path / "ckpt.pt", net)).code
    assert torch.equal(code.encode(torch.arange(11)), net.code.encode(torch.arange(11)))


def test_any_damage_is_noticed(tmp_path):
    """Every bit matters: bytes changed anywhere, the file cut anywhere or lengthened."""
    path = write(tmp_path / "ckpt.pt", awake(KINDS["flexmdm"]))
    good = open(path, "rb").read()
    places = [0, 1, 3, 4, 30, *torch.randint(len(good), (60,)).tolist(), *(len(good) - k for k in (67, 66, 65, 64, 1))]

    def refused(content):
        with open(path, "wb") as f:
            f.write(content)
        with pytest.raises(Fail) as fault:
            load(path)
        assert path in str(fault.value) and "\n" not in str(fault.value)
    for i in places:
        refused(good[:i] + bytes([good[i] ^ (1 << i % 8)]) + good[i + 1:])
    for i in [0, 1, 4, 65, 66, 100, *torch.randint(len(good), (20,)).tolist(), len(good) - 1]:
        refused(good[:i])
    refused(good + b"\0")
    with open(path, "wb") as f:
        f.write(good)
    assert load(path).step == 7


class Harmful:
    def __reduce__(self):
        return os.mkdir, (os.environ["HARM"],)


def test_code_in_a_checkpoint_is_never_run(tmp_path, monkeypatch):
    monkeypatch.setenv("HARM", str(tmp_path / "harm"))
    path = write(tmp_path / "ckpt.pt", awake(KINDS["flexmdm"]), extra=Harmful())               # its checksum is right
    with pytest.raises(Fail, match="carries code"):
        load(path)
    torch.save({"format": 1, "x": Harmful()}, path)
    with pytest.raises(Fail):
        load(path)
    with open(path, "wb") as f:
        pickle.dump(Harmful(), f)
    with pytest.raises(Fail, match="not a checkpoint"):
        load(path)
    assert not (tmp_path / "harm").exists()


def test_what_is_no_checkpoint_of_ours_is_refused_in_one_sentence(tmp_path):
    net = awake(KINDS["flexmdm"])
    path = str(tmp_path / "ckpt.pt")

    def refused(match, content=None, **more):
        if content is not None:
            save(path, **content)
        else:
            write(path, net, **more)
        with pytest.raises(Fail, match=match) as fault:
            load(path)
        assert "\n" not in str(fault.value)
    refused("format 2.*update the code", format=2)
    refused("not a checkpoint", format="1")
    refused("does not fit", content={"step": 1})
    refused("does not know: wings", config={**asdict(net.config), "wings": 2})
    refused("does not fit", config={**asdict(net.config), "n_embd": 48})                       # weights of another size
    refused("does not fit", ema=None, model={k: v for k, v in net.state_dict().items() if "head" not in k})
    refused("digits", config={**asdict(net.config), "ell": 0})
    refused("permutation", permutation=torch.zeros(11, dtype=torch.int64))
    refused("unknown schedule", config={**asdict(net.config), "insertion": "sideways"})
    for name, fault in (("absent.pt", "there is no checkpoint"), (".", "cannot read")):
        with pytest.raises(Fail, match=fault):
            load(str(tmp_path / name))
    with zipfile.ZipFile(path, "w") as z:
        z.writestr("a", "b")
    with pytest.raises(Fail, match="damaged"):
        load(path)


@pytest.mark.parametrize("wrong, match", [
    (dict(ell=0), "ell"), (dict(ell=-1), "ell"), (dict(ell=5), "lower ell"), (dict(ell=3, n_embd=32, n_head=2), "must divide"),
    (dict(n_head=5), "multiple"), (dict(n_head=0), "multiple"), (dict(n_embd=6), "even multiple"),
    (dict(block_size=1), "at least 2"), (dict(V=1), "at least 2 tokens"),
    (dict(insertion="up"), "unknown schedule")])
def test_sizes_that_cannot_be_are_refused_in_one_sentence(wrong, match):
    with pytest.raises(Fail, match=match):
        build({**asdict(KINDS["flexmdm"]), **wrong})


def test_a_failed_write_leaves_the_last_checkpoint(tmp_path):
    path = write(tmp_path / "ckpt.pt", awake(KINDS["flexmdm"]))
    with pytest.raises(Exception):
        save(path, bad=lambda: 0)                                                              # cannot be pickled
    assert load(path).step == 7 and os.listdir(tmp_path) == ["ckpt.pt"]


def test_weights_are_not_shared_with_what_was_loaded(tmp_path):
    net = awake(KINDS["flexmdm"])
    before = copy.deepcopy(net.state_dict())
    loaded = load(write(tmp_path / "ckpt.pt", net))
    with torch.no_grad():
        loaded.model.embed.weight.zero_()
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert read(str(tmp_path / "ckpt.pt"))["step"] == 7
