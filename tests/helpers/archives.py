"""Archives in the official layout; of torchvision, only the checksums are changed."""

import hashlib
from pathlib import Path

import numpy as np
import pytest


def draw(seed: int, *shape: int, high: int = 256) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, high, shape, dtype=np.uint8)


def checksum(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def write_stl10(root: Path, monkeypatch: pytest.MonkeyPatch, unlabeled: int = 0) -> Path:
    """40 and 30 images, each three planes column by column, and labels from 1; unlabeled ones if there are any."""
    from torchvision.datasets import STL10

    folder = root / "stl10_binary"
    folder.mkdir()
    for seed, (name, n) in enumerate({"train": 40, "test": 30}.items()):
        (folder / f"{name}_X.bin").write_bytes(draw(seed, n, 3, 96, 96).tobytes())
        (folder / f"{name}_y.bin").write_bytes((np.arange(n) * 3 % 10 + 1).astype(np.uint8).tobytes())
    if unlabeled:
        (folder / "unlabeled_X.bin").write_bytes(draw(9, unlabeled, 3, 96, 96).tobytes())
    (folder / "class_names.txt").write_text("".join(f"class {k}\n" for k in range(10)))
    for kind in ("train_list", "test_list"):
        entries = [
            [name, checksum(folder / name)] if (folder / name).is_file() else [name, md5]
            for name, md5 in getattr(STL10, kind)
        ]
        monkeypatch.setattr(STL10, kind, entries)
    return root
