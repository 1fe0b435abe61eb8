"""YAML by version 1.2 of its standard: the core schema, without doubled keys and without aliases that grow."""

import math
import re
from collections.abc import Collection, Hashable
from pathlib import Path
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

MOST_REPEATED = 10_000
"""Largest number of values that all aliases of a document may repeat."""
MOST_CHARACTERS = 16_000_000
"""Largest number of characters of a file: no settings are longer, and a device never ends."""
PREFIX = "tag:yaml.org,2002:"
CORE = {
    "null": (re.compile(r"null|Null|NULL|~|"), "nN~", True),
    "bool": (re.compile(r"true|True|TRUE|false|False|FALSE"), "tTfF", False),
    "int": (re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+"), "-+0123456789", False),
    "float": (
        re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?(\.inf|\.Inf|\.INF)|\.nan|\.NaN|\.NAN"),
        "-+.0123456789",
        False,
    ),
}
"""Kinds of plain scalars in the order of matching: pattern, first characters, and whether one may be empty.

All other scalars are text.
"""


class _Error(yaml.MarkedYAMLError):
    """Error for valid YAML that this project refuses."""


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the kinds of the core schema instead of those of YAML 1.1."""

    def scalar(self, node: Node) -> Any:
        """Construct a null, a bool or a number.

        Raises:
            yaml.YAMLError: if the text does not fit the tag.
        """
        text, kind = self.construct_scalar(node), node.tag.removeprefix(PREFIX)  # type: ignore[arg-type]
        if not CORE[kind][0].fullmatch(text):
            raise _Error(problem=f"{text[:40]!r} is no {kind}", problem_mark=node.start_mark)
        if kind == "null":
            return None
        if kind == "bool":
            return text.lower() == "true"
        return _integer(text, node) if kind == "int" else float(text.lower().replace(".inf", "inf").replace(".n", "n"))

    def sequence(self, node: Node) -> list[Any]:
        """Construct a list."""
        if not isinstance(node, SequenceNode):
            raise _Error(problem="a tag says that it is a list, and it is not", problem_mark=node.start_mark)
        return [self.construct_object(part, deep=True) for part in node.value]

    def undefined(self, node: Node) -> Any:
        """Refuse a value with a tag outside the core schema."""
        raise _Error(problem=f"the tag {node.tag[:60]} is not read here", problem_mark=node.start_mark)

    def mapping(self, node: Node) -> dict[Hashable, Any]:
        """Construct a mapping, and refuse doubled keys."""
        if not isinstance(node, MappingNode):
            raise _Error(problem="a tag says that it is a mapping, and it is not", problem_mark=node.start_mark)
        made: dict[Hashable, Any] = {}
        lines: dict[Hashable, int] = {}
        for key_node, value_node in node.value:
            key = self.construct_object(key_node, deep=True)
            line = key_node.start_mark.line + 1
            if not isinstance(key, Hashable):
                raise _Error(problem="a key is a list or a mapping: expected a name", problem_mark=key_node.start_mark)
            if key in lines:
                where = f"twice in line {line}" if line == lines[key] else f"in lines {lines[key]} and {line}"
                raise _Error(problem=f"the key {str(key)[:40]!r} stands {where}: keep one of them")
            lines[key] = line
            made[key] = self.construct_object(value_node, deep=True)
        return made


def _integer(text: str, node: Node) -> int:
    try:
        return int(text, 8) if text.startswith("0o") else int(text, 16) if text.startswith("0x") else int(text)
    except ValueError as error:
        # Python reads only some thousand digits
        raise _Error(problem=f"{text[:40]}... has too many digits", problem_mark=node.start_mark) from error


# inherit neither YAML 1.1's plain scalars nor its tags, such as dates and sets
_Loader.yaml_implicit_resolvers = {}
_Loader.yaml_constructors = {}
for _kind, (_look, _first, _empty) in CORE.items():
    # PyYAML matches from the beginning only
    _whole = re.compile(rf"(?:{_look.pattern})\Z")
    _Loader.add_implicit_resolver(PREFIX + _kind, _whole, [*_first, *([""] if _empty else [])])
    _Loader.add_constructor(PREFIX + _kind, _Loader.scalar)
_Loader.add_constructor(PREFIX + "str", _Loader.construct_scalar)  # type: ignore[type-var]
_Loader.add_constructor(PREFIX + "seq", _Loader.sequence)
_Loader.add_constructor(PREFIX + "map", _Loader.mapping)
_Loader.add_constructor(None, _Loader.undefined)


class _Dumper(yaml.SafeDumper):
    """PyYAML's safe dumper, without aliases, that quotes text with another meaning in YAML 1.1 or 1.2."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def text(self, data: str) -> ScalarNode:
        """Represent text; text with a Unicode line break, which PyYAML would fold, is written with escapes."""
        style = '"' if re.search("[\x85\u2028\u2029]", data) else None
        return self.represent_scalar(f"{PREFIX}str", data, style=style)


_Dumper.add_representer(str, _Dumper.text)
for _kind in ("int", "float"):
    _Dumper.add_implicit_resolver(PREFIX + _kind, re.compile(rf"(?:{CORE[_kind][0].pattern})\Z"), list(CORE[_kind][1]))


def load_yaml(text: str, texts: Collection[str] = ()) -> Any:
    """Load a YAML document strictly by YAML 1.2's core schema.

    `true` and `false` are booleans, `on`, `off`, `yes` and `no` text; 010 is ten, 0o10 eight, 0x1f thirty-one; 1e-3,
    .inf and .nan are numbers, 1:30 and 1_000 text.

    Args:
        text: the document.
        texts: keys with values that stay text, 010 as "010", unless they are null. A key below another is `above.key`;
            lists add no level.

    Raises:
        ValueError: if the text is no YAML document, a key is twice in a mapping, aliases repeat more than
            `MOST_REPEATED` values, or it is nested too deeply. The message names the line.
    """
    try:
        loader = _Loader(text)
        try:
            root = loader.get_single_node()
            if root is None:
                return None
            _check_aliases(root)
            if texts:
                _take_as_written(root, "", texts)
            return loader.construct_document(root)
        finally:
            loader.dispose()
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except yaml.YAMLError as error:
        raise ValueError(_described(error)) from error


def read_yaml_file(path: Path | str, texts: Collection[str] = ()) -> Any:
    """Load a YAML file, as `load_yaml`.

    Raises:
        ValueError: as `load_yaml`, or if the file cannot be read; the message names it.
    """
    try:
        with Path(path).open(encoding="utf-8") as file:
            content = file.read(MOST_CHARACTERS + 1)
    except OSError as error:
        raise ValueError(f"cannot read the config file {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a YAML file: byte {error.start} is not UTF-8") from error
    if len(content) > MOST_CHARACTERS:
        raise ValueError(f"{path} is no config file: it is longer than {MOST_CHARACTERS:,} characters")
    try:
        return load_yaml(content, texts)
    except ValueError as error:
        raise ValueError(f"{path} is not a YAML file: {error}") from error


def dump_yaml(value: Any) -> str:
    """Write plain values as YAML that `load_yaml` and readers of YAML 1.1 read as the same values."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=math.inf)


def _check_aliases(root: Node) -> None:
    sizes: dict[int, int] = {}
    inside: set[int] = set()
    written = 0

    def size(node: Node) -> int:
        nonlocal written
        if id(node) in sizes:
            return sizes[id(node)]
        if id(node) in inside:
            raise _Error(problem="an alias stands inside what it repeats", problem_mark=node.start_mark)
        inside.add(id(node))
        written += 1
        whole = 1 + sum(size(part) for part in _parts(node))
        inside.remove(id(node))
        # capped, since the size may double with every level
        sizes[id(node)] = min(whole, 2**60)
        return sizes[id(node)]

    if size(root) - written > MOST_REPEATED:
        raise _Error(problem=f"its aliases repeat more than {MOST_REPEATED:,} values: write them out")


def _parts(node: Node) -> list[Node]:
    if isinstance(node, MappingNode):
        return [part for pair in node.value for part in pair]
    return list(node.value) if isinstance(node, SequenceNode) else []


def _take_as_written(node: Node, above: str, texts: Collection[str]) -> None:
    if isinstance(node, SequenceNode):
        for part in node.value:
            _take_as_written(part, above, texts)
    if not isinstance(node, MappingNode):
        return
    for index, (key, value) in enumerate(node.value):
        name = f"{above}.{key.value}" if above else str(key.value)
        if isinstance(value, ScalarNode) and name in texts:
            if value.style is None and value.tag.removeprefix(PREFIX) in ("bool", "int", "float"):
                # a new node, since an alias may use the same one elsewhere
                text = ScalarNode(f"{PREFIX}str", value.value, value.start_mark, value.end_mark)
                node.value[index] = key, text
        elif any(known.startswith(f"{name}.") for known in texts):
            _take_as_written(value, name, texts)


def _described(error: yaml.YAMLError) -> str:
    if isinstance(error, yaml.MarkedYAMLError):
        said = ", ".join(part for part in (error.context, error.problem) if part)
        mark = error.problem_mark or error.context_mark
        return " ".join(said.split())[:200] + (f" (line {mark.line + 1})" if mark is not None else "")
    return " ".join(str(error).replace(' in "<unicode string>",', " at").split())[:200]
