"""The engine as a vector environment in torch: what is assessed leaves the world as it is."""

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from astra_gym.agents.reinforce import REINFORCE, SETTINGS
from astra_gym.envs.engine import AttackEngine
from astra_gym.envs.torch_env import TorchBatchEnv, TorchViewEnv
from astra_gym.envs.world_config import WorldSettings
from tests.helpers.states import same

PAPER = replace(SETTINGS["reinforce-paper"], width=2)


def pair(tiny: dict[str, Any]) -> tuple[TorchViewEnv, REINFORCE]:
    settings = WorldSettings(**(tiny | {"epochs": 7, "reward_scope": "batch"}))
    env = TorchViewEnv(AttackEngine(settings, seed=3), observation="image")
    return env, REINFORCE(env, PAPER, planned_plays=21, seed=3)


def test_twenty_plays_of_the_paper_s_agent_are_22_attacks_and_resume_exactly_between_them(tiny: dict[str, Any]) -> None:
    env, agent = pair(tiny)
    attacks, plays = [], []
    attack = env.engine.learner.attack
    env.engine.learner.attack = lambda *given: attacks.append(len(plays)) or attack(*given)  # type: ignore[method-assign]
    kept: dict[int, Any] = {}

    def note(local: Any, _: Any) -> bool:
        plays.append(env.engine.last)
        kept[len(plays)] = copy.deepcopy((env.state_dict(), agent.state_dict()))
        return True

    agent.learn(20 * env.num_envs, callback=note)
    assert attacks == [*range(10), 9, *range(10, 20), 19]
    assert attacks.count(9) == attacks.count(19) == 2 and len(attacks) == 22
    # the tenth play counts the attack that was only assessed, for comparisons at equal compute
    assert [record.other_steps > 0 for record in plays] == [i % 10 == 9 for i in range(20)]
    for play in (9, 10):
        env_again, agent_again = pair(tiny)
        env_again.load_state_dict(kept[play][0])
        agent_again.load_state_dict(kept[play][1])
        agent_again.learn((20 - play) * env.num_envs, reset_num_timesteps=False)
        assert same(env.state_dict(), env_again.state_dict()) and same(agent.state_dict(), agent_again.state_dict())


@pytest.mark.parametrize("method", ["astra", "taro"])
@pytest.mark.parametrize("kind", [TorchViewEnv, TorchBatchEnv])
def test_an_assessment_is_a_reward_and_leaves_the_world_as_it_was(
    tiny: dict[str, Any], kind: type[TorchViewEnv | TorchBatchEnv], method: str
) -> None:
    """TARO attacks in train mode, where batch norm's statistics follow."""
    more = {"projector": "simsiam-2", "method_kwargs": {"predictor_hidden": 8}} if method == "taro" else {}
    env, twin = (kind(AttackEngine(WorldSettings(**tiny, method=method, **more), seed=3)) for _ in range(2))
    env.observe(), twin.observe()
    actions = torch.as_tensor(np.stack([env.action_space.sample() for _ in range(env.num_envs)]))
    reward = env.assess(actions)
    assert reward is not None and reward.shape == (env.num_envs,) and reward.isfinite().all()
    before, after = twin.state_dict(), env.state_dict()
    for name, value in before["learner"]["network"].items():
        assert torch.equal(value, after["learner"]["network"][name])
    assert torch.equal(env.play(actions).reward, twin.play(actions).reward)
    with pytest.raises(ValueError, match="actions have shape"):
        env.assess(actions[:0])


@pytest.mark.parametrize(
    "more",
    [{"reward_progress": 1.0}, {"reward_lookahead": 1.0, "lookahead_images": 2}, {"method": "simclr"}],
)
def test_what_only_an_update_shows_is_not_assessed(tiny: dict[str, Any], more: dict[str, Any]) -> None:
    env = TorchViewEnv(AttackEngine(WorldSettings(**(tiny | more)), seed=3))
    actions = torch.as_tensor(np.stack([env.action_space.sample() for _ in range(env.num_envs)]))
    assert env.assess(actions) is None
