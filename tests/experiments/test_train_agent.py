"""The main command, on worlds small enough for a run in seconds."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from astra_gym.agents import AGENTS
from astra_gym.experiments.runs.metrics import read_metrics
from astra_gym.experiments.train_agent import main
from astra_gym.ssl_core.evaluation.results import read_results
from astra_gym.ssl_core.models.backbones.parts import _applied
from tests.helpers.tiny_training import SCRIPT, TINY, assert_equal_runs, call, expect_error, run, weights

AGENTS_BY_ENV = [(name, env) for name, entry in AGENTS.items() for env in entry.envs if name != "none"]
OWN_FLAGS = {
    "delayed": ["--action_steps=[0,3,5]"],
    "accelerating": ["--agent_kwargs.period=0.3"],
}
"""A world with clean views; a rule that climbs within a tiny run."""
FEW_DRIVEN = {("fixed", "view"), ("random", "batch"), ("a2c", "view"), ("sac", "batch"), ("accelerating", "batch")}
FEW_DRIVEN |= {("customized", "view")}
"""One of each kind of agent; that all drive both environments for a few plays are tests of `agents`."""
DRIVEN = [pytest.param(*pair, marks=() if pair in FEW_DRIVEN else pytest.mark.every_agent) for pair in AGENTS_BY_ENV]


@pytest.mark.parametrize(("agent", "env"), DRIVEN)
def test_every_agent_drives_both_environments(tmp_path, agent: str, env: str) -> None:
    folder = tmp_path / "run"
    own = OWN_FLAGS.get(agent, [])
    assert run(folder, f"--agent={agent}", f"--env={env}", "--epochs=1", "--evaluate=false", *own) == 0
    rows = read_metrics(folder / "metrics.jsonl")
    # every agent makes exactly the planned number of target updates
    assert [row["step"] for row in rows] == list(range(1, 7))
    assert {"loss/total", "reward/mean", "actions/epsilon_255"} <= rows[-1].keys()
    payload = torch.load(folder / "checkpoints" / "last.pt", weights_only=True)
    assert payload["step"] == 6 and payload["agent_name"] == agent


FEW_ACTIONS = {("reinforce", "continuous"), ("ppo", "flat")}


@pytest.mark.parametrize(
    ("agent", "actions"),
    [
        pytest.param(*pair, marks=() if pair in FEW_ACTIONS else pytest.mark.every_agent)
        for pair in product(("reinforce", "ppo", "a2c", "fixed", "random"), ("flat", "continuous"))
    ],
)
def test_every_kind_of_actions(tmp_path, agent: str, actions: str) -> None:
    assert run(tmp_path / "run", f"--agent={agent}", f"--actions={actions}", "--epochs=1", "--evaluate=false") == 0


@pytest.mark.parametrize(
    "agent",
    ["ppo", *(pytest.param(name, marks=pytest.mark.every_agent) for name in ("reinforce", "reinforce-paper", "a2c"))],
)
def test_image_observations(tmp_path, agent: str) -> None:
    flags = [f"--agent={agent}", "--observation=image", "--epochs=1", "--evaluate=false"]
    assert run(tmp_path / "run", *flags) == 0


@pytest.mark.parametrize("method", ["astra", pytest.param("acl", marks=pytest.mark.every_agent), "simclr"])
def test_a_whole_run_leaves_what_the_plan_says(tmp_path, method: str, capsys) -> None:
    folder = tmp_path / "run"
    assert run(folder, f"--method={method}") == 0
    shown = capsys.readouterr().out
    assert "RA % at 8/255" in shown and "lie in" in shown
    for name in ("config.yaml", "command.txt", "environment.json", "metrics.jsonl", "checkpoints/last.pt"):
        assert (folder / name).stat().st_size > 0, name
    rows = read_results(folder / "results" / "slf.json")
    assert [(row.metric, row.attack, row.protocol, row.n) for row in rows] == [
        ("SA", "none", "slf", 30),
        ("RA", "pgd20", "slf", 30),
    ]
    assert {row.route for row in rows} == {"normal" if method == "simclr" else "pgd"}
    assert {row.checkpoint for row in rows} == {"step-12"}
    pictures = {"losses_and_reward.png", "accuracy_against_epsilon.png"}
    if method != "simclr":
        pictures |= {"action_shares.png", "attack_gallery.png"}
        policy = json.loads((folder / "results" / "policy.json").read_text())
        assert policy["rewards"].keys() == {"reinforce", "uniform random", "method's own budget"}
        assert all(np.isfinite(values).all() and len(values) == 4 for values in policy["rewards"].values())
    assert {path.name for path in (folder / "figures").iterdir()} == pictures
    tags = EventAccumulator(str(folder)).Reload().Tags()
    assert "loss/total" in tags["scalars"]
    assert bool(tags["images"]) == bool(tags["histograms"]) == (method != "simclr")
    if method == "simclr":
        # a finished run is evaluated again
        (folder / "results" / "slf.json").unlink()
        assert main(["--resume", str(folder)]) == 0
        again = read_results(folder / "results" / "slf.json")
        assert [row.value for row in again] == [row.value for row in rows]
        for tag, value in (("final/SA", again[0].value), ("final/RA_8_255", again[1].value)):
            [point] = EventAccumulator(str(folder)).Reload().Scalars(tag)
            assert (point.step, point.value) == (12, pytest.approx(value))


def test_trivial_encoders_are_evaluated_on_request(tmp_path) -> None:
    assert run(tmp_path / "run", "--epochs=1", "--controls=true", "--method=simclr") == 0
    rows = read_results(tmp_path / "run" / "results" / "slf.json")
    assert list(dict.fromkeys(row.checkpoint for row in rows)) == ["step-6", "random-weights", "raw-pixels"]


def test_the_same_seed_gives_the_same_run_and_another_does_not(tmp_path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert run(tmp_path / name, f"--seed={seed}", "--epochs=1", "--evaluate=false") == 0
    assert_equal_runs(tmp_path / "a", tmp_path / "b")
    assert any(not torch.equal(v, weights(tmp_path / "c")[k]) for k, v in weights(tmp_path / "a").items())


FEW_RESUMED = {("reinforce", "--env=view"), ("ppo", "--env=view")}
"""Our own policy and SB3's; the states of all agents are tests of `agents`."""
EVERY_RESUMED = [(name, f"--env={env}") for name, env in AGENTS_BY_ENV] + [
    (name, "--observation=image") for name in ("reinforce", "ppo", "a2c")
]
RESUMED = [pytest.param(*pair, marks=() if pair in FEW_RESUMED else pytest.mark.every_agent) for pair in EVERY_RESUMED]


@pytest.mark.parametrize(("agent", "flag"), RESUMED)
def test_interrupted_and_resumed_equals_uninterrupted(tmp_path, interrupt, capsys, agent: str, flag: str) -> None:
    flags = [f"--agent={agent}", flag, "--evaluate=false", "--epochs=3", *OWN_FLAGS.get(agent, [])]
    assert run(tmp_path / "straight", *flags) == 0
    interrupt(step=3)
    status = run(tmp_path / "resumed", *flags)
    assert status == 130
    assert "--resume" in capsys.readouterr().out
    step = torch.load(tmp_path / "resumed" / "checkpoints" / "last.pt", weights_only=True)["step"]
    assert 3 <= step < 18
    # what the process drew from the global generators in between must not matter
    torch.manual_seed(99), np.random.seed(99)
    assert main(["--resume", str(tmp_path / "resumed")]) == 0
    assert_equal_runs(tmp_path / "straight", tmp_path / "resumed")
    assert len((tmp_path / "resumed" / "command.txt").read_text().splitlines()) == 2
    stretches = json.loads((tmp_path / "resumed" / "results" / "training.json").read_text())["stretches"]
    assert [(part["first"], part["last"]) for part in stretches] == [(0, step), (step, 18)]
    for part in stretches:
        shares = [part[f"{who}_seconds"] for who in ("world", "agent", "writing")]
        # hundredths of a second: what an agent takes at this size may be none
        assert shares[0] > 0 and min(shares) >= 0 and sum(shares) <= part["seconds"] + 0.1


@pytest.mark.parametrize("agent", ["reinforce", pytest.param("ppo", marks=pytest.mark.every_agent)])
def test_killed_at_once_and_resumed_equals_uninterrupted(tmp_path, agent: str) -> None:
    """SIGKILL leaves no time to save: the run goes on from its last epoch, and what was logged since is taken back."""
    flags = [f"--agent={agent}", "--evaluate=false", "--epochs=4", "--progress=off"]
    killed = tmp_path / "killed"
    command = [sys.executable, str(SCRIPT), *TINY, f"--run_dir={killed}", *flags]
    process = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, cwd=tmp_path)
    metrics = killed / "metrics.jsonl"
    while process.poll() is None and (not metrics.exists() or metrics.read_text().count("loss/total") < 8):
        time.sleep(0.02)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert main(["--resume", str(killed)]) == 0
    assert run(tmp_path / "straight", *flags) == 0
    assert_equal_runs(tmp_path / "straight", killed)


@pytest.mark.every_agent
def test_sigterm_saves_and_says_how_to_go_on(tmp_path) -> None:
    folder = tmp_path / "run"
    command = [sys.executable, str(SCRIPT), *TINY, f"--run_dir={folder}", "--epochs=1000"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tmp_path)
    metrics = folder / "metrics.jsonl"
    while process.poll() is None and (not metrics.exists() or metrics.read_text().count("\n") < 3):
        time.sleep(0.02)
    process.terminate()
    shown, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert "SIGTERM: saved at step" in shown and f"--resume {folder}" in shown


def test_what_makes_a_resumed_run_inexact_is_said_each_time(tmp_path, interrupt, capsys) -> None:
    folder = tmp_path / "run"
    interrupt(step=3)
    assert run(folder, "--evaluate=false", "--precision=fp32") == 130
    capsys.readouterr()
    interrupt(step=6)
    assert main(["--resume", str(folder), "--precision=bf16", "--device=cpu"]) == 130
    shown = capsys.readouterr().out
    assert "not bit for bit the uninterrupted run: precision was fp32 and is bf16" in shown
    assert "device" not in shown
    assert main(["--resume", str(folder)]) == 0
    assert "not bit for bit the uninterrupted run: precision was bf16 and is fp32" in capsys.readouterr().out


def test_compiling_from_a_resume_on_is_said(tmp_path, interrupt, monkeypatch, capsys) -> None:
    monkeypatch.setattr("astra_gym.ssl_core.models.backbones.parts.compiled_part", lambda backend: _applied)
    folder = tmp_path / "run"
    interrupt(step=3)
    assert run(folder, "--evaluate=false") == 130
    capsys.readouterr()
    assert main(["--resume", str(folder), "--compile_blocks=true"]) == 0
    assert "not bit for bit the uninterrupted run: compile_blocks was False and is True" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (["--agent=reinfroce"], ["unknown agent 'reinfroce'", "did you mean 'reinforce'"]),
        (["--method=astr"], ["unknown method", "did you mean 'astra'"]),
        (["--dataset=cifar"], ["unknown data set", "did you mean 'cifar10'"]),
        (["--preset=digit"], ["unknown preset", "did you mean 'digits'"]),
        (["--method=simclr", "--agent=ppo"], ["simclr", "no attack"]),
        (["--agent=fixed", "--epsilon=50/255"], ["epsilon is 50/255", "2/255 to 40/255"]),
        (["--agent=fixed", "--epsilon=8"], ["8/255, not 8"]),
        (["--agent=fixed", "--steps=99"], ["steps is 99", "1 to 10"]),
        (["--agent=ppo", "--epsilon=8/255"], ["only the agents fixed, delayed"]),
        (["--agent=reinforce-paper", "--observation=features"], ["--observation", "reinforce-paper"]),
        (["--env=batch", "--observation=image"], ["image", "batch"]),
        (["--agent=fixed", "--epsilon=8.4/255"], ["epsilon is 8.4/255", "8/255"]),
        (["--eval_epsilons=[8/255,8/255]"], ["eval_epsilons", "different names"]),
        (["--interpolation=bicubi"], ["did you mean 'bicubic'"]),
        ([f"--seed={10**20}"], ["seed", "2**63"]),
        (["--batch_size=27"], ["27", "26"]),
        (["--agnet=ppo"], ["did you mean --agent"]),
        (["--dataset=cifar10"], ["--data_dir"]),
        (["--resume=nowhere"], ["nowhere is not a run folder"]),
    ],
)
def test_bad_input_is_one_line(tmp_path, capsys, flags: list[str], parts: list[str]) -> None:
    base = [] if flags[0].startswith("--resume") else [*TINY, f"--run_dir={tmp_path / 'run'}"]
    expect_error(capsys, call(*base, *flags), *parts)
    assert not (tmp_path / "run").exists()


def test_an_error_of_custom_code_names_its_line(tmp_path, monkeypatch, capsys) -> None:
    code = "from astra_gym.ssl_core.methods import ACL\nclass Mine(ACL):\n def objective(self, z):\n  a, b = [z]\n"
    (tmp_path / "method_of_mine.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    status = call(*TINY, f"--run_dir={tmp_path / 'run'}", "--method=method_of_mine:Mine")
    expect_error(capsys, status, f"expected 2, got 1) ({tmp_path / 'method_of_mine.py'}, line 4, in objective)")


def test_a_gpu_that_is_not_there(tmp_path, capsys) -> None:
    expect_error(capsys, call(*TINY, f"--run_dir={tmp_path / 'run'}", "--device=cuda"), "finds no GPU", "take cpu")


def test_run_folders_that_cannot_be_used(tmp_path, capsys) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a.txt").write_text("mine")
    expect_error(capsys, run(tmp_path / "full"), "exists and is not empty", "--run_dir")
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["a.txt"]
    (tmp_path / "file").write_text("x")
    expect_error(capsys, run(tmp_path / "file" / "run"), "cannot write")


def test_missing_cifar10_without_network(tmp_path, capsys) -> None:
    flags = ["--dataset=cifar10", f"--data_dir={tmp_path / 'data'}", f"--run_dir={tmp_path / 'run'}"]
    expect_error(capsys, call(*flags, "--download=false"), "cifar-10-batches-py", str(tmp_path / "data"))


def image_folder(root: Path, names: list[str]) -> Path:
    for index, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(index).integers(0, 255, (10, 12, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    return root


def test_a_folder_of_images_without_labels_trains_and_leaves_the_probe_out(tmp_path, capsys) -> None:
    root = image_folder(tmp_path / "pictures", [f"{k}.png" for k in range(20)])
    flags = [flag for flag in TINY if "limit" not in flag]
    folder = tmp_path / "run"
    assert (
        main([*flags, "--dataset=folder", f"--data_dir={root}", f"--run_dir={folder}", "--epochs=1", "--probe_every=1"])
        == 0
    )
    out = capsys.readouterr().out
    assert "no curves of the probe (--probe_every): the images have no labels" in out and out.count("no labels") > 1
    assert not (folder / "results" / "slf.json").exists()
    assert (folder / "figures" / "losses_and_reward.png").exists()


def test_a_folder_with_labels_is_evaluated(tmp_path) -> None:
    root = image_folder(tmp_path / "pictures", [f"{c}/{k}.png" for c in "ab" for k in range(12)])
    flags = [*(flag for flag in TINY if "limit" not in flag), "--method=simclr"]
    folder = tmp_path / "run"
    assert main([*flags, "--dataset=folder", f"--data_dir={root}", f"--run_dir={folder}", "--epochs=1"]) == 0
    assert read_results(folder / "results" / "slf.json")


def test_folders_that_cannot_be_read(tmp_path, capsys) -> None:
    flags = [flag for flag in TINY if "limit" not in flag] + ["--dataset=folder", f"--run_dir={tmp_path / 'run'}"]
    (tmp_path / "empty").mkdir()
    expect_error(capsys, call(*flags, f"--data_dir={tmp_path / 'empty'}"), "empty")
    root = image_folder(tmp_path / "pictures", [f"{k}.png" for k in range(10)])
    (root / "3.png").write_bytes(b"not a picture")
    expect_error(capsys, call(*flags, f"--data_dir={root}"), "3.png")


def test_damaged_logs_are_named_and_the_run_resumes(tmp_path, capsys) -> None:
    assert run(tmp_path / "run", "--epochs=1", "--evaluate=false") == 0
    damage = {"environment.json": ("{}", "[", None), "metrics.jsonl": ("[]\n", "garbage\n", "\xff\n", None)}
    damage |= {"command.txt": ("", "rm", None), "events.out.tfevents.backup": ("an odd name and no record",)}
    for name, texts in damage.items():
        for number, text in enumerate(texts):
            folder = tmp_path / f"{name}-{number}"
            shutil.copytree(tmp_path / "run", folder)
            (folder / name).unlink(missing_ok=True)
            if text is not None:
                (folder / name).write_bytes(text.encode("latin-1"))
            capsys.readouterr()
            assert main(["--resume", str(folder)]) == 0
            # what was put there has no seal, which is another note
            lines = [line for line in capsys.readouterr().err.splitlines() if "without a seal" not in line]
            assert lines and all(f"note: {folder}/{name}" in line for line in lines)
            assert (folder / f"{name}.damaged").exists() == (
                name in ("environment.json", "metrics.jsonl") and bool(text)
            )


def test_the_printed_command_can_be_pasted(tmp_path, interrupt, capsys) -> None:
    folder = tmp_path / "a run"
    interrupt(step=3)
    assert run(folder, "--evaluate=false") == 130
    words = shlex.split(capsys.readouterr().out.rpartition("resume by ")[2])
    assert words[0] == "python" and words[2:] == ["--resume", str(folder)]


def test_a_resume_whose_settings_differ_is_refused_by_name(tmp_path, capsys) -> None:
    folder = tmp_path / "run"
    assert run(folder, "--epochs=1", "--evaluate=false") == 0
    capsys.readouterr()
    for flag in ("--agent=random", "--batch_size=5", "--epochs=3", "--seed=4", "--method=acl"):
        expect_error(capsys, call("--resume", str(folder), flag), flag.partition("=")[0])


def test_damaged_and_foreign_checkpoints(tmp_path, capsys) -> None:
    folder = tmp_path / "run"
    assert run(folder, "--epochs=1", "--evaluate=false") == 0
    path = folder / "checkpoints" / "last.pt"
    good = path.read_bytes()
    capsys.readouterr()
    path.write_bytes(good[: len(good) // 2])
    expect_error(capsys, call("--resume", str(folder)), "last.pt", "truncated")
    torch.save({"state_dict": {}}, path)
    expect_error(capsys, call("--resume", str(folder)), "foreign")
    assert run(tmp_path / "other", "--epochs=1", "--width=4", "--evaluate=false") == 0
    capsys.readouterr()
    shutil.copy(tmp_path / "other" / "checkpoints" / "last.pt", path)
    expect_error(capsys, call("--resume", str(folder)), "does not fit config.yaml")
    path.unlink()
    expect_error(capsys, call("--resume", str(folder)), "no such checkpoint")


@pytest.mark.parametrize(
    ("agent", "lr"),
    [
        *(("reinforce", "1e25"), ("ppo", "3e38")),
        *(pytest.param(*pair, marks=pytest.mark.every_agent) for pair in (("reinforce", "3e38"), ("ppo", "1e25"))),
    ],
)
def test_a_run_that_diverges_names_step_budget_and_a_checkpoint_that_is_good(tmp_path, capsys, agent, lr) -> None:
    flags = ["--optimizer=sgd", f"--lr={lr}", "--epochs=5", f"--agent={agent}"]
    assert run(tmp_path / "run", *flags) == 1
    shown = capsys.readouterr().err
    assert "update" in shown and "finite" in shown and "epsilon" in shown and "last good checkpoint" in shown
    assert len(shown.strip().splitlines()) == 1
    assert all(value.isfinite().all() for value in weights(tmp_path / "run").values())


def test_an_evaluation_that_fails_is_one_line(tmp_path, capsys) -> None:
    assert run(tmp_path / "run", "--epochs=1", "--probe_lr=1e38") == 1
    shown = capsys.readouterr().err
    assert "the evaluation failed: the probe diverged" in shown and len(shown.strip().splitlines()) == 1


def test_an_interrupt_during_set_up_is_one_line(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr("astra_gym.experiments.train_agent.Run", lambda *_, **__: signal.raise_signal(signal.SIGTERM))
    before = signal.getsignal(signal.SIGTERM)
    assert run(tmp_path / "run") == 128 + signal.SIGTERM
    assert "interrupted" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.every_agent
def test_it_runs_from_anywhere_with_a_decoy_agents_package_before_it(tmp_path) -> None:
    for name in ("agents", "envs", "ssl_core", "experiments"):
        (tmp_path / "decoy" / name).mkdir(parents=True)
        (tmp_path / "decoy" / name / "__init__.py").write_text("raise ImportError('the decoy was imported')")
    command = [sys.executable, str(SCRIPT), *TINY, "--epochs=1", "--evaluate=false", "--run_dir=run"]
    env = os.environ | {"PYTHONPATH": str(tmp_path / "decoy")}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "checkpoints" / "last.pt").exists()
