"""One way to look a name up, with an error that helps."""

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeVar

from astra_gym.ssl_core.utils.messages import few, shown

T = TypeVar("T")
SHORT = 120
"""Characters of a list of names that an error has room for."""
LISTED = ("method", "agent", "data set")
"""What `train_agent.py --list` lists."""


def unknown(name: object, choices: Iterable[str], what: str) -> ValueError:
    """The error for a name that is not among the choices; it offers the nearest, and lists them where they are few."""
    choices = list(choices)
    nearest = difflib.get_close_matches(str(name)[:100], choices, n=1, cutoff=0.5)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
    listed = ", ".join(choices)
    if len(listed) > SHORT:
        where = "train_agent.py --list" if what in LISTED else "--help, or the documentation"
        listed = few(choices, where)
    return ValueError(f"unknown {what} {shown(name)}: choose from {listed}{hint}")


def pick(name: str, table: Mapping[str, T], what: str) -> T:
    """The entry of `table` called `name`.

    Args:
        name: what the user asked for.
        table: the choices.
        what: what the names are, for the error: "agent", "data set", ...

    Raises:
        ValueError: if there is none; it says which there are and offers the nearest name.
    """
    if not isinstance(name, str) or name not in table:
        raise unknown(name, table, what)
    return table[name]
