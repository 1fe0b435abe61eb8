import io
from html.parser import HTMLParser

from rich.console import Console

from astra_gym.experiments.reports.markup import Entry, Table, for_terminal, to_html, to_markdown

HOSTILE = Table(
    "A | B <script>", "5 < 6 & *so* on", ["a*m", "p|q"], [[Entry("<b>&", best=True), Entry("1.0 | `x`\nIQM [2]")]]
)


def test_markdown_is_escaped() -> None:
    lines = to_markdown(HOSTILE).splitlines()
    assert lines == [
        "**A \\| B \\<script\\>**",
        "",
        "| a\\*m | p\\|q |",
        "| --- | ---: |",
        "| **\\<b\\>\\&** | 1.0 \\| \\`x\\`<br>IQM \\[2\\] |",
        "",
        "5 \\< 6 \\& \\*so\\* on",
    ]
    plain = to_markdown(Table("t", "", ["a"], [[Entry("batch_size _x_ \\")]]))
    assert "batch_size \\_x\\_ \\\\" in plain and plain.endswith("|\n")


class Texts(HTMLParser):
    """What a browser would show, and the tags."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.texts += [data] if data.strip() else []


def test_html_is_escaped() -> None:
    text = to_html(HOSTILE)
    seen = Texts(text)
    assert seen.texts == ["A | B <script>", "a*m", "p|q", "<b>&", "1.0 | `x`", "IQM [2]", "5 < 6 & *so* on"]
    assert "script" not in seen.tags and "b" not in seen.tags
    assert "<strong>&lt;b&gt;&amp;</strong>" in text and "<br><small>IQM [2]</small>" in text
    assert '<th scope="col" class="number">p|q</th>' in text and '<td class="number">1.0' in text


def test_a_terminal_of_eighty_columns_shows_the_first_lines() -> None:
    radii = [f"PGD-20 {radius}/255" for radius in (4, 8, 12, 16)]
    columns = ["protocol", "n", "SA", *radii, "AA 8/255", "standard"]
    entries = [Entry("LP-AFF"), Entry("10000"), *[Entry("50.0\n40.1 to 59.9")] * 6, Entry("no")]
    file = io.StringIO()
    Console(file=file, width=80, color_system=None).print(for_terminal(Table("Accuracy", "", columns, [entries])))
    lines = file.getvalue().splitlines()
    assert any(line.split() == ["LP-AFF", "10000", *["50.0"] * 6, "no"] for line in lines)
    assert "12/255" in file.getvalue() and "…" not in file.getvalue() and "40.1" not in file.getvalue()
