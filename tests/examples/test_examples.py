"""Each example is short, runs as it says, and shows something; each kind of part has one."""

import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest

from astra_gym.experiments.train_agent import main

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SHOWS = {
    "custom_agent": r"epsilon \(/255\) by clean loss, lowest fifth first: (\d+\.\d(, )?){5}\n",
    "custom_dataset": r"even or odd, by a linear probe: \d+\.\d % of 60 test images right\n",
    "custom_method": r"loss of the first update -?\d\.\d{3}, of the last -?\d\.\d{3}\n",
    "custom_observation": r"(--env (view|batch): an agent that saw 6 numbers, .*\n(.*\n)*){2}",
    "custom_reward": r"reward/shift, the mean of each update: (\d\.\d{3}(, )?){12}\n",
    "custom_start": r"zero: mean attacked loss \d\.\d{3}\n(.*\n)*uniform: (.*\n)*custom_start:corners: ",
    "load_encoder": r"\d+ features; the nearest training image has the right digit for \d+ % of the tests\n",
    "sb3_ppo": r"24 target updates, the policy is in out/ppo.zip\n",
    "train_view_env": r"most likely indices of epsilon, steps, step size: \d+, \d+, \d; sizes \[13 12  5\]\n",
}
"""What the end of each example's output looks like."""


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The examples' folder on the path, as where they are run as scripts; afterwards no module of theirs is left."""
    monkeypatch.setattr(sys, "path", [str(EXAMPLES), *sys.path])
    for name in SHOWS:
        monkeypatch.delitem(sys.modules, name, raising=False)
        monkeypatch.setitem(sys.modules, name, None)  # type: ignore[arg-type]
        del sys.modules[name]


def test_each_is_tried_and_all_are_short() -> None:
    files = {file.stem: file.read_text(encoding="utf-8") for file in EXAMPLES.glob("*.py")}
    assert files.keys() == SHOWS.keys()
    assert all(len(text.splitlines()) < 60 for text in files.values())
    assert all(f"python examples/{name}.py" in text for name, text in files.items())


QUICK = ("custom_reward",)
"""Examples that `make test` runs; `make test-all` and `make docs` run all."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.every_agent) for name in SHOWS]
)
def test_an_example_trains_and_shows_something(name: str, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "out"])
    try:
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    except SystemExit as ended:
        assert not ended.code
    out = capsys.readouterr().out
    assert re.search(SHOWS[name], out), out


@pytest.mark.parametrize(
    "agent", ["fixed", *(pytest.param(name, marks=pytest.mark.every_agent) for name in ("reinforce", "random", "ppo"))]
)
def test_the_custom_method_trains_under_every_kind_of_agent_and_resumes(agent: str, tmp_path: Path) -> None:
    tiny = "--limit=26 --test_limit=30 --batch_size=4 --image_size=8 --width=2 --epochs=1 --probe_epochs=1"
    own = ["--method", "custom_method:AlignUniform", "--method_kwargs.uniformity", "0.5", "--agent", agent]
    own.append(f"--evaluate={agent != 'fixed'}")
    run = str(tmp_path / "run")
    assert main([*shlex.split(tiny), *own, "--run_dir", run]) == 0
    assert main(["--resume", run, "--trust"]) == 0
