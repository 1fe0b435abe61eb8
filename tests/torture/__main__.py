"""Torture the software: kills, full disks, flipped bits, random input, hostile folders, NaN, long runs.

python -m tests.torture --minutes 30 --seed 0                  # all parts (make torture MINUTES=30 SEED=0)
python -m tests.torture --parts flips words --minutes 5        # some of them
python -m tests.torture --parts flips --case 17 --keep         # one case again, its folder kept

Every case follows from its part, the seed and its number. A failure is printed with the command that repeats it; the
torture continues, counts, and ends with status 1 if anything failed.
"""

import argparse
import os
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
ONE_THREAD = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
MEMORY = 12 << 30
"""Bytes that a part's process may take: what a damaged file asks for must not take the machine down."""


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m tests.torture", description=__doc__, formatter_class=raw)
    parser.add_argument("--minutes", type=float, default=30.0, help="for all parts together; by default 30")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--parts", nargs="+", metavar="PART", help="by default all")
    parser.add_argument("--jobs", type=int, help="parts at once; by default one a usable core")
    parser.add_argument("--case", type=int, help="only this one of the part")
    parser.add_argument("--keep", action="store_true", help="keep the folders of everything")
    parser.add_argument("--room", type=Path, help="where everything happens; by default a new temporary folder")
    parser.add_argument("--output", type=Path, help="write the counts, and what safety costs, to this file, as JSON")
    parser.add_argument("--first", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--journal", type=Path, help=argparse.SUPPRESS)
    return parser


def surroundings(room: Path) -> dict[str, str]:
    """The environment of all that happens in a room, so that nothing of the user's is read; its folders are made."""
    for name in ("home", "tmp", "cases", "config"):
        (room / name).mkdir(parents=True, exist_ok=True)
    places = {"HOME": "home", "TMPDIR": "tmp", "MPLCONFIGDIR": "config", "XDG_CONFIG_HOME": "config"}
    found = {name: str(room / folder) for name, folder in places.items()}
    return found | dict.fromkeys(ONE_THREAD, "1") | {"PYTHONDONTWRITEBYTECODE": "1"}


def _furnish(room: Path) -> None:
    os.environ.update(surroundings(room))
    tempfile.tempdir = os.environ["TMPDIR"]
    sys.dont_write_bytecode = True


def _work(given: argparse.Namespace, room: Path) -> int:
    """The process of one part: its cases, in this process."""
    _furnish(room)
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    import torch

    from tests.torture.cases import run_case, run_cases
    from tests.torture.goods import Goods
    from tests.torture.parts import PARTS

    torch.set_num_threads(1)
    part, goods = PARTS[given.parts[0]], Goods(room)
    if given.case is None:
        run_cases(part, goods, given.seed, given.first, given.seconds, given.journal)
        return 0
    case = run_case(part, goods, given.seed, given.case, given.keep)
    print(f"{part.name}, case {given.case}: {', '.join(case.tried)}")
    for failure in case.failures:
        print(f"FAILED {failure.kind}\n    {failure.text}")
    if given.keep:
        print(f"its folder: {case.folder}")
    return int(bool(case.failures))


class Worker:
    """The process of a part, which is started again after a case that it does not survive.

    Args:
        part: of `PARTS`.
        seed: of the whole torture.
        seconds: that it has.
        room: where everything happens.
        say: prints a line.
    """

    def __init__(self, part: Any, seed: int, seconds: float, room: Path, say: Callable[[str], None]) -> None:
        from tests.torture.cases import Counts, Journal

        self.part, self.seed, self.room, self.say = part, seed, room, say
        self.counts = Counts()
        self.deadline = time.monotonic() + seconds
        self.journal = Journal(room / f"{part.name}.jsonl")
        self.log = room / f"{part.name}.log"
        self.process = self._start(0, seconds)

    def _start(self, first: int, seconds: float) -> subprocess.Popen[bytes]:
        words = ["--parts", self.part.name, "--seed", str(self.seed), "--first", str(first), "--room", str(self.room)]
        words += ["--seconds", str(seconds), "--journal", str(self.journal.path)]
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "tests.torture", *words],
                cwd=ROOT,
                env={**os.environ, **dict.fromkeys(ONE_THREAD, "1")},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def look(self) -> bool:
        """Counts what has ended, starts again what died; whether the part is over."""
        self._count()
        running, status = self.journal.running, self.process.poll()
        if status is None:
            if running is None or time.monotonic() - self.journal.since < self.part.patience:
                return False
            self.kill()
            self._lost(running, "hang: the process had to be killed", f"after {self.part.patience:.0f} s")
        elif status == 0:
            self._count()
            return True
        else:
            self._count()
            last = self.log.read_text("utf-8", errors="replace").splitlines()[-3:]
            number = self.journal.running
            if number is None:
                self._lost(-1, f"harness: it ended with status {status}", " ".join(last))
                return True
            self._lost(number, f"the process died with status {status}", " ".join(last))
        left = self.deadline - time.monotonic()
        if left <= 0:
            return True
        self.process = self._start((self.journal.running or 0) + 1, left)
        self.journal.running = None
        return False

    def kill(self) -> None:
        """Ends the process and what it has started."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def _lost(self, number: int, kind: str, text: str) -> None:
        self._add({"case": number, "seconds": 0.0, "tried": {}, "failures": [(kind, text)]})

    def _count(self) -> None:
        for entry in self.journal.new():
            self._add(entry)

    def _add(self, entry: dict[str, Any]) -> None:
        for kind in self.counts.add(entry["case"], entry["seconds"], entry["tried"], entry["failures"]):
            self.say(f"FAILED {self.part.name}, case {entry['case']}: {kind}")
            self.say(f"    {self.counts.failures[kind][1]}")
            self.say(f"    again: {again(self.part.name, self.seed, entry['case'])}")


def again(part: str, seed: int, case: int) -> str:
    """The command that repeats a case."""
    return f"{shlex.quote(sys.executable)} -m tests.torture --parts {part} --seed {seed} --case {case} --keep"


def torture(given: argparse.Namespace, room: Path) -> int:
    """All parts, side by side."""
    from tests.torture.parts import PARTS

    def say(text: str) -> None:
        print(text, flush=True)

    names = given.parts or list(PARTS)
    if unknown := [name for name in names if name not in PARTS]:
        print(f"unknown part {unknown[0]}: expected some of {', '.join(PARTS)}", file=sys.stderr)
        return 2
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    jobs = min(given.jobs or cores, len(names))
    total = sum(PARTS[name].share for name in names)
    seconds = {name: 60 * given.minutes * jobs * PARTS[name].share / total for name in names}
    # the longest first, so that they end together
    waiting = sorted(names, key=lambda name: -seconds[name])
    began, running, done = time.monotonic(), list[Worker](), list[Worker]()
    say(f"{given.minutes:g} minutes of {', '.join(names)}, {jobs} at once, seed {given.seed}, in {room}")
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                name = waiting.pop(0)
                running.append(Worker(PARTS[name], given.seed, seconds[name], room, say))
            time.sleep(0.5)
            for worker in [worker for worker in running if worker.look()]:
                running.remove(worker)
                done.append(worker)
                counts = worker.counts
                say(f"{worker.part.name}: {counts.cases} cases, {counts.failed} failed, {counts.seconds:.0f} s")
    finally:
        for worker in running:
            worker.kill()
    from tests.torture.summary import summary, table

    document = summary(given.minutes, given.seed, jobs, time.monotonic() - began, done)
    if given.output is not None:
        from tests.torture.costs import costs

        say("nothing else runs now: what safety costs")
        document["costs"] = costs(room / "costs")
    say(table(document))
    if given.output is not None:
        from astra_gym.ssl_core.utils.files import write_json

        write_json(given.output, document)
        say(f"counts: {given.output}")
    return int(any(worker.counts.failures for worker in done))


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status: 0 nothing failed, 1 something did, 2 bad input, 130 interrupted."""
    given = _parser().parse_args(argv)
    if given.output is not None:
        given.output = given.output.resolve()
    if given.case is not None and len(given.parts or ()) != 1:
        print("--case is of one part: say by --parts which", file=sys.stderr)
        return 2
    room = Path(tempfile.mkdtemp(prefix="torture-")) if given.room is None else given.room.resolve()
    room.mkdir(parents=True, exist_ok=True)
    try:
        if given.journal is not None or given.case is not None:
            return _work(given, room)
        return torture(given, room)
    except KeyboardInterrupt:
        return 130
    finally:
        if given.room is None and not given.keep:
            shutil.rmtree(room, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
