"""Parts that several methods share."""

from collections.abc import Callable

import torch
from torch import Tensor

from astra_gym.ssl_core.methods.base import Network, Networks
from astra_gym.ssl_core.models.target_network import Encoded

RouteEncoder = Callable[[Tensor], Encoded]
"""Maps images (m, 3, h, w) to features and embeddings."""
STRONG = ("strength", "crop_scale", "jitter", "blur", "solarize", "interpolation")
"""Settings of the augmentations that only strong views have; weak ones have the flip alone."""


def by_parity(images: Tensor, rows: Tensor, even: RouteEncoder, odd: RouteEncoder) -> Encoded:
    """Encode even rows in one way and odd rows in another: by two networks, or on two routes.

    Args:
        images: (m, 3, h, w).
        rows: (m,) int64, on the host, the numbers that are even or odd.
        even, odd: encoders of images.

    Returns:
        Features and embeddings in the order of the images.
    """
    parity = rows % 2
    sorting = torch.argsort(parity, stable=True)
    count = int(parity.sum())
    order, back = (places.to(images.device, non_blocking=True) for places in (sorting, torch.argsort(sorting)))
    # a network takes no empty batch, and all rows may be even or all odd
    parts = [part for part in zip(order.split([len(rows) - count, count]), (even, odd), strict=True) if len(part[0])]
    outputs = [encode(images[places]) for places, encode in parts]
    return Encoded(*(torch.cat(values)[back] for values in zip(*outputs, strict=True)))


def on_routes(networks: Networks, routes: tuple[str, str]) -> tuple[RouteEncoder, RouteEncoder]:
    """The target network as two encoders, on the first and on the second route."""
    first, second = routes
    return lambda images: networks(images, first), lambda images: networks(images, second)


def on_route(network: Network, own: str) -> Network:
    """Make a network that always uses one route, because a teacher does not have its student's routes."""
    return lambda images, route: network(images, own)
