import random

import numpy as np
import pytest
import torch

from astra_gym.ssl_core.utils.rng import Streams, derive_seed, global_generators_kept


def draw(streams: Streams, name: str) -> torch.Tensor:
    return torch.rand(4, generator=streams[name])


def test_same_seed_same_stream_and_other_names_or_seeds_differ() -> None:
    assert torch.equal(draw(Streams(3), "views"), draw(Streams(3), "views"))
    assert not torch.equal(draw(Streams(3), "views"), draw(Streams(3), "data"))
    assert not torch.equal(draw(Streams(3), "views"), draw(Streams(4), "views"))


def test_a_stream_does_not_depend_on_the_others() -> None:
    alone, together = Streams(0), Streams(0)
    draw(together, "data")
    together.on_device("views")
    assert torch.equal(draw(alone, "views"), draw(together, "views"))


def test_the_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    draw(Streams(0), "views")
    assert torch.equal(before, torch.get_rng_state())


def test_state_goes_on_where_it_was(tmp_path) -> None:
    streams = Streams(7)
    draw(streams, "views"), torch.rand(2, generator=streams.on_device("noise"))
    torch.save(streams.state_dict(), tmp_path / "s.pt")
    expected = draw(streams, "views"), torch.rand(2, generator=streams.on_device("noise"))
    other = Streams(0)
    assert other.load_state_dict(torch.load(tmp_path / "s.pt", weights_only=True)) == []
    assert other.seed == 7
    assert torch.equal(expected[0], draw(other, "views"))
    assert torch.equal(expected[1], torch.rand(2, generator=other.on_device("noise")))


def test_streams_of_another_kind_of_device_are_named_and_go_on_differently() -> None:
    streams = Streams(7)
    first = torch.rand(2, generator=streams.on_device("noise"))
    state = streams.state_dict() | {"device_type": "cuda"}
    other = Streams(7)
    assert other.load_state_dict(state) == ["noise"]
    assert not torch.equal(first, torch.rand(2, generator=other.on_device("noise")))


@pytest.mark.parametrize("seed", [-1, 1.5, "0", True])
def test_bad_seeds_are_refused(seed) -> None:
    with pytest.raises(ValueError, match="expected an integer"):
        Streams(seed)


def test_derived_seeds_are_63_bits() -> None:
    seeds = {derive_seed(seed, name) for seed in range(50) for name in "abc"}
    assert len(seeds) == 150
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_global_generators_are_put_back_even_after_an_error() -> None:
    before = (random.random(), np.random.rand(), torch.rand(()).item())
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    with pytest.raises(KeyError), global_generators_kept():
        random.seed(1)
        np.random.seed(1)
        torch.random.manual_seed(1)
        raise KeyError
    found = random.getstate(), np.random.get_state(), torch.get_rng_state()
    assert found[0] == states[0] and np.array_equal(found[1][1], states[1][1]) and torch.equal(found[2], states[2])
    assert (random.random(), np.random.rand(), torch.rand(()).item()) != before
