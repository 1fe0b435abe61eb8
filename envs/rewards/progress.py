"""A term that remembers the images: how far each view's loss fell since it was last seen."""

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
        device: where the losses are.
    """

    def __init__(self, images: int, slots: int, device: torch.device) -> None:
        self._last = torch.full((images, slots), torch.nan, device=device)
        """NaN where the image was not seen yet."""

    def fall(self, rows: Tensor, losses: Tensor) -> Tensor:
        """How far the losses fell since their images were last seen, 0 where they were not; they are kept instead.

        Args:
            rows: (b,) which training images.
            losses: (b * slots,), those of an image together.
        """
        rows = rows.to(self._last.device, non_blocking=True)
        now = losses.view(len(rows), -1).to(self._last.dtype)
        last = self._last[rows]
        self._last[rows] = now
        return torch.where(last.isnan(), 0.0, last - now).view(-1)

    def state_dict(self) -> dict[str, Any]:
        """The losses (images, slots)."""
        return {"last": self._last.clone()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` gave; ValueError if it is of other data."""
        if state["last"].shape != self._last.shape:
            got, expected = tuple(state["last"].shape), tuple(self._last.shape)
            raise ValueError(f"the state has losses of {got} images and views, this run {expected}: take the same data")
        self._last = state["last"].to(self._last.device).clone()


class Progress(RewardTerm):
    """The view's attacked loss when its image was last seen, minus now; 0 at first. Its memory is NaN for what was not
    seen yet, by right."""

    summary = "the fall of each view's attacked loss since its image was last seen"

    def __init__(self, world: RewardWorld) -> None:
        super().__init__(world)
        slots = world.learner.method.num_attacked(world.batch_size) // world.batch_size
        self.memory = LossMemory(world.images, slots, world.learner.device)

    def before_update(self, rows: Tensor, losses: Tensor) -> Mapping[str, Tensor]:
        """`progress` (n,)."""
        return {"progress": self.memory.fall(rows, losses)}

    def state_dict(self) -> dict[str, Any]:
        """The memory's."""
        return self.memory.state_dict()

    def load_state_dict(self, state: Mapping[str, Any], restarted: Collection[str] = ()) -> None:
        """As of `RewardTerm`."""
        self.memory.load_state_dict(state)
