"""What a state dict of torchvision's or timm's names says of its backbone."""

import math
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from astra_gym.ssl_core.models.backbones.resnet import ARCHITECTURES
from astra_gym.ssl_core.models.backbones.timm_vit import PREFIX

VIT_MARK = "patch_embed.proj.weight"
"""Entry of every vision transformer, and of no ResNet."""
BY_WIDTH = {192: "vit_tiny_patch16_224", 384: "vit_small_patch16_224", 768: "vit_base_patch16_224"}
"""The plain models by the length of their tokens."""
ASSUMED_VIT = (
    "no state dict shows a vision transformer's number of heads, its activation, the epsilon of layer norm or the "
    "pooling; assumed is timm's {}: heads of 64 channels, GELU, 1e-6, the class token"
)


def resnet_arch(state: Mapping[str, Tensor]) -> str:
    """Return the name in `ARCHITECTURES` of a ResNet's state dict with torchvision's names.

    Raises:
        ValueError: if there is none.
    """
    places = {match[0] for name in state if (match := re.match(r"layer[1-4]\.\d+(?=\.)", name))}
    counts = tuple(sum(place.startswith(f"layer{stage}.") for place in places) for stage in range(1, 5))
    kind = "bottleneck" if "layer1.0.conv3.weight" in state else "basic"
    for arch, shape in ARCHITECTURES.items():
        if shape == (kind, counts):
            return arch
    raise ValueError(f"stages of {counts} {kind} blocks: known are {', '.join(ARCHITECTURES)}")


def vit_arguments(state: dict[str, Tensor], said: Mapping[str, Any], notes: list[str]) -> dict[str, Any]:
    """Return `arch`, `image_size`, `patch_size` and `neck` of a `TargetNetwork` for a state dict of timm's names.

    Args:
        state: the state dict; a classifier is removed from it, with a note.
        said: what a file of `astra_gym.ssl_core.models.export.save_encoder` says of it; empty for any other file.
        notes: takes what is assumed or left out.

    Raises:
        ValueError: if it is none of `BY_WIDTH`, or its positions are no square.
    """
    if said:
        neck = len(state["head.0.weight"]) if "head.0.weight" in state else 0
        return {name: said[name] for name in ("arch", "image_size", "patch_size")} | {"neck": neck}
    width, patch = state[VIT_MARK].shape[0], state[VIT_MARK].shape[-1]
    positions = state["pos_embed"].shape[1] - 1 if "pos_embed" in state else 0
    side = math.isqrt(positions)
    if width not in BY_WIDTH or side < 1 or side**2 != positions:
        raise ValueError(
            f"a vision transformer of width {width} with {positions} positions beside the class token: expected width "
            f"{' or '.join(map(str, BY_WIDTH))}, and a square number of positions"
        )
    for name in ("head.weight", "head.bias"):
        if state.pop(name, None) is not None:
            notes.append(f"left out: {name}, of a classifier")
    notes.append(ASSUMED_VIT.format(BY_WIDTH[width]))
    return {"arch": f"{PREFIX}{BY_WIDTH[width]}", "image_size": side * patch, "patch_size": patch, "neck": 0}
