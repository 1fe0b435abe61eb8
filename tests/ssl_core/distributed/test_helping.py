"""What rank 0 divides among the others is what it finds alone."""

from pathlib import Path

import pytest
import torch

from astra_gym.ssl_core.distributed.helping import divided
from tests.helpers.on_ranks import on_ranks
from tests.helpers.rank_evaluations import LATE, evaluated


@pytest.mark.slow
def test_an_evaluation_over_ranks_is_that_of_one_process(tmp_path: Path) -> None:
    divided_among, *others = on_ranks(3, "tests.helpers.rank_evaluations:evaluation", tmp_path)
    assert others == [0, 0]
    torch.set_num_threads(1)
    alone = evaluated()
    assert divided_among["order"] == alone["order"] == [10 * item for item in range(7)]
    # an error on another rank is that of the work, and the ranks go on
    assert divided_among.pop("Identity") == alone.pop("Identity") == "seven"
    assert "cannot be sent to other ranks" in divided_among.pop("Unsendable") and alone.pop("Unsendable") == "seven"
    assert divided_among.keys() == alone.keys() and len(alone) > 40
    for name, value in alone.items():
        assert torch.equal(torch.as_tensor(divided_among[name]), torch.as_tensor(value)), name
    robust = [int(right.sum()) for right in alone.values() if isinstance(right, torch.Tensor)]
    assert 0 < min(robust) < 40


@pytest.mark.every_agent
def test_ranks_outlast_slow_work_and_errors_and_work_that_is_left(tmp_path: Path) -> None:
    seen, status = on_ranks(2, "tests.helpers.rank_evaluations:troubles", tmp_path, limit=LATE - 5)
    assert seen == [[0, 1, 2], "OddError: 1 and 1", "no more items", 0, 0]
    # it has heard the end, too, of what was left
    assert status == 0


@pytest.mark.slow
def test_a_rank_that_is_stopped_while_it_waits_for_another_still_meets_it(tmp_path: Path) -> None:
    # else the other waits in vain, and no signal ends it
    assert on_ranks(2, "tests.helpers.rank_evaluations:stopped_while_waiting", tmp_path) == ["SIGTERM", True]


def test_a_process_alone_works_one_item_at_a_time() -> None:
    items = iter(range(3))
    results = divided(float, items)
    assert next(results) == 0 and next(items) == 1 and list(results) == [2]
