"""The command line of training and its YAML files: they make a record of settings from a preset, files and flags."""

import contextlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from astra_gym.experiments.config.argparser import CommandParser, unknown
from astra_gym.experiments.config.commands import typed
from astra_gym.experiments.config.devices import resolve_device
from astra_gym.experiments.config.flag_values import as_text, is_text, plain, reader
from astra_gym.experiments.config.listing import listing
from astra_gym.experiments.config.presets import PRESETS
from astra_gym.experiments.config.recipes import fitting, recipe, with_options
from astra_gym.experiments.config.settings import Settings
from astra_gym.experiments.config.superseded import as_written, without_forms
from astra_gym.experiments.config.trust import NAMED, nothing, only_named
from astra_gym.ssl_core.data.datasets import find_dataset
from astra_gym.ssl_core.data.settings import DataSection
from astra_gym.ssl_core.methods import find_method
from astra_gym.ssl_core.methods.settings import SHARED, MethodSection
from astra_gym.ssl_core.safety.sealing import check_yaml
from astra_gym.ssl_core.safety.yaml_files import read_yaml_file
from astra_gym.ssl_core.settings import renamed
from astra_gym.ssl_core.settings.records import SWITCH, Notes, leaves
from astra_gym.ssl_core.utils.files import expanded, resolved
from astra_gym.ssl_core.utils.import_path import located
from astra_gym.ssl_core.utils.messages import brief
from astra_gym.ssl_core.utils.overrides import by_present_names
from astra_gym.ssl_core.utils.registry import pick

CHANGEABLE_ON_RESUME = (
    "device",
    "precision",
    "recompute",
    "compile_blocks",
    "data_dir",
    "classes",
    "cache_dir",
    "keep_data",
    "teacher",
    "agent_from",
)
"""Settings that may change on resume; a new `data_dir`, or list of `classes`, must give the same images."""
EDITED = "--resume RUN --accept_edited_config"
RECORDED = ("dataset", "method", "epochs", "agent", "seed", "progress")
"""Settings in every run's record, including the one that is written last: a record without one was cut short."""
LEAVES = {leaf.name: leaf for leaf in leaves(Settings)}
"""The settings by name."""
TEXTS = tuple(name for name, leaf in LEAVES.items() if is_text(leaf.hint))
OTHER_NAMES = {
    name: (group, option)
    for name, leaf in LEAVES.items()
    for group, dot, option in [leaf.notes.instead.partition(".")]
    if dot
}
"""Settings that have a second name: `reward_cost` is also `reward_weights.cost`."""
SAME = (
    *((name, leaf.notes.instead) for name, leaf in LEAVES.items() if leaf.notes.instead),
    *((f"agent_kwargs.{old}", f"agent_kwargs.{new}") for old, new in renamed.REINFORCE_SETTINGS.items()),
    *((f"method_kwargs.{old}", f"method_kwargs.{new}") for old, new in renamed.ROCL_OPTIONS.items()),
    ("temperature", "method_kwargs.temperature"),
)
"""Pairs of names of the same setting."""
ABOUT = """Train a target network whose attacks an agent chooses, and evaluate it.

# ASTrA on the embedded digits
python experiments/train_agent.py
# another agent and other images, for a short time
python experiments/train_agent.py --agent ppo --dataset cifar10 --data_dir DIR --epochs 5 --limit 2000
# go on with a run that was stopped
python experiments/train_agent.py --resume runs/NAME

A default is overridden by the preset, then the method's recipe, then config files, then flags."""
USAGE = "[--config FILE] [--FLAG VALUE ...], or --resume RUN"


@dataclass(frozen=True, kw_only=True)
class TrainFlags:
    """The flags that are not settings.

    Args:
        resume: run folder to resume, with its own settings.
        accept_edited_config: with --resume: accept a config.yaml that was edited, which is refused otherwise.
        config: YAML file with any of the settings; may be repeated, later files override earlier ones.
        agent_config: YAML file with any of the agent's own settings.
        accept_idle: accept settings that change nothing beside others, which are refused otherwise.
        print_config: print the settings as YAML and exit.
        list: list methods, agents, data sets and everything else that has a name, and exit.
        trust: import the modules that a config file or the resumed run names, which runs their code.
    """

    resume: Annotated[Path | None, Notes(unit="RUN")] = None
    accept_edited_config: Annotated[bool, SWITCH] = False
    config: Annotated[tuple[str, ...], Notes(repeated=True, unit="FILE")] = ()
    agent_config: Annotated[str | None, Notes(unit="FILE")] = None
    accept_idle: Annotated[bool, SWITCH] = False
    print_config: Annotated[bool, SWITCH] = False
    list: Annotated[bool, SWITCH] = False
    trust: Annotated[bool, SWITCH] = False


@dataclass(frozen=True, kw_only=True)
class TrainCommand:
    """All flags of training.

    Args:
        command: flags that are not settings.
        settings: of the run.
    """

    command: TrainFlags
    settings: Settings


@dataclass(frozen=True)
class Invocation:
    """A checked command line.

    Args:
        settings: settings of the run.
        resume: the run folder to resume, None for a new run.
        accept_edited_config: whether that folder's `config.yaml` may differ from what was written.
    """

    settings: Settings
    resume: Path | None = None
    accept_edited_config: bool = False


def parse(
    argv: Sequence[str] | None = None,
    prog: str = "train_agent.py",
    trust: bool | None = None,
    again: str | None = None,
) -> Invocation:
    """Parse the command line: flags override `--config` files, which override the preset, in any order.

    Args:
        argv: the command line.
        prog: the command's name in errors.
        trust: which modules may be imported. True: all. False: none, for a command line that comes from a file. None:
            those that the command line names, and with `--trust` all.
        again: the command with `--trust`, for the error.

    Ends the process with status 2 and one line on the standard error if the command line is wrong, and with status 0
    after `--help`, `--list` and `--print_config`.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = _parser(prog)
    given = parser.given(argv)
    for pair in SAME:
        if all(_holds(given, name) for name in pair):
            parser.error(f"--{pair[0]} and --{pair[1]} are the same: give one of them")
    asked = TrainFlags(**{leaf.name: given.pop(leaf.name) for leaf in leaves(TrainFlags) if leaf.name in given})
    if asked.list:
        print(listing(), end="")
        parser.exit(0)
    try:
        config: dict[str, Any] = {}
        chosen = [given]
        for path in asked.config:
            values = read_yaml(path)
            # settings that a run's record lacks have the defaults of its version; those that a user's own file lacks
            # have the present ones
            if values.keys() >= set(RECORDED):
                values = without_forms(as_written(values), given)
            else:
                chosen.append(values)
            config = {**_below(config, values), **values}
        if asked.agent_config is not None:
            own = _below({"agent_kwargs": read_mapping(asked.agent_config)}, config).get("agent_kwargs", {})
            config["agent_kwargs"] = own | (config.get("agent_kwargs") or {})
        accepting = ["--accept_edited_config"] if asked.accept_edited_config else []
        resuming = argv if asked.resume is None else ("--resume", str(asked.resume), *accepting)
        named = () if trust is False else (*map(given.get, NAMED), *(given.get("reward_weights") or ()))
        again = again or typed("train", *resuming, "--trust")
        with contextlib.nullcontext() if (asked.trust if trust is None else trust) else only_named(named, again):
            if asked.resume is not None:
                invocation = _resumed(parser, asked.resume, config, given, argv, asked.accept_edited_config)
            elif accepting:
                raise ValueError("--accept_edited_config is about the config.yaml of a run: give it with --resume RUN")
            else:
                invocation = Invocation(_settings(parser, config, given, argv))
                invocation.settings.world.check_given(*([] if asked.accept_idle else chosen))
            # settings alone do not import what a dotted path names; a run does import it
            invocation.settings.check_custom()
            invocation.settings.check_method()
        if asked.print_config:
            print(invocation.settings.to_yaml(), end="")
            parser.exit(0)
        resolve_device(invocation.settings.run.device)
    except ValueError as error:
        parser.error(located(error))
    return invocation


@cache
def _parser(prog: str) -> CommandParser[TrainCommand]:
    # a comparison reads a command line for each arm
    return CommandParser("train", TrainCommand, ABOUT, USAGE, prog)


def settings_given(argv: Sequence[str]) -> set[str]:
    """Return the names of the settings that a checked command line gives by its flags and files, by any name.

    Raises:
        ValueError: as `read_yaml`.
    """
    given = _parser("").given(argv)
    records = [given, *map(read_yaml, given.get("config") or ())]
    return {name for record in records for name in _by_own_names(record) if name in LEAVES}


def load(path: Path | str, accept_edited: bool = False) -> Settings:
    """Load the settings in a run's record. The record holds all settings of its time, so a setting that it lacks was
    added later and has its default.

    Args:
        path: the record, `config.yaml`.
        accept_edited: whether it may differ from what was written.

    Raises:
        ValueError: if the file cannot be read, is damaged, edited, empty or cut short, is not YAML, or holds an unknown
            or a bad setting; if the record is incomplete, so that a user's module would be imported.
    """
    if not accept_edited:
        check_yaml(path, f"restore it, or accept the edit by {EDITED}")
    values = read_yaml(path)
    if missing := [name for name in RECORDED if name not in values]:
        what = "is empty" if not values else f"lacks {', '.join(missing[:3])}"
        raise ValueError(f"{path} {what}: expected all settings of the run, restore it from a copy")
    try:
        with nothing(path):
            # a setting that the record lacks was added after the run, and has its default
            written = as_written(values)
            return Settings.of(**_placed({name: written.get(name, leaf.default) for name, leaf in LEAVES.items()}))
    except ValueError as error:
        named = str(error).startswith(str(path))
        raise ValueError(str(error) if named else f"{path}: {error}") from error


def read_mapping(path: Path | str, texts: Sequence[str] = ()) -> dict[str, Any]:
    """Read the mapping in a YAML file; an empty file gives an empty one.

    Args:
        path: the file.
        texts: see `astra_gym.ssl_core.safety.yaml_files.load_yaml`.

    Raises:
        ValueError: if the file cannot be read or is not a YAML mapping.
    """
    values = read_yaml_file(expanded(path), texts)
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds a {type(values).__name__}: expected lines such as 'agent: reinforce'")
    return values


def read_yaml(path: Path | str) -> dict[str, Any]:
    """Read the settings in a YAML file.

    Raises:
        ValueError: if the file cannot be read, is not a YAML mapping, or has an unknown key or a value of the wrong
            type.
    """
    read = {}
    try:
        for name, value in by_present_names(read_mapping(path, TEXTS), renamed.SETTINGS).items():
            if name not in LEAVES:
                raise ValueError(unknown(str(name), LEAVES, "setting"))
            read[name] = plain(_read(name, value))
    except ValueError as error:
        named = str(path) in str(error)
        raise ValueError(str(error) if named else f"{path}: {error}") from error
    return read


def _read(name: str, value: Any) -> Any:
    try:
        return reader(name, LEAVES[name].hint)(value)
    except ValueError as error:
        raise ValueError(f"--{name}: {error}") from error


def _settings(
    parser: CommandParser[TrainCommand], config: Mapping[str, Any], given: Mapping[str, Any], argv: Sequence[str]
) -> Settings:
    """Make settings from the given preset (or the given data set's), the config and the flags; later ones override."""
    chosen = {**config, **given}
    preset = chosen["preset"] if "preset" in chosen else find_dataset(chosen.get("dataset", DataSection.dataset)).preset
    own = recipe(preset, chosen.get("method", MethodSection.method))
    usual = fitting({"preset": preset} | pick(preset, PRESETS, "preset") | own, chosen)
    defaults = {**_below(usual, config), **with_options(own, config)}
    values = _values(parser, _below(defaults, given), argv)
    for name, value in SHARED.items():
        if values[name] is None:
            # written out, so that a record shows what a custom method took
            values[name] = getattr(find_method(values["method"]), name, value)
    return Settings.of(**values)


def _below(settings: Mapping[str, Any], others: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings without those that `others` overrides by another name (see `SAME`)."""
    made = dict(settings)
    for names in SAME:
        for name, other in (names, names[::-1]):
            group, _, option = name.partition(".")
            if _holds(others, other) and _holds(made, name):
                value = made.pop(group)
                if left := {key: kept for key, kept in value.items() if key != option} if option else None:
                    made[group] = left
    return made


def _holds(settings: Mapping[str, Any], name: str) -> bool:
    group, _, option = name.partition(".")
    return option in (settings.get(group) or {}) if option else group in settings


def _by_own_names(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings without second names: `reward_weights.cost` becomes `reward_cost`."""
    made = dict(settings)
    for name, (group, option) in OTHER_NAMES.items():
        options = dict(made.get(group) or {})
        if option in options:
            made |= {name: _read(name, options.pop(option)), group: options or None}
    return made


def _values(parser: CommandParser[TrainCommand], defaults: Mapping[str, Any], argv: Sequence[str]) -> dict[str, Any]:
    """Return the values of all settings: those of the flags, else `defaults`."""
    found = parser.values(argv, {name: _read(name, value) for name, value in defaults.items()})
    return _placed({name: found[name] for name in LEAVES})


def _placed(values: dict[str, Any]) -> dict[str, Any]:
    """Make the settings' paths valid in any folder."""
    for name in ("data_dir", "classes", "cache_dir", "teacher", "init_from", "agent_from"):
        if values[name]:
            # a run may be resumed from another folder
            values[name] = str(resolved(values[name]))
    if values["run_dir"]:
        values["run_dir"] = str(expanded(values["run_dir"]))
    return values


def _resumed(
    parser: CommandParser[TrainCommand],
    run: Path,
    config: Mapping[str, Any],
    given: Mapping[str, Any],
    argv: Sequence[str],
    accept_edited: bool,
) -> Invocation:
    if not (run / "config.yaml").is_file():
        raise ValueError(f"{run} is not a run folder: it has no config.yaml")
    own = _by_own_names(load(run / "config.yaml", accept_edited).flat() | {"run_dir": str(run)})
    before = {**_below(own, config), **config}
    values = _by_own_names(_values(parser, _below(before, given), argv))
    if resolved(values["run_dir"]) == resolved(run):
        values["run_dir"] = str(run)
    if refused := [key for key in own if values[key] != own[key] and key not in CHANGEABLE_ON_RESUME]:
        shown = {key: [brief(as_text(each[key]), 24) for each in (values, own)] for key in refused[:2]}
        listed = ", ".join(f"--{key} {now} (it has {then})" for key, (now, then) in shown.items())
        *others, last = CHANGEABLE_ON_RESUME
        raise ValueError(f"{run} cannot go on with {listed}: only {', '.join(others)} and {last} may change")
    return Invocation(Settings.of(**values), run, accept_edited)
