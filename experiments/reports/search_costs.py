"""What the runs of a comparison cost, and the searches from which its arms came, in sentences."""

import numpy as np

from astra_gym.experiments.comparison.cell_results import Cell, ComparisonResult
from astra_gym.experiments.comparison.searches import SearchCost
from astra_gym.ssl_core.utils.training_plan import UPDATE_PASSES


def search_sentences(part: ComparisonResult) -> list[str]:
    """Return a sentence for each search from which an arm came.

    Args:
        part: cells of one method and preset.
    """
    found = [(search, part.of(search.arm)) for search in part.searched]
    return [_sentence(search, cells) for search, cells in found if cells]


def passes_of(cell: Cell) -> float:
    """Return the forward-backward passes of a run over a batch's views, by the cost model of a search's trials."""
    return cell.updates * (UPDATE_PASSES + cell.mean_steps)


def passes_sentences(part: ComparisonResult) -> list[str]:
    """Return a sentence on whether arms had equal compute, by the means of their runs; none of fewer than two arms.

    Args:
        part: cells of one method and preset.
    """
    known = {arm: [passes_of(cell) for cell in part.of(arm) if _is_known(cell)] for arm in part.arms}
    spent = {arm: float(np.mean(passes)) for arm, passes in known.items() if passes}
    if len(spent) < 2:
        return []
    least, most = min(spent, key=spent.__getitem__), max(spent, key=spent.__getitem__)
    same = "equal within a tenth" if spent[most] <= 1.1 * spent[least] else "not equal"
    return [
        f"Compute was {same}: from {spent[least]:,.0f} ({least}) to {spent[most]:,.0f} passes ({most}) a run; an "
        f"update counts {UPDATE_PASSES:g}, a step of its attack 1."
    ]


def _is_known(cell: Cell) -> bool:
    # without its log, a run's attack steps are not known
    return bool(cell.views or not cell.damage)


def _sentence(search: SearchCost, cells: list[Cell]) -> str:
    # a pass in another world is other work
    passes = [passes_of(cell) for cell in cells if search.worlds == 1 and _is_known(cell)]
    share = f", as much as {search.passes / np.mean(passes):.1f} runs of this arm" if passes else ""
    where = f", {search.worlds} worlds at once" if search.worlds > 1 else ""
    return (
        f"{search.arm} was found by a search (--tune {' '.join(search.tune)}{where}) of {search.trials} trials and "
        f"{search.passes:,.0f} passes{share}: {search.seconds / 60:.1f} min of one process, which are not in the "
        f"training times."
    )
