"""The tables of a comparison's settings, and of its rewards, which compare only under equal settings."""

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from astra_gym.experiments.comparison.cell_results import Cell, ComparisonResult
from astra_gym.experiments.evaluation.end_of_run import FIXED, UNIFORM
from astra_gym.experiments.reports.comparison_tables import (
    INTERVALS,
    PART,
    Rows,
    mean_text,
    over_parts,
    parts,
    ranked,
)
from astra_gym.experiments.reports.document import MISSING, Table, entries
from astra_gym.ssl_core.evaluation.results import radius_text
from astra_gym.ssl_core.utils.finite import is_number
from astra_gym.ssl_core.utils.messages import amount


def _named(cell: Cell, names: Sequence[str]) -> str:
    return ", ".join(f"{name} {_value(name, cell.settings.get(name))}" for name in names) or MISSING


def reward_table(comparison: ComparisonResult) -> Table:
    """Return rewards by arm: in the first and last tenth of training, and on held-out views beside the controls'."""
    names = sorted({name for cell in comparison.cells for name in cell.settings if _of_reward(name)})
    differing = [name for name in names if len({_canonical(cell.settings.get(name)) for cell in comparison.cells}) > 1]

    def rows(part: ComparisonResult) -> Rows:
        lines = []
        for arm in ranked(part):
            cells = part.of(arm)
            trained = [cell.reward_first for cell in cells], [cell.reward_last for cell in cells]
            held_out = [[cell.held_out.get(name or cell.agent) for cell in cells] for name in (None, UNIFORM, FIXED)]
            means = [mean_text([value for value in values if value is not None], 3) for values in (*trained, *held_out)]
            texts = [arm, str(len(cells)), *means, *([_named(cells[0], differing)] if differing else [])]
            lines.append(entries(*texts))
        return lines

    columns = ["arm", "seeds", "first tenth", "last tenth", "held out: trained policy", f"held out: {UNIFORM}"]
    columns += [f"held out: {FIXED}", *(["the reward's settings"] if differing else [])]
    columns, found = over_parts(comparison, columns, rows)
    equal = "which they are in all arms here" if not differing else "which they are not in all arms here: last column"
    note = (
        f"Mean reward a view. {INTERVALS} Rewards of two arms compare only where the reward's settings are equal, "
        f"{equal}. Held-out rewards are taken on each run's own network: they compare policies within a row."
    )
    return Table("Rewards", note, columns, found, words=(PART, "the reward's settings"))


def _of_reward(name: str) -> bool:
    return name.startswith("reward_") or name == "lookahead_images"


def settings_table(comparison: ComparisonResult) -> Table:
    """Return the settings in which arms differ, one column each, with shared ones in the note, without the seed."""
    names = dict.fromkeys(name for cell in comparison.cells for name in cell.settings if name != "seed")
    values = {name: {_canonical(cell.settings.get(name)) for cell in comparison.cells} for name in names}
    differing = [name for name in names if len(values[name]) > 1]
    shared = ", ".join(_named(cell, [name]) for cell in comparison.cells[:1] for name in names if name not in differing)
    # these have a column of their own
    told = [name for name in differing if name not in ("method", "preset") or len(parts(comparison)) < 2]

    def rows(part: ComparisonResult) -> Rows:
        lines = []
        for arm in part.arms:
            counted = [Counter(_value(name, cell.settings.get(name)) for cell in part.of(arm)) for name in told]
            lines.append(entries(arm, *map("; ".join, counted)))
        return lines

    columns, found = over_parts(comparison, ["arm", *told], rows)
    note = f"Shared by all: {shared or 'none'}.{_other_orders(comparison)}"
    words = [name for name in told if not all(is_number(cell.settings.get(name)) for cell in comparison.cells)]
    return Table("Settings", note, columns, found, words=(PART, *words))


def _other_orders(comparison: ComparisonResult) -> str:
    """Name the arms of a part that did not make the same updates on the same images in the same order, in sentences."""
    sentences = ""
    for part in parts(comparison.base):
        groups: dict[str, dict[str, None]] = {}
        for cell in part.cells:
            kept = cell.settings.get("lookahead_images") if cell.settings.get("reward_lookahead") and cell.views else 0
            held_out = f" with {amount(kept, 'image')} held out" if kept else ""
            groups.setdefault(f"{amount(cell.updates, 'update')}{held_out}", {})[cell.arm] = None
        if len(groups) > 1:
            listed = "; ".join(f"{words}: {', '.join(arms)}" for words, arms in groups.items())
            sentences += (
                f" Not all arms of {part.cells[0].method}, {part.cells[0].preset} made the same updates: {listed}. "
                "Arms that hold images out see the others in another order."
            )
    return sentences


def _canonical(value: Any) -> str:
    # a comparison read from a file has lists where a run has tuples
    return json.dumps(value, sort_keys=True)


def _value(name: str, value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_value(name, part) for part in value) + "]"
    if isinstance(value, dict):
        # an agent's own settings have their own units
        return ", ".join(f"{key} {_value('', part)}" for key, part in sorted(value.items())) or "none"
    if isinstance(value, float):
        of_attack = "epsilon" in name or name in ("step_size", "schedule")
        return radius_text("Linf", value) if of_attack else f"{value:.4g}"
    return str(value)
