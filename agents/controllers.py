"""Controllers: agents that find a good action within one run, from few, noisy and drifting rewards.

They hold an action until a reward other than 0 comes, which a term that examines the target network gives once a block
(`astra_gym.envs.rewards.exam_terms`), and see no observation. So their world pays `judge` alone:

    --env batch --reward_weights.judge 1 --reward_weights.adversarial 0 --reward_weights.clean 0
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Unpack

import torch
from gymnasium import spaces
from torch import Tensor

from astra_gym.agents.base import Transition
from astra_gym.agents.controls import Common, OnePlayAgent
from astra_gym.agents.policies import choices
from astra_gym.ssl_core.utils.finite import check_number

MOST_POINTS, DRAWN = 4096, 512
"""Most actions that a controller knows, a larger space is represented by random ones; and those of one draw."""
TREND = 10.0
"""Blocks over which the rewards' common trend drifts away."""


@dataclass(frozen=True)
class GaussianProcessSettings:
    """Settings of `GaussianProcessBandit`.

    Args:
        length: length scale of an action's value, in widths of the action space.
        memory: blocks over which an action's value drifts away.
        noise: standard deviation of a block's reward, in deviations of the action's value.
        warmup: blocks of random actions at first, 1 or more.
        explore: blocks, those of `--agent_from` included, after which the action that looks best is played, at least
            `warmup`; 0: never.

    Raises:
        ValueError: if a value is out of range.
    """

    length: float = 0.35
    memory: float = 50.0
    noise: float = 0.5
    warmup: int = 4
    explore: int = 0

    def __post_init__(self) -> None:
        for name in ("length", "memory", "noise"):
            check_number(name, getattr(self, name), above=True)
        check_number("warmup", self.warmup, 1, whole=True)
        if self.explore:
            check_number("explore", self.explore, self.warmup, whole=True)


@dataclass(frozen=True)
class EliminationSettings:
    """Settings of `SuccessiveElimination`.

    Args:
        candidates: actions that are tried at first, 1 or more.
        blocks: blocks of each in a round, 1 or more.

    Raises:
        ValueError: if a value is out of range.
    """

    candidates: int = 8
    blocks: int = 1

    def __post_init__(self) -> None:
        check_number("candidates", self.candidates, 1, whole=True)
        check_number("blocks", self.blocks, 1, whole=True)


@dataclass(frozen=True)
class SwitchingSettings:
    """Settings of `Switching`.

    Args:
        width: largest change of a part of the action, in widths of the action space, in (0, 1].

    Raises:
        ValueError: if a value is out of range.
    """

    width: float = 0.3

    def __post_init__(self) -> None:
        check_number("width", self.width, 0, 1, above=True)


class Controller(OnePlayAgent):
    """The base of controllers: blocks of one action, each with a reward at its end.

    Every sub-environment gets the same action. Actions are points in the unit cube, a coordinate for each head of a
    discrete space or each dimension of a Box. A prediction is the action that looks best so far.

    Args:
        env: anything that `astra_gym.agents.base.as_torch_env` takes; a Box action space must be bounded.
        settings: settings of the controller.
        common: seed, device and tensorboard_log, as in `Agent`.

    Raises:
        ValueError: if the action space is not supported, or is an unbounded Box.
    """

    settings_class: ClassVar[type]

    def __init__(self, env: Any, settings: Any = None, **common: Unpack[Common]) -> None:
        self.settings = settings or self.settings_class()
        super().__init__(env, **common)
        self._check_bounded("a controller")
        self.points = self._drawn_points()
        """Actions as points, (points, parts), float64."""
        self.tried: list[tuple[int, float]] = []
        """Points and rewards of the blocks so far."""
        self.current = self._choose()
        """The point of the running block."""

    # hooks of subclasses

    def _choose(self) -> int:
        """Return the point of the next block."""
        raise NotImplementedError

    def _best(self) -> int:
        """Return the point that looks best."""
        raise NotImplementedError

    # blocks

    @property
    def _draws(self) -> torch.Generator:
        return self._streams["agent/controller"]

    def _drawn_points(self) -> Tensor:
        """Return all points of a discrete space of at most `MOST_POINTS` actions, else as many random ones."""
        sizes = choices(self.action_space)
        if not sizes:
            parts = int(torch.tensor(self.action_space.shape).prod())
            return torch.rand((MOST_POINTS, parts), generator=self._draws, dtype=torch.float64)
        axes = [torch.linspace(0, 1, size, dtype=torch.float64) for size in sizes]
        if torch.tensor(sizes).prod() <= MOST_POINTS:
            return torch.cartesian_prod(*axes).view(-1, len(sizes))
        drawn = [axis[torch.randint(len(axis), (MOST_POINTS,), generator=self._draws)] for axis in axes]
        return torch.stack(drawn, 1)

    def _action(self, point: int) -> Tensor:
        """Return a point as an action, without the leading dimension."""
        at, space = self.points[point], self.action_space
        if isinstance(space, spaces.Box):
            low, high = (torch.as_tensor(end, dtype=torch.float64) for end in (space.low, space.high))
            return (low + (high - low) * at.view(space.shape)).float()
        indices = (at * (torch.tensor(choices(space)) - 1)).round().long()
        return indices[0] if isinstance(space, spaces.Discrete) else indices

    def _expanded(self, point: int, observation: Tensor) -> Tensor:
        action = self._action(point).to(self.device)
        return action.expand(len(observation), *action.shape)

    def _act(self, observation: Tensor) -> Tensor:
        return self._expanded(self.current, observation)

    def _predict(self, observation: Tensor, deterministic: bool) -> Tensor:
        return self._expanded(self._best(), observation)

    def _update(self, rollout: list[Transition]) -> None:
        (played,) = rollout
        reward = float(played.reward.double().mean())
        if reward == 0:
            return
        self.tried.append((self.current, reward))
        self.current = self._choose()
        self.logger.record("train/blocks", len(self.tried))
        self.logger.record("train/block_reward", reward)

    def _random_point(self) -> int:
        return int(torch.randint(len(self.points), (1,), generator=self._draws))

    def _learner_state(self) -> dict[str, Any]:
        return {"points": self.points, "tried": [list(each) for each in self.tried], "current": self.current}

    def _load_learner_state(self, state: dict[str, Any]) -> None:
        if state["points"].shape != self.points.shape:
            found, ours = tuple(state["points"].shape), tuple(self.points.shape)
            raise RuntimeError(f"it has {found} actions: expected {ours}")
        self.points, self.current = state["points"].clone(), state["current"]
        self.tried = [(int(point), float(reward)) for point, reward in state["tried"]]


class GaussianProcessBandit(Controller):
    """Thompson sampling with a Gaussian process over actions and time (after Bogunovic, Scarlett and Cevher 2016).

    The reward of block t under action x is modeled as m(t) + f(x, t) + noise. Both f and m are Gaussian processes, with
    the covariances `exp(-|x - x'|^2 / (2 length^2)) exp(-|t - t'| / memory)` and `4 exp(-|t - t'| / TREND)`, in units
    of the rewards' deviation around their trend; m is what all actions share, since a network learns fast at first. The
    next block has the action at which one draw of f is largest. The action that looks best has the largest mean.
    """

    kind: ClassVar[str] = "gp"
    settings_class = GaussianProcessSettings

    def _choose(self) -> int:
        if len(self.tried) < self.settings.warmup:
            return self._random_point()
        if 0 < self.settings.explore <= len(self.tried):
            return self._best()
        drawn = torch.randperm(len(self.points), generator=self._draws)[:DRAWN]
        mean, covariance = self._posterior(self.points[drawn])
        factor = torch.linalg.cholesky(covariance + 1e-6 * torch.eye(len(mean), dtype=torch.float64))
        value = mean + factor @ torch.randn(len(mean), generator=self._draws, dtype=torch.float64)
        return int(drawn[value.argmax()])

    def _best(self) -> int:
        return int(self._posterior(self.points)[0].argmax()) if self.tried else self.current

    def _alike(self, points: Tensor, others: Tensor) -> Tensor:
        return torch.exp(-torch.cdist(points, others).square() / (2 * self.settings.length**2))

    def _posterior(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean (p,) and covariance (p, p) of f at points (p, parts) in the coming block."""
        at, rewards = (torch.tensor(column, dtype=torch.float64) for column in zip(*self.tried, strict=True))
        ago, tried = torch.arange(len(at), 0, -1).double(), self.points[at.long()]
        scaled = rewards - rewards.mean()
        if len(at) > 1:
            # differences of neighbors have twice the variance of a reward around its trend
            scaled = scaled / (scaled.diff().square().mean() / 2 + 1e-24).sqrt()
        apart, memory = (ago[:, None] - ago).abs(), self.settings.memory
        covariance = self._alike(tried, tried) * torch.exp(-apart / memory) + 4 * torch.exp(-apart / TREND)
        covariance += self.settings.noise**2 * torch.eye(len(at), dtype=torch.float64)
        cross = self._alike(points, tried) * torch.exp(-ago / memory)
        factor = torch.linalg.cholesky(covariance)
        mean = cross @ torch.cholesky_solve(scaled[:, None], factor)[:, 0]
        known = torch.linalg.solve_triangular(factor, cross.T, upper=False)
        return mean, self._alike(points, points) - known.T @ known


class SuccessiveElimination(Controller):
    """Successive halving within a run (Karnin, Koren and Somekh 2013, on blocks of a training).

    Random actions are played in turn, `blocks` blocks each; then the better half by mean reward stays, until one is
    left, which the rest of the run has. The order is drawn anew, and then taken backward, so that a straight trend of
    the rewards favors none if `blocks` is even.
    """

    kind: ClassVar[str] = "elimination"
    settings_class = EliminationSettings

    def __init__(self, env: Any, settings: Any = None, **common: Unpack[Common]) -> None:
        self.left: list[int] = []
        """The actions that are left."""
        self.queue: list[int] = []
        """The points of the round's coming blocks."""
        self.begun = 0
        """Blocks before the round."""
        super().__init__(env, settings, **common)

    def _choose(self) -> int:
        if not self.left:
            order = torch.randperm(len(self.points), generator=self._draws)
            self.left = order[: self.settings.candidates].tolist()
        elif not self.queue and len(self.left) > 1:
            self.left = self._ranked()[: -(-len(self.left) // 2)]
            self.begun = len(self.tried)
        if len(self.left) == 1:
            return self.left[0]
        if not self.queue:
            turn = list[int]()
            for block in range(self.settings.blocks):
                turn = turn[::-1] if block % 2 else torch.randperm(len(self.left), generator=self._draws).tolist()
                self.queue += [self.left[at] for at in turn]
        return self.queue.pop(0)

    def _ranked(self) -> list[int]:
        """Return the actions that are left by their mean reward in the round, the best first."""
        found: dict[int, list[float]] = {point: [] for point in self.left}
        for point, reward in self.tried[self.begun :]:
            found[point].append(reward)
        return sorted(self.left, key=lambda point: -sum(found[point]) / max(1, len(found[point])))

    def _best(self) -> int:
        return self._ranked()[0]

    def _learner_state(self) -> dict[str, Any]:
        return super()._learner_state() | {"left": self.left, "queue": self.queue, "begun": self.begun}

    def _load_learner_state(self, state: dict[str, Any]) -> None:
        super()._load_learner_state(state)
        self.left, self.queue, self.begun = list(state["left"]), list(state["queue"]), state["begun"]


class Switching(Controller):
    """A control: the present action and a random neighbor in turn; the neighbor stays if its block earned more.

    It is population-based training (Jaderberg et al. 2017) with a population of one after the other, in one network.
    """

    kind: ClassVar[str] = "switching"
    settings_class = SwitchingSettings

    def __init__(self, env: Any, settings: Any = None, **common: Unpack[Common]) -> None:
        self.kept: int | None = None
        """The action to which neighbors are compared."""
        super().__init__(env, settings, **common)

    def _choose(self) -> int:
        if self.kept is None:
            self.kept = self._random_point()
            return self.kept
        if len(self.tried) % 2:
            return self._neighbor(self.kept)
        (kept, before), (neighbor, after) = self.tried[-2:]
        self.kept = neighbor if after > before else kept
        return self.kept

    def _neighbor(self, point: int) -> int:
        """Return a random point within `width` of another in each part; itself if there is none."""
        near = ((self.points - self.points[point]).abs() <= self.settings.width + 1e-9).all(1)
        near[point] = False
        found = near.nonzero()[:, 0]
        if not len(found):
            return point
        return int(found[torch.randint(len(found), (1,), generator=self._draws)])

    def _best(self) -> int:
        return self.current if self.kept is None else self.kept

    def _learner_state(self) -> dict[str, Any]:
        return super()._learner_state() | {"kept": self.kept}

    def _load_learner_state(self, state: dict[str, Any]) -> None:
        super()._load_learner_state(state)
        self.kept = state["kept"]


CONTROLLERS: dict[str, type[Controller]] = {
    each.kind: each for each in (GaussianProcessBandit, SuccessiveElimination, Switching)
}
"""Controllers by the names that `make_agent` knows."""
