"""DynACL and DynACL++: augmentations that weaken during training, and a moving average as second network."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from astra_gym.ssl_core.methods.base import Method, Networks
from astra_gym.ssl_core.methods.parts import by_parity
from astra_gym.ssl_core.methods.traits import LossTraits, NetworkTraits
from astra_gym.ssl_core.models.target_network import Encoded
from astra_gym.ssl_core.transforms.views import ViewSettings, two_views
from astra_gym.ssl_core.utils.finite import check_number
from astra_gym.ssl_core.utils.training_plan import Moment

STAGES = 20
"""Number of equal stages of the schedules; a stage is 50 of the authors' 1000 epochs."""
AUTHORS_EPOCHS = 1000


def strength_at(moment: Moment) -> float:
    """DynACL's factor s of the augmentations' strength: 1 in the first of 20 stages, 0.05 less in each later one.

    The released code has `s(e) = 1 - floor((e - 1) / 50) * 50 / 1000` for epochs e = 1..1000. A run of E epochs scales
    it: with n = e - 1 from 0, `s = 1 - floor(20 n / E) / 20`. With fewer than 20 epochs several stages pass in an
    epoch, which has the strength of the stage that it begins in.

    Returns:
        s, from 1 down to at least 0.05.
    """
    stage = STAGES * moment.epoch // moment.epochs
    return 1 - min(stage, STAGES - 1) / STAGES


def shift_at(moment: Moment) -> float:
    """Shift of DynACL's loss weights, in [0, 1]: 0 in the first stage and 1/20 more in each later one.

    The released code has `floor(e / 50) * 50 / 1000` for epochs e = 1..1000: it moves one epoch before the strength
    does, in epoch 50 and not 51, and reaches 1 in the last. This lead is scaled too, as a thousandth of the training:
    epoch n (from 0) of E has the authors' value at their epoch e = 1000 n / E + 1. So 1000 epochs give the authors'
    schedule. With fewer epochs the last has 0.95, and if E is a multiple of 20 the weights move with the strength.
    """
    elapsed = AUTHORS_EPOCHS * moment.epoch + moment.epochs
    return min(STAGES * elapsed // (AUTHORS_EPOCHS * moment.epochs), STAGES) / STAGES


@dataclass(frozen=True)
class DynACL(Method):
    """Dynamic adversarial contrastive learning (Luo et al. 2023): ACL with augmentations that weaken during training.

    First views (even rows) are always encoded by the target network, second views (odd rows) by its moving average,
    which is also the network that is evaluated. Gradients of an update reach the target only; the average runs in train
    mode then, for its own batch-norm statistics. The attack's gradient goes through both.

    The views are made at `strength_at` times the given strength, and with `w = 1 + reweighting * shift_at`

    `L = ((2 - w) NTX(clean) + w NTX(attacked)) / 2` (the released code; its bound w <= 2 is never met).

    The reward is the NT-Xent of each attacked view, between 0 and log(2N - 1) + 2 / temperature.

    Args:
        temperature: temperature of the contrastive losses, positive.
        ema: decay of the moving average at an update, in [0, 1].
        reweighting: total shift of the weights, in [0, 1]; 2/3 in the released code. With 0 they stay equal.
    """

    ema: float = 0.99
    reweighting: float = 2 / 3

    paper: ClassVar[str] = "Luo et al., ICLR 2023"
    summary: ClassVar[str] = "ACL whose augmentations weaken by and by, beside a moving average"
    networks: ClassVar[NetworkTraits] = NetworkTraits(others=("momentum",), evaluated="momentum", momentum_first=True)
    loss: ClassVar[LossTraits] = LossTraits(paired=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("ema", self.ema, 0, 1)
        check_number("reweighting", self.reweighting, 0, 1)

    def make_views(self, images: Tensor, settings: ViewSettings, moment: Moment, generator: torch.Generator) -> Tensor:
        """Make two strong views per image, (2b, 3, h, w), at the present strength."""
        return two_views(images, replace(settings, strength=settings.strength * strength_at(moment)), generator)

    def encoded(self, networks: Networks, images: Tensor, rows: Tensor, attacked: bool) -> Encoded:
        """Encode even rows by the target, odd rows by its moving average."""
        return by_both(networks, images, rows, self.routes.attack if attacked else self.routes.clean)

    def momentum(self, moment: Moment) -> float:
        """The option `ema`, constant."""
        return self.ema

    def losses(self, networks: Networks, views: Tensor, adversarial: Tensor | None) -> dict[str, Tensor]:
        """`clean` and `adversarial`: NT-Xent of the clean and of the attacked views, each on its route."""
        attacked = self.given(adversarial)
        clean = trained(networks, views, self.routes.clean)
        return {
            "clean": self.objective(clean),
            "adversarial": self.objective(trained(networks, attacked, self.routes.attack)),
        }

    @property
    def weights(self) -> Mapping[str, float]:
        """Weights at the beginning of training."""
        return {"clean": 0.5, "adversarial": 0.5}

    def weights_at(self, moment: Moment) -> Mapping[str, float]:
        """(2 - w) / 2 and w / 2, with w from 1 to 1 + reweighting."""
        w = 1 + self.reweighting * shift_at(moment)
        return {"clean": (2 - w) / 2, "adversarial": w / 2}


@dataclass(frozen=True)
class DynACLPlus(DynACL):
    """DynACL++ (Luo et al. 2023): DynACL, then linear probing and adversarial fine-tuning on pseudo labels."""

    summary: ClassVar[str] = "DynACL, then pseudo labels and adversarial fine-tuning on them"
    post_processed: ClassVar[bool] = True


def by_both(networks: Networks, images: Tensor, rows: Tensor, route: str) -> Encoded:
    """Encode even rows by the target and odd rows by the network "momentum".

    Args:
        networks: the networks.
        images: (m, 3, h, w).
        rows: (m,) int64, on the host, the numbers that are even or odd.
        route: route of both networks.

    Returns:
        Features and embeddings in the order of the images; the images' gradient goes through both networks.
    """
    target, momentum = networks.target, networks.others["momentum"]
    return by_parity(images, rows, lambda x: target(x, route), lambda x: momentum(x, route))


def trained(networks: Networks, views: Tensor, route: str) -> Tensor:
    """Encode views (2b, 3, h, w) in an update to embeddings (2b, d): first views by the target, second views by the
    network "momentum" without gradient."""
    first = networks(views[0::2], route).embeddings
    with torch.no_grad():
        second = networks.others["momentum"](views[1::2], route).embeddings
    return torch.stack([first, second], dim=1).flatten(0, 1)
