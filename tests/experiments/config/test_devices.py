"""Devices by name, and how a run computes on its own."""

import pytest
import torch

from astra_gym.experiments.config.devices import arithmetic, check_own_gpus, on_repeating, resolve_device
from astra_gym.experiments.config.settings import Settings


def test_without_a_gpu_auto_is_the_cpu_and_cuda_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == resolve_device("cpu") == torch.device("cpu")
    for name in ("cuda", "cuda:1"):
        with pytest.raises(ValueError, match=f"'{name}', but torch finds no GPU here: take cpu"):
            resolve_device(name)


def test_a_gpu_has_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("is_available", True), ("device_count", 2), ("current_device", 0)):
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    assert resolve_device("auto") == resolve_device("cuda") == torch.device("cuda", 0)
    assert resolve_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(ValueError, match="'cuda:2', but torch finds 2 GPUs here"):
        resolve_device("cuda:2")


@pytest.mark.parametrize("name", ["mps", "cuda:", "cuda:x", "cuda:-1", "cpu:0", "", 0])
def test_other_devices_are_refused_by_name_wherever_settings_are_read(name: str) -> None:
    for read in (resolve_device, lambda name: Settings.of(device=name)):
        with pytest.raises(ValueError, match=r"unknown device .*: choose from auto, cpu, cuda"):
            read(name)
    # on another machine than the run's the record can still be read
    assert Settings.of(device="cuda:7", precision="fp32").run.device == "cuda:7"


def test_a_run_in_fp32_takes_no_tf32_and_one_that_repeats_deterministic_algorithms(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)

    def now() -> tuple[bool, bool]:
        return torch.backends.cudnn.allow_tf32, torch.are_deterministic_algorithms_enabled()

    for precision, repeatable in (("fp32", False), ("fp32", True), ("bf16", False), ("bf16", True)):
        with arithmetic(precision, repeatable):
            assert now() == (precision == "bf16", repeatable)
        assert now() == (True, False)


def test_only_of_a_run_on_a_gpu_is_it_said_that_it_does_not_repeat() -> None:
    said = [on_repeating(torch.device(kind), again) for kind in ("cuda:0", "cpu") for again in (False, True)]
    assert "--deterministic true" in said[0] and said[1:] == ["", "", ""]


def test_several_ranks_share_no_gpu() -> None:
    for name, ranks in (("cuda:1", 1), ("cuda", 2), ("auto", 4)):
        check_own_gpus(name, ranks)
    with pytest.raises(ValueError, match="device is cuda:1, one GPU for 2 ranks: give --device cuda"):
        check_own_gpus("cuda:1", 2)
