"""MoCo's and MoCo v3's losses against NumPy and closed forms."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from astra_gym.ssl_core.losses.keys import moco, moco_v3
from tests.helpers.draws import generator

N, D, K, T = 4, 5, 7, 0.3


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def share(positive: float, all_of_them: list[float]) -> float:
    return -np.log(np.exp(positive / T) / sum(np.exp(each / T) for each in all_of_them))


def test_each_query_meets_its_partners_key_and_the_queue_of_the_partners_kind() -> None:
    q, k, queue = draw(2 * N, D, seed=0), draw(2 * N, D, seed=1), F.normalize(draw(2, K, D, seed=2), dim=2)
    queries, keys, kept = unit(q.numpy()), unit(k.numpy()), queue.numpy()
    expected, of_batch = [], []
    for i in range(2 * N):
        partner = i + 1 - 2 * (i % 2)
        own = float(queries[i] @ keys[partner])
        expected.append(share(own, [own, *(float(queries[i] @ n) for n in kept[partner % 2])]))
        of_batch.append(2 * T * share(own, [float(queries[i] @ key) for key in keys[partner % 2 :: 2]]))
    np.testing.assert_allclose(moco(q, k, queue, T, "none").numpy(), expected, rtol=1e-12)
    np.testing.assert_allclose(moco_v3(q, k, T, "none").numpy(), of_batch, rtol=1e-12)
    assert moco(q, k, queue, T).item() == pytest.approx(np.mean(expected))
    # both views' mean losses are added: twice the mean over rows
    assert 2 * moco_v3(q, k, T).item() == pytest.approx(np.mean(of_batch[0::2]) + np.mean(of_batch[1::2]))
    for loss in (lambda a, b: moco(a, b, queue, T), lambda a, b: moco_v3(a, b, T)):
        assert torch.autograd.gradcheck(loss, (q.requires_grad_(), k.requires_grad_()))


def test_closed_forms() -> None:
    q, queue = torch.ones(2, 3), torch.eye(3)[None].repeat(2, 1, 1)[:, :2]
    # one positive at cosine 1, two negatives at 1 / sqrt(3)
    expected = np.log(1 + 2 * np.exp((1 / np.sqrt(3) - 1) / 0.2))
    torch.testing.assert_close(moco(q, q, queue), torch.tensor(expected, dtype=torch.float32))
    # all keys alike: a guess among N images
    assert moco_v3(torch.ones(8, 3), torch.ones(8, 3)).item() == pytest.approx(0.4 * np.log(4), rel=1e-6)


def test_bad_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="views in pairs"):
        moco_v3(torch.zeros(3, 2), torch.zeros(3, 2))
    with pytest.raises(ValueError, match="the queue is"):
        moco(torch.zeros(4, 2), torch.zeros(4, 2), torch.zeros(2, 5, 3))
    with pytest.raises(ValueError, match="temperature is 0"):
        moco_v3(torch.zeros(4, 2), torch.zeros(4, 2), 0)
