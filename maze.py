"""The planning task of FlexMDM (arXiv 2509.01025, section 5): connect given subgoals into a path through a maze.

One maze per run. Its free cells are the tokens; a path is a document, one token per cell. The network never sees the maze: it has to
learn from example paths which cells are neighbours, and where they lead. Asked for a path through K subgoals, a model that inserts
starts from the K tokens and grows the legs between them. A fixed-canvas MDM has to be told *where* on its canvas each subgoal stands,
which only somebody who has the path can know.

    python maze.py                                # 11 x 11: train, evaluate, draw; minutes on 2 cores
    python maze.py --size 41                      # the paper's size, for a GPU
    python maze.py --methods flexprime,prime      # the same with several digits per token

One worked number: an 11 x 11 maze has 49 free cells (25 rooms, 24 doors), so 49 * 48 = 2352 tasks with K = 2.

The authors' maze code was never released. Assumptions, all of them ours:
- The maze is made by recursive division on a square of odd side 2m + 1: a tree of m * m rooms. `--open` opens a share of its walls.
- K counts the start and the end. Subgoals are distinct cells, drawn uniformly among those near enough for the walk to fit its limit.
- A task's walk joins consecutive subgoals by shortest paths (`--paths shortest`; ties at random) or by random simple paths (`simple`).
  A leg never visits a cell twice; the walk may: out of a dead end there is only the way back.
- Success: the first and last cells are the first and last subgoals, every cell is free, every step goes to one of 4 neighbours, and the
  subgoals appear in their order as a subsequence. A path may be longer than necessary and visit cells twice.
- Unordered pairs of cells are split 80 / 10 / 10 into train, val and test. All legs of a task come from its split: no leg of a test
  task was ever a leg, in either direction, of a training task. (They do occur inside longer legs, unmarked.)
- Training tasks have K uniform in 2..max K, and may repeat. Test tasks do not. The hard split has more subgoals *and* a longer path
  than any training task.
- MDM: the canvas holds the path and then end-of-text tokens, which are ordinary tokens. It is trained with the subgoals given at their
  true positions, and tested with them there ("mdm true", an oracle) and pinned at even distances ("mdm even"): the mean leg length of
  the training walks of that K, which is what one can know without the path. The path ends at the first end-of-text.
"""
import csv
import hashlib
import os
import time
from collections import deque
from dataclasses import asdict, dataclass
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import torch

import interpolant
import model
import rates
import sample
import train
from common import Fail, Log, Stop, aside, flag, lock, main, parse, trim
from tasks import wilson

SPLITS = ("train", "val", "test")


# ----------------------------------------------------------------------------------------------------------------- the maze
def divide(free, top, left, bottom, right, rng):
    """Recursive division: a wall with one hole across the open chamber [top..bottom] x [left..right], then the same in both halves."""
    if top == bottom or left == right:                                   # a corridor
        return
    if (right - left, rng.random()) > (bottom - top, 0.5):               # across the longer side: turn the picture (a view) if need be
        free, top, left, bottom, right = free.T, left, top, right, bottom
    wall = top + 1 + 2 * rng.integers((bottom - top) // 2)               # walls on even rows, holes in odd columns, so that a wall
    hole = left + 2 * rng.integers((right - left) // 2 + 1)              # never closes an earlier hole
    free[wall, left:right + 1] = False
    free[wall, hole] = True
    divide(free, top, left, wall - 1, right, rng)
    divide(free, wall + 1, left, bottom, right, rng)


class Maze:
    """free (side, side) bool. Its C free cells are numbered row by row: cells[v] = (row, column).

    neighbours[v] lists v's free neighbours, distance[v, w] counts steps, split[v, w] says which split may use the pair as a leg.
    """

    def __init__(self, side, open=0.0, seed=0):
        if side % 2 == 0 or side < 5:
            raise Fail(f"--size {side}: rooms have walls between them, so the side is odd and at least 5; try --size {max(5, side | 1)}")
        if not 0 <= open <= 1:
            raise Fail(f"--open {open:g}: the share of inner walls to open is between 0 and 1")
        self.name = f"{side} x {side}, --open {open:g}, --seed {seed}"
        rng = np.random.default_rng([seed, side])
        self.free = np.zeros((side, side), bool)
        self.free[1:-1, 1:-1] = True
        divide(self.free, 1, 1, side - 2, side - 2, rng)
        inner = np.argwhere(~self.free[1:-1, 1:-1]) + 1
        inner = inner[inner.sum(1) % 2 == 1]                             # walls between two rooms; the corners where walls meet stay
        self.free[tuple(inner[rng.permutation(len(inner))[:round(open * len(inner))]].T)] = True

        self.cells = [(int(r), int(c)) for r, c in np.argwhere(self.free)]
        number = {cell: v for v, cell in enumerate(self.cells)}
        around = lambda r, c: ((r - 1, c), (r + 1, c), (r, c - 1), (r, c + 1))
        self.neighbours = [[number[cell] for cell in around(*here) if cell in number] for here in self.cells]
        C = len(self.cells)
        self.distance = np.stack([self.flood(v) for v in range(C)])      # (C, C)
        share = np.triu(rng.random((C, C)), 1)
        self.split = np.digitize(share + share.T, [0.8, 0.9])            # (C, C), symmetric: 0 train, 1 val, 2 test
        self.fingerprint = hashlib.sha256(self.free.tobytes() + self.split.tobytes()).hexdigest()

    def flood(self, start):
        """Steps from `start` to each cell, breadth first."""
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
        """A shortest path, as the cells after `start`. Where two ways are equally short, either."""
        path = [start]
        while path[-1] != goal:
            nearer = [v for v in self.neighbours[path[-1]] if self.distance[v, goal] < self.distance[path[-1], goal]]
            path.append(nearer[rng.integers(len(nearer))] if len(nearer) > 1 else nearer[0])
        return path[1:]

    def simple(self, start, goal, rng):
        """A random path that visits no cell twice: a depth-first search that turns at random. In a tree, the only one there is."""
        path, seen = [start], {start}
        while path[-1] != goal:
            new = [v for v in self.neighbours[path[-1]] if v not in seen]
            if new:
                path.append(new[rng.integers(len(new))])
                seen.add(path[-1])
            else:
                path.pop()
        return path[1:]


# ----------------------------------------------------------------------------------------------------------------- tasks
class Tasks(NamedTuple):
    """x (N, L) int64: walks, 0 beyond their lengths n (N,). at (N, L) bool: the first visits that are meant as subgoals; K of them a row."""
    x: torch.Tensor
    n: torch.Tensor
    at: torch.Tensor

    def subgoals(self, row):
        return self.x[row, self.at[row]].tolist()

    def walk(self, row):
        return self.x[row, :self.n[row]].tolist()


def draw(maze, rng, split, K, low, high, paths):
    """One task of K subgoals and low..high cells, as (walk, positions of the subgoals in it); None if this try did not lead to one."""
    near = 1.5 * (high - 1) / (K - 1)                                    # legs up to 1.5 times their share of the limit, or few would fit it
    walk, positions = [int(rng.integers(len(maze.cells)))], [0]
    while len(positions) < K:
        here = walk[-1]
        choices = (maze.split[here] == split) & (maze.distance[here] <= near)
        choices[[walk[p] for p in positions]] = False                    # subgoals are distinct
        choices = choices.nonzero()[0]
        if len(choices) == 0:
            return None
        walk += getattr(maze, paths)(here, int(choices[rng.integers(len(choices))]), rng)
        positions.append(len(walk) - 1)
    return (walk, positions) if low <= len(walk) <= high else None


def draw_tasks(maze, seed, split, N, Ks, low, high, L, paths="shortest", repeat=False):
    """N tasks with K from the list Ks in turn, each subgoal list once unless `repeat`, as Tasks of width L."""
    rng = np.random.default_rng([seed, split, *Ks])
    found, seen, tries = [], set(), 0
    while len(found) < N:
        tries += 1
        if tries > 200 * N + 2000:
            raise Fail(f"the maze ({maze.name}) has too few {SPLITS[split]} tasks with {Ks[len(found) % len(Ks)]} subgoals and {low}..{high} "
                       f"cells: {len(found)} of {N} found; ask for fewer, or take a larger --size")
        task = draw(maze, rng, split, Ks[len(found) % len(Ks)], low, high, paths)
        if task is None:
            continue
        name = tuple(task[0][p] for p in task[1])
        if repeat or name not in seen:
            seen.add(name)
            found.append(task)
    x, at = torch.zeros(N, L, dtype=torch.int64), torch.zeros(N, L, dtype=torch.bool)
    for row, (walk, positions) in enumerate(found):
        x[row, :len(walk)] = torch.tensor(walk)
        at[row, positions] = True
    return Tasks(x, torch.tensor([len(walk) for walk, _ in found]), at)


# ----------------------------------------------------------------------------------------------------------------- the referee
def wrong(free, cells, path, subgoals):
    """What is wrong with a path, in a few words; None if it solves the task. path, subgoals: token ids; cells[v] = (row, column).

    Shares nothing with the generator but the picture of the maze: looks at coordinates, not at neighbour lists or distances.
    """
    if not path:
        return "empty"
    if not all(0 <= v < len(cells) and free[cells[v]] for v in path):
        return "not a free cell"
    places = [cells[v] for v in path]
    if any(abs(r - s) + abs(c - d) != 1 for (r, c), (s, d) in zip(places, places[1:])):
        return "a jump"
    if path[0] != subgoals[0]:
        return "wrong start"
    if path[-1] != subgoals[-1]:
        return "wrong end"
    rest = iter(path)
    if not all(goal in rest for goal in subgoals):                       # `in` consumes the iterator: a subsequence test
        return "a subgoal missed"
    return None


# ----------------------------------------------------------------------------------------------------------------- what a model is given
def even_pins(K, L, length):
    """Canvas positions of K subgoals, the last one at `length` - 1. All of it is known without the path."""
    last = min(max(round(length), K), L) - 1
    return [j * last // (K - 1) for j in range(K)]


def spread(tasks, L, blank):
    """The same tasks on a canvas of L slots with evenly pinned subgoals: each leg starts at its pin, and blanks fill up what it leaves.

    Tasks with a leg longer than the distance of its pins are left out: this canvas cannot hold them.
    """
    rows, x, at = [], torch.full((len(tasks.x), L), blank), torch.zeros(len(tasks.x), L, dtype=torch.bool)
    for row in range(len(tasks.x)):
        walk, old = tasks.walk(row), tasks.at[row].nonzero()[:, 0].tolist()
        new = even_pins(len(old), L, L)
        if all(b - a <= d - c for a, b, c, d in zip(old, old[1:], new, new[1:])):
            rows.append(row)
            at[row, new] = True
            for a, b, c in zip(old, old[1:] + [len(walk)], new):
                x[row, c:c + b - a] = torch.tensor(walk[a:b])
    return Tasks(x[rows], torch.full((len(rows),), L), at[rows])


def starts(tasks, code, L, fixed, pins=None):
    """The states that sampling starts from, (y, n, opened): the subgoals are given, the rest is to be found.

    With insertion: the K subgoals side by side, the gaps between them open, the one before the first and the one after the last closed.
    On a fixed canvas: L slots of which pins[K] hold the subgoals; without pins, their true positions.
    """
    def start(row):
        goals = tasks.subgoals(row)
        where = pins[len(goals)] if pins else tasks.at[row].nonzero()[:, 0].tolist()
        return sample.start_from([[v] for v in goals], [b - a - 1 for a, b in zip(where, where[1:])], code, L, fixed, end=None, end_open=fixed, anchored=False)
    return sample.stack([start(row) for row in range(len(tasks.x))], code)


def make_batch(step, tasks, code, args):
    """All that is random in a training step: a pure function of (seed, step). The subgoals are frozen: never absent, never masked."""
    torch.manual_seed(args.seed * 1_000_003 + step)
    rows = torch.randint(len(tasks.x), (args.batch_size,))
    n = tasks.n[rows]
    x1, n1 = train.canvas(tasks.x[rows, :int(n.max())], n, args, end=code.V - 1)
    frozen = tasks.at[rows, :x1.shape[1]]
    d1, (t, dt) = rates.digits(code, x1, n1), train.draw_times(args.batch_size, args.t_power)
    noised = interpolant.interpolate(d1, n1, t, *train.schedules(args), frozen, mask=code.mask, pad=code.pad)
    return SimpleNamespace(x1=x1, n1=n1, d1=d1, t=t, dt=dt, frozen=frozen, noised=noised, tokens=int(n.sum()))


# ----------------------------------------------------------------------------------------------------------------- training
# What a resumed run may not change.
FIXED = ("method", "size", "open", "seed", "paths", "K", "hard", "limit", "block_size", "train_tasks", "ell", "n_layer", "n_head", "n_embd", "batch_size")


def train_method(method, maze, tasks, val, args, stop):
    """Train one method in args.out_dir/method, or go on where it stopped. Returns how many steps were taken."""
    folder, base = os.path.join(args.out_dir, method), method.removesuffix("-blank")
    args = SimpleNamespace(**{**vars(train.Args()), **vars(args), "method": base, "insertion": train.METHODS[base],        # the rest as train.py
                              "ell": args.ell if "prime" in base else 1})
    if method != base:
        tasks, val = (spread(some, args.block_size, blank=len(maze.cells)) for some in (tasks, val))
    run = {name: getattr(args, name) for name in FIXED} | {"method": method, "maze": maze.fingerprint}

    # 1. Network, averaged network, optimizer; where a run is resumed, its state.
    torch.manual_seed(args.seed)
    device = model.pick_device(args.device)
    config = model.Config(V=len(maze.cells) + (args.insertion == "instant"), ell=args.ell, block_size=args.block_size,     # + 1: end-of-text
                          insertion=args.insertion, n_layer=args.n_layer, n_head=args.n_head, n_embd=args.n_embd)
    net, averaged = model.build(config).to(device), model.build(config).to(device).eval().requires_grad_(False)
    optimizers = train.optimizers_for(net, args)
    ema, step, last_saved = {k: v.clone() for k, v in net.state_dict().items()}, 0, None
    if model.checkpoints(folder) and not args.overwrite:
        if args.init_from != "resume":
            raise Fail(f"{folder} holds a run: go on with --init_from resume, start again with --overwrite, or name another --out_dir")
        content = model.newest_good(folder, print)
        check_same(content.get("run", {}), run, folder)
        net.load_state_dict(content["model"])
        for optimizer, state in zip(optimizers, content["optimizer"], strict=True):
            optimizer.load_state_dict(state)
        ema, step, last_saved = {k: v.to(device) for k, v in content["ema"].items()}, content["step"], content["step"]
    averaged.load_state_dict(ema, assign=True)                          # its weights are `ema`, which update_ema changes in place
    if device == "cuda":
        net.trunk = torch.compile(net._trunk, dynamic=True)
    loss_of = lambda network, batch: torch.stack([part.sum() for part in train.losses(network, net.code, batch, slice(None), args)]) / batch.tokens
    cast = lambda: torch.autocast(device, torch.bfloat16, enabled=device == "cuda")
    os.makedirs(folder, exist_ok=True)
    log = Log(os.path.join(folder, "log.csv"), step)
    start, began, recent = step, time.perf_counter(), []
    print(f"{method}: {len(tasks.x):,} tasks, {net.count()[0] / 1e6:.2f}M parameters, {device}, {folder}/", flush=True)

    # 2. The loop.
    while step < args.max_iters and not stop.asked:
        batch = make_batch(step, tasks, net.code, args)
        with cast():
            loss = loss_of(net, batch)
        loss.sum().backward()
        lr = train.learning_rate(step, args)
        norm = train.apply_gradients(net, optimizers, lr, args.grad_clip)
        train.update_ema(ema, net, step, args.ema)
        recent.append(loss.detach())
        step += 1
        if step % args.log_interval == 0 or step == args.max_iters:
            u, i = torch.stack(recent).mean(0).tolist()
            seconds, recent = (time.perf_counter() - began) / (step - start), []
            log.add(step=step, loss=u + i, unmask=u, insert=i, lr=lr, gnorm=float(norm), tokens=batch.tokens)
            trim()
            print(f"step {step}/{args.max_iters} | loss {u + i:.3f} (unmask {u:.3f} insert {i:.3f}) | lr {lr:.1e} | gnorm {norm:.2f} | "
                  f"{1000 * seconds:.0f} ms | {batch.tokens / seconds / 1000:.1f}k tok/s | eta {(args.max_iters - step) * seconds / 60:.1f}m", flush=True)
        if step % args.eval_interval == 0 or step == args.max_iters or stop.asked:
            with torch.no_grad(), cast():
                loss = float(loss_of(averaged, make_batch(-1, val, net.code, args)).sum())       # the same tasks, times and noise every time
            print(f"step {step}/{args.max_iters} | val {loss:.3f}", flush=True)
            log.add(step=step, val=loss)
            log.write()
            train.draw_curve(os.path.join(folder, "loss.png"), log.rows)
            model.save_checkpoint(folder, step, last_saved, 1, model=net.state_dict(), ema=ema, optimizer=[o.state_dict() for o in optimizers],
                                  config=asdict(config), run=run)
            last_saved = step
    if stop.asked:
        raise Fail(f"stopped after step {step} of {method}: go on with the same command and --init_from resume")
    return step - start


def check_same(before, now, folder):
    """The maze and the training of a run that is resumed must be those of now."""
    if before.get("maze") != now["maze"]:
        raise Fail(f"{folder} was trained in another maze (--size {before.get('size')} --open {before.get('open')} --seed {before.get('seed')}): "
                   "give the same flags, or name another --out_dir")
    differ = [f"--{k} {before.get(k)}" for k in now if before.get(k) != now[k]]
    if differ:
        raise Fail(f"{folder} was trained with {' '.join(differ)}: give the same flags, or name another --out_dir")


# ----------------------------------------------------------------------------------------------------------------- evaluation
def solve(loaded, tasks, pins, steps, order, watch=None):
    """A path for each task, as lists of cells; end-of-text tokens are dropped wherever they stand. pins: see starts."""
    fixed, paths = loaded.config.insertion == "instant", []
    end = loaded.config.V - 1 if fixed else None
    for i in range(0, len(tasks.x), 512):
        part = Tasks(*(a[i:i + 512] for a in tasks))
        start = starts(part, loaded.code, loaded.config.block_size, fixed, pins)
        x, n = sample.generate(loaded.predict, loaded.code, len(part.x), loaded.config.block_size, steps,
                               interpolant.schedule(loaded.config.insertion), interpolant.schedule("linear"), order, start=start, watch=watch)
        paths += [[v for v in row[:size] if v != end] for row, size in zip(x.tolist(), n.tolist())]
    return paths


def verdicts(maze, tasks, paths):
    return [wrong(maze.free, maze.cells, path, tasks.subgoals(row)) for row, path in enumerate(paths)]


def evaluate(arm, loaded, maze, tasks, pins, steps, order):
    """Success per K at one setting: rows for results.csv."""
    began = time.perf_counter()
    right = torch.tensor([verdict is None for verdict in verdicts(maze, tasks, solve(loaded, tasks, pins, steps, order))])
    rows, K = [], tasks.at.sum(1)
    for k in K.unique().tolist():
        good, n = int(right[K == k].sum()), int((K == k).sum())
        low, high = wilson(good, n)
        rows.append(dict(method=arm, K=k, order=order, steps=steps, success=f"{good / n:.4f}", low=f"{low:.4f}", high=f"{high:.4f}", n=n))
    percent = lambda row: " ".join(f"{100 * float(row[name]):.0f}" for name in ("success", "low", "high"))
    print(f"{arm:12} {order:10} {steps:5} | " + " | ".join("K = {}: {:>3} ({:>2}..{:>3})".format(r["K"], *percent(r).split()) for r in rows)
          + f" | {time.perf_counter() - began:.0f} s", flush=True)
    return rows


# ----------------------------------------------------------------------------------------------------------------- pictures
def pyplot():
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    return plt


def draw_walk(axes, maze, path, goals):
    """Walls grey, steps blue, what is no step dashed red, subgoals numbered. A mask in the path (None) interrupts it."""
    axes.imshow(~maze.free, cmap="Greys", vmax=1.6)
    axes.axis("off")
    at = lambda *cells: tuple(zip(*(maze.cells[v][::-1] for v in cells)))
    for a, b in zip(path, path[1:]):
        if a is not None and b is not None:
            axes.plot(*at(a, b), **(dict(color="C0", lw=2.5, alpha=0.7) if b in maze.neighbours[a] else dict(color="red", lw=0.8, ls="--")))
    if shown := {v for v in path if v is not None}:
        axes.plot(*at(*shown), "o", color="C0", ms=3)
    axes.plot(*at(*goals), "o", color="crimson", ms=9)
    for i, v in enumerate(goals, 1):
        axes.text(*maze.cells[v][::-1], str(i), color="white", ha="center", va="center", fontsize=6)


def draw_mazes(path, maze, tasks, examples):
    """A picture with a row per arm: a right path and a wrong one for each number of subgoals. examples: [(arm, paths)]."""
    plt = pyplot()
    K = tasks.at.sum(1)
    panels = [(k, right) for k in K.unique().tolist() for right in (True, False)]
    figure, axes = plt.subplots(len(examples), len(panels), figsize=(2.2 * len(panels), 2.5 * len(examples)), squeeze=False, dpi=90)
    for (arm, paths), row in zip(examples, axes):
        said = verdicts(maze, tasks, paths)
        for (k, right), panel in zip(panels, row):
            one = next((i for i in range(len(paths)) if K[i] == k and (said[i] is None) == right), None)
            panel.axis("off")
            panel.set_title(f"{arm}, K = {k}: " + (f"none {'right' if right else 'wrong'}" if one is None else said[one] or "right"), fontsize=7)
            if one is not None:
                draw_walk(panel, maze, paths[one], tasks.subgoals(one))
    figure.tight_layout()
    with aside(path, "wb") as f:
        figure.savefig(f, format="png")
    plt.close(figure)


def draw_growth(path, maze, goals, frames):
    """A gif of one path growing: the maze, and below it the tokens (grey: inserted, not yet revealed). frames: [(t, cells or None)]."""
    plt = pyplot()
    from matplotlib.animation import FuncAnimation, PillowWriter
    frames = [f for f, before in zip(frames, [None] + frames) if before is None or f[1] != before[1]]
    frames += [frames[-1]] * 8
    figure, (top, bottom) = plt.subplots(2, 1, figsize=(4, 4.6), height_ratios=[10, 1], dpi=80)

    def frame(k):
        t, row = frames[k]
        top.clear(), bottom.clear()
        draw_walk(top, maze, row, goals)
        top.set_title(f"t = {t:.2f}, {len(row)} cells", fontsize=8)
        bottom.bar(range(len(row)), 1, width=0.9, color=["lightgrey" if v is None else "crimson" if v in goals else "C0" for v in row])
        bottom.set(xlim=(-0.6, len(frames[-1][1]) - 0.4), ylim=(0, 1))
        bottom.axis("off")

    FuncAnimation(figure, frame, frames=len(frames)).save(path + ".part.gif", writer=PillowWriter(fps=10))
    os.replace(path + ".part.gif", path)
    plt.close(figure)


def grow(loaded, maze, task, steps, path):
    """Generate one path for `task` (a Tasks of one row), watched; the gif shows the first right one of at most 10."""
    def watch(t, y, n):
        cells = loaded.code.decode(torch.where(y == loaded.code.mask, 0, y)[0, :n[0]]).tolist()
        shown = (y != loaded.code.mask)[0, :n[0]].all(1).tolist()
        frames.append((t, [v if there and v < len(maze.cells) else None for v, there in zip(cells, shown)]))

    for _ in range(10):
        frames = [(0.0, task.subgoals(0))]
        if verdicts(maze, task, solve(loaded, task, None, steps, "random", watch))[0] is None:
            break
    draw_growth(path, maze, task.subgoals(0), frames)


# ----------------------------------------------------------------------------------------------------------------- the command line
# What a size needs, taken where the user names nothing else. Sizes between take the next larger row.
PRESETS = {
    11: dict(K="2,5", hard=7, limit=48, block_size=64),
    21: dict(K="2,7,12", hard=15, limit=160, block_size=224),
    41: dict(K="2,7,12", hard=16, limit=400, block_size=512, train_tasks=50_000, n_layer=8, n_head=8, n_embd=512, batch_size=256,
             learning_rate=1e-3, max_iters=10_000),
}


@dataclass
class Args:
    size: int = flag(11, "side of the maze, odd")
    open: float = flag(0.0, "share of the inner walls that are opened: 0 is a perfect maze, with one way between any two cells", high=1)
    paths: str = flag("shortest", "how subgoals are joined", ("shortest", "simple"))
    K: str = flag("2,5", "how many subgoals, with start and end, test tasks have")
    hard: int = flag(7, "subgoals of the hard split, more than any above; 0: no hard split", low=0)
    limit: int = flag(48, "the most cells of a training path")
    block_size: int = flag(64, "the most cells of a hard path; the MDM's canvas")
    train_tasks: int = flag(20_000, "training tasks")
    test_tasks: int = flag(100, "test tasks per K")
    methods: str = flag("flexmdm,mdm", "of flexmdm, mdm, flexprime, prime, mdm-blank, prime-blank")
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
    steps: str = flag("16,64,256,1024", "sampling steps")
    orders: str = flag("random,top_prob,margin", "which masks are revealed first")
    out_dir: str = flag("out-maze", "results.csv, mazes.png, growth.gif, and a folder per method")
    init_from: str = flag("scratch", "scratch or resume", ("scratch", "resume"))
    overwrite: bool = flag(False, "start again in an out_dir that holds a run")
    device: str = flag("auto", "auto, cpu, cuda, mps")
    seed: int = flag(0, "fixes the maze, the tasks, the training and the samples", low=0)


METHODS = [m for m in train.METHODS if m != "ar"] + ["mdm-blank", "prime-blank"]


def checked(args):
    """Fill in the preset, turn lists of words into lists; one sentence for what cannot be."""
    for name, value in PRESETS[min((size for size in PRESETS if size >= args.size), default=max(PRESETS))].items():
        if name not in args.named:
            setattr(args, name, value)
    try:
        args.K_list, args.step_list = ([int(word) for word in text.split(",")] for text in (args.K, args.steps))
    except ValueError:
        raise Fail(f"--K {args.K} and --steps {args.steps} must be whole numbers with commas between them") from None
    args.method_list, args.order_list = args.methods.split(","), args.orders.split(",")
    for name, words, known in (("methods", args.method_list, METHODS), ("orders", args.order_list, sample.ORDERS)):
        for word in words:
            if word not in known:
                raise Fail(f"--{name} {word}: choose from {', '.join(known)}")
    if min(args.K_list) < 2 or min(args.step_list) < 1:
        raise Fail("--K counts the start and the end, so it is at least 2; --steps are at least 1")
    if args.hard and args.hard <= max(args.K_list):
        raise Fail(f"--hard {args.hard} must be more than the largest --K, {max(args.K_list)} (0: no hard split)")
    if not max(args.K_list) <= args.limit < args.block_size:
        raise Fail(f"--limit {args.limit} must be at least the largest --K and less than --block_size {args.block_size}")
    return args


def run(argv=None):
    args = checked(parse(Args, __doc__, argv))

    # 1. The maze and its tasks.
    maze, ks, L = Maze(args.size, args.open, args.seed), list(range(2, max(args.K_list) + 1)), args.block_size
    if max(*args.K_list, args.hard) > len(maze.cells):
        raise Fail(f"--size {args.size} has {len(maze.cells)} free cells, which cannot hold {max(*args.K_list, args.hard)} subgoals: "
                   "take a larger --size, or lower --K and --hard")
    some = lambda split, N, Ks, low, high, repeat=False: draw_tasks(maze, args.seed, split, N, Ks, low, high, L, args.paths, repeat)
    tasks, val = some(0, args.train_tasks, ks, 2, args.limit, repeat=True), some(1, args.batch_size, ks, 2, args.limit, repeat=True)
    tests = [some(2, args.test_tasks, [k], 2, args.limit) for k in args.K_list]
    tests += [some(2, args.test_tasks, [args.hard], args.limit + 1, L)] if args.hard else []
    test = Tasks(*(torch.cat(parts) for parts in zip(*tests)))
    print(f"maze {maze.name}: {len(maze.cells)} cells; the paths of the test tasks have " +
          ", ".join(f"{part.n.float().mean():.0f} cells on average (K = {int(part.at[0].sum())})" for part in tests), flush=True)

    # 2. What an MDM can know of where subgoals stand: the mean training length for that K (the hard split's K never occurs: extrapolated).
    mean = {k: float(tasks.n[tasks.at.sum(1) == k].float().mean()) for k in ks}
    mean[args.hard] = 1 + (args.hard - 1) * (mean[ks[-1]] - 1) / (ks[-1] - 1)
    even, whole = ({k: even_pins(k, L, length or L) for k, length in lengths.items() if k} for lengths in (mean, dict.fromkeys(mean)))

    # 3. Train.
    held, stop = lock(args.out_dir), Stop()
    trained = sum([train_method(method, maze, tasks, val, args, stop) for method in args.method_list])
    loaded = {m: model.load(os.path.join(args.out_dir, m, "ckpt.pt"), model.pick_device(args.device)) for m in args.method_list}
    arms = []                                                           # (name, model, pins)
    for m in args.method_list:
        arms += [(m, loaded[m], whole)] if m.endswith("-blank") else [(m, loaded[m], None)] if train.METHODS[m] != "instant" else \
            [(f"{m} even", loaded[m], even), (f"{m} true", loaded[m], None)]

    # 4. Evaluate. Where nothing new was trained, a table that an earlier run began is completed.
    path, rows = os.path.join(args.out_dir, "results.csv"), []
    if not trained and os.path.exists(path):
        with open(path, newline="") as f:
            rows = list(csv.DictReader(f))
    done = {(r["method"], r["order"], int(r["steps"])) for r in rows if int(r["n"]) == args.test_tasks}
    print("success in %, with its 95% interval:")
    for arm, net, pins in arms:
        for order in args.order_list:
            for steps in args.step_list:
                if stop.asked:
                    raise Fail(f"stopped while evaluating: the same command with --init_from resume completes {path}")
                torch.manual_seed(args.seed)
                trim()
                if (arm, order, steps) not in done:
                    rows += evaluate(arm, net, maze, test, pins, steps, order)
                    with aside(path, newline="") as f:
                        table = csv.DictWriter(f, list(rows[0]), lineterminator="\n")
                        table.writeheader()
                        table.writerows(rows)

    # 5. Draw.
    few = torch.cat([torch.arange(len(part.x))[:12] + i * args.test_tasks for i, part in enumerate(tests)])
    few = Tasks(*(a[few] for a in test))
    draw_mazes(os.path.join(args.out_dir, "mazes.png"), maze, few, [(arm, solve(net, few, pins, min(256, max(args.step_list)), "random")) for arm, net, pins in arms])
    grow(arms[0][1], maze, Tasks(*(a[:1] for a in tests[len(args.K_list) - 1])), min(128, max(args.step_list)), os.path.join(args.out_dir, "growth.gif"))
    print(f"{args.out_dir}/: results.csv, mazes.png, growth.gif")


if __name__ == "__main__":
    main(run)
