import copy
import math
import pickle
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor, nn

from astra_gym.ssl_core.attacks.pgd import Budget, pgd
from astra_gym.ssl_core.data.image_set import ImageSet
from astra_gym.ssl_core.downstream.knn import NeighborClassifier, NeighborSettings, nearest_neighbors
from astra_gym.ssl_core.downstream.linear_probe import departures
from astra_gym.ssl_core.models.target_network import TargetNetwork
from astra_gym.ssl_core.transforms.views import as_float
from astra_gym.ssl_core.utils.hashing import fingerprint
from tests.helpers.tiny_networks import tiny_network

CLASSES = ("red", "green", "blue")


class Channel(nn.Module):
    """One feature a color channel: its mean, less a half."""

    def features(self, images: Tensor, route: str) -> Tensor:
        return images.mean((2, 3)) - 0.5


def image_set(n: int = 96, seed: int = 0) -> ImageSet:
    """Noise in which one channel, the class's, is somewhat brighter."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (n,), generator=generator)
    images = torch.randint(0, 226, (n, 3, 4, 4), generator=generator)
    images[torch.arange(n), labels] += 30
    return ImageSet(images.to(torch.uint8), labels, CLASSES, "colors")


def directions(angles: Sequence[float], labels: Sequence[int], k: int, temperature: float) -> NeighborClassifier:
    """A classifier whose bank has two features at the angles, in degrees, and which takes images of one pixel."""
    radians = torch.tensor(angles).deg2rad()
    bank = torch.stack([radians.cos(), radians.sin()], 1) * 2.0 ** torch.arange(len(angles)).view(-1, 1)
    settings = NeighborSettings(k, temperature)
    return NeighborClassifier(Pixel(), "none", bank, torch.tensor(labels), 4, settings)


class Pixel(nn.Module):
    """Two features of images of one pixel: how much the first two channels exceed the third."""

    def features(self, images: Tensor, route: str) -> Tensor:
        x = images[:, :, 0, 0]
        return x[:, :2] - x[:, 2:]


def pixel(angle: float) -> Tensor:
    return torch.tensor([math.cos(math.radians(angle)), math.sin(math.radians(angle)), 0.0]).view(1, 3, 1, 1)


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (7, 0.07), (40, 0.2), (96, 1.0)])
def test_votes_are_those_of_scikit_learn_with_the_same_weights(k: int, temperature: float) -> None:
    train, test = image_set(), image_set(64, seed=1)
    assert train.labels is not None
    classifier = nearest_neighbors(Channel(), "none", train, NeighborSettings(k, temperature), batch_size=20)
    reference = KNeighborsClassifier(
        n_neighbors=k, algorithm="brute", metric="cosine", weights=lambda d: np.exp((1 - d) / temperature)
    )
    bank, queries = ((data.images.double() / 255).mean((2, 3)).numpy() - 0.5 for data in (train, test))
    reference.fit(bank, train.labels.numpy())
    shares = torch.from_numpy(reference.predict_proba(queries)).float()

    logits = classifier(as_float(test.images))
    voted = shares > 0
    assert bool(voted.all()) == (k >= 40)
    torch.testing.assert_close(logits.where(voted, -math.inf).softmax(1), shares, rtol=1e-4, atol=1e-6)
    assert logits.argmax(1).tolist() == reference.predict(queries).tolist()


def test_votes_computed_by_hand() -> None:
    classifier = directions([0, 60, 90, 180, 270], [0, 1, 0, 2, 1], k=3, temperature=0.5)
    logits = classifier(pixel(30))[0]
    a, b = math.cos(math.radians(30)), math.cos(math.radians(60))
    assert float(logits[0].exp()) == pytest.approx(math.exp(a / 0.5) + math.exp(b / 0.5), rel=1e-5)
    assert float(logits[1].exp()) == pytest.approx(math.exp(a / 0.5), rel=1e-5)
    # classes 2 and 3 have no neighbor, class 3 no image at all: half a vote of the nearest, below any other class
    assert float(logits[2].exp()) == pytest.approx(math.exp(-a / 0.5) / 2, rel=1e-5)
    assert float(logits[3].exp()) == pytest.approx(math.exp(-1 / 0.5) / 2, rel=1e-5)


@pytest.mark.parametrize("temperature", [1e-4, 0.07, 1e4])
def test_logits_are_finite_at_any_temperature_and_a_class_with_votes_is_above_one_without(temperature: float) -> None:
    classifier = directions([0, 1, 2, 3, 180], [1, 2, 2, 0, 0], k=3, temperature=temperature)
    logits = classifier(torch.cat([pixel(0), pixel(90)]))
    assert bool(logits.isfinite().all())
    assert logits.argmax(1).tolist() == [2 if temperature > 0.01 else 1, 0 if temperature < 0.01 else 2]
    assert min(float(logits[0, 1]), float(logits[0, 2])) > float(logits[0, 0]) > float(logits[0, 3])


@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0], [2, 5, 0, 3, 1, 4]])
def test_of_equally_near_images_those_of_the_lower_class_vote(order: list[int]) -> None:
    angles, labels = [10.0, 10.0, 10.0, 10.0, 0.0, 90.0], [2, 1, 2, 0, 2, 0]
    shuffled = [angles[i] for i in order], [labels[i] for i in order]
    alone = directions(*shuffled, k=3, temperature=0.07)(pixel(0))
    counts = (alone - math.cos(math.radians(10)) / 0.07).exp()
    # one vote of class 2 at 0 degrees, then of the four at 10 degrees those of the classes 0 and 1
    assert counts[0, :2].tolist() == pytest.approx([1, 1], rel=1e-4)
    assert float(alone[0, 2]) == pytest.approx(1 / 0.07, rel=1e-4)
    batch = directions(*shuffled, k=3, temperature=0.07)(torch.cat([pixel(45), pixel(0), pixel(200)]))
    torch.testing.assert_close(batch[1:2], alone)


def test_k_is_at_most_the_number_of_training_images_and_says_so() -> None:
    classifier = nearest_neighbors(Channel(), "none", image_set(), NeighborSettings())
    assert departures(classifier.settings, NeighborSettings()) == ("k 96, not 200",)
    assert departures(NeighborSettings(), NeighborSettings(200, 0.07)) == ()
    with pytest.raises(ValueError, match="k is 4: expected at most 3"):
        directions([0, 1, 2], [0, 1, 2], k=4, temperature=0.07)


def test_an_image_with_unanimous_neighbors_has_a_gradient_that_leads_away_from_them() -> None:
    """With raw votes, or a constant for a class without votes, float32 has none: the image would seem robust."""
    classifier = directions([10, 20, 30, 40, 50, 85], [0, 0, 0, 0, 0, 1], k=5, temperature=0.07)
    image = pixel(30).requires_grad_()
    logits = classifier(image)
    assert bool(logits.argmax() == 0) and bool(logits[0, 0] - logits[0, 1] > 5)
    (gradient,) = torch.autograd.grad(F.cross_entropy(logits, torch.tensor([0])), image)
    assert gradient[0, 0] < 0 < gradient[0, 1]
    far = directions([0, 0, 0, 0, 0, 179], [0, 0, 0, 0, 0, 1], k=5, temperature=0.07)
    image = pixel(20).requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(far(image), torch.tensor([0])), image)
    assert bool(gradient.isfinite().all()) and gradient[0, 0] < 0 < gradient[0, 1]


def test_an_attack_by_gradients_finds_what_a_search_of_the_whole_ball_finds() -> None:
    """Channel sees three means only, so that a grid of their shifts is the ball."""
    train, test, epsilon = image_set(300), image_set(64, seed=1), 6 / 255
    assert test.labels is not None
    labels = test.labels
    classifier = nearest_neighbors(Channel(), "none", train, NeighborSettings(k=20))
    images = as_float(test.images) * 0.9 + 0.05
    attacked = pgd(
        lambda x, _: classifier(x),
        lambda z: F.cross_entropy(z, labels, reduction="none"),
        images,
        Budget.uniform(len(images), epsilon=epsilon, step_size=epsilon / 10, steps=30),
        generator=torch.Generator().manual_seed(0),
    ).images
    shifts = torch.cartesian_prod(*3 * [torch.linspace(-epsilon, epsilon, 5)]).view(-1, 1, 3, 1, 1)
    clean, robust = (classifier(x).argmax(1) == labels for x in (images, attacked))
    searched = torch.stack([classifier(images + shift).argmax(1) == labels for shift in shifts]).all(0)
    assert int(searched.sum()) < 0.7 * int(clean.sum())
    assert int(robust.sum()) <= int(searched.sum()) + 4


def test_logits_do_not_look_like_probabilities_and_are_not_all_equal() -> None:
    logits = nearest_neighbors(Channel(), "none", image_set(), NeighborSettings())(as_float(image_set(seed=1).images))
    assert not torch.allclose(logits.sum(1), torch.ones(len(logits)), atol=0.1)
    assert bool((logits.amax(1) - logits.amin(1) > 1e-3).all())


@pytest.fixture(scope="module")
def network() -> TargetNetwork:
    network = tiny_network()
    network.get_parameter("backbone.norm.by_route.pgd.weight").data.fill_(0.5)
    network.get_parameter("backbone.norm.by_route.pgd.bias").data.fill_(0.2)
    return network


def test_the_bank_holds_the_features_of_the_route_of_images_as_they_are(network: TargetNetwork) -> None:
    data = image_set()
    assert data.labels is not None
    order = data.labels.argsort(stable=True)
    banks = []
    for route in network.routes:
        classifier = nearest_neighbors(network, route, data, NeighborSettings(k=5), batch_size=40)
        with torch.no_grad():
            features = copy.deepcopy(network).eval().features(as_float(data.images), route)
        torch.testing.assert_close(classifier.bank, F.normalize(features, dim=1)[order])
        assert torch.equal(classifier.labels, data.labels[order])
        assert bool((classifier(as_float(data.images)).argmax(1) == data.labels).float().mean() > 0.5)
        banks.append(classifier.bank)
    assert (banks[0] - banks[1]).norm() > 0.01


def test_the_given_network_is_left_as_it_is_and_the_classifier_keeps_still(network: TargetNetwork) -> None:
    network = copy.deepcopy(network).train()
    before = fingerprint(network)
    state = torch.random.get_rng_state()
    classifier, again = (nearest_neighbors(network, "pgd", image_set(), NeighborSettings(k=5)) for _ in range(2))
    assert fingerprint(classifier) == fingerprint(again)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert fingerprint(network) == before
    assert all(module.training for module in network.modules())
    assert all(parameter.requires_grad for parameter in network.parameters())

    images = as_float(image_set(seed=1).images)
    logits = classifier(images)
    network(images, "pgd")
    assert torch.equal(classifier(images), logits)
    classifier.train()
    assert not any(module.training for module in classifier.modules())
    assert not any(tensor.requires_grad for tensor in (*classifier.parameters(), *classifier.buffers(), logits))
    assert classifier(images.requires_grad_()).requires_grad


@pytest.mark.parametrize("way", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_it_can_be_copied_and_pickled(network: TargetNetwork, way: Callable[[nn.Module], nn.Module]) -> None:
    classifier = nearest_neighbors(network, "pgd", image_set(), NeighborSettings(k=5))
    images = as_float(image_set(seed=1).images)
    assert torch.equal(way(classifier)(images), classifier(images))
    assert {"bank", "labels"} < set(classifier.state_dict())


class Drifting(Channel):
    """Keeps a running mean whatever its mode says."""

    running_mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(3), persistent=False)

    def features(self, images: Tensor, route: str) -> Tensor:
        z = super().features(images, route)
        self.running_mean += 0.1 * z.mean(0)
        return z


def test_an_encoder_that_changes_is_caught() -> None:
    with pytest.raises(RuntimeError, match=r"not frozen while its training images.*running_mean.*void"):
        nearest_neighbors(Drifting(), "none", image_set(), NeighborSettings())


def test_features_that_are_not_finite_are_an_error() -> None:
    class Inverse(Channel):
        def features(self, images: Tensor, route: str) -> Tensor:
            return 1 / images.mean((2, 3))

    classifier = nearest_neighbors(Inverse(), "none", image_set(), NeighborSettings())
    with pytest.raises(RuntimeError, match="features that are not finite"):
        classifier(torch.zeros(1, 3, 4, 4))
    black = ImageSet(torch.zeros(3, 3, 4, 4, dtype=torch.uint8), torch.arange(3), CLASSES, "black")
    with pytest.raises(RuntimeError, match="features that are not finite"):
        nearest_neighbors(Inverse(), "none", black, NeighborSettings())


def test_progress_is_told_of_every_batch() -> None:
    told: list[tuple[int, int]] = []
    nearest_neighbors(
        Channel(),
        "none",
        image_set(),
        NeighborSettings(),
        batch_size=40,
        progress=lambda done, total: told.append((done, total)),
    )
    assert told == [(40, 96), (80, 96), (96, 96)]


def test_images_without_labels_are_refused_with_advice() -> None:
    bare = ImageSet(image_set().images, None, (), "colors")
    with pytest.raises(ValueError, match=r"'colors' has no labels.*nearest neighbors needs them.*one folder"):
        nearest_neighbors(Channel(), "none", bare, NeighborSettings())


@pytest.mark.parametrize("change", [{"k": 0}, {"temperature": 0.0}, {"temperature": math.inf}])
def test_settings_out_of_range_are_refused(change: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"the neighbors' {next(iter(change))} is"):
        NeighborSettings(**change)  # type: ignore[arg-type]
