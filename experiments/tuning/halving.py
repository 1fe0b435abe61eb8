"""Successive halving: many candidates on one seed, the better ones on more seeds, until one is left."""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

Candidate = TypeVar("Candidate", bound=Hashable)
Scores = Mapping[tuple[Candidate, int], float]
"""Finished trials: the score by candidate and seed."""


class Rung(NamedTuple):
    """A round of the search: the number of candidates that are left, and of the seeds that each has by its end."""

    candidates: int
    seeds: int


def rungs_for(candidates: int, seeds: int = 1) -> tuple[Rung, ...]:
    """Return the rounds of a search, for 64 candidates: 64, 16, 4 and 1 of them on 1, 2, 4 and 8 times `seeds` seeds.

    A quarter stays, on twice as many seeds, until one is left, so that the later rounds cost no more than the first
    (Jamieson and Talwalkar 2016, "Non-stochastic best arm identification and hyperparameter optimization").
    """
    rungs = [Rung(candidates, seeds)]
    while rungs[-1].candidates > 1:
        rungs.append(Rung(max(1, rungs[-1].candidates // 4), 2 * rungs[-1].seeds))
    return tuple(rungs)


def trials(rungs: Sequence[Rung]) -> int:
    """Return the number of trials of a whole search."""
    done, before = 0, 0
    for rung in rungs:
        done += rung.candidates * (rung.seeds - before)
        before = rung.seeds
    return done


def ranked(candidates: Sequence[Candidate], scores: Scores[Candidate], seeds: int) -> list[Candidate]:
    """Return candidates from the best mean score over the first `seeds` seeds to the worst; of equals, the earlier."""
    means = {one: float(np.mean([scores[one, seed] for seed in range(seeds)])) for one in candidates}
    return sorted(candidates, key=lambda one: -means[one])


def search(
    candidates: Sequence[Candidate],
    evaluate: Callable[[list[tuple[Candidate, int]]], Scores[Candidate]],
    rungs: Sequence[Rung],
) -> list[Candidate]:
    """Run the search.

    Args:
        candidates: different candidates, in an order that decides between equals.
        evaluate: evaluates candidates on seeds and returns at least their scores, higher is better; those of earlier
            rounds may be left out.
        rungs: the rounds: falling numbers of candidates, rising numbers of seeds.

    Returns:
        All candidates, the best first: those that were left longer stand before the others.

    Raises:
        ValueError: if there are no candidates, or one is there twice.
    """
    if not candidates or len(set(candidates)) < len(candidates):
        raise ValueError(
            f"{len(candidates)} candidates, {len(set(candidates))} different ones: expected 1 or more, all different"
        )
    order, scores, before = list(candidates), dict[tuple[Candidate, int], float](), 0
    for rung in rungs:
        left = order[: rung.candidates]
        scores |= evaluate([(one, seed) for seed in range(before, rung.seeds) for one in left])
        order = [*ranked(left, scores, rung.seeds), *order[rung.candidates :]]
        before = rung.seeds
    return order


def rounds(
    candidates: Sequence[Candidate], scores: Scores[Candidate], rungs: Sequence[Rung]
) -> Iterator[tuple[Rung, list[Candidate]]]:
    """Yield each round with its candidates, the best first, as far as all its trials are finished."""
    order = list(candidates)
    for rung in rungs:
        left = order[: rung.candidates]
        if any((one, seed) not in scores for one in left for seed in range(rung.seeds)):
            return
        order = [*ranked(left, scores, rung.seeds), *order[rung.candidates :]]
        yield rung, order[: rung.candidates]
