"""What is left out of an attack, and that it says the same of every image."""

import copy
from typing import Any

import pytest
import torch
from pyautoattack import AutoAttack
from torch import Tensor, nn

from astra_gym.ssl_core.evaluation.attack_library import SIZES, leave_out_fooled

N = 40


class Smooth(nn.Module):
    """A small network in float64 that keeps the numbers of images it is asked for with a gradient."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first = torch.randn(108, 24, generator=generator).double()
        self.second = torch.randn(24, 6, generator=generator).double()
        self.asked: list[int] = []

    def forward(self, images: Tensor) -> Tensor:
        if images.requires_grad:
            self.asked.append(len(images))
        return torch.sin(images.flatten(1).double() @ self.first) @ self.second


def attacks(norm: str, epsilon: float) -> list[Any]:
    """Auto-PGD and its targeted form, of 20 steps, each on a classifier of its own."""
    found = []
    for name in ("apgd", "apgd_targeted"):
        attack = getattr(AutoAttack(Smooth().eval(), norm=norm, eps=epsilon, seed=3, device="cpu"), name)
        attack.n_iter = attack.n_iter_orig = 20
        attack.loss = "ce" if name == "apgd" else attack.loss
        attack.n_target_classes = 5
        found.append(attack)
    return found


@pytest.mark.parametrize(("norm", "epsilon"), [("Linf", 0.006), ("L2", 0.04), ("L1", 0.2)])
def test_an_image_that_was_fooled_is_left_out_and_every_image_fares_the_same(norm: str, epsilon: float) -> None:
    images = torch.rand(N, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    labels = Smooth()(images).argmax(1)
    for whole, sparing in zip(attacks(norm, epsilon), attacks(norm, epsilon), strict=True):
        leave_out_fooled(sparing)
        before = copy.copy(sparing.model)
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            fooled = [(attack.model(attack.perturb(images, labels)).argmax(1) != labels) for attack in (whole, sparing)]
        assert torch.equal(*fooled) and 0.2 * N < int(fooled[0].sum()) < 0.9 * N
        assert type(sparing.model) is type(before)
        asked, spared = whole.model.asked, sparing.model.asked
        if norm == "L1":
            assert spared == asked
        else:
            # as many calls, but from the second on for few images and few numbers of them
            assert len(spared) == len(asked) and sum(spared) < 0.9 * sum(asked)
            assert {n % SIZES for n in set(spared) - set(asked)} <= {0}


def test_nothing_is_computed_once_all_are_fooled_and_the_classifier_comes_back() -> None:
    images = torch.rand(N, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    labels = Smooth()(images).argmax(1)
    [attack, _] = attacks("Linf", 0.5)
    leave_out_fooled(attack)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        attacked = attack.perturb(images, labels)
    assert bool((Smooth()(attacked).argmax(1) != labels).all())
    assert attack.model.asked[0] == N and len(attack.model.asked) < 15

    classifier = attack.model
    with pytest.raises(RuntimeError, match="smaller than num_classes"):
        attack.attack_single_run(images, labels + 6)
    assert attack.model is classifier
