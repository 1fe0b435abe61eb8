"""Tables of kept searches, `results/tuning/*.json`."""

import statistics
from collections.abc import Mapping
from pathlib import Path

from astra_gym.experiments.reports.document import MISSING, Block, Table, entries
from astra_gym.experiments.tuning.candidates import with_brief_sets
from astra_gym.ssl_core.safety.sealing import read_json
from astra_gym.ssl_core.utils.messages import amount


def tuned_table(results: Path, world: str) -> list[Block]:
    """Return what the kept searches in a world found, from `results/tuning/`, and what they cost; of those in several
    worlds, for the world `global`."""
    rows = []
    for path in sorted((results / "tuning").glob("*.json")):
        document = read_json(path)
        if (
            document["search"]["tune"] in (["curve"], ["arms"])
            or document["search"]["settings"].get("preset", "global") != world
        ):
            continue
        best = document["rounds"][-1]["best_first"][0]
        seeds = next(entry["seeds"] for entry in document["trials"] if entry["candidate"] == best)
        means = [statistics.mean(trial["found"][name] for trial in seeds.values()) for name in ("SA", "RA")]
        score, spent = statistics.mean(trial["score"] for trial in seeds.values()), document["spent"]
        what = path.stem.removeprefix(f"{world}-").replace("-", " ")
        found = entries(what, best, f"{score:.3f}", *(f"{mean:.1f}" for mean in means))
        cost = entries(f"{spent['trials']}", f"{spent['passes'] / 1e3:.0f} k", f"{spent['seconds'] / 60:.0f}")
        rows.append([*found, *cost])
    note = (
        "On validation images, by the quick probe, mean over the last round's seeds; as the highest of many it is too "
    )
    note += "good. Minutes: of one process, partly beside other work."
    columns = ["tuned", "best", "score", "SA", "RA", "trials", "passes", "minutes"]
    return [Table("", note, columns, rows, words=("best",))]


def curve_table(results: Path, world: str) -> list[Block]:
    """Return the mean score of a kept curve of constants: a row for each radius, a column for each number of steps."""
    document = read_json(results / "tuning" / f"{world}-curve.json")
    scores: dict[tuple[float, int], str] = {}
    for entry in document["trials"]:
        flags = dict(zip(*[iter(entry["candidate"].split())] * 2, strict=True))
        values = [trial["score"] for trial in entry["seeds"].values()]
        key = float(flags["--epsilon"].removesuffix("/255")), int(flags["--steps"])
        scores[key] = f"{statistics.mean(values):.3f}"
    steps = sorted({each for _, each in scores})
    rows = [
        entries(f"{epsilon:g}/255", *(scores.get((epsilon, each), MISSING) for each in steps))
        for epsilon in sorted({epsilon for epsilon, _ in scores})
    ]
    note = "Mean score of three seeds on validation images, at equal passes: fewer steps have more updates."
    return [Table("", note, ["epsilon", *(amount(each, "step") for each in steps)], rows)]


def arms_table(results: Path, name: str) -> list[Block]:
    """Return the arms of a kept search in one world, `results/tuning/NAME.json`, by their mean over seeds where the
    world is judged."""
    document = read_json(results / "tuning" / f"{name}.json")
    both, rows = document["search"]["settings"]["judge_score"] == "mean", []
    for entry in document["trials"]:
        trials = list(entry["seeds"].values())
        clean, robust = (statistics.mean(trial["found"][key] for trial in trials) for key in ("SA", "RA"))
        points = (clean + robust) / 2 if both else robust
        updates = statistics.mean(trial["updates"] for trial in trials)
        accuracies = (f"{each:.1f}" for each in (points, clean, robust))
        found = entries(with_brief_sets(entry["candidate"]), str(len(trials)), *accuracies, f"{updates:.0f}")
        rows.append((points, found))
    rows.sort(key=lambda row: -row[0])
    note = (
        f"On validation images, by the quick probe, at {document['search']['passes']:.0f} passes, exams included. "
        f"Points: {'the mean of SA and RA' if both else 'RA'} where the world is judged. Better arms had more seeds."
    )
    return [
        Table("", note, ["arm", "seeds", "points", "SA", "RA", "updates"], [row for _, row in rows], words=("arm",))
    ]


def constants_table(results: Path, name: str) -> list[Block]:
    """Return the first round of a kept search in several worlds: each constant's score in each world, the best mean
    first."""
    document = read_json(results / "tuning" / f"{name}.json")
    settings = document["search"]["settings"]
    worlds = list(document["search"]["world_passes"])
    mean_of_both = {world: settings[f"{world}: judge_score"] == "mean" for world in worlds}
    rows = []
    for entry in document["trials"]:
        first = entry["seeds"]["0"]
        points = [
            (found["SA"] + found["RA"]) / 2 if mean_of_both[world] else found["RA"]
            for world, found in first["worlds"].items()
        ]
        flags = dict(zip(*[iter(entry["candidate"].split())] * 2, strict=True))
        budget = entries(flags["--epsilon"], flags["--steps"], flags["--step_size"])
        rows.append((first["score"], [*budget, *entries(f"{first['score']:.1f}", *(f"{each:.1f}" for each in points))]))
    rows.sort(key=lambda row: -row[0])
    note = (
        "On validation images, by the quick probe, at equal passes, one seed: RA at the world's judged radius, or its "
        "mean with SA, in %."
    )
    columns = ["epsilon", "steps", "step size", "mean", *worlds]
    return [Table("", note, columns, [row for _, row in rows])]


def score_table(results: Path, name: str) -> list[Block]:
    """Return how far the quick score ranks the runs of comparisons as an evaluation does, from `results/NAME.json`."""
    document = read_json(results / f"{name}.json")
    rows = []
    for comparison, found in document["comparisons"].items():
        evaluated = [points for _, _, points in found["runs"]]
        spread = f"{min(evaluated):.1f} to {max(evaluated):.1f}"
        rows.append(entries(comparison, str(len(evaluated)), spread, _rho(found["agreement"])))
    rows.append(entries("mean", str(document["agreement"]["runs"]), MISSING, _rho(document["agreement"])))
    note = (
        "Evaluated: the mean of SA and RA at the judged radius on test images, by a linear probe and PGD-20. "
        "Spearman's rank correlation within a comparison, and its 95 % bootstrap interval over runs."
    )
    return [Table("", note, ["comparison", "runs", "evaluated, points", "rank correlation"], rows)]


def _rho(found: Mapping[str, float]) -> str:
    return f"{found['rho']:+z.2f} ({found['low']:+z.2f} to {found['high']:+z.2f})"
