import io
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from astra_gym.experiments.comparison.cell_results import summarize
from astra_gym.experiments.config.settings import Settings
from astra_gym.experiments.evaluation import end_of_run
from astra_gym.experiments.evaluation.end_of_run import (
    chosen_budget,
    conclude,
    held_out_rewards,
    standard_linear_finetuning,
    table,
    write_outcomes,
)
from astra_gym.experiments.reports.comparison_report import answer, read_runs
from astra_gym.experiments.runs.run import Run
from astra_gym.experiments.runs.run_folder import RunFolder
from astra_gym.experiments.runs.run_log import accuracy_name
from astra_gym.experiments.train_agent import main
from astra_gym.ssl_core.evaluation.results import Origin, read_results
from astra_gym.ssl_core.utils.hashing import fingerprint
from tests.helpers.logged_runs import curves
from tests.helpers.tiny_training import TINY_SETTINGS


def make(tmp_path: Path, **changes) -> tuple[Run, RunFolder]:
    settings = Settings.of(**{**TINY_SETTINGS, "device": "cpu", **changes})
    run = Run(settings, torch.device("cpu"))
    for _ in range(2):
        run.env.play(torch.zeros(run.env.num_envs, 3, dtype=torch.int64))
    return run, RunFolder.create(tmp_path / "run", settings, ["test"])


@pytest.mark.parametrize("env", ["view", pytest.param("batch", marks=pytest.mark.every_agent)])
def test_held_out_rewards_compare_policies_on_the_same_attack_and_learn_nothing(tmp_path, env: str) -> None:
    run, folder = make(tmp_path, agent="fixed", env=env)
    before, step = fingerprint(run.engine.learner.network), run.engine.step
    rewards = held_out_rewards(run, folder)
    # the fixed agent *is* the method's own budget: same views, same random starts, so the same figures
    assert rewards["fixed"] == rewards["method's own budget"]
    assert rewards["fixed"] != rewards["uniform random"]
    assert fingerprint(run.engine.learner.network) == before and run.engine.step == step
    document = json.loads((folder.results / "policy.json").read_text())
    assert document["rewards"] == rewards and document["batch_views"] == 8
    again = held_out_rewards(run, folder)
    assert again["fixed"] == rewards["fixed"] and again["uniform random"] == rewards["uniform random"]


def test_accuracies_are_measured_in_float32_whatever_a_run_was_trained_in(tmp_path) -> None:
    run, folder = make(tmp_path, agent="fixed", probe_epochs=2, eval_epsilons=(8 / 255,))
    rows, correct = standard_linear_finetuning(run, folder, lambda text: None)
    write_outcomes(folder, run.checkpoint_name, correct)
    expected = [row.value for row in rows]
    outcomes = json.loads((folder.results / "outcomes.json").read_text())
    assert outcomes["schema"] == 1 and outcomes["checkpoint"] == rows[0].checkpoint
    assert [100 * marks.count("1") / len(marks) for marks in outcomes["correct"].values()] == expected
    assert list(outcomes["correct"]) == [repr(row.epsilon) for row in rows]
    run.engine.learner.network.precision = "bf16"
    assert [row.value for row in standard_linear_finetuning(run, folder, lambda text: None)[0]] == expected


@pytest.mark.slow
def test_robust_accuracy_is_void_where_the_attack_has_no_gradient(tmp_path, monkeypatch) -> None:
    # after three updates the logits are so large that the softmax rounds to 1: RA was SA at all radii
    words = ["--limit", "200", "--test_limit", "99", "--epochs", "1", "--eval_epsilons=[8/255]", "--progress", "off"]
    drawn, draw = dict[str, list[str]](), end_of_run.run_plots.accuracy_against_epsilon

    def drawing(classifiers, path) -> None:
        drawn.update({name: [row.metric for row in rows] for name, rows in classifiers.items()})
        draw(classifiers, path)

    monkeypatch.setattr(end_of_run.run_plots, "accuracy_against_epsilon", drawing)
    assert main([*words, "--run_dir", str(tmp_path / "run")]) == 0
    assert drawn == {"astra (RA void)": ["SA"]}
    clean, robust = read_results(tmp_path / "run" / "results" / "slf.json")
    cell = summarize(tmp_path / "run")
    assert "images stay right, but no more than" in cell.void and robust.value > clean.value - 10
    # nothing that reads runs can take it for valid
    assert list(cell.outcomes) == [0.0] and cell.accuracy(0.0) == pytest.approx(clean.value)
    assert robust.deviations == (*clean.deviations, f"void: {cell.void}")
    shown = curves(tmp_path / "run")
    assert f"final/{accuracy_name(0.0)}" in shown and f"final/{accuracy_name(8 / 255)}" not in shown
    assert (clean.void, robust.void) == ("", cell.void)
    other = [replace(row, checkpoint="raw-pixels", deviations=clean.deviations) for row in (clean, robust)]
    made = table([clean, robust, *other])
    assert [list(column.cells)[-1] for column in made.columns[1:]] == ["void", f"{robust.value:.1f}"]
    assert made.caption == f"void: the attack says nothing, which is usual after few updates.\nstep-3: {cell.void}"
    page = " ".join(answer(read_runs([tmp_path / "run"])))
    assert "The robust accuracy of 1 run is void and left out, see Void accuracies." in page and "RA" not in page


def test_a_run_that_is_killed_while_it_draws_is_not_taken_for_a_finished_one(tmp_path, monkeypatch) -> None:
    run, folder = make(tmp_path, agent="fixed", probe_epochs=1, eval_epsilons=(8 / 255,))
    monkeypatch.setattr(end_of_run, "draw", lambda *given: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        conclude(run, folder, lambda text: None)
    assert (folder.results / "policy.json").is_file() and not (folder.results / "outcomes.json").exists()
    monkeypatch.undo()
    conclude(run, folder, lambda text: None)
    assert (folder.results / "outcomes.json").is_file() and (folder.figures / "attack_gallery.png").is_file()


@pytest.mark.parametrize("agent", ["reinforce", "ppo"])
@pytest.mark.parametrize("observation", ["features", "image"])
def test_an_agent_chooses_a_budget_for_any_views(tmp_path, agent: str, observation: str) -> None:
    run, _ = make(tmp_path, agent=agent, observation=observation)
    views = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    budget = chosen_budget(run, run.agent, views)
    assert len(budget) == 6
    assert set((budget.epsilon * 255).round().tolist()) <= set(range(3, 16))
    assert set(budget.steps.tolist()) <= set(range(3, 15))


def test_one_action_of_the_batch_environment_stands_for_every_view(tmp_path) -> None:
    run, _ = make(tmp_path, agent="reinforce", env="batch")
    budget = chosen_budget(run, run.agent, torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0)))
    assert len(budget) == 6 and len(set(budget.steps.tolist())) == 1


def test_the_table_shows_every_value_at_a_hundred_radii_in_eighty_columns() -> None:
    radii = [number / 255 for number in range(100, 0, -1)]
    rows = [
        Origin(protocol="slf", route="pgd", seed=0, checkpoint=name, commit="abc").accuracy(
            metric, 100, 200, attack="none" if metric == "SA" else "pgd20", epsilon=epsilon
        )
        for name in ("step-9", "raw-pixels")
        for metric, epsilon in (("SA", 0.0), *(("RA", radius) for radius in radii))
    ]
    file = io.StringIO()
    Console(file=file, width=80, color_system=None).print(table(rows))
    lines = [re.findall(r"[^\s┃│]+(?: [^\s┃│]+)*", line) for line in file.getvalue().splitlines()]
    assert lines[1] == ["encoder", "step-9", "raw-pixels"]
    expected = [["route", "pgd", "pgd"], *([head, "50.0", "50.0"] for head in ("SA %", "RA % at 1/255"))]
    assert lines[3:6] == expected and ["RA % at 100/255", "50.0", "50.0"] in lines
