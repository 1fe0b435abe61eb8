import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from astra_gym.ssl_core.attacks.pgd import Attacked, Budget, pgd
from astra_gym.ssl_core.data.image_set import ImageSet
from astra_gym.ssl_core.downstream.linear_probe import Classifier, RawPixels
from astra_gym.ssl_core.evaluation import robustness
from astra_gym.ssl_core.evaluation.robustness import (
    clean_accuracy,
    device_of,
    fgsm_accuracy,
    pgd_accuracy,
    step_size_for,
)
from astra_gym.ssl_core.transforms.views import as_float

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


def test_at_epsilon_zero_the_clean_outcome_itself_comes_back(
    linear: Classifier, test_set: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nothing is classified again: in other batches a near tie could go the other way."""
    assert test_set.labels is not None
    clean = torch.arange(N) < 7
    monkeypatch.setattr(robustness, "pgd", None)
    monkeypatch.setattr(robustness, "is_correct", None)
    data = (linear, test_set.images, test_set.labels, 0.0)
    for robust in (
        pgd_accuracy(*data, generator=torch.Generator(), restarts=3, clean=clean),
        fgsm_accuracy(*data, clean=clean),
    ):
        assert torch.equal(robust, clean) and robust is not clean
    with pytest.raises(ValueError, match="restarts is 0"):
        pgd_accuracy(*data, generator=torch.Generator(), restarts=0, clean=clean)


def test_an_image_lost_without_attack_is_not_attacked_and_stays_lost(linear: Classifier, test_set: ImageSet) -> None:
    assert test_set.labels is not None
    clean = torch.arange(N) < N // 2
    given = clean.clone()
    arguments = (linear, test_set.images, test_set.labels, 4 / 255)
    robust = pgd_accuracy(*arguments, generator=torch.Generator(), clean=clean)
    assert torch.equal(robust, pgd_accuracy(*arguments, generator=torch.Generator()) & given)
    assert torch.equal(clean, given)


def test_step_sizes() -> None:
    assert [255 * step_size_for(numerator / 255) for numerator in (0, 1, 2, 20, 24, 32, 255)] == pytest.approx(
        [0, 0.5, 1, 2.5, 3, 4, 2.5 * 255 / 20]
    )
    # to the last bit, since results so far were measured with it
    assert {step_size_for(numerator / 255) for numerator in range(4, 17)} == {2 / 255}


def test_twenty_steps_cross_a_large_ball(linear: Classifier) -> None:
    """From any start; steps of 2/255 do not, and would overstate the accuracy."""
    weight = linear.head.get_parameter("weight")
    generator = torch.Generator().manual_seed(3)
    # pushed to one class by 20 to 60: some can be lost within 32, some cannot, and no bound binds
    push = torch.linspace(20, 60, N)[:, None] * (weight[1] - weight[0]).sign()
    push[::2] *= -1
    noise = torch.randint(-10, 11, (N, 75), generator=generator)
    images = (128 + push + noise).round().to(torch.uint8).view(N, *SHAPE)
    labels = linear(as_float(images)).argmax(1)
    test, epsilon = ImageSet(images, labels, ("a", "b"), "pushed"), 32 / 255
    margins = worst_margins(linear, test, epsilon)
    assert float(margins.abs().min()) > 1e-5 and 0.2 * N < int((margins > 0).sum()) < 0.8 * N

    def robust(step_size: float | None) -> Tensor:
        start = torch.Generator().manual_seed(0)
        return pgd_accuracy(linear, images, labels, epsilon, generator=start, step_size=step_size)

    assert torch.equal(robust(None), margins > 0)
    assert torch.equal(fgsm_accuracy(linear, images, labels, epsilon), margins > 0)
    assert int(robust(2 / 255).sum()) > int((margins > 0).sum())


def test_the_device_is_that_of_the_parameters_or_else_of_the_buffers() -> None:
    class Tables(nn.Module):
        def __init__(self, parameter: str | None, buffer: str | None) -> None:
            super().__init__()
            if buffer is not None:
                self.register_buffer("table", torch.zeros(1, device=buffer))
            if parameter is not None:
                self.weight = nn.Parameter(torch.zeros(1, device=parameter))

    for parameter, buffer, expected in (
        (None, None, "cpu"),
        (None, "meta", "meta"),
        ("cpu", "meta", "cpu"),
        ("meta", "cpu", "meta"),
    ):
        assert device_of(Tables(parameter, buffer)) == torch.device(expected)


@pytest.mark.parametrize("numerator", [1, 4, 8, 12])
def test_one_signed_step_loses_exactly_the_images_that_a_linear_classifier_can_lose(
    linear: Classifier, test_set: ImageSet, numerator: int
) -> None:
    """Where logits are linear, FGSM's corner of the ball is the worst case."""
    assert test_set.labels is not None
    robust = fgsm_accuracy(linear, test_set.images, test_set.labels, numerator / 255, batch_size=77)
    assert torch.equal(robust, worst_margins(linear, test_set, numerator / 255) > 0)
    clean = clean_accuracy(linear, test_set.images, test_set.labels)
    assert torch.equal(fgsm_accuracy(linear, test_set.images, test_set.labels, 0.0), clean)
    assert torch.equal(
        fgsm_accuracy(linear, test_set.images, test_set.labels, 1e-9, clean=clean & (torch.arange(N) < 9)),
        clean & (torch.arange(N) < 9),
    )


class Bumpy(nn.Module):
    """A small network that is not linear."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(4)
        self.first = nn.Parameter(torch.randn(75, 24, generator=generator))
        self.second = nn.Parameter(torch.randn(24, 2, generator=generator))

    def forward(self, images: Tensor) -> Tensor:
        return torch.sin(images.flatten(1) @ self.first) @ self.second


@pytest.fixture
def bumpy() -> nn.Module:
    return Bumpy().eval()


def plain_fgsm(classifier: nn.Module, images: Tensor, labels: Tensor, epsilon: float) -> Tensor:
    x = as_float(images).requires_grad_()
    F.cross_entropy(classifier(x), labels).backward()
    assert x.grad is not None
    attacked = (x + epsilon * x.grad.sign()).clamp(0, 1)
    return (classifier(x).argmax(1) == labels) & (classifier(attacked).argmax(1) == labels)


def test_fgsm_is_that_of_the_paper(bumpy: nn.Module, test_set: ImageSet) -> None:
    labels = bumpy(as_float(test_set.images)).argmax(1)
    robust = fgsm_accuracy(bumpy, test_set.images, labels, 1 / 255)
    assert torch.equal(robust, plain_fgsm(bumpy, test_set.images, labels, 1 / 255))
    assert 0.02 * N < int(robust.sum()) < 0.98 * N


def plain_restarts(
    classifier: nn.Module, images: Tensor, labels: Tensor, epsilon: float, seed: int, restarts: int
) -> Tensor:
    """Every start in one batch of those that are still right, as a plain loop."""
    generator = torch.Generator().manual_seed(seed)
    robust = classifier(as_float(images)).argmax(1) == labels
    for _ in range(restarts):
        rows = robust.nonzero().flatten()
        if not len(rows):
            break
        x, y = as_float(images[rows]), labels[rows]
        budget = Budget.uniform(len(rows), epsilon=epsilon, step_size=2 / 255, steps=2)
        attacked = pgd(
            lambda moved, _: classifier(moved),
            lambda logits, y=y: F.cross_entropy(logits, y, reduction="none"),
            x,
            budget,
            generator=generator,
        ).images
        robust[rows] = classifier(attacked).argmax(1) == y
    return robust


def test_more_restarts_never_raise_the_accuracy_and_go_on_from_the_first(bumpy: nn.Module, test_set: ImageSet) -> None:
    labels = bumpy(as_float(test_set.images)).argmax(1)
    told: list[tuple[int, int]] = []

    def robust(restarts: int) -> Tensor:
        told.clear()
        return pgd_accuracy(
            bumpy,
            test_set.images,
            labels,
            8 / 255,
            generator=torch.Generator().manual_seed(2),
            steps=2,
            restarts=restarts,
            batch_size=N,
            progress=lambda done, total: told.append((done, total)),
        )

    found = {restarts: robust(restarts) for restarts in (1, 2, 6)}
    for restarts, right in found.items():
        assert torch.equal(right, plain_restarts(bumpy, test_set.images, labels, 8 / 255, 2, restarts))
    assert not (found[2] & ~found[1]).any() and not (found[6] & ~found[2]).any()
    assert int(found[6].sum()) < int(found[1].sum())
    done, totals = zip(*told, strict=True)
    assert len(told) == 6 and list(totals) == sorted(totals, reverse=True) and done[-1] == totals[-1] < 6 * N


def test_progress_reaches_its_total(linear: Classifier, test_set: ImageSet) -> None:
    told: list[tuple[int, int]] = []
    for attack in (lambda **more: pgd_accuracy(generator=torch.Generator(), **more), fgsm_accuracy):
        attack(
            classifier=linear,
            images=test_set.images,
            labels=test_set.labels,
            epsilon=2 / 255,
            batch_size=200,
            progress=lambda done, total: told.append((done, total)),
        )
    assert told == [(200, 270), (270, 270)] * 2


def test_attacks_leave_the_classifier_untouched(linear: Classifier, test_set: ImageSet) -> None:
    assert test_set.labels is not None
    before = copy.deepcopy(linear.state_dict())
    pgd_accuracy(linear, test_set.images, test_set.labels, 8 / 255, generator=torch.Generator())
    fgsm_accuracy(linear, test_set.images, test_set.labels, 8 / 255)
    assert all(torch.equal(value, before[name]) for name, value in linear.state_dict().items())
    assert all(parameter.grad is None for parameter in linear.parameters())


def test_an_attack_that_leaves_its_ball_is_an_error(
    linear: Classifier, test_set: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def careless(encode: object, objective: object, images: Tensor, *rest: object, **more: object) -> Attacked:
        return Attacked(images + 9 / 255, images)

    assert test_set.labels is not None
    monkeypatch.setattr(robustness, "pgd", careless)
    with pytest.raises(RuntimeError, match=r"broke its own rules.*distance 0\.035"):
        pgd_accuracy(linear, test_set.images, test_set.labels, 8 / 255, generator=torch.Generator())


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
    with pytest.raises(ValueError, match="restarts is 0: expected an integer of 1 or more"):
        pgd_accuracy(linear, images, labels, 0.1, generator=generator, restarts=0)
    with pytest.raises(ValueError, match="8/255 and not 8"):
        fgsm_accuracy(linear, images, labels, 8)


def test_logits_that_are_not_finite_are_an_error(linear: Classifier, test_set: ImageSet) -> None:
    assert test_set.labels is not None
    linear.head.get_parameter("bias").data[0] = float("nan")
    with pytest.raises(RuntimeError, match="not finite"):
        clean_accuracy(linear, test_set.images, test_set.labels)
