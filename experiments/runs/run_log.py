"""The records of target updates in a run's folder: `metrics.jsonl` and TensorBoard's events."""

import json
import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from stable_baselines3.common.logger import FormatUnsupportedError, KVWriter
from tensorboard.compat.proto.summary_pb2 import Summary
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from astra_gym.envs.api.action_sets import UNIT
from astra_gym.experiments.config.settings import Settings
from astra_gym.experiments.runs.event_files import PATTERN, let_the_next_be_last
from astra_gym.experiments.runs.logs import damaged_events, set_aside
from astra_gym.experiments.runs.metrics import CHOSEN, lost_updates, metrics_of, metrics_rows
from astra_gym.experiments.runs.peak_memory import peak_memory
from astra_gym.experiments.runs.run_folder import RunFolder
from astra_gym.ssl_core.safety.sealing import sealed_line
from astra_gym.ssl_core.utils.files import write_file
from astra_gym.ssl_core.utils.paths import open_to_append

if TYPE_CHECKING:
    from astra_gym.envs.records import StepRecord

LAYOUT: dict[str, dict[str, list[Any]]] = {
    "accuracy": {
        "clean (SA) and under PGD-10 (RA), %": ["Multiline", ["accuracy/SA$", "accuracy/RA_.*"]],
        "clean, where the probe was fitted and where not, %": ["Multiline", ["accuracy/SA$", "accuracy/SA_fitted"]],
    },
    "reward": {"mean": ["Multiline", ["reward/mean"]], "terms": ["Multiline", ["reward/(?!mean|std).*"]]},
    "losses": {"of the target network": ["Multiline", ["loss/.*"]]},
    "budget": {
        "epsilon, step size, strength (1/255)": ["Multiline", ["budget/(epsilon|step_size|strength)_255"]],
        "steps": ["Multiline", ["budget/steps"]],
    },
    "time": {"images a second": ["Multiline", ["time/.*"]], "peak memory": ["Multiline", ["memory/.*"]]},
}
"""TensorBoard's custom scalars: the groups, their cards, and patterns of the scalars on each."""

FINAL = ".final"
"""Suffix of the TensorBoard file with a finished run's accuracies."""


def accuracy_name(epsilon: float) -> str:
    """Return the name of accuracy within a radius in TensorBoard: `SA`, or `RA_8_255`."""
    return f"RA_{255 * epsilon:g}_255" if epsilon else "SA"


def write_final(folder: Path, accuracies: Mapping[float, float], step: int) -> None:
    """Add the accuracies of a finished run by radius, in percent, to its TensorBoard files, as `final/SA` and so on:
    the table of runs (HPARAMS) shows them. Those of an earlier evaluation, which was cut short or is repeated, are
    replaced."""
    for earlier in folder.glob(PATTERN + FINAL):
        earlier.unlink()
    let_the_next_be_last(folder)
    with SummaryWriter(str(folder), filename_suffix=FINAL) as board:
        for epsilon, value in accuracies.items():
            board.add_scalar(f"final/{accuracy_name(epsilon)}", value, step)


class RunLog:
    """Writer of `metrics.jsonl` and of TensorBoard's events, with the same content, one row per target update.

    Two equal runs on the CPU write the same, except for TensorBoard's tags under `time/` and `memory/` (peak memory,
    once per epoch). Call `flush` before a checkpoint is saved, so that everything written by then outlives the process.

    Args:
        folder: the run's folder.
        images_per_step: images of a target update, for the rate.
        resumed_step: the checkpoint's step if a run resumes. What was written after it is removed, so that the curves
            are those of a run that was never interrupted.
        histograms_every: target updates between histograms.

    Attributes:
        damage: a sentence for each defect of what was written before. A defect does not prevent a resume.
    """

    def __init__(
        self, folder: RunFolder, images_per_step: int, *, resumed_step: int | None = None, histograms_every: int = 10
    ) -> None:
        self.path = folder.path / "metrics.jsonl"
        self.images_per_step = images_per_step
        self.histograms_every = histograms_every
        self.images_per_second = 0.0
        self.damage: list[str] = []
        self._times: deque[float] = deque(maxlen=20)
        if resumed_step is not None:
            self._take_back(resumed_step)
        self._file = open_to_append(self.path)
        purge_step = None if resumed_step is None else resumed_step + 1
        self._board = SummaryWriter(str(folder.path), purge_step=purge_step)

    def _take_back(self, step: int) -> None:
        # a run killed before its first update has no file
        rows = metrics_rows(self.path, self.damage) if step or self.path.exists() else []
        if self.damage:
            set_aside(self.path)
        kept = [row for row in rows if row["step"] <= step]
        if self.path.exists() and (lost := lost_updates(kept, step)):
            self.damage.append(lost)
        write_file(self.path, b"".join(sealed_line(json.dumps(row)) for row in kept))
        self.damage += damaged_events(self.path.parent)
        let_the_next_be_last(self.path.parent)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            self.close()
        except OSError:
            # this error of the disk is not raised if another has ended the work already
            if error is None:
                raise

    def step(self, record: "StepRecord") -> dict[str, Any]:
        """Record a target update.

        Returns:
            Its row, see `metrics_of`.
        """
        row = metrics_of(record)
        self._write(row)
        self._scalars({name: value for name, value in row.items() if isinstance(value, float)}, record.step)
        self._times.append(time.perf_counter())
        if len(self._times) > 1:
            seconds = self._times[-1] - self._times[0]
            self.images_per_second = (len(self._times) - 1) * self.images_per_step / max(seconds, 1e-9)
            self._board.add_scalar("time/images_per_second", self.images_per_second, record.step)
        if record.end_of_epoch:
            for name, value in peak_memory(record.views.device).items():
                self._board.add_scalar(f"memory/{name}", value, record.step)
        if record.budget is not None and record.step % self.histograms_every == 0:
            played = record.of_views(scaled=True)
            for name in CHOSEN:
                self._board.add_histogram(f"actions/{name}", played[f"budget/{name}"], record.step)
        return row

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Record values that come with a target update but not from it: an agent's own, an evaluation's."""
        self._write({"step": step} | dict(values))
        self._scalars(values, step)

    def images(self, record: "StepRecord", count: int = 8) -> None:
        """Record a grid of the first `count` views: clean, attacked, the perturbation (gray is 0, the ends are
        +-16/255)."""
        if record.adversarial is None:
            return
        clean, attacked = (part[:count].detach().float().cpu() for part in (record.views, record.adversarial))
        rows = [clean, attacked, ((attacked - clean) * UNIT / 32 + 0.5).clamp(0, 1)]
        self._board.add_image("attack/clean_attacked_perturbation", image_grid(rows), record.step)

    def hparams(self, settings: Settings, metrics: Sequence[str]) -> None:
        """Record the settings for TensorBoard's table of runs, beside the scalars called `metrics` and the final
        accuracies, and the groups of its cards (`LAYOUT`); once, at the start."""
        self._board.add_custom_scalars(LAYOUT)
        metrics = [f"final/{accuracy_name(epsilon)}" for epsilon in (0.0, *settings.probe.eval_epsilons)] + [*metrics]
        # SummaryWriter.add_hparams would write them as a separate run, in a folder below.
        values = {
            name: value if isinstance(value, bool | int | float) else str(value)
            for name, value in settings.flat().items()
        }
        for summary in hparams(values, dict.fromkeys(metrics, 0.0)):
            self._board._get_file_writer().add_summary(summary)

    def agent_writer(self, update_of: Callable[[int], int]) -> "AgentWriter":
        """Return a writer for an agent's SB3 logger: `Logger(folder=None, output_formats=[log.agent_writer(...)])`.

        Args:
            update_of: function from the agent's time steps to target updates.
        """
        return AgentWriter(self, update_of)

    def flush(self) -> None:
        """Hand everything to the operating system."""
        self._file.flush()
        self._board.flush()

    def close(self) -> None:
        """Write out what is left and close the files."""
        with ExitStack() as both:
            both.callback(self._board.close)
            self._file.close()

    def _write(self, row: Mapping[str, Any]) -> None:
        # JSON has no NaN, and some of SB3's values (explained variance) are rightly NaN.
        plain = {
            key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in row.items()
        }
        self._file.write(sealed_line(json.dumps(plain, allow_nan=False)).decode())
        self._file.flush()

    def _scalars(self, values: Mapping[str, float], step: int) -> None:
        # one record for all takes a tenth of the time of one for each
        summary = Summary(value=[Summary.Value(tag=name, simple_value=value) for name, value in values.items()])
        self._board._get_file_writer().add_summary(summary, step)


class AgentWriter(KVWriter):
    """Output of an SB3 logger into a run's log, under `agent/`, at the target update of its time steps."""

    def __init__(self, log: RunLog, update_of: Callable[[int], int]) -> None:
        self.log = log
        self.update_of = update_of

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """Write numbers into both files, except SB3's own times (`time/`): the log has its own rate."""
        values = {}
        for key, value in key_values.items():
            if key.startswith("time/") or isinstance(value, str) or "tensorboard" in (key_excluded.get(key) or ()):
                continue
            try:
                values[f"agent/{key}"] = float(value)
            except (TypeError, ValueError) as error:
                raise FormatUnsupportedError(["run log"], type(value).__name__) from error
        if values:
            self.log.scalars(values, self.update_of(step))

    def close(self) -> None:
        """Do nothing: the run closes its log itself, perhaps after the agent's logger."""


def image_grid(rows: Sequence[Tensor], side: int = 64, gap: int = 2) -> Tensor:
    """Join equally long rows of images (n, 3, H, W) in [0, 1] into an image (3, ...), each about `side` pixels wide."""
    scale = max(1, side // rows[0].shape[-1])
    lines = []
    for images in rows:
        large = images.repeat_interleave(scale, dim=2).repeat_interleave(scale, dim=3)
        padded = torch.nn.functional.pad(large, (gap, gap, gap, gap), value=1.0)
        lines.append(torch.cat(list(padded), dim=2))
    return torch.cat(lines, dim=1)
