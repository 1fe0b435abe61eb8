"""Target updates as rows of numbers, for `metrics.jsonl` and TensorBoard."""

import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from astra_gym.envs.records import StepRecord, in_255
from astra_gym.ssl_core.safety.sealing import LINE_SEAL, note_unsealed, opened_line
from astra_gym.ssl_core.settings import renamed
from astra_gym.ssl_core.utils.messages import few

FIFTHS = 5
"""Number of groups of a step's views by clean loss, which show what a policy depends on."""
CHOSEN = tuple(in_255(part) for part in ("epsilon", "steps", "step_size"))
"""The parts of a budget that an agent chooses, by their names in a row."""


def metrics_of(record: StepRecord) -> dict[str, Any]:
    """Turn a target update into a row of metrics: plain numbers, and counts of the chosen actions.

    Names are those of an environment's `info` (`StepRecord.of_batch`, `StepRecord.of_views`), and epsilon, step size
    and strength are in 1/255, as their names say. `loss/*` are the named terms of the training loss; `reward/*` the
    means of the reward's named terms, its mean and its standard deviation over the views; `budget/*` the means of the
    played budgets, with the steps really taken, `budget/strength_255` the mean of their effect (the largest change of a
    pixel); `actions/*` how often each value was played; `by_clean_loss/*` the means of the budgets in each fifth of the
    views, from the smallest clean loss to the largest. `attack/other_steps`, if there are any, are the gradient steps
    of attacks beside the budget's, times their views.
    """
    row = record.of_batch()
    if record.budget is None:
        return row
    parts = {"reward": record.reward} | record.of_views(scaled=True)
    # One copy from the device instead of one for each value.
    together = torch.stack([values.detach().to(torch.float32) for values in parts.values()]).cpu().double()
    host = dict(zip(parts, together, strict=True))
    reward = host.pop("reward")
    order = host["reward/clean"].argsort(stable=True) if "reward/clean" in host else torch.empty(0)
    row |= {"reward/mean": reward.mean().item(), "reward/std": reward.std(correction=0).item()}
    row |= {name: values.mean().item() for name, values in host.items()}
    for name in CHOSEN:
        played = host[f"budget/{name}"]
        found, counts = played.round().to(torch.int64).unique(return_counts=True)
        row[f"actions/{name}"] = {
            str(value): count for value, count in zip(found.tolist(), counts.tolist(), strict=True)
        }
        if len(order) >= FIFTHS:
            row[f"by_clean_loss/{name}"] = [part.mean().item() for part in played[order].tensor_split(FIFTHS)]
    return row


def read_metrics(path: Path | str, damage: list[str] | None = None) -> list[dict[str, Any]]:
    """Read the rows of a `metrics.jsonl`, one for each target update: the agent's entries join those of their update.

    A last line that was cut short, by a process killed while writing, is left out. Rows of earlier versions, and only
    those, get their present names (`astra_gym.ssl_core.settings.renamed.METRICS`).

    Args:
        path: the file.
        damage: list that gets a sentence for each defect of the file; damaged lines are then left out. Without it they
            are errors.

    Raises:
        ValueError: if a line is damaged, or the file cannot be read, and `damage` is None.
    """
    merged: dict[int, dict[str, Any]] = {}
    for row in metrics_rows(Path(path), damage):
        merged.setdefault(row["step"], {}).update(row)
    return [merged[step] for step in sorted(merged)]


def metrics_rows(path: Path, damage: list[str] | None = None) -> list[dict[str, Any]]:
    """Read the rows of the file, in its order; arguments and errors are those of `read_metrics`."""
    try:
        *lines, last = path.read_bytes().split(b"\n")
    except OSError as error:
        if damage is None:
            raise ValueError(f"{path} cannot be read ({error.strerror})") from error
        damage.append(f"{path.name} is missing" if not path.exists() else f"{path.name} cannot be read")
        return []
    wrong: dict[int, str] = {}
    if last and opened_line(last[:-1]) not in (None, last[:-1]):
        # the line is whole, but its line break was damaged
        lines.append(last[:-1])
        wrong[len(lines)] = "it does not end with a line break"
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        try:
            content = opened_line(line)
            if content is None:
                raise ValueError("its content does not fit its CRC-32")
            row = json.loads(content.decode())
            if not isinstance(row, dict) or type(row.get("step")) is not int:
                raise ValueError("expected an object with a step")
            if LINE_SEAL in row:
                raise ValueError("it was written anew, with its CRC-32 as an entry")
            # in a row of this version such a name is a user's own, as that of a method's term of the loss
            older = renamed.METRICS if renamed.OLDER_ROW in row else {}
            # interned, since JSON makes each name anew in each row, which is most of a row's memory
            rows.append({sys.intern(older.get(name) or name): value for name, value in row.items()})
            if content == line:
                note_unsealed(path)
        except (ValueError, RecursionError) as error:
            wrong[number] = f"no UTF-8 at byte {error.start}" if isinstance(error, UnicodeDecodeError) else str(error)
    if wrong and damage is None:
        number, reason = next(iter(wrong.items()))
        raise ValueError(f"{path}, line {number} is damaged: {reason}")
    if wrong and damage is not None:
        damage.append(f"{path.name}, line {few(wrong)}: damaged")
    return rows


def lost_updates(rows: Iterable[Mapping[str, Any]], last: int) -> str | None:
    """Return a sentence on the updates, of `last` in all, that have no row; None if each has one."""
    # an agent's rows have no epoch
    missing = sorted(set(range(1, last + 1)) - {row["step"] for row in rows if "epoch" in row})
    return f"metrics.jsonl lacks {len(missing)} of {last} updates: {few(missing)}" if missing else None
