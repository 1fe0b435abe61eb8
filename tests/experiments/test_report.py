import json
import re
import shutil
from pathlib import Path

import pytest

from astra_gym.experiments import train_agent
from astra_gym.experiments.comparison.cell_results import ComparisonResult, read_comparison, write_comparison
from astra_gym.experiments.report import main
from astra_gym.experiments.reports.comparison_report import labeled, read_runs
from astra_gym.ssl_core.utils.files import write_json
from tests.helpers.sealed import resealed_yaml

TINY = (
    *("--limit=26", "--test_limit=30", "--batch_size=4", "--image_size=8", "--width=2", "--projector_hidden=8"),
    *("--projector_dim=8", "--epochs=1", "--warmup_epochs=0", "--probe_epochs=2", "--eval_epsilons=[8/255]"),
    "--progress=off",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, which nobody may change."""
    path = tmp_path_factory.mktemp("runs") / "mine"
    assert train_agent.main([*TINY, "--agent=reinforce", "--seed=3", f"--run_dir={path}"]) == 0
    return path


@pytest.fixture
def compared(make_cell, tmp_path) -> Path:
    """A comparison's folder."""
    arms = {"reinforce": 60.0, "fixed": 50.0}
    cells = [make_cell(arm, seed, {0.0: 95.0, 0.1: mean}) for arm, mean in arms.items() for seed in (0, 1)]
    folder = tmp_path / "grid"
    folder.mkdir()
    write_comparison(
        folder / "comparison.json", ComparisonResult("grid", "python compare.py", cells, {"a": "it failed"})
    )
    return folder


def fails(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as error:
        main(arguments)
    assert error.value.code == 2
    out, said = capsys.readouterr()
    assert out == "" and said.count("\n") == 1
    return said


def test_a_comparison_is_reported_beside_its_file_or_elsewhere_in_the_same_bytes(compared, tmp_path, capsys) -> None:
    before = (compared / "comparison.json").read_bytes()
    assert main([str(compared)]) == 0
    assert capsys.readouterr().out == f"report: {compared / 'report.html'}\n"
    assert (compared / "comparison.json").read_bytes() == before
    assert {path.name for path in compared.iterdir()} == {"comparison.json", "figures", "report.html", "report.md"}
    text, markdown = (compared / "report.html").read_text(), (compared / "report.md").read_text()
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", markdown)
    assert len(pictures) == text.count('src="data:image/png;base64,') == 5
    assert all((compared / picture).is_file() for picture in pictures)
    for shown in ("Comparison of agents: grid", "it failed", "python compare.py", "RA at 25.5/255"):
        assert shown in text and shown in markdown
    assert main([str(compared / "comparison.json"), f"--out={tmp_path / 'new'}"]) == 0
    for name in ("report.html", "report.md", *pictures):
        assert (tmp_path / "new" / name).read_bytes() == (compared / name).read_bytes()


def test_a_run_is_reported_in_its_folder(run, tmp_path) -> None:
    folder = Path(shutil.copytree(run, tmp_path / "mine"))
    kept = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert main([str(folder)]) == 0
    assert all(path.read_bytes() == content for path, content in kept.items())
    markdown = (folder / "report.md").read_text()
    assert markdown.startswith("# Run: mine\n") and "--agent=reinforce" in markdown


def test_several_runs_make_a_comparison(run, tmp_path, capsys) -> None:
    other = Path(shutil.copytree(run, tmp_path / "other"))
    config = other / "config.yaml"
    resealed_yaml(config, "seed: 3", "seed: 4")
    assert "--out DIR" in fails([str(run), str(other)], capsys)
    comparison = read_runs([run, other])
    assert [(cell.arm, cell.seed) for cell in comparison.cells] == [("reinforce", 3), ("reinforce", 4)]
    assert comparison.name == "2 runs" and not comparison.planned
    assert "has seed 3 twice" in fails([str(run), str(run), "--out", str(tmp_path / "twice")], capsys)
    assert not (tmp_path / "twice").exists()


def test_run_folders_of_two_agents_are_compared_without_a_verdict(run, tmp_path) -> None:
    folders = []
    for agent, right in (("reinforce", 24), ("random", 15)):
        for seed in range(7):
            folder = Path(shutil.copytree(run, tmp_path / f"{agent}-{seed}"))
            resealed_yaml(folder / "config.yaml", "seed: 3", f"seed: {seed}")
            if agent == "random":
                resealed_yaml(folder / "config.yaml", "agent: reinforce", "agent: random")
            marks = ("1" * (right + seed % 2)).ljust(30, "0")
            outcomes = json.loads((folder / "results" / "outcomes.json").read_text())
            outcomes = {name: value for name, value in outcomes.items() if name not in ("sha256", "void")}
            outcomes["correct"] = {repr(0.0): marks, repr(8 / 255): marks[2:].ljust(30, "0")}
            write_json(folder / "results" / "outcomes.json", outcomes)
            folders.append(str(folder))
    assert main([*folders, f"--out={tmp_path / 'out'}"]) == 0
    text = (tmp_path / "out" / "report.md").read_text()
    assert "2 arms, 14 runs (seeds per arm: 7)" in text and "No test and no verdict" in text
    assert "better" not in text and "fixed beforehand" not in text.replace("were not fixed beforehand", "")
    # 9 of 30 images more in every seed: equal differences have no interval
    assert "| +30.0<br>P 1.00 |" in text


def test_runs_of_an_agent_with_other_settings_are_other_arms(make_cell) -> None:
    cells = [
        make_cell("ppo", 0),
        make_cell("ppo", 1, settings={"reward_cost": 0.5}),
        make_cell("fixed", 0, settings={"reward_cost": 0.5}),
        make_cell("ppo", 2, method="acl"),
    ]
    assert [cell.arm for cell in labeled(cells)] == ["ppo@reward_cost=0.0", "ppo@reward_cost=0.5", "fixed", "ppo"]


def test_bad_input_is_one_line(compared, run, tmp_path, capsys) -> None:
    assert "neither a comparison (no comparison.json) nor a run folder" in fails([str(tmp_path)], capsys)
    assert "not a readable comparison" in fails([str(tmp_path / "nothing.json")], capsys)
    assert "give one comparison alone" in fails([str(compared), str(run), "--out=x"], capsys)
    assert "required: PATH" in fails([], capsys)
    unfinished = Path(shutil.copytree(run, tmp_path / "unfinished"))
    shutil.rmtree(unfinished / "results")
    said = fails([str(unfinished)], capsys)
    assert "is missing: the run is not finished (" in said and "or its images have no labels" in said
    resealed_yaml(unfinished / "config.yaml", "evaluate: true", "evaluate: false")
    said = fails([str(unfinished)], capsys)
    assert "was trained with --evaluate false: evaluate it by `python " in said and f"{unfinished}`, and" in said
    write_comparison(tmp_path / "empty.json", ComparisonResult("none", "", [], {"a": "it failed"}))
    assert "no finished run to report (a: it failed)" in fails([str(tmp_path / "empty.json")], capsys)
    assert read_comparison(tmp_path / "empty.json").cells == []
