"""A run goes on where another device left it."""

from pathlib import Path

import pytest
import torch

from astra_gym.experiments.config.settings import Settings
from astra_gym.experiments.runs.run import Run
from astra_gym.experiments.runs.run_folder import RunFolder
from tests.helpers.gpu import SIZES
from tests.helpers.states import same


@pytest.mark.gpu
@pytest.mark.parametrize("agent", ["reinforce", "reinforce-paper", "dqn"])
def test_a_run_goes_from_the_gpu_to_the_cpu_and_back(gpu: torch.device, agent: str, tmp_path: Path) -> None:
    own = {"agent_kwargs": {"width": 2}} if agent == "reinforce-paper" else {}
    settings = Settings.of(agent=agent, precision="fp32", keep_every=0, **SIZES, **own)
    folder = RunFolder.create(tmp_path / "run", settings, ["train_agent.py"])
    saved = None
    for device in (gpu, torch.device("cpu"), gpu):
        run = Run(settings, device)
        if saved is not None:
            notes = run.restore(folder)
            assert any("device was" in note for note in notes) == (gpu.type != "cpu")
            now = on_the_cpu(run)
            assert now["step"] == saved["step"] and same(now, saved)
        run.agent.learn(2 * run.env.num_envs, reset_num_timesteps=False)
        assert {value.device for value in run.engine.learner.network.state_dict().values()} == {device}
        run.save(folder)
        saved = on_the_cpu(run)
    assert saved is not None and saved["step"] == 6


def on_the_cpu(run: Run) -> dict:
    network = run.engine.learner.network.state_dict()
    return {"step": run.engine.step} | {name: value.cpu() for name, value in network.items()}
