import itertools

import numpy as np
import pytest
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from astra_gym.experiments.plotting.label_placement import End, label_ends, label_points, overlaps, spread
from astra_gym.experiments.plotting.style import new_figure


def test_heights_that_are_apart_stay() -> None:
    assert spread([10, 40, 60], 13, 0, 100).tolist() == [10, 40, 60]


def test_near_heights_move_apart_by_as_little_as_possible() -> None:
    assert spread([50, 50, 50, 90], 10, 0, 100) == pytest.approx([40, 50, 60, 90])
    assert spread([], 10, 0, 100).tolist() == []


def test_heights_stay_within_the_panel() -> None:
    assert spread([0, 1], 10, 0, 100) == pytest.approx([0, 10])
    assert spread([99, 100], 10, 0, 100) == pytest.approx([90, 100])


def test_overlaps_are_shared_areas() -> None:
    boxes = np.array([[0.0, 0, 2, 2], [5, 5, 6, 6]])
    assert overlaps(boxes, np.array([[1.0, 1, 4, 4], [0, 0, 9, 9]])).tolist() == [[1, 4], [0, 1]]


def test_names_of_points_cover_neither_each_other_nor_points() -> None:
    figure, (axis,) = new_figure(1, 4)
    grid = itertools.product((0.0, 0.02, 0.9), (0.1, 0.12, 0.15, 0.8))
    points = {f"arm number {index}": point for index, point in enumerate(grid)}
    for x, y in points.values():
        axis.plot(x, y, "o", ms=7)
    axis.margins(0.1)
    label_points(figure, axis, points, dict.fromkeys(points, "black"), [((0, 0.1), (0.9, 0.1))])
    boxes = [text.get_window_extent() for text in axis.texts]
    assert len(boxes) == 12
    assert not [pair for pair in itertools.combinations(boxes, 2) if Bbox.intersection(*pair) is not None]
    frame = axis.get_window_extent()
    spots = axis.transData.transform(list(points.values()))
    for box in boxes:
        assert frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
        assert not any(box.contains(*spot) for spot in spots)


def test_names_of_lines_are_apart_and_in_the_lines_order() -> None:
    figure, (axis,) = new_figure(1, 3)
    axis.plot([0, 1], [0, 1])
    label_ends(figure, [(axis, [End(0.51, "b", "black"), End(0.5, "a", "black"), End(0.9, "c", "black")])])
    figure.draw_without_rendering()
    heights = {text.get_text(): Text.get_window_extent(text).y0 for text in axis.texts}
    assert heights["b"] - heights["a"] >= 13.9 * figure.dpi / 72
    assert heights["c"] > heights["b"]
