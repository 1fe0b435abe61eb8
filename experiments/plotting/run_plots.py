"""Figures of a run: the agent's choices, its rewards, an attack's views, and the encoder's accuracy.

Every function takes data and a path and writes a PNG in the style of `astra_gym.experiments.plotting.style`. If a
figure shows more than its input (shares, means, intervals), a separate function computes that.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from astra_gym.envs.api.action_sets import UNIT, ActionSets
from astra_gym.envs.records import in_255
from astra_gym.experiments.plotting.style import (
    BLUE,
    GREEN,
    INK,
    ORANGE,
    PURPLE,
    STYLE,
    WIDTH,
    label,
    new_figure,
    save_figure,
)
from astra_gym.experiments.stats import mean_interval
from astra_gym.ssl_core.attacks.pgd import Budget
from astra_gym.ssl_core.evaluation.results import Row

MetricsRow = Mapping[str, Any]
Array = np.ndarray[Any, np.dtype[np.float64]]

Ends = Mapping[str, tuple[int, int]]
ACTION_SETS: Ends = {"epsilon": (3, 15), "steps": (3, 14), "step_size": (1, 5)}
"""The ends of ASTrA's sets: a color scale spans at least those of its world, so that figures of its runs compare."""
MOST_TICKS = 16
"""Largest number of radii that are named below a figure's axis."""
ACTION_TITLES = {
    "epsilon": "Attack radius $\\epsilon$ (/255)",
    "steps": "Number of attack steps",
    "step_size": "Attack step size (/255)",
}


class Shares(NamedTuple):
    """Shares of the chosen values over training: `share[i, j]` is that of `values[i]` in the j-th window of updates.

    `edges` (windows + 1,) are the windows' borders in target updates; every column of `share` sums to 1.
    """

    edges: Array
    values: tuple[int, ...]
    share: Array


def ends_of(sets: ActionSets) -> Ends:
    """Return the smallest and the largest member of each set, in whole 1/255 for epsilon and step size."""
    scales = {"epsilon": UNIT, "steps": 1, "step_size": UNIT}
    return {
        name: (math.floor(scales[name] * members[0] + 1e-6), math.ceil(scales[name] * members[-1] - 1e-6))
        for name, members in sets.by_name.items()
    }


def action_counts(rows: Sequence[MetricsRow], kind: str, windows: int = 60, ends: Ends = ACTION_SETS) -> Shares:
    """Sum the chosen actions over windows of updates and turn them into shares.

    Args:
        rows: metrics, one row per target update; those without `actions/...` (no attack) are left out.
        kind: `epsilon`, `steps` or `step_size`.
        windows: number of windows; fewer if there are fewer updates, or so few actions that a window would hold less
            than 16 (a share of one or two choices says nothing). A continuous value counts as the nearest integer (all
            sets of actions are integers, in /255 for epsilon and step size).
        ends: the values by kind that are listed at least, used or not.

    Raises:
        ValueError: if no row has actions.
    """
    name = f"actions/{in_255(kind)}"
    chosen = [(row["step"], row[name]) for row in rows if row.get(name)]
    if not chosen:
        raise ValueError(f"no metrics row has '{name}': a run without an attack has no actions to draw")
    rounded = [[(math.floor(float(value) + 0.5), count) for value, count in counts.items()] for _, counts in chosen]
    present = [value for counts in rounded for value, _ in counts]
    low, high = ends[kind]
    values = tuple(range(min(low, *present), max(high, *present) + 1))
    counted = np.zeros((len(values), len(chosen)))
    for column, counts in enumerate(rounded):
        for value, count in counts:
            counted[value - values[0], column] += count
    windows = max(1, min(windows, len(chosen), int(counted.sum()) // 16))
    groups = np.array_split(np.arange(len(chosen)), windows)
    summed = np.stack([counted[:, group].sum(1) for group in groups], axis=1)
    steps = [step for step, _ in chosen]
    edges = np.array([steps[group[0]] - 1 for group in groups] + [steps[-1]], dtype=np.float64)
    return Shares(edges, values, summed / summed.sum(0))


@matplotlib.rc_context(STYLE)
def action_shares(rows: Sequence[MetricsRow], path: Path | str, windows: int = 60, ends: Ends = ACTION_SETS) -> None:
    """Draw the share of each epsilon, number of steps and step size over training as stacked areas.

    This is the exploration-exploitation figure of the ASTrA paper (ICLR 2025).

    Args:
        rows: metrics, one row per target update, with `step` and `actions/...` as {value: count}.
        path: path of the PNG.
        windows, ends: see `action_counts`.

    Raises:
        ValueError: if no row has actions.
    """
    figure, axes = new_figure(3, 7.2, sharex=True)
    for axis, (kind, title) in zip(axes, ACTION_TITLES.items(), strict=True):
        shares = action_counts(rows, kind, windows, ends)
        stack_shares(axis, shares)
        axis.set(title=title, ylabel="share (%)")
        value_bar(figure, axis, shares.values)
    axes[-1].set_xlabel("target updates")
    axes[-1].xaxis.set_major_locator(MaxNLocator(6, integer=True))
    save_figure(figure, path)


def stack_shares(axis: Axes, shares: Shares, least: float = 12) -> None:
    """Draw shares as stacked areas; label those of at least `least` percent at their right end, where the reader looks
    for what was learned.
    """
    # Each window is a step, not a point of a line, because a slope would invent shares between two windows.
    drawn = np.concatenate([shares.share, shares.share[:, -1:]], axis=1)
    colors = _colors(shares.values)
    axis.stackplot(shares.edges, 100 * drawn, colors=list(colors), step="post", linewidth=0)
    axis.set(xlim=(shares.edges[0], shares.edges[-1]), ylim=(0, 100))
    axis.set_yticks([0, 50, 100])
    tops = 100 * np.cumsum(shares.share[:, -1])
    for value, top, share in zip(shares.values, tops, 100 * shares.share[:, -1], strict=True):
        if share >= least:
            axis.annotate(
                f"{value}",
                (1, top - share / 2),
                (4, 0),
                xycoords=axis.get_yaxis_transform(),
                textcoords="offset points",
                va="center",
                weight="bold",
                annotation_clip=False,
            )


def _colors(values: Sequence[int]) -> Array:
    return matplotlib.colormaps["viridis"](np.linspace(0, 1, len(values)))


def value_bar(figure: Figure, axes: Axes | Sequence[Axes], values: Sequence[int], **place: Any) -> None:
    """Draw the scale of the areas' colors; `place` is as in `Figure.colorbar`, by default at the right."""
    norm = BoundaryNorm(np.arange(values[0], values[-1] + 2) - 0.5, len(values))
    place = {"pad": 0.06, "fraction": 0.035, "aspect": 14} | place
    bar = figure.colorbar(ScalarMappable(norm, ListedColormap(_colors(values))), ax=axes, **place)
    bar.set_ticks(list(values[:: math.ceil(len(values) / 5)]))
    bar.ax.tick_params(length=0)
    bar.ax.minorticks_off()
    bar.outline.set_visible(False)


@matplotlib.rc_context(STYLE)
def losses_and_reward(rows: Sequence[MetricsRow], path: Path | str) -> None:
    """Draw the training losses, the reward's two terms and the mean reward against the target updates.

    Whatever a method lacks is left out: simclr has one loss and no reward, and so one panel.

    Args:
        rows: metrics, one row per target update, with `step`, `loss/...` and `reward/...`.
        path: path of the PNG.

    Raises:
        ValueError: if no row has a loss.
    """
    losses = {
        "loss/total": ("total", INK, "-"),
        "loss/adversarial": ("adversarial", ORANGE, "--"),
        "loss/clean": ("clean", BLUE, "-."),
        "loss/mixed": ("mixed", GREEN, ":"),
    }
    terms = {"reward/adversarial": ("attacked", ORANGE, "--"), "reward/clean": ("clean", BLUE, "-.")}
    reward = {"reward/mean": ("", PURPLE, "-")}
    panels = [
        ("Training loss", losses, "loss (nats)"),
        ("Contrastive loss of the views before each update", terms, "loss (nats)"),
        ("Mean reward of the agent", reward, "reward"),
    ]
    drawn = [
        (title, found, unit)
        for title, lines, unit in panels
        if (found := {key: line for key, line in lines.items() if len(series(rows, key)[0])})
    ]
    if not drawn or drawn[0][0] != "Training loss":
        raise ValueError("no metrics row has a 'loss/...' entry: there is nothing to draw")
    figure, axes = new_figure(len(drawn), 0.8 + 2.1 * len(drawn), sharex=True)
    for axis, (title, lines, unit) in zip(axes, drawn, strict=True):
        for key, (name, color, dash) in lines.items():
            x, y = series(rows, key)
            axis.plot(x, y, color=color, alpha=0.22, linewidth=0.8)
            axis.plot(x, smoothed(y), dash, color=color, label=name)
        if lines.keys() == terms.keys():
            (x, attacked), (_, clean) = (series(rows, key) for key in terms)
            gap = axis.fill_between(x, smoothed(clean), smoothed(attacked), color=PURPLE, alpha=0.14, linewidth=0)
            gap.set_label("gap")
        axis.set(title=title, ylabel=unit)
        axis.margins(x=0)
        axis.yaxis.set_major_locator(MaxNLocator(5))
        if len(lines) > 1:
            axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), handlelength=1.9)
    axes[-1].set_xlabel("target updates (thin: each update; thick: running mean)")
    axes[-1].xaxis.set_major_locator(MaxNLocator(6, integer=True))
    save_figure(figure, path)


def series(rows: Sequence[MetricsRow], key: str) -> tuple[Array, Array]:
    """Return the target updates at which `key` has a value (null means one that was not finite), and the values."""
    found = [(row["step"], row[key]) for row in rows if row.get(key) is not None]
    x, y = np.array(found, dtype=np.float64).reshape(-1, 2).T
    return x, y


def smoothed(y: Array) -> Array:
    """Return the centered running mean over a fifteenth of the length, over a shorter window at both ends."""
    half = len(y) // 30
    total = np.concatenate([[0.0], np.cumsum(y)])
    index = np.arange(len(y))
    low, high = np.maximum(index - half, 0), np.minimum(index + half + 1, len(y))
    return np.asarray((total[high] - total[low]) / (high - low))


@matplotlib.rc_context(STYLE)
def attack_gallery(clean: Tensor, adversarial: Tensor, budget: Budget, path: Path | str, columns: int = 8) -> None:
    """Draw clean views, attacked views and the perturbation, with the budget under each column.

    Args:
        clean: (n, 3, H, W) in [0, 1].
        adversarial: the same views under attack, same shape.
        budget: largest budget of each attack, n entries.
        path: path of the PNG.
        columns: largest number of views that are drawn, from the first.

    Raises:
        ValueError: if shapes and budget do not fit together.
    """
    if clean.shape != adversarial.shape or clean.ndim != 4 or clean.shape[1] != 3 or len(clean) != len(budget):
        raise ValueError(
            f"clean is {tuple(clean.shape)}, adversarial {tuple(adversarial.shape)}, with {len(budget)} budgets: "
            "expected (n, 3, H, W) twice and n budgets"
        )
    n = min(columns, len(clean))
    before, after = (x[:n].detach().float().cpu().permute(0, 2, 3, 1).numpy() for x in (clean, adversarial))
    noise, gain = amplified(after - before)
    cell = WIDTH / 8.6
    figure, axes = new_figure(3, 3 * cell + 1.2, columns=n, width=max(n + 0.6, 3.6) * cell)
    labels = ("clean", "attacked", f"change\n$\\times${gain:.0f}")
    for row, (name, images) in enumerate(zip(labels, (before, after, noise), strict=True)):
        for column in range(n):
            axis = axes[row * n + column]
            axis.imshow(images[column], vmin=0, vmax=1, interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
        axes[row * n].set_ylabel(name)
    for column in range(n):
        epsilon, step = 255 * float(budget.epsilon[column]), 255 * float(budget.step_size[column])
        axes[2 * n + column].set_xlabel(f"{epsilon:.3g}\n{int(budget.steps[column])} $\\times$ {step:.3g}")
    note = "radius $\\epsilon$ (/255)\nsteps $\\times$ step size (/255)"
    figure.supxlabel(note, fontsize=STYLE["font.size"])
    save_figure(figure, path)


def amplified(noise: Array) -> tuple[Array, float]:
    """Return the perturbation as an image around mid-gray, with one gain for all images so that their sizes compare.

    Returns:
        The image, in [0, 1], and the gain, a whole number.
    """
    largest = float(np.abs(noise).max(initial=0.0))
    # The tolerance keeps float32 rounding from lowering the gain by one where 0.5 / largest is a whole number.
    gain = max(1.0, math.floor(0.5 / largest + 1e-4)) if largest > 0 else 1.0
    return np.clip(0.5 + gain * noise, 0, 1), gain


class Curve(NamedTuple):
    """Accuracy in percent against epsilon in /255, with the borders of its 95 % Wilson interval; each (k,)."""

    epsilon: Array
    value: Array
    low: Array
    high: Array


def accuracy_curve(rows: Sequence[Row]) -> Curve:
    """Return SA, at epsilon 0, and RA at each epsilon, in rising order.

    Raises:
        ValueError: if there are no rows, or two rows have the same epsilon and so are of different classifiers.
    """
    points = {row.epsilon: row for row in rows if not (row.metric == "RA" and row.epsilon == 0)}
    if not points or len(points) < sum(not (row.metric == "RA" and row.epsilon == 0) for row in rows):
        raise ValueError(
            f"expected one row for each epsilon, of one classifier, not rows at {[row.epsilon for row in rows]}"
        )
    ordered = [points[epsilon] for epsilon in sorted(points)]
    table = [(255 * row.epsilon, row.value, *(row.interval or (row.value, row.value))) for row in ordered]
    return Curve(*np.array(table, dtype=np.float64).T)


@matplotlib.rc_context(STYLE)
def accuracy_against_epsilon(classifiers: Mapping[str, Sequence[Row]], path: Path | str) -> None:
    """Draw SA at 0 and RA under PGD-20 at each epsilon, with 95 % Wilson intervals.

    Args:
        classifiers: the rows of each classifier by its label ("trained", "random weights", "raw pixels", ...).
        path: path of the PNG.

    Raises:
        ValueError: if there is no classifier, more than four, or rows that are not of one classifier.
    """
    marks = (("o-", BLUE), ("s--", ORANGE), ("^:", GREEN), ("D-.", PURPLE))
    if not 1 <= len(classifiers) <= len(marks):
        raise ValueError(f"{len(classifiers)} classifiers are given: expected 1 to {len(marks)}")
    # names of usual runs, behind the protocol, do not fit beside each other
    columns = 1 if max(map(len, classifiers)) > 20 else 2 if len(classifiers) == 4 else 3
    figure, (axis,) = new_figure(1, 3.8 + (0.25 * (len(classifiers) - 1) if columns == 1 else 0))
    for (name, rows), (mark, color) in zip(classifiers.items(), marks, strict=False):
        curve = accuracy_curve(rows)
        # Never negative, though at 0 % the interval's border and the value differ by rounding.
        errors = np.maximum([curve.value - curve.low, curve.high - curve.value], 0)
        words = label(name, width=50)
        axis.errorbar(
            curve.epsilon, curve.value, errors, fmt=mark, color=color, label=words, capsize=3, elinewidth=1, ms=6
        )
    epsilons = sorted({round(255 * row.epsilon, 6) for rows in classifiers.values() for row in rows})
    ticks = epsilons[:: math.ceil(len(epsilons) / MOST_TICKS)]
    axis.set_xticks(ticks, [f"{epsilon:g}" for epsilon in ticks])
    axis.set(
        xlabel="attack radius $\\epsilon$ (/255); 0: no attack, else PGD-20",
        ylabel="test accuracy (%)",
        ylim=(-2, 102),
    )
    axis.grid(axis="y")
    axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=columns)
    save_figure(figure, path)


@matplotlib.rc_context(STYLE)
def reward_comparison(rewards: Mapping[str, Sequence[float]], path: Path | str) -> None:
    """Draw each policy's mean reward on the same frozen checkpoint: a tick for each seed, a dot for the mean, and a bar
    for its 95 % interval.

    Args:
        rewards: mean rewards, one per seed, by the policy's label ("trained", "uniform random", "fixed").
        path: path of the PNG.

    Raises:
        ValueError: if there is no policy, or values that are not finite.
    """
    if not rewards:
        raise ValueError("no policy is given: expected the mean rewards of at least one")
    figure, (axis,) = new_figure(1, 1.4 + 0.55 * len(rewards))
    for place, values in enumerate(rewards.values()):
        mean, low, high = mean_interval(values)
        color = BLUE if place == 0 else INK
        axis.plot([low, high], [place, place], color=color, linewidth=2.2)
        axis.plot(mean, place, "o", color=color, ms=8)
        axis.plot(values, [place + 0.24] * len(values), "|", color=color, alpha=0.6, ms=8)
        axis.annotate(f"{mean:.3f}", (mean, place), (0, 8), textcoords="offset points", ha="center")
    axis.set_yticks(range(len(rewards)), list(rewards))
    axis.set(ylim=(len(rewards) - 0.5, -0.65))
    figure.supxlabel("mean reward (dot: mean; bar: 95 % interval; ticks: seeds)", fontsize=STYLE["font.size"])
    axis.tick_params(axis="y", length=0)
    axis.spines["left"].set_visible(False)
    axis.grid(axis="x")
    axis.margins(x=0.08)
    save_figure(figure, path)
