"""All agents through their one factory: they learn, repeat, resume, and say what is wrong."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from astra_gym.agents import AGENTS, REINFORCE, RandomAgent, Sb3Agent, make_agent
from astra_gym.ssl_core.models import checkpoint

# those that need a world's reports are in test_rules.py
MADE = [name for name, entry in AGENTS.items() if name != "none" and not entry.reports]
CONSTANT = {"fixed", "fixed-max", "schedule", "delayed"}
FIXED = {"factored": [3, 2, 1], "flat": 52, "continuous": [0.0, 0.0, 0.0]}
# the others take all three
DISCRETE = {"bandit": ["factored", "flat"], "lints": ["factored", "flat"], "dqn": ["flat"], "qrdqn": ["flat"]}
ONLY = DISCRETE | {name: ["continuous"] for name in ("sac", "td3", "ddpg", "tqc", "crossq")}
ONLY |= {name: ["factored", "flat"] for name in ("bandit", "lints")}
TAKEN = [(name, actions) for name in MADE for actions in ONLY.get(name, list(FIXED))]


def make(name: str, env: Any, shells: Any, actions: str | None = None, **arguments: Any) -> Any:
    shell = shells["vec_env"](env) if AGENTS[name].vec_env else env
    action = FIXED[actions or env.actions]
    given = {"seed": 0, "device": "cpu", "gamma": 0.0, "planned_plays": 200}
    return make_agent(name, shell, **{**given, "fixed_action": action, "schedule_actions": [action] * 2, **arguments})


def state(agent: Any) -> Any:
    """All that is learnt, as plain values."""
    return plain(agent.state_dict()["parameters" if isinstance(agent, Sb3Agent) else "learner"])


def plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.tolist()
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    return [plain(each) for each in value] if isinstance(value, list | tuple) else value


def every(*quick: Any, of: Any) -> list[Any]:
    """All of them as parameters; those that are not quick are left to `make test-all`."""
    return [each if each in quick else pytest.param(each, marks=pytest.mark.every_agent) for each in of]


LEARNERS = ["reinforce", *(name for name in MADE if AGENTS[name].vec_env)]
# (number of plays, least score); the least over three seeds is in the comment
LEARNT = {
    "reinforce": (200, 0.85),
    "ppo": (100, 0.85),
    "a2c": (200, 0.8),
    "trpo": (100, 0.9),
    "dqn": (100, 0.85),
    "qrdqn": (100, 0.85),
    "sac": (100, 0.8),
    "td3": (140, 0.8),
    "ddpg": (140, 0.8),
    "tqc": (100, 0.8),
    "crossq": (120, 0.8),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", every("reinforce", "dqn", of=LEARNERS))
def test_learns_its_own_kind_of_actions(world: Any, shells: Any, score: Any, name: str) -> None:
    plays, least = LEARNT[name]
    actions = AGENTS[name].actions
    agent = make(name, world(actions, num_envs=128), shells, planned_plays=plays)
    assert abs(score(agent, actions, deterministic=False)) < 0.4
    agent.learn(plays * 128)
    assert score(agent, actions) >= least


# the least over three seeds of the three agents was 0.81 and 0.84
@pytest.mark.every_agent
@pytest.mark.parametrize(("actions", "least"), [("flat", 0.7), ("continuous", 0.75)])
@pytest.mark.parametrize("name", ["reinforce", "ppo", "a2c", "trpo"])
def test_learns_other_kinds_of_actions(
    world: Any, shells: Any, score: Any, name: str, actions: str, least: float
) -> None:
    agent = make(name, world(actions, num_envs=128), shells)
    agent.learn(200 * 128)
    assert score(agent, actions) >= least


# the least over three seeds was 0.69, 0.73 and 0.57
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "threshold"),
    [("reinforce", 0.6), *(pytest.param(*it, marks=pytest.mark.every_agent) for it in (("a2c", 0.5), ("ppo", 0.6)))],
)
def test_learns_from_images(world: Any, shells: Any, score: Any, name: str, threshold: float) -> None:
    agent = make(name, world(num_envs=64, image=True), shells, planned_plays=100)
    agent.learn(100 * 64)
    assert score(agent, "factored", image=True) >= threshold


@pytest.mark.parametrize("name", ["random", "fixed"])
@pytest.mark.parametrize("actions", ["factored", "flat", "continuous"])
def test_controls_do_not_learn(world: Any, shells: Any, score: Any, name: str, actions: str) -> None:
    agent = make(name, world(actions), shells, actions)
    before = score(agent, actions)
    agent.learn(64 * 50)
    assert agent.num_timesteps == 64 * 50
    after = score(agent, actions)
    assert after == before if name == "fixed" else abs(after) < 0.1


@pytest.mark.slow
@pytest.mark.parametrize("name", MADE)
def test_same_seed_same_run_and_another_seed_another(world: Any, shells: Any, name: str) -> None:
    runs = []
    for seed in (4, 4, 5):
        rewards: list[float] = []
        env = world(AGENTS[name].actions, num_envs=8)
        agent = make(name, env, shells, seed=seed, planned_plays=10)
        agent.learn(8 * 10, callback=lambda local, _, kept=rewards: kept.append(float(local["rewards"].sum())) or True)
        runs.append((state(agent), rewards))
    assert runs[0] == runs[1]
    assert (runs[0] == runs[2]) is (name in CONSTANT)


@pytest.mark.slow
@pytest.mark.parametrize("gamma", [0.9, pytest.param(0.0, marks=pytest.mark.every_agent)])
@pytest.mark.parametrize(
    ("name", "actions"),
    [
        pytest.param(*pair, marks=() if pair[1] == AGENTS[pair[0]].actions else pytest.mark.every_agent)
        for pair in TAKEN
    ],
)
def test_saved_and_loaded_equals_straight(
    world: Any, shells: Any, tmp_path: Path, name: str, actions: str, gamma: float
) -> None:
    # an off-policy agent learns after each play, once half of so short a plan is over
    before, after = (8, 4) if actions == AGENTS[name].actions != "factored" else (10, 20)

    def start() -> tuple[Any, Any]:
        env = world(actions, num_envs=4, horizon=1 if gamma == 0 else 3)
        return env, make(name, env, shells, actions, gamma=gamma, planned_plays=before + after)

    straight_env, straight = start()
    straight.learn(4 * before)
    # in two parts, as a schedule (exploration of DQN) is over the steps that `learn` is called for
    straight.learn(4 * after, reset_num_timesteps=False)

    env, agent = start()
    agent.learn(4 * before)
    agent.save(tmp_path / "agent")
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    shell = shells["vec_env"](env) if AGENTS[name].vec_env else env
    loaded = type(agent).load(tmp_path / "agent", shell, device="cpu", force_reset=False)
    loaded.learn(4 * after, reset_num_timesteps=False)
    assert loaded.num_timesteps == 4 * (before + after)
    assert state(loaded) == state(straight)
    assert torch.equal(env.observe(), straight_env.observe())
    observation = np.zeros((50, 6), np.float32)
    # Stable-Baselines3 draws predictions from the global generator, which both share
    deterministic = AGENTS[name].vec_env
    drawn = [it.predict(observation, deterministic=deterministic)[0] for it in (loaded, straight)]
    assert np.array_equal(*drawn)


@pytest.mark.parametrize("name", MADE)
def test_a_loaded_agent_predicts_without_an_environment(world: Any, shells: Any, tmp_path: Path, name: str) -> None:
    agent = make(name, world(AGENTS[name].actions, num_envs=4), shells)
    agent.learn(4 * 10)
    agent.save(tmp_path / "agent.zip")
    loaded = type(agent).load(tmp_path / "agent.zip", device="cpu")
    assert loaded.get_env() is None and loaded.num_timesteps == 40
    observation = np.random.default_rng(0).normal(size=(30, 6)).astype(np.float32)
    if AGENTS[name].learns:
        expected = agent.predict(observation, deterministic=True)[0]
        assert np.array_equal(loaded.predict(observation, deterministic=True)[0], expected)


@pytest.mark.parametrize("name", [name for name in MADE if not AGENTS[name].vec_env])
def test_own_agents_leave_the_global_generators_alone(world: Any, shells: Any, tmp_path: Path, name: str) -> None:
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # type: ignore[index]
    agent = make(name, world(num_envs=4), shells)
    agent.learn(4 * 12)
    agent.predict(np.zeros(6, np.float32))
    agent.save(tmp_path / "agent")
    type(agent).load(tmp_path / "agent", device="cpu")
    assert random.getstate() == before[0]
    assert np.random.get_state()[1].tolist() == before[1]  # type: ignore[index]
    assert torch.equal(torch.get_rng_state(), before[2])


@pytest.mark.slow
@pytest.mark.parametrize("name", MADE)
def test_every_agent_drives_every_kind_of_environment(world: Any, shells: Any, name: str) -> None:
    own = AGENTS[name].actions
    kinds = [(actions, False) for actions in ONLY.get(name, list(FIXED))]
    for actions, image in kinds if name == "lints" else [*kinds, (own, True)]:
        env = world(actions, num_envs=2, image=image)
        agent = make(name, env, shells, actions, planned_plays=10)
        agent.learn(20)
        assert env.plays == 10 and agent.num_timesteps == 20
        assert agent.action_space.contains(agent.predict(env.observe()[0].numpy())[0])
    single = make_agent(
        name,
        shells["env"](world(own, num_envs=1, horizon=3)),
        seed=0,
        device="cpu",
        gamma=0.9,
        planned_plays=12,
        fixed_action=FIXED[own],
        schedule_actions=[FIXED[own]] * 2,
    )
    single.learn(12)
    assert single.num_timesteps == 12


def test_truncated_foreign_and_other_agents_files_are_refused(world: Any, shells: Any, tmp_path: Path) -> None:
    make("reinforce", world(), shells).save(tmp_path / "whole.zip")
    content = (tmp_path / "whole.zip").read_bytes()
    (tmp_path / "half.zip").write_bytes(content[: len(content) // 2])
    (tmp_path / "empty.zip").write_bytes(b"")
    torch.save({"weights": torch.zeros(3)}, tmp_path / "foreign.zip")
    torch.save({"format": checkpoint.FORMAT, "schema": 99, "kind": "agent"}, tmp_path / "newer.zip")
    checkpoint.save_checkpoint(tmp_path / "run.zip", "run", {})
    torch.save(REINFORCE, tmp_path / "pickle.zip")
    for name, complaint in {
        "half": "truncated",
        "empty": "truncated",
        "foreign": "foreign",
        "run": "kind 'run', expected 'agent'",
        "newer": "schema 99",
        "pickle": "weights_only",
    }.items():
        for loader in (REINFORCE, Sb3Agent):
            with pytest.raises(ValueError, match=complaint):
                loader.load(tmp_path / f"{name}.zip")
    with pytest.raises(ValueError, match="holds a 'reinforce' agent: expected 'random'"):
        RandomAgent.load(tmp_path / "whole.zip")
    with pytest.raises(ValueError, match="'reinforce'"):
        Sb3Agent.load(tmp_path / "whole.zip")
    with pytest.raises(ValueError, match="no such checkpoint"):
        REINFORCE.load(tmp_path / "absent")
    agents = {"reinforce": REINFORCE, "random": RandomAgent, "ppo": Sb3Agent}
    for name, loader in agents.items():
        make(name, world(), shells).save(tmp_path / "edited.zip")
        whole = checkpoint.load_checkpoint(tmp_path / "edited.zip", "agent")
        for change in (
            {"arguments": "~root"},
            {"action_space": "0"},
            {"observation_space": {**whole["observation_space"], "high": 1}},
            {"state": {}},
            # a control has learned nothing
            {
                "state": {**whole["state"], "learner": 3, "parameters": {"policy": {"a": None}}}
                if name != "random"
                else {}
            },
        ):
            checkpoint.save_checkpoint(tmp_path / "edited.zip", "agent", {**whole, **change})
            with pytest.raises(ValueError) as caught:
                loader.load(tmp_path / "edited.zip")
            assert len(str(caught.value)) < 300 + len(str(tmp_path)) and "\n" not in str(caught.value), (name, change)


def test_states_that_do_not_fit_are_refused(world: Any, shells: Any) -> None:
    agent = make("reinforce", world(), shells)
    with pytest.raises(ValueError, match="'random' agent's: expected 'reinforce'"):
        agent.load_state_dict(make("random", world(), shells).state_dict())
    with pytest.raises(ValueError, match="does not fit"):
        agent.load_state_dict(make("reinforce", world("flat"), shells).state_dict())


def test_bad_names_and_settings(world: Any, shells: Any) -> None:
    with pytest.raises(ValueError, match="did you mean 'reinforce'"):
        make_agent("reinfroce", world(), seed=0, gamma=0.0, planned_plays=1)
    with pytest.raises(ValueError, match="absence of an attack: the action space is MultiDiscrete"):
        make_agent("none", world(), seed=0, gamma=0.0, planned_plays=1)
    with pytest.raises(ValueError, match="did you mean 'learning_rate'"):
        make_agent("reinforce", world(), seed=0, gamma=0.0, planned_plays=1, overrides={"learning_rat": 1.0})
    with pytest.raises(ValueError, match="did you mean 'learning_rate'"):
        make("ppo", world(), shells, overrides={"learning_rat": 1.0})
    with pytest.raises(ValueError, match="has no settings: got learning_rate"):
        make_agent("random", world(), seed=0, gamma=0.0, planned_plays=1, overrides={"learning_rate": 1.0})
    with pytest.raises(ValueError, match="fixed_action is None"):
        make_agent("fixed", world(), seed=0, gamma=0.0, planned_plays=1)


def test_none_plays_the_only_action_there_is(world: Any) -> None:
    env = world("flat", num_envs=4)
    env.action_space = spaces.Discrete(1)
    agent = make_agent("none", env, seed=0, gamma=0.0, planned_plays=3).learn(12)
    assert env.plays == 3 and agent.predict(env.observe().numpy())[0].tolist() == [0] * 4
