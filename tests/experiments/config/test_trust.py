"""A file has no module imported that this command line does not name."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from astra_gym.experiments import compare_agents, evaluate_encoder, publish, report
from astra_gym.experiments.comparison.arms import base_arms
from astra_gym.experiments.comparison.comparer import Comparer
from astra_gym.experiments.comparison.folder import ComparisonFolder, ComparisonPlan
from astra_gym.experiments.config.cli import load, parse
from astra_gym.experiments.config.settings import Settings
from astra_gym.experiments.config.trust import named_by, named_in, trusting
from astra_gym.experiments.runs.run_folder import RunFolder
from tests.helpers.refusals import refused
from tests.helpers.sealed import resealed_yaml

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures" / "v0_1"
AGENT, METHOD = "hostile_agent:act", "hostile_agent:Mine"


@pytest.fixture
def imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], bool]:
    """Whether the module of the agent and the method has been imported since the last call."""
    mark = tmp_path / "mark"
    folder = tmp_path / "modules"
    folder.mkdir()
    (folder / "hostile_agent.py").write_text(
        f"import numpy, pathlib\npathlib.Path({str(mark)!r}).touch()\n"
        "from astra_gym.ssl_core.methods import ACL\n"
        "def act(observations):\n"
        "    return numpy.tile([5, 0, 1], (len(observations), 1))\n"
        "from astra_gym.envs.observations import Features\n"
        "from astra_gym.envs.rewards.attack_terms import Cost\n"
        "from astra_gym.ssl_core.attacks.pgd import zero\n"
        "from astra_gym.ssl_core.data.datasets import DATASETS\n"
        "class Mine(ACL):\n"
        "    pass\n"
        "class Term(Cost):\n"
        "    pass\n"
        "class Seen(Features):\n"
        "    pass\n"
        "digits = DATASETS['digits']\n"
    )
    monkeypatch.syspath_prepend(folder)

    def since() -> bool:
        was = mark.exists()
        mark.unlink(missing_ok=True)
        sys.modules.pop("hostile_agent", None)
        return was

    since()
    return since


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A copy of the kept run whose record names an agent of somebody's."""
    folder = Path(shutil.copytree(FIXTURES / "run", tmp_path / "run"))
    text = (folder / "config.yaml").read_text().replace("agent: reinforce\n", f"agent: {AGENT}\n")
    (folder / "config.yaml").write_text(text)
    return folder


def test_a_run_is_resumed_with_the_modules_that_its_user_names(run: Path, imported, tmp_path: Path, capsys) -> None:
    line = refused(capsys, "--resume", str(run))
    assert f"the agent {AGENT!r} is named in a file, not on this command line, and importing it runs its code" in line
    assert line.endswith(f"train_agent.py --resume {run} --trust`") and not imported()
    # a command too long for an error is said in words: half of it would be another command
    line = refused(capsys, "--config", str(run / "config.yaml"), "--run_dir", "x" * 200)
    assert line.endswith("runs its code; if you trust it, repeat your command with --trust") and "`" not in line
    # another name is no excuse, nor is a file that repeats this one
    assert "it has hostile_agent:act" in refused(capsys, "--resume", str(run), "--agent", "other:act")
    (tmp_path / "same.yaml").write_text(f"agent: {AGENT}\n")
    again = ["--resume", str(run), "--config", str(tmp_path / "same.yaml")]
    assert "--trust`" in refused(capsys, *again) and not imported()
    for words in (["--trust"], ["--agent", AGENT], [f"--agent={AGENT}"]):
        invocation = parse(["--resume", str(run), *words])
        assert invocation.settings.agent.agent == AGENT and imported()


def test_a_config_file_names_no_module_by_itself(run: Path, imported, tmp_path: Path, capsys) -> None:
    """A file of the user's own and a stranger's record look alike."""
    own = tmp_path / "own.yaml"
    for text, flags in ((f"agent: {AGENT}\n", ["--agent", AGENT]), (f"method: {METHOD}\n", ["--method", METHOD])):
        own.write_text(text)
        for file in (own, run / "config.yaml"):
            assert "--trust`" in refused(capsys, "--config", str(file)) and not imported()
            assert "--trust`" in refused(capsys, "--config", str(file), "--print_config") and not imported()
        assert parse(["--config", str(own), *flags]) and imported()
        assert parse(["--config", str(own), "--trust"]) and imported()


PARTS = {
    "observation: hostile_agent:Seen": ["--observation", "hostile_agent:Seen"],
    "dataset: hostile_agent:digits": ["--dataset=hostile_agent:digits"],
    "attack_start: hostile_agent:zero": ["--attack_start", "hostile_agent:zero"],
    "reward_weights: {hostile_agent:Term: 0.5}": ["--reward_weights.hostile_agent:Term", "0.5"],
}
"""A line of a config file that names a module, and the flags that do."""


@pytest.mark.parametrize("line", PARTS)
def test_every_kind_of_part_obeys_the_same_rule(line: str, imported, tmp_path: Path, capsys) -> None:
    own, flags = tmp_path / "own.yaml", PARTS[line]
    own.write_text(line + "\n")
    kind = line.partition(":")[0].replace("reward_weights", "reward term").replace("dataset", "data set")
    assert f"the {kind.replace('_', ' ')} 'hostile_agent:" in refused(capsys, "--config", str(own))
    assert not imported()
    other = ["--agent", "hostile_agent:act"]
    assert "--trust`" in refused(capsys, "--config", str(own), *other)
    # the agent's own import may come first: it was named
    imported()
    by_file = parse(["--config", str(own), *flags]).settings
    assert imported() and parse(flags).settings == by_file and imported()
    assert parse(["--config", str(own), "--trust"]).settings == by_file and imported()
    # a record is read without an import, and resumed with what the user names
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text(by_file.to_yaml())
    assert load(folder / "config.yaml") == by_file and not imported()
    assert "--trust`" in refused(capsys, "--resume", str(folder)) and not imported()
    named = named_by(by_file.flat())
    assert trusting(by_file.flat()) == ["--trust"] and named_in(named) == named_in(flags) != set()
    for words in (flags, named, ["--trust"]):
        assert parse(["--resume", str(folder), *words]).settings.agent.agent == "reinforce" and imported()


def test_a_mapping_on_the_command_line_names_its_terms_too() -> None:
    words = ["--reward_weights", "{my.module:Term: 0.5, cost: 0.1}", "--reward_weights.a.b:C=1", "--out", "x:y"]
    assert named_in(words) == {"my.module:Term", "a.b:C"}
    assert named_in(["--reward_weights", "{"]) == named_in(["--agent"]) == set()


def test_a_run_on_a_data_set_of_somebody_s_is_evaluated_by_who_names_it(run, imported, tmp_path, capsys) -> None:
    text = (run / "config.yaml").read_text().replace("dataset: digits\n", "dataset: hostile_agent:digits\n")
    (run / "config.yaml").write_text(text)
    words = ["--protocols", "knn", "--attacks", "none", "--test_limit", "8", "--progress", "off"]
    with pytest.raises(SystemExit):
        evaluate_encoder.main([str(run), *words, "--out", str(tmp_path / "out")])
    line = capsys.readouterr().err
    assert line.endswith(f"evaluate_encoder.py {run} --dataset hostile_agent:digits`\n")
    assert not imported()
    named = ["--dataset", "hostile_agent:digits", "--out", str(tmp_path / "out")]
    assert evaluate_encoder.main([str(run), *words, *named]) == 0 and imported()


def test_the_agents_own_name_does_not_let_its_method_pass(run: Path, imported, capsys) -> None:
    text = (run / "config.yaml").read_text().replace("method: acl\n", f"method: {METHOD}\n")
    (run / "config.yaml").write_text(text.replace("coreset: rcs", "coreset: none"))
    # the module is the same, but not what is taken from it
    assert f"the method {METHOD!r} is named in a file" in refused(capsys, "--resume", str(run), "--agent", AGENT)
    assert parse(["--resume", str(run), "--agent", AGENT, "--method", METHOD]).settings.method.method == METHOD


@pytest.mark.parametrize("name", ["actions", "observation", "reward_scope", "agent"])
def test_a_record_that_only_an_import_would_complete_is_no_record(run: Path, name: str, imported) -> None:
    text = (run / "config.yaml").read_text()
    if name == "agent":
        text = text.replace(f"agent: {AGENT}\n", "").replace("method: acl\n", f"method: {METHOD}\n")
    lines = [line for line in text.splitlines() if not line.startswith(f"{name}:")]
    for end in ("", f"{name}: auto\n"):
        (run / "config.yaml").write_text("\n".join(lines) + "\n" + end)
        with pytest.raises(ValueError, match=r"config\.yaml (is no complete record of a run|lacks agent)"):
            load(run / "config.yaml")
        with pytest.raises(ValueError, match=r"config\.yaml (is no complete record of a run|lacks agent)"):
            RunFolder.open(run).settings()
    assert not imported()


def test_reports_and_evaluations_import_nothing(run: Path, imported, tmp_path: Path, capsys) -> None:
    words = "--protocols knn --attacks pgd20 --epsilons 8/255 --test_limit 8 --progress off"
    assert evaluate_encoder.main([str(run), *words.split(), "--out", str(tmp_path / "out")]) == 0
    assert report.main([str(tmp_path / "out")]) == 0
    for command in (report.main, publish.main):
        with pytest.raises(SystemExit):
            # it has not been evaluated at its end
            command([str(run)])
    assert not imported()


def test_a_comparison_is_resumed_with_the_modules_that_its_user_trusts(imported, tmp_path: Path, capsys) -> None:
    folder = ComparisonFolder(tmp_path / "grid")
    config = tmp_path / "agent.yaml"
    config.write_text(f"agent: {AGENT}\n")
    for own in (f"own=--agent {AGENT}", f"own=--config {config}"):
        with_config = "--config" in own
        if with_config:
            with pytest.raises(ValueError, match=r"type `python compare --trust` \(in the arm 'own'\)"):
                base_arms([], ["astra"], ["digits"], [own], [], 1, 1, None, "python compare --trust")
            assert not imported()
        arms = base_arms([], ["astra"], ["digits"], [own], [], 1, 1, with_config or None)
        assert imported()
        plan = ComparisonPlan("a", "b", 1, 1, (), tuple(arms))
        folder.write_plan(plan)
        with pytest.raises(SystemExit) as stop:
            compare_agents.main(["--resume", str(folder.path)])
        line = capsys.readouterr().err
        assert stop.value.code == 2 and f"compare_agents.py --resume {folder.path} --trust`" in line
        assert not imported()
        assert folder.read_plan(trust=True) == plan and imported()
        # a cell names what the plan names, whatever says so there
        [arm] = arms
        cell = folder.cells / "own-seed0"
        cell.mkdir(parents=True, exist_ok=True)
        (cell / "config.yaml").write_text(Settings.of(**_own(arm.settings), run_dir=str(cell)).to_yaml())
        [job] = [Comparer._job(_Held(folder), "own-seed0", arm, 0)]  # type: ignore[arg-type]
        assert parse(job.argv).settings.agent.agent == AGENT and imported()
        assert plan.trusting == ["--trust"]
        shutil.rmtree(folder.path)


class _Held:
    def __init__(self, folder: ComparisonFolder) -> None:
        self.folder = folder


def _own(settings) -> dict[str, object]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()}


def test_a_plan_cannot_trust_itself(imported, tmp_path: Path) -> None:
    folder = ComparisonFolder(tmp_path)
    folder.write_plan(
        ComparisonPlan("a", "b", 1, 1, (), tuple(base_arms(["fixed"], ["astra"], ["digits"], [], [], 1, 1)))
    )
    good = folder.config.read_text()
    for flag in ("--trust", "--resume somewhere", "--run_dir=/tmp/x", "--list", "--help"):
        folder.config.write_text(good)
        resealed_yaml(folder.config, "--agent fixed", f"--agent {AGENT} {flag}")
        with pytest.raises(ValueError, match=f"{flag.split()[0].split('=')[0]} is set for each run by the comparison"):
            folder.read_plan()
    assert not imported()
