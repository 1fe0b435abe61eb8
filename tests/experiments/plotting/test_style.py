import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from astra_gym.experiments.plotting.style import label, new_figure


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
