"""A small evaluation that ranks divide, the same as in a process alone."""

from functools import partial
from typing import Any

import torch
from torch import nn

from astra_gym.ssl_core.data.image_set import ImageSet
from astra_gym.ssl_core.distributed.helping import divided, help_first, led
from astra_gym.ssl_core.distributed.ranks import current
from astra_gym.ssl_core.downstream.linear_probe import Classifier, RawPixels
from astra_gym.ssl_core.evaluation.attack_suite import Attack, evaluate
from astra_gym.ssl_core.evaluation.results import Origin
from astra_gym.ssl_core.evaluation.shifts import evaluate_corruptions, evaluate_perspective
from astra_gym.ssl_core.transforms.views import as_float
from tests.helpers.draws import generator


def evaluation() -> dict[str, Any] | int:
    """What rank 0 finds when it divides an evaluation, or alone; of another rank, the status with which it ends."""
    if not current().first:
        return help_first(current())
    with led(current().leave()):
        return evaluated()


def evaluated() -> dict[str, Any]:
    """Which images a small classifier gets right in each part of an evaluation; and what a failing one raises."""
    images = torch.randint(256, (47, 3, 8, 8), dtype=torch.uint8, generator=generator(1))
    head = nn.Linear(3 * 8 * 8, 10, bias=False)
    head.weight.data = torch.randn(head.weight.shape, generator=generator(2))
    classifier = Classifier(RawPixels((3, 8, 8)), "none", head)
    labels = classifier(as_float(images)).argmax(1)
    test, origin = (
        ImageSet(images, labels, tuple("0123456789"), "noise"),
        Origin(protocol="slf", route="none", seed=3, checkpoint="made", commit="none"),
    )
    attacks = [Attack("fgsm", 1 / 255), Attack("pgd20", 1 / 255, restarts=2), Attack("autoattack-quick", 1 / 255)]
    found = evaluate(classifier, test, attacks, origin=origin, batch_size=10)
    result: dict[str, Any] = {str(attack): right for attack, right in found.correct.items()}
    shifts = [*evaluate_corruptions(classifier, test, origin=origin, severities=(2, 4), batch_size=20)]
    shifts += evaluate_perspective(classifier, test, origin=origin, batch_size=20)
    result |= {f"{row.metric} {row.condition}": row.value for row in shifts}
    result["order"] = list(divided(partial(_tenfold, nn.Identity()), range(7)))
    for network in (nn.Identity(), Unsendable()):
        try:
            list(divided(partial(_not_seven, network), range(5, 9)))
        except (ValueError, RuntimeError) as error:
            result[type(network).__name__] = str(error)
    return result


class Unsendable(nn.Module):
    """It cannot be pickled."""

    def __init__(self) -> None:
        super().__init__()
        self.act = lambda images: images


def _tenfold(network: nn.Module, item: int) -> int:
    return 10 * item


def _not_seven(network: nn.Module, item: int) -> int:
    if item == 7:
        raise ValueError("seven")
    return item
