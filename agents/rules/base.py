"""The base of rules that people use by hand: controls that learn nothing by gradient."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Unpack, cast

import torch
from torch import Tensor

from astra_gym.agents.adapters import NoEnvironment, as_torch_env
from astra_gym.agents.controls import Common, OnePlayAgent, encoded_list
from astra_gym.agents.entries import BudgetRequest
from astra_gym.envs.api.protocol import ReportingEnv, TorchVectorEnv, ViewsEnv
from astra_gym.ssl_core.attacks.pgd import ConstantBudget


class RuleAgent(OnePlayAgent):
    """Base of agents that choose among listed actions by a rule, from what the world reports of its attacks.

    Args:
        env: a `ReportingEnv`, such as `astra_gym.envs.torch_env.TorchViewEnv`.
        actions: elements of the action space, encoded by the caller, since an agent does not know units.
        settings: the rule's own, if it has any; None: its defaults.
        common: seed, device and tensorboard_log, as in `Agent`.

    Raises:
        ValueError: if there is no action, one is not an element of the action space, or the environment does not report
            what the rule needs.
    """

    needs: ClassVar[tuple[str, ...]]
    """Names of `astra_gym.envs.api.protocol.REPORTS`."""
    worlds: ClassVar[Any] = ReportingEnv

    def __init__(self, env: Any, actions: Sequence[Any], settings: Any = None, **common: Unpack[Common]) -> None:
        super().__init__(env, **common)
        self.settings = settings or (self.settings_class and self.settings_class())
        self.actions = encoded_list(actions, self.action_space, f"the list of {self.kind}")
        self._ask(self._env)

    @staticmethod
    def budgets(ask: BudgetRequest) -> list[ConstantBudget]:
        """Return the attacks of a run's agent, in the order of its actions.

        Raises:
            ValueError: if the world's sets have none.
        """
        raise NotImplementedError

    def set_env(self, env: Any, force_reset: bool = True) -> None:
        """Continue in another environment with the same spaces, as `Agent.set_env`; it has to report as much."""
        self._ask(as_torch_env(env, self.device))
        super().set_env(env, force_reset)

    def _ask(self, env: TorchVectorEnv) -> None:
        if isinstance(env, NoEnvironment):
            return
        if not isinstance(env, self.worlds):
            views = "views" if self.worlds is ViewsEnv else "views or batches"
            raise ValueError(
                f"agent {self.kind!r} needs a world of {views} that reports {', '.join(self.needs)} of each attack: "
                f"got a {type(env).__name__}"
            )
        cast(ReportingEnv, env).request(*self.needs)

    def _play(self) -> dict[str, Any]:
        played = super()._play()
        self._heed(played["infos"][0])
        return played

    def _heed(self, info: Mapping[str, Any]) -> None:
        """Follow the rule after a play; its state is then complete, so that a saved agent resumes exactly."""
        raise NotImplementedError

    def _predict(self, observation: Tensor, deterministic: bool) -> Tensor:
        return self._act(observation)

    def _listed(self, chosen: Tensor | int, n: int) -> Tensor:
        """Return the listed actions (n, ...) of indices on the host, (n,) or one for all."""
        return self.actions[torch.as_tensor(chosen).expand(n)].to(self.device, non_blocking=True)

    def _arguments(self) -> dict[str, Any]:
        return {"actions": self.actions.tolist()} | super()._arguments()
