"""Checks of single values: what passes, and the line that names what does not."""

from pathlib import Path

import numpy as np
import pytest

from astra_gym.ssl_core.settings.checks import check_numbers, check_options, check_path, check_truth


def test_what_is_right_or_left_out_passes() -> None:
    for value in (None, "here", Path("here")):
        check_path("place", value)
    for value in (None, {}, {"a": 1}):
        check_options("options", value)
    for numbers in ([1, 2.5], (1, 2), np.ones(2)):
        check_numbers("pair", numbers, 2)
    check_truth("truth", False)


@pytest.mark.parametrize(
    ("check", "message"),
    [
        (lambda: check_path("place", 3), "place is 3: expected a path"),
        (lambda: check_path("place", ""), "place is empty: expected a path"),
        (lambda: check_options("options", [1]), r"options is \[1\]: expected settings by name"),
        (lambda: check_options("options", {1: 2}), r"options is \{1: 2\}: expected settings by name"),
        (lambda: check_numbers("pair", [1], 2), r"pair is \[1\]: expected 2 numbers"),
        (lambda: check_numbers("pair", (1, True), 2), "expected 2 numbers"),
        (lambda: check_truth("truth", 1), "truth is 1: expected true or false"),
    ],
)
def test_what_is_wrong_is_named(check, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check()
