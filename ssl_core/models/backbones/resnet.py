"""ResNets with one set of batch-norm statistics per route."""

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from astra_gym.ssl_core.kernels.trained_conv import TrainedConvolution
from astra_gym.ssl_core.models.backbones.parts import Backbone, Part
from astra_gym.ssl_core.models.route_norm import RouteNorm
from astra_gym.ssl_core.utils.finite import check_number
from astra_gym.ssl_core.utils.registry import pick

ARCHITECTURES: dict[str, tuple[str, tuple[int, int, int, int]]] = {
    "resnet10": ("basic", (1, 1, 1, 1)),
    "resnet18": ("basic", (2, 2, 2, 2)),
    "resnet34": ("basic", (3, 4, 6, 3)),
    "resnet50": ("bottleneck", (3, 4, 6, 3)),
}
STEMS = {
    "cifar": "3x3 convolution of stride 1, for images of about 32 pixels",
    "cifar-padded": "3x3 convolution of stride 1 and padding 2: maps 2 pixels larger than the images (DeACL, DAQ-SDP)",
    "imagenet": "7x7 convolution of stride 2 and max-pooling, for images of 96 pixels (STL-10) and more",
}


class Shortcut(nn.Module):
    """1x1 convolution from the shape of a block's input to that of its output."""

    def __init__(self, inputs: int, outputs: int, stride: int, routes: Sequence[str]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
        self.norm = RouteNorm(outputs, routes)

    def forward(self, x: Tensor, route: str) -> Tensor:
        return self.norm(self.conv(x), route)


class Block(nn.Module):
    """A residual block: two 3x3 convolutions ("basic"), or 1x1, 3x3, 1x1 with a fourfold output ("bottleneck")."""

    EXPANSION: ClassVar[dict[str, int]] = {"basic": 1, "bottleneck": 4}

    def __init__(self, kind: str, inputs: int, channels: int, stride: int, routes: Sequence[str]) -> None:
        super().__init__()
        outputs = channels * self.EXPANSION[kind]
        if kind == "basic":
            shapes = [(inputs, channels, 3, stride), (channels, channels, 3, 1)]
        else:
            shapes = [(inputs, channels, 1, 1), (channels, channels, 3, stride), (channels, outputs, 1, 1)]
        self.convs = nn.ModuleList(TrainedConvolution(i, o, k, s, k // 2) for i, o, k, s in shapes)
        self.norms = nn.ModuleList(RouteNorm(o, routes) for _, o, _, _ in shapes)
        same = stride == 1 and inputs == outputs
        self.shortcut = None if same else Shortcut(inputs, outputs, stride, routes)

    def forward(self, x: Tensor, route: str) -> Tensor:
        residual = x if self.shortcut is None else self.shortcut(x, route)
        last = len(self.convs) - 1
        for index, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            x = norm(conv(x), route)
            if index < last:
                x = F.relu(x, inplace=True)
        return F.relu(x + residual, inplace=True)


class ResNet(Backbone):
    """ResNet (He et al. 2016) without its classifier.

    Args:
        arch: a name of `ARCHITECTURES`.
        width: channels of the first stage; the last has 8 * width, times 4 for bottlenecks.
        stem: a name of `STEMS`.
        routes: names of the batch-norm routes.
        recompute, compiled: as in `Backbone`.

    Raises:
        ValueError: if a name is unknown or the width is not positive.
    """

    def __init__(
        self,
        arch: str = "resnet18",
        width: int = 64,
        stem: str = "cifar",
        routes: Sequence[str] = ("normal",),
        recompute: bool = False,
        compiled: bool = False,
    ) -> None:
        super().__init__(recompute, compiled)
        kind, counts = pick(arch, ARCHITECTURES, "architecture")
        pick(stem, STEMS, "stem")
        check_number("width", width, 1, expected="a positive number of channels", whole=True)
        large = stem == "imagenet"
        kernel, stride, padding = (7, 2, 3) if large else (3, 1, 2 if stem == "cifar-padded" else 1)
        self.conv = nn.Conv2d(3, width, kernel, stride, padding, bias=False)
        self.norm = RouteNorm(width, routes)
        self.pool = nn.MaxPool2d(3, 2, 1) if large else None
        blocks: list[Block] = []
        inputs = width
        for stage, count in enumerate(counts):
            for index in range(count):
                channels = width * 2**stage
                blocks.append(Block(kind, inputs, channels, 2 if stage and not index else 1, routes))
                inputs = channels * Block.EXPANSION[kind]
        self.blocks = nn.ModuleList(blocks)
        self.feature_dim = inputs

    @property
    def parts(self) -> tuple[Part, ...]:
        """The stem and the blocks, in the order in which images pass through them."""
        return (self._stem, *self.blocks)

    def pooled(self, x: Tensor) -> Tensor:
        """Average the maps (n, feature_dim, h, w)."""
        return x.mean(dim=(2, 3))

    def _stem(self, x: Tensor, route: str) -> Tensor:
        x = F.relu(self.norm(self.conv(x), route), inplace=True)
        return x if self.pool is None else self.pool(x)


def last_strided_map(image_size: int, stem: str) -> int:
    """Return the side in pixels of the last stage's input maps, for square images."""
    if stem == "imagenet":
        return -(-image_size // 16)
    return -(-(image_size + 2 if stem == "cifar-padded" else image_size) // 4)
