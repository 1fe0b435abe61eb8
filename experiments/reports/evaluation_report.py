"""The report of an evaluation: its tables and notes, its figures, and how to repeat it."""

from pathlib import Path
from typing import Any

from astra_gym.experiments.evaluation.along_run import PICTURE
from astra_gym.experiments.evaluation.representation_part import LANDSCAPE, SPECTRUM, TSNE
from astra_gym.experiments.evaluation.store import DOWNSTREAM, EvaluationStore
from astra_gym.experiments.plotting.run_plots import accuracy_against_epsilon
from astra_gym.experiments.reports.document import Block, Code, Items, Page, Picture, Section, Table, Text, entries
from astra_gym.experiments.reports.evaluation_tables import remarks, tables
from astra_gym.experiments.reports.rendering import check_report
from astra_gym.ssl_core.evaluation.results import Row, read_results
from astra_gym.ssl_core.evaluation.sanity import STAGES

CURVES = "accuracy_against_epsilon.png"
AT_MOST = 4
"""Lines in the figure of accuracy against epsilon; the others are in the table."""
PICTURES = (
    Picture(
        PICTURE,
        "Clean and robust test accuracy against the epoch of pre-training",
        "Accuracy along the run, with 95 % Wilson intervals: where the robust accuracy falls, pre-training overfits.",
    ),
    Picture(
        TSNE,
        "Clean and attacked test features in the plane",
        "t-SNE of clean and attacked test features, in one plane. Distances between clusters mean little.",
    ),
    Picture(
        SPECTRUM,
        "Singular values of clean and attacked test features",
        "Singular values of the normalized features, as shares of their sum: a steep fall is collapse.",
    ),
    Picture(
        LANDSCAPE,
        "Contrastive loss along a typical and the sharpest direction in weight space",
        "The contrastive loss of clean against attacked images along filter-normalized directions in weight space.",
    ),
    Picture(
        DOWNSTREAM,
        "Downstream loss of each encoder, clean and attacked, along a direction in the classifier's weights",
        "Cross entropy of clean and of attacked test images along the direction of median sharpness among 16 random, "
        "filter-normalized ones; the attack is made anew at each point.",
    ),
)
HOW_TO_READ = (
    ("SA, RA", "accuracy in % on clean test images, and under an attack of the given radius."),
    ("Standard", "got exactly by the published protocol; what departs from it, and why, stands in the remarks."),
    (
        "Intervals",
        "are over test images, of one trained network: they say nothing about other seeds.",
    ),
    (
        "AutoAttack",
        "each of its attacks sees only the images that are still right; the last gives AutoAttack's accuracy.",
    ),
)


def evaluation_page(folder: Path) -> Page:
    """Report what an evaluation found, and draw accuracy against epsilon.

    Args:
        folder: folder of the evaluation.

    Raises:
        ValueError: if it is unfinished or damaged, or a file would be replaced that no report has written.
    """
    check_report(folder)
    store = EvaluationStore(folder)
    rows, facts = read_results(store.file), store.facts()
    remarked = remarks(rows, facts["notes"])
    # the first evaluations were kept before void classifiers had an entry
    void: dict[str, str] = facts.get("void", {})
    sections = [
        Section("How to read it", [Items(HOW_TO_READ)]),
        *(Section(table.title, [table]) for table in tables(rows)),
        Section("Accuracy against epsilon", _curves(rows, store)),
        Section("Figures", [picture for picture in PICTURES if (store.figures / picture.name).is_file()]),
        Section("No figure", [Items(list(void.items()))] if void else []),
        Section("Remarks", [Items(remarked)] if remarked else []),
        Section("Machine", [_machine(facts, rows)]),
        Section("Repeat it", [Code(facts["command"])]),
    ]
    data = facts["data"]
    opening = Text(
        f"{facts['name']} on {data['name']}: {data['train']:,} labeled training images, {data['test']:,} test images.",
        "answer",
    )
    return Page(f"Evaluation: {facts['name']}", [opening], [section for section in sections if section.blocks])


def _curves(rows: list[Row], store: EvaluationStore) -> list[Block]:
    found: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row.metric == "SA" or (row.metric == "RA" and row.attack == "pgd20" and row.restarts == 1):
            share = "" if row.label_fraction == 1 else f" {100 * row.label_fraction:g} %"
            found.setdefault((f"{row.protocol.upper()}{share}", row.checkpoint), []).append(row)
    drawn = [(*names, own) for names, own in found.items() if len(own) > 2][:AT_MOST]
    if not drawn:
        return []
    short = len({name for name, _, _ in drawn}) == len(drawn)
    lines = {name if short else f"{name} {checkpoint}": own for name, checkpoint, own in drawn}
    accuracy_against_epsilon(lines, store.draws(CURVES))
    alt = "Test accuracy against the radius of PGD-20, one line per protocol"
    return [Picture(CURVES, alt, "Clean accuracy at 0, and under PGD-20 at each radius, with 95 % Wilson intervals.")]


def _machine(facts: dict[str, Any], rows: list[Row]) -> Table:
    seconds = sum(row.seconds or 0.0 for row in rows if row.attack not in STAGES)
    told = {
        "commit": facts["commit"],
        "device": facts["device"],
        "threads": str(facts["threads"]),
        "seconds of attacks and shifts": f"{seconds:.0f}",
        "encoder": ", ".join(dict.fromkeys(row.checkpoint_hash[:16] for row in rows)),
        **facts["versions"],
    }
    lines = [entries(name, value) for name, value in told.items()]
    return Table("Machine and versions", "", ["what", "which"], lines, words=("which",))
