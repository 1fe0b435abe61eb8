from astra_gym.experiments.config.presets import PRESETS
from astra_gym.ssl_core.downstream.linear_probe import standard_probe


def test_a_folder_is_probed_as_any_data_set_without_a_published_protocol() -> None:
    standard, preset = standard_probe("folder"), PRESETS["folder"]
    assert (preset["probe_lr"], preset["probe_epochs"]) == (standard.lr, standard.epochs)
    assert preset["probe_augment"] == standard.augment
