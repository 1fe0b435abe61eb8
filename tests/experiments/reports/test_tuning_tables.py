"""The tables of kept searches."""

from pathlib import Path

from astra_gym.experiments.config.settings import Settings
from astra_gym.experiments.reports.tuning_tables import arms_table, constants_table, curve_table, tuned_table
from astra_gym.experiments.tuning.candidates import Candidate, curve
from astra_gym.experiments.tuning.halving import Rung
from astra_gym.experiments.tuning.trial import Trial
from astra_gym.experiments.tuning.tuning_file import TuningFile
from astra_gym.ssl_core.downstream.quick_score import QuickScore
from tests.helpers.sealed import resealed_json


def test_what_searches_found_and_a_curve_of_constants_are_tables(tmp_path: Path) -> None:
    folder, constants = tmp_path / "tuning", curve(Settings.from_preset("digits-wide").ranges.sets, 2)
    folder.mkdir()
    rates = [Candidate((("lr", 0.01),)), Candidate((("lr", 0.02),))]
    for name, candidates, rung in (("lr", rates, Rung(2, 2)), ("curve", constants, Rung(len(constants), 1))):
        file = TuningFile(
            folder / f"world-{name}.json", {"tune": [name], "settings": {"preset": "world"}}, candidates, [rung]
        )
        for place, candidate in enumerate(candidates):
            for seed in range(rung.seeds):
                found = QuickScore(90.0 + place, 50.0 + seed, 0.5, 0.1)
                file.add(candidate, seed, Trial(place / 10, found, 10, 1000.0, 30.0))
    [table] = tuned_table(tmp_path, "world")
    assert [[entry.text for entry in row] for row in table.rows] == [
        ["lr", "--lr 0.02", "0.100", "91.0", "50.5", "4", "4 k", "2"]
    ]
    [table] = curve_table(tmp_path, "world")
    assert list(table.columns) == ["epsilon", "0 steps", "1 step", *(f"{steps} steps" for steps in (2, 4, 8, 14))]
    assert [row[0].text for row in table.rows] == ["0/255", "4/255", "96/255"]
    assert [entry.text for entry in table.rows[1]][1:4] == ["-", "0.100", "0.300"]
    assert tuned_table(tmp_path, "other")[0].rows == []


def test_arms_are_rated_where_their_world_is_judged(tmp_path: Path) -> None:
    what = {"tune": ["arms"], "passes": 99.6, "settings": {"preset": "world", "judge_score": "mean"}}
    arms = [Candidate((("agent", name),)) for name in ("gp", "random")]
    (tmp_path / "tuning").mkdir()
    file = TuningFile(tmp_path / "tuning" / "world-arms.json", what, arms, [Rung(2, 2)])
    for place, arm in enumerate(arms):
        for seed in range(2):
            file.add(arm, seed, Trial(0.5, QuickScore(90.0, 50.0 + 10 * place + seed, 0.5, 0.1), 10 + seed, 99.0, 3.0))
    [table] = arms_table(tmp_path, "world-arms")
    assert [[entry.text for entry in row] for row in table.rows] == [
        ["--agent random", "2", "75.2", "90.0", "60.5", "10"],
        ["--agent gp", "2", "70.2", "90.0", "50.5", "10"],
    ]
    assert "at 100 passes" in table.note and not tuned_table(tmp_path, "world")[0].rows
    # as earlier versions wrote a set
    written_out = f"--action_step_sizes [{2 / 255},{8 / 255}]"
    resealed_json(file.path, lambda there: there["trials"][0].update(candidate=written_out))
    assert arms_table(tmp_path, "world-arms")[0].rows[1][0].text == "--action_step_sizes [2/255,8/255]"


def test_the_constants_of_several_worlds_are_rated_where_each_is_judged(tmp_path: Path) -> None:
    settings = {"a: judge_score": "mean", "b: judge_score": "robust"}
    what = {"tune": ["fixed"], "settings": settings, "world_passes": {"a": 1.0, "b": 2.0}}
    candidates = [
        Candidate((("agent", "fixed"), ("epsilon", epsilon / 255), ("steps", 1), ("step_size", 4 / 255)), 1.0)
        for epsilon in (8, 16)
    ]
    file = TuningFile(tmp_path / "tuning" / "all.json", what, candidates, [Rung(2, 1)])
    (tmp_path / "tuning").mkdir()
    for candidate, score in zip(candidates, (60.0, 70.0), strict=True):
        found = {"a": QuickScore(90.0, score, 0.5, 0.1), "b": QuickScore(80.0, score + 5, 0.5, 0.1)}
        file.add(candidate, 0, Trial(score, found["a"], 10, 1000.0, 30.0, worlds=found))
    [table] = constants_table(tmp_path, "all")
    assert list(table.columns) == ["epsilon", "steps", "step size", "mean", "a", "b"]
    assert [[entry.text for entry in row] for row in table.rows] == [
        ["16/255", "1", "4/255", "70.0", "80.0", "75.0"],
        ["8/255", "1", "4/255", "60.0", "75.0", "65.0"],
    ]
