import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from astra_gym.ssl_core.evaluation.landscape import (
    downstream_landscape,
    loss_along,
    random_direction,
    search_directions,
)
from astra_gym.ssl_core.models.target_network import TargetNetwork
from astra_gym.ssl_core.utils.hashing import fingerprint
from astra_gym.ssl_core.utils.rng import Streams
from tests.helpers.tiny_networks import tiny_network

RADII = (-1.0, -0.5, 0.0, 0.5, 1.0)


@pytest.fixture
def network() -> TargetNetwork:
    return tiny_network().eval()


class Weights(nn.Module):
    """Two layers whose weights are their own figures."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.utils.skip_init(nn.Conv2d, 2, 3, 3)
        self.linear = nn.utils.skip_init(nn.Linear, 4, 5)
        self.norm = nn.BatchNorm2d(3)
        generator = torch.Generator().manual_seed(0)
        for parameter in self.parameters():
            parameter.data.normal_(generator=generator)
        self.double().eval()


def curvature(weight: Tensor) -> Tensor:
    """Another one for every weight, so that directions of the same filter norms differ in sharpness."""
    return torch.arange(1.0, weight.numel() + 1).view_as(weight).double()


def quadratic(module: Weights) -> Callable[[], Tensor]:
    """Half the sum of curvature times weight squared: along d the loss is a parabola."""

    def loss() -> Tensor:
        return sum((curvature(w) * w.square()).sum() / 2 for w in (module.conv.weight, module.linear.weight))

    return loss


def test_every_filter_of_a_direction_has_the_norm_of_the_networks_own(network: TargetNetwork) -> None:
    direction = random_direction(network, torch.Generator().manual_seed(0))
    parameters = dict(network.named_parameters())
    layers = {name for name, module in network.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)}
    assert direction.keys() == {f"{name}.weight" for name in layers}
    assert not any("norm" in name or "bias" in name for name in direction)
    for name, move in direction.items():
        assert (move.shape, move.dtype) == (parameters[name].shape, torch.float32)
        torch.testing.assert_close(move.flatten(1).norm(dim=1), parameters[name].flatten(1).norm(dim=1))


def test_directions_are_gaussian_apart_from_their_filters_norms() -> None:
    module = Weights()
    module.linear = nn.utils.skip_init(nn.Linear, 2000, 3, dtype=torch.float64)
    nn.init.constant_(module.linear.weight, 0.5)
    move = random_direction(module, torch.Generator().manual_seed(0))["linear.weight"] / 0.5
    assert move.mean().abs() < 0.05
    assert move.pow(4).mean().item() == pytest.approx(3, rel=0.1)
    assert (move[0] @ move[1]).abs() / 2000 < 0.1


def test_a_filter_of_zeros_stays() -> None:
    module = Weights()
    module.conv.weight.data[1] = 0
    move = random_direction(module, torch.Generator().manual_seed(0))["conv.weight"]
    assert move[1].abs().max() == 0
    assert move[0].abs().max() > 0


def test_directions_come_from_the_generator_alone() -> None:
    module = Weights()
    state = torch.get_rng_state()
    one, same, other = (random_direction(module, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["conv.weight"], other["conv.weight"])
    assert torch.equal(torch.get_rng_state(), state)


def test_a_quadratic_loss_is_an_exact_parabola() -> None:
    module = Weights()
    before = fingerprint(module)
    direction = random_direction(module, torch.Generator().manual_seed(0))
    values = loss_along(module, direction, RADII, quadratic(module))
    parameters = dict(module.named_parameters())
    slope = sum((curvature(d) * parameters[name] * d).sum().item() for name, d in direction.items())
    curved = sum((curvature(d) * d.square()).sum().item() for d in direction.values())
    center = quadratic(module)().item()
    assert values == pytest.approx([center + slope * r + curved * r * r / 2 for r in RADII], rel=1e-12)
    assert values[2] == center
    assert fingerprint(module) == before
    searched = search_directions(module, quadratic(module), 0.5, 1, torch.Generator().manual_seed(0))
    assert searched.sharpness == pytest.approx((curved / 8,))


def test_filter_normalisation_is_not_fooled_by_the_scale_of_weights(network: TargetNetwork) -> None:
    """Ten times larger convolutions before a batch norm that takes the factor off: the same network and landscape."""
    images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))

    def curve() -> list[float]:
        direction = random_direction(network, torch.Generator().manual_seed(1))
        return loss_along(network, direction, RADII, lambda: network.features(images, "pgd").square().mean())

    before = curve()
    norm = network.backbone.norm.by_route["pgd"]
    network.backbone.conv.weight.data.mul_(10)
    norm.running_mean.mul_(10)
    norm.running_var.add_(norm.eps).mul_(100).sub_(norm.eps)
    assert before[0] != pytest.approx(before[2], rel=1e-3)
    assert curve() == pytest.approx(before, rel=1e-4)


def test_weights_are_put_back_after_an_error_and_after_an_interrupt(network: TargetNetwork) -> None:
    before = fingerprint(network)
    direction = random_direction(network, torch.Generator().manual_seed(0))
    seen = []

    def failing() -> Tensor:
        seen.append(fingerprint(network) != before)
        raise KeyError("no")

    def interrupted() -> Tensor:
        seen.append(fingerprint(network) != before)
        raise KeyboardInterrupt

    for loss, error in ((failing, KeyError), (interrupted, KeyboardInterrupt)):
        with pytest.raises(error):
            loss_along(network, direction, (0.3, 0.4), loss)
        assert fingerprint(network) == before
    assert seen == [True, True]


def test_a_loss_that_learns_is_found_out(network: TargetNetwork) -> None:
    direction = random_direction(network, torch.Generator().manual_seed(0))

    def learning() -> Tensor:
        network.projector.norms[0].by_route["pgd"].running_mean.add_(1)
        return torch.zeros(())

    with pytest.raises(RuntimeError, match=r"projector\.norms\.0\.by_route\.pgd\.running_mean changed"):
        loss_along(network, direction, RADII, learning)


def test_the_sharpest_is_the_sharpest_and_the_median_is_the_median() -> None:
    module = Weights()
    for candidates in (1, 4, 5):
        searched = search_directions(module, quadratic(module), 0.5, candidates, torch.Generator().manual_seed(3))
        generator = torch.Generator().manual_seed(3)
        drawn = []
        for _ in range(candidates):
            direction = random_direction(module, generator)
            low, center, high = loss_along(module, direction, (-0.5, 0, 0.5), quadratic(module))
            drawn.append((low + high) / 2 - center)
        assert searched.sharpness == pytest.approx(tuple(sorted(drawn)))
        for found, value in ((searched.median, sorted(drawn)[(candidates - 1) // 2]), (searched.sharpest, max(drawn))):
            low, center, high = loss_along(module, found, (-0.5, 0, 0.5), quadratic(module))
            assert (low + high) / 2 - center == pytest.approx(value)


def test_progress_is_called_once_a_loss() -> None:
    module, calls = Weights(), []
    generator = torch.Generator().manual_seed(0)
    search_directions(module, quadratic(module), 0.5, 3, generator, lambda: calls.append(0))
    assert len(calls) == 7


def test_bad_input_is_refused(network: TargetNetwork) -> None:
    module, generator = Weights(), torch.Generator().manual_seed(0)
    direction = random_direction(module, generator)
    with pytest.raises(ValueError, match="Identity has no convolution"):
        random_direction(nn.Identity(), generator)
    with pytest.raises(ValueError, match="no such weight"):
        loss_along(network, direction, RADII, quadratic(module))
    with pytest.raises(ValueError, match=r"linear\.weight by \(1,\): the network has \(5, 4\)"):
        loss_along(module, {"linear.weight": torch.ones(1)}, RADII, quadratic(module))
    with pytest.raises(RuntimeError, match=r"nan at radius 0\.3"):
        loss_along(module, direction, (0.3,), lambda: torch.tensor(float("nan")))
    for radius, candidates in ((0.0, 3), (float("inf"), 3), (0.5, 0)):
        with pytest.raises(ValueError, match=r"expected a finite number above 0|expected an integer of 1 or more"):
            search_directions(module, quadratic(module), radius, candidates, generator)
    module.norm.train()
    with pytest.raises(ValueError, match=r"train mode \(norm\)"):
        loss_along(module, direction, RADII, quadratic(module))


def test_the_downstream_loss_of_two_linear_classes_has_a_closed_form() -> None:
    """An attack at radius e lowers each margin by e |w_1 - w_0|, and the attack is made anew for moved weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        classifier = nn.Sequential(nn.Flatten(), nn.Linear(12, 2)).eval()
    images = 0.3 + 0.4 * torch.rand(30, 3, 2, 2, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(30) % 2
    before, ticks = fingerprint(classifier), []
    found = downstream_landscape(classifier, images, labels, seed=3, progress=lambda *done: ticks.append(done))
    assert fingerprint(classifier) == before and ticks[-1] == (75, 75)
    assert found.radii == pytest.approx([index / 10 for index in range(-10, 11)])

    def loss() -> Tensor:
        return F.cross_entropy(classifier(images), labels)

    way = search_directions(classifier, loss, 0.5, 16, Streams(3)["landscape/directions"]).median
    for radius, clean, attacked in zip(*found, strict=True):
        moved = copy.deepcopy(classifier).requires_grad_(False)
        moved[1].weight += radius * way["1.weight"]
        logits = moved(images)
        margin = (logits[:, 1] - logits[:, 0]) * (2 * labels - 1)
        reach = 8 / 255 * (moved[1].weight[1] - moved[1].weight[0]).abs().sum()
        assert clean == pytest.approx(F.softplus(-margin).mean().item(), rel=1e-5)
        assert attacked == pytest.approx(F.softplus(reach - margin).mean().item(), rel=1e-5)
