"""ProFeAT: distillation of a robust student from a teacher's features and projections."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from astra_gym.ssl_core.attacks.pgd import Objective
from astra_gym.ssl_core.methods.base import Networks
from astra_gym.ssl_core.methods.distillation import ANY_ROUTE, Distillation
from astra_gym.ssl_core.methods.traits import AttackTraits, LossTraits, NetworkTraits, Routes
from astra_gym.ssl_core.models.target_network import Encoded
from astra_gym.ssl_core.transforms.auto_augment import auto_augment
from astra_gym.ssl_core.transforms.views import ViewSettings, weak_views
from astra_gym.ssl_core.utils.finite import check_number
from astra_gym.ssl_core.utils.training_plan import Moment


@dataclass(frozen=True)
class ProFeAT(Distillation):
    """Projected feature adversarial training (Addepalli et al. 2024): DeACL with the teacher's projector, on one route.

    Views 2k and 2k+1 of image k are a weak one (crop and flip), x_t, which the teacher sees, and a strong one
    (AutoAugment before another weak crop and flip), x_s, which the student sees and which is attacked. The student's
    projector is the teacher's and is never trained. With f features, h their projections, t the teacher,
    D(a, b) = -cos(a, b), w = `projection_weight` and T = `trades_weight`, as in the released code::

        L = (1 - w) D(f_t(x_t), f(x_s)) + w D(h_t(x_t), h(x_s)) + T [(1 - w) D(f(x_s'), f(x_s)) + w D(h(x_s'), h(x_s))]

    Gradients go through both arguments of the last two terms. Clean and attacked views pass batch norm one after the
    other. The attack maximizes D(f(x_s'), f(x_s)) + D(h(x_s'), h_t(x_t)), whatever w is, on the network in eval mode;
    f(x_s) is as in the update, in train mode.

    Deviations: a projector with batch norm, which the authors' has not, computes with the teacher's statistics. With
    `scratch` it is the teacher's too.

    The reward's `adversarial` and `clean` are what the attack maximizes, in [-2, 2]; -2 is full agreement.

    Args:
        temperature: not used, this loss has none.
        trades_weight: weight of the student's change under attack, 0 or more; 8 in the released run (a WRN-34-10 on
            CIFAR-100), 2 by default in its code.
        scratch: whether the student's backbone starts from random weights instead of the teacher's.
        projection_weight: share of the projections in the loss, in [0, 1]; the features have the rest.
    """

    trades_weight: float = 8.0
    projection_weight: float = 0.5

    paper: ClassVar[str] = "Addepalli et al., TMLR 2024"
    summary: ClassVar[str] = "a teacher's features and projections are distilled, of weak and strong views"
    routes: ClassVar[Routes] = Routes.single("normal")
    attack: ClassVar[AttackTraits] = AttackTraits(reference_mode="train")
    networks: ClassVar[NetworkTraits] = replace(Distillation.networks, shares_projector=True)
    loss: ClassVar[LossTraits] = replace(Distillation.loss, paired=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("projection_weight", self.projection_weight, 0, 1)

    @property
    def attacked_per_image(self) -> int:
        return 1

    def make_views(self, images: Tensor, settings: ViewSettings, moment: Moment, generator: torch.Generator) -> Tensor:
        """The teacher's and the student's view of each image, (2b, 3, h, w), rows 2k and 2k+1 those of image k."""
        weak = weak_views(images, settings, generator)
        strong = weak_views(auto_augment(images, generator), settings, generator)
        return torch.stack([weak, strong], dim=1).flatten(0, 1)

    def attacked(self, views: Tensor) -> Tensor:
        """Select the student's views, (b, 3, h, w)."""
        return views[1::2]

    def encoded(self, networks: Networks, images: Tensor, rows: Tensor, attacked: bool) -> Encoded:
        """Encode views to features, and to features beside projections, which the objective compares."""
        found = networks(images, self.routes.clean)
        return Encoded(found.features, torch.cat(found, dim=1))

    def objective_for(self, networks: Networks, views: Tensor) -> Objective:
        """D of features to the student's of the clean view, plus D of projections to the teacher's, (b,) in [-2, 2]."""
        own = networks(self.attacked(views), self.routes.clean).features
        reference = self.taught(networks, views).embeddings

        def objective(z: Tensor) -> Tensor:
            features, projections = z.tensor_split([own.shape[1]], dim=1)
            return self.distance(features, own) + self.distance(projections, reference)

        return objective

    def taught(self, networks: Networks, views: Tensor) -> Encoded:
        """The teacher's features and projections of its views, (b, d) each, without gradient."""
        with torch.no_grad():
            return networks.others["teacher"](views[0::2], ANY_ROUTE)

    def losses(self, networks: Networks, views: Tensor, adversarial: Tensor | None) -> dict[str, Tensor]:
        """`clean`: the student's distance to the teacher; `adversarial`: of attacked to clean views; (b,) each."""
        clean = networks(self.attacked(views), self.routes.clean)
        attacked = networks(self.given(adversarial), self.routes.clean)
        return {
            "clean": self.mixed_distance(self.taught(networks, views), clean),
            "adversarial": self.mixed_distance(attacked, clean),
        }

    def mixed_distance(self, one: Encoded, other: Encoded) -> Tensor:
        """(1 - w) D of the features + w D of the projections of each row, (n,) in [-1, 1]."""
        features, projections = (self.distance(*pair) for pair in zip(one, other, strict=True))
        return (1 - self.projection_weight) * features + self.projection_weight * projections

    @property
    def weights(self) -> Mapping[str, float]:
        return {"clean": 1.0, "adversarial": self.trades_weight}
