"""The engines by name."""

from collections.abc import Callable

from astra_gym.experiments.engines.base import LOCAL, Engine, EngineFlags
from astra_gym.experiments.engines.local import LocalEngine
from astra_gym.experiments.engines.ray_cluster import RayEngine
from astra_gym.experiments.engines.slurm_cluster import SlurmEngine

MADE_BY: dict[str, Callable[[EngineFlags], Engine]] = {
    LOCAL: LocalEngine,
    "ray": RayEngine,
    "slurm": SlurmEngine,
}


def make_engine(flags: EngineFlags) -> Engine:
    """Make the engine that the flags name.

    Raises:
        ValueError: if it cannot be used here.
    """
    return MADE_BY[flags.engine](flags)
