"""The preset cifar10 of every method with a published recipe, against a table that was typed by hand.

The table (`tests/helpers/authors_sheets.py`) has nothing of the recipes: what is compared with it is what a run is
built from.
"""

from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from astra_gym.envs.builders import build_learner
from astra_gym.experiments.config.cli import parse
from astra_gym.experiments.config.settings import Settings
from astra_gym.ssl_core.methods.emp import EMPSSL
from astra_gym.ssl_core.models.checkpoint import describe_network, save_checkpoint
from astra_gym.ssl_core.models.projectors import Projector
from astra_gym.ssl_core.models.target_network import NORMALIZATIONS, TargetNetwork, build_network
from astra_gym.ssl_core.training.learner import TargetLearner
from astra_gym.ssl_core.transforms.views import draw_strong, draw_weak
from astra_gym.ssl_core.utils.rng import Streams
from tests.helpers.authors_sheets import (
    ACL_LARS,
    CONSTANT,
    FILTERED,
    NECKS,
    PREDICTORS,
    SHEETS,
    TEACHERS,
    TORCHLARS,
)

each = pytest.mark.parametrize("name", SHEETS)


def settings_of(name: str) -> Settings:
    teacher = ["--teacher=somewhere"] if name in TEACHERS else []
    return parse(["--preset=cifar10", f"--method={name}", "--data_dir=photographs", *teacher]).settings


def whole_network(settings: Settings) -> tuple[TargetNetwork, dict[str, Any]]:
    """The network of a run and its method's heads in full size, without weights."""
    method = settings.method.make()
    names = ("arch", "width", "stem", "projector", "projector_hidden", "projector_dim", "neck")
    with torch.device("meta"):
        network = TargetNetwork(routes=method.routes.names, **{name: getattr(settings.network, name) for name in names})
        return network, method.make_heads(network.feature_dim, network.embedding_dim)


def described(head: Projector, routes: tuple[str, ...]) -> str:
    """A head's layers in words, as the table has them."""
    layers = []
    for linear, norm, rectify in head.parts:
        words = [str(linear.out_features)]
        if norm is not None:
            assert len(norm.by_route) == (1 if norm.shared else len(routes))
            affine = all(part.weight is not None for part in norm.by_route.values())
            words += ["shared"] * norm.shared + ["plain"] * (not affine) + ["BN"]
        layers.append(" ".join([*words, *["ReLU"] * rectify]))
    return ", ".join(layers)


@each
def test_the_network_is_the_authors(name: str) -> None:
    sheet, settings = SHEETS[name], settings_of(name)
    (network, heads), routes = whole_network(settings), settings.method.make().routes.names
    backbone, stem = network.backbone, network.backbone.conv
    assert settings.data.image_size == 32 and len(backbone.blocks) == sheet.blocks and backbone.feature_dim == 512
    assert (stem.out_channels, stem.kernel_size, stem.stride, backbone.pool) == (64, (3, 3), (1, 1), None)
    assert sheet.padding in (None, stem.padding[0])
    assert described(network.projector, routes) == sheet.projector
    assert (described(network.neck, routes) if network.neck else None) == NECKS.get(name)
    if name in PREDICTORS:
        assert described(heads["predictor"], routes) == PREDICTORS[name]
    assert sheet.routes in (None, routes)
    assert sheet.normalization in (None, NORMALIZATIONS[settings.network.normalization])
    if sheet.rule is ACL_LARS:
        # C4: the first linear layer has a bias, the others none
        assert [linear.bias is not None for linear in network.projector.linears] == [True, False, False]


@each
def test_the_method_and_its_attack_are_the_authors(name: str) -> None:
    sheet, method = SHEETS[name], settings_of(name).method.make()
    assert {option: getattr(method, option) for option in sheet.options} == sheet.options
    if sheet.weights is not None:
        assert dict(method.weights) == pytest.approx(sheet.weights)
    if sheet.evaluated is not None:
        assert (method.networks.evaluated, method.routes.evaluation) == sheet.evaluated
    if sheet.budget is not None:
        assert tuple(asdict(method.default_budget(1)).values()) == pytest.approx(sheet.budget)
        assert (method.attack.mode, method.attack.start_radius) == (sheet.mode, sheet.start)


@each
def test_batches_epochs_and_views_are_the_authors(name: str) -> None:
    sheet, settings = SHEETS[name], settings_of(name)
    assert (settings.optimizer.batch_size, settings.optimizer.epochs, settings.coreset.coreset) == (
        sheet.batch_size,
        sheet.epochs,
        "none",
    )
    method, views = settings.method.make(), settings.views.make()
    if name in ("deacl", "daq-sdp", "profeat"):
        # W: zero padding of 4 pixels, a random crop, a flip
        weak = draw_weak(20000, views, torch.Generator().manual_seed(0))
        assert weak.corners.aminmax() == (0, 8) and weak.flip.float().mean() == pytest.approx(0.5, abs=0.02)
        return
    if isinstance(method, EMPSSL):
        crops = method.crop_settings(views)
        views, filters = crops.views, (crops.blur_probability, crops.solarize_probability)
    else:
        filters = (views.blur_probability, views.solarize_probability)
    assert tuple(chance or 0.0 for chance in filters) == FILTERED.get(name, (0.0, 0.0)) and views.strength == 1
    assert sheet.interpolation in (None, views.interpolation)
    drawn = draw_strong(20000, 32, 32, views, torch.Generator().manual_seed(0))
    shares = drawn.boxes[:, 2:].prod(dim=1) / 1024
    # whole pixels: a crop may be a little smaller than the smallest share
    assert shares.min().item() == pytest.approx(sheet.crop, rel=0.07) and shares.max() == 1
    for coins, probability in ((drawn.flip, 0.5), (drawn.jitter, 0.8), (drawn.gray, 0.2)):
        assert coins.float().mean() == pytest.approx(probability, abs=0.02)
    reach = (drawn.factors - torch.tensor([1.0, 1.0, 1.0, 0.0])).abs().amax(dim=0)
    assert reach.tolist() == pytest.approx(sheet.jitter, rel=0.01)


@each
def test_the_learning_rate_is_the_authors(name: str) -> None:
    sheet, settings, steps = SHEETS[name], settings_of(name), 97
    schedule = settings.optimizer.schedule(settings.world.make_plan(steps))
    rates = [schedule(step) for step in range(0, settings.optimizer.epochs * steps, steps)]
    assert settings.optimizer.peak_lr == sheet.lr == max(rates)
    (first, last), final = sheet.ends, schedule(settings.optimizer.epochs * steps - 1)
    assert first is None or rates[0] == pytest.approx(first)
    # by the epoch, the cosine would be at its end in the epoch after the last
    assert last is None or final == pytest.approx(last, abs=4e-4 * sheet.lr)
    if sheet.warmup is not None:
        assert rates[sheet.warmup] == pytest.approx(sheet.lr, rel=1e-4)
        before, after = rates[: sheet.warmup], rates[sheet.warmup :]
        assert all(a < b for a, b in pairwise(before)) and all(a > b for a, b in pairwise(after))
    if sheet.by_epoch is not None:
        assert (schedule(3 * steps) == schedule(4 * steps - 1)) == sheet.by_epoch


def tiny_learner(name: str, folder: Path) -> TargetLearner:
    """The learner of a run, but for its widths."""
    settings = settings_of(name)
    own: dict[str, Any] = {"width": 2, "projector_hidden": 8, "projector_dim": 8, "neck": min(8, settings.network.neck)}
    if name in TEACHERS:
        mean, std = NORMALIZATIONS[settings.network.normalization]
        sizes: dict[str, Any] = {"arch": settings.network.arch, "width": 2, "stem": settings.network.stem}
        sizes |= {"mean": mean, "std": std, "projector_hidden": 8, "projector_dim": 8}
        sizes["projector"] = settings.network.projector if name == "profeat" else "acl"
        teacher = build_network(torch.Generator().manual_seed(0), routes=("normal",), **sizes)
        payload = {"step": 0, "epoch": 0.0, "evaluation_route": "normal", "network": describe_network(teacher)}
        own["teacher"] = str(save_checkpoint(folder / "teacher.pt", "encoder", payload))
    tiny = settings.replace(**own)
    return build_learner(tiny.world, Streams(0), tiny.world.make_plan(97))


@pytest.mark.slow
@each
def test_the_optimiser_moves_every_tensor_as_the_authors_does(name: str, tmp_path: Path) -> None:
    sheet, learner = SHEETS[name], tiny_learner(name, tmp_path)
    rule, optimizer = sheet.rule, learner.optimizer
    modules = nn.ModuleList([learner.network, learner.heads]).double()
    tensors = {key: tensor for key, tensor in modules.named_parameters() if tensor.requires_grad}
    assert type(optimizer) is rule.kind
    # ProFeAT's projector is never trained
    assert len(tensors) == sum(part.requires_grad for group in optimizer.param_groups for part in group["params"])
    trained = [head for head in learner.heads.values() if any(part.requires_grad for part in head.parameters())]
    heads = [name in CONSTANT for _ in trained]
    assert [bool(group.get("constant_lr")) for group in optimizer.param_groups[1:]] == heads
    for group in optimizer.param_groups:
        assert (group["lr"], group["momentum"], group["weight_decay"]) == (sheet.lr, 0.9, sheet.weight_decay)
    # two steps from weights of 1 with slopes of 1, where LARS's ratio is its trust coefficient
    moved = []
    for _ in range(2):
        for tensor in tensors.values():
            tensor.data.fill_(1)
            tensor.grad = torch.ones_like(tensor)
        optimizer.step()
        moved.append({key: 1 - tensor.detach() for key, tensor in tensors.items()})
    for key, tensor in tensors.items():
        # excluded are biases and batch norm, the tensors of one dimension
        if rule.wraps and tensor.ndim == 1:
            update = sheet.lr
        elif rule.trust is None:
            update = sheet.lr * (1 + sheet.weight_decay)
        else:
            # clipped, the ratio is divided by the rate first, since that is far above the trust coefficient
            update = rule.trust * (1 if rule.wraps else sheet.lr)
        # velocities are 1 and 1.9 times the update; Nesterov's momentum looks one step ahead
        factors = (1.9, 2.71) if rule.nesterov else (1.0, 1.9)
        for found, factor in zip(moved, factors, strict=True):
            expected = torch.full_like(tensor, update * factor)
            torch.testing.assert_close(found[key], expected, rtol=1e-7, atol=1e-12)
    # a rate a tenth as large tells whether it is a part of the velocity, which is 1.9 times the update by now
    for group in optimizer.param_groups:
        group["lr"] *= 0.1
    for tensor in tensors.values():
        tensor.data.fill_(1)
        tensor.grad = torch.ones_like(tensor)
    optimizer.step()
    if rule in (ACL_LARS, TORCHLARS):
        factor = 0.9 * 1.9 + 0.1 if rule is ACL_LARS else 0.1 * (0.9 * 1.9 + 1)
        for tensor in tensors.values():
            expected = torch.full_like(tensor, 1e-3 * sheet.lr * factor)
            torch.testing.assert_close(1 - tensor.detach(), expected, rtol=1e-5, atol=1e-12)


def test_astras_run_is_paid_as_released() -> None:
    settings = settings_of("astra")
    paid = (settings.reward.reward_adversarial, settings.reward.reward_clean, settings.reward.reward_mixed)
    assert paid == (pytest.approx(1 / 3), pytest.approx(1 / 3), 0)
    assert (settings.agent.agent, settings.reward.reward_scope, settings.run.seed) == ("reinforce-paper", "batch", 3407)
    assert (settings.reward.reward_cost, settings.reward.reward_lookahead, settings.reward.reward_progress) == (0, 0, 0)
