"""Friendly PGD: who stops when, against a loop that encodes everything and counts image by image."""

from typing import Any

import pytest
import torch
from torch import Tensor

from astra_gym.ssl_core.attacks.early_stopping import EarlyStop, early_stopped_pgd
from astra_gym.ssl_core.attacks.pgd import AttackReport, Budget, NonFiniteGradientError, pgd
from astra_gym.ssl_core.losses.contrastive import nearest_is_partner, nt_xent
from astra_gym.ssl_core.models.target_network import build_network
from tests.helpers.draws import generator

N = 24
IMAGES = torch.rand(N, 3, 8, 8, generator=generator(5), dtype=torch.float64)
# pairs that are alike, so that many are retrieved at first
IMAGES[1::2] = (IMAGES[0::2] + 0.05 * torch.rand(IMAGES[0::2].shape, generator=generator(6))).clamp(0, 1)
BUDGET = Budget(epsilon=torch.full((N,), 40 / 255), step_size=torch.full((N,), 3 / 255), steps=torch.arange(N) % 7)
START = (torch.rand(IMAGES.shape, generator=generator(7), dtype=torch.float64) * 2 - 1) * 8 / 255


def network() -> Any:
    made = build_network(generator(), arch="resnet10", width=2, projector_dim=8).double().eval().requires_grad_(False)
    return lambda x, rows: made(x, "pgd").embeddings


def objective(z: Tensor) -> Tensor:
    return nt_xent(z, reduction="none")


def succeeds(z: Tensor) -> Tensor:
    return ~nearest_is_partner(z)


def plain_friendly(encode: Any, further: int) -> tuple[Tensor, Tensor, Tensor]:
    """FAT's rule, with stopped images kept in the batch; images, slopes at their own last steps, and steps."""
    rows, going = torch.arange(N), [True] * N
    left, taken, slopes = [further] * N, [0] * N, torch.zeros(N, dtype=torch.float64)
    epsilon, size = BUDGET.epsilon.double().view(-1, 1, 1, 1), BUDGET.step_size.double().view(-1, 1, 1, 1)
    x = (IMAGES + START).clamp(0, 1)
    idle = (BUDGET.steps == 0).view(-1, 1, 1, 1)
    x = torch.where(idle, torch.clamp(x, IMAGES - epsilon, IMAGES + epsilon), x)
    while True:
        x.requires_grad_()
        z = encode(x, rows)
        wrong = succeeds(z).tolist()
        for i in range(N):
            if going[i] and (taken[i] == BUDGET.steps[i] or (wrong[i] and left[i] == 0)):
                going[i] = False
            elif going[i] and wrong[i]:
                left[i] -= 1
        (gradient,) = torch.autograd.grad(objective(z).sum(), x)
        x = x.detach()
        if not any(going):
            return x, slopes, torch.tensor(taken)
        for i in range(N):
            if going[i]:
                taken[i] += 1
                slopes[i] = gradient[i].abs().sum()
                near = torch.clamp(x[i] + size[i] * gradient[i].sign(), IMAGES[i] - epsilon[i], IMAGES[i] + epsilon[i])
                x[i] = near.clamp(0, 1)


@pytest.mark.parametrize("granularity", [1, 5])
@pytest.mark.parametrize("further", [0, 1, 2])
def test_each_image_stops_by_the_rule_and_stays_as_a_negative(further: int, granularity: int) -> None:
    encode, report = network(), AttackReport()
    stop = EarlyStop(succeeds=succeeds, further=further)
    given = {"start": START, "granularity": granularity, "report": report}
    found = early_stopped_pgd(encode, objective, IMAGES, BUDGET, stop=stop, **given)
    images, slopes, steps = plain_friendly(encode, further)
    assert torch.equal(report.steps, steps) and torch.equal(found.images, images)
    torch.testing.assert_close(report.slopes, slopes)
    torch.testing.assert_close(found.embeddings, encode(images, torch.arange(N)))
    # some stop early, some do not
    assert (steps < BUDGET.steps).sum() > 0 and (steps == BUDGET.steps)[BUDGET.steps > further + 1].any()


def test_with_as_many_further_steps_as_the_budget_it_is_pgd() -> None:
    encode, report, plain = network(), AttackReport(), AttackReport()
    stop = EarlyStop(succeeds=lambda z: torch.ones(N, dtype=torch.bool), further=6)
    found = early_stopped_pgd(encode, objective, IMAGES, BUDGET, stop=stop, start=START, report=report)
    expected = pgd(encode, objective, IMAGES, BUDGET, start=START, report=plain)
    assert torch.equal(found.images, expected.images) and torch.equal(report.steps, BUDGET.steps)
    torch.testing.assert_close(report.slopes, plain.slopes)


def test_an_attack_that_has_succeeded_at_its_start_takes_no_step_and_only_moving_images_are_encoded() -> None:
    calls: list[list[int]] = []

    def encode(x: Tensor, rows: Tensor) -> Tensor:
        calls.append(rows.tolist())
        return x.flatten(1)

    images, budget = torch.full((4, 3, 2, 2), 0.5), Budget.uniform(4, epsilon=0.5, step_size=0.01, steps=3)
    report = AttackReport()
    # the mean of image i has to pass 0.5 + 0.01 (i - 1): none, one, two and, beyond the budget, four steps
    goal = 0.5 + 0.01 * torch.tensor([0.0, 1.0, 2.0, 4.0]) - 0.001
    stop = EarlyStop(succeeds=lambda z: z.mean(dim=1) > goal)
    early_stopped_pgd(encode, lambda z: z.sum(1), images, budget, stop=stop, start="zero", report=report)
    assert report.steps.tolist() == [0, 1, 2, 3]
    assert calls == [[0, 1, 2, 3], [1, 2, 3], [2, 3], [3]]
    assert report.slopes.tolist() == [0.0, 12.0, 12.0, 12.0]


def test_refusals() -> None:
    with pytest.raises(ValueError, match="further is -1"):
        EarlyStop(succeeds=succeeds, further=-1)
    stop, images = EarlyStop(succeeds=succeeds), torch.rand(4, 3, 2, 2, generator=generator())
    budget = Budget.uniform(4, epsilon=0.1, step_size=0.1, steps=1)

    def attacked(encode: Any, objective: Any, budget: Budget = budget) -> None:
        never = EarlyStop(succeeds=lambda z: torch.zeros(4, dtype=torch.bool))
        early_stopped_pgd(encode, objective, images, budget, stop=never, start="zero")

    with pytest.raises(ValueError, match="objective gives \\(\\): expected \\(4,\\), a value for each image"):
        attacked(lambda x, rows: x.flatten(1), lambda z: z.sum())
    with pytest.raises(ValueError, match="the budget has 3 entries"):
        attacked(lambda x, rows: x.flatten(1), lambda z: z.sum(1), Budget.uniform(3, epsilon=0, step_size=0, steps=1))
    with pytest.raises(NonFiniteGradientError):
        attacked(lambda x, rows: x.flatten(1) * torch.nan, lambda z: z.sum(1))
    assert stop.further == 0


def test_an_image_that_stops_before_its_first_step_is_in_its_ball() -> None:
    """ASTrA's start lies within 8/255, whatever the radius."""
    encode, always = network(), EarlyStop(succeeds=lambda z: torch.ones(len(z), dtype=torch.bool))
    budget = Budget.uniform(N, epsilon=2 / 255, step_size=1 / 255, steps=3)
    found = early_stopped_pgd(encode, objective, IMAGES, budget, stop=always, start=START)
    assert (found.images - IMAGES).abs().max() <= 2 / 255 + 1e-9 < START.abs().max()
    torch.testing.assert_close(found.embeddings, encode(found.images, torch.arange(N)))
