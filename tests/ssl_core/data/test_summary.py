"""A data set in a line."""

import torch

from astra_gym.ssl_core.data.image_set import ImageSet, Split
from astra_gym.ssl_core.data.summary import summary


def images(counts: list[int], classes: tuple[str, ...], name: str) -> ImageSet:
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    return ImageSet(torch.zeros(len(labels), 3, 4, 4, dtype=torch.uint8), labels, classes, name)


def test_few_classes_are_all_named_with_their_images_and_what_the_test_lacks() -> None:
    names = ("cat", "dog\x1b[2J", "a" * 40)
    data = Split(images([4, 0, 1200], names, "train"), images([2, 0, 1], names, "test"), ("skipped 3 files (3 .heic)",))
    assert summary(data) == (
        f"1,204 training and 3 test images; 3 classes of training images (cat 4, dog?[2J 0, {'a' * 27}... 1,200); "
        "no test image of dog?[2J; skipped 3 files (3 .heic)"
    )


def test_of_many_classes_the_smallest_and_the_largest_are_named() -> None:
    names = tuple(f"class {k}" for k in range(9))
    data = Split(images([5, 5, 2, 5, 9, 5, 2, 5, 5], names, "train"), images([1] * 9, names, "test"))
    assert summary(data) == (
        "43 training and 9 test images; 9 classes, from 2 training images (class 2) to 9 (class 4)"
    )
    alike = Split(images([5] * 9, names, "train"), images([1] * 9, names, "test"))
    assert summary(alike) == "45 training and 9 test images; 9 classes, each of 5 training images"


def test_without_labels_there_are_images() -> None:
    bare = ImageSet(torch.zeros(2, 3, 4, 4, dtype=torch.uint8), None, (), "bare")
    assert summary(Split(bare, bare, ("no labels",))) == "2 training and 2 test images; no labels"
