"""The rule of free adversarial training on three pixels, by hand."""

import torch

from astra_gym.ssl_core.attacks.free import FreePerturbations
from astra_gym.ssl_core.attacks.pgd import Budget


def pixels(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64).view(1, 3, 1, 1)


def test_perturbations_are_carried_clipped_and_moved_by_the_last_slope() -> None:
    free, images = FreePerturbations(), pixels(0.5, 0.5, 0.98)
    budget = Budget.uniform(1, epsilon=0.05, step_size=0.03, steps=2)

    def moved(given: torch.Tensor, replay: int) -> list[float]:
        return [round(value, 6) for value in free.move(given, budget, replay).flatten().tolist()]

    # no slope at first
    assert moved(images, 0) == [0.5, 0.5, 0.98]
    free.follow(pixels(2.0, -0.1, 7.0))
    assert moved(images, 1) == [0.53, 0.47, 1.0]
    # no slope came of an update: the old one stays; the second step meets the ball and the range
    free.follow(None)
    assert moved(images, 1) == [0.55, 0.45, 1.0]
    # the budget is spent in the third replay
    assert moved(images, 2) == [0.55, 0.45, 1.0]
    # on another image what was clipped to the range is not found again
    state = free.state_dict()
    assert moved(pixels(0.2, 0.2, 0.2), 2) == [0.25, 0.15, 0.22]
    free.load_state_dict(state, torch.device("cpu"))
    assert moved(pixels(0.2, 0.2, 0.2), 2) == [0.25, 0.15, 0.22]
