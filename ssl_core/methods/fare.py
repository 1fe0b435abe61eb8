"""FARE: fine-tuning of an encoder so that its features of attacked images stay where they were."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from astra_gym.ssl_core.attacks.pgd import ConstantBudget, Objective
from astra_gym.ssl_core.methods.base import Method, Networks
from astra_gym.ssl_core.methods.parts import STRONG
from astra_gym.ssl_core.methods.traits import LossTraits, NetworkTraits, Routes
from astra_gym.ssl_core.models.target_network import Encoded
from astra_gym.ssl_core.transforms.views import ViewSettings
from astra_gym.ssl_core.utils.finite import check_number
from astra_gym.ssl_core.utils.training_plan import Moment


@dataclass(frozen=True)
class FARE(Method):
    """Fine-tuning for adversarially robust embeddings (FARE, Schlarmann et al. 2024, equation 3), on one route.

    With f the network, f0 the network as it started, frozen in eval mode, and x' the attacked image, where c is
    `clean_weight`::

        L = (1 - c) |f(x') - f0(x)|^2 + c |f(x) - f0(x)|^2

    Features are not normalized, and the squared distance is a sum over their dimensions. The attack maximizes that of
    the attacked image, `|f(x') - f0(x)|^2`. The images are not augmented (a `perspective` distorts x itself).

    f0 is a copy of the start of this run: it needs `--init_from`, and no teacher, which would be the same file a second
    time. The run's checkpoints hold it, so resuming does not read the file again.

    Deviations: the authors' attack has momentum 0.9 on the sign of the gradient; here it is plain PGD. They fine-tune
    CLIP's vision transformers, with a learning rate of 1e-5; the features of another network have other norms, so its
    rate has to be tuned.

    The reward's `adversarial` and `clean` are the squared distances of f(x') and f(x) to f0(x), 0 or more.

    Args:
        temperature: not used, this loss has none.
        clean_weight: c, in [0, 1]. With 0 the clean images do not pass the network in an update.
    """

    clean_weight: float = 0.0

    paper: ClassVar[str] = "Schlarmann et al., ICML 2024"
    summary: ClassVar[str] = "an encoder is tuned so that attacked features stay where its clean ones were"
    routes: ClassVar[Routes] = Routes.single("normal")
    networks: ClassVar[NetworkTraits] = NetworkTraits(others=("initial",))
    loss: ClassVar[LossTraits] = LossTraits(paired=False, nt_xent_based=False, has_temperature=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("clean_weight", self.clean_weight, 0, 1)

    @property
    def idle(self) -> Mapping[str, str]:
        """All augmentations except the perspective and the flip, which the linear probe after the run has."""
        return dict.fromkeys(STRONG, "images are not augmented")

    @property
    def views_per_image(self) -> int:
        return 1

    def make_views(self, images: Tensor, settings: ViewSettings, moment: Moment, generator: torch.Generator) -> Tensor:
        """The images themselves, (b, 3, h, w)."""
        return images

    def default_budget(self, step: int) -> ConstantBudget:
        """Epsilon 4/255, 10 steps of 1/255."""
        return ConstantBudget(epsilon=4 / 255, step_size=1 / 255, steps=10)

    def encoded(self, networks: Networks, images: Tensor, rows: Tensor, attacked: bool) -> Encoded:
        """Return the features twice, also as embeddings: the objective compares features."""
        features = networks(images, self.routes.clean).features
        return Encoded(features, features)

    def objective(self, z: Tensor) -> Tensor:
        """Not defined without the features of the start: see `objective_for`."""
        raise NotImplementedError("FARE compares with the network as it started: its objective is objective_for's")

    def objective_for(self, networks: Networks, views: Tensor) -> Objective:
        """Squared distance of each attacked image's features to those of the clean one by f0, (b,)."""
        before = self.before(networks, views)
        return lambda z: squared_distance(z, before)

    def before(self, networks: Networks, images: Tensor) -> Tensor:
        """Features (n, d) of images (n, 3, h, w) by the network as it started, without gradient."""
        with torch.no_grad():
            return networks.others["initial"](images, self.routes.clean).features

    def losses(self, networks: Networks, views: Tensor, adversarial: Tensor | None) -> dict[str, Tensor]:
        """`adversarial`, and `clean` if it has a weight: squared distances to the start's clean features, (b,)."""
        batches = {"adversarial": self.given(adversarial), "clean": views}
        before = self.before(networks, views)
        return {
            name: squared_distance(networks(batches[name], self.routes.clean).features, before) for name in self.weights
        }

    @property
    def weights(self) -> Mapping[str, float]:
        weights = {"adversarial": 1 - self.clean_weight, "clean": self.clean_weight}
        return {name: weight for name, weight in weights.items() if name == "adversarial" or weight}


def squared_distance(features: Tensor, others: Tensor) -> Tensor:
    """Squared Euclidean distance of each row of features (n, d) to that of others (n, d), (n,)."""
    return (features - others).square().sum(dim=1)
