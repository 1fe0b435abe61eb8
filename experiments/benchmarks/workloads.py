"""What the benchmark works on: sizes, drawn budgets, networks that have seen data, and who must agree with whom."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from astra_gym.envs.actions import GRID, ActionTable
from astra_gym.envs.builders import build_learner
from astra_gym.envs.engine import AttackEngine
from astra_gym.experiments.config.settings import Settings
from astra_gym.ssl_core.attacks.pgd import Budget
from astra_gym.ssl_core.models.target_network import TargetNetwork
from astra_gym.ssl_core.training.learner import TargetLearner
from astra_gym.ssl_core.utils.rng import Streams
from astra_gym.ssl_core.utils.training_plan import TrainingPlan

PAPER: dict[str, Any] = {
    "image_size": 32,
    "arch": "resnet18",
    "width": 64,
    "projector_hidden": 2048,
    "projector_dim": 512,
    "batch_size": 32,
    "optimizer": "lars",
}
"""The paper's networks and optimiser, on 64 views."""
TINY: dict[str, Any] = {
    "image_size": 8,
    "arch": "resnet10",
    "width": 4,
    "projector_hidden": 16,
    "projector_dim": 16,
    "batch_size": 8,
    "limit": 48,
}
"""What `--quick` makes of every world."""
COMMON: dict[str, Any] = {"agent": "reinforce", "precision": "fp32", "progress": "off", "probe_every": 0}


class Tolerance(NamedTuple):
    """How far two attacks may lie apart: in the attained loss, and in its gain over the loss at the random start."""

    loss: float
    gain: float


TOLERANCE = {"fp32": Tolerance(1e-3, 2.5e-2), "bf16": Tolerance(1e-2, 5e-2)}
"""Of the attained loss: the contract of `astra_gym.ssl_core.models.folding`. Where an attack gains little, the loss
alone would pass an attack that does nothing: so its gain must agree too."""
QUICK_FACTOR = 10
"""How many times as much `--quick` allows: the loss of a tiny network on a few tiny images hangs on single pixels."""
MOST_GAIN = 0.5
"""An attack that gains at most half of what the reference does is wrong, whatever is allowed."""
SEASONING = 8
"""Batches that a seasoned network has seen."""


@dataclass(frozen=True)
class Options:
    """Where the benchmark runs: `threads` of torch, the device; `quick` shrinks every world, for seconds in all;
    `against` is another checkout to compare with."""

    threads: int
    device: torch.device
    quick: bool = False
    against: Path | None = None

    @property
    def paper(self) -> dict[str, Any]:
        """The paper's world: on a GPU with its whole batch, on a processor with a part; `quick`: a tiny one."""
        return PAPER | ({"batch_size": 512} if self.device.type == "cuda" else {}) | (TINY if self.quick else {})

    def settings(self, **changes: Any) -> Settings:
        """The digits preset in float32 with some settings changed."""
        shrunk = TINY if self.quick else {}
        return Settings.from_preset("digits", **COMMON | changes | shrunk, device=self.device.type)

    def learner(self, **changes: Any) -> TargetLearner:
        """A fresh learner of the digits preset in float32 with some settings changed; `quick` shrinks nothing here."""
        settings = Settings.from_preset("digits", **COMMON | changes, device=self.device.type)
        return build_learner(settings, Streams(0, self.device), TrainingPlan(epochs=settings.epochs, steps=10))

    def tolerance(self, precision: str) -> Tolerance:
        """How far apart attacks may lie, one of them in this precision; more with `quick`."""
        allowed, factor = TOLERANCE[precision], QUICK_FACTOR if self.quick else 1
        return Tolerance(factor * allowed.loss, min(MOST_GAIN, factor * allowed.gain))


def views_for(learner: TargetLearner, count: int, size: int, stream: Streams) -> Tensor:
    """Random views (count, 3, size, size) where the learner is, in the layout of training."""
    views = torch.rand(count, 3, size, size, generator=stream["views"])
    return views.to(learner.device, memory_format=torch.channels_last)


def random_actions(
    count: int, generator: torch.Generator, steps: tuple[int, int] = (GRID["steps"][0], GRID["steps"][-1])
) -> Tensor:
    """Factored actions (count, 3), uniform on the action grid, their numbers of steps within both ends.

    Every number of steps occurs as often as any other, or once more or less, so that their mean is that of the range in
    every round: our time goes with the mean, the plain loop's with the maximum, and chance would make the difference.

    Args:
        count: of views.
        generator: on the CPU.
        steps: smallest and largest number of steps.
    """
    epsilon, step_size = (
        torch.randint(len(GRID[name]), (count,), generator=generator) for name in ("epsilon", "step_size")
    )
    choices = steps[1] - steps[0] + 1
    evenly = (2 * torch.arange(count) + 1) * choices // (2 * count) + steps[0] - GRID["steps"][0]
    return torch.stack([epsilon, evenly[torch.randperm(count, generator=generator)], step_size], dim=1)


def budget_of(actions: Tensor, device: torch.device) -> Budget:
    """The budget that factored actions (n, 3) stand for, on the device."""
    budget = ActionTable("factored").decode(actions.to(device))
    if budget is None:
        raise ValueError("factored actions have a budget")
    return budget


def seasoned(engine: AttackEngine) -> TargetNetwork:
    """The engine's network in eval mode, its batch-norm statistics those of a few batches, which the engine draws."""
    network = engine.learner.network.train()
    with torch.no_grad():
        # batch-norm statistics of a trained network are not the initial ones
        for _ in range(SEASONING):
            for route in engine.method.routes:
                network(engine.views, route)
            engine.draw_batch()
    return network.eval()


def follow(engine: AttackEngine, leader: AttackEngine) -> None:
    """Brings a new engine where one of the same seed is after `seasoned`: at the same batch with the same weights."""
    for _ in range(SEASONING):
        engine.draw_batch()
    engine.learner.network.load_state_dict(leader.learner.network.state_dict())


def perturbations(views: Tensor, budget: Budget, radius: float | None, generator: torch.Generator) -> Tensor:
    """The attack's random start (n, 3, h, w), drawn as `TargetLearner.attack` does.

    Args:
        views: (n, 3, h, w).
        budget: n entries.
        radius: of the start, None for each view's own epsilon.
        generator: on the views' device.
    """
    unit = torch.rand(views.shape, generator=generator, device=views.device) * 2 - 1
    return unit * (budget.epsilon.view(-1, 1, 1, 1) if radius is None else radius)


def in_precision(network: TargetNetwork, precision: str) -> TargetNetwork:
    """A copy of the network that computes in another precision."""
    twin = copy.deepcopy(network)
    twin.precision = precision
    return twin


class BenchmarkError(RuntimeError):
    """Something cannot be measured here."""


class DisagreementError(BenchmarkError):
    """Two attacks that should find the same do not, so their times cannot be compared."""


def check_agreement(
    expected: Tensor,
    found: Tensor,
    start: Tensor,
    loss: Callable[[Tensor], float],
    name: str,
    exact: bool = False,
    tolerance: Tolerance = TOLERANCE["fp32"],
) -> dict[str, Any]:
    """Compares what two attacks from the same start made of views; all of them (n, 3, h, w).

    Args:
        expected: the reference's.
        found: the variant's.
        start: the views at the random start, in [0, 1].
        loss: what such views attain.
        name: of the variant.
        exact: whether every pixel must be the same.
        tolerance: `loss` of the ratio of the losses, `gain` of that of the gains over the start.

    Raises:
        DisagreementError: if a pixel differs and `exact` is True, the attained losses or their gains over the start
            differ by more than `tolerance`, or the reference gains nothing.
    """
    equal = (expected == found).float().mean().item()
    reference, attained, begun = loss(expected), loss(found), loss(start)
    if exact and equal < 1:
        raise DisagreementError(f"{name}: {1 - equal:.2%} of the pixels differ from the reference's, expected none")
    if not abs(attained / reference - 1) <= tolerance.loss:
        raise DisagreementError(
            f"{name}: attains a loss of {attained:.6g}, the reference {reference:.6g}: over {tolerance.loss:.1%} apart"
        )
    if not reference > begun:
        raise DisagreementError(
            f"{name}: the reference attains a loss of {reference:.6g} from {begun:.6g} at the start: expected a gain"
        )
    gain_ratio = (attained - begun) / (reference - begun)
    if not abs(gain_ratio - 1) < tolerance.gain:
        raise DisagreementError(
            f"{name}: gains {gain_ratio:.1%} of the loss that the reference gains over the start: expected less than "
            f"{tolerance.gain:.1%} apart"
        )
    return {
        "variant": name,
        "exact": exact,
        "tolerance": tolerance._asdict(),
        "equal_pixels": equal,
        "loss_ratio": attained / reference,
        "gain_ratio": gain_ratio,
    }
