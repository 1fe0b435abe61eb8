"""The engines by name."""

from collections.abc import Callable

from astra_gym.experiments.engines.base import LOCAL, Engine, EngineFlags
from astra_gym.experiments.engines.local import LocalEngine
from astra_gym.experiments.engines.ray_cluster import RayEngine
from astra_gym.experiments.engines.slurm_cluster import SlurmEngine
from astra_gym.ssl_core.utils.registry import pick

ENGINES: dict[str, Callable[[EngineFlags], Engine]] = {
    LOCAL: LocalEngine,
    "ray": RayEngine,
    "slurm": SlurmEngine,
}


def make_engine(flags: EngineFlags) -> Engine:
    """Make the engine that the flags name.

    Raises:
        ValueError: if there is no such engine, or it cannot be used here.
    """
    return pick(flags.engine, ENGINES, "engine")(flags)
