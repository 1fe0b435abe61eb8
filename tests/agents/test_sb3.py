"""PPO and A2C: plans met exactly, resuming bit for bit, images."""

import random
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecMonitor

from agents import Sb3Agent
from agents.sb3 import load_sb3_state, make_sb3, rollout_length, sb3_state, seed_globals

NAMES = ["ppo", "a2c"]


def weights(agent: Any) -> torch.Tensor:
    return torch.cat([weight.detach().flatten() for weight in agent.policy.parameters()])


def falling(progress_remaining: float) -> float:
    return 1e-2 * progress_remaining


class Interrupt(BaseCallback):
    """Keeps the state at a rollout boundary, as a checkpoint does, and stops the run there."""

    def __init__(self, agent: Sb3Agent, boundary: int) -> None:
        super().__init__()
        self.agent, self.boundary, self.count = agent, boundary, 0
        self.state: dict[str, Any] = {}

    def _on_rollout_start(self) -> None:
        self.count += 1
        if self.count == self.boundary:
            self.state = self.agent.state_dict()
            raise KeyboardInterrupt

    def _on_step(self) -> bool:
        return True


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("actions", ["factored", "continuous"])
@pytest.mark.parametrize("num_envs", [2, 32])
def test_killed_and_resumed_equals_uninterrupted(
    world: Any, shells: Any, tmp_path: Any, name: str, actions: str, num_envs: int
) -> None:
    """With a schedule over the remaining progress, monitored episodes, and generators spoilt in between."""
    arguments: dict[str, Any] = {"planned_plays": 40, "gamma": 0.9, "seed": 3, "learning_rate": falling}
    env = world(actions, num_envs=num_envs, horizon=3)
    straight = Sb3Agent(name, VecMonitor(shells["vec_env"](env)), **arguments)
    straight.learn(40 * num_envs)
    final = env.observe()

    env = world(actions, num_envs=num_envs, horizon=3)
    killed = Sb3Agent(name, shells["vec_env"](env), **arguments)
    interrupt = Interrupt(killed, 3)
    with pytest.raises(KeyboardInterrupt):
        killed.learn(40 * num_envs, callback=[interrupt])
    torch.save({"agent": interrupt.state, "world": env.state_dict()}, tmp_path / "state")
    done = killed.num_timesteps
    assert 0 < done < 40 * num_envs

    seed_globals(77)
    saved = torch.load(tmp_path / "state", weights_only=True)
    env = world(actions, num_envs=num_envs, horizon=3)
    shell = shells["vec_env"](env)
    resumed = Sb3Agent(name, shell, **arguments)
    env.load_state_dict(saved["world"])
    resumed.load_state_dict(saved["agent"])
    resumed.learn(40 * num_envs - done, reset_num_timesteps=False)
    assert shell.resets == 0
    assert torch.equal(weights(resumed), weights(straight)) and torch.equal(env.observe(), final)
    assert resumed.num_timesteps == straight.num_timesteps == 40 * num_envs
    assert resumed.model._n_updates == straight.model._n_updates
    assert resumed.model._current_progress_remaining == straight.model._current_progress_remaining == 0
    assert np.array_equal(resumed.model._last_obs, straight.model._last_obs)  # type: ignore[arg-type]


def test_state_holds_every_global_generator_and_the_episode_figures(world: Any, shells: Any) -> None:
    env = VecMonitor(shells["vec_env"](world(num_envs=2)))
    model = make_sb3("ppo", env, planned_plays=20, gamma=0.0, seed=0)
    model.learn(40)
    state = sb3_state(model)

    def draws() -> tuple[Any, ...]:
        return (
            random.random(),
            np.random.random(),
            np.random.normal(),
            float(torch.rand(())),
            model.action_space.sample().tolist(),
        )

    np.random.normal()
    state = sb3_state(model)
    expected = draws()
    buffer = list(model.ep_info_buffer or [])
    seed_globals(5, model.action_space)
    model.ep_info_buffer = None
    load_sb3_state(model, state)
    assert draws() == expected
    assert [entry["r"] for entry in model.ep_info_buffer] == pytest.approx([entry["r"] for entry in buffer])  # type: ignore[union-attr]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("num_envs", "plays"), [(1, 11), (1, 23), (2, 3), (3, 20), (32, 7)])
def test_exactly_the_planned_plays_are_made(world: Any, shells: Any, name: str, num_envs: int, plays: int) -> None:
    env = world(num_envs=num_envs, horizon=4)
    agent = Sb3Agent(name, shells["vec_env"](env), planned_plays=plays, gamma=0.9, seed=0)
    agent.learn(plays * num_envs)
    assert env.plays == plays and agent.num_timesteps == plays * num_envs
    assert np.array_equal(agent.model._last_obs, env.observe().numpy())  # type: ignore[arg-type]


def test_rollouts_divide_the_plan_where_they_can() -> None:
    assert rollout_length(220, 10, 4, 32) == 10
    assert rollout_length(77, 10, 4, 32) == 11
    assert rollout_length(223, 10, 4, 32) == 10
    assert rollout_length(3, 10, 4, 32) == 3


@pytest.mark.parametrize("name", NAMES)
def test_images_go_to_our_extractor_channel_first_and_scaled(world: Any, shells: Any, name: str) -> None:
    shell = shells["vec_env"](world(image=True, num_envs=16))
    agent = Sb3Agent(name, shell, planned_plays=2, gamma=0.0, seed=0)
    assert agent.get_env() is shell, "Stable-Baselines3 has wrapped the environment"
    seen: list[torch.Tensor] = []
    agent.model.policy.features_extractor.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    agent.learn(32)
    assert seen[0].shape == (16, 3, 8, 8)
    assert seen[0].min() >= 0 and 0.9 < seen[0].max() <= 1


def test_the_world_is_never_seeded(world: Any, shells: Any) -> None:
    class Unseedable(shells["vec_env"]):
        def seed(self, seed: int | None = None) -> Any:
            raise AssertionError("the environment was seeded")

    agent = Sb3Agent("ppo", Unseedable(world(num_envs=2)), planned_plays=10, gamma=0.0, seed=0)
    agent.set_random_seed(4)
    agent.learn(20)


def test_figures_are_written_at_the_boundary_after_the_update(world: Any, shells: Any) -> None:
    agent = Sb3Agent("ppo", shells["vec_env"](world(num_envs=32)), planned_plays=3, gamma=0.0, seed=0)
    written: list[tuple[int, bool, bool]] = []
    dump = agent.logger.dump

    def watch(step: int = 0) -> None:
        names = agent.logger.name_to_value
        written.append((step, "rollout/reward_mean" in names, "train/loss" in names))
        dump(step)

    agent.logger.dump = watch  # type: ignore[method-assign]
    agent.learn(96)
    assert written == [entry for step in (32, 64, 96) for entry in ((step, True, False), (step, False, True))]


def test_bad_input(world: Any, shells: Any, tmp_path: Any) -> None:
    with pytest.raises(ValueError, match="did you mean 'ppo'"):
        make_sb3("pppo", shells["vec_env"](world()), planned_plays=1, gamma=0.0, seed=0)
    with pytest.raises(ValueError, match="needs a Stable-Baselines3 VecEnv"):
        make_sb3("ppo", world(), planned_plays=1, gamma=0.0, seed=0)
    with pytest.raises(ValueError, match="planned_plays is 0"):
        make_sb3("ppo", shells["vec_env"](world()), planned_plays=0, gamma=0.0, seed=0)
    agent = Sb3Agent("ppo", shells["vec_env"](world()), planned_plays=1, gamma=0.0, learning_rate=falling)
    with pytest.raises(ValueError, match=r"learning_rate is .* a function cannot be saved"):
        agent.save(tmp_path / "agent")
    other = Sb3Agent("a2c", shells["vec_env"](world("flat")), planned_plays=1, gamma=0.0)
    with pytest.raises(ValueError, match="'a2c' agent's: expected 'ppo'"):
        agent.load_state_dict(other.state_dict())
    flat = Sb3Agent("ppo", shells["vec_env"](world("flat")), planned_plays=1, gamma=0.0)
    with pytest.raises(ValueError, match="does not fit this PPO"):
        agent.load_state_dict(flat.state_dict())
