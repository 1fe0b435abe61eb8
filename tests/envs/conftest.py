import pytest
import torch

from astra_gym.envs.engine import AttackEngine
from astra_gym.envs.world_config import WorldSettings
from astra_gym.ssl_core.models.checkpoint import describe_network, save_checkpoint
from astra_gym.ssl_core.models.target_network import build_network
from tests.helpers.tiny_worlds import TINY


@pytest.fixture
def tiny() -> dict:
    return dict(TINY)


@pytest.fixture
def engine() -> AttackEngine:
    return AttackEngine(WorldSettings.of(**TINY), seed=3)


@pytest.fixture(scope="session")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An encoder for methods that learn from one, or start from one (`given_encoder`)."""
    sizes = {"arch": "resnet10", **{name: TINY[name] for name in ("width", "projector_hidden", "projector_dim")}}
    network = build_network(torch.Generator().manual_seed(4), routes=("normal",), **sizes)
    payload = {"step": 0, "epoch": 0.0, "evaluation_route": "normal", "network": describe_network(network)}
    return str(save_checkpoint(tmp_path_factory.mktemp("taught") / "teacher.pt", "encoder", payload))
