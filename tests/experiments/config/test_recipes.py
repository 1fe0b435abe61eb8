import math
from dataclasses import replace

import pytest

from astra_gym.envs.builders import build_learner
from astra_gym.experiments.config.cli import load, parse
from astra_gym.experiments.config.presets import PRESETS
from astra_gym.experiments.config.recipes import AUTHORS, SMALL, recipe
from astra_gym.experiments.config.settings import Settings
from astra_gym.ssl_core.methods import METHODS
from astra_gym.ssl_core.methods.emp import EMPSSL
from astra_gym.ssl_core.models.checkpoint import describe_network, save_checkpoint
from astra_gym.ssl_core.settings.records import leaves
from astra_gym.ssl_core.transforms.multi_crop import CropSettings
from astra_gym.ssl_core.utils.rng import Streams
from tests.helpers.method_worlds import encoder_of

NAMES = {leaf.name for leaf in leaves(Settings)}


def flags(preset: str, method: str) -> list[str]:
    encoder = [f"--{name}={file}" for name, file in encoder_of(method, "somewhere").items()]
    data = ["--data_dir=photographs"] if preset not in ("digits", "digits-grid") else []
    return [f"--preset={preset}", f"--method={method}", *encoder, *data]


def test_recipes_are_of_methods_and_settings_that_there_are() -> None:
    for table in (AUTHORS, SMALL):
        assert table.keys() <= METHODS.keys()
        assert all(values.keys() <= NAMES for values in table.values())
    for preset in ("cifar10", "digits-grid"):
        assert recipe(preset, "moco-clean") == recipe(preset, "moco") != {}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "preset"),
    [
        # a few presets for each method, by turns
        pytest.param(method, preset, marks=() if (m + p) % 7 == 0 else pytest.mark.every_agent)
        for m, method in enumerate(METHODS)
        for p, preset in enumerate(name for name, values in PRESETS.items() if "method" not in values)
    ],
)
def test_every_method_has_settings_in_every_preset(preset: str, method: str) -> None:
    settings = parse(flags(preset, method)).settings
    assert settings.run.preset == preset and settings.method.method == method
    for name, value in recipe(preset, method).items():
        assert settings.flat()[name] == (tuple(value) if isinstance(value, list | tuple) else value), name
    changes: dict[str, object] = {name: settings.flat()[name] for name in encoder_of(method, "somewhere")}
    changes |= {"data_dir": settings.data.data_dir, "method": method}
    assert settings == Settings.from_preset(preset, **changes)


def test_a_methods_recipe_is_overridden_and_an_option_of_its_own_is_added(tmp_path) -> None:
    words = flags("cifar10", "byol")
    settings = parse([*words, "--lr=0.5", "--method_kwargs.momentum_start=0.98"]).settings
    assert (settings.optimizer.lr, settings.network.projector) == (0.5, "mlp")
    assert settings.method.method_kwargs == {"predictor_hidden": 4096, "momentum_start": 0.98}
    path = tmp_path / "config.yaml"
    path.write_text(settings.to_yaml(), encoding="utf-8")
    assert load(path) == settings
    path.write_text("preset: cifar10\nmethod: byol\ndata_dir: photographs\nmethod_kwargs: {streams: a2a}\n")
    settings = parse([f"--config={path}"]).settings
    assert settings.method.method_kwargs == {"predictor_hidden": 4096, "streams": "a2a"}
    changes = {"method": "byol", "data_dir": settings.data.data_dir, "method_kwargs": {"streams": "a2a"}}
    assert Settings.from_preset("cifar10", **changes) == settings
    # a run's record is complete: what it leaves out, it did without
    whole = "dataset: digits\nepochs: 1\nagent: fixed\nseed: 0\nprogress: auto\n"
    path.write_text(path.read_text() + whole)
    assert load(path).method.method_kwargs == {"streams": "a2a"}


def test_the_teacher_of_daq_sdp_is_its_authors() -> None:
    """Section 11, stage 1, and the README and configuration of the released code: SGD, no blur, a decay of 1e-5."""
    teacher = parse(["--preset=cifar10-teacher-daq", "--data_dir=photographs"]).settings
    network, optimizer = teacher.network, teacher.optimizer
    assert (teacher.method.method, teacher.method.temperature) == ("simclr", 0.2)
    assert (optimizer.batch_size, optimizer.epochs) == (256, 1000)
    assert (network.arch, network.stem, network.normalization) == ("resnet34", "cifar-padded", "cifar")
    assert (network.projector, network.projector_hidden, network.projector_dim) == ("rocl", 2048, 256)
    assert (optimizer.optimizer, optimizer.lr, optimizer.weight_decay) == ("sgd-classic", 0.5, 1e-5)
    views = teacher.views.make()
    assert (views.crop, views.jitter, views.interpolation, views.flip) == (
        (0.08, 1),
        (0.8, 0.8, 0.8, 0.2),
        "bicubic",
        0.5,
    )
    assert not views.blur_probability and not views.solarize_probability and views.strength == 1
    # ten epochs from .003 to .5, then a cosine to 0, by the epoch
    schedule = teacher.optimizer.schedule(teacher.world.make_plan(97))
    rates = [schedule(97 * epoch) for epoch in (0, 1, 9, 505)]
    assert rates == pytest.approx([0.003, 0.003 + 0.497 / 9, 0.5, 0.25], rel=0.01)
    assert schedule(97) == schedule(2 * 97 - 1) and schedule(999 * 97) == pytest.approx(0, abs=1e-4)


def test_the_teacher_of_deacl_keeps_blur_and_decay() -> None:
    teacher = parse(["--preset=cifar10-teacher", "--data_dir=photographs"]).settings
    optimizer = teacher.optimizer
    assert (optimizer.optimizer, optimizer.lr, optimizer.weight_decay) == ("lars-excluded", 0.4, 1e-4)
    assert (teacher.network.arch, teacher.views.blur, optimizer.warmup_start) == ("resnet18", 0.5, 7.5e-5)


@pytest.mark.parametrize(("method", "preset"), [("deacl", "cifar10-teacher"), ("daq-sdp", "cifar10-teacher-daq")])
def test_the_preset_of_teachers_fits_the_students(method: str, preset: str, tmp_path) -> None:
    words = ["--data_dir=photographs", "--width=2"]
    teacher = parse([*words, f"--preset={preset}"]).settings
    assert (teacher.method.method, teacher.agent.agent, teacher.method.temperature) == ("simclr", "none", 0.2)
    plan = teacher.world.make_plan(3)
    network = build_learner(teacher.world, Streams(0), plan).network
    payload = {"step": 0, "epoch": 0.0, "evaluation_route": "normal", "network": describe_network(network)}
    path = save_checkpoint(tmp_path / "teacher.pt", "encoder", payload)
    student = parse([*words, "--preset=cifar10", f"--method={method}", f"--teacher={path}"]).settings
    learner = build_learner(student.world, Streams(1), plan)
    assert learner.network.feature_dim == network.feature_dim
    # what a method compares with any teacher's features needs no likeness
    parse([*words, "--preset=cifar10", "--method=advcl", f"--teacher={path}"])


def test_emp_ssl_crops_as_its_authors_do() -> None:
    settings = parse(flags("cifar10", "emp-ssl")).settings
    method = settings.method.make()
    assert isinstance(method, EMPSSL)
    found = method.crop_settings(settings.views.make())
    assert found.scale == pytest.approx((0.08, 1.0)) and replace(found, scale=(0.08, 1.0)) == CropSettings()
    changed = parse([*flags("cifar10", "emp-ssl"), "--blur=0", "--solarize=0.3"]).settings
    found = method.crop_settings(changed.views.make())
    assert (found.blur_probability, found.solarize_probability) == (0, 0.3)


def test_the_authors_settings_of_a_few() -> None:
    deacl = parse(flags("cifar10", "deacl")).settings
    expected = {"optimizer": "sgd-classic", "lr": 0.5, "weight_decay": 5e-4, "batch_size": 256, "epochs": 100}
    assert deacl.flat().items() >= (expected | {"stem": "cifar-padded", "normalization": "cifar"}).items()
    astra = parse(flags("cifar10", "astra")).settings
    expected = {"optimizer": "lars", "projector_hidden": 2048, "epochs": 1000, "seed": 3407}
    assert astra.flat().items() >= expected.items()
    assert parse(flags("cifar10", "acl")).settings.network.projector_hidden == 512
    byol, simsiam = (parse(flags("cifar10", name)).settings.views.make() for name in ("byol", "simsiam"))
    assert (byol.blur_probability, byol.solarize_probability, byol.jitter) == (None, 0.2, (0.4, 0.4, 0.2, 0.1))
    assert (simsiam.blur_probability, simsiam.solarize_probability, simsiam.crop) == (0.5, None, (0.08, 1.0))
    # the small presets keep the network and the optimizer of all methods
    small = parse(flags("digits-grid", "deacl")).settings
    expected = {"optimizer": "adamw", "stem": "cifar", "epochs": 10, "projector": "none"}
    assert small.flat().items() >= expected.items()


@pytest.mark.parametrize(
    ("method", "rates"),
    [
        # the first update, the first of epochs 2, 11 and the last one, of so many
        ("astra", (0.0, 0.5, 5.0, 1e-6)),
        ("dynacl", (0.5, 1.0, 5.0, 1.36e-5)),
        ("rocl", (0.24, 0.38, 1.5, 3.78e-6)),
        ("advcl", (0.01, 0.059, 0.5, 5e-4)),
        ("deacl", (0.003, 0.003 + 0.497 / 9, 0.5, 1.52e-4)),
        ("byol", (3e-5, 0.1, 1.0, 0.0)),
        ("emp-ssl", (0.3, 0.3 * (1 + math.cos(math.pi / 30)) / 2, 0.225, 0.0)),
    ],
)
def test_the_authors_learning_rates(method: str, rates: tuple[float, ...]) -> None:
    settings = parse(flags("cifar10", method)).settings
    steps = 97
    schedule = settings.optimizer.schedule(settings.world.make_plan(steps))
    found = [schedule(step) for step in (0, steps, 10 * steps, settings.optimizer.epochs * steps - 1)]
    assert found == pytest.approx(rates, rel=0.01, abs=1e-6)


def test_a_vit_leaves_out_the_width_and_the_stem_of_a_preset() -> None:
    own = Settings.from_preset("cifar10", method="byol", arch="timm:vit_tiny_patch16_224", patch_size=4)
    own.world.check_given()
    assert (own.optimizer.batch_size, own.network.patch_size) == (256, 4)
