"""A radius for each image."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Unpack, cast

import torch
from torch import Tensor

from astra_gym.agents.controls import Common
from astra_gym.agents.entries import BudgetRequest
from astra_gym.agents.rules.base import RuleAgent
from astra_gym.envs.api.protocol import ViewsEnv
from astra_gym.ssl_core.attacks.pgd import ConstantBudget
from astra_gym.ssl_core.utils.finite import check_number
from astra_gym.ssl_core.utils.messages import shown


@dataclass(frozen=True)
class CustomizationSettings:
    """Settings of `CustomizedAgent`.

    Args:
        stride: radii of the list, 1 or more, by which an image's radius rises at a visit.

    Raises:
        ValueError: if a value is out of range.
    """

    stride: int = 1

    def __post_init__(self) -> None:
        check_number("stride", self.stride, 1, whole=True)


class CustomizedAgent(RuleAgent):
    """A remembered radius for each image and place among its views (CAT, Cheng et al. 2020, arXiv 2002.06789).

    A visit raises the remembered radius, attacks with it and trains on the result. If the attacked view is no longer
    retrieved (its partner is not the nearest of the attacked views), the raise is taken back. Radii are counted in the
    list: an image begins below its first one, and the last is the cap, from which a failed visit goes down.

    The source asks for a wrong class instead, and trains on labels smoothed in proportion to the radius; here there is
    no label to smooth. Its raises are 1.275/255, here neighbors in the world's set of radii; its attacks start at the
    clean image and take 10 steps, here as the world and the listed actions say. A view is drawn anew at
    each visit, so that the memory is the image's, not the view's; retrieval depends on the other images of the batch.

    Args:
        env: as `RuleAgent`, with a sub-environment for each view.
        actions: elements of the action space, from small radii to large.
        settings: see `CustomizationSettings`.
        common: seed, device and tensorboard_log, as in `Agent`.

    Attributes:
        memory: (m,) int64, the radius of each place seen so far, from 0 (none) to the number of actions.

    Raises:
        ValueError: as `RuleAgent`.
    """

    kind: ClassVar[str] = "customized"
    needs: ClassVar[tuple[str, ...]] = ("attack/retrieved",)
    worlds: ClassVar[Any] = ViewsEnv
    settings_class = CustomizationSettings

    def __init__(self, env: Any, actions: Sequence[Any], settings: Any = None, **common: Unpack[Common]) -> None:
        super().__init__(env, actions, settings, **common)
        self.memory = torch.zeros(0, dtype=torch.int64)
        self._visit = self.memory, self.memory

    @staticmethod
    def budgets(ask: BudgetRequest) -> list[ConstantBudget]:
        """Return an attack for each positive radius in the world's set, up to that of the budget."""
        cap = ask.budget.epsilon
        found = [epsilon for epsilon in ask.sets.epsilons if 0 < epsilon <= cap + 1e-9]
        if not found:
            raise ValueError(
                f"the agent customized takes radii up to {shown(cap)}, and actions have none: raise "
                "--epsilon, its cap, or change --action_epsilons"
            )
        return [replace(ask.budget, epsilon=epsilon) for epsilon in found]

    def _raised(self, radii: Tensor) -> Tensor:
        return (radii + self.settings.stride).clamp(max=len(self.actions))

    def _act(self, observation: Tensor) -> Tensor:
        places = cast(ViewsEnv, self._env).places()
        if (lacking := int(places.max()) + 1 - len(self.memory)) > 0:
            self.memory = torch.cat([self.memory, self.memory.new_zeros(lacking)])
        tried = self._raised(self.memory[places])
        self._visit = places, tried
        return self._listed(tried - 1, len(observation))

    def _heed(self, info: Mapping[str, Any]) -> None:
        (places, tried), retrieved = self._visit, info["attack/retrieved"]
        lowered = (tried - self.settings.stride).clamp(min=0)
        self.memory[places] = torch.where(retrieved, tried, lowered)
        self.logger.record("train/listed", float(tried.double().mean()) - 1)
        self.logger.record("train/retrieved", float(retrieved.double().mean()))

    def _predict(self, observation: Tensor, deterministic: bool) -> Tensor:
        # an observation does not tell which image it is of: the mean radius of all
        mean = self.memory.double().mean().round().to(torch.int64) if len(self.memory) else torch.tensor(0)
        return self._listed(self._raised(mean) - 1, len(observation))

    def _learner_state(self) -> dict[str, Any]:
        return {"memory": self.memory}

    def _load_learner_state(self, state: dict[str, Any]) -> None:
        self.memory = state["memory"].to("cpu", copy=True)
