"""Ridge regression against least squares, and a measurement that leaves everything as it was."""

import pytest
import torch

from astra_gym.ssl_core.data.datasets import load_dataset
from astra_gym.ssl_core.data.image_set import ImageSet
from astra_gym.ssl_core.downstream.online_probe import OnlineProbe, ridge_head
from astra_gym.ssl_core.models.target_network import build_network


def test_the_head_is_that_of_least_squares_with_more_rows() -> None:
    draws = torch.Generator().manual_seed(1)
    features, targets = torch.randn(40, 5, generator=draws).double(), torch.rand(40, 3, generator=draws).double()
    features[:, 2] += 7
    for ridge in (1e-9, 0.1):
        weight, bias = ridge_head(features, targets, ridge)
        # the penalty as further rows, which the free biases do not see
        penalty = ridge * features.var(0, correction=0).mean() * 40
        rows = torch.cat([torch.cat([features, torch.ones(40, 1)], 1), torch.eye(6).double()[:5] * penalty.sqrt()])
        wanted = torch.cat([targets, torch.zeros(5, 3)])
        solved = torch.linalg.lstsq(rows, wanted.double()).solution
        torch.testing.assert_close(torch.cat([weight.T, bias[None]]), solved, rtol=1e-9, atol=1e-9)


def test_features_that_are_all_alike_have_a_head_too() -> None:
    weight, bias = ridge_head(torch.ones(4, 3).double(), torch.tensor([[1.0, 0], [1, 0], [0, 1], [0, 1]]).double())
    assert weight.abs().max() == 0 and bias.tolist() == [0.5, 0.5]


def test_measuring_tells_classes_apart_and_changes_nothing() -> None:
    train = load_dataset("digits", image_size=8).train
    network = build_network(torch.Generator().manual_seed(2), arch="resnet10", width=8).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    drawn = torch.get_rng_state()
    probe = OnlineProbe(train, seed=5)
    found = probe.measure(network, "pgd")
    assert found == probe.measure(network, "pgd")
    # random features of digits are worth more than chance, and an attack takes from them
    assert found["RA_8_255"] < found["SA"] <= 100 and min(found["SA"], found["SA_fitted"]) > 60
    assert network.training and all(value.requires_grad for value in network.parameters())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), drawn)
    assert not {tuple(image.flatten().tolist()) for image in probe._measured[0][:20]} & {
        tuple(image.flatten().tolist()) for image in probe._fitted[0]
    }


def test_a_set_without_labels_or_with_one_image_is_refused() -> None:
    images = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    with pytest.raises(ValueError, match="has no labels, and the probe of --probe_every needs them"):
        OnlineProbe(ImageSet(images, None, (), "unlabeled train"), seed=0)
    with pytest.raises(ValueError, match="has 1 image"):
        OnlineProbe(ImageSet(images[:1], torch.zeros(1, dtype=torch.int64), ("a",), "single"), seed=0)
