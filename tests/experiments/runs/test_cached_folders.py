"""The main command on a folder of images whose decoded images are kept on disk."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from astra_gym.experiments.runs.metrics import read_metrics
from astra_gym.experiments.train_agent import main
from astra_gym.ssl_core.data.datasets import load_dataset
from astra_gym.ssl_core.models.checkpoint import load_network
from astra_gym.ssl_core.utils.provenance import ROOT

SCRIPT = ROOT / "experiments" / "train_agent.py"
TINY = (
    *("--dataset=folder", "--batch_size=4", "--image_size=8", "--width=2", "--projector_hidden=8"),
    *("--projector_dim=8", "--epochs=2", "--warmup_epochs=0", "--images_every=9"),
)


def pictures(root: Path, n: int = 26, side: int = 12) -> Path:
    generator = np.random.default_rng(0)
    for k in range(n):
        path = root / "ab"[k % 2] / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(path)
    return root


def call(*flags: str) -> int:
    """The exit status, of the parser's refusals too."""
    try:
        return main([*TINY, *flags])
    except SystemExit as ended:
        return int(ended.code or 0)


def assert_equal_runs(a: Path, b: Path) -> None:
    ours, theirs = (load_network(folder)[0].state_dict() for folder in (a, b))
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    assert read_metrics(a / "metrics.jsonl") == read_metrics(b / "metrics.jsonl")


def test_a_run_from_the_cache_is_the_run_from_memory_and_may_be_resumed_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, cache = pictures(tmp_path / "pictures"), tmp_path / "cache"
    flags = [f"--data_dir={root}", "--evaluate=false"]
    assert call(*flags, f"--run_dir={tmp_path / 'plain'}") == 0
    # a path that means something else where the run is resumed
    monkeypatch.chdir(tmp_path)
    assert call(*flags, f"--run_dir={tmp_path / 'cached'}", "--cache_dir=cache") == 0
    assert_equal_runs(tmp_path / "plain", tmp_path / "cached")
    files = {path: path.stat().st_mtime_ns for path in cache.iterdir()}
    assert len(files) == 2
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert main(["--resume", str(tmp_path / "cached"), "--keep_data=device"]) == 0
    assert {path: path.stat().st_mtime_ns for path in cache.iterdir()} == files
    assert not (tmp_path / "elsewhere" / "cache").exists()
    assert main(["--resume", str(tmp_path / "cached"), f"--cache_dir={tmp_path / 'other'}"]) == 0
    assert len(list((tmp_path / "other").iterdir())) == 2


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (["--cache_dir={root}/a/0.png"], ["0.png (Not a directory)", "give another --cache_dir"]),
        (["--cache_dir=/proc/nowhere"], ["the decoded images cannot be kept in /proc/nowhere", "--cache_dir"]),
        (["--cache_dir=cache", "--dataset=digits"], ["cache_dir is", "digits is not decoded from image files"]),
        (["--keep_data=gpu"], ["unknown place to keep the data 'gpu'", "auto, device, host"]),
    ],
)
def test_bad_input_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], parts: list[str]
) -> None:
    root = pictures(tmp_path / "pictures", 4)
    given = [f"--data_dir={root}", f"--run_dir={tmp_path / 'run'}", *(flag.format(root=root) for flag in flags)]
    assert call(*given) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("train_agent.py: error: ")
    assert all(part in lines[0] for part in parts), lines
    assert not (tmp_path / "run").exists()


@pytest.mark.every_agent
def test_ctrl_c_while_decoding_leaves_nothing(tmp_path: Path) -> None:
    root, cache = pictures(tmp_path / "pictures", 120, 300), tmp_path / "cache"
    flags = [*TINY, f"--data_dir={root}", f"--run_dir={tmp_path / 'run'}", f"--cache_dir={cache}"]

    def heeding_interrupts() -> None:
        # a shell starts what is in the background with interrupts ignored, and that is inherited
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    command = [sys.executable, str(SCRIPT), *flags]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=heeding_interrupts)
    while not (cache.is_dir() and list(cache.iterdir())):
        assert process.poll() is None
        time.sleep(0.001)
    process.send_signal(signal.SIGINT)
    error = process.communicate()[1]
    assert (process.returncode, error) == (130, "train_agent.py: error: interrupted before training began\n")
    assert list(cache.iterdir()) == [] and not (tmp_path / "run").exists()
    plain, cached = (
        load_dataset("folder", data_dir=str(root), image_size=8, cache_dir=folder) for folder in (None, str(cache))
    )
    assert torch.equal(plain.train.images, cached.train.images)
