"""The world of an environment, and its training runs, one after the other, where they end."""

from typing import Any

import gymnasium as gym

from astra_gym.envs.api.arguments import check_arguments
from astra_gym.envs.engine import AttackEngine
from astra_gym.envs.world_config import WorldSettings
from astra_gym.ssl_core.settings.records import leaves
from astra_gym.ssl_core.utils.device import one_thread_in_worker
from astra_gym.ssl_core.utils.messages import few
from astra_gym.ssl_core.utils.rng import derive_seed


def world_of(
    kind: type, engine: AttackEngine | None, seed: int, device: str, world: dict[str, Any], **defaults: Any
) -> AttackEngine:
    """Return the world of an environment: one made elsewhere, or a new one of these settings.

    Args:
        kind: class of the environment.
        engine: the world made elsewhere, or None.
        seed, device: as `AttackEngine`.
        world: settings that were given.
        defaults: settings of the environment's class.

    Raises:
        TypeError: if a setting is unknown.
        ValueError: if a setting is wrong, or has no effect on a world made elsewhere.
    """
    check_arguments(kind, world, [leaf.name for leaf in leaves(WorldSettings)])
    if engine is None:
        one_thread_in_worker()
        return AttackEngine(WorldSettings.given(**defaults | world), seed, device)
    if world:
        raise ValueError(f"{few(world)} and engine are given: a world made elsewhere has its settings already")
    return engine


class RunSequence:
    """Training runs that follow each other in one world: the first has the world's seed, run k a seed derived from that
    and k.

    Args:
        engine: the world.

    Attributes:
        run: number of the present run, from 0.
    """

    def __init__(self, engine: AttackEngine) -> None:
        self.engine = engine
        self.seed, self.run = engine.streams.seed, 0

    @property
    def over(self) -> bool:
        """Whether the present run is over: its planned updates are made, or its passes are spent."""
        return self.engine.finished

    def start(self, seed: int) -> None:
        """Begin the first run of another seed."""
        self.engine.reset(seed)
        self.seed, self.run = seed, 0

    def renew(self) -> None:
        """Begin the next run."""
        self.run += 1
        self.engine.reset(derive_seed(self.seed, f"run/{self.run}"))

    def begin(self, seed: int | None) -> dict[str, Any]:
        """Begin the first run of a seed if one is given, else the next run if the present one is over.

        Returns:
            What a reset's info says of it: `new_run` and `run`.
        """
        if seed is not None:
            self.start(seed)
        elif self.over:
            self.renew()
        return {"new_run": self.engine.step == 0, "run": self.run}

    def check_playable(self) -> None:
        """Raise a `gymnasium.error.ResetNeeded` if the present run is over."""
        if self.over:
            raise gym.error.ResetNeeded(
                f"the training run is over after {self.engine.step} updates: call reset(), which begins the next one"
            )
