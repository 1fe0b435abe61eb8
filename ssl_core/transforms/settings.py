"""The section of the settings on the augmentations."""

from dataclasses import dataclass
from typing import Annotated, Any

from astra_gym.ssl_core.settings.checks import check_numbers, check_options
from astra_gym.ssl_core.settings.records import Notes, check_choices
from astra_gym.ssl_core.transforms.perspective_views import PERSPECTIVES, PerspectiveSettings
from astra_gym.ssl_core.transforms.views import INTERPOLATIONS, ViewSettings
from astra_gym.ssl_core.utils.finite import check_number
from astra_gym.ssl_core.utils.overrides import replaced


@dataclass(frozen=True, kw_only=True)
class ViewsSection:
    """The augmentations.

    Args:
        strength: strength of the augmentations, in [0, 1]; 1 is ACL's, which crops most of a digit away.
        crop_scale: smallest and largest share of the area that the random crop of a strong view keeps; null: from
            1 - 0.9 * strength to 1, as ACL and DynACL do.
        jitter: how far a strong view's brightness, contrast, saturation and hue change at strength 1.
        flip: probability of a horizontal flip.
        blur: probability of a Gaussian blur of a strong view at strength 1; null: 0, but 0.1 (their authors') for the
            crops of emp-ssl and cf-amc-ssl.
        solarize: probability that an image's second strong view (or any crop) is solarized at strength 1; null: 0, but
            0.1 for the crops of emp-ssl and cf-amc-ssl.
        perspective: a further augmentation of every view: moebius (MPD) or lcm (log conformal maps; experimental, with
            this project's own ranges).
        perspective_kwargs: settings of the perspective (`PerspectiveSettings`), which override its defaults.
        interpolation: interpolation of the random resized crop.

    Raises:
        ValueError: if a name is unknown or a value is out of its range.
    """

    strength: Annotated[float, Notes(unit="SHARE")] = 0.5
    crop_scale: Annotated[tuple[float, ...] | None, Notes(unit="[MIN,MAX]")] = None
    jitter: Annotated[tuple[float, ...], Notes(unit="[B,C,S,H]")] = (0.4, 0.4, 0.4, 0.1)
    flip: Annotated[float, Notes(unit="PROBABILITY")] = 0.0
    blur: Annotated[float | None, Notes(unit="PROBABILITY")] = None
    solarize: Annotated[float | None, Notes(unit="PROBABILITY")] = None
    perspective: Annotated[str, Notes(choices=PERSPECTIVES, what="kind of perspective")] = "none"
    perspective_kwargs: dict[str, Any] | None = None
    interpolation: Annotated[str, Notes(choices=INTERPOLATIONS, what="interpolation")] = "bicubic"

    def __post_init__(self) -> None:
        check_choices(self)
        check_options("perspective_kwargs", self.perspective_kwargs)
        for name, length in (("crop_scale", 2), ("jitter", 4)):
            value = getattr(self, name)
            if value is not None or name == "jitter":
                check_numbers(name, value, length)
            object.__setattr__(self, name, None if value is None else tuple(value))
        for name in ("strength", "flip", "blur", "solarize"):
            if getattr(self, name) is not None or name in ("strength", "flip"):
                check_number(name, getattr(self, name), 0, 1, "a number in [0, 1]")
        self.make()
        self.make_perspective()

    def check_given(self) -> None:
        """Raise a ValueError if a given option has no effect."""
        if self.perspective_kwargs and self.perspective == "none":
            raise ValueError("perspective_kwargs: there is no perspective augmentation: add --perspective moebius")

    @property
    def idle(self) -> dict[str, str]:
        """Settings that change nothing beside the values of others, each with the reason."""
        moebius = ("perspective_kwargs.magnitude", "perspective_kwargs.d") if self.perspective == "lcm" else ()
        return dict.fromkeys(moebius, "perspective is lcm")

    def make(self) -> ViewSettings:
        """Make the settings of strong and weak views."""
        return ViewSettings(
            strength=self.strength,
            flip=self.flip,
            interpolation=self.interpolation,
            crop=None if self.crop_scale is None else (self.crop_scale[0], self.crop_scale[1]),
            jitter=(self.jitter[0], self.jitter[1], self.jitter[2], self.jitter[3]),
            blur_probability=self.blur,
            solarize_probability=self.solarize,
        )

    def make_perspective(self) -> PerspectiveSettings:
        """Make the settings of the perspective augmentation."""
        if "kind" in (self.perspective_kwargs or {}):
            raise ValueError("perspective_kwargs has a kind: give it as --perspective")
        chosen = PerspectiveSettings(kind=self.perspective)
        return replaced(chosen, self.perspective_kwargs or {}, "the perspective augmentation")
