from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from astra_gym.ssl_core.data.image_set import ImageSet
from astra_gym.ssl_core.downstream import finetuning
from astra_gym.ssl_core.downstream.finetuning import FineTuneSettings, fine_tune
from astra_gym.ssl_core.downstream.linear_probe import ProbeSettings, RawPixels, train_probe
from astra_gym.ssl_core.evaluation.robustness import clean_accuracy, pgd_accuracy
from astra_gym.ssl_core.models.route_norm import RouteNorm, Untracked
from astra_gym.ssl_core.models.target_network import TargetNetwork
from astra_gym.ssl_core.transforms.views import ViewSettings, as_float
from astra_gym.ssl_core.utils.hashing import fingerprint
from astra_gym.ssl_core.utils.rng import Streams
from tests.helpers.finetuned import BOTH, VIEWS, encoder_of, head_of, image_set, recorded, tiny


@pytest.fixture(scope="module")
def network() -> TargetNetwork:
    return tiny()


@pytest.fixture(scope="module")
def head(network: TargetNetwork) -> nn.Linear:
    """A head that has learned a little."""
    settings = ProbeSettings(epochs=3, lr=0.5, batch_size=16, milestones=())
    return cast(nn.Linear, train_probe(network, "pgd", image_set(), settings, VIEWS, seed=0).head)


def test_every_weight_of_the_backbone_moves_and_no_part_of_the_projector(
    network: TargetNetwork, head: nn.Linear
) -> None:
    """Weight decay alone would move the projector. The attack, in eval mode, leaves the statistics alone."""
    settings = FineTuneSettings(epochs=2, batch_size=24, milestones=(), weight_decay=0.1)
    before = fingerprint(network)
    tuned = encoder_of(fine_tune(network, BOTH, image_set(), settings, VIEWS, seed=0, head=head))
    after = fingerprint(tuned)
    still = {name for name in before if before[name] == after[name]}
    assert still == {name for name in before if name.startswith("projector.")} | {"mean", "std"}
    assert passes(tuned) == {4}


@pytest.mark.parametrize("ours", [True, False])
def test_our_network_is_trained_channels_last_and_a_module_of_others_as_it_lies(
    ours: bool, network: TargetNetwork, head: nn.Linear, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Theirs(TargetNetwork):
        pass

    given = network
    if not ours:
        given = Theirs(**network.arguments)
        given.load_state_dict(network.state_dict())
    seen: list[bool] = []

    def watched(encoder: nn.Module, *rest: Any) -> Tensor:
        weight = encoder.get_parameter("backbone.blocks.0.convs.0.weight")
        seen.append(weight.is_contiguous(memory_format=torch.channels_last))
        return attack(encoder, *rest)

    attack = finetuning._attack
    monkeypatch.setattr(finetuning, "_attack", watched)
    settings = FineTuneSettings(epochs=1, batch_size=24, milestones=())
    classifier = fine_tune(given, BOTH, image_set(), settings, VIEWS, seed=0, head=head)
    assert seen == [ours] * 2
    assert all(parameter.is_contiguous() for parameter in classifier.parameters())


def passes(network: TargetNetwork) -> set[int]:
    """How often the running statistics of the backbone's batch norms followed, over all routes."""
    norms = [
        norm for part in network.backbone.modules() if isinstance(part, RouteNorm) for norm in part.by_route.values()
    ]
    return {int(cast(Tensor, norm.num_batches_tracked)) for norm in norms}


def test_a_third_route_stays_as_it_is() -> None:
    network = tiny(("normal", "pgd", "spare"))
    before = fingerprint(network)
    settings = FineTuneSettings(epochs=1, batch_size=24, milestones=())
    after = fingerprint(encoder_of(fine_tune(network, BOTH, image_set(), settings, VIEWS, seed=0)))
    spare = [name for name in before if ".spare." in name]
    assert spare and all(before[name] == after[name] for name in spare)


def test_a_single_route_takes_both_passes(head: nn.Linear) -> None:
    settings = FineTuneSettings(epochs=3, batch_size=24, milestones=())
    tuned = fine_tune(tiny(("normal",)), ("normal", "normal"), image_set(), settings, VIEWS, seed=0, head=head)
    assert passes(encoder_of(tuned)) == {2 * 3 * 2}
    assert tuned.route == "normal"


def test_the_given_encoder_and_head_are_left_as_they_are(head: nn.Linear) -> None:
    network = tiny().train()
    before, head_before = fingerprint(network), fingerprint(head)
    settings = FineTuneSettings(epochs=1, milestones=())
    tuned = fine_tune(network, BOTH, image_set(), settings, VIEWS, seed=0, head=head)
    assert fingerprint(network) == before and fingerprint(head) == head_before
    assert all(part.training for part in network.modules())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in network.parameters())
    assert not any(parameter.requires_grad for parameter in head.parameters())
    assert not any(part.training for part in tuned.modules())
    assert all(not parameter.requires_grad and parameter.grad is None for parameter in tuned.parameters())


def test_an_encoder_out_of_a_probe_is_trained_though_it_was_frozen(network: TargetNetwork) -> None:
    probe = train_probe(network, "pgd", image_set(), ProbeSettings(epochs=1, milestones=()), VIEWS, seed=0)
    settings = FineTuneSettings(epochs=1, milestones=())
    arguments = (BOTH, image_set(), settings, VIEWS)
    assert fingerprint(fine_tune(probe.encoder, *arguments, seed=0)) == fingerprint(
        fine_tune(network, *arguments, seed=0)
    )


def test_the_head_starts_at_zero_or_at_the_probes(network: TargetNetwork, head: nn.Linear) -> None:
    settings = FineTuneSettings(epochs=1, lr=1e-30, milestones=())
    from_zero = head_of(fine_tune(network, BOTH, image_set(), settings, VIEWS, seed=0))
    assert max(float(parameter.abs().max()) for parameter in from_zero.parameters()) < 1e-25
    from_probe = head_of(fine_tune(network, BOTH, image_set(), settings, VIEWS, seed=0, head=head))
    torch.testing.assert_close(from_probe.weight, head.weight, rtol=0, atol=1e-25)
    torch.testing.assert_close(from_probe.bias, head.bias, rtol=0, atol=1e-25)


@pytest.mark.parametrize("deviation", [0.0, 0.001])
def test_a_zero_head_makes_the_first_attack_a_no_op_and_the_second_real(deviation: float) -> None:
    """All logits are equal whatever the image, so the divergence has no gradient: only the start noise is left."""
    calls = recorded(FineTuneSettings(epochs=2, milestones=(), steps=3, start_noise=deviation)).calls
    noise = Streams(0).on_device("finetuning/noise")
    distances = []
    for call in (0, 7):
        clean, attacked = calls[call + 5][0], calls[call + 6][0]
        start = (clean + deviation * torch.randn(clean.shape, generator=noise)).clamp(0, 1)
        distances.append(float((attacked - start).abs().max()))
        assert float((attacked - clean).abs().max()) <= 8 / 255 + 1e-6
    assert distances[0] == 0
    assert distances[1] == pytest.approx(3 * 2 / 255, abs=1e-5)


def test_modes_routes_and_passes_are_the_protocols() -> None:
    """Eval mode without weight gradients in the attack: one clean pass, steps + 1 attacked; then one each in train."""
    calls = [call[1:] for call in recorded(FineTuneSettings(epochs=1, milestones=(), steps=3)).calls]
    attack = [("normal", False, False)] + 4 * [("pgd", False, False)]
    assert calls == [*attack, ("normal", True, True), ("pgd", True, True)]


def test_the_start_noise_stays_in_a_ball_that_is_smaller() -> None:
    """From where the attack takes its first gradient."""
    settings = FineTuneSettings(epochs=1, milestones=(), steps=1, epsilon=0.01, start_noise=0.5)
    clean, start = (call[0] for call in recorded(settings).calls[:2])
    assert 0.0099 < float((start - clean).abs().max()) <= 0.01 + 1e-6


@pytest.mark.parametrize(
    ("n", "batch_size", "expected"), [(12, 128, [12]), (12, 5, [5, 5, 2]), (11, 5, [5, 6]), (6, 5, [6]), (3, 2, [3])]
)
def test_a_last_image_alone_joins_the_batch_before(n: int, batch_size: int, expected: list[int]) -> None:
    settings = FineTuneSettings(epochs=2, batch_size=batch_size, milestones=(), steps=0)
    sizes = [len(images) for images, route, training, _ in recorded(settings, n).calls if training and route == "pgd"]
    assert sizes == 2 * expected


def test_every_image_is_seen_once_an_epoch_in_a_new_order() -> None:
    settings = FineTuneSettings(epochs=2, batch_size=4, milestones=(), steps=0)
    as_they_are = ViewSettings(padding=0, flip=0)
    calls = recorded(settings, views=as_they_are).calls
    seen = [images for images, route, training, _ in calls if training and route == "normal"]
    epochs = [torch.cat(seen[:3]), torch.cat(seen[3:])]
    expected = sorted(as_float(image_set(12).images).flatten(1).tolist())
    assert all(sorted(images.flatten(1).tolist()) == expected for images in epochs)
    assert not torch.equal(*epochs)


def robust(classifier: nn.Module, test: ImageSet) -> float:
    generator = torch.Generator().manual_seed(0)
    correct = pgd_accuracy(classifier, test.images, cast(Tensor, test.labels), 8 / 255, generator=generator)
    return float(correct.float().mean())


@pytest.mark.slow
def test_fine_tuning_makes_a_fragile_encoder_robust(network: TargetNetwork) -> None:
    data, test = image_set(96, tint=40), image_set(48, seed=1, tint=40)
    probe = train_probe(network, "pgd", data, ProbeSettings(epochs=10, lr=0.1, batch_size=32), VIEWS, seed=0)
    settings = FineTuneSettings(epochs=6, batch_size=16, milestones=(4,), steps=4)
    tuned = fine_tune(network, BOTH, data, settings, VIEWS, seed=0)
    assert robust(tuned, test) > robust(probe, test) + 0.3


@pytest.mark.slow
def test_a_handful_of_labeled_images_is_enough_to_train_on(network: TargetNetwork) -> None:
    """The semi-supervised protocol as it stands, on 15 images: an epoch is one batch."""
    few, test = image_set(15, tint=60), image_set(48, seed=1, tint=60)
    tuned = fine_tune(network, BOTH, few, FineTuneSettings(), VIEWS, seed=0)
    # of three classes
    assert robust(tuned, test) > 0.45


class Standing(nn.Module):
    """Planted fault: the test route's running statistics never follow."""

    def __init__(self, network: TargetNetwork) -> None:
        super().__init__()
        self.network = network
        self.feature_dim = network.feature_dim

    def features(self, images: Tensor, route: str) -> Tensor:
        if route == "normal":
            return self.network.features(images, route)
        with Untracked(self.network):
            return self.network.features(images, route)


@pytest.mark.slow
def test_a_test_route_without_statistics_of_its_own_would_show() -> None:
    data = image_set(48)
    settings = FineTuneSettings(epochs=10, lr=0.05, batch_size=16, milestones=(8,), steps=1)

    def accuracy(encoder: nn.Module) -> float:
        tuned = fine_tune(encoder, BOTH, data, settings, VIEWS, seed=0)
        return float(clean_accuracy(tuned, data.images, cast(Tensor, data.labels)).float().mean())

    sound, faulty = accuracy(tiny()), accuracy(Standing(tiny()))
    assert sound > faulty + 0.2


def test_the_classifier_is_the_attacked_route(network: TargetNetwork, head: nn.Linear) -> None:
    settings = FineTuneSettings(epochs=2, batch_size=24, milestones=())
    tuned = fine_tune(network, BOTH, image_set(), settings, VIEWS, seed=0, head=head)
    images = as_float(image_set(seed=3).images)
    encoder = encoder_of(tuned)
    with torch.no_grad():
        assert torch.equal(tuned(images), tuned.head(encoder.features(images, "pgd")))
        assert not torch.equal(tuned(images), tuned.head(encoder.features(images, "normal")))


@pytest.mark.slow
def test_the_same_seed_gives_the_same_classifier_and_leaves_global_generators_alone(network: TargetNetwork) -> None:
    settings = FineTuneSettings(epochs=2, batch_size=20, milestones=(1,))
    before = torch.random.get_rng_state()
    first, again, other = (
        fingerprint(fine_tune(network, BOTH, image_set(), settings, VIEWS, seed=seed)) for seed in (1, 1, 2)
    )
    assert first == again
    assert first["head.weight"] != other["head.weight"]
    assert torch.equal(torch.random.get_rng_state(), before)


def test_progress_is_told_of_every_step() -> None:
    told: list[tuple[int, int]] = []
    settings = FineTuneSettings(epochs=2, batch_size=5, milestones=(), steps=1)
    fine_tune(
        RawPixels((3, 8, 8)),
        BOTH,
        image_set(11),
        settings,
        VIEWS,
        seed=0,
        progress=lambda done, total: told.append((done, total)),
    )
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_what_does_not_fit_is_refused_with_advice(network: TargetNetwork) -> None:
    data, settings = image_set(), FineTuneSettings()

    def refused(
        match: str, train: ImageSet = data, head: nn.Linear | None = None, routes: tuple[str, str] = BOTH
    ) -> None:
        with pytest.raises(ValueError, match=match):
            fine_tune(network, routes, train, settings, VIEWS, seed=0, head=head)

    refused(r"'tints' has no labels.*one folder for each class", ImageSet(data.images, None, (), "tints"))
    refused("has 1 image: fine-tuning needs 2 or more", data.take(1))
    refused("head takes 32 features to 4 classes: expected 32 to 3", head=nn.utils.skip_init(nn.Linear, 32, 4))
    refused("head takes 8 features to 3 classes: expected 32 to 3", head=nn.utils.skip_init(nn.Linear, 8, 3))
    refused("no route 'fast': it has normal, pgd", routes=("normal", "fast"))


class Broken(RawPixels):
    """Its features are not finite."""

    def features(self, images: Tensor, route: str) -> Tensor:
        return super().features(images, route) / 0


@pytest.mark.parametrize(
    ("encoder", "lr"), [(tiny, 3e38), (lambda: Broken((3, 8, 8)), 0.1)], ids=["learning rate", "features"]
)
def test_fine_tuning_that_diverges_is_an_error(encoder: Callable[[], nn.Module], lr: float) -> None:
    settings = FineTuneSettings(epochs=1, lr=lr, milestones=(), steps=1, weight_decay=1e3)
    with pytest.raises(RuntimeError, match=r"fine-tuning diverged in step 1 of 1 at learning rate .*loss"):
        fine_tune(encoder(), BOTH, image_set(), settings, VIEWS, seed=0)


def test_a_loss_that_overflows_is_an_error_though_its_gradient_is_finite() -> None:
    head = nn.utils.skip_init(nn.Linear, 3 * 64, 3)
    nn.init.normal_(head.weight, std=1e37, generator=torch.Generator().manual_seed(0))
    nn.init.zeros_(head.bias)
    settings = FineTuneSettings(epochs=1, milestones=(), steps=1)
    with pytest.raises(RuntimeError, match=r"diverged in step 1 of 1 .*with loss inf"):
        fine_tune(RawPixels((3, 8, 8)), BOTH, image_set(), settings, VIEWS, seed=0, head=head)
