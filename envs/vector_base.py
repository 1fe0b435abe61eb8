"""What the vector environments of views share: one world, whose attacked views are the sub-environments."""

from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space

from astra_gym.envs.engine import AttackEngine
from astra_gym.envs.torch_env import to_numpy
from astra_gym.envs.world_config import WorldSettings
from astra_gym.ssl_core.utils.messages import shown


class ViewsVectorEnv(gym.vector.VectorEnv[np.ndarray, np.ndarray, np.ndarray]):
    """The attacked views of a world's batches as sub-environments, whose episodes end together.

    Args:
        engine: the world.
        num_envs: 1 (no choice) or exactly the number of attacked views.
        right: that number.
        observation, action: spaces of a sub-environment.

    Raises:
        ValueError: if `num_envs` is another number, or the number of views differs between steps.
    """

    autoreset_mode = AutoresetMode.SAME_STEP
    """The declared mode, as an attribute too: Gymnasium's own vector environments have it, and TorchRL reads it."""
    metadata: ClassVar[dict[str, Any]] = {"render_modes": [], "autoreset_mode": autoreset_mode}  # type: ignore[misc]

    def __init__(
        self, engine: AttackEngine, num_envs: int, right: int, observation: gym.Space, action: gym.Space
    ) -> None:
        _check_num_envs(num_envs, right, engine.settings)
        self.engine, self.num_envs = engine, right
        self.single_observation_space, self.single_action_space = observation, action
        self.observation_space, self.action_space = (batch_space(space, right) for space in (observation, action))

    def _seed(self, seed: int | None) -> None:
        """Seed Gymnasium's own generator, which only wrappers use; the world is the caller's.

        Raises:
            ValueError: if the seed is not one integer.
        """
        if seed is None:
            return
        if not isinstance(seed, int):
            raise ValueError(f"seed is {shown(seed)}: expected one Python integer, since all views share one world")
        gym.vector.VectorEnv.reset(self, seed=seed)

    def _for_each(self, found: dict[str, Any]) -> dict[str, Any]:
        """Return infos: values of single views, what the views share repeated, and Gymnasium's masks."""
        infos: dict[str, Any] = {}
        for key, value in to_numpy(found).items():
            infos[key] = value if isinstance(value, np.ndarray) else np.full(self.num_envs, value)
            infos[f"_{key}"] = np.ones(self.num_envs, np.bool_)
        return infos

    def _ended(self, infos: dict[str, Any], observation: np.ndarray) -> dict[str, Any]:
        """Return the infos of a step that ends all episodes, with their last observations (num_envs, ...)."""
        final_obs = np.empty(self.num_envs, object)
        final_obs[:] = list(observation)
        everyone = np.ones(self.num_envs, np.bool_)
        finals = {"final_obs": final_obs, "_final_obs": everyone, "final_info": dict(infos), "_final_info": everyone}
        return infos | finals


def _check_num_envs(given: int, right: int, settings: WorldSettings) -> None:
    if not settings.data.drop_last:
        raise ValueError(
            "drop_last is false: the last batch of an epoch has fewer views, and here each view is a sub-environment; "
            "leave it out, or take the batch environment"
        )
    if given not in (1, right):
        raise ValueError(
            f"num_envs is {given!r}: a batch of {settings.optimizer.batch_size} images has {right} attacked views; "
            f"leave it out or give {right}"
        )
