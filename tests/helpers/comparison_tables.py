"""Comparisons that are made up, and their tables."""

from collections.abc import Callable, Sequence

from astra_gym.experiments.comparison.cell_results import Cell, ComparisonResult
from astra_gym.experiments.reports.document import Table

Make = Callable[..., Cell]


def compared(cells: Sequence[Cell]) -> ComparisonResult:
    return ComparisonResult("made", "none", cells, {})


def column(table: Table, name: str) -> dict[str, str]:
    """Texts of a column, with their smaller print in a second line, by the row's first entry."""
    place = list(table.columns).index(name)
    return {row[0].text: "\n".join(filter(None, row[place][:2])) for row in table.rows}
