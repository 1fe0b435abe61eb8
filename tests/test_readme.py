"""README and docs/: their Python and their commands run, small; their pictures exist, their tables are the results'."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.distributed.run import get_args_parser

from astra_gym.envs.training_run.instances import Instance
from astra_gym.experiments import compare_agents, evaluate_encoder, export_encoder, measure_headroom, publish, tune
from astra_gym.experiments import report as report_command
from astra_gym.experiments.comparison.ablations import ABLATIONS
from astra_gym.experiments.comparison.arms import base_arms
from astra_gym.experiments.comparison.families import read_family
from astra_gym.experiments.config.argparser import CommandParser
from astra_gym.experiments.config.cli import LEAVES, parse
from astra_gym.experiments.config.settings import Settings
from astra_gym.experiments.evaluation.flags import evaluation_parser
from astra_gym.experiments.headroom.world import HeadroomWorld
from astra_gym.experiments.train_agent import main
from astra_gym.experiments.tuning.searched_arms import search_costs
from tests.helpers.documents import BLOCKS, PAGES, PYTHON, README, TERM

ROOT = Path(__file__).resolve().parent.parent
SHELL = [re.sub(r"\\\n\s*", "", text) for language, text in BLOCKS if not language]
COMMANDS = list(dict.fromkeys(line for text in SHELL for line in text.splitlines()))
SMALLER = {
    'dataset="digits", batch_size=64': 'dataset="digits", batch_size=4, image_size=8, width=2',
    '"runs/demo"': "RUN",
    'instances="train"': "instances=SMALL",
}
SMALL = {"dataset": "digits", "image_size": 8, "width": 2, "batch_size": 8, "passes": 60.0, "judge_epsilon": 8 / 255}


def test_there_is_python_for_each_use() -> None:
    assert len(PYTHON) == 6
    assert all(len(block.strip().splitlines()) <= 12 for block in PYTHON)


@pytest.mark.parametrize("number", range(6))
def test_the_python_runs_at_a_small_size(tmp_path, capsys, number: int) -> None:
    text = PYTHON[number]
    if "load_network" in text:
        tiny = "--limit=26 --test_limit=30 --batch_size=4 --width=2 --epochs=1 --evaluate=false"
        assert main([*shlex.split(tiny), f"--run_dir={tmp_path / 'run'}"]) == 0
    changed = text
    for old, new in SMALLER.items():
        changed = changed.replace(old, new)
    assert changed != text, "the text no longer has the sizes that this test makes small"
    names = {"RUN": str(tmp_path / "run"), "SMALL": {"digits-few-astra-8": Instance("train", 40, SMALL)}}
    exec(compile(changed, f"README block {number}", "exec"), names)
    assert capsys.readouterr().out.strip()


RANKED = [line for line in COMMANDS if line.startswith("torchrun")]
TRAINING = [line for line in COMMANDS if "train_agent.py" in line and "my_" not in line and line not in RANKED]
RUN_ALWAYS = ("--list", "--resume", " DIR", "--cache_dir CACHE", "deacl --teacher runs/teacher --agent ppo")
"""Parts of the commands that `make test` runs; of the others it reads the flags, and `make test-all` runs all."""


def some(commands: list[str], parts: tuple[str, ...]) -> list[Any]:
    """The commands as parameters; those with none of the parts are left to `make test-all`."""
    kept = {line: any(part in line for part in parts) for line in commands}
    return [line if kept[line] else pytest.param(line, marks=pytest.mark.every_agent) for line in commands]


TINY = "--limit=40 --test_limit=30 --batch_size=8 --image_size=8 --width=2 --epochs=2 --evaluate=false --progress=off"
EXAMS = "--judge_images=8 --judge_batch=4"


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "teacher"
    tiny = [*shlex.split(TINY.replace("--evaluate=false", "--probe_epochs=1 --eval_epsilons=[8/255]"))]
    assert main([*tiny, "--method=simclr", f"--run_dir={run}"]) == 0
    return run


def pictures(folder: Path) -> Path:
    """Two hundred pictures of two classes."""
    for number in range(200):
        place = folder / f"class {number % 2}" / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number, 255 - number, 100)).save(place)
    return folder


@pytest.mark.parametrize("command", some(TRAINING, RUN_ALWAYS))
def test_the_training_commands_run_at_a_small_size(command: str, teacher: Path, tmp_path: Path, monkeypatch) -> None:
    words = shlex.split(command)
    assert words[:2] == ["python", "experiments/train_agent.py"] and (ROOT / words[1]).is_file()
    monkeypatch.chdir(tmp_path)
    if "--list" in words:
        with pytest.raises(SystemExit) as ended:
            main(words[2:])
        assert ended.value.code == 0
        return
    if "DIR" in words and "--resume" not in words:
        # the archives are not at hand
        assert parse(words[2:]).settings.data.dataset in words
        return
    names = {"runs/teacher": teacher, "runs/NAME": teacher, "FILE.yaml": teacher / "config.yaml"}
    if "PICTURES" in words:
        names["PICTURES"] = pictures(tmp_path / "pictures")
    if {"simclr", "barlow-clean", "--config"} & set(words):
        del names["runs/teacher"]
        names["runs/again"] = tmp_path / "again"
    given = [str(names.get(word, word)) for word in words[2:]]
    if "--resume" in words:
        given = given[:2]
    elif "--config" not in words:
        # a vision transformer has no width
        given += [word for word in shlex.split(TINY) if "timm:" not in command or not word.startswith("--width")]
        given += shlex.split(EXAMS) if "judge 1" in command else []
    assert main(given) == 0


def test_the_flags_of_the_training_commands_are_read(teacher: Path) -> None:
    for words in (shlex.split(line)[2:] for line in TRAINING if "--list" not in line and "--resume" not in line):
        settings = parse([str(teacher / "config.yaml") if word == "FILE.yaml" else word for word in words]).settings
        assert "--method" not in words or settings.method.method in words


def test_the_flags_of_the_commands_of_torchrun_are_read() -> None:
    assert len(RANKED) == 5
    for line in RANKED:
        options = get_args_parser().parse_args(shlex.split(line)[1:])
        script, flags = options.training_script, options.training_script_args
        assert (script, flags.pop(0)) == ("astra-gym", "train") if options.no_python else (ROOT / script).is_file()
        if "evaluate_encoder.py" in script:
            assert evaluation_parser(None).read(flags).measures.attacks == ("pgd20", "autoattack")
            continue
        assert "--resume" in flags or parse(flags).settings.run.run_dir == "runs/together"


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


def test_the_pages_on_extending_show_whole_examples_and_a_copy_is_named_by_its_module(tmp_path: Path) -> None:
    """A part of a file lacks its imports, and a stranger copies what a page shows."""
    pages = {page.stem: text for page, text in PAGES.items() if page.parent.name == "extending"}
    shown = re.findall(r"^:::\{literalinclude\} (.*)\n(.*)\n:::$", "\n".join(pages.values()), re.MULTILINE)
    parts = {"agent", "dataset", "method", "observation", "start"}
    assert {path: option for path, option in shown} == {
        f"../../examples/custom_{part}.py": ":language: python" for part in parts
    }
    shutil.copy(ROOT / "examples" / "custom_method.py", tmp_path)
    [command] = [line for line in COMMANDS if line.startswith("astra-gym train --method custom_method:")]
    words = [sys.executable, "-m", "astra_gym", *shlex.split(command)[1:], "--print_config"]
    done = subprocess.run(words, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 0 and "uniformity: 2" in done.stdout, done.stderr


COMPARING = ("compare_agents.py", "report.py comparisons/")
ABLATION = "--ablation"
ENGINE = "--engine"
COMPARED = [
    line for line in COMMANDS if any(name in line for name in COMPARING) and ABLATION not in line and ENGINE not in line
]
COMPARISONS = [shlex.split(line) for line in COMPARED if "--arm " not in line]


def agents_of(words: list[str]) -> list[str]:
    return words[words.index("--agents") + 1 : words.index("--seeds")]


def test_the_comparisons_are_of_agents_that_there_are() -> None:
    for agents in map(agents_of, COMPARISONS[:-2]):
        assert [arm.agent for arm in base_arms(agents, ["astra"], ["digits-grid"], [], [], 5, 10)] == agents
    [ablation] = [shlex.split(line)[2:] for line in COMMANDS if ABLATION in line]
    flags = CommandParser("compare", compare_agents.CompareCommand, None, "").read(ablation).comparison
    assert flags.ablation in ABLATIONS and flags.agents == ("random", "fixed-max")


def test_the_comparisons_on_clusters_have_flags_of_their_engines() -> None:
    """That they run is tested beside the engines."""
    parser = CommandParser("compare", compare_agents.CompareCommand, None, "")
    found = [parser.read(parser.split(shlex.split(line)[2:], LEAVES)[0]).engine for line in COMMANDS if ENGINE in line]
    assert [(where.engine, where.gpus) for where in found] == [("slurm", 1), ("ray", 0.25)]
    assert found[0].slurm == {"partition": "gpu", "timeout_min": 240} and found[1].ray_address == "auto"


@pytest.mark.parametrize(("name", "searched"), [("one-run", ["fixed-tuned", "fixed-global"]), ("long-run", [])])
def test_a_comparison_of_own_arms_is_that_of_its_family_and_as_their_searches_found(
    name: str, searched: list[str]
) -> None:
    [words] = [shlex.split(line)[2:] for line in COMPARED if "--arm " in line and f"comparisons/{name}" in line]
    parser = CommandParser("compare", compare_agents.CompareCommand, None, "")
    own, flags = parser.split(words, LEAVES)
    given = parser.read(own).comparison
    family = read_family(ROOT / "results" / "families" / f"{name}.json")
    arms = base_arms([], ["astra"], [given.preset], given.arm, flags, given.seeds, given.primary_seeds)
    costs = search_costs([text.replace("=results", f"={ROOT}/results") for text in given.searched], arms)
    assert [cost.arm for cost in costs] == searched and given.seeds == given.primary_seeds == family.seeds
    assert [f"{claim.arm}:{claim.against}" for claim in family.claims] == list(given.test)
    assert {claim.arm for claim in family.claims} | {claim.against for claim in family.claims} <= {
        a.label for a in arms
    }


@pytest.mark.every_agent
def test_the_comparison_runs_at_a_small_size_goes_on_and_is_reported(tmp_path: Path, capsys) -> None:
    new, *_, resumed, report = COMPARISONS
    tiny = "--limit=26 --test_limit=30 --batch_size=4 --image_size=8 --width=2 --epochs=1 --probe_epochs=1 --seeds=1"
    tiny += " --eval_epsilons=[8/255]"
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
    for agent in agents_of(new):
        assert agent in text


@pytest.fixture(scope="module")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "small"
    tiny = "--agent=fixed --limit=120 --test_limit=30 --batch_size=4 --image_size=8 --width=2 --epochs=1 --keep_every=1"
    assert main([*shlex.split(tiny), "--evaluate=false", "--progress=off", f"--run_dir={run}"]) == 0
    return run


EVALUATIONS = [line for line in COMMANDS if line.startswith("python") and "evaluate_encoder.py runs/" in line]


@pytest.mark.parametrize("command", some(EVALUATIONS, ("--every 5",)))
def test_the_evaluations_of_a_run_run_at_a_small_size(command: str, small_run: Path, tmp_path: Path) -> None:
    runs = {"runs/NAME": small_run}
    runs |= {name: shutil.copytree(small_run, tmp_path / name) for name in ("runs/A", "runs/B") if name in command}
    words = [str(runs.get(word, word)) for word in shlex.split(command)[2:]]
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
    of_a_run = [shlex.split(line.replace("runs/NAME", str(small_run)))[2:] for line in EVALUATIONS]
    for words in [*others, *of_a_run]:
        evaluation_parser("").read(words)
    assert len(others) == 3
    [export] = (shlex.split(line)[2:] for line in COMMANDS if "export_encoder.py" in line)
    file = tmp_path / "encoder.pt"
    words = [{"runs/NAME": str(small_run), "ENCODER.pt": str(file)}.get(word, word) for word in export]
    assert export_encoder.main(words) == 0 and file.is_file()


def test_the_searches_draw_their_candidates(monkeypatch) -> None:
    """What they find is tested beside the command: here no trial is made."""
    drawn: list[int] = []

    def count(given: tune.TuneFlags, worlds: dict[str, Settings], output: Path) -> int:
        drawn.append(0 if given.pool else len(tune.candidates_of(given, list(worlds.values()))))
        return 0

    monkeypatch.setattr(tune, "_search", count)
    for command in (line for line in COMMANDS if "tune.py" in line):
        assert tune.main(shlex.split(command)[2:]) == 0
    assert drawn == [16, 64, 41, 64, 32, 16, 2, 0]


def test_the_measurements_of_headroom_have_a_world(monkeypatch) -> None:
    """What they find is tested beside the command: here nothing is trained."""
    steps: list[int] = []

    def count(given: measure_headroom.HeadroomFlags, world: HeadroomWorld, output: Path) -> int:
        steps.append(world.constant.steps)
        return 0

    monkeypatch.setattr(measure_headroom, "_measure", count)
    for command in (line for line in COMMANDS if "measure_headroom.py" in line):
        assert measure_headroom.main(shlex.split(command)[2:]) == 0
    assert steps == [1, 1, 1]


def test_a_run_is_reported(teacher: Path, tmp_path: Path, capsys) -> None:
    [command] = [shlex.split(line)[2:] for line in COMMANDS if "report.py runs/demo" in line]
    assert command == ["runs/demo"]
    run = shutil.copytree(teacher, tmp_path / "demo")
    assert report_command.main([str(run)]) == 0
    assert (run / "report.html").is_file()


def test_every_command_is_known() -> None:
    scripts = ("train_agent", "compare_agents", "tune", "measure_headroom", "report", "evaluate_encoder")
    scripts = (*scripts, "export_encoder")
    known = (
        "make ",
        "pip install .",
        "astra-gym train",
        "tensorboard --logdir",
        "torchrun ",
        "python docs/make_photographs.py ",
        *(f"python experiments/{name}.py" for name in scripts),
        *(f"python examples/{path.name}" for path in (ROOT / "examples").glob("*.py")),
    )
    assert COMMANDS and all(line.startswith(known) for line in COMMANDS)
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = {line.split()[1] for line in COMMANDS if line.startswith("make ")}
    assert {"demo", "test"} <= targets <= set(re.findall(r"^([\w-]+):", makefile, re.MULTILINE))
    command = re.search(r"experiments/train_agent\.py (.*--run_dir runs/demo)", makefile)
    assert command is not None
    assert parse(shlex.split(command[1])).settings.run.run_dir == "runs/demo"


def test_the_pictures_exist_and_are_light() -> None:
    pictures = {page: re.findall(r"!\[.*?\]\((.*?)\)", text) for page, text in PAGES.items()}
    assert [(page, path) for page in pictures for path in pictures[page] if not (page.parent / path).is_file()] == []
    sizes = {page: sum((page.parent / path).stat().st_size for path in paths) for page, paths in pictures.items()}
    assert max(sizes.values()) < 600_000, sizes


def test_the_errors_of_troubleshooting_are_those_of_the_code() -> None:
    packages = ("ssl_core", "envs", "agents", "experiments")
    files = [file for package in packages for file in sorted((ROOT / package).rglob("*.py"))]
    code = "\n".join(file.read_text(encoding="utf-8") for file in files)
    joined = re.sub(r'"\s*\n\s*f?"', "", code)  # a message over several lines
    errors = re.findall(r"^### (.*)$", PAGES[ROOT / "docs" / "troubleshooting.md"], re.MULTILINE)
    parts = [part.strip(" ,:;?") for error in errors for part in error.split("…")]
    assert len(errors) > 20
    assert [part for part in parts if len(part.split()) > 1 and part not in joined] == []


def test_what_documents_and_examples_name_is_in_the_reference() -> None:
    listed = tuple((ROOT / "docs" / "api.rst").read_text(encoding="utf-8").split())
    code = [*PYTHON, TERM, *(file.read_text(encoding="utf-8") for file in sorted((ROOT / "examples").glob("*.py")))]
    named = {*re.findall(r"^from (astra_gym\.[\w.]+) import", "\n".join(code), re.MULTILINE)}
    named |= {*re.findall(r"`~?(astra_gym\.[\w.]+)`", "\n".join(PAGES.values()))}
    assert len(named) > 40
    assert [name for name in sorted(named) if not any(f"{name}.".startswith(f"{module}.") for module in listed)] == []


def test_the_readme_is_read_on_two_screens() -> None:
    text = re.sub(r"^```.*?^```$", "", PAGES[README], flags=re.DOTALL | re.MULTILINE)
    assert len(text.splitlines()) <= 200 and len(text.split()) <= 1500


def test_every_link_of_the_readme_leads_to_a_file() -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", PAGES[README])
    assert links and [link for link in links if not (ROOT / link).is_file()] == []


def test_the_tables_are_those_of_the_results() -> None:
    assert publish.main(["--check"]) == 0


def test_tensorboard_is_there() -> None:
    done = subprocess.run([sys.executable, "-m", "tensorboard.main", "--version"], capture_output=True, text=True)
    assert done.returncode == 0
