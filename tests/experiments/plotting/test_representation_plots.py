import copy
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.image import imread
from torch import Tensor, nn

from astra_gym.experiments.plotting.representation_plots import (
    downstream_loss,
    landscape,
    plane,
    spectrum,
    tsne,
)
from astra_gym.ssl_core.data.datasets import load_dataset
from astra_gym.ssl_core.data.image_set import ImageSet
from astra_gym.ssl_core.downstream.linear_probe import RawPixels
from astra_gym.ssl_core.evaluation import representation
from astra_gym.ssl_core.evaluation.embedding_metrics import (
    alignment,
    effective_rank,
    embedding_std,
    resamples,
    uniformity,
)
from astra_gym.ssl_core.evaluation.landscape import LossCurves
from astra_gym.ssl_core.evaluation.representation import Health, Landscape, attack_features, representation_health
from astra_gym.ssl_core.evaluation.results import Origin, Row
from astra_gym.ssl_core.evaluation.sanity import SanityError
from astra_gym.ssl_core.models.target_network import TargetNetwork
from astra_gym.ssl_core.transforms.views import ViewSettings, as_float
from astra_gym.ssl_core.utils.hashing import fingerprint
from tests.helpers.tiny_networks import tiny_network

VIEWS = ViewSettings(strength=0.5, flip=0.0)
SPACES = ("features", "embeddings")


def origin(route: str = "pgd", seed: int = 0, protocol: str = "features") -> Origin:
    return Origin(protocol=protocol, route=route, seed=seed, checkpoint="last", commit="unknown")


@pytest.fixture(scope="module")
def digits() -> ImageSet:
    return load_dataset("digits", image_size=8).test.take(32)


@pytest.fixture(scope="module")
def network() -> TargetNetwork:
    return tiny_network()


@pytest.fixture(scope="module")
def found(network: TargetNetwork, digits: ImageSet) -> Health:
    return representation_health(network, digits, VIEWS, origin=origin())


class Channels(nn.Module):
    """No `TargetNetwork`: features of one convolution."""

    feature_dim = 5

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.utils.skip_init(nn.Conv2d, 3, 5, 3)
        for parameter in self.parameters():
            parameter.data.normal_(generator=torch.Generator().manual_seed(0))

    def features(self, images: Tensor, route: str) -> Tensor:
        return self.conv(images).square().mean((2, 3))


class Counting(RawPixels):
    """Raw pixels, with a buffer that counts."""

    def __init__(self) -> None:
        super().__init__((3, 8, 8))
        self.register_buffer("calls", torch.zeros(()))

    def features(self, images: Tensor, route: str) -> Tensor:
        self.calls += 1
        return super().features(images, route)


def by_name(rows: list[Row]) -> dict[tuple[str, str], Row]:
    return {(row.metric, row.condition): row for row in rows}


def test_there_is_a_row_for_every_figure_space_and_condition(found: Health) -> None:
    expected = {("alignment", f"{space}/{kind}") for space in SPACES for kind in ("views", "attacked")}
    for metric in ("uniformity", "effective_rank", "embedding_std"):
        expected |= {(metric, space + kind) for space in SPACES for kind in ("", "/attacked")}
    expected |= {("sharpness", f"{which} of 16/0.5") for which in ("median", "sharpest")}
    rows = by_name(found.rows)
    assert rows.keys() == expected
    assert len(found.rows) == len(expected)
    for (metric, _), row in rows.items():
        assert (row.protocol, row.route, row.n, row.attack) == ("features", "pgd", 32, "none")
        if metric in ("effective_rank", "sharpness"):
            assert row.interval is None
        else:
            assert row.interval is not None
            assert row.interval[0] < row.value < row.interval[1]


def test_figures_are_those_of_the_vectors_that_come_with_them(
    found: Health, network: TargetNetwork, digits: ImageSet
) -> None:
    rows, z = by_name(found.rows), found.vectors
    assert set(z) == {space + kind for space in SPACES for kind in ("", "/attacked")}
    with torch.no_grad():
        encoded = copy.deepcopy(network).eval()(as_float(digits.images), "pgd")
    torch.testing.assert_close((z["features"], z["embeddings"]), tuple(encoded))
    for space in SPACES:
        attacked = f"{space}/attacked"
        assert rows["alignment", attacked].value == alignment(z[space], z[attacked]).item()
        assert rows["uniformity", space].value == uniformity(z[space]).item()
        assert rows["effective_rank", attacked].value == effective_rank(z[attacked]).item()
    assert torch.equal(found.labels, digits.labels)


def test_the_attack_turns_features_away_within_its_ball(network: TargetNetwork, digits: ImageSet) -> None:
    encoder, images = copy.deepcopy(network).eval(), as_float(digits.images)
    attacked = attack_features(encoder, images, "pgd", torch.Generator().manual_seed(0))
    assert (attacked - images).abs().max() <= 8 / 255 + 1e-6
    assert attacked.min() >= 0
    assert attacked.max() <= 1
    noise = torch.rand(images.shape, generator=torch.Generator().manual_seed(0)).sub(0.5).sign() * 8 / 255
    noisy = (images + noise).clamp(0, 1)
    with torch.no_grad():
        clean, far, near = (encoder.features(x, "pgd") for x in (images, attacked, noisy))
    assert alignment(clean, far) > 2 * alignment(clean, near) > 0


def test_the_landscape_goes_through_the_loss_of_the_weights_and_gives_the_rows(found: Health) -> None:
    data, rows = found.landscape, by_name(found.rows)
    assert data is not None
    at = data.radii.index(0.0)
    assert data.radii == tuple(-radius for radius in reversed(data.radii))
    assert data.median[at] == data.sharpest[at]
    for curve, name in ((data.median, "median"), (data.sharpest, "sharpest")):
        ends = curve[data.radii.index(-0.5)], curve[data.radii.index(0.5)]
        assert rows["sharpness", f"{name} of 16/0.5"].value == sum(ends) / 2 - curve[at]
    assert rows["sharpness", "sharpest of 16/0.5"].value > rows["sharpness", "median of 16/0.5"].value


def test_the_same_seed_gives_the_same_figures_and_nothing_outside_moves(
    found: Health, network: TargetNetwork, digits: ImageSet
) -> None:
    network.train()
    before, state = fingerprint(network), torch.get_rng_state()
    again = representation_health(network, digits, VIEWS, origin=origin())
    assert again.rows == found.rows
    assert again.landscape == found.landscape
    assert all(torch.equal(z, found.vectors[name]) for name, z in again.vectors.items())
    assert fingerprint(network) == before
    assert all(module.training for module in network.modules())
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert torch.equal(torch.get_rng_state(), state)
    other = by_name(representation_health(network, digits, VIEWS, origin=origin(seed=1)).rows)
    for name, row in by_name(found.rows).items():
        clean = name[0] != "sharpness" and "/" not in name[1]
        assert (other[name].value == row.value) == clean


def test_other_encoders_have_features_only_and_those_without_weights_no_landscape(digits: ImageSet) -> None:
    for encoder, weights in ((Channels(), True), (RawPixels((3, 8, 8)), False)):
        measured = representation_health(encoder, digits, VIEWS, origin=origin("none"))
        assert set(measured.vectors) == {"features", "features/attacked"}
        rows = by_name(measured.rows)
        assert (("sharpness", "median of 16/0.5") in rows) is (measured.landscape is not None) is weights
        assert len(rows) == 8 + 2 * weights


def test_intervals_lie_around_their_figures_where_resamples_do_not() -> None:
    """Of vectors all over a sphere the spread is nearly the largest there can be: every resample's is smaller."""
    z = torch.randn(32, 64, generator=torch.Generator().manual_seed(0))
    weights = resamples(32, 1000, torch.Generator().manual_seed(1))
    value, resampled = embedding_std(z), embedding_std(z, weights)
    assert resampled.quantile(0.975) < value
    row = by_name(list(representation._statistics({"features": z}, origin(), weights)))["embedding_std", "features"]
    assert row.interval is not None
    low, high = row.interval
    assert (row.value, row.interval_method) == (value.item(), "bootstrap")
    assert low < value < high
    assert high - low == pytest.approx((resampled.quantile(0.975) - resampled.quantile(0.025)).item())


def test_batches_and_progress(
    monkeypatch: pytest.MonkeyPatch, found: Health, network: TargetNetwork, digits: ImageSet
) -> None:
    monkeypatch.setattr(representation, "BATCH", 20)
    calls: list[tuple[int, int]] = []
    few = representation_health(
        network, digits, VIEWS, origin=origin(), images=24, progress=lambda *done: calls.append(done)
    )
    total = 2 + 1 + 2 * 16 + 2 * 21
    assert calls == [(done, total) for done in range(1, total + 1)]
    assert {row.n for row in few.rows} == {24}
    torch.testing.assert_close(few.vectors["features"], found.vectors["features"][:24])


def test_an_encoder_that_learns_and_bad_arguments_are_refused(network: TargetNetwork, digits: ImageSet) -> None:
    with pytest.raises(SanityError, match=r"not frozen while its health was measured.*\(calls\)"):
        representation_health(Counting(), digits, VIEWS, origin=origin())
    with pytest.raises(ValueError, match="protocol is 'slf': expected 'features'"):
        representation_health(network, digits, VIEWS, origin=origin(protocol="slf"))
    with pytest.raises(ValueError, match="15 images, but health needs at least 16"):
        representation_health(network, digits, VIEWS, origin=origin(), images=15)
    with pytest.raises(ValueError, match="no route 'none'"):
        representation_health(network, digits, VIEWS, origin=origin("none"))


def picture(path: Path) -> np.ndarray:
    """RGB in [0, 1], after checking that it is a whole PNG of README width that shows something."""
    assert [entry.name for entry in path.parent.iterdir()] == [path.name], "temporary files are left over"
    pixels = np.asarray(imread(path), dtype=np.float64)[..., :3]
    assert pixels.shape[1] == 1280
    assert 0.01 < float((pixels.min(2) < 0.9).mean()) < 0.9
    for edge in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]):
        assert (edge == 1).all(), "something is cut off at the border"
    return pixels


def pair(n: int = 60, d: int = 8, moved: float = 0.1) -> tuple[Tensor, Tensor]:
    """Three clusters, and the same a little moved."""
    generator = torch.Generator().manual_seed(0)
    clean = 5 * torch.eye(d)[torch.arange(n) % 3] + torch.randn(n, d, generator=generator)
    return clean, clean + moved * torch.randn(n, d, generator=generator)


def test_the_plane_keeps_clusters_and_pairs_together_and_is_the_same_again() -> None:
    clean, attacked = pair()
    state = np.random.get_state()[1].copy()
    before, after = plane(clean, attacked, seed=0)
    assert before.shape == after.shape == (60, 2)
    distances = np.linalg.norm(before[:, None] - before[None], axis=-1)
    same = (np.arange(60)[:, None] - np.arange(60)[None]) % 3 == 0
    assert np.median(distances[same]) < 0.5 * np.median(distances[~same])
    assert np.median(np.linalg.norm(before - after, axis=1)) < 0.5 * np.median(distances[same])
    for one, other in zip((before, after), plane(clean, attacked, seed=0), strict=True):
        assert np.array_equal(one, other)
    assert np.array_equal(np.random.get_state()[1], state)
    with pytest.raises(ValueError, match="twice"):
        plane(clean, attacked[1:], seed=0)


def test_tsne_with_ten_classes_more_and_none(tmp_path: Path) -> None:
    clean, attacked = pair(33)
    heights = {}
    for classes in (3, 10, 12, 0):
        path = tmp_path / str(classes) / "tsne.png"
        labels = torch.arange(33) % classes if classes else None
        names = tuple(f"a long name of class {index}" for index in range(classes))
        tsne(clean, attacked, labels, names, path)
        heights[classes] = picture(path).shape[0]
    assert heights[0] < heights[3] < heights[10] < heights[12]
    with pytest.raises(ValueError, match="7 labels for 33 features"):
        tsne(clean, attacked, torch.zeros(7, dtype=torch.int64), ("one",), tmp_path / "tsne.png")


def test_colors_of_classes_are_in_the_picture(tmp_path: Path) -> None:
    path = tmp_path / "tsne.png"
    tsne(*pair(), torch.arange(60) % 3, ("a", "b", "c"), path)
    pixels = picture(path)
    for color in ("#0072B2", "#D55E00", "#009E73"):
        exact = np.abs(pixels - matplotlib.colors.to_rgb(color)).max(2) < 0.01
        left, right = np.array_split(exact, 2, axis=1)
        assert min(left.sum(), right.sum()) > 500


def test_spectrum(tmp_path: Path) -> None:
    clean, attacked = pair()
    collapsed = torch.ones(60, 8)
    path = tmp_path / "spectrum.png"
    for vectors in (
        {"clean": clean},
        {"clean": clean, "attacked": attacked, "collapsed": collapsed, "one more": clean[:5]},
    ):
        spectrum(vectors, path)
        picture(path)
    for wrong in ({}, {str(index): clean for index in range(5)}):
        with pytest.raises(ValueError, match="expected 1 to 4"):
            spectrum(wrong, path)


def test_landscape(tmp_path: Path, found: Health) -> None:
    path = tmp_path / "landscape.png"
    assert found.landscape is not None
    landscape(found.landscape, path)
    picture(path)
    landscape(Landscape((-1.0, 0.0, 1.0), (3.0, 2.0, 3.0), (4.0, 2.0, 4.0), 16, 1.0), path)
    picture(path)


def test_downstream_losses_are_overlaid(tmp_path: Path) -> None:
    curves = LossCurves((-1.0, 0.0, 1.0), (3.0, 0.2, 3.0), (9.0, 2.0, 8.0))
    path = tmp_path / "downstream.png"
    long = [f"cifar10-dynacl++-reinforce-paper-seed{seed}" for seed in range(3)] + ["/a/path/of/a/run" * 5]
    for names, protocols in (("a", ("slf",)), ("abcd", ("slf", "aff")), (long, ("slf",))):
        panels = {name: dict.fromkeys(names, curves) for name in protocols}
        downstream_loss(panels, path)
        picture(path)
    for wrong in ({}, {"slf": dict.fromkeys("abcde", curves)}):
        with pytest.raises(ValueError, match="expected 1 to 4"):
            downstream_loss(wrong, path)


def test_drawing_leaves_matplotlib_as_it_was(tmp_path: Path) -> None:
    before = dict(matplotlib.rcParams)
    spectrum({"clean": pair()[0]}, tmp_path / "spectrum.png")
    assert dict(matplotlib.rcParams) == before
