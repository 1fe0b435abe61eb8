"""Whether the quick score, by which searches and ASTrA/TrainingRun-v0 judge, ranks encoders as an evaluation does."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from astra_gym.experiments.comparison.cell_results import COMPARISON, Cell, read_comparison
from astra_gym.experiments.config.settings import Settings
from astra_gym.experiments.evaluation.encoders import own
from astra_gym.experiments.stats import LEVEL, Place, rank_correlation
from astra_gym.experiments.tuning.trial import points, training_images
from astra_gym.ssl_core.data.labels import divided
from astra_gym.ssl_core.downstream.quick_score import quick_score
from astra_gym.ssl_core.utils.rng import derive_seed

RESAMPLES = 1000


class ScoredRun(NamedTuple):
    """A finished run by both measures, in points: the mean of SA and RA at the judged radius, or RA alone.

    Args:
        cell: the run's name in its comparison, `ARM-seedN`.
        quick: by `quick_score`, on training images.
        evaluated: by a linear probe and PGD-20, on test images.
    """

    cell: str
    quick: float
    evaluated: float


class Agreement(NamedTuple):
    """Spearman's rank correlation of both measures, and its bootstrap interval over runs."""

    rho: float
    low: float
    high: float
    runs: int


def scored(folder: Path) -> list[ScoredRun]:
    """Measure every finished run of a comparison by the quick score, on the CPU.

    The head is fitted to four fifths of the training images and measured on the other fifth. The runs' encoders saw
    both parts, without labels.

    Raises:
        ValueError: if there is no comparison with run folders, or its world has no judged radius.
    """
    comparison = read_comparison(folder / COMPARISON)
    judge = comparison.judge
    if judge is None:
        raise ValueError(f"{folder} has no judged radius: expected a comparison in a world with --judge_epsilon")
    cells = [cell for cell in comparison.cells if not cell.void]
    return [_scored(folder / "cells" / f"{cell.arm}-seed{cell.seed}", cell, judge) for cell in cells]


def _scored(run: Path, cell: Cell, judge: Place) -> ScoredRun:
    subject = own(run, torch.device("cpu"))
    settings: Settings = subject.settings  # type: ignore[assignment]
    data = divided(training_images(settings))
    parts = (data.train, data.test)
    found = quick_score(subject.encoder, subject.route, *parts, settings.judge.epsilon, cell.seed)  # type: ignore[arg-type]
    return ScoredRun(run.name, round(points(found, settings), 3), round(cell.accuracy(judge), 3))


def agreement(groups: Sequence[Sequence[ScoredRun]]) -> Agreement:
    """Return the mean over groups of the rank correlation within each, and its 95 % bootstrap interval.

    Runs are drawn with replacement within their group; a draw in which all values of a measure are equal counts 0.

    Args:
        groups: runs of one world each, at least 3.

    Raises:
        ValueError: if a group has fewer than 3 runs.
    """
    if min(map(len, groups), default=0) < 3:
        raise ValueError(f"groups of {[len(group) for group in groups]} runs: expected at least 3 runs in each")
    drawn = np.random.default_rng(derive_seed(0, "score/bootstrap"))
    values = [np.array([(run.quick, run.evaluated) for run in group]) for group in groups]
    means = [
        np.mean([rank_correlation(*pairs[drawn.integers(len(pairs), size=len(pairs))].T) for pairs in values])
        for _ in range(RESAMPLES)
    ]
    low, high = np.quantile(means, [LEVEL / 2, 1 - LEVEL / 2])
    rho = np.mean([rank_correlation(*pairs.T) for pairs in values])
    return Agreement(float(rho), float(low), float(high), sum(map(len, groups)))


def record(groups: dict[str, list[ScoredRun]]) -> dict[str, Any]:
    """Return what was found as JSON holds it: for each comparison, and over all of them."""
    found: dict[str, Any] = {
        name: {"agreement": _rounded([runs]), "runs": [list(run) for run in runs]} for name, runs in groups.items()
    }
    return {"comparisons": found, "agreement": _rounded(list(groups.values()))}


def _rounded(groups: Sequence[Sequence[ScoredRun]]) -> dict[str, float]:
    found = agreement(groups)
    return {name: round(value, 3) for name, value in found._asdict().items()}
