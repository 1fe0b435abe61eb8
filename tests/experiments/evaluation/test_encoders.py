import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from astra_gym.experiments import evaluate_encoder, train_agent
from astra_gym.experiments.evaluation import encoders
from astra_gym.ssl_core.data.datasets import load_dataset
from astra_gym.ssl_core.downstream.online_probe import ridge_classifier
from astra_gym.ssl_core.evaluation.results import read_results
from astra_gym.ssl_core.models.checkpoint import CheckpointError
from astra_gym.ssl_core.models.export import torchvision_state
from astra_gym.ssl_core.transforms.views import as_float
from tests.helpers.plain_networks import ordinary

CPU = torch.device("cpu")
TINY = "--agent=fixed --limit=40 --test_limit=20 --batch_size=8 --width=2 --epochs=1 --evaluate=false --progress=off"


def test_a_run_gives_its_encoder_its_routes_and_its_settings(tmp_path: Path) -> None:
    run = tmp_path / "mine"
    assert train_agent.main([*TINY.split(), "--keep_every=1", f"--run_dir={run}", "--precision=fp32"]) == 0
    whole, kept = encoders.own(run, CPU), encoders.own(run / "checkpoints" / "epoch-0001.pt", CPU)
    assert (whole.name, whole.checkpoint, whole.route, whole.clean_route) == ("mine", "last", "pgd", "normal")
    assert (kept.name, kept.checkpoint, kept.digest) == ("mine", "epoch-0001", whole.digest)
    assert whole.settings is not None and whole.settings.data.limit == 40 and kept.settings == whole.settings
    assert whole.encoder.precision == "fp32" and not whole.encoder.training
    # outside its run a checkpoint has no settings
    copy = tmp_path / "copy.pt"
    copy.write_bytes((run / "checkpoints" / "last.pt").read_bytes())
    alone = encoders.own(copy, CPU)
    assert alone.settings is None and (alone.name, alone.digest) == ("copy", whole.digest)


def test_a_network_trained_in_bfloat16_is_evaluated_in_full_precision(tmp_path: Path) -> None:
    run = tmp_path / "half"
    assert train_agent.main([*TINY.split(), f"--run_dir={run}", "--precision=bf16", "--image_size=32"]) == 0
    assert encoders.own(run, CPU).encoder.precision == "fp32"


def test_a_foreign_file_is_no_checkpoint_of_ours(tmp_path: Path) -> None:
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "theirs.pt")
    with pytest.raises(CheckpointError, match="foreign"):
        encoders.own(tmp_path / "theirs.pt", CPU)


@pytest.mark.slow
@pytest.mark.parametrize("suite", ["autoattack-quick", pytest.param("autoattack", marks=pytest.mark.every_agent)])
def test_the_classifier_of_a_foreign_file_is_attacked_as_it_is(suite: str, tmp_path: Path, capsys) -> None:
    network, data = ordinary(), load_dataset("digits", image_size=8, limit=200, test_limit=12)
    labels = data.train.labels
    assert labels is not None
    ours = ridge_classifier(network, "normal", data.train.images, labels, 10, CPU)[0]
    state = torchvision_state(network, "normal")
    state |= {f"normalize.{name}": torch.tensor(network.arguments[name]) for name in ("mean", "std")}
    state |= {f"fc.{name}": value for name, value in ours.head.state_dict().items()}
    torch.save(state, tmp_path / "aff.pt")
    words = f"{tmp_path / 'aff.pt'} --format acl --dataset digits --image_size 8 --limit 200 --test_limit 12"
    words += f" --protocols classifier --attacks fgsm pgd20 {suite} --epsilons 8/255 --progress off"
    words += f" --out {tmp_path / 'out'}"
    assert evaluate_encoder.main(words.split()) == 0
    rows = read_results(tmp_path / "out" / "evaluation.json")
    assert {row.protocol for row in rows} == {"classifier"}
    parts = {"square"} if suite == "autoattack" else {"apgd-t"}
    assert {row.attack for row in rows} >= {"none", "fgsm", "pgd20", suite, "worst"} | parts
    right = (ours(as_float(data.test.images)).argmax(1) == data.test.labels).float().mean().item()
    assert right > 0.3 and rows[0].value == pytest.approx(100 * right)
    assert "its 10 classes are taken to be those of the data set" in capsys.readouterr().out
    torch.save(state | {"fc.weight": torch.zeros(100, 64), "fc.bias": torch.zeros(100)}, tmp_path / "aff.pt")
    with pytest.raises(SystemExit):
        evaluate_encoder.main(words.split())
    assert "aff.pt classifies 100 classes, and digits has 10" in capsys.readouterr().err
    del state["fc.weight"]
    torch.save(state, tmp_path / "bare.pt")
    with pytest.raises(ValueError, match=r"has no classifier: expected fc.weight \(classes, 64\)"):
        encoders.foreign(tmp_path / "bare.pt", CPU, format="acl", classifier=True)


def test_a_users_module_is_wrapped_unless_it_is_a_classifier(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "pooling_of_mine.py").write_text(
        "from torch import nn\n\nclass Pooled(nn.Module):\n    def forward(self, x):\n        return x.mean((2, 3))\n"
        "\nmodel = Pooled()\n\ndef number():\n    return 3\n\ndef failing():\n    raise KeyError('weights')\n"
    )
    monkeypatch.chdir(tmp_path)
    features = encoders.module("pooling_of_mine:Pooled", 8, CPU, classifier=False)
    assert features.encoder.feature_dim == 3 and (features.name, features.route) == ("pooling_of_mine", "none")
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(features.encoder.features(images, "none"), images.mean((2, 3)))
    logits = encoders.module("pooling_of_mine:model", 8, CPU, classifier=True)
    assert torch.equal(logits.encoder(images), images.mean((2, 3))) and not logits.encoder.training
    for name, message in (("number", "returned a int: expected an nn.Module"), ("failing", "failed: KeyError")):
        with pytest.raises(ValueError, match=message):
            encoders.module(f"pooling_of_mine:{name}", 8, CPU, classifier=False)
    with pytest.raises(ValueError, match=r"is a float: expected an nn\.Module"):
        encoders.module("math:pi", 8, CPU, classifier=False)


MODELS = """
import torch
from torch import nn

class Base(nn.Module):
    def __init__(self, *first, features=192):
        super().__init__()
        self.m = nn.Sequential(*first, nn.Flatten(), nn.Linear(features, 10))
        nn.init.constant_(self.m[-1].weight, 0.01)

    def forward(self, x):
        return self.m(x)

class Sub(Base):
    def forward(self, x):
        return self.m(x.sub_(0.5))

class Assigned(Base):
    def forward(self, x):
        x -= 0.5
        return self.m(x)

class Doubles(Base):
    def forward(self, x):
        return self.m.double()(x.double())

class Grouped(Base):
    def forward(self, x):
        return self.m(x.unflatten(0, (-1, 2)).flatten(0, 1))

def threshold():
    return Base(nn.Threshold(0.5, 0.0, inplace=True))

def first_norm():
    return Base(nn.BatchNorm2d(3, track_running_stats=False))

def last_norm():
    model = Base()
    model.m.append(nn.BatchNorm1d(10, track_running_stats=False))
    return model

def kept_norm():
    return Base(nn.BatchNorm2d(3), nn.InstanceNorm2d(3))

def double():
    return Base().double()

def half():
    return Base(nn.Conv2d(3, 3, 1)).half()

def other_size():
    return Base(features=768)

def traced():
    return torch.jit.trace(Base().eval(), torch.rand(2, 3, 8, 8))
"""


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A module with networks of a user's own, in the current directory."""
    (tmp_path / "networks_of_mine.py").write_text(MODELS)
    monkeypatch.chdir(tmp_path)
    yield "networks_of_mine"
    sys.modules.pop("networks_of_mine", None)


@pytest.mark.parametrize("classifier", [True, False])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Sub", "changes the images that it is given: expected a forward that works on a copy"),
        ("Assigned", "changes the images that it is given"),
        ("threshold", "changes the images that it is given"),
        ("first_norm", r"batch norm without running statistics \(m\.0\) .*expected track_running_stats=True"),
        ("last_norm", r"batch norm without running statistics \(m\.2\)"),
        ("double", r"its weights are torch\.float64: build it with \.float\(\)"),
        ("half", r"its weights are torch\.float16: build it with \.float\(\)"),
        ("other_size", r"fails on images torch\.float32 \(8, 3, 8, 8\)"),
        ("Grouped", "or on one of them alone"),
    ],
)
def test_a_users_module_that_cannot_be_evaluated_is_told_why(
    models: str, name: str, message: str, classifier: bool
) -> None:
    with pytest.raises(ValueError, match=message) as error:
        encoders.module(f"{models}:{name}", 8, CPU, classifier)
    assert len(str(error.value)) < 300 and "\n" not in str(error.value)


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("name", ["Base", "Doubles", "traced", "kept_norm"])
def test_a_users_module_of_any_make_that_works_is_taken(models: str, name: str) -> None:
    images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    found = encoders.module(f"{models}:{name}", 8, CPU, classifier=True).encoder(images)
    features = encoders.module(f"{models}:{name}", 8, CPU, classifier=False).encoder.features(images, "none")
    for answers in (found, features):
        # heads and attacks compute in the images' type
        assert answers.shape == (4, 10) and answers.dtype == torch.float32
    assert torch.autograd.grad(found.sum(), images)[0].abs().sum() > 0
