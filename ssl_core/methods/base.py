"""What a self-supervised (adversarial) method says of itself."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ssl_core.attacks import Encode
from ssl_core.losses import nt_xent
from ssl_core.networks import Encoded

Network = Callable[[Tensor, str], Encoded]
"""`network(images, route)`: all that a method may use of the target network, which may run in chunks or folded."""


@dataclass(frozen=True)
class Method(ABC):
    """A method composes pure losses, views, networks and an attack; it knows of no agent and of no training loop.

    Two views an image (rows 2k and 2k+1), NT-Xent on them, and an attack on all views jointly are the defaults here,
    because most of the field shares them; a method of another shape overrides what differs.

    Args:
        temperature: of the contrastive losses.
    """

    temperature: float = 0.5

    paper: ClassVar[str]
    """Where the method comes from, for lists."""
    routes: ClassVar[tuple[str, ...]] = ("normal", "pgd")
    """Batch-norm routes of the network."""
    clean_route: ClassVar[str] = "normal"
    """Route of clean images."""
    attack_route: ClassVar[str] = "pgd"
    """Route of attacked images, on which the attack itself runs."""
    evaluation_route: ClassVar[str] = "pgd"
    """Route that the encoder is evaluated on."""
    attacks: ClassVar[bool] = True
    """Whether the method attacks at all."""
    start_radius: ClassVar[float | None] = None
    """The attack's random start is uniform within this radius; None: within the view's own epsilon."""

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"temperature is {self.temperature}: expected a positive number")

    def num_attacked(self, batch_size: int) -> int:
        """How many views are attacked in a step on `batch_size` images."""
        return 2 * batch_size if self.attacks else 0

    def default_budget(self, step: int) -> tuple[float, float, int]:
        """The authors' own (epsilon, step_size, steps) at training step `step`: ACL's 8/255, 2/255 and 5."""
        return 8 / 255, 2 / 255, 5

    def encode(self, network: Network) -> Encode:
        """What the attack differentiates through, per image; `network(images, route)` is the network in eval mode."""
        return lambda images, rows: network(images, self.attack_route).embeddings

    def objective(self, z: Tensor) -> Tensor:
        """What the attack maximises: the contrastive loss of each attacked view, (2N,)."""
        return nt_xent(z, self.temperature, reduction="none")

    def reward_terms(self, clean: Tensor, adversarial: Tensor) -> dict[str, Tensor]:
        """Named per-view values (2N,) from the clean and the attacked embeddings of the same network, without gradient.

        `adversarial` and `clean` are the method's own loss on the attacked and on the clean views.
        """
        return {"adversarial": self.objective(adversarial), "clean": self.objective(clean)}

    @abstractmethod
    def losses(self, network: Network, views: Tensor, adversarial: Tensor | None) -> dict[str, Tensor]:
        """The training loss as named per-view terms; `adversarial` is None for a method without an attack."""

    @property
    @abstractmethod
    def weights(self) -> Mapping[str, float]:
        """The weight of each named term; the loss is the sum of weight times mean."""
