"""The section of the settings on the target network."""

import math
from dataclasses import asdict, dataclass
from typing import Annotated

import torch

from astra_gym.ssl_core.models.backbones.resnet import ARCHITECTURES, STEMS, last_strided_map
from astra_gym.ssl_core.models.backbones.timm_vit import PREFIX, TimmViT, check_patches, is_vit, patch_size_of
from astra_gym.ssl_core.models.projectors import PROJECTORS
from astra_gym.ssl_core.models.target_network import NORMALIZATIONS, TargetNetwork, build_network
from astra_gym.ssl_core.settings.checks import check_path
from astra_gym.ssl_core.settings.records import Notes, check_choices
from astra_gym.ssl_core.utils.finite import check_number
from astra_gym.ssl_core.utils.import_path import is_dotted
from astra_gym.ssl_core.utils.messages import shown

ARCHITECTURE_NAMES = (*ARCHITECTURES, f"{PREFIX}NAME")
"""The architectures, for lists."""


@dataclass(frozen=True, kw_only=True)
class NetworkSection:
    """The target network.

    Args:
        arch: the backbone; timm:NAME is a vision transformer of timm, such as timm:vit_tiny_patch16_224 (needs
            pip install '.[timm]' in the checkout).
        patch_size: side of a vision transformer's patches; it divides the images' side; null: as in the backbone's
            name.
        width: channels of a ResNet's first stage (64 in the paper).
        stem: a ResNet's first layers: cifar (3x3, stride 1), cifar-padded (the same with 2 pixels of padding: DeACL) or
            imagenet (7x7, stride 2, max-pool).
        projector: kind of the projector, named after the method that uses it.
        projector_hidden: width of the projector's second layer (2048 in ASTrA, 512 in ACL).
        projector_dim: dimension of the embeddings.
        neck: width of a further layer behind the backbone, whose outputs are the features (EMP-SSL); 0: none.
        normalization: normalization of the input, in the network; imagenet: as in ACL, DynACL, AIR, RCS and ASTrA.
        init_from: an encoder whose weights the network starts with: a run or checkpoint of this project, an export, a
            ResNet of torchvision or timm, a ViT of timm, or a file of ACL, DynACL or ASTrA; null: random weights.

    Raises:
        ValueError: if a name is unknown or a value is out of its range.
    """

    arch: Annotated[str, Notes(choices=ARCHITECTURE_NAMES, what="architecture", custom=True)] = "resnet10"
    patch_size: Annotated[int | None, Notes(unit="PIXELS")] = None
    width: Annotated[int, Notes(unit="CHANNELS")] = 16
    stem: Annotated[str, Notes(choices=STEMS, what="stem")] = "cifar"
    projector: Annotated[str, Notes(choices=PROJECTORS, what="projector")] = "acl"
    projector_hidden: Annotated[int, Notes(unit="UNITS")] = 128
    projector_dim: Annotated[int, Notes(unit="UNITS")] = 128
    neck: Annotated[int, Notes(unit="UNITS")] = 0
    normalization: Annotated[str, Notes(choices=NORMALIZATIONS, what="normalization")] = "imagenet"
    init_from: Annotated[str | None, Notes(unit="FILE")] = None

    def __post_init__(self) -> None:
        check_choices(self)
        if is_dotted(self.arch):
            patch_size_of(self.arch)
        if self.patch_size is not None:
            check_number("patch_size", self.patch_size, 1, math.inf, "a positive integer", whole=True)
        check_path("init_from", self.init_from)
        for name in ("width", "projector_hidden", "projector_dim"):
            check_number(name, getattr(self, name), 1, math.inf, "a positive integer", whole=True)
        check_number("neck", self.neck, 0, math.inf, "0 for none, or a positive width", whole=True)

    def check_given(self) -> None:
        """Raise a ValueError if a given option has no effect: a ViT has no width and no stem, a ResNet no patches."""
        for name in ("width", "stem") if is_vit(self.arch) else ("patch_size",):
            if (value := getattr(self, name)) != getattr(NetworkSection, name):
                raise ValueError(f"{name} is {shown(value)}, but {self.arch} has none: leave it out")

    def check_installed(self, image_size: int) -> None:
        """Raise a ValueError unless timm is installed and has the ViT, if the backbone is one; no weights are drawn."""
        if is_vit(self.arch):
            with torch.device("meta"):
                TimmViT(self.arch, image_size, self.patch_size)

    def check_size(self, image_size: int) -> None:
        """Raise a ValueError if a ViT's patches do not divide the images; timm is not asked."""
        if is_vit(self.arch):
            check_patches(self.arch, image_size, self.patch_size)

    def bf16_is_reliable(self, image_size: int) -> bool:
        """Return whether bfloat16 gives right gradients on a CPU too: not if a ResNet's last stage halves one pixel."""
        return is_vit(self.arch) or last_strided_map(image_size, self.stem) > 1

    def build(
        self, generator: torch.Generator, routes: tuple[str, ...], image_size: int, **computed: object
    ) -> TargetNetwork:
        """Build the network with weights from the generator; `init_from` is not read.

        Args:
            generator: generator of the weights.
            routes: names of the batch-norm routes.
            image_size: side of the images in pixels.
            computed: how the network computes: `precision`, `recompute` and `compiled` of `TargetNetwork`.
        """
        own = asdict(self)
        if is_vit(self.arch):
            own = {name: value for name, value in own.items() if name not in ("width", "stem")}
            own["image_size"] = image_size
        else:
            own.pop("patch_size")
        del own["init_from"]
        own["mean"], own["std"] = NORMALIZATIONS[own.pop("normalization")]
        return build_network(generator, routes=routes, **computed, **own)
