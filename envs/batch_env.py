"""`ASTrA/BatchAttack`, versions 0 and 1: one attack for the whole batch, as an ordinary Gymnasium environment."""

from typing import Any, ClassVar

import gymnasium as gym
import numpy as np

from astra_gym.envs.actions import WITH_NONE
from astra_gym.envs.engine import AttackEngine
from astra_gym.envs.rendering.drawing import DRAWN, LARGE
from astra_gym.envs.rendering.step_renderer import StepRenderer
from astra_gym.envs.run_sequence import RunSequence, world_of
from astra_gym.envs.torch_env import TorchBatchEnv, as_actions, to_numpy

SHOWN = 6
"""So many views are in a frame."""


class BatchAttackEnv(gym.Env[np.ndarray, Any]):
    """Choose, at every training step, how strongly the batch is attacked: version 0, in which a training never ends.

    All is as in `BatchAttackEnvV1`, but for this:

    * Actions choose among ASTrA's sets by default, without 0 steps: `MultiDiscrete([13, 12, 5])`, `Discrete(780)`.
    * Episodes are epochs by default and end *truncated*, the last planned one too. After the planned updates steps go
      on, at a learning rate of almost 0; only `reset(seed=s)` makes a new network. `info` has no `run`.
    * There are no frames.

    Args:
        actions, seed, device, episode_steps, observation, engine, world: as in version 1.

    Raises:
        TypeError: if a setting is unknown.
        ValueError: if a setting or an action is wrong.

    ## Version History
    * v0: first version.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": []}  # type: ignore[misc]
    defaults: ClassVar[dict[str, Any]] = {}
    """Settings of the world that are not those of `WorldSettings`."""

    def __init__(
        self,
        *,
        actions: str | None = None,
        seed: int = 0,
        device: str = "cpu",
        episode_steps: int | None = None,
        observation: str = "features",
        engine: AttackEngine | None = None,
        render_mode: str | None = None,
        **world: Any,
    ) -> None:
        self.engine = world_of(type(self), engine, seed, device, world, **self.defaults)
        self.torch_env = TorchBatchEnv(self.engine, actions, episode_steps, observation)
        self.observation_space = self.torch_env.observation_space
        self.action_space = self.torch_env.action_space
        self.render_mode = render_mode

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        """Make a new world if a seed is given, else begin the next episode in this one."""
        super().reset(seed=seed)
        if seed is not None:
            self.engine.reset(seed)
        self.torch_env.episode_start = self.engine.step
        return self._observation(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Train the target network for one step under the chosen attack."""
        chosen, shape = as_actions(action), self.action_space.shape
        if chosen.shape != shape:
            raise ValueError(
                f"the action has shape {tuple(chosen.shape)}: expected {shape}, one of {self.action_space}"
            )
        reward, done, info = self.torch_env.play(chosen[None])
        return self._observation(), reward.item(), False, bool(done.item()), to_numpy(info)

    def _observation(self) -> np.ndarray:
        return self.torch_env.observe()[0].cpu().numpy()


class BatchAttackEnvV1(BatchAttackEnv):
    """Choose, at every training step of a self-supervised network, how strongly its batch is attacked.

    ## Description
    A target network learns from images without labels, and each batch is attacked by PGD before the network learns
    from it (ASTrA, ICLR 2025). One action sets the attack of the whole batch. A step attacks the batch, updates the
    target network once and draws the next batch. The planned updates (`epochs` times the batches of an epoch, or what
    `passes` pay for) are a training run; runs follow each other, so that no step is spent on a finished network.

    ## Action Space
    | `actions` | space | meaning |
    |---|---|---|
    | `factored` | `MultiDiscrete([13, 13, 5])` | epsilon 3..15 (/255), 0 or 3..14 steps, step size 1..5 (/255) |
    | `flat` | `Discrete(845)` | the same grid as one number, epsilon slowest |
    | `continuous` | `Box(-1, 1, (3,))` | the same three between the ends of their ranges; steps are rounded |
    | `none` | `Discrete(1)` | the only action of a method without an attack |

    0 steps are no attack: the batch stays clean, whatever radius and step size are. The others are ASTrA's sets.
    `action_epsilons`, `action_steps` and `action_step_sizes` give other sets, as lists or as
    `{"from": 0, "to": 96 / 255, "by": 4 / 255}`, with or without 0 steps. Spaces are equal if their sets are.

    ## Observation Space
    `observation="features"`: `Box(-10, 10, (2F + 3,), float32)` for a backbone with F features:
    | index | what | unit |
    |---|---|---|
    | 0 .. F-1 | mean over the batch's views of each backbone feature | standard deviations, clipped |
    | F | mean clean contrastive loss of the views | standard deviations, clipped |
    | F+1 .. 2F | standard deviation over the views of each feature | standard deviations |
    | 2F+1 | standard deviation of the clean loss | standard deviations |
    | 2F+2 | training progress: from -1 at the first planned update to 1 after the last | |

    Other observations come from `astra_gym.envs.observations.OBSERVATIONS` or a dotted path.

    ## Rewards
    Mean over the views of the weighted terms of `astra_gym.envs.rewards.registry`: by default
    `reward_adversarial * L_adv - reward_clean * L_clean`, with weights of 1/3 as in ASTrA's released code, on the
    network as the attack saw it. `reward_weights={NAME: WEIGHT}` weighs further terms.

    `info` holds the named terms, the losses, the budget and the attack's strength (see
    `astra_gym.envs.torch_env.step_info`), values of single views as arrays; and `run`, the number of the training run.

    ## Starting State
    `reset(seed=s)` makes a new world and begins its first training run: initial target weights and every random stream.
    `reset()` without a seed continues the present run, or begins the next one if it is over: run k of a world has a
    seed derived from the world's seed and k. Its info says whether a run begins (`new_run`) and which (`run`).

    ## Episode End
    *Terminated* with the last planned update. *Truncated* at the end of every other epoch, or after `episode_steps`. A
    step after the run's end is an error.

    ## Rendering
    `render_mode="rgb_array"`: of six views the clean and the attacked image and the change between them, each with its
    budget and reward; beside them the batch's mean reward over the last steps, and how often each radius, number of
    steps and step size was chosen. Drawing changes no random stream.

    ## Wrappers
    `RecordVideo`, `RecordEpisodeStatistics`, `NormalizeReward` and `NormalizeObservation` work, and Gymnasium's own
    vector environments; in a worker process torch computes on one thread.

    Args:
        actions: kind of actions; by default `factored`, or `none` for a method without an attack.
        seed: seed of the first world. Environments of one seed are equal until `reset(seed=s)`, those of a vector too.
        device: device of the target network.
        episode_steps: length of an episode, None for an epoch.
        observation: `features`, or the dotted path of a custom one (`astra_gym.envs.observations.Observation`).
        engine: a world made elsewhere, instead of `world`.
        render_mode: `rgb_array` or None.
        world: settings of the world, as `astra_gym.envs.world_config.WorldSettings`: `dataset`, `method`, `batch_size`,
            ...

    Raises:
        TypeError: if a setting is unknown.
        ValueError: if a setting or an action is wrong.

    ## Version History
    * v1: the planned updates end the run, terminated, and the next reset begins another; no attack is an action by
      default; rendering. In v0 steps go on after the plan, at a learning rate of almost 0.
    * v0: first version.
    """

    metadata: ClassVar[dict[str, Any]] = {**DRAWN}  # type: ignore[misc]
    defaults: ClassVar[dict[str, Any]] = {"action_steps": WITH_NONE}

    def __init__(self, *, render_mode: str | None = None, **arguments: Any) -> None:
        super().__init__(render_mode=render_mode, **arguments)
        self.runs = RunSequence(self.engine)
        self.renderer = StepRenderer(self.engine, self.torch_env.table.sets, render_mode)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        """Make a new world if a seed is given, else continue the training run, or begin the next one if it is over."""
        gym.Env.reset(self, seed=seed)
        info = self.runs.begin(seed)
        if info["new_run"]:
            self.renderer.begin()
        self.torch_env.episode_start = self.engine.step
        return self._observation(), info

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Train the target network for one step under the chosen attack.

        Raises:
            ResetNeeded: if the training run is over.
        """
        self.runs.check_playable()
        observation, reward, _, truncated, info = super().step(action)
        self.renderer.keep(self.runs.run)
        return observation, reward, self.runs.over, truncated and not self.runs.over, info | {"run": self.runs.run}

    def render(self) -> Any:
        """Draw the last step, (h, w, 3) uint8; None without a render mode."""
        frames = self.renderer.frames(LARGE, [range(SHOWN)])
        return None if frames is None else frames[0]
