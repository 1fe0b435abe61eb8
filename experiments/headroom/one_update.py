"""Credit per view in one update: what changing one view's attack does to two judges."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from astra_gym.envs.engine import AttackEngine
from astra_gym.experiments.headroom.world import HeadroomWorld, ladder
from astra_gym.ssl_core.attacks.pgd import ConstantBudget
from astra_gym.ssl_core.training.exams import Exam, gradient, value
from astra_gym.ssl_core.training.forward_credit import ForwardCredit, descent
from astra_gym.ssl_core.training.learner import TargetLearner

Array = np.ndarray
CHECKED = 2
"""Views of a repeat whose credit is also measured without the linear judge."""


class Snapshot:
    """The state of a learner, to which it can return many times.

    Args:
        learner: a learner that has made an update; its method is not a free one.
    """

    def __init__(self, learner: TargetLearner) -> None:
        self.learner, self.step = learner, learner.step
        others = [other for name, other in learner.others.items() if name != "teacher"]
        parts = [part.state_dict() for part in (learner.network, learner.heads, *others)]
        moments = [value for state in learner.optimizer.state.values() for value in state.values()]
        everything = [*(value for part in parts for value in part.values()), *moments]
        self._live: list[Tensor] = [value for value in everything if isinstance(value, Tensor)]
        self._kept = [value.detach().clone() for value in self._live]

    @torch.no_grad()
    def restore(self) -> None:
        """Bring the learner back."""
        torch._foreach_copy_(self._live, self._kept)
        self.learner.step = self.step


def tried(engine: AttackEngine, budgets: list[ConstantBudget]) -> list[Tensor]:
    """Attack the coming batch with each budget from the random start that `play` will use; return the images."""
    noise = engine.streams.on_device("noise")
    start, found = noise.get_state(), []
    for budget in budgets:
        noise.set_state(start)
        with engine.learner.untracked():
            found.append(engine.learner.attack(engine.all_views, budget.expand(engine.num_attacked), noise).images)
    noise.set_state(start)
    return found


def forward_credits(engine: AttackEngine, judge: Exam, images: list[Tensor]) -> Tensor:
    """Return the forward-mode credit (n, budgets) of every view of the coming batch under each attack.

    Args:
        engine: engine of the world.
        judge: the judge whose value is to fall.
        images: attacked views (n, 3, h, w) for each budget.
    """
    learner = engine.learner
    passes = ForwardCredit(learner, engine.all_views, descent(learner, gradient(learner, judge)))
    return torch.stack([passes.shares(each) for each in images], dim=1)


def measure_update(world: HeadroomWorld, engine: AttackEngine, judges: list[Exam]) -> dict[str, Any]:
    """Measure the credit of views of the coming batch and budgets; the learner is as before in the end.

    For each view and budget the update is really made, with the image of this view, attacked with the budget, in place
    of its image under the constant; the other views keep theirs. The credit is the fall of a judge's value compared
    with the constant's update. It is read off the judge's gradient after that update: the weights differ by a part of
    one update only, and differences of two values would be lost in float32. `checked` has both for a few views.

    Returns:
        `a` and `b`: credits (views, budgets) by the judges; `forward`: by forward mode and judge A; `checked`: pairs of
        judge A's credit and its value's real fall.
    """
    learner, views, budgets = engine.learner, engine.all_views, ladder(world)
    images, usual = tried(engine, budgets), budgets.index(world.constant)
    forward = forward_credits(engine, judges[0], images)
    saved, weights = Snapshot(learner), list(learner.network.parameters())
    learner.update(views, images[usual])
    base = _joined(weights)
    slopes = torch.stack([_joined(gradient(learner, judge)) for judge in judges])
    level, count = value(learner, judges[0]), min(world.views, engine.num_attacked)
    credit, checked = torch.zeros(2, count, len(budgets)), []
    for view in range(count):
        for at in (at for at in range(len(budgets)) if at != usual):
            saved.restore()
            adversarial = images[usual].clone()
            adversarial[view] = images[at][view]
            learner.update(views, adversarial)
            moved = base - _joined(weights)
            credit[:, view, at] = slopes @ moved
            if view < CHECKED:
                checked.append([float(credit[0, view, at]), level - value(learner, judges[0])])
    saved.restore()
    forward = (forward - forward[:, usual : usual + 1])[:count]
    tables = {"a": credit[0], "b": credit[1], "forward": forward}
    return {name: _short(table.tolist()) for name, table in tables.items()} | {"checked": _short(checked)}


def _joined(tensors: Iterable[Tensor]) -> Tensor:
    return torch.cat([each.detach().reshape(-1) for each in tensors])


def _short(rows: list[list[float]]) -> list[list[float]]:
    return [[float(f"{value:.5g}") for value in row] for row in rows]


def without_means(table: Array) -> Array:
    """Return a table (views, budgets) without its views' and its budgets' means: the interaction."""
    return table - table.mean(1, keepdims=True) - table.mean(0) + table.mean()


def variance_shares(a: Array, b: Array) -> dict[str, float]:
    """Divide the variance of the credit (views, budgets) into what both judges see, and the rest.

    A share is the sum of products of the two judges' effects, over the geometric mean of their sums of squares, so a
    share can be slightly negative. All shares add up to 1.

    Returns:
        `view` (a view's mean over budgets), `budget` (a budget's mean over views), `interaction` (view x budget) and
        `not_shared`.
    """
    centered = [table - table.mean() for table in (a, b)]
    total = float(np.sqrt(np.prod([(table**2).sum() for table in centered])))
    if total == 0:
        raise ValueError("the credit of all views and budgets is the same: there is nothing to divide")
    sums = {
        "view": a.shape[1] * (centered[0].mean(1) * centered[1].mean(1)).sum(),
        "budget": a.shape[0] * (centered[0].mean(0) * centered[1].mean(0)).sum(),
        "interaction": (without_means(a) * without_means(b)).sum(),
    }
    shares = {name: float(found / total) for name, found in sums.items()}
    return shares | {"not_shared": 1 - sum(shares.values())}


def gains(a: Array, b: Array) -> tuple[Array, int]:
    """Return judge B's gain (views,) of the budget that judge A prefers for each view, over B's credit of the budget
    that A prefers for all, and the place of that budget."""
    best = int(np.argmax(a.mean(0)))
    return b[np.arange(len(b)), a.argmax(1)] - b[:, best], best
