"""One evaluation: every requested protocol with its attacks and its shifts, checked and kept part by part."""

import copy
import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from astra_gym.experiments.console import Stages
from astra_gym.experiments.evaluation.classifier_parts import LEFT_OUT, landscape_rows, training_rows
from astra_gym.experiments.evaluation.encoders import Subject
from astra_gym.experiments.evaluation.plan import EvaluationPlan, shift_key, shift_rows, shifted_images
from astra_gym.experiments.evaluation.protocols import TRAINED, Protocols, classifier_of, packed, unpacked
from astra_gym.experiments.evaluation.store import TRAINED_ON, EvaluationPart, EvaluationStore, listed
from astra_gym.ssl_core.attacks.pgd import NonFiniteGradientError
from astra_gym.ssl_core.data.image_digests import RunImages
from astra_gym.ssl_core.data.image_set import ImageSet, Split
from astra_gym.ssl_core.data.labels import labeled_fraction, required_labels
from astra_gym.ssl_core.data.official_shifts import ShiftedImages
from astra_gym.ssl_core.downstream.linear_probe import Classifier
from astra_gym.ssl_core.evaluation.attack_suite import SIGN_ATTACKS, Attack, check_classes, evaluate
from astra_gym.ssl_core.evaluation.masking import check_classifier, masking_evidence
from astra_gym.ssl_core.evaluation.results import Origin, Row, radius_text
from astra_gym.ssl_core.evaluation.sanity import (
    SanityError,
    TrainedOnError,
    check_disjoint,
    check_frozen,
    check_images,
    check_untrained,
    square_drops,
)
from astra_gym.ssl_core.utils.hashing import fingerprint, tensor_digest
from astra_gym.ssl_core.utils.provenance import versions


class Evaluator:
    """The evaluation of an encoder. A part's key holds all that its result depends on, so a part kept under its key is
    not computed again.

    Args:
        subject: the encoder.
        data: labeled images.
        plan: content of the evaluation.
        protocols: settings of the protocols.
        store: store of finished parts.
        stages: the display.
        device: device of the evaluation.
        commit: git commit of the project, for the rows.
        deviations: departures of the data from the published protocol.
        seen: test images at the size of the encoder's training images; None if it is the same.
    """

    def __init__(
        self,
        subject: Subject,
        data: Split,
        plan: EvaluationPlan,
        protocols: Protocols,
        store: EvaluationStore,
        stages: Stages,
        device: torch.device,
        commit: str,
        deviations: Sequence[str] = (),
        seen: ImageSet | None = None,
    ) -> None:
        self.subject = subject
        self.data = data
        self.plan = plan
        self.protocols = protocols
        self.store = store
        self.stages = stages
        self.device = device
        self.commit = commit
        self.deviations = tuple(deviations)
        self.seen = data.test if seen is None else seen
        self.notes: dict[str, list[str]] = {}
        """Notes to be reported beside the rows, by subject."""
        self.void: dict[str, str] = {}
        """Reasons for missing values, by the classifier that they would have measured."""
        self._official = cache(lambda shift: shifted_images(plan, shift, data.test))
        self._before = fingerprint(subject.encoder)
        self._digests = {name: _digest(part) for name, part in (("train", data.train), ("test", data.test))}

    def run(self) -> list[Row]:
        """Return every row of the plan; a classifier whose checks fail has none, and is in `void`.

        Raises:
            SanityError: if the data or the encoder are not as declared; finished parts are kept.
            ValueError: if data or settings cannot be used.
        """
        for data in (self.data.train, self.data.test):
            required_labels(data, "an evaluation")
        check_classes(self.plan.attacks, len(self.data.train.classes))
        self.check_data()
        rows = []
        for protocol in self.plan.protocols:
            # the protocol `classifier`, a model's own logits, is the only one that needs no training labels
            for fraction in (1.0,) if protocol == "classifier" else self.plan.labels:
                try:
                    rows += self._evaluated(protocol, fraction)
                except (SanityError, NonFiniteGradientError) as error:
                    # one bad classifier must not cost the hours spent on the others
                    self.void[named(protocol, fraction)] = str(error)
                    self.stages.note(f"{named(protocol, fraction)} is void: {error}")
        check_frozen(self._before, fingerprint(self.subject.encoder), "during the evaluation")
        return rows

    def check_data(self) -> None:
        """Check the images before any measurement.

        Raises:
            SanityError: if test images are among the training images or those that the encoder was trained on, or if
                images do not look like images.
        """
        trained = self.subject.trained
        known = trained and hashlib.sha256(trained.train.values + trained.taught).hexdigest()
        key = self.key("data") | {"trained": known}
        if (part := self.store.part(key)) is None:
            self.stages.begin("checking the data")
            for data in (self.data.train, self.data.test):
                check_images(data.images, data.name)
            try:
                images = RunImages.of(self.data)
                notes = check_disjoint(self.data.train, self.data.test, images)
                if trained is not None:
                    notes += check_untrained(trained.beside(images.train), self.seen, f"the run {self.subject.name}")
            except TrainedOnError as error:
                raise listed(error, self.store.path / TRAINED_ON) from error
            part = self.store.keep_part(key, EvaluationPart([], notes))
            self.stages.end("checked the data")
        self._note("data", part.notes)

    def origin(self, protocol: str, fraction: float = 1.0) -> Origin:
        """Return what the rows of a protocol have in common."""
        deviations: tuple[str, ...] = ()
        if protocol == "features":
            deviations = (*self.deviations, "no published protocol for the health of features")
        else:
            images = len(self.labeled(protocol, fraction))
            routes = (self.subject.clean_route, self.subject.route)
            own = self.protocols.deviations(protocol, images, routes)
            deviations = (*self.deviations, *self.subject.deviations, *own)
        return Origin(
            protocol=protocol,
            route=self.subject.route,
            seed=self.plan.seed,
            checkpoint=self.subject.checkpoint,
            checkpoint_hash=self.subject.digest,
            dataset=self.protocols.dataset,
            label_fraction=fraction,
            deviations=deviations,
            commit=self.commit,
        )

    def labeled(self, protocol: str, fraction: float) -> ImageSet:
        """Return the training images with labels for a protocol; a model's own logits need none."""
        train = self.data.train
        return train if protocol == "classifier" else labeled_fraction(train, fraction, self.plan.seed)

    def kept(self, key: dict[str, Any], doing: str, make: Callable[[], EvaluationPart]) -> EvaluationPart:
        """Return the part under a key; make and keep it if there is none."""
        if (part := self.store.part(key)) is not None:
            return part
        self.stages.begin(doing)
        part = self.store.keep_part(key, make())
        self.stages.end(doing)
        return part

    def _evaluated(self, protocol: str, fraction: float) -> list[Row]:
        label = named(protocol, fraction)
        origin = self.origin(protocol, fraction)
        trained = self.key("training", protocol, fraction)
        classifier = cache(lambda: self._classifier(protocol, fraction, label))
        test = self.data.test

        def attacked() -> EvaluationPart:
            model, labels = classifier(), required_labels(test, "accuracy")
            self.stages.begin(f"{label}: checks")
            signed = any(attack.name in SIGN_ATTACKS for attack in self.plan.attacks)
            notes = check_classifier(model, test.images, labels, seed=self.plan.seed, sign_attacks=signed)
            if signed:
                notes += masking_evidence(model, test.images, labels, seed=self.plan.seed)
            self.stages.begin(f"{label}: attacks")
            with unchanged(model, "while it was attacked"):
                found = evaluate(
                    model,
                    test,
                    self.plan.attacks,
                    origin=origin,
                    batch_size=self.plan.batch_size,
                    state_dir=self.store.states(trained),
                    progress=self.stages.update,
                )
            notes += found.notes + square_drops(found.rows)
            outcomes = {describe(attack): right for attack, right in found.correct.items()}
            return EvaluationPart(found.rows, notes, outcomes)

        attacks = [asdict(attack) for attack in self.plan.attacks]
        key = trained | {"part": "attacks", "attacks": attacks, "batch_size": self.plan.batch_size}
        part = self.kept(key, f"{label}: attacks", attacked)
        self._note(label, part.notes)
        rows = list(part.rows)
        for shift in self.plan.shifts:
            images = self._official(shift)
            key = trained | {"part": shift} | shift_key(self.plan, shift, images)

            def shifted(shift: str = shift, images: ShiftedImages | None = images) -> EvaluationPart:
                model = classifier()
                self.stages.begin(f"{label}: {shift}")
                with unchanged(model, f"while it was evaluated under {shift}"):
                    rows = shift_rows(self.plan, shift, images, model, test, origin=origin, progress=self.stages.update)
                    return EvaluationPart(rows)

            rows += self.kept(key, f"{label}: {shift}", shifted).rows
        rows += self._further(protocol, fraction, classifier, origin, label)
        # a part is found by the encoder's weights, and the same weights may have another name now
        return [replace(row, checkpoint=self.subject.checkpoint) for row in rows]

    def _further(
        self, protocol: str, fraction: float, classifier: Callable[[], nn.Module], origin: Origin, label: str
    ) -> list[Row]:
        """Return the rows on training images, and those of the loss along the weights, if the plan has them."""
        plan, update = self.plan, self.stages.update
        rows: list[Row] = []
        trained = self.key("training", protocol, fraction)
        parts: dict[str, dict[str, Any]] = {}
        if plan.train_images is not None:
            attacks = [asdict(attack) for attack in plan.attacks]
            parts["train"] = {"attacks": attacks, "batch_size": plan.batch_size, "images": plan.train_images}
        if plan.landscape:
            parts["landscape"] = {}
        if (asked := plan.train_images) and protocol != "knn" and (n := len(self.labeled(protocol, fraction))) < asked:
            self._note(label, [f"train_SA and train_RA are of all {n:,} training images, not of {asked:,}"])
        for name, given in parts.items():
            if protocol == "knn":
                self._note(label, [LEFT_OUT[name]])
                continue

            def measured(name: str = name, images: int = plan.train_images or 0) -> EvaluationPart:
                model = classifier()
                self.stages.begin(f"{label}: {name}")
                with unchanged(model, f"in the part {name}"):
                    if name == "landscape":
                        return EvaluationPart(landscape_rows(model, self.data.test, origin=origin, progress=update))
                    found = training_rows(
                        model,
                        self.labeled(protocol, fraction),
                        images,
                        plan.attacks,
                        origin=origin,
                        batch_size=plan.batch_size,
                        state_dir=self.store.states(trained | {"images": images}),
                        progress=update,
                    )
                    return EvaluationPart(found)

            rows += self.kept(trained | {"part": name} | given, f"{label}: {name}", measured).rows
        return rows

    def _classifier(self, protocol: str, fraction: float, label: str) -> nn.Module:
        key = self.key("training", protocol, fraction)
        if protocol in TRAINED and (payload := self.store.classifier(key, self.device)) is not None:
            return unpacked(payload, self.subject, copy.deepcopy(self.subject.encoder))
        head = None
        if protocol == "lp-aff":
            probe = self._classifier("slf", fraction, named("slf", fraction))
            if not isinstance(probe, Classifier) or not isinstance(probe.head, nn.Linear):
                raise TypeError("a linear probe has a linear head")
            head = probe.head
        self.stages.begin(f"{label}: training" if protocol in TRAINED else f"{label}: preparing")
        train = self.labeled(protocol, fraction)
        classifier = classifier_of(
            protocol,
            self.subject,
            train,
            self.protocols,
            seed=self.plan.seed,
            device=self.device,
            head=head,
            progress=self.stages.update,
        )
        if protocol in TRAINED:
            self.stages.end(f"{label}: trained on {len(train):,} images")
            self.store.keep_classifier(key, packed(classifier, protocol))
        return classifier

    def key(self, part: str, protocol: str = "", fraction: float = 1.0) -> dict[str, Any]:
        """Return all that a part's result depends on, except the additions of its kind."""
        key = {
            "part": part,
            "encoder": self.subject.digest,
            "route": self.subject.route,
            "data": self._digests,
            "dataset": self.protocols.dataset,
            "seed": self.plan.seed,
            # code of another commit may give other values, and a row names the commit that made it
            "commit": self.commit,
            "code": self.subject.answers,
            "device": self.device.type,
            "versions": {name: versions()[name] for name in ("torch", "pyautoattack")},
            "deviations": list(self.deviations),
        }
        if protocol:
            key |= {"protocol": protocol, "fraction": fraction, "clean_route": self.subject.clean_route}
            key |= self.protocols.key(protocol)
        return key

    def _note(self, what: str, notes: Sequence[str]) -> None:
        if notes:
            self.notes.setdefault(what, []).extend(notes)


@contextmanager
def unchanged(classifier: nn.Module, when: str) -> Iterator[None]:
    """Raise a SanityError if the classifier's weights or statistics change inside this context."""
    before = fingerprint(classifier)
    yield
    check_frozen(before, fingerprint(classifier), when, "classifier")


def named(protocol: str, fraction: float = 1.0) -> str:
    """Return a protocol at a share of the labels, in a few words."""
    name = "the model as it is" if protocol == "classifier" else protocol.upper()
    return name if fraction == 1 else f"{name} with {100 * fraction:g} % of the labels"


def describe(attack: Attack) -> str:
    """Return an attack as the name of its outcomes: `pgd20 8/255`."""
    if attack.name == "none":
        return "clean"
    restarts = f", {attack.restarts} starts" if attack.restarts > 1 else ""
    return f"{attack.name} {radius_text(attack.norm, attack.epsilon)}{restarts}"


def _digest(data: ImageSet) -> str:
    tensors: list[Tensor] = [data.images] if data.labels is None else [data.images, data.labels]
    return tensor_digest(*tensors)
