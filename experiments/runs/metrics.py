"""Target updates as rows of numbers: what `metrics.jsonl` and TensorBoard say of a run."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from astra_gym.envs.actions import UNIT

if TYPE_CHECKING:
    from astra_gym.envs.records import StepRecord

FIFTHS = 5
"""Into so many groups a step's views are put by their clean loss, to show what a policy depends on."""


def metrics_of(record: "StepRecord") -> dict[str, Any]:
    """A target update as a row of metrics: plain numbers, and counts of the chosen actions.

    `loss/*` are the named terms of the training loss; `reward/*` the reward's named terms, its mean and its standard
    deviation over the views; `budget/*` the means of what was played, `budget/strength` of what it came to (the largest
    change of a pixel); `actions/*` how often each value was played; `by_clean_loss/*` their means in each fifth of the
    views, from the smallest clean loss to the largest. Epsilon, step size and strength are in 1/255.
    `attack/other_steps`, where there are any, are the gradient steps of attacks beside the budget's, times their views.
    """
    row: dict[str, Any] = {"step": record.step, "epoch": record.epoch, "lr": record.lr}
    row |= {f"loss/{name}": value for name, value in record.losses.items()}
    if record.other_steps:
        row["attack/other_steps"] = record.other_steps
    if record.budget is None:
        return row
    parts = {f"reward/{name}": values for name, values in record.terms.items()} | {
        "reward": record.reward,
        "epsilon": record.budget.epsilon * UNIT,
        "steps": record.budget.steps,
        "step_size": record.budget.step_size * UNIT,
        "strength": record.strength * UNIT,
    }
    # One copy from the device instead of one for each figure.
    together = torch.stack([values.detach().to(torch.float32) for values in parts.values()]).cpu().double()
    host = dict(zip(parts, together, strict=True))
    played = {name: host.pop(name) for name in ("epsilon", "steps", "step_size", "strength")}
    reward = host.pop("reward")
    order = host["reward/clean"].argsort(stable=True) if "reward/clean" in host else torch.empty(0)
    row |= {"reward/mean": reward.mean().item(), "reward/std": reward.std(correction=0).item()}
    row |= {name: values.mean().item() for name, values in host.items()}
    row |= {f"budget/{name}": values.mean().item() for name, values in played.items()}
    for name in ("epsilon", "steps", "step_size"):
        found, counts = played[name].round().to(torch.int64).unique(return_counts=True)
        row[f"actions/{name}"] = {
            str(value): count for value, count in zip(found.tolist(), counts.tolist(), strict=True)
        }
        if len(order) >= FIFTHS:
            row[f"by_clean_loss/{name}"] = [part.mean().item() for part in played[name][order].tensor_split(FIFTHS)]
    return row


def read_metrics(path: Path | str) -> list[dict[str, Any]]:
    """The rows of a `metrics.jsonl`, one for each target update: the agent's entries join those of their update.

    A last line that was cut short, by a process killed while writing, is left out.
    """
    merged: dict[int, dict[str, Any]] = {}
    for row in metrics_rows(Path(path)):
        merged.setdefault(row["step"], {}).update(row)
    return [merged[step] for step in sorted(merged)]


def kept_rows(path: Path, step: int) -> tuple[list[dict[str, Any]], list[str]]:
    """The rows up to a target update, as a run takes them over that resumes there, and what is lost of them, in words.

    A log that was damaged or lost does not touch the checkpoint: what can be read of it is kept.
    """
    try:
        lines = path.read_bytes().decode("utf-8", "replace").split("\n")
    except FileNotFoundError:
        lines = [""]
    rows = [_row(line) for line in lines[:-1]]
    kept = [row for row in rows if row is not None and row["step"] <= step]
    damages = []
    if bad := [number for number, row in enumerate(rows, start=1) if row is None]:
        which = f"line {bad[0]} is" if len(bad) == 1 else f"{len(bad)} lines, the first of them {bad[0]}, are"
        damages.append(f"{path} is damaged: {which} left out")
    # an agent's own rows have no epoch
    updates = {row["step"] for row in kept if "epoch" in row}
    if lost := [number for number in range(1, step + 1) if number not in updates]:
        damages.append(
            f"{path} lacks {len(lost)} of the {step} updates before the checkpoint, the first of them {lost[0]}: "
            "curves and reports lack them too"
        )
    return kept, damages


def _row(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and type(row.get("step")) is int else None


def metrics_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows as they stand in the file; a last line that was cut short is left out.

    Raises:
        ValueError: if a line is not a row.
    """
    lines = path.read_text(encoding="utf-8").split("\n")
    for number, line in enumerate(lines[:-1], start=1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
        if not isinstance(row, dict) or type(row.get("step")) is not int:
            raise ValueError(f"{path}, line {number}: expected an object with a step, got {line[:60]!r}")
        yield row
