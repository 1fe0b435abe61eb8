"""A term of the reward: hooks that give named values, one for each attacked view."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from astra_gym.envs.rewards.judge_settings import JudgeSection
from astra_gym.ssl_core.attacks.pgd import Budget, Objective
from astra_gym.ssl_core.methods import Method
from astra_gym.ssl_core.training.learner import TargetLearner
from astra_gym.ssl_core.utils.rng import Streams


@dataclass
class HeldOut:
    """Training images that enter no batch, and constant views of them; loading a state replaces both.

    Args:
        rows: (q,) int64, ascending, rows of the training images.
        views: (p, 3, h, w) in [0, 1], all the method's views of them.
    """

    rows: Tensor
    views: Tensor


@dataclass
class ExamImages:
    """Training images that enter no batch and that exams draw from; loading a state replaces the rows.

    Args:
        rows: (m,) int64, ascending, rows of the training images.
        views_of: makes all the method's views (v, 3, h, w) of such rows anew, as for the next update.
    """

    rows: Tensor
    views_of: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class RewardWorld:
    """The part of a world that a term may use.

    Args:
        learner: the target network in training.
        streams: random streams by name; a new name gives a stream that changes no other.
        images: number of training images.
        batch_size: images of a full batch.
        held_out: held-out images if a term of the world `holds_out`, else None.
        exam_images: the images of exams if a term of the world `examines`, else None.
        judge: what the world's encoders are judged by.
        cost_target: mean attack steps a view at which the price of a step aims; None: the price is constant.
    """

    learner: TargetLearner
    streams: Streams
    images: int
    batch_size: int
    held_out: HeldOut | None = None
    exam_images: ExamImages | None = None
    judge: JudgeSection = field(default_factory=JudgeSection)
    cost_target: float | None = None


class FrozenAttack(NamedTuple):
    """An attack and the network that it saw, which learns nothing meanwhile; n is the number of attacked views.

    Args:
        objective: function that the attack maximizes on this batch, `objective(embeddings (n, d)) -> (n,)`.
        budget: n entries, on the host.
        all_views: (v, 3, h, w) in [0, 1], clean, all of the batch.
        views: (n, 3, h, w) of them, which are attacked.
        adversarial: (n, 3, h, w), attacked.
        clean_embeddings: (n, d) of the clean views.
        adversarial_embeddings: (n, d) of the attacked ones.
    """

    objective: Objective
    budget: Budget
    all_views: Tensor
    views: Tensor
    adversarial: Tensor
    clean_embeddings: Tensor
    adversarial_embeddings: Tensor


HOOKS = ("frozen", "before_update", "after_update")
"""The methods by which a term gives values."""


class RewardTerm:
    """A term of the reward. A subclass overrides at least one of the three hooks, each of which gives values (n,) by
    name; `info`, `metrics.jsonl` and TensorBoard (`reward/NAME`) use that name. A world makes each term once, if its
    weight is not 0.

    Args:
        world: the part of the world that the term may use.
    """

    summary: ClassVar[str] = ""
    """Description of what is paid, in one line."""
    sign: ClassVar[int] = 1
    """1, or -1 for a cost: weight times values is then subtracted."""
    holds_out: ClassVar[bool] = False
    """Whether the term needs held-out views: `lookahead_images` training images then enter no batch."""
    examines: ClassVar[bool] = False
    """Whether the term gives exams: `judge_images` training images then enter no batch."""

    def __init__(self, world: RewardWorld) -> None:
        self.world = world
        self.attack_steps = 0
        """Gradient steps of the term's own attacks since the world was built, times their views."""

    @classmethod
    def overrides(cls, hook: str) -> bool:
        """Whether a term of this class gives values by a hook, a name of `HOOKS`."""
        return getattr(cls, hook) is not getattr(RewardTerm, hook)

    @classmethod
    def check(cls, method: Method) -> None:
        """Raise a ValueError if the term makes no sense for a method."""

    def frozen(self, attack: FrozenAttack) -> Mapping[str, Tensor]:
        """Return values of an attack on the weights that it saw. Called without gradient, and also for attacks that are
        tried out but not played."""
        return {}

    def before_update(self, rows: Tensor, losses: Tensor) -> Mapping[str, Tensor]:
        """Return values that are known before the target's update; called once for each update.

        Args:
            rows: (b,) int64, rows of the batch's training images.
            losses: (n,) the attacked views' losses; the losses of one image's views are next to each other.
        """
        return {}

    def after_update(self, n: int) -> Mapping[str, Tensor]:
        """Return values that are known after the target's update, (n,) each."""
        return {}

    def numbers(self) -> dict[str, Any]:
        """Return all remembered values that must be finite, by name."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Return the term's state as plain values and tensors; here the held-out images, if there are any."""
        held = self.world.held_out
        return {"rows": held.rows, "views": held.views} if self.holds_out and held is not None else {}

    def load_state_dict(self, state: Mapping[str, Any], restarted: Collection[str] = ()) -> None:
        """Restore what `state_dict` gave.

        Args:
            state: state of such a term.
            restarted: names of the random streams that could not be continued.

        Raises:
            ValueError: if the state is of other data.
        """
        held = self.world.held_out
        if not self.holds_out or held is None:
            return
        if state["views"].shape != held.views.shape:
            got, expected = tuple(state["views"].shape), tuple(held.views.shape)
            raise ValueError(f"the state holds out views of {got}, this run of {expected}: take the same")
        held.rows = state["rows"]
        held.views = state["views"].to(held.views.device).contiguous(memory_format=torch.channels_last)


class MethodTerm(RewardTerm):
    """A value that the method itself gives (`Method.reward_terms`), with any weight and before all others."""
