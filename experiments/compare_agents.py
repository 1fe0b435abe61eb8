"""Compare agents: train each with several seeds, side by side, resumably.

python experiments/compare_agents.py --agents reinforce ppo bandit fixed fixed-max random --seeds 5
python experiments/compare_agents.py --arm 'cost=--agent reinforce --reward_cost 0.02' --equal_compute reinforce cost
python experiments/compare_agents.py --resume comparisons/NAME

Every cell (an arm with a seed) is an ordinary run in comparisons/NAME/cells/, one process with one thread; any flag
that is not among those below goes to the training of each, see train_agent.py --help. comparison.json holds what is
finished so far: report.py reads it. A comparison that was stopped, killed or had failing cells goes on by --resume.
With --dir, runs that already lie in DIR/cells/LABEL-seedN, or are cells of DIR/comparison.json, count if their settings
are the planned ones.
"""

import argparse
import itertools
import shlex
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

if not __package__:
    # run as a script: this checkout comes first, and what lies beside this file (entry 0) hides nobody's module
    sys.path[: not sys.flags.safe_path] = [str(Path(__file__).resolve().parents[1])]
    # before the imports that take seconds: from here on a signal ends this process with a line
    from astra_gym.ssl_core.utils import stopping  # noqa: F401


from astra_gym.experiments.comparison.arms import MOST_SEEDS, base_arms, check_equal_compute, without
from astra_gym.experiments.comparison.comparer import Comparer, try_arms
from astra_gym.experiments.comparison.folder import MOST_JOBS, ComparisonFolder, ComparisonPlan
from astra_gym.experiments.comparison.scheduler import locked
from astra_gym.experiments.config.argparser import OneLineParser, path_argument
from astra_gym.experiments.config.commands import help_text, program, recorded, typed
from astra_gym.experiments.config.frame import Ending, framed
from astra_gym.experiments.stats import COMPUTE, PRIMARY_ARMS
from astra_gym.ssl_core.safety.disk import disk_error, is_full

AGENTS = ("reinforce", "fixed", "fixed-max", "random")
SEEDS, PRIMARY_SEEDS = 5, 10
PRESET, METHOD = "digits-grid", "astra"


def _parser() -> OneLineParser:
    raw = argparse.RawDescriptionHelpFormatter
    usage = "%(prog)s [--FLAG VALUE ...], or %(prog)s --resume DIR [--jobs N] [--trust]"
    parser = OneLineParser(
        prog=program("compare"), usage=usage, description=help_text(__doc__), formatter_class=raw, allow_abbrev=False
    )
    parser.add_argument("--agents", nargs="+", metavar="NAME", help=f"by default {' '.join(AGENTS)}")
    parser.add_argument("--seeds", type=int, metavar="N", help=f"of each agent, from 0; by default {SEEDS}")
    parser.add_argument(
        "--primary_seeds",
        type=int,
        metavar="N",
        help=f"of {', '.join(PRIMARY_ARMS)}, whose comparisons are fixed beforehand; by default {PRIMARY_SEEDS} where "
        f"--seeds is {SEEDS} or more, else as many",
    )
    parser.add_argument("--preset", metavar="NAME", help=f"by default {PRESET}")
    parser.add_argument("--presets", nargs="+", metavar="NAME", help="several, each with all agents")
    parser.add_argument(
        "--methods", nargs="+", metavar="NAME", help=f"by default {METHOD}; several, each with all agents"
    )
    parser.add_argument(
        "--arm",
        action="append",
        metavar="'LABEL=FLAGS'",
        help=f"a custom arm: flags of {program('train')}; may be repeated",
    )
    parser.add_argument(
        "--equal_compute",
        nargs="+",
        metavar="ARM",
        help=f"at the end, for each of these a further arm ARM{COMPUTE} of so many epochs that it makes as many attack "
        "steps as the dearest arm",
    )
    parser.add_argument(
        "--jobs",
        type=int,
        metavar="N",
        help="processes at once; by default one a usable core, and no more than a GPU's memory holds",
    )
    parser.add_argument("--dir", type=path_argument, metavar="DIR", help="by default comparisons/PRESET, -2, -3, ...")
    parser.add_argument("--resume", type=path_argument, metavar="DIR", help="go on with a comparison")
    what = "import the modules that its plan or a config file names, which runs their code"
    parser.add_argument("--trust", action="store_true", help=what)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status: 0 done, 1 if a cell failed, 2 bad input, 128 + N stopped by signal N."""
    return framed("compare", argv, _main)


def _main(argv: list[str], ending: Ending) -> int:
    parser = _parser()
    given, flags = parser.parse_known_args(argv)
    ending.stopped = "interrupted before anything ran"
    try:
        folder, plan = _prepare(given, flags, argv)
        ending.place = folder.path
        folder.path.mkdir(parents=True, exist_ok=True)
        with locked(folder.path) as lock:
            if not lock.folder.has_locks:
                print(
                    f"{program('compare')}: note: {folder.path} lies on a file system without locks: start no second "
                    "comparison in it",
                    file=sys.stderr,
                )
            # what the lock's last holder may have written
            if given.resume is None:
                folder.check_new()
            else:
                plan = folder.read_plan(given.trust)
            folder.sweep()
            comparer = Comparer(folder, plan, given.jobs or plan.jobs, lock)
            again = typed("compare", "--resume", str(folder.path), *plan.trusting)
            ending.kept = "all runs that have finished are kept, and the others' checkpoints"
            ending.after = f"resume by {again}"
            ending.stopped = f"interrupted; go on by {again}"
            return comparer.run()
    except ValueError as error:
        if is_full(error):
            raise
        parser.error(str(error))
    except OSError as error:
        if disk_error(error):
            raise
        parser.error(": ".join(str(part) for part in (error.filename, error.strerror or error) if part is not None))


def _prepare(
    given: argparse.Namespace, flags: Sequence[str], argv: Sequence[str]
) -> tuple[ComparisonFolder, ComparisonPlan]:
    """The folder and its plan; nothing is written yet.

    Raises:
        ValueError: if anything is wrong with the command line or the folder.
    """
    for name, most in (("seeds", MOST_SEEDS), ("primary_seeds", MOST_SEEDS), ("jobs", MOST_JOBS)):
        value = getattr(given, name)
        if value is not None and not 1 <= value <= most:
            expected = "1 or more" if value < 1 else f"{most:,} or fewer"
            raise ValueError(f"--{name}: expected {expected}, got {value}")
    if given.resume is not None:
        others = [
            f"--{name}" for name, value in vars(given).items() if value and name not in ("resume", "jobs", "trust")
        ]
        if others or flags:
            first = [*others, *flags][0]
            raise ValueError(f"--resume goes on with the comparison as it is: only --jobs may change, not {first}")
        folder = ComparisonFolder(given.resume)
        return folder, folder.read_plan(given.trust)
    for flag in flags:
        if not flag.startswith("--") and flag == flags[0]:
            raise ValueError(f"unexpected {flag!r}: flags begin with --, see --help")
    if given.preset and given.presets:
        raise ValueError("--preset and --presets say the same: take one of them")
    presets = given.presets or [given.preset or PRESET]
    methods = given.methods or [METHOD]
    seeds = given.seeds or SEEDS
    primary = given.primary_seeds or (max(PRIMARY_SEEDS, seeds) if seeds >= SEEDS else seeds)
    agents = given.agents or list(AGENTS)
    again, own = typed("compare", *argv, "--trust"), given.arm or []
    arms = base_arms(agents, methods, presets, own, flags, seeds, primary, given.trust or None, again)
    chosen = tuple(dict.fromkeys(given.equal_compute or ()))
    check_equal_compute(chosen, arms)
    if given.dir is not None:
        ComparisonFolder(given.dir).check_new()
    fitting = try_arms(arms)
    path = given.dir or _claimed("-".join(presets))
    folder = ComparisonFolder(path)
    # the folder says where it lies, not what it is
    words = [*recorded("compare"), *without(argv, "--dir")]
    return folder, ComparisonPlan(
        path.resolve().name, shlex.join(words), given.jobs or fitting, seeds, chosen, tuple(arms)
    )


def _claimed(name: str) -> Path:
    """The first folder comparisons/NAME, -2, -3, ... that was not there: it is made here, since others choose too."""
    for number in itertools.count(1):
        path = Path("comparisons") / (name if number == 1 else f"{name}-{number}")
        with suppress(FileExistsError):
            path.mkdir(parents=True)
            break
    return path


if __name__ == "__main__":
    sys.exit(main())
