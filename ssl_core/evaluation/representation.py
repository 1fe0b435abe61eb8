"""Health of a frozen encoder's representation, measured without labels: rows, and data for the figures."""

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from astra_gym.ssl_core.attacks.pgd import Budget, pgd
from astra_gym.ssl_core.data.image_set import ImageSet
from astra_gym.ssl_core.evaluation.embedding_metrics import (
    alignment,
    effective_rank,
    embedding_std,
    resamples,
    uniformity,
)
from astra_gym.ssl_core.evaluation.landscape import LAYERS, loss_along, search_directions
from astra_gym.ssl_core.evaluation.results import Origin, Row
from astra_gym.ssl_core.evaluation.sanity import check_frozen
from astra_gym.ssl_core.losses.contrastive import nt_xent
from astra_gym.ssl_core.models.encoder import Encoder
from astra_gym.ssl_core.models.target_network import TargetNetwork
from astra_gym.ssl_core.transforms.views import ViewSettings, as_float, two_views
from astra_gym.ssl_core.utils.device import ieee_fp32
from astra_gym.ssl_core.utils.hashing import fingerprint
from astra_gym.ssl_core.utils.rng import Streams

FEWEST_IMAGES = 16
"""Minimum number of images: with fewer a bootstrap may draw one image only, and values are meaningless."""
RESAMPLES = 1000
BATCH = 256
EPSILON, STEP_SIZE, STEPS = 8 / 255, 2 / 255, 10
"""Attack on the features, without labels."""
RADIUS = 0.5
"""Radius at which sharpness is measured, in units of each filter's norm."""
CURVE = 1.0
"""Largest radius of the curves, in the same unit."""
POINTS = 21
CANDIDATES = 16
"""Number of random directions searched for the median and the sharpest one."""
LANDSCAPE_IMAGES = 256
"""Maximum number of images in the loss of the landscape, which is computed 75 times."""


class Landscape(NamedTuple):
    """The contrastive loss along two directions in weight space, each as long as `radii`."""

    radii: tuple[float, ...]
    median: tuple[float, ...]
    sharpest: tuple[float, ...]
    candidates: int
    """Number of random directions searched."""
    radius: float
    """Radius at which their sharpness was compared."""


@dataclass(frozen=True, eq=False)
class Health:
    """Results of `representation_health`.

    Attributes:
        rows: the measured values.
        vectors: float32 (n, d) on the CPU, not normalized, by condition ("features", "features/attacked",
            "embeddings", ...); the images are the same in all.
        labels: labels (n,) of the images, for the figures only; None for data without labels.
        classes: names of the classes.
        landscape: the loss landscape; None if the encoder has no weights.
    """

    rows: list[Row]
    vectors: Mapping[str, Tensor]
    labels: Tensor | None
    classes: tuple[str, ...]
    landscape: Landscape | None


@ieee_fp32()
def representation_health(
    encoder: nn.Module,
    test: ImageSet,
    views: ViewSettings,
    *,
    origin: Origin,
    images: int = 1000,
    device: torch.device | str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> Health:
    """Measure alignment, uniformity, effective rank, spread, and sharpness of the loss, without labels.

    Conditions of the rows, each also with "embeddings" for "features" if the encoder has a projector:

    - "features": the clean test images (uniformity, effective_rank, embedding_std);
    - "features/attacked": the images under PGD that turns the features away from the clean ones (maximizes
      -cos(f(x'), f(x)), 8/255, 10 steps of 2/255, random start); its alignment is that of clean and attacked;
    - "features/views": alignment of two strong views of each image;
    - "median of 16/0.5" and "sharpest of 16/0.5": sharpness (`landscape.Searched`) among 16 random directions,
      at radius 0.5, of NT-Xent (temperature 0.5) with the clean and the attacked image as the pair, on embeddings if
      there are any, else on features. The value depends on the number of images, at most 256. They are attacked once,
      on the original weights: on moved weights the attack is weaker, which can make the sharpness of a non-robust
      encoder negative.

    Intervals are 95 % percentile bootstraps over images, shifted so that the resamples' mean is the value: with fewer
    different images a resample has a little less spread. Effective rank and sharpness have no intervals.

    Args:
        encoder: a `TargetNetwork`, or any module with `feature_dim` and `features(images, route)`; it is copied.
        test: the images; labels are only passed on.
        views: settings of the strong views.
        origin: origin of the rows, with protocol "features", the encoder's route and the seed of every draw.
        images: maximum number of images, the first ones; at least 16.
        device: device for the work.
        progress: called with the number of finished work items and their total.

    Raises:
        ValueError: if the origin has another protocol, there are too few images, or an embedding is zero or not finite.
        SanityError: if a parameter or buffer changed.
    """
    if origin.protocol != "features":
        raise ValueError(f"the origin's protocol is {origin.protocol!r}: expected 'features'")
    n = min(images, len(test))
    if n < FEWEST_IMAGES:
        raise ValueError(f"{test.name}: {n} images, but health needs at least {FEWEST_IMAGES}")
    test = test.take(n)
    encoder = copy.deepcopy(encoder).to(device).eval().requires_grad_(False)
    before = fingerprint(encoder)
    streams = Streams(origin.seed, device)
    has_weights = any(isinstance(layer, LAYERS) for layer in encoder.modules())
    tick = _ticker(-(-n // BATCH) + has_weights * (1 + 2 * CANDIDATES + 2 * POINTS), progress)

    vectors, attacked = _encode_all(encoder, test, views, origin.route, streams, tick)
    weights = resamples(n, RESAMPLES, streams["health/bootstrap"]).to(device)
    rows = list(_statistics(vectors, origin, weights))
    landscape = None
    if has_weights:
        few = slice(LANDSCAPE_IMAGES)
        clean, moved = as_float(test.images[few].to(device)), attacked[few]
        landscape, found = _landscape(encoder, clean, moved, origin.route, streams["health/directions"], tick)
        rows += [origin.figure("sharpness", value, len(clean), condition=name) for name, value in found.items()]
    check_frozen(before, fingerprint(encoder), "while its health was measured")
    pictured = {name: z.cpu() for name, z in vectors.items() if "views" not in name}
    return Health(rows, pictured, test.labels, test.classes, landscape)


def _ticker(total: int, progress: Callable[[int, int], None] | None) -> Callable[[], None]:
    done = 0

    def tick() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    return tick


@torch.no_grad()
def _encode(encoder: nn.Module, images: Tensor, route: str) -> dict[str, Tensor]:
    if isinstance(encoder, TargetNetwork):
        return encoder(images, route)._asdict()
    return {"features": cast(Encoder, encoder).features(images, route)}


def _encode_all(
    encoder: nn.Module, test: ImageSet, views: ViewSettings, route: str, streams: Streams, tick: Callable[[], None]
) -> tuple[dict[str, Tensor], Tensor]:
    """Encode all vectors by condition; with them, return the attacked images (n, 3, H, W).

    In "features/views" rows 2k and 2k + 1 are the two views of image k.
    """
    parts: dict[str, list[Tensor]] = {}
    moved = []
    for batch in test.images.split(BATCH):
        clean = as_float(batch.to(streams.device))
        attacked = attack_features(encoder, clean, route, streams.on_device("health/attack"))
        moved.append(attacked)
        kinds = {"": clean, "/attacked": attacked, "/views": two_views(clean, views, streams["health/views"])}
        for kind, images in kinds.items():
            for space, z in _encode(encoder, images, route).items():
                parts.setdefault(space + kind, []).append(z.float())
        tick()
    return {name: torch.cat(pieces) for name, pieces in parts.items()}, torch.cat(moved)


def attack_features(encoder: nn.Module, images: Tensor, route: str, generator: torch.Generator) -> Tensor:
    """Attack images (n, 3, H, W) by PGD so that their features turn away: it maximizes -cos(f(x'), f(x)).

    Args:
        encoder: encoder in eval mode.
        images: images in [0, 1], on the encoder's device.
        route: batch-norm route of the features.
        generator: random generator of the start, on that device.
    """
    clean = _encode(encoder, images, route)["features"]
    return pgd(
        lambda x, _: cast(Encoder, encoder).features(x, route),
        lambda z: -F.cosine_similarity(z, clean, dim=1),
        images,
        Budget.uniform(len(images), epsilon=EPSILON, step_size=STEP_SIZE, steps=STEPS, device=images.device),
        generator=generator,
    ).images


def _statistics(vectors: Mapping[str, Tensor], origin: Origin, weights: Tensor) -> Iterator[Row]:
    def row(metric: str, condition: str, value: Tensor, resampled: Tensor | None = None) -> Row:
        if resampled is None:
            return origin.figure(metric, value.item(), weights.shape[1], condition=condition)
        levels = torch.tensor([0.025, 0.975], dtype=torch.float64, device=resampled.device)
        low, high = (resampled - resampled.mean() + value).quantile(levels).tolist()
        bounds = {"interval": (low, high), "interval_method": "bootstrap"}
        return origin.figure(metric, value.item(), weights.shape[1], condition=condition, **bounds)

    for condition, z in vectors.items():
        space, _, kind = condition.partition("/")
        if kind:
            pair = (z[::2], z[1::2]) if kind == "views" else (vectors[space], z)
            yield row("alignment", condition, alignment(*pair), alignment(*pair, weights))
        if kind != "views":
            yield row("uniformity", condition, uniformity(z), uniformity(z, weights=weights))
            yield row("effective_rank", condition, effective_rank(z))
            yield row("embedding_std", condition, embedding_std(z), embedding_std(z, weights))


def _landscape(
    encoder: nn.Module,
    clean: Tensor,
    attacked: Tensor,
    route: str,
    generator: torch.Generator,
    tick: Callable[[], None],
) -> tuple[Landscape, dict[str, float]]:
    def loss() -> Tensor:
        # the last entry is the embeddings, if there are any
        pair = [list(_encode(encoder, images, route).values())[-1].float() for images in (clean, attacked)]
        return nt_xent(torch.stack(pair, dim=1).flatten(0, 1))

    searched = search_directions(encoder, loss, RADIUS, CANDIDATES, generator, tick)
    radii = tuple(CURVE * (2 * index - POINTS + 1) / (POINTS - 1) for index in range(POINTS))
    median, sharpest = (
        tuple(loss_along(encoder, way, radii, loss, tick)) for way in (searched.median, searched.sharpest)
    )
    found = {
        f"median of {CANDIDATES}/{RADIUS:g}": searched.sharpness[(CANDIDATES - 1) // 2],
        f"sharpest of {CANDIDATES}/{RADIUS:g}": searched.sharpness[-1],
    }
    return Landscape(radii, median, sharpest, CANDIDATES, RADIUS), found
