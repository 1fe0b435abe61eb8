"""Run folders that one process holds: a new one, or one to be resumed."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from astra_gym.experiments.config.settings import Settings, default_run_dir
from astra_gym.experiments.runs.run_folder import RunFolder, unwritable
from astra_gym.experiments.runs.silent import SilentFolder
from astra_gym.ssl_core.distributed.ranks import current
from astra_gym.ssl_core.safety.writers import LOCK, FolderLock, sweep
from astra_gym.ssl_core.utils.files import expanded


@contextmanager
def claimed(settings: Settings) -> Iterator[RunFolder]:
    """Hold the empty folder of a new run for this process: `run_dir`, or by default the first that no process holds.

    Of several ranks rank 0 holds it; the others get its path.

    Raises:
        ValueError: if it is not empty, cannot be written, or another process holds it.
    """
    ranks = current()
    if not ranks.first:
        yield SilentFolder(Path(ranks.text_of_first("")))
        return
    path, made = _made(settings)
    folder = RunFolder(path)
    folder.check_new()
    try:
        with held(folder):
            # another process may have written into it meanwhile
            folder.check_new()
            ranks.text_of_first(str(path))
            yield folder
    except BaseException:
        if made:
            _remove_empty(path)
        raise


def _made(settings: Settings) -> tuple[Path, bool]:
    """Return the folder, and whether it was made here."""
    while True:
        path = expanded(settings.run.run_dir or default_run_dir(settings))
        try:
            path.mkdir(parents=True)
            return path, True
        except FileExistsError as error:
            if path.is_dir() and settings.run.run_dir is not None:
                return path, False
            # other processes choose names too, so a name belongs to the process that makes the folder
            if settings.run.run_dir is not None:
                raise unwritable(path, error) from error
        except OSError as error:
            raise unwritable(path, error) from error


def _remove_empty(path: Path) -> None:
    with suppress(OSError):
        if [file.name for file in path.iterdir()] == [LOCK]:
            (path / LOCK).unlink()
        path.rmdir()


@contextmanager
def held(folder: RunFolder) -> Iterator[RunFolder]:
    """Hold a run's folder for this process, and remove what killed writers have left in it; a rank that does not write
    the folder holds nothing.

    Raises:
        ValueError: if another process holds it, or it cannot be written.
        FolderLostError: if a file cannot be read or written because the folder was removed or moved meanwhile.
    """
    if not folder.writes:
        yield folder
        return
    try:
        lock = FolderLock(folder.path)
    except OSError as error:
        raise unwritable(folder.path, error) from error
    with lock:
        folder.lock = lock
        ours = {path.name for path in (*folder.files, *folder.path.iterdir())}
        sweep(folder.path, ours.__contains__)
        for part in folder.parts:
            sweep(part)
        try:
            yield folder
        except OSError:
            # a file may be missing because all of the folder is
            lock.check()
            raise
        finally:
            folder.lock = None
