"""Exams of a target network: the loss on held-out views, clean and attacked, without a change to the network."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from astra_gym.ssl_core.attacks.pgd import ConstantBudget
from astra_gym.ssl_core.training.learner import TargetLearner


@dataclass(frozen=True)
class Exam:
    """Held-out views that stay the same while the weights change.

    Args:
        batches: all views (v, 3, h, w) of a batch of images, and its attacked views (n, 3, h, w), for each batch.
        attacked_share: weight of the attacked views' loss in [0, 1]; the clean views have the rest.
    """

    batches: tuple[tuple[Tensor, Tensor], ...]
    attacked_share: float


def make_exam(
    learner: TargetLearner,
    batches: Sequence[Tensor],
    budget: ConstantBudget,
    attacked_share: float,
    noise: torch.Generator,
) -> Exam:
    """Attack batches of views on the present weights; the network does not change.

    Args:
        learner: the learner that is examined.
        batches: all views (v, 3, h, w) of each batch.
        budget: budget of the attack, such as a `strided_budget`.
        attacked_share: as in `Exam`.
        noise: generator of the attack's random start, on the learner's device.
    """
    made = []
    for views in batches:
        with learner.untracked():
            attacked = learner.attack(views, budget.expand(len(learner.method.attacked(views))), noise).images
        made.append((views, attacked))
    return Exam(tuple(made), attacked_share)


def _values(learner: TargetLearner, exam: Exam) -> Iterator[Tensor]:
    """Yield each batch's part of the value. Batch norm takes the batch's own statistics, as in an update."""
    method, networks = learner.method, learner.plain()
    learner.train()
    with learner.untracked():
        for views, attacked in exam.batches:
            objective, rows = learner.objective(views), torch.arange(len(attacked))
            value = objective(method.encoded(networks, attacked, rows, attacked=True).embeddings).mean()
            if exam.attacked_share < 1:
                clean = method.encoded(networks, method.attacked(views), rows, attacked=False).embeddings
                value = exam.attacked_share * value + (1 - exam.attacked_share) * objective(clean).mean()
            yield value / len(exam.batches)


def value(learner: TargetLearner, exam: Exam) -> float:
    """Return the value of the present weights, lower is better: the method's loss on the exam's views.

    Running statistics of batch norm do not change.
    """
    with torch.no_grad():
        return float(torch.stack(list(_values(learner, exam))).double().sum())


def gradient(learner: TargetLearner, exam: Exam) -> list[Tensor]:
    """Return the gradient of `value` for each parameter of the target network; 0 for those that are not trained."""
    weights = list(learner.network.parameters())
    total = [torch.zeros_like(weight) for weight in weights]
    trained = [(weight, into) for weight, into in zip(weights, total, strict=True) if weight.requires_grad]
    for part in _values(learner, exam):
        found = torch.autograd.grad(part, [weight for weight, _ in trained], allow_unused=True)
        for (_, into), each in zip(trained, found, strict=True):
            if each is not None:
                into.add_(each)
    learner.complete(weights, total)
    return total
