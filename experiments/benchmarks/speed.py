"""Parts of the benchmark that measure speed against simpler versions: the attack, the whole step, half precision."""

import copy
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor

from astra_gym.agents.policies import StrategyPolicy
from astra_gym.agents.reinforce import REINFORCE
from astra_gym.envs.builders import build_learner
from astra_gym.envs.engine import AttackEngine
from astra_gym.experiments.benchmarks.measure import (
    DeviceClock,
    Figure,
    Result,
    Stopwatch,
    interleaved,
    ratios,
    replaced,
)
from astra_gym.experiments.benchmarks.reference import PlainStep, Strategy, masked_loop, seconds_per_step
from astra_gym.experiments.benchmarks.workloads import (
    FEWEST,
    MOST,
    Options,
    budget_of,
    check_agreement,
    follow,
    in_precision,
    perturbations,
    random_actions,
    seasoned,
)
from astra_gym.experiments.runs.run import Run
from astra_gym.ssl_core.attacks.pgd import Budget, pgd
from astra_gym.ssl_core.methods import Networks
from astra_gym.ssl_core.models.modes import frozen
from astra_gym.ssl_core.models.target_network import PRECISIONS, TargetNetwork
from astra_gym.ssl_core.utils.rng import Streams

Say = Callable[[str], None]
WARM_UP_STEPS = (3, 4)
"""The warm-up's budgets have few steps, since it only has to cover what a first call alone does."""


@dataclass(frozen=True)
class Variant:
    """A way to run the same attack: each adds one thing to the one before it; `ours` is `TargetLearner.attack`."""

    name: str
    weight_gradients: bool = False
    active_only: bool = True
    channels_last: bool = True
    ours: bool = False
    precision: str = "fp32"


REFERENCE = Variant("masked loop with weight gradients", True, False, False)
VARIANTS = (
    Variant("masked loop", False, False, False),
    Variant("active views only", False, True, False),
    Variant("+ channels-last"),
    Variant("+ folded batch norm", ours=True),
    Variant("+ bf16", ours=True, precision="bf16"),
)


def measure_attack(options: Options, rounds: int, say: Say) -> Result:
    """Measure the attack against the reference's masked loop, and the worth of each of its optimizations.

    The attack is on a ResNet-18 and 64 views, with steps uniform on 3..14. Budgets and starts are new in each round, so
    that numbers of views with steps left occur that have not occurred before, as in training. All variants must attain
    the same loss and the same gain over the random start.
    """
    engine = AttackEngine(options.settings(**options.paper).world, device=options.device)
    method, network = engine.method, seasoned(engine)
    plain = in_precision(network, "fp32").to(memory_format=torch.contiguous_format)
    learners = {precision: copy.copy(engine.learner) for precision in PRECISIONS}
    learners["bf16"].network = in_precision(network, "bf16")
    views = {True: engine.views, False: engine.views.contiguous()}

    def prepare(number: int) -> tuple[Budget, int]:
        say(f"attack: round {number} of {rounds}")
        steps = (FEWEST, MOST) if number else WARM_UP_STEPS
        actions = random_actions(len(engine.views), engine.streams["twin/budgets"], steps)
        return budget_of(actions, options.device), number

    def run(variant: Variant, work: tuple[Budget, int]) -> Tensor:
        budget, number = work
        if variant.ours:
            generator = Streams(number, options.device).on_device("noise")
            return learners[variant.precision].attack(engine.views, budget, generator).images
        start = start_of(engine, budget, number)
        chosen = network if variant.channels_last else plain
        chosen.zero_grad(set_to_none=True)
        with nullcontext() if variant.weight_gradients else frozen(chosen):
            attack = pgd if variant.active_only else masked_loop
            given = views[variant.channels_last], budget
            return attack(method.encode(Networks(chosen)), method.objective, *given, start=start).images

    loss = attained(plain, engine)
    agreement: list[dict[str, Any]] = []

    def check(number: int, work: tuple[Budget, int], found: dict[str, Tensor]) -> None:
        started = (engine.views + start_of(engine, *work)).clamp(0, 1)
        for variant in VARIANTS:
            # another layout rounds differently, and so may several threads, which split a smaller batch in other places
            exact = not variant.channels_last and options.device.type == "cpu"
            exact = exact and (options.threads == 1 or not variant.active_only)
            tolerance = options.tolerance(variant.precision)
            three = found[REFERENCE.name], found[variant.name], started
            agreement.append(check_agreement(*three, loss, variant.name, exact, tolerance) | {"round": number})

    tasks = {variant.name: partial(run, variant) for variant in (REFERENCE, *VARIANTS)}
    seconds = interleaved(tasks, prepare, rounds, DeviceClock(options.device), check)
    figures = [
        Figure("attack", variant.name, "times faster", ratios(seconds[REFERENCE.name], seconds[variant.name]))
        for variant in VARIANTS
    ]
    return figures, {"reference": REFERENCE.name, "seconds": seconds, "agreement": agreement}


def start_of(engine: AttackEngine, budget: Budget, number: int) -> Tensor:
    """Return the perturbations from which a round's attacks start: a learner draws them from the round's stream."""
    noise = Streams(number, engine.device).on_device("noise")
    return perturbations(engine.views, budget, engine.method.attack.start_radius, noise)


def attained(network: TargetNetwork, engine: AttackEngine) -> Callable[[Tensor], float]:
    """Return the function from attacked views to the method's loss on a network in eval mode, unfolded."""

    @torch.no_grad()
    def loss(views: Tensor) -> float:
        with frozen(network):
            encoded = network(views.contiguous(), engine.method.routes.attack)
            return engine.method.objective(encoded.embeddings).mean().item()

    return loss


@dataclass(frozen=True)
class World:
    """A world in which whole steps are measured: its settings, the range of its numbers of steps, and the sides."""

    name: str
    changes: dict[str, Any]
    steps: tuple[int, int]
    sides: tuple[tuple[str, str], ...]


def worlds(options: Options) -> tuple[World, ...]:
    """Return the worlds in which whole steps are measured."""
    paper = tuple(product(("reinforce", "reinforce-paper"), ("fp32", "bf16")))
    return (
        World("ResNet-18", options.paper, (3, 14), paper),
        # a trained policy chooses such numbers of steps: nearly all views take nearly all steps
        World("digits", {}, (12, 14), (("reinforce", "fp32"), ("reinforce", "auto"))),
    )


def measure_step(options: Options, rounds: int, say: Say) -> Result:
    """Measure a training step (observe, act, attack, reward, update, next batch) against a twin of the reference's.

    Both sides have the same strategy network and play the same budgets on the same views from the same starts. At first
    they have the same weights, with batch-norm statistics of data, and their attacks must agree. Times are those of the
    mean of ten steps. The twin's strategy learns in one of them, and its times are computed from its stages
    (`astra_gym.experiments.benchmarks.reference.seconds_per_step`). Ours counts its agent's update as often as the
    agent learns: reinforce in every step, reinforce-paper in one of ten. The twin is float32 throughout; `auto` is the
    preset's precision on this machine.
    """
    figures: list[Figure] = []
    details: dict[str, Any] = {}
    for world in worlds(options):
        found, details[world.name] = _world(world, options, rounds, say)
        figures += found
    return figures, details


def _world(world: World, options: Options, rounds: int, say: Say) -> Result:
    clock = DeviceClock(options.device)
    ours = {
        (agent, precision): Run(
            options.settings(**world.changes | {"agent": agent, "precision": precision}), options.device
        )
        for agent, precision in world.sides
    }
    first = next(iter(ours.values()))
    # made with the same seed as ours, so that batches, starts and initial weights are the same
    engine = AttackEngine(first.settings.world, first.settings.run.seed, options.device, first.engine.data)
    seasoned(engine)
    for run in ours.values():
        follow(run.engine, engine)
    watch = Stopwatch(clock)
    strategies = {agent: Strategy(_policy(run)) for (agent, _), run in ours.items()}
    twin = PlainStep(engine, strategies, watch.part)
    # the twin trains a copy of the engine's network, so this one keeps the weights that the first attacks see
    initial = in_precision(engine.learner.network, "fp32").to(memory_format=torch.contiguous_format)
    loss = attained(initial, engine)
    seconds: dict[str, list[float]] = {f"twin, {agent}": [] for agent in strategies}
    seconds |= {_label(side): [] for side in ours}
    agreement: list[dict[str, Any]] = []

    def prepare(number: int) -> Tensor:
        say(f"step, {world.name}: round {number} of {rounds}")
        # the warm-up's attacks are compared, so they too take all their steps; with fewer they would gain little
        return random_actions(len(engine.views), engine.streams["twin/budgets"], world.steps)

    def check(number: int, work: Tensor, found: dict[str, tuple[dict[str, float], Tensor]]) -> None:
        stages, expected = found["twin"]
        for agent in strategies:
            seconds[f"twin, {agent}"] += [seconds_per_step(stages, agent)] if number else []
        for side in ours:
            took, adversarial = found[_label(side)]
            seconds[_label(side)] += [took["step"] + took["learn"] / took["interval"]] if number else []
            if not number:
                # only before the first update do all networks have the same weights
                name = f"{world.name}, {_label(side)}"
                tolerance = options.tolerance(ours[side].settings.optimizer.precision)
                three = expected, adversarial, twin.started
                agreement.append(check_agreement(*three, loss, name, tolerance=tolerance))

    tasks: dict[str, Callable[[Tensor], Any]] = {"twin": partial(twin_stages, twin, watch)}
    tasks |= {_label(side): partial(own_step, run, watch) for side, run in ours.items()}
    interleaved(tasks, prepare, rounds, clock, check)
    figures = [
        Figure(
            "step",
            f"{world.name}, {_label(side)}",
            "times faster",
            ratios(seconds[f"twin, {side[0]}"], seconds[_label(side)]),
        )
        for side in ours
    ]
    precisions = {_label(side): run.settings.optimizer.precision for side, run in ours.items()}
    return figures, {"seconds": seconds, "agreement": agreement, "precisions": precisions}


def _label(side: tuple[str, str]) -> str:
    return ", ".join(side)


def _policy(run: Run) -> StrategyPolicy:
    """Make a strategy network like the run's own."""
    if not isinstance(run.agent, REINFORCE):
        raise ValueError(f"{run.settings.agent.agent} has no strategy network: expected reinforce or reinforce-paper")
    return copy.deepcopy(run.agent.policy)


def twin_stages(twin: PlainStep, watch: Stopwatch, actions: Tensor) -> tuple[dict[str, float], Tensor]:
    """Run every stage of the twin's step once, for each strategy: return seconds by stage, and the attacked views."""
    watch.take()
    drawn = {name: twin.act(name) for name in twin.strategies}
    adversarial = twin.attack(budget_of(actions, twin.engine.device))
    reward = twin.assess(adversarial)
    for name, (observation, chosen) in drawn.items():
        twin.learn(name, observation, chosen, reward)
    twin.update(adversarial)
    twin.next_batch()
    return {path[-1]: seconds for path, seconds in watch.take().items()}, adversarial


def own_step(run: Run, watch: Stopwatch, actions: Tensor) -> tuple[dict[str, float], Tensor]:
    """Run one step in which the run's agent acts and learns, but play the given actions.

    Returns:
        Seconds of the `step` without the agent's learning, of that learning (`learn`, with the attack that is only
        assessed for it), and the `interval` of steps at which it learns; and the attacked views.
    """
    agent = run.agent
    if not isinstance(agent, REINFORCE):
        raise ValueError(f"{run.settings.agent.agent} plays what it chooses: expected reinforce or reinforce-paper")
    interval = agent.settings.interval
    # the agent learns in the coming step
    agent.rollouts = interval * (agent.updates + 1) - 1
    watch.take()
    with (
        replaced(agent, "_send", lambda chosen: actions.to(chosen.device)),
        watch.watching(agent, "_learn_from", "learn"),
        watch.watching(run.env, "assess", "assess"),
        watch.part("step"),
    ):
        agent.learn(run.env.num_envs, reset_num_timesteps=False)
    seconds = watch.take()
    record = run.engine.last
    if record is None or record.adversarial is None:
        raise RuntimeError("a step was made without an attack")
    learning = seconds["step", "learn"] + seconds.get(("step", "assess"), 0.0)
    return {"step": seconds["step",], "learn": learning, "interval": interval}, record.adversarial


def measure_precision(options: Options, rounds: int, say: Say) -> Result:
    """Measure bfloat16 against float32 in observation, attack and update of ResNet-18, and the loss its attack attains.

    Steps are uniform on 3..14. The attacks must agree, in the attained loss and in the gain over the random start.
    """
    engine = AttackEngine(options.settings(**options.paper).world, device=options.device)
    seasoned(engine)
    learners = {"fp32": engine.learner}
    learners["bf16"] = build_learner(engine.settings, Streams(0, options.device), engine.plan)
    learners["bf16"].network.precision = "bf16"
    plain = in_precision(engine.learner.network, "fp32").to(memory_format=torch.contiguous_format)
    loss = attained(plain, engine)
    ratio: list[float] = []
    agreement: list[dict[str, Any]] = []
    # the attacked views of the fp32 side, on which both sides update
    attacked: dict[str, Tensor] = {}

    def prepare(number: int) -> tuple[Budget, int]:
        say(f"precision: round {number} of {rounds}")
        state = plain.state_dict()
        for learner in learners.values():
            learner.network.load_state_dict(state)
        actions = random_actions(len(engine.views), engine.streams["twin/budgets"])
        return budget_of(actions, options.device), number

    def look(precision: str, work: tuple[Budget, int]) -> None:
        learners[precision].encode_clean(engine.views)

    def attack(precision: str, work: tuple[Budget, int]) -> Tensor:
        budget, number = work
        noise = Streams(number, options.device).on_device("noise")
        attacked[precision] = learners[precision].attack(engine.views, budget, noise).images
        return attacked[precision]

    def update(precision: str, work: tuple[Budget, int]) -> None:
        learners[precision].update(engine.views, attacked["fp32"])

    def check(number: int, work: tuple[Budget, int], found: dict[str, Any]) -> None:
        started = (engine.views + start_of(engine, *work)).clamp(0, 1)
        three = found["attack, fp32"], found["attack, bf16"], started
        agreed = check_agreement(*three, loss, "attack, bf16", tolerance=options.tolerance("bf16"))
        agreement.append(agreed | {"round": number})
        ratio.extend([agreed["loss_ratio"]] if number else [])

    stages = {"observe": look, "attack": attack, "update": update}
    tasks = {f"{stage}, {name}": partial(run, name) for stage, run in stages.items() for name in learners}
    seconds = interleaved(tasks, prepare, rounds, DeviceClock(options.device), check)
    figures = [
        Figure("precision", stage, "times faster", ratios(seconds[f"{stage}, fp32"], seconds[f"{stage}, bf16"]))
        for stage in stages
    ]
    figures.append(Figure("precision", "attained loss", "times the loss", tuple(ratio)))
    return figures, {"seconds": seconds, "agreement": agreement}
