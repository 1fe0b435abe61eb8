"""Nothing that a user or a file writes becomes markup: hostile texts in every place of every report."""

import re
from collections.abc import Iterator, Sequence
from html.parser import HTMLParser
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

from astra_gym.experiments.comparison.cell_results import ComparisonResult
from astra_gym.experiments.reports.comparison_report import write_report
from astra_gym.experiments.reports.document import Block, Code, Entry, Items, Page, Section, Table, Text
from astra_gym.experiments.reports.evaluation_report import evaluation_page
from astra_gym.experiments.reports.published_tables import TABLES, with_tables
from astra_gym.experiments.reports.rendering import block_in_markdown, one_line, to_html, to_markdown, write_page
from tests.helpers.hostile_results import EVERY, HOSTILE, NAMES, Asked, hostile_cells, hostile_evaluation, kept_results
from tests.helpers.made_cells import made_cell

TAGS = {
    *("html", "head", "meta", "title", "link", "style", "body", "main", "h1", "h2", "nav", "ul", "li", "a", "section"),
    *("p", "dl", "dt", "dd", "pre", "code", "div", "table", "caption", "thead", "tbody", "tr", "th", "td", "strong"),
    *("br", "small", "figure", "img", "figcaption"),
}
ATTRIBUTES = {
    *("lang", "charset", "http-equiv", "content", "name", "rel", "href", "class", "id", "aria-label", "role", "scope"),
    *("aria-labelledby", "tabindex", "src", "width", "height", "alt"),
}


class Seen(HTMLParser):
    """What a browser makes of a page: its tags with their attributes, and the texts that it shows."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.comments: list[str] = []
        self.texts = [""]
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.texts.append("")

    def handle_endtag(self, tag: str) -> None:
        self.texts.append("")

    def handle_comment(self, data: str) -> None:
        self.comments.append(data)

    def handle_data(self, data: str) -> None:
        self.texts[-1] += data


def leaves(tokens: list[Token] | None) -> Iterator[Token]:
    for token in tokens or []:
        yield token
        yield from leaves(token.children)


def check_html(text: str, expected: Sequence[str]) -> None:
    seen = Seen(text)
    assert {tag for tag, _ in seen.tags} <= TAGS and seen.comments == []
    assert [tag for tag, _ in seen.tags].count("pre") == 1
    for tag, attributes in seen.tags:
        assert set(attributes) <= ATTRIBUTES
        assert tag != "a" or str(attributes["href"]).startswith("#")
        assert tag != "img" or str(attributes["src"]).startswith("data:image/png;base64,")
    shown = "\n".join(seen.texts)
    assert [text for text in expected if one_line(text) not in shown] == []


def check_markdown(text: str, expected: Sequence[str], fences: int, comments: Sequence[str] = ()) -> set[str]:
    """Check a text; return the kinds of its parts."""
    tokens = list(leaves(MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(text)))
    kinds = {token.type for token in tokens}
    assert not kinds & {"code_inline", "em_open", "s_open", "hr", "code_block", "blockquote_open", "ordered_list_open"}
    assert {token.content for token in tokens if token.type == "html_inline"} <= {"<br>"}
    assert {token.content.strip() for token in tokens if token.type == "html_block"} == set(comments)
    assert all(str(token.attrs["href"]).startswith("#") for token in tokens if token.type == "link_open")
    pictures = [str(token.attrs["src"]) for token in tokens if token.type == "image"]
    assert all(re.fullmatch(r"figures/[\w.%~-]+\.png", picture) for picture in pictures)
    assert [token.type for token in tokens].count("fence") == fences
    headings = [at for at, token in enumerate(tokens) if token.type == "heading_open"]
    assert [tokens[at].tag for at in headings] == fences * ["h1", *["h2"] * (len(headings) - 1)]
    assert all(re.fullmatch("[A-Z][A-Za-z, ]+", tokens[at + 1].content) for at in headings[1:])
    # GitHub makes links and formulas of these where nothing marks them
    plain = re.sub(r"^(`{3,})\n.*?^\1$", "", text, flags=re.DOTALL | re.MULTILINE)
    assert re.findall(r"(?:https?|ftp)://|www\.|[\w.+-]@[\w-]+\.\w|(?<!\\)\$", plain, re.IGNORECASE) == []
    shown = "\n".join(token.content for token in tokens if token.type in ("text", "fence"))
    shown = shown.replace("\N{WORD JOINER}", "")
    assert [text for text in expected if one_line(text) not in shown] == []
    return kinds


def checked(folder: Path, expected: Sequence[str]) -> None:
    check_html((folder / "report.html").read_text(encoding="utf-8"), expected)
    check_markdown((folder / "report.md").read_text(encoding="utf-8"), expected, fences=1)


def test_there_are_enough_hostile_texts() -> None:
    assert len(set(HOSTILE)) >= 40


@pytest.mark.slow
def test_in_a_comparison(tmp_path: Path) -> None:
    unfinished = {text: text for text in HOSTILE}
    write_report(ComparisonResult(EVERY, "\n".join(HOSTILE), hostile_cells(HOSTILE), unfinished), tmp_path)
    assert (tmp_path / "figures" / "accuracy_against_compute.png").is_file()
    checked(tmp_path, HOSTILE)


@pytest.mark.slow
def test_in_a_run_and_in_figures(tmp_path: Path) -> None:
    for place, text in enumerate(("$\\frac{x$ $y$", "_x", "x@<b>\0and a long one")):
        folder = tmp_path / str(place)
        write_report(ComparisonResult(text, text, [made_cell(text, agent="own:Agent")], {}), folder)
        assert len(list((folder / "figures").iterdir())) == 4
        checked(folder, (text,))


@pytest.mark.slow
def test_in_methods_and_presets(tmp_path: Path) -> None:
    found = [cell for name in NAMES for cell in hostile_cells(("fixed", "random"), name)]
    write_report(ComparisonResult("methods", "x", found, {}), tmp_path)
    checked(tmp_path, NAMES)


@pytest.mark.slow
def test_in_an_evaluation(tmp_path: Path) -> None:
    hostile_evaluation(tmp_path)
    write_page(evaluation_page(tmp_path), tmp_path)
    checked(tmp_path, HOSTILE)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Asked]]:
    results = tmp_path_factory.mktemp("results")
    return results, kept_results(results)


@pytest.mark.parametrize("kind", TABLES)
def test_in_the_tables_of_a_document(kind: str, kept: tuple[Path, dict[str, Asked]]) -> None:
    results, asked = kept
    assert kind in asked, f"no hostile text has been in a table {kind}: add results to tests/helpers/hostile_results.py"
    comments = f"<!-- table {kind} {asked[kind].name} -->", "<!-- end -->"
    text = with_tables("\n".join(comments), results)
    kinds = check_markdown(text, asked[kind].shown, fences=0, comments=comments)
    assert kinds & {"td_open", "list_item_open"}
    # a table that is renewed ends at the first
    assert text.count(comments[1]) == 1


@pytest.mark.parametrize("text", HOSTILE)
def test_in_every_place_of_a_page(text: str) -> None:
    assert one_line(text).isprintable()
    rows = [[Entry(text, text, best=True), Entry(text, text)]]
    table = Table(text, text, [text, f"{text} 2"], rows, words=(text,))
    blocks: list[Block] = [Text(text), Items([(text, text)]), Code(text), table]
    page = Page(text, [Text(text, "answer")], [Section("Any", blocks)])
    check_html(to_html(page, Path()), (text,))
    check_markdown(to_markdown(page, "figures"), (text,), fences=1)
    [opened, _, _] = MarkdownIt("commonmark").enable("table").parse(block_in_markdown(Text(text)))
    assert opened.type == "paragraph_open"
