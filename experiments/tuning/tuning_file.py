"""The file of a search: its circumstances, and every finished trial, so that a repeated command goes on."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from astra_gym.experiments.comparison.arms import differences, settings_of
from astra_gym.experiments.comparison.cell_results import plain
from astra_gym.experiments.config.commands import program
from astra_gym.experiments.config.settings import Settings
from astra_gym.experiments.tuning.candidates import Candidate, named, with_brief_sets
from astra_gym.experiments.tuning.halving import Rung, rounds, rungs_for
from astra_gym.experiments.tuning.trial import Search, Trial, record, recorded
from astra_gym.ssl_core.safety.sealing import read_json
from astra_gym.ssl_core.safety.writers import FolderLock
from astra_gym.ssl_core.utils.files import check_target, write_json
from astra_gym.ssl_core.utils.messages import shown
from astra_gym.ssl_core.utils.provenance import ROOT, commit, versions

SCHEMA = 1
NOT_SEARCHED = (
    *("seed", "run_dir", "cache_dir", "data_dir", "device", "progress"),
    *("probe_every", "probe_epochs", "probe_lr", "probe_batch_size", "probe_augment"),
)
"""Settings that do not decide what is found."""
NONE = "the world's own values"
"""The name of the candidate that changes nothing."""


def label(candidate: Candidate) -> str:
    """Return a candidate's name in the file: its flags."""
    return named(dict(candidate.settings)) or NONE


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Keep other searches (or measurements) from a file, whose folder is made; two would overwrite each other's trials.

    Raises:
        Locked: if another process searches into the file.
    """
    check_target(path)
    made = not path.parent.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FolderLock(path.parent, file=path.name) as lock:
            try:
                yield
            finally:
                lock.path.unlink(missing_ok=True)
    finally:
        if made and not any(path.parent.iterdir()):
            path.parent.rmdir()


def check_same(what: Mapping[str, Any], recorded: Mapping[str, Any], noun: str) -> None:
    """Raise a ValueError unless a file's record of its circumstances is that of this command.

    Args:
        what: the circumstances now; of settings, only those that are among them count.
        recorded: the circumstances in the file.
        noun: what the file is of, for the error.
    """
    for name, value in what.items():
        there = recorded[name]
        if isinstance(value, dict):
            there = _completed(there, value)
        if there != value:
            said = f"{name} is {shown(there)} there, not {shown(value)}"
            if isinstance(value, dict):
                said = differences(value, there)[0].replace("in the plan", "there")
            raise ValueError(f"it is another {noun}: {said}")


class TuningFile:
    """A search and its trials, written whole after every trial.

    Args:
        path: the JSON file; one that is there is continued.
        what: description of the search: what is tuned, the world's settings, the passes, the seed of the candidates.
        candidates: the candidates, in their order.
        rungs: the rounds of the search.

    Raises:
        ValueError: if the file is of another search, or damaged.
    """

    def __init__(
        self, path: Path, what: Mapping[str, Any], candidates: Sequence[Candidate], rungs: Sequence[Rung]
    ) -> None:
        self.path = path
        self.rungs = rungs
        self.what = dict(what)
        self.candidates = {label(one): one for one in candidates}
        self.trials: dict[tuple[Candidate, int], Trial] = {}
        self.commits: list[str] = []
        check_target(path)
        if path.is_file():
            self._read()
        self.commits = sorted({*self.commits, commit(ROOT)})

    def _read(self) -> None:
        document = read_json(self.path, "remove it to search anew")
        try:
            if document["schema"] != SCHEMA:
                raise ValueError(f"it has schema {shown(document['schema'])}: expected {SCHEMA}")
            check_same(self.what, document["search"], "search")
            self.commits = list(document["commits"])
            for entry in document["trials"]:
                if (name := with_brief_sets(entry["candidate"])) not in self.candidates:
                    raise ValueError(f"it is another search: its candidate {shown(name)} is none of this command's")
                candidate = self.candidates[name]
                for seed, trial in entry["seeds"].items():
                    if int(seed) not in range(self.rungs[-1].seeds):
                        raise ValueError(f"it has a trial of seed {seed}")
                    self.trials[candidate, int(seed)] = recorded(trial)
        except ValueError as error:
            raise ValueError(f"{self.path}: {error}; give another --output, or remove it") from error
        except (LookupError, TypeError, AttributeError) as error:
            raise ValueError(f"{self.path} is damaged ({type(error).__name__}: {error}): remove it") from error

    @property
    def scores(self) -> dict[tuple[Candidate, int], float]:
        """The scores of the finished trials."""
        return {pair: trial.score for pair, trial in self.trials.items()}

    @property
    def failed(self) -> set[Candidate]:
        """The candidates with a trial that failed."""
        return {candidate for (candidate, _), trial in self.trials.items() if trial.failed}

    def add(self, candidate: Candidate, seed: int, trial: Trial) -> None:
        """Keep a finished trial."""
        self.trials[candidate, seed] = trial
        self.write()

    def write(self) -> None:
        """Write the file: the trials by candidate, and the rounds that are finished, best first."""
        candidates = list(self.candidates.values())
        by_candidate = [
            {"candidate": label(one), "seeds": {str(seed): record(self.trials[one, seed]) for seed in seeds}}
            for one in candidates
            if (seeds := sorted(seed for each, seed in self.trials if each == one))
        ]
        finished = [
            {"seeds": rung.seeds, "best_first": [label(one) for one in left]}
            for rung, left in rounds(candidates, self.scores, self.rungs)
        ]
        spent = {
            "trials": len(self.trials),
            "passes": round(sum(trial.passes for trial in self.trials.values())),
            "seconds": round(sum(trial.seconds for trial in self.trials.values()), 1),
        }
        document = {"schema": SCHEMA, "search": self.what, "commits": self.commits, "versions": versions()}
        write_json(self.path, document | {"spent": spent, "rounds": finished, "trials": by_candidate})


def _completed(there: Mapping[str, Any], asked: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a file under the names that are asked for; settings that were added since have their
    defaults, with which they change nothing."""
    defaults = plain(Settings.of(), ())
    return {name: there.get(name, defaults.get(name.rpartition(": ")[2])) for name in asked}


def taken_over(
    path: Path, world: str, search: Search, settings: Mapping[str, Any]
) -> dict[tuple[Candidate, int], Trial]:
    """Return what a search in several worlds found in one of them: trials as of that world alone, by candidate and
    seed.

    Args:
        path: file of the search in several worlds.
        world: name of the world.
        search: the search in this world.
        settings: the world's settings, as `TuningFile` describes them.

    Raises:
        ValueError: if the file is none of a search in this world with the same settings, or damaged.
    """
    document = read_json(path, f"give a file of {program('tune')} --worlds")
    try:
        own = f"{world}: "
        whole = document["search"]["settings"]
        there = {name.removeprefix(own): value for name, value in whole.items() if name.startswith(own)}
        if not there:
            raise ValueError(f"it is another search: it is not in {world}")
        if (passes := document["search"]["world_passes"][world]) != search.passes:
            raise ValueError(f"its trials in {world} have {passes:.0f} passes, not {search.passes:.0f}: give --passes")
        check_same({"settings": dict(settings)}, {"settings": there}, "search")
        if not document["rounds"]:
            raise ValueError("its first round is not finished: continue it")
        found = {}
        for entry in document["trials"]:
            words = entry["candidate"].split()
            chosen = settings_of([*words, "--preset", world, "--device", "cpu"], None).agent
            changes = {name.removeprefix("--"): getattr(chosen, name.removeprefix("--")) for name in words[::2]}
            candidate = Candidate(tuple(changes.items()), float(changes["steps"]))
            for seed, trial in entry["seeds"].items():
                found[candidate, int(seed)] = search.alone(candidate, recorded(trial), world)
        return found
    except ValueError as error:
        raise ValueError(f"{path}: {error}; give a search with --worlds that has this world") from error
    except (LookupError, TypeError, AttributeError) as error:
        what = f"no file of {program('tune')} --worlds ({type(error).__name__}: {error})"
        raise ValueError(f"{path} is {what}") from error


class FinishedSearch(NamedTuple):
    """What a file says of a finished search: its description, its best candidate's label, and what it spent."""

    what: Mapping[str, Any]
    best: str
    spent: Mapping[str, Any]

    @property
    def worlds(self) -> int:
        """The number of worlds: of several, each setting has the name of its world before it."""
        return len({name.rpartition(": ")[0] for name in self.what["settings"]})


def read_finished(path: Path) -> FinishedSearch:
    """Read the file of a finished search.

    Raises:
        ValueError: if it is no tuning file, is damaged, or its search is unfinished.
    """
    try:
        document = read_json(path, "restore it from a copy, or search anew")
        what, rungs = document["search"], document["rounds"]
        whole = 1 if what["tune"] == ["curve"] else len(rungs_for(what["candidates"]))
        found = FinishedSearch(what, rungs[-1]["best_first"][0] if len(rungs) == whole else "", document["spent"])
        if document["schema"] != SCHEMA or not isinstance(what["settings"], dict) or not isinstance(found.best, str):
            raise TypeError
    except OSError as error:
        raise ValueError(f"{path} cannot be read as a tuning file: {error.strerror}") from error
    except (LookupError, TypeError) as error:
        raise ValueError(f"{path} is no tuning file: expected one that {program('tune')} wrote") from error
    if not found.best:
        raise ValueError(f"{path} is of an unfinished search: repeat its command, which continues it")
    return found
