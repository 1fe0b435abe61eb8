"""A whole training as an episode: checkers, its return, its budget, repeating, resuming, levers, and bad input."""

import copy
import pickle
import re
import warnings
from collections.abc import Callable
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as check_for_sb3

import astra_gym
from astra_gym.envs.training_run.environment import OBSERVED, TrainingRunEnv
from astra_gym.envs.training_run.instances import INSTANCES, SEEDS, Instance, cifar10_instances
from astra_gym.ssl_core.data.settings import DataSection
from astra_gym.ssl_core.downstream.quick_score import quick_score
from tests.helpers.tiny_episodes import TINY, WORLD, actions, make, played


@pytest.mark.slow
def test_both_checkers_accept_it() -> None:
    settings = {"instances": TINY, "render_mode": "rgb_array"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gymnasium.make(astra_gym.RUN_ID, levers=("attack", "lr"), **settings).unwrapped)
        check_for_sb3(make(render_mode="rgb_array"), skip_render_check=False)


def test_the_return_is_the_final_score_and_the_budget_is_spent() -> None:
    env = make()
    steps = played(env, actions(env), 3, "small")[1:]
    rewards, info, engine = [step[1] for step in steps], steps[-1][4], env.episode.engine
    assert [step[2] for step in steps] == [False] * 11 + [True] and not any(step[3] for step in steps)
    assert abs(sum(rewards) - info["score"]) < 1e-9 and info["score"] == (info["SA"] + info["RA"]) / 2 > 0
    parts = (engine.method.routes.evaluation, engine.data.train, engine.data.test)
    found = quick_score(engine.learner.encoder, *parts, 8 / 255, info["world_seed"])
    assert pytest.approx((100 * info["SA"], 100 * info["RA"])) == (found.SA, found.RA)
    assert 60 - 1e-6 <= info["passes"] < 60 + 3.3 + 4 and engine.finished
    assert info["step"] == engine.step > 0
    with pytest.raises(gymnasium.error.ResetNeeded, match="the episode is over"):
        env.step(env.action_space.sample())


def test_a_robust_judge_pays_robust_accuracy_and_all_instances_have_one_observation() -> None:
    env = make()
    steps = played(env, actions(env), 1, "robust")
    assert steps[-1][4]["score"] == steps[-1][4]["RA"]
    for name in TINY:
        observation, info = env.reset(seed=0, options={"instance": name})
        assert env.observation_space.contains(observation) and info["instance"] == name
        values = dict(zip(OBSERVED, observation.tolist(), strict=True))
        assert values["decisions done"] == -1 and values["passes left"] == 1 and values["clean loss"] > 0
    # a method without an attack has the same actions, which change nothing
    rewards = [[step[1] for step in played(env, actions(env, seed)[:5], 0, "clean")[1:]] for seed in (0, 1)]
    assert rewards[0] == rewards[1]


def test_the_same_seed_gives_the_same_episode_and_a_new_one_another() -> None:
    env, other = make(), make()
    chosen = actions(env)
    first = played(env, chosen, 7, "small")
    assert played(other, chosen, 7, "small") == first
    for seed in (None, 8):
        begun = played(env, chosen[:2], seed, "small")
        assert all(one != other for one, other in zip(begun, first[:3], strict=True))
    drawn = {env.reset(seed=seed)[1]["instance"] for seed in range(12)}
    assert drawn == set(TINY)


def test_killed_and_resumed_in_an_episode_equals_uninterrupted() -> None:
    env, other = make(levers=("attack", "lr", "strength")), make(levers=("attack", "lr", "strength"))
    chosen = actions(env)
    straight = played(env, chosen, 5, "small")[1:]
    env.reset(seed=5, options={"instance": "small"})
    for action in chosen[:5]:
        env.step(action)
    state = copy.deepcopy(env.state_dict())
    other.load_state_dict(state)
    rest = [other.step(action) for action in chosen[5:]]
    assert [step[1] for step in rest] == [step[1] for step in straight[5:]]
    assert np.array_equal(rest[-1][0], np.array(straight[-1][0], dtype=np.float32))
    assert other.reset()[1] == env.reset()[1]


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))], ids=["deep", "pickled"]
)
def test_a_copy_within_an_episode_goes_on_as_the_original_and_apart_from_it(
    copied: Callable[[TrainingRunEnv], TrainingRunEnv],
) -> None:
    env = make(levers=("attack", "lr", "strength"), render_mode="rgb_array")
    chosen = actions(env)
    env.reset(seed=5, options={"instance": "small"})
    for action in chosen[:5]:
        env.step(action)
    other = copied(env)
    assert np.array_equal(other.render(), env.render())
    # the original has ended when its copy goes on
    rest, again = ([each.step(action) for action in chosen[5:]] for each in (env, other))
    assert [(seen.tolist(), *more) for seen, *more in again] == [(seen.tolist(), *more) for seen, *more in rest]
    assert np.array_equal(other.render(), env.render()) and other.reset()[1] == env.reset()[1]


def test_levers_act_on_the_rate_and_on_views_that_are_not_drawn_yet() -> None:
    env = make(levers=("lr", "strength"))
    assert env.action_space.nvec.tolist() == [5, 5]
    env.reset(seed=0, options={"instance": "small"})
    engine, views = env.episode.engine, env.episode.engine.all_views.clone()
    usual, strength = engine.learner.schedule(3), engine.batches.views_settings.strength
    env._chosen([4, 0])
    assert engine.learner.schedule(3) == 4 * usual and engine.batches.views_settings.strength == 0.0
    assert torch.equal(engine.all_views, views)
    env._chosen([0, 4])
    assert engine.learner.schedule(3) == usual / 4 and engine.batches.views_settings.strength == min(1, 2 * strength)


def test_an_episode_whose_values_are_not_finite_ends_with_the_score_0() -> None:
    env = make()
    env.reset(seed=0, options={"instance": "small"})
    _, first, *_ = env.step(np.array([1, 1, 1]))
    with torch.no_grad():
        next(env.episode.engine.learner.network.parameters()).fill_(torch.nan)
    observation, reward, over, _, info = env.step(np.array([1, 1, 1]))
    assert over and info["failed"] and info["score"] == 0 and first + reward == 0
    assert env.observation_space.contains(observation)


def test_sets_of_instances_share_no_image_no_seed_and_no_radius() -> None:
    images, radii = dict[str, set[bytes]](), dict[str, set[float]]()
    for name, found in INSTANCES.items():
        for instance in (found | cifar10_instances("data")[name]).values():
            assert instance.part == name and instance.settings.ranges.sets.epsilons[-1] == 96 / 255
            radii.setdefault(name, set()).add(instance.settings.judge.epsilon)
        instance = next(iter(found.values()))
        split = instance.data(instance.settings.data.load())
        images[name] = {image.numpy().tobytes() for part in (split.train, split.test) for image in part.images}
        assert not {i.numpy().tobytes() for i in split.train.images} & {i.numpy().tobytes() for i in split.test.images}
    assert not images["train"] & images["test"] and not radii["train"] & radii["test"]
    env = make()
    seeds = {name: env.reset(seed=0, options={"instance": name})[1]["world_seed"] for name in ("small", "clean")}
    assert seeds["small"] < SEEDS <= seeds["clean"]


def test_a_data_set_is_loaded_once_for_all_its_instances(monkeypatch: pytest.MonkeyPatch) -> None:
    loads, load = list[DataSection](), DataSection.load
    monkeypatch.setattr(DataSection, "load", lambda data: loads.append(data) or load(data))
    env = make()
    assert loads == [TINY["small"].settings.data]
    for name in (*TINY, *TINY):
        env.reset(seed=0, options={"instance": name})
    assert len(loads) == 1


@pytest.mark.every_agent
def test_cifar10_is_in_both_sets_if_its_folder_is_given(cifar10_dir: Path) -> None:
    parts = {}
    for part in INSTANCES:
        env = TrainingRunEnv(instances=part, data_dir=str(cifar10_dir))
        assert env.instances.keys() == {*INSTANCES[part], *cifar10_instances(None)[part]}
        name = next(name for name in env.instances if name.startswith("cifar10-few"))
        env.reset(seed=0, options={"instance": name})
        split = env.episode.engine.data
        assert split.train.images.shape == (2000, 3, 16, 16) and len(split.test) == 512
        parts[part] = {image.numpy().tobytes() for half in (split.train, split.test) for image in half.images}
    assert not parts["train"] & parts["test"] and {len(each) for each in parts.values()} == {2512}


@pytest.mark.every_agent
def test_several_episodes_run_side_by_side_in_processes() -> None:
    envs = gymnasium.make_vec(
        "astra_gym:ASTrA/TrainingRun-v0", num_envs=2, vectorization_mode="async", instances={"small": TINY["small"]}
    )
    try:
        envs.reset(seed=[3, 4])
        chosen = actions(make())
        rewards = [envs.step(np.stack([action] * 2))[1] for action in chosen]
    finally:
        envs.close()
    alone = [played(make(instances={"small": TINY["small"]}), chosen, seed, "small")[1:] for seed in (3, 4)]
    assert np.array(rewards).T.tolist() == pytest.approx(np.array([[step[1] for step in each] for each in alone]))


def test_images_are_checked_before_the_first_episode(tmp_path: Path) -> None:
    missing, reason = str(tmp_path / "missing"), "and it may not be downloaded: unpack the official"
    for data_dir in (str(tmp_path), missing):
        with pytest.raises(ValueError, match=f"cifar10: there is no .*, {reason}"):
            gymnasium.make(astra_gym.RUN_ID, data_dir=data_dir)
    with pytest.raises(ValueError, match="missing"):
        make(instances={"own": Instance("train", 40, WORLD | {"dataset": "folder", "data_dir": missing})})
    with pytest.raises(ValueError, match="data_dir is 3: expected a path"):
        gymnasium.make(astra_gym.RUN_ID, data_dir=3)


def test_bad_input_is_refused() -> None:
    for arguments, message in (
        ({"levers": ()}, r"levers is \[\]: expected some of attack, lr, strength, in this order"),
        ({"levers": ("lr", "attack")}, "in this order"),
        ({"levers": ("dropout",)}, "unknown lever 'dropout'"),
        ({"levers": "attack"}, "levers is 'attack': expected a list of some of attack"),
        ({"instances": "validation"}, "unknown set of instances 'validation'"),
        ({"instances": {}}, "expected instances by name"),
        ({"instances": 3}, "instances is 3: expected instances by name"),
        ({"data_dir": "data"}, "your own instances have it among their world's settings"),
        ({"instances": TINY | {"other": Instance("test", 40, WORLD | {"action_steps": (1, 2)})}}, "differ in what"),
    ):
        with pytest.raises(ValueError, match=message):
            make(**arguments)
    env = make()
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(np.array([0, 0, 0]))
    for options, message in (
        ({"instance": "big"}, "unknown instance 'big'"),
        ({"size": 3}, "options has size"),
        ("small", "options is 'small': expected a dict with the key instance"),
    ):
        with pytest.raises(ValueError, match=message):
            env.reset(seed=0, options=options)
    env.reset(seed=0)
    for action in ([3, 0, 0], [1.0, 0.0, 0.0]):
        with pytest.raises(ValueError, match=rf"the action is {re.escape(str(action))}: expected an .*, of integers"):
            env.step(action)
    with pytest.raises(ValueError, match="an instance has no passes"):
        Instance("train", 40, {name: value for name, value in WORLD.items() if name != "passes"})
