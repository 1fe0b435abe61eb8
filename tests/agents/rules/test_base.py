"""What the rules that people use by hand have in common: exact resume, refusals."""

import copy
from pathlib import Path
from typing import Any

import pytest

from astra_gym.agents import AcceleratingAgent, CustomizedAgent, make_agent
from astra_gym.envs.engine import AttackEngine
from astra_gym.envs.torch_env import TorchBatchEnv
from astra_gym.envs.world_config import WorldSettings
from tests.helpers.rule_agents import TINY, rule_agent
from tests.helpers.scripted_worlds import LISTED, Scripted
from tests.helpers.states import same


@pytest.mark.slow
@pytest.mark.parametrize("name", ["delayed", "accelerating", "escalating", "customized", "friendly"])
def test_stopped_in_an_epoch_and_resumed_equals_straight(name: str, tmp_path: Path) -> None:
    env, straight = rule_agent(name)
    kept: dict[str, Any] = {}

    def note(local: Any, _: Any) -> bool:
        if env.engine.step == 10:
            kept.update(copy.deepcopy(env.state_dict()))
            straight.save(tmp_path / "agent")
        return True

    straight.learn(18 * env.num_envs, callback=note)
    again, _ = rule_agent(name)
    again.load_state_dict(kept)
    resumed = type(straight).load(tmp_path / "agent", again, device="cpu", force_reset=False)
    resumed.learn(8 * env.num_envs, reset_num_timesteps=False)
    assert same(env.state_dict(), again.state_dict())
    assert same(straight.state_dict(), resumed.state_dict())


def test_worlds_that_do_not_report_are_refused(world: Any, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"'accelerating' needs a world of views or batches that reports attack/slope .*: got a K"
    ):
        AcceleratingAgent(world(), LISTED)
    batch = TorchBatchEnv(AttackEngine(WorldSettings.of(**TINY)))
    with pytest.raises(
        ValueError, match=r"'customized' needs a world of views that reports attack/retrieved .* a TorchBatchEnv"
    ):
        CustomizedAgent(batch, LISTED)
    AcceleratingAgent(batch, LISTED).learn(3)
    env = Scripted(world(), [])
    agent = AcceleratingAgent(env, LISTED)
    with pytest.raises(ValueError, match="got a KnownOptimum"):
        agent.set_env(world())
    assert agent.get_env() is env
    agent.save(tmp_path / "agent")
    with pytest.raises(ValueError, match="got a KnownOptimum"):
        AcceleratingAgent.load(tmp_path / "agent", world(), device="cpu")
    with pytest.raises(ValueError, match="the list of customized has no actions"):
        CustomizedAgent(env, [])
    for name in ("delayed", "accelerating", "escalating", "customized", "friendly"):
        with pytest.raises(ValueError, match=f"schedule_actions is None: agent '{name}' needs elements"):
            make_agent(name, env, seed=0, gamma=0.0, planned_plays=5)
