"""Robust overfitting: the evaluation of each encoder that a run has kept, and a figure of their accuracy."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import torch
from rich.console import Console

from astra_gym.experiments.console import Decoding
from astra_gym.experiments.evaluation import encoders
from astra_gym.experiments.evaluation.evaluate import CHECKPOINT, evaluate
from astra_gym.experiments.evaluation.flags import EvaluationFlags
from astra_gym.experiments.evaluation.request import data_of, plan_of
from astra_gym.experiments.evaluation.store import EvaluationStore
from astra_gym.experiments.plotting.style import BLUE, GREEN, ORANGE, PURPLE, STYLE, new_figure, save_figure
from astra_gym.ssl_core.evaluation.results import Row, radius_text
from astra_gym.ssl_core.models.checkpoint import kept_encoders
from astra_gym.ssl_core.utils.paths import check_folder

PICTURE = "accuracy_along_the_run.png"
MARKS = (("o-", BLUE), ("s--", ORANGE), ("^:", GREEN), ("D-.", PURPLE))
EPOCH = "epoch-"


def evaluate_along(
    given: EvaluationFlags, console: Console, device: torch.device
) -> tuple[list[Row], dict[str, Any], EvaluationStore]:
    """Evaluate a run's kept encoders of every `--every`-th epoch, and the last one; draw their accuracy.

    Args:
        given: the command line.
        console: console for progress.
        device: device of the evaluation.

    Returns:
        The rows, in the order of training; the facts to be reported beside them; their store.

    Raises:
        ValueError: if it is not a run folder, or the run has kept no such encoder.
    """
    run, every = given.source.encoder, given.measures.every
    if run is None or not run.is_dir() or every is None:
        raise ValueError("--every looks along a run: give its folder")
    every_kept = [path for _, path in kept_encoders(run)]
    kept = [path for path in every_kept if epoch_of(path.stem) % every == 0 or path == every_kept[-1]]
    if not kept:
        raise ValueError(f"{run} has kept no encoder along its training: train with --keep_every {every}")
    plan = plan_of(given)
    with Decoding(kind=given.work.progress, console=console) as decoding:
        data = data_of(given, encoders.own(kept[0], device), decoding)
    place = f"-{data.place}" if data.place else ""
    if given.work.out is None:
        check_folder(run / f"evaluation-along{place}")
    store = EvaluationStore(given.work.out or run / f"evaluation-along{place}")
    store.check_data(data.name)
    store.begin()
    rows: list[Row] = []
    facts: dict[str, Any] = {}
    notes: dict[str, list[str]] = {}
    common: dict[str, None] = {}
    void: dict[str, str] = {}
    for path in kept:
        found, facts = evaluate(encoders.own(path, device), data, plan, given, store, console, device)
        rows += found
        # notes that apply to every encoder's checkpoint are reported once
        common |= dict.fromkeys(facts["notes"].pop(CHECKPOINT, ()))
        notes |= {f"{path.stem}, {what}": said for what, said in facts["notes"].items()}
        void |= {f"{path.stem}, {what}": reason for what, reason in facts["void"].items()}
    if common:
        notes = {CHECKPOINT: list(common), **notes}
    facts |= {"name": run.resolve().name, "notes": notes, "void": void}
    accuracy_along_the_run(rows, store.draws(PICTURE))
    return rows, facts, store


def epoch_of(checkpoint: str) -> int:
    """Return the epoch in a kept encoder's name.

    Raises:
        ValueError: if it is not such a name.
    """
    number = checkpoint.removeprefix(EPOCH)
    if not (number.isascii() and number.isdigit() and len(number) < 10):
        raise ValueError(f"{checkpoint!r:.60} is no name of a kept encoder: expected {EPOCH} and a number")
    return int(number)


@matplotlib.rc_context(STYLE)
def accuracy_along_the_run(rows: Sequence[Row], path: Path | str) -> None:
    """Draw SA and RA against the epoch, with 95 % Wilson intervals: a panel for each protocol, a line for each attack.

    Args:
        rows: rows of kept encoders; at most three attacks are drawn beside the clean accuracy.
        path: path of the PNG.
    """
    classifiers = list(dict.fromkeys((row.protocol, row.label_fraction) for row in rows if row.protocol != "features"))
    figure, axes = new_figure(len(classifiers), 0.6 + 2.8 * len(classifiers), sharex=True)
    for axis, (protocol, fraction) in zip(axes, classifiers, strict=True):
        own = [row for row in rows if (row.protocol, row.label_fraction) == (protocol, fraction)]
        lines: dict[str, list[Row]] = {}
        for row in own:
            if row.metric in ("SA", "RA"):
                label = "clean" if row.metric == "SA" else f"{row.attack} {radius_text(row.norm, row.epsilon)}"
                lines.setdefault(label, []).append(row)
        for (label, points), (mark, color) in zip(lines.items(), MARKS, strict=False):
            epochs, values = [epoch_of(row.checkpoint) for row in points], [row.value for row in points]
            bounds = [row.interval or (row.value, row.value) for row in points]
            errors = [[max(row.value - low, 0) for row, (low, _) in zip(points, bounds, strict=True)]]
            errors += [[max(high - row.value, 0) for row, (_, high) in zip(points, bounds, strict=True)]]
            axis.errorbar(epochs, values, errors, fmt=mark, color=color, label=label, capsize=3, elinewidth=1, ms=5)
        share = "" if fraction == 1 else f", {100 * fraction:g} % of the labels"
        axis.set(ylabel="test accuracy (%)", ylim=(-2, 102), title=f"{protocol.upper()}{share}")
        axis.grid(axis="y")
    axes[0].legend(loc="lower center", bbox_to_anchor=(0.5, 1.1), ncols=4)
    axes[-1].set_xlabel("epoch of pre-training")
    save_figure(figure, path)
