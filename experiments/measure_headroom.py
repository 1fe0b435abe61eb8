"""Measure what choosing attacks could gain over a constant attack, before anything learns to choose.

# over the best constant of the world digits-wide
python experiments/measure_headroom.py --preset digits-wide --epsilon 48/255 --steps 1 --step_size 32/255
# one kind of choice alone
python experiments/measure_headroom.py --kinds attack --preset digits-wide --epsilon 48/255 --steps 1 --step_size 32/255

A repeat trains the world for half of its run under the constant, and measures from there. The kinds of choice:

view       does a budget of its own for each view lower the loss of held-out judges, in one update, and over many
           against the same budgets shuffled?
attack     does another division of the attack's steps among the views attain more loss?
foresight  does the fall of a judge's loss over a tenth of a run rank constants as they are ranked at its end? It trains
           whole runs.
stops      PPO learns in ASTrA/AttackStep-v0 when to stop each view's attack: does it attain more loss?

Only training images are used, on the CPU, in float32. A verdict is "headroom", "none" or "undecided". Flags not listed
below are those of the training, see train_agent.py --help. Every finished repeat is kept: the same command continues.
"""

import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

if not __package__:
    # for a script, put this checkout first, in place of this file's folder, whose files would shadow modules
    sys.path[: not sys.flags.safe_path] = [str(Path(__file__).resolve().parents[1])]
    # imported before all slow modules: from here on a signal ends this process with one line of text
    from astra_gym.ssl_core.utils import stopping  # noqa: F401

from astra_gym.experiments.comparison.arms import settings_of, without
from astra_gym.experiments.comparison.cell_results import plain
from astra_gym.experiments.config.argparser import CommandParser
from astra_gym.experiments.config.cli import LEAVES
from astra_gym.experiments.config.commands import program
from astra_gym.experiments.config.frame import Ending, framed
from astra_gym.experiments.engines.base import usable_cores
from astra_gym.experiments.headroom.foresight import correlations
from astra_gym.experiments.headroom.headroom_file import HeadroomFile
from astra_gym.experiments.headroom.kinds import KINDS, measure_repeat
from astra_gym.experiments.headroom.per_view import rehearse
from astra_gym.experiments.headroom.picture import draw_headroom
from astra_gym.experiments.headroom.world import HeadroomWorld
from astra_gym.experiments.reports.headroom_tables import interval
from astra_gym.experiments.tuning.trial import pooled, try_all
from astra_gym.experiments.tuning.tuning_file import NOT_SEARCHED, held
from astra_gym.ssl_core.safety.disk import disk_error
from astra_gym.ssl_core.safety.sealing import read_json
from astra_gym.ssl_core.settings.records import SWITCH, Notes, check_choices
from astra_gym.ssl_core.utils.finite import NonFiniteError, check_number
from astra_gym.ssl_core.utils.import_path import located
from astra_gym.ssl_core.utils.messages import amount, said

SHOWN_ELSEWHERE = ("--list", "--print_config", "--help")
SET_HERE = ("--seed", "--run_dir", "--progress", "--resume", "--agent", "--device", "--precision", *SHOWN_ELSEWHERE)
CONSTANT = ("--epsilon", "--steps", "--step_size")
"""The flags of the constant; all three are needed."""
MOST = 1_000_000


@dataclass(frozen=True, kw_only=True)
class HeadroomFlags:
    """What is measured; any other flag goes to the training.

    Args:
        kinds: kinds of choice: view (a budget for each view), attack (the division of an attack's steps among the
            views), foresight (whether exams during a run can rank constants), stops (as attack, but PPO learns it).
        repeats: number of repeats of each kind, with the seeds 0, 1, ...; more can be added later.
        batches: batches that a repeat of the kinds attack and stops attacks.
        judge_images: training images of each of the two judges, at most a quarter of all.
        views: views of a batch that a repeat of the kind view tries with every budget.
        updates: updates of the long test of the kind view.
        jobs: processes at once; by default one per usable core.
        output: the file with the repeats; by default headroom/PRESET.json; the picture lies beside it.
        trust: import the custom modules that a config file names, which runs their code.
    """

    kinds: Annotated[tuple[str, ...], Notes(nargs="+", choices=KINDS, what="kind of choice", unit="KIND")] = (
        "view",
        "attack",
    )
    repeats: int = 5
    batches: Annotated[int, Notes(unit="BATCHES")] = 8
    judge_images: Annotated[int, Notes(unit="IMAGES")] = 256
    views: Annotated[int, Notes(unit="VIEWS")] = 52
    updates: Annotated[int, Notes(unit="UPDATES")] = 40
    jobs: int | None = None
    output: Annotated[Path | None, Notes(unit="FILE")] = None
    trust: Annotated[bool, SWITCH] = False

    def __post_init__(self) -> None:
        check_choices(self)
        if len(set(self.kinds)) < len(self.kinds):
            raise ValueError(f"--kinds {' '.join(self.kinds)}: give each kind once")
        for name in ("repeats", "batches", "judge_images", "views", "updates"):
            check_number(f"--{name}", getattr(self, name), 1, MOST, whole=True)
        if self.jobs is not None:
            check_number("--jobs", self.jobs, 1, whole=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status: 0, 1 a repeat was killed, 2 bad input, 128 + N if
    signal N stopped it."""
    return framed("headroom", argv, _main)


def _main(argv: list[str], ending: Ending) -> int:
    parser = CommandParser("headroom", HeadroomFlags, __doc__, "--epsilon E --steps N --step_size S [--FLAG VALUE ...]")
    own, flags = parser.split(argv, LEAVES)
    given = parser.read(own)
    ending.stopped = "interrupted: finished repeats are kept, and the same command continues"
    ending.kept = "finished repeats are kept"
    ending.after = "the same command continues"
    try:
        world = _world(given, flags)
        output = given.output or Path("headroom") / f"{world.settings.run.preset}.json"
        if output.suffix == ".png":
            raise ValueError(f"--output {output} is the place of the picture: give a file .json")
        ending.place = output.parent
        return _measure(given, world, output)
    except BrokenProcessPool:
        # the system kills processes so when memory runs out
        lost = "the process of a repeat was killed; finished repeats are kept, and the same command continues"
        print(said(program("headroom"), lost), file=sys.stderr)
        return 1
    except (ValueError, NonFiniteError) as error:
        parser.error(located(error))
    except OSError as error:
        if disk_error(error):
            raise
        parser.error(": ".join(str(part) for part in (error.filename, error.strerror or error) if part is not None))


def _measure(given: HeadroomFlags, world: HeadroomWorld, output: Path) -> int:
    what = {
        **{name: getattr(given, name) for name in ("batches", "judge_images", "views", "updates")},
        "settings": plain(world.settings, NOT_SEARCHED),
    }
    asked = [(kind, seed) for seed in range(given.repeats) for kind in given.kinds]
    jobs = given.jobs or usable_cores()
    with held(output):
        file = HeadroomFile(output, world, what)
        left = [pair for pair in asked if pair[1] not in file.repeats.get(pair[0], {})]
        if any(kind == "view" for kind, _ in left):
            # refused now, and not after half of a run
            rehearse(world)
        print(f"{amount(len(asked), 'repeat')}, {len(left)} left, {jobs} at once, into {output}", flush=True)
        with pooled(jobs) as pool:
            for kind, seed, (repeat, seconds) in try_all(partial(_timed, world), left, pool):
                file.add(kind, seed, repeat, seconds)
                print(f"{kind}, seed {seed}: {seconds:.0f} s", flush=True)
        file.write()
    for kind in given.kinds:
        for verdict in file.verdicts(kind):
            ends = "" if verdict.low is None else f" ({verdict.low:+.3g} to {verdict.high:+.3g})"
            print(f"{verdict.kind}: {verdict.verdict}; {verdict.mean:+.3g}{ends} {verdict.unit}, bar {verdict.bar:.3g}")
    kinds = read_json(output)["kinds"]
    if "foresight" in given.kinds:
        for name, found in correlations(kinds["foresight"]["numbers"]):
            print(f"{name}: {interval(found, 1.0, '.2f')}")
    if not any(found["verdicts"] for found in kinds.values()):
        print(f"{output}; no picture, which is one of verdicts")
        return 0
    picture = output.with_suffix(".png")
    draw_headroom(kinds, picture)
    print(f"{output}, {picture}")
    return 0


def _timed(world: HeadroomWorld, kind: str, seed: int) -> tuple[dict[str, Any], float]:
    began = time.process_time()
    return measure_repeat(world, kind, seed), time.process_time() - began


def _world(given: HeadroomFlags, flags: Sequence[str]) -> HeadroomWorld:
    """Return the world of the flags.

    Raises:
        ValueError: if a flag is wrong or is set by the measurement, or the world has no headroom that could be
            measured so.
    """
    names = [flag.partition("=")[0] for flag in flags]
    for name in names:
        if name in SET_HERE:
            raise ValueError(f"{name} is set by the measurement: leave it out")
    bare: Iterable[str] = flags
    for name in CONSTANT:
        bare = without(bare, name)
    chosen = settings_of([*bare, "--device", "cpu"], given.trust or None).method
    method = chosen.make()
    if not method.attack.has_steps or method.post_processed or not method.loss.is_objective:
        lack = "whose gain is its loss's" if method.attack.exists else "that could be chosen"
        raise ValueError(f"the method {chosen.method} has no attack {lack}: take a method with one, such as astra")
    if missing := [name for name in CONSTANT if name not in names]:
        raise ValueError(f"the constant has no {', no '.join(missing)}: give --epsilon, --steps and --step_size")
    settings = settings_of([*flags, "--device", "cpu", "--precision", "fp32", "--agent", "fixed"], given.trust or None)
    odd = {
        "--coreset": settings.coreset.coreset != "none",
        "--update_chunks": settings.optimizer.update_chunks > 1,
        "--passes": settings.optimizer.passes is not None,
    }
    if found := [flag for flag, given in odd.items() if given]:
        raise ValueError(f"headroom is measured on whole batches of all images, by epochs: leave {found[0]} out")
    return HeadroomWorld(settings, given.batches, given.judge_images, given.views, given.updates)


if __name__ == "__main__":
    sys.exit(main())
