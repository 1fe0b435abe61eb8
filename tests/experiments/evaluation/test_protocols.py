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
from astra_gym.ssl_core.evaluation.results import NOISE_OF_SECOND_SCHEMA, PROTOCOLS
from astra_gym.ssl_core.models.target_network import build_network

CPU = torch.device("cpu")
BOTH = ("normal", "pgd")


def made(
    dataset: str = "cifar10",
    settings: Settings | None = None,
    routes: tuple[str, str] = BOTH,
    **changes: object,
) -> Protocols:
    return protocols_for(dataset, settings, Changes(**changes), routes)


# C7 of the notes on DynACL's test_LF.py and test_AFF.py, which ASTrA's copies repeat; the rates are of LPAFT.py
PUBLISHED_LR = {"cifar10": 0.01, "cifar100": 0.05, "stl10": 0.1}
LINEAR_HEADS = {"epochs": 25, "batch_size": 512, "milestones": (10, 20), "momentum": 0.9, "weight_decay": 2e-4}
FULL = {"epochs": 25, "lr": 0.1, "batch_size": 128, "milestones": (15, 20), "momentum": 0.9, "weight_decay": 2e-4}
FULL |= {"beta": 6.0, "epsilon": 8 / 255, "step_size": 2 / 255, "steps": 10, "start_noise": 0.0}
"""At most 8/255 by ten steps of 2/255 from the clean image, without noise (C8)."""


@pytest.mark.parametrize("dataset", PUBLISHED_LR)
def test_a_standard_row_is_got_by_the_published_settings(dataset: str) -> None:
    protocols = made(dataset)
    weak = {"padding": 4, "flip": 0.5}
    expected: dict[str, dict[str, dict[str, object]]] = {
        "slf": {"probe": LINEAR_HEADS | {"lr": PUBLISHED_LR[dataset], "augment": True}, "views": weak},
        "aff": {"tuning": FULL, "views": weak},
    }
    # ten steps of 2/255 within 8/255, from a random start
    expected["alf"] = expected["slf"] | {"attack": {"epsilon": 8 / 255, "step_size": 2 / 255, "steps": 10}}
    for protocol, settings in expected.items():
        key = protocols.key(protocol)
        assert key.keys() == settings.keys()
        for what, values in settings.items():
            found = key[what] if what != "views" else {name: key[what][name] for name in weak}
            assert found == values, (protocol, what)
    standard = {protocol for protocol in PROTOCOLS if not protocols.deviations(protocol, 5_000, BOTH)}
    # DynACL has no full fine-tuning on STL-10, and ASTrA's there crops without padding
    assert standard - {"classifier", "features"} == ({"slf", "alf"} if dataset == "stl10" else {"slf", "alf", "aff"})


def test_one_route_starts_at_trades_noise_and_is_not_standard() -> None:
    one = made(routes=("normal", "normal"))
    assert one.tuning.start_noise == 0.001
    assert one.deviations("aff", 50_000, ("normal", "normal")) == (
        "start_noise 0.001, not 0",
        "one batch-norm route for clean and attacked images, not two",
    )
    assert made(routes=("normal", "normal"), aff_noise=0.0).tuning.start_noise == 0


def test_the_noise_of_version_0_1_is_a_deviation_in_the_words_of_its_files() -> None:
    for protocol in ("aff", "lp-aff"):
        assert NOISE_OF_SECOND_SCHEMA in made(aff_noise=0.001).deviations(protocol, 50_000, BOTH)
        assert NOISE_OF_SECOND_SCHEMA not in made().deviations(protocol, 50_000, BOTH)


@pytest.mark.parametrize("dataset", PROBE_LR)
def test_published_protocols_are_standard(dataset: str) -> None:
    protocols = made(dataset, Settings.of(dataset=dataset, data_dir="."))
    assert protocols.probe == standard_probe(dataset) and protocols.tuning == FineTuneSettings()
    for protocol in ("slf", "alf"):
        assert protocols.deviations(protocol, 50_000, BOTH) == ()
    none = ("no published full fine-tuning for stl10",) if dataset == "stl10" else ()
    assert protocols.deviations("aff", 50_000, BOTH) == none
    # what nobody has published for robust encoders is never standard
    for protocol in ("lp-aff", "knn", "ridge"):
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
        ({"aff_noise": 0.001}, "aff", ("start_noise 0.001, not 0",)),
        ({"aff_noise": 0.001}, "slf", ()),
        ({"flip": 0.0}, "slf", ("flips with probability 0, not 0.5",)),
        ({"flip": 0.0, "augment": False}, "slf", ("augment False, not True",)),
        ({"flip": 0.0, "augment": False}, "aff", ("flips with probability 0, not 0.5",)),
        ({"neighbors": 20}, "knn", ("k 20, not 200",)),
        ({"batch_size": 64}, "aff", ("batch_size 64, not 128",)),
    ],
)
def test_what_is_changed_is_said(changes: dict[str, object], protocol: str, expected: tuple[str, ...]) -> None:
    found = made(**changes).deviations(protocol, 50_000, BOTH)
    assert tuple(one for one in found if "no published" not in one) == expected


def test_images_smaller_than_the_published_ones_are_not_cropped() -> None:
    small, usual = (protocols_for("cifar10", None, Changes(), BOTH, side) for side in (16, 96))
    assert (small.views.padding, usual.views.padding, small.views.flip) == (0, 4, 0.5)
    for protocol in ("slf", "alf", "aff", "lp-aff"):
        assert small.deviations(protocol, 50_000, BOTH)[-1] == "no crops of images smaller than 32 x 32"
    for protocol in ("slf", "aff"):
        assert usual.deviations(protocol, 50_000, BOTH) == ()
    uncropped = protocols_for("cifar10", None, Changes(augment=False), BOTH, 16)
    assert uncropped.deviations("slf", 50_000, BOTH) == ("augment False, not True",)


def test_a_single_route_is_a_deviation_of_full_fine_tuning_only() -> None:
    assert made().deviations("slf", 50_000, ("normal", "normal")) == ()
    assert made().deviations("aff", 50_000, ("normal", "normal")) == (
        "one batch-norm route for clean and attacked images, not two",
    )


def test_fewer_images_than_neighbors_are_a_deviation() -> None:
    assert "k 150, not 200" in made().deviations("knn", 150, BOTH)


def test_a_data_set_without_a_published_protocol_is_probed_as_in_its_run() -> None:
    run = Settings.of()
    protocols = made("digits", run)
    assert (protocols.probe.epochs, protocols.probe.lr, protocols.probe.augment) == (100, 0.5, False)
    assert protocols.probe.milestones == (40, 80) and protocols.views.flip == run.views.flip
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
    for protocol in ("slf", "alf", "aff", "lp-aff", "knn", "ridge"):
        keys = {
            repr(made(**change).key(protocol))
            for change in (
                *({}, {"epochs": 1}, {"lr": 0.5}, {"aff_lr": 0.5}, {"aff_noise": 0.5}, {"flip": 0.1}),
                {"neighbors": 3},
            )
        }
        assert len(keys) == {"slf": 4, "alf": 4, "aff": 5, "lp-aff": 6, "knn": 2, "ridge": 1}[protocol]
