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
from pathlib import Path

if not __package__:
    # run as a script: this checkout comes first, and what lies beside this file (entry 0) hides nobody's module
    sys.path[: not sys.flags.safe_path] = [str(Path(__file__).resolve().parents[1])]
    # before the imports that take seconds: from here on a signal ends this process with a line
    from astra_gym.ssl_core.utils import stopping  # noqa: F401

from astra_gym.experiments.config.argparser import OneLineParser, path_argument
from astra_gym.experiments.config.commands import help_text, program
from astra_gym.experiments.config.frame import Ending, framed
from astra_gym.experiments.evaluation.store import EVALUATION
from astra_gym.experiments.reports.comparison_report import read_runs, write_report
from astra_gym.experiments.reports.evaluation_report import evaluation_page
from astra_gym.experiments.reports.rendering import write_page
from astra_gym.ssl_core.safety.disk import disk_error
from astra_gym.ssl_core.utils.paths import check_place


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status, 0, or 128 + N stopped by signal N. Bad input ends the process with status 2
    and one line."""
    return framed("report", argv, _main)


def _main(argv: list[str], ending: Ending) -> int:
    raw = argparse.RawDescriptionHelpFormatter
    parser = OneLineParser(
        prog=program("report"), description=help_text(__doc__), formatter_class=raw, allow_abbrev=False
    )
    parser.add_argument("paths", nargs="+", type=path_argument, metavar="PATH", help="a comparison, or run folders")
    parser.add_argument("--out", type=path_argument, metavar="DIR", help="by default the folder that is reported")
    given = parser.parse_args(argv)
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
