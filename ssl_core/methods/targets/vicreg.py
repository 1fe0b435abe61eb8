"""VICReg: variance, invariance and covariance of the embeddings."""

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from astra_gym.ssl_core.attacks.pgd import Objective
from astra_gym.ssl_core.losses.redundancy import vicreg, vicreg_marginal
from astra_gym.ssl_core.methods.targets.target import AdversarialStreams, Target
from astra_gym.ssl_core.methods.traits import LossTraits
from astra_gym.ssl_core.utils.finite import check_number


@dataclass(frozen=True)
class CleanVICReg(Target):
    """VICReg (Bardes et al. 2022) as in solo-learn, without an attack.

    `L = sim_coeff * mean (z1 - z2)^2 + sum over both views of [std_coeff * mean_d relu(1 - s_d) + cov_coeff / d *
    sum_{i != j} C_ij^2]`, s and C being the embeddings' deviations and covariances over the batch, see
    `astra_gym.ssl_core.losses.redundancy`. The authors' code weights the variance half as much.

    Args:
        temperature: not used, this loss has none.
        sim_coeff: weight of the invariance, 0 or more.
        std_coeff: weight of the variance, 0 or more.
        cov_coeff: weight of the covariance, 0 or more.
    """

    sim_coeff: float = 25.0
    std_coeff: float = 25.0
    cov_coeff: float = 1.0

    paper: ClassVar[str] = "Bardes et al., ICLR 2022"
    summary: ClassVar[str] = "vicreg without an attack"
    loss: ClassVar[LossTraits] = replace(Target.loss, has_temperature=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("sim_coeff", "std_coeff", "cov_coeff"):
            check_number(name, getattr(self, name))

    @property
    def coefficients(self) -> tuple[float, float, float]:
        """The three weights."""
        return self.sim_coeff, self.std_coeff, self.cov_coeff

    def objective(self, z: Tensor) -> Tensor:
        """Each view's share of the loss, (2N,)."""
        return vicreg(z, *self.coefficients, reduction="none")


@dataclass(frozen=True)
class VICReg(AdversarialStreams, CleanVICReg):
    """VICReg (Bardes et al. 2022): `CleanVICReg` with `AdversarialStreams`.

    The loss is not a sum over views, so a view's share of it also moves when other views are attacked. The reward's
    `clean` is a clean view's share; their mean is the loss of the clean views, 0 or more. `adversarial` adds the
    *marginal* change: 2N times what the loss of the clean views changes by when this view alone becomes its attacked
    version. So `adversarial - clean` depends on a view's own attack alone. It has no bound, since embeddings are not
    normalized, and is negative where an attack lowers the loss, for instance by more variance.

    Args:
        temperature: not used, this loss has none.
        sim_coeff, std_coeff, cov_coeff: as in `CleanVICReg`.
        streams: "ds" or "a2a", see `AdversarialStreams`.
    """

    summary: ClassVar[str] = "variance, invariance and covariance of embeddings, clean and attacked; no negatives"

    def reward_terms(self, objective: Objective, clean: Tensor, adversarial: Tensor) -> dict[str, Tensor]:
        """A clean view's share of the loss, and the same plus the marginal change by its attack, (2N,) each."""
        share = objective(clean)
        return {"adversarial": share + vicreg_marginal(clean, adversarial, *self.coefficients), "clean": share}
