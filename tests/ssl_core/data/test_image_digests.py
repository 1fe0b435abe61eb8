"""Digests of images: of pixels and nothing else, kept in a file that shows every damage."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from astra_gym.ssl_core.data.image_digests import LENGTH, RunImages, digest_images
from astra_gym.ssl_core.data.image_set import ImageSet, Split


def images(n: int, seed: int = 0, name: str = "train", size: int = 8) -> ImageSet:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (n, 3, size, size), generator=generator).to(torch.uint8)
    return ImageSet(pixels, None, (), name, paths=tuple(Path("pets") / "a" / f"{k}.png" for k in range(n)))


def record(train: ImageSet | None = None) -> RunImages:
    return RunImages.of(Split(train or images(20), images(6, 1, "test")))


def test_a_digest_is_of_an_images_pixels_in_their_order() -> None:
    data = images(3000, size=32)  # more than a piece
    found = list(digest_images(data))
    assert len(found) == len(set(found)) == 3000 and {len(value) for value in found} == {LENGTH}
    order = torch.randperm(3000, generator=torch.Generator().manual_seed(1))
    again = digest_images(replace(data, images=data.images[order]))
    assert list(again) == [found[row] for row in order]
    # the layout in memory is no part of an image
    turned = data.images.to(memory_format=torch.channels_last)
    assert digest_images(replace(data, images=turned)).values == b"".join(found)
    changed = data.images.clone()
    changed[7, 2, 31, 31] ^= 1
    differing = [row for row, value in enumerate(digest_images(replace(data, images=changed))) if value != found[row]]
    assert differing == [7]


def test_the_file_gives_back_what_was_written_and_shows_every_damage(tmp_path: Path) -> None:
    made = replace(record(), taught=bytes(range(LENGTH)), decoder="Pillow 9")
    file = tmp_path / "images.digests"
    made.write(file)
    found = RunImages.read(file)
    assert (found.train.shape, found.train.values, found.test.values) == (
        (3, 8, 8),
        *(part.values for part in (made.train, made.test)),
    )
    assert (found.taught, found.decoder, made.difference(found), len(found.train)) == (made.taught, "Pillow 9", "", 20)
    good = file.read_bytes()
    # as in version 0.2: another number, and its runs could not be read
    assert b'"schema": 1,' in good
    head = len(good.partition(b"\n")[0])
    edited = good.replace(b'"train": 20', b'"train": 21')
    assert edited != good
    for damaged in (b"", good[:head], good[:-1], b"[1]\n" + good, good[: head + 9] + b"?" + good[head + 10 :], edited):
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"images\.digests is damaged \(.*: restore it, or remove it"):
            RunImages.read(file)


def test_a_difference_is_said_in_words() -> None:
    made, data = record(), images(20)
    pixels = data.images.clone()
    pixels[3] = 0
    assert made.difference(record(replace(data, images=pixels))) == (
        "1 of the 20 training images missing, 1 of now 20 new (pets/a/3.png)"
    )
    assert made.difference(record(images(21))) == "1 of now 21 new (pets/a/20.png)"
    assert made.difference(record(data.take(18))) == "2 of the 20 training images missing"
    assert made.difference(record(replace(data, images=data.images.flip(0)))) == (
        "the 20 training images are in another order"
    )
    other = RunImages.of(Split(data, images(6, 2, "test")))
    assert made.difference(other).startswith("6 of the 6 test images missing")
    assert made.difference(record(images(20, size=9))) == "training images are of size (3, 9, 9), not (3, 8, 8)"
    then = replace(made, decoder="Pillow 9")
    assert then.difference(made) == ""
    assert "; Pillow 9 decoded them, not Pillow" in then.difference(other)


def test_what_a_teacher_was_trained_on_counts_too() -> None:
    teacher = record(images(30, 3))
    student = RunImages.of(Split(images(20), images(6, 1, "test")), teacher)
    assert set(student.beside(student.train)) == set(teacher.train)
    assert set(student.beside(images_digests := digest_images(images(30, 3)))) == set(student.train)
    assert len(student.beside(images_digests)) == 20
    # of several runs each counts, and every image once
    twice = RunImages.of(Split(images(20), images(6, 1, "test")), teacher, teacher, student)
    assert twice.taught == student.taught
    # of a chain of teachers each is kept, and what the student sees itself is not kept twice
    grandchild = RunImages.of(Split(images(20), images(6, 1, "test")), student)
    assert set(grandchild.beside(grandchild.train)) == set(teacher.train)
    assert RunImages.of(Split(images(20), images(6, 1, "test")), record(images(20, size=9))).taught == b""
