"""The kinds of choice whose headroom is measured by repeats in a world."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from astra_gym.experiments.headroom import foresight, per_view, stops, within_attack
from astra_gym.experiments.headroom.verdicts import Verdict
from astra_gym.experiments.headroom.world import HeadroomWorld

Repeats = Mapping[int, Any]
"""What the repeats of a kind found, by seed."""


class HeadroomKind(NamedTuple):
    """A kind of choice.

    Args:
        measure: makes one repeat on the CPU, from a world and a seed, and returns what it found as JSON holds it.
        conclude: makes the verdicts of all repeats, of which the first decides, and the numbers beside them.
    """

    measure: Callable[[HeadroomWorld, int], dict[str, Any]]
    conclude: Callable[[HeadroomWorld, Repeats], tuple[list[Verdict], dict[str, Any]]]


KINDS: dict[str, HeadroomKind] = {
    # a budget of its own for each view
    "view": HeadroomKind(per_view.measure, per_view.conclude),
    # no choice: whether exams in the middle of a run can rank constants
    "foresight": HeadroomKind(foresight.measure, foresight.conclude),
    # the division of an attack's steps
    "attack": HeadroomKind(within_attack.measure, within_attack.conclude),
    # the same, chosen step by step by PPO, which has learned it
    "stops": HeadroomKind(stops.measure, stops.conclude),
}


def measure_repeat(world: HeadroomWorld, kind: str, seed: int) -> dict[str, Any]:
    """Make one repeat of a kind of `KINDS`."""
    return KINDS[kind].measure(world, seed)
