"""The tables of a comparison of methods: each with its own budget, with learned strategies, and with chosen
coresets."""

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from astra_gym.experiments.comparison.cell_results import Cell, ComparisonResult
from astra_gym.experiments.reports.comparison_tables import INTERVALS, at, parts, percent_text, points_text
from astra_gym.experiments.reports.document import MISSING, Table, entries
from astra_gym.experiments.stats import COMPUTE, paired
from astra_gym.ssl_core.training.coreset import SELECTIONS
from astra_gym.ssl_core.utils.messages import amount

FLOOR = "simclr"
"""The method without an attack against which the others are measured, but those that have a clean form (`floor_of`)."""
LEAST_GAIN, LEAST_CLEAN = 60.0, 95.0
"""Target of every adversarial method with its authors' budget: points of RA above the floor, and SA in %."""
GAIN_AT = 8 / 255
OWN = "fixed"
"""The agent that plays a method's own budget."""
CONTROLS = ("random", "fixed-max")
"""Agents that learn nothing, with which a learning one is also compared."""


class Group(NamedTuple):
    """The cells of one arm of a method."""

    method: str
    arm: str
    cells: Sequence[Cell]

    def accuracies(self, epsilon: float) -> list[float]:
        """Return the accuracy in percent at an epsilon (0.0: SA) of every seed."""
        return [cell.accuracy(epsilon) for cell in self.cells if epsilon in cell.outcomes]

    @property
    def attacks(self) -> bool:
        """Whether the group's method attacks."""
        return any(cell.views for cell in self.cells)


def groups(comparison: ComparisonResult) -> list[Group]:
    """Return the arms by method, in the order of the comparison, without those that trained longer.

    Raises:
        ValueError: if there are several presets, whose accuracies do not compare.
    """
    presets = sorted({cell.preset for cell in comparison.cells})
    if len(presets) > 1:
        raise ValueError(f"a table of methods is of one preset, and there are {', '.join(presets)}")
    return [
        Group(part.cells[0].method, arm, part.of(arm))
        for part in parts(comparison)
        for arm in part.arms
        if not arm.endswith(COMPUTE)
    ]


def floor_of(method: str, found: Sequence[Group]) -> Group | None:
    """Return the cells of a method without its attack: of METHOD-clean, else of `FLOOR`; None if neither was run."""
    clean = {group.method: group for group in found if not group.attacks}
    return clean.get(f"{method}-clean", clean.get(FLOOR))


def methods_table(comparison: ComparisonResult) -> Table:
    """Return SA, RA and seconds of every method and arm; with the methods' own budget, also RA minus the floor's."""
    found = groups(comparison)
    epsilons = sorted({epsilon for group in found for cell in group.cells for epsilon in cell.correct})
    rows, floors = [], dict.fromkeys(floor.method for group in found if (floor := floor_of(group.method, found)))
    for group in found:
        accuracies = [percent_text(group.accuracies(epsilon), len(group.cells)) for epsilon in epsilons]
        gain, reached, floor = MISSING, MISSING, floor_of(group.method, found)
        if floor and group.attacks and all(GAIN_AT in cell.outcomes for cell in (*group.cells, *floor.cells)):
            difference = paired(group.cells, floor.cells, GAIN_AT)
            gain = points_text(difference)
            clean = np.mean(group.accuracies(0.0))
            if group.arm == OWN and not math.isnan(difference.difference):
                reached = "yes" if difference.difference >= LEAST_GAIN and clean >= LEAST_CLEAN else "no"
        seconds = [cell.seconds for cell in group.cells if cell.seconds > 0]
        texts = [group.method, group.arm if group.attacks else MISSING, str(len(group.cells)), *accuracies, gain]
        texts += [f"{np.mean(seconds):.0f}" if seconds else MISSING, reached]
        rows.append(entries(*texts))
    name = FLOOR if set(floors) <= {FLOOR} else "its clean form"
    beside = f", {amount(comparison.jobs, 'run')} at a time" if comparison.jobs else ""
    note = (
        f"Accuracy in %, mean over seeds. {INTERVALS} Minus {name}: points of {at(GAIN_AT)} within a seed. Seconds: "
        f"training of one run{beside}. The goal of an adversarial method with its authors' budget (agent {OWN}): "
        f"{LEAST_GAIN:g} points of {at(GAIN_AT)} above {name}, and SA of {LEAST_CLEAN:g} %."
    )
    columns = ["method", "agent", "seeds", *map(at, epsilons), f"minus {name}", "seconds", "goal"]
    return Table("Methods", note, columns, rows, words=("agent", "goal"))


def strategies_table(comparison: ComparisonResult) -> Table:
    """Return paired differences between other agents and a method's own budget and the controls, by method and epsilon.

    A method that was run with its own budget only is left out.
    """
    found = groups(comparison)
    references = [name for name in (OWN, *CONTROLS) if any(group.arm == name for group in found)]
    rows = []
    for method in dict.fromkeys(group.method for group in found):
        arms = {group.arm: group for group in found if group.method == method and group.attacks}
        epsilons = sorted({epsilon for group in arms.values() for cell in group.cells for epsilon in cell.correct})
        for arm in (arm for arm in arms if arm != OWN and OWN in arms):
            steps = np.mean([cell.mean_steps for cell in arms[arm].cells])
            for epsilon in epsilons:
                against = [
                    points_text(paired(arms[arm].cells, arms[other].cells, epsilon))
                    if other in arms and other != arm
                    else MISSING
                    for other in references
                ]
                shared = paired(arms[arm].cells, arms[OWN].cells, epsilon).seeds
                texts = (method, arm, f"{steps:.1f}", at(epsilon), str(shared), *against)
                rows.append(entries(*texts))
    note = f"Points within a seed. {INTERVALS} Intervals only, no tests. Attack steps: mean number per view and update."
    columns = ["method", "agent", "attack steps", "at", "seeds", *(f"minus {name}" for name in references)]
    return Table("Strategies", note, columns, rows, words=("agent", "at"))


def coresets_table(comparison: ComparisonResult) -> Table | None:
    """Return paired differences between a chosen coreset and its control, as many batches drawn at random, by method.

    None if there is no such pair of arms.
    """
    found, rows = groups(comparison), []
    for method in dict.fromkeys(group.method for group in found):
        kinds = {
            kind: [group for group in found if group.method == method and _coreset(group) == kind]
            for kind in SELECTIONS
        }
        for group, control in itertools.product(kinds["rcs"], kinds["random"]):
            if _but_coreset(group) != _but_coreset(control):
                continue
            for epsilon in sorted({epsilon for cell in group.cells for epsilon in cell.correct}):
                difference = paired(group.cells, control.cells, epsilon)
                texts = (method, group.arm, control.arm, at(epsilon), str(difference.seeds), points_text(difference))
                rows.append(entries(*texts))
    note = f"Points within a seed. {INTERVALS} Intervals only, no tests."
    columns = ["method", "arm", "control", "at", "seeds", "arm minus control"]
    return Table("Coresets", note, columns, rows, words=("arm", "control", "at")) if rows else None


def _but_coreset(group: Group) -> dict[str, Any]:
    """Return all settings of a group except its seed and how its coreset is chosen."""
    chosen = ("coreset", "coreset_kwargs", "seed")
    return {name: value for name, value in group.cells[0].settings.items() if name not in chosen}


def _coreset(group: Group) -> str:
    return str(group.cells[0].settings.get("coreset", "none"))
