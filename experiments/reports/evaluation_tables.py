"""The rows of an evaluation as tables, and the remarks on them."""

import math
from collections.abc import Mapping, Sequence

from astra_gym.experiments.reports.document import MISSING, Entry, Table, entries
from astra_gym.ssl_core.evaluation.results import TRAIN, Row, radius_text
from astra_gym.ssl_core.evaluation.sanity import STAGES
from astra_gym.ssl_core.utils.messages import shown

NAMES = {"pgd20": "PGD-20", "fgsm": "FGSM", "autoattack": "AA", "autoattack-quick": "AA quick", "worst": "worst"}
FAMILIES = ("noise", "blur", "weather", "digital", "corruptions", "black", "padded", "perspective")
INTERVALS = "Below a figure its 95 % interval over the test images (Wilson; means over a family: bootstrap)."


def tables(rows: Sequence[Row]) -> list[Table]:
    """Return accuracy, its gap to training images, AutoAttack attack by attack, shifts, and health: those for which
    there are rows."""
    made = [accuracy_table(rows), gap_table(rows), stages_table(rows), shifts_table(rows), health_table(rows)]
    return [table for table in made if table.rows]


def accuracy_table(rows: Sequence[Row]) -> Table:
    """Return the accuracies: a line for each classifier, a column for each attack and radius."""
    attacked = [row for row in rows if row.metric == "RA" and row.attack not in STAGES]
    columns = sorted(
        {_place(row) for row in attacked}, key=lambda place: (place[0], list(NAMES).index(place[1]), place[2:])
    )
    lines = []
    for name, own in _classifiers(rows).items():
        by_place = {_place(row): row for row in own if row.metric in ("SA", "RA") and not row.condition}
        clean = _clean(own, name)
        standard = "yes" if all(row.standard for row in by_place.values()) else "no"
        cells = [_shown(clean), *(_shown(by_place.get(place)) for place in columns)]
        lines.append([*entries(name, str(clean.n)), *cells, Entry(standard)])
    heads = list(map(_head, columns))
    note = (
        f"Accuracy in % of n test images. {INTERVALS} Worst: right under every attack of that radius. Standard: got "
        "exactly by the published protocol."
    )
    return Table("Accuracy", note, ["protocol", "n", "SA", *heads, "standard"], lines, words=("standard",))


def _clean(own: Sequence[Row], name: str) -> Row:
    """Return a classifier's clean accuracy; a ValueError if it has none, which no evaluation writes."""
    for row in own:
        if row.metric == "SA":
            return row
    raise ValueError(f"the evaluation has no clean accuracy of {shown(name)}: it was edited, repeat it")


def gap_table(rows: Sequence[Row]) -> Table:
    """Return the accuracies on training images beside those on test images: a line for each classifier and attack."""
    lines = []
    for name, own in _classifiers(rows).items():
        tested = {_place(row): row for row in own if row.metric in ("SA", "RA") and not row.condition}
        for row in own:
            if row.metric.startswith(TRAIN) and (test := tested.get(_place(row))):
                what = "none" if row.attack == "none" else _head(_place(row))
                lines.append([*entries(name, what, str(row.n)), _shown(row), _shown(test), _gap(row, test)])
    note = (
        "Accuracy in % on n training images and on the test images, and the difference in points: under attack the "
        "robust generalization gap. Below the gap its 95 % interval (Newcombe 1998, from both Wilson intervals)."
    )
    return Table("Training and test images", note, ["protocol", "attack", "n", "training", "test", "gap"], lines)


def _gap(train: Row, test: Row) -> Entry:
    """Return the difference of two accuracies in points, with Newcombe's interval (1998, method 10)."""
    gap = train.value - test.value
    if train.interval is None or test.interval is None:
        return Entry(f"{gap:.1f}")
    low = gap - math.hypot(train.value - train.interval[0], test.interval[1] - test.value)
    high = gap + math.hypot(train.interval[1] - train.value, test.value - test.interval[0])
    return Entry(f"{gap:.1f}", f"{low:.1f} to {high:.1f}")


def stages_table(rows: Sequence[Row]) -> Table:
    """Return the accuracies after each of AutoAttack's attacks: a line for each classifier and radius."""
    lines = []
    for name, own in _classifiers(rows).items():
        radii = dict.fromkeys((row.norm, row.epsilon) for row in own if row.attack in STAGES)
        for norm, epsilon in radii:
            found = {row.attack: row for row in own if (row.norm, row.epsilon) == (norm, epsilon)}
            cells = [_shown(found.get(stage)) for stage in STAGES]
            lines.append([Entry(f"{name}, {radius_text(norm, epsilon)}"), *cells])
    heads = ["APGD-CE", "then APGD-T", "then FAB-T", "then Square"]
    return Table("AutoAttack, attack by attack", "Images still right after each, in %.", ["protocol", *heads], lines)


def shifts_table(rows: Sequence[Row]) -> Table:
    """Return the mean accuracy under each family of corruptions and of perspective distortions."""
    present = [family for family in FAMILIES if any(row.condition == family for row in rows)]
    lines = []
    for name, own in _classifiers(rows).items():
        found = {row.condition: row for row in own if row.metric in ("CA", "PA")}
        if found:
            clean = _clean(own, name)
            lines.append([Entry(name), _shown(clean), *(_shown(found.get(family)) for family in present)])
    note = f"Mean accuracy in % over the corruptions and severities, or the directions, of a family. {INTERVALS}"
    return Table("Corruptions and perspective", note, ["protocol", "SA", *present], lines)


def health_table(rows: Sequence[Row]) -> Table:
    """Return the values of the features themselves."""
    lines, several = [], len({row.checkpoint for row in rows}) > 1
    for row in rows:
        if row.protocol == "features":
            interval = MISSING if row.interval is None else f"{row.interval[0]:.3f} to {row.interval[1]:.3f}"
            name = row.metric.replace("_", " ")
            of = f"{row.condition}, {row.checkpoint}" if several else row.condition
            lines.append(entries(name, of, f"{row.value:.3f}", interval))
    note = (
        "Alignment: mean squared distance of positive pairs, lower is closer; uniformity: lower is more uniform; "
        "embedding std: 0 is collapse; sharpness: mean rise of the loss along a weight direction."
    )
    return Table("Representation health", note, ["figure", "of", "value", "95 % interval"], lines, words=("of",))


def remarks(rows: Sequence[Row], notes: Mapping[str, Sequence[str]]) -> list[tuple[str, str]]:
    """Return why values are not standard, and what the checks found: the subject and a sentence each."""
    reasons: dict[str, list[str]] = {}
    for name, own in _classifiers(rows).items():
        for row in own:
            for reason in row.deviations:
                concerned = reasons.setdefault(reason, [])
                if name not in concerned:
                    concerned.append(name)
    said = [(f"not standard ({'; '.join(names)})", reason) for reason, names in reasons.items()]
    return said + [(what, note) for what, found in notes.items() for note in found]


def _classifiers(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Group rows by classifier, named by its protocol and by anything else that distinguishes it from the others."""
    several = len({row.checkpoint for row in rows}) > 1
    found: dict[str, list[Row]] = {}
    for row in rows:
        if row.protocol != "features":
            parts = [row.protocol.upper() if row.protocol != "classifier" else "as it is"]
            if row.label_fraction != 1:
                parts.append(f"{100 * row.label_fraction:g} % labels")
            if several:
                parts.append(row.checkpoint)
            found.setdefault(", ".join(parts), []).append(row)
    return found


def _head(place: tuple[str, str, float, int]) -> str:
    norm, attack, epsilon, restarts = place
    return f"{NAMES[attack]} {radius_text(norm, epsilon)}{_starts(restarts)}"


def _place(row: Row) -> tuple[str, str, float, int]:
    return row.norm, row.attack, row.epsilon, row.restarts


def _starts(restarts: int) -> str:
    return f", {restarts} starts" if restarts > 1 else ""


def _shown(row: Row | None) -> Entry:
    if row is None:
        return Entry(MISSING)
    interval = "" if row.interval is None else f"{row.interval[0]:.1f} to {row.interval[1]:.1f}"
    return Entry(f"{row.value:.1f}", interval)
