"""Rules that people use by hand, in forms without labels: controls that learn nothing by gradient."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, Unpack, cast

import torch
from torch import Tensor

from astra_gym.agents.adapters import NoEnvironment, as_torch_env
from astra_gym.agents.controls import Common, OnePlayAgent, ScheduleAgent, encoded_list
from astra_gym.envs.api.protocol import ReportingEnv, TorchVectorEnv, ViewsEnv
from astra_gym.ssl_core.utils.finite import check_number


@dataclass(frozen=True)
class DelaySettings:
    """Settings of `DelayedAgent`.

    Args:
        share: share in [0, 1] of the planned plays without an attack.

    Raises:
        ValueError: if a value is out of range.
    """

    share: float = 0.5

    def __post_init__(self) -> None:
        check_number("share", self.share, 0, 1)


@dataclass(frozen=True)
class AccelerationSettings:
    """Settings of `AcceleratingAgent`.

    Args:
        growth: factor, positive, by which the attacks' gradients have to exceed the remembered ones (the source's
            gamma: 1.0 in its runs of 10 epochs, 1.01 in those of 50).
        period: epochs, positive, over which gradients are summed; below 1 for short runs.

    Raises:
        ValueError: if a value is out of range.
    """

    growth: float = 1.0
    period: float = 1.0

    def __post_init__(self) -> None:
        check_number("growth", self.growth, above=True)
        check_number("period", self.period, above=True)


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


class DelayedAgent(ScheduleAgent):
    """No attack for a share of the run, then always the same (Gupta et al. 2020, arXiv 2002.04237).

    The source attacks a labeled loss, here it is the world's objective. How the source finds the epoch of the switch is
    not known to us; here it is a setting.

    Args:
        env: anything that `astra_gym.agents.base.as_torch_env` takes.
        actions: two elements of the action space: one that leaves views clean, and the attack.
        settings: see `DelaySettings`.
        planned_plays: plays of the whole run, at least two.
        common: seed, device and tensorboard_log, as in `Agent`.

    Raises:
        ValueError: as `ScheduleAgent`, or if there are not two actions.
    """

    kind: ClassVar[str] = "delayed"

    def __init__(
        self,
        env: Any,
        actions: Sequence[Any],
        settings: DelaySettings | None = None,
        *,
        planned_plays: int,
        **common: Unpack[Common],
    ) -> None:
        self.settings = settings or DelaySettings()
        super().__init__(env, actions, planned_plays=planned_plays, **common)
        if len(self.actions) != 2:
            raise ValueError(f"the agent delayed got {len(self.actions)} actions: expected no attack, and the attack")

    def part(self, play: int) -> int:
        """Return 0 before the switch, 1 from it on, for a play counted from 0."""
        # the summand makes up for rounding: 0.1 * 30 is a little above 3
        return int(play >= self.settings.share * self.planned_plays - 1e-9)

    def _arguments(self) -> dict[str, Any]:
        return {**super()._arguments(), "settings": asdict(self.settings)}

    @classmethod
    def _from_arguments(cls, arguments: dict[str, Any]) -> dict[str, Any]:
        return {**arguments, "settings": DelaySettings(**arguments["settings"])}


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
    defaults: ClassVar[Any] = None
    """Default settings, a record; None for a rule without any."""

    def __init__(self, env: Any, actions: Sequence[Any], settings: Any = None, **common: Unpack[Common]) -> None:
        super().__init__(env, **common)
        self.settings = settings or self.defaults
        self.actions = encoded_list(actions, self.action_space, f"the list of {self.kind}")
        self._ask(self._env)

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
        own = {} if self.settings is None else {"settings": asdict(self.settings)}
        return {"actions": self.actions.tolist(), **own}

    @classmethod
    def _from_arguments(cls, arguments: dict[str, Any]) -> dict[str, Any]:
        own = {} if cls.defaults is None else {"settings": replace(cls.defaults, **arguments["settings"])}
        return {**arguments, **own}


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
    needs: ClassVar[tuple[str, ...]] = ("stopped",)

    def _act(self, observation: Tensor) -> Tensor:
        return self._listed(0, len(observation))

    def _heed(self, info: Mapping[str, Any]) -> None:
        self.logger.record("train/stopped", float(info["stopped"].double().mean()))


class AcceleratingAgent(RuleAgent):
    """The first action at first; the next one whenever the attacks' gradients have grown (arXiv 2103.03076, "M+").

    G of a period is the mean over its views of the absolute gradient of the attack's objective, summed over pixels, at
    the view's own last step. The first period only passes. After the second, `growth * G` is remembered. After each
    later one whose G exceeds what is remembered, the next action follows, and `growth * G` is remembered. A run's list
    holds the numbers of steps in the world's set from 2 on, or from the next larger one if 2 is not in it.

    The source has the gradient of the labeled loss; here it is of the objective, which needs no label. It sums over an
    epoch's batches, which decides as the mean does where epochs are equally long. Its periods are epochs, and its two
    steps begin after the first.

    Args:
        env: as `RuleAgent`; its `info` holds `epoch` too.
        actions: elements of the action space, from few steps to many.
        settings: see `AccelerationSettings`.
        common: seed, device and tensorboard_log, as in `Agent`.

    Raises:
        ValueError: as `RuleAgent`.
    """

    kind: ClassVar[str] = "accelerating"
    needs: ClassVar[tuple[str, ...]] = ("slope",)
    defaults: ClassVar[AccelerationSettings] = AccelerationSettings()

    def __init__(self, env: Any, actions: Sequence[Any], settings: Any = None, **common: Unpack[Common]) -> None:
        super().__init__(env, actions, settings, **common)
        self.chosen = 0
        self.threshold: float | None = None
        self._periods = self._views = 0
        self._sum = 0.0

    def _act(self, observation: Tensor) -> Tensor:
        return self._listed(self.chosen, len(observation))

    def _heed(self, info: Mapping[str, Any]) -> None:
        slopes = info["slope"].double()
        self._sum += float(slopes.sum())
        self._views += len(slopes)
        self.logger.record("train/listed", self.chosen)
        # the summand makes up for rounding: 3 * 0.1 is a little above 0.3
        ended = int(info["epoch"] / self.settings.period + 1e-9)
        if ended > self._periods:
            self._end_period(self._sum / self._views)
            self._periods, self._views, self._sum = ended, 0, 0.0

    def _end_period(self, slope: float) -> None:
        self.logger.record("train/slope", slope)
        if self._periods == 0:
            return
        if self.threshold is not None:
            if slope <= self.threshold or self.chosen == len(self.actions) - 1:
                return
            self.chosen += 1
        self.threshold = self.settings.growth * slope

    def _learner_state(self) -> dict[str, Any]:
        names = ("chosen", "threshold", "_periods", "_views", "_sum")
        return {name.removeprefix("_"): getattr(self, name) for name in names}

    def _load_learner_state(self, state: dict[str, Any]) -> None:
        self.chosen, self.threshold = state["chosen"], state["threshold"]
        self._periods, self._views, self._sum = state["periods"], state["views"], state["sum"]


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
    needs: ClassVar[tuple[str, ...]] = ("retrieved",)
    worlds: ClassVar[Any] = ViewsEnv
    defaults: ClassVar[CustomizationSettings] = CustomizationSettings()

    def __init__(self, env: Any, actions: Sequence[Any], settings: Any = None, **common: Unpack[Common]) -> None:
        super().__init__(env, actions, settings, **common)
        self.memory = torch.zeros(0, dtype=torch.int64)
        self._visit = self.memory, self.memory

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
        (places, tried), retrieved = self._visit, info["retrieved"]
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
