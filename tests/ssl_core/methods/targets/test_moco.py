"""MoCo: AMOC's choices of key and queue by hand, and the queues after some updates."""

import copy

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from astra_gym.ssl_core.losses.keys import moco
from astra_gym.ssl_core.methods.targets.moco import CleanMoCo, MoCo
from astra_gym.ssl_core.models.heads import KeyQueue, build_heads
from astra_gym.ssl_core.training.learner import TargetLearner
from astra_gym.ssl_core.utils.rng import Streams
from astra_gym.ssl_core.utils.training_plan import Moment
from tests.helpers.target_learners import ATTACKED, VIEWS, learner

ROUTES = {"clean": (VIEWS, "normal"), "attacked": (ATTACKED, "pgd")}


def outputs(made: TargetLearner) -> dict[str, tuple[Tensor, Tensor]]:
    """Queries and keys of both streams, as the next update computes them."""
    alike = copy.deepcopy(made)
    alike.network.train()
    alike.others.train()
    with torch.no_grad():
        return {
            name: (alike.network(*each).embeddings, alike.others["momentum"](*each).embeddings)
            for name, each in ROUTES.items()
        }


@pytest.mark.parametrize("key", ["clean", "attacked"])
@pytest.mark.parametrize("queue", ["clean", "attacked"])
def test_keys_and_negatives_of_attacked_queries_are_as_chosen(key: str, queue: str) -> None:
    made = learner("moco", key=key, queue=queue)
    assert set(made.heads) == {"queue_normal"} | ({"queue_pgd"} if queue == "attacked" else set())
    for _ in range(2):
        found = outputs(made)
        kept = {
            name: made.heads[f"queue_{route}"].kept.clone()
            for name, (_, route) in ROUTES.items()
            if name == "clean" or queue == name
        }
        terms = made.update(VIEWS, ATTACKED)
        clean = moco(*found["clean"], kept["clean"], 0.2)
        attacked = moco(found["attacked"][0], found[key][1], kept[queue], 0.2)
        assert terms["clean"] == pytest.approx(clean.item(), rel=1e-5)
        assert terms["adversarial"] == pytest.approx(attacked.item(), rel=1e-5)


def test_the_queues_hold_the_last_keys_of_their_own_stream_and_view() -> None:
    made = learner("moco", queue_size=6)
    expected = {
        name: [list(view) for view in made.heads[f"queue_{route}"].kept.clone()] for name, (_, route) in ROUTES.items()
    }
    place = 0
    for _ in range(4):
        keys = {name: F.normalize(pair[1], dim=1) for name, pair in outputs(made).items()}
        made.update(VIEWS, ATTACKED)
        for image in range(4):
            for name, rows in expected.items():
                for view in (0, 1):
                    rows[view][place] = keys[name][2 * image + view]
            place = (place + 1) % 6
        for name, rows in expected.items():
            queue = made.heads[f"queue_{ROUTES[name][1]}"]
            torch.testing.assert_close(queue.kept, torch.stack([torch.stack(view) for view in rows]))
            assert queue.oldest == place


def test_a_queue_starts_as_unit_vectors_of_its_stream_and_takes_batches_longer_than_itself() -> None:
    made = [build_heads(Streams(seed), {"queue": KeyQueue(3, 8, random=True)})["queue"] for seed in (0, 0, 1)]
    torch.testing.assert_close(made[0].kept.norm(dim=2), torch.ones(2, 3))
    assert torch.equal(made[0].kept, made[1].kept) and not torch.equal(made[0].kept, made[2].kept)
    z = torch.randn(10, 8)
    before = made[0].kept.clone()
    assert torch.equal(made[0].train()(z, "normal"), before)
    for view in (0, 1):
        assert sorted(made[0].kept[view].tolist()) == sorted(z[view::2][-3:].tolist())


def test_the_moving_average_rises_to_its_end() -> None:
    method = CleanMoCo()
    found = [method.momentum(Moment(progress=progress)) for progress in (0.0, 0.25, 1.0)]
    expected = [0.999 - 0.009 * (1 + np.cos(np.pi * progress)) / 2 for progress in (0.0, 0.25, 1.0)]
    assert found == pytest.approx(expected) and found[0] == pytest.approx(0.99) and found[2] == 0.999


def test_bad_options_are_refused() -> None:
    with pytest.raises(ValueError, match="without clean views, key is 'clean' and queue 'attacked': expected both"):
        MoCo(streams="a2a")
    with pytest.raises(ValueError, match="key of MoCo"):
        MoCo(key="query")
    with pytest.raises(ValueError, match="queue_size is 0"):
        CleanMoCo(queue_size=0)
