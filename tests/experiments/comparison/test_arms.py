from dataclasses import replace

import pytest

from astra_gym.experiments.comparison.arms import (
    Arm,
    absolute,
    base_arms,
    check_equal_compute,
    comparable,
    compute_arms,
    differences,
    make_arm,
    ordered,
    settings_of,
)
from astra_gym.experiments.config.settings import Settings
from tests.helpers.made_cells import made_cell


def grid(*agents: str, methods=("astra",), presets=("digits-grid",), own=(), flags=(), seeds=2, primary=3) -> list[Arm]:
    return base_arms(agents, methods, presets, own, flags, seeds, primary)


def test_the_arms_are_the_agents_and_those_of_ones_own() -> None:
    arms = grid(
        "reinforce", "ppo", own=["cost=--agent reinforce --reward_mixed 0.5 --epochs=4"], flags=["--epochs", "3"]
    )
    assert [(arm.label, arm.agent, arm.seeds) for arm in arms] == [
        ("reinforce", "reinforce", 3),
        ("ppo", "ppo", 2),
        ("cost", "reinforce", 2),
    ]
    assert [arm.settings["epochs"] for arm in arms] == [3, 3, 4]
    assert [arm.settings["reward_mixed"] for arm in arms] == [0, 0, 0.5]
    expected = Settings.from_preset("digits-grid", agent="ppo", epochs=3, seed=7, run_dir="x", progress="off")
    assert arms[1].settings == comparable(expected)


def test_ones_own_arms_may_be_the_only_ones() -> None:
    own = ["a=--agent fixed", "b=--agent random"]
    assert [arm.label for arm in grid(own=own)] == ["a", "b"]
    assert [arm.label for arm in grid(methods=("simclr",), own=["clean=--agent none"])] == ["clean"]


def test_methods_and_presets_are_dimensions_and_a_method_without_an_attack_has_one_arm() -> None:
    arms = grid("reinforce", "fixed", methods=["acl", "simclr"], presets=["digits", "digits-grid"])
    # the label is the same in each: it is by it that the report knows an arm
    assert [arm.label for arm in arms] == 2 * ["reinforce", "fixed", "none"]
    assert [arm.name for arm in arms] == [
        *("reinforce-acl-digits", "fixed-acl-digits", "none-simclr-digits"),
        *("reinforce-acl-digits-grid", "fixed-acl-digits-grid", "none-simclr-digits-grid"),
    ]
    assert arms[0].named(2) == "reinforce-acl-digits-seed2"
    assert [arm.name for arm in grid("fixed", methods=["acl", "astra"])] == ["fixed-acl", "fixed-astra"]
    [only] = grid("fixed", methods=["acl"])
    assert only.label == only.name == "fixed" and only.settings["method"] == "acl"


def test_a_shared_flag_is_left_out_of_the_methods_that_have_no_use_of_it() -> None:
    arms = grid("fixed", methods=["acl", "deacl"], flags=["--strength", "0.7", "--teacher", "x"])
    assert [("--strength" in arm.flags, arm.settings["strength"]) for arm in arms] == [(True, 0.7), (False, 0.5)]
    with pytest.raises(ValueError, match=r"strength is 0\.7, but in the method deacl"):
        grid("fixed", methods=["deacl"], flags=["--strength", "0.7", "--teacher", "x"])


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ({"flags": ["--seed", "3"]}, "take --seeds"),
        ({"flags": ["--run_dir=x"]}, "take --dir"),
        ({"flags": ["--method=acl"]}, "take --methods"),
        ({"flags": ["--progress=off"]}, "--progress"),
        ({"flags": ["--evaluate=false"]}, "accuracies"),
        ({"flags": ["--epochs=0"]}, "epochs"),
        # what all arms have in common is blamed on none
        ({"flags": ["--epohs=1"]}, r"did you mean --epochs\?$"),
        ({"methods": ["astr"]}, "did you mean 'astra'"),
        ({"presets": ["digit"]}, "did you mean 'digits'"),
        ({"own": ["x=--agent ppo", "x=--agent a2c"]}, "two arms are called x"),
        # it would be tested as the agent of that name
        ({"own": ["reinforce=--agent ppo"]}, "reinforce is the label of the agent"),
        ({"own": ["x=--probe_epochs 3"]}, "fixed and x cannot be compared: --probe_epochs is 100 in the one and 3"),
        ({"own": ["x=--probe_augment true"]}, "--probe_augment"),
        ({"own": ["x=--limit 300"]}, "--limit"),
        ({"own": ["x=--test_limit 30"]}, "--test_limit"),
        ({"own": ["x=--image_size 32"]}, "--image_size"),
        ({"own": ["x=--eval_epsilons=[4/255]"]}, "--eval_epsilons"),
        ({"own": ["x=--dataset folder --data_dir /a"]}, "--dataset"),
        ({"own": ["x=--data_dir /a"]}, "--data_dir"),
        ({"own": ["x y=--agent ppo"]}, "LABEL=FLAGS"),
        ({"own": ["x"]}, "LABEL=FLAGS"),
        ({"own": ["x@compute=--agent ppo"]}, "--equal_compute"),
        ({"own": ["x=--agent 'ppo"]}, "quotation"),
        ({"own": ["x=--seed 3"]}, "--seed is set for each run by the comparison, leave it out of the arm x"),
        ({"own": ["x=--agent pppo"]}, "in the arm 'x'"),
        ({"own": ["x=--epohs 1"]}, r"did you mean --epochs\? \(in the arm 'x'\)$"),
    ],
)
def test_bad_arms_are_told_in_one_line(arguments, part: str, capsys) -> None:
    with pytest.raises(ValueError, match=part) as caught:
        grid("fixed", **arguments)
    assert "\n" not in str(caught.value)
    assert capsys.readouterr().err == ""


def test_an_agent_of_ones_own_learns_and_has_a_label_that_is_a_folder(tmp_path, monkeypatch) -> None:
    (tmp_path / "own_agents.py").write_text("def act(observations):\n    return observations\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    [arm] = grid("own_agents:act")
    assert (arm.label, arm.agent, arm.learns) == ("own_agents.act", "own_agents:act", True)
    assert [arm.learns for arm in grid("fixed", "random", "ppo")] == [False, False, True]


def test_arms_of_other_presets_may_be_tested_in_other_ways() -> None:
    epsilons = [arm.settings["eval_epsilons"] for arm in grid("fixed", presets=["digits", "digits-grid"])]
    assert epsilons[0] != epsilons[1]


def test_cells_come_seed_by_seed() -> None:
    order = [arm.named(seed) for arm, seed in ordered(grid("fixed", "ppo"))]
    assert order == ["fixed-seed0", "ppo-seed0", "fixed-seed1", "ppo-seed1", "fixed-seed2"]


def test_paths_do_not_depend_on_the_current_folder(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute(["--data_dir", "a", "--cache_dir=b", "--epochs", "3"]) == [
        *("--data_dir", str(tmp_path / "a"), f"--cache_dir={tmp_path / 'b'}", "--epochs", "3"),
    ]


def test_differences_are_told_by_name() -> None:
    assert differences({"a": 1, "b": 2}, {"a": 1, "b": 2}) == []
    assert differences({"a": 1, "c": 3}, {"a": 2, "b": 2}) == [
        *("a is 1 and 2 in the plan", "b is None and 2 in the plan", "c is 3 and None in the plan"),
    ]


def test_an_arm_of_equal_compute_trains_until_it_has_spent_what_the_dearest_has() -> None:
    arms = grid("fixed", "random", "fixed-max", flags=["--epochs", "10", "--limit=100"])
    spent = {"fixed": (500, 500), "random": (840, 860), "fixed-max": (1400, 1400)}
    cells = [made_cell(arm, seed, attack_steps=n) for arm, numbers in spent.items() for seed, n in enumerate(numbers)]
    made = compute_arms(["fixed", "random", "fixed-max"], arms, cells, seeds=4)
    assert [(arm.label, arm.seeds, arm.settings["epochs"]) for arm in made] == [
        ("fixed@compute", 4, 28),
        # 10 * 1400 / 850 = 16.47
        ("random@compute", 4, 16),
    ]
    assert made[0].settings == {**arms[0].settings, "epochs": 28}
    assert settings_of(made[0].flags).data.limit == 100 and made[0].flags.count("--epochs") == 1
    # an arm without an attack step cannot make as many, however long it trains
    still = [replace(cell, attack_steps=0) if cell.arm == "fixed" else cell for cell in cells]
    assert [arm.label for arm in compute_arms(["fixed", "random"], arms, still, seeds=4)] == ["random@compute"]
    # not against another preset's arms
    other = replace(arms[2], settings={**arms[2].settings, "preset": "digits"})
    cells += [made_cell("fixed-max", preset="digits", attack_steps=9000)]
    [arm] = compute_arms(["fixed"], [arms[0], arms[1], other], cells, seeds=4)
    assert arm.settings["epochs"] == 17


def test_arms_of_equal_compute_are_made_in_every_method_and_preset_that_attacks() -> None:
    arms = grid("fixed", "fixed-max", methods=["acl", "simclr", "astra"], flags=["--epochs", "10"])
    spent = {("fixed", "acl"): 500, ("fixed-max", "acl"): 1000, ("fixed", "astra"): 600, ("fixed-max", "astra"): 1800}
    cells = [made_cell(label, method=method, attack_steps=n) for (label, method), n in spent.items()]
    cells += [made_cell("none", method="simclr", attack_steps=0)]
    made = compute_arms(["fixed", "none"], arms, cells, seeds=1)
    assert [(arm.label, arm.name, arm.settings["method"], arm.settings["epochs"]) for arm in made] == [
        ("fixed@compute", "fixed@compute-acl", "acl", 20),
        ("fixed@compute", "fixed@compute-astra", "astra", 30),
    ]


def test_equal_compute_takes_arms_that_attack() -> None:
    arms = grid("fixed", methods=["simclr", "acl"])
    check_equal_compute(["fixed"], arms)
    with pytest.raises(ValueError, match="has no attack"):
        check_equal_compute(["none"], arms)
    with pytest.raises(ValueError, match="did you mean 'fixed'"):
        check_equal_compute(["fixd"], arms)
    with pytest.raises(ValueError, match="fixed: its runs end when their --passes are spent, however many epochs"):
        check_equal_compute(["fixed"], grid("fixed", flags=["--passes", "50"]))


def test_a_planned_arm_is_checked_like_a_command_line() -> None:
    assert make_arm("x", ["--agent=fixed"], 2).named(1) == "x-seed1"
    with pytest.raises(ValueError, match="only the agents fixed, delayed"):
        make_arm("x", ["--agent=ppo", "--epsilon=8/255"], 2)
