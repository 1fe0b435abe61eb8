"""The sampler of batches: resumable, and open to a look at what it gives next."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


class BatchSampler:
    """Batches of row numbers without end: every epoch a new permutation, its incomplete last batch dropped.

    Args:
        n: number of images.
        batch_size: images in a batch, at most n.
        generator: CPU generator; one permutation is drawn from it at the first batch of every epoch.

    Raises:
        ValueError: a batch of less than one image, or of more than there are.
    """

    def __init__(self, n: int, batch_size: int, generator: torch.Generator) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}, expected 1 image or more")
        if batch_size > n:
            raise ValueError(f"batch_size is {batch_size}, but there are only {n} images: lower it, or raise the limit")
        self.n = n
        self.batch_size = batch_size
        self._generator = generator
        self._order = torch.empty(0, dtype=torch.int64)
        self._taken = self.steps_per_epoch

    @property
    def steps_per_epoch(self) -> int:
        """Batches in an epoch."""
        return self.n // self.batch_size

    def next(self) -> Tensor:
        """(batch_size,) int64: the rows of the coming batch, none of them twice in an epoch."""
        if self._taken == self.steps_per_epoch:
            self._order = torch.randperm(self.n, generator=self._generator)
            self._taken = 0
        rows = self._batch(self._taken)
        self._taken += 1
        return rows

    def peek(self) -> Tensor | None:
        """What `next` gives next, without taking it; None where that begins an epoch, whose order is not drawn yet."""
        return None if self._taken == self.steps_per_epoch else self._batch(self._taken)

    def _batch(self, number: int) -> Tensor:
        return self._order[number * self.batch_size : (number + 1) * self.batch_size]

    def state_dict(self) -> dict[str, Any]:
        """Where the sampler stands, the generator's state included: plain ints and tensors."""
        return {
            "n": self.n,
            "batch_size": self.batch_size,
            "taken": self._taken,
            "order": self._order.clone(),
            "generator": self._generator.get_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on exactly where `state_dict` was taken, in the middle of an epoch too; sets the generator's state.

        Raises:
            ValueError: the state of a sampler over other data or batches.
        """
        for name in ("n", "batch_size"):
            if state[name] != getattr(self, name):
                ours = getattr(self, name)
                raise ValueError(f"the sampler's state has {name} {state[name]}, this run {ours}: resume with the same")
        self._taken = state["taken"]
        self._order = state["order"].clone()
        self._generator.set_state(state["generator"])
