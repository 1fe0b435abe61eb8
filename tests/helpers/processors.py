"""Marks of tests that need a kind of processor."""

import pytest
import torch

from astra_gym.ssl_core.kernels.fixed_conv import packable

needs_onednn = pytest.mark.skipif(
    not packable(torch.empty(1, 1, 1, 1)), reason="oneDNN does not serve float32 on this processor"
)
