"""The evaluation of the encoders of a command line: one, or several with a common table."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console

from astra_gym.experiments.console import Decoding
from astra_gym.experiments.evaluation.classifier_parts import curves_of
from astra_gym.experiments.evaluation.data_identity import LONGEST
from astra_gym.experiments.evaluation.encoders import Subject
from astra_gym.experiments.evaluation.evaluate import evaluate
from astra_gym.experiments.evaluation.flags import EvaluationFlags
from astra_gym.experiments.evaluation.request import data_of, default_folder, plan_of, subject_of
from astra_gym.experiments.evaluation.store import DOWNSTREAM, EvaluationStore
from astra_gym.ssl_core.evaluation.results import Row
from astra_gym.ssl_core.utils.messages import short, shown

FOREIGN = ("format", "stem", "route", "mean", "std")
"""Flags for checkpoints of other projects; a run folder among several encoders needs none."""
Begin = Callable[[Path], None]


class EvaluatedEncoder(NamedTuple):
    """An evaluated encoder: its rows, the facts to be reported beside them, and their store."""

    subject: Subject
    rows: list[Row]
    facts: dict[str, Any]
    store: EvaluationStore


def evaluate_one(
    given: EvaluationFlags,
    console: Console,
    device: torch.device,
    begin: Begin,
    dataset: str | None = None,
    subject: Subject | None = None,
) -> EvaluatedEncoder:
    """Evaluate the encoder of a command line.

    Args:
        given: the command line.
        console: console for progress.
        device: device of the evaluation.
        begin: called with the evaluation's folder, before anything is written.
        dataset: name of the data set of the encoders before it, None if it is the first.
        subject: the encoder, if it is loaded already.

    Raises:
        ValueError, CheckpointError: if the encoder, the data or the folder cannot be used, or the data set is another.
    """
    subject = subject_of(given, device) if subject is None else subject
    plan = plan_of(given)
    with Decoding(kind=given.work.progress, console=console) as decoding:
        data = data_of(given, subject, decoding)
    if dataset not in (None, data.name):
        raise ValueError(
            f"{subject.name} would be evaluated on {data.name}, the encoders before it on {dataset}: give one --dataset"
        )
    store = _opened(given.work.out or default_folder(given, subject, data), data.name, console, begin)
    rows, facts = evaluate(subject, data, plan, given, store, console, device)
    _draw(rows, store)
    return EvaluatedEncoder(subject, rows, facts, store)


def evaluate_several(
    given: EvaluationFlags, console: Console, device: torch.device, begin: Begin, command: str
) -> tuple[list[Row], dict[str, Any], EvaluationStore]:
    """Evaluate several encoders in turn, each in its own folder, and put their rows together.

    Args:
        given, console, device, begin: as for `evaluate_one`.
        command: the command, for the facts of each encoder.

    Returns:
        The common rows, whose `checkpoint` is the encoder's name (see `names`), their facts and their store.

    Raises:
        ValueError, CheckpointError: as `evaluate_one`, or if two encoders have the same folder.
    """
    folders: dict[Path, Path] = {}
    found: list[EvaluatedEncoder] = []
    # all are opened first: the last one's wrong name must not show after hours
    each = [(path, alone := _alone(given, path), subject_of(alone, device)) for path in given.source.encoders]
    for path, alone, subject in each:

        def begin_own(folder: Path, path: Path = path) -> None:
            if (other := folders.setdefault(folder.resolve(), path)) != path:
                raise ValueError(f"{other} and {path} have the same folder, {folder}: rename one of the files")
            begin(folder)

        dataset = found[0].facts["data"]["name"] if found else None
        one = evaluate_one(alone, console, device, begin_own, dataset, subject)
        one.store.conclude(one.rows, one.facts | {"command": command})
        found.append(one)
    labels = names([one.subject for one in found], given.source.encoders)
    named = list(zip(labels, found, strict=True))
    folder = given.work.out or _common_folder(labels, given.source.encoders)
    store = _opened(folder, found[0].facts["data"]["name"], console, begin)
    rows = [replace(row, checkpoint=label) for label, one in named for row in one.rows]
    facts = found[0].facts | {"name": ", ".join(labels)}
    for part in ("notes", "void"):
        facts[part] = {f"{label}, {what}": said for label, one in named for what, said in one.facts[part].items()}
    facts["notes"] |= unequal({label: one.facts["settings"] for label, one in named})
    _draw(rows, store)
    return rows, facts, store


def unequal(settings: Mapping[str, Mapping[str, Mapping[str, Mapping[str, Any]]]]) -> dict[str, list[str]]:
    """Return a note for each protocol whose settings differ between encoders: a run's own probe on data without a
    published one is not that of another project's file.

    Args:
        settings: by encoder, protocol and group, as in `facts.json`.
    """
    notes, first = {}, next(iter(settings.values()))
    for protocol in first:
        flat = {
            label: {f"{group} {name}": value for group, own in parts[protocol].items() for name, value in own.items()}
            for label, parts in settings.items()
        }
        known = next(iter(flat.values()))
        odd = [name for name in known if any(own[name] != known[name] for own in flat.values())]
        if odd:
            each = "; ".join(
                f"{label} {', '.join(f'{name} {shown(own[name])}' for name in odd)}" for label, own in flat.items()
            )
            notes[protocol.upper()] = [
                f"encoders were measured by different settings, so do not compare them: {each}. "
                "--epochs, --lr, --batch_size, --augment, --flip and --aff_noise set them for all"
            ]
    return notes


def _alone(given: EvaluationFlags, path: Path) -> EvaluationFlags:
    """Return the command line of one of several encoders."""
    source = replace(given.source, encoders=(path,), **dict.fromkeys(FOREIGN if path.is_dir() else ()))
    return replace(given, source=source, work=replace(given.work, out=None))


def names(subjects: Sequence[Subject], paths: Sequence[Path]) -> list[str]:
    """Return a name for each encoder, all different: its own, with the checkpoint's if that is needed, or its path."""
    short_names = [subject.name for subject in subjects]
    longer = [f"{subject.name} {subject.checkpoint}" for subject in subjects]
    made = [name if short_names.count(name) == 1 else more for name, more in zip(short_names, longer, strict=True)]
    return [name if made.count(name) == 1 else str(path) for name, path in zip(made, paths, strict=True)]


def _opened(folder: Path, dataset: str, console: Console, begin: Begin) -> EvaluationStore:
    store = EvaluationStore(folder)
    begin(folder)
    for sentence in store.check_data(dataset):
        console.print(f"note: {short(sentence)}", soft_wrap=True, markup=False, highlight=False)
    store.begin()
    return store


def _draw(rows: Sequence[Row], store: EvaluationStore) -> None:
    """Draw the downstream loss along the weights, if it is among the rows."""
    if curves := curves_of(rows):
        # matplotlib takes a second to import
        from astra_gym.experiments.plotting.representation_plots import downstream_loss

        downstream_loss(curves, store.draws(DOWNSTREAM))


def _common_folder(labels: Sequence[str], paths: Sequence[Path]) -> Path:
    """Return the folder of several encoders' table; others of the same names have another."""
    mark = hashlib.sha256("\n".join(str(path.resolve()) for path in paths).encode()).hexdigest()[:8]
    joined = "-and-".join(label.replace("/", "_").replace(" ", "-") for label in labels)
    return Path("evaluations") / f"{joined[:LONGEST]}-{mark}"
