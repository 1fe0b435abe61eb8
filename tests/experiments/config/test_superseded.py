"""What version 0.1 meant by saying nothing, and the last batch that some authors keep."""

import functools
import itertools
from pathlib import Path

import pytest

from astra_gym.agents.reinforce import SETTINGS
from astra_gym.envs.rewards.registry import REWARD_TERMS
from astra_gym.experiments.comparison.arms import base_arms
from astra_gym.experiments.config.cli import LEAVES, OTHER_NAMES, load, parse
from astra_gym.experiments.config.flag_values import as_text
from astra_gym.experiments.config.settings import Settings
from astra_gym.experiments.config.superseded import FORMS, as_written, left_out
from astra_gym.ssl_core.safety.yaml_files import read_yaml_file
from astra_gym.ssl_core.settings import renamed
from astra_gym.ssl_core.utils.overrides import by_present_names

NOW = {"heads": "separate", "second_draw": True}
OLD = {"heads": "joint", "second_draw": False}


def older(settings: Settings, path: Path) -> Path:
    """The record of a run as 0.1 would have written it: without a seal, and without the names of today's forms."""
    lines = settings.to_yaml().splitlines(keepends=True)
    names = {name for form in FORMS for name in form.before} | {"drop_last"}
    kept = [line for line in lines if line.strip().partition(":")[0] not in names]
    path.write_text("".join(kept).replace("agent_kwargs:\n", "agent_kwargs: {}\n"))
    return path


def test_a_record_names_its_forms_and_an_older_one_is_read_with_those_of_its_time(tmp_path: Path) -> None:
    paper = Settings.of(agent="reinforce-paper", coreset="rcs", method="acl")
    assert paper.agent.agent_kwargs == NOW and paper.coreset.coreset_kwargs == {"form": "released", "biases": False}
    read = load(older(paper, tmp_path / "config.yaml"))
    assert read.agent.agent_kwargs == OLD and read.coreset.coreset_kwargs == {"form": "softmax", "biases": True}
    assert read.data.drop_last
    # and stays what it was when it is written by this version, and read again
    (tmp_path / "again.yaml").write_text(read.to_yaml())
    assert load(tmp_path / "again.yaml") == read
    assert left_out(paper.flat()) == left_out(read.flat()) == {}
    assert as_written(read.flat()) == read.flat()


def test_a_record_given_as_config_is_the_run_of_its_time_and_a_users_own_file_is_of_today(tmp_path: Path) -> None:
    record = older(Settings.of(agent="reinforce-paper"), tmp_path / "config.yaml")
    assert parse(["--config", str(record)]).settings.agent.agent_kwargs == OLD
    assert parse(["--config", str(record), "--agent_kwargs.heads=separate"]).settings.agent.agent_kwargs == {
        **OLD,
        "heads": "separate",
    }
    (tmp_path / "mine.yaml").write_text("agent: reinforce-paper\nagent_kwargs:\n  heads: joint\n")
    assert parse(["--config", str(tmp_path / "mine.yaml")]).settings.agent.agent_kwargs == {**NOW, "heads": "joint"}


def test_a_record_is_a_base_for_another_run_without_the_forms_of_what_changes(tmp_path: Path, capsys) -> None:
    paper = tmp_path / "paper.yaml"
    paper.write_text(Settings.of(agent="reinforce-paper", agent_kwargs={"learning_rate": 0.2}).to_yaml())
    made = parse(["--config", str(paper), "--agent", "reinforce", "--observation=auto", "--reward_scope=auto"]).settings
    assert made.agent.agent_kwargs == {"learning_rate": 0.2}
    coreset = tmp_path / "rcs.yaml"
    coreset.write_text(Settings.of(method="acl", coreset="rcs").to_yaml())
    assert parse(["--config", str(coreset), "--coreset", "random"]).settings.coreset.coreset_kwargs is None
    last = tmp_path / "last.yaml"
    last.write_text(Settings.of(method="acl", agent="fixed", drop_last=False).to_yaml())
    assert not parse(["--config", str(last), "--epochs", "3"]).settings.data.drop_last
    assert parse(["--config", str(last), "--agent", "random", "--coreset", "rcs"]).settings.data.drop_last


def test_optimal_transport_has_one_form() -> None:
    words = "--method dynacl --env batch --coreset rcs --coreset_kwargs.divergence ot"
    made = parse(words.split()).settings
    assert made.coreset.coreset_kwargs == {"divergence": "ot", "biases": False}
    old = made.flat() | {"coreset_kwargs": {"divergence": "ot"}}
    assert left_out(old) == {"coreset_kwargs.biases": True}


def test_the_table_holds_what_has_changed_and_nothing_else() -> None:
    """Typed anew: what 0.1 did."""
    assert {(form.setting, form.value): dict(form.before) for form in FORMS} == {
        ("agent", "reinforce-paper"): OLD,
        ("coreset", "rcs"): {"form": "softmax", "biases": True},
    }
    assert all(getattr(form.now, name) != value for form in FORMS for name, value in form.before.items())
    assert (SETTINGS["reinforce"].heads, SETTINGS["reinforce"].second_draw) == ("joint", False)


@pytest.mark.parametrize(
    ("words", "drop_last"),
    [
        ("--preset cifar10 --method acl --agent fixed", False),
        ("--preset cifar10 --method dynacl-air++ --agent schedule", False),
        ("--preset cifar10 --method acl --agent reinforce --env batch", False),
        ("--preset cifar10 --method acl", True),
        ("--preset cifar10 --method acl --agent ppo", True),
        ("--preset cifar10 --method acl --agent fixed --coreset rcs", True),
        ("--preset cifar10 --method astra --agent fixed", True),
        ("--preset digits --method acl --agent fixed", True),
        ("--method acl --agent fixed --drop_last false", False),
    ],
)
def test_the_last_batch_is_kept_where_the_authors_do_and_the_agent_can(words: str, drop_last: bool) -> None:
    assert parse(words.split()).settings.data.drop_last is drop_last


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("--drop_last false", "the agent reinforce learns from the same number"),
        ("--drop_last false --agent ppo", "the agent ppo learns from the same number"),
        ("--drop_last false --env batch --coreset random", "a coreset is made of full batches"),
        ("--drop_last false --agent fixed --method cf-amc-ssl", "carries an attack over batches of one size"),
        ("--drop_last false --agent fixed --update_chunks 2", "update_chunks is 2"),
        ("--drop_last 3", "expected true or false"),
    ],
)
def test_the_last_batch_is_not_kept_where_that_cannot_be(words: str, reason: str, capsys) -> None:
    with pytest.raises(SystemExit):
        parse(words.split())
    assert reason in capsys.readouterr().err


def test_arms_that_are_compared_make_as_many_updates_in_an_epoch() -> None:
    def arms(*agents: str, flags: tuple[str, ...] = ()) -> list[bool]:
        made = base_arms(list(agents), ["acl"], ["cifar10"], [], flags, 1, 1)
        return [arm.settings["drop_last"] for arm in made]

    assert arms("fixed", "random") == [False, False]
    assert arms("fixed", "reinforce") == [True, True]
    assert arms("fixed", "random", flags=("--drop_last=true",)) == [True, True]


FIXTURES = Path(__file__).resolve().parents[2] / "fixtures" / "v0_1"
RECORDS = [FIXTURES / name / "config.yaml" for name in ("run", "paper")]
CHANGED = {
    "normalisation": ("cifar", "normalization"),
    "mixed_weight": (0.25, "method_kwargs.mixed_weight"),
    "mixed_reading": ("views", "method_kwargs.mixed_reading"),
    **{f"reward_{name}": (0.125, f"reward_weights.{name}") for name in REWARD_TERMS},
}
"""Flags of 0.1 that are called otherwise now: a value, and the present name."""
FLAGS_OF_0_1 = [(record, name) for record in RECORDS for name in read_yaml_file(record)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("record", "name"),
    [pytest.param(*pair, marks=() if pair[0] == RECORDS[0] else pytest.mark.every_agent) for pair in FLAGS_OF_0_1],
    ids=lambda part: getattr(part, "parent", Path(part)).name,
)
def test_each_flag_of_0_1_still_works(record: Path, name: str) -> None:
    before = _given_as_config(record)
    # a whole mapping of settings by name is one of today: the forms of 0.1 stand in it
    value = before.flat()[name] if name.endswith("_kwargs") else read_yaml_file(record)[name]
    assert parse(["--config", str(record), f"--{name}={as_text(value)}"]).settings == before


@functools.cache
def _given_as_config(record: Path) -> Settings:
    return parse(["--config", str(record)]).settings


def test_the_table_of_names_is_whole() -> None:
    of_0_1 = {name for _, name in FLAGS_OF_0_1}
    assert len(FLAGS_OF_0_1) == 2 * len(of_0_1) == 2 * 81
    assert of_0_1 - set(LEAVES) <= set(renamed.SETTINGS)
    assert set(OTHER_NAMES) | (set(renamed.SETTINGS) & of_0_1) == set(CHANGED)
    assert {new for _, new in CHANGED.values()} == {
        *(".".join(path) for path in OTHER_NAMES.values()),
        *(renamed.SETTINGS[name] for name in set(renamed.SETTINGS) & of_0_1),
    }


@pytest.mark.parametrize("old", CHANGED)
def test_an_old_flag_is_an_alias_of_the_present_one_and_both_are_an_error(old: str, tmp_path: Path, capsys) -> None:
    value, new = CHANGED[old]
    flags = {name: f"--{name}={value}" for name in (old, new)}
    group, _, option = new.partition(".")
    effects = [_effect(parse([flag]).settings, group, option, old) for flag in flags.values()]
    assert effects == [value, value]
    for words in itertools.permutations(flags.values()):
        with pytest.raises(SystemExit):
            parse(words)
        assert f"--{old} is the old name of --{new}: give one of them" in capsys.readouterr().err
    # a flag wins over a file by either name
    file = tmp_path / "c.yaml"
    names = [option, old] if option else [new, old]
    for inside, outside in itertools.permutations((old, new)):
        other = {"cifar": "half", "views": "pairs"}.get(str(value), 0.5)
        file.write_text(f"{group}: {{{option}: {other}}}\n" if "." in inside else f"{inside}: {other}\n")
        assert _effect(parse(["--config", str(file), flags[outside]]).settings, group, option, old) == value, names
    assert flags[old].partition("=")[0] not in _help(capsys)


def _effect(settings: Settings, group: str, option: str, old: str) -> object:
    """What the old or the present name of a setting comes to."""
    if not option:
        return settings.flat()[group]
    if group == "method_kwargs":
        return getattr(settings.method.make(), option)
    return settings.flat()[old]


def _help(capsys: pytest.CaptureFixture[str]) -> list[str]:
    with pytest.raises(SystemExit):
        parse(["--help"])
    return capsys.readouterr().out.split()


def test_a_flag_wins_over_a_file_by_either_name_of_an_agents_setting(tmp_path: Path) -> None:
    file, own = tmp_path / "c.yaml", tmp_path / "own.yaml"
    for inside, outside in itertools.permutations(("entropy_coef", "ent_coef")):
        file.write_text(f"agent_kwargs: {{{inside}: 0.1, gamma: 0.3}}\n")
        own.write_text(f"{inside}: 0.1\ngamma: 0.3\n")
        for words in (["--config", str(file)], ["--agent_config", str(own)]):
            found = parse([*words, "--agent", "reinforce", f"--agent_kwargs.{outside}", "0.2"]).settings.agent
            assert found.agent_kwargs == {"ent_coef": 0.2, "gamma": 0.3}, (words, inside)
        # a file of settings wins over a file of the agent's own
        file.write_text(f"agent_kwargs: {{{outside}: 0.2}}\n")
        found = parse(["--config", str(file), "--agent_config", str(own), "--agent", "reinforce"]).settings.agent
        assert found.agent_kwargs == {"ent_coef": 0.2, "gamma": 0.3}


def test_a_flag_wins_over_a_file_by_either_name_of_a_methods_option(tmp_path: Path, capsys) -> None:
    file = tmp_path / "c.yaml"
    for inside, outside in itertools.permutations(("regulariser", "regularizer")):
        file.write_text(f"method: rocl\nmethod_kwargs: {{{inside}: 9.0}}\n")
        found = parse(["--config", str(file), f"--method_kwargs.{outside}", "3.0"]).settings.method.make()
        assert found.weights["regularizer"] == 1 / 3, (inside, outside)
    with pytest.raises(SystemExit):
        parse(["--method=rocl", "--method_kwargs.regulariser=3.0", "--method_kwargs.regularizer=3.0"])
    assert "--method_kwargs.regularizer are the same: give one of them" in capsys.readouterr().err


def test_a_flag_wins_over_a_file_by_either_name_of_the_temperature(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    for inside, outside in itertools.permutations(("temperature: 0.1", "method_kwargs: {temperature: 0.1}")):
        file.write_text(inside)
        flag = "--temperature=0.2" if outside.startswith("temperature") else "--method_kwargs.temperature=0.2"
        assert parse(["--config", str(file), "--method", "acl", flag]).settings.method.make().temperature == 0.2


def test_both_names_in_one_file_are_an_error(tmp_path: Path, capsys) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("normalisation: cifar\nnormalization: cifar\n")
    with pytest.raises(SystemExit):
        parse(["--config", str(file)])
    assert "normalisation is the old name of normalization: give one of them" in capsys.readouterr().err
    file.write_text("reward_cost: 0.1\nreward_weights: {cost: 0.2}\n")
    with pytest.raises(SystemExit):
        parse(["--config", str(file)])
    assert "give one of them" in capsys.readouterr().err


def test_records_and_plans_are_read_by_present_names() -> None:
    for record in RECORDS:
        assert "normalisation:" in record.read_text() and load(record).network.normalization == "imagenet"
    assert by_present_names({"normalisation": "cifar", "epochs": 3}, renamed.SETTINGS) == {
        "normalization": "cifar",
        "epochs": 3,
    }
    assert as_written({"normalisation": "half", "drop_last": True}) == {"normalization": "half", "drop_last": True}
