"""What a step does on a GPU, on one that is pretended: no device is mixed with another, and the host hardly waits."""

import re
from collections.abc import Iterable
from typing import Any

import pytest
import torch

from astra_gym.agents import AGENTS, make_agent
from astra_gym.envs.engine import AttackEngine
from astra_gym.envs.sb3_env import Sb3BatchVecEnv, Sb3ViewVecEnv
from astra_gym.envs.torch_env import TorchBatchEnv, TorchViewEnv
from astra_gym.envs.world_config import WorldSettings
from tests.helpers.method_worlds import encoder_of
from tests.helpers.pretend_cuda import PretendGpu, pretend_cuda

TINY = {"batch_size": 4, "epochs": 3, "limit": 14, "test_limit": 20, "image_size": 16, "width": 2}
TINY |= {"projector_hidden": 8, "projector_dim": 8}
MLP = {"projector": "mlp", "neck": 8, "method_kwargs": {"crops": 4}}
WORLDS: dict[str, tuple[dict[str, Any], int]] = {
    "astra": ({}, 2),
    "acl": ({}, 2),
    "acl a2s": ({"method_kwargs": {"streams": "a2s"}}, 2),
    "simclr": ({}, 2),
    "rocl": ({"projector": "rocl"}, 2),
    "dynacl": ({"optimizer": "lars"}, 2),
    "dynacl-air": ({}, 2),
    "acl-air": ({}, 2),
    "byol": ({"projector": "mlp"}, 2),
    "simsiam": ({"projector": "simsiam-2"}, 2),
    "moco": ({"projector": "rocl", "method_kwargs": {"queue_size": 10}}, 2),
    "mocov3": ({"projector": "simsiam-2"}, 2),
    "swav": ({"projector": "mlp", "method_kwargs": {"prototypes": 9, "queue_size": 10, "queue_epochs": 0}}, 2),
    "barlow": ({"projector": "mlp-3"}, 2),
    "dino": ({"projector": "none", "method_kwargs": {"hidden": 8, "local_crops": 2}}, 2),
    "vicreg": ({"projector": "mlp-3"}, 2),
    "taro": ({"projector": "simsiam-2"}, 2),
    "deacl": ({"projector": "none"}, 2),
    "daq-sdp": ({"projector": "none"}, 2),
    "advcl": ({"projector": "advcl", "method_kwargs": {"clusters": [2, 3]}}, 2),
    "astra++": ({}, 2),
    "dynacl-air++": ({}, 2),
    "emp-ssl": (MLP, 2),
    "cf-amc-ssl": (MLP, 2),
    "acl last": ({"drop_last": False, "limit": 6}, 2),
    "astra host": ({"keep_data": "host"}, 2),
    "astra moebius": ({"perspective": "moebius"}, 2),
    "astra recompute": ({"recompute": True}, 2),
    "astra chunks": ({"update_chunks": 2}, 2),
    "astra blur": ({"blur": 0.5, "solarize": 0.3}, 2),
    "astra stop": ({"attack_stop": "retrieval"}, 17),
    "astra look-ahead": ({"reward_lookahead": 1.0, "reward_progress": 1.0, "lookahead_images": 2}, 4),
}
"""Worlds, and how often the host may wait in a step: for the actions, and for all that the step comes to; a look-ahead
measures after the update once more, and an attack that may stop has up to 14 steps to ask before."""
AGENT_WAITS = {
    **dict.fromkeys(("fixed", "fixed-max", "schedule", "random", "delayed", "accelerating", "escalating"), 2),
    "customized": 2,
    "reinforce": 3,
    "reinforce-paper": 5,
    "bandit": 5,
    **dict.fromkeys(("ppo", "a2c", "trpo", "dqn", "qrdqn", "sac", "td3", "ddpg", "tqc", "crossq"), 4),
    "lints": 30,
}
"""How often the host may wait in a step that an agent plays and learns from. Linear Thompson sampling solves small
systems, choice by choice; the paper's agent learns here in every step, as in its tenth."""


def some(names: Iterable[str], always: set[str]) -> list[Any]:
    """The names as parameters; those that are not always tried are left to `make test-all`."""
    marks = pytest.mark.every_agent
    return [pytest.param(name, marks=[] if name in always else marks) for name in sorted(names)]


def second_step(gpu: PretendGpu, agent: Any, num_envs: int) -> None:
    """Counts in the second step: the first one makes what lasts."""
    with gpu.counting():
        agent.learn(num_envs)
    assert not gpu.mixed, gpu.mixed
    with gpu.counting():
        agent.learn(num_envs, reset_num_timesteps=False)
    assert not gpu.mixed, gpu.mixed


def made(name: str, env: Any, **more: Any) -> Any:
    fixed = env.action_space.sample()
    given = {"fixed_action": fixed, "schedule_actions": [fixed, fixed], "planned_plays": 9, "gamma": 0.0} | more
    return make_agent(name, env, seed=0, device="cuda", **given)


@pytest.mark.slow
@pytest.mark.parametrize("name", some(WORLDS, {"astra", "astra stop", "cf-amc-ssl", "astra look-ahead"}))
def test_no_world_mixes_devices_or_waits_within_its_attack(name: str, teacher: str) -> None:
    (settings, ceiling), method = WORLDS[name], name.split()[0]
    taught = encoder_of(method, teacher)
    with pretend_cuda() as gpu:
        engine = AttackEngine(WorldSettings.of(**TINY | settings | taught, method=method), seed=1, device="cuda")
        env = TorchViewEnv(engine)
        second_step(gpu, made("fixed" if engine.method.attack.exists else "none", env), env.num_envs)
    assert gpu.waits.total() <= ceiling, gpu.waits
    assert not [place for place in gpu.waits if re.search(r"(pgd|parts|folding)\.py", place)], gpu.waits
    assert gpu.launches.total() > 100


@pytest.mark.slow
@pytest.mark.parametrize("env", some(["view", "batch"], {"view"}))
@pytest.mark.parametrize("name", some(AGENT_WAITS, {"fixed", "customized", "reinforce", "reinforce-paper", "ppo"}))
def test_no_agent_mixes_devices_or_waits_more_than_it_has_to(name: str, env: str) -> None:
    entry = AGENTS[name]
    with pretend_cuda() as gpu:
        settings = WorldSettings.of(**TINY, reward_scope=entry.reward_scope)
        engine = AttackEngine(settings, seed=1, device="cuda")
        # a radius for each image is of the view environment only
        if env == "batch" and name != "customized":
            torch_env: Any = TorchBatchEnv(engine, entry.actions)
            played = Sb3BatchVecEnv(engine, entry.actions) if entry.vec_env else torch_env
        else:
            observation = entry.observation
            played = TorchViewEnv(engine, entry.actions, observation)
            if entry.vec_env:
                played = Sb3ViewVecEnv(engine=engine, actions=entry.actions, observation=observation)
        overrides = {"width": 2, "interval": 1} if name == "reinforce-paper" else {}
        second_step(gpu, made(name, played, overrides=overrides), played.num_envs)
    assert gpu.waits.total() <= AGENT_WAITS[name], gpu.waits


def test_the_pretended_gpu_finds_what_it_is_for() -> None:
    with pretend_cuda() as gpu:
        there = torch.ones(3, 2, device="cuda")
        assert there.device.type == "cuda" and torch.zeros(2).device.type == "cpu"
        with gpu.counting():
            there + torch.ones(3, 2)
        assert gpu.mixed.total() == 1 and not gpu.waits
        with gpu.counting():
            float(there.sum())
            there.cpu()
            there[torch.tensor([0, 1])]
            there[there > 0]
            torch.ones(4).to("cuda")
            torch.ones(4).to("cuda", non_blocking=True)
        assert gpu.waits.total() == 5 and not gpu.mixed
        with gpu.counting():
            torch.rand(3, device="cuda", generator=torch.Generator())
        assert gpu.mixed.total() == 1
    assert not torch.cuda.is_available() or torch.cuda.device_count()
    assert torch.ones(1).device.type == "cpu"
