from pathlib import Path

import pytest
import torch

from astra_gym.experiments.benchmarks import checkouts
from astra_gym.experiments.benchmarks.workloads import BenchmarkError, Options
from astra_gym.ssl_core.utils.provenance import ROOT

TRAIN = """
import json, pathlib, sys
words = dict(zip(sys.argv[1::2], sys.argv[2::2]))
results = pathlib.Path(words["--run_dir"]) / "results"
results.mkdir(parents=True)
stretch = {"seconds": 2.5 + int(words["--seed"])}
(results / "training.json").write_text(json.dumps({"stretches": [stretch, {"seconds": 0.5}]}))
"""


def checkout(folder: Path, text: str) -> Path:
    (folder / "experiments").mkdir(parents=True)
    (folder / "experiments" / "train_agent.py").write_text(text, encoding="utf-8")
    return folder


def options(**changes: object) -> Options:
    return Options(1, torch.device("cpu"), quick=True, **changes)  # type: ignore[arg-type]


def test_both_checkouts_train_the_same_seeds_in_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other, ours = checkout(tmp_path / "other", TRAIN), checkout(tmp_path / "ours", TRAIN.replace("2.5", "0.5"))
    monkeypatch.setattr(checkouts, "ROOT", ours)
    (figure,), details = checkouts.measure_training(options(against=other), 2, lambda text: None)
    assert details["seconds"] == {"other": [3.0, 4.0], "ours": [1.0, 2.0]}
    assert figure.values == (3.0, 2.0) and details["other"] == "unknown"


@pytest.mark.every_agent
def test_this_checkout_knows_the_command() -> None:
    assert checkouts.trained_seconds(ROOT, 0, options()) > 0


def test_a_run_that_fails_is_told_with_its_last_words(tmp_path: Path) -> None:
    other = checkout(tmp_path, "import sys; print('no such flag', file=sys.stderr); sys.exit(2)")
    with pytest.raises(BenchmarkError, match=r"status 2\): no such flag"):
        checkouts.trained_seconds(other, 0, options())


def test_a_folder_that_is_no_checkout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no experiments/train_agent\.py: expected another checkout"):
        checkouts.check_checkout(tmp_path)
    assert checkouts.check_checkout(ROOT) == ROOT
