"""Short runs on several ranks against one process, in float64: actions, rewards, losses, weights, agents."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.helpers import rank_runs
from tests.helpers.on_ranks import on_ranks


def check(found: list[dict[str, dict[str, Tensor]]], alone: dict[str, dict[str, Tensor]]) -> None:
    for case, expected in alone.items():
        assert "3//reward" in expected and all(each[case].keys() == expected.keys() for each in found)
        for name, value in expected.items():
            first = found[0][case][name]
            # the agent "accelerating" sums gradients of float32 images
            near = 1e-6 if name.endswith("learner/sum") else 1e-9
            torch.testing.assert_close(first, value, rtol=near, atol=1e-9, equal_nan=True, msg=f"{case}: {name}")
            assert all(torch.equal(each[case][name].nan_to_num(), first.nan_to_num()) for each in found), (case, name)


@pytest.mark.slow
def test_a_few_runs_are_those_of_one_process(tmp_path: Path) -> None:
    check(on_ranks(2, "tests.helpers.rank_runs:few", tmp_path), rank_runs.few())


@pytest.mark.every_agent
@pytest.mark.parametrize("size", [2, 4])
def test_first_class_methods_and_agents_are_those_of_one_process(size: int, tmp_path: Path) -> None:
    check(on_ranks(size, "tests.helpers.rank_runs:first_class", tmp_path), rank_runs.first_class())


@pytest.mark.every_agent
def test_all_other_parts_of_a_run_are_those_of_one_process(tmp_path: Path) -> None:
    check(on_ranks(2, "tests.helpers.rank_runs:others", tmp_path), rank_runs.others())


@pytest.mark.slow
def test_files_that_differ_between_machines_are_found_before_the_first_update(tmp_path: Path) -> None:
    for found in on_ranks(2, "tests.helpers.rank_runs:unlike", tmp_path):
        assert found.pop("alike") == "" and len(found) == 2
        assert all(f"{name} of rank 1 differ from those of rank 0" in said for name, said in found.items())
