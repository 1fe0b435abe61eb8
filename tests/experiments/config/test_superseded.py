"""What version 0.1 meant by saying nothing, and the last batch that some authors keep."""

from dataclasses import asdict
from pathlib import Path

import pytest

from astra_gym.agents.reinforce import SETTINGS
from astra_gym.experiments.comparison.arms import base_arms
from astra_gym.experiments.config.cli import load, parse
from astra_gym.experiments.config.settings import Settings
from astra_gym.experiments.config.superseded import FORMS, as_written, left_out

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
    paper = Settings(agent="reinforce-paper", coreset="rcs", method="acl")
    assert paper.agent_kwargs == NOW and paper.coreset_kwargs == {"form": "released", "biases": False}
    read = load(older(paper, tmp_path / "config.yaml"))
    assert read.agent_kwargs == OLD and read.coreset_kwargs == {"form": "softmax", "biases": True}
    assert read.drop_last
    # and stays what it was when it is written by this version, and read again
    (tmp_path / "again.yaml").write_text(read.to_yaml())
    assert load(tmp_path / "again.yaml") == read
    assert left_out(asdict(paper)) == left_out(asdict(read)) == {}
    assert as_written(asdict(read)) == asdict(read)


def test_a_record_given_as_config_is_the_run_of_its_time_and_a_users_own_file_is_of_today(tmp_path: Path) -> None:
    record = older(Settings(agent="reinforce-paper"), tmp_path / "config.yaml")
    assert parse(["--config", str(record)]).settings.agent_kwargs == OLD
    assert parse(["--config", str(record), "--agent_kwargs.heads=separate"]).settings.agent_kwargs == {
        **OLD,
        "heads": "separate",
    }
    (tmp_path / "mine.yaml").write_text("agent: reinforce-paper\nagent_kwargs:\n  heads: joint\n")
    assert parse(["--config", str(tmp_path / "mine.yaml")]).settings.agent_kwargs == {**NOW, "heads": "joint"}


def test_a_record_is_a_base_for_another_run_without_the_forms_of_what_changes(tmp_path: Path, capsys) -> None:
    paper = tmp_path / "paper.yaml"
    paper.write_text(Settings(agent="reinforce-paper", agent_kwargs={"learning_rate": 0.2}).to_yaml())
    made = parse(["--config", str(paper), "--agent", "reinforce", "--observation=auto", "--reward_scope=auto"]).settings
    assert made.agent_kwargs == {"learning_rate": 0.2}
    coreset = tmp_path / "rcs.yaml"
    coreset.write_text(Settings(method="acl", coreset="rcs").to_yaml())
    assert parse(["--config", str(coreset), "--coreset", "random"]).settings.coreset_kwargs is None
    last = tmp_path / "last.yaml"
    last.write_text(Settings(method="acl", agent="fixed", drop_last=False).to_yaml())
    assert not parse(["--config", str(last), "--epochs", "3"]).settings.drop_last
    assert parse(["--config", str(last), "--agent", "random", "--coreset", "rcs"]).settings.drop_last


def test_optimal_transport_has_one_form() -> None:
    words = "--method dynacl --env batch --coreset rcs --coreset_kwargs.divergence ot"
    made = parse(words.split()).settings
    assert made.coreset_kwargs == {"divergence": "ot", "biases": False}
    old = asdict(made) | {"coreset_kwargs": {"divergence": "ot"}}
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
    assert parse(words.split()).settings.drop_last is drop_last


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("--drop_last false", "the agent reinforce learns from the same number"),
        ("--drop_last false --agent ppo", "the agent ppo learns from the same number"),
        ("--drop_last false --env batch --coreset random", "a coreset is made of full batches"),
        ("--drop_last false --agent fixed --method cf-amc-ssl", "carries an attack over batches of one size"),
        ("--drop_last false --agent fixed --update_chunks 2", "update_chunks is 2"),
        ("--drop_last 3", "expected bool"),
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
