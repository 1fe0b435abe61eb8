"""Parts of the benchmark that ask what a cost grows with and how much of the machine is used; a profile."""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils.flop_counter import FlopCounterMode

from astra_gym.envs.actions import GRID, UNIT
from astra_gym.experiments.benchmarks.measure import DeviceClock, Figure, Result, fit_line, interleaved
from astra_gym.experiments.benchmarks.workloads import PAPER, TINY, Options, random_actions, views_for
from astra_gym.ssl_core.attacks.pgd import Budget
from astra_gym.ssl_core.methods import Method, Networks
from astra_gym.ssl_core.models.target_network import TargetNetwork
from astra_gym.ssl_core.training.learner import TargetLearner
from astra_gym.ssl_core.utils.files import replacing
from astra_gym.ssl_core.utils.rng import Streams

Say = Callable[[str], None]
FEWEST, MOST = GRID["steps"][0], GRID["steps"][-1]
MEANS = (4.0, 6.0, (FEWEST + MOST) / 2, 11.0, 14.0)
"""Mean numbers of steps of the straight line's points; the largest number is the same in all."""
BASE: dict[str, int] = {"views": 64, "width": 32, "size": 32}
"""What one cost is compared with: ResNet-18 of half the paper's width."""
GROWTH: dict[str, tuple[int, ...]] = {"views": (16, 32, 64, 128, 256), "width": (16, 32, 64), "size": (16, 32, 64)}
SMALL_BASE: dict[str, int] = {"views": 16, "width": 4, "size": 8}
SMALL_GROWTH: dict[str, tuple[int, ...]] = {"views": (16, 32), "width": (4, 8), "size": (8, 16)}
GROWTH_STEPS = 2
WORDS = {"views": "{} views", "width": "width {}", "size": "{0} x {0} pixels"}
MATRICES = (1024, 2048, 4096)
SMALL_MATRICES = (64, 128)
LEAST_SECONDS, QUICK_SECONDS = 0.2, 0.01
"""How long each matrix product is repeated."""
EFFICIENCY_STEPS = 3


def steps_of_mean(mean: float, count: int, generator: torch.Generator) -> Tensor:
    """Numbers of steps (count,) in 3..14, the largest of them 14, whose mean is near `mean`.

    Uniform draws, of which so many are replaced by one end of the range that their expectation is `mean`.

    Args:
        mean: in [3, 14].
        count: 1 or more.
        generator: on the CPU.
    """
    middle = (FEWEST + MOST) / 2
    end = FEWEST if mean < middle else MOST
    replaced = torch.rand(count, generator=generator) < (mean - middle) / (end - middle)
    steps = torch.randint(FEWEST, MOST + 1, (count,), generator=generator)
    steps = torch.where(replaced, end, steps)
    steps[0] = MOST
    return steps


def attack_seconds_line(options: Options, rounds: int, say: Say) -> Result:
    """Seconds of an attack against its mean number of steps at the same largest number: how far off a line, and what of
    the line does not depend on the steps, as a share of it at the mean of uniform draws."""
    network = TINY if options.quick else PAPER | {"width": BASE["width"]}
    learner = options.learner(**{name: network[name] for name in network if name not in ("batch_size", "limit")})
    count, stream = 2 * network["batch_size"], Streams(0, options.device)
    views = views_for(learner, count, network["image_size"], stream)
    means: dict[str, list[float]] = {f"mean {mean:g}": [] for mean in MEANS}

    def prepare(number: int) -> dict[str, Budget]:
        say(f"scaling, steps: round {number} of {rounds}")
        epsilon, _, step_size = random_actions(count, stream["budgets"]).unbind(dim=1)
        budgets = {}
        for mean in MEANS:
            steps = steps_of_mean(mean, count, stream["budgets"])
            if not number:
                steps = steps.clamp(max=FEWEST)
            means[f"mean {mean:g}"] += [steps.double().mean().item()] if number else []
            budgets[f"mean {mean:g}"] = Budget(
                epsilon=((epsilon + GRID["epsilon"][0]) / UNIT).to(options.device),
                step_size=((step_size + GRID["step_size"][0]) / UNIT).to(options.device),
                steps=steps.to(options.device),
            )
        return budgets

    def run(name: str, budgets: Mapping[str, Budget]) -> None:
        learner.attack(views, budgets[name], stream.on_device("noise"))

    tasks = {name: partial(run, name) for name in means}
    seconds = interleaved(tasks, prepare, rounds, DeviceClock(options.device))
    points = [
        ([means[name][index] for name in means], [seconds[name][index] for name in means]) for index in range(rounds)
    ]
    lines = [fit_line(*point) for point in points]
    name = "seconds against the mean number of steps, off a line"
    figure = Figure("scaling", name, "deviation", tuple(line.deviation for line in lines))
    middle = (FEWEST + MOST) / 2
    fixed = [line.intercept / (line.intercept + line.slope * middle) for line in lines]
    figures = [figure, Figure("scaling", f"fixed cost at {middle:g} steps", "share", tuple(fixed))]
    told = [line._asdict() | {"fixed_share": share} for line, share in zip(lines, fixed, strict=True)]
    return figures, {"means": means, "seconds": seconds, "lines": told}


def growth(options: Options, rounds: int, say: Say) -> Result:
    """Time a view of an attack against the number of views, the width and the image size, relative to its FLOPs.

    1 is proportional to the FLOPs, compared with 64 views of 32 x 32 pixels and width 32; below 1 is cheaper.
    """
    base, table = (SMALL_BASE, SMALL_GROWTH) if options.quick else (BASE, GROWTH)
    shapes = {"base": base}
    for what, values in table.items():
        shapes |= {WORDS[what].format(value): base | {what: value} for value in values if value != base[what]}
    network = TINY if options.quick else PAPER
    learners: dict[str, tuple[TargetLearner, Tensor, Budget]] = {}
    flops: dict[str, float] = {}
    stream = Streams(0, options.device)
    arguments = {name: network[name] for name in ("arch", "projector_hidden", "projector_dim")}
    for name, shape in shapes.items():
        learner = options.learner(**arguments, width=shape["width"], image_size=shape["size"])
        views = views_for(learner, shape["views"], shape["size"], stream)
        budget = Budget.uniform(
            shape["views"], epsilon=8 / 255, step_size=2 / 255, steps=GROWTH_STEPS, device=options.device
        )
        learners[name] = (learner, views, budget)
        flops[name] = attack_flops(learner.network, learner.method, shape["size"])(budget) / shape["views"]

    def prepare(number: int) -> int:
        say(f"scaling, sizes: round {number} of {rounds}")
        return number

    def run(name: str, number: int) -> None:
        learner, views, budget = learners[name]
        learner.attack(views, budget, stream.on_device("noise"))

    seconds = interleaved({name: partial(run, name) for name in shapes}, prepare, rounds, DeviceClock(options.device))
    cost = {name: [value / shape["views"] / flops[name] for value in seconds[name]] for name, shape in shapes.items()}
    figures = [
        Figure("scaling", name, "times the cost", tuple(a / b for a, b in zip(cost[name], cost["base"], strict=True)))
        for name in shapes
        if name != "base"
    ]
    return figures, {"base": base, "seconds": seconds, "flops_a_view": flops}


def measure_scaling(options: Options, rounds: int, say: Say) -> Result:
    """What an attack's time grows with: the mean number of steps; views, width and image size."""
    line, along = attack_seconds_line(options, rounds, say)
    sizes, more = growth(options, rounds, say)
    return line + sizes, along | {"sizes": more}


class Flops(NamedTuple):
    """Floating-point operations of one view, a multiplication and an addition counted as two.

    Args:
        forward: of a forward pass.
        iteration: of an attack's iteration: a forward pass and the gradient with respect to the view.
    """

    forward: int
    iteration: int


def counted(work: Callable[[], object]) -> int:
    """FLOPs of convolutions and matrix products that the work dispatches (torch.utils.flop_counter)."""
    with FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())


def _plain(network: TargetNetwork) -> TargetNetwork:
    """A copy without data: counting costs nothing."""
    plain = copy.deepcopy(network).to("meta")
    plain.precision = "fp32"
    return plain


def view_flops(network: TargetNetwork, route: str, size: int) -> Flops:
    """FLOPs of one view (3, size, size), counted on the plain network with its parameters frozen."""
    plain = _plain(network).eval().requires_grad_(False)
    view = torch.empty(1, 3, size, size, device="meta", requires_grad=True)

    def forward() -> Tensor:
        return plain(view, route).embeddings

    # the counter's hooks refuse autograd.grad
    return Flops(counted(forward), counted(lambda: forward().sum().backward()))


def attack_flops(network: TargetNetwork, method: Method, size: int) -> Callable[[Budget], float]:
    """FLOPs that an attack needs within a budget: every view's steps, and a last forward pass.

    The weights' gradients are not needed and not counted, nor is the loss.
    """
    flops = view_flops(network, method.attack_route, size)
    return lambda budget: float(budget.steps.sum()) * flops.iteration + len(budget) * flops.forward


def update_flops(network: TargetNetwork, method: Method, views: int, size: int) -> int:
    """FLOPs of an update on clean and attacked views: their losses, and the gradients of the weights."""
    plain = _plain(network).train()
    empty = torch.empty(views, 3, size, size, device="meta")

    def step() -> None:
        terms = method.losses(Networks(plain), empty, empty)
        torch.stack([values.mean() for values in terms.values()]).sum().backward()

    return counted(step)


def matrix_peak(precision: str, options: Options, clock: Callable[[], float]) -> float:
    """FLOPs a second of the best among square matrix products of a few sizes.

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
    """Calls a second, in as many calls as take `least` seconds or more."""
    calls, took, began = 0, 0.0, clock()
    while took < least:
        # as many as so far: looking at the clock makes a GPU idle
        for _ in range(max(1, calls)):
            work()
        calls += max(1, calls)
        took = clock() - began
    return calls / took


@contextmanager
def _like_convolutions() -> Iterator[None]:
    # on a GPU float32 convolutions use TF32 unless told otherwise, as the benchmark does; matrix products do not
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if torch.backends.cudnn.allow_tf32 else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def measure_efficiency(options: Options, rounds: int, say: Say) -> Result:
    """Model FLOPs utilisation: FLOPs needed, by second, relative to the best matrix product of the same precision."""
    network = TINY if options.quick else PAPER
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

    def prepare(number: int) -> int:
        say(f"efficiency: round {number} of {rounds}")
        for precision in learners:
            peak = matrix_peak(precision, options, clock)
            peaks[precision] += [peak] if number else []
        return number

    def attack(precision: str, number: int) -> None:
        learners[precision].attack(views, budget, stream.on_device("noise"))

    def update(precision: str, number: int) -> None:
        learners[precision].update(views, views)

    stages = {"attack": attack, "update": update}
    tasks = {f"{stage}, {name}": partial(run, name) for name in learners for stage, run in stages.items()}
    seconds = interleaved(tasks, prepare, rounds, clock)
    figures = []
    for precision, stage in ((precision, stage) for precision in learners for stage in stages):
        name = f"{stage}, {precision}"
        used = (needed[stage] / took / peak for took, peak in zip(seconds[name], peaks[precision], strict=True))
        figures.append(Figure("efficiency", name, "of the peak", tuple(used)))
    flops = view_flops(plain.network, plain.method.attack_route, size)
    details = {"flops_needed": needed, "flops_a_view": flops._asdict(), "peak_flops_a_second": peaks}
    return figures, details | {"seconds": seconds}


@dataclass(frozen=True)
class Profile:
    """The files of a profile."""

    trace: Path
    table: Path


PROFILE = ("benchmark.pt.trace.json", "operators.txt")
"""The files of a profile; TensorBoard's profiler finds the first by its name."""


def write_profile(folder: Path, options: Options, rows: int = 25) -> Profile:
    """Runs torch's profiler over one attack and one update, after a warm-up.

    Args:
        folder: made if it is missing; the trace opens in Perfetto, chrome://tracing and TensorBoard's profiler.
        options: where it runs.
        rows: operators in the table, those that took most time first.
    """
    network = TINY if options.quick else PAPER
    sizes = {name: network[name] for name in network if name not in ("batch_size", "limit")}
    learner, stream = options.learner(**sizes), Streams(0, options.device)
    views = views_for(learner, 2 * network["batch_size"], network["image_size"], stream)
    steps = torch.arange(len(views), device=options.device) % EFFICIENCY_STEPS + 1
    filled = [torch.full((len(views),), value / UNIT, device=options.device) for value in (8, 2)]
    budget = Budget(epsilon=filled[0], step_size=filled[1], steps=steps)

    def once() -> None:
        with record_function("attack"):
            adversarial = learner.attack(views, budget, stream.on_device("noise")).images
        with record_function("update"):
            learner.update(views, adversarial)

    once()
    cuda = options.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profile(activities=activities) as profiler:
        once()
        DeviceClock(options.device)()
    folder.mkdir(parents=True, exist_ok=True)
    made = Profile(*(folder / name for name in PROFILE))
    with replacing(made.trace) as temporary:
        profiler.export_chrome_trace(str(temporary))
    order = "self_device_time_total" if cuda else "self_cpu_time_total"
    with replacing(made.table) as temporary:
        text = profiler.key_averages().table(sort_by=order, row_limit=rows)
        temporary.write_text(text + "\n", encoding="utf-8")
    return made
