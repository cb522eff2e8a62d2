"""steps.png: the quality of samples against network calls, from the csv of evaluate.py.

    python evaluate.py --steps 8,32,128 --sampler parallel,exact --csv steps.csv
    python -m figures.steps assets/steps.png steps.csv ...
"""
import csv
import math
import sys

from matplotlib.figure import Figure

from common import Fail, main
from figures import images

PANELS = {"valid": "share of valid samples", "length_tv": "length total variation",
          "frechet": "Frechet distance"}        # a column, and what it is


def panels(rows):
    """The columns that all rows have values for"""
    return [column for column in PANELS
            if not any(math.isnan(row.get(column, math.nan)) for row in rows)]


def name_of(row, rows):
    """What tells this line from the others: its method, and where that is not enough, its run"""
    name, kind = row["method"], (row["method"], row["ell"])
    if row["ell"] > 1:
        name += f", ell {row['ell']:.0f}"
    if len({r["run"] for r in rows if (r["method"], r["ell"]) == kind}) > 1:
        name += f" ({row['run']})"
    if row["sampler"] == "exact":
        name += ", exact"
    return name


def draw(path, rows):
    """Write a .png: a line for each run and sampler. rows: dicts with the columns of evaluate.py"""
    shown, lines = panels(rows), {}
    if not shown:
        raise Fail(f"{path} would be empty: draw texts and images apart")
    for row in rows:
        lines.setdefault((row["run"], row["sampler"]), []).append(row)
    figure = Figure((4.5 * len(shown), 3.6), layout="tight")
    for axes, column in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown):
        for line in lines.values():
            line.sort(key=lambda row: row["calls"])
            calls, values = [row["calls"] for row in line], [row[column] for row in line]
            axes.plot(calls, values, "o-", ms=4, label=name_of(line[0], rows))
        axes.set(xlabel="network calls", ylabel=PANELS[column], ylim=(0, None))
        axes.set_xscale("log", base=2)
        axes.legend(frameon=False)
    images.save_figure(path, figure)


def read(path):
    """A csv of evaluate.py -> rows with numbers"""
    try:
        with open(path, newline="") as f:
            rows = list(csv.DictReader(f))
        for row in rows:
            row |= {column: float(row[column] or "nan") for column in ("ell", "calls", *PANELS)}
        return rows
    except (OSError, ValueError, KeyError, csv.Error) as e:
        raise Fail(f"{path} is no table of evaluate.py --csv ({e})") from None


def run():
    if len(sys.argv) < 3:
        raise Fail("name the picture and a table: python -m figures.steps OUT.png CSV ..")
    draw(sys.argv[1], [row for path in sys.argv[2:] for row in read(path)])


if __name__ == "__main__":
    main(run)
