"""The world that headroom is measured in: partly trained under the constant, with training images kept for judges."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from astra_gym.envs.engine import AttackEngine
from astra_gym.experiments.config.settings import Settings
from astra_gym.experiments.tuning.candidates import reaching
from astra_gym.experiments.tuning.trial import training_images
from astra_gym.ssl_core.attacks.pgd import Budget, ConstantBudget
from astra_gym.ssl_core.data.image_set import Split
from astra_gym.ssl_core.utils.rng import Streams

RUNGS = 8
"""Number of budgets that are tried for a view."""
FEWEST = 4
"""Least number of images of a judge."""


@dataclass(frozen=True)
class HeadroomWorld:
    """What all repeats of a measurement share.

    Args:
        settings: settings of the training, with the agent `fixed` and the constant as its budget.
        batches: batches that a repeat attacks, for headroom within an attack.
        judge_images: largest number of training images of each of the two judges.
        views: largest number of views of a batch that are tried with every budget.
        updates: updates of the long test.
    """

    settings: Settings
    batches: int = 8
    judge_images: int = 256
    views: int = 52
    updates: int = 40

    @property
    def constant(self) -> ConstantBudget:
        """The constant attack that the world is trained with."""
        budget = self.settings.fixed_budget
        if budget is None:
            raise ValueError(f"the agent is {self.settings.agent.agent}: expected fixed, with the constant's budget")
        return budget

    @property
    def radius(self) -> float:
        """The judged radius."""
        return self.settings.judge.epsilon

    def judged(self, images: int) -> int:
        """Return the number of images of each judge, at most a quarter of so many training images.

        Raises:
            ValueError: if there are too few images.
        """
        count = min(self.judge_images, images // 4)
        if count < FEWEST:
            raise ValueError(f"{images} training images leave {count} for a judge: expected {FEWEST} or more")
        return count

    def divided(self, seed: int) -> Split:
        """Return the training images that are trained on, and as test images those of both judges, A's first. The seed
        divides them; no test image is in either part."""
        train = training_images(self.settings)
        count = self.judged(len(train))
        rows = torch.randperm(len(train), generator=Streams(seed)["headroom/rows"])
        return Split(train.rows(rows[2 * count :], "trained on"), train.rows(rows[: 2 * count], "judges"))

    def started(self, seed: int, **changed: Any) -> tuple[AttackEngine, list[Tensor]]:
        """Train for half of the run under the constant, on the CPU.

        Args:
            seed: seed of the world, and of the division into judges and images that are trained on.
            changed: settings of the engine that are not the measurement's.

        Returns:
            The engine, and the judges' images, uint8 (m, 3, h, w) each; the engine has neither, and no test image.
        """
        engine, images = self.begun(seed, **changed)
        while engine.step < engine.planned_updates // 2:
            engine.play(self.constant.expand(engine.num_attacked))
        return engine, images

    def begun(self, seed: int, **changed: Any) -> tuple[AttackEngine, list[Tensor]]:
        """Return the engine and images of `started`, before the first update."""
        data = self.divided(seed)
        engine = AttackEngine(self.settings.world.replace(**changed), seed, "cpu", data)
        return engine, list(data.test.images.split(len(data.test) // 2))


def ladder(world: HeadroomWorld) -> list[ConstantBudget]:
    """Return `RUNGS` budgets of the world's sets, from no attack to the largest radius with the most steps.

    Radius and steps rise together, evenly by their places in the sets. The step size is the smallest with which the
    steps add up to 1.25 radii, else the largest. The constant takes the place of the budget with the nearest radius,
    the first and the last apart.
    """
    sets, found = world.settings.ranges.sets, [ConstantBudget(epsilon=0.0, step_size=0.0, steps=0)]
    steps = [count for count in sets.steps if count]
    radii = [epsilon for epsilon in sets.epsilons if epsilon]
    for rung in range(1, RUNGS):
        at = (rung - 1) / (RUNGS - 2)
        epsilon, count = radii[round(at * (len(radii) - 1))], steps[round(at * (len(steps) - 1))]
        found.append(ConstantBudget(epsilon=epsilon, step_size=reaching(sets, epsilon, count), steps=count))
    nearest = min(range(1, RUNGS - 1), key=lambda rung: abs(found[rung].epsilon - world.constant.epsilon))
    found[nearest] = world.constant
    return found


def mixed(budgets: list[ConstantBudget], chosen: Tensor) -> Budget:
    """Return the budget of views that have a position in `budgets` each, (n,) int64."""
    parts = {name: torch.tensor([getattr(each, name) for each in budgets]) for name in ("epsilon", "step_size")}
    steps = torch.tensor([each.steps for each in budgets])
    return Budget(**{name: values[chosen] for name, values in parts.items()}, steps=steps[chosen])
