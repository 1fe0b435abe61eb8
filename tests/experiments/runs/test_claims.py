import errno
from contextlib import ExitStack
from pathlib import Path

import pytest

from astra_gym.experiments.config.settings import Settings
from astra_gym.experiments.runs import claims
from astra_gym.experiments.runs.claims import claimed, held
from astra_gym.ssl_core.safety.disk import FolderLostError


def test_runs_that_begin_together_have_folders_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each finds a name free, and another process makes a folder of it before this one does."""
    monkeypatch.chdir(tmp_path)
    choose = claims.default_run_dir

    def late(settings: Settings) -> Path:
        path = choose(settings)
        if not list(tmp_path.glob("runs/*-rival")):
            path.mkdir(parents=True)
            path.with_name(f"{path.name}-rival").touch()
        return path

    monkeypatch.setattr(claims, "default_run_dir", late)
    with ExitStack() as stack:
        folders = [stack.enter_context(claimed(Settings.of())) for _ in range(3)]
    first = choose(Settings.of(), tmp_path / "elsewhere").name
    assert [folder.path.name for folder in folders] == [f"{first}-{number}" for number in (2, 3, 4)]


def test_a_named_folder_has_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    settings = Settings.of(run_dir="~/run")
    with claimed(settings) as folder:
        assert folder.path == tmp_path / "run"
        for second in (claimed(settings), held(folder)):
            with pytest.raises(ValueError, match=rf"{folder.path} is .*process"), second:
                pass
    with pytest.raises(ZeroDivisionError), claimed(Settings.of(run_dir=str(tmp_path / "failed"))):
        raise ZeroDivisionError
    assert not (tmp_path / "failed").exists()


def test_a_link_to_a_folder_is_its_folder_and_any_other_is_kept(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "file").write_text("mine")
    for name, target in {"link": "there", "dangling": "nowhere", "astray": "file"}.items():
        (tmp_path / name).symlink_to(tmp_path / target)
    with claimed(Settings.of(run_dir=str(tmp_path / "link"))) as folder:
        (folder.path / "config.yaml").touch()
    assert (tmp_path / "there" / "config.yaml").exists()
    for name in ("dangling", "astray"):
        with (
            pytest.raises(ValueError, match=f"cannot write the run folder {tmp_path / name}"),
            claimed(Settings.of(run_dir=str(tmp_path / name))),
        ):
            pass
    assert (tmp_path / "file").read_text() == "mine" and not (tmp_path / "nowhere").exists()


def test_a_file_that_is_missing_because_its_folder_was_moved_is_told_so(tmp_path: Path) -> None:
    path = tmp_path / "run"
    for moved, error in ((True, FolderLostError), (False, FileNotFoundError)):
        with pytest.raises(error), claimed(Settings.of(run_dir=str(path))):
            if moved:
                path.rename(tmp_path / "elsewhere")
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", f"{path}/events")


def test_a_run_does_not_go_on_without_what_resumes_it(tmp_path: Path) -> None:
    settings = Settings.of(run_dir=str(tmp_path / "run"))
    with claimed(settings) as folder:
        folder.begin(settings, ["train_agent.py"])
        folder.check()
        folder.config.unlink()
        with pytest.raises(FolderLostError, match=r"config\.yaml was removed or moved while the run was written"):
            folder.check()
