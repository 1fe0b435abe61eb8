"""Terms of the attack alone: the method's losses on the weights that it saw, and its cost."""

from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor

from astra_gym.envs.rewards.term import FrozenAttack, MethodTerm, RewardTerm, RewardWorld

PRICE_RATE = 0.02
"""Rise of the price at an update whose attacks are twice as long as the target."""


class Adversarial(MethodTerm):
    """Loss of the attacked views."""

    summary = "the attacked views' loss (ASTrA's r)"


class Clean(MethodTerm):
    """Loss of the clean views."""

    summary = "the clean views' loss, subtracted (ASTrA's r)"
    sign = -1


class Mixed(MethodTerm):
    """ASTrA's loss of attacked beside clean views."""

    summary = "the mixed loss of astra and astra++, subtracted (ASTrA's r)"
    sign = -1


class Cost(RewardTerm):
    """Gradient steps that each view's budget spends, times a price; 0 in free training.

        value_i = p * steps_i        p <- max(0, p + 0.02 * (mean(steps) / target - 1)) after each update

    The price p is 1. With a `cost_target`, the mean steps that a view may have, it only begins there and moves by dual
    ascent (as PPO-Lagrangian's multiplier, Ray, Achiam and Amodei 2019): it rises while attacks are longer, and falls
    while they are shorter. The weight gives its unit.
    """

    summary = "gradient steps of the attack, subtracted"
    sign = -1

    def __init__(self, world: RewardWorld) -> None:
        super().__init__(world)
        self.price, self._steps, self._update = 1.0, 0.0, 0
        """Price, mean steps of the attack seen last, and the number of the update that it was for."""

    def frozen(self, attack: FrozenAttack) -> Mapping[str, Tensor]:
        """Return `cost` (n,)."""
        steps, target = self.world.learner.method.attack_steps(attack.budget).float(), self.world.cost_target
        if target is not None and self._update != self.world.learner.step:
            # of several attacks on a batch, the last one was played
            self.price = max(0.0, self.price + PRICE_RATE * (self._steps / target - 1))
        self._steps, self._update = float(steps.mean()), self.world.learner.step
        return {"cost": (self.price * steps).to(attack.clean_embeddings.device, non_blocking=True)}

    def state_dict(self) -> dict[str, Any]:
        """Return the price and what moves it next, if it moves."""
        if self.world.cost_target is None:
            return {}
        return {"price": self.price, "steps": self._steps, "update": self._update}

    def load_state_dict(self, state: Mapping[str, Any], restarted: Collection[str] = ()) -> None:
        """Restore what `state_dict` gave."""
        self.price, self._steps, self._update = state["price"], state["steps"], state["update"]
