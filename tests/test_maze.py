"""maze.py, from the generator to the command line. The exact facts first, then a run with tiny sizes."""
import csv
import os
import signal
import subprocess
import sys
from collections import deque

import numpy as np
import pytest
import torch

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

import maze as M                                                         # noqa: E402
from common import Fail                                                  # noqa: E402


def flood_count(free):
    """Cells that can be reached from the first free one: a second opinion on connectedness, from the picture alone."""
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
    assert free.sum() == 2 * m * m - 1 == len(maze.cells)                # m * m rooms and a door for each but one
    assert edges == free.sum() - 1 and flood_count(free) == free.sum()   # a tree: connected, no cycle
    assert free[1::2, 1::2].all()
    assert not (free[0].any() or free[-1].any() or free[:, 0].any() or free[:, -1].any())


def test_a_maze_is_reproducible_and_seeded():
    a, b, c = M.Maze(11, seed=3), M.Maze(11, seed=3), M.Maze(11, seed=4)
    assert (a.free == b.free).all() and (a.split == b.split).all() and (a.free != c.free).any()


def test_opened_walls_make_several_ways():
    maze = M.Maze(11, open=0.5, seed=0)
    assert len(maze.cells) == 49 + 8 and flood_count(maze.free) == 57    # 5 * 4 * 2 walls between rooms, 24 of them doors already: 16 left
    assert len(M.Maze(11, open=1, seed=0).cells) == 65
    rng = np.random.default_rng(0)
    far = np.unravel_index(maze.distance.argmax(), maze.distance.shape)
    walks = {kind: [[far[0], *getattr(maze, kind)(*far, rng)] for _ in range(50)] for kind in ("shortest", "simple")}
    for walk in walks["shortest"] + walks["simple"]:
        assert M.wrong(maze.free, maze.cells, walk, list(far)) is None and len(set(walk)) == len(walk)
    assert {len(w) for w in walks["shortest"]} == {maze.distance[far] + 1}
    assert len({len(w) for w in walks["simple"]}) > 1 and len({tuple(w) for w in walks["simple"]}) > 5


def test_distances_agree_with_walks():
    maze, rng = M.Maze(21, open=0.1, seed=1), np.random.default_rng(0)
    assert (maze.distance == maze.distance.T).all() and (maze.distance.diagonal() == 0).all()
    for v, w in rng.integers(len(maze.cells), size=(50, 2)):
        assert len(maze.shortest(v, w, rng)) == maze.distance[v, w] <= len(maze.simple(v, w, rng))


# a corridor with a branch:        0 1 2 3 4
#                                      5
FREE = np.array([[0, 0, 0, 0, 0, 0, 0], [0, 1, 1, 1, 1, 1, 0], [0, 0, 0, 1, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0]], bool)
CELLS = [(1, 1), (1, 2), (1, 3), (1, 4), (1, 5), (2, 3)]


@pytest.mark.parametrize("path, goals, verdict", [
    ([0, 1, 2, 3, 4], [0, 4], None),
    ([0, 1, 2, 3, 4], [0, 2, 3, 4], None),
    ([0, 1, 2, 5, 2, 3, 4], [0, 5, 4], None),                            # in and out of a dead end: the only way
    ([0, 1, 0, 1, 2, 3, 4], [0, 4], None),                               # longer than necessary is allowed
    ([3], [3], None),
    ([], [0, 4], "empty"),
    ([0, 1, 2, 4], [0, 4], "a jump"),
    ([0, 1, 1, 2, 3, 4], [0, 4], "a jump"),                              # standing still is no step
    ([1, 5, 2, 3, 4], [1, 4], "a jump"),                                 # no diagonal step
    ([1, 2, 3, 4], [0, 4], "wrong start"),
    ([0, 1, 2, 3], [0, 4], "wrong end"),
    ([0, 1, 2, 3, 4], [0, 5, 4], "a subgoal missed"),
    ([0, 1, 2, 3, 4], [0, 3, 1, 4], "a subgoal missed"),                 # in the wrong order
    ([0, 1, 2, 3, 4], [0, 3, 3, 4], "a subgoal missed"),                 # asked for twice, visited once
    ([0, 1, 2, 6, 4], [0, 4], "not a free cell"),                        # end-of-text
    ([0, 1, 2, -1, 4], [0, 4], "not a free cell"),
])
def test_the_referee(path, goals, verdict):
    assert M.wrong(FREE, CELLS, path, goals) == verdict


def test_the_referee_sees_walls():
    free = FREE.copy()
    free[1, 3] = False
    assert M.wrong(free, CELLS, [0, 1, 2, 3, 4], [0, 4]) == "not a free cell"


@pytest.mark.parametrize("paths", ["shortest", "simple"])
@pytest.mark.parametrize("open", [0, 0.3])
def test_tasks_are_what_they_claim(paths, open):
    maze = M.Maze(11, open, seed=0)
    tasks = M.draw_tasks(maze, 0, 0, 200, [2, 3, 5], 2, 64, 96, paths, repeat=True)
    assert tasks.x.shape == tasks.at.shape == (200, 96) and sorted(set(tasks.at.sum(1).tolist())) == [2, 3, 5]
    for row in range(200):
        walk, goals = tasks.walk(row), tasks.subgoals(row)
        assert 2 <= len(walk) <= 64 and len(set(goals)) == len(goals)
        assert M.wrong(maze.free, maze.cells, walk, goals) is None
        assert tasks.at[row, 0] and tasks.at[row, tasks.n[row] - 1] and not tasks.at[row, tasks.n[row]:].any()
        places = tasks.at[row].nonzero()[:, 0].tolist()
        for a, b in zip(places, places[1:]):                             # within a leg no cell twice, and no detour if shortest
            assert len(set(walk[a:b + 1])) == b - a + 1
            assert paths == "simple" or b - a == maze.distance[walk[a], walk[b]]


def test_no_leg_of_a_test_task_is_a_leg_in_training():
    maze = M.Maze(11, seed=0)
    pairs = {}
    for split in (0, 1, 2):
        tasks = M.draw_tasks(maze, 0, split, 300, [3, 5], 2, 64, 64)
        lists = [tuple(tasks.subgoals(row)) for row in range(300)]
        assert len(set(lists)) == 300
        pairs[split] = {frozenset(leg) for goals in lists for leg in zip(goals, goals[1:])}
    assert not pairs[0] & pairs[2] and not pairs[0] & pairs[1] and not pairs[1] & pairs[2]
    assert len(pairs[0]) > 500 and len(pairs[2]) > 80


def test_the_hard_split_is_longer():
    maze = M.Maze(11, seed=0)
    hard = M.draw_tasks(maze, 0, 2, 50, [8], 65, 96, 96)
    assert (hard.at.sum(1) == 8).all() and (hard.n > 64).all() and (hard.n <= 96).all()


@pytest.mark.parametrize("arguments, words", [
    ((10,), ["--size 10", "try --size 11"]), ((3,), ["--size 3", "try --size 5"]), ((-4,), ["try --size 5"]), ((11, 1.5), ["--open 1.5"])])
def test_bad_mazes(arguments, words):
    with pytest.raises(Fail) as e:
        M.Maze(*arguments)
    assert all(w in str(e.value) for w in words)


def test_more_tasks_than_the_maze_has():
    maze = M.Maze(5, seed=0)                                             # 7 cells: 42 ordered pairs in all
    with pytest.raises(Fail, match="too few train tasks with 2 subgoals.*of 50 found"):
        M.draw_tasks(maze, 0, 0, 50, [2], 2, 20, 20)
    M.draw_tasks(maze, 0, 0, 50, [2], 2, 20, 20, repeat=True)


# ------------------------------------------------------------------------------------------------------------- what a model is given
TINY = ["--size", "7", "--K", "2,3", "--hard", "4", "--limit", "12", "--block_size", "20", "--train_tasks", "100", "--test_tasks", "3", "--n_layer", "1",
        "--n_head", "2", "--n_embd", "8", "--batch_size", "4", "--max_iters", "4", "--log_interval", "2", "--eval_interval", "4", "--steps", "2,4"]


@pytest.fixture(scope="module")
def tasks():
    return M.draw_tasks(M.Maze(11, seed=0), 0, 0, 60, [2, 3, 5], 2, 48, 64, repeat=True)


def other_walks(tasks):
    """The same subgoals, and walks of other lengths: each leg's inner cells twice."""
    x, n, at = tasks.x.clone(), tasks.n.clone(), tasks.at.clone()
    for row in range(len(x)):
        walk = [(v, bool(g)) for v, g in zip(tasks.walk(row), tasks.at[row])]
        walk = [item for v, g in walk for item in ([(v, g)] if g else [(v, g)] * 2)][:x.shape[1]]
        walk[-1] = (tasks.walk(row)[-1], True)
        at[row] = False
        for i, (v, g) in enumerate(walk):
            x[row, i], at[row, i] = v, g
        n[row] = len(walk)
    keep = (at.sum(1) == tasks.at.sum(1)).nonzero()[:, 0]
    return M.Tasks(tasks.x[keep], tasks.n[keep], tasks.at[keep]), M.Tasks(x[keep], n[keep], at[keep])


@pytest.mark.parametrize("method", ["mdm", "flexmdm", "prime"])
def test_what_a_sampler_is_given_does_not_leak_the_length(tasks, method):
    """Two walks of different lengths through the same subgoals start from the same state: with pins, or with insertion. The oracle differs."""
    from prime import Code
    code, fixed = Code(50, 2 if method == "prime" else 1), method != "flexmdm"
    pins = {k: M.even_pins(k, 64, 12.3 * (k - 1)) for k in (2, 3, 5)}
    short, long = other_walks(tasks)
    assert len(short.x) > 30 and (short.n != long.n).any()
    for one, other in zip(M.starts(short, code, 64, fixed, pins), M.starts(long, code, 64, fixed, pins)):
        assert torch.equal(one, other)
    if fixed:
        assert not torch.equal(M.starts(short, code, 64, fixed)[0], M.starts(long, code, 64, fixed)[0])


def test_starts_hold_the_subgoals_and_nothing_else(tasks):
    from prime import Code
    code = Code(50)
    y, n, opened = M.starts(tasks, code, 64, fixed=False)
    for row in range(len(n)):
        k = int(n[row])
        assert code.decode(y[row, :k]).tolist() == tasks.subgoals(row) and (y[row, k:] == code.pad).all()
        assert opened[row].nonzero()[:, 0].tolist() == list(range(1, k))                 # the gaps between them
    for pins in (None, {k: M.even_pins(k, 64, 40) for k in (2, 3, 5)}):
        y, n, _ = M.starts(tasks, code, 64, fixed=True, pins=pins)
        for row in range(len(n)):
            given = (y[row, :, 0] != code.mask).nonzero()[:, 0].tolist()
            assert n[row] == 64 and code.decode(y[row, given]).tolist() == tasks.subgoals(row)
            assert given == (pins[len(given)] if pins else tasks.at[row].nonzero()[:, 0].tolist())


@pytest.mark.parametrize("K, L, length, pins", [(2, 64, 12.4, [0, 11]), (5, 64, 41, [0, 10, 20, 30, 40]), (3, 64, 99, [0, 31, 63]), (4, 64, 1, [0, 1, 2, 3])])
def test_even_pins(K, L, length, pins):
    assert M.even_pins(K, L, length) == pins


def test_blanks_fill_up_legs(tasks):
    wide = M.spread(tasks, 64, blank=49)
    assert 30 < len(wide.x) < 60 and (wide.n == 64).all()                                # legs beyond 16 steps do not fit between 5 pins
    for row in range(len(wide.x)):
        assert wide.at[row].nonzero()[:, 0].tolist() == M.even_pins(int(wide.at[row].sum()), 64, 64)
        path = [v for v in wide.walk(row) if v != 49]
        assert path in [tasks.walk(r) for r in range(len(tasks.x))]


def arguments(method, **more):
    from types import SimpleNamespace
    from train import METHODS
    return SimpleNamespace(**{**dict(method=method, insertion=METHODS[method], unmasking="linear", seed=0, batch_size=32, block_size=64, t_power=2.0), **more})


@pytest.mark.parametrize("method, V, ell", [("flexmdm", 50, 1), ("mdm", 50, 1), ("flexprime", 50, 2)])
def test_in_training_subgoals_are_given_at_every_time(tasks, method, V, ell):
    from prime import Code
    code = Code(V, ell)
    batch, again = (M.make_batch(7, tasks, code, arguments(method)) for _ in range(2))
    assert torch.equal(batch.noised.y, again.noised.y) and torch.equal(batch.t, again.t)             # a pure function of (seed, step)
    y, n, kept, gaps = batch.noised
    for row in range(32):
        there = kept[row, :n[row]].tolist()
        for i in batch.frozen[row].nonzero()[:, 0].tolist():
            assert torch.equal(y[row, there.index(i)], code.encode(batch.x1[row, i]))                # present, and revealed
        assert gaps[row, 0] == 0 and gaps[row, n[row]] == 0                                          # nothing missing outside
        assert batch.n1[row] == (64 if method == "mdm" else n[row] + gaps[row].sum())


@pytest.mark.parametrize("order", ["random", "top_prob"])
def test_with_the_right_answers_a_canvas_solves_every_task(tasks, order):
    """A network that knows the walks, in place of the trained one: the oracle positions lead to success, positions that are none do not."""
    from types import SimpleNamespace
    from prime import Code
    maze, code = M.Maze(11, seed=0), Code(50)
    canvas = torch.where(torch.arange(64) < tasks.n[:, None], tasks.x, 49)                           # (N, 64)

    def predict(y, n, t, at):
        agrees = (y[:, None, :, 0] == code.mask) | (y[:, None, :, 0] == canvas)                      # (B, N, 64)
        walk = canvas[agrees.sum(2).argmax(1)]
        return 60.0 * torch.nn.functional.one_hot(walk, 50)[at], None

    net = SimpleNamespace(predict=predict, code=code, config=SimpleNamespace(insertion="instant", block_size=64, V=50))
    paths = M.solve(net, tasks, None, 16, order)
    assert paths == [tasks.walk(row) for row in range(len(tasks.x))] and M.verdicts(maze, tasks, paths) == [None] * len(paths)
    right = [v is None for v in M.verdicts(maze, tasks, M.solve(net, tasks, {k: M.even_pins(k, 64, 40) for k in (2, 3, 5)}, 16, order))]
    assert sum(right) < len(right) / 2


# ------------------------------------------------------------------------------------------------------------- the command line
def go(out, *flags):
    """The command line in this process: about 1 s instead of 5."""
    M.run([*map(str, TINY), *map(str, flags), "--out_dir", str(out)])


def results(out):
    with open(out / "results.csv", newline="") as f:
        return list(csv.DictReader(f))


def test_from_the_command_line_to_the_table(tmp_path):
    out, flags = tmp_path / "run", ["--methods", "flexmdm,mdm", "--orders", "random,margin"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    line = [sys.executable, os.path.join(ROOT, "maze.py"), *TINY, *flags, "--out_dir", str(out)]
    done = subprocess.run(line, capture_output=True, text=True, env=environment, timeout=900)
    assert done.returncode == 0 and all(arm in done.stdout for arm in ("flexmdm", "mdm even", "mdm true")), done.stdout + done.stderr
    rows = results(out)
    assert list(rows[0]) == ["method", "K", "order", "steps", "success", "low", "high", "n"]
    assert len(rows) == 3 * 3 * 2 * 2 and {r["K"] for r in rows} == {"2", "3", "4"} and {r["n"] for r in rows} == {"3"}
    assert all(float(r["low"]) <= float(r["success"]) <= float(r["high"]) for r in rows)
    for name in ("mazes.png", "growth.gif", "flexmdm/ckpt.pt", "flexmdm/loss.png", "mdm/log.csv"):
        assert (out / name).stat().st_size > 0
    for wrong_flags, words in (([], "holds a run"), (["--init_from", "resume", "--seed", 1], "another maze.*--seed 0"),
                               (["--init_from", "resume", "--n_layer", 2], "was trained with --n_layer 1")):
        with pytest.raises(Fail, match=words):
            go(out, *wrong_flags)

    # a table that is cut short is completed, with the numbers of the first time
    (out / "results.csv").write_text("\n".join((out / "results.csv").read_text().splitlines()[:25]) + "\n")
    torch.set_num_threads(1)
    go(out, *flags, "--init_from", "resume")
    assert results(out) == rows


def test_a_signal_ends_the_evaluation(tmp_path, monkeypatch):
    few, evaluate = ["--methods", "flexmdm", "--orders", "random"], M.evaluate

    def signalled(*a):
        os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(*a)
    with monkeypatch.context() as patch, pytest.raises(Fail, match="stopped while evaluating.*--init_from resume"):
        patch.setattr(M, "evaluate", signalled)
        go(tmp_path / "run", *few)
    done = results(tmp_path / "run")
    assert len({r["steps"] for r in done}) == 1
    go(tmp_path / "run", *few, "--init_from", "resume")
    assert results(tmp_path / "run")[:len(done)] == done and len(results(tmp_path / "run")) == 2 * len(done)


def test_a_resumed_run_is_the_run_that_never_stopped(tmp_path):
    few = ["--methods", "flexprime", "--orders", "random", "--steps", "2", "--warmup_iters", 100]      # in warm-up max_iters changes nothing
    go(tmp_path / "whole", *few)
    go(tmp_path / "parts", *few, "--max_iters", 2)
    go(tmp_path / "parts", *few, "--init_from", "resume")
    one, other = (torch.load(tmp_path / name / "flexprime" / "ckpt.pt", weights_only=True) for name in ("whole", "parts"))
    assert one["step"] == other["step"] == 4
    for part in ("model", "ema"):
        assert all(torch.equal(one[part][k], other[part][k]) for k in one[part])


@pytest.mark.parametrize("flags, words", [
    (["--size", "10"], "try --size 11"),
    (["--size", "5"], "cannot hold 8 subgoals"),
    (["--size", "7", "--K", "2,3", "--hard", "4", "--limit", "12", "--block_size", "20", "--test_tasks", "500"], "too few test tasks"),
    (["--K", "two"], "whole numbers"),
    (["--K", "1,5"], "at least 2"),
    (["--hard", "5"], "--hard 5 must be more"),
    (["--limit", "64", "--block_size", "64"], "less than --block_size"),
    (["--methods", "flexmdn"], "choose from mdm, flexmdm"),
    (["--orders", "best"], "choose from random"),
    (["--open", "2"], "between 0 and 1"),
    (["--setps", "4"], "did you mean --steps"),
])
def test_bad_input_gets_one_sentence(flags, words, tmp_path):
    with pytest.raises(Fail) as e:
        M.run([*flags, *(["--hard", "8"] if flags == ["--size", "5"] else []), "--out_dir", str(tmp_path / "x")])
    assert words in str(e.value) and "\n" not in str(e.value)
    assert not (tmp_path / "x").exists()
