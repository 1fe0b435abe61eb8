"""A policy in Gymnasium's own loop: REINFORCE in NumPy on one distribution of attacks for all views.

python examples/train_view_env.py runs/train_view_env       # draws runs/train_view_env/reward.png
"""

import sys
from pathlib import Path

import gymnasium
import numpy as np
from matplotlib.figure import Figure

STEPS, RATE = 60, 0.3

if __name__ == "__main__":
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/train_view_env")
    world = {"dataset": "digits", "limit": 256, "image_size": 8, "batch_size": 32, "width": 4}
    env = gymnasium.make_vec("astra_gym:ASTrA/ViewAttack-v1", **world)
    draws = np.random.default_rng(0)
    # a row of logits for each part of an action: the indices of epsilon, steps and step size in their sets
    logits = [np.zeros(size) for size in env.single_action_space.nvec]
    env.reset(seed=0)
    curve = []
    for _ in range(STEPS):
        chances = [np.exp(row - row.max()) / np.exp(row - row.max()).sum() for row in logits]
        actions = np.stack([draws.choice(len(row), env.num_envs, p=row) for row in chances], axis=1)
        _, rewards, _, _, _ = env.step(actions)
        advantage = (rewards - rewards.mean()) / (rewards.std() + 1e-8)
        for part, (row, chance) in enumerate(zip(logits, chances, strict=True)):
            # the gradient of the log-probability of a softmax: one-hot minus probabilities
            chosen = np.bincount(actions[:, part], advantage, len(row)) / env.num_envs
            row += RATE * (chosen - chance * advantage.mean())
        curve.append(rewards.mean())
    figure = Figure(figsize=(7, 2.8), layout="constrained")
    figure.subplots().plot(curve)
    figure.axes[0].set(title="mean reward of a step", xlabel="target update")
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / "reward.png", dpi=100)
    best = ", ".join(str(int(row.argmax())) for row in logits)
    print(f"most likely indices of epsilon, steps, step size: {best}; sizes {env.single_action_space.nvec}")
