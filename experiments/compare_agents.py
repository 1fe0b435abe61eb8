"""Compare agents: train each with several seeds, side by side, resumably.

python experiments/compare_agents.py --agents reinforce ppo bandit fixed fixed-max random --seeds 5
python experiments/compare_agents.py --arm 'cost=--agent reinforce --reward_weights.cost 0.02' --equal_compute cost
python experiments/compare_agents.py --resume comparisons/NAME

Every cell (an arm with a seed) is an ordinary run in comparisons/NAME/cells/, one process with one thread; any flag
that is not among those below goes to the training of each, see train_agent.py --help. comparison.json holds what is
finished so far: report.py reads it. A comparison that was stopped, killed or had failing cells goes on by --resume.
With --dir, runs that already lie in DIR/cells/LABEL-seedN, or are cells of DIR/comparison.json, count if their settings
are the planned ones.
"""

import itertools
import shlex
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

if not __package__:
    # run as a script: this checkout comes first, and what lies beside this file (entry 0) hides nobody's module
    sys.path[: not sys.flags.safe_path] = [str(Path(__file__).resolve().parents[1])]
    # before the imports that take seconds: from here on a signal ends this process with a line
    from astra_gym.ssl_core.utils import stopping  # noqa: F401


from astra_gym.experiments.comparison.arms import MOST_SEEDS, base_arms, check_equal_compute, without
from astra_gym.experiments.comparison.comparer import Comparer, try_arms
from astra_gym.experiments.comparison.folder import MOST_JOBS, ComparisonFolder, ComparisonPlan
from astra_gym.experiments.comparison.scheduler import locked
from astra_gym.experiments.config.argparser import CommandParser
from astra_gym.experiments.config.commands import program, recorded, typed
from astra_gym.experiments.config.frame import Ending, framed
from astra_gym.ssl_core.safety.disk import disk_error, is_full
from astra_gym.ssl_core.settings.records import SWITCH, Notes

AGENTS = ("reinforce", "fixed", "fixed-max", "random")
SEEDS, PRIMARY_SEEDS = 5, 10
PRESET, METHOD = "digits-grid", "astra"


@dataclass(frozen=True, kw_only=True)
class CompareFlags:
    """What is compared, and how often; any other flag is one of the training of each.

    Args:
        agents: by default reinforce, fixed, fixed-max and random.
        seeds: of each agent, from 0; by default 5.
        primary_seeds: of the agents whose comparisons are fixed beforehand (reinforce, random, fixed, fixed-max); by
            default 10 where --seeds is 5 or more, else as many.
        preset: by default digits-grid.
        presets: several, each with all agents.
        methods: by default astra; several, each with all agents.
        arm: a custom arm, LABEL=FLAGS: flags of the training; may be repeated.
        equal_compute: at the end, for each of these a further arm ARM@compute of so many epochs that it makes as many
            attack steps as the dearest arm.
        jobs: processes at once; by default one a usable core, and no more than a GPU's memory holds.
        dir: by default comparisons/PRESET, -2, -3, ...
        resume: go on with a comparison.
        trust: import the modules that its plan or a config file names, which runs their code.
    """

    agents: Annotated[tuple[str, ...] | None, Notes(nargs="+", unit="NAME")] = None
    seeds: int | None = None
    primary_seeds: int | None = None
    preset: str | None = None
    presets: Annotated[tuple[str, ...] | None, Notes(nargs="+", unit="NAME")] = None
    methods: Annotated[tuple[str, ...] | None, Notes(nargs="+", unit="NAME")] = None
    arm: Annotated[tuple[str, ...], Notes(repeated=True, unit="'LABEL=FLAGS'")] = ()
    equal_compute: Annotated[tuple[str, ...], Notes(nargs="+", unit="ARM")] = ()
    jobs: int | None = None
    dir: Annotated[Path | None, Notes(unit="DIR")] = None
    resume: Annotated[Path | None, Notes(unit="DIR")] = None
    trust: Annotated[bool, SWITCH] = False

    def __post_init__(self) -> None:
        for name, most in (("seeds", MOST_SEEDS), ("primary_seeds", MOST_SEEDS), ("jobs", MOST_JOBS)):
            value = getattr(self, name)
            if value is not None and not 1 <= value <= most:
                expected = "1 or more" if value < 1 else f"{most:,} or fewer"
                raise ValueError(f"--{name}: expected {expected}, got {value}")
        if self.preset and self.presets:
            raise ValueError("--preset and --presets say the same: take one of them")


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status: 0 done, 1 if a cell failed, 2 bad input, 128 + N stopped by signal N."""
    return framed("compare", argv, _main)


def _main(argv: list[str], ending: Ending) -> int:
    parser = CommandParser("compare", CompareFlags, __doc__, "[--FLAG VALUE ...], or --resume DIR [--jobs N] [--trust]")
    own, flags = parser.split(argv)
    given = parser.read(own)
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


def _prepare(given: CompareFlags, flags: Sequence[str], argv: Sequence[str]) -> tuple[ComparisonFolder, ComparisonPlan]:
    """The folder and its plan; nothing is written yet.

    Raises:
        ValueError: if anything is wrong with the command line or the folder.
    """
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
    presets = given.presets or (given.preset or PRESET,)
    methods = given.methods or (METHOD,)
    seeds = given.seeds or SEEDS
    primary = given.primary_seeds or (max(PRIMARY_SEEDS, seeds) if seeds >= SEEDS else seeds)
    agents = given.agents or AGENTS
    again = typed("compare", *argv, "--trust")
    arms = base_arms(agents, methods, presets, given.arm, flags, seeds, primary, given.trust or None, again)
    chosen = tuple(dict.fromkeys(given.equal_compute))
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
