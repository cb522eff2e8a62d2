"""The pictures: moving pictures of a generation, the loss curve, MDM-Prime's figures."""
import os
import random
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import interpolant
import sampler
from figures import curve, movie
from figures import prime as prime_figures
from prime import Code, idle_steps

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


class Letters:
    """A tokenizer: a, b, c, .., each of its own length"""
    eot = 7

    def decode(self, ids):
        return "".join("abcdefgh"[i] * (1 + i % 3) for i in ids if i != self.eot)


def anything(code, gaps):
    """A network that finds all tokens equally likely, and half a token missing in each gap"""
    def predict(y, n, t, at, given=None):
        log_g = torch.full((len(y), y.shape[1] + 1), -0.7) if gaps else None
        return torch.zeros(int(at.sum()), code.V), log_g
    return predict


def filmed(ell=1, insertion="linear", start=None, B=3, steps=16, most=100):
    """-> the film of a generation, of at most `most` frames, and every state as (t, y, n)"""
    code, fixed = Code(8, ell), insertion == "instant"
    first = sampler.begin(code, B, 12, fixed, start)
    states = [(0.0, first.y, first.n)]

    def watch(t, y, n):
        states.append((t, y.clone(), n.clone()))

    sampler.generate(anything(code, not fixed), code, B, 12, steps, interpolant.schedule(insertion),
                     interpolant.schedule("linear"), start=start, watch=watch)
    return movie.film_of(states, code, Letters(), most), states


def said_by(cells):
    return "".join(cell.text for cell in cells)


# -----------------------------------------------------------------------------
# recording

def slots(word):
    """'a_b' -> slots; _ is a mask"""
    return [(8 if c == "_" else ord(c) - ord("a"),) for c in word]


@pytest.mark.parametrize("old, new, kinds", [
    ("", "__", "ii"), ("ab", "ab", "gg"), ("_", "_b", "mr"), ("_b", "ab", "rg"),
    ("_", "_", "m"), ("ab", "a_b", "gig"), ("__", "_a_", "mri"),
    ("aa", "a_a_", "gigi"), ("_", "__", "mi"), ("a_b", "acb_", "grgi")])
def test_old_slots_are_found_again(old, new, kinds):
    """given, masked, inserted, revealed"""
    code = Code(8)
    before = movie.follow(None, slots(old), 0, code, Letters())
    cells = movie.follow(before, slots(new), 1, code, Letters())
    assert "".join(cell.kind[0] for cell in cells) == kinds
    assert all(cell in before for cell in cells if cell.since == 0)


@pytest.mark.parametrize("trial", range(20))
def test_every_old_slot_is_found(trial):
    """Reveals and insertions at once: no old slot is lost, digits stay, given ones are given."""
    rng, code = random.Random(trial), Code(4, 2)
    old = [tuple(rng.choice([0, 1, code.mask]) for _ in range(2)) for _ in range(rng.randrange(12))]
    new = [tuple(rng.randrange(2) if d == code.mask and rng.random() < 0.5 else d for d in slot)
           for slot in old]
    inserted = rng.randrange(6)
    for _ in range(inserted):
        new.insert(rng.randrange(len(new) + 1), (code.mask, code.mask))
    before = movie.follow(None, old, 0, code, Letters())
    cells = movie.follow(before, new, 1, code, Letters())
    assert [cell.digits for cell in cells] == new
    given = [cell for cell in before if cell.kind == "given"]
    assert [cell for cell in cells if cell.kind == "given"] == given
    assert sum(cell.since == 1 for cell in cells) >= inserted


@pytest.mark.parametrize("ell, insertion", [(1, "linear"), (3, "linear"), (2, "instant")])
def test_a_film_holds_every_state(ell, insertion):
    film, states = filmed(ell, insertion)
    digits = [[[cell.digits for cell in cells] for cells in documents] for _, documents in film]
    seen = [[[tuple(slot) for slot in row[:size]] for row, size in zip(y.tolist(), n.tolist())]
            for _, y, n in states]
    assert digits == seen[-len(digits):]
    assert all(sum(map(bool, rows)) < 2 for rows in seen[:-len(digits)])    # the blank beginning
    for i, (_, documents) in enumerate(film):
        assert all(cell.since <= i for cells in documents for cell in cells)
    kinds = {cell.kind for _, documents in film for cells in documents for cell in cells}
    assert kinds == ({"inserted", "revealed"} if insertion == "linear" else {"masked", "revealed"})
    assert {cell.kind for cells in film[-1][1] for cell in cells} == {"revealed"}


def test_given_text_stays_given():
    code = Code(8)
    y, n, gaps = sampler.start_from([[0, 1], [2]], [None], code, 12, False, 7)
    film, _ = filmed(start=[x.expand(3, *x.shape[1:]) for x in (y, n, gaps)])
    for _, documents in film:
        for cells in documents:
            assert [cell.text for cell in cells if cell.kind == "given"] == ["a", "bb", "ccc"]


def test_autoregressive_documents_are_written_token_by_token():
    code = Code(8)
    y = code.encode(torch.tensor([[0, 1, 2], [0, 4, 7]]))
    states = movie.left_to_right(y, torch.tensor([3, 2]), 1)
    film = movie.film_of(states, code, Letters())
    said = [[said_by(cells) for cells in documents] for _, documents in film]
    assert said == [["a", "a"], ["abb", "aee"], ["abbccc", "aee"]]
    assert [cell.kind for cell in film[-1][1][0]] == ["given", "revealed", "revealed"]


# -----------------------------------------------------------------------------
# laying out

def cells_of(text, kind="given"):
    return [movie.Cell((0,), text, kind, 0)]


def lines_of(cells, width=10):
    return ["".join(c for c, _ in line) for line in movie.layout(cells, 0, width)]


def test_long_texts_are_wrapped_and_indented():
    assert lines_of(cells_of("abcdefghijklmnopqr")) == ["abcdefghij", "  klmnopqr"]
    assert lines_of(cells_of("a\nb\tc")) == ["a\u21b5", "b\u2192c"]


def test_what_a_terminal_would_obey_is_a_dot():
    assert lines_of(cells_of("\033[2Jx\r\0")) == ["\u00b7[2Jx\u00b7\u00b7"]


def test_news_do_not_stay_news():
    block, pale = movie.MASKED, movie.PARTLY
    cells = cells_of(block, "inserted") + cells_of(pale, "revealed") + cells_of("x", "revealed")
    fresh, = movie.layout(cells, 1, 10)                         # all of them are of frame 0
    old, = movie.layout(cells, 2, 10)
    assert [kind for _, kind in fresh] == ["inserted", "revealed", "revealed"]
    assert [kind for _, kind in old] == ["masked", "some digits", ""]


@pytest.mark.parametrize("most", (1, 5, 1000))
def test_scenes(most):
    film, _ = filmed(steps=64, most=most)
    assert len(film) <= most
    frames = movie.scenes(film, 60, legend=True)
    assert len(frames) == len(film) + 1
    assert len({len(lines) for lines in frames}) == 1           # documents do not jump
    assert sum(map(bool, frames[0][1:])) >= 2                   # no blank beginning
    said = [said_by(cells) for cells in film[-1][1]]
    heading, *lines = frames[-1]
    assert {kind for line in lines for _, kind in line} <= {""}
    shown = "".join("".join(c for c, _ in line) for line in lines)
    assert shown.replace(" ", "") == "".join(said)
    words = "".join(c for c, _ in heading)
    assert most < 1000 or words == "t = 1.00  \u2588 masked  \u2588 inserted  \u2588 revealed"


def test_a_film_in_which_nothing_happens(tmp_path, capsys):
    film = [(0.0, [[], []])]
    movie.draw_gif(str(tmp_path / "t.gif"), film)
    movie.play(film)
    assert capsys.readouterr().out.startswith("t = 0.00")


# -----------------------------------------------------------------------------
# the terminal and the picture

@pytest.mark.parametrize("columns, lines", [(20, 24), (80, 24), (100, 3)])
def test_show_in_a_terminal(monkeypatch, capsys, columns, lines):
    film, _ = filmed(ell=3, steps=32)
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("LINES", str(lines))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    movie.play(film, seconds=0)
    out = capsys.readouterr().out
    assert "\033[94m\u2588" in out and "\033[44m" not in out    # in front, not behind a full block
    plain = re.sub(r"\033\[\d*[mK]", "", out)
    assert ("inserted" in plain) == (columns >= 80)             # the legend, where it fits
    frames = re.split(r"\033\[(\d+)A", plain)                   # frame, lines to go up, frame, ..
    for frame, up in zip(frames[::2], frames[1::2]):
        assert frame.count("\n") == int(up) <= lines - 1        # what is redrawn is what was there
    for line in "".join(frames[::2]).splitlines():
        assert len(line) < columns


def test_show_without_a_terminal_is_plain(capsys):
    film, _ = filmed()
    movie.play(film)
    out = capsys.readouterr().out
    assert "\033" not in out and 2 < out.count("t = ") <= 9


def near(image, code):
    """Is there a pixel of about the colour '#rrggbb' in an image?"""
    wanted = np.array([int(code[i:i + 2], 16) for i in (1, 3, 5)])
    return bool((np.abs(np.asarray(image.convert("RGB"), dtype=int) - wanted).max(-1) < 12).any())


def test_the_picture_moves_and_ends_at_rest(tmp_path):
    film, _ = filmed(steps=32, most=12)
    movie.draw_gif(str(tmp_path / "t.gif"), film)
    with Image.open(tmp_path / "t.gif") as picture:
        assert 8 < picture.n_frames <= 13 and picture.info["loop"] == 0
        durations, text = [], []
        for i in range(picture.n_frames):
            picture.seek(i)
            durations.append(picture.info["duration"])
            text.append(picture.convert("RGB").crop((0, 35, *picture.size)))     # below the legend
    assert durations[0] == 100 and durations[-1] == 3000
    blue, green = movie.COLOURS["inserted"][1], movie.COLOURS["revealed"][1]
    assert any(near(image, blue) for image in text) and any(near(image, green) for image in text)
    assert not near(text[-1], blue) and not near(text[-1], green)


# -----------------------------------------------------------------------------
# the loss curve

@pytest.mark.parametrize("rows", [
    [], [dict(step="5", loss="", val="2.5")], [dict(step=5, loss=3.0, val="")],
    [dict(step=str(i), loss=f"{9 / (i + 1):.3f}", val="") for i in range(9)]])
def test_the_curve_is_drawn_from_whatever_there_is(tmp_path, rows):
    curve.draw(tmp_path / "loss.png", rows)
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


# -----------------------------------------------------------------------------
# MDM-Prime's figures

@pytest.mark.parametrize("ell", (1, 4))
def test_idle_steps_are_as_many_as_the_formula_says(ell):
    linear = interpolant.schedule("linear")
    measured = np.mean([prime_figures.measured_idle(64, 32, ell) for _ in range(20)])
    assert abs(measured - idle_steps(linear, 64, 32, ell)) < 3


def test_the_two_figures(tmp_path, capsys):
    import matplotlib
    matplotlib.use("Agg")
    prime_figures.figure_idle(tmp_path / "idle.png", L=16, sizes=(4, 8))
    args = prime_figures.Args(iterations=2, samples=50)
    prime_figures.figure_pair(tmp_path / "pair.png", args, steps=2)
    for name in ("idle.png", "pair.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr().out.count("% on ink") == 3


def test_help_starts_nothing(tmp_path):
    command = [sys.executable, os.path.join(ROOT, "figures", "prime.py"), "--help"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and "--out_dir" in done.stdout and done.stderr == ""
    assert not os.listdir(tmp_path)
