"""One process and two ranks do the same work in turn; what cannot be divided is refused."""

import pytest
import torch

from astra_gym.experiments.benchmarks import ranks
from astra_gym.experiments.benchmarks.ranks import measure_ranks
from astra_gym.experiments.benchmarks.workloads import BenchmarkError, Options

CPU = torch.device("cpu")


@pytest.mark.every_agent
def test_training_and_evaluation_are_measured_in_turn() -> None:
    told: list[str] = []
    figures, details = measure_ranks(Options(2, CPU, quick=True), 1, told.append)
    assert told == ["ranks: round 1 of 1, 1 of 2", "ranks: round 1 of 1, 2 of 2"]
    names = ["training", "evaluation, pgd20", "evaluation, autoattack-quick", "exchange and waiting, of the training"]
    assert [figure.name for figure in figures] == names and all(len(figure.values) == 1 for figure in figures)
    assert all(figure.values[0] > 0 for figure in figures[:2]) and 0 < figures[-1].values[0] < 1
    assert len(details["seconds"]) == 6


def test_one_thread_and_a_gpu_have_nothing_to_divide() -> None:
    for options in (Options(1, CPU, quick=True), Options(2, torch.device("cuda:0"), quick=True)):
        with pytest.raises(ValueError, match="divides 2 or more --threads of the CPU"):
            measure_ranks(options, 1, print)


def test_a_failing_process_is_told_with_its_last_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "TRAIN", ("experiments/train_agent.py", "--agent", "nobody"))
    with pytest.raises(BenchmarkError, match=r"on 1 ranks failed \(status 2\): .*nobody"):
        measure_ranks(Options(2, CPU, quick=True), 1, lambda text: None)
