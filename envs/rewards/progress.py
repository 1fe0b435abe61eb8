"""A term that remembers the images: how far each view's loss has fallen since it was last seen."""

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from astra_gym.envs.rewards.term import RewardTerm, RewardWorld


class LossMemory:
    """Each training view's attacked loss when its image was last seen.

    Args:
        images: number of training images.
        slots: attacked views of an image.
        device: device of the losses.
    """

    def __init__(self, images: int, slots: int, device: torch.device) -> None:
        self._last = torch.full((images, slots), torch.nan, device=device)
        """NaN for an image that has not been seen yet."""

    def fall(self, rows: Tensor, losses: Tensor) -> Tensor:
        """Return how far the losses fell since their images were last seen, 0 for new images; keep the new losses.

        Args:
            rows: (b,) rows of the training images.
            losses: (b * slots,), those of an image next to each other.
        """
        rows = rows.to(self._last.device, non_blocking=True)
        now = losses.view(len(rows), -1).to(self._last.dtype)
        last = self._last[rows]
        self._last[rows] = now
        return torch.where(last.isnan(), 0.0, last - now).view(-1)

    def state_dict(self) -> dict[str, Any]:
        """Return the losses (images, slots)."""
        return {"last": self._last.clone()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` gave; raise a ValueError if it is of other data."""
        if state["last"].shape != self._last.shape:
            got, expected = tuple(state["last"].shape), tuple(self._last.shape)
            raise ValueError(f"the state has losses of {got} images and views, this run {expected}: take the same data")
        self._last = state["last"].to(self._last.device).clone()


class Progress(RewardTerm):
    """The view's attacked loss when its image was last seen, minus the present one; 0 at first. `numbers` leaves out
    the memory, which is NaN for images that have not been seen yet."""

    summary = "the fall of each view's attacked loss since its image was last seen"

    def __init__(self, world: RewardWorld) -> None:
        super().__init__(world)
        slots = world.learner.method.num_attacked(world.batch_size) // world.batch_size
        self.memory = LossMemory(world.images, slots, world.learner.device)

    def before_update(self, rows: Tensor, losses: Tensor) -> Mapping[str, Tensor]:
        """Return `progress` (n,)."""
        return {"progress": self.memory.fall(rows, losses)}

    def state_dict(self) -> dict[str, Any]:
        """Return the memory."""
        return self.memory.state_dict()

    def load_state_dict(self, state: Mapping[str, Any], restarted: Collection[str] = ()) -> None:
        """Restore what `state_dict` gave, as `RewardTerm.load_state_dict`."""
        self.memory.load_state_dict(state)
