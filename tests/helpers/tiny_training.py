"""The main command on worlds small enough for a run in seconds."""

from pathlib import Path

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from astra_gym.experiments.runs.metrics import read_metrics
from astra_gym.experiments.train_agent import main
from astra_gym.ssl_core.models.checkpoint import load_network

ROOT = Path(__file__).resolve().parent.parent.parent
SCRIPT = ROOT / "experiments" / "train_agent.py"
TINY = (
    *("--limit=26", "--test_limit=30", "--batch_size=4", "--image_size=8", "--width=2", "--projector_hidden=8"),
    *("--projector_dim=8", "--epochs=2", "--warmup_epochs=0", "--probe_epochs=2", "--eval_epsilons=[8/255]"),
    "--images_every=1",
)
"""6 updates an epoch, 12 in all."""

TINY_SETTINGS = {
    "limit": 26,
    "test_limit": 30,
    "batch_size": 4,
    "image_size": 8,
    "width": 2,
    "projector_hidden": 8,
    "projector_dim": 8,
    "epochs": 1,
}
"""The like, as settings."""


def run(folder: Path, *flags: str) -> int:
    return main([*TINY, f"--run_dir={folder}", *flags])


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_network(folder)[0].state_dict()


def assert_equal_runs(a: Path, b: Path) -> None:
    """Same final weights, same metrics, same curves in TensorBoard."""
    for (name, value), other in zip(weights(a).items(), weights(b).values(), strict=True):
        assert torch.equal(value, other), name
    assert read_metrics(a / "metrics.jsonl") == read_metrics(b / "metrics.jsonl")
    curves = []
    for folder in (a, b):
        events = EventAccumulator(str(folder)).Reload()
        tags = [tag for tag in events.Tags()["scalars"] if not tag.startswith(("time/", "memory/"))]
        curves.append({tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags})
    assert curves[0] == curves[1]


def expect_error(capsys, status: int, *parts: str) -> None:
    shown = capsys.readouterr().err
    assert status == 2
    assert "Traceback" not in shown
    assert len(shown.strip().splitlines()) == 1, shown
    for part in parts:
        assert part in shown, shown


def call(*flags: str) -> int:
    try:
        return main(list(flags))
    except SystemExit as end:
        return int(end.code or 0)
