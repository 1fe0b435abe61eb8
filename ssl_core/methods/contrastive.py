"""SimCLR, and the adversarial methods with its views and its loss: ACL, ASTrA and ASTrA++."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from astra_gym.ssl_core.attacks.pgd import Objective
from astra_gym.ssl_core.losses.contrastive import MIXED_READINGS, mixed_nt_xent, nt_xent
from astra_gym.ssl_core.methods.base import Method, Networks
from astra_gym.ssl_core.methods.traits import AttackTraits, LossTraits, Routes
from astra_gym.ssl_core.utils.finite import check_number
from astra_gym.ssl_core.utils.messages import shown
from astra_gym.ssl_core.utils.registry import pick

STREAMS: Mapping[str, str] = {
    "ds": "dual stream: NT-Xent of the clean views and NT-Xent of the attacked views",
    "a2a": "adversarial to adversarial: NT-Xent of the attacked views only",
    "a2s": "adversarial to standard: NT-Xent between the first view, attacked, and the second, clean",
}
"""ACL's variants, and what each contrasts (Jiang et al. 2020)."""


@dataclass(frozen=True)
class SimCLR(Method):
    """Contrastive learning without an attack (Chen et al. 2020): the control for all methods with attacks."""

    paper = "Chen et al., ICML 2020"
    summary = "two clean views of an image are contrasted with the rest of the batch, no attack"
    routes = Routes.single("normal")
    attack = AttackTraits(exists=False)

    def losses(self, networks: Networks, views: Tensor, adversarial: Tensor | None) -> dict[str, Tensor]:
        """NT-Xent of the clean views."""
        return {"clean": self.objective(networks(views, self.routes.clean).embeddings)}

    @property
    def weights(self) -> Mapping[str, float]:
        return {"clean": 1.0}


@dataclass(frozen=True)
class ACL(Method):
    """Adversarial contrastive learning (Jiang et al. 2020) in its three variants.

    The authors' best, and the only one that they released, is the dual stream: L = (NTX(clean) + NTX(attacked)) / 2.
    "a2a" is L = NTX(attacked), all on "pgd", which is then the network's only route. "a2s" attacks the first view of
    each image: L = NTX over pairs of it on the route "pgd" and the clean second view on the route "normal". The exact
    form of these two is not released; they follow the paper's figure.

    The reward is the NT-Xent of each attacked view, between 0 and log(2N - 1) + 2 / temperature. With "a2s" it is the
    mean of an image's two rows, so that the attack maximizes L; the clean second view is not changed.

    Args:
        temperature: temperature of the contrastive losses, positive.
        streams: "ds", "a2a" or "a2s", see `STREAMS`.
    """

    streams: str = "ds"

    paper: ClassVar[str] = "Jiang et al., NeurIPS 2020"
    summary: ClassVar[str] = "clean views contrasted on one route, jointly attacked ones on another"

    def __post_init__(self) -> None:
        super().__post_init__()
        pick(self.streams, STREAMS, "streams of ACL")

    @property
    def routes(self) -> Routes:  # type: ignore[override]
        """Two routes; only the attack's for "a2a", which trains on no clean images."""
        return Routes.single("pgd") if self.streams == "a2a" else Routes()

    @property
    def loss(self) -> LossTraits:  # type: ignore[override]
        """NT-Xent; in "a2s" the two views of an image do not go through the network together."""
        return LossTraits(paired=self.streams != "a2s")

    @property
    def attacked_per_image(self) -> int:
        return 1 if self.streams == "a2s" else 2

    def attacked(self, views: Tensor) -> Tensor:
        """All views; in "a2s" the first of each image, row 2k of image k."""
        return views[0::2] if self.streams == "a2s" else views

    @property
    def retrieves(self) -> bool:
        """Whether the attacked views are contrasted with each other: not in "a2s", nor by another objective."""
        kind = type(self)
        own = kind.objective is Method.objective and kind.objective_for is ACL.objective_for
        return own and self.streams != "a2s"

    def objective_for(self, networks: Networks, views: Tensor) -> Objective:
        """NT-Xent of each attacked view, (2b,); in "a2s" of pairs with the unchanged clean second views, the mean of an
        image's two rows, (b,)."""
        if self.streams != "a2s":
            return self.objective
        partners = networks(views[1::2], self.routes.clean).embeddings
        return lambda z: self.crossed(z, partners).view(-1, 2).mean(dim=1)

    def crossed(self, attacked: Tensor, clean: Tensor) -> Tensor:
        """NT-Xent between two branches (Jiang et al. 2020, "A2S"); row k of both is a pair.

        Args:
            attacked: embeddings (b, d) of the attacked first views.
            clean: embeddings (b, d) of the clean second views.

        Returns:
            (2b,); rows 2k and 2k+1 are the attacked and the clean view of image k.
        """
        return nt_xent(torch.stack([attacked, clean], dim=1).flatten(0, 1), self.temperature, reduction="none")

    def losses(self, networks: Networks, views: Tensor, adversarial: Tensor | None) -> dict[str, Tensor]:
        """`clean`: NT-Xent of the clean views on their route; `adversarial`: of the attacked views on theirs.

        "a2a" and "a2s" have only the second, "a2s" as `crossed`.
        """
        if self.streams == "ds":
            clean, attacked = self.both_streams(networks, views, adversarial)
            return {"clean": self.objective(clean), "adversarial": self.objective(attacked)}
        attacked = networks(self.given(adversarial), self.routes.attack).embeddings
        if self.streams == "a2a":
            return {"adversarial": self.objective(attacked)}
        return {"adversarial": self.crossed(attacked, networks(views[1::2], self.routes.clean).embeddings)}

    def both_streams(self, networks: Networks, views: Tensor, adversarial: Tensor | None) -> tuple[Tensor, Tensor]:
        """Embeddings of the clean and of the attacked views."""
        attacked = self.given(adversarial)
        clean = networks(views, self.routes.clean).embeddings
        return clean, networks(attacked, self.routes.attack).embeddings

    @property
    def weights(self) -> Mapping[str, float]:
        return {"clean": 0.5, "adversarial": 0.5} if self.streams == "ds" else {"adversarial": 1.0}


@dataclass(frozen=True)
class ASTrA(ACL):
    """Adversarial self-supervised training with adaptive attacks (ICLR 2025): ACL and a mixed contrastive loss.

    L = (NTX(clean) + NTX(attacked)) / 2 + mixed_weight * mixed(clean, attacked).

    Args:
        temperature: temperature of the contrastive losses, positive.
        streams: "ds", ACL's dual stream, the only choice here.
        mixed_weight: weight of the mixed loss, 0.5 in the released run.
        mixed_reading: "pairs" (released code) or "views" (paper's figure), see
            `astra_gym.ssl_core.losses.contrastive.mixed_nt_xent`.
    """

    mixed_weight: float = 0.5
    mixed_reading: str = "pairs"

    paper: ClassVar[str] = "ASTrA, ICLR 2025"
    summary: ClassVar[str] = "ACL, and a mixed loss that pairs each clean view with its attacked version"
    attack: ClassVar[AttackTraits] = AttackTraits(start_radius=8 / 255)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.streams != "ds":
            raise ValueError(
                f"streams is {shown(self.streams)}: {type(self).__name__} contrasts clean and attacked views and takes "
                f"'ds' only; {', '.join(STREAMS)} are choices of ACL"
            )
        check_number("mixed_weight", self.mixed_weight, 0, math.inf, "0 or more")
        pick(self.mixed_reading, MIXED_READINGS, "mixed reading")

    def losses(self, networks: Networks, views: Tensor, adversarial: Tensor | None) -> dict[str, Tensor]:
        """ACL's two terms and the mixed term."""
        clean, attacked = self.both_streams(networks, views, adversarial)
        return {
            "clean": self.objective(clean),
            "adversarial": self.objective(attacked),
            "mixed": self.mixed(clean, attacked),
        }

    def mixed(self, clean: Tensor, adversarial: Tensor) -> Tensor:
        """The mixed contrastive loss of each view, (2N,)."""
        return mixed_nt_xent(clean, adversarial, self.temperature, self.mixed_reading, reduction="none")

    def reward_terms(self, objective: Objective, clean: Tensor, adversarial: Tensor) -> dict[str, Tensor]:
        """ACL's two terms and the mixed term, which has weight 0 in the released run."""
        return super().reward_terms(objective, clean, adversarial) | {"mixed": self.mixed(clean, adversarial)}

    @property
    def weights(self) -> Mapping[str, float]:
        return {"clean": 0.5, "adversarial": 0.5, "mixed": self.mixed_weight}


@dataclass(frozen=True)
class ASTrAPlus(ASTrA):
    """ASTrA++: ASTrA, and DynACL++'s post-processing after it.

    Not verified: ASTrA's paper has results under this name, but no definition was found, and the released code lacks
    it. This version is inferred from the name alone, by analogy with DynACL++.
    """

    summary: ClassVar[str] = "ASTrA, then pseudo labels and adversarial fine-tuning (a reading of its name)"
    post_processed: ClassVar[bool] = True
