"""Full disks: on a disk of random size a work says so and how to continue; with more space it is as it should be."""

import functools
import os
import re
from pathlib import Path

from astra_gym.ssl_core.models.checkpoint import load_checkpoint
from tests.torture.calling import Answer, command, faults
from tests.torture.cases import Case
from tests.torture.goods import PICTURE_FLAGS, TINY, without
from tests.torture.kills import RUN, Work, compare, next_words, reference, shown, trainings
from tests.torture.no_space import can_mount, full_below, small_disk
from tests.torture.processes import run

PLENTY = 256 << 20
NO_SPACE = re.compile(r"no space|disk is full|disk full|quota", re.IGNORECASE)
HOW = re.compile(r"--resume|resume|repeat|again|continue|another --", re.IGNORECASE)
may_mount = functools.cache(can_mount)


def work_of(case: Case) -> Work:
    """What is written: mostly trainings; also an evaluation, decoded images, an export and a report."""
    goods, draw = case.goods, case.draw
    kind = draw.choices(("train", "train, evaluated", "cache", "evaluate", "export", "report"), (50, 12, 10, 14, 7, 7))[
        0
    ]
    if kind.startswith("train"):
        words = draw.choice(trainings(case.seed)[:8])
        more = ["--epochs=4", "--eval_epsilons=[8/255]", "--run_dir=run", "--keep_every=1"]
        more += [] if "evaluated" in kind else ["--evaluate=false"]
        return Work(kind, "train", (*without(TINY, [*words, *more]), *without(words, more), *more), RESUME, "run", *RUN)
    if kind == "cache":
        more = [f"--data_dir={goods('pictures')}", "--cache_dir=cache", "--epochs=4", "--evaluate=false"]
        return Work(kind, "train", (*PICTURE_FLAGS, *more, "--run_dir=run"), RESUME, "run", *RUN)
    run_folder = str(goods("finished") / "run")
    if kind == "evaluate":
        what = "--protocols slf knn --attacks pgd20 --epsilons 8/255 --epochs 1 --test_limit=12 --progress=off"
        words = (run_folder, *what.split(), "--out=evaluation")
        return Work(kind, "evaluate", words, words, "evaluation", "", "")
    words = (run_folder, "--out=made/encoder.pt") if kind == "export" else (run_folder, "--out=made")
    return Work(kind, kind, words, words, "made", "", "")


RESUME = ("--resume", "run")


def fill(case: Case) -> None:
    """A work on a full disk, and again with space."""
    work = work_of(case)
    wanted, _ = reference(case.goods, work)
    size = sum(path.stat().st_size for path in (wanted / work.result).rglob("*") if path.is_file())
    size = int(size * case.draw.random() ** 1.5 * 1.1)
    disk = case.folder / "disk"
    if may_mount() and case.draw.random() < 0.7:
        # a process can be full at places that a test does not know of
        process = case.draw.random() < 0.3
        case.tried[f"tmpfs, {work.kind}"] += 1
        with small_disk(disk, max(4096, size)) as resize:
            answer = _process(case, work, disk) if process else _call(case, work, disk)
            _judge(case, work, disk, answer, f"{size} bytes of tmpfs")
            resize(PLENTY)
            _again(case, work, wanted, disk, answer)
        return
    case.tried[f"failing writes, {work.kind}"] += 1
    disk.mkdir()
    with full_below(disk, size):
        answer = _call(case, work, disk)
    _judge(case, work, disk, answer, f"writes fail after {size} bytes")
    _again(case, work, wanted, disk, answer)


def _call(case: Case, work: Work, disk: Path) -> Answer:
    os.chdir(disk)
    try:
        return command(work.name, next_words(work, disk), allowed=[case.goods.room])
    finally:
        os.chdir(case.folder)


def _process(case: Case, work: Work, disk: Path) -> Answer:
    # what it prints goes elsewhere, as to a terminal
    ended = run(work.name, next_words(work, disk), disk, outputs=case.folder / "outputs")
    return Answer(status=ended.status, out=ended.out, err=ended.err)


def _judge(case: Case, work: Work, disk: Path, answer: Answer, how: str) -> None:
    """What a command on a full disk has to say and to leave."""
    where = f"{shown(work)}, {how}: status {answer.status}"
    last = answer.text[-400:]
    if answer.status == 0:
        case.tried["there was space enough"] += 1
        return
    case.tried["the disk was full"] += 1
    found = faults(answer)
    case.fail_all([(f"{kind} ({work.kind})", text) for kind, text in found], where)
    if any(kind.startswith(("traceback", "hang")) for kind, _ in found):
        return
    begun = bool(work.begun) and (disk / work.begun).is_file()
    kept = any(path.is_file() for path in (disk / work.result).rglob("*"))
    # with nothing begun it is bad input: another place would do
    if answer.status != 1 and (begun or (work.kind == "evaluate" and kept)):
        case.fail(f"status {answer.status} on a full disk ({work.kind})", f"{where}: {last}")
    if not NO_SPACE.search(answer.err):
        case.fail(f"no word of the space ({work.kind})", f"{where}: {last}")
    if not HOW.search(answer.err):
        case.fail(f"no word of how to continue ({work.kind})", f"{where}: {last}")
    if begun:
        try:
            load_checkpoint(disk / "run" / "checkpoints" / "last.pt", "run")
        except ValueError as error:
            case.fail(f"no whole checkpoint ({work.kind})", f"{where}: {error}")


def _again(case: Case, work: Work, wanted: Path, disk: Path, answer: Answer) -> None:
    """With space: to the end, and compared."""
    if answer.status != 0:
        words = next_words(work, disk)
        answer = _call(case, work, disk)
        if answer.status == 2 and "not empty" in answer.err:
            case.fail(f"a folder that a full disk has left is refused ({work.kind})", answer.err)
            return
        if answer.status != 0:
            case.fail(f"not continued ({work.kind})", f"{shown(work)}, then {' '.join(words)}: {answer.text[-400:]}")
            return
    compare(case, work, wanted, disk)
