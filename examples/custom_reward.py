"""A custom reward term: reward an attack for how far it moves a view's embedding.

python examples/custom_reward.py runs/custom_reward
tensorboard --logdir runs        # the curve is reward/shift
"""

import sys
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor
from torch.nn import functional as F

from astra_gym.envs.rewards.term import FrozenAttack, RewardTerm
from astra_gym.experiments.runs.metrics import read_metrics
from astra_gym.experiments.train_agent import main

TINY = "--limit 256 --batch_size 64 --epochs 3 --width 4 --evaluate false --device cpu"


class Shift(RewardTerm):
    """One minus the cosine between a view's clean and attacked embeddings: 0 to 2, one value per view."""

    def frozen(self, attack: FrozenAttack) -> Mapping[str, Tensor]:
        return {"shift": 1 - F.cosine_similarity(attack.clean_embeddings, attack.adversarial_embeddings)}


if __name__ == "__main__":
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/custom_reward")
    if status := main([*TINY.split(), "--reward_weights.custom_reward:Shift", "0.5", "--run_dir", str(folder)]):
        sys.exit(status)
    values = [row["reward/shift"] for row in read_metrics(folder / "metrics.jsonl")]
    print(f"reward/shift, the mean of each update: {', '.join(f'{value:.3f}' for value in values)}")
