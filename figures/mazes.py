"""Pictures of maze.py: paths that a model found (mazes.png), and one as it grows (growth.gif)."""
import itertools

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from figures import images

GOAL, STEP, JUMP, MASK = "crimson", "C0", "darkorange", "lightgrey"


def draw_path(axes, maze, path, goals, jumps=True):
    """Steps are blue, subgoals red and numbered. Dashes (if `jumps`) join cells that follow each
    other and are no neighbours. -1 in a path is a mask."""
    axes.imshow(~maze.free, cmap="Greys", vmax=1.6)
    axes.axis("off")

    def plot(cells, *style, **more):
        rows, columns = np.reshape([maze.cells[v] for v in cells], (-1, 2)).T
        axes.plot(columns, rows, *style, **more)

    plot([v for v in path if v >= 0], "o", color=STEP, ms=3.5)
    for a, b in itertools.pairwise(path):
        if a >= 0 and b in maze.neighbours[a]:
            plot([a, b], color=STEP, lw=2.5)
        elif min(a, b) >= 0 and jumps:              # rings show where a path stands still
            plot([a, b], "o--", color=JUMP, ms=12, mfc="none", zorder=3)
    plot(goals, "o", color=GOAL, ms=9.5, zorder=4)
    for i, v in enumerate(goals, 1):
        row, column = maze.cells[v]
        axes.text(column, row, str(i), color="white", fontsize=6.5, ha="center",
                  va="center_baseline", zorder=5)


def pick(answers):
    """A right and a wrong answer where there are both, otherwise two of what there is"""
    right = [answer for answer in answers if answer[2] is None]
    wrong = [answer for answer in answers if answer[2] is not None]
    return (right[:1] + wrong[:1] + right[1:] + wrong[1:])[:2]


def draw_examples(path, maze, examples, across):
    """examples: [(title, [(path, subgoals, what is wrong or None), ..])], `across` of them in a
    row, two panels each"""
    down, side = len(examples) // across, 1.6 + 0.05 * len(maze.free)
    figure = Figure((2 * across * side, down * (side + 0.3)), layout="tight", dpi=90)
    panels = figure.subplots(down, 2 * across, squeeze=False).reshape(len(examples), 2)
    for pair, (title, answers) in zip(panels, examples):
        for panel in pair:
            panel.axis("off")                       # also where there is one answer only
        for panel, (found, goals, verdict) in zip(pair, pick(answers)):
            draw_path(panel, maze, found, goals)
            color = "firebrick" if verdict else "black"
            panel.set_title(f"{title}: {verdict or 'right'}", fontsize=8, color=color)
    images.save_figure(path, figure)


def draw_growth(path, maze, goals, frames):
    """A gif of a path: the maze, and below it the tokens (grey masks, blue cells, red subgoals).
    frames: [(t, cells)]"""
    figure, pictures = Figure((4, 4.6), dpi=80), []
    canvas, last = FigureCanvasAgg(figure), frames[-1][1]
    slots = max(len(row) for _, row in frames)
    for t, row in images.thin(frames):
        figure.clear()
        top, bottom = figure.subplots(2, 1, height_ratios=[13, 1])
        draw_path(top, maze, row, goals, jumps=row is last)
        masks = row.count(-1)
        top.set_title(f"t = {t:.2f}: {len(row) - masks} cells, {masks} masks", fontsize=9)
        colours = {v: STEP for v in row} | {v: GOAL for v in goals} | {-1: MASK}
        bottom.bar(range(len(row)), 1, width=0.85, color=[colours[v] for v in row])
        bottom.set(xlim=(-0.6, slots - 0.4), ylim=(0, 1))
        bottom.axis("off")
        canvas.draw()
        pictures.append(np.array(canvas.buffer_rgba())[:, :, :3])
    images.save(path, pictures)
