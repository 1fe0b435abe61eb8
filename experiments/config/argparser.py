"""The parser of every command: flags made from a typed record, by jsonargparse; an error is one line and status 2."""

import argparse
import copy
import difflib
import math
import re
import textwrap
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import MISSING
from functools import cache
from types import MappingProxyType
from typing import Any, Generic, NoReturn, TypeVar, get_args, get_origin

from docstring_parser import parse as parse_docstring
from jsonargparse import ArgumentParser, Namespace

from astra_gym.experiments.config.commands import help_text, program
from astra_gym.experiments.config.flag_values import (
    is_by_name,
    is_list,
    is_number,
    kinds_of,
    loaded,
    plain,
    reader,
    with_one,
)
from astra_gym.experiments.config.listing import first_line
from astra_gym.ssl_core.settings import renamed
from astra_gym.ssl_core.settings.records import Leaf, composed, hints, is_record, leaves, parts
from astra_gym.ssl_core.utils.messages import brief, said
from astra_gym.ssl_core.utils.registry import pick

Record = TypeVar("Record")
VALUES = {bool: "true|false", int: "N", float: "X", str: "NAME"}
"""Placeholders of values in the help, by type."""
FLAGS = "flags"
"""The only section of a command whose record has none."""


class CommandParser(ArgumentParser, Generic[Record]):
    """The flags of a command.

    Args:
        name: name of the command, one of `astra_gym.experiments.config.commands.COMMANDS`.
        record: a dataclass with a field for each flag, or for each section of flags; its docstring is their help. A
            ValueError of its checks becomes an error of the command line.
        about: introduction of the help: paragraphs of text, of commands below comments, or a table (see `_filled`).
        usage: words after the command's name in its usage line.
        prog: name of the command in errors; by default as this process was called.
    """

    def __init__(self, name: str, record: type[Record], about: str | None, usage: str, prog: str | None = None) -> None:
        super().__init__(
            prog=program(name) if prog is None else prog,
            usage=f"%(prog)s {usage}",
            description=about,
            formatter_class=_Formatter,
            add_help=False,
            allow_abbrev=False,
            print_config=None,
        )
        self.record = record
        self.leaves = {leaf.name: leaf for leaf in leaves(record, FLAGS)}
        self.usual = {name: leaf.default for name, leaf in self.leaves.items() if leaf.default is not MISSING}
        """Defaults by field name."""
        docs = {part: _documented(part) for _, part in parts(record)}
        titles = {FLAGS: f"{FLAGS}: {first_line(record)}"} | _titles(docs)
        older = {old: new for old, new in renamed.SETTINGS.items() if new in self.leaves}
        self.aliases = older | {leaf.name: leaf.notes.instead for leaf in self.leaves.values() if leaf.notes.instead}
        """Present names by old flag."""
        found = {leaf.section for leaf in self.leaves.values()}
        self.sections = {name: self.add_argument_group(title) for name, title in titles.items() if name in found}
        self.nested: set[str] = set()
        """Flags of single settings by name, `--agent_kwargs.gamma`."""
        what = "show this help, or that of one section, and exit"
        self.add_argument("-h", "--help", action=_Help, nargs="?", metavar="SECTION", help=what)
        for leaf in self.leaves.values():
            group = self if leaf.notes.positional else self.sections[leaf.section]
            _add(group, leaf, docs[leaf.owner].get(leaf.name, ""))
        for old, new in older.items():
            kind = reader(new, self.leaves[new].hint)
            self.add_argument(f"--{old}", dest=new, type=kind, default=argparse.SUPPRESS, help=argparse.SUPPRESS)

    def read(self, argv: Sequence[str]) -> Record:
        """Read the record of a command line; if anything is wrong, end the process with status 2 and one line."""
        values = self.usual | self.given(argv)
        missing = [
            (leaf.notes.unit or leaf.name) if leaf.notes.positional else f"--{leaf.name}"
            for leaf in self.leaves.values()
            if leaf.default is MISSING and not values.get(leaf.name)
        ]
        if missing:
            self.error(f"the following arguments are required: {', '.join(missing)}")
        try:
            return composed(self.record, values)
        except ValueError as error:
            self.error(str(error))

    def given(self, argv: Sequence[str]) -> dict[str, Any]:
        """Return the values that a command line gives, by field name. An old and a present name of one field are an
        error."""
        found = self._parsed(argv)
        flags = {word.partition("=")[0].removeprefix("--") for word in argv if word.startswith("--")}
        for old, new in self.aliases.items():
            name, _, option = new.partition(".")
            if old in flags and (new in flags or (option and option in (found.get(name) or {}))):
                self.error(f"--{old} is the old name of --{new}: give one of them")
        return found

    def values(self, argv: Sequence[str], defaults: Mapping[str, Any] = MappingProxyType({})) -> dict[str, Any]:
        """Return the values of all fields by name: those of a command line, else of `defaults`, as a field's `reader`
        returns them, else the record's own. Single settings, `--agent_kwargs.gamma`, join those of `defaults`."""
        by_name = {name: value for name, value in defaults.items() if is_by_name(self.leaves[name].hint)}
        return self.usual | {name: plain(value) for name, value in defaults.items()} | self._parsed(argv, by_name)

    def split(self, argv: Sequence[str], beside: Collection[str] = ()) -> tuple[list[str], list[str]]:
        """Split a command line into this parser's flags with their values, and the other words, which another parser
        reads. An unknown flag that is near to one of this parser's ends the process.

        Args:
            argv: the command line.
            beside: the names of the other parser's flags.
        """
        own: list[str] = []
        others: list[str] = []
        into, room = others, 0
        for word in argv:
            if word.startswith("--") or word == "-h":
                leaf = self.leaves.get(_name(word))
                nearest = difflib.get_close_matches(_name(word), self.leaves, n=1, cutoff=0.75) if beside else []
                if leaf is None and _name(word) not in beside and nearest:
                    self.error(unknown(word.partition("=")[0], [f"--{nearest[0]}"], "flag"))
                into = others if leaf is None and _name(word) not in ("help", "-h") else own
                several = leaf is not None and leaf.notes.nargs is not None
                room = 0 if (leaf is not None and leaf.notes.switch) or "=" in word else len(argv) if several else 1
                into.append(word)
            else:
                (own if into is own and room > 0 else others).append(word)
                room -= 1
        return own, others

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """End the process with status 2 and the message."""
        _, found, rest = message.partition("unrecognized arguments: ")
        message = f"{brief(rest)} belongs to no flag: see --help" if found else message
        self.exit(2, f"{said(self.prog, message)}\n")

    def print_section(self, section: str) -> None:
        """Print the help of one section."""
        part = copy.copy(self)
        try:
            part.description, part._action_groups = None, [pick(section, self.sections, "section of the help")]
        except ValueError as error:
            self.error(str(error))
        part.print_help()

    def _parsed(self, argv: Sequence[str], before: Mapping[str, Any] = MappingProxyType({})) -> dict[str, Any]:
        # without the defaults, which jsonargparse would check anew at every reading
        found = vars(self.parse_args(self._words(argv), Namespace(dict(before)), defaults=False))
        return {name: plain(value) for name, value in found.items()}

    def _words(self, argv: Sequence[str]) -> list[str]:
        """Prepare a command line for argparse: `-1e-3` is a value, and `--agent_kwargs.gamma` a flag."""
        made: list[str] = []
        for word in argv:
            if made and word.startswith("-") and self._takes_one(made[-1]) and is_number(word):
                made[-1] += f"={word}"
                continue
            if word.startswith("--") and len(word) > 2:
                self._know(word.partition("=")[0])
            made.append(word)
        return made

    def _takes_one(self, word: str) -> bool:
        leaf = self.leaves.get(_name(word))
        return word.startswith("--") and "=" not in word and leaf is not None and leaf.notes.nargs is None

    def _know(self, flag: str) -> None:
        name, dot, path = flag.removeprefix("--").partition(".")
        leaf = self.leaves.get(name)
        if leaf is None and (name == "help" or (name in self.aliases and not dot)):
            return
        if leaf is None or leaf.notes.positional or (dot and not is_by_name(leaf.hint)):
            flags = {f"--{name}" for name, known in self.leaves.items() if not known.notes.positional} - {
                f"--{old}" for old in self.aliases
            }
            self.error(unknown(f"--{name}" if leaf is None else flag, flags, "flag"))
        if dot and flag not in self.nested:
            if not all(path.split(".")):
                self.error(f"{flag}: expected a name behind every dot")
            self.nested.add(flag)
            self.add_argument(
                flag, dest=name, action=_OneByName, type=loaded, default=argparse.SUPPRESS, help=argparse.SUPPRESS
            )


class _Formatter(argparse.HelpFormatter):
    """Name commands as this process was called; print a flag's choices and default on separate lines; break no name at
    a hyphen."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        return [line for part in help_text(text).split("\n") for line in _wrapped(part, width)]

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n\n".join(_filled(part, width) for part in help_text(text).replace("`", "").strip().split("\n\n"))

    def _format_usage(self, *parts: Any) -> str:
        usage = re.sub(r"\[.*?\]", _unbroken, super()._format_usage(*parts))
        return "\n".join(_wrapped(usage, self._width, " " * len("usage: "))) + "\n\n"

    def start_section(self, heading: str | None) -> None:
        super().start_section("\n".join(_wrapped(heading or "", self._width - 1)))


class _Help(argparse.Action):
    """`--help`, or `--help SECTION`."""

    def __init__(self, option_strings: Sequence[str], dest: str, **more: Any) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, default=argparse.SUPPRESS, **more)

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        if values is None:
            parser.print_help()
        else:
            parser.print_section(values)
        parser.exit()


class _OneByName(argparse.Action):
    """`--agent_kwargs.gamma 0.5`: one of the settings by name, added to those given before."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        _, _, name = str(option_string).partition(".")
        # a dotted path, my_package.my_module:MyTerm, is one name
        path = [name] if ":" in name else name.split(".")
        before = getattr(namespace, self.dest, None)
        setattr(namespace, self.dest, MappingProxyType(with_one(before, path, values)))


def unknown(name: str, known: Iterable[str], what: str) -> str:
    """Return the error for an unknown flag or setting, with the nearest known name."""
    bare = {one.lstrip("-"): one for one in known}
    asked = name.lstrip("-")
    # the beginning of a flag, --init of --init_from, is nearer than what is spelled alike
    begun = [one for one in bare if asked and one.startswith(f"{asked}_")]
    nearest = begun if len(begun) == 1 else difflib.get_close_matches(asked, bare, n=1)
    return f"unknown {what} {brief(name)}" + (f"; did you mean {bare[nearest[0]]}?" if nearest else ": see --help")


def _name(word: str) -> str:
    """Return the field of a flag: agent_kwargs for `--agent_kwargs.gamma=0`."""
    return word.removeprefix("--").partition("=")[0].partition(".")[0]


def _unbroken(found: re.Match[str]) -> str:
    return found[0].replace(" ", "\0")


def _wrapped(text: str, width: int, indent: str = "") -> list[str]:
    """Wrap a text, but not at a hyphen, nor within what is `_unbroken`."""
    lines = textwrap.wrap(text, width, subsequent_indent=indent, break_on_hyphens=False, break_long_words=False)
    return [line.replace("\0", " ") for line in lines]


def _filled(text: str, width: int) -> str:
    """Wrap a paragraph: text, or commands below comments, `# `, as a shell reads them, or a table, which has two spaces
    between its columns."""
    if text.startswith("# "):
        made = []
        for line in text.split("\n"):
            between, indent = ("\n", "# ") if line.startswith("#") else (" \\\n", "    ")
            # a flag stays with its value, and a quoted text on its line
            kept = re.sub(r"(--\S+ )?'.*?'|--\S+ (?!-)", _unbroken, line)
            made.append(between.join(_wrapped(kept, width - 2, indent)))
        return "\n".join(made)
    if "  " in text:
        entries = re.sub("\n +", " ", text).split("\n")
        return "\n".join(line for each in entries for line in _wrapped(each, width, " " * (each.rindex("  ") + 2)))
    return "\n".join(_wrapped(text, width))


@cache
def _documented(record: type) -> Mapping[str, str]:
    """Return the texts on a record's fields in its docstring, by name."""
    return {
        name: " ".join((param.description or "").replace("`", "").split())
        for param in parse_docstring(record.__doc__ or "").params
        for name in param.arg_name.split(", ")
    }


def _titles(docs: Mapping[type, Mapping[str, str]]) -> dict[str, str]:
    """Return the titles of sections by name, from the docstrings' texts on fields that are records, in their order."""
    return {
        name: f"{name}: {text.removesuffix('.')}"
        for part, doc in docs.items()
        for name, text in doc.items()
        if is_record(hints(part)[name][0])
    }


def _add(group: Any, leaf: Leaf, text: str) -> None:
    """Add a field's flag."""
    notes, several, default = leaf.notes, leaf.notes.nargs is not None, leaf.default
    more: dict[str, Any] = {"help": argparse.SUPPRESS if notes.instead else _help(leaf, text).replace("%", "%%")}
    if notes.switch:
        group.add_argument(f"--{leaf.name}", action="store_true", **more)
        return
    element = leaf.hint
    if several or notes.repeated:
        [element] = [get_args(kind)[0] for kind in kinds_of(leaf.hint) if get_origin(kind) is tuple]
    more["metavar"] = notes.unit or _metavar(element)
    if default is not MISSING:
        more["default"] = list(default) if isinstance(default, tuple) and (several or notes.repeated) else default
    if notes.repeated:
        group.add_argument(f"--{leaf.name}", action="append", **more)
        return
    more["type"] = reader(leaf.name, element, "" if notes.choices else notes.what)
    if notes.positional:
        # a missing value is reported only when all else is right
        group.add_argument(leaf.name, nargs="*" if several else "?", **more)
    else:
        group.add_argument(f"--{leaf.name}", nargs=notes.nargs, **more)


def _metavar(hint: Any) -> str:
    if is_by_name(hint):
        return "MAPPING"
    return next((VALUES[kind] for kind in kinds_of(hint) if kind in VALUES), "LIST")


def _help(leaf: Leaf, text: str) -> str:
    """Return a field's documentation with its choices and default."""
    notes, default = leaf.notes, leaf.default
    facts = [f"one {'or more ' * bool(notes.nargs)}of {', '.join(notes.choices)}"] if notes.choices else []
    if is_by_name(leaf.hint) and not is_list(leaf.hint):
        facts.append(f"one alone: --{leaf.name}.NAME VALUE")
    if default not in (MISSING, None, ()) and not (notes.switch or notes.positional or notes.repeated):
        facts.append(f"default: {typed_out(default, ' ' if notes.nargs else ', ')}")
    text = text.removesuffix(".")
    return f"{text}\n({'; '.join(facts)})" if facts else text


def typed_out(value: Any, between: str = ", ") -> str:
    """Return a default as a user would type it: 8/255, true, null, [0.4, 0.1]."""
    if isinstance(value, tuple):
        listed = between.join(map(typed_out, value))
        return f"[{listed}]" if between == ", " else listed
    if isinstance(value, float) and float(f"{value:g}") != value:
        for parts_of_one in (3, 255):
            if math.isclose(value * parts_of_one, round(value * parts_of_one)):
                return f"{value * parts_of_one:.0f}/{parts_of_one}"
    if isinstance(value, float):
        return f"{value:g}"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
