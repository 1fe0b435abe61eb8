"""One trial: which images it sees, what it costs, and that it repeats."""

import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from astra_gym.experiments.config.settings import Settings
from astra_gym.experiments.tuning.candidates import Candidate, budgets
from astra_gym.experiments.tuning.trial import (
    WORST,
    Search,
    judged,
    own_passes,
    points,
    pooled,
    record,
    recorded,
    try_all,
    try_candidate,
    try_worlds,
)
from astra_gym.ssl_core.data.image_set import ImageSet
from astra_gym.ssl_core.data.labels import divided
from astra_gym.ssl_core.downstream.quick_score import QuickScore
from astra_gym.ssl_core.safety.writers import is_running
from astra_gym.ssl_core.utils.import_path import imported
from astra_gym.ssl_core.utils.training_plan import UPDATE_PASSES
from tests.helpers.tiny_training import TINY_SETTINGS

ROOT = Path(__file__).resolve().parents[3]
WORLD = Settings.from_preset("digits-wide", **TINY_SETTINGS, agent="fixed").replace(limit=50)
NONE = Candidate(())


def test_no_image_is_trained_on_and_scored_and_no_test_image_is_seen() -> None:
    split = WORLD.data.load()
    parts = divided(split.train)
    assert (len(parts.train), len(parts.test)) == (40, 10)
    rows = [
        {tuple(image.flatten().tolist()) for image in part.images} for part in (parts.train, parts.test, split.test)
    ]
    assert not rows[0] & rows[1] and not rows[2] & (rows[0] | rows[1])
    assert torch.equal(divided(split.train).test.images, parts.test.images)
    with pytest.raises(ValueError, match="a validation part needs 10 or more"):
        divided(ImageSet(split.train.images[:9], split.train.labels[:9], split.train.classes, "nine"))


@pytest.mark.every_agent
def test_trials_spend_as_many_passes_whatever_their_attack() -> None:
    search = Search(WORLD, own_passes(WORLD, 5.0) * 4)
    spent = {}
    for steps in (0, 14):
        budget = {"epsilon": 8 / 255 * bool(steps), "steps": steps, "step_size": 8 / 255}
        trial = try_candidate(search, Candidate(tuple({"agent": "fixed", **budget}.items()), float(steps)), 0)
        assert trial.passes == pytest.approx(trial.updates * (UPDATE_PASSES + steps))
        spent[steps] = trial.passes
    assert max(spent.values()) < 1.2 * min(spent.values())
    # of the method's own budget the search's passes are four runs
    assert try_candidate(search, NONE, 0).passes == pytest.approx(search.passes, rel=0.1)


def test_a_trial_repeats_in_a_process_of_its_own_and_comes_back_from_json() -> None:
    search = Search(WORLD, own_passes(WORLD, 5.0))
    asked = [(candidate, 0) for candidate in budgets(WORLD.ranges.sets, 2, 0)]
    with pooled(1) as pool:
        found = {
            (candidate, seed): trial for candidate, seed, trial in try_all(partial(try_candidate, search), asked, pool)
        }
    assert found.keys() == set(asked) and len({trial.score for trial in found.values()}) > 1
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    here = try_candidate(search, *asked[0])
    torch.set_num_threads(threads)
    assert here._replace(seconds=0) == found[asked[0]]._replace(seconds=0)
    assert recorded(record(here)) == here


def test_workers_end_with_a_search_that_was_killed() -> None:
    killed = """
import os, signal
from astra_gym.experiments.tuning.trial import pooled
with pooled(1) as pool:
    print(pool.submit(os.getpid).result(), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    # the output ends when nobody holds it any more, the worker included
    done = subprocess.run([sys.executable, "-c", killed], cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=30)
    assert done.returncode == -signal.SIGKILL and not is_running(int(done.stdout))


def test_the_judge_decides_what_is_ranked() -> None:
    found = QuickScore(SA=99.0, RA=50.0, clean_margin=0.8, margin=0.2)
    assert judged(found, WORLD) == pytest.approx(0.5)
    assert judged(found, WORLD.replace(judge_score="robust")) == 0.2
    assert points(found, WORLD) == 74.5 and points(found, WORLD.replace(judge_score="robust")) == 50.0


def test_of_several_worlds_one_that_diverges_fails_the_trial() -> None:
    passes = own_passes(WORLD, 5.0)
    worlds = {"good": Search(WORLD, passes), "bad": Search(WORLD.replace(optimizer="sgd", lr=1e30), passes)}
    trial = try_worlds(worlds, NONE, 0)
    alone = try_candidate(worlds["good"], NONE, 0)
    assert trial.score == WORST and "not finite" in trial.failed and recorded(record(trial)) == trial
    assert trial.worlds is not None and trial.worlds["good"] == alone.found and trial.updates > alone.updates
    # alone, the world that could be trained has its own score
    assert worlds["good"].alone(NONE, trial, "good")._replace(seconds=0) == alone._replace(seconds=0)
    assert worlds["bad"].alone(NONE, trial, "bad").score == WORST


def test_a_candidate_that_diverges_is_the_worst_and_ends_nothing() -> None:
    search = Search(WORLD.replace(optimizer="sgd"), own_passes(WORLD, 5.0))
    trial = try_candidate(search, Candidate((("lr", 1e30),)), 0)
    assert trial.score == WORST and "not finite" in trial.failed and recorded(record(trial)) == trial
    for name, value in {"score": "abc", "passes": None, "updates": float("nan")}.items():
        with pytest.raises((TypeError, ValueError)):
            recorded(record(trial) | {name: value})


def test_free_training_has_its_attack_with_its_updates() -> None:
    free = Search(Settings.from_preset("digits-wide", **TINY_SETTINGS, method="cf-amc-ssl", agent="fixed"), 100.0)
    assert free.steps(NONE) == free.steps(Candidate((), 14.0)) == 0


def called_custom_code(path: str, seed: int) -> int:
    """Call the function at a path, as a trial does by its method."""
    return int(imported(path, "agent", "my_module:act")(seed))


def test_an_error_of_custom_code_is_located_from_another_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "failing_trial_of_mine.py").write_text("def act(seed):\n    return int('no number')\n")
    monkeypatch.chdir(tmp_path)
    with pooled(1) as pool, pytest.raises(ValueError, match=r"failing_trial_of_mine.py, line 2, in act\)$"):
        list(try_all(called_custom_code, [("failing_trial_of_mine:act", 0)], pool))
