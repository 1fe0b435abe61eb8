"""Image files as uint8 tensors, decoded by threads: into memory, or once into a file that is mapped."""

import hashlib
import json
import math
import mmap
import os
import re
import shutil
import warnings
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from astra_gym.ssl_core.safety.memory_errors import lacks_memory
from astra_gym.ssl_core.safety.sealing import damaged, note_unsealed
from astra_gym.ssl_core.safety.writers import sweep
from astra_gym.ssl_core.utils.files import check_target, expanded, replacing
from astra_gym.ssl_core.utils.messages import plain

SCHEMA = 1
"""Version of the files of decoded images; raise it whenever the pixels of `read_image` change."""
CACHED = re.compile(r"images-\d+px-[0-9a-f]{32}\.u8")
"""Names of the files of decoded images."""
BLOCK = 1 << 22
"""Bytes that a thread hashes at a time."""
SHA256 = 80
"""Upper bound of the bytes that a digest adds to the end of a file."""
CHUNK = 8
"""Number of images that a thread decodes at a time: few, since an interrupt waits for the current chunks."""

OnProgress = Callable[[int, int], None]


def decode(paths: Sequence[Path], size: int, on_progress: OnProgress | None = None) -> Tensor:
    """Decode image files into memory, (N, 3, size, size) uint8, each as by `read_image`.

    Args:
        paths: N image files.
        size: height and width, in pixels.
        on_progress: called with the numbers of images decoded and to be decoded.

    Raises:
        ValueError: if a file cannot be read as an image; it names the first one in their order.
    """
    images = torch.empty(len(paths), 3, size, size, dtype=torch.uint8)
    done = 0
    with closing(_decoded(paths, size, on_progress)) as chunks:
        for chunk in chunks:
            images[done : done + len(chunk)] = chunk
            done += len(chunk)
    return images


def decode_to_disk(
    paths: Sequence[Path], size: int, cache_dir: Path | str, *, root: Path, on_progress: OnProgress | None = None
) -> tuple[Tensor, Path]:
    """Decode image files into a mapped file in `cache_dir`: a page is loaded into memory when it is read.

    The file's name is a hash of what its content depends on: the files' paths below `root`, sizes and times of
    modification, in their order, and `size`. If the file exists, nothing is decoded; a changed folder gets another
    file, and the old one may be deleted. The file is written under a temporary name and renamed when complete: an
    interrupted run leaves nothing, a killed one leaves a temporary file that the next run removes.

    The file ends with a SHA-256 of the images, which is compared whenever the file is opened. This reads all of it
    once: a gigabyte takes one to two seconds per core, or longer on a slow disk. Changes of the file while it is mapped
    are not detected.

    Args:
        paths: N image files below `root`.
        size: height and width, in pixels.
        cache_dir: folder for the file, created if missing; the file takes N * 3 * size**2 bytes.
        root: the data set's folder; it may move.
        on_progress: called with the numbers of images decoded and to be decoded; not called if nothing is decoded.

    Returns:
        The images, (N, 3, size, size) uint8, and the file, which begins with them, one after another. Do not write to
        the images: the map is read-only, and a write ends the process. (Linux counts a writable private map as memory,
        and refuses it if it exceeds the machine's.)

    Raises:
        ValueError: if a file cannot be read as an image, or the cache folder cannot be used or is too small.
        DamagedError: a ValueError, if the file exists and has changed since it was written.
    """
    folder = expanded(cache_dir)
    label = _label(paths, size, root)
    file = folder / f"images-{size}px-{label[:32]}.u8"
    shape = (len(paths), 3, size, size)
    # the last bytes of the file; the SHA-256 is added to them
    trailer = json.dumps({"format": "astra-gym images", "schema": SCHEMA, "label": label, "shape": shape}).encode()
    try:
        try:
            _check(file, math.prod(shape), trailer)
        except FileNotFoundError:
            _write(file, paths, size, trailer, on_progress)
        return map_images(file, shape), file
    except OSError as error:
        error.filename = error.filename or str(file)
        raise ValueError(
            f"the decoded images cannot be kept in {folder} ({error.strerror or error}): give another --cache_dir"
        ) from error


def _label(paths: Sequence[Path], size: int, root: Path) -> str:
    digest = hashlib.sha256(f"{SCHEMA} {size}\n".encode())
    for path in paths:
        try:
            status = path.stat()
        except OSError as error:
            raise _unreadable(path, error) from error
        digest.update(os.fsencode(path.relative_to(root).as_posix()))
        digest.update(f"\0{status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _check(file: Path, size: int, trailer: bytes) -> None:
    """Raise a DamagedError if the file has changed; files of version 0.1 have no digest: only their end is checked."""
    check_target(file)
    with file.open("rb") as content:
        content.seek(size)
        found = content.read(2 * len(trailer) + SHA256)
    if found == trailer:
        note_unsealed(file)
    elif found != _sealed(trailer, _digest(file, size)):
        raise damaged(file, "delete it, and the images are decoded again")


def _sealed(trailer: bytes, digest: str) -> bytes:
    return trailer[:-1] + f', "sha256": "{digest}"}}'.encode()


def _digest(file: Path, size: int) -> str:
    """Return the SHA-256 of the SHA-256s of a file's first `size` bytes, one per `BLOCK`, computed in threads."""

    def part(start: int) -> bytes:
        with file.open("rb") as content:
            content.seek(start)
            return hashlib.sha256(content.read(min(BLOCK, size - start))).digest()

    with ThreadPoolExecutor(_cores(), thread_name_prefix="digest") as pool:
        return hashlib.sha256(b"".join(pool.map(part, range(0, size, BLOCK)))).hexdigest()


def _write(file: Path, paths: Sequence[Path], size: int, trailer: bytes, on_progress: OnProgress | None) -> None:
    folder = file.parent
    folder.mkdir(parents=True, exist_ok=True)
    sweep(folder, lambda name: CACHED.fullmatch(name) is not None)
    images = len(paths) * 3 * size**2
    needed, free = images + len(trailer) + SHA256, shutil.disk_usage(folder).free
    if needed > free:
        raise ValueError(
            f"the decoded images take {needed / 1e9:.1f} GB, and {folder} has {free / 1e9:.1f} GB left: "
            "give another --cache_dir, or lower --limit or --image_size"
        )
    # The file is written, not mapped, because a full disk is an error here but would kill the process in a map.
    with (
        replacing(file, durable=True) as temporary,
        temporary.open("wb") as content,
        closing(_decoded(paths, size, on_progress)) as chunks,
    ):
        for chunk in chunks:
            content.write(chunk.numpy().data)
        content.flush()
        content.write(_sealed(trailer, _digest(temporary, images)))


def map_images(file: Path, shape: tuple[int, ...]) -> Tensor:
    """Map the images at the beginning of a file read-only: uint8 of the shape, which must not be written to."""
    with file.open("rb") as content:
        pages = mmap.mmap(content.fileno(), 0, access=mmap.ACCESS_READ)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given buffer is not writable")
        # the tensor keeps the map alive
        images = torch.frombuffer(pages, dtype=torch.uint8, count=math.prod(shape))
    return images.view(shape)


def _decoded(paths: Sequence[Path], size: int, on_progress: OnProgress | None) -> Generator[Tensor]:
    """Yield chunks (n, 3, size, size) in the order of the paths, decoded ahead by one thread per core."""
    workers = _cores()
    # Pillow registers its formats at the first use, so let one thread do it.
    Image.init()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    ahead: deque[Future[Tensor]] = deque()
    done, start = 0, 0
    try:
        while done < len(paths):
            if on_progress is not None:
                on_progress(done, len(paths))
            # A limit, since decoded images stay in memory until they are read.
            while start < len(paths) and len(ahead) < 4 * workers:
                ahead.append(pool.submit(_read_images, paths[start : start + CHUNK], size))
                start += CHUNK
            chunk = ahead.popleft().result()
            yield chunk
            done += len(chunk)
        if on_progress is not None:
            on_progress(done, len(paths))
    finally:
        pool.shutdown(cancel_futures=True)


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _read_images(paths: Sequence[Path], size: int) -> Tensor:
    images = torch.empty(len(paths), 3, size, size, dtype=torch.uint8)
    for image, path in zip(images, paths, strict=True):
        image.copy_(read_image(path, size))
    return images


def read_image(path: Path, size: int) -> Tensor:
    """Read an image as (3, size, size) uint8 RGB.

    It is turned upright by its EXIF tag, its shorter side is resized to `size`, and its center is cut out.

    Raises:
        ValueError: if the file cannot be read as an image.
    """
    try:
        with Image.open(path) as file:
            image = _as_rgb(ImageOps.exif_transpose(file))
    except Exception as error:  # Pillow's decoders fail in many ways: OSError, SyntaxError, struct.error, ...
        if lacks_memory(error):
            raise
        raise _unreadable(path, error) from error
    square = ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(square)).permute(2, 0, 1)


def _unreadable(path: Path, error: Exception) -> ValueError:
    # a name may hold control codes of the terminal
    return ValueError(plain(f"{path} cannot be read as an image ({error}): repair it or remove it"))


def _as_rgb(image: Image.Image) -> Image.Image:
    """Convert to RGB, with transparent parts on white, as in image viewers."""
    if image.mode.startswith("I"):
        # Pillow would clip 16-bit values at 255, which makes nearly every pixel white.
        image = Image.fromarray((np.asarray(image) / 257).round().clip(0, 255).astype(np.uint8))
    if "A" in image.mode.upper() or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")
