"""Keep the results of finished runs as JSON under results/, and make the tables of README and docs/ from them.

# keep these runs' results under results/PRESET, then renew the tables
python experiments/publish.py runs/A runs/B
# keep them under results/fp32 instead
python experiments/publish.py runs/A runs/B --group fp32
# keep a comparison and its report under results/comparisons/NAME
python experiments/publish.py comparisons/NAME
# keep an evaluation under results/evaluations/X
python experiments/publish.py runs/NAME/evaluation --group X
# renew the tables of README and docs/ from what is kept
python experiments/publish.py
# say whether the tables are those of the kept results
python experiments/publish.py --check
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

from astra_gym.experiments.comparison.cell_results import COMPARISON
from astra_gym.experiments.config.argparser import CommandParser
from astra_gym.experiments.config.frame import Ending, framed
from astra_gym.experiments.evaluation.store import EVALUATION
from astra_gym.experiments.reports.family_tables import draw_families
from astra_gym.experiments.reports.keeping import keep, keep_comparison, keep_evaluation
from astra_gym.experiments.reports.published_tables import with_tables
from astra_gym.ssl_core.safety.disk import disk_error
from astra_gym.ssl_core.settings.records import SWITCH, Notes
from astra_gym.ssl_core.utils.files import write_file
from astra_gym.ssl_core.utils.messages import few
from astra_gym.ssl_core.utils.provenance import CHECKOUT


@dataclass(frozen=True, kw_only=True)
class PublishFlags:
    """What is kept, and where.

    Args:
        runs: folders of runs, comparisons or evaluations to be kept.
        group: folder in results/ for these runs; by default their preset's name.
        pictures: keep these runs' pictures too.
        results: folder of the kept results.
        readme: file with tables; the pages of docs/ beside it are read too.
        check: write nothing; end with status 1 if the tables are stale.
    """

    runs: Annotated[tuple[Path, ...], Notes(positional=True, nargs="*", unit="PATH")] = ()
    group: str | None = None
    pictures: Annotated[bool, SWITCH] = False
    results: Annotated[Path | None, Notes(unit="DIR")] = CHECKOUT and CHECKOUT / "results"
    readme: Annotated[Path | None, Notes(unit="FILE")] = CHECKOUT and CHECKOUT / "README.md"
    check: Annotated[bool, SWITCH] = False


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status: 0 done, 1 a table is stale (`--check`), 2 bad input, 128 + N if
    signal N stopped it."""
    return framed("publish", argv, _main)


def _main(argv: list[str], ending: Ending) -> int:
    parser = CommandParser("publish", PublishFlags, __doc__, "[PATH ...] [--FLAG VALUE ...]")
    options = parser.read(argv)
    if options.results is None or options.readme is None:
        parser.error(
            "there is no checkout here: give --results DIR and --readme FILE, where results and tables are kept"
        )
    ending.place, ending.kept = options.results, "what was kept before is whole"
    ending.stopped = f"interrupted: {ending.kept}; {ending.after}"
    try:
        for run in options.runs:
            if (run / COMPARISON).is_file():
                if options.group or options.pictures:
                    raise ValueError(f"{run} is a comparison: --group and --pictures are for runs, leave them out")
                print(f"kept {keep_comparison(run, options.results)}")
            elif (run / EVALUATION).is_file():
                print(f"kept {keep_evaluation(run, options.results, options.group)}")
            else:
                print(f"kept {keep(run, options.results, options.pictures, options.group)}")
        texts = {page: page.read_text(encoding="utf-8") for page in pages(options.readme)}
        renewed = {page: with_tables(text, options.results) for page, text in texts.items()}
    except (OSError, ValueError) as error:
        if disk_error(error):
            raise
        parser.error(str(error))
    stale = [page for page, text in texts.items() if renewed[page] != text]
    if options.check:
        names = [page.relative_to(options.readme.parent) for page in stale]
        print(f"stale tables: {few(names)}" if stale else "the tables are those of the results")
        return int(bool(stale))
    for page in stale:
        write_file(page, renewed[page])
    for picture in draw_families(options.results, {run.resolve().name for run in options.runs}):
        print(f"drew {picture}")
    return 0


def pages(readme: Path) -> list[Path]:
    """Return the documents with tables: the README, and the pages of docs/ beside it."""
    return [readme, *sorted((readme.parent / "docs").rglob("*.md"))]


if __name__ == "__main__":
    sys.exit(main())
