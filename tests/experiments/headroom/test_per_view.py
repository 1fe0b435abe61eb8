"""A whole repeat of headroom per view, and what its repeats say together."""

import pytest

from astra_gym.experiments.headroom.per_view import conclude, measure
from astra_gym.experiments.headroom.world import HeadroomWorld


@pytest.mark.every_agent
def test_a_repeat_has_the_same_bits_again(tiny_world: HeadroomWorld) -> None:
    assert measure(tiny_world, 0) == measure(tiny_world, 0)


@pytest.mark.every_agent
def test_repeats_have_verdicts(tiny_world: HeadroomWorld) -> None:
    found = measure(tiny_world, 0)
    verdicts, numbers = conclude(tiny_world, {seed: found for seed in range(3)})
    falls = numbers["falls"]
    assert [each.n for each in verdicts] == [3, 3, 3]
    assert verdicts[0].mean == pytest.approx(falls["chosen"][0] - falls["shuffled"][0])
    assert verdicts[1].mean == pytest.approx(falls["chosen"][0] - falls["constant"][0])
    assert numbers["views"] == 9 and sum(each["preferred"] for each in numbers["budgets"]) == pytest.approx(1)
    assert sum(numbers["variance"].values()) == pytest.approx(1)
    assert [each["constant"] for each in numbers["budgets"]].index(True) == 4
