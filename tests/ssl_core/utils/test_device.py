import os

import pytest
import torch

from astra_gym.ssl_core.utils.device import convolves_in_tf32, deterministic, ieee_fp32, usable_device


@pytest.mark.parametrize("device", ["cpu", "cpu:0", torch.device("cpu")])
def test_a_device_that_is_there(device: torch.device | str) -> None:
    assert usable_device(device) == torch.device("cpu")


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("cuad", "device is 'cuad': expected cpu, cuda or cuda:N"),
        ("auto", "device is 'auto': expected cpu, cuda or cuda:N"),
        ("", "expected cpu, cuda or cuda:N"),
        (None, "expected cpu, cuda or cuda:N"),
        ("meta", "device is 'meta': expected cpu, cuda or cuda:N"),
        ("mps", "device is 'mps': expected cpu, cuda or cuda:N"),
        ("cuda", "device is 'cuda', but torch finds no GPU here: take cpu"),
        ("cuda:7", "device is 'cuda:7', but torch finds no GPU here"),
    ],
)
def test_a_device_that_is_not(device: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        usable_device(device)
    assert len(str(error.value)) < 100


def test_a_gpu_without_a_number_gets_that_of_its_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("is_available", True), ("device_count", 2), ("current_device", 1)):
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    assert usable_device("cuda") == usable_device(torch.device("cuda:1")) == torch.device("cuda", 1)
    with pytest.raises(ValueError, match="'cuda:2', but torch finds 2 GPUs here, from cuda:0"):
        usable_device("cuda:2")


def test_within_ieee_fp32_no_convolution_takes_tf32_and_other_switches_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    cudnn, gpu = torch.backends.cudnn, torch.device("cuda", 0)
    monkeypatch.setattr(cudnn, "benchmark", True)
    assert convolves_in_tf32(gpu) and not convolves_in_tf32(torch.device("cpu"))
    with ieee_fp32():
        # torch's other readers of the switch, which a mixture of its two forms would break
        assert not convolves_in_tf32(gpu) and torch.get_float32_matmul_precision() == "highest"
        assert cudnn.enabled and cudnn.benchmark and not cudnn.deterministic
        with ieee_fp32(), deterministic():
            assert not convolves_in_tf32(gpu) and not cudnn.benchmark
        assert not convolves_in_tf32(gpu) and cudnn.benchmark
    assert convolves_in_tf32(gpu)


def test_deterministic_algorithms_are_left_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    with pytest.raises(KeyError), deterministic():
        assert torch.are_deterministic_algorithms_enabled()
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
        raise KeyError
    assert not torch.are_deterministic_algorithms_enabled()
