from dataclasses import replace

import pytest

from ssl_core.results import Origin, Row
from ssl_core.sanity import SanityError, check_rows

ORIGIN = Origin(protocol="slf", route="pgd", seed=0, checkpoint="last", commit="unknown")
SA = ORIGIN.accuracy("SA", 900, 1000)


def robust_row(numerator: float, value: float, n: int = 1000) -> Row:
    return replace(SA, metric="RA", attack="pgd20", epsilon=numerator / 255, value=value, n=n)


def test_rows_that_agree_pass() -> None:
    check_rows([SA, robust_row(8, 40.5), robust_row(4, 70.0), robust_row(12, 41.0), robust_row(0, 90.0)])
    check_rows([replace(SA, n=100), robust_row(8, 40.0, 100), robust_row(9, 42.0, 100)])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([SA, robust_row(8, 90.1)], "90.10 % at epsilon 8/255, above the clean accuracy of 90.00 %"),
        ([SA, robust_row(0, 89.9)], "89.90 % at epsilon 0/255, but the clean accuracy is 90.00 %"),
        ([SA, robust_row(12, 40.6), robust_row(8, 40.0)], "40.60 % at epsilon 12/255, but 40.00 % at 8/255"),
        # A creep in small steps is a rise as well.
        ([SA, robust_row(8, 40.0), robust_row(9, 40.4), robust_row(10, 40.8)], "but 40.00 % at 8/255"),
    ],
)
def test_rows_that_contradict_one_another_are_an_error(rows: list[Row], message: str) -> None:
    with pytest.raises(SanityError, match=message):
        check_rows(rows)
