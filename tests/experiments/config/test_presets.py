from astra_gym.envs.api.action_sets import ASTRA_SETS
from astra_gym.experiments.config.presets import PRESETS
from astra_gym.experiments.config.settings import Settings
from astra_gym.ssl_core.downstream.linear_probe import standard_probe


def test_a_folder_is_probed_as_any_data_set_without_a_published_protocol() -> None:
    standard, preset = standard_probe("folder"), PRESETS["folder"]
    assert (preset["probe_lr"], preset["probe_epochs"]) == (standard.lr, standard.epochs)
    assert preset["probe_augment"] == standard.augment


def test_an_own_folder_of_images_is_attacked_by_what_was_best_in_long_runs() -> None:
    folder = Settings.from_preset("folder")
    assert folder.agent.agent == "escalating" and folder.ranges.sets == Settings.from_preset("cifar10-16").ranges.sets
    # what it was compared with is asked for by name, with ASTrA's ranges
    assert Settings.from_preset("folder", agent="reinforce").ranges.sets == ASTRA_SETS
    agents = {method: Settings.from_preset("folder", method=method).agent.agent for method in ("acl", "simclr")}
    assert agents == {"acl": "reinforce", "simclr": "none"}
    assert Settings.from_preset("cifar10").agent.agent == "reinforce-paper"
