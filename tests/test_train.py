"""train.py: what a step is, by value; that it can be stopped, resumed and split; what is refused.
"""
import contextlib
import csv
import itertools
import math
import os
import signal
from collections import Counter
from types import SimpleNamespace

import pytest
import torch

import checkpoint
import common
import data
import interpolant
import oracle
import parallel
import prime
import rates
import run
import runs
import sampler
import train
from interpolant import below
from model import Config, Transformer
from muon import optimizers_for
from runs import TINY, assert_close, assert_same, forked, quietly, refused, resumed, trained

METHODS = list(train.METHODS)


@pytest.fixture(scope="module")
def lines(tmp_path_factory):
    """The flag that names a small data set of short lines"""
    return runs.write_lines(tmp_path_factory.mktemp("data") / "lines")


def settled(*flags):
    args = common.parse(train.Args, "", [*TINY, *flags])
    train.settle(args)
    return args


# -----------------------------------------------------------------------------
# one batch

def documents_of(rows, eot=9, anchored=True, given=None):
    """Documents in memory: rows of ids; batch() deals them out in turn"""
    L = max(map(len, rows))
    x = torch.tensor([list(row) + [0] * (L - len(row)) for row in rows])
    n = torch.tensor([len(row) for row in rows])
    given = None if given is None else torch.tensor(given)

    class Rows:
        tokenizer = SimpleNamespace(eot=eot)

        def __len__(self):
            return len(rows)

        def batch(self, ids):
            i = torch.as_tensor(ids) % len(rows)
            return x[i], n[i], None if given is None else given[i]
    Rows.anchored = anchored
    return Rows()


def test_a_step_is_a_function_of_seed_and_step():
    documents, code = documents_of([(1, 2, 3, 4)] * 64), prime.Code(10)

    def noise(step, seed):
        args = settled("--infill=0.5", "--batch_size=64", f"--seed={seed}")
        batch = train.make_batch(step, documents, code, args)
        return torch.cat([batch.t.double(), batch.noised.y.flatten(), batch.given.flatten()])
    torch.rand(3)
    one = noise(5, 1)
    torch.rand(4)
    assert torch.equal(one, noise(5, 1))                # whatever happened before
    assert not torch.equal(one, noise(6, 1)) and not torch.equal(one, noise(5, 2))


def test_times_are_stratified_and_weighted():
    """t = 1 - (1 - u)^p with one u in each B-th of [0, 1], in random order, weight dt/du; so that
    the weighted mean of any function is its integral over t."""
    for power in (1.0, 2.0, 3.0):
        t, weight = train.draw_times(1000, power)
        u = 1 - (1 - t) ** (1 / power)
        assert torch.equal((u * 1000).long().sort().values, torch.arange(1000))
        assert torch.allclose(weight, power * (1 - u) ** (power - 1), atol=1e-6)
        assert (t.diff() < 0).any() and (t < 1).all()
        assert float((t.square() * weight).mean()) == pytest.approx(1 / 3, abs=2e-3)


def test_canvases():
    """The end token is 7 here, and it fills what a document does not."""
    x, n = torch.tensor([[1, 2, 0], [3, 0, 0]]), torch.tensor([2, 1])
    same, length = train.canvas(x, n, settled("--method=flexmdm"), 7)
    assert torch.equal(same, x) and torch.equal(length, n)
    full, length = train.canvas(x, n, settled("--method=mdm", "--block_size=5"), 7)
    assert full.tolist() == [[1, 2, 7, 7, 7], [3, 7, 7, 7, 7]] and length.tolist() == [5, 5]
    full, length = train.canvas(x, n, settled("--method=ar", "--block_size=5"), 7)
    assert full.tolist() == [[1, 2, 7, 7], [3, 7, 7, 7]] and length.tolist() == [3, 2]


def test_a_batch_counts_the_tokens_that_are_to_be_said(tmp_path):
    """Those of the documents, neither a canvas' ends nor what a task gives; text around the holes
    of infilling counts, so that the loss does not depend on --infill."""
    task = runs.write_ids(tmp_path / "task", [[1, 2, 3], [4, 5]] * 4,
                          given=[[True, False, False], [True, False]] * 4).train
    plain = runs.write_ids(tmp_path / "plain", [[1, 2, 3], [4, 5]] * 4).train
    for method, digits in (("flexmdm", 1), ("mdm", 1), ("ar", 1), ("prime", 2)):
        args = settled(f"--method={method}", "--infill=1")
        code = prime.Code(8, digits)
        assert train.make_batch(0, plain, code, args).tokens == 20
        batch = train.make_batch(0, task, code, args)
        assert batch.tokens == 12 and batch.given.sum() == 8
        assert batch.given[:, 0].all() and batch.given.shape == batch.x1.shape
        assert (batch.x1[:, 4:] == 7).all()             # the data set's end token


@pytest.mark.parametrize("method", METHODS)
def test_rows_of_a_batch_are_those_of_the_global_batch(method, tmp_path):
    """Each process makes its own rows only, of the same random numbers."""
    texts = [list(range(1, 2 + i % 6)) for i in range(16)]
    plain = runs.write_ids(tmp_path / "plain", texts).train
    task = runs.write_ids(tmp_path / "task", texts,
                          given=[[i % 2 == 0 for i in range(len(text))] for text in texts]).train
    args = settled(f"--method={method}", "--infill=.6", "--batch_size=16")
    code = prime.Code(8, args.ell)
    for documents, step in ((plain, 0), (plain, 1), (task, 0)):
        whole = train.make_batch(step, documents, code, args)
        rows = torch.tensor([3, 9, 10, 15])
        mine = train.make_batch(step, documents, code, args, rows)
        assert mine.tokens == whole.tokens
        for name, value in vars(mine).items():
            parts = value if name == "noised" else [value]
            others = getattr(whole, name) if name == "noised" else [getattr(whole, name)]
            for part, other in zip(parts, others):
                if isinstance(part, torch.Tensor):
                    assert torch.equal(part, other[rows]), name


def test_every_hole_begins_as_a_mask():
    """In x_t at any time each hole of a document with given text holds a slot: near t = 0, one
    mask. A data set says that its holes may be empty by anchored = False."""
    rows = [tuple(range(1, n)) for n in range(3, 35)]
    code, seen = prime.Code(40), 0
    args = settled("--infill=1", "--batch_size=32", "--insertion=linear")
    for step in range(5):
        batch = train.make_batch(step, documents_of(rows, 39), code, args)
        y, n, kept, _ = batch.noised
        for b in range(32):
            here, given = set(kept[b, :n[b]].tolist()), batch.given[b]
            free = itertools.groupby(range(int(batch.n1[b])), lambda k: not given[k])
            holes = [set(run) for is_free, run in free if is_free]
            assert all(here & hole for hole in holes)
            seen += len(holes)
            if batch.t[b] < 0.01:
                assert n[b] - given.sum() == (y[b, :n[b], 0] == code.mask).sum() == len(holes)
    assert seen > 100
    args.batch_size = 640
    batch = train.make_batch(0, documents_of(rows, 39, anchored=False), code, args)
    early = batch.t < 0.01
    assert early.any() and torch.equal(batch.noised.n[early], batch.given.sum(1)[early])


# -----------------------------------------------------------------------------
# one loss

def constant(V, logits, g):
    """A predict with the same answers everywhere"""
    def predict(y, n, t, at, given=None):
        log_g = None if g is None else torch.full((len(y), y.shape[1] + 1), math.log(g)).double()
        return logits.expand(int(at.sum()), V), log_g
    return predict


def batch_for(method, rows, *flags, ell=1, V=9, given=None):
    args = settled(f"--method={method}", f"--batch_size={len(rows)}", "--block_size=8",
                   "--infill=0", *flags)
    code = prime.Code(V, ell)
    return train.make_batch(3, documents_of(rows, 0, given=given), code, args), code, args


ROWS = [(1, 2, 3, 4, 5), (6, 7), (8,), (1, 1, 1, 1), (2, 3, 4), (5, 6, 7, 8), (1, 2), (3,)] * 4


def test_the_loss_of_a_document_by_value():
    """unmask: ln 9 for each mask, times min(beta'/(1-beta), cap) dt; insert: phi for each gap,
    times min(alpha'/(1-alpha), cap) dt. The two schedules differ, and the cap binds for both."""
    batch, code, args = batch_for("flexmdm", ROWS, "--insertion=sin", "--unmasking=cosine",
                                  "--targets=sampled", "--weight_cap=3", "--t_power=2")
    some = torch.tensor([0, 5, 9, 30, 31])
    predict = constant(9, torch.zeros(9).double(), 0.5)
    unmask, insert = train.losses(predict, code, batch, some, args)
    y, n, _, gaps = batch.noised
    capped = 0
    for i, b in enumerate(some.tolist()):
        t, L = float(batch.t[b]), int(n[b])
        dt = 2 * math.sqrt(1 - t)
        left = 1 - math.sin(math.pi / 2 * t)
        alpha = math.pi / 2 * math.cos(math.pi / 2 * t) / left
        beta = math.pi / 2 * math.sin(math.pi / 2 * t) / math.cos(math.pi / 2 * t)
        capped += (alpha > 3) + (beta > 3)
        masks = int((y[b, :L] == code.mask).sum())
        assert float(unmask[i]) == pytest.approx(masks * math.log(9) * min(beta, 3) * dt, rel=1e-6)
        phi = [0.5 - k + (k * math.log(k / 0.5) if k else 0) for k in gaps[b, :L + 1].tolist()]
        assert float(insert[i]) == pytest.approx(sum(phi) * min(alpha, 3) * dt, rel=1e-6)
    assert 0 < capped < 10


@pytest.mark.parametrize("method, ell", [("flexmdm", 1), ("flexprime", 2), ("prime", 2)])
@pytest.mark.parametrize("targets", ["averaged", "sampled"])
@pytest.mark.parametrize("prime_loss", ["marginal", "joint"])
def test_targets_and_prime_loss_choose_the_terms(method, ell, targets, prime_loss):
    """Also with given tokens, which alignments must know of."""
    given = [[k == 0 for k in range(5)] for _ in ROWS]
    flags = f"--targets={targets}", f"--prime_loss={prime_loss}", "--t_power=0.5"
    batch, code, args = batch_for(method, ROWS, *flags, ell=ell, given=given)
    predict = constant(9, torch.randn(9).double(), None if method == "prime" else 0.7)
    every = torch.arange(len(ROWS))
    got = train.losses(predict, code, batch, every, args)
    d1 = rates.digits(code, batch.x1, batch.n1)
    terms = rates.terms(predict, code, d1, batch.n1, batch.noised, batch.t, given=batch.given,
                        averaged=targets == "averaged", joint=prime_loss == "joint")
    for value, term, schedule in zip(got, terms, train.schedules(args)[::-1]):
        hazard = schedule.hazard(batch.t).clamp_max(1000)
        assert torch.allclose(value, term * hazard * batch.weight)
    # the options do make a difference here
    other = rates.terms(predict, code, d1, batch.n1, batch.noised, batch.t, given=batch.given,
                        averaged=targets != "averaged", joint=prime_loss == "joint")
    assert method == "prime" or not torch.allclose(terms.unmask, other.unmask)
    other = rates.terms(predict, code, d1, batch.n1, batch.noised, batch.t, given=batch.given,
                        averaged=targets == "averaged", joint=prime_loss != "joint")
    assert ell == 1 or not torch.allclose(terms.unmask, other.unmask)


def test_the_loss_of_the_autoregressive_model():
    """-log p of the tokens and one end token; given ones are not paid for."""
    logits = torch.randn(9).double()
    nll = -logits.log_softmax(0)
    for given in (None, [[k == 0 for k in range(5)] for _ in ROWS]):
        batch, code, args = batch_for("ar", ROWS, given=given)
        unmask, insert = train.losses(constant(9, logits, None), code, batch, torch.arange(8), args)
        order = data.order(args.seed, 3, len(ROWS), len(ROWS))[:8]
        for i, row in enumerate(order):
            paid = ROWS[row][0 if given is None else 1:]
            assert float(unmask[i]) == pytest.approx(float(nll[[*paid, 0]].sum()), rel=1e-6)
        assert (insert == 0).all()


def test_progress_is_the_mean_over_tokens_since_the_last_line(lines, tmp_path):
    """Not the mean of the steps' means: batches differ in length."""
    trained(tmp_path / "each", lines)
    trained(tmp_path / "six", lines, "--log_interval=6")
    each = [row for row in runs.log_of(tmp_path / "each") if row["loss"]]
    six = [row for row in runs.log_of(tmp_path / "six") if row["loss"]]
    assert len(each) == 6 and len(six) == 1
    tokens = [int(row["tokens"]) for row in each]
    assert int(six[0]["tokens"]) == sum(tokens)
    for name in ("loss", "unmask", "insert"):
        nats = sum(float(row[name]) * count for row, count in zip(each, tokens))
        assert float(six[0][name]) == pytest.approx(nats / sum(tokens), rel=1e-4)


# -----------------------------------------------------------------------------
# validation

def network(method="flexmdm", **more):
    """A small network that is not at its start: every weight moved. Its vocabulary is 8."""
    args = settled(f"--method={method}")
    sizes = dict(V=8, ell=args.ell, insertion=args.insertion, causal=method == "ar", block_size=12,
                 n_layer=1, n_head=2, n_embd=16, n_cond=8)
    net = Transformer(Config(**sizes | more))
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return net


@pytest.fixture
def small(tmp_path):
    """13 documents of ids below 7, the end token being 7"""
    generator = torch.Generator().manual_seed(5)
    documents = [torch.randint(7, (1 + i % 6,), generator=generator).tolist() for i in range(13)]
    return runs.write_ids(tmp_path / "small", documents)


def validated(net, small, *flags, pieces=1, rank=0, world=1):
    args = settled("--block_size=12", "--batch_size=9", "--eval_iters=2", *flags)
    return train.validate(net, small.val, net.code, args, pieces, rank, world)


@pytest.mark.parametrize("method", METHODS)
def test_validation_is_the_tight_bound_of_fixed_batches(method, small):
    """By value: sum of hazard * weight * term, averaged over alignments, uncapped, over the tokens
    of two batches without infilling, drawn at late times."""
    net = network(method).eval()
    plain = settled(f"--method={method}", "--block_size=12", "--batch_size=9", "--infill=0",
                    "--t_power=2")
    sums, tokens = torch.zeros(2).double(), 0
    with torch.no_grad():
        for i in range(2):
            b = train.make_batch(i, small.val, net.code, plain)
            tokens += b.tokens
            if method == "ar":
                nll = rates.next_token_nll(net, net.code, b.x1, b.n1)
                sums += torch.stack([nll.double().sum(), torch.tensor(0.0)])
                continue
            terms = rates.terms(net, net.code, b.d1, b.n1, b.noised, b.t, averaged=True)
            for k, schedule in enumerate(train.schedules(plain)[::-1]):
                sums[k] += (terms[k] * schedule.hazard(b.t) * b.weight).sum()
    got = validated(net, small, f"--method={method}")
    assert got == pytest.approx((sums / tokens).tolist(), rel=1e-5)


@pytest.mark.parametrize("flags", [["--infill=1"], ["--weight_cap=1"], ["--targets=sampled"],
                                   ["--t_power=1"], ["--prime_loss=joint"]])
def test_validation_does_not_depend_on_how_one_trains(flags, small):
    net = network("flexprime").eval()
    with torch.no_grad():
        expected = validated(net, small, "--method=flexprime")
        assert validated(net, small, "--method=flexprime", *flags) == expected


def test_validation_does_not_depend_on_pieces_and_processes(small, monkeypatch):
    """9 documents over 1 to 4 processes, in pieces: each document counts once."""
    net = network().eval()
    with torch.no_grad():
        one = validated(net, small)
        assert validated(net, small, pieces=4) == pytest.approx(one, rel=1e-6)
        for world in (2, 4):
            sums = []
            monkeypatch.setattr(parallel, "total", lambda x, world: sums.append(x.clone()))
            for rank in range(world):
                validated(net, small, pieces=2, rank=rank, world=world)
            sums = sum(sums)
            assert (sums[:2] / sums[2]).tolist() == pytest.approx(one, rel=1e-6)


def test_a_task_is_validated_by_what_it_does_not_give(tmp_path):
    """The nats of the hidden tokens, over their number"""
    documents, given = [[1, 2, 3, 4]] * 9, [[True, True, True, False]] * 9
    task = runs.write_ids(tmp_path / "task", documents, given=given)
    net = network("mdm").eval()
    args = settled("--method=mdm", "--block_size=12", "--batch_size=9", "--eval_iters=1")
    with torch.no_grad():
        unmask, _ = train.validate(net, task.val, net.code, args, 1, 0, 1)
        b = train.make_batch(0, task.val, net.code, args)
        terms = rates.terms(net, net.code, b.d1, b.n1, b.noised, b.t, given=b.given)
        hazard = interpolant.schedule("linear").hazard(b.t)
    assert unmask == pytest.approx(float((terms.unmask * hazard * b.weight).sum()) / 9, rel=1e-5)


def test_validation_and_samples_use_the_averages(small, monkeypatch):
    """And no dropout; afterwards the weights are back, and training goes on with dropout."""
    net = network(dropout=0.5).train()
    ema = {name: torch.randn_like(p) * 0.3 for name, p in net.named_parameters()}
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    kept = {name: w.clone() for name, w in ema.items()}
    averaged = network()
    averaged.load_state_dict(ema)
    args = settled("--block_size=12", "--batch_size=9", "--eval_iters=2", "--sample_steps=3")
    drawn = []

    def generate(self, num_samples, steps, seed):
        drawn.append((self.net.head.weight.clone(), self.net.training, num_samples, steps, seed))
        return ["text"] * num_samples
    monkeypatch.setattr(checkpoint.Loaded, "generate", generate)
    for _ in range(2):
        val, said = train.evaluate(net, ema, small, args, 1, 0, 1, contextlib.nullcontext(), 7)
        with torch.no_grad():
            assert val == pytest.approx(sum(validated(averaged.eval(), small)), rel=1e-6)
    assert torch.equal(drawn[0][0], kept["head.weight"]) and drawn[0][1:] == (False, 3, 3, 7)
    assert said[0].startswith("step 7/6 | val") and said[1:] == ["    text"] * 3
    assert net.training
    assert all(torch.equal(p, before[name]) for name, p in net.named_parameters())
    assert all(torch.equal(w, kept[name]) for name, w in ema.items())


def test_a_validation_that_is_not_finite_ends_the_run(small):
    net = network()
    ema = {name: torch.full_like(p, math.nan) for name, p in net.named_parameters()}
    args = settled("--block_size=12", "--batch_size=9", "--sample_steps=3")
    with pytest.raises(common.Fail, match="validation loss of step 7 is not finite"):
        train.evaluate(net, ema, small, args, 1, 0, 1, contextlib.nullcontext(), 7)


# -----------------------------------------------------------------------------
# one step of the optimizers, and of the averages

def test_the_learning_rate():
    """Up in 4 steps of 1/5, at its peak at step 4, half way down in the middle, then min_lr"""
    args = settled("--warmup_iters=4", "--max_iters=24", "--learning_rate=1", "--min_lr=0.2")
    rate = [train.learning_rate(step, args) for step in range(25)]
    assert rate[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rate[9] == pytest.approx(0.2 + 0.8 * (0.5 + 0.5 * math.cos(math.pi / 4)))
    assert rate[14] == pytest.approx(0.6) and rate[24] == pytest.approx(0.2)
    assert train.learning_rate(99, args) == pytest.approx(0.2)
    assert train.learning_rate(0, settled("--warmup_iters=0", "--learning_rate=1")) == 1


def test_a_gradient_is_clipped_and_the_learning_rate_set():
    """Plain gradient descent makes both visible: p -= lr * g * min(1, clip / |g|)"""
    net = torch.nn.Linear(2, 1, bias=False)
    optimizer = torch.optim.SGD(net.parameters(), lr=123.0)
    for clip, factor in ((1.0, 0.2), (4.0, 0.8), (7.0, 1.0), (0.0, 1.0)):
        before = net.weight.detach().clone()
        net.weight.grad = torch.tensor([[3.0, -4.0]])
        assert train.step_optimizers(net, [optimizer], 0.5, clip) == 5
        step = 0.5 * factor * torch.tensor([[3.0, -4.0]])
        assert torch.allclose(net.weight.detach(), before - step, atol=1e-5)
        assert net.weight.grad is None


def test_a_gradient_that_is_not_finite_changes_nothing():
    net = network()
    optimizers = optimizers_for(net, settled("--optimizer=muon"))
    states = [run.state(net, {}, optimizers)]
    for bad in (None, math.nan, math.inf):
        net.head.weight.sum().backward()
        sum(p.square().sum() for p in net.parameters()).backward()
        if bad is not None:
            net.head.weight.grad[1, 2] = bad
        norm = train.step_optimizers(net, optimizers, 0.1, 1.0)
        assert math.isfinite(norm) == (bad is None)
        states.append(run.state(net, {}, optimizers))
    first, *rest = (torch.cat([w.flatten() for w in s["model"].values()]) for s in states)
    assert not torch.equal(first, rest[0])
    assert torch.equal(rest[0], rest[1]) and torch.equal(rest[0], rest[2])
    _, *moments = (s["optimizer"][1]["state"] for s in states)
    for state in moments[1:]:
        assert all(torch.equal(state[i]["momentum"], m["momentum"]) for i, m in moments[0].items())


def test_bad_steps_may_be_skipped(lines, tmp_path, monkeypatch):
    """As many in a row as --skip_bad_steps says"""
    real, bad = train.step_optimizers, (1, 2, 4)
    calls = iter(range(99))

    def step_optimizers(net, *rest):
        if next(calls) in bad:
            net.head.weight.grad[:] = math.nan
        return real(net, *rest)
    monkeypatch.setattr(train, "step_optimizers", step_optimizers)
    trained(tmp_path / "a", lines, "--skip_bad_steps=2")
    calls = iter(range(99))
    assert "the gradient of step 2 is not finite" in refused(
        lines, f"--out_dir={tmp_path / 'b'}", "--skip_bad_steps=1")


def test_the_averages_by_value():
    """d = min(decay, (1 + step) / (10 + step)): .1, 2/11, .25, .., and .3 from step 3 on"""
    net = torch.nn.Linear(1, 1, bias=False)
    ema, expected = {"weight": torch.zeros(1, 1)}, 0.0
    for step, d in enumerate((0.1, 2 / 11, 0.25, 0.3, 0.3)):
        with torch.no_grad():
            net.weight.fill_(step + 1.0)
        train.update_ema(net, ema, step, 0.3)
        expected = d * expected + (1 - d) * (step + 1)
        assert float(ema["weight"]) == pytest.approx(expected, rel=1e-6)


def test_a_checkpoint_holds_weights_and_averages_each_in_its_place(small, tmp_path):
    """And `restore` puts them back there, and so the moments."""
    net, args = network(), settled("--optimizer=muon")
    ema = {name: torch.randn_like(p) for name, p in net.named_parameters()}
    optimizers = optimizers_for(net, args)
    sum(p.square().sum() for p in net.parameters()).backward()
    train.step_optimizers(net, optimizers, 0.1, 1.0)
    state = run.state(net, ema, optimizers)
    assert all(torch.equal(p, state["model"][name]) for name, p in net.named_parameters())
    assert all(torch.equal(w, state["ema"][name]) for name, w in ema.items())
    other = network()
    averages = {name: p.detach().clone() for name, p in other.named_parameters()}
    fresh = optimizers_for(other, args)
    content = dict(state, fingerprint=small.train.fingerprint)
    run.restore(other, averages, fresh, content, small)
    again = run.state(other, averages, fresh)
    for part in ("model", "ema"):
        assert all(torch.equal(w, again[part][name]) for name, w in state[part].items())
    assert again["optimizer"][0]["state"].keys() == state["optimizer"][0]["state"].keys()


def test_a_run_takes_the_steps_that_its_parts_say(lines, tmp_path):
    """Two steps by hand, with losses, step_optimizers, learning_rate and update_ema: the run's
    weights, averages and progress."""
    flags = ["--max_iters=2", "--warmup_iters=1", "--learning_rate=0.01", "--ema=0.3"]
    trained(tmp_path, lines, *flags)
    args = settled(lines, *flags)
    dataset = data.load(args.dataset, block_size=24)
    torch.manual_seed(args.seed)
    net = train.build(args, dataset.tokenizer, None)
    ema = {name: p.detach().clone() for name, p in net.named_parameters()}
    optimizers, rows = optimizers_for(net, args), runs.log_of(tmp_path)
    for step, lr in enumerate((0.005, 0.01)):
        batch = train.make_batch(step, dataset.train, net.code, args)
        unmask, insert = train.losses(net, net.code, batch, torch.arange(8), args)
        loss = (unmask.sum() + insert.sum()) / batch.tokens
        loss.backward()
        norm = train.step_optimizers(net, optimizers, lr, 1.0)
        train.update_ema(net, ema, step, 0.3)
        assert float(rows[step]["loss"]) == pytest.approx(float(loss.detach()), rel=1e-5)
        assert float(rows[step]["lr"]) == pytest.approx(lr)
        assert float(rows[step]["gnorm"]) == pytest.approx(norm, rel=1e-5)
    content = runs.newest(tmp_path)
    for name, p in net.named_parameters():
        assert torch.allclose(content["model"][name], p.detach(), atol=1e-6)
        assert torch.allclose(content["ema"][name], ema[name], atol=1e-6)


# -----------------------------------------------------------------------------
# text with holes: what the network learns there

WORDS = oracle.strings(2, 6, 1)
LAW = oracle.random_p(len(WORDS), 3)


def patterns(count=400_000):
    """draw_given on documents drawn from LAW -> {how many holes: {(given text, holes): Counter}}.
    A pattern reads (1, None, 0): a given 1, a hole, a given 0."""
    doc = LAW.multinomial(count, replacement=True)
    n1 = torch.tensor([len(w) for w in WORDS])[doc]
    given = train.draw_given(n1, 6)
    code = doc * 64 + (given * 2 ** torch.arange(6)).sum(1)
    found = {}
    for key, times in zip(*(x.tolist() for x in code.unique(return_counts=True))):
        word, bits = WORDS[key // 64], key % 64
        text = [v if bits >> k & 1 else None for k, v in enumerate(word)]
        pairs = zip(text, [0, *text])                   # one None for a run of hidden tokens
        text = tuple(v for v, before in pairs if v is not None or before is not None)
        by_text = found.setdefault(text.count(None), {})
        by_text.setdefault(text, Counter())[word] += times
    return found


def fits(word, text):
    """In how many ways can the holes of a pattern be filled so that the word comes out?"""
    if not text:
        return not word
    if text[0] is None:
        return sum(fits(word[k:], text[1:]) for k in range(1, len(word) + 1))
    return bool(word) and word[0] == text[0] and fits(word[1:], text[1:])


def tilted_fits(word, text):
    """The same, each way weighing 1 / C(h - 1, k - 1) if it hides h tokens in k holes"""
    holes = text.count(None)
    hidden = len(word) - len(text) + holes
    if hidden < holes:
        return 0.0
    return fits(word, text) / math.comb(hidden - 1, holes - 1)


def test_given_text_says_nothing_about_what_is_hidden():
    """With one hole the words of a pattern are distributed as p(word | the given text, and the hole
    is not empty): the pattern's law does not depend on what is hidden. With k holes that hide h
    tokens they are tilted by 1 / C(h - 1, k - 1), the chance of the split."""
    checked = Counter()
    for holes, by_text in patterns().items():
        for text, count in by_text.items():
            total = count.total()
            if holes == 0 or total < 300:
                continue
            p = torch.tensor([float(LAW[i]) * tilted_fits(w, text) for i, w in enumerate(WORDS)])
            p = p.double() / p.sum()
            seen = torch.tensor([count[w] for w in WORDS]).double() / total
            assert (seen - p).abs().sum() / 2 < oracle.sampling_error(p, total), (text, total)
            checked[holes] += 1
    assert checked[1] > 40 and checked[2] > 30 and checked[3] > 3


def test_short_documents_are_not_more_frequent_where_nothing_is_given():
    """Whether a document is one with given text is a coin, whatever its length; one that is too
    short for the pattern drawn for it is given as a whole, and teaches nothing."""
    rows = [(1,) * n for n in range(1, 7)]
    args = settled("--infill=0.5", "--batch_size=60000")
    batch = train.make_batch(0, documents_of(rows), prime.Code(10), args)
    nothing = ~batch.given.any(1)
    for n in range(1, 7):
        share = float(nothing[batch.n1 == n].double().mean())
        assert abs(share - 0.5) < 5 * 0.5 / 100         # of 10,000
    whole = (batch.given == below(batch.n1, 6)).all(1)
    assert 0.1 < float(whole.double().mean()) < 0.3
    used = (batch.noised.y != 10 + 1).all(2)
    assert (batch.noised.y[whole][used[whole]] == 1).all()


@pytest.mark.parametrize("left, right", [((1,), (0,)), ((), (1,))])
def test_a_network_that_has_learnt_the_batches_fills_a_hole_by_the_language(left, right):
    """The posterior of what make_batch really draws, in the place of the network: documents of LAW
    with and without given text, each hole begun by a mask. Asked to fill one hole, it gives
    p(x1 | the given text, the hole is not empty)."""
    words = [w for w in WORDS if len(w) <= 4]
    law = oracle.random_p(len(words), 5)
    args = settled("--infill=0.5", "--batch_size=200000", "--insertion=linear")
    doc = law.multinomial(args.batch_size, replacement=True)
    batch = train.make_batch(0, documents_of([words[i] for i in doc]), prime.Code(10), args)
    rows = torch.cat([batch.x1 + 10 * batch.given, batch.n1[:, None]], 1)
    kinds, times = rows.unique(dim=0, return_counts=True)
    docs = [tuple(v % 10 for v in row[:row[-1]]) for row in kinds.tolist()]
    given = [tuple(v >= 10 for v in row[:row[-1]]) for row in kinds.tolist()]
    # a hole of k tokens has its mask, uniform over the k, among those that are there: as in
    # oracle.two_holes, the posterior is that without masks with p divided by each hole's k
    sizes = [math.prod(len(list(run)) for shown, run in itertools.groupby(g) if not shown)
             if any(g) else 1 for g in given]
    code = prime.Code(2)
    learnt = oracle.Oracle(docs, times / torch.tensor(sizes), code,
                           interpolant.schedule("linear"), given)
    start = sampler.start_from([list(left), list(right)], [None], code, 4, False, 9)
    B = 3000
    start = [x.expand(B, *x.shape[1:]) for x in start]
    x, n = sampler.generate(learnt.predict, code, B, 4, 40, *train.schedules(args), start=start,
                            sampler="exact")
    p = torch.tensor([float(q) * tilted_fits(w, (*left, None, *right)) for w, q in zip(words, law)])
    p = p.double() / p.sum()
    asked = sum(c for c, g in zip(times.tolist(), given) if any(g)) / 40        # at the very least
    error = oracle.sampling_error(p, B) + oracle.sampling_error(p, asked)
    assert oracle.total_variation(x, n, words, p) < error


# -----------------------------------------------------------------------------
# flags

def test_index_shuffling_reaches_the_code(lines, tmp_path):
    """--shuffle_ids permutes that share of ids; the checkpoint keeps the permutation."""
    flags = ["--method=prime", "--max_iters=1"]
    for share in ("0", "0.5", "1"):
        trained(tmp_path / share, lines, *flags, f"--shuffle_ids={share}")
    assert runs.newest(tmp_path / "0")["permutation"] is None
    half = runs.newest(tmp_path / "0.5")["permutation"]
    assert torch.equal(half, prime.shuffle(256, 2, 0.5, 1337))
    assert torch.equal(half[128:], torch.arange(128, 256)) and half[:128].diff().min() < 0
    whole = checkpoint.load(tmp_path / "1")
    expected = prime.Code(256, 2, prime.shuffle(256, 2, 1.0, 1337))
    assert torch.equal(whole.code.encode(torch.arange(256)), expected.encode(torch.arange(256)))


def test_dropout_is_used_and_reproducible(lines, tmp_path):
    for name, flags in (("a", ["--dropout=0.5"]), ("b", ["--dropout=0.5"]), ("c", [])):
        trained(tmp_path / name, lines, "--max_iters=3", *flags)
    assert_same(tmp_path / "a", tmp_path / "b")
    a, c = (runs.log_of(tmp_path / name)[2]["loss"] for name in "ac")
    assert a != c


def test_rows_of_a_stream(lines, tmp_path):
    trained(tmp_path, lines, "--method=mdm", "--packing=stream")
    assert runs.newest(tmp_path)["args"]["packing"] == "stream"


@pytest.mark.parametrize("flags, expected", [
    (["--method", "flexmdm"], ("sin", 0.0, 64)), (["--method", "mdm"], ("instant", 0.0, 64)),
    (["--insertion", "linear", "--infill", "0.1", "--n_embd", "32"], ("linear", 0.1, 32))])
def test_a_preset_gives_way_to_the_method_and_to_flags(flags, expected):
    args = common.parse(train.Args, "", ["--dataset", "brackets", *flags])
    train.settle(args)
    assert (args.insertion, args.infill, args.n_embd) == expected


def test_flags_that_were_named():
    args = common.parse(train.Args, "", ["--no-fsdp", "--seed=3", "--ema", "0.5", "--compile"])
    assert args.named == {"fsdp", "seed", "ema", "compile"}
    assert (args.fsdp, args.seed, args.ema, args.compile) == (False, 3, 0.5, True)


def test_what_follows_from_other_flags():
    def of(*flags):
        args = common.parse(train.Args, "", list(flags))
        train.settle(args)
        return args
    assert (of().ell, of("--method=prime").ell, of("--method=flexprime").ell) == (1, 2, 2)
    assert (of().insertion, of("--method=ar").insertion) == ("linear", "instant")
    assert of("--method=prime", "--ell=3").ell == 3
    assert (of().optimizer, of("--optimizer=adamw").optimizer) == ("muon", "adamw")
    assert (of("--device=cpu").dtype, of("--device=cuda").dtype) == ("float32", "bfloat16")


BAD = {
    "--method=prime --code=gray --shuffle_ids=.5": "choose one",
    "--batch_sise=4": "did you mean --batch_size?",
    "--batch_size=four": "invalid int value",
    "--method=flexdm": "invalid choice",
    "--dataset=nosuch": "unknown data set",
    "--dataset=/nosuch.txt": "/nosuch.txt",
    "--block_size=1": "--block_size 1 must be between 2",
    "--n_head=3": "n_embd 16 must be an even multiple of n_head 3",
    "--unmasking=linaer": "unknown schedule",
    "--unmasking=instant": "nothing to learn",
    "--insertion=instant": "does not go with --method flexmdm",
    "--method=mdm --insertion=linear": "does not go with --method mdm",
    "--ell=2": "--ell is for prime and flexprime",
    "--method=prime --ell=3": "multiple of ell 3",
    "--method=prime --ell=-1": "--ell -1 must be between 0",
    "--method=flexprime --ell=16": "lower ell",
    "--packing=stream": "--packing stream",
    "--gradient_accumulation_steps=9": "less than a document",
    "--init_from=/nosuch/ckpt.pt": "there is no checkpoint",
    "--init_from=resume": "there is no checkpoint",
    "--device=cuda": "--device cpu",
    "--max_iters=0": "--max_iters 0 must be between 1",
    "--learning_rate=nan": "--learning_rate nan",
    "--optimizer=sgd": "invalid choice",
}


@pytest.mark.parametrize("flags", BAD)
def test_bad_flags_are_refused_in_one_sentence(flags, lines, tmp_path):
    if "cuda" in flags and torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    assert BAD[flags] in refused(lines, f"--out_dir={tmp_path / 'out'}", *flags.split())
    assert not list(tmp_path.glob("out/*.pt"))


# -----------------------------------------------------------------------------
# exact resume

@pytest.fixture
def stop_after(monkeypatch):
    """stop_after(step): the next run is sent a SIGTERM while it takes its last step before that."""
    real = train.make_batch

    def stop(at):
        def make_batch(step, documents, *rest):
            if step == at and documents.path.endswith("train.bin"):
                os.kill(os.getpid(), signal.SIGTERM)
            return real(step, documents, *rest)
        monkeypatch.setattr(train, "make_batch", make_batch)
    return stop


@pytest.mark.parametrize("method", METHODS)
def test_resume_is_exact(method, lines, tmp_path, stop_after):
    """Six steps in one go, and stopped after 1, 3 and 5: equal to the bit. Step 3 is one that is
    validated; the progress line of step 4 is about a window that was cut in two by the stops."""
    flags = [f"--method={method}", "--log_interval=4"]
    trained(tmp_path / "a", lines, *flags)
    for step in (1, 3, 5, 99):
        stop_after(step)
        resume = [] if step == 1 else ["--init_from=resume"]
        printed = trained(tmp_path / "b", lines, *flags, *resume)
        stopped = f"stopped after step {step}: go on with --init_from resume" in printed
        assert stopped == (step < 99)
    assert_same(tmp_path / "a", tmp_path / "b")


def test_a_stop_at_any_step_is_resumed_exactly(lines, tmp_path, stop_after):
    """With dropout, samples between, a seed as large as seeds get, pieces and shuffled ids."""
    flags = ["--method=flexprime", "--dropout=0.2", "--sample_steps=2", f"--seed={2 ** 40}",
             "--gradient_accumulation_steps=2", "--shuffle_ids=0.5", "--optimizer=adamw"]
    trained(tmp_path / "whole", lines, *flags)
    for step in range(1, 6):
        stop_after(step)
        trained(tmp_path / f"{step}", lines, *flags)
        assert runs.newest(tmp_path / f"{step}")["step"] == step
        stop_after(99)
        resumed(tmp_path / f"{step}")
        assert_same(tmp_path / "whole", tmp_path / f"{step}")


def test_a_resumed_run_has_the_flags_of_the_first(lines, tmp_path):
    """Also those that a preset would set; and the new ones where they are named."""
    trained(tmp_path, lines, "--n_embd=32", "--learning_rate=1e-4", "--no-overwrite")
    resumed(tmp_path, "--max_iters=8", "--ema=0.5")
    args, rows = runs.newest(tmp_path)["args"], runs.log_of(tmp_path)
    assert (args["n_embd"], args["learning_rate"], args["ema"]) == (32, 1e-4, 0.5)
    assert rows[-1]["step"] == "8" and rows[-1]["val"]
    for flag in ("--n_embd=64", "--method=mdm", "--n_head=4", "--ell=2"):
        name = flag.split("=")[0]
        _, fault = quietly(train.train, [f"--out_dir={tmp_path}", "--init_from=resume", flag])
        assert f"{name} differs" in fault or "digit per token" in fault
    other = runs.write_lines(tmp_path / "other", seed=1)
    _, fault = quietly(train.train, [f"--out_dir={tmp_path}", "--init_from=resume", other])
    assert "training data differs" in fault


def test_a_damaged_checkpoint_is_stepped_over(lines, tmp_path):
    """The run goes on from the older one, to the same end; its log has no row twice."""
    trained(tmp_path / "a", lines)
    trained(tmp_path / "b", lines)
    with open(tmp_path / "b" / "ckpt.pt", "r+b") as f:
        f.seek(2000)
        f.write(b"\xff" * 8)
    printed = resumed(tmp_path / "b")
    assert "damaged" in printed and "ckpt-00000003.pt, step 3" in printed
    assert_same(tmp_path / "a", tmp_path / "b")


def test_a_finished_run_is_resumed_to_nothing(lines, tmp_path):
    trained(tmp_path, lines)
    before = (tmp_path / "ckpt.pt").read_bytes()
    resumed(tmp_path)
    assert (tmp_path / "ckpt.pt").read_bytes() == before


# -----------------------------------------------------------------------------
# the same steps, whatever is split over what

SLOW = "--learning_rate=1e-3"       # AdamW makes 1e-5 of rounding in its first steps at 3e-3

@pytest.mark.parametrize("method", METHODS)
def test_pieces_equal_one_piece(method, lines, tmp_path):
    """8 documents at once, or cut into 3 unequal pieces"""
    flags = [f"--method={method}", "--optimizer=adamw", SLOW]
    trained(tmp_path / "one", lines, *flags, "--gradient_accumulation_steps=1")
    trained(tmp_path / "three", lines, *flags, "--gradient_accumulation_steps=3")
    assert_close(tmp_path / "one", tmp_path / "three")


@pytest.mark.parametrize("optimizer, documents, pieces", [("muon", 8, 2), ("adamw", 9, 1)])
def test_two_processes_take_the_same_steps_as_one(optimizer, documents, pieces, lines, tmp_path):
    flags = [f"--batch_size={documents}", f"--gradient_accumulation_steps={pieces}",
             f"--optimizer={optimizer}", "--eval_iters=2", SLOW]
    trained(tmp_path / "one", lines, *flags)
    forked(2, *TINY, lines, f"--out_dir={tmp_path / 'two'}", *flags)
    assert_close(tmp_path / "one", tmp_path / "two")


def test_sharded_over_two_processes(lines, tmp_path):
    """--fsdp: weights, averages and optimizer in two parts. The same steps as one process, also
    resumed from the whole checkpoint, and resumed by one process."""
    flags = ["--gradient_accumulation_steps=2", "--optimizer=adamw", "--sample_steps=2", SLOW]
    trained(tmp_path / "one", lines, *flags)
    two = f"--out_dir={tmp_path / 'two'}"
    forked(2, *TINY, lines, two, "--fsdp", *flags)
    assert_close(tmp_path / "one", tmp_path / "two")
    for again in ("--fsdp", "--no-fsdp"):
        os.remove(tmp_path / "two" / "ckpt.pt")         # as if it had been stopped after step 3
        if again == "--fsdp":
            forked(2, two, "--init_from=resume")
        else:
            resumed(tmp_path / "two", again)
        assert_close(tmp_path / "one", tmp_path / "two")
    assert "torchrun" in refused(lines, "--fsdp", f"--out_dir={tmp_path / 'x'}")


def test_pieces_by_default():
    """64 documents of 1,024 tokens a piece with insertion, for the model of the paper; half as many
    without. A smaller model takes more."""
    owt = ["--dataset=owt"]

    def pieces(world, *flags):
        args = common.parse(train.Args, "", [*owt, *flags])
        train.settle(args)
        return train.pieces_for(args, args, world)
    assert pieces(8) == 1 and pieces(1) == 8
    assert pieces(8, "--method=mdm") == 2 and pieces(1, "--method=mdm") == 16
    assert pieces(8, "--method=mdm", "--n_layer=6") == 1
    assert pieces(1, "--gradient_accumulation_steps=5") == 5
    with pytest.raises(common.Fail, match="--batch_size 512 is less than a document"):
        pieces(8, "--gradient_accumulation_steps=65")


# -----------------------------------------------------------------------------
# one run per folder

def test_a_run_leaves_its_files(lines, tmp_path):
    printed = trained(tmp_path, lines, "--sample_steps=2")
    assert "step 6/6 | loss" in printed and "step 6/6 | val" in printed
    assert f"{tmp_path}/: ckpt.pt, log.csv, loss.png" in printed
    names = sorted(name for name in os.listdir(tmp_path) if name != ".lock")
    assert names == ["ckpt-00000003.pt", "ckpt.pt", "log.csv", "loss.png"]
    with open(tmp_path / "log.csv", newline="") as f:
        rows = list(csv.DictReader(f))
    assert list(rows[0]) == list(common.Log.NAMES)
    assert [row["step"] for row in rows if row["loss"]] == ["1", "2", "3", "4", "5", "6"]
    assert [row["step"] for row in rows if row["val"]] == ["3", "6"]


def test_a_run_is_not_written_over_unless_one_says_so(lines, tmp_path):
    trained(tmp_path, lines, "--keep=3", "--eval_interval=2")
    fault = refused(lines, f"--out_dir={tmp_path}")
    assert "holds a run" in fault and "--overwrite" in fault
    before = {p.name: p.read_bytes() for p in tmp_path.glob("*.pt")}
    assert len(before) == 3
    fault = refused("--dataset=nosuch", f"--out_dir={tmp_path}", "--overwrite")
    assert "nosuch" in fault and all((tmp_path / name).read_bytes() == content
                                     for name, content in before.items())
    trained(tmp_path, lines, "--overwrite", "--max_iters=3", "--method=mdm")
    assert [p.name for p in tmp_path.glob("*.pt")] == ["ckpt.pt"]
    assert {row["step"] for row in runs.log_of(tmp_path)} == {"1", "2", "3"}


def test_an_old_run_never_comes_back(lines, tmp_path):
    """--overwrite, a damaged checkpoint of the new run, resume: not the old run of another kind"""
    trained(tmp_path, lines, "--keep=3", "--eval_interval=2")
    trained(tmp_path, lines, "--overwrite", "--method=mdm", "--max_iters=3")
    (tmp_path / "ckpt.pt").write_bytes(b"damaged")
    fault = refused(lines, f"--out_dir={tmp_path}", "--init_from=resume")
    assert "damaged" in fault


@pytest.mark.parametrize("keep, expected", [(1, [6]), (2, [6, 5]), (4, [6, 5, 4, 3])])
def test_the_newest_checkpoints_are_kept(keep, expected, lines, tmp_path):
    trained(tmp_path, lines, f"--keep={keep}", "--eval_interval=1")
    steps = [checkpoint.read(path)["step"] for path in checkpoint.found(tmp_path)]
    assert steps == expected


def test_a_second_run_in_the_same_folder_is_refused(lines, tmp_path):
    held = common.lock(tmp_path)
    assert "another run is writing" in refused(lines, f"--out_dir={tmp_path}")
    held.close()
    trained(tmp_path, lines, "--max_iters=1")


# -----------------------------------------------------------------------------
# beginning with the weights of another run

def test_a_run_can_begin_with_the_averages_of_another(lines, tmp_path):
    trained(tmp_path / "a", lines)
    other = f"--init_from={tmp_path / 'a' / 'ckpt.pt'}"
    trained(tmp_path / "b", lines, other, "--learning_rate=0", "--max_iters=1")
    ema = runs.newest(tmp_path / "a")["ema"]
    begun = runs.newest(tmp_path / "b")["model"]
    assert all(torch.equal(w, begun[name]) for name, w in ema.items())
    for flag in ("--n_layer=2", "--n_embd=32", "--n_head=1", "--method=mdm", "--rope_theta=7"):
        fault = refused(lines, f"--out_dir={tmp_path / 'c'}", other, flag)
        assert "is of another kind or size" in fault
    # also onto itself
    trained(tmp_path / "a", lines, other, "--overwrite", "--learning_rate=0", "--max_iters=1")
    begun = runs.newest(tmp_path / "a")["model"]
    assert all(torch.equal(w, begun[name]) for name, w in ema.items())


def test_a_fixed_canvas_can_become_a_model_with_insertion(lines, tmp_path):
    """All weights of an MDM are kept, the gap head is new."""
    trained(tmp_path / "mdm", lines, "--method=mdm")
    trained(tmp_path / "flex", lines, f"--init_from={tmp_path / 'mdm' / 'ckpt.pt'}",
            "--learning_rate=0")
    mdm, flex = (runs.newest(tmp_path / name) for name in ("mdm", "flex"))
    assert all(torch.equal(flex["model"][name], w) for name, w in mdm["ema"].items())
    new = flex["model"].keys() - mdm["ema"].keys()
    assert {name.split(".")[0] for name in new} == {"gap"}
