"""Several encoders in one command."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from astra_gym.experiments import evaluate_encoder, report, train_agent
from astra_gym.experiments.evaluation.encoders import own
from astra_gym.experiments.evaluation.several import names, unequal
from astra_gym.ssl_core.evaluation.results import read_results
from astra_gym.ssl_core.models.checkpoint import load_network
from astra_gym.ssl_core.models.export import save_encoder

TINY = "--agent=fixed --limit=60 --test_limit=30 --batch_size=12 --width=2 --image_size=8 --evaluate=false"
QUICK = "--protocols slf knn --attacks pgd20 --epsilons 8/255 --epochs 1 --progress off"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("runs")
    made = [folder / "one", folder / "two"]
    for seed, run in enumerate(made):
        words = f"{TINY} --epochs=1 --keep_every=1 --progress=off --seed={seed} --run_dir={run}"
        assert train_agent.main(words.split()) == 0
    return made


@pytest.mark.slow
def test_each_has_its_folder_and_all_have_one_table(runs: list[Path], tmp_path: Path, capsys, monkeypatch) -> None:
    theirs = save_encoder(tmp_path / "theirs.pt", *load_network(runs[0], "cpu"))
    monkeypatch.chdir(tmp_path)
    copies = [Path(shutil.copytree(run, tmp_path / run.name)) for run in runs]
    words = f"{copies[0]} {copies[1]} {theirs} --format torchvision --dataset digits --image_size 8 {QUICK}"
    words += " --limit 60 --test_limit 30 --train_images 30 --landscape --out all"
    assert evaluate_encoder.main(words.split()) == 0
    said = capsys.readouterr().out
    assert all(f"{protocol}, {name}" in said for protocol in ("SLF", "KNN") for name in ("one", "two", "theirs"))
    assert "own nearest neighbor" in said
    # the file of another project has no run whose probe could be taken
    note = " ".join(said.split())
    assert (
        "SLF: encoders were measured by different settings, so do not compare them: one views flip 0.0, probe lr 0.5"
        in note
    )
    assert "--epochs, --lr, --batch_size" in note and "KNN: encoders" not in note
    folders = {name: tmp_path / name / "evaluation" for name in ("one", "two")}
    folders["theirs"] = tmp_path / "evaluations" / "theirs"
    together = read_results(tmp_path / "all" / "evaluation.json")
    alone = {name: read_results(folder / "evaluation.json") for name, folder in folders.items()}
    assert together == [replace(row, checkpoint=name) for name, rows in alone.items() for row in rows]
    trained = [row for row in alone["two"] if row.metric.startswith("train_")]
    assert [(row.protocol, row.metric) for row in trained] == [("slf", "train_SA"), ("slf", "train_RA")]
    assert {row.n for row in trained} == {30}
    for folder in (*folders.values(), tmp_path / "all"):
        assert (folder / "figures" / "downstream_loss.png").stat().st_size > 10_000
    # repeated, nothing is computed
    monkeypatch.setattr("astra_gym.experiments.evaluation.protocol_runner.classifier_of", None)
    monkeypatch.setattr("astra_gym.experiments.evaluation.protocol_runner.evaluate", None)
    assert evaluate_encoder.main(words.split()) == 0
    assert read_results(tmp_path / "all" / "evaluation.json") == together
    assert report.main(["all"]) == 0
    page = (tmp_path / "all" / "report.md").read_text()
    assert "Training and test images" in page and "downstream_loss.png" in page


def test_names_tell_encoders_apart(runs: list[Path]) -> None:
    cpu = torch.device("cpu")
    last, other, kept = own(runs[0], cpu), own(runs[1], cpu), own(runs[0] / "checkpoints" / "epoch-0001.pt", cpu)
    paths = [Path("a"), Path("b"), Path("c")]
    assert names([last, other], paths[:2]) == ["one", "two"]
    assert names([last, other, kept], paths) == ["one last", "two", "one epoch-0001"]
    assert names([last, other, last], paths) == ["a", "two", "c"]


def test_another_probe_is_noted_where_the_fine_tuning_after_it_has_the_same_rate() -> None:
    settings = {name: {"lp-aff": {"probe": {"lr": lr}, "tuning": {"lr": 0.1}}} for name, lr in (("a", 0.5), ("b", 0.1))}
    assert "them: a probe lr 0.5; b probe lr 0.1. --epochs" in unequal(settings)["LP-AFF"][0]
    assert not unequal({name: settings["a"] for name in "ab"})


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("RUN RUN", "is given twice"),
        ("RUN OTHER --every 1", "--every looks along one run"),
        ("RUN OTHER a b c --landscape", "overlays at most 4 encoders, not 5"),
        ("RUN --every 1 --landscape", "leave --every out"),
        ("RUN --train_images 0", "--train_images: expected 1 or more"),
        ("RUN OTHER --model a:b", "one of them"),
        ("RUN nowhere", "nowhere does not exist: expected a run folder, or a checkpoint"),
    ],
)
def test_bad_input_is_one_line(words: str, message: str, runs: list[Path], capsys) -> None:
    names = {"RUN": str(runs[0]), "OTHER": str(runs[1])}
    with pytest.raises(SystemExit) as stopped:
        evaluate_encoder.main([names.get(word, word) for word in words.split()])
    shown = capsys.readouterr()
    # nothing was evaluated before
    assert stopped.value.code == 2 and message in shown.err and shown.err.count("\n") == 1 and not shown.out


def test_files_of_one_name_are_refused(runs: list[Path], tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
        save_encoder(tmp_path / place / "same.pt", *load_network(runs[0], "cpu"))
    words = "a/same.pt b/same.pt --format torchvision --dataset digits --image_size 8 --limit 60 --test_limit 30"
    with pytest.raises(SystemExit):
        evaluate_encoder.main([*words.split(), *["--protocols", "knn", "--attacks", "none", "--progress", "off"]])
    assert "have the same folder" in capsys.readouterr().err
