"""When a world chooses a coreset, and out of what."""

from collections.abc import Callable

import torch
from torch import Tensor

from astra_gym.envs.world_config import WorldSettings
from astra_gym.ssl_core.data.sampler import BatchSampler
from astra_gym.ssl_core.training.coreset import select, validation_rows
from astra_gym.ssl_core.training.learner import TargetLearner
from astra_gym.ssl_core.transforms.views import as_float
from astra_gym.ssl_core.utils.rng import Streams
from astra_gym.ssl_core.utils.training_plan import TrainingPlan


def is_due(settings: WorldSettings, plan: TrainingPlan, step: int) -> bool:
    """Whether a coreset is to be chosen after `step` updates."""
    epoch, before = plan.place(step)
    first, every = settings.coreset_epochs
    due = settings.coreset != "none" and before == 0 and first <= epoch < settings.epochs
    return due and (epoch - first) % every == 0


def measured_rows(settings: WorldSettings, n: int, held_out: Tensor | None, streams: Streams) -> Tensor | None:
    """Those of n training images that a selection measures by, none of them in `held_out`; None without a coreset."""
    if settings.coreset == "none":
        return None
    rows = torch.arange(n)
    return validation_rows(rows if held_out is None else rows[~torch.isin(rows, held_out)], streams)


def choose(
    settings: WorldSettings,
    plan: TrainingPlan,
    learner: TargetLearner,
    sampler: BatchSampler,
    images: Tensor,
    measured: Tensor,
    make_views: Callable[[Tensor, torch.Generator], Tensor],
    streams: Streams,
) -> Tensor:
    """Rows of the training images of the coming epochs' batches, chosen on the present weights.

    Args:
        settings: of the world.
        plan: its updates.
        learner: its target network.
        sampler: of its batches.
        images: (m, 3, h, w) uint8, the training images.
        measured: (u,) int64, the rows that the selection measures by.
        make_views: the method's views of images, drawn from a generator.
        streams: "coreset/views" makes the views, for the others see `select`.
    """
    return select(
        learner,
        sampler.all_rows,
        measured,
        settings.batch_size,
        lambda rows: as_float(images[rows].to(learner.device)),
        lambda batch: make_views(batch, streams["coreset/views"]),
        settings.make_coreset(plan.reduced_steps // plan.replays),
        streams,
    )
