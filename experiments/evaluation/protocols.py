"""The protocols that turn an encoder into a classifier, and how a user's settings depart from the published ones."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

import torch
from torch import nn

from astra_gym.experiments.config.sections import ProbeSection
from astra_gym.experiments.config.settings import Settings
from astra_gym.experiments.evaluation.encoders import Subject
from astra_gym.ssl_core.data.datasets import DATASETS
from astra_gym.ssl_core.data.image_set import ImageSet
from astra_gym.ssl_core.data.labels import required_labels
from astra_gym.ssl_core.downstream.finetuning import ONE_ROUTE_NOISE, FineTuneSettings, fine_tune
from astra_gym.ssl_core.downstream.knn import NeighborSettings, nearest_neighbors
from astra_gym.ssl_core.downstream.linear_probe import (
    PROBE_LR,
    Classifier,
    ProbeSettings,
    TrainingAttack,
    departures,
    standard_probe,
    train_probe,
)
from astra_gym.ssl_core.downstream.online_probe import RIDGE, SCALE, ridge_classifier
from astra_gym.ssl_core.settings.records import Notes
from astra_gym.ssl_core.transforms.views import ViewSettings

TRAINED = ("slf", "alf", "aff", "lp-aff")
"""The protocols that train by gradient steps."""
LINEAR = ("slf", "alf")
STANDARD_VIEWS = ViewSettings()
LEAST_CROPPED = 32
"""Least side of images that are cropped: the published crops shift by 4 pixels, which harms a linear head on smaller
images (at 16 x 16 it lost 8 points clean and 6 attacked)."""
UNPUBLISHED: Mapping[str, str] = {
    "lp-aff": "no published settings for robust encoders: those of SLF and AFF",
    "knn": "no published settings for robust encoders: those of Wu et al. (2018)",
    "ridge": "no published settings: a ridge-regression head in closed form, for screening",
}
Update = Callable[[int, int], None]


@dataclass(frozen=True)
class Changes:
    """A user's changes of the protocols; None changes nothing.

    Args:
        epochs: epochs of every trained protocol; the learning rate falls after the same shares of the epochs.
        batch_size: batch size of every trained protocol.
        lr: learning rate of linear heads.
        aff_lr: learning rate of full fine-tuning.
        aff_noise: standard deviation of the noise that the attack in full fine-tuning starts from, in the images' unit;
            by default 0 with two routes, as published, and 0.001 with one (version 0.1: always 0.001).
        augment: whether linear heads are trained on cropped and flipped images.
        flip: probability of a horizontal flip.
        neighbors: number of nearest neighbors, k.
    """

    epochs: Annotated[int | None, Notes(unit="EPOCHS")] = None
    batch_size: Annotated[int | None, Notes(unit="IMAGES")] = None
    lr: float | None = None
    aff_lr: float | None = None
    aff_noise: float | None = None
    augment: bool | None = None
    flip: Annotated[float | None, Notes(unit="PROBABILITY")] = None
    neighbors: Annotated[int | None, Notes(unit="K")] = None


def milestones(epochs: int, published: Sequence[int], of: int = 25) -> tuple[int, ...]:
    """Return the epochs at which a learning rate falls: the same shares of the training as `published` of `of`."""
    return tuple(sorted({epoch * epochs // of for epoch in published} - {0}))


@dataclass(frozen=True)
class Protocols:
    """The settings of every protocol for one encoder on one data set.

    Args:
        dataset: a name of `astra_gym.ssl_core.data.datasets.DATASETS`.
        probe: settings of `slf` and `alf`.
        tuning: settings of `aff` and `lp-aff`.
        neighbors: settings of `knn`.
        views: padding and flips of the weak augmentation.
        reference: probe against which departures are reported: the published one, or that of the encoder's run.
    """

    dataset: str
    probe: ProbeSettings
    reference: ProbeSettings
    tuning: FineTuneSettings
    neighbors: NeighborSettings
    views: ViewSettings

    def deviations(self, protocol: str, images: int, routes: tuple[str, str]) -> tuple[str, ...]:
        """Return the departures of a protocol from the published one; empty if there are none.

        Args:
            protocol: a name of `astra_gym.ssl_core.evaluation.results.PROTOCOLS`, not `features`.
            images: number of labels.
            routes: the encoder's batch-norm routes for clean and for attacked images.
        """
        if protocol == "classifier":
            return ()
        published = self.dataset in PROBE_LR
        found = [] if published else [f"no published protocol for {self.dataset}"]
        if protocol in (*LINEAR, "lp-aff"):
            found += departures(self.probe, self.reference)
        if protocol in ("aff", "lp-aff"):
            found += departures(self.tuning, FineTuneSettings())
            if routes[0] == routes[1]:
                found.append("one batch-norm route for clean and attacked images, not two")
            if published and not DATASETS[self.dataset].finetuned:
                found.append(f"no published full fine-tuning for {self.dataset}")
        if protocol in UNPUBLISHED:
            found.append(UNPUBLISHED[protocol])
        if protocol == "knn":
            # there are no more neighbors than images
            found += departures(replace(self.neighbors, k=min(self.neighbors.k, images)), NeighborSettings())
        augmented = protocol in ("aff", "lp-aff") or (protocol in LINEAR and self.probe.augment)
        if published and augmented and self.views.flip != STANDARD_VIEWS.flip:
            found.append(f"flips with probability {self.views.flip:g}, not {STANDARD_VIEWS.flip:g}")
        if published and augmented and self.views.padding != STANDARD_VIEWS.padding:
            found.append(f"no crops of images smaller than {LEAST_CROPPED} x {LEAST_CROPPED}")
        return tuple(found)

    def key(self, protocol: str) -> dict[str, Any]:
        """Return all settings that decide a protocol's result, as plain values, by group."""
        own: dict[str, Any] = {"views": vars(self.views)} if protocol in TRAINED else {}
        if protocol in (*LINEAR, "lp-aff"):
            own["probe"] = vars(self.probe)
        if protocol == "alf":
            own["attack"] = vars(TrainingAttack())
        if protocol in ("aff", "lp-aff"):
            own["tuning"] = vars(self.tuning)
        if protocol == "ridge":
            own["ridge"] = {"penalty": RIDGE, "scale": SCALE}
        if protocol == "knn":
            # the name in the parts that earlier evaluations kept
            own["neighbours"] = vars(self.neighbors)
        return own


def weak_views_for(side: int, flip: float) -> ViewSettings:
    """Return the weak augmentation of labeled images of a side in pixels: the published one, without its crops where
    images are smaller than `LEAST_CROPPED`."""
    return replace(STANDARD_VIEWS, flip=flip, padding=STANDARD_VIEWS.padding if side >= LEAST_CROPPED else 0)


def protocols_for(
    dataset: str, settings: Settings | None, changes: Changes, routes: tuple[str, str], side: int = LEAST_CROPPED
) -> Protocols:
    """Return the published settings with the user's changes.

    For a data set without a published protocol, the linear probe and the flips are those of the encoder's run, if it
    was trained on that data set. The published full fine-tuning is for two batch-norm routes, and its attack starts at
    the clean image; for one route it starts at TRADES' noise.

    Args:
        dataset: data set of the evaluation.
        settings: settings of the encoder's run, None if there is none.
        changes: changes of the user.
        routes: the encoder's batch-norm routes for clean and for attacked images.
        side: height and width of the images in pixels.
    """
    own = settings if settings is not None and settings.data.dataset == dataset else None
    probe, flip = standard_probe(dataset), STANDARD_VIEWS.flip
    if own is not None and dataset not in PROBE_LR:
        probe, flip = own_probe(own.probe), own.views.flip
    reference = probe
    if changes.epochs is not None:
        steps = milestones(changes.epochs, standard_probe(dataset).milestones)
        probe = replace(probe, epochs=changes.epochs, milestones=steps)
    tuning = FineTuneSettings()
    if routes[0] == routes[1]:
        tuning = replace(tuning, start_noise=ONE_ROUTE_NOISE)
    if changes.epochs is not None:
        tuning = replace(tuning, epochs=changes.epochs, milestones=milestones(changes.epochs, tuning.milestones))
    if changes.batch_size is not None:
        probe = replace(probe, batch_size=changes.batch_size)
        tuning = replace(tuning, batch_size=changes.batch_size)
    if changes.lr is not None:
        probe = replace(probe, lr=changes.lr)
    if changes.aff_lr is not None:
        tuning = replace(tuning, lr=changes.aff_lr)
    if changes.aff_noise is not None:
        tuning = replace(tuning, start_noise=changes.aff_noise)
    if changes.augment is not None:
        probe = replace(probe, augment=changes.augment)
    neighbors = NeighborSettings()
    if changes.neighbors is not None:
        neighbors = replace(neighbors, k=changes.neighbors)
    views = weak_views_for(side, flip if changes.flip is None else changes.flip)
    return Protocols(dataset, probe, reference, tuning, neighbors, views)


def own_probe(given: ProbeSection) -> ProbeSettings:
    """Return the linear probe of a run's own settings."""
    return ProbeSettings(
        epochs=given.probe_epochs,
        lr=given.probe_lr,
        batch_size=given.probe_batch_size,
        milestones=milestones(given.probe_epochs, ProbeSettings.milestones),
        augment=given.probe_augment,
    )


def classifier_of(
    protocol: str,
    subject: Subject,
    train: ImageSet,
    protocols: Protocols,
    *,
    seed: int,
    device: torch.device,
    head: nn.Linear | None,
    progress: Update,
) -> nn.Module:
    """Train the classifier of a protocol on an encoder.

    Args:
        protocol: a name of `astra_gym.ssl_core.evaluation.results.PROTOCOLS`, not `features`.
        subject: the encoder.
        train: the labeled images.
        protocols: the settings.
        seed: seed of everything random.
        device: device of the training.
        head: for `lp-aff`, the head of the linear probe.
        progress: function that gets the number of optimizer steps done and their total.
    """
    if protocol == "classifier":
        return subject.encoder.eval()
    if protocol == "knn":
        return nearest_neighbors(
            subject.encoder, subject.route, train, protocols.neighbors, device=device, progress=progress
        )
    if protocol == "ridge":
        encoder = copy.deepcopy(subject.encoder).to(device).eval().requires_grad_(False)
        labels = required_labels(train, "a ridge-regression head")
        return ridge_classifier(encoder, subject.route, train.images, labels, len(train.classes), device)[0]
    if protocol in LINEAR:
        attack = TrainingAttack() if protocol == "alf" else None
        return train_probe(
            subject.encoder,
            subject.route,
            train,
            protocols.probe,
            protocols.views,
            attack=attack,
            seed=seed,
            device=device,
            progress=progress,
        )
    routes = (subject.clean_route, subject.route)
    return fine_tune(
        subject.encoder,
        routes,
        train,
        protocols.tuning,
        protocols.views,
        seed=seed,
        head=head,
        device=device,
        progress=progress,
    )


def packed(classifier: nn.Module, protocol: str) -> dict[str, Any]:
    """Return what `unpacked` needs of a trained classifier, as plain tensors; a frozen encoder is left out."""
    if not isinstance(classifier, Classifier):
        raise ValueError(f"a classifier of the protocol {protocol} is not kept")
    payload: dict[str, Any] = {"head": classifier.head.state_dict()}
    if protocol not in LINEAR:
        payload["encoder"] = classifier.encoder.state_dict()
    return payload


def unpacked(payload: Mapping[str, Any], subject: Subject, encoder: nn.Module) -> Classifier:
    """Rebuild the classifier that `packed` saved.

    Args:
        payload: result of `packed`.
        subject: subject with the encoder of the training.
        encoder: a copy of that encoder, which becomes the classifier's.
    """
    weight = payload["head"]["weight"]
    head = nn.utils.skip_init(nn.Linear, weight.shape[1], weight.shape[0], device=weight.device)
    head.load_state_dict(payload["head"])
    if "encoder" in payload:
        encoder.load_state_dict(payload["encoder"])
    return Classifier(encoder, subject.route, head)
