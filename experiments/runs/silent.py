"""A run's folder and records of a rank that writes nothing: rank 0 writes for all."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

from astra_gym.experiments.config.settings import Settings
from astra_gym.experiments.runs.metrics import metrics_of
from astra_gym.experiments.runs.run_folder import RunFolder
from astra_gym.experiments.runs.run_log import RunLog

if TYPE_CHECKING:
    from astra_gym.envs.records import StepRecord


class SilentFolder(RunFolder):
    """A `RunFolder` that another process writes."""

    writes: ClassVar[bool] = False

    def check_new(self) -> None:
        """Do nothing: the other process checks this."""

    def begin(
        self,
        settings: Settings,
        argv: Sequence[str],
        first: Callable[[Self], None] | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        """Do nothing."""

    def save(self, name: str, kind: str, payload: dict[str, Any]) -> None:
        """Do nothing."""

    def accept_config(self) -> None:
        """Do nothing."""

    def note_resume(self, settings: Settings, argv: Sequence[str]) -> list[str]:
        """Do nothing; return that nothing is damaged."""
        return []

    def note_training(
        self, first: int, last: int, seconds: float, shares: Mapping[str, float], peak: Mapping[str, int]
    ) -> list[str]:
        """Do nothing; return that nothing is damaged."""
        return []


class SilentLog(RunLog):
    """A `RunLog` that writes nothing."""

    def __init__(
        self, folder: RunFolder, images_per_step: int, *, resumed_step: int | None = None, histograms_every: int = 10
    ) -> None:
        self.images_per_step, self.histograms_every = images_per_step, histograms_every
        self.images_per_second, self.damage = 0.0, []

    def step(self, record: "StepRecord") -> dict[str, Any]:
        """Return the row of a target update."""
        return metrics_of(record)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Do nothing."""

    def images(self, record: "StepRecord", count: int = 8) -> None:
        """Do nothing."""

    def hparams(self, settings: Settings, metrics: Sequence[str]) -> None:
        """Do nothing."""

    def flush(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""
