"""A custom method: alignment and uniformity (Wang and Isola, ICML 2020) of clean and of attacked views.

python examples/custom_method.py runs/custom_method
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import functional as F

from astra_gym.experiments.runs.metrics import read_metrics
from astra_gym.experiments.train_agent import main
from astra_gym.ssl_core.methods.base import Method
from astra_gym.ssl_core.methods.traits import LossTraits

TINY = "--limit 256 --batch_size 64 --epochs 2 --width 4 --evaluate false --device cpu"


@dataclass(frozen=True)
class AlignUniform(Method):
    """L = (l(clean) + l(attacked)) / 2. A view's l is the squared distance to the other view of its image, plus
    `uniformity` times the log of the view's mean Gaussian potential with all other views."""

    uniformity: float = 1.0  # --method_kwargs.uniformity 2

    paper = "Wang and Isola, ICML 2020"
    summary = "alignment and uniformity of clean and of attacked views"
    # the defaults of `Method` hold: two views per image (rows 2k and 2k+1), all attacked, 8/255 in 5 steps of 2/255
    loss = LossTraits(nt_xent_based=False, has_temperature=False)

    def objective(self, z):
        """Return l of each view, (2N,), for embeddings (2N, d). The attack maximizes l; the reward compares the l of
        clean and of attacked views."""
        z = F.normalize(z, dim=1)
        partner = z.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)
        potential = 4 * z @ z.T - 4  # -2 * squared distance
        itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
        uniform = potential.masked_fill(itself, -torch.inf).logsumexp(dim=1) - torch.tensor(len(z) - 1.0).log()
        return (z - partner).square().sum(dim=1) + self.uniformity * uniform

    def losses(self, networks, views, adversarial):
        """Return named terms; clean and attacked views each take their own batch-norm route."""
        clean = networks(views, self.routes.clean).embeddings
        attacked = networks(self.given(adversarial), self.routes.attack).embeddings
        return {"clean": self.objective(clean), "adversarial": self.objective(attacked)}

    @property
    def weights(self):
        return {"clean": 0.5, "adversarial": 0.5}


if __name__ == "__main__":
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/custom_method")
    if status := main([*TINY.split(), "--method", "custom_method:AlignUniform", "--run_dir", str(folder)]):
        sys.exit(status)
    first, *_, last = (row["loss/total"] for row in read_metrics(folder / "metrics.jsonl"))
    print(f"loss of the first update {first:.3f}, of the last {last:.3f}")
