"""The style of every figure of a run, a comparison and the benchmark: sizes, colors, and the writing of files.

The figures are made for a README: one column wide, readable at half their width and in gray. Colors are from Okabe and
Ito's palette and viridis, which color-blind readers tell apart.
"""

from collections.abc import Sequence
from pathlib import Path
from textwrap import wrap
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from astra_gym.ssl_core.utils.files import replacing
from astra_gym.ssl_core.utils.messages import printable

WIDTH = 6.4
DPI = 200
INK = "#333333"
BLUE, ORANGE, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#7B4F9D"
STYLE: Any = {
    "font.size": 11,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.axisbelow": True,
    # so that a call for the grid of one axis draws it, whatever a matplotlibrc has
    "axes.grid": False,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.7,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.color": INK,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
}


def new_figure(
    rows: int,
    height: float,
    columns: int = 1,
    width: float = WIDTH,
    sharex: bool = False,
    sharey: bool = False,
    heights: Sequence[float] | None = None,
) -> tuple[Figure, list[Axes]]:
    """Make an empty figure of `width` times `height` inches and its axes, row by row.

    Args:
        rows, columns: size of the grid of axes.
        height, width: size in inches.
        sharex, sharey: whether all axes have one scale.
        heights: heights of the rows, relative to each other; equal by default.
    """
    # Not by pyplot, which would pick a window system, and keep the figures of every run in a global list.
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, sharex=sharex, sharey=sharey, squeeze=False, height_ratios=heights)
    return figure, list(axes.flat)


def label(text: str, width: int | None = None) -> str:
    """Escape a user's text for a figure: Matplotlib reads formulas between dollar signs, and leaves texts that begin
    with an underscore out of a legend. With a width it is broken into lines of at most so many characters."""
    if width is not None:
        return "\n".join(map(label, wrap(text, width)))
    return printable(f" {text}" if text.startswith("_") else text).replace("$", r"\$")


def save_figure(figure: Figure, path: Path | str) -> None:
    """Write a figure as PNG, atomically."""
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")
