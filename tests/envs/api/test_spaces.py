"""Spaces that know what their actions mean: what is equal, what a file keeps, and an agent in a world of other sets."""

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector.utils import batch_space

from astra_gym.agents import make_agent
from astra_gym.agents.storage import space_from_dict, space_to_dict
from astra_gym.envs.actions import ActionTable
from astra_gym.envs.api.action_sets import ActionSets
from astra_gym.envs.api.spaces import meaning
from astra_gym.envs.sb3_env import Sb3ViewVecEnv

SETS = {"epsilon": (0.0, 8 / 255), "steps": (1, 2, 4), "step_size": (2 / 255,)}
PLAIN = [spaces.MultiDiscrete([2, 3, 1]), spaces.Discrete(6), spaces.Box(-1, 1, (3,), np.float32)]


@pytest.mark.parametrize("plain", PLAIN, ids=lambda space: type(space).__name__)
def test_a_space_is_equal_to_one_of_the_same_sets_only(plain: Any) -> None:
    space = meaning(plain, SETS)
    assert space == meaning(plain, SETS) == copy.deepcopy(space) == pickle.loads(pickle.dumps(space))
    assert space == space_from_dict(space_to_dict(space))
    assert space != meaning(plain, SETS | {"steps": (1, 2, 8)}) and space != plain
    assert isinstance(space, type(plain)) and space.contains(space.sample())
    assert type(batch_space(space, 4)) is type(batch_space(plain, 4))
    assert repr(space).endswith(" of epsilon [0, 8]/255, steps [1, 2, 4], step_size [2]/255")


def test_astras_sets_have_the_plain_spaces() -> None:
    assert type(ActionTable("factored").space) is spaces.MultiDiscrete
    assert ActionTable("none", ActionSets(steps=(1,))).space == spaces.Discrete(1)


@pytest.mark.parametrize("name", ["reinforce", "ppo"])
def test_an_agent_is_refused_in_a_world_of_other_sets(name: str, tmp_path: Path) -> None:
    world = {"dataset": "digits", "limit": 26, "image_size": 8, "batch_size": 4, "width": 2, "projector_dim": 8}

    def env(*steps: int) -> Sb3ViewVecEnv:
        return Sb3ViewVecEnv(**world, action_steps=steps, seed=0)

    agent = make_agent(name, env(1, 2), seed=0, device="cpu", gamma=0.0, planned_plays=4)
    agent.save(tmp_path / "agent.zip")
    kind = {"kind": name} if name == "ppo" else {}
    type(agent).load(tmp_path / "agent.zip", env(1, 2), **kind)
    with pytest.raises(ValueError, match=r"steps \[1, 4\].*steps \[1, 2\]|steps \[1, 2\].*steps \[1, 4\]"):
        type(agent).load(tmp_path / "agent.zip", env(1, 4), **kind)
