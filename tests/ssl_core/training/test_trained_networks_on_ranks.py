"""Updates on several ranks against those of one process, in float64: attacks, losses, weights, statistics, heads."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.helpers.on_ranks import on_ranks
from tests.helpers.rank_works import updates_of_first_class, updates_of_methods


def check(found: list[dict[str, dict[str, Tensor]]], alone: dict[str, dict[str, Tensor]]) -> None:
    for case, expected in alone.items():
        for name, value in expected.items():
            first = found[0][case][name]
            torch.testing.assert_close(first, value, rtol=1e-9, atol=1e-9, msg=f"{case}: {name}")
            assert all(torch.equal(each[case][name], first) for each in found), (case, name)


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, pytest.param(4, marks=pytest.mark.every_agent)])
def test_three_updates_are_those_of_one_process(size: int, tmp_path: Path) -> None:
    """The last batch has fewer rows in a pass than there are ranks. The same ranks give the same bits."""
    work = "tests.helpers.rank_works:updates_of_first_class"
    found = on_ranks(size, work, tmp_path)
    check(found, updates_of_first_class())
    once, again = found[0]["acl-ds"], found[0]["acl-ds again"]
    assert all(torch.equal(once[name], value) for name, value in again.items())


@pytest.mark.every_agent
def test_three_updates_of_every_method_are_those_of_one_process(tmp_path: Path) -> None:
    check(on_ranks(2, "tests.helpers.rank_works:updates_of_methods", tmp_path), updates_of_methods())
