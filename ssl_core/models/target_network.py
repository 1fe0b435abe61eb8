"""The target network: a ResNet with one set of batch-norm statistics per route, and its projector."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache, partial
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from astra_gym.ssl_core.models.init import build_module
from astra_gym.ssl_core.models.projectors import NECK, PROJECTORS, Projector
from astra_gym.ssl_core.models.route_norm import SHARED, RouteNorm, Untracked
from astra_gym.ssl_core.utils.registry import pick

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
NORMALIZATIONS: Mapping[str, tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    "imagenet": (IMAGENET_MEAN, IMAGENET_STD),  # ACL, DynACL, AIR, RCS, ASTrA
    "cifar": ((0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261)),  # DeACL, DAQ-SDP
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),  # EMP-SSL
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),  # RoCL, AdvCL, TARO, CF-AMC-SSL
}
"""Means and standard deviations per channel of images in [0, 1], for `TargetNetwork`."""

ARCHITECTURES: dict[str, tuple[str, tuple[int, int, int, int]]] = {
    "resnet10": ("basic", (1, 1, 1, 1)),
    "resnet18": ("basic", (2, 2, 2, 2)),
    "resnet34": ("basic", (3, 4, 6, 3)),
    "resnet50": ("bottleneck", (3, 4, 6, 3)),
}
BACKEND = "inductor"
"""`torch.compile`'s backend for `ResNet(compiled=True)`."""
Part = Callable[[Tensor, str], Tensor]
"""The stem or a block of a `ResNet`: a function of its input (n, c, h, w) and a route."""
PIECE = 2**18
"""Total bytes of one channel of the images that a CPU encodes together in eval mode: few enough for its cache to hold
their activations, enough to fill its vector units."""
ROUNDING = 1e-6
"""Largest distance of pixels from [0, 1] that `checks_images` allows, since clipping rounds."""
PRECISIONS = {"fp32": "float32 throughout", "bf16": "bfloat16 autocast of convolutions and linear layers"}
STEMS = {
    "cifar": "3x3 convolution of stride 1, for images of about 32 pixels",
    "cifar-padded": "3x3 convolution of stride 1 and padding 2: maps 2 pixels larger than the images (DeACL, DAQ-SDP)",
    "imagenet": "7x7 convolution of stride 2 and max-pooling, for images of 96 pixels (STL-10) and more",
}


class Encoded(NamedTuple):
    """Features (n, feature_dim) of the backbone or its neck, and embeddings (n, embedding_dim) of the projector."""

    features: Tensor
    embeddings: Tensor


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
        self.convs = nn.ModuleList(nn.Conv2d(i, o, k, s, k // 2, bias=False) for i, o, k, s in shapes)
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


class ResNet(nn.Module):
    """ResNet (He et al. 2016) without its classifier.

    Args:
        arch: a name of `ARCHITECTURES`.
        width: channels of the first stage; the last has 8 * width, times 4 for bottlenecks.
        stem: a name of `STEMS`.
        routes: names of the batch-norm routes.
        recompute: whether a training pass keeps only the inputs of the stem and of every block, and computes the rest
            again in the backward pass (Chen et al. 2016, "Training deep nets with sublinear memory cost"); the result
            is the same.
        compiled: whether a training pass compiles the stem and every block by `torch.compile`, which merges batch norm,
            addition and ReLU; the result is the same up to rounding.

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
        super().__init__()
        kind, counts = pick(arch, ARCHITECTURES, "architecture")
        pick(stem, STEMS, "stem")
        if width < 1:
            raise ValueError(f"width is {width}: expected a positive number of channels")
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
        self.recompute = recompute
        self.compiled = compiled

    def forward(self, x: Tensor, route: str) -> Tensor:
        """Encode images (n, 3, h, w), normalized by the caller, to features (n, feature_dim)."""
        trains = self.training and torch.is_grad_enabled()
        apply = compiled_part(BACKEND) if self.compiled and trains else _applied
        for part in self.parts:
            x = self._recomputed(apply, part, x, route) if self.recompute and trains else apply(part, x, route)
        return x.mean(dim=(2, 3))

    @property
    def parts(self) -> tuple[Part, ...]:
        """The stem and the blocks, in the order in which images pass through them."""
        return (self._stem, *self.blocks)

    def _stem(self, x: Tensor, route: str) -> Tensor:
        x = F.relu(self.norm(self.conv(x), route), inplace=True)
        return x if self.pool is None else self.pool(x)

    def _recomputed(self, apply: Callable[[Part, Tensor, str], Tensor], part: Part, x: Tensor, route: str) -> Tensor:
        norms = Untracked(part if isinstance(part, nn.Module) else self.norm)
        # no part draws random numbers, so no generator's state is restored; `checkpoint` restores autocast
        repeated = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)
        return repeated(apply, part, x, route, context_fn=lambda: (nullcontext(), norms))


def _applied(part: Part, x: Tensor, route: str) -> Tensor:
    return part(x, route)


@cache
def compiled_part(backend: str) -> Callable[[Part, Tensor, str], Tensor]:
    """Return the function that applies a part of a `ResNet` to its input and a route, compiled by a backend."""
    from torch._dynamo import config  # slow, and seldom needed

    # blocks of one shape share a graph; every other shape, route and precision has its own, more than torch expects
    return config.patch(recompile_limit=64)(torch.compile(_applied, backend=backend, dynamic=False))


class TargetNetwork(nn.Module):
    """Input normalization, ResNet, neck if any, and projector: pixels in [0, 1] to features and embeddings.

    Args:
        arch: a name of `ARCHITECTURES`.
        width: channels of the first stage.
        stem: a name of `STEMS`.
        routes: names of the batch-norm routes; ACL and ASTrA have "normal" and "pgd".
        projector_hidden: width of the projector's hidden layer (512 in ACL, 2048 in ASTrA).
        projector_dim: dimension of the embeddings (512 in both); without a projector it is that of the features.
        mean, std: input normalization per channel, ImageNet's as in ACL.
        precision: a name of `PRECISIONS`; outputs always have full precision.
        recompute: whether a training pass computes the blocks again instead of keeping their activations, see `ResNet`.
        compiled: whether a training pass compiles the blocks, see `ResNet`.
        projector: a name of `PROJECTORS`.
        neck: width of an extra layer after pooling (linear, batch norm by route, ReLU), whose outputs are then the
            features; 4096 in EMP-SSL ("pre-feature"), 0 for none.

    Raises:
        ValueError: if a name is unknown or a size is not positive.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        arch: str = "resnet18",
        width: int = 64,
        stem: str = "cifar",
        routes: Sequence[str] = ("normal", "pgd"),
        projector_hidden: int = 512,
        projector_dim: int = 512,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        precision: str = "fp32",
        recompute: bool = False,
        compiled: bool = False,
        projector: str = "acl",
        neck: int = 0,
    ) -> None:
        super().__init__()
        layers = pick(projector, PROJECTORS, "projector")
        if neck < 0:
            raise ValueError(f"neck is {neck}: expected 0 for none, or a positive width")
        if min(projector_hidden, projector_dim) < 1:
            raise ValueError(f"projector sizes are {projector_hidden} and {projector_dim}: expected positive numbers")
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))
        self.routes = tuple(routes)
        self.arguments: dict[str, Any] = {
            "arch": arch,
            "width": width,
            "stem": stem,
            "routes": list(routes),
            "projector_hidden": projector_hidden,
            "projector_dim": projector_dim,
            "mean": list(mean),
            "std": list(std),
            "precision": precision,
            "projector": projector,
            "neck": neck,
        }
        """Arguments of the network, for its checkpoint, without `recompute` and `compiled`, which change no
        result but by rounding."""
        pick(precision, PRECISIONS, "precision")
        self.precision = precision
        self.checks_images = False
        """Whether `features` and `forward` check the images' values first (`check_values`). A network that a user loads
        checks them; a network in training does not, because each check waits for the device."""
        self.backbone = ResNet(arch, width, stem, routes, recompute, compiled)
        self.feature_dim = neck or self.backbone.feature_dim
        self.neck = Projector(NECK, self.backbone.feature_dim, neck, neck, routes) if neck else None
        self.projector = Projector(layers, self.feature_dim, projector_hidden, projector_dim, routes)
        self.embedding_dim = self.projector.outputs

    def features(self, images: Tensor, route: str) -> Tensor:
        """Encode images (n, 3, h, w) in [0, 1] to features (n, feature_dim), on a route of `routes`."""
        self._look(images, route)
        with self._autocast(images.device):
            return torch.cat([self._full(self._features(piece, route)) for piece in self._pieces(images)])

    def forward(self, images: Tensor, route: str) -> Encoded:
        """Encode images (n, 3, h, w) in [0, 1] to features and embeddings, on a route of `routes`."""
        self._look(images, route)
        with self._autocast(images.device):
            features = [self._features(piece, route) for piece in self._pieces(images)]
            embeddings = [self._full(self.projector(piece, route)) for piece in features]
            return Encoded(torch.cat([self._full(piece) for piece in features]), torch.cat(embeddings))

    def _pieces(self, images: Tensor) -> Sequence[Tensor]:
        # in eval mode images do not affect each other
        return (images,) if self.training else pieces(images, images.dtype.itemsize)

    def _autocast(self, device: torch.device) -> AbstractContextManager[object]:
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(device.type, torch.bfloat16)

    def _full(self, x: Tensor) -> Tensor:
        # losses need full precision, whatever the network's precision
        return x if self.precision == "fp32" else x.float()

    def _features(self, images: Tensor, route: str) -> Tensor:
        self.check(images, route)
        x = self.backbone((images - self.mean) / self.std, route)
        return x if self.neck is None else self.neck(x, route)

    def check(self, images: Tensor, route: str) -> None:
        """Raise a ValueError unless the network has the route and the images are (n, 3, h, w)."""
        self.check_route(route)
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"images have shape {tuple(images.shape)}: expected (n, 3, h, w)")

    def check_values(self, images: Tensor) -> None:
        """Raise a ValueError unless the images are float32, on the network's device and in [0, 1].

        This waits for the device.
        """
        if images.dtype not in (torch.float32, self.mean.dtype):
            advice = "; divide bytes by 255: images.float() / 255" if not images.is_floating_point() else ""
            raise ValueError(f"images are {images.dtype}: expected torch.float32 in [0, 1]{advice}")
        if images.device != self.mean.device:
            raise ValueError(f"images are on {images.device}: expected them on the network's, {self.mean.device}")
        if not images.numel():
            return
        low, high = torch.stack(torch.aminmax(images.detach())).tolist()
        if not (low >= -ROUNDING and high <= 1 + ROUNDING):
            advice = "; divide bytes by 255, and leave normalisation out: it is a layer of the network"
            raise ValueError(f"images span [{low:g}, {high:g}]: expected values in [0, 1]{advice}")

    def _look(self, images: Tensor, route: str) -> None:
        # a compiler cannot trace a branch on values
        if not self.checks_images or torch.compiler.is_compiling():
            return
        if not isinstance(images, Tensor):
            raise ValueError(f"images are of type {type(images).__name__}: expected a tensor (n, 3, h, w) in [0, 1]")
        self.check(images, route)
        self.check_values(images)

    def check_route(self, route: str) -> None:
        """Raise a ValueError unless the network has the route."""
        if route not in self.routes:
            raise ValueError(f"the network has no route {route!r}: it has {', '.join(self.routes)}")


def pieces(images: Tensor, itemsize: int, sparing: bool = False) -> Sequence[Tensor]:
    """Split images (n, c, h, w), of `itemsize` bytes per value, into the pieces for an eval-mode network.

    A GPU encodes all in one piece, unless `sparing` asks it to save memory.
    """
    length = max(16, PIECE // (images[0, 0].numel() * itemsize)) if len(images) else 1
    whole = images.device.type != "cpu" and not sparing
    return (images,) if whole or len(images) <= length else images.split(length)


def last_strided_map(image_size: int, stem: str) -> int:
    """Return the side in pixels of the last stage's input maps, for square images."""
    if stem == "imagenet":
        return -(-image_size // 16)
    return -(-(image_size + 2 if stem == "cifar-padded" else image_size) // 4)


def bf16_is_native(device: torch.device) -> bool:
    """Whether a device has bfloat16 arithmetic; without it `bf16` costs time instead of saving it."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def build_network(generator: torch.Generator, **arguments: object) -> TargetNetwork:
    """Build `TargetNetwork(**arguments)` with weights from the generator; torch's global generator keeps its state."""
    return build_module(generator, lambda: TargetNetwork(**arguments))  # type: ignore[arg-type]


def copy_routes(source: TargetNetwork, target: TargetNetwork, route: str) -> None:
    """Copy one route of `source` into `target`: each route of the target gets that route's batch norms.

    A student starts as its teacher in this way (DeACL, DAQ-SDP). The backbone and the neck are copied, batch-norm
    statistics included. The projector is copied only if both have the same kind and sizes.

    Args:
        source: network to copy from; it does not change.
        target: network to overwrite; it may have other routes and another projector.
        route: a route of the source.

    Raises:
        ValueError: if the source has no such route, or the networks differ in architecture, width, stem, neck or input
            normalization; nothing is copied then.
    """
    source.check_route(route)
    ours, theirs = target.arguments, source.arguments
    different = [name for name in ("arch", "width", "stem", "neck") if ours[name] != theirs[name]]
    # compared as buffers, since a file may hold the arguments in another precision
    different += [name for name in ("mean", "std") if not torch.equal(*(_cpu(each, name) for each in (source, target)))]
    if different:
        said = "; ".join(f"{name} is {theirs[name]} there and {ours[name]} here" for name in different)
        raise ValueError(f"the weights of another network do not fit: {said}: build both alike")
    kind = ("projector", "projector_hidden", "projector_dim")
    whole = all(ours[name] == theirs[name] for name in kind)
    state, copied = source.state_dict(), target.state_dict()
    for name, value in copied.items():
        if whole or not name.startswith("projector."):
            head, by_route, tail = name.partition(".by_route.")
            own, _, leaf = tail.partition(".")
            place = name if not by_route or own == SHARED else f"{head}{by_route}{route}.{leaf}"
            value.copy_(state[place])


def _cpu(network: TargetNetwork, name: str) -> Tensor:
    return network.get_buffer(name).float().cpu()
