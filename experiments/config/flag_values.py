"""Values of flags and of config files: the same YAML for both, checked against the fields' types."""

import argparse
import copy
import json
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Union, get_args, get_origin

from astra_gym.ssl_core.safety.yaml_files import load_yaml
from astra_gym.ssl_core.utils.files import expanded
from astra_gym.ssl_core.utils.overrides import fits, in_words, written_out

SHOWN = 80
"""Most characters of a wrong value that an error repeats."""


class WrongValueError(ValueError, argparse.ArgumentTypeError):
    """A value that does not fit its field; a parser puts the flag before the message."""


def kinds_of(hint: Any) -> tuple[Any, ...]:
    """Return the members of a union, or the type itself."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def is_text(hint: Any) -> bool:
    """Return whether a field is text, where 010 is a folder's name and not a number."""
    return str in kinds_of(hint)


def is_by_name(hint: Any) -> bool:
    """Return whether a field holds settings by name, such as `agent_kwargs`."""
    return any(get_origin(kind) in (dict, Mapping) for kind in kinds_of(hint))


def is_list(hint: Any) -> bool:
    """Return whether a field holds a list."""
    return any(get_origin(kind) is tuple for kind in kinds_of(hint))


def reader(name: str, hint: Any, what: str = "") -> Callable[[Any], Any]:
    """Make the function that reads a field's values: texts of flags, values of YAML files, and values already read.

    Args:
        name: name of the field.
        hint: type of the field. Text stays text (`null` is None if the type has None), `~` in a path is the home
            folder, all else is YAML 1.2; 8/255 is a number where one is expected.
        what: description for errors, if the type does not say enough: "radius such as 8/255".

    Returns:
        A function that raises a `WrongValueError`.
    """
    kinds = kinds_of(hint)
    optional = types.NoneType in kinds

    def read(given: Any) -> Any:
        if optional and (given is None or (given == "null" and isinstance(given, str))):
            return None
        if Path in kinds and isinstance(given, str | Path):
            try:
                return expanded(given)
            except ValueError as error:
                raise WrongValueError(str(error)) from error
        value = loaded(given) if isinstance(given, str) and not is_text(hint) else given
        if is_by_name(hint) and not (is_list(hint) and isinstance(value, list | tuple)):
            return _by_name(name, hint, value, given)
        for kind in kinds:
            value = written_out(value, kind)
        if not fits(value, hint):
            raise wrong(name, hint, given, what)
        return _cast(value, kinds)

    return read


def wrong(name: str, hint: Any, given: Any, what: str = "") -> WrongValueError:
    """Return the error for a value that does not fit its field."""
    text = as_text(given)
    shown = text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
    return WrongValueError(f"expected {f'a {what}' if what else expected(name, hint)}, got {shown!r}")


def expected(name: str, hint: Any) -> str:
    """Return the description of a field's values, for an error."""
    if is_by_name(hint) and is_list(hint):
        return "a list such as [0, 4/255, 8/255], or {from: 0, to: 8/255, by: 4/255}"
    if is_by_name(hint):
        return f"settings by name, such as --{name}.NAME VALUE"
    fractions = tuple[float, ...]
    words = {fractions: "a list such as [4/255, 8/255]", types.NoneType: "null"}
    return " or ".join(words[kind] if kind in words else in_words(kind) for kind in kinds_of(hint))


def as_text(value: Any) -> str:
    """Return a plain value as text for a command line: text unchanged, all else as JSON."""
    if isinstance(value, str):
        return value
    return json.dumps(value, default=str).replace("Infinity", ".inf").replace("NaN", ".nan")


def loaded(text: str) -> Any:
    """Return the value of a flag's text.

    Raises:
        WrongValueError: if it is no YAML.
    """
    try:
        return load_yaml(text)
    except ValueError as error:
        shown = text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
        raise WrongValueError(f"{shown!r} is not YAML: {error}; text with such signs needs quotes") from error


def is_number(text: str) -> bool:
    """Return whether a word of a command line is a number; it may begin with a minus without being a flag."""
    try:
        return isinstance(load_yaml(text), int | float)
    except ValueError:
        return False


def with_one(options: Any, path: Sequence[str], value: Any) -> dict[str, Any]:
    """Return settings by name with one of them, which may be nested, changed; a list or None is no settings."""
    made: dict[str, Any] = dict(options) if isinstance(options, Mapping) else {}
    first, *rest = path
    made[first] = with_one(made.get(first), rest, value) if rest else value
    return made


def plain(value: Any) -> Any:
    """Return the value in a record for a parser's value."""
    if isinstance(value, types.MappingProxyType):
        return dict(value)
    return tuple(value) if isinstance(value, list) else value


def _by_name(name: str, hint: Any, value: Any, given: Any) -> Mapping[str, Any]:
    """Return a copy of a mapping from names that jsonargparse takes for a plain value; it would look into a dict."""
    if isinstance(value, types.MappingProxyType):
        return value
    if not (isinstance(value, dict) and all(isinstance(key, str) for key in value)):
        raise wrong(name, hint, given)
    return types.MappingProxyType(copy.deepcopy(value))


def _cast(value: Any, kinds: Sequence[Any]) -> Any:
    """Turn an integer into a float and a list into a tuple, if the type expects that."""
    if isinstance(value, list | tuple):
        [kind] = [kind for kind in kinds if get_origin(kind) is tuple]
        parts = get_args(kind)
        parts = parts[:1] * len(value) if parts[-1] is ... else parts
        return tuple(_cast(part, (own,)) for part, own in zip(value, parts, strict=True))
    return float(value) if type(value) is int and float in kinds and int not in kinds else value
