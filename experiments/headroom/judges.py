"""Judges of an encoder: the method's loss on held-out training images, clean and attacked."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from astra_gym.envs.engine import AttackEngine
from astra_gym.ssl_core.attacks.pgd import ConstantBudget
from astra_gym.ssl_core.downstream.quick_score import STEPS, STRIDE
from astra_gym.ssl_core.training.learner import TargetLearner
from astra_gym.ssl_core.transforms.views import as_float


@dataclass(frozen=True)
class Exam:
    """Held-out views that stay the same while the weights change.

    Args:
        batches: all views (v, 3, h, w) of a batch of images, and its attacked views (n, 3, h, w), for each batch.
        attacked_share: weight of the attacked views' loss in [0, 1]; the clean views have the rest.
    """

    batches: tuple[tuple[Tensor, Tensor], ...]
    attacked_share: float


def make_exam(engine: AttackEngine, images: Tensor, epsilon: float, score: str, stream: str) -> Exam:
    """Make views of images, in batches of about the world's size, and attack them by PGD-10 on the present weights.

    Args:
        engine: engine of the world; its network and its other streams do not change.
        images: (m, 3, h, w) uint8.
        epsilon: the judged radius.
        score: the world's `judge_score`: "mean" (clean and attacked views half and half) or "robust" (attacked only).
        stream: name of the stream of views and of the attack's start.
    """
    learner, budget = engine.learner, ConstantBudget(epsilon=epsilon, step_size=STRIDE * epsilon / STEPS, steps=STEPS)
    count = max(1, len(images) // engine.settings.optimizer.batch_size)
    made, noise = [], engine.streams.on_device(stream)
    for part in images.tensor_split(count):
        views = engine.make_views(as_float(part), engine.streams[stream])
        with learner.untracked():
            attacked = learner.attack(views, budget.expand(len(learner.method.attacked(views))), noise).images
        made.append((views, attacked))
    return Exam(tuple(made), 1.0 if score == "robust" else 0.5)


def _values(learner: TargetLearner, exam: Exam) -> Iterator[Tensor]:
    """Yield each batch's part of the value. Batch norm takes the batch's own statistics, as in an update."""
    method, networks = learner.method, learner.plain()
    learner.network.train()
    learner.heads.train()
    with learner.untracked():
        for views, attacked in exam.batches:
            objective, rows = learner.objective(views), torch.arange(len(attacked))
            value = objective(method.encoded(networks, attacked, rows, attacked=True).embeddings).mean()
            if exam.attacked_share < 1:
                clean = method.encoded(networks, method.attacked(views), rows, attacked=False).embeddings
                value = exam.attacked_share * value + (1 - exam.attacked_share) * objective(clean).mean()
            yield value / len(exam.batches)


def value(learner: TargetLearner, exam: Exam) -> float:
    """Return the judge's value of the present weights, lower is better: the method's loss on the exam's views.

    Running statistics of batch norm do not change.
    """
    with torch.no_grad():
        return float(torch.stack(list(_values(learner, exam))).double().sum())


def gradient(learner: TargetLearner, exam: Exam) -> list[Tensor]:
    """Return the gradient of `value` for each parameter of the target network."""
    weights = list(learner.network.parameters())
    total = [torch.zeros_like(weight) for weight in weights]
    for part in _values(learner, exam):
        found = torch.autograd.grad(part, weights, allow_unused=True)
        for into, each in zip(total, found, strict=True):
            if each is not None:
                into.add_(each)
    return total
