"""Headroom per view: whether giving each view its own budget helps, in one update and over many."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from astra_gym.experiments.headroom.judges import make_image_exam
from astra_gym.experiments.headroom.long_test import CONTROLS, check_length, measure_updates
from astra_gym.experiments.headroom.one_update import (
    forward_credits,
    gains,
    measure_update,
    tried,
    variance_shares,
    without_means,
)
from astra_gym.experiments.headroom.verdicts import Verdict, decide, mean_and_ends
from astra_gym.experiments.headroom.world import HeadroomWorld, ladder
from astra_gym.experiments.stats import rank_correlation

UNIT = "loss of judge B"


def rehearse(world: HeadroomWorld) -> None:
    """Do after one update what `measure` does after half of a run: credit the views of a batch once.

    Raises:
        ValueError: if credit per view is not defined for the optimizer or the method, or the run is too short.
    """
    engine, images = world.begun(0)
    check_length(world, engine)
    engine.play(world.constant.expand(engine.num_attacked))
    judge = make_image_exam(engine, images[0], world.radius, world.settings.judge.judge_score, "headroom/judge A")
    forward_credits(engine, judge, tried(engine, [world.constant]))


def measure(world: HeadroomWorld, seed: int) -> dict[str, Any]:
    """Measure credit in one update, and then over many, from half of a run under the constant."""
    engine, images = world.started(seed)
    score = world.settings.judge.judge_score
    judges = [
        make_image_exam(engine, part, world.radius, score, f"headroom/judge {name}")
        for name, part in zip("AB", images, strict=True)
    ]
    update = measure_update(world, engine, judges)
    return {"judge_images": len(images[0]), "update": update, "long": measure_updates(world, engine, judges, seed)}


def conclude(world: HeadroomWorld, repeats: Mapping[int, Any]) -> tuple[list[Verdict], dict[str, Any]]:
    """Return the verdicts, that against the shuffle first, and the numbers behind them.

    The spread of the long test is the standard deviation of judge B's fall over the three constants, averaged over
    repeats; that of one update is the standard deviation of judge B's credit over views and budgets.
    """
    found = [repeats[seed] for seed in sorted(repeats)]
    falls = {name: np.array([each["long"]["falls"][name] for each in found]) for name in found[0]["long"]["falls"]}
    spread = float(np.mean(np.std([falls[name][:, 1] for name in CONTROLS], axis=0, ddof=1)))
    tables = {
        name: np.concatenate([each["update"][name] for each in found]) for name in ("a", "b", "forward", "checked")
    }
    a, b, forward, checked = tables.values()
    gained, best = gains(a, b)
    verdicts = [
        decide(
            f"per view, {world.updates} updates, chosen - {name}",
            (falls["chosen"][:, 1] - falls[name][:, 1]).tolist(),
            UNIT,
            spread,
        )
        for name in ("shuffled", "constant")
    ]
    by_repeat = [len(each["update"]["a"]) for each in found]
    one = _means(gained, by_repeat).tolist()
    verdicts.append(decide("per view, one update, A's choice - best constant", one, UNIT, float(b.std())))
    by_budget = [
        {
            "epsilon": round(255 * budget.epsilon, 3),
            "step_size": round(255 * budget.step_size, 3),
            "steps": budget.steps,
            "constant": budget == world.constant,
            "credit_a": mean_and_ends(_means(a[:, at], by_repeat).tolist()),
            "credit_b": mean_and_ends(_means(b[:, at], by_repeat).tolist()),
            "preferred": float((a.argmax(1) == at).mean()),
            "chosen": float(np.mean([each["long"]["chosen"][at] for each in found])),
        }
        for at, budget in enumerate(ladder(world))
    ]
    ranked = {
        "forward and real": (forward, a),
        "forward and real, without means": (without_means(forward), without_means(a)),
        "judges A and B": (a, b),
        "linear and real judge": (checked[:, 0], checked[:, 1]),
    }
    numbers = {
        "judge_images": found[0]["judge_images"],
        "views": len(a),
        "budgets": by_budget,
        "best_constant": best,
        "variance": variance_shares(a, b),
        "rank_correlations": {name: rank_correlation(*map(np.ravel, pair)) for name, pair in ranked.items()},
        "falls": {name: mean_and_ends(values[:, 1].tolist()) for name, values in falls.items()},
        "falls_a": {name: float(values[:, 0].mean()) for name, values in falls.items()},
        "chosen_steps": float(np.mean([each["long"]["steps"] for each in found])),
        "spread": spread,
    }
    return verdicts, numbers


def _means(values: Any, counts: Sequence[int]) -> Any:
    """Return the mean over the views of each repeat, whose views share one trained network; `counts` are their
    numbers."""
    return np.array([part.mean() for part in np.split(values, np.cumsum(counts)[:-1])])
