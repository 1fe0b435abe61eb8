"""`ASTrA/ViewAttack-v0`: every attacked view chooses its own attack, as a Gymnasium vector environment."""

from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space

from astra_gym.envs.engine import AttackEngine
from astra_gym.envs.torch_env import TorchViewEnv, as_actions, check_num_envs, to_numpy
from astra_gym.envs.world_config import WorldSettings
from astra_gym.ssl_core.utils.messages import shown


class ViewAttackVectorEnv(gym.vector.VectorEnv[np.ndarray, np.ndarray, np.ndarray]):
    """Choose, for every view of the batch, how strongly it is attacked.

    ## Description
    A target network learns from images without labels, and every view (an augmented image) is attacked by PGD before
    the network learns from it (ASTrA, ICLR 2025). The views of one batch that the method attacks are the
    sub-environments, and they share one target network: a step attacks them all, gives each a reward, updates the
    network once and draws the next batch. Make the environment with `gymnasium.make_vec`; `gymnasium.make` does not
    work.

    ## Action Space
    Of a sub-environment:
    | `actions` | space | meaning |
    |---|---|---|
    | `factored` | `MultiDiscrete([13, 12, 5])` | epsilon 3..15 (/255), 3..14 steps, step size 1..5 (/255) |
    | `flat` | `Discrete(780)` | the same grid as one number, epsilon slowest |
    | `continuous` | `Box(-1, 1, (3,))` | the same three between the ends of their ranges; steps are rounded |
    | `none` | `Discrete(1)` | the only action of a method without an attack |

    These are ASTrA's sets. `action_epsilons`, `action_steps` and `action_step_sizes` give others, as lists or as
    `{"from": 0, "to": 96 / 255, "by": 4 / 255}`; 0 steps leave a view clean. The space is then equal only to a space
    of the same sets.

    ## Observation Space
    Of a sub-environment. `observation="features"`: `Box(-10, 10, (F + 2,), float32)` for a backbone with F features:
    | index | what | unit |
    |---|---|---|
    | 0 .. F-1 | the view's backbone features | running standard deviations, clipped |
    | F | the view's own loss before the attack (ACL, ASTrA: NT-Xent) | running standard deviations, clipped |
    | F+1 | training progress: from -1 at the first planned update to 1 after the last | |

    `observation="image"`: `Box(0, 255, (3, h, w), uint8)`, the view itself, as ASTrA's strategy network sees it.

    ## Rewards
    The view's own `reward_adversarial * L_adv - reward_clean * L_clean - reward_mixed * L_mixed`, float64;
    with `reward_scope="batch"` the mean of all, as in the paper. `reward_cost`, `reward_lookahead` and
    `reward_progress`, 0 by default, weigh further terms: the attack's cost, the effect of the update on held-out views
    (one number for all views) and the fall of the view's attacked loss since its image was last seen; see
    `astra_gym.envs.rewards.registry`.

    ## Starting State
    `reset(seed=s)` makes a new world: initial target weights and every random stream. `reset()` without a seed gives
    the coming batch of the present world. Lists of seeds are refused: there is one world.

    ## Episode End
    The horizon is 1: every step of every sub-environment is *terminated*, and the next observation belongs to a new
    episode. Autoreset is `SAME_STEP`, declared in `metadata`: `infos["final_obs"]` and `infos["final_info"]` hold the
    ended episode (its final observation is the view that was attacked). `infos` repeats the same values at the top,
    with Gymnasium's `_key` masks. Numbers of the whole batch (`loss_total`, `lr`, ...) are repeated per view.

    ## Wrappers
    Gymnasium's vector wrappers that record or change rewards and infos work (`RecordEpisodeStatistics`,
    `NormalizeReward`, `ClipReward`, `TransformReward`, `DictInfoToList`); `NormalizeObservation` and those that change
    single observations (`FlattenObservation`, `RescaleObservation`, `DtypeObservation`, ...) refuse `SAME_STEP`.

    Args:
        num_envs: 1 (what `make_vec` passes by default) or exactly the number of attacked views: 2 * batch_size for ACL
            and ASTrA, batch_size for RoCL and DeACL, crops * batch_size for CF-AMC-SSL.
        actions: kind of actions; by default `factored`, or `none` for a method without an attack.
        observation: `features`, `image`, or the dotted path of a custom one
            (`astra_gym.envs.observations.Observation`).
        seed: seed of the first world.
        device: device of the target network.
        max_episode_steps: 1 or None: the horizon is 1.
        engine: a world made elsewhere, instead of `world`.
        world: settings of the world, as `astra_gym.envs.world_config.WorldSettings`.

    Raises:
        ValueError: if a setting, the number of sub-environments or an action is wrong.

    ## Version History
    * v0: first version.
    """

    metadata: ClassVar[dict[str, Any]] = {  # type: ignore[misc]
        "render_modes": [],
        "autoreset_mode": AutoresetMode.SAME_STEP,
    }

    def __init__(
        self,
        num_envs: int = 1,
        *,
        actions: str | None = None,
        observation: str = "features",
        seed: int = 0,
        device: str = "cpu",
        max_episode_steps: int | None = None,
        engine: AttackEngine | None = None,
        render_mode: None = None,
        **world: Any,
    ) -> None:
        if max_episode_steps not in (None, 1):
            raise ValueError(f"max_episode_steps is {max_episode_steps}: every episode of a view is one step")
        self.engine = AttackEngine(WorldSettings.given(**world), seed, device) if engine is None else engine
        self.torch_env = TorchViewEnv(self.engine, actions, observation)
        check_num_envs(num_envs, self.torch_env.num_envs, self.engine.settings)
        self.num_envs = self.torch_env.num_envs
        self.single_observation_space = self.torch_env.observation_space
        self.single_action_space = self.torch_env.action_space
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self.render_mode = render_mode

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Make a new world if a seed is given, else return the coming batch of this one."""
        if seed is not None:
            if not isinstance(seed, int):
                raise ValueError(f"seed is {shown(seed)}: expected one integer, since all views share one world")
            super().reset(seed=seed)
            self.engine.reset(seed)
        return self._observation(), {}

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Attack every view with its action, and train the target network once."""
        ended = self._observation()
        reward, done, info = self.torch_env.play(as_actions(actions))
        infos: dict[str, Any] = {}
        everyone = np.ones(self.num_envs, np.bool_)
        for key, value in to_numpy(info).items():
            infos[key] = value if isinstance(value, np.ndarray) else np.full(self.num_envs, value)
            infos[f"_{key}"] = everyone
        final_obs = np.empty(self.num_envs, object)
        final_obs[:] = list(ended)
        infos |= {"final_obs": final_obs, "_final_obs": everyone, "final_info": dict(infos), "_final_info": everyone}
        terminated = done.cpu().numpy()
        return self._observation(), reward.cpu().numpy().astype(np.float64), terminated, ~terminated, infos

    def _observation(self) -> np.ndarray:
        return self.torch_env.observe().cpu().numpy()
