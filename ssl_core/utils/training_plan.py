"""The number of target updates of a run and the position in it: full epochs, and later ones over a part of the data."""

from dataclasses import dataclass
from typing import NamedTuple

from astra_gym.ssl_core.utils.finite import check_number


class Moment(NamedTuple):
    """The position of a run before an update.

    Args:
        step: number of updates before this one, from 0.
        epoch: epoch of the update, from 0.
        epochs: number of epochs of the whole run.
        progress: completed share of the run, by epochs and not by updates, in [0, 1].
        replay: number of earlier updates on the same batch, from 0 (see `Method.replays`).
    """

    step: int = 0
    epoch: int = 0
    epochs: int = 1
    progress: float = 0.0
    replay: int = 0


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

    def ends_epoch(self, step: int) -> bool:
        """Whether `step` updates end an epoch."""
        return self.place(step)[1] == 0

    def moment(self, step: int) -> Moment:
        """Return the position of the run after `step` updates; beyond the plan its progress is 1."""
        epoch, rest = self.place(step)
        progress = min(1.0, self.epochs_done(step) / self.epochs)
        return Moment(step, epoch, self.epochs, progress, rest % self.replays)
