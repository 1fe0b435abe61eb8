"""Official shifted images, in small files of the published layouts."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from astra_gym.ssl_core.data.image_set import ImageSet
from astra_gym.ssl_core.data.official_shifts import corrupted_images, distorted_images

CLASSES = ("n1", "n2")
NAMES, SEVERITIES = ("fog", "snow"), (1, 2, 3, 4, 5)


def small_set(n: int = 6, size: int = 8) -> ImageSet:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8, generator=generator)
    return ImageSet(images, torch.arange(n) % 2, CLASSES, "small test")


def write_cifar_c(folder: Path, per_severity: int = 6, size: int = 8) -> np.ndarray:
    images = np.random.default_rng(1).integers(0, 256, (2, 5 * per_severity, size, size, 3), dtype=np.uint8)
    for name, array in zip(NAMES, images, strict=True):
        np.save(folder / f"{name}.npy", array)
    np.save(folder / "labels.npy", np.tile(np.arange(per_severity) % 2, 5).astype(np.uint8))
    return images


@pytest.mark.parametrize("n", [6, 4])
def test_cifar_10_c_is_read_severity_by_severity(n: int, tmp_path: Path) -> None:
    images = write_cifar_c(tmp_path)
    test = small_set().take(n)
    found = corrupted_images(tmp_path, NAMES, (2, 5), test)
    assert test.labels is not None and torch.equal(found.labels, test.labels) and found.deviations == ()
    assert list(found.conditions) == ["fog/2", "fog/5", "snow/2", "snow/5"]
    rows = torch.tensor([3, 0])
    expected = images[1][[4 * 6 + 3, 4 * 6]].transpose(0, 3, 1, 2)
    assert torch.equal(found.conditions["snow/5"](rows), torch.from_numpy(expected))
    larger = corrupted_images(tmp_path, NAMES, (1,), small_set(6, 16)).conditions["fog/1"](rows)
    assert larger.shape == (2, 3, 16, 16) and larger.dtype == torch.uint8
    np.save(tmp_path / "labels.npy", np.tile(np.arange(6) % 2, 5).astype(np.int64))
    assert corrupted_images(tmp_path, NAMES, (2, 5), test).identity != found.identity


def test_a_cifar_10_c_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    write_cifar_c(tmp_path)
    with pytest.raises(ValueError, match="does not begin with the labels of small test"):
        corrupted_images(tmp_path, NAMES, SEVERITIES, small_set(7))
    np.save(tmp_path / "fog.npy", np.zeros((30, 8, 8, 3)))
    with pytest.raises(ValueError, match=r"fog.npy holds float64 \(30, 8, 8, 3\): expected uint8"):
        corrupted_images(tmp_path, NAMES, SEVERITIES, small_set())
    (tmp_path / "fog.npy").write_bytes(b"no array")
    with pytest.raises(ValueError, match=r"fog\.npy cannot be read"):
        corrupted_images(tmp_path, NAMES, SEVERITIES, small_set())
    np.save(tmp_path / "fog.npy", np.array([None]), allow_pickle=True)
    with pytest.raises(ValueError, match=r"fog\.npy cannot be read"):
        corrupted_images(tmp_path, NAMES, SEVERITIES, small_set())
    with pytest.raises(ValueError, match="is not a folder"):
        corrupted_images(tmp_path / "nowhere", NAMES, SEVERITIES, small_set())


def write_folder(place: Path, shade: int) -> None:
    """Three images of each class; red says the class, green the number, blue the condition."""
    for label, name in enumerate(CLASSES):
        (place / name).mkdir(parents=True)
        for k in range(3):
            Image.new("RGB", (8, 8), (100 * label, 10 * k, shade)).save(place / name / f"{k}.png")


def check(images: Tensor, labels: Tensor, shade: int) -> None:
    assert torch.equal(images[:, 0, 0, 0] // 100, labels) and set(images[:, 2].flatten().tolist()) == {shade}


def test_imagenet_c_has_its_own_labels_and_the_same_images_everywhere(tmp_path: Path) -> None:
    shades = {f"{name}/{severity}": 10 * place + severity for place, name in enumerate(NAMES) for severity in (1, 3)}
    for condition, shade in shades.items():
        write_folder(tmp_path / condition, shade)
        # a class that is not the data set's
        (tmp_path / condition / "n9").mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / condition / "n9" / "0.png")
    found = corrupted_images(tmp_path, NAMES, (1, 3), small_set(6))
    assert list(found.conditions) == list(shades) and found.labels.bincount().tolist() == [3, 3]
    every = torch.arange(6)
    for condition, shade in shades.items():
        check(found.conditions[condition](every), found.labels, shade)
    numbers = {tuple(read(every)[:, 1, 0, 0].tolist()) for read in found.conditions.values()}
    assert len(numbers) == 1 and found.deviations == ()
    few = corrupted_images(tmp_path, NAMES, (1,), small_set(4))
    assert len(few.labels) == 4 and few.deviations == ("4 of the 6 official images",)
    assert torch.equal(few.conditions["fog/1"](every[:4]), found.conditions["fog/1"](every[:4]))
    (tmp_path / "snow" / "3" / "n1" / "0.png").rename(tmp_path / "snow" / "3" / "n1" / "x.png")
    with pytest.raises(ValueError, match=r"hold other images, such as n1/0.png, n1/x.png: expected the same"):
        corrupted_images(tmp_path, NAMES, (1, 3), small_set(6))
    with pytest.raises(ValueError, match=r"has fog/, snow/, not hail/1/CLASS/IMAGE: unpack"):
        corrupted_images(tmp_path, ("fog", "hail"), (1,), small_set(6))
    with pytest.raises(ValueError, match=r"neither labels.npy and NAME.npy \(CIFAR-10-C\) nor .*: it has fog/, snow/"):
        corrupted_images(tmp_path, ("hail",), (2,), small_set(6))


def test_imagenet_pd_is_read_by_its_subsets(tmp_path: Path) -> None:
    for shade, name in enumerate(("PD-L", "PD-LI")):
        write_folder(tmp_path / name, shade)
    found = distorted_images(tmp_path, {"left/black": "PD-L", "left/padded": "PD-LI"}, small_set(6))
    check(found.conditions["left/padded"](torch.arange(6)), found.labels, 1)
    check(found.conditions["left/black"](torch.arange(6)), found.labels, 0)
