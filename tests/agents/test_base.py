"""The interface of our agents: every shell gives the same result, SB3's callbacks work, errors are clear."""

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback, EveryNTimesteps
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import DummyVecEnv

from astra_gym.agents import REINFORCE, RandomAgent, as_torch_env, storage
from astra_gym.agents.adapters import HeldObservation
from astra_gym.agents.reinforce import ReinforceSettings

LONG = ReinforceSettings(gamma=0.9, n_steps=4)


def weights(agent: Any) -> torch.Tensor:
    return torch.cat([weight.detach().flatten() for weight in agent.policy.parameters()])


@pytest.mark.parametrize("actions", ["factored", "flat", "continuous"])
def test_same_result_through_every_vector_shell(world: Any, shells: Any, actions: str) -> None:
    results = []
    for shell in ("torch", "vec_env", "vector_env"):
        env = world(actions, num_envs=8, horizon=3)
        agent = REINFORCE(shells[shell](env), LONG, seed=5).learn(8 * 12)
        results.append((weights(agent), env.observe()))
    for result in results[1:]:
        assert torch.equal(result[0], results[0][0]) and torch.equal(result[1], results[0][1])


@pytest.mark.parametrize("actions", ["factored", "flat", "continuous"])
def test_same_result_through_every_shell_of_one_environment(world: Any, shells: Any, actions: str) -> None:
    results = [
        weights(REINFORCE(wrap(world(actions, num_envs=1, horizon=3)), LONG, seed=5).learn(12))
        for wrap in (*shells.values(), lambda it: DummyVecEnv([lambda: shells["env"](it)]))
    ]
    assert all(torch.equal(result, results[0]) for result in results[1:])


def test_gymnasium_s_own_vector_environments_are_taken() -> None:
    def make(mode: AutoresetMode) -> Any:
        return gymnasium.make_vec("CartPole-v1", 3, vectorization_mode="sync", vector_kwargs={"autoreset_mode": mode})

    seen = []
    for mode in AutoresetMode:
        env = as_torch_env(make(mode))
        env.env.seed(3)
        env.observe()
        dones = [env.play(torch.zeros(3, dtype=torch.int64)).done for _ in range(30)]
        seen.append(torch.stack(dones))
        assert RandomAgent(make(mode)).learn(3 * 20).num_timesteps == 60
    assert seen[0].any() and torch.equal(seen[0], seen[1]) and torch.equal(seen[0], seen[2])


def test_anything_else_is_refused() -> None:
    with pytest.raises(ValueError, match="env is a int"):
        as_torch_env(3)


def test_observation_is_copied_from_an_environment_that_reuses_its_memory(world: Any, shells: Any) -> None:
    class Reusing(shells["vec_env"]):
        memory = np.zeros((8, 6), np.float32)

        def step_wait(self) -> Any:
            observation, *others = super().step_wait()
            self.memory[:] = observation
            return (self.memory, *others)

    plain = REINFORCE(shells["vec_env"](world(num_envs=8)), LONG).learn(8 * 8)
    reusing = REINFORCE(Reusing(world(num_envs=8)), LONG).learn(8 * 8)
    assert torch.equal(weights(plain), weights(reusing))


class Watch(BaseCallback):
    """Writes down what is called, and with which state of the agent."""

    def __init__(self, stop_after: int | None = None, raise_at: int | None = None) -> None:
        super().__init__()
        self.calls: list[str] = []
        self.stop_after, self.raise_at = stop_after, raise_at
        self.pending: list[int] = []
        self.boundaries = 0

    def _on_training_start(self) -> None:
        self.calls.append("training_start")

    def _on_rollout_start(self) -> None:
        self.calls.append("rollout_start")
        self.pending.append(len(self.model._rollout))  # type: ignore[attr-defined]
        self.boundaries += 1
        if self.boundaries == self.raise_at:
            raise KeyboardInterrupt

    def _on_step(self) -> bool:
        self.calls.append("step")
        assert {"actions", "rewards", "dones", "infos"} <= set(self.locals)
        assert self.locals["rewards"].shape == (self.training_env.num_envs,) == (len(self.locals["infos"]),)
        return self.n_calls != self.stop_after

    def _on_rollout_end(self) -> None:
        self.calls.append("rollout_end")

    def _on_training_end(self) -> None:
        self.calls.append("training_end")


def test_callbacks_are_called_in_stable_baselines_order(world: Any) -> None:
    watch = Watch()
    REINFORCE(world(num_envs=2), ReinforceSettings(n_steps=2)).learn(8, callback=[watch])
    rollout = ["rollout_start", "step", "step", "rollout_end"]
    assert watch.calls == ["training_start", *rollout, *rollout, "training_end"]
    assert watch.pending == [0, 0]


def test_on_step_false_stops_and_going_on_equals_not_having_stopped(world: Any) -> None:
    straight = REINFORCE(world(num_envs=2), LONG).learn(2 * 12)
    agent = REINFORCE(world(num_envs=2), LONG).learn(2 * 12, callback=Watch(stop_after=4))
    assert agent.num_timesteps == 8
    agent.learn(2 * 8, reset_num_timesteps=False)
    assert torch.equal(weights(agent), weights(straight))


def test_an_exception_at_a_boundary_propagates_and_leaves_a_consistent_agent(world: Any) -> None:
    straight = REINFORCE(world(num_envs=2), LONG).learn(2 * 12)
    agent = REINFORCE(world(num_envs=2), LONG)
    with pytest.raises(KeyboardInterrupt):
        agent.learn(2 * 12, callback=Watch(raise_at=3))
    assert agent.num_timesteps == 2 * 8
    agent.learn(2 * 4, reset_num_timesteps=False)
    assert torch.equal(weights(agent), weights(straight))


def test_stable_baselines_own_callbacks_work(world: Any, tmp_path: Path) -> None:
    seen: list[int] = []

    class Note(BaseCallback):
        def _on_step(self) -> bool:
            seen.append(self.num_timesteps)
            return True

    agent = REINFORCE(world(num_envs=4))
    checkpoint = CheckpointCallback(2, str(tmp_path), "agent")
    agent.learn(24, callback=[checkpoint, EveryNTimesteps(8, Note())])
    assert seen == [8, 16, 24]
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"agent_{n}_steps.zip" for n in (16, 24, 8)]
    assert REINFORCE.load(tmp_path / "agent_16_steps.zip").num_timesteps == 16


def test_a_plain_function_is_a_callback(world: Any) -> None:
    rewards: list[float] = []
    REINFORCE(world(num_envs=4)).learn(12, callback=lambda local, _: rewards.append(local["rewards"].mean()) or True)
    assert len(rewards) == 3


@pytest.mark.parametrize("played", [1, 5, 6])
def test_saved_inside_a_rollout_resumes_exactly(world: Any, tmp_path: Path, played: int) -> None:
    straight = REINFORCE(world(num_envs=2), LONG).learn(2 * 12)
    env = world(num_envs=2)
    REINFORCE(env, LONG).learn(2 * played).save(tmp_path / "agent")
    agent = REINFORCE.load(tmp_path / "agent", env).learn(2 * (12 - played), reset_num_timesteps=False)
    assert torch.equal(weights(agent), weights(straight))


def test_resuming_behind_an_adapter_does_not_reset_the_environment(world: Any, shells: Any, tmp_path: Path) -> None:
    env = shells["vec_env"](world(num_envs=2))
    REINFORCE(env).learn(2 * 3).save(tmp_path / "agent")
    REINFORCE.load(tmp_path / "agent", env, force_reset=False).learn(2, reset_num_timesteps=False)
    assert env.resets == 1
    REINFORCE.load(tmp_path / "agent", env).learn(2, reset_num_timesteps=False)
    assert env.resets == 2


def test_state_dict_is_a_copy(world: Any) -> None:
    agent = REINFORCE(world(num_envs=2))
    state = agent.state_dict()
    before = state["learner"]["policy"]["head.weight"].clone()
    agent.learn(2 * 4)
    assert torch.equal(state["learner"]["policy"]["head.weight"], before)
    assert not torch.equal(agent.policy.head.weight, before)


def test_prediction_between_plays_does_not_move_the_training(world: Any) -> None:
    straight = REINFORCE(world(num_envs=2)).learn(2 * 6)
    agent = REINFORCE(world(num_envs=2)).learn(2 * 3)
    agent.predict(np.zeros((5, 6), np.float32))
    agent.learn(2 * 3, reset_num_timesteps=False)
    assert torch.equal(weights(agent), weights(straight))


def test_predict_checks_what_it_is_given(world: Any) -> None:
    agent, seeing = REINFORCE(world()), REINFORCE(world(image=True))
    state = (np.zeros(2),)
    action, same = agent.predict(np.zeros(6, np.float32), state=state, deterministic=True)
    assert action.shape == (3,) and action.dtype == np.int64 and same is state
    assert agent.predict(np.zeros((7, 6), np.float32))[0].shape == (7, 3)
    assert seeing.predict(np.zeros((3, 8, 8), np.uint8))[0].shape == (3,)
    with pytest.raises(ValueError, match=r"shape \(5,\): expected \(6,\)"):
        agent.predict(np.zeros(5, np.float32))
    with pytest.raises(ValueError, match="dtype int64"):
        agent.predict(np.zeros(6, np.int64))
    with pytest.raises(ValueError, match="dtype float32: expected uint8"):
        seeing.predict(np.zeros((3, 8, 8), np.float32))
    with pytest.raises(ValueError, match="not finite"):
        agent.predict(np.full(6, np.nan, np.float32))


def test_box_actions_are_clipped_when_sent_and_predicted(world: Any) -> None:
    agent = REINFORCE(world("continuous"), ReinforceSettings(log_std=3.0))
    sent: list[torch.Tensor] = []
    agent.learn(64, callback=lambda local, _: sent.append(local["actions"]) or True)
    assert sent[0].abs().max() == 1
    assert np.abs(agent.predict(np.zeros((100, 6), np.float32))[0]).max() == 1


def test_a_reward_that_is_not_finite_stops(world: Any) -> None:
    env = world(num_envs=4)
    env.reward = lambda actions: torch.tensor([0.0, float("nan"), 1.0, float("inf")])
    with pytest.raises(ValueError, match="reward is not finite in 2 of 4"):
        REINFORCE(env).learn(4)


def test_environments_that_do_not_fit_are_refused(world: Any) -> None:
    agent = REINFORCE(world(num_envs=4))
    with pytest.raises(ValueError, match="action_space"):
        agent.set_env(world("flat", num_envs=4))
    with pytest.raises(ValueError, match="observation_space"):
        agent.set_env(world(image=True, num_envs=4))
    with pytest.raises(ValueError, match="5 sub-environments: expected 4"):
        agent.set_env(world(num_envs=5))


def test_an_agent_without_environment_predicts_but_does_not_learn(world: Any, tmp_path: Path) -> None:
    REINFORCE(world(num_envs=4)).save(tmp_path / "agent")
    agent = REINFORCE.load(tmp_path / "agent")
    assert agent.get_env() is None
    assert agent.predict(np.zeros(6, np.float32))[0].shape == (3,)
    with pytest.raises(ValueError, match="no environment"):
        agent.learn(4)


def test_log_interval_and_logger(world: Any) -> None:
    class Steps(Logger):
        dumped: list[int]

        def dump(self, step: int = 0) -> None:
            self.dumped.append(step)

    agent = REINFORCE(world(num_envs=2))
    logger = Steps(None, [])
    logger.dumped = []
    agent.set_logger(logger)
    agent.learn(12, log_interval=3)
    assert logger.dumped == [6, 12] and agent.logger is logger


def test_tensorboard_log_writes_under_the_run_s_name(world: Any, tmp_path: Path) -> None:
    REINFORCE(world(num_envs=2), tensorboard_log=tmp_path).learn(4, tb_log_name="mine")
    assert len(list((tmp_path / "mine_1").glob("events.*"))) == 1


def test_set_random_seed_starts_the_streams_anew(world: Any) -> None:
    agent = RandomAgent(world(), seed=1)
    first = agent.predict(np.zeros((9, 6), np.float32))[0]
    assert not np.array_equal(agent.predict(np.zeros((9, 6), np.float32))[0], first)
    agent.set_random_seed(1)
    assert np.array_equal(agent.predict(np.zeros((9, 6), np.float32))[0], first)


@pytest.mark.parametrize("shell", ["torch", "vec_env", "vector_env"])
def test_an_observation_that_is_not_finite_stops_before_anything_is_chosen(world: Any, shells: Any, shell: str) -> None:
    env = world(num_envs=4)
    agent = REINFORCE(shells[shell](env)).learn(4 * 2)
    before, plays = weights(agent), env.plays
    env.current[1, 2] = float("nan")
    if isinstance(agent._env, HeldObservation):
        agent._env.observation = env.current.clone()
    with pytest.raises(ValueError, match="the environment's observation is not finite after 8 steps"):
        agent.learn(4, reset_num_timesteps=False)
    assert torch.equal(weights(agent), before) and env.plays == plays


def test_an_update_that_is_not_finite_stops(world: Any) -> None:
    agent = REINFORCE(world(num_envs=4)).learn(4)
    with torch.no_grad():
        agent.policy.head.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match="update 2 of the policy is not finite"):
        agent.learn(4, reset_num_timesteps=False)


def test_an_agent_that_is_not_finite_is_neither_written_nor_read(world: Any, tmp_path: Path) -> None:
    agent, path = REINFORCE(world(num_envs=4)).learn(4), tmp_path / "agent.zip"
    agent.save(path)
    good, saved = path.read_bytes(), storage.read(path)
    with torch.no_grad():
        agent.policy.head.bias[1] = float("inf")
    with pytest.raises(ValueError, match=r"not finite \(learner/policy/head.bias\): take an earlier file"):
        agent.save(path)
    assert path.read_bytes() == good
    saved["state"]["learner"]["baseline"] = float("nan")
    storage.write(path, "reinforce", {name: saved[name] for name in saved if name not in ("format", "schema", "kind")})
    with pytest.raises(ValueError, match=r"agent\.zip: the agent's numbers are not finite \(learner/baseline\)"):
        REINFORCE.load(path)
