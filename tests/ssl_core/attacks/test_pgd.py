from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from astra_gym.ssl_core.attacks.pgd import (
    Attacked,
    Budget,
    ConstantBudget,
    NonFiniteGradientError,
    Start,
    check_images,
    find_start,
    pgd,
    within,
)
from astra_gym.ssl_core.losses.contrastive import nt_xent
from astra_gym.ssl_core.models.target_network import TargetNetwork, build_network
from tests.helpers.draws import generator


def trained_network(dtype: torch.dtype, routes: tuple[str, ...] = ("normal", "pgd")) -> TargetNetwork:
    """A network in train mode whose batch-norm statistics and parameters are no longer the initial ones."""
    network = build_network(generator(), arch="resnet10", width=8, routes=routes, projector_dim=16).to(dtype)
    optimizer = torch.optim.SGD(network.parameters(), 0.05)
    for step in range(4):
        views = torch.rand(16, 3, 12, 12, generator=generator(step), dtype=dtype)
        loss = nt_xent(network(views, routes[-1]).embeddings)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network


def mixed_budget(n: int, seed: int = 1) -> Budget:
    return Budget(
        epsilon=torch.randint(3, 16, (n,), generator=generator(seed)) / 255,
        step_size=torch.randint(1, 6, (n,), generator=generator(seed + 1)) / 255,
        steps=torch.arange(n)[torch.randperm(n, generator=generator(seed + 2))] % 15,
    )


def plain_masked_loop(
    encode: Callable[[Tensor, Tensor], Tensor],
    objective: Callable[[Tensor], Tensor],
    images: Tensor,
    budget: Budget,
    start: Tensor,
) -> Attacked:
    """The reference's loop: every image through every iteration, a mask on the update."""
    rows = torch.arange(len(images))
    epsilon, step_size = (v.to(images.dtype).view(-1, 1, 1, 1) for v in (budget.epsilon, budget.step_size))
    x = (images + start).clamp(0, 1)
    idle = (budget.steps == 0).view(-1, 1, 1, 1)
    x = torch.where(idle, torch.clamp(x, images - epsilon, images + epsilon).clamp(0, 1), x)
    for iteration in range(int(budget.steps.max())):
        x = x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(objective(encode(x, rows)).sum(), x)
        moved = x.detach() + step_size * gradient.sign()
        moved = torch.clamp(moved, images - epsilon, images + epsilon).clamp(0, 1)
        x = torch.where((budget.steps > iteration).view(-1, 1, 1, 1), moved, x.detach())
    with torch.no_grad():
        return Attacked(x.detach(), encode(x, rows))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_active_images_only_gives_exactly_the_plain_masked_loop(dtype: torch.dtype, layout) -> None:
    network = trained_network(dtype).eval().requires_grad_(False).to(memory_format=layout)
    n = 80  # more than a processor encodes at once
    images = torch.rand(n, 3, 12, 12, generator=generator(5), dtype=dtype).contiguous(memory_format=layout)
    budget = mixed_budget(n)
    assert set(budget.steps.tolist()) == set(range(15))
    start = (torch.rand(images.shape, generator=generator(6), dtype=dtype) * 2 - 1) * 8 / 255

    def encode(x: Tensor, rows: Tensor) -> Tensor:
        return network(x, "pgd").embeddings

    def objective(z: Tensor) -> Tensor:
        return nt_xent(z, reduction="none")

    mine = pgd(encode, objective, images, budget, start=start)
    plain = plain_masked_loop(encode, objective, images, budget, start)
    assert torch.equal(mine.images, plain.images)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(mine.embeddings, plain.embeddings, rtol=tolerance, atol=tolerance)
    assert objective(mine.embeddings).mean() > objective(encode(images, torch.arange(n))).mean()


def test_the_work_is_steps_plus_one_forwards_and_steps_backwards_an_image() -> None:
    forwards = torch.zeros(8, dtype=torch.int64)
    backwards = torch.zeros(8, dtype=torch.int64)
    budget = Budget.uniform(8, epsilon=8 / 255, step_size=2 / 255, steps=0)
    budget = Budget(epsilon=budget.epsilon, step_size=budget.step_size, steps=torch.tensor([3, 0, 5, 5, 1, 2, 0, 4]))

    def encode(x: Tensor, rows: Tensor) -> Tensor:
        forwards[rows] += 1
        backwards[rows] += int(x.requires_grad)
        return x.flatten(1)

    pgd(encode, lambda z: z.sum(dim=1), torch.rand(8, 3, 4, 4, generator=generator()), budget, start="zero")
    assert torch.equal(forwards, budget.steps + 1)
    assert torch.equal(backwards, budget.steps)


def test_linear_objective_in_closed_form() -> None:
    """The worst case of a linear function in the ball is reached in ceil(epsilon / step size) steps."""
    weight = torch.randn(3, 5, 5, generator=generator(), dtype=torch.float64)
    images = torch.full((4, 3, 5, 5), 0.5, dtype=torch.float64)
    budget = Budget(
        epsilon=torch.tensor([0.1, 0.1, 0.1, 0.0], dtype=torch.float64),
        step_size=torch.tensor([0.03, 0.03, 0.2, 0.03], dtype=torch.float64),
        steps=torch.tensor([4, 2, 1, 3]),
    )
    attacked = pgd(lambda x, rows: (x * weight).sum(dim=(1, 2, 3)), lambda z: z, images, budget, start="zero")
    reached = torch.tensor([0.1, 0.06, 0.1, 0.0], dtype=torch.float64).view(-1, 1, 1, 1)
    torch.testing.assert_close(attacked.images, images + reached * weight.sign())
    torch.testing.assert_close(attacked.embeddings, (attacked.images * weight).sum(dim=(1, 2, 3)))


def test_stays_in_the_ball_and_in_the_bounds_whatever_the_start() -> None:
    images = torch.rand(16, 3, 6, 6, generator=generator()).round()  # at the bounds, where clipping matters
    budget = mixed_budget(16)
    wide = torch.rand(images.shape, generator=generator(3)) - 0.5
    weight = torch.randn(108, 4, generator=generator(4))
    for start in ("uniform", "zero", wide):
        attacked = pgd(
            lambda x, rows: x.flatten(1) @ weight,
            lambda z: nt_xent(z, reduction="none"),
            images,
            budget,
            generator=generator(),
            start=start,
        )
        assert ((attacked.images - images).abs() <= budget.epsilon.view(-1, 1, 1, 1) + 1e-6).all()
        assert attacked.images.min() >= 0 and attacked.images.max() <= 1


def test_uniform_start_fills_each_ball_and_ignores_the_order_of_steps() -> None:
    images = torch.full((2, 3, 40, 40), 0.5)
    budget = Budget(epsilon=torch.tensor([0.02, 0.1]), step_size=torch.tensor([0.01, 0.01]), steps=torch.tensor([0, 0]))
    attacked = pgd(lambda x, rows: x.flatten(1), lambda z: z.sum(1), images, budget, generator=generator())
    spread = (attacked.images - images).abs().amax(dim=(1, 2, 3))
    assert (spread <= budget.epsilon + 1e-6).all() and (spread >= 0.98 * budget.epsilon).all()
    assert (attacked.images - images).mean().abs() < 0.002


def test_rows_are_the_positions_of_the_images() -> None:
    images = torch.rand(6, 3, 4, 4, generator=generator(), dtype=torch.float64)
    table = torch.randn(6, 48, generator=generator(1), dtype=torch.float64)
    budget = Budget(
        epsilon=torch.full((6,), 0.05), step_size=torch.full((6,), 0.05), steps=torch.tensor([1, 3, 0, 2, 1, 3])
    )
    attacked = pgd(lambda x, rows: (x.flatten(1) * table[rows]).sum(1), lambda z: z, images, budget, start="zero")
    expected = (images + 0.05 * table.view(6, 3, 4, 4).sign()).clamp(0, 1)
    expected[2] = images[2]
    torch.testing.assert_close(attacked.images, expected, rtol=0, atol=1e-8)


def test_parameters_modes_and_buffers_are_untouched() -> None:
    network = trained_network(torch.float32).eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    for parameter in network.parameters():
        parameter.grad = None
    images = torch.rand(4, 3, 12, 12, generator=generator())
    encode = lambda x, rows: network(x, "pgd").embeddings  # noqa: E731
    attacked = pgd(encode, lambda z: nt_xent(z, reduction="none"), images, mixed_budget(4), generator=generator())
    assert all(parameter.grad is None for parameter in network.parameters())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not network.training
    assert not attacked.images.requires_grad and not attacked.embeddings.requires_grad


def test_supervised_use() -> None:
    images, labels = torch.rand(10, 3, 4, 4, generator=generator()), torch.arange(10) % 3
    weight = torch.randn(48, 3, generator=generator(1))
    budget = Budget.uniform(10, epsilon=8 / 255, step_size=2 / 255, steps=5)
    encode = lambda x, rows: x.flatten(1) @ weight  # noqa: E731
    attacked = pgd(encode, lambda z: F.cross_entropy(z, labels, reduction="none"), images, budget, start="zero")
    clean = F.cross_entropy(encode(images, labels), labels, reduction="none")
    assert (F.cross_entropy(attacked.embeddings, labels, reduction="none") > clean).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epsilon": torch.tensor([8.0, 8.0])}, "8/255 and not 8"),
        ({"epsilon": torch.tensor([-0.1, 0.1])}, "outside"),
        ({"step_size": torch.tensor([float("nan"), 0.1])}, "outside"),
        ({"steps": torch.tensor([-1, 2])}, "negative"),
        ({"steps": torch.tensor([1.0, 2.0])}, "int64"),
        ({"steps": torch.tensor([1, 2, 3])}, "shapes"),
        ({"epsilon": torch.tensor([0, 0])}, "floating"),
    ],
)
def test_bad_budgets_are_refused(change: dict[str, Tensor], message: str) -> None:
    good = {"epsilon": torch.full((2,), 0.1), "step_size": torch.full((2,), 0.1), "steps": torch.tensor([1, 2])}
    with pytest.raises(ValueError, match=message):
        Budget(**(good | change))


@pytest.mark.parametrize(
    "images",
    [
        torch.full((2, 3, 4, 4), 255.0),
        torch.full((2, 3, 4, 4), -0.01),
        torch.full((2, 3, 4, 4), float("nan")),
        torch.zeros(2, 3, 4),
        torch.zeros(2, 3, 4, 4, dtype=torch.uint8),
        torch.zeros(0, 3, 4, 4),
    ],
)
def test_bad_images_are_refused(images: Tensor) -> None:
    with pytest.raises(ValueError, match="expected"):
        check_images(images)


def test_other_bad_arguments_are_refused() -> None:
    images, budget = (
        torch.rand(2, 3, 4, 4, generator=generator()),
        Budget.uniform(2, epsilon=0.1, step_size=0.1, steps=1),
    )

    def attack(**arguments) -> Attacked:
        return pgd(lambda x, rows: x, lambda z: z, **({"images": images, "budget": budget} | arguments))

    with pytest.raises(ValueError, match="give a generator"):
        attack()
    with pytest.raises(ValueError, match="unknown attack start 'gaussian'"):
        attack(start="gaussian")
    with pytest.raises(ValueError, match="start has shape"):
        attack(start=torch.zeros(1))
    with pytest.raises(ValueError, match="one for each"):
        attack(budget=Budget.uniform(3, epsilon=0.1, step_size=0.1, steps=1))


@pytest.mark.slow
@pytest.mark.parametrize("granularity", [4, 7, 100])
def test_coarser_batches_give_the_same(granularity: int) -> None:
    network = trained_network(torch.float64).eval().requires_grad_(False)
    images = torch.rand(40, 3, 12, 12, generator=generator(5), dtype=torch.float64)
    budget = mixed_budget(40)
    sizes = []

    def encode(x: Tensor, rows: Tensor) -> Tensor:
        return network(x, "pgd").embeddings

    def objective(z: Tensor) -> Tensor:
        return nt_xent(z, reduction="none")

    def counted(x: Tensor, rows: Tensor) -> Tensor:
        sizes.append(len(x))
        return encode(x, rows)

    def attack(encode: Callable[[Tensor, Tensor], Tensor], granularity: int) -> Attacked:
        return pgd(encode, objective, images, budget, generator=generator(), granularity=granularity)

    fine, coarse = attack(encode, 1), attack(counted, granularity)
    torch.testing.assert_close(coarse.images, fine.images)
    torch.testing.assert_close(coarse.embeddings, fine.embeddings)
    assert sizes and all(size % granularity == 0 or size % granularity == len(images) % granularity for size in sizes)


def test_a_gradient_that_is_the_same_for_all_pixels_may_share_their_memory() -> None:
    images = torch.full((5, 3, 4, 4), 0.5)
    budget = Budget.uniform(5, epsilon=0.1, step_size=0.05, steps=3)
    attacked = pgd(lambda x, rows: x.sum((1, 2, 3))[:, None], lambda z: z[:, 0], images, budget, start="zero")
    torch.testing.assert_close(attacked.images, images + 0.1)


def test_a_granularity_below_one_is_refused() -> None:
    images, budget = (
        torch.rand(2, 3, 4, 4, generator=generator()),
        Budget.uniform(2, epsilon=8 / 255, step_size=2 / 255, steps=1),
    )
    with pytest.raises(ValueError, match="granularity is 0: expected an integer of 1 or more"):
        pgd(lambda x, rows: x.flatten(1), lambda z: z.sum(dim=1), images, budget, start="zero", granularity=0)


@pytest.mark.parametrize("steps", [1.5, 2.0, True, "3", None, float("nan"), -1, torch.tensor(1.5)])
def test_steps_are_whole(steps: object) -> None:
    for make in (ConstantBudget, lambda **budget: Budget.uniform(2, **budget)):
        with pytest.raises(ValueError, match=r"steps is .*: expected an integer of 0 or more"):
            make(epsilon=0.1, step_size=0.1, steps=steps)
    whole = ConstantBudget(epsilon=0.1, step_size=0.1, steps=np.int64(3))  # type: ignore[arg-type]
    assert whole.expand(2).steps.tolist() == [3, 3]


@pytest.mark.parametrize("name", ["epsilon", "step_size"])
@pytest.mark.parametrize("value", [8, -0.1, float("nan"), float("inf"), "8/255", True])
def test_a_constant_budget_is_in_the_images_unit(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"{name} is .*8/255 and not 8"):
        ConstantBudget(**({"epsilon": 0.1, "step_size": 0.1, "steps": 1} | {name: value}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"objective": lambda z: z.sum()}, r"objective gives \(\): expected \(3,\)"),
        ({"objective": lambda z: z.sum(1).mean()[None]}, r"objective gives \(1,\): expected \(3,\)"),
        ({"objective": lambda z: z}, r"objective gives \(3, 48\): expected \(3,\)"),
        ({"objective": lambda z: torch.cat([z, z]).sum(1)}, r"objective gives \(6,\): expected \(3,\)"),
        ({"encode": lambda x, rows: torch.cat([x, x]).flatten(1)}, r"encode gives \(6, 48\) for 3 images"),
        ({"encode": lambda x, rows: x.sum()}, r"encode gives \(\) for 3 images"),
        ({"start": torch.full((3, 3, 4, 4), float("nan"))}, "start has values up to nan: expected finite"),
        ({"start": torch.full((3, 3, 4, 4), float("inf"))}, "start has values up to inf: expected finite"),
        ({"start": torch.full((3, 3, 4, 4), -8.0)}, "start has values up to 8: .*8/255 and not 8"),
    ],
)
@pytest.mark.parametrize("granularity", [1, 3])
def test_what_does_not_fit_the_images_is_refused(change: dict, message: str, granularity: int) -> None:
    arguments = {
        "encode": lambda x, rows: x.flatten(1),
        "objective": lambda z: z.sum(1),
        "images": torch.rand(3, 3, 4, 4, generator=generator()),
        "budget": Budget.uniform(3, epsilon=0.1, step_size=0.1, steps=2),
        "start": "zero",
        "granularity": granularity,
    }
    pgd(**arguments)
    with pytest.raises(ValueError, match=message):
        pgd(**(arguments | change))


def test_a_gradient_that_is_not_finite_is_an_error_and_may_be_collected_instead() -> None:
    images, budget = torch.full((3, 3, 4, 4), 0.5), Budget.uniform(3, epsilon=0.1, step_size=0.1, steps=2)

    def encode(x: Tensor, rows: Tensor) -> Tensor:
        # the root's slope at 0 is infinite, and 0 times it is NaN: the values are fine, the sign of NaN is 0
        return x.flatten(1) + 0 * (x - x.detach()).abs().sqrt().flatten(1)

    def attack(watch: Tensor | None = None) -> Attacked:
        return pgd(encode, lambda z: z.sum(1), images, budget, start="zero", watch=watch)

    with pytest.raises(NonFiniteGradientError, match="left images where they were"):
        attack()
    watch = torch.zeros(())
    assert torch.equal(attack(watch).images, images) and not watch.isfinite()
    good = torch.zeros(())
    pgd(lambda x, rows: 1e30 * x.flatten(1), lambda z: z.sum(1), images, budget, start="zero", watch=good)
    assert good.isfinite()


def corners(images: Tensor, budget: Budget, generator: torch.Generator | None) -> Tensor:
    return budget.epsilon.view(-1, 1, 1, 1).expand_as(images)


def test_a_start_is_a_name_a_function_or_a_dotted_path() -> None:
    images = torch.full((4, 3, 2, 2), 0.5)
    budget = Budget(
        epsilon=torch.tensor([0.1, 0.2, 0.3, 0.4]), step_size=torch.zeros(4), steps=torch.ones(4, dtype=torch.int64)
    )

    def started(start: str | Start | Tensor) -> Tensor:
        encode, objective = lambda x, rows: x.flatten(1), lambda z: z.sum(1)
        return pgd(encode, objective, images, budget, start=start, generator=generator()).images - images

    expected = budget.epsilon.view(-1, 1, 1, 1).expand_as(images)
    for start in (corners, f"{__name__}:corners", expected):
        torch.testing.assert_close(started(start), expected)
    assert not started("zero").any()
    # in the ball from the first step on
    assert 0 < started(within(0.05)).abs().max() <= 0.05 + 1e-6
    with pytest.raises(ValueError, match=r"start has shape \(1,\): expected the images'"):
        started(lambda *given: torch.zeros(1))
    with pytest.raises(ValueError, match="start is a float: expected the images'"):
        started(lambda *given: 0.5)
    with pytest.raises(ValueError, match="attack start 'math:pi' is a float: expected a function"):
        find_start("math:pi")
