"""Parts of the benchmark that measure all but the target network: a run's bookkeeping, its agent, its start.

The *target network's arithmetic* is its forwards in observation, attack and update, the loss after them in attack and
update, and the backwards of both, which autograd runs together. All else is outside: the observation's clean loss,
reward terms, sign ascent and projection, optimizer, strategy network, augmentation, logging. Methods are wrapped on
their instances. On a GPU every part waits for the device, so that it is measured by itself.
"""

import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from stable_baselines3.common.logger import Logger

from astra_gym.agents import Agent, Sb3Agent
from astra_gym.agents.reinforce import REINFORCE
from astra_gym.experiments.benchmarks.measure import (
    DeviceClock,
    Figure,
    Result,
    Seconds,
    Stopwatch,
    interleaved,
    replaced,
)
from astra_gym.experiments.benchmarks.workloads import TINY, BenchmarkError, Options
from astra_gym.experiments.config.commands import recorded
from astra_gym.experiments.console import Interrupt, RunProgress
from astra_gym.experiments.runs.run import Run, RunCallback
from astra_gym.experiments.runs.run_folder import RunFolder
from astra_gym.experiments.runs.run_log import RunLog
from astra_gym.ssl_core.utils.provenance import CHECKOUT

Say = Callable[[str], None]
NETWORK, LOSS = "network", "loss"
ARITHMETIC = {"observe": {NETWORK}, "attack": {NETWORK, LOSS}, "update": {NETWORK}}
"""The marks that are the target network's arithmetic, by the part around them; the strategy network's backward pass is
not among them."""
ACT, LEARN, SB3 = "act", "agent update", "SB3's own overhead"
AGENT_PARTS = (ACT, LEARN, SB3)
"""The parts of a step that are the agent's."""
SHARED = ("reinforce", "ppo")
"""Agents whose runs are split into parts."""
COMPARED = ("reinforce", "reinforce-paper", "ppo", "a2c", "random", "fixed")


def part_of(path: Sequence[str]) -> tuple[bool, str]:
    """Return the part of a path's own time: whether it is the target network's arithmetic, and its name."""
    part = [name for name in path if name not in (NETWORK, LOSS)][-1]
    marks = set(path[len(path) - path[::-1].index(part) :])
    arithmetic = bool(ARITHMETIC.get(part, set()) & marks)
    return arithmetic, f"{part}: {'network' if arithmetic else 'bookkeeping'}" if part in ARITHMETIC else part


def agent_points(agent: Agent | Sb3Agent) -> list[tuple[object, str, str]]:
    """Return which methods of an agent are counted for which part."""
    if isinstance(agent, Agent):
        return [(agent, "_act", ACT), (agent, "_update", LEARN)]
    model = agent.model
    shell = [(agent.get_env(), name, "environment's shell") for name in ("step_async", "step_wait")]
    network = [(model.policy, name, ACT) for name in ("forward", "predict_values")]
    return [*shell, *network, (model, "train", LEARN), (model, "learn", SB3)]


def world_points(run: Run) -> list[tuple[object, str, str]]:
    """Return which methods of a run's world are counted for which part."""
    engine, learner = run.engine, run.engine.learner
    return [
        (engine, "observe", "observe"),
        (run.env.table, "decode", ACT),
        (learner, "attack", "attack"),
        (engine, "assess", "reward"),
        (learner, "update", "update"),
        (learner.optimizer, "step", "update: optimizer"),
        (engine, "draw_batch", "next batch"),
        (learner, "encode_clean", NETWORK),
        (engine.method, "losses", NETWORK),
        (engine.method, "objective", LOSS),
    ]


def log_points(run: Run, log: RunLog, progress: RunProgress) -> list[tuple[object, str, str]]:
    """Return which methods of a run's writers are counted for which part."""
    logging: list[tuple[object, str, str]] = [(log, name, "logging") for name in ("step", "images", "flush")]
    logging += [(run.agent.logger, "dump", "logging"), (progress, "update", "logging")]
    return [*logging, (run, "save", "checkpoint")]


@contextmanager
def watched(watch: Stopwatch, run: Run, *more: tuple[object, str, str]) -> Iterator[None]:
    """While entered, let the watch count the parts of a run."""
    backward = [(torch.autograd, name, NETWORK) for name in ("grad", "backward")]
    method = run.engine.method

    def encode(network: Any, original: Callable[[Any], Any] = method.encode) -> Callable[..., Any]:
        # the attack's network is a folded copy that is stored nowhere, so the function that the method makes of it is
        # timed instead
        inner = original(network)

        def timed(*arguments: Any) -> Any:
            with watch.part(NETWORK):
                return inner(*arguments)

        return timed

    with ExitStack() as stack:
        for owner, attribute, name in (*world_points(run), *agent_points(run.agent), *backward, *more):
            stack.enter_context(watch.watching(owner, attribute, name))
        stack.enter_context(replaced(method, "encode", encode))
        yield


def measure_shares(options: Options, rounds: int, say: Say) -> Result:
    """Measure how a run on the digits spends its time, from the second epoch on, including each epoch's
    checkpoint. The precision is the one that the preset uses on this machine."""
    figures: list[Figure] = []
    details: dict[str, Any] = {}
    for agent in SHARED:
        found, details[agent] = _shares_of(agent, options, rounds, say)
        figures += found
    return figures, details


def _shares_of(agent: str, options: Options, rounds: int, say: Say) -> Result:
    settings = options.settings(agent=agent, precision="auto")
    run, clock = Run(settings, options.device), DeviceClock(options.device)
    steps, watch, epochs = run.engine.steps_per_epoch, Stopwatch(clock), []
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        folder = RunFolder.create(temporary, settings, ["benchmark.py"])
        log = stack.enter_context(RunLog(folder, settings.optimizer.batch_size))
        progress = RunProgress(run.engine.plan, kind=settings.run.progress, console=Console(file=StringIO()))
        callback = RunCallback(run, folder, log, progress, Interrupt())
        run.agent.set_logger(Logger(None, [log.agent_writer(lambda timesteps: timesteps // run.env.num_envs)]))
        stack.enter_context(watched(watch, run, *log_points(run, log, progress)))
        for epoch in range(rounds + 1):
            began = clock()
            with watch.part("rest"):
                run.agent.learn(steps * run.env.num_envs, callback, reset_num_timesteps=False)
            epochs.append((watch.take(), clock() - began))
            say(f"shares, {agent}: epoch {epoch} of {rounds}, {epochs[-1][1] / steps:.3f} s a step")
    figures, details = share_figures(agent, epochs[1:], steps)
    return figures, details | {"precision": settings.optimizer.precision}


def share_figures(agent: str, epochs: Sequence[tuple[Seconds, float]], steps: int) -> Result:
    """Return shares of the named parts, from each epoch's seconds by path and its total wall-clock seconds."""
    shares: dict[tuple[bool, str], list[float]] = defaultdict(lambda: [0.0] * len(epochs))
    for index, (seconds, whole) in enumerate(epochs):
        for path, value in seconds.items():
            shares[part_of(path)][index] += value / whole
    inside = zip(*(values for (arithmetic, _), values in shares.items() if arithmetic), strict=True)
    outside = tuple(1 - sum(values) for values in inside)
    figures = [Figure("shares", f"{agent}: outside the target network's arithmetic", "overhead", outside)]
    ranked = sorted(shares, key=lambda key: (key[0], -sum(shares[key])))
    for arithmetic, name in ranked:
        unit = "overhead" if name == SB3 else "share"
        figures.append(Figure("shares", f"{agent}: {name}", unit, tuple(shares[arithmetic, name])))
    rest = [1 - sum(values) for values in zip(*shares.values(), strict=True)]
    return figures, {"seconds_a_step": [whole / steps for _, whole in epochs], "unexplained": rest}


def measure_agents(options: Options, rounds: int, say: Say) -> Result:
    """Measure the share of each agent, acting and learning, in a step on the digits.

    If an agent learns in every tenth step, its learning counts as a tenth, as in the mean of ten steps.
    """
    clock = DeviceClock(options.device)
    watch = Stopwatch(clock)
    runs = {agent: Run(options.settings(agent=agent, precision="auto"), options.device) for agent in COMPARED}
    shares: dict[str, list[float]] = {agent: [] for agent in COMPARED}

    def prepare(number: int) -> int:
        say(f"agents: round {number} of {rounds}")
        return number

    def step(run: Run, number: int) -> float:
        interval = 1
        if isinstance(run.agent, REINFORCE):
            interval = run.agent.settings.interval
            # the agent learns in the coming step
            run.agent.rollouts = interval - 1
        watch.take()
        with watched(watch, run), watch.part("rest"):
            run.agent.learn(run.env.num_envs, None, reset_num_timesteps=False)
        return agent_share(watch.take(), interval)

    def check(number: int, work: int, found: dict[str, float]) -> None:
        for agent, share in found.items():
            shares[agent] += [share] if number else []

    tasks = {agent: partial(step, run) for agent, run in runs.items()}
    seconds = interleaved(tasks, prepare, rounds, clock, check)
    figures = [Figure("agents", agent, "overhead", tuple(values)) for agent, values in shares.items()]
    return figures, {"seconds_of_a_learning_step": seconds}


def agent_share(seconds: Seconds, interval: int) -> float:
    """Return the agent's share in the mean of `interval` steps, from the seconds by path of the one it learns in."""
    parts: dict[str, float] = defaultdict(float)
    for path, value in seconds.items():
        part = part_of(path)[1]
        parts[part] += value / interval if part == LEARN else value
    return sum(parts[name] for name in AGENT_PARTS) / sum(parts.values())


FIRST_STEP = """
import json, sys, time
if sys.argv[1]:
    sys.path.insert(0, sys.argv[1])
from astra_gym.experiments import train_agent
from astra_gym.experiments.runs.run import RunCallback
imported, before = time.time(), RunCallback._on_step
def first(callback):
    before(callback)
    with open(sys.argv[2], "w") as file:
        json.dump({"imported": imported, "first": time.time()}, file)
    raise KeyboardInterrupt
RunCallback._on_step = first
sys.exit(train_agent.main(sys.argv[3:]))
"""
"""Program that runs the command until its first step is made and reported, then interrupts it; arguments: the checkout
(empty if there is none), the file for the times, and the command's own."""


def measure_start(options: Options, rounds: int, say: Say) -> Result:
    """Measure the seconds from starting `train_agent.py` in a fresh process to its first completed training step.

    `quick` leaves out the warm-up, which reads the files into memory.
    """
    whole, imports = [], []
    for number in range(1 if options.quick else 0, rounds + 1):
        say(f"start: round {number} of {rounds}")
        first, imported = first_step(options)
        whole += [first] if number else []
        imports += [imported] if number else []
    figures = [
        Figure("start", "first training step", "seconds", tuple(whole)),
        Figure("start", "of it until everything is imported", "seconds", tuple(imports)),
    ]
    return figures, {"threads": options.threads, "command": shlex.join(recorded("train"))}


def first_step(options: Options) -> tuple[float, float]:
    """Return a fresh process's seconds to its first completed training step and, of these, to the end of its imports.

    Raises:
        BenchmarkError: if the process fails.
    """
    settings = {"agent": "reinforce", "evaluate": False, "device": str(options.device), "progress": "off"}
    settings |= TINY if options.quick else {}
    flags = [f"--{name}={json.dumps(value) if isinstance(value, bool) else value}" for name, value in settings.items()]
    environment = os.environ | {name: str(options.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    with tempfile.TemporaryDirectory() as temporary:
        told = Path(temporary) / "told.json"
        words = [sys.executable, "-c", FIRST_STEP, str(CHECKOUT or ""), str(told), *flags, f"--run_dir={temporary}/run"]
        # the only clock that two processes share on every system
        began = time.time()
        done = subprocess.run(words, env=environment, capture_output=True, text=True)
        if not told.is_file():
            raise BenchmarkError(f"the training made no first step (status {done.returncode}): {done.stderr[-500:]}")
        moments = json.loads(told.read_text(encoding="utf-8"))
    return moments["first"] - began, moments["imported"] - began
