"""What agents of one seed share, so that they can be compared."""

import random
import sys

import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback

from astra_gym.experiments.config.settings import Settings
from astra_gym.experiments.runs.run import Run
from astra_gym.ssl_core.utils.hashing import fingerprint
from tests.helpers.tiny_training import TINY_SETTINGS


class Recorder(BaseCallback):
    """Keeps the clean views of each update."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        self.run = run
        self.views: list[torch.Tensor] = []

    def _on_step(self) -> bool:
        self.views.append(self.run.engine.last.views.clone())
        return True


def restless(observations: np.ndarray) -> np.ndarray:
    """An agent of one's own that draws from the global generators."""
    torch.rand(3), random.random()
    return np.random.randint(0, [13, 12, 5], (len(observations), 3))


FAIR = [(name, "view") for name in ("reinforce", "ppo", "sac", "fixed", "restless_agents:restless")]
FAIR += [("a2c", "batch")]


def test_all_agents_of_a_seed_get_the_same_weights_and_batches_and_make_the_planned_updates(monkeypatch) -> None:
    """That every agent makes the planned updates in whole runs is a test of the main command."""
    module = type(sys)("restless_agents")
    module.restless = restless
    monkeypatch.setitem(sys.modules, "restless_agents", module)
    world = {**TINY_SETTINGS, "limit": 12, "epochs": 2, "device": "cpu"}
    seen = {}
    for agent, env in FAIR:
        run = Run(Settings.of(**world, agent=agent, env=env, seed=3), torch.device("cpu"))
        start, recorder = fingerprint(run.engine.learner.network), Recorder(run)
        run.agent.learn(run.engine.planned_updates * run.env.num_envs, recorder, reset_num_timesteps=False)
        assert run.engine.step == run.engine.planned_updates == len(recorder.views) == 6, (agent, env)
        seen[agent, env] = start, recorder.views, fingerprint(run.engine.learner.network)
    weights, views, _ = seen["fixed", "view"]
    for key, (other_weights, other_views, _) in seen.items():
        assert other_weights == weights, key
        assert all(torch.equal(one, other) for one, other in zip(views, other_views, strict=True)), key
    # they do differ in what they make of it, and another seed in everything
    assert len({str(trained) for _, _, trained in seen.values()}) == len(FAIR)
    other = Run(Settings.of(**world, agent="fixed", seed=4), torch.device("cpu"))
    assert fingerprint(other.engine.learner.network) != weights
    assert not torch.equal(other.engine.views, views[0])
