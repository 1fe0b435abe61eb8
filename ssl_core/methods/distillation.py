"""Methods that distill a robust student from a non-robust self-supervised teacher: DeACL and DAQ-SDP."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from astra_gym.ssl_core.attacks.pgd import Objective
from astra_gym.ssl_core.losses.cosine import negative_cosine
from astra_gym.ssl_core.methods.base import Method, Networks
from astra_gym.ssl_core.methods.parts import STRONG, by_parity, on_routes
from astra_gym.ssl_core.methods.traits import LossTraits, NetworkTraits, Routes
from astra_gym.ssl_core.models.target_network import Encoded
from astra_gym.ssl_core.transforms.trivial_augment import trivial_augment
from astra_gym.ssl_core.transforms.views import ViewSettings, weak_views
from astra_gym.ssl_core.utils.finite import check_number
from astra_gym.ssl_core.utils.training_plan import Moment, reached

ANY_ROUTE = "normal"
"""Route name for calls of a teacher, which ignores it and uses its own evaluation route."""


@dataclass(frozen=True)
class Distillation(Method):
    """Shared parts of DeACL and DAQ-SDP: a frozen teacher g, features instead of embeddings, and the attack.

    The attack maximizes -cos(f(x'), g(x)): it turns the student's features f away from the teacher's of the clean view.
    The reward uses the same measure: `adversarial` and `clean` are -cos to the teacher's features, in [-1, 1]; -1 is
    full agreement.

    Args:
        temperature: not used, these losses have none.
        trades_weight: weight of the student's change under attack, 0 or more; 2 in both released codes.
        scratch: whether the student starts from random weights instead of the teacher's.
    """

    trades_weight: float = 2.0
    scratch: bool = False

    networks: ClassVar[NetworkTraits] = NetworkTraits(others=("teacher",))
    loss: ClassVar[LossTraits] = LossTraits(nt_xent_based=False, has_temperature=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("trades_weight", self.trades_weight)
        if type(self.scratch) is not bool:
            raise ValueError(f"scratch is {self.scratch!r}: expected true or false")

    @property
    def starts_from_teacher(self) -> bool:
        """Whether the student's backbone starts from the teacher's weights: unless `scratch`."""
        return not self.scratch

    @property
    def idle(self) -> Mapping[str, str]:
        """The augmentation of strong views: these are weak ones, or strong in a way without settings."""
        return dict.fromkeys(STRONG, "views are only cropped and flipped by settings")

    def objective_for(self, networks: Networks, views: Tensor) -> Objective:
        """-cos of each attacked view's features to the teacher's of the clean view, (n,) in [-1, 1]."""
        target = taught(networks, self.attacked(views))
        return lambda z: self.distance(z, target)

    def objective(self, z: Tensor) -> Tensor:
        """Not defined without the teacher's features: see `objective_for`."""
        raise NotImplementedError(f"{type(self).__name__} compares with a teacher: its objective is objective_for's")

    def distance(self, features: Tensor, others: Tensor) -> Tensor:
        """-cos between rows of features (n, d) and of others (n, d), (n,); gradients go through both.

        Raises:
            ValueError: if their shapes differ, for instance if the teacher has another width.
        """
        if features.shape != others.shape:
            raise ValueError(
                f"the features are {tuple(features.shape)} and those they are compared with {tuple(others.shape)}: "
                "the teacher and the network have to have features of the same length (arch, width, neck)"
            )
        return negative_cosine(features, others, stop=False, reduction="none")

    @abstractmethod
    def losses(self, networks: Networks, views: Tensor, adversarial: Tensor | None) -> dict[str, Tensor]: ...


@dataclass(frozen=True)
class DeACL(Distillation):
    """Decoupled adversarial contrastive learning (Zhang et al. 2022): distillation on a single batch-norm route.

    With a weakly augmented view x and its attacked version x', both in one batch of batch norm,
    `L = -cos(f(x), g(x)) - trades_weight * cos(f(x'), f(x))`. Gradients go through both arguments of the second term
    (the released code). The online linear probe of that code is left out: its gradient does not reach the encoder.

    The reward is -cos to the teacher's features, in [-1, 1].
    """

    paper: ClassVar[str] = "Zhang et al., ECCV 2022"
    summary: ClassVar[str] = "a plain SSL teacher is distilled into a robust student, one weak view an image"
    routes: ClassVar[Routes] = Routes.single("normal")

    @property
    def views_per_image(self) -> int:
        return 1

    def make_views(self, images: Tensor, settings: ViewSettings, moment: Moment, generator: torch.Generator) -> Tensor:
        """One weak view of each image, (b, 3, h, w)."""
        return weak_views(images, settings, generator)

    def encoded(self, networks: Networks, images: Tensor, rows: Tensor, attacked: bool) -> Encoded:
        """Return the features twice, also as embeddings: the objective compares features."""
        features = networks(images, self.routes.attack if attacked else self.routes.clean).features
        return Encoded(features, features)

    def losses(self, networks: Networks, views: Tensor, adversarial: Tensor | None) -> dict[str, Tensor]:
        """`clean`: -cos of the student to the teacher; `adversarial`: -cos of the attacked view to the clean one."""
        # in pairs, so that an update in chunks keeps both versions of a view in one batch of batch norm
        both = torch.stack([views, self.given(adversarial)], dim=1).flatten(0, 1)
        features = networks(both, self.routes.clean).features
        clean, attacked = features[0::2], features[1::2]
        return {
            "clean": self.distance(clean, taught(networks, views)),
            "adversarial": self.distance(attacked, clean),
        }

    @property
    def weights(self) -> Mapping[str, float]:
        return {"clean": 1.0, "adversarial": self.trades_weight}


@dataclass(frozen=True)
class DAQSDP(Distillation):
    """DAQ-SDP (NeurIPS 2024): distillation with two augmentations on four batch-norm routes, and perturbed weights.

    Views 2k and 2k+1 of image k are a weak one, x_w, and a strong one, x_s: TrivialAugmentWide before the weak crop and
    flip. Clean weak views have the route "nature", clean strong ones "strongnature", attacked ones "weak" and "strong".
    With f_r the student on route r and T = trades_weight, as in the released code::

        L = 1/2 [ -cos(f_nature(x_w), g(x_w)) - T cos(f_weak(x_w'), f_nature(x_w))
                  -cos(f_strongnature(x_s), g(x_s)) - T cos(f_strong(x_s'), f_strongnature(x_s)) ]

    In the last part of training the update's gradient is taken under a perturbation of the weights that increases the
    two terms of the weak views. Of that part the authors released only the call, which passes the weak views, their
    attacked versions and the teacher's features. That both terms are meant is our reading, not verified.

    The reward is -cos to the teacher's features, in [-1, 1], for weak and strong views alike.

    All four routes start with the teacher's batch norm. In the released code only "weak" does, since only its names fit
    the teacher's file; the others start from the defaults of batch norm.

    Args:
        temperature, trades_weight, scratch: as `Distillation`.
        gamma: size of the perturbation of the weights, 0 or more; 0: none.
        perturbed_from: fraction of the training, in [0, 1], after which weights are perturbed: from the first update
            before which at least that fraction is over. 0.6: the last 40 %; the released code counts its 100 epochs
            from 1 and begins with the 60th, when 59 are over. 1: never.
    """

    gamma: float = 0.002
    perturbed_from: float = 0.6

    paper: ClassVar[str] = "DAQ-SDP, NeurIPS 2024"
    summary: ClassVar[str] = "distillation of weak and strong views on four routes, weights perturbed late"
    routes: ClassVar[Routes] = Routes(
        names=("nature", "strongnature", "weak", "strong"), attack="weak", evaluation="weak", needed=True
    )
    clean_routes: ClassVar[tuple[str, str]] = ("nature", "strongnature")
    """Routes of the clean weak and strong views."""
    attack_routes: ClassVar[tuple[str, str]] = ("weak", "strong")
    """Routes of the attacked weak and strong views."""
    loss: ClassVar[LossTraits] = replace(Distillation.loss, paired=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("gamma", self.gamma)
        check_number("perturbed_from", self.perturbed_from, 0, 1)

    @property
    def idle(self) -> Mapping[str, str]:
        """As of any distillation; one of gamma and perturbed_from if the other perturbs nothing."""
        own = {"gamma": "perturbed_from is 1"} if self.perturbed_from == 1 else {}
        return {**super().idle, **(own if self.gamma else {"perturbed_from": "gamma is 0"})}

    def make_views(self, images: Tensor, settings: ViewSettings, moment: Moment, generator: torch.Generator) -> Tensor:
        """A weak and a strong view of each image, (2b, 3, h, w), rows 2k and 2k+1 those of image k."""
        weak = weak_views(images, settings, generator)
        strong = weak_views(trivial_augment(images, generator), settings, generator)
        return torch.stack([weak, strong], dim=1).flatten(0, 1)

    def encoded(self, networks: Networks, images: Tensor, rows: Tensor, attacked: bool) -> Encoded:
        """Return the features twice, also as embeddings; each row on the route of its augmentation."""
        features = by_parity(
            images, rows, *on_routes(networks, self.attack_routes if attacked else self.clean_routes)
        ).features
        return Encoded(features, features)

    def losses(self, networks: Networks, views: Tensor, adversarial: Tensor | None) -> dict[str, Tensor]:
        """One term per route, by name: -cos to the teacher on clean routes, to the clean view on attacked ones."""
        adversarial, target = self.given(adversarial), taught(networks, views)
        terms: dict[str, Tensor] = {}
        for kind in (0, 1):
            terms |= self._terms(networks, views[kind::2], adversarial[kind::2], target[kind::2], kind)
        return terms

    def _terms(
        self, networks: Networks, views: Tensor, adversarial: Tensor, target: Tensor, kind: int
    ) -> dict[str, Tensor]:
        """The terms of weak (0) or strong (1) views, (b,) each."""
        route, attacked_route = self.clean_routes[kind], self.attack_routes[kind]
        clean = networks(views, route).features
        attacked = networks(adversarial, attacked_route).features
        return {route: self.distance(clean, target), attacked_route: self.distance(attacked, clean)}

    @property
    def weights(self) -> Mapping[str, float]:
        half = self.trades_weight / 2
        return {"nature": 0.5, "strongnature": 0.5, "weak": half, "strong": half}

    def weight_perturbation(self, moment: Moment) -> float:
        """gamma once the fraction `perturbed_from` of the training is over, 0 before."""
        return self.gamma if reached(moment.progress, self.perturbed_from) and self.perturbed_from < 1 else 0.0

    def perturbation_loss(self, networks: Networks, views: Tensor, adversarial: Tensor) -> Tensor:
        """-cos(f_nature(x_w), g(x_w)) - trades_weight * cos(f_weak(x_w'), f_nature(x_w)), mean over images."""
        weak = views[0::2]
        terms = self._terms(networks, weak, adversarial[0::2], taught(networks, weak), kind=0)
        return terms["nature"].mean() + self.trades_weight * terms["weak"].mean()


def taught(networks: Networks, images: Tensor) -> Tensor:
    """The teacher's features (n, d) of images (n, 3, h, w), without gradient."""
    with torch.no_grad():
        return networks.others["teacher"](images, ANY_ROUTE).features
