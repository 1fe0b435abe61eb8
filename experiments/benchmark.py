"""What the fast path is worth: every figure is a ratio or a share, measured in one run on the same work.

python experiments/benchmark.py
python experiments/benchmark.py --parts attack step --repeats 5 --threads 2 --output results/benchmark.json
python experiments/benchmark.py --compare results/benchmark.json --output new.json
python experiments/benchmark.py --profile profile/

Variants are measured in turn (ABCD ABCD ...), in each round all of them on the same work, which is new in each round; a
first round, which does not count, warms up. A figure is the median over the rounds, with its quartiles. Only `start` is
in seconds, since it is a limit. The parts, each told by the function that measures it:

attack      `experiments.speed.measure_attack`: the reference's masked loop against ours, and what each idea is worth
step        `experiments.speed.measure_step`: a whole training step against a plain twin of the reference's
precision   `experiments.speed.measure_precision`: bfloat16 against float32 in observation, attack and update
shares      `experiments.overheads.measure_shares`: where the time of a run goes
agents      `experiments.overheads.measure_agents`: every agent's share of a step
scaling     `experiments.costs.measure_scaling`: what an attack's time grows with
efficiency  `experiments.costs.measure_efficiency`: FLOPs used, of those that matrix products reach here
data        `experiments.feeding.measure_data`: gathering batches from 2.8 GB on disk, beside training on them
start       `experiments.overheads.measure_start`: seconds to the first training step
training    `experiments.checkouts.measure_training`: with --against, make demo's training there and here
"""

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

# the checkout comes first: other distributions have packages called agents and envs too
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from rich.console import Console

from experiments.benchmark_report import draw, figures_table, targets_line
from experiments.checkouts import check_checkout, measure_training
from experiments.comparing import SCHEMA, compare, comparison_table, count, differences, read
from experiments.costs import measure_efficiency, measure_scaling, write_profile
from experiments.feeding import measure_data
from experiments.measuring import Figure, Result
from experiments.overheads import measure_agents, measure_shares, measure_start
from experiments.runlog import ROOT
from experiments.settings import DEVICES, resolve_device
from experiments.speed import measure_attack, measure_precision, measure_step
from experiments.workloads import BenchmarkError, Options
from ssl_core.lookup import pick
from ssl_core.results import commit, replacing, versions

AGAINST = "training"
"""The part that needs another checkout."""


class Part(NamedTuple):
    """A part of the benchmark: what measures it, and in how many rounds where nothing is said."""

    measure: Callable[[Options, int, Callable[[str], None]], Result]
    rounds: int


PARTS = {
    "attack": Part(measure_attack, 3),
    "step": Part(measure_step, 3),
    "precision": Part(measure_precision, 3),
    "shares": Part(measure_shares, 3),
    "agents": Part(measure_agents, 3),
    "scaling": Part(measure_scaling, 3),
    "efficiency": Part(measure_efficiency, 3),
    "data": Part(measure_data, 3),
    "start": Part(measure_start, 3),
    AGAINST: Part(measure_training, 3),
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())}\n")


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; ends the process with status 2 and one line if anything is wrong with it.

    `device` is resolved, `old` is the earlier result of `--compare` (None without), `picture` a path.
    """
    raw = argparse.RawDescriptionHelpFormatter
    parser = _Parser(prog="benchmark.py", description=__doc__, formatter_class=raw, allow_abbrev=False)
    parser.add_argument("--parts", nargs="+", metavar="PART", help="by default all; training only with --against")
    parser.add_argument("--against", type=Path, metavar="CHECKOUT", help="another checkout, for the part training")
    parser.add_argument("--repeats", type=int, metavar="N", help="rounds that count; by default 3")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), metavar="N", help="of torch")
    parser.add_argument("--device", default="auto", metavar="NAME", help=", ".join(DEVICES))
    parser.add_argument("--output", type=Path, default=Path("results/benchmark.json"), metavar="FILE")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="a PNG, by default beside the output")
    parser.add_argument("--compare", type=Path, metavar="OLD.json", help="an earlier result, to mark what changed")
    parser.add_argument("--profile", type=Path, metavar="DIR", help="instead: profile one attack and one update")
    parser.add_argument("--quick", action="store_true", help="tiny networks, to try the command: figures mean nothing")
    given = parser.parse_args(argv)
    try:
        parts = [name for name in PARTS if name != AGAINST or given.against] if given.parts is None else given.parts
        for part in parts:
            pick(part, PARTS, "part")
        given.parts = list(dict.fromkeys(parts))
        if (AGAINST in given.parts) != (given.against is not None):
            raise ValueError(f"--against CHECKOUT and the part {AGAINST!r} need each other")
        given.against = given.against and check_checkout(given.against)
        for name in ("repeats", "threads"):
            value = getattr(given, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name}: expected 1 or more, got {value}")
        given.device = resolve_device(given.device)
        given.old = None if given.compare is None else _old(given.compare, given.quick)
        if given.profile is not None:
            if given.profile.exists() and not given.profile.is_dir():
                raise ValueError(f"--profile: {given.profile} is a file: expected a folder")
            return given
        if given.output.is_dir():
            raise ValueError(f"--output: {given.output} is a folder: expected a file")
        given.picture = given.picture or given.output.with_suffix(".png")
        if given.picture.suffix.lower() != ".png":
            raise ValueError(f"--picture: expected a file that ends in .png, got {given.picture}")
        for name in ("output", "picture"):
            _check_writable(name, getattr(given, name))
    except (OSError, ValueError) as error:
        parser.error(str(error))
    return given


def _old(path: Path, quick: bool) -> dict[str, Any]:
    try:
        return read(path, quick)
    except ValueError as error:
        raise ValueError(f"--compare: {error}") from error


def _check_writable(name: str, path: Path) -> None:
    """Raises a ValueError unless the file can be written; makes its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise ValueError(f"--{name}: {path} cannot be written: expected a file in a folder that can be")


def processor() -> str:
    """The processor's name as the system tells it."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text(encoding="utf-8").splitlines() if information.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def document_of(options: Options, figures: Sequence[Figure], details: dict[str, Any]) -> dict[str, Any]:
    """What the results file holds: the circumstances, the figures with their summaries, and what explains them."""
    device = options.device
    return {
        "schema": SCHEMA,
        "quick": options.quick,
        "commit": commit(ROOT),
        "versions": versions(),
        "processor": processor(),
        "threads": options.threads,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "figures": [figure.record() for figure in figures],
        "details": details,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status: 0 done (targets met or not), 1 if something cannot be measured.

    Attacks that disagree cannot: their times are not those of the same work.
    """
    given = parse(argv)
    torch.set_num_threads(given.threads)
    options = Options(given.threads, given.device, given.quick, given.against)
    console = Console(highlight=False)

    def say(text: str) -> None:
        console.print(text, soft_wrap=True, markup=False)

    if given.profile is not None:
        made = write_profile(given.profile, options)
        say(f"the trace is {made.trace} (Perfetto, chrome://tracing, TensorBoard), its operators are in {made.table}")
        return 0
    figures: list[Figure] = []
    details: dict[str, Any] = {}
    try:
        for name in given.parts:
            part = PARTS[name]
            found, details[name] = part.measure(options, given.repeats or (1 if given.quick else part.rounds), say)
            figures += found
    except BenchmarkError as error:
        print(f"benchmark.py: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    document = document_of(options, figures, details)
    with replacing(given.output) as temporary:
        temporary.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    drawn = draw(figures, details, given.picture)
    console.print(figures_table(figures))
    say(targets_line(figures))
    say(f"written: {given.output}" + (f", {given.picture}" if drawn else "; there is nothing to draw in these parts"))
    if given.old is not None:
        lines = compare(given.old, document)
        console.print(comparison_table(lines))
        for difference in differences(given.old, document):
            say(f"not under the same circumstances: {difference}")
        say(f"{given.compare}: {count(lines)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
