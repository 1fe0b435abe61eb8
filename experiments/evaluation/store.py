"""The folder of an evaluation: finished work is kept in parts, so that a repeated command resumes."""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from astra_gym.ssl_core.evaluation.results import Row, read_results, write_results
from astra_gym.ssl_core.evaluation.sanity import TrainedOnError
from astra_gym.ssl_core.models.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from astra_gym.ssl_core.safety.sealing import check_png, read_json
from astra_gym.ssl_core.safety.writers import sweep
from astra_gym.ssl_core.utils.files import check_target, write_file, write_json
from astra_gym.ssl_core.utils.messages import shown
from astra_gym.ssl_core.utils.paths import OwnFiles, check_folder, check_place, copy_file

SCHEMA = 1
EVALUATION = "evaluation.json"
TRAINED_ON = "trained_on.txt"
"""The list of test images that were trained on, if an evaluation was refused for them."""
DOWNSTREAM = "downstream_loss.png"
FIGURES = (
    "accuracy_along_the_run.png",
    "tsne.png",
    "spectrum.png",
    "landscape.png",
    DOWNSTREAM,
    "accuracy_against_epsilon.png",
)
"""Figures of an evaluation and its report."""
OTHERS = ("config.yaml", "comparison.yaml", "comparison.json")
"""Files of a run and of a comparison; an evaluation refuses folders with them."""
FACTS: Mapping[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("name", "commit", "device", "command"), lambda value: isinstance(value, str)),
    "threads": lambda value: type(value) is int,
    "versions": lambda value: _by_name(value, str),
    "notes": lambda value: (
        _by_name(value, list) and all(_by_name(dict(enumerate(said)), str) for said in value.values())
    ),
    "data": lambda value: (
        isinstance(value, dict)
        and isinstance(value.get("name"), str)
        and all(type(value.get(part)) is int for part in ("train", "test"))
    ),
}
"""Fields of `facts.json` that a report and `publish` use, and checks of their form."""


def _by_name(value: Any, kind: type) -> bool:
    return isinstance(value, dict) and all(isinstance(one, kind) for one in value.values())


@dataclass(frozen=True)
class EvaluationPart:
    """The results of one part of an evaluation.

    Args:
        rows: its values.
        notes: what must be reported beside them, in sentences.
        outcomes: correctness of each test image (bool (n,)), by attack.
    """

    rows: Sequence[Row]
    notes: Sequence[str] = ()
    outcomes: Mapping[str, Tensor] = field(default_factory=dict)


class EvaluationStore:
    """Parts of an evaluation and the classifiers that it trained, each named by all that its result depends on.

    `parts/KEY/` holds a part's rows, notes, outcomes and figures; `classifiers/KEY.pt` the result of a training;
    `states/KEY/` the states of long attacks; `evaluation.json`, `facts.json` and `figures/` are the last command's.
    Of the files in `figures/`, only those written by an evaluation are replaced or removed.

    Args:
        path: the folder; it is made when something is kept.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.figures = path / "figures"
        self.file = path / EVALUATION
        # the first evaluations have no list of their figures
        self._own = OwnFiles(self.figures, FIGURES if self.file.is_file() else ())
        self._drawn: dict[str, Path | None] = {}

    def begin(self) -> None:
        """Check, before anything is computed, that the folder can be this evaluation's. Nothing is written yet, but
        temporary files of killed writers are removed.

        Raises:
            ValueError: if it is a run's or a comparison's, a part of it is a link or not a folder, or a figure would
                replace a file that no evaluation has drawn.
        """
        check_place(self.path, "--out")
        if other := next((name for name in OTHERS if (self.path / name).exists()), None):
            raise ValueError(f"--out: {self.path} is not an evaluation's folder, it has a {other}: choose another")
        for name in ("parts", "classifiers", "states", "figures"):
            check_folder(self.path / name)
        for name in (EVALUATION, "facts.json"):
            check_target(self.path / name)
        self._own.check(*FIGURES)
        self.sweep()

    def sweep(self) -> None:
        """Remove the temporary files that killed writers have left."""
        sweep(self.path, lambda name: name in (EVALUATION, "facts.json") or (self.path / name).exists())
        sweep(self.path / "classifiers")
        for folder in (*self.path.glob("parts/*"), *self.path.glob("parts/*/figures"), *self.path.glob("states/*")):
            sweep(folder)

    def check_data(self, name: str) -> list[str]:
        """Check that the folder does not hold the results of another data set, which would be replaced.

        Returns:
            A sentence if the folder's table is damaged, which is then replaced in any case.

        Raises:
            ValueError: if it holds such results.
        """
        try:
            others = {row.dataset for row in read_results(self.file)} - {name} if self.file.is_file() else set()
        except ValueError as error:
            return [f"{error}; it is written anew"]
        if others:
            raise ValueError(f"{self.path} holds an evaluation on {', '.join(sorted(others))}: give another --out DIR")
        return []

    def part(self, key: Mapping[str, Any]) -> EvaluationPart | None:
        """Return the part kept under a key, None if there is none."""
        folder = self.path / "parts" / _name(key)
        if not (folder / "part.json").is_file():
            return None
        advice = f"delete {folder}, and it is found again"
        document = read_json(folder / "part.json", advice)
        try:
            rows = read_results(folder / "rows.json")
            marked = {name: [mark == "1" for mark in marks] for name, marks in document["outcomes"].items()}
            notes = [str(note) for note in document["notes"]]
        except (ValueError, OSError) as error:
            raise ValueError(f"{error}; or {advice}") from error
        except (LookupError, TypeError, AttributeError) as error:
            raise ValueError(f"{folder / 'part.json'} is damaged, it lacks outcomes or notes: {advice}") from error
        return EvaluationPart(rows, notes, {name: torch.tensor(marks) for name, marks in marked.items()})

    def keep_part(self, key: Mapping[str, Any], part: EvaluationPart) -> EvaluationPart:
        """Keep a part; it exists once `part.json` does, which is written last."""
        folder = self.path / "parts" / _name(key)
        check_folder(folder)
        write_results(folder / "rows.json", part.rows)
        marks = {name: "".join(map(str, right.int().tolist())) for name, right in part.outcomes.items()}
        document = {"schema": SCHEMA, "key": key, "notes": list(part.notes), "outcomes": marks}
        write_json(folder / "part.json", document)
        return part

    def classifier(self, key: Mapping[str, Any], device: torch.device) -> dict[str, Any] | None:
        """Return what `keep_classifier` kept under a key, None if there is nothing."""
        path = self.path / "classifiers" / f"{_name(key)}.pt"
        try:
            return load_checkpoint(path, "classifier", device) if path.is_file() else None
        except CheckpointError as error:
            raise CheckpointError(f"{error}: delete it, and it is trained anew") from error

    def keep_classifier(self, key: Mapping[str, Any], payload: dict[str, Any]) -> None:
        """Keep plain tensors and values under a key."""
        folder = self.path / "classifiers"
        folder.mkdir(parents=True, exist_ok=True)
        save_checkpoint(folder / f"{_name(key)}.pt", "classifier", {"key": json.dumps(key), **payload})

    def figures_of(self, key: Mapping[str, Any]) -> Path:
        """Return the folder for the figures of a part."""
        return self.path / "parts" / _name(key) / "figures"

    def show(self, figures: Iterable[Path]) -> None:
        """Put figures among those of the last command, when it concludes.

        Raises:
            ValueError: if one is damaged.
        """
        for figure in figures:
            check_png(figure)
            self._drawn[figure.name] = figure

    def draws(self, name: str) -> Path:
        """Return the path for a figure that is drawn now, among those of the last command."""
        self._own.claim(name)
        self._drawn[name] = None
        return self.figures / name

    def own_figures(self) -> list[Path]:
        """Return the present figures that an evaluation drew."""
        return [self.figures / name for name in sorted(self._own.names()) if (self.figures / name).is_file()]

    def states(self, key: Mapping[str, Any]) -> Path:
        """Return the folder for the states of attacks on a classifier."""
        folder = self.path / "states" / _name(key)
        check_folder(folder)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def conclude(self, rows: Sequence[Row], facts: Mapping[str, Any]) -> None:
        """Write `evaluation.json` (the rows) and `facts.json` (notes, command, machine), and put the figures in place
        of those of an earlier command, which may be of another encoder.
        """
        if self._drawn or (self.figures.is_dir() and self._own.names()):
            self._own.claim(*self._drawn)
            for name, source in self._drawn.items():
                if source is not None:
                    copy_file(source, self.figures / name)
            self._own.keep_only(*self._drawn)
        write_results(self.file, rows)
        write_json(self.path / "facts.json", {"schema": SCHEMA, **facts})

    def facts(self) -> dict[str, Any]:
        """Return what `conclude` was given beside the rows.

        Raises:
            ValueError: if the evaluation is unfinished, or the file is damaged.
        """
        path = self.path / "facts.json"
        try:
            facts = read_json(path, "repeat the evaluation")
        except OSError as error:
            raise ValueError(f"{path} cannot be read ({error.strerror}): repeat the evaluation") from error
        if not isinstance(facts, dict):
            raise ValueError(f"{path} holds a {type(facts).__name__}: repeat the evaluation")
        # the first evaluations were kept before void classifiers had an entry
        for name, holds in (*FACTS.items(), ("void", lambda value: value is None or _by_name(value, str))):
            if not holds(facts.get(name)):
                raise ValueError(f"{path} is damaged: {name} is {shown(facts.get(name))}: repeat the evaluation")
        return facts


def listed(error: TrainedOnError, path: Path) -> TrainedOnError:
    """Return the error; if it does not name all images, write them to a file that it names."""
    if len(error.shared) <= 3:
        return error
    write_file(path, "".join(f"{name}\n" for name in error.shared).encode(errors="replace"))
    return TrainedOnError(f"{error}; all are listed in {path}", error.shared)


def _name(key: Mapping[str, Any]) -> str:
    text = json.dumps(key, sort_keys=True, allow_nan=False)
    return f"{key['part']}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
