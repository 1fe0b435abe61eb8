"""A run knows its images: others are refused when it is resumed or evaluated, wherever the same ones may lie."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from astra_gym.experiments import evaluate_encoder, train_agent
from astra_gym.experiments.runs.metrics import read_metrics
from astra_gym.experiments.runs.run import Run
from astra_gym.experiments.runs.run_folder import RunFolder
from astra_gym.ssl_core.data.image_folder import load_folder
from astra_gym.ssl_core.evaluation.results import Row, read_results
from astra_gym.ssl_core.models.checkpoint import load_network

TINY = (
    *("--dataset=folder", "--agent=fixed", "--batch_size=8", "--image_size=8", "--width=2", "--projector_hidden=8"),
    *("--projector_dim=8", "--epochs=2", "--warmup_epochs=0", "--probe_epochs=1", "--eval_epsilons=[8/255]"),
)
KNN = ("--protocols", "knn", "--attacks", "none")


def pictures(root: Path, *folders: str, each: int = 15, seed: int = 0) -> Path:
    generator = np.random.default_rng(seed)
    for folder in folders:
        (root / folder).mkdir(parents=True, exist_ok=True)
        for k in range(each):
            pixels = generator.integers(0, 256, (10, 12, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / folder / f"{k:02}.png")
    return root


def train(*flags: object) -> int:
    try:
        return train_agent.main(list(map(str, flags)))
    except SystemExit as ended:
        return int(ended.code or 0)


def evaluate(*flags: object) -> int:
    try:
        return evaluate_encoder.main([*map(str, flags), *KNN])
    except SystemExit as ended:
        return int(ended.code or 0)


def rows(folder: Path) -> list[Row]:
    return read_results(folder / "evaluation.json")


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    return pictures(tmp_path / "pets", "cat", "dog")


@pytest.fixture
def run(pets: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    assert train(*TINY, f"--data_dir={pets}", f"--run_dir={folder}", "--evaluate=false", "--keep_every=1") == 0
    return folder


def refused(capsys: pytest.CaptureFixture[str], *parts: str) -> None:
    [line] = capsys.readouterr().err.splitlines()
    assert all(part in line for part in parts), line


def repaint(path: Path) -> None:
    Image.new("RGB", (10, 12), (1, 2, 3)).save(path)


def test_a_headline_says_what_was_read(pets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (pets / "dog" / "1.heic").write_text("no image")
    assert train(*TINY, f"--data_dir={pets}", f"--run_dir={tmp_path / 'run'}", "--evaluate=false") == 0
    read = "24 training and 6 test images; 2 classes of training images (cat 12, dog 12); a fifth is held out; skipped"
    assert f"{pets}: {read} 1 file (1 .heic)\n" in capsys.readouterr().out


OTHER = {f"{k:02}.png": f"{(k + 1) % 15:02}.png" for k in range(15)}
CHANGES = {
    "a changed image": (lambda root, held: repaint(root / "cat" / OTHER[held]), "1 of the 24 training images missing"),
    "an image more": (lambda root, held: repaint(root / "cat" / "99.png"), "training images missing"),
    "an image less": (lambda root, held: (root / "dog" / "07.png").unlink(), "training images missing"),
    "another order": (lambda root, held: (root / "cat" / "03.png").rename(root / "cat" / "99.png"), ""),
    "a changed test image": (lambda root, held: repaint(root / "cat" / held), "1 of the 6 test images missing"),
}


def test_other_images_are_refused_at_a_resume(
    run: Path, pets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (run / "command.txt").read_text()
    held = next(path.name for path in load_folder(str(pets), size=8).test.paths if path.parent.name == "cat")
    for number, (change, what) in enumerate(CHANGES.values()):
        other = Path(shutil.copytree(pets, tmp_path / f"other {number}"))
        change(other, held)
        for flags in ([], [f"--cache_dir={tmp_path / 'cache'}"]):
            capsys.readouterr()
            assert train("--resume", run, "--data_dir", other, *flags) == 2
            refused(capsys, f"{other} does not hold the images that {run} began with (", what, "give the --data_dir")
    repaint(pets / "cat" / "00b.png")
    assert train("--resume", run) == 2
    refused(capsys, f"{pets} does not hold the images")
    assert (run / "command.txt").read_text() == before


def test_a_run_whose_folder_moved_is_resumed_and_evaluated(
    pets: Path, tmp_path: Path, interrupt, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [*TINY, f"--data_dir={pets}", "--evaluate=false"]
    assert train(*flags, f"--run_dir={tmp_path / 'straight'}") == 0
    run, moved = tmp_path / "run", tmp_path / "elsewhere"
    interrupt(step=2)
    assert train(*flags, f"--run_dir={run}") == 130
    pets.rename(moved)
    capsys.readouterr()
    assert train("--resume", run) == 2
    refused(capsys, "pets is not a folder: give --data_dir")
    interrupt(step=4)
    assert train("--resume", run, "--data_dir", moved) == 130
    # what is printed can be pasted
    assert f"--resume {run} --data_dir {moved}" in capsys.readouterr().out
    assert train("--resume", run, "--data_dir", moved) == 0
    ours, theirs = (load_network(folder)[0].state_dict() for folder in (run, tmp_path / "straight"))
    assert all(bool((value == theirs[name]).all()) for name, value in ours.items())
    assert read_metrics(run / "metrics.jsonl") == read_metrics(tmp_path / "straight" / "metrics.jsonl")
    assert evaluate(run, "--data_dir", moved) == 0
    assert {row.dataset for row in rows(run / "evaluation")} == {"folder"}
    assert not any("trained on" in reason for row in rows(run / "evaluation") for reason in row.deviations)


def test_test_images_that_are_trained_on_are_refused_before_and_after_a_training(
    tmp_path: Path, interrupt, capsys: pytest.CaptureFixture[str]
) -> None:
    both = pictures(tmp_path / "both", "train/cat", "train/dog", each=8)
    shutil.copytree(both / "train", both / "test")
    flags = [*TINY, f"--data_dir={both}", f"--run_dir={tmp_path / 'run'}"]
    assert train(*flags) == 2
    refused(capsys, "16 of the 16 images", "test/cat/", " = train/cat/", "or train with --evaluate false")
    assert not (tmp_path / "run").exists()
    assert train(*flags, "--evaluate=false") == 0
    capsys.readouterr()
    assert evaluate(tmp_path / "run") == 1
    refused(capsys, "16 of the 16 images", "all are listed in")
    listed = (tmp_path / "run" / "evaluation" / "trained_on.txt").read_text().splitlines()
    assert len(listed) == 16 and all(" = " in line for line in listed)
    # as a run that was begun by another version: its evaluation at the end
    run = tmp_path / "older"
    interrupt(step=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "check_held_out", lambda _: [])
        assert train(*flags, f"--run_dir={run}") == 130
    capsys.readouterr()
    assert train("--resume", run) == 1
    shown = capsys.readouterr()
    assert "the evaluation failed: 16 of the 16 images" in shown.err and "SA %" not in shown.out
    assert {path.name for path in (run / "results").iterdir()} == {"training.json", "trained_on.txt"}


def test_a_folder_that_grew_is_no_test_for_its_run(run: Path, pets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate(run) == 0
    before = (run / "evaluation" / "evaluation.json").read_bytes()
    repaint(pets / "cat" / "00b.png")
    for flags in ((), ("--image_size", "12"), ("--test_limit", "5"), ("--every", "1")):
        capsys.readouterr()
        assert evaluate(run, *flags) == 1
        refused(capsys, "were trained on by the run run: pets/", "restore the folder as it was")
    assert evaluate(run / "checkpoints" / "epoch-0001.pt") == 1
    assert (run / "evaluation" / "evaluation.json").read_bytes() == before


def test_another_folder_is_another_data_set_with_rows_of_its_own(run: Path, pets: Path, tmp_path: Path) -> None:
    assert evaluate(run) == 0
    own = (run / "evaluation" / "evaluation.json").read_bytes()
    places = [
        pictures(tmp_path / place / "birds!", "x", "y", "z", each=9, seed=seed) for seed, place in enumerate("ab", 1)
    ]
    for place in places:
        assert evaluate(run, "--data_dir", place) == 0
        assert evaluate(run, "--data_dir", place, "--every", "1") == 0
    found = sorted(path for path in run.iterdir() if path.name.startswith("evaluation-"))
    assert len(found) == 4 and all("folder-birds_-" in path.name for path in found)
    for folder in found:
        for row in rows(folder):
            assert row.dataset == "folder:birds_" and "encoder pre-trained on another folder" in row.deviations
    assert (run / "evaluation" / "evaluation.json").read_bytes() == own
    # where the run's own lay
    shutil.rmtree(pets)
    pictures(pets, "cat", "dog", each=9, seed=7)
    assert evaluate(run) == 0
    assert (run / "evaluation" / "evaluation.json").read_bytes() == own
    [fifth] = {path for path in run.iterdir() if path.name.startswith("evaluation-")} - set(found)
    assert {row.dataset for row in rows(fifth)} == {"folder:pets"}


@pytest.mark.every_agent
def test_a_runs_limits_are_of_its_own_folder(pets: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    limits = ["--limit=20", "--test_limit=4"]
    assert train(*TINY, f"--data_dir={pets}", f"--run_dir={run}", "--evaluate=false", *limits) == 0
    shutil.copytree(pets, tmp_path / "copy")
    assert evaluate(run, "--data_dir", tmp_path / "copy") == 0
    assert evaluate(run, "--data_dir", tmp_path / "copy", "--limit", "22", "--test_limit", "0") == 0
    assert {(row.dataset, row.n) for row in rows(run / "evaluation")} == {("folder", 6)}
    for number, each in enumerate((5, 40)):
        other = pictures(tmp_path / f"other{number}", "cat", "dog", each=each, seed=5)
        assert evaluate(run, "--data_dir", other) == 0
        [folder] = run.glob(f"evaluation-folder-other{number}-*")
        assert {(row.dataset, row.n) for row in rows(folder)} == {(f"folder:other{number}", 2 * each // 5)}


def test_a_place_that_holds_another_evaluation_is_kept(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = pictures(tmp_path / "birds", "x", "y", each=9, seed=3)
    assert evaluate(run) == 0
    figures = run / "evaluation" / "figures"
    figures.mkdir()
    (figures / "mine.png").write_bytes(b"")
    capsys.readouterr()
    for flags in (("--data_dir", other), ("--dataset", "digits", "--limit", "40", "--test_limit", "20")):
        assert evaluate(run, *flags, "--out", run / "evaluation") == 2
        refused(capsys, "evaluation holds an evaluation on folder: give another --out DIR")
    assert (figures / "mine.png").exists()


@pytest.mark.parametrize(
    ("method", "setting", "by"), [("deacl", "teacher", "the teacher"), ("acl", "init_from", "the encoder of init_from")]
)
def test_what_an_earlier_encoder_was_trained_on_is_no_test_for_a_later_one(
    method: str, setting: str, by: str, run: Path, pets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    student = pictures(tmp_path / "student", "train/cat", "train/dog", seed=4)
    for name in ("cat", "dog"):
        (student / "test" / name).mkdir(parents=True)
        for k in range(3):
            shutil.copy(pets / name / f"{k:02}.png", student / "test" / name)
    flags = [*TINY, f"--method={method}", f"--{setting}={run}", f"--data_dir={student}"]
    flags.append(f"--run_dir={tmp_path / 'taught'}")
    assert train(*flags) == 2
    refused(capsys, "of the 6 images", f"were trained on by {by}: test/")
    assert train(*flags, "--evaluate=false") == 0
    shutil.move(run, tmp_path / "gone")
    capsys.readouterr()
    assert evaluate(tmp_path / "taught") == 1
    refused(capsys, "of the 6 images", "were trained on by the run taught: test/")


@pytest.mark.every_agent
def test_a_run_without_digests_has_one_note(run: Path, pets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    RunFolder(run).digests.unlink()
    repaint(pets / "cat" / "03.png")
    capsys.readouterr()
    assert train("--resume", run) == 0
    assert capsys.readouterr().out.count("this run keeps no digests of its images") == 1
    for flags in ((), ("--every", "1")):
        assert evaluate(run, *flags) == 0
        assert capsys.readouterr().out.count("this run keeps no digests of its images") == 1
    assert {row.dataset for row in rows(run / "evaluation")} == {"folder"}
    assert evaluate(run, "--data_dir", pets) == 0
    shutil.copytree(pets, pets.parent / "copy")
    assert evaluate(run, "--data_dir", pets.parent / "copy") == 0
    assert [path.name[:22] for path in run.glob("evaluation-folder*")] == ["evaluation-folder-copy"]


def test_damaged_digests_are_refused_by_name(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = RunFolder(run).digests
    good = file.read_bytes()
    file.write_bytes(good[:-3] + b"?" + good[-2:])
    for status in (train("--resume", run), evaluate(run)):
        assert status == 2
    assert capsys.readouterr().err.count("images.digests is damaged") == 2
