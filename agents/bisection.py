"""Bisection: an agent that narrows its ranges within one run, and draws uniformly from what is left."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Unpack

import torch
from gymnasium import spaces
from torch import Tensor

from astra_gym.agents.base import Transition
from astra_gym.agents.controls import Common, OnePlayAgent
from astra_gym.agents.policies import choices
from astra_gym.envs.api.spaces import part_names
from astra_gym.ssl_core.utils.finite import check_number


@dataclass(frozen=True)
class BisectionSettings:
    """Settings of `Bisection`.

    Args:
        halvings: how often the range of each part of the action is halved, 1 or more.
        blocks: blocks of each half before one of them is chosen, 1 or more; if even, a straight trend of the rewards
            favors neither.
        order: parts in the order in which they are halved, by name (epsilon, steps, step_size) or by number (0, 1 and 2
            for these, as they stand in an action); parts that are left out are not halved; null: all, as they come.
        settle: whether the middle of what is left is played after the last halving, and predicted at any time, in place
            of draws from it.

    Raises:
        ValueError: if a value is out of range.
    """

    halvings: int = 1
    blocks: int = 2
    order: tuple[int | str, ...] | None = None
    settle: bool = True

    def __post_init__(self) -> None:
        for name in ("halvings", "blocks"):
            check_number(name, getattr(self, name), 1, whole=True)
        if self.order is not None:
            object.__setattr__(self, "order", tuple(self.order))


class Bisection(OnePlayAgent):
    """Agent that begins as uniform random, halves the range of one part of the action after the other, and plays the
    middle of what is left.

    Actions are drawn anew for every sub-environment and play, so that the search itself trains on a mixture, which is
    never as bad as a bad constant. To halve a part, its lower and its upper half are drawn from in blocks, in the order
    A B B A; the half that earned more stays. A block ends with a reward other than 0, as with `Controller`. Each
    comparison is of means over all other choices, so a few blocks suffice where single actions need many.

    Args:
        env: anything that `astra_gym.agents.base.as_torch_env` takes; a Box action space must be bounded.
        settings: settings of the agent.
        common: seed, device and tensorboard_log, as in `Agent`.

    Raises:
        ValueError: if the action space is not supported or is an unbounded Box, or `order` names no part or one twice.
    """

    kind: ClassVar[str] = "bisection"
    settings_class: ClassVar[type] = BisectionSettings

    def __init__(self, env: Any, settings: BisectionSettings | None = None, **common: Unpack[Common]) -> None:
        super().__init__(env, **common)
        self.settings = settings or BisectionSettings()
        self._check_bounded("bisection")
        sizes = choices(self.action_space)
        parts = len(sizes) or math.prod(self.action_space.shape or ())
        self.ends = [float(size) for size in sizes] or [1.0] * parts
        """By part, where its whole range ends: the number of members, or 1 for the width of a Box."""
        self.ranges = [[0.0, end] for end in self.ends]
        """By part: from the first member to the one behind the last, or shares of a Box's width."""
        self.queue = self._order(parts) * self.settings.halvings
        """The parts that are still to be halved; the first one is being compared."""
        self.earned: list[list[float]] = [[], []]
        """Rewards of the lower and of the upper half in this comparison."""
        self.first = self._coin()
        """The half that is played first, 0 or 1."""
        self._skip()

    def _order(self, parts: int) -> list[int]:
        """Return the numbers of the parts that are halved, in order."""
        names = part_names(self.action_space, parts)
        given = range(parts) if self.settings.order is None else self.settings.order
        order = [names.index(part) if isinstance(part, str) and part in names else part for part in given]
        if not set(order) <= set(range(parts)) or len(set(order)) < len(order):
            named = f", or names among {', '.join(names)}" if names else ""
            raise ValueError(f"order is {list(given)}: expected different numbers from 0 to {parts - 1}{named}")
        return [int(part) for part in order]

    def _coin(self) -> int:
        return int(torch.randint(2, (), generator=self._streams["agent/controller"]))

    def _halves(self, part: int) -> tuple[list[float], list[float]]:
        low, high = self.ranges[part]
        middle = (low + high) / 2
        if choices(self.action_space):
            middle = math.ceil(middle)
        return [low, middle], [middle, high]

    def _skip(self) -> None:
        """Leave out parts with one member, which cannot be halved."""
        if choices(self.action_space):
            while self.queue and self.ranges[self.queue[0]][1] - self.ranges[self.queue[0]][0] < 2:
                self.queue.pop(0)

    @property
    def half(self) -> int:
        """The half that the running block draws from: 0 the lower, 1 the upper."""
        played = len(self.earned[0]) + len(self.earned[1])
        return self.first ^ (played % 4 in (1, 2))

    def _drawn(self, n: int, ranges: list[list[float]], generator: torch.Generator | None) -> Tensor:
        """Draw `n` actions from ranges; None: take their middle."""
        low, high = (torch.tensor(ends, dtype=torch.float64) for ends in zip(*ranges, strict=True))
        share = torch.full((n, len(ranges)), 0.5, dtype=torch.float64)
        if generator is not None:
            share = torch.rand((n, len(ranges)), generator=generator, dtype=torch.float64)
        at, space = low + (high - low) * share, self.action_space
        if isinstance(space, spaces.Box):
            least, most = (torch.as_tensor(end, dtype=torch.float64) for end in (space.low, space.high))
            return (least + (most - least) * at.view(n, *space.shape)).float().to(self.device)
        # the middle of a range of whole numbers is its lower one
        index = torch.minimum(at.ceil() - 1 if generator is None else at.floor(), high - 1).clamp(min=0).long()
        return self._joined(list(index.unbind(1))).to(self.device)

    def _act(self, observation: Tensor) -> Tensor:
        ranges = list(self.ranges)
        if self.queue:
            ranges[self.queue[0]] = self._halves(self.queue[0])[self.half]
        settled = self.settings.settle and not self.queue
        return self._drawn(len(observation), ranges, None if settled else self._streams["agent/actions"])

    def _predict(self, observation: Tensor, deterministic: bool) -> Tensor:
        generator = None if deterministic or self.settings.settle else self._streams["agent/predict"]
        return self._drawn(len(observation), self.ranges, generator)

    def _update(self, rollout: list[Transition]) -> None:
        (played,) = rollout
        reward = float(played.reward.double().mean())
        if reward == 0 or not self.queue:
            return
        self.earned[self.half].append(reward)
        if len(self.earned[0]) + len(self.earned[1]) == 2 * self.settings.blocks:
            lower, upper = map(sum, self.earned)
            part = self.queue.pop(0)
            self.ranges[part] = self._halves(part)[int(upper > lower)]
            self.earned, self.first = [[], []], self._coin()
            self._skip()
        self.logger.record("train/block_reward", reward)

    def take_over(self, state: dict[str, Any]) -> None:
        """Begin with the ranges that another agent was left with, and halve them further.

        Raises:
            RuntimeError: if they are of other parts.
        """
        own = self._learner_state()
        self._load_learner_state({**own, "ranges": state["learner"]["ranges"]})
        self._skip()

    def _learner_state(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("ranges", "queue", "earned", "first")}

    def _load_learner_state(self, state: dict[str, Any]) -> None:
        if len(state["ranges"]) != len(self.ranges):
            raise RuntimeError(f"it has {len(state['ranges'])} parts there, {len(self.ranges)} here")
        if any(high > most for (_, high), most in zip(state["ranges"], self.ends, strict=True)):
            raise RuntimeError(f"its ranges are {state['ranges']} there, at most {self.ends} here")
        self.ranges, self.queue = [list(each) for each in state["ranges"]], list(state["queue"])
        self.earned, self.first = [list(each) for each in state["earned"]], state["first"]
