import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from astra_gym.ssl_core.losses.contrastive import kl_divergence, mixed_nt_xent, nearest_is_partner, nt_xent, trades
from tests.helpers.draws import embeddings


def numpy_nt_xent(z: np.ndarray, temperature: float) -> np.ndarray:
    """SimCLR's algorithm 1, written with loops; the self term is taken out as ACL does, by subtracting exp(1/t)."""
    z = z / np.linalg.norm(z, axis=1, keepdims=True)
    losses = []
    for i in range(len(z)):
        partner = i + 1 if i % 2 == 0 else i - 1
        denominator = sum(math.exp(float(z[i] @ z[j]) / temperature) for j in range(len(z))) - math.exp(1 / temperature)
        losses.append(-math.log(math.exp(float(z[i] @ z[partner]) / temperature) / denominator))
    return np.array(losses)


@pytest.mark.parametrize("temperature", [0.1, 0.5, 2.0])
@pytest.mark.parametrize("n", [2, 4, 10])
def test_nt_xent_equals_the_papers_algorithm(n: int, temperature: float) -> None:
    z = embeddings(n=n, d=6)
    expected = numpy_nt_xent(z.numpy(), temperature)
    torch.testing.assert_close(nt_xent(z, temperature, "none"), torch.from_numpy(expected))
    torch.testing.assert_close(nt_xent(z, temperature).item(), expected.mean())
    torch.testing.assert_close(nt_xent(z, temperature, "sum").item(), expected.sum())


def test_identical_embeddings_give_the_log_of_the_candidates() -> None:
    z = torch.ones(8, 3, dtype=torch.float64)
    torch.testing.assert_close(nt_xent(z).item(), math.log(7))


def test_orthogonal_images_with_identical_views_in_closed_form() -> None:
    z = torch.eye(4, dtype=torch.float64).repeat_interleave(2, dim=0)
    expected = -math.log(math.exp(2) / (math.exp(2) + 6))
    torch.testing.assert_close(nt_xent(z, 0.5).item(), expected)


def test_one_image_has_no_negatives_and_no_loss() -> None:
    assert nt_xent(embeddings(n=2, d=6)).item() == pytest.approx(0, abs=1e-12)


def test_invariances() -> None:
    z = embeddings(n=12, d=6)
    loss = nt_xent(z)
    torch.testing.assert_close(nt_xent(z * torch.rand(12, 1, dtype=torch.float64).add(0.5)), loss)
    images = torch.tensor([3, 0, 5, 1, 4, 2])
    torch.testing.assert_close(nt_xent(z.view(6, 2, -1)[images].flatten(0, 1)), loss)
    torch.testing.assert_close(nt_xent(z.view(6, 2, -1).flip(1).flatten(0, 1)), loss)
    rotation, _ = torch.linalg.qr(embeddings(1, n=6, d=6))
    torch.testing.assert_close(nt_xent(z @ rotation), loss)


def test_gradients_by_finite_differences() -> None:
    z = embeddings(n=6, d=4).requires_grad_()
    assert torch.autograd.gradcheck(nt_xent, (z,))
    other = embeddings(2, n=6, d=4).requires_grad_()
    for reading in ("pairs", "views"):
        assert torch.autograd.gradcheck(lambda a, b, r=reading: mixed_nt_xent(a, b, reading=r), (z, other))


def test_small_temperature_stays_finite() -> None:
    assert torch.isfinite(nt_xent(embeddings(n=8, d=6).float(), 0.005)).all()


def test_mixed_as_coded_is_one_nt_xent_over_all_pairs() -> None:
    clean, adversarial = embeddings(n=8, d=6), embeddings(1, n=8, d=6)
    rows = np.empty((16, 6))
    rows[0::2], rows[1::2] = clean.numpy(), adversarial.numpy()
    expected = numpy_nt_xent(rows, 0.5)
    torch.testing.assert_close(mixed_nt_xent(clean, adversarial).item(), expected.mean())
    each = torch.from_numpy(expected.reshape(8, 2).mean(axis=1))
    torch.testing.assert_close(mixed_nt_xent(clean, adversarial, reduction="none"), each)


def test_mixed_as_drawn_is_the_sum_over_the_two_views() -> None:
    clean, adversarial = embeddings(n=8, d=6), embeddings(1, n=8, d=6)
    total = 0.0
    for view in (0, 1):
        rows = np.empty((8, 6))
        rows[0::2], rows[1::2] = clean.numpy()[view::2], adversarial.numpy()[view::2]
        total += numpy_nt_xent(rows, 0.5).mean()
    torch.testing.assert_close(mixed_nt_xent(clean, adversarial, reading="views").item(), total)
    each = mixed_nt_xent(clean, adversarial, reading="views", reduction="none")
    torch.testing.assert_close(each.mean().item(), total)


def test_only_the_coded_reading_has_the_other_view_as_a_negative() -> None:
    # two views with the same embedding: as coded they repel each other, as drawn they never meet
    z = torch.eye(3, dtype=torch.float64).repeat_interleave(2, dim=0)
    drawn = 2 * -math.log(math.exp(2) / (math.exp(2) + 4))
    coded = -math.log(math.exp(2) / (3 * math.exp(2) + 8))
    torch.testing.assert_close(mixed_nt_xent(z, z, reading="views").item(), drawn)
    torch.testing.assert_close(mixed_nt_xent(z, z, reading="pairs").item(), coded)


@pytest.mark.parametrize("shape", [(3, 4), (0, 4), (4,), (2, 2, 2)])
def test_wrong_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected \(2N, d\)"):
        nt_xent(torch.zeros(shape))


def test_other_bad_arguments_are_refused() -> None:
    z = embeddings(n=4, d=6)
    with pytest.raises(ValueError, match="temperature"):
        nt_xent(z, 0.0)
    with pytest.raises(ValueError, match="reduction"):
        nt_xent(z, reduction="median")
    with pytest.raises(ValueError, match="reading"):
        mixed_nt_xent(z, z, reading="both")
    with pytest.raises(ValueError, match="expected"):
        mixed_nt_xent(z, z[:2])


def numpy_trades(clean: np.ndarray, adversarial: np.ndarray, labels: np.ndarray, beta: float) -> np.ndarray:
    """-log p_y + beta * sum over classes of p log(p / q), from the probabilities."""
    p, q = (np.exp(z) / np.exp(z).sum(axis=1, keepdims=True) for z in (clean, adversarial))
    return -np.log(p[np.arange(len(p)), labels]) + beta * (p * np.log(p / q)).sum(axis=1)


def test_kl_divergence_of_two_classes_in_closed_form() -> None:
    # p = (3/4, 1/4), q = (1/2, 1/2)
    p, q = torch.tensor([[math.log(3), 0.0]], dtype=torch.float64), torch.zeros(1, 2, dtype=torch.float64)
    assert kl_divergence(p, q).tolist() == pytest.approx([0.75 * math.log(1.5) + 0.25 * math.log(0.5)])
    assert kl_divergence(q, p).tolist() == pytest.approx([0.5 * math.log(2 / 3) + 0.5 * math.log(2)])


def test_kl_divergence_is_torchs_and_ignores_what_softmax_ignores() -> None:
    p, q = embeddings(n=9, d=6), embeddings(1, n=9, d=6)
    expected = F.kl_div(F.log_softmax(q, 1), F.softmax(p, 1), reduction="none").sum(1)
    torch.testing.assert_close(kl_divergence(p, q), expected)
    torch.testing.assert_close(kl_divergence(p + 5, q - torch.arange(9.0).view(-1, 1)), expected)
    assert bool((expected > 0).all())
    assert kl_divergence(p, p).tolist() == [0.0] * 9


def test_kl_divergence_of_certain_answers_stays_finite() -> None:
    p, q = torch.tensor([[1e4, 0.0]], requires_grad=True), torch.tensor([[0.0, 1e4]], requires_grad=True)
    divergence = kl_divergence(p, q)
    assert divergence.item() == pytest.approx(1e4)
    divergence.sum().backward()
    assert p.grad is not None and q.grad is not None
    assert bool(p.grad.isfinite().all()) and q.grad.tolist() == [[-1.0, 1.0]]


@pytest.mark.parametrize("beta", [0.0, 1.0, 6.0])
def test_trades_equals_the_papers_formula(beta: float) -> None:
    clean, adversarial, labels = embeddings(n=7, d=6), embeddings(1, n=7, d=6), torch.arange(7) % 6
    expected = numpy_trades(clean.numpy(), adversarial.numpy(), labels.numpy(), beta)
    torch.testing.assert_close(trades(clean, adversarial, labels, beta, "none"), torch.from_numpy(expected))
    torch.testing.assert_close(trades(clean, adversarial, labels, beta).item(), expected.mean())
    torch.testing.assert_close(trades(clean, adversarial, labels, beta, "sum").item(), expected.sum())


def test_trades_weighs_robustness_with_six_unless_told() -> None:
    clean, adversarial, labels = embeddings(n=7, d=6), embeddings(1, n=7, d=6), torch.arange(7) % 6
    assert torch.equal(trades(clean, adversarial, labels), trades(clean, adversarial, labels, 6.0))


def test_trades_of_unmoved_images_is_the_cross_entropy_and_undecided_logits_give_log_of_the_classes() -> None:
    clean, labels = embeddings(n=7, d=6), torch.arange(7) % 6
    torch.testing.assert_close(trades(clean, clean, labels), F.cross_entropy(clean, labels))
    zero = torch.zeros(7, 6, dtype=torch.float64)
    torch.testing.assert_close(trades(zero, zero, labels).item(), math.log(6))


def test_trades_sends_its_gradient_through_both_sides() -> None:
    clean, adversarial = embeddings(n=5, d=4).requires_grad_(), embeddings(2, n=5, d=4).requires_grad_()
    labels = torch.arange(5) % 4
    assert torch.autograd.gradcheck(lambda a, b: trades(a, b, labels, reduction="none"), (clean, adversarial))
    (through_p,) = torch.autograd.grad(kl_divergence(clean, adversarial).sum(), clean)
    assert float(through_p.abs().max()) > 0


def test_trades_refuses_what_does_not_fit_together() -> None:
    z, labels = embeddings(n=4, d=6), torch.zeros(4, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"shapes \(4, 6\) and \(2, 6\): expected \(n, classes\) twice"):
        trades(z, z[:2], labels)
    with pytest.raises(ValueError, match=r"expected \(n, classes\) twice"):
        kl_divergence(z[0], z[0])
    with pytest.raises(ValueError, match=r"labels have shape \(3,\): expected \(4,\)"):
        trades(z, z, labels[:3])
    with pytest.raises(ValueError, match="beta is -1"):
        trades(z, z, labels, beta=-1)
    with pytest.raises(ValueError, match="reduction"):
        trades(z, z, labels, reduction="median")


def test_a_view_is_retrieved_if_its_partner_is_nearest_and_a_tie_is_a_failure() -> None:
    degrees = torch.tensor([0.0, 10.0, 30.0, 90.0, 180.0, 180.0, 180.0, 270.0], dtype=torch.float64)
    turned = torch.deg2rad(degrees)
    z = torch.stack([turned.cos(), turned.sin()], dim=1) * 2.0 ** torch.arange(8)[:, None]
    # 30's nearest is 10, not 90; 90's is 30; 180 stands three times, so that its partner is no nearer than another
    assert nearest_is_partner(z).tolist() == [True, True, False, True, False, False, False, False]
    assert nearest_is_partner(z[:2]).tolist() == [True, True]
