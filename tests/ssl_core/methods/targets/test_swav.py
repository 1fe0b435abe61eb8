"""SwAV: codes of the batch and its queues, resting prototypes, by hand."""

import copy

import numpy as np
import pytest
import torch

from astra_gym.ssl_core.methods.targets.swav import CleanSwAV
from tests.helpers.target_learners import VIEWS, learner


def codes(scores: np.ndarray) -> np.ndarray:
    q = np.exp(scores / 0.05)
    for _ in range(3):
        q /= q.sum(axis=0, keepdims=True) * q.shape[1]
        q /= q.sum(axis=1, keepdims=True)
    return q


def test_the_loss_queue_and_prototypes_after_each_update() -> None:
    made = learner("swav-clean", decay=0.1)
    queue = np.zeros((2, 7, 8))
    for step in range(5):
        alike = copy.deepcopy(made)
        alike.network.train()
        with torch.no_grad():
            z = alike.network(VIEWS, "normal").embeddings.numpy()
        z /= np.linalg.norm(z, axis=1, keepdims=True)
        w = made.heads["prototypes"].linear.weight.detach().numpy().copy()
        unit = w / np.linalg.norm(w, axis=1, keepdims=True)
        # the queues count from the second epoch, which begins with the third update
        every = [np.concatenate([z[view::2], queue[view]] if step >= 2 else [z[view::2]]) @ unit.T for view in (0, 1)]
        q = [codes(scores)[:4] for scores in every]
        expected = []
        for image in range(4):
            for view in (0, 1):
                logits = z[2 * image + view] @ unit.T / 0.1
                expected.append(-q[1 - view][image] @ (logits - np.log(np.exp(logits).sum())))
        assert made.update(VIEWS, None)["clean"] == pytest.approx(np.mean(expected), rel=1e-4)
        for image in range(4):
            queue[:, (4 * step + image) % 7] = z[2 * image : 2 * image + 2]
        np.testing.assert_allclose(made.heads["queue_normal"].kept.numpy(), queue, rtol=1e-4, atol=1e-6)
        # they rest for two epochs
        moved = not np.array_equal(w, made.heads["prototypes"].linear.weight.detach().numpy())
        assert moved == (step >= 4)


def test_without_a_queue_there_is_none() -> None:
    made = learner("swav", queue_size=0, freeze_epochs=0)
    assert set(made.heads) == {"prototypes"}
    before = made.heads["prototypes"].linear.weight.clone()
    made.update(VIEWS, 1 - VIEWS)
    assert not torch.equal(before, made.heads["prototypes"].linear.weight)


def test_bad_options_are_refused() -> None:
    for options in ({"epsilon": 0}, {"iterations": 0}, {"prototypes": 2.5}, {"queue_size": -1}, {"freeze_epochs": -1}):
        with pytest.raises(ValueError, match=f"{next(iter(options))} is"):
            CleanSwAV(**options)
