"""Lookup of a name in a table, with a helpful error."""

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import TypeVar

from astra_gym.ssl_core.utils.messages import brief, few, shown

T = TypeVar("T")
SHORT = 120
"""Largest number of characters of a list of names in an error."""
LISTED = ("method", "agent", "data set")
"""Kinds of names that the training's `--list` lists."""
CUSTOM = (*LISTED, "architecture", "attack start", "observation", "reward term")
"""Kinds of names that may be dotted paths to a user's own code."""
POINTS = re.compile(r"([^\W\d]\w*(?:\.[^\W\d]\w*)*)\.([^\W\d]\w*)")
"""A dotted path with a point where its colon belongs."""


def choices_for(name: object, choices: Iterable[str], what: str) -> str:
    """Return how an error ends that is of an unknown name: the choices if they are few, and the nearest one."""
    choices = list(choices)
    nearest = difflib.get_close_matches(str(name)[:100], choices, n=1, cutoff=0.5)
    if what in CUSTOM and isinstance(name, str) and (path := POINTS.fullmatch(name)):
        nearest = [brief(":".join(path.groups()))]
    hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
    listed = ", ".join(choices)
    if len(listed) > SHORT:
        where = "--list of the training" if what in LISTED else "--help, or the documentation"
        listed = few(choices, where)
    return f"choose from {listed}{hint}"


def unknown(name: object, choices: Iterable[str], what: str) -> ValueError:
    """Return the error for an unknown name; it suggests the nearest choice, and lists the choices if they are few."""
    return ValueError(f"unknown {what} {shown(name)}: {choices_for(name, choices, what)}")


def pick(name: str, table: Mapping[str, T], what: str) -> T:
    """Return the entry of `table` called `name`.

    Args:
        name: name from the user.
        table: the choices.
        what: kind of the names, for the error: "agent", "data set", ...

    Raises:
        ValueError: if there is no such entry; the error lists the names and suggests the nearest.
    """
    if not isinstance(name, str) or name not in table:
        raise unknown(name, table, what)
    return table[name]
