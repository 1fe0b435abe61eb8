"""The batches of a world: the next images, their coreset, and the method's views of them."""

import torch
from torch import Tensor

from astra_gym.envs.world_config import WorldSettings
from astra_gym.ssl_core.data.batch_source import BatchSource
from astra_gym.ssl_core.data.image_set import ImageSet
from astra_gym.ssl_core.data.sampler import BatchSampler
from astra_gym.ssl_core.methods import Method
from astra_gym.ssl_core.training.coreset import select, validation_rows
from astra_gym.ssl_core.training.learner import TargetLearner
from astra_gym.ssl_core.transforms.perspective_views import perspective_views
from astra_gym.ssl_core.transforms.views import as_float
from astra_gym.ssl_core.utils.rng import Streams
from astra_gym.ssl_core.utils.training_plan import Moment, TrainingPlan


class Batches:
    """The stream of batches; `start` begins it.

    Args:
        settings: settings of the world.
        train: training images of the world.
        device: device of the views.

    Attributes:
        sampler: sampler of rows of `train`; `sampler.last` are the rows of the last batch.
        source: source that gathers their images.
        views_settings: settings of the augmentations.
    """

    sampler: BatchSampler

    def __init__(self, settings: WorldSettings, train: ImageSet, device: torch.device) -> None:
        self.settings = settings
        self.images = train.images
        self.device = device
        self.source = BatchSource(train, device, settings.data.keep_data)
        self.views_settings = settings.views.make()
        self.perspective = settings.views.make_perspective()
        self._measured = torch.empty(0, dtype=torch.int64)

    def start(self, streams: Streams, held_out: Tensor | None) -> None:
        """Begin from the first batch.

        Args:
            streams: random streams of the world; "data" shuffles, "views" augments.
            held_out: (h,) int64, rows that enter no batch; None for none. The rows on which a coreset is measured enter
                no batch either; choosing them changes no random stream.
        """
        self.streams = streams
        rows, apart = torch.arange(len(self.images)), self._measured[:0] if held_out is None else held_out
        if self.settings.coreset.coreset != "none":
            self._measured = validation_rows(rows[~torch.isin(rows, apart)], streams)
            apart = torch.cat([apart, self._measured])
        size, drop_last = self.settings.optimizer.batch_size, bool(self.settings.data.drop_last)
        self.sampler = BatchSampler(len(rows), size, streams["data"], apart if len(apart) else None, drop_last)
        self.source.start(self.sampler)

    def draw(self, learner: TargetLearner, plan: TrainingPlan, step: int) -> Tensor:
        """Draw the views (v, 3, h, w) of the next images, for the update that follows the first `step` updates. If a
        coreset is due, it is chosen first, on the learner's present weights."""
        if self.chooses_coreset(plan, step):
            self.sampler.restrict(self._coreset(learner, plan))
        return self.make_views(learner.method, as_float(self.source.next()), plan.moment(step), self.streams["views"])

    def make_views(self, method: Method, images: Tensor, moment: Moment, generator: torch.Generator) -> Tensor:
        """Make the method's views (v, 3, h, w) of images (b, 3, h, w) in [0, 1], and distort all but the originals."""
        views = method.make_views(images, self.views_settings, moment, generator)
        if self.perspective.kind != "none":
            augmented = len(views) - method.originals_per_image * len(images)
            distorted = perspective_views(views[:augmented], self.perspective, generator)
            views = torch.cat([distorted, views[augmented:]])
        return views.contiguous(memory_format=torch.channels_last)

    def chooses_coreset(self, plan: TrainingPlan, step: int) -> bool:
        """Return whether a coreset is chosen before the batch of the update that follows the first `step` updates."""
        epoch, before = plan.place(step)
        epochs = self.settings.optimizer.epochs
        first, every = self.settings.coreset.calendar(epochs)
        due = len(self._measured) > 0 and before == 0 and first <= epoch < epochs
        return due and (epoch - first) % every == 0

    def _coreset(self, learner: TargetLearner, plan: TrainingPlan) -> Tensor:
        """Choose the rows of the coming epochs' batches."""
        moment, generator = learner.moment, self.streams["coreset/views"]
        return select(
            learner,
            self.sampler.all_rows,
            self._measured,
            self.settings.optimizer.batch_size,
            lambda rows: as_float(self.images[rows].to(self.device)),
            lambda batch: self.make_views(learner.method, batch, moment, generator),
            self.settings.coreset.make(plan.reduced_steps // plan.replays),
            self.streams,
        )
