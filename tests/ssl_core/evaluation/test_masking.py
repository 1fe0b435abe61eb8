import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from astra_gym.ssl_core.data.datasets import load_dataset
from astra_gym.ssl_core.data.image_set import Split
from astra_gym.ssl_core.downstream.knn import NeighborSettings, nearest_neighbors
from astra_gym.ssl_core.downstream.linear_probe import Classifier, RawPixels, train_probe
from astra_gym.ssl_core.evaluation.masking import check_attack, check_classifier, masking_evidence
from astra_gym.ssl_core.evaluation.sanity import SanityError
from astra_gym.ssl_core.transforms.views import ViewSettings, as_float
from tests.helpers.faulty_classifiers import (
    PROBE,
    Pooled,
    Wrapped,
    autocast,
    clamped,
    detached,
    half_detached,
    halved,
    network,
    noisy,
    normalized_over_the_batch,
    not_finite,
    seeded,
    seeded_in_secret,
    straight_through,
    turned_in_float32,
    with_a_masked_class,
)


@pytest.fixture(autouse=True)
def global_state_is_left_alone() -> Iterator[None]:
    before = torch.random.get_rng_state()
    yield
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.fixture(scope="module")
def digits() -> Split:
    return load_dataset("digits", image_size=8)


@pytest.fixture(scope="module")
def linear(digits: Split) -> Classifier:
    return train_probe(RawPixels((3, 8, 8)), "none", digits.train, PROBE, ViewSettings(), seed=0)


def check(classifier: nn.Module, data: Split, **more: Any) -> list[str]:
    assert data.test.labels is not None
    return check_classifier(classifier, data.test.images, data.test.labels, **more)


def evidence(classifier: nn.Module, data: Split, **more: Any) -> list[str]:
    assert data.test.labels is not None
    return masking_evidence(classifier, data.test.images, data.test.labels, **more)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("encoder", "seed"), [(Pooled, 0), (Pooled, 1), (network, 0), (lambda seed: network(seed, precision="bf16"), 1)]
)
def test_honest_probes_pass(encoder: Callable[[int], nn.Module], seed: int, digits: Split) -> None:
    classifier = train_probe(encoder(seed), "pgd", digits.train, PROBE, ViewSettings(), seed=seed)
    assert check(classifier, digits, seed=seed) == []
    left, bounded = evidence(classifier, digits, seed=seed)
    assert left.startswith("PGD with epsilon 128/255, 40 steps: 0.0 % of ")
    assert "20 random points" in bounded


def test_an_honest_linear_classifier_passes_and_so_do_its_log_probabilities(linear: Classifier, digits: Split) -> None:
    assert check(linear, digits) == []
    assert evidence(linear, digits)[0].endswith("0.0 % of 64 images stay right")
    assert check(nn.Sequential(linear, nn.LogSoftmax(1)).eval(), digits) == []


@pytest.mark.parametrize("k", [10, 200])
def test_nearest_neighbors_pass(k: int, digits: Split) -> None:
    classifier = nearest_neighbors(Pooled(0), "none", digits.train, NeighborSettings(k=k))
    assert check(classifier, digits) == []
    assert evidence(classifier, digits)[0].endswith(" 0.0 % of 64 images stay right")


def test_an_untrained_network_is_checked_on_wrong_images(digits: Split) -> None:
    with torch.random.fork_rng(devices=[]):
        classifier = Classifier(network(0), "pgd", nn.Linear(32, 10))
    data = replace(digits, test=replace(digits.test, labels=classifier(as_float(digits.test.images)).argmin(1)))
    assert check(classifier, data) == ["none of the 64 images tried is classified correctly"]
    assert evidence(classifier, data) == [
        "none of the 64 images tried is classified correctly: there is nothing to attack"
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (noisy, r"the logits of the same images differ by up to [\d.]+ from one pass to the next: .* random"),
        (seeded, "draws from torch's global generator, or seeds it"),
        (seeded_in_secret, r"the logits of 6\d of 64 images depend on the rest of their batch"),
        (normalized_over_the_batch, r"the logits of 6\d of 64 images depend on the rest of their batch"),
        (lambda model, x: model(x).softmax(1), r"gives probabilities: all 640 outputs are in \[0, 1\]"),
        (lambda model, x: model(x).bfloat16(), r"logits in torch.bfloat16, .* leave autocast off"),
        (
            lambda model, x: with_a_masked_class(normalized_over_the_batch(model, x)),
            "depend on the rest of their batch",
        ),
        pytest.param(
            lambda model, x: with_a_masked_class(seeded_in_secret(model, x)),
            "depend on the rest of their batch",
            marks=pytest.mark.every_agent,
        ),
        (lambda model, x: halved(autocast(model), x), r"differ from central differences by more than 10 %"),
        (lambda model, x: model(x)[:, :9], r"has 9 logits, but the labels are in 0\.\.9"),
        (detached, "no gradient to the images: they were detached"),
        (lambda model, x: model((255 * x).round() / 255), "gradient is zero for 64 of 64 images"),
        (not_finite, "the gradients of 64 of 64 images are not finite"),
        (turned_in_float32, r"gradients of 64 of 64 images point elsewhere .* the cosine is -1\.00 in the median"),
        (halved, r"the gradients of 64 of 64 images differ from central differences .* \(50\.0 % in the median\)"),
        (clamped, r"gradients of 6\d of 64 images differ from central differences by more than 10 %"),
        (half_detached, r"gradients of [3-6]\d of 64 images differ from central differences"),
        (straight_through, r"gradients of [3-6]\d of 64 images differ from central differences"),
    ],
)
def test_a_planted_fault_is_found(
    fault: Callable[[nn.Module, Tensor], Tensor], message: str, linear: Classifier, digits: Split
) -> None:
    with pytest.raises(SanityError, match=message):
        check(Wrapped(linear, fault), digits)


def test_train_mode_is_found(linear: Classifier, digits: Split) -> None:
    with pytest.raises(SanityError, match=r"in train mode \(itself, norm\): call its eval"):
        check(Normed(linear), digits)
    with pytest.raises(SanityError, match=r"went to train mode by itself|depend on the rest of their batch"):
        check(Wrapped(Normed(linear).eval(), lambda model, x: model.train()(x)), digits)


class Normed(nn.Module):
    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.classifier = classifier

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.norm(images))


class Counting(nn.Module):
    """Counts its passes in a buffer, and drifts by them."""

    def __init__(self, classifier: nn.Module, drift: float) -> None:
        super().__init__()
        self.classifier = classifier
        self.drift = drift
        self.register_buffer("passes", torch.zeros(()), persistent=False)
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        self.passes += 1
        return self.classifier(images) * (1 + self.drift * self.passes)


def test_a_classifier_that_changes_itself_is_found(linear: Classifier, digits: Split) -> None:
    with pytest.raises(SanityError, match=r"the classifier was not frozen while it was checked: 1 of 3 .*\(passes\)"):
        check(Counting(linear, 0), digits)
    with pytest.raises(SanityError, match="differ by up to"):
        check(Counting(linear, 1e-3), digits)


def test_an_attack_that_fails_without_bounds_is_an_error(linear: Classifier, digits: Split) -> None:
    with pytest.raises(SanityError, match=r"128/255, 40 steps: 100\.0 % of 64 images .* the commonest class"):
        evidence(Wrapped(linear, lambda model, x: model(near(x, digits))), digits)


def near(x: Tensor, digits: Split) -> Tensor:
    """The nearest of all test images, with a gradient of the sign that leads away from any error."""
    known = as_float(digits.test.images)
    nearest = known[torch.cdist(x.detach().flatten(1), known.flatten(1)).argmin(1)]
    return nearest + 0 * x


def test_random_points_that_beat_pgd_are_an_error(linear: Classifier, digits: Split) -> None:
    """Near the images the gradient points the wrong way, and one point in ten is a hole."""
    known = as_float(digits.test.images).flatten(1)

    def misleading(model: nn.Module, x: Tensor) -> Tensor:
        point = x.detach()
        near = torch.cdist(point.flatten(1), known, p=torch.inf).amin(1) < 0.1
        logits = torch.where(near[:, None], model(2 * point - x), model(x))
        hole = (point.mean((1, 2, 3)) * 20000).floor() % 10 == 0
        return torch.where(hole[:, None], -logits, logits)

    with pytest.raises(SanityError, match=r"at 20 random points: chance finds more than the attack"):
        evidence(Wrapped(linear, misleading), digits)


def test_sensitive_votes_are_a_note(digits: Split) -> None:
    """All features near 1: rounding in float32 swaps neighbors, in a batch of another size as well."""
    for share in (1e-2, 1e-4):
        classifier = nearest_neighbors(Collapsed(share), "none", digits.train, NeighborSettings(k=200))
        notes = check(classifier, digits)
        assert any("jump when their pixels move by 1e-2 or less: rounding decides them" in note for note in notes)


class Collapsed(Pooled):
    def __init__(self, share: float) -> None:
        super().__init__(0)
        self.share = share

    def features(self, images: Tensor, route: str) -> Tensor:
        features = super().features(images, route)
        return 1 + self.share * features / features.norm(dim=1, keepdim=True)


def test_a_masked_class_is_no_error(linear: Classifier, digits: Split) -> None:
    assert check(Wrapped(linear, lambda model, x: with_a_masked_class(model(x))), digits) == []


def test_logits_that_may_be_a_sigmoid_s_are_a_note(linear: Classifier, digits: Split) -> None:
    (note,) = check(nn.Sequential(linear, nn.Sigmoid()).eval(), digits)
    assert note.startswith("all 640 outputs are in [0, 1], as if they were a sigmoid's")


def test_logits_that_are_not_finite_are_an_error(linear: Classifier, digits: Split) -> None:
    with pytest.raises(RuntimeError, match=r"logits with [1-9]\d* that are not finite"):
        check(Wrapped(linear, lambda model, x: model(x) / 0), digits)


@pytest.mark.parametrize("fault", [halved, normalized_over_the_batch, turned_in_float32])
def test_few_images_are_no_evidence(
    fault: Callable[[nn.Module, Tensor], Tensor], linear: Classifier, digits: Split
) -> None:
    few, enough = (replace(digits, test=digits.test.take(n)) for n in (7, 8))
    assert check(Wrapped(linear, fault), few)
    with pytest.raises(SanityError, match="of 8 images"):
        check(Wrapped(linear, fault), enough)


def test_the_global_generators_are_put_back(linear: Classifier, digits: Split) -> None:
    def seeding(model: nn.Module, x: Tensor) -> Tensor:
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)
        return model(x)

    def states() -> list[Any]:
        return [torch.random.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()]

    before = states()
    with pytest.raises(SanityError, match="global generator"):
        check(Wrapped(linear, seeding), digits)
    evidence(Wrapped(linear, seeding), digits, limit=8)
    assert states() == before


def test_repeats_bit_for_bit_and_takes_few_images(linear: Classifier, digits: Split) -> None:
    assert evidence(linear, digits, limit=8) == evidence(linear, digits, limit=8)
    assert "of 8 images" in evidence(linear, digits, limit=8)[0]
    one = replace(digits, test=digits.test.take(1))
    assert check(linear, one) == []


def test_bad_input_is_refused(linear: Classifier, digits: Split) -> None:
    images, labels = digits.test.images, digits.test.labels
    assert labels is not None
    with pytest.raises(ValueError, match=r"images are torch.float32 .*expected uint8"):
        check_classifier(linear, 255 * as_float(images), labels)
    with pytest.raises(ValueError, match=r"labels are torch.int64 \(5,\): expected int64 \(360,\)"):
        check_classifier(linear, images, labels[:5])
    with pytest.raises(ValueError, match="limit is 0"):
        masking_evidence(linear, images, labels, limit=0)
    with pytest.raises(SanityError, match="multiply by 255"):
        check_classifier(linear, as_float(images).to(torch.uint8), labels)


def in_place(model: nn.Module, x: Tensor) -> Tensor:
    return model(x.mul_(0.9))


def test_a_classifier_that_changes_its_images_is_told_so(digits: Split, linear: Classifier) -> None:
    with pytest.raises(SanityError, match="changes the images that it is given"):
        check(Wrapped(linear, in_place), digits)


def test_logits_in_float64_are_fine(digits: Split, linear: Classifier) -> None:
    assert check(Wrapped(linear, lambda model, x: model(x).double()), digits) == check(linear, digits)


class Brightness(nn.Module):
    """Whether an image is dark or bright, by its mean; at a logit of 104 the cross entropy's gradient rounds to 0."""

    def forward(self, x: Tensor) -> Tensor:
        bright = 240 * (x.mean((1, 2, 3)) - 0.5)
        return torch.stack([-bright, bright], dim=1)


@pytest.mark.parametrize(("flat", "refused"), [(10, False), (11, True)])
def test_robust_accuracy_says_nothing_if_too_many_images_have_no_gradient(flat: int, refused: bool) -> None:
    labels = torch.arange(200) % 2
    images = (110 + 36 * labels.byte())[:, None, None, None].repeat(1, 3, 4, 4)
    images[:flat] = 255 * labels[:flat, None, None, None].byte()
    assert images.dtype == torch.uint8
    if refused:
        with pytest.raises(SanityError, match="the cross entropy of 11 of 200 images has no gradient"):
            check_attack(Brightness().eval(), images, labels)
    else:
        check_attack(Brightness().eval(), images, labels)
    # of few images two may have none
    check_attack(Brightness().eval(), images[9:13], labels[9:13])


def test_robust_accuracy_says_nothing_if_an_attack_cannot_erase_images(digits: Split, linear: Classifier) -> None:
    assert digits.test.labels is not None
    check_attack(linear, digits.test.images, digits.test.labels)
    with pytest.raises(SanityError, match="images stay right, but no more than"):
        check_attack(Wrapped(linear, lambda model, x: 1e4 * model(x)), digits.test.images, digits.test.labels)
