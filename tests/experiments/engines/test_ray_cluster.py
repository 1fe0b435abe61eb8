"""On simulated machines of one: `make test-ray`."""

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from astra_gym.experiments.engines.attempts import ATTEMPTS
from astra_gym.experiments.engines.base import EngineFlags
from astra_gym.experiments.engines.ray_cluster import RayEngine
from tests.helpers.cells import attendant, job, run_on, updates
from tests.helpers.tiny_training import assert_equal_runs, run

LONG = ("--epochs=15", "--evaluate=false", "--images_every=100")


def test_without_ray_a_line_says_what_to_install(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(
        ValueError, match=r"--engine ray: Ray is not installed: pip install '\.\[ray\]' in the checkout"
    ):
        RayEngine(EngineFlags(engine="ray"))


@pytest.fixture
def machines() -> Iterator[Any]:
    """A cluster whose head runs no cells, and two machines that run one each."""
    pytest.importorskip("ray", reason="Ray is not installed: make test-ray")
    from tests.helpers.ray_machines import ray_machines

    with ray_machines(2) as cluster:
        yield cluster


@pytest.mark.ray
@pytest.mark.slow
def test_what_ran_on_a_machine_that_is_killed_goes_on_on_another(tmp_path, machines) -> None:
    from tests.helpers.ray_machines import machine_of

    assert run(tmp_path / "apart", *LONG) == 0
    killed: list[int] = []

    def looked(cells) -> None:
        for cell in cells:
            if cell.job.name == "first" and updates(cell.job.run) > 10 and not killed:
                killed.append(attendant(tmp_path, "first"))
                machines.remove_node(machine_of(machines, killed[0]), allow_graceful=False)

    lost = []
    engine = RayEngine(EngineFlags(engine="ray", ray_address=machines.address))
    jobs = [job(tmp_path, name, *LONG) for name in ("first", "second")]
    ends = run_on(engine, tmp_path, jobs, 2, looked, lambda end, attempt: lost.append((end.job.name, attempt)))
    assert lost == [("first", 2)] and {name: end.status for name, end in ends.items()} == {"first": 0, "second": 0}
    for name in ends:
        assert_equal_runs(tmp_path / name, tmp_path / "apart")
    assert not (tmp_path / ATTEMPTS).exists()


@pytest.mark.ray
@pytest.mark.slow
def test_a_ray_that_is_started_here_ends_with_the_comparison(tmp_path) -> None:
    """After an interrupt too, which saves what runs."""
    pytest.importorskip("ray", reason="Ray is not installed: make test-ray")
    asked = []

    def looked(cells) -> None:
        if any(updates(cell.job.run) > 10 for cell in cells) and not asked:
            asked.append(os.kill(os.getpid(), signal.SIGINT))

    before = signal.getsignal(signal.SIGTERM)
    engine = RayEngine(EngineFlags(engine="ray", cell_cpus=len(os.sched_getaffinity(0))))
    jobs = [job(tmp_path, name, "--epochs=100000") for name in ("runs", "waits")]
    ends = run_on(engine, tmp_path, jobs, 2, looked)
    assert {name: end.status for name, end in ends.items()} == dict.fromkeys(("runs", "waits"), 128 + signal.SIGTERM)
    assert "saved at step" in (tmp_path / "logs" / "runs.log").read_text() and not (tmp_path / "waits").exists()
    assert signal.getsignal(signal.SIGTERM) == before
    assert not engine.ray.is_initialized() and not Path("/tmp/ray").exists()


@pytest.mark.ray
@pytest.mark.slow
def test_what_cannot_be_had_is_one_line(tmp_path) -> None:
    pytest.importorskip("ray", reason="Ray is not installed: make test-ray")
    began = time.monotonic()
    for flags, part in (
        ({"cell_cpus": 4000}, "a cell needs 4000 CPU, and this machine has"),
        ({"ray_address": "127.0.0.1:9"}, "cannot reach --ray_address 127.0.0.1:9: [Errno 111] Connection refused"),
        ({"ray_address": "head"}, "cannot reach --ray_address head: expected HOST:PORT or auto"),
    ):
        with pytest.raises(ValueError) as raised:
            RayEngine(EngineFlags(engine="ray", **flags)).open(tmp_path)
        [line] = str(raised.value).splitlines()
        assert part in line and len(line) < 300
    assert time.monotonic() - began < 120
