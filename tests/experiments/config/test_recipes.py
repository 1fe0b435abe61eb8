import math
from dataclasses import fields, replace

import pytest

from astra_gym.envs.builders import build_learner, make_schedule
from astra_gym.experiments.config.cli import load, parse
from astra_gym.experiments.config.presets import PRESETS
from astra_gym.experiments.config.recipes import AUTHORS, SMALL, recipe
from astra_gym.experiments.config.settings import Settings
from astra_gym.ssl_core.methods import METHODS
from astra_gym.ssl_core.methods.emp import EMPSSL
from astra_gym.ssl_core.models.checkpoint import describe_network, save_checkpoint
from astra_gym.ssl_core.transforms.multi_crop import CropSettings
from astra_gym.ssl_core.utils.rng import Streams

NAMES = {field.name for field in fields(Settings)}
TEACHER = {name: "somewhere" for name, method in METHODS.items() if "teacher" in method.others}


def flags(preset: str, method: str) -> list[str]:
    teacher = [f"--teacher={TEACHER[method]}"] if method in TEACHER else []
    data = ["--data_dir=photographs"] if preset not in ("digits", "digits-grid") else []
    return [f"--preset={preset}", f"--method={method}", *teacher, *data]


def test_recipes_are_of_methods_and_settings_that_there_are() -> None:
    for table in (AUTHORS, SMALL):
        assert table.keys() <= METHODS.keys()
        assert all(values.keys() <= NAMES for values in table.values())


@pytest.mark.parametrize("preset", [name for name, values in PRESETS.items() if "method" not in values])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_settings_in_every_preset(preset: str, method: str) -> None:
    settings = parse(flags(preset, method)).settings
    assert settings.preset == preset and settings.method == method
    for name, value in recipe(preset, method).items():
        assert getattr(settings, name) == (tuple(value) if isinstance(value, list | tuple) else value), name
    changes = {} if method not in TEACHER else {"teacher": settings.teacher}
    changes |= {"data_dir": settings.data_dir, "method": method}
    assert settings == Settings.from_preset(preset, **changes)


def test_a_methods_recipe_is_overridden_and_an_option_of_its_own_is_added(tmp_path) -> None:
    words = flags("cifar10", "byol")
    settings = parse([*words, "--lr=0.5", "--method_kwargs.momentum_start=0.98"]).settings
    assert (settings.lr, settings.projector) == (0.5, "mlp")
    assert settings.method_kwargs == {"predictor_hidden": 4096, "momentum_start": 0.98}
    path = tmp_path / "config.yaml"
    path.write_text(settings.to_yaml(), encoding="utf-8")
    assert load(path) == settings
    path.write_text("preset: cifar10\nmethod: byol\ndata_dir: photographs\nmethod_kwargs: {streams: a2a}\n")
    settings = parse([f"--config={path}"]).settings
    assert settings.method_kwargs == {"predictor_hidden": 4096, "streams": "a2a"}
    changes = {"method": "byol", "data_dir": settings.data_dir, "method_kwargs": {"streams": "a2a"}}
    assert Settings.from_preset("cifar10", **changes) == settings
    # a run's record is complete: what it leaves out, it did without
    whole = "dataset: digits\nepochs: 1\nagent: fixed\nseed: 0\nprogress: auto\n"
    path.write_text(path.read_text() + whole)
    assert load(path).method_kwargs == {"streams": "a2a"}


def test_the_teacher_of_daq_sdp_is_its_authors() -> None:
    """Section 11, stage 1, and the README and configuration of the released code: SGD, no blur, a decay of 1e-5."""
    teacher = parse(["--preset=cifar10-teacher-daq", "--data_dir=photographs"]).settings
    assert (teacher.method, teacher.temperature, teacher.batch_size, teacher.epochs) == ("simclr", 0.2, 256, 1000)
    assert (teacher.arch, teacher.stem, teacher.normalization) == ("resnet34", "cifar-padded", "cifar")
    assert (teacher.projector, teacher.projector_hidden, teacher.projector_dim) == ("rocl", 2048, 256)
    assert (teacher.optimizer, teacher.lr, teacher.weight_decay) == ("sgd-classic", 0.5, 1e-5)
    views = teacher.make_views()
    assert (views.crop, views.jitter, views.interpolation, views.flip) == (
        (0.08, 1),
        (0.8, 0.8, 0.8, 0.2),
        "bicubic",
        0.5,
    )
    assert not views.blur_probability and not views.solarize_probability and views.strength == 1
    # ten epochs from .003 to .5, then a cosine to 0, by the epoch
    schedule = make_schedule(teacher, teacher.make_plan(97))
    rates = [schedule(97 * epoch) for epoch in (0, 1, 9, 505)]
    assert rates == pytest.approx([0.003, 0.003 + 0.497 / 9, 0.5, 0.25], rel=0.01)
    assert schedule(97) == schedule(2 * 97 - 1) and schedule(999 * 97) == pytest.approx(0, abs=1e-4)


def test_the_teacher_of_deacl_keeps_blur_and_decay() -> None:
    teacher = parse(["--preset=cifar10-teacher", "--data_dir=photographs"]).settings
    assert (teacher.optimizer, teacher.lr, teacher.weight_decay) == ("lars-excluded", 0.4, 1e-4)
    assert (teacher.arch, teacher.make_views().blur_probability, teacher.warmup_start) == ("resnet18", 0.5, 7.5e-5)


@pytest.mark.parametrize(("method", "preset"), [("deacl", "cifar10-teacher"), ("daq-sdp", "cifar10-teacher-daq")])
def test_the_preset_of_teachers_fits_the_students(method: str, preset: str, tmp_path) -> None:
    words = ["--data_dir=photographs", "--width=2"]
    teacher = parse([*words, f"--preset={preset}"]).settings
    assert (teacher.method, teacher.agent, teacher.temperature) == ("simclr", "none", 0.2)
    plan = teacher.make_plan(3)
    network = build_learner(teacher, Streams(0), plan).network
    payload = {"step": 0, "epoch": 0.0, "evaluation_route": "normal", "network": describe_network(network)}
    path = save_checkpoint(tmp_path / "teacher.pt", "encoder", payload)
    student = parse([*words, "--preset=cifar10", f"--method={method}", f"--teacher={path}"]).settings
    learner = build_learner(student, Streams(1), plan)
    assert learner.network.feature_dim == network.feature_dim
    # what a method compares with any teacher's features needs no likeness
    parse([*words, "--preset=cifar10", "--method=advcl", f"--teacher={path}"])


def test_emp_ssl_crops_as_its_authors_do() -> None:
    settings = parse(flags("cifar10", "emp-ssl")).settings
    method = settings.make_method()
    assert isinstance(method, EMPSSL)
    found = method.crop_settings(settings.make_views())
    assert found.scale == pytest.approx((0.08, 1.0)) and replace(found, scale=(0.08, 1.0)) == CropSettings()
    changed = parse([*flags("cifar10", "emp-ssl"), "--blur=0", "--solarize=0.3"]).settings
    found = method.crop_settings(changed.make_views())
    assert (found.blur_probability, found.solarize_probability) == (0, 0.3)


def test_the_authors_settings_of_a_few() -> None:
    deacl = parse(flags("cifar10", "deacl")).settings
    assert (deacl.optimizer, deacl.lr, deacl.weight_decay, deacl.batch_size) == ("sgd-classic", 0.5, 5e-4, 256)
    assert (deacl.stem, deacl.normalization, deacl.epochs) == ("cifar-padded", "cifar", 100)
    astra = parse(flags("cifar10", "astra")).settings
    assert (astra.optimizer, astra.projector_hidden, astra.epochs, astra.seed) == ("lars", 2048, 1000, 3407)
    assert parse(flags("cifar10", "acl")).settings.projector_hidden == 512
    byol, simsiam = (parse(flags("cifar10", name)).settings.make_views() for name in ("byol", "simsiam"))
    assert (byol.blur_probability, byol.solarize_probability, byol.jitter) == (None, 0.2, (0.4, 0.4, 0.2, 0.1))
    assert (simsiam.blur_probability, simsiam.solarize_probability, simsiam.crop) == (0.5, None, (0.08, 1.0))
    # the small presets keep the network and the optimiser of all methods
    small = parse(flags("digits-grid", "deacl")).settings
    assert (small.optimizer, small.stem, small.epochs, small.projector) == ("adamw", "cifar", 10, "none")


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
    schedule = make_schedule(settings, settings.make_plan(steps))
    found = [schedule(step) for step in (0, steps, 10 * steps, settings.epochs * steps - 1)]
    assert found == pytest.approx(rates, rel=0.01, abs=1e-6)
