import numpy as np
import pytest
import torch
from torch import Tensor

from astra_gym.ssl_core.models.init import build_module
from astra_gym.ssl_core.models.projectors import PROJECTORS, Projector
from tests.helpers.draws import generator

ROUTES = ("normal", "pgd")
NAMES = {  # size of the layer's outputs, its batch norm, ReLU, bias
    "acl": [(6, "own", True, True), (4, "own", True, False), (4, "own", False, False)],
    "rocl": [(6, "", True, True), (4, "", False, True)],
    "advcl": [(6, "shared", True, False), (4, "", False, True)],
    "simsiam-2": [(6, "own", True, False), (4, "plain", False, False)],
    "simsiam-3": [(6, "own", True, False), (6, "own", True, False), (4, "plain", False, False)],
    "mlp": [(6, "own", True, False), (4, "", False, True)],
    "mlp-3": [(6, "own", True, False), (6, "own", True, False), (4, "", False, True)],
    "none": [],
}


def built(name: str) -> Projector:
    head = build_module(generator(), lambda: Projector(PROJECTORS[name], 5, 6, 4, ROUTES)).double()
    for parameter in head.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator(1), dtype=torch.float64)
    return head


def features(seed: int = 2) -> Tensor:
    return torch.randn(8, 5, generator=generator(seed), dtype=torch.float64)


def by_hand(name: str, state: dict[str, np.ndarray], z: np.ndarray, route: str) -> np.ndarray:
    """The head in train mode, where batch norm takes the batch's own mean and variance."""
    for index, (_, norm, rectify, bias) in enumerate(NAMES[name]):
        z = z @ state[f"linears.{index}.weight"].T
        if bias:
            z = z + state[f"linears.{index}.bias"]
        if norm:
            z = (z - z.mean(0)) / np.sqrt(z.var(0) + 1e-5)
        if norm in ("own", "shared"):
            place = f"norms.{index}.by_route.{route if norm == 'own' else 'shared'}"
            z = z * state[f"{place}.weight"] + state[f"{place}.bias"]
        if rectify:
            z = np.maximum(z, 0)
    return z


def test_every_projector_is_looked_at() -> None:
    assert list(NAMES) == list(PROJECTORS)


@pytest.mark.parametrize("name", NAMES)
def test_equals_its_layers_by_hand(name: str) -> None:
    head = built(name).train()
    state = {key: value.numpy().copy() for key, value in head.state_dict().items()}
    for route in ROUTES:
        z = head(features(), route)
        np.testing.assert_allclose(z.detach().numpy(), by_hand(name, state, features().numpy(), route), rtol=1e-10)
        assert z.shape == (8, head.outputs) == (8, 4 if NAMES[name] else 5)
    weights = {key for key in state if key.startswith("linears.")}
    biases = {f"linears.{index}.bias" for index, layer in enumerate(NAMES[name]) if layer[3]}
    assert weights == biases | {f"linears.{index}.weight" for index in range(len(NAMES[name]))}
    for index, (size, *_) in enumerate(NAMES[name]):
        assert len(state[f"linears.{index}.weight"]) == size


def test_a_shared_batch_norm_follows_every_route_and_others_their_own() -> None:
    for name, follows in (("advcl", True), ("mlp", False)):
        head = built(name).train()
        quiet = head.eval()(features(3), "normal").detach()
        head.train()(features(), "pgd")
        assert torch.allclose(head.eval()(features(3), "normal"), quiet) != follows


def test_plain_batch_norm_standardizes_and_has_nothing_to_learn() -> None:
    head = built("simsiam-2").train()
    z = head(features(), "pgd")
    torch.testing.assert_close(z.mean(0), torch.zeros(4, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(z.var(0, correction=0), torch.ones(4, dtype=torch.float64), rtol=1e-2, atol=0)
    assert not [key for key, _ in head.named_parameters() if key.startswith("norms.1")]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("training", [True, False])
def test_gradients(name: str, training: bool) -> None:
    head = built(name).train(training)
    assert torch.autograd.gradcheck(lambda x: head(x, "pgd"), features().requires_grad_())
