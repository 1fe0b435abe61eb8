"""Image filters in torch against SciPy's, which they stand for."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter, map_coordinates

from astra_gym.ssl_core.evaluation.image_filters import sampled, smoothed

IMAGES = torch.rand(2, 3, 9, 14, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("mode", ["nearest", "mirror", "reflect"])
@pytest.mark.parametrize("sigma", [0.0, 0.4, 1.5, 6.0])  # the last reaches beyond the images on both sides
def test_smoothing_is_scipy_s(mode: str, sigma: float) -> None:
    expected = gaussian_filter(IMAGES.numpy(), sigma, mode=mode, truncate=3, axes=(2, 3))
    np.testing.assert_allclose(smoothed(IMAGES, sigma, mode, truncate=3).numpy(), expected, rtol=0, atol=1e-15)


@pytest.mark.parametrize("mode", ["nearest", "mirror", "reflect"])
def test_samples_between_pixels_and_beyond_the_border_are_scipy_s(mode: str) -> None:
    rows, columns = 40 * torch.rand(2, 2, 200, generator=torch.Generator().manual_seed(1), dtype=torch.float64) - 15
    found = sampled(IMAGES, rows, columns, mode)
    for index, image in enumerate(IMAGES.numpy()):
        for channel, plane in enumerate(image):
            expected = map_coordinates(plane, (rows[index].numpy(), columns[index].numpy()), order=1, mode=mode)
            np.testing.assert_allclose(found[index, channel].numpy(), expected, rtol=0, atol=1e-13)
