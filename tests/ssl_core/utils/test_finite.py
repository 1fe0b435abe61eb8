import numpy as np
import pytest
import torch

from astra_gym.ssl_core.utils.finite import not_finite

NAN, INF = float("nan"), float("inf")


def test_what_is_not_finite_is_named_in_order() -> None:
    numbers = {
        "policy": {"weight": torch.tensor([0.0, NAN]), "bias": torch.zeros(2)},
        "optimizer": [{"lr": 0.1, "betas": (0.9, INF)}, {"step": 3, "name": "adam", "on": True, "none": None}],
        "half": torch.tensor([1.0, -INF], dtype=torch.bfloat16),
        "double": torch.tensor([[NAN]], dtype=torch.float64),
        "array": np.array([1.0, NAN, 2.0], np.float32),
        "number": np.float32("inf"),
    }
    expected = ["policy/weight", "optimizer/0/betas/1", "half", "double", "array", "number"]
    assert not_finite(numbers) == expected
    assert not_finite(torch.tensor([INF])) == [""] and not_finite(-INF) == [""]


@pytest.mark.parametrize(
    "fine",
    [
        torch.tensor([3e38, 3e38, -3e38]),  # whose sum, and whose norm, are not
        np.array([3e38, 3e38], np.float32),
        torch.empty(0),
        np.empty(0),
        torch.tensor([2**62]),
        torch.tensor([True]),
        np.array(["text"]),
        None,
        "nan",
        10**400,
    ],
)
def test_what_is_finite_is_not_named(fine: object) -> None:
    assert not_finite({"it": [fine]}) == []


def test_nothing_is_changed_and_gradients_do_not_matter() -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    assert not_finite({"weight": weight}) == [] and weight.grad_fn is None
