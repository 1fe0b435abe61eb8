"""Sets of images check themselves."""

from pathlib import Path

import pytest
import torch

from astra_gym.ssl_core.data.image_set import ImageSet, stratified


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


def test_a_split_divides_every_class_alike_and_leaves_each_its_last_image() -> None:
    labels = torch.tensor([0] * 10 + [1] * 30 + [2])
    train, test = stratified(labels, 8)
    assert sorted(torch.cat([train, test]).tolist()) == list(range(41))
    assert torch.bincount(labels[test], minlength=3).tolist() == [2, 6, 0]
    torch.manual_seed(1)
    again = stratified(labels, 8)
    assert torch.equal(again[0], train) and torch.equal(again[1], test)
