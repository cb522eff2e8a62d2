"""maze.py, from the generator to the command line. The exact facts first, then a run with tiny
sizes."""
import csv
import os
import signal
import subprocess
import sys
from collections import deque
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

import common
import data
import maze as M
import train
from common import Fail
from figures import mazes
from prime import Code

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


# -----------------------------------------------------------------------------
# the maze

def flood_count(free):
    """Cells that can be reached from the first free one: a second opinion on connectedness, from
    the picture alone"""
    todo = deque([tuple(np.argwhere(free)[0])])
    seen = set(todo)
    while todo:
        r, c = todo.popleft()
        for q in ((r + 1, c), (r - 1, c), (r, c + 1), (r, c - 1)):
            if free[q] and q not in seen:
                seen.add(q)
                todo.append(q)
    return len(seen)


@pytest.mark.parametrize("side", [5, 7, 11, 21, 41])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_maze_is_perfect(side, seed):
    maze = M.Maze(side, seed=seed)
    free, m = maze.free, (side - 1) // 2
    edges = (free[1:] & free[:-1]).sum() + (free[:, 1:] & free[:, :-1]).sum()
    assert free.sum() == 2 * m * m - 1 == len(maze.cells)   # m * m rooms, a door for each but one
    assert edges == free.sum() - 1 and flood_count(free) == free.sum()      # a tree
    assert free[1::2, 1::2].all()
    assert not (free[0].any() or free[-1].any() or free[:, 0].any() or free[:, -1].any())


def test_a_maze_is_reproducible_and_seeded():
    a, b, c = M.Maze(11, seed=3), M.Maze(11, seed=3), M.Maze(11, seed=4)
    assert (a.free == b.free).all() and (a.split == b.split).all() and (a.free != c.free).any()


def test_opened_walls_make_several_ways():
    maze = M.Maze(11, open=0.5, seed=0)
    # 5 * 4 * 2 walls between rooms, 24 of them doors already: 16 left
    assert len(maze.cells) == 49 + 8 and flood_count(maze.free) == 57
    assert len(M.Maze(11, open=1, seed=0).cells) == 65
    rng = np.random.default_rng(0)
    far = [int(v) for v in np.unravel_index(maze.distance.argmax(), maze.distance.shape)]
    shortest = [maze.path(*far, rng) for _ in range(50)]
    simple = [maze.path(*far, rng, "simple") for _ in range(50)]
    for walk in shortest + simple:
        assert M.wrong(maze.free, maze.cells, walk, far) is None and len(set(walk)) == len(walk)
    assert {len(w) for w in shortest} == {maze.distance[tuple(far)] + 1}
    assert len({len(w) for w in simple}) > 1 and len({tuple(w) for w in simple}) > 5


def test_distances_agree_with_walks():
    maze, rng = M.Maze(21, open=0.1, seed=1), np.random.default_rng(0)
    assert (maze.distance == maze.distance.T).all() and (maze.distance.diagonal() == 0).all()
    for v, w in rng.integers(len(maze.cells), size=(50, 2)):
        steps = maze.distance[v, w]
        shortest, simple = maze.path(v, w, rng), maze.path(v, w, rng, "simple")
        assert len(shortest) - 1 == steps <= len(simple) - 1


@pytest.mark.parametrize("side, hint", [(10, "try --size 11"), (3, "try --size 5")])
def test_a_side_is_odd_and_at_least_5(side, hint):
    with pytest.raises(Fail, match=f"--size {side}.*{hint}"):
        M.Maze(side)


# -----------------------------------------------------------------------------
# the referee

# a corridor with a branch:        0 1 2 3 4
#                                      5
FREE = np.array([[0, 0, 0, 0, 0, 0, 0],
                 [0, 1, 1, 1, 1, 1, 0],
                 [0, 0, 0, 1, 0, 0, 0],
                 [0, 0, 0, 0, 0, 0, 0]], dtype=bool)
CELLS = [(1, 1), (1, 2), (1, 3), (1, 4), (1, 5), (2, 3)]


@pytest.mark.parametrize("path, goals, verdict", [
    ([0, 1, 2, 3, 4], [0, 4], None),
    ([0, 1, 2, 3, 4], [0, 2, 3, 4], None),
    ([0, 1, 2, 5, 2, 3, 4], [0, 5, 4], None),               # in and out of a dead end: the only way
    ([0, 1, 0, 1, 2, 3, 4], [0, 4], None),                  # longer than necessary is allowed
    ([3], [3], None),
    ([], [0, 4], "empty"),
    ([0, 1, 2, 4], [0, 4], "a jump"),
    ([0, 1, 1, 2, 3, 4], [0, 4], "a jump"),                 # standing still is no step
    ([1, 5, 2, 3, 4], [1, 4], "a jump"),                    # no diagonal step
    ([1, 2, 3, 4], [0, 4], "wrong start"),
    ([0, 1, 2, 3], [0, 4], "wrong end"),
    ([0, 1, 2, 3, 4], [0, 5, 4], "a subgoal missed"),
    ([0, 1, 2, 3, 4], [0, 3, 1, 4], "a subgoal missed"),    # in the wrong order
    ([0, 1, 2, 3, 4], [0, 3, 3, 4], "a subgoal missed"),    # asked for twice, visited once
    ([0, 1, 2, 6, 4], [0, 4], "not a free cell"),           # the end token
    ([0, 1, 2, -1, 4], [0, 4], "not a free cell"),
])
def test_the_referee(path, goals, verdict):
    assert M.wrong(FREE, CELLS, path, goals) == verdict


def test_the_referee_sees_walls():
    free = FREE.copy()
    free[1, 3] = False
    assert M.wrong(free, CELLS, [0, 1, 2, 3, 4], [0, 4]) == "not a free cell"


# -----------------------------------------------------------------------------
# tasks

def walk_of(task):
    return [v for leg in task for v in leg]


def places_of(task):
    """Where in the walk the subgoals are"""
    return [sum(map(len, task[:i])) for i in range(len(task))]


@pytest.mark.parametrize("paths", ["shortest", "simple"])
@pytest.mark.parametrize("open", [0, 0.3])
def test_tasks_are_what_they_claim(paths, open):
    maze = M.Maze(11, open, seed=0)
    tasks = M.draw_tasks(maze, 0, 0, 200, [2, 3, 5], 2, 64, paths, repeat=True)
    assert len(tasks) == 200 and {len(task) for task in tasks} == {2, 3, 5}
    for task in tasks:
        walk, goals = walk_of(task), M.subgoals(task)
        assert 2 <= len(walk) <= 64 and len(set(goals)) == len(goals)
        assert M.wrong(maze.free, maze.cells, walk, goals) is None
        assert len(task[-1]) == 1
        for leg, goal in zip(task, goals[1:]):              # within a leg no cell twice
            assert len({*leg, goal}) == len(leg) + 1
            assert paths == "simple" or len(leg) == maze.distance[leg[0], goal]


def test_no_leg_of_a_test_task_is_a_leg_in_training():
    maze = M.Maze(11, seed=0)
    pairs = {}
    for split in (0, 1, 2):
        tasks = M.draw_tasks(maze, 0, split, 300, [3, 5], 2, 64)
        lists = [tuple(M.subgoals(task)) for task in tasks]
        assert len(set(lists)) == 300
        pairs[split] = {frozenset(leg) for goals in lists for leg in zip(goals, goals[1:])}
    assert not pairs[0] & pairs[2] and not pairs[0] & pairs[1] and not pairs[1] & pairs[2]
    assert len(pairs[0]) > 500 and len(pairs[2]) > 80


def test_the_hard_split_is_longer():
    hard = M.draw_tasks(M.Maze(11, seed=0), 0, 2, 50, [8], 65, 96)
    assert all(len(task) == 8 and 64 < len(walk_of(task)) <= 96 for task in hard)


def test_more_tasks_than_the_maze_has():
    maze = M.Maze(5, seed=0)                                # 7 cells: 42 ordered pairs in all
    with pytest.raises(Fail, match="too few train tasks with 2 subgoals.*of 50 found"):
        M.draw_tasks(maze, 0, 0, 50, [2], 2, 20)
    M.draw_tasks(maze, 0, 0, 50, [2], 2, 20, repeat=True)


# -----------------------------------------------------------------------------
# what a model is given

@pytest.fixture(scope="module")
def tasks():
    return M.draw_tasks(M.Maze(11, seed=0), 0, 0, 60, [2, 3, 5], 2, 48, repeat=True)


def slower(task):
    """The same subgoals, and a longer walk: each leg's inner cells twice"""
    return [[leg[0], *np.repeat(leg[1:], 2).tolist()] for leg in task]


@pytest.mark.parametrize("method", ["mdm", "flexmdm", "prime"])
def test_what_a_sampler_is_given_does_not_leak_the_length(tasks, method):
    """Two walks of different lengths through the same subgoals start from the same state: with
    pins, or with insertion. The oracle differs."""
    code, fixed = Code(50, 2 if method == "prime" else 1), method != "flexmdm"
    pins = M.pins(3, 64, 12.3)
    short = [task for task in tasks if len(task) == 3 and len(walk_of(slower(task))) <= 64]
    long = [slower(task) for task in short]
    assert len(short) > 10 and any(len(walk_of(a)) < len(walk_of(b)) for a, b in zip(short, long))
    one, other = M.starts(short, code, 64, fixed, pins), M.starts(long, code, 64, fixed, pins)
    assert all(torch.equal(a, b) for a, b in zip(one, other))
    if fixed:
        y, longer = M.starts(short, code, 64, fixed)[0], M.starts(long, code, 64, fixed)[0]
        assert not torch.equal(y, longer)


def test_starts_hold_the_subgoals_and_nothing_else(tasks):
    code = Code(50)
    y, n, opened = M.starts(tasks, code, 64, fixed=False)
    for row, task in enumerate(tasks):
        K = len(task)
        assert n[row] == K and code.decode(y[row, :K]).tolist() == M.subgoals(task)
        assert (y[row, K:] == code.pad).all()
        assert opened[row].nonzero()[:, 0].tolist() == list(range(1, K))   # between them
    of_three = [task for task in tasks if len(task) == 3]
    for pins in (None, M.pins(3, 64, 20)):
        y, n, _ = M.starts(of_three, code, 64, fixed=True, places=pins)
        for row, task in enumerate(of_three):
            places = pins or places_of(task)
            assert (y[row, :, 0] != code.mask).nonzero()[:, 0].tolist() == places
            assert n[row] == 64 and code.decode(y[row, places]).tolist() == M.subgoals(task)


@pytest.mark.parametrize("K, L, leg, pins", [
    (2, 64, 11.4, [0, 11]),
    (5, 64, 10, [0, 10, 20, 30, 40]),
    (3, 64, 49, [0, 31, 63]),                               # no more than the canvas has
])
def test_pins(K, L, leg, pins):
    assert M.pins(K, L, leg) == pins


def test_mean_leg():
    tasks = [[[0] * 4, [0]], [[0] * 7, [0]], [[0] * 4, [0] * 4, [0] * 4, [0]]]
    assert [M.mean_leg(tasks, K) for K in (2, 4, 6)] == [5.5, 4, 4]     # 6: the hard split


def test_blanks_fill_up_legs(tasks):
    wide = M.spread(tasks, 64, blank=49)
    assert 30 < len(wide) < 60              # legs beyond 16 steps do not fit between 5 pins
    for task in wide:
        assert len(walk_of(task)) == 64 and places_of(task) == M.pins(len(task), 64, 64)
        assert [v for v in walk_of(task) if v != 49] in [walk_of(old) for old in tasks]


# -----------------------------------------------------------------------------
# training

def dataset_of(folder, tasks):
    M.write_data(str(folder), tasks, tasks[:4], 50)
    return data.load(str(folder), block_size=64)


def test_the_data_set_holds_the_tasks(tasks, tmp_path):
    dataset = dataset_of(tmp_path, tasks)
    assert dataset.tokenizer.vocab_size == 50 and dataset.tokenizer.eot == 49
    stored = {(tuple(dataset.train.document(i)), tuple(dataset.train.given(i)))
              for i in range(len(dataset.train))}
    for task in tasks:
        walk, places = walk_of(task), places_of(task)
        given = tuple(p in places for p in range(len(walk)))
        assert all(given) or (tuple(walk), given) in stored
    assert not dataset.train.anchored       # between two subgoals there may be nothing


@pytest.mark.parametrize("method, ell", [("flexmdm", 1), ("mdm", 1), ("flexprime", 2)])
def test_in_training_subgoals_are_given_at_every_time(tasks, tmp_path, method, ell):
    documents, code = dataset_of(tmp_path, tasks).train, Code(50, ell)
    args = train.Args(method=method, insertion=train.METHODS[method], batch_size=32)
    batch = train.make_batch(7, documents, code, args)
    y, n, kept, gaps = batch.noised
    for row in range(32):
        there = kept[row, :n[row]].tolist()
        for i in batch.given[row].nonzero()[:, 0].tolist():
            assert torch.equal(y[row, there.index(i)], code.encode(batch.x1[row, i]))
        assert batch.given[row].sum() >= 2
        assert gaps[row, 0] == 0 and gaps[row, n[row]] == 0             # nothing missing outside
        size = 64 if method == "mdm" else n[row] + gaps[row].sum()
        assert batch.n1[row] == size


# -----------------------------------------------------------------------------
# evaluation

@pytest.mark.parametrize("kind", ["parallel", "exact"])
@pytest.mark.parametrize("order", ["random", "top_prob"])
def test_with_the_right_answers_a_canvas_solves_every_task(tasks, order, kind):
    """A network that knows the walks, in place of the trained one: the true places lead to
    success, other ones do not. It is told which slots are given."""
    maze, code = M.Maze(11, seed=0), Code(50)
    tasks = [task for task in tasks if len(task) == 3]
    canvas = torch.full((len(tasks), 64), 49)                           # 49: the end token
    for row, task in zip(canvas, tasks):
        row[:len(walk_of(task))] = torch.tensor(walk_of(task))

    def predict(y, n, t, at, given=None):
        assert ((given.sum(1) >= 2) & (given.sum(1) <= 5)).all()
        agrees = (y[:, None, :, 0] == code.mask) | (y[:, None, :, 0] == canvas)     # (B, N, 64)
        walk = canvas[agrees.sum(2).argmax(1)]
        return 60.0 * torch.nn.functional.one_hot(walk, 50)[at], None

    config = SimpleNamespace(insertion="instant", block_size=64)
    net = SimpleNamespace(predict=predict, code=code, config=config, fixed=True)
    answers = M.solve(M.Arm("true", net), maze, tasks, 16, order, kind)
    assert answers == [(walk_of(task), M.subgoals(task), None) for task in tasks]
    even = M.solve(M.Arm("even", net, lambda K: 20), maze, tasks, 16, order, kind)
    verdicts = [verdict for _, _, verdict in even]
    assert verdicts.count(None) < len(verdicts) / 2


def test_no_panel_is_blank():
    right, wrong = ([1], [1], None), ([2], [1], "a jump")
    assert mazes.pick([wrong, right, wrong]) == [right, wrong]
    assert mazes.pick([right] * 3) == [right] * 2 and mazes.pick([wrong] * 3) == [wrong] * 2


def test_a_path_that_stands_still_on_a_subgoal_is_seen():
    """Its ring is wider than the subgoal that is drawn over it."""
    panel = Figure().subplots()
    mazes.draw_path(panel, M.Maze(5, seed=0), [1, 1], [1])
    sizes = {line.get_color(): line.get_markersize() for line in panel.lines}
    assert sizes[mazes.JUMP] > sizes[mazes.GOAL] + 1


@pytest.mark.parametrize("fixed, first", [(False, 3), (True, 64)])
def test_a_path_grows_from_what_the_sampler_is_given(tasks, fixed, first):
    """The first frame has the subgoals, on a fixed canvas among masks, and nothing is asked yet."""
    def predict(y, n, t, at, given=None):
        log_g = torch.full((len(y), y.shape[1] + 1), -1.0)
        return torch.zeros(int(at.sum()), 50), None if fixed else log_g

    config = SimpleNamespace(insertion="instant" if fixed else "linear", block_size=64)
    net = SimpleNamespace(predict=predict, code=Code(50), config=config, fixed=fixed)
    task = next(task for task in tasks if len(task) == 3)
    frames = M.growth(M.Arm("any", net), M.Maze(11, seed=0), task)
    t, row = frames[0]
    assert t == 0 and len(row) == first and [v for v in row if v >= 0] == M.subgoals(task)
    assert -1 not in frames[-1][1] and len(frames) > 3


def test_the_picture_is_of_the_largest_K():
    args = common.parse(M.Args, "", ["--K", "5,2"])
    M.settle(args)
    assert args.K == [2, 5]


# -----------------------------------------------------------------------------
# the command line

TINY = """--size 7 --K 2,3 --hard 4 --limit 12 --block_size 20 --train_tasks 100 --test_tasks 3
          --n_layer 1 --n_head 2 --n_embd 8 --batch_size 4 --max_iters 4 --log_interval 2
          --eval_interval 4 --steps 2,4 --warmup_iters 100""".split()


@pytest.fixture
def no_pictures(monkeypatch):
    """They take longer than all the rest."""
    monkeypatch.setattr(M, "growth", lambda *a: None)
    monkeypatch.setattr(M, "mazes", SimpleNamespace(draw_examples=lambda *a: None,
                                                    draw_growth=lambda *a: None))


def go(out, *flags):
    """The command line in this process"""
    M.run([*TINY, *map(str, flags), "--out_dir", str(out)])


def results(out):
    with open(out / "results.csv", newline="") as f:
        return list(csv.DictReader(f))


def test_from_the_command_line_to_the_table(tmp_path, no_pictures):
    out, flags = tmp_path / "run", ["--methods", "flexmdm,mdm", "--orders", "random,margin"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    line = [sys.executable, os.path.join(ROOT, "maze.py"), *TINY, *flags, "--out_dir", str(out)]
    done = subprocess.run(line, capture_output=True, text=True, env=environment, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(arm in done.stdout for arm in ("flexmdm", "mdm even", "mdm true"))
    rows = results(out)
    assert list(rows[0]) == list(M.COLUMNS)
    assert len(rows) == 3 * 3 * 2 * 2 * 2               # arms, K, samplers, orders, steps
    assert {r["K"] for r in rows} == {"2", "3", "4"} and {r["n"] for r in rows} == {"3"}
    assert all(float(r["low"]) <= float(r["success"]) <= float(r["high"]) for r in rows)
    for name in ("mazes.png", "growth.gif", "flexmdm/ckpt.pt", "flexmdm/loss.png", "mdm/log.csv"):
        assert (out / name).stat().st_size > 0

    # what does not go together with this run
    with pytest.raises(Fail, match="holds a run"):
        go(out, *flags)
    with pytest.raises(Fail, match="--n_layer differs"):
        go(out, *flags, "--init_from", "resume", "--n_layer", 2)
    with pytest.raises(Fail, match="training data differs"):
        go(out, *flags, "--init_from", "resume", "--seed", 1)

    # a table that is cut short is completed, with the numbers of the first time
    lines = (out / "results.csv").read_text().splitlines()
    (out / "results.csv").write_text("\n".join(lines[:37]) + "\n")
    go(out, *flags, "--init_from", "resume")
    assert results(out) == rows


@pytest.mark.parametrize("method", ["flexprime", "mdm-blank", "prime-blank", "prime"])
def test_the_other_methods(tmp_path, no_pictures, method):
    go(tmp_path, "--methods", method, "--orders", "random", "--steps", 4)
    arms = [method] if method != "prime" else ["prime even", "prime true"]
    assert {row["method"] for row in results(tmp_path)} == set(arms)


def test_a_signal_ends_the_evaluation(tmp_path, monkeypatch, no_pictures):
    few, solve = ["--methods", "flexmdm", "--orders", "random"], M.solve

    def signalled(*a):
        os.kill(os.getpid(), signal.SIGTERM)
        return solve(*a)
    with monkeypatch.context() as patch:
        patch.setattr(M, "solve", signalled)
        with pytest.raises(Fail, match="stopped while evaluating.*--init_from resume"):
            go(tmp_path, *few)
    done = results(tmp_path)
    assert len(done) == 1
    go(tmp_path, *few, "--init_from", "resume")
    assert results(tmp_path)[:1] == done and len(results(tmp_path)) == 12


def test_a_resumed_run_is_the_run_that_never_stopped(tmp_path, monkeypatch, no_pictures):
    few, rate = ["--methods", "flexprime", "--orders", "random", "--steps", 2], train.learning_rate
    go(tmp_path / "whole", *few)

    def signalled(step, args):
        if step == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return rate(step, args)
    with monkeypatch.context() as patch:
        patch.setattr(train, "learning_rate", signalled)
        with pytest.raises(Fail, match="stopped after step 2 of flexprime.*--init_from resume"):
            go(tmp_path / "parts", *few)
    go(tmp_path / "parts", *few, "--init_from", "resume")
    one, other = (torch.load(tmp_path / name / "flexprime" / "ckpt.pt", weights_only=True)
                  for name in ("whole", "parts"))
    assert one["step"] == other["step"] == 4
    for part in ("model", "ema"):
        assert all(torch.equal(one[part][k], other[part][k]) for k in one[part])
    assert results(tmp_path / "whole") == results(tmp_path / "parts")


@pytest.mark.parametrize("flags, words", [
    ("--size 10", "try --size 11"),
    ("--size 5 --hard 8", "too few"),
    ("--size 7 --K 2,3 --hard 4 --limit 12 --block_size 20 --test_tasks 500",
     "too few test tasks"),
    ("--K two", "whole numbers"),
    ("--K 1,5", "at least 2"),
    ("--hard 5", "--hard 5 must be more"),
    ("--limit 64 --block_size 64", "less than --block_size"),
    ("--methods flexmdn", "choose from flexmdm, mdm"),
    ("--orders best", "choose from random"),
    ("--samplers fast", "choose from exact, parallel"),
    ("--open 2", "between 0 and 1"),
    ("--setps 4", "did you mean --steps"),
])
def test_bad_input_gets_one_sentence(flags, words, tmp_path):
    with pytest.raises(Fail) as e:
        M.run([*flags.split(), "--train_tasks", "100", "--out_dir", str(tmp_path / "x")])
    assert words in str(e.value) and "\n" not in str(e.value)
    assert not (tmp_path / "x").exists()
