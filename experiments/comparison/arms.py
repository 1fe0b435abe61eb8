"""The arms of a comparison: each is a command line of `train_agent.py`, run with several seeds."""

import contextlib
import io
import math
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from astra_gym.agents import AGENTS, learns
from astra_gym.experiments.comparison.cell_results import Cell, plain
from astra_gym.experiments.config.cli import parse
from astra_gym.experiments.config.settings import Settings
from astra_gym.experiments.config.trust import named_by, named_in
from astra_gym.experiments.stats import COMPUTE, PRIMARY, Pairs, arms_of
from astra_gym.ssl_core.methods import make_method
from astra_gym.ssl_core.utils.files import resolved
from astra_gym.ssl_core.utils.finite import check_number
from astra_gym.ssl_core.utils.messages import shown
from astra_gym.ssl_core.utils.paths import path_component
from astra_gym.ssl_core.utils.registry import pick

CONTROL = "fixed-max"
"""The agent needed by every comparison of learning agents, to see whether choosing beats attacking strongly."""
OWN_LABEL = re.compile(r"[A-Za-z0-9@._-]+")
PATHS = ("--data_dir", "--classes", "--cache_dir", "--teacher", "--init_from", "--config", "--agent_config")
SET_BY_CELL = (
    "--seed",
    "--run_dir",
    "--progress",
    "--resume",
    "--print_config",
    "--list",
    "--help",
    "--trust",
    "--accept_edited_config",
)
GRID_FLAGS = {"--seed": "--seeds", "--run_dir": "--dir", "--agent": "--agents", "--method": "--methods"}
"""Flags of a single run, and the flags of a comparison that replace them."""
MOST_SEEDS = 10_000
NOT_COMPARED = ("seed", "run_dir", "cache_dir", "progress", "probe_every")
"""Settings that may differ between the cells of an arm."""
SAME_TEST = (
    "dataset",
    "data_dir",
    "classes",
    "limit",
    "test_limit",
    "image_size",
    "eval_epsilons",
    "judge_epsilon",
    "judge_score",
)
"""Settings, beside the probe's, that arms of a method and preset must share so that their accuracies compare."""


@dataclass(frozen=True)
class Arm:
    """An arm of a comparison.

    Args:
        label: name, unique within its method and preset.
        flags: flags of `train_agent.py`, without the seed and the run's folder.
        seeds: number of seeds, from 0.
        settings: settings from the flags, see `comparable`.
        suffix: end of the names of its cells' folders, after the label, if there are several methods or presets.
    """

    label: str
    flags: tuple[str, ...]
    seeds: int
    settings: Mapping[str, Any]
    suffix: str = ""

    @property
    def name(self) -> str:
        """The arm's name among all arms."""
        return self.label + self.suffix

    @property
    def agent(self) -> str:
        """The arm's agent, a name of `agents.AGENTS` or a dotted path."""
        return self.settings["agent"]

    @property
    def learns(self) -> bool:
        """Whether the arm's agent learns, see `agents.learns`."""
        return learns(self.agent)

    def named(self, seed: int) -> str:
        """Return the name of a cell's folder."""
        return f"{self.name}-seed{seed}"


def make_arm(
    label: str,
    flags: Sequence[str],
    seeds: int,
    suffix: str = "",
    trust: bool | None = None,
    again: str | None = None,
    common: Sequence[str] = (),
) -> Arm:
    """Make an arm, checked by the parser of `train_agent.py`.

    Its flags name the custom modules that its runs import, even those named in a file, so that a cell imports the same
    modules as this comparison and no others.

    Args:
        label, flags, seeds, suffix: fields of the arm.
        trust, again: see `astra_gym.experiments.config.cli.parse`.
        common: flags of all arms, for whose errors this arm is not blamed.

    Raises:
        ValueError: if a name, a number of seeds or a flag is wrong, or the run would leave no accuracies to compare.
    """
    check_number("seeds", seeds, 1, MOST_SEEDS, whole=True)
    path_component(f"{label}{suffix}-seed{seeds - 1}", "a cell of the arm")
    try:
        settings = settings_of(flags, trust, again)
    except ValueError as error:
        if common and str(error) == _error_of(common, trust, again):
            raise
        raise ValueError(f"{error} (in the arm {shown(label)})") from error
    if not settings.probe.evaluate:
        raise ValueError("--evaluate=false: a comparison is one of accuracies, leave it out")
    named = named_by(settings.flat())
    if not named_in(named) <= named_in(flags):
        flags = [*flags, *named]
    return Arm(label, tuple(flags), seeds, comparable(settings), suffix)


def settings_of(flags: Sequence[str], trust: bool | None = None, again: str | None = None) -> Settings:
    """Return the settings from flags of `train_agent.py`.

    Args:
        flags: the flags.
        trust, again: see `astra_gym.experiments.config.cli.parse`.

    Raises:
        ValueError: if one is wrong, with the parser's own message.
    """
    shown = io.StringIO()
    try:
        with contextlib.redirect_stderr(shown):
            return parse(flags, prog="", trust=trust, again=again).settings
    except SystemExit:
        raise ValueError(shown.getvalue().strip().removeprefix(": error: ")) from None


def _error_of(flags: Sequence[str], trust: bool | None, again: str | None) -> str | None:
    try:
        settings_of(flags, trust, again)
    except ValueError as error:
        return str(error)
    return None


def comparable(settings: Settings) -> dict[str, Any]:
    """Return settings as plain values, without `NOT_COMPARED`: equal for all cells of an arm."""
    return plain(settings, NOT_COMPARED)


def differences(found: Mapping[str, Any], planned: Mapping[str, Any]) -> list[str]:
    """Return how settings differ from the planned ones, in words."""
    names = [name for name in planned if name not in found or found[name] != planned[name]]
    names += [name for name in found if name not in planned]
    return [f"{name} is {shown(found.get(name))} and {shown(planned.get(name))} in the plan" for name in names]


def base_arms(
    agents: Sequence[str],
    methods: Sequence[str],
    presets: Sequence[str],
    own: Sequence[str],
    flags: Sequence[str],
    seeds: int,
    primary_seeds: int,
    trust: bool | None = None,
    again: str | None = None,
    tests: Pairs = PRIMARY,
) -> list[Arm]:
    """Make the arms of a grid: every agent, and every custom arm, under every method and preset.

    A method without an attack has one arm, since agents make no difference. Suffixes name the method and the preset if
    there are several.

    Args:
        agents: names of `agents.AGENTS`, or dotted paths; may be empty.
        methods, presets: names.
        own: custom arms as `LABEL=FLAGS`; their flags come last.
        flags: flags of all arms.
        seeds: seeds of an arm.
        primary_seeds: seeds of an arm of the tests.
        trust, again: see `astra_gym.experiments.config.cli.parse`.
        tests: pairs of labels to be tested.

    Raises:
        ValueError: if a flag or a label is wrong, two arms have the same name, or arms of a method and preset would be
            tested in different ways.
    """
    check_flags(flags, (*SET_BY_CELL, "--agent", "--method"))
    shared = absolute(flags)
    tested = arms_of(tests)
    arms = []

    def number(label: str) -> int:
        return primary_seeds if label in tested else seeds

    for preset in presets:
        for method in methods:
            traits = make_method(method)
            attacks = traits.attack.exists
            # only some methods have a teacher
            given = shared if "teacher" in traits.networks.others else list(without(shared, "--teacher"))
            for name in traits.idle if len(methods) > 1 else ():
                given = list(without(given, f"--{name}"))
            suffix = f"-{method}" * (len(methods) > 1) + f"-{preset}" * (len(presets) > 1)
            grid = ["--preset", preset, "--method", method]
            made = partial(make_arm, suffix=suffix, trust=trust, again=again, common=[*grid, *given])
            for agent in agents if attacks or not agents else ["none"]:
                label = re.sub(r"[^A-Za-z0-9@._-]+", ".", agent)
                arms.append(made(label, [*grid, "--agent", agent, *given], number(label)))
            for text in own:
                label, words = own_arm(text)
                arms.append(made(label, [*grid, *given, *words], number(label)))
    names = [arm.name for arm in arms]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"two arms are called {', '.join(repeated)}: expected different labels")
    arms = _of_equal_epochs(arms, trust, again)
    _check_same_test(arms)
    return arms


def _of_equal_epochs(arms: Sequence[Arm], trust: bool | None, again: str | None) -> list[Arm]:
    """Return the arms. If some arms of a method and preset leave the last, smaller batch out, all do: otherwise agents
    that learn nothing would make more updates in an epoch. An arm with the flag `--drop_last` keeps its own choice."""
    without_last = {_world(arm) for arm in arms if arm.settings["drop_last"]}
    made = []
    for arm in arms:
        if not arm.settings["drop_last"] and _world(arm) in without_last and "--drop_last" not in map(_name, arm.flags):
            arm = make_arm(arm.label, [*arm.flags, "--drop_last=true"], arm.seeds, arm.suffix, trust, again)
        made.append(arm)
    return made


def _check_same_test(arms: Sequence[Arm]) -> None:
    first: dict[tuple[str, str], Arm] = {}
    for arm in arms:
        other = first.setdefault(_world(arm), arm)
        for name in [*SAME_TEST, *(name for name in arm.settings if name.startswith("probe_"))]:
            if arm.settings[name] != other.settings[name]:
                raise ValueError(
                    f"the arms {other.label} and {arm.label} cannot be compared: --{name} is {other.settings[name]} in "
                    f"the one and {arm.settings[name]} in the other; give it to all arms, outside --arm"
                )


def own_arm(text: str) -> tuple[str, list[str]]:
    """Return the label and the flags of a custom arm, LABEL=FLAGS, with absolute paths.

    Raises:
        ValueError: if it has another form, or a flag is set by the comparison.
    """
    label, equals, line = text.partition("=")
    if not equals or not OWN_LABEL.fullmatch(label):
        raise ValueError(f"--arm {shown(text)}: expected LABEL=FLAGS, the label of letters, digits and @._-")
    if label in AGENTS:
        raise ValueError(
            f"--arm {shown(text)}: {label} is the label of the agent with its own settings, choose another"
        )
    if label.endswith(COMPUTE):
        raise ValueError(f"--arm {shown(text)}: labels that end in {COMPUTE} are those of --equal_compute")
    try:
        words = shlex.split(line)
    except ValueError as error:
        raise ValueError(f"--arm {shown(text)}: {error}") from error
    check_flags(words, SET_BY_CELL, label)
    return label, absolute(words)


def check_flags(flags: Iterable[str], refused: Sequence[str], arm: str = "") -> None:
    """Raise a ValueError if one of the flags, or of those of an arm, is among the refused."""
    for flag in map(_name, flags):
        if flag in refused:
            instead = f": take {GRID_FLAGS[flag]}" if flag in GRID_FLAGS and not arm else ", leave it out"
            instead += f" of the arm {arm}" if arm else ""
            raise ValueError(f"{flag} is set for each run by the comparison{instead}")


def absolute(flags: Iterable[str]) -> list[str]:
    """Return the flags with absolute paths, since a comparison may be resumed from another folder."""
    made, before = [], ""
    for token in flags:
        name, equals, value = token.partition("=")
        if before in PATHS:
            made.append(str(resolved(token)))
        elif name in PATHS and equals:
            made.append(f"{name}={resolved(value)}")
        else:
            made.append(token)
        before = token
    return made


def _name(token: str) -> str:
    return re.split(r"[=.]", token, maxsplit=1)[0]


def ordered(arms: Iterable[Arm]) -> Iterator[tuple[Arm, int]]:
    """Yield arm and seed of every cell, all arms of a seed before the next seed, so that a stopped grid is balanced."""
    arms = list(arms)
    for seed in range(max((arm.seeds for arm in arms), default=0)):
        yield from ((arm, seed) for arm in arms if seed < arm.seeds)


def compute_arms(chosen: Sequence[str], arms: Sequence[Arm], cells: Sequence[Cell], seeds: int) -> list[Arm]:
    """Make arms that spend as many attack gradient steps as the most expensive arm of their method and preset.

    Their epochs are scaled by the ratio of the arms' mean attack steps, and rounded. None is made for an arm that is
    the most expensive, or so near to it that it would get no further epoch, nor for an arm that makes no attack step.

    Args:
        chosen: labels of arms, each under every method and preset.
        arms: arms of the grid.
        cells: all cells of the grid.
        seeds: seeds of an arm.
    """
    spent: dict[tuple[str, str, str], list[int]] = {}
    for cell in cells:
        spent.setdefault((cell.arm, cell.method, cell.preset), []).append(cell.attack_steps)
    mean = {key: sum(steps) / len(steps) for key, steps in spent.items()}
    made = []
    for arm in arms:
        own = mean.get((arm.label, *_world(arm)), 0.0)
        if arm.label not in chosen or not own:
            continue
        rivals = [mean[other.label, *_world(other)] for other in arms if _world(other) == _world(arm)]
        epochs = arm.settings["epochs"]
        longer = math.floor(epochs * max(rivals) / own + 0.5)
        if longer > epochs:
            flags = [*without(arm.flags, "--epochs"), "--epochs", str(longer)]
            made.append(make_arm(arm.label + COMPUTE, flags, seeds, arm.suffix))
    return made


def _world(arm: Arm) -> tuple[str, str]:
    return arm.settings["method"], arm.settings["preset"]


def without(flags: Iterable[str], name: str) -> Iterator[str]:
    """Yield the flags without the flag `name` and its value."""
    before = ""
    for token in flags:
        if _name(token) != name and before != name:
            yield token
        before = token


def check_equal_compute(chosen: Sequence[str], arms: Sequence[Arm]) -> None:
    """Raise a ValueError unless each label is that of an arm that attacks, under at least one method and preset, and
    whose length its epochs decide."""
    table: dict[str, list[Arm]] = {}
    for arm in arms:
        table.setdefault(arm.label, []).append(arm)
    for label in chosen:
        if all(arm.agent == "none" for arm in pick(label, table, "arm")):
            raise ValueError(f"--equal_compute {label}: its method has no attack, whose steps could be made equal")
        if any(arm.settings["passes"] is not None for arm in table[label]):
            raise ValueError(
                f"--equal_compute {label}: its runs end when their --passes are spent, however many epochs they have: "
                "leave one of the two out"
            )
