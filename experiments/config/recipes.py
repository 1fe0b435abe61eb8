"""Each method's own settings: its authors' for their data set, with the exceptions named here, and scaled down for the
small presets."""

from collections.abc import Mapping
from typing import Any

from astra_gym.ssl_core.models.backbones.timm_vit import is_vit


def _projector(kind: str, hidden: int, outputs: int) -> dict[str, Any]:
    return {"projector": kind, "projector_hidden": hidden, "projector_dim": outputs}


SOLO_LEARN = {
    "stem": "cifar-padded",
    "crop_scale": (0.08, 1.0),
    "normalization": "cifar",
    "batch_size": 256,
    "weight_decay": 1e-5,
    "final_lr": 0.0,
}
"""Settings shared by solo-learn's targets on CIFAR."""
SOLO_LARS = {**SOLO_LEARN, "optimizer": "lars-excluded", "lr": 0.3, "warmup_start": 1e-4}
ASYMMETRIC = {"jitter": (0.4, 0.4, 0.2, 0.1), "solarize": 0.2}
"""The colors of views that differ in solarization alone, in solo-learn."""
DISTILLATION = {
    "optimizer": "sgd-classic",
    "lr": 0.5,
    "weight_decay": 5e-4,
    "batch_size": 256,
    "epochs": 100,
    "warmup_epochs": 10,
    "warmup_start": 0.006,
    "final_lr": 0.0,
    "lr_interval": "epoch",
    "stem": "cifar-padded",
    "normalization": "cifar",
    "projector": "none",
}
EMP = {
    "optimizer": "lars-emp",
    "lr": 0.3,
    "weight_decay": 1e-4,
    "batch_size": 100,
    "warmup_epochs": 0,
    "final_lr": 0.0,
    "neck": 4096,
    **_projector("mlp", 4096, 1024),
    "normalization": "none",
    "jitter": (0.4, 0.4, 0.4, 0.2),
    "interpolation": "bilinear",
}
ACL = {"projector_hidden": 512}
DYNACL = {**ACL, "interpolation": "bilinear", "lr_interval": "epoch"}

AUTHORS: Mapping[str, Mapping[str, Any]] = {
    "simclr": ACL,
    "acl": ACL,
    "rocl": {
        "optimizer": "lars-torchlars",
        "lr": 1.5,
        "warmup_start": 0.16,
        "final_lr": 0.0,
        "lr_interval": "epoch",
        **_projector("rocl", 2048, 128),
        "normalization": "none",
        "crop_scale": (0.08, 1.0),
        "interpolation": "bilinear",
    },
    "advcl": {
        "optimizer": "sgd-classic",
        "lr": 0.5,
        "warmup_start": 0.02,
        "final_lr": 5e-4,
        "weight_decay": 1e-4,
        **_projector("advcl", 512, 128),
        "normalization": "none",
        "crop_scale": (0.2, 1.0),
        "interpolation": "bilinear",
    },
    "deacl": DISTILLATION,
    "dynacl": DYNACL,
    "dynacl++": DYNACL,
    "acl-air": ACL,
    "dynacl-air": ACL,
    "dynacl-air++": {**ACL, "post_kwargs": {"clusters": 0}},
    "taro": {
        "optimizer": "sgd-classic",
        "lr": 0.06,
        "weight_decay": 5e-4,
        "epochs": 800,
        "warmup_epochs": 5,
        "final_lr": 0.0,
        **_projector("simsiam-2", 2048, 2048),
        "normalization": "none",
        "crop_scale": (0.08, 1.0),
        "jitter": (0.4, 0.4, 0.2, 0.1),
    },
    "daq-sdp": {**DISTILLATION, "arch": "resnet34"},
    # the released run is of another network and data set (a WRN-34-10 on CIFAR-100), which no other sheet is known for
    "profeat": {
        **DISTILLATION,
        "weight_decay": 3e-4,
        "warmup_start": 0.02,
        "final_lr": 5e-4,
        "lr_interval": "update",
        **_projector("rocl", 2048, 256),
    },
    # for CLIP on ImageNet: the same number of updates; the rate is for its features, and has to be tuned for others
    "fare": {
        "optimizer": "adamw",
        "lr": 1e-5,
        "weight_decay": 1e-4,
        "batch_size": 128,
        "epochs": 51,
        "warmup_epochs": 4,
        "final_lr": 0.0,
        "projector": "none",
    },
    "emp-ssl": {**EMP, "epochs": 30},
    "cf-amc-ssl": {**EMP, "epochs": 10},
    "byol": {
        **SOLO_LEARN,
        **ASYMMETRIC,
        "optimizer": "lars-excluded",
        "lr": 1.0,
        "warmup_start": 3e-5,
        **_projector("mlp", 4096, 256),
        "method_kwargs": {"predictor_hidden": 4096},
    },
    "simsiam": {
        **SOLO_LEARN,
        "optimizer": "sgd-classic",
        "lr": 0.5,
        "warmup_start": 6e-5,
        "blur": 0.5,
        **_projector("simsiam-3", 2048, 2048),
        "method_kwargs": {"predictor_hidden": 512},
    },
    "moco": {
        **SOLO_LEARN,
        "optimizer": "sgd-classic",
        "lr": 0.3,
        "warmup_start": 1e-4,
        "weight_decay": 1e-4,
        "temperature": 0.2,
        "blur": 0.5,
        **_projector("rocl", 2048, 256),
    },
    "mocov3": {
        **SOLO_LARS,
        **ASYMMETRIC,
        "weight_decay": 1e-6,
        "temperature": 0.2,
        **_projector("simsiam-2", 4096, 256),
    },
    "swav": {
        **SOLO_LARS,
        "lr": 0.6,
        "warmup_start": 5e-5,
        "weight_decay": 1e-6,
        "temperature": 0.1,
        "jitter": (0.8, 0.8, 0.8, 0.2),
        "blur": 0.5,
        **_projector("mlp", 2048, 128),
    },
    "barlow": {**SOLO_LARS, **ASYMMETRIC, "weight_decay": 1e-4, **_projector("mlp-3", 2048, 2048)},
    "dino": {**SOLO_LARS, **ASYMMETRIC, "weight_decay": 1e-6, "temperature": 0.1, "projector": "none"},
    # solo-learn solarizes a tenth of both views; here it is a fifth of the second ones
    "vicreg": {
        **SOLO_LARS,
        **ASYMMETRIC,
        "weight_decay": 1e-4,
        "crop_scale": (0.2, 1.0),
        **_projector("mlp-3", 2048, 2048),
    },
}
"""What a method changes in the preset `cifar10`, which is ASTrA's: its authors' settings, from their code. `simclr` is
as in ACL. The clean form of a method, NAME-clean, has the settings of NAME.

Released codes differ by one update or epoch, or by less than two hundredths of the peak. Here a warm-up that changes
the rate in every update reaches its peak in the first update after it, and one that changes it in every epoch in its
last epoch. The cosine spans the epochs after the warm-up (the whole run in AdvCL, TARO and RoCL) and changes the rate
as often as the warm-up (every epoch in AdvCL). RoCL's code changes colors before the crop, and solo-learn's flips last;
solo-learn's blur is Pillow's, see `transforms.blur`."""

KEEP_LAST = ("acl", "dynacl", "dynacl++", "acl-air", "dynacl-air", "dynacl-air++")
"""Methods whose released code trains on the last, smaller batch of an epoch too; the other codes leave it out."""

MOMENTUM = 0.9
"""Momentum of a moving average in the small presets. The authors' 0.99 averages over 100 updates, half of the 220 that
these presets make, so that the averaged network, DynACL's encoder, would lag behind."""
POST = {"post_kwargs": {"epochs": 5, "batch_size": 128, "lr": 0.05}}
DIGITS_POST = {"post_kwargs": {**POST["post_kwargs"], "augment": False}}

SMALL: Mapping[str, Mapping[str, Any]] = {
    "rocl": {"projector": "rocl"},
    "advcl": {"projector": "advcl"},
    "deacl": {"projector": "none"},
    "taro": {"projector": "simsiam-2", "method_kwargs": {"predictor_hidden": 64}},
    "daq-sdp": {"projector": "none"},
    "fare": {"projector": "none"},
    "emp-ssl": {"neck": 128, "projector": "mlp", "method_kwargs": {"crops": 4}},
    "cf-amc-ssl": {"neck": 128, "projector": "mlp", "method_kwargs": {"crops": 4}},
    "byol": {"projector": "mlp", "method_kwargs": {"predictor_hidden": 64, "momentum_start": MOMENTUM}},
    "dynacl": {"method_kwargs": {"ema": MOMENTUM}},
    "simsiam": {"projector": "simsiam-2", "method_kwargs": {"predictor_hidden": 64}},
    "moco": {
        "projector": "rocl",
        "temperature": 0.2,
        "method_kwargs": {"queue_size": 512, "momentum_start": MOMENTUM, "momentum_end": 0.99},
    },
    "mocov3": {
        "projector": "simsiam-2",
        "temperature": 0.2,
        "method_kwargs": {"predictor_hidden": 128, "momentum_start": MOMENTUM},
    },
    "swav": {
        "projector": "mlp",
        "temperature": 0.1,
        "method_kwargs": {"prototypes": 128, "queue_size": 256, "queue_epochs": 2, "freeze_epochs": 1},
    },
    # .0051 for embeddings of 2048, times 2047 / 127 for these of 128
    "barlow": {"projector": "mlp-3", "method_kwargs": {"lambda_param": 0.0822}},
    # in so few updates a teacher's temperature of .07, not .04, leaves all images alike
    # with the other methods' rate, or a teacher that follows faster, attacks soon gain nothing: all outputs are alike
    "dino": {
        "projector": "none",
        "temperature": 0.1,
        "lr": 0.01,
        "method_kwargs": {
            "hidden": 128,
            "bottleneck": 64,
            "prototypes": 256,
            "momentum_start": 0.99,
            "teacher_temperature": 0.04,
        },
    },
    "vicreg": {"projector": "mlp-3"},
    "dynacl++": {"method_kwargs": {"ema": MOMENTUM}, **POST},
    **dict.fromkeys(("astra++", "dynacl-air++"), POST),
}
"""What a method changes in the small presets (digits, digits-grid, folder, cifar10-quick): the kind of its head, scaled
to their networks, and the length of a post-processing. The preset sets the rest, alike for every method: optimizer,
learning rate, epochs, batch, augmentations, normalization."""


def fitting(usual: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the usual settings without those that the given backbone does not have: a ViT's width and stem."""
    without = ("width", "stem") if is_vit(str(given.get("arch", ""))) else ()
    return {name: value for name, value in usual.items() if name not in without}


def with_options(own: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the given settings; their options by name (`method_kwargs`, `post_kwargs`) are added to the recipe's."""
    options = {
        name: {**own[name], **given[name]}
        for name in ("method_kwargs", "post_kwargs")
        if own.get(name) and given.get(name)
    }
    return {**given, **options}


def recipe(preset: str, method: str) -> dict[str, Any]:
    """Return what `method` changes in the settings of `preset`; nothing for a custom method."""
    chosen = (AUTHORS if preset == "cifar10" else SMALL).get(method.removesuffix("-clean"), {})
    # digits fill their frame, so a random crop would cut off what distinguishes them
    post = DIGITS_POST if preset.startswith("digits") and "post_kwargs" in chosen else {}
    return {**chosen, **post}
