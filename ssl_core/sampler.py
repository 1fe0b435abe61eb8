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
        held_out: (k,) int64, rows that are never given, each once; None: all are.

    Raises:
        ValueError: a batch of less than one image, or of more than there are to give.
    """

    def __init__(
        self, n: int, batch_size: int, generator: torch.Generator, held_out: torch.Tensor | None = None
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}, expected 1 image or more")
        self._given = None if held_out is None else _all_but(held_out, n)
        self._size = n if self._given is None else len(self._given)
        if batch_size > self._size:
            there = (
                f"{n} images" if self._given is None else f"{self._size} images beside the {n - self._size} held out"
            )
            raise ValueError(f"batch_size is {batch_size}, but there are only {there}: lower it, or raise the limit")
        self.n = n
        self.batch_size = batch_size
        self._generator = generator
        self._order = torch.empty(0, dtype=torch.int64)
        self._taken = self.steps_per_epoch

    @property
    def steps_per_epoch(self) -> int:
        """Batches in an epoch."""
        return self._size // self.batch_size

    def next(self) -> Tensor:
        """(batch_size,) int64: the rows of the coming batch, none of them twice in an epoch."""
        if self._taken == self.steps_per_epoch:
            order = torch.randperm(self._size, generator=self._generator)
            self._order = order if self._given is None else self._given[order]
            self._taken = 0
        rows = self._batch(self._taken)
        self._taken += 1
        return rows

    @property
    def last(self) -> Tensor:
        """What `next` gave last, in a sampler that goes on from a state too; ValueError where nothing was given yet."""
        if not len(self._order):
            raise ValueError("there is no last batch yet: call next() first")
        return self._batch(self._taken - 1)

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
        if len(state["order"]) not in (0, self._size):
            raise ValueError(
                f"the sampler's state is of {len(state['order'])} images, this run of {self._size}: hold out the same"
            )
        self._taken = state["taken"]
        self._order = state["order"].clone()
        self._generator.set_state(state["generator"])


def _all_but(held_out: Tensor, n: int) -> Tensor:
    given = torch.ones(n, dtype=torch.bool)
    given[held_out] = False
    return given.nonzero()[:, 0]
