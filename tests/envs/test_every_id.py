"""What every registered environment has to pass: checkers, videos, wrappers, and PPO as Stable-Baselines3 makes it."""

import multiprocessing
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.wrappers import NormalizeObservation, NormalizeReward, RecordEpisodeStatistics, RecordVideo
from gymnasium.wrappers import vector as wrappers
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

import astra_gym
from astra_gym.envs.api.vec_env import Sb3VecEnv
from astra_gym.envs.api.vector_checker import check_vector_env
from astra_gym.envs.attack_step_env import AttackStepVectorEnv
from astra_gym.envs.batch_env import BatchAttackEnv, BatchAttackEnvV1
from astra_gym.envs.engine import AttackEngine
from astra_gym.envs.training_run.instances import Instance
from astra_gym.envs.view_env import ViewAttackVectorEnv, ViewAttackVectorEnvV1

SINGLE = (astra_gym.BATCH_V0_ID, astra_gym.BATCH_ID, astra_gym.RUN_ID)
VECTOR = (astra_gym.VIEW_V0_ID, astra_gym.VIEW_ID, astra_gym.STEP_ID)
V0 = (astra_gym.BATCH_V0_ID, astra_gym.VIEW_V0_ID)
"""In these a training never ends, and nothing is drawn."""
DRAWN = {"render_mode": "rgb_array"}
WORLD = {
    "test_limit": 20,
    "image_size": 8,
    "width": 1,
    "projector_hidden": 4,
    "projector_dim": 4,
    "batch_size": 2,
    "epochs": 1,
}
OWN: dict[str, dict[str, Any]] = dict.fromkeys((*SINGLE, *VECTOR), WORLD | {"limit": 12, "action_steps": (0, 1)}) | {
    astra_gym.STEP_ID: WORLD | {"limit": 12, "horizon": 2},
    astra_gym.RUN_ID: {
        "instances": {
            "tiny": Instance(
                "train", 12, WORLD | {"limit": 60, "passes": 40.0, "judge_epsilon": 8 / 255, "action_steps": (0, 1)}
            )
        }
    },
}
"""The arguments of tiny environments: trainings of 6 updates, or of 40 passes."""


def test_the_ids_are_all_that_the_package_registers() -> None:
    assert {*SINGLE, *VECTOR} == {name for name in gym.registry if name.startswith("ASTrA/")}


@pytest.mark.filterwarnings("ignore:.*out of date:DeprecationWarning")
@pytest.mark.parametrize("name", [*SINGLE, *VECTOR])
def test_an_unknown_name_is_refused_with_the_nearest(name: str) -> None:
    pairs = {"zzz": "", **({"levels": "levers"} if name == astra_gym.RUN_ID else {"datset": "dataset"})}
    # an argument of the environment itself, whichever class of its family names it
    pairs |= {"device_": "device", "render": "render_mode"}
    pairs |= {"num_env": "num_envs", "sed": "seed"} if name in VECTOR else {}
    for wrong, right in pairs.items():
        # Python's own words and type: TorchRL's GymEnv looks for them, since it first tries `frameskip`
        with pytest.raises(TypeError, match=rf"__init__\(\) got an unexpected keyword argument '{wrong}': ") as raised:
            gym.make_vec(name, **OWN[name], **{wrong: 1})
        # Gymnasium adds its own sentence
        message = str(raised.value).split(" was raised from")[0]
        assert message.endswith(f"; did you mean '{right}'?") if right else "mean" not in message
        assert "choose from " in message and len(message) < 300


def test_a_world_made_elsewhere_takes_no_settings() -> None:
    engine = gym.make_vec(astra_gym.VIEW_ID, **OWN[astra_gym.VIEW_ID]).unwrapped.engine
    for kind in (BatchAttackEnv, BatchAttackEnvV1, ViewAttackVectorEnv, ViewAttackVectorEnvV1, AttackStepVectorEnv):
        with pytest.raises(ValueError, match="lr and engine are given: a world made elsewhere has its settings"):
            kind(engine=engine, lr=0.1)
        with pytest.raises(TypeError, match="unexpected keyword argument 'lrr'"):
            kind(engine=engine, lrr=0.1)


def _play(name: str) -> None:
    env = gym.make_vec(name, **OWN[name])
    env.reset(seed=0)
    env.step(env.action_space.sample())


@pytest.mark.parametrize("name", [astra_gym.BATCH_ID, astra_gym.VIEW_ID, astra_gym.STEP_ID, astra_gym.RUN_ID])
def test_a_forked_worker_does_not_wait_for_threads_of_its_parent(name: str) -> None:
    """`AsyncVectorEnv` forks after it has made an environment, whose torch has used threads by then."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    worker = multiprocessing.get_context("fork").Process(target=_play, args=(name,))
    try:
        # large enough for two threads
        torch.rand(2**20).exp().sum()
        worker.start()
        worker.join(60)
        assert worker.exitcode == 0
    finally:
        torch.set_num_threads(before)
        worker.kill()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*out of date:DeprecationWarning")
@pytest.mark.parametrize("name", [*SINGLE, *VECTOR])
def test_the_vector_checker_passes_without_a_warning(name: str) -> None:
    made = OWN[name] | ({} if name in V0 else DRAWN)
    env = gym.make_vec(name, num_envs=1, **made)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # an episode of a whole training has 12 steps
        check_vector_env(env, steps=13 if name == astra_gym.RUN_ID else 8)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in (*SINGLE, *VECTOR) if name not in V0])
def test_videos_are_recorded(name: str, tmp_path: Path) -> None:
    pytest.importorskip("moviepy")
    made = OWN[name] | DRAWN
    if name in SINGLE:
        env: Any = RecordVideo(gym.make(name, **made), str(tmp_path / "videos"))
    else:
        with pytest.warns(UserWarning, match="SAME_STEP|same-step"):
            env = wrappers.RecordVideo(
                gym.make_vec(name, **made),
                str(tmp_path / "videos"),
                step_trigger=lambda step: step == 0,
                video_length=2,
            )
    env.reset(seed=0)
    for _ in range(4):
        over = env.step(env.action_space.sample())[2:4]
        if name in SINGLE and any(over):
            break
    env.close()
    [video] = tmp_path.rglob("*.mp4")
    assert video.stat().st_size > 1000


@pytest.mark.parametrize("name", [astra_gym.BATCH_ID, astra_gym.RUN_ID])
def test_wrappers_of_single_environments_work(name: str) -> None:
    env: Any = RecordEpisodeStatistics(NormalizeReward(NormalizeObservation(gym.make(name, **OWN[name]))))
    env.reset(seed=0)
    over, steps = False, 0
    while not over:
        observation, reward, terminated, truncated, info = env.step(env.action_space.sample())
        assert np.isfinite([reward, *observation]).all()
        over, steps = terminated or truncated, steps + 1
    assert info["episode"]["l"] == steps


@pytest.mark.parametrize("name", [astra_gym.VIEW_ID, astra_gym.STEP_ID])
def test_wrappers_of_vector_environments_work_or_refuse(name: str) -> None:
    plain = gym.make_vec(name, **OWN[name])
    env: Any = wrappers.RecordEpisodeStatistics(wrappers.NormalizeReward(plain))
    env.reset(seed=0)
    over, steps = False, 0
    while not over:
        _, rewards, terminated, _, infos = env.step(np.ones(env.action_space.shape, int))
        assert np.isfinite(rewards).all()
        over, steps = terminated.all(), steps + 1
    assert infos["episode"]["l"].tolist() == [steps] * env.num_envs
    with pytest.raises(ValueError, match="SAME_STEP"):
        wrappers.NormalizeObservation(plain)


def made(name: str) -> Any:
    return gym.make(name, **OWN[name]) if name in SINGLE else gym.make_vec(name, **OWN[name])


@pytest.mark.filterwarnings("ignore:.*out of date:DeprecationWarning")
@pytest.mark.parametrize("name", [*SINGLE, *VECTOR])
def test_actions_are_arrays_of_any_layout_and_what_is_returned_is_the_caller_s(name: str) -> None:
    env, other = made(name), made(name)
    env.action_space.seed(1)
    for each in (env, other):
        each.reset(seed=0)
    for _ in range(4):
        actions = env.action_space.sample()
        found = env.step(actions)
        layout = np.flip(np.flip(actions).astype(actions.dtype.newbyteorder(">")))
        layout.setflags(write=False)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            again = other.step(layout)
        assert np.array_equal(again[0], found[0]) and np.array_equal(again[1], found[1])
        for value in again[4].values():
            if isinstance(value, np.ndarray) and value.dtype.kind == "f":
                value[...] = 7.0
    with pytest.raises(ValueError, match=r"actions are .*: expected an array of numbers, with rows of one length"):
        env.step([[1], [1, 2]])
    if name in SINGLE:
        with pytest.raises(ValueError, match=r"the action (has shape \(1, 3\)|is .*): expected "):
            env.step(env.action_space.sample()[None])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*out of date:DeprecationWarning")
@pytest.mark.parametrize("name", [*SINGLE, *VECTOR])
def test_a_caller_without_gradients_gets_the_same_steps(name: str) -> None:
    def played() -> list[Any]:
        env = made(name)
        env.action_space.seed(1)
        first = env.reset(seed=0)[0]
        return [first] + [part for _ in range(3) for part in env.step(env.action_space.sample())[:2]]

    usual = played()
    for without in (torch.no_grad, torch.inference_mode):
        with without():
            found = played()
        assert all(np.array_equal(one, other) for one, other in zip(found, usual, strict=True))


def vec_env(name: str) -> VecEnv:
    if name in VECTOR:
        return Sb3VecEnv(gym.make_vec(name, **OWN[name]))
    return DummyVecEnv([lambda: gym.make(name, **OWN[name])])


@pytest.fixture
def finished(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """For each update of any world from now on: whether its training was over before it."""
    updates: list[bool] = []
    play: Callable[..., Any] = AttackEngine.play

    def counted(engine: AttackEngine, *given: Any) -> Any:
        updates.append(engine.finished)
        return play(engine, *given)

    monkeypatch.setattr(AttackEngine, "play", counted)
    return updates


@pytest.mark.every_agent
@pytest.mark.filterwarnings("ignore:.*out of date:DeprecationWarning")
@pytest.mark.parametrize("name", [*SINGLE, *VECTOR])
def test_ppo_with_its_defaults_spends_no_step_on_a_finished_network(name: str, finished: list[bool]) -> None:
    model = PPO("MlpPolicy", vec_env(name), device="cpu").learn(5000)
    assert model.n_steps == 2048 and model.num_timesteps >= 5000
    # the first versions are the reason for the second ones: nearly all their updates are on a finished network
    assert sum(finished) == (len(finished) - 6 if name in V0 else 0) and len(finished) > 1000
