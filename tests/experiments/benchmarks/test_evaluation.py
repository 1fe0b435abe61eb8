"""The reference's loops say of each image what ours say, and who says something else is not measured."""

import pytest
import torch
from torch import Tensor

from astra_gym.experiments.benchmarks import evaluation
from astra_gym.experiments.benchmarks.evaluation import ROUTE, ShortAutoAttack, fitted, measure_evaluation, pictures
from astra_gym.experiments.benchmarks.measure import TARGETS, replaced
from astra_gym.experiments.benchmarks.reference import PlainClassifier, plain_autoattack, plain_pgd
from astra_gym.experiments.benchmarks.workloads import DisagreementError, Options
from astra_gym.ssl_core.downstream.linear_probe import Classifier
from astra_gym.ssl_core.evaluation import attack_library
from astra_gym.ssl_core.evaluation.autoattack import autoattack_accuracy
from astra_gym.ssl_core.evaluation.robustness import clean_accuracy, pgd_accuracy
from astra_gym.ssl_core.models.target_network import TargetNetwork
from astra_gym.ssl_core.transforms.views import as_float

QUICK = Options(1, torch.device("cpu"), quick=True)
EPSILON = 3 / 255
"""Within it many images of the tiny network fall."""


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    """In float64, where no image is so near a border that rounding decides."""
    found = fitted(QUICK)
    found.double()
    return found


@pytest.fixture(scope="module")
def plain(classifier: Classifier) -> PlainClassifier:
    assert isinstance(classifier.encoder, TargetNetwork)
    return PlainClassifier(classifier.encoder, ROUTE, classifier.head)


def data() -> tuple[Tensor, Tensor]:
    return pictures(64, 8, torch.Generator().manual_seed(5))


def test_every_image_fares_under_pgd_as_by_the_plain_loop(classifier: Classifier, plain: PlainClassifier) -> None:
    images, labels = data()
    clean = clean_accuracy(classifier, images, labels)
    found = pgd_accuracy(classifier, images, labels, EPSILON, generator=torch.Generator().manual_seed(7))
    start = torch.zeros(64, 3, 8, 8)
    unit = torch.rand(int(clean.sum()), 3, 8, 8, generator=torch.Generator().manual_seed(7))
    start[clean] = EPSILON * (2 * unit - 1)
    how = {"epsilon": EPSILON, "step_size": EPSILON / 2, "steps": 20, "start": start}
    expected = plain_pgd(plain, as_float(images), labels, **how) & clean
    assert torch.equal(found, expected) and 0.1 < float(found.sum() / clean.sum()) < 0.9


def test_every_image_fares_under_autoattack_as_by_the_library_on_the_plain_module(
    classifier: Classifier, plain: PlainClassifier
) -> None:
    images, labels = data()
    with replaced(attack_library, "AutoAttack", ShortAutoAttack):
        found = autoattack_accuracy(classifier, images, labels, EPSILON, version="quick", seed=3, batch_size=40)
    how = {"epsilon": EPSILON, "seed": 3, "batch_size": 40, "library": ShortAutoAttack}
    assert torch.equal(found["apgd-t"], plain_autoattack(plain, as_float(images), labels, **how))
    counts = [int(right.sum()) for right in (clean_accuracy(classifier, images, labels), *found.values())]
    assert counts[0] > counts[1] >= counts[2] > 0


@pytest.mark.every_agent
def test_both_attacks_are_measured_and_their_outcomes_counted() -> None:
    figures, details = measure_evaluation(QUICK, 1, lambda text: None)
    assert {(figure.part, figure.name) for figure in figures} == {key for key in TARGETS if key[0] == "evaluation"}
    assert [entry["differ"] for entry in details["outcomes"]] == [0] * 4
    assert all(0 < entry["ours"] <= entry["right"] < entry["images"] for entry in details["outcomes"])


def test_other_outcomes_are_no_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "pgd_accuracy", lambda *data, **how: torch.zeros(64, dtype=torch.bool))
    with pytest.raises(DisagreementError, match=r"PGD-20: \d+ of 64 images have another outcome"):
        measure_evaluation(QUICK, 1, lambda text: None)
