"""What a term of the reward is: hooks that give named values, one for each attacked view."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from astra_gym.ssl_core.attacks.pgd import Budget, Objective
from astra_gym.ssl_core.methods import Method
from astra_gym.ssl_core.training.learner import TargetLearner
from astra_gym.ssl_core.utils.rng import Streams


@dataclass
class HeldOut:
    """Training images that enter no batch, and views of them that stay the same; loading a state replaces both.

    Args:
        rows: (q,) int64, ascending, which training images.
        views: (p, 3, h, w) in [0, 1], all that the method makes of them.
    """

    rows: Tensor
    views: Tensor


@dataclass(frozen=True)
class RewardWorld:
    """What a term may use of its world.

    Args:
        learner: the target network in training.
        streams: random streams by name; one of a name of your own changes nothing else.
        images: number of training images.
        batch_size: images of a full batch.
        held_out: where a term of the world `holds_out`, else None.
    """

    learner: TargetLearner
    streams: Streams
    images: int
    batch_size: int
    held_out: HeldOut | None = None


class FrozenAttack(NamedTuple):
    """An attack and the network that it saw, on which nothing is learned meanwhile; n is the number of attacked views.

    Args:
        objective: what the attack maximises on this batch, `objective(embeddings (n, d)) -> (n,)`.
        budget: n entries, on the host.
        views: (n, 3, h, w) in [0, 1], clean.
        adversarial: (n, 3, h, w), attacked.
        clean_embeddings: (n, d) of the clean views.
        adversarial_embeddings: (n, d) of the attacked ones.
    """

    objective: Objective
    budget: Budget
    views: Tensor
    adversarial: Tensor
    clean_embeddings: Tensor
    adversarial_embeddings: Tensor


class RewardTerm:
    """A term of the reward. A subclass overrides at least one of the three hooks, each of which gives values (n,) by
    name; the name stands in `info`, `metrics.jsonl` and TensorBoard (`reward/NAME`). A term is made where its weight is
    not 0, once for each world.

    Args:
        world: what it may use.
    """

    summary: ClassVar[str] = ""
    """What it pays, in one line."""
    sign: ClassVar[int] = 1
    """1, or -1 where it is a cost: its weight times its values is subtracted."""
    holds_out: ClassVar[bool] = False
    """Whether it needs held-out views: `lookahead_images` training images then enter no batch."""

    def __init__(self, world: RewardWorld) -> None:
        self.world = world
        self.attack_steps = 0
        """Gradient steps that attacks of its own have made since the world was built, times their views."""

    @classmethod
    def check(cls, method: Method) -> None:
        """Raises a ValueError where the term makes no sense for a method."""

    def frozen(self, attack: FrozenAttack) -> Mapping[str, Tensor]:
        """Values from an attack on the weights that it saw. It is called without gradient, and also for attacks that
        are tried out and not played."""
        return {}

    def before_update(self, rows: Tensor, losses: Tensor) -> Mapping[str, Tensor]:
        """Values that are known before the target's update, once for each.

        Args:
            rows: (b,) int64, which training images the batch holds.
            losses: (n,) the attacked views' losses, those of an image together.
        """
        return {}

    def after_update(self, n: int) -> Mapping[str, Tensor]:
        """Values that the target's update shows, (n,) each."""
        return {}

    def numbers(self) -> dict[str, Any]:
        """All that it remembers and that has to be finite, by name."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """What it remembers, as plain values and tensors; here the held-out images, if there are any."""
        held = self.world.held_out
        return {"rows": held.rows, "views": held.views} if self.holds_out and held is not None else {}

    def load_state_dict(self, state: Mapping[str, Any], restarted: Collection[str] = ()) -> None:
        """Restores what `state_dict` gave.

        Args:
            state: of such a term.
            restarted: names of the random streams that could not be continued.

        Raises:
            ValueError: if it is of other data.
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
