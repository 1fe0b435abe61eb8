"""The part of the benchmark that measures the evaluation of a classifier against the reference's loops."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from pyautoattack import AutoAttack
from torch import Tensor, nn

from astra_gym.experiments.benchmarks.measure import DeviceClock, Figure, Result, interleaved, ratios, replaced
from astra_gym.experiments.benchmarks.reference import PlainClassifier, plain_autoattack, plain_pgd
from astra_gym.experiments.benchmarks.workloads import DisagreementError, Options
from astra_gym.ssl_core.downstream.linear_probe import Classifier
from astra_gym.ssl_core.evaluation import attack_library
from astra_gym.ssl_core.evaluation.autoattack import autoattack_accuracy
from astra_gym.ssl_core.evaluation.robustness import clean_accuracy, pgd_accuracy, step_size_for
from astra_gym.ssl_core.models.target_network import build_network
from astra_gym.ssl_core.transforms.views import as_float

Say = Callable[[str], None]
ROUTE, CLASSES = "pgd", 10
EPSILON = 0.18 / 255
"""Radius at which about three fifths of the correctly classified images stay so, as with published classifiers at
8/255: the time saved on fooled images depends on their share. Features of random weights withstand no larger radius."""
TRAIN, TEST = 200, 64
STEPS = 20
SHORT = 10
"""Steps of each of AutoAttack's runs, on both sides; the original has 100."""
NAMES = {"pgd": "PGD-20", "autoattack": "AutoAttack, quick"}
TIES = 0.05
"""Largest share of images whose outcomes may differ: those so near a border that rounding decides."""


def pictures(count: int, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw noise on coarse patterns, one for each class: uint8 (count, 3, size, size) in 13..242, int64 (count,).

    The pixels are so far from black and white that clipping to [0, 1] changes nothing within `EPSILON`; the reference
    does not clip its start.
    """
    patterns = torch.rand(CLASSES, 3, 4, 4, generator=torch.Generator().manual_seed(1000))
    labels = torch.arange(count) % CLASSES
    strength = 0.2 + 0.8 * torch.rand(count, 1, 1, 1, generator=generator)
    coarse = torch.rand(count, 3, 8, 8, generator=generator) - 0.5
    fine = torch.rand(count, 3, size, size, generator=generator) - 0.5
    images = 0.5 + strength * (F.interpolate(patterns[labels], size=size, mode="bilinear") - 0.5)
    images += 0.3 * F.interpolate(coarse, size=size) + 0.1 * fine
    return images.clamp_(0.05, 0.95).mul_(255).round_().to(torch.uint8), labels


@torch.no_grad()
def fitted(options: Options) -> Classifier:
    """Fit a ResNet-18 of random weights, with batch-norm statistics of images, and a head by ridge regression."""
    sizes = options.paper
    generator = torch.Generator().manual_seed(0)
    network = build_network(generator, arch=sizes["arch"], width=sizes["width"]).to(options.device)
    images, labels = pictures(TRAIN, sizes["image_size"], torch.Generator().manual_seed(1))
    pieces = as_float(images).to(options.device).split(50)
    for piece in pieces:
        network.train().features(piece, ROUTE)
    features = torch.cat([network.eval().features(piece, ROUTE) for piece in pieces])
    centered = features - features.mean(0)
    ridge = 0.05 * centered.square().sum(0).mean() * torch.eye(centered.shape[1], device=options.device)
    wanted = F.one_hot(labels, CLASSES).to(centered) - 1 / CLASSES
    head = nn.utils.skip_init(nn.Linear, centered.shape[1], CLASSES, device=options.device)
    head.weight.copy_(10 * torch.linalg.solve(centered.T @ centered + ridge, centered.T @ wanted).T)
    head.bias.copy_(-head.weight @ features.mean(0))
    return Classifier(network, ROUTE, head)


class ShortAutoAttack(AutoAttack):
    """The library's AutoAttack with `steps` in each run of Auto-PGD."""

    steps = SHORT

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        for attack in (self.apgd, self.apgd_targeted):
            attack.n_iter = attack.n_iter_orig = self.steps


def measure_evaluation(options: Options, rounds: int, say: Say) -> Result:
    """Measure the robust accuracy of a ResNet-18 classifier against the reference's loops, on a batch of 64 images.

    PGD-20 is DynACL's and ASTrA's loop, which attacks every image; ours attacks only images that are classified
    correctly. AutoAttack's first two attacks are pyautoattack's on the plain module, with a tenth of the steps on both
    sides: a step costs the same, and leaving out fooled images saves less than with all steps. Images and random starts
    are new in each round. Each image must have the same outcome, except ties, which are counted.
    """
    classifier = fitted(options)
    plain = PlainClassifier(classifier.encoder, ROUTE, classifier.head)  # type: ignore[arg-type]
    size = options.paper["image_size"]
    outcomes: list[dict[str, Any]] = []

    def prepare(number: int) -> dict[str, Any]:
        say(f"evaluation: round {number} of {rounds}")
        images, labels = pictures(TEST, size, torch.Generator().manual_seed(100 + number))
        labels = labels.to(options.device)
        return {"images": images, "labels": labels, "clean": clean_accuracy(classifier, images, labels), "seed": number}

    def starts(work: dict[str, Any]) -> torch.Generator:
        return torch.Generator(options.device).manual_seed(work["seed"])

    def pgd_of_the_reference(work: dict[str, Any]) -> Tensor:
        images = as_float(work["images"].to(options.device))
        # each image that our PGD attacks begins at the same point here
        start, right = torch.zeros_like(images), work["clean"].to(options.device)
        unit = torch.rand(images[right].shape, generator=starts(work), device=options.device)
        start[right] = EPSILON * (2 * unit - 1)
        step_size = step_size_for(EPSILON)
        how: dict[str, Any] = {"epsilon": EPSILON, "step_size": step_size, "steps": STEPS, "start": start}
        return plain_pgd(plain, images, work["labels"], **how).cpu() & work["clean"]

    def pgd(work: dict[str, Any]) -> Tensor:
        data = classifier, work["images"], work["labels"], EPSILON
        return pgd_accuracy(*data, generator=starts(work), steps=STEPS, batch_size=TEST)

    def autoattack_of_the_reference(work: dict[str, Any]) -> Tensor:
        data = plain, as_float(work["images"].to(options.device)), work["labels"]
        how: dict[str, Any] = {"epsilon": EPSILON, "seed": work["seed"], "batch_size": TEST}
        return plain_autoattack(*data, **how, library=ShortAutoAttack).cpu()

    def quick_autoattack(work: dict[str, Any]) -> Tensor:
        data = classifier, work["images"], work["labels"], EPSILON
        with replaced(attack_library, "AutoAttack", ShortAutoAttack):
            found = autoattack_accuracy(*data, version="quick", seed=work["seed"], batch_size=TEST)
        return found["apgd-t"]

    def check(number: int, work: dict[str, Any], found: dict[str, Tensor]) -> None:
        for name in NAMES:
            expected, ours = found[f"{name}, reference"], found[name]
            differ = int((expected != ours).sum())
            counts = {"right": int(work["clean"].sum()), "reference": int(expected.sum()), "ours": int(ours.sum())}
            outcomes.append({"round": number, "attack": NAMES[name], "images": TEST, **counts, "differ": differ})
            if differ > TIES * TEST:
                raise DisagreementError(
                    f"{NAMES[name]}: {differ} of {TEST} images have another outcome than by the loop"
                )

    tasks: dict[str, Callable[[dict[str, Any]], Tensor]] = {
        "pgd, reference": pgd_of_the_reference,
        "pgd": pgd,
        "autoattack, reference": autoattack_of_the_reference,
        "autoattack": quick_autoattack,
    }
    seconds = interleaved(tasks, prepare, rounds, DeviceClock(options.device), check)
    figures = [
        Figure("evaluation", said, "times faster", ratios(seconds[f"{name}, reference"], seconds[name]))
        for name, said in NAMES.items()
    ]
    steps = {"PGD-20": STEPS, "AutoAttack, quick": ShortAutoAttack.steps}
    return figures, {"epsilon": EPSILON, "steps": steps, "seconds": seconds, "outcomes": outcomes}
