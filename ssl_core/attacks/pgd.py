"""Projected gradient ascent with a separate budget for each image."""

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from astra_gym.ssl_core.utils.finite import check_number
from astra_gym.ssl_core.utils.import_path import described, imported, is_dotted
from astra_gym.ssl_core.utils.messages import shown
from astra_gym.ssl_core.utils.registry import pick

Encode = Callable[[Tensor, Tensor], Tensor]
Objective = Callable[[Tensor], Tensor]
Start = Callable[[Tensor, "Budget", torch.Generator | None], Tensor]
"""`start(images, budget, generator) -> perturbations`: the first point of an attack.

Images and perturbations are (n, c, h, w) in the same unit; the draw is in the order of the images, on their device.
"""


class NonFiniteGradientError(RuntimeError):
    """Error for an attack with gradients that are NaN or infinite, so that images did not move."""


def whole_steps(steps: object) -> int:
    """Return a number of steps as an int.

    Raises:
        ValueError: if it is not an integer of 0 or more: 1.5 is not rounded to 1.
    """
    try:
        whole = -1 if isinstance(steps, bool) else operator.index(steps)  # type: ignore[arg-type]
    except TypeError:
        whole = -1
    if whole < 0:
        raise ValueError(f"steps is {steps!r:.40}: expected an integer of 0 or more")
    return whole


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Radius, step size and number of steps of the attack on each of n images.

    Keep it on the host, which reads it to launch the steps: reading it from a GPU would wait for the device.

    Args:
        epsilon: (n,) radius of the L-infinity ball, in the images' unit (8/255, not 8).
        step_size: (n,) length of one ascent step, in the same unit.
        steps: (n,) number of steps, int64, 0 or more.

    Raises:
        ValueError: if shapes or dtypes differ from the above, or a value is negative, above 1 or not finite.
    """

    epsilon: Tensor
    step_size: Tensor
    steps: Tensor

    def to(self, device: torch.device | str) -> "Budget":
        """Return the budget on a device; itself if it is already there."""
        if self.steps.device == torch.device(device):
            return self
        parts = {name: getattr(self, name).to(device) for name in ("epsilon", "step_size", "steps")}
        return Budget(**parts)

    def __post_init__(self) -> None:
        shapes = {tuple(value.shape) for value in (self.epsilon, self.step_size, self.steps)}
        if len(shapes) != 1 or self.steps.ndim != 1:
            raise ValueError(f"the budget's shapes are {sorted(shapes)}: expected (n,) three times")
        if self.steps.dtype != torch.int64:
            raise ValueError(f"steps has dtype {self.steps.dtype}: expected torch.int64")
        for name in ("epsilon", "step_size"):
            value = getattr(self, name)
            if not value.is_floating_point():
                raise ValueError(f"{name} has dtype {value.dtype}: expected a floating type")
            if not bool(((value >= 0) & (value <= 1)).all()):
                raise ValueError(f"{name} has values outside [0, 1]: it is in the images' unit, 8/255 and not 8")
        if bool((self.steps < 0).any()):
            raise ValueError("steps has negative values: expected 0 or more")

    def __len__(self) -> int:
        return len(self.steps)

    @classmethod
    def uniform(
        cls, n: int, *, epsilon: float, step_size: float, steps: int, device: torch.device | str = "cpu"
    ) -> "Budget":
        """Return the same budget for all n images.

        Raises:
            ValueError: if steps is not an integer, or a value is out of its range.
        """
        return cls(
            # an int such as 0 is a radius too
            epsilon=torch.full((n,), float(epsilon), device=device),
            step_size=torch.full((n,), float(step_size), device=device),
            steps=torch.full((n,), whole_steps(steps), dtype=torch.int64, device=device),
        )


@dataclass(frozen=True, kw_only=True)
class ConstantBudget:
    """One budget for every image: the default of a method, or the action of a fixed rule.

    Args:
        epsilon: radius of the L-infinity ball, in the images' unit (8/255, not 8).
        step_size: length of one ascent step, in the same unit.
        steps: number of steps, an integer of 0 or more.

    Raises:
        ValueError: if a value is out of its range.
    """

    epsilon: float
    step_size: float
    steps: int

    def __post_init__(self) -> None:
        whole_steps(self.steps)
        for name in ("epsilon", "step_size"):
            check_number(name, getattr(self, name), 0, 1, "in [0, 1], in the images' unit: 8/255 and not 8")

    def expand(self, n: int, device: torch.device | str = "cpu") -> Budget:
        """Return this budget for each of n images."""
        return Budget.uniform(n, epsilon=self.epsilon, step_size=self.step_size, steps=self.steps, device=device)


def strided_budget(epsilon: float, steps: int) -> ConstantBudget:
    """Return a measuring attack's budget: `steps` steps that add up to 2.5 radii (Madry et al. 2018)."""
    return ConstantBudget(epsilon=epsilon, step_size=2.5 * epsilon / steps, steps=steps)


class Attacked(NamedTuple):
    """The attacked images (n, c, h, w) and their embeddings, both without gradient."""

    images: Tensor
    embeddings: Tensor


@dataclass
class AttackReport:
    """What an attack fills in on request, beside its result, for each of n images.

    Attributes:
        slopes: (n,) sum over the pixels of the absolute gradient at the image's own last step, 0 without a step; on the
            images' device.
        steps: (n,) int64, the steps taken: the budget's, unless the attack stops early; on the host.
    """

    slopes: Tensor = field(init=False)
    steps: Tensor = field(init=False)


def check_images(images: Tensor, bounds: tuple[float, float] | None = (0.0, 1.0)) -> None:
    """Raise a ValueError unless `images` is a floating (n, c, h, w) tensor within the bounds and without NaN.

    Without bounds the values are not checked: checking waits for the device.
    """
    if images.ndim != 4 or not images.is_floating_point() or len(images) == 0:
        raise ValueError(f"images are {images.dtype} {tuple(images.shape)}: expected floats (n, c, h, w), n >= 1")
    if bounds is None:
        return
    low, high = torch.aminmax(images)
    if not (bounds[0] <= low.item() and high.item() <= bounds[1]):
        raise ValueError(
            f"images span [{low.item():g}, {high.item():g}]: expected values in [{bounds[0]}, {bounds[1]}]"
        )


def check_arguments(images: Tensor, budget: Budget, bounds: tuple[float, float] | None, granularity: int) -> None:
    """Raise a ValueError unless an attack's arguments fit together, see `pgd` and `check_images`."""
    check_images(images, bounds)
    if len(budget) != len(images):
        raise ValueError(f"the budget has {len(budget)} entries: expected one for each of the {len(images)} images")
    check_number("granularity", granularity, 1, whole=True)


def uniform(images: Tensor, budget: Budget, generator: torch.Generator | None) -> Tensor:
    """Perturbations uniform in each image's own ball.

    Raises:
        ValueError: if there is no generator.
    """
    if generator is None:
        raise ValueError("start='uniform' draws random numbers: give a generator on the images' device")
    unit = torch.rand(images.shape, generator=generator, device=images.device, dtype=images.dtype).mul_(2).sub_(1)
    radius = budget.epsilon.to(images.dtype).view(-1, *[1] * (images.ndim - 1))
    return unit.mul_(radius.to(images.device, non_blocking=True))


def zero(images: Tensor, budget: Budget, generator: torch.Generator | None) -> Tensor:
    """Zero perturbations."""
    return torch.zeros_like(images)


def within(radius: float) -> Start:
    """Return a start that is uniform within one radius, in the images' unit, for any budget (ASTrA's run: 8/255)."""
    return lambda images, budget, generator: (
        torch.rand(images.shape, generator=generator, device=images.device).mul_(2).sub_(1).mul_(radius)
    )


STARTS: dict[str, Start] = {"uniform": uniform, "zero": zero}


def find_start(name: str) -> Start:
    """Return the start with a name of `STARTS`, or the function at a dotted path, my_module:my_start.

    Raises:
        ValueError: if there is no such start.
    """
    if not is_dotted(name):
        return pick(name, STARTS, "attack start")
    found = imported(name, "attack start", "my_module:my_start")
    if isinstance(found, type) or not callable(found):
        raise ValueError(
            f"attack start {shown(name)} is {described(found)}: expected a function (images, budget, generator) -> "
            "perturbations"
        )
    return found


def pgd(
    encode: Encode,
    objective: Objective,
    images: Tensor,
    budget: Budget,
    *,
    generator: torch.Generator | None = None,
    start: str | Start | Tensor = "uniform",
    bounds: tuple[float, float] = (0.0, 1.0),
    granularity: int = 1,
    watch: Tensor | None = None,
    report: AttackReport | None = None,
) -> Attacked:
    """L-infinity PGD (Madry et al. 2018) by sign ascent, with radius, step size and number of steps per image.

    `x <- clip(x + step_size * sign(grad), x0 - epsilon, x0 + epsilon)`, then to the bounds. An image without steps left
    stays in the objective, as a positive and a negative of the others. But `encode` is per image, so its embedding no
    longer changes: it is computed once and kept, and only the images still moving are encoded. The result is that of
    the plain loop that encodes everything in every iteration and masks the update; the work is the *mean* number of
    steps instead of the maximum.

    Args:
        encode: `encode(x, rows) -> z`, each row independent of the rest of the batch (a network in eval mode); `rows`
            (on the host) are the positions of `x` in `images`. z is (len(x), ...).
        objective: `objective(z) -> (n,)`, z in the order of `images`; it may couple the batch. Its sum is maximized.
        images: (n, c, h, w) within the bounds.
        budget: n entries, on the host.
        generator: source of the random start, on the images' device; needed for `start="uniform"`.
        start: a name of `STARTS`: "uniform" (in the image's own ball) or "zero"; a dotted path; a function, see
            `Start`; or perturbations (n, c, h, w). The started images are clipped to the bounds before the first step,
            and to the ball after each step (ASTrA's run starts in +-8/255 whatever epsilon is); an image with 0 steps
            is clipped to its ball at the start.
        bounds: smallest and largest pixel value.
        granularity: the number of images per call of `encode` is rounded up to a multiple of this, so that few shapes
            occur: some libraries prepare for each new shape. The result is the same, up to rounding.
        watch: a scalar tensor on the images' device, for callers that must not wait for the device here. The attack
            adds to it a value that is finite only if all gradients are finite and images and start are in range.
        report: a record that the attack fills in; the result is the same.

    Returns:
        The attacked images and their embeddings, in the order of `images`.

    Raises:
        ValueError: if images, budget and start do not fit together, start is infinite, NaN or in another unit, the
            generator is missing, or encode or objective does not give one row or value per image.
        NonFiniteGradientError: after the last step, if a gradient was not finite and there is no `watch`: the sign of
            NaN is 0, so the image did not move.
    """
    watched = watch is not None and images.device.type != "cpu"
    check_arguments(images, budget, None if watched else bounds, granularity)
    images, budget = images.detach(), budget.to("cpu")

    def placed(values: Tensor) -> Tensor:
        return values.to(images.device, non_blocking=True)

    # most steps first, so that the images still moving are always a prefix: a slice, not a gather
    by_steps = torch.argsort(budget.steps, descending=True, stable=True)
    steps = budget.steps[by_steps].tolist()
    order, place = placed(by_steps), placed(torch.argsort(by_steps))
    clean = images[order]
    epsilon = placed(budget.epsilon.to(images.dtype)[by_steps].view(-1, 1, 1, 1))
    step_size = placed(budget.step_size.to(images.dtype)[by_steps].view(-1, 1, 1, 1))
    low = (clean - epsilon).clamp_(min=bounds[0])
    high = (clean + epsilon).clamp_(max=bounds[1])

    first = first_perturbations(start, images, budget, generator, None if watched else bounds)
    moved = (clean + first[order]).clamp_(*bounds)
    active = moving(steps, len(steps), 0)
    moved[active:] = torch.clamp(moved[active:], low[active:], high[active:])

    total = torch.zeros((), device=images.device) if watch is None else watch
    if watched:
        # values out of range make it NaN
        total.add_(out_of_range(images, first, bounds))
    # not made without a report, so that existing attacks launch nothing more
    slopes = None if report is None else torch.zeros(len(images), device=images.device, dtype=images.dtype)
    # embeddings of all images in their order, once some no longer move; theirs are final
    embeddings, encoded = torch.empty(0), len(steps)

    def with_new(part: slice, x: Tensor) -> Tensor:
        z = rows_of(encode, x, by_steps[part])
        whole = embeddings if len(embeddings) else z.new_empty(len(images), *z.shape[1:])
        return whole.index_copy(0, order[part], z)

    for iteration in range(steps[0] + 1):
        active = moving(steps, active, iteration)
        needed = min(encoded, -(-active // granularity) * granularity)
        if needed < encoded:
            with torch.no_grad():
                embeddings = with_new(slice(needed, encoded), moved[needed:encoded])
            encoded = needed
        if not encoded:
            break
        with torch.enable_grad():
            x = moved[:encoded].detach().requires_grad_()
            values = objective(with_new(slice(encoded), x))
            check_values(values, len(images))
            (gradient,) = torch.autograd.grad(values, x, torch.ones_like(values))
        with torch.no_grad():
            if active:
                total.add_(gradient[:active].sum(dtype=total.dtype))
            if slopes is not None:
                ending = slice(moving(steps, active, iteration + 1), active)
                slopes[ending] = gradient[ending].abs().sum(dim=(1, 2, 3))
            step = torch.addcmul(x[:active], gradient[:active].sign(), step_size[:active])
            torch.clamp(step, low[:active], high[:active], out=moved[:active])
    if watch is None and not math.isfinite(total):
        raise NonFiniteGradientError("the attack's gradients are not finite, so it left images where they were")
    if report is not None and slopes is not None:
        report.slopes, report.steps = slopes[place], budget.steps
    return Attacked(moved[place], embeddings)


def moving(steps: Sequence[int], first: int, taken: int) -> int:
    """Return how many of the first images take more than `taken` steps, given all images' steps, most first."""
    while first and steps[first - 1] <= taken:
        first -= 1
    return first


def check_values(values: Tensor, n: int) -> None:
    """Raise a ValueError unless an objective gives a value for each of n images."""
    if values.shape != (n,):
        raise ValueError(
            f"objective gives {tuple(values.shape)}: expected ({n},), a value for each image, neither summed nor "
            "averaged"
        )


def rows_of(encode: Encode, x: Tensor, rows: Tensor) -> Tensor:
    """Encode images x (m, c, h, w), which are these rows of all; raise a ValueError if there is no row for each."""
    z = encode(x, rows)
    if z.shape[:1] != x.shape[:1]:
        raise ValueError(f"encode gives {tuple(z.shape)} for {len(x)} images: expected a row for each")
    return z


def first_perturbations(
    start: str | Start | Tensor,
    images: Tensor,
    budget: Budget,
    generator: torch.Generator | None,
    bounds: tuple[float, float] | None,
) -> Tensor:
    """Return the initial perturbations, in the order of `images`: the draw does not depend on the budget's order.

    Without bounds, given values are not checked.
    """
    if isinstance(start, str) and start in STARTS:
        return STARTS[start](images, budget, generator)
    if isinstance(start, str):
        start = find_start(start)
    values = start if isinstance(start, Tensor) else start(images, budget, generator)
    if not isinstance(values, Tensor) or values.shape != images.shape:
        found = f"has shape {tuple(values.shape)}" if isinstance(values, Tensor) else f"is {described(values)}"
        raise ValueError(f"start {found}: expected the images' {tuple(images.shape)}")
    if bounds is not None and not (size := float(values.abs().max())) <= bounds[1] - bounds[0]:
        raise ValueError(
            f"start has values up to {size:g}: expected finite perturbations in the images' unit, 8/255 and not 8"
        )
    return values.detach().to(images)


def out_of_range(images: Tensor, start: Tensor, bounds: tuple[float, float]) -> Tensor:
    """Return NaN if images or start are out of their range or NaN, else 0, as a scalar on the device, without waiting
    for it."""
    span = bounds[1] - bounds[0]

    def outside(values: Tensor, low: float, high: float) -> Tensor:
        least, most = torch.aminmax(values)
        return torch.where((least >= low) & (most <= high), 0.0, torch.nan)

    return outside(images, *bounds) + outside(start, -span, span)
