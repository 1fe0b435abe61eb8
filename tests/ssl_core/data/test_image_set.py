"""Sets of images check themselves."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from astra_gym.ssl_core.data.image_set import ImageSet, Split, first_of_each, stratified


def test_image_sets_check_themselves() -> None:
    images = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    labels = torch.arange(4)
    first = ImageSet(images, labels, ("a", "b", "c", "d"), "toy", Path("toy.u8")).take(2)
    assert len(first) == 2 and first.labels is not None and first.labels.tolist() == [0, 1]
    assert first.file == Path("toy.u8") and first.classes == ("a", "b", "c", "d")
    with pytest.raises(ValueError, match="toy: 5 images were asked for, expected 1 to 4"):
        ImageSet(images, None, (), "toy").take(5)
    with pytest.raises(ValueError, match=r"toy: images are torch.float32.*expected uint8"):
        ImageSet(images.float(), None, (), "toy")
    with pytest.raises(
        ValueError, match=r"toy: labels are torch.int64 of shape \(3,\), expected int64 of shape \(4,\)"
    ):
        ImageSet(images, labels[:3], (), "toy")
    for wrong, found in ((labels, r"0\.\.3"), (labels - 1, r"-1\.\.2"), (torch.full((4,), 3), r"3\.\.3")):
        with pytest.raises(
            ValueError, match=rf"toy: labels are in {found}, expected 0..2, positions in its 3 class names"
        ):
            ImageSet(images, wrong, ("a", "b", "c"), "toy")


def test_a_split_needs_images_in_every_part_and_the_same_classes() -> None:
    data = ImageSet(torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.arange(4), ("a", "b", "c", "d"), "toy")
    bare, other = replace(data, labels=None, classes=()), replace(data, classes=("a", "b", "d", "c"))
    empty = replace(bare, images=data.images[:0], name="nothing")
    assert Split(bare, data, probed=data).probe_train is data
    with pytest.raises(ValueError, match=r"the split's part test \(nothing\) has no images: expected 1 or more"):
        Split(data, empty)
    with pytest.raises(
        ValueError, match=r"part train \(toy\) has the class 'd' where its test images have 'c': expected"
    ):
        Split(other, data)
    with pytest.raises(ValueError, match=r"part probed \(toy\) has the class None where its test images have 'c'"):
        Split(bare, data, probed=replace(data, labels=data.labels % 2, classes=("a", "b")))


def test_a_split_divides_every_class_alike_and_leaves_each_its_last_image() -> None:
    labels = torch.tensor([0] * 10 + [1] * 30 + [2])
    train, test = stratified(labels, 8)
    assert sorted(torch.cat([train, test]).tolist()) == list(range(41))
    assert torch.bincount(labels[test], minlength=3).tolist() == [2, 6, 0]
    torch.manual_seed(1)
    again = stratified(labels, 8)
    assert torch.equal(again[0], train) and torch.equal(again[1], test)


def test_the_first_of_each_class_are_those_that_a_search_for_it_finds() -> None:
    draws = torch.Generator().manual_seed(0)
    labels, order = torch.randint(7, (90,), generator=draws) * 2, torch.randperm(90, generator=draws)
    quotas = [0, 3, 100, 0, 1, 5, 2, 2, 9, 0, 4, 0, 6]
    searched = [order[labels[order] == label][:quota] for label, quota in enumerate(quotas)]
    assert torch.equal(first_of_each(labels, order, quotas), torch.cat(searched))


class WholePasses(TorchDispatchMode):
    """Counts the operations whose result is as long as the data set."""

    def __init__(self, images: int) -> None:
        super().__init__()
        self.images, self.count = images, 0

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Sequence[type], args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self.count += isinstance(result, torch.Tensor) and result.numel() == self.images
        return result


def test_a_thousand_classes_take_no_more_passes_over_the_labels_than_two() -> None:
    passes = []
    for classes in (2, 1000):
        with WholePasses(4321) as watch:
            stratified(torch.arange(4321) % classes, 900)
        passes.append(watch.count)
    assert passes[0] == passes[1] > 0
