"""Rows of metrics: what a policy depends on, and files that were cut short or damaged."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from astra_gym.envs.records import StepRecord
from astra_gym.experiments.runs.metrics import FIFTHS, metrics_of, read_metrics
from astra_gym.ssl_core.attacks.pgd import Budget
from astra_gym.ssl_core.settings import renamed


def record(clean: torch.Tensor, steps: torch.Tensor) -> StepRecord:
    n = len(clean)
    budget = Budget(epsilon=torch.full((n,), 8 / 255), step_size=torch.full((n,), 2 / 255), steps=steps)
    views = torch.zeros(n, 3, 4, 4)
    terms = {"adversarial": clean + 1, "clean": clean}
    return StepRecord(1, 0.1, clean, terms, budget, budget.epsilon, {"total": 1.0}, 0.1, views, views, False)


def test_the_budget_is_told_by_fifths_of_the_clean_loss() -> None:
    clean = torch.tensor([9.0, 1, 5, 3, 7, 2, 6, 10, 8, 4])
    row = metrics_of(record(clean, steps=(2 * clean).to(torch.int64)))
    # the fifths hold losses 1 and 2, 3 and 4, ...; steps are twice the loss
    assert row["by_clean_loss/steps"] == [3.0, 7.0, 11.0, 15.0, 19.0]
    assert row["by_clean_loss/epsilon_255"] == pytest.approx([8.0] * FIFTHS)
    assert row["by_clean_loss/step_size_255"] == pytest.approx([2.0] * FIFTHS)


def test_other_attacks_steps_are_told_where_there_are_any() -> None:
    made = record(torch.rand(4), torch.arange(3, 7))
    plain = metrics_of(made)
    assert "attack/other_steps" not in plain
    assert metrics_of(replace(made, other_steps=240)) == plain | {"attack/other_steps": 240}


def test_too_few_views_make_no_fifths() -> None:
    row = metrics_of(record(torch.rand(FIFTHS - 1), torch.arange(3, FIFTHS + 2)))
    assert not [key for key in row if key.startswith("by_clean_loss")]


def test_rows_of_earlier_versions_get_the_present_names(tmp_path: Path) -> None:
    made = record(torch.rand(10), torch.arange(10))
    row = metrics_of(replace(made, losses={"regularizer": 0.5}))
    assert set(renamed.METRICS.values()) == {"loss/regularizer", *(name for name in row if name.endswith("_255"))}
    assert not renamed.METRICS.keys() & row.keys()
    path = tmp_path / "metrics.jsonl"
    earlier = {now: before for before, now in renamed.METRICS.items()}
    first, second = ({name: value for name, value in row.items() if name != "step"} | {"step": step} for step in (1, 2))
    path.write_text("".join(f"{json.dumps(each)}\n" for each in ({earlier.get(n, n): first[n] for n in first}, second)))
    assert '"budget/epsilon":' in path.read_text() and read_metrics(path) == [first, second]


def test_a_users_own_name_is_no_old_one(tmp_path: Path) -> None:
    own = metrics_of(replace(record(torch.rand(10), torch.arange(10)), losses={"regulariser": 0.5}))
    unattacked = {"step": 2, "loss/regulariser": 0.25, "loss/total": 0.25}
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in (own, unattacked)))
    assert read_metrics(path) == [own, unattacked] and own["loss/regulariser"] == 0.5


def test_rows_share_their_names(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(f'{{"step": {step}, "loss/total": {step}}}\n' for step in range(1, 200)))
    assert len({id(name) for row in read_metrics(path) for name in row}) == 2


def test_an_updates_entries_are_joined_and_a_cut_line_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 2, "a": 1}\n{"step": 1}\n{"step": 2, "b": null}\n{"step": 3, "a"')
    assert read_metrics(path) == [{"step": 1}, {"step": 2, "a": 1, "b": None}]
    path.write_text('{"step": 1}\n{"epoch": 2}\n')
    with pytest.raises(ValueError, match="line 2 is damaged: expected an object with a step"):
        read_metrics(path)
