"""A page of text, tables and pictures, and its two written forms.

The HTML is one file with its style and pictures inside, and no script: it opens offline, on a phone, and prints.
"""

import base64
import html
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from astra_gym.experiments.reports import markup
from astra_gym.experiments.reports.markup import Table, escaped_markdown
from astra_gym.ssl_core.safety.sealing import check_png
from astra_gym.ssl_core.utils.files import check_target, replacing

STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 74rem; background: #fff; color: #222; line-height: 1.5;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0.5rem 0 1rem; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 0.75rem; padding-top: 0.5rem; border-top: 1px solid #ccc; }
p, dl, ul { max-width: 44rem; }
a { color: #005a9c; }
.answer { padding: 0.75rem 1rem; border-left: 4px solid #0072b2; background: #f3f7fa; }
.note, figcaption { color: #444; font-size: 0.9rem; }
nav ul { list-style: none; padding: 0; display: flex; flex-wrap: wrap; gap: 0.25rem 1.25rem; }
dt { font-weight: 600; }
dd { margin: 0 0 0.5rem; }
.wide { overflow-x: auto; margin: 0 0 1.5rem; }
table { border-collapse: collapse; font-size: 0.875rem; font-variant-numeric: tabular-nums; overflow-wrap: normal; }
caption { text-align: left; font-weight: 600; padding: 0.25rem 0; }
th, td { padding: 0.25rem 0.5rem; text-align: left; vertical-align: top; border-bottom: 1px solid #ddd; }
thead th { vertical-align: bottom; border-bottom: 2px solid #444; }
th.number, td.number { text-align: right; }
tbody th { font-weight: 600; white-space: nowrap; }
td { min-width: 5.5rem; max-width: 24rem; }
th.number { min-width: 3.5rem; }
td.number { min-width: 0; white-space: nowrap; }
small { color: #444; }
figure { margin: 0 0 2rem; max-width: 44rem; }
img { display: block; width: 100%; height: auto; }
figcaption { margin-top: 0.5rem; }
pre { background: #f5f5f5; padding: 0.75rem; white-space: pre-wrap; }
@media (max-width: 40rem) {
  tbody th, thead th:first-child { position: sticky; left: 0; background: #fff; }
  tbody th { white-space: normal; min-width: 6rem; max-width: 8.5rem; overflow-wrap: anywhere; }
}
@media print {
  body { max-width: none; padding: 0; font-size: 10pt; }
  nav { display: none; }
  .wide { overflow: visible; }
  table { font-size: 7.5pt; }
  th, td { padding: 0.15rem 0.3rem; }
  tbody th { white-space: normal; }
  td { min-width: 0; }
  th.number { min-width: 0; }
  td.number { white-space: normal; }
  tr, figure { break-inside: avoid; }
  h2, caption { break-after: avoid; }
  img { width: auto; max-width: 100%; max-height: 21cm; }
}
"""
HTML = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="icon" href="data:,">
<style>{style}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""
OURS = {
    "report.md": "# (Comparison of agents|Run|Evaluation): ",
    "report.html": re.escape(HTML.partition("<meta name")[0]),
}
"""How the files of a report begin."""


class Text(NamedTuple):
    """A paragraph; `kind` is "", "answer" or "note"."""

    text: str
    kind: str = ""


class Items(NamedTuple):
    """A list: each item a term and what is said of it."""

    items: Sequence[tuple[str, str]]


class Code(NamedTuple):
    """A command."""

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


def to_markdown(page: Page, folder: str) -> str:
    """The page as Markdown; pictures are links into `folder`."""
    blocks = [f"# {escaped_markdown(page.title)}", *(_markdown_block(block, folder) for block in page.opening)]
    blocks.append("\n".join(f"- [{section.title}](#{section.anchor})" for section in page.sections))
    for section in page.sections:
        blocks += [f"## {section.title}", *(_markdown_block(block, folder) for block in section.blocks)]
    return "\n\n".join(block.strip() for block in blocks) + "\n"


def _markdown_block(block: Block, folder: str) -> str:
    match block:
        case Text(text, _):
            return escaped_markdown(text)
        case Items(items):
            return "\n".join(f"- **{escaped_markdown(term)}**: {escaped_markdown(text)}" for term, text in items)
        case Code(text):
            return f"```\n{text}\n```"
        case Picture(name, alt, caption):
            return f"![{escaped_markdown(alt)}]({folder}/{name})\n\n{escaped_markdown(caption)}"
        case Table():
            return markup.to_markdown(block)


def to_html(page: Page, figures: Path) -> str:
    """The page as HTML with the PNGs of `figures` inside."""
    title = html.escape(page.title)
    toc = "".join(f'<li><a href="#{section.anchor}">{html.escape(section.title)}</a></li>' for section in page.sections)
    body = [f"<h1>{title}</h1>", *(_html_block(block, figures) for block in page.opening)]
    body.append(f'<nav aria-label="Contents"><ul>{toc}</ul></nav>')
    for section in page.sections:
        blocks = "\n".join(_html_block(block, figures) for block in section.blocks)
        heading = f'<h2 id="{section.anchor}">{html.escape(section.title)}</h2>'
        body.append(f'<section aria-labelledby="{section.anchor}">\n{heading}\n{blocks}\n</section>')
    return HTML.format(title=title, style=STYLE, body="\n".join(body))


def _html_block(block: Block, figures: Path) -> str:
    match block:
        case Text(text, kind):
            return f'<p class="{kind}">{html.escape(text)}</p>' if kind else f"<p>{html.escape(text)}</p>"
        case Items(items):
            lines = "".join(f"<dt>{html.escape(term)}</dt><dd>{html.escape(text)}</dd>" for term, text in items)
            return f"<dl>{lines}</dl>"
        case Code(text):
            return f"<pre><code>{html.escape(text)}</code></pre>"
        case Picture(name, alt, caption):
            return _html_picture(figures / name, alt, caption)
        case Table():
            # a wide table scrolls in itself, and by keys too, not the page
            label = html.escape(block.title)
            return f'<div class="wide" role="region" aria-label="{label}" tabindex="0">{markup.to_html(block)}</div>'


def _html_picture(path: Path, alt: str, caption: str) -> str:
    check_png(path)
    content = path.read_bytes()
    # a PNG's header holds its size: the page does not jump while it loads
    width, height = (int.from_bytes(content[start : start + 4], "big") for start in (16, 20))
    source = f"data:image/png;base64,{base64.b64encode(content).decode()}"
    image = f'<img src="{source}" width="{width}" height="{height}" alt="{html.escape(alt)}">'
    return f"<figure>{image}<figcaption>{html.escape(caption)}</figcaption></figure>"


def check_report(folder: Path) -> bool:
    """Whether a report of ours lies in a folder.

    Raises:
        ValueError: if something else is called as its files are.
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
    """Writes a page, whose figures lie in `folder/figures`, as `report.md` and `report.html`; returns that path.

    Raises:
        ValueError: as `check_report`.
    """
    check_report(folder)
    figures = folder / "figures"
    for name, text in (("report.md", to_markdown(page, figures.name)), ("report.html", to_html(page, figures))):
        with replacing(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return folder / "report.html"
