"""The benchmark's table and its picture."""

from io import StringIO
from pathlib import Path

import numpy as np
from matplotlib.image import imread
from rich.console import Console

from astra_gym.experiments.benchmarks.measure import Figure
from astra_gym.experiments.benchmarks.tables import cells, draw, figures_table, shares_of_steps, targets_line

SPEED = [
    Figure("attack", "+ folded batch norm", "times faster", (2.9, 3.0, 3.2)),
    Figure("step", "ResNet-18, reinforce, fp32", "times faster", (2.1,)),
]
OUTSIDE = "outside the target network's arithmetic"
SHARES = [
    Figure("shares", f"reinforce: {OUTSIDE}", "overhead", (0.07, 0.09)),
    Figure("shares", "reinforce: attack: network", "share", (0.7,)),
    Figure("shares", "reinforce: logging", "share", (0.01,)),
    Figure("shares", f"ppo: {OUTSIDE}", "overhead", (0.2,)),
]
SCALING = {"scaling": {"means": {"a": [4.0], "b": [8.0], "c": [14.0]}, "seconds": {"a": [1.0], "b": [2.0], "c": [3.5]}}}


def test_the_table_says_what_is_met() -> None:
    table = figures_table([*SPEED, *SHARES, Figure("start", "first training step", "seconds", (7.0,))])
    console = Console(width=200, record=True, file=StringIO())
    console.print(table)
    lines = {line.split("│")[2].strip(): line for line in console.export_text().splitlines() if line.startswith("│")}
    assert "at least 2.50x: met" in lines["+ folded batch norm"] and "3.00x" in lines["+ folded batch norm"]
    assert "2.95x to 3.10x" in lines["+ folded batch norm"]
    assert "at least 2.40x: missed" in lines["ResNet-18, reinforce, fp32"]
    assert "at most 5.0%: missed" in lines[f"reinforce: {OUTSIDE}"] and "8.0%" in lines[f"reinforce: {OUTSIDE}"]
    assert "at most 4.00 s: missed" in lines["first training step"]
    assert "met" not in lines["reinforce: logging"]
    assert targets_line(SPEED) == "1 of 2 targets met"


def test_what_is_not_reached_is_said_and_not_drawn(tmp_path: Path) -> None:
    figure = Figure("step", "ResNet-18, reinforce, fp32", "times faster", (None, 2.0, 3.0))
    assert cells(figure.record())[2:] == ("2.00x", "not reached to 2.50x", "at least 2.40x: missed")
    assert not draw([figure], {}, tmp_path / "picture.png")


def test_shares_of_steps() -> None:
    assert shares_of_steps([*SPEED, *SHARES]) == {
        "reinforce": {OUTSIDE: 0.08, "attack: network": 0.7},
        "ppo": {OUTSIDE: 0.2},
    }


def test_the_picture_has_a_panel_for_what_was_measured(tmp_path: Path) -> None:
    path, heights = tmp_path / "new" / "picture.png", []
    agents = [Figure("agents", "ppo", "overhead", (0.1,))]
    used = [Figure("efficiency", "attack, fp32", "of the peak", (0.5,))]
    for figures, details in ((SPEED, {}), (SPEED + SHARES, {}), (SPEED + SHARES + agents + used, SCALING)):
        assert draw(figures, details, path)
        picture = imread(path)
        assert picture.shape[1] == 1280
        heights.append(picture.shape[0])
        # something is drawn, in color and in every part of the picture
        assert all(np.ptp(part[..., :3]) > 0.5 for part in np.array_split(picture, 4))
    assert heights == sorted(set(heights))
    assert list(path.parent.iterdir()) == [path]


def test_nothing_is_drawn_of_nothing(tmp_path: Path) -> None:
    assert not draw([Figure("start", "first training step", "seconds", (7.0,))], {}, tmp_path / "picture.png")
    assert list(tmp_path.iterdir()) == []
