import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ssl_core import robustness
from ssl_core.attacks import Attacked, pgd
from ssl_core.images import ImageSet
from ssl_core.probes import Classifier, RawPixels
from ssl_core.results import Origin, Row
from ssl_core.robustness import clean_accuracy, evaluate, pgd_accuracy, step_size_for
from ssl_core.views import as_float

SHAPE = (3, 5, 5)
N = 300


@pytest.fixture
def linear() -> Classifier:
    """Two classes, logits linear in the pixels, so that the worst perturbation is known in closed form."""
    generator = torch.Generator().manual_seed(0)
    head = nn.Linear(75, 2)
    head.weight.data = 0.4 * torch.randn(2, 75, generator=generator)
    head.bias.data.zero_()
    return Classifier(RawPixels(SHAPE), "none", head)


@pytest.fixture
def test_set(linear: Classifier) -> ImageSet:
    """Images far enough from 0 and 1 that no bound binds; one label in ten is wrong."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(60, 196, (N, *SHAPE), generator=generator).to(torch.uint8)
    labels = linear(as_float(images)).argmax(1)
    labels[::10] = 1 - labels[::10]
    return ImageSet(images, labels, ("a", "b"), "linear")


def worst_margins(classifier: Classifier, test: ImageSet, epsilon: float) -> Tensor:
    """min over the ball of w.(x + d) + b, where w is the true class's weights less the other's: margin - eps |w|_1."""
    assert test.labels is not None
    logits = classifier(as_float(test.images)).double()
    rows = torch.arange(len(test))
    weight = classifier.head.get_parameter("weight").double()
    return logits[rows, test.labels] - logits[rows, 1 - test.labels] - epsilon * (weight[0] - weight[1]).abs().sum()


@pytest.mark.parametrize("numerator", [1, 4, 8, 12])
def test_pgd_finds_exactly_the_images_that_a_linear_classifier_can_lose(
    linear: Classifier, test_set: ImageSet, numerator: int
) -> None:
    assert test_set.labels is not None
    epsilon = numerator / 255
    margins = worst_margins(linear, test_set, epsilon)
    assert float(margins.abs().min()) > 1e-5, "an image on the border would make the expectation a matter of rounding"
    robust = pgd_accuracy(
        linear, test_set.images, test_set.labels, epsilon, generator=torch.Generator().manual_seed(0), batch_size=64
    )
    assert torch.equal(robust, margins > 0)
    assert 0.02 * N < int(robust.sum()) < 0.9 * N


def test_one_step_is_not_enough_for_the_worst_case(linear: Classifier, test_set: ImageSet) -> None:
    """So the twenty steps above are what finds it."""
    assert test_set.labels is not None
    robust = pgd_accuracy(
        linear, test_set.images, test_set.labels, 8 / 255, generator=torch.Generator().manual_seed(0), steps=1
    )
    assert int(robust.sum()) > int((worst_margins(linear, test_set, 8 / 255) > 0).sum())


def test_epsilon_zero_is_the_clean_accuracy(linear: Classifier, test_set: ImageSet) -> None:
    assert test_set.labels is not None
    clean = clean_accuracy(linear, test_set.images, test_set.labels, batch_size=77)
    assert clean.tolist() == [index % 10 != 0 for index in range(N)]
    generator = torch.Generator().manual_seed(0)
    assert torch.equal(pgd_accuracy(linear, test_set.images, test_set.labels, 0.0, generator=generator), clean)


def test_an_image_lost_without_attack_is_not_attacked_and_stays_lost(linear: Classifier, test_set: ImageSet) -> None:
    assert test_set.labels is not None
    clean = torch.arange(N) < N // 2
    given = clean.clone()
    arguments = (linear, test_set.images, test_set.labels, 4 / 255)
    robust = pgd_accuracy(*arguments, generator=torch.Generator(), clean=clean)
    assert torch.equal(robust, pgd_accuracy(*arguments, generator=torch.Generator()) & given)
    assert torch.equal(clean, given)


def test_step_sizes() -> None:
    assert [255 * step_size_for(numerator / 255) for numerator in (0, 1, 2, 4, 8, 16)] == pytest.approx(
        [0, 0.5, 1, 2, 2, 2]
    )


ORIGIN = Origin(protocol="slf", route="pgd", seed=0, checkpoint="last", commit="unknown")


def evaluated(classifier: nn.Module, test: ImageSet, epsilons: tuple[float, ...], seed: int = 0) -> list[Row]:
    return evaluate(classifier, test, epsilons, origin=replace(ORIGIN, seed=seed), batch_size=128).rows


class Bumpy(nn.Module):
    """A small network that is not linear."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(4)
        self.first = nn.Parameter(torch.randn(75, 24, generator=generator))
        self.second = nn.Parameter(torch.randn(24, 2, generator=generator))

    def forward(self, images: Tensor) -> Tensor:
        return torch.sin(images.flatten(1) @ self.first) @ self.second


def test_rows_say_what_was_measured(linear: Classifier, test_set: ImageSet) -> None:
    rows = evaluated(linear, test_set, (8 / 255, 2 / 255), seed=5)
    assert [(row.metric, row.attack, row.epsilon) for row in rows] == [
        ("SA", "none", 0.0),
        ("RA", "pgd20", 8 / 255),
        ("RA", "pgd20", 2 / 255),
    ]
    assert rows[0].value == 90.0
    for row in rows[1:]:
        expected = int((worst_margins(linear, test_set, row.epsilon) > 0).sum())
        assert row.value == 100 * expected / N
    first = rows[0]
    assert (first.protocol, first.n, first.route, first.seed, first.checkpoint) == ("slf", N, "pgd", 5, "last")
    assert "torch" in first.versions


def test_evaluating_twice_gives_equal_rows(test_set: ImageSet) -> None:
    bumpy = Bumpy().eval()
    with torch.no_grad():
        test_set = replace(test_set, labels=bumpy(as_float(test_set.images)).argmax(1))
    epsilons = (1 / 255, 2 / 255, 4 / 255)
    before = torch.random.get_rng_state()
    rows = evaluated(bumpy, test_set, epsilons)
    assert evaluated(bumpy, test_set, epsilons) == rows
    assert torch.equal(torch.random.get_rng_state(), before)


def test_each_epsilon_has_a_stream_of_its_own(
    linear: Classifier, test_set: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def starts(epsilons: tuple[float, ...], seed: int = 0) -> dict[float, Tensor]:
        """The state that the generator had when each epsilon's attack began."""
        seen: dict[float, Tensor] = {}

        def watched(*arguments: Any, generator: torch.Generator) -> Attacked:
            seen.setdefault(round(255 * float(arguments[3].epsilon[0])), generator.get_state())
            return pgd(*arguments, generator=generator)

        monkeypatch.setattr(robustness, "pgd", watched)
        evaluated(linear, test_set, epsilons, seed)
        return seen

    both, alone, other = starts((2 / 255, 8 / 255)), starts((8 / 255,)), starts((8 / 255,), seed=1)
    assert torch.equal(both[8], alone[8])
    assert not torch.equal(both[8], both[2])
    assert not torch.equal(alone[8], other[8])


def test_evaluation_leaves_the_classifier_untouched(linear: Classifier, test_set: ImageSet) -> None:
    before = copy.deepcopy(linear.state_dict())
    evaluated(linear, test_set, (8 / 255,))
    assert all(torch.equal(value, before[name]) for name, value in linear.state_dict().items())
    assert all(parameter.grad is None for parameter in linear.parameters())


def test_progress_reaches_its_total(linear: Classifier, test_set: ImageSet) -> None:
    told: list[tuple[int, int]] = []
    evaluate(
        linear,
        test_set,
        (2 / 255, 8 / 255),
        origin=ORIGIN,
        batch_size=200,
        progress=lambda done, total: told.append((done, total)),
    )
    assert told == [(200, 540), (270, 540), (470, 540), (540, 540)]


class Masked(nn.Module):
    """Loses its gradient on images far from the grid of uint8: an attack that fails looks like robustness."""

    def __init__(self, classifier: nn.Module, images: Tensor) -> None:
        super().__init__()
        self.classifier = classifier
        self.images = as_float(images)

    def forward(self, images: Tensor) -> Tensor:
        logits = self.classifier(images)
        distance = torch.cdist(images.detach().flatten(1), self.images.flatten(1), p=float("inf")).amin(1)
        return torch.where((distance > 5 / 255)[:, None], logits.detach() + 0 * logits, logits)


def test_gradient_masking_is_an_error(linear: Classifier, test_set: ImageSet) -> None:
    masked = Masked(linear, test_set.images).eval()
    with pytest.raises(RuntimeError, match=r"rises with epsilon.*gradient masking"):
        evaluated(masked, test_set, (4 / 255, 12 / 255))


def test_an_attack_that_leaves_its_ball_is_an_error(
    linear: Classifier, test_set: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def careless(encode: object, objective: object, images: Tensor, *rest: object, **more: object) -> Attacked:
        return Attacked(images + 9 / 255, images)

    monkeypatch.setattr(robustness, "pgd", careless)
    with pytest.raises(RuntimeError, match=r"broke its own rules.*distance 0\.035"):
        evaluated(linear, test_set, (8 / 255,))


def test_bad_input_is_refused(linear: Classifier, test_set: ImageSet) -> None:
    images, labels = test_set.images, test_set.labels
    assert labels is not None
    generator = torch.Generator()
    with pytest.raises(ValueError, match=r"images are torch.float32 .*expected uint8"):
        clean_accuracy(linear, as_float(images), labels)
    with pytest.raises(ValueError, match=r"labels are torch.int64 \(5,\): expected int64 \(300,\)"):
        clean_accuracy(linear, images, labels[:5])
    with pytest.raises(ValueError, match="8/255 and not 8"):
        pgd_accuracy(linear, images, labels, 8, generator=generator)
    with pytest.raises(ValueError, match=r"clean is torch\.int64"):
        pgd_accuracy(linear, images, labels, 0.1, generator=generator, clean=labels)
    with pytest.raises(ValueError, match="train mode"):
        clean_accuracy(nn.Sequential(nn.Flatten(), nn.Linear(75, 2)), images, labels)
    with pytest.raises(ValueError, match=r"'linear' has no labels.*one folder for each class"):
        evaluated(linear, replace(test_set, labels=None), (8 / 255,))
    with pytest.raises(ValueError, match="all different"):
        evaluated(linear, test_set, (8 / 255, 8 / 255))


def test_logits_that_are_not_finite_are_an_error(linear: Classifier, test_set: ImageSet) -> None:
    linear.head.get_parameter("bias").data[0] = float("nan")
    with pytest.raises(RuntimeError, match="not finite"):
        evaluated(linear, test_set, (8 / 255,))
