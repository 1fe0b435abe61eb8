"""Folders that one process holds, and what killed writers leave: with real processes where one has to die."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from astra_gym.ssl_core.models.checkpoint import save_checkpoint
from astra_gym.ssl_core.safety import writers
from astra_gym.ssl_core.safety.disk import FolderLostError
from astra_gym.ssl_core.safety.writers import FolderLock, Locked, is_running, sweep
from astra_gym.ssl_core.utils.files import replacing
from astra_gym.ssl_core.utils.provenance import ROOT

WRITER = """
import pathlib, sys
from astra_gym.ssl_core.utils.files import replacing
from astra_gym.ssl_core.safety.writers import FolderLock
folder = pathlib.Path(sys.argv[1])
lock = FolderLock(folder)
with replacing(folder / "results.json") as temporary:
    temporary.write_text("half")
    print("writing", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def writer(tmp_path: Path):
    """A process that holds the folder and is at writing `results.json`."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "writing\n"
    yield process
    process.kill()
    process.communicate()


def dead() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_folder_has_one_writer_and_a_dead_one_blocks_nobody(tmp_path: Path, writer: subprocess.Popen) -> None:
    [temporary] = tmp_path.glob(".results.*")
    assert temporary.name == f".results.{writer.pid}.partial.json"
    with pytest.raises(Locked, match=rf"is being written by another process \(process {writer.pid} on .+\): wait") as e:
        FolderLock(tmp_path)
    assert len(str(e.value).splitlines()) == 1
    # what a living process writes stays, also where its name tells another number
    assert sweep(tmp_path) == []
    moved = temporary.rename(tmp_path / f".results.{dead()}.partial.json")
    assert sweep(tmp_path) == []
    writer.kill()
    writer.wait()
    with FolderLock(tmp_path) as lock:
        assert lock.has_locks
        assert sweep(tmp_path) == [moved]


def test_only_what_a_dead_writer_left_is_swept(tmp_path: Path) -> None:
    gone, mine = dead(), os.getpid()
    left = [f".results.{gone}.partial.json", f".images-8px.u8.{gone}.partial"]
    kept = [f".results.{mine}.partial.json", ".results.partial.json", "results.1.partial.json", f".{gone}.partial.json"]
    # hidden copies that a user may have made, one with a number that is no process's
    kept += [f".results.{gone}.json", ".results.20241130.json", ".last.pt.original", ".last.pt.20241130", ".gitignore"]
    for name in (*left, *kept):
        (tmp_path / name).write_text("x")
    (tmp_path / "victim").write_text("x")
    link, folder = f".link.{gone}.partial.json", f".folder.{gone}.partial.json"
    (tmp_path / link).symlink_to(tmp_path / "victim")
    (tmp_path / folder).mkdir()
    assert {path.name for path in sweep(tmp_path)} == set(left)
    assert {path.name for path in tmp_path.iterdir()} == {*kept, "victim", link, folder}
    assert sweep(tmp_path / "nowhere") == []


def test_a_number_that_another_process_has_taken_protects_nothing(tmp_path: Path) -> None:
    path = tmp_path / f".results.{os.getpid()}.partial.json"
    path.write_text("x")
    assert sweep(tmp_path) == []
    # written long before this process began
    os.utime(path, (1e9, 1e9))
    assert sweep(tmp_path) == [path]


def test_a_writer_removes_what_a_killed_writer_of_the_same_file_left(tmp_path: Path) -> None:
    gone = dead()
    left = [f".{name.replace('.', f'.{gone}.partial.')}" for name in ("a.json", "b.json", "c.pt")]
    for name in left:
        (tmp_path / name).write_text("half")
    with replacing(tmp_path / "a.json") as temporary:
        temporary.write_text("whole")
    assert {path.name for path in tmp_path.iterdir()} == {"a.json", *left[1:]}
    save_checkpoint(tmp_path / "c.pt", "run", {})
    assert {path.name for path in tmp_path.iterdir()} == {"a.json", "c.pt", left[1]}


def test_where_there_are_no_locks_nobody_is_kept_away_and_nothing_is_swept(tmp_path: Path, monkeypatch) -> None:
    import fcntl

    def refused(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refused)
    with FolderLock(tmp_path) as one, FolderLock(tmp_path) as other:
        assert not one.has_locks and not other.has_locks
    (tmp_path / f".a.{dead()}.partial.json").write_text("half")
    assert sweep(tmp_path) == []
    with replacing(tmp_path / "b.json") as temporary:
        temporary.write_text("whole")
    assert (tmp_path / "b.json").read_text() == "whole"


def test_a_folder_that_is_removed_or_moved_while_it_is_held_is_noticed(tmp_path: Path) -> None:
    for lose in (lambda folder: folder.rename(tmp_path / "elsewhere"), lambda folder: [*_emptied(folder)]):
        folder = tmp_path / "run"
        folder.mkdir()
        with FolderLock(folder) as lock:
            lock.check()
            (folder / ".lock").rename(folder / "x")
            lock.check()
            lose(folder)
            for _ in range(2):
                with pytest.raises(FolderLostError, match="run was removed or moved while it was written"):
                    lock.check()
                # another folder of its name is not the one that was held
                folder.mkdir(exist_ok=True)
        folder.rmdir()


def _emptied(folder: Path):
    for path in folder.iterdir():
        yield path.unlink()
    yield folder.rmdir()


def test_a_strangers_lock_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("mine")
    for make in (lambda path: path.symlink_to("victim"), lambda path: path.mkdir(), os.mkfifo):
        lock = tmp_path / ".lock"
        make(lock)
        with pytest.raises(ValueError, match=r"\.lock is no regular file: remove it"):
            FolderLock(tmp_path)
        lock.rmdir() if lock.is_dir() and not lock.is_symlink() else lock.unlink()
    assert (tmp_path / "victim").read_text() == "mine"


def test_a_lock_that_is_removed_between_opening_and_locking_is_made_anew(tmp_path: Path, monkeypatch) -> None:
    real, removed = writers.lock, []

    def late(descriptor: int) -> bool | None:
        if not removed:
            removed.append((tmp_path / ".lock").unlink())
        return real(descriptor)

    monkeypatch.setattr(writers, "lock", late)
    with FolderLock(tmp_path), pytest.raises(Locked):
        FolderLock(tmp_path)


def test_the_living_and_the_dead() -> None:
    assert is_running(os.getpid()) and is_running(1) and not is_running(dead()) and not is_running(10**30)
    zombie = subprocess.Popen([sys.executable, "-c", ""])
    # nobody has waited for it yet
    os.waitid(os.P_PID, zombie.pid, os.WEXITED | os.WNOWAIT)
    assert not is_running(zombie.pid)
    os.kill(zombie.pid, 0)
    zombie.wait()
