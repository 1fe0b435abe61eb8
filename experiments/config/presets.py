"""The presets: default settings of a run."""

from typing import Any

from astra_gym.envs.api.action_sets import WIDE_SETS

CIFAR10: dict[str, Any] = {
    "dataset": "cifar10",
    "image_size": 32,
    "arch": "resnet18",
    "width": 64,
    "epochs": 1000,
    "warmup_epochs": 10,
    "strength": 1.0,
    "flip": 0.5,
    "interpolation": "bicubic",
    "checkpoint_every": 5,
    "probe_every": 5,
    "images_every": 50,
    "probe_epochs": 25,
    "probe_lr": 0.01,
    "probe_batch_size": 512,
    "probe_augment": True,
    "eval_epsilons": (2 / 255, 4 / 255, 8 / 255),
}
"""Settings shared by the presets at the papers' size; the probe is DynACL's."""
TEACHER: dict[str, Any] = {
    **CIFAR10,
    "method": "simclr",
    "stem": "cifar-padded",
    "normalization": "cifar",
    "projector": "rocl",
    "projector_hidden": 2048,
    "projector_dim": 256,
    "batch_size": 256,
    "final_lr": 0.0,
    "temperature": 0.2,
    "crop_scale": (0.08, 1.0),
    "jitter": (0.8, 0.8, 0.8, 0.2),
}
"""Settings shared by the SimCLR teachers of DeACL and DAQ-SDP; a student starts from its teacher's weights."""
PRESETS: dict[str, dict[str, Any]] = {
    # the first run: few wide steps, whose price the reward counts, so that two cores train in about a minute
    "digits": {
        "probe_every": 2,
        "batch_size": 64,
        "epochs": 20,
        # found by tune.py --tune lr strength under one step of 32/255, see results/tuning/digits-lr-strength.json
        "lr": 0.0316,
        "strength": 0.362,
        "action_epsilons": {"from": 2 / 255, "to": 40 / 255, "by": 2 / 255},
        "action_steps": {"from": 1, "to": 10, "by": 1},
        "action_step_sizes": tuple(size / 255 for size in (1, 2, 3, 4, 5, 8, 12, 16, 24, 32)),
        "reward_cost": 0.05,
    },
    # ASTrA's ranges, few updates, accuracies far from both ends, for comparisons of many runs
    "digits-grid": {"batch_size": 64, "epochs": 10, "eval_epsilons": (8 / 255, 16 / 255, 24 / 255)},
    # attacks from none to far too hard, where the best constant is inside the ranges; small and fast, for many runs
    "digits-wide": {
        "image_size": 8,
        "batch_size": 32,
        "epochs": 4,
        # found by tune.py --tune lr strength, see results/tuning/digits-wide-lr-strength.json
        "lr": 0.0221,
        "strength": 0.231,
        "action_epsilons": {"from": 0, "to": 96 / 255, "by": 4 / 255},
        "action_steps": (0, 1, 2, 4, 8, 14),
        "action_step_sizes": WIDE_SETS.step_sizes,
        "eval_epsilons": (8 / 255, 16 / 255, 24 / 255, 32 / 255),
        "judge_epsilon": 24 / 255,
        "judge_score": "mean",
    },
    "cifar10-16": {
        "dataset": "cifar10",
        "image_size": 16,
        "limit": 10_000,
        "test_limit": 2000,
        "batch_size": 64,
        "epochs": 4,
        # found by tune.py --tune lr strength, see results/tuning/cifar10-16-lr-strength.json
        "lr": 0.0162,
        "strength": 0.529,
        "flip": 0.5,
        "probe_epochs": 25,
        **WIDE_SETS.by_setting,
        "eval_epsilons": (2 / 255, 4 / 255, 8 / 255),
        "judge_epsilon": 4 / 255,
        "judge_score": "mean",
    },
    "folder": {
        "dataset": "folder",
        "probe_every": 2,
        "probe_epochs": 25,
        "probe_lr": 0.1,
        "image_size": 32,
        "strength": 1.0,
        "flip": 0.5,
        "probe_augment": True,
    },
    "cifar10": {
        **CIFAR10,
        "projector_hidden": 2048,
        "projector_dim": 512,
        "batch_size": 512,
        "optimizer": "lars",
        "lr": 5.0,
        "weight_decay": 1e-6,
        "seed": 3407,
    },
    # SimCLR as solo-learn trains it on CIFAR-10: the first stage of DeACL
    "cifar10-teacher": {
        **TEACHER,
        "optimizer": "lars-excluded",
        "lr": 0.4,
        "weight_decay": 1e-4,
        "warmup_start": 7.5e-5,
        "blur": 0.5,
    },
    # the first stage of DAQ-SDP by its own code and README: by SGD, without a blur, on a ResNet-34
    "cifar10-teacher-daq": {
        **TEACHER,
        "arch": "resnet34",
        "optimizer": "sgd-classic",
        "lr": 0.5,
        "weight_decay": 1e-5,
        "warmup_start": 0.006,
        "lr_interval": "epoch",
    },
    "cifar10-quick": {
        "dataset": "cifar10",
        "image_size": 32,
        "probe_every": 2,
        "limit": 4000,
        "test_limit": 1000,
        "epochs": 10,
        "strength": 1.0,
        "flip": 0.5,
        "controls": True,
        "eval_epsilons": (2 / 255, 4 / 255, 8 / 255),
    },
}


def _instances(world: str, size: str, fewer: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return a world with wide ranges as it is and with fewer images, each judged at its own radius and at 8/255."""
    sizes = {world: PRESETS[world], f"{world}-{size}": PRESETS[world] | fewer}
    return sizes | {f"{name}-r8": values | {"judge_epsilon": 8 / 255} for name, values in sizes.items()}


INSTANCES = _instances("digits-wide", "half", {"limit": 718, "epochs": 8}) | _instances(
    "cifar10-16", "quarter", {"limit": 2500, "epochs": 8}
)
"""The presets with wide ranges and a judge: two data sets, two sizes, two judged radii."""
PRESETS |= INSTANCES


def usual_agent(preset: str, method: str) -> str:
    """Return the agent that `auto` stands for, if the method has an attack.

    The paper's own at the paper's size; for a user's images one that does not collapse in long runs
    (docs/found/long-runs.md).
    """
    if (preset, method) == ("folder", "astra"):
        return "escalating"
    return "reinforce-paper" if preset == "cifar10" else "reinforce"
