"""The part of the benchmark that measures how long arms train until they are as robust as the paper's constant."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import accumulate, pairwise
from statistics import fmean
from typing import Any

from astra_gym.experiments.benchmarks.measure import DeviceClock, Figure, Result, interleaved
from astra_gym.experiments.benchmarks.workloads import TINY, BenchmarkError, Options
from astra_gym.experiments.config.settings import Settings
from astra_gym.experiments.runs.run import Run
from astra_gym.experiments.tuning.candidates import Candidate
from astra_gym.experiments.tuning.trial import Search, own_passes, points
from astra_gym.ssl_core.data.labels import divided
from astra_gym.ssl_core.downstream.quick_score import quick_score
from astra_gym.ssl_core.utils.finite import NonFiniteError

PAPER = "paper's constant"
TUNED = Candidate((("agent", "fixed"), ("epsilon", 48 / 255), ("steps", 1), ("step_size", 32 / 255)), 1.0)
"""Found by tune.py --tune fixed, see results/tuning/digits-wide-fixed.json."""
SHARES = 12
"""Number of scores of a run, after equal shares of its updates."""


def measure_robustness(options: Options, rounds: int, say: Callable[[str], None]) -> Result:
    """Measure the seconds of training until an arm reaches the score with which the paper's constant ends.

    The world is the preset digits-wide. Arms are the paper's constant (8/255, 5 steps of 2/255), the constant that was
    searched for, uniform random budgets and the hardest budget of the world. All train for about as many
    forward-backward passes (`Search`), on four fifths of the training images, and are scored on the other fifth: the
    mean of SA and RA at the judged radius, by `quick_score`. No test image is looked at. A round has its own seed. In
    it all arms train a twelfth of their updates in turn; scores are not timed. See `seconds_until` for the time.

    Raises:
        BenchmarkError: if a value of the training or of a score is not finite.
    """
    changes = {"agent": "fixed", "progress": "off"} | (TINY | {"epochs": 1} if options.quick else {})
    settings = Settings.from_preset("digits-wide", **changes, device=options.device.type)
    own = float(settings.method.make().budget_at(1).steps)
    search = Search(settings, own_passes(settings, own))
    arms = candidates(settings, own)
    raced = []
    for seed in range(rounds):
        say(f"robustness: round {seed + 1} of {rounds}")
        try:
            raced.append(_raced(options, search, arms, seed))
        except NonFiniteError as error:
            raise BenchmarkError(f"seed {seed}: {error}") from error
    figures = robustness_figures([found["seconds"] for found in raced], [found["scores"] for found in raced])
    return figures, {"passes": search.passes, "judge_epsilon": settings.judge.judge_epsilon, "rounds": raced}


def candidates(settings: Settings, own: float) -> dict[str, Candidate]:
    """Return the arms by name, with the steps per view that each pays for; `own` are those of the paper's constant."""
    steps = settings.ranges.sets.steps
    return {
        PAPER: Candidate((("agent", "fixed"),), own),
        "fixed-tuned": TUNED,
        # uniform over the world's sets, and not over the interval that the continuous actions of a constant span
        "random": Candidate((("agent", "random"), ("actions", "factored")), fmean(steps)),
        "hardest": Candidate((("agent", "fixed-max"), ("actions", "factored")), float(max(steps))),
    }


def _raced(options: Options, search: Search, arms: Mapping[str, Candidate], seed: int) -> dict[str, Any]:
    """Return updates, seconds and scores of each arm after each share of its updates."""
    data = divided(search.settings.data.load().train)
    epsilon = search.settings.judge.epsilon
    scores: dict[str, list[float]] = {name: [] for name in arms}
    updates: dict[str, list[int]] = {name: [] for name in arms}

    def made() -> dict[str, Run]:
        return {name: Run(search.of(candidate, seed), options.device, data) for name, candidate in arms.items()}

    def prepare(number: int) -> tuple[int, Mapping[str, Run]]:
        # the warm-up trains other networks, so that no arm is ahead
        return number, runs if number else made()

    def train(name: str, work: tuple[int, Mapping[str, Run]]) -> None:
        number, run = work[0], work[1][name]
        due = -(-run.engine.planned_updates * number // SHARES) - run.engine.step if number else 1
        if due:
            run.agent.learn(due * run.env.num_envs, None, reset_num_timesteps=False)

    def check(number: int, work: tuple[int, Mapping[str, Run]], found: dict[str, Any]) -> None:
        for name, run in runs.items() if number else ():
            route = run.engine.method.routes.evaluation
            score = quick_score(run.encoder, route, data.train, data.test, epsilon, seed)
            scores[name].append(points(score, search.settings))
            updates[name].append(run.engine.step)

    runs = made()
    tasks = {name: partial(train, name) for name in arms}
    seconds = interleaved(tasks, prepare, SHARES, DeviceClock(options.device), check)
    return {
        "updates": updates,
        "seconds": {name: [*accumulate(took)] for name, took in seconds.items()},
        "scores": scores,
    }


def seconds_until(target: float, seconds: Sequence[float], scores: Sequence[float]) -> float | None:
    """Return the seconds at which the straight lines through an arm's scores first reach the target; None: never.

    If its first score reaches it, these are the seconds of that score, since nothing is known before.

    Args:
        target: least score.
        seconds: seconds of training at each score, rising.
        scores: scores, one or more.
    """
    if scores[0] >= target:
        return seconds[0]
    for (before, low), (after, high) in pairwise(zip(seconds, scores, strict=True)):
        if high >= target:
            return before + (after - before) * (target - low) / (high - low)
    return None


Curves = Mapping[str, Sequence[float]]


def robustness_figures(seconds: Sequence[Curves], scores: Sequence[Curves]) -> list[Figure]:
    """Return each arm's seconds until the score with which the paper's constant ends in the same round, and how many
    times faster the others are.

    Args:
        seconds: seconds of training at each score, by arm, for each round.
        scores: the scores, likewise.
    """
    until = {
        name: [
            seconds_until(judged[PAPER][-1], took[name], judged[name])
            for took, judged in zip(seconds, scores, strict=True)
        ]
        for name in seconds[0]
    }
    figures = [
        Figure("robustness", f"{name}: until the target", "seconds", tuple(each)) for name, each in until.items()
    ]
    for name in [name for name in until if name != PAPER]:
        pairs = zip(until[PAPER], until[name], strict=True)
        faster = tuple(slow / fast if slow is not None and fast is not None else None for slow, fast in pairs)
        figures.append(Figure("robustness", f"{name}: against the {PAPER}", "times faster", faster))
    return figures
