"""The run folder and the files that a run writes into it."""

import platform
import shlex
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar, Self

import torch

from astra_gym.experiments.config.cli import load
from astra_gym.experiments.config.devices import arithmetic, resolve_device
from astra_gym.experiments.config.settings import Settings
from astra_gym.experiments.config.trust import trusting
from astra_gym.experiments.runs.logs import (
    add_command,
    command_digest,
    command_line,
    read_commands,
    read_parts,
    set_aside,
    whole_parts,
)
from astra_gym.ssl_core.data.image_digests import RunImages
from astra_gym.ssl_core.models.checkpoint import save_checkpoint
from astra_gym.ssl_core.safety.disk import FolderLostError
from astra_gym.ssl_core.safety.sealing import sealed_yaml, without_seal
from astra_gym.ssl_core.safety.writers import LOCK, FolderLock
from astra_gym.ssl_core.utils.device import convolves_in_tf32
from astra_gym.ssl_core.utils.files import check_target, expanded, write_file, write_json
from astra_gym.ssl_core.utils.paths import check_folder
from astra_gym.ssl_core.utils.provenance import ROOT, commit, versions

DIGEST = "command_sha256"
NO_DIGESTS = (
    "this run keeps no digests of its images, as runs of version 0.1: whether they are the same is not checked, nor "
    "whether test images were trained on"
)


class RunFolder:
    """A run's folder: `config.yaml`, `command.txt`, `environment.json`, `images.digests`, `metrics.jsonl`,
    TensorBoard's events, and the folders `checkpoints`, `results` and `figures`. Made by `create`, opened again by
    `open`.
    """

    writes: ClassVar[bool] = True
    """Whether this process writes the folder: rank 0 does for all."""

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
        """Flags that the resuming command needs besides the folder."""
        self.moved: tuple[str, ...] = ()
        """Flags that a resume needs besides the folder, if the data are not where `config.yaml` has them."""
        self.lock: FolderLock | None = None
        """Lock while this process holds the folder, see `astra_gym.experiments.runs.claims`."""

    @classmethod
    def create(
        cls,
        path: Path | str,
        settings: Settings,
        argv: Sequence[str],
        first: Callable[[Self], None] | None = None,
    ) -> Self:
        """Make the folder of a new run.

        Args:
            path: a folder that does not exist or is empty.
            settings: settings of the run.
            argv: the command line, program first.
            first: function that writes the rest of what a resume needs, the first checkpoint.

        Raises:
            ValueError: if the folder exists and is not empty, or cannot be written.
        """
        folder = cls(Path(path))
        folder.check_new()
        folder.begin(settings, argv, first)
        return folder

    def begin(
        self,
        settings: Settings,
        argv: Sequence[str],
        first: Callable[[Self], None] | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        """Write what `create` writes into a new folder, see `astra_gym.experiments.runs.claims`.

        If that fails, nothing is left. `facts` join the start's entry in `environment.json`.
        """
        self.trusting = trusting(settings.flat())
        try:
            for part in (self.path, *self.parts):
                part.mkdir(parents=True, exist_ok=True)
            add_command(self.command, command_line(argv))
            self._write_environment([environment(settings, argv) | dict(facts or {})])
            if first is not None:
                first(self)
            # Written last, since it makes the folder one that can be resumed.
            write_file(self.config, sealed_yaml(settings.to_yaml()))
        except BaseException as error:
            self.discard()
            if isinstance(error, OSError):
                raise unwritable(self.path, error) from error
            raise

    def discard(self) -> None:
        """Remove what a start that was cut short has left."""
        with suppress(OSError):
            for path in (*self.files, self.digests, self.checkpoints / "last.pt"):
                path.unlink(missing_ok=True)
            for part in self.parts:
                part.rmdir()

    def is_begun_by(self, settings: Settings, argv: Sequence[str]) -> bool:
        """Return whether a command has begun the folder by `begin`, even if that was cut short."""
        if self.config.is_file():
            return without_seal(self.config.read_bytes()) == settings.to_yaml().encode()
        return self.command.is_file() and self.command.read_bytes() == f"{command_line(argv)}\n".encode()

    @property
    def files(self) -> tuple[Path, ...]:
        """The files in the folder, except TensorBoard's events."""
        return self.config, self.command, self.environment, self.path / "metrics.jsonl"

    @property
    def parts(self) -> tuple[Path, ...]:
        """The folders in the folder."""
        return self.checkpoints, self.results, self.figures

    def save(self, name: str, kind: str, payload: dict[str, Any]) -> None:
        """Write a checkpoint of this name, see `astra_gym.ssl_core.models.checkpoint.save_checkpoint`."""
        save_checkpoint(self.checkpoints / name, kind, payload)

    def check(self) -> None:
        """Raise a FolderLostError if this process holds the folder, and it or its `config.yaml` was removed or moved:
        without that no run is resumed."""
        if self.lock is not None:
            self.lock.check()
            if not self.config.exists():
                raise FolderLostError(f"{self.config} was removed or moved while the run was written")

    def check_new(self) -> None:
        """Raise a ValueError if the folder exists and is not empty."""
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
        """Open the folder of an earlier run.

        Raises:
            ValueError: if it is not a run's folder.
        """
        folder = cls(expanded(path))
        if not folder.config.is_file():
            raise ValueError(f"{path} is not a run folder: it has no config.yaml")
        return folder

    @classmethod
    def of(cls, path: Path) -> Self:
        """Return the folder of a run, or of the run that holds a checkpoint; whether it is a run's is not checked."""
        return cls(path if path.is_dir() else path.parent.parent)

    def settings(self) -> Settings:
        """Return the settings in `config.yaml`."""
        return load(self.config)

    def images(self) -> RunImages | None:
        """Return the digests of the run's images; None for a run without them, as those of version 0.1.

        Raises:
            ValueError: if the file is damaged.
        """
        return RunImages.read(self.digests) if self.digests.exists() else None

    def accept_config(self) -> None:
        """Seal the present `config.yaml`.

        Raises:
            ValueError: if the folder cannot be written.
        """
        try:
            text = without_seal(self.config.read_bytes()).decode()
            write_file(self.config, sealed_yaml(text))
        except OSError as error:
            raise unwritable(self.path, error) from error

    def commands(self, damage: list[str]) -> list[str]:
        """Return the commands that started and resumed the run; `damage` gets a sentence for each defect."""
        starts = self.environments([])
        return read_commands(self.command, [str(start[DIGEST]) for start in starts if DIGEST in start], damage)

    def note_resume(self, settings: Settings, argv: Sequence[str]) -> list[str]:
        """Add the resuming command and its environment to those of the start.

        Returns:
            A sentence for each of these logs that is damaged; a damaged `environment.json` is restarted.

        Raises:
            ValueError: if the folder cannot be written, or a link in it leads out of it.
        """
        self.trusting = trusting(settings.flat())
        for part in self.parts:
            check_folder(part)
        for file in self.files:
            check_target(file)
        place = settings.data.data_dir
        if place is not None and place != self.settings().data.data_dir:
            self.moved = ("--data_dir", place)
        damage: list[str] = []
        try:
            self.commands(damage)
            starts = self._begun_anew(self.environment, "starts", damage)
            add_command(self.command, command_line(argv))
            self._write_environment([*starts, environment(settings, argv)])
        except OSError as error:
            raise unwritable(self.path, error) from error
        return damage

    def _begun_anew(self, path: Path, name: str, damage: list[str]) -> list[dict[str, Any]]:
        """Return the list called `name` in a JSON file; set a damaged file aside and return an empty list."""
        before = len(damage)
        parts = whole_parts(path, name, damage)
        if len(damage) > before:
            set_aside(path)
        return parts

    def note_training(
        self, first: int, last: int, seconds: float, shares: Mapping[str, float], peak: Mapping[str, int]
    ) -> list[str]:
        """Add a stretch of training, from update `first` to `last`, to `results/training.json`.

        Args:
            first, last: target updates before and after.
            seconds: total wall time.
            shares: seconds of each part of that time, see `astra_gym.experiments.runs.run.Run.train`.
            peak: the process's peak memory so far, see `astra_gym.experiments.runs.peak_memory.peak_memory`.

        Returns:
            A sentence if the file is damaged: it is then restarted, without the earlier stretches.
        """
        damage: list[str] = []
        path = self.results / "training.json"
        rounded = {f"{name}_seconds": round(value, 2) for name, value in shares.items()}
        stretches = self._begun_anew(path, "stretches", damage) if path.exists() else []
        stretches.append({"first": first, "last": last, "seconds": round(seconds, 1), **rounded, **peak})
        write_json(path, {"schema": 1, "stretches": stretches})
        return damage

    def environments(self, damage: list[str] | None = None) -> list[dict[str, Any]]:
        """Return the environments of the run: one entry for its start and one for each resume.

        Args:
            damage: list that gets a sentence if the file is missing or damaged; there is then no entry. Without it that
                is an error.

        Raises:
            ValueError: if the file is missing or damaged, and `damage` is None.
        """
        if damage is None:
            return read_parts(self.environment, "starts")
        return whole_parts(self.environment, "starts", damage)

    def _write_environment(self, starts: list[dict[str, Any]]) -> None:
        write_json(self.environment, {"schema": 1, "starts": starts})


def unwritable(path: Path, error: OSError) -> ValueError:
    """Return the error for a run's folder that cannot be written."""
    inside = isinstance(error.filename, str) and path in Path(error.filename).parents
    where = f"{error.filename}: " if inside else ""
    return ValueError(f"cannot write the run folder {path} ({where}{error.strerror}): choose another --run_dir")


def environment(settings: Settings, argv: Sequence[str]) -> dict[str, Any]:
    """Return what the values of a run depend on besides its settings, and the digest of the command's line."""
    device = resolve_device(settings.run.device)
    with arithmetic(settings.optimizer.precision, settings.run.deterministic):
        tf32 = convolves_in_tf32(device)
    return {
        "commit": commit(ROOT),
        "versions": versions(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "precision": settings.optimizer.precision,
        "tf32": tf32,
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "system": platform.system(),
        DIGEST: command_digest(command_line(argv)),
    }
