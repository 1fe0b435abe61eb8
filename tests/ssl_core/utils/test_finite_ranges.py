import math
from typing import Any

import numpy as np
import pytest

from astra_gym.ssl_core.utils.finite import check_number, is_number


@pytest.mark.parametrize("value", [0, 1, -1.5, np.float32(2), np.int64(3), 1e300])
def test_numbers(value: Any) -> None:
    assert is_number(value)
    assert is_number(value, whole=True) == isinstance(value, int | np.integer)


@pytest.mark.parametrize("value", [True, np.True_, None, "1", math.nan, math.inf, 10**400, [1], 1j])
def test_what_is_no_finite_number(value: Any) -> None:
    assert not is_number(value) and not is_number(value, whole=True)
    with pytest.raises(ValueError, match=r"^x is .*: expected a finite number of 0 or more$"):
        check_number("x", value)


@pytest.mark.parametrize(
    ("value", "limits", "message"),
    [
        (-1, {}, "x is -1: expected a finite number of 0 or more"),
        (0, {"above": True}, "x is 0: expected a finite number above 0"),
        (1.5, {"low": 1, "whole": True}, "x is 1.5: expected an integer of 1 or more"),
        (0, {"low": 1, "high": 10_000, "whole": True}, "x is 0: expected an integer from 1 to 10,000"),
        (2, {"high": 1}, r"x is 2: expected a finite number in \[0, 1\]"),
        (1, {"high": 1, "below": True}, r"x is 1: expected a finite number in \[0, 1\)"),
        (0.0, {"high": 1, "above": True}, r"x is 0.0: expected a finite number in \(0, 1\]"),
        (8, {"high": 1, "expected": "8/255 and not 8"}, "x is 8: expected 8/255 and not 8"),
    ],
)
def test_a_number_out_of_its_range_is_refused(value: float, limits: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        check_number("x", value, **limits)


def test_both_ends_are_in_the_range_unless_said() -> None:
    check_number("x", 0, 0, 1)
    check_number("x", 1, 0, 1)
    check_number("x", 0.5, 0, 1, above=True, below=True)
    check_number("x", -5, -math.inf)
