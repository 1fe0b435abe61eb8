"""Tiny learners of self-supervised targets, and a batch for them."""

from typing import Any

import torch

from astra_gym.ssl_core.methods import make_method
from astra_gym.ssl_core.models.heads import build_heads
from astra_gym.ssl_core.training.learner import TargetLearner
from astra_gym.ssl_core.training.optim import make_optimizer
from astra_gym.ssl_core.utils.rng import Streams
from astra_gym.ssl_core.utils.training_plan import TrainingPlan
from tests.helpers.draws import generator
from tests.helpers.tiny_networks import tiny_network

VIEWS = torch.rand(8, 3, 8, 8, generator=generator(1))
ATTACKED = torch.rand(8, 3, 8, 8, generator=generator(2))
SMALL: dict[str, dict[str, Any]] = {
    "byol": {"predictor_hidden": 6},
    "simsiam": {"predictor_hidden": 6},
    "moco": {"queue_size": 7},
    "mocov3": {"predictor_hidden": 6},
    "dino": {"hidden": 10, "bottleneck": 6, "prototypes": 9},
    "swav": {"prototypes": 5, "queue_size": 7, "queue_epochs": 1},
    "barlow": {"lambda_param": 0.2},
    "vicreg": {},
}
"""Every target by its name, and options that fit a tiny network."""


def learner(name: str, lr: float = 0.05, decay: float = 0.0, **options: Any) -> TargetLearner:
    """A learner of the method in a run of three epochs of two updates.

    Args:
        name: name of the method, of a target or of its clean form.
        lr, decay: of plain SGD with momentum.
        options: the method's, which override `SMALL`.
    """
    method = make_method(name, SMALL[name.removesuffix("-clean")] | options)
    target = tiny_network(routes=method.routes.names, projector="mlp")
    heads = build_heads(Streams(0), method.make_heads(target.feature_dim, target.embedding_dim))
    beside = [(head, method.networks.constant_head_lr) for head in heads.values()]
    # another start than the online network's, so that the two can be told apart
    others = {other: tiny_network(5, routes=method.routes.names, projector="mlp") for other in method.networks.others}
    optimizer = make_optimizer("sgd-classic", target, lr, decay, heads=beside)
    moment = TrainingPlan(epochs=3, steps=2).moment
    return TargetLearner(target, method, optimizer, lambda step: lr, heads=heads, others=others, moment=moment)
