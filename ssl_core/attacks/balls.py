"""Where an attack begins and what it stays in, for attacks whose images stop one by one."""

from typing import TypedDict

import torch
from torch import Tensor

from astra_gym.ssl_core.attacks.pgd import Budget, Start, check_arguments, first_perturbations, out_of_range


class AttackOptions(TypedDict, total=False):
    """What such attacks take as `pgd` does, with its defaults."""

    generator: torch.Generator | None
    start: str | Start | Tensor
    bounds: tuple[float, float]
    granularity: int
    watch: Tensor | None


class AttackBalls:
    """The L-infinity balls of n images, cut to the bounds.

    Args:
        images: (n, c, h, w) within the bounds.
        budget: n entries, on the host.
        generator, start, bounds, granularity, watch: as in `pgd`.

    Attributes:
        images: (n, c, h, w), without gradient.
        low, high: (n, c, h, w), the smallest and the largest values.

    Raises:
        ValueError: as `pgd`.
    """

    def __init__(
        self,
        images: Tensor,
        budget: Budget,
        *,
        generator: torch.Generator | None = None,
        start: str | Start | Tensor = "uniform",
        bounds: tuple[float, float] = (0.0, 1.0),
        granularity: int = 1,
        watch: Tensor | None = None,
    ) -> None:
        self._watched = watch is not None and images.device.type != "cpu"
        check_arguments(images, budget, None if self._watched else bounds, granularity)
        self.images, self.budget, self.bounds, self.watch = images.detach(), budget, bounds, watch
        self._generator, self._start, self._granularity = generator, start, granularity
        radius = self.along(budget.epsilon)
        self.low = (self.images - radius).clamp_(min=bounds[0])
        self.high = (self.images + radius).clamp_(max=bounds[1])

    def along(self, values: Tensor) -> Tensor:
        """Return values (m,) for images, on their device and in their type, as (m, 1, 1, 1)."""
        return values.to(self.images.dtype).view(-1, 1, 1, 1).to(self.images.device, non_blocking=True)

    def started(self) -> Tensor:
        """Return the first points (n, c, h, w), within the bounds.

        Raises:
            ValueError: if the start does not fit the images.
        """
        checked = None if self._watched else self.bounds
        first = first_perturbations(self._start, self.images, self.budget, self._generator, checked)
        if self.watch is not None and self._watched:
            # values out of range make it NaN
            self.watch.add_(out_of_range(self.images, first, self.bounds))
        return (self.images + first).clamp_(*self.bounds)

    def left(self, moved: Tensor) -> Tensor:
        """Return whether images (n, c, h, w) are outside their balls, (n,) bool on the host: a start may be. Each step
        returns to the ball, and an image without a step has to as well."""
        return ((moved < self.low) | (moved > self.high)).flatten(1).any(1).cpu()

    def called(self, rows: Tensor) -> Tensor:
        """Return rows (m,) to encode, filled up by others to a multiple of the granularity, as in `pgd`."""
        everyone = torch.arange(len(self.images))
        others = everyone[~torch.isin(everyone, rows)]
        return torch.cat([rows, others[: -len(rows) % self._granularity]])
