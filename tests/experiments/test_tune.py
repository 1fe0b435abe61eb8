"""The command that tunes: its result, its repetition, and bad input."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path

import pytest

from astra_gym.envs.api.action_sets import ActionSets
from astra_gym.experiments import tune
from astra_gym.experiments.config.settings import Settings
from astra_gym.experiments.tune import main
from astra_gym.ssl_core.safety.sealing import read_json
from tests.helpers.sealed import resealed_json
from tests.helpers.tiny_training import TINY_SETTINGS

ROOT = Path(__file__).resolve().parents[2]
ARMS = ["--arm", "a=--agent gp", "--arm", "b=--agent random"]
TINY = [f"--{name}={value}" for name, value in (TINY_SETTINGS | {"limit": 50, "preset": "digits-wide"}).items()]


def test_a_search_names_an_arm_and_a_repeated_command_computes_nothing(
    tmp_path: Path, trials_here: None, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--tune", "fixed", "--candidates", "3", "--jobs", "2", "--output", str(tmp_path / "t.json"), *TINY]
    assert main(words) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].startswith("3 candidates, 4 trials of ") and len(shown) == 1 + 4 + 2
    assert shown[-2].startswith("best: --agent fixed --epsilon ") and "over 2 seeds" in shown[-2]
    assert (
        shown[-1].startswith(
            "as an arm, beside this command's flags of the world: --arm 'fixed-tuned=--agent fixed --epsilon "
        )
        and "--epochs" in shown[-1]
    )
    document = read_json(tmp_path / "t.json")
    best = document["rounds"][-1]["best_first"]
    assert len(best) == 1 and best[0] in shown[-1] and document["spent"]["trials"] == 4
    before = (tmp_path / "t.json").read_bytes()
    assert main(words) == 0
    assert capsys.readouterr().out.splitlines() == [shown[0], *shown[-2:]]
    assert (tmp_path / "t.json").read_bytes() == before


def test_a_search_whose_last_candidate_diverged_names_it(
    tmp_path: Path, trials_here: None, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "t.json"
    words = ["--tune", "lr", "--candidates", "2", "--passes", "9", "--output", str(file), *TINY]
    assert main(words) == 0
    best = read_json(file)["rounds"][-1]["best_first"][0]

    def diverge(there: dict, seed: str) -> None:
        for trials in [entry["seeds"] for entry in there["trials"] if seed in entry["seeds"]]:
            trials[seed] |= {"failed": "NaN", "score": -10.0}

    for seed, part in (("1", f"{best}, the last candidate left, could not be"), ("0", "no candidate could be")):
        resealed_json(file, partial(diverge, seed=seed))
        with pytest.raises(SystemExit):
            main(words)
        [line] = capsys.readouterr().err.splitlines()
        assert part in line and "search among others" in line and len(line) < 300


def test_one_constant_is_found_for_all_worlds(
    tmp_path: Path, trials_here: None, capsys: pytest.CaptureFixture[str]
) -> None:
    worlds = ["digits-wide", "digits-wide-r8", "digits-wide-half"]
    flags = [word for word in TINY if not word.startswith(("--preset", "--epochs"))]
    words = ["--tune", "fixed", "--candidates", "2", "--jobs", "1", "--output", str(tmp_path / "t.json"), *flags]
    joint = [*words, "--worlds", *worlds, "--passes", "40"]
    assert main(joint) == 0
    shown = capsys.readouterr().out.splitlines()
    # two of the three worlds share a training
    assert shown[0].startswith("2 candidates, 3 trials of 80 passes, ")
    assert [line.partition(": ")[0] for line in shown[-3:]] == [f"as an arm, in {world}" for world in worlds]
    assert all("fixed-global=--agent fixed --epsilon" in line for line in shown[-3:])
    document = read_json(tmp_path / "t.json")
    assert document["search"]["settings"]["digits-wide-r8: judge_epsilon"] == 8 / 255
    [trial, *_] = document["trials"][0]["seeds"].values()
    assert list(trial["worlds"]) == worlds
    # two radii of one training
    found = [trial["worlds"][world] for world in worlds]
    assert found[0]["clean_margin"] == found[1]["clean_margin"] and found[0]["margin"] < found[1]["margin"]
    points = [(values["SA"] + values["RA"]) / 2 for values in found]
    assert trial["score"] == pytest.approx(sum(points) / 3)
    # repeated, nothing is computed
    assert main(joint) == 0 and len(capsys.readouterr().out.splitlines()) == 1 + 1 + 3
    # one of the worlds goes on from there: at most the second seed of another candidate is trained
    words[words.index("--output") + 1] = str(tmp_path / "own.json")
    del words[2:4]
    pooled = [*words, "--preset", "digits-wide-r8", "--pool", str(tmp_path / "t.json")]
    assert main([*pooled, "--passes", "40"]) == 0
    own, alone = read_json(tmp_path / "own.json"), []
    for joint_entry, entry in zip(document["trials"], own["trials"], strict=True):
        assert joint_entry["candidate"] == entry["candidate"]
        assert entry["seeds"]["0"]["found"] == joint_entry["seeds"]["0"]["worlds"]["digits-wide-r8"]
        share = entry["seeds"]["0"]["passes"] / joint_entry["seeds"]["0"]["passes"]
        assert entry["seeds"]["0"]["seconds"] == pytest.approx(share * joint_entry["seeds"]["0"]["seconds"])
        alone += [seed for seed in entry["seeds"] if seed not in joint_entry["seeds"]]
    assert len(alone) <= 1 and own["spent"]["trials"] in (3, 4)
    capsys.readouterr()
    for wrong, message in (
        ([*pooled, "--passes", "50"], "its trials in digits-wide-r8 have 40 passes, not 50"),
        ([*words, "--preset", "digits-wide", "--pool", str(tmp_path / "own.json")], "it is not in digits-wide"),
    ):
        with pytest.raises(SystemExit):
            main(wrong)
        assert message in capsys.readouterr().err
    resealed_json(tmp_path / "t.json", lambda there: there["rounds"].clear())
    with pytest.raises(SystemExit):
        main([*pooled, "--passes", "40"])
    assert "t.json: its first round is not finished" in capsys.readouterr().err


def test_agents_are_compared_at_equal_passes(
    tmp_path: Path, trials_here: None, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [word for word in TINY if not word.startswith(("--preset", "--epochs"))]
    words = ["--tune", "arms", "--worlds", "digits-wide", "digits-wide-r8", "--passes", "60", "--jobs", "1", *flags]
    exams = "--env view --reward_judge 1 --judge_images 8 --judge_batch 4 --judge_block 0.2 --judge_until 0.6"
    chosen = ["--arm", f"own=--agent bisection --agent_kwargs.order [1,0] {exams}", "--arm", "any=--agent random"]
    assert main([*words, *chosen, "--output", str(tmp_path / "t.json")]) == 0
    shown, document = capsys.readouterr().out, read_json(tmp_path / "t.json")
    assert "2 candidates, 6 trials of" in shown and "--passes 60'" in shown
    # an arm has the label that it was given
    assert ": own, seed 1: score" in shown and re.search(r"best: (own|any) \(score .*--arm '\1=--agent", shown, re.S)
    assert "--searched" not in shown
    labels = [entry["candidate"] for entry in document["trials"]]
    assert "--agent bisection" in labels[0] and "--agent_kwargs.order [1,0]" in labels[0]
    assert "--agent random" in labels[1]
    for entry in document["trials"]:
        # the judge's radius is the reward's, so both worlds are trained, with 60 passes each, exams included; the last
        # update may be dearer than what is left
        assert all(120 <= trial["passes"] < 120 + 2 * 18 for trial in entry["seeds"].values())
        assert len(entry["seeds"]) in (2, 4)


def test_a_flag_of_an_arm_counts_in_every_world() -> None:
    preset = Settings.from_preset("digits-wide")
    worlds = [preset, preset.replace(lr=0.5)]
    given = tune.TuneFlags(tune=("arms",), arm=(f"a=--agent gp --lr={preset.optimizer.lr}", "b=--agent random"))
    # the value is the preset's own, which the second world does not have
    assert tune.candidates_of(given, worlds)[0].changes == {"agent": "gp", "lr": preset.optimizer.lr}
    # where no world differs, the candidate's name stays short
    assert tune.candidates_of(given, worlds[:1])[0].changes == {"agent": "gp"}


@pytest.mark.parametrize(
    ("flags", "name", "another"),
    [
        ("--reward_cost {own}", "reward_cost", 0.05),
        ("--reward_weights.cost {own}", "reward_cost", 0.05),
        ("--normalization {own}", "normalization", "cifar"),
        ("--normalisation {own}", "normalization", "cifar"),
        ("--config {file}", "lr", 0.5),
    ],
)
def test_a_setting_of_an_arm_counts_by_any_name(tmp_path: Path, flags: str, name: str, another: object) -> None:
    preset, file = Settings.from_preset("digits-wide"), tmp_path / "c.yaml"
    own = preset.flat()[name]
    file.write_text(f"lr: {own}\n")
    given = tune.TuneFlags(tune=("arms",), arm=(f"a={flags.format(file=file, own=own)}", "b=--agent random"))
    worlds = [preset, preset.replace(**{name: another})]
    assert tune.candidates_of(given, worlds)[0].changes == {name: own}


def test_the_folder_is_that_of_the_worlds_that_need_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = {}

    def noted(given: tune.TuneFlags, worlds: dict[str, Settings], output: Path) -> int:
        folders.update({name: settings.data.data_dir for name, settings in worlds.items()})
        return 0

    monkeypatch.setattr(tune, "_search", noted)
    assert main(["--tune", "fixed", "--worlds", "digits-wide", "cifar10-16", "--data_dir", str(tmp_path)]) == 0
    assert folders == {"digits-wide": None, "cifar10-16": str(tmp_path)}


@pytest.mark.parametrize("kind", ["fixed", "curve", "schedule"])
def test_ranges_that_auto_widens_for_itself_are_not_those_of_constants(kind: str) -> None:
    given = tune.TuneFlags(tune=(kind,), candidates=8)
    flags = ["--preset", "folder", "--data_dir", "x", *(["--steps=3", "--step_size=2/255"] if given.keeps else [])]
    [world] = tune._worlds(given, flags).values()
    assert Settings.from_preset("folder", data_dir="x").ranges.sets != world.ranges.sets == ActionSets()
    for candidate in tune.candidates_of(given, [world]):
        world.replace(**candidate.changes)


@pytest.mark.parametrize("name", ["digits-wide-fixed.json", "cifar10-16-lr-strength.json"])
def test_kept_searches_are_read_and_need_no_trial(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also those from before a setting was added."""
    monkeypatch.setattr("astra_gym.experiments.tuning.trial.training_images", lambda settings: range(10_000))
    file = Path(shutil.copy(ROOT / "results" / "tuning" / name, tmp_path))
    search = read_json(file)["search"]
    words = ["--tune", *search["tune"], "--candidates", str(search["candidates"]), "--output", str(file)]
    # the preset had other values while they were searched
    words += [f"--{key}={json.dumps(search['settings'][key])}" for key in ("lr", "strength")]
    assert main([*words, f"--passes={search['passes']}", f"--preset={search['settings']['preset']}"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) == 3 and shown[1].startswith("best: --")


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--worlds", "digits-wide"], "expected --tune fixed or arms and two or more different presets"),
        (["--tune", "arms", "--arm", "a=--agent gp"], "--arm names a: --tune arms compares two or more, give"),
        (["--tune", "arms"], "--arm names no arm: --tune arms compares two or more, give --arm 'LABEL=FLAGS' for each"),
        (["--arm", "a=--agent gp"], "--arm names a: --tune fixed takes none"),
        (["--tune", "arms", *ARMS, "--candidates", "9"], "--candidates: the candidates are given by --arm"),
        (["--tune", "arms", *ARMS, "--arm", "c=--agent gp"], "3 arms, 2 different ones: expected all different"),
        (["--tune", "arms", *ARMS, "--arm", "a=--agent fixed"], "two arms have the label a: expected a label for each"),
        (["--tune", "arms", *ARMS, "--arm", "c=--agent fixed --limit 9"], "the arm c sets limit: all arms share their"),
        (["--tune", "arms", *ARMS, "--arm", "c=--passes 9"], "leave coreset and passes out (in the arm c)"),
        (["--tune", "arms", *ARMS, "--arm", "c=--coreset random"], "leave coreset and passes out (in the arm c)"),
        (["--tune", "arms", *ARMS, "--arm", "c=--method dynacl++"], "ends with a post-processing, which a search"),
        (["--tune", "arms", *ARMS, "--arm", "c=--evaluate false"], "the arm c sets evaluate: all arms share their"),
        (["--tune", "arms", *ARMS, "--arm", "c=--probe_every 1"], "the arm c sets probe_every: all arms share their"),
        (["--tune", "arms", *ARMS, "--arm", "c=--judge_epsilon 8/255"], "the arm c sets judge_epsilon: all arms"),
        (["--tune", "arms", *ARMS, "--arm", "c=--agnt gp"], "did you mean --agent? (in the arm c)"),
        (["--worlds", "digits-wide", "digits-wide-r8"], "--preset is given beside --worlds"),
        (["--pool", "no.json"], "no.json: No such file"),
        (["--pool", "no.json", "--candidates", "9"], "--candidates: the candidates are those of --pool no.json"),
        (["--pool", "no.json", "--search_seed", "9"], "--search_seed: the candidates are those of --pool no.json"),
        (["--pool", "no.json", "--tune", "curve"], "--pool: expected --tune fixed in one world, and no --worlds"),
        (["--tune", "curve", "--search_seed", "9"], "--search_seed: a curve is a grid, of which nothing is drawn"),
        (["--tune", "fixd"], "did you mean 'fixed'"),
        (["--tune", "fixed", "lr"], "expected fixed, curve, schedule, arms, lr, strength, or lr strength"),
        (["--tune", "schedule"], "give the attack's --steps and --step_size"),
        (["--candidates", "1"], "--candidates is 1"),
        (["--seed", "3"], "--seed is set for each trial by the search"),
        (["--limit", "5"], "a validation part needs 10 or more"),
        (["--steps", "3"], "--steps is set for each trial by the search"),
        (["--tune", "schedule", "--schedule", "[8/255]"], "--schedule is set for each trial by the search"),
        (["--method", "simclr"], "the method simclr has no attack"),
        (["--tune", "strength", "--method", "fare", "--init_from", "x"], "in the method fare images are not augmented"),
        (["--method", "dynacl++"], "ends with a post-processing"),
        (["--passes", "1e300"], "--passes is 1e+300"),
        (["--action_epsilons", "[0]", "--tune", "curve"], "needs a radius above 0"),
        (["--epohs", "2"], "did you mean --epochs"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    words: list[str],
    part: str,
    tmp_path: Path,
    trials_here: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main([*TINY, *words])
    assert stop.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("tune.py: error: ") and part in line and len(line) < 300
    assert not list(tmp_path.iterdir())


@pytest.mark.every_agent
def test_an_interrupted_search_keeps_its_trials_and_leaves_no_process(tmp_path: Path) -> None:
    output = tmp_path / "t.json"
    words = ["--tune", "fixed", "--candidates", "4", "--jobs", "1", "--output", str(output), *TINY]
    command = [sys.executable, "experiments/tune.py", *words]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    running = subprocess.Popen(command, cwd=ROOT, text=True, start_new_session=True, **pipes)
    assert running.stdout is not None
    lines = [running.stdout.readline() for _ in range(2)]
    os.killpg(running.pid, signal.SIGINT)
    _, said = running.communicate(timeout=60)
    assert lines[1].startswith("1 of 5: ") and running.returncode == 130
    assert said.splitlines() == [
        "tune.py: error: interrupted: finished trials are kept, and the same command continues"
    ]
    assert read_json(output)["spent"]["trials"] >= 1
    with pytest.raises(ProcessLookupError):
        # the whole group is gone: the workers too
        for _ in range(100):
            os.killpg(running.pid, 0)
            time.sleep(0.1)


def test_a_killed_trial_is_told_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Killed:
        def __enter__(self) -> object:
            raise BrokenProcessPool("a process was terminated abruptly")

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr("astra_gym.experiments.tune.pooled", lambda jobs: Killed())
    assert main([*TINY, "--tune", "fixed", "--output", str(tmp_path / "t.json")]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert "the process of a trial was killed; finished trials are kept" in line
