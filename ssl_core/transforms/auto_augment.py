"""AutoAugment's policy for CIFAR-10 (Cubuk et al., CVPR 2019) on whole batches.

Each image goes through one of 25 pairs of operations, each with a probability of its own. The table is torchvision's
`AutoAugmentPolicy.CIFAR10`, which follows the paper's appendix; the operations are those of `trivial_augment`.
"""

import torch
from torch import Tensor

from astra_gym.ssl_core.transforms.trivial_augment import NAMES, TrivialParameters, apply_trivial
from astra_gym.ssl_core.transforms.views import check_images

Operation = tuple[str, float, int]
"""Name, probability, and level from 0 to 9; the level of an operation without a strength is 0."""
POLICY: tuple[tuple[Operation, Operation], ...] = (
    (("Invert", 0.1, 0), ("Contrast", 0.2, 6)),
    (("Rotate", 0.7, 2), ("TranslateX", 0.3, 9)),
    (("Sharpness", 0.8, 1), ("Sharpness", 0.9, 3)),
    (("ShearY", 0.5, 8), ("TranslateY", 0.7, 9)),
    (("AutoContrast", 0.5, 0), ("Equalize", 0.9, 0)),
    (("ShearY", 0.2, 7), ("Posterize", 0.3, 7)),
    (("Color", 0.4, 3), ("Brightness", 0.6, 7)),
    (("Sharpness", 0.3, 9), ("Brightness", 0.7, 9)),
    (("Equalize", 0.6, 0), ("Equalize", 0.5, 0)),
    (("Contrast", 0.6, 7), ("Sharpness", 0.6, 5)),
    (("Color", 0.7, 7), ("TranslateX", 0.5, 8)),
    (("Equalize", 0.3, 0), ("AutoContrast", 0.4, 0)),
    (("TranslateY", 0.4, 3), ("Sharpness", 0.2, 6)),
    (("Brightness", 0.9, 6), ("Color", 0.2, 8)),
    (("Solarize", 0.5, 2), ("Invert", 0.0, 0)),
    (("Equalize", 0.2, 0), ("AutoContrast", 0.6, 0)),
    (("Equalize", 0.2, 0), ("Equalize", 0.6, 0)),
    (("Color", 0.9, 9), ("Equalize", 0.6, 0)),
    (("AutoContrast", 0.8, 0), ("Solarize", 0.2, 8)),
    (("Brightness", 0.1, 3), ("Color", 0.7, 0)),
    (("Solarize", 0.4, 5), ("AutoContrast", 0.9, 0)),
    (("TranslateY", 0.9, 9), ("TranslateY", 0.7, 9)),
    (("AutoContrast", 0.9, 0), ("Solarize", 0.8, 3)),
    (("Equalize", 0.8, 0), ("Invert", 0.1, 0)),
    (("TranslateY", 0.7, 9), ("AutoContrast", 0.9, 0)),
)
SIGNED = {"ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast", "Sharpness"}
"""Operations whose strength has either sign."""


def strength(name: str, level: int, height: int, width: int) -> float:
    """Strength of an operation at a level, without sign, in the units of `trivial_augment.OPERATIONS`.

    Args:
        name: name of the operation.
        level: 0 to 9.
        height, width: size of the images in pixels, a share of which is the shift.
    """
    share = level / 9
    match name:
        case "ShearY":
            return 0.3 * share
        case "TranslateX":
            return 150 / 331 * width * share
        case "TranslateY":
            return 150 / 331 * height * share
        case "Rotate":
            return 30 * share
        case "Brightness" | "Color" | "Contrast" | "Sharpness":
            return 0.9 * share
        case "Posterize":
            return float(8 - round(4 * share))
        case "Solarize":
            return 1 - share
    return 0.0


def draw_auto(
    n: int, height: int, width: int, generator: torch.Generator
) -> tuple[TrivialParameters, TrivialParameters]:
    """Draw the two operations of n images: a pair, and for each of its two whether it is made and with which sign.

    Always 5 numbers per image.
    """
    u = torch.rand(n, 5, generator=generator, dtype=torch.float64)
    pair, drawn = (u[:, 0] * len(POLICY)).long(), []
    for place in (0, 1):
        column = [each[place] for each in POLICY]
        # an inversion is a solarization of all values
        kinds = torch.tensor([NAMES.index("Solarize" if name == "Invert" else name) for name, _, _ in column])
        sizes = torch.tensor([strength(name, level, height, width) for name, _, level in column], dtype=torch.float64)
        chances = torch.tensor([chance for _, chance, _ in column], dtype=torch.float64)
        signs = torch.tensor([name in SIGNED for name, _, _ in column])
        made = u[:, 1 + place] < chances[pair]
        negative = signs[pair] & (u[:, 3 + place] < 0.5)
        size = torch.where(negative, -sizes[pair], sizes[pair])
        operation = torch.where(made, kinds[pair], NAMES.index("Identity"))
        drawn.append(TrivialParameters(operation, torch.where(made, size, 0.0)))
    first, second = drawn
    return first, second


def auto_augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Return one view of each image, (n, 3, H, W) float32 in [0, 1]: `draw_auto`, then both operations in turn.

    Raises:
        ValueError: as `views.apply_strong`.
    """
    check_images(images)
    height, width = images.shape[-2:]
    first, second = draw_auto(len(images), height, width, generator)
    return apply_trivial(apply_trivial(images, first), second)
