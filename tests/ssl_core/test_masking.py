import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_core.datasets import load_dataset
from ssl_core.images import Split
from ssl_core.masking import check_classifier, margin, masking_evidence
from ssl_core.neighbours import NeighbourSettings, nearest_neighbours
from ssl_core.networks import TargetNetwork, build_network
from ssl_core.probes import Classifier, ProbeSettings, RawPixels, train_probe
from ssl_core.results import Origin, Row
from ssl_core.sanity import SanityError
from ssl_core.views import ViewSettings, as_float

PROBE = ProbeSettings(epochs=10, lr=0.1, augment=False)


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


class Pooled(nn.Module):
    """Two convolutions with max-pooling, and features from any encoder's place."""

    feature_dim = 64

    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.first = nn.Parameter(0.4 * torch.randn(8, 3, 3, 3, generator=generator))
        self.second = nn.Parameter(0.2 * torch.randn(16, 8, 3, 3, generator=generator))

    def features(self, images: Tensor, route: str) -> Tensor:
        x = F.max_pool2d(F.conv2d(images - 0.5, self.first, padding=1).relu(), 2)
        return F.max_pool2d(F.conv2d(x, self.second, padding=1).relu(), 2).flatten(1)


def network(seed: int, **more: Any) -> TargetNetwork:
    generator = torch.Generator().manual_seed(seed)
    sizes = {"arch": "resnet10", "width": 4, "projector_hidden": 8, "projector_dim": 8}
    return build_network(generator, **sizes, **more).eval()


def check(classifier: nn.Module, data: Split, **more: Any) -> list[str]:
    assert data.test.labels is not None
    return check_classifier(classifier, data.test.images, data.test.labels, **more)


def evidence(classifier: nn.Module, data: Split, **more: Any) -> list[str]:
    assert data.test.labels is not None
    return masking_evidence(classifier, data.test.images, data.test.labels, **more)


def scaled(classifier: Classifier, factor: float) -> Classifier:
    classifier = copy.deepcopy(classifier)
    for parameter in classifier.head.parameters():
        parameter.data *= factor
    return classifier


class Wrapped(nn.Module):
    """A fault around an honest classifier."""

    def __init__(self, classifier: nn.Module, act: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.classifier = classifier
        self.act = act
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        return self.act(self.classifier, images)


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
def test_nearest_neighbours_pass(k: int, digits: Split) -> None:
    classifier = nearest_neighbours(Pooled(0), "none", digits.train, NeighbourSettings(k=k))
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


def test_a_classifier_for_float32_only_is_checked_in_float32(digits: Split) -> None:
    deep = train_probe(network(0), "pgd", digits.train, PROBE, ViewSettings(), seed=0)
    narrow = Wrapped(deep, lambda model, x: copy.deepcopy(model).float()(x.float()))
    note = check(narrow, digits)[0]
    assert "in float32, since a copy in float64 gives logits in torch.float32" in note
    with pytest.raises(SanityError, match=r"differ from central differences"):
        check(Wrapped(narrow, lambda model, x: halved(model, x)), digits)


def noisy(model: nn.Module, x: Tensor) -> Tensor:
    logits = model(x)
    return logits + torch.randn_like(logits)


def seeded(model: nn.Module, x: Tensor) -> Tensor:
    torch.manual_seed(0)
    return noisy(model, x)


def seeded_in_secret(model: nn.Module, x: Tensor) -> Tensor:
    with torch.random.fork_rng(devices=[]):
        return seeded(model, x)


def normalised_over_the_batch(model: nn.Module, x: Tensor) -> Tensor:
    return model((x - x.mean(0)) / (x.std(0, correction=0) + 0.1))


def halved(model: nn.Module, x: Tensor) -> Tensor:
    return model(0.5 * x + 0.5 * x.detach())


def clamped(model: nn.Module, x: Tensor) -> Tensor:
    if x.requires_grad:
        x = x.clone()
        x.register_hook(lambda gradient: gradient.clamp(-0.1, 0.1))
    return model(x)


def detached(model: nn.Module, x: Tensor) -> Tensor:
    return model(x.detach())


def half_detached(model: nn.Module, x: Tensor) -> Tensor:
    return model(torch.cat([x[..., :4], x[..., 4:].detach()], -1))


def straight_through(model: nn.Module, x: Tensor) -> Tensor:
    return model(x + ((8 * x).round() / 8 - x).detach())


def turned_in_float32(model: nn.Module, x: Tensor) -> Tensor:
    return model(2 * x.detach() - x if x.dtype == torch.float32 else x)


def not_finite(model: nn.Module, x: Tensor) -> Tensor:
    return model(x) + 0 * (x - x.detach()).abs().sqrt().sum((1, 2, 3))[:, None]


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (noisy, r"the logits of the same images differ by up to [\d.]+ from one pass to the next: .* random"),
        (seeded, "draws from torch's global generator, or seeds it"),
        (seeded_in_secret, r"the logits of 6\d of 64 images depend on the rest of their batch"),
        (normalised_over_the_batch, r"the logits of 6\d of 64 images depend on the rest of their batch"),
        (lambda model, x: model(x).softmax(1), r"gives probabilities: all 640 outputs are in \[0, 1\]"),
        (lambda model, x: model(x) / 0, r"logits with [1-9]\d* that are not finite"),
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


def test_a_backward_hook_that_clips_is_found(digits: Split) -> None:
    classifier = train_probe(network(0), "pgd", digits.train, PROBE, ViewSettings(), seed=0)
    first = classifier.encoder.get_submodule("backbone.conv")
    first.register_full_backward_hook(lambda module, inward, outward: (inward[0].clamp(-1e-3, 1e-3),))
    with pytest.raises(SanityError, match="differ from central differences"):
        check(classifier, digits)


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


def flat_on(n: int, linear: Classifier, digits: Split) -> nn.Module:
    """Without a gradient on the first n of 64 images, told apart by their nearest image."""
    known = as_float(digits.test.images[:64]).flatten(1)

    def act(model: nn.Module, x: Tensor) -> Tensor:
        nearest = torch.cdist(x.detach().flatten(1).float(), known).argmin(1)
        return model(torch.where((nearest < n)[:, None, None, None], x.detach(), x))

    return Wrapped(linear, act)


def test_two_images_without_a_gradient_are_a_note_and_three_an_error(linear: Classifier, digits: Split) -> None:
    assert digits.test.labels is not None
    right = linear(as_float(digits.test.images)).argmax(1) == digits.test.labels
    sure = replace(digits.test, images=digits.test.images[right], labels=digits.test.labels[right]).take(64)
    data = replace(digits, test=sure)
    assert check(flat_on(2, linear, data), data)[0].startswith("the margin's gradient is zero for 2 of 64 images")
    with pytest.raises(SanityError, match="zero for 3 of 64 images"):
        check(flat_on(3, linear, data), data)


def test_saturation_is_a_note_and_an_error_once_most_images_have_no_gradient(linear: Classifier, digits: Split) -> None:
    logits = linear(as_float(digits.test.images))
    typical = float((logits.topk(2).values @ torch.tensor([1.0, -1.0])).median())
    (note,) = check(scaled(linear, 50 / typical), digits)
    assert "images rounds to 1 (median margin 4" in note or "images rounds to 1 (median margin 5" in note
    with pytest.raises(SanityError, match=r"the softmax of 6\d of 64 images rounds to 1 .* for 6\d none.*void"):
        check(scaled(linear, 2000 / typical), digits)


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


def test_a_drop_by_square_is_reported(linear: Classifier, digits: Split) -> None:
    origin = Origin(protocol="slf", route="none", seed=0, checkpoint="last", commit="unknown")

    def stages(fab: int, square: int) -> list[Row]:
        epsilon = 8 / 255
        return [
            origin.accuracy("RA", fab, 1000, attack="fab-t", epsilon=epsilon),
            origin.accuracy("RA", square, 1000, attack="square", epsilon=epsilon),
        ]

    assert len(evidence(linear, digits, rows=stages(400, 395))) == 2
    note = evidence(linear, digits, rows=stages(400, 394))[0]
    assert "under square is 39.40 % at epsilon 8/255, but 40.00 % were left by the attacks with gradients" in note


def test_margin_is_the_label_less_the_largest_other() -> None:
    logits = torch.tensor([[1.0, 4.0, 2.5], [3.0, 0.0, 7.0]])
    assert margin(logits, torch.tensor([1, 0])).tolist() == [1.5, -4.0]


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
