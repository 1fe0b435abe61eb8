"""Whether budgets chosen per view by their credit add up over many updates."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from astra_gym.envs.engine import AttackEngine
from astra_gym.experiments.headroom.one_update import forward_credits, tried
from astra_gym.experiments.headroom.world import HeadroomWorld, ladder, mixed
from astra_gym.ssl_core.training.exams import Exam, value
from astra_gym.ssl_core.utils.rng import Streams

CONTROLS = ("no attack", "constant", "hardest")


def check_length(world: HeadroomWorld, engine: AttackEngine) -> None:
    """Raise a ValueError if half of the engine's run is shorter than the long test."""
    left = engine.planned_updates - engine.planned_updates // 2
    if left < world.updates:
        raise ValueError(
            f"half a run leaves {left} updates, less than --updates {world.updates}: raise --epochs, or lower it"
        )


def measure_updates(world: HeadroomWorld, engine: AttackEngine, judges: list[Exam], seed: int) -> dict[str, Any]:
    """Train on from one state in several ways, with the same batches and random starts.

    `chosen`: before every update each view gets the budget with the largest forward-mode credit by judge A, on the
    present weights. `shuffled`: the same budgets, dealt at random to the views of the same batch. And three constants:
    no attack, the world's constant, and the hardest of the tried budgets.

    Returns:
        `falls`: by way, the falls of judge A's and of judge B's value; `chosen`: the share of views by budget; `steps`:
        the chosen budgets' mean attack steps.

    Raises:
        ValueError: if the run ends before.
    """
    check_length(world, engine)
    budgets, state = ladder(world), copy.deepcopy(engine.state_dict())
    start = [value(engine.learner, judge) for judge in judges]
    deal, taken = Streams(seed)["headroom/shuffle"], list[Tensor]()

    def choose(update: int) -> Tensor:
        taken.append(forward_credits(engine, judges[0], tried(engine, budgets)).argmax(1))
        return taken[-1]

    def shuffle(update: int) -> Tensor:
        return taken[update][torch.randperm(len(taken[update]), generator=deal)]

    def falls(pick: Callable[[int], Tensor]) -> list[float]:
        engine.load_state_dict(copy.deepcopy(state))
        for update in range(world.updates):
            engine.play(mixed(budgets, pick(update)))
        return [before - value(engine.learner, judge) for before, judge in zip(start, judges, strict=True)]

    found = {"chosen": falls(choose), "shuffled": falls(shuffle)}
    for name, at in zip(CONTROLS, (0, budgets.index(world.constant), len(budgets) - 1), strict=True):
        same = torch.full((engine.num_attacked,), at)
        found[name] = falls(partial(_always, same))
    shares = torch.bincount(torch.cat(taken), minlength=len(budgets)) / sum(map(len, taken))
    steps = sum(float(share) * budget.steps for share, budget in zip(shares, budgets, strict=True))
    return {"falls": found, "chosen": [round(share, 4) for share in shares.tolist()], "steps": round(steps, 3)}


def _always(chosen: Tensor, update: int) -> Tensor:
    return chosen
