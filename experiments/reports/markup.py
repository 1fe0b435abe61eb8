"""A table as data, and its forms: Markdown, HTML, and a terminal's."""

import html
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from rich import table as terminal
from rich.box import SIMPLE_HEAD
from rich.text import Text

MISSING = "-"


class Entry(NamedTuple):
    """A table's cell. A line break in `text` parts a figure from smaller print; `best` marks the first line."""

    text: str
    best: bool = False


class Table(NamedTuple):
    """A table: a title, a note below it, and rows as long as `columns`; the first column names the row."""

    title: str
    note: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Entry]]


def to_markdown(table: Table) -> str:
    """The table in GitHub's Markdown, figures to the right, all texts escaped."""
    numbers = _number_columns(table)
    lines = [
        [escaped_markdown(column) for column in table.columns],
        ["---:" if number else "---" for number in numbers],
        *([_marked(entry, escaped_markdown, "**", "**", "<br>", "") for entry in row] for row in table.rows),
    ]
    body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    note = f"\n{escaped_markdown(table.note)}\n" if table.note else ""
    return f"**{escaped_markdown(table.title)}**\n\n{body}\n{note}"


def to_html(table: Table) -> str:
    """The table as HTML: a `table` with a caption, columns of figures in class `number`, the note in a `p.note`."""
    numbers = _number_columns(table)
    kinds = [' class="number"' if number else "" for number in numbers]
    head = "".join(
        f'<th scope="col"{kind}>{html.escape(column)}</th>' for column, kind in zip(table.columns, kinds, strict=True)
    )
    lines = []
    for row in table.rows:
        texts = [_marked(entry, html.escape, "<strong>", "</strong>", "<br><small>", "</small>") for entry in row]
        rest = "".join(f"<td{kind}>{text}</td>" for text, kind in zip(texts[1:], kinds[1:], strict=True))
        lines.append(f'<tr><th scope="row">{texts[0]}</th>{rest}</tr>')
    note = f'\n<p class="note">{html.escape(table.note)}</p>' if table.note else ""
    return (
        f"<table>\n<caption>{html.escape(table.title)}</caption>\n<thead><tr>{head}</tr></thead>\n<tbody>\n"
        + "\n".join(lines)
        + f"\n</tbody>\n</table>{note}\n"
    )


def for_terminal(table: Table) -> terminal.Table:
    """The table for a terminal: without smaller print, for which eighty columns have no room."""
    made = terminal.Table(
        title=table.title, title_justify="left", box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0)
    )
    for column, number in zip(table.columns, _number_columns(table), strict=True):
        made.add_column(Text(column), justify="right" if number else "left", overflow="fold")
    for row in table.rows:
        texts = (entry.text.partition("\n")[0] for entry in row)
        made.add_row(*(Text(text, style="bold" if entry.best else "") for text, entry in zip(texts, row, strict=True)))
    return made


def _number_columns(table: Table) -> list[bool]:
    def number(text: str) -> bool:
        return text == MISSING or re.match(r"[+-]?\d", text) is not None

    columns = list(zip(*table.rows, strict=True)) or [()] * len(table.columns)
    return [index > 0 and all(number(entry.text) for entry in column) for index, column in enumerate(columns)]


def escaped_markdown(text: str) -> str:
    """A text that GitHub's Markdown shows as it is."""
    # an underscore within a word marks nothing up
    return re.sub(r"([\\`*~|<>\[\]&]|(?<!\w)_|_(?!\w))", r"\\\1", text)


def _marked(entry: Entry, escape: Callable[[str], str], left: str, right: str, small: str, end: str) -> str:
    first, *more = (escape(line) for line in entry.text.split("\n"))
    return (f"{left}{first}{right}" if entry.best else first) + "".join(f"{small}{line}{end}" for line in more)
