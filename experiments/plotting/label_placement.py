"""Names beside points and lines: nobody has to look a colour up in a legend."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from scipy.optimize import isotonic_regression

from astra_gym.experiments.plotting.run_plots import Array

GAP = 14.0
"""Points between labels one above the other."""
DISTANCES = (9, 15, 23, 33, 45, 59, 75)
"""Points from a point to its label, at every 30 degrees."""
Segment = tuple[tuple[float, float], tuple[float, float]]


class End(NamedTuple):
    """The label of a line that ends at height `y` at the right border of a panel."""

    y: float
    text: str
    colour: str


def label_points(
    figure: Figure,
    axis: Axes,
    points: Mapping[str, tuple[float, float]],
    colours: Mapping[str, str],
    lines: Sequence[Segment] = (),
) -> None:
    """Name points beside them, near, and clear of points, other labels and `lines` as far as there is room.

    Args:
        figure, axis: with everything else drawn.
        points: (x, y) by name, in data coordinates.
        colours: of the names.
        lines: upright and level lines to be kept clear of, too.
    """
    figure.draw_without_rendering()
    scale = figure.dpi / 72
    spots = {name: axis.transData.transform(point) for name, point in points.items()}
    taken = [np.concatenate([spot - 5 * scale, spot + 5 * scale]) for spot in spots.values()]
    weights = [5.0] * len(taken)
    for line in lines:
        ends = axis.transData.transform(line)
        taken.append(np.concatenate([ends.min(0) - scale, ends.max(0) + scale]))
        weights.append(1.0)
    inside = np.asarray(axis.get_window_extent().extents)
    # crowded points first: the lonely ones have a place anyway
    crowd = {name: sum(np.hypot(*(spot - s)) < 60 * scale for s in spots.values()) for name, spot in spots.items()}
    for name in sorted(points, key=lambda name: -crowd[name]):
        text = axis.annotate(
            name,
            points[name],
            (0, 0),
            textcoords="offset points",
            color=colours[name],
            va="center",
            path_effects=[withStroke(linewidth=2.5, foreground="white")],
        )
        size = text.get_window_extent()
        boxes, far = _around(spots[name], size.width, size.height, scale)
        covered = overlaps(boxes, np.array(taken)) @ np.array(weights)
        outside = size.width * size.height - overlaps(boxes, inside[None])[:, 0]
        box = boxes[int(np.argmin((covered + 5 * outside) / scale**2 + 0.6 * far))]
        text.set_position(((box[0] - spots[name][0]) / scale, ((box[1] + box[3]) / 2 - spots[name][1]) / scale))
        taken.append(box)
        weights.append(5.0)
        nearest = np.clip(spots[name], box[:2], box[2:])
        if np.hypot(*(nearest - spots[name])) > 12 * scale:
            x, y = zip(points[name], axis.transData.inverted().transform(nearest), strict=True)
            axis.plot(x, y, color="#909090", linewidth=0.6, zorder=0)


def _around(spot: Array, width: float, height: float, scale: float) -> tuple[Array, Array]:
    """Places of a label around a point, twelve for each of `DISTANCES`: left, bottom, right, top, and the distance."""
    angle, far = (part.ravel() for part in np.meshgrid(np.radians(np.arange(0, 360, 30)), DISTANCES))
    left = spot[0] + scale * far * np.cos(angle) - width * (1 - np.cos(angle)) / 2
    bottom = spot[1] + scale * far * np.sin(angle) - height / 2
    return np.stack([left, bottom, left + width, bottom + height], axis=1), far


def overlaps(boxes: Array, others: Array) -> Array:
    """Areas that (n, 4) boxes (left, bottom, right, top) share with (m, 4) others, (n, m)."""
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    return np.clip(high - low, 0, None).prod(-1)


def label_ends(figure: Figure, panels: Sequence[tuple[Axes, Sequence[End]]]) -> None:
    """Name lines at the right border of their panels, apart from each other."""
    notes = []
    for axis, ends in panels:
        notes += [
            axis.annotate(
                end.text,
                (1, end.y),
                (16, 0),
                xycoords=axis.get_yaxis_transform(),
                textcoords="offset points",
                va="center",
                color=end.colour,
                annotation_clip=False,
                arrowprops={"arrowstyle": "-", "color": end.colour, "linewidth": 0.6, "shrinkB": 0, "relpos": (0, 0.5)},
            )
            for end in sorted(ends)
        ]
    figure.draw_without_rendering()
    for axis, ends in panels:
        frame = axis.get_window_extent()
        bottom, top = (edge * 72 / figure.dpi for edge in (frame.y0, frame.y1))
        heights = [float(axis.transData.transform((0, end.y))[1]) * 72 / figure.dpi for end in sorted(ends)]
        for height, place in zip(heights, spread(heights, GAP, bottom, top), strict=True):
            notes.pop(0).set_position((16, place - height))


def spread(heights: Sequence[float], gap: float, bottom: float, top: float) -> Array:
    """Rising heights moved as little as possible (least squares) until they are `gap` apart, within bottom and top.

    Where there is no room for all, the last ones pass the top.
    """
    steps: Array = gap * np.arange(len(heights), dtype=np.float64)
    if not len(heights):
        return steps
    fitted = isotonic_regression(np.asarray(heights) - steps).x
    moved: Array = np.clip(fitted, bottom, max(bottom, top - steps[-1])) + steps
    return moved
