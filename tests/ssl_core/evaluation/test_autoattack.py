import copy
import logging
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pyautoattack import AutoAttack
from torch import Tensor, nn

from astra_gym.ssl_core.data.datasets import load_dataset
from astra_gym.ssl_core.evaluation import attack_library, autoattack
from astra_gym.ssl_core.evaluation.autoattack import VERSIONS, autoattack_accuracy, deviations, passes_per_image
from astra_gym.ssl_core.evaluation.robustness import clean_accuracy
from astra_gym.ssl_core.evaluation.sanity import SanityError
from astra_gym.ssl_core.transforms.views import as_float
from astra_gym.ssl_core.utils.hashing import digest

SEED = 3
EPSILON = 0.1


class Network(nn.Module):
    """Two layers on pixels; bright images get no gradient, so that only Square moves them."""

    def __init__(self, classes: int = 10, masked: bool = True) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first = nn.Parameter(0.1 * torch.randn(192, 48, generator=generator))
        self.second = nn.Parameter(0.2 * torch.randn(48, classes, generator=generator))
        self.masked = masked

    def forward(self, images: Tensor) -> Tensor:
        logits = F.relu((images.flatten(1) - 0.3) @ self.first) @ self.second
        if not self.masked:
            return logits
        bright = images.detach().flatten(1).mean(1, keepdim=True) > 0.33
        return torch.where(bright, logits.detach() + 0 * logits, logits)


@cache
def trained(classes: int = 10, masked: bool = True) -> Network:
    """Right on most of the digits below `classes`."""
    train = load_dataset("digits", image_size=8).train
    assert train.labels is not None
    rows = train.labels < classes
    images, labels = as_float(train.images[rows]), train.labels[rows]
    network = Network(classes, masked=False)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(network(images), labels).backward()
        optimizer.step()
    network.zero_grad()
    network.masked = masked
    return network.eval()


@cache
def digits(n: int, classes: int = 10) -> tuple[Tensor, Tensor]:
    test = load_dataset("digits", image_size=8).test
    assert test.labels is not None
    rows = (test.labels < classes).nonzero().flatten()[:n]
    return test.images[rows], test.labels[rows]


class Short(AutoAttack):
    """The library with fewer steps, to be used on both sides of a comparison."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        for attack in (self.apgd, self.apgd_targeted):
            attack.n_iter = attack.n_iter_orig = 10
        self.fab.n_iter = 5
        self.square.n_queries = 100


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attack_library, "AutoAttack", Short)


@dataclass
class ByHand:
    right: Tensor
    shares: list[float]
    """Robust accuracies after each attack, in percent."""


def by_hand(
    made: Callable[..., AutoAttack],
    caplog: pytest.LogCaptureFixture,
    images: Tensor,
    labels: Tensor,
    epsilon: float,
    norm: str,
    batch_size: int,
    **settings: Any,
) -> ByHand:
    # a copy, since FAB leaves gradients in the parameters
    library = made(copy.deepcopy(trained()), norm=norm, eps=epsilon, seed=SEED, device="cpu", **settings)
    caplog.clear()
    with torch.random.fork_rng(), caplog.at_level(logging.DEBUG, "auto-attack"):
        _, predicted = library.run_standard_evaluation(as_float(images), labels, batch_size=batch_size)
    shares = re.findall(r"robust accuracy after \S+: ([\d.]+)%", caplog.text)
    return ByHand(predicted == labels, [float(share) for share in shares])


def assert_equal(found: dict[str, Tensor], expected: ByHand) -> None:
    assert torch.equal(list(found.values())[-1], expected.right)
    assert [100 * float(right.float().mean()) for right in found.values()] == pytest.approx(expected.shares, abs=0.01)


@pytest.mark.every_agent
def test_every_image_fares_as_with_the_library_by_hand(caplog: pytest.LogCaptureFixture) -> None:
    images, labels = digits(40)
    found = autoattack_accuracy(trained(), images, labels, EPSILON, version="standard", seed=SEED, batch_size=20)
    assert list(found) == ["apgd-ce", "apgd-t", "fab-t", "square"]
    assert_equal(found, by_hand(AutoAttack, caplog, images, labels, EPSILON, "Linf", 20, version="standard"))
    counts = [int(right.sum()) for right in found.values()]
    clean = int(clean_accuracy(trained(), images, labels).sum())
    assert clean > counts[0] > counts[1] >= counts[2] > counts[3] > 0, counts


@pytest.mark.slow
@pytest.mark.parametrize(
    ("norm", "epsilon"), [("Linf", 0.1), ("L2", 0.8), pytest.param("L1", 4.0, marks=pytest.mark.every_agent)]
)
def test_every_norm_fares_as_with_the_library_by_hand(
    norm: str, epsilon: float, short: None, caplog: pytest.LogCaptureFixture
) -> None:
    images, labels = digits(31)
    found = autoattack_accuracy(trained(), images, labels, epsilon, norm=norm, seed=SEED, batch_size=9)
    assert_equal(found, by_hand(Short, caplog, images, labels, epsilon, norm, 9))
    assert len({tuple(right.tolist()) for right in found.values()}) > 1 and 0 < int(found["square"].sum()) < 31


def test_the_quick_version_is_the_first_two_attacks_of_the_standard_one(short: None) -> None:
    images, labels = digits(31)
    whole = autoattack_accuracy(trained(), images, labels, EPSILON, seed=SEED, batch_size=9)
    quick = autoattack_accuracy(trained(), images, labels, EPSILON, version="quick", seed=SEED, batch_size=9)
    assert list(quick) == ["apgd-ce", "apgd-t"]
    assert all(torch.equal(quick[name], whole[name]) for name in quick)


def test_one_image_and_none_that_is_right_are_cases_of_their_own(short: None, caplog: pytest.LogCaptureFixture) -> None:
    images, labels = digits(31)
    found = autoattack_accuracy(trained(), images[:1], labels[:1], 0.01, seed=SEED)
    assert_equal(found, by_hand(Short, caplog, images[:1], labels[:1], 0.01, "Linf", 100))
    wrong = (labels + 1) % 10
    lost = ~clean_accuracy(trained(), images, wrong)
    found = autoattack_accuracy(trained(), images[lost], wrong[lost], 0.01, seed=SEED)
    assert [int(right.sum()) for right in found.values()] == [0, 0, 0, 0]


def test_few_classes_are_all_aimed_at(short: None, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[AutoAttack] = []

    class Watched(Short):
        def __init__(self, *arguments: Any, **more: Any) -> None:
            super().__init__(*arguments, **more)
            made.append(self)

    monkeypatch.setattr(attack_library, "AutoAttack", Watched)
    images, labels = digits(20, classes=5)
    for norm, epsilon in (("Linf", 0.1), ("L1", 4.0)):
        found = autoattack_accuracy(trained(5), images, labels, epsilon, norm=norm, seed=SEED)
        assert 0 < int(found["square"].sum()) < int(clean_accuracy(trained(5), images, labels).sum())
    assert {(library.apgd_targeted.n_target_classes, library.fab.n_target_classes) for library in made} == {(4, 4)}
    assert all(library.fab.targeted and library.apgd.loss == "ce" for library in made)


def test_deviations_name_the_missing_targets() -> None:
    reason = "AutoAttack with 4 targets, the data have 5 classes"
    assert [deviations(name, "Linf", 5) for name in VERSIONS["standard"]] == [(), (reason,), (reason,), (reason,)]
    assert {deviations(name, norm, 10) for name in VERSIONS["standard"] for norm in ("Linf", "L2", "L1")} == {()}
    # in L1 targeted Auto-PGD aims at five classes, and FAB at nine
    assert [bool(deviations(name, "L1", 6)) for name in VERSIONS["standard"]] == [False, False, True, True]


@pytest.mark.parametrize("classes", [2, 3])
def test_fewer_than_four_classes_are_refused(classes: int) -> None:
    images, labels = digits(6, classes=classes)
    with pytest.raises(ValueError, match=rf"has {classes} classes.*at least 4; use pgd20"):
        autoattack_accuracy(Network(classes).eval(), images, labels, 0.03, seed=0)


def test_global_generators_and_the_classifier_are_left_as_they_were(short: None) -> None:
    network = trained()
    assert all(parameter.requires_grad for parameter in network.parameters())
    before = digest(network)
    states = torch.random.get_rng_state(), random.getstate(), np.random.get_state()
    autoattack_accuracy(network, *digits(12), EPSILON, seed=SEED)
    assert torch.equal(torch.random.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert all(np.array_equal(one, other) for one, other in zip(np.random.get_state(), states[2], strict=True))
    assert all(parameter.grad is None and parameter.requires_grad for parameter in network.parameters())
    assert digest(network) == before


def test_generators_that_an_attack_draws_from_are_put_back_when_it_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def draw(library: object, name: str) -> Any:
        random.random(), np.random.rand(), torch.rand(1)
        raise KeyboardInterrupt

    monkeypatch.setattr(autoattack, "attack_of", draw)
    states = torch.random.get_rng_state(), random.getstate(), np.random.get_state()[2]
    with pytest.raises(KeyboardInterrupt):
        autoattack_accuracy(trained(), *digits(12), EPSILON, seed=SEED)
    assert torch.equal(torch.random.get_rng_state(), states[0])
    assert (random.getstate(), np.random.get_state()[2]) == states[1:]
    assert all(parameter.requires_grad for parameter in trained().parameters())


def test_progress_measures_work_that_only_falls(short: None) -> None:
    told: list[tuple[int, int]] = []
    images, labels = digits(31)
    autoattack_accuracy(
        trained(), images, labels, EPSILON, seed=SEED, batch_size=9, progress=lambda *work: told.append(work)
    )
    done, totals = zip(*told, strict=True)
    assert list(done) == sorted(set(done)) and list(totals) == sorted(totals, reverse=True)
    right = int(clean_accuracy(trained(), images, labels).sum())
    assert totals[0] <= right * passes_per_image("Linf", "standard", 10)
    assert done[-1] == totals[-1] < totals[0]


def test_the_work_is_counted_as_the_attacks_do_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert passes_per_image("Linf", "quick", 10) == 2 * 100 + 2 * 100 * 9
    assert passes_per_image("L2", "standard", 10) == 2000 + 3 * 100 * 9 + 5000
    assert passes_per_image("L1", "quick", 10) == 5 * 200 + 5 * 200
    assert passes_per_image("Linf", "standard", 5) == 200 + 4 * 200 + 4 * 300 + 5000

    class Counting(Network):
        forwards = 0

        def forward(self, images: Tensor) -> Tensor:
            Counting.forwards += len(images) * (2 if images.requires_grad else 1)
            return super().forward(images)

    network = Counting(masked=False).eval()
    network.load_state_dict(trained().state_dict())
    images, labels = digits(31)
    safe = clean_accuracy(network, images, labels).nonzero().flatten()[:2]
    Counting.forwards = 0
    found = autoattack_accuracy(network, images[safe], labels[safe], 1e-6, version="quick", seed=0)
    assert int(found["apgd-t"].sum()) == 2
    assert Counting.forwards / 2 == pytest.approx(passes_per_image("Linf", "quick", 10), rel=0.03)


def test_an_attack_that_leaves_its_ball_is_an_error(short: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def shifted(by: float) -> Any:
        class Careless:
            def perturb(self, x: Tensor, y: Tensor) -> Tensor:
                return x + by

        return Careless()

    images, labels = digits(12)
    for norm, by, words in (
        ("Linf", 0.11, r"apgd-ce broke its own rules.*Linf distance 0\.11 with epsilon 0\.1,"),
        ("L2", 0.01, r"L2 distance 0\.138"),
        ("L1", 0.001, r"L1 distance 0\.192"),
        ("Linf", 0.05, r"pixels in \[0\.05, 1\.05\]"),
        ("Linf", float("nan"), "broke its own rules"),
    ):
        monkeypatch.setattr(autoattack, "attack_of", lambda library, name, by=by: shifted(by))
        with pytest.raises(SanityError, match=words):
            autoattack_accuracy(trained(), images, labels, EPSILON, norm=norm, seed=0)


def test_bad_input_is_refused() -> None:
    images, labels = digits(12)
    for change, words in (
        ({"norm": "L0"}, "unknown norm 'L0'"),
        ({"version": "rand"}, "unknown version of AutoAttack 'rand': choose from standard, quick"),
        ({"epsilon": 8}, "8/255 and not 8"),
        ({"epsilon": 0.0}, "only the clean accuracy"),
        ({"epsilon": float("nan")}, "above 0"),
        ({"epsilon": float("inf"), "norm": "L2"}, "above 0"),
        ({"seed": -1}, "seed >= 0"),
        ({"batch_size": 0}, "batch_size >= 1"),
        ({"labels": labels + 8}, r"labels are in .*expected 0\.\.9"),
        ({"images": as_float(images)}, "expected uint8"),
        ({"images": images[:, :, :4], "norm": "L2"}, "4 pixels high: expected at least 5 for Square in L2"),
    ):
        arguments: dict[str, Any] = {"images": images, "labels": labels, "epsilon": EPSILON, "seed": 0} | change
        network = trained() if arguments["images"].shape[2] == 8 else nn.Sequential(nn.Flatten(), nn.Linear(96, 10))
        with pytest.raises(ValueError, match=words):
            autoattack_accuracy(network.eval(), **arguments)
