"""A world's learner, built from the world's settings."""

import copy

import torch
from torch import Tensor

from astra_gym.envs.world_config import WorldSettings
from astra_gym.ssl_core.methods import Method
from astra_gym.ssl_core.models.checkpoint import CheckpointError, load_network
from astra_gym.ssl_core.models.heads import build_heads
from astra_gym.ssl_core.models.target_network import TargetNetwork
from astra_gym.ssl_core.models.weights.copying import copy_projector, copy_routes
from astra_gym.ssl_core.models.weights.start import start_network
from astra_gym.ssl_core.training.learner import TargetLearner
from astra_gym.ssl_core.training.optim import make_optimizer
from astra_gym.ssl_core.utils.messages import brief
from astra_gym.ssl_core.utils.rng import Streams
from astra_gym.ssl_core.utils.training_plan import TrainingPlan


def build_learner(
    settings: WorldSettings,
    streams: Streams,
    plan: TrainingPlan,
    images: Tensor | None = None,
    begins: bool = True,
) -> TargetLearner:
    """Build a new target network, with all that its method trains or carries beside it, and the optimizer.

    Weights are drawn from the streams "init" and "heads"; those of `init_from` then replace them.

    Args:
        settings: settings of the world.
        streams: random streams of the world.
        plan: updates of the run, which the learning-rate schedule spans.
        images: (n, 3, h, w) uint8, the training images, for methods that read them before training.
        begins: whether the file of `init_from` is read; false for a learner that gets a saved state next.

    Raises:
        ValueError: if the teacher or the file of `init_from` does not fit the network, or cannot be read.
    """
    method, train = settings.method.make(), settings.optimizer
    computed = {"precision": train.precision, "recompute": train.recompute, "compiled": train.compile_blocks}
    network = settings.network.build(streams["init"], method.routes.names, settings.data.image_size, **computed)
    network.to(streams.device).to(memory_format=torch.channels_last)
    origin, file = None, settings.network.init_from
    if begins and file is not None:
        try:
            origin = start_network(file, network)
        except ValueError as error:
            raise ValueError(f"init_from: {error}") from error
    others: dict[str, TargetNetwork] = {}
    route = "normal"
    if "teacher" in method.networks.others and settings.method.teacher is not None:
        try:
            teacher, route = load_network(settings.method.teacher, streams.device, checks_images=False)
        except CheckpointError as error:
            raise CheckpointError(f"the teacher (--teacher): {error}") from error
        others["teacher"] = teacher.to(memory_format=torch.channels_last)
        try:
            if method.starts_from_teacher:
                copy_routes(teacher, network, route)
            if method.networks.shares_projector:
                copy_projector(teacher, network, route)
        except ValueError as error:
            raise ValueError(f"the teacher (--teacher) does not fit the network: {brief(error, 200)}") from error
    for name in ("momentum", "initial"):
        if name in method.networks.others:
            others[name] = copy.deepcopy(network)
    heads = build_heads(streams, method.make_heads(network.feature_dim, network.embedding_dim))
    beside = [(head, method.networks.constant_head_lr) for head in heads.values()]
    optimizer = make_optimizer(train.optimizer, network, train.peak_lr, train.weight_decay, heads=beside)
    learner = TargetLearner(
        network,
        method,
        optimizer,
        train.schedule(plan),
        train.update_chunks,
        heads=heads,
        others=others,
        teacher_route=route,
        moment=plan.moment,
        start=settings.attack.find(),
    )
    learner.origin = origin
    if images is not None:
        learner.make_tables(images, streams)
    return learner


def check_views(settings: WorldSettings, method: Method, views: Tensor) -> None:
    """Raise a ValueError unless the method makes, and attacks, as many views of a batch as it declares.

    Args:
        settings: settings of the world.
        method: method of the world.
        views: (v, 3, h, w), all views of a full batch.
    """
    b = settings.optimizer.batch_size
    for name, found in {"views_per_image": len(views), "attacked_per_image": len(method.attacked(views))}.items():
        if found != getattr(method, name) * b:
            raise ValueError(
                f"the method {settings.method.method} says that {name} is {getattr(method, name)}, but has {found} for "
                f"{b} images: make_views, attacked and {name} have to agree"
            )
