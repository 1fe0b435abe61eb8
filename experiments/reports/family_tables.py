"""The table and the picture of a family of tests over several kept comparisons."""

from collections.abc import Collection, Mapping
from pathlib import Path

from astra_gym.experiments.comparison.cell_results import COMPARISON, ComparisonResult, read_comparison
from astra_gym.experiments.comparison.families import Family, examined, read_family
from astra_gym.experiments.reports.comparison_plots import choices_of_instances
from astra_gym.experiments.reports.comparison_tables import INTERVALS, interval_text, p_text
from astra_gym.experiments.reports.document import MISSING, Block, Table, entries


def family_table(results: Path, name: str) -> list[Block]:
    """Return the verdicts of a family of tests, `results/families/NAME.json`, from the comparisons that are kept."""
    family = read_family(results / "families" / f"{name}.json")
    there = _kept(family, results)
    found = examined(family, there)
    rows = [
        entries(
            f"{one.claim.arm} - {one.claim.against}",
            f"not worse by {one.claim.margin:g}" if one.claim.margin else "better",
            MISSING
            if one.found is None
            else f"{one.found.mean:+z.1f}{interval_text(one.found.low, one.found.high, sign='+')}",
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
