"""steps.png: the quality of samples against network calls, from the csv of evaluate.py.

    python evaluate.py --steps 8,32,128 --sampler parallel,exact --csv steps.csv
    python -m figures.steps assets/steps.png steps.csv ...
"""
import csv
import math
import sys

from common import Fail, atomic_open, main


def panels(rows):
    """(column, unit, label) of the pictures that these rows have values for"""
    known = [("valid", 100, "valid samples, %"), ("length_tv", 1, "length total variation"),
             ("frechet", 1, "Frechet distance")]
    return [panel for panel in known
            if not any(math.isnan(row.get(panel[0], math.nan)) for row in rows)]


def draw(path, rows):
    """Write a .png: a line for each run and sampler. rows: dicts with the columns of evaluate.py"""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    shown = panels(rows)
    size = (4.5 * len(shown), 3.6)
    figure, axes = plt.subplots(1, len(shown), figsize=size, dpi=100, squeeze=False)
    lines = dict.fromkeys((row["run"], row["sampler"]) for row in rows)     # in their order
    for axis, (column, unit, label) in zip(axes[0], shown):
        for run, sampler in lines:
            line = [row for row in rows if (row["run"], row["sampler"]) == (run, sampler)]
            calls, values = [row["calls"] for row in line], [unit * row[column] for row in line]
            axis.plot(calls, values, "o-", ms=4, label=name_of(line[0], rows))
        axis.set(xlabel="network calls", ylabel=label, ylim=(0, None))
        axis.set_xscale("log", base=2)
        axis.legend(frameon=False)
    figure.tight_layout()
    with atomic_open(path, "wb") as f:
        figure.savefig(f, format="png")
    plt.close(figure)


def name_of(row, rows):
    """What tells this line from the others: its method, and where that is not enough, its run"""
    name = row["method"]
    if row["ell"] > 1:
        name += f", ell {row['ell']:.0f}"
    kind = row["method"], row["ell"]
    if len({r["run"] for r in rows if (r["method"], r["ell"]) == kind}) > 1:
        name += f" ({row['run']})"
    if row["sampler"] == "exact":
        name += ", exact"
    return name


def read(path):
    """A csv of evaluate.py -> rows with numbers"""
    texts = ("run", "method", "sampler", "features")
    try:
        with open(path, newline="") as f:
            rows = list(csv.DictReader(f))
        return [{k: v if k in texts else float(v or "nan") for k, v in row.items()} for row in rows]
    except (OSError, ValueError, UnicodeDecodeError) as e:
        raise Fail(f"{path} is no table of evaluate.py --csv ({e})") from None


def run():
    if len(sys.argv) < 3:
        raise Fail("name a .png to write and one csv or more of evaluate.py")
    rows = [row for path in sys.argv[2:] for row in read(path)]
    draw(sys.argv[1], rows)


if __name__ == "__main__":
    main(run)
