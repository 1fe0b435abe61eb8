import math

import numpy as np
import pytest
import torch
from torch import Tensor

from astra_gym.ssl_core.models.target_network import TargetNetwork
from astra_gym.ssl_core.transforms.high_frequency import high_frequency


def pictures(height: int = 32, width: int = 32, n: int = 4) -> Tensor:
    return torch.rand(n, 3, height, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("size", [(32, 32), (16, 16), (15, 15), (24, 40), (17, 20)])
@pytest.mark.parametrize("radius", [0.5, 3.0, 8.0])
def test_it_is_the_real_part_of_the_centered_spectrum_without_its_disc(size: tuple[int, int], radius: float) -> None:
    height, width = size
    images = pictures(height, width)
    spectrum = np.fft.fftshift(np.fft.fft2(images.double().numpy()), axes=(-2, -1))
    for i in range(height):
        for j in range(width):
            if math.sqrt((i - height // 2) ** 2 + (j - width // 2) ** 2) < radius:
                spectrum[..., i, j] = 0
    expected = np.fft.ifft2(np.fft.ifftshift(spectrum, axes=(-2, -1)))
    assert np.abs(expected.imag).max() < 1e-12
    assert np.allclose(high_frequency(images, radius).numpy(), expected.real, atol=2e-6)


def wave(down: int, across: int, size: int = 32) -> Tensor:
    turns = torch.arange(size, dtype=torch.float64)
    angle = 2 * math.pi * (down * turns[:, None] + across * turns) / size
    return (0.5 + 0.5 * angle.cos()).float().expand(1, 3, size, size).clone()


def test_a_wave_passes_from_the_radius_on_and_loses_its_mean() -> None:
    for down, across in ((8, 0), (0, 8), (0, 16), (6, 6), (-7, 5), (16, 16)):
        assert torch.allclose(high_frequency(wave(down, across)), wave(down, across) - 0.5, atol=1e-6)
    for down, across in ((7, 0), (0, 7), (5, 6), (-6, 5), (0, 0)):
        assert high_frequency(wave(down, across)).abs().max() < 1e-6


def test_radius_zero_keeps_the_image_and_a_great_one_nothing() -> None:
    images = pictures()
    assert torch.allclose(high_frequency(images, 0), images, atol=1e-6)
    assert not high_frequency(images, 100).any()


def test_it_is_linear_idempotent_and_of_no_mean() -> None:
    images = pictures()
    before = images.clone()
    high = high_frequency(images)
    assert torch.equal(images, before)
    assert torch.allclose(high_frequency(high), high, atol=1e-6)
    assert torch.allclose(high_frequency(0.5 * images), 0.5 * high, atol=1e-6)
    assert high.mean(dim=(2, 3)).abs().max() < 1e-6
    assert high.min() < -0.1 and high.max() > 0.1
    order = torch.tensor([2, 0, 3, 1])
    assert torch.allclose(high_frequency(images[order]), high[order], atol=1e-7)


def test_autocast_does_not_round_it() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = high_frequency(pictures())
    assert torch.equal(inside, high_frequency(pictures()))


def test_the_network_takes_it() -> None:
    network = TargetNetwork(width=4, projector_hidden=8, projector_dim=8)
    encoded = network(high_frequency(pictures(16, 16)), "normal")
    assert all(torch.isfinite(part).all() for part in encoded)


@pytest.mark.parametrize(
    ("images", "radius", "message"),
    [
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), 8, "got torch.uint8.*as_float"),
        (torch.zeros(3, 8, 8), 8, r"of shape \(3, 8, 8\)"),
        (torch.zeros(2, 3, 8, 8), -1, "radius is -1, expected"),
        (torch.zeros(2, 3, 8, 8), math.nan, "radius is nan"),
    ],
)
def test_bad_arguments_are_refused(images: Tensor, radius: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        high_frequency(images, radius)
