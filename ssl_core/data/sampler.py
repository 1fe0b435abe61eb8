"""The sampler of batches: resumable, and open to a look at what it gives next."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


class BatchSampler:
    """Batches of row numbers without end: every epoch a new permutation, its incomplete last batch dropped or kept.

    Epochs are over all rows that are not held out, or over those that `restrict` says.

    Args:
        n: number of images.
        batch_size: images in a batch, at most n.
        generator: CPU generator; one permutation is drawn from it at the first batch of every epoch.
        held_out: (k,) int64, rows that are never given, each once; None: all are.
        drop_last: whether the rows that are left over make no batch; else the last batch of an epoch may be smaller. A
            single row makes none in any case: batch norm has no variance of it.

    Raises:
        ValueError: a batch of less than one image, or of more than there are to give.
    """

    def __init__(
        self,
        n: int,
        batch_size: int,
        generator: torch.Generator,
        held_out: torch.Tensor | None = None,
        drop_last: bool = True,
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
        self.drop_last = drop_last
        self._generator = generator
        self._order = torch.empty(0, dtype=torch.int64)
        self._rows: Tensor | None = None
        self._taken = self.steps_per_epoch

    @property
    def steps_per_epoch(self) -> int:
        """Batches in the present epoch, which a batch begins and not `restrict`; before the first one, in all rows."""
        rows = len(self._order) or self._size
        full, left = divmod(rows, self.batch_size)
        return full + (left > 1 and not self.drop_last)

    @property
    def all_rows(self) -> Tensor:
        """(m,) int64, ascending: the rows that are given where nothing restricts them, those held out left out."""
        return torch.arange(self.n) if self._given is None else self._given.clone()

    def restrict(self, rows: Tensor | None) -> None:
        """Epochs are over these rows only, from the next one on; the present epoch ends as it began.

        Args:
            rows: (k,) int64 in any order, each once, none of them held out, k at least `batch_size`; None: all again.

        Raises:
            ValueError: rows that are something else; the sampler is left as it was.
        """
        if rows is not None:
            self._check_rows(rows)
        self._rows = None if rows is None else rows.clone()

    def _check_rows(self, rows: Tensor) -> None:
        if rows.dtype != torch.int64 or rows.ndim != 1 or len(rows) < self.batch_size:
            raise ValueError(
                f"an epoch is restricted to {rows.dtype} rows of shape {tuple(rows.shape)}: expected torch.int64, "
                f"(k,), at least the {self.batch_size} of a batch"
            )
        if len(rows.unique()) < len(rows):
            raise ValueError("an epoch is restricted to rows some of which stand there twice: give each once")
        if not bool(torch.isin(rows, self.all_rows).all()):
            there = f"the {self.n} images" if self._given is None else "the images that are not held out"
            raise ValueError(f"an epoch is restricted to rows that are not among {there}: leave these out")

    def next(self) -> Tensor:
        """(batch_size,) int64, at the end of an epoch without `drop_last` fewer: the rows of the coming batch, none of
        them twice in an epoch."""
        if self._taken == self.steps_per_epoch:
            pool = self._given if self._rows is None else self._rows
            order = torch.randperm(self._size if pool is None else len(pool), generator=self._generator)
            self._order = order if pool is None else pool[order]
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
        """Where the sampler stands, the generator's state included: plain ints and tensors.

        The entry "rows", what the coming epochs are over, is there only where they or the present one are restricted.
        """
        restricted = self._rows is not None or len(self._order) not in (0, self._size)
        return {
            "n": self.n,
            "batch_size": self.batch_size,
            "taken": self._taken,
            "order": self._order.clone(),
            "generator": self._generator.get_state(),
        } | ({"rows": None if self._rows is None else self._rows.clone()} if restricted else {})

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on exactly where `state_dict` was taken, in the middle of an epoch too; sets the generator's state.

        Raises:
            ValueError: the state of a sampler over other data or batches.
        """
        for name in ("n", "batch_size"):
            if state[name] != getattr(self, name):
                ours = getattr(self, name)
                raise ValueError(f"the sampler's state has {name} {state[name]}, this run {ours}: resume with the same")
        rows = state.get("rows")
        if rows is not None:
            self._check_rows(rows)
        if "rows" in state and len(state["order"]):
            self._check_rows(state["order"])
        if "rows" not in state and len(state["order"]) not in (0, self._size):
            raise ValueError(
                f"the sampler's state is of {len(state['order'])} images, this run of {self._size}: hold out the same"
            )
        self._taken = state["taken"]
        self._order = state["order"].clone()
        self._rows = None if rows is None else rows.clone()
        self._generator.set_state(state["generator"])


def _all_but(held_out: Tensor, n: int) -> Tensor:
    given = torch.ones(n, dtype=torch.bool)
    given[held_out] = False
    return given.nonzero()[:, 0]
