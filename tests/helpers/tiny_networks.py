"""The tiny network of many tests."""

from typing import Any

from torch import nn

from astra_gym.ssl_core.models.target_network import TargetNetwork, build_network
from tests.helpers.draws import generator


def tiny_network(seed: int = 0, **arguments: Any) -> TargetNetwork:
    """A ResNet-10 of 4 channels with embeddings of 8 dimensions, or what else is given to `TargetNetwork`."""
    sizes: dict[str, Any] = {"arch": "resnet10", "width": 4, "projector_hidden": 8, "projector_dim": 8}
    return build_network(generator(seed), **sizes | arguments)


def unlike_routes(seed: int = 0) -> TargetNetwork:
    """The same with ACL's width of the projector, and routes that differ."""
    network = tiny_network(seed, projector_hidden=512)
    nn.init.constant_(network.projector.norms[2].by_route["pgd"].bias, 0.3)
    return network
