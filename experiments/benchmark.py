"""What the fast path is worth: every figure is a ratio or a share, measured in one run on the same work.

python experiments/benchmark.py
python experiments/benchmark.py --parts attack --repeats 5 --threads 2 --output results/benchmark.json

`attack`: the full ResNet-18 on 64 views, steps uniform on 3..14, fp32. The reference's plain masked loop against `pgd`
as the learner calls it and variants between them, in turn (ABCD ABCD ...); budgets and starts are new in each round, so
that `pgd` meets active sets of sizes that it has not met before, as in training. All must find the same.

`step`: a REINFORCE run of the digits preset from its second epoch on, each epoch's checkpoint included. The *target
network's arithmetic* is its forwards in observation, attack and update, the loss on top in attack and update, and the
backwards of both, which autograd runs together. All else is outside: the observation's clean loss, reward terms, sign
ascent and projection, optimiser, strategy network, augmentation, logging. Methods are wrapped on their instances.
"""

import argparse
import copy
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

# the checkout comes first: other distributions have packages called agents and envs too
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from rich.console import Console
from rich.table import Table
from stable_baselines3.common.logger import Logger
from torch import Tensor

from envs.actions import GRID, UNIT
from envs.engine import AttackEngine
from experiments.progress import Interrupt, Progress
from experiments.runlog import ROOT, RunFolder, RunLog
from experiments.settings import Settings
from experiments.training import Run, RunCallback
from ssl_core.attacks import Attacked, Budget, Encode, Objective, pgd
from ssl_core.learner import frozen
from ssl_core.lookup import pick
from ssl_core.results import commit, replacing, versions
from ssl_core.views import as_float

SCHEMA = 1
TARGETS = {"active views only, channels-last": 1.8, "outside the target network's arithmetic": 0.15}
"""By a figure's name: what a ratio should at least come to, a share at most."""
PAPER = {"image_size": 32, "arch": "resnet18", "width": 64, "projector_hidden": 2048, "projector_dim": 512}
TINY = {"image_size": 8, "arch": "resnet10", "width": 4, "projector_hidden": 16, "projector_dim": 16, "limit": 48}


@dataclass(frozen=True)
class Options:
    """What is measured: `repeats` rounds of the attack and `epochs` of the run; `quick` shrinks the networks."""

    parts: tuple[str, ...]
    repeats: int
    epochs: int
    threads: int
    output: Path
    quick: bool

    def settings(self, batch_size: int, **sizes: Any) -> Settings:
        """The digits preset with REINFORCE on the CPU; quick: tiny, 8 images a batch."""
        sizes = {"batch_size": batch_size} | sizes | ({"batch_size": 8} | TINY if self.quick else {})
        return Settings.from_preset("digits", agent="reinforce", device="cpu", progress="off", **sizes)


@dataclass(frozen=True)
class Figure:
    """A measured ratio ("times faster") or share ("share"): one value for each round or epoch."""

    part: str
    name: str
    unit: str
    values: tuple[float, ...]

    def summary(self) -> dict[str, Any]:
        """Median, quartiles and, where the figure has a target, whether the median meets it."""
        values = self.values if len(self.values) > 1 else self.values * 2
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        target = TARGETS.get(self.name)
        met = None if target is None else median <= target if self.unit == "share" else median >= target
        return {"median": median, "quartiles": (low, high), "target": target, "met": met}


class Stopwatch:
    """Seconds by path of nested parts, exclusively: a part's clock stands still while a part inside it runs."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._path: tuple[str, ...] = ()
        self._since = 0.0
        self.seconds: dict[tuple[str, ...], float] = defaultdict(float)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Counts what runs inside for `name`, below the part that is running."""
        outer = self._path
        self._turn((*outer, name))
        try:
            yield
        finally:
            self._turn(outer)

    def _turn(self, path: tuple[str, ...]) -> None:
        now = self._clock()
        if self._path:
            self.seconds[self._path] += now - self._since
        self._path, self._since = path, now

    @contextmanager
    def watching(self, owner: object, attribute: str, name: str) -> Iterator[None]:
        """While entered, calls of the owner's attribute are counted for `name`; the owner is left as it was."""
        # the instance's dict: frozen dataclasses refuse setattr
        own, original = vars(owner), getattr(owner, attribute)
        before = {attribute: own[attribute]} if attribute in own else {}

        def timed(*arguments: Any, **named: Any) -> Any:
            with self.part(name):
                return original(*arguments, **named)

        own[attribute] = timed
        try:
            yield
        finally:
            del own[attribute]
            own.update(before)


class DisagreementError(RuntimeError):
    """Two attacks that should find the same do not, so their times cannot be compared."""


@dataclass(frozen=True)
class Variant:
    """A way to run the same attack: `pgd` or the masked loop, with the parameters' gradients or without, the layout."""

    name: str
    active_only: bool
    weight_gradients: bool
    channels_last: bool


REFERENCE = Variant("masked loop with weight gradients", False, True, False)
VARIANTS = (
    Variant("masked loop", False, False, False),
    Variant("active views only", True, False, False),
    Variant("active views only, channels-last", True, False, True),
)


def masked_loop(encode: Encode, objective: Objective, images: Tensor, budget: Budget, start: Tensor) -> Attacked:
    """The reference's way: all views through every iteration up to the largest number of steps, and a 0/1 mask.

    As with `pgd`, the attacked views' embeddings belong to the result.
    """
    rows = torch.arange(len(images))
    epsilon, step_size, steps = (value.view(-1, 1, 1, 1) for value in (budget.epsilon, budget.step_size, budget.steps))
    low, high = (images - epsilon).clamp(min=0), (images + epsilon).clamp(max=1)
    x = (images + start).clamp(0, 1)
    for iteration in range(int(steps.max())):
        x.requires_grad_()
        objective(encode(x, rows)).sum().backward()
        with torch.no_grad():
            moved = torch.clamp(x + step_size * x.grad.sign(), low, high)  # type: ignore[union-attr]
            mask = (steps > iteration).to(x.dtype)
            x = moved * mask + x * (1 - mask)
    with torch.no_grad():
        return Attacked(x, encode(x, rows))


def check_agreement(
    expected: Tensor, found: Tensor, loss: Callable[[Tensor], float], name: str, exact: bool
) -> dict[str, Any]:
    """Compares the views (n, 3, h, w) that the plain loop and a variant found; `loss` is what such views attain.

    Raises:
        DisagreementError: if a pixel differs and `exact` is True, or the attained losses differ by over 0.1 %.
    """
    equal = (expected == found).float().mean().item()
    reference, attained = loss(expected), loss(found)
    if exact and equal < 1:
        raise DisagreementError(f"{name}: {1 - equal:.2%} of the pixels differ from the plain loop's, expected none")
    if not abs(attained / reference - 1) <= 1e-3:
        raise DisagreementError(f"{name}: attains a loss of {attained:.6g}, the plain loop {reference:.6g}")
    return {"variant": name, "exact": exact, "equal_pixels": equal, "loss_ratio": attained / reference}


def measure_attack(options: Options, console: Console) -> tuple[list[Figure], dict[str, Any]]:
    """The variants' speed against the reference's loop."""
    engine = AttackEngine(options.settings(32, **PAPER))
    method, generator = engine.method, engine.streams["noise"]
    network = engine.learner.network.train()
    with torch.no_grad():
        # batch-norm statistics of a trained network are not the initial ones
        for images in as_float(engine.data.train.images).split(engine.settings.batch_size)[:8]:
            network(engine.make_views(images, engine.streams["views"]), method.attack_route)
    network.eval()
    # the engine's own network and views are channels-last, as in training
    plain = copy.deepcopy(network).to(memory_format=torch.contiguous_format)
    networks = {True: network, False: plain}
    views = {True: engine.views, False: engine.views.contiguous()}

    @torch.no_grad()
    def loss(attacked: Tensor) -> float:
        return method.objective(plain(attacked.contiguous(), method.attack_route).embeddings).mean().item()

    seconds: dict[str, list[float]] = defaultdict(list)
    agreement = []
    for number in range(options.repeats + 1):
        console.print(f"attack: round {number} of {options.repeats}")
        ends = [(values[0], values[-1] + 1) for values in GRID]
        epsilon, steps, step_size = (torch.randint(*pair, (len(engine.views),), generator=generator) for pair in ends)
        budget = Budget(epsilon / UNIT, step_size / UNIT, steps)
        start = (torch.rand(engine.views.shape, generator=generator) * 2 - 1) * (method.start_radius or 0)
        found: dict[Variant, Tensor] = {}
        for variant in (REFERENCE, *VARIANTS):
            layout = variant.channels_last
            network, attack = networks[layout], pgd if variant.active_only else masked_loop
            network.zero_grad(set_to_none=True)
            began = time.perf_counter()
            with nullcontext() if variant.weight_gradients else frozen(network):
                encode = method.encode(network)
                found[variant] = attack(encode, method.objective, views[layout], budget, start=start).images
            seconds[variant.name] += [time.perf_counter() - began] if number else []
        for variant in VARIANTS:
            # another layout rounds differently, and so may several threads, which cut a smaller batch elsewhere
            exact = not variant.channels_last and (options.threads == 1 or not variant.active_only)
            compared = check_agreement(found[REFERENCE], found[variant], loss, variant.name, exact)
            agreement.append(compared | {"round": number})
    figures = []
    for variant in VARIANTS:
        ratios = (a / b for a, b in zip(seconds[REFERENCE.name], seconds[variant.name], strict=True))
        figures.append(Figure("attack", variant.name, "times faster", tuple(ratios)))
    return figures, {"reference": REFERENCE.name, "seconds": seconds, "agreement": agreement}


NETWORK, LOSS = "network", "loss"
ARITHMETIC = {"observe": {NETWORK}, "attack": {NETWORK, LOSS}, "update": {NETWORK}}
"""Which marks are the target network's arithmetic, by the part that they lie in: the strategy's backward is not."""


def part_of(path: Sequence[str]) -> tuple[bool, str]:
    """The part that a path's own time belongs to: whether it is the target network's arithmetic, and its name."""
    part = [name for name in path if name not in (NETWORK, LOSS)][-1]
    marks = set(path[len(path) - path[::-1].index(part) :])
    arithmetic = bool(ARITHMETIC.get(part, set()) & marks)
    return arithmetic, f"{part}: {'network' if arithmetic else 'bookkeeping'}" if part in ARITHMETIC else part


def watch_points(run: Run, log: RunLog, progress: Progress) -> list[tuple[object, str, str]]:
    """Which methods of a run are counted for which part."""
    engine, learner, agent = run.engine, run.engine.learner, run.agent
    return [
        (engine, "observe", "observe"),
        (agent, "_act", "act"),
        (run.env.table, "decode", "act"),
        (learner, "attack", "attack"),
        (engine, "assess", "reward"),
        (learner, "update", "update"),
        (learner.optimizer, "step", "update: optimiser"),
        (engine, "_draw", "next batch"),
        (agent, "_update", "agent update"),
        (agent.logger, "dump", "logging"),
        *((log, name, "logging") for name in ("step", "images", "flush")),
        (progress, "update", "logging"),
        (run, "save", "checkpoint"),
        (learner.network, "encode_with", NETWORK),
        (engine.method, "losses", NETWORK),
        (engine.method, "objective", LOSS),
        *((torch.autograd, name, NETWORK) for name in ("grad", "backward")),
    ]


def measure_step(options: Options, console: Console) -> tuple[list[Figure], dict[str, Any]]:
    """The share of each part in a training step, one value for each epoch but the first."""
    settings = options.settings(128)
    run = Run(settings, torch.device("cpu"))
    steps, watch, epochs = run.engine.steps_per_epoch, Stopwatch(), []
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        folder = RunFolder.create(temporary, settings, ["benchmark.py"])
        log = stack.enter_context(RunLog(folder, settings.batch_size))
        progress = Progress(settings.epochs, steps, kind=settings.progress, console=console)
        callback = RunCallback(run, folder, log, progress, Interrupt())
        run.agent.set_logger(Logger(None, [log.agent_writer(lambda timesteps: timesteps // run.env.num_envs)]))
        for owner, attribute, name in watch_points(run, log, progress):
            stack.enter_context(watch.watching(owner, attribute, name))
        for epoch in range(options.epochs + 1):
            began = time.perf_counter()
            with watch.part("rest"):
                run.agent.learn(steps * run.env.num_envs, callback, reset_num_timesteps=False)
            epochs.append((dict(watch.seconds), time.perf_counter() - began))
            watch.seconds.clear()
            console.print(f"step: epoch {epoch} of {options.epochs}, {epochs[-1][1] / steps:.3f} s a step")
    return step_figures(epochs[1:], steps)


def step_figures(
    epochs: Sequence[tuple[Mapping[tuple[str, ...], float], float]], steps: int
) -> tuple[list[Figure], dict[str, Any]]:
    """Shares of the named parts, from each epoch's seconds by path and its wall-clock seconds as a whole."""
    shares: dict[tuple[bool, str], list[float]] = defaultdict(lambda: [0.0] * len(epochs))
    for index, (seconds, whole) in enumerate(epochs):
        for path, value in seconds.items():
            shares[part_of(path)][index] += value / whole
    inside = zip(*(values for (arithmetic, _), values in shares.items() if arithmetic), strict=True)
    named = {"outside the target network's arithmetic": [1 - sum(values) for values in inside]}
    ranked = sorted(shares, key=lambda key: (key[0], -sum(shares[key])))
    named |= {name: shares[arithmetic, name] for arithmetic, name in ranked}
    rest = [1 - sum(values) for values in zip(*shares.values(), strict=True)]
    details = {"seconds_a_step": [whole / steps for _, whole in epochs], "unexplained": rest}
    return [Figure("step", name, "share", tuple(values)) for name, values in named.items()], details


PARTS = {"attack": measure_attack, "step": measure_step}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())}\n")


def parse(argv: Sequence[str] | None = None) -> Options:
    """The command line; ends the process with status 2 and one line if anything is wrong with it."""
    parser = _Parser(prog="benchmark.py", description=(__doc__ or "").partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--parts", nargs="+", default=list(PARTS), metavar="PART", help=" and ".join(PARTS))
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="measured rounds of the attack (3)")
    parser.add_argument("--epochs", type=int, default=10, metavar="N", help="measured epochs of the run (10)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), metavar="N", help="of torch")
    parser.add_argument("--output", type=Path, default=Path("results/benchmark.json"), metavar="FILE")
    parser.add_argument("--quick", action="store_true", help="tiny networks, to try the command: figures mean nothing")
    given = parser.parse_args(argv)
    try:
        for part in given.parts:
            pick(part, PARTS, "part")
        for name in ("repeats", "epochs", "threads"):
            if getattr(given, name) < 1:
                raise ValueError(f"--{name}: expected 1 or more, got {getattr(given, name)}")
        given.output.parent.mkdir(parents=True, exist_ok=True)
        if given.output.is_dir() or not os.access(given.output.parent, os.W_OK):
            raise ValueError(f"--output: {given.output} cannot be written: expected a file in a folder that can be")
    except (OSError, ValueError) as error:
        parser.error(str(error))
    return Options(**vars(given) | {"parts": tuple(dict.fromkeys(given.parts))})


def processor() -> str:
    """The processor's name as the system tells it."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text(encoding="utf-8").splitlines() if information.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def table(figures: Sequence[Figure]) -> Table:
    """The figures for the terminal."""
    drawn = Table("part", "figure", "median", "quartiles", "target", title="Benchmark")
    for figure in figures:
        form, sign = ("{:.1%}", "<=") if figure.unit == "share" else ("{:.2f}x", ">=")
        summary = figure.summary()
        median, low, high, target = map(form.format, (summary["median"], *summary["quartiles"], summary["target"] or 0))
        target = "" if summary["met"] is None else f"{sign} {target}: {'met' if summary['met'] else 'missed'}"
        drawn.add_row(figure.part, figure.name, median, f"{low} to {high}", target)
    return drawn


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status: 0 done (targets met or not), 1 if two attacks disagree."""
    options = parse(argv)
    torch.set_num_threads(options.threads)
    console = Console(highlight=False)
    figures: list[Figure] = []
    details = {}
    try:
        for part in options.parts:
            found, details[part] = PARTS[part](options, console)
            figures += found
    except DisagreementError as error:
        print(f"benchmark.py: error: {error}", file=sys.stderr)
        return 1
    document = {"schema": SCHEMA, "quick": options.quick, "commit": commit(ROOT), "versions": versions()}
    document |= {"processor": processor(), "threads": options.threads}
    document |= {"figures": [asdict(figure) | figure.summary() for figure in figures], "details": details}
    with replacing(options.output) as temporary:
        temporary.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    console.print(table(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
