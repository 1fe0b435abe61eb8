"""The part of the benchmark that measures what an attack's time grows with; a profile."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile, record_function

from astra_gym.experiments.benchmarks.efficiency import attack_flops
from astra_gym.experiments.benchmarks.measure import DeviceClock, Figure, Result, fit_line, interleaved
from astra_gym.experiments.benchmarks.workloads import FEWEST, MOST, SETS, Options, random_actions, views_for
from astra_gym.ssl_core.attacks.pgd import Budget
from astra_gym.ssl_core.training.learner import TargetLearner
from astra_gym.ssl_core.utils.files import replacing, write_file
from astra_gym.ssl_core.utils.rng import Streams

Say = Callable[[str], None]
MEANS = (4.0, 6.0, (FEWEST + MOST) / 2, 11.0, 14.0)
"""Mean numbers of steps of the straight line's points; the largest number is the same in all."""
BASE: dict[str, int] = {"views": 64, "width": 32, "size": 32}
"""The base of the costs' comparison: ResNet-18 of half the paper's width."""
GROWTH: dict[str, tuple[int, ...]] = {"views": (16, 32, 64, 128, 256), "width": (16, 32, 64), "size": (16, 32, 64)}
SMALL_BASE: dict[str, int] = {"views": 16, "width": 4, "size": 8}
SMALL_GROWTH: dict[str, tuple[int, ...]] = {"views": (16, 32), "width": (4, 8), "size": (8, 16)}
GROWTH_STEPS = 2
WORDS = {"views": "{} views", "width": "width {}", "size": "{0} x {0} pixels"}
PROFILE_STEPS = 3
"""Largest number of steps of the profile's attacks."""


def steps_of_mean(mean: float, count: int, generator: torch.Generator) -> Tensor:
    """Draw numbers of steps (count,) in 3..14, the largest of them 14, with a mean near `mean`.

    They are uniform draws, some of which are replaced by one end of the range, so that their expectation is `mean`.

    Args:
        mean: mean number of steps, in [3, 14].
        count: 1 or more.
        generator: generator on the CPU.
    """
    middle = (FEWEST + MOST) / 2
    end = FEWEST if mean < middle else MOST
    replaced = torch.rand(count, generator=generator) < (mean - middle) / (end - middle)
    steps = torch.randint(FEWEST, MOST + 1, (count,), generator=generator)
    steps = torch.where(replaced, end, steps)
    steps[0] = MOST
    return steps


def half_width(options: Options) -> tuple[TargetLearner, Tensor, Streams]:
    """Make the paper's network at half its width, a batch of its views, and random streams."""
    network = options.paper | ({} if options.quick else {"width": BASE["width"]})
    learner = options.learner(**{name: network[name] for name in network if name not in ("batch_size", "limit")})
    stream = Streams(0, options.device)
    return learner, views_for(learner, 2 * network["batch_size"], network["image_size"], stream), stream


def attack_seconds_line(options: Options, rounds: int, say: Say) -> Result:
    """Measure an attack's seconds against its mean number of steps, at the same largest number.

    One value is the deviation from a line. The other is the part of the line that does not depend on the steps, as a
    share of the line's value at the mean of uniform draws.
    """
    learner, views, stream = half_width(options)
    count = len(views)
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
                epsilon=torch.tensor(SETS.epsilons)[epsilon].to(options.device),
                step_size=torch.tensor(SETS.step_sizes)[step_size].to(options.device),
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


def stopping(options: Options, rounds: int, say: Say) -> Result:
    """Measure the seconds of an attack that is advanced step by step (`ASTrA/AttackStep-v0`) when its views stop after
    drawn numbers of steps, as a share of its seconds when all take the most."""
    learner, views, stream = half_width(options)
    count = len(views)
    radii, sizes = torch.full((count,), 8 / 255), torch.full((count,), 2 / 255)
    means: list[float] = []

    def prepare(number: int) -> Tensor:
        say(f"scaling, stopping: round {number} of {rounds}")
        steps = steps_of_mean(MEANS[0], count, stream["budgets"])
        means.append(steps.double().mean().item())
        return steps

    def run(steps: Tensor) -> None:
        attack = learner.stepwise(views, radii, stream.on_device("noise"))
        for step in range(MOST):
            attack.advance(sizes, steps > step)

    tasks = {"stopping": run, "all steps": lambda steps: run(torch.full_like(steps, MOST))}
    seconds = interleaved(tasks, prepare, rounds, DeviceClock(options.device))
    share = tuple(a / b for a, b in zip(seconds["stopping"], seconds["all steps"], strict=True))
    name = f"seconds when views stop, at a mean of {MEANS[0]:g} of {MOST} steps"
    return [Figure("scaling", name, "share", share)], {"means": means[1:], "seconds": seconds}


def growth(options: Options, rounds: int, say: Say) -> Result:
    """Measure an attack's time per view against the number of views, width and image size, relative to its FLOPs.

    The value is 1 if the time grows like the FLOPs from 64 views of 32 x 32 pixels and width 32; below 1 is cheaper.
    """
    base, table = (SMALL_BASE, SMALL_GROWTH) if options.quick else (BASE, GROWTH)
    shapes = {"base": base}
    for what, values in table.items():
        shapes |= {WORDS[what].format(value): base | {what: value} for value in values if value != base[what]}
    network = options.paper
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
    """Measure what an attack's time grows with: its mean number of steps; views, width and image size."""
    line, along = attack_seconds_line(options, rounds, say)
    stopped, saved = stopping(options, rounds, say)
    sizes, more = growth(options, rounds, say)
    return line + stopped + sizes, along | {"stopping": saved, "sizes": more}


@dataclass(frozen=True)
class Profile:
    """The files of a profile."""

    trace: Path
    table: Path


PROFILE = ("benchmark.pt.trace.json", "operators.txt")
"""The files of a profile; TensorBoard's profiler finds the first by its name."""


def write_profile(folder: Path, options: Options, rows: int = 25) -> Profile:
    """Run torch's profiler over one attack and one update, after a warm-up.

    Args:
        folder: folder of the files, made if it is missing; Perfetto, chrome://tracing and TensorBoard's profiler open
            the trace.
        options: options of the benchmark.
        rows: operators in the table, the most expensive first.
    """
    network = options.paper
    sizes = {name: network[name] for name in network if name not in ("batch_size", "limit")}
    learner, stream = options.learner(**sizes), Streams(0, options.device)
    views = views_for(learner, 2 * network["batch_size"], network["image_size"], stream)
    steps = torch.arange(len(views), device=options.device) % PROFILE_STEPS + 1
    filled = [torch.full((len(views),), value / 255, device=options.device) for value in (8, 2)]
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
    write_file(made.table, profiler.key_averages().table(sort_by=order, row_limit=rows) + "\n")
    return made
