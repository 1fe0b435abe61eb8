import pytest
import torch

from astra_gym.ssl_core.utils.device import usable_device

NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")


@pytest.mark.parametrize("device", ["cpu", torch.device("cpu")])
def test_a_device_that_is_there(device: torch.device | str) -> None:
    assert usable_device(device) == torch.device("cpu")


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("cuad", "device is 'cuad': expected cpu, cuda or cuda:N"),
        ("auto", "device is 'auto': expected cpu, cuda or cuda:N"),
        ("", "expected cpu, cuda or cuda:N"),
        (None, "expected cpu, cuda or cuda:N"),
        ("meta", "device is 'meta', which torch cannot use here"),
        pytest.param("cuda", "device is 'cuda', but torch finds no GPU here: take cpu", marks=NO_GPU),
        pytest.param("cuda:7", "device is 'cuda:7', but torch finds no GPU here", marks=NO_GPU),
    ],
)
def test_a_device_that_is_not(device: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        usable_device(device)
    assert len(str(error.value)) < 100
