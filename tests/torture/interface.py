"""Calls of the Python interface with random arguments: a value, or the documented error, of one plain line."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from torch import Tensor

import astra_gym
from astra_gym.agents import REINFORCE, FunctionAgent, RandomAgent, Sb3Agent
from astra_gym.envs.world_config import WorldSettings
from astra_gym.experiments.comparison.cell_results import read_comparison, summarize
from astra_gym.experiments.config.cli import load
from astra_gym.experiments.runs.run_folder import RunFolder
from astra_gym.ssl_core.attacks.pgd import Budget, pgd
from astra_gym.ssl_core.data.datasets import load_dataset
from astra_gym.ssl_core.models.checkpoint import kept_encoders, load_checkpoint, load_network
from astra_gym.ssl_core.models.foreign import FORMATS, load_foreign
from astra_gym.ssl_core.settings.records import leaves
from tests.torture.calling import Answer, Hang, called, message_faults, place_of
from tests.torture.cases import Case
from tests.torture.values import PATHS, path_for, text_for, value_for

SMALL = {"dataset": "digits", "limit": 12, "test_limit": 12, "batch_size": 2, "image_size": 8, "width": 2, "epochs": 1}
SMALL |= {"projector_hidden": 4, "projector_dim": 4, "download": False}
LONG = {"width", "projector_hidden", "projector_dim", "neck", "image_size", "epochs", "arch", "lookahead_images"}
"""Settings of which a large value is a large network or much memory, and no mistake."""


def call_interface(case: Case, allowed: Sequence[Path]) -> None:
    """One call."""
    ways, weights = zip(*WAYS.items(), strict=True)
    [way] = case.draw.choices(ways, weights)
    what, function, refused = way(case)
    answer = called(function, allowed=allowed, limit=90)
    where = f"{way.__name__.strip('_')}: {what}"
    case.fail_all(faults_of_call(answer), where)
    if refused and answer.error is None:
        case.fail(f"accepted: {what.partition(':')[0]}", where)


def faults_of_call(answer: Answer) -> list[tuple[str, str]]:
    """What is wrong with how a call ended: only a ValueError, and a name that Python does not know, may come out."""
    found = [("outside the fence", breach) for breach in answer.breaches]
    error = answer.error
    if error is None:
        return found
    text = str(error)
    if isinstance(error, Hang):
        return [*found, ("hang", f"{answer.crash}: {text}")]
    if isinstance(error, TypeError) and "unexpected keyword argument" in text:
        return found
    if not isinstance(error, ValueError):
        return [*found, (f"interface: {place_of(error)}", text[:300])]
    # whoever calls with a path that holds line breaks or codes finds it in the error, as in Python's own
    for path in PATHS:
        text = text if path.isprintable() else text.replace(path, "PATH")
    return found + [(f"interface, message: {fault}", text[:400]) for fault in message_faults(text, PATHS)]


Call = tuple[str, Callable[[], Any], bool]
"""What is called, in words; the call; whether it has to be refused."""


def _environment(case: Case) -> Call:
    draw = case.draw
    fields = {leaf.name: str(getattr(leaf.hint, "__name__", leaf.hint)) for leaf in leaves(WorldSettings)}
    settings: dict[str, Any] = dict(SMALL)
    for _ in range(draw.choice((0, 1, 1, 2, 3))):
        name = draw.choice(list(fields))
        value = value_for(draw, name, fields[name])
        if name in LONG and isinstance(value, int | float) and not isinstance(value, bool) and value > 64:
            continue
        settings[name] = value
    more = {"actions": ("factored", "flat", "continuous", "none", "x", 1), "observation": ("features", "image", None)}
    more |= {"seed": (0, 7, -1, 2**63, "a", None, 1.5), "device": ("cpu", "cuda:99", "tpu", 3)}
    view = draw.random() < 0.5
    for name in draw.sample(list(more), draw.choice((0, 1, 2))):
        if view or name != "observation":
            settings[name] = draw.choice(more[name])
    plays = draw.randrange(3)
    strange = draw.random() < 0.3
    count = draw.choice((1, 4, 4, 2, 0, -1, 10**9))

    def act() -> Any:
        if view:
            env: Any = gymnasium.make_vec(astra_gym.VIEW_ID, num_envs=count, **settings)
        else:
            env = gymnasium.make(astra_gym.BATCH_ID, disable_env_checker=True, **settings)
        env.reset(seed=draw.choice((None, 0, 5)))
        for _ in range(plays):
            _, _, terminated, truncated, _ = env.step(draw.choice(ACTIONS) if strange else env.action_space.sample())
            if not view and (terminated or truncated):
                env.reset()
        return env.observation_space

    return f"{'make_vec' if view else 'make'}({_shown(settings)}), {plays} steps, strange: {strange}", act, False


ACTIONS: tuple[Any, ...] = (
    *(None, "x", [], 5, -1, 10**12, 1.5, np.nan, [np.nan] * 3, [[0, 0, 0]] * 4, [0, 0, 0], [99, 99, 99]),
    *(np.zeros(3), np.zeros((4, 3)), np.full((4, 3), np.inf), np.zeros((2, 2, 2)), {"a": 1}, torch.zeros(3)),
)


def _features(case: Case) -> Call:
    draw = case.draw
    network, route = load_network(case.goods("finished") / "run")
    good = torch.rand(2, 3, 8, 8)
    # bytes where fractions belong are the usual mistake
    wrong: dict[str, Any] = {
        "0..255": good * 255,
        "bytes": (good * 255).byte(),
        "normalized": good * 4 - 2,
        "NaN": good.clone().index_fill_(0, torch.tensor([1]), torch.nan),
        "infinite": good.clone().index_fill_(0, torch.tensor([1]), torch.inf),
        "one image": good[0],
        "one channel": good[:, :1],
        "integers": torch.ones(2, 3, 8, 8, dtype=torch.int64),
    }
    if draw.random() < 0.2:
        return f"features, route {route}", lambda: _finite(network.features(good, route)), False
    if draw.random() < 0.15:
        other = text_for(draw, "route", "str", odd=1.0)
        return f"features, route {other[:40]!r}", lambda: network.features(good, other), True
    name = draw.choice(list(wrong))
    return f"features of {name}", lambda: network.features(wrong[name], route), True


def _finite(tensor: Tensor) -> Tensor:
    if not tensor.isfinite().all():
        raise RuntimeError("features are not finite")
    return tensor


def _attack(case: Case) -> Call:
    draw = case.draw
    images = torch.rand(3, 3, 4, 4)
    budget: dict[str, Any] = {"epsilon": 8 / 255, "step_size": 2 / 255, "steps": 2}
    wrong = draw.choice(("nothing", "images", "epsilon", "step_size", "steps", "objective", "start", "length"))
    start: Any = "uniform"
    if wrong == "images":
        images = draw.choice((images * 255, images - 1, images * torch.nan, images[0], (images * 255).byte()))
    elif wrong in ("epsilon", "step_size"):
        budget[wrong] = draw.choice((8.0, -0.1, float("nan"), float("inf")))
    elif wrong == "steps":
        budget[wrong] = draw.choice((1.5, -1, float("nan")))
    elif wrong == "start":
        start = draw.choice((torch.full_like(images, torch.nan), images[:1], "none at all", images + 1))
    count = 2 if wrong == "length" else 3

    def objective(z: Tensor) -> Tensor:
        return z.sum() if wrong == "objective" else z.square().sum(1)

    def act() -> Any:
        spent = Budget.uniform(count, **budget)
        return pgd(lambda x, rows: x.flatten(1), objective, images, spent, start=start)

    return f"pgd with wrong {wrong}: {budget}", act, wrong != "nothing"


def _loader(case: Case) -> Call:
    draw = case.draw
    path = Path(path_for(draw)) if draw.random() < 0.5 else path_for(draw)
    # images are kept where the caller says, above the case's folder too: that would be outside the fence
    cache = "cache" if ".." in Path(path).parts else str(path)
    loaders: dict[str, Callable[[], Any]] = {
        "load_network": lambda: load_network(path),
        "load_checkpoint": lambda: load_checkpoint(path, draw.choice(("run", "agent", "x"))),
        "kept_encoders": lambda: kept_encoders(Path(path)),
        "load_foreign": lambda: load_foreign(path, format=draw.choice((*FORMATS, "x"))),
        "load_dataset": lambda: load_dataset("folder", data_dir=str(path), image_size=8),
        "cached load_dataset": lambda: load_dataset(
            "folder", data_dir=str(case.goods("pictures")), image_size=8, cache_dir=cache
        ),
        "read_comparison": lambda: read_comparison(path),
        "RunFolder.open": lambda: RunFolder.open(path).settings(),
        "load": lambda: load(path),
        "summarize": lambda: summarize(Path(path)),
        "REINFORCE.load": lambda: REINFORCE.load(path),
        "RandomAgent.load": lambda: RandomAgent.load(path),
        "Sb3Agent.load": lambda: Sb3Agent.load(path),
        "FunctionAgent.load": lambda: FunctionAgent.load(path),
    }
    name = draw.choice(list(loaders))
    return f"{name}({str(path)[:80]!r})", loaders[name], False


def _shown(settings: dict[str, Any]) -> str:
    return ", ".join(f"{name}={repr(value)[:60]}" for name, value in settings.items() if SMALL.get(name) is not value)


WAYS: dict[Callable[[Case], Call], float] = {_environment: 35, _features: 20, _attack: 15, _loader: 30}
