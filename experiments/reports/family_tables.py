"""The table and the picture of a family of tests over several kept comparisons."""

from collections.abc import Collection, Mapping
from pathlib import Path
from statistics import fmean

from astra_gym.experiments.comparison.cell_results import COMPARISON, Cell, ComparisonResult, read_comparison
from astra_gym.experiments.comparison.families import Family, examined, read_family
from astra_gym.experiments.plotting.run_plots import ACTION_SETS
from astra_gym.experiments.reports.comparison_plots import choices_of_instances
from astra_gym.experiments.reports.comparison_tables import INTERVALS, interval_text, p_text
from astra_gym.experiments.reports.document import MISSING, Block, Table, entries
from astra_gym.experiments.stats import Estimate, deciding_place


def family_table(results: Path, name: str) -> list[Block]:
    """Return the verdicts of a family of tests, `results/families/NAME.json`, from the comparisons that are kept."""
    family = read_family(results / "families" / f"{name}.json")
    there = _kept(family, results)
    found = examined(family, there)
    rows = [
        entries(
            f"{one.claim.arm} - {one.claim.against}",
            f"not worse by {one.claim.margin:g}" if one.claim.margin else "better",
            _difference(one.found),
            p_text(one.p),
            p_text(one.adjusted),
            str(one.found.seeds if one.found else 0),
            one.verdict,
        )
        for one in found
    ]
    note = (
        f"Points where each instance is judged: means over {len(there)} of {len(family.comparisons)} instances of "
        f"differences within a seed. {INTERVALS} p: two-sided, sign flips over seeds, of the difference plus the "
        "margin; after Holm over all rows. Claims and margins were fixed beforehand."
    )
    columns = ["comparison", "claim", "difference, points", "p", "p after Holm", "seeds", "verdict"]
    return [Table("", note, columns, rows, words=("comparison", "claim", "verdict"))]


def instances_table(results: Path, name: str) -> list[Block]:
    """Return the differences that a family of tests is about in each of its instances, with intervals."""
    family = read_family(results / "families" / f"{name}.json")
    rows = []
    for instance, result in _kept(family, results).items():
        found = examined(family._replace(comparisons=(instance,)), {instance: result})
        rows.append(entries(instance.removeprefix(f"{name}-"), *(_difference(one.found) for one in found)))
    columns = ["instance", *(f"{claim.arm} - {claim.against}" for claim in family.claims)]
    note = f"Points where each instance is judged, differences within a seed. {INTERVALS} Tests are over all of them."
    return [Table("", note, columns, rows)]


def _difference(found: Estimate | None) -> str:
    return MISSING if found is None else f"{found.mean:+z.1f}{interval_text(found.low, found.high, sign='+')}"


def draw_families(results: Path, renewed: Collection[str]) -> list[Path]:
    """Draw the choices of the tested arm of each family with one of the comparisons that were `renewed`, against the
    constants of its claims: `results/families/NAME.png`. Return the pictures."""
    drawn = []
    for file in sorted((results / "families").glob("*.json")):
        family = read_family(file)
        if not set(family.comparisons) & set(renewed):
            continue
        there = _kept(family, results)
        against = dict.fromkeys(claim.against for claim in family.claims)
        agents = {cell.arm: cell.agent for each in there.values() for cell in each.cells}
        constants = [arm for arm in against if agents.get(arm) == "fixed"]
        picture = file.with_suffix(".png")
        short = {name.removeprefix(f"{file.stem}-"): each for name, each in there.items()}
        if choices_of_instances(short, family.claims[0].arm, constants, picture):
            drawn.append(picture)
    return drawn


def _kept(family: Family, results: Path) -> Mapping[str, ComparisonResult]:
    """Return the comparisons of a family that are kept, by name."""
    files = {each: results / "comparisons" / each / COMPARISON for each in family.comparisons}
    return {each: read_comparison(file) for each, file in files.items() if file.is_file()}


def ends_table(results: Path, name: str) -> list[Block]:
    """Return how runs of a family's first tested arm ended, by the attacks that they chose in the last part of their
    training, and how they compare with the first claim's other arm."""
    family = read_family(results / "families" / f"{name}.json")
    claim, rows = family.claims[0], []
    for instance, result in _kept(family, results).items():
        place = deciding_place(result)
        if place is None:
            raise ValueError(f"no radius of the comparison {instance} decides: give its world a judge, --judge_epsilon")
        others = {cell.seed: cell.accuracy(place) for cell in result.of(claim.against) if not cell.void}
        ends: dict[str, list[Cell]] = {}
        valid = [cell for cell in result.of(claim.arm) if not cell.void]
        for cell in sorted(valid, key=lambda cell: -cell.accuracy(place)):
            chosen = (f"{cell.curve[kind][-1]:.0f}" for kind in ACTION_SETS)
            ends.setdefault("{}/255, {} x {}/255".format(*chosen), []).append(cell)
        for end, cells in ends.items():
            reached = fmean(cell.accuracy(place) for cell in cells)
            gains = [cell.accuracy(place) - others[cell.seed] for cell in cells if cell.seed in others]
            gain = f"{fmean(gains):+z.1f}" if gains else MISSING
            rows.append(entries(instance.removeprefix(f"{name}-"), end, str(len(cells)), f"{reached:.1f}", gain))
    note = f"Points where each instance is judged, means over the runs of {claim.arm} that ended so."
    columns = ["instance", "radius, steps x step size at the end", "runs", "points", f"minus {claim.against}"]
    return [Table("", note, columns, rows, words=("radius, steps x step size at the end",))]
