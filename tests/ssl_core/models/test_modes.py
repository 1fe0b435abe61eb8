import pytest
from torch import nn

from astra_gym.ssl_core.models.modes import frozen
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


def test_a_module_with_an_assignment_of_its_own_keeps_it() -> None:
    # such as a TorchScript module, whose flags lie outside Python
    class Own(nn.BatchNorm1d):
        def __setattr__(self, name: str, value: object) -> None:
            super().__setattr__(name, value)
            if name == "training":
                self.__dict__.setdefault("seen", []).append(value)

    module = nn.Sequential(Own(3)).train()
    module[0].seen.clear()
    with frozen(module):
        assert module[0].seen == [False]
    assert module[0].seen == [False, True]
