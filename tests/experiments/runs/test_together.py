"""The start of a run on several ranks: which command line counts, and what is refused."""

from pathlib import Path

import pytest

from astra_gym.experiments.config.commands import called
from astra_gym.experiments.config.settings import Settings
from astra_gym.experiments.runs import together
from astra_gym.experiments.runs.run_folder import RunFolder
from astra_gym.experiments.runs.together import begun, check_supported
from astra_gym.experiments.train_agent import main
from astra_gym.ssl_core.distributed import ranks as module
from astra_gym.ssl_core.distributed.ranks import TIMEOUT, Ranks, joined
from tests.helpers.tiny_training import TINY


@pytest.fixture
def one_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ranks:
    """A group of one rank that was started by torchrun."""
    import torch.distributed as dist

    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}.items():
        monkeypatch.setenv(name, value)
    ranks = Ranks(0, 1, dist.FileStore(str(tmp_path / "store"), 1))
    # without a process group: what one rank tells itself needs none
    monkeypatch.setattr(ranks, "gather", lambda values: values[None])
    monkeypatch.setattr(module, "_current", ranks)
    return ranks


def test_alone_the_command_line_is_as_it_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    words = [*TINY, "--run_dir=nowhere"]
    assert begun(words, "train")[1] == words
    check_supported(Settings.of(compile_blocks=True))


def test_after_a_restart_the_run_that_was_begun_resumes(
    tmp_path: Path, one_of_one: Ranks, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    words = [*TINY, f"--run_dir={folder}", "--evaluate=false", "--progress=off"]
    first, _ = begun(words, "train")
    assert first.resume is None
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    # killed before the folder was whole
    cut = RunFolder.create(folder, first.settings, [*called("train"), *words])
    cut.config.unlink()
    (cut.checkpoints / ".last.99999999.partial.pt").write_bytes(b"half")
    assert begun(words, "train")[0].resume is None
    cut.check_new()
    monkeypatch.setattr(module, "_current", Ranks())
    monkeypatch.delenv("RANK")
    assert main(words) == 0
    monkeypatch.setattr(module, "_current", one_of_one)
    invocation, again = begun(words, "train")
    assert invocation.resume == folder and again == ["--resume", str(folder)]


@pytest.mark.parametrize("whole", [True, False])
def test_a_restart_after_a_refusal_neither_resumes_nor_removes_what_another_command_has_left(
    tmp_path: Path, one_of_one: Ranks, monkeypatch: pytest.MonkeyPatch, whole: bool
) -> None:
    words = [*TINY, f"--run_dir={tmp_path / 'run'}"]
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    other = RunFolder.create(tmp_path / "run", Settings.of(seed=7), ["train", "--seed=7"])
    if not whole:
        other.config.unlink()
    (other.path / "metrics.jsonl").write_text("of the other")
    before = sorted(tmp_path.rglob("*"))
    assert begun(words, "train")[0].resume is None
    assert sorted(tmp_path.rglob("*")) == before


def test_a_restart_needs_a_folder_to_find(one_of_one: Ranks, monkeypatch: pytest.MonkeyPatch) -> None:
    begun([*TINY], "train")
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "2")
    with pytest.raises(ValueError, match="give --run_dir"):
        begun([*TINY], "train")


def test_what_several_ranks_cannot_do_is_refused_by_name(one_of_one: Ranks) -> None:
    with pytest.raises(ValueError, match="compile_blocks is for one process"):
        check_supported(Settings.of(compile_blocks=True))


def test_a_bad_command_line_is_said_once(one_of_one: Ranks, capsys: pytest.CaptureFixture) -> None:
    for lines in (1, 0):
        with pytest.raises(SystemExit):
            begun(["--epochs=0"], "train")
        assert len(capsys.readouterr().err.splitlines()) == lines
    assert one_of_one.noted_end() == 2


def test_a_rank_that_prints_nothing_has_a_console_that_leads_nowhere(
    one_of_one: Ranks, capsys: pytest.CaptureFixture
) -> None:
    for rank, said in ((0, "hello\n"), (1, "")):
        one_of_one.rank = rank
        with together.ranks_console() as console:
            console.print("hello")
        assert capsys.readouterr().out == said


def test_a_time_out_that_is_no_number_is_refused(one_of_one: Ranks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TIMEOUT, "soon")
    with pytest.raises(ValueError, match="positive number of seconds, not 'soon'"), joined():
        pass
