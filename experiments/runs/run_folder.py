"""The run folder and what is written into it while a run goes on."""

import json
import math
import platform
import shlex
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import torch
from stable_baselines3.common.logger import FormatUnsupportedError, KVWriter
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from astra_gym.envs.actions import UNIT
from astra_gym.experiments.config.cli import load
from astra_gym.experiments.config.settings import Settings, resolve_device
from astra_gym.experiments.config.trust import trusting
from astra_gym.experiments.runs.event_files import let_the_next_be_last
from astra_gym.experiments.runs.metrics import kept_rows, metrics_of
from astra_gym.experiments.runs.peak_memory import peak_memory
from astra_gym.ssl_core.data.image_digests import RunImages
from astra_gym.ssl_core.utils.files import replacing, write_json
from astra_gym.ssl_core.utils.paths import check_folder, open_to_append
from astra_gym.ssl_core.utils.provenance import ROOT, commit, versions
from astra_gym.ssl_core.utils.writers import LOCK, FolderLock

if TYPE_CHECKING:
    from astra_gym.envs.records import StepRecord

NO_DIGESTS = (
    "this run keeps no digests of its images, as runs of version 0.1: whether they are the same is not checked, nor "
    "whether test images were trained on"
)


class RunFolder:
    """A run's folder: `config.yaml`, `command.txt`, `environment.json`, `images.digests`, `metrics.jsonl`,
    TensorBoard's events, and the folders `checkpoints`, `results` and `figures`. Made by `create`, found again by
    `open`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.command = path / "command.txt"
        self.environment = path / "environment.json"
        self.digests = path / "images.digests"
        self.checkpoints = path / "checkpoints"
        self.results = path / "results"
        self.figures = path / "figures"
        self.trusting: list[str] = []
        """What the command that resumes the run needs beside its folder."""
        self.moved: tuple[str, ...] = ()
        """Flags that a resume needs beside the folder, since the data are not where `config.yaml` has them."""
        self.lock: FolderLock | None = None
        """While this process holds it, see `astra_gym.experiments.runs.claims`."""

    @classmethod
    def create(
        cls,
        path: Path | str,
        settings: Settings,
        argv: Sequence[str],
        first: Callable[[Self], None] | None = None,
    ) -> Self:
        """Makes the folder of a new run.

        Args:
            path: a folder that does not exist or is empty.
            settings: of the run.
            argv: the command line, program first.
            first: writes what else the folder needs to be resumed, the first checkpoint.

        Raises:
            ValueError: if the folder exists and is not empty, or cannot be written.
        """
        folder = cls(Path(path))
        folder.trusting = trusting(settings)
        folder.check_new()
        folder.begin(settings, argv, first)
        return folder

    def begin(self, settings: Settings, argv: Sequence[str], first: Callable[[Self], None] | None = None) -> None:
        """Makes what `create` does of a folder that is new, see `astra_gym.experiments.runs.claims`.

        Where that fails nothing is left.
        """
        try:
            for part in (self.path, *self.parts):
                part.mkdir(parents=True, exist_ok=True)
            self.command.write_text(shlex.join(argv) + "\n", encoding="utf-8")
            self._write_environment([environment(settings)])
            if first is not None:
                first(self)
            # The last, since it is what makes the folder one that can be resumed.
            with replacing(self.config) as temporary:
                temporary.write_text(settings.to_yaml(), encoding="utf-8")
        except BaseException as error:
            self._undo()
            if isinstance(error, OSError):
                raise unwritable(self.path, error) from error
            raise

    def _undo(self) -> None:
        with suppress(OSError):
            for path in (*self.files, self.checkpoints / "last.pt"):
                path.unlink(missing_ok=True)
            for part in self.parts:
                part.rmdir()

    @property
    def files(self) -> tuple[Path, ...]:
        """What lies in it besides folders and TensorBoard's events."""
        return self.config, self.command, self.environment, self.path / "metrics.jsonl"

    @property
    def parts(self) -> tuple[Path, ...]:
        """Its folders."""
        return self.checkpoints, self.results, self.figures

    def check(self) -> None:
        """Raises a FolderLostError if this process holds the folder, and it was removed or moved."""
        if self.lock is not None:
            self.lock.check()

    def check_new(self) -> None:
        """Raises a ValueError if the folder exists and is not empty."""
        try:
            if self.path.is_dir() and any(path.name != LOCK for path in self.path.iterdir()):
                hint = (
                    f"go on with it by {shlex.join(['--resume', str(self.path)])}, or " if self.config.exists() else ""
                )
                raise ValueError(f"the run folder {self.path} exists and is not empty: {hint}choose another --run_dir")
        except OSError as error:
            raise unwritable(self.path, error) from error

    @classmethod
    def open(cls, path: Path | str) -> Self:
        """The folder of an earlier run.

        Raises:
            ValueError: if it is not a run's folder.
        """
        folder = cls(Path(path))
        if not folder.config.is_file():
            raise ValueError(f"{path} is not a run folder: it has no config.yaml")
        return folder

    @classmethod
    def of(cls, path: Path) -> Self:
        """The folder of a run, or of the run that a checkpoint lies in; whether it is one is not checked."""
        return cls(path if path.is_dir() else path.parent.parent)

    def settings(self) -> Settings:
        """What `config.yaml` holds."""
        return load(self.config)

    def images(self) -> RunImages | None:
        """Digests of the images of the run; None for a run that keeps none, as those of version 0.1.

        Raises:
            ValueError: if the file is damaged.
        """
        return RunImages.read(self.digests) if self.digests.exists() else None

    def note_resume(self, settings: Settings, argv: Sequence[str]) -> None:
        """Adds the resuming command and its environment to those of the start.

        Raises:
            ValueError: if the folder cannot be written, or what lies in it leads out of it.
        """
        self.trusting = trusting(settings)
        for part in (self.checkpoints, self.results, self.figures):
            check_folder(part)
        if settings.data_dir is not None and settings.data_dir != self.settings().data_dir:
            self.moved = ("--data_dir", settings.data_dir)
        try:
            with open_to_append(self.command) as file:
                file.write(shlex.join(argv) + "\n")
            self._write_environment([*self.environments(), environment(settings)])
        except OSError as error:
            raise unwritable(self.path, error) from error

    def note_training(
        self, first: int, last: int, seconds: float, shares: Mapping[str, float], peak: Mapping[str, int]
    ) -> None:
        """Adds a stretch of training, from update `first` to `last`, to `results/training.json`.

        Args:
            first, last: target updates before and after.
            seconds: wall time of all.
            shares: seconds of it by who took them, see `astra_gym.experiments.runs.run.Run.train`.
            peak: the process's peak memory by then, see `astra_gym.experiments.runs.peak_memory.peak_memory`.
        """
        path = self.results / "training.json"
        rounded = {f"{name}_seconds": round(value, 2) for name, value in shares.items()}
        stretches = _parts(path, "stretches") if path.exists() else []
        stretches.append({"first": first, "last": last, "seconds": round(seconds, 1), **rounded, **peak})
        write_json(path, {"schema": 1, "stretches": stretches})

    def environments(self) -> list[dict[str, Any]]:
        """Where the run ran: one entry for its start and one for each time it was resumed."""
        return _parts(self.environment, "starts")

    def _write_environment(self, starts: list[dict[str, Any]]) -> None:
        write_json(self.environment, {"schema": 1, "starts": starts})


def unwritable(path: Path, error: OSError) -> ValueError:
    """What is raised where a run's folder cannot be written."""
    return ValueError(f"cannot write the run folder {path} ({error.strerror}): choose another --run_dir")


def environment(settings: Settings) -> dict[str, Any]:
    """What the figures of a run depend on besides its settings."""
    device = resolve_device(settings.device)
    return {
        "commit": commit(ROOT),
        "versions": versions(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "precision": settings.precision,
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "system": platform.system(),
    }


def _parts(path: Path, name: str) -> list[dict[str, Any]]:
    """The list called `name` in a JSON file."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is not readable JSON: {error}") from error
    if not isinstance(document, dict) or not isinstance(document.get(name), list):
        raise ValueError(f"{path} is damaged: expected an object with a list {name!r}")
    return document[name]


class RunLog:
    """Writes `metrics.jsonl` and TensorBoard's events, which say the same, one row a target update.

    Both hold nothing that differs between two equal runs on the CPU, but for TensorBoard's tags under `time/` and
    `memory/` (peak memory, once an epoch). Call `flush` before a checkpoint is saved: what lies before it then outlives
    the process.

    Args:
        folder: the run's folder.
        images_per_step: images of a target update, for the rate.
        resumed_step: the checkpoint's step where a run goes on. What was written after it is taken back, so that the
            curves are those of a run that was never interrupted; `damages` says what is lost of the log before it.
        histograms_every: target updates between histograms.
    """

    def __init__(
        self, folder: RunFolder, images_per_step: int, *, resumed_step: int | None = None, histograms_every: int = 10
    ) -> None:
        self.path = folder.path / "metrics.jsonl"
        self.images_per_step = images_per_step
        self.histograms_every = histograms_every
        self.images_per_second = 0.0
        self._times: deque[float] = deque(maxlen=20)
        self.damages: list[str] = []
        """What of the earlier log is lost, in words; a checkpoint is whole without it."""
        if resumed_step is not None:
            self._take_back(resumed_step)
        self._file = open_to_append(self.path)
        purge_step = None if resumed_step is None else resumed_step + 1
        self._board = SummaryWriter(str(folder.path), purge_step=purge_step)

    def _take_back(self, step: int) -> None:
        let_the_next_be_last(self.path.parent)
        kept, self.damages = kept_rows(self.path, step)
        with replacing(self.path) as temporary:
            temporary.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except OSError:
            # of the disk that has ended the work already
            if error is None:
                raise

    def step(self, record: "StepRecord") -> dict[str, Any]:
        """Writes a target update down.

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
            self._board.add_histogram("actions/epsilon", record.budget.epsilon * UNIT, record.step)
            self._board.add_histogram("actions/steps", record.budget.steps, record.step)
            self._board.add_histogram("actions/step_size", record.budget.step_size * UNIT, record.step)
        return row

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Writes figures down that come with a target update but not from it: an agent's own, an evaluation's."""
        self._write({"step": step} | dict(values))
        self._scalars(values, step)

    def images(self, record: "StepRecord", count: int = 8) -> None:
        """A grid of the first `count` views: clean, attacked, the perturbation (grey is 0, the ends are +-16/255)."""
        if record.adversarial is None:
            return
        clean, attacked = (part[:count].detach().float().cpu() for part in (record.views, record.adversarial))
        rows = [clean, attacked, ((attacked - clean) * UNIT / 32 + 0.5).clamp(0, 1)]
        self._board.add_image("attack/clean_attacked_perturbation", image_grid(rows), record.step)

    def hparams(self, settings: Settings, metrics: Sequence[str]) -> None:
        """The settings for TensorBoard's table of runs, beside the scalars called `metrics`; once, at the start."""
        # SummaryWriter.add_hparams would put them into a run of their own, in a folder below.
        values = {
            name: value if isinstance(value, bool | int | float) else str(value)
            for name, value in asdict(settings).items()
        }
        for summary in hparams(values, dict.fromkeys(metrics, 0.0)):
            self._board._get_file_writer().add_summary(summary)

    def agent_writer(self, update_of: Callable[[int], int]) -> "AgentWriter":
        """What an agent's SB3 logger writes to: `Logger(folder=None, output_formats=[log.agent_writer(...)])`.

        Args:
            update_of: from the agent's time steps to target updates.
        """
        return AgentWriter(self, update_of)

    def flush(self) -> None:
        """Hands everything to the operating system."""
        self._file.flush()
        self._board.flush()

    def close(self) -> None:
        """Writes out what is left and closes the files."""
        with ExitStack() as both:
            both.callback(self._board.close)
            self._file.close()

    def _write(self, row: Mapping[str, Any]) -> None:
        # JSON has no NaN, and some of SB3's figures (explained variance) are NaN by right.
        plain = {
            key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in row.items()
        }
        self._file.write(json.dumps(plain, allow_nan=False) + "\n")
        self._file.flush()

    def _scalars(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._board.add_scalar(name, value, step)


class AgentWriter(KVWriter):
    """An SB3 logger's output into a run's log, at the target update that its time steps make, under `agent/`."""

    def __init__(self, log: RunLog, update_of: Callable[[int], int]) -> None:
        self.log = log
        self.update_of = update_of

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """Numbers go into both files, but what SB3 times itself (`time/`) is left out: the log has its own rate."""
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
        """The run closes its log itself: an agent's logger may go first."""


def image_grid(rows: Sequence[Tensor], side: int = 64, gap: int = 2) -> Tensor:
    """Equally long rows of images (n, 3, H, W) in [0, 1] as one image (3, ...), each about `side` pixels wide."""
    scale = max(1, side // rows[0].shape[-1])
    lines = []
    for images in rows:
        large = images.repeat_interleave(scale, dim=2).repeat_interleave(scale, dim=3)
        padded = torch.nn.functional.pad(large, (gap, gap, gap, gap), value=1.0)
        lines.append(torch.cat(list(padded), dim=2))
    return torch.cat(lines, dim=1)
