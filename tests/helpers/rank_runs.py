"""Short runs in float64, alone or on one of several ranks: what each update chose, paid and left."""

import itertools
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch
from stable_baselines3.common.callbacks import BaseCallback
from torch import Tensor

from astra_gym.experiments.config.settings import Settings
from astra_gym.experiments.runs.run import Run
from astra_gym.experiments.runs.together import check_alike
from astra_gym.ssl_core.distributed.ranks import RanksDifferError, current
from tests.helpers.draws import generator
from tests.helpers.tiny_training import TINY_SETTINGS

METHODS = ("simclr", "acl", "astra", "dynacl", "byol")
AGENTS = ("reinforce", "reinforce-paper", "ppo", "fixed", "random")
FIRST_CLASS = {
    f"{method} {agent}": {"method": method, "agent": agent}
    for method, agent in itertools.product(METHODS, AGENTS)
    if method != "simclr"
} | {"simclr none": {"method": "simclr", "agent": "none"}}
OTHER_AGENTS = (
    *("a2c", "trpo", "dqn", "qrdqn", "sac", "td3", "ddpg", "tqc", "crossq", "bandit", "lints", "gp", "elimination"),
    *("bisection", "switching", "fixed-max", "delayed", "accelerating", "customized", "friendly", "escalating"),
)
OTHERS: dict[str, dict[str, Any]] = {
    **{name: {"method": "acl", "agent": name, "action_steps": [0, 2, 5]} for name in OTHER_AGENTS},
    "batch": {"method": "acl", "agent": "reinforce", "env": "batch"},
    "a lookahead": {"method": "acl", "agent": "reinforce", "reward_lookahead": 0.5, "lookahead_images": 4},
    "progress and cost": {"method": "acl", "agent": "reinforce", "reward_progress": 0.5, "reward_cost": 0.1},
    "a judge": {"method": "acl", "agent": "reinforce", "reward_judge": 1.0, "judge_images": 6, "judge_batch": 4},
    "alignment": {"method": "acl", "agent": "random", "reward_alignment": 1.0, "judge_images": 6, "judge_batch": 4},
    "rcs": {"method": "acl", "agent": "fixed", "coreset": "rcs", "coreset_warmup": 0, "coreset_fraction": 0.5},
    "random coreset": {"method": "acl", "agent": "fixed", "coreset": "random", "coreset_warmup": 0},
    "chunks": {"method": "acl", "agent": "random", "update_chunks": 2},
    "recompute": {"method": "acl", "agent": "random", "recompute": True},
    "perspective": {"method": "byol", "agent": "random", "perspective": "moebius"},
}
"""What else a run may have: one method, and each once."""
UPDATES = 3
WORLD = TINY_SETTINGS | {"limit": 30, "batch_size": 6, "width": 8, "projector_hidden": 16, "projector_dim": 16}
WORLD |= {"warmup_epochs": 0, "precision": "fp32", "optimizer": "sgd", "lr": 0.01}


def runs(cases: Iterable[str], of: dict[str, dict[str, Any]]) -> dict[str, dict[str, Tensor]]:
    """What `UPDATES` updates of each case leave."""
    return {case: played(**of[case]) for case in cases}


def first_class() -> dict[str, dict[str, Tensor]]:
    return runs(FIRST_CLASS, FIRST_CLASS)


def few() -> dict[str, dict[str, Tensor]]:
    return runs(["acl reinforce", "dynacl ppo", "byol random"], FIRST_CLASS)


def others() -> dict[str, dict[str, Tensor]]:
    return runs(OTHERS, OTHERS)


def played(method: str, agent: str, **settings: Any) -> dict[str, Tensor]:
    """What a run's updates choose, pay and leave, in a world without ties.

    Digits have constant borders, and small networks dead units: gradients of 0, whose sign is that of rounding. LARS
    and AdamW amplify such gradients.
    """
    sized = {"image_size": 16} if agent == "reinforce-paper" else {}
    made = Settings.of(**WORLD | sized | {"method": method, "agent": agent} | settings)
    data = made.data.load()
    noise = torch.randint(256, data.train.images.shape, generator=generator(0), dtype=torch.uint8)
    data = replace(data, train=replace(data.train, images=noise))
    run, found = Run(made, torch.device("cpu"), data), dict[str, Tensor]()
    learner = run.engine.learner
    for part in (learner.network, learner.heads, learner.others):
        part.double()
    # agents see float32, as their spaces say
    standardized = run.engine.standardize
    run.engine.standardize = lambda raw: standardized(raw).float()
    run.agent.learn(UPDATES * run.env.num_envs, _Recorder(run, found.update))
    return found | dict(_tensors({"learner": learner.state_dict(), "agent": run.agent.state_dict()}))


def unlike() -> dict[str, str]:
    """What is said of runs that begin alike, with another last image on rank 1, and with another weight there."""
    made, first = Settings.of(**WORLD, method="acl", agent="fixed"), current().first
    data, found = made.data.load(), dict[str, str]()
    images = data.train.images.clone()
    images[-1] += 1 - first
    for name in ("alike", "images", "networks"):
        train = replace(data.train, images=images) if name == "images" else data.train
        run = Run(made, torch.device("cpu"), replace(data, train=train))
        if name == "networks" and not first:
            next(run.engine.learner.network.parameters()).data.add_(1)
        try:
            check_alike(run)
            found[name] = ""
        except RanksDifferError as error:
            found[name] = str(error)
    return found


class _Recorder(BaseCallback):
    def __init__(self, run: Run, record: Callable[[dict[str, Tensor]], None]) -> None:
        super().__init__()
        self.run, self.record = run, record

    def _on_step(self) -> bool:
        last = self.run.engine.last
        parts: dict[str, Any] = {"reward": last.reward, "losses": last.losses, "terms": last.terms}
        if last.budget is not None:
            parts |= {name: getattr(last.budget, name) for name in ("epsilon", "step_size", "steps")}
        self.record({f"{last.step}/{name}": value for name, value in _tensors(parts)})
        return True


def _tensors(state: Any, name: str = "") -> Iterable[tuple[str, Tensor]]:
    if isinstance(state, dict):
        for key, value in state.items():
            yield from _tensors(value, f"{name}/{key}")
    elif isinstance(state, list | tuple):
        for index, value in enumerate(state):
            yield from _tensors(value, f"{name}/{index}")
    elif isinstance(state, Tensor):
        yield name, state.clone()
    elif isinstance(state, float):
        yield name, torch.tensor(state, dtype=torch.float64)
