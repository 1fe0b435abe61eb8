"""Flipped bits: one random bit of a file that is read back. It has to be noticed, or must change nothing."""

import io
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml

from astra_gym.agents import REINFORCE, Exp3Bandit, RandomAgent, Sb3Agent
from astra_gym.ssl_core.data.datasets import load_dataset
from astra_gym.ssl_core.models.checkpoint import load_network
from astra_gym.ssl_core.utils.files import replacing
from tests.helpers.states import same
from tests.helpers.tiny_runs import compared
from tests.torture.calling import Answer, called, command, faults
from tests.torture.cases import Case
from tests.torture.goods import ATTACKED, EVALUATION

LOGS = re.compile(r"(metrics\.jsonl|command\.txt|environment\.json|events\.out\.tfevents[^/]*)$")
"""Damage of these is reported, and never blocks a checkpoint that is whole."""
REFUSED = re.compile(r"(\.pt|\.zip|\.u8|config\.yaml|comparison\.yaml|parts/.*\.json|states/.*\.json)$")
"""Damage of these is refused."""
UNREAD = re.compile(r"(training|environment)\.json$|(^|/)figures/|evaluation/")
"""What differs between a run that was resumed and one that was not, and is right to."""
AGENTS: dict[str, Callable[[Path], Any]] = {
    "reinforce.zip": REINFORCE.load,
    "random.zip": RandomAgent.load,
    "bandit.zip": Exp3Bandit.load,
    "ppo.zip": Sb3Agent.load,
}
KNN = "--protocols knn --attacks none --limit 16 --test_limit 8 --progress off"


class Reader(NamedTuple):
    """Something that reads a folder.

    Args:
        good: of `astra_gym.tests.torture.goods`.
        name: of what is done, for the counts.
        files: pattern of the files that it is about; those of them are damaged that it reads.
        act: does it in the present folder, which holds a copy of the good thing; gets the flipped file.
        logs_may_refuse: whether damage of a log may end it.
        given: whether it reads the file that it gets, and no other.
    """

    good: str
    name: str
    files: re.Pattern[str]
    act: Callable[[Case, Path], Answer]
    logs_may_refuse: bool = True
    given: bool = False


def _command(name: str, *words: str) -> Callable[[Case, Path], Answer]:
    return lambda case, file: command(name, words, allowed=[case.goods.room])


def _publish(*words: str) -> Callable[[Case, Path], Answer]:
    def act(case: Case, file: Path) -> Answer:
        Path("README.md").write_text("No tables.\n", encoding="utf-8")
        given = [*words, "--results", "results", "--readme", "README.md"]
        return command("publish", given, allowed=[case.goods.room])

    return act


def _loaded(load: Callable[[Case, Path], Any]) -> Callable[[Case, Path], Answer]:
    return lambda case, file: called(lambda: load(case, file), allowed=[case.goods.room])


def _again(case: Case, file: Path) -> Answer:
    words = ["run", *EVALUATION.split(), "--out", "evaluation"]
    if "classifiers" in file.parts:
        # a classifier is read where a part that needs it is missing
        for part in Path("evaluation/parts").rglob("part.json"):
            part.unlink()
    return command("evaluate", words, allowed=[case.goods.room])


def _cached(case: Case, file: Path) -> Any:
    pictures = str(case.goods("pictures"))
    split = load_dataset("folder", data_dir=pictures, image_size=8, cache_dir=str(Path("cache").resolve()))
    return {"train": split.train.images.clone(), "test": split.test.images.clone()}


_NETWORK = _loaded(lambda case, file: load_network(file)[0].state_dict())
_AGENT = _loaded(lambda case, file: AGENTS[file.name](file).state_dict())
RUN = re.compile(r"^run/")
READERS = (
    Reader("stopped", "resume", RUN, _command("train", "--resume", "run"), logs_may_refuse=False),
    Reader("finished", "report", RUN, _command("report", "run")),
    Reader("stopped", "network", re.compile(r"\.pt$"), _NETWORK, given=True),
    Reader("finished", "export", RUN, _command("export", "run", "--out", "encoder.pt")),
    Reader("finished", "evaluate", RUN, _command("evaluate", "run", *KNN.split(), "--out", "evaluation")),
    Reader("agents", "agent", re.compile(r"\.zip$"), _AGENT, given=True),
    Reader("cache", "cache", re.compile(r"^cache/"), _loaded(_cached)),
    Reader("exports", "network", re.compile(r"ours"), _NETWORK, given=True),
    Reader(
        "exports",
        "evaluate",
        re.compile(r"torchvision"),
        _command(
            "evaluate",
            *("torchvision.pt", "--format", "torchvision", "--dataset", "digits", "--image_size", "8"),
            *("--out", "evaluation", *KNN.split()),
        ),
    ),
    Reader("evaluation", "repeat", re.compile(r"^evaluation/(?!classifiers)"), _again),
    Reader("evaluation", "attack again", re.compile(r"^evaluation/classifiers/"), _again),
    Reader("evaluation", "report", re.compile(r"^evaluation/[^/]*$"), _command("report", "evaluation")),
    Reader("evaluation", "publish", re.compile(r"^evaluation/[^/]*$"), _publish("evaluation", "--group", "x")),
    Reader(
        "attacked",
        "continue",
        re.compile(r"^evaluation/states/"),
        _command("evaluate", "run", *ATTACKED.split(), "--out", "evaluation"),
    ),
    Reader(
        "finished",
        "along",
        re.compile(r"^run/(checkpoints/epoch|config)"),
        _command(
            "evaluate",
            *("run", "--every", "1", "--epochs", "1", "--epsilons", "8/255", "--limit", "16", "--test_limit", "8"),
            *("--progress", "off", "--out", "along"),
        ),
    ),
    Reader("finished", "publish", RUN, _publish("run")),
    Reader("comparison", "resume", re.compile(r"^comparison/"), _command("compare", "--resume", "comparison")),
    Reader("comparison", "report", re.compile(r"^comparison/[^/]*$"), _command("report", "comparison")),
    Reader("comparison", "publish", re.compile(r"^comparison/[^/]*$"), _publish("comparison")),
)


def flip(case: Case) -> None:
    """A flipped bit, and a reader of its file."""
    reader = READERS[case.number % len(READERS)]
    groups = _control(case, reader)
    case.goods.copy(reader.good, case.folder / "x")
    name = case.draw.choice(groups[case.draw.choice(sorted(groups))])
    file = case.folder / "x" / name
    before = file.read_bytes()
    after, damage = _damaged(case, before, name)
    _write(file, after)
    answer = _read(case, reader, file)
    label = _label(name)
    case.tried[f"{damage.partition(' ')[0]} of {label}, {reader.name}"] += 1
    where = f"{damage} of {name}, {reader.name}"
    if crashed := faults_of(answer):
        case.fail_all([(f"{kind} ({label}, {reader.name})", text) for kind, text in crashed], where)
        return
    verdict = _verdict(reader, file, name, answer, before, after)
    case.tried[f"it was {verdict}"] += 1
    if verdict.startswith("not "):
        case.fail(f"{verdict}: {label}, {reader.name}", f"{where}: {answer.text[-300:]}")
    elif answer.status == 0 and reader.name == "resume" and reader.good == "stopped":
        _compare(case, where, label)


def _control(case: Case, reader: Reader) -> dict[str, list[str]]:
    """The files that a reader reads of an undamaged copy, by kind, so that a kind of many files has no more weight.

    It has to succeed there, or what it says of damage means nothing. Done once in a room.
    """
    known = case.goods.room / f"control-{reader.good}-{reader.name}.json"
    if not known.exists():
        good = case.goods(reader.good)
        case.goods.copy(reader.good, case.folder / "control")
        names = [path.relative_to(good).as_posix() for path in sorted(good.rglob("*")) if path.is_file()]
        names = [name for name in names if reader.files.search(name) and (good / name).stat().st_size]
        answer = _read(case, reader, case.folder / "control" / names[0])
        if faults_of(answer) or answer.status not in (0, None) or answer.error is not None:
            raise RuntimeError(f"undamaged, {reader.good} is refused: {answer.crash} {answer.text[-400:]}")
        if not reader.given:
            names = [name for name in names if str((case.folder / "control" / name).resolve()) in answer.read]
        shutil.rmtree(case.folder / "control")
        with replacing(known) as temporary:
            temporary.write_text(json.dumps(names), encoding="utf-8")
    groups: dict[str, list[str]] = {}
    for name in json.loads(known.read_text(encoding="utf-8")):
        groups.setdefault(_label(name), []).append(name)
    return groups


def _label(name: str) -> str:
    """A file's name without what differs from one of its kind to the next."""
    name = re.sub(r"events\.out\.tfevents[^/]*", "events", name)
    name = re.sub(r"[0-9a-f]{16,}", "KEY", name)
    return re.sub(r"(?<=cells/)[^/]+", "CELL", re.sub(r"epoch-\d+", "epoch-N", name))


def _damaged(case: Case, data: bytes, name: str) -> tuple[bytes, str]:
    draw = case.draw
    if draw.random() < 0.12 and not LOGS.search(name):
        length = 0 if draw.random() < 0.3 else draw.randrange(len(data))
        return data[:length], f"truncation at {length} bytes"
    edge = min(64, len(data))
    position = draw.choice((draw.randrange(edge), len(data) - 1 - draw.randrange(edge)))
    if draw.random() < 0.85:
        position = draw.randrange(len(data))
    bit = draw.randrange(8)
    changed = bytearray(data)
    changed[position] ^= 1 << bit
    return bytes(changed), f"bit {bit} of byte {position}"


def _write(file: Path, data: bytes) -> None:
    """In place: size and time of modification are what a decaying disk would leave."""
    status = file.stat()
    file.write_bytes(data)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


def _read(case: Case, reader: Reader, file: Path) -> Answer:
    os.chdir(case.folder / file.relative_to(case.folder).parts[0])
    try:
        return reader.act(case, file)
    finally:
        os.chdir(case.folder)


def faults_of(answer: Answer) -> list[tuple[str, str]]:
    """What is wrong with an answer, of a command or of a call: a documented refusal is not."""
    if answer.status is None and isinstance(answer.error, ValueError):
        return []
    if answer.status is None and answer.error is None and not answer.breaches:
        return []
    if answer.status is None and not answer.crash:
        answer.crash = type(answer.error).__name__
    return [entry for entry in faults(answer) if not entry[0].startswith("message")]


def _verdict(reader: Reader, file: Path, name: str, answer: Answer, before: bytes, after: bytes) -> str:
    """What became of the damage; what begins with `not` must not be."""
    said = answer.text
    # a page marks what it cannot trust, and the cells of a comparison have logs of their own
    written = (page for folder in file.parents[:4] for page in (*folder.glob("report.md"), *folder.glob("logs/*.log")))
    said += "".join(page.read_text("utf-8", errors="replace") for page in written)
    known = bool(REFUSED.search(name) or LOGS.search(name) or name.endswith(".json"))
    named = file.name in said or (not known and file.stem in said)
    if answer.error is not None or answer.status not in (0, None):
        if not named and known:
            return "not named in its refusal"
        if LOGS.search(name) and not reader.logs_may_refuse:
            return "not only reported: a damaged log blocks it"
        return "refused"
    if str(file.resolve()) not in answer.read and not named:
        return "never read"
    content = _content(file, before), _content(file, after)
    if content[0] is not None and content[1] is not None and same(*content):
        return "without effect"
    if not named:
        return "not noticed"
    return "not refused, only reported" if REFUSED.search(name) else "reported"


def _content(file: Path, data: bytes) -> Any:
    """What a file says, where it can be read at all."""
    try:
        if file.suffix in (".pt", ".zip"):
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        text = data.decode("utf-8")
        if file.suffix == ".json":
            return json.loads(text)
        if file.suffix == ".yaml":
            return yaml.safe_load(text)
    except Exception:
        return None
    return None


def _compare(case: Case, where: str, label: str) -> None:
    """A run that was resumed in spite of damage has to be the run that it would have been."""
    damaged = {"metrics.jsonl"} if LOGS.search(label) else set()
    found = compared(case.goods("resumed") / "run", case.folder / "x" / "run", UNREAD)
    lines = [line for name, lines in found.items() if Path(name).name not in damaged for line in lines]
    if lines:
        case.fail(f"differing bits after a resume: {label}", f"{where}: {lines[0]}")
