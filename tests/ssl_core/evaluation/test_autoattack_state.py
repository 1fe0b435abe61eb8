import json
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from pyautoattack import AutoAttack
from torch import Tensor, nn

from astra_gym.ssl_core.evaluation import attack_library, autoattack
from astra_gym.ssl_core.evaluation.autoattack import autoattack_accuracy, check_state
from astra_gym.ssl_core.transforms.views import as_float
from astra_gym.ssl_core.utils.provenance import ROOT

SEED = 3
EPSILON = 0.01


class Network(nn.Module):
    """A small network that is not linear."""

    def __init__(self, seed: int = 4) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.first = nn.Parameter(torch.randn(75, 24, generator=generator))
        self.second = nn.Parameter(torch.randn(24, 10, generator=generator))

    def forward(self, images: Tensor) -> Tensor:
        return torch.sin(images.flatten(1) @ self.first) @ self.second


def network() -> Network:
    return Network().eval()


def data(n: int) -> tuple[Tensor, Tensor]:
    """Images and what the network takes them for; one label in ten is wrong."""
    images = torch.randint(256, (n, 3, 5, 5), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    with torch.no_grad():
        labels = network()(as_float(images)).argmax(1)
    labels[::10] = (labels[::10] + 1) % 10
    return images, labels


class Short(AutoAttack):
    """The library with fewer steps; that it is the library's is tested in test_autoattack.py."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        for attack in (self.apgd, self.apgd_targeted):
            attack.n_iter = attack.n_iter_orig = 10
        self.fab.n_iter = 5
        self.square.n_queries = 100


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attack_library, "AutoAttack", Short)


def run_to_the_end(state: Path, trace: Path) -> None:
    """What the killed processes run: every batch is written down, and takes long enough to be met."""
    attack_library.AutoAttack = Short  # type: ignore[misc]
    torch.set_num_threads(1)

    def told(done: int, total: int) -> None:
        with trace.open("a") as file:
            file.write(f"{done} {total}\n")
        time.sleep(0.03)

    autoattack_accuracy(network(), *data(60), EPSILON, seed=SEED, batch_size=2, state_path=state, progress=told)


WORKER = """
import importlib.util, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
# by its path: other packages called `tests` are installed on many a machine
spec = importlib.util.spec_from_file_location("worker", sys.argv[2])
module = sys.modules["worker"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
module.run_to_the_end(*map(Path, sys.argv[3:]))
"""


@pytest.mark.every_agent
def test_a_run_that_is_killed_three_times_equals_an_undisturbed_one(short: None, tmp_path: Path) -> None:
    whole = autoattack_accuracy(network(), *data(60), EPSILON, seed=SEED, batch_size=2)
    state, trace = tmp_path / "new" / "state.json", tmp_path / "trace"
    trace.touch()
    moments = random.Random(5)
    found = []
    for _ in range(3):
        worker = subprocess.Popen([sys.executable, "-c", WORKER, str(ROOT), __file__, str(state), str(trace)])
        try:
            begun = trace.read_text().count("\n")
            deadline = time.monotonic() + 60
            while trace.read_text().count("\n") == begun and worker.poll() is None and time.monotonic() < deadline:
                time.sleep(0.005)
            time.sleep(moments.uniform(0, 0.15))
        finally:
            worker.kill()
        assert worker.wait() == -9, "it was through before it was killed"
        found.append(json.loads(state.read_text())["attacks"])
    batches = [sum(stage["batches"] for stage in attacks.values()) for attacks in found]
    assert 0 < batches[0] < batches[1] < batches[2]
    told: list[tuple[int, int]] = []
    seconds: dict[str, float] = {}
    resumed = autoattack_accuracy(
        network(),
        *data(60),
        EPSILON,
        seed=SEED,
        batch_size=2,
        state_path=state,
        progress=lambda done, total: told.append((done, total)),
        finished=seconds.__setitem__,
    )
    assert list(resumed) == list(whole)
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)
    # nothing was done twice but the batches in which it was killed
    ended = json.loads(state.read_text())["attacks"]
    total = sum(stage["batches"] for stage in ended.values())
    assert len(told) == total - batches[2] > 0 and told[-1][0] == told[-1][1]
    assert seconds == {name: stage["seconds"] for name, stage in ended.items()}
    assert seconds["apgd-ce"] >= found[2]["apgd-ce"]["seconds"] > found[0]["apgd-ce"]["seconds"] > 0
    assert list(state.parent.iterdir()) == [state]


def test_a_finished_state_is_read_and_nothing_is_attacked_again(
    short: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments: dict[str, Any] = {"seed": SEED, "batch_size": 10, "state_path": tmp_path / "state.json"}
    first = autoattack_accuracy(network(), *data(20), EPSILON, **arguments)
    monkeypatch.setattr(autoattack, "attack_of", None)
    again = autoattack_accuracy(network(), *data(20), EPSILON, **arguments)
    assert all(torch.equal(again[name], first[name]) for name in first)


def test_a_state_can_be_checked_alone(short: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usual: dict[str, Any] = {"seed": SEED, "batch_size": 6, "state_path": tmp_path / "state.json", "version": "quick"}
    check_state(network(), *data(12), EPSILON, **usual)
    assert not list(tmp_path.iterdir())
    autoattack_accuracy(network(), *data(12), EPSILON, **usual)
    before = usual["state_path"].read_bytes()
    monkeypatch.setattr(autoattack, "attack_of", None)
    check_state(network(), *data(12), EPSILON, **usual)
    assert usual["state_path"].read_bytes() == before


class Louder(Network):
    """Other logits from the same weights."""

    def forward(self, images: Tensor) -> Tensor:
        return 2 * super().forward(images)


def test_a_state_of_another_evaluation_is_refused(short: None, tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    images, labels = data(12)
    usual: dict[str, Any] = {"seed": SEED, "batch_size": 6, "state_path": path, "version": "quick"}
    autoattack_accuracy(network(), images, labels, EPSILON, **usual)
    before = path.read_bytes()
    other, louder = Network(seed=5).eval(), Louder().eval()
    changed = labels.clone()
    changed[-1] = (changed[-1] + 1) % 10
    for model, x, y, epsilon, change, words in (
        (other, images, labels, EPSILON, {}, r"of another evaluation: another model\. To go on, delete it, or give"),
        (louder, images, labels, EPSILON, {}, "equal weights that computes other logits"),
        (network(), images.flip(0), labels, EPSILON, {}, r": other images\."),
        (network(), images, changed, EPSILON, {}, r": other labels\."),
        (network(), images, labels, 0.05, {}, r": another epsilon \(0.01, not 0.05\)"),
        (network(), images, labels, EPSILON, {"norm": "L2"}, r": another norm \(Linf, not L2\)"),
        (network(), images, labels, EPSILON, {"seed": 4}, r": another seed \(3, not 4\)"),
        (network(), images, labels, EPSILON, {"batch_size": 5}, r": another batch size \(6, not 5\)"),
        (
            network(),
            images,
            labels,
            EPSILON,
            {"version": "standard"},
            r"another list of attacks \(\['apgd-ce', 'apgd-t'",
        ),
    ):
        for refusing in (autoattack_accuracy, check_state):
            with pytest.raises(ValueError, match=words):
                refusing(model, x, y, epsilon, **usual | change)
    assert path.read_bytes() == before


def test_a_state_of_another_library_is_refused(short: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usual: dict[str, Any] = {"seed": SEED, "state_path": tmp_path / "state.json", "version": "quick"}
    autoattack_accuracy(network(), *data(12), EPSILON, **usual)
    installed = autoattack.versions()
    monkeypatch.setattr(autoattack, "versions", lambda: installed | {"pyautoattack": "9.9"})
    with pytest.raises(ValueError, match=r"another version of pyautoattack \(.*, not 9.9\)"):
        autoattack_accuracy(network(), *data(12), EPSILON, **usual)


@pytest.mark.parametrize("damage", ["cut", "flag", "batches", "list", "binary", "key"])
def test_a_damaged_state_is_refused(damage: str, short: None, tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    usual: dict[str, Any] = {"seed": SEED, "state_path": path, "version": "quick"}
    autoattack_accuracy(network(), *data(12), EPSILON, **usual)
    document = json.loads(path.read_text())
    if damage == "cut":
        path.write_text(path.read_text()[:-40])
    elif damage == "binary":
        path.write_bytes(b"\xff\xfe\x00")
    elif damage == "list":
        path.write_text("[]")
    else:
        stage = document["attacks"]["apgd-ce"]
        if damage == "flag":
            stage["right"] = "1" * 12 if stage["right"] != "1" * 12 else "0" * 12
        elif damage == "batches":
            stage["batches"] = 0
        else:
            del document["key"]
        path.write_text(json.dumps(document))
    with pytest.raises(ValueError, match=r"state\.json is damaged .*: delete it, or give another path"):
        autoattack_accuracy(network(), *data(12), EPSILON, **usual)


@pytest.mark.parametrize("schema", [1, 3])
def test_a_state_of_another_schema_is_refused(schema: int, short: None, tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    path.write_text(f'{{"schema": {schema}}}')
    with pytest.raises(ValueError, match=rf"has schema {schema}, not 2: delete it"):
        autoattack_accuracy(network(), *data(12), EPSILON, seed=0, state_path=path)
