import pickle
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from typing import Any

import pytest

from astra_gym.experiments import measure_headroom, tune
from astra_gym.experiments.comparison.cell_results import Cell
from tests.helpers.made_cells import made_cell


class OwnProcess(Executor):
    """Does at once, in this process, what is asked; it is pickled as for another one."""

    def submit(self, function: Callable[..., Any], /, *given: Any, **more: Any) -> Future[Any]:
        function, given, more = pickle.loads(pickle.dumps((function, given, more)))
        future: Future[Any] = Future()
        try:
            future.set_result(function(*given, **more))
        except Exception as error:
            future.set_exception(error)
        return future


@pytest.fixture
def trials_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trials and repeats in this process: others import for longer than they work; test_trial.py has a real pool."""

    @contextmanager
    def pooled(jobs: int) -> Iterator[OwnProcess]:
        yield OwnProcess()

    for command in (tune, measure_headroom):
        monkeypatch.setattr(command, "pooled", pooled)


@pytest.fixture
def make_cell() -> Callable[..., Cell]:
    """`make_cell(arm, seed, {epsilon: percent})` makes a finished run without running it."""
    return made_cell
