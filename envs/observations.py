"""What an agent sees of a batch: the table of observations, and the search for a custom one."""

import math
from collections.abc import Callable
from typing import ClassVar, Protocol

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from astra_gym.envs.world_config import WorldSettings
from astra_gym.ssl_core.methods import Method
from astra_gym.ssl_core.models.target_network import Encoded
from astra_gym.ssl_core.training.learner import TargetLearner
from astra_gym.ssl_core.utils.import_path import imported_class, is_dotted
from astra_gym.ssl_core.utils.messages import brief, shown
from astra_gym.ssl_core.utils.registry import pick

OBSERVATION_BOUND = 10.0
"""Standardized features are clipped to plus and minus this."""
MEMORY = 0.99
"""Weight of the old running statistics at each batch: they follow the target network, which drifts."""
VARIANCE_FLOOR = 1e-6
QUANTILES = (0.1, 0.5, 0.9)


class RunningStatistics:
    """Mean and variance of raw observations over the batches so far; older ones count less (`MEMORY`)."""

    def __init__(self) -> None:
        self.mean: Tensor | None = None
        self.variance: Tensor | None = None

    def update(self, raw: Tensor) -> None:
        """Add a batch's raw observations (n, d)."""
        variance, mean = torch.var_mean(raw, dim=0, correction=0)
        if self.mean is None or self.variance is None:
            self.mean, self.variance = mean, variance
        else:
            self.mean = MEMORY * self.mean + (1 - MEMORY) * mean
            self.variance = MEMORY * self.variance + (1 - MEMORY) * variance

    def standardize(self, raw: Tensor, progress: float) -> Tensor:
        """Turn raw observations (n, d) into what an agent sees (n, d + 1): standardized, clipped to plus and minus
        `OBSERVATION_BOUND`, with the training progress appended, moved from [0, 1] to [-1, 1].

        Raises:
            ValueError: if there are no statistics yet.
        """
        if self.mean is None or self.variance is None:
            raise ValueError("there are no running statistics yet: call observe() first")
        scaled = (raw - self.mean) / (self.variance + VARIANCE_FLOOR).sqrt()
        last = scaled.new_full((len(raw), 1), 2 * progress - 1)
        return torch.cat([scaled.clamp_(-OBSERVATION_BOUND, OBSERVATION_BOUND), last], dim=1)

    def state_dict(self) -> dict[str, Tensor | None]:
        """Return mean and variance, None before the first batch."""
        return {"mean": self.mean, "variance": self.variance}

    def load_state_dict(self, state: dict[str, Tensor | None], device: torch.device) -> None:
        """Restore what `state_dict` gave."""
        self.mean, self.variance = (
            None if state[name] is None else state[name].to(device)  # type: ignore[union-attr]
            for name in ("mean", "variance")
        )


def as_pixels(views: Tensor) -> Tensor:
    """Turn views in [0, 1] into contiguous uint8; a saved copy needs the same layout to resume exactly."""
    return (views * 255).round().to(torch.uint8).contiguous()


def summary(each: Tensor) -> Tensor:
    """Reduce the observations (n, d + 1) of a batch's views to one of the batch, (1, 2d + 1): means, standard
    deviations, and the progress, which is the same for all."""
    deviation, mean = torch.std_mean(each[:, :-1], dim=0, correction=0)
    return torch.cat([mean, deviation, each[0, -1:]])[None]


class ObservedWorld(Protocol):
    """The part of a world that an observation may use; `AttackEngine` is one."""

    learner: TargetLearner
    method: Method

    @property
    def settings(self) -> WorldSettings:
        """Settings of the world."""
        ...

    @property
    def all_views(self) -> Tensor:
        """The coming batch's views (v, 3, h, w) in [0, 1]."""
        ...

    @property
    def progress(self) -> float:
        """Share of the planned epochs that is done, in [0, 1]."""
        ...

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of a view."""
        ...

    @property
    def observation_dim(self) -> int:
        """Length of a view's row of `observe`."""
        ...

    def observe(self) -> Tensor:
        """Return standardized features, clean loss and progress of the coming batch's attacked views."""
        ...

    def raw_observation(self, views: Tensor) -> tuple[Tensor, Encoded]:
        """Return features and clean loss of a batch's attacked views, not standardized, and the network's output."""
        ...

    def standardize(self, raw: Tensor) -> Tensor:
        """Turn raw observations into what `observe` returns, by the present statistics and progress."""
        ...


class Observation:
    """What an agent sees: a row for each attacked view (`--env view`), a row for the batch (`--env batch`), or both. A
    subclass overrides the space and the values of those that it offers. An observation depends on views, weights and
    progress only: it has no state, and repeated calls give the same values.

    Args:
        world: the part of the world that the observation may use.
    """

    summary: ClassVar[str] = ""
    """Description in one line."""
    checks_finite: ClassVar[bool] = False
    """Whether the world itself stops at values that are not finite, so that agents need not wait for a GPU to check."""

    def __init__(self, world: ObservedWorld) -> None:
        self.world = world

    @property
    def view_space(self) -> gym.Space:
        """Space of a view's row."""
        raise NotImplementedError(f"{type(self).__name__} has no view_space: expected a Box, or the like")

    def of_views(self, views: Tensor) -> Tensor:
        """Return a row of `view_space` for each attacked view of a batch, (n, ...) in all.

        Args:
            views: (v, 3, h, w) in [0, 1], all of the batch; `world.method.attacked(views)` are the attacked ones.
        """
        raise NotImplementedError

    @property
    def batch_space(self) -> gym.Space:
        """Space of a batch's row."""
        raise NotImplementedError(f"{type(self).__name__} has no batch_space: expected a Box, or the like")

    def of_batch(self, views: Tensor) -> Tensor:
        """Return a row (1, ...) of `batch_space` for a batch of views (v, 3, h, w)."""
        raise NotImplementedError

    @classmethod
    def offers(cls, env: str) -> bool:
        """Return whether the observation can be used in the environment `view` or `batch`."""
        hook = {"view": "of_views", "batch": "of_batch"}[env]
        return getattr(cls, hook) is not getattr(Observation, hook)


class Features(Observation):
    """Features, clean loss and progress. For the coming batch they are the world's own, with its running statistics."""

    summary = "standardized features of the target network, the clean loss and the training progress"
    checks_finite = True

    @property
    def view_space(self) -> gym.Space:
        """Box (observation_dim,)."""
        return gym.spaces.Box(-OBSERVATION_BOUND, OBSERVATION_BOUND, (self.world.observation_dim,), np.float32)

    def of_views(self, views: Tensor) -> Tensor:
        """Return each view's features, clean loss and progress."""
        if views is self.world.all_views:
            return self.world.observe()
        return self.world.standardize(self.world.raw_observation(views)[0])

    @property
    def batch_space(self) -> gym.Space:
        """Box (size,): mean and deviation of features and clean loss, and the progress once."""
        size = 2 * (self.world.observation_dim - 1) + 1
        return gym.spaces.Box(-OBSERVATION_BOUND, OBSERVATION_BOUND, (size,), np.float32)

    def of_batch(self, views: Tensor) -> Tensor:
        """Return mean and standard deviation over the views, and progress."""
        return summary(self.of_views(views))


class Image(Observation):
    """The view itself, as ASTrA's strategy network sees it."""

    summary = "the views themselves, uint8 (view environment only)"
    checks_finite = True

    @property
    def view_space(self) -> gym.Space:
        """Box (3, h, w) of uint8."""
        return gym.spaces.Box(0, 255, self.world.image_shape, np.uint8)

    def of_views(self, views: Tensor) -> Tensor:
        """Return the views as pixels."""
        return as_pixels(self.world.method.attacked(views))


class Losses(Observation):
    """Clean losses, progress, and the judge: of the same size whatever network, images and batch are, so that a policy
    can go from one world to another.

    Entries: progress in [-1, 1]; mean, deviation, and quantiles 0.1, 0.5 and 0.9 of the views' clean losses in units of
    that of a uniform guess among a batch's views; the judged radius in 32/255; the weight of clean views in the judge.
    """

    summary = "clean losses, progress and judge, of the same size in all worlds (batch environment only)"
    checks_finite = True

    @property
    def batch_space(self) -> gym.Space:
        """Box (8,)."""
        return gym.spaces.Box(-OBSERVATION_BOUND, OBSERVATION_BOUND, (8,), np.float32)

    def of_batch(self, views: Tensor) -> Tensor:
        """Return the entries."""
        if views is self.world.all_views:
            # the pass over the coming batch is made once
            self.world.observe()
        losses = self.world.raw_observation(views)[0][:, -1]
        losses = losses / math.log(max(2, len(views) - 1))
        deviation, mean = torch.std_mean(losses, correction=0)
        judge = self.world.settings.judge
        known = (2 * self.world.progress - 1, judge.epsilon * 255 / 32, 1 - judge.attacked_share)
        progress, radius, clean = losses.new_tensor(known)
        quantiles = losses.quantile(losses.new_tensor(QUANTILES))
        values = torch.stack([progress, mean, deviation, *quantiles, radius, clean])
        return values.clamp(-OBSERVATION_BOUND, OBSERVATION_BOUND)[None]


OBSERVATIONS: dict[str, type[Observation]] = {"features": Features, "image": Image, "losses": Losses}


def find_observation(name: str) -> type[Observation]:
    """Find an observation by its name in `OBSERVATIONS`, or at a dotted path, my_module:MyObservation.

    Raises:
        ValueError: if there is none.
    """
    if not is_dotted(name):
        return pick(name, OBSERVATIONS, "observation")
    return imported_class(name, Observation, "astra_gym.envs.observations", "observation")


def observation_for(env: str, name: str) -> type[Observation]:
    """Find an observation as `find_observation` does; raise a ValueError too if the environment `env` cannot use it."""
    found = find_observation(name)
    if not found.offers(env):
        what, other = ("single views", "view") if env == "batch" else ("whole batches", "batch")
        ours = ", ".join(repr(each) for each, kind in OBSERVATIONS.items() if kind.offers(env))
        raise ValueError(
            f"observation {shown(name)} is of {what}: the {env} environment offers {ours}; or take env {other}"
        )
    return found


def checked(values: Tensor, rows: Callable[[], int], space: gym.Space, name: str) -> Tensor:
    """Return the values of the observation `name`, without gradient; raise a ValueError if a custom one gives another
    number of rows, or rows outside the space."""
    if name in OBSERVATIONS:
        return values
    expected = (rows(), *(space.shape or ()))
    if values.shape != expected or str(values.dtype) != f"torch.{space.dtype}":
        got = f"{values.dtype} {tuple(values.shape)}"
        raise ValueError(f"the observation {shown(name)} gives {got}: expected torch.{space.dtype} {expected}")
    values = values.detach()
    if isinstance(space, gym.spaces.Box):
        low, high = (torch.as_tensor(bound, device=values.device) for bound in (space.low, space.high))
        # written so that NaN passes: it has an error of its own, which keeps the last good checkpoint
        outside = bool(((values < low) | (values > high)).any())
    else:
        outside = not all(space.contains(row) for row in values.cpu().numpy())
    if outside:
        given = f"values from {values.min():.9g} to {values.max():.9g}"
        raise ValueError(f"the observation {shown(name)} gives {given}: expected elements of its space, {brief(space)}")
    return values
