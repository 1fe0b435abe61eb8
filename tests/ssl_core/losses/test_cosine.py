import numpy as np
import pytest
import torch

from astra_gym.ssl_core.losses.cosine import byol, negative_cosine, partners, symmetric_byol, symmetric_negative_cosine
from tests.helpers.draws import embeddings


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def test_against_numpy_row_by_row() -> None:
    p, z = embeddings(0), embeddings(1)
    plain = [-cosine(a, b) for a, b in zip(p.numpy(), z.numpy(), strict=True)]
    crossed = [-cosine(p.numpy()[i], z.numpy()[j]) for i, j in enumerate([1, 0, 3, 2, 5, 4])]
    np.testing.assert_allclose(negative_cosine(p, z, reduction="none"), plain, rtol=1e-12)
    np.testing.assert_allclose(symmetric_negative_cosine(p, z, reduction="none"), crossed, rtol=1e-12)
    # on the unit sphere 2 - 2 cos is the squared distance
    unit = [each / each.norm(dim=1, keepdim=True) for each in (p, z)]
    torch.testing.assert_close(byol(p, z, reduction="none"), (unit[0] - unit[1]).square().sum(dim=1))
    np.testing.assert_allclose(symmetric_byol(p, z, reduction="none"), 2 + 2 * np.array(crossed), rtol=1e-12)
    assert negative_cosine(p, z).item() == pytest.approx(np.mean(plain))
    assert negative_cosine(p, z, reduction="sum").item() == pytest.approx(np.sum(plain))


def test_closed_forms() -> None:
    z = embeddings(0)
    assert negative_cosine(3 * z, z).item() == pytest.approx(-1) and byol(z, -z).item() == pytest.approx(4)
    orthogonal = torch.eye(4, dtype=torch.float64)
    assert negative_cosine(orthogonal, orthogonal.roll(1, 0)).item() == 0
    assert byol(orthogonal, orthogonal.roll(1, 0)).item() == 2
    alike = embeddings(0, 3).repeat_interleave(2, dim=0)
    assert symmetric_negative_cosine(alike, alike).item() == pytest.approx(-1)
    assert symmetric_byol(alike, alike).item() == pytest.approx(0, abs=1e-12)


def test_partners_change_places() -> None:
    assert partners(torch.arange(6)).tolist() == [1, 0, 3, 2, 5, 4]
    with pytest.raises(ValueError, match="expected pairs"):
        partners(torch.arange(3))


def test_the_order_of_the_images_does_not_matter() -> None:
    p, z = embeddings(0), embeddings(1)
    order = torch.tensor([4, 5, 0, 1, 2, 3])
    values = symmetric_byol(p, z, reduction="none")
    torch.testing.assert_close(symmetric_byol(p[order], z[order], reduction="none"), values[order])


@pytest.mark.parametrize("loss", [negative_cosine, byol, symmetric_negative_cosine, symmetric_byol])
def test_gradients_and_where_they_stop(loss) -> None:
    p, z = embeddings(0).requires_grad_(), embeddings(1).requires_grad_()
    torch.autograd.gradcheck(lambda a, b: loss(a, b, False, "none"), (p, z))
    assert torch.autograd.grad(loss(p, z), (p, z), allow_unused=True)[1] is None
    assert torch.autograd.grad(loss(p, z), p)[0].abs().sum() > 0


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="twice"):
        negative_cosine(embeddings(0), embeddings(1, 4))
    with pytest.raises(ValueError, match="reduction is 'max'"):
        byol(embeddings(0), embeddings(1), reduction="max")
