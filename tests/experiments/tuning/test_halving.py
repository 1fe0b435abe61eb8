"""The search against a problem of known optimum, and how much it spends."""

import itertools
import random

import pytest

from astra_gym.experiments.tuning.halving import Rung, rounds, rungs_for, search, trials


def test_the_best_of_64_is_found_in_noise_and_each_trial_is_made_once() -> None:
    made: list[tuple[int, int]] = []

    def evaluate(asked: list[tuple[int, int]]) -> dict[tuple[int, int], float]:
        made.extend(asked)
        # candidate 40 is the best; the noise is a tenth of the span, and the same whenever a pair is asked
        return {(one, seed): -abs(one - 40) / 64 + random.Random(f"{one} {seed}").gauss(0, 0.1) for one, seed in asked}

    order = search(range(64), evaluate, rungs_for(64))
    assert abs(order[0] - 40) <= 6 and sorted(order) == list(range(64))
    assert len(made) == len(set(made)) == trials(rungs_for(64)) == 64 + 16 + 8 + 4
    assert {seed for one, seed in made if one == order[0]} == set(range(8))
    # the last round has one candidate, and never one that an earlier one has left out
    scores = evaluate(made)
    lists = [left for _, left in rounds(range(64), scores, rungs_for(64))]
    assert [len(left) for left in lists] == [64, 16, 4, 1]
    assert all(set(after) <= set(before) for before, after in itertools.pairwise(lists))


def test_equals_keep_their_order_and_fewer_candidates_than_a_round_takes_are_fine() -> None:
    assert search(["b", "a", "c"], lambda asked: dict.fromkeys(asked, 1.0), rungs_for(3)) == ["b", "a", "c"]
    assert trials(rungs_for(3)) == 3 + 1


def test_a_round_that_is_not_finished_is_not_shown() -> None:
    scores = {(one, 0): float(one) for one in range(3)}
    assert [left for _, left in rounds(range(3), scores, (Rung(3, 1), Rung(2, 2)))] == [[2, 1, 0]]
    assert list(rounds(range(4), scores, rungs_for(4))) == []


@pytest.mark.parametrize("candidates", [[], [1, 1]])
def test_no_candidates_or_one_twice_is_refused(candidates: list[int]) -> None:
    with pytest.raises(ValueError, match="expected 1 or more, all different"):
        search(candidates, lambda asked: dict.fromkeys(asked, 0.0), rungs_for(2))
