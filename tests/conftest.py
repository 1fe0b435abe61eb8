"""What several test files share: one thread a process, no folder left behind, a GPU or the real CIFAR-10 where it is at
hand."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from astra_gym.envs.engine import AttackEngine

torch.set_num_threads(1)
STAND_IN = "GPU_TESTS_ON"
"""A variable of the environment: `cpu` lets the tests for a GPU run on the CPU, to try the tests."""


def pytest_configure(config: pytest.Config) -> None:
    """Hides the GPU from all tests but those of `-m gpu`: they assert bits, and those are the CPU's."""
    if config.option.markexpr != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


@pytest.fixture
def gpu() -> torch.device:
    """The GPU, for tests marked `gpu`; they are skipped where there is none."""
    if os.environ.get(STAND_IN) == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        pytest.skip(f"no GPU is seen, which only -m gpu looks for (make test-gpu); {STAND_IN}=cpu tries the test")
    return torch.device("cuda", 0)


@pytest.fixture(scope="session", autouse=True)
def sb3_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Where a model of Stable-Baselines3 without a logger makes a folder, instead of in the system's temporary one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SB3_LOGDIR", str(tmp_path_factory.mktemp("sb3")))
        yield


@pytest.fixture(scope="session")
def cifar10_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the real CIFAR-10, as torchvision expects it; the test is skipped where it is not at hand."""
    script = Path(__file__).resolve().parents[2] / "shared" / "data" / "unpack_cifar10.py"
    if not script.is_file():
        pytest.skip(f"the real CIFAR-10 is not at hand: no {script}")
    folder = tmp_path_factory.mktemp("cifar10")
    subprocess.run([sys.executable, str(script), str(folder)], check=True, capture_output=True)
    return folder


@pytest.fixture
def interrupt(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """`interrupt(step)` sends this process a signal after so many updates, as a person at the keyboard would."""

    def at(step: int) -> None:
        play = AttackEngine.play

        def watched(engine, budget):
            record = play(engine, budget)
            if record.step == step:
                monkeypatch.setattr(AttackEngine, "play", play)
                os.kill(os.getpid(), signal.SIGINT)
            return record

        monkeypatch.setattr(AttackEngine, "play", watched)

    return at
