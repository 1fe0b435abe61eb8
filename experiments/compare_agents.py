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
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

if not __package__:
    # run as a script: this checkout comes first, and what lies beside this file hides nobody's module
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from rich.console import Console

from astra_gym.experiments.comparison.arms import (
    CONTROL,
    Arm,
    base_arms,
    check_equal_compute,
    compute_arms,
    settings_of,
    without,
)
from astra_gym.experiments.comparison.cell_results import Cell, summarise
from astra_gym.experiments.comparison.display import Display, GridProgress, share_done
from astra_gym.experiments.comparison.folder import ComparisonFolder, ComparisonPlan, extended
from astra_gym.experiments.comparison.scheduler import Ended, Job, Worker, last_lines, locked, run_jobs, usable_cores
from astra_gym.experiments.config.argparser import OneLineParser
from astra_gym.experiments.console import Interrupt
from astra_gym.experiments.runs.run import Run
from astra_gym.experiments.stats import COMPUTE, PRIMARY_ARMS
from astra_gym.ssl_core.data.image_set import Split

AGENTS = ("reinforce", "fixed", "fixed-max", "random")
SEEDS, PRIMARY_SEEDS = 5, 10
PRESET, METHOD = "digits-grid", "astra"
DATA = ("dataset", "data_dir", "cache_dir", "download", "limit", "test_limit", "image_size")
"""Settings on which the data set depends, and nothing else of it."""


def _parser() -> OneLineParser:
    raw = argparse.RawDescriptionHelpFormatter
    usage = "%(prog)s [--FLAG VALUE ...], or %(prog)s --resume DIR [--jobs N]"
    parser = OneLineParser(
        prog="compare_agents.py", usage=usage, description=__doc__, formatter_class=raw, allow_abbrev=False
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
        help="an arm of one's own: flags of train_agent.py; may be repeated",
    )
    parser.add_argument(
        "--equal_compute",
        nargs="+",
        metavar="ARM",
        help=f"at the end, for each of these a further arm ARM{COMPUTE} of so many epochs that it makes as many attack "
        "steps as the dearest arm",
    )
    parser.add_argument(
        "--jobs", type=int, metavar="N", help="processes at once; by default the number of usable cores"
    )
    parser.add_argument("--dir", type=Path, metavar="DIR", help="by default comparisons/PRESET, -2, -3, ...")
    parser.add_argument("--resume", type=Path, metavar="DIR", help="go on with a comparison")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status: 0 done, 1 if a cell failed, 2 bad input, 130 interrupted."""
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = _parser()
    given, flags = parser.parse_known_args(argv)
    begun: Path | None = None
    try:
        folder, plan = _prepare(given, flags, argv)
        folder.path.mkdir(parents=True, exist_ok=True)
        with locked(folder.path) as lock:
            # what the lock's last holder may have written
            if given.resume is None:
                folder.check_new()
            else:
                plan = folder.read_plan()
            comparer = Comparer(folder, plan, given.jobs or plan.jobs, lock)
            begun = folder.path
            return comparer.run()
    except ValueError as error:
        parser.error(str(error))
    except OSError as error:
        # a full disk is found at a write, which knows no name
        parser.error(": ".join(str(part) for part in (error.filename, error.strerror or error) if part is not None))
    except KeyboardInterrupt:
        when = f"; go on by {_resume(begun)}" if begun else " before anything ran"
        print(f"compare_agents.py: error: interrupted{when}", file=sys.stderr)
        return 130


def _prepare(
    given: argparse.Namespace, flags: Sequence[str], argv: Sequence[str]
) -> tuple[ComparisonFolder, ComparisonPlan]:
    """The folder and its plan; nothing is written yet.

    Raises:
        ValueError: if anything is wrong with the command line or the folder.
    """
    for name in ("seeds", "primary_seeds", "jobs"):
        value = getattr(given, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name}: expected 1 or more, got {value}")
    if given.resume is not None:
        others = [f"--{name}" for name, value in vars(given).items() if value and name not in ("resume", "jobs")]
        if others or flags:
            first = [*others, *flags][0]
            raise ValueError(f"--resume goes on with the comparison as it is: only --jobs may change, not {first}")
        folder = ComparisonFolder(given.resume)
        return folder, folder.read_plan()
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
    arms = base_arms(agents, methods, presets, given.arm or [], flags, seeds, primary)
    chosen = tuple(dict.fromkeys(given.equal_compute or ()))
    check_equal_compute(chosen, arms)
    path = given.dir or _free("-".join(presets))
    folder = ComparisonFolder(path)
    folder.check_new()
    try_arms(arms)
    # the folder says where it lies, not what it is
    words = ["python", "experiments/compare_agents.py", *without(argv, "--dir")]
    return folder, ComparisonPlan(
        path.resolve().name, shlex.join(words), given.jobs or usable_cores(), seeds, chosen, tuple(arms)
    )


def try_arms(arms: Sequence[Arm]) -> None:
    """Makes the world and the agent of each arm once, and nothing with them: what only a run would find is told before
    any has begun.

    Raises:
        ValueError: if an arm has a batch larger than its data, no data, unknown settings of its agent, and the like.
    """
    torch.set_num_threads(1)
    loaded: dict[tuple[object, ...], Split] = {}
    for arm in arms:
        try:
            settings = settings_of([*arm.flags, "--seed", "0"])
            key = tuple(getattr(settings, name) for name in DATA)
            if key not in loaded:
                loaded[key] = settings.load_data()
            # on the processor: a GPU's memory is for the workers
            Run(settings, torch.device("cpu"), loaded[key])
        except Exception as error:
            # an agent of one's own may raise anything
            kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
            raise ValueError(f"{kind}{error} (in the arm {arm.name!r})") from error


def _resume(path: Path) -> str:
    return shlex.join(["python", sys.argv[0], "--resume", str(path)])


def _free(name: str) -> Path:
    number, path = 1, Path("comparisons") / name
    while path.exists():
        number += 1
        path = Path("comparisons") / f"{name}-{number}"
    return path


class Comparer:
    """Runs what is left of a plan.

    Args:
        folder: of the comparison, held by this process.
        plan: of it.
        jobs: processes at once.
        lock: the workers' lock file.
    """

    def __init__(self, folder: ComparisonFolder, plan: ComparisonPlan, jobs: int, lock: Path) -> None:
        self.folder = folder
        self.plan = plan
        self.jobs = jobs
        self.lock = lock
        fresh = not folder.config.exists()
        finished = folder.open(plan)
        if fresh:
            folder.write_plan(plan)
        self.progress = GridProgress(plan.arms, jobs, finished)
        self.display = Display(self.progress, Console())
        self.before = folder.wall_seconds
        self.began = time.monotonic()
        self._greet()

    def _greet(self) -> None:
        begun = [name for name in self.folder.adopted if name not in self.progress.finished]
        cells = f"{self.progress.planned} cells ({len(self.plan.arms)} arms), {len(self.progress.finished)} finished"
        self.display.note(f"{cells}, {self.jobs} at once, into {self.folder.path}")
        if self.folder.adopted:
            more = f", and {len(begun)} to go on with" if begun else ""
            self.display.note(f"adopted: {len(self.folder.adopted) - len(begun)} finished runs{more}")

    @property
    def spent(self) -> float:
        """Seconds that the grid has run, in all its processes."""
        return self.before + time.monotonic() - self.began

    def run(self) -> int:
        """Runs the cells that are not finished; returns the exit status."""
        try:
            with Interrupt() as interrupt:
                with self.display:
                    self._save()
                    # the first worker is a few seconds away
                    self.display.update(self.spent)
                    self._run_missing(interrupt)
                    if not interrupt.asked and not self.progress.failed:
                        self._add_compute_arms()
                        self._run_missing(interrupt)
                    self.display.update(self.spent)
                asked = interrupt.asked
        except KeyboardInterrupt:
            asked = "stopped at once"
        self._save()
        return self._conclude(asked)

    def _run_missing(self, interrupt: Interrupt) -> None:
        cells = {arm.named(seed): (arm, seed) for arm, seed in self.plan.cells}
        missing = [name for name in cells if name not in self.progress.finished]

        def started(job: Job) -> None:
            self.folder.started.add(job.name)
            # a later start counts this one's time so far, even if nothing has ended when it is killed
            self.folder.note_state(self.spent)
            self.folder.clear(job.name)

        def ended(end: Ended) -> None:
            self.progress.running.pop(end.job.name, None)
            self._take(end, *cells[end.job.name], asked=interrupt.asked is not None)

        def looked(running: Sequence[Worker]) -> None:
            for worker in running:
                arm, _ = cells[worker.job.name]
                share = share_done(self.folder.cells / worker.job.name, arm.settings["epochs"])
                self.progress.running[worker.job.name] = share, worker.seconds
            if interrupt.asked and not told:
                told.append(interrupt.asked)
                many = "1 run is saved at the end of its rollout"
                if len(running) != 1:
                    many = f"{len(running)} runs are saved at the end of their rollouts"
                self.display.note(f"{interrupt.asked}: {many}; again: at once")
            self.display.update(self.spent)

        told: list[str] = []
        jobs = [self._job(name, *cells[name]) for name in missing]
        run_jobs(jobs, self.jobs, self.lock, interrupt, started=started, ended=ended, looked=looked)

    def _job(self, name: str, arm: Arm, seed: int) -> Job:
        run = self.folder.cells / name
        if self.folder.resumable(name):
            argv = ["--resume", str(run)]
        else:
            argv = [*arm.flags, "--seed", str(seed), "--run_dir", str(run), "--progress", "lines"]
        return Job(name, tuple(argv), self.folder.logs / f"{name}.log")

    def _take(self, end: Ended, arm: Arm, seed: int, asked: bool) -> None:
        """What a cell that ended leaves."""
        name, reason = end.job.name, ""
        if end.status == 0:
            try:
                cell = summarise(self.folder.cells / name, arm.label)
                self.progress.took[name] = end.seconds
                self.progress.finished[name] = cell
                self.display.finished(name, cell, self.spent)
            except ValueError as error:
                reason = f"it ended well, but {error}"
        elif not asked:
            reason = end.reason
        if reason:
            self.progress.failed[name] = reason
            self.display.note(f"{name} failed: {reason}")
            for line in last_lines(end.job.log)[:-1]:
                self.display.note(f"    {line}")
        self._save()

    def _save(self) -> None:
        self.folder.note_state(self.spent)
        self.folder.write(self.plan, self.jobs, self.progress.finished, self.progress.failed)

    def _add_compute_arms(self) -> None:
        known = {arm.name for arm in self.plan.arms}
        chosen = self.plan.equal_compute
        cells: list[Cell] = list(self.progress.finished.values())
        base = [arm for arm in self.plan.arms if not arm.label.endswith(COMPUTE)]
        made = {arm.name: arm for arm in compute_arms(chosen, base, cells, self.plan.seeds)}
        added = [arm for name, arm in made.items() if name not in known]
        for arm in base:
            name = arm.label + COMPUTE + arm.suffix
            if arm.label not in chosen or arm.agent == "none" or name in known:
                continue
            if name in made:
                self.display.note(f"{name}: {made[name].settings['epochs']} epochs")
            else:
                self.display.note(f"{arm.name} spends as many attack steps as any arm: no {name}")
        if added:
            self.plan = extended(self.plan, added)
            self.folder.write_plan(self.plan)
            self.progress.arms = self.plan.arms
            self.progress.finished |= {
                name: cell for name, cell in self.folder.open(self.plan).items() if name not in self.progress.finished
            }
            self._save()

    def _conclude(self, asked: str | None) -> int:
        note, failed, path = self.display.note, self.progress.failed, str(self.folder.path)
        if not self.display.console.is_terminal:
            self.display.console.print(self.display.table())
        done = f"{len(self.progress.finished)} of {self.progress.planned} cells are finished"
        note(f"{done}, after {self.spent / 60:.1f} min")
        if failed:
            waiting = [label + COMPUTE for label in self.plan.equal_compute]
            note(f"{len(failed)} failed, see {self.folder.logs}: {', '.join(failed)}")
            if waiting and not any(arm.label in waiting for arm in self.plan.arms):
                note(f"{', '.join(waiting)}: only when all others are finished")
        if asked or failed:
            why = f"{asked}: go on" if asked else "try them again"
            note(f"{why} by {_resume(self.folder.path)}")
        if any(arm.learns for arm in self.plan.arms) and CONTROL not in {arm.agent for arm in self.plan.arms}:
            note(f"the control {CONTROL} is missing: is choosing worth more than attacking hard?")
        note(f"the runs are in {self.folder.cells}, what they come to in {self.folder.results}")
        report = str(Path(sys.argv[0]).with_name("report.py"))
        note(f"the report: {shlex.join(['python', report, path])}")
        return 130 if asked else int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
