"""Instances of a whole training, for `ASTrA/TrainingRun-v0`: which world, which images, how much compute."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from astra_gym.envs.world_config import WorldSettings
from astra_gym.ssl_core.data.image_set import Split
from astra_gym.ssl_core.data.labels import divided, required_labels
from astra_gym.ssl_core.utils.finite import check_number
from astra_gym.ssl_core.utils.messages import shown
from astra_gym.ssl_core.utils.registry import pick
from astra_gym.ssl_core.utils.rng import Streams

PARTS = ("train", "test")
"""Halves of a data set's training images: instances that agents train on, and those they are scored on, share none."""
SEEDS = 1_000_000
"""Worlds of test instances have seeds from here on, those of training instances lie below."""


@dataclass(frozen=True)
class Instance:
    """A training to be run: data, method, size, judge and passes; with a seed it is one episode.

    Args:
        part: which half of the training images it has, one of `PARTS`.
        images: number of images that are trained on, at most.
        world: settings of the world by name, as `WorldSettings`, with `passes`, `judge_epsilon` and `judge_score`.

    Raises:
        ValueError: if the part is unknown, there are too few images, or a setting is wrong or missing.
    """

    part: str
    images: int
    world: Mapping[str, Any]

    def __post_init__(self) -> None:
        pick(self.part, dict.fromkeys(PARTS, ""), "part")
        check_number("images", self.images, 2, whole=True)
        for name in ("passes", "judge_epsilon"):
            if self.world.get(name) is None:
                raise ValueError(f"an instance has no {name}: expected the training's passes and its judged radius")
        self.settings  # noqa: B018

    @property
    def settings(self) -> WorldSettings:
        """The world's settings."""
        return WorldSettings.given(**self.world)

    def data(self, train: Split) -> Split:
        """Return the images that are trained on, and as test images those of the probe; none is a test image.

        Args:
            train: the data set.

        Raises:
            ValueError: if there are no labels, or too few images.
        """
        required_labels(train.train, "the score of an episode")
        order = torch.randperm(len(train.train), generator=Streams(0)["instances/rows"])
        half = order.tensor_split(2)[PARTS.index(self.part)]
        parts = divided(train.train.rows(half, f"{self.part} part"))
        few = torch.arange(min(self.images, len(parts.train)))
        return Split(parts.train.rows(few, "trained on"), parts.test)


_WIDE = {
    "action_epsilons": {"from": 0, "to": 96 / 255, "by": 4 / 255},
    "action_steps": (0, 1, 2, 4, 8, 14),
    "action_step_sizes": tuple(2**power / 255 for power in range(7)),
}
_SMALL = _WIDE | {
    "arch": "resnet10",
    "width": 16,
    "projector_hidden": 128,
    "projector_dim": 128,
    "judge_score": "mean",
}
_DIGITS = _SMALL | {
    "dataset": "digits",
    "image_size": 8,
    "batch_size": 32,
    "epochs": 4,
    "lr": 0.0221,
    "strength": 0.231,
}
_CIFAR10 = _SMALL | {
    "dataset": "cifar10",
    "download": False,
    "image_size": 16,
    "batch_size": 64,
    "epochs": 4,
    "lr": 0.0162,
    "strength": 0.529,
    "flip": 0.5,
}


def _digits(part: str, images: int, method: str, radius: int, passes: float) -> Instance:
    given = {"method": method, "judge_epsilon": radius / 255, "passes": passes}
    return Instance(part, images, _DIGITS | given)


def _cifar10(part: str, images: int, method: str, radius: int, passes: float, data_dir: str | None) -> Instance:
    given = {"method": method, "judge_epsilon": radius / 255, "passes": passes, "data_dir": data_dir}
    return Instance(part, images, _CIFAR10 | given)


INSTANCES: dict[str, dict[str, Instance]] = {
    "train": {
        "digits-astra-8": _digits("train", 574, "astra", 8, 900.0),
        "digits-astra-24": _digits("train", 574, "astra", 24, 900.0),
        "digits-acl-8": _digits("train", 574, "acl", 8, 900.0),
        "digits-acl-24": _digits("train", 574, "acl", 24, 900.0),
        "digits-few-astra-8": _digits("train", 288, "astra", 8, 900.0),
        "digits-few-astra-24": _digits("train", 288, "astra", 24, 900.0),
    },
    "test": {
        "digits-astra-16": _digits("test", 574, "astra", 16, 900.0),
        "digits-astra-32": _digits("test", 574, "astra", 32, 900.0),
        "digits-acl-16": _digits("test", 574, "acl", 16, 900.0),
        "digits-few-astra-16": _digits("test", 288, "astra", 16, 900.0),
        "digits-dynacl-16": _digits("test", 574, "dynacl", 16, 900.0),
    },
}
"""The named sets of instances: no image, no seed and no judged radius is in both."""


def cifar10_instances(data_dir: str | None) -> dict[str, dict[str, Instance]]:
    """Return the instances of CIFAR-10 at 16 x 16 pixels that `INSTANCES` has too if the data are at hand; as there, no
    image, no seed and no judged radius is in both sets.

    Args:
        data_dir: folder into which the archive of CIFAR-10 is unpacked; nothing is downloaded.
    """
    return {
        "train": {
            "cifar10-astra-2": _cifar10("train", 8000, "astra", 2, 2400.0, data_dir),
            "cifar10-acl-8": _cifar10("train", 8000, "acl", 8, 2400.0, data_dir),
            "cifar10-few-astra-8": _cifar10("train", 2000, "astra", 8, 1200.0, data_dir),
        },
        "test": {
            "cifar10-astra-4": _cifar10("test", 8000, "astra", 4, 2400.0, data_dir),
            "cifar10-few-acl-4": _cifar10("test", 2000, "acl", 4, 1200.0, data_dir),
            "cifar10-few-dynacl-6": _cifar10("test", 2000, "dynacl", 6, 1200.0, data_dir),
        },
    }


def instances_called(name: str | Mapping[str, Instance], data_dir: str | None = None) -> dict[str, Instance]:
    """Return a set of `INSTANCES`, with those of CIFAR-10 if its folder is given, or the given set; its instances share
    an action space.

    Raises:
        ValueError: if the name is unknown, or the set is empty, has other things, or actions that differ; or a folder
            is given for instances that say themselves where their data are.
    """
    if isinstance(name, str):
        found = pick(name, INSTANCES, "set of instances")
        return found if data_dir is None else found | cifar10_instances(data_dir)[name]
    if data_dir is not None:
        raise ValueError(f"data_dir is {shown(data_dir)}: your own instances have it among their world's settings")
    found = dict(name) if isinstance(name, Mapping) else {}
    if not found or not all(isinstance(each, Instance) for each in found.values()):
        raise ValueError(f"instances is {shown(name)}: expected instances by name, or one of {', '.join(INSTANCES)}")
    if len({each.settings.ranges.sets for each in found.values()}) > 1:
        raise ValueError("the instances differ in what actions choose among: give all the same action_epsilons, ...")
    return found
