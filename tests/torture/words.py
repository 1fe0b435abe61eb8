"""Random command lines, YAML files and calls of the interface: a plain answer to every one of them."""

import functools
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from astra_gym.__main__ import main as installed_main
from astra_gym.experiments.config.commands import COMMANDS
from astra_gym.ssl_core.settings.records import Leaf, leaves
from tests.helpers.commands import RECORDS
from tests.torture.calling import Answer, called, command, faults, place_of
from tests.torture.cases import Case
from tests.torture.flips import KNN
from tests.torture.goods import TINY
from tests.torture.interface import call_interface
from tests.torture.values import ODD_TEXTS, PATHS, make_paths, path_for, text_for
from tests.torture.yaml_files import REFUSED, TRAPS, document

LIMIT = 90.0
COSTLY = {
    *(
        "epochs",
        "limit",
        "test_limit",
        "width",
        "projector_hidden",
        "projector_dim",
        "image_size",
        "batch_size",
        "neck",
    ),
    *("steps", "arch", "probe_epochs", "probe_batch_size", "method", "method_kwargs", "agent_kwargs", "post_kwargs"),
    *("lookahead_images", "config", "agent_config", "resume", "preset", "evaluate", "controls", "schedule"),
    *("coreset_kwargs", "perspective_kwargs", "eval_epsilons", "warmup_epochs", "coreset_every", "update_chunks"),
}
"""What a training's length hangs on: there are no random values of these where a command really trains."""


class Flag(NamedTuple):
    """A flag of a command: its name, the type of its value as text, its choices, and whether it takes several."""

    name: str
    kind: str
    choices: tuple[str, ...] = ()
    many: bool = False


@functools.cache
def flags_of(name: str) -> tuple[Flag, ...]:
    """The flags of a command, from its own record."""
    return tuple(_flag(leaf) for leaf in leaves(RECORDS[name]) if not leaf.notes.positional)


def _flag(leaf: Leaf) -> Flag:
    notes = leaf.notes
    if notes.switch:
        return Flag(leaf.name, "switch")
    kind = leaf.hint.__name__ if isinstance(leaf.hint, type) else str(leaf.hint)
    if notes.nargs is not None:
        kind = kind.removeprefix("tuple[")
    return Flag(leaf.name, "path" if "Path" in kind else kind, tuple(notes.choices), notes.nargs is not None)


def speak(case: Case) -> None:
    """Something that somebody might type, write into a file, or call."""
    ways, weights = zip(*WAYS.items(), strict=True)
    [way] = case.draw.choices(ways, weights)
    case.tried[way.__name__.strip("_").replace("_", " ")] += 1
    way(case)


def words_for(draw: random.Random, flag: Flag, odd: float = 0.5) -> list[str]:
    """A flag with a value, in one of the forms that are typed."""
    form = draw.random()
    if flag.kind == "switch":
        return [f"--{flag.name}={draw.choice(('true', '', '1'))}"] if form < 0.1 else [f"--{flag.name}"]
    if form < 0.03:
        return [f"--{flag.name}"]
    if form < 0.06:
        return [
            draw.choice((f"-{flag.name}", f"--{flag.name[:-1]}", f"--{flag.name}.x.y=1", f"--{flag.name.upper()}=1"))
        ]
    values = [_value(draw, flag, odd) for _ in range(draw.choice((1, 1, 2, 3)) if flag.many else 1)]
    if len(values) == 1 and draw.random() < 0.5:
        return [f"--{flag.name}={values[0]}"]
    return [f"--{flag.name}", *values]


def _value(draw: random.Random, flag: Flag, odd: float) -> str:
    if flag.choices and draw.random() > odd:
        return draw.choice(flag.choices)
    if flag.choices:
        near = draw.choice(flag.choices)
        return draw.choice((near.upper(), near + "x", near[:-1], *ODD_TEXTS))
    return path_for(draw) if flag.kind == "path" else text_for(draw, flag.name, flag.kind, odd)


def _some(draw: random.Random, flags: Sequence[Flag], odd: float = 0.4) -> list[str]:
    """Some flags, and sometimes words that belong nowhere."""
    words = [word for _ in range(draw.choice((1, 1, 2, 3, 5))) for word in words_for(draw, draw.choice(flags), odd)]
    if draw.random() < 0.08:
        words.insert(draw.randrange(len(words) + 1), draw.choice((*ODD_TEXTS, path_for(draw))))
    return words


def _ask(case: Case, name: str, words: Sequence[str]) -> Answer:
    """Calls a command in a folder with things of all kinds, and judges its answer."""
    answer = command(name, words, allowed=allowed(case), limit=LIMIT)
    judge(case, name, words, answer)
    return answer


def allowed(case: Case) -> list[Path]:
    """Where a call may write: in the case's own folder, and where temporary files and caches belong."""
    return [case.folder, *(case.goods.room / name for name in ("tmp", "home", "config"))]


def judge(case: Case, name: str, words: Sequence[str], answer: Answer) -> None:
    """Whether a command answered as a command has to."""
    paths = [part for word in words for part in (word, word.partition("=")[2]) if part in PATHS]
    shown = " ".join(repr(word if len(word) < 80 else word[:60] + "...") for word in words)
    case.fail_all(faults(answer, paths), f"{name} {shown}")
    if Path("marker").exists():
        case.fail(f"code was run ({name})", shown)


def _train_settings(case: Case) -> None:
    words = [*_some(case.draw, flags_of("train")), "--print_config"]
    answer = _ask(case, "train", words)
    if answer.status == 0 and any(word in ("--evaluate=off", "--epochs=010", "--epochs=1:30") for word in words):
        text = answer.out
        if "evaluate: false" in text and "--evaluate=off" in words:
            case.fail("a flag is read as YAML 1.1: off is false", " ".join(words))
        if "epochs: 8\n" in text or "epochs: 90\n" in text:
            case.fail("a flag is read as YAML 1.1: a number", " ".join(words))


def _train(case: Case) -> None:
    flags = [flag for flag in flags_of("train") if flag.name not in COSTLY]
    words = [*TINY, "--run_dir=new", *_some(case.draw, flags, odd=0.3), "--limit=26", "--epochs=1", "--evaluate=false"]
    _ask(case, "train", words)


def _train_resume(case: Case) -> None:
    draw = case.draw
    if draw.random() < 0.3:
        case.goods.copy("finished", case.folder / "x")
        (case.folder / "x" / "run").rename("run")
    words = ["--resume", path_for(draw), *(_some(draw, flags_of("train")) if draw.random() < 0.4 else [])]
    _ask(case, "train", [*words, "--evaluate=false"] if draw.random() < 0.5 else words)


def _yaml_file(case: Case) -> None:
    draw = case.draw
    trap: Any = None
    if draw.random() < 0.4:
        content, trap = draw.choice(TRAPS)
    else:
        content = document(draw)
    data = content if isinstance(content, bytes) else content.encode("utf-8")
    Path("given.yaml").write_bytes(data)
    answer = _ask(case, "train", ["--config", "given.yaml", "--print_config"])
    shown = repr(data[:100])
    if trap == REFUSED and answer.status == 0:
        case.fail(f"YAML: accepted {shown[:40]}", f"--config of {shown}")
    elif callable(trap) and answer.status is not None and not trap(answer.status, answer.out):
        case.fail(f"YAML: misread {shown[:40]}", f"--config of {shown}: {answer.text[-200:]}")


def _agent_file(case: Case) -> None:
    draw = case.draw
    text = draw.choice(("learning_rate: 1e-3\n", "gamma: off\n", "learning_rate: 1e-3\nlearning_rate: 1\n", ""))
    Path("agent.yaml").write_text(
        text + document(draw).decode("utf-8", "replace")[:200], encoding="utf-8", errors="replace"
    )
    agent = draw.choice(("reinforce", "ppo", "bandit", "fixed"))
    _ask(
        case,
        "train",
        [f"--agent={agent}", "--agent_config", draw.choice(("agent.yaml", path_for(draw))), "--print_config"],
    )


def _compare(case: Case) -> None:
    draw = case.draw
    mixed = [*flags_of("compare"), *draw.sample(flags_of("train"), 5)]
    if draw.random() < 0.1:
        case.goods.copy("comparison", case.folder / "x")
        _ask(case, "compare", ["--resume", draw.choice(("x/comparison", "x", path_for(draw)))])
        return
    # the folder is a file: no grid is ever begun
    _ask(case, "compare", [*_some(draw, mixed), "--dir", "nothing"])


def _with_run(case: Case) -> None:
    case.goods.copy("finished", case.folder / "x")
    (case.folder / "x" / "run").rename("run")


def _evaluate(case: Case) -> None:
    draw = case.draw
    _with_run(case)
    source = "run" if draw.random() < 0.6 else path_for(draw)
    flags = [
        flag for flag in flags_of("evaluate") if flag.name not in ("everything", "health", "every", "out", "shifts")
    ]
    words = [source, *_some(draw, flags, odd=0.45), *KNN.split(), "--epochs", "1", "--out", "made"]
    _ask(case, "evaluate", words)


def _export(case: Case) -> None:
    draw = case.draw
    _with_run(case)
    source = draw.choice(("run", "run/checkpoints/epoch-0001.pt", path_for(draw)))
    out = draw.choice(("new.pt", "new/x.pt", path_for(draw)))
    _ask(case, "export", [source, "--out", out, *(_some(draw, flags_of("export")) if draw.random() < 0.5 else [])])


def _report(case: Case) -> None:
    draw = case.draw
    if draw.random() < 0.3:
        _with_run(case)
    paths = [path_for(draw) for _ in range(draw.choice((0, 1, 1, 2)))]
    _ask(case, "report", [*paths, *(_some(draw, flags_of("report")) if draw.random() < 0.4 else []), "--out", "page"])


def _publish(case: Case) -> None:
    draw = case.draw
    if draw.random() < 0.3:
        _with_run(case)
    Path("README.md").write_text(draw.choice(("No tables.\n", "<!-- table x -->\n", "")), encoding="utf-8")
    paths = [path_for(draw) for _ in range(draw.choice((0, 1, 2)))]
    # the last ones count: never the project's own
    places = ["--results", "kept", "--readme", draw.choice(("README.md", "absent/README.md"))]
    _ask(case, "publish", [*paths, *(_some(draw, flags_of("publish")) if draw.random() < 0.6 else []), *places])


def _benchmark(case: Case) -> None:
    # no rounds: it is always refused before anything is measured
    _ask(case, "benchmark", [*_some(case.draw, flags_of("benchmark")), "--repeats", case.draw.choice(("0", "-1", "x"))])


def _installed(case: Case) -> None:
    draw = case.draw
    name = draw.choice((*COMMANDS, "--help", "--version", "-h", "trian", *ODD_TEXTS))
    # without more words `compare` and `train` work for minutes
    least = [] if name not in ("compare", "train") else ["--seeds", "0"]
    words = [name, *draw.choice((least, ["--help"], ["--resume", path_for(draw)], ["--bogus"]))]
    answer = called(lambda: installed_main(words), allowed=allowed(case), limit=LIMIT)
    if isinstance(answer.error, SystemExit):
        answer.status = int(answer.error.code or 0)
    elif answer.error is None:
        answer.status = answer.value
    else:
        answer.crash = answer.crash or place_of(answer.error)
    judge(case, "astra-gym", words, answer)


def _interface(case: Case) -> None:
    call_interface(case, allowed(case))


WAYS: dict[Callable[[Case], None], float] = {
    _train_settings: 30,
    _train: 4,
    _train_resume: 4,
    _yaml_file: 20,
    _agent_file: 3,
    _compare: 8,
    _evaluate: 8,
    _export: 6,
    _report: 4,
    _publish: 4,
    _benchmark: 4,
    _installed: 2,
    _interface: 18,
}


def speak_among_things(case: Case) -> None:
    """`speak` in a folder with things of all kinds."""
    make_paths(case.folder)
    speak(case)
