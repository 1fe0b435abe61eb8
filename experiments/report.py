"""Report a comparison of agents, runs, or an evaluation: one HTML page, the same as Markdown, and its figures.

python experiments/report.py comparisons/NAME            # what compare_agents.py made, finished or not
python experiments/report.py runs/NAME                   # a single run
python experiments/report.py runs/A runs/B --out DIR     # several runs; each agent is an arm
python experiments/report.py runs/NAME/evaluation        # what evaluate_encoder.py found

Writes report.html (one file that opens offline, with its pictures inside), report.md and figures/*.png.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

if not __package__:
    # run as a script: this checkout comes first, and what lies beside this file hides nobody's module
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from astra_gym.experiments.comparison.cell_results import Cell, ComparisonResult, read_comparison, summarise
from astra_gym.experiments.config.argparser import OneLineParser
from astra_gym.experiments.evaluation.store import EVALUATION
from astra_gym.experiments.reports.comparison_report import report
from astra_gym.experiments.reports.evaluation_report import evaluation_page
from astra_gym.experiments.reports.page import Page, to_html, to_markdown
from astra_gym.experiments.runs.run_folder import RunFolder
from astra_gym.ssl_core.utils.files import replacing

COMPARISON = "comparison.json"


def read(paths: Sequence[Path]) -> ComparisonResult:
    """What is to be reported.

    Args:
        paths: one comparison, as a folder or its `comparison.json`, or run folders.

    Raises:
        ValueError: if a path is neither, or a comparison stands beside others, or what it holds is damaged or
            unfinished.
    """
    files = [path / COMPARISON if (path / COMPARISON).is_file() else path for path in paths]
    comparisons = [file for file in files if not file.is_dir()]
    if comparisons and len(files) > 1:
        raise ValueError(f"{comparisons[0]} is not a run folder: give one comparison alone, or run folders")
    if comparisons:
        return read_comparison(files[0])
    for path in paths:
        if not (path / "config.yaml").is_file():
            raise ValueError(f"{path} is neither a comparison (no {COMPARISON}) nor a run folder (no config.yaml)")
    commands = [RunFolder.open(path).command.read_text(encoding="utf-8").strip() for path in paths]
    name = paths[0].resolve().name if len(paths) == 1 else f"{len(paths)} runs"
    return ComparisonResult(name, "\n".join(commands), labelled([summarise(path) for path in paths]), {})


def labelled(cells: Sequence[Cell]) -> list[Cell]:
    """Cells of single runs with arms by their agents, told apart by the settings in which runs of one agent differ."""
    arms = []
    for cell in cells:
        same = [other for other in cells if (other.agent, other.method, other.preset) == key(cell)]
        names = [
            name
            for name in cell.settings
            if name not in ("seed", "progress")
            and any(other.settings.get(name) != cell.settings[name] for other in same)
        ]
        values = ",".join(f"{name}={cell.settings[name]}" for name in names)
        arms.append(f"{cell.agent}@{values}" if values else cell.agent)
    return [replace(cell, arm=arm) for cell, arm in zip(cells, arms, strict=True)]


def key(cell: Cell) -> tuple[str, str, str]:
    """What runs have in common that are compared under one agent's name."""
    return cell.agent, cell.method, cell.preset


def write(comparison: ComparisonResult, folder: Path) -> Path:
    """Writes the report and its figures into a folder; returns the HTML's path.

    Raises:
        ValueError: if no run is finished, or an arm has a seed twice.
    """
    return write_page(report(comparison, folder / "figures"), folder)


def write_page(page: Page, folder: Path) -> Path:
    """Writes a page, whose figures lie in `folder/figures`, as `report.md` and `report.html`; returns that path."""
    figures = folder / "figures"
    for name, text in (("report.md", to_markdown(page, figures.name)), ("report.html", to_html(page, figures))):
        with replacing(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return folder / "report.html"


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status, 0. Bad input ends the process with status 2 and one line."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = OneLineParser(prog="report.py", description=__doc__, formatter_class=raw, allow_abbrev=False)
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="a comparison, or run folders")
    parser.add_argument("--out", type=Path, metavar="DIR", help="by default the folder that is reported")
    given = parser.parse_args(argv)
    try:
        if given.out is None and len(given.paths) > 1:
            raise ValueError("several runs have no folder in common: say by --out DIR where the report goes")
        [first, *_] = given.paths
        if (first / EVALUATION).is_file():
            if len(given.paths) > 1 or given.out is not None:
                raise ValueError(f"{first} is an evaluation: its report is made of it alone, and lies in it")
            page = write_page(evaluation_page(first), first)
        else:
            page = write(read(given.paths), given.out or (first if first.is_dir() else first.parent))
    except (ValueError, OSError) as error:
        parser.error(str(error))
    print(f"report: {page}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
