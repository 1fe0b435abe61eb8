"""Terms of the attack alone: the method's losses on the weights that it saw, and what it cost."""

from collections.abc import Mapping

from torch import Tensor

from astra_gym.envs.rewards.term import FrozenAttack, MethodTerm, RewardTerm


class Adversarial(MethodTerm):
    """The attacked views' loss."""

    summary = "the attacked views' loss (ASTrA's r)"


class Clean(MethodTerm):
    """The clean views' loss."""

    summary = "the clean views' loss, subtracted (ASTrA's r)"
    sign = -1


class Mixed(MethodTerm):
    """The loss of attacked beside clean views, of ASTrA."""

    summary = "the mixed loss of astra and astra++, subtracted (ASTrA's r)"
    sign = -1


class Cost(RewardTerm):
    """Gradient steps that each view's budget spends, none in free training."""

    summary = "gradient steps of the attack, subtracted"
    sign = -1

    def frozen(self, attack: FrozenAttack) -> Mapping[str, Tensor]:
        """`cost` (n,)."""
        steps = self.world.learner.method.attack_steps(attack.budget).float()
        return {"cost": steps.to(attack.clean_embeddings.device, non_blocking=True)}
