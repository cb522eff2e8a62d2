"""Pictures of maze.py: paths that a model found (mazes.png), and one as it grows (growth.gif)."""
import os

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt                                         # noqa: E402
from matplotlib.animation import FuncAnimation, PillowWriter            # noqa: E402

from common import atomic_open                                          # noqa: E402

GOAL, STEP, JUMP, MASK = "crimson", "C0", "darkorange", "lightgrey"


def points(maze, cells):
    """Cells -> their x and their y in the picture"""
    return [maze.cells[v][1] for v in cells], [maze.cells[v][0] for v in cells]


def draw_path(axes, maze, path, goals, jumps):
    """Steps are blue, subgoals numbered. Cells that follow each other and are no neighbours are
    joined by a dashed line if `jumps`; while more may come between them, by none. None: a mask."""
    axes.imshow(~maze.free, cmap="Greys", vmax=1.6)
    axes.axis("off")
    for a, b in zip(path, path[1:]):
        if a is None or b is None:
            continue
        if b in maze.neighbours[a]:
            axes.plot(*points(maze, [a, b]), color=STEP, lw=2.5, solid_capstyle="round")
        elif jumps:                                 # rings: also where a path stands still
            axes.plot(*points(maze, [a, b]), "o", color=JUMP, lw=1.5, ls=(0, (2, 1.5)), ms=7,
                      mfc="none", mew=1.5, zorder=3)
    axes.plot(*points(maze, [v for v in path if v is not None]), "o", color=STEP, ms=3.5)
    axes.plot(*points(maze, goals), "o", color=GOAL, ms=9.5, zorder=4)
    for i, v in enumerate(goals, 1):
        r, c = maze.cells[v]
        number(axes, c, r, i)


def number(axes, x, y, i):
    axes.text(x, y, str(i), color="white", fontsize=6.5, ha="center", va="center_baseline",
              zorder=5)


def pick(answers, count=2):
    """A right one and a wrong one where there are both, otherwise two of what there is"""
    right = [answer for answer in answers if answer[2] is None]
    wrong = [answer for answer in answers if answer[2] is not None]
    return (right[:1] + wrong[:1] + right[1:] + wrong[1:])[:count]


def draw_examples(path, maze, examples, across):
    """examples: [(title, [(path, subgoals, what is wrong or None), ..])], `across` of them in a
    row, two panels each"""
    down, side = -(-len(examples) // across), 1.6 + 0.05 * len(maze.free)
    figure, axes = plt.subplots(down, 2 * across, figsize=(2 * across * side, down * (side + 0.3)),
                                squeeze=False, dpi=90)
    panels = axes.flatten().tolist()
    for title, answers in examples:
        for found, goals, verdict in pick(answers):
            panel = panels.pop(0)
            draw_path(panel, maze, found, goals, jumps=True)
            color = "black" if verdict is None else "firebrick"
            panel.set_title(f"{title}: {verdict or 'right'}", fontsize=8, color=color)
    for panel in panels:
        panel.remove()
    figure.tight_layout()
    with atomic_open(path, "wb") as f:
        figure.savefig(f, format="png")
    plt.close(figure)


def draw_tokens(axes, row, goals, width):
    """A box for each token: grey masks, blue cells, red subgoals with their numbers"""
    axes.clear()
    axes.set(xlim=(-0.6, width - 0.4), ylim=(0, 1))
    axes.axis("off")
    colors, i = [], 0
    for x, v in enumerate(row):
        colors.append(MASK if v is None else STEP)
        if i < len(goals) and v == goals[i]:
            i, colors[x] = i + 1, GOAL
            number(axes, x, 0.5, i)
    axes.bar(range(len(row)), 1, width=0.85, color=colors)


def draw_growth(path, maze, goals, frames):
    """A gif of a path: the maze, and below it the tokens. frames: [(t, cells, None for a mask)]"""
    frames = [f for f, before in zip(frames, [(0, []), *frames]) if f[1] != before[1]]
    last, pause = len(frames) - 1, 16               # frames for which the whole path stays
    figure, (top, bottom) = plt.subplots(2, 1, figsize=(4, 4.6), height_ratios=[13, 1], dpi=80)
    figure.subplots_adjust(0.02, 0.02, 0.98, 0.93, hspace=0.03)

    def draw_frame(k):
        t, row = frames[min(k, last)]
        top.clear()
        draw_path(top, maze, row, goals, jumps=k >= last)
        title = f"t = {t:.2f}: {len(row)} tokens, {row.count(None)} of them masks"
        top.set_title(title, fontsize=9)
        draw_tokens(bottom, row, goals, width=len(frames[-1][1]))

    film = FuncAnimation(figure, draw_frame, frames=len(frames) + pause)
    film.save(path + ".part.gif", writer=PillowWriter(fps=8))
    os.replace(path + ".part.gif", path)
    plt.close(figure)
