from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from astra_gym.ssl_core.data.datasets import load_dataset
from astra_gym.ssl_core.data.image_digests import digest_images
from astra_gym.ssl_core.data.image_set import ImageSet
from astra_gym.ssl_core.evaluation.results import Origin, Row
from astra_gym.ssl_core.evaluation.sanity import (
    SanityError,
    TrainedOnError,
    check_disjoint,
    check_frozen,
    check_images,
    check_rows,
    check_untrained,
    square_drops,
    tolerated,
)

ORIGIN = Origin(protocol="slf", route="pgd", seed=0, checkpoint="last", commit="unknown")
SA = ORIGIN.accuracy("SA", 900, 1000)


def robust_row(numerator: float, value: float, n: int = 1000) -> Row:
    return replace(SA, metric="RA", attack="pgd20", epsilon=numerator / 255, value=value, n=n)


def attacked(attack: str, value: float, numerator: float = 8, **more: object) -> Row:
    return replace(robust_row(numerator, value), attack=attack, **more)  # type: ignore[arg-type]


def test_rows_that_agree_pass() -> None:
    notes = check_rows([SA, robust_row(8, 40.5), robust_row(4, 70.0), robust_row(12, 41.0), robust_row(0, 90.0)])
    assert notes == [
        "robust accuracy under pgd20 is 41.00 % at epsilon 12/255, but 40.50 % at 8/255 "
        "(n = 1000, tolerance 0.50 points): within the tolerance"
    ]
    # the published step size differs between the radii, the attack does not
    [note] = check_rows([SA, robust_row(8, 40.5), replace(robust_row(12, 41.0), deviations=("step size 1/255",))])
    assert note == notes[0]
    check_rows([replace(SA, n=100), robust_row(8, 40.0, 100), robust_row(9, 42.0, 100)])
    assert check_rows([SA]) == []
    whole = [SA, robust_row(4, 60), robust_row(8, 40), attacked("fgsm", 45), attacked("pgd20", 39.5, restarts=5)]
    stages = [("apgd-ce", 39), ("apgd-t", 35), ("fab-t", 35), ("square", 34), ("autoattack", 34), ("worst", 34)]
    assert check_rows([*whole, *(attacked(name, value) for name, value in stages)]) == []


def test_two_images_or_half_a_point_are_tolerated() -> None:
    assert [tolerated(n) for n in (100, 400, 10000)] == [2.0, 0.5, 0.5]


def test_shifts_and_other_metrics_are_not_compared() -> None:
    shifted = replace(SA, metric="CA", condition="fog/3", value=95.0)
    rank = replace(SA, metric="effective_rank", value=12.0, protocol="features")
    assert check_rows([SA, shifted, rank, replace(SA, condition="left/padded", value=10.0)]) == []


def test_rows_of_other_numbers_of_images_are_noted_and_compared_among_themselves() -> None:
    few = attacked("autoattack", 91.0, n=100)
    (note,) = check_rows([SA, few])
    assert note.endswith("is of 100 images and the clean accuracy of 1000: they were not compared")
    with pytest.raises(SanityError, match="rises with epsilon"):
        check_rows([SA, few, attacked("autoattack", 94.0, 12, n=100)])


def test_norms_are_told_apart() -> None:
    check_rows([SA, attacked("pgd20", 40.0), replace(attacked("pgd20", 60.0), norm="L2", epsilon=0.5)])
    far = [replace(attacked("pgd20", value), norm="L2", epsilon=radius) for radius, value in ((0.5, 60.0), (1, 61.0))]
    with pytest.raises(SanityError, match=r"61\.00 % at epsilon L2 1, but 60\.00 % at L2 0\.5"):
        check_rows([SA, *far])


def test_rows_of_two_classifiers_are_refused() -> None:
    with pytest.raises(ValueError, match=r"of 2 classifiers \(alf .*; slf .*\)"):
        check_rows([SA, replace(robust_row(8, 40.0), protocol="alf")])
    with pytest.raises(ValueError, match="of 2 classifiers"):
        check_rows([SA, replace(robust_row(8, 40.0), label_fraction=0.1)])


def test_a_drop_by_square_is_noted_beyond_the_tolerance() -> None:
    assert square_drops([SA, attacked("fab-t", 40.0), attacked("square", 39.5)]) == []
    (note,) = square_drops([attacked("fab-t", 40.0), attacked("square", 39.4), attacked("fab-t", 70.0, 4)])
    assert "square is 39.40 % at epsilon 8/255, but 40.00 % were left" in note


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([SA, robust_row(8, 90.1)], "90.10 % at epsilon 8/255, above the clean accuracy of 90.00 %"),
        ([SA, robust_row(0, 89.9)], "89.90 % at epsilon 0/255, but the clean accuracy is 90.00 %"),
        ([SA, robust_row(12, 40.6), robust_row(8, 40.0)], "40.60 % at epsilon 12/255, but 40.00 % at 8/255"),
        # A creep in small steps is a rise as well.
        ([SA, robust_row(8, 40.0), robust_row(9, 40.4), robust_row(10, 40.8)], "but 40.00 % at 8/255"),
        ([robust_row(8, 40.0)], r"0 clean accuracies \(none\): expected one"),
        ([SA, SA], r"2 clean accuracies \(90.00 % of 1000, 90.00 % of 1000\)"),
        ([SA, robust_row(8, 40.0), robust_row(8, 40.1)], "40.00 % at epsilon 8/255 in one row and 40.10 % in another"),
        (
            [SA, robust_row(8, 40.0), attacked("worst", 40.1)],
            r"worst is 40.10 % .* worst case of: .* pgd20 is 40.00 %",
        ),
        ([SA, attacked("apgd-ce", 40.0), attacked("apgd-t", 40.1)], "cumulative, but .* apgd-t is 40.10 %"),
        ([SA, attacked("apgd-ce", 40.0), attacked("autoattack", 40.1)], "cumulative, but .* autoattack is 40.10 %"),
        (
            [SA, attacked("square", 40.0), attacked("autoattack", 39.9)],
            "ends with Square, but .* autoattack is 39.90 % .* square is 40.00 %",
        ),
        ([SA, robust_row(8, 40.0), attacked("autoattack", 40.6)], "higher under the stronger .* 40.00 % at .*pgd20"),
        ([SA, robust_row(8, 40.6), attacked("fgsm", 40.0)], "pgd20 is 40.60 % .* 40.00 % at 8/255 under fgsm"),
        (
            [SA, robust_row(8, 40.0), attacked("pgd20", 40.6, restarts=5)],
            "pgd20, 5 restarts is 40.60 % .* gradient masking",
        ),
        (
            [SA, attacked("autoattack-quick", 40.0), attacked("autoattack", 40.6)],
            "autoattack is 40.60 % .* under autoattack-quick",
        ),
    ],
)
def test_rows_that_contradict_one_another_are_an_error(rows: list[Row], message: str) -> None:
    with pytest.raises(SanityError, match=message):
        check_rows(rows)


def test_a_stronger_attack_that_is_a_little_weaker_is_noted() -> None:
    (note,) = check_rows([SA, attacked("pgd20", 40.0), attacked("autoattack", 40.5)])
    assert "autoattack is 40.50 % at epsilon 8/255, but 40.00 % at 8/255 under pgd20" in note


PIXELS = torch.rand(3, 3, 4, 4, generator=torch.Generator().manual_seed(0))


def test_images_that_are_what_they_seem_pass() -> None:
    check_images(PIXELS, "views")
    check_images(PIXELS.double(), "views")
    check_images((255 * PIXELS).to(torch.uint8), "test")
    check_images(torch.zeros(2000, 1, 1).index_fill(0, torch.tensor([1999]), 1.0), "one bright pixel in the last piece")


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (255 * PIXELS, r"test: values span \[.*, 25\d.*\], expected .* 0\.\.255, so divide by 255 once"),
        ((PIXELS - 0.5) / 0.2, "normalization is a layer of the network"),
        (PIXELS / 255, "divided by 255 twice"),
        (PIXELS.masked_fill(PIXELS > 0.9, torch.nan), "remove what is not finite"),
        (PIXELS.masked_fill(PIXELS > 0.9, torch.inf), "remove what is not finite"),
        (PIXELS.to(torch.uint8), r"floats in \[0, 1\] had been cut to uint8: multiply by 255 first"),
        (PIXELS.round().to(torch.uint8), "multiply by 255 first"),
    ],
)
def test_images_that_are_not_what_they_seem_are_an_error(images: Tensor, message: str) -> None:
    with pytest.raises(SanityError, match=message):
        check_images(images, "test")


def test_images_of_another_kind_are_refused() -> None:
    for images in (PIXELS.long(), PIXELS[:0]):
        with pytest.raises(ValueError, match="expected uint8 or floats"):
            check_images(images, "test")


def image_set(n: int, seed: int, name: str) -> ImageSet:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (n, 3, 4, 4), generator=generator).to(torch.uint8)
    return ImageSet(images, None, (), name)


def test_the_digits_share_no_image() -> None:
    digits = load_dataset("digits", image_size=8)
    assert check_disjoint(digits.train, digits.test) == []


def test_a_test_set_within_the_training_set_is_an_error() -> None:
    train = image_set(2500, 0, "train")
    test = replace(train, images=train.images[1990:2100].clone(), name="test")
    with pytest.raises(SanityError, match=r"110 of the 110 .*\(100.00 %\) .*rows 0 = 1990, 1 = 1991.*were trained on"):
        check_disjoint(train, test)


@pytest.mark.parametrize(("n", "allowed"), [(100, 2), (800, 4)])
def test_a_few_shared_images_are_a_note(n: int, allowed: int) -> None:
    train, test = image_set(1200, 0, "train"), image_set(n, 1, "test")
    test.images[10 : 10 + allowed] = train.images[1100 : 1100 + allowed]
    (note,) = check_disjoint(train, test)
    assert note.startswith(f"{allowed} of the {n} images of test") and "rows 10 = 1100, 11 = 1101" in note
    test.images[50] = train.images[0]
    with pytest.raises(SanityError, match=f"{allowed + 1} of the {n} images"):
        check_disjoint(train, test)


def test_one_bit_is_a_difference() -> None:
    train = image_set(100, 0, "train")
    test = replace(train, images=train.images ^ (torch.arange(48) == 47).view(3, 4, 4).to(torch.uint8))
    assert check_disjoint(train, test) == []


def test_copies_within_the_test_set_are_a_note_and_each_counts_as_shared() -> None:
    train, test = image_set(50, 0, "train"), image_set(100, 1, "test")
    test.images[[30, 40]] = test.images[7].clone()
    (note,) = check_disjoint(train, test)
    assert note == "2 of the 100 images of test (2.00 %) repeat an earlier one of it: rows 30 = 7, 40 = 7"
    train.images[5] = test.images[7]
    with pytest.raises(SanityError, match=r"3 of the 100 images .*rows 7 = 5, 30 = 5, 40 = 5"):
        check_disjoint(train, test)


def test_of_image_files_none_may_be_shared_and_files_are_named() -> None:
    train, test = image_set(1200, 0, "train"), image_set(800, 1, "test")
    test.images[10] = train.images[1100]
    train, test = (
        replace(data, paths=tuple(Path("pets") / data.name / "cat" / f"{row}.png" for row in range(len(data))))
        for data in (train, test)
    )
    expected = r"^1 of the 800 images of test \(0\.12 %\) are also among the 1200 of train: "
    with pytest.raises(
        TrainedOnError, match=expected + r"test/cat/10\.png = train/cat/1100\.png; test images were trained on: "
    ) as it:
        check_disjoint(train, test)
    assert it.value.shared == ["test/cat/10.png = train/cat/1100.png"]


def test_what_an_encoder_was_trained_on_is_no_test_for_it() -> None:
    train, test = image_set(50, 0, "train"), image_set(100, 1, "test")
    trained = digest_images(train)
    assert check_untrained(trained, test, "the run small") == []
    test.images[[4, 9]] = train.images[[30, 20]]
    [note] = check_untrained(trained, test, "the run small")
    assert note == "2 of the 100 images of test (2.00 %) were trained on by the run small: rows 4, 9"
    test.images[60:64] = train.images[7]
    with pytest.raises(
        TrainedOnError, match=r"6 of the 100 .*the run small: rows 4, 9, 60, \.\.\.; .*: test on others$"
    ):
        check_untrained(trained, test, "the run small")
    small = replace(test, images=test.images[..., :3, :3])
    with pytest.raises(ValueError, match=r"the run small was trained .* of size \(3, 4, 4\), test has \(3, 3, 3\)"):
        check_untrained(trained, small, "the run small")


def test_sets_of_two_sizes_are_refused() -> None:
    other = ImageSet(torch.zeros(2, 3, 5, 5, dtype=torch.uint8), None, (), "test")
    with pytest.raises(ValueError, match=r"sizes \(3, 4, 4\) and \(3, 5, 5\): expected one size"):
        check_disjoint(image_set(2, 0, "train"), other)


def test_a_change_of_any_tensor_is_an_error() -> None:
    check_frozen({"a": "1"}, {"a": "1"}, "now")
    with pytest.raises(SanityError, match=r"the encoder was not frozen now: 2 of 2 tensors changed \(b, c\)"):
        check_frozen({"a": "1", "b": "2"}, {"a": "1", "c": "2"}, "now")
    with pytest.raises(SanityError, match="the classifier was not frozen"):
        check_frozen({"a": "1"}, {}, "now", "classifier")
