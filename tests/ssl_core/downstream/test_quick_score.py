"""The score of an encoder against its parts computed plainly, and what it leaves as it was."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from astra_gym.ssl_core.data.datasets import load_dataset
from astra_gym.ssl_core.data.image_set import ImageSet
from astra_gym.ssl_core.downstream.online_probe import ridge_head
from astra_gym.ssl_core.downstream.quick_score import quick_score
from astra_gym.ssl_core.models.target_network import TargetNetwork, build_network
from astra_gym.ssl_core.transforms.views import as_float


@pytest.fixture(scope="module")
def parts() -> tuple[ImageSet, ImageSet]:
    split = load_dataset("digits", image_size=8)
    return split.train.take(400), split.test.take(200)


@pytest.fixture(scope="module")
def network() -> TargetNetwork:
    return build_network(torch.Generator().manual_seed(2), arch="resnet10", width=8).train()


def test_clean_values_are_those_of_the_regression(network: TargetNetwork, parts: tuple[ImageSet, ImageSet]) -> None:
    fitted, measured = parts
    found = quick_score(network, "pgd", fitted, measured, 8 / 255)
    network.eval()
    with torch.no_grad():
        features = [network.features(as_float(part.images), "pgd").double() for part in parts]
    network.train()
    weight, bias = ridge_head(features[0], F.one_hot(fitted.labels, 10).double())
    values = features[1] @ weight.T + bias
    true = values[torch.arange(200), measured.labels]
    others = values.scatter(1, measured.labels[:, None], -torch.inf).amax(1)
    assert found.clean_margin == pytest.approx(float((true - others).mean()), abs=1e-4)
    assert pytest.approx(100 * float((values.argmax(1) == measured.labels).double().mean()), abs=1.01) == found.SA


def test_a_larger_ball_lowers_the_margin_and_nothing_moves(
    network: TargetNetwork, parts: tuple[ImageSet, ImageSet]
) -> None:
    before, drawn = {name: value.clone() for name, value in network.state_dict().items()}, torch.get_rng_state()
    found = [quick_score(network, "pgd", *parts, epsilon) for epsilon in (1e-6, 4 / 255, 16 / 255)]
    assert found == [quick_score(network, "pgd", *parts, epsilon) for epsilon in (1e-6, 4 / 255, 16 / 255)]
    assert found[0].margin == pytest.approx(found[0].clean_margin, abs=1e-3) and found[0].RA == found[0].SA
    assert found[0].margin > found[1].margin > found[2].margin and found[0].RA > found[1].RA > found[2].RA
    assert len({(each.SA, each.clean_margin) for each in found}) == 1
    assert network.training and all(value.requires_grad for value in network.parameters())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), drawn)


def test_what_cannot_be_scored_is_refused(network: TargetNetwork, parts: tuple[ImageSet, ImageSet]) -> None:
    fitted, measured = parts
    with pytest.raises(ValueError, match="has no labels, and the quick score needs them"):
        quick_score(network, "pgd", fitted, replace(measured, labels=None), 8 / 255)
    for epsilon in (0.0, 8, float("nan")):
        with pytest.raises(ValueError, match="epsilon is"):
            quick_score(network, "pgd", *parts, epsilon)
