"""The check that an object of a JSON or YAML file has a dataclass's fields."""

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from typing import Any, get_args, get_origin, get_type_hints

from astra_gym.ssl_core.utils.messages import few, shown
from astra_gym.ssl_core.utils.overrides import fits, in_words


def check_fields(entry: Any, kind: type, without: Sequence[str] = ()) -> None:
    """Raise a ValueError unless an object has a dataclass's fields, of their types; those in `without` may have any."""
    if not isinstance(entry, dict):
        raise ValueError("expected an object")
    known = {field.name: field.default is MISSING for field in fields(kind)}
    wrong = sorted({name for name, needed in known.items() if needed} - entry.keys() | entry.keys() - known.keys())
    if wrong:
        raise ValueError(f"missing or unknown fields: {few(wrong)}")
    for name, hint in get_type_hints(kind).items():
        if name in entry and name not in without and not _holds(entry[name], hint):
            raise ValueError(f"{name} is {shown(entry[name])}: expected {in_words(hint)}")


def _holds(value: Any, kind: Any) -> bool:
    """Return whether a value from a file, with all its parts, is of an annotated type."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Mapping:
        pairs = [zip(pair, parts, strict=True) for pair in value.items()] if isinstance(value, dict) else []
        return isinstance(value, dict) and all(_holds(one, part) for pair in pairs for one, part in pair)
    if origin is Sequence:
        return isinstance(value, list) and all(_holds(one, parts[0]) for one in value)
    return fits(value, kind)
