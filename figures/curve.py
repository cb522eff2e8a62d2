"""loss.png: the training loss and the validation bound of a run, from the rows of its log.csv"""
from common import atomic_open


def points(rows, name):
    """The steps and the values of the rows that have a value in column `name`: two lists"""
    used = [row for row in rows if row.get(name) not in (None, "")]
    return [int(row["step"]) for row in used], [float(row[name]) for row in used]


def draw(path, rows):
    """Write a .png. rows: dicts with step, and loss or val, numbers or text; there may be none."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    figure, axes = plt.subplots(figsize=(7, 4), dpi=100)
    steps, loss = points(rows, "loss")
    axes.plot(steps, loss, lw=0.8, alpha=0.6, label="training loss")
    val_steps, val = points(rows, "val")
    axes.plot(val_steps, val, "o-", ms=3.5, label="validation bound (averaged weights)")
    axes.set(xlabel="step", ylabel="nats per token")
    axes.legend(frameon=False)
    figure.tight_layout()
    with atomic_open(path, "wb") as f:
        figure.savefig(f, format="png")
    plt.close(figure)
