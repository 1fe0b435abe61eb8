"""A term that judges the update by its effect on held-out views (LAS-AT, CVPR 2022)."""

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from astra_gym.envs.rewards.term import HeldOut, RewardTerm, RewardWorld
from astra_gym.ssl_core.methods import Method

NOISE = "lookahead/noise"
"""The stream of the look-ahead's random start. Its state never changes, so every attack on the held-out views starts
alike."""


class LookAhead(RewardTerm):
    """The fall of the held-out views' attacked loss and of their clean loss. Views and attack stay the same, only the
    weights change.

    The attack is the method's default for the first step, from one random start (common random numbers).

    LAS-AT scores a copy of the network after one step, by labels: R2 is its robust accuracy and R3 its clean accuracy.
    Here losses replace accuracies, the update is the target's own, and the views are held out and always attacked
    alike. The reward is the change of the losses, since their level is not the action's effect. All views of a batch
    make the update together, so each gets the same two values, positive where a loss fell.

    Raises:
        ValueError: if the world holds out no images.
    """

    summary = "the fall of held-out views' attacked and clean loss by the update (LAS-AT's R2, R3)"
    holds_out = True

    def __init__(self, world: RewardWorld) -> None:
        super().__init__(world)
        if world.held_out is None:
            raise ValueError("the world holds no images out: expected some, which the look-ahead judges an update by")
        self.held_out: HeldOut = world.held_out
        self._before: Tensor | None = None

    @classmethod
    def check(cls, method: Method) -> None:
        """Raise a ValueError if the attack does not maximize the method's loss."""
        if not method.loss.is_objective:
            raise ValueError(
                f"what the attack of {type(method).__name__} maximizes is not its loss, whose fall the look-ahead pays"
            )

    def losses(self) -> Tensor:
        """Return the attacked and the clean views' mean loss, (2,), on the present weights, in the attack's mode."""
        learner, views = self.world.learner, self.held_out.views
        own = learner.method.budget_at(0)
        attacked_views = len(learner.method.attacked(views))
        budget = own.expand(attacked_views)
        generator = self.world.streams.on_device(NOISE)
        start = generator.get_state()
        objective = learner.objective(views)
        with learner.untracked():
            attacked = learner.attack(views, budget, generator, objective)
        generator.set_state(start)
        self.attack_steps += own.steps * attacked_views
        clean = learner.encode_clean(views)
        return torch.stack([objective(z).mean() for z in (attacked.embeddings, clean.embeddings)])

    def before_update(self, rows: Tensor, losses: Tensor) -> Mapping[str, Tensor]:
        """Measure the losses if the last update did not; return no values yet."""
        if self._before is None:
            self._before = self.losses()
        return {}

    def after_update(self, n: int) -> Mapping[str, Tensor]:
        """Return `lookahead_adversarial` and `lookahead_clean`, (n,) each."""
        if self._before is None:
            raise ValueError("there is nothing to compare with: call before_update() before the update")
        after = self.losses()
        fall = self._before - after
        # the next update begins with these weights, so their losses need not be measured again
        self._before = after
        names = ("lookahead_adversarial", "lookahead_clean")
        return {name: value.expand(n).contiguous() for name, value in zip(names, fall, strict=True)}

    def numbers(self) -> dict[str, Any]:
        """Return the whole state: all of it must be finite."""
        return self.state_dict()

    def state_dict(self) -> dict[str, Any]:
        """Return the held-out rows and views, and the losses on the present weights if they are known."""
        return super().state_dict() | {"before": self._before}

    def load_state_dict(self, state: Mapping[str, Any], restarted: Collection[str] = ()) -> None:
        """Restore what `state_dict` gave, as `RewardTerm.load_state_dict`."""
        super().load_state_dict(state, restarted)
        before = state["before"]
        # losses from another random start are not comparable
        self._before = None if before is None or NOISE in restarted else before.to(self.held_out.views.device)
