"""Hostile folders: nothing is written, deleted or imported outside, nothing hangs, and the answer is plain."""

import hashlib
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from astra_gym.experiments.comparison.cell_results import read_comparison, summarize
from astra_gym.ssl_core.data.datasets import load_dataset
from astra_gym.ssl_core.models.checkpoint import kept_encoders, load_network
from astra_gym.ssl_core.models.foreign import load_foreign
from tests.torture.calling import Answer, Hang, called, command, faults
from tests.torture.cases import Case
from tests.torture.flips import AGENTS, KNN
from tests.torture.goods import EVALUATION, PICTURE_FLAGS
from tests.torture.interface import faults_of_call
from tests.torture.mutations import DECOY, mutate_file, mutate_pictures, replace_entry

LIMIT = 60.0
MARK = """\
from pathlib import Path

Path({mark!r}).write_text("imported")


class Build:
    inner = None
"""
WRITTEN = re.compile(r"\.(json|jsonl|yaml|pt|zip|txt|u8)$|tfevents")
"""Files that a stranger writes otherwise."""


class Target(NamedTuple):
    """A good thing that is made hostile, and what reads it.

    Args:
        good: of `astra_gym.tests.torture.goods`.
        inside: the folder or file of it that is given to the readers.
        weight: how often.
        readers: by name; each works in the present folder.
    """

    good: str
    inside: str
    weight: float
    readers: dict[str, Callable[[Case], Answer]]


def _command(name: str, *words: str) -> Callable[[Case], Answer]:
    return lambda case: command(name, words, allowed=allowed(case), limit=LIMIT)


def _call(function: Callable[[], Any]) -> Callable[[Case], Answer]:
    return lambda case: called(function, allowed=allowed(case), limit=LIMIT)


def _publish(case: Case) -> Answer:
    Path("README.md").write_text("No tables.\n", encoding="utf-8")
    return command("publish", ["x", "--results", "kept", "--readme", "README.md"], allowed=allowed(case), limit=LIMIT)


def allowed(case: Case) -> list[Path]:
    """Where a reader may write: not where the victim is."""
    return [case.folder / "here", *(case.goods.room / name for name in ("tmp", "home", "config"))]


_KNN = (*KNN.split(), "--out", "made")
RUN = {
    "resume": lambda case: command("train", ["--resume", "x"], allowed=allowed(case), limit=LIMIT / 2),
    "report": _command("report", "x"),
    "evaluate": _command("evaluate", "x", *_KNN),
    "evaluate in place": _command("evaluate", "x", *KNN.split()),
    "along": _command("evaluate", "x", "--every", "1", "--epochs", "1", *_KNN),
    "export": _command("export", "x", "--out", "made.pt"),
    "publish": _publish,
    "load_network": _call(lambda: load_network("x")),
    "kept_encoders": _call(lambda: kept_encoders(Path("x"))),
    "summarize": _call(lambda: summarize(Path("x"))),
}
COMPARISON = {
    "resume": _command("compare", "--resume", "x"),
    "report": _command("report", "x"),
    "publish": _publish,
    "read_comparison": _call(lambda: read_comparison("x/comparison.json")),
}
EVALUATED = {
    "report": _command("report", "x"),
    "publish": _publish,
}
PICTURES = {
    "load_dataset": _call(lambda: load_dataset("folder", data_dir="x", image_size=8)),
    "cached": _call(lambda: load_dataset("folder", data_dir="x", image_size=8, cache_dir="cache")),
    "train": _command(
        *("train", *PICTURE_FLAGS, "--data_dir=x", "--epochs=1", "--evaluate=false", "--run_dir=new"),
    ),
}
FILES = {
    "load_network": _call(lambda: load_network("x.pt")),
    "load_foreign": _call(lambda: load_foreign("x.pt", format="torchvision")),
    "evaluate": _command(
        *("evaluate", "x.pt", "--format", "torchvision", "--dataset", "digits", "--image_size", "8", *_KNN),
    ),
}
TARGETS = (
    Target("finished", "run", 22, RUN),
    Target("old", "v0_1/run", 20, RUN),
    Target("comparison", "comparison", 12, COMPARISON),
    Target("old", "v0_1/comparison", 12, COMPARISON),
    Target(
        "evaluation",
        "evaluation",
        10,
        {**EVALUATED, "repeat": lambda case: _repeat(case)},
    ),
    Target("old", "v0_1/evaluation", 5, EVALUATED),
    Target("pictures", "", 9, PICTURES),
    Target("exports", "ours.pt", 3, FILES),
    Target("exports", "torchvision.pt", 3, FILES),
    *(Target("agents", name, 2, {"load": _call(lambda name=name: AGENTS[name](Path("x.zip")))}) for name in AGENTS),
)


def _repeat(case: Case) -> Answer:
    run = str(case.goods("evaluation") / "run")
    words = [run, *EVALUATION.split(), "--out", "x"]
    return command("evaluate", words, allowed=allowed(case), limit=LIMIT)


def attack(case: Case) -> None:
    """A hostile thing, and a reader."""
    draw = case.draw
    [target] = draw.choices(TARGETS, [target.weight for target in TARGETS])
    # what resumes does most with what it finds
    reader = draw.choices(list(target.readers), [3 if name == "resume" else 1 for name in target.readers])[0]
    here, victim = case.folder / "here", case.folder / "victim"
    here.mkdir()
    # the second has the name that a comparison's cell would have
    for folder in (victim, case.folder / "victim-seed0", here / "mine-seed0"):
        (folder / "inner").mkdir(parents=True)
        (folder / "precious.txt").write_text("precious\n", encoding="utf-8")
        (folder / "inner" / "more.bin").write_bytes(bytes(range(256)))
    (here / f"{DECOY}.py").write_text(MARK.format(mark=str(case.folder / "here" / "imported")), encoding="utf-8")
    source = case.goods(target.good) / target.inside
    thing = here / f"x{source.suffix if source.is_file() else ''}"
    if source.is_dir():
        shutil.copytree(source, thing, symlinks=True)
        # a user's own picture, where ours are
        (thing / "figures").mkdir(exist_ok=True)
        (thing / "figures" / "precious.txt").write_text("precious\n", encoding="utf-8")
    else:
        shutil.copyfile(source, thing)
    done = "; ".join(_mutated(case, target, thing, victim) for _ in range(draw.choice((1, 1, 2))))
    case.tried[f"{target.inside or target.good}, {reader}"] += 1
    where = f"{target.good} {target.inside}, {reader}: {done}"
    before = _outside(case)
    metrics = thing / "metrics.jsonl"
    size = metrics.stat().st_size if metrics.is_file() else 0
    own = thing / "figures" / "precious.txt"
    kept = own.is_file() and not (thing / "figures").is_symlink()
    os.chdir(here)
    try:
        answer = target.readers[reader](case)
    finally:
        os.chdir(case.folder)
    label = f"{target.inside or target.good}, {reader}"
    if changed := before ^ _outside(case):
        case.fail(f"changed outside: {label}", f"{where}: {', '.join(name for name, _ in sorted(changed))}")
    if (here / "imported").exists():
        case.fail(f"imported what the file names: {label}", where)
    if (here / "marker").exists():
        case.fail(f"code was run: {label}", where)
    if kept and not own.is_file():
        case.fail(f"removed a file of the user's: {label}", where)
    found = faults_of_call(answer) if answer.status is None and not answer.crash else faults(answer, [str(victim)])
    if isinstance(answer.error, Hang) and metrics.is_file() and metrics.stat().st_size != size:
        # it is no mistake to train
        case.tried["it trained on"] += 1
        return
    named = (kind if kind.startswith(("traceback", "interface:")) else f"{kind} ({label})" for kind, _ in found)
    case.fail_all(zip(named, (text for _, text in found), strict=True), where)


def _outside(case: Case) -> set[tuple[str, str]]:
    """All of the user's that lies near the hostile thing."""
    own = {("mine", name, what) for name, what in listing(case.folder / "here" / "mine-seed0")}
    around = {(name, what) for name, what in listing(case.folder) if not name.startswith("here/")}
    return around | {(f"{where}/{name}", what) for where, name, what in own}


def _mutated(case: Case, target: Target, thing: Path, victim: Path) -> str:
    draw = case.draw
    if target.readers is PICTURES:
        return mutate_pictures(draw, thing, victim) if (thing / "cats" / "00.png").is_file() else "nothing"
    if thing.is_file():
        return mutate_file(draw, thing, victim) if draw.random() < 0.85 else replace_entry(draw, thing, victim)
    if not thing.is_dir():
        return "nothing"
    entries = [path for path in sorted(thing.rglob("*")) if path.name != "precious.txt"]
    files = [path for path in entries if path.is_file() and not path.is_symlink() and WRITTEN.search(path.name)]
    if not files:
        return "nothing"
    if draw.random() < 0.25:
        return replace_entry(draw, draw.choice(entries), victim)
    top = [path for path in files if len(path.relative_to(thing).parts) <= 2]
    file = draw.choice(top if top and draw.random() < 0.7 else files)
    try:
        return mutate_file(draw, file, victim)
    except (ValueError, TypeError, KeyError, IndexError, RuntimeError):
        # a second mutation may meet what the first has left
        return "nothing"


def listing(folder: Path) -> set[tuple[str, str]]:
    """Every entry of a folder with a digest of what it is."""
    found = set()
    for path in sorted(folder.rglob("*")):
        what = os.readlink(path) if path.is_symlink() else ""
        if path.is_file() and not path.is_symlink():
            what = hashlib.sha256(path.read_bytes()).hexdigest()
        found.add((str(path.relative_to(folder)), what))
    return found
