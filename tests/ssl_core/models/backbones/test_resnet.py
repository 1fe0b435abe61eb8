"""ResNets as backbones: torchvision's features with torchvision's weights, and the maps of each stem."""

import pytest
import torch
import torchvision
from torch import nn

from astra_gym.ssl_core.models.backbones.resnet import ARCHITECTURES, STEMS, ResNet, last_strided_map
from tests.helpers.draws import generator


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["resnet18", "resnet34", "resnet50"])
def test_equals_torchvisions_resnet_with_the_same_weights(arch: str) -> None:
    """The ImageNet stem is torchvision's ResNet: the same weights in the same order give the same features."""
    reference = getattr(torchvision.models, arch)(weights=None)
    reference.fc = nn.Identity()
    mine = ResNet(arch, 64, "imagenet", ("normal",))
    state = {name: value for name, value in reference.state_dict().items()}

    def theirs(name: str) -> str:
        name = name.replace("by_route.normal.", "").replace("norm.", "bn1.", 1) if name.startswith("norm.") else name
        if name.startswith("conv."):
            return name.replace("conv.", "conv1.", 1)
        if not name.startswith("blocks."):
            return name
        _, index, rest = name.split(".", 2)
        counts, block, stage = ARCHITECTURES[arch][1], int(index), 0
        while block >= counts[stage]:
            block, stage = block - counts[stage], stage + 1
        rest = rest.replace("by_route.normal.", "")
        rest = rest.replace("shortcut.conv", "downsample.0").replace("shortcut.norm", "downsample.1")
        for k in range(3):
            rest = rest.replace(f"convs.{k}.", f"conv{k + 1}.").replace(f"norms.{k}.", f"bn{k + 1}.")
        return f"layer{stage + 1}.{block}.{rest}"

    mine.load_state_dict({name: state[theirs(name)] for name in mine.state_dict()})
    x = torch.rand(2, 3, 64, 64, generator=generator())
    torch.testing.assert_close(mine.eval()(x, "normal"), reference.eval()(x), rtol=1e-4, atol=1e-4)


def test_the_papers_network_has_the_papers_size() -> None:
    """ResNet-18 of width 64 has 11,168,832 weights in a CIFAR stem without classifier, batch norms once each."""
    weights = sum(p.numel() for p in ResNet("resnet18", 64, "cifar", ("normal",)).parameters())
    assert weights == 11_168_832


def test_the_padded_stem_has_larger_maps() -> None:
    for stem, side in (("cifar", 32), ("cifar-padded", 34)):
        network = ResNet("resnet10", width=2, stem=stem)
        assert network.conv(torch.rand(1, 3, 32, 32)).shape[-1] == side


@pytest.mark.parametrize("stem", STEMS)
@pytest.mark.parametrize("side", [3, 4, 5, 16, 17, 33])
def test_the_map_that_the_last_stage_halves(stem: str, side: int) -> None:
    network = ResNet("resnet10", width=2, stem=stem)
    sizes = []
    network.blocks[-1].register_forward_pre_hook(lambda block, inputs: sizes.append(inputs[0].shape[-1]))
    network(torch.rand(2, 3, side, side), "normal")
    assert sizes == [last_strided_map(side, stem)]
