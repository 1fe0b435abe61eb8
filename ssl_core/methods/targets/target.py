"""Bases of all targets: the loss of a framework on clean views, and the adversarial streams of ACL with it."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from astra_gym.ssl_core.methods.base import Method, Networks
from astra_gym.ssl_core.methods.traits import AttackTraits, LossTraits, Routes
from astra_gym.ssl_core.utils.messages import shown

STREAMS = {
    "ds": "dual stream, half the loss of the clean views and half that of the attacked ones",
    "a2a": "the loss of the attacked views alone",
}
"""ACL's streams that these frameworks have, and what each trains on."""


@dataclass(frozen=True)
class Target(Method):
    """Base of a framework as published, without an attack: the control of its adversarial form, and a teacher.

    Both views of an image go through the network in one batch, as in ACL, not one after the other.
    """

    routes: ClassVar[Routes] = Routes.single("normal")
    attack: ClassVar[AttackTraits] = AttackTraits(exists=False)
    loss: ClassVar[LossTraits] = LossTraits(nt_xent_based=False)
    scale: ClassVar[float] = 1.0
    """Factor of the mean over the views, for a framework whose loss is a sum over views."""

    @abstractmethod
    def objective(self, z: Tensor) -> Tensor: ...

    def stream(self, networks: Networks, views: Tensor, route: str) -> Tensor:
        """The training loss of views (2b, 3, h, w) on a route, (2b,); here the objective of their embeddings."""
        return self.objective(networks(views, route).embeddings)

    def losses(self, networks: Networks, views: Tensor, adversarial: Tensor | None) -> dict[str, Tensor]:
        """`clean`: the framework's loss of the clean views."""
        return {"clean": self.stream(networks, views, self.routes.clean)}

    @property
    def weights(self) -> Mapping[str, float]:
        return {"clean": self.scale}


@dataclass(frozen=True)
class AdversarialStreams(Target):
    """Adversarial streams as in ACL, to be put before a target: `class MyTarget(AdversarialStreams, CleanMyTarget)`.

    "ds": `L = (L(clean) + L(attacked)) / 2`, each on its own batch-norm route; "a2a": `L(attacked)`, all on one route.
    Both views are attacked jointly, and the attack maximizes the framework's loss. No paper defines these pairings,
    unless the framework's class names one: they are ACL's streams with another framework's loss. A default of
    `temperature` that the target changes has to be given again, since this class has one too.

    Args:
        temperature: as in `Method`.
        streams: "ds" or "a2a". ACL's "a2s" is refused: it compares an attacked with a clean view, and no paper says
            which branch of these frameworks takes the attacked one.
    """

    streams: str = "ds"

    attack: ClassVar[AttackTraits] = AttackTraits()

    def __post_init__(self) -> None:
        super().__post_init__()
        choices = " or ".join(f"{shown(name)} ({what})" for name, what in STREAMS.items())
        if self.streams == "a2s":
            raise ValueError(
                "streams is 'a2s', an attacked view against a clean one: of this framework's two branches no paper "
                f"says which takes the attacked view; expected {choices}"
            )
        if self.streams not in STREAMS:
            raise ValueError(f"streams is {shown(self.streams)}: expected {choices}")

    @property
    def routes(self) -> Routes:  # type: ignore[override]
        """Two routes; only the attack's for "a2a", which trains on no clean views."""
        return Routes() if self.streams == "ds" else Routes.single("pgd")

    def losses(self, networks: Networks, views: Tensor, adversarial: Tensor | None) -> dict[str, Tensor]:
        """`clean`, not for "a2a", and `adversarial`: the loss of the clean and attacked views, each on its route."""
        attacked = self.given(adversarial)
        clean = super().losses(networks, views, adversarial) if self.streams == "ds" else {}
        return clean | {"adversarial": self.stream(networks, attacked, self.routes.attack)}

    @property
    def weights(self) -> Mapping[str, float]:
        if self.streams == "a2a":
            return {"adversarial": self.scale}
        return {"clean": self.scale / 2, "adversarial": self.scale / 2}
