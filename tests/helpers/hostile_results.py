"""Kept results with hostile texts wherever a user's text, or a file's, can stand: some for each kind of table."""

import shutil
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch

from astra_gym.experiments.benchmarks.measure import Figure
from astra_gym.experiments.benchmarks.results_file import document_of
from astra_gym.experiments.benchmarks.workloads import Options
from astra_gym.experiments.comparison.cell_results import COMPARISON, Cell, ComparisonResult, write_comparison
from astra_gym.experiments.comparison.searches import SearchCost
from astra_gym.experiments.config.settings import Settings
from astra_gym.experiments.evaluation.store import EvaluationStore
from astra_gym.experiments.headroom.foresight import SHARES
from astra_gym.experiments.headroom.headroom_file import HeadroomFile
from astra_gym.experiments.headroom.long_test import CONTROLS
from astra_gym.experiments.headroom.stops import NAMES as DIVISIONS
from astra_gym.experiments.headroom.verdicts import decide
from astra_gym.experiments.headroom.world import RUNGS, HeadroomWorld
from astra_gym.experiments.reports.published_tables import POLICIES
from astra_gym.experiments.tuning.candidates import Candidate, curve
from astra_gym.experiments.tuning.halving import Rung
from astra_gym.experiments.tuning.score_check import ScoredRun, record
from astra_gym.experiments.tuning.trial import Trial
from astra_gym.experiments.tuning.tuning_file import TuningFile, label
from astra_gym.ssl_core.downstream.quick_score import QuickScore
from astra_gym.ssl_core.evaluation.results import Origin, write_results
from astra_gym.ssl_core.evaluation.sanity import STAGES
from astra_gym.ssl_core.safety.sealing import read_json
from astra_gym.ssl_core.utils.files import write_json
from tests.helpers.made_cells import made_cell
from tests.torture.cases import Counts, Part
from tests.torture.summary import summary

HOSTILE = (
    *("<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "</td></tr></table><h1>x", "</title><base href=x>"),
    *('"><svg onload=x>', "' onmouseover='x", "&lt;b&gt;&#60;i&#62;", "<!-- x", "--> <b>x", "<![CDATA[x]]>", "<br>"),
    *("[x](javascript:x)", "![x](https://x.example/y.png)", "[x]: https://x.example", "[x][y]", "<https://x.example>"),
    *("https://x.example/y?z=1", "HTTP://x.example ftp://x.example", "www.x.example", "me@x.example", "[^1]"),
    *("```", "~~~ sh", "x\n```\ny\n````", "`x` ``y`` `", "    indented", "\tx", "# x", "x\n# y", "- x", "+ x"),
    *("1. x", "12) x", "> x", "---", "x\n===", "***", "| a | b |", "a|b\n-|-\nc|d", "**x** __y__ *z* _w_ ~~v~~"),
    *("x.__y__.z", "\\", "x\\", "$\\frac{x$ $y$", "{{ page.title }}{% raw %}", "{0} %s", "_x", "\x1b[31mx\x1b[0m"),
    *("x\0y\u202ez", "<details open><summary>x", "<!-- end -->", "<!-- table accuracy x -->"),
)
NAMES = tuple(text for text in HOSTILE if text.isprintable() and not set(text) & {"/", "\\"})
"""What a folder, a method or a preset can be called."""
EVERY = " ".join(HOSTILE)
SOME = tuple(" ".join(HOSTILE[at::8]) for at in range(8))
"""All texts in few labels, where each label costs time."""
RADIUS = 8 / 255
UNDRAWN: dict[str, Any] = {"curve": {"step": [1, 2]}, "shares": {}, "by_clean_loss": {}}
FOUND = QuickScore(90.0, 50.0, 0.5, 0.1)


class Asked(NamedTuple):
    """A table that a document asks for by kind and name, and the hostile texts that it shows."""

    kind: str
    name: str
    shown: Sequence[str] = ()


def kept_results(results: Path) -> dict[str, Asked]:
    """Keep results in a folder, by the writers of the commands; return the tables to ask for by kind."""
    makers = (runs, evaluations, comparisons, families, measurements, searches, headroom)
    return {asked.kind: asked for make in makers for asked in make(results)}


def hostile_cells(arms: Sequence[str], method: str = "astra") -> list[Cell]:
    """A cell an arm, with the arm's text in all that it holds; rewards and choices are not drawn."""
    return [
        made_cell(
            arm,
            accuracy={0.0: 95.0, RADIUS: 50.0 + place % 7},
            agent="own:Agent",
            method=method,
            settings={"own": arm, arm: place, "agent_kwargs": {arm: [arm]}, "reward_own": arm},
            versions={arm: arm},
            commits=[arm],
            device=arm,
            damage=[arm],
            attack_steps=1000 * (place + 1),
            **UNDRAWN,
        )
        for place, arm in enumerate(arms)
    ]


def hostile_evaluation(folder: Path, texts: Sequence[str] = HOSTILE) -> None:
    """Keep an evaluation of an encoder of each name."""
    rows = []
    for text in texts:
        origin = Origin(protocol="slf", route="pgd", seed=0, checkpoint=text, commit=text, deviations=(text,))
        rows += [origin.accuracy("SA", 180, 200), origin.accuracy("RA", 90, 200, attack="pgd20", epsilon=RADIUS)]
        rows += [origin.accuracy("RA", 80, 200, attack=stage, epsilon=RADIUS) for stage in STAGES]
        rows += [origin.accuracy("train_SA", 190, 200), origin.accuracy("CA", 160, 200, condition="weather")]
        features = Origin(protocol="features", route="pgd", seed=0, checkpoint="x", commit="x")
        rows.append(features.figure("effective_rank", 12.5, 200, condition=text))
    facts: dict[str, Any] = {"name": EVERY, "commit": EVERY, "device": EVERY, "command": "\n".join(HOSTILE)}
    facts |= {"threads": 1, "versions": {text: text for text in HOSTILE}, "void": {text: text for text in HOSTILE}}
    facts |= {"notes": {text: [text] for text in HOSTILE}, "data": {"name": EVERY, "train": 1, "test": 1}}
    EvaluationStore(folder).conclude(rows, facts)


def runs(results: Path) -> Iterator[Asked]:
    run, *encoders = (
        Origin(protocol="slf", route="pgd", seed=0, checkpoint=name, commit="x").accuracy("SA", 180, 200)
        for name in ("step-9", *HOSTILE)
    )
    for name in NAMES:
        write_results(results / "x" / f"{name}-seed0" / "slf.json", [run])
    write_results(results / "x" / "x-seed0" / "slf.json", encoders)
    yield Asked("accuracy", "x", (*NAMES, *(text.replace("-", " ") for text in HOSTILE)))
    for seed in range(2):
        policy = {"schema": 1, "rewards": {name: [0.1 + seed] for name in (*POLICIES, *HOSTILE)}}
        write_json(results / "x" / f"astra-reinforce-seed{seed}" / "policy.json", policy)
    yield Asked("policy", "x")


def evaluations(results: Path) -> Iterator[Asked]:
    hostile_evaluation(results / "evaluations" / "x")
    for kind in ("accuracy", "stages", "shifts", "health", "remarks"):
        yield Asked(f"evaluated-{kind}", "x", HOSTILE)
    hostile_evaluation(results / "evaluations" / "y", ["x"])
    for name in NAMES:
        shutil.copytree(results / "evaluations" / "y", results / "evaluations" / f"x-{name}")
    yield Asked("evaluated-arms", "x", NAMES)


def comparisons(results: Path) -> Iterator[Asked]:
    arms = ComparisonResult("x", "", hostile_cells(HOSTILE), {}, tests=tuple(pairwise(HOSTILE)))
    write_comparison(results / "comparisons" / "x" / COMPARISON, arms)
    for kind in ("compared-primary", "headroom-compared"):
        yield Asked(kind, "x", HOSTILE)
    # the first arm is no test's reference
    yield Asked("compared-others", "x", HOSTILE[1:])
    methods = [
        made_cell(
            arm, method=text, preset=EVERY, agent="own:Agent", images=20, settings={"coreset": coreset}, **UNDRAWN
        )
        for text in SOME
        for arm, coreset in (("fixed", "random"), (text, "rcs"))
    ]
    searched = tuple(SearchCost(text, text, [text], 1, 1, 1.0, 1.0) for text in HOSTILE)
    write_comparison(
        results / "comparisons" / "y" / COMPARISON, ComparisonResult("y", "", methods, {}, searched=searched)
    )
    for kind in ("accuracy", "compute", "methods", "strategies", "coresets"):
        yield Asked(f"compared-{kind}", "y", HOSTILE)


def families(results: Path) -> Iterator[Asked]:
    claims = [{"arm": arm, "against": against} for arm, against in zip(HOSTILE[::2], HOSTILE[1::2], strict=True)]
    write_json(results / "families" / "x.json", {"comparisons": ["x"], "seeds": 20, "claims": claims})
    yield Asked("family", "x", HOSTILE)
    arms, names = (EVERY, f"{EVERY} 2"), [f"z-{name}" for name in NAMES]
    unseen = UNDRAWN | {"curve": {"step": [1], "epsilon": [8.0], "steps": [4.0], "step_size": [2.0]}}
    cells = [made_cell(arm, images=20, **unseen) for arm in arms]
    for name in names:
        file = results / "comparisons" / name / COMPARISON
        write_comparison(file, ComparisonResult("z", "", cells, {}, tests=(arms,)))
    claims = [{"arm": arms[0], "against": arms[1]}]
    write_json(results / "families" / "z.json", {"comparisons": names, "seeds": 20, "claims": claims})
    for kind in ("family-ends", "family-instances", "headroom-instances"):
        yield Asked(kind, "z", (*NAMES, *HOSTILE))


def measurements(results: Path) -> Iterator[Asked]:
    figures = [Figure("x", text, "share", (0.5,)) for text in HOSTILE]
    document = document_of(Options(1, torch.device("cpu")), figures, {})
    document |= {"processor": EVERY, "versions": {"torch": EVERY}}
    write_json(results / "benchmark.json", document)
    yield Asked("benchmark", "x", HOSTILE)
    counts = Counts()
    counts.add(0, 1.0, {}, [(text, text) for text in HOSTILE])
    workers = [SimpleNamespace(part=Part(text, 0.1, lambda case: None), counts=counts) for text in HOSTILE]
    document = summary(1.0, 0, 1, 1.0, workers)
    write_json(results / "reliability.json", document | {"system": EVERY, "machine": EVERY})
    yield Asked("reliability", "all", HOSTILE)
    document = record({"x": [ScoredRun(EVERY, float(n), 50.0 + n) for n in range(3)]})
    document["comparisons"] = dict.fromkeys(HOSTILE, document["comparisons"]["x"])
    write_json(results / "score.json", document)
    yield Asked("score", "score", HOSTILE)


def searches(results: Path) -> Iterator[Asked]:
    def keep(name: str, what: dict[str, Any], candidates: Sequence[Candidate], **more: Any) -> None:
        file = TuningFile(results / "tuning" / f"{name}.json", what, candidates, [Rung(len(candidates), 1)])
        file.trials = {(one, 0): Trial(0.5, FOUND, 10, 1000.0, 30.0, **more) for one in candidates}
        file.write()

    every = Candidate((("agent", EVERY),))
    keep("x-agent", {"tune": ["agent"], "settings": {"preset": "x"}}, [every])
    for name in NAMES:
        shutil.copy(results / "tuning" / "x-agent.json", results / "tuning" / f"x-{name}.json")
    # a file's name stands there without its hyphens
    yield Asked("tuned", "x", (*(name.replace("-", " ") for name in NAMES), label(every)))
    constants = curve(Settings.from_preset("digits-wide").ranges.sets, 2)
    keep("x-curve", {"tune": ["curve"], "settings": {"preset": "x"}}, constants)
    yield Asked("curve", "x")
    arms = [Candidate((("agent", text),)) for text in HOSTILE]
    keep("arms", {"tune": ["arms"], "passes": 1.0, "settings": {"judge_score": "mean"}}, arms)
    yield Asked("arms", "arms", list(map(label, arms)))
    worlds = {"settings": {f"{text}: judge_score": "mean" for text in HOSTILE}}
    worlds |= {"tune": ["fixed"], "world_passes": dict.fromkeys(HOSTILE, 1.0)}
    keep("worlds", worlds, constants, worlds=dict.fromkeys(HOSTILE, FOUND))
    yield Asked("constants", "worlds", HOSTILE)


def headroom(results: Path) -> Iterator[Asked]:
    constant = {"agent": "fixed", "epsilon": 48 / 255, "steps": 1, "step_size": 32 / 255}
    world = HeadroomWorld(Settings.from_preset("digits-wide").replace(**constant))
    credit = {name: [[0.1 * at for at in range(RUNGS)]] * 2 for name in ("a", "b", "forward")}
    ways = {name: [0.1, 0.1 + 0.1 * at] for at, name in enumerate((*CONTROLS, "chosen", "shuffled"))}
    division = {name: 1.0 for name in DIVISIONS}
    repeats: dict[str, dict[str, Any]] = {
        "view": {
            "judge_images": 8,
            "update": credit | {"checked": [[0.1, 0.2], [0.2, 0.3]]},
            "long": {"falls": ways, "chosen": [1 / RUNGS] * RUNGS, "steps": 4.0},
        },
        "foresight": {"scores": list(range(RUNGS)), "falls": [list(range(RUNGS))] * len(SHARES)},
        "attack": {"batches": [division | {"oracle": 2.0, "clean": 1.0, "spread": 1.0, "histogram": [0, 8]}]},
        "stops": {
            "batches": [{"steps": 4.0, "clean": 1.0, "losses": division, "seconds": division, "spread": 1.0}],
            "learning_seconds": 1.0,
        },
    }
    file = HeadroomFile(results / "headroom" / "x.json", world, {})
    for kind, repeat in repeats.items():
        file.add(kind, 0, repeat, 1.0)
    document = read_json(file.path)
    # the command's own texts are plain: the hostile ones are those of a changed file
    for found in document["kinds"].values():
        found["verdicts"] += [decide(text, [0.1], text, 1.0).record for text in HOSTILE]
    for kind, name in (("view", "variance"), ("view", "rank_correlations"), ("view", "falls"), ("attack", "losses")):
        numbers = document["kinds"][kind]["numbers"][name]
        numbers |= {f"{name} {text}": next(iter(numbers.values())) for text in HOSTILE}
    write_json(file.path, document)
    yield Asked("headroom", "x", HOSTILE)
    yield Asked("headroom-numbers", "x", HOSTILE)
    yield Asked("headroom-credit", "x")
    yield Asked("headroom-stops", "x")
