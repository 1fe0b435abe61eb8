"""The training runs of one world, one after the other, for environments whose episodes or worlds end."""

import gymnasium as gym

from astra_gym.envs.engine import AttackEngine
from astra_gym.ssl_core.utils.rng import derive_seed


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

    def begin(self, seed: int | None) -> None:
        """Begin the first run of a seed if one is given, else the next run if the present one is over."""
        if seed is not None:
            self.start(seed)
        elif self.over:
            self.renew()

    def check_playable(self) -> None:
        """Raise a `gymnasium.error.ResetNeeded` if the present run is over."""
        if self.over:
            raise gym.error.ResetNeeded(
                f"the training run is over after {self.engine.step} updates: call reset(), which begins the next one"
            )
