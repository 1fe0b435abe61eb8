"""What a report says, as data, which `astra_gym.experiments.reports.rendering` writes.

Every text in these records is plain: nothing in it is markup, whoever wrote it.
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
    """A row of plain texts."""
    return [Entry(text) for text in texts]


class Table(NamedTuple):
    """A table: rows as long as `columns`, the first entry of each names it.

    `words` are the columns, beside the first, that hold words; all others hold numbers, which stand to the right.
    """

    title: str
    note: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Entry]]
    words: Collection[str] = ()

    @property
    def numbers(self) -> list[bool]:
        """Whether a column holds numbers, for each."""
        return [index > 0 and column not in self.words for index, column in enumerate(self.columns)]


class Text(NamedTuple):
    """A paragraph; `kind` is "", "answer" or "note"."""

    text: str
    kind: str = ""


class Items(NamedTuple):
    """A list: each item a term and what is said of it."""

    items: Sequence[tuple[str, str]]


class Code(NamedTuple):
    """Commands, a line each."""

    text: str


class Picture(NamedTuple):
    """A PNG in the report's folder of figures, with what it shows in words and a caption."""

    name: str
    alt: str
    caption: str


Block = Text | Items | Code | Picture | Table


class Section(NamedTuple):
    """A heading and what stands below it."""

    title: str
    blocks: Sequence[Block]

    @property
    def anchor(self) -> str:
        """The heading as GitHub makes links of it."""
        return re.sub(r"[^\w\- ]", "", self.title.lower()).replace(" ", "-")


class Page(NamedTuple):
    """The report."""

    title: str
    opening: Sequence[Block]
    sections: Sequence[Section]
