import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from astra_gym.ssl_core.training.optim import (
    LARS,
    OPTIMIZERS,
    WrappedLARS,
    make_optimizer,
    warmup_cosine,
    warmup_cosine_by_epoch,
)


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
            # a zero-initialized tensor starts with q = 1, that is with the raw learning rate
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
    with pytest.raises(ValueError, match=r"is -\S+: expected a finite number of 0 or more"):
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
    rates = [warmup_cosine(step, 100, 10, 5.0, floor=0.5, start=1.0) for step in range(102)]
    assert rates[:3] == pytest.approx([1.0, 1.4, 1.8]) and rates[10] == 5.0 and rates[55] == pytest.approx(2.75)
    assert rates[100] == rates[101] == 0.5


def test_warmup_cosine_by_epoch_is_what_the_released_codes_have() -> None:
    # epochs are counted from 1, as in their codes; DynACL: 5 e / 10, then its cosine over 990 epochs
    dynacl = [0.0] + [warmup_cosine_by_epoch(e - 1, 1000, 10, 5.0, floor=1e-6, start=0.5) for e in range(1, 1001)]
    assert dynacl[1:12] == pytest.approx([0.5 * e for e in range(1, 11)] + [5.0])
    for e in (12, 500, 1000):
        assert dynacl[e] == pytest.approx(1e-6 + 0.5 * (5 - 1e-6) * (1 + math.cos(math.pi * (e - 11) / 990)))
    assert dynacl[1000] == pytest.approx(1.36e-5, rel=0.01)
    # DeACL: from .003 to .5, 497 / 9 thousandths more an epoch, then to 0
    deacl = [0.0] + [warmup_cosine_by_epoch(e - 1, 100, 10, 0.5, 0.0, 0.003) for e in range(1, 101)]
    assert deacl[1:12] == pytest.approx([0.003 + 0.497 / 9 * (e - 1) for e in range(1, 11)] + [0.5])
    assert (deacl[12], deacl[100]) == (pytest.approx(0.49985, rel=1e-4), pytest.approx(1.52e-4, rel=0.01))
    # RoCL: .1 (1 + 1.4 e)
    rocl = [warmup_cosine_by_epoch(e - 1, 1000, 10, 1.5, 0.0, 0.24) for e in range(1, 11)]
    assert rocl == pytest.approx([0.1 * (1 + 1.4 * e) for e in range(1, 11)])
    assert [warmup_cosine_by_epoch(e, 2, 0, 3.0, 0.0, 0.0) for e in (0, 1, 2, 3)] == pytest.approx([3.0, 1.5, 0.0, 0.0])
    assert warmup_cosine_by_epoch(0, 2, 1, 3.0, 0.0, 1.0) == 3.0


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
        ("sgd-classic", partial(torch.optim.SGD, momentum=0.9, foreach=False)),
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


@pytest.mark.parametrize(
    ("name", "trust", "nesterov"), [("lars-excluded", 0.02, False), ("lars-emp", 0.005, True), (None, 0.3, False)]
)
def test_wrapped_lars_equals_its_formula_step_by_step(name: str | None, trust: float, nesterov: bool) -> None:
    """Over tensors that are excluded, clipped, not clipped and zero, with a rate that changes."""
    random = np.random.default_rng(0)
    shapes = [(4,), (3, 4), (2, 3, 2, 2), (5, 2), ()]
    weights = [random.normal(size=shape) for shape in shapes]
    weights[3] *= 0
    parameters = nn.ParameterList(torch.tensor(weight) for weight in weights)
    if name is None:
        optimizer = WrappedLARS(parameters, 0.1, weight_decay=0.3, trust=trust, clip=False)
    else:
        optimizer = make_optimizer(name, parameters, 0.1, 0.3)
    velocities = [np.zeros(shape) for shape in shapes]
    clipped = set()
    for lr in (0.0, 0.1, 1e-4, 0.5):
        optimizer.param_groups[0]["lr"] = lr
        for index, parameter in enumerate(parameters):
            g = random.normal(size=shapes[index])
            parameter.grad = torch.tensor(g)
            w = weights[index]
            size, slope = np.sqrt((w**2).sum()), np.sqrt((g**2).sum())
            if w.ndim >= 2 and size > 0:
                q = trust * size / (slope + 0.3 * size + 1e-8)
                if name is not None and lr > 0:
                    clipped.add(q / lr > 1)
                    q = min(q / lr, 1)
                elif name is not None:
                    q = 1
                g = q * (g + 0.3 * w)
            velocities[index] = 0.9 * velocities[index] + g
            weights[index] = w - lr * (g + 0.9 * velocities[index] if nesterov else velocities[index])
        optimizer.step()
        for parameter, weight in zip(parameters, weights, strict=True):
            np.testing.assert_allclose(parameter.detach().numpy(), weight, rtol=1e-10, atol=1e-14)
    assert clipped == (set() if name is None else {False, True})


def test_torchlars_lars_equals_its_formula_step_by_step() -> None:
    """Section 4: LARS of trust .001 round SGD with momentum .9, over all tensors, with a rate that changes."""
    random = np.random.default_rng(1)
    weights = [random.normal(size=shape) for shape in [(4,), (3, 4), (2, 3, 2, 2), (5,), ()]]
    weights[3] *= 0
    parameters = nn.ParameterList(torch.tensor(weight) for weight in weights)
    optimizer = make_optimizer("lars-torchlars", parameters, 0.1, 0.3)
    velocities = [0 * weight for weight in weights]
    for step, lr in enumerate((0.0, 0.15, 1.5, 1e-3)):
        optimizer.param_groups[0]["lr"] = lr
        for index, parameter in enumerate(parameters):
            w, g = weights[index], random.normal(size=weights[index].shape)
            # a gradient of 0, of a matrix, at the second step
            g = 0 * g if (step, index) == (1, 1) else g
            parameter.grad = torch.tensor(g)
            size, slope = np.sqrt((w**2).sum()), np.sqrt((g**2).sum())
            q = 0.001 * size / (slope + 0.3 * size + 1e-8) if size > 0 and slope > 0 else 1
            # the rate is SGD's, outside of the velocity
            velocities[index] = 0.9 * velocities[index] + q * (g + 0.3 * w)
            weights[index] = w - lr * velocities[index]
        optimizer.step()
        for parameter, weight in zip(parameters, weights, strict=True):
            np.testing.assert_allclose(parameter.detach().numpy(), weight, rtol=1e-10, atol=1e-14)


def test_torchlars_and_acls_lars_part_when_the_rate_changes() -> None:
    """By hand, from a weight of 1 with slopes of 1 and no decay: q is .001 but for what the weight has moved."""
    found = []
    for name in ("lars", "lars-torchlars"):
        weight = nn.Parameter(torch.ones(1, dtype=torch.float64))
        optimizer = make_optimizer(name, nn.ParameterList([weight]), 1.0, 0.0)
        for lr in (1.0, 0.1):
            optimizer.param_groups[0]["lr"] = lr
            weight.grad = torch.ones(1, dtype=torch.float64)
            optimizer.step()
        found.append(1 - weight.item())
    # .001, then ACL's .9 * .001 + .1 * .000999, and torchlars' .1 * (.9 * .001 + .000999)
    assert found == [pytest.approx(0.001 + 0.0009999, rel=1e-6), pytest.approx(0.001 + 0.0001899, rel=1e-6)]


def test_wrapped_lars_of_a_file_older_than_torchlars_form_goes_on() -> None:
    layer = nn.Linear(2, 2)
    optimizer = make_optimizer("lars-excluded", layer, 0.5, 0.1)
    state = optimizer.state_dict()
    for group in state["param_groups"]:
        del group["everywhere"]
    optimizer.load_state_dict(state)
    assert optimizer.param_groups[0]["everywhere"] is False
    layer(torch.ones(1, 2)).sum().backward()
    before = layer.bias.detach().clone()
    optimizer.step()
    torch.testing.assert_close(layer.bias.data, before - 0.5)


def test_wrapped_lars_neither_decays_nor_adapts_biases() -> None:
    layer = nn.Linear(2, 2)
    nn.init.ones_(layer.bias)
    optimizer = make_optimizer("lars-excluded", layer, 0.5, 10.0)
    layer.bias.grad = torch.zeros(2)
    optimizer.step()
    assert torch.equal(layer.bias.data, torch.ones(2))
    layer.bias.grad = torch.full((2,), 0.25)
    optimizer.step()
    torch.testing.assert_close(layer.bias.data, torch.full((2,), 1 - 0.5 * 0.25))
    with pytest.raises(ValueError, match=r"is -\S+: expected a finite number of 0 or more"):
        WrappedLARS(layer.parameters(), lr=-1.0)


def test_without_heads_there_is_one_group_as_ever() -> None:
    layer, bare = nn.Linear(2, 1), nn.ReLU()
    [group] = make_optimizer("lars", layer, 0.1, 0.0, heads=[(bare, True)]).param_groups
    assert set(group) == {"params", "lr", "momentum", "weight_decay", "trust"}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_heads_are_trained_and_a_constant_rate_is_marked_and_kept_in_a_safe_file(name: str, tmp_path) -> None:
    network, predictor, classifier = (nn.Linear(3, 3) for _ in range(3))
    heads = [(predictor, True), (classifier, False)]

    def made() -> torch.optim.Optimizer:
        return make_optimizer(name, network, 0.1, 0.01, heads=heads)

    optimizer = made()
    assert [group["constant_lr"] for group in optimizer.param_groups] == [False, True, False]
    before = [module.weight.detach().clone() for module in (network, predictor, classifier)]
    classifier(predictor(network(torch.ones(2, 3)))).square().sum().backward()
    for group in optimizer.param_groups:
        if not group["constant_lr"]:
            group["lr"] = 0.03
    optimizer.step()
    for module, weight in zip((network, predictor, classifier), before, strict=True):
        assert not torch.equal(module.weight, weight)
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    other = made()
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert [group["lr"] for group in other.param_groups] == [0.03, 0.1, 0.03]
    assert [group["constant_lr"] for group in other.param_groups] == [False, True, False]
    for mine, theirs in zip(optimizer.state.values(), other.state.values(), strict=True):
        assert all(torch.equal(mine[key], theirs[key]) for key in mine if torch.is_tensor(mine[key]))


def test_a_head_that_is_part_of_the_network_is_refused() -> None:
    layer = nn.Linear(2, 1)
    with pytest.raises(ValueError, match="more than one parameter group"):
        make_optimizer("sgd", layer, 0.1, 0.0, heads=[(layer, False)])
