"""What a search cost, beside the accuracies."""

from dataclasses import replace

from astra_gym.experiments.comparison.searches import SearchCost
from astra_gym.experiments.reports.comparison_tables import accuracy_table
from astra_gym.experiments.reports.search_costs import search_sentences
from tests.helpers.comparison_tables import Make, compared

SEARCH = SearchCost("fixed", "t.json", ["fixed"], 64, 92, 135_404, 2352.0)


def test_a_search_is_counted_in_runs_of_its_arm(make_cell: Make) -> None:
    # one step: 4.3 passes an update; the other run has four steps, so 7.3
    cells = [make_cell("fixed", seed, updates=100, attack_steps=100 * 128 * steps) for seed, steps in ((0, 1), (1, 4))]
    part = replace(compared([*cells, make_cell("random")]), searched=(SEARCH,))
    assert search_sentences(part) == [
        "fixed was found by a search (--tune fixed) of 92 trials and 135,404 passes, as much as 233.5 runs of this "
        "arm: 39.2 min of one process, which are not in the training times."
    ]
    [table] = accuracy_table(part)
    [without] = accuracy_table(replace(part, searched=()))
    assert table.note == f"{without.note} {search_sentences(part)[0]}"


def test_a_run_whose_log_is_lost_does_not_count(make_cell: Make) -> None:
    lost = make_cell("fixed", 0, views=0, attack_steps=0, damage=("metrics.jsonl is lost",))
    whole = make_cell("fixed", 1, updates=1000, attack_steps=1000 * 128)
    part = replace(compared([lost, whole]), searched=(SEARCH,))
    assert "as much as 31.5 runs of this arm: " in search_sentences(part)[0]
    assert "135,404 passes: 39.2 min" in search_sentences(replace(part, cells=[lost]))[0]
    several = replace(part, searched=(replace(SEARCH, worlds=8),))
    assert "(--tune fixed, 8 worlds at once) of 92 trials and 135,404 passes: 39.2 min" in search_sentences(several)[0]
    # an arm without a finished run has no row, and so no sentence
    assert search_sentences(replace(part, cells=[make_cell("random")])) == []
