"""What a torture came to: as a document, and as a table."""

import platform
from collections.abc import Iterable
from typing import Any

from astra_gym.ssl_core.utils.provenance import ROOT, commit, versions

SCHEMA = 1


def summary(minutes: float, seed: int, jobs: int, seconds: float, workers: Iterable[Any]) -> dict[str, Any]:
    """The counts of all parts.

    Args:
        minutes: asked for.
        seed: of the cases.
        jobs: parts at once.
        seconds: that it took.
        workers: of the parts.
    """
    parts = {}
    for worker in sorted(workers, key=lambda worker: worker.part.name):
        counts = worker.counts
        failed = [
            {"kind": kind, "cases": len(numbers), "first": numbers[0], "text": text}
            for kind, (numbers, text) in sorted(counts.failures.items(), key=lambda entry: -len(entry[1][0]))
        ]
        parts[worker.part.name] = {
            "cases": counts.cases,
            "failures": counts.failed,
            "seconds": round(counts.seconds, 1),
            "tried": dict(sorted(counts.tried.items())),
            "failed": failed,
        }
    return {
        "schema": SCHEMA,
        "minutes": minutes,
        "seed": seed,
        "jobs": jobs,
        "seconds": round(seconds, 1),
        "commit": commit(ROOT),
        "versions": versions(),
        "system": platform.system(),
        "machine": platform.machine(),
        "parts": parts,
    }


def table(document: dict[str, Any]) -> str:
    """The counts in lines for a terminal."""
    lines = [f"{'part':<10}{'cases':>7}{'failed':>8}{'seconds':>9}"]
    for name, part in document["parts"].items():
        lines.append(f"{name:<10}{part['cases']:>7}{part['failures']:>8}{part['seconds']:>9.0f}")
        lines += [f"    {entry['cases']:>4} x {entry['kind']} (case {entry['first']})" for entry in part["failed"]]
    if costs := document.get("costs"):
        lines.append(
            f"seals and digests: {100 * costs['share']:.2f} % of a training of {costs['training_seconds']:.0f} s"
        )
        lines.append(f"digests of {costs['images']:,} images: {costs['images_seconds']:.1f} s")
    return "\n".join(lines)
