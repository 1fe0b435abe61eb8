"""Where a GPU is waited for."""

import warnings
from collections.abc import Callable

import pytest
import torch

from astra_gym.envs.engine import AttackEngine
from astra_gym.envs.torch_env import TorchViewEnv
from astra_gym.envs.world_config import WorldSettings
from astra_gym.ssl_core.attacks.pgd import Budget
from tests.helpers.gpu import SIZES, no_waits, waits


def world(gpu: torch.device, **changes: object) -> TorchViewEnv:
    return TorchViewEnv(AttackEngine(WorldSettings.of(**SIZES | changes), seed=3, device=gpu))


def actions(env: TorchViewEnv) -> torch.Tensor:
    return torch.tensor([[4, 3, 1]]).expand(env.num_envs, 3).to(env.device)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_step_waits_twice_for_the_actions_and_for_what_it_has_given(gpu: torch.device, precision: str) -> None:
    env = world(gpu, precision=precision)
    env.observe()
    env.play(actions(env))
    chosen = actions(env)
    with waits(gpu) as waited:
        env.observe()
        env.play(chosen)
    assert len(waited) <= 2, waited


@pytest.mark.gpu
def test_an_attack_waits_for_nothing(gpu: torch.device) -> None:
    engine = world(gpu).engine
    budget = Budget.uniform(engine.num_attacked, epsilon=8 / 255, step_size=2 / 255, steps=3)
    noise = engine.streams.on_device("noise")
    engine.learner.attack(engine.all_views, budget, noise)
    with no_waits(gpu):
        engine.learner.attack(engine.all_views, budget, noise)


@pytest.mark.parametrize("context", [no_waits, waits])
def test_torch_s_mode_ends_with_its_context_whatever_happens(
    context: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes = []

    def set_mode(mode: str) -> None:
        modes.append(mode)
        warnings.warn("Synchronization debug mode is a prototype feature", UserWarning, stacklevel=2)

    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", set_mode)
    with pytest.raises(KeyError), context(torch.device("cuda", 0)):
        raise KeyError
    assert modes in (["error", "default"], ["warn", "default"])
    with context(torch.device("cpu")) as waited:
        assert not waited and len(modes) == 2
