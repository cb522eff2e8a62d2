"""The planning task of FlexMDM (arXiv 2509.01025, section 5): connect subgoals into a path
through a maze.

One maze per run. Its free cells are the tokens, a path is a document, and the network never sees
the maze. From K subgoals a model with insertion grows what lies between them. On a fixed canvas
the model has to be told *where* each subgoal stands, which only somebody who has the path can know.

    python maze.py                                  # 11 x 11: train, evaluate, draw
    python maze.py --size 41                        # the paper's size, for a GPU
    python maze.py --methods flexprime,prime        # several digits per token

An 11 x 11 maze has 49 free cells (25 rooms, 24 doors), so there are 49 * 48 = 2352 tasks with
K = 2. They become a data set for train.py, in which subgoals are given tokens, never masked.

The authors' maze code was never released. These assumptions are ours:
- Recursive division makes a tree of rooms; --open opens a share of the walls. K counts the start
  and the end. Subgoals are distinct. Each leg, from a subgoal to the next, is a shortest path (ties
  at random) or a random simple one. A leg visits no cell twice, but two legs may share cells.
- Unordered pairs of cells are split 80 / 10 / 10 into train, val and test. All legs of a task come
  from its split: no leg of a test task was a leg in training (they do occur inside longer legs).
- Training tasks have K uniform in 2 .. max K and may repeat, test tasks do not. The hard split has
  more subgoals *and* a longer path than any training task.
- A path is right if it begins and ends with the first and last subgoal, its cells are free, every
  step goes to one of 4 neighbours, and the subgoals are a subsequence of it.
- On a fixed canvas end tokens follow the path, and the network has to predict them. In training the
  subgoals stand at their true places. In the test they stand there ("mdm true", an oracle) or at
  even distances ("mdm even": the mean leg of training paths with that K). "mdm-blank" has them at
  even distances over the whole canvas in training, too, and blanks after each leg.
"""
import csv
import itertools
import os
from dataclasses import dataclass
from functools import partial
from typing import Callable, NamedTuple

import numpy as np
import torch

import checkpoint
import data
import interpolant
import sampler
import train
from common import Fail, Stop, flag, lock, main, parse, say, trim, whole_numbers, write_csv
from figures import mazes
from model import pick_device
from retrofit.tasks import wilson

SPLITS = ("train", "val", "test")


# -----------------------------------------------------------------------------
# the maze

def divide(free, top, left, bottom, right, rng):
    """Recursive division: build a wall with one hole through the open chamber [top..bottom] x
    [left..right], then divide both halves."""
    if top == bottom or left == right:                                  # a corridor
        return
    if (right - left, rng.random()) > (bottom - top, 0.5):              # across the longer side:
        free, top, left, bottom, right = free.T, left, top, right, bottom       # turn the picture
    # walls are in even rows and holes in odd columns, so that no wall closes an earlier hole
    wall = top + 1 + 2 * rng.integers((bottom - top) // 2)
    hole = left + 2 * rng.integers((right - left) // 2 + 1)
    free[wall, left:right + 1] = False
    free[wall, hole] = True
    divide(free, top, left, wall - 1, right, rng)
    divide(free, wall + 1, left, bottom, right, rng)


class Maze:
    """free (side, side) bool. Its C free cells are numbered row by row: cells[v] = (row, column).

    neighbours[v]: the free cells beside v. distance (C, C): steps from cell to cell.
    split (C, C), symmetric: which of SPLITS may have this pair as a leg."""

    def __init__(self, side, open=0.0, seed=0):
        if side % 2 == 0 or side < 5:
            raise Fail(f"--size {side}: rooms have walls between them, so the side is odd and at "
                       f"least 5; try --size {max(5, side | 1)}")
        rng = np.random.default_rng([seed, side])
        self.free = np.zeros((side, side), dtype=bool)
        self.free[1:-1, 1:-1] = True
        divide(self.free, 1, 1, side - 2, side - 2, rng)
        walls = np.argwhere(~self.free[1:-1, 1:-1]) + 1
        walls = walls[walls.sum(1) % 2 == 1]                            # between two rooms
        opened = rng.permutation(walls)[:round(open * len(walls))]
        self.free[tuple(opened.T)] = True

        cells = np.argwhere(self.free)                                  # (C, 2)
        self.cells = [tuple(cell) for cell in cells.tolist()]
        apart = np.abs(cells[:, None] - cells).sum(2)                   # (C, C)
        self.neighbours = [np.flatnonzero(row == 1).tolist() for row in apart]
        self.distance = np.stack([self.flood(v) for v in range(len(cells))])
        share = np.triu(rng.random(apart.shape), 1)
        self.split = np.digitize(share + share.T, [0.8, 0.9])

    def flood(self, start):
        """(C,): the steps from `start` to each cell, breadth first"""
        steps, queue = np.full(len(self.cells), -1), [start]
        steps[start] = 0
        for here in queue:                                              # it grows meanwhile
            for v in self.neighbours[here]:
                if steps[v] < 0:
                    steps[v] = steps[here] + 1
                    queue.append(v)
        return steps

    def path(self, start, goal, rng, kind="shortest"):
        """A random path that visits no cell twice, found depth first. On a "shortest" path every
        step comes nearer to the goal."""
        path, seen, left = [start], {start}, self.distance[goal]
        while path[-1] != goal:
            here = path[-1]
            new = [v for v in self.neighbours[here] if v not in seen]
            if kind == "shortest":
                new = [v for v in new if left[v] < left[here]]
            if new:
                path.append(new[rng.integers(len(new))])
                seen.add(path[-1])
            else:
                path.pop()
        return path


# -----------------------------------------------------------------------------
# tasks: a task is a list of K legs, and a leg is a list of cells that begins with a subgoal. The
# last leg is the last subgoal alone.

def subgoals(task):
    return [leg[0] for leg in task]


def draw_task(maze, rng, split, K, high, paths):
    """A task with K subgoals and, most likely, at most `high` cells; None where no next subgoal is
    possible"""
    # a leg may be 1.5 times as long as its share of the limit, or few paths would be within it
    near = 1.5 * (high - 1) / (K - 1)
    task = [[int(rng.integers(len(maze.cells)))]]
    while len(task) < K:
        here = task[-1][0]
        possible = (maze.split[here] == split) & (maze.distance[here] <= near)
        possible[subgoals(task)] = False
        if not possible.any():
            return None
        goal = int(rng.choice(np.flatnonzero(possible)))
        task[-1] = maze.path(here, goal, rng, paths)[:-1]
        task.append([goal])
    return task


def draw_tasks(maze, seed, split, N, Ks, low, high, paths="shortest", repeat=False):
    """N tasks of low .. high cells, their K from the list Ks in turn. No list of subgoals comes
    twice, unless `repeat`."""
    rng = np.random.default_rng([seed, split, *Ks])
    found, seen = [], set()
    for _ in range(200 * N + 2000):
        if len(found) == N:
            return found
        K = Ks[len(found) % len(Ks)]
        task = draw_task(maze, rng, split, K, high, paths)
        if task is None or not low <= sum(map(len, task)) <= high:
            continue
        name = tuple(subgoals(task))
        if repeat or name not in seen:
            seen.add(name)
            found.append(task)
    raise Fail(f"the maze has too few {SPLITS[split]} tasks with {K} subgoals and {low}..{high} "
               f"cells: {len(found)} of {N} found; ask for fewer, or take a larger --size")


# -----------------------------------------------------------------------------
# the referee

def wrong(free, cells, path, subgoals):
    """What is wrong with a path (a list of ids), in a few words; None if it solves the task.

    It shares nothing with the generator but the picture of the maze: it looks at coordinates, not
    at neighbours or distances."""
    if not path:
        return "empty"
    if not all(0 <= v < len(cells) and free[cells[v]] for v in path):
        return "not a free cell"
    places = [cells[v] for v in path]
    for (r, c), (s, d) in itertools.pairwise(places):
        if abs(r - s) + abs(c - d) != 1:
            return "a jump"
    if path[0] != subgoals[0]:
        return "wrong start"
    if path[-1] != subgoals[-1]:
        return "wrong end"
    rest = iter(path)
    if not all(goal in rest for goal in subgoals):          # `in` goes on where the last one ended
        return "a subgoal missed"
    return None


# -----------------------------------------------------------------------------
# what a model is given, in the test and in training

def pins(K, L, leg):
    """Places on a canvas of L slots for K subgoals, `leg` slots apart as far as there is room. They
    are known without the path."""
    last = min(round(leg * (K - 1)), L - 1)
    return [j * last // (K - 1) for j in range(K)]


def mean_leg(tasks, K):
    """The mean steps from subgoal to subgoal in training paths with K of them; no training path has
    the K of the hard split, which gets the mean of the largest K"""
    K = min(K, max(map(len, tasks)))
    return float(np.mean([(sum(map(len, task)) - 1) / (K - 1) for task in tasks if len(task) == K]))


def spread(tasks, L, blank):
    """The same tasks on a canvas of L slots, with subgoals at even distances and blanks after each
    leg. Tasks with a leg that finds no room are left out."""
    new = []
    for task in tasks:
        rooms = np.diff(pins(len(task), L, L), append=L)
        if all(len(leg) <= room for leg, room in zip(task, rooms)):
            new.append([leg + [blank] * (room - len(leg)) for leg, room in zip(task, rooms)])
    return new


def starts(tasks, code, L, fixed, places=None):
    """The states that sampling starts from, (y, n, opened), in which the subgoals are given.

    With insertion the subgoals stand side by side, and only the gaps between them are open. A fixed
    canvas has L slots, and the subgoals are at `places` (None: at their true places)."""
    rows = []
    for task in tasks:
        holes = [len(leg) - 1 for leg in task[:-1]]
        if places:
            holes = [b - a - 1 for a, b in itertools.pairwise(places)]
        rows.append(sampler.start_from([[v] for v in subgoals(task)], holes, code, L, fixed,
                                       end=None, end_open=fixed, anchored=False))
    return sampler.stack(rows, code)


def write_data(folder, tasks, val_tasks, V):
    """The tasks as a data set for train.py, in which each leg's first cell is given"""
    def document(task):
        return sum(task, []), [i == 0 for leg in task for i in range(len(leg))]

    sides = {"train": [*map(document, tasks)], "val": [*map(document, val_tasks)]}
    data.write(folder, sides, data.tokenizer_from(f"numbers-{V}"), made={}, anchors=False)


def train_method(method, tasks, val_tasks, C, args):
    """Train one method in OUT_DIR/METHOD by train.py, or go on where it stopped -> Loaded."""
    folder, base = os.path.join(args.out_dir, method), method.removesuffix("-blank")
    dataset, V = os.path.join(folder, "data"), C + 1            # the cells, and the end
    if base != method:
        V += 1                                                  # and the blank
        tasks, val_tasks = (spread(part, args.block_size, C) for part in (tasks, val_tasks))
    write_data(dataset, tasks, val_tasks, V)
    flags = {name: getattr(args, name) for name in TRAINING}
    flags |= dict(method=base, dataset=dataset, out_dir=folder, keep=1, eval_iters=4,
                  sample_steps=0, rope_theta=10000, optimizer="adamw", overwrite=args.overwrite)
    if "prime" in base:
        flags["ell"] = args.ell
    if args.init_from == "resume" and checkpoint.found(folder):
        flags["init_from"] = "resume"
    train.train([f"--{name}={value}" for name, value in flags.items()])
    loaded = checkpoint.load(folder, pick_device(args.device))
    if loaded.step < args.max_iters:
        raise Fail(f"stopped after step {loaded.step} of {method}: go on with the same command and "
                   "--init_from resume")
    return loaded


# -----------------------------------------------------------------------------
# evaluation

class Arm(NamedTuple):
    """A line of the table. On a fixed canvas K subgoals stand leg(K) slots apart (None: at their
    true places)."""
    name: str
    loaded: checkpoint.Loaded
    leg: Callable = None


def arms_of(method, loaded, tasks):
    """The lines of a model that was trained on these tasks"""
    if not loaded.fixed:
        return [Arm(method, loaded)]
    if method.endswith("-blank"):
        return [Arm(method, loaded, lambda K: loaded.config.block_size)]
    even = Arm(f"{method} even", loaded, partial(mean_leg, tasks))
    return [even, Arm(f"{method} true", loaded)]


def solve(arm, maze, tasks, steps, order="random", kind="parallel", watch=None):
    """Ask for paths through the subgoals of tasks with the same K. kind: the sampler. -> [(path,
    subgoals, what is wrong or None)]; end tokens and blanks are dropped from the paths."""
    loaded, places = arm.loaded, None
    code, L, K = loaded.code, loaded.config.block_size, len(tasks[0])
    if arm.leg:
        places = pins(K, L, arm.leg(K))
    start = starts(tasks, code, L, loaded.fixed, places)
    if watch:
        watch(0.0, *start[:2])
    insertion = interpolant.schedule(loaded.config.insertion)
    unmasking = interpolant.schedule("linear")
    x, n = sampler.generate(loaded.predict, code, len(tasks), L, steps, insertion, unmasking, order,
                            start=start, sampler=kind, watch=watch)
    answers = []
    for task, row, length in zip(tasks, x.tolist(), n.tolist()):
        path = [v for v in row[:length] if v < len(maze.cells)]
        goals = subgoals(task)
        answers.append((path, goals, wrong(maze.free, maze.cells, path, goals)))
    return answers


SETTING = ("method", "iters", "sampler", "order", "steps", "K", "n")
COLUMNS = (*SETTING, "success", "low", "high")      # the share of tasks solved, its 95% interval


def fill_table(path, arms, maze, tests, args):
    """Evaluate all settings that results.csv lacks, and write it after each."""
    stop, rows = Stop(), []
    if os.path.exists(path) and not args.overwrite:
        with open(path, newline="") as f:
            rows = list(csv.DictReader(f))
    done = {tuple(row[name] for name in SETTING) for row in rows}
    settings = itertools.product(arms, args.samplers, args.orders, args.steps, tests)
    for arm, kind, order, steps, tasks in settings:
        K, N = len(tasks[0]), len(tasks)
        setting = (arm.name, arm.loaded.step, kind, order, steps, K, N)
        if tuple(map(str, setting)) in done:
            continue
        if stop.asked:
            raise Fail("stopped while evaluating: the same command with --init_from resume "
                       f"completes {path}")
        torch.manual_seed(args.seed)
        answers = solve(arm, maze, tasks, steps, order, kind)
        right = sum(verdict is None for _, _, verdict in answers)
        low, high = wilson(right, N)
        say(f"{arm.name:12} {kind:8} {order:10} {steps:5} | K = {K:2}: {right / N:4.0%} "
            f"({low:.0%} .. {high:.0%})")
        rows.append(dict(zip(COLUMNS, (*setting, right / N, low, high))))
        write_csv(path, COLUMNS, rows)
        trim()


# -----------------------------------------------------------------------------
# pictures

def growth(arm, maze, task):
    """A path as it grows, one event at a time: frames (t, cells), in which -1 is a mask. Of at most
    10 paths it is the first that is right."""
    code, frames = arm.loaded.code, []

    def watch(t, y, n):
        y = y[0, :n[0]]                                                 # (n, ell)
        masked = (y == code.mask).any(1)
        ids = code.decode(torch.where(masked[:, None], 0, y)).masked_fill(masked, -1)
        frames.append((t, [v for v in ids.tolist() if v < len(maze.cells)]))

    for _ in range(10):
        frames.clear()
        calls = 4 * arm.loaded.config.block_size
        (_, _, verdict), = solve(arm, maze, [task], calls, kind="exact", watch=watch)
        if verdict is None:
            break
    return frames


def draw(arms, maze, tests, args):
    """mazes.png: two paths for each arm and K; growth.gif: one path of the first arm"""
    torch.manual_seed(args.seed)
    shown = []
    for arm, tasks in itertools.product(arms, tests):
        answers = solve(arm, maze, tasks[:24], max(args.steps), kind=args.samplers[-1])
        shown.append((f"{arm.name}, K = {len(tasks[0])}", answers))
    mazes.draw_examples(os.path.join(args.out_dir, "mazes.png"), maze, shown, len(tests))
    task = tests[len(args.K) - 1][0]            # of the largest K but the hard one
    frames = growth(arms[0], maze, task)
    mazes.draw_growth(os.path.join(args.out_dir, "growth.gif"), maze, subgoals(task), frames)


# -----------------------------------------------------------------------------
# the command line

PRESETS = {     # defaults by --size; a size in between takes the larger one's
    11: {},                     # the defaults
    21: dict(K="2,7,12", hard=15, limit=160, block_size=224),
    41: dict(K="2,7,12", hard=16, limit=400, block_size=512, train_tasks=50_000, n_layer=8,
             n_head=8, n_embd=512, batch_size=256, learning_rate=1e-3, max_iters=10_000),
}
METHODS = ("flexmdm", "mdm", "flexprime", "prime", "mdm-blank", "prime-blank")
TRAINING = ("n_layer", "n_head", "n_embd", "batch_size", "block_size", "max_iters", "warmup_iters",
            "learning_rate", "eval_interval", "log_interval", "device", "seed")     # train.py's


@dataclass
class Args:
    size: int = flag(11, "side of the maze, odd")
    open: float = flag(0.0, "share of the walls between rooms that are opened", high=1.0)
    paths: str = flag("shortest", "how subgoals are joined", ("shortest", "simple"))
    K: str = flag("2,5", "how many subgoals, with start and end, test tasks have")
    hard: int = flag(7, "subgoals of the hard split; 0: no hard split", low=0)
    limit: int = flag(48, "the most cells of a path, except in the hard split")
    block_size: int = flag(64, "the most cells of a hard path; the fixed canvas")
    train_tasks: int = flag(20_000, "training tasks")
    test_tasks: int = flag(100, "test tasks for each K")
    methods: str = flag("flexmdm,mdm", "of " + ", ".join(METHODS))
    ell: int = flag(2, "digits per token of flexprime and prime")
    n_layer: int = flag(4, "blocks")
    n_head: int = flag(2, "attention heads")
    n_embd: int = flag(64, "width")
    batch_size: int = flag(64, "paths per step")
    max_iters: int = flag(6000, "training steps per method")
    learning_rate: float = flag(2e-3, "peak learning rate")
    warmup_iters: int = flag(100, "steps of linear warm-up", low=0)
    eval_interval: int = flag(500, "steps between validation and checkpoint")
    log_interval: int = flag(100, "steps between progress lines")
    samplers: str = flag("parallel,exact", "of " + ", ".join(sampler.SAMPLERS))
    steps: str = flag("16,64,256,1024", "network calls, for both samplers")
    orders: str = flag("random,top_prob,margin", "which masks are revealed first")
    out_dir: str = flag("out-maze", "results.csv, mazes.png, growth.gif, a folder per method")
    init_from: str = flag("scratch", "scratch or resume", ("scratch", "resume"))
    overwrite: bool = flag(False, "start again in an out_dir that holds a run")
    device: str = flag("auto", "auto, cpu, cuda, mps")
    seed: int = flag(0, "fixes the maze, the tasks, the training and the samples", low=0)


def settle(args):
    """Fill in the preset, and turn texts with commas into lists. Raises Fail for what cannot be."""
    preset = min((size for size in PRESETS if size >= args.size), default=max(PRESETS))
    for name, value in PRESETS[preset].items():
        if name not in args.named:
            setattr(args, name, value)
    args.K = sorted(set(whole_numbers(args.K, "K")))
    args.steps = whole_numbers(args.steps, "steps")
    choices = dict(methods=METHODS, samplers=sampler.SAMPLERS, orders=sampler.ORDERS)
    for name, known in choices.items():
        words = getattr(args, name).split(",")
        if not set(words) <= set(known):
            raise Fail(f"--{name} {','.join(words)}: choose from {', '.join(known)}")
        setattr(args, name, words)
    top = args.K[-1]
    if args.K[0] < 2:
        raise Fail("--K counts the start and the end, so it is at least 2")
    if args.hard and args.hard <= top:
        raise Fail(f"--hard {args.hard} must be more than the largest --K, {top}; 0: no hard split")
    if not top <= args.limit < args.block_size:
        raise Fail(f"--limit {args.limit} must be at least the largest --K and less than "
                   f"--block_size {args.block_size}")


def run(argv=None):
    args = parse(Args, __doc__, argv)
    settle(args)

    maze = Maze(args.size, args.open, args.seed)
    say(f"a maze of {len(maze.cells)} cells")
    tasks_of = partial(draw_tasks, maze, args.seed, paths=args.paths)
    Ks = list(range(2, args.K[-1] + 1))
    train_tasks = tasks_of(0, args.train_tasks, Ks, 2, args.limit, repeat=True)
    val_tasks = tasks_of(1, 256, Ks, 2, args.limit, repeat=True)
    tests = [tasks_of(2, args.test_tasks, [K], 2, args.limit) for K in args.K]
    if args.hard:
        tests.append(tasks_of(2, args.test_tasks, [args.hard], args.limit + 1, args.block_size))

    held, arms = lock(args.out_dir), []     # noqa: F841 (the lock is kept until the process ends)
    for method in args.methods:
        loaded = train_method(method, train_tasks, val_tasks, len(maze.cells), args)
        arms += arms_of(method, loaded, train_tasks)
    fill_table(os.path.join(args.out_dir, "results.csv"), arms, maze, tests, args)
    draw(arms, maze, tests, args)
    say(f"{args.out_dir}/: results.csv, mazes.png, growth.gif")


if __name__ == "__main__":
    main(run)
