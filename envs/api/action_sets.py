"""What actions choose among: sets of radii, steps and step sizes."""

import itertools
from dataclasses import dataclass

from astra_gym.ssl_core.attacks.pgd import ConstantBudget
from astra_gym.ssl_core.utils.finite import check_number
from astra_gym.ssl_core.utils.messages import shown

UNIT = 255
"""Radii and step sizes are fractions of the pixel range; they are usually multiples of 1/255, which messages show."""
MOST_MEMBERS = 1000
"""The largest number of members of a set."""


@dataclass(frozen=True, kw_only=True)
class ActionSets:
    """What actions choose among, in rising order. A discrete action takes members of the sets, a continuous one values
    between their ends. The defaults are those of ASTrA's run.

    Args:
        epsilons: radii, fractions in [0, 1].
        steps: numbers of ascent steps; 0 leaves the view clean, whatever the radius is.
        step_sizes: step sizes, fractions in [0, 1].

    Raises:
        ValueError: if a set is empty or too large, its members do not rise, or one is out of its range.
    """

    epsilons: tuple[float, ...] = tuple(value / UNIT for value in range(3, 16))
    steps: tuple[int, ...] = tuple(range(3, 15))
    step_sizes: tuple[float, ...] = tuple(value / UNIT for value in range(1, 6))

    def __post_init__(self) -> None:
        for name, members in self.by_setting.items():
            if not 0 < len(members) <= MOST_MEMBERS:
                raise ValueError(f"{name} has {len(members)} members: expected 1 to {MOST_MEMBERS}")
            for value in members:
                if name == "action_steps":
                    check_number(f"a member of {name}", value, expected="an integer of 0 or more", whole=True)
                else:
                    check_number(f"a member of {name}", value, 0, 1)
            if any(second <= first for first, second in itertools.pairwise(members)):
                raise ValueError(f"{name} is {shown(list(members))}: expected members in rising order")

    @property
    def by_name(self) -> dict[str, tuple[float, ...]]:
        """The sets in the order of an action's components, under the names of `Budget`."""
        return {"epsilon": self.epsilons, "steps": self.steps, "step_size": self.step_sizes}

    @property
    def by_setting(self) -> dict[str, tuple[float, ...]]:
        """The sets under the names of a run's settings: `action_epsilons`, ..."""
        return {f"action_{name}": values for name, values in vars(self).items()}

    @property
    def hardest(self) -> ConstantBudget:
        """The largest radius and the most steps. The step size is the smallest with which these steps add up to three
        radii, and so reach every corner of the ball; the largest, if there is none. For ASTrA's sets, 4/255."""
        epsilon, steps = self.epsilons[-1], self.steps[-1]
        reaching = [size for size in self.step_sizes if size * steps > 3 * epsilon - 1e-9]
        return ConstantBudget(epsilon=epsilon, step_size=(reaching or self.step_sizes[-1:])[0], steps=steps)


ASTRA_SETS = ActionSets()
"""The sets of ASTrA's run."""
WIDE_SETS = ActionSets(
    epsilons=tuple(value / UNIT for value in range(0, 49, 2)),
    steps=(0, 1, 2, 4, 8, 14),
    step_sizes=tuple(value / UNIT for value in (1, 2, 4, 8, 16, 32, 64)),
)
"""Wide sets for photographs, from no attack to steps that cross the ball."""
