"""Typed records of settings: what their fields say of themselves, and records that are composed of smaller ones."""

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
        section: of the help that it belongs to; empty for that of the record's own field in a larger one.
        choices: the names that it may be.
        what: they are, or a value is, for an error: "data set".
        custom: whether the dotted path of something of a user's own will do as well.
        unit: of the value, or what stands for it in the help: PIXELS, DIR.
        positional: whether it is given without a flag.
        nargs: how many values a flag takes, as `argparse` has it; None: one.
        switch: whether it is a flag without a value, false where it is not given.
        repeated: whether the flag may be given several times.
        instead: the flag by which it is given now, `reward_weights.cost`; its own is an alias that the help leaves out.
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
        name, hint, default: of the field; `dataclasses.MISSING` for one that has to be given.
        notes: facts beyond its type.
        owner: the record that has it.
        section: what it belongs to: its notes' section, or the field of the whole record that holds its owner.
    """

    name: str
    hint: Any
    default: Any
    notes: Notes
    owner: type
    section: str = ""


def hints(record: type) -> Mapping[str, tuple[Any, Notes]]:
    """The type of every field, without what it is annotated by, and its notes."""
    return _hints(record)


@functools.cache
def _hints(record: type) -> Mapping[str, tuple[Any, Notes]]:
    found = {}
    for name, hint in get_type_hints(record, include_extras=True).items():
        kind, *extras = get_args(hint) if get_origin(hint) is Annotated else (hint,)
        found[name] = kind, next((extra for extra in extras if isinstance(extra, Notes)), Notes())
    return found


def is_record(kind: Any) -> bool:
    """Whether a field of this type holds a record."""
    return isinstance(kind, type) and is_dataclass(kind)


def parts(record: type, name: str = "") -> Iterator[tuple[str, type]]:
    """A record and those that it is composed of, each behind the name of the field that holds it."""
    yield name, record
    for field, (kind, _) in hints(record).items():
        if is_record(kind):
            yield from parts(kind, field)


def leaves(record: type, section: str = "") -> Iterator[Leaf]:
    """The fields of a record and of those that it is composed of, which have no name twice, in their order."""
    for item in dataclasses.fields(record):
        kind, notes = hints(record)[item.name]
        if is_record(kind):
            yield from leaves(kind, item.name)
        else:
            yield Leaf(item.name, kind, item.default, notes, record, notes.section or section)


def composed(record: type[Record], values: Mapping[str, Any]) -> Record:
    """A record of flat values by name, each where it belongs.

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
    """The base of a record whose fields are all sections, records of flat values; no two have a name in common."""

    @classmethod
    def of(cls, **values: Any) -> Self:
        """Make the record of flat values by name; those left out have their defaults.

        Raises:
            TypeError: if there is no such name.
            ValueError: as the sections do.
        """
        known = {leaf.name for leaf in leaves(cls)}
        if strange := [name for name in values if name not in known]:
            raise TypeError(f"{cls.__name__}.__init__() got an unexpected keyword argument {strange[0]!r}")
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
        """Give values to those flat names whose value is `auto` or None, in place: only for `__post_init__`."""
        before = self.flat()
        self._set(**{name: value for name, value in values.items() if before[name] in ("auto", None)})


def check_choices(record: Any) -> None:
    """Raises a ValueError if a name, or one of several, is not among its field's choices; None stands for none."""
    for field, (_, notes) in hints(type(record)).items():
        value = getattr(record, field)
        if notes.choices and value is not None:
            for name in value if notes.nargs else () if notes.custom and is_dotted(value) else (value,):
                pick(name, dict.fromkeys(notes.choices), notes.what or field)
