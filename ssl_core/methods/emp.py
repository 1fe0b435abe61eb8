"""Robust multi-crop learning: EMP-SSL by PGD, and CF-AMC-SSL by free adversarial training."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from astra_gym.ssl_core.attacks.pgd import ConstantBudget
from astra_gym.ssl_core.losses.multiview import emp_ssl
from astra_gym.ssl_core.methods.base import Method, Networks
from astra_gym.ssl_core.methods.traits import AttackTraits, LossTraits, Routes
from astra_gym.ssl_core.transforms.multi_crop import CropSettings, multi_crops
from astra_gym.ssl_core.transforms.views import ViewSettings
from astra_gym.ssl_core.utils.finite import check_number
from astra_gym.ssl_core.utils.messages import shown
from astra_gym.ssl_core.utils.training_plan import Moment

_SCALE_SPAN = 0.92
"""Range of a crop's area at strength 1: it keeps at least 0.08, as in the authors' code."""
_PATCH_SCALE = 0.25
"""Area of a patch: a quarter, 16 x 16 pixels of 32 x 32."""
_RARELY = 0.1
"""Default probability of blur, and of solarization, at strength 1."""


@dataclass(frozen=True)
class EMPSSL(Method):
    """EMP-SSL (Tong et al. 2023) on attacked crops alone, the slow variant in CF-AMC-SSL's paper.

    `L = -invariance * mean cos(z_i, mean of the image's z) - mean over i of R(Z_i)` over the n crops of every image,
    where R is the total coding rate (see `astra_gym.ssl_core.losses.multiview`). All n * b crops of a batch are
    attacked jointly: from no perturbation, 5 steps of 0.01 within 8/255, with batch norm in train mode. There is one
    batch-norm route, and clean images are not trained on.

    The reward's terms are rows of L, and their mean is L: "adversarial" on the attacked crops, "clean" on the clean
    ones, both in the attack's train mode. They are between -invariance - R_max and invariance, with
    `R_max = min(b, d) / 2 * log(1 + d / (min(b, d) * epsilon))`, and usually near -invariance: two orders of magnitude
    larger than an NT-Xent.

    Args:
        temperature: not used, this loss has none.
        crops: number n of crops of each image, two or more (16; EMP-SSL uses 20 or 200).
        patches: true: crops have a quarter of the area and ratio 1 at any strength (EMP-SSL). False: they have at least
            1 - 0.92 * strength of the area and ratio 3/4 to 4/3 (CF-AMC-SSL's better variant).
        invariance: weight of the agreement.
        epsilon: epsilon of the coding rate, not squared, as in the released code; not the attack's epsilon.
    """

    crops: int = 16
    patches: bool = False
    invariance: float = 200.0
    epsilon: float = 0.2

    paper = "Ghofrani & Jamshidi 2025, after Tong et al. 2023"
    summary = "many small crops of an image, all attacked jointly by PGD; total coding rate"
    routes = Routes.single("normal")
    attack = AttackTraits(mode="train", start_radius=0.0)
    loss = LossTraits(paired=False, nt_xent_based=False, has_temperature=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        expected = "two or more, since an image's are compared with their mean"
        check_number("crops", self.crops, 2, expected=expected, whole=True)
        if type(self.patches) is not bool:
            raise ValueError(f"patches is {shown(self.patches)}: expected true or false")
        check_number("invariance", self.invariance)
        check_number("epsilon, the coding rate's,", self.epsilon, above=True)

    def crop_settings(self, settings: ViewSettings) -> CropSettings:
        """Settings of a run's crops: the authors' at strength 1; at strength 0 nothing but the patches and the flip.

        A run's `crop` replaces the area of crops, but not of patches. A run's probabilities of blur and solarization
        replace the authors'. All ranges and probabilities except the flip's are multiplied by the strength.
        """
        if self.patches:
            return CropSettings.of_views(settings, (_PATCH_SCALE, _PATCH_SCALE), (1.0, 1.0), _RARELY)
        scale = (1 - _SCALE_SPAN * settings.strength, 1.0) if settings.crop is None else settings.crop
        return CropSettings.of_views(settings, scale, settings.ratio, _RARELY)

    @property
    def idle(self) -> Mapping[str, str]:
        """The area of a crop, if crops are patches."""
        return {"crop_scale": "patches have a quarter of the area"} if self.patches else {}

    @property
    def views_per_image(self) -> int:
        """Number of crops."""
        return self.crops

    @property
    def attacked_per_image(self) -> int:
        """Number of crops: all are attacked."""
        return self.crops

    def make_views(self, images: Tensor, settings: ViewSettings, moment: Moment, generator: torch.Generator) -> Tensor:
        """Make crops (n * b, 3, h, w); rows n * k to n * k + n - 1 are those of image k."""
        return multi_crops(images, self.crops, self.crop_settings(settings), generator)

    def default_budget(self, step: int) -> ConstantBudget:
        """Epsilon 8/255, 5 steps of 0.01."""
        return ConstantBudget(epsilon=8 / 255, step_size=1e-2, steps=5)

    def objective(self, z: Tensor) -> Tensor:
        """EMP-SSL's loss of each crop, (n * b,)."""
        return emp_ssl(z, self.crops, self.invariance, self.epsilon, reduction="none")

    def losses(self, networks: Networks, views: Tensor, adversarial: Tensor | None) -> dict[str, Tensor]:
        """EMP-SSL's loss of the attacked crops alone."""
        attacked = self.given(adversarial)
        return {"adversarial": self.objective(networks(attacked, self.routes.attack).embeddings)}

    @property
    def weights(self) -> Mapping[str, float]:
        return {"adversarial": 1.0}


@dataclass(frozen=True)
class CFAMCSSL(EMPSSL):
    """CF-AMC-SSL (Ghofrani & Jamshidi 2025): EMP-SSL with free adversarial training (Shafahi et al. 2019).

    A batch gets m consecutive updates (replays). The backward pass of each also gives the next step of the attack: an
    update costs no attack, only a forward pass for the reward. Perturbations start at 0 and are carried from batch to
    batch. A step of the environment is one replay. A budget's `steps` are the number of a batch's replays in which its
    view moves, 0 to m; m or more: all. `epsilon` and `step_size` are those of a replay, and the carried perturbation is
    clipped to the present `epsilon`.

    The reward is measured on perturbations moved by the previous update's gradient, which the action did not choose.

    The learning rate's schedule counts updates, m per batch, and falls once over the run. The released code measures
    the schedule's length in batches but steps it m times per batch, so that its cosine rises again after 1/m of the
    training.

    Args:
        temperature, crops, patches, invariance, epsilon: as `EMPSSL`.
        m: updates of a batch, 1 or more (3 in the paper's runs, 5 by default in its code).
    """

    m: int = 3

    paper = "Ghofrani & Jamshidi 2025 (arXiv 2501.03507)"
    summary = "EMP-SSL by free adversarial training: m updates a batch, each the attack's next step"
    attack = replace(EMPSSL.attack, free=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("m", self.m, 1, expected="an integer of 1 or more, the updates of a batch", whole=True)

    @property
    def replays(self) -> int:
        """Number of updates of a batch, m."""
        return self.m

    def default_budget(self, step: int) -> ConstantBudget:
        """Epsilon 8/255, step 0.01 in all replays. At least 3 steps, which every kind of action offers; more than m is
        the same as m."""
        return ConstantBudget(epsilon=8 / 255, step_size=1e-2, steps=max(self.m, 3))
