"""Many crops of each image: EMP-SSL's patches and CF-AMC-SSL's crops."""

from dataclasses import dataclass

import torch
from torch import Tensor

from astra_gym.ssl_core.transforms.blur import FilterParameters, apply_filters, draw_filters
from astra_gym.ssl_core.transforms.views import StrongParameters, ViewSettings, apply_strong, check_images, draw_strong
from astra_gym.ssl_core.utils.finite import check_number


@dataclass(frozen=True)
class CropSettings:
    """Settings of random crops; the defaults are CF-AMC-SSL's (Ghofrani and Jamshidi 2025).

    EMP-SSL's patches (Tong et al. 2023) are `scale=(0.25, 0.25), ratio=(1, 1)`: a quarter of the area, always square.
    solo-learn's augmentation for CIFAR is `jitter=(0.8, 0.8, 0.8, 0.2), blur_probability=0.5,
    solarize_probability=0`.

    Args:
        scale: least and greatest share of the area that a crop keeps, 0 < least <= greatest <= 1.
        ratio: least and greatest width / height of a crop, positive.
        flip: probability of a horizontal flip, in [0, 1].
        jitter: largest change of brightness, contrast and saturation, in [0, 1], and of the hue, in [0, 1/2] turns.
        jitter_probability: probability of the color jitter, in [0, 1].
        gray_probability: probability of grayscale, in [0, 1].
        blur_probability: probability of a Gaussian blur, in [0, 1].
        solarize_probability: probability of inverting values of 128/255 or more, in [0, 1].
        interpolation: a key of `views.INTERPOLATIONS`; bilinear is the default of RandomResizedCrop.

    Raises:
        ValueError: if a value is outside its range, or the interpolation is unknown.
    """

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.2)
    jitter_probability: float = 0.8
    gray_probability: float = 0.2
    blur_probability: float = 0.1
    solarize_probability: float = 0.1
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        for name in ("blur_probability", "solarize_probability"):
            check_number(f"crops: {name}", getattr(self, name), 0, 1)
        # This checks the rest.
        _ = self.views

    @classmethod
    def of_views(
        cls, settings: ViewSettings, scale: tuple[float, float], ratio: tuple[float, float], rarely: float = 0.0
    ) -> "CropSettings":
        """Settings of crops with the colors and filters of a run's strong views, at their strength.

        Args:
            settings: settings of the run's views. Their ranges and probabilities, except the flip's, are multiplied by
                the strength.
            scale, ratio: of the crops, at any strength.
            rarely: probability of blur, and of solarization, that replaces those that are not set.
        """
        s = settings.strength
        blur, solarize = (
            rarely if chance is None else chance
            for chance in (settings.blur_probability, settings.solarize_probability)
        )
        brightness, contrast, saturation, hue = (s * reach for reach in settings.jitter)
        return cls(
            scale=scale,
            ratio=ratio,
            flip=settings.flip,
            jitter=(brightness, contrast, saturation, hue),
            jitter_probability=s * settings.jitter_probability,
            gray_probability=s * settings.gray_probability,
            blur_probability=s * blur,
            solarize_probability=s * solarize,
            interpolation=settings.interpolation,
        )

    @property
    def views(self) -> ViewSettings:
        """The settings shared with a strong view of strength 1."""
        return ViewSettings(
            crop=self.scale,
            ratio=self.ratio,
            flip=self.flip,
            jitter=self.jitter,
            jitter_probability=self.jitter_probability,
            gray_probability=self.gray_probability,
            interpolation=self.interpolation,
        )


@dataclass(frozen=True, eq=False)
class CropParameters:
    """Random parameters of n crops; all tensors on the CPU.

    Attributes:
        strong: box, flip, color jitter and grayscale.
        filters: blur and solarization.
    """

    strong: StrongParameters
    filters: FilterParameters


def draw_crops(n: int, height: int, width: int, settings: CropSettings, generator: torch.Generator) -> CropParameters:
    """Draw the parameters of n crops: those of n strong views, then those of their filters."""
    strong = draw_strong(n, height, width, settings.views, generator)
    filters = draw_filters(n, settings.blur_probability, settings.solarize_probability, generator)
    return CropParameters(strong, filters)


def apply_crops(images: Tensor, parameters: CropParameters, interpolation: str = "bilinear") -> Tensor:
    """Apply given parameters, in EMP-SSL's order: crop, flip, color jitter, grayscale, blur, solarization.

    Args:
        images: (n, 3, H, W) float32 in [0, 1], any device.
        parameters: parameters of n crops.
        interpolation: resampling of the crop, a key of `views.INTERPOLATIONS`.

    Returns:
        (n, 3, H, W) float32 in [0, 1], a new tensor.

    Raises:
        ValueError: as `views.apply_strong`.
    """
    return apply_filters(apply_strong(images, parameters.strong, interpolation), parameters.filters)


def multi_crops(images: Tensor, n: int, settings: CropSettings, generator: torch.Generator) -> Tensor:
    """Return n independent crops of each image, resized to the image's size.

    Args:
        images: (B, 3, H, W) float32 in [0, 1], any device.
        n: number of crops per image, at least 1.
        settings: settings of the crops.
        generator: CPU generator.

    Returns:
        (n B, 3, H, W) float32 in [0, 1]; rows n k to n k + n - 1 are the crops of image k.

    Raises:
        ValueError: if n is not positive, and as `views.apply_strong`.
    """
    if n < 1:
        raise ValueError(f"multi_crops: {n} crops of an image, expected 1 or more")
    check_images(images)
    repeated = images.repeat_interleave(n, dim=0)
    parameters = draw_crops(len(repeated), images.shape[2], images.shape[3], settings, generator)
    return apply_crops(repeated, parameters, settings.interpolation)
