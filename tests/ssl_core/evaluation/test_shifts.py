from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import bootstrap
from torch import Tensor, nn

from astra_gym.ssl_core.data.image_set import ImageSet
from astra_gym.ssl_core.data.official_shifts import corrupted_images
from astra_gym.ssl_core.downstream.linear_probe import Classifier, RawPixels
from astra_gym.ssl_core.evaluation.corruptions import FAMILIES, corrupt
from astra_gym.ssl_core.evaluation.results import Origin, Row, wilson_interval
from astra_gym.ssl_core.evaluation.robustness import clean_accuracy
from astra_gym.ssl_core.evaluation.severities import SEVERITIES
from astra_gym.ssl_core.evaluation.shifts import (
    OFFICIAL_SUBSETS,
    bootstrap_intervals,
    evaluate_corruptions,
    evaluate_perspective,
)
from astra_gym.ssl_core.transforms.moebius import DIRECTIONS, MAGNITUDE_DEVIATION
from astra_gym.ssl_core.utils.rng import Streams

N = 30
NAMES = [name for names in FAMILIES.values() for name in names]
ORIGIN = Origin(
    protocol="slf", route="pgd", seed=7, checkpoint="test", commit="unknown", versions={}, deviations=("a",)
)


@pytest.fixture(scope="module")
def test_set() -> ImageSet:
    """Light upper halves and light left halves, with little between the classes, so that corruptions cost accuracy."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(90, 130, (N, 3, 12, 12), generator=generator)
    labels = torch.arange(N) % 2
    images[labels == 0, :, :6] += 15
    images[labels == 1, :, :, :6] += 15
    return ImageSet(images.to(torch.uint8), labels, ("above", "left"), "halves")


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    """Compares the corner at the top right with that at the bottom left."""
    head = nn.Linear(3 * 12 * 12, 2, bias=False)
    above = torch.zeros(3, 12, 12)
    above[:, :6, 6:], above[:, 6:, :6] = 1, -1
    head.weight.data = torch.stack([above.flatten(), -above.flatten()])
    return Classifier(RawPixels((3, 12, 12)), "none", head)


@pytest.fixture(scope="module")
def rows(classifier: Classifier, test_set: ImageSet) -> dict[str, Row]:
    return {row.condition: row for row in evaluate_corruptions(classifier, test_set, origin=ORIGIN)}


@pytest.fixture(scope="module")
def views(classifier: Classifier, test_set: ImageSet) -> dict[str, Row]:
    return {row.condition: row for row in evaluate_perspective(classifier, test_set, origin=ORIGIN)}


def values(rows: list[Row]) -> dict[str, tuple[float, tuple[float, float] | None]]:
    return {row.condition: (row.value, row.interval) for row in rows}


def test_every_corruption_and_severity_has_a_row_and_then_come_the_means(rows: dict[str, Row]) -> None:
    single = [f"{name}/{severity}" for name in NAMES for severity in SEVERITIES]
    assert list(rows) == [*single, *NAMES, *FAMILIES, "corruptions"]
    assert {(row.metric, row.attack, row.n, row.seed, row.protocol) for row in rows.values()} == {
        ("CA", "none", N, 7, "slf")
    }
    assert len({row.value for row in rows.values()}) > 10
    assert min(row.value for row in rows.values()) < 80 < max(row.value for row in rows.values())


def test_a_row_is_the_accuracy_on_images_corrupted_from_its_own_stream(
    rows: dict[str, Row], classifier: Classifier, test_set: ImageSet
) -> None:
    assert test_set.labels is not None
    for condition in ("gaussian_noise/5", "fog/2", "frost/3"):
        name, severity = condition.split("/")
        stream = Streams(7)[f"corruptions/{name}/{severity}"]
        right = clean_accuracy(classifier, corrupt(test_set.images, name, int(severity), stream), test_set.labels)
        row = rows[condition]
        assert row.value == 100 * float(right.double().mean())
        assert row.interval == wilson_interval(int(right.sum()), N) and row.interval_method == "wilson"
        assert row.seconds is not None and row.seconds > 0


def test_a_mean_is_that_of_its_rows(rows: dict[str, Row]) -> None:
    def mean(names: list[str]) -> float:
        return float(np.mean([rows[f"{name}/{severity}"].value for name in names for severity in SEVERITIES]))

    for name in NAMES:
        assert rows[name].value == pytest.approx(mean([name]))
    for family, names in FAMILIES.items():
        assert rows[family].value == pytest.approx(mean(list(names)))
    assert rows["corruptions"].value == pytest.approx(mean(NAMES))
    for condition in (*NAMES, *FAMILIES, "corruptions"):
        row = rows[condition]
        assert row.interval is not None and row.interval_method == "bootstrap" and row.seconds is None
        assert row.interval[0] <= row.value <= row.interval[1]


def test_rows_say_in_what_they_depart_from_the_published_sets(rows: dict[str, Row]) -> None:
    size = "severities of CIFAR-10-C, made for 32 x 32, at 12 x 12"
    assert rows["fog/1"].deviations == rows["fog"].deviations == rows["noise"].deviations == ("a", size)
    frost = rows["frost/1"].deviations
    assert len(frost) == 3 and "not a photograph" in frost[2]
    assert rows["weather"].deviations == rows["corruptions"].deviations == frost


def test_at_the_published_size_only_frost_departs(classifier: Classifier) -> None:
    test = ImageSet(torch.full((2, 3, 32, 32), 99, dtype=torch.uint8), torch.tensor([0, 1]), ("a", "b"), "grey")
    head = nn.Linear(3 * 32 * 32, 2)
    origin = Origin(protocol="slf", route="pgd", seed=7, checkpoint="test", commit="unknown")
    grey = Classifier(RawPixels((3, 32, 32)), "none", head)
    texture = evaluate_corruptions(grey, test, origin=origin)
    assert {row.condition for row in texture if not row.standard} == {
        *(f"frost/{severity}" for severity in SEVERITIES),
        "frost",
        "weather",
        "corruptions",
    }
    photographs = [torch.full((3, 300, 300), 200, dtype=torch.uint8)] * 5
    assert all(row.standard for row in evaluate_corruptions(grey, test, origin=origin, photographs=photographs))


def test_some_severities_give_what_all_of_them_give(
    rows: dict[str, Row], classifier: Classifier, test_set: ImageSet
) -> None:
    some = {row.condition: row for row in evaluate_corruptions(classifier, test_set, origin=ORIGIN, severities=(4, 1))}
    assert len(some) == 15 * 2 + 15 + 4 + 1
    for condition, row in some.items():
        if "/" in condition:
            assert row.value == rows[condition].value and row.deviations == rows[condition].deviations
        else:
            assert row.deviations[-1] == "mean over severities 1, 4 only"
    assert some["snow"].value == pytest.approx((some["snow/1"].value + some["snow/4"].value) / 2)


def test_an_evaluation_repeats_whatever_its_batches_are(
    rows: dict[str, Row], views: dict[str, Row], classifier: Classifier, test_set: ImageSet
) -> None:
    for evaluate, whole in ((evaluate_corruptions, rows), (evaluate_perspective, views)):
        assert values(evaluate(classifier, test_set, origin=ORIGIN, batch_size=7)) == values(list(whole.values()))


def test_another_seed_gives_other_corruptions(rows: dict[str, Row], classifier: Classifier, test_set: ImageSet) -> None:
    other = Origin(protocol="slf", route="pgd", seed=8, checkpoint="test", commit="unknown")
    changed = evaluate_corruptions(classifier, test_set, origin=other, severities=(5,))
    assert any(row.value != rows[row.condition].value for row in changed if "/" in row.condition)


def test_progress_counts_images_over_all_conditions(classifier: Classifier, test_set: ImageSet) -> None:
    seen: list[tuple[int, int]] = []

    def progress(done: int, total: int) -> None:
        seen.append((done, total))

    evaluate_corruptions(classifier, test_set, origin=ORIGIN, severities=(2,), batch_size=20, progress=progress)
    assert seen == [(N * part + done, 15 * N) for part in range(15) for done in (20, N)]
    seen.clear()
    evaluate_perspective(classifier, test_set, origin=ORIGIN, progress=progress)
    assert seen == [(N * part, 8 * N) for part in range(1, 9)]


def test_the_eight_views_have_rows_and_then_come_the_means(views: dict[str, Row]) -> None:
    black, padded = ([f"{name}/{background}" for name in DIRECTIONS] for background in ("black", "padded"))
    assert list(views) == [*black, *padded, "black", "padded", "perspective"]
    for condition, parts in (("black", black), ("padded", padded), ("perspective", black + padded)):
        assert views[condition].value == pytest.approx(np.mean([views[one].value for one in parts]))
        assert views[condition].interval_method == "bootstrap"
    for row in views.values():
        assert row.metric == "PA" and row.deviations == ("a", MAGNITUDE_DEVIATION)
    assert all(views[one].seconds is not None for one in black + padded)


def test_a_view_is_seen_by_the_classifier(test_set: ImageSet) -> None:
    """White images have black corners before black only; a classifier that looks for black finds them."""
    head = nn.Linear(3 * 12 * 12, 2, bias=False)
    head.weight.data = torch.zeros(2, 3 * 12 * 12)
    # RawPixels gives 0.5 for white: the other logit is higher as soon as anything is darker.
    head.weight.data[0] = 1
    darker = nn.Sequential(Classifier(RawPixels((3, 12, 12)), "none", head), Below(0.5 * 3 * 12 * 12 - 1)).eval()
    white = ImageSet(torch.full((5, 3, 12, 12), 255, dtype=torch.uint8), torch.ones(5).long(), ("plain", "cut"), "w")
    found = {row.condition: row.value for row in evaluate_perspective(darker, white, origin=ORIGIN)}
    assert found["black"] == 100 and found["padded"] == 0 and found["perspective"] == 50


def test_a_view_of_one_color_keeps_it_to_the_last_bit() -> None:
    """Bilinear weights sum to one but for rounding; cut to 8 bits, a color would be one level darker."""
    level = 12 * 12 * 3 / 255
    for color in (101, 151, 201):
        head = nn.Linear(3 * 12 * 12, 2, bias=False)
        head.weight.data = torch.zeros(2, 3 * 12 * 12)
        head.weight.data[0] = 1
        # One pixel that is a level darker is enough for class 1.
        limit = color * level - 12 * 12 * 3 / 2 - 0.5 / 255
        darker = nn.Sequential(Classifier(RawPixels((3, 12, 12)), "none", head.double()), Below(limit)).eval()
        images = torch.full((5, 3, 12, 12), color, dtype=torch.uint8)
        test = ImageSet(images, torch.zeros(5).long(), ("plain", "darker"), "w")
        found = {row.condition: row.value for row in evaluate_perspective(Doubled(darker).eval(), test, origin=ORIGIN)}
        assert found["padded"] == 100


class Doubled(nn.Sequential):
    """A classifier in double precision, whose sum over an image tells one level from another."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward((255 * images.double()).round() / 255)


class Below(nn.Module):
    """Logits that choose class 1 where the first logit is below a limit."""

    def __init__(self, limit: float) -> None:
        super().__init__()
        self.limit = limit

    def forward(self, logits: Tensor) -> Tensor:
        return torch.stack([logits[:, 0] - self.limit, torch.zeros(len(logits))], dim=1)


def test_the_bootstrap_is_scipys() -> None:
    sample = torch.rand(3, 200, generator=torch.Generator().manual_seed(0))
    intervals = bootstrap_intervals(sample, torch.Generator().manual_seed(1), 4000)
    for one, interval in zip(sample.numpy(), intervals, strict=True):
        found = bootstrap((one,), np.mean, method="percentile", n_resamples=4000, rng=np.random.default_rng(0))
        assert interval == pytest.approx(tuple(found.confidence_interval), abs=0.003)


def test_the_bootstrap_covers_the_true_mean_and_takes_the_image_as_its_unit() -> None:
    """Five conditions that agree on every image tell no more than one: the interval must not shrink."""
    generator = torch.Generator().manual_seed(0)
    hits = 0
    for _ in range(150):
        flags = (torch.rand(100, generator=generator) < 0.7).double()
        [(low, high)] = bootstrap_intervals(flags.expand(5, 100).mean(0)[None], generator, 200)
        hits += low <= 0.7 <= high
    assert 0.9 <= hits / 150 <= 0.99


def test_data_without_labels_and_bad_severities_are_refused(classifier: Classifier, test_set: ImageSet) -> None:
    unlabeled = ImageSet(test_set.images, None, (), "bare")
    for evaluate in (evaluate_corruptions, evaluate_perspective):
        with pytest.raises(ValueError, match="'bare' has no labels"):
            evaluate(classifier, unlabeled, origin=ORIGIN)
    for severities in ((), (1, 1), (0, 1), (6,)):
        with pytest.raises(ValueError, match=r"expected some of \[1, 2, 3, 4, 5\], each once"):
            evaluate_corruptions(classifier, test_set, origin=ORIGIN, severities=severities)


def test_official_images_are_measured_as_computed_ones(
    classifier: Classifier, test_set: ImageSet, rows: dict[str, Row], tmp_path: Path
) -> None:
    """The computed images, written as CIFAR-10-C is, give the same values, now standard as far as the shift goes."""
    streams = Streams(ORIGIN.seed)
    for name in NAMES:
        parts = [corrupt(test_set.images, name, one, streams[f"corruptions/{name}/{one}"]) for one in SEVERITIES]
        np.save(tmp_path / f"{name}.npy", torch.cat(parts).permute(0, 2, 3, 1).numpy())
    np.save(tmp_path / "labels.npy", np.tile(test_set.labels.numpy(), 5))
    official = corrupted_images(tmp_path, NAMES, SEVERITIES, test_set)
    found = evaluate_corruptions(classifier, test_set, origin=ORIGIN, official=official)
    assert values(found) == values([*rows.values()])
    assert {row.deviations for row in found} == {ORIGIN.deviations} != {row.deviations for row in rows.values()}


def test_the_subsets_of_imagenet_pd_are_the_views() -> None:
    assert OFFICIAL_SUBSETS["left/black"] == "PD-L" and OFFICIAL_SUBSETS["bottom/padded"] == "PD-BI"
    assert len(set(OFFICIAL_SUBSETS.values())) == 8
