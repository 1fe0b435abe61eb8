"""Loss landscape: the loss along directions in a network's weights."""

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from astra_gym.ssl_core.attacks.pgd import Budget, pgd
from astra_gym.ssl_core.utils.finite import check_number
from astra_gym.ssl_core.utils.hashing import fingerprint
from astra_gym.ssl_core.utils.rng import Streams

Direction = Mapping[str, Tensor]
"""Change of each weight by name, in the weight's shape; weights without an entry do not change."""
LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
EPSILON, STEP_SIZE, STEPS = 8 / 255, 2 / 255, 10
"""Attack on the images of `downstream_landscape`."""
RADIUS, CANDIDATES = 0.5, 16
"""Radius at which its random directions are compared, and their number."""
POINTS = 21
"""Points of its curves, from -1 to 1."""


class Searched(NamedTuple):
    """Random directions compared by their sharpness.

    Attributes:
        median: the direction of median sharpness; of an even number, the less sharp of the middle two.
        sharpest: the direction of largest sharpness.
        sharpness: sharpness of all, in rising order: `(L(-r) + L(r)) / 2 - L(0)`, the loss's mean rise at the radius r.
            The slope at the weights, which is not zero on images that were not trained on, cancels. For a quadratic
            loss this is r^2 / 2 times its curvature. It is negative if the loss falls on average.
    """

    median: Direction
    sharpest: Direction
    sharpness: tuple[float, ...]


def random_direction(network: nn.Module, generator: torch.Generator) -> Direction:
    """Draw a Gaussian direction with filter normalization (Li et al. 2018, section 4).

    Every filter of the direction (all weights into one output channel or unit) has the norm of the network's filter, so
    that radius 1 moves each filter by its length. Otherwise a network with larger weights would look flatter, although
    batch norm cancels their scale. Only weights of convolutions and linear layers move; biases and batch norm do not.

    Args:
        network: network that gives names, shapes and norms of the weights.
        generator: random generator on the CPU, so that draws are equal for all devices.

    Raises:
        ValueError: if the network has no convolution and no linear layer.
    """
    direction = {}
    for name, weight in _weights(network):
        drawn = torch.randn(weight.shape, generator=generator, dtype=torch.float64).flatten(1)
        length = weight.detach().double().flatten(1).norm(dim=1, keepdim=True)
        scaled = drawn.to(length.device) * (length / drawn.norm(dim=1, keepdim=True).to(length.device))
        direction[name] = scaled.view(weight.shape).to(weight.dtype)
    if not direction:
        raise ValueError(f"{type(network).__name__} has no convolution and no linear layer: there is nothing to move")
    return direction


def _weights(network: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    layers = {f"{name}.weight".lstrip(".") for name, layer in network.named_modules() if isinstance(layer, LAYERS)}
    return ((name, weight) for name, weight in network.named_parameters() if name in layers)


@torch.no_grad()
def loss_along(
    network: nn.Module,
    direction: Direction,
    radii: Sequence[float],
    loss: Callable[[], Tensor],
    progress: Callable[[], None] | None = None,
) -> list[float]:
    """Compute the loss with the weights moved by `radius * direction`, for each radius.

    The weights are restored bit for bit, also if the loss fails or is interrupted.

    Args:
        network: network in eval mode, so that batch norm neither hides the move nor changes by it.
        direction: see `random_direction`.
        radii: radii; 0 is the network itself.
        loss: computes the scalar loss with the present weights; no gradients are taken.
        progress: called after every loss.

    Raises:
        ValueError: if the direction does not fit the network, or the network is in train mode.
        RuntimeError: if a loss is not finite, or the network has changed at the end.
    """
    if training := [name or "itself" for name, module in network.named_modules() if module.training]:
        raise ValueError(f"the network is in train mode ({training[0]}): call its eval() first")
    parameters = dict(network.named_parameters())
    for name, move in direction.items():
        if name not in parameters or parameters[name].shape != move.shape:
            own = tuple(parameters[name].shape) if name in parameters else "no such weight"
            raise ValueError(f"the direction moves {name} by {tuple(move.shape)}: the network has {own}")
    before = fingerprint(network)
    originals = {name: parameters[name].clone() for name in direction}
    found = []
    try:
        for radius in radii:
            for name, original in originals.items():
                parameters[name].copy_(torch.add(original, direction[name], alpha=radius) if radius else original)
            value = loss().item()
            if not math.isfinite(value):
                raise RuntimeError(f"the loss is {value} at radius {radius:g}: choose smaller radii")
            found.append(value)
            if progress is not None:
                progress()
    finally:
        for name, original in originals.items():
            parameters[name].copy_(original)
    if changed := sorted(name for name, digest in fingerprint(network).items() if before.get(name) != digest):
        raise RuntimeError(f"{', '.join(changed[:5])} changed while the loss was computed: it must not learn")
    return found


def search_directions(
    network: nn.Module,
    loss: Callable[[], Tensor],
    radius: float,
    candidates: int,
    generator: torch.Generator,
    progress: Callable[[], None] | None = None,
) -> Searched:
    """Draw random directions, and find the median and the sharpest of them at a radius.

    The sharpest random direction is only a lower bound for the worst direction.

    Args:
        network, loss, progress: as for `loss_along`; `1 + 2 * candidates` losses in all.
        radius: radius above 0.
        candidates: number of directions, at least 1.
        generator: as for `random_direction`.

    Raises:
        ValueError: if radius or candidates are out of range, or as `random_direction` and `loss_along`.
        RuntimeError: as `loss_along`.
    """
    check_number("radius", radius, above=True)
    check_number("candidates", candidates, 1, whole=True)
    [center] = loss_along(network, {}, (0.0,), loss, progress)
    found = []
    for index in range(candidates):
        # a state instead of the direction, since all directions of a large network would not fit into memory
        state = generator.get_state()
        low, high = loss_along(network, random_direction(network, generator), (-radius, radius), loss, progress)
        found.append(((low + high) / 2 - center, index, state))
    found.sort(key=lambda one: one[:2])
    median, sharpest = (
        random_direction(network, torch.Generator().set_state(state))
        for _, _, state in (found[(candidates - 1) // 2], found[-1])
    )
    return Searched(median, sharpest, tuple(value for value, _, _ in found))


class LossCurves(NamedTuple):
    """A classifier's mean cross entropy along a direction in its weights, each as long as `radii`."""

    radii: tuple[float, ...]
    clean: tuple[float, ...]
    attacked: tuple[float, ...]


def downstream_landscape(
    classifier: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> LossCurves:
    """Compute the downstream loss of a classifier, clean and attacked, along a direction in all its weights.

    The attacked loss is the adversarial weight loss landscape of Wu et al. (2020, section 3): at every radius PGD
    attacks the moved classifier anew (8/255, 10 steps of 2/255, the same random start at each radius). The direction is
    the one of median sharpness of the clean loss among 16 random ones, see `search_directions`.

    Args:
        classifier: images (n, 3, H, W) in [0, 1] -> logits (n, classes), each image on its own; it is copied.
        images: images (n, 3, H, W) in [0, 1], on the classifier's device.
        labels: labels (n,) on the same device.
        seed: seed of directions and of the attack's start.
        progress: called with the number of losses computed and their total.

    Raises:
        ValueError, RuntimeError: as `search_directions`.
    """
    classifier = copy.deepcopy(classifier).eval().requires_grad_(False)
    budget = Budget.uniform(len(images), epsilon=EPSILON, step_size=STEP_SIZE, steps=STEPS, device=images.device)
    streams = Streams(seed, images.device)
    start = streams.on_device("landscape/attack").get_state()
    done, total = 0, 1 + 2 * CANDIDATES + 2 * POINTS

    def tick() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    def clean_loss() -> Tensor:
        return F.cross_entropy(classifier(images), labels)

    def attacked_loss() -> Tensor:
        generator = streams.on_device("landscape/attack")
        generator.set_state(start)
        attacked = pgd(
            lambda x, _: classifier(x),
            lambda logits: F.cross_entropy(logits, labels, reduction="none"),
            images,
            budget,
            generator=generator,
        )
        return F.cross_entropy(attacked.embeddings, labels)

    searched = search_directions(classifier, clean_loss, RADIUS, CANDIDATES, streams["landscape/directions"], tick)
    radii = tuple((2 * index - POINTS + 1) / (POINTS - 1) for index in range(POINTS))
    clean, attacked = (
        tuple(loss_along(classifier, searched.median, radii, loss, tick)) for loss in (clean_loss, attacked_loss)
    )
    return LossCurves(radii, clean, attacked)
