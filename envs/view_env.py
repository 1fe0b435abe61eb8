"""`ASTrA/ViewAttack`, versions 0 and 1: every attacked view chooses its own attack, as a vector environment."""

from typing import Any, ClassVar

import numpy as np

from astra_gym.envs.actions import WITH_NONE
from astra_gym.envs.engine import AttackEngine
from astra_gym.envs.rendering.drawing import DRAWN, SMALL
from astra_gym.envs.rendering.step_renderer import StepRenderer
from astra_gym.envs.run_sequence import RunSequence, world_of
from astra_gym.envs.torch_env import TorchViewEnv, as_actions
from astra_gym.envs.vector_base import ViewsVectorEnv


class ViewAttackVectorEnv(ViewsVectorEnv):
    """Choose, for every view of the batch, how strongly it is attacked: version 0, in which a training never ends.

    All is as in `ViewAttackVectorEnvV1`, but for this:

    * Actions choose among ASTrA's sets by default, without 0 steps: `MultiDiscrete([13, 12, 5])`, `Discrete(780)`.
    * After the planned updates steps go on, at a learning rate of almost 0, and `infos` have no `run` or `new_run`.
    * There are no frames.

    Args:
        num_envs, actions, observation, seed, device, max_episode_steps, engine, world: as in version 1.

    Raises:
        TypeError: if a setting is unknown.
        ValueError: if a setting, the number of sub-environments or an action is wrong.

    ## Version History
    * v0: first version.
    """

    defaults: ClassVar[dict[str, Any]] = {}
    """Settings of the world that are not those of `WorldSettings`."""

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
        render_mode: str | None = None,
        **world: Any,
    ) -> None:
        if max_episode_steps not in (None, 1):
            raise ValueError(f"max_episode_steps is {max_episode_steps}: every episode of a view is one step")
        engine = world_of(type(self), engine, seed, device, world, **self.defaults)
        self.torch_env = TorchViewEnv(engine, actions, observation)
        spaces = self.torch_env.observation_space, self.torch_env.action_space
        super().__init__(engine, num_envs, self.torch_env.num_envs, *spaces)
        self.render_mode = render_mode

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Make a new world if a seed is given, else return the coming batch of this one."""
        self._seed(seed)
        if seed is not None:
            self.engine.reset(seed)
        return self._observation(), {}

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Attack every view with its action, and train the target network once."""
        ended = self._observation()
        reward, done, info = self.torch_env.play(as_actions(actions))
        infos = self._ended(self._for_each(info | self._advance()), ended)
        terminated = done.cpu().numpy()
        return self._observation(), reward.cpu().numpy().astype(np.float64), terminated, ~terminated, infos

    def _advance(self) -> dict[str, Any]:
        """Do what follows the update, and return what `infos` say of it."""
        return {}

    def _observation(self) -> np.ndarray:
        # a copy: on a CPU the tensor is the world's own, and is returned again as the final observation
        return self.torch_env.observe().cpu().numpy().copy()


class ViewAttackVectorEnvV1(ViewAttackVectorEnv):
    """Choose, for every view of the batch, how strongly it is attacked.

    ## Description
    A target network learns from images without labels, and every view (an augmented image) is attacked by PGD before
    the network learns from it (ASTrA, ICLR 2025). The views of one batch that the method attacks are the
    sub-environments, and they share one target network: a step attacks them all, gives each a reward, updates the
    network once and draws the next batch. When the planned updates are made (or the `passes` spent), the world renews
    itself: a new network begins its training, so that no step is spent on a finished one. Make the environment with
    `gymnasium.make_vec`; `gymnasium.make` does not work.

    ## Action Space
    Of a sub-environment:
    | `actions` | space | meaning |
    |---|---|---|
    | `factored` | `MultiDiscrete([13, 13, 5])` | epsilon 3..15 (/255), 0 or 3..14 steps, step size 1..5 (/255) |
    | `flat` | `Discrete(845)` | the same grid as one number, epsilon slowest |
    | `continuous` | `Box(-1, 1, (3,))` | the same three between the ends of their ranges; steps are rounded |
    | `none` | `Discrete(1)` | the only action of a method without an attack |

    0 steps are no attack: the view stays clean, whatever radius and step size are. The others are ASTrA's sets.
    `action_epsilons`, `action_steps` and `action_step_sizes` give other sets, as lists or as
    `{"from": 0, "to": 96 / 255, "by": 4 / 255}`, with or without 0 steps. Spaces are equal if their sets are.

    ## Observation Space
    Of a sub-environment. `observation="features"`: `Box(-10, 10, (F + 2,), float32)` for a backbone with F features:
    | index | what | unit |
    |---|---|---|
    | 0 .. F-1 | the view's backbone features | running standard deviations, clipped |
    | F | the view's own loss before the attack (ACL, ASTrA: NT-Xent) | running standard deviations, clipped |
    | F+1 | training progress: from -1 at the first planned update to 1 after the last | |

    `observation="image"`: `Box(0, 255, (3, h, w), uint8)`, the view itself, as ASTrA's strategy network sees it. Other
    observations come from `astra_gym.envs.observations.OBSERVATIONS` or a dotted path.

    ## Rewards
    The view's own weighted sum of the terms of `astra_gym.envs.rewards.registry`, float64: by default
    `reward_adversarial * L_adv - reward_clean * L_clean`; with `reward_scope="batch"` the mean of all, as in the paper.
    `reward_weights={NAME: WEIGHT}` weighs further terms.

    ## Starting State
    `reset(seed=s)` makes a new world and begins its first training run: initial target weights and every random stream.
    `reset()` without a seed gives the coming batch of the present run. Lists of seeds are refused: there is one world.

    ## Episode End
    The horizon is 1: every step of every sub-environment is *terminated*, and the next observation belongs to a new
    episode. Autoreset is `SAME_STEP`, declared in `metadata`: `infos["final_obs"]` and `infos["final_info"]` hold the
    ended episode (its final observation is the view that was attacked). `infos` repeats the same values at the top,
    with Gymnasium's `_key` masks. Numbers of the whole batch (`loss/total`, `lr`, ...) are repeated per view.

    `infos["run"]` is the number of the step's training run. With the last planned update `infos["new_run"]` is true for
    all views: the observations returned are the first of the next run, whose seed is derived from the world's seed and
    its number.

    ## Rendering
    `render_mode="rgb_array"` gives a frame for each view: its clean and attacked image and the change between them, its
    budget and reward; beside them the batch's mean reward over the last steps, and how often each radius, number of
    steps and step size was chosen, the view's own marked. Drawing changes no random stream.

    ## Wrappers
    Gymnasium's vector wrappers that record or change rewards and infos work (`RecordEpisodeStatistics`, `RecordVideo`
    with a `video_length`, `NormalizeReward`, `ClipReward`, `TransformReward`, `DictInfoToList`); `NormalizeObservation`
    and those that change single observations (`FlattenObservation`, `RescaleObservation`, `DtypeObservation`, ...)
    refuse `SAME_STEP`.

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
        render_mode: `rgb_array` or None.
        world: settings of the world, as `astra_gym.envs.world_config.WorldSettings`.

    Raises:
        TypeError: if a setting is unknown.
        ValueError: if a setting, the number of sub-environments or an action is wrong.

    ## Version History
    * v1: the world renews itself when the planned updates are made; no attack is an action by default; rendering. In v0
      steps go on after the plan, at a learning rate of almost 0.
    * v0: first version.
    """

    metadata: ClassVar[dict[str, Any]] = ViewAttackVectorEnv.metadata | DRAWN  # type: ignore[misc]
    defaults: ClassVar[dict[str, Any]] = {"action_steps": WITH_NONE}

    def __init__(self, num_envs: int = 1, *, render_mode: str | None = None, **arguments: Any) -> None:
        super().__init__(num_envs, render_mode=render_mode, **arguments)
        self.runs = RunSequence(self.engine)
        self.renderer = StepRenderer(self.engine, self.torch_env.table.sets, render_mode)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Make a new world if a seed is given, else return the coming batch of this one."""
        self._seed(seed)
        info = self.runs.begin(seed)
        if info["new_run"]:
            self.renderer.begin()
        return self._observation(), self._for_each(info)

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Attack every view with its action, train the target network once, and renew the world after the last update.

        Raises:
            ResetNeeded: if the world was made elsewhere, and its training run is over.
        """
        self.runs.check_playable()
        return super().step(actions)

    def _advance(self) -> dict[str, Any]:
        run, over = self.runs.run, self.runs.over
        self.renderer.keep(run)
        if over:
            self.runs.renew()
        return {"run": run, "new_run": over}

    def render(self) -> Any:
        """Draw the last step: a frame (h, w, 3) uint8 for each view; None without a render mode."""
        frames = self.renderer.frames(SMALL)
        return None if frames is None else tuple(frames)
