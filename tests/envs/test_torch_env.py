"""The engine as a vector environment in torch: what is assessed leaves the world as it is."""

import copy
from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from torch import nn

from astra_gym.agents.controls import FixedAgent
from astra_gym.agents.reinforce import REINFORCE, SETTINGS
from astra_gym.envs.engine import AttackEngine
from astra_gym.envs.sb3_env import Sb3ViewVecEnv
from astra_gym.envs.torch_env import TorchBatchEnv, TorchViewEnv
from astra_gym.envs.world_config import WorldSettings
from tests.helpers.states import same

PAPER = replace(SETTINGS["reinforce-paper"], width=2)


def pair(tiny: dict[str, Any]) -> tuple[TorchViewEnv, REINFORCE]:
    settings = WorldSettings.of(**(tiny | {"epochs": 7, "reward_scope": "batch"}))
    env = TorchViewEnv(AttackEngine(settings, seed=3), observation="image")
    return env, REINFORCE(env, PAPER, planned_plays=21, seed=3)


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize("kind", [TorchViewEnv, pytest.param(TorchBatchEnv, marks=pytest.mark.every_agent)])
def test_without_drop_last_the_last_batch_is_trained_on_as_it_is(
    tiny: dict[str, Any], kind: type[TorchViewEnv | TorchBatchEnv]
) -> None:
    def make() -> tuple[TorchViewEnv | TorchBatchEnv, FixedAgent]:
        env = kind(AttackEngine(WorldSettings.of(**tiny, method="acl", drop_last=False), seed=3))
        return env, FixedAgent(env, env.table.encode(env.engine.method.budget_at(0)))

    env, agent = make()
    views, losses, kept = [], [], {}

    def note(local: Any, _: Any) -> bool:
        record = env.engine.last
        views.append(len(record.views))
        losses.append(record.losses["clean"])
        kept[record.step] = copy.deepcopy((env.state_dict(), agent.state_dict()))
        return True

    @torch.no_grad()
    def clean_loss() -> float:
        """NT-Xent of all views in train mode, before the update: the positive among all others but oneself."""
        learner = copy.deepcopy(env.engine.learner)
        learner.network.train()
        z = nn.functional.normalize(learner.network(env.engine.views, "normal").embeddings, dim=1)
        scores = (z @ z.T / 0.5).masked_fill(torch.eye(len(z), dtype=torch.bool), -torch.inf)
        return float(nn.functional.cross_entropy(scores, torch.arange(len(z)) ^ 1))

    # 14 images in batches of 4
    assert (env.engine.steps_per_epoch, env.engine.planned_updates) == (4, 12)
    agent.learn(3 * agent.n_envs, callback=note)
    expected = clean_loss()
    agent.learn(9 * agent.n_envs, callback=note, reset_num_timesteps=False)
    assert views == [8, 8, 8, 4] * 3
    assert losses[3] == pytest.approx(expected, rel=1e-5)
    for step in (3, 4, 7):
        env_again, agent_again = make()
        env_again.load_state_dict(kept[step][0])
        agent_again.load_state_dict(kept[step][1])
        agent_again.learn((12 - step) * agent.n_envs, reset_num_timesteps=False)
        assert same(env.state_dict(), env_again.state_dict()) and same(agent.state_dict(), agent_again.state_dict())


def test_what_was_tried_and_what_is_watched_belong_to_a_state(tiny: dict[str, Any]) -> None:
    env, twin = (TorchViewEnv(AttackEngine(WorldSettings.of(**tiny), seed=3)) for _ in range(2))
    actions = torch.as_tensor(np.stack([env.action_space.sample() for _ in range(env.num_envs)]))
    env.assess(actions)
    state = copy.deepcopy(env.state_dict())
    twin.load_state_dict(copy.deepcopy(state))
    for each in (env, twin):
        each.play(actions)
    assert env.engine.last.other_steps == twin.engine.last.other_steps > 0
    # of an attack that went wrong before, nothing is left
    env.engine.learner.watched_gradients().fill_(torch.nan)
    env.load_state_dict(state)
    env.play(actions)


@pytest.mark.parametrize("kind", [gymnasium.make_vec, Sb3ViewVecEnv])
def test_an_environment_of_views_refuses_batches_of_two_sizes(tiny: dict[str, Any], kind: Any) -> None:
    first = ("ASTrA/ViewAttack-v1",) if kind is gymnasium.make_vec else ()
    with pytest.raises(ValueError, match=r"drop_last is false.*take the batch environment"):
        kind(*first, **tiny, drop_last=False)


@pytest.mark.parametrize("method", ["astra", "taro"])
@pytest.mark.parametrize("kind", [TorchViewEnv, TorchBatchEnv])
def test_an_assessment_is_a_reward_and_leaves_the_world_as_it_was(
    tiny: dict[str, Any], kind: type[TorchViewEnv | TorchBatchEnv], method: str
) -> None:
    """TARO attacks in train mode, where batch norm's statistics follow."""
    more = {"projector": "simsiam-2", "method_kwargs": {"predictor_hidden": 8}} if method == "taro" else {}
    env, twin = (kind(AttackEngine(WorldSettings.of(**tiny, method=method, **more), seed=3)) for _ in range(2))
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
    env = TorchViewEnv(AttackEngine(WorldSettings.of(**(tiny | more)), seed=3))
    actions = torch.as_tensor(np.stack([env.action_space.sample() for _ in range(env.num_envs)]))
    assert env.assess(actions) is None
