"""Stable-Baselines3's algorithms: plans met exactly, resuming bit for bit, settings, images."""

import random
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.noise import OrnsteinUhlenbeckActionNoise
from stable_baselines3.common.vec_env import VecMonitor

from astra_gym.agents import AGENTS, Sb3Agent, storage
from astra_gym.agents.policies import Sb3ImageExtractor
from astra_gym.agents.sb3.algorithms import ALGORITHMS, make_sb3, seed_globals
from astra_gym.agents.sb3.settings import BATCH, REPLAY_BYTES, VIEWS, replay_size, rollout_length
from astra_gym.agents.sb3.state import load_sb3_state, sb3_state

NAMES = ["ppo", "a2c", "trpo"]
OFF_POLICY = [name for name in ALGORITHMS if name not in NAMES]


def own(name: str) -> str:
    return AGENTS[name].actions


def difference(one: Any, other: Any, path: str = "state") -> str:
    """Where two states differ, or nothing."""
    if isinstance(one, dict) and isinstance(other, dict):
        if one.keys() != other.keys():
            return f"{path}: {one.keys() ^ other.keys()}"
        return next(filter(None, (difference(one[key], other[key], f"{path}.{key}") for key in one)), "")
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        if len(one) != len(other):
            return path
        pairs = enumerate(zip(one, other, strict=True))
        return next(filter(None, (difference(*pair, f"{path}[{index}]") for index, pair in pairs)), "")
    equal = torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other
    return "" if equal and type(one) is type(other) else path


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


EVERY_RESUMED = [
    (name, actions, num_envs, 3) for name in NAMES for actions in ("factored", "continuous") for num_envs in (2, 32)
]
EVERY_RESUMED += [(name, own(name), 2, 9) for name in OFF_POLICY]
EVERY_RESUMED += [(name, own(name), 32, 8) for name in ("dqn", "td3", "sac")]
RESUMED = [
    # a rollout, and a replay buffer that is full; the others' states are compared in test_registry.py
    pytest.param(*case, marks=() if case[0] in ("ppo", "dqn", "sac") and case[2] == 2 else pytest.mark.every_agent)
    for case in EVERY_RESUMED
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "actions", "num_envs", "boundary"), RESUMED)
def test_killed_and_resumed_equals_uninterrupted(
    world: Any, shells: Any, tmp_path: Any, name: str, actions: str, num_envs: int, boundary: int
) -> None:
    """With a schedule over the remaining progress, monitored episodes, and generators spoilt in between."""
    plays = boundary + 3 if name in OFF_POLICY else 40 if num_envs == 2 else 8
    overrides: dict[str, Any] = {"learning_rate": falling}
    if name in OFF_POLICY:
        # the buffer is full, and written over, by then
        overrides |= {"buffer_size": (boundary - 3) * num_envs, "warm_up": 3}
    arguments: dict[str, Any] = {"planned_plays": plays, "gamma": 0.9, "seed": 3, "overrides": overrides}
    env = world(actions, num_envs=num_envs, horizon=3)
    straight = Sb3Agent(name, VecMonitor(shells["vec_env"](env)), **arguments)
    straight.learn(plays * num_envs)
    final = env.observe()

    env = world(actions, num_envs=num_envs, horizon=3)
    killed = Sb3Agent(name, shells["vec_env"](env), **arguments)
    interrupt = Interrupt(killed, boundary)
    with pytest.raises(KeyboardInterrupt):
        killed.learn(plays * num_envs, callback=[interrupt])
    torch.save({"agent": interrupt.state, "world": env.state_dict()}, tmp_path / "state")
    done = killed.num_timesteps
    assert 0 < done < plays * num_envs and killed.model._n_updates > 0

    seed_globals(77)
    saved = torch.load(tmp_path / "state", weights_only=True)
    env = world(actions, num_envs=num_envs, horizon=3)
    shell = shells["vec_env"](env)
    resumed = Sb3Agent(name, shell, **arguments)
    env.load_state_dict(saved["world"])
    resumed.load_state_dict(saved["agent"])
    assert not difference(resumed.state_dict(), saved["agent"])
    resumed.learn(plays * num_envs - done, reset_num_timesteps=False)
    assert shell.resets == 0
    assert torch.equal(env.observe(), final)
    assert resumed.num_timesteps == straight.num_timesteps == plays * num_envs
    assert resumed.model._current_progress_remaining == straight.model._current_progress_remaining == 0
    states = [{**agent.state_dict(), "episodes": None} for agent in (resumed, straight)]
    assert not difference(*states)


@pytest.mark.parametrize("name", OFF_POLICY)
def test_the_filled_part_of_the_replay_buffer_is_saved_and_no_more(world: Any, shells: Any, name: str) -> None:
    agent = Sb3Agent(name, shells["vec_env"](world(own(name), num_envs=4)), planned_plays=50, gamma=0.0)
    agent.learn(4 * 6)
    replay = agent.state_dict()["replay"]
    buffer = agent.model.replay_buffer  # type: ignore[attr-defined]
    assert buffer.buffer_size == 50 and replay["values"]["pos"] == 6
    assert {len(rows) for rows in replay["arrays"].values()} == {6}
    for key, rows in replay["arrays"].items():
        assert np.array_equal(rows.numpy(), getattr(buffer, key)[:6]) and rows.untyped_storage().nbytes() == rows.nbytes
        rows.zero_()
    assert buffer.rewards[:6].any(), "the state is not a copy"
    smaller = Sb3Agent(name, shells["vec_env"](world(own(name), num_envs=4)), planned_plays=20, gamma=0.0)
    with pytest.raises(ValueError, match="a replay buffer of 50 plays, and this one has 20"):
        smaller.load_state_dict(agent.state_dict())


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


@pytest.mark.slow
@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize(
    ("num_envs", "plays"),
    [
        (3, 20),
        *(pytest.param(*pair, marks=pytest.mark.every_agent) for pair in ((1, 1), (1, 23), (2, 3), (32, 7))),
    ],
)
def test_exactly_the_planned_plays_are_made(world: Any, shells: Any, name: str, num_envs: int, plays: int) -> None:
    env = world(own(name), num_envs=num_envs, horizon=4)
    agent = Sb3Agent(name, shells["vec_env"](env), planned_plays=plays, gamma=0.9, seed=0)
    agent.learn(plays * num_envs)
    assert env.plays == plays and agent.num_timesteps == plays * num_envs
    assert np.array_equal(agent.model._last_obs, env.observe().numpy())  # type: ignore[arg-type]


@pytest.mark.parametrize(("train_freq", "plays"), [(4, 8), (4, 10), ((1, "episode"), 8), ((2, "episode"), 9)])
def test_exactly_the_planned_plays_are_made_in_rollouts_of_any_length(
    world: Any, shells: Any, train_freq: Any, plays: int
) -> None:
    env = world("flat", num_envs=1, horizon=4)
    overrides = {"train_freq": train_freq, "warm_up": 0}
    agent = Sb3Agent("dqn", shells["vec_env"](env), planned_plays=plays, gamma=0.9, overrides=overrides)
    agent.learn(plays)
    assert env.plays == plays and agent.num_timesteps == plays
    assert agent.model._n_updates == VIEWS["dqn"]["gradient_steps"] * (2 if train_freq in (4, (1, "episode")) else 1)
    assert np.array_equal(agent.model._last_obs, env.observe().numpy())  # type: ignore[arg-type]


def test_the_table_is_what_the_algorithms_are_made_with(world: Any, shells: Any) -> None:
    assert VIEWS.keys() == BATCH.keys() == {*ALGORITHMS, "on-policy", "off-policy"}
    flat = shells["vec_env"](world("flat", num_envs=128))
    dqn: Any = make_sb3("dqn", flat, planned_plays=300, gamma=0.0, seed=0, overrides={"warm_up": 7})
    assert (dqn.learning_starts, dqn.buffer_size) == (7 * 128, 300 * 128)
    assert dqn.target_update_interval == VIEWS["dqn"]["target_plays"] * 128
    assert dqn.gradient_steps == VIEWS["dqn"]["gradient_steps"] and dqn.gamma == 0
    one = shells["vec_env"](world("continuous", num_envs=1))
    given = {"action_noise_std": 0.1, "learning_starts": 2}
    td3: Any = make_sb3("td3", one, planned_plays=10, gamma=0.9, seed=0, overrides=given)
    assert td3.learning_starts == 2 and td3.batch_size == BATCH["td3"]["batch_size"] and td3.gamma == 0.9
    np.testing.assert_array_equal(td3.action_noise._sigma, [0.1] * 3)
    shell = shells["vec_env"](world(num_envs=1))
    ppo: Any = make_sb3("ppo", shell, planned_plays=30, gamma=0.9, seed=0, overrides={"n_steps": 6})
    assert (ppo.n_steps, ppo.batch_size) == (6, 6)


def test_a_replay_buffer_holds_the_plan_or_a_gibibyte(world: Any, shells: Any) -> None:
    env = shells["vec_env"](world("continuous", num_envs=64, image=True))
    assert replay_size(env, 500) == 500 * 64
    plays = REPLAY_BYTES // (64 * (2 * 3 * 8 * 8 + 3 * 4 + 3 * 4))
    assert replay_size(env, 10**9) == plays * 64
    model: Any = make_sb3("sac", env, planned_plays=10, gamma=0.0, seed=0)
    buffer = model.replay_buffer
    arrays = [value for value in vars(buffer).values() if isinstance(value, np.ndarray)]
    assert sum(array.nbytes for array in arrays) == 10 * 64 * (2 * 3 * 8 * 8 + 3 * 4 + 3 * 4)


def test_rollouts_divide_the_plan_where_they_can() -> None:
    assert rollout_length(220, 10, 4, 32) == 10
    assert rollout_length(77, 10, 4, 32) == 11
    assert rollout_length(223, 10, 4, 32) == 10
    assert rollout_length(3, 10, 4, 32) == 3


@pytest.mark.parametrize("name", ["ppo", "a2c", "trpo", "dqn", "sac", "crossq"])
def test_images_go_to_our_extractor_channel_first_and_scaled(world: Any, shells: Any, name: str) -> None:
    shell = shells["vec_env"](world(own(name), image=True, num_envs=16))
    agent = Sb3Agent(name, shell, planned_plays=2, gamma=0.0, seed=0)
    assert agent.get_env() is shell, "Stable-Baselines3 has wrapped the environment"
    seen: list[torch.Tensor] = []
    for module in agent.policy.modules():
        if isinstance(module, Sb3ImageExtractor):
            module.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    agent.learn(32)
    assert seen[0].shape[1:] == (3, 8, 8)
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


@pytest.mark.parametrize("name", OFF_POLICY)
def test_off_policy_figures_are_written_once_a_play(world: Any, shells: Any, name: str) -> None:
    """Not once for each of the episodes that end in it."""
    env = shells["vec_env"](world(own(name), num_envs=32))
    agent = Sb3Agent(name, env, planned_plays=6, gamma=0.0, seed=0)
    written: list[tuple[int, bool, bool]] = []
    dump = agent.logger.dump

    def watch(step: int = 0) -> None:
        names = agent.logger.name_to_value
        written.append((step, "rollout/reward_mean" in names, any(name.startswith("train/") for name in names)))
        dump(step)

    agent.logger.dump = watch  # type: ignore[method-assign]
    agent.learn(32 * 6)
    assert written == [(32 * play, True, play > 3) for play in range(1, 7)]


def test_what_could_not_be_resumed_is_refused_at_once(world: Any, shells: Any) -> None:
    def make(**overrides: Any) -> Any:
        return make_sb3("td3", env, planned_plays=10, gamma=0.0, seed=0, overrides=overrides)

    env = shells["vec_env"](world("continuous"))
    wandering = OrnsteinUhlenbeckActionNoise(np.zeros(3), np.ones(3))
    with pytest.raises(ValueError, match="action_noise is a OrnsteinUhlenbeckActionNoise"):
        make(action_noise=wandering)
    with pytest.raises(ValueError, match="use_sde"):
        make_sb3("sac", env, planned_plays=10, gamma=0.0, seed=0, overrides={"use_sde": True})
    with pytest.raises(ValueError, match=r"dqn cannot be made: .*Discrete"):
        make_sb3("dqn", env, planned_plays=10, gamma=0.0, seed=0)


def test_bad_input(world: Any, shells: Any, tmp_path: Any) -> None:
    with pytest.raises(ValueError, match="did you mean 'ppo'"):
        make_sb3("pppo", shells["vec_env"](world()), planned_plays=1, gamma=0.0, seed=0)
    with pytest.raises(ValueError, match="needs a Stable-Baselines3 VecEnv"):
        make_sb3("ppo", world(), planned_plays=1, gamma=0.0, seed=0)
    with pytest.raises(ValueError, match="planned_plays is 0"):
        make_sb3("ppo", shells["vec_env"](world()), planned_plays=0, gamma=0.0, seed=0)
    given = {"learning_rate": falling}
    agent = Sb3Agent("ppo", shells["vec_env"](world()), planned_plays=1, gamma=0.0, overrides=given)
    with pytest.raises(ValueError, match=r"learning_rate is .* a function cannot be saved"):
        agent.save(tmp_path / "agent")
    other = Sb3Agent("a2c", shells["vec_env"](world("flat")), planned_plays=1, gamma=0.0)
    with pytest.raises(ValueError, match="'a2c' agent's: expected 'ppo'"):
        agent.load_state_dict(other.state_dict())
    flat = Sb3Agent("ppo", shells["vec_env"](world("flat")), planned_plays=1, gamma=0.0)
    with pytest.raises(ValueError, match="does not fit this PPO"):
        agent.load_state_dict(flat.state_dict())


BAD = [float("nan"), float("inf")]


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("name", ["a2c", "ppo", "dqn", "sac"])
@pytest.mark.parametrize("what", ["reward", "observation"])
def test_what_an_environment_gives_has_to_be_finite(
    world: Any, shells: Any, what: str, name: str, value: float
) -> None:
    class Broken(shells["vec_env"]):
        def step_wait(self) -> Any:
            observation, reward, *others = super().step_wait()
            (reward if what == "reward" else observation)[1] = value
            return (observation, reward, *others)

    agent = Sb3Agent(name, Broken(world(own(name), num_envs=4)), planned_plays=3, gamma=0.0)
    with pytest.raises(ValueError, match=f"the environment's {what} is not finite after 4 steps"):
        agent.learn(12)


def test_an_agent_that_is_not_finite_is_neither_written_nor_read_nor_asked(
    world: Any, shells: Any, tmp_path: Any
) -> None:
    agent = Sb3Agent("sac", shells["vec_env"](world("continuous", num_envs=4)), planned_plays=3, gamma=0.0).learn(12)
    path = tmp_path / "agent.zip"
    agent.save(path)
    good, saved = path.read_bytes(), storage.read(path)
    with pytest.raises(ValueError, match="the observation is not finite"):
        agent.predict(np.full((4, 6), np.nan, np.float32))
    # the entropy's coefficient is in no state dict
    agent.model.log_ent_coef.data.fill_(float("nan"))
    with pytest.raises(ValueError, match=r"not finite \(log_ent_coef\): take an earlier file"):
        agent.save(path)
    assert path.read_bytes() == good
    state = saved["state"]["parameters"]["actor.optimizer"]["state"]
    state[0]["exp_avg_sq"].fill_(float("inf"))
    storage.write(path, "sac", {name: saved[name] for name in saved if name not in ("format", "schema", "kind")})
    with pytest.raises(ValueError, match=r"not finite \(parameters/actor.optimizer/state/0/exp_avg_sq\)"):
        Sb3Agent.load(path)


def test_a_vector_environment_of_gymnasium_is_taken_too(world: Any, shells: Any) -> None:
    states = []
    for shell in ("vec_env", "vector_env"):
        agent = Sb3Agent("ppo", shells[shell](world(num_envs=8)), planned_plays=4, gamma=0.0, seed=1, device="cpu")
        states.append(agent.learn(8 * 4).state_dict()["parameters"])
    assert not difference(*states)
