import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from astra_gym.__main__ import main as astra_gym_main
from astra_gym.experiments.config.commands import COMMANDS, called, help_text, program, recorded, typed
from astra_gym.ssl_core.utils.provenance import ROOT


@pytest.mark.parametrize("name", COMMANDS)
def test_every_name_stands_for_a_command(name: str) -> None:
    module = importlib.import_module(f"astra_gym.experiments.{COMMANDS[name]}")
    assert callable(module.main) and (ROOT / "experiments" / f"{COMMANDS[name]}.py").is_file()


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("experiments/train_agent.py", ["train_agent.py", "python experiments/train_agent.py --resume 'a b'"]),
        ("experiments/compare_agents.py", ["train_agent.py", "python experiments/train_agent.py --resume 'a b'"]),
        ("/somewhere/bin/astra-gym", ["astra-gym train", "astra-gym train --resume 'a b'"]),
        ("x/astra_gym/__main__.py", ["astra-gym train", "python -m astra_gym train --resume 'a b'"]),
        # called by a program of the user's, from a console
        ("sweep.py", ["train_agent.py", f"python {ROOT}/experiments/train_agent.py --resume 'a b'"]),
        ("", ["train_agent.py", f"python {ROOT}/experiments/train_agent.py --resume 'a b'"]),
    ],
)
def test_a_command_is_named_as_it_was_called(argument: str, expected: list[str], monkeypatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", [argument])
    assert [program("train"), typed("train", "--resume", "a b")] == expected


def test_what_is_recorded_can_be_called_again(monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/bin/astra-gym"])
    assert called("compare") == recorded("compare") == ["astra-gym", "compare"]
    assert help_text("python experiments/report.py X, see train_agent.py") == "astra-gym report X, see astra-gym train"
    monkeypatch.setattr(sys, "argv", ["../experiments/compare_agents.py"])
    assert called("compare") == ["../experiments/compare_agents.py"]
    assert recorded("compare") == ["python", "experiments/compare_agents.py"]
    assert help_text("see train_agent.py") == "see train_agent.py"


def run(*words: str, cwd: Path, **more: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return subprocess.run([sys.executable, *words], cwd=cwd, env=clean | more, capture_output=True, text=True)


def test_the_module_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert astra_gym_main(["--help"]) == 0
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    assert listed == list(COMMANDS)
    with pytest.raises(SystemExit) as stop:
        astra_gym_main(["--help", "report", "flags"])
    assert stop.value.code == 0 and "--out DIR" in capsys.readouterr().out
    assert astra_gym_main(["--help", "zzz"]) == 2 and "unknown command 'zzz'" in capsys.readouterr().err


@pytest.mark.slow
def test_the_module_is_the_command(tmp_path: Path) -> None:
    shown = run("-m", "astra_gym", "report", "nowhere", cwd=tmp_path, PYTHONPATH=str(ROOT))
    assert shown.returncode == 2 and shown.stderr.startswith("astra-gym report: error: ")


@pytest.mark.every_agent
def test_a_safe_path_keeps_what_the_user_put_on_the_path(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "minemod.py").write_text("raise SystemExit('the module of the user')\n")
    words = ("-P", str(ROOT / "experiments" / "train_agent.py"), "--agent", "minemod:first")
    assert "the module of the user" in run(*words, cwd=tmp_path, PYTHONPATH="mine").stderr
