"""bench.py: the dense way and ours compute the same, and every part runs."""
import csv

import pytest
import torch

import bench
import common
import train

TINY = ["--V=11", "--n_layer=1", "--n_head=1", "--n_embd=8", "--block_size=20", "--documents=3",
        "--slots=4", "--canvas=8", "--batch=2", "--steps=2", "--repeats=1", "--device=cpu"]


@pytest.mark.parametrize("method", list(train.METHODS))
def test_dense_and_ours_have_equal_losses_where_no_row_is_padded(method):
    """A padded row is another question: its pad symbols are seen."""
    args = common.parse(bench.Args, argv=TINY)
    net, flags = bench.network(args, method, 3, 20)
    batch = train.make_batch(0, bench.Texts([20] * 3, args.V), net.code, flags)
    if method != "ar":
        batch.t = torch.ones(3).double()
        batch.noised = batch.noised._replace(y=batch.d1.clone(), n=batch.n1,
                                             kept=torch.arange(20).expand(3, 20),
                                             gaps=torch.zeros(3, 21, dtype=torch.int64))
        batch.noised.y[:, 3:9] = net.code.mask
    both = [torch.stack(train.losses(predict, net.code, batch, torch.arange(3), flags))
            for predict in (net, bench.dense(net, *batch.x1.shape))]
    torch.testing.assert_close(*both)


def test_every_part_runs_and_writes_the_table(tmp_path, capsys):
    path = tmp_path / "table.csv"
    bench.run([*TINY, "--csv", str(path)])
    with open(path, newline="") as f:
        rows = list(csv.DictReader(f))
    assert tuple(rows[0]) == bench.COLUMNS
    assert [r["path"] for r in rows[3:13]] == ["dense", "ours"] * 5         # train
    cost = [r["case"].removeprefix("cost, flexmdm, ") for r in rows[13:18]]
    assert cost == ["12 of 5", "6 of 10", "3 of 20", "1 of 40", "1 of 20"]
    assert [r["path"] for r in rows[-6:]] == ["make_batch", "pack", "loss, gradient", "AdamW",
                                              "Muon", "a sampling step"]
    assert all(float(r["ms"]) > 0 for r in rows)


def test_flops_are_those_of_the_slots_that_exist_and_of_those_asked_for():
    """An autoregressive network has no other matrices: 6 for every weight and slot."""
    args = common.parse(bench.Args, argv=TINY)
    net, flags = bench.network(args, "ar", 2, 20)
    batch = train.make_batch(0, bench.Texts([3, 7], args.V), net.code, flags)
    flops = bench.flops_of(lambda: bench.step(net, batch, flags, net))
    slots = 3 + 7 + 2                                           # with an end token each
    assert flops == 6 * slots * (12 * 8 ** 2 + 8 * 11)


def test_lengths_are_owts_deciles():
    assert bench.owt_lengths(10, 1024) == bench.LENGTHS
    assert bench.owt_lengths(2, 512) == [270, 411]
    assert bench.owt_lengths(10, 2) == [1] * 9 + [2]            # none is empty


def test_operators_are_counted():
    x = torch.ones(3)
    with bench.Calls() as calls:
        (x + 1) * 2
    assert calls.count == 2


def test_an_unknown_part_is_a_sentence():
    with pytest.raises(common.Fail, match="--only heads"):
        bench.run(["--only", "heads"])


def test_the_smallest_sizes_run():
    bench.run([*TINY, "--V=9", "--block_size=2", "--canvas=2", "--documents=1", "--slots=1",
               "--batch=1", "--steps=1"])


def test_sizes_that_do_not_fit_are_a_sentence():
    with pytest.raises(common.Fail, match="n_embd 9 must be"):
        bench.run([*TINY, "--n_embd=9", "--only=train"])
