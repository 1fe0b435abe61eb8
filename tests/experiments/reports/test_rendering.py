import html
import io
import re
import shutil
import struct
import subprocess
import zlib
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread
from rich.console import Console

from astra_gym.experiments.reports.document import Code, Entry, Items, Page, Picture, Section, Table, Text
from astra_gym.experiments.reports.rendering import block_in_markdown, for_terminal, to_html, to_markdown

HOSTILE = "<script>alert('&')</script> a_b *c*"
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars")
QUIET = ("--disable-background-networking", "--disable-component-update", "--disable-sync")
ATTRIBUTES_THAT_FETCH = {"src", "href", "srcset", "data", "poster", "action", "background"}


def png(path: Path, width: int = 30, height: int = 20) -> None:
    """A blue PNG."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    pixels = b"".join(b"\0" + b"\x00\x00\xff" * width for _ in range(height))
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")
    )


@pytest.fixture
def page(tmp_path) -> Page:
    png(tmp_path / "a.png")
    wide = Table(
        "Wide", HOSTILE, [f"column {i}" for i in range(30)], [[Entry(f"{i} 12.3 (1.2 to 3.4)") for i in range(30)]]
    )
    return Page(
        f"Title {HOSTILE}",
        [Text(HOSTILE, "answer")],
        [
            Section("How to read, it", [Items([("term", HOSTILE)]), Text("plain")]),
            Section("Figures", [Picture("a.png", f'alt "{HOSTILE}', HOSTILE), wide]),
            Section("Repeat it", [Code(f"python x.py {HOSTILE} " + "long" * 100)]),
        ],
    )


class Elements(HTMLParser):
    """All start tags, and all text by the innermost tag."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def of(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.found if tag == name]


def test_nothing_is_fetched_or_run(page, tmp_path) -> None:
    text = to_html(page, tmp_path)
    elements = Elements(text)
    assert not {"script", "iframe", "object", "embed", "base", "form"} & {tag for tag, _ in elements.found}
    for _, attributes in elements.found:
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ATTRIBUTES_THAT_FETCH:
                assert value is not None and value.startswith(("data:", "#"))
    [style] = re.findall("<style>(.*?)</style>", text, re.DOTALL)
    assert "url(" not in style and "@import" not in style
    assert "default-src 'none'" in str(elements.of("meta"))


def test_the_page_is_semantic(page, tmp_path) -> None:
    elements = Elements(to_html(page, tmp_path))
    assert elements.of("html") == [{"lang": "en"}]
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in elements.of("meta")
    [image] = elements.of("img")
    assert (image["width"], image["height"]) == ("30", "20")
    assert image["alt"] == f'alt "{HOSTILE}'
    assert len(elements.of("figure")) == len(elements.of("figcaption")) == 1
    assert len(elements.of("caption")) == 1 and {th["scope"] for th in elements.of("th")} == {"col", "row"}
    links = [link["href"] for link in elements.of("a")]
    assert links == [f"#{heading['id']}" for heading in elements.of("h2")]
    assert links == ["#how-to-read-it", "#figures", "#repeat-it"]
    assert len(elements.of("h1")) == 1


def test_texts_are_escaped(page, tmp_path) -> None:
    text = to_html(page, tmp_path)
    assert html.unescape(text).count(HOSTILE) == 8
    assert HOSTILE not in text


def test_markdown_says_the_same(page) -> None:
    lines = to_markdown(page, "figures").splitlines()
    assert lines[0].startswith("# Title ")
    assert [line for line in lines if line.startswith("## ")] == ["## How to read, it", "## Figures", "## Repeat it"]
    assert "- [How to read, it](#how-to-read-it)" in lines
    escaped = r"\<script\>alert('\&')\</script\> a_b \*c\*"
    assert lines.count(escaped) == 3
    assert rf'![alt "{escaped}](figures/a.png)' in lines
    assert "| column 0 |" in "\n".join(lines)
    assert lines[lines.index("```") + 1].startswith(f"python x.py {HOSTILE}")


HOSTILE_TABLE = Table(
    "A | B <script>",
    "5 < 6 & *so* on",
    ["a*m", "p|q", "s_t"],
    [[Entry("<b>&", best=True), Entry("1.0 | `x`", "IQM [2]"), Entry("3 words")]],
    words=("s_t",),
)


def test_a_table_has_smaller_print_the_best_and_numbers_to_the_right() -> None:
    assert block_in_markdown(HOSTILE_TABLE).splitlines() == [
        "**A \\| B \\<script\\>**",
        "",
        "| a\\*m | p\\|q | s_t |",
        "| --- | ---: | --- |",
        "| **\\<b\\>\\&** | 1.0 \\| \\`x\\`<br>IQM \\[2\\] | 3 words |",
        "",
        "5 \\< 6 \\& \\*so\\* on",
    ]
    text = to_html(Page("t", [], [Section("s", [HOSTILE_TABLE])]), Path())
    assert "<strong>&lt;b&gt;&amp;</strong>" in text and "1.0 | `x`<br><small>IQM [2]</small></td>" in text
    assert '<th scope="col" class="number">p|q</th>' in text and '<td class="number">1.0' in text
    assert '<th scope="col">s_t</th>' in text and "<td>3 words</td>" in text


NAMED = (("SLF", 50), ("KNN", 30))


def test_a_terminal_of_eighty_columns_shows_the_first_lines() -> None:
    radii = [f"PGD-20 {radius}/255" for radius in (4, 8, 12, 16)]
    columns = ["protocol", "n", "SA", *radii, "AA 8/255", "standard"]
    row = [Entry("LP-AFF"), Entry("10000"), *[Entry("50.0", "40.1 to 59.9")] * 6, Entry("[b]\x1b")]
    file = io.StringIO()
    table = Table("[b]Accuracy", "In % of [n] images. Below a figure its interval.", columns, [row])
    Console(file=file, width=80, color_system=None).print(for_terminal(table))
    lines = file.getvalue().splitlines()
    assert any(line.split() == ["LP-AFF", "10000", *["50.0"] * 6, "[b]?"] for line in lines)
    assert "12/255" in file.getvalue() and "…" not in file.getvalue() and "40.1" not in file.getvalue()
    assert "[b]Accuracy" in lines[0] and lines[-1].rstrip() == "In % of [n] images."


def test_a_terminal_of_eighty_columns_shows_the_values_of_a_hundred_radii() -> None:
    radii = [f"PGD-20 {radius}/255" for radius in range(1, 101)]
    rows = [[Entry(name), *(Entry(f"{value + radius / 100:.2f}") for radius in range(100))] for name, value in NAMED]
    file = io.StringIO()
    Console(file=file, width=80, color_system=None).print(
        for_terminal(Table("Accuracy", "In %.", ["protocol", *radii], rows))
    )
    lines = [line.split() for line in file.getvalue().splitlines()]
    assert ["protocol", "SLF", "KNN"] in lines
    for radius in range(100):
        assert ["PGD-20", f"{radius + 1}/255", f"{50 + radius / 100:.2f}", f"{30 + radius / 100:.2f}"] in lines


def chromium(tmp_path: Path, *arguments: str) -> str:
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    command = [str(CHROMIUM), *FLAGS, *QUIET, profile, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_a_browser_shows_it_and_a_phone_does_not_scroll_sideways(page, tmp_path) -> None:
    text = to_html(page, tmp_path)
    # the page has no script of its own: a frame around it, of the same origin, is asked how wide it is
    frame = tmp_path / "frame.html"
    frame.write_text(
        f'<iframe id="f" style="width:400px;height:900px;border:0" srcdoc="{html.escape(text)}"></iframe>'
        "<script>onload = () => { const root = f.contentDocument.documentElement, figure = root.querySelector('img');"
        "document.title = [root.scrollWidth, root.clientWidth, root.querySelector('table').offsetWidth > 400,"
        "figure.naturalWidth, root.querySelector('h1').offsetHeight > 0].join() }</script>"
    )
    dump = chromium(tmp_path, "--dump-dom", frame.as_uri())
    assert re.search("<title>(.*?)</title>", dump.replace(text, ""), re.DOTALL)
    assert "<title>400,400,true,30,true</title>" in dump
    (tmp_path / "page.html").write_text(text)
    shot = tmp_path / "shot.png"
    chromium(tmp_path, f"--screenshot={shot}", "--window-size=1200,900", (tmp_path / "page.html").as_uri())
    pixels = np.asarray(imread(shot))[..., :3]
    assert pixels.shape[:2] == (900, 1200)
    assert 0.02 < float((pixels.min(2) < 0.9).mean()) < 0.9
    assert (np.abs(pixels - np.array([0, 0, 1])).max(2) < 0.01).sum() > 1000
