"""The authors' own settings on CIFAR-10, typed by hand from notes on their released codes, whose sections are named.

What the notes do not say is None.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import torch

from astra_gym.ssl_core.training.optim import LARS, WrappedLARS

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CIFAR = ((0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261))
PIXELS = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
"""No normalization of the input."""
DUAL = ("normal", "pgd")
TEACHERS = ("advcl", "deacl", "daq-sdp", "profeat")


@dataclass(frozen=True)
class Rule:
    """What an optimizer makes of a tensor: its class, whether the momentum of .9 is Nesterov's, LARS's trust
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
        rule, lr, weight_decay, batch_size, epochs: the optimizer, its peak rate, and how long it trains.
        projector: its layers, with what follows each; "shared" is one batch norm for all routes, "plain" one without
            scale and shift.
        warmup, ends: epochs of linear warm-up; the rate of the first update, and where the cosine goes.
        by_epoch: whether the rate changes once an epoch only.
        blocks, padding, normalization: residual blocks, the stem's padding, mean and deviation within the network.
        routes, evaluated: batch-norm routes; the network that is evaluated, and its route.
        crop, jitter, interpolation: of strong views; the crop's smallest share of the area.
        budget: epsilon, step size and steps of the method's own attack.
        mode, start: of the network under attack; radius of the random start, None: epsilon itself.
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
    mode: str = "eval"
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
    mode="train",
    start=0.0,
    options={"crops": 16, "patches": False, "invariance": 200.0, "epsilon": 0.2},
    weights={"adversarial": 1.0},
)
# section 14: solo-learn's CIFAR settings. Layers of the heads, the stem, crops, colors and the constant rate of
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
        options={"temperature": 0.5, "regularizer": 256.0},
        weights={"contrastive": 1.0, "regularizer": 1 / 256},
    ),
    "advcl": Sheet(
        *(SGD, 0.5, 1e-4, 512, 1000, "512 shared BN ReLU, 128"),
        ends=(0.01, 5e-4),
        routes=("normal", "pgd", "pgd_ce"),
        evaluated=("target", "pgd"),
        crop=0.2,
        mode="train",
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
# second sheet, M1.0: solo-learn's other targets on CIFAR
MORE: dict[str, Any] = SOLO | {"warmup": 10, "ends": (3e-5, 0.0), "by_epoch": False}
BOTH_MLPS = "2048 BN ReLU, 2048 BN ReLU, 2048"
ASYMMETRIC = (0.4, 0.4, 0.2, 0.1)
SHEETS |= {
    "moco": Sheet(
        *(SGD, 0.3, 1e-4, 256, 1000, "2048 ReLU, 256"),
        options={"temperature": 0.2, "queue_size": 32768, "momentum_start": 0.99, "momentum_end": 0.999},
        **MORE,
    ),
    "mocov3": Sheet(
        *(SOLO_LARS, 0.3, 1e-6, 256, 1000, "4096 BN ReLU, 256 plain BN"),
        jitter=ASYMMETRIC,
        options={"temperature": 0.2, "momentum_start": 0.99},
        **MORE,
    ),
    "barlow": Sheet(
        *(SOLO_LARS, 0.3, 1e-4, 256, 1000, BOTH_MLPS),
        jitter=ASYMMETRIC,
        options={"lambda_param": 0.0051, "scale_loss": 0.1},
        **MORE,
    ),
    "vicreg": Sheet(
        *(SOLO_LARS, 0.3, 1e-4, 256, 1000, BOTH_MLPS),
        jitter=ASYMMETRIC,
        options={"sim_coeff": 25.0, "std_coeff": 25.0, "cov_coeff": 1.0},
        **(MORE | {"crop": 0.2}),
    ),
    "dino": Sheet(
        *(SOLO_LARS, 0.3, 1e-6, 256, 1000, ""),
        jitter=ASYMMETRIC,
        options={"hidden": 2048, "bottleneck": 256, "prototypes": 4096, "temperature": 0.1}
        | {"teacher_temperature": 0.07, "teacher_warmup": 0, "center_momentum": 0.9, "momentum_start": 0.9995}
        | {"freeze_epochs": 1, "local_crops": 0},
        **MORE,
    ),
    "swav": Sheet(
        *(SOLO_LARS, 0.6, 1e-6, 256, 1000, "2048 BN ReLU, 128"),
        jitter=(0.8, 0.8, 0.8, 0.2),
        options={"prototypes": 3000, "temperature": 0.1, "epsilon": 0.05, "iterations": 3}
        | {"queue_size": 3840, "queue_epochs": 50, "freeze_epochs": 2},
        **MORE,
    ),
}
# second sheet, M2: settings of the WRN-34-10 on CIFAR-100; those of a ResNet-18 are not released. The sheet has the
# projector's layers, and its widths are those of our teacher's
SHEETS["profeat"] = replace(
    DISTILLED,
    weight_decay=3e-4,
    projector="2048 ReLU, 256",
    ends=(0.01, 5e-4),
    by_epoch=False,
    options={"trades_weight": 8.0, "scratch": False, "projection_weight": 0.5},
    weights={"clean": 1.0, "adversarial": 8.0},
)
NECKS = {"emp-ssl": "4096 BN ReLU", "cf-amc-ssl": "4096 BN ReLU"}
PREDICTORS = {"taro": "512 BN ReLU, 2048", "byol": "4096 BN ReLU, 256", "simsiam": "512 BN ReLU, 2048"}
PREDICTORS |= {"mocov3": "4096 BN ReLU, 256"}
CONSTANT = ("taro", "simsiam")
"""Whose predictor keeps its learning rate."""
FILTERED = {"emp-ssl": (0.1, 0.1), "cf-amc-ssl": (0.1, 0.1), "byol": (0.0, 0.2), "simsiam": (0.5, 0.0)}
FILTERED |= {"moco": (0.5, 0.0), "swav": (0.5, 0.0)} | dict.fromkeys(("mocov3", "barlow", "dino", "vicreg"), (0.0, 0.2))
"""Probabilities of a blur and of solarisation, where they are not 0; only second views are solarised. VICReg's authors
solarise a tenth of both: as often."""
