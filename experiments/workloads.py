"""What the benchmark works on: sizes, drawn budgets, networks that have seen data, and who must agree with whom."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from envs.actions import GRID, ActionTable
from envs.engine import AttackEngine
from experiments.settings import Settings
from ssl_core.attacks import Budget
from ssl_core.learner import TargetLearner
from ssl_core.networks import TargetNetwork
from ssl_core.rng import Streams

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
COMMON: dict[str, Any] = {"agent": "reinforce", "precision": "fp32", "progress": "off"}
TOLERANCE = {"fp32": 1e-3, "bf16": 1e-2}


@dataclass(frozen=True)
class Options:
    """Where the benchmark runs: `threads` of torch, the device; `quick` shrinks every world, for seconds in all;
    `against` is another checkout to compare with."""

    threads: int
    device: torch.device
    quick: bool = False
    against: Path | None = None

    def settings(self, **changes: Any) -> Settings:
        """The digits preset in float32 with some settings changed."""
        shrunk = TINY if self.quick else {}
        return Settings.from_preset("digits", **COMMON | changes | shrunk, device=self.device.type)

    def learner(self, **changes: Any) -> TargetLearner:
        """A fresh learner of the digits preset in float32 with some settings changed; `quick` shrinks nothing here."""
        settings = Settings.from_preset("digits", **COMMON | changes, device=self.device.type)
        return settings.make_learner(Streams(0, self.device), planned_updates=1000, steps_per_epoch=10)

    def tolerance(self, precision: str) -> float:
        """How far apart attained losses may lie: the contract of `ssl_core.folding`; `quick`: ten times as far.

        The loss of a tiny network on a few tiny images hangs on single pixels.
        """
        return TOLERANCE[precision] * (10 if self.quick else 1)


def views_for(learner: TargetLearner, count: int, size: int, stream: Streams) -> Tensor:
    """Random views (count, 3, size, size) where the learner is, in the layout of training."""
    views = torch.rand(count, 3, size, size, generator=stream["views"])
    return views.to(learner.device, memory_format=torch.channels_last)


def random_actions(
    count: int, generator: torch.Generator, steps: tuple[int, int] = (GRID[1][0], GRID[1][-1])
) -> Tensor:
    """Factored actions (count, 3), uniform on the action grid, their numbers of steps within both ends.

    Args:
        count: of views.
        generator: on the CPU.
        steps: smallest and largest number of steps.
    """
    ends = [(0, len(values)) for values in GRID]
    ends[1] = (steps[0] - GRID[1][0], steps[1] - GRID[1][0] + 1)
    return torch.stack([torch.randint(low, high, (count,), generator=generator) for low, high in ends], dim=1)


def budget_of(actions: Tensor, device: torch.device) -> Budget:
    """The budget that factored actions (n, 3) stand for, on the device."""
    budget = ActionTable("factored").decode(actions.to(device))
    if budget is None:
        raise ValueError("factored actions have a budget")
    return budget


def seasoned(engine: AttackEngine) -> TargetNetwork:
    """The engine's network in eval mode, its batch-norm statistics those of a few batches of data."""
    network = engine.learner.network.train()
    with torch.no_grad():
        # batch-norm statistics of a trained network are not the initial ones
        for _ in range(8):
            for route in engine.method.routes:
                network(engine.views, route)
            engine._draw()
    return network.eval()


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
    loss: Callable[[Tensor], float],
    name: str,
    exact: bool = False,
    tolerance: float = 1e-3,
) -> dict[str, Any]:
    """Compares the views (n, 3, h, w) that the plain loop and a variant found; `loss` is what such views attain.

    Raises:
        DisagreementError: if a pixel differs and `exact` is True, or the attained losses differ by over `tolerance`.
    """
    equal = (expected == found).float().mean().item()
    reference, attained = loss(expected), loss(found)
    if exact and equal < 1:
        raise DisagreementError(f"{name}: {1 - equal:.2%} of the pixels differ from the plain loop's, expected none")
    if not abs(attained / reference - 1) <= tolerance:
        raise DisagreementError(
            f"{name}: attains a loss of {attained:.6g}, the plain loop {reference:.6g}: over {tolerance:.1%} apart"
        )
    return {
        "variant": name,
        "exact": exact,
        "tolerance": tolerance,
        "equal_pixels": equal,
        "loss_ratio": attained / reference,
    }
