"""Kill machines and jobs under a comparison on a cluster: its final table has to be that of one that nobody disturbed.

python -m tests.torture.engines --engine ray --kills 10      # simulated machines of a Ray cluster on this one
python -m tests.torture.engines --engine slurm --kills 10    # jobs of a SLURM that is started here, see make test-slurm

Which cells are killed, when and how follows from the seed. Where a cell is placed does not, so no case can be repeated.
"""

import argparse
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from astra_gym.experiments.engines.attempts import ATTEMPTS, REPORT
from astra_gym.ssl_core.safety.sealing import read_json
from astra_gym.ssl_core.safety.writers import is_running
from astra_gym.ssl_core.utils.files import write_json
from astra_gym.ssl_core.utils.provenance import ROOT, versions
from tests.helpers.cells import updates, without_times
from tests.helpers.tiny_training import TINY

SCRIPT = ROOT / "experiments" / "compare_agents.py"
GRID = ("--agents", "reinforce", "fixed", "--seeds=2", "--primary_seeds=2", "--preset=digits", *TINY)
GRID = (*GRID, "--epochs=10", "--images_every=100", "--checkpoint_every=1")
CELLS = ("reinforce-seed0", "fixed-seed0", "reinforce-seed1", "fixed-seed1")
UPDATES = 60
PATIENCE = 3600.0
"""Seconds after which a comparison is taken to hang."""


class Killer:
    """What kills a running cell, once at each of its moments.

    Args:
        folder: of the comparison.
        kills: how many in all.
        draw: the generator of the moments.
        kill: takes the name of a cell and the process that attends to it, and returns how it was killed.
    """

    def __init__(self, folder: Path, kills: int, draw: random.Random, kill: Callable[[str, int], str]) -> None:
        self.folder, self.kill = folder, kill
        shares = [len(range(number, kills, len(CELLS))) for number in range(len(CELLS))]
        drawn = (sorted(draw.sample(range(3, UPDATES - 3), share)) for share in shares)
        self.moments = dict(zip(CELLS, drawn, strict=True))
        self.done: list[dict[str, Any]] = []
        self._killed = set[int]()

    def look(self) -> None:
        """Kills what has come to a moment."""
        for name, moments in self.moments.items():
            with contextlib.suppress(FileNotFoundError):
                report = read_json(self.folder / ATTEMPTS / f"{name}{REPORT}")
                made = updates(self.folder / "cells" / name)
                fresh = report["pid"] not in self._killed and not report.get("left")
                if moments and fresh and made >= moments[0] and is_running(report["pid"]):
                    moments.pop(0)
                    self._killed.add(report["pid"])
                    self.done.append({"cell": name, "update": made, "how": self.kill(name, report["pid"])})
                    print(self.done[-1], flush=True)


@contextlib.contextmanager
def on_ray(draw: random.Random) -> Iterator[tuple[list[str], Callable[[str, int], str]]]:
    """Yields the flags of the engine, and what kills a cell's machine; another takes its place."""
    from tests.helpers.ray_machines import MACHINE, machine_of, ray_machines

    with ray_machines(2) as cluster:

        def kill(name: str, process: int) -> str:
            cluster.remove_node(machine_of(cluster, process), allow_graceful=False)
            cluster.add_node(**MACHINE)
            return "its machine was killed"

        yield ["--engine", "ray", "--ray_address", cluster.address], kill


@contextlib.contextmanager
def on_slurm(draw: random.Random) -> Iterator[tuple[list[str], Callable[[str, int], str]]]:
    """Yields the flags of the engine, and what kills a cell's job."""
    from tests.helpers.one_host_slurm import missing, one_host_slurm

    if reason := missing():
        raise SystemExit(reason)
    with tempfile.TemporaryDirectory() as folder, one_host_slurm(Path(folder) / "slurm"):

        def kill(name: str, process: int) -> str:
            facts = Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
            found = dict(fact.decode(errors="replace").partition("=")[::2] for fact in facts)
            job = found["SLURM_JOB_ID"]
            if array := found.get("SLURM_ARRAY_JOB_ID"):
                job = f"{array}_{found['SLURM_ARRAY_TASK_ID']}"
            how = draw.choice(("SIGKILL", "scancel", "scontrol requeue"))
            if how == "SIGKILL":
                os.kill(process, signal.SIGKILL)
            else:
                subprocess.run([*how.split(), job], check=True)
            if how == "scontrol requeue":
                _release(job)
            return how

        yield ["--engine", "slurm"], kill


def _release(job: str) -> None:
    """Lets a job begin that SLURM has put back, and would hold for two minutes."""
    command = ["squeue", "--noheader", "--states=PENDING", "--format=%i", f"--jobs={job}"]
    deadline = time.monotonic() + 60
    while not subprocess.run(command, capture_output=True, text=True).stdout.strip() and time.monotonic() < deadline:
        time.sleep(0.5)
    subprocess.run(["scontrol", "update", f"JobId={job}", "StartTime=now"], capture_output=True)


ENGINES = {"ray": on_ray, "slurm": on_slurm}
PACKAGES = {"ray": "ray", "slurm": "submitit"}


def disturbed(engine: str, kills: int, seed: int, room: Path) -> dict[str, Any]:
    """A comparison on the engine with so many kills: what was done, and whether its table is that of one without."""
    draw = random.Random(f"{seed}/engines/{engine}")
    apart, folder = room / "apart" / "title", room / "killed" / "title"
    variables = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SCRIPT), *GRID, "--jobs=2", "--dir"]
    subprocess.run([*command, str(apart)], env=variables, check=True, stdout=subprocess.DEVNULL)
    began = time.monotonic()
    with ENGINES[engine](draw) as (flags, kill):
        killer = Killer(folder, kills, draw, kill)
        words = [*command, str(folder), *flags, "--cell_attempts", str(kills + 1)]
        log = room / "said.txt"
        with log.open("w") as file:
            process = subprocess.Popen(words, env=variables | dict(os.environ), stdout=file, stderr=file)
        try:
            while process.poll() is None and time.monotonic() < began + PATIENCE:
                killer.look()
                time.sleep(0.2)
        finally:
            hung = process.poll() is None
            process.kill()
            process.wait()
    said = log.read_text()
    print(said)
    same = not hung and _table(folder) == _table(apart)
    return {
        "kills": killer.done,
        "attempts_beyond_the_first": said.count("; it goes on, attempt "),
        "status": process.returncode,
        "hung": hung,
        "same_table": same,
        "seconds": round(time.monotonic() - began, 1),
    }


def _table(folder: Path) -> dict[str, Any]:
    """The table of a comparison, without the command that made it."""
    return without_times(folder / "comparison.json") | {"command": "", "jobs": 0}


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status: 0 the same table after all kills, 1 not."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m tests.torture.engines", description=__doc__, formatter_class=raw)
    parser.add_argument("--engine", choices=ENGINES, required=True)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="add what was done to this file, as JSON")
    given = parser.parse_args(argv)
    room = Path(tempfile.mkdtemp(prefix="engines-"))
    try:
        found = disturbed(given.engine, given.kills, given.seed, room)
    finally:
        shutil.rmtree(room, ignore_errors=True)
    print(found)
    if given.output is not None:
        known = read_json(given.output) if given.output.exists() else {"schema": 1, "engines": {}}
        package = PACKAGES[given.engine]
        entry = {"seed": given.seed, "versions": versions() | {package: metadata.version(package)}} | found
        write_json(given.output, known | {"engines": known["engines"] | {given.engine: entry}})
    return int(not found["same_table"] or len(found["kills"]) < given.kills)


if __name__ == "__main__":
    sys.exit(main())
