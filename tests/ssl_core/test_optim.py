import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import nn

from ssl_core.optim import LARS, OPTIMIZERS, make_optimizer, warmup_cosine


def test_lars_equals_its_formula_step_by_step() -> None:
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(3, 4, generator=generator, dtype=torch.float64), torch.zeros(5, dtype=torch.float64)]
    mine = [nn.Parameter(weight.clone()) for weight in weights]
    velocities = [torch.zeros_like(weight) for weight in weights]
    optimizer = LARS(mine, lr=0.7, momentum=0.9, weight_decay=1e-2)
    for _ in range(4):
        gradients = [torch.randn(weight.shape, generator=generator, dtype=torch.float64) for weight in weights]
        for parameter, gradient in zip(mine, gradients, strict=True):
            parameter.grad = gradient.clone()
        optimizer.step()
        for weight, gradient, velocity in zip(weights, gradients, velocities, strict=True):
            size, slope = weight.norm(), gradient.norm()
            # a zero-initialised tensor starts with q = 1, that is with the raw learning rate
            q = 1.0 if size < 1e-15 or slope < 1e-15 else 1e-3 * size / (slope + 1e-2 * size)
            velocity.mul_(0.9).add_(0.7 * q * (gradient + 1e-2 * weight))
            weight.sub_(velocity)
        for parameter, weight in zip(mine, weights, strict=True):
            torch.testing.assert_close(parameter.data, weight)


def test_lars_step_does_not_depend_on_the_scale_of_the_loss() -> None:
    steps = []
    for scale in (1.0, 1 / 3):
        weight = nn.Parameter(torch.ones(4, dtype=torch.float64))
        weight.grad = scale * torch.arange(4, dtype=torch.float64)
        LARS([weight], lr=1.0, weight_decay=0.0).step()
        steps.append(weight.data)
    torch.testing.assert_close(steps[0], steps[1])


def test_lars_skips_parameters_without_gradient_and_goes_on_from_its_state() -> None:
    weight, idle = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = LARS([weight, idle], lr=1.0)
    weight.grad = torch.ones(2)
    optimizer.step()
    assert torch.equal(idle.data, torch.ones(2))
    other = LARS([weight, idle], lr=1.0)
    other.load_state_dict(optimizer.state_dict())
    assert torch.equal(other.state[weight]["velocity"], optimizer.state[weight]["velocity"])


def test_lars_refuses_negative_figures() -> None:
    with pytest.raises(ValueError, match="none negative"):
        LARS([nn.Parameter(torch.ones(1))], lr=-1.0)


def test_warmup_cosine_at_its_boundaries() -> None:
    rates = [warmup_cosine(step, 100, 10, 5.0) for step in range(103)]
    assert rates[0] == 0
    assert rates[5] == pytest.approx(2.5)
    assert rates[10] == 5.0
    assert rates[55] == pytest.approx(1e-6 + (5 - 1e-6) * 0.5)
    assert rates[100] == rates[102] == pytest.approx(1e-6)
    assert all(a >= b for a, b in pairwise(rates[10:]))
    assert warmup_cosine(0, 100, 0, 5.0) == 5.0
    assert math.isfinite(warmup_cosine(3, 3, 3, 1.0))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_descends(name: str) -> None:
    layer = nn.Linear(3, 1)
    nn.init.ones_(layer.weight)
    optimizer = make_optimizer(name, layer, lr=0.5, weight_decay=0.0)
    before = layer.weight.detach().clone()
    layer(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    assert (layer.weight < before).all()


def test_unknown_optimizer_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="did you mean 'lars'"):
        make_optimizer("larz", nn.Linear(1, 1), 0.1, 0.0)


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("adamw", partial(torch.optim.AdamW, foreach=False)),
        ("sgd", partial(torch.optim.SGD, momentum=0.9, nesterov=True, foreach=False)),
    ],
)
def test_fused_optimisers_equal_the_plain_ones(name: str, plain: Callable[..., torch.optim.Optimizer]) -> None:
    networks = [nn.Linear(5, 3, dtype=torch.float64) for _ in range(2)]
    networks[1].load_state_dict(networks[0].state_dict())
    optimizers = [
        make_optimizer(name, networks[0], 0.1, 0.01),
        plain(networks[1].parameters(), lr=0.1, weight_decay=0.01),
    ]
    for step in range(5):
        x = torch.randn(4, 5, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
        for network, optimizer in zip(networks, optimizers, strict=True):
            optimizer.zero_grad()
            network(x).square().sum().backward()
            optimizer.step()
    assert optimizers[0].param_groups[0]["fused"]
    torch.testing.assert_close(networks[0].weight, networks[1].weight)
