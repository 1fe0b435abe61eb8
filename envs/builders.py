"""A world's learner, built from the world's settings."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor

from astra_gym.envs.world_config import WorldSettings
from astra_gym.ssl_core.attacks.pgd import find_start
from astra_gym.ssl_core.methods import Method
from astra_gym.ssl_core.models.checkpoint import CheckpointError, load_network
from astra_gym.ssl_core.models.heads import build_heads
from astra_gym.ssl_core.models.target_network import NORMALIZATIONS, TargetNetwork, build_network, copy_routes
from astra_gym.ssl_core.training.learner import TargetLearner
from astra_gym.ssl_core.training.optim import make_optimizer, warmup_cosine, warmup_cosine_by_epoch
from astra_gym.ssl_core.utils.messages import brief
from astra_gym.ssl_core.utils.rng import Streams
from astra_gym.ssl_core.utils.training_plan import TrainingPlan


def build_learner(
    settings: WorldSettings, streams: Streams, plan: TrainingPlan, images: Tensor | None = None
) -> TargetLearner:
    """Build a new target network, with all that its method trains or carries beside it, and the optimizer.

    Weights are drawn from the streams "init" and "heads".

    Args:
        settings: settings of the world.
        streams: random streams of the world.
        plan: updates of the run, which the learning-rate schedule spans.
        images: (n, 3, h, w) uint8, the training images, for methods that read them before training.

    Raises:
        ValueError: if the teacher does not fit the network, or cannot be read.
    """
    method = settings.make_method()
    mean, std = NORMALIZATIONS[settings.normalization]
    network = build_network(
        streams["init"],
        arch=settings.arch,
        width=settings.width,
        stem=settings.stem,
        routes=method.routes,
        projector=settings.projector,
        projector_hidden=settings.projector_hidden,
        projector_dim=settings.projector_dim,
        neck=settings.neck,
        mean=mean,
        std=std,
        precision=settings.precision,
        recompute=settings.recompute,
    ).to(streams.device)
    network.to(memory_format=torch.channels_last)
    others: dict[str, TargetNetwork] = {}
    route = "normal"
    if "teacher" in method.others and settings.teacher is not None:
        try:
            teacher, route = load_network(settings.teacher, streams.device, checks_images=False)
        except CheckpointError as error:
            raise CheckpointError(f"the teacher (--teacher): {error}") from error
        others["teacher"] = teacher.to(memory_format=torch.channels_last)
        if method.starts_from_teacher:
            try:
                copy_routes(teacher, network, route)
            except ValueError as error:
                raise ValueError(f"the teacher (--teacher) does not fit the network: {brief(error, 150)}") from error
    if "momentum" in method.others:
        others["momentum"] = copy.deepcopy(network)
    heads = build_heads(streams, method.make_heads(network.feature_dim, network.embedding_dim))
    beside = [(head, method.constant_lr) for head in heads.values()]
    optimizer = make_optimizer(settings.optimizer, network, settings.peak_lr, settings.weight_decay, heads=beside)
    learner = TargetLearner(
        network,
        method,
        optimizer,
        make_schedule(settings, plan),
        settings.update_chunks,
        heads=heads,
        others=others,
        teacher_route=route,
        moment=plan.moment,
        start=None if settings.attack_start is None else find_start(settings.attack_start),
    )
    if images is not None:
        learner.make_tables(images, streams)
    return learner


def make_schedule(settings: WorldSettings, plan: TrainingPlan) -> Callable[[int], float]:
    """Make the function from the number of updates so far to the next learning rate."""
    peak, floor, start = settings.peak_lr, settings.final_lr, settings.warmup_start
    if settings.lr_interval == "epoch":
        # whole epochs; the warm-up is cut to half of the run
        epochs = settings.warmup_updates(1)
        first = peak * (1 / max(1, epochs) if start is None else start)
        return lambda step: warmup_cosine_by_epoch(plan.place(step)[0], plan.epochs, epochs, peak, floor, first)
    updates, total = settings.warmup_updates(plan.steps), plan.epochs * plan.steps
    first = peak * (start or 0.0)
    return lambda step: warmup_cosine(plan.full_steps(step), total, updates, peak, floor, first)


def check_views(settings: WorldSettings, method: Method, views: Tensor) -> None:
    """Raise a ValueError unless the method makes, and attacks, as many views of a batch as it declares.

    Args:
        settings: settings of the world.
        method: method of the world.
        views: (v, 3, h, w), all views of a full batch.
    """
    b = settings.batch_size
    for name, found in {"views_per_image": len(views), "attacked_per_image": len(method.attacked(views))}.items():
        if found != getattr(method, name) * b:
            raise ValueError(
                f"the method {settings.method} says that {name} is {getattr(method, name)}, but has {found} for {b} "
                f"images: make_views, attacked and {name} have to agree"
            )
