"""The rows of an evaluation as tables, and the remarks on them."""

from collections.abc import Mapping, Sequence

from astra_gym.experiments.reports.document import MISSING, Entry, Table, entries
from astra_gym.ssl_core.evaluation.results import Row, radius_text
from astra_gym.ssl_core.evaluation.sanity import STAGES
from astra_gym.ssl_core.utils.messages import shown

NAMES = {"pgd20": "PGD-20", "fgsm": "FGSM", "autoattack": "AA", "autoattack-quick": "AA quick", "worst": "worst"}
FAMILIES = ("noise", "blur", "weather", "digital", "corruptions", "black", "padded", "perspective")
INTERVALS = "Below a figure its 95 % interval over the test images (Wilson; means over a family: bootstrap)."


def tables(rows: Sequence[Row]) -> list[Table]:
    """Return accuracy, AutoAttack attack by attack, shifts, and health: those for which there are rows."""
    made = [accuracy_table(rows), stages_table(rows), shifts_table(rows), health_table(rows)]
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
    heads = [
        f"{NAMES[attack]} {radius_text(norm, epsilon)}{_starts(restarts)}"
        for norm, attack, epsilon, restarts in columns
    ]
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
    lines = []
    for row in rows:
        if row.protocol == "features":
            interval = MISSING if row.interval is None else f"{row.interval[0]:.3f} to {row.interval[1]:.3f}"
            name = row.metric.replace("_", " ")
            lines.append(entries(name, row.condition, f"{row.value:.3f}", interval))
    note = (
        "Alignment: mean squared distance of positive pairs, lower is closer. Uniformity: lower is more uniform. "
        "Embedding std: 0 is collapse. Sharpness: mean rise of the loss along a weight direction."
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


def _place(row: Row) -> tuple[str, str, float, int]:
    return row.norm, row.attack, row.epsilon, row.restarts


def _starts(restarts: int) -> str:
    return f", {restarts} starts" if restarts > 1 else ""


def _shown(row: Row | None) -> Entry:
    if row is None:
        return Entry(MISSING)
    interval = "" if row.interval is None else f"{row.interval[0]:.1f} to {row.interval[1]:.1f}"
    return Entry(f"{row.value:.1f}", interval)
