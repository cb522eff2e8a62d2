"""loss.png: the training loss and the validation bound of a run, from the rows of its log.csv"""
from matplotlib.figure import Figure

from figures import images


def draw(path, rows):
    """Write a .png. rows: dicts with step, and loss or val, numbers or text; there may be none."""
    figure = Figure((7, 4), layout="tight")
    axes = figure.subplots()
    kinds = [("loss", "-", "training loss"), ("val", "o-", "validation bound (averaged weights)")]
    for name, style, label in kinds:
        used = [row for row in rows if row.get(name) not in (None, "")]
        steps, values = [int(row["step"]) for row in used], [float(row[name]) for row in used]
        axes.plot(steps, values, style, lw=0.8, ms=3.5, label=label)
    axes.set(xlabel="step", ylabel="nats per token")
    axes.legend(frameon=False)
    images.save_figure(path, figure)
