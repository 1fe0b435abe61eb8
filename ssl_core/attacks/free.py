"""Free adversarial training: perturbations that persist from batch to batch and move by the updates' gradients."""

from collections.abc import Mapping

import torch
from torch import Tensor

from astra_gym.ssl_core.attacks.pgd import Budget


class FreePerturbations:
    """The perturbation (n, 3, h, w) of each place in the batch, and the gradient ("slope") of the last update there.

    `d <- clip(d + step_size * sign(slope), -epsilon, epsilon)` in the first `steps` replays of a batch (Shafahi et al.
    2019, algorithm 1). Then the attacked images are clipped to [0, 1], and the perturbations with them. At first
    perturbations are 0 and there is no slope. A new batch starts with the slopes of the last replay before it, and the
    perturbations are clipped to the new images' range in its first replay; in CF-AMC-SSL's code that comes one replay
    later.
    """

    def __init__(self) -> None:
        self._carried: dict[str, Tensor] = {}

    def move(self, images: Tensor, budget: Budget, replay: int) -> Tensor:
        """Take the next step and return the attacked images.

        Args:
            images: (n, 3, h, w) in [0, 1], clean.
            budget: one entry per image, on the host.
            replay: number of updates already done on this batch, from 0.
        """
        shape = (-1, *[1] * (images.ndim - 1))
        carried = self._carried.get("perturbations", torch.zeros_like(images))
        slope = self._carried.get("slope", torch.zeros_like(images))
        epsilon = budget.epsilon.to(images.dtype).view(shape).to(images.device, non_blocking=True)
        size = torch.where(budget.steps > replay, budget.step_size.to(images.dtype), 0.0).view(shape)
        size = size.to(images.device, non_blocking=True)
        moved = (images + torch.clamp(carried + size * slope.sign(), -epsilon, epsilon)).clamp(0, 1)
        self._carried["perturbations"] = moved - images
        return moved

    def follow(self, slope: Tensor | None) -> None:
        """Set the slope to the gradient of the update's loss at the attacked images; None changes nothing."""
        if slope is not None:
            self._carried["slope"] = slope

    def numbers(self) -> Mapping[str, Tensor]:
        """Return the perturbations and the slope, not copied."""
        return self._carried

    def state_dict(self) -> dict[str, Tensor]:
        """Return a copy of the perturbations and the slope; empty before the first step."""
        return {name: value.clone() for name, value in self._carried.items()}

    def load_state_dict(self, state: Mapping[str, Tensor], device: torch.device) -> None:
        """Restore what `state_dict` returned."""
        self._carried = {name: value.to(device) for name, value in state.items()}
