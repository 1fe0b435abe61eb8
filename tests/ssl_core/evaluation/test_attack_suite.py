import copy
import logging
import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from pyautoattack import AutoAttack
from torch import Tensor, nn

from astra_gym.ssl_core.attacks.pgd import Attacked, pgd
from astra_gym.ssl_core.data.image_set import ImageSet
from astra_gym.ssl_core.downstream.linear_probe import Classifier, RawPixels
from astra_gym.ssl_core.evaluation import attack_library, attack_suite, robustness
from astra_gym.ssl_core.evaluation.attack_suite import CLEAN, Attack, check_classes, evaluate
from astra_gym.ssl_core.evaluation.autoattack import autoattack_accuracy
from astra_gym.ssl_core.evaluation.results import Origin, Row
from astra_gym.ssl_core.evaluation.robustness import clean_accuracy, fgsm_accuracy, pgd_accuracy
from astra_gym.ssl_core.transforms.views import as_float
from astra_gym.ssl_core.utils.rng import Streams

SHAPE = (3, 5, 5)
N = 300
ORIGIN = Origin(protocol="slf", route="pgd", seed=0, checkpoint="last", commit="unknown")
STANDARD, QUICK = Attack("autoattack", 8 / 255), Attack("autoattack-quick", 8 / 255)
FGSM, PGD = Attack("fgsm", 8 / 255), Attack("pgd20", 8 / 255)


def linear_classifier(classes: int = 2) -> Classifier:
    generator = torch.Generator().manual_seed(0)
    head = nn.Linear(75, classes)
    head.weight.data = 0.4 * torch.randn(classes, 75, generator=generator)
    head.bias.data.zero_()
    return Classifier(RawPixels(SHAPE), "none", head)


def images_of(classifier: nn.Module, n: int = N) -> ImageSet:
    """Images far enough from 0 and 1 that no bound binds; one label in ten is wrong."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(60, 196, (n, *SHAPE), generator=generator).to(torch.uint8)
    with torch.no_grad():
        logits = classifier(as_float(images))
    labels = logits.argmax(1)
    labels[::10] = (labels[::10] + 1) % logits.shape[1]
    return ImageSet(images, labels, tuple("abcdefghijkl"[: logits.shape[1]]), "linear")


@pytest.fixture
def linear() -> Classifier:
    """Two classes, logits linear in the pixels, so that the worst perturbation is known in closed form."""
    return linear_classifier()


@pytest.fixture
def test_set(linear: Classifier) -> ImageSet:
    return images_of(linear)


class Bumpy(nn.Module):
    """A small network that is not linear."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(4)
        self.first = nn.Parameter(torch.randn(75, 24, generator=generator))
        self.second = nn.Parameter(torch.randn(24, classes, generator=generator))

    def forward(self, images: Tensor) -> Tensor:
        return torch.sin(images.flatten(1) @ self.first) @ self.second


@pytest.fixture
def bumpy() -> nn.Module:
    return Bumpy(10).eval()


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """AutoAttack with fewer steps; that it is the library's is tested in test_autoattack.py."""

    class Short(AutoAttack):
        def __init__(self, *arguments: Any, **more: Any) -> None:
            super().__init__(*arguments, **more)
            for attack in (self.apgd, self.apgd_targeted):
                attack.n_iter = attack.n_iter_orig = 10
            self.fab.n_iter = 4
            self.square.n_queries = 40

    monkeypatch.setattr(attack_library, "AutoAttack", Short)
    monkeypatch.setattr(logging.getLogger("auto-attack"), "disabled", True)


def pgd_at(*numerators: float) -> list[Attack]:
    return [Attack("pgd20", numerator / 255) for numerator in numerators]


def evaluated(classifier: nn.Module, test: ImageSet, attacks: list[Attack], seed: int = 0) -> list[Row]:
    return evaluate(classifier, test, attacks, origin=replace(ORIGIN, seed=seed), batch_size=128).rows


def without_seconds(rows: list[Row]) -> list[Row]:
    return [replace(row, seconds=None) for row in rows]


def worst_margins(classifier: Classifier, test: ImageSet, epsilon: float) -> Tensor:
    """min over the ball of w.(x + d) + b, where w is the true class's weights less the other's: margin - eps |w|_1."""
    assert test.labels is not None
    logits = classifier(as_float(test.images)).double()
    rows = torch.arange(len(test))
    weight = classifier.head.get_parameter("weight").double()
    return logits[rows, test.labels] - logits[rows, 1 - test.labels] - epsilon * (weight[0] - weight[1]).abs().sum()


def test_rows_say_what_was_measured(linear: Classifier, test_set: ImageSet) -> None:
    attacks = [*pgd_at(8, 2), Attack("fgsm", 2 / 255), Attack("pgd20", 4 / 255, restarts=3)]
    rows = evaluated(linear, test_set, attacks, seed=5)
    assert [(row.metric, row.attack, row.epsilon, row.norm, row.restarts) for row in rows] == [
        ("SA", "none", 0.0, "Linf", 1),
        ("RA", "pgd20", 8 / 255, "Linf", 1),
        ("RA", "pgd20", 2 / 255, "Linf", 1),
        ("RA", "fgsm", 2 / 255, "Linf", 1),
        ("RA", "pgd20", 4 / 255, "Linf", 3),
        ("RA", "worst", 2 / 255, "Linf", 1),
    ]
    assert rows[0].value == 90.0
    for row in rows[1:]:
        expected = int((worst_margins(linear, test_set, row.epsilon) > 0).sum())
        assert row.value == 100 * expected / N
    first = rows[0]
    assert (first.protocol, first.n, first.route, first.seed, first.checkpoint) == ("slf", N, "pgd", 5, "last")
    assert "torch" in first.versions
    assert all(row.seconds is not None and row.seconds > 0 for row in rows if row.attack != "worst")
    assert {(row.attack, row.epsilon) for row in rows if not row.standard} == {
        ("pgd20", 2 / 255),
        ("worst", 2 / 255),
    }


def test_every_attack_finds_what_it_finds_alone(bumpy: nn.Module) -> None:
    test = images_of(bumpy, 60)
    assert test.labels is not None
    l2 = Attack("autoattack", 0.2, "L2")
    attacks = [PGD, STANDARD, FGSM, l2, Attack("pgd20", 2 / 255, restarts=2)]
    found = evaluate(bumpy, test, attacks, origin=replace(ORIGIN, seed=7), batch_size=50)
    clean = clean_accuracy(bumpy, test.images, test.labels, 50)
    usual: dict[str, Any] = {"batch_size": 50}
    data = (bumpy, test.images, test.labels)

    def stream(epsilon: float) -> torch.Generator:
        return Streams(7).on_device(f"pgd20/{epsilon!r}")

    whole = {
        attack: autoattack_accuracy(*data, attack.epsilon, norm=attack.norm, seed=7, batch_size=50)
        for attack in (STANDARD, l2)
    }
    expected = {
        CLEAN: clean,
        PGD: pgd_accuracy(*data, 8 / 255, generator=stream(8 / 255), **usual),
        STANDARD: whole[STANDARD]["square"],
        FGSM: fgsm_accuracy(*data, 8 / 255, **usual),
        l2: whole[l2]["square"],
        attacks[-1]: pgd_accuracy(*data, 2 / 255, generator=stream(2 / 255), restarts=2, **usual),
    }
    expected[Attack("worst", 8 / 255)] = expected[PGD] & expected[STANDARD] & expected[FGSM]
    assert list(found.correct) == list(expected)
    assert all(torch.equal(found.correct[attack], right) for attack, right in expected.items())
    parts = {(attack.norm, name): right for attack, stages in whole.items() for name, right in stages.items()}
    assert [(row.attack, row.epsilon, row.norm) for row in found.rows] == [
        ("none", 0.0, "Linf"),
        ("pgd20", 8 / 255, "Linf"),
        *((name, 8 / 255, "Linf") for name in ("apgd-ce", "apgd-t", "fab-t", "square", "autoattack")),
        ("fgsm", 8 / 255, "Linf"),
        *((name, 0.2, "L2") for name in ("apgd-ce", "apgd-t", "fab-t", "square", "autoattack")),
        ("pgd20", 2 / 255, "Linf"),
        ("worst", 8 / 255, "Linf"),
    ]
    by_attack = {(attack.name, attack.epsilon, attack.norm): right for attack, right in expected.items()}
    for row in found.rows:
        key = (row.attack, row.epsilon, row.norm)
        right = by_attack[key] if key in by_attack else parts[row.norm, row.attack]
        assert row.value == 100 * int(right.sum()) / 60
    # in so small a ball the steps are smaller
    assert [(row.attack, row.epsilon) for row in found.rows if not row.standard] == [("pgd20", 2 / 255)]
    seconds = {(row.attack, row.norm): row.seconds for row in found.rows}
    for norm in ("Linf", "L2"):
        times = [seconds[name, norm] for name in ("apgd-ce", "apgd-t", "fab-t", "square")]
        assert seconds["autoattack", norm] == pytest.approx(sum(time or 0 for time in times))
    assert seconds["worst", "Linf"] is None


def test_the_worst_case_is_below_each_of_its_attacks_where_they_differ(
    bumpy: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    test = images_of(bumpy, 60)
    clean = evaluate(bumpy, test, [], origin=ORIGIN).correct[CLEAN]
    rows = clean.nonzero().flatten()
    first, second = clean.clone(), clean.clone()
    first[rows[0]] = second[rows[1]] = False
    monkeypatch.setattr(attack_suite, "fgsm_accuracy", lambda *arguments, **more: first)
    monkeypatch.setattr(attack_suite, "pgd_accuracy", lambda *arguments, **more: second)
    found = evaluate(bumpy, test, [FGSM, PGD, *pgd_at(4)], origin=ORIGIN)
    worst = found.correct[Attack("worst", 8 / 255)]
    assert torch.equal(worst, first & second) and int(worst.sum()) == int(clean.sum()) - 2
    assert [row.value for row in found.rows if row.attack == "worst"] == [100 * int(worst.sum()) / 60]


def test_the_quick_version_says_so_and_is_never_run_beside_the_whole(
    bumpy: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    test = images_of(bumpy, 40)
    reason = "AutoAttack's first two attacks only"
    quick = evaluate(bumpy, test, [QUICK, PGD], origin=ORIGIN)
    assert {row.attack: row.deviations for row in quick.rows} == {
        "none": (),
        "apgd-ce": (),
        "apgd-t": (),
        "autoattack-quick": (reason,),
        "pgd20": (),
        "worst": (reason,),
    }
    runs: list[str] = []

    def counted(*arguments: Any, version: str, **more: Any) -> dict[str, Tensor]:
        runs.append(version)
        return autoattack_accuracy(*arguments, version=version, **more)

    monkeypatch.setattr(attack_suite, "autoattack_accuracy", counted)
    both = evaluate(bumpy, test, [QUICK, STANDARD], origin=ORIGIN)
    assert runs == ["standard"]
    assert [row.attack for row in both.rows] == [
        "none",
        *("apgd-ce", "apgd-t", "fab-t", "square", "autoattack-quick", "autoattack", "worst"),
    ]
    assert torch.equal(both.correct[QUICK], quick.correct[QUICK])
    assert {row.attack: row.deviations for row in both.rows if not row.standard} == {"autoattack-quick": (reason,)}


def test_fewer_targets_are_a_deviation() -> None:
    six = Bumpy(6).eval()
    test = images_of(six, 40)
    reason = "AutoAttack with 5 targets, the data have 6 classes"
    found = evaluate(six, test, [STANDARD, QUICK, PGD], origin=replace(ORIGIN, deviations=("short",)))
    said = {row.attack: row.deviations[1:] for row in found.rows}
    assert said == {
        **dict.fromkeys(("none", "apgd-ce", "pgd20"), ()),
        **dict.fromkeys(("apgd-t", "fab-t", "square", "autoattack", "worst"), (reason,)),
        "autoattack-quick": ("AutoAttack's first two attacks only", reason),
    }
    assert {row.deviations[0] for row in found.rows} == {"short"}


def test_two_classes_are_refused_before_anything_is_attacked(
    linear: Classifier, test_set: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attack_suite, "pgd_accuracy", None)
    with pytest.raises(ValueError, match="has 2 classes") as refused:
        evaluated(linear, test_set, [PGD, STANDARD])
    # and a caller can ask before there is a classifier
    for attack in (STANDARD, QUICK):
        with pytest.raises(ValueError) as asked:
            check_classes([PGD, attack], 2)
        assert str(asked.value) == str(refused.value)
    with pytest.raises(ValueError, match="has 3 classes"):
        check_classes([STANDARD], 3)
    check_classes([PGD, FGSM], 2)
    check_classes([PGD, STANDARD, QUICK], 4)


def test_evaluating_twice_gives_equal_rows(bumpy: nn.Module) -> None:
    test = images_of(bumpy, 60)
    attacks = [*pgd_at(1, 2, 4), Attack("fgsm", 2 / 255), STANDARD, Attack("autoattack-quick", 0.3, "L2")]
    before = torch.random.get_rng_state(), random.getstate()
    one, other = (evaluate(bumpy, test, attacks, origin=ORIGIN, batch_size=25) for _ in range(2))
    assert without_seconds(one.rows) == without_seconds(other.rows)
    assert list(one.correct) == list(other.correct)
    assert all(torch.equal(right, other.correct[attack]) for attack, right in one.correct.items())
    assert torch.equal(torch.random.get_rng_state(), before[0]) and random.getstate() == before[1]


def test_each_epsilon_has_a_stream_of_its_own(
    linear: Classifier, test_set: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def starts(attacks: list[Attack], seed: int = 0) -> dict[float, Tensor]:
        """The state that the generator had when each epsilon's attack began."""
        seen: dict[float, Tensor] = {}

        def watched(*arguments: Any, generator: torch.Generator, **more: Any) -> Attacked:
            seen.setdefault(round(255 * float(arguments[3].epsilon[0])), generator.get_state())
            return pgd(*arguments, generator=generator, **more)

        monkeypatch.setattr(robustness, "pgd", watched)
        evaluated(linear, test_set, attacks, seed)
        return seen

    both, alone, other = starts(pgd_at(2, 8)), starts(pgd_at(8)), starts(pgd_at(8), seed=1)
    more = starts([Attack("pgd20", 8 / 255, restarts=2)])
    assert torch.equal(both[8], alone[8]) and torch.equal(more[8], alone[8])
    assert not torch.equal(both[8], both[2])
    assert not torch.equal(alone[8], other[8])
    # the name that all results so far were made with
    assert torch.equal(alone[8], Streams(0).on_device(f"pgd20/{8 / 255!r}").get_state())


def test_evaluation_leaves_the_classifier_untouched(bumpy: nn.Module) -> None:
    before = copy.deepcopy(bumpy.state_dict())
    evaluated(bumpy, images_of(bumpy, 30), [PGD, FGSM, STANDARD])
    assert all(torch.equal(value, before[name]) for name, value in bumpy.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in bumpy.parameters())


def test_epsilon_zero_is_the_clean_accuracy(linear: Classifier, test_set: ImageSet) -> None:
    told: list[tuple[int, int]] = []
    attacks = [Attack("fgsm", 2 / 255), Attack("pgd20", 0), Attack("fgsm", 0.0)]
    found = evaluate(linear, test_set, attacks, origin=ORIGIN, progress=lambda *work: told.append(work))
    assert [row.value for row in found.rows if not row.epsilon] == [90.0] * 4
    assert all(row.standard for row in found.rows)
    # nothing is attacked, so there is no work
    assert told[0] == (3 * 256, 3 * 270) and told[-1] == (3 * 270, 3 * 270)
    assert all(torch.equal(found.correct[attack], found.correct[CLEAN]) for attack in attacks[1:])


def test_autoattack_takes_the_protocols_batch_at_most(bumpy: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def counted(*arguments: Any, batch_size: int, **more: Any) -> dict[str, Tensor]:
        sizes.append(batch_size)
        return autoattack_accuracy(*arguments, batch_size=batch_size, **more)

    monkeypatch.setattr(attack_suite, "autoattack_accuracy", counted)
    for size in (256, 30):
        evaluate(bumpy, images_of(bumpy, 20), [QUICK], origin=ORIGIN, batch_size=size)
    assert sizes == [100, 30]


def test_progress_is_one_measure_of_all_attacks(bumpy: nn.Module) -> None:
    told: list[tuple[int, int]] = []
    test = images_of(bumpy, 60)
    attacks = [Attack("fgsm", 2 / 255), PGD, QUICK, STANDARD, Attack("pgd20", 4 / 255, restarts=3)]
    evaluate(bumpy, test, attacks, origin=ORIGIN, batch_size=20, progress=lambda *work: told.append(work))
    done, totals = zip(*told, strict=True)
    assert list(done) == sorted(done) and list(totals) == sorted(totals, reverse=True)
    # 54 are right without an attack; with a quarter of the steps, see `short`
    whole = 2 * 10 + 9 * 2 * 10 + 9 * 3 * 4 + 40
    assert done[0] == 20 * 3 and totals[0] == 54 * (3 + 41 + whole + 3 * 41)
    assert done[-1] == totals[-1]


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
        evaluated(masked, test_set, pgd_at(4, 12))


def test_what_the_rows_check_notes_comes_back(
    linear: Classifier, test_set: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert evaluate(linear, test_set, pgd_at(2, 8), origin=ORIGIN).notes == []
    monkeypatch.setattr(attack_suite, "check_rows", lambda rows: [f"{len(rows)} rows"])
    assert evaluate(linear, test_set, pgd_at(2, 8), origin=ORIGIN).notes == ["3 rows"]


def test_bad_input_is_refused(linear: Classifier, test_set: ImageSet) -> None:
    with pytest.raises(ValueError, match=r"'linear' has no labels.*one folder for each class"):
        evaluated(linear, replace(test_set, labels=None), [PGD])
    with pytest.raises(ValueError, match="all different"):
        evaluated(linear, test_set, [PGD, PGD])
    for own in (CLEAN, Attack("worst", 8 / 255)):
        with pytest.raises(ValueError, match=rf"hold '{own.name}', which comes by itself"):
            evaluated(linear, test_set, [PGD, own])
