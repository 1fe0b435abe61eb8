"""The section on the target network: what it refuses, and what it builds."""

import pytest
import torch

from astra_gym.ssl_core.models.settings import NetworkSection
from tests.helpers.draws import generator


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"arch": "resnet81"}, "did you mean 'resnet18'"),
        ({"stem": "x"}, "stem"),
        ({"width": 0}, "width is 0: expected a positive integer"),
        ({"projector_dim": 1.5}, "projector_dim is 1.5"),
        ({"neck": -1}, "neck is -1: expected 0 for none"),
    ],
)
def test_bad_settings_are_refused(setting: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NetworkSection(**setting)


def test_it_builds_the_network_that_it_describes() -> None:
    section = NetworkSection(width=4, projector_hidden=6, projector_dim=5, normalization="none")
    network, again = (section.build(generator(1), ("normal",), 16, recompute=True, compiled=True) for _ in range(2))
    assert (network.feature_dim, network.embedding_dim, network.routes) == (32, 5, ("normal",))
    assert network.backbone.recompute and network.backbone.compiled and not network.mean.any()
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(network.parameters(), again.parameters(), strict=True))
