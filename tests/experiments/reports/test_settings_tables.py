import json

from astra_gym.experiments.reports.settings_tables import reward_table, settings_table
from tests.helpers.comparison_tables import Make, column, compared


def test_rewards_have_means_and_intervals(make_cell: Make) -> None:
    held_out = {"ppo": 0.15, "uniform random": 0.07, "method's own budget": 0.05}
    cells = [
        make_cell("ppo@long", seed, agent="ppo", reward_first=0.2 + seed / 100, reward_last=0.1, held_out=held_out)
        for seed in range(3)
    ]
    cells += [make_cell("none", 0, reward_first=None, reward_last=None, held_out={})]
    table = reward_table(compared(cells))
    texts = {row[0].text: [entry.text for entry in row[1:]] for row in table.rows}
    # 0.21 +- 4.3027 * 0.01 / sqrt(3)
    held = [f"{value:.3f}" for value in (0.15, 0.07, 0.05)]
    assert texts["ppo@long"] == ["3", "0.210 (0.185 to 0.235)", "0.100", *held]
    assert texts["none"] == ["1"] + 5 * ["-"]
    assert "which they are in all arms here" in table.note


def test_rewards_of_other_settings_are_told_apart(make_cell: Make) -> None:
    cells = [make_cell("reinforce"), make_cell("reinforce-cost", settings={"reward_cost": 0.01})]
    table = reward_table(compared(cells))
    assert column(table, "the reward's settings") == {
        "reinforce": "reward_cost 0",
        "reinforce-cost": "reward_cost 0.01",
    }
    assert "which they are not in all arms here" in table.note


def test_an_agents_own_settings_keep_their_units(make_cell: Make) -> None:
    kwargs = {"epsilon": 1e-5, "step_size": [0.5], "policy": {"exploration_epsilon": 0.05}}
    cells = [make_cell("dqn", settings={"agent_kwargs": kwargs, "epsilon": 8 / 255}), make_cell("ppo")]
    found = settings_table(compared(cells))
    assert column(found, "agent_kwargs")["dqn"] == "epsilon 1e-05, policy exploration_epsilon 0.05, step_size [0.5]"
    assert column(found, "epsilon")["dqn"] == "8/255"


def test_arms_that_did_not_make_the_same_updates_are_told(make_cell: Make) -> None:
    look = {"reward_lookahead": 1.0, "lookahead_images": 24}
    cells = [make_cell("reinforce"), make_cell("fixed", settings={"lookahead_images": 24})]
    cells += [make_cell("reinforce@compute", updates=400)]
    assert "same updates" not in settings_table(compared(cells)).note
    cells += [make_cell("look", settings=look, updates=218), make_cell("same", settings=look)]
    assert settings_table(compared(cells)).note.endswith(
        " Not all arms of astra, digits-grid made the same updates: 220 updates: reinforce, fixed; "
        "218 updates with 24 images held out: look; 220 updates with 24 images held out: same. "
        "Arms that hold images out see the others in another order."
    )


def test_settings_are_told_where_arms_differ(make_cell: Make) -> None:
    cells = [make_cell("reinforce", seed) for seed in range(2)]
    cells += [make_cell("ppo", seed, settings={"epochs": 20 + seed, "agent_kwargs": {"lr": 0.1}}) for seed in range(2)]
    # as read from a file: lists for tuples
    read = json.loads(json.dumps(dict(make_cell("reinforce").settings)))
    cells += [make_cell("reinforce", 2, settings=read)]
    table = settings_table(compared(cells))
    assert list(table.columns) == ["arm", "agent", "agent_kwargs", "epochs"]
    assert [[entry.text for entry in row] for row in table.rows] == [
        ["reinforce", "reinforce", "none", "10"],
        ["ppo", "ppo", "lr 0.1", "20; 21"],
    ]
    assert table.note == (
        "Shared by all: method astra, preset digits-grid, eval_epsilons [8/255], reward_adversarial 0.3333, "
        "reward_cost 0."
    )


def test_columns_of_words_are_aligned_as_words_and_those_of_numbers_as_numbers(make_cell: Make) -> None:
    cells = [make_cell("reinforce"), make_cell("ppo", settings={"epochs": 7, "arch": "resnet18"})]
    table = settings_table(compared(cells))
    assert "epochs" in table.columns and "epochs" not in table.words
    assert "arch" in table.words
