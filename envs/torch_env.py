"""The engine as a vector environment in torch, on the device: the base of the NumPy environments and our agents."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from astra_gym.envs.actions import ActionTable
from astra_gym.envs.api.step_result import StepResult
from astra_gym.envs.engine import AttackEngine
from astra_gym.envs.observations import checked, observation_for
from astra_gym.ssl_core.utils.finite import check_number
from astra_gym.ssl_core.utils.messages import shown


class TorchViewEnv:
    """Every attacked view is a sub-environment with episodes of one step; all share the engine's target network.

    If the world's `drop_last` is false, an epoch's last step has fewer views than `num_envs`, and as many observations,
    actions and rewards: only agents that do not learn can play it.

    Args:
        engine: the world.
        actions: a name of `astra_gym.envs.actions.ACTION_KINDS`; a method without an attack takes only "none". By
            default "none" for such a method, else "factored".
        observation: a name of `astra_gym.envs.observations.OBSERVATIONS`, or the dotted path of a custom one.

    Raises:
        ValueError: if a name is unknown or does not suit the method, or the observation is not of views.
    """

    def __init__(self, engine: AttackEngine, actions: str | None = None, observation: str = "features") -> None:
        self.engine = engine
        attacks = engine.method.attack.exists
        actions = actions or ("factored" if attacks else "none")
        self.table = ActionTable(actions, engine.settings.ranges.sets)
        if (actions == "none") == attacks:
            fitting = "any kind of actions but 'none'" if attacks else "actions 'none': it has no attack"
            name = engine.settings.method.method
            raise ValueError(f"actions are {shown(actions)}: the method {name} takes {fitting}")
        self._name, self._observation = observation, observation_for("view", observation)(engine)
        self.action_space = self.table.space
        self.observation_space = self._observation.view_space
        self.device = engine.device

    @property
    def checks_finite(self) -> bool:
        """Whether the world itself stops at values that are not finite, so that agents need not check them."""
        return self._observation.checks_finite

    @property
    def num_envs(self) -> int:
        """Number of sub-environments: the attacked views of a full batch."""
        method, images = self.engine.method, self.engine.settings.optimizer.batch_size
        return images * (method.attacked_per_image if method.attack.exists else method.views_per_image)

    def observe(self) -> Tensor:
        """Return observations (num_envs, ...) of the coming batch; the same until the next `play`."""
        return self.observation_of(self.engine.all_views)

    def observation_of(self, views: Tensor) -> Tensor:
        """From a batch's views (v, 3, h, w), return an agent's observations (n, ...) of the attacked ones. The batch
        need not be the coming one; the world does not change."""
        values = self._observation.of_views(views)
        return checked(values, lambda: len(self.engine.method.attacked(views)), self.observation_space, self._name)

    def play(self, actions: Tensor) -> StepResult:
        """Step every sub-environment once.

        Args:
            actions: (num_envs, ...) of the action space.

        Raises:
            ValueError: if their number, shape, dtype or range is wrong.
        """
        self._check_count(actions)
        # actions are checked and the attack is planned on the host; one copy makes the host wait for a GPU only once
        record = self.engine.play(self.table.decode(actions.cpu()))
        return StepResult(record.reward, torch.ones(len(record.views), dtype=torch.bool), step_info(self.engine))

    def request(self, *names: str) -> None:
        """Have the `info` of every later play hold these reports, see `astra_gym.envs.api.protocol.ReportingEnv`."""
        self.engine.reports.request(*names)

    def places(self) -> Tensor:
        """Return a number (num_envs,) for the image and the place of each coming view, as `ViewsEnv.places`."""
        rows, slots = self.engine.batches.sampler.last, self.engine.method.attacked_per_image
        return (rows[:, None] * slots + torch.arange(slots)).flatten()

    def _check_count(self, actions: Tensor) -> None:
        views = len(self.engine.views)
        check_count(actions, views, f"one for each of {views} views")

    def assess(self, actions: Tensor) -> Tensor | None:
        """Return the reward (num_envs,) of actions (num_envs, ...): the coming batch is attacked, and nothing is
        learned. None if the reward depends on more than the attack, see `AttackEngine.try_out`.

        Raises:
            ValueError: as `play`.
        """
        self._check_count(actions)
        budget = self.table.decode(actions.cpu())
        return None if budget is None else self.engine.try_out(budget)

    def state_dict(self) -> dict[str, Any]:
        """Return the world's state."""
        return self.engine.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> list[str]:
        """Restore the world; return the random streams that could not be continued on this device."""
        return self.engine.load_state_dict(state)


class TorchBatchEnv:
    """One action for the whole batch; an episode is `episode_steps` steps, an epoch by default.

    Args:
        engine: the world.
        actions: as `TorchViewEnv`.
        episode_steps: length of an episode; None: it ends with its epoch.
        observation: as `TorchViewEnv`, but of batches.

    Raises:
        ValueError: if a name is unknown, does not suit the method, or the length is not positive.
    """

    num_envs = 1

    def __init__(
        self,
        engine: AttackEngine,
        actions: str | None = None,
        episode_steps: int | None = None,
        observation: str = "features",
    ) -> None:
        if episode_steps is not None:
            check_number("episode_steps", episode_steps, 1, expected="a positive integer", whole=True)
        self._views = TorchViewEnv(engine, actions)
        self.engine = engine
        self.table = self._views.table
        self.action_space = self._views.action_space
        self._name, self._observation = observation, observation_for("batch", observation)(engine)
        self.observation_space = self._observation.batch_space
        self.device = engine.device
        self.episode_steps = episode_steps
        self.episode_start = engine.step
        """Target updates made when the episode began."""

    @property
    def checks_finite(self) -> bool:
        """As `TorchViewEnv.checks_finite`."""
        return self._observation.checks_finite

    def observe(self) -> Tensor:
        """Return the observation (1, ...) of the coming batch."""
        return self.observation_of(self.engine.all_views)

    def observation_of(self, views: Tensor) -> Tensor:
        """Return an agent's observation (1, ...) of a batch of views (v, 3, h, w); see
        `TorchViewEnv.observation_of`."""
        return checked(self._observation.of_batch(views), lambda: 1, self.observation_space, self._name)

    def play(self, actions: Tensor) -> StepResult:
        """Play an action (1, ...) for the batch. The reward is the mean over the views."""
        check_count(actions, 1, "one for the batch")
        actions = actions.cpu()
        self.table.check(actions)
        reward, _, info = self._views.play(self._for_each_view(actions))
        step, length = self.engine.step, self.episode_steps
        done = self.engine.plan.ends_epoch(step) if length is None else step - self.episode_start >= length
        if done:
            self.episode_start = self.engine.step
        return StepResult(reward.mean()[None], torch.tensor([done]), info)

    def request(self, *names: str) -> None:
        """As `TorchViewEnv.request`: the reports are of single views."""
        self._views.request(*names)

    def _for_each_view(self, actions: Tensor) -> Tensor:
        return actions.expand(len(self.engine.views), *actions.shape[1:])

    def assess(self, actions: Tensor) -> Tensor | None:
        """Return the reward (1,) of an action (1, ...), or None: see `TorchViewEnv.assess`."""
        check_count(actions, 1, "one for the batch")
        actions = actions.cpu()
        self.table.check(actions)
        reward = self._views.assess(self._for_each_view(actions))
        return None if reward is None else reward.mean()[None]

    def state_dict(self) -> dict[str, Any]:
        """Return the world's state, and the step at which the episode began."""
        return self.engine.state_dict() | {"episode_start": self.episode_start}

    def load_state_dict(self, state: dict[str, Any]) -> list[str]:
        """Restore world and episode; return the random streams that could not be continued on this device."""
        self.episode_start = state["episode_start"]
        return self.engine.load_state_dict(state)


def as_actions(values: Any) -> Tensor:
    """Convert a user's actions to a tensor of int64 or float64, a copy.

    Raises:
        ValueError: if they are not numbers.
    """
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise ValueError(
            f"actions are {shown(values)}: expected an array of numbers, with rows of one length"
        ) from error
    if array.dtype.kind not in "iuf":
        raise ValueError(f"actions are {array.dtype} {array.shape}: expected an array of numbers")
    # torch takes no array that is read-only, reversed or of another byte order
    return torch.from_numpy(array.astype(np.float64 if array.dtype.kind == "f" else np.int64, order="C"))


def check_count(actions: Tensor, expected: int, what: str) -> None:
    """Raise a ValueError unless there are as many actions as expected."""
    if actions.ndim == 0 or len(actions) != expected:
        raise ValueError(f"actions have shape {tuple(actions.shape)}: expected {what}")


def step_info(engine: AttackEngine) -> dict[str, Any]:
    """Return the values of `info` for the step just played, named as in `metrics.jsonl` and TensorBoard, where the unit
    of a budget is another: per-view tensors (num_attacked,) on the host, and numbers of the whole batch.

    Per view: the method's reward terms (`reward/adversarial`, `reward/clean` and, for ASTrA, `reward/mixed`) and the
    other terms of non-zero weight, see `astra_gym.envs.rewards.registry`; the budget used (`budget/steps`, and
    `budget/epsilon` and `budget/step_size` as fractions); `budget/strength`, the largest change of a pixel (a
    fraction); the reports that were requested, see `astra_gym.envs.api.protocol.REPORTS`.

    Of the batch: `loss/total` and `loss/NAME` for each named term; `lr`; `step`, the target updates made, and `epoch`,
    the same in passes over the data; `attack/other_steps`, see `StepRecord`.
    """
    record = engine.last
    return {} if record is None else record.of_views() | record.reports | record.of_batch()


def to_numpy(info: dict[str, Any]) -> dict[str, Any]:
    """Return the same values, with arrays for tensors: copies, since the world keeps some of them."""
    return {key: value.cpu().numpy().copy() if isinstance(value, Tensor) else value for key, value in info.items()}
