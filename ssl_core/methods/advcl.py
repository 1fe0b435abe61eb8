"""AdvCL: four versions of an image are contrasted, with pseudo labels from a pre-trained encoder's clusters."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from astra_gym.ssl_core.attacks.pgd import Objective
from astra_gym.ssl_core.losses.multiview import supcon
from astra_gym.ssl_core.methods.base import Method, Networks
from astra_gym.ssl_core.methods.distillation import ANY_ROUTE, taught
from astra_gym.ssl_core.methods.parts import by_parity, on_routes
from astra_gym.ssl_core.methods.traits import AttackTraits, LossTraits, NetworkTraits, Routes
from astra_gym.ssl_core.models.clustering import assign, encode_features, fit_clusters
from astra_gym.ssl_core.models.heads import Classifiers
from astra_gym.ssl_core.models.target_network import Encoded
from astra_gym.ssl_core.transforms.high_frequency import high_frequency
from astra_gym.ssl_core.transforms.views import ViewSettings, two_views, weak_views
from astra_gym.ssl_core.utils.finite import check_number
from astra_gym.ssl_core.utils.training_plan import Moment

HEAD = "classifiers"


class Views(NamedTuple):
    """The views of b images by their use, (b, 3, h, w) each.

    Args:
        first, second: the strong views t1 and t2.
        weak: the weak view x0, which is attacked.
        original: the images themselves, from which the pseudo labels are computed.
    """

    first: Tensor
    second: Tensor
    weak: Tensor
    original: Tensor


@dataclass(frozen=True)
class AdvCL(Method):
    """Adversarial contrastive learning with pseudo labels (Fan et al. 2021).

    Each image has two strong views t1 and t2, a weak view x0, the high frequencies x_h of x0, and two attacked versions
    of x0: x_cl maximizes the contrastive loss, x_ce the pseudo labels' cross entropy. With f_r the network on
    batch-norm route r and fc_K a linear classifier of its features::

        L = SupCon(f_pgd(x_cl), f_normal(t1), f_normal(t2), f_normal(x_h))
            + pseudo_weight * mean over K of CE(fc_K(f_pgd_ce(x_ce)), y_K)

    as in the released code. SupCon keeps its factor temperature / base_temperature, 7.14, which balances both terms.
    t1, t2 and x_h pass batch norm as three separate batches. y_K is the nearest of K centroids to the teacher's
    features of the image itself; the centroids are fitted to the training images before training. The authors' labels
    came from clusters too, but of the features of an encoder pre-trained on ImageNet.

    Attacked views 2k and 2k+1 are x_cl and x_ce of image k. The attack runs in train mode, as the authors'. The views
    that it compares x_cl with (t1, t2, x_h) are encoded once per batch, in train mode too. The authors encode them at
    every step: the result is the same, but the running statistics are updated each time.

    The reward is the loss of each attacked view. For x_cl it is the mean SupCon of the image's four versions:
    temperature / base_temperature times a value from log 3 to log(4b - 1) + 2 / temperature, with b images per batch.
    For x_ce it is the mean of the cross entropies, from 0 without bound; chance is the mean of log K. The units differ:
    compare even rows with even rows only, and odd with odd. The clean counterpart is the same loss of x0 on the route
    "normal". All are in the attack's train mode.

    Args:
        temperature: temperature of SupCon, positive.
        base_temperature: SupCon's divisor, positive; if it equals the temperature, the factor is 1.
        pseudo_weight: weight of the cross entropies, 0 or more.
        clusters: the numbers K of clusters, all different, each 2 or more.
        radius: radius of the disc of low frequencies removed from x_h, 0 or more, in pixels of the spectrum at image
            size 32; it scales with the image size.
    """

    base_temperature: float = 0.07
    pseudo_weight: float = 0.2
    clusters: tuple[int, ...] = (2, 10, 50, 100, 500)
    radius: float = 8.0

    paper: ClassVar[str] = "Fan et al., NeurIPS 2021"
    summary: ClassVar[str] = "four versions of an image contrasted, pseudo labels from a teacher's clusters"
    routes: ClassVar[Routes] = Routes(names=("normal", "pgd", "pgd_ce"), needed=True)
    attack_routes: ClassVar[tuple[str, str]] = ("pgd", "pgd_ce")
    """Routes of x_cl and of x_ce."""
    attack: ClassVar[AttackTraits] = AttackTraits(mode="train")
    networks: ClassVar[NetworkTraits] = NetworkTraits(others=("teacher",))
    loss: ClassVar[LossTraits] = LossTraits(paired=False, nt_xent_based=False)
    originals_per_image: ClassVar[int] = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("base_temperature", self.base_temperature, above=True)
        for name in ("pseudo_weight", "radius"):
            check_number(name, getattr(self, name))
        counts = tuple(self.clusters)
        whole = all(type(count) is int and count >= 2 for count in counts)
        if not (counts and whole and len(set(counts)) == len(counts)):
            raise ValueError(f"clusters are {self.clusters}: expected different integers of 2 or more, as 2, 10 and 50")
        object.__setattr__(self, "clusters", counts)

    # --- views -------------------------------------------------------------------------------------------------------

    @property
    def views_per_image(self) -> int:
        return 4

    def make_views(self, images: Tensor, settings: ViewSettings, moment: Moment, generator: torch.Generator) -> Tensor:
        """Make two strong views per image, rows 2k and 2k+1 (2b), then the weak views (b), then the images (b)."""
        strong = two_views(images, settings, generator)
        return torch.cat([strong, weak_views(images, settings, generator), images])

    def parts(self, views: Tensor) -> Views:
        """Split the views (4b, 3, h, w) by their use."""
        strong, weak, original = views.split([len(views) // 2, len(views) // 4, len(views) // 4])
        return Views(strong[0::2], strong[1::2], weak, original)

    def attacked(self, views: Tensor) -> Tensor:
        """The weak views, each twice, for x_cl and x_ce: (2b, 3, h, w)."""
        return self.parts(views).weak.repeat_interleave(2, dim=0)

    def high(self, images: Tensor) -> Tensor:
        """The high frequencies of images (b, 3, h, w), centered on 0."""
        return high_frequency(images, self.radius * images.shape[-1] / 32)

    # --- the attack --------------------------------------------------------------------------------------------------

    def encoded(self, networks: Networks, images: Tensor, rows: Tensor, attacked: bool) -> Encoded:
        """Encode views to features, and to embeddings joined with all logits, (m, d + sum(clusters))."""
        routes = self.attack_routes if attacked else (self.routes.clean, self.routes.clean)
        own = by_parity(images, rows, *on_routes(networks, routes))
        # the classifiers are the same for all routes
        logits = networks.heads[HEAD](own.features, self.routes.clean)
        return Encoded(own.features, torch.cat([own.embeddings, logits], dim=1))

    def objective_for(self, networks: Networks, views: Tensor) -> Objective:
        """SupCon of the image in even rows, the mean cross entropy of its pseudo labels in odd rows, (2b,)."""
        parts = self.parts(views)
        partners = torch.stack([networks(part, self.routes.clean).embeddings for part in self._partners(parts)], dim=1)
        labels = self.labels(networks, parts.original)

        def objective(z: Tensor) -> Tensor:
            embeddings, logits = z.split([z.shape[1] - sum(self.clusters), sum(self.clusters)], dim=1)
            contrast = self.contrast(embeddings[0::2], partners)
            return torch.stack([contrast, self.pseudo(logits[1::2], labels)], dim=1).flatten()

        return objective

    def objective(self, z: Tensor) -> Tensor:
        """Not defined without the other views and the labels: see `objective_for`."""
        raise NotImplementedError("AdvCL compares with other views and with labels: its objective is objective_for's")

    def _partners(self, parts: Views) -> tuple[Tensor, Tensor, Tensor]:
        return parts.first, parts.second, self.high(parts.weak)

    def contrast(self, attacked: Tensor, partners: Tensor) -> Tensor:
        """SupCon of each image: the mean over its four versions, (b,).

        Args:
            attacked: (b, d) embeddings of x_cl.
            partners: (b, 3, d) embeddings of t1, t2 and x_h.
        """
        versions = torch.cat([attacked[:, None], partners], dim=1).flatten(0, 1)
        values = supcon(versions, 4, self.temperature, self.base_temperature, reduction="none")
        return values.view(-1, 4).mean(dim=1)

    def pseudo(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross entropy of each image: the mean over K, (b,).

        Args:
            logits: (b, sum(clusters)).
            labels: (b, len(clusters)) int64.
        """
        by_count = zip(logits.split(self.clusters, dim=1), labels.unbind(1), strict=True)
        return torch.stack([F.cross_entropy(own, label, reduction="none") for own, label in by_count]).mean(dim=0)

    # --- the networks ------------------------------------------------------------------------------------------------

    def make_heads(self, feature_dim: int, embedding_dim: int) -> dict[str, nn.Module]:
        """Make a linear classifier of the features for each K."""
        return {HEAD: Classifiers(feature_dim, self.clusters)}

    def make_tables(self, networks: Networks, images: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Fit k-means centroids (K, d) to the teacher's features of the training images, "centroids_K" for each K.

        Raises:
            ValueError: if there are fewer images than clusters.
        """
        if max(self.clusters) > len(images):
            raise ValueError(
                f"clusters are {self.clusters}, but there are {len(images)} training images: {max(self.clusters)} "
                "clusters need at least as many; give fewer as --method_kwargs.clusters"
            )
        head = networks.heads[HEAD]
        # the images may be on the host while the networks are not
        device = next(head.parameters()).device if isinstance(head, nn.Module) else images.device
        features = encode_features(networks.others["teacher"], images, ANY_ROUTE, device=device)
        fitted = fit_clusters(features, self.clusters, generator)
        return {f"centroids_{count}": centroids for count, centroids in zip(self.clusters, fitted, strict=True)}

    def labels(self, networks: Networks, images: Tensor) -> Tensor:
        """Pseudo labels (b, len(clusters)) of images (b, 3, h, w): the nearest centroid for each K.

        Raises:
            ValueError: if `make_tables` has not made the centroids.
        """
        names = [f"centroids_{count}" for count in self.clusters]
        if not set(names) <= networks.tables.keys():
            raise ValueError(f"there are no centroids {', '.join(names)}: make_tables makes them before training")
        with torch.no_grad():
            features = taught(networks, images)
            return torch.stack([assign(features, networks.tables[name]) for name in names], dim=1)

    # --- the update --------------------------------------------------------------------------------------------------

    def losses(self, networks: Networks, views: Tensor, adversarial: Tensor | None) -> dict[str, Tensor]:
        """`contrast`: SupCon of the four versions; `pseudo`: the mean cross entropy of x_ce, (b,) each."""
        adversarial, parts = self.given(adversarial), self.parts(views)
        route, ce_route = self.attack_routes
        attacked = networks(adversarial[0::2], route).embeddings
        logits = networks.heads[HEAD](networks(adversarial[1::2], ce_route).features, ce_route)
        partners = torch.stack([networks(part, self.routes.clean).embeddings for part in self._partners(parts)], dim=1)
        return {
            "contrast": self.contrast(attacked, partners),
            "pseudo": self.pseudo(logits, self.labels(networks, parts.original)),
        }

    @property
    def weights(self) -> Mapping[str, float]:
        return {"contrast": 1.0, "pseudo": self.pseudo_weight}
