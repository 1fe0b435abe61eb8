"""The command line: precedence, errors of one line, YAML round trip, what a resumed run may change."""

import re
from pathlib import Path

import pytest
import yaml

from astra_gym.experiments.config.cli import Invocation, load, parse
from astra_gym.experiments.config.presets import PRESETS
from astra_gym.experiments.config.settings import Settings
from tests.helpers.refusals import refused


def settings_of(*argv: str) -> Settings:
    return parse(argv).settings


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text("epochs: 7\nlr: 1e-1\nagent: fixed\nepsilon: 6/255\neval_epsilons: [1/255, 0.5]\n")
    return path


@pytest.fixture
def run(tmp_path: Path) -> Path:
    path = tmp_path / "run"
    path.mkdir()
    (path / "config.yaml").write_text(Settings.of(agent="ppo", epochs=4, device="cpu").to_yaml())
    return path


def test_nothing_said_is_the_default() -> None:
    assert parse([]) == Invocation(Settings.from_preset("digits"))


def test_a_file_holds_the_flags_keys(config: Path) -> None:
    expected = Settings.from_preset(
        "digits", epochs=7, lr=0.1, agent="fixed", epsilon=6 / 255, eval_epsilons=(1 / 255, 0.5)
    )
    assert settings_of("--config", str(config)) == expected
    assert settings_of(f"--config={config}") == expected


def test_an_agents_own_settings_come_from_a_file_and_from_flags(tmp_path: Path, config: Path) -> None:
    file = tmp_path / "agent.yaml"
    file.write_text("learning_rate: 1e-3\nhidden: [32, 32]\n")
    flags = ["--agent_config", str(file), "--agent_kwargs.learning_rate", "2e-3", "--agent_kwargs.n_steps=2"]
    assert settings_of(*flags).agent.agent_kwargs == {"learning_rate": 2e-3, "hidden": [32, 32], "n_steps": 2}
    assert settings_of("--agent_config", str(file)).agent.agent_kwargs == {"learning_rate": 1e-3, "hidden": [32, 32]}
    config.write_text("agent_kwargs: {n_steps: 3, learning_rate: 0.5}\n")
    merged = settings_of("--agent_config", str(file), "--config", str(config)).agent.agent_kwargs
    assert merged == {"learning_rate": 0.5, "hidden": [32, 32], "n_steps": 3}
    saved = Settings.of(agent_kwargs={"learning_rate": 1e-3, "hidden": [32]})
    (tmp_path / "config.yaml").write_text(saved.to_yaml())
    assert load(tmp_path / "config.yaml") == saved


def test_bad_settings_of_an_agent_are_refused_in_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "expected" in refused(capsys, "--agent_kwargs", "3")
    assert "did you mean --agent_kwargs" in refused(capsys, "--agent_kwarg.n_steps", "3")
    (tmp_path / "list.yaml").write_text("[1, 2]")
    assert "holds a list" in refused(capsys, "--agent_config", str(tmp_path / "list.yaml"))
    assert "cannot read" in refused(capsys, "--agent_config", str(tmp_path / "none.yaml"))


def test_fractions_among_options_are_numbers(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--method=astra++", "--post_kwargs.epsilon", "6/255", "--perspective=moebius"]
    settings = settings_of(*flags, "--perspective_kwargs.magnitude=[1/10,2/10]")
    assert settings.run.make_post().epsilon == 6 / 255
    assert list(settings.views.make_perspective().magnitude) == [0.1, 0.2]
    config.write_text("method: astra++\npost_kwargs: {step_size: 1/255}\n")
    assert settings_of("--config", str(config)).run.make_post().step_size == 1 / 255
    line = refused(capsys, "--method=astra++", "--post_kwargs.epsilon", "6/0")
    assert "epsilon of the post-processing is '6/0': expected a number" in line
    # a text is left alone where one is expected
    line = refused(capsys, "--method=acl", "--method_kwargs.streams", "1/2")
    assert "unknown streams of ACL '1/2'" in line


def test_what_a_record_lacks_is_younger_than_its_run(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    new = settings_of("--preset=cifar10", "--method=rocl", "--data_dir=photographs")
    assert (new.optimizer.lr_interval, new.optimizer.warmup_start, new.optimizer.final_lr) == ("epoch", 0.16, 0.0)
    path.write_text(new.to_yaml())
    assert load(path) == new
    younger = ("lr_interval", "warmup_start", "final_lr", "blur", "solarize", "coreset_kwargs")
    old = {name: value for name, value in yaml.safe_load(new.to_yaml()).items() if name not in younger}
    path.write_text(yaml.safe_dump(old))
    found = load(path)
    optimizer = found.optimizer
    assert (optimizer.lr_interval, optimizer.warmup_start, optimizer.final_lr) == ("update", None, 1e-6)
    assert (optimizer.lr, found.network) == (new.optimizer.lr, new.network)
    assert found.views.crop_scale == new.views.crop_scale


def test_a_record_of_what_was_ignored_once_is_read_but_not_given_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(Settings.of(method="byol", temperature=0.2, coreset_fraction=0.5).to_yaml())
    assert load(path).coreset.coreset_fraction == 0.5
    assert "there is no coreset" in refused(capsys, "--config", str(path))
    assert "byol has none" in refused(capsys, "--method=byol", "--temperature=0.2")
    line = refused(capsys, "--method=acl", "--temperature=0.5", "--method_kwargs.temperature=0.4")
    assert "--temperature and --method_kwargs.temperature are the same: give one of them" in line


def test_what_changes_nothing_is_refused_of_flags_and_own_files_but_not_of_presets_and_records(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # recipes give a start of the warm-up, the queue's first epoch and the strength
    assert settings_of("--preset=cifar10", "--method=byol", "--warmup_epochs=0").optimizer.warmup_start == 3e-5
    bare = settings_of("--preset=digits", "--method=swav", "--method_kwargs.queue_size=0").method.method_kwargs
    assert bare is not None and bare["queue_epochs"] == 2
    deacl = ["--method=deacl", f"--teacher={tmp_path}"]
    record, own = tmp_path / "record.yaml", tmp_path / "own.yaml"
    record.write_text(settings_of("--preset=digits", *deacl).to_yaml())
    assert settings_of("--config", str(record)).views.strength == PRESETS["digits"]["strength"]
    own.write_text("strength: 0.7\n")
    told = "strength is 0.7, but in the method deacl views are only cropped and flipped by settings"
    assert told in refused(capsys, *deacl, "--config", str(own))
    assert told in refused(capsys, *deacl, "--strength=0.7")
    assert settings_of(*deacl, "--strength=0.7", "--accept_idle").views.strength == 0.7
    assert "queue_epochs is 3" in refused(
        capsys, "--method=swav", "--method_kwargs.queue_size=0", "--method_kwargs.queue_epochs=3"
    )


def test_options_without_a_name_are_refused_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(capsys, "--method_kwargs", "a2s")
    assert line.endswith("--method_kwargs: expected settings by name, such as --method_kwargs.NAME VALUE, got 'a2s'")


def test_flags_win_over_files_over_presets_wherever_they_stand(config: Path) -> None:
    for argv in (
        ["--epochs", "30", "--config", str(config), "--preset", "cifar10"],
        ["--preset", "cifar10", "--config", str(config), "--epochs", "30"],
    ):
        settings = settings_of(*argv)
        assert (settings.optimizer.epochs, settings.optimizer.lr, settings.run.seed, settings.agent.agent) == (
            30,
            0.1,
            3407,
            "fixed",
        )


def test_the_last_of_two_files_wins(config: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.yaml"
    other.write_text("epochs: 9\n")
    settings = settings_of("--config", str(config), "--config", str(other))
    assert (settings.optimizer.epochs, settings.agent.agent) == (9, "fixed")


def test_the_preset_may_come_from_the_file_or_from_the_data_set(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("preset: cifar10\n")
    assert settings_of("--config", str(path)) == Settings.from_preset("cifar10")
    path.write_text("dataset: cifar10\n")
    assert settings_of("--config", str(path)) == Settings.from_preset("cifar10-quick")
    assert settings_of("--dataset", "cifar10") == Settings.from_preset("cifar10-quick")
    assert settings_of("--dataset", "folder") == Settings.from_preset("folder")
    assert settings_of("--preset", "cifar10", "--dataset", "cifar10") == Settings.from_preset("cifar10")
    assert settings_of("--dataset", "folder", "--preset", "digits") == Settings.from_preset("digits", dataset="folder")


def test_fractions_are_read_exactly() -> None:
    settings = settings_of(
        "--agent", "fixed", "--epsilon", "8/255", "--step_size=3/255", "--eval_epsilons=[4/255,1e-2]"
    )
    assert (settings.agent.epsilon, settings.agent.step_size, settings.probe.eval_epsilons) == (
        8 / 255,
        3 / 255,
        (4 / 255, 0.01),
    )
    assert settings_of("--run_dir", "8/255").run.run_dir == "8/255"


@pytest.mark.parametrize("preset", PRESETS)
def test_print_config_is_a_config_that_gives_the_same_settings(
    preset: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # a preset with a method of its own is of one without an attack
    agent = "none" if "method" in PRESETS[preset] else "reinforce-paper"
    with pytest.raises(SystemExit) as stop:
        parse(["--print_config", "--preset", preset, "--agent", agent, "--lr", "1e-7"])
    assert stop.value.code == 0
    path = tmp_path / "config.yaml"
    path.write_text(capsys.readouterr().out)
    expected = Settings.from_preset(preset, agent=agent, lr=1e-7)
    assert load(path) == settings_of("--config", str(path)) == expected
    assert yaml.safe_load(path.read_text()).keys() == expected.flat().keys()


def test_a_yaml_of_strange_strings_comes_back(tmp_path: Path) -> None:
    settings = Settings.of(data_dir="/1e-3", run_dir="1e-3", method="simclr")
    (tmp_path / "config.yaml").write_text(settings.to_yaml())
    assert load(tmp_path / "config.yaml").data.data_dir == "/1e-3"
    assert load(tmp_path / "config.yaml").run.run_dir == "1e-3"
    assert load(tmp_path / "config.yaml").agent.agent == "none"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--agent", "reinfroce"], "unknown agent 'reinfroce': .*; did you mean 'reinforce'?"),
        (["--method", "astar"], "unknown method 'astar': .*; did you mean 'astra'?"),
        (["--dataset", "cifar"], "unknown data set 'cifar': .*; did you mean 'cifar10'?"),
        (["--preset", "cifar10-quik"], "unknown preset 'cifar10-quik': .*; did you mean 'cifar10-quick'?"),
        (["--epoch", "4"], "unknown flag --epoch; did you mean --epochs?"),
        (["--run-dir=x"], "unknown flag --run-dir; did you mean --run_dir?"),
        (["--zzz"], "unknown flag --zzz: see --help"),
        (["--init", "run"], "unknown flag --init; did you mean --init_from?"),
        (["--epochs", "five"], "--epochs: expected an integer, got 'five'"),
        (["--epochs", "1.5"], "--epochs: expected an integer, got '1.5'"),
        (["--epochs"], "argument --epochs: expected one argument"),
        (["--config"], "argument --config: expected one argument"),
        (["--epsilon", "8/0"], "--epsilon: expected a number or null, got '8/0'"),
        (["--eval_epsilons", "0.5"], r"--eval_epsilons: expected a list such as \[4/255, 8/255\], got '0.5'"),
        (["stray"], "stray belongs to no flag: see --help"),
        (["--method", "simclr", "--agent", "ppo"], "agent is 'ppo', but the method simclr has no attack"),
        (["--agent", "reinforce-paper", "--reward_scope", "view"], "--reward_scope view contradicts"),
        (["--agent", "fixed", "--steps", "99"], "steps is 99: expected 1 to 10"),
        (["--batch_size", "1"], "batch_size is 1"),
        (["--config", "nowhere.yaml"], "cannot read the config file nowhere.yaml: No such file"),
        (["--resume", "nowhere"], "nowhere is not a run folder: it has no config.yaml"),
    ],
)
def test_a_bad_command_line_is_one_clear_line(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(capsys, *argv)
    assert re.search(message.replace("?", r"\?").replace(" | ", r" \| "), line), line


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epoch: 3\n", "unknown setting epoch; did you mean epochs?"),
        ("resume: runs/x\n", "unknown setting resume"),
        ("a: [1\nb", "is not a YAML file: while parsing a flow sequence"),
        ("- epochs\n", "holds a list: expected lines such as"),
        ("epochs: five\n", "--epochs: expected an integer, got 'five'"),
        ("epochs: null\n", "--epochs: expected an integer, got "),
        ("agent: no\n", "unknown agent 'no'"),
        ("\x00", "is not a YAML file"),
    ],
)
def test_a_bad_config_file_is_one_clear_line(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    assert message in refused(capsys, "--config", str(path))
    with pytest.raises(ValueError, match=r"bad\.yaml"):
        load(path)


def test_an_empty_config_file_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("# nothing yet\n")
    assert settings_of("--config", str(tmp_path / "config.yaml")) == Settings.from_preset("digits")


def test_a_resumed_run_keeps_its_settings(run: Path) -> None:
    expected = Settings.of(agent="ppo", epochs=4, device="cpu", run_dir=str(run))
    for argv in ([], ["--epochs", "4", "--agent", "ppo"], ["--run_dir", f"{run}/."], ["--preset", "digits"]):
        assert parse(["--resume", str(run), *argv]) == Invocation(expected, run)


def test_a_run_needs_the_module_of_its_agent_and_its_record_does_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = {"observation": "features", "actions": "flat", "reward_scope": "view"}
    settings = Settings.of(agent="no_such_module_here:Name", **said)
    (tmp_path / "config.yaml").write_text(settings.to_yaml())
    assert load(tmp_path / "config.yaml") == settings
    for flag, value in (("--config", tmp_path / "config.yaml"), ("--resume", tmp_path)):
        assert "cannot import no_such_module_here" in refused(capsys, flag, str(value), "--trust")
        assert "cannot import" in refused(capsys, flag, str(value), "--agent", "no_such_module_here:Name")
        assert "--trust`" in refused(capsys, flag, str(value))
    assert "did you mean" in refused(capsys, "--config", str(tmp_path / "config.yaml"), "--agent", "reinfroce")


def test_a_resumed_run_may_change_device_and_precision_and_recompute(run: Path) -> None:
    invocation = parse(["--precision", "bf16", "--resume", str(run), "--device", "auto", "--recompute", "true"])
    assert invocation.settings.optimizer.recompute
    assert (
        invocation.settings.run.device,
        invocation.settings.optimizer.precision,
        invocation.settings.optimizer.epochs,
    ) == (
        "auto",
        "bf16",
        4,
    )


def test_a_resumed_run_may_change_nothing_else(
    run: Path, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(capsys, "--resume", str(run), "--agent", "reinforce-paper", "--epochs", "5", "--device", "auto")
    assert "--epochs 5 (it has 4), --agent reinforce-paper (it has ppo): only device, precision, " in line
    assert "--epochs 7 (it has 4)" in refused(capsys, "--resume", str(run), "--config", str(config))
    assert "--run_dir" in refused(capsys, "--resume", str(run), "--run_dir", str(tmp_path))
    assert "--preset cifar10" in refused(capsys, "--resume", str(run), "--preset", "cifar10")


def test_the_data_folder_is_kept_whole_so_that_a_run_goes_on_from_anywhere(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert settings_of("--dataset", "folder", "--data_dir", "pictures").data.data_dir == str(tmp_path / "pictures")


def test_the_papers_preset_has_the_papers_agent_unless_another_is_given() -> None:
    paper = settings_of("--preset", "cifar10", "--data_dir", "x")
    expected = {"agent": "reinforce-paper", "observation": "image", "reward_scope": "batch", "arch": "resnet18"}
    expected |= {"batch_size": 512, "epochs": 1000, "seed": 3407, "optimizer": "lars", "temperature": 0.5}
    assert paper.flat().items() >= expected.items() and paper.optimizer.peak_lr == 5.0
    other = settings_of("--preset", "cifar10", "--data_dir", "x", "--agent", "ppo")
    assert (other.agent.agent, other.agent.observation, other.reward.reward_scope) == ("ppo", "features", "view")
    assert settings_of("--preset", "cifar10", "--data_dir", "x", "--method", "simclr").agent.agent == "none"


def test_a_record_shows_the_options_that_a_custom_method_took(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "from dataclasses import dataclass\nfrom astra_gym.ssl_core.methods import ACL\n"
    code += "@dataclass(frozen=True)\nclass Cold(ACL):\n    temperature: float = 0.1\n"
    (tmp_path / "cold_method_of_mine.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    section = parse(["--method=cold_method_of_mine:Cold"]).settings.method
    assert section.shared == {"temperature": 0.1, "mixed_weight": 0.5, "mixed_reading": "pairs"}
