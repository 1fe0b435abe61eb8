"""The picture of a measurement: every verdict's interval, and the credit by budget."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes

from astra_gym.experiments.headroom.verdicts import Verdict
from astra_gym.experiments.plotting.style import BLUE, GREEN, INK, ORANGE, STYLE, label, new_figure, save_figure

COLORS = {"headroom": GREEN, "none": ORANGE, "undecided": INK}


def draw_headroom(kinds: Mapping[str, Any], path: Path) -> None:
    """Draw the verdicts of a file's `kinds`, and, if credit per view is among them, the credit by budget.

    Gains are drawn in units of their bars, so that verdicts of different units share a scale.
    """
    verdicts = [Verdict(**each) for found in kinds.values() for each in found["verdicts"]]
    budgets = kinds["view"]["numbers"]["budgets"] if "view" in kinds else []
    with matplotlib.rc_context(STYLE):
        height = 1.1 + 0.62 * len(verdicts)
        heights = (height, 3.2) if budgets else (height,)
        figure, axes = new_figure(len(heights), sum(heights), heights=heights)
        _intervals(axes[0], verdicts)
        if budgets:
            _credit(axes[1], budgets)
        save_figure(figure, path)


def _intervals(axes: Axes, verdicts: Sequence[Verdict]) -> None:
    for at, verdict in enumerate(verdicts):
        place, color, bar = len(verdicts) - 1 - at, COLORS[verdict.verdict], verdict.bar or 1.0
        if verdict.low is not None and verdict.high is not None:
            axes.plot([verdict.low / bar, verdict.high / bar], [place, place], color=color)
        axes.plot(verdict.mean / bar, place, "o", color=color)
        axes.annotate(
            f"{label(verdict.kind)}: {verdict.verdict}",
            (0, place),
            xycoords=("axes fraction", "data"),
            xytext=(2, 7),
            textcoords="offset points",
            fontsize=9,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},
        )
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.axvline(1, color=INK, linewidth=0.8, linestyle=":")
    axes.set_ylim(-0.5, len(verdicts) - 0.2)
    axes.set_yticks([])
    axes.set_xlabel("gain, in bars (dotted: a gain below it does not count)")
    axes.set_title("Is there headroom?")
    axes.spines["left"].set_visible(False)


def _credit(axes: Axes, budgets: Sequence[Mapping[str, Any]]) -> None:
    for name, color, shift in (("credit_a", BLUE, -0.12), ("credit_b", ORANGE, 0.12)):
        for at, budget in enumerate(budgets):
            mean, low, high = budget[name]
            if low is not None:
                axes.plot([at + shift] * 2, [1e6 * low, 1e6 * high], color=color)
            axes.plot(at + shift, 1e6 * mean, "o", color=color, label=f"judge {name[-1].upper()}" if not at else None)
    axes.axhline(0, color=INK, linewidth=0.8)
    axes.grid(axis="y")
    names = [f"{budget['epsilon']:g} x {budget['steps']}{'*' * budget['constant']}" for budget in budgets]
    axes.set_xticks(range(len(budgets)), names, fontsize=9)
    axes.set_xlabel("radius in 1/255 x steps of one view (* the constant)")
    axes.set_ylabel("fall of the loss, 1e-6")
    axes.set_title("Credit of a view's budget in one update")
    axes.legend(loc="best")
