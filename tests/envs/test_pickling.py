"""Environments that are copied into other processes: the copy continues exactly as the original does."""

import copy
import pickle
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from PIL import Image
from stable_baselines3.common.vec_env import VecEnv

import astra_gym
from astra_gym.envs.attack_step_env import AttackStepVectorEnv
from astra_gym.envs.batch_env import BatchAttackEnv
from astra_gym.envs.engine import AttackEngine
from astra_gym.envs.sb3_env import Sb3BatchVecEnv, Sb3ViewVecEnv
from astra_gym.envs.view_env import ViewAttackVectorEnv
from astra_gym.envs.world_config import WorldSettings
from astra_gym.ssl_core.models.checkpoint import describe_network, save_checkpoint
from astra_gym.ssl_core.models.target_network import build_network
from tests.helpers.states import same


def plain(value: Any) -> Any:
    """Arrays as bytes, so that equal means equal bit for bit."""
    if isinstance(value, np.ndarray):
        return [plain(entry) for entry in value] if value.dtype == object else (value.dtype.str, value.tobytes())
    if isinstance(value, dict):
        return {key: plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    return value


def played(env: Any, steps: int) -> list[Any]:
    """What an environment gives for actions that its space draws; the space's generator is a part of it."""
    vec = isinstance(env, VecEnv)
    found = []
    for _ in range(steps):
        actions = np.stack([env.action_space.sample() for _ in range(env.num_envs)]) if vec else None
        found.append(plain(env.step(env.action_space.sample() if actions is None else actions)))
    return found


def assert_alike(env: Any, other: Any, steps: int) -> None:
    assert played(env, steps) == played(other, steps)
    if hasattr(env, "engine"):
        assert same(env.engine.state_dict(), other.engine.state_dict())


MAKERS = {
    "view": lambda tiny: ViewAttackVectorEnv(seed=3, **tiny),
    "batch": lambda tiny: BatchAttackEnv(seed=3, episode_steps=2, **tiny),
    "sb3-view": lambda tiny: Sb3ViewVecEnv(seed=3, observation="image", **tiny),
    "sb3-batch": lambda tiny: Sb3BatchVecEnv(AttackEngine(WorldSettings.of(**tiny), seed=3)),
    "attack-step": lambda tiny: AttackStepVectorEnv(seed=3, horizon=3, **tiny),
    "make": lambda tiny: gymnasium.make(astra_gym.BATCH_ID, **tiny),
    "make_vec": lambda tiny: gymnasium.make_vec(astra_gym.VIEW_ID, **tiny),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        name if name in ("view", "batch", "attack-step") else pytest.param(name, marks=pytest.mark.every_agent)
        for name in MAKERS
    ],
)
def test_a_pickled_environment_continues_as_the_original(tiny, name: str) -> None:
    env = MAKERS[name](tiny)
    env.action_space.seed(7)
    fresh = pickle.loads(pickle.dumps(env))
    assert plain(fresh.reset()) == plain(env.reset())
    # an odd number of steps: in the midst of an episode of the batch, and of an epoch
    assert played(env, 1) == played(fresh, 1)
    assert_alike(env, pickle.loads(pickle.dumps(env)), steps=3)


@pytest.mark.slow
@pytest.mark.parametrize(
    "world",
    [
        {"method": "dynacl", "reward_lookahead": 0.5, "lookahead_images": 4, "reward_progress": 1.0},
        {"method": "cf-amc-ssl", "neck": 8, "projector": "mlp", "method_kwargs": {"crops": 3}, "keep_data": "host"},
        pytest.param(
            {"coreset": "rcs", "coreset_warmup": 1, "coreset_every": 1, "coreset_fraction": 0.5, "limit": 20},
            marks=pytest.mark.every_agent,
        ),
        pytest.param({"method": "deacl", "teacher": "TEACHER"}, marks=pytest.mark.every_agent),
    ],
    ids=["momentum and rewards that remember", "free attacks, host", "coreset", "teacher"],
)
def test_worlds_with_more_to_remember(tiny, tmp_path: Path, world: dict[str, Any]) -> None:
    if "teacher" in world:
        network = build_network(torch.Generator().manual_seed(4), arch="resnet10", width=2, routes=("normal",))
        payload = {"step": 0, "epoch": 0.0, "evaluation_route": "normal", "network": describe_network(network)}
        world = world | {"teacher": str(save_checkpoint(tmp_path / "teacher.pt", "encoder", payload))}
    env = Sb3ViewVecEnv(seed=3, **tiny | world)
    env.reset()
    played(env, 2)
    assert_alike(env, pickle.loads(pickle.dumps(env)), steps=3)


def test_a_world_made_anew_by_a_seed_and_a_deep_copy(tiny) -> None:
    env = ViewAttackVectorEnv(seed=3, **tiny)
    env.reset(seed=11)
    env.action_space.seed(1)
    played(env, 1)
    other = copy.deepcopy(env)
    assert_alike(env, other, steps=1)
    assert other.engine is not env.engine and other.engine.streams.seed == 11
    assert plain(env.reset(seed=5)) == plain(other.reset(seed=5))


def test_images_in_a_file_are_mapped_again_and_not_copied(tiny, tmp_path: Path) -> None:
    for index in range(200):
        pixels = np.random.default_rng(index).integers(0, 255, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{index}.bmp")
    world = {name: value for name, value in tiny.items() if "limit" not in name} | {"image_size": 32}
    cache = tmp_path / "cache"
    env = Sb3ViewVecEnv(dataset="folder", data_dir=str(tmp_path), cache_dir=str(cache), **world)
    env.action_space.seed(1)
    env.reset()
    text = pickle.dumps(env)
    assert len(text) < env.engine.data.train.images.nbytes
    other = pickle.loads(text)
    assert other.engine.data.train.file == env.engine.data.train.file
    assert_alike(env, other, steps=1)
    for file in cache.iterdir():
        file.unlink()
    with pytest.raises(FileNotFoundError, match=r"images-32px-.*u8"):
        pickle.loads(text)
