"""The interface of a self-supervised (adversarial) method: its views, its attack, its loss."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from astra_gym.ssl_core.attacks.pgd import Budget, ConstantBudget, Encode, Objective
from astra_gym.ssl_core.losses.contrastive import nearest_is_partner, nt_xent
from astra_gym.ssl_core.methods.traits import AttackTraits, FormerFlags, LossTraits, NetworkTraits, Routes
from astra_gym.ssl_core.models.target_network import Encoded
from astra_gym.ssl_core.transforms.views import ViewSettings, two_views
from astra_gym.ssl_core.utils.finite import check_number
from astra_gym.ssl_core.utils.training_plan import Moment

Network = Callable[[Tensor, str], Encoded]
"""`network(images, route)`: features and embeddings. The network may run in chunks or folded."""
Head = Callable[[Tensor, str], Tensor]
"""`head(x, route)`: a module trained along with the target network."""


@dataclass(frozen=True)
class Networks:
    """The networks that a method may use; calling it, `networks(images, route)`, calls the target network.

    Args:
        target: the target network.
        heads: modules from `Method.make_heads`, trained along with the target.
        others: networks named in `NetworkTraits.others`, without gradient.
        tables: tensors from `Method.make_tables`.
        moment: position in the run of the coming update.
    """

    target: Network
    heads: Mapping[str, Head] = field(default_factory=dict)
    others: Mapping[str, Network] = field(default_factory=dict)
    tables: Mapping[str, Tensor] = field(default_factory=dict)
    moment: Moment = field(default_factory=Moment)

    def __call__(self, images: Tensor, route: str) -> Encoded:
        """Encode images (n, 3, h, w) in [0, 1] to features and embeddings, on a route of the target network."""
        return self.target(images, route)


@dataclass(frozen=True)
class Method(FormerFlags, ABC):
    """A self-supervised method: it composes views, an attack, networks and losses, without an agent or a training loop.

    The defaults, which most methods share, are two views per image (rows 2k and 2k+1), NT-Xent on these views, and a
    joint attack on all of them. A method that differs overrides them. A dataclass field is an option of the method
    (`--method_kwargs.NAME`).

    Args:
        temperature: temperature of the contrastive losses, positive.
    """

    temperature: float = 0.5

    paper: ClassVar[str]
    """Source of the method, for lists."""
    summary: ClassVar[str] = ""
    """Description in one line, for lists."""
    routes: ClassVar[Routes] = Routes()
    """The batch-norm routes."""
    attack: ClassVar[AttackTraits] = AttackTraits()
    """The attack, and whether there is one."""
    networks: ClassVar[NetworkTraits] = NetworkTraits()
    """The networks besides the target, and how networks and heads are kept."""
    loss: ClassVar[LossTraits] = LossTraits()
    """What others may rely on in the loss."""
    originals_per_image: ClassVar[int] = 0
    """Number of an image's views that are the image itself. They are the last rows of all views and are never
    augmented."""
    post_processed: ClassVar[bool] = False
    """Whether training ends with `astra_gym.ssl_core.downstream.postprocessing` (DynACL++)."""

    def __post_init__(self) -> None:
        check_number("temperature", self.temperature, above=True)

    @property
    def starts_from_teacher(self) -> bool:
        """Whether the target's backbone starts from the teacher's weights."""
        return False

    @property
    def idle(self) -> Mapping[str, str]:
        """Settings that change nothing, each with the reason: options of this method beside the values of others, and
        settings of the augmentations (`ViewsSection`). To give one is an error."""
        return {}

    # --- views -------------------------------------------------------------------------------------------------------

    @property
    def views_per_image(self) -> int:
        """Number of views that `make_views` makes of an image."""
        return 2

    @property
    def attacked_per_image(self) -> int:
        """Number of an image's views that `attacked` returns, at most two here. A method without an attack counts them
        too, since its environment observes them."""
        return min(2, self.views_per_image)

    @property
    def replays(self) -> int:
        """Number of consecutive updates on a batch: 1 except in free adversarial training."""
        return 1

    def num_attacked(self, batch_size: int) -> int:
        """Number of views that are attacked in a step on `batch_size` images."""
        return self.attacked_per_image * batch_size if self.attack.exists else 0

    def make_views(self, images: Tensor, settings: ViewSettings, moment: Moment, generator: torch.Generator) -> Tensor:
        """Make all views of images (b, 3, h, w) in [0, 1], (views_per_image * b, 3, h, w).

        The order of the rows is up to the method, but their number must determine b. Here: two strong views per image,
        rows 2k and 2k+1 those of image k.

        Args:
            moment: position in the run of the update that uses the views.
            generator: random generator on the CPU.
        """
        return two_views(images, settings, generator)

    def attacked(self, views: Tensor) -> Tensor:
        """Select the views to attack, still clean, (num_attacked, 3, h, w), from all views (v, 3, h, w); here all.

        Views of one image are consecutive. A view that is attacked in more than one way appears more than once.
        """
        return views

    # --- the attack --------------------------------------------------------------------------------------------------

    def default_budget(self, step: int) -> ConstantBudget:
        """The authors' budget at training step `step`: ACL's 8/255, 5 steps of 2/255."""
        return ConstantBudget(epsilon=8 / 255, step_size=2 / 255, steps=5)

    def budget_at(self, step: int) -> ConstantBudget:
        """`default_budget`; a bare tuple (epsilon, step_size, steps), as in version 0.1, is converted.

        Raises:
            ValueError: if it is neither a `ConstantBudget` nor such a tuple.
        """
        budget: object = self.default_budget(step)
        if isinstance(budget, ConstantBudget):
            return budget
        name = type(self).__name__
        if not isinstance(budget, tuple) or len(budget) != 3:
            raise ValueError(f"default_budget of {name} gives {budget!r}: expected a ConstantBudget")
        warnings.warn(
            f"default_budget of {name} gives a bare tuple, read as (epsilon, step_size, steps): return "
            "astra_gym.ssl_core.attacks.pgd.ConstantBudget(epsilon=..., step_size=..., steps=...) instead",
            FutureWarning,
            stacklevel=2,
        )
        epsilon, step_size, steps = budget
        return ConstantBudget(epsilon=epsilon, step_size=step_size, steps=steps)

    def attack_steps(self, budget: Budget) -> Tensor:
        """Number of extra gradient steps (n,) of an attack within the budget: none in free adversarial training, which
        reuses the gradients of the updates."""
        return torch.zeros_like(budget.steps) if self.attack.free else budget.steps

    def encoded(self, networks: Networks, images: Tensor, rows: Tensor, attacked: bool) -> Encoded:
        """Encode some of the attacked views to features and the embeddings that `objective` takes; here by the target.

        If the attack's mode is "eval", each row is independent of the rest of the batch.

        Args:
            networks: the networks, in the mode of the attack.
            images: (m, 3, h, w), perturbed or clean.
            rows: (m,) int64, on the host, their positions among the attacked views.
            attacked: whether they are encoded as attacked images, or as clean ones.
        """
        return networks(images, self.routes.attack if attacked else self.routes.clean)

    def encode(self, networks: Networks) -> Encode:
        """The function that the attack differentiates: `encode(images, rows) -> z`."""
        return lambda images, rows: self.encoded(networks, images, rows, attacked=True).embeddings

    def objective(self, z: Tensor) -> Tensor:
        """The contrastive loss of each attacked view, (n,), which the attack maximizes."""
        return nt_xent(z, self.temperature, reduction="none")

    def objective_for(self, networks: Networks, views: Tensor) -> Objective:
        """The objective that the attack on a batch maximizes, `objective(z) -> (n,)`; here the same for every batch.

        An objective may compare with something that is not attacked (another view, a teacher's features). The method
        computes it here, once per batch and without gradient.

        Args:
            networks: target and heads in the mode of the attack (or in its `reference_mode`), the others in eval mode.
            views: all views of the batch, (v, 3, h, w).
        """
        return self.objective

    def reward_terms(self, objective: Objective, clean: Tensor, adversarial: Tensor) -> dict[str, Tensor]:
        """Named values per view (n,) from the clean and the attacked embeddings of the same network, without gradient.

        The terms "adversarial" and "clean" are the method's loss on the attacked and on the clean views.
        """
        return {"adversarial": objective(adversarial), "clean": objective(clean)}

    @property
    def retrieves(self) -> bool:
        """Whether `retrieved` is defined: the attack maximizes NT-Xent among the attacked views alone."""
        kind = type(self)
        return self.attack.exists and kind.objective is Method.objective and kind.objective_for is Method.objective_for

    def retrieved(self, z: Tensor) -> Tensor:
        """Whether each attacked view, (n,) bool, has its partner as the nearest of all attacked views of the batch, by
        the cosine of their embeddings z. An attack has succeeded on a view that is not retrieved: without labels, this
        is what a wrong class is with them.

        Raises:
            ValueError: if the method does not compare the attacked views with each other, see `retrieves`.
        """
        if not self.retrieves:
            raise ValueError(
                f"the method {type(self).__name__} does not contrast attacked views with each other: retrieval is not "
                "defined for it"
            )
        return nearest_is_partner(z)

    # --- the networks ------------------------------------------------------------------------------------------------

    def make_heads(self, feature_dim: int, embedding_dim: int) -> dict[str, nn.Module]:
        """Make modules that are trained along with the target network; the caller reinitializes their weights.

        A module without parameters may remember earlier batches in its buffers, see
        `astra_gym.ssl_core.models.heads.KeyQueue`.
        """
        return {}

    def resting_heads(self, moment: Moment) -> tuple[str, ...]:
        """Names of the heads whose weights an update leaves as they are; here none."""
        return ()

    def make_tables(self, networks: Networks, images: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Make tensors once, before training, from the training images, uint8 (n, 3, h, w)."""
        return {}

    def momentum(self, moment: Moment) -> float:
        """Decay of the network "momentum" at an update, in [0, 1]: the part of its parameters that stays.

        Only parameters are averaged, not batch-norm statistics. See `NetworkTraits.momentum_first`.
        """
        raise NotImplementedError(f"{type(self).__name__} has no momentum network")

    # --- the update --------------------------------------------------------------------------------------------------

    @abstractmethod
    def losses(self, networks: Networks, views: Tensor, adversarial: Tensor | None) -> dict[str, Tensor]:
        """The training loss as named terms, each per view or image; `weights_at` weights their means.

        Args:
            networks: the networks in train mode, a teacher in eval mode.
            views: all views of the batch, (v, 3, h, w).
            adversarial: the attacked views, (n, 3, h, w); None for a method without an attack.
        """

    @property
    @abstractmethod
    def weights(self) -> Mapping[str, float]:
        """Weight of each named term; the loss is the sum of weight times mean."""

    def weights_at(self, moment: Moment) -> Mapping[str, float]:
        """The weights at an update; here constant."""
        return self.weights

    def weight_perturbation(self, moment: Moment) -> float:
        """Size gamma of the adversarial weight perturbation under which the update's gradient is taken; 0: none."""
        return 0.0

    def perturbation_loss(self, networks: Networks, views: Tensor, adversarial: Tensor) -> Tensor:
        """The scalar loss that the perturbation of the weights increases."""
        raise NotImplementedError(f"{type(self).__name__} does not perturb weights")

    def given(self, adversarial: Tensor | None) -> Tensor:
        """Return the attacked views; raise a ValueError if there are none."""
        if adversarial is None:
            raise ValueError(f"{type(self).__name__} trains on attacked views: none were given")
        return adversarial
