import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from astra_gym.experiments.benchmarks.measure import Figure
from astra_gym.experiments.benchmarks.results_file import document_of
from astra_gym.experiments.benchmarks.workloads import Options
from astra_gym.experiments.comparison.cell_results import ComparisonResult, read_comparison, write_comparison
from astra_gym.experiments.config.settings import Settings
from astra_gym.experiments.publish import main
from astra_gym.experiments.reports.document import Table
from astra_gym.experiments.reports.published_tables import (
    accuracy_table,
    benchmark_table,
    evaluated_arms_table,
    policy_table,
)
from astra_gym.experiments.reports.rendering import block_in_markdown
from astra_gym.experiments.runs.run_folder import RunFolder
from astra_gym.ssl_core.evaluation.results import Origin, write_results
from astra_gym.ssl_core.utils.files import write_json
from astra_gym.ssl_core.utils.provenance import ROOT
from tests.helpers.sealed import resealed_yaml

README = "before\n<!-- table accuracy digits -->\nold\n<!-- end -->\nafter\n"


def finished_run(path: Path, seed: int, clean: float, robust: float) -> Path:
    settings = Settings.of(seed=seed, device="cpu")
    folder = RunFolder.create(path, settings, ["train_agent.py"])
    rows = [
        Origin(protocol="slf", route="pgd", seed=seed, checkpoint="step-9", commit="abc").figure(
            metric, value, 200, attack=attack, epsilon=epsilon
        )
        for metric, attack, epsilon, value in (("SA", "none", 0.0, clean), ("RA", "pgd20", 8 / 255, robust))
    ]
    write_results(folder.results / "slf.json", rows)
    policy = {"rewards": {"reinforce": [0.3, 0.3 + seed], "uniform random": [0.1], "method's own budget": [0.05]}}
    (folder.results / "policy.json").write_text(json.dumps(policy))
    folder.note_training(0, 9, 12.5, {}, {"peak_resident_bytes": 2**28})
    return path


def test_runs_are_kept_and_the_readmes_tables_are_made_from_them(tmp_path, capsys) -> None:
    readme, results = tmp_path / "README.md", tmp_path / "results"
    readme.write_text(README)
    runs = [finished_run(tmp_path / "runs" / str(seed), seed, 90.0 + seed, 50.0) for seed in (0, 1)]
    where = [f"--results={results}", f"--readme={readme}"]
    assert main([*map(str, runs), *where, "--check"]) == 1
    assert readme.read_text() == README
    assert main([*map(str, runs), *where]) == 0
    table = (
        "| run | seeds | SA | RA 8/255 |\n| --- | ---: | ---: | ---: |\n"
        "| astra-reinforce | 2 | 90.5 (90.0 to 91.0) | 50.0 (50.0 to 50.0) |"
    )
    assert readme.read_text() == README.replace("old", table)
    assert main([*where, "--check"]) == 0
    kept = {path.name for path in (results / "digits" / "astra-reinforce-seed1").iterdir()}
    assert kept == {"config.yaml", "environment.json", "slf.json", "policy.json", "training.json"}


def test_the_pages_of_docs_beside_the_readme_are_renewed_too(tmp_path, capsys) -> None:
    run, page = finished_run(tmp_path / "run", 0, 90.0, 50.0), tmp_path / "docs" / "found" / "page.md"
    page.parent.mkdir(parents=True)
    page.write_text(README)
    where = [f"--results={tmp_path / 'results'}", f"--readme={_empty(tmp_path)}"]
    assert main([str(run), *where, "--check"]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "stale tables: docs/found/page.md"
    assert page.read_text() == README
    assert main(where) == 0
    assert "| astra-reinforce | 1 | 90.0 | 50.0 |" in page.read_text()
    assert main([*where, "--check"]) == 0


def test_the_policy_table_takes_differences_within_a_seed(tmp_path) -> None:
    for seed in (0, 1, 2):
        run = finished_run(tmp_path / "runs" / str(seed), seed, 90.0, 50.0)
        main([str(run), f"--results={tmp_path / 'results'}", f"--readme={_empty(tmp_path)}", "--pictures"])
        assert (tmp_path / "results" / "digits" / "reward_comparison.png").exists() == (seed == 2)
    [made] = policy_table(tmp_path / "results", "digits")
    table = block_in_markdown(made)
    # means of 0.3 and 0.3 + seed: 0.3, 0.8 and 1.3; their spread is 0.5, t(2) is 4.303
    assert "| reinforce | 0.8000 | -0.4421 to 2.0421 |" in table
    assert "| reinforce minus uniform random, within a seed | +0.7000 | -0.5421 to +1.9421 |" in table


def test_a_group_keeps_runs_apart_from_their_presets(tmp_path) -> None:
    run = finished_run(tmp_path / "run", 0, 90.0, 50.0)
    main([str(run), f"--results={tmp_path / 'results'}", f"--readme={_empty(tmp_path)}", "--group=digits-fp32"])
    assert (tmp_path / "results" / "digits-fp32" / "astra-reinforce-seed0" / "slf.json").is_file()
    assert not (tmp_path / "results" / "digits").exists()


def test_a_kept_run_names_no_place_of_its_machine(tmp_path) -> None:
    run = finished_run(tmp_path / "run", 0, 90.0, 50.0)
    for name, place in {"init_from": "/secret/r.pt", "agent_from": "/secret/run"}.items():
        resealed_yaml(run / "config.yaml", f"{name}: null", f"{name}: {place}")
    main([str(run), f"--results={tmp_path / 'results'}", f"--readme={_empty(tmp_path)}"])
    kept = (tmp_path / "results" / "digits" / "astra-reinforce-seed0" / "config.yaml").read_text()
    assert "secret" not in kept and "init_from: r.pt" in kept and "agent_from: run" in kept


def test_the_benchmarks_table_is_that_of_its_results(tmp_path) -> None:
    options = Options(2, torch.device("cpu"))
    figures = [
        Figure("attack", "+ bf16", "times faster", (4.0, 5.5, 6.0)),
        Figure("attack", "masked loop", "times faster", (1.5,)),
        Figure("shares", "reinforce: act", "share", (0.012,)),
    ]
    document = document_of(options, figures, {}) | {"processor": "a processor", "versions": {"torch": "2.9"}}
    (tmp_path / "benchmark.json").write_text(json.dumps(document))
    head = ["| part | figure | median | quartiles | target |", "| --- | --- | ---: | ---: | --- |"]
    bf16 = "| attack | + bf16 | 5.50x | 4.75x to 5.75x | at least 5.00x: met |"
    foot = ["", "a processor, 2 threads, torch 2.9."]

    def lines(which: str) -> list[str]:
        [table] = benchmark_table(tmp_path, which)
        return block_in_markdown(table).splitlines()

    assert lines("targets") == [*head, bf16, *foot]
    masked = "| attack | masked loop | 1.50x | 1.50x to 1.50x |  |"
    assert lines("attack") == [*head, bf16, masked, *foot]
    against = [Figure("training", "digits, against the other checkout", "times faster", (1.6,))]
    (tmp_path / "benchmark-against.json").write_text(json.dumps(document_of(options, against, {}) | {"versions": {}}))
    demo = "| training | digits, against the other checkout | 1.60x | 1.60x to 1.60x | at least 1.50x: met |"
    assert lines("targets") == [*head, bf16, demo, *foot]


def _empty(folder: Path) -> Path:
    (folder / "README.md").write_text("")
    return folder / "README.md"


def test_trivial_encoders_stand_below_the_runs(tmp_path) -> None:
    rows = [
        Origin(protocol="slf", route="pgd", seed=0, checkpoint=name, commit="abc").figure("SA", value, 200)
        for name, value in (("step-9", 80.0), ("raw-pixels", 30.0), ("random-weights", 20.0))
    ]
    rows.append(replace(rows[0], value=79.0, deviations=("void: the attack fails",)))
    write_results(tmp_path / "digits" / "astra-fixed-seed0" / "slf.json", rows)
    [table] = accuracy_table(tmp_path, "digits")
    assert [[entry.text for entry in row] for row in table.rows] == [
        ["astra-fixed", "1", "80.0"],
        ["random weights", "1", "20.0"],
        ["raw pixels", "1", "30.0"],
    ]


def test_trivial_encoders_of_each_seed_count_once(tmp_path) -> None:
    for arm in ("astra-fixed", "astra-random"):
        # two seeds with one value are two values
        for seed, value in enumerate((20.0, 20.0, 26.0)):
            origin = Origin(protocol="slf", route="pgd", seed=seed, checkpoint="random-weights", commit="abc")
            write_results(tmp_path / "digits" / f"{arm}-seed{seed}" / "slf.json", [origin.figure("SA", value, 200)])
    [table] = accuracy_table(tmp_path, "digits")
    assert [entry.text for entry in table.rows[0]] == ["random weights", "3", "22.0 (20.0 to 26.0)"]


def test_bad_input(tmp_path, capsys) -> None:
    for arguments, message in (
        ([str(tmp_path)], "is not a run folder"),
        ([f"--readme={tmp_path / 'nowhere.md'}"], "No such file"),
        (["--chek"], "unknown flag --chek; did you mean --check?"),
    ):
        with pytest.raises(SystemExit) as end:
            main(arguments)
        assert end.value.code == 2
        assert message in capsys.readouterr().err
    (tmp_path / "bad.md").write_text("<!-- table colors digits -->\n<!-- end -->\n")
    with pytest.raises(SystemExit):
        main([f"--readme={tmp_path / 'bad.md'}"])
    assert "expected one of accuracy" in capsys.readouterr().err


def test_a_comparison_is_kept_with_its_report_and_the_tables_are_made_from_it(tmp_path, make_cell, capsys) -> None:
    folder, readme = tmp_path / "comparisons" / "small", tmp_path / "README.md"
    cells = [make_cell(arm, seed) for arm in ("reinforce", "random") for seed in (0, 1, 2)]
    flags = '--config=/secret/b.yaml --agent_config "/secret/my file" --epochs 3'
    own = f"--arm 'own one={flags}' --arm=x=--data_dir=/secret --searched 'x=/secret/a b.json' --searched=x=in/c.json"
    command = f"compare_agents.py --data_dir '/secret/my place' --seeds 3 --cache_dir=/secret {own} --agents ppo"
    reasons = {
        "ppo-seed0": "it ended well, but /secret/place/cells/ppo-seed0/results/slf.json is missing",
        "ppo-seed1": "ended with status 1: '/secret/my place/x.npy' of 8/255: lower it and/or resume by /secret/here.",
    }
    made = ComparisonResult("small", command, cells, reasons)
    write_comparison(folder / "comparison.json", made)
    kinds = ("accuracy", "primary", "others", "compute")
    readme.write_text("".join(f"<!-- table compared-{kind} small -->\nSTALE\n<!-- end -->\n" for kind in kinds))
    where = [f"--results={tmp_path / 'results'}", f"--readme={readme}"]
    claims = [{"arm": "reinforce", "against": "random", "margin": 0.0}]
    for name, members in {"ours": ["small", "later"], "others": ["other"]}.items():
        family = {"comparisons": members, "seeds": 6, "claims": claims}
        write_json(tmp_path / "results" / "families" / f"{name}.json", family)
    assert main([str(folder), *where]) == 0
    assert [path.name for path in (tmp_path / "results" / "families").glob("*.png")] == ["ours.png"]
    kept = tmp_path / "results" / "comparisons" / "small"
    assert {"comparison.json", "report.html", "report.md", "figures"} == {path.name for path in kept.iterdir()}
    found = read_comparison(kept / "comparison.json")
    assert found.command == (
        "compare_agents.py --data_dir DIR --seeds 3 --cache_dir=DIR "
        "--arm 'own one=--config=FILE --agent_config FILE --epochs 3' --arm=x=--data_dir=DIR "
        "--searched 'x=a b.json' --searched=x=in/c.json --agents ppo"
    )
    assert list(found.unfinished.values()) == [
        "it ended well, but slf.json is missing",
        "ended with status 1: 'x.npy' of 8/255: lower it and/or resume by here.",
    ]
    again = found.cells
    assert [(cell.arm, cell.seed, cell.correct) for cell in again] == [(it.arm, it.seed, it.correct) for it in cells]
    assert not [path for path in kept.rglob("*") if path.is_file() and b"secret" in path.read_bytes()]
    text = readme.read_text()
    assert "STALE" not in text
    for row in ("| reinforce | 3 |", "reinforce - random", "attack gradient steps"):
        assert row in text
    assert main([*where, "--check"]) == 0
    capsys.readouterr()
    for flag in ("--group=x", "--pictures"):
        with pytest.raises(SystemExit):
            main([str(folder), *where, flag])
        [line] = capsys.readouterr().err.splitlines()
        assert "is a comparison: --group and --pictures are for runs" in line
    (folder / "comparison.json").write_text("{}")
    with pytest.raises(SystemExit):
        main([str(folder), *where])


@pytest.mark.parametrize(
    ("place", "name"),
    [("runs/a/evaluation", "a"), ("runs/a/evaluation-cifar10", "a-cifar10"), ("evaluations/mine", "mine")],
)
def test_an_evaluation_is_kept_under_the_name_of_its_encoder_or_its_folder(tmp_path, capsys, place, name) -> None:
    kept_evaluation(tmp_path / place, "a")
    results = tmp_path / "results"
    assert main([str(tmp_path / place), f"--results={results}", f"--readme={_empty(tmp_path)}"]) == 0
    assert capsys.readouterr().out.startswith(f"kept {results / 'evaluations' / name}\n")


def kept_evaluation(folder: Path, name: str, **changed: str) -> None:
    facts = {"name": name, "notes": {}, "data": {"name": "digits", "train": 1, "test": 1}, "commit": "abc"}
    facts |= {"versions": {}, "device": "cpu", "threads": 1, "command": "python evaluate_encoder.py runs/a"}
    write_results(folder / "evaluation.json", [])
    (folder / "facts.json").write_text(json.dumps(facts | changed))


def test_names_from_files_lead_nowhere(tmp_path, capsys) -> None:
    run = finished_run(tmp_path / "runs" / "a", 0, 90.0, 50.0)
    resealed_yaml(run / "config.yaml", "agent: reinforce", "agent: ../../../victim:Agent")
    evaluation = tmp_path / "evaluation"
    kept_evaluation(evaluation, "../../victim")
    where = [f"--results={tmp_path / 'in' / 'results'}", f"--readme={_empty(tmp_path)}"]
    for folder in (run, evaluation):
        with pytest.raises(SystemExit):
            main([str(folder), *where])
        [line] = capsys.readouterr().err.splitlines()
        assert "expected a plain name" in line
    kept_evaluation(evaluation, "a", command="python x --help")
    with pytest.raises(SystemExit) as end:
        main([str(evaluation), *where])
    assert end.value.code == 2 and "holds no command of an evaluation" in capsys.readouterr().err
    assert not (tmp_path / "in").exists() and not (tmp_path / "victim").exists()


def test_the_arms_of_a_comparison_are_lines_of_one_table() -> None:
    """Of the kept evaluations."""
    [table] = evaluated_arms_table(ROOT / "results", "digits-wide")
    assert isinstance(table, Table)
    assert [line[0].text for line in table.rows] == ["fixed", "fixed-tuned", "hardest", "random"]
    at = list(table.columns).index("AA 24/255")
    assert [line[at].text for line in table.rows] == ["60.7", "85.0", "53.0", "73.3"]
    with pytest.raises(ValueError, match="no evaluation is kept as nobody-ARM: keep one of each arm by --group nobody"):
        evaluated_arms_table(ROOT / "results", "nobody")
