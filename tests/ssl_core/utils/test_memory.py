"""What is available is what the machine has left, within the limits around the process."""

from pathlib import Path

import pytest

from astra_gym.ssl_core.utils import memory
from astra_gym.ssl_core.utils.memory import available


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "meminfo").write_text("MemTotal:  4000 kB\nMemFree:  100 kB\nMemAvailable:    2000 kB\n")
    monkeypatch.setattr(memory, "PROC", tmp_path / "proc")
    monkeypatch.setattr(memory, "CGROUPS", tmp_path / "cgroup")
    return tmp_path


def limit(machine: Path, groups: str, files: dict[str, str]) -> None:
    (machine / "proc" / "self" / "cgroup").write_text(groups)
    for name, text in files.items():
        path = machine / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")


def test_without_limits_it_is_what_linux_calls_available(machine: Path) -> None:
    assert available("cpu") == 2000 * 1024


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("0::/job/step\n", {"job/memory.max": "5000", "job/step/memory.max": "max"}, 5000),
        ("0::/\n", {"memory.max": "6000"}, 6000),
        ("0::/job\n", {"job/memory.max": str(10**9)}, 2000 * 1024),
        ("3:cpu,cpuacct:/a\n2:memory:/a\n", {"memory/a/memory.limit_in_bytes": "7000", "a/memory.max": "1"}, 7000),
    ],
    ids=["the job's", "a container's", "above what is free", "version 1"],
)
def test_a_control_groups_limit_counts(machine: Path, groups: str, files: dict[str, str], expected: int) -> None:
    limit(machine, groups, files)
    assert available("cpu") == expected


def test_what_cannot_be_told_is_none(machine: Path) -> None:
    (machine / "proc" / "meminfo").write_text("MemTotal:  4000 kB\n")
    assert available("cpu") is None
    (machine / "proc" / "meminfo").unlink()
    assert available("cpu") is None
    assert available("meta") is None
