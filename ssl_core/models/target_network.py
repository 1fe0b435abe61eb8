"""The target network: a backbone, with one set of batch-norm statistics per route, and its projector."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from astra_gym.ssl_core.models.backbones.parts import Backbone
from astra_gym.ssl_core.models.backbones.resnet import ResNet
from astra_gym.ssl_core.models.backbones.timm_vit import TimmViT, is_vit
from astra_gym.ssl_core.models.init import build_module
from astra_gym.ssl_core.models.projectors import NECK, PROJECTORS, Projector
from astra_gym.ssl_core.utils.finite import check_number
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

PIECE = 2**18
"""Total bytes of one channel of the images that a CPU encodes together in eval mode: few enough for its cache to hold
their activations, enough to fill its vector units."""
ROUNDING = 1e-6
"""Largest distance of pixels from [0, 1] that `checks_images` allows, since clipping rounds."""
PRECISIONS = {"fp32": "float32 throughout", "bf16": "bfloat16 autocast of convolutions and linear layers"}


class Encoded(NamedTuple):
    """Features (n, feature_dim) of the backbone or its neck, and embeddings (n, embedding_dim) of the projector."""

    features: Tensor
    embeddings: Tensor


class TargetNetwork(nn.Module):
    """Input normalization, backbone, neck if any, and projector: pixels in [0, 1] to features and embeddings.

    A route is a set of batch norms. A ResNet has one in every layer. A ViT has none: its weights and features are the
    same on all routes, and a route chooses the batch norms of the neck and the projector alone.

    Args:
        arch: a name of `astra_gym.ssl_core.models.backbones.resnet.ARCHITECTURES`, or a ViT's, see
            `astra_gym.ssl_core.models.backbones.timm_vit`.
        width, stem: of a ResNet, as in `ResNet`.
        routes: names of the batch-norm routes; ACL and ASTrA have "normal" and "pgd".
        projector_hidden: width of the projector's hidden layer (512 in ACL, 2048 in ASTrA).
        projector_dim: dimension of the embeddings (512 in both); without a projector it is that of the features.
        mean, std: input normalization per channel, ImageNet's as in ACL.
        precision: a name of `PRECISIONS`; outputs always have full precision.
        recompute, compiled: whether a training pass computes the blocks again instead of keeping their activations, or
            compiles them, see `Backbone`.
        projector: a name of `PROJECTORS`.
        neck: width of an extra layer after pooling (linear, batch norm by route, ReLU), whose outputs are then the
            features; 4096 in EMP-SSL ("pre-feature"), 0 for none.
        image_size, patch_size: of a ViT, as in `TimmViT`.

    Raises:
        ValueError: if a name is unknown, a size is not positive, or the backbone has no such argument.
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
        image_size: int | None = None,
        patch_size: int | None = None,
    ) -> None:
        super().__init__()
        layers = pick(projector, PROJECTORS, "projector")
        check_number("neck", neck, expected="0 for none, or a positive width", whole=True)
        check_number("projector_hidden", projector_hidden, 1, whole=True)
        check_number("projector_dim", projector_dim, 1, whole=True)
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))
        self.routes = tuple(routes)
        self.backbone: Backbone
        built: dict[str, Any]
        if is_vit(arch):
            if (width, stem) != (64, "cifar") or image_size is None:
                raise ValueError(f"{arch} has no width and no stem, and needs image_size")
            self.backbone = TimmViT(arch, image_size, patch_size, recompute, compiled)
            built = {"image_size": image_size, "patch_size": self.backbone.patch_size}
        else:
            if patch_size is not None:
                raise ValueError(f"patch_size is {patch_size}, but {arch} has no patches: leave it out")
            self.backbone = ResNet(arch, width, stem, routes, recompute, compiled)
            built = {"width": width, "stem": stem}
        self.arguments: dict[str, Any] = {
            "arch": arch,
            **built,
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
        """Raise a ValueError unless the network has the route and the images are (n, 3, h, w), of a ViT's size."""
        self.check_route(route)
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"images have shape {tuple(images.shape)}: expected (n, 3, h, w)")
        size = self.arguments.get("image_size")
        if size is not None and images.shape[2:] != (size, size):
            h, w = images.shape[2:]
            raise ValueError(f"images have {h} x {w} pixels: {self.arguments['arch']} was built for {size} x {size}")

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
            advice = "; divide bytes by 255, and leave normalization out: it is a layer of the network"
            raise ValueError(f"images span [{low:g}, {high:g}]: expected values in [0, 1]{advice}")

    def _look(self, images: Tensor, route: str) -> None:
        # a compiler cannot trace a branch on values
        if not self.checks_images or torch.compiler.is_compiling():
            return
        if not isinstance(images, Tensor):
            raise ValueError(f"images are of type {type(images).__name__}: expected a tensor (n, 3, h, w) in [0, 1]")
        self.check(images, route)
        self.check_values(images)

    @property
    def features_by_route(self) -> bool:
        """Whether an image's features depend on the route: not with a ViT's alone."""
        return self.neck is not None or not isinstance(self.backbone, TimmViT)

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


def bf16_is_native(device: torch.device) -> bool:
    """Whether a device has bfloat16 arithmetic; without it `bf16` costs time instead of saving it."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def build_network(generator: torch.Generator, **arguments: object) -> TargetNetwork:
    """Build `TargetNetwork(**arguments)` with weights from the generator; torch's global generator keeps its state."""
    return build_module(generator, lambda: TargetNetwork(**arguments))  # type: ignore[arg-type]
