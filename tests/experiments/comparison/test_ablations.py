import shlex

import pytest

from astra_gym.experiments.compare_agents import CompareFlags, main
from astra_gym.experiments.comparison.ablations import ABLATIONS
from astra_gym.experiments.comparison.arms import base_arms, settings_of
from astra_gym.experiments.comparison.folder import ComparisonFolder
from astra_gym.ssl_core.utils.stopping import StopRequested
from tests.helpers.tiny_training import TINY

PARTS = {
    "astra": {
        "acl": ("fixed", 0),
        "acl-mixed": ("fixed", 0.3),
        "acl-strategy": ("reinforce", 0),
        "astra": ("reinforce", 0.3),
    },
    "daq-sdp": {"daq": ("fixed", 0), "daq-sdp": ("fixed", 0.1)},
}
"""Agent and option of the part, by ablation and arm, if all runs are given another value of the option."""
OPTIONS = {"astra": ("mixed_weight", 0.3), "daq-sdp": ("gamma", 0.1)}


@pytest.mark.parametrize("name", ABLATIONS)
def test_arms_differ_in_nothing_but_the_named_parts(name: str) -> None:
    ablation, (option, value) = ABLATIONS[name], OPTIONS[name]
    flags = [f"--method_kwargs.{option}={value}", "--teacher=runs/teacher"]
    arms = base_arms([], [ablation.method], ["digits"], ablation.texts, flags, 1, 2, tests=ablation.tests)
    assert {arm.label: (arm.agent, arm.settings["method_kwargs"][option]) for arm in arms} == PARTS[name]
    assert {arm.seeds for arm in arms} == {2}
    whole = arms[-1].settings
    for arm in arms:
        method = settings_of(arm.flags).method.make()
        assert getattr(method, option) == arm.settings["method_kwargs"][option]
        others = {key for key in whole if arm.settings[key] != whole[key]}
        # the learned strategy has its own environment, views of it and arithmetic
        assert others <= {"method_kwargs", "agent", "env", "observation", "actions", "reward_scope"}


def test_it_is_planned_with_its_tests_and_further_arms(tmp_path, monkeypatch) -> None:
    def stop(*_: object) -> int:
        raise StopRequested(2)

    monkeypatch.setattr("astra_gym.experiments.compare_agents.Comparer.run", stop)
    words = ["--ablation", "astra", "--agents", "random", "--arm", "long=--agent fixed --epochs 3", "--seeds", "1"]
    assert main([*words, "--preset=digits", *TINY, "--dir", str(tmp_path / "c")]) == 130
    plan = ComparisonFolder(tmp_path / "c").read_plan(None)
    assert [arm.label for arm in plan.arms] == ["random", "acl", "acl-mixed", "acl-strategy", "astra", "long"]
    assert plan.tests == ABLATIONS["astra"].tests and shlex.join(words[:2]) in plan.command


def test_another_method_or_name_is_refused() -> None:
    with pytest.raises(ValueError, match="leave --methods out"):
        CompareFlags(ablation="astra", methods=("acl",))
    with pytest.raises(ValueError, match="did you mean 'astra'"):
        CompareFlags(ablation="atsra")
