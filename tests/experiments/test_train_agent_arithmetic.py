"""How the main command computes: its training as is asked, its evaluation in IEEE's float32."""

from pathlib import Path
from typing import Any

import pytest
import torch

from astra_gym.experiments.train_agent import main
from astra_gym.ssl_core.models.checkpoint import load_network
from astra_gym.ssl_core.models.target_network import TargetNetwork
from astra_gym.ssl_core.training.learner import TargetLearner

TINY = (
    *("--limit=26", "--test_limit=30", "--batch_size=4", "--image_size=8", "--width=2", "--projector_hidden=8"),
    *("--projector_dim=8", "--epochs=1", "--warmup_epochs=0", "--probe_epochs=2", "--eval_epsilons=[8/255]"),
)
"""6 updates."""


@pytest.mark.every_agent
def test_training_takes_tf32_in_bf16_only_and_the_evaluation_never(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[bool, bool]] = []

    def noting(kind: type, name: str) -> None:
        plain = getattr(kind, name)

        def noted(*given: Any, **named: Any) -> Any:
            seen.append((torch.backends.cudnn.allow_tf32, torch.are_deterministic_algorithms_enabled()))
            return plain(*given, **named)

        monkeypatch.setattr(kind, name, noted)

    noting(TargetLearner, "update")
    noting(TargetNetwork, "features")  # of the probe and its attack
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    for name, flags, training in (
        ("bf16", ("--precision=bf16",), (True, False)),
        ("fp32", ("--precision=fp32",), (False, False)),
        ("again", ("--precision=fp32", "--deterministic=true"), (False, True)),
    ):
        seen.clear()
        assert main([*TINY, "--epochs=1", f"--run_dir={tmp_path / name}", *flags]) == 0
        assert seen[:6] == [training] * 6 and set(seen[6:]) == {(False, training[1])}
    # on a CPU every run gives the same numbers again
    ours, theirs = (load_network(tmp_path / name)[0].state_dict() for name in ("fp32", "again"))
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
