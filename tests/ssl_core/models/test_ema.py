import numpy as np
import pytest
import torch
from torch import nn

from astra_gym.ssl_core.models.ema import cosine_momentum, ema_update


def network(seed: int, channels: int = 3) -> nn.Module:
    built = nn.Sequential(nn.Linear(2, channels), nn.BatchNorm1d(channels)).double()
    generator = torch.Generator().manual_seed(seed)
    for value in (*built.parameters(), built[1].running_mean):
        value.data.copy_(torch.randn(value.shape, generator=generator, dtype=torch.float64))
    return built


def test_parameters_follow_and_buffers_stay() -> None:
    """After n steps the first average has weight m^n, the source of step k has (1 - m) m^(n - 1 - k)."""
    target, m, n = network(0), 0.9, 7
    start = {name: value.detach().numpy().copy() for name, value in target.named_parameters()}
    mean = target[1].running_mean.clone()
    sources = [network(seed) for seed in range(1, n + 1)]
    for source in sources:
        ema_update(target, source, m)
    for name, value in target.named_parameters():
        expected = m**n * start[name]
        for k, source in enumerate(sources):
            expected = expected + (1 - m) * m ** (n - 1 - k) * source.get_parameter(name).detach().numpy()
        np.testing.assert_allclose(value.detach().numpy(), expected, rtol=1e-12)
        assert value.requires_grad and value.grad is None
    assert torch.equal(target[1].running_mean, mean)


def test_at_its_limits_it_stays_or_becomes_the_source() -> None:
    for momentum, like in ((1.0, 0), (0.0, 1)):
        target = network(0)
        ema_update(target, network(1), momentum)
        for mine, theirs in zip(target.parameters(), network(like).parameters(), strict=True):
            assert torch.equal(mine, theirs)


def test_what_does_not_fit_is_refused_and_nothing_is_updated() -> None:
    target = network(0)
    for momentum in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=r"expected a finite number in \[0, 1\]"):
            ema_update(target, network(1), momentum)
    with pytest.raises(ValueError, match=r"0\.bias, 0\.weight, 1\.bias, 1\.weight differ"):
        ema_update(target, network(1, channels=4), 0.5)
    with pytest.raises(ValueError, match=r"1\.bias, 1\.weight differ"):
        ema_update(target, network(1)[:1], 0.5)
    assert all(torch.equal(a, b) for a, b in zip(target.parameters(), network(0).parameters(), strict=True))


def test_the_momentum_rises_along_a_cosine() -> None:
    values = [cosine_momentum(progress, 0.99) for progress in (0, 1 / 3, 0.5, 1, 1.5)]
    assert values == pytest.approx([0.99, 1 - 0.01 * 0.75, 0.995, 1, 1])
