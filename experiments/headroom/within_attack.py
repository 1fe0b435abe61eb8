"""Headroom within an attack: whether another division of the steps among views attains more loss at equal cost."""

from collections.abc import Mapping
from dataclasses import replace
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor

from astra_gym.envs.engine import AttackEngine
from astra_gym.experiments.headroom.verdicts import Verdict, decide
from astra_gym.experiments.headroom.world import HeadroomWorld
from astra_gym.ssl_core.models.modes import frozen
from astra_gym.ssl_core.training.learner import TargetLearner

MEAN_STEPS = 4
"""Steps of the uniform attack, and mean steps of the others."""
UNIT = "loss"


def allocate(gains: Tensor, total: int) -> Tensor:
    """Give steps one by one, each to the view with the largest next gain; of equals, to the first.

    Args:
        gains: (most, n), the gain of a view's first step, of its second, and so on.
        total: number of steps to give, at most most * n.

    Returns:
        (n,) int64, the steps of each view, from 0 to most; their sum is total.
    """
    most, n = gains.shape
    if not 0 <= total <= most * n:
        raise ValueError(f"{total} steps for {n} views: expected 0 to {most * n}, since a view takes at most {most}")
    rows = torch.cat([gains, torch.full((1, n), -torch.inf)])
    steps = torch.zeros(n, dtype=torch.int64)
    for _ in range(total):
        steps[rows[steps, torch.arange(n)].argmax()] += 1
    return steps


def by_gradient(norms: Tensor, most: int, total: int) -> Tensor:
    """Divide steps in proportion to the norm of each view's input gradient, by the method of D'Hondt.

    A view with k steps bids norm / (k + 1) for the next one; the highest bid gets it, until all are given. A view takes
    at most `most` steps. The norm is the Euclidean one of the gradient of the batch's summed objective with respect to
    the clean view, in the mode of the attack.

    Args:
        norms: (n,), 0 or more.
        most: largest number of steps of a view.
        total: number of steps to give.
    """
    return allocate(norms / torch.arange(1, most + 1).unsqueeze(1), total)


def measure(world: HeadroomWorld, seed: int) -> dict[str, Any]:
    """Attack batches of a partly trained world with each division of the steps.

    The radius and the step size are the constant's. The oracle sees the loss of every view along a uniform attack with
    the largest number of steps of the world; then each division is really attacked with, from the same random start.

    Returns:
        For each batch the mean attained loss by division (`uniform`, `rule`, `oracle`) and without an attack (`clean`),
        the standard deviation over views of the uniform attack's gain, and the oracle's steps (`histogram`: the number
        of views with 0, 1, ... steps).
    """
    engine, _ = world.started(seed)
    found = []
    for batch in range(world.batches):
        if batch:
            engine.draw_batch()
        found.append(_batch(world, engine))
    return {"batches": found}


def _batch(world: HeadroomWorld, engine: AttackEngine) -> dict[str, Any]:
    learner, views, constant = engine.learner, engine.all_views, world.constant
    n, objective, trace = engine.num_attacked, learner.objective(views), list[Tensor]()
    most = max(*world.settings.ranges.sets.steps, MEAN_STEPS)
    noise = engine.streams.on_device("headroom/attack")
    start = noise.get_state()

    def recording(z: Tensor) -> Tensor:
        trace.append(objective(z))
        return trace[-1]

    def attained(steps: Tensor) -> Tensor:
        trace.clear()
        noise.set_state(start)
        with learner.untracked():
            learner.attack(views, replace(constant.expand(n), steps=steps), noise, recording)
        return trace[-1].detach()

    attained(torch.full((n,), most))
    along = torch.stack([values.detach() for values in trace])
    total = MEAN_STEPS * n
    divisions = {
        "uniform": torch.full((n,), MEAN_STEPS),
        "rule": by_gradient(gradient_norms(learner, views), most, total),
        "oracle": allocate(along.diff(dim=0), total),
    }
    losses = {name: attained(steps) for name, steps in divisions.items()}
    clean = objective(learner.encode_clean(views).embeddings)
    # the next batch has another start
    torch.rand(1, generator=noise)
    return {
        "clean": float(clean.mean()),
        **{name: float(values.mean()) for name, values in losses.items()},
        "spread": float((losses["uniform"] - clean).std()),
        "histogram": torch.bincount(divisions["oracle"], minlength=most + 1).tolist(),
    }


def gradient_norms(learner: TargetLearner, views: Tensor) -> Tensor:
    """Return the norm (n,) of each attacked view's input gradient, see `by_gradient`.

    Args:
        learner: the network.
        views: (v, 3, h, w), all views of a batch.
    """
    method = learner.method
    training = method.attack.mode == "train"
    images = method.attacked(views).detach().clone().requires_grad_()
    objective = learner.objective(views)
    with learner.untracked(), frozen(learner.network, training), frozen(learner.heads, training):
        z = method.encode(learner.plain())(images, torch.arange(len(images)))
        (gradient,) = torch.autograd.grad(objective(z).sum(), images)
    return gradient.flatten(1).norm(dim=1)


def conclude(world: HeadroomWorld, repeats: Mapping[int, Any]) -> tuple[list[Verdict], dict[str, Any]]:
    """Return the verdicts over the repeats, whose batches share one trained network, the oracle's first, and the means
    of the losses."""
    batches = [batch for seed in sorted(repeats) for batch in repeats[seed]["batches"]]
    spread = float(np.mean([batch["spread"] for batch in batches]))
    verdicts = []
    for name, words in (("oracle", "greedy oracle - uniform"), ("rule", "gradient norm - uniform")):
        each = [[batch[name] - batch["uniform"] for batch in repeats[seed]["batches"]] for seed in sorted(repeats)]
        verdicts.append(decide(f"within an attack, {words}", [fmean(gains) for gains in each], UNIT, spread))
    means = {
        name: float(np.mean([batch[name] for batch in batches])) for name in ("clean", "uniform", "rule", "oracle")
    }
    steps = np.sum([batch["histogram"] for batch in batches], axis=0)
    return verdicts, {"losses": means, "spread": spread, "oracle_steps": (steps / steps.sum()).round(4).tolist()}
