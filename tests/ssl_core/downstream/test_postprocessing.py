import copy
import inspect
from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from astra_gym.ssl_core.data.image_set import ImageSet
from astra_gym.ssl_core.downstream import postprocessing
from astra_gym.ssl_core.downstream.postprocessing import PostSettings, post_process
from astra_gym.ssl_core.models.clustering import assign, fit_clusters
from astra_gym.ssl_core.models.target_network import TargetNetwork
from astra_gym.ssl_core.transforms.views import as_float
from astra_gym.ssl_core.utils.hashing import fingerprint
from astra_gym.ssl_core.utils.rng import Streams, derive_seed
from tests.helpers.draws import generator
from tests.helpers.tiny_networks import tiny_network

BOTH = ("normal", "pgd")
SHORT = PostSettings(clusters=3, starts=2, probe_epochs=2, probe_lr=0.1, epochs=2, lr=0.05, batch_size=20, steps=2)


def tiny(routes: tuple[str, ...] = BOTH) -> TargetNetwork:
    """A network whose routes differ."""
    network = tiny_network(routes=routes).train()
    noise = torch.rand(32, 3, 8, 8, generator=generator(1))
    with torch.no_grad():
        for shift, route in enumerate(routes):
            for _ in range(5):
                network((noise + 0.3 * shift) / 1.6, route)
    return network


def images(n: int = 60, strength: int = 80) -> Tensor:
    """Noise on grey with a tint of red, green or blue."""
    noise = torch.randint(60, 150, (n, 3, 8, 8), generator=generator(2))
    tint = strength * torch.nn.functional.one_hot(torch.arange(n) % 3, 3)
    return (noise + tint.view(-1, 3, 1, 1)).to(torch.uint8)


@pytest.fixture(scope="module")
def network() -> TargetNetwork:
    return tiny()


@pytest.fixture(scope="module")
def processed(network: TargetNetwork) -> TargetNetwork:
    return post_process(network, BOTH, images(), SHORT, Streams(0))


def test_there_is_no_way_to_pass_labels() -> None:
    assert list(inspect.signature(post_process).parameters) == [
        "network",
        "routes",
        "images",
        "settings",
        "streams",
        "progress",
    ]


def test_every_weight_of_the_backbone_moves_but_the_clean_routes(
    network: TargetNetwork, processed: TargetNetwork
) -> None:
    before, after = fingerprint(network), fingerprint(processed)
    still = {name for name in before if before[name] == after[name]}
    untouched = {name for name in before if ".normal." in name or name.startswith("projector.")} | {"mean", "std"}
    assert still == untouched and any(name.startswith("backbone.") for name in untouched)
    # two forward passes a step on the attack route, three steps an epoch
    counters = [
        int(after_value) - int(cast(Tensor, network.state_dict()[name]))
        for name, after_value in processed.state_dict().items()
        if name.startswith("backbone.") and name.endswith(".pgd.num_batches_tracked")
    ]
    assert set(counters) == {2 * 2 * 3}
    assert all(bool(value.isfinite().all()) for value in processed.state_dict().values())


def test_the_result_has_the_networks_modes(network: TargetNetwork, processed: TargetNetwork) -> None:
    assert type(processed) is TargetNetwork and processed.arguments == network.arguments
    assert all(part.training for part in processed.modules())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in processed.parameters())
    network = copy.deepcopy(network).eval().requires_grad_(False)
    again = post_process(network, BOTH, images(), SHORT, Streams(0))
    assert not any(part.training for part in again.modules())
    assert not any(parameter.requires_grad for parameter in again.parameters())
    assert fingerprint(again) == fingerprint(processed)


def test_it_repeats_bit_for_bit_and_leaves_everything_else_alone(processed: TargetNetwork) -> None:
    network, streams = tiny(), Streams(0)
    streams["data"].manual_seed(7)
    before, state, globally = fingerprint(network), copy.deepcopy(streams.state_dict()), torch.random.get_rng_state()
    again = post_process(network, BOTH, images(), SHORT, streams)
    assert fingerprint(again) == fingerprint(processed)
    assert fingerprint(network) == before and all(p.grad is None for p in network.parameters())
    assert list(streams.state_dict()["host"]) == list(state["host"])
    assert torch.equal(streams.state_dict()["host"]["data"], state["host"]["data"])
    assert torch.equal(torch.random.get_rng_state(), globally)
    other = post_process(network, BOTH, images(), SHORT, Streams(1))
    assert fingerprint(other) != fingerprint(processed)


def recorded(
    monkeypatch: pytest.MonkeyPatch, network: TargetNetwork, settings: PostSettings, pictures: Tensor
) -> dict[str, Any]:
    """What both stages are given."""
    seen: dict[str, Any] = {}
    probe, tune = postprocessing.train_probe, postprocessing.fine_tune

    def probing(*arguments: Any, **named: Any) -> Any:
        seen["probe"] = (*arguments, named)
        seen["classifier"] = probe(*arguments, **named)
        return seen["classifier"]

    def tuning(*arguments: Any, **named: Any) -> Any:
        seen["tune"] = (*arguments, named)
        seen["tuned"] = tune(*arguments, **named)
        return seen["tuned"]

    monkeypatch.setattr(postprocessing, "train_probe", probing)
    monkeypatch.setattr(postprocessing, "fine_tune", tuning)
    post_process(network, BOTH, pictures, settings, Streams(0))
    return seen


def test_pseudo_labels_are_clusters_of_the_clean_routes_features(
    monkeypatch: pytest.MonkeyPatch, network: TargetNetwork
) -> None:
    """The clean route's, in eval mode; both stages are on the attack route and start from the same weights."""
    # without a tint the clusters hang on the route
    pictures = images(strength=0)
    seen = recorded(monkeypatch, network, SHORT, pictures)
    alone = copy.deepcopy(network).eval()

    def clusters(route: str) -> Tensor:
        with torch.no_grad():
            features = alone.features(as_float(pictures), route)
        draws = Streams(derive_seed(0, "post-processing"))["clusters"]
        (centroids,) = fit_clusters(features, [3], draws, starts=2)
        return assign(features, centroids)

    labels = clusters("normal")
    assert not torch.equal(clusters("pgd"), labels)
    encoder, route, train, settings, _, _ = seen["probe"]
    assert route == "pgd" and settings == SHORT.probe() and fingerprint(encoder) == fingerprint(network)
    assert isinstance(train, ImageSet) and torch.equal(cast(Tensor, train.labels), labels)
    encoder, routes, tuned_on, settings, _, named = seen["tune"]
    assert routes == ("pgd", "pgd") and settings == SHORT.fine_tuning() and tuned_on is train
    assert fingerprint(encoder) == fingerprint(network)
    assert torch.equal(named["head"].weight, seen["classifier"].head.weight)


def test_the_encoder_learns_the_pseudo_labels(monkeypatch: pytest.MonkeyPatch, network: TargetNetwork) -> None:
    settings = replace(SHORT, epochs=8, probe_epochs=4, augment=False)
    seen = recorded(monkeypatch, network, settings, images())
    labels = cast(Tensor, seen["tune"][2].labels)
    assert labels.unique().tolist() == [0, 1, 2]
    with torch.no_grad():
        losses = [
            float(torch.nn.functional.cross_entropy(seen[name](as_float(images())), labels))
            for name in ("classifier", "tuned")
        ]
        right = (seen["tuned"](as_float(images())).argmax(dim=1) == labels).float().mean()
    assert losses[1] < losses[0] and right > 0.8


def test_other_routes_stay_and_a_single_one_is_trained() -> None:
    network = tiny((*BOTH, "spare"))
    before, after = fingerprint(network), fingerprint(post_process(network, BOTH, images(), SHORT, Streams(0)))
    assert all(before[name] == after[name] for name in before if ".spare." in name or ".normal." in name)
    network = tiny(("normal",))
    before = fingerprint(network)
    after = fingerprint(post_process(network, ("normal", "normal"), images(), SHORT, Streams(0)))
    assert all(before[name] != after[name] for name in before if name.startswith("backbone.") and ".normal." in name)


def test_progress_is_told_of_every_step(network: TargetNetwork) -> None:
    told: list[tuple[str, int, int]] = []
    settings = replace(SHORT, steps=0)
    post_process(network, BOTH, images(41), settings, Streams(0), progress=lambda *step: told.append(step))
    # 41 images in batches of 20: batch norm's last batch of one joins the one before
    assert told == [("probe", k + 1, 6) for k in range(6)] + [("fine-tuning", k + 1, 4) for k in range(4)]


def test_the_defaults_are_the_published_ones() -> None:
    settings = PostSettings()
    tuning, probe = settings.fine_tuning(), settings.probe()
    assert settings.clusters == settings.starts == 10 and (settings.views().padding, settings.views().flip) == (4, 0.5)
    assert (probe.epochs, probe.lr, probe.weight_decay, probe.momentum, probe.batch_size) == (10, 0.01, 1e-4, 0.9, 512)
    assert probe.milestones == () and probe.augment
    assert (tuning.epochs, tuning.lr, tuning.weight_decay, tuning.momentum, tuning.batch_size) == (
        25,
        0.1,
        1e-4,
        0.9,
        512,
    )
    assert (tuning.milestones, tuning.beta, tuning.steps, tuning.start_noise) == ((10, 20), 6, 10, 0.001)
    assert (tuning.epsilon, tuning.step_size) == (8 / 255, 2 / 255)


def test_milestones_follow_the_number_of_epochs_and_none_is_epoch_0() -> None:
    for epochs, expected in ((50, (20, 40)), (5, (2, 4)), (2, (1, 2)), (1, (1,))):
        assert PostSettings(epochs=epochs).fine_tuning().milestones == expected


def test_without_augmentation_images_are_as_they_are() -> None:
    views = PostSettings(augment=False).views()
    assert (views.padding, views.flip) == (0, 0)
    assert not PostSettings(augment=False).probe().augment


@pytest.mark.parametrize(
    "wrong",
    [
        {"clusters": 1},
        {"starts": 0},
        {"probe_epochs": 0},
        {"probe_lr": 0.0},
        {"probe_weight_decay": -1.0},
        {"epochs": 0},
        {"lr": float("nan")},
        {"weight_decay": -1.0},
        {"momentum": 1.0},
        {"milestones": (0.8, 0.4)},
        {"milestones": (10, 20)},
        {"batch_size": 1},
        {"beta": -1.0},
        {"epsilon": 8.0},
        {"step_size": 2.0},
        {"steps": -1},
        {"start_noise": -0.1},
    ],
)
def test_figures_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    (name,) = wrong
    with pytest.raises(ValueError, match=f"the post-processing's {name} is .*: expected"):
        PostSettings(**wrong)


def test_what_does_not_fit_is_refused(network: TargetNetwork) -> None:
    with pytest.raises(ValueError, match=r"expected each in 2\.\.2, since there are 2 features"):
        post_process(network, BOTH, images(2), SHORT, Streams(0))
    with pytest.raises(ValueError, match="no route 'fast'"):
        post_process(network, ("normal", "fast"), images(), SHORT, Streams(0))
    with pytest.raises(ValueError, match="distinct"):
        post_process(network, BOTH, torch.zeros(8, 3, 8, 8, dtype=torch.uint8), SHORT, Streams(0))
