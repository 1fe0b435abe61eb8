"""An encoder that a user has, from its library's file to a robust one that the library loads: the documented steps."""

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from PIL import Image
from sklearn.datasets import load_digits

from astra_gym.experiments import evaluate_encoder, export_encoder, train_agent
from astra_gym.ssl_core.evaluation.results import read_results
from astra_gym.ssl_core.models.checkpoint import load_network
from astra_gym.ssl_core.utils.hashing import file_digest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "methods.md"
SMALL = "--limit=24 --test_limit=9"
COMMANDS = {
    "train_agent.py": (train_agent.main, f"{SMALL} --batch_size=8 --epochs=1 --steps=3 --evaluate=false"),
    "evaluate_encoder.py": (evaluate_encoder.main, f"{SMALL} --epochs=1 --progress=off"),
    "export_encoder.py": (export_encoder.main, ""),
}
"""The commands of the page, and flags that make them small."""
MODELS: dict[str, Callable[[], torch.nn.Module]] = {
    "resnet18.pt": lambda: torchvision.models.resnet18(weights=None),
    # smaller than 224, so that it takes seconds
    "vit_tiny.pt": lambda: timm.create_model("vit_tiny_patch16_224", pretrained=False, img_size=32),
}
ALONE = """
import json, sys
sys.modules["astra_gym"] = None  # importing it is an error
import torch
code, place = json.loads(sys.stdin.read())
names = {"images": torch.load(f"{place}/images.pt")}
with torch.no_grad():
    exec(code, names)
torch.save(names["features"], f"{place}/features.pt")
"""


def steps(file: str) -> Iterator[list[str]]:
    """The documented commands for a file, with smaller images."""
    text = PAGE.read_text(encoding="utf-8")
    blocks = re.findall(r"^```shell\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    lines = [line for block in blocks for line in block.splitlines()]
    first = [line for line in lines if file in line]
    rest = [line for line in lines if "train_agent.py" not in line]
    assert len(first) == 1 and len(rest) == 2
    for line in (*first, *rest):
        yield shlex.split(re.sub(r"--image_size \d+", "--image_size 32", line))


def pictures(folder: Path) -> None:
    """Scans of three digits, in a folder for each."""
    digits = load_digits()
    for number, (scan, digit) in enumerate(zip(digits.images[:200], digits.target[:200], strict=True)):
        if digit < 3:
            place = folder / f"digit {digit}" / f"{number}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((scan * 255 / 16).astype("uint8")).resize((32, 32)).save(place)


@pytest.mark.slow
@pytest.mark.parametrize(
    "file", [pytest.param(file, marks=[] if "resnet" in file else pytest.mark.every_agent) for file in MODELS]
)
def test_the_documented_steps(file: str, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        theirs = MODELS[file]().eval()
    torch.save(theirs.state_dict(), file)
    # without the classifier it gives features
    setattr(theirs, "fc" if hasattr(theirs, "fc") else "head", torch.nn.Identity())
    pictures(tmp_path / "PICTURES")
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))

    said = ""
    for _, script, *words in steps(file):
        command, small = COMMANDS[Path(script).name]
        assert command([*words, *small.split()]) == 0
        said = capsys.readouterr().out
    rows = read_results(Path("runs/robust/evaluation/evaluation.json"))
    assert {row.metric for row in rows} == {"SA", "RA"} and {row.n for row in rows} == {9}
    [start] = json.loads(Path("runs/robust/environment.json").read_text())["starts"]
    assert start["init_from"]["loaded"] == ["backbone"] and start["init_from"]["sha256"] == file_digest(Path(file))

    # elsewhere: a process without this project
    torch.save(images, "images.pt")
    job = json.dumps((said.split("\n\n", 1)[1], str(tmp_path)))
    subprocess.run([sys.executable, "-I", "-c", ALONE], input=job, text=True, check=True, cwd=tmp_path)
    network, route = load_network("runs/robust")
    expected = network.features(images, route).detach()
    torch.testing.assert_close(torch.load("features.pt"), expected)
    # and they are not those of the file
    mean, std = network.get_buffer("mean"), network.get_buffer("std")
    with torch.no_grad():
        begun = theirs((images - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1))
    assert begun.shape == expected.shape and float((begun - expected).abs().max()) > 1e-6 < float(expected.std())
