"""Projected gradient ascent that ends, for each image, when the attack has succeeded."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Unpack

import torch
from torch import Tensor

from astra_gym.ssl_core.attacks.balls import AttackBalls, AttackOptions
from astra_gym.ssl_core.attacks.pgd import (
    Attacked,
    AttackReport,
    Budget,
    Encode,
    NonFiniteGradientError,
    Objective,
    check_values,
    rows_of,
)
from astra_gym.ssl_core.utils.finite import check_number


@dataclass(frozen=True, kw_only=True)
class EarlyStop:
    """The end of an attack on an image.

    Args:
        succeeds: function from embeddings (n, ...) to (n,) bool: whether the attack on each image has succeeded.
        further: steps that an image still takes after it was first found to have succeeded (FAT's tau); each step that
            begins at a success uses up one. An integer of 0 or more.

    Raises:
        ValueError: if `further` is out of its range.
    """

    succeeds: Callable[[Tensor], Tensor]
    further: int = 0

    def __post_init__(self) -> None:
        check_number("further", self.further, 0, whole=True)


def early_stopped_pgd(
    encode: Encode,
    objective: Objective,
    images: Tensor,
    budget: Budget,
    *,
    stop: EarlyStop,
    report: AttackReport | None = None,
    **options: Unpack[AttackOptions],
) -> Attacked:
    """Friendly PGD (FAT, Zhang et al. 2020): `pgd` that looks for success before each step of an image.

    Before each step, the first too, an image on which the attack has succeeded stops if it has no further steps left,
    and uses up one otherwise. A stopped image stays where it is, in its ball, and in the objective, as a positive and a
    negative of the others; FAT takes it out of the batch, and adds Gaussian noise at each step. As in `pgd`, only the
    images still moving are encoded. The gradient of an image that stops is computed with that of the others and not
    used. The host waits for the device at each step, to learn who stops.

    Args:
        stop: the rule.
        encode, objective, images, budget, report: as in `pgd`; the budget's steps are the most that an image takes,
            `report.steps` those that it took.
        options: generator, start, bounds, granularity and watch, as in `pgd`.

    Raises:
        ValueError, NonFiniteGradientError: as `pgd`.
    """
    budget = budget.to("cpu")
    balls = AttackBalls(images, budget, **options)
    low, high, watch = balls.low, balls.high, balls.watch
    n, device, step_size = len(images), images.device, balls.along(budget.step_size)

    def placed(values: Tensor) -> Tensor:
        return values.to(device, non_blocking=True)

    moved = balls.started()
    moved = torch.where(balls.along(budget.steps == 0) > 0, moved.clamp(low, high), moved)
    outside = balls.left(moved)
    total = torch.zeros((), device=device) if watch is None else watch

    taken, left = torch.zeros_like(budget.steps), torch.full_like(budget.steps, stop.further)
    slopes = torch.zeros(n, device=device, dtype=images.dtype)
    moving = torch.arange(n)
    z: Tensor | None = None
    while True:
        rows = balls.called(moving)
        at = placed(rows)
        unspent = taken[moving] < budget.steps[moving]
        with torch.set_grad_enabled(bool(unspent.any())):
            x = moved[at].requires_grad_()
            fresh = rows_of(encode, x, rows)
            z = fresh if z is None else z.index_copy(0, at, fresh)
            values = objective(z)
            check_values(values, n)
        z = z.detach()
        succeeded = stop.succeeds(z).cpu()[moving]
        going = unspent & ~(succeeded & (left[moving] == 0))
        left[moving] -= (succeeded & going).to(left.dtype)
        strays = moving[~going & outside[moving] & (taken[moving] == 0)]
        if len(strays):
            at = placed(strays)
            moved[at] = torch.clamp(moved[at], low[at], high[at])
            with torch.no_grad():
                z = z.index_copy(0, at, rows_of(encode, moved[at], strays).detach())
        if not bool(going.any()):
            break
        (gradient,) = torch.autograd.grad(values.sum(), x)
        place, moving = placed(going.nonzero()[:, 0]), moving[going]
        at, step = placed(moving), gradient[place]
        slopes[at] = step.abs().sum(dim=(1, 2, 3))
        total.add_(step.sum(dtype=total.dtype))
        taken[moving] += 1
        moved[at] = torch.clamp(moved[at] + step_size[at] * step.sign(), low[at], high[at])
    if watch is None and not math.isfinite(total):
        raise NonFiniteGradientError("the attack's gradients are not finite, so it left images where they were")
    if report is not None:
        report.slopes, report.steps = slopes, taken
    return Attacked(moved, z)
