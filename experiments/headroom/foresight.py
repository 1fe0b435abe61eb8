"""Whether exams in the middle of a run can tell which constant attack is best at its end."""

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from astra_gym.envs.engine import AttackEngine
from astra_gym.experiments.headroom.judges import make_image_exam
from astra_gym.experiments.headroom.verdicts import Verdict, mean_and_ends
from astra_gym.experiments.headroom.world import HeadroomWorld, ladder
from astra_gym.experiments.stats import rank_correlation
from astra_gym.experiments.tuning.trial import judged
from astra_gym.ssl_core.attacks.pgd import ConstantBudget
from astra_gym.ssl_core.data.image_set import Split
from astra_gym.ssl_core.downstream.quick_score import quick_score
from astra_gym.ssl_core.training.exams import value
from astra_gym.ssl_core.utils.rng import Streams
from astra_gym.ssl_core.utils.training_plan import UPDATE_PASSES

SHARES = (0.1, 0.3, 0.5, 0.7, 0.9)
"""Shares of the run's passes at which blocks begin."""
BLOCK = 0.1
"""Length of a block, as a share of the run's passes."""


def measure(world: HeadroomWorld, seed: int) -> dict[str, Any]:
    """Train with each of the tried budgets to the end, and in blocks from states of a run under the constant.

    All spend the passes of the world's run under the constant, in which the learning rate follows the share that is
    spent. An encoder at the end has the quick score, by labels, on the judge's images. A block has the fall of the
    judge's exam from its begin to its end, as the reward term `judge` pays it: views attacked on the weights of their
    time from the same random start.

    Returns:
        `scores`: by budget; `falls`: by share and budget.
    """
    data, budgets = world.divided(seed), ladder(world)
    route = world.settings.method.make().routes.evaluation
    scores = []
    for budget in budgets:
        engine = _engine(world, data, seed)
        _play(engine, budget, 1.0)
        found = quick_score(engine.learner.encoder, route, data.train, data.test, world.radius, seed)
        scores.append(round(judged(found, world.settings), 5))
    engine, falls = _engine(world, data, seed), list[list[float]]()
    for at, share in enumerate(SHARES):
        _play(engine, world.constant, share)
        state = copy.deepcopy(engine.state_dict())
        before, row = _loss(world, engine, data, at), []
        for budget in budgets:
            engine.load_state_dict(copy.deepcopy(state))
            _play(engine, budget, share + BLOCK)
            row.append(round(before - _loss(world, engine, data, at), 5))
        engine.load_state_dict(state)
        falls.append(row)
    return {"scores": scores, "falls": falls}


def conclude(world: HeadroomWorld, repeats: Mapping[int, Any]) -> tuple[list[Verdict], dict[str, Any]]:
    """Return no verdict, and the numbers: rank correlations (mean, and its 95 % interval over repeats) of falls and
    scores by share, and the budgets with their mean scores."""
    found = [repeats[seed] for seed in sorted(repeats)]
    by_share = {}
    for at, share in enumerate(SHARES):
        ends = mean_and_ends([rank_correlation(each["scores"], each["falls"][at]) for each in found])
        by_share[f"{share:g}"] = [None if end is None else round(end, 3) for end in ends]
    scores = np.mean([each["scores"] for each in found], axis=0)
    budgets = [
        {"epsilon": round(255 * budget.epsilon, 3), "steps": budget.steps, "score": round(float(score), 4)}
        for budget, score in zip(ladder(world), scores, strict=True)
    ]
    return [], {"rank_correlations": by_share, "budgets": budgets}


def correlations(numbers: Mapping[str, Any]) -> Iterator[tuple[str, list[float | None]]]:
    """Yield the rank correlations in the numbers of `conclude`, each with its name in words."""
    for share, found in numbers["rank_correlations"].items():
        yield f"rank correlation of a block at {float(share):.0%} of the run and the end", found


def _engine(world: HeadroomWorld, data: Split, seed: int) -> AttackEngine:
    """Return a new world whose run spends the passes of the run under the constant."""
    plain = AttackEngine(world.settings.world, seed, "cpu", data)
    passes = plain.planned_updates * (UPDATE_PASSES + world.constant.steps)
    return AttackEngine(world.settings.world.replace(passes=passes), seed, "cpu", data)


def _play(engine: AttackEngine, budget: ConstantBudget, share: float) -> None:
    """Play a budget until a share of the passes is spent."""
    while engine.progress < share - 1e-9:
        engine.play(budget.expand(engine.num_attacked))


def _loss(world: HeadroomWorld, engine: AttackEngine, data: Split, number: int) -> float:
    """Return the loss on the present weights in the exam of a number, whose views and random start stay the same."""
    score, streams = world.settings.judge.judge_score, Streams(engine.streams.seed)
    exam = make_image_exam(engine, data.test.images, world.radius, score, f"headroom/exam {number}", streams)
    return value(engine.learner, exam)
