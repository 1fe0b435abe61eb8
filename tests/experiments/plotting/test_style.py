import matplotlib
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from astra_gym.experiments.plotting.style import STYLE, label, new_figure


@pytest.mark.parametrize(
    ("text", "shown"),
    [("a_b", "a_b"), ("_a", " _a"), ("a\nb\x1b", "a?b?"), ("$\\frac{$", "$\\frac{$"), ("\\$1$", "\\$1$")],
)
def test_a_label_is_shown_as_it_is(text: str, shown: str) -> None:
    figure, (axis,) = new_figure(1, 2)
    axis.plot([0, 1], [0, 1], label=label(text))
    legend = axis.legend()
    FigureCanvasAgg(figure).draw()
    [drawn] = legend.get_texts()
    # what is not a formula loses the backslashes before its dollar signs when it is drawn
    assert drawn._preprocess_math(drawn.get_text()) == (shown, False)


def test_a_grid_of_one_axis_is_drawn_whatever_the_users_own_style_has() -> None:
    with matplotlib.rc_context({"axes.grid": True}), matplotlib.rc_context(STYLE):
        _, (axis,) = new_figure(1, 2)
        axis.grid(axis="y")
        shown = [bool(lines) and lines[0].get_visible() for lines in (axis.get_xgridlines(), axis.get_ygridlines())]
    assert shown == [False, True]
