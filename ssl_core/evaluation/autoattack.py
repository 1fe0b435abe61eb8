"""AutoAttack by the library pyautoattack, batch by batch, so that a killed run resumes where it stopped."""

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pyautoattack import AutoAttack
from torch import Tensor, nn

from astra_gym.ssl_core.distributed.helping import divided
from astra_gym.ssl_core.evaluation.attack_library import attack_of, library_of, passes_of, targets_of
from astra_gym.ssl_core.evaluation.robustness import check_arguments, clean_accuracy, device_of, is_correct, logits_of
from astra_gym.ssl_core.evaluation.sanity import STAGES, SanityError
from astra_gym.ssl_core.models.encoder import held
from astra_gym.ssl_core.safety.sealing import read_json
from astra_gym.ssl_core.transforms.views import as_float
from astra_gym.ssl_core.utils.files import write_json
from astra_gym.ssl_core.utils.hashing import digest, tensor_digest
from astra_gym.ssl_core.utils.provenance import versions
from astra_gym.ssl_core.utils.registry import pick
from astra_gym.ssl_core.utils.rng import global_generators_kept

# the library's warnings of single zero gradients would break a progress display; `masking` counts them
logging.getLogger("auto-attack").addHandler(logging.NullHandler())

VERSIONS: Mapping[str, tuple[str, ...]] = {"standard": STAGES, "quick": STAGES[:2]}
"""Attacks of each version, in order; `quick` has the first two of the standard version."""
ORDER: Mapping[str, float] = {"Linf": torch.inf, "L2": 2, "L1": 1}
BATCH_SIZE = 100
"""Batch size of DynACL and ASTrA."""
TOLERANCE = 1e-5
STATE_SCHEMA = 2


@dataclass
class _Stage:
    """Progress of one attack: images it started with and images still right, bool (n,) each; batches and seconds."""

    started: Tensor
    right: Tensor
    batches: int = 0
    seconds: float = 0.0


def autoattack_accuracy(
    classifier: nn.Module,
    images: Tensor,
    labels: Tensor,
    epsilon: float,
    *,
    norm: str = "Linf",
    version: str = "standard",
    seed: int,
    batch_size: int = BATCH_SIZE,
    state_path: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
    finished: Callable[[str, float], None] | None = None,
) -> dict[str, Tensor]:
    """Find which images are still classified correctly after each attack of AutoAttack (Croce and Hein 2020).

    Per image the outcome is that of pyautoattack's `AutoAttack(classifier, norm=norm, eps=epsilon, seed=seed,
    version="standard", device=...).run_standard_evaluation(x, y, batch_size=batch_size)`: an attack sees only the
    images that survived those before it, in batches of their order. The library's own state would resume with other
    batches, and so with other random starts; with `state_path` this function resumes bit for bit. With fewer than ten
    classes the targeted attacks target all other classes, see `deviations`. Auto-PGD skips images that already fool the
    classifier, see `attack_library`.

    Args:
        classifier: images (n, 3, H, W) in [0, 1] -> logits (n, classes), in eval mode, four classes or more.
        images: uint8 (n, 3, H, W).
        labels: int64 (n,), below the number of classes.
        epsilon: radius above 0, in the unit of pixels in [0, 1]; with Linf at most 1.
        norm: Linf, L2 or L1.
        version: a name of `VERSIONS`.
        seed: seed of every batch's random starts, as in the library; 0 or more.
        batch_size: images attacked together; the random starts depend on it.
        state_path: file to save the state in after every batch, and to resume from; None: no file.
        progress: called after every batch with the work done and its maximum, which falls with every fooled image; both
            in forward passes of one image, see `passes_per_image`.
        finished: called with each attack's name and its seconds, including those of an earlier process.

    Returns:
        Bool (n,) for each attack, in order, on the CPU; the last one's mean is the robust accuracy.

    Raises:
        ValueError: if an argument is not as above, or the state is damaged or of another evaluation.
        RuntimeError: if a logit is not finite.
        SanityError: if an attacked image has left its ball or [0, 1].
    """
    names = pick(version, VERSIONS, "version of AutoAttack")
    check_radius(epsilon, norm)
    if type(seed) is not int or seed < 0 or type(batch_size) is not int or batch_size < 1:
        raise ValueError(f"expected integers seed >= 0 and batch_size >= 1, not {seed!r} and {batch_size!r}")
    check_arguments(classifier, images, labels)
    device = device_of(classifier)
    with _undisturbed(classifier):
        classes = logits_of(classifier, as_float(images[:1].to(device))).shape[1]
        work = passes_of(library_of(classifier, epsilon, norm, classes, seed, device), names)
        _check_images(images, labels, classes, norm)
        right = clean_accuracy(classifier, images, labels, batch_size)
        stages: dict[str, _Stage] = {}
        if state_path is not None:
            key = _key(classifier, images, labels, epsilon, norm, version, seed, batch_size)
            stages = _read(state_path, key, right)
        for name in names:
            stage = stages.setdefault(name, _Stage(right, right.clone()))
            rows_of = stage.started.nonzero().flatten().split(batch_size) if stage.started.any() else ()
            left = rows_of[stage.batches :]
            attack = partial(_is_right_attacked, classifier, epsilon, norm, classes, seed, name)
            outcomes = divided(attack, ((images[rows], labels[rows]) for rows in left))
            began = time.monotonic()
            for rows, still_right in zip(left, outcomes, strict=True):
                stage.right[rows] = still_right
                stage.batches += 1
                stage.seconds += time.monotonic() - began
                if state_path is not None:
                    _write(state_path, key, stages)
                if progress is not None:
                    progress(*_measure(stages, work, batch_size))
                began = time.monotonic()
            right = stage.right
            if finished is not None:
                finished(name, stage.seconds)
    return {name: stage.right for name, stage in stages.items()}


def check_state(
    classifier: nn.Module,
    images: Tensor,
    labels: Tensor,
    epsilon: float,
    *,
    norm: str = "Linf",
    version: str = "standard",
    seed: int,
    batch_size: int = BATCH_SIZE,
    state_path: Path,
) -> None:
    """Raise a ValueError if `autoattack_accuracy` would refuse the state; a missing file is accepted.

    For a caller that runs other attacks first. The arguments are those of `autoattack_accuracy`.
    """
    if not state_path.exists():
        return
    check_arguments(classifier, images, labels)
    with _undisturbed(classifier):
        key = _key(classifier, images, labels, epsilon, norm, version, seed, batch_size)
        _read(state_path, key, clean_accuracy(classifier, images, labels, batch_size))


def check_radius(epsilon: float, norm: str) -> None:
    """Raise a ValueError unless AutoAttack can search a ball of this radius and norm."""
    pick(norm, ORDER, "norm")
    if not (0 < epsilon <= 1 or (norm != "Linf" and 1 < epsilon < float("inf"))):
        raise ValueError(
            f"AutoAttack's epsilon in {norm} is {epsilon!r}: expected a radius above 0, as a fraction of the pixels' "
            "range (in Linf 8/255 and not 8); without a radius there is only the clean accuracy"
        )


def passes_per_image(norm: str, version: str, classes: int) -> int:
    """Forward passes for an image that survives every attack; raise a ValueError for fewer than four classes."""
    library = library_of(nn.Identity(), 1.0, norm, classes, 0, torch.device("cpu"))
    return sum(passes_of(library, VERSIONS[version]).values())


def deviations(attack: str, norm: str, classes: int) -> tuple[str, ...]:
    """Differences of the accuracy after `attack` from AutoAttack's standard version, for a number of classes.

    The targeted attacks have nine target classes, in L1 Auto-PGD five; with too few classes they target all others, as
    the library advises.
    """
    wanted = targets_of(AutoAttack(nn.Identity(), norm=norm, eps=1.0, version="standard", seed=0))
    order = VERSIONS["standard"]
    if all(wanted.get(name, 0) < classes for name in order[: order.index(attack) + 1]):
        return ()
    return (f"AutoAttack with {classes - 1} targets, the data have {classes} classes",)


def _is_right_attacked(
    classifier: nn.Module,
    epsilon: float,
    norm: str,
    classes: int,
    seed: int,
    name: str,
    batch: tuple[Tensor, Tensor],
) -> Tensor:
    """Attack images uint8 (n, 3, H, W) with labels (n,) by one attack; return whether each is right after it."""
    device = device_of(classifier)
    x, y = as_float(batch[0].to(device)), batch[1].to(device)
    with _undisturbed(classifier):
        library = library_of(classifier, epsilon, norm, classes, seed, device)
        with torch.no_grad():
            attacked = attack_of(library, name).perturb(x.clone(), y.clone())
        _check_attacked(attacked, x, epsilon, norm, name)
        return is_correct(classifier, attacked, y)


def _measure(stages: Mapping[str, _Stage], work: Mapping[str, int], batch_size: int) -> tuple[int, int]:
    """Work done, and total work if every image that is still right survives."""
    done = left = 0
    for name, stage in stages.items():
        began = int(stage.started.sum())
        attacked = min(stage.batches * batch_size, began)
        done, left = done + work[name] * attacked, left + work[name] * (began - attacked)
    survivors = int(stage.right.sum())
    return done, done + left + survivors * sum(cost for name, cost in work.items() if name not in stages)


def _check_images(images: Tensor, labels: Tensor, classes: int, norm: str) -> None:
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        raise ValueError(f"labels are in {low}..{high}: expected 0..{classes - 1}, as the classifier has logits")
    if norm != "Linf" and images.shape[2] < 5:
        raise ValueError(f"images are {images.shape[2]} pixels high: expected at least 5 for Square in {norm}")


def _check_attacked(attacked: Tensor, images: Tensor, epsilon: float, norm: str, name: str) -> None:
    difference = (attacked - images).flatten(1).double()
    distance = float(torch.linalg.vector_norm(difference, ORDER[norm], dim=1).max())
    low, high = float(attacked.min()), float(attacked.max())
    # float32 sums of a long L1 or L2 path lose digits in proportion to the radius; written so that NaN fails
    if not (distance <= epsilon + TOLERANCE * max(1, epsilon) and low >= -TOLERANCE and high <= 1 + TOLERANCE):
        raise SanityError(
            f"AutoAttack's {name} broke its own rules, so its accuracy would be void: {norm} distance {distance:g} "
            f"with epsilon {epsilon:g}, pixels in [{low:g}, {high:g}]"
        )


@contextmanager
def _undisturbed(classifier: nn.Module) -> Iterator[None]:
    """Hold the classifier, and restore the global generators, which the library seeds, and `requires_grad`."""
    learning = [parameter for parameter in classifier.parameters() if parameter.requires_grad]
    with global_generators_kept(), held(classifier):
        try:
            for parameter in learning:
                parameter.requires_grad_(False)
            yield
        finally:
            for parameter in learning:
                parameter.requires_grad_(True)


DIFFERENCES: Mapping[str, str] = {
    "model": "another model",
    "logits": "a model of equal weights that computes other logits (other code, machine, precision or threads)",
    "images": "other images",
    "labels": "other labels",
    "norm": "another norm",
    "epsilon": "another epsilon",
    "version": "another version of AutoAttack",
    "attacks": "another list of attacks",
    "seed": "another seed",
    "batch_size": "another batch size",
    "torch": "another version of torch",
    "pyautoattack": "another version of pyautoattack",
    "device": "another kind of device",
}
"""Inputs that determine an outcome, and the words for a difference in each."""


def _key(
    classifier: nn.Module,
    images: Tensor,
    labels: Tensor,
    epsilon: float,
    norm: str,
    version: str,
    seed: int,
    batch_size: int,
) -> dict[str, Any]:
    """Values of all inputs that determine the outcome, one for each of `DIFFERENCES`."""
    installed, device = versions(), device_of(classifier)
    logits = logits_of(classifier, as_float(images[:batch_size].to(device)))
    return {
        "norm": norm,
        "epsilon": float(epsilon),
        "version": version,
        "attacks": list(VERSIONS[version]),
        "seed": seed,
        "batch_size": batch_size,
        "model": digest(classifier),
        "logits": tensor_digest(logits),
        "images": tensor_digest(images),
        "labels": tensor_digest(labels),
        "torch": installed["torch"],
        "pyautoattack": installed["pyautoattack"],
        "device": device.type,
    }


def _seal(key: Mapping[str, Any], attacks: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps([key, attacks], sort_keys=True).encode()).hexdigest()


def _write(path: Path, key: Mapping[str, Any], stages: Mapping[str, _Stage]) -> None:
    attacks = {
        name: {
            "started": _marks(stage.started),
            "right": _marks(stage.right),
            "batches": stage.batches,
            "seconds": stage.seconds,
        }
        for name, stage in stages.items()
    }
    document = {"schema": STATE_SCHEMA, "key": key, "attacks": attacks, "seal": _seal(key, attacks)}
    write_json(path, document)


def _read(path: Path, key: Mapping[str, Any], clean: Tensor) -> dict[str, _Stage]:
    """Read the stages of a state; none if there is no file."""
    advice = "delete it, or give another path"
    try:
        document = read_json(path, advice)
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ValueError(f"AutoAttack's state {path} is damaged (it does not fit its SHA-256): {advice}") from error
    schema = document.get("schema") if isinstance(document, dict) else None
    if type(schema) is int and schema != STATE_SCHEMA:
        raise ValueError(f"AutoAttack's state {path} has schema {schema}, not {STATE_SCHEMA}: {advice}")
    try:
        found, attacks = document["key"], document["attacks"]
        intact = document["seal"] == _seal(found, attacks)
    except (KeyError, TypeError):
        intact = False
    if not intact:
        raise ValueError(f"AutoAttack's state {path} is damaged (its contents do not fit its seal): {advice}")
    differing = [name for name in DIFFERENCES if found.get(name) != key[name]]
    if differing and differing != ["logits"]:
        # other logits are only a consequence of the other differences
        differing = [name for name in differing if name != "logits"]
    if differing:
        words = []
        for name in differing:
            values = "" if name in ("model", "logits", "images", "labels") else f" ({found.get(name)}, not {key[name]})"
            words.append(DIFFERENCES[name] + values)
        raise ValueError(f"AutoAttack's state {path} is of another evaluation: {'; '.join(words)}. To go on, {advice}")
    stages = {
        name: _Stage(_flags(one["started"]), _flags(one["right"]), one["batches"], one["seconds"])
        for name, one in attacks.items()
    }
    if not torch.equal(next(iter(stages.values())).started, clean):
        raise ValueError(f"AutoAttack's state {path} is of a model that got other images right: {advice}")
    return stages


def _marks(flags: Tensor) -> str:
    return "".join(map(str, flags.int().tolist()))


def _flags(marks: str) -> Tensor:
    return torch.tensor([mark == "1" for mark in marks])
