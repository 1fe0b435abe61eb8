"""An agent of Stable-Baselines3 on views: PPO, with its own class, callbacks and files.

python examples/sb3_ppo.py runs/sb3_ppo       # draws runs/sb3_ppo/reward.png
"""

import sys
from pathlib import Path

import gymnasium
from matplotlib.figure import Figure
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback

from astra_gym.envs.sb3_env import Sb3VecEnv

UPDATES = 24


class MeanReward(BaseCallback):
    """The mean reward of every step of the environment, which is one update of the target network."""

    def __init__(self) -> None:
        super().__init__()
        self.values: list[float] = []

    def _on_step(self) -> bool:
        self.values.append(float(self.locals["rewards"].mean()))
        return True


if __name__ == "__main__":
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/sb3_ppo")
    world = {"dataset": "digits", "limit": 256, "image_size": 8, "batch_size": 32, "width": 4}
    env = Sb3VecEnv(gymnasium.make_vec("astra_gym:ASTrA/ViewAttack-v1", **world))
    # an action decides its view's reward alone: no discount; one rollout is four target updates
    agent = PPO("MlpPolicy", env, n_steps=4, batch_size=64, gamma=0.0, seed=0, device="cpu")
    rewards = MeanReward()
    agent.learn(UPDATES * env.num_envs, callback=rewards)
    folder.mkdir(parents=True, exist_ok=True)
    agent.save(folder / "ppo.zip")
    figure = Figure(figsize=(7, 2.8), layout="constrained")
    figure.subplots().plot(rewards.values)
    figure.axes[0].set(title="mean reward of a step", xlabel="target update")
    figure.savefig(folder / "reward.png", dpi=100)
    print(f"{len(rewards.values)} target updates, the policy is in {folder / 'ppo.zip'}")
