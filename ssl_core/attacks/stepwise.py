"""Projected gradient ascent that the caller advances: before each step it chooses who moves, and how far."""

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Unpack

import torch
from torch import Tensor

from astra_gym.ssl_core.attacks.balls import AttackBalls, AttackOptions
from astra_gym.ssl_core.attacks.pgd import (
    Attacked,
    Budget,
    Encode,
    NonFiniteGradientError,
    Objective,
    check_values,
    rows_of,
)

STATE = ("moved", "embeddings", "values", "gradient", "agreement", "steps", "stopped", "_outside")


class StepwiseAttack:
    """L-infinity PGD (Madry et al. 2018) by sign ascent, one step at a time; n is the number of images.

    If an image always moves by one step size until it stops, its result is that of `pgd` with as many steps, up to
    rounding. An image that has stopped stays where it is, and in the objective. As in `pgd` only images that have moved
    are encoded, and the embeddings of the others are kept. With a `watch` the host waits for the device only at the
    start.

    Args:
        encode, objective, images: as in `pgd`. Here images that have stopped fill up a call of `encode`.
        epsilon: (n,) radii in the images' unit, on the host.
        within: context of every call of `encode` and `objective`, such as the network's mode.
        state: what `state_dict` gave; the attack continues there, and draws no start.
        options: generator, start, bounds, granularity and watch, as in `pgd`.

    Attributes:
        images: (n, c, h, w), clean.
        moved: (n, c, h, w), where the attack stands.
        embeddings: (n, ...) of `moved`.
        values: (n,) of the objective.
        gradient: (n, c, h, w) of the sum of the values at the images that still move; at the others the last one.
        agreement: (n,) mean product of the signs of an image's last two gradients, in [-1, 1]; 0 before its first step.
        steps: (n,) int64, steps taken, on the host.
        stopped: (n,) bool, on the host.

    Raises:
        ValueError: as `pgd`.
    """

    embeddings: Tensor
    values: Tensor

    def __init__(
        self,
        encode: Encode,
        objective: Objective,
        images: Tensor,
        epsilon: Tensor,
        *,
        within: Callable[[], AbstractContextManager[None]] = nullcontext,
        state: Mapping[str, Any] | None = None,
        **options: Unpack[AttackOptions],
    ) -> None:
        n = len(epsilon)
        budget = Budget(epsilon=epsilon, step_size=torch.zeros_like(epsilon), steps=torch.zeros(n, dtype=torch.int64))
        self._balls = AttackBalls(images, budget, **options)
        self.images, self._watch = self._balls.images, self._balls.watch
        self._encode, self._objective, self._within = encode, objective, within
        if state is not None:
            self.load_state_dict(state)
            return
        self.moved = self._balls.started()
        self.steps, self.stopped = budget.steps, torch.zeros(n, dtype=torch.bool)
        self.gradient = torch.zeros_like(self.moved)
        self.agreement = torch.zeros(n, dtype=images.dtype, device=images.device)
        self._outside = self._balls.left(self.moved)
        self._look(torch.arange(n))

    def _look(self, rows: Tensor) -> None:
        """Encode images, and take the gradient there."""
        n, called = len(self.images), self._balls.called(rows)
        at = rows.to(self.images.device, non_blocking=True)
        with self._within(), torch.enable_grad():
            x = self.moved[called.to(self.images.device, non_blocking=True)].requires_grad_()
            z = rows_of(self._encode, x, called)[: len(rows)]
            z = z if len(rows) == n else self.embeddings.index_copy(0, at, z)
            values = self._objective(z)
            check_values(values, n)
            gradient = torch.autograd.grad(values.sum(), x)[0][: len(rows)]
        self.embeddings, self.values = z.detach(), values.detach()
        if self.steps.any():
            self.agreement[at] = (gradient.sign() * self.gradient[at].sign()).mean(dim=(1, 2, 3))
        self.gradient[at] = gradient

    @torch.no_grad()
    def advance(self, step_sizes: Tensor, moving: Tensor) -> None:
        """Take one more step of some images; the others stop, for good.

        Args:
            step_sizes: (n,) in the images' unit, on the host; those of images that do not move are not used.
            moving: (n,) bool, on the host.

        Raises:
            ValueError: if the shapes or types are others, or an image moves that has stopped.
            NonFiniteGradientError: without a `watch`, if a gradient is not finite.
        """
        n, low, high = len(self.images), self._balls.low, self._balls.high
        if step_sizes.shape != (n,) or moving.shape != (n,) or moving.dtype != torch.bool:
            raise ValueError(
                f"step_sizes are {tuple(step_sizes.shape)}, moving is {moving.dtype} {tuple(moving.shape)}: expected "
                f"({n},) twice, and torch.bool"
            )
        if bool((again := moving & self.stopped).any()):
            raise ValueError(f"images {again.nonzero()[:9, 0].tolist()} have stopped for good: expected others to move")
        strays, rows = (~moving & self._outside).nonzero()[:, 0], moving.nonzero()[:, 0]
        if len(strays):
            at = strays.to(self.images.device)
            self.moved[at] = self.moved[at].clamp(low[at], high[at])
            with self._within():
                z = rows_of(self._encode, self.moved[at], strays)
                self.embeddings = self.embeddings.index_copy(0, at, z)
                self.values = self._objective(self.embeddings)
            if len(rows):
                # the gradients of the others follow
                self._look(rows)
        if len(rows):
            at = rows.to(self.images.device, non_blocking=True)
            gradient = self.gradient[at]
            total = gradient.sum(dtype=torch.promote_types(gradient.dtype, torch.float32))
            if self._watch is not None:
                self._watch.add_(total)
            elif not math.isfinite(total):
                raise NonFiniteGradientError("the attack's gradients are not finite, so it left images where they were")
            step = gradient.sign().mul_(self._balls.along(step_sizes[rows])).add_(self.moved[at])
            self.moved[at] = step.clamp(low[at], high[at])
        self.stopped, self.steps = self.stopped | ~moving, self.steps + moving
        self._outside = torch.zeros_like(self._outside)
        if len(rows):
            self._look(rows)

    def result(self) -> Attacked:
        """Return the attacked images and their embeddings."""
        return Attacked(self.moved, self.embeddings)

    def state_dict(self) -> dict[str, Tensor]:
        """Return copies of all that an attack on the same images and weights needs to continue exactly."""
        return {name.strip("_"): getattr(self, name).clone() for name in STATE}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue where `state_dict` was taken."""
        host = {"steps", "stopped", "_outside"}
        for name in STATE:
            value = state[name.strip("_")].clone()
            setattr(self, name, value if name in host else value.to(self.images.device))
