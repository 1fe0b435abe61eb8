"""The subject of an evaluation: the encoder of a run, of our or another project's checkpoint, or a custom module."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from astra_gym.experiments.config.settings import Settings
from astra_gym.experiments.runs.run_folder import NO_DIGESTS, RunFolder
from astra_gym.ssl_core.data.image_digests import RunImages
from astra_gym.ssl_core.downstream.linear_probe import Classifier, PlainEncoder
from astra_gym.ssl_core.models.checkpoint import load_network
from astra_gym.ssl_core.models.foreign import load_foreign
from astra_gym.ssl_core.models.target_network import TargetNetwork
from astra_gym.ssl_core.utils.hashing import digest, tensor_digest
from astra_gym.ssl_core.utils.import_path import described, imported
from astra_gym.ssl_core.utils.messages import few

NO_ROUTE = "none"
ATTACKED_ROUTE = "pgd"
EXAMPLE = "my_module:build"
ANSWERED = 8
"""Number of images that show whether a custom module has changed."""


class FeaturesOnly(nn.Module):
    """A network without its untrained projector: only `features(images, route)`."""

    def __init__(self, network: TargetNetwork) -> None:
        super().__init__()
        self.network = network
        self.feature_dim = network.feature_dim

    def features(self, images: Tensor, route: str) -> Tensor:
        """Map images (n, 3, H, W) to features (n, feature_dim)."""
        return self.network.features(images, route)


class LikeImages(nn.Module):
    """A classifier with logits of the images' type, because AutoAttack keeps both in tensors of one type."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Map images (n, 3, H, W) to logits (n, classes)."""
        return self.model(images).to(images.dtype)


@dataclass(frozen=True)
class Subject:
    """An encoder and what an evaluation needs to know of it.

    Args:
        name: name for tables and folders.
        checkpoint: name of the encoder's state, for the rows: `last`, `epoch-0005`, or the file's name.
        encoder: module with `feature_dim` and `features(images, route)`; for a classifier, the module itself.
        route: batch-norm route on which the encoder is tested.
        clean_route: route of the clean images in full fine-tuning; `route` if there is only one.
        settings: settings of the encoder's run; None if it is of no run.
        notes: assumptions made in reading the encoder, in sentences.
        classifier: whether the module's outputs are logits already.
        classes: number of classes of a checkpoint's own classifier; None if it is not known.
        projector: whether the projector, if there is one, is trained.
        trained: the encoder's training images, if its run keeps digests of them.
        answers: digest of the outputs for some images, if the encoder's code is custom and may change; else empty.
    """

    name: str
    checkpoint: str
    encoder: nn.Module
    route: str
    clean_route: str
    settings: Settings | None = None
    notes: Sequence[str] = ()
    classifier: bool = False
    classes: int | None = None
    projector: bool = True
    answers: str = ""
    trained: RunImages | None = None
    digest: str = field(init=False)
    """SHA-256 of the encoder's weights and statistics."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "digest", digest(self.encoder))

    @property
    def deviations(self) -> tuple[str, ...]:
        """Departures of the route from the published protocol, which takes the route of attacked images."""
        network = self.encoder.encoder if isinstance(self.encoder, Classifier) else self.encoder
        routes = network.routes if isinstance(network, TargetNetwork) else ()
        if ATTACKED_ROUTE in routes and self.route != ATTACKED_ROUTE:
            return (f"route {self.route}, not {ATTACKED_ROUTE}",)
        return ()


def own(path: Path, device: torch.device) -> Subject:
    """Load the encoder of a run folder, or of a checkpoint of ours, in float32.

    A checkpoint in the folder `checkpoints` of a run has that run's settings.

    Raises:
        CheckpointError: if it is not a checkpoint of ours.
        ValueError: if the run's settings, or the digests of its images, cannot be read.
    """
    network, route = load_network(path, device, checks_images=False)
    folder = RunFolder.of(path)
    of_run = folder.config.is_file()
    settings, trained = (folder.settings(), folder.images()) if of_run else (None, None)
    name = folder.path.resolve().name if of_run else path.stem
    checkpoint = "last" if path.is_dir() else path.stem
    notes = (NO_DIGESTS,) if of_run and trained is None else ()
    clean = _clean_route(network, route)
    return Subject(name, checkpoint, network, route, clean, settings, notes, trained=trained)


def foreign(
    path: Path,
    device: torch.device,
    *,
    format: str,
    stem: str | None = None,
    route: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    classifier: bool = False,
) -> Subject:
    """Load a checkpoint of another project (`astra_gym.ssl_core.models.foreign.load_foreign`).

    Args:
        path, format, stem, route, mean, std: as for `load_foreign`.
        device: device of the module.
        classifier: whether the subject is the network with the file's own classifier; else it is the encoder.

    Raises:
        ValueError: as `load_foreign`, or if a classifier is asked for and the file has none.
    """
    found = load_foreign(path, format=format, stem=stem, route=route, mean=mean, std=std, device=device)
    network, clean = found.network.eval(), _clean_route(found.network, found.route)
    network.checks_images = False  # the data are checked once, and attacks keep them in range
    if not classifier:
        return Subject(path.stem, path.name, network, found.route, clean, notes=found.notes, projector=found.projector)
    if found.head is None:
        raise ValueError(
            f"{path} has no classifier: expected fc.weight (classes, {network.feature_dim}) and fc.bias, finite, "
            "beside the encoder; train one by another protocol, such as slf"
        )
    whole = Classifier(network, found.route, found.head)
    classes = found.head.out_features
    notes = (*found.notes, f"its {classes} classes are taken to be those of the data set, in the same order")
    return Subject(path.stem, path.name, whole, found.route, clean, notes=notes, classifier=True, classes=classes)


def _clean_route(network: TargetNetwork, route: str) -> str:
    """Return the route of clean images in full fine-tuning: where features are the same on all routes there is one."""
    return network.routes[0] if network.features_by_route else route


def module(path: str, image_size: int, device: torch.device, classifier: bool) -> Subject:
    """Import the `nn.Module` at a dotted path, or the one that the function there returns.

    Args:
        path: `my_module:build`.
        image_size: side of the images that it will see, in pixels.
        device: device of the module.
        classifier: whether its outputs are logits; else they are features.

    Raises:
        ValueError: if the path leads nowhere, or not to a module, or if the module does not take such images, changes
            them, or gives an image another output in another batch.
    """
    found = imported(path, "model", EXAMPLE)
    if not isinstance(found, nn.Module):
        if not callable(found):
            raise ValueError(
                f"model {path!r} is {described(found)}: expected an nn.Module, or a function without "
                "arguments that returns one"
            )
        try:
            built = found()
        except Exception as error:  # custom code
            raise ValueError(f"model {path!r} failed: {type(error).__name__}: {error}") from error
        if not isinstance(built, nn.Module):
            raise ValueError(f"model {path!r} returned {described(built)}: expected an nn.Module")
        found = built
    found = found.to(device).eval()
    if isinstance(found, torch.jit.ScriptModule):
        # a copy of TorchScript's parameters that take gradients has no gradient of its own
        for parameter in found.parameters():
            parameter.requires_grad_(False)
    shape = (3, image_size, image_size)
    images = torch.rand(ANSWERED, *shape, generator=torch.Generator().manual_seed(0)).to(device)
    answers = _tried(found, images, path)
    if classifier and answers.dtype == torch.float64:
        found = LikeImages(found)
    encoder = found if classifier else PlainEncoder(found, shape)
    name = path.partition(":")[0].rpartition(".")[2]
    marks = tensor_digest(answers)
    return Subject(name, path, encoder, NO_ROUTE, NO_ROUTE, classifier=classifier, answers=marks)


def _tried(model: nn.Module, images: Tensor, path: str) -> Tensor:
    """Return a custom module's output in eval mode for images (n, 3, H, W) in [0, 1], if an evaluation can use it."""
    norms = [
        name or "itself"
        for name, part in model.named_modules()
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.running_mean is None
    ]
    if norms:
        raise ValueError(
            f"model {path!r}: batch norm without running statistics ({few(norms)}) makes an image's answer depend on "
            "the others of its batch: expected track_running_stats=True"
        )
    given = images.clone()
    with torch.no_grad():
        try:
            answers = model(given)
            unchanged = torch.equal(given, images)
            # attacks and checks may pass a single image, so a module that needs more fails here
            model(images[:1].clone())
        except Exception as error:  # custom code
            reason = " ".join(str(error).split())[:120]
            raise ValueError(
                f"model {path!r} fails on images {images.dtype} {tuple(images.shape)}, or on one of them alone"
                f"{_other_type(model)}: {type(error).__name__}: {reason}"
            ) from error
    if not isinstance(answers, Tensor):
        raise ValueError(f"model {path!r} gives {described(answers)}: expected a tensor of features, or of logits")
    if not unchanged:
        raise ValueError(
            f"model {path!r} changes the images that it is given: expected a forward that works on a copy, x = x - 0.5 "
            "and not x.sub_(0.5) or x -= 0.5"
        )
    return answers


def _other_type(model: nn.Module) -> str:
    """Return the type of its weights in words, if it is not that of the images."""
    others = {str(part.dtype) for part in model.parameters() if part.is_floating_point()} - {"torch.float32"}
    return f"; its weights are {', '.join(sorted(others))}: build it with .float()" if others else ""
