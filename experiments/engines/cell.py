"""The process of a cell: `train_agent.py` with its output in a log, which ends with the process that started it."""

import contextlib
import importlib
import json
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from astra_gym.experiments.config.commands import launcher
from astra_gym.ssl_core.utils.provenance import CHECKOUT


def run_cell(argv: Sequence[str], log: str, directory: str, cpus: int, parent: Callable[[], object]) -> None:
    """Run `train_agent.main` with its output in the log; end the process with its exit status.

    Args:
        argv: arguments of the run.
        log: file to which the output is appended.
        directory: the working folder.
        cpus: number of threads.
        parent: waits until the process that started this one is gone.
    """
    # away from the terminal, so that Ctrl-C reaches only the scheduler, which asks the workers once
    os.setsid()
    os.chdir(directory)
    end_with(parent)
    output = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    for stream, number in ((sys.stdout, 1), (sys.stderr, 2)):
        stream.flush()
        os.dup2(output, number)
        stream.reconfigure(encoding="utf-8", line_buffering=True)  # type: ignore[union-attr]
    os.close(output)
    import torch

    torch.set_num_threads(cpus)
    from astra_gym.ssl_core.distributed.ranks import STARTED

    # a cell is one process, whatever the comparison was started as: side by side they would all be the same rank
    for name in STARTED:
        os.environ.pop(name, None)
    train_agent = importlib.import_module("astra_gym.experiments.train_agent")
    # as a person would type it, for command.txt
    if not launcher():
        sys.argv[0] = _shortest(Path(train_agent.__file__ or ""))
    sys.exit(train_agent.main(list(argv)))


def found_here() -> dict[str, str]:
    """Return the variables of the environment by which a new Python process imports this copy of the project."""
    paths = os.pathsep.join(filter(None, [str(CHECKOUT or ""), os.environ.get("PYTHONPATH")]))
    return {"PYTHONPATH": paths, "PYTHONSAFEPATH": "1"}


@contextlib.contextmanager
def changed(variables: Mapping[str, str]) -> Iterator[None]:
    """Set variables of the environment while entered."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _shortest(path: Path) -> str:
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def parent_gone() -> None:
    """Wait until the process that started this one by `multiprocessing` is gone."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()


def end_with(parent: Callable[[], object]) -> None:
    """End this process when its parent is gone, since its work would not be counted and another would begin it anew.

    Args:
        parent: waits for that.
    """

    def wait() -> None:
        parent()
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=wait, daemon=True).start()


def _main(words: str) -> None:
    """Run the cell of an `astra_gym.experiments.engines.remote.Attendant`, whose end closes the standard input."""
    task = json.loads(words)
    sys.argv[0] = task.pop("program")
    # not by `sys.stdin`, whose lock would be held when Python ends
    run_cell(**task, parent=lambda: os.read(0, 1))


if __name__ == "__main__":
    _main(sys.argv[1])
