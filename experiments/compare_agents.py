"""Compare agents: train each with several seeds, side by side, resumably.

# six agents, each with five seeds
python experiments/compare_agents.py --agents reinforce ppo bandit fixed fixed-max random --seeds 5
# an agent with a setting of its own, and again with as many attack steps as others
python experiments/compare_agents.py --arm 'cost=--agent reinforce --reward_weights.cost 0.02' --equal_compute cost
# the parts of the method ASTrA, switched on and off
python experiments/compare_agents.py --ablation astra --agents random fixed-max --seeds 3
# go on with a comparison that was stopped, killed or had failing cells
python experiments/compare_agents.py --resume comparisons/NAME

Every cell (an arm, which is one set of flags, with one seed) is an ordinary run in comparisons/NAME/cells/, one process
with one thread. Flags not listed below go to every run, see train_agent.py --help. comparison.json holds what is
finished so far, and report.py reads it. With --dir, runs in DIR/cells/LABEL-seedN and cells of DIR/comparison.json are
reused if their settings are the planned ones.
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
    # for a script, put this checkout first, in place of this file's folder, whose files would shadow modules
    sys.path[: not sys.flags.safe_path] = [str(Path(__file__).resolve().parents[1])]
    # imported before all slow modules: from here on a signal ends this process with one line of text
    from astra_gym.ssl_core.utils import stopping  # noqa: F401


from astra_gym.agents import AGENTS
from astra_gym.experiments.comparison.ablations import ABLATIONS
from astra_gym.experiments.comparison.arms import MOST_SEEDS, base_arms, check_equal_compute, without
from astra_gym.experiments.comparison.cell_results import read_pairs
from astra_gym.experiments.comparison.comparer import Comparer, try_arms
from astra_gym.experiments.comparison.folder import MOST_JOBS, ComparisonFolder, ComparisonPlan, with_searches
from astra_gym.experiments.comparison.scheduler import locked
from astra_gym.experiments.config.argparser import CommandParser
from astra_gym.experiments.config.cli import LEAVES
from astra_gym.experiments.config.commands import program, recorded, typed
from astra_gym.experiments.config.frame import Ending, framed
from astra_gym.experiments.config.presets import PRESETS
from astra_gym.experiments.engines.attempts import recall
from astra_gym.experiments.engines.base import LOCAL, EngineFlags
from astra_gym.experiments.engines.choice import make_engine
from astra_gym.experiments.stats import PRIMARY, Pairs, arms_of
from astra_gym.experiments.tuning.searched_arms import search_costs
from astra_gym.ssl_core.methods import METHODS
from astra_gym.ssl_core.safety.disk import disk_error, is_full
from astra_gym.ssl_core.settings.records import SWITCH, Notes, check_choices
from astra_gym.ssl_core.utils.import_path import located

COMPARED = ("reinforce", "fixed", "fixed-max", "random")
"""The agents of a comparison that names none."""
SEEDS, PRIMARY_SEEDS = 5, 10
PRESET, METHOD = "digits-grid", "astra"


@dataclass(frozen=True, kw_only=True)
class CompareFlags:
    """What is compared, and how often; any other flag goes to the training of every run.

    Args:
        agents: agents to compare; by default reinforce, fixed, fixed-max and random, or with --arm or --ablation only
            those arms.
        ablation: arms that switch the parts of a method on and off, and the tests of these parts. astra: the mixed
            loss and the strategy; daq-sdp: the perturbation of the weights. Arms of --agents and --arm join them, with
            the whole method.
        seeds: number of seeds of each agent, counted from 0; by default 5.
        primary_seeds: number of seeds of the arms that are tested, see --test; by default --seeds, but at least 10 if
            that is 5 or more.
        preset: preset of all runs; by default digits-grid.
        presets: several presets, each with all agents.
        methods: one method or several, each with all agents; by default astra.
        arm: a custom arm, LABEL=FLAGS, with flags of the training; may be repeated.
        test: two arms A:B whose difference is tested, fixed before the first run; may be repeated; by default
            reinforce:random, reinforce:fixed and reinforce:fixed-max, or those of --ablation. All other pairs have
            intervals only.
        searched: an arm whose constants tune.py found, and the search's file, ARM=FILE; may be repeated. The plan and
            the report say what the search cost.
        equal_compute: for each of these arms a further arm ARM@compute, run last, with enough epochs to make as many
            attack steps as the most expensive arm.
        jobs: cells at once; by default one per usable core, and no more than a GPU's memory holds; on a cluster all
            that it has room for.
        dir: folder of the comparison; by default the first free one of comparisons/PRESET, -2, -3 and so on.
        resume: folder of a comparison to resume.
        trust: import the modules that a comparison's plan or a config file names, which runs their code.
    """

    agents: Annotated[tuple[str, ...] | None, Notes(nargs="+", choices=AGENTS, what="agent", custom=True)] = None
    ablation: Annotated[str | None, Notes(choices=ABLATIONS, what="ablation")] = None
    seeds: int | None = None
    primary_seeds: int | None = None
    preset: Annotated[str | None, Notes(choices=PRESETS, what="preset")] = None
    presets: Annotated[tuple[str, ...] | None, Notes(nargs="+", choices=PRESETS, what="preset")] = None
    methods: Annotated[tuple[str, ...] | None, Notes(nargs="+", choices=METHODS, what="method", custom=True)] = None
    arm: Annotated[tuple[str, ...], Notes(repeated=True, unit="'LABEL=FLAGS'")] = ()
    test: Annotated[tuple[str, ...], Notes(repeated=True, unit="A:B")] = ()
    searched: Annotated[tuple[str, ...], Notes(repeated=True, unit="ARM=FILE")] = ()
    equal_compute: Annotated[tuple[str, ...], Notes(nargs="+", unit="ARM")] = ()
    jobs: int | None = None
    dir: Annotated[Path | None, Notes(unit="DIR")] = None
    resume: Annotated[Path | None, Notes(unit="DIR")] = None
    trust: Annotated[bool, SWITCH] = False

    def __post_init__(self) -> None:
        if "auto" in (self.agents or ()):
            raise ValueError("--agents auto: it stands for an agent that depends on preset and method; name that agent")
        check_choices(self)
        for name, most in (("seeds", MOST_SEEDS), ("primary_seeds", MOST_SEEDS), ("jobs", MOST_JOBS)):
            value = getattr(self, name)
            if value is not None and not 1 <= value <= most:
                expected = "1 or more" if value < 1 else f"{most:,} or fewer"
                raise ValueError(f"--{name}: expected {expected}, got {value}")
        if self.preset and self.presets:
            raise ValueError("--preset and --presets say the same: take one of them")
        if self.ablation and self.methods:
            raise ValueError(f"--ablation {self.ablation}: its arms have their own method, leave --methods out")


@dataclass(frozen=True, kw_only=True)
class CompareCommand:
    """All flags of a comparison.

    Args:
        comparison: what is compared, and how often.
        engine: where the cells run, and what each of them gets.
    """

    comparison: CompareFlags
    engine: EngineFlags


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status: 0 done, 1 a cell failed, 2 bad input, 128 + N if signal N came."""
    return framed("compare", argv, _main)


def _main(argv: list[str], ending: Ending) -> int:
    parser = CommandParser("compare", CompareCommand, __doc__, "[--FLAG VALUE ...], or --resume DIR")
    own, flags = parser.split(argv, LEAVES)
    command = parser.read(own)
    given, where = command.comparison, command.engine
    ending.stopped = "interrupted before anything ran"
    try:
        engine = make_engine(where)
        folder, plan = _prepare(command, flags, argv)
        ending.place = folder.path
        folder.path.mkdir(parents=True, exist_ok=True)
        with locked(folder.path) as lock:
            if not lock.folder.has_locks:
                print(
                    f"{program('compare')}: note: {folder.path} lies on a file system without locks: start no second "
                    "comparison in it",
                    file=sys.stderr,
                )
            # checked only under the lock, since its last holder may have written the folder and its plan
            if given.resume is None:
                folder.check_new()
            else:
                plan = folder.read_plan(given.trust)
                if given.searched:
                    costs = search_costs(given.searched, plan.arms, given.trust, typed("compare", *argv, "--trust"))
                    plan = with_searches(plan, given.searched, costs)
                    folder.write_plan(plan)
            folder.sweep()
            recall(folder.path)
            again = typed("compare", "--resume", str(folder.path), *plan.trusting, *where.words)
            # how many cells this machine has room for says nothing of a cluster
            jobs = given.jobs or (plan.jobs if where.engine == LOCAL else min(MOST_JOBS, len(plan.cells)))
            comparer = Comparer(folder, plan, jobs, lock, engine, again)
            ending.kept = "all runs that have finished are kept, and the others' checkpoints"
            ending.after = f"resume by {again}"
            ending.stopped = f"interrupted; resume by {again}"
            return comparer.run()
    except ValueError as error:
        if is_full(error):
            raise
        parser.error(located(error))
    except OSError as error:
        if disk_error(error):
            raise
        parser.error(": ".join(str(part) for part in (error.filename, error.strerror or error) if part is not None))


def _prepare(
    command: CompareCommand, flags: Sequence[str], argv: Sequence[str]
) -> tuple[ComparisonFolder, ComparisonPlan]:
    """Return the folder and its plan; write nothing yet.

    Raises:
        ValueError: if anything is wrong with the command line or the folder.
    """
    given, where = command.comparison, command.engine
    if given.resume is not None:
        changeable = ("resume", "jobs", "searched", "trust")
        others = [f"--{name}" for name, value in vars(given).items() if value and name not in changeable]
        if others or flags:
            first = [*others, *flags][0]
            raise ValueError(
                f"--resume continues the comparison as it is: only --jobs, --searched and the engine may change, not "
                f"{first}"
            )
        folder = ComparisonFolder(given.resume)
        return folder, folder.read_plan(given.trust)
    for flag in flags:
        if not flag.startswith("--") and flag == flags[0]:
            raise ValueError(f"unexpected {flag!r}: flags begin with --, see --help")
    presets = given.presets or (given.preset or PRESET,)
    ablation = ABLATIONS[given.ablation] if given.ablation else None
    methods = given.methods or (ablation.method if ablation else METHOD,)
    own = [*(ablation.texts if ablation else ()), *given.arm]
    seeds = given.seeds or SEEDS
    primary = given.primary_seeds or (max(PRIMARY_SEEDS, seeds) if seeds >= SEEDS else seeds)
    agents = given.agents or (() if own else COMPARED)
    again = typed("compare", *argv, "--trust")
    tests = _pairs(given.test) if given.test else ablation.tests if ablation else PRIMARY
    arms = base_arms(agents, methods, presets, own, flags, seeds, primary, given.trust or None, again, tests)
    labels = dict.fromkeys(arm.label for arm in arms)
    if unknown := [label for label in arms_of(tests) if given.test and label not in labels]:
        raise ValueError(f"--test: there is no arm {unknown[0]}: expected two of {', '.join(labels)}")
    chosen = tuple(dict.fromkeys(given.equal_compute))
    check_equal_compute(chosen, arms)
    costs = search_costs(given.searched, arms, given.trust or None, again)
    if given.dir is not None:
        ComparisonFolder(given.dir).check_new()
    fitting = try_arms(arms, where.cell_cpus, where.engine == LOCAL)
    path = given.dir or _claimed("-".join(presets))
    folder = ComparisonFolder(path)
    # the place of a comparison is no part of its plan
    words = [*recorded("compare"), *without(argv, "--dir")]
    jobs = given.jobs or fitting
    return folder, ComparisonPlan(
        path.resolve().name, shlex.join(words), jobs, seeds, chosen, tuple(arms), tests, tuple(costs)
    )


def _pairs(texts: Sequence[str]) -> Pairs:
    """Return the arms of tests A:B. A custom agent's label has no colon: its dotted path is written with dots.

    Raises:
        ValueError: if one is not a pair of different arms, or is given twice.
    """
    for text in texts:
        if text.count(":") != 1:
            raise ValueError(f"--test {text}: expected two arms, A:B")
    return read_pairs([text.split(":") for text in texts])


def _claimed(name: str) -> Path:
    """Make the first free folder of comparisons/NAME, -2, -3, ...; made now, since other processes choose one too."""
    for number in itertools.count(1):
        path = Path("comparisons") / (name if number == 1 else f"{name}-{number}")
        with suppress(FileExistsError):
            path.mkdir(parents=True)
            break
    return path


if __name__ == "__main__":
    sys.exit(main())
