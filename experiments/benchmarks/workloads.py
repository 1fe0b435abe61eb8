"""The work of the benchmark: sizes, drawn budgets, networks that have seen data, and checks of agreement."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from astra_gym.envs.actions import ActionTable
from astra_gym.envs.api.action_sets import ActionSets
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
"""The paper's networks and optimizer, on 64 views."""
TINY: dict[str, Any] = {
    "image_size": 8,
    "arch": "resnet10",
    "width": 4,
    "projector_hidden": 16,
    "projector_dim": 16,
    "batch_size": 8,
    "limit": 48,
}
"""Settings of every world under `--quick`."""
DIGITS: dict[str, Any] = {
    "batch_size": 128,
    "epochs": 20,
    "lr": None,
    "strength": 0.5,
    "reward_cost": 0.0,
    "action_epsilons": None,
    "action_steps": None,
    "action_step_sizes": None,
}
"""Settings of the digits worlds: those of the preset `digits` before it was tuned, and ASTrA's ranges, so that the
figures can be compared with those of earlier versions."""
SETS = ActionSets()
FEWEST, MOST = SETS.steps[0], SETS.steps[-1]
COMMON: dict[str, Any] = {"agent": "reinforce", "precision": "fp32", "progress": "off", "probe_every": 0}


class Tolerance(NamedTuple):
    """Allowed difference of two attacks: in the attained loss, and in its gain over the loss at the random start."""

    loss: float
    gain: float


TOLERANCE = {"fp32": Tolerance(1e-3, 2.5e-2), "bf16": Tolerance(1e-2, 5e-2)}
"""The loss's tolerance is the one that `astra_gym.ssl_core.models.folding` promises. The gain must agree too: where the
reference gains little, an attack that does nothing would pass by its loss."""
QUICK_FACTOR = 10
"""Factor of the tolerance for `--quick`: the loss of a tiny network on a few tiny images depends on single pixels."""
MOST_GAIN = 0.5
"""An attack that gains at most half as much as the reference is wrong, whatever the tolerance."""
SEASONING = 8
"""Batches that a seasoned network has seen."""


@dataclass(frozen=True)
class Options:
    """Options of the benchmark: `threads` of torch, the device; `quick` shrinks every world, so that the whole takes
    seconds; `against` is another checkout for comparison."""

    threads: int
    device: torch.device
    quick: bool = False
    against: Path | None = None

    @property
    def paper(self) -> dict[str, Any]:
        """Settings of the paper's world: on a GPU with its whole batch, on a CPU with a part; `quick`: a tiny one."""
        return PAPER | ({"batch_size": 512} if self.device.type == "cuda" else {}) | (TINY if self.quick else {})

    def settings(self, **changes: Any) -> Settings:
        """Return the benchmark's digits in float32 with some settings changed."""
        shrunk = TINY if self.quick else {}
        return Settings.from_preset("digits", **DIGITS | COMMON | changes | shrunk, device=self.device.type)

    def learner(self, **changes: Any) -> TargetLearner:
        """Make a new learner of the benchmark's digits in float32 with some settings changed; `quick` has no effect."""
        settings = Settings.from_preset("digits", **DIGITS | COMMON | changes, device=self.device.type)
        plan = TrainingPlan(epochs=settings.optimizer.epochs, steps=10)
        return build_learner(settings.world, Streams(0, self.device), plan)

    def tolerance(self, precision: str) -> Tolerance:
        """Return the allowed difference of attacks, one of them in this precision; larger with `quick`."""
        allowed, factor = TOLERANCE[precision], QUICK_FACTOR if self.quick else 1
        return Tolerance(factor * allowed.loss, min(MOST_GAIN, factor * allowed.gain))


def views_for(learner: TargetLearner, count: int, size: int, stream: Streams) -> Tensor:
    """Draw random views (count, 3, size, size) on the learner's device, in the layout of training."""
    views = torch.rand(count, 3, size, size, generator=stream["views"])
    return views.to(learner.device, memory_format=torch.channels_last)


def random_actions(count: int, generator: torch.Generator, steps: tuple[int, int] = (FEWEST, MOST)) -> Tensor:
    """Draw factored actions (count, 3), uniform on the action grid, with numbers of steps in a range.

    Each number of steps occurs equally often, give or take one, so that every round has the range's mean. Our time
    grows with the mean, the plain loop's with the maximum; drawn freely, chance would change their ratio.

    Args:
        count: number of views.
        generator: generator on the CPU.
        steps: smallest and largest number of steps.
    """
    epsilon, step_size = (
        torch.randint(len(values), (count,), generator=generator) for values in (SETS.epsilons, SETS.step_sizes)
    )
    choices = steps[1] - steps[0] + 1
    evenly = (2 * torch.arange(count) + 1) * choices // (2 * count) + steps[0] - FEWEST
    return torch.stack([epsilon, evenly[torch.randperm(count, generator=generator)], step_size], dim=1)


def budget_of(actions: Tensor, device: torch.device) -> Budget:
    """Return the budget of factored actions (n, 3), on the device."""
    budget = ActionTable("factored").decode(actions.to(device))
    if budget is None:
        raise ValueError("factored actions have a budget")
    return budget


def seasoned(engine: AttackEngine) -> TargetNetwork:
    """Return the engine's network in eval mode, with batch-norm statistics of a few batches, which the engine draws."""
    network = engine.learner.network.train()
    with torch.no_grad():
        # batch-norm statistics of a trained network are not the initial ones
        for _ in range(SEASONING):
            for route in engine.method.routes.names:
                network(engine.views, route)
            engine.draw_batch()
    return network.eval()


def follow(engine: AttackEngine, leader: AttackEngine) -> None:
    """Bring a new engine to the state of a `seasoned` engine with the same seed: the same batch, the same weights."""
    for _ in range(SEASONING):
        engine.draw_batch()
    engine.learner.network.load_state_dict(leader.learner.network.state_dict())


def perturbations(views: Tensor, budget: Budget, radius: float | None, generator: torch.Generator) -> Tensor:
    """Draw the attack's random start (n, 3, h, w), as `TargetLearner.attack` does.

    Args:
        views: (n, 3, h, w).
        budget: n entries.
        radius: radius of the start, None for each view's own epsilon.
        generator: generator on the views' device.
    """
    unit = torch.rand(views.shape, generator=generator, device=views.device) * 2 - 1
    return unit * (budget.epsilon.view(-1, 1, 1, 1) if radius is None else radius)


def in_precision(network: TargetNetwork, precision: str) -> TargetNetwork:
    """Return a copy of the network that computes in another precision."""
    twin = copy.deepcopy(network)
    twin.precision = precision
    return twin


class BenchmarkError(RuntimeError):
    """Something cannot be measured here."""


class DisagreementError(BenchmarkError):
    """Two attacks that should agree do not, so their times cannot be compared."""


def check_agreement(
    expected: Tensor,
    found: Tensor,
    start: Tensor,
    loss: Callable[[Tensor], float],
    name: str,
    exact: bool = False,
    tolerance: Tolerance = TOLERANCE["fp32"],
) -> dict[str, Any]:
    """Compare the views of two attacks from the same start; all of them (n, 3, h, w).

    Args:
        expected: views of the reference.
        found: views of the variant.
        start: the views at the random start, in [0, 1].
        loss: function from such views to the attained loss.
        name: name of the variant.
        exact: whether every pixel must be the same.
        tolerance: allowed distance from 1: `loss` for the ratio of the losses, `gain` for the ratio of the gains over
            the start.

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
