import pytest

from astra_gym.ssl_core.downstream.finetuning import FineTuneSettings


def test_defaults_are_the_published_protocol() -> None:
    # C7 and C8: 10 steps of 2/255 from the clean image, without noise
    assert FineTuneSettings() == FineTuneSettings(25, 0.1, 128, (15, 20), 0.9, 2e-4, 6.0, 8 / 255, 2 / 255, 10, 0.0)


@pytest.mark.parametrize(
    "change",
    [
        {"epochs": 0},
        {"lr": 0.0},
        {"lr": float("nan")},
        {"batch_size": 1},
        {"milestones": (5, 2)},
        {"momentum": 1.0},
        {"weight_decay": -1.0},
        {"beta": -1.0},
        {"epsilon": 8.0},
        {"step_size": 2.0},
        {"steps": -1},
        {"start_noise": -0.001},
    ],
)
def test_settings_out_of_range_are_refused(change: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"fine-tuning's {next(iter(change))} is"):
        FineTuneSettings(**change)  # type: ignore[arg-type]
