"""evaluate.py and quality.py: numbers that can be worked out by hand, then the command line."""
import csv
import json
import math

import pytest
import torch

import checkpoint
import common
import data
import evaluate
import quality
import train
from data import whole
from figures import steps


def model(method, tokenizer="bytes", block_size=16, seed=0, **options):
    """A small untrained network, ready to be asked"""
    torch.manual_seed(seed)
    argv = [f"--{k}={v}" for k, v in dict(options, method=method, block_size=block_size, n_layer=1,
                                          n_head=1, n_embd=16).items()]
    args = common.parse(train.Args, argv=argv)
    train.settle(args)
    tokenizer = data.tokenizer_from(tokenizer)
    net = train.build(args, tokenizer, None).eval()
    return checkpoint.Loaded(net, vars(args), tokenizer, 0)


def flags(*argv):
    return common.parse(evaluate.Args, argv=[str(word) for word in argv])


def lines(folder, texts, block_size=16, tokenizer="bytes"):
    """Validation documents with these texts"""
    data.write_texts(str(folder), ["other " * 9], list(texts), tokenizer, {})
    return data.load(str(folder), block_size=block_size).val


def judged(documents):
    return data.Dataset("x", "", None, documents, documents.tokenizer, {})


def uniform(loaded):
    """No token is likelier than another."""
    torch.nn.init.zeros_(loaded.net.head.weight)
    return loaded


TEXTS = [f"line {i} {'x' * (i % 7)}" for i in range(120)]


# -----------------------------------------------------------------------------
# likelihood

def test_a_ratio_of_means_and_its_standard_error_by_hand():
    """2 + 4 nats over 1 + 3 bytes: 1.5, residuals +-.5, their variance .5; sqrt(.5 / 2) / 2."""
    rate, error = quality.ratio(torch.tensor([2., 4.]).double(), torch.tensor([1., 3.]).double())
    assert float(rate) == 1.5 and float(error) == pytest.approx(math.sqrt(0.5 / 2) / 2)
    assert math.isnan(quality.ratio(torch.ones(1), torch.ones(1))[1])


def test_the_standard_error_is_what_repeating_the_experiment_shows():
    size = torch.randint(1, 9, (4000, 50)).double()
    total = size * (2 + torch.randn(4000, 50)) + torch.randn(4000, 50)
    rates, errors = zip(*(quality.ratio(t, s) for t, s in zip(total, size)))
    spread = float(torch.stack(rates).std())
    assert float(torch.stack(errors).mean()) == pytest.approx(spread, rel=0.05)


@pytest.mark.parametrize("method", list(train.METHODS))
def test_a_model_that_knows_nothing_has_8_bits_per_byte_and_pays_for_lengths(method, tmp_path):
    """With equal logits a token costs 8 bits, also the end tokens of a canvas; insertion pays for
    the gaps on top."""
    documents = lines(tmp_path, TEXTS)
    args = flags("--documents", len(documents), "--repeats", 64)
    counts, table = evaluate.likelihood(uniform(model(method)), judged(documents), args)
    best = table["exact" if method == "ar" else "tight" if "flex" in method else "loose"]
    length = documents.lengths.mean()
    assert counts["bytes"] == counts["tokens"] == documents.tokens
    if "flex" in method:
        assert best["token"][0] > math.log(256)
        assert best["document"][0] < table["loose"]["document"][0]
        return
    paid = length + 1 if method == "ar" else 16
    tolerance = 1e-5 if method == "ar" else 0.03
    assert best["document"][0] == pytest.approx(paid * math.log(256), rel=tolerance)
    assert best["token"][0] == pytest.approx(best["document"][0] / length)
    assert best["bits_per_byte"][0] == pytest.approx(best["token"][0] / math.log(2))
    assert best["perplexity"][0] == pytest.approx(math.exp(best["token"][0]))
    error = best["perplexity"][0] * best["token"][1]
    assert best["perplexity"][1] == pytest.approx(error)


def test_the_tight_bound_of_a_perfect_model_is_the_entropy(tmp_path):
    """Documents of 6 of V equally likely tokens: of 6 - n missing ones each gap has its share."""
    texts = ["".join(chr(97 + (i * k) % 26) for k in range(1, 7)) for i in range(1, 27)]
    documents = lines(tmp_path, texts)
    loaded = model("flexmdm")

    def perfect(y, n, t, at, given=None):
        share = ((6 - n) / (n + 1.0)).clamp_min(1e-30).log()
        return torch.zeros(int(at.sum()), 256), share[:, None].expand(-1, y.shape[1] + 1)

    loaded.predict = perfect
    _, table = evaluate.likelihood(loaded, judged(documents), flags("--repeats", 1500))
    value, error = table["tight"]["document"]
    assert abs(value - 6 * math.log(256)) < 4 * error and error < 0.2
    assert table["loose"]["document"][0] > value + 1


def test_the_exact_likelihood_is_a_plain_sum_over_next_tokens(tmp_path):
    """A bigram model: -log softmax(W[token before])[token], the end token included."""
    documents, loaded = lines(tmp_path, TEXTS[:9]), model("ar")
    W = torch.randn(258, 256)                       # 256: nothing before; 257: pad

    def bigram(y, n, t, at, given=None):
        before = torch.nn.functional.pad(y[:, :-1, 0], (1, 0), value=256)
        return W[before][at], None

    loaded.predict = bigram
    counts, table = evaluate.likelihood(loaded, judged(documents), flags())
    log_p, total = W.log_softmax(1), 0.0
    for i in range(len(documents)):
        ids = documents.document(i) + [documents.tokenizer.eot]
        total -= sum(float(log_p[a, b]) for a, b in zip([256, *ids], ids))
    assert table["exact"]["document"][0] == pytest.approx(total / 9)
    assert table["exact"]["token"][0] == pytest.approx(total / documents.tokens)
    assert counts["documents"] == 9
    words = sum(len(text.split()) for text in TEXTS[:9])
    assert math.log(table["exact"]["word_perplexity"][0]) == pytest.approx(total / words)


def test_words_and_bytes_are_those_of_the_text_as_it_is_stored(tmp_path):
    """Not tokens; and half a character is as many bytes as it has, not the three of a U+FFFD."""
    data.write_texts(str(tmp_path / "bpe"), ["ab" * 20], ["ab ab ab"], "bpe-258", {})
    documents = data.load(str(tmp_path / "bpe"), block_size=16).val
    tokens, words, octets = evaluate.sizes(documents, [0])          # "ab" is a token, " " another
    assert (tokens.tolist(), words.tolist(), octets.tolist()) == ([5], [3], [8])
    documents = lines(tmp_path / "euro", ["\N{EURO SIGN}" * 5 + "z"], block_size=5)
    assert evaluate.sizes(documents, range(4))[2].tolist() == [5, 5, 5, 1]


@pytest.mark.parametrize("method", ["ar", "mdm", "flexmdm"])
def test_given_tokens_are_told_and_never_counted(method, tmp_path):
    tasks = [[(f"2 + {i} = ", True), ("maybe 5"[:3 + i % 4], False)] for i in range(10)]
    documents = lines(tmp_path, tasks)
    asked = sum(3 + i % 4 for i in range(10))
    loaded, told = uniform(model(method)), []
    ask = loaded.predict

    def watched(y, n, t, at, given=None):
        told.append((given, n, at))
        return ask(y, n, t, at, given=given)

    loaded.predict = watched
    counts, table = evaluate.likelihood(loaded, judged(documents), flags("--repeats", 200))
    assert (counts["tokens"], counts["words"], counts["bytes"]) == (asked, 10, asked)
    assert all((given.sum(1) == 8).all() and not (given & at).any() for given, n, at in told)
    if method == "ar":                              # the answers, and their ends
        assert table["exact"]["document"][0] == pytest.approx((asked / 10 + 1) * math.log(256))
    if method == "mdm":                             # what the prompts leave of the canvas
        assert table["loose"]["document"][0] == pytest.approx(8 * math.log(256), rel=0.03)


def test_every_repeat_has_noise_of_its_own(tmp_path):
    documents, loaded = lines(tmp_path, TEXTS), model("flexmdm")
    seen, ask = [], loaded.predict
    loaded.predict = lambda y, n, t, at, given=None: (seen.append((t, n)), ask(y, n, t, at))[1]
    evaluate.document_nll(loaded, documents, range(50), "loose", repeats=3)
    assert len(seen) == 3 and len(torch.cat([t for t, _ in seen]).unique()) == 150
    assert not torch.equal(seen[0][1], seen[1][1])


def test_more_repeats_mean_less_noise(tmp_path):
    documents, loaded = lines(tmp_path, TEXTS), uniform(model("mdm"))
    spread = []
    for repeats in (1, 16):
        nll = [evaluate.document_nll(loaded, documents, range(120), "loose", repeats)
               for _ in range(4)]
        spread.append(float(torch.stack(nll).std(0).mean()))
    assert spread[0] / spread[1] == pytest.approx(4, rel=0.3)


def test_which_bounds_a_model_has():
    expected = {"mdm": ["loose"], "flexmdm": ["loose", "tight"], "prime": ["loose", "paper"],
                "flexprime": ["loose", "tight", "paper"], "ar": ["exact"]}
    assert {method: evaluate.bounds_of(model(method)) for method in expected} == expected


# -----------------------------------------------------------------------------
# which documents

def test_a_model_is_judged_on_the_rows_it_was_trained_on_and_says_so(tmp_path, capsys):
    lines(tmp_path, TEXTS)
    loaded = model("mdm", dataset=tmp_path, packing="stream")
    documents = evaluate.open_data(loaded, flags()).val
    assert set(documents.lengths.tolist()) == {16} and documents.packing == "stream"
    assert "--packing stream: as in its training" in capsys.readouterr().out
    documents = evaluate.open_data(loaded, flags("--packing", "documents")).val
    assert documents.packing == "documents" and len(documents) == len(TEXTS)
    assert f"trained on {tmp_path}, --packing stream" in capsys.readouterr().out


def test_whole_takes_every_document_and_counts_the_files_own_words(tmp_path):
    path = tmp_path / "wiki.txt"
    path.write_text("\n\n".join(f"a 5 @-@ day plan , no {i:03d} ." for i in range(600)))
    loaded = model("mdm", block_size=32)
    asked = flags("--dataset", path, "--whole", "--detokenize", "wikitext", "--repeats", 1)
    opened = evaluate.open_data(loaded, asked)
    documents, decode = opened.val, loaded.tokenizer.decode
    texts = [decode(documents.document(i)) for i in range(len(documents))]
    assert texts == [f"a 5-day plan, no {i:03d} ." for i in range(600)]
    counts, _ = evaluate.likelihood(loaded, opened, asked)
    assert counts["documents"] == 600 and counts["words"] == 600 * 9    # before marks are undone
    assert counts["bytes"] == 600 * 22
    few = flags("--dataset", path, "--whole", "--documents", 5, "--repeats", 1)
    assert evaluate.likelihood(loaded, opened, few)[0]["documents"] == 5
    size = sum(len(text) + 1 for text in path.read_text().split("\n\n"))       # an end each
    opened = evaluate.open_data(loaded, flags("--dataset", path, "--whole", "--packing", "stream"))
    assert opened.val.lengths.tolist() == [32] * (size // 32)


def test_the_marks_of_benchmarks_are_undone():
    wiki = " = = Top = = \n The \" blue \" crab 's 2 @.@ 5 m ( 8 ft ) , 1 @,@ 000 ; N of us \n"
    ordinary = " == Top ==\nThe \"blue\" crab's 2.5 m (8 ft), 1,000; 1 of us\n"
    assert whole.undo(wiki, "wikitext") == ordinary
    assert whole.undo("it did n't cost $ N N \\/ N of the banks ' <unk>", "ptb") \
        == "it didn't cost $1 1 / 1 of the banks' ?"
    spaced = "\" Yes , \" he 's said . ( No ? ) $ 5 !"
    assert whole.undo(spaced, "lm1b") == "\"Yes,\" he's said. (No?) $5!"


# -----------------------------------------------------------------------------
# samples

def test_validity():
    texts = ("x = 1", "for x in y: pass", "", " ", "x =", "\0")
    assert [quality.parses(text) for text in texts] == [True, True, False, False, False, False]
    texts = ("()", "(())()", "", ")(", "(()", "(a)")
    assert [quality.balanced(text) for text in texts] == [True, True, False, False, False, False]


def test_quality_by_hand():
    texts = ["ab", "ab", "ab", "abcd"]
    val = [list(b"ab"), list(b"abcd")]
    row = quality.quality([list(text.encode()) for text in texts], texts, val, 16,
                          lambda text: text == "ab", known={"abcd"})
    assert row["valid"] == 0.75 and row["copied"] == 0.25
    assert row["valid_error"] == pytest.approx(math.sqrt(0.75 * 0.25 / 4))
    assert row["length_tv"] == pytest.approx(0.25)              # 3/4 against 1/2 at length 2
    assert row["mean_length"] == 2.5
    assert row["distinct_2"] == 3 / 6                           # ab ab ab ab bc cd
    row = quality.quality([[], [1]], ["", "x"], val, 16, None, None)
    assert math.isnan(row["valid"]) and math.isnan(row["copied"])


def test_entropy_in_bits():
    assert quality.entropy([[1, 2], [3, 4]]) == 2.0 and quality.entropy([[7, 7], [7]]) == 0.0


def test_a_document_ends_with_its_first_end_token():
    assert evaluate.until_end([5, 0, 6, 0], 0) == [5]
    assert evaluate.until_end([5, 6, 7, 8], 0) == [5, 6, 7, 8] and evaluate.until_end([], 0) == []


@pytest.mark.parametrize("method", ["mdm", "flexmdm"])
def test_samples_are_as_many_as_asked_and_calls_are_counted_per_sample(method):
    loaded = model(method)
    args = flags("--num_samples", 7, "--batch_size", 3)
    samples, _ = evaluate.draw(loaded, "parallel", 4, args)
    assert len(samples) == 7 and all(loaded.tokenizer.eot not in ids for ids in samples)
    _, calls = evaluate.draw(loaded, "parallel", 4, flags("--num_samples", 7))
    assert 3 <= calls <= 4 + 8                      # a canvas that reveals nothing is not asked
    again, _ = evaluate.draw(loaded, "parallel", 4, args)
    assert samples == again and samples[:3] != samples[3:6]


# -----------------------------------------------------------------------------
# spans

def test_removed_spans_are_1_to_6_tokens_inside_a_document(tmp_path):
    documents = lines(tmp_path, TEXTS)
    cuts = evaluate.remove_spans(documents, 100, seed=0)
    assert len(cuts) == 100 and {len(span) for _, span, _ in cuts} == set(range(1, 7))
    whole_texts = {tuple(a + span + z) for a, span, z in cuts}
    assert whole_texts <= {tuple(text.encode()) for text in TEXTS}
    assert all(a and z for a, _, z in cuts)


@pytest.mark.parametrize("method", ["mdm", "flexmdm"])
def test_spans_are_restored_by_a_model_that_knows_the_documents(method, tmp_path):
    """A fixed canvas is told their length: it has as many masks. All else is given. In these
    documents every token is the one after the token before it."""
    documents = lines(tmp_path, ["abcdefghijkl"[:k] for k in range(8, 13)])
    loaded, first = model(method), []

    def knows(y, n, t, at, given=None):
        first.append(((y[..., 0] == 256).sum(1).tolist(), given.sum(1).tolist()))
        truth, missing = y[..., 0].clone(), torch.zeros(len(y), y.shape[1] + 1)
        for b in range(len(y)):
            last = ord("a") - 1
            for i in range(int(n[b])):
                if truth[b, i] == 256:
                    truth[b, i] = last + 1
                missing[b, i] = truth[b, i] - last - 1
                last = int(truth[b, i])
        logits = 50.0 * torch.nn.functional.one_hot(truth[at], 256)
        return logits, None if method == "mdm" else missing.clamp_min(1e-30).log()

    loaded.predict = knows
    args = flags("--spans", 5, "--span_steps", 1 if method == "mdm" else 16)
    assert evaluate.judge_spans(loaded, documents, args) == (1.0, 0.0)
    masks, given = first[0]
    cuts = evaluate.remove_spans(documents, 5, seed=0)
    if method == "mdm":
        assert masks == [len(span) for _, span, _ in cuts]
        assert given == [16 - len(span) for _, span, _ in cuts]
    else:
        assert masks == [1] * 5 and given == [len(a) + len(z) for a, _, z in cuts]


def test_a_wrong_answer_is_not_restored(tmp_path):
    documents, loaded = lines(tmp_path, TEXTS), model("flexmdm")
    share, error = evaluate.judge_spans(loaded, documents, flags("--spans", 50, "--span_steps", 4))
    assert share < 0.1 and error == pytest.approx(math.sqrt(share * (1 - share) / 50))


# -----------------------------------------------------------------------------
# the command line

@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with a text and two runs of four steps on it: ar (with dropout) and flexmdm"""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "lines.txt").write_text("\n".join(TEXTS))
    for method in ("ar", "flexmdm"):
        train.train([f"--method={method}", f"--out_dir={folder / method}", "--max_iters=4",
                     f"--dataset={folder / 'lines.txt'}", f"--data_dir={folder}", "--split=line",
                     "--dropout=0.5", "--n_layer=1", "--n_head=1", "--n_embd=16", "--block_size=16",
                     "--sample_steps=0", "--eval_iters=1", "--batch_size=8", "--learning_rate=0.02",
                     "--warmup_iters=0"])
    return folder


def test_dropout_is_off_in_a_model_that_was_loaded(runs):
    loaded = checkpoint.load(runs / "ar")
    documents = evaluate.open_data(loaded, flags()).val
    first = evaluate.document_nll(loaded, documents, range(3), "exact", 1)
    assert torch.equal(first, evaluate.document_nll(loaded, documents, range(3), "exact", 1))
    loaded.net.train()
    assert not torch.equal(first, evaluate.document_nll(loaded, documents, range(3), "exact", 1))


def test_the_table_of_samples_as_csv_and_picture(runs, tmp_path, capsys):
    evaluate.run(["--out_dir", f"{runs / 'flexmdm'},{runs / 'ar'}", "--num_samples", "6",
                  "--repeats", "1", "--steps", "2,4", "--sampler", "parallel,exact",
                  "--judge", str(runs / "ar"), "--csv", str(tmp_path / "s.csv"),
                  "--png", str(tmp_path / "s.png")])
    out = capsys.readouterr().out
    assert "tight" in out and "exact" in out and "documents, " in out
    assert out.count("validation documents: perplexity") == 2
    with open(tmp_path / "s.csv", newline="") as f:
        rows = list(csv.DictReader(f))
    assert tuple(rows[0]) == evaluate.COLUMNS
    assert [(r["method"], r["sampler"], r["steps"]) for r in rows] == [
        ("flexmdm", "parallel", "2"), ("flexmdm", "parallel", "4"), ("flexmdm", "exact", "2"),
        ("flexmdm", "exact", "4"), ("ar", "parallel", "16")]
    assert float(rows[-1]["perplexity"]) > 1 and all(float(r["calls"]) >= 1 for r in rows)
    assert (tmp_path / "s.png").read_bytes()[:4] == b"\x89PNG"
    drawn = steps.read(tmp_path / "s.csv")
    assert [steps.name_of(row, drawn) for row in drawn[1:4]] == ["flexmdm", "flexmdm, exact",
                                                                 "flexmdm, exact"]
    assert steps.panels(drawn) == ["length_tv"]                 # valid is not known
    with pytest.raises(common.Fail, match="texts and images apart"):
        steps.draw(tmp_path / "mixed.png", [dict(drawn[0]), {"frechet": 1.0}])
    with pytest.raises(common.Fail, match="no table of evaluate.py"):
        steps.read(runs / "ar" / "log.csv")


def test_generative_perplexity_is_that_of_the_judges_own_tokens(runs):
    judge = quality.Judge(str(runs / "ar"), "cpu")
    texts = ["line 3", "", "line 12 xxxxxxxxxxxxxx"]
    nats, ids = judge.nll(texts, batch_size=2)
    assert ids == [list(b"line 3"), list(b"line 12 xxxxxxxx")]      # 16 tokens; none is empty
    for document, nll in zip(ids, nats):
        y = torch.tensor(document)[None, :, None]
        logits, _ = judge.predict(y, torch.tensor([len(document)]), torch.ones(1), y[..., 0] >= 0)
        expected = -logits.log_softmax(1)[torch.arange(len(document)), y[0, :, 0]].sum()
        assert float(nll) == pytest.approx(float(expected), rel=1e-5)
    perplexity, error = judge.report("texts", texts, 2)
    assert perplexity == pytest.approx(math.exp(float(nats.sum()) / 22))
    _, rate_error = quality.ratio(nats, torch.tensor([6, 16]).double())
    assert error == pytest.approx(perplexity * float(rate_error))


def test_texts_from_elsewhere_are_judged(runs, tmp_path, capsys):
    path = tmp_path / "g.jsonl"
    texts = ("line 1", "line 2 x", "")
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    evaluate.run(["--judge", str(runs / "ar"), "--generations", str(path)])
    out = capsys.readouterr().out
    assert "2 texts of" in out and "14 tokens; 1 texts were empty" in out


@pytest.mark.parametrize("argv, sentence", [
    (["--steps", "4,x"], "--steps 4,x"),
    (["--sampler", "paralel"], "--sampler paralel"),
    (["--generations", "g.jsonl"], "--judge"),
    (["--png", "s.png", "--num_samples", "0"], "--num_samples"),
    (["--out_dir", "nowhere"], "no checkpoint"),
    (["--stepz", "4"], "did you mean --steps"),
])
def test_mistakes_get_a_sentence(argv, sentence):
    with pytest.raises(common.Fail, match=sentence):
        evaluate.run(argv)


def test_mistakes_that_a_model_shows(runs):
    for argv, sentence in ((["--detokenize", "ptb"], "--whole"), (["--whole"], "is none"),
                           (["--judge", str(runs / "flexmdm")], "flexmdm")):
        dataset = ["--dataset", str(runs)] if argv == ["--whole"] else []
        with pytest.raises(common.Fail, match=sentence):
            evaluate.run(["--out_dir", str(runs / "ar"), *argv, *dataset])
    with pytest.raises(common.Fail, match="autoregressive"):
        evaluate.run(["--out_dir", str(runs / "ar"), "--documents", "0", "--spans", "3"])


def test_benchmarks_are_another_command(monkeypatch):
    seen = []
    monkeypatch.setattr(evaluate.benchmark, "run", seen.append)
    evaluate.run(["gsm8k", "--problems", "x"])
    evaluate.run(["infill"])
    assert seen == [["gsm8k", "--problems", "x"], ["infill"]]


def test_progress_is_said(monkeypatch, capsys):
    clock = iter(range(0, 1000, 15))
    monkeypatch.setattr(quality.time, "time", lambda: next(clock))
    assert [len(part) for part in quality.batches(range(10), 4, 1, "samples")] == [4, 4, 2]
    assert "samples: 8/10, " in capsys.readouterr().out
