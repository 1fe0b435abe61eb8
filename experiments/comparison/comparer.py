"""The execution of a comparison's remaining cells: processes, and their results as they end."""

import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace

import torch
from rich.console import Console

from astra_gym.experiments.comparison.arms import CONTROL, Arm, compute_arms, settings_of
from astra_gym.experiments.comparison.cell_results import Cell, summarize
from astra_gym.experiments.comparison.display import Display, GridProgress, share_done
from astra_gym.experiments.comparison.folder import ComparisonFolder, ComparisonPlan
from astra_gym.experiments.comparison.gpu_memory import run_memory, runs_that_fit
from astra_gym.experiments.comparison.scheduler import GridLock, run_jobs
from astra_gym.experiments.config.commands import typed
from astra_gym.experiments.config.devices import resolve_device
from astra_gym.experiments.config.trust import named_by
from astra_gym.experiments.console import Interrupt
from astra_gym.experiments.engines.base import LOST, Ended, Engine, Job, RunningCell, last_lines, usable_cores
from astra_gym.experiments.runs.run import Run
from astra_gym.experiments.stats import COMPUTE
from astra_gym.ssl_core.data.image_set import Split
from astra_gym.ssl_core.data.labels import required_labels
from astra_gym.ssl_core.evaluation.sanity import TrainedOnError
from astra_gym.ssl_core.utils.files import check_target
from astra_gym.ssl_core.utils.memory import available
from astra_gym.ssl_core.utils.messages import amount, short, shown
from astra_gym.ssl_core.utils.paths import check_folder
from astra_gym.ssl_core.utils.stopping import status_of

DATA = ("dataset", "data_dir", "classes", "cache_dir", "download", "limit", "test_limit", "image_size")
"""All settings on which the data set depends."""


def try_arms(arms: Sequence[Arm], cpus: int = 1, here: bool = True) -> int:
    """Make the world and the agent of each arm once, and nothing else, to find the errors of runs before any begins.

    Args:
        arms: the arms.
        cpus: cores of a run.
        here: whether the runs are made on this machine; else its GPU is not asked for.

    Returns:
        The number of runs to make side by side here: as many as there are usable cores for, and no more than their
        GPU's memory holds.

    Raises:
        ValueError: if an arm has a batch larger than its data, no data, unknown settings of its agent, and the like.
    """
    torch.set_num_threads(1)
    loaded: dict[tuple[object, ...], Split] = {}
    at_once = max(1, usable_cores() // cpus)
    for arm in arms:
        try:
            settings = settings_of([*arm.flags, "--seed", "0"])
            key = tuple(getattr(settings.data, name) for name in DATA)
            fresh = key not in loaded
            if fresh:
                loaded[key] = settings.data.load()
            # on the CPU, since a GPU's memory is for the workers
            run = Run(settings, torch.device("cpu"), loaded[key])
            if fresh:
                # test images that are trained on would be refused at the end of each run
                run.check_held_out()
                # without labels each run would end without an accuracy
                for part in (run.engine.data.probe_train, run.engine.data.test):
                    required_labels(part, "a comparison")
            device = resolve_device(settings.run.device) if here else torch.device("cpu")
            needed = 0 if device.type == "cpu" else run_memory(run.engine)
            at_once = runs_that_fit(at_once, needed, available(device))
        except Exception as error:
            # a custom agent may raise anything
            kind = "" if isinstance(error, ValueError | TrainedOnError) else f"{type(error).__name__}: "
            raise ValueError(f"{kind}{error} (in the arm {shown(arm.name)})") from error
    return at_once


class Comparer:
    """Executor of a plan's remaining cells.

    Args:
        folder: folder of the comparison, held by this process.
        plan: plan of the comparison.
        jobs: number of cells side by side.
        lock: lock by which the folder is held.
        engine: what runs the cells.
        again: command that resumes the comparison.
    """

    def __init__(
        self, folder: ComparisonFolder, plan: ComparisonPlan, jobs: int, lock: GridLock, engine: Engine, again: str
    ) -> None:
        self.folder = folder
        self.plan = plan
        self.jobs = jobs
        self.lock = lock
        self.engine = engine
        self.again = again
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
        planned, finished = amount(self.progress.planned, "cell"), len(self.progress.finished)
        cells = f"{planned} ({amount(len(self.plan.arms), 'arm')}), {finished} finished"
        self.display.note(f"{cells}, {self.jobs} at once, into {self.folder.path}")
        for sentence in self.folder.damage:
            self.display.note(f"note: {short(sentence)}")
        if self.folder.adopted:
            more = f", and {len(begun)} to go on with" if begun else ""
            self.display.note(f"adopted: {len(self.folder.adopted) - len(begun)} finished runs{more}")

    @property
    def spent(self) -> float:
        """Seconds that the grid has run, in all its processes."""
        return self.before + time.monotonic() - self.began

    def run(self) -> int:
        """Run the cells that are not finished; return the exit status."""
        try:
            self.engine.open(self.folder.path)
            with closing(self.engine), Interrupt() as interrupt, self.display:
                self._save()
                # the first worker takes a few seconds to start
                self.display.update(self.spent)
                self._run_missing(interrupt)
                if not interrupt.asked and not self.progress.failed:
                    self._add_compute_arms()
                    self._run_missing(interrupt)
                self.display.update(self.spent)
            asked, status = interrupt.asked, interrupt.status
        except KeyboardInterrupt as stop:
            asked, status = "stopped at once", status_of(stop)
        self._save()
        self._conclude(asked)
        return status if asked else int(bool(self.progress.failed))

    def _run_missing(self, interrupt: Interrupt) -> None:
        cells = {arm.named(seed): (arm, seed) for arm, seed in self.plan.cells}
        missing = [name for name in cells if name not in self.progress.finished]

        def started(job: Job) -> None:
            self.folder.started.add(job.name)
            # a later start counts this one's time so far, even if it is killed before any cell has ended
            self.folder.note_state(self.spent)
            self.folder.clear(job.name)

        def ended(end: Ended) -> None:
            self.progress.running.pop(end.job.name, None)
            self._take(end, *cells[end.job.name], asked=interrupt.asked is not None)

        def lost(end: Ended, attempt: int) -> None:
            self.progress.running.pop(end.job.name, None)
            self.display.note(f"{end.job.name}: {end.unseen}; it goes on, attempt {attempt}")

        def looked(running: Sequence[RunningCell]) -> None:
            for cell in running:
                arm, _ = cells[cell.job.name]
                share = share_done(cell.job.run, arm.settings["epochs"], arm.settings["passes"])
                self.progress.running[cell.job.name] = share, cell.seconds
            if interrupt.asked and not told:
                told.append(interrupt.asked)
                many = "1 run is saved at the end of its rollout"
                if len(running) != 1:
                    many = f"{len(running)} runs are saved at the end of their rollouts"
                self.display.note(f"{interrupt.asked}: {many}; Ctrl-C: at once")
            self.display.update(self.spent)

        told: list[str] = []
        jobs = [self._job(name, *cells[name]) for name in missing]
        run_jobs(jobs, self.jobs, self.engine, interrupt, started=started, ended=ended, looked=looked, lost=lost)

    def _job(self, name: str, arm: Arm, seed: int) -> Job:
        run, log = self.folder.cells / name, self.folder.logs / f"{name}.log"
        # a finished cell may be a link, and is only read
        check_folder(run)
        check_target(log)
        fresh = ["--probe_every", "0", *arm.flags, "--seed", str(seed), "--run_dir", str(run), "--progress", "lines"]
        # the plan names the modules, not the run's own record, so that no others are imported
        again = ["--resume", str(run), *named_by(arm.settings)]
        return Job(name, tuple(fresh), tuple(again), run, log)

    def _take(self, end: Ended, arm: Arm, seed: int, asked: bool) -> None:
        """Handle the result of a cell that ended."""
        name, reason = end.job.name, ""
        if end.status in (0, LOST):
            try:
                cell = summarize(self.folder.cells / name, arm.label)
                self.progress.took[name] = end.seconds
                self.progress.finished[name] = cell
                self.display.finished(name, cell, self.spent)
            except ValueError as error:
                reason = f"it ended well, but {error}" if end.status == 0 else end.reason
        elif not asked:
            reason = end.reason
        if reason:
            self.progress.failed[name] = reason
            self.display.note(f"{name} failed: {reason}")
            for line in last_lines(end.job.log)[:-1]:
                self.display.note(f"    {line}")
        self._save()

    def _save(self) -> None:
        self.lock.folder.check()
        self.folder.note_state(self.spent)
        self.folder.write(self.plan, self.jobs, self.progress.finished, self.progress.failed)

    def _add_compute_arms(self) -> None:
        known = {arm.name for arm in self.plan.arms}
        chosen = self.plan.equal_compute
        cells: list[Cell] = list(self.progress.finished.values())
        finished = self.progress.finished.items()
        lost = [name for name, cell in finished if cell.damage and not cell.views and cell.agent != "none"]
        if chosen and lost:
            self.display.note(f"{', '.join(chosen)}: no arm {COMPUTE}, since metrics.jsonl of {lost[0]} is lost")
            return
        base = [arm for arm in self.plan.arms if not arm.label.endswith(COMPUTE)]
        made = {arm.name: arm for arm in compute_arms(chosen, base, cells, self.plan.seeds)}
        added = [arm for name, arm in made.items() if name not in known]
        for arm in base:
            name = arm.label + COMPUTE + arm.suffix
            if arm.label not in chosen or arm.agent == "none" or name in known:
                continue
            if name in made:
                epochs = made[name].settings["epochs"]
                self.display.note(f"{name}: {amount(epochs, 'epoch')}")
            elif not any(self.progress.finished[arm.named(seed)].attack_steps for seed in range(arm.seeds)):
                self.display.note(f"{arm.name} makes no attack step, however long it trains: no {name}")
            else:
                self.display.note(f"{arm.name} spends as many attack steps as any arm: no {name}")
        if added:
            self.plan = replace(self.plan, arms=(*self.plan.arms, *added))
            self.folder.write_plan(self.plan)
            self.progress.arms = self.plan.arms
            self.progress.finished |= {
                name: cell for name, cell in self.folder.open(self.plan).items() if name not in self.progress.finished
            }
            self._save()

    def _conclude(self, asked: str | None) -> None:
        note, failed, path = self.display.note, self.progress.failed, str(self.folder.path)
        if not self.display.console.is_interactive:
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
            note(f"{why} by {self.again}")
        if any(arm.learns for arm in self.plan.arms) and CONTROL not in {arm.agent for arm in self.plan.arms}:
            note(f"the control {CONTROL} is missing: is choosing worth more than attacking hard?")
        note(f"the runs are in {self.folder.cells}, what they come to in {self.folder.results}")
        note(f"the report: {typed('report', path)}")
