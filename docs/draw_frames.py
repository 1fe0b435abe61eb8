"""Draw the pictures of the environments' pages anew: python docs/draw_frames.py

They are what `render` gives in small worlds of digits, on the CPU.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import gymnasium as gym
import numpy as np
from PIL import Image

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS.parent))

import astra_gym  # noqa: E402

WORLD = {"dataset": "digits", "image_size": 8, "width": 8, "batch_size": 16, "limit": 128, "epochs": 3}
DRAWN = {"render_mode": "rgb_array"}


def tiled(frames: Sequence[np.ndarray], columns: int) -> np.ndarray:
    """Put frames into rows of so many."""
    rows = [np.concatenate(frames[at : at + columns], axis=1) for at in range(0, len(frames), columns)]
    return np.concatenate(rows)


def batch_attack() -> np.ndarray:
    env = gym.make(astra_gym.BATCH_ID, **WORLD, **DRAWN)
    env.action_space.seed(1)
    for step in range(20):
        if step % 8 == 0:
            env.reset(seed=0 if step == 0 else None)
        env.step(env.action_space.sample())
    return env.render()


def view_attack() -> np.ndarray:
    env = gym.make_vec(astra_gym.VIEW_ID, **WORLD, **DRAWN)
    env.action_space.seed(1)
    env.reset(seed=0)
    for _ in range(20):
        env.step(env.action_space.sample())
    return tiled(env.render()[:8], 4)


def attack_step() -> np.ndarray:
    env = gym.make_vec(astra_gym.STEP_ID, **WORLD, **DRAWN)
    seen, _ = env.reset(seed=0)
    attacks, steps = 0, 0
    while attacks < 12 or steps < 6:
        # before each step some of the views with the smallest gradients stop
        seen, _, terminated, _, _ = env.step(np.where(seen[:, 1] > np.quantile(seen[:, 1], steps / 10), 2, 0))
        attacks, steps = attacks + terminated.all(), 0 if terminated.all() else steps + 1
    return tiled(env.render()[:8], 4)


def training_run() -> np.ndarray:
    env = gym.make(astra_gym.RUN_ID, levers=("attack", "lr"), **DRAWN)
    env.reset(seed=0, options={"instance": "digits-few-astra-8"})
    for step in range(8):
        env.step(np.array([2 + step, 1 + step // 3, 3 + step // 4, 2 if step < 6 else 1]))
    return env.render()


for made in (batch_attack, view_attack, attack_step, training_run):
    path = DOCS / "_static" / "pictures" / f"{made.__name__.replace('_', '-')}.png"
    Image.fromarray(made()).save(path, optimize=True)
    print(path.relative_to(DOCS.parent), path.stat().st_size)
