"""What is asked of an encoder by whoever measures it."""

from typing import Protocol

from torch import Tensor


class Encoder(Protocol):
    """A module that gives backbone features (n, feature_dim) of images (n, 3, H, W) in [0, 1]."""

    feature_dim: int

    def features(self, images: Tensor, route: str) -> Tensor: ...
