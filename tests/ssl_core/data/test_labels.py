import itertools

import pytest
import torch

from astra_gym.ssl_core.data.image_set import ImageSet
from astra_gym.ssl_core.data.labels import PUBLISHED_FRACTIONS, balanced_part, labeled_fraction, required_labels

COUNTS = (200, 37, 5, 1)
CLASSES = ("many", "some", "few", "one", "none")


def image_set(labels: torch.Tensor | None = None) -> ImageSet:
    """243 images in no order of their classes; the first pixel holds the image's own number."""
    if labels is None:
        labels = torch.arange(4).repeat_interleave(torch.tensor(COUNTS))
        labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]
    images = torch.zeros(len(labels), 3, 2, 2, dtype=torch.uint8)
    images[:, 0, 0, 0] = torch.arange(len(labels))
    return ImageSet(images, labels, CLASSES, "numbers")


def numbers(data: ImageSet) -> list[int]:
    return data.images[:, 0, 0, 0].tolist()


@pytest.mark.parametrize("fraction", PUBLISHED_FRACTIONS)
def test_every_class_gives_its_share_and_at_least_one(fraction: float) -> None:
    for seed in range(20):
        subset = labeled_fraction(image_set(), fraction, seed)
        assert subset.labels is not None
        expected = [max(1, round(fraction * count)) for count in COUNTS]
        assert torch.bincount(subset.labels).tolist() == expected
        assert subset.classes == CLASSES


def test_a_tenth_of_even_classes_is_a_tenth_of_the_whole() -> None:
    data = image_set(torch.arange(200) % 4)
    assert [len(labeled_fraction(data, fraction, 0)) for fraction in (0.02, 0.1, 0.5)] == [4, 20, 100]


def test_images_keep_their_labels_and_their_order() -> None:
    data = image_set()
    assert data.labels is not None
    for seed in range(20):
        subset = labeled_fraction(data, 0.3, seed)
        chosen = numbers(subset)
        assert chosen == sorted(set(chosen))
        assert subset.labels is not None
        assert torch.equal(subset.labels, data.labels[torch.tensor(chosen)])


def test_a_part_has_exactly_so_many_images_in_the_shares_of_the_classes() -> None:
    data, total = image_set(), sum(COUNTS)
    assert data.labels is not None
    for n in (1, 2, 20, 21, 100, 242):
        part = balanced_part(data, n, seed=3)
        assert part.labels is not None and len(part) == n
        assert numbers(part) == sorted(set(numbers(part)))
        assert torch.equal(part.labels, data.labels[torch.tensor(numbers(part))])
        got = torch.bincount(part.labels, minlength=4).tolist()
        assert all(abs(have - count * n / total) < 1 for have, count in zip(got, COUNTS, strict=True))
    for n in (total, total + 1):
        assert balanced_part(data, n, seed=3) is data
    assert numbers(balanced_part(data, 20, 3)) != numbers(balanced_part(data, 20, 4))
    with pytest.raises(ValueError, match="n is 0: expected 1 image or more"):
        balanced_part(data, 0, 3)


def test_a_smaller_fraction_is_part_of_a_larger_one() -> None:
    for seed in range(20):
        nested = [set(numbers(labeled_fraction(image_set(), fraction, seed))) for fraction in (*PUBLISHED_FRACTIONS, 1)]
        assert all(small < large for small, large in itertools.pairwise(nested))


def test_the_seed_decides_and_every_image_can_be_chosen() -> None:
    choices = [tuple(numbers(labeled_fraction(image_set(), 0.1, seed))) for seed in range(100)]
    assert choices == [tuple(numbers(labeled_fraction(image_set(), 0.1, seed))) for seed in range(100)]
    assert len(set(choices)) == 100
    assert {number for choice in choices for number in choice} == set(range(sum(COUNTS)))
    before = torch.random.get_rng_state()
    labeled_fraction(image_set(), 0.1, 0)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_whole_is_the_set_itself() -> None:
    data = image_set()
    assert labeled_fraction(data, 1.0, 0) is data


def test_the_published_fractions() -> None:
    assert PUBLISHED_FRACTIONS == (0.01, 0.1, 0.2, 0.3, 0.4, 0.5)


def test_the_name_says_what_share_it_is() -> None:
    assert labeled_fraction(image_set(), 0.01, 0).name == "numbers, 1 % of the labels"


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.01, 10, float("nan")])
def test_fractions_out_of_range_are_refused(fraction: float) -> None:
    with pytest.raises(ValueError, match=r"label fraction is .*expected a share in \(0, 1\], such as 0.1 for 10 %"):
        labeled_fraction(image_set(), fraction, 0)


@pytest.mark.parametrize("fraction", [0.1, 1.0])
def test_missing_labels_are_refused(fraction: float) -> None:
    data = image_set()
    with pytest.raises(ValueError, match=r"'numbers' has no labels, and a share of them needs them.*one folder"):
        labeled_fraction(ImageSet(data.images, None, (), "numbers"), fraction, 0)


def test_required_labels_are_the_labels() -> None:
    data = image_set()
    assert required_labels(data, "a test") is data.labels
