"""Image files become the pixels that they should, in memory or in a file, and half a file is never taken for one."""

import io
import os
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from astra_gym.ssl_core.data import decoding
from astra_gym.ssl_core.data.decoding import CHUNK, decode, decode_to_disk, read_image
from astra_gym.ssl_core.safety.sealing import DamagedError
from astra_gym.ssl_core.safety.writers import temporary_of

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def paint(path: Path, color: tuple[int, int, int] = RED, size: tuple[int, int] = (40, 40)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path)


def flat(color: tuple[int, int, int], size: int = 32) -> Tensor:
    return torch.tensor(color, dtype=torch.uint8).view(3, 1, 1).expand(3, size, size)


def read_one(tmp_path: Path, save: Callable[[Path], None], suffix: str = "png") -> Tensor:
    """The image that `save` writes, as it is read."""
    save(tmp_path / f"image.{suffix}")
    return read_image(tmp_path / f"image.{suffix}", 32)


@pytest.mark.parametrize(
    ("mode", "color", "expected"),
    [
        ("L", 77, (77, 77, 77)),
        ("1", 1, WHITE),
        ("RGBA", (255, 0, 0, 255), RED),
        ("RGBA", (255, 0, 0, 0), WHITE),
        ("LA", (10, 255), (10, 10, 10)),
        ("I;16", 257 * 77, (77, 77, 77)),
    ],
)
def test_every_mode_becomes_rgb(mode: str, color: object, expected: tuple[int, int, int], tmp_path: Path) -> None:
    image = read_one(tmp_path, Image.new(mode, (40, 40), color).save)
    assert torch.equal(image, flat(expected))


def test_palettes_become_rgb_with_transparent_entries_white(tmp_path: Path) -> None:
    indexed = Image.new("P", (64, 32), 0)
    indexed.putpalette([*GREEN, *BLUE])
    indexed.paste(1, (32, 0, 64, 32))
    image = read_one(tmp_path, lambda path: indexed.save(path, transparency=b"\xff\x00"))
    assert torch.equal(image[:, :, :16], flat(GREEN)[:, :, :16])
    assert torch.equal(image[:, :, 16:], flat(WHITE)[:, :, 16:])


def test_exif_orientation_is_followed(tmp_path: Path) -> None:
    sideways = Image.new("RGB", (32, 32), RED)
    sideways.paste(BLUE, (0, 0, 32, 16))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise: the top comes to the right
    image = read_one(tmp_path, lambda path: sideways.save(path, exif=exif))
    assert torch.equal(image[:, :, 16:], flat(BLUE)[:, :, 16:]) and torch.equal(image[:, :, :16], flat(RED)[:, :, :16])


def test_the_shorter_side_is_resized_and_the_centre_kept(tmp_path: Path) -> None:
    wide = Image.new("RGB", (256, 64), RED)
    wide.paste(BLUE, (96, 0, 160, 64))
    image = read_one(tmp_path, wide.save)
    # Resampling blurs the two edges of the square.
    assert torch.equal(image[:, :, 2:-2], flat(BLUE)[:, :, 2:-2])
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (100, 100, 3), dtype=np.uint8))
    image = read_one(tmp_path, noise.save)
    from torchvision.transforms.functional import InterpolationMode, pil_to_tensor, resize

    assert torch.equal(image, pil_to_tensor(resize(noise, [32, 32], InterpolationMode.BICUBIC)))


def png() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(buffer, "png")
    return buffer.getvalue()


@pytest.mark.parametrize("content", [b"", b"no image at all", png()[:2000]], ids=["empty", "text", "truncated"])
def test_a_corrupt_image_is_named(content: bytes, tmp_path: Path) -> None:
    paths = [tmp_path / f"{k}.png" for k in range(30)]
    for path in paths:
        paint(path)
    for broken in (17, 29):
        paths[broken].write_bytes(content)
    with pytest.raises(ValueError, match=r"17\.png cannot be read as an image \(.+\): repair it or remove it"):
        decode(paths, 32)
    with pytest.raises(ValueError, match=r"17\.png cannot be read as an image"):
        decode_to_disk(paths, 32, tmp_path / "cache", root=tmp_path)
    assert list((tmp_path / "cache").iterdir()) == []


# --- many files


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    """More files than the threads take at once, of several formats and sizes, all different."""
    generator, paths = np.random.default_rng(0), []
    for k in range(4 * CHUNK + 3):
        path = tmp_path / "pictures" / "ab"[k % 2] / f"{k}{('.png', '.jpg', '.webp', '.bmp')[k % 4]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 256, (9 + k, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
        paths.append(path)
    return paths


def one_by_one(paths: list[Path], size: int = 8) -> Tensor:
    """The plain twin: without threads."""
    return torch.stack([read_image(path, size) for path in paths])


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Path]]:
    """The files that are decoded from now on."""
    seen: list[Path] = []

    def watched(path: Path, size: int) -> Tensor:
        seen.append(path)
        return read_image(path, size)

    monkeypatch.setattr(decoding, "read_image", watched)
    yield seen


def on_disk(paths: list[Path], tmp_path: Path, size: int = 8) -> tuple[Tensor, Path]:
    return decode_to_disk(paths, size, tmp_path / "cache", root=tmp_path / "pictures")


@pytest.mark.parametrize("workers", [1, 2, 7])
def test_threads_give_what_one_by_one_gives(
    pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    monkeypatch.setattr(decoding, "_cores", lambda: workers)
    backwards = pictures[::-1]
    expected = one_by_one(backwards)
    images = decode(backwards, 8)
    assert images.dtype == torch.uint8 and images.is_contiguous() and torch.equal(images, expected)
    mapped, file = on_disk(backwards, tmp_path)
    assert mapped.dtype == torch.uint8 and mapped.is_contiguous() and torch.equal(mapped, expected)
    assert file.read_bytes().startswith(expected.numpy().tobytes())


def test_the_second_time_nothing_is_decoded(pictures: list[Path], tmp_path: Path, decoded: list[Path]) -> None:
    first, file = on_disk(pictures, tmp_path)
    assert sorted(decoded) == sorted(pictures)
    decoded.clear()
    before = file.stat().st_mtime_ns
    again, same = on_disk(pictures, tmp_path)
    assert decoded == [] and same == file and torch.equal(again, first) and file.stat().st_mtime_ns == before
    # the data set may move
    (tmp_path / "pictures").rename(tmp_path / "elsewhere")
    moved = [tmp_path / "elsewhere" / path.relative_to(tmp_path / "pictures") for path in pictures]
    assert decode_to_disk(moved, 8, tmp_path / "cache", root=tmp_path / "elsewhere")[1] == file and decoded == []


def test_whatever_changes_the_images_makes_another_file(pictures: list[Path], tmp_path: Path) -> None:
    first, file = on_disk(pictures, tmp_path)
    kept = first.clone()
    files = {file, on_disk(pictures[:-1], tmp_path)[1], on_disk(pictures[::-1], tmp_path)[1]}
    files.add(on_disk(pictures, tmp_path, size=9)[1])
    renamed = pictures[0].rename(pictures[0].with_name("renamed.png"))
    files.add(on_disk([renamed, *pictures[1:]], tmp_path)[1])
    renamed.rename(pictures[0])
    assert on_disk(pictures, tmp_path)[1] == file
    status = pictures[0].stat()
    os.utime(pictures[0], ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    files.add(on_disk(pictures, tmp_path)[1])
    paint(pictures[0])
    os.utime(pictures[0], ns=(status.st_atime_ns, status.st_mtime_ns))
    changed, last = on_disk(pictures, tmp_path)
    files.add(last)
    assert len(files) == 7
    assert torch.equal(changed, one_by_one(pictures)) and not torch.equal(changed, kept)
    # an open map is not moved by the files beside it
    assert torch.equal(first, kept)


def test_another_schema_makes_another_file(
    pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, file = on_disk(pictures, tmp_path)
    monkeypatch.setattr(decoding, "SCHEMA", decoding.SCHEMA + 1)
    assert on_disk(pictures, tmp_path)[1] != file


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:100],
        lambda content: content[:-1],
        lambda content: content + b"}",
        lambda content: content[:-10] + bytes(10),
        lambda content: bytes([content[0] ^ 1]) + content[1:],
        lambda content: content[:300] + bytes([content[300] ^ 128]) + content[301:],
    ],
    ids=["empty", "a part", "a byte less", "a byte more", "another end", "the first bit", "another bit"],
)
def test_a_damaged_file_is_refused_and_made_anew_once_it_is_deleted(
    pictures: list[Path], tmp_path: Path, decoded: list[Path], damage: Callable[[bytes], bytes]
) -> None:
    file = on_disk(pictures, tmp_path)[1]
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    decoded.clear()
    with pytest.raises(
        DamagedError, match=rf"{file.name} is damaged .*: .* delete it, and the images are decoded again"
    ):
        on_disk(pictures, tmp_path)
    assert decoded == []
    file.unlink()
    images, _ = on_disk(pictures, tmp_path)
    assert len(decoded) == len(pictures) and torch.equal(images, one_by_one(pictures)) and file.read_bytes() == whole


def test_a_link_in_the_cache_folder_is_not_written_through(pictures: list[Path], tmp_path: Path) -> None:
    file = on_disk(pictures, tmp_path)[1]
    victim = tmp_path / "victim"
    victim.write_text("mine")
    file.unlink()
    temporary_of(file).symlink_to(victim)
    on_disk(pictures, tmp_path)
    file.unlink()
    file.symlink_to(victim)
    with pytest.raises(ValueError, match="is a symbolic link"):
        on_disk(pictures, tmp_path)
    assert victim.read_text() == "mine"


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")], ids=["Ctrl-C", "full"])
def test_an_interrupted_decoding_leaves_nothing(
    pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def stopped(done: int, total: int) -> None:
        if done >= total // 2:
            assert [path.name[:8] for path in (tmp_path / "cache").iterdir()] == [".images-"]
            raise error

    arguments = {"root": tmp_path / "pictures", "on_progress": stopped}
    with pytest.raises((KeyboardInterrupt, ValueError)) as caught:
        decode_to_disk(pictures, 8, tmp_path / "cache", **arguments)
    if isinstance(error, OSError):
        assert "cannot be kept in" in str(caught.value) and "(No space left on device)" in str(caught.value)
    assert list((tmp_path / "cache").iterdir()) == []
    # what a killed process leaves is not read
    (tmp_path / "cache" / ".images-8px-0.u8.1.partial").write_bytes(b"half")
    assert torch.equal(on_disk(pictures, tmp_path)[0], one_by_one(pictures))


def test_cache_folders_that_cannot_be_used(
    pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(
            ValueError, match=r"cannot be kept in .*file.* \(Not a directory\): give another --cache_dir"
        ):
            decode_to_disk(pictures, 8, folder, root=tmp_path)
    usage = namedtuple("usage", "free")
    monkeypatch.setattr("shutil.disk_usage", lambda folder: usage(free=100))
    with pytest.raises(ValueError, match=r"take 0\.0 GB, and .*cache has 0\.0 GB left: give another --cache_dir"):
        on_disk(pictures, tmp_path)


def test_a_missing_file_is_named(pictures: list[Path], tmp_path: Path) -> None:
    gone = tmp_path / "pictures" / "gone.png"
    with pytest.raises(ValueError, match=r"gone\.png cannot be read as an image"):
        on_disk([*pictures, gone], tmp_path)


def test_progress_is_told_from_the_first_image_to_the_last(pictures: list[Path], tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    decode(pictures, 8, lambda done, total: told.append((done, total)))
    n = len(pictures)
    assert told == [*((done, n) for done in range(0, n, CHUNK)), (n, n)]
    told.clear()
    for _ in range(2):
        decode_to_disk(pictures, 8, tmp_path, root=tmp_path, on_progress=lambda done, total: told.append((done, total)))
    assert told.count((n, n)) == 1
