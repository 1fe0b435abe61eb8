"""Kills and signals at random moments in real processes; what is resumed has to be what was never interrupted."""

import hashlib
import random
import re
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.helpers.tiny_runs import compared
from tests.torture.calling import command
from tests.torture.cases import Case
from tests.torture.curves import curves
from tests.torture.goods import PICTURE_FLAGS, TINY, Goods, within, without
from tests.torture.processes import Ended, Process, run

PROMPT = (signal.SIGKILL, signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PIPE = "closed pipe"
IMPORTS = 4.0
"""Seconds, about, that a process takes before it begins its work."""
STARTING = 0.3
"""Seconds of computing in which Python itself is starting: no program can heed a signal then."""
UNREAD = re.compile(r"(environment|training|state|facts)\.json$|^(parts|states|classifiers)/|^comparison\.yaml$")
"""What tells of the interruption, and is right to differ."""
AGENTS = (
    "--agent=reinforce",
    "--agent=reinforce --env=batch",
    "--agent=fixed",
    "--agent=random --keep_every=2",
    "--agent=bandit",
    "--agent=lints",
    "--agent=schedule",
    "--agent=ppo",
    "--agent=ppo --env=batch --actions=continuous",
    "--agent=a2c",
    "--agent=dqn",
    "--agent=sac --actions=continuous",
    "--agent=td3 --actions=continuous",
    "--agent=trpo --env=batch",
    "--agent=qrdqn",
    "--agent=tqc --actions=continuous",
)
METHODS = (
    "",
    "--method=acl",
    "--method=rocl",
    "--method=dynacl",
    "--method=taro",
    "--method=byol",
    "--method=simsiam",
    "--method=acl-air",
    "--method=cf-amc-ssl --batch_size=2",
    "--method=acl --coreset=rcs --coreset_fraction=0.5 --coreset_warmup=1",
    "--reward_progress=0.5 --reward_cost=0.01",
    "--reward_lookahead=0.5 --lookahead_images=4",
    "--perspective=moebius",
    "--update_chunks=2",
)
MENU = 24
"""Trainings to choose from in a torture: so few that an uninterrupted one serves several cases."""
ALONE = ("--method=simclr", "--method=dynacl++ --agent=fixed", "--method=emp-ssl --batch_size=2 --agent=fixed")


LINES = "--progress=lines"
"""So that there is something to print when the reader has gone."""
RUN = ("run/config.yaml", "run/metrics.jsonl")


@dataclass(frozen=True)
class Work:
    """Something that a user starts, and how it is continued after an interruption.

    Args:
        kind: for the counts.
        name: of the command.
        words: its command line.
        again: the command line that continues it, where there is something to continue.
        result: the folder that it makes, below the present one.
        begun: the file that tells that there is something to continue.
        grows: a file whose lines tell how far it has got.
    """

    kind: str
    name: str
    words: tuple[str, ...]
    again: tuple[str, ...]
    result: str
    begun: str
    grows: str


def trainings(seed: int) -> list[tuple[str, ...]]:
    """The flags of the trainings of a torture: agents with methods, and methods that go with no agent."""
    draw = random.Random(f"{seed}/kills/trainings")
    chosen = [f"{draw.choice(AGENTS)} {draw.choice(METHODS)}" for _ in range(MENU)] + [*ALONE]
    return [tuple(words.split()) for words in chosen]


def work_of(case: Case) -> Work:
    """One of many."""
    draw, goods, again = case.draw, case.goods, ("--resume", "run")
    kind = draw.choices(("train", "train, evaluated", "cache", "evaluate", "compare"), (60, 8, 12, 12, 8))[0]
    if kind.startswith("train"):
        words = draw.choice(trainings(case.seed))
        more = ["--epochs=6", "--eval_epsilons=[8/255]", "--run_dir=run", LINES]
        more += [] if "evaluated" in kind else ["--evaluate=false"]
        return Work(kind, "train", (*without(TINY, [*words, LINES]), *words, *more), again, "run", *RUN)
    if kind == "cache":
        more = [f"--data_dir={goods('pictures')}", "--cache_dir=cache", "--epochs=30", "--evaluate=false"]
        return Work(
            kind, "train", (*without(PICTURE_FLAGS, [LINES]), *more, "--run_dir=run", LINES), again, "run", *RUN
        )
    if kind == "evaluate":
        what = "--protocols slf alf knn --attacks pgd20 autoattack-quick --epsilons 8/255 --epochs 5"
        words = (str(goods("finished") / "run"), *what.split(), "--test_limit=12", "--progress=off", "--out=evaluation")
        return Work(kind, "evaluate", words, words, "evaluation", "", "")
    arms = ("--agents", "reinforce", "fixed", "--seeds", "1", "--jobs", str(draw.choice((1, 2))), "--dir", "comparison")
    sizes = [flag for flag in TINY if not flag.startswith("--progress")]
    words = (*arms, *sizes, "--epochs=3", "--eval_epsilons=[8/255]")
    files = "comparison/comparison.yaml", "comparison/cells/reinforce-seed0/metrics.jsonl"
    return Work(kind, "compare", words, ("--resume", "comparison"), "comparison", *files)


def kill(case: Case) -> None:
    """Some interruptions of one work, then its end, compared with the same without any."""
    work = work_of(case)
    wanted, seconds = reference(case.goods, work)
    folder = case.folder / "work"
    for _ in range(case.draw.choices((1, 2, 3, 4), (30, 30, 25, 15))[0]):
        if _interrupted(case, work, folder, seconds):
            break
    else:
        ended = run(work.name, next_words(work, folder), folder)
        if not _check(case, work, folder, ended):
            return
    compare(case, work, wanted, folder)


def reference(goods: Goods, work: Work) -> tuple[Path, float]:
    """The same work without an interruption, and the seconds that it would take as a process; made once."""
    key = hashlib.sha256(repr((work.name, work.words)).encode()).hexdigest()[:16]
    folder = goods.folder / f"reference-{key}"
    took = folder / "seconds"
    if not took.exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        if work.name == "compare":
            # its fork server must not live in this process
            ended = run(work.name, work.words, folder)
            status, text, seconds = ended.status, ended.text, ended.seconds
        else:
            with within(folder):
                answer = command(work.name, work.words, allowed=[goods.room], limit=300)
            status, text, seconds = answer.status, answer.text, answer.seconds + IMPORTS
        if status != 0:
            raise RuntimeError(f"uninterrupted, it ends with {status}: {shown(work)}: {text[-400:]}")
        took.write_text(f"{seconds}")
    return folder, float(took.read_text())


def shown(work: Work) -> str:
    """The command line, short."""
    return f"{work.name} {' '.join(word for word in work.words if word not in TINY)}"


def next_words(work: Work, folder: Path) -> tuple[str, ...]:
    """What a user types next in a folder: the command that continues, where there is something to continue."""
    return work.again if work.begun and (folder / work.begun).is_file() else work.words


def _interrupted(case: Case, work: Work, folder: Path, seconds: float) -> bool:
    """Starts or continues the work and interrupts it once; whether it has come to its end all the same."""
    draw, words = case.draw, next_words(work, folder)
    piped = work.kind == "train" and draw.random() < 0.12
    number = draw.choices(PROMPT, (40, 20, 20, 20))[0]
    group = number != signal.SIGKILL and draw.random() < 0.5
    process = Process(work.name, words, folder, pipe=piped)
    if piped:
        process.read_lines(draw.randrange(3))
        case.tried[PIPE] += 1
        ended = process.end()
        return _check(case, work, folder, ended, f"{PIPE}, {' '.join(words)}")
    moment = _moment(draw, work, folder, seconds, process)
    process.wait_until(moment)
    computed = process.processor_seconds()
    if not process.alive():
        case.tried["too late"] += 1
        return _check(case, work, folder, process.end())
    process.send(number, group)
    case.tried[f"{number.name}, {work.kind}"] += 1
    if number != signal.SIGKILL and draw.random() < 0.15:
        time.sleep(draw.random() * 0.3)
        process.send(number, group)
        case.tried["a second signal"] += 1
    ended = process.end()
    return _check(case, work, folder, ended, f"{number.name} after {ended.seconds:.2f} s", number, computed < STARTING)


def _moment(draw: random.Random, work: Work, folder: Path, seconds: float, process: Process) -> Callable[[], bool]:
    """When to interrupt: at a random time, or where the work has got to a random place, and a bit later."""
    if draw.random() < 0.45 or not work.grows:
        # a continued work has less left, and what comes too late only costs a case
        at = process.began + draw.random() * seconds
        return lambda: time.monotonic() >= at
    lines = len(_lines(folder / work.grows)) + draw.choice((0, 1, 2, 3, 5, 8, 12, 20))
    if draw.random() < 0.2:
        reached = (folder / work.result / draw.choice(("command.txt", "checkpoints/last.pt", "config.yaml"))).exists
    else:
        reached = lambda: len(_lines(folder / work.grows)) > lines  # noqa: E731
    later = draw.random() * 0.08
    first: list[float] = []

    def now() -> bool:
        if not first and reached():
            first.append(time.monotonic())
        return bool(first) and time.monotonic() >= first[0] + later

    return now


def _lines(file: Path) -> list[bytes]:
    try:
        return file.read_bytes().splitlines()
    except OSError:
        return []


def _check(
    case: Case,
    work: Work,
    folder: Path,
    ended: Ended,
    how: str = "undisturbed",
    number: signal.Signals | None = None,
    starting: bool = False,
) -> bool:
    """Checks how a process ended; whether the work is at its end."""
    where = f"{shown(work)}, {how}: status {ended.status}"
    last = ended.text[-400:]
    if ended.hung:
        case.fail(f"hang: {work.kind}", f"{where}: {last}")
        return False
    if ended.status == 0:
        # whether it is finished indeed is seen in what it has made
        return True
    if number == signal.SIGKILL:
        return False
    if "Traceback" in ended.text or "Exception ignored" in ended.text:
        if not starting:
            case.fail(f"traceback: {number.name if number else how.partition(',')[0]}, {work.kind}", f"{where}: {last}")
        return False
    if number is None and ended.status == 2 and "not empty" in ended.text:
        # the user has to remove it: nothing is lost, but it is in the way
        case.fail(f"a folder that a killed start has left is refused: {work.kind}", f"{where}: {last}")
        shutil.rmtree(folder / work.result)
        return False
    if number is None:
        kind = PIPE if how.startswith(PIPE) else "refused or failed"
        case.fail(f"{kind}: {work.kind}, status {ended.status}", f"{where}: {last}")
        return False
    # what dies by a signal has status 128 + n in a shell; but a program that heeds it says something first
    said = ended.status in (130, 128 + number) or (ended.status == -number and ended.text.strip())
    if not said and not starting:
        kind = "silent end" if ended.status == -number else f"status {ended.status}"
        case.fail(f"{kind}: {number.name}, {work.kind}", f"{where}: {last}")
    return False


def compare(case: Case, work: Work, wanted: Path, folder: Path) -> None:
    """Every number of the result against that of the uninterrupted work."""
    result = folder / work.result
    found = compared(wanted / work.result, result, UNREAD)
    lines = [line for lines in found.values() for line in lines]
    if work.kind.startswith("train") or work.kind == "cache":
        lines += curves(wanted / work.result, result)
    if not found:
        lines.append("nothing to compare")
    if lines:
        case.fail(f"differing bits: {work.kind}", f"{shown(work)}: {len(lines)} differences, first {lines[0]}")
    left = [path.name for path in result.rglob(".*") if path.is_file() and "lock" not in path.name]
    if left:
        case.fail(f"left-overs: {work.kind}", f"{shown(work)}: {', '.join(left[:5])}")
