from pathlib import Path

import pytest
import torch

from experiments.feeding import measure_data, write_noise
from experiments.workloads import BenchmarkError, Options
from ssl_core.decoding import map_images


def test_the_file_holds_the_images_and_no_two_are_alike(tmp_path: Path) -> None:
    write_noise(tmp_path / "images.u8", 1003, 4)
    assert (tmp_path / "images.u8").stat().st_size == 1003 * 3 * 4**2
    images = map_images(tmp_path / "images.u8", (1003, 3, 4, 4))
    assert len(torch.unique(images.flatten(1), dim=0)) == 1003


def test_too_little_space_is_said_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match="set TMPDIR to another folder, or leave the part out"):
        write_noise(tmp_path / "images.u8", 10**12, 96)
    assert not list(tmp_path.iterdir())


def test_each_round_has_its_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    said: list[str] = []
    (figure,), details = measure_data(Options(1, torch.device("cpu"), quick=True), 2, said.append)
    images = details["images"]
    expected = [b / a for a, b in zip(images["gathered_a_second"], images["trained_a_second"], strict=True)]
    assert list(figure.values) == expected and len(expected) == 2 and min(expected) > 0
    assert len(said) == 3  # the warm-up too
    assert not list(tmp_path.iterdir())
