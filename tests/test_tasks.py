"""The two benchmarks: a number is found where a reader finds it, right code passes and wrong code
does not, and results are written once, resumed and not mixed."""
import gzip
import json
import os
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal

import pytest

from common import Fail
from retrofit import sandbox, tasks

DATA = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "shared", "data")
needs_kernel = pytest.mark.skipif(not sandbox.works(), reason="no namespaces on this system")


def data(name):
    path = os.path.join(DATA, name)
    if not os.path.exists(path):
        pytest.skip(f"{name} is not here")
    return path


# -----------------------------------------------------------------------------
# GSM8K

@pytest.mark.parametrize("name, total", [("gsm8k_test.jsonl", 1319), ("gsm8k_train.jsonl", 7473)])
def test_the_number_of_every_reference_answer(name, total):
    problems = tasks.read_gsm8k(data(name))
    assert len(problems) == total
    for p in problems:
        right = Decimal(p["answer"].split("####")[1].replace(",", "").strip())
        assert tasks.number_of(p["answer"]) == right
        for answer in (p["answer"], f"It is ${right:,}."):
            assert tasks.judge_gsm8k(p, answer)["status"] == "passed"
        for answer in (p["answer"] + "1", ""):
            assert tasks.judge_gsm8k(p, answer)["status"] == "failed"


@pytest.mark.parametrize("text, number", [
    ("#### 18", 18), ("####18", 18), ("a #### 5 and then 6", 5), ("#### x 5 9", 5),
    ("#### 7\nQuestion: #### 8", 7), ("mark 3 #### none", 3), ("none", None), ("", None),
    ("so 1,234.", 1234), ("1,000,000.5 ok", 1000000.5), ("3, 4, 5", 5), ("18.00", 18),
    ("2.5.", 2.5), ("x = .5", .5), ("$18", 18), ("$ 18", 18), ("18 dollars.", 18), ("**42**", 42),
    ("50%", 50),
    ("-$5.50", -5.5), ("$-5", -5), ("is -3", -3), ("\u22124", -4),
    ("7 - 3", 3), ("7-3", 3), ("(7)-3", 3), ("<<16-3-4=9>>9 eggs", 9), ("10:30", 30), ("v2", None),
    ("\u0663", None), ("9" * 200, int("9" * 200))])
def test_the_number_of_a_generation(text, number):
    found = tasks.number_of(text)
    assert found is None if number is None else found == Decimal(number)


# -----------------------------------------------------------------------------
# files

GSM8K = b'{"question": "a", "answer": "#### 1"}\n'


@pytest.mark.parametrize("reader, content, says", [
    (tasks.read_gsm8k, b"", "it is empty.*expected GSM8K's test.jsonl"),
    (tasks.read_gsm8k, b"not json", "cannot read.*expected GSM8K"),
    (tasks.read_gsm8k, GSM8K + b"[]", "cannot read.*expected GSM8K"),
    (tasks.read_gsm8k, b'{"question": "a", "answer": 7}', "no text.*expected GSM8K"),
    (tasks.read_gsm8k, b'{"question": "a", "answer": "7"}', "problem 1: the answer does not end"),
    (tasks.read_gsm8k, b'{"question": "\xff"}', "cannot read"),
    (tasks.read_gsm8k, b"[" * 100000, "cannot read"),
    (tasks.read_infilling, GSM8K, "'task_id'.*expected HumanEval-infilling")])
def test_a_file_of_another_format_is_one_sentence(tmp_path, reader, content, says):
    for name, pack in ("x.jsonl", bytes), ("x.jsonl.gz", gzip.compress):
        (tmp_path / name).write_bytes(pack(content))
        with pytest.raises(Fail, match=says):
            reader(tmp_path / name)


def test_a_file_that_is_cut_off_or_not_there(tmp_path):
    whole = gzip.compress(os.urandom(10000).hex().encode())
    for content in (whole[:-100], b"plain text", whole[:50] + bytes(100) + whole[150:], b""):
        (tmp_path / "x.gz").write_bytes(content)
        with pytest.raises(Fail):
            tasks.read_infilling(tmp_path / "x.gz")
    with pytest.raises(Fail, match="cannot read"):
        tasks.read_gsm8k(tmp_path / "nothing.jsonl")


# -----------------------------------------------------------------------------
# HumanEval-infilling

def judge_all(problems, complete):
    """The set of all verdicts"""
    with ThreadPoolExecutor(2) as pool:
        judged = pool.map(lambda p: tasks.judge_infilling(p, complete(p), seconds=5), problems)
        return {verdict["status"] for verdict in judged}


def canonical(problem):
    return problem["canonical_solution"]


def wrong(problem):
    solution = problem["canonical_solution"]
    indent = solution[:len(solution) - len(solution.lstrip())]
    return indent + "raise ValueError\n"


@needs_kernel
@pytest.mark.parametrize("name, total, every", [
    ("HumanEval-SingleLineInfilling.jsonl.gz", 1033, 20),
    ("HumanEval-MultiLineInfilling.jsonl.gz", 5815, 400)])
def test_canonical_solutions_pass_and_wrong_ones_do_not(name, total, every):
    problems = tasks.read_infilling(data(name))
    assert len(problems) == total
    assert judge_all(problems[::every], canonical) == {"passed"}
    assert judge_all(problems[3::6 * every], wrong) == {"failed"}


@needs_kernel
def test_infilling_joins_the_text_before_the_hole_the_answer_and_the_text_after_it():
    problem = dict(prompt="def f(x):\n    y = x", suffix="    return y\n", entry_point="f",
                   test="def check(g):\n    assert g(2) == 5\n")
    assert tasks.judge_infilling(problem, " + 3\n")["status"] == "passed"
    assert tasks.judge_infilling(problem, " + 4\n")["status"] == "failed"
    assert "SyntaxError" in tasks.judge_infilling(problem, " + '''\n")["error"]


# -----------------------------------------------------------------------------
# from problems to a number

def test_wilson():
    assert tasks.wilson(42, 100) == pytest.approx((0.3280, 0.5179), abs=1e-4)    # the textbook's
    assert tasks.wilson(0, 10) == pytest.approx((0, 0.2775), abs=1e-4)
    assert tasks.wilson(10, 10) == pytest.approx((0.7225, 1), abs=1e-4)


PROBLEMS = [{"task_id": f"t{i}", "answer": f"#### {i}"} for i in range(10)]


def answers(problems):
    return {p["task_id"]: f"maybe {int(p['task_id'][1:]) % 4}" for p in problems}


def evaluate(path, settings, generate=answers):
    """-> (passed, total), what was said"""
    said = []
    total = tasks.evaluate(PROBLEMS, generate, tasks.judge_gsm8k, path, settings, 2,
                           say=said.append)
    return total, said


def test_results_are_written_and_resumed(tmp_path):
    path, asked = tmp_path / "deep" / "r.jsonl", []

    def generate(problems):
        asked.extend(p["task_id"] for p in problems)
        if len(asked) == 6:
            raise KeyboardInterrupt
        return answers(problems)

    with pytest.raises(KeyboardInterrupt):
        evaluate(path, {"steps": 4}, generate)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines[0] == {"settings": {"steps": 4}}
    assert [line["task_id"] for line in lines[1:]] == ["t0", "t1", "t2", "t3"]
    assert lines[3] == {"task_id": "t2", "completion": "maybe 2", "status": "passed", "number": "2",
                        "reference": "2"}

    path.write_text(path.read_text() + '{"task_id": "t4", "sta')            # cut off in mid-line
    total, said = evaluate(path, {"steps": 4}, generate)
    assert total == (4, 10)
    assert said == ["4 problems are done already, 6 left",
                    "pass@1 40.0% (95%: 16.8 to 68.7; 4 of 10)"]
    assert asked == ["t0", "t1", "t2", "t3", "t4", "t5"] + [f"t{i}" for i in range(4, 10)]
    assert evaluate(path, {"steps": 4}, generate)[0] == (4, 10)
    assert len(asked) == 12                                                 # nothing was left to do


def test_what_is_too_long_has_failed_and_is_named(tmp_path):
    def generate(problems):
        return {name: text for name, text in answers(problems).items() if name != "t2"}

    total, said = evaluate(tmp_path / "r.jsonl", {}, generate)
    assert total == (3, 10)
    assert said[0] == "1 problems are too long for the model's block_size and count as failed"
    lines = (tmp_path / "r.jsonl").read_text().splitlines()
    assert json.loads(lines[3]) == {"task_id": "t2", "status": "failed",
                                    "error": "too long for the model's block_size"}


def test_results_of_two_runs_are_not_mixed(tmp_path):
    path = tmp_path / "r.jsonl"
    evaluate(path, {"steps": 4})
    with pytest.raises(Fail, match='does not begin with .*"steps": 8.*other results'):
        evaluate(path, {"steps": 8})
    with pytest.raises(Fail, match="other results"):
        evaluate(path, {"steps": 4, "order": "random"})
    for other in ("something else\n", "no line", '{"a": 1}\n'):
        path.write_text(other)
        with pytest.raises(Fail, match="other results"):
            evaluate(path, {})
        assert path.read_text() == other                                    # and it is not touched
    path.write_text('{"sett')                               # killed while it wrote its first line
    assert evaluate(path, {})[0] == (4, 10)


def test_a_second_evaluation_of_the_same_file_is_refused(tmp_path):
    file, _ = tasks.claim(tmp_path / "r.jsonl", {})
    with pytest.raises(Fail, match="another run is writing"):
        evaluate(tmp_path / "r.jsonl", {})
    file.close()
    assert evaluate(tmp_path / "r.jsonl", {})[0] == (4, 10)
    with pytest.raises(Fail, match="cannot write"):
        tasks.claim(tmp_path, {})


def test_answers_from_a_file(tmp_path):
    path = tmp_path / "texts.jsonl"
    path.write_text('{"task_id": "t0", "completion": "0"}\n{"task_id": "t1", "completion": "2"}\n')
    assert tasks.from_file(path, PROBLEMS[:2], "answer") == {"t0": "0", "t1": "2"}
    with pytest.raises(Fail, match="no completion of t2"):
        tasks.from_file(path, PROBLEMS, "answer")
    canonical = tasks.from_file("canonical", PROBLEMS[:2], "answer")
    assert canonical == {"t0": "#### 0", "t1": "#### 1"}
