"""The division of an attack's steps among views."""

import pytest
import torch

from astra_gym.experiments.headroom.within_attack import allocate, by_gradient, conclude, measure
from astra_gym.experiments.headroom.world import HeadroomWorld


def test_the_greedy_oracle_takes_the_largest_next_gain() -> None:
    # the loss of three views along four steps
    traces = torch.tensor([[0.0, 0, 0], [5, 1, 4], [6, 1.5, 4.2], [9, 2, 9], [9, 2, 9]])
    gains = traces.diff(dim=0)
    assert allocate(gains, 2).tolist() == [1, 0, 1]
    # the third view's second step gains little, so that what is behind it is seen only after the others' steps
    assert allocate(gains, 6).tolist() == [3, 2, 1]
    assert allocate(gains, 8).tolist() == [3, 3, 2]
    assert allocate(gains, 9).tolist() == [3, 3, 3]
    assert allocate(gains, 12).tolist() == [4, 4, 4]
    with pytest.raises(ValueError, match="13 steps for 3 views: expected 0 to 12"):
        allocate(gains, 13)


def test_the_gradient_rule_divides_in_proportion_within_the_most() -> None:
    assert by_gradient(torch.tensor([1.0, 2.0, 3.0]), 14, 12).tolist() == [2, 4, 6]
    assert by_gradient(torch.tensor([1.0, 2.0, 30.0]), 8, 12).tolist() == [1, 3, 8]


@pytest.mark.slow
def test_divisions_are_attacked_with_at_equal_steps_and_the_same_bits_again(tiny_world: HeadroomWorld) -> None:
    found = measure(tiny_world, 0)
    assert measure(tiny_world, 0) == found
    assert len(found["batches"]) == 2
    for batch in found["batches"]:
        assert sum(batch["histogram"]) == 8
        assert sum(steps * views for steps, views in enumerate(batch["histogram"])) == 4 * 8
        assert batch["uniform"] > batch["clean"]
    verdicts, numbers = conclude(tiny_world, {seed: found for seed in range(3)})
    assert verdicts[0].kind == "within an attack, greedy oracle - uniform" and verdicts[0].n == 3
    assert verdicts[0].mean == pytest.approx(numbers["losses"]["oracle"] - numbers["losses"]["uniform"])
    assert verdicts[0].bar == pytest.approx(0.05 * numbers["spread"])
