"""Triton's kernels on a CPU, by its interpreter: it is chosen before they are imported, so in another process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from astra_gym.ssl_core.kernels import fixed_conv
from astra_gym.ssl_core.kernels.fixed_conv import FusedConvolution
from astra_gym.ssl_core.models import folding
from astra_gym.ssl_core.models.folding import FoldedNetwork
from astra_gym.ssl_core.models.target_network import build_network

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
inside = pytest.mark.skipif(not INTERPRETED, reason="runs in the process that the first test starts")
TOLERANCE = {torch.float64: 1e-14, torch.float32: 1e-6, torch.bfloat16: 1e-2}


@pytest.mark.slow
@pytest.mark.skipif(INTERPRETED, reason="this is the process apart")
def test_the_kernels_by_the_interpreter() -> None:
    pytest.importorskip("triton")
    files = [__file__, str(Path(__file__).with_name("test_fixed_conv.py"))]
    options = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-k", "interpreted or Fused"]
    command = [sys.executable, "-m", "pytest", *options, *files]
    done = subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0 and "passed" in done.stdout and "skipped" not in done.stdout, done.stdout


def maps(dtype: torch.dtype, count: int) -> list[Tensor]:
    """Maps of more values than a block and no multiple of it, a NaN among them."""
    draws = torch.Generator().manual_seed(3)
    made = [torch.randn(5, 7, 6, 6, generator=draws, dtype=torch.float64).to(dtype) for _ in range(count)]
    made[0][1, 2, 3, 4] = float("nan")
    return [value.contiguous(memory_format=torch.channels_last) for value in made]


@inside
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("adds", [False, True])
@pytest.mark.parametrize("rectify", [False, True])
def test_interpreted_bias_residual_and_relu(dtype: torch.dtype, adds: bool, rectify: bool) -> None:
    from astra_gym.ssl_core.kernels import epilogues

    x, residual = maps(dtype, 2)
    bias = torch.linspace(-1, 1, 7, dtype=torch.float64).to(dtype)
    plain = x.double() + bias.double().view(-1, 1, 1) + (residual.double() if adds else 0)
    plain = plain.relu() if rectify else plain
    made = epilogues.finish(x, bias, residual if adds else None, rectify)
    assert made is x
    torch.testing.assert_close(made.double(), plain, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype], equal_nan=True)


@inside
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("adds", [False, True])
def test_interpreted_gradient_of_a_rectifier(dtype: torch.dtype, adds: bool) -> None:
    from astra_gym.ssl_core.kernels import epilogues

    output, gradient, more = maps(dtype, 3)
    output.relu_()
    output[0, 0, 0, 0] = float("nan")
    together = gradient.double() + (more.double() if adds else 0)
    plain = torch.ops.aten.threshold_backward(together, output.double(), 0)
    made = epilogues.rectified(gradient, output, more if adds else None)
    torch.testing.assert_close(made.double(), plain, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype], equal_nan=True)


@inside
@pytest.mark.parametrize(("arch", "stem"), [("resnet18", "cifar"), ("resnet50", "imagenet")])
def test_interpreted_attack_on_a_whole_network(arch: str, stem: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from astra_gym.ssl_core.kernels import epilogues

    network = build_network(torch.Generator().manual_seed(1), arch=arch, stem=stem, width=2).double().eval()
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def gradient() -> Tensor:
        x = images.clone().requires_grad_()
        features, embeddings = FoldedNetwork(network)(x, "pgd")
        (found,) = torch.autograd.grad(features.square().sum() + embeddings.sum(), x)
        return torch.cat([features.detach().flatten(), embeddings.detach().flatten(), found.flatten()])

    plain = gradient()
    monkeypatch.setattr(fixed_conv, "PlainConvolution", FusedConvolution)
    monkeypatch.setattr(folding, "rectified_gradient", lambda *maps: epilogues.rectified(*(*maps, None)[:3]))
    torch.testing.assert_close(gradient(), plain, rtol=1e-9, atol=1e-9)
