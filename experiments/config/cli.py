"""The command line and the YAML file, by jsonargparse over `Settings`, with errors of one line."""

import argparse
import contextlib
import difflib
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NoReturn

from jsonargparse import ArgumentParser, set_loader

from astra_gym.experiments.config.commands import typed
from astra_gym.experiments.config.devices import resolve_device
from astra_gym.experiments.config.flag_values import FIELD_TYPES, OPTIONS, TEXTS, by_name, read_flags, wrong
from astra_gym.experiments.config.listing import listing
from astra_gym.experiments.config.recipes import recipe, with_options
from astra_gym.experiments.config.settings import PRESETS, Settings
from astra_gym.experiments.config.superseded import as_written, without_forms
from astra_gym.experiments.config.trust import named_in, nothing, only_named
from astra_gym.ssl_core.data.datasets import find_dataset
from astra_gym.ssl_core.safety.sealing import check_yaml
from astra_gym.ssl_core.safety.yaml_files import load_yaml, read_yaml_file
from astra_gym.ssl_core.utils.files import expanded, resolved
from astra_gym.ssl_core.utils.messages import brief, said, short
from astra_gym.ssl_core.utils.registry import pick

SWITCHES = ("print_config", "list", "trust", "accept_edited_config")
"""Flags without a value that are no settings."""
CHANGEABLE_ON_RESUME = ("device", "precision", "recompute", "data_dir", "cache_dir", "keep_data", "teacher")
"""Of `data_dir` the place alone: the images have to be the same."""
EDITED = "--resume RUN --accept_edited_config"
RECORDED = ("dataset", "method", "epochs", "agent", "seed", "progress")
"""Settings that every record of a run has, the last one among them: a record that lacks some of them was cut short."""
WITHOUT = {
    item.name: list(item.default) if isinstance(item.default, tuple) else item.default for item in fields(Settings)
}
"""Every setting as it is where nothing is said of it."""
YAML = "yaml-1.2"
set_loader(YAML, load_yaml, (ValueError,))


@dataclass(frozen=True)
class Invocation:
    """What a command line asks for.

    Args:
        settings: of the run.
        resume: the run folder to go on with, None for a new run.
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
    """The command line: preset < `--config` files < flags, wherever they stand.

    Args:
        argv: the command line.
        prog: what it is called in errors.
        trust: whether every module may be imported that is named, here or in a file; by default those that are named
            here, and the others with `--trust`. False for a command line that stands in a file itself.
        again: the command that trusts, for the error.

    Ends the process with status 2 and one line on the standard error if anything is wrong with it, and with status 0
    after `--help` and `--print_config`.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = _parser(prog)
    flags = [f"--{name}" for name in (*FIELD_TYPES, "resume", "config", "agent_config", *SWITCHES, "help")]
    _check_names(map(_flag, (token for token in argv if re.match("--.", token))), flags, "flag", parser.error)
    peek = argparse.ArgumentParser(prog=prog, add_help=False, allow_abbrev=False)
    peek.error = parser.error  # type: ignore[method-assign]
    for name in ("preset", "dataset", "agent", "method", "env", "coreset", "resume", "agent_config"):
        peek.add_argument(f"--{name}")
    peek.add_argument("--config", action="append", default=[])
    for name in SWITCHES:
        peek.add_argument(f"--{name}", action="store_true")
    early = peek.parse_known_args(argv)[0]
    if early.list:
        print(listing(), end="")
        parser.exit(0)
    try:
        config: dict[str, Any] = {}
        for path in early.config:
            values = read_yaml(path)
            # the record of a run stays what it was; what a file of a user's own leaves out is as it is now
            config |= without_forms(as_written(values), vars(early)) if values.keys() >= set(RECORDED) else values
        if early.agent_config is not None:
            config["agent_kwargs"] = read_mapping(early.agent_config) | (config.get("agent_kwargs") or {})
        flagged = {key: getattr(early, key) for key in ("preset", "dataset", "method")}
        given = config | {key: value for key, value in flagged.items() if value is not None}
        trusted = early.trust if trust is None else trust
        named = () if trust is False else named_in(argv)
        accepting = ["--accept_edited_config"] if early.accept_edited_config else []
        resuming = argv if early.resume is None else ("--resume", early.resume, *accepting)
        again = again or typed("train", *resuming, "--trust")
        with contextlib.nullcontext() if trusted else only_named(named, again):
            if early.resume is not None:
                invocation = _resumed(parser, expanded(early.resume), config, argv, early.accept_edited_config)
            elif accepting:
                raise ValueError("--accept_edited_config is about the config.yaml of a run: give it with --resume RUN")
            else:
                invocation = Invocation(_settings(parser, config, argv, given))
                invocation.settings.check_given()
            # settings alone do not import what a dotted path names; a run does
            invocation.settings.check_custom()
            invocation.settings.check_method()
        if early.print_config:
            print(invocation.settings.to_yaml(), end="")
            parser.exit(0)
        resolve_device(invocation.settings.device)
    except ValueError as error:
        parser.error(str(error))
    return invocation


class _Parser(ArgumentParser):
    """jsonargparse, with errors of one line."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        # jsonargparse spreads a bad value over up to seven lines; the flag, the type and the value say it all.
        if match := re.search(r'Parser key "(\w+)":.*(?:Given value|Got value): (.*)', message, re.DOTALL):
            message = str(wrong(match[1], match[2].strip()))
        if not self.exit_on_error:
            raise argparse.ArgumentError(None, short(message)) from ex
        self.exit(2, f"{said(self.prog, message)}\n")


def load(path: Path | str, accept_edited: bool = False) -> Settings:
    """The settings in the record of a run, which holds all that there were: one that it lacks is younger, and the run
    was made without it.

    Args:
        path: the record, `config.yaml`.
        accept_edited: whether it may differ from what was written.

    Raises:
        ValueError: if the file cannot be read, is damaged, edited, empty or cut short, is not YAML, or holds an unknown
            or a bad setting, or one that only an import of a user's module would make a record.
    """
    if not accept_edited:
        check_yaml(path, f"restore it, or accept the edit by {EDITED}")
    values = read_yaml(path)
    if missing := [name for name in RECORDED if name not in values]:
        what = "is empty" if not values else f"lacks {', '.join(missing[:3])}"
        raise ValueError(f"{path} {what}: expected all settings of the run, restore it from a copy")
    try:
        with nothing(path):
            return _settings(_parser(exit_on_error=False), WITHOUT | as_written(values), [])
    except (argparse.ArgumentError, ValueError) as error:
        named = str(error).startswith(str(path))
        raise ValueError(str(error) if named else f"{path}: {error}") from error


def _parser(prog: str = "train_agent.py", exit_on_error: bool = True) -> _Parser:
    parser = _Parser(
        prog=prog,
        usage="%(prog)s [--config FILE] [--FLAG VALUE ...], or %(prog)s --resume RUN",
        description="Trains a target network whose attacks an agent chooses, and evaluates it.",
        exit_on_error=exit_on_error,
        print_config=None,
        parser_mode=YAML,
    )
    parser.add_argument("--resume", metavar="RUN", help="run folder to go on with; its settings stay as they are")
    parser.add_argument(
        "--accept_edited_config",
        action="store_true",
        help="with --resume: go on with a config.yaml that was edited, which is refused otherwise",
    )
    parser.add_argument("--config", metavar="FILE", action="append", help="YAML file with any of the settings below")
    parser.add_argument("--agent_config", metavar="FILE", help="YAML file with any of the agent's own settings")
    parser.add_argument("--print_config", action="store_true", help="print the settings as YAML and exit")
    parser.add_argument("--list", action="store_true", help="list methods, agents and data sets, and exit")
    what = "import the modules that a config file or the resumed run names, which runs their code"
    parser.add_argument("--trust", action="store_true", help=what)
    parser.add_class_arguments(Settings)
    return parser


def read_mapping(path: Path | str, texts: Sequence[str] = ()) -> dict[str, Any]:
    """The mapping in a YAML file, empty for an empty file.

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
    """The settings in a YAML file, as they stand there.

    Raises:
        ValueError: if the file cannot be read, is not a YAML mapping, or has an unknown key.
    """
    values = read_mapping(path, TEXTS)

    def fail(message: str) -> NoReturn:
        raise ValueError(f"{path}: {message}")

    _check_names(map(str, values), FIELD_TYPES, "setting", fail)
    for name in set(OPTIONS) & values.keys():
        by_name(name, values[name], str(values[name]))
    return values


def _flag(token: str) -> str:
    """The flag of a command-line token: `--agent_kwargs` of `--agent_kwargs.gamma=0`."""
    return re.split(r"[=.]", token, maxsplit=1)[0]


def _check_names(given: Iterable[str], known: Iterable[str], what: str, fail: Callable[[str], NoReturn]) -> None:
    names = {name.lstrip("-"): name for name in known}
    for name in given:
        if name not in names.values():
            nearest = difflib.get_close_matches(name.lstrip("-"), names, n=1)
            hint = f"; did you mean {names[nearest[0]]}?" if nearest else ": see --help"
            fail(f"unknown {what} {brief(name)}{hint}")


def _settings(
    parser: _Parser, config: Mapping[str, Any], argv: Sequence[str], given: Mapping[str, Any] | None = None
) -> Settings:
    """Settings from the preset that is given (or the given data set's), the config and the flags, in this order."""
    given = config if given is None else given
    dataset = given.get("dataset", "digits")
    preset = given["preset"] if "preset" in given else find_dataset(dataset).preset
    own = recipe(str(preset), str(given.get("method", Settings.method)))
    # what a file of a user's own leaves out is the recipe's; a run's record is complete
    config = with_options(own, config) if given is not config else config
    defaults = {"preset": preset} | pick(preset, PRESETS, "preset") | own
    return Settings(**_values(parser, defaults, config, argv))


def _values(
    parser: _Parser, defaults: Mapping[str, Any], config: Mapping[str, Any], argv: Sequence[str]
) -> dict[str, Any]:
    # As flags before the others, a file's values pass the same checks and lose against the same names.
    flags, options = read_flags(config, argv, defaults)
    parser.set_defaults({name: value for name, value in defaults.items() if name not in OPTIONS})
    values = vars(parser.parse_args(flags)) | options
    for name in ("data_dir", "cache_dir", "teacher"):
        if values[name]:
            # a run may be resumed from another folder
            values[name] = str(resolved(values[name]))
    if values["run_dir"]:
        values["run_dir"] = str(expanded(values["run_dir"]))
    return {name: values[name] for name in FIELD_TYPES}


def _resumed(
    parser: _Parser, run: Path, config: Mapping[str, Any], argv: Sequence[str], accept_edited: bool
) -> Invocation:
    if not (run / "config.yaml").is_file():
        raise ValueError(f"{run} is not a run folder: it has no config.yaml")
    own = asdict(load(run / "config.yaml", accept_edited)) | {"run_dir": str(run)}
    values = _values(parser, own, config, argv)
    if resolved(values["run_dir"]) == resolved(run):
        values["run_dir"] = str(run)
    if refused := [key for key in values if values[key] != own[key] and key not in CHANGEABLE_ON_RESUME]:
        listed = ", ".join(f"--{key} {brief(values[key], 40)} (it has {brief(own[key], 40)})" for key in refused[:3])
        *others, last = CHANGEABLE_ON_RESUME
        raise ValueError(f"{run} cannot go on with {listed}: only {', '.join(others)} and {last} may change")
    return Invocation(Settings(**values), run, accept_edited)
