"""RoCL: the first adversarial contrastive method, with one attacked view as a third version of the image."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from astra_gym.ssl_core.attacks.pgd import ConstantBudget, Objective
from astra_gym.ssl_core.losses.multiview import multi_view_nt_xent
from astra_gym.ssl_core.methods.base import Method, Networks
from astra_gym.ssl_core.methods.traits import LossTraits, Routes
from astra_gym.ssl_core.settings import renamed
from astra_gym.ssl_core.utils.finite import check_number


@dataclass(frozen=True)
class RoCL(Method):
    """Robust contrastive learning (Kim et al. 2020): one batch-norm route, three versions of an image.

    Of the views t and t' of an image (rows 2k and 2k+1) only t is attacked, against t'. With `NTX_v` the sum of a row's
    v - 1 positive terms, averaged over all rows (`astra_gym.ssl_core.losses.multiview.multi_view_nt_xent`),

    `L = NTX_3({t, t', adv}) + (1 / regularizer) * NTX_2({adv, t'})`.

    In every similarity the second operand is detached. As in the released code each term has a separate pass in train
    mode, the second term's first: 2b images, then 3b, in one batch of batch norm each. Both passes update the running
    statistics.

    The attack maximizes, for each attacked view, its row of `NTX_2` over all t + d and all t'; the t' are encoded once.
    The released code adds the rows of the t' and takes the mean. That is the same attack: these rows reach t + d only
    through detached operands, and a factor does not change a sign. The gradient goes only through the attacked row's
    embedding, not through the rows of other attacked views, where it is a negative.

    The released code computes the attack and NTX_2 over the 256 images of each of its two GPUs, and NTX_3 over all 512;
    here all are over the whole batch.

    The reward is NT-Xent of t and t', a row for each view t, attacked or clean: between 0 and log(2b - 1) + 2 /
    temperature, with b images in a batch.

    Args:
        temperature: temperature of both terms and of the attack, positive.
        regularizer: lambda, positive; the weight is 1 / lambda, so a larger one regularizes less (256 as released).
    """

    RENAMED: ClassVar[Mapping[str, str]] = renamed.ROCL_OPTIONS

    regularizer: float = 256.0

    paper: ClassVar[str] = "Kim et al., NeurIPS 2020"
    summary: ClassVar[str] = "one view attacked against the other, NT-Xent of three versions of an image"
    routes: ClassVar[Routes] = Routes.single("normal")
    loss: ClassVar[LossTraits] = LossTraits(paired=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("regularizer", self.regularizer, above=True)

    @property
    def attacked_per_image(self) -> int:
        return 1

    def attacked(self, views: Tensor) -> Tensor:
        """The views t, (b, 3, h, w)."""
        return views[0::2]

    def default_budget(self, step: int) -> ConstantBudget:
        """The released epsilon 0.0314 and 7 steps of 0.007, which are not quite 8/255 and 2/255."""
        return ConstantBudget(epsilon=0.0314, step_size=0.007, steps=7)

    def objective(self, z: Tensor) -> Tensor:
        """Not defined without the clean views: see `objective_for`."""
        raise NotImplementedError("RoCL attacks a view against its partner: its objective is objective_for's")

    def objective_for(self, networks: Networks, views: Tensor) -> Objective:
        """NT-Xent between the embeddings of t and those of t', (b,): the rows of t."""
        partners = networks(views[1::2], self.routes.clean).embeddings
        return lambda z: self.contrast(z, partners)[0::2]

    def contrast(self, *versions: Tensor) -> Tensor:
        """`NTX_v` of v versions of b images, embeddings (b, d) each: (v * b,), rows of an image together."""
        rows = torch.stack(versions, dim=1).flatten(0, 1)
        return multi_view_nt_xent(rows, len(versions), self.temperature, stop=True, reduction="none")

    def losses(self, networks: Networks, views: Tensor, adversarial: Tensor | None) -> dict[str, Tensor]:
        """`contrastive`: NTX_3; `regularizer`: NTX_2 before its weight."""
        first, second, attacked = views[0::2], views[1::2], self.given(adversarial)
        pair = networks(torch.cat([attacked, second]), self.routes.attack).embeddings.chunk(2)
        triple = networks(torch.cat([first, second, attacked]), self.routes.attack).embeddings.chunk(3)
        return {"contrastive": self.contrast(*triple), "regularizer": self.contrast(*pair)}

    @property
    def weights(self) -> Mapping[str, float]:
        return {"contrastive": 1.0, "regularizer": 1 / self.regularizer}
