import os

import pytest

from astra_gym.experiments.engines.base import ENGINES, LOST, Ended, EngineFlags, Job, last_lines, usable_cores
from astra_gym.experiments.engines.choice import MADE_BY


def test_the_end_of_a_log(tmp_path) -> None:
    path = tmp_path / "x.log"
    assert last_lines(path) == []
    path.write_bytes(b"one\n\n  two  \n\xff\n\n")
    assert last_lines(path, 2) == ["two", "\N{REPLACEMENT CHARACTER}"]
    job = Job("x", (), (), tmp_path, path)
    assert Ended(job, 3, 1.0).reason == "ended with status 3: \N{REPLACEMENT CHARACTER}"
    path.unlink()
    assert Ended(job, -15, 1.0).reason == "killed by SIGTERM"
    assert Ended(job, LOST, 1.0, "its machine died").reason == "ended unseen, since its machine died"


def test_there_is_a_core() -> None:
    assert 1 <= usable_cores() <= (os.cpu_count() or 1)


def test_a_job_resumes_a_run_that_began(tmp_path) -> None:
    job = Job("x", ("--seed=1",), ("--resume",), tmp_path, tmp_path / "log")
    assert job.argv == ("--seed=1",)
    (tmp_path / "config.yaml").touch()
    assert job.argv == ("--resume",)


def test_each_name_of_an_engine_is_one() -> None:
    assert (*MADE_BY,) == ENGINES


def test_the_flags_that_repeat_an_engine() -> None:
    assert EngineFlags().words == []
    flags = EngineFlags(engine="slurm", cell_cpus=2, slurm={"partition": "debug", "mem_gb": 2, "setup": ["a b"]})
    where = ["--engine", "slurm", "--cell_cpus", "2"]
    job = ["--slurm.partition", "debug", "--slurm.mem_gb", "2", "--slurm.setup", '["a b"]']
    assert flags.words == where + job


@pytest.mark.parametrize(
    ("given", "part"),
    [
        ({"engine": "slrum"}, "unknown engine 'slrum': choose from local, ray, slurm; did you mean 'slurm'"),
        ({"cell_cpus": 0}, "--cell_cpus: expected 1 to 4,096, got 0"),
        ({"cell_attempts": 0}, "--cell_attempts"),
        ({"cell_attempts": 3}, "the engine local makes one, and --resume the next"),
        ({"cell_gpus": -1, "engine": "ray"}, "--cell_gpus: expected 0 to 64"),
        ({"cell_gpus": 1}, "the engine local shares one GPU"),
        ({"ray_address": "auto", "engine": "slurm"}, "--ray_address is for --engine ray"),
        ({"slurm": {"partition": "x"}}, "--slurm is for --engine slurm, and this is --engine local"),
    ],
)
def test_flags_that_cannot_be(given, part: str) -> None:
    with pytest.raises(ValueError, match=part):
        EngineFlags(**given)
