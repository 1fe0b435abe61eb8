"""The rule of a verdict."""

import math

import pytest

from astra_gym.experiments.headroom.verdicts import Verdict, decide


@pytest.mark.parametrize(
    ("gains", "spread", "verdict", "bar"),
    [
        ([2.0, 2.1, 2.2], None, "headroom", 1.0),
        # a sure gain below the bar is headroom too, of its small size
        ([0.01, 0.011, 0.012], None, "headroom", 1.0),
        ([0.0, 0.1, -0.1], None, "none", 1.0),
        ([-2.0, -2.1, -2.2], None, "none", 1.0),
        ([0.0, 2.0, -2.0], None, "undecided", 1.0),
        ([0.0, 0.1, -0.1], 1.0, "undecided", 0.05),
        ([0.0, 0.1, -0.1], 10.0, "none", 0.5),
        ([5.0, 5.0], None, "undecided", 1.0),
        # equal gains have no interval, but those of equal choices
        ([0.28, 0.28, 0.28], None, "undecided", 1.0),
        ([0.0, 0.0, 0.0], None, "none", 1.0),
        ([0.0, 0.0], None, "undecided", 1.0),
    ],
)
def test_an_interval_decides(gains: list[float], spread: float | None, verdict: str, bar: float) -> None:
    found = decide("a choice", gains, "points", spread)
    assert (found.verdict, found.bar, found.n) == (verdict, pytest.approx(bar), len(gains))
    assert found.mean == pytest.approx(sum(gains) / len(gains))
    assert (found.low is None) == (found.high is None) == (len(gains) < 3 or len(set(gains)) == 1)
    assert Verdict(**found.record) == found


def test_the_interval_is_students() -> None:
    found = decide("a choice", [1.0, 2.0, 3.0], "points")
    assert found.low == pytest.approx(2 - 4.302653 / math.sqrt(3)) and found.verdict == "undecided"


@pytest.mark.parametrize("spread", [math.nan, -1.0, math.inf])
def test_a_spread_that_is_none_is_refused(spread: float) -> None:
    with pytest.raises(ValueError, match="the spread is"):
        decide("a choice", [1.0, 2.0, 3.0], "loss", spread)
