"""The written forms of a report: HTML and Markdown by the templates in `templates/`, and tables for a terminal.

Everything that a template writes is escaped, in HTML by Jinja2 and in Markdown by `in_markdown`; no text of the report
is ever marked as safe. The HTML is one file with its style and figures inside, and no script: it opens offline, on a
phone, and prints.
"""

import base64
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from rich import table as terminal
from rich.box import SIMPLE_HEAD
from rich.text import Text as Styled

from astra_gym.experiments.reports.document import Block, Code, Entry, Items, Page, Picture, Table, Text
from astra_gym.ssl_core.safety.sealing import check_png
from astra_gym.ssl_core.utils.files import check_target, write_file
from astra_gym.ssl_core.utils.messages import printable

TEMPLATES = Path(__file__).with_name("templates")
MOST_COLUMNS = 12
"""Largest number of columns that eighty characters have room for."""
BLOCKS: tuple[type[Any], ...] = (Text, Items, Code, Picture, Table)


def one_line(value: object) -> str:
    """Return a value as text on one line, without invisible characters; output of a template is left unchanged."""
    return value if isinstance(value, Markup) else printable(re.sub(r"\s", " ", str(value)).strip())


def within_line(value: object) -> Markup:
    """Escape a text so that GitHub's Markdown shows it unchanged, if it does not begin a line."""
    # an underscore within a word marks nothing up; GitHub makes links of bare addresses
    text = re.sub(r"([\\`*~|<>\[\]&$]|(?<![^\W_])_|_(?![^\W_])|:(?=//)|(?<=www)\.)", r"\\\1", one_line(value))
    return Markup(re.sub(r"(?<=[\w.+-])@(?=[\w-]+\.\w)", "@\N{WORD JOINER}", text))


def in_markdown(value: object) -> Markup:
    """Escape a text so that GitHub's Markdown shows it unchanged, even as the beginning of a line.

    There it could be a heading, an item or a rule.
    """
    if isinstance(value, Markup):
        return value
    return Markup(re.sub(r"^(\d{0,9})([-+#.)=])(?=[\s#=-]|$)", r"\1\\\2", within_line(value)))


def fenced(text: str) -> Markup:
    """Return lines of code in Markdown, in a fence that is longer than any in them."""
    fence = "`" * max([3, *(len(found) + 1 for found in re.findall("`+", text))])
    return Markup("\n".join([fence, *map(printable, text.splitlines()), fence]))


def _environment(finalize: Callable[[object], str], **filters: Callable[[str], Markup]) -> Environment:
    made = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        finalize=finalize,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.tests |= {kind.__name__.lower(): lambda block, kind=kind: isinstance(block, kind) for kind in BLOCKS}
    made.filters |= filters
    return made


_HTML = _environment(one_line)
_MARKDOWN = _environment(in_markdown, inline=within_line, fenced=fenced)


def to_html(page: Page, figures: Path) -> str:
    """Return the page as HTML with the PNGs of `figures` inside."""
    return _HTML.get_template("report.html.j2").render(page=page, image=lambda name: _image(figures / name))


def to_markdown(page: Page, folder: str) -> str:
    """Return the page as GitHub's Markdown; figures are links into `folder`."""
    return _MARKDOWN.get_template("report.md.j2").render(page=page, folder=folder)


def block_in_markdown(block: Block) -> str:
    """Return a table, or another part of a page except a picture, as GitHub's Markdown."""
    return _MARKDOWN.get_template("block.md.j2").render(block=block)


def for_terminal(table: Table) -> terminal.Table:
    """Return the table for a terminal, with the first sentence of its note, which says what is measured and its unit.

    The entries' small print is left out: eighty columns have no room for it. A table of more than `MOST_COLUMNS` is
    turned, so that its columns are lines.
    """
    if len(table.columns) > MOST_COLUMNS:
        [corner, *heads], [names, *lines] = table.columns, zip(*table.rows, strict=True)
        rows = [[Entry(head), *line] for head, line in zip(heads, lines, strict=True)]
        table = table._replace(columns=[corner, *(name.text for name in names)], rows=rows)
    said, end, _ = one_line(table.note).partition(". ")
    made = terminal.Table(
        title=Styled(one_line(table.title)),
        title_justify="left",
        caption=Styled(said + end.rstrip()),
        caption_justify="left",
        box=SIMPLE_HEAD,
        show_edge=False,
        padding=(0, 1, 0, 0),
    )
    for column, number in zip(table.columns, table.numbers, strict=True):
        made.add_column(Styled(one_line(column)), justify="right" if number else "left", overflow="fold")
    for row in table.rows:
        made.add_row(*(Styled(one_line(entry.text), style="bold" if entry.best else "") for entry in row))
    return made


def _image(path: Path) -> dict[str, Any]:
    """Return a PNG as a URL that holds it, and its size, so that a page does not jump while it loads."""
    check_png(path)
    content = path.read_bytes()
    width, height = (int.from_bytes(content[start : start + 4], "big") for start in (16, 20))
    return {"source": f"data:image/png;base64,{base64.b64encode(content).decode()}", "width": width, "height": height}


OURS = {
    "report.md": "# (Comparison of agents|Run|Evaluation): ",
    "report.html": re.escape((TEMPLATES / "report.html.j2").read_text(encoding="utf-8").partition("<meta name")[0]),
}
"""Patterns of the beginnings of a report's files."""


def check_report(folder: Path) -> bool:
    """Return whether a folder holds a report of ours.

    Raises:
        ValueError: if other files have the names of its files.
    """
    found = False
    for name, ours in OURS.items():
        check_target(folder / name)
        if (folder / name).exists():
            found = True
            with (folder / name).open(encoding="utf-8", errors="replace") as file:
                start = file.read(400)
            if not re.match(ours, start):
                raise ValueError(f"{folder / name} was not written by report: move it away, or choose another --out")
    return found


def write_page(page: Page, folder: Path) -> Path:
    """Write a page, with figures in `folder/figures`, as `report.md` and `report.html`; return the latter's path.

    Raises:
        ValueError: as `check_report`.
    """
    check_report(folder)
    figures = folder / "figures"
    for name, text in (("report.md", to_markdown(page, figures.name)), ("report.html", to_html(page, figures))):
        write_file(folder / name, text)
    return folder / "report.html"
