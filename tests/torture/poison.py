"""Numbers gone bad: NaN or infinity in a policy, an optimizer, views, rewards or weights at a random update.

The run has to end with status 1 and one line, and its last checkpoint has to be the last good one: whole, finite, and
continued it is what it would have been.
"""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from astra_gym.envs.engine import AttackEngine
from astra_gym.experiments.runs.run import Run
from astra_gym.ssl_core.models.checkpoint import load_checkpoint
from tests.torture.calling import command, faults
from tests.torture.cases import Case
from tests.torture.goods import TINY, at_update, without
from tests.torture.kills import RUN, Work, compare, reference, shown

BAD = (float("nan"), float("inf"), float("-inf"))
RUNS = (
    "--agent=reinforce",
    "--agent=ppo",
    "--agent=dqn",
    "--agent=a2c --env=batch",
    "--agent=sac --actions=continuous",
    "--agent=reinforce --env=batch --method=acl",
    "--agent=lints --reward_progress=0.5",
    "--agent=bandit",
)
LEARNING = 6
"""So many of them have networks of their own."""
EPOCHS, UPDATES = 3, 18
AGENT = """\
import numpy as np

CALLS = []


def act(observation):
    CALLS.append(1)
    actions = np.zeros((len(observation), 3), np.float32)
    if len(CALLS) > {calls}:
        actions[0, 0] = np.{value}
    return actions
"""


def poison(case: Case) -> None:
    """A bad number at a random update of a run."""
    draw = case.draw
    kinds = tuple(KINDS)
    kind = kinds[case.number % len(kinds)]
    value = draw.choice(BAD)
    step = draw.choice((UPDATES, draw.randint(1, UPDATES)))
    if kind in ("views", "actions"):
        # what comes after the last update is never used
        step = min(step, UPDATES - 1)
    words = draw.choice(RUNS[:LEARNING] if kind.endswith("policy") else RUNS).split()
    if kind == "actions":
        text = AGENT.format(calls=step, value="nan" if value != value else "inf")
        Path("my_agent.py").write_text(text, encoding="utf-8")
        words = ["--agent=my_agent:act", "--actions=continuous"]
    more = [f"--epochs={EPOCHS}", "--evaluate=false", "--run_dir=run"]
    work = Work("poison", "train", (*without(TINY, words), *words, *more), ("--resume", "run"), "run", *RUN)
    where = f"{shown(work)}: {value} in {kind} at update {step} of {UPDATES}"
    with _runs() as runs, KINDS[kind](runs, step, value) as poisoned:
        answer = command("train", work.words, allowed=[case.goods.room])
    if kind != "actions" and not poisoned:
        case.tried[f"{kind}: there was none"] += 1
        return
    case.tried[f"{kind}, {'at the end' if step == UPDATES else 'on the way'}"] += 1
    _judge(case, kind, where, answer, work)


def _judge(case: Case, kind: str, where: str, answer: Any, work: Work) -> None:
    case.fail_all([(f"{fault} ({kind})", text) for fault, text in faults(answer)], where)
    if answer.crash:
        return
    expected = (1, 2) if kind == "actions" else (1,)
    if answer.status not in expected:
        case.fail(f"status {answer.status} ({kind})", f"{where}: {answer.err[-300:]}")
    elif kind != "actions" and not ("update" in answer.err and "checkpoint" in answer.err):
        case.fail(f"its message names no update and no checkpoint ({kind})", f"{where}: {answer.err[-300:]}")
    try:
        payload = load_checkpoint("run/checkpoints/last.pt", "run")
    except ValueError as error:
        case.fail(f"no whole checkpoint ({kind})", f"{where}: {error}")
        return
    parts = {name: payload.get(name) for name in ("network", "agent")}
    world = payload.get("world")
    parts |= {name: world.get(name) for name in ("learner", "views", "statistics")} if isinstance(world, dict) else {}
    bad = [name for name, part in parts.items() for _ in _not_finite(part)]
    if bad:
        case.fail(f"the checkpoint is not finite ({kind})", f"{where}: {', '.join(dict.fromkeys(bad))}")
    elif answer.status == 1 and kind != "actions":
        _continue(case, kind, where, work)


def _continue(case: Case, kind: str, where: str, work: Work) -> None:
    """Without the poison the run continues from its last good checkpoint."""
    wanted, _ = reference(case.goods, work)
    answer = command("train", work.again, allowed=[case.goods.room])
    if answer.status != 0:
        case.fail(f"not continued ({kind})", f"{where}: status {answer.status}: {answer.text[-300:]}")
        return
    compare(case, work, wanted, Path.cwd())
    shutil.rmtree("run")


def _not_finite(part: Any) -> Iterator[Tensor]:
    if isinstance(part, Tensor):
        if part.is_floating_point() and not part.isfinite().all():
            yield part
    elif isinstance(part, dict):
        for value in part.values():
            yield from _not_finite(value)
    elif isinstance(part, list | tuple):
        for value in part:
            yield from _not_finite(value)


@contextmanager
def _runs() -> Iterator[list[Run]]:
    """The runs that are made."""
    made: list[Run] = []
    begin = Run.__init__

    def noted(run: Run, *arguments: Any, **named: Any) -> None:
        begin(run, *arguments, **named)
        made.append(run)

    Run.__init__ = noted  # type: ignore[method-assign]
    try:
        yield made
    finally:
        Run.__init__ = begin  # type: ignore[method-assign]


Found = Callable[[Run, AttackEngine], list[Tensor]]


def _in(found: Found) -> Callable[..., Any]:
    """A way to poison the first entry of tensors that are found in a run after an update."""

    @contextmanager
    def acting(runs: list[Run], step: int, value: float) -> Iterator[list[int]]:
        done: list[int] = []

        def act(engine: AttackEngine) -> None:
            tensors = [tensor for tensor in found(runs[-1], engine) if tensor.is_floating_point() and tensor.numel()]
            if tensors:
                with torch.no_grad():
                    chosen = tensors[len(tensors) // 2]
                    chosen[(0,) * chosen.ndim] = value
                done.append(step)

        with at_update(step, act):
            yield done

    return acting


@contextmanager
def _rewards(runs: list[Run], step: int, value: float) -> Iterator[list[int]]:
    """The reward of an update, of one view."""
    done: list[int] = []

    def act(engine: AttackEngine) -> None:
        total = engine.rewards.total

        def bad(terms: Any) -> Tensor:
            reward = total(terms).clone()
            reward[0] = value
            return reward

        engine.rewards.total = bad  # type: ignore[method-assign]
        done.append(step)

    # from the update on: an agent that does not look at one reward looks at the next
    with at_update(max(1, min(step, UPDATES - 1)), act):
        yield done


@contextmanager
def _actions(runs: list[Run], step: int, value: float) -> Iterator[list[int]]:
    """Nothing: the agent's own module does it."""
    yield [step]


def _walk(thing: Any, kind: type, depth: int = 3) -> Iterator[Any]:
    """Objects of a kind in the attributes of ours and of Stable-Baselines3's objects."""
    for value in list(getattr(thing, "__dict__", {}).values()):
        if isinstance(value, kind):
            yield value
        elif depth and type(value).__module__.startswith(("astra_gym.agents", "stable_baselines3", "sb3_contrib")):
            yield from _walk(value, kind, depth - 1)


def _policy(run: Run, engine: AttackEngine) -> list[Tensor]:
    modules = list(_walk(run.agent, nn.Module))
    weights = [parameter for module in modules for parameter in module.parameters()]
    return weights or list(_walk(run.agent, Tensor))


def _policy_optimizer(run: Run, engine: AttackEngine) -> list[Tensor]:
    optimizers = list(_walk(run.agent, torch.optim.Optimizer))
    for module in _walk(run.agent, nn.Module):
        optimizers += [value for value in vars(module).values() if isinstance(value, torch.optim.Optimizer)]
    return [tensor for optimizer in optimizers for tensor in _states(optimizer)]


def _states(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    states = (state for state in optimizer.state.values() if isinstance(state, dict))
    # the count of steps is no number that goes bad
    return [value for state in states for name, value in state.items() if isinstance(value, Tensor) and name != "step"]


KINDS: dict[str, Callable[..., Any]] = {
    "the policy": _in(_policy),
    "the optimizer of the policy": _in(_policy_optimizer),
    "views": _in(lambda run, engine: [engine.all_views]),
    "rewards": _rewards,
    "the target": _in(lambda run, engine: list(engine.learner.network.parameters())),
    "the optimizer of the target": _in(lambda run, engine: _states(engine.learner.optimizer)),
    "statistics of the target": _in(lambda run, engine: list(engine.learner.network.buffers())),
    "actions": _actions,
}
