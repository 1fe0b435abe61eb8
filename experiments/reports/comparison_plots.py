"""Figures of a comparison: rewards, accuracy against compute, and the arms' choices, all from its cells alone.

They use the style of `astra_gym.experiments.plotting.style`. Small multiples, or a legend of colors and marks, never
color alone, distinguish up to some twenty arms. Each function returns whether there was anything to draw, and so
whether it wrote a file.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from astra_gym.agents import learns
from astra_gym.experiments.comparison.cell_results import Cell, ComparisonResult
from astra_gym.experiments.plotting.run_plots import ACTION_SETS, ACTION_TITLES, Array, Shares, stack_shares, value_bar
from astra_gym.experiments.plotting.style import (
    BLUE,
    GREEN,
    INK,
    ORANGE,
    PURPLE,
    STYLE,
    label,
    new_figure,
    save_figure,
)
from astra_gym.experiments.reports.comparison_tables import at
from astra_gym.experiments.stats import FEWEST_SEEDS, Place, epsilons_of, estimate, mean_interval, pareto

COLUMNS = 3
"""Columns of small multiples."""
GREY = "#a6a6a6"
SHORT_TITLES = {"epsilon": "$\\epsilon$ (/255)", "steps": "steps", "step_size": "step size (/255)"}
# each differs from every other in dash or marker too, for readers who see no colors
LINES: tuple[Any, ...] = (
    {"color": BLUE, "linestyle": "-", "marker": "o"},
    {"color": ORANGE, "linestyle": "--", "marker": "s"},
    {"color": GREEN, "linestyle": "-.", "marker": "^"},
    {"color": PURPLE, "linestyle": ":", "marker": "D"},
    {"color": INK, "linestyle": "-", "marker": "v"},
    {"color": "#8A6500", "linestyle": "--", "marker": "P"},
    {"color": "#1F6F8B", "linestyle": "-.", "marker": "X"},
    {"color": "#A8326B", "linestyle": ":", "marker": "*"},
)
MARKERS = "os^DvPX*<>phd"
"""Marks. Their number and that of the colors have no common divisor, so that a pair recurs only after the 104th arm."""


class Band(NamedTuple):
    """A mean over seeds along `x` and its 95 % t interval, NaN below `stats.FEWEST_SEEDS` seeds; each (k,)."""

    x: Array
    mean: Array
    low: Array
    high: Array


def curve_band(cells: Sequence[Cell], name: str) -> Band | None:
    """Return an arm's `Cell.curve` of that name, averaged over seeds; None if no cell has it.

    If seeds differ in their steps, their curves are interpolated to the steps of the first.
    """
    curves = [cell.curve for cell in cells if name in cell.curve]
    if not curves:
        return None
    x = np.asarray(curves[0]["step"], dtype=np.float64)
    values = [np.interp(x, curve["step"], curve[name]) for curve in curves]
    return Band(x, *_intervals(np.stack(values)))


def _intervals(values: Array) -> tuple[Array, Array, Array]:
    """Return mean and borders of the interval of (seeds, k) values, each (k,)."""
    mean, low, high = np.array([mean_interval(column) for column in values.T]).T
    few = len(values) < FEWEST_SEEDS
    return mean, np.full_like(mean, np.nan) if few else low, np.full_like(mean, np.nan) if few else high


def mean_shares(cells: Sequence[Cell], kind: str, values: Sequence[int]) -> Shares:
    """Return an arm's shares of `values`, averaged over seeds, in the windows of all of them."""
    found = [cell.shares[kind] for cell in cells if kind in cell.shares]
    edges = np.unique(np.concatenate([np.asarray(entry["edges"], dtype=np.float64) for entry in found]))
    middles = (edges[1:] + edges[:-1]) / 2
    total = np.zeros((len(values), len(middles)))
    for entry in found:
        columns = np.searchsorted(entry["edges"], middles) - 1
        rows = [values.index(value) for value in entry["values"]]
        total[rows] += np.asarray(entry["share"])[:, np.clip(columns, 0, len(entry["edges"]) - 2)]
    return Shares(edges, tuple(values), total / total.sum(0))


@matplotlib.rc_context(STYLE)
def learning_curves(comparison: ComparisonResult, path: Path | str) -> bool:
    """Draw each arm's mean reward over training in a separate panel, with the other arms in gray behind it.

    Args:
        comparison: finished runs.
        path: path of the PNG.
    """
    bands = {arm: band for arm in comparison.arms if (band := curve_band(comparison.of(arm), "reward"))}
    if not bands:
        return False
    rows = -(-len(bands) // COLUMNS)
    columns = min(COLUMNS, len(bands))
    height = 3.2 if columns < COLUMNS else 1.0 + 1.35 * rows
    figure, axes = new_figure(rows, height, columns, sharex=True, sharey=True)
    for axis, (arm, band) in zip(axes, bands.items(), strict=False):
        for other in bands.values():
            axis.plot(other.x, other.mean, color="#d0d0d0", linewidth=0.6)
        axis.fill_between(band.x, band.low, band.high, color=BLUE, alpha=0.25, linewidth=0)
        axis.plot(band.x, band.mean, color=BLUE)
        axis.set_title(_broken(arm, width=20), va="bottom")
        axis.annotate(f"{band.mean[-1]:.3f}", (1, 1), xycoords="axes fraction", ha="right", va="top")
        axis.grid(axis="y")
        axis.xaxis.set_major_locator(MaxNLocator(3, integer=True))
        axis.yaxis.set_major_locator(MaxNLocator(4))
    _clear(axes[len(bands) :], columns)
    figure.supxlabel("target updates (number: mean reward at the end)", fontsize=STYLE["font.size"])
    figure.supylabel("mean reward", fontsize=STYLE["font.size"])
    save_figure(figure, path)
    return True


def _broken(arm: str, most: int = 17, width: int = 24) -> str:
    """Return a label, broken into lines of at most `width` if it would not fit into a narrow place."""
    head, at, settings = arm.partition("@")
    parts = [arm] if len(arm) <= most else filter(None, (head, at + settings))
    return "\n".join(label(part, width) for part in parts)


def _legend_height(names: Sequence[str]) -> float:
    """Return the inches that a legend of one column takes."""
    return 0.23 * len(names) + 0.19 * sum(name.count("\n") for name in names)


def _clear(axes: Sequence[Axes], columns: int) -> None:
    """Remove unused panels, and give those above them their x labels back."""
    for axis in axes:
        axis.set_visible(False)
    if axes:
        figure_axes = axes[0].figure.axes
        for axis in axes:
            figure_axes[figure_axes.index(axis) - columns].xaxis.set_tick_params(labelbottom=True)


@matplotlib.rc_context(STYLE)
def accuracy_against_compute(comparison: ComparisonResult, place: Place, path: Path | str) -> bool:
    """Draw each arm's accuracy against the attack gradient steps that its runs spent, and the Pareto front.

    Arms that spend nothing (no attack) are left out, see `without_attack`: they would flatten all the others.

    Args:
        comparison: finished runs.
        place: where the accuracy is measured.
        path: path of the PNG.
    """
    points = compute_points(comparison, place)
    if len(points) < 2:
        return False
    arms = list(points)
    front = [arms[index] for index in pareto([(point.steps, point.mean) for point in points.values()])]
    figure, (axis,) = new_figure(1, max(3.6, 1.2 + _legend_height([_broken(arm) for arm in points])))
    corners = sorted((points[arm].steps / 1e3, points[arm].mean) for arm in front)
    axis.plot(*zip(*corners, strict=True), color=GREY, linewidth=1.2, drawstyle="steps-post", zorder=1)
    # in the order of the points, from the top
    for rank, (arm, point) in enumerate(sorted(points.items(), key=lambda entry: -entry[1].mean)):
        x, y, bar = point.steps / 1e3, point.mean, [[point.mean - point.low], [point.high - point.mean]]
        color, mark = LINES[rank % len(LINES)]["color"], MARKERS[rank % len(MARKERS)]
        axis.errorbar(x, y, bar, fmt="none", color=color, elinewidth=1, capsize=2)
        axis.plot(x, y, mark, ms=7, color=color, mfc=color if arm in front else "white", label=_broken(arm))
    axis.set(xlabel="attack gradient steps per run (thousands)", ylabel=f"{at(place)} (%)")
    axis.margins(x=0.09, y=0.09)
    if np.ptp([axis.dataLim.y0, axis.dataLim.y1]) < 1e-9:
        # where all are alike, a range around them would go below 0 or above 100 %
        axis.set_ylim(-2, 102)
    axis.grid(True)
    axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    save_figure(figure, path)
    return True


class Spent(NamedTuple):
    """An arm's attack gradient steps per run and its accuracy in percent: means over seeds, with an interval or NaN."""

    steps: float
    mean: float
    low: float
    high: float


def compute_points(comparison: ComparisonResult, place: Place) -> dict[str, Spent]:
    """Return the arms' positions in `accuracy_against_compute`."""
    points = {}
    for arm in comparison.arms:
        spending = [cell for cell in comparison.of(arm) if cell.attack_steps]
        cells = [cell for cell in spending if set(epsilons_of(place)) <= cell.outcomes.keys()]
        if cells:
            found = estimate([cell.accuracy(place) for cell in cells])
            steps = float(np.mean([cell.attack_steps for cell in cells]))
            points[arm] = Spent(steps, found.mean, found.low, found.high)
    return points


def without_attack(comparison: ComparisonResult) -> list[str]:
    """Return the arms that spend no attack gradient step."""
    return [arm for arm in comparison.arms if not any(cell.attack_steps for cell in comparison.of(arm))]


@matplotlib.rc_context(STYLE)
def shares_of_arms(comparison: ComparisonResult, path: Path | str) -> bool:
    """Draw the shares of the chosen epsilons, steps and step sizes over training: a row for each arm, averaged over
    seeds.

    Args:
        comparison: finished runs.
        path: path of the PNG.
    """
    groups = {arm: comparison.of(arm) for arm in comparison.arms}
    groups = {arm: kept for arm, cells in groups.items() if (kept := [cell for cell in cells if cell.shares])}
    if not groups:
        return False
    # axes are not shared, since each change would be sent to all of so many axes
    figure, axes = new_figure(len(groups), 1.5 + 0.72 * len(groups), 3)
    for column, kind in enumerate(ACTION_SETS):
        values = sorted({value for cells in groups.values() for cell in cells for value in cell.shares[kind]["values"]})
        values = list(range(values[0], values[-1] + 1))
        below = axes[column::3]
        for axis, (arm, cells) in zip(below, groups.items(), strict=True):
            # areas smaller than this are lower than their labels
            stack_shares(axis, mean_shares(cells, kind, values), least=24)
            axis.set_yticks([])
            axis.xaxis.set_major_locator(MaxNLocator(3, integer=True))
            axis.tick_params(labelbottom=axis is below[-1])
            if column == 0:
                axis.set_ylabel(_broken(arm, most=11), rotation=0, ha="right", va="center")
        below[0].set_title(SHORT_TITLES[kind])
        row = 1 / len(groups)
        value_bar(figure, below, values, location="bottom", pad=0.15 * row, fraction=0.2 * row, aspect=16)
        below[-1].set_xlabel("target updates")
    save_figure(figure, path)
    return True


@matplotlib.rc_context(STYLE)
def choice_by_clean_loss(comparison: ComparisonResult, path: Path | str) -> bool:
    """Draw how the mean choice for a view differs with the view's clean loss, from the mean over all views.

    Args:
        comparison: finished runs.
        path: path of the PNG.
    """
    lines: dict[str, dict[str, tuple[Array, Array]]] = {}
    centers: dict[str, dict[str, float]] = {}
    for arm in comparison.arms:
        for kind in ACTION_SETS:
            found = [cell.by_clean_loss[kind] for cell in comparison.of(arm) if kind in cell.by_clean_loss]
            if found:
                mean = np.mean(found, axis=0)
                lines.setdefault(arm, {})[kind] = np.arange(1.0, len(mean) + 1), mean - mean.mean()
                centers.setdefault(arm, {})[kind] = float(mean.mean())
    varying = {arm: each for arm, each in lines.items() if _moved(each) > 0}
    titles = {kind: f"{title}: difference from all views" for kind, title in ACTION_TITLES.items()}
    below = "fifth of the views by clean loss (1: smallest)"
    return _panels(comparison, varying, titles, below, centers, path)


@matplotlib.rc_context(STYLE)
def choice_over_training(comparison: ComparisonResult, path: Path | str) -> bool:
    """Draw the mean epsilon, steps and step size over training, a line for each arm.

    Args:
        comparison: finished runs.
        path: path of the PNG.
    """
    lines: dict[str, dict[str, tuple[Array, Array]]] = {}
    for arm in comparison.arms:
        for kind in ACTION_SETS:
            if band := curve_band(comparison.of(arm), kind):
                lines.setdefault(arm, {})[kind] = band.x, band.mean
    titles = {kind: f"{title}: mean" for kind, title in ACTION_TITLES.items()}
    return _panels(comparison, lines, titles, "target updates", {}, path)


@matplotlib.rc_context(STYLE)
def choices_of_instances(
    comparisons: Mapping[str, ComparisonResult], arm: str, constants: Sequence[str], path: Path | str
) -> bool:
    """Draw how an arm's mean epsilon, steps and step size move over its runs: a row for each comparison, a thin line
    for each seed, their median, and a level for each constant.

    Args:
        comparisons: comparisons of the same arms, by instance.
        arm: the arm that chooses.
        constants: arms of one attack each, at most as many as `LINES` but one.
        path: path of the PNG.
    """
    rows = {
        name: cells
        for name, each in comparisons.items()
        if (cells := [cell for cell in each.of(arm) if set(ACTION_SETS) <= cell.curve.keys()])
    }
    if not rows:
        return False
    figure, axes = new_figure(len(rows), 0.9 + 1.5 * len(rows), len(ACTION_SETS))
    for at_row, (name, cells) in enumerate(rows.items()):
        for axis, kind in zip(axes[at_row * len(ACTION_SETS) :], ACTION_SETS, strict=False):
            shares = [100 * np.asarray(cell.curve["step"], dtype=float) / cell.updates for cell in cells]
            paths = [np.asarray(cell.curve[kind], dtype=float) for cell in cells]
            for share, values in zip(shares, paths, strict=True):
                axis.plot(share, values, color=GREY, linewidth=0.6, zorder=1)
            # a mean of seeds that decide differently would be a choice that none of them makes
            middle = np.median([np.interp(shares[0], *each) for each in zip(shares, paths, strict=True)], axis=0)
            axis.plot(shares[0], middle, label=f"{label(arm)}, median", ms=4, markevery=5, **LINES[0])
            for constant, style in zip(constants, LINES[1:], strict=False):
                found = [cell.curve[kind] for cell in comparisons[name].of(constant) if kind in cell.curve]
                if found:
                    level = float(np.mean([np.mean(values) for values in found]))
                    axis.plot([0, 100], [level, level], label=label(constant), ms=4, **style)
            axis.set_xlim(-4, 104)
            axis.set_ylim(bottom=0)
            axis.grid(axis="y")
            axis.yaxis.set_major_locator(MaxNLocator(4))
            axis.tick_params(labelbottom=at_row == len(rows) - 1)
            axis.set_ylabel(SHORT_TITLES[kind])
        axes[at_row * len(ACTION_SETS)].set_title(label(name))
    axes[-2].set_xlabel("share of the run (%)")
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(names))
    save_figure(figure, path)
    return True


def highlighted(comparison: ComparisonResult, lines: Mapping[str, Mapping[str, tuple[Array, Array]]]) -> list[str]:
    """Return the learning arms to be told apart, at most eight: those with the largest changes of choice."""
    learning = [arm for arm in lines if learns(comparison.of(arm)[0].agent)]
    most = sorted(learning, key=lambda arm: -_moved(lines[arm]))[: len(LINES)]
    return [arm for arm in learning if arm in most]


def _moved(lines: Mapping[str, tuple[Array, Array]]) -> float:
    """Return how far an arm's choices move, as a sum of parts of the ranges."""
    return sum(float(np.ptp(y)) / (ACTION_SETS[kind][1] - ACTION_SETS[kind][0]) for kind, (_, y) in lines.items())


def _panels(
    comparison: ComparisonResult,
    lines: Mapping[str, Mapping[str, tuple[Array, Array]]],
    titles: Mapping[str, str],
    below: str,
    centers: Mapping[str, Mapping[str, float]],
    path: Path | str,
) -> bool:
    """Draw a panel for each kind of choice with a line for each arm: `highlighted` arms with a legend, others gray."""
    shown = highlighted(comparison, lines)
    if not shown:
        return False
    height = max(2.2 + 0.1 * len(shown), 0.5 + _legend_height([_broken(arm) for arm in shown]))
    figure, axes = new_figure(len(titles), 0.5 + len(titles) * height, sharex=True)
    for axis, (kind, title) in zip(axes, titles.items(), strict=True):
        drawn: list[tuple[float, Line2D]] = []
        for arm, each in lines.items():
            if kind in each and arm not in shown:
                dash = "-" if learns(comparison.of(arm)[0].agent) else (0, (1, 1))
                axis.plot(*each[kind], color=GREY, linewidth=1, linestyle=dash, zorder=1)
        for arm, style in zip(shown, LINES, strict=False):
            if kind in lines[arm]:
                x, y = lines[arm][kind]
                center = f" ({centers[arm][kind]:.1f})" if arm in centers else ""
                name = _broken(arm) + center
                [line] = axis.plot(x, y, ms=5, markevery=max(1, len(x) // 6), label=name, **style)
                drawn.append((float(y[-1]), line))
        axis.set_title(title)
        axis.margins(x=0.02)
        axis.grid(axis="y")
        axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axis.yaxis.set_major_locator(MaxNLocator(5))
        # in the order of the lines' ends, from the top
        handles = [line for _, line in sorted(drawn, key=lambda entry: -entry[0])]
        axis.legend(handles=handles, loc="center left", bbox_to_anchor=(1.0, 0.5), handlelength=2.6)
    axes[-1].set_xlabel(below)
    save_figure(figure, path)
    return True
