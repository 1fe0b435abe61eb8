"""The view and the batch environment (v0) for Stable-Baselines3; `Sb3VecEnv` takes any Gymnasium vector environment."""

from collections.abc import Sequence
from typing import Any

from stable_baselines3.common.vec_env import DummyVecEnv

from astra_gym.envs.api.vec_env import Sb3VecEnv
from astra_gym.envs.batch_env import BatchAttackEnv
from astra_gym.envs.engine import AttackEngine
from astra_gym.envs.view_env import ViewAttackVectorEnv

__all__ = ["Sb3BatchVecEnv", "Sb3VecEnv", "Sb3ViewVecEnv"]


class Sb3ViewVecEnv(Sb3VecEnv):
    """Every attacked view of the batch as a sub-environment of one Stable-Baselines3 `VecEnv`.

    Spaces, reward and transition are those of `ViewAttackVectorEnv`. Every step is an episode. A sub-environment's info
    holds the attacked view as `terminal_observation`, its reward terms, budget and strength as numbers, and the batch's
    losses. The world's seed is a constructor argument: `seed()` draws nothing and makes no new world, because
    Stable-Baselines3 leaves seeds pending after `load` and would wipe the trained target at the next `learn`.

    Args:
        num_envs: 1 or exactly the number of attacked views.
        arguments: as `ViewAttackVectorEnv`.

    Raises:
        ValueError: if a setting, the number of sub-environments or an action is wrong.
    """

    def __init__(self, num_envs: int = 1, **arguments: Any) -> None:
        env = ViewAttackVectorEnv(num_envs, **arguments)
        self.engine, self.torch_env = env.engine, env.torch_env
        super().__init__(env)

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Ignore the seed: the world's seed is a constructor argument."""
        return [None] * self.num_envs


class Sb3BatchVecEnv(DummyVecEnv):
    """The batch environment as a `VecEnv` of one sub-environment; here, too, a seed makes no new world.

    Args:
        engine: the world.
        actions: kind of actions.
        observation: what the agent sees of a batch.
    """

    def __init__(self, engine: AttackEngine, actions: str | None = None, observation: str = "features") -> None:
        env = BatchAttackEnv(engine=engine, actions=actions, observation=observation)
        self.engine, self.torch_env = engine, env.torch_env
        super().__init__([lambda: env])

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Ignore the seed: the world's seed is a constructor argument."""
        return [None] * self.num_envs
