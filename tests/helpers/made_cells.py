"""Cells of a comparison as `summarize` makes them, without runs."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from astra_gym.experiments.comparison.cell_results import WINDOWS, Cell
from astra_gym.experiments.plotting.run_plots import ACTION_SETS


def made_cell(
    arm: str = "reinforce",
    seed: int = 0,
    accuracy: Mapping[float, float | str] | None = None,
    images: int = 200,
    **fields: Any,
) -> Cell:
    """A cell of 220 updates as `summarize` makes it.

    `accuracy` is in percent by epsilon as a fraction (the first images are those that are right), or the outcomes
    themselves, a string of 0 and 1. Any other field can be given by its name; `settings` are added to the default ones.
    """
    accuracy = {0.0: 95.0, 8 / 255: 55.0} if accuracy is None else accuracy
    correct = {}
    for epsilon, value in accuracy.items():
        right = value if isinstance(value, str) else "1" * round(images * value / 100)
        correct[epsilon] = right if isinstance(value, str) else right.ljust(images, "0")
    agent = fields.get("agent", arm.partition("@")[0])
    settings = {
        "method": "astra",
        "preset": "digits-grid",
        "agent": agent,
        "agent_kwargs": None,
        "seed": seed,
        "epochs": 10,
        "eval_epsilons": tuple(epsilon for epsilon in accuracy if epsilon),
        "reward_adversarial": 1 / 3,
        "reward_cost": 0.0,
    }
    edges = np.linspace(0, 220, WINDOWS + 1).astype(int).tolist()
    shares = {}
    for kind, (low, high) in ACTION_SETS.items():
        values = list(range(low, high + 1))
        share = [[round(1 / len(values), 4)] * WINDOWS for _ in values]
        shares[kind] = {"edges": edges, "values": values, "share": share}
    parts = np.linspace(0, 1, WINDOWS)
    default: dict[str, Any] = {
        "agent": agent,
        "method": "astra",
        "preset": "digits-grid",
        "updates": 220,
        "views": 128,
        "attack_steps": 220 * 128 * 10,
        "seconds": 120.0,
        "world_seconds": 115.0,
        "agent_seconds": 3.0,
        "reward_first": 0.25,
        "reward_last": 0.15,
        "held_out": {agent: 0.15, "uniform random": 0.07, "method's own budget": 0.05},
        "curve": {
            "step": edges[1:],
            "reward": (0.25 - 0.1 * parts).tolist(),
            "epsilon": (9 + 4 * parts).tolist(),
            "steps": (8.5 + 3 * parts).tolist(),
            "step_size": (3 + parts).tolist(),
        },
        "shares": shares,
        "by_clean_loss": {kind: np.linspace(*ends, 5).tolist() for kind, ends in ACTION_SETS.items()},
        "commits": ["0" * 40],
        "versions": {"python": "3.11.7", "torch": "2.15.0"},
        "device": "cpu",
        "threads": 1,
    }
    settings |= {name: fields[name] for name in ("method", "preset") if name in fields}
    settings |= fields.pop("settings", {})
    return Cell(**{"arm": arm, "seed": seed, "settings": settings, "correct": correct} | default | fields)
