"""Extreme multi-patch learning, made robust: EMP-SSL by PGD, and CF-AMC-SSL by free adversarial training."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from astra_gym.ssl_core.attacks.pgd import ConstantBudget
from astra_gym.ssl_core.losses.multiview import emp_ssl
from astra_gym.ssl_core.methods.base import Method, Networks
from astra_gym.ssl_core.transforms.multi_crop import CropSettings, multi_crops
from astra_gym.ssl_core.transforms.views import ViewSettings
from astra_gym.ssl_core.utils.finite import check_number
from astra_gym.ssl_core.utils.messages import shown
from astra_gym.ssl_core.utils.training_plan import Moment

_SCALE_SPAN = 0.92
"""At strength 1 a crop keeps 0.08 of the area or more, as the authors' do."""
_PATCH_SCALE = 0.25
"""A patch keeps a quarter of the area: 16 x 16 pixels of 32 x 32."""
_RARELY = 0.1
"""At strength 1 so many crops are blurred, and so many solarised."""


@dataclass(frozen=True)
class EMPSSL(Method):
    """EMP-SSL (Tong et al. 2023) on attacked crops alone, the slow arm of CF-AMC-SSL's paper.

    `L = -invariance * mean cos(z_i, mean of the image's z) - mean over i of R(Z_i)` over the n crops of every image, R
    the total coding rate (see `astra_gym.ssl_core.losses.multiview`). All n * b crops of a batch are attacked jointly:
    from no perturbation, 5 steps of 0.01 within 8/255, with batch norm in train mode. There is one batch-norm route,
    and no clean image is trained on.

    The reward's terms are rows of L, whose mean is L: "adversarial" on the attacked crops, "clean" on the clean ones,
    both in the attack's train mode. They lie between -invariance - R_max and invariance, with R_max = min(b, d) / 2 *
    log(1 + d / (min(b, d) * epsilon)), and near -invariance as a rule: two orders larger than an NT-Xent.

    Args:
        temperature: without effect, there is no temperature in the loss.
        crops: n of each image, two or more (16; EMP-SSL's own 20 or 200).
        patches: whether they are patches of a quarter of the area and of ratio 1, at any strength (EMP-SSL's own), or
            crops of any size from 1 - 0.92 * strength of the area on, ratio 3/4 to 4/3 (CF-AMC-SSL's better arm).
        invariance: weight of the agreement.
        epsilon: of the coding rate, which stands there unsquared, as in the released code; no attack's.
    """

    crops: int = 16
    patches: bool = False
    invariance: float = 200.0
    epsilon: float = 0.2

    paper = "Ghofrani & Jamshidi 2025, after Tong et al. 2023"
    summary = "many small crops of an image, all attacked jointly by PGD; total coding rate"
    routes = ("normal",)
    clean_route = "normal"
    attack_route = "normal"
    evaluation_route = "normal"
    attack_mode = "train"
    start_radius = 0.0
    paired = False
    nt_xent_based = False
    has_temperature = False

    def __post_init__(self) -> None:
        super().__post_init__()
        expected = "two or more, since an image's are compared with their mean"
        check_number("crops", self.crops, 2, expected=expected, whole=True)
        if type(self.patches) is not bool:
            raise ValueError(f"patches is {shown(self.patches)}: expected true or false")
        check_number("invariance", self.invariance)
        check_number("epsilon, the coding rate's,", self.epsilon, above=True)

    def crop_settings(self, settings: ViewSettings) -> CropSettings:
        """How a run's crops are made: the authors' own at strength 1, none but the patches' at 0.

        A run's own crop takes the place of the crops' area, not of the patches', and a run's own probability of blur or
        solarisation that of the authors'; all reaches and probabilities but the flip's are times the strength.
        """
        s = settings.strength
        brightness, contrast, saturation, hue = (s * reach for reach in settings.jitter)
        scale = (1 - _SCALE_SPAN * s, 1.0) if settings.crop is None else settings.crop
        return CropSettings(
            scale=(_PATCH_SCALE, _PATCH_SCALE) if self.patches else scale,
            ratio=(1.0, 1.0) if self.patches else settings.ratio,
            flip=settings.flip,
            jitter=(brightness, contrast, saturation, hue),
            jitter_probability=s * settings.jitter_probability,
            gray_probability=s * settings.gray_probability,
            blur_probability=s * _given(settings.blur_probability),
            solarize_probability=s * _given(settings.solarize_probability),
            interpolation=settings.interpolation,
        )

    @property
    def views_per_image(self) -> int:
        """The crops."""
        return self.crops

    @property
    def attacked_per_image(self) -> int:
        """All crops."""
        return self.crops

    def make_views(self, images: Tensor, settings: ViewSettings, moment: Moment, generator: torch.Generator) -> Tensor:
        """The crops (n * b, 3, h, w), rows n * k to n * k + n - 1 those of image k."""
        return multi_crops(images, self.crops, self.crop_settings(settings), generator)

    def default_budget(self, step: int) -> ConstantBudget:
        """8/255, 0.01 and 5."""
        return ConstantBudget(epsilon=8 / 255, step_size=1e-2, steps=5)

    def objective(self, z: Tensor) -> Tensor:
        """EMP-SSL's loss, a value for each crop."""
        return emp_ssl(z, self.crops, self.invariance, self.epsilon, reduction="none")

    def losses(self, networks: Networks, views: Tensor, adversarial: Tensor | None) -> dict[str, Tensor]:
        """EMP-SSL's loss of the attacked crops alone."""
        attacked = self.given(adversarial)
        return {"adversarial": self.objective(networks(attacked, self.attack_route).embeddings)}

    @property
    def weights(self) -> Mapping[str, float]:
        return {"adversarial": 1.0}


def _given(probability: float | None) -> float:
    return _RARELY if probability is None else probability


@dataclass(frozen=True)
class CFAMCSSL(EMPSSL):
    """CF-AMC-SSL (Ghofrani & Jamshidi 2025): EMP-SSL with free adversarial training (Shafahi et al. 2019).

    A batch gets m updates in a row. The backward pass of each also gives the next step of the attack, so that an update
    costs no attack, only a forward pass for the reward; perturbations start at 0 and are carried from batch to batch. A
    play is one replay. A budget's `steps` say in how many of a batch's replays its view still moves, 0 to m: from m on
    in all; `epsilon` and `step_size` are those of a replay, and the carried perturbation is clipped to the present
    `epsilon`.

    Within a batch a play's reward is that of perturbations which the last update's gradient has moved: an action is
    judged on what it makes of a slope that it did not choose.

    The learning rate's schedule counts updates, of which an epoch has m a batch, and falls once over the run. The
    released code counts batches in the schedule's length but steps it m times a batch, so that its cosine rises again
    after 1/m of the training.

    Args:
        m: updates of a batch (3 in the paper's runs, 5 by default in its code).
    """

    m: int = 3

    paper = "Ghofrani & Jamshidi 2025 (arXiv 2501.03507)"
    summary = "EMP-SSL by free adversarial training: m updates a batch, each the attack's next step"
    free = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("m", self.m, 1, expected="an integer of 1 or more, the updates of a batch", whole=True)

    @property
    def replays(self) -> int:
        """m."""
        return self.m

    def default_budget(self, step: int) -> ConstantBudget:
        """8/255, 0.01 in every replay; no fewer than 3 steps, so that every kind of actions has them, is as good."""
        return ConstantBudget(epsilon=8 / 255, step_size=1e-2, steps=max(self.m, 3))
