"""A spread network against the same in one process, on four ranks in float64."""

import pytest
import torch

from tests.helpers.rank_works import ROWS, spread_network


@pytest.mark.slow
@pytest.mark.parametrize("n", ROWS)
def test_values_gradients_and_statistics_are_those_of_one_process(n: int, on_four: list) -> None:
    alone = spread_network(n)
    assert alone.keys() >= {"embeddings", "images", "gradient 0", "norms.0.by_route.b.running_var"}
    for found in on_four:
        torch.testing.assert_close(found["spread"][n], alone, rtol=1e-9, atol=1e-9)


@pytest.mark.slow
def test_all_ranks_get_the_same_bits(on_four: list) -> None:
    for n in ROWS:
        for name, value in on_four[0]["spread"][n].items():
            assert all(torch.equal(found["spread"][n][name], value) for found in on_four), (n, name)
