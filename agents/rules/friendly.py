"""An attack that stops where it has succeeded."""

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from astra_gym.agents.entries import BudgetRequest
from astra_gym.agents.rules.base import RuleAgent
from astra_gym.ssl_core.attacks.pgd import ConstantBudget


class FriendlyAgent(RuleAgent):
    """Friendly PGD: always the same action, in a world that stops the attack on a view when it has succeeded.

    FAT (Zhang et al. 2020, arXiv 2002.11242) stops at a wrong class; the world (`attack_stop="retrieval"`) at a view
    whose partner is no longer its nearest, see `astra_gym.ssl_core.attacks.early_stopping` for the other differences.
    The steps that are recorded and paid for are those that were taken.

    Args:
        env: as `RuleAgent`, of a world with `attack_stop`.
        actions: one element of the action space, with the most steps of a view.
        common: seed, device and tensorboard_log, as in `Agent`.

    Raises:
        ValueError: as `RuleAgent`, or if the world stops no attack.
    """

    kind: ClassVar[str] = "friendly"
    needs: ClassVar[tuple[str, ...]] = ("attack/stopped",)

    @staticmethod
    def budgets(ask: BudgetRequest) -> list[ConstantBudget]:
        """Return the one attack."""
        return [ask.budget]

    def _act(self, observation: Tensor) -> Tensor:
        return self._listed(0, len(observation))

    def _heed(self, info: Mapping[str, Any]) -> None:
        self.logger.record("train/stopped", float(info["attack/stopped"].double().mean()))
