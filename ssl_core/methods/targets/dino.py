"""DINO: a student predicts the assignments to prototypes of its own moving average."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from astra_gym.ssl_core.attacks.pgd import Objective
from astra_gym.ssl_core.losses.prototypes import soft_cross_entropy, swapped_cross_entropy
from astra_gym.ssl_core.methods.base import Networks
from astra_gym.ssl_core.methods.targets.target import AdversarialStreams, Target
from astra_gym.ssl_core.methods.traits import LossTraits, NetworkTraits
from astra_gym.ssl_core.models.ema import cosine_momentum
from astra_gym.ssl_core.models.heads import Bottleneck, Center, Prototypes
from astra_gym.ssl_core.models.target_network import Encoded
from astra_gym.ssl_core.transforms.multi_crop import CropSettings, multi_crops
from astra_gym.ssl_core.transforms.views import ViewSettings, two_views
from astra_gym.ssl_core.utils.finite import check_number
from astra_gym.ssl_core.utils.training_plan import Moment


@dataclass(frozen=True)
class CleanDINO(Target):
    """Self-distillation with no labels (Caron et al. 2021), without an attack.

    `L` is the mean of the cross-entropies H(p_u, q_v) over an image's two wide views u and all its views v but u, with
    `p = softmax((t - c) / T_t)` of the teacher and `q = softmax(s / T_s)` of the student. t and s are cosines to
    prototypes, of a head of three layers (`Bottleneck`, `Prototypes`). The student is the target network and its heads.
    The teacher is "momentum", the moving average of network and heads, in train mode with its own statistics and
    without gradient. The center c is a moving average of t, which moves after the loss.

    The projector comes before the head; with projector "none" the head is on the features, as in the authors' code.
    Local crops (`astra_gym.ssl_core.transforms.multi_crop`) are seen by the student alone. Here all views have one
    size, so local crops are resized to that of the image; the authors' have about half its side, and cost less.

    Published sizes are for networks of 64 channels and more: 2048 hidden units, 256, and 4096 prototypes (solo-learn's
    CIFAR settings). The small presets, of 16 channels and fewer images, have 128, 64 and 256.

    Args:
        temperature: T_s of the student, positive (0.1).
        hidden: width of the head's hidden layers.
        bottleneck: dimension of the head's embeddings, before the prototypes.
        prototypes: number of prototypes.
        teacher_temperature: T_t, positive (0.07 in solo-learn, 0.04 in the authors' code, unstable above 0.07).
        teacher_start, teacher_warmup: T_t of the first epoch, and the number of epochs in which it rises linearly to
            `teacher_temperature` (0: it is constant).
        center_momentum: share of the center that stays at an update, in [0, 1] (0.9).
        momentum_start: momentum of the moving average at the first update, in [0, 1]; it rises to 1 along a cosine over
            the training (0.9995 for batches of 256 images).
        freeze_epochs: number of first epochs in which the prototypes rest, 0 or more (1).
        local_crops: number of local crops of an image, 0 or more (0 in solo-learn's CIFAR settings, 8 in the authors').
        local_scale: least and greatest share of the area that a local crop keeps, at any strength.
    """

    temperature: float = 0.1
    hidden: int = 2048
    bottleneck: int = 256
    prototypes: int = 4096
    teacher_temperature: float = 0.07
    teacher_start: float = 0.04
    teacher_warmup: int = 0
    center_momentum: float = 0.9
    momentum_start: float = 0.9995
    freeze_epochs: int = 1
    local_crops: int = 0
    local_scale: tuple[float, float] = (0.05, 0.4)

    paper: ClassVar[str] = "Caron et al., ICCV 2021"
    summary: ClassVar[str] = "dino without an attack"
    networks: ClassVar[NetworkTraits] = NetworkTraits(others=("momentum",), averaged_heads=("bottleneck", "prototypes"))

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("hidden", "bottleneck", "prototypes"):
            check_number(name, getattr(self, name), 1, expected="a positive integer", whole=True)
        for name in ("teacher_warmup", "freeze_epochs", "local_crops"):
            check_number(name, getattr(self, name), expected="an integer of 0 or more", whole=True)
        for name in ("teacher_temperature", "teacher_start"):
            check_number(name, getattr(self, name), above=True)
        for name in ("center_momentum", "momentum_start"):
            check_number(name, getattr(self, name), 0, 1)
        # checks the scale
        self.crop_settings(ViewSettings())

    @property
    def idle(self) -> Mapping[str, str]:
        """What a warm-up or local crops have, without these."""
        own = {} if self.teacher_warmup else {"teacher_start": "teacher_warmup is 0"}
        return own if self.local_crops else own | {"local_scale": "local_crops is 0"}

    # --- views -------------------------------------------------------------------------------------------------------

    @property
    def views_per_image(self) -> int:
        """Two wide views and the local crops."""
        return 2 + self.local_crops

    @property
    def loss(self) -> LossTraits:  # type: ignore[override]
        """As any target's; every call of the network has views in pairs without local crops."""
        return replace(super().loss, paired=not self.local_crops)

    def crop_settings(self, settings: ViewSettings) -> CropSettings:
        """Settings of a run's local crops: as its wide views', but for the share of the area."""
        return CropSettings.of_views(settings, self.local_scale, settings.ratio)

    def make_views(self, images: Tensor, settings: ViewSettings, moment: Moment, generator: torch.Generator) -> Tensor:
        """Make all views ((2 + local_crops) * b, 3, h, w): two wide ones of each image, then all local crops of each
        image."""
        wide = two_views(images, settings, generator)
        if not self.local_crops:
            return wide
        return torch.cat([wide, multi_crops(images, self.local_crops, self.crop_settings(settings), generator)])

    def attacked(self, views: Tensor) -> Tensor:
        """The wide views, (2b, 3, h, w)."""
        return views[: 2 * (len(views) // self.views_per_image)]

    # --- the networks ------------------------------------------------------------------------------------------------

    def make_heads(self, feature_dim: int, embedding_dim: int) -> dict[str, nn.Module]:
        """Make the two parts of the head, and the center."""
        return {
            "bottleneck": Bottleneck(embedding_dim, self.hidden, self.bottleneck),
            "prototypes": Prototypes(self.bottleneck, self.prototypes),
            "center": Center(self.prototypes, self.routes.names, self.center_momentum),
        }

    def resting_heads(self, moment: Moment) -> tuple[str, ...]:
        """The prototypes, in the first epochs."""
        return ("prototypes",) if moment.epoch < self.freeze_epochs else ()

    def momentum(self, moment: Moment) -> float:
        """`1 - (1 - momentum_start) * (cos(pi * progress) + 1) / 2`, by the progress before the update."""
        return cosine_momentum(moment.progress, self.momentum_start)

    def sharpness(self, moment: Moment) -> float:
        """T_t at an update."""
        if moment.epoch >= self.teacher_warmup:
            return self.teacher_temperature
        return self.teacher_start + (self.teacher_temperature - self.teacher_start) * moment.epoch / self.teacher_warmup

    def taught(self, networks: Networks, images: Tensor, route: str) -> Tensor:
        """The teacher's centered cosines t - c, (n, prototypes); in train mode the center then moves."""
        embeddings = networks.others["momentum"](images, route).embeddings
        bottleneck = networks.heads["momentum_bottleneck"](embeddings, route)
        return networks.heads["center"](networks.heads["momentum_prototypes"](bottleneck, route), route)

    def cosines(self, networks: Networks, embeddings: Tensor, route: str) -> Tensor:
        """The student's cosines s of embeddings (n, d), (n, prototypes)."""
        return networks.heads["prototypes"](networks.heads["bottleneck"](embeddings, route), route)

    # --- the attack --------------------------------------------------------------------------------------------------

    def encoded(self, networks: Networks, images: Tensor, rows: Tensor, attacked: bool) -> Encoded:
        """Encode views to features, and to the student's cosines beside the teacher's centered ones."""
        route = self.routes.attack if attacked else self.routes.clean
        features, embeddings = networks(images, route)
        own = self.cosines(networks, embeddings, route)
        return Encoded(features, torch.cat([own, self.taught(networks, images, route)], dim=1))

    def objective(self, z: Tensor) -> Tensor:
        """Not defined without the teacher's temperature: see `objective_for`."""
        raise NotImplementedError("DINO's teacher has a temperature by the epoch: its objective is objective_for's")

    def objective_for(self, networks: Networks, views: Tensor) -> Objective:
        """H(p_partner, q) of each wide view, (2b,), from cosines of the student beside centered ones of the teacher."""
        temperature = self.sharpness(networks.moment)

        def objective(z: Tensor) -> Tensor:
            own, taught = z.chunk(2, dim=1)
            return swapped_cross_entropy((taught / temperature).softmax(1), own / self.temperature, reduction="none")

        return objective

    # --- the update --------------------------------------------------------------------------------------------------

    def losses(self, networks: Networks, views: Tensor, adversarial: Tensor | None) -> dict[str, Tensor]:
        """`clean`: H(p_u, q_v) of each pair of a wide view u and another view v of its image."""
        wide = self.attacked(views)
        return {"clean": self.pairs(networks, wide, self.routes.clean, views[len(wide) :])}

    def stream(self, networks: Networks, views: Tensor, route: str) -> Tensor:
        """H(p_partner, q) of each wide view, (2b,)."""
        return self.pairs(networks, views, route, views[:0])

    def pairs(self, networks: Networks, wide: Tensor, route: str, local: Tensor) -> Tensor:
        """H(p_u, q_v) of all pairs, (2b + 2 * local_crops * b,): wide views first, then each local crop with both.

        Args:
            networks: the networks in train mode.
            wide: (2b, 3, h, w), rows 2k and 2k+1 those of image k.
            route: batch-norm route.
            local: (local_crops * b, 3, h, w), an image's crops in a row; or none.
        """
        own = self.cosines(networks, networks(wide, route).embeddings, route) / self.temperature
        with torch.no_grad():
            taught = (self.taught(networks, wide, route) / self.sharpness(networks.moment)).softmax(dim=1)
        rows = swapped_cross_entropy(taught, own, reduction="none")
        if not len(local):
            return rows
        crops = self.cosines(networks, networks(local, route).embeddings, route) / self.temperature
        both = taught.unflatten(0, (-1, 2)).repeat_interleave(self.local_crops, dim=0).flatten(0, 1)
        return torch.cat([rows, soft_cross_entropy(both, crops.repeat_interleave(2, dim=0), reduction="none")])


@dataclass(frozen=True)
class DINO(AdversarialStreams, CleanDINO):
    """Self-distillation with no labels (Caron et al. 2021): `CleanDINO` with `AdversarialStreams`.

    The two wide views are attacked. Each stream has its own teacher's outputs and center: the teacher of attacked views
    sees attacked views, and the attack's gradient goes through both. Local crops are never attacked; in "ds" they are a
    part of the clean stream.

    The reward's `adversarial` and `clean` are H(p_partner, q) of each attacked or clean wide view, between 0 and
    log(prototypes) + 2 / temperature.

    Args:
        temperature and all others but streams: as in `CleanDINO`.
        streams: "ds" or "a2a", see `AdversarialStreams`. "a2a" has no clean stream, so no local crops.
    """

    temperature: float = 0.1

    summary: ClassVar[str] = "predicts a centered, sharpened moving average's prototypes, clean and attacked"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.streams == "a2a" and self.local_crops:
            raise ValueError(
                f"streams is 'a2a' and local_crops {self.local_crops}: local crops are a part of the clean stream, "
                "expected 0"
            )
