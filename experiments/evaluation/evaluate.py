"""The evaluation of one encoder, from the command line's request to rows and facts."""

from typing import Any

import torch
from rich.console import Console

from astra_gym.experiments.console import Stages
from astra_gym.experiments.evaluation.data_identity import decoder_notes
from astra_gym.experiments.evaluation.encoders import Subject
from astra_gym.experiments.evaluation.flags import EvaluationFlags
from astra_gym.experiments.evaluation.plan import EvaluationPlan
from astra_gym.experiments.evaluation.protocol_runner import Evaluator, named
from astra_gym.experiments.evaluation.protocols import protocols_for
from astra_gym.experiments.evaluation.representation_part import health_part
from astra_gym.experiments.evaluation.request import LabeledData
from astra_gym.experiments.evaluation.store import EvaluationStore
from astra_gym.ssl_core.data.summary import summary
from astra_gym.ssl_core.evaluation.results import Row
from astra_gym.ssl_core.evaluation.sanity import SanityError
from astra_gym.ssl_core.utils.device import convolves_in_tf32, ieee_fp32
from astra_gym.ssl_core.utils.provenance import ROOT, commit, versions

CHECKPOINT = "the checkpoint"
"""The key of notes on the encoder itself."""


@ieee_fp32()
def evaluate(
    subject: Subject,
    data: LabeledData,
    plan: EvaluationPlan,
    given: EvaluationFlags,
    store: EvaluationStore,
    console: Console,
    device: torch.device,
) -> tuple[list[Row], dict[str, Any]]:
    """Return the rows of an encoder, and the facts to be reported beside them: notes, data, versions.

    Args:
        subject: the encoder.
        data: result of `data_of`.
        plan: result of `plan_of`.
        given: the command line.
        store: store of finished parts.
        console: console for progress.
        device: device of the evaluation.

    Raises:
        SanityError: if every value would be void.
        ValueError: if data or settings cannot be used.
    """
    if subject.classes not in (None, known := len(data.split.train.classes)):
        raise ValueError(
            f"{subject.checkpoint} classifies {subject.classes} classes, and {data.name} has {known}: expected the "
            "data set that it was fine-tuned on"
        )
    routes = (subject.clean_route, subject.route)
    protocols = protocols_for(data.name, subject.settings, given.changes, routes, data.split.test.images.shape[-1])
    with Stages(kind=given.work.progress, console=console) as stages:
        stages.note(_headline(subject, data, plan, store))
        evaluator = Evaluator(
            subject, data.split, plan, protocols, store, stages, device, commit(ROOT), data.deviations, data.seen
        )
        rows = evaluator.run()
        if given.measures.health or given.measures.everything:
            rows += health_part(evaluator)
    if not rows:
        raise SanityError("; ".join(f"{name}: {reason}" for name, reason in evaluator.void.items()))
    said = [*subject.notes, *decoder_notes(subject, data.split.test)]
    notes = {CHECKPOINT: said} if said else {}
    facts = {
        "name": subject.name,
        "notes": notes | evaluator.notes,
        "void": evaluator.void,
        "settings": {protocol: protocols.key(protocol) for protocol in plan.protocols},
        "data": {"name": data.name, "train": len(data.split.train), "test": len(data.split.test)},
        "commit": commit(ROOT),
        "versions": versions(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "tf32": convolves_in_tf32(device),
        "threads": torch.get_num_threads(),
    }
    return rows, facts


def _headline(subject: Subject, data: LabeledData, plan: EvaluationPlan, store: EvaluationStore) -> str:
    protocols = ", ".join(named(protocol) for protocol in plan.protocols)
    attacks = ", ".join(dict.fromkeys(attack.name for attack in plan.attacks)) or "no attack"
    images = f"{len(data.split.train):,} training and {len(data.split.test):,} test images"
    encoder = f"{subject.name} ({subject.checkpoint}, route {subject.route})"
    what = f"{encoder} on {data.name} ({images}): {protocols}; {attacks}; into {store.path}"
    return f"{what}\nimages: {summary(data.split)}"
