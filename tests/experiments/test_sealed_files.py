"""No flipped bit in a file that is read back goes unseen: refused with the file's name; in a log, reported with it."""

import builtins
import errno
import io
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from astra_gym.agents import storage
from astra_gym.experiments import evaluate_encoder, export_encoder, publish, report, train_agent
from astra_gym.experiments.benchmarks.compare import read as read_benchmark
from astra_gym.experiments.comparison.arms import Arm, base_arms, comparable
from astra_gym.experiments.comparison.cell_results import read_comparison, summarize
from astra_gym.experiments.comparison.folder import ComparisonFolder, ComparisonPlan
from astra_gym.experiments.config.cli import load
from astra_gym.experiments.evaluation.store import EvaluationStore
from astra_gym.experiments.runs.logs import damaged_events, whole_parts
from astra_gym.experiments.runs.metrics import read_metrics
from astra_gym.experiments.runs.run import Run
from astra_gym.experiments.runs.run_folder import RunFolder
from astra_gym.ssl_core.data.decoding import decode_to_disk
from astra_gym.ssl_core.data.image_digests import RunImages
from astra_gym.ssl_core.evaluation.results import read_results
from astra_gym.ssl_core.models.checkpoint import load_checkpoint, load_network
from astra_gym.ssl_core.models.foreign import load_foreign
from astra_gym.ssl_core.safety.sealing import check_png, read_json
from astra_gym.ssl_core.safety.writers import LOCK
from astra_gym.ssl_core.utils.files import write_json
from tests.helpers.sealed import flip, resealed_yaml

ROOT = Path(__file__).resolve().parents[2]
TINY = "--limit=20 --test_limit=8 --batch_size=4 --image_size=8 --width=2 --projector_hidden=4 --projector_dim=4"
TINY += " --epochs=1 --probe_epochs=1 --eval_epsilons=[8/255] --keep_every=1 --progress=off"
FLIPS = 24
"""Of each file: a third in its first bytes, a third in its last, where seals are."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, its evaluation, its export, a comparison, its agent's file, a benchmark's result and cached images."""
    folder = tmp_path_factory.mktemp("made")
    run, evaluation = folder / "run", folder / "evaluation"
    assert train_agent.main([*TINY.split(), f"--run_dir={run}"]) == 0
    words = "--protocols slf --attacks pgd20 --epsilons 8/255 --epochs 1 --progress off"
    assert evaluate_encoder.main([str(run), *words.split(), f"--out={evaluation}"]) in (0, 1)
    assert export_encoder.main([str(run), f"--out={folder / 'encoder.pt'}"]) == 0
    Run(load(run / "config.yaml"), torch.device("cpu")).agent.save(folder / "agent.zip")
    compared = ComparisonFolder(folder / "comparison")
    plan = ComparisonPlan("a", "b", 1, 1, (), tuple(base_arms(["fixed"], ["astra"], ["digits"], [], [], 1, 1)))
    compared.write_plan(plan)
    compared.note_state(1.0)
    compared.write(plan, 1, {"fixed-seed0": summarize(run)}, {})
    write_json(folder / "benchmark.json", read_json(ROOT / "results" / "benchmark-training.json"))
    for number in range(3):
        Image.new("RGB", (8, 8), (9 * number, 0, 99)).save(folder / f"{number}.png")
    cached(folder)
    return folder


def cached(folder: Path) -> None:
    decode_to_disk(sorted(folder.glob("?.png")), 8, folder / "cache", root=folder)


def part(file: Path) -> None:
    """Reads a kept part as an evaluation does, from its `part.json` and `rows.json`."""
    store = EvaluationStore(file.parents[2])
    key = read_json(file.parent / "part.json")["key"]
    assert store.part(key) is not None


REFUSED: dict[str, Callable[[Path], object]] = {
    "run/checkpoints/last.pt": lambda path: load_checkpoint(path, "run"),
    "run/checkpoints/epoch-0001.pt": load_network,
    "run/config.yaml": load,
    "run/images.digests": RunImages.read,
    "run/results/slf.json": read_results,
    "run/results/outcomes.json": lambda path: summarize(path.parents[1]),
    "run/results/policy.json": lambda path: summarize(path.parents[1]),
    "run/figures/losses_and_reward.png": check_png,
    "evaluation/evaluation.json": read_results,
    "evaluation/facts.json": lambda path: EvaluationStore(path.parent).facts(),
    "evaluation/parts/*/part.json": part,
    "evaluation/parts/*/rows.json": part,
    "evaluation/classifiers/*.pt": lambda path: load_checkpoint(path, "classifier"),
    "encoder.pt": lambda path: load_foreign(path, format="torchvision"),
    "agent.zip": storage.read,
    "comparison/comparison.yaml": lambda path: ComparisonFolder(path.parent).read_plan(),
    "comparison/comparison.json": read_comparison,
    "comparison/state.json": lambda path: ComparisonFolder(path.parent).open(ComparisonPlan("", "", 1, 1, (), ())),
    "benchmark.json": lambda path: read_benchmark(path, quick=False),
    "cache/*.u8": lambda path: cached(path.parents[1]),
}
"""What reads each kind of file."""
REPORTED: dict[str, Callable[[Path, list[str]], object]] = {
    "run/metrics.jsonl": read_metrics,
    "run/command.txt": lambda path, damage: RunFolder.open(path.parent).commands(damage),
    "run/environment.json": lambda path, damage: RunFolder.open(path.parent).environments(damage),
    "run/results/training.json": lambda path, damage: whole_parts(path, "stretches", damage),
    "run/events.out.tfevents.*": lambda path, damage: damage.extend(damaged_events(path.parent)),
}


def bits(path: Path) -> list[int]:
    """Where to flip, by a seed of the file's kind: the same for files of the same size."""
    size, draws = 8 * path.stat().st_size, random.Random(path.suffix)
    ends = min(size, 8 * 100)
    ranges = [range(size), range(ends), range(size - ends, size)] * (FLIPS // 3)
    return [draws.choice(one) for one in ranges]


@pytest.mark.parametrize("pattern", REFUSED)
def test_a_flipped_bit_is_refused_with_the_files_name(made: Path, pattern: str) -> None:
    path = sorted(made.glob(pattern))[0]
    whole = path.read_bytes()
    REFUSED[pattern](path)
    try:
        for bit in bits(path):
            flip(path, bit)
            with pytest.raises(ValueError, match="damaged") as caught:
                REFUSED[pattern](path)
            assert path.name in str(caught.value), bit
            path.write_bytes(whole)
    finally:
        path.write_bytes(whole)
    REFUSED[pattern](path)


@pytest.mark.parametrize("pattern", REPORTED)
def test_a_flipped_bit_in_a_log_is_reported_with_its_name(made: Path, pattern: str) -> None:
    path = sorted(made.glob(pattern))[0]
    whole, damage = path.read_bytes(), list[str]()
    REPORTED[pattern](path, damage)
    assert damage == []
    # the last byte too, which ends a line: how much else lies in the last bytes depends on the length of paths
    try:
        for bit in [*bits(path), 8 * len(whole) - 1]:
            flip(path, bit)
            damage = []
            REPORTED[pattern](path, damage)
            assert len(damage) == 1 and path.name in damage[0], bit
            path.write_bytes(whole)
    finally:
        path.write_bytes(whole)


def test_damage_that_a_command_mends_by_itself_is_told(made: Path, tmp_path: Path, capsys) -> None:
    """What is written anew, or made again, was damaged all the same: a disk is failing, or somebody edited it."""
    run, cell = (Path(shutil.copytree(made / "run", tmp_path / name)) for name in ("run", "c/cells/fixed-seed0"))
    flip(run / "results" / "training.json", 8 * 40)
    resealed_yaml(run / "config.yaml", "epochs: 1", "epochs: 2")
    resealed_yaml(run / "config.yaml", "evaluate: true", "evaluate: false")
    assert train_agent.main(["--resume", str(run), "--progress=off"]) == 0
    assert "training.json" in capsys.readouterr().err
    for name in ("results/outcomes.json", "metrics.jsonl", "results/training.json", "environment.json"):
        whole = (cell / name).read_bytes()
        flip(cell / name, 8 * 80)
        folder = ComparisonFolder(tmp_path / "c")
        settings = comparable(load(cell / "config.yaml", accept_edited=True))
        arm = Arm("fixed", (), 1, settings)
        folder.open(ComparisonPlan("a", "b", 1, 1, (), (arm,)))
        assert folder.damage and all(Path(name).name in sentence for sentence in folder.damage), name
        (cell / name).write_bytes(whole)
    evaluation = Path(shutil.copytree(made / "evaluation", tmp_path / "evaluation"))
    flip(evaluation / "evaluation.json", 8 * 200)
    [sentence] = EvaluationStore(evaluation).check_data("digits")
    assert "evaluation.json is damaged" in sentence and sentence.endswith("it is written anew")


def test_a_file_that_may_not_be_read_is_not_said_to_be_damaged(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Permissions would not do: the superuser reads everything."""
    opened = io.open
    for pattern, read in REFUSED.items():
        path = sorted(made.glob(pattern))[0]

        def denying(file: object, *given: Any, path: Path = path, **more: Any) -> Any:
            if file in (path, str(path)):
                raise PermissionError(errno.EACCES, "Permission denied", str(path))
            return opened(file, *given, **more)

        with monkeypatch.context() as patch:
            for module in (io, builtins):
                patch.setattr(module, "open", denying)
            with pytest.raises((ValueError, OSError), match="Permission denied") as caught:
                read(path)
        # of decoded images, the folder that they are kept in
        assert path.name in str(caught.value) or str(path.parent) in str(caught.value), pattern
        assert not re.search("damaged|truncated", str(caught.value)), pattern


def test_there_are_500_flips_and_no_file_of_a_run_is_left_out(made: Path) -> None:
    assert FLIPS * len(REFUSED | REPORTED) >= 500
    known = {path for pattern in REFUSED | REPORTED for path in made.glob(pattern)}
    # drawn anew by every command that reads them, or for people only
    people = {".png", ".html", ".md"}
    found = {path for path in made.rglob("*") if path.is_file() and path.suffix not in people and path.name != LOCK}
    assert found - known == set()


def test_an_edited_config_is_refused_and_accepted_by_its_flag(made: Path, tmp_path: Path, capsys) -> None:
    run = Path(shutil.copytree(made / "run", tmp_path / "run"))
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("epochs: 1\n", "epochs: 2\n", 1))
    for command in (["--resume", str(run)],):
        assert refused(train_agent.main, command, capsys)[0] == 2
    status, line = refused(report.main, [str(run)], capsys)
    assert status == 2 and "config.yaml" in line and "--resume RUN --accept_edited_config" in line
    assert train_agent.main(["--resume", str(run), "--accept_edited_config", "--progress=off"]) == 0
    assert len(read_metrics(run / "metrics.jsonl")) == 10 and load(config).optimizer.epochs == 2
    assert report.main([str(run)]) == 0
    # nothing is accepted for later
    config.write_text(config.read_text().replace("seed: 0\n", "seed: 1\n"))
    assert "accept_edited_config" in refused(report.main, [str(run)], capsys)[1]


@pytest.mark.parametrize("share", [0.0, 0.01, 0.4, 0.97])
def test_a_config_that_is_empty_or_cut_short_is_refused(made: Path, tmp_path: Path, capsys, share: float) -> None:
    """Also one without a seal, of version 0.1: what it lacks would be taken for younger, and have its default."""
    run = Path(shutil.copytree(made / "run", tmp_path / "run"))
    lines = (run / "config.yaml").read_text().splitlines(keepends=True)[1:]
    (run / "config.yaml").write_text("".join(lines[: round(share * len(lines))]))
    for main, words in ((report.main, [str(run)]), (train_agent.main, ["--resume", str(run)])):
        status, line = refused(main, words, capsys)
        assert status == 2 and "config.yaml" in line and ("is empty" in line if share == 0 else "lacks" in line)


def test_files_without_a_seal_are_read_and_named_once(tmp_path: Path, capsys) -> None:
    old = Path(shutil.copytree(ROOT / "tests" / "fixtures" / "v0_1", tmp_path / "v0_1"))
    assert report.main([str(old / "evaluation")]) == 0
    [line] = capsys.readouterr().err.splitlines()
    assert "without a seal, as version 0.1 wrote them" in line
    assert "evaluation.json" in line and "facts.json" in line
    assert publish.main(["--check"]) == 0
    [line] = capsys.readouterr().err.splitlines()
    assert " more; damage in them would not be seen" in line


def test_what_a_sealed_run_reads_needs_no_note(made: Path, tmp_path: Path, capsys) -> None:
    run = Path(shutil.copytree(made / "run", tmp_path / "run"))
    resealed_yaml(run / "config.yaml", "evaluate: true", "evaluate: false")
    capsys.readouterr()
    assert train_agent.main(["--resume", str(run)]) == 0
    assert report.main([str(run)]) == 0
    assert capsys.readouterr().err == ""


def test_a_report_marks_damaged_logs(made: Path, tmp_path: Path, capsys) -> None:
    run = Path(shutil.copytree(made / "run", tmp_path / "run"))
    lines = (run / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    lines[2] = lines[2].replace(b"loss", b"lost", 1)
    (run / "metrics.jsonl").write_bytes(b"".join(lines))
    (run / "command.txt").write_text("rm -r everything\n")
    assert report.main([str(run)]) == 0
    text = (run / "report.md").read_text()
    for part in ("The logs of 1 run are damaged", "metrics.jsonl, line 3: damaged", "command.txt, line 1 is damaged"):
        assert part in text
    assert "rm -r" not in text
    # a resumed run leaves the damage out of the log, and the report knows all the same
    resealed_yaml(run / "config.yaml", "evaluate: true", "evaluate: false")
    assert train_agent.main(["--resume", str(run), "--progress=off"]) == 0
    assert report.main([str(run)]) == 0
    text = (run / "report.md").read_text()
    assert "metrics.jsonl was damaged when the run was resumed" in text and "lacks 1 of 5 updates: 2" in text
    for name in ("metrics.jsonl", "environment.json"):
        (run / name).unlink()
    assert report.main([str(run)]) == 0
    text = (run / "report.md").read_text()
    assert "metrics.jsonl is missing" in text and "environment.json is missing" in text


def refused(main: Callable[[list[str]], int], words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """The status and the one line of a command that ends with an error."""
    capsys.readouterr()
    try:
        status: object = main(words)
    except SystemExit as ended:
        status = ended.code
    [line] = capsys.readouterr().err.splitlines()
    assert isinstance(status, int)
    return status, line
