import pytest

from astra_gym.experiments.config.settings import Settings
from astra_gym.experiments.headroom.world import HeadroomWorld
from tests.helpers.tiny_training import TINY_SETTINGS


@pytest.fixture
def tiny_world() -> HeadroomWorld:
    """A world of 13 updates with batches of 8 views, judged by 12 images each."""
    constant = {"agent": "fixed", "epsilon": 48 / 255, "steps": 1, "step_size": 32 / 255, "precision": "fp32"}
    settings = Settings.from_preset("digits-wide").replace(**TINY_SETTINGS, **constant)
    return HeadroomWorld(settings.replace(limit=50, epochs=2, lr=3e-4), batches=2, views=3, updates=2)
