"""An eval-mode network with its batch norm folded into the convolutions: the same function in fewer passes."""

from collections.abc import Iterable
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssl_core.networks import Block, Encoded, RouteNorm, TargetNetwork


class Convolution(NamedTuple):
    """A convolution that does its batch norm as well."""

    weight: Tensor
    bias: Tensor
    stride: tuple[int, ...]
    padding: tuple[int, int]

    def __call__(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding)


class FoldedBackbone(nn.Module):
    """A ResNet's route in eval mode, for gradients with respect to images; it keeps no link to the original's weights.

    In eval mode batch norm is `scale * x + shift` per channel, so `scale` goes into the convolution before it and
    `shift` becomes its bias. In float32 that moves the rounding, no more: its contract is the attained loss of an
    attack, within 0.1 %.

    Args:
        network: whose backbone is folded, as it is now.
        route: of its batch norm.
    """

    def __init__(self, network: TargetNetwork, route: str) -> None:
        super().__init__()
        backbone = network.backbone
        self.stem = _folded(backbone.conv, backbone.norm, route)
        self.pool = backbone.pool
        self.residuals: list[tuple[list[Convolution], Convolution | None]] = []
        for block in cast(Iterable[Block], backbone.blocks):
            pairs = cast(Iterable[tuple[nn.Conv2d, RouteNorm]], zip(block.convs, block.norms, strict=True))
            convs = [_folded(conv, norm, route) for conv, norm in pairs]
            short = block.shortcut
            self.residuals.append((convs, None if short is None else _folded(short.conv, short.norm, route)))

    def forward(self, x: Tensor, route: str) -> Tensor:
        """Normalised images (n, 3, h, w) to features (n, feature_dim)."""
        x = F.relu(self.stem(x), inplace=True)
        if self.pool is not None:
            x = self.pool(x)
        for (*inner, last), shortcut in self.residuals:
            residual = x if shortcut is None else shortcut(x)
            for conv in inner:
                x = F.relu(conv(x), inplace=True)
            x = F.relu(last(x) + residual, inplace=True)
        return x.mean(dim=(2, 3))


@torch.no_grad()
def _folded(conv: nn.Conv2d, norm: RouteNorm, route: str) -> Convolution:
    batch_norm = cast(nn.BatchNorm2d, norm.by_route[route])
    mean, variance = cast(Tensor, batch_norm.running_mean), cast(Tensor, batch_norm.running_var)
    scale = batch_norm.weight / (variance + batch_norm.eps).sqrt()
    weight = conv.weight * scale.view(-1, 1, 1, 1)
    return Convolution(weight, batch_norm.bias - mean * scale, conv.stride, cast(tuple[int, int], conv.padding))


class FoldedNetwork:
    """A `TargetNetwork` in eval mode, called alike, whose backbones are folded on the first use of a route.

    Args:
        network: in eval mode; later changes of its weights are not seen.

    Raises:
        ValueError: if the network is in train mode, where batch norm is another function.
    """

    def __init__(self, network: TargetNetwork) -> None:
        if network.training:
            raise ValueError("the network is in train mode: batch norm can be folded in eval mode only")
        self.network = network
        self._backbones: dict[str, FoldedBackbone] = {}

    def __call__(self, images: Tensor, route: str) -> Encoded:
        """Images (n, 3, h, w) in [0, 1] to features and embeddings, on a route of the network."""
        if route not in self._backbones:
            self._backbones[route] = FoldedBackbone(self.network, route).eval()
        return self.network.encode_with(self._backbones[route], images, route)
