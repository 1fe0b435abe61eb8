"""A sampler of batches that can be resumed and can show its next batch."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from astra_gym.ssl_core.utils.finite import check_number


class BatchSampler:
    """An endless sampler of row numbers: each epoch is a new permutation, its incomplete last batch dropped or kept.

    Epochs are over all rows that are not held out, or over those given to `restrict`.

    Args:
        n: number of images.
        batch_size: number of images in a batch, at most n.
        generator: CPU generator; one permutation is drawn from it at the first batch of every epoch.
        held_out: (k,) int64, distinct rows that are never sampled; None: no row is held out.
        drop_last: whether an incomplete last batch is dropped; else the last batch of an epoch may be smaller. A single
            row is always dropped: batch norm needs two for a variance.

    Raises:
        ValueError: if the batch size is below 1, or above the number of rows that are not held out.
    """

    def __init__(
        self,
        n: int,
        batch_size: int,
        generator: torch.Generator,
        held_out: torch.Tensor | None = None,
        drop_last: bool = True,
    ) -> None:
        check_number("batch_size", batch_size, 1, expected="1 image or more", whole=True)
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
        """Number of batches in the present epoch; before the first one, in an epoch over all rows.

        An epoch begins at its first batch, not at a call of `restrict`.
        """
        rows = len(self._order) or self._size
        full, left = divmod(rows, self.batch_size)
        return full + (left > 1 and not self.drop_last)

    @property
    def all_rows(self) -> Tensor:
        """All rows that are not held out, without restriction: (m,) int64, ascending."""
        return torch.arange(self.n) if self._given is None else self._given.clone()

    def restrict(self, rows: Tensor | None) -> None:
        """Restrict epochs to these rows from the next epoch on; the present epoch does not change.

        Args:
            rows: (k,) int64, distinct, in any order, none of them held out, k at least `batch_size`; None: no
                restriction.

        Raises:
            ValueError: if the rows are not as above; the sampler is then unchanged.
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
        """Return the rows of the next batch, (batch_size,) int64, none of them twice in an epoch.

        The last batch of an epoch may be smaller without `drop_last`.
        """
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
        """The last result of `next`, also after `load_state_dict`; a ValueError if there is none yet."""
        if not len(self._order):
            raise ValueError("there is no last batch yet: call next() first")
        return self._batch(self._taken - 1)

    def peek(self) -> Tensor | None:
        """Return the next batch without taking it; None if it begins an epoch, since that order is not drawn yet."""
        return None if self._taken == self.steps_per_epoch else self._batch(self._taken)

    def _batch(self, number: int) -> Tensor:
        return self._order[number * self.batch_size : (number + 1) * self.batch_size]

    def state_dict(self) -> dict[str, Any]:
        """Return the sampler's state, with the generator's: plain ints and tensors.

        The entry "rows", the rows of the coming epochs, exists only if these or the present epoch are restricted.
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
        """Resume exactly from a `state_dict`, also in the middle of an epoch; this sets the generator's state.

        Raises:
            ValueError: if the state belongs to a sampler over other data or batches.
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
