import sys

import pytest
import torch

from astra_gym.experiments.runs.peak_memory import described, peak_memory

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no getrusage")
CPU = torch.device("cpu")


def test_on_the_cpu_it_is_the_processs_peak_in_bytes() -> None:
    before = peak_memory(CPU)["peak_resident_bytes"]
    # torch and its libraries take some hundred MiB: KiB taken for bytes, or bytes for KiB, would be far off
    assert 2**26 < before < 2**37


@pytest.mark.parametrize(("platform", "unit"), [("linux", 1024), ("darwin", 1)])
def test_the_unit_is_the_systems(monkeypatch: pytest.MonkeyPatch, platform: str, unit: int) -> None:
    monkeypatch.setattr("resource.getrusage", lambda who: type("Usage", (), {"ru_maxrss": 5000}))
    monkeypatch.setattr(sys, "platform", platform)
    assert peak_memory(CPU) == {"peak_resident_bytes": 5000 * unit}


def test_on_a_gpu_it_is_what_tensors_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.max_memory_allocated", lambda device: 3 * 2**20)
    peak = peak_memory(torch.device("cuda", 0))
    assert peak == {"peak_gpu_allocated_bytes": 3 * 2**20}
    assert described(peak) == ["peak GPU memory allocated 3 MiB"]
