"""One way to look a name up, with an error that helps."""

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeVar

T = TypeVar("T")


def unknown(name: object, choices: Iterable[str], what: str) -> ValueError:
    """The error for a name that is not among the choices; it lists them and offers the nearest."""
    choices = list(choices)
    nearest = difflib.get_close_matches(str(name), choices, n=1, cutoff=0.5)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
    return ValueError(f"unknown {what} {name!r}: choose from {', '.join(choices)}{hint}")


def pick(name: str, table: Mapping[str, T], what: str) -> T:
    """The entry of `table` called `name`.

    Args:
        name: what the user asked for.
        table: the choices.
        what: what the names are, for the error: "agent", "data set", ...

    Raises:
        ValueError: if there is none; it lists the choices and offers the nearest name.
    """
    if not isinstance(name, str) or name not in table:
        raise unknown(name, table, what)
    return table[name]
