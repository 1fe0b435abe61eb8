"""The view and the batch environment for Stable-Baselines3, which does not take a Gymnasium vector environment."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from stable_baselines3.common.vec_env.base_vec_env import VecEnv, VecEnvIndices, VecEnvObs, VecEnvStepReturn

from astra_gym.envs.engine import AttackEngine
from astra_gym.envs.torch_env import TorchBatchEnv, TorchViewEnv, as_actions, check_num_envs, to_numpy
from astra_gym.envs.world_config import WorldSettings


class Sb3ViewVecEnv(VecEnv):
    """Every attacked view of the batch as a sub-environment of one Stable-Baselines3 `VecEnv`.

    Spaces, reward and transition are those of `ViewAttackVectorEnv`. Every step is an episode. A sub-environment's info
    holds the attacked view as `terminal_observation`, its reward terms, budget and strength as numbers, and the batch's
    losses. The world's seed is a constructor argument: `seed()` draws nothing and makes no new world, because
    Stable-Baselines3 leaves seeds pending after `load` and would wipe the trained target at the next `learn`.

    Args:
        num_envs: 1 or exactly the number of attacked views.
        actions, observation, seed, device, engine, world: as `ViewAttackVectorEnv`.

    Raises:
        ValueError: if a setting, the number of sub-environments or an action is wrong.
    """

    def __init__(
        self,
        num_envs: int = 1,
        *,
        actions: str | None = None,
        observation: str = "features",
        seed: int = 0,
        device: str = "cpu",
        engine: AttackEngine | None = None,
        **world: Any,
    ) -> None:
        self.engine = AttackEngine(WorldSettings.given(**world), seed, device) if engine is None else engine
        view_env = TorchViewEnv(self.engine, actions, observation)
        check_num_envs(num_envs, view_env.num_envs, self.engine.settings)
        self._setup(view_env)

    def _setup(self, torch_env: TorchViewEnv | TorchBatchEnv) -> None:
        self.torch_env = torch_env
        self.render_mode = None
        super().__init__(torch_env.num_envs, torch_env.observation_space, torch_env.action_space)

    def reset(self) -> VecEnvObs:
        """Return the coming batch's observations (num_envs, ...); the world does not restart."""
        self.reset_infos = [{} for _ in range(self.num_envs)]
        self._reset_seeds()
        self._reset_options()
        return self._observation()

    def step_async(self, actions: np.ndarray) -> None:
        """Take the actions of the coming step."""
        self._actions = np.asarray(actions)

    def step_wait(self) -> VecEnvStepReturn:
        """Play the actions; return observations, rewards (float32), dones and one info per sub-environment."""
        ended = self._observation()
        reward, done, info = self.torch_env.play(as_actions(self._actions))
        dones = done.cpu().numpy()
        return self._observation(), reward.cpu().numpy(), dones, self._infos(to_numpy(info), ended, dones)

    def _infos(self, info: dict[str, Any], ended: np.ndarray, dones: np.ndarray) -> list[dict[str, Any]]:
        columns = {key: value.tolist() for key, value in info.items() if isinstance(value, np.ndarray)}
        shared = {key: value for key, value in info.items() if key not in columns} | {"TimeLimit.truncated": False}
        rows = zip(*columns.values(), strict=True) if columns else [()] * self.num_envs
        return [
            {**shared, **dict(zip(columns, row, strict=True)), "terminal_observation": observation}
            for row, observation in zip(rows, ended, strict=True)
        ]

    def _observation(self) -> np.ndarray:
        return self.torch_env.observe().cpu().numpy()

    def close(self) -> None:
        """Do nothing: there is nothing to close."""

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """Return the attribute of this environment, once for each index: the sub-environments are one object."""
        return [getattr(self, attr_name)] * len(list(self._get_indices(indices)))

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Raise an error: the sub-environments share one world."""
        raise ValueError(f"{attr_name} can't be set for single views: they share one world; set it on the engine")

    def env_method(self, method_name: str, *args: Any, indices: VecEnvIndices = None, **kwargs: Any) -> list[Any]:
        """Call the method once, since the sub-environments are one object, and repeat its result for each index."""
        return [getattr(self, method_name)(*args, **kwargs)] * len(list(self._get_indices(indices)))

    def env_is_wrapped(self, wrapper_class: type, indices: VecEnvIndices = None) -> list[bool]:
        """Return False for each index: no sub-environment is wrapped."""
        return [False] * len(list(self._get_indices(indices)))

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Ignore the seed: the world's seed is a constructor argument."""
        return [None] * self.num_envs


class Sb3BatchVecEnv(Sb3ViewVecEnv):
    """The batch environment as a `VecEnv` of one sub-environment; here, too, a seed makes no new world.

    Args:
        engine: the world.
        actions: kind of actions.
        observation: what the agent sees of a batch.
    """

    def __init__(self, engine: AttackEngine, actions: str | None = None, observation: str = "features") -> None:
        self.engine = engine
        self._setup(TorchBatchEnv(engine, actions, observation=observation))

    def _infos(self, info: dict[str, Any], ended: np.ndarray, dones: np.ndarray) -> list[dict[str, Any]]:
        truncated = bool(dones[0])
        # an epoch's end is a truncation: the next observation is the one with which the episode would have continued
        final = {"terminal_observation": self._observation()[0]} if truncated else {}
        return [info | final | {"TimeLimit.truncated": truncated}]
