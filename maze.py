"""The planning task of FlexMDM (arXiv 2509.01025, section 5): connect subgoals into a path
through a maze.

One maze per run. Its free cells are the tokens, a path is a document. The network never sees the
maze: from example paths it has to learn which cells are neighbours, and which way leads where.
Asked for a path through K subgoals, a model with insertion starts from these K tokens and grows
what lies between them. A model on a fixed canvas has to be told *where* on the canvas each subgoal
stands, which only somebody who has the path can know.

    python maze.py                                  # 11 x 11: train, evaluate, draw
    python maze.py --size 41                        # the paper's size, for a GPU
    python maze.py --methods flexprime,prime        # several digits per token

One worked number: an 11 x 11 maze has 49 free cells (25 rooms, 24 doors), so there are 49 * 48 =
2352 tasks with K = 2. The tasks become a data set, OUT_DIR/data, on which train.py trains. Their
subgoals are given tokens: always there, never masked.

The authors' maze code was never released. These assumptions are ours:
- The maze: recursive division of a square of odd side 2m + 1, a tree of m * m rooms. --open opens a
  share of its walls.
- K counts the start and the end. Subgoals are distinct cells, drawn uniformly among those near
  enough for the walk to fit its limit.
- Consecutive subgoals are joined by shortest paths (ties at random) or random simple paths. Such a
  leg visits no cell twice, the walk may: out of a dead end there is only the way back.
- A path is right if it begins and ends with the first and last subgoal, its cells are free, every
  step goes to one of 4 neighbours, and the subgoals are a subsequence of it. It may be longer than
  necessary.
- Unordered pairs of cells are split 80 / 10 / 10 into train, val and test. All legs of a task come
  from its split: no leg of a test task was a leg in training, in either direction. (They do occur
  inside of longer legs.)
- Training tasks have K uniform in 2 .. max K and may repeat, test tasks do not. The hard split has
  more subgoals *and* a longer path than any training task.
- On a fixed canvas end tokens follow the path, and are to be predicted. In training the subgoals
  stand at their true places; in the test there ("mdm true", an oracle) or at even distances ("mdm
  even"): the mean leg of the training walks with that K. "mdm-blank" has them at even distances
  over the whole canvas in training, too, and blanks after each leg. End tokens and blanks are
  dropped from an answer.
"""
import csv
import itertools
import os
import time
from collections import deque
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

import checkpoint
import data
import interpolant
import sampler
import train
from common import Fail, Stop, flag, lock, main, parse, say, whole_numbers, write_csv
from figures import mazes
from model import pick_device
from retrofit.tasks import wilson

SPLITS = ("train", "val", "test")


# -----------------------------------------------------------------------------
# the maze

def divide(free, top, left, bottom, right, rng):
    """Recursive division: a wall with one hole through the open chamber [top..bottom] x
    [left..right], then through both halves."""
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
        self.name = f"{side} x {side}, --open {open:g}, --seed {seed}"
        self.free = np.zeros((side, side), dtype=bool)
        self.free[1:-1, 1:-1] = True
        divide(self.free, 1, 1, side - 2, side - 2, rng)
        walls = np.argwhere(~self.free[1:-1, 1:-1]) + 1
        walls = walls[walls.sum(1) % 2 == 1]                            # between two rooms
        opened = rng.permutation(len(walls))[:round(open * len(walls))]
        self.free[tuple(walls[opened].T)] = True

        self.cells = [(int(r), int(c)) for r, c in np.argwhere(self.free)]
        number = {cell: v for v, cell in enumerate(self.cells)}
        self.neighbours = []
        for r, c in self.cells:
            around = (r - 1, c), (r + 1, c), (r, c - 1), (r, c + 1)
            self.neighbours.append([number[cell] for cell in around if cell in number])
        C = len(self.cells)
        self.distance = np.stack([self.flood(v) for v in range(C)])
        share = np.triu(rng.random((C, C)), 1)
        self.split = np.digitize(share + share.T, [0.8, 0.9])

    def flood(self, start):
        """(C,): the steps from `start` to each cell, breadth first"""
        steps, queue = [-1] * len(self.cells), deque([start])
        steps[start] = 0
        while queue:
            here = queue.popleft()
            for v in self.neighbours[here]:
                if steps[v] < 0:
                    steps[v] = steps[here] + 1
                    queue.append(v)
        return np.array(steps)

    def shortest(self, start, goal, rng):
        """A shortest path, as the cells after `start`. Of two equally short ways either."""
        path, here, left = [], start, self.distance[goal]
        while here != goal:
            nearer = [v for v in self.neighbours[here] if left[v] < left[here]]
            here = nearer[0]
            if len(nearer) > 1:
                here = nearer[rng.integers(len(nearer))]
            path.append(here)
        return path

    def simple(self, start, goal, rng):
        """A random path without a cell twice: depth first, turning at random. In a tree, the
        only one there is."""
        path, seen = [start], {start}
        while path[-1] != goal:
            new = [v for v in self.neighbours[path[-1]] if v not in seen]
            if new:
                path.append(new[rng.integers(len(new))])
                seen.add(path[-1])
            else:
                path.pop()
        return path[1:]


# -----------------------------------------------------------------------------
# tasks

class Task(NamedTuple):
    walk: list          # cells
    places: list        # where in the walk its subgoals are

    @property
    def subgoals(self):
        return [self.walk[p] for p in self.places]

    @property
    def K(self):
        return len(self.places)


def draw_task(maze, rng, split, K, low, high, paths):
    """One task with K subgoals and low .. high cells. None if this try did not lead to one."""
    # a leg may be 1.5 times as long as its share of the limit, or few walks would be within it
    near = 1.5 * (high - 1) / (K - 1)
    task = Task([int(rng.integers(len(maze.cells)))], [0])
    while task.K < K:
        here = task.walk[-1]
        possible = (maze.split[here] == split) & (maze.distance[here] <= near)
        possible[task.subgoals] = False
        goals = possible.nonzero()[0]
        if len(goals) == 0:
            return None
        goal = int(goals[rng.integers(len(goals))])
        leg = maze.shortest if paths == "shortest" else maze.simple
        task.walk.extend(leg(here, goal, rng))
        task.places.append(len(task.walk) - 1)
    return task if low <= len(task.walk) <= high else None


def draw_tasks(maze, seed, split, N, Ks, low, high, paths="shortest", repeat=False):
    """N tasks, their K from the list Ks in turn. Each list of subgoals once, unless `repeat`."""
    rng = np.random.default_rng([seed, split, *Ks])
    found, seen, tries = [], set(), 0
    while len(found) < N:
        K, tries = Ks[len(found) % len(Ks)], tries + 1
        if tries > 200 * N + 2000:
            raise Fail(f"the maze ({maze.name}) has too few {SPLITS[split]} tasks with {K} "
                       f"subgoals and {low}..{high} cells: {len(found)} of {N} found; ask for "
                       "fewer, or take a larger --size")
        task = draw_task(maze, rng, split, K, low, high, paths)
        if task is None:
            continue
        name = tuple(task.subgoals)
        if repeat or name not in seen:
            seen.add(name)
            found.append(task)
    return found


# -----------------------------------------------------------------------------
# the referee

def wrong(free, cells, path, subgoals):
    """What is wrong with a path, in a few words; None if it solves the task. path, subgoals: ids;
    cells[v] = (row, column).

    It shares nothing with the generator but the picture of the maze: it looks at coordinates, not
    at neighbours or distances."""
    if not path:
        return "empty"
    if not all(0 <= v < len(cells) and free[cells[v]] for v in path):
        return "not a free cell"
    places = [cells[v] for v in path]
    for (r, c), (s, d) in zip(places, places[1:]):
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


def verdicts(maze, tasks, paths):
    return [wrong(maze.free, maze.cells, path, task.subgoals) for task, path in zip(tasks, paths)]


# -----------------------------------------------------------------------------
# what a model is given

def even_pins(K, L, length):
    """Places on a canvas of L slots for K subgoals, the last one at `length` - 1. All of it is
    known without the path."""
    last = min(max(round(length), K), L) - 1
    return [j * last // (K - 1) for j in range(K)]


def mean_lengths(tasks, hard):
    """{K: mean cells of the walks with K subgoals}. The hard split's K is in no training task: it
    gets the same mean leg as the largest K."""
    lengths = {}
    for task in tasks:
        lengths.setdefault(task.K, []).append(len(task.walk))
    mean = {K: float(np.mean(cells)) for K, cells in lengths.items()}
    top = max(mean)
    if hard:
        mean[hard] = 1 + (hard - 1) * (mean[top] - 1) / (top - 1)
    return mean


def spread(tasks, L, blank):
    """The same tasks on a canvas of L slots with evenly pinned subgoals: each leg starts at its
    pin, blanks follow it. Tasks with a leg that is longer than its pins are apart are left out."""
    new = []
    for task in tasks:
        pins, canvas = even_pins(task.K, L, L), [blank] * L
        ends = [*task.places[1:], len(task.walk)]
        legs = [task.walk[a:b] for a, b in zip(task.places, ends)]
        if all(len(leg) <= d - c for leg, c, d in zip(legs, pins, [*pins[1:], L])):
            for pin, leg in zip(pins, legs):
                canvas[pin:pin + len(leg)] = leg
            new.append(Task(canvas, pins))
    return new


def starts(tasks, code, L, fixed, pins=None):
    """The states that sampling starts from, (y, n, opened): the subgoals are given, the rest is
    to be found.

    With insertion: the subgoals side by side, only the gaps between them are open. On a fixed
    canvas: L slots, of which pins[K] hold the subgoals; without pins, their true places."""
    rows = []
    for task in tasks:
        places = pins[task.K] if pins else task.places
        holes = [b - a - 1 for a, b in zip(places, places[1:])]
        rows.append(sampler.start_from([[v] for v in task.subgoals], holes, code, L, fixed,
                                       end=None, end_open=fixed, anchored=False))
    return sampler.stack(rows, code)


# -----------------------------------------------------------------------------
# training

def write_data(folder, train_tasks, val_tasks, V, args):
    """The tasks as a data set for train.py, unless it is there already."""
    made = {name: getattr(args, name) for name in MADE_FROM}
    before = data.read_json(os.path.join(folder, "meta.json")).get("made")
    if before and not args.overwrite:
        differ = [f"--{k} {before.get(k)}" for k in made if before.get(k) != made[k]]
        if differ:
            raise Fail(f"{folder} was made with {' '.join(differ)}: give the same flags, or name "
                       "another --out_dir")
        return
    sides = {}
    for side, tasks in (("train", train_tasks), ("val", val_tasks)):
        sides[side] = [(walk, [p in places for p in range(len(walk))]) for walk, places in tasks]
    data.write(folder, sides, data.tokenizer_from(f"numbers-{V}"), made, anchors=False)


def train_method(method, args):
    """Train one method in OUT_DIR/METHOD by train.py, or go on where it stopped -> Loaded."""
    folder, base = os.path.join(args.out_dir, method), method.removesuffix("-blank")
    dataset = os.path.join(args.out_dir, "data-blank" if base != method else "data")
    flags = {name: getattr(args, name) for name in TRAINING}
    command = ["--method", base, "--dataset", dataset, "--out_dir", folder, "--device", args.device,
               "--seed", args.seed, "--block_size", args.block_size, "--keep", 1,
               "--eval_iters", 4, "--sample_steps", 0, "--rope_theta", 10000,
               "--optimizer", "adamw"]
    if "prime" in base:
        command += ["--ell", args.ell]
    if args.init_from == "resume" and checkpoint.found(folder):         # its flags, or those of now
        command += ["--init_from", "resume"]
        flags = {name: value for name, value in flags.items() if name in args.named}
    elif args.overwrite:
        command += ["--overwrite"]
    for name, value in flags.items():
        command += [f"--{name}", value]
    train.train([str(word) for word in command])
    loaded = checkpoint.load(folder, pick_device(args.device))
    if loaded.step < loaded.args["max_iters"]:
        raise Fail(f"stopped after step {loaded.step} of {method}: go on with the same command and "
                   "--init_from resume")
    return loaded


# -----------------------------------------------------------------------------
# evaluation

class Arm(NamedTuple):
    """A line of the table: a model, and where on its canvas subgoals stand (see starts). On a
    fixed canvas without pins these are the true places."""
    name: str
    loaded: checkpoint.Loaded
    pins: dict = None


def arms_of(method, loaded, mean, L):
    """The arms of a method. mean: {K: the length of a walk, as far as it is known}"""
    if method.endswith("-blank"):
        return [Arm(method, loaded, {K: even_pins(K, L, L) for K in mean})]
    if train.METHODS[method] != "instant":
        return [Arm(method, loaded)]
    even = {K: even_pins(K, L, length) for K, length in mean.items()}
    return [Arm(f"{method} even", loaded, even), Arm(f"{method} true", loaded)]


def solve(arm, tasks, C, steps, order="random", kind="parallel", watch=None):
    """A path for each task, as a list of cells: ids below C, others are dropped. kind: sampler's"""
    loaded, paths = arm.loaded, []
    L, insertion = loaded.config.block_size, interpolant.schedule(loaded.config.insertion)
    unmasking, fixed = interpolant.schedule("linear"), insertion.name == "instant"
    for i in range(0, len(tasks), 512):
        start = starts(tasks[i:i + 512], loaded.code, L, fixed, arm.pins)
        x, n = sampler.generate(loaded.predict, loaded.code, len(start[1]), L, steps, insertion,
                                unmasking, order, start=start, sampler=kind, watch=watch)
        for row, length in zip(x.tolist(), n.tolist()):
            paths.append([v for v in row[:length] if v < C])
    return paths


COLUMNS = ("method", "iters", "K", "sampler", "order", "steps", "success", "low", "high", "n")


def evaluate(arm, maze, tasks, kind, order, steps):
    """The success at one setting: rows for results.csv, one for each K."""
    began, rows, words = time.time(), [], []
    paths = solve(arm, tasks, len(maze.cells), steps, order, kind)
    right = [verdict is None for verdict in verdicts(maze, tasks, paths)]
    for K in sorted({task.K for task in tasks}):
        of_K = [ok for ok, task in zip(right, tasks) if task.K == K]
        low, high = wilson(sum(of_K), len(of_K))
        share = sum(of_K) / len(of_K)
        rows.append(dict(method=arm.name, iters=arm.loaded.step, K=K, sampler=kind, order=order,
                         steps=steps, success=f"{share:.4f}", low=f"{low:.4f}",
                         high=f"{high:.4f}", n=len(of_K)))
        words.append(f"K = {K}: {100 * share:3.0f} ({100 * low:2.0f}..{100 * high:3.0f})")
    say(f"{arm.name:12} {kind:8} {order:10} {steps:5} | {' | '.join(words)} | "
        f"{time.time() - began:.0f} s")
    return rows


def earlier_rows(path, arms, args):
    """The rows of a table that are still true: of these models after as many steps, and as many
    test tasks; or of other models"""
    if args.overwrite or not os.path.exists(path):
        return []
    with open(path, newline="") as f:
        rows = list(csv.DictReader(f))
    now = {arm.name: (str(arm.loaded.step), str(args.test_tasks)) for arm in arms}
    return [row for row in rows if now.get(row["method"]) in (None, (row["iters"], row["n"]))]


def fill_table(path, arms, maze, tasks, args):
    """Evaluate all settings that results.csv lacks, and write it after each."""
    stop, rows = Stop(), earlier_rows(path, arms, args)
    done = {(row["method"], row["sampler"], row["order"], row["steps"]) for row in rows}
    say("success in %, with its 95% interval:")
    settings = itertools.product(arms, args.sampler_list, args.order_list, args.step_list)
    for arm, kind, order, steps in settings:
        if (arm.name, kind, order, str(steps)) in done:
            continue
        if stop.asked:
            raise Fail("stopped while evaluating: the same command with --init_from resume "
                       f"completes {path}")
        torch.manual_seed(args.seed)
        rows += evaluate(arm, maze, tasks, kind, order, steps)
        write_csv(path, COLUMNS, rows)


def examples(arms, maze, tests, args):
    """What mazes.png shows: [(title, [(path, subgoals, what is wrong or None), ..]), ..]"""
    shown = []
    for arm, tasks in itertools.product(arms, tests):
        few = tasks[:24]
        paths = solve(arm, few, len(maze.cells), max(args.step_list), kind=args.sampler_list[-1])
        goals, said = [task.subgoals for task in few], verdicts(maze, few, paths)
        shown.append((f"{arm.name}, K = {few[0].K}", list(zip(paths, goals, said))))
    return shown


def growth(arm, maze, task):
    """A path as it grows, event by event: [(t, [cell, or None for a mask, ..]), ..]. Of at most 10
    the first that is right."""
    C, code, frames = len(maze.cells), arm.loaded.code, []

    def watch(t, y, n):
        y = y[0, :n[0]]                                                 # (n, ell)
        masked = (y == code.mask).any(1)
        ids = code.decode(torch.where(masked[:, None], 0, y)).masked_fill(masked, -1).tolist()
        frames.append((t, [None if v < 0 else v for v in ids if v < C]))

    for _ in range(10):
        frames[:] = [(0.0, task.subgoals)]
        paths = solve(arm, [task], C, 4 * arm.loaded.config.block_size, kind="exact", watch=watch)
        if verdicts(maze, [task], paths) == [None]:
            break
    return frames


# -----------------------------------------------------------------------------
# the command line

PRESETS = {     # what a side needs, where the user names nothing else; between two, the larger's
    11: dict(K="2,5", hard=7, limit=48, block_size=64),
    21: dict(K="2,7,12", hard=15, limit=160, block_size=224),
    41: dict(K="2,7,12", hard=16, limit=400, block_size=512, train_tasks=50_000, n_layer=8,
             n_head=8, n_embd=512, batch_size=256, learning_rate=1e-3, max_iters=10_000),
}
METHODS = ("flexmdm", "mdm", "flexprime", "prime", "mdm-blank", "prime-blank")
TRAINING = ("n_layer", "n_head", "n_embd", "batch_size", "max_iters", "learning_rate",
            "warmup_iters", "eval_interval", "log_interval")            # go to train.py as they are
MADE_FROM = ("size", "open", "seed", "paths", "K", "hard", "limit", "block_size", "train_tasks")


@dataclass
class Args:
    size: int = flag(11, "side of the maze, odd")
    open: float = flag(0.0, "share of the walls between rooms that are opened; 0: one way between "
                       "any two cells", high=1.0)
    paths: str = flag("shortest", "how subgoals are joined", ("shortest", "simple"))
    K: str = flag("2,5", "how many subgoals, with start and end, test tasks have")
    hard: int = flag(7, "subgoals of the hard split; 0: no hard split", low=0)
    limit: int = flag(48, "the most cells of a training path")
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


def words_of(args, name, known):
    """--methods flexmdm,mdm -> ['flexmdm', 'mdm']"""
    words = getattr(args, name).split(",")
    for word in words:
        if word not in known:
            raise Fail(f"--{name} {word}: choose from {', '.join(known)}")
    return words


def settle(args):
    """Fill in the preset, and turn lists of words into lists. Raises Fail for what cannot be."""
    preset = min((size for size in PRESETS if size >= args.size), default=max(PRESETS))
    for name, value in PRESETS[preset].items():
        if name not in args.named:
            setattr(args, name, value)
    args.K_list, args.step_list = whole_numbers(args.K, "K"), whole_numbers(args.steps, "steps")
    args.method_list = words_of(args, "methods", METHODS)
    args.sampler_list = words_of(args, "samplers", sampler.SAMPLERS)
    args.order_list = words_of(args, "orders", sampler.ORDERS)
    top = max(args.K_list)
    if min(args.K_list) < 2:
        raise Fail(f"--K {args.K} counts the start and the end, so it is at least 2")
    if args.hard and args.hard <= top:
        raise Fail(f"--hard {args.hard} must be more than the largest --K, {top}; 0: no hard split")
    if not top <= args.limit < args.block_size:
        raise Fail(f"--limit {args.limit} must be at least the largest --K and less than "
                   f"--block_size {args.block_size}")


def run(argv=None):
    args = parse(Args, __doc__, argv)
    settle(args)

    # 1. the maze and its tasks
    maze = Maze(args.size, args.open, args.seed)
    C, L, Ks = len(maze.cells), args.block_size, list(range(2, max(args.K_list) + 1))
    most = max(*args.K_list, args.hard)
    if most > C:
        raise Fail(f"--size {args.size} has {C} free cells, which cannot hold {most} subgoals: "
                   "take a larger --size, or lower --K and --hard")

    def tasks_of(split, N, Ks, low, high, repeat=False):
        return draw_tasks(maze, args.seed, split, N, Ks, low, high, args.paths, repeat)

    train_tasks = tasks_of(0, args.train_tasks, Ks, 2, args.limit, repeat=True)
    val_tasks = tasks_of(1, 4 * args.batch_size, Ks, 2, args.limit, repeat=True)
    tests = [tasks_of(2, args.test_tasks, [K], 2, args.limit) for K in args.K_list]
    if args.hard:
        tests.append(tasks_of(2, args.test_tasks, [args.hard], args.limit + 1, L))
    means = [f"{np.mean([len(t.walk) for t in part]):.0f} (K = {part[0].K})" for part in tests]
    say(f"maze {maze.name}: {C} cells; the test paths have on average {', '.join(means)} of them")

    # 2. the data sets: cells and the end token; with blanks, one more
    held = lock(args.out_dir)           # noqa: F841 (kept until the process ends)
    write_data(os.path.join(args.out_dir, "data"), train_tasks, val_tasks, C + 1, args)
    if any(method.endswith("-blank") for method in args.method_list):
        wide = [spread(tasks, L, blank=C) for tasks in (train_tasks, val_tasks)]
        write_data(os.path.join(args.out_dir, "data-blank"), *wide, C + 2, args)

    # 3. train
    arms, mean = [], mean_lengths(train_tasks, args.hard)
    for method in args.method_list:
        arms += arms_of(method, train_method(method, args), mean, L)

    # 4. evaluate
    fill_table(os.path.join(args.out_dir, "results.csv"), arms, maze, sum(tests, []), args)

    # 5. draw
    torch.manual_seed(args.seed)
    shown = examples(arms, maze, tests, args)
    mazes.draw_examples(os.path.join(args.out_dir, "mazes.png"), maze, shown, len(tests))
    task = tests[len(args.K_list) - 1][0]
    frames = growth(arms[0], maze, task)
    mazes.draw_growth(os.path.join(args.out_dir, "growth.gif"), maze, task.subgoals, frames)
    say(f"{args.out_dir}/: results.csv, mazes.png, growth.gif")


if __name__ == "__main__":
    main(run)
