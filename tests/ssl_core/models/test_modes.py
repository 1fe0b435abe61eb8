import pytest
import torch
from torch import nn

from astra_gym.ssl_core.models.modes import floating_state, frozen
from tests.helpers.tiny_networks import tiny_network


@pytest.mark.parametrize("training", [False, True])
def test_freezing_sets_every_flag_and_gives_back_each_as_it_was(training: bool) -> None:
    network = tiny_network().train()
    network.projector.eval()
    learned = list(network.parameters())
    learned[0].requires_grad_(False)
    modes = [part.training for part in network.modules()]
    with pytest.raises(KeyError), frozen(network, training):
        assert {part.training for part in network.modules()} == {training}
        assert not any(weight.requires_grad for weight in learned)
        raise KeyError
    assert [part.training for part in network.modules()] == modes
    assert [weight.requires_grad for weight in learned] == [False] + [True] * (len(learned) - 1)


def test_the_floating_state_is_that_of_the_state_dict() -> None:
    network = nn.ModuleDict({"network": tiny_network(), "plain": nn.BatchNorm1d(3, affine=False)})
    found, expected = floating_state(network), network.state_dict().values()
    kept = {value.data_ptr() for value in expected if value.is_floating_point()}
    assert {value.data_ptr() for value in found} == kept
    assert not any(value.dtype == torch.int64 for value in found)
