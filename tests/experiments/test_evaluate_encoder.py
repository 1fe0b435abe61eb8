"""The command, from its flags to its files, on a small run and on modules of a user's own."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from astra_gym.experiments import evaluate_encoder, publish, report, train_agent
from astra_gym.experiments.config.commands import typed
from astra_gym.experiments.evaluation import encoders, protocol_runner, request
from astra_gym.experiments.evaluation.store import EvaluationStore
from astra_gym.ssl_core.data.image_set import Split
from astra_gym.ssl_core.downstream.knn import NeighborClassifier
from astra_gym.ssl_core.evaluation.results import Row, read_results
from astra_gym.ssl_core.evaluation.sanity import SanityError

TINY = "--agent=fixed --limit=120 --test_limit=40 --batch_size=16 --width=4 --epochs=3 --evaluate=false --progress=off"
TINY += " --image_size=8"
QUICK = ["--attacks", "pgd20", "--epsilons", "8/255", "--epochs", "1", "--progress", "off"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "small"
    assert train_agent.main([*TINY.split(), "--keep_every=2", f"--run_dir={folder}"]) == 0
    return folder


def evaluated(folder: Path, *words: str) -> list[Row]:
    assert evaluate_encoder.main([*words, "--out", str(folder)]) == 0
    return read_results(folder / "evaluation.json")


def values(rows: list[Row]) -> list[tuple[str, str, float, str, float]]:
    return [(row.protocol, row.attack, row.epsilon, row.condition, row.value) for row in rows]


def test_every_protocol_gives_rows_that_say_where_they_come_from(run: Path, tmp_path: Path, capsys) -> None:
    protocols = ["slf", "alf", "aff", "lp-aff", "knn", "ridge"]
    rows = evaluated(tmp_path / "out", str(run), *QUICK, "--protocols", *protocols, "--labels", "0.2")
    assert {(row.protocol, row.label_fraction) for row in rows} == {(protocol, 0.2) for protocol in protocols}
    assert {(row.metric, row.attack) for row in rows} == {("SA", "none"), ("RA", "pgd20")}
    [hashed] = {row.checkpoint_hash for row in rows}
    assert len(hashed) == 64 and all(row.n == 40 and row.dataset == "digits" and not row.standard for row in rows)
    said = capsys.readouterr().out
    assert "LP-AFF, 20 % labels" in said and "no published protocol for digits" in said
    # a long line is left to the terminal
    assert f"results lie in {tmp_path / 'out'}; as a page, with intervals: " in said
    facts = EvaluationStore(tmp_path / "out").facts()
    assert facts["settings"]["aff"]["tuning"]["epochs"] == 1
    assert facts["data"] == {"name": "digits", "train": 120, "test": 40}


def test_a_command_that_fails_removes_nothing(run: Path, tmp_path: Path, capsys) -> None:
    figures = tmp_path / "thesis" / "figures"
    figures.mkdir(parents=True)
    (figures / "mine.png").write_text("mine")
    for words in (["--dataset", "nowhere"], ["--dataset", "../../x"], ["--severities", "9"]):
        with pytest.raises(SystemExit):
            evaluate_encoder.main([str(run), *QUICK, *words, "--out", str(figures.parent)])
        assert (figures / "mine.png").read_text() == "mine"
    before = sorted(path.name for path in run.iterdir())
    with pytest.raises(SystemExit):
        evaluate_encoder.main([str(run), *QUICK, "--out", str(run)])
    assert "is not an evaluation's folder, it has a config.yaml" in capsys.readouterr().err
    (run / "evaluation").symlink_to(tmp_path)
    with pytest.raises(SystemExit):
        evaluate_encoder.main([str(run), *QUICK])
    (run / "evaluation").unlink()
    assert "evaluation is a symbolic link" in capsys.readouterr().err
    assert sorted(path.name for path in run.iterdir()) == before


def test_a_command_that_is_repeated_computes_nothing_again(run: Path, tmp_path: Path, monkeypatch) -> None:
    words = [str(run), *QUICK, "--protocols", "slf", "--shifts", "perspective", "--health"]
    first = evaluated(tmp_path / "out", *words)

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("it was computed again")

    for name in ("classifier_of", "evaluate", "shift_rows", "check_disjoint"):
        monkeypatch.setattr(protocol_runner, name, fail)
    assert evaluated(tmp_path / "out", *words) == first
    assert {row.metric for row in first} >= {"SA", "RA", "PA", "alignment", "uniformity", "effective_rank", "sharpness"}
    assert {path.name for path in (tmp_path / "out" / "figures").iterdir()} == {
        "tsne.png",
        "spectrum.png",
        "landscape.png",
    }
    # another attack needs the classifier, but not its training
    monkeypatch.undo()
    monkeypatch.setattr(protocol_runner, "classifier_of", fail)
    more = evaluated(tmp_path / "out", *words, "--restarts", "2")
    assert [row.restarts for row in more if row.metric == "RA"] == [2]


def test_a_command_that_was_interrupted_gives_what_an_undisturbed_one_does(run: Path, tmp_path: Path, capsys) -> None:
    words = [str(run), *QUICK, "--protocols", "slf", "--attacks", "autoattack-quick", "--test_limit", "6"]
    undisturbed = evaluated(tmp_path / "whole", *words)
    for stop in (2, 9):
        updates = 0

        def interrupting(done: float, total: float, stop: int = stop) -> None:
            nonlocal updates
            updates += 1
            if updates == stop:
                raise KeyboardInterrupt

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(protocol_runner.Stages, "update", lambda _, done, total: interrupting(done, total))
            status = evaluate_encoder.main([*words, "--out", str(tmp_path / "stopped")])
        assert status in (0, 130)
        if stop == 2:
            assert status == 130 and f"resume by {typed('evaluate', *words)}" in capsys.readouterr().err
    assert values(evaluated(tmp_path / "stopped", *words)) == values(undisturbed)


@pytest.mark.every_agent
def test_evaluating_twice_is_equal_bit_for_bit(run: Path, tmp_path: Path) -> None:
    words = [str(run), *QUICK, "--protocols", "alf", "--shifts", "corruptions", "--severities", "1", "5"]
    one, other = (evaluated(tmp_path / name, *words) for name in "ab")
    assert values(one) == values(other)
    outcomes = [
        [json.loads(path.read_text())["outcomes"] for path in sorted(tmp_path.glob(f"{name}/parts/*/part.json"))]
        for name in "ab"
    ]
    assert outcomes[0] == outcomes[1]


def test_along_a_run_every_kept_encoder_is_evaluated(run: Path, tmp_path: Path, capsys) -> None:
    rows = evaluated(tmp_path / "out", str(run), "--every", "2", "--epochs", "2", "--progress", "off")
    assert [(row.checkpoint, row.metric) for row in rows] == [
        (name, metric) for name in ("epoch-0002", "epoch-0003") for metric in ("SA", "RA")
    ]
    assert (tmp_path / "out" / "figures" / "accuracy_along_the_run.png").stat().st_size > 10_000
    assert report.main([str(tmp_path / "out")]) == 0
    page = (tmp_path / "out" / "report.html").read_text()
    assert "epoch-0002" in page and page.count("data:image/png") == 1
    with pytest.raises(SystemExit) as stopped:
        evaluate_encoder.main(["--every", "2", str(tmp_path)])
    assert stopped.value.code == 2 and "checkpoints" in capsys.readouterr().err


def test_an_evaluation_is_reported_and_kept(run: Path, tmp_path: Path, capsys) -> None:
    rows = evaluated(
        tmp_path / "out", str(run), *QUICK, "--protocols", "slf", "--epsilons", "4/255", "8/255", "--health"
    )
    assert report.main([str(tmp_path / "out")]) == 0
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Representation health" in page and page.count("data:image/png") == 4
    readme = tmp_path / "README.md"
    readme.write_text(
        "<!-- table evaluated-accuracy mine -->\n<!-- end -->\n<!-- table evaluated-remarks mine -->\n<!-- end -->\n"
    )
    words = [str(tmp_path / "out"), "--group", "mine", "--results", str(tmp_path / "kept"), "--readme", str(readme)]
    assert publish.main(words) == 0
    kept = tmp_path / "kept" / "evaluations" / "mine"
    assert read_results(kept / "evaluation.json") == rows
    assert str(tmp_path) not in (kept / "facts.json").read_text()
    assert "runs/small" in EvaluationStore(kept).facts()["command"]
    text = readme.read_text()
    assert "| SLF | 40 |" in text and "- **not standard (SLF)**: no published protocol for digits" in text


def module_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, body: str) -> str:
    (tmp_path / f"{name}.py").write_text(f"import torch\nfrom torch import nn\n\n{body}\n")
    monkeypatch.chdir(tmp_path)
    return f"{name}:build"


CONVOLUTION = """
def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
"""
LOGITS = """
class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(192, 10, generator=torch.Generator().manual_seed(0)))

    def forward(self, x):
        return {output}

def build():
    return Model()
"""
PLAIN = "x.flatten(1) @ self.weight"
DATA = ["--dataset", "digits", "--image_size", "8", "--limit", "150", "--test_limit", "150", "--progress", "off"]


def test_any_module_can_be_evaluated(tmp_path: Path, monkeypatch) -> None:
    path = module_of(tmp_path, monkeypatch, "features_of_mine", CONVOLUTION)
    rows = evaluated(tmp_path / "out", "--model", path, *DATA, *QUICK, "--protocols", "slf", "aff", "knn", "ridge")
    assert {row.protocol for row in rows} == {"slf", "aff", "knn", "ridge"} and rows[0].route == "none"
    path = module_of(tmp_path, monkeypatch, "logits_of_mine", LOGITS.format(output=PLAIN))
    rows = evaluated(tmp_path / "logits", "--model", path, *DATA, *QUICK, "--protocols", "classifier")
    assert [row.protocol for row in rows] == ["classifier", "classifier"]
    assert [row.deviations for row in rows] == [("150 training images only", "150 test images only")] * 2


@pytest.mark.parametrize(
    ("name", "output", "message"),
    [
        ("noise", f"{PLAIN} + 0.01 * torch.randn(len(x), 10)", "random"),
        ("probabilities", f"({PLAIN}).softmax(1)", "probabilities"),
        ("clipped_gradients", "x.mul(255).round().div(255).flatten(1) @ self.weight", "gradient"),
        ("coupled", f"({PLAIN}) - ({PLAIN}).mean(0)", "batch"),
    ],
)
def test_a_faulty_model_gets_no_figure(
    name: str, output: str, message: str, tmp_path: Path, monkeypatch, capsys
) -> None:
    path = module_of(tmp_path, monkeypatch, name, LOGITS.format(output=output))
    words = ["--model", path, *DATA, *QUICK, "--protocols", "classifier", "--out", str(tmp_path / "out")]
    assert evaluate_encoder.main(words) == 1
    error = capsys.readouterr().err
    assert "the evaluation failed" in error and message in error
    assert not (tmp_path / "out" / "evaluation.json").exists()


def test_a_test_set_inside_the_training_set_gets_no_figure(run: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    real: Callable[..., Split] = request.load_dataset

    def leaking(*given: object, **more: object) -> Split:
        train = real(*given, **more).train
        return Split(train, train.take(40))

    monkeypatch.setattr(request, "load_dataset", leaking)
    assert evaluate_encoder.main([str(run), *QUICK, "--protocols", "slf", "--out", str(tmp_path / "out")]) == 1
    assert "40 of the 40 images" in capsys.readouterr().err


@pytest.fixture
def theirs(tmp_path: Path) -> tuple[str, ...]:
    """A file of torchvision's, and the flags of its evaluation."""
    from torchvision.models import resnet18

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = resnet18()
    model.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
    file = tmp_path / "theirs.pt"
    torch.save(model.state_dict(), file)
    small = ["--dataset", "digits", "--image_size", "8", "--limit", "40", "--test_limit", "20", "--progress", "off"]
    return str(file), *small, "--protocols", "knn", "--attacks", "none"


def test_a_checkpoint_of_another_project_needs_its_format(theirs: tuple[str, ...], capsys) -> None:
    with pytest.raises(SystemExit):
        evaluate_encoder.main(theirs)
    assert "needs --format" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        evaluate_encoder.main([*theirs, "--format", "torchvision"])
    assert "stem" in capsys.readouterr().err


@pytest.mark.every_agent
def test_a_checkpoint_of_another_project_is_evaluated(theirs: tuple[str, ...], tmp_path: Path) -> None:
    normalized = ["--mean", "0.5", "0.5", "0.5", "--std", "0.25", "0.25", "0.25"]
    rows = evaluated(tmp_path / "out", *theirs, "--format", "torchvision", "--stem", "cifar", *normalized)
    assert [(row.protocol, row.metric, row.checkpoint) for row in rows] == [("knn", "SA", "theirs.pt")]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "say what to evaluate"),
        (["RUN", "--model", "a:b"], "one of them"),
        (["nosuch"], "nosuch does not exist"),
        (["RUN", "--route", "pgd"], "--route is for checkpoints of other projects"),
        (["RUN", "--protocols", "classifier"], "takes the outputs of a --model"),
        (["RUN", "--everything", "--attacks", "pgd20"], "--everything says it all"),
        (["RUN", "--attacks", "none", "pgd20"], "goes with no other attack"),
        (["RUN", "--labels", "0"], "expected shares in (0, 1]"),
        (["RUN", "--epsilons", "8"], "8/255 and not 8"),
        (["RUN", "--epsilons", "x"], "expected a radius such as 8/255"),
        (["RUN", "--epochs", "0"], "--epochs: expected 1 or more"),
        (["RUN", "--protocols", "slf", "slf"], "--protocols names one thing twice"),
        (["RUN", "--dataset", "cifar"], "did you mean 'cifar10'"),
        (["--model", "nosuch:build"], "--image_size"),
        (["--model", "nosuch:build", "--image_size", "8"], "cannot import nosuch"),
        (["--model", "pathlib:Path.cwd", "--image_size", "8"], "expected an nn.Module"),
    ],
)
def test_bad_input_is_one_line(words: list[str], message: str, run: Path, capsys) -> None:
    with pytest.raises(SystemExit) as stopped:
        evaluate_encoder.main([str(run) if word == "RUN" else word for word in words])
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and message in error and error.count("\n") == 1
    assert not (run / "evaluation").exists()


def test_a_void_classifier_costs_no_other(run: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    checked = protocol_runner.check_classifier

    def strict(classifier: nn.Module, *given: object, **more: object) -> list[str]:
        if isinstance(classifier, NeighborClassifier):
            raise SanityError("void for a test")
        return checked(classifier, *given, **more)

    monkeypatch.setattr(protocol_runner, "check_classifier", strict)
    words = [str(run), *QUICK, "--protocols", "knn", "slf", "--out", str(tmp_path / "out")]
    assert evaluate_encoder.main(words) == 1
    assert "no figure for KNN: void for a test" in capsys.readouterr().err
    assert {row.protocol for row in read_results(tmp_path / "out" / "evaluation.json")} == {"slf"}
    assert report.main([str(tmp_path / "out")]) == 0
    assert "void for a test" in (tmp_path / "out" / "report.html").read_text()


def test_what_cannot_be_evaluated_is_said_before_anything_is_trained(tmp_path: Path, monkeypatch, capsys) -> None:
    path = module_of(tmp_path, monkeypatch, "early", CONVOLUTION)
    generator = np.random.default_rng(0)
    for name in ("a", "b", "c"):
        (tmp_path / "three" / name).mkdir(parents=True)
        (tmp_path / "none").mkdir(exist_ok=True)
        for number in range(4):
            picture = Image.fromarray(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8))
            picture.save(tmp_path / "three" / name / f"{number}.png")
            picture.save(tmp_path / "none" / f"{name}{number}.png")
    for folder, message in (("three", "needs at least 4"), ("none", "has no labels")):
        words = ["--model", path, "--dataset", "folder", "--data_dir", str(tmp_path / folder), "--image_size", "8"]
        with pytest.raises(SystemExit) as stopped:
            evaluate_encoder.main([*words, "--out", str(tmp_path / "out")])
        assert stopped.value.code == 2 and message in capsys.readouterr().err
    assert not list((tmp_path / "out").glob("classifiers/*"))


def test_code_that_changed_is_evaluated_anew(tmp_path: Path, monkeypatch) -> None:
    body = CONVOLUTION.replace("nn.Flatten()", "Scaled()") + "\n\nSCALE = {scale}\n\n\n"
    body += "class Scaled(nn.Module):\n    def forward(self, x):\n        return SCALE * x.flatten(1)\n"
    found = []
    for scale in (1.0, -1.0):
        # a module of another name, as a changed file is to another process
        path = module_of(tmp_path, monkeypatch, f"scaled_{int(scale) + 1}", body.format(scale=scale))
        subject = encoders.module(path, 8, torch.device("cpu"), classifier=False)
        found.append((subject.digest, subject.answers))
    assert found[0][0] == found[1][0] and found[0][1] != found[1][1]


def test_a_model_that_changes_under_attack_gets_no_figure(tmp_path: Path, monkeypatch, capsys) -> None:
    body = LOGITS.format(output=PLAIN).replace(
        "    def forward(self, x):\n",
        "        self.register_buffer('calls', torch.zeros(()))\n\n"
        "    def forward(self, x):\n        self.seen = getattr(self, 'seen', 0) + 1\n"
        "        if self.seen > 1000:\n            self.calls += 1\n",
    )
    path = module_of(tmp_path, monkeypatch, "late", body)
    words = ["--model", path, *DATA, *QUICK, "--protocols", "classifier", "--out", str(tmp_path / "out")]
    many = ["--epsilons", *(f"{radius}/255" for radius in range(1, 60))]
    assert evaluate_encoder.main([*words, *many]) == 1
    assert "not frozen" in capsys.readouterr().err
    assert not list((tmp_path / "out").glob("parts/attacks-*"))


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning")
def test_torchscript_and_float64_are_evaluated(tmp_path: Path, monkeypatch) -> None:
    traced = CONVOLUTION.replace("build", "plain") + "\n\ndef build():\n"
    traced += "    return torch.jit.trace(plain().eval(), torch.rand(2, 3, 8, 8))\n"
    path = module_of(tmp_path, monkeypatch, "traced_of_mine", traced)
    rows = evaluated(tmp_path / "out", "--model", path, *DATA, *QUICK, "--protocols", "slf", "knn", "ridge")
    assert {row.protocol for row in rows} == {"slf", "knn", "ridge"}
    path = module_of(
        tmp_path, monkeypatch, "double_of_mine", LOGITS.format(output="x.flatten(1).double() @ self.weight.double()")
    )
    quick = ["--attacks", "pgd20", "autoattack-quick", "--epsilons", "8/255", "--test_limit", "20"]
    rows = evaluated(tmp_path / "logits", "--model", path, *DATA, *quick, "--protocols", "classifier")
    assert {row.attack for row in rows} >= {"none", "pgd20", "autoattack-quick"}


def test_a_model_whose_gradients_fail_in_an_attack_gets_no_figure(tmp_path: Path, monkeypatch, capsys) -> None:
    # right at the image the slope of the root is infinite, and 0 times it NaN: FGSM begins there
    output = f"{PLAIN} + 0 * (x - (255 * x).round() / 255).abs().sqrt().flatten(1).sum(1, keepdim=True)"
    path = module_of(tmp_path, monkeypatch, "rooted", LOGITS.format(output=output))
    words = ["--model", path, *DATA, "--attacks", "fgsm", "--epsilons", "8/255", "--protocols", "classifier"]
    assert evaluate_encoder.main([*words, "--out", str(tmp_path / "out")]) == 1
    assert "the attack's gradients are not finite" in capsys.readouterr().err
