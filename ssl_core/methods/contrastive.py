"""SimCLR and the adversarial methods that share its views and its loss: ACL and ASTrA."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ssl_core.losses import mixed_nt_xent
from ssl_core.methods.base import Method, Network


@dataclass(frozen=True)
class SimCLR(Method):
    """Contrastive learning without an attack (Chen et al. 2020): the control that shows what attacks buy."""

    paper = "Chen et al., ICML 2020"
    routes = ("normal",)
    evaluation_route = "normal"
    attacks = False

    def losses(self, network: Network, views: Tensor, adversarial: Tensor | None) -> dict[str, Tensor]:
        """NT-Xent of the clean views."""
        return {"clean": self.objective(network(views, self.clean_route).embeddings)}

    @property
    def weights(self) -> Mapping[str, float]:
        return {"clean": 1.0}


@dataclass(frozen=True)
class ACL(Method):
    """Adversarial contrastive learning, dual stream (Jiang et al. 2020): L = (NTX(clean) + NTX(attacked)) / 2."""

    paper = "Jiang et al., NeurIPS 2020"

    def losses(self, network: Network, views: Tensor, adversarial: Tensor | None) -> dict[str, Tensor]:
        """NT-Xent of the clean views on their route and of the attacked views on theirs."""
        clean, attacked = self.streams(network, views, adversarial)
        return {"clean": self.objective(clean), "adversarial": self.objective(attacked)}

    def streams(self, network: Network, views: Tensor, adversarial: Tensor | None) -> tuple[Tensor, Tensor]:
        """Embeddings of the clean and of the attacked views."""
        if adversarial is None:
            raise ValueError(f"{type(self).__name__} trains on attacked views: none were given")
        clean = network(views, self.clean_route).embeddings
        return clean, network(adversarial, self.attack_route).embeddings

    @property
    def weights(self) -> Mapping[str, float]:
        return {"clean": 0.5, "adversarial": 0.5}


@dataclass(frozen=True)
class ASTrA(ACL):
    """Adversarial self-supervised training with adaptive attacks (ICLR 2025): ACL and a mixed contrastive loss.

    L = (NTX(clean) + NTX(attacked)) / 2 + mixed_weight * mixed(clean, attacked).

    Args:
        mixed_weight: 0.5 in the released run.
        mixed_reading: "pairs" (as coded) or "views" (as drawn): see `ssl_core.losses.mixed_nt_xent`.
    """

    mixed_weight: float = 0.5
    mixed_reading: str = "pairs"

    paper: ClassVar[str] = "ASTrA, ICLR 2025"
    start_radius: ClassVar[float | None] = 8 / 255

    def losses(self, network: Network, views: Tensor, adversarial: Tensor | None) -> dict[str, Tensor]:
        """ACL's two terms and the mixed one."""
        clean, attacked = self.streams(network, views, adversarial)
        return {
            "clean": self.objective(clean),
            "adversarial": self.objective(attacked),
            "mixed": self.mixed(clean, attacked),
        }

    def mixed(self, clean: Tensor, adversarial: Tensor) -> Tensor:
        """The mixed contrastive loss of each view, (2N,)."""
        return mixed_nt_xent(clean, adversarial, self.temperature, self.mixed_reading, reduction="none")

    def reward_terms(self, clean: Tensor, adversarial: Tensor) -> dict[str, Tensor]:
        """ACL's two terms and the mixed one, which the released run weighs with 0."""
        return super().reward_terms(clean, adversarial) | {"mixed": self.mixed(clean, adversarial)}

    @property
    def weights(self) -> Mapping[str, float]:
        return {"clean": 0.5, "adversarial": 0.5, "mixed": self.mixed_weight}
