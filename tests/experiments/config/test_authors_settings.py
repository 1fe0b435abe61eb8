"""The preset cifar10 of every method with a published recipe, against a table that was typed by hand.

The table has the authors' own settings from notes on their released codes, whose sections are named, and nothing of the
recipes: what is compared with it is what a run is built from. What the notes do not say is None.
"""

from dataclasses import asdict, dataclass, field, replace
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
from astra_gym.ssl_core.training.optim import LARS, WrappedLARS
from astra_gym.ssl_core.transforms.views import draw_strong, draw_weak
from astra_gym.ssl_core.utils.rng import Streams

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CIFAR = ((0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261))
PIXELS = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
"""No normalization of the input."""
DUAL = ("normal", "pgd")
TEACHERS = ("advcl", "deacl", "daq-sdp")


@dataclass(frozen=True)
class Rule:
    """What an optimiser makes of a tensor: its class, whether the momentum of .9 is Nesterov's, LARS's trust
    coefficient, and whether it is a wrapper: one that clips ratios, and leaves biases and batch norm alone; `plain` is
    a wrapper that does neither, whose rate multiplies the velocity."""

    kind: type[torch.optim.Optimizer]
    nesterov: bool = False
    trust: float | None = None
    wraps: bool = False
    plain: bool = False


SGD = Rule(torch.optim.SGD)
ACL_LARS = Rule(LARS, trust=1e-3)
"""C1: all tensors, batch norm and biases included."""
TORCHLARS = Rule(WrappedLARS, trust=1e-3, plain=True)
"""Section 4: torchlars' LARS of trust .001 over SGD, of all tensors."""
EMP_LARS = Rule(WrappedLARS, nesterov=True, trust=0.005, wraps=True)
SOLO_LARS = Rule(WrappedLARS, trust=0.02, wraps=True)
"""eta 0.02, clip_lr and exclude_bias_n_norm of solo-learn's scripts/pretrain/cifar/byol.yaml."""


@dataclass(frozen=True)
class Sheet:
    """A method's published recipe on CIFAR-10.

    Args:
        rule, lr, weight_decay, batch_size, epochs: the optimiser, its peak rate, and how long it trains.
        projector: its layers, with what follows each; "shared" is one batch norm for all routes, "plain" one without
            scale and shift.
        warmup, ends: epochs of linear warm-up; the rate of the first update, and where the cosine goes.
        by_epoch: whether the rate changes once an epoch only.
        blocks, padding, normalization: residual blocks, the stem's padding, mean and deviation within the network.
        routes, evaluated: batch-norm routes; the network that is evaluated, and its route.
        crop, jitter, interpolation: of strong views; the crop's smallest share of the area.
        budget: epsilon, step size and steps of the method's own attack.
        attack_mode, start: of the network under attack; radius of the random start, None: epsilon itself.
        options, weights: of the method, and of its losses at the beginning.
    """

    rule: Rule
    lr: float
    weight_decay: float
    batch_size: int
    epochs: int
    projector: str
    warmup: int | None = 10
    ends: tuple[float | None, float | None] = (None, 0.0)
    by_epoch: bool | None = None
    blocks: int = 8
    padding: int | None = 1
    normalization: tuple[tuple[float, ...], tuple[float, ...]] | None = PIXELS
    routes: tuple[str, ...] | None = ("normal",)
    evaluated: tuple[str, str] | None = ("target", "normal")
    crop: float | None = None
    jitter: tuple[float, ...] = (0.4, 0.4, 0.4, 0.1)
    interpolation: str | None = None
    budget: tuple[float, float, int] | None = (8 / 255, 2 / 255, 5)
    attack_mode: str = "eval"
    start: float | None = None
    options: dict[str, Any] = field(default_factory=dict)
    weights: dict[str, float] | None = None


# C0 to C6: what ACL and its kin share; A(1) crops a tenth of the area or more
KIN = Sheet(
    *(ACL_LARS, 5.0, 1e-6, 512, 1000, "512 BN ReLU, 512 BN ReLU, 512 BN"),
    ends=(0.0, 1e-6),
    by_epoch=False,
    normalization=IMAGENET,
    routes=DUAL,
    evaluated=("target", "pgd"),
    crop=0.1,
    interpolation="bicubic",
    options={"temperature": 0.5},
    weights={"clean": 0.5, "adversarial": 0.5},
)
AIR = {"temperature": 0.5, "sir_weight": 0.5, "air_weight": 0.5, "form": "released"}
AIR_WEIGHTS = {"clean": 1.0, "adversarial": 1.0, "sir": 0.5, "air": 0.5}
# sections 6 and 11
DISTILLED = Sheet(
    *(SGD, 0.5, 5e-4, 256, 100, ""),
    ends=(0.003, 0.0),
    padding=2,
    normalization=CIFAR,
    options={"trades_weight": 2.0, "scratch": False},
    weights={"clean": 1.0, "adversarial": 2.0},
)
# section 12.2, the paper's slow arm; 0 is where its attack starts
EMP = Sheet(
    *(EMP_LARS, 0.3, 1e-4, 100, 30, "4096 BN ReLU, 1024"),
    warmup=0,
    ends=(0.3, 0.0),
    by_epoch=False,
    crop=0.08,
    jitter=(0.4, 0.4, 0.4, 0.2),
    budget=(8 / 255, 0.01, 5),
    attack_mode="train",
    start=0.0,
    options={"crops": 16, "patches": False, "invariance": 200.0, "epsilon": 0.2},
    weights={"adversarial": 1.0},
)
# section 14: solo-learn's CIFAR settings. Layers of the heads, the stem, crops, colours and the constant rate of
# SimSiam's predictor are from its code, of which the sheet has the widths alone; it attacks nothing, so has no routes
SOLO: dict[str, Any] = {"warmup": None, "padding": 2, "normalization": None, "routes": None, "evaluated": None}
SOLO |= {"budget": None, "crop": 0.08, "interpolation": "bicubic"}

SHEETS: dict[str, Sheet] = {
    "astra": replace(
        KIN,
        projector="2048 BN ReLU, 512 BN ReLU, 512 BN",
        start=8 / 255,
        options={"temperature": 0.5, "mixed_weight": 0.5, "mixed_reading": "pairs"},
        weights={"clean": 0.5, "adversarial": 0.5, "mixed": 0.5},
    ),
    "acl": replace(KIN, options={"temperature": 0.5, "streams": "ds"}),
    "rocl": Sheet(
        *(TORCHLARS, 1.5, 1e-6, 512, 1000, "2048 ReLU, 128"),
        crop=0.08,
        budget=(0.0314, 0.007, 7),
        options={"temperature": 0.5, "regulariser": 256.0},
        weights={"contrastive": 1.0, "regulariser": 1 / 256},
    ),
    "advcl": Sheet(
        *(SGD, 0.5, 1e-4, 512, 1000, "512 shared BN ReLU, 128"),
        ends=(0.01, 5e-4),
        routes=("normal", "pgd", "pgd_ce"),
        evaluated=("target", "pgd"),
        crop=0.2,
        attack_mode="train",
        options={"temperature": 0.5, "base_temperature": 0.07, "clusters": (2, 10, 50, 100, 500), "radius": 8.0},
        weights={"contrast": 1.0, "pseudo": 0.2},
    ),
    "deacl": DISTILLED,
    "dynacl": replace(
        KIN,
        ends=(0.5, 1e-6),
        by_epoch=True,
        interpolation="bilinear",
        evaluated=("momentum", "pgd"),
        options={"temperature": 0.5, "ema": 0.99, "reweighting": 2 / 3},
    ),
    "acl-air": replace(KIN, options=AIR, weights=AIR_WEIGHTS),
    "dynacl-air": replace(KIN, options=AIR | {"reweighting": 2 / 3}, weights=AIR_WEIGHTS),
    "taro": Sheet(
        *(SGD, 0.06, 5e-4, 512, 800, "2048 BN ReLU, 2048 plain BN"),
        warmup=5,
        crop=0.08,
        jitter=(0.4, 0.4, 0.2, 0.1),
        interpolation="bicubic",
        budget=(8 / 255, 2 / 255, 10),
        options={"similarity_weight": 1.0, "entropy_weight": 1.0, "w2": 1.0},
        weights={"clean": 1.0, "adversarial": 1.0, "mixed": 1.0},
    ),
    "daq-sdp": replace(
        DISTILLED,
        blocks=16,
        routes=("nature", "strongnature", "weak", "strong"),
        evaluated=("target", "weak"),
        # perturbed weights from epoch 60 of 100
        options={"trades_weight": 2.0, "scratch": False, "gamma": 0.002, "perturbed_from": 0.6},
        weights={"nature": 0.5, "strongnature": 0.5, "weak": 1.0, "strong": 1.0},
    ),
    "emp-ssl": EMP,
    # a batch's three replays, in all of which its crops move
    "cf-amc-ssl": replace(EMP, epochs=10, budget=(8 / 255, 0.01, 3), options=EMP.options | {"m": 3}),
    "byol": Sheet(
        *(SOLO_LARS, 1.0, 1e-5, 256, 1000, "4096 BN ReLU, 256"),
        jitter=(0.4, 0.4, 0.2, 0.1),
        options={"momentum_start": 0.99},
        **SOLO,
    ),
    "simsiam": Sheet(*(SGD, 0.5, 1e-5, 256, 1000, "2048 BN ReLU, 2048 BN ReLU, 2048 plain BN"), **SOLO),
}
NECKS = {"emp-ssl": "4096 BN ReLU", "cf-amc-ssl": "4096 BN ReLU"}
PREDICTORS = {"taro": "512 BN ReLU, 2048", "byol": "4096 BN ReLU, 256", "simsiam": "512 BN ReLU, 2048"}
CONSTANT = ("taro", "simsiam")
"""Whose predictor keeps its learning rate."""
FILTERED = {"emp-ssl": (0.1, 0.1), "cf-amc-ssl": (0.1, 0.1), "byol": (0.0, 0.2), "simsiam": (0.5, 0.0)}
"""Probabilities of a blur and of solarisation, where they are not 0; BYOL solarises second views alone."""
each = pytest.mark.parametrize("name", SHEETS)


def settings_of(name: str) -> Settings:
    teacher = ["--teacher=somewhere"] if name in TEACHERS else []
    return parse(["--preset=cifar10", f"--method={name}", "--data_dir=photographs", *teacher]).settings


def whole_network(settings: Settings) -> tuple[TargetNetwork, dict[str, Any]]:
    """The network of a run and its method's heads in full size, without weights."""
    method = settings.method.make()
    names = ("arch", "width", "stem", "projector", "projector_hidden", "projector_dim", "neck")
    with torch.device("meta"):
        network = TargetNetwork(routes=method.routes, **{name: getattr(settings.network, name) for name in names})
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
    (network, heads), routes = whole_network(settings), settings.method.make().routes
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
        assert (method.evaluated, method.evaluation_route) == sheet.evaluated
    if sheet.budget is not None:
        assert tuple(asdict(method.default_budget(1)).values()) == pytest.approx(sheet.budget)
        assert (method.attack_mode, method.start_radius) == (sheet.attack_mode, sheet.start)


@each
def test_batches_epochs_and_views_are_the_authors(name: str) -> None:
    sheet, settings = SHEETS[name], settings_of(name)
    assert (settings.optimizer.batch_size, settings.optimizer.epochs, settings.coreset.coreset) == (
        sheet.batch_size,
        sheet.epochs,
        "none",
    )
    method, views = settings.method.make(), settings.views.make()
    if name in ("deacl", "daq-sdp"):
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
        sizes = {"arch": settings.network.arch, "width": 2, "stem": settings.network.stem, "mean": mean, "std": std}
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
    tensors = dict(modules.named_parameters())
    assert type(optimizer) is rule.kind
    assert len(tensors) == sum(len(group["params"]) for group in optimizer.param_groups)
    heads = [name in CONSTANT] if learner.heads else []
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
