"""Cases, their failures, and the process that runs a part's cases one after another."""

import json
import os
import random
import shutil
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from tests.torture.calling import CONTROL
from tests.torture.goods import Goods


class Failure(NamedTuple):
    """What a case found: its kind, which is the same for the same fault, and what happened."""

    kind: str
    text: str


@dataclass
class Case:
    """One case of a part; all that is random in it comes from its part, its seed and its number.

    Args:
        part: its name.
        seed: of the whole torture.
        number: of the case.
        goods: what it begins with.
    """

    part: str
    seed: int
    number: int
    goods: Goods
    tried: Counter[str] = field(default_factory=Counter)
    """What was done, by kind."""
    failures: list[Failure] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.draw = random.Random(f"{self.seed}/{self.part}/{self.number}")
        self.folder = self.goods.room / "cases" / f"{self.part}-{self.number}"
        """Of its own: the present folder while it runs."""

    def fail(self, kind: str, text: str) -> None:
        """Something is not as it should be."""
        self.failures.append(Failure(_plain(kind), _plain(text)[:600]))

    def fail_all(self, found: Iterable[tuple[str, str]], where: str) -> None:
        """The same for several, with what they have in common."""
        for kind, text in found:
            self.fail(kind, f"{where}: {text}")


def _plain(text: str) -> str:
    """On one line, without what a terminal would obey or could not print."""
    text = " ".join(text.split()).encode("utf-8", "backslashreplace").decode("utf-8")
    return CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


@dataclass(frozen=True)
class Part:
    """A part of the torture.

    Args:
        name: of it.
        share: of the time, in [0, 1].
        run: a case.
        patience: seconds after which a case hangs so that its process has to be killed.
    """

    name: str
    share: float
    run: Callable[[Case], None]
    patience: float = 600.0


def run_case(part: Part, goods: Goods, seed: int, number: int, keep: bool = False) -> Case:
    """Runs a case in its folder, which is removed afterwards unless it is to be kept."""
    case = Case(part.name, seed, number, goods)
    shutil.rmtree(case.folder, ignore_errors=True)
    case.folder.mkdir(parents=True)
    before = os.getcwd()
    os.chdir(case.folder)
    try:
        part.run(case)
    except Exception as error:
        # a fault of the harness, or of what it stands on, is a finding too, and no reason to stop
        last = traceback.extract_tb(error.__traceback__)[-1]
        kind = f"harness: {type(error).__name__} at {Path(last.filename).name}:{last.lineno}"
        case.fail(kind, str(error))
    finally:
        os.chdir(before)
        if not keep:
            shutil.rmtree(case.folder, ignore_errors=True)
    return case


def run_cases(part: Part, goods: Goods, seed: int, first: int, seconds: float, journal: Path) -> None:
    """Runs cases until the time is over, at least one, and writes down each when it begins and when it has ended.

    Args:
        part: which.
        goods: what they begin with.
        seed: of the whole torture.
        first: number of the first case.
        seconds: after which no further case begins.
        journal: a file of lines, to be read by `read_journal`, also if this process dies.
    """
    deadline = time.monotonic() + seconds
    number = first
    with journal.open("a", encoding="utf-8") as file:

        def note(entry: dict[str, Any]) -> None:
            file.write(json.dumps(entry) + "\n")
            file.flush()

        while True:
            began = time.monotonic()
            note({"began": number})
            case = run_case(part, goods, seed, number)
            spent = time.monotonic() - began
            note({"case": number, "seconds": spent, "tried": case.tried, "failures": case.failures})
            number += 1
            if time.monotonic() >= deadline:
                return


@dataclass
class Counts:
    """What the cases of a part came to.

    Args:
        cases: that were run to their end, or died.
        seconds: that they took.
        tried: what was done, by kind.
        failures: by kind: the numbers of the cases and the first one's text.
    """

    cases: int = 0
    seconds: float = 0.0
    tried: Counter[str] = field(default_factory=Counter)
    failures: dict[str, tuple[list[int], str]] = field(default_factory=dict)

    def add(self, number: int, seconds: float, tried: dict[str, int], failures: Iterable[Iterable[str]]) -> list[str]:
        """Counts a case; returns the kinds of failure that are new."""
        self.cases += 1
        self.seconds += seconds
        self.tried.update(tried)
        new = []
        for kind, text in failures:
            if kind not in self.failures:
                self.failures[kind] = ([], text)
                new.append(kind)
            if number not in self.failures[kind][0]:
                self.failures[kind][0].append(number)
        return new

    @property
    def failed(self) -> int:
        """Cases with a failure."""
        return len({number for numbers, _ in self.failures.values() for number in numbers})


class Journal:
    """Reads what `run_cases` writes, as it grows.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.running: int | None = None
        self.since = time.monotonic()
        self._read = 0

    def new(self) -> list[dict[str, Any]]:
        """The cases that have ended since the last call."""
        if not self.path.is_file():
            return []
        text = self.path.read_text(encoding="utf-8")
        whole = text[self._read : text.rfind("\n") + 1]
        self._read += len(whole)
        ended = []
        for line in whole.splitlines():
            entry = json.loads(line)
            if "began" in entry:
                self.running, self.since = entry["began"], time.monotonic()
            else:
                self.running = None
                ended.append(entry)
        return ended
