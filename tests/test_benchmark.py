"""Benchmarks answered by a model: what it is asked, what is taken for its answer, and that every
problem ends up in the results once."""
import json
from dataclasses import asdict
from types import SimpleNamespace

import pytest
import torch

import checkpoint
import hub
from common import Fail, parse
from data import tokenizer_from
from interpolant import schedule
from model import Config, Transformer
from oracle import Oracle, random_p, sampling_error, strings, total_variation
from prime import Code
from retrofit import benchmark, sandbox

needs_kernel = pytest.mark.skipif(not sandbox.works(), reason="no namespaces on this system")
SPECIAL = ["<|startoftext|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",
           "<|endoftext|>", "<|mask|>"]


def arguments(name, *flags):
    args = parse(benchmark.Args, "", list(flags))
    benchmark.derive(args, name)
    return args


class Scripted:
    """A model of bytes that knows one document by heart, and finds its tokens a little likelier
    than others. `calls`: how often it was asked."""
    likelier = 0.5
    documents = checkpoint.Loaded.documents

    def __init__(self, text, insertion="instant", block_size=64, dataset="sums"):
        self.tokenizer = tokenizer_from("bytes")
        self.ids = torch.tensor(list(text.encode()))
        self.code, self.calls = Code(256), 0
        self.fixed = insertion == "instant"
        self.config = SimpleNamespace(insertion=insertion, block_size=block_size, causal=False)
        self.args = {"unmasking": "linear", "dataset": dataset}         # "": LLaDA as it came

    def predict(self, y, n, t, at, given=None):
        """Slot i is the document's token i. With insertion, what is missing is missing before the
        last slot, which is the text after the hole."""
        self.calls += 1
        slots = at.nonzero()[:, 1].clamp_max(len(self.ids) - 1)                 # (M,)
        logits = torch.zeros(len(slots), 256)
        logits[torch.arange(len(slots)), self.ids[slots]] = self.likelier
        if self.fixed:
            return logits, None
        log_g = torch.full((len(y), y.shape[1] + 1), -30.0)
        missing = (len(self.ids) - n).clamp_min(1e-9)
        log_g[torch.arange(len(y)), n - 1] = missing.log()
        return logits, log_g


class Sure(Scripted):
    likelier = 100.0


# -----------------------------------------------------------------------------
# what is taken for the answer

QUESTION = {"task_id": "q", "question": "1+1?", "answer": "#### 2"}


@pytest.mark.parametrize("sampler", ["ours", "exact", "llada"])
def test_an_answer_on_a_fixed_canvas_ends_with_the_end_token(sampler):
    loaded = Sure("1+1?\n2 it is" + "\0" * 40)                   # 0 is the end of a text of bytes
    args = arguments("gsm8k", f"--sampler={sampler}", "--length=20", "--steps=16")
    assert benchmark.Asker(loaded, "gsm8k", args).ask([QUESTION]) == {"q": "2 it is"}


@pytest.mark.parametrize("insertion", ["instant", "linear"])
def test_a_hole_is_what_stands_between_the_given_texts(insertion):
    loaded = Sure("f(x) = x + 1;", insertion)
    pairs = [(list(b"f(x) = "), list(b";"))]
    args = arguments("infill", "--steps=32", "--length=5")
    answer = benchmark.Asker(loaded, "infill", args).fill(pairs)
    assert [bytes(ids) for ids in answer] == [b"x + 1"]


def test_rows_of_different_lengths_are_cut_where_they_end():
    loaded = Sure("aaaabbbbcc" + "\0" * 54)
    pairs = [(list(b"aaaa"), list(b"b")), (list(b"aaaabb"), []), (list(b"a"), list(b"cc"))]
    args = arguments("infill", "--steps=8", "--length=4")
    answers = benchmark.Asker(loaded, "infill", args).fill(pairs)
    assert [bytes(ids) for ids in answers] == [b"bbbb", b"bbcc", b"aaab"]


def test_the_baseline_is_asked_as_its_authors_ask_it():
    """Temperature 0 and a step a token, unless flags say otherwise: a document whose tokens are
    only slightly likelier than others comes out whole."""
    text = "Question: 1+1?\nAnswer: it is 2\n\nQuestion: and 2+2?"
    loaded = Scripted(text + "\0" * 100, block_size=128, dataset="")
    args = arguments("gsm8k", "--sampler=llada", "--length=40")
    assert (args.steps, args.temperature, args.block) == (40, 0, 40)
    assert benchmark.Asker(loaded, "gsm8k", args).ask([QUESTION]) == {"q": " it is 2\n\n"}
    assert loaded.calls == 40

    args = arguments("gsm8k", "--sampler=llada", "--steps=10", "--temperature=0.5", "--block=4")
    assert (args.length, args.steps, args.temperature, args.block) == (256, 10, 0.5, 4)
    args = arguments("infill")
    assert (args.length, args.steps, args.temperature) == (64, 128, 1.0)


@pytest.mark.parametrize("flag, value", [("--temperature=1", 1), ("--temperature=0", 0)])
def test_the_temperature_reaches_the_sampler(flag, value):
    loaded = Scripted("1+1?\n" + "2" * 30, block_size=35)
    args = arguments("gsm8k", flag, "--length=30", "--steps=4")
    answer = benchmark.Asker(loaded, "gsm8k", args).ask([QUESTION])["q"]
    assert (answer == "2" * 30) == (value == 0)


def test_the_same_seed_gives_the_same_answers():
    loaded = Scripted("1+1?\n" + "2" * 30, block_size=35)
    answers = []
    for seed in (0, 0, 1):
        args = arguments("gsm8k", f"--seed={seed}", "--length=30", "--steps=4")
        answers.append(benchmark.Asker(loaded, "gsm8k", args).ask([QUESTION]))
    assert answers[0] == answers[1] != answers[2]


def test_a_problem_that_is_too_long_has_no_answer_and_the_others_have_one():
    """A fixed canvas holds 64 tokens: here 53 of the question, a new line, and 10 of the answer.
    Insertion needs room for one."""
    for insertion, longest in (("instant", 53), ("linear", 62)):
        args = arguments("gsm8k", "--length=10", "--steps=4")
        ask = benchmark.Asker(Sure("1" * 64, insertion), "gsm8k", args).ask
        fits = {"task_id": "fits", "question": "1" * longest}
        long = {"task_id": "long", "question": "1" * (longest + 1)}
        right = "1" * (63 - longest)
        assert ask([long, fits, {**long, "task_id": "longer"}]) == {"fits": right}
        assert ask([long]) == {}


def test_a_canvas_is_filled_up_as_in_training():
    """After the hole stand end tokens where a model was trained here, also a LLaDA with adapters,
    and nothing in LLaDA as it came."""
    for dataset, size in (("sums", 64), ("", 20)):
        loaded, seen = Sure("1+1?\n2 it is" + "\0" * 60, dataset=dataset), []
        loaded.predict = lambda y, n, t, at, given=None: (
            seen.append(n[0].item()) or Sure.predict(loaded, y, n, t, at))
        args = arguments("gsm8k", "--length=15", "--steps=4")
        assert benchmark.Asker(loaded, "gsm8k", args).ask([QUESTION]) == {"q": "2 it is"}
        assert set(seen) == {size}


# -----------------------------------------------------------------------------
# LLaDA's own sampler

@pytest.mark.parametrize("block", [1, 2])
def test_generation_by_blocks_of_one_token_is_exact(block):
    """LLaDA's sampler at temperature 1, a step for each token: in blocks of 1 no choice of slots
    can bias it; in blocks of 2 the surest drawn token comes first, and that does."""
    docs, N = strings(3, 2, 2), 10_000
    oracle = Oracle(docs, random_p(len(docs), 7), Code(3), schedule("instant"))
    y, n = torch.full((N, 2, 1), oracle.code.mask), torch.full((N,), 2)
    x, n = benchmark.generate_by_blocks(oracle.predict, oracle.code, y, n, 2, block, 1.0)
    off = total_variation(x, n, oracle.docs, oracle.p)
    error = sampling_error(oracle.p, N, chance=1e-3)            # one seed in 1,000 exceeds it
    assert (off < error) == (block == 1)


def test_generation_by_blocks_fills_the_surest_first():
    """Two blocks of 2 masks, a token for each step, temperature 0. Slot 0 is given and told."""
    code, asked = Code(3), []
    table = torch.tensor([[0., 0, 0], [1, 0, 0], [0, 2, 0], [0, 0, 3], [4, 0, 0]])

    def predict(y, n, t, at, given=None):
        asked.append(at[0].nonzero()[:, 0].tolist())
        assert given[0].tolist() == [True, False, False, False, False]
        return table[at[0]], None
    y = torch.tensor([[[2], [3], [3], [3], [3]]])
    x, n = benchmark.generate_by_blocks(predict, code, y, torch.tensor([5]), 4, 2)
    assert x.tolist() == [[2, 0, 1, 2, 0]]
    assert asked == [[1, 2], [1], [3, 4], [3]]
    # 4 masks in 3 steps: the odd one comes first, so 4, 2 and 1 are left
    asked.clear()
    benchmark.generate_by_blocks(predict, code, y, torch.tensor([5]), 3, 4)
    assert [len(slots) for slots in asked] == [4, 2, 1]


# -----------------------------------------------------------------------------
# what a model is asked

@pytest.fixture
def llada(tmp_path):
    """The folder of a tiny LLaDA over bytes"""
    V = 256 + len(SPECIAL)
    config = {**hub.CONFIG, "vocab_size": V, "embedding_size": V, "mask_token_id": V - 1,
              "eos_token_id": V - 2, "pad_token_id": V - 2, "max_sequence_length": 256}
    hub.write_llada(tmp_path / "llada", config)
    content = hub.tokenizer_json([], added=SPECIAL)
    (tmp_path / "llada" / "tokenizer.json").write_text(json.dumps(content))
    return tmp_path / "llada"


def spoken(loaded, ids):
    return loaded.tokenizer.encoding.decode_bytes(ids).decode()


def given(loaded, name, problem, *flags):
    before, after = benchmark.Asker(loaded, name, arguments(name, *flags)).given(problem)
    return spoken(loaded, before), spoken(loaded, after)


def test_what_a_model_is_asked(llada, tmp_path):
    loaded = checkpoint.load(str(llada))
    hole = {"task_id": "h", "prompt": "def f(x):\n", "suffix": "  return y\n"}
    assert given(loaded, "infill", hole) == ("def f(x):\n", "  return y\n")
    assert given(loaded, "infill", hole, "--sampler=llada") == ("def f(x):\n", "  return y\n")
    assert given(loaded, "gsm8k", QUESTION) == ("1+1?\n", "")
    assert given(loaded, "gsm8k", QUESTION, "--sampler=llada") == ("Question: 1+1?\nAnswer:", "")

    shots = [{"question": f"{i}+{i}?", "answer": f"so\n#### {2 * i}"} for i in range(9)]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, shots)))
    flags = ["--sampler=llada", f"--examples={tmp_path / 'train.jsonl'}", "--shots=2"]
    assert given(loaded, "gsm8k", QUESTION, *flags)[0] == (
        "Question: 0+0?\nAnswer: so\n#### 0\n\n"
        "Question: 1+1?\nAnswer: so\n#### 2\n\n"
        "Question: 1+1?\nAnswer:")
    loaded.args["dataset"] = "sums"                             # trained here, on our own format
    assert given(loaded, "gsm8k", QUESTION, "--sampler=llada") == ("1+1?\n", "")


def test_the_chat_template(llada):
    loaded = checkpoint.load(str(llada))
    asker = benchmark.Asker(loaded, "gsm8k", arguments("gsm8k", "--chat"))
    before, after = asker.given(QUESTION)
    assert spoken(loaded, before) == (
        "<|startoftext|><|start_header_id|>user<|end_header_id|>\n\n1+1?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n")
    special = {text: 256 + i for i, text in enumerate(SPECIAL)}
    assert before[:2] == [special["<|startoftext|>"], special["<|start_header_id|>"]]
    assert before.count(special["<|eot_id|>"]) == 1 and after == []
    answer = list(loaded.tokenizer.encode("2 it is")) + [special["<|eot_id|>"]] + [65] * 5
    assert asker.text(answer) == "2 it is"
    with pytest.raises(Fail, match="--chat is for"):
        benchmark.Asker(Sure("x"), "gsm8k", arguments("gsm8k", "--chat"))


def test_models_that_do_not_fit_the_flags():
    with pytest.raises(Fail, match="fixed canvas"):
        benchmark.Asker(Sure("x", "linear"), "gsm8k", arguments("gsm8k", "--sampler=llada"))
    causal = Sure("x")
    causal.config.causal = True
    with pytest.raises(Fail, match="autoregressive"):
        benchmark.Asker(causal, "gsm8k", arguments("gsm8k"))


# -----------------------------------------------------------------------------
# the command

CODE = {"entry_point": "f", "prompt": "def f(x):\n", "suffix": "\n",
        "canonical_solution": "    return x", "test": "def check(f):\n    assert f(2) == 2\n"}


@pytest.fixture
def problems(tmp_path):
    """{benchmark: its file}. One problem of four is too long for a block_size of 64."""
    sums = [{"question": f"{a}+{a}?", "answer": f"{2 * a}\n#### {2 * a}"} for a in range(4)]
    sums[2]["question"] = "two" * 99 + "?"
    holes = [{"task_id": f"t/{i}", **CODE} for i in range(4)]
    holes[2]["prompt"] += "    # long\n" * 30
    paths = {"gsm8k": tmp_path / "sums.jsonl", "infill": tmp_path / "holes.jsonl"}
    for path, rows in zip(paths.values(), (sums, holes)):
        path.write_text("\n".join(map(json.dumps, rows)))
    return paths


def write_run(folder, insertion):
    """A run's folder with an untrained network"""
    config = Config(V=256, block_size=64, insertion=insertion, n_layer=1, n_head=2, n_embd=16,
                    n_cond=16)
    weights = Transformer(config).state_dict()
    args = {"method": "mdm" if insertion == "instant" else "flexmdm", "insertion": insertion,
            "unmasking": "linear", "dataset": "x"}
    checkpoint.save(folder, model=weights, ema=weights, config=asdict(config), args=args, step=3,
                    tokenizer=tokenizer_from("bytes").spec(), permutation=None)
    return folder


@needs_kernel
@pytest.mark.parametrize("kind, flags", [
    ("flexmdm", []), ("flexmdm", ["--sampler=exact"]), ("mdm", ["--order=top_prob", "--window=4"]),
    ("mdm", ["--sampler=llada", "--block=4"]), ("llada", ["--sampler=llada"]), ("llada", [])])
@pytest.mark.parametrize("name", ["gsm8k", "infill"])
def test_every_problem_is_answered_once(tmp_path, problems, llada, capsys, name, kind, flags):
    """Each problem is in the results once, also one that is too long, and a run that was cut off is
    completed to the same results."""
    model = llada
    if kind != "llada":
        insertion = {"flexmdm": "linear", "mdm": "instant"}[kind]
        model = write_run(tmp_path / kind, insertion)
    results = tmp_path / "results.jsonl"
    argv = [name, f"--out_dir={model}", f"--problems={problems[name]}", f"--results={results}",
            "--length=8", "--device=cpu", "--batch_size=2", *flags]
    if "--sampler=llada" not in flags:
        argv += ["--steps=6"]
    benchmark.run(argv)
    settings, *records = map(json.loads, results.read_text().splitlines())
    assert settings["settings"]["benchmark"] == name and settings["settings"]["length"] == 8
    assert len({r["task_id"] for r in records}) == len(records) == 4
    assert records[2]["status"] == "failed" and "too long" in records[2]["error"]
    assert all("completion" in r for r in records[:2] + records[3:])
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("1 problems are too long") and said[1].startswith("pass@1 ")

    first = results.read_text()
    results.write_text("".join(first.splitlines(keepends=True)[:3]) + '{"task_id": "cut')
    benchmark.run(argv)
    again = [json.loads(line) for line in results.read_text().splitlines()[1:]]
    for r in records + again:
        r.pop("seconds", None)
    assert again == records


@needs_kernel
def test_canonical_solutions_are_right(tmp_path, problems, capsys):
    for name, path in problems.items():
        benchmark.run([name, f"--problems={path}", "--generations=canonical", "--every=2",
                       f"--results={tmp_path / name}"])
    assert capsys.readouterr().out == 2 * "pass@1 100.0% (95%: 34.2 to 100.0; 2 of 2)\n"


def test_where_nothing_contains_a_program_none_is_run(tmp_path, problems, capsys, monkeypatch):
    ran, run = [], sandbox.run

    def counted(parts, **options):
        ran.append(options["unsafe"])
        return run(parts, **options)

    monkeypatch.setattr(sandbox, "works", lambda: False)
    monkeypatch.setattr(sandbox, "run", counted)
    argv = ["infill", f"--problems={problems['infill']}", "--generations=canonical",
            f"--results={tmp_path / 'r'}"]
    with pytest.raises(Fail, match="generated code is not run"):
        benchmark.run(argv)
    assert ran == []
    benchmark.run([*argv, "--unsafe"])
    said = capsys.readouterr()
    assert ran == [True] * 4 and "4 of 4" in said.out
    assert said.err.startswith("warning: --unsafe") and said.err.count("\n") == 1


@pytest.mark.parametrize("argv, says", [
    (["gsm8k"], "give the problems of gsm8k with --problems"),
    (["gsm8k", "--problems=HOLES", "--generations=canonical"], "expected GSM8K's test.jsonl"),
    (["gsm8k", "--problems=SUMS", "--step=3"], "did you mean --steps"),
    (["gsm8k", "--problems=SUMS", "--out_dir=nothing"], "there is no checkpoint"),
    (["infill", "--problems=HOLES", "--chat", "--unsafe"], "--chat and --examples are for gsm8k")])
def test_mistakes_are_one_sentence(problems, tmp_path, argv, says):
    names = {"SUMS": str(problems["gsm8k"]), "HOLES": str(problems["infill"])}
    for word, path in names.items():
        argv = [a.replace(word, path) for a in argv]
    with pytest.raises(Fail, match=says):
        benchmark.run([*argv, f"--results={tmp_path / 'r'}"])
