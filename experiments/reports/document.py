"""The content of a report, as data, which `astra_gym.experiments.reports.rendering` writes.

Every text in these records is plain: no part of it is markup, whatever its source.
"""

import re
from collections.abc import Collection, Sequence
from typing import NamedTuple

MISSING = "-"


class Entry(NamedTuple):
    """A table's cell: a text, smaller print below it, and whether it is the best of its column."""

    text: str
    small: str = ""
    best: bool = False


def entries(*texts: str) -> list[Entry]:
    """Return a row of plain texts."""
    return [Entry(text) for text in texts]


class Table(NamedTuple):
    """A table: rows as long as `columns`, the first entry of each names it.

    `words` are the columns, beside the first, that hold words; all others hold numbers, which are aligned right.
    """

    title: str
    note: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Entry]]
    words: Collection[str] = ()

    @property
    def numbers(self) -> list[bool]:
        """For each column, whether it holds numbers."""
        return [index > 0 and column not in self.words for index, column in enumerate(self.columns)]


class Text(NamedTuple):
    """A paragraph; `kind` is "", "answer" or "note"."""

    text: str
    kind: str = ""


class Items(NamedTuple):
    """A list of items, each a term and its explanation."""

    items: Sequence[tuple[str, str]]


class Code(NamedTuple):
    """Commands, one per line."""

    text: str


class Picture(NamedTuple):
    """A PNG in the report's folder of figures, with its content in words and a caption."""

    name: str
    alt: str
    caption: str


Block = Text | Items | Code | Picture | Table


class Section(NamedTuple):
    """A heading and the blocks below it."""

    title: str
    blocks: Sequence[Block]

    @property
    def anchor(self) -> str:
        """The heading as an anchor of GitHub's links."""
        return re.sub(r"[^\w\- ]", "", self.title.lower()).replace(" ", "-")


class Page(NamedTuple):
    """The report."""

    title: str
    opening: Sequence[Block]
    sections: Sequence[Section]
