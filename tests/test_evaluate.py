"""evaluate.py's numbers against values worked out by hand."""
import math

import pytest
import torch

import data
import evaluate
import model
import train


def test_validity():
    assert [evaluate.parses(t) for t in ("x = 1", "for x in y: pass", "", " ", "x =", "\0")] == [True, True, False, False, False, False]
    assert [evaluate.balanced(t) for t in ("()", "(())()", "", ")(", "(()", "(a)")] == [True, True, False, False, False, False]


def test_judge():
    tokenizer = data.tokenizer_from("bytes")
    val = [tokenizer.encode(t) for t in ("ab", "abcd")]
    row = evaluate.judge(["ab", "ab", "ab", "abcd"], val, tokenizer, 16, lambda t: t == "ab", known={"abcd"})
    assert row["valid"] == 0.75 and row["copied"] == 0.25
    assert row["valid_error"] == pytest.approx(math.sqrt(0.75 * 0.25 / 4))
    assert row["length_tv"] == pytest.approx(0.25)                     # 3/4 against 1/2 at length 2
    assert row["mean_length"] == 2.5 and row["distinct_2"] == 3 / 6    # ab ab ab ab bc cd: three kinds of six
    assert evaluate.entropy([[1, 2], [3, 4]]) == 2.0


@pytest.mark.parametrize("method", list(train.METHODS))
def test_a_model_that_knows_nothing_has_8_bits_per_byte_and_pays_for_lengths(method, tmp_path):
    """With all token logits equal the tokens cost 8 bits a byte exactly (a canvas: for its end tokens too). Insertion pays the gaps on top."""
    (tmp_path / "lines.txt").write_text("\n".join(f"line {i} {'x' * (i % 7)}" for i in range(300)))
    args = train.Args(method=method, block_size=16, n_layer=1, n_head=1, n_embd=16)
    args.named = {"ell"}
    args.ell = 2 if "prime" in method else 1
    train.check(args)
    dataset = data.load(str(tmp_path / "lines.txt"), data_dir=str(tmp_path), block_size=16, split="line")
    net = train.build(args, dataset.tokenizer, None)
    torch.nn.init.zeros_(net.head.weight)
    loaded = model.Loaded(net, {"run": vars(args)})
    table = evaluate.likelihood(loaded, dataset.val, dataset.tokenizer, evaluate.Args(documents=len(dataset.val), repeats=64))
    length = dataset.val.lengths.mean()
    tokens = {"ar": length + 1, "mdm": 16, "prime": 16}.get(method, length)
    best = table["exact" if method == "ar" else "tight" if "flex" in method else "loose"]
    if "flex" in method:
        assert best[2] < table["loose"][2] and best[0] > 0
    else:
        assert best[0] == pytest.approx(tokens * math.log(256), rel=1e-5 if method == "ar" else 0.03)
        assert best[1] == pytest.approx(best[0] / length) and best[2] == pytest.approx(best[1] / math.log(2))
