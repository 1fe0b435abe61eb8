"""The folder of an evaluation: what is finished lies in parts, so that a command that is repeated goes on."""

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from astra_gym.ssl_core.evaluation.results import Row, read_results, write_results
from astra_gym.ssl_core.models.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from astra_gym.ssl_core.utils.files import write_json

SCHEMA = 1
EVALUATION = "evaluation.json"


@dataclass(frozen=True)
class EvaluationPart:
    """What one part of an evaluation found.

    Args:
        rows: its figures.
        notes: what has to be reported beside them, in sentences.
        outcomes: which test images were right (bool (n,)), by attack.
    """

    rows: Sequence[Row]
    notes: Sequence[str] = ()
    outcomes: Mapping[str, Tensor] = field(default_factory=dict)


class EvaluationStore:
    """Parts of an evaluation and the classifiers that it trained, each named by all that decides it.

    `parts/KEY/` holds a part's rows, notes, outcomes and figures; `classifiers/KEY.pt` what a training gave;
    `states/KEY/` where long attacks have got to; `evaluation.json`, `facts.json` and `figures/` are the last command's.

    Args:
        path: the folder; it is made when something is kept.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.figures = path / "figures"
        self.file = path / EVALUATION

    def begin(self) -> None:
        """Takes away what the last command has drawn: it may be of another encoder."""
        shutil.rmtree(self.figures, ignore_errors=True)

    def part(self, key: Mapping[str, Any]) -> EvaluationPart | None:
        """The part kept under a key, None where there is none."""
        folder = self.path / "parts" / _name(key)
        if not (folder / "part.json").is_file():
            return None
        try:
            document = json.loads((folder / "part.json").read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{folder / 'part.json'} is damaged ({error}): delete {folder}") from error
        outcomes = {name: torch.tensor([mark == "1" for mark in marks]) for name, marks in document["outcomes"].items()}
        return EvaluationPart(read_results(folder / "rows.json"), document["notes"], outcomes)

    def keep_part(self, key: Mapping[str, Any], part: EvaluationPart) -> EvaluationPart:
        """Keeps a part; it is there once `part.json` is, which comes last."""
        folder = self.path / "parts" / _name(key)
        write_results(folder / "rows.json", part.rows)
        marks = {name: "".join(map(str, right.int().tolist())) for name, right in part.outcomes.items()}
        document = {"schema": SCHEMA, "key": key, "notes": list(part.notes), "outcomes": marks}
        write_json(folder / "part.json", document)
        return part

    def classifier(self, key: Mapping[str, Any], device: torch.device) -> dict[str, Any] | None:
        """What `keep_classifier` kept under a key, None where there is nothing."""
        path = self.path / "classifiers" / f"{_name(key)}.pt"
        try:
            return load_checkpoint(path, "classifier", device) if path.is_file() else None
        except CheckpointError as error:
            raise CheckpointError(f"{error}: delete it, and it is trained anew") from error

    def keep_classifier(self, key: Mapping[str, Any], payload: dict[str, Any]) -> None:
        """Keeps plain tensors and values under a key."""
        folder = self.path / "classifiers"
        folder.mkdir(parents=True, exist_ok=True)
        save_checkpoint(folder / f"{_name(key)}.pt", "classifier", {"key": json.dumps(key), **payload})

    def figures_of(self, key: Mapping[str, Any]) -> Path:
        """The folder for the figures of a part."""
        return self.path / "parts" / _name(key) / "figures"

    def show(self, figures: Path) -> None:
        """Puts the figures of a part among those of the last command."""
        self.figures.mkdir(parents=True, exist_ok=True)
        for figure in sorted(figures.glob("*.png")):
            shutil.copyfile(figure, self.figures / figure.name)

    def states(self, key: Mapping[str, Any]) -> Path:
        """The folder for the states of attacks on a classifier."""
        folder = self.path / "states" / _name(key)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def conclude(self, rows: Sequence[Row], facts: Mapping[str, Any]) -> None:
        """Writes `evaluation.json` (the rows) and `facts.json` (notes, command, machine)."""
        write_results(self.file, rows)
        write_json(self.path / "facts.json", {"schema": SCHEMA, **facts})

    def facts(self) -> dict[str, Any]:
        """What `conclude` was given beside the rows.

        Raises:
            ValueError: if the evaluation is unfinished, or the file is damaged.
        """
        try:
            return json.loads((self.path / "facts.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(f"{self.path / 'facts.json'} cannot be read ({error}): repeat the evaluation") from error


def _name(key: Mapping[str, Any]) -> str:
    text = json.dumps(key, sort_keys=True, allow_nan=False)
    return f"{key['part']}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
