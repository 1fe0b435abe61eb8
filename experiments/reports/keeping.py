"""What is kept under results/ of finished runs, comparisons and evaluations, without paths of their machine."""

import contextlib
import io
import re
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from astra_gym.experiments.comparison.arms import PATHS
from astra_gym.experiments.comparison.cell_results import COMPARISON, read_comparison, write_comparison
from astra_gym.experiments.evaluation.flags import evaluation_parser
from astra_gym.experiments.evaluation.store import EvaluationStore
from astra_gym.experiments.plotting.run_plots import reward_comparison
from astra_gym.experiments.reports.comparison_report import write_report
from astra_gym.experiments.reports.published_tables import POLICIES, policy_rewards
from astra_gym.experiments.runs.run_folder import RunFolder
from astra_gym.experiments.stats import FEWEST_SEEDS
from astra_gym.ssl_core.evaluation.results import Row, read_results
from astra_gym.ssl_core.safety.sealing import check_png, read_json, sealed_yaml
from astra_gym.ssl_core.utils.files import write_file
from astra_gym.ssl_core.utils.paths import copy_file, path_component

KEPT = ("environment.json", "results/slf.json", "results/policy.json", "results/training.json")
PLACES = {flag: "DIR" if flag.endswith("_dir") else "FILE" for flag in PATHS} | {
    **dict.fromkeys(("--out", "--corruptions_dir", "--perspective_dir", "--frost_photographs"), "DIR"),
    "--teacher": "RUN",
    "--agent_from": "RUN",
}
"""Replacement for a path of one machine in a kept command."""
PICTURES = ("action_shares.png", "losses_and_reward.png", "attack_gallery.png", "accuracy_against_epsilon.png")


def keep(run: Path, results: Path, pictures: bool, group: str | None = None) -> Path:
    """Copy a finished run's results to results/GROUP/METHOD-AGENT-seedN/; the group is by default the preset.

    Raises:
        ValueError: if it is not a run folder, or has not been evaluated.
    """
    folder = RunFolder.open(run)
    settings = folder.settings()
    if not (folder.results / "slf.json").is_file():
        raise ValueError(f"{run} has no results/slf.json: finish it by --resume {run}")
    group = group or settings.run.preset
    name = path_component(f"{settings.method.method}-{settings.agent.agent}-seed{settings.run.seed}", "the run")
    target = results / group / name
    for name in KEPT:
        if (folder.path / name).is_file():
            # a damaged file is not worth keeping
            read_json(folder.path / name)
            copy_file(folder.path / name, target / Path(name).name)
    # places on one machine mean nothing on another
    values = settings.flat()
    named = {
        name: Path(values[name]).name for name in ("classes", "teacher", "init_from", "agent_from") if values[name]
    }
    placeless = settings.replace(data_dir=None, cache_dir=None, run_dir=None, **named)
    write_file(target / "config.yaml", sealed_yaml(placeless.to_yaml()))
    for name in PICTURES if pictures else ():
        if (folder.figures / name).is_file():
            check_png(folder.figures / name)
            copy_file(folder.figures / name, target / name)
    if pictures and len(seeds := policy_rewards(results, group)) >= FEWEST_SEEDS:
        rewards = {name: [seed[name] for seed in seeds] for name in POLICIES}
        reward_comparison(rewards, results / group / "reward_comparison.png")
    return target


def keep_comparison(folder: Path, results: Path) -> Path:
    """Copy a comparison to results/comparisons/NAME/, with a new report.

    Raises:
        ValueError: if it is damaged, or no run of it is finished.
    """
    comparison = read_comparison(folder / COMPARISON)
    target = results / "comparisons" / folder.resolve().name
    # paths of one machine mean nothing on another
    unfinished = {name: _without_folders(reason) for name, reason in comparison.unfinished.items()}
    command = shlex.join(_without_places(shlex.split(comparison.command)))
    comparison = replace(comparison, command=command, unfinished=unfinished)
    write_report(comparison, target)
    write_comparison(target / COMPARISON, comparison)
    return target


def keep_evaluation(folder: Path, results: Path, name: str | None) -> Path:
    """Copy an evaluation's rows, facts and figures to results/evaluations/NAME/.

    NAME is by default that of its encoder, or, of an evaluation outside a run, that of its folder.

    Raises:
        ValueError: if it is unfinished or damaged.
    """
    store = EvaluationStore(folder)
    rows, facts = read_results(store.file), store.facts()
    place = folder.resolve().name
    if place == "evaluation" or place.startswith("evaluation-"):
        # in the folder of a run
        place = facts["name"].replace(", ", "-and-") + place.removeprefix("evaluation")
    name = name or path_component(place, "the encoder")
    target = EvaluationStore(results / "evaluations" / name)
    if target.file.is_file() and _origins(read_results(target.file)) != _origins(rows):
        raise ValueError(f"{target.path} holds the evaluation of another encoder or data set: give --group NAME")
    target.begin()
    words = shlex.split(facts["command"])
    encoders = _encoders(words[2:], folder)
    words = [
        _placeless(Path(word), facts["name"] if len(encoders) == 1 else Path(word).name)
        if Path(word) in encoders
        else word
        for word in words
    ]
    command = shlex.join(_without_places(words))
    target.show(store.own_figures())
    target.conclude(rows, facts | {"command": command})
    return target.path


def _encoders(words: Sequence[str], folder: Path) -> list[Path]:
    """Return the encoders in a kept command of `evaluate_encoder.py`; none if it names a model."""
    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            return list(evaluation_parser("").values(words)["encoders"])
    except SystemExit:
        raise ValueError(f"{folder / 'facts.json'} holds no command of an evaluation: repeat it") from None


def _origins(rows: Sequence[Row]) -> set[tuple[str, str]]:
    return {(row.checkpoint_hash, row.dataset) for row in rows}


def _placeless(encoder: Path, run: str) -> str:
    """Return an encoder's path without its machine's part: `runs/NAME`, a checkpoint in it, or a file's name."""
    if not encoder.suffix:
        return f"runs/{run}"
    return f"runs/{run}/checkpoints/{encoder.name}" if encoder.parent.name == "checkpoints" else encoder.name


def _without_places(words: Sequence[str]) -> list[str]:
    made, before = [], ""
    for word in words:
        name, equals, value = word.partition("=")
        if before in PLACES:
            made.append(PLACES[before])
        elif name in PLACES and equals:
            made.append(f"{name}={PLACES[name]}")
        elif before == "--arm" or (name == "--arm" and equals):
            # the flags of a custom arm: LABEL=FLAGS
            head, _, flags = (value if name == "--arm" else word).partition("=")
            arm = f"{head}={shlex.join(_without_places(shlex.split(flags)))}"
            made.append(f"--arm={arm}" if name == "--arm" else arm)
        elif before == "--searched" or (name == "--searched" and equals):
            # ARM=FILE; a relative path says nothing of the machine, if it stays below the folder
            head, _, file = (value if name == "--searched" else word).partition("=")
            below = not file.startswith(("/", "~")) and ".." not in Path(file).parts
            kept = f"{head}={file if below else Path(file).name}"
            made.append(f"--searched={kept}" if name == "--searched" else kept)
        else:
            made.append(word)
        before = word
    return made


def _without_folders(reason: str) -> str:
    """Shorten the absolute paths in a text to names; in quotes, a path may have blanks."""
    reason = re.sub(r"""(['"])/(?:[^'"]*/)?([^'"/]*)\1""", r"\1\2\1", reason)
    return re.sub(r"(?<![\w.~/])~?/(?:[^\s/'\",;:]+/)*([^\s/'\",;:]*)", r"\1", reason)
