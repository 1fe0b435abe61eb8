"""A small evaluation that ranks divide, the same as in a process alone."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
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
from astra_gym.ssl_core.utils.stopping import StopRequested, raising
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


def troubles() -> list[Any] | int:
    """What rank 0 sees of a rank that works longer than the limit, of errors, and of work that it does not end."""
    if not current().first:
        return help_first(current())
    seen: list[Any] = []
    with led(current().leave()):
        seen.append(list(divided(partial(_late, LATE), range(3))))
        for items in (range(3), _broken()):
            try:
                list(divided(_odd, items))
            except (RuntimeError, OSError) as error:
                seen.append(str(error))
        for _ in range(2):
            left = divided(partial(_late, 0), range(5))
            seen.append(next(left))
    return seen


def stopped_while_waiting() -> str | bool:
    """How rank 0 ends that gets a signal while it waits for another rank; of this one, whether they have met."""
    if not current().first:
        time.sleep(2)
        help_first(current())
        return "_patient" in vars(current())
    threading.Timer(1, os.kill, (os.getpid(), signal.SIGTERM)).start()
    with led(current().leave()), suppress(StopRequested), raising() as raised:
        list(divided(float, range(2)))
    return str(*raised)


LATE = 25
"""Seconds that the work of another rank takes."""


class OddError(Exception):
    """An error that can be pickled, but not loaded."""

    def __init__(self, first: int, second: int) -> None:
        super().__init__(f"{first} and {second}")


def _late(seconds: float, item: int) -> int:
    time.sleep(seconds * (item % 2))
    return item


def _odd(item: int) -> int:
    if item == 1:
        raise OddError(item, item)
    return item


def _broken() -> Iterator[int]:
    yield 0
    yield 2
    raise OSError("no more items")


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
