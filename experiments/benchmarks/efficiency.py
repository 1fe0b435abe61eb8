"""The part of the benchmark that compares the time taken with the machine's peak arithmetic and with its roofline."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from astra_gym.envs.api.action_sets import UNIT
from astra_gym.experiments.benchmarks.measure import DeviceClock, Figure, Result, interleaved
from astra_gym.experiments.benchmarks.workloads import Options, views_for
from astra_gym.ssl_core.attacks.pgd import Budget
from astra_gym.ssl_core.methods import Method, Networks
from astra_gym.ssl_core.models.folding import FoldedNetwork
from astra_gym.ssl_core.models.target_network import TargetNetwork
from astra_gym.ssl_core.utils.rng import Streams

Say = Callable[[str], None]
MATRICES = (1024, 2048, 4096)
SMALL_MATRICES = (64, 128)
LEAST_SECONDS, QUICK_SECONDS = 0.2, 0.01
"""Least seconds for which each matrix product, and each copy, is repeated."""
COPIED, SMALL_COPIED = 2**26, 2**14
"""Values of the copy that measures the memory's speed: more than fit into any cache."""
EFFICIENCY_STEPS = 3
COMPILED = "update, bf16, compiled"


class Flops(NamedTuple):
    """Floating-point operations of one view; a multiplication and an addition count as two.

    Args:
        forward: operations of a forward pass.
        iteration: operations of an attack's iteration: a forward pass and the gradient with respect to the view.
    """

    forward: int
    iteration: int


def counted(work: Callable[[], object]) -> int:
    """Count FLOPs of convolutions and matrix products that the work dispatches (torch.utils.flop_counter)."""
    with FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())


def _plain(network: TargetNetwork) -> TargetNetwork:
    """Return a copy on the device "meta", without data, so that counting costs nothing."""
    plain = copy.deepcopy(network).to("meta")
    plain.precision = "fp32"
    return plain


def view_flops(network: TargetNetwork, route: str, size: int) -> Flops:
    """Count FLOPs of one view (3, size, size), on the plain network with its parameters frozen."""
    plain = _plain(network).eval().requires_grad_(False)
    view = torch.empty(1, 3, size, size, device="meta", requires_grad=True)

    def forward() -> Tensor:
        return plain(view, route).embeddings

    # the counter's hooks refuse autograd.grad
    return Flops(counted(forward), counted(lambda: forward().sum().backward()))


def attack_flops(network: TargetNetwork, method: Method, size: int) -> Callable[[Budget], float]:
    """Return the function from a budget to an attack's FLOPs: every view's steps, and a last forward pass.

    The weights' gradients are not needed and not counted, nor is the loss.
    """
    flops = view_flops(network, method.routes.attack, size)
    return lambda budget: float(budget.steps.sum()) * flops.iteration + len(budget) * flops.forward


def update_flops(network: TargetNetwork, method: Method, views: int, size: int) -> int:
    """Count FLOPs of an update on clean and attacked views: their losses, and the gradients of the weights."""
    plain = _plain(network).train()
    empty = torch.empty(views, 3, size, size, device="meta")

    def step() -> None:
        terms = method.losses(Networks(plain), empty, empty)
        torch.stack([values.mean() for values in terms.values()]).sum().backward()

    return counted(step)


def matrix_peak(precision: str, options: Options, clock: Callable[[], float]) -> float:
    """Return the FLOPs per second of the best among square matrix products of a few sizes.

    Each is warmed up by one call and then repeated until `LEAST_SECONDS` have passed (`quick`: `QUICK_SECONDS`).
    """
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    sizes = SMALL_MATRICES if options.quick else MATRICES
    if options.device.type == "cuda":
        sizes = (*sizes, 2 * sizes[-1])
    least = QUICK_SECONDS if options.quick else LEAST_SECONDS
    best, stream = 0.0, Streams(0)["matrices"]
    with _like_convolutions():
        for size in sizes:
            one = torch.rand(size, size, generator=stream).to(options.device, dtype)
            torch.mm(one, one)
            best = max(best, 2 * size**3 * _rate(partial(torch.mm, one, one), least, clock))
    return best


def _rate(work: Callable[[], object], least: float, clock: Callable[[], float]) -> float:
    """Return the calls per second, over calls that take `least` seconds or more."""
    calls, took, began = 0, 0.0, clock()
    while took < least:
        # as many calls as so far, since reading the clock makes a GPU idle
        for _ in range(max(1, calls)):
            work()
        calls += max(1, calls)
        took = clock() - began
    return calls / took


@contextmanager
def _like_convolutions() -> Iterator[None]:
    # by default a GPU's float32 convolutions use TF32 and its matrix products do not (the benchmark turns TF32 off)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if torch.backends.cudnn.allow_tf32 else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


class Operation(NamedTuple):
    """The costs of an operation: floating-point operations, and bytes that it reads and writes."""

    flops: int
    moved: int


class Operations(TorchDispatchMode):
    """Mode that records every operation that computes, and so no views of a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.noted: list[Operation] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if not func.is_view and not func.name().startswith(("aten::empty", "aten::new_empty", "aten::detach")):
            count = flop_registry.get(func.overloadpacket)
            flops = 0 if count is None else count(*args, **(kwargs or {}), out_val=made)
            tensors = [value for value in tree_iter((args, kwargs, made)) if isinstance(value, Tensor)]
            self.noted.append(Operation(int(flops), sum(value.numel() * value.itemsize for value in tensors)))
        return made


class Limits(NamedTuple):
    """The least seconds of a piece of work by the roofline.

    No operation is faster than its arithmetic at the speed of matrix products, nor than its traffic at the speed of a
    copy.

    Args:
        passes: seconds with every operation dispatched one after the other.
        fused: seconds of convolutions and matrix products alone, with all else fused into them.
    """

    passes: float
    fused: float


def limits(work: Callable[[], object], peak: float, bandwidth: float) -> Limits:
    """Compute the limits of work on tensors of the device "meta".

    Args:
        work: the measured work, on as many images of the same dtype.
        peak: FLOPs per second.
        bandwidth: bytes per second.
    """
    with Operations() as operations:
        work()
    least = [(one, max(one.flops / peak, one.moved / bandwidth)) for one in operations.noted]
    return Limits(sum(took for _, took in least), sum(took for one, took in least if one.flops))


def copy_speed(options: Options, clock: Callable[[], float]) -> float:
    """Return the bytes per second that a copy reads and writes."""
    source = torch.ones(SMALL_COPIED if options.quick else COPIED, device=options.device)
    target = torch.empty_like(source)
    least = QUICK_SECONDS if options.quick else LEAST_SECONDS
    target.copy_(source)
    return 2 * source.numel() * source.itemsize * _rate(partial(target.copy_, source), least, clock)


def _work(
    network: TargetNetwork, method: Method, views: int, size: int, precision: str
) -> dict[str, Callable[[], Any]]:
    """Return an attack of `EFFICIENCY_STEPS` steps and an update, for `limits`: only the network's work, no data."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    plain = _plain(network).to(dtype)
    images = torch.empty(views, 3, size, size, device="meta", dtype=dtype).to(memory_format=torch.channels_last)

    def attack() -> None:
        folded = FoldedNetwork(plain.eval())
        for _ in range(EFFICIENCY_STEPS):
            moving = images.detach().requires_grad_()
            torch.autograd.grad(folded(moving, method.routes.attack).embeddings.sum(), moving)
        with torch.no_grad():
            folded(images, method.routes.attack)

    def update() -> None:
        terms = method.losses(Networks(plain.train()), images, images)
        torch.stack([values.mean() for values in terms.values()]).sum().backward()

    return {"attack": attack, "update": update}


def measure_efficiency(options: Options, rounds: int, say: Say) -> Result:
    """Measure model FLOPs utilization, and the least time by the machine's limits relative to the time taken.

    Utilization: the FLOPs needed per second, over those of the best matrix product of the same precision. For the
    limits see `Limits`. On a GPU an update with compiled blocks is measured beside the others.
    """
    network = options.paper
    count, size = 2 * network["batch_size"], network["image_size"]
    sizes = {name: network[name] for name in network if name not in ("batch_size", "limit")}
    learners = {precision: options.learner(**sizes, precision=precision) for precision in ("fp32", "bf16")}
    stream, clock = Streams(0, options.device), DeviceClock(options.device)
    views = views_for(learners["fp32"], count, size, stream)
    budget = Budget.uniform(count, epsilon=8 / UNIT, step_size=2 / UNIT, steps=EFFICIENCY_STEPS, device=options.device)
    plain = learners["fp32"]
    needed = {
        "attack": attack_flops(plain.network, plain.method, size)(budget),
        "update": float(update_flops(plain.network, plain.method, count, size)),
    }
    peaks: dict[str, list[float]] = {precision: [] for precision in learners}
    speeds: list[float] = []

    def prepare(number: int) -> int:
        say(f"efficiency: round {number} of {rounds}")
        for precision in peaks:
            peak = matrix_peak(precision, options, clock)
            peaks[precision] += [peak] if number else []
        speeds.append(copy_speed(options, clock))
        return number

    def attack(precision: str, number: int) -> None:
        learners[precision].attack(views, budget, stream.on_device("noise"))

    def update(precision: str, number: int) -> None:
        learners[precision].update(views, views)

    stages = {"attack": attack, "update": update}
    sides = {f"{stage}, {name}": (stage, name) for name in learners for stage in stages}
    tasks = {name: partial(stages[stage], precision) for name, (stage, precision) in sides.items()}
    if options.device.type == "cuda":
        sides[COMPILED] = ("update", "bf16")
        learners[COMPILED] = options.learner(**sizes, precision="bf16", compile_blocks=True)
        tasks[COMPILED] = partial(update, COMPILED)
    seconds = interleaved(tasks, prepare, rounds, clock)
    figures = []
    least: dict[str, list[dict[str, float]]] = {}
    for name, (stage, precision) in sides.items():
        used = [needed[stage] / took / peak for took, peak in zip(seconds[name], peaks[precision], strict=True)]
        figures.append(Figure("efficiency", name, "of the peak", tuple(used)))
        work = _work(plain.network, plain.method, count, size, precision)[stage]
        found = [limits(work, *pair) for pair in zip(peaks[precision], speeds[1:], strict=True)]
        least[name] = [limit._asdict() for limit in found]
        for kind in Limits._fields:
            shares = (getattr(limit, kind) / took for limit, took in zip(found, seconds[name], strict=True))
            figures.append(Figure("efficiency", f"{name}: limit, {kind}", "share", tuple(shares)))
    flops = view_flops(plain.network, plain.method.routes.attack, size)
    details: dict[str, Any] = {"flops_needed": needed, "flops_a_view": flops._asdict(), "peak_flops_a_second": peaks}
    details |= {"copied_bytes_a_second": speeds[1:], "limits": least, "views": count}
    return figures, details | {"seconds": seconds}
