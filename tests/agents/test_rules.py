"""The rules that people use by hand: each against a sequence computed by hand, exact resume, refusals."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from astra_gym.agents import (
    AcceleratingAgent,
    CustomizedAgent,
    DelayedAgent,
    FriendlyAgent,
    make_agent,
)
from astra_gym.envs.engine import AttackEngine
from astra_gym.envs.torch_env import TorchBatchEnv, TorchViewEnv
from astra_gym.envs.world_config import WorldSettings
from tests.helpers.scripted_worlds import LISTED, Scripted, played
from tests.helpers.states import same

TINY = {"batch_size": 4, "epochs": 6, "limit": 14, "test_limit": 20, "image_size": 8, "width": 2, "method": "acl"}
"""3 updates an epoch, 18 in all."""


def test_delayed_attacks_from_its_share_of_the_plays_on(world: Any) -> None:
    for share, plays, first in ((0.5, 8, 4), (0.5, 7, 4), (0.1, 30, 3), (0.0, 4, 0), (1.0, 4, 4)):
        settings = {"share": share}
        agent = make_agent(
            "delayed",
            world("flat", num_envs=2),
            seed=0,
            device="cpu",
            gamma=0.0,
            planned_plays=plays,
            schedule_actions=[5, 9],
            overrides=settings,
        )
        assert isinstance(agent, DelayedAgent)
        sent: list[Any] = []
        agent.learn(2 * plays, callback=lambda local, _, kept=sent: kept.append(local["actions"].tolist()) or True)
        assert sent == [[5, 5]] * first + [[9, 9]] * (plays - first)
    with pytest.raises(ValueError, match="the agent delayed got 3 actions: expected no attack, and the attack"):
        DelayedAgent(world(), LISTED, planned_plays=9)
    with pytest.raises(ValueError, match=r"share is 1.5: expected a finite number in \[0, 1\]"):
        make_agent(
            "delayed", world(), seed=0, gamma=0.0, planned_plays=9, schedule_actions=LISTED, overrides={"share": 1.5}
        )


def test_accelerating_climbs_when_a_period_s_gradient_exceeds_the_remembered_one(world: Any) -> None:
    # two plays an epoch, whose means are 9; 4, remembered as 5; 5, not above; 6, above: remembered as 7.5; 7; 8; 99
    slopes = [[8, 10], [9, 9], [3, 5], [4, 4], [5, 5], [5, 5], [6, 6], [2, 10], [7, 7], [7, 7], [8, 8], [8, 8]]
    slopes += [[99, 99]] * 4
    rows = [{"slope": [float(one) for one in row], "epoch": (k + 1) / 2} for k, row in enumerate(slopes)]
    env = Scripted(world(num_envs=2), rows)
    agent = make_agent(
        "accelerating",
        env,
        seed=0,
        device="cpu",
        gamma=0.0,
        planned_plays=16,
        schedule_actions=LISTED,
        overrides={"growth": 1.25},
    )
    assert isinstance(agent, AcceleratingAgent) and env.asked == {"slope"}
    assert played(agent, 4) == [[0, 0]] * 4 and agent.threshold == 5.0
    assert played(agent, 4) == [[0, 0]] * 4 and agent.threshold == 7.5
    assert played(agent, 4) == [[1, 1]] * 4 and agent.threshold == 10.0
    # the last of the list stays
    assert played(agent, 4) == [[2, 2]] * 4 and agent.threshold == 10.0
    assert agent.predict(np.zeros((3, 6), np.float32))[0].tolist() == [[2, 2, 2]] * 3


def test_accelerating_sums_over_its_own_period(world: Any) -> None:
    rows = [{"slope": [float(k)], "epoch": (k + 1) / 10} for k in range(10)]
    agent: Any = make_agent(
        "accelerating",
        Scripted(world(num_envs=1), rows),
        seed=0,
        device="cpu",
        gamma=0.0,
        planned_plays=10,
        schedule_actions=LISTED,
        overrides={"period": 0.3},
    )
    # plays 3, 4, 5 have the mean 4; plays 6, 7, 8 have 7
    assert played(agent, 6) == [[0]] * 6 and agent.threshold == 4.0
    assert played(agent, 4) == [[0]] * 3 + [[1]] and agent.threshold == 7.0


def test_customized_raises_what_is_retrieved_and_takes_back_what_is_not(world: Any) -> None:
    places = [[0, 1], [4, 5], [0, 1], [1, 0], [0, 1], [0, 1]]
    retrieved = [[True, False], [True, True], [True, True], [True, True], [False, True], [True, False]]
    rows = [{"retrieved": row} for row in retrieved]
    env = Scripted(world(num_envs=2), rows, places)
    agent: Any = make_agent(
        "customized", env, seed=0, device="cpu", gamma=0.0, planned_plays=6, schedule_actions=LISTED
    )
    assert isinstance(agent, CustomizedAgent) and env.asked == {"retrieved"}
    assert played(agent, 1) == [[0, 0]] and agent.memory.tolist() == [1, 0]
    assert played(agent, 1) == [[0, 0]] and agent.memory.tolist() == [1, 0, 0, 0, 1, 1]
    assert played(agent, 1) == [[1, 0]] and agent.memory.tolist() == [2, 1, 0, 0, 1, 1]
    # the views of an image may come in another place of the batch
    assert played(agent, 1) == [[1, 2]] and agent.memory.tolist() == [3, 2, 0, 0, 1, 1]
    # 0 is at the cap, fails there and goes down; 1 reaches it
    assert played(agent, 1) == [[2, 2]] and agent.memory.tolist() == [2, 3, 0, 0, 1, 1]
    assert played(agent, 1) == [[2, 2]] and agent.memory.tolist() == [3, 2, 0, 0, 1, 1]
    # the mean of 7/6 is 1, and is raised
    assert agent.predict(np.zeros((2, 6), np.float32))[0].tolist() == [[1, 1, 1]] * 2


def test_customized_may_rise_by_several_radii_and_never_falls_below_none(world: Any) -> None:
    rows = [{"retrieved": [False]}, {"retrieved": [True]}, {"retrieved": [False]}]
    agent: Any = make_agent(
        "customized",
        Scripted(world(num_envs=1), rows, [[0]] * 3),
        seed=0,
        device="cpu",
        gamma=0.0,
        planned_plays=3,
        schedule_actions=LISTED,
        overrides={"stride": 2},
    )
    assert played(agent, 3) == [[1], [1], [2]] and agent.memory.tolist() == [1]


def made(name: str, stop: str | None = None, **more: Any) -> tuple[TorchViewEnv, Any]:
    # small enough for some views of so small a world to stay retrieved
    unit = 1 / 255 if name == "customized" else 8 / 255
    sets = {"action_steps": (0, 1, 2, 4), "action_epsilons": (unit, 2 * unit, 3 * unit)}
    settings = WorldSettings.of(**TINY, **sets, attack_stop="retrieval" if name == "friendly" else stop)
    env = TorchViewEnv(AttackEngine(settings, seed=3))
    actions = {
        "delayed": [[1, 0, 1], [1, 2, 1]],
        "accelerating": [[1, 2, 1], [1, 3, 1]],
        "escalating": [[1, 2, 1], [1, 3, 1]],
        "customized": [[k, 1, 0] for k in range(3)],
        "friendly": [[2, 3, 4]],
    }[name]
    given = {"planned_plays": 18, "schedule_actions": actions} | more
    return env, make_agent(name, env, seed=0, device="cpu", gamma=0.0, **given)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["delayed", "accelerating", "escalating", "customized", "friendly"])
def test_stopped_in_an_epoch_and_resumed_equals_straight(name: str, tmp_path: Path) -> None:
    env, straight = made(name)
    kept: dict[str, Any] = {}

    def note(local: Any, _: Any) -> bool:
        if env.engine.step == 10:
            kept.update(copy.deepcopy(env.state_dict()))
            straight.save(tmp_path / "agent")
        return True

    straight.learn(18 * env.num_envs, callback=note)
    again, _ = made(name)
    again.load_state_dict(kept)
    resumed = type(straight).load(tmp_path / "agent", again, device="cpu", force_reset=False)
    resumed.learn(8 * env.num_envs, reset_num_timesteps=False)
    assert same(env.state_dict(), again.state_dict())
    assert same(straight.state_dict(), resumed.state_dict())


def test_customized_keeps_a_radius_for_each_image_in_a_real_world() -> None:
    env, agent = made("customized")
    agent.learn(18 * env.num_envs)
    # 14 images in batches of 4: 12 an epoch, two views each
    assert len(agent.memory) == 28 and 0 < agent.memory.double().mean() < 3 and len(agent.memory.unique()) > 2


def test_friendly_asks_for_a_world_that_stops(world: Any) -> None:
    env, agent = made("friendly")
    agent.learn(env.num_envs)
    assert isinstance(agent, FriendlyAgent)
    assert (env.engine.last.budget.steps < 4).any()  # type: ignore[union-attr]
    settings = WorldSettings.of(**TINY)
    with pytest.raises(ValueError, match="it never does: make it with attack_stop='retrieval'"):
        FriendlyAgent(TorchViewEnv(AttackEngine(settings)), [[0, 0, 0]])


def test_worlds_that_do_not_report_are_refused(world: Any, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"'accelerating' needs a world of views or batches that reports slope .*: got a K"
    ):
        AcceleratingAgent(world(), LISTED)
    batch = TorchBatchEnv(AttackEngine(WorldSettings.of(**TINY)))
    with pytest.raises(
        ValueError, match=r"'customized' needs a world of views that reports retrieved .* a TorchBatchEnv"
    ):
        CustomizedAgent(batch, LISTED)
    AcceleratingAgent(batch, LISTED).learn(3)
    env = Scripted(world(), [])
    agent = AcceleratingAgent(env, LISTED)
    with pytest.raises(ValueError, match="got a KnownOptimum"):
        agent.set_env(world())
    assert agent.get_env() is env
    agent.save(tmp_path / "agent")
    with pytest.raises(ValueError, match="got a KnownOptimum"):
        AcceleratingAgent.load(tmp_path / "agent", world(), device="cpu")
    with pytest.raises(ValueError, match="the list of customized has no actions"):
        CustomizedAgent(env, [])
    for name in ("delayed", "accelerating", "escalating", "customized", "friendly"):
        with pytest.raises(ValueError, match=f"schedule_actions is None: agent '{name}' needs elements"):
            make_agent(name, env, seed=0, gamma=0.0, planned_plays=5)
