"""How many runs a GPU holds at once."""

import pytest
import torch
from torch import Tensor

from astra_gym.envs.engine import AttackEngine
from astra_gym.envs.world_config import WorldSettings
from astra_gym.experiments.comparison.gpu_memory import CONTEXT, EVALUATED, kept_bytes, run_memory, runs_that_fit
from tests.helpers.gpu import SIZES


def world(**changes: object) -> AttackEngine:
    return AttackEngine(WorldSettings.of(**SIZES | {"width": 8} | changes), seed=1)


@pytest.mark.parametrize("method", ["acl", "astra", "simclr"])
def test_it_is_what_an_update_keeps(method: str) -> None:
    engine = world(method=method)
    views, kept = engine.all_views, dict[int, Tensor]()
    weights = {value.untyped_storage()._cdata for value in engine.learner.network.state_dict().values()}

    def keep(value: Tensor) -> Tensor:
        kept[value.untyped_storage()._cdata] = value
        return value

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        engine.learner.update(views, engine.views if engine.method.attack.exists else None)
    found = sum(value.untyped_storage().nbytes() for own, value in kept.items() if own not in weights)
    streams = 2 if engine.method.attack.exists else 1
    expected = streams * len(views) * kept_bytes(engine.learner.network, engine.image_shape)
    assert expected == pytest.approx(found, rel=0.1)


def test_with_recomputation_it_is_the_inputs_of_the_parts_and_the_largest_part() -> None:
    plain, sparing = (world(recompute=recompute, arch="resnet18").learner.network for recompute in (False, True))
    shape = (3, 16, 16)
    # float32: the images and the inputs of the eight blocks; then five maps of a block of the first stage
    inputs = 4 * (3 * 16**2 + 3 * 8 * 16**2 + 2 * 16 * 8**2 + 2 * 32 * 4**2 + 64 * 2**2)
    assert kept_bytes(sparing, shape) == pytest.approx(inputs + 4 * 5 * 8 * 16**2, rel=0.01)
    assert kept_bytes(sparing, shape) < 0.6 * kept_bytes(plain, shape)
    engines = [world(recompute=recompute, batch_size=512, limit=600) for recompute in (False, True)]
    assert run_memory(engines[1]) < run_memory(engines[0])


def test_it_grows_with_the_batch_and_falls_with_chunks_and_bf16() -> None:
    least, more = (run_memory(world(batch_size=size, limit=600)) for size in (4, 512))
    assert CONTEXT < least < more
    assert run_memory(world(batch_size=4, limit=600, precision="bf16")) == least  # it is the evaluation's
    for changes in ({"update_chunks": 4}, {"precision": "bf16"}, {"keep_data": "host"}):
        assert run_memory(world(batch_size=512, limit=600, **changes)) < more
    assert least > EVALUATED * kept_bytes(world().learner.network, (3, 16, 16))


def test_a_run_a_core_and_no_more_than_the_memory_holds() -> None:
    assert runs_that_fit(8, 0, 10) == runs_that_fit(8, 3, None) == 8
    assert [runs_that_fit(8, 3, free) for free in (2, 3, 10, 100)] == [1, 1, 3, 8]
