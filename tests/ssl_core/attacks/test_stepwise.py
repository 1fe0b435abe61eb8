"""An attack advanced step by step is `pgd`, encodes only what moved, and continues from its state."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from astra_gym.ssl_core.attacks.pgd import Budget, NonFiniteGradientError, pgd
from astra_gym.ssl_core.attacks.stepwise import StepwiseAttack
from astra_gym.ssl_core.losses.contrastive import nt_xent
from astra_gym.ssl_core.models.target_network import build_network
from tests.helpers.draws import generator

N = 8
NETWORK = build_network(generator(), arch="resnet10", width=2, projector_dim=8).double().eval().requires_grad_(False)
IMAGES = torch.rand(N, 3, 8, 8, generator=generator(1), dtype=torch.float64)
EPSILON = torch.arange(2, N + 2) / 255
SIZES = torch.arange(N, 0, -1) / 255
WIDE = (torch.rand(IMAGES.shape, generator=generator(2), dtype=torch.float64) * 2 - 1) * 12 / 255
"""A start that leaves most balls."""


def encode(x: Tensor, rows: Tensor) -> Tensor:
    return NETWORK(x, "pgd").embeddings


def objective(z: Tensor) -> Tensor:
    return nt_xent(z, reduction="none")


def begun(encode: Callable[[Tensor, Tensor], Tensor] = encode, **arguments: Any) -> StepwiseAttack:
    return StepwiseAttack(encode, objective, IMAGES, EPSILON, **{"start": WIDE, **arguments})


@pytest.mark.parametrize("steps", [[3] * N, [0] * N, [2, 0, 3, 1, 5, 0, 2, 4]])
@pytest.mark.parametrize("granularity", [1, 3])
def test_it_is_pgd_with_as_many_steps(steps: list[int], granularity: int) -> None:
    counts = torch.tensor(steps)
    expected = pgd(encode, objective, IMAGES, Budget(epsilon=EPSILON, step_size=SIZES, steps=counts), start=WIDE)
    attack = begun(granularity=granularity)
    assert not attack.values.equal(objective(expected.embeddings)) and attack.agreement.count_nonzero() == 0
    for step in range(6):
        attack.advance(SIZES, counts > step)
    torch.testing.assert_close(attack.result().images, expected.images, rtol=0, atol=1e-12)
    torch.testing.assert_close(attack.result().embeddings, expected.embeddings)
    torch.testing.assert_close(attack.values, objective(encode(expected.images, torch.arange(N))))
    assert attack.steps.tolist() == steps and attack.stopped.all()
    assert (attack.agreement.abs() <= 1).all()


def test_only_what_moved_is_encoded_and_the_gradient_is_that_of_the_sum() -> None:
    seen: list[list[int]] = []

    def noted(x: Tensor, rows: Tensor) -> Tensor:
        seen.append(rows.tolist())
        return encode(x, rows)

    attack = begun(noted, start="zero")
    moving = torch.tensor([True, False] * 4)
    attack.advance(SIZES, moving)
    attack.advance(SIZES, moving & (torch.arange(N) > 3))
    attack.advance(SIZES, torch.zeros(N, dtype=torch.bool))
    assert seen == [list(range(N)), [0, 2, 4, 6], [4, 6]]
    x = attack.moved.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(objective(encode(x, torch.arange(N))).sum(), x)
    torch.testing.assert_close(attack.gradient[[4, 6]], gradient[[4, 6]])
    assert torch.equal(attack.moved[1], IMAGES[1])


def test_step_sizes_may_change_from_step_to_step_and_the_ball_is_never_left() -> None:
    attack = begun(start="uniform", generator=generator(4))
    first = attack.moved.clone()
    attack.advance(torch.full((N,), 1 / 255), torch.ones(N, dtype=torch.bool))
    assert (attack.moved - first).abs().amax(dim=(1, 2, 3)).mul(255).round(decimals=4).tolist() == [1.0] * N
    attack.advance(torch.full((N,), 64 / 255), torch.arange(N) < 4)
    radii = (attack.moved - IMAGES).abs().amax(dim=(1, 2, 3))
    assert (radii <= EPSILON + 1e-9).all() and radii[:4].sub(EPSILON[:4]).abs().max() < 1e-9
    assert attack.moved.min() >= 0 and attack.moved.max() <= 1


def test_it_continues_from_its_state_exactly() -> None:
    counts = torch.tensor([2, 0, 3, 1, 5, 0, 2, 4])
    whole, part = begun(), begun()
    for step in range(5):
        if step == 2:
            state = part.state_dict()
            part.advance(SIZES, torch.zeros(N, dtype=torch.bool))
            part = begun(start="uniform", generator=None, state=state)
        whole.advance(SIZES, counts > step)
        part.advance(SIZES, counts > step)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, part.state_dict()[name]), name


def test_bad_input_is_refused() -> None:
    attack, everyone = begun(), torch.ones(N, dtype=torch.bool)
    for sizes, moving in ((SIZES[:3], everyone), (SIZES, everyone[:3]), (SIZES, everyone.long())):
        with pytest.raises(ValueError, match=r"expected \(8,\) twice, and torch.bool"):
            attack.advance(sizes, moving)
    attack.advance(SIZES, torch.arange(N) > 1)
    with pytest.raises(ValueError, match=r"images \[0, 1\] have stopped for good"):
        attack.advance(SIZES, everyone)
    with pytest.raises(ValueError, match="outside"):
        StepwiseAttack(encode, objective, IMAGES, EPSILON * 255)
    bad = StepwiseAttack(lambda x, rows: x.flatten(1).sqrt(), lambda z: -z.sum(1), IMAGES * 0, EPSILON, start="zero")
    with pytest.raises(NonFiniteGradientError):
        bad.advance(SIZES, everyone)
