"""What an evaluation asks of an encoder."""

from typing import Protocol

from torch import Tensor


class Encoder(Protocol):
    """What a probe asks of a module: backbone features (n, feature_dim) of images (n, 3, H, W) in [0, 1]."""

    feature_dim: int

    def features(self, images: Tensor, route: str) -> Tensor: ...
