"""What an attack reports on request: steps, and the gradient at each image's own last step."""

import torch
from torch import Tensor

from astra_gym.ssl_core.attacks.pgd import AttackReport, Budget, pgd
from astra_gym.ssl_core.losses.contrastive import nt_xent
from astra_gym.ssl_core.models.target_network import build_network
from tests.helpers.draws import generator


def test_the_slope_is_that_of_the_images_own_last_step() -> None:
    """The gradient of sum x^2 / 2 at x is x, so that the slope is the sum of the image before its last step."""
    images = torch.full((4, 3, 2, 2), 0.5)
    budget = Budget(epsilon=torch.full((4,), 0.4), step_size=torch.full((4,), 0.1), steps=torch.tensor([2, 0, 3, 1]))
    report = AttackReport()
    pgd(
        lambda x, rows: x.flatten(1),
        lambda z: z.square().sum(1) / 2,
        images,
        budget,
        start="zero",
        granularity=3,
        report=report,
    )
    torch.testing.assert_close(report.slopes, 12 * torch.tensor([0.6, 0.0, 0.7, 0.5]))
    assert report.steps.tolist() == [2, 0, 3, 1]


def test_a_report_changes_no_bit_of_the_attack() -> None:
    network = build_network(generator(), arch="resnet10", width=2, projector_dim=8).eval().requires_grad_(False)
    images = torch.rand(8, 3, 8, 8, generator=generator(1))
    budget = Budget(epsilon=torch.full((8,), 8 / 255), step_size=torch.full((8,), 2 / 255), steps=torch.arange(8) % 4)

    def attacked(report: AttackReport | None) -> tuple[Tensor, Tensor]:
        return pgd(
            lambda x, rows: network(x, "pgd").embeddings,
            lambda z: nt_xent(z, reduction="none"),
            images,
            budget,
            generator=generator(2),
            report=report,
        )

    report = AttackReport()
    for without, with_it in zip(attacked(None), attacked(report), strict=True):
        assert torch.equal(without, with_it)
    assert (report.slopes > 0).tolist() == (budget.steps > 0).tolist()
