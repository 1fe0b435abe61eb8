"""Report an evaluation, one or more runs, or a comparison of agents: an HTML page, the same as Markdown, and figures.

# what compare_agents.py made, finished or not
python experiments/report.py comparisons/NAME
# a single run
python experiments/report.py runs/NAME
# several runs, grouped by agent
python experiments/report.py runs/A runs/B --out DIR
# what evaluate_encoder.py found
python experiments/report.py runs/NAME/evaluation

Writes report.html (one file that opens offline, with its pictures inside), report.md and figures/*.png.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

if not __package__:
    # for a script, put this checkout first, in place of this file's folder, whose files would shadow modules
    sys.path[: not sys.flags.safe_path] = [str(Path(__file__).resolve().parents[1])]
    # imported before all slow modules: from here on a signal ends this process with one line of text
    from astra_gym.ssl_core.utils import stopping  # noqa: F401

from astra_gym.experiments.config.argparser import CommandParser
from astra_gym.experiments.config.frame import Ending, framed
from astra_gym.experiments.evaluation.store import EVALUATION
from astra_gym.experiments.reports.comparison_report import read_runs, write_report
from astra_gym.experiments.reports.evaluation_report import evaluation_page
from astra_gym.experiments.reports.rendering import write_page
from astra_gym.ssl_core.safety.disk import disk_error
from astra_gym.ssl_core.settings.records import Notes
from astra_gym.ssl_core.utils.paths import check_place


@dataclass(frozen=True, kw_only=True)
class ReportFlags:
    """What is reported, and where to.

    Args:
        paths: a comparison, an evaluation, or run folders.
        out: folder of the report; by default the folder that is reported.
    """

    paths: Annotated[tuple[Path, ...], Notes(positional=True, nargs="+", unit="PATH")]
    out: Annotated[Path | None, Notes(unit="DIR")] = None


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status: 0, or 128 + N if signal N stopped it. Bad input ends the process with
    status 2 and one line."""
    return framed("report", argv, _main)


def _main(argv: list[str], ending: Ending) -> int:
    parser = CommandParser("report", ReportFlags, __doc__, "PATH [PATH ...] [--out DIR]")
    given = parser.read(argv)
    try:
        if given.out is None and len(given.paths) > 1:
            raise ValueError("several runs have no folder in common: say by --out DIR where the report goes")
        [first, *_] = given.paths
        if given.out is not None:
            check_place(given.out, "--out")
        ending.place = given.out or (first if first.is_dir() else first.parent)
        ending.kept, ending.stopped = (
            "the report is unfinished",
            f"interrupted: the report is unfinished; {ending.after}",
        )
        if (first / EVALUATION).is_file():
            if len(given.paths) > 1 or given.out is not None:
                raise ValueError(f"{first} is an evaluation: its report is made of it alone, and lies in it")
            page = write_page(evaluation_page(first), first)
        else:
            page = write_report(read_runs(given.paths), ending.place)
    except (ValueError, OSError) as error:
        if disk_error(error):
            raise
        parser.error(str(error))
    print(f"report: {page}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
