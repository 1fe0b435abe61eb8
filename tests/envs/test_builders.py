"""Worlds whose network starts from a file, or has its teacher's projector."""

import copy
import pickle
from pathlib import Path

import gymnasium
import pytest
import torch

import astra_gym
from astra_gym.envs.engine import AttackEngine
from astra_gym.envs.world_config import WorldSettings
from astra_gym.ssl_core.attacks.pgd import Budget
from astra_gym.ssl_core.models.checkpoint import describe_network, load_network, save_checkpoint
from astra_gym.ssl_core.models.target_network import build_network
from tests.helpers.draws import generator
from tests.helpers.plain_networks import randomize
from tests.helpers.states import same


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """An encoder of two routes that differ."""
    sizes = {"arch": "resnet10", "width": 2, "projector_hidden": 8, "projector_dim": 8}
    network = randomize(build_network(generator(4), routes=("normal", "pgd"), **sizes))
    payload = {"step": 0, "epoch": 0.0, "evaluation_route": "pgd", "network": describe_network(network)}
    return save_checkpoint(tmp_path / "start.pt", "encoder", payload)


def world(tiny: dict, file: Path, method: str, **changes: object) -> AttackEngine:
    return AttackEngine(WorldSettings.given(**tiny | {"method": method, "init_from": str(file)} | changes), seed=3)


def play(engine: AttackEngine) -> None:
    engine.play(Budget.uniform(engine.num_attacked, epsilon=8 / 255, step_size=2 / 255, steps=2))


def test_every_environment_takes_it_and_a_new_world_starts_from_it_too(tiny: dict, file: Path) -> None:
    source, _ = load_network(file)
    env = gymnasium.make(astra_gym.BATCH_ID, method="acl", init_from=str(file), **tiny)
    for seed in (1, 2):
        env.reset(seed=seed)
        learner = env.unwrapped.engine.learner
        assert same(dict(learner.network.state_dict()), dict(source.state_dict()))
        assert learner.origin is not None and learner.origin.routes == {"normal": "normal", "pgd": "pgd"}
        env.step(env.action_space.sample())
    assert not same(dict(learner.network.state_dict()), dict(source.state_dict()))


@pytest.mark.parametrize("method", ["fare", "dynacl"])
def test_networks_beside_the_target_begin_as_it_does(method: str, tiny: dict, file: Path) -> None:
    learner = world(tiny, file, method).learner
    [other] = learner.others.values()
    assert same(dict(other.state_dict()), dict(learner.network.state_dict()))


def test_random_draws_are_those_of_a_run_without_it(tiny: dict, file: Path) -> None:
    plain, started = AttackEngine(WorldSettings.of(**tiny, method="acl"), seed=3), world(tiny, file, "acl")
    assert same(plain.streams.state_dict(), started.streams.state_dict()) and torch.equal(plain.views, started.views)
    assert plain.learner.origin is None


@pytest.mark.parametrize("method", ["fare", "acl"])
def test_a_saved_or_pickled_world_goes_on_without_the_file(method: str, tiny: dict, file: Path) -> None:
    engine = world(tiny, file, method)
    initial = copy.deepcopy(engine.learner.others.state_dict())
    play(engine)
    packed, state, settings = pickle.dumps(engine), copy.deepcopy(engine.state_dict()), engine.settings
    file.unlink()
    play(engine)
    fresh = AttackEngine(settings, seed=9, begins=False)
    fresh.load_state_dict(state)
    for other in (fresh, pickle.loads(packed)):
        play(other)
        assert same(other.state_dict(), engine.state_dict())
        assert same(dict(other.learner.others.state_dict()), dict(initial))
    with pytest.raises(ValueError, match=r"init_from: .*no such file"):
        fresh.reset(5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "fare"}, "keeps the features of the encoder that it starts from: give its file as --init_from"),
        ({"method": "deacl", "teacher": "x", "init_from": "y"}, "starts from its teacher: leave it out"),
        ({"method": "profeat", "teacher": "x", "projector": "none"}, "compares projections: give the teacher's kind"),
        ({"init_from": 3}, "init_from is 3: expected a path"),
        ({"init_from": ""}, "init_from is empty"),
    ],
)
def test_what_does_not_fit_together_is_refused(changes: dict, message: str, tiny: dict) -> None:
    with pytest.raises(ValueError, match=message):
        WorldSettings.given(**tiny | changes)


def test_a_file_of_another_shape_is_refused_with_both(tiny: dict, file: Path) -> None:
    with pytest.raises(ValueError, match=r"init_from: .*\(2, 3, 3, 3\) there and \(4, 3, 3, 3\) here: take width 2"):
        world(tiny, file, "acl", width=4)


@pytest.mark.parametrize("scratch", [False, True])
def test_a_student_of_profeat_has_its_teachers_projector_and_without_scratch_its_backbone(
    scratch: bool, tiny: dict, teacher: str
) -> None:
    settings = WorldSettings.of(**tiny, method="profeat", teacher=teacher, method_kwargs={"scratch": scratch})
    learner = AttackEngine(settings, seed=3).learner
    theirs, ours = learner.others["teacher"].state_dict(), learner.network.state_dict()
    alike = {name for name in ours if torch.equal(ours[name], theirs[name])}
    assert {name for name in ours if name.startswith("projector.")} <= alike
    assert ("backbone.conv.weight" in alike) != scratch


def test_a_teacher_with_another_projector_is_refused_by_profeat(tiny: dict, teacher: str) -> None:
    with pytest.raises(ValueError, match="projector is acl there and rocl here: give --projector acl"):
        AttackEngine(WorldSettings.of(**tiny, method="profeat", teacher=teacher, projector="rocl"))
