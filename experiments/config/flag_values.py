"""Values of settings, from flags and from config files: one YAML reads both, and the settings' types check them."""

import copy
import json
import types
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any, Union, get_args, get_origin, get_type_hints

from astra_gym.experiments.config.settings import Settings
from astra_gym.ssl_core.safety.yaml_files import load_yaml
from astra_gym.ssl_core.utils.overrides import fits, written_out

FIELD_TYPES = {
    item.name: item.type.__name__ if isinstance(item.type, type) else str(item.type) for item in fields(Settings)
}
"""Each setting's type, as text."""
HINTS = {name: hint for name, hint in get_type_hints(Settings).items() if name in FIELD_TYPES}
TEXTS = tuple(name for name, kind in FIELD_TYPES.items() if kind.split(" ")[0] == "str")
"""Settings that are text: 010 is a folder's name there, and not ten."""
OPTIONS = tuple(name for name, kind in FIELD_TYPES.items() if kind.startswith("dict"))
"""Settings that are settings by name themselves: `agent_kwargs` and others."""
FLAT = ("reward_weights",)
"""Those whose names may have dots: my_package.my_module:MyTerm."""
SHOWN = 80
"""Characters of a wrong value that an error repeats."""


def expected(name: str) -> str:
    """What a setting takes, for an error."""
    if name in OPTIONS:
        return f"settings by name, such as --{name}.NAME VALUE"
    return FIELD_TYPES[name].replace("tuple[float, ...]", "a list such as [4/255, 8/255]")


def wrong(name: str, given: str) -> ValueError:
    """The error for a value that is not what a setting takes."""
    shown = given if len(given) <= SHOWN else f"{given[:SHOWN]}..."
    return ValueError(f"--{name}: expected {expected(name)}, got {shown!r}")


def read_flags(
    config: Mapping[str, Any], argv: Iterable[str], defaults: Mapping[str, Any]
) -> tuple[list[str], dict[str, Any]]:
    """The settings of a config file and of a command line, made ready for jsonargparse.

    It gets plain JSON and texts, which it cannot read as anything else; it never sees settings by name, in which it
    would take text for YAML once more, and import the class that a `class_path` in them names.

    Args:
        config: settings by name, as a file gives them; they lose against flags.
        argv: the command line.
        defaults: of the settings by name (`OPTIONS`).

    Returns:
        The command line, with every number, truth value and list as JSON, and without the flags of `OPTIONS`; the
        values of `OPTIONS`.

    Raises:
        ValueError: if a value is no YAML, or not of its setting's type.
    """
    options: dict[str, Any] = {name: copy.deepcopy(defaults.get(name)) for name in OPTIONS}
    flags = []
    for name, value in config.items():
        if name in OPTIONS:
            options[name] = by_name(name, value, as_text(value))
        else:
            flags.append(f"--{name}={_plain(name, value, as_text(value))}")
    tokens = list(argv)
    while tokens:
        token = tokens.pop(0)
        flag, equals, text = token.partition("=")
        name, _, path = flag.removeprefix("--").partition(".")
        known = flag.startswith("--") and name in FIELD_TYPES and (name in OPTIONS or not path)
        if known and not equals and not (tokens and _is_value(tokens[0])):
            raise ValueError(f"argument {flag}: expected one argument")
        if not known:
            # jsonargparse knows what to do with it, or what to say of it
            flags.append(token)
            continue
        text = text if equals else tokens.pop(0)
        if name in OPTIONS:
            value = _loaded(flag, text)
            if path or flag.endswith("."):
                options[name] = _with(options[name], [path] if name in FLAT else path.split("."), value, flag)
            else:
                options[name] = by_name(name, value, text)
        else:
            flags.append(f"--{name}={text if name in TEXTS else _plain(name, _loaded(flag, text), text)}")
    return flags, options


def as_text(value: Any) -> str:
    """A plain value as a command line has it: text as it is, all else as JSON."""
    if isinstance(value, str):
        return value
    return json.dumps(value, default=str).replace("Infinity", ".inf").replace("NaN", ".nan")


def _is_value(token: str) -> bool:
    """Whether a token is the value of the flag before it: a number and a list (`- 1`) may begin with a minus."""
    return not token.startswith("-") or token == "-" or " " in token or isinstance(_number(token), int | float)


def _number(token: str) -> Any:
    try:
        return load_yaml(token)
    except ValueError:
        return None


def _loaded(flag: str, text: str) -> Any:
    try:
        return load_yaml(text)
    except ValueError as error:
        shown = text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
        raise ValueError(f"{flag}: {shown!r} is not YAML: {error}; text with such signs needs quotes") from error


def _plain(name: str, value: Any, given: str) -> str:
    """A setting's value as text that any reader of YAML reads alike."""
    if name in TEXTS:
        return given
    if isinstance(value, str):
        # a number in quotes is still the number that was meant
        value = _loaded(f"--{name}", value)
    hint = HINTS[name]
    for kind in get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,):
        value = written_out(value, kind)
    if not fits(value, hint):
        raise wrong(name, given)
    return as_text(value)


def by_name(name: str, value: Any, given: str) -> dict[str, Any] | None:
    """A copy of the value of a setting of `OPTIONS`; raises a ValueError if it is no mapping from names."""
    if value is not None and not (isinstance(value, dict) and all(isinstance(key, str) for key in value)):
        raise wrong(name, given)
    return copy.deepcopy(value)


def _with(options: dict[str, Any] | None, path: Sequence[str], value: Any, flag: str) -> dict[str, Any]:
    """Settings by name with one of them, which may lie deeper, changed."""
    if not all(path):
        raise ValueError(f"{flag}: expected a name behind every dot")
    made: dict[str, Any] = dict(options or {})
    first, *rest = path
    below = made.get(first)
    made[first] = _with(below if isinstance(below, dict) else None, rest, value, flag) if rest else value
    return made
