"""Barlow Twins: the correlations of both views' embeddings become the identity."""

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from astra_gym.ssl_core.attacks.pgd import Objective
from astra_gym.ssl_core.losses.redundancy import barlow_twins, barlow_twins_marginal
from astra_gym.ssl_core.methods.targets.target import AdversarialStreams, Target
from astra_gym.ssl_core.methods.traits import LossTraits
from astra_gym.ssl_core.utils.finite import check_number


@dataclass(frozen=True)
class CleanBarlowTwins(Target):
    """Barlow Twins (Zbontar et al. 2021), without an attack.

    `L = scale * [sum_i (1 - C_ii)^2 + lambda_param * sum_{i != j} C_ij^2]`, C being the correlations of first and
    second views over the batch, see `astra_gym.ssl_core.losses.redundancy`.

    Args:
        temperature: not used, this loss has none.
        lambda_param: weight beside the diagonal, 0 or more. The sum there grows with the square of the dimension d of
            the embeddings: .0051 belongs to the authors' 8192 and solo-learn's 2048. For small networks, where nothing
            is published, the presets keep its product with d - 1.
        scale_loss: factor of the loss, positive (.1 in solo-learn's CIFAR settings, 1 in the authors' code).
    """

    lambda_param: float = 0.0051
    scale_loss: float = 0.1

    paper: ClassVar[str] = "Zbontar et al., ICML 2021"
    summary: ClassVar[str] = "barlow without an attack"
    loss: ClassVar[LossTraits] = replace(Target.loss, has_temperature=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("lambda_param", self.lambda_param)
        check_number("scale_loss", self.scale_loss, above=True)

    def objective(self, z: Tensor) -> Tensor:
        """Each view's share of the loss, (2N,), the same for both views of an image."""
        return barlow_twins(z, self.lambda_param, self.scale_loss, reduction="none")


@dataclass(frozen=True)
class BarlowTwins(AdversarialStreams, CleanBarlowTwins):
    """Barlow Twins (Zbontar et al. 2021): `CleanBarlowTwins` with `AdversarialStreams`.

    The loss is not a sum over views, so a view's share of it also moves when other views are attacked. The reward's
    `clean` is a clean view's share; their mean is the loss of the clean views, in [0, scale_loss * d * (4 +
    lambda_param * (d - 1))], d being the dimension of the embeddings. `adversarial` adds the *marginal* change: 2N
    times what the loss of the clean views changes by when this view alone becomes its attacked version (of its
    standardized embedding). So `adversarial - clean` depends on a view's own attack alone. It has no bound but those of
    the loss times 2N, and is negative where an attack lowers the loss.

    Args:
        temperature: not used, this loss has none.
        lambda_param, scale_loss: as in `CleanBarlowTwins`.
        streams: "ds" or "a2a", see `AdversarialStreams`.
    """

    summary: ClassVar[str] = "both views' embeddings correlate like the identity, clean and attacked; no negatives"

    def reward_terms(self, objective: Objective, clean: Tensor, adversarial: Tensor) -> dict[str, Tensor]:
        """A clean view's share of the loss, and the same plus the marginal change by its attack, (2N,) each."""
        share = objective(clean)
        change = barlow_twins_marginal(clean, adversarial, self.lambda_param, self.scale_loss)
        return {"adversarial": share + change, "clean": share}
