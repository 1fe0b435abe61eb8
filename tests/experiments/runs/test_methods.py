"""Every method with its authors' budget and under three other agents: it trains, resumes exactly and is evaluated."""

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from astra_gym.experiments.train_agent import main
from astra_gym.ssl_core.methods import METHODS, make_method
from astra_gym.ssl_core.utils.hashing import file_digest
from tests.helpers.method_worlds import encoder_of
from tests.helpers.states import same
from tests.helpers.tiny_training import call, expect_error

TINY = (
    "--limit=8 --test_limit=20 --batch_size=4 --image_size=8 --width=2 --projector_hidden=8 --projector_dim=8 "
    "--epochs=1 --probe_epochs=1 --eval_epsilons=[8/255] --progress=off"
)
SMALLER = {
    "advcl": "--method_kwargs.clusters=[2,3]",
    "emp-ssl": "--neck=8 --method_kwargs.crops=2",
    "cf-amc-ssl": "--neck=8 --method_kwargs.crops=2",
    "byol": "--method_kwargs.predictor_hidden=4",
    "simsiam": "--method_kwargs.predictor_hidden=4",
    "taro": "--method_kwargs.predictor_hidden=4",
} | dict.fromkeys(
    [name for name, method in METHODS.items() if method.post_processed],
    "--post_kwargs.clusters=2 --post_kwargs.epochs=1 --post_kwargs.probe_epochs=1 --post_kwargs.steps=1",
)


def state(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "checkpoints" / "last.pt", weights_only=True)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teacher") / "run"
    assert main([*shlex.split(TINY), "--method=simclr", "--evaluate=false", f"--run_dir={folder}"]) == 0
    return folder


def test_a_method_with_a_former_flag_is_refused_in_one_line(tmp_path: Path, monkeypatch, capsys) -> None:
    source = "from astra_gym.ssl_core.methods import ACL\n\n\nclass Former(ACL):\n    start_radius = 8 / 255\n"
    (tmp_path / "former.py").write_text(source, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    flags = [*shlex.split(TINY), "--method=former:Former", "--agent=fixed", f"--run_dir={tmp_path / 'run'}"]
    said = "TypeError: start_radius of Former is attack.start_radius now: set attack = AttackTraits(...)"
    expect_error(capsys, call(*flags), "cannot import former", said)


def test_the_records_of_a_method_may_depend_on_its_options(tmp_path: Path, monkeypatch, interrupt) -> None:
    (tmp_path / "choosing.py").write_text(CHOOSING, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    for hard, other in ((True, "none"), (False, "fixed")):
        flags = [*shlex.split(TINY), "--method=choosing:Choosing", f"--method_kwargs.hard={str(hard).lower()}"]
        run = tmp_path / str(hard)
        assert call(*flags, f"--agent={other}", f"--run_dir={run}") == 2
        interrupt(1)
        assert main([*flags, "--evaluate=false", f"--run_dir={run}"]) == 130
        assert main([f"--resume={run}", "--trust"]) == 0


CHOOSING = """
from dataclasses import dataclass
from astra_gym.ssl_core.methods import ACL, AttackTraits, NetworkTraits


@dataclass(frozen=True)
class Choosing(ACL):
    hard: bool = True

    @property
    def attack(self):
        return AttackTraits(exists=self.hard)

    @property
    def networks(self):
        return NetworkTraits(others=("momentum",))

    def momentum(self, moment):
        return 0.9

    def losses(self, networks, views, adversarial):
        if self.hard:
            return super().losses(networks, views, adversarial)
        return {"clean": self.objective(networks(views, self.routes.clean).embeddings)}

    @property
    def weights(self):
        return super().weights if self.hard else {"clean": 1.0}
"""


def test_a_run_goes_on_with_its_teacher_wherever_that_lies_and_with_no_other(
    teacher: Path, tmp_path: Path, interrupt, capsys: pytest.CaptureFixture[str]
) -> None:
    moved, run = tmp_path / "moved", tmp_path / "run"
    shutil.copytree(teacher, tmp_path / "first")
    interrupt(1)
    flags = [*shlex.split(TINY), "--method=deacl", "--agent=fixed", "--evaluate=false", f"--run_dir={run}"]
    assert main([*flags, f"--teacher={tmp_path / 'first'}"]) == 130
    (tmp_path / "first").rename(moved)
    assert main([f"--resume={run}"]) == 2
    assert "the teacher (--teacher): " in capsys.readouterr().err
    other = tmp_path / "other"
    assert main([*shlex.split(TINY), "--method=simclr", "--evaluate=false", "--seed=1", f"--run_dir={other}"]) == 0
    assert main([f"--resume={run}", f"--teacher={other}"]) == 2
    assert "the teacher is another one than before" in capsys.readouterr().err
    assert main([f"--resume={run}", f"--teacher={moved}"]) == 0


@pytest.mark.parametrize("method", ["fare", "acl"])
def test_a_run_says_what_it_started_from_and_goes_on_without_it(
    method: str, teacher: Path, tmp_path: Path, interrupt, capsys: pytest.CaptureFixture[str]
) -> None:
    start, whole, parted = tmp_path / "start", tmp_path / "whole", tmp_path / "parted"
    shutil.copytree(teacher, start)
    flags = [*shlex.split(TINY.replace("--progress=off", "--progress=lines")), f"--method={method}", "--agent=random"]
    flags += ["--evaluate=false", f"--init_from={start}"]
    capsys.readouterr()
    assert main([*flags, f"--run_dir={whole}"]) == 0
    said = "init_from start/checkpoints/last.pt: loaded backbone"
    assert said in capsys.readouterr().out
    interrupt(1)
    assert main([*flags, f"--run_dir={parted}"]) == 130
    recorded = json.loads((parted / "environment.json").read_text(encoding="utf-8"))["starts"][0]["init_from"]
    assert recorded["sha256"] == file_digest(start / "checkpoints" / "last.pt")
    assert recorded["routes"] == dict.fromkeys(make_method(method).routes.names, "normal")
    assert recorded["random"] == [] and str(tmp_path) not in json.dumps(recorded)
    shutil.rmtree(start)
    capsys.readouterr()
    assert main([f"--resume={parted}"]) == 0
    assert said not in capsys.readouterr().out
    for part in ("world", "agent", "network"):
        assert same(state(whole)[part], state(parted)[part]), part
    assert main([*flags, f"--run_dir={tmp_path / 'third'}"]) == 2
    assert "init_from: " in capsys.readouterr().err and not (tmp_path / "third").exists()


def test_more_clusters_than_images_are_refused_before_training(tmp_path: Path, capsys) -> None:
    flags = [*shlex.split(TINY), "--method=dynacl++", "--agent=fixed", f"--run_dir={tmp_path / 'run'}"]
    assert main(flags) == 2
    assert "lower --post_kwargs.clusters" in capsys.readouterr().err and not (tmp_path / "run").exists()


AGENTS = ("reinforce", "ppo", "random", "fixed")
FIRST = {name: "fixed" if kind.post_processed else AGENTS[k % 3] for k, (name, kind) in enumerate(METHODS.items())}
"""The agent that trains with each method first: post-processing is seen where a run is evaluated."""
ALWAYS = {"astra", "simclr", "deacl", "dynacl++", "cf-amc-ssl"}
"""One of each kind: attacked, not attacked, taught, post-processed, and attacked for free."""
PAIRS = [
    pytest.param(
        method,
        agent,
        marks=()
        if method in ALWAYS and (agent == FIRST[method] or not kind.attack.exists)
        else pytest.mark.every_agent,
    )
    for method, kind in METHODS.items()
    for agent in (AGENTS if kind.attack.exists else ("fixed",))
]


@pytest.mark.parametrize(("method", "agent"), PAIRS)
def test_two_updates_of_a_pair(method: str, agent: str, teacher: Path, tmp_path: Path, interrupt) -> None:
    kind = METHODS[method]
    flags = [*shlex.split(TINY), f"--method={method}", *shlex.split(SMALLER.get(method, ""))]
    flags += [f"--agent={agent}"] * kind.attack.exists
    flags += [f"--{name}={file}" for name, file in encoder_of(method, str(teacher)).items()]
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    # the pictures take longer than the training: one agent's are enough
    evaluate = agent == "fixed"
    assert main([*flags, f"--run_dir={whole}", f"--evaluate={evaluate}"]) == 0
    interrupt(1)
    flags.append("--evaluate=false")
    assert main([*flags, f"--run_dir={parted}"]) == 130
    first = state(parted)["step"]
    assert main([f"--resume={parted}"]) == 0
    states = state(whole), state(parted)
    assert states[0]["step"] == (6 if kind.attack.free else 2) and 1 <= first <= states[0]["step"]
    for part in ("world", "agent", "network"):
        assert same(states[0][part], states[1][part]), part
    if evaluate:
        correct = json.loads((whole / "results" / "outcomes.json").read_text(encoding="utf-8"))["correct"]
        assert set(map(float, correct)) == {0.0, 8 / 255} and all(len(marks) == 20 for marks in correct.values())
