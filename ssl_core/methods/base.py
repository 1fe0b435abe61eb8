"""The interface of a self-supervised (adversarial) method: its views, its attack, its loss."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from astra_gym.ssl_core.attacks.pgd import Budget, ConstantBudget, Encode, Objective
from astra_gym.ssl_core.losses.contrastive import nt_xent
from astra_gym.ssl_core.models.target_network import Encoded
from astra_gym.ssl_core.transforms.views import ViewSettings, two_views
from astra_gym.ssl_core.utils.finite import check_number
from astra_gym.ssl_core.utils.training_plan import Moment

Network = Callable[[Tensor, str], Encoded]
"""`network(images, route)`: features and embeddings of a network, which may run in chunks or folded."""
Head = Callable[[Tensor, str], Tensor]
"""`head(x, route)`: a module that is trained along with the target network."""


@dataclass(frozen=True)
class Networks:
    """All that a method may use of the networks: `networks(images, route)` is the target network itself.

    Args:
        target: the target network.
        heads: what `Method.make_heads` has made, trained along with it.
        others: what `Method.others` names, without gradient: "momentum", "teacher".
        tables: what `Method.make_tables` has made.
    """

    target: Network
    heads: Mapping[str, Head] = field(default_factory=dict)
    others: Mapping[str, Network] = field(default_factory=dict)
    tables: Mapping[str, Tensor] = field(default_factory=dict)

    def __call__(self, images: Tensor, route: str) -> Encoded:
        """Images (n, 3, h, w) in [0, 1] to features and embeddings, on a route of the target network."""
        return self.target(images, route)


@dataclass(frozen=True)
class Method(ABC):
    """A method composes pure losses, views, networks and an attack; it knows of no agent and of no training loop.

    Two views an image (rows 2k and 2k+1), NT-Xent on them, and an attack on all views jointly are the defaults here,
    because most of the field shares them; a method of another shape overrides what differs. A dataclass field is an
    option of the method (`--method_kwargs.NAME`).

    Args:
        temperature: of the contrastive losses.
    """

    temperature: float = 0.5

    paper: ClassVar[str]
    """Where the method comes from, for lists."""
    summary: ClassVar[str] = ""
    """What it is in one line, for lists."""
    routes: ClassVar[tuple[str, ...]] = ("normal", "pgd")
    """Batch-norm routes of the network, that of clean images first."""
    clean_route: ClassVar[str] = "normal"
    """Route of clean images."""
    attack_route: ClassVar[str] = "pgd"
    """Route of attacked images, on which the attack itself runs."""
    evaluation_route: ClassVar[str] = "pgd"
    """Route that the encoder is evaluated on."""
    evaluated: ClassVar[str] = "target"
    """Which network is evaluated: "target", or a name of `others`."""
    originals_per_image: ClassVar[int] = 0
    """How many of an image's views are the image itself, un-augmented; they are the last rows of all views, and no
    further augmentation touches them."""
    attacks: ClassVar[bool] = True
    """Whether the method attacks at all."""
    attack_mode: ClassVar[str] = "eval"
    """Mode of the network under attack: "eval"; or "train", where batch norm couples the batch and its running
    statistics follow the attacked images."""
    start_radius: ClassVar[float | None] = None
    """The attack's random start is uniform within this radius; None: within the view's own epsilon."""
    others: ClassVar[tuple[str, ...]] = ()
    """Networks beside the target: "momentum" (its moving average), "teacher" (`--teacher`, frozen)."""
    constant_lr: ClassVar[bool] = False
    """Whether the heads keep their peak learning rate, while the target's follows the schedule."""
    objective_is_loss: ClassVar[bool] = True
    """Whether `objective` is the method's own loss, or else a target of the attack's alone (TARO), whose fall says
    nothing of what an update was worth."""
    momentum_first: ClassVar[bool] = False
    """Whether the network "momentum" follows the weights from before an update (DynACL), not those from after it."""
    free: ClassVar[bool] = False
    """Free adversarial training: one backward pass gives the update and the attack's next step, and the perturbations
    are carried from batch to batch (see `TargetLearner.carry`)."""
    post_processed: ClassVar[bool] = False
    """Whether training ends with `astra_gym.ssl_core.downstream.postprocessing` (DynACL++)."""
    paired: ClassVar[bool] = True
    """Whether every call of the network in `losses` holds rows in pairs, 2k and 2k+1 of one image: what an update in
    chunks needs."""
    nt_xent_based: ClassVar[bool] = True
    """Whether the loss is made of NT-Xents: what coreset selection (RCS) is defined for."""
    has_temperature: ClassVar[bool] = True
    """Whether the loss has the temperature; else one that is given is refused, of a subclass too."""

    def __post_init__(self) -> None:
        check_number("temperature", self.temperature, above=True)

    @property
    def starts_from_teacher(self) -> bool:
        """Whether the target's backbone begins with the teacher's weights."""
        return False

    # --- views -------------------------------------------------------------------------------------------------------

    @property
    def views_per_image(self) -> int:
        """Views that `make_views` makes of an image."""
        return 2

    @property
    def attacked_per_image(self) -> int:
        """Views of an image that are attacked, `attacked` of its views; those of a method without an attack are
        counted as if they were, since they are what its environment shows."""
        return 2

    @property
    def replays(self) -> int:
        """How many updates a batch gets in a row: 1 but in free adversarial training."""
        return 1

    def num_attacked(self, batch_size: int) -> int:
        """How many views are attacked in a step on `batch_size` images."""
        return self.attacked_per_image * batch_size if self.attacks else 0

    def make_views(self, images: Tensor, settings: ViewSettings, moment: Moment, generator: torch.Generator) -> Tensor:
        """All views that the method needs of images (b, 3, h, w) in [0, 1], (views_per_image * b, 3, h, w).

        Which row is which is the method's own business, as long as b can be told from their number. Here: two strong
        views an image, rows 2k and 2k+1 those of image k.

        Args:
            moment: of the update that they are for.
            generator: on the CPU.
        """
        return two_views(images, settings, generator)

    def attacked(self, views: Tensor) -> Tensor:
        """Those of the views (v, 3, h, w) that are attacked, (num_attacked, 3, h, w), clean; here all.

        Those of one image follow each other. An image may be attacked in more than one way: it then stands there more
        than once.
        """
        return views

    # --- the attack --------------------------------------------------------------------------------------------------

    def default_budget(self, step: int) -> ConstantBudget:
        """The authors' own budget at training step `step`: ACL's 8/255, 5 steps of 2/255."""
        return ConstantBudget(epsilon=8 / 255, step_size=2 / 255, steps=5)

    def budget_at(self, step: int) -> ConstantBudget:
        """`default_budget`, also of a method written for version 0.1, whose bare tuple was (epsilon, step_size, steps).

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
        """Gradient steps (n,) that an attack within the budget takes of its own: none in free adversarial training,
        whose updates have the gradients anyway."""
        return torch.zeros_like(budget.steps) if self.free else budget.steps

    def encoded(self, networks: Networks, images: Tensor, rows: Tensor, attacked: bool) -> Encoded:
        """Features, and the embeddings that `objective` takes, of some of the attacked views; here by the target.

        It is row by row independent of the rest of the batch where `attack_mode` is "eval".

        Args:
            networks: in the mode of the attack.
            images: (m, 3, h, w), perturbed or clean.
            rows: (m,) int64, on the host, which of the attacked views they are.
            attacked: whether they are taken for attacked images, or for clean ones.
        """
        return networks(images, self.attack_route if attacked else self.clean_route)

    def encode(self, networks: Networks) -> Encode:
        """What the attack differentiates through: `encode(images, rows) -> z`."""
        return lambda images, rows: self.encoded(networks, images, rows, attacked=True).embeddings

    def objective(self, z: Tensor) -> Tensor:
        """The contrastive loss of each attacked view, (n,), which the attack maximises."""
        return nt_xent(z, self.temperature, reduction="none")

    def objective_for(self, networks: Networks, views: Tensor) -> Objective:
        """What the attack on a batch maximises, `objective(z) -> (n,)`; here the same for every batch.

        A method whose objective compares with something that is not attacked (another view, a teacher's features)
        computes that here, once a batch and without gradient.

        Args:
            networks: target and heads in the mode of the attack, the others in eval mode.
            views: (v, 3, h, w) all views of the batch.
        """
        return self.objective

    def reward_terms(self, objective: Objective, clean: Tensor, adversarial: Tensor) -> dict[str, Tensor]:
        """Named per-view values (n,) from the clean and the attacked embeddings of the same network, without gradient.

        `adversarial` and `clean` are the method's own loss on the attacked and on the clean views.
        """
        return {"adversarial": objective(adversarial), "clean": objective(clean)}

    # --- the networks ------------------------------------------------------------------------------------------------

    def make_heads(self, feature_dim: int, embedding_dim: int) -> dict[str, nn.Module]:
        """Modules that are trained along with the target network; their weights are drawn anew by the caller."""
        return {}

    def make_tables(self, networks: Networks, images: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Tensors that are made once, before training, from the training images (uint8, n x 3 x h x w)."""
        return {}

    def momentum(self, moment: Moment) -> float:
        """How much of the network "momentum" stays at an update; its parameters follow, its statistics are its own.

        See `momentum_first`.
        """
        raise NotImplementedError(f"{type(self).__name__} has no momentum network")

    # --- the update --------------------------------------------------------------------------------------------------

    @abstractmethod
    def losses(self, networks: Networks, views: Tensor, adversarial: Tensor | None) -> dict[str, Tensor]:
        """The training loss as named terms, each per view or image; their means are weighed by `weights_at`.

        Args:
            networks: in train mode, a teacher in eval mode.
            views: (v, 3, h, w) all views of the batch.
            adversarial: (n, 3, h, w) the attacked ones, None for a method without an attack.
        """

    @property
    @abstractmethod
    def weights(self) -> Mapping[str, float]:
        """The weight of each named term; the loss is the sum of weight times mean."""

    def weights_at(self, moment: Moment) -> Mapping[str, float]:
        """The weights at an update, where they follow a schedule."""
        return self.weights

    def weight_perturbation(self, moment: Moment) -> float:
        """Size gamma of an adversarial perturbation of the weights, under which the update's gradient is taken."""
        return 0.0

    def perturbation_loss(self, networks: Networks, views: Tensor, adversarial: Tensor) -> Tensor:
        """The loss, a scalar, that the perturbation of the weights increases."""
        raise NotImplementedError(f"{type(self).__name__} does not perturb weights")

    def given(self, adversarial: Tensor | None) -> Tensor:
        """The attacked views, or a ValueError where there are none."""
        if adversarial is None:
            raise ValueError(f"{type(self).__name__} trains on attacked views: none were given")
        return adversarial
