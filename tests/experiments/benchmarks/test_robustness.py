"""The time until a score is reached, in closed form; the arms; and a tiny race."""

import pytest
import torch

from astra_gym.experiments.benchmarks.robustness import (
    PAPER,
    SHARES,
    TUNED,
    candidates,
    measure_robustness,
    robustness_figures,
    seconds_until,
)
from astra_gym.experiments.benchmarks.workloads import TINY, Options
from astra_gym.experiments.config.settings import Settings
from astra_gym.experiments.runs.run import Run
from astra_gym.experiments.tuning.trial import Search
from astra_gym.experiments.tuning.tuning_file import label, read_finished
from astra_gym.ssl_core.data.labels import divided
from astra_gym.ssl_core.downstream.quick_score import quick_score
from astra_gym.ssl_core.utils.provenance import ROOT


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (45.0, 2.0),  # half way from 40 to 50
        (50.0, 3.0),
        (35.0, 1.0),  # the first score is above it
        (55.0, 6.0),  # after the dip, half way from 45 to 65
        (66.0, None),
    ],
)
def test_the_target_is_reached_on_the_first_line_that_meets_it(target: float, expected: float | None) -> None:
    assert seconds_until(target, [1.0, 3.0, 5.0, 7.0], [40.0, 50.0, 45.0, 65.0]) == expected


def test_the_target_is_the_last_score_of_the_papers_constant_in_each_round() -> None:
    times = {PAPER: [2.0, 4.0], "fixed-tuned": [1.0, 3.0], "random": [5.0, 10.0]}
    rounds = [
        {PAPER: [50.0, 60.0], "fixed-tuned": [60.0, 70.0], "random": [50.0, 59.0]},
        {PAPER: [50.0, 70.0], "fixed-tuned": [60.0, 80.0], "random": [60.0, 80.0]},
    ]
    found = {figure.name: figure for figure in robustness_figures([times, times], rounds)}
    assert {name: figure.values for name, figure in found.items()} == {
        "paper's constant: until the target": (4.0, 4.0),
        "fixed-tuned: until the target": (1.0, 2.0),
        "random: until the target": (None, 7.5),
        "fixed-tuned: against the paper's constant": (4.0, 2.0),
        "random: against the paper's constant": (None, 4.0 / 7.5),
    }
    assert found["fixed-tuned: against the paper's constant"].summary()["met"] is True
    # half of the rounds did not reach it
    assert found["random: until the target"].summary()["median"] is None


@pytest.mark.slow
def test_the_arms_are_those_of_the_world_and_of_its_search() -> None:
    assert label(TUNED) == read_finished(ROOT / "results" / "tuning" / "digits-wide-fixed.json").best
    settings = Settings.from_preset("digits-wide", agent="fixed", device="cpu", **TINY)
    search = Search(settings, 500.0)
    for candidate in candidates(settings, 5.0).values():
        run = Run(search.of(candidate, 0), torch.device("cpu"))
        spent, plays = 0.0, 20 if candidate.changes["agent"] == "random" else 1
        for _ in range(plays):
            run.agent.learn(run.env.num_envs, None, reset_num_timesteps=False)
            assert run.engine.last is not None
            spent += float(run.engine.last.budget.steps.double().mean()) / plays
        # uniform draws from 0 to 14 steps have a standard error of 0.3
        assert spent == pytest.approx(candidate.steps, abs=1.0 if plays > 1 else 1e-9)


@pytest.mark.every_agent
def test_a_race_is_the_training_of_each_arm() -> None:
    options, said = Options(1, torch.device("cpu"), quick=True), list[str]()
    figures, details = measure_robustness(options, 1, said.append)
    assert said == ["robustness: round 1 of 1"] and len(figures) == 4 + 3
    [found] = details["rounds"]
    settings = Settings.from_preset("digits-wide", agent="fixed", device="cpu", **TINY | {"epochs": 1})
    search, data = Search(settings, details["passes"]), divided(settings.data.load().train)
    for name, candidate in candidates(settings, 5.0).items():
        run = Run(search.of(candidate, 0), torch.device("cpu"), data)
        planned = run.engine.planned_updates
        assert found["updates"][name][-1] == planned
        assert len(found["scores"][name]) == SHARES and found["seconds"][name] == sorted(found["seconds"][name])
        # scores on the way change nothing: the last one is that of an uninterrupted training
        run.agent.learn(planned * run.env.num_envs, None, reset_num_timesteps=False)
        score = quick_score(run.encoder, run.engine.method.routes.evaluation, data.train, data.test, 24 / 255, 0)
        assert found["scores"][name][-1] == (score.SA + score.RA) / 2
