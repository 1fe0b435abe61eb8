import copy
import pickle
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from astra_gym.ssl_core.attacks.pgd import Budget, pgd
from astra_gym.ssl_core.data.image_set import ImageSet
from astra_gym.ssl_core.downstream.linear_probe import Classifier, ProbeSettings, RawPixels, TrainingAttack, train_probe
from astra_gym.ssl_core.models.target_network import TargetNetwork
from astra_gym.ssl_core.transforms.views import ViewSettings, as_float, weak_views
from astra_gym.ssl_core.utils.hashing import fingerprint
from astra_gym.ssl_core.utils.rng import Streams
from tests.helpers.tiny_networks import tiny_network

VIEWS = ViewSettings(padding=1, flip=0.5)
CLASSES = ("left", "right", "neither")


def image_set(n: int = 96, seed: int = 0) -> ImageSet:
    """Noise in which the mean brightness tells the class: linearly separable in the pixels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 3
    noise = torch.randint(0, 40, (n, 3, 6, 6), generator=generator)
    images = noise + 100 * labels.view(-1, 1, 1, 1)
    return ImageSet(images.to(torch.uint8), labels, CLASSES, "shades")


@pytest.fixture(scope="module")
def network() -> TargetNetwork:
    return tiny_network()


class Channel(nn.Module):
    """One feature a color channel: its mean."""

    feature_dim = 3

    def features(self, images: Tensor, route: str) -> Tensor:
        return images.mean((2, 3))


def test_learns_separable_features_to_the_last_image() -> None:
    data = image_set()
    assert data.labels is not None
    settings = ProbeSettings(epochs=60, lr=0.5, batch_size=32, milestones=(50,), augment=False)
    classifier = train_probe(RawPixels((3, 6, 6)), "none", data, settings, VIEWS, seed=0)
    fresh = image_set(seed=1)
    for images in (data.images, fresh.images):
        assert bool((classifier(as_float(images)).argmax(1) == data.labels).all())


def test_is_sgd_with_momentum_decay_and_milestones_from_zero() -> None:
    """Against the update written out, in float64: v <- 0.9 v + (g + wd w); w <- w - lr v."""
    data = image_set(40)
    assert data.labels is not None
    settings = ProbeSettings(epochs=4, lr=0.3, batch_size=16, milestones=(1, 3), weight_decay=0.01, augment=False)
    head = train_probe(Channel(), "none", data, settings, VIEWS, seed=3).head

    x = F.pad(as_float(data.images).mean((2, 3)).double(), (0, 1), value=1.0)
    onehot = F.one_hot(data.labels, 3).double()
    w, v = torch.zeros(4, 3, dtype=torch.float64), torch.zeros(4, 3, dtype=torch.float64)
    order = Streams(3)["probe/order"]
    for lr in (0.3, 0.03, 0.03, 0.003):
        for rows in torch.randperm(40, generator=order).split(16):
            gradient = x[rows].T @ ((x[rows] @ w).softmax(1) - onehot[rows]) / len(rows)
            v = 0.9 * v + gradient + 0.01 * w
            w = w - lr * v
    assert isinstance(head, nn.Linear)
    torch.testing.assert_close(head.weight.double(), w[:3].T, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(head.bias.double(), w[3], rtol=1e-4, atol=1e-5)


def test_the_head_starts_at_zero() -> None:
    settings = ProbeSettings(epochs=1, lr=1e-30, milestones=())
    head = train_probe(Channel(), "none", image_set(), settings, VIEWS, seed=0).head
    assert max(float(parameter.abs().max()) for parameter in head.parameters()) < 1e-25


def test_the_same_seed_gives_the_same_head_and_leaves_global_generators_alone(network: TargetNetwork) -> None:
    settings = ProbeSettings(epochs=2, lr=0.1, batch_size=32, milestones=(1,))
    before = torch.random.get_rng_state()
    first, again, other = (
        fingerprint(train_probe(network, "pgd", image_set(), settings, VIEWS, seed=seed).head) for seed in (1, 1, 2)
    )
    assert first == again
    assert first["weight"] != other["weight"]
    assert torch.equal(torch.random.get_rng_state(), before)


def test_augmentation_draws_new_views_in_every_epoch() -> None:
    class Recorder(Channel):
        seen: list[Tensor] = []  # noqa: RUF012, shared with the copies the probe makes

        def features(self, images: Tensor, route: str) -> Tensor:
            self.seen.append(images)
            return super().features(images, route)

    data = image_set(12)
    Recorder.seen = []
    train_probe(Recorder(), "none", data, ProbeSettings(epochs=3, milestones=()), VIEWS, seed=0)
    assert [len(images) for images in Recorder.seen] == [12, 12, 12]
    pictures = {tuple(image.flatten().tolist()) for images in Recorder.seen for image in images}
    assert len(pictures) > 24

    Recorder.seen = []
    train_probe(Recorder(), "none", data, ProbeSettings(epochs=3, milestones=(), augment=False), VIEWS, seed=0)
    assert len(Recorder.seen) == 1
    assert torch.equal(Recorder.seen[0], as_float(data.images))


def test_features_are_the_backbones_on_the_route_asked_for(network: TargetNetwork) -> None:
    network = copy.deepcopy(network)
    network.get_parameter("backbone.norm.by_route.pgd.weight").data.fill_(0.5)
    data = image_set()
    settings = ProbeSettings(epochs=1, milestones=())
    images = as_float(data.images)
    for route in network.routes:
        classifier = train_probe(network, route, data, settings, VIEWS, seed=0)
        network.eval()
        with torch.no_grad():
            expected = classifier.head(network(images, route).features)
            assert torch.equal(classifier(images), expected)


def test_the_given_network_is_left_as_it_is(network: TargetNetwork) -> None:
    network = copy.deepcopy(network).train()
    before = fingerprint(network)
    classifier = train_probe(network, "pgd", image_set(), ProbeSettings(epochs=1, milestones=()), VIEWS, seed=0)
    assert fingerprint(network) == before
    assert all(module.training for module in network.modules())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in network.parameters())

    probe = classifier(as_float(image_set().images))
    network(as_float(image_set().images), "pgd")
    assert fingerprint(network) != before
    assert torch.equal(classifier(as_float(image_set().images)), probe)


class Drifting(Channel):
    """Keeps a running mean whatever its mode says, outside its state dict."""

    running_mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(3), persistent=False)
        self.register_buffer("steady", torch.ones(()))

    def features(self, images: Tensor, route: str) -> Tensor:
        z = super().features(images, route)
        self.running_mean += 0.1 * z.mean(0)
        return z


class Swapping(Channel):
    """Gets a parameter that was not there before."""

    def features(self, images: Tensor, route: str) -> Tensor:
        self.scale = nn.Parameter(torch.ones(()))
        return super().features(images, route)


@pytest.mark.parametrize("attack", [None, TrainingAttack(steps=1)])
@pytest.mark.parametrize(("fault", "name"), [(Drifting, "running_mean"), (Swapping, "scale")])
def test_an_encoder_that_changes_is_caught(
    fault: Callable[[], nn.Module], name: str, attack: TrainingAttack | None
) -> None:
    settings = ProbeSettings(epochs=1, milestones=())
    with pytest.raises(RuntimeError, match=f"not frozen.*1 of .*{name}.*void"):
        train_probe(fault(), "none", image_set(), settings, VIEWS, seed=0, attack=attack)


class Scaled(Channel):
    """Channel, with a parameter, and a list of the copies that were used."""

    used: list["Scaled"] = []  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def features(self, images: Tensor, route: str) -> Tensor:
        self.used.append(self)
        return self.scale * super().features(images, route)


@pytest.mark.parametrize("attack", [None, TrainingAttack(steps=1)])
def test_a_probe_that_trains_the_encoder_too_is_caught(
    monkeypatch: pytest.MonkeyPatch, attack: TrainingAttack | None
) -> None:
    class Greedy(torch.optim.SGD):
        def step(self) -> None:  # type: ignore[override]
            super().step()
            Scaled.used[-1].scale.data.sub_(0.01)

    settings = ProbeSettings(epochs=1, milestones=())
    train_probe(Scaled(), "none", image_set(), settings, VIEWS, seed=0, attack=attack)
    monkeypatch.setattr(torch.optim, "SGD", Greedy)
    with pytest.raises(RuntimeError, match=r"not frozen.*1 of 1 tensors changed \(scale\)"):
        train_probe(Scaled(), "none", image_set(), settings, VIEWS, seed=0, attack=attack)


def test_fingerprint_sees_values_shapes_and_types() -> None:
    module = nn.BatchNorm1d(4)
    before = fingerprint(module)
    assert set(before) == {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}
    assert fingerprint(copy.deepcopy(module)) == before
    assert fingerprint(copy.deepcopy(module).bfloat16())["bias"] != before["bias"]
    module.get_buffer("running_var")[2] = torch.nextafter(torch.tensor(1.0), torch.tensor(2.0))
    assert {name for name, digest in fingerprint(module).items() if digest != before[name]} == {"running_var"}


def test_a_classifier_stays_in_eval_mode_and_gives_gradients_to_images_only(network: TargetNetwork) -> None:
    classifier = Classifier(copy.deepcopy(network), "pgd", nn.Linear(network.feature_dim, 3))
    classifier.train()
    assert not any(module.training for module in classifier.modules())
    images = as_float(image_set(6).images).requires_grad_()
    classifier(images).logsumexp(1).sum().backward()
    assert images.grad is not None and float(images.grad.abs().max()) > 0
    assert all(parameter.grad is None for parameter in classifier.parameters())


@pytest.mark.parametrize("attack", [None, TrainingAttack(steps=1)])
@pytest.mark.parametrize("augment", [True, False])
def test_progress_is_told_of_every_step(attack: TrainingAttack | None, augment: bool) -> None:
    told: list[tuple[int, int]] = []
    train_probe(
        Channel(),
        "none",
        image_set(),
        ProbeSettings(epochs=3, batch_size=40, milestones=(), augment=augment),
        VIEWS,
        seed=0,
        attack=attack,
        progress=lambda done, total: told.append((done, total)),
    )
    assert told == [(done, 9) for done in range(1, 10)]


def test_images_without_labels_are_refused_with_advice() -> None:
    data = image_set()
    with pytest.raises(ValueError, match=r"'shades' has no labels.*one folder for each class"):
        train_probe(Channel(), "none", ImageSet(data.images, None, (), "shades"), ProbeSettings(), VIEWS, seed=0)


def test_a_head_that_diverges_is_an_error() -> None:
    settings = ProbeSettings(epochs=3, lr=1e38, milestones=())
    with pytest.raises(RuntimeError, match=r"diverged in epoch \d of 3 at learning rate 1e\+38"):
        train_probe(Channel(), "none", image_set(), settings, VIEWS, seed=0)


@pytest.mark.parametrize("augment", [True, False])
def test_adversarial_fine_tuning_is_what_it_is_written_out(augment: bool) -> None:
    """In float64, with the gradient by hand: that of the cross entropy of W m + b, m the means of the 36 pixels."""
    data = image_set(40)
    assert data.labels is not None
    attack = TrainingAttack(epsilon=6 / 255, step_size=2 / 255, steps=3)
    settings = ProbeSettings(epochs=3, lr=0.3, batch_size=16, milestones=(2,), weight_decay=0.01, augment=augment)
    head = train_probe(Channel(), "none", data, settings, VIEWS, seed=3, attack=attack).head

    streams = Streams(3)
    order, views, starts = streams["probe/order"], streams["probe/views"], streams.on_device("probe/noise")
    onehot = F.one_hot(data.labels, 3).double()
    w, v = torch.zeros(4, 3, dtype=torch.float64), torch.zeros(4, 3, dtype=torch.float64)
    for lr in (0.3, 0.3, 0.03):
        for rows in torch.randperm(40, generator=order).split(16):
            clean = as_float(data.images[rows])
            clean = (weak_views(clean, VIEWS, views) if augment else clean).double()
            x = clean + 6 / 255 * (2 * torch.rand(clean.shape, generator=starts).double() - 1)
            x = x.clamp(0, 1)
            for _ in range(3):
                logits = F.pad(x.mean((2, 3)), (0, 1), value=1.0) @ w
                gradient = ((logits.softmax(1) - onehot[rows]) @ w[:3].T)[:, :, None, None]
                x = x + 2 / 255 * gradient.sign()
                x = x.maximum(clean - 6 / 255).minimum(clean + 6 / 255).clamp(0, 1)
            features = F.pad(x.mean((2, 3)), (0, 1), value=1.0)
            v = 0.9 * v + features.T @ ((features @ w).softmax(1) - onehot[rows]) / len(rows) + 0.01 * w
            w = w - lr * v
    assert isinstance(head, nn.Linear)
    torch.testing.assert_close(head.weight.double(), w[:3].T, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(head.bias.double(), w[3], rtol=1e-5, atol=1e-6)


class Unfolded(nn.Module):
    """A network that is not seen to be one."""

    def __init__(self, network: TargetNetwork) -> None:
        super().__init__()
        self.network = network
        self.feature_dim = network.feature_dim

    def features(self, images: Tensor, route: str) -> Tensor:
        return self.network.features(images, route)


def test_adversarial_fine_tuning_of_a_network_is_that_of_the_network_unfolded(network: TargetNetwork) -> None:
    network = copy.deepcopy(network)
    network.get_parameter("backbone.norm.by_route.pgd.weight").data.fill_(0.5)
    settings = ProbeSettings(epochs=2, lr=0.5, batch_size=32, milestones=(1,))
    attack = TrainingAttack(steps=3)
    heads = [
        train_probe(encoder, route, image_set(), settings, VIEWS, seed=0, attack=attack).head.get_parameter("weight")
        for encoder in (network, Unfolded(network))
        for route in ("pgd", "normal")
    ]
    torch.testing.assert_close(heads[0], heads[2], rtol=1e-2, atol=1e-2 * float(heads[0].abs().max()))
    torch.testing.assert_close(heads[1], heads[3], rtol=1e-2, atol=1e-2 * float(heads[1].abs().max()))
    assert (heads[0] - heads[1]).norm() > 0.1 * heads[0].norm()


class Fragile(nn.Module):
    """Two features: a hundredth of brightness, much amplified, and the large differences."""

    feature_dim = 2

    def features(self, images: Tensor, route: str) -> Tensor:
        return (images.mean((2, 3))[:, :2] - 0.5) * torch.tensor([100.0, 5.0])


def test_adversarial_fine_tuning_turns_from_fragile_features_to_robust_ones() -> None:
    """Red tells the class always, but by 3/255 only; green by 50/255, and is wrong for one image in ten."""
    n, epsilon = 200, 8 / 255
    labels = torch.arange(n) % 2
    sign = 2 * labels - 1
    images = torch.full((n, 3, 4, 4), 128)
    images[:, 0] += (3 * sign)[:, None, None]
    images[:, 1] += (50 * torch.where(torch.arange(n) // 2 % 10 == 0, -sign, sign))[:, None, None]
    data = ImageSet(images.to(torch.uint8), labels, ("dark", "bright"), "two signs")
    settings = ProbeSettings(epochs=20, lr=0.1, batch_size=50, milestones=(15,))

    def accuracies(attack: TrainingAttack | None) -> list[float]:
        classifier = train_probe(Fragile(), "none", data, settings, ViewSettings(padding=0), seed=0, attack=attack)
        x = as_float(data.images)
        attacked = pgd(
            lambda x, _: classifier(x),
            lambda z: F.cross_entropy(z, labels, reduction="none"),
            x,
            Budget.uniform(n, epsilon=epsilon, step_size=2 / 255, steps=20),
            generator=torch.Generator().manual_seed(0),
        ).images
        return [float((classifier(images).argmax(1) == labels).float().mean()) for images in (x, attacked)]

    assert accuracies(None) == pytest.approx([1.0, 0.0], abs=0.05)
    assert accuracies(TrainingAttack()) == pytest.approx([0.9, 0.9], abs=0.01)


@pytest.mark.parametrize("augment", [True, False])
def test_an_attack_encodes_every_image_once_a_step_and_once_for_the_head(augment: bool) -> None:
    class Recorder(Channel):
        seen: list[Tensor] = []  # noqa: RUF012

        def features(self, images: Tensor, route: str) -> Tensor:
            assert not self.training
            self.seen.append(images.detach())
            return super().features(images, route)

    data = image_set(50)
    settings = ProbeSettings(epochs=2, batch_size=20, milestones=(), augment=augment)
    train_probe(Recorder(), "none", data, settings, VIEWS, seed=0, attack=TrainingAttack())
    assert [len(images) for images in Recorder.seen] == 2 * [*11 * [20], *11 * [20], *11 * [10]]
    if not augment:
        rows = torch.randperm(50, generator=Streams(0)["probe/order"])[:20]
        distances = [float((images - as_float(data.images[rows])).abs().max()) for images in Recorder.seen[:11]]
        assert min(distances) > 7 / 255 and max(distances) < 8 / 255 + 1e-6


def test_an_attacked_probe_repeats_itself_and_leaves_global_generators_alone(network: TargetNetwork) -> None:
    settings = ProbeSettings(epochs=2, lr=0.1, batch_size=32, milestones=(1,))
    before = torch.random.get_rng_state()
    first, again, other = (
        fingerprint(
            train_probe(network, "pgd", image_set(), settings, VIEWS, seed=seed, attack=TrainingAttack(steps=2)).head
        )
        for seed in (1, 1, 2)
    )
    assert first == again
    assert first["weight"] != other["weight"]
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("way", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_a_classifier_can_be_copied_and_pickled(network: TargetNetwork, way: Callable[[nn.Module], nn.Module]) -> None:
    settings = ProbeSettings(epochs=1, milestones=())
    classifier = train_probe(network, "pgd", image_set(), settings, VIEWS, seed=0, attack=TrainingAttack(steps=1))
    images = as_float(image_set().images)
    twin = way(classifier)
    assert torch.equal(twin(images), classifier(images))
    twin.train()
    assert not any(module.training for module in twin.modules())
    for parameter in twin.parameters():
        assert not parameter.requires_grad
        parameter.zero_()
    assert float(twin(images).abs().max()) == 0 < float(classifier(images).abs().max())
