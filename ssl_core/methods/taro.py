"""TARO: targeted attacks for frameworks without negatives."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from astra_gym.ssl_core.attacks.pgd import ConstantBudget, Objective
from astra_gym.ssl_core.losses.cosine import negative_cosine, partners
from astra_gym.ssl_core.losses.targets import select_targets, targeted_similarity
from astra_gym.ssl_core.methods.base import Networks
from astra_gym.ssl_core.methods.targets.siamese import Predictive
from astra_gym.ssl_core.methods.traits import LossTraits, NetworkTraits, Routes
from astra_gym.ssl_core.utils.finite import check_number


@dataclass(frozen=True)
class TARO(Predictive):
    """Targeted adversarial training without negatives (Kim et al. 2023), on SimSiam and one batch-norm route.

    Each view is pulled towards a view of the same kind (first among first, second among second), selected by similar
    features and uncertain predictions (`targets.select_targets`). With p the predictions, z the embeddings, and t the
    target's clean view, the attack maximizes `cos(p(x'), z(t)) + cos(p(t), z(x'))`, in [-2, 2]. As in the released code
    z is detached: the gradient goes through p(x') alone, and raises the first summand. The second is only reported, and
    early in training it may fall more than the first rises.

    With `S(a, b) = -1/2 [cos(p_a, sg z_b) + cos(p_b, sg z_a)]`, the clean first view x1 and the attacked views a1, a2,

    `L = S(x1, a1) + w2 * [S(a2, a1) + S(a2, x1)]`.

    The clean second view is not in the loss. x1, a1 and a2 go through the network one after the other, as separate
    batches of batch norm, as in the released code.

    Deviation: the released code selects targets in train mode, where the clean views update the running statistics.
    Here the selection is in eval mode like the attack: only the update's three passes change them.

    The reward's `adversarial` and `clean` are not the targeted similarity, which measures how near a view came to
    another image. They are SimSiam's loss between a view, attacked or clean, and its *clean* partner: S(x', partner)
    and S(x, partner), in [-1, 1]; -1 is agreement. `objective_for` is the targeted similarity.

    Args:
        temperature: not used, this loss has none.
        predictor_hidden: width of the predictor's hidden layer (512).
        similarity_weight: weight of the similarity in the selection, 0 or more (alpha1 in the released code).
        entropy_weight: weight of the entropy in the selection, 0 or more (alpha2).
        w2: weight of the two terms of the second attacked view, 0 or more.
    """

    similarity_weight: float = 1.0
    entropy_weight: float = 1.0
    w2: float = 1.0

    paper: ClassVar[str] = "Kim et al., NeurIPS 2023"
    summary: ClassVar[str] = "SimSiam; each view is pulled towards a similar, uncertain other image"
    routes: ClassVar[Routes] = Routes.single("normal")
    networks: ClassVar[NetworkTraits] = NetworkTraits(constant_head_lr=True)
    loss: ClassVar[LossTraits] = replace(Predictive.loss, is_objective=False, paired=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("similarity_weight", "entropy_weight", "w2"):
            check_number(name, getattr(self, name))
        if self.similarity_weight == self.entropy_weight == 0:
            raise ValueError("similarity_weight and entropy_weight are both 0: expected one above 0 to select by")

    def default_budget(self, step: int) -> ConstantBudget:
        """Epsilon 8/255, 10 steps of 2/255."""
        return ConstantBudget(epsilon=8 / 255, step_size=2 / 255, steps=10)

    # --- the attack --------------------------------------------------------------------------------------------------

    def selected(self, features: Tensor, predictions: Tensor) -> Tensor:
        """Select the row that each view is pulled towards, (2b,) int64: even for even rows, odd for odd.

        Args:
            features: (2b, f) of the clean views; rows 2k and 2k+1 are those of image k.
            predictions: (2b, d).
        """
        kinds = [
            2 * select_targets(features[kind::2], predictions[kind::2], self.similarity_weight, self.entropy_weight)
            + kind
            for kind in (0, 1)
        ]
        return torch.stack(kinds, dim=1).flatten()

    def objective(self, z: Tensor) -> Tensor:
        """Not defined without the targets: see `objective_for`."""
        raise NotImplementedError("TARO selects a target for each view: its objective is objective_for's")

    def objective_for(self, networks: Networks, views: Tensor) -> Objective:
        """Similarity of each view to the clean view selected for it, (2b,) in [-2, 2]."""
        features, clean = self.joined(networks, views, self.routes.clean)
        predictions, embeddings = clean.chunk(2, dim=1)
        target = self.selected(features, predictions)
        p_target, z_target = predictions[target], embeddings[target]

        def objective(z: Tensor) -> Tensor:
            p, own = z.chunk(2, dim=1)
            return targeted_similarity(p, own, p_target, z_target)

        return objective

    def reward_terms(self, objective: Objective, clean: Tensor, adversarial: Tensor) -> dict[str, Tensor]:
        """SimSiam's loss of the attacked and of the clean views, each with its clean partner, (2b,) in [-1, 1]."""
        partner = partners(clean)
        return {"adversarial": agreement(adversarial, partner), "clean": agreement(clean, partner)}

    # --- the update --------------------------------------------------------------------------------------------------

    def losses(self, networks: Networks, views: Tensor, adversarial: Tensor | None) -> dict[str, Tensor]:
        """S(x1, a1) as `clean`, S(a2, a1) as `adversarial` and S(a2, x1) as `mixed`, (b,) each."""
        attacked = self.given(adversarial)
        images = views[0::2], attacked[0::2], attacked[1::2]
        x1, a1, a2 = (self.joined(networks, each, self.routes.attack).embeddings for each in images)
        return {"clean": agreement(x1, a1), "adversarial": agreement(a2, a1), "mixed": agreement(a2, x1)}

    @property
    def weights(self) -> Mapping[str, float]:
        return {"clean": 1.0, "adversarial": self.w2, "mixed": self.w2}


def agreement(first: Tensor, second: Tensor) -> Tensor:
    """S of each row: `-1/2 [cos(p, sg z') + cos(p', sg z)]`, (n,) in [-1, 1].

    Args:
        first, second: predictions beside embeddings, (n, 2d) each.
    """
    (p, z), (p_other, z_other) = first.chunk(2, dim=1), second.chunk(2, dim=1)
    return (negative_cosine(p, z_other, reduction="none") + negative_cosine(p_other, z, reduction="none")) / 2
