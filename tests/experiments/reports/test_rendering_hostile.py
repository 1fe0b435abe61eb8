"""Nothing that a user or a file writes becomes markup: hostile texts in every place of every report."""

import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from markdown_it import MarkdownIt
from markdown_it.token import Token

from astra_gym.experiments.benchmarks.measure import Figure
from astra_gym.experiments.benchmarks.results_file import document_of
from astra_gym.experiments.benchmarks.workloads import Options
from astra_gym.experiments.comparison.cell_results import ComparisonResult, write_comparison
from astra_gym.experiments.evaluation.store import EvaluationStore
from astra_gym.experiments.reports.comparison_report import write_report
from astra_gym.experiments.reports.document import Block, Code, Entry, Items, Page, Section, Table, Text
from astra_gym.experiments.reports.evaluation_report import evaluation_page
from astra_gym.experiments.reports.published_tables import with_tables
from astra_gym.experiments.reports.rendering import block_in_markdown, one_line, to_html, to_markdown, write_page
from astra_gym.ssl_core.evaluation.results import Origin, write_results

HOSTILE = (
    *("<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "</td></tr></table><h1>x", "</title><base href=x>"),
    *('"><svg onload=x>', "' onmouseover='x", "&lt;b&gt;&#60;i&#62;", "<!-- x", "--> <b>x", "<![CDATA[x]]>", "<br>"),
    *("[x](javascript:x)", "![x](https://x.example/y.png)", "[x]: https://x.example", "[x][y]", "<https://x.example>"),
    *("https://x.example/y?z=1", "HTTP://x.example ftp://x.example", "www.x.example", "me@x.example", "[^1]"),
    *("```", "~~~ sh", "x\n```\ny\n````", "`x` ``y`` `", "    indented", "\tx", "# x", "x\n# y", "- x", "+ x"),
    *("1. x", "12) x", "> x", "---", "x\n===", "***", "| a | b |", "a|b\n-|-\nc|d", "**x** __y__ *z* _w_ ~~v~~"),
    *("x.__y__.z", "\\", "x\\", "$\\frac{x$ $y$", "{{ page.title }}{% raw %}", "{0} %s", "_x", "\x1b[31mx\x1b[0m"),
    *("x\0y\u202ez", "<details open><summary>x"),
)
NAMES = tuple(text for text in HOSTILE if text.isprintable() and not set(text) & {"/", "\\"})
"""What a folder, a method or a preset can be called."""
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


def check_html(text: str, expected: tuple[str, ...]) -> None:
    seen = Seen(text)
    assert {tag for tag, _ in seen.tags} <= TAGS and seen.comments == []
    assert [tag for tag, _ in seen.tags].count("pre") == 1
    for tag, attributes in seen.tags:
        assert set(attributes) <= ATTRIBUTES
        assert tag != "a" or str(attributes["href"]).startswith("#")
        assert tag != "img" or str(attributes["src"]).startswith("data:image/png;base64,")
    shown = "\n".join(seen.texts)
    assert [text for text in expected if one_line(text) not in shown] == []


def check_markdown(text: str, expected: tuple[str, ...], fences: int, comments: tuple[str, ...] = ()) -> None:
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
    # GitHub makes links of these where nothing marks them
    plain = re.sub(r"^(`{3,})\n.*?^\1$", "", text, flags=re.DOTALL | re.MULTILINE)
    assert re.findall(r"(?:https?|ftp)://|www\.|[\w.+-]@[\w-]+\.\w", plain, re.IGNORECASE) == []
    shown = "\n".join(token.content for token in tokens if token.type in ("text", "fence"))
    shown = shown.replace("\N{WORD JOINER}", "")
    assert [text for text in expected if one_line(text) not in shown] == []


def checked(folder: Path, expected: tuple[str, ...]) -> None:
    check_html((folder / "report.html").read_text(encoding="utf-8"), expected)
    check_markdown((folder / "report.md").read_text(encoding="utf-8"), expected, fences=1)


def cells(make_cell: Any, arms: tuple[str, ...], method: str = "astra") -> list[Any]:
    """A cell an arm, with the arm's text in all that it holds; rewards and choices are not drawn."""
    return [
        make_cell(
            arm,
            accuracy={0.0: 95.0, 8 / 255: 50.0 + place % 7},
            agent="own:Agent",
            method=method,
            settings={"own": arm, arm: place, "agent_kwargs": {arm: [arm]}, "reward_own": arm},
            versions={arm: arm},
            commits=[arm],
            device=arm,
            damage=[arm],
            attack_steps=1000 * (place + 1),
            curve={"step": [1, 2]},
            shares={},
            by_clean_loss={},
        )
        for place, arm in enumerate(arms)
    ]


def test_there_are_enough_hostile_texts() -> None:
    assert len(set(HOSTILE)) >= 40


@pytest.mark.slow
def test_in_a_comparison(make_cell: Any, tmp_path: Path) -> None:
    unfinished = {text: text for text in HOSTILE}
    name = " ".join(HOSTILE)
    write_report(ComparisonResult(name, "\n".join(HOSTILE), cells(make_cell, HOSTILE), unfinished), tmp_path)
    assert (tmp_path / "figures" / "accuracy_against_compute.png").is_file()
    checked(tmp_path, HOSTILE)


@pytest.mark.slow
def test_in_a_run_and_in_figures(make_cell: Any, tmp_path: Path) -> None:
    for place, text in enumerate(("$\\frac{x$ $y$", "_x", "x@<b>\0and a long one")):
        folder = tmp_path / str(place)
        write_report(ComparisonResult(text, text, [make_cell(text, agent="own:Agent")], {}), folder)
        assert len(list((folder / "figures").iterdir())) == 4
        checked(folder, (text,))


@pytest.mark.slow
def test_in_methods_and_presets(make_cell: Any, tmp_path: Path) -> None:
    found = [cell for name in NAMES for cell in cells(make_cell, ("fixed", "random"), name)]
    write_report(ComparisonResult("methods", "x", found, {}), tmp_path)
    checked(tmp_path, NAMES)


def evaluated(folder: Path) -> None:
    rows = []
    for text in HOSTILE:
        origin = Origin(protocol="slf", route="pgd", seed=0, checkpoint=text, commit=text, deviations=(text,))
        rows += [origin.accuracy("SA", 180, 200), origin.accuracy("RA", 90, 200, attack="pgd20", epsilon=8 / 255)]
        rows.append(
            Origin(protocol="features", route="pgd", seed=0, checkpoint="x", commit="x").figure(
                "effective_rank", 12.5, 200, condition=text
            )
        )
    every = " ".join(HOSTILE)
    facts: dict[str, Any] = {"name": every, "commit": every, "device": every, "command": "\n".join(HOSTILE)}
    facts |= {"threads": 1, "versions": {text: text for text in HOSTILE}, "void": {text: text for text in HOSTILE}}
    facts |= {"notes": {text: [text] for text in HOSTILE}, "data": {"name": every, "train": 1, "test": 1}}
    EvaluationStore(folder).conclude(rows, facts)


@pytest.mark.slow
def test_in_an_evaluation(tmp_path: Path) -> None:
    evaluated(tmp_path)
    write_page(evaluation_page(tmp_path), tmp_path)
    checked(tmp_path, HOSTILE)


def test_in_the_tables_of_a_document(make_cell: Any, tmp_path: Path) -> None:
    (tmp_path / "comparisons" / "x").mkdir(parents=True)
    write_comparison(
        tmp_path / "comparisons" / "x" / "comparison.json",
        ComparisonResult("x", "", cells(make_cell, HOSTILE), {}, tests=tuple(pairwise(HOSTILE))),
    )
    evaluated(tmp_path / "evaluations" / "x")
    for name in NAMES:
        origin = Origin(protocol="slf", route="pgd", seed=0, checkpoint="step-9", commit="x")
        write_results(tmp_path / "x" / f"{name}-seed0" / "slf.json", [origin.accuracy("SA", 180, 200)])
    figures = [Figure("x", text, "share", (0.5,)) for text in HOSTILE]
    document = document_of(Options(1, torch.device("cpu")), figures, {})
    document |= {"processor": " ".join(HOSTILE), "versions": {"torch": "2"}}
    (tmp_path / "benchmark.json").write_text(json.dumps(document), encoding="utf-8")
    evaluated(tmp_path / "evaluations" / "x-<b>")
    kinds = ("accuracy", "benchmark", "evaluated-accuracy", "evaluated-health", "evaluated-remarks", "evaluated-arms")
    kinds += ("compared-accuracy", "compared-compute", "compared-methods", "compared-primary", "compared-others")
    # what some show is less: a folder's arm, no arm, the arms after the first
    shown = {"accuracy": NAMES, "evaluated-arms": ("<b>",), "compared-strategies": (), "compared-coresets": ()}
    shown["compared-others"] = HOSTILE[1:]
    for kind in (*kinds, "compared-strategies", "compared-coresets", "headroom-compared"):
        text = with_tables(f"<!-- table {kind} x -->\n<!-- end -->\n", tmp_path)
        names = shown.get(kind, HOSTILE)
        check_markdown(text, names, fences=0, comments=(f"<!-- table {kind} x -->", "<!-- end -->"))


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
