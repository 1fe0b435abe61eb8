"""Action spaces and what they mean: the only place that knows ranges and units of the attack's parameters."""

import math
from dataclasses import dataclass

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from astra_gym.ssl_core.attacks.pgd import Budget, ConstantBudget, whole_steps
from astra_gym.ssl_core.utils.registry import pick

UNIT = 255
"""Pixel values are fractions; the action sets are in steps of 1/255."""
EPSILONS = tuple(range(3, 16))
"""Radii in 1/255 (ASTrA's run)."""
STEPS = tuple(range(3, 15))
"""Numbers of ascent steps."""
STEP_SIZES = tuple(range(1, 6))
"""Step sizes in 1/255."""
GRID = {"epsilon": EPSILONS, "steps": STEPS, "step_size": STEP_SIZES}
"""The three sets by name, in the order of an action's components."""
ACTION_KINDS = {
    "factored": "MultiDiscrete([13, 12, 5]): epsilon, steps, step size",
    "flat": "Discrete(780): the same grid as one number, epsilon slowest, step size fastest",
    "continuous": "Box(-1, 1, (3,)): epsilon, steps (rounded), step size between the ends of their ranges",
    "none": "Discrete(1): no attack, for methods without one",
}


@dataclass(frozen=True)
class ActionTable:
    """Conversion between actions of one kind and budgets.

    Args:
        kind: a name of `ACTION_KINDS`.

    Raises:
        ValueError: if the kind is unknown.
    """

    kind: str = "factored"

    def __post_init__(self) -> None:
        pick(self.kind, ACTION_KINDS, "kind of actions")

    @property
    def space(self) -> gym.spaces.MultiDiscrete | gym.spaces.Discrete | gym.spaces.Box:
        """The space of one action."""
        sizes = [len(values) for values in GRID.values()]
        if self.kind == "factored":
            return gym.spaces.MultiDiscrete(sizes)
        if self.kind == "continuous":
            return gym.spaces.Box(-1.0, 1.0, (len(GRID),), np.float32)
        return gym.spaces.Discrete(math.prod(sizes) if self.kind == "flat" else 1)

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
            raise ValueError(f"actions have dtype {actions.dtype}: expected an integer type, {expected}")
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
        if self.kind == "continuous":
            ends = torch.tensor([(values[0], values[-1]) for values in GRID.values()], device=actions.device)
            low, high = ends.to(torch.float32).unbind(dim=1)
            columns = (low + (actions.to(torch.float32) + 1) / 2 * (high - low)).unbind(dim=1)
            value = dict(zip(GRID, columns, strict=True))
            return Budget(
                epsilon=value["epsilon"] / UNIT,
                step_size=value["step_size"] / UNIT,
                steps=value["steps"].round().to(torch.int64),
            )
        if self.kind == "flat":
            fastest, middle = len(STEP_SIZES), len(STEPS)
            heads = (actions // (fastest * middle), actions // fastest % middle, actions % fastest)
        else:
            heads = actions.unbind(dim=1)  # type: ignore[assignment]
        # the sets are runs of integers: a member is the first one plus the index
        chosen = {
            name: head.to(torch.int64) + values[0] for head, (name, values) in zip(heads, GRID.items(), strict=True)
        }
        return Budget(
            epsilon=chosen["epsilon"].to(torch.float32) / UNIT,
            step_size=chosen["step_size"].to(torch.float32) / UNIT,
            steps=chosen["steps"],
        )

    def encode(self, budget: ConstantBudget) -> np.ndarray:
        """Return the action of a budget.

        Raises:
            ValueError: if a value is outside its range, or not on the grid of a discrete kind.
        """
        if self.kind == "none":
            return np.int64(0)  # type: ignore[return-value]
        whole_steps(budget.steps)
        given = {"epsilon": budget.epsilon * UNIT, "steps": budget.steps, "step_size": budget.step_size * UNIT}
        values = []
        for name, choices in GRID.items():
            value = given[name]
            if not choices[0] - 1e-6 <= value <= choices[-1] + 1e-6:
                unit = "" if name == "steps" else "/255"
                raise ValueError(f"{name} is {value:g}{unit}: expected {choices[0]}{unit} to {choices[-1]}{unit}")
            values.append(min(max(value, choices[0]), choices[-1]))
        if self.kind == "continuous":
            ends = [(choices[0], choices[-1]) for choices in GRID.values()]
            return np.array([2 * (v - a) / (b - a) - 1 for v, (a, b) in zip(values, ends, strict=True)], np.float32)
        indices = [round(value - choices[0]) for value, choices in zip(values, GRID.values(), strict=True)]
        for (name, choices), value, index in zip(GRID.items(), values, indices, strict=True):
            if abs(value - choices[index]) > 1e-3:
                raise ValueError(
                    f"{name} is {value:g}/255: the nearest that {self.kind} actions have is {choices[index]}/255; "
                    f"take that, or continuous actions"
                )
        if self.kind == "flat":
            return np.ravel_multi_index(indices, [len(choices) for choices in GRID.values()])  # type: ignore[return-value]
        return np.array(indices, np.int64)
