"""Whether exams rank constants: what a repeat holds, and its numbers from known ranks."""

import pytest

from astra_gym.experiments.headroom import foresight
from astra_gym.experiments.headroom.foresight import SHARES, conclude, measure
from astra_gym.experiments.headroom.world import HeadroomWorld, ladder


@pytest.mark.every_agent
def test_a_repeat_has_scores_and_falls_and_the_constants_falls_add_up(
    tiny_world: HeadroomWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses, loss = list[float](), foresight._loss

    def recorded(*arguments: object) -> float:
        losses.append(loss(*arguments))  # type: ignore[arg-type]
        return losses[-1]

    monkeypatch.setattr(foresight, "_loss", recorded)
    found, budgets = measure(tiny_world, 0), ladder(tiny_world)
    assert len(found["scores"]) == len(budgets) and [len(row) for row in found["falls"]] == [len(budgets)] * len(SHARES)
    assert len(set(found["scores"])) > 1
    # an exam before each block, and one after it for every budget
    first = losses[: len(budgets) + 1]
    assert found["falls"][0] == [round(first[0] - after, 5) for after in first[1:]]
    assert len(losses) == len(SHARES) * (len(budgets) + 1)
    assert measure(tiny_world, 0) == found


def test_rank_correlations_are_means_over_repeats(tiny_world: HeadroomWorld) -> None:
    scores = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]
    falls = [scores, scores[::-1], [1.0] * 8, scores, scores]
    repeats = {seed: {"scores": scores, "falls": falls} for seed in range(3)}
    verdicts, numbers = conclude(tiny_world, repeats)
    assert not verdicts
    means = [found[0] for found in numbers["rank_correlations"].values()]
    assert means == pytest.approx([1.0, -1.0, 0.0, 1.0, 1.0])
    assert [each["score"] for each in numbers["budgets"]] == scores
