import math

import pytest
import torch
from torch import nn

from astra_gym.ssl_core.models.init import build_module, initialize
from tests.helpers.draws import generator


def parts() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 200, 5, bias=False), nn.BatchNorm2d(200, affine=False), nn.Linear(100, 300))


def test_the_weights_come_from_the_generator_and_the_global_one_is_left_alone() -> None:
    before = torch.get_rng_state()
    states = [build_module(generator(seed), parts).state_dict() for seed in (0, 0, 1)]
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert not torch.equal(states[0]["0.weight"], states[2]["0.weight"])


def test_their_spread_is_that_of_the_schemes() -> None:
    module = build_module(generator(), parts)
    assert module[0].weight.std().item() == pytest.approx(math.sqrt(2 / (200 * 25)), rel=0.03)
    for value in (module[2].weight, module[2].bias):
        assert value.abs().max().item() <= 0.1
        assert value.std().item() == pytest.approx(0.1 / math.sqrt(3), rel=0.1)


def test_statistics_begin_anew() -> None:
    module = parts()
    module[1].running_mean.fill_(3.0)
    initialize(module, generator())
    assert not module[1].running_mean.any()


def test_unknown_parts_are_refused() -> None:
    with pytest.raises(ValueError, match="no initialization is known for Embedding"):
        build_module(generator(), lambda: nn.Embedding(2, 2))
