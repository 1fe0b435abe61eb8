"""The table of a family of tests over several kept comparisons."""

from pathlib import Path

from astra_gym.experiments.comparison.cell_results import COMPARISON, read_comparison
from astra_gym.experiments.comparison.families import examined, read_family
from astra_gym.experiments.reports.comparison_tables import INTERVALS, interval_text, p_text
from astra_gym.experiments.reports.document import MISSING, Block, Table, entries


def family_table(results: Path, name: str) -> list[Block]:
    """Return the verdicts of a family of tests, `results/families/NAME.json`, from the comparisons that are kept."""
    family = read_family(results / "families" / f"{name}.json")
    files = {each: results / "comparisons" / each / COMPARISON for each in family.comparisons}
    there = {each: read_comparison(file) for each, file in files.items() if file.is_file()}
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
