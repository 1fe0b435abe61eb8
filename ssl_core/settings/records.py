"""Typed records of settings: facts about their fields, and records that are composed of smaller ones."""

import dataclasses
import functools
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, is_dataclass
from typing import Annotated, Any, Self, TypeVar, get_args, get_origin, get_type_hints

from astra_gym.ssl_core.utils.import_path import is_dotted
from astra_gym.ssl_core.utils.registry import pick

Record = TypeVar("Record")


@dataclass(frozen=True)
class Notes:
    """Facts about a field beyond its type, for its check and for the command line, as an annotation:
    `Annotated[int, Notes(unit="PIXELS")]`.

    Args:
        section: section of the help; empty: in a larger record, the section named like the field that holds the record.
        choices: names that are allowed as the value.
        what: kind of the choices, or of the value, for an error: "data set".
        custom: whether a name with a colon is allowed too: the dotted path of custom code, or timm:NAME.
        unit: unit of the value, or its placeholder in the help: PIXELS, DIR.
        positional: whether the value is given without a flag.
        nargs: number of values of the flag, as in `argparse`; None: one.
        switch: whether the flag has no value; without the flag the field is false.
        repeated: whether the flag may be given several times.
        instead: newer flag for this field, `reward_weights.cost`; the field's own flag is an alias that the help leaves
            out.
    """

    section: str = ""
    choices: Collection[str] = ()
    what: str = ""
    custom: bool = False
    unit: str = ""
    positional: bool = False
    nargs: str | int | None = None
    switch: bool = False
    repeated: bool = False
    instead: str = ""


SWITCH = Notes(switch=True)


@dataclass(frozen=True)
class Leaf:
    """A field that is no record itself.

    Args:
        name, hint, default: name, type and default of the field; `dataclasses.MISSING` if a value is required.
        notes: facts beyond the type.
        owner: the record that has the field.
        section: section of the help: the notes' section, or the name of the whole record's field that holds `owner`.
    """

    name: str
    hint: Any
    default: Any
    notes: Notes
    owner: type
    section: str = ""


def hints(record: type) -> Mapping[str, tuple[Any, Notes]]:
    """Return the type of every field, without its annotations, and its notes."""
    return _hints(record)


@functools.cache
def _hints(record: type) -> Mapping[str, tuple[Any, Notes]]:
    found = {}
    for name, hint in get_type_hints(record, include_extras=True).items():
        kind, *extras = get_args(hint) if get_origin(hint) is Annotated else (hint,)
        found[name] = kind, next((extra for extra in extras if isinstance(extra, Notes)), Notes())
    return found


def is_record(kind: Any) -> bool:
    """Return whether a field of this type holds a record."""
    return isinstance(kind, type) and is_dataclass(kind)


def parts(record: type, name: str = "") -> Iterator[tuple[str, type]]:
    """Yield a record and the records that it is composed of, each after the name of the field that holds it."""
    yield name, record
    for field, (kind, _) in hints(record).items():
        if is_record(kind):
            yield from parts(kind, field)


def leaves(record: type, section: str = "") -> Iterator[Leaf]:
    """Yield the fields of a record and of the records that it is composed of, in order; no name occurs twice."""
    for item in dataclasses.fields(record):
        kind, notes = hints(record)[item.name]
        if is_record(kind):
            yield from leaves(kind, item.name)
        else:
            yield Leaf(item.name, kind, item.default, notes, record, notes.section or section)


def composed(record: type[Record], values: Mapping[str, Any]) -> Record:
    """Make a record from flat values by name; each value goes to the smaller record that has a field of its name.

    Raises:
        ValueError: as the records do.
    """
    made = {}
    for item in dataclasses.fields(record):  # type: ignore[arg-type]
        kind, _ = hints(record)[item.name]
        if is_record(kind):
            made[item.name] = composed(kind, values)
        elif item.name in values:
            made[item.name] = values[item.name]
    return record(**made)


@dataclass(frozen=True, kw_only=True)
class Composed:
    """The base of a record whose fields are all sections (records of flat values); no name occurs in two sections."""

    @classmethod
    def of(cls, **values: Any) -> Self:
        """Make the record from flat values by name; values that are left out have their defaults.

        Raises:
            ValueError: if a name is unknown, and as the sections do.
        """
        known = {leaf.name: leaf for leaf in leaves(cls)}
        for name in values:
            pick(name, known, "setting")
        return composed(cls, values)

    def flat(self) -> dict[str, Any]:
        """Return a copy of all values by name."""
        return {name: value for section in dataclasses.asdict(self).values() for name, value in section.items()}

    def replace(self, **values: Any) -> Self:
        """Return the record with other flat values."""
        return self.of(**self.flat() | values)

    def _set(self, **values: Any) -> None:
        """Change flat values in place: only for `__post_init__`."""
        for item in dataclasses.fields(self):
            section = getattr(self, item.name)
            if own := {name: value for name, value in values.items() if name in vars(section)}:
                object.__setattr__(self, item.name, dataclasses.replace(section, **own))

    def _resolve(self, **values: Any) -> None:
        """Replace flat values that are `auto` or None by the given ones, in place: only for `__post_init__`."""
        before = self.flat()
        self._set(**{name: value for name, value in values.items() if before[name] in ("auto", None)})


def check_choices(record: Any) -> None:
    """Raise a ValueError if a name, or one of several, is not among its field's choices; None is no name."""
    for field, (_, notes) in hints(type(record)).items():
        value = getattr(record, field)
        if notes.choices and value is not None:
            for name in value if notes.nargs else (value,):
                if not (notes.custom and is_dotted(name)):
                    pick(name, dict.fromkeys(notes.choices), notes.what or field)
