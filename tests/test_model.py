"""model.py: the network against a plain reimplementation, and what packing must not change. Tiny
networks with random weights."""
import math
from dataclasses import asdict, replace

import pytest
import torch
import torch.nn.functional as F

import model
import rates
import varlen_cpu
from interpolant import below, interpolate, schedule
from model import Config, Transformer

SIZES = dict(n_layer=2, n_head=2, n_embd=24, n_cond=16, block_size=160)
KINDS = {
    "flexmdm": Config(V=11, **SIZES),
    "mdm": Config(V=11, insertion="instant", **SIZES),
    "prime": Config(V=11, ell=2, insertion="instant", **SIZES),
    "flexprime": Config(V=11, ell=2, **SIZES),
    "ar": Config(V=11, insertion="instant", causal=True, **SIZES),
}
NOT_CAUSAL = [kind for kind in KINDS if kind != "ar"]
WITH_GAPS = ["flexmdm", "flexprime"]


def awake(config, seed=0, permutation=None, std=0.2):
    """A network that does not start at zero: every parameter is drawn, so that each of them
    matters."""
    net = Transformer(config, permutation).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in net.parameters():
            p.normal_(std=std, generator=generator)
    return net


def states(net, lengths, seed=0):
    """Random states of these lengths, all their slots with a mask asked for: y, n, t, at."""
    torch.manual_seed(seed)
    n, L, code = torch.tensor(lengths), max(*lengths, 1), net.code
    used = below(n, L)
    y = code.encode(torch.randint(code.V, (len(n), L)))
    y = torch.where(torch.rand(y.shape) < 0.5, code.mask, y)
    at = (y == code.mask).any(2) & used
    return torch.where(used[:, :, None], y, code.pad), n, torch.rand(len(n)), at


def full(net, y, n, t, given=None):
    """Logits at every slot (B, L, V) and log g (B, L + 1), NaN where nothing is in use."""
    L = y.shape[1]
    at = below(n, L)
    with torch.no_grad():
        logits, log_g = net(y, n, t, at, given)
    out = torch.full((*y.shape[:2], net.code.V), torch.nan, dtype=logits.dtype)
    out[at] = logits
    if log_g is not None:
        log_g = log_g.masked_fill(~below(n + 1, L + 1), torch.nan)
    return out, log_g


def close(a, b, atol=1e-5):
    if a is None or b is None:
        return a is b
    return torch.allclose(a, b, rtol=0, atol=atol, equal_nan=True)


def total(net, logits, log_g, n):
    """A number that depends on every answer."""
    loss = logits.float().logsumexp(1).sum()
    if log_g is not None:
        loss = loss + log_g[below(n + 1, log_g.shape[1])].sum()
    return loss


# -----------------------------------------------------------------------------
# the network written out

def reference(net, y, t, given):
    """The logits (n, V) and log g (n + 1,) of one document y (n, ell) at time t, slot by slot and
    head by head, from the weights by their names."""
    w, c = {k: v.double() for k, v in net.state_dict().items()}, net.config
    pad = torch.full((1, c.ell), net.code.pad)
    told = torch.cat([given, torch.zeros(1, dtype=torch.bool)])
    y = torch.cat([y, pad])                                             # the end slot
    if c.causal:
        y, told = torch.cat([pad, y[:-2]]), told.roll(1)[:-1]           # slot i sees slot i - 1
    elif net.gap is None:
        y, told = y[:-1], told[:-1]
    N, hd = len(y), c.n_embd // c.n_head

    def linear(x, name):
        bias = w.get(name + ".bias", torch.zeros((), dtype=torch.float64))
        return x @ w[name + ".weight"].T + bias

    def norm(x, name):
        x = x - x.mean(-1, keepdim=True)
        return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * w[name + ".weight"]

    def waves(x):
        angle = torch.tensor([x * 10000 ** (-i / 128) for i in range(128)], dtype=torch.float64)
        return torch.cat([angle.cos(), angle.sin()])

    def rotated(x):                                                     # (N, hd)
        out = torch.empty_like(x)
        for i in range(hd // 2):
            angle = torch.arange(N) * c.rope_theta ** (-2 * i / hd)
            a, b = x[:, i], x[:, i + hd // 2]
            out[:, i] = a * angle.cos() - b * angle.sin()
            out[:, i + hd // 2] = b * angle.cos() + a * angle.sin()
        return out

    def attention(h, name):
        q, k, v = (linear(h, f"{name}.{part}") for part in "qkv")
        heads = []
        for i in range(0, c.n_embd, hd):
            s = rotated(q[:, i:i + hd]) @ rotated(k[:, i:i + hd]).T / hd ** 0.5
            if c.causal:
                s = s.masked_fill(torch.ones(N, N).triu(1).bool(), -torch.inf)
            heads.append(s.softmax(1) @ v[:, i:i + hd])
        return linear(torch.cat(heads, 1), f"{name}.out")

    x = w["embed.weight"][y].flatten(1) + told[:, None] * w["given"]
    if not c.causal:
        alpha = float(schedule(c.insertion).at(t))
        cond = F.silu(linear(F.silu(linear(waves(1000 * alpha), "time.0")), "time.2"))
    for i in range(c.n_layer):
        name = f"blocks.{i}"
        shift1, scale1, gate1, shift2, scale2, gate2 = 0, 0, 1, 0, 0, 1
        if not c.causal:
            shift1, scale1, gate1, shift2, scale2, gate2 = linear(cond, f"{name}.adaln").chunk(6)
        h = norm(x, f"{name}.norm1") * (1 + scale1) + shift1
        x = x + gate1 * attention(h, name)
        h = norm(x, f"{name}.norm2") * (1 + scale2) + shift2
        x = x + gate2 * linear(F.gelu(linear(h, f"{name}.mlp.0")), f"{name}.mlp.2")
    h = norm(x, "norm")
    if not c.causal:
        shift, scale = linear(cond, "adaln").chunk(2)
        h = h * (1 + scale) + shift
    logits = linear(h, "head")
    if net.gap is None:
        return logits, None
    shift, scale = linear(F.silu(cond + linear(waves(N), "gap.count")), "gap.adaln").chunk(2)
    h = norm(x, "gap.norm") * (1 + scale) + shift
    log_g = linear(F.gelu(linear(h, "gap.up")), "gap.down")[:, 0]
    return logits[:-1], log_g.clamp(-15, 15)


@pytest.mark.parametrize("kind", KINDS)
def test_the_network_is_the_one_written_out(kind):
    """Time, digits, given slots, positions, both modulations of every block, the end slot, the slot
    count: each has its weights drawn at random, so each of them shows."""
    net = awake(KINDS[kind]).double()
    y, n, t, _ = states(net, [9, 1, 5, 12, 0])
    given = torch.rand(y.shape[:2]) < 0.4
    given = given & ~(y == net.code.mask).any(2)
    logits, log_g = full(net, y, n, t, given)
    for b, length in enumerate(n.tolist()):
        f, g = reference(net, y[b, :length], float(t[b]), given[b, :length])
        assert close(logits[b, :length], f)
        if g is not None:
            assert close(log_g[b, :length + 1], g)
        assert f.numel() == 0 or f.std() > 0.1                          # and the answers differ


@pytest.mark.parametrize("method", ["flexmdm", "mdm"])
def test_a_new_network_attends_to_all_slots_alike(method):
    """Counting is then one linear map away; from random queries small networks do not learn to
    count."""
    net = Transformer(KINDS[method])
    y, n = torch.zeros(2, 3, 1, dtype=torch.int64), torch.tensor([3, 2])
    nothing = torch.zeros(2, 3, dtype=torch.bool)
    packed = model.pack(y, n, nothing, None, net.code.pad, end_slot=False, causal=False)
    doc = torch.tensor([0, 0, 0, 1, 1])
    assert torch.equal(packed.doc, doc)
    h, (cos, sin) = torch.randn(5, 24), model.angles(packed.pos, 12, 10000.0)
    for block in net.blocks:
        out = block.attention(h, cos, sin, packed)
        means = torch.stack([block.v(h)[doc == d].mean(0) for d in (0, 1)])
        assert close(out, block.out(means)[doc])
        assert out.abs().max() > 0.1


# -----------------------------------------------------------------------------
# packing

@pytest.mark.parametrize("kind", KINDS)
def test_what_stands_past_the_end_changes_nothing(kind):
    net = awake(KINDS[kind])
    y, n, t, _ = states(net, [9, 1, 5, 7])
    inside, given = below(n, 9), torch.rand(4, 9) < 0.5
    expected = full(net, y, n, t, given & inside)
    garbage = torch.where(inside[:, :, None], y, torch.randint(net.code.pad + 1, y.shape))
    given = given | ~inside
    assert all(map(close, full(net, garbage, n, t, given), expected, (0, 0)))
    never = torch.full((4, 6, net.code.ell), 10 ** 9)       # looked up, this would crash
    wider = torch.cat([garbage, never], 1)
    logits, log_g = full(net, wider, n, t, F.pad(given, (0, 6), value=True))
    assert close(logits[:, :9], expected[0])
    assert log_g is None or close(log_g[:, :10], expected[1])


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_does_not_depend_on_its_batch(kind):
    """Alone, beside others of very different lengths, and in another order."""
    net = awake(KINDS[kind])
    lengths = [160, 3, 97, 150, 30, 1, 64, 66, 0]
    y, n, t, _ = states(net, lengths)
    logits, log_g = full(net, y, n, t)
    for b, length in enumerate(lengths):
        row = slice(b, b + 1)
        alone, gaps = full(net, y[row, :max(length, 1)], n[row], t[row])
        assert close(alone[0, :length], logits[b, :length])
        assert gaps is None or close(gaps[0, :length + 1], log_g[b, :length + 1])
    order = torch.randperm(len(n))
    shuffled = full(net, y[order], n[order], t[order])
    assert close(shuffled[0], logits[order])
    assert log_g is None or close(shuffled[1], log_g[order])
    assert torch.isfinite(logits[below(n, 160)]).all()
    assert log_g is None or torch.isfinite(log_g[below(n + 1, 161)]).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_subset_of_slots_gets_the_full_results_row_by_row(kind):
    """Also no slot at all."""
    net = awake(KINDS[kind])
    y, n, t, at = states(net, [9, 2, 7, 0])
    logits, log_g = full(net, y, n, t)
    half = torch.rand(at.shape) < 0.5
    for asked in (at, at & half, torch.zeros_like(at), below(n, 9)):
        with torch.no_grad():
            some, gaps = net(y, n, t, asked)
        assert some.shape == (int(asked.sum()), 11) and close(some, logits[asked])
        if log_g is None:
            assert gaps is None
        else:
            assert gaps.dtype == torch.float32 and gaps.shape == (4, 10)
            assert close(gaps.masked_fill(~below(n + 1, 10), torch.nan), log_g)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_finite_and_every_parameter_has_one(kind):
    """Also with an empty document. The pad symbol is trained where it is used: as the end slot, or
    as the beginning."""
    net = awake(KINDS[kind]).train()
    y, n, t, at = states(net, [150, 130, 20, 2, 0])
    given = ~at & below(n, 150)
    logits, log_g = net(y, n, t, at, given)
    total(net, logits, log_g, n).backward()
    for name, p in net.named_parameters():
        assert p.grad is not None and torch.isfinite(p.grad).all(), name
    pad_is_used = net.gap is not None or net.config.causal
    assert bool((net.embed.weight.grad[net.code.pad] != 0).any()) == pad_is_used


def test_the_packed_row_by_hand():
    """Documents of 2 and 0 slots of 3, the first slot of the first given, its second asked for."""
    y = torch.tensor([[[4], [9], [7]], [[5], [5], [5]]])
    at, given = torch.zeros(2, 3, dtype=torch.bool), torch.zeros(2, 3, dtype=torch.bool)
    at[0, 1] = given[0, 0] = True
    n = torch.tensor([2, 0])
    packed = model.pack(y, n, at, given, 10, end_slot=True, causal=False)
    assert packed.y[:, 0].tolist() == [4, 9, 10, 10]
    assert packed.given[:, 0].tolist() == [1, 0, 0, 0]
    assert packed.doc.tolist() == [0, 0, 0, 1] and packed.pos.tolist() == [0, 1, 2, 0]
    assert packed.ends.tolist() == [0, 3, 4] and packed.ends.dtype == torch.int32
    assert packed.asked.tolist() == [1]
    causal = model.pack(y, n, at, given, 10, end_slot=False, causal=True)
    assert causal.y[:, 0].tolist() == [10, 4] and causal.given[:, 0].tolist() == [0, 1]
    assert causal.asked.tolist() == [1] and causal.ends.tolist() == [0, 2, 2]


@pytest.mark.parametrize("ell", [1, 2])
def test_a_causal_model_sees_no_future(ell):
    """The answer for slot i is that of the document cut off before slot i."""
    net = awake(replace(KINDS["ar"], ell=ell))
    y, n, t, _ = states(net, [120, 30, 12])
    logits, log_g = full(net, y, n, t)
    assert log_g is None
    for i in (0, 5, 11):
        at = torch.arange(i + 1) == i
        cut = y[:, :i + 1].clone()
        cut[:, i] = net.code.mask                           # what stands there is not looked at
        with torch.no_grad():
            last, _ = net(cut, torch.full((3,), i + 1), t, at.expand(3, -1))
        assert close(last, logits[:, i])
    changed = y.clone()
    changed[:, 5] = (y[:, 5] + 1) % net.code.b
    again, _ = full(net, changed, n, t)
    assert (again[0, 6] - logits[0, 6]).abs().max() > 1e-3


def test_the_others_see_the_future():
    net = awake(KINDS["mdm"])
    y, n, t, _ = states(net, [12])
    before, _ = full(net, y, n, t)
    y[:, 11] = (y[:, 11] + 1) % 11
    assert (full(net, y, n, t)[0][:, 0] - before[:, 0]).abs().max() > 1e-3


# -----------------------------------------------------------------------------
# what the network is told

def test_time_is_seen_through_alpha_only():
    for name, sees in (("linear", True), ("sin", True), ("instant", False)):
        net = awake(replace(KINDS["mdm"], insertion=name))
        y, n, t, _ = states(net, [9, 5])
        difference = full(net, y, n, t)[0] - full(net, y, n, 1 - t)[0]
        assert (difference[below(n, 9)].abs().max() > 1e-3) == sees
    sin, linear = (awake(replace(KINDS["mdm"], insertion=name)) for name in ("sin", "linear"))
    warped = schedule("sin").at(t)
    assert close(full(sin, y, n, t)[0], full(linear, y, n, warped)[0], 1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_given_slots_are_told_apart_once_their_vector_is_learnt(kind):
    """It starts at zero: then a network answers as if nothing were given."""
    net = awake(KINDS[kind])
    y, n, t, _ = states(net, [9, 5])
    given = (torch.arange(9) < 3).expand(2, 9)
    plain = full(net, y, n, t)
    assert (full(net, y, n, t, given)[0] - plain[0])[below(n, 9)].abs().max() > 1e-3
    assert all(map(close, full(net, y, n, t, torch.zeros_like(given)), plain, (0, 0)))
    torch.nn.init.zeros_(net.given)
    plain = full(net, y, n, t)
    assert all(map(close, full(net, y, n, t, given), plain, (0, 0)))
    assert (Transformer(KINDS[kind]).given == 0).all()


def test_positions_matter():
    """A mask between a and b is not a mask between b and a; and only distances count."""
    net = awake(KINDS["mdm"])
    t, n, at = torch.rand(2), torch.tensor([3, 3]), torch.tensor([[False, True, False]] * 2)
    y = torch.tensor([[1, net.code.mask, 2], [2, net.code.mask, 1]])[:, :, None]
    with torch.no_grad():
        logits, _ = net(y, n, t, at)
    assert (logits[0] - logits[1]).abs().max() > 1e-3
    q, k = torch.randn(2, 50, 1, 12)
    q, k = q[:1].expand(50, 1, 12), k[:1].expand(50, 1, 12)
    cos, sin = model.angles(torch.arange(50), 12, 10000.0)
    q, k = model.rotate(q, cos, sin), model.rotate(k, cos, sin)
    scores = (q[:, 0] @ k[:, 0].T)
    for distance in (0, 1, 7):
        assert scores.diagonal(distance).std() < 1e-4
    assert abs(float(scores[0, 0] - scores[0, 1])) > 1e-3


def test_the_gap_head_counts_slots():
    """Documents whose slots are all alike differ by their number only, and a new network's
    attention averages: without the count their gaps would have equal answers."""
    net = Transformer(KINDS["flexmdm"]).eval()
    torch.nn.init.normal_(net.gap.adaln.weight)
    torch.nn.init.normal_(net.gap.down.weight)
    n = torch.tensor([3, 7])
    y = torch.where(below(n, 7), net.code.mask, net.code.pad)[:, :, None]
    t = torch.tensor([0.5, 0.5])
    log_g = full(net, y, n, t)[1]
    assert abs(float(log_g[0, 0] - log_g[1, 0])) > 1e-2
    torch.nn.init.zeros_(net.gap.count.weight)
    log_g = full(net, y, n, t)[1]
    assert close(log_g[0, 0], log_g[1, 0])


@pytest.mark.parametrize("bias, log_g", [
    (100.0, 15.0), (-100.0, -15.0), (14.5, 14.5), (-14.5, -14.5)])
def test_log_g_ends_at_15(bias, log_g):
    net = awake(KINDS["flexmdm"])
    torch.nn.init.zeros_(net.gap.down.weight)
    torch.nn.init.constant_(net.gap.down.bias, bias)
    y, n, t, _ = states(net, [9, 0])
    got = full(net, y, n, t)[1]
    assert (got[below(n + 1, 10)] == log_g).all()


@pytest.mark.parametrize("kind", WITH_GAPS)
def test_the_end_slot_answers_for_the_last_gap(kind):
    """An empty document has one gap; log g of the last gap depends on what stands before it."""
    net = awake(KINDS[kind])
    y, n, t, _ = states(net, [6, 0, 0])
    t[1:] = torch.tensor([0.1, 0.9])
    log_g = full(net, y, n, t)[1]
    assert torch.isfinite(log_g[0]).all() and torch.isfinite(log_g[1:, 0]).all()
    assert abs(float(log_g[1, 0] - log_g[2, 0])) > 1e-3             # it sees the time
    changed = y.clone()
    changed[0, 5] = (y[0, 5] + 1) % net.code.b
    other = full(net, changed, n, t)[1]
    assert abs(float(other[0, 6] - log_g[0, 6])) > 1e-4
    assert len(log_g[0].unique()) == 7


def test_tokens_that_are_never_sampled():
    net = awake(KINDS["mdm"])
    net.never = (3, 4)
    y, n, t, at = states(net, [9, 5])
    with torch.no_grad():
        logits, _ = net(y, n, t, at)
        learning, _ = net.train()(y, n, t, at)
    assert (logits[:, 3:5] == -torch.inf).all() and torch.isfinite(learning).all()
    others = [v for v in range(11) if v not in net.never]
    assert close(logits[:, others], learning[:, others])


# -----------------------------------------------------------------------------
# training

@pytest.mark.parametrize("kind", KINDS)
def test_at_first_every_token_is_about_equally_likely(kind):
    torch.manual_seed(1)
    net = Transformer(KINDS[kind])
    y, n, t, at = states(net, [9, 4])
    logits, log_g = net(y, n, t, at)
    assert logits.abs().max() < 0.6                     # a small head, not zero as in the paper
    assert (logits.softmax(1) - 1 / 11).abs().max() < 0.05
    if log_g is not None:
        assert (log_g[below(n + 1, 10)] + 1).abs().max() < 0.1      # g = 1/e in every gap


def test_the_papers_size():
    with torch.device("meta"):
        net = Transformer(Config(V=50257, block_size=1024, n_layer=12, n_head=12, n_embd=768))
    everything, inside = net.count()
    assert round(everything / 1e6, 1) == 170.4
    assert everything - inside == (50257 + 2) * 768 + 50257 * 768


@pytest.mark.parametrize("kind", ["flexmdm", "mdm", "flexprime", "ar"])
def test_one_batch_can_be_learnt_by_heart(kind):
    """8 documents, fixed noise: the loss goes to almost nothing beside ln 8, the price of the first
    token where nothing is given (ar)."""
    net = Transformer(replace(KINDS[kind], n_embd=32, block_size=12))
    x1, n1 = torch.randint(1, 11, (8, 12)), torch.tensor([12, 12, 9, 7, 5, 12, 3, 1])
    if kind == "mdm":
        n1 = torch.full((8,), 12)
    insertion, unmasking = schedule(net.config.insertion), schedule("linear")
    t, d1 = torch.linspace(0.3, 0.9, 8), rates.digits(net.code, x1, n1)
    noised = interpolate(d1, n1, t, insertion, unmasking, mask=net.code.mask, pad=net.code.pad)

    def loss():
        if kind == "ar":
            return rates.next_token_nll(net, net.code, x1, n1).mean()
        return sum(term.mean() for term in rates.terms(net, net.code, d1, n1, noised, t))
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    first = float(loss().detach())
    for _ in range(150):
        optimizer.zero_grad()
        loss().backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
    price = math.log(8) if kind == "ar" else 0
    assert first > 3 and float(loss().detach()) < 0.05 * first + price


@pytest.mark.parametrize("kind", ["flexmdm", "ar"])
def test_recomputing_blocks_changes_no_gradient(kind):
    net = awake(KINDS[kind]).train()
    y, n, t, at = states(net, [20, 3, 9])
    gradients = []
    for net.checkpointing in (False, True):
        net.zero_grad()
        total(net, *net(y, n, t, at), n).backward()
        gradients.append([torch.zeros(1) if p.grad is None else p.grad.clone()
                          for p in net.parameters()])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*gradients))


@pytest.mark.parametrize("kind", KINDS)
def test_dropout_is_for_training_only(kind):
    net = awake(replace(KINDS[kind], dropout=0.5))
    y, n, t, _ = states(net, [9, 5])
    without = awake(KINDS[kind])
    assert all(map(close, full(net, y, n, t), full(without, y, n, t), (0, 0)))
    first, second = full(net.train(), y, n, t)[0], full(net, y, n, t)[0]
    assert (first - second)[below(n, 9)].abs().max() > 1e-2
    for silent in ("out", "mlp.2"):                     # in attention and in the MLP, each alone
        net = awake(replace(KINDS[kind], dropout=0.5)).train()
        with torch.no_grad():
            for block in net.blocks:
                for p in block.get_submodule(silent).parameters():
                    p.zero_()
        first, second = full(net, y, n, t)[0], full(net, y, n, t)[0]
        assert (first - second)[below(n, 9)].abs().max() > 1e-2


@pytest.mark.parametrize("wrong, match", [
    (dict(ell=0), "ell"), (dict(ell=-1), "ell"), (dict(ell=5, n_embd=40), "lower ell"),
    (dict(ell=3, n_embd=32), "multiple of ell"), (dict(n_head=5), "n_head"),
    (dict(n_head=0), "n_head"), (dict(n_embd=6), "even multiple"), (dict(V=1), "at least 2 tokens"),
    (dict(V=0), "at least 2 tokens")])
def test_sizes_that_cannot_be_are_refused_in_one_sentence(wrong, match):
    with pytest.raises(ValueError, match=match) as fault:
        Transformer(Config(**{**asdict(KINDS["flexmdm"]), **wrong}))
    assert "\n" not in str(fault.value)


# -----------------------------------------------------------------------------
# the path of a GPU, on a CPU

HALF = torch.bfloat16


@pytest.fixture
def varlen(monkeypatch):
    """Attention goes through torch's variable-length kernel, as on a GPU."""
    varlen_cpu.register()
    varlen_cpu.calls.clear()
    monkeypatch.setattr(model, "flash", varlen_cpu.takes)


def answers_and_gradients(net, y, n, t, at):
    net.zero_grad()
    with torch.autocast("cpu", HALF):
        logits, log_g = net(y, n, t, at)
        total(net, logits, log_g, n).backward()
    gradients = {name: p.grad for name, p in net.named_parameters() if name != "given"}
    if log_g is not None:
        log_g = log_g.detach()
    return logits.detach().float(), log_g, gradients


def half_sized(kind, n_layer=2):
    """Heads of 16: flash attention wants a multiple of 8."""
    return awake(replace(KINDS[kind], n_embd=32, n_layer=n_layer), std=0.15).train()


@pytest.mark.parametrize("kind", KINDS)
def test_the_varlen_path_equals_the_other_one(kind, varlen, monkeypatch):
    """Forward and backward, to the precision of bfloat16; every parameter has a gradient."""
    net = half_sized(kind)
    y, n, t, at = states(net, [40, 25, 3, 31, 0])
    logits, log_g, gradients = answers_and_gradients(net, y, n, t, at)
    slots = int(n.sum()) + len(n) * (net.gap is not None)
    assert varlen_cpu.calls == [slots] * net.config.n_layer
    monkeypatch.setattr(model, "flash", lambda q: False)
    expected, gaps, others = answers_and_gradients(net, y, n, t, at)
    assert len(varlen_cpu.calls) == net.config.n_layer
    size = expected.std()
    assert torch.isfinite(logits).all() and (logits - expected).abs().max() < 0.05 * size
    if gaps is not None:
        assert log_g.dtype == torch.float32
        assert (log_g - gaps).abs().max() < 0.05 * gaps.std()
    for name, g in gradients.items():
        assert g is not None and (g != 0).any(), name
        assert (g - others[name]).norm() < 0.15 * others[name].norm(), name


def test_flash_takes_16_bit_heads_of_a_gpu():
    q = torch.zeros(4, 2, 16, device="meta", dtype=HALF)
    assert not model.flash(q)                               # "meta" is no GPU

    class OnGpu:
        is_cuda = True

        def __init__(self, dtype, hd):
            self.dtype, self.shape = dtype, (4, 2, hd)
    for dtype, hd, takes in ((HALF, 64, True), (torch.float16, 8, True), (torch.float32, 64, False),
                             (HALF, 12, False), (HALF, 264, False), (HALF, 256, True)):
        assert model.flash(OnGpu(dtype, hd)) == takes


@pytest.mark.parametrize("kind, path", [("flexmdm", "varlen"), ("ar", "varlen"),
                                        ("mdm", "one by one")])
def test_the_compiled_trunk_compiles_once_for_all_lengths(kind, path, request):
    """30 batches of different sizes, forward and backward: nothing is compiled after the first two.
    Nothing falls back to Python in between, but attention where there is no flash attention."""
    from torch._dynamo.testing import CompileCounterWithBackend
    from torch._dynamo.utils import counters
    if path == "varlen":
        request.getfixturevalue("varlen")
    torch._dynamo.reset()
    counters.clear()
    net = half_sized(kind, n_layer=1)
    backend = CompileCounterWithBackend("aot_eager")
    trunk, net.trunk = net.trunk, torch.compile(net.trunk, backend=backend, dynamic=True)
    compiled = []
    for step in range(30):
        lengths = torch.randint(2, 40, (6,)).tolist()
        y, n, t, at = states(net, lengths, seed=step)
        got = answers_and_gradients(net, y, n, t, at)
        compiled.append(backend.frame_count)
    assert compiled[1] >= 1 and compiled[-1] == compiled[1], compiled
    breaks = counters["graph_break"]
    if path == "varlen":
        assert not breaks, dict(breaks)
    assert all("attend_one_by_one" in reason for reason in breaks)
    net.trunk = trunk
    expected = answers_and_gradients(net, y, n, t, at)
    assert (got[0] - expected[0]).abs().max() < 0.05 * expected[0].std()
    torch._dynamo.reset()
