"""A user's own agents, by dotted path."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from astra_gym.agents import AGENTS, Agent, FunctionAgent, Sb3Agent, describe, learns, make_agent, storage
from astra_gym.agents.external import resolve

SOURCE = '''
import numpy as np
import torch
from stable_baselines3 import DQN, PPO, SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback

class MyPPO(PPO):
    """Counts, remembers and averages, all in attributes of its own."""
    def __init__(self, *args, bonus=0.0, **kwargs):
        super().__init__(*args, **kwargs)
        self.bonus, self.updates, self.seen = bonus, 0, {"rewards": []}
        self.average = torch.zeros(3)
        self.table = np.zeros((2, 2))
    def train(self):
        super().train()
        self.updates += 1
        self.seen["rewards"].append(float(self.rollout_buffer.rewards.mean()))
        self.average += 1
        self.table = self.table + 2

class MySAC(SAC):
    def __init__(self, policy, env, learning_rate=1e-3, buffer_size=100, learning_starts=7, gamma=0.5,
                 policy_kwargs=None, seed=None, device="auto"):
        super().__init__(policy, env, learning_rate, buffer_size, learning_starts, gamma=gamma, batch_size=16,
                         policy_kwargs={"net_arch": [8]}, seed=seed, device=device)

class MyDQN(DQN):
    pass

class Reordered(PPO):
    def learn(self, total_timesteps, progress_bar=False, reset_num_timesteps=True, tb_log_name="x", log_interval=1,
              callback=None):
        assert progress_bar is False and reset_num_timesteps is False and log_interval == 1
        return super().learn(total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar)

class Raising(PPO):
    def __init__(self, *args, how="error", **kwargs):
        if how == "exit":
            raise SystemExit(3)
        raise {"error": RuntimeError("two\\nlines"), "key": KeyError("x")}[how]

class Hinted(PPO):
    def __init__(self, policy, env, bonus: "NameOfATypeChecker" = 0, **kwargs):
        super().__init__(policy, env, **kwargs)

class Careless(PPO):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.draws = np.random.default_rng(0)

class Careful(Careless):
    def train(self):
        super().train()
        for group in self.policy.optimizer.param_groups:
            group["lr"] = self.lr_schedule(1) * self.draws.random()
    def extra_state(self):
        return {"draws": self.draws.bit_generator.state}
    def load_extra_state(self, state):
        self.draws.bit_generator.state = state["draws"]

class HalfHooked(Careless):
    def extra_state(self):
        return {}

class Bystander:
    def __call__(self, observation):
        return observation

def middle(observation):
    observation += 1  # spoils its own copy only
    return np.tile([3, 2, 1], (len(observation), 1))

def by_sign(observation):
    return np.stack([6 * (observation[:, 0] > 0), 4 * (observation[:, 1] > 0), 2 * (observation[:, 2] > 0)], 1)

def half(observation):
    return np.full((len(observation), 3), 0.5)

def wrong_shape(observation):
    return np.zeros(len(observation), int)

def wrong_dtype(observation):
    return np.zeros((len(observation), 3))

def ragged(observation):
    return [[0, 0, 0], [0]]

def too_large(observation):
    return np.full((len(observation), 3), 5)

def not_a_number(observation):
    return np.full((len(observation), 3), np.nan, np.float32)

class Holder:
    inner = staticmethod(middle)

instance = Bystander()
number = 3
'''


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A user's module in the current directory."""
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_agents_here.py").write_text(SOURCE)
    (tmp_path / "broken_agents_here.py").write_text("import numpy\nraise RuntimeError('two\\nlines')\n")
    (tmp_path / "ending_agents_here.py").write_text("import sys\nsys.exit(0)\n")
    (tmp_path / "folder_of_agents_here").mkdir()
    yield "my_agents_here"  # type: ignore[misc]
    for name in ("my_agents_here", "folder_of_agents_here"):
        sys.modules.pop(name, None)


def make(path: str, env: Any, shells: Any, **arguments: Any) -> Any:
    shell = shells["vec_env"](env) if describe(path).vec_env else env
    return make_agent(path, shell, **{"seed": 0, "device": "cpu", "gamma": 0.3, "planned_plays": 20, **arguments})


@pytest.mark.parametrize(
    ("name", "actions", "learns"),
    [
        ("MyPPO", "factored", True),
        ("MySAC", "continuous", True),
        ("MyDQN", "flat", True),
        ("middle", "factored", False),
    ],
)
def test_described_by_what_it_is(mine: str, name: str, actions: str, learns: bool) -> None:
    entry = describe(f"{mine}:{name}")
    assert (entry.actions, entry.learns, entry.vec_env) == (actions, learns, learns)


def test_names_of_the_table_are_described_by_it() -> None:
    assert describe("sac") is AGENTS["sac"]
    with pytest.raises(ValueError, match="did you mean 'sac'"):
        describe("sacc")


@pytest.mark.parametrize(
    ("path", "complaint"),
    [
        ("my_agents_here:", "is no dotted path: expected module:Name"),
        (":MyPPO", "is no dotted path"),
        ("my_agents_here.py:MyPPO; print()", "is no dotted path"),
        ("no_such_module_here:MyPPO", "cannot import no_such_module_here: ModuleNotFoundError"),
        ("broken_agents_here:MyPPO", "cannot import broken_agents_here: RuntimeError: two lines"),
        ("ending_agents_here:MyPPO", "cannot import ending_agents_here: SystemExit: 0"),
        ("my_agents_here:MyPPPO", r"my_agents_here.py\) has no MyPPPO"),
        ("folder_of_agents_here:MyPPO", r"the module folder_of_agents_here \(a namespace package\) has no MyPPO"),
        ("sys:MyPPO", r"the module sys \(built in\) has no MyPPO"),
        ("my_agents_here:number", "is a int: expected a subclass of Stable-Baselines3's BaseAlgorithm, or a function"),
        ("my_agents_here:Bystander", "is the class Bystander: expected"),
    ],
)
def test_bad_paths_are_one_line(mine: str, path: str, complaint: str) -> None:
    for call in (describe, lambda name: make_agent(name, None, seed=0, gamma=0.0, planned_plays=1)):
        with pytest.raises(ValueError, match=complaint) as caught:
            call(path)
        assert path in str(caught.value) and "\n" not in str(caught.value)


def test_what_learns_is_told_without_an_import(mine: str) -> None:
    assert learns("no_such_module_here:Name") and learns(f"{mine}:middle") and mine not in sys.modules
    assert [learns(name) for name in ("reinforce", "sac", "fixed", "none")] == [True, True, False, False]
    with pytest.raises(ValueError, match="did you mean 'fixed'"):
        learns("fixd")


@pytest.mark.parametrize(
    ("how", "reason"), [("error", "RuntimeError: two lines"), ("key", "KeyError: 'x'"), ("exit", "SystemExit: 3")]
)
def test_a_constructor_that_fails_is_one_line(mine: str, world: Any, shells: Any, how: str, reason: str) -> None:
    with pytest.raises(ValueError, match=f"^my_agents_here:Raising cannot be made: {reason}$") as caught:
        make(f"{mine}:Raising", world(), shells, overrides={"how": how})
    assert caught.value.__cause__ is not None


def test_types_that_only_a_type_checker_knows_are_not_checked(mine: str, world: Any, shells: Any) -> None:
    assert make(f"{mine}:Hinted", world(), shells, overrides={"bonus": "anything"}).model.n_steps == 1
    with pytest.raises(ValueError, match="n_epochs of the agent 'my_agents_here:Hinted' is 'x': expected an integer"):
        make(f"{mine}:Hinted", world(), shells, overrides={"n_epochs": "x"})


def test_arguments_of_learn_are_passed_by_name(mine: str, world: Any, shells: Any) -> None:
    env = world(num_envs=4)
    make(f"{mine}:Reordered", env, shells, planned_plays=6).learn(4 * 6, reset_num_timesteps=False)
    assert env.plays == 6


def test_an_algorithm_that_cannot_keep_to_the_plan_is_refused(world: Any, shells: Any) -> None:
    env = world("flat")
    with pytest.raises(ValueError, match="sb3_contrib:ARS cannot keep to the planned plays"):
        make("sb3_contrib:ARS", env, shells)
    assert env.plays == 0


@pytest.mark.parametrize(("name", "loader"), [("MyPPO", Sb3Agent), ("by_sign", FunctionAgent)])
def test_a_file_imports_only_what_the_caller_names(
    mine: str, world: Any, shells: Any, tmp_path: Path, name: str, loader: Any
) -> None:
    path = f"{mine}:{name}"
    make(path, world(num_envs=2), shells).save(tmp_path / "agent")
    # neither in a fresh process nor in one that knows the module
    for forget in (False, True):
        if forget:
            del sys.modules[mine]
        with pytest.raises(ValueError, match=rf"agent.* if you trust it, name it by load\(\.\.\., kind='{path}'\)"):
            loader.load(tmp_path / "agent", device="cpu")
        with pytest.raises(ValueError, match=f"holds a '{path}' agent: expected 'other:Name'"):
            loader.load(tmp_path / "agent", device="cpu", kind="other:Name")
    assert mine not in sys.modules
    assert loader.load(tmp_path / "agent", device="cpu", kind=path).kind == path
    # the other loader says what it expects, in one line
    other = FunctionAgent if loader is Sb3Agent else Sb3Agent
    with pytest.raises(ValueError, match=r"expected a (function's|subclass of)"):
        other.load(tmp_path / "agent", device="cpu", kind=path)


def test_a_function_s_file_cannot_hide_another_path(mine: str, world: Any, shells: Any, tmp_path: Path) -> None:
    path = f"{mine}:middle"
    make(path, world(num_envs=2), shells).save(tmp_path / "agent")
    saved = storage.read(tmp_path / "agent")
    content = {key: saved[key] for key in ("observation_space", "action_space", "num_envs", "state")}
    storage.write(tmp_path / "agent", path, content | {"arguments": {"seed": 0, "path": "ending_agents_here:f"}})
    with pytest.raises(ValueError, match="holds a 'ending_agents_here:f' agent: expected 'my_agents_here:middle'"):
        FunctionAgent.load(tmp_path / "agent", device="cpu", kind=path)


def test_a_state_is_restored_without_the_name_of_its_module(mine: str, world: Any, shells: Any) -> None:
    """As a run's checkpoint is: through an agent that exists already."""
    one = make(f"{mine}:MyPPO", world(num_envs=2), shells)
    state = one.learn(2 * 10).state_dict()
    other = make(f"{mine}:MyPPO", world(num_envs=2), shells)
    other.load_state_dict(state)
    assert other.model.updates == 1


def test_attributes_of_classes_and_callable_objects_will_do(mine: str) -> None:
    assert resolve(f"{mine}:Holder.inner") is resolve(f"{mine}:middle")
    assert callable(resolve(f"{mine}:instance"))


def test_an_own_class_gets_what_its_constructor_takes(mine: str, world: Any, shells: Any) -> None:
    ppo = make(f"{mine}:MyPPO", world(num_envs=32), shells, overrides={"bonus": 0.5, "n_epochs": 2}).model
    assert (ppo.n_steps, ppo.batch_size, ppo.gamma, ppo.bonus, ppo.n_epochs) == (1, 32, 0.3, 0.5, 2)
    assert ppo.learning_rate == 3e-4, "a class keeps its own rates"
    sac = make(f"{mine}:MySAC", world("continuous", num_envs=32), shells).model
    assert (sac.learning_starts, sac.buffer_size, sac.gamma) == (4 * 32, 20 * 32, 0.3)
    with pytest.raises(ValueError, match="did you mean 'bonus'"):
        make(f"{mine}:MyPPO", world(), shells, overrides={"bonuss": 1})
    with pytest.raises(ValueError, match="choose from"):
        make(f"{mine}:MySAC", world("continuous"), shells, overrides={"ent_coef": 1})
    with pytest.raises(ValueError, match=r"my_agents_here:MyDQN cannot be made: .*Discrete"):
        make(f"{mine}:MyDQN", world(), shells)


@pytest.mark.parametrize(
    ("name", "actions", "at"), [("MyPPO", "factored", 10), ("Careful", "factored", 10), ("MySAC", "continuous", 9)]
)
def test_an_own_class_resumes_exactly(
    mine: str, world: Any, shells: Any, tmp_path: Path, name: str, actions: str, at: int
) -> None:
    path = f"{mine}:{name}"
    straight = make(path, world(actions, num_envs=2), shells)
    straight.learn(2 * at)
    straight.learn(2 * (20 - at), reset_num_timesteps=False)

    env = world(actions, num_envs=2)
    agent = make(path, env, shells)
    agent.learn(2 * at)
    agent.save(tmp_path / "agent")
    torch.manual_seed(1), np.random.seed(1)
    loaded = Sb3Agent.load(tmp_path / "agent", shells["vec_env"](env), device="cpu", force_reset=False, kind=path)
    assert loaded.kind == path and type(loaded.model).__name__ == name
    loaded.learn(2 * (20 - at), reset_num_timesteps=False)
    for one, other in zip(loaded.policy.parameters(), straight.policy.parameters(), strict=True):
        assert torch.equal(one, other)
    if name == "MyPPO":
        assert loaded.model.updates == 2 and loaded.model.seen == straight.model.seen
        assert torch.equal(loaded.model.average, torch.full((3,), 2.0))
        assert np.array_equal(loaded.model.table, np.full((2, 2), 4.0))
    if name == "Careful":
        assert loaded.model.draws.random() == straight.model.draws.random()


def test_what_cannot_be_saved_is_named_before_the_run(mine: str, world: Any, shells: Any) -> None:
    with pytest.raises(ValueError, match=r"Careless.draws is a Generator, .*extra_state and load_extra_state"):
        make(f"{mine}:Careless", world(), shells)
    with pytest.raises(ValueError, match="HalfHooked defines extra_state only"):
        make(f"{mine}:HalfHooked", world(), shells)


def test_recurrent_ppo_by_its_path_resumes_with_its_memory(world: Any, shells: Any, tmp_path: Path) -> None:
    path = "sb3_contrib:RecurrentPPO"
    straight_env = world(num_envs=1, horizon=30)
    straight = make(path, straight_env, shells, gamma=0.9)
    straight.learn(10)
    straight.learn(10, reset_num_timesteps=False)
    env = world(num_envs=1, horizon=30)
    agent = make(path, env, shells, gamma=0.9)
    agent.learn(10)
    agent.save(tmp_path / "agent")
    loaded = Sb3Agent.load(tmp_path / "agent", shells["vec_env"](env), device="cpu", force_reset=False, kind=path)
    for one, other in zip(loaded.model._last_lstm_states.pi, agent.model._last_lstm_states.pi, strict=True):
        assert torch.equal(one, other) and one.any()
    loaded.learn(10, reset_num_timesteps=False)
    for one, other in zip(loaded.policy.parameters(), straight.policy.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_function_plays_and_learns_nothing(mine: str, world: Any, shells: Any, tmp_path: Path) -> None:
    path = f"{mine}:by_sign"
    env = world(num_envs=8)
    agent = make(path, env, shells)
    assert isinstance(agent, FunctionAgent) and isinstance(agent, Agent) and agent.kind == path
    sent: list[Any] = []
    first = env.observe().clone()
    agent.learn(8 * 3, callback=lambda local, _: sent.append(local["actions"]) or True)
    assert len(sent) == 3 and torch.equal(sent[0][:, 0], 6 * (first[:, 0] > 0))
    agent.save(tmp_path / "agent")
    for loader in (FunctionAgent, type(agent)):
        loaded = loader.load(tmp_path / "agent", device="cpu", kind=path)
        assert loaded.kind == path and loaded.num_timesteps == 24
        assert np.array_equal(loaded.predict(first.numpy())[0], sent[0].numpy())
        assert loaded.predict(first[0].numpy())[0].shape == (3,)
    with pytest.raises(ValueError, match="by_sign' agent's: expected 'my_agents_here:middle'"):
        make(f"{mine}:middle", env, shells).load_state_dict(agent.state_dict())
    with pytest.raises(ValueError, match="has no settings: got a"):
        make(path, env, shells, overrides={"a": 1})
    with pytest.raises(ValueError, match="holds a 'random' agent: expected a function's"):
        make("random", env, shells).save(tmp_path / "random")
        FunctionAgent.load(tmp_path / "random")


def test_a_function_gets_a_copy_of_the_observation(mine: str, world: Any, shells: Any) -> None:
    env = world(num_envs=4)
    agent = make(f"{mine}:middle", env, shells)
    before = env.observe().clone()
    agent.predict(env.observe().numpy())
    assert torch.equal(env.observe(), before)


@pytest.mark.parametrize(
    ("name", "actions", "complaint"),
    [
        ("wrong_shape", "factored", r"of shape \(4,\): expected \(4, 3\)"),
        ("middle", "flat", r"of shape \(4, 3\): expected \(4,\)"),
        ("wrong_dtype", "factored", "of dtype float64: expected integers"),
        ("middle", "continuous", "of dtype int64: expected floats"),
        ("ragged", "factored", r"\[\[0, 0, 0\], \[0\]\]: expected rows of one length"),
        ("too_large", "factored", r"from 5 to 5: expected elements of MultiDiscrete\(\[7 5 3\]\)"),
        ("not_a_number", "continuous", "from nan to nan"),
    ],
)
def test_a_functions_actions_are_checked(
    mine: str, world: Any, shells: Any, name: str, actions: str, complaint: str
) -> None:
    with pytest.raises(ValueError, match=f"{mine}:{name} gave actions {complaint}"):
        make(f"{mine}:{name}", world(actions, num_envs=4), shells).learn(4)


def test_a_functions_floats_reach_the_box(mine: str, world: Any, shells: Any) -> None:
    agent = make(f"{mine}:half", world("continuous", num_envs=4), shells).learn(8)
    assert agent.predict(np.zeros(6, np.float32))[0].tolist() == [0.5] * 3
