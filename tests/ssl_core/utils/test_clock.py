import time

import pytest

from astra_gym.ssl_core.utils.clock import Clock


def test_a_clock_counts_what_runs_inside_and_nothing_else() -> None:
    clock = Clock()
    with clock.running():
        time.sleep(0.01)
    first = clock.seconds
    time.sleep(0.01)
    assert clock.seconds == first >= 0.01
    with pytest.raises(ValueError), clock.running():
        time.sleep(0.01)
        raise ValueError
    assert clock.seconds >= first + 0.01
