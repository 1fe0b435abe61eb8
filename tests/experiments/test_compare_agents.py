import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from astra_gym.experiments import train_agent
from astra_gym.experiments.compare_agents import main
from astra_gym.experiments.comparison.cell_results import read_comparison
from astra_gym.experiments.comparison.scheduler import locked
from astra_gym.ssl_core.safety.sealing import without_seal
from astra_gym.ssl_core.utils.stopping import StopRequested
from tests.helpers.cells import without_times
from tests.helpers.sealed import resealed_yaml
from tests.helpers.tiny_training import ROOT, TINY

SCRIPT = ROOT / "experiments" / "compare_agents.py"
GRID = ("--agents", "reinforce", "bandit", "--seeds=1", "--primary_seeds=2", "--preset=digits", *TINY)
NAMES = ["reinforce-seed0", "reinforce-seed1", "bandit-seed0"]
"""Three cells of 12 updates."""


def call(*words: str | Path) -> int:
    try:
        return main([str(word) for word in words])
    except SystemExit as end:
        return int(end.code or 0)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison without any disturbance, which nobody may change."""
    folder = tmp_path_factory.mktemp("comparison") / "title"
    assert call(*GRID, "--dir", folder) == 0
    return folder


@pytest.fixture
def copied(finished, tmp_path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "title"))


def test_a_grid_leaves_what_the_report_needs(finished) -> None:
    found = read_comparison(finished / "comparison.json")
    assert [(cell.arm, cell.seed, cell.updates) for cell in found.cells] == [
        *(("reinforce", 0, 12), ("reinforce", 1, 12), ("bandit", 0, 12)),
    ]
    assert found.name == "title" and found.unfinished == {} and found.wall_seconds > 0 and found.jobs >= 1
    assert found.command == "python experiments/compare_agents.py " + shlex.join(GRID)
    plan = yaml.safe_load((finished / "comparison.yaml").read_text())
    assert [(arm["label"], arm["seeds"], arm["settings"]["epochs"]) for arm in plan["arms"]] == [
        *(("reinforce", 2, 2), ("bandit", 1, 2)),
    ]
    assert sorted(path.name for path in (finished / "cells").iterdir()) == sorted(NAMES)
    for name in NAMES:
        assert (finished / "cells" / name / "figures" / "accuracy_against_epsilon.png").stat().st_size > 0
        assert "trained 12 updates" in (finished / "logs" / f"{name}.log").read_text()
    # one thread, whatever the scheduler's number is
    assert {cell.threads for cell in found.cells} == {1}


def test_a_finished_comparison_is_not_run_again(copied, monkeypatch, capsys) -> None:
    monkeypatch.setattr(
        "astra_gym.experiments.compare_agents.try_arms", lambda arms: pytest.fail("only before the first start")
    )
    before = {path: path.stat().st_mtime_ns for path in (copied / "cells").rglob("*")}
    assert call("--resume", copied) == 0
    assert {path: path.stat().st_mtime_ns for path in (copied / "cells").rglob("*")} == before
    shown = capsys.readouterr().out
    assert "3 cells (2 arms), 3 finished" in shown and "3 of 3 cells are finished" in shown
    assert "control fixed-max is missing" in shown and f"report.py {copied}" in shown
    assert without_times(copied / "comparison.json")["cells"]


def test_what_is_missing_or_begun_is_made_and_the_rest_kept(copied, finished, interrupt) -> None:
    """Of one cell only rubbish is left, and one was interrupted by hand."""
    shutil.rmtree(copied / "cells" / "bandit-seed0")
    (copied / "cells" / "bandit-seed0" / "checkpoints").mkdir(parents=True)
    kept = {path: path.stat().st_mtime_ns for path in (copied / "cells" / "reinforce-seed0").rglob("*")}
    begun = copied / "cells" / "reinforce-seed1"
    shutil.rmtree(begun)
    interrupt(step=8)
    flags = ["--preset=digits", "--method=astra", "--agent=reinforce", *TINY, "--seed=1", f"--run_dir={begun}"]
    assert train_agent.main(flags) == 130
    wall = read_comparison(copied / "comparison.json").wall_seconds
    assert call("--resume", copied, "--jobs=1") == 0
    assert len((begun / "command.txt").read_text().splitlines()) == 2
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())
    found = read_comparison(copied / "comparison.json")
    assert found.jobs == 1 and found.wall_seconds > wall
    assert without_times(copied / "comparison.json") | {"jobs": 0} == without_times(finished / "comparison.json") | {
        "jobs": 0
    }


def test_the_cost_of_a_search_stays_in_the_plan(copied, tmp_path) -> None:
    """The search found what the arm has anyway."""
    own = read_comparison(copied / "comparison.json").cells[-1].settings
    search = {"tune": ["lr", "strength"], "candidates": 1, "settings": dict(own)}
    spent = {"trials": 1, "passes": 50, "seconds": 60.0}
    rounds = [{"seeds": 1, "best_first": ["the world's own values"]}]
    file = tmp_path / "t.json"
    file.write_text(json.dumps({"schema": 1, "search": search, "rounds": rounds, "spent": spent}))
    assert call("--resume", copied, "--searched", f"bandit={file}") == 0
    assert call("--resume", copied) == 0
    found = read_comparison(copied / "comparison.json")
    assert [(one.arm, one.file, one.passes) for one in found.searched] == [("bandit", "t.json", 50)]
    assert found.command.endswith(f" --searched bandit={file}") and not found.unfinished


def kill_and_resume(tmp_path: Path, finished: Path, kills: int) -> None:
    """SIGKILL to the whole group, when so many lines are in the cells' logs of metrics; then resumes to the end."""
    folder = tmp_path / "title"
    moments = sorted(random.Random(kills).sample(range(1, 37), kills))
    for number, moment in enumerate([*moments, None]):
        words = ["--resume", str(folder)] if (folder / "comparison.yaml").exists() else [*GRID, "--dir", str(folder)]
        command = [sys.executable, str(SCRIPT), *words]
        process = subprocess.Popen(
            command,
            cwd=tmp_path,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        while moment is not None and process.poll() is None:
            logs = folder.glob("cells/*/metrics.jsonl")
            if sum(path.read_bytes().count(b"loss/total") for path in logs) >= moment:
                os.killpg(process.pid, signal.SIGKILL)
                break
            time.sleep(0.01)
        assert process.wait() == (0 if moment is None else -signal.SIGKILL), number
    assert without_times(folder / "comparison.json") == without_times(finished / "comparison.json")


@pytest.mark.every_agent
@pytest.mark.parametrize("kills", [1, 5])
def test_a_comparison_that_was_killed_and_resumed_equals_one_that_was_not(tmp_path, finished, kills: int) -> None:
    kill_and_resume(tmp_path, finished, kills)


@pytest.mark.every_agent
def test_a_comparison_on_jobs_has_the_table_of_one_on_processes(tmp_path, finished, capsys) -> None:
    where = ("--engine", "slurm", "--slurm.cluster", "local")
    assert call(*GRID, "--dir", tmp_path / "title", "--jobs", "2", *where) == 0
    said = capsys.readouterr().out
    assert "3 cells (2 arms), 0 finished, 2 at once" in said and "3 of 3 cells are finished" in said
    tables = [without_times(folder / "comparison.json") for folder in (tmp_path / "title", finished)]
    assert tables[0].pop("command") == f"{tables[1].pop('command')} --jobs 2 {shlex.join(where)}"
    assert tables[0] | {"jobs": 0} == tables[1] | {"jobs": 0}


def test_runs_made_by_hand_are_adopted(finished, tmp_path, capsys) -> None:
    folder = tmp_path / "title"
    shutil.copytree(finished / "cells", folder / "cells")
    config = folder / "cells" / "bandit-seed0" / "config.yaml"
    resealed_yaml(config, "progress: lines", "progress: 'off'")
    assert call(*GRID, "--dir", folder) == 0
    assert "adopted: 3 finished runs" in capsys.readouterr().out
    found = read_comparison(folder / "comparison.json")
    # nobody has measured how long they took together
    assert found.wall_seconds is None and len(found.cells) == 3
    assert call("--resume", folder) == 0
    assert read_comparison(folder / "comparison.json").wall_seconds is None


@pytest.mark.parametrize(("old", "new"), [("batch_size: 4", "batch_size: 8"), ("seed: 0", "seed: 1")])
def test_runs_with_other_settings_are_never_mixed_in(copied, capsys, old: str, new: str) -> None:
    config = copied / "cells" / "bandit-seed0" / "config.yaml"
    resealed_yaml(config, old, new)
    before = (copied / "comparison.json").read_text()
    assert call("--resume", copied) == 2
    [line] = capsys.readouterr().err.splitlines()
    name, value = new.split(": ")
    assert f"bandit-seed0 was made with other settings: {name} is {value} and {old.split(': ')[1]} in the plan" in line
    (copied / "comparison.yaml").unlink()
    assert call(*GRID, "--dir", copied) == 2
    assert not (copied / "comparison.yaml").exists() and (copied / "comparison.json").read_text() == before


def test_a_plan_that_would_mean_something_else_today_is_refused(copied, capsys) -> None:
    path = copied / "comparison.yaml"
    good = without_seal(path.read_bytes()).decode()
    for text, part in (
        (good.replace("temperature: 0.5", "temperature: 0.4", 1), "temperature is 0.5 and 0.4"),
        (good.replace("  seeds: 1\n", "", 1), "damaged"),
        (good.replace("schema: 1", "schema: 9"), "schema"),
        ("]", "not a YAML file"),
    ):
        path.write_text(text)
        assert call("--resume", copied) == 2
        [line] = capsys.readouterr().err.splitlines()
        assert part in line


@pytest.mark.every_agent
def test_a_cell_that_fails_stops_nobody_and_is_tried_again(tmp_path, monkeypatch, capsys) -> None:
    """It fails as long as a file is missing; the arm of equal compute waits for it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "moody.py").write_text(
        "import pathlib, numpy\n"
        "def act(observations):\n"
        "    if not pathlib.Path('mood').exists():\n"
        "        raise RuntimeError('not in the mood')\n"
        "    return numpy.tile([5, 0, 1], (len(observations), 1))\n"
    )
    grid = ["--agents", "fixed", "--seeds=1", "--preset=digits", "--arm", "own=--agent moody:act", *TINY]
    assert call(*grid, "--dir=grid", "--equal_compute", "own", "fixed", "--jobs=2") == 1
    shown = capsys.readouterr().out
    assert "own-seed0 failed: ended with status 1: RuntimeError: not in the mood" in shown
    assert "own@compute, fixed@compute: only when all others are finished" in shown
    found = read_comparison("grid/comparison.json")
    assert [cell.arm for cell in found.cells] == ["fixed"] and "not in the mood" in found.unfinished["own-seed0"]
    assert "--resume grid --trust" in shown
    (tmp_path / "mood").touch()
    # anybody may have written the plan
    assert call("--resume", "grid") == 2
    assert "the agent 'moody:act' is named in a file" in capsys.readouterr().err
    assert call("--resume", "grid", "--trust") == 0
    shown = capsys.readouterr().out
    # 3 steps an attack against 5
    assert "own@compute: 3 epochs" in shown and "no fixed@compute" in shown
    found = read_comparison("grid/comparison.json")
    assert [(cell.arm, cell.attack_steps) for cell in found.cells] == [
        *(("fixed", 12 * 8 * 5), ("own", 12 * 8 * 3), ("own@compute", 18 * 8 * 3)),
    ]
    assert call("--resume", "grid", "--trust") == 0
    assert [cell.arm for cell in read_comparison("grid/comparison.json").cells] == ["fixed", "own", "own@compute"]


@pytest.mark.every_agent
def test_workers_end_with_the_process_that_started_them(tmp_path) -> None:
    command = [sys.executable, str(SCRIPT), *GRID, "--epochs=5000", "--dir=grid", "--jobs=1"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL)
    folder = tmp_path / "grid"
    metrics = folder / "cells" / "reinforce-seed0" / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and metrics.stat().st_size):
        time.sleep(0.02)
    # the scheduler alone: its workers have sessions of their own, which no signal to its group reaches either
    process.kill()
    process.wait()
    with locked(folder):
        length = metrics.stat().st_size
        time.sleep(1)
        assert metrics.stat().st_size == length


@pytest.mark.every_agent
def test_an_interrupted_comparison_saves_its_runs_and_says_how_to_go_on(tmp_path) -> None:
    command = [sys.executable, str(SCRIPT), *GRID, "--epochs=500", "--dir=grid", "--jobs=2"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    metrics = [tmp_path / "grid" / "cells" / f"{name}-seed0" / "metrics.jsonl" for name in ("reinforce", "bandit")]
    while process.poll() is None and not all(path.exists() and path.stat().st_size for path in metrics):
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    shown, _ = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "SIGINT: 2 runs are saved" in shown
    assert "SIGINT: resume by python" in shown and "--resume grid" in shown and "failed" not in shown
    for name in ("reinforce", "bandit"):
        assert "SIGTERM: saved at step" in (tmp_path / "grid" / "logs" / f"{name}-seed0.log").read_text()
    assert len(read_comparison(tmp_path / "grid" / "comparison.json").unfinished) == 3


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--agents", "reinfroce"], ["did you mean 'reinforce'"]),
        (["--epochs", "two"], ["--epochs", "int"]),
        (["--epohs", "2"], ["did you mean --epochs"]),
        (["--seedz", "2"], ["unknown flag --seedz; did you mean --seeds?"]),
        (["--seed", "2"], ["take --seeds"]),
        (["--seeds", "0"], ["--seeds", "1 or more"]),
        (["--jobs", "x"], ["--jobs"]),
        (["reinforce"], ["unexpected 'reinforce'"]),
        (["--evaluate=false"], ["accuracies"]),
        (["--agents", "auto"], ["depends on preset and method; name that agent"]),
        # what only making the world and the agent finds, of the first arm or a later one
        (["--batch_size=5000"], ["batch_size is 5000", "the arm 'reinforce'"]),
        (["--preset=folder", "--data_dir=nowhere"], ["nowhere is not a folder"]),
        (["--preset=folder"], ["--data_dir"]),
        (["--agents", "fixed", "ppo", "--agent_kwargs.gama=1"], ["no settings"]),
        (
            ["--agents", "fixed", "--arm", "x=--agent ppo --agent_kwargs.gama=1"],
            ["did you mean 'gamma'", "the arm 'x'"],
        ),
        (["--agents", "fixed", "dqn", "--actions=factored"], ["dqn cannot be made", "MultiDiscrete"]),
        (["--equal_compute", "ppo"], ["unknown arm 'ppo'"]),
        (["--engine", "rey"], ["unknown engine 'rey'", "did you mean 'ray'?"]),
        (["--engine", "slurm", "--slurm.cluster", "local", "--slurm.partion", "x"], ["Unknown argument 'partion'"]),
        (["--engine", "slurm", "--slurm.cluster", "local", "--cell_cpus", "0"], ["--cell_cpus: expected 1 to 4,096"]),
        (["--slurm.partition", "x"], ["--slurm is for --engine slurm, and this is --engine local"]),
        (["--cell_gpus", "1"], ["the engine local shares one GPU by its memory"]),
        (["--searched", "fixed"], ["--searched fixed: expected ARM=FILE"]),
        (["--searched", "fixd=x"], ["--searched fixd=x: there is no arm 'fixd': expected one of reinforce, fixed"]),
        (["--test", "reinforce"], ["--test reinforce: expected two arms, A:B"]),
        (["--test", "reinforce:reinforced"], ["--test: there is no arm reinforced: expected two of reinforce"]),
        (["--test", "fixed:fixed"], ["expected pairs of different arms"]),
        (["--arm", "x"], ["LABEL=FLAGS"]),
        (["--preset", "digits", "--presets", "digits"], ["--preset"]),
        (["--resume", "nowhere"], ["nowhere is no comparison's folder"]),
        (["--resume", "nowhere", "--epochs", "2"], ["only --jobs", "--epochs"]),
        (["--resume", "nowhere", "--seeds", "2"], ["only --jobs", "--seeds"]),
    ],
)
def test_bad_input_is_one_line_before_anything_is_made(tmp_path, monkeypatch, capsys, words, parts) -> None:
    monkeypatch.chdir(tmp_path)
    assert call(*words) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("compare_agents.py: error: ")
    for part in parts:
        assert part in line
    assert not list(tmp_path.iterdir())


def test_images_without_labels_are_refused_before_anything_is_trained(tmp_path, capsys) -> None:
    for name in range(40):
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.new("L", (8, 8), name).save(tmp_path / "images" / f"{name}.png")
    words = ("--preset=folder", f"--data_dir={tmp_path / 'images'}", "--limit=26", "--test_limit=8", "--dir")
    assert call("--agents", "fixed", *TINY, *words, tmp_path / "grid") == 2
    assert "has no labels, and a comparison needs them" in capsys.readouterr().err
    assert not (tmp_path / "grid").exists()


def test_an_agent_of_ones_own_that_cannot_be_made_is_one_line_too(tmp_path, monkeypatch, capsys) -> None:
    (tmp_path / "broken_agent.py").write_text(
        "import stable_baselines3\n"
        "class Mine(stable_baselines3.PPO):\n"
        "    def _setup_model(self):\n"
        "        raise KeyError('what a user wrote')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert call("--agents", "broken_agent:Mine", "--dir", tmp_path / "grid", *TINY) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "what a user wrote" in line and "in the arm 'broken_agent.Mine'" in line
    assert not (tmp_path / "grid").exists()


@pytest.mark.parametrize(
    ("error", "status", "expected"),
    [
        (OSError(27, "File too large"), 1, "grid cannot be read or written (File too large); all runs that have"),
        (OSError(28, "No space left on device"), 1, "grid; all runs that have finished are kept, and the others' chec"),
        (KeyboardInterrupt(), 130, "error: interrupted; resume by python"),
        (StopRequested(signal.SIGHUP), 129, "error: interrupted; resume by python"),
    ],
)
def test_what_goes_wrong_in_the_midst_is_told_as_it_is(tmp_path, monkeypatch, capsys, error, status, expected) -> None:
    """A full disk has no file's name, and who interrupts the last writing is told how to go on."""

    def fails(self) -> int:
        raise error

    monkeypatch.setattr("astra_gym.experiments.compare_agents.Comparer.run", fails)
    assert call("--agents=fixed", "--dir", tmp_path / "grid", *TINY) == status
    [line] = capsys.readouterr().err.splitlines()
    assert expected in line


def test_folders_that_cannot_be_used(finished, tmp_path, capsys) -> None:
    (tmp_path / "file").write_text("x")
    for folder, part in (
        (finished, "go on with it by --resume"),
        (tmp_path, "not empty"),
        (tmp_path / "file", "a file"),
    ):
        assert call("--dir", folder) == 2
        assert part in capsys.readouterr().err


def test_the_number_of_seeds(tmp_path, monkeypatch) -> None:
    """Agents whose comparisons are fixed beforehand get ten where the others get five or more."""
    made: list[Any] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("astra_gym.experiments.compare_agents.Comparer.run", lambda self: made.append(self.plan) or 0)
    for words in ([], ["--seeds=3"], ["--seeds=3", "--primary_seeds=4"], ["--seeds=12"]):
        assert call("--agents", "reinforce", "ppo", "fixed-max", *words, *TINY) == 0
    assert [[arm.seeds for arm in plan.arms] for plan in made] == [[10, 5, 10], [3, 3, 3], [4, 3, 4], [12, 12, 12]]
    assert call("--agents", "reinforce", "ppo", "fixed-max", "--test", "ppo:fixed-max", *TINY) == 0
    assert [arm.seeds for arm in made[-1].arms] == [5, 10, 10] and made[-1].tests == (("ppo", "fixed-max"),)
    assert [plan.name for plan in made[:4]] == ["digits-grid", "digits-grid-2", "digits-grid-3", "digits-grid-4"]
