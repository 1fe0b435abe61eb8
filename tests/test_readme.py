"""The README's own text: its Python runs, its commands are ones that the scripts take, its pictures exist."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from astra_gym.experiments import compare_agents, evaluate_encoder, export_encoder, publish
from astra_gym.experiments import report as report_command
from astra_gym.experiments.comparison.arms import base_arms
from astra_gym.experiments.config.cli import parse
from astra_gym.experiments.evaluation.flags import evaluation_parser
from astra_gym.experiments.train_agent import main
from astra_gym.ssl_core.methods import METHODS

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
PYTHON = [text for language, text in BLOCKS if language == "python" and "(RewardTerm)" not in text]
[TERM] = [text for language, text in BLOCKS if language == "python" and "(RewardTerm)" in text]
COMMANDS = [line for language, text in BLOCKS if not language for line in text.splitlines()]
SMALLER = {
    'dataset="digits", batch_size=64': 'dataset="digits", batch_size=4, image_size=8, width=2',
    '"runs/demo"': "RUN",
}


def test_there_is_python_for_each_use() -> None:
    assert len(PYTHON) == 3
    assert all(len(block.strip().splitlines()) <= 12 for block in PYTHON)


@pytest.mark.parametrize("number", range(3))
def test_the_python_runs_at_a_small_size(tmp_path, capsys, number: int) -> None:
    text = PYTHON[number]
    if "load_network" in text:
        tiny = "--limit=26 --test_limit=30 --batch_size=4 --width=2 --epochs=1 --evaluate=false"
        assert main([*shlex.split(tiny), f"--run_dir={tmp_path / 'run'}"]) == 0
    changed = text
    for old, new in SMALLER.items():
        changed = changed.replace(old, new)
    assert changed != text, "the text no longer has the sizes that this test makes small"
    exec(compile(changed, f"README block {number}", "exec"), {"RUN": str(tmp_path / "run")})
    assert capsys.readouterr().out.strip()


TRAINING = [line for line in COMMANDS if "train_agent.py" in line and "--resume" not in line and "my_" not in line]


@pytest.mark.parametrize("command", TRAINING)
def test_the_training_commands_parse(command: str, tmp_path) -> None:
    words = shlex.split(command)
    assert words[:2] == ["python", "experiments/train_agent.py"] and (ROOT / words[1]).is_file()
    if "--list" in words:
        with pytest.raises(SystemExit) as ended:
            parse(words[2:])
        assert ended.value.code == 0
        return
    settings = parse(words[2:]).settings
    usual = "reinforce" if METHODS[settings.method].attacks else "none"
    assert settings.agent in command or settings.agent == usual


def test_the_reward_term_of_the_one_page_has_its_curve(tmp_path: Path, monkeypatch) -> None:
    """A stranger's way: the text into a file, the command, the curve in TensorBoard's file and in metrics.jsonl."""
    (tmp_path / "my_terms.py").write_text(TERM, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "my_terms", raising=False)
    [command] = [line for line in COMMANDS if "my_terms" in line]
    tiny = "--limit=26 --test_limit=30 --batch_size=4 --image_size=8 --width=2 --epochs=1 --evaluate=false"
    assert main([*shlex.split(command)[2:], *shlex.split(tiny), "--run_dir=run"]) == 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text("utf-8").splitlines()]
    shifts = [row["reward/shift"] for row in rows if "loss/total" in row]
    assert len(shifts) == 6 and all(0 < value < 2 for value in shifts)
    board = EventAccumulator(str(tmp_path / "run")).Reload()
    assert [event.value for event in board.Scalars("reward/shift")] == pytest.approx(shifts)


def test_the_comparison_runs_at_a_small_size_goes_on_and_is_reported(tmp_path: Path, capsys) -> None:
    about = ("compare_agents.py", "report.py comparisons/")
    new, resumed, report = (shlex.split(line) for line in COMMANDS if any(name in line for name in about))
    first, last = new.index("--agents") + 1, new.index("--seeds")
    agents = new[first:last]
    assert [arm.agent for arm in base_arms(agents, ["astra"], ["digits-grid"], [], [], 5, 10)] == agents
    # two of them tell whether the command runs
    new[first:last] = agents[:1] + agents[-1:]
    tiny = "--limit=26 --test_limit=30 --batch_size=4 --image_size=8 --width=2 --epochs=1 --probe_epochs=1 --seeds=1"
    folder = str(tmp_path / "small")
    steps = [[*new, *shlex.split(tiny), "--dir", folder], [*resumed[:-1], folder], [*report[:-1], folder]]
    commands = {"experiments/compare_agents.py": compare_agents.main, "experiments/report.py": report_command.main}
    for python, script, *words in steps:
        assert python == "python" and (ROOT / script).is_file()
        # in this process: three others would import for longer than they run
        assert commands[script](words) == 0
    [*_, page] = capsys.readouterr().out.split()
    assert page == f"{folder}/report.html"
    text = Path(page).read_text(encoding="utf-8")
    for agent in agents[:1] + agents[-1:]:
        assert agent in text


@pytest.fixture(scope="module")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "small"
    tiny = "--agent=fixed --limit=120 --test_limit=30 --batch_size=4 --image_size=8 --width=2 --epochs=1 --keep_every=1"
    assert main([*shlex.split(tiny), "--evaluate=false", "--progress=off", f"--run_dir={run}"]) == 0
    return run


@pytest.mark.parametrize("command", [line for line in COMMANDS if "evaluate_encoder.py runs/" in line])
def test_the_evaluations_of_a_run_run_at_a_small_size(command: str, small_run: Path, tmp_path: Path) -> None:
    words = [str(small_run) if word == "runs/NAME" else word for word in shlex.split(command)[2:]]
    # one image a class or so, a single attack: AutoAttack itself has tests of its own
    words = ["pgd20" if word == "autoattack" else word for word in words if word != "pgd20"]
    quick = [] if "--attacks" in words or "--everything" in words else ["--attacks", "pgd20"]
    if "--everything" in words:
        words = [word for word in words if word != "--everything"]
        quick = ["--attacks", "pgd20", "--shifts", "corruptions", "perspective", "--health", "--severities", "3"]
    tiny = "--epochs 1 --test_limit 20 --epsilons 8/255 --progress off"
    assert evaluate_encoder.main([*words, *quick, *shlex.split(tiny), "--out", str(tmp_path / "out")]) == 0
    assert report_command.main([str(tmp_path / "out")]) == 0


def test_the_other_evaluations_parse_and_the_export_runs(small_run: Path, tmp_path: Path) -> None:
    others = [shlex.split(line)[2:] for line in COMMANDS if "evaluate_encoder.py" in line and "runs/" not in line]
    for words in others:
        evaluation_parser("").read(words)
    assert len(others) == 2
    [export] = (shlex.split(line)[2:] for line in COMMANDS if "export_encoder.py" in line)
    file = tmp_path / "encoder.pt"
    words = [{"runs/NAME": str(small_run), "ENCODER.pt": str(file)}.get(word, word) for word in export]
    assert export_encoder.main(words) == 0 and file.is_file()


def test_every_command_is_known() -> None:
    scripts = ("train_agent", "compare_agents", "report", "evaluate_encoder", "export_encoder")
    known = (
        "make demo",
        "make test",
        "make torture",
        "pip install .",
        "astra-gym train",
        "tensorboard --logdir",
        *(f"python experiments/{name}.py" for name in scripts),
    )
    assert COMMANDS and all(line.startswith(known) for line in COMMANDS)
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert {"demo", "test", "torture", "setup"} <= set(re.findall(r"^(\w+):", makefile, re.MULTILINE))
    command = re.search(r"experiments/train_agent\.py (.*--run_dir runs/demo)", makefile)
    assert command is not None
    assert parse(shlex.split(command[1])).settings.run_dir == "runs/demo"


def test_the_pictures_exist() -> None:
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", README)
    assert pictures and all((ROOT / path).is_file() for path in pictures)


def test_the_tables_are_those_of_the_results() -> None:
    assert publish.main(["--check"]) == 0


def test_tensorboard_is_there() -> None:
    done = subprocess.run([sys.executable, "-m", "tensorboard.main", "--version"], capture_output=True, text=True)
    assert done.returncode == 0
