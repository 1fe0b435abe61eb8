import numpy as np
import pytest
import torch
from torch import Tensor

from astra_gym.ssl_core.losses.targets import select_targets, similarity_entropy_scores, targeted_similarity
from tests.helpers.draws import embeddings


def scores_by_hand(features: np.ndarray, logits: np.ndarray, a1: float, a2: float) -> np.ndarray:
    n = len(features)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    entropy = -(shares * np.log(shares)).sum(axis=1)
    made = np.zeros((n, n))
    for i in range(n):
        row = np.array([0.5 if i == j else (unit[i] @ unit[j] + 1) / 2 for j in range(n)])
        certain = entropy / entropy.min()
        made[i] = a1 * row / np.linalg.norm(row) + a2 * certain / np.linalg.norm(certain)
    return made


@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.0, 0.0), (0.3, 2.0)])
def test_scores_and_targets_against_numpy(weights: tuple[float, float]) -> None:
    features, logits = embeddings(0), embeddings(1)
    expected = scores_by_hand(features.numpy(), logits.numpy(), *weights)
    np.testing.assert_allclose(similarity_entropy_scores(features, logits, *weights), expected, rtol=1e-10)
    assert select_targets(features, logits, *weights).tolist() == expected.argmax(axis=1).tolist()


def test_the_most_similar_or_the_least_certain_is_chosen() -> None:
    angles = torch.tensor([0.0, 0.1, 1.0, 1.3], dtype=torch.float64)
    features = torch.stack([angles.cos(), angles.sin()], dim=1)
    logits = torch.zeros(4, 3, dtype=torch.float64)
    assert select_targets(features, logits).tolist() == [1, 0, 3, 2]
    logits[[0, 1, 3], 0] = 5.0
    assert select_targets(features, logits, similarity_weight=0.0).tolist() == [2, 2, 2, 2]


def test_certain_predictions_count_for_nothing() -> None:
    scores = similarity_entropy_scores(embeddings(0), torch.tensor([[1e6, 0.0]]).expand(6, 2).double())
    assert scores.isfinite().all()
    torch.testing.assert_close(scores, similarity_entropy_scores(embeddings(0), embeddings(1), 1.0, 0.0))


def test_a_permuted_batch_has_permuted_targets() -> None:
    features, logits, order = embeddings(0), embeddings(1), torch.tensor([4, 2, 0, 5, 1, 3])
    chosen = select_targets(features, logits)
    assert order[select_targets(features[order], logits[order])].tolist() == chosen[order].tolist()


def test_the_similarity_to_the_target_and_its_gradients() -> None:
    p, z, pt, zt = (embeddings(seed).requires_grad_() for seed in range(4))

    def cosine(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).sum(dim=1) / a.norm(dim=1) / b.norm(dim=1)

    torch.testing.assert_close(targeted_similarity(p, z, pt, zt), cosine(p, zt) + cosine(pt, z))
    torch.autograd.gradcheck(lambda *x: targeted_similarity(*x, stop=False), (p, z, pt, zt))
    stopped = torch.autograd.grad(targeted_similarity(p, z, pt, zt).sum(), (p, z, pt, zt), allow_unused=True)
    assert stopped[1] is None and stopped[3] is None and stopped[0].abs().sum() > 0
    same = embeddings(0)
    torch.testing.assert_close(targeted_similarity(same, same, same, same), torch.full((6,), 2.0, dtype=torch.float64))


def test_bad_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="n >= 2"):
        select_targets(embeddings(0, 1), embeddings(1, 1))
    with pytest.raises(ValueError, match="four times"):
        targeted_similarity(embeddings(0), embeddings(0), embeddings(0), embeddings(0, 4))
