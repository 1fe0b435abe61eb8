from pathlib import Path

import pytest
import torch

from astra_gym.experiments.config.settings import Settings
from astra_gym.experiments.evaluation.encoders import Subject
from astra_gym.experiments.evaluation.protocols import (
    Changes,
    Protocols,
    classifier_of,
    milestones,
    packed,
    protocols_for,
    unpacked,
)
from astra_gym.ssl_core.data.datasets import load_dataset
from astra_gym.ssl_core.downstream.finetuning import FineTuneSettings
from astra_gym.ssl_core.downstream.linear_probe import PROBE_LR, Classifier, ProbeSettings, standard_probe
from astra_gym.ssl_core.models.target_network import build_network

CPU = torch.device("cpu")
BOTH = ("normal", "pgd")


def made(dataset: str = "cifar10", settings: Settings | None = None, **changes: object) -> Protocols:
    return protocols_for(dataset, settings, Changes(**changes))


@pytest.mark.parametrize("dataset", PROBE_LR)
def test_published_protocols_are_standard(dataset: str) -> None:
    protocols = made(dataset, Settings(dataset=dataset, data_dir="."))
    assert protocols.probe == standard_probe(dataset) and protocols.tuning == FineTuneSettings()
    for protocol in ("slf", "alf"):
        assert protocols.deviations(protocol, 50_000, BOTH) == ()
    none = ("no published full fine-tuning for stl10",) if dataset == "stl10" else ()
    assert protocols.deviations("aff", 50_000, BOTH) == none
    # what nobody has published for robust encoders is never standard
    for protocol in ("lp-aff", "knn"):
        assert "no published settings" in protocols.deviations(protocol, 50_000, BOTH)[-1]


@pytest.mark.parametrize(
    ("changes", "protocol", "expected"),
    [
        ({"epochs": 10}, "slf", ("epochs 10, not 25", "milestones (4, 8), not (10, 20)")),
        ({"epochs": 10}, "aff", ("epochs 10, not 25", "milestones (6, 8), not (15, 20)")),
        ({"epochs": 10}, "knn", ()),
        ({"lr": 0.02}, "alf", ("lr 0.02, not 0.01",)),
        ({"lr": 0.02}, "aff", ()),
        ({"lr": 0.02}, "lp-aff", ("lr 0.02, not 0.01",)),
        ({"aff_lr": 0.02}, "aff", ("lr 0.02, not 0.1",)),
        ({"flip": 0.0}, "slf", ("flips with probability 0, not 0.5",)),
        ({"flip": 0.0, "augment": False}, "slf", ("augment False, not True",)),
        ({"flip": 0.0, "augment": False}, "aff", ("flips with probability 0, not 0.5",)),
        ({"neighbours": 20}, "knn", ("k 20, not 200",)),
        ({"batch_size": 64}, "aff", ("batch_size 64, not 128",)),
    ],
)
def test_what_is_changed_is_said(changes: dict[str, object], protocol: str, expected: tuple[str, ...]) -> None:
    found = made(**changes).deviations(protocol, 50_000, BOTH)
    assert tuple(one for one in found if "no published" not in one) == expected


def test_a_single_route_is_a_deviation_of_full_fine_tuning_only() -> None:
    assert made().deviations("slf", 50_000, ("normal", "normal")) == ()
    assert made().deviations("aff", 50_000, ("normal", "normal")) == (
        "one batch-norm route for clean and attacked images, not two",
    )


def test_fewer_images_than_neighbours_are_a_deviation() -> None:
    assert "k 150, not 200" in made().deviations("knn", 150, BOTH)


def test_a_data_set_without_a_published_protocol_is_probed_as_in_its_run() -> None:
    run = Settings()
    protocols = made("digits", run)
    assert (protocols.probe.epochs, protocols.probe.lr, protocols.probe.augment) == (100, 0.5, False)
    assert protocols.probe.milestones == (40, 80) and protocols.views.flip == run.flip
    assert protocols.deviations("slf", 100, BOTH) == ("no published protocol for digits",)
    # another data set than the run's: transfer
    assert made("cifar100", run).probe == standard_probe("cifar100")
    assert made("digits").probe == standard_probe("digits")


def test_milestones_keep_their_share_of_the_training() -> None:
    assert [milestones(epochs, ProbeSettings.milestones) for epochs in (25, 100, 5, 2, 1)] == [
        (10, 20),
        (40, 80),
        (2, 4),
        (1,),
        (),
    ]


@pytest.mark.parametrize("protocol", ["slf", "alf", "aff", "lp-aff"])
def test_a_classifier_that_was_put_away_comes_back(protocol: str, tmp_path: Path) -> None:
    data = load_dataset("digits", image_size=8, limit=40, test_limit=20)
    network = build_network(torch.Generator().manual_seed(0), arch="resnet10", width=2, projector_dim=4).eval()
    subject = Subject("x", "last", network, "pgd", "normal")
    before = subject.digest
    made_one = classifier_of(
        protocol,
        subject,
        data.train,
        made("digits", epochs=1),
        seed=0,
        device=CPU,
        head=torch.nn.Linear(network.feature_dim, 10) if protocol == "lp-aff" else None,
        progress=lambda done, total: None,
    )
    assert isinstance(made_one, Classifier)
    payload = packed(made_one, protocol)
    assert ("encoder" in payload) == (protocol in ("aff", "lp-aff"))
    torch.save(payload, tmp_path / "classifier.pt")
    fresh = build_network(torch.Generator().manual_seed(0), arch="resnet10", width=2, projector_dim=4)
    found = unpacked(torch.load(tmp_path / "classifier.pt", weights_only=True), subject, fresh)
    images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    assert torch.equal(found(images), made_one(images))
    assert Subject("x", "last", network, "pgd", "normal").digest == before


def test_every_setting_that_decides_is_in_the_key() -> None:
    for protocol in ("slf", "alf", "aff", "lp-aff", "knn"):
        keys = {
            repr(made(**change).key(protocol))
            for change in ({}, {"epochs": 1}, {"lr": 0.5}, {"aff_lr": 0.5}, {"flip": 0.1}, {"neighbours": 3})
        }
        assert len(keys) == {"slf": 4, "alf": 4, "aff": 4, "lp-aff": 5, "knn": 2}[protocol]
