"""ACL and DynACL with adversarial invariant regularization (AIR)."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from astra_gym.ssl_core.losses.invariance import FORMS, air, sir
from astra_gym.ssl_core.methods.base import Method, Networks
from astra_gym.ssl_core.methods.dynacl import strength_at
from astra_gym.ssl_core.methods.traits import LossTraits
from astra_gym.ssl_core.transforms.views import ViewSettings, two_views
from astra_gym.ssl_core.utils.finite import check_number
from astra_gym.ssl_core.utils.registry import pick
from astra_gym.ssl_core.utils.training_plan import Moment


@dataclass(frozen=True)
class ACLAIR(Method):
    """ACL with the standard and the adversarial invariant regularizer (Xu et al. 2023).

    Rows 2k and 2k+1 of the 3b views are two strong views of image k, which are attacked; row 2b + k is the image
    itself. The clean views and, in a separate batch, the images have the route "normal", attacked views "pgd":

    `L = NTX(clean) + NTX(attacked) + sir_weight * SIR + air_weight * AIR` (the released code). It differs from DynACL's
    and ACL's means by a common factor, which does not affect the optimizer LARS.

    The reward is the NT-Xent of each attacked view, between 0 and log(2N - 1) + 2 / temperature. The regularizers are
    not part of the attack.

    Args:
        temperature: temperature of the contrastive losses and of the regularizers, positive.
        form: form of the regularizers' divergence, "released" (released code) or "kl" (paper), see
            `astra_gym.ssl_core.losses.invariance`.
        sir_weight: weight of the standard regularizer, 0 or more.
        air_weight: weight of the adversarial regularizer, 0 or more.
    """

    form: str = "released"
    sir_weight: float = 0.5
    air_weight: float = 0.5

    paper: ClassVar[str] = "Xu et al., NeurIPS 2023"
    summary: ClassVar[str] = "ACL, and views have to relate to the un-augmented images alike, clean and attacked"
    loss: ClassVar[LossTraits] = LossTraits(paired=False)
    originals_per_image: ClassVar[int] = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        pick(self.form, FORMS, "form of the divergence")
        for name in ("sir_weight", "air_weight"):
            check_number(name, getattr(self, name))

    @property
    def idle(self) -> Mapping[str, str]:
        """The form of the divergence, without a regularizer."""
        return {} if self.sir_weight or self.air_weight else {"form": "sir_weight and air_weight are 0"}

    @property
    def views_per_image(self) -> int:
        return 3

    def make_views(self, images: Tensor, settings: ViewSettings, moment: Moment, generator: torch.Generator) -> Tensor:
        """Make two strong views per image, rows 2k and 2k+1, then the images themselves, (3b, 3, h, w)."""
        return torch.cat([two_views(images, settings, generator), images])

    def attacked(self, views: Tensor) -> Tensor:
        """The strong views, (2b, 3, h, w)."""
        return views[: 2 * images_in(views)]

    def losses(self, networks: Networks, views: Tensor, adversarial: Tensor | None) -> dict[str, Tensor]:
        """`clean` and `adversarial`: NT-Xent of the strong views, (2b,); `sir` and `air`: one value per batch, (1,)."""
        attacked = networks(self.given(adversarial), self.routes.attack).embeddings
        strong = self.attacked(views)
        clean = networks(strong, self.routes.clean).embeddings
        original = networks(views[len(strong) :], self.routes.clean).embeddings
        first, second = clean[0::2], clean[1::2]
        fixed = (first, second, original, self.temperature, self.form)
        return {
            "clean": self.objective(clean),
            "adversarial": self.objective(attacked),
            "sir": sir(*fixed).view(1),
            "air": air(attacked[0::2], attacked[1::2], *fixed).view(1),
        }

    @property
    def weights(self) -> Mapping[str, float]:
        """Weights at the beginning of training."""
        return {"clean": 1.0, "adversarial": 1.0, "sir": self.sir_weight, "air": self.air_weight}


@dataclass(frozen=True)
class DynACLAIR(ACLAIR):
    """DynACL with AIR (Xu et al. 2023): augmentations weaken during training, and the weights move with them.

    This is AIR's version of DynACL, without a moving average. The views are made at `s = strength_at` times the given
    strength, and with `w = reweighting * (1 - s)`, which moves when s does,

    `L = (1 - w) NTX(clean) + (1 + w) NTX(attacked) + sir_weight * SIR + air_weight * AIR` (the released code).

    Args:
        temperature, form, sir_weight, air_weight: as `ACLAIR`.
        reweighting: distance that the weights would move until s is 0, in [0, 1]; 2/3 in the released code.
    """

    reweighting: float = 2 / 3

    summary: ClassVar[str] = "ACL-AIR whose augmentations weaken by and by, without a moving average"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("reweighting", self.reweighting, 0, 1)

    def make_views(self, images: Tensor, settings: ViewSettings, moment: Moment, generator: torch.Generator) -> Tensor:
        """Make views as `ACLAIR`, the strong ones at the present strength."""
        due = replace(settings, strength=settings.strength * strength_at(moment))
        return super().make_views(images, due, moment, generator)

    def weights_at(self, moment: Moment) -> Mapping[str, float]:
        """1 - w and 1 + w for the two streams, w from 0 to 0.95 * reweighting; the regularizers' are constant."""
        w = self.reweighting * (1 - strength_at(moment))
        return {**self.weights, "clean": 1 - w, "adversarial": 1 + w}


@dataclass(frozen=True)
class DynACLAIRPlus(DynACLAIR):
    """DynACL-AIR++ (Xu et al. 2023): DynACL-AIR, then linear probing and adversarial fine-tuning on pseudo labels."""

    summary: ClassVar[str] = "DynACL-AIR, then pseudo labels and adversarial fine-tuning on them"
    post_processed: ClassVar[bool] = True


def images_in(views: Tensor) -> int:
    """Number b of images that 3b views belong to.

    Raises:
        ValueError: if there are not three views per image.
    """
    images, rest = divmod(len(views), 3)
    if rest or not images:
        raise ValueError(
            f"there are {len(views)} views: expected three per image, two strong ones and the image itself"
        )
    return images
