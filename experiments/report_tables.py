"""The tables of a comparison of agents."""

import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from experiments.cells import Cell, Comparison
from experiments.evaluation import FIXED, UNIFORM
from experiments.inference import (
    FEWEST_SEEDS,
    PRIMARY,
    Paired,
    deciding_epsilon,
    differences,
    estimate,
    holm,
    paired,
    pareto,
)
from experiments.markup import MISSING, Entry, Table
from experiments.markup import to_html as to_html
from experiments.markup import to_markdown as to_markdown

LEVEL = 0.05
REFERENCES = tuple(reference for _, reference in PRIMARY)
AT_EQUAL_COMPUTE = "@compute"
"""Ends the label of an arm whose agent trained longer, until its attack steps were those of the dearest arm."""
INTERVALS = "In brackets the 95 % interval over seeds (Student's t from 3 seeds, bootstrap from 10)."


def parts(comparison: Comparison) -> list[Comparison]:
    """The comparison cut by method and preset, in the order in which they first appear: only cells of one compare."""
    groups = dict.fromkeys((cell.method, cell.preset) for cell in comparison.cells)
    return [
        replace(comparison, cells=[cell for cell in comparison.cells if (cell.method, cell.preset) == group])
        for group in groups
    ]


Rows = list[list[Entry]]


def _over_parts(
    comparison: Comparison, columns: Sequence[str], rows: Callable[[Comparison], Rows]
) -> tuple[list[str], Rows]:
    """Columns and rows over all parts; where there are several, the second column says which."""
    found = [(part.cells[0], rows(part)) for part in parts(comparison)]
    if len(found) < 2:
        return [*columns], [row for _, lines in found for row in lines]
    places = [(Entry(f"{cell.method}, {cell.preset}"), lines) for cell, lines in found]
    return [columns[0], "method, preset", *columns[1:]], [
        [row[0], place, *row[1:]] for place, lines in places for row in lines
    ]


def at(epsilon: float) -> str:
    """`SA`, or `RA at 8/255`."""
    return f"RA at {_radius(epsilon)}" if epsilon else "SA"


def _radius(epsilon: float) -> str:
    return f"{255 * epsilon:.4g}/255"


def _mean(values: Sequence[float], digits: int = 1) -> str:
    if not values:
        return MISSING
    found = estimate(values)
    return f"{found.mean:z.{digits}f}{_interval(found.low, found.high, digits)}"


def _interval(low: float, high: float, digits: int = 1, sign: str = "") -> str:
    return "" if math.isnan(low) else f" ({low:{sign}z.{digits}f} to {high:{sign}z.{digits}f})"


def _points(found: Paired) -> str:
    if math.isnan(found.difference):
        return MISSING
    return f"{found.difference:+z.1f}{_interval(found.low, found.high, sign='+')}"


def _probability(found: Paired) -> str:
    if math.isnan(found.probability):
        return MISSING
    return f"{found.probability:.2f}{_interval(found.probability_low, found.probability_high, 2)}"


def _p(p: float) -> str:
    return MISSING if math.isnan(p) else f"{p:#.2g}"


def _accuracies(cells: Sequence[Cell], epsilon: float | None) -> list[float]:
    return [cell.accuracy(epsilon) for cell in cells if epsilon is not None and epsilon in cell.outcomes]


def _ranked(comparison: Comparison) -> list[str]:
    """Arms from the best to the worst at the deciding epsilon, else at SA; last those without a figure."""
    epsilon = deciding_epsilon(comparison) or 0.0

    def worth(arm: str) -> float:
        values = _accuracies(comparison.of(arm), epsilon)
        return float(np.mean(values)) if values else -math.inf

    return sorted(comparison.arms, key=worth, reverse=True)


def best_arm(comparison: Comparison, epsilon: float) -> str | None:
    """The arm that is above every other: its paired difference to each, over three shared seeds or more, has a 95 %
    interval above 0 (`inference.estimate`). None where no arm is, or there is but one.
    """
    for arm in comparison.arms:
        others = [other for other in comparison.arms if other != arm]
        found = [list(differences(comparison.of(arm), comparison.of(other), epsilon).values()) for other in others]
        # the cheap condition first: it leaves hardly an arm to bootstrap
        ahead = found and all(len(values) >= FEWEST_SEEDS and np.mean(values) > 0 for values in found)
        if ahead and all(estimate(values).low > 0 for values in found):
            return arm
    return None


def accuracy_table(comparison: Comparison) -> list[Table]:
    """SA, RA and cost by arm, best RA at the deciding epsilon first; a table for every method and preset."""
    return [_accuracies_of(part) for part in parts(comparison)]


def _accuracies_of(part: Comparison) -> Table:
    epsilons = sorted({epsilon for cell in part.cells for epsilon in cell.correct})
    best = {epsilon: best_arm(part, epsilon) for epsilon in epsilons}
    rows = []
    for arm in _ranked(part):
        cells = part.of(arm)
        accuracies = []
        for epsilon in epsilons:
            values = _accuracies(cells, epsilon)
            # below four seeds nothing is trimmed: the interquartile mean is the mean
            iqm = f"\nIQM {estimate(values).iqm:.1f}" if len(values) > FEWEST_SEEDS else ""
            accuracies.append(Entry(_mean(values) + iqm, best[epsilon] == arm))
        timed = [cell for cell in cells if cell.seconds > 0]
        costs = [
            [cell.mean_steps for cell in cells if cell.views],
            [cell.seconds / 60 for cell in timed],
            [100 * cell.agent_share for cell in timed],
        ]
        means = [Entry(f"{np.mean(values):.1f}" if values else MISSING) for values in costs]
        rows.append([Entry(arm), Entry(str(len(cells))), *accuracies, *means])
    deciding = deciding_epsilon(part)
    order = at(deciding) if deciding is not None else "SA (no epsilon decides: none has a mean RA from 30 to 80 %)"
    note = (
        f"Accuracy in %, mean over seeds. {INTERVALS} IQM: interquartile mean. Sorted by {order}. Bold: above every "
        f"other arm, by the interval of the difference over shared seeds. Attack steps: mean number a view and update."
    )
    cell = part.cells[0]
    columns = ["arm", "seeds", *map(at, epsilons), "attack steps", "training, min", "of it agent, %"]
    return Table(f"Accuracy: {cell.method}, {cell.preset}", note, columns, rows)


def primary_table(comparison: Comparison) -> Table | None:
    """The comparisons of `inference.PRIMARY`, tested at the deciding epsilon and told at SA; None where there is none.

    The verdict is at 5 % after Holm over the family fixed beforehand; a missing member counts, with p = 1.
    """
    columns, rows = _over_parts(
        comparison,
        [
            "comparison",
            "at",
            "difference, points",
            "p",
            "p after Holm",
            "smallest p possible",
            "seeds",
            "image pairs",
            "P(improvement)",
            "verdict",
        ],
        _primary_rows,
    )
    if not rows:
        return None
    note = (
        f"Differences within a seed. {INTERVALS} p: two-sided, sign flips over seeds; after Holm over the "
        f"{len(PRIMARY)} comparisons fixed beforehand, at the deciding epsilon only. Image pairs: outcomes in which "
        f"only the first arm was right, and only the second. P(improvement): that a run of the first arm is above one "
        f"of the second."
    )
    return Table("Primary comparisons", note, columns, rows)


def _primary_rows(part: Comparison) -> Rows:
    rows = []
    epsilon = deciding_epsilon(part)
    for place in [0.0] if epsilon is None else [epsilon, 0.0]:
        family = {pair: paired(part.of(pair[0]), part.of(pair[1]), place) for pair in PRIMARY}
        adjusted = holm([found.p for found in family.values()])
        reachable = holm([found.smallest_p if found.seeds else math.nan for found in family.values()])
        for (pair, found), p, smallest in zip(family.items(), adjusted, reachable, strict=True):
            if not set(pair) <= set(part.arms):
                continue
            texts = [" - ".join(pair), at(place), _points(found), _p(found.p)]
            texts += [_p(p) if place else MISSING, _p(found.smallest_p), str(found.seeds)]
            texts += ["{} : {}".format(*found.image_pairs), _probability(found)]
            texts += [_verdict(found, p, smallest) if place else "secondary, no verdict"]
            rows.append([Entry(text) for text in texts])
    return rows


def _verdict(found: Paired, p: float, smallest: float) -> str:
    if not smallest <= LEVEL:
        return f"cannot be decided with {found.seeds} seed{'s' * (found.seeds != 1)}"
    if p > LEVEL:
        return "not shown"
    return "better" if found.difference > 0 else "worse"


def improvement_table(comparison: Comparison) -> Table | None:
    """Every arm that is in no primary comparison's first place against the three references, by intervals only.

    None where no epsilon decides, or there is no such pair of arms.
    """

    def rows(part: Comparison) -> Rows:
        epsilon, lines = deciding_epsilon(part), []
        for arm in _ranked(part) if epsilon is not None else []:
            others = [other for other in REFERENCES if other in part.arms and other != arm]
            if arm not in {first for first, _ in PRIMARY} and others:
                against = {other: paired(part.of(arm), part.of(other), epsilon or 0.0) for other in others}
                shared = sorted({found.seeds for found in against.values()})
                texts = [arm, at(epsilon or 0.0), " to ".join(map(str, {shared[0]: 0, shared[-1]: 0}))]
                for found in (against.get(other) for other in REFERENCES):
                    known = found is not None and found.seeds
                    texts.append(f"{_points(found)}\nP {_probability(found)}" if found and known else MISSING)
                lines.append([Entry(text) for text in texts])
        return lines

    columns, found = _over_parts(comparison, ["arm", "at", "shared seeds", *(f"minus {r}" for r in REFERENCES)], rows)
    note = (
        f"Points within a seed. {INTERVALS} P: probability that a run of the arm is above one of the reference. "
        f"Intervals only: these comparisons were not fixed beforehand and are not tested."
    )
    return Table("All other comparisons", note, columns, found) if found else None


def _named(cell: Cell, names: Sequence[str]) -> str:
    return ", ".join(f"{name} {_value(name, cell.settings.get(name))}" for name in names) or MISSING


def reward_table(comparison: Comparison) -> Table:
    """Rewards by arm: in the first and the last tenth of training, and on held-out views beside the controls'."""
    names = sorted({name for cell in comparison.cells for name in cell.settings if _of_reward(name)})
    differing = [name for name in names if len({_canonical(cell.settings.get(name)) for cell in comparison.cells}) > 1]

    def rows(part: Comparison) -> Rows:
        lines = []
        for arm in _ranked(part):
            cells = part.of(arm)
            trained = [cell.reward_first for cell in cells], [cell.reward_last for cell in cells]
            held_out = [[cell.held_out.get(name or cell.agent) for cell in cells] for name in (None, UNIFORM, FIXED)]
            means = [_mean([value for value in values if value is not None], 3) for values in (*trained, *held_out)]
            texts = [arm, str(len(cells)), *means, *([_named(cells[0], differing)] if differing else [])]
            lines.append([Entry(text) for text in texts])
        return lines

    columns = ["arm", "seeds", "first tenth", "last tenth", "held out: trained policy", f"held out: {UNIFORM}"]
    columns += [f"held out: {FIXED}", *(["the reward's settings"] if differing else [])]
    columns, found = _over_parts(comparison, columns, rows)
    equal = "which they are in all arms here" if not differing else "which they are not in all arms here: last column"
    note = (
        f"Mean reward a view. {INTERVALS} Rewards of two arms compare only where the reward's settings are equal, "
        f"{equal}. Held-out rewards are taken on each run's own network: they compare policies within a row."
    )
    return Table("Rewards", note, columns, found)


def _of_reward(name: str) -> bool:
    return name.startswith("reward_") or name == "lookahead_images"


def compute_table(comparison: Comparison) -> Table:
    """Attack compute against RA at the deciding epsilon by arm, and arms at equal compute against two references."""
    equal = any(arm.endswith(AT_EQUAL_COMPUTE) for arm in comparison.arms)
    references = ("reinforce", "fixed-max") if equal else ()

    def rows(part: Comparison) -> Rows:
        epsilon = deciding_epsilon(part)
        arms = sorted(part.arms, key=lambda arm: _steps(part.of(arm)))
        points = [(arm, (_steps(part.of(arm)), _accuracies(part.of(arm), epsilon))) for arm in arms]
        placed = [(arm, (cost, float(np.mean(values)))) for arm, (cost, values) in points if values]
        front = {placed[index][0] for index in pareto([point for _, point in placed])}
        lines = []
        for arm, (cost, values) in points:
            cells = part.of(arm)
            updates = f"{np.mean([cell.updates for cell in cells]):.0f}"
            on_front = ("yes" if arm in front else "no") if values else MISSING
            texts = [arm, str(len(cells)), updates, _amount(cost), _mean(values), on_front]
            texts += [_at_equal_compute(part, arm, reference, epsilon) for reference in references]
            lines.append([Entry(text) for text in texts])
        return lines

    columns = ["arm", "seeds", "updates", "attack gradient steps", "RA at the deciding epsilon", "on the Pareto front"]
    columns, found = _over_parts(comparison, [*columns, *(f"minus {reference}" for reference in references)], rows)
    decided = [(part.cells[0], deciding_epsilon(part)) for part in parts(comparison)]
    where = "; ".join(
        f"{cell.method}, {cell.preset}: {_radius(epsilon) if epsilon else 'none'}" for cell, epsilon in decided
    )
    note = (
        f"Attack gradient steps: one view, one backward pass; mean over seeds. {INTERVALS} Deciding epsilon: {where}. "
        f"On the front: no arm has a higher mean RA for no more steps; the means' errors are not considered."
    )
    if equal:
        note += (
            f" Arms ending in {AT_EQUAL_COMPUTE} trained longer, until their steps were the dearest arm's: difference "
            f"in points to the reference, and their steps as a multiple of its."
        )
    return Table("Attack compute", note, columns, found)


def _steps(cells: Sequence[Cell]) -> float:
    return float(np.mean([cell.attack_steps for cell in cells]))


def _amount(steps: float) -> str:
    return f"{steps / 1e6:.2f} M" if steps >= 999_500 else f"{steps / 1e3:.0f} k" if steps else "0"


def _at_equal_compute(part: Comparison, arm: str, reference: str, epsilon: float | None) -> str:
    dearer = reference + AT_EQUAL_COMPUTE
    other = dearer if dearer in part.arms and dearer != arm else reference
    if epsilon is None or not arm.endswith(AT_EQUAL_COMPUTE) or other not in part.arms:
        return MISSING
    spent = _steps(part.of(other))
    ratio = f", {_steps(part.of(arm)) / spent:.2f} x its steps" if spent else ""
    return f"{_points(paired(part.of(arm), part.of(other), epsilon))}\n{other}{ratio}"


def settings_table(comparison: Comparison) -> Table:
    """The settings in which arms differ, a column each, and in the note those that all share; the seed is left out."""
    names = dict.fromkeys(name for cell in comparison.cells for name in cell.settings if name != "seed")
    values = {name: {_canonical(cell.settings.get(name)) for cell in comparison.cells} for name in names}
    differing = [name for name in names if len(values[name]) > 1]
    rows = []
    for arm in comparison.arms:
        cells = comparison.of(arm)
        entries = []
        for name in differing:
            counted = Counter(_value(name, cell.settings.get(name)) for cell in cells)
            entries.append(Entry("; ".join(counted)))
        rows.append([Entry(arm), *entries])
    shared = ", ".join(_named(cell, [name]) for cell in comparison.cells[:1] for name in names if name not in differing)
    return Table("Settings", f"Shared by all: {shared or 'none'}.", ["arm", *differing], rows)


def _canonical(value: Any) -> str:
    # a comparison read from a file has lists where a run has tuples
    return json.dumps(value, sort_keys=True)


def _value(name: str, value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_value(name, part) for part in value) + "]"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_value(key, part)}" for key, part in sorted(value.items())) or "none"
    if isinstance(value, float):
        of_attack = "epsilon" in name or name in ("step_size", "schedule")
        return _radius(value) if of_attack else f"{value:.4g}"
    return str(value)
