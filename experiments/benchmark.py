"""Benchmark the fast path: every value is a ratio or a share, measured in one run on the same work.

# the usual parts
python experiments/benchmark.py
# two of them
python experiments/benchmark.py --parts attack step --repeats 5 --threads 2 --output results/benchmark.json
# the usual parts, compared with an earlier result
python experiments/benchmark.py --compare results/benchmark.json --output new.json
# one part anew, the others as they were
python experiments/benchmark.py --parts start --add_to results/benchmark.json
# where the time of an attack and an update goes
python experiments/benchmark.py --profile profile/

Variants are measured in turn (ABCD ABCD ...). In each round all variants do the same work, and each round has new work.
A first round warms up and does not count. A value is the median over the rounds, with its quartiles. In seconds are
only `start`, which is a limit, and `robustness`, beside its ratios. The parts, each described at its function in
experiments/benchmarks/:

attack      the reference's masked loop against ours, and the gain of each idea
step        a whole training step against a plain rewriting of the reference's
precision   bfloat16 against float32 in observation, attack and update
shares      where the time of a run goes
agents      every agent's share of a step
scaling     how an attack's time grows
efficiency  FLOPs per second, as a share of what matrix products reach here
evaluation  PGD-20 and AutoAttack against the loops of the reference's evaluation
data        reading batches from 2.8 GB on disk while training on them
robustness  seconds of training until arms are as robust as the paper's constant
start       seconds to the first training step
ranks       torchrun, a rank for each of --threads, against one process with as many
training    with --against, a training there and here

The results are written after every part, so an interrupted benchmark keeps its finished parts.
"""

import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

if not __package__:
    # for a script, put this checkout first, in place of this file's folder, whose files would shadow modules
    sys.path[: not sys.flags.safe_path] = [str(Path(__file__).resolve().parents[1])]
    # imported before all slow modules: from here on a signal ends this process with one line of text
    from astra_gym.ssl_core.utils import stopping  # noqa: F401

import torch
from rich.console import Console

from astra_gym.experiments.benchmarks.checkouts import check_checkout, measure_training
from astra_gym.experiments.benchmarks.compare import compare, comparison_table, count, differences, read
from astra_gym.experiments.benchmarks.costs import PROFILE, measure_scaling, write_profile
from astra_gym.experiments.benchmarks.data import measure_data
from astra_gym.experiments.benchmarks.efficiency import measure_efficiency
from astra_gym.experiments.benchmarks.evaluation import measure_evaluation
from astra_gym.experiments.benchmarks.measure import Result
from astra_gym.experiments.benchmarks.overheads import measure_agents, measure_shares, measure_start
from astra_gym.experiments.benchmarks.ranks import measure_ranks
from astra_gym.experiments.benchmarks.results_file import ResultsFile, document_of
from astra_gym.experiments.benchmarks.robustness import measure_robustness
from astra_gym.experiments.benchmarks.speed import measure_attack, measure_precision, measure_step
from astra_gym.experiments.benchmarks.tables import figures_table, targets_line
from astra_gym.experiments.benchmarks.workloads import BenchmarkError, Options
from astra_gym.experiments.config.argparser import CommandParser
from astra_gym.experiments.config.commands import program
from astra_gym.experiments.config.devices import resolve_device
from astra_gym.experiments.config.frame import Ending, framed
from astra_gym.ssl_core.settings.records import SWITCH, Notes, check_choices
from astra_gym.ssl_core.utils.device import ieee_fp32
from astra_gym.ssl_core.utils.files import check_target, resolved
from astra_gym.ssl_core.utils.messages import said
from astra_gym.ssl_core.utils.paths import check_place
from astra_gym.ssl_core.utils.stopping import status_of

AGAINST = "training"
"""The part that needs another checkout."""
RANKS = "ranks"
"""The part that needs two or more cores of the CPU."""


Measure = Callable[[Options, int, Callable[[str], None]], Result]
"""A function that measures a part, with the number of rounds, and reports what it does."""
PARTS: dict[str, Measure] = {
    "attack": measure_attack,
    "step": measure_step,
    "precision": measure_precision,
    "shares": measure_shares,
    "agents": measure_agents,
    "scaling": measure_scaling,
    "efficiency": measure_efficiency,
    "evaluation": measure_evaluation,
    "data": measure_data,
    "robustness": measure_robustness,
    "start": measure_start,
    RANKS: measure_ranks,
    AGAINST: measure_training,
}
ROUNDS = 3
"""Measured rounds of a part, unless told."""


@dataclass(frozen=True, kw_only=True)
class BenchmarkFlags:
    """What is measured, on which device, and where the results go.

    Args:
        parts: parts to measure; by default all, but training only with --against, and ranks only by name.
        against: another checkout, for the part training.
        repeats: measured rounds of each part; by default 3.
        threads: number of torch's threads; by default all that torch takes here.
        device: where it runs: auto (a GPU where there is one), cpu, cuda or cuda:N.
        output: file of the results.
        picture: a PNG of the results; by default beside the output.
        compare: an earlier result, to mark what changed.
        add_to: an earlier result of this machine; parts that are not measured now are copied from it.
        profile: folder for a profile of one attack and one update, made instead of measuring.
        quick: tiny networks, to try the command; the values mean nothing.
    """

    parts: Annotated[tuple[str, ...] | None, Notes(nargs="+", choices=PARTS, what="part", unit="PART")] = None
    against: Annotated[Path | None, Notes(unit="CHECKOUT")] = None
    repeats: Annotated[int | None, Notes(unit="N")] = None
    threads: int = torch.get_num_threads()
    device: str = "auto"
    output: Annotated[Path, Notes(unit="FILE")] = Path("results/benchmark.json")
    picture: Annotated[Path | None, Notes(unit="FILE")] = None
    compare: Annotated[Path | None, Notes(unit="OLD.json")] = None
    add_to: Annotated[Path | None, Notes(unit="OLD.json")] = None
    profile: Annotated[Path | None, Notes(unit="DIR")] = None
    quick: Annotated[bool, SWITCH] = False

    def __post_init__(self) -> None:
        check_choices(self)


@dataclass(frozen=True)
class BenchmarkRequest:
    """A checked command line.

    Args:
        flags: the flags as given.
        parts: names of `PARTS`, each once.
        options: options of the parts.
        picture: path of the picture.
        old: the earlier result of `--compare`.
        others: the earlier result of `--add_to`.
    """

    flags: BenchmarkFlags
    parts: Sequence[str]
    options: Options
    picture: Path
    old: dict[str, Any] | None
    others: dict[str, Any] | None


def parse(argv: Sequence[str]) -> BenchmarkRequest:
    """Parse the command line; if anything is wrong with it, end the process with status 2 and one line."""
    parser = CommandParser("benchmark", BenchmarkFlags, __doc__, "[--FLAG VALUE ...]")
    given = parser.read(argv)
    try:
        return _requested(given)
    except (OSError, ValueError) as error:
        parser.error(str(error))


def _requested(given: BenchmarkFlags) -> BenchmarkRequest:
    usual = [name for name in PARTS if name not in (AGAINST, RANKS) or (name == AGAINST and given.against)]
    parts = list(dict.fromkeys(given.parts or usual))
    if (AGAINST in parts) != (given.against is not None):
        raise ValueError(f"--against CHECKOUT and the part {AGAINST!r} need each other")
    against = given.against and check_checkout(given.against)
    for name in ("repeats", "threads"):
        value = getattr(given, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name}: expected 1 or more, got {value}")
    options = Options(given.threads, resolve_device(given.device), given.quick, against)
    picture = given.picture or given.output.parent / f"{given.output.stem}.png"
    old = None if given.compare is None else _old("compare", given.compare, given.quick)
    others = None if given.add_to is None else _old("add_to", given.add_to, given.quick)
    if others and (different := differences(others, document_of(options, [], {}))):
        raise ValueError(f"--add_to: {given.add_to} is of other circumstances ({different[0]}): measure all parts anew")
    made = BenchmarkRequest(given, parts, options, picture, old, others)
    if given.profile is not None:
        check_place(given.profile, "--profile")
        if not _writable(given.profile):
            raise ValueError(f"--profile: {given.profile} cannot be written to: expected a folder that can be")
        for name in PROFILE:
            _check_writable("profile", given.profile / name)
        return made
    if given.output.is_dir():
        raise ValueError(f"--output: {given.output} is a folder: expected a file")
    if picture.suffix.lower() != ".png":
        raise ValueError(f"--picture: expected a file that ends in .png, got {picture}")
    if resolved(picture) == resolved(given.output):
        raise ValueError(f"--output: {given.output} is the picture's path too: expected another, such as x.json")
    _check_writable("output", given.output)
    _check_writable("picture", picture)
    return made


def _old(name: str, path: Path, quick: bool) -> dict[str, Any]:
    try:
        return read(path, quick)
    except ValueError as error:
        raise ValueError(f"--{name}: {error}") from error


def _check_writable(name: str, path: Path) -> None:
    """Raise a ValueError unless the file can be written; make its folder."""
    if path.is_dir() or not _writable(path.parent):
        raise ValueError(f"--{name}: {path} cannot be written: expected a file in a folder that can be")
    try:
        check_target(path)
    except ValueError as error:
        raise ValueError(f"--{name}: {error}") from error


def _writable(folder: Path) -> bool:
    """Make the folder; return whether files can be made in it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # permissions are not enough to decide this, for example for a system's own folders
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        The exit status: 0 if all parts were measured, whether targets are met or not; 1 if a part cannot be measured
        (the others still are); 128 + N if signal N stopped it. Attacks that disagree cannot be measured, because their
        times are not those of the same work.
    """
    return framed("benchmark", argv, _main)


def _main(argv: list[str], ending: Ending) -> int:
    request = parse(argv)
    given = request.flags
    torch.set_num_threads(given.threads)
    report = ResultsFile(request.options, given.output, request.picture)
    if request.others is not None:
        report.take_over(request.others, request.parts)
    ending.place, ending.kept = (given.profile or given.output.parent), lambda: str(report)
    try:
        return _run(request, report)
    except KeyboardInterrupt as stop:
        # drawn even now, so that no earlier picture is beside the new file; a second interrupt skips this
        with suppress(KeyboardInterrupt):
            report.draw()
        parts = f" (parts: {', '.join(report.details)})" if report.details else ""
        print(f"{program('benchmark')}: interrupted: {report}{parts}", file=sys.stderr)
        return status_of(stop)


@ieee_fp32()
def _run(request: BenchmarkRequest, report: ResultsFile) -> int:
    given = request.flags
    console = Console(highlight=False)

    def say(text: str) -> None:
        console.print(text, soft_wrap=True, markup=False)

    if given.profile is not None:
        made = write_profile(given.profile, report.options)
        say(f"the trace is {made.trace} (Perfetto, chrome://tracing, TensorBoard), its operators are in {made.table}")
        return 0
    for name in request.parts:
        rounds = given.repeats or (1 if given.quick else ROUNDS)
        try:
            result = PARTS[name](report.options, rounds, say)
        except BenchmarkError as error:
            why = " ".join(str(error).split())
            print(said(program("benchmark"), f"the part {name!r} failed: {why}"), file=sys.stderr)
            report.fail(name, why)
        else:
            report.add(name, result)
    report.draw()
    if report.figures:
        console.print(figures_table(report.figures))
        say(targets_line(report.figures))
    say(str(report))
    if request.old is not None and report.figures:
        lines = compare(request.old, report.document)
        console.print(comparison_table(lines))
        for difference in differences(request.old, report.document):
            say(f"not under the same circumstances: {difference}")
        say(f"{given.compare}: {count(lines)}")
    return 1 if report.failed else 0


if __name__ == "__main__":
    sys.exit(main())
