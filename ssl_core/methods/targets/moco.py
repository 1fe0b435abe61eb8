"""MoCo: queries contrasted with a moving average's keys and queues of earlier keys; attacked as in AMOC."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from astra_gym.ssl_core.attacks.pgd import Objective
from astra_gym.ssl_core.losses.keys import moco
from astra_gym.ssl_core.methods.base import Networks
from astra_gym.ssl_core.methods.targets.target import AdversarialStreams, Target
from astra_gym.ssl_core.methods.traits import NetworkTraits
from astra_gym.ssl_core.models.ema import cosine_momentum
from astra_gym.ssl_core.models.heads import KeyQueue
from astra_gym.ssl_core.models.target_network import Encoded
from astra_gym.ssl_core.utils.finite import check_number
from astra_gym.ssl_core.utils.registry import pick
from astra_gym.ssl_core.utils.training_plan import Moment

VERSIONS: Mapping[str, str] = {"attacked": "of the attacked views", "clean": "of the clean views"}
"""Where the keys, or the negatives, of attacked queries come from."""


@dataclass(frozen=True)
class CleanMoCo(Target):
    """Momentum contrast, version 2+ (He et al. 2020, Chen et al. 2020; solo-learn), without an attack.

    `L = (l(q1, k2, Q2) + l(q2, k1, Q1)) / 2`, where l is InfoNCE of a query with its partner's key and the keys of
    earlier batches in a queue, see `astra_gym.ssl_core.losses.keys.moco`. Keys are the embeddings of "momentum", the
    moving average of backbone and projector, in train mode with its own statistics and without gradient. There are two
    queues, of first and of second views. They start as random unit vectors; a batch's keys enter after its loss. As in
    solo-learn, batch norm is not shuffled.

    Args:
        temperature: of the similarities, positive (0.2).
        queue_size: number of keys in each queue, positive (32768 in solo-learn, for 50,000 images). Choose less than an
            epoch's images, or a view's negatives hold its own image.
        momentum_start, momentum_end: momentum of the moving average at the first and after the last update, in [0, 1];
            it rises along a cosine (0.99 and 0.999 in solo-learn).
    """

    temperature: float = 0.2
    queue_size: int = 32768
    momentum_start: float = 0.99
    momentum_end: float = 0.999

    paper: ClassVar[str] = "He et al., CVPR 2020; Chen et al. 2020"
    summary: ClassVar[str] = "moco without an attack"
    networks: ClassVar[NetworkTraits] = NetworkTraits(others=("momentum",))

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("queue_size", self.queue_size, 1, expected="a positive integer", whole=True)
        check_number("momentum_start", self.momentum_start, 0, 1)
        check_number("momentum_end", self.momentum_end, 0, 1)

    def make_heads(self, feature_dim: int, embedding_dim: int) -> dict[str, nn.Module]:
        """Make a pair of queues for each route: "queue_ROUTE"."""
        return {f"queue_{route}": KeyQueue(self.queue_size, embedding_dim, random=True) for route in self.routes.names}

    def momentum(self, moment: Moment) -> float:
        """`end - (end - start) * (cos(pi * progress) + 1) / 2`, by the progress before the update."""
        return cosine_momentum(moment.progress, self.momentum_start, self.momentum_end)

    def keys(self, networks: Networks, images: Tensor, route: str) -> Tensor:
        """The moving average's embeddings of images, (n, d)."""
        return networks.others["momentum"](images, route).embeddings

    def encoded(self, networks: Networks, images: Tensor, rows: Tensor, attacked: bool) -> Encoded:
        """Encode views to features, and to queries beside keys (n, 2d), on the route of attacked or of clean images."""
        route = self.routes.attack if attacked else self.routes.clean
        features, queries = networks(images, route)
        return Encoded(features, torch.cat([queries, self.keys(networks, images, route)], dim=1))

    def objective(self, z: Tensor) -> Tensor:
        """Not defined without the queues: see `objective_for`."""
        raise NotImplementedError("MoCo has negatives in queues: its objective is objective_for's")

    def objective_for(self, networks: Networks, views: Tensor) -> Objective:
        """`l` of each view's query, (2b,), of queries beside keys and the queues as they are before the update."""
        return self.joint(self.negatives(networks, views, self.routes.clean))

    def joint(self, kept: Tensor) -> Objective:
        """`l` as a function of queries beside keys (2b, 2d), with given queues (2, queue_size, d)."""

        def objective(z: Tensor) -> Tensor:
            queries, keys = z.chunk(2, dim=1)
            return self.contrast(queries, keys, kept)

        return objective

    def negatives(self, networks: Networks, views: Tensor, route: str) -> Tensor:
        """The queues of a route, (2, queue_size, d), in eval mode."""
        return networks.heads[f"queue_{route}"](views, route)

    def contrast(self, queries: Tensor, keys: Tensor, kept: Tensor) -> Tensor:
        """`l` of each query, (2b,); queries and keys (2b, d), kept (2, queue_size, d)."""
        return moco(queries, keys, kept, self.temperature, reduction="none")

    def stream(self, networks: Networks, views: Tensor, route: str) -> Tensor:
        """`l` of each view's query, (2b,); the keys then enter the queues."""
        queries, keys = networks(views, route).embeddings, self.keys(networks, views, route).detach()
        return self.contrast(queries, keys, self.enqueue(networks, keys, route))

    def enqueue(self, networks: Networks, keys: Tensor, route: str) -> Tensor:
        """Put keys (2b, d) into the queues of a route, in train mode; return these from before."""
        return networks.heads[f"queue_{route}"](nn.functional.normalize(keys.detach(), dim=1), route)


@dataclass(frozen=True)
class MoCo(AdversarialStreams, CleanMoCo):
    """Momentum contrast with adversarial streams, as AMOC (Xu and Yang 2020): `L = (L(clean) + L(attacked)) / 2`.

    The queries of the attacked stream are attacked views on the route "pgd". `key` and `queue` choose their keys and
    negatives. In AMOC's names, of query, key and queue: a clean key and an attacked queue are ACA_PLUS, the default of
    its code; both clean ACC; both attacked AAA; an attacked key and a clean queue AAC.

    The attacked queues hold the moving average's embeddings of attacked views on the route "pgd". With attacked keys
    the attack's gradient goes through queries and keys, else through queries alone, and clean keys are encoded once.
    AMOC's variants with clean queries are left out.

    Deviations: both views are queries, with a queue each. Keys enter the queues after the loss; AMOC's code puts them
    there before, so that a positive is also among the negatives. Its plain ACA is left out: it never fills its queue.

    The reward's `adversarial` and `clean` are `l` of each attacked or clean view's query, with the same queues, between
    0 and log(queue_size + 1) + 2 / temperature. Clean keys are the same for both; attacked ones are clean for `clean`.

    Args:
        temperature, queue_size, momentum_start, momentum_end: as in `CleanMoCo`; AMOC's momentum is 0.999 throughout.
        streams: "ds" or "a2a", see `AdversarialStreams`. "a2a" needs an attacked key and queue.
        key: "clean" or "attacked", the keys of attacked queries.
        queue: "attacked" or "clean", the negatives of attacked queries.
    """

    temperature: float = 0.2
    key: str = "clean"
    queue: str = "attacked"

    paper: ClassVar[str] = "He et al., CVPR 2020; AMOC, Xu & Yang 2020"
    summary: ClassVar[str] = "queries find a moving average's keys among queues of earlier ones, clean and attacked"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("key", "queue"):
            pick(getattr(self, name), VERSIONS, f"{name} of MoCo")
        if self.streams == "a2a" and "clean" in (self.key, self.queue):
            raise ValueError(
                f"streams is 'a2a', without clean views, key is {self.key!r} and queue {self.queue!r}: expected both "
                "'attacked' (--method_kwargs.key, --method_kwargs.queue)"
            )

    def make_heads(self, feature_dim: int, embedding_dim: int) -> dict[str, nn.Module]:
        """Make a pair of queues for each stream, for the attacked one only if it has attacked queues."""
        made = super().make_heads(feature_dim, embedding_dim)
        return made if self.queue == "attacked" else {"queue_normal": made["queue_normal"]}

    def encoded(self, networks: Networks, images: Tensor, rows: Tensor, attacked: bool) -> Encoded:
        """Encode views to features, and to queries (n, d); with attacked keys to queries beside keys (n, 2d)."""
        if self.key == "attacked":
            return super().encoded(networks, images, rows, attacked)
        return networks(images, self.routes.attack if attacked else self.routes.clean)

    def objective_for(self, networks: Networks, views: Tensor) -> Objective:
        """`l` of each attacked view's query, (2b,), by keys and queues as chosen."""
        kept = self.negatives(networks, views, self.routes.attack if self.queue == "attacked" else self.routes.clean)
        if self.key == "attacked":
            return self.joint(kept)
        keys = self.keys(networks, views, self.routes.clean)
        return lambda z: self.contrast(z, keys, kept)

    def losses(self, networks: Networks, views: Tensor, adversarial: Tensor | None) -> dict[str, Tensor]:
        """`clean`, not for "a2a", and `adversarial`: `l` of the queries; then keys enter the queues."""
        streams = {"clean": (views, self.routes.clean)} if self.streams == "ds" else {}
        streams["attacked"] = (self.given(adversarial), self.routes.attack)
        queries = {name: networks(images, route).embeddings for name, (images, route) in streams.items()}
        needed = {"clean"} | {self.key, self.queue}
        keys = {
            name: self.keys(networks, images, route).detach()
            for name, (images, route) in streams.items()
            if name in needed
        }
        queued = {"clean", self.queue} & streams.keys()
        kept = {name: self.enqueue(networks, keys[name], streams[name][1]) for name in sorted(queued)}
        attacked = self.contrast(queries["attacked"], keys[self.key], kept[self.queue])
        if self.streams == "a2a":
            return {"adversarial": attacked}
        clean = self.contrast(queries["clean"], keys["clean"], kept["clean"])
        return {"clean": clean, "adversarial": attacked}
