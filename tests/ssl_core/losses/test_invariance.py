import math

import numpy as np
import pytest
import torch
from torch import Tensor

from astra_gym.ssl_core.losses.invariance import air, sir
from tests.helpers.draws import embeddings

T = 0.3


def share(a: Tensor, b: Tensor) -> np.ndarray:
    x, y = a.numpy(), b.numpy()
    similarity = np.array([u @ v / np.linalg.norm(u) / np.linalg.norm(v) for u, v in zip(x, y, strict=True)]) / T
    return np.exp(similarity) / np.exp(similarity).sum()


def divergence(p: np.ndarray, q: np.ndarray, form: str) -> float:
    """What torch's kl_div makes of probabilities p in place of logarithms, or KL(q || p)."""
    return float((q * (np.log(q) - p)).sum() if form == "released" else (q * np.log(q / p)).sum())


@pytest.mark.parametrize("form", ["released", "kl"])
def test_against_numpy(form: str) -> None:
    first, second, original, attacked, other = map(embeddings, range(5))
    p, q = share(first, original), share(second, original)
    assert sir(first, second, original, T, form).item() == pytest.approx(divergence(p, q, form), rel=1e-10)
    p = share(attacked, original) * share(attacked, first)
    q = share(other, original) * share(other, second)
    found = air(attacked, other, first, second, original, T, form).item()
    assert found == pytest.approx(divergence(p, q, form), rel=1e-10)


def test_the_released_form_is_what_torch_gives_for_probabilities() -> None:
    first, second, original = map(embeddings, range(3))
    p, q = (torch.as_tensor(share(view, original)) for view in (first, second))
    theirs = torch.nn.functional.kl_div(p, q.log(), log_target=True, reduction="sum")
    assert sir(first, second, original, T).item() == pytest.approx(theirs.item())


def test_views_that_are_alike_have_no_divergence() -> None:
    view, original = embeddings(0), embeddings(1)
    assert sir(view, view, original, T, "kl").item() == pytest.approx(0, abs=1e-12)
    assert air(view, view, view, view, original, T, "kl").item() == pytest.approx(0, abs=1e-12)
    assert sir(embeddings(2), view, original, T, "kl").item() > 0
    # a high temperature makes every share 1 / B, and the released form what it is there
    flat = sir(embeddings(2), view, original, 1e9).item()
    assert flat == pytest.approx(-math.log(6) - 1 / 6, rel=1e-6)


def test_the_order_of_the_batch_does_not_matter() -> None:
    made, order = [embeddings(seed) for seed in range(5)], torch.tensor([3, 0, 5, 4, 1, 2])
    for form in ("released", "kl"):
        torch.testing.assert_close(air(*(each[order] for each in made), T, form), air(*made, T, form))


@pytest.mark.parametrize("form", ["released", "kl"])
def test_gradients(form: str) -> None:
    made = [embeddings(seed, 3).requires_grad_() for seed in range(5)]
    torch.autograd.gradcheck(lambda *z: air(*z, T, form), made)
    torch.autograd.gradcheck(lambda *z: sir(*z, T, form), made[:3])


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="twice"):
        sir(embeddings(0), embeddings(1), embeddings(2, 4))
    with pytest.raises(ValueError, match="temperature is 0"):
        sir(embeddings(0), embeddings(1), embeddings(2), 0)
    with pytest.raises(ValueError, match="form of the divergence"):
        sir(embeddings(0), embeddings(1), embeddings(2), form="js")
