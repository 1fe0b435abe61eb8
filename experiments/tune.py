"""Find good constants for a world: a budget of the attack, a schedule of its radius, a learning rate and a strength.

# a constant attack: radius, steps and step size
python experiments/tune.py --tune fixed --preset digits-wide
# the same on a grid of 8 radii
python experiments/tune.py --tune curve --candidates 8 --preset digits-wide
# a schedule of radii, at the steps and the step size of the best constant
python experiments/tune.py --tune schedule --preset digits-wide --steps 1 --step_size 32/255
# the training: learning rate and strength of the augmentations
python experiments/tune.py --tune lr strength --preset digits-wide
# one constant for several worlds
python experiments/tune.py --tune fixed --worlds digits-wide digits-wide-half cifar10-16
# the best of some arms
python experiments/tune.py --tune arms --preset digits-wide --arm 'a=--agent random' --arm 'b=--agent random --lr 0.01'

Candidates train on four fifths of the training images and are scored on the other fifth; test images are not looked at.
Successive halving gives the better candidates more seeds. All trials spend about as many forward-backward passes, so
that candidates with fewer attack steps make more updates. The score is the mean margin of a ridge probe under PGD-10
at the world's judge_epsilon, or 8/255 (`--judge_score mean`: averaged with the clean margin). Flags not listed below
are those of the training, see train_agent.py --help. Every finished trial is kept: the same command continues.
"""

import shlex
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

if not __package__:
    # for a script, put this checkout first, in place of this file's folder, whose files would shadow modules
    sys.path[: not sys.flags.safe_path] = [str(Path(__file__).resolve().parents[1])]
    # imported before all slow modules: from here on a signal ends this process with one line of text
    from astra_gym.ssl_core.utils import stopping  # noqa: F401

from astra_gym.experiments.comparison.arms import own_arm, settings_of, without
from astra_gym.experiments.comparison.cell_results import plain
from astra_gym.experiments.config.argparser import CommandParser
from astra_gym.experiments.config.cli import LEAVES
from astra_gym.experiments.config.commands import program
from astra_gym.experiments.config.frame import Ending, framed
from astra_gym.experiments.config.presets import PRESETS
from astra_gym.experiments.config.settings import Settings
from astra_gym.experiments.engines.base import usable_cores
from astra_gym.experiments.tuning.candidates import (
    Candidate,
    budgets,
    common,
    curve,
    named,
    schedules,
    trainings,
)
from astra_gym.experiments.tuning.given_arms import check_searchable, given_arms
from astra_gym.experiments.tuning.halving import Rung, rungs_for, search, trials
from astra_gym.experiments.tuning.trial import (
    Search,
    Trial,
    own_passes,
    pooled,
    trained_together,
    try_all,
    try_candidate,
    try_worlds,
)
from astra_gym.experiments.tuning.tuning_file import NOT_SEARCHED, TuningFile, held, label, taken_over
from astra_gym.ssl_core.evaluation.results import radius_text
from astra_gym.ssl_core.safety.disk import disk_error
from astra_gym.ssl_core.settings.records import SWITCH, Notes, check_choices
from astra_gym.ssl_core.training.optim import PEAK_LR
from astra_gym.ssl_core.utils.finite import check_number
from astra_gym.ssl_core.utils.import_path import located
from astra_gym.ssl_core.utils.messages import amount, brief, few, said

KINDS = {
    "fixed": "radius, steps and step size of the agent fixed",
    "curve": "radius and steps of the agent fixed on a grid, all with three seeds",
    "schedule": "radii of the agent schedule, at the given steps and step size",
    "lr": "the learning rate",
    "strength": "the strength of the augmentations",
    "arms": "the given arms, such as an agent under some settings of its own",
}
SET_HERE = ("--seed", "--run_dir", "--progress", "--resume", "--agent", "--device", "--print_config", "--list")
BUDGET = ("--epsilon", "--steps", "--step_size", "--schedule")
MOST_PASSES = 1e9
CURVE_SEEDS, ARM_SEEDS = 3, 2


@dataclass(frozen=True, kw_only=True)
class TuneFlags:
    """What is tuned; any other flag goes to the training of every trial.

    Args:
        tune: what is searched: fixed (a constant attack), curve (the same on a grid of radii and steps, all with three
            seeds), schedule (radii in turn), lr and strength (of the training; together or one alone), or arms.
        arm: a candidate of --tune arms, LABEL=FLAGS, with flags of the training; repeated for each. The trainings spend
            exactly the passes, and the first round has two seeds.
        candidates: number of candidates; of a curve, number of radii.
        passes: forward-backward passes over a batch's views that each trial spends, in each of several worlds; by
            default those of the world's own epochs with the method's own budget.
        search_seed: seed of the candidates' draw.
        worlds: presets, in place of --preset, in all of which each candidate of --tune fixed or arms trains; the best
            is the one for all. The score is the mean over worlds of the accuracy that each judges by.
        pool: the file of a search with --worlds; the candidates are those of that search, and what it found in this
            world is taken over, so that only the seeds of later rounds are trained.
        jobs: processes at once; by default one per usable core.
        output: the file with the trials; by default tuning/PRESET-KIND.json, or tuning/global-fixed.json.
        trust: import the custom modules that a config file names, which runs their code.
    """

    tune: Annotated[tuple[str, ...], Notes(nargs="+", choices=KINDS, what="kind of constants", unit="KIND")] = (
        "fixed",
    )
    arm: Annotated[tuple[str, ...], Notes(repeated=True, unit="'LABEL=FLAGS'")] = ()
    candidates: int = 64
    passes: Annotated[float | None, Notes(unit="PASSES")] = None
    search_seed: int = 0
    worlds: Annotated[tuple[str, ...], Notes(nargs="+", choices=PRESETS, what="preset")] = ()
    pool: Annotated[Path | None, Notes(unit="FILE")] = None
    jobs: int | None = None
    output: Annotated[Path | None, Notes(unit="FILE")] = None
    trust: Annotated[bool, SWITCH] = False

    def __post_init__(self) -> None:
        check_choices(self)
        if len(set(self.tune)) < len(self.tune) or (len(self.tune) > 1 and not set(self.tune) <= {"lr", "strength"}):
            raise ValueError(
                f"--tune {' '.join(self.tune)}: expected fixed, curve, schedule, arms, lr, strength, or lr strength"
            )
        if len(self.arm) < 2 if self.arms else self.arm:
            given = few(each.partition("=")[0] for each in self.arm) or "no arm"
            wanted = "compares two or more, give --arm 'LABEL=FLAGS' for each" if self.arms else "takes none"
            raise ValueError(f"--arm names {given}: --tune {' '.join(self.tune)} {wanted}")
        several = self.tune == ("fixed",) or self.arms
        if self.worlds and (not several or len(set(self.worlds)) < max(2, len(self.worlds))):
            raise ValueError(
                f"--worlds {' '.join(self.worlds)}: expected --tune fixed or arms and two or more different presets"
            )
        if self.pool is not None and (self.worlds or self.tune != ("fixed",)):
            raise ValueError("--pool: expected --tune fixed in one world, and no --worlds")
        drawn_here = {"--candidates": self.candidates != TuneFlags.candidates, "--search_seed": self.search_seed != 0}
        if (self.pool is not None or self.arms) and any(drawn_here.values()):
            flag = next(name for name, given in drawn_here.items() if given)
            whose = "given by --arm" if self.arms else f"those of --pool {self.pool}"
            raise ValueError(f"{flag}: the candidates are {whose}, leave it out")
        if self.tune == ("curve",) and self.search_seed:
            raise ValueError("--search_seed: a curve is a grid, of which nothing is drawn, leave it out")
        check_number("--candidates", self.candidates, 2, 4096, whole=True)
        check_number("--search_seed", self.search_seed, 0, whole=True)
        if self.jobs is not None:
            check_number("--jobs", self.jobs, 1, whole=True)
        if self.passes is not None:
            check_number("--passes", self.passes, 0, MOST_PASSES, above=True)

    @property
    def trains(self) -> bool:
        """Whether the training is tuned, under the attack that is given."""
        return set(self.tune) <= {"lr", "strength"}

    @property
    def arms(self) -> bool:
        """Whether candidates are whole arms."""
        return self.tune == ("arms",)

    @property
    def keeps(self) -> tuple[str, ...]:
        """The flags of the attack's budget that a search of budgets leaves as they are given."""
        return ("--steps", "--step_size") if self.tune == ("schedule",) else ()

    @property
    def without(self) -> tuple[str, ...]:
        """The settings that do not say which search it is: those that decide nothing, and those of its candidates."""
        budget = () if self.trains or self.arms else ("agent", *(flag[2:] for flag in BUDGET if flag not in self.keeps))
        return (*NOT_SEARCHED, *budget)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status: 0, 1 a trial was killed, 2 bad input, 128 + N stopped by signal N."""
    return framed("tune", argv, _main)


def _main(argv: list[str], ending: Ending) -> int:
    parser = CommandParser("tune", TuneFlags, __doc__, "--tune KIND [--FLAG VALUE ...]")
    own, flags = parser.split(argv, LEAVES)
    given = parser.read(own)
    ending.stopped = "interrupted: finished trials are kept, and the same command continues"
    ending.kept = "finished trials are kept"
    ending.after = "the same command continues"
    try:
        worlds = _worlds(given, flags)
        name = "global" if given.worlds else next(iter(worlds.values())).run.preset
        output = given.output or Path("tuning") / f"{name}-{'-'.join(given.tune)}.json"
        ending.place = output.parent
        return _search(given, worlds, output)
    except BrokenProcessPool:
        # the system kills processes so when memory runs out
        lost = "the process of a trial was killed; finished trials are kept, and the same command continues"
        print(said(program("tune"), lost), file=sys.stderr)
        return 1
    except ValueError as error:
        parser.error(located(error))
    except OSError as error:
        if disk_error(error):
            raise
        parser.error(": ".join(str(part) for part in (error.filename, error.strerror or error) if part is not None))


def _search(given: TuneFlags, worlds: Mapping[str, Settings], output: Path) -> int:
    known = dict[tuple[Candidate, int], Trial]()
    candidates = candidates_of(given, list(worlds.values())) if given.pool is None else []
    searches = {name: _shared(given, settings) for name, settings in worlds.items()}
    world, first = next(iter(searches.items()))
    if given.pool is not None:
        known = taken_over(given.pool, world, first, plain(first.settings, given.without))
        candidates = list(dict.fromkeys(candidate for candidate, _ in known))
    elif given.tune != ("curve",) and not given.arms and len(candidates) < given.candidates:
        print(f"the world has {len(candidates)} different candidates, not {given.candidates}")
    rungs = rungs_for(len(candidates), ARM_SEEDS if given.arms else 1)
    if given.tune == ("curve",):
        rungs = (Rung(len(candidates), CURVE_SEEDS),)
    passes = sum(search.passes for search in searches.values()) if given.worlds else first.passes
    what = {
        "tune": list(given.tune),
        "passes": passes,
        "candidates": len(candidates),
        "search_seed": given.search_seed,
        "settings": {
            f"{place}: {name}" if given.worlds else name: value
            for place, settings in worlds.items()
            for name, value in plain(settings, given.without).items()
        },
    }
    if given.worlds:
        what["world_passes"] = {name: search.passes for name, search in searches.items()}
    judged = sorted({each.settings.judge.epsilon for each in searches.values()})
    radii = " or ".join(radius_text("Linf", epsilon) for epsilon in judged)
    with held(output):
        file = TuningFile(output, what, candidates, rungs)
        file.trials = known | file.trials
        attempt = partial(try_worlds, searches) if given.worlds else partial(try_candidate, first)
        titles = dict(zip(candidates, (own_arm(text)[0] for text in given.arm), strict=False))
        cost = sum(searches[names[0]].passes for names in trained_together(searches))
        best = _found(file, attempt, cost, given.jobs or usable_cores(), titles, radii)
    if best in file.failed:
        left = f"{brief(titles.get(best) or label(best))}, the last candidate left, could not"
        which = left if file.failed < {*candidates} else "no candidate could"
        raise ValueError(
            f"{which} be trained with every seed: values were not finite, see {output}; search among others or with a "
            "lower --lr, into another --output"
        )
    own = {name: getattr(first.settings.agent, name) for name in ("agent", "epsilon", "steps", "step_size")}
    played = {name: value for name, value in own.items() if value is not None} if given.trains else {}
    name = titles.get(best, f"{'-'.join(given.tune)}-{'global' if given.worlds else 'tuned'}")
    for world, each in searches.items():
        place = f"in {world}" if given.worlds else "beside this command's flags of the world"
        length = f"--passes {each.passes:g}" if given.arms else f"--epochs {each.epochs(best)}"
        arm = f"{name}={named(played | dict(best.settings))} {length}"
        # a comparison reads only flags of constants from such a file, since others may name a stranger's modules
        words = ["--arm", arm, *([] if given.arms else ["--searched", f"{name}={output}"])]
        print(f"as an arm, {place}: {shlex.join(words)}")
    return 0


def _found(
    file: TuningFile,
    attempt: Callable[[Candidate, int], Trial],
    cost: float,
    jobs: int,
    titles: Mapping[Candidate, str],
    radii: str,
) -> Candidate:
    """Make the trials that the file lacks, of about `cost` passes each, and return the best candidate; `titles` are
    labels to print, and so are the judged `radii`."""
    whole = trials(file.rungs)
    candidates = list(file.candidates.values())
    searched = f"{amount(len(candidates), 'candidate')}, {amount(whole, 'trial')}"
    print(f"{searched} of {cost:.0f} passes, {jobs} at once, RA at {radii}, into {file.path}")

    def evaluate(asked: list[tuple[Candidate, int]]) -> dict[tuple[Candidate, int], float]:
        left = [pair for pair in asked if pair not in file.trials]
        for candidate, seed, trial in try_all(attempt, left, pool):
            file.add(candidate, seed, trial)
            made = len(file.trials)
            # a pool may bring trials of candidates that do not come so far here
            of = f" of {whole}" if made <= whole else ""
            print(
                f"{made}{of}: {titles.get(candidate) or label(candidate)}, seed {seed}: score {trial.score:.3f}, SA "
                f"{trial.found.SA:.1f} %, RA {trial.found.RA:.1f} %, {amount(trial.updates, 'update')}, "
                f"{trial.seconds:.0f} s",
                flush=True,
            )
        return file.scores

    with pooled(jobs) as pool:
        best = search(candidates, evaluate, file.rungs)[0]
    file.write()
    seeds = file.rungs[-1].seeds
    mean = sum(file.scores[best, seed] for seed in range(seeds)) / seeds
    spent = sum(trial.passes for trial in file.trials.values())
    found = f"score {mean:.3f} over {amount(seeds, 'seed')}"
    print(f"best: {titles.get(best) or label(best)} ({found}), found with {spent:.0f} passes; {file.path}")
    return best


def _shared(given: TuneFlags, settings: Settings) -> Search:
    """Return what the trials in a world share."""
    budget = settings.fixed_budget if given.trains else settings.method.make().budget_at(1)
    steps = float(budget.steps) if budget is not None and not settings.method.make().attack.free else 0.0
    return Search(settings, given.passes or own_passes(settings, steps), exact=given.arms)


def _worlds(given: TuneFlags, flags: Sequence[str]) -> dict[str, Settings]:
    """Return the settings that candidates change, by the name of the world.

    Raises:
        ValueError: as `_settings`, or a preset is given beside --worlds.
    """
    if not given.worlds:
        settings = _settings(given, flags)
        return {settings.run.preset: settings}
    if any(flag.partition("=")[0] == "--preset" for flag in flags):
        raise ValueError("--preset is given beside --worlds, which names the presets: leave one of them out")
    # the folder is that of the worlds that need one
    bare = list(without(flags, "--data_dir"))
    return {
        name: _settings(given, [*(flags if "dataset" in PRESETS[name] else bare), "--preset", name])
        for name in given.worlds
    }


def _settings(given: TuneFlags, flags: Sequence[str]) -> Settings:
    """Return the settings that candidates change.

    Raises:
        ValueError: if a flag is wrong or is set by the search, or there is nothing to tune.
    """
    for flag in flags:
        name = flag.partition("=")[0]
        if name in SET_HERE or (name in BUDGET and not (given.trains or name in given.keeps)):
            raise ValueError(f"{name} is set for each trial by the search: leave it out")
    bare: Iterable[str] = [*flags, "--device", "cpu"]
    for name in BUDGET:
        bare = without(bare, name)
    bare = list(bare)
    world = settings_of(bare, given.trust or None)
    check_searchable(world)
    if "strength" in given.tune and (reason := world.method.idle.get("strength")):
        raise ValueError(f"--tune strength: in the method {world.method.method} {reason}, so there is nothing to tune")
    if not world.method.make().attack.exists:
        if not (given.trains or given.arms):
            raise ValueError(f"the method {world.method.method} has no attack, so there is no budget to tune")
        return world
    if given.arms:
        return world
    # of the world, not those that the agent `auto` may widen for itself alone
    sets = settings_of([*bare, "--agent", "random"], given.trust or None).ranges.sets
    own = {"--epsilon": sets.epsilons[0], "--steps": sets.steps[0], "--step_size": sets.step_sizes[0]}
    agent, more = "fixed", [] if given.trains else [f"{name}={value}" for name, value in own.items()]
    if given.tune == ("schedule",):
        agent, more = "schedule", [f"--schedule=[{sets.epsilons[0]}]"]
    return settings_of([*flags, "--device", "cpu", "--agent", agent, *more], given.trust or None)


def candidates_of(given: TuneFlags, worlds: Sequence[Settings]) -> list[Candidate]:
    """Draw the candidates of the search, or take the given arms.

    Raises:
        ValueError: if a schedule is tuned without steps and a step size, worlds have nothing in common, or an arm is
            wrong.
    """
    if given.arms:
        return given_arms(given.arm, worlds, given.trust or None)
    settings, sets = worlds[0], common([settings.ranges.sets for settings in worlds])
    if given.tune == ("fixed",):
        return budgets(sets, given.candidates, given.search_seed)
    if given.tune == ("curve",):
        return curve(sets, given.candidates)
    if given.tune == ("schedule",):
        steps, step_size = settings.agent.steps, settings.agent.step_size
        if steps is None or step_size is None:
            raise ValueError("--tune schedule: give the attack's --steps and --step_size, as --tune fixed found them")
        return schedules(sets, steps, step_size, given.candidates, given.search_seed)
    lr = PEAK_LR[settings.optimizer.optimizer] if settings.optimizer.lr is None else settings.optimizer.lr
    return trainings(given.tune, lr, given.candidates, given.search_seed)


if __name__ == "__main__":
    sys.exit(main())
