"""The file of a measurement: its circumstances, every finished repeat, and the verdicts of what is finished."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from astra_gym.experiments.headroom.kinds import KINDS
from astra_gym.experiments.headroom.verdicts import Verdict
from astra_gym.experiments.headroom.world import HeadroomWorld
from astra_gym.experiments.tuning.tuning_file import check_same
from astra_gym.ssl_core.safety.sealing import read_json
from astra_gym.ssl_core.utils.files import check_target, write_json
from astra_gym.ssl_core.utils.provenance import ROOT, commit, versions

SCHEMA = 1


class HeadroomFile:
    """A measurement, written whole after every repeat.

    Args:
        path: the JSON file; one that is there is continued.
        world: what is measured.
        what: description of the measurement as JSON holds it.

    Raises:
        ValueError: if the file is of another measurement, or damaged.
    """

    def __init__(self, path: Path, world: HeadroomWorld, what: Mapping[str, Any]) -> None:
        self.path, self.world, self.what = path, world, dict(what)
        self.repeats: dict[str, dict[int, Any]] = {}
        self.seconds: dict[str, float] = {}
        self.commits: list[str] = []
        check_target(path)
        if path.is_file():
            self._read()
        self.commits = sorted({*self.commits, commit(ROOT)})

    def _read(self) -> None:
        document = read_json(self.path, "remove it to measure anew")
        try:
            if document["schema"] != SCHEMA:
                raise ValueError(f"it has schema {document['schema']}: expected {SCHEMA}")
            check_same(self.what, document["measured"], "measurement")
            self.commits = list(document["commits"])
            self.seconds = dict(document["seconds"])
            for kind, found in document["kinds"].items():
                self.repeats[kind] = {int(seed): repeat for seed, repeat in found["repeats"].items()}
                KINDS[kind].conclude(self.world, self.repeats[kind])
        except ValueError as error:
            raise ValueError(f"{self.path}: {error}; give another --output, or remove it") from error
        except (LookupError, TypeError, AttributeError) as error:
            raise ValueError(f"{self.path} is damaged ({type(error).__name__}: {error}): remove it") from error

    def add(self, kind: str, seed: int, repeat: Mapping[str, Any], seconds: float) -> None:
        """Keep a finished repeat, and the processor's seconds that it took."""
        self.repeats.setdefault(kind, {})[seed] = repeat
        self.seconds[kind] = round(self.seconds.get(kind, 0.0) + seconds, 1)
        self.write()

    def verdicts(self, kind: str) -> list[Verdict]:
        """Return the verdicts of a kind by its finished repeats; the first decides."""
        return KINDS[kind].conclude(self.world, self.repeats[kind])[0]

    def write(self) -> None:
        """Write the file."""
        kinds = {}
        for kind in KINDS:
            if not (repeats := self.repeats.get(kind)):
                continue
            verdicts, numbers = KINDS[kind].conclude(self.world, repeats)
            kinds[kind] = {
                "verdicts": [verdict.record for verdict in verdicts],
                "numbers": numbers,
                "repeats": {str(seed): repeats[seed] for seed in sorted(repeats)},
            }
        about = {"schema": SCHEMA, "measured": self.what, "commits": self.commits, "versions": versions()}
        write_json(self.path, about | {"seconds": self.seconds, "kinds": kinds})
