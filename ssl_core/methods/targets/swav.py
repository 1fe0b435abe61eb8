"""SwAV: a view predicts the code of its partner, an assignment to prototypes that uses all of them equally."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from astra_gym.ssl_core.attacks.pgd import Objective
from astra_gym.ssl_core.losses.prototypes import sinkhorn, swapped_cross_entropy
from astra_gym.ssl_core.methods.base import Networks
from astra_gym.ssl_core.methods.targets.target import AdversarialStreams, Target
from astra_gym.ssl_core.models.heads import KeyQueue, Prototypes
from astra_gym.ssl_core.models.target_network import Encoded
from astra_gym.ssl_core.utils.finite import check_number
from astra_gym.ssl_core.utils.training_plan import Moment


@dataclass(frozen=True)
class CleanSwAV(Target):
    """Swapping assignments between views (Caron et al. 2020) as in solo-learn, without an attack.

    Scores are the cosines of embeddings and prototypes. The code q of a view is Sinkhorn and Knopp's assignment of its
    kind's scores, first or second views, over the batch and a queue of earlier embeddings, without gradient
    (`astra_gym.ssl_core.losses.prototypes.sinkhorn`). `L` is the mean over all views of the cross-entropy of
    softmax(scores / temperature) with the partner's code.

    Published sizes are for networks of 64 channels and more: 3000 prototypes and queues of 3840, 15 batches (solo-learn
    on CIFAR). The small presets, of 16 channels and fewer images, have 128 prototypes and queues of 256.

    Args:
        temperature: of the prediction, positive (0.1).
        prototypes: number of prototypes.
        epsilon: smoothness of the codes, positive (0.05).
        iterations: of Sinkhorn and Knopp's algorithm, 1 or more (3).
        queue_size: number of embeddings in each queue, of first and of second views; 0: no queue. It starts with zeros
            and is filled from the first update.
        queue_epochs: number of first epochs in which the queue is not used, 0 or more (50 of 1000). Choose it so that
            the queue is full then.
        freeze_epochs: number of first epochs in which the prototypes rest, 0 or more (2).
    """

    temperature: float = 0.1
    prototypes: int = 3000
    epsilon: float = 0.05
    iterations: int = 3
    queue_size: int = 3840
    queue_epochs: int = 50
    freeze_epochs: int = 2

    paper: ClassVar[str] = "Caron et al., NeurIPS 2020"
    summary: ClassVar[str] = "swav without an attack"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("epsilon", self.epsilon, above=True)
        for name in ("prototypes", "iterations"):
            check_number(name, getattr(self, name), 1, expected="a positive integer", whole=True)
        for name in ("queue_size", "queue_epochs", "freeze_epochs"):
            check_number(name, getattr(self, name), expected="an integer of 0 or more", whole=True)

    @property
    def idle(self) -> Mapping[str, str]:
        """The queue's first epoch, without a queue."""
        return {} if self.queue_size else {"queue_epochs": "queue_size is 0"}

    def make_heads(self, feature_dim: int, embedding_dim: int) -> dict[str, nn.Module]:
        """Make the prototypes, and a pair of queues for each route, "queue_ROUTE"."""
        names = [f"queue_{route}" for route in self.routes.names if self.queue_size]
        queues = {name: KeyQueue(self.queue_size, embedding_dim, random=False) for name in names}
        return {"prototypes": Prototypes(embedding_dim, self.prototypes), **queues}

    def resting_heads(self, moment: Moment) -> tuple[str, ...]:
        """The prototypes, in the first epochs."""
        return ("prototypes",) if moment.epoch < self.freeze_epochs else ()

    def queued(self, networks: Networks, z: Tensor, route: str) -> Tensor | None:
        """Scores of the queues of a route, (2, queue_size, prototypes), without gradient; None while they are not used.

        In train mode the embeddings z (2b, d) then enter the queues; in eval mode they are not looked at.
        """
        if not self.queue_size:
            return None
        with torch.no_grad():
            kept = networks.heads[f"queue_{route}"](z, route)
            if networks.moment.epoch < self.queue_epochs:
                return None
            return networks.heads["prototypes"](kept.flatten(0, 1), route).unflatten(0, (2, -1))

    def row_losses(self, scores: Tensor, queued: Tensor | None) -> Tensor:
        """Cross-entropy of each view's prediction with its partner's code, (2b,); the codes have no gradient.

        Args:
            scores: (2b, prototypes), rows 2k and 2k+1 those of image k.
            queued: (2, queue_size, prototypes), scores of the queues of first and second views; None without.
        """
        codes = []
        for view in (0, 1):
            own = scores[view::2].detach()
            every = own if queued is None else torch.cat([own, queued[view]])
            codes.append(sinkhorn(every, self.epsilon, self.iterations)[: len(own)])
        together = torch.stack(codes, dim=1).flatten(0, 1)
        return swapped_cross_entropy(together, scores / self.temperature, reduction="none")

    def encoded(self, networks: Networks, images: Tensor, rows: Tensor, attacked: bool) -> Encoded:
        """Encode views to features and scores (n, prototypes), on the route of attacked or of clean images."""
        route = self.routes.attack if attacked else self.routes.clean
        features, embeddings = networks(images, route)
        return Encoded(features, networks.heads["prototypes"](embeddings, route))

    def objective(self, z: Tensor) -> Tensor:
        """Not defined without the queues: see `objective_for`."""
        raise NotImplementedError("SwAV's codes depend on its queues: its objective is objective_for's")

    def objective_for(self, networks: Networks, views: Tensor) -> Objective:
        """Cross-entropy of each view, (2b,), from scores, with the queues as they are before the update."""
        queued = self.queued(networks, views, self.routes.attack if self.attack.exists else self.routes.clean)
        return lambda scores: self.row_losses(scores, queued)

    def stream(self, networks: Networks, views: Tensor, route: str) -> Tensor:
        """Cross-entropy of each view, (2b,); the embeddings then enter the queues."""
        z = networks(views, route).embeddings
        return self.row_losses(
            networks.heads["prototypes"](z, route), self.queued(networks, F.normalize(z, dim=1), route)
        )


@dataclass(frozen=True)
class SwAV(AdversarialStreams, CleanSwAV):
    """Swapping assignments between views (Caron et al. 2020): `CleanSwAV` with `AdversarialStreams`.

    Each stream has its own codes and queues. An attack's codes follow the attacked scores, and its gradient goes
    through the predictions alone. The reward's `adversarial` and `clean` are the cross-entropy of each attacked or
    clean view with its partner's code, between 0 and log(prototypes) + 2 / temperature; the queues are the same for
    both.

    Args:
        temperature and all others but streams: as in `CleanSwAV`.
        streams: "ds" or "a2a", see `AdversarialStreams`.
    """

    temperature: float = 0.1

    summary: ClassVar[str] = "predicts the other view's balanced assignment to prototypes, clean and attacked"
