"""Whether the quick score ranks runs as their evaluation does."""

from pathlib import Path

import pytest

from astra_gym.experiments.comparison.cell_results import ComparisonResult, summarize, write_comparison
from astra_gym.experiments.reports.tuning_tables import score_table
from astra_gym.experiments.runs.run_folder import RunFolder
from astra_gym.experiments.tuning.score_check import ScoredRun, agreement, record, scored
from astra_gym.experiments.tuning.trial import training_images
from astra_gym.ssl_core.data.labels import divided
from astra_gym.ssl_core.downstream.quick_score import quick_score
from astra_gym.ssl_core.models.checkpoint import load_network
from astra_gym.ssl_core.utils.files import write_json
from tests.helpers.tiny_training import run


@pytest.mark.slow
def test_runs_are_scored_on_training_images_at_the_judged_radius(tmp_path: Path) -> None:
    folder = tmp_path / "comparison"
    made = folder / "cells" / "fixed-seed3"
    assert run(made, "--preset=digits-wide", "--agent=fixed", "--seed=3", "--eval_epsilons=[24/255]") == 0
    cell = summarize(made)
    write_comparison(folder / "comparison.json", ComparisonResult("one", "", [cell], {}))
    [found] = scored(folder)
    settings, (network, route) = RunFolder(made).settings(), load_network(made)
    parts = divided(training_images(settings))
    expected = quick_score(network, route, parts.train, parts.test, 24 / 255, 3)
    assert found.cell == "fixed-seed3" and found.quick == pytest.approx((expected.SA + expected.RA) / 2, abs=1e-3)
    assert found.evaluated == pytest.approx((cell.accuracy(0.0) + cell.accuracy(24 / 255)) / 2, abs=1e-3)


def test_the_agreement_is_the_mean_of_rank_correlations_within_groups(tmp_path: Path) -> None:
    same = [ScoredRun(f"a-seed{n}", float(n), 50.0 + n**2) for n in range(8)]
    opposite = [ScoredRun(f"b-seed{n}", float(n), 30.0 - 3 * n) for n in range(8)]
    assert agreement([same])[:3] == pytest.approx((1, 1, 1))
    # shifted against each other, so that one rank correlation over all runs would not be 0
    assert agreement([same, opposite])[0] == pytest.approx(0) and agreement([same, opposite]).runs == 16
    noisy = [run._replace(evaluated=run.evaluated if n % 3 else -20.0) for n, run in enumerate(same)]
    rho, low, high, _ = agreement([noisy])
    assert low < rho < high <= 1 and agreement([noisy]) == agreement([noisy])
    assert agreement([[run._replace(quick=1.0) for run in same]])[:3] == (0, 0, 0)
    with pytest.raises(ValueError, match=r"groups of \[8, 2\] runs: expected at least 3"):
        agreement([same, same[:2]])

    write_json(tmp_path / "score.json", record({"a": same, "b": opposite}))
    [table] = score_table(tmp_path, "score")
    assert [[entry.text for entry in row] for row in table.rows] == [
        ["a", "8", "50.0 to 99.0", "+1.00 (+1.00 to +1.00)"],
        ["b", "8", "9.0 to 30.0", "-1.00 (-1.00 to -1.00)"],
        ["mean", "16", "-", "+0.00 (+0.00 to +0.00)"],
    ]
