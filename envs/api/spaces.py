"""Action spaces that know what their actions mean: spaces of equal sizes with other values are different."""

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium
from gymnasium import spaces

Sets = Mapping[str, Sequence[float]]
LISTED = 7
"""Sets of at most so many members are written out."""
UNIT = 255
ATTACK = ("epsilon", "steps", "step_size")
"""The parts of an action that chooses an attack, in their order."""


class Meaning:
    """A mix-in for spaces: the sets that actions choose among, by name. It is part of a comparison of spaces."""

    sets: dict[str, tuple[float, ...]]

    def __eq__(self, other: object) -> bool:
        return super().__eq__(other) and getattr(other, "sets", None) == self.sets

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        described = ", ".join(f"{name} {_described(name, members)}" for name, members in self.sets.items())
        return f"{super().__repr__()} of {described}"


class MeantMultiDiscrete(Meaning, spaces.MultiDiscrete):
    """A `MultiDiscrete` with a meaning."""


class MeantDiscrete(Meaning, spaces.Discrete):
    """A `Discrete` with a meaning."""


class MeantBox(Meaning, spaces.Box):
    """A `Box` with a meaning."""


def meaning(space: gymnasium.Space, sets: Sets) -> Any:
    """Return a space that is equal only to one with the same sets.

    Args:
        space: a `MultiDiscrete`, `Discrete` or `Box`.
        sets: the sets that actions choose among, by name.
    """
    made: Any
    if isinstance(space, spaces.MultiDiscrete):
        made = MeantMultiDiscrete(space.nvec)
    elif isinstance(space, spaces.Discrete):
        made = MeantDiscrete(space.n)
    else:
        box: Any = space
        made = MeantBox(box.low, box.high, dtype=box.dtype.type)
    made.sets = {name: tuple(members) for name, members in sets.items()}
    return made


def part_names(space: gymnasium.Space, parts: int) -> tuple[str, ...]:
    """Return the names of an action's parts, in their order: those of the space's meaning, or `ATTACK` for three parts;
    empty if there are none."""
    names = tuple(getattr(space, "sets", ATTACK))
    return names if len(names) == parts else ()


def _described(name: str, members: Sequence[float]) -> str:
    scale, unit = (1, "") if name == "steps" else (UNIT, "/255")
    if len(members) > LISTED:
        return f"{members[0] * scale:g}{unit} to {members[-1] * scale:g}{unit} ({len(members)} values)"
    return f"[{', '.join(f'{member * scale:g}' for member in members)}]{unit}"
