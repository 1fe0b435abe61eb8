"""Action spaces and what they mean: the only place that knows ranges and units of the attack's parameters."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from astra_gym.envs.api.action_sets import ASTRA_SETS, MOST_MEMBERS, UNIT, ActionSets
from astra_gym.envs.api.spaces import meaning
from astra_gym.ssl_core.attacks.pgd import Budget, ConstantBudget, whole_steps
from astra_gym.ssl_core.settings.records import Notes
from astra_gym.ssl_core.utils.finite import check_number
from astra_gym.ssl_core.utils.messages import shown
from astra_gym.ssl_core.utils.overrides import written_out
from astra_gym.ssl_core.utils.registry import pick

ACTION_KINDS = {
    "factored": "MultiDiscrete([13, 12, 5]): an index each of epsilon, steps and step size in their sets",
    "flat": "Discrete(780): the same choices as one number, epsilon slowest, step size fastest",
    "continuous": "Box(-1, 1, (3,)): epsilon, steps (rounded), step size between the ends of their sets",
    "none": "Discrete(1): no attack, for methods without one",
}


WITH_NONE = (0, *ASTRA_SETS.steps)
"""Its numbers of steps, and no attack."""


def members(given: Sequence[float] | Mapping[str, float], name: str) -> tuple[float, ...]:
    """Return the members of a set that is given as a list or as {from: 0, to: 96/255, by: 4/255}.

    Raises:
        ValueError: if it is neither, or a mapping has other keys, values that are no numbers, a span that is no
            multiple of `by`, or too many members.
    """
    if not isinstance(given, Mapping):
        if not isinstance(given, list | tuple | np.ndarray):
            raise ValueError(f"{name} is {shown(given)}: expected a list of numbers, or the keys from, to and by")
        listed: list[Any] = [written_out(value, float) for value in given]
        for value in listed:
            check_number(name, value)
        # no NumPy numbers, which a file of settings cannot hold
        return tuple(int(value) if isinstance(value, int | np.integer) else float(value) for value in listed)
    if given.keys() != {"from", "to", "by"}:
        raise ValueError(f"{name} is {shown(dict(given))}: expected a list, or the keys from, to and by")
    read = {key: written_out(value, float) for key, value in given.items()}
    for key, value in read.items():
        check_number(f"{name}.{key}", value)
    first, last, step = (read[key] for key in ("from", "to", "by"))
    spans = (last - first) / step if step > 0 else math.nan
    if not (0 <= spans < MOST_MEMBERS and abs(spans - round(spans)) < 1e-6):
        raise ValueError(
            f"{name} is {shown(dict(given))}: expected `to` at a whole number of steps `by` above `from`, and at most "
            f"{MOST_MEMBERS} members"
        )
    values = [first + index * step for index in range(round(spans) + 1)]
    # multiples of 1/255 are written as such, so that a range and a list of the same values are the same set
    return tuple(value if isinstance(value, int) else _in_units(value) for value in values)


def _in_units(value: float) -> float:
    units = round(value * UNIT)
    return units / UNIT if abs(value * UNIT - units) < 1e-6 else value


Fractions = tuple[float, ...] | dict[str, Any] | None


@dataclass(frozen=True, kw_only=True)
class RangesSection:
    """What actions choose among: lists of values in rising order, or ranges {from: 0, to: 96/255, by: 4/255}.

    Args:
        action_epsilons: radii that actions choose among; null: 3/255 to 15/255 by 1/255, as in ASTrA's run.
        action_steps: numbers of attack steps that actions choose among, where 0 leaves the view clean; null: 3 to 14.
        action_step_sizes: step sizes that actions choose among; null: 1/255 to 5/255 by 1/255.

    Raises:
        ValueError: if a set is empty or too large, its members do not rise, or one is out of its range.
    """

    action_epsilons: Annotated[Fractions, Notes(unit="[FRACTION,...]")] = None
    action_steps: Annotated[tuple[int, ...] | dict[str, Any] | None, Notes(unit="[STEPS,...]")] = None
    action_step_sizes: Annotated[Fractions, Notes(unit="[FRACTION,...]")] = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None:
                object.__setattr__(self, name, members(value, name))
        # it checks them
        self.sets  # noqa: B018

    @property
    def sets(self) -> ActionSets:
        """The sets, ASTrA's where none is given."""
        given = {name.removeprefix("action_"): value for name, value in vars(self).items() if value is not None}
        return ActionSets(**given)


@dataclass(frozen=True)
class ActionTable:
    """Conversion between actions of one kind and budgets.

    Args:
        kind: a name of `ACTION_KINDS`.
        sets: what actions choose among.

    Raises:
        ValueError: if the kind is unknown.
    """

    kind: str = "factored"
    sets: ActionSets = ASTRA_SETS

    def __post_init__(self) -> None:
        pick(self.kind, ACTION_KINDS, "kind of actions")

    @cached_property
    def space(self) -> gym.spaces.MultiDiscrete | gym.spaces.Discrete | gym.spaces.Box:
        """The space of one action. With other sets than ASTrA's it is equal only to spaces with the same sets."""
        sizes = [len(values) for values in self.sets.by_name.values()]
        if self.kind == "none":
            return gym.spaces.Discrete(1)
        made: Any = gym.spaces.Discrete(math.prod(sizes))
        if self.kind == "factored":
            made = gym.spaces.MultiDiscrete(sizes)
        if self.kind == "continuous":
            made = gym.spaces.Box(-1.0, 1.0, (len(sizes),), np.float32)
        return made if self.sets == ASTRA_SETS else meaning(made, self.sets.by_name)

    def check(self, actions: Tensor) -> None:
        """Raise a ValueError unless `actions` is a batch (n, ...) of members of the space."""
        space = self.space
        expected = f"{len(actions) if actions.ndim else 'n'} actions of {space}"
        shape = space.shape or ()
        if tuple(actions.shape[1:]) != shape or actions.ndim != len(shape) + 1:
            raise ValueError(f"actions have shape {tuple(actions.shape)}: expected {('n', *shape)}, {expected}")
        if isinstance(space, gym.spaces.Box):
            if not actions.is_floating_point():
                raise ValueError(f"actions have dtype {actions.dtype}: expected a floating type, {expected}")
            if not bool((actions.abs() <= 1).all()):
                raise ValueError(f"actions have NaN or values outside [-1, 1]: expected {expected}; clip them first")
            return
        if actions.is_floating_point() or actions.is_complex() or actions.dtype == torch.bool:
            advice = "; for floats set actions to continuous" if actions.is_floating_point() else ""
            raise ValueError(f"actions have dtype {actions.dtype}: expected an integer type, {expected}{advice}")
        sizes = torch.tensor(
            space.nvec if isinstance(space, gym.spaces.MultiDiscrete) else space.n, device=actions.device
        )
        if not bool(((actions >= 0) & (actions < sizes)).all()):
            raise ValueError(f"actions are out of range: expected {expected}, counted from 0")

    def decode(self, actions: Tensor) -> Budget | None:
        """Return the budgets of a batch of actions; None for the kind "none".

        Args:
            actions: (n, 3) integers ("factored"), (n,) integers ("flat", "none") or (n, 3) floats ("continuous").

        Raises:
            ValueError: if shape, dtype or range do not fit the space.
        """
        self.check(actions)
        if self.kind == "none":
            return None
        sets, chosen = self.sets.by_name, dict[str, Tensor]()
        if self.kind == "continuous":
            for (name, values), column in zip(sets.items(), actions.to(torch.float32).unbind(dim=1), strict=True):
                scale = 1 if name == "steps" else UNIT
                low, high = values[0] * scale, values[-1] * scale
                chosen[name] = (low + (column + 1) / 2 * (high - low)) / scale
            chosen["steps"] = chosen["steps"].round().to(torch.int64)
        else:
            heads = actions.unbind(dim=1) if self.kind == "factored" else _unraveled(actions, map(len, sets.values()))
            for (name, values), head in zip(sets.items(), heads, strict=True):
                kind = torch.int64 if name == "steps" else torch.float32
                chosen[name] = torch.tensor(values, dtype=kind, device=actions.device)[head.to(torch.int64)]
        # without a step nothing is attacked, and the random start would be noise
        chosen["epsilon"] = chosen["epsilon"].where(chosen["steps"] > 0, 0.0)
        return Budget(**chosen)

    def encode(self, budget: ConstantBudget) -> np.ndarray:
        """Return the action of a budget.

        Raises:
            ValueError: if a value is outside its range, or not in its set for a discrete kind.
        """
        if self.kind == "none":
            return np.int64(0)  # type: ignore[return-value]
        whole_steps(budget.steps)
        sets = self.sets.by_name
        shares, indices = [], []
        for name, values in sets.items():
            scale, unit = (1, "") if name == "steps" else (UNIT, "/255")
            scaled = [member * scale for member in values]
            value, low, high = getattr(budget, name) * scale, scaled[0], scaled[-1]
            if not low - 1e-6 <= value <= high + 1e-6:
                ranges = f"action_{name.removesuffix('s')}s"
                raise ValueError(
                    f"{name} is {value:g}{unit}: expected {low:g}{unit} to {high:g}{unit}, or other {ranges}"
                )
            inside = min(max(value, low), high)
            shares.append(2 * (inside - low) / (high - low) - 1 if high > low else 0.0)
            gaps = [abs(member - value) for member in scaled]
            indices.append(gaps.index(min(gaps)))
            if self.kind != "continuous" and min(gaps) > 1e-3:
                raise ValueError(
                    f"{name} is {value:g}{unit}: the nearest that {self.kind} actions have is "
                    f"{scaled[indices[-1]]:g}{unit}; take that, or continuous actions"
                )
        if self.kind == "continuous":
            return np.array(shares, np.float32)
        if self.kind == "flat":
            return np.ravel_multi_index(indices, [len(values) for values in sets.values()])  # type: ignore[return-value]
        return np.array(indices, np.int64)


def _unraveled(flat: Tensor, sizes: Iterable[int]) -> list[Tensor]:
    """Return the indices (n,) along each axis of flat ones, the last axis fastest."""
    heads: list[Tensor] = []
    for size in reversed(list(sizes)):
        heads.insert(0, flat % size)
        flat = flat // size
    return heads
