"""Two benchmarks with right and wrong answers: their files, their judges, and files of results.

GSM8K asks for a number. HumanEval-infilling asks for the missing lines of a function, which must
then pass its tests (sandbox.py). The command is benchmark.py.

One worked number: 42 of 100 solved is 42.0%, and with 95% confidence (Wilson) the model solves
32.8% to 51.8% of such problems.
"""
import concurrent.futures
import fcntl
import gzip
import json
import math
import os
import re
import zlib
from decimal import Decimal

from common import Fail
from retrofit import sandbox


def read_lines(path, fields, what):
    """The objects of a .jsonl or .jsonl.gz file. Each must have these fields, all of them text;
    `what` says in the errors which file was expected."""
    opener = gzip.open if str(path).endswith(".gz") else open
    try:
        with opener(path, "rt", encoding="utf-8") as f:
            rows = [json.loads(line) for line in f if line.strip()]
        if not all(isinstance(row[field], str) for row in rows for field in fields):
            raise ValueError("a field is no text")
        if not rows:
            raise ValueError("it is empty")
    except (EOFError, LookupError, OSError, RecursionError, TypeError, ValueError, zlib.error) as e:
        raise Fail(f"cannot read {path} ({e!r}): expected {what}, one JSON object with "
                   f"{', '.join(fields)} a line") from None
    return rows


# -----------------------------------------------------------------------------
# GSM8K

def read_gsm8k(path):
    """GSM8K's own test.jsonl -> [{"task_id": "gsm8k/0", "question", "answer"}]"""
    problems = read_lines(path, ("question", "answer"), "GSM8K's test.jsonl")
    for k, problem in enumerate(problems):
        problem["task_id"] = f"gsm8k/{k}"
        if "####" not in problem["answer"] or number_of(problem["answer"]) is None:
            raise Fail(f"{path}, problem {k + 1}: the answer does not end in '#### number'")
    return problems


NUMBER = re.compile(r"""
    (?: (?<! [\w.)] ) - )?              # a sign, unless a term stands before it: 7-3 ends in 3
    \$? (?<! [\w.] )
    (?: (?: \d{1,3} (?: ,\d{3} )+ (?! ,?\d )                            # 1,234
          | \d+ ) (?: \.\d+ )?                                          # 18 or 18.5
      | \.\d+ )                                                         # .5
    """, re.ASCII | re.VERBOSE)


def number_of(text):
    """The final number of a worked answer, a Decimal: the first one after '####', or without that
    the last one. None where there is none. Understands 1,234 and $18 and 5% and -3 and 0.50."""
    text = text.replace("\N{MINUS SIGN}", "-").replace("$-", "-$")
    work, _, final = text.partition("####")
    found = NUMBER.findall(final)[:1] or NUMBER.findall(work)[-1:]
    if not found:
        return None
    return Decimal(found[0].replace(",", "").replace("$", ""))


def judge_gsm8k(problem, completion):
    number, right = number_of(completion), number_of(problem["answer"])
    status = "passed" if number == right else "failed"
    return dict(status=status, number=str(number), reference=str(right))


# -----------------------------------------------------------------------------
# HumanEval-infilling

def read_infilling(path):
    """HumanEval-*Infilling.jsonl(.gz): the function up to the hole (prompt), what was in the hole
    (canonical_solution), what follows (suffix), and a test that defines check(function)."""
    fields = ("task_id", "entry_point", "prompt", "suffix", "canonical_solution", "test")
    return read_lines(path, fields, "HumanEval-infilling")


def judge_infilling(problem, completion, **limits):
    """limits: those of sandbox.run"""
    program = problem["prompt"] + completion + problem["suffix"]
    parts = [program, problem["test"], f"check({problem['entry_point']})"]
    return sandbox.run(parts, **limits)._asdict()


# -----------------------------------------------------------------------------
# from problems to a number

def wilson(passed, total, z=1.959964):
    """The 95% interval of a proportion (Wilson 1927): all true rates p that are compatible,
    |passed / total - p| <= z sqrt(p (1 - p) / total)"""
    p, w = passed / total, z * z / total
    middle = (p + w / 2) / (1 + w)
    half = math.sqrt(p * (1 - p) * w + w * w / 4) / (1 + w)
    return max(0.0, middle - half), min(1.0, middle + half)


def claim(path, settings):
    """A results file, locked for this process, and what it holds, {task_id: record}. Its first line
    has the settings, each further one a problem. Raises Fail for the file of another run."""
    try:
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
        file = open(path, "a+b")
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise Fail(f"another run is writing {path}: wait, or give another --results") from None
    except OSError as e:
        raise Fail(f"cannot write {path}: {e.strerror}") from None
    file.seek(0)
    text, first = file.read(), json.dumps({"settings": settings}).encode() + b"\n"
    if not text.startswith(first) and not first.startswith(text):
        raise Fail(f"{path} does not begin with {first.decode().strip()}, so it has other "
                   "results: give another --results, or remove it")
    text = text[:text.rfind(b"\n") + 1]                 # a kill may have cut off the last line
    file.truncate(len(text))
    if not text:
        file.write(first)
    records = [json.loads(line) for line in text.splitlines()[1:]]
    return file, {record["task_id"]: record for record in records}


def evaluate(problems, generate, judge, path, settings, batch_size=8, workers=2, say=print):
    """Solve those of `problems` that are not in the results file `path` yet, and say pass@1.
    generate(problems) -> {task_id: text}; those left out were too long: they have failed.
    judge(problem, text) -> a dict with a status, "passed" or another."""
    def verdict(problem):
        name = problem["task_id"]
        if name not in texts:
            return dict(task_id=name, status="failed", error="too long for the model's block_size")
        return dict(task_id=name, completion=texts[name], **judge(problem, texts[name]))

    file, done = claim(path, settings)
    left = [p for p in problems if p["task_id"] not in done]
    if done:
        say(f"{len(done)} problems are done already, {len(left)} left")
    with file, concurrent.futures.ThreadPoolExecutor(workers) as pool:
        for i in range(0, len(left), batch_size):
            batch = left[i:i + batch_size]
            texts = generate(batch)
            verdicts = list(pool.map(verdict, batch))       # a batch is written whole or not at all
            for record in verdicts:
                done[record["task_id"]] = record
                file.write(json.dumps(record).encode() + b"\n")
            file.flush()
    records = [done[p["task_id"]] for p in problems]
    too_long = sum("completion" not in record for record in records)
    if too_long:
        say(f"{too_long} problems are too long for the model's block_size and count as failed")
    passed, total = sum(record["status"] == "passed" for record in records), len(records)
    rate, low, high = (100 * p for p in (passed / total, *wilson(passed, total)))
    say(f"pass@1 {rate:.1f}% (95%: {low:.1f} to {high:.1f}; {passed} of {total})")
    return passed, total


def from_file(path, problems, field):
    """{task_id: text}: of a file with a task_id and a completion a line or, with path =
    "canonical", the benchmark's own solutions, which are in `field`"""
    if path == "canonical":
        return {p["task_id"]: p[field] for p in problems}
    rows = read_lines(path, ("task_id", "completion"), "generations")
    texts = {row["task_id"]: row["completion"] for row in rows}
    for p in problems:
        if p["task_id"] not in texts:
            raise Fail(f"{path} has no completion of {p['task_id']}: add it")
    return texts
