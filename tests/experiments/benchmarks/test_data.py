from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from astra_gym.experiments.benchmarks import data
from astra_gym.experiments.benchmarks.data import measure_data, share_figures, write_noise
from astra_gym.experiments.benchmarks.measure import TARGETS
from astra_gym.experiments.benchmarks.workloads import BenchmarkError, Options
from astra_gym.ssl_core.data.decoding import map_images
from astra_gym.ssl_core.transforms.views import two_views


def test_the_file_holds_the_images_and_no_two_are_alike(tmp_path: Path) -> None:
    write_noise(tmp_path / "images.u8", 1003, 4)
    assert (tmp_path / "images.u8").stat().st_size == 1003 * 3 * 4**2
    images = map_images(tmp_path / "images.u8", (1003, 3, 4, 4))
    assert len(torch.unique(images.flatten(1), dim=0)) == 1003


def test_too_little_space_is_said_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match="set TMPDIR to another folder, or leave the part out"):
        write_noise(tmp_path / "images.u8", 10**12, 96)
    assert not list(tmp_path.iterdir())


def test_shares_in_closed_form() -> None:
    reading, augmenting = share_figures({"with": [4.0, 3.0], "without": [3.0, 4.0], "augmenting": [1.5, 1.0]})
    # no time is gained by reading: the second round is noise
    assert reading.values == (0.25, 0.0) and reading.unit == "overhead"
    assert (reading.part, reading.name) in TARGETS
    assert augmenting.values == (0.5, 0.25) and augmenting.unit == "share"


def test_each_round_has_its_shares(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    said: list[str] = []
    batches: list[Tensor] = []
    forgotten: list[Path] = []
    monkeypatch.setattr(data, "forget", forgotten.append)
    real = two_views

    def recorded(images: Tensor, *rest: Any) -> Tensor:
        batches.append(images)
        return real(images, *rest)

    monkeypatch.setattr(data, "two_views", recorded)
    figures, details = measure_data(Options(1, torch.device("cpu"), quick=True), 2, said.append)
    assert [figure.values for figure in figures] == [figure.values for figure in share_figures(details["seconds"])]
    assert [len(values) for values in details["seconds"].values()] == [2, 2, 2]
    assert len(details["gathered_a_second"]) == 2 and min(details["gathered_a_second"]) > 0
    assert len(said) == len(forgotten) == 3  # the warm-up too
    # in a round three steps augmenting alone, three on the resident batch, three on batches of the file
    assert len(batches) == 3 * 9 and {tuple(batch.shape) for batch in batches} == {(8, 3, 32, 32)}
    fixed = [torch.equal(batch, batches[0]) for batch in batches]
    assert fixed == 3 * [*[True] * 6, *[False] * 3]
    assert not list(tmp_path.rglob("images.u8"))
