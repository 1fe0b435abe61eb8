"""Settings of an agent or a method from a command line or a file, with a check of their types."""

import collections.abc
import inspect
import numbers
import re
import sys
import types
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from astra_gym.ssl_core.utils.messages import shown
from astra_gym.ssl_core.utils.registry import pick

Settings = TypeVar("Settings")
FRACTION = re.compile(r"(\d+(?:\.\d+)?)/([1-9]\d*)")
"""A fraction in a user's text: 8/255."""
WORDS = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "text",
    dict: "settings by name",
    type: "a class",
    types.NoneType: "nothing",
}


def by_present_names(given: Mapping[str, Any], renamed: Mapping[str, str]) -> dict[str, Any]:
    """Return values by their present names.

    Args:
        given: values by name, old or new.
        renamed: new names by old ones.

    Raises:
        ValueError: if a value is given by both names.
    """
    for old, new in renamed.items():
        if old in given and new in given:
            raise ValueError(f"{old} is the old name of {new}: give one of them")
    return {renamed.get(name, name): value for name, value in given.items()}


def replaced(settings: Settings, overrides: Mapping[str, Any], whose: str) -> Settings:
    """Return a dataclass of settings with some of them changed.

    Args:
        settings: the default settings; their class may have a table `RENAMED` of new names by old ones, which a
            subclass with a field of an old name does not read so.
        overrides: changed values by name.
        whose: owner of the settings, for the errors: "the agent 'ppo'".

    Raises:
        ValueError: if a name is unknown, or a value has another type than the field or is out of its range.
    """
    hints = _hints(type(settings))
    kinds = {field.name: hints[field.name] for field in fields(settings) if field.init}  # type: ignore[arg-type]
    renamed = {old: new for old, new in getattr(settings, "RENAMED", {}).items() if old not in kinds}
    changed = {}
    for name, value in by_present_names(overrides, renamed).items():
        pick(name, kinds, f"setting of {whose}")
        changed[name] = written_out(value, kinds[name])
        check_type(whose, name, changed[name], kinds[name])
    return replace(settings, **changed)  # type: ignore[type-var]


def _hints(kind: type) -> dict[str, Any]:
    """Return the types of a class's fields, `Any` where an annotation names what only a type checker imports."""
    found: dict[str, Any] = {}
    for each in reversed(kind.__mro__):
        for name, annotation in inspect.get_annotations(each).items():
            alone = types.SimpleNamespace(__annotations__={name: annotation})
            try:
                found |= get_type_hints(alone, vars(sys.modules[each.__module__]))
            except (AttributeError, NameError, TypeError):
                found[name] = Any
    return found


def written_out(value: Any, kind: Any) -> Any:
    """Convert a fraction as text (8/255) to a number if the annotation allows numbers but no text.

    The items of a list are converted too; any other value is returned unchanged.
    """
    if isinstance(value, list | tuple) and get_origin(kind) is tuple:
        parts = get_args(kind)
        kinds = parts[:1] * len(value) if parts[-1] is ... else parts
        if len(value) != len(kinds):
            return value
        return type(value)(written_out(*pair) for pair in zip(value, kinds, strict=True))
    if isinstance(value, str) and (match := FRACTION.fullmatch(value)) and fits(0.5, kind) and not fits(value, kind):
        return quotient(match)
    return value


def quotient(match: re.Match[str]) -> float:
    """Return the number of a match of `FRACTION`."""
    return float(match[1]) / int(match[2])


def check_type(whose: str, name: str, value: object, kind: Any) -> None:
    """Raise a ValueError that names owner and setting unless the value `fits` the annotation."""
    if not fits(value, kind):
        raise ValueError(f"{name} of {whose} is {shown(value)}: expected {in_words(kind)}")


def fits(value: object, kind: Any) -> bool:
    """Whether a value is of an annotated type; annotations that are not understood fit every value.

    An integer fits a float (NaN does not), and a list fits a tuple, since YAML has no tuples; a bool is no number.
    """
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return any(fits(value, part) for part in parts)
    if kind is Any:
        return True
    if origin is Literal:
        return value in parts
    if origin is tuple:
        if not isinstance(value, list | tuple):
            return False
        kinds = parts[:1] * len(value) if parts[-1] is ... else parts
        return len(value) == len(kinds) and all(fits(*pair) for pair in zip(value, kinds, strict=True))
    if origin is collections.abc.Callable:
        return callable(value)
    kind = types.NoneType if kind is None else origin or kind
    if kind in (int, float):
        number = isinstance(value, numbers.Integral if kind is int else numbers.Real)
        return number and not isinstance(value, bool) and value == value and (kind is int or _has_float(value))
    return not isinstance(kind, type) or isinstance(value, kind)


def _has_float(value: Any) -> bool:
    try:
        float(value)
    except OverflowError:
        return False
    return True


def in_words(kind: Any) -> str:
    """Describe an annotated type for an error: "a number or nothing"."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(in_words(part) for part in parts))
    if origin is Literal:
        return " or ".join(map(repr, parts))
    if origin is tuple:
        same = len(set(parts) - {...}) == 1
        listed = f"each {in_words(parts[0])}" if same else ", ".join(map(in_words, parts))
        return f"a list{'' if parts[-1] is ... else f' of {len(parts)}'} ({listed})"
    if origin is collections.abc.Callable:
        return "a function"
    kind = types.NoneType if kind is None else origin or kind
    return WORDS.get(kind, f"a {getattr(kind, '__name__', kind)}")
