"""The number of target updates of a run and the position in it: full epochs, and later ones over a part of the data; or
what a number of passes pays for."""

import math
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from astra_gym.ssl_core.utils.finite import check_number

UPDATE_PASSES = 3.3
"""Cost of an update without its attack, in passes: forward and backward once over the attacked views. It has these for
the clean and the attacked views, the observation's forward, and the optimizer and batch norm beside them."""


def update_passes(steps: Tensor | None = None) -> float:
    """Return the passes of one update whose attacked views (n,) have taken `steps` attack steps; None: no attack."""
    return UPDATE_PASSES + (0.0 if steps is None else float(steps.double().mean()))


class Moment(NamedTuple):
    """The position of a run before an update.

    Args:
        step: number of updates before this one, from 0.
        epoch: epoch of the update, from 0.
        epochs: number of epochs of the whole run.
        progress: completed share of the run, by epochs (or passes) and not by updates, in [0, 1].
        replay: number of earlier updates on the same batch, from 0 (see `Method.replays`).
    """

    step: int = 0
    epoch: int = 0
    epochs: int = 1
    progress: float = 0.0
    replay: int = 0


def reached(progress: float, share: float) -> bool:
    """Return whether the completed share of a run has come to another one."""
    # a progress is a quotient or a sum of many parts, with a last digit that may be too low
    return progress >= share - 1e-9


@dataclass(frozen=True)
class TrainingPlan:
    """The updates of a run.

    Args:
        epochs: number of epochs of the run.
        steps: number of updates in an epoch over all data.
        replays: number of updates in a row on one batch; `steps` counts each.
        reduced_from: first epoch (from 0) over a part of the data; None without such epochs.
        reduced_steps: number of updates in such an epoch.

    Raises:
        ValueError: if a value is not a positive integer, or `steps` is no multiple of `replays`.
    """

    epochs: int
    steps: int
    replays: int = 1
    reduced_from: int | None = None
    reduced_steps: int = 1

    def __post_init__(self) -> None:
        for name in ("epochs", "steps", "replays", "reduced_steps"):
            check_number(f"plan: {name}", getattr(self, name), 1, whole=True)
        if self.steps % self.replays or (self.reduced_steps % self.replays and self.reduced_from is not None):
            raise ValueError(f"plan: {self.steps} updates an epoch are no multiple of {self.replays} replays")

    @property
    def _full_epochs(self) -> int:
        return self.epochs if self.reduced_from is None else min(self.reduced_from, self.epochs)

    @property
    def total(self) -> int:
        """Number of updates of the whole run."""
        return self._full_epochs * self.steps + (self.epochs - self._full_epochs) * self.reduced_steps

    def steps_in(self, epoch: int) -> int:
        """Return the number of updates of an epoch, which is counted from 0."""
        return self.steps if self.reduced_from is None or epoch < self.reduced_from else self.reduced_steps

    def place(self, step: int) -> tuple[int, int]:
        """Return the epoch of the update that follows the first `step` updates, and the number of updates before it in
        that epoch."""
        full = self._full_epochs * self.steps
        if step < full or self.reduced_from is None:
            return divmod(step, self.steps)
        epochs, rest = divmod(step - full, self.reduced_steps)
        return self._full_epochs + epochs, rest

    def epochs_done(self, step: int) -> float:
        """Return the number of epochs in `step` updates."""
        epoch, rest = self.place(step)
        return step / self.steps if self.reduced_from is None else epoch + rest / self.steps_in(epoch)

    def full_steps(self, step: int) -> float:
        """Convert `step` updates to updates of full epochs, for learning-rate schedules."""
        full = self._full_epochs * self.steps
        return step if step <= full else full + (step - full) * self.steps / self.reduced_steps

    def ends(self, step: int) -> bool:
        """Whether the run is over after `step` updates."""
        return step >= self.total

    def spend(self, step: int, passes: float) -> None:
        """Pay for the update that follows the first `step` updates, in one or more parts; here they are free."""

    def spent(self, step: int) -> float | None:
        """Return the passes that the first `step` updates have cost; None: they are not counted."""
        return None

    def restore(self, step: int, passes: float | None) -> None:
        """Go to the position after `step` updates, which have cost `passes`."""

    def ends_epoch(self, step: int) -> bool:
        """Whether `step` updates end an epoch."""
        return self.place(step)[1] == 0

    def moment(self, step: int) -> Moment:
        """Return the position of the run after `step` updates; beyond the plan its progress is 1."""
        epoch, rest = self.place(step)
        progress = min(1.0, self.epochs_done(step) / self.epochs)
        return Moment(step, epoch, self.epochs, progress, rest % self.replays)


@dataclass(frozen=True)
class PassesPlan(TrainingPlan):
    """A run that ends once its passes are spent, however many updates they pay for.

    Its position, for learning-rate schedules and methods, is the share of the passes that is spent. `epochs` only gives
    the schedules their unit; epochs over the data are counted as in any run.

    Args:
        passes: passes of the run: forward and backward once over a batch's attacked views.

    Raises:
        ValueError: if a value is out of its range.
    """

    passes: float = math.inf
    _spent: dict[int, float] = field(default_factory=lambda: {0: 0.0}, compare=False, repr=False)
    """Passes spent before an update, by its number, for the present update and the next."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("plan: passes", self.passes, 0, above=True)

    def spend(self, step: int, passes: float) -> None:
        """Pay for an update, as `TrainingPlan.spend`."""
        self._spent[step + 1] = self._spent.get(step + 1, self._spent[step]) + passes
        self._spent.pop(step - 1, None)

    def spent(self, step: int) -> float:
        """Return the passes that the first `step` updates have cost; `step` is the present or the next update."""
        return self._spent.get(step, max(self._spent.values()))

    def restore(self, step: int, passes: float | None) -> None:
        """Go to a position, as `TrainingPlan.restore`.

        Raises:
            ValueError: if the passes were not counted.
        """
        if passes is None:
            raise ValueError("the state does not say how many passes were spent: it is of a run without --passes")
        self._spent.clear()
        self._spent[step] = passes

    @property
    def total(self) -> int:
        """Number of updates that the passes pay for without any attack: there are no more."""
        return math.ceil(self.passes / UPDATE_PASSES - 1e-9)

    def full_steps(self, step: int) -> float:
        """Return the updates of full epochs that the share of spent passes amounts to, for learning-rate schedules."""
        return self._share(step) * self.epochs * self.steps

    def moment(self, step: int) -> Moment:
        """Return the position of the run after `step` updates, by the passes that they have cost."""
        share = self._share(step)
        epoch = min(int(share * self.epochs), self.epochs - 1)
        return Moment(step, epoch, self.epochs, share, self.place(step)[1] % self.replays)

    def ends(self, step: int) -> bool:
        """Whether the passes are spent after `step` updates."""
        # sums of passes are not exact
        return self.spent(step) >= self.passes * (1 - 1e-9)

    def _share(self, step: int) -> float:
        return min(1.0, self.spent(step) / self.passes)
