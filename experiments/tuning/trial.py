"""One trial of a search: train an encoder on a part of the training images, and score it on the other."""

import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import active_children, get_context
from typing import Any, NamedTuple, TypeVar

import torch

from astra_gym.experiments.config.settings import Settings
from astra_gym.experiments.engines.cell import end_with, parent_gone
from astra_gym.experiments.runs.run import Run
from astra_gym.experiments.tuning.candidates import Candidate, updates_for
from astra_gym.ssl_core.data.image_set import ImageSet
from astra_gym.ssl_core.data.labels import divided, measured_images
from astra_gym.ssl_core.downstream.quick_score import QuickScore, quick_score
from astra_gym.ssl_core.utils.finite import NonFiniteError, check_number
from astra_gym.ssl_core.utils.import_path import located
from astra_gym.ssl_core.utils.messages import brief
from astra_gym.ssl_core.utils.training_plan import UPDATE_PASSES

Tried = TypeVar("Tried")
Result = TypeVar("Result")
WORST = -10.0
"""The score of a trial that failed; margins lie near [-1, 1]."""
FAILED = QuickScore(0.0, 0.0, -1.0, -1.0)
"""The values of an encoder that could not be trained."""


class Trial(NamedTuple):
    """A finished trial.

    Args:
        score: value by which candidates are ranked: the margin at the judged radius (see `judged`).
        found: the encoder's values on the validation part.
        updates: target updates made.
        passes: forward-backward passes spent, over a batch's views.
        seconds: processor time of the training and the score.
        failed: reason, if a value was not finite; the score is then `WORST`.
        worlds: values by world, of a trial in several; `found` has their means, and the other numbers their sums.
    """

    score: float
    found: QuickScore
    updates: int
    passes: float
    seconds: float
    failed: str = ""
    worlds: Mapping[str, QuickScore] | None = None


@dataclass(frozen=True)
class Search:
    """What all trials of a search share.

    Args:
        settings: settings that candidates change; its `judge_epsilon` and `judge_score` decide.
        passes: passes that a trial spends, so that candidates with fewer attack steps make more updates.
        exact: whether its training ends once they are spent, what the reward measures included, whatever an agent
            chooses; else it has the whole number of epochs that they pay for.
    """

    settings: Settings
    passes: float
    exact: bool = False

    def steps(self, candidate: Candidate) -> float:
        """Return the attack steps per view that a candidate pays for; free training has them with its updates."""
        if self.settings.method.make().attack.free:
            return 0.0
        if candidate.steps is not None:
            return candidate.steps
        budget = self.settings.fixed_budget
        return 0.0 if budget is None else float(budget.steps)

    def epochs(self, candidate: Candidate, images: int | None = None) -> int:
        """Return the whole number of epochs that the passes pay for, at least 1.

        Args:
            candidate: the candidate.
            images: number of images that are trained on; None: all training images, as in a run after the search.
        """
        images = len(training_images(self.settings)) if images is None else images
        return max(1, round(updates_for(self.passes, self.steps(candidate)) / _updates_in(self.settings, images)))

    def of(self, candidate: Candidate, seed: int) -> Settings:
        """Return a trial's settings."""
        images = len(training_images(self.settings))
        own: dict[str, Any] = {"passes": self.passes}
        if not self.exact:
            own = {"epochs": self.epochs(candidate, images - measured_images(images))}
        return self.settings.replace(**candidate.changes | own, seed=seed, evaluate=False, probe_every=0)

    def alone(self, candidate: Candidate, trial: Trial, world: str) -> Trial:
        """Return a trial in several worlds as one in this world alone, whose name is given. Its seconds are a share of
        the trial's, by passes.

        Raises:
            KeyError, TypeError: if the trial was not made in this world.
        """
        found = trial.worlds[world]  # type: ignore[index]
        images = len(training_images(self.settings))
        images -= measured_images(images)
        updates = self.epochs(candidate, images) * _updates_in(self.settings, images)
        passes = updates * (UPDATE_PASSES + self.steps(candidate))
        failed = trial.failed if found == FAILED else ""
        score = WORST if failed else judged(found, self.settings)
        return Trial(score, found, updates, passes, trial.seconds * passes / trial.passes, failed)


def own_passes(settings: Settings, steps: float) -> float:
    """Return the passes of a run of the settings' epochs on all training images, with `steps` attack steps per view."""
    return settings.optimizer.epochs * _updates_in(settings, len(training_images(settings))) * (UPDATE_PASSES + steps)


def _updates_in(settings: Settings, images: int) -> int:
    """Return the updates of an epoch on so many images."""
    return max(1, images // settings.optimizer.batch_size) * settings.method.make().replays


def judged(found: QuickScore, settings: Settings) -> float:
    """Return the value that ranks encoders: the margin at the judged radius, or its mean with the clean margin."""
    return found.margin if settings.judge.judge_score == "robust" else (found.clean_margin + found.margin) / 2


def points(found: QuickScore, settings: Settings) -> float:
    """Return the value by which worlds are averaged, in points: RA at the judged radius, or its mean with SA."""
    return found.RA if settings.judge.judge_score == "robust" else (found.SA + found.RA) / 2


_LOADED: dict[str, ImageSet] = {}
"""The training images that this process has loaded, by their settings."""


def training_images(settings: Settings) -> ImageSet:
    """Return the training images of the settings' data."""
    key = repr(settings.data)
    if key not in _LOADED:
        _LOADED[key] = settings.data.load().train
    return _LOADED[key]


def try_candidate(search: Search, candidate: Candidate, seed: int) -> Trial:
    """Make one trial on the CPU.

    Raises:
        ValueError: if the settings contradict each other, or the images have no labels.
    """
    trial, [found] = _trained(search, candidate, seed, [search.settings])
    return trial if trial.failed else trial._replace(score=judged(found, search.settings), found=found)


def trained_together(worlds: Mapping[str, Search]) -> list[list[str]]:
    """Return the names of the worlds of each training of a trial: those that differ in their judge alone share one."""
    shared: dict[str, list[str]] = {}
    for name, search in worlds.items():
        bare = search.settings.replace(preset="digits", judge_epsilon=None, judge_score="robust")
        # an arm may pay for what the judge sees
        shared.setdefault(name if search.exact else f"{bare} {search.passes}", []).append(name)
    return list(shared.values())


def try_worlds(worlds: Mapping[str, Search], candidate: Candidate, seed: int) -> Trial:
    """Make a trial in several worlds, on the CPU; see `trained_together`.

    The score is the mean over worlds of their `points`, whose unit all worlds share.

    Raises:
        ValueError: as `try_candidate`.
    """
    made, by_world = list[Trial](), dict[str, QuickScore]()
    for names in trained_together(worlds):
        trial, values = _trained(worlds[names[0]], candidate, seed, [worlds[name].settings for name in names])
        made.append(trial)
        by_world |= zip(names, values, strict=True)
    failed = next((trial.failed for trial in made if trial.failed), "")
    scores = [points(by_world[name], search.settings) for name, search in worlds.items()]
    return Trial(
        WORST if failed else sum(scores) / len(scores),
        QuickScore(*(sum(column) / len(worlds) for column in zip(*by_world.values(), strict=True))),
        sum(trial.updates for trial in made),
        sum(trial.passes for trial in made),
        sum(trial.seconds for trial in made),
        failed,
        {name: by_world[name] for name in worlds},
    )


def _trained(
    search: Search, candidate: Candidate, seed: int, judges: Sequence[Settings]
) -> tuple[Trial, list[QuickScore]]:
    """Train once; return what that took, and the values at the judged radius of each of the settings."""
    began = time.process_time()
    settings = search.of(candidate, seed)
    data = divided(training_images(settings))
    run = Run(settings, torch.device("cpu"), data)
    failed = ""
    try:
        timesteps = run.engine.planned_updates * run.env.num_envs
        run.agent.learn(timesteps, lambda *_: not run.engine.finished, reset_num_timesteps=False)
        route, parts = run.engine.method.routes.evaluation, (data.train, data.test)
        radii = [judge.judge.epsilon for judge in judges]
        found = [quick_score(run.encoder, route, *parts, epsilon, seed) for epsilon in radii]
    except NonFiniteError as error:
        # a learning rate may be too large: that is a result, the worst one
        found, failed = [FAILED] * len(judges), brief(str(error))
    updates = run.engine.step
    spent = run.engine.plan.spent(updates)
    passes = updates * (UPDATE_PASSES + search.steps(candidate)) if spent is None else spent
    return Trial(WORST, found[0], updates, passes, time.process_time() - began, failed), found


def _prepare_worker() -> None:
    torch.set_num_threads(1)
    # Ctrl-C reaches the whole process group; the command itself ends its workers
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # a worker holds both ends of its queue, so it would wait for ever if the command was killed
    end_with(parent_gone)


@contextmanager
def pooled(jobs: int) -> Iterator[ProcessPoolExecutor]:
    """Surround a search with processes of one thread for its trials. If it is left early, they are killed."""
    pool = ProcessPoolExecutor(jobs, get_context("spawn"), _prepare_worker)
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in active_children():
            process.kill()
        raise
    pool.shutdown()


def try_all(
    attempt: Callable[[Tried, int], Result], asked: Sequence[tuple[Tried, int]], pool: ProcessPoolExecutor
) -> Iterator[tuple[Tried, int, Result]]:
    """Make trials side by side, of candidates (or whatever is tried) and seeds; yield each as it is finished.

    Raises:
        ValueError: as `attempt`.
        BrokenProcessPool: if a process was killed.
    """
    waiting = {pool.submit(partial(_attempted, attempt), *pair): pair for pair in asked}
    for future in as_completed(waiting):
        yield (*waiting[future], future.result())


def _attempted(attempt: Callable[[Tried, int], Result], tried: Tried, seed: int) -> Result:
    try:
        return attempt(tried, seed)
    except ValueError as error:
        # the traceback, which locates it, stays in this process
        raise ValueError(located(error)) from error


def record(trial: Trial) -> dict[str, Any]:
    """Return a trial as JSON holds it."""
    made = trial._asdict() | {"found": trial.found._asdict()}
    by_world = made.pop("worlds")
    if by_world is not None:
        made["worlds"] = {name: found._asdict() for name, found in by_world.items()}
    return made


def recorded(entry: Mapping[str, Any]) -> Trial:
    """Return the trial of an entry.

    Raises:
        KeyError, TypeError, ValueError: if the entry is not a trial's.
    """
    found, by_world = QuickScore(**entry["found"]), entry.get("worlds")
    if by_world is not None:
        by_world = {name: QuickScore(**values) for name, values in by_world.items()}
    trial = Trial(**{**entry, "found": found, "worlds": by_world})
    numbers = [trial._asdict(), *(values._asdict() for values in (found, *(by_world or {}).values()))]
    for name, value in (pair for values in numbers for pair in values.items()):
        if name not in ("found", "failed", "worlds"):
            check_number(name, value, -math.inf)
    return trial
