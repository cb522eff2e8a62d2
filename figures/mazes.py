"""Pictures of maze.py: paths that a model found (mazes.png), and one as it grows (growth.gif)."""
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from common import atomic_open
from figures import images

GOAL, STEP, JUMP, MASK = "crimson", "C0", "darkorange", "lightgrey"


def draw_path(axes, maze, path, goals, jumps=True):
    """Steps are blue, subgoals red and numbered. Cells that follow each other and are no neighbours
    are joined by a dashed line if `jumps`. In the path None is a mask."""
    axes.imshow(~maze.free, cmap="Greys", vmax=1.6)
    axes.axis("off")

    def plot(cells, *style, **more):
        x, y = [maze.cells[v][1] for v in cells], [maze.cells[v][0] for v in cells]
        axes.plot(x, y, *style, **more)

    for a, b in zip(path, path[1:]):
        if None in (a, b):
            continue
        if b in maze.neighbours[a]:
            plot([a, b], color=STEP, lw=2.5)
        elif jumps:                                 # rings: also where a path stands still
            plot([a, b], "o--", color=JUMP, ms=7, mfc="none", zorder=3)
    plot([v for v in path if v is not None], "o", color=STEP, ms=3.5)
    plot(goals, "o", color=GOAL, ms=9.5, zorder=4)
    for i, v in enumerate(goals, 1):
        row, column = maze.cells[v]
        axes.text(column, row, str(i), color="white", fontsize=6.5, ha="center",
                  va="center_baseline", zorder=5)


def pick(answers, count=2):
    """A right one and a wrong one where there are both, otherwise two of what there is"""
    right = [answer for answer in answers if answer[2] is None]
    wrong = [answer for answer in answers if answer[2] is not None]
    return (right[:1] + wrong[:1] + right[1:] + wrong[1:])[:count]


def draw_examples(path, maze, examples, across):
    """examples: [(title, [(path, subgoals, what is wrong or None), ..])], `across` of them in a
    row, two panels each"""
    down, side = len(examples) // across, 1.6 + 0.05 * len(maze.free)
    figure = Figure((2 * across * side, down * (side + 0.3)), layout="tight", dpi=90)
    panels = figure.subplots(down, 2 * across, squeeze=False).reshape(len(examples), 2)
    for pair, (title, answers) in zip(panels, examples):
        for panel in pair:
            panel.axis("off")
        for panel, (found, goals, verdict) in zip(pair, pick(answers)):
            draw_path(panel, maze, found, goals)
            color = "firebrick" if verdict else "black"
            panel.set_title(f"{title}: {verdict or 'right'}", fontsize=8, color=color)
    with atomic_open(path, "wb") as f:
        figure.savefig(f, format="png")


def draw_growth(path, maze, goals, frames):
    """A gif of a path: the maze, and below it the tokens, grey masks, blue cells and red subgoals.
    frames: [(t, cells, None for a mask)]"""
    figure, pictures = Figure((4, 4.6), dpi=80), []
    canvas = FigureCanvasAgg(figure)
    for i, (t, row) in enumerate(frames):
        figure.clear()
        top, bottom = figure.subplots(2, 1, height_ratios=[13, 1])
        draw_path(top, maze, row, goals, jumps=i + 1 == len(frames))
        top.set_title(f"t = {t:.2f}: {len(row)} tokens, {row.count(None)} masks", fontsize=9)
        colours = {v: STEP for v in row} | {v: GOAL for v in goals} | {None: MASK}
        bottom.bar(range(len(row)), 1, width=0.85, color=[colours[v] for v in row])
        bottom.set(xlim=(-0.6, len(frames[-1][1]) - 0.4), ylim=(0, 1))
        bottom.axis("off")
        canvas.draw()
        pictures.append(np.array(canvas.buffer_rgba())[:, :, :3])
    images.save(path, pictures)
