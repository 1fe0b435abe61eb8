"""PPO that stops views, against divisions by rule."""

import copy

import pytest
import torch

from astra_gym.experiments.headroom.stops import HORIZON, NAMES, Attacks, conclude, even, measure
from astra_gym.experiments.headroom.world import HeadroomWorld


def test_steps_are_divided_evenly() -> None:
    assert even(4, 10).tolist() == [3, 3, 2, 2] and even(3, 0).tolist() == [0, 0, 0]


class Falling:
    """An agent whose probability of a step falls with the steps taken, faster for later views."""

    def __call__(self, attack, clean, price) -> torch.Tensor:
        return 1 / (1 + attack.steps * torch.arange(1, len(clean) + 1))


@pytest.mark.slow
def test_the_cut_gives_the_mean_steps_and_the_attack_is_that_of_the_steps(
    tiny_world: HeadroomWorld, monkeypatch
) -> None:
    engine, _ = tiny_world.started(0)
    attacks = Attacks(tiny_world, engine, agent=None)
    monkeypatch.setattr(attacks, "going", Falling())
    cut = attacks.cut(0.1, batches=2)
    noise, views = engine.streams.on_device("headroom/stops"), engine.all_views
    start = noise.get_state()
    attack = attacks.stopped(views, 0.1, cut)
    steps = attack.steps
    # those of earlier views are not fewer, as the probabilities say; ties are all cut
    assert steps.tolist() == sorted(steps.tolist(), reverse=True) and 3 <= float(steps.float().mean()) <= 4
    assert int(steps.max()) > int(steps.min()) and int(steps.max()) <= HORIZON
    noise.set_state(start)
    made = attacks.divided(views, steps)
    torch.testing.assert_close(made.images, attack.moved, rtol=0, atol=1e-4)


@pytest.mark.every_agent
def test_ppo_learns_and_all_divisions_have_its_steps(tiny_world: HeadroomWorld) -> None:
    found, again = measure(tiny_world, 0), measure(tiny_world, 0)
    verdicts, numbers = conclude(tiny_world, dict.fromkeys(range(3), copy.deepcopy(found)))
    assert verdicts[0].kind == "stops of views, PPO - uniform" and verdicts[0].n == 3
    assert verdicts[0].mean == pytest.approx(numbers["losses"]["ppo"][0] - numbers["losses"]["uniform"][0])
    # the same again, but for the time
    for one in (found, again):
        assert one["plays"] == 28 * 12 and one.pop("learning_seconds") > 0 and one["price"] != 0.1
        for batch in one["batches"]:
            assert batch.pop("seconds").keys() == batch["losses"].keys() == NAMES.keys()
            assert 0 <= batch["steps"] <= HORIZON
    assert found == again and len(found["batches"]) == 2
