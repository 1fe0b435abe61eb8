"""Vision transformers of timm as backbones."""

import math
import re
from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from astra_gym.ssl_core.models.backbones.parts import Backbone, Part
from astra_gym.ssl_core.models.init import Drawn
from astra_gym.ssl_core.utils.messages import brief, shown

PREFIX = "timm:"
"""Beginning of the architectures' names."""
EXAMPLE = "timm:vit_tiny_patch16_224"
INSTALL = "pip install '.[timm]' in the checkout"
PLAIN = "a vision transformer with learned positions, layer norm and no pooling by attention, as vit_tiny_patch16_224"


class MissingTimmError(ValueError):
    """Error for an architecture of timm where timm is not installed, or cannot be imported."""


class TimmViT(Backbone, Drawn):
    """A vision transformer of timm (Dosovitskiy et al. 2021) without its classifier.

    It has layer norm in place of batch norm, and layer norm has no statistics: all routes share all weights, and the
    features of an image are the same on every route. The features are timm's, from before the classifier: the class
    token behind the last norm, or the mean of the patches, as the name says.

    Args:
        arch: "timm:" and timm's name of a plain vision transformer, such as `EXAMPLE`. The name gives width, depth and
            heads; the image size in it has no effect.
        image_size: side of the images in pixels: the positions are learned for one size.
        patch_size: side of the patches in pixels; None: as in the name.
        recompute, compiled: as in `Backbone`.

    Raises:
        MissingTimmError: if timm is not installed, or cannot be imported.
        ValueError: if the name has another form or timm does not know it, the model is no plain vision transformer, or
            the patches do not divide the images.
    """

    def __init__(
        self,
        arch: str,
        image_size: int,
        patch_size: int | None = None,
        recompute: bool = False,
        compiled: bool = False,
    ) -> None:
        super().__init__(recompute, compiled)
        self.image_size = image_size
        named = patch_size_of(arch)
        self.patch_size = patch_size or named
        check_patches(arch, image_size, self.patch_size)
        self.model = _made(arch, self.image_size, self.patch_size)
        self.feature_dim = self.model.num_features

    @property
    def parts(self) -> tuple[Part, ...]:
        """Patches with their positions, and the blocks; none of them depends on the route."""
        return (self._patches, *(partial(_through, block) for block in self.model.blocks))

    def pooled(self, x: Tensor) -> Tensor:
        """Map the tokens (n, tokens, feature_dim) to features (n, feature_dim)."""
        return self.model.forward_head(self.model.norm(x), pre_logits=True)

    def _patches(self, x: Tensor, route: str) -> Tensor:
        return self.model.norm_pre(self.model._pos_embed(self.model.patch_embed(x)))

    def draw(self, generator: torch.Generator) -> None:
        """Draw the weights as timm does: from a normal distribution of deviation .02, for the patches as torch does for
        any convolution; biases start at 0."""
        for part in self.model.modules():
            if isinstance(part, nn.Linear):
                nn.init.trunc_normal_(part.weight, std=0.02, generator=generator)
                if part.bias is not None:
                    nn.init.zeros_(part.bias)
            elif isinstance(part, nn.Conv2d):
                nn.init.kaiming_uniform_(part.weight, a=math.sqrt(5), generator=generator)
                bound = 1 / math.sqrt(part.weight[0].numel())
                if part.bias is not None:
                    nn.init.uniform_(part.bias, -bound, bound, generator=generator)
            elif isinstance(part, nn.LayerNorm):
                part.reset_parameters()
        nn.init.trunc_normal_(self.model.pos_embed, std=0.02, generator=generator)
        for token in (self.model.cls_token, self.model.reg_token):
            if token is not None:
                nn.init.normal_(token, std=1e-6, generator=generator)


def is_vit(arch: str) -> bool:
    """Whether an architecture's name means a model of timm."""
    return arch.startswith(PREFIX)


def patch_size_of(arch: str) -> int:
    """Return the side of the patches in pixels that an architecture's name says; timm is not asked.

    Raises:
        ValueError: if the name has another form.
    """
    found = re.fullmatch(rf"{PREFIX}\w+_patch([1-9]\d*)_\w+", arch)
    if found is None:
        raise ValueError(f"arch is {shown(arch)}: expected a vision transformer of timm, such as {EXAMPLE}")
    return int(found[1])


def check_patches(arch: str, image_size: int, patch_size: int | None) -> None:
    """Raise a ValueError unless the patches divide the images; None: patches of the size in the architecture's name."""
    side = patch_size or patch_size_of(arch)
    if image_size % side:
        fitting = [str(each) for each in range(2, image_size) if image_size % each == 0]
        raise ValueError(
            f"patches of {side} pixels ({arch}) do not divide images of {image_size}: give --patch_size "
            f"{brief(', '.join(fitting) or '1', 40)}, or another --image_size"
        )


def _through(block: nn.Module, x: Tensor, route: str) -> Tensor:
    return block(x)


def _made(arch: str, image_size: int, patch_size: int) -> Any:
    """Make timm's model; its weights are not those of a user yet."""
    try:
        import timm
        from timm.models.vision_transformer import LayerScale, VisionTransformer
    except ModuleNotFoundError as error:
        raise MissingTimmError(f"arch is {arch}, but timm is not installed: {INSTALL}") from error
    except Exception as error:  # timm imports torchvision, which fails beside some builds of torch
        said = brief(" ".join(str(error).split()), 100)
        raise MissingTimmError(f"arch is {arch}, but timm cannot be imported here: {said}") from error
    name = arch.removeprefix(PREFIX)
    if not timm.is_model(name):
        raise ValueError(f"timm has no model {shown(name)}: timm.list_models('vit_*patch*') lists its names")
    try:
        model = timm.create_model(name, num_classes=0, img_size=image_size, patch_size=patch_size)
    except TypeError as error:
        raise ValueError(f"{arch} takes no size of images or patches: expected {PLAIN}") from error
    learned = {type(part) for part in model.modules() if next(part.parameters(recurse=False), None) is not None}
    others = learned - {VisionTransformer, LayerScale, nn.Conv2d, nn.Linear, *_norms(learned)}
    if type(model) is not VisionTransformer or model.pos_embed is None or model.attn_pool is not None or others:
        raise ValueError(f"{arch} is a variant: expected {PLAIN}")
    return model


def _norms(kinds: Iterable[type]) -> set[type]:
    return {kind for kind in kinds if issubclass(kind, nn.LayerNorm)}
