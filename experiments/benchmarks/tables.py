"""The display of the benchmark's values: a table for the terminal, and a figure in the style of a run's figures."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from rich.table import Table

from astra_gym.experiments.benchmarks.measure import UNITS, Figure, fit_line
from astra_gym.experiments.plotting.style import BLUE, INK, STYLE, new_figure, save_figure

Details = Mapping[str, Any]
SEGMENTS: dict[str, tuple[str, dict[str, Any]]] = {
    "attack: network": ("attack", {"color": BLUE, "edgecolor": "white"}),
    "update: network": ("update", {"color": "#7fc6e8", "edgecolor": "white"}),
    "observe: network": ("observe", {"color": "white", "edgecolor": INK, "hatch": "/////"}),
    "outside the target network's arithmetic": ("all else", {"color": "#d9d9d9", "edgecolor": "white"}),
}
"""Parts of a step in the figure: label and style, distinct in gray too."""
NOT_REACHED = "not reached"
ROW, FRAME = 0.31, 0.8
"""Inches of a panel's row, and of the rest of the panel."""


def figures_table(figures: Sequence[Figure]) -> Table:
    """Return the values as a table for the terminal."""
    drawn = Table("part", "figure", "median", "quartiles", "target", title="Benchmark")
    for figure in figures:
        drawn.add_row(*cells(figure.record()))
    return drawn


def cells(record: Mapping[str, Any]) -> tuple[str, str, str, str, str]:
    """Return part, name, median, quartiles and target of a value in the results file, in words."""
    unit = UNITS[record["unit"]]
    values = (record["median"], *record["quartiles"], record["target"] or 0)
    middle, low, high, target = (NOT_REACHED if value is None else unit.form.format(value) for value in values)
    sign, verdict = "at least" if unit.better > 0 else "at most", "met" if record["met"] else "missed"
    aim = "" if record["met"] is None else f"{sign} {target}: {verdict}"
    return record["part"], record["name"], middle, f"{low} to {high}", aim


def targets_line(figures: Sequence[Figure]) -> str:
    """Return how many of the targets are met, in words."""
    met = [summary["met"] for figure in figures if (summary := figure.summary())["met"] is not None]
    return f"{sum(met)} of {len(met)} targets met"


@matplotlib.rc_context(STYLE)
def draw(figures: Sequence[Figure], details: Details, path: Path | str) -> bool:
    """Draw the values that can be drawn: speed, agents and efficiency as dots, a step's shares, the line of steps.

    Args:
        figures: values of any parts.
        details: details by part, as in the results file.
        path: path of the PNG.

    Returns:
        Whether there was anything to draw, and so a file.
    """
    panels: list[tuple[float, Callable[[Axes], None]]] = []

    def add(rows: float, panel: Callable[..., None], *arguments: Any) -> None:
        panels.append((FRAME + ROW * rows, lambda axis: panel(axis, *arguments)))

    # what was not reached has no place on an axis
    if speed := [figure for figure in figures if figure.unit == "times faster" and None not in figure.values]:
        add(len(speed), _dots, speed, "Times faster (line: target)")
    if bars := shares_of_steps(figures):
        add(1.2 * len(bars) + 1, _bars, bars)
    if agents := [figure for figure in figures if figure.part == "agents"]:
        add(len(agents), _dots, agents, "Agent's share of a step (%)")
    if used := [figure for figure in figures if figure.unit == "of the peak"]:
        add(len(used), _dots, used, "Of the peak speed (%)")
    if "scaling" in details:
        add(6, _line, details["scaling"])
    if not panels:
        return False
    heights = [height for height, _ in panels]
    picture, axes = new_figure(len(panels), sum(heights), heights=heights)
    for axis, (_, panel) in zip(axes, panels, strict=True):
        panel(axis)
    save_figure(picture, path)
    return True


def shares_of_steps(figures: Sequence[Figure]) -> dict[str, dict[str, float]]:
    """Return the median share of each of `SEGMENTS` in a step, by agent."""
    bars: dict[str, dict[str, float]] = {}
    for figure in figures:
        agent, _, name = figure.name.partition(": ")
        if figure.part == "shares" and name in SEGMENTS:
            bars.setdefault(agent, {})[name] = figure.summary()["median"]
    return bars


def _dots(axis: Axes, figures: Sequence[Figure], title: str) -> None:
    several = len({figure.part for figure in figures}) > 1
    percent = "%" in title
    scale = 100 if percent else 1
    for place, figure in enumerate(figures):
        summary = figure.summary()
        low, high = (scale * value for value in summary["quartiles"])
        middle = scale * summary["median"]
        axis.plot([low, high], [place, place], color=BLUE, linewidth=4, alpha=0.5, solid_capstyle="butt")
        axis.plot(middle, place, "o", color=BLUE, ms=7)
        axis.annotate(f"{middle:.1f}", (max(middle, high), place), (9, 0), textcoords="offset points", va="center")
        if summary["target"] is not None:
            aim = scale * summary["target"]
            axis.plot([aim, aim], [place - 0.36, place + 0.36], color=INK, linewidth=1.4)
    labels = [f"{figure.part}: {figure.name}" if several else figure.name for figure in figures]
    axis.set_yticks(range(len(figures)), labels)
    axis.set(title=title, ylim=(len(figures) - 0.5, -0.5))
    # before the left end is set, which ends automatic limits
    axis.margins(x=0.14)
    axis.set_xlim(left=0)
    axis.tick_params(axis="y", length=0)
    axis.spines["left"].set_visible(False)
    axis.grid(axis="x")


def _bars(axis: Axes, bars: Mapping[str, Mapping[str, float]]) -> None:
    for place, shares in enumerate(bars.values()):
        left = 0.0
        for name, (label, style) in SEGMENTS.items():
            width = 100 * shares.get(name, 0.0)
            axis.barh(place, width, 0.66, left, label=None if place else label, linewidth=0.6, **style)
            if width >= 6:
                ink = "white" if style["color"] == BLUE else INK
                axis.text(left + width / 2, place, f"{width:.0f}", color=ink, ha="center", va="center")
            left += width
    axis.set(title="Time of a step (%)", xlim=(0, 100), ylim=(len(bars) - 0.5, -0.5))
    axis.set_xticks([])
    axis.set_yticks(range(len(bars)), list(bars))
    axis.tick_params(axis="y", length=0)
    for side in ("left", "bottom"):
        axis.spines[side].set_visible(False)
    axis.legend(loc="upper right", bbox_to_anchor=(1.0, 0.0), ncols=4, handlelength=1.2, columnspacing=1.2)


def _line(axis: Axes, scaling: Details) -> None:
    means = [median(values) for values in scaling["means"].values()]
    seconds = [median(values) for values in scaling["seconds"].values()]
    # relative to the largest, since the seconds depend on the machine
    relative = [value / max(seconds) for value in seconds]
    line = fit_line(means, relative)
    ends = [0.0, max(means)]
    axis.plot(ends, [line.intercept + line.slope * end for end in ends], "--", color=INK, linewidth=1.2)
    axis.plot(means, relative, "o", color=BLUE, ms=7)
    axis.set(title="Time of an attack", xlabel="mean number of steps")
    axis.set_ylabel("relative time")
    axis.set_xlim(left=0)
    axis.set_ylim(bottom=0)
