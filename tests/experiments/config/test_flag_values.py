"""Flags and config files are read by one YAML, 1.2's, and text in them is never read twice."""

import json
from pathlib import Path

import pytest
import yaml

from astra_gym.experiments.config.argparser import CommandParser
from astra_gym.experiments.config.cli import LEAVES, TrainCommand, load, parse
from astra_gym.experiments.config.flag_values import is_by_name, plain, reader
from astra_gym.experiments.config.settings import Settings
from tests.helpers.refusals import refused


@pytest.mark.parametrize(
    ("flag", "text"),
    [
        *(("download", word) for word in ("off", "yes", "1", "")),
        *(("epochs", word) for word in ("1:30", "1_000", "0b11", "1e1", "true", "٣", "[3]")),
        *(("lr", word) for word in ("1:30.5", "1_0.5", ".nan", "nan")),
        *(("eval_epsilons", word) for word in ("[1:30]", '["0.5"]', "[true]", "0.5")),
    ],
)
def test_what_yaml_1_1_took_for_a_number_or_a_truth_value_is_refused(
    flag: str, text: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert f"--{flag}: expected " in refused(capsys, f"--{flag}", text)
    (tmp_path / "c.yaml").write_text(f"{flag}: {text}\n")
    assert f"--{flag}: expected " in refused(capsys, "--config", str(tmp_path / "c.yaml"))


def test_numbers_are_those_of_the_core_schema_in_flags_and_in_files(tmp_path: Path) -> None:
    flags = ["--epochs", "010", "--batch_size=0x1f", "--limit", "0o10", "--lr", "1e-3", "--eval_epsilons", "[1/4,0.5]"]
    made = parse(flags).settings
    assert (made.optimizer.epochs, made.optimizer.batch_size, made.data.limit, made.optimizer.lr) == (10, 31, 8, 1e-3)
    assert made.probe.eval_epsilons == (0.25, 0.5)
    file = tmp_path / "c.yaml"
    file.write_text("epochs: 010\nbatch_size: 0x1f\nlimit: 0o10\nlr: 1e-3\neval_epsilons: [1/4, 0.5]\n")
    assert parse(["--config", str(file)]).settings == made


def test_a_folder_called_010_keeps_its_name(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    for name in ("010", "1e3", "0x1f", "2020-01-01", "off"):
        file.write_text(f"run_dir: {name}\n")
        assert parse(["--config", str(file)]).settings.run.run_dir == name
        assert parse(["--run_dir", name]).settings.run.run_dir == name
        file.write_text(Settings.of(run_dir=name).to_yaml())
        assert load(file).run.run_dir == name


def test_settings_by_name_are_read_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = {"a": "off", "b": "010", "c": ["1:30", 1e-3], "d": {"e": "null", "f": None}, "g": "1e3", "h": 8}
    file = tmp_path / "c.yaml"
    file.write_text(Settings.of(agent_kwargs=values).to_yaml())
    assert load(file).agent.agent_kwargs == values
    assert parse(["--config", str(file)]).settings.agent.agent_kwargs == values
    assert parse([f"--agent_kwargs={json.dumps(values)}"]).settings.agent.agent_kwargs == values
    flags = ["--agent_kwargs.a", "off", "--agent_kwargs.b='010'", "--agent_kwargs.c", "[1:30, 1e-3]", "--epochs", "2"]
    flags += ["--agent_kwargs.d.e", '"null"', "--agent_kwargs.d.f=", "--agent_kwargs.g='1e3'"]
    flags += ["--agent_kwargs.h", "010"]
    assert parse(flags).settings.agent.agent_kwargs == values | {"h": 10}
    assert parse(["--agent_kwargs.x", "- -1"]).settings.agent.agent_kwargs == {"x": [-1]}
    assert parse(["--agent_kwargs.x", "-1e-3"]).settings.agent.agent_kwargs == {"x": -1e-3}
    assert "--agent_kwargs.x: '{a: 1, a: 2}' is not YAML: the key 'a' stands twice" in refused(
        capsys, "--agent_kwargs.x", "{a: 1, a: 2}"
    )
    assert "expected one argument" in refused(capsys, "--agent_kwargs.x", "--epochs", "2")
    assert "expected a name behind every dot" in refused(capsys, "--agent_kwargs..x=1")


def test_the_names_of_reward_terms_may_have_dots(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--reward_weights.my.terms:Far", "0.5", "--reward_weights", "{a:B: 2}", "--reward_weights.c.d:E.f=1/4"]
    given = CommandParser("train", TrainCommand, "", "").given(flags)
    assert given["reward_weights"] == {"a:B": 2, "c.d:E.f": "1/4"}
    file = tmp_path / "c.yaml"
    file.write_text("reward_weights:\n  cost: 0.01\n")
    settings = parse(["--config", str(file), "--reward_weights.progress", "1/4"]).settings
    assert (settings.reward.reward_cost, settings.reward.reward_progress, settings.reward.reward_weights) == (
        0.01,
        0.25,
        None,
    )
    # a flag wins over a file under either name
    assert parse(["--reward_cost", "0.02", "--config", str(file)]).settings.reward.reward_cost == 0.02
    assert "unknown reward term 'coast': choose from adversarial" in refused(capsys, "--reward_weights.coast", "1")


def test_a_doubled_key_is_refused_wherever_it_stands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("agent: ppo\nagent_kwargs:\n  learning_rate: 0.1\n  learning_rate: 0.2\n")
    assert "c.yaml is not a YAML file: the key 'learning_rate' stands in lines 3 and 4" in refused(
        capsys, "--config", str(file)
    )
    assert "the key 'learning_rate'" in refused(capsys, "--agent_config", str(file))
    with pytest.raises(ValueError, match="the key 'learning_rate'"):
        load(file)
    for text in ("method: dynacl\nmethod_kwargs: [1]\n", "agent_kwargs: {1: 2}\n", "coreset_kwargs: abc\n"):
        file.write_text(text)
        assert "expected settings by name" in refused(capsys, "--config", str(file))
    file.write_text("agent_kwargs: [1]\n")
    (tmp_path / "agent.yaml").write_text("n_steps: 2\n")
    assert "--agent_kwargs: expected settings by name" in refused(
        capsys, "--config", str(file), "--agent_config", str(tmp_path / "agent.yaml")
    )


def test_a_class_that_a_file_names_is_never_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """jsonargparse would import it, to see whether its arguments are right."""
    mark = tmp_path / "imported"
    (tmp_path / "hostile_class.py").write_text(f"open({str(mark)!r}, 'w')\nclass X:\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    value = {"x": {"class_path": "hostile_class.X"}}
    file = tmp_path / "c.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(Settings.of().to_yaml()) | {"agent_kwargs": value}))
    assert load(file).agent.agent_kwargs == value
    assert parse(["--config", str(file), "--agent_kwargs.y", "{class_path: hostile_class.X}"])
    assert not mark.exists()


def test_a_mapping_of_jsonargparses_own_words_is_a_plain_value(tmp_path: Path) -> None:
    value = {"__path__": 1, "__subclasses_disabled__": True, "a.b": {"init_args": {}, " ": None}, "": 2, "items": [{}]}
    file = tmp_path / "c.yaml"
    file.write_text(yaml.safe_dump({"agent_kwargs": value}))
    assert parse(["--config", str(file)]).settings.agent.agent_kwargs == value
    assert parse(["--config", str(file), "--agent_kwargs.x.y=1"]).settings.agent.agent_kwargs == {
        **value,
        "x": {"y": 1},
    }
    assert parse([f"--agent_kwargs={json.dumps(value)}"]).settings.agent.agent_kwargs == value


def test_every_setting_comes_back_from_its_text() -> None:
    """Every default and preset, as a flag's text and as a file's value."""
    presets = [
        Settings.from_preset(name, data_dir="x")
        for name in ("cifar10", "cifar10-teacher", "cifar10-teacher-daq", "cifar10-16")
    ]
    for settings in (Settings.of(), *presets):
        values = yaml.safe_load(settings.to_yaml())
        assert values.keys() == LEAVES.keys()
        for name, value in values.items():
            read, made = reader(name, LEAVES[name].hint), settings.flat()[name]
            for given in (value, value if isinstance(value, str) else json.dumps(value)):
                assert plain(read(given)) == made and type(plain(read(given))) is type(made)
            # jsonargparse reads a value twice
            assert read(read(value)) == read(value)
    named = {name for name, leaf in LEAVES.items() if is_by_name(leaf.hint)}
    ranges = {"action_epsilons", "action_steps", "action_step_sizes"}
    assert named == {name for name in LEAVES if name.endswith("_kwargs")} | {"reward_weights"} | ranges
