"""Terms of the attack alone: the method's losses on the weights that it saw, and its cost."""

from collections.abc import Mapping

from torch import Tensor

from astra_gym.envs.rewards.term import FrozenAttack, MethodTerm, RewardTerm


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
    """Gradient steps that each view's budget spends; 0 in free training."""

    summary = "gradient steps of the attack, subtracted"
    sign = -1

    def frozen(self, attack: FrozenAttack) -> Mapping[str, Tensor]:
        """Return `cost` (n,)."""
        steps = self.world.learner.method.attack_steps(attack.budget).float()
        return {"cost": steps.to(attack.clean_embeddings.device, non_blocking=True)}
