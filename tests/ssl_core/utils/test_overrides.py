"""Values of settings against the annotations of their types."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Optional

import numpy as np
import pytest

from astra_gym.ssl_core.methods.rocl import RoCL
from astra_gym.ssl_core.utils.overrides import fits, in_words, replaced


@pytest.mark.parametrize(
    ("kind", "good", "bad", "words"),
    [
        (int, [3, np.int64(3)], [3.0, True, "3", None], "an integer"),
        (float, [3, 0.5, np.float32(1), float("inf")], [True, "3", None, float("nan"), 10**400], "a number"),
        (Optional[float], [None, 1.0], ["x"], "a number or nothing"),  # noqa: UP045
        (float | Callable[[float], float], [1, abs], ["x", None], "a number or a function"),
        (tuple[int, ...], [(), [1, 2], (3,)], [3, [1, "x"], "12"], "a list (each an integer)"),
        (
            int | tuple[int, str],
            [2, (1, "step"), [1, "step"]],
            [[1], ["x", 1]],
            "an integer or a list of 2 (an integer, text)",
        ),
        (dict[str, Any], [{}], [[]], "settings by name"),
        (type[int] | None, [int, None], [3], "a class or nothing"),
        (Literal["a", 2], ["a", 2], ["b"], "'a' or 2"),
        (Any, [object(), None], [], "a Any"),
        ("NameOfATypeChecker", [3], [], "a NameOfATypeChecker"),
    ],
)
def test_values_against_annotations(kind: Any, good: list[Any], bad: list[Any], words: str) -> None:
    assert [fits(value, kind) for value in good] == [True] * len(good)
    assert [fits(value, kind) for value in bad] == [False] * len(bad)
    assert in_words(kind) == words


def test_an_old_name_is_read_unless_a_field_has_it() -> None:
    @dataclass(frozen=True)
    class Own(RoCL):
        regulariser: float = 1.0

    assert replaced(RoCL(), {"regulariser": 3.0}, "rocl").regularizer == 3.0
    own = replaced(Own(), {"regulariser": 3.0}, "own")
    assert (own.regulariser, own.regularizer) == (3.0, 256.0)


@dataclass(frozen=True)
class Hinted:
    rate: "NameOfATypeChecker | None" = None  # type: ignore[name-defined]  # noqa: F821
    steps: "int" = 1


def test_names_that_only_a_type_checker_knows_are_not_checked() -> None:
    assert replaced(Hinted(), {"rate": 2, "steps": 3}, "the method 'mine'") == Hinted(2, 3)
    with pytest.raises(ValueError, match="steps of the method 'mine' is 'x': expected an integer"):
        replaced(Hinted(), {"steps": "x"}, "the method 'mine'")
