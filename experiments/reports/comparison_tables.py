"""The tables of a comparison of agents."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from astra_gym.experiments.comparison.cell_results import Cell, ComparisonResult
from astra_gym.experiments.comparison.primary import primary_comparisons
from astra_gym.experiments.reports.document import MISSING, Entry, Table, entries
from astra_gym.experiments.reports.search_costs import passes_of, passes_sentences, search_sentences
from astra_gym.experiments.stats import (
    COMPUTE,
    FEWEST_SEEDS,
    Paired,
    Pairs,
    Place,
    deciding_place,
    differences,
    epsilons_of,
    estimate,
    paired,
    pareto,
)
from astra_gym.ssl_core.evaluation.results import radius_text
from astra_gym.ssl_core.utils.messages import amount
from astra_gym.ssl_core.utils.training_plan import UPDATE_PASSES

DECIDING_RA = "RA at the deciding epsilon"
PART = "method, preset"
"""The column that names a row's part of a comparison."""
INTERVALS = (
    "In brackets the 95 % interval over seeds (Student's t from 3 seeds, expanded bootstrap from 10; equal values have "
    "none)."
)


def parts(comparison: ComparisonResult) -> list[ComparisonResult]:
    """Split the comparison by method and preset, in the order in which they first appear: only cells of one compare."""
    groups = dict.fromkeys((cell.method, cell.preset) for cell in comparison.cells)
    return [
        replace(comparison, cells=[cell for cell in comparison.cells if (cell.method, cell.preset) == group])
        for group in groups
    ]


Rows = list[list[Entry]]


def over_parts(
    comparison: ComparisonResult, columns: Sequence[str], rows: Callable[[ComparisonResult], Rows]
) -> tuple[list[str], Rows]:
    """Return columns and rows over all parts; if there are several, the second column names them."""
    found = [(part.cells[0], rows(part)) for part in parts(comparison)]
    if len(found) < 2:
        return [*columns], [row for _, lines in found for row in lines]
    places = [(Entry(f"{cell.method}, {cell.preset}"), lines) for cell, lines in found]
    return [columns[0], PART, *columns[1:]], [[row[0], place, *row[1:]] for place, lines in places for row in lines]


def at(place: Place) -> str:
    """Return `SA`, `RA at 8/255` or `mean of SA and RA at 8/255`."""
    names = [f"RA at {radius_text('Linf', epsilon)}" if epsilon else "SA" for epsilon in epsilons_of(place)]
    return names[0] if len(names) == 1 else f"mean of {' and '.join(names)}"


def references(tests: Pairs) -> list[str]:
    """Return the arms that others are tested against, each once."""
    return list(dict.fromkeys(second for _, second in tests))


def mean_text(values: Sequence[float], digits: int = 1) -> str:
    if not values:
        return MISSING
    found = estimate(values)
    return f"{found.mean:z.{digits}f}{interval_text(found.low, found.high, digits)}"


def percent_text(values: Sequence[float], runs: int) -> str:
    """Return the mean of percentages with its interval, cut at 0 and 100, since Student's t is unbounded.

    It says how many values there are if some of the runs have none, such as void ones.
    """
    if not values:
        return MISSING
    found = estimate(values)
    fewer = f", {amount(len(values), 'seed')}" if len(values) < runs else ""
    return f"{found.mean:.1f}{interval_text(max(found.low, 0.0), min(found.high, 100.0))}{fewer}"


def interval_text(low: float, high: float, digits: int = 1, sign: str = "") -> str:
    return "" if math.isnan(low) else f" ({low:{sign}z.{digits}f} to {high:{sign}z.{digits}f})"


def points_text(found: Paired) -> str:
    """Return a paired difference with its interval; missing if there is none."""
    if math.isnan(found.difference):
        return MISSING
    return f"{found.difference:+z.1f}{interval_text(found.low, found.high, sign='+')}"


def _probability(found: Paired) -> str:
    if math.isnan(found.probability):
        return MISSING
    return f"{found.probability:.2f}{interval_text(found.probability_low, found.probability_high, 2)}"


def p_text(p: float) -> str:
    return MISSING if math.isnan(p) else f"{p:#.2g}"


def _accuracies(cells: Sequence[Cell], place: Place | None) -> list[float]:
    if place is None:
        return []
    return [cell.accuracy(place) for cell in cells if set(epsilons_of(place)) <= cell.outcomes.keys()]


def ranked(comparison: ComparisonResult) -> list[str]:
    """Return arms from the best to the worst at the deciding place, else at SA.

    Then come those without a value, and last those that trained longer.
    """
    place = deciding_place(comparison) or 0.0

    def worth(arm: str) -> tuple[bool, float]:
        values = _accuracies(comparison.of(arm), place)
        return not arm.endswith(COMPUTE), float(np.mean(values)) if values else -math.inf

    return sorted(comparison.arms, key=worth, reverse=True)


def best_arm(comparison: ComparisonResult, place: Place) -> str | None:
    """Return the arm that is above every other: its paired difference to each, over three shared seeds or more, has a
    95 % interval above 0 (`stats.estimate`). None if no arm is, there is only one, or a run is void, failed or missing,
    since the others of its arm may be the better ones. Arms at equal compute do not compete.
    """
    incomplete = comparison.unfinished or any(cell.void for cell in comparison.base.cells)
    arms = [] if incomplete else comparison.base.arms
    for arm in arms:
        others = [other for other in arms if other != arm]
        found = [list(differences(comparison.of(arm), comparison.of(other), place).values()) for other in others]
        # the cheap condition comes first, so that hardly any arm is left to bootstrap
        ahead = found and all(len(values) >= FEWEST_SEEDS and np.mean(values) > 0 for values in found)
        if ahead and all(estimate(values).low > 0 for values in found):
            return arm
    return None


def accuracy_table(comparison: ComparisonResult) -> list[Table]:
    """Return SA, RA and cost by arm, the best at the deciding place first; a table for every method and preset.

    Arms at equal compute are left to `compute_table`, since here they would be ranked against arms that trained less.
    """
    longer = any(arm.endswith(COMPUTE) for arm in comparison.arms)
    note = f" Arms ending in {COMPUTE}, which trained longer, stand in the table of attack compute." if longer else ""
    return [_accuracies_of(part, note) for part in parts(comparison.base)]


def _accuracies_of(part: ComparisonResult, more: str) -> Table:
    epsilons = sorted({epsilon for cell in part.cells for epsilon in cell.correct})
    best = {epsilon: best_arm(part, epsilon) for epsilon in epsilons}
    rows = []
    for arm in ranked(part):
        cells = part.of(arm)
        accuracies = []
        for epsilon in epsilons:
            values = _accuracies(cells, epsilon)
            # below four seeds nothing is trimmed, so the interquartile mean is the mean
            iqm = f"IQM {estimate(values).iqm:.1f}" if len(values) > FEWEST_SEEDS else ""
            accuracies.append(Entry(percent_text(values, len(cells)), iqm, best[epsilon] == arm))
        timed = [cell for cell in cells if cell.seconds > 0]
        costs = [
            [cell.mean_steps for cell in cells if cell.views],
            [cell.seconds / 60 for cell in timed],
            [100 * cell.agent_share for cell in timed],
        ]
        means = entries(*(f"{np.mean(values):.1f}" if values else MISSING for values in costs))
        rows.append([*entries(arm, str(len(cells))), *accuracies, *means])
    deciding = deciding_place(part)
    order = at(deciding) if deciding is not None else "SA (no epsilon decides: none has a mean RA from 30 to 80 %)"
    note = (
        f"Accuracy in %, mean over seeds. {INTERVALS} IQM: interquartile mean. Sorted by {order}. Bold: above every "
        f"other arm, by the interval of the difference over shared seeds. Attack steps: mean number per view and "
        f"update.{more}"
    )
    note = " ".join([note, *passes_sentences(part), *search_sentences(part)])
    cell = part.cells[0]
    columns = ["arm", "seeds", *map(at, epsilons), "attack steps", "training, min", "of it agent, %"]
    return Table(f"Accuracy: {cell.method}, {cell.preset}", note, columns, rows)


def primary_table(comparison: ComparisonResult) -> Table | None:
    """Return the `primary_comparisons` of every part; None if there are none."""

    def rows(part: ComparisonResult) -> Rows:
        return [
            [
                *entries(f"{one.first} - {one.second}", at(one.place)),
                Entry(
                    points_text(one.found), interval_text(one.found.others_low, one.found.others_high, sign="+").strip()
                ),
                *entries(
                    p_text(one.found.p),
                    p_text(one.p) if one.place else MISSING,
                    p_text(one.found.smallest_p),
                    str(one.found.seeds),
                    "{} : {}".format(*one.found.image_pairs),
                    _probability(one.found),
                    one.verdict,
                ),
            ]
            for one in primary_comparisons(part)
        ]

    columns = ["comparison", "at", "difference, points", "p", "p after Holm", "smallest p possible", "seeds"]
    columns, found = over_parts(comparison, [*columns, "image pairs", "P(improvement)", "verdict"], rows)
    if not found:
        return None
    note = (
        f"Differences within a seed. {INTERVALS} Below it the interval for other test images too (seeds and "
        f"images crossed); tests and verdicts are about these images. p: two-sided, sign flips over seeds; after Holm "
        f"over the {len(comparison.tests)} comparisons fixed beforehand, at the deciding place only. Image pairs: "
        f"outcomes in which only the first arm was right, and only the second. P(improvement): that a run of the first "
        f"arm is above one of the second. No verdict before all planned runs of these arms are finished."
    )
    if len(parts(comparison)) > 1:
        note += f" Each method and preset is a family of {len(comparison.tests)} of its own."
    return Table("Primary comparisons", note, columns, found, words=(PART, "at", "verdict"))


def improvement_table(comparison: ComparisonResult) -> Table | None:
    """Compare every arm that is not first in a test with the tests' references, by intervals only; without a plan,
    every arm.

    None if no place decides, or there is no such pair of arms.
    """
    seconds = references(comparison.tests)
    tested = {first for first, _ in comparison.tests} if comparison.planned else set()

    def rows(part: ComparisonResult) -> Rows:
        place, lines = deciding_place(part), []
        for arm in ranked(part) if place is not None else []:
            others = [other for other in seconds if other in part.arms and other != arm]
            if arm not in tested and others:
                against = {other: paired(part.of(arm), part.of(other), place or 0.0) for other in others}
                shared = sorted({found.seeds for found in against.values()})
                line = entries(arm, at(place or 0.0), " to ".join(map(str, {shared[0]: 0, shared[-1]: 0})))
                for found in (against.get(other) for other in seconds):
                    shown = found and found.seeds and Entry(points_text(found), f"P {_probability(found)}")
                    line.append(shown or Entry(MISSING))
                lines.append(line)
        return lines

    columns, found = over_parts(
        comparison.base, ["arm", "at", "shared seeds", *(f"minus {second}" for second in seconds)], rows
    )
    note = (
        f"Points within a seed. {INTERVALS} P: probability that a run of the arm is above one of the reference. "
        f"Intervals only: these comparisons were not fixed beforehand and are not tested. Each interval is of 95 % "
        f"by itself: of twenty, one misses."
    )
    return Table("All other comparisons", note, columns, found, words=(PART, "at")) if found else None


def compute_table(comparison: ComparisonResult) -> Table:
    """Return attack compute and accuracy at the deciding place by arm, and arms at equal compute against two others."""
    equal = any(arm.endswith(COMPUTE) for arm in comparison.arms)
    against = ("reinforce", "fixed-max") if equal else ()

    def rows(part: ComparisonResult) -> Rows:
        place = deciding_place(part)
        arms = sorted(part.arms, key=lambda arm: _steps(part.of(arm)))
        points = [(arm, (_steps(part.of(arm)), _accuracies(part.of(arm), place))) for arm in arms]
        placed = [(arm, (cost, float(np.mean(values)))) for arm, (cost, values) in points if values]
        front = {placed[index][0] for index in pareto([point for _, point in placed])}
        lines = []
        for arm, (cost, values) in points:
            cells = part.of(arm)
            updates = f"{np.mean([cell.updates for cell in cells]):.0f}"
            on_front = ("yes" if arm in front else "no") if values else MISSING
            line = entries(arm, str(len(cells)), updates, _amount(cost), percent_text(values, len(cells)), on_front)
            lines.append([*line, *(_at_equal_compute(part, arm, other, place) for other in against)])
        return lines

    decided = [(part.cells[0], deciding_place(part)) for part in parts(comparison)]
    worth = "accuracy at the deciding place" if any(isinstance(place, tuple) for _, place in decided) else DECIDING_RA
    columns = ["arm", "seeds", "updates", "attack gradient steps", worth, "on the Pareto front"]
    columns, found = over_parts(comparison, [*columns, *(f"minus {other}" for other in against)], rows)
    where = "; ".join(f"{cell.method}, {cell.preset}: {at(place) if place else 'none'}" for cell, place in decided)
    note = (
        f"Attack gradient steps: one view, one backward pass; mean over seeds. {INTERVALS} Decided by: {where}. "
        f"On the front: no arm has a higher mean accuracy for no more steps; the means' errors are not considered."
    )
    if equal:
        note += (
            f" Arms ending in {COMPUTE} trained longer, until their steps were those of the most expensive arm: "
            f"difference in points to the reference, and their steps and passes as multiples of its. Passes count the "
            f"updates too, an update {UPDATE_PASSES:g} and a step of its attack 1."
        )
    return Table("Attack compute", note, columns, found, words=(PART, "on the Pareto front"))


def _steps(cells: Sequence[Cell]) -> float:
    return float(np.mean([cell.attack_steps for cell in cells]))


def _amount(steps: float) -> str:
    return f"{steps / 1e6:.2f} M" if steps >= 999_500 else f"{steps / 1e3:.0f} k" if steps else "0"


def _at_equal_compute(part: ComparisonResult, arm: str, reference: str, place: Place | None) -> Entry:
    dearer = reference + COMPUTE
    other = dearer if dearer in part.arms and dearer != arm else reference
    if place is None or not arm.endswith(COMPUTE) or other not in part.arms:
        return Entry(MISSING)
    cells, others = part.of(arm), part.of(other)
    passes = np.mean([passes_of(cell) for cell in cells]) / np.mean([passes_of(cell) for cell in others])
    steps = f"{_steps(cells) / spent:.2f} x its steps, " if (spent := _steps(others)) else ""
    return Entry(points_text(paired(cells, others, place)), f"{other}, {steps}{passes:.2f} x its passes")
