"""An agent's own settings: what is of another type, out of its range or no setting is refused in one line."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from astra_gym.agents import AGENTS, Sb3Agent, make_agent
from astra_gym.agents.reinforce import REINFORCE, ReinforceSettings
from astra_gym.agents.sb3.algorithms import ALGORITHMS, _parameters
from astra_gym.agents.sb3.settings import BATCH, OURS, VIEWS
from astra_gym.ssl_core.utils.overrides import fits, replaced


def make(name: str, world: Any, shells: Any, overrides: dict[str, Any], num_envs: int = 4, **more: Any) -> Any:
    env = world(AGENTS[name].actions, num_envs=num_envs)
    shell = shells["vec_env"](env) if AGENTS[name].vec_env else env
    return make_agent(name, shell, **{"seed": 0, "gamma": 0.0, "planned_plays": 20, "overrides": overrides, **more})


NUMBER = "expected a number"
POSITIVE = "expected a positive number"


@pytest.mark.parametrize(
    ("name", "setting", "value", "expected"),
    [
        ("bandit", "step_size", "abc", NUMBER),
        ("bandit", "share", True, NUMBER),
        ("bandit", "share", float("nan"), NUMBER),
        ("lints", "propensity_draws", 1.5, "expected an integer"),
        ("reinforce", "learning_rate", "abc", NUMBER),
        ("reinforce", "n_steps", None, "expected an integer"),
        ("reinforce", "hidden", 32, r"expected a list \(each an integer\)"),
        ("reinforce", "hidden", [32, "x"], r"expected a list \(each an integer\)"),
        ("reinforce", "baseline_decay", "x", "expected a number or nothing"),
        ("reinforce", "normalize_advantage", 1, "expected true or false"),
        ("reinforce", "optimizer", 3, "expected text"),
        ("ppo", "n_epochs", "x", "expected an integer"),
        ("ppo", "n_epochs", 0, POSITIVE),
        ("ppo", "n_steps", 0, POSITIVE),
        ("ppo", "n_steps", "x", "expected an integer"),
        ("ppo", "rollout", 5, r"expected a list of 3 \(each an integer\) or nothing"),
        ("ppo", "rollout", [5, 4], r"expected a list of 3 \(each an integer\) or nothing"),
        ("ppo", "rollout", [0, 1, 2], POSITIVE),
        ("ppo", "largest_batch", 0, POSITIVE),
        ("ppo", "learning_rate", "abc", "expected a number or a function"),
        ("ppo", "policy_kwargs", "abc", "expected settings by name or nothing"),
        ("ppo", "gamma", 1.5, r"expected a discount in \[0, 1\]"),
        ("a2c", "use_rms_prop", "yes", "expected true or false"),
        ("sac", "warm_up", "x", "expected an integer or nothing"),
        ("sac", "warm_up", -1, "expected 0 or more"),
        ("sac", "train_freq", [0, "step"], POSITIVE),
        ("sac", "replay_buffer_class", "x", "expected a class or nothing"),
        ("dqn", "target_plays", "x", "expected an integer or nothing"),
        ("td3", "action_noise_std", -0.1, "expected 0 or more"),
    ],
)
def test_a_bad_value_names_setting_agent_and_what_is_expected(
    world: Any, shells: Any, name: str, setting: str, value: Any, expected: str
) -> None:
    with pytest.raises(ValueError, match=f"^{setting} of the agent '{name}' is .*: {expected}$") as caught:
        make(name, world, shells, {setting: value})
    assert repr(value) in str(caught.value)


def test_what_only_the_constructor_can_tell_is_one_line_with_its_cause(world: Any, shells: Any) -> None:
    for overrides in ({"policy_kwargs": {"net_arch": "x"}}, {"ent_coef": "abc"}, {"train_freq": [1, "week"]}):
        with pytest.raises(ValueError, match=r"^sac cannot be made: \w+Error: .+$") as caught:
            make("sac", world, shells, overrides)
        assert caught.value.__cause__ is not None and "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="train_freq of the agent 'sac' is in episodes, of which 4 run at once"):
        make("sac", world, shells, {"train_freq": [1, "episode"]})
    assert make("sac", world, shells, {"train_freq": [2, "episode"]}, num_envs=1).model.train_freq.frequency == 2


def test_sizes_of_reinforce_are_positive(world: Any, shells: Any) -> None:
    for overrides in ({"hidden": [32, 0]}, {"width": 0}):
        with pytest.raises(ValueError, match=r"(a size in hidden|width) is 0: expected an integer of 1 or more"):
            make("reinforce", world, shells, overrides)


@pytest.mark.parametrize("name", ["ppo", "sac"])
@pytest.mark.parametrize(
    "setting", ["_init_setup_model", "device", "env", "policy", "seed", "tensorboard_log", "verbose", "name"]
)
def test_what_is_no_setting_is_refused(world: Any, shells: Any, name: str, setting: str) -> None:
    with pytest.raises(ValueError, match=f"{setting} is no setting of '{name}': |unknown setting of .* 'name': choose"):
        make(name, world, shells, {setting: "x"})


@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_discount_may_be_overridden_and_is_saved(world: Any, shells: Any, tmp_path: Path, name: str) -> None:
    agent = make(name, world, shells, {"gamma": 0.9})
    assert agent.model.gamma == 0.9
    agent.save(tmp_path / "agent")
    loaded = Sb3Agent.load(tmp_path / "agent", device="cpu", kind=name)
    assert loaded.model.gamma == loaded.arguments["gamma"] == 0.9


def test_none_leaves_a_name_of_ours_out_and_policy_kwargs_as_they_are(world: Any, shells: Any) -> None:
    assert make("sac", world, shells, {"warm_up": None}).model.learning_starts == 100
    assert make("ppo", world, shells, {"policy_kwargs": None}).model.policy_kwargs == VIEWS["ppo"]["policy_kwargs"]


def test_every_table_s_own_names_have_types_and_every_algorithm_s_arguments_too() -> None:
    for table in (*VIEWS.items(), *BATCH.items()):
        name, entry = table
        arguments = _parameters(ALGORITHMS[name]) if name in ALGORITHMS else {"train_freq": int}
        assert entry.keys() <= arguments.keys() | OURS.keys() and not OURS.keys() & arguments.keys()
        for key, value in entry.items():
            assert fits(value, OURS.get(key, arguments.get(key))), (name, key)
    for algorithm in ALGORITHMS.values():
        assert _parameters(algorithm)["gamma"] is float


def test_settings_are_taken_by_the_names_that_they_had_and_never_by_both() -> None:
    old = {"entropy_coef": 0.3, "normalise_advantage": False}
    chosen = replaced(ReinforceSettings(), old, "the agent 'reinforce'")
    assert (chosen.ent_coef, chosen.normalize_advantage) == (0.3, False)
    with pytest.raises(ValueError, match="entropy_coef is the old name of ent_coef: give one of them"):
        replaced(ReinforceSettings(), old | {"ent_coef": 0.3}, "the agent 'reinforce'")
    # an agent's file of before, and the record of a run
    arguments = {"settings": asdict(ReinforceSettings()) | {"ent_coef": 0.1}}
    kept = REINFORCE._from_arguments(arguments)["settings"]
    settings = dict(arguments["settings"])
    settings["entropy_coef"] = settings.pop("ent_coef")
    assert REINFORCE._from_arguments({"settings": settings})["settings"] == kept
