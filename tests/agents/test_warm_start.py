"""An agent that begins with what another run's has learned: the same choices, its own counts, refusals."""

from pathlib import Path
from typing import Any

import pytest
import torch

from astra_gym.agents.warm_start import FrozenAgent, start_from
from astra_gym.experiments.config.settings import Settings
from astra_gym.experiments.runs.metrics import read_metrics
from astra_gym.experiments.runs.run import Run
from astra_gym.ssl_core.models.checkpoint import load_checkpoint
from tests.helpers.tiny_training import TINY, TINY_SETTINGS, assert_equal_runs, call, expect_error, main

AGENTS = ("reinforce", "ppo", "bandit", "gp")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of each agent, of one epoch."""
    folder = tmp_path_factory.mktemp("runs")
    for name in AGENTS:
        flags = [f"--agent={name}", "--epochs=1", "--evaluate=false", "--seed=1", f"--run_dir={folder / name}"]
        assert main([*TINY, *flags]) == 0
    return folder


def learned(state: dict[str, Any]) -> Any:
    """The policy of an agent's state, or all that it has learned."""
    parts = state["parameters"] if "parameters" in state else state["learner"]
    return parts.get("policy", parts)


def same(a: object, b: object) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)  # type: ignore[arg-type]
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)  # type: ignore[attr-defined, index]
    return a == b


@pytest.mark.slow
@pytest.mark.parametrize("name", AGENTS)
def test_an_agent_begins_with_what_another_learned_and_learns_on(runs: Path, name: str) -> None:
    run = Run(Settings.from_preset("digits", **TINY_SETTINGS, agent=name), torch.device("cpu"))
    saved = learned(load_checkpoint(runs / name / "checkpoints" / "last.pt", "run")["agent"])
    assert not same(learned(run.agent.state_dict()), saved)
    start_from(run.agent, runs / name)
    assert same(learned(run.agent.state_dict()), saved) and run.agent.num_timesteps == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", [*AGENTS[:3], pytest.param("gp", marks=pytest.mark.every_agent)])
def test_a_frozen_agent_learns_nothing_and_its_run_resumes(runs: Path, name: str, tmp_path: Path, interrupt) -> None:
    flags = [f"--agent={name}", f"--agent_from={runs / name}", "--agent_learns=false", "--evaluate=false"]
    assert main([*TINY, *flags, f"--run_dir={tmp_path / 'whole'}"]) == 0
    saved, first = (
        load_checkpoint(folder / "checkpoints" / "last.pt", "run")["agent"]
        for folder in (tmp_path / "whole", runs / name)
    )
    assert saved["kind"] == FrozenAgent.kind
    assert same(learned(saved["learner"]), learned(first))
    interrupt(step=3)
    assert main([*TINY, *flags, f"--run_dir={tmp_path / 'part'}"]) == 130
    assert main(["--resume", str(tmp_path / "part")]) == 0
    assert_equal_runs(tmp_path / "whole", tmp_path / "part")
    assert (
        len({row["budget/epsilon_255"] for row in read_metrics(tmp_path / "whole" / "metrics.jsonl")}) > 1
        or name == "gp"
    )


def test_runs_that_do_not_fit_are_refused(runs: Path, tmp_path: Path, capsys) -> None:
    start = [*TINY, f"--run_dir={tmp_path / 'run'}"]
    expect_error(capsys, call(*start, "--agent=ppo", f"--agent_from={runs / 'bandit'}"), "a run of the agent 'bandit'")
    wide = [*start, "--width=4", f"--agent_from={runs / 'reinforce'}", "--agent=reinforce"]
    expect_error(capsys, call(*wide), "does not fit here", "[64, 18] there, [64, 34] here")
    expect_error(capsys, call(*start, f"--agent_from={tmp_path}", "--agent=ppo"), "is a folder without", "last.pt")
    expect_error(
        capsys, call(*start, "--agent=fixed", f"--agent_from={runs / 'ppo'}"), "the agent fixed learns nothing"
    )
    expect_error(capsys, call(*start, "--agent=ppo", "--agent_learns=false"), "give a run too, --agent_from")
    assert not (tmp_path / "run").exists()
