import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from astra_gym.experiments.comparison.cell_results import (
    PLACES,
    ComparisonResult,
    read_comparison,
    summarize,
    write_comparison,
)
from astra_gym.experiments.config.settings import Settings
from astra_gym.experiments.runs.metrics import read_metrics
from astra_gym.experiments.train_agent import main
from tests.helpers.sealed import resealed_json, resealed_rows

TINY = (
    *("--limit=26", "--test_limit=30", "--batch_size=4", "--image_size=8", "--width=2", "--projector_hidden=8"),
    *("--projector_dim=8", "--epochs=2", "--warmup_epochs=0", "--probe_epochs=2", "--eval_epsilons=[8/255]"),
    "--progress=off",
)
"""6 updates an epoch, 12 in all."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with an attack and one without, which nobody may change."""
    root = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        without_pictures(patch)
        assert main([*TINY, "--agent=random", "--seed=3", f"--run_dir={root / 'attacks'}"]) == 0
        assert main([*TINY, "--method=simclr", f"--run_dir={root / 'simclr'}"]) == 0
    return root


def without_pictures(patch: pytest.MonkeyPatch) -> None:
    """They take half of so small a run's time, and a cell holds nothing of them."""
    patch.setattr("astra_gym.experiments.evaluation.end_of_run.draw", lambda *arguments: None)


@pytest.fixture
def copied(runs, tmp_path) -> Path:
    return Path(shutil.copytree(runs / "attacks", tmp_path / "attacks"))


@pytest.mark.slow
def test_a_run_comes_down_to_its_cell(runs) -> None:
    cell = summarize(runs / "attacks", "mine")
    assert (cell.arm, cell.agent, cell.method, cell.preset, cell.seed) == ("mine", "random", "astra", "digits", 3)
    assert cell.updates == 12 and cell.views == 8
    rows = read_metrics(runs / "attacks" / "metrics.jsonl")
    played = [int(steps) * count for row in rows for steps, count in row["actions/steps"].items()]
    assert cell.attack_steps == sum(played)
    assert cell.mean_steps == pytest.approx(sum(played) / (12 * 8))
    assert cell.settings.keys() == set(Settings().flat()) - set(PLACES)
    slf = json.loads((runs / "attacks" / "results" / "slf.json").read_text())["rows"]
    assert [cell.accuracy(row["epsilon"]) for row in slf] == pytest.approx([row["value"] for row in slf])
    assert {len(marks) for marks in cell.correct.values()} == {30}
    assert cell.reward_first == rows[0]["reward/mean"] and cell.reward_last == rows[-1]["reward/mean"]
    assert cell.held_out.keys() == {"random", "uniform random", "method's own budget"}
    assert cell.curve["step"] == list(range(1, 13))
    assert cell.curve["epsilon"] == pytest.approx([row["budget/epsilon_255"] for row in rows], abs=1e-5)
    assert cell.shares.keys() == {"epsilon", "steps", "step_size"}
    assert all(len(values) == 5 for values in cell.by_clean_loss.values())
    assert 0 < cell.agent_seconds < cell.world_seconds < cell.seconds and 0 < cell.agent_share < 1
    assert cell.threads == 1 and cell.device == "cpu" and len(cell.commits) == 1


def test_a_run_without_an_attack_has_neither_rewards_nor_budgets(runs) -> None:
    cell = summarize(runs / "simclr")
    assert (cell.arm, cell.agent, cell.updates) == ("none", "none", 12)
    assert cell.views == cell.attack_steps == cell.mean_steps == 0
    assert cell.reward_first is None and cell.reward_last is None
    assert cell.held_out == cell.shares == cell.by_clean_loss == {} and cell.curve.keys() == {"step"}
    assert cell.accuracy(0.0) >= 0


def test_a_comparison_comes_back_as_it_was(runs, tmp_path) -> None:
    cells = [summarize(runs / "simclr"), summarize(runs / "attacks"), summarize(runs / "attacks")]
    cells[2] = replace(cells[2], seed=1)
    made = ComparisonResult("a title", "python x.py", cells, {"random-seed4": "killed"}, 12.5, 2)
    write_comparison(tmp_path / "comparison.json", made)
    found = read_comparison(tmp_path / "comparison.json")
    assert found == made
    assert found.arms == ["none", "random"] and [cell.seed for cell in found.of("random")] == [1, 3]
    write_comparison(tmp_path / "again.json", found)
    assert (tmp_path / "again.json").read_text() == (tmp_path / "comparison.json").read_text()
    write_comparison(tmp_path / "empty.json", ComparisonResult("x", "y", [], {}))
    assert read_comparison(tmp_path / "empty.json").cells == []


@pytest.mark.slow
def test_an_interrupted_run_counts_every_stretch(tmp_path, interrupt, monkeypatch) -> None:
    folder = tmp_path / "run"
    without_pictures(monkeypatch)
    interrupt(step=3)
    assert main([*TINY, "--agent=fixed", f"--run_dir={folder}"]) == 130
    with pytest.raises(ValueError, match="not finished"):
        summarize(folder)
    assert main(["--resume", str(folder)]) == 0
    stretches = json.loads((folder / "results" / "training.json").read_text())["stretches"]
    assert len(stretches) == 2
    cell = summarize(folder)
    assert cell.updates == 12 and cell.attack_steps == 12 * 8 * 5
    assert cell.seconds == pytest.approx(sum(part["seconds"] for part in stretches))


@pytest.mark.parametrize(("first", "last", "factor"), [(4, 12, 1.5), (0, 12, 1.0)])
def test_the_time_of_a_killed_process_is_estimated(copied, first: int, last: int, factor: float) -> None:
    path = copied / "results" / "training.json"
    stretch = {"first": first, "last": last, "seconds": 8.0, "world_seconds": 6.0, "agent_seconds": 1.0}
    path.write_text(json.dumps({"schema": 1, "stretches": [stretch]}))
    cell = summarize(copied)
    assert (cell.seconds, cell.world_seconds, cell.agent_seconds) == (8 * factor, 6 * factor, factor)
    path.unlink()
    assert summarize(copied).seconds == 0 and summarize(copied).agent_share == 0


@pytest.mark.parametrize("name", ["results/outcomes.json", "results/policy.json"])
@pytest.mark.parametrize("text", [None, "", "{}", "[1]", "garbage\n"])
def test_damaged_and_missing_files_are_told(copied, name: str, text: str | None) -> None:
    path = copied / name
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(ValueError, match=name.rpartition("/")[2].partition(".")[0] + "|damaged"):
        summarize(copied)


@pytest.mark.parametrize("name", ["metrics.jsonl", "environment.json", "results/training.json"])
@pytest.mark.parametrize("text", [None, "", "{}", "[1]", "garbage\n", '{"starts": [1], "stretches": [2]}'])
def test_damaged_and_missing_logs_are_marked(copied, name: str, text: str | None) -> None:
    path, before = copied / name, summarize(copied)
    path.unlink() if text is None else path.write_text(text)
    cell = summarize(copied)
    assert cell.correct == before.correct and cell.updates == before.updates == 12 and before.damage == ()
    # the times of a run are not known where nobody has kept them
    assert all(name in sentence for sentence in cell.damage)
    assert bool(cell.damage) == ((name, text) != ("results/training.json", None))
    write_comparison(copied / "comparison.json", ComparisonResult("a", "b", [cell, before], {}))
    assert read_comparison(copied / "comparison.json").cells == [cell, before]


def test_void_accuracies_are_kept_as_such(copied) -> None:
    before = summarize(copied)
    resealed_json(copied / "results" / "outcomes.json", lambda document: document.update(void="the attack fails"))
    cell = summarize(copied)
    assert cell == replace(before, void="the attack fails", correct={0.0: before.correct[0.0]})
    write_comparison(copied / "comparison.json", ComparisonResult("a", "b", [cell], {}))
    assert read_comparison(copied / "comparison.json").cells == [cell]


def test_a_log_that_lacks_updates_is_marked_and_its_attack_steps_are_scaled(copied) -> None:
    before = summarize(copied)
    resealed_rows(copied / "metrics.jsonl", lambda rows: [row for row in rows if row["step"] not in (3, 7)])
    cell = summarize(copied)
    assert cell.damage == ("metrics.jsonl lacks 2 of 12 updates: 3, 7",)
    assert (cell.updates, cell.views) == (12, before.views)
    assert cell.attack_steps == pytest.approx(before.attack_steps, rel=0.1)


def test_the_steps_of_a_rewards_look_ahead_are_attack_steps_too(copied) -> None:
    path, before = copied / "metrics.jsonl", summarize(copied).attack_steps
    more = {"attack/other_steps": 100}
    resealed_rows(path, lambda rows: [row | (more if row["step"] > 10 and "loss/total" in row else {}) for row in rows])
    assert summarize(copied).attack_steps == before + 200


def test_no_run_folder(tmp_path) -> None:
    with pytest.raises(ValueError, match="not a run folder"):
        summarize(tmp_path)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda d: d.update(schema=99), "schema"),
        (lambda d: d.pop("cells"), "schema"),
        (lambda d: d["cells"][0].pop("views"), "views"),
        (lambda d: d["cells"][0].update(new=1), "new"),
        (lambda d: d["cells"].append([]), "cell 1"),
        (lambda d: d["cells"][0].update(correct={"0.0": "012"}), "strings of 0 and 1"),
        (lambda d: d["cells"][0].update(correct={"zero": "01"}), "strings of 0 and 1"),
        (lambda d: d["cells"][0].update(correct={"nan": "01"}), "strings of 0 and 1"),
        (lambda d: d["cells"][0].update(correct=[]), "strings of 0 and 1"),
        (lambda d: d.pop("name"), "name"),
    ],
)
def test_damaged_comparisons_are_told(runs, tmp_path, change, part: str) -> None:
    path = tmp_path / "comparison.json"
    write_comparison(path, ComparisonResult("a", "b", [summarize(runs / "simclr")], {}))
    resealed_json(path, change)
    with pytest.raises(ValueError, match=part):
        read_comparison(path)


@pytest.mark.parametrize("text", ["", "[]", '{"schema": 1', "\x00"])
def test_files_that_are_no_comparison(tmp_path, text: str) -> None:
    path = tmp_path / "comparison.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="comparison"):
        read_comparison(path)
    with pytest.raises(ValueError, match="not a readable comparison"):
        read_comparison(tmp_path / "absent.json")


def test_figures_that_are_not_finite_are_not_written(runs, tmp_path) -> None:
    cell = replace(summarize(runs / "simclr"), seconds=math.nan)
    with pytest.raises(ValueError):
        write_comparison(tmp_path / "comparison.json", ComparisonResult("a", "b", [cell], {}))
    assert not list(tmp_path.iterdir())
