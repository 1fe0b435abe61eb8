import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from astra_gym.experiments.comparison.cell_results import Cell, ComparisonResult
from astra_gym.experiments.stats import (
    PRIMARY,
    arms_of,
    deciding_place,
    differences,
    estimate,
    expanded_level,
    fewest_seeds,
    holm,
    mean_interval,
    paired,
    pareto,
    rank_correlation,
)

Make = Callable[..., Cell]
RADIUS = 8 / 255


def arm(make_cell: Make, name: str, values: Sequence[float], first: int = 0) -> list[Cell]:
    """Cells of rising seeds with these robust accuracies, in percent of 1000 images."""
    return [make_cell(name, first + seed, {RADIUS: value}, images=1000) for seed, value in enumerate(values)]


def test_mean_interval_is_students() -> None:
    # Student's t with four degrees of freedom: 2.776.
    mean, low, high = mean_interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert mean == 3
    assert (high - 3, 3 - low) == pytest.approx(2 * (2.7764 * math.sqrt(2.5 / 5),), rel=1e-4)
    assert mean_interval([2.0])[0] == 2 and math.isnan(mean_interval([2.0])[1])
    for wrong in ([], [1.0, math.nan]):
        with pytest.raises(ValueError, match="one per seed"):
            mean_interval(wrong)


def test_below_three_seeds_an_estimate_has_no_interval() -> None:
    for values in ([2.0], [1.0, 3.0]):
        found = estimate(values)
        assert (found.mean, found.iqm, found.seeds, found.interval) == (2, 2, len(values), "none")
        assert math.isnan(found.low) and math.isnan(found.high)


def test_from_three_to_nine_seeds_the_interval_is_students() -> None:
    # Student's t with two degrees of freedom: 4.3027; standard error of 1, 2, 3: 1/sqrt(3).
    found = estimate([1.0, 2.0, 3.0])
    assert (found.low, found.high) == pytest.approx((2 - 4.3027 / math.sqrt(3), 2 + 4.3027 / math.sqrt(3)), rel=1e-4)
    nine = list(range(9))
    assert estimate([1.0, 2.0, 3.0]).interval == estimate(nine).interval == "t"
    assert estimate(nine)[2:4] == mean_interval(nine)[1:]


def test_the_interquartile_mean_drops_a_quarter_at_either_end() -> None:
    assert estimate([90.0, 3.0, 2.0, -70.0]).iqm == 2.5
    # of ten, two at either end
    assert estimate([0.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 99.0, 99.0]).iqm == 3.5
    assert estimate([0.0, 3.0, 9.0]).iqm == 4


def test_from_ten_seeds_the_interval_is_bootstrapped_and_repeats() -> None:
    values = np.random.default_rng(3).normal(50, 2, 40).tolist()
    found = estimate(values)
    assert (found.interval, found.seeds) == ("bootstrap", 40)
    assert estimate(values) == found


@pytest.mark.parametrize("values", [[-0.1] * 3, [0.0] * 5, [7.0] * 10, [0.9 + 0.8, 0.95 + 0.75, 1.7]])
def test_equal_values_have_no_interval_since_they_show_no_spread(values: list[float]) -> None:
    found = estimate(values)
    assert (found.mean, found.interval, found.seeds) == (pytest.approx(values[0]), "none", len(values))
    assert math.isnan(found.low) and math.isnan(found.high)
    assert estimate([*values[1:], values[0] + 0.01]).low < values[0] + 0.005


def test_no_interval_of_few_images_has_width_0(make_cell: Make) -> None:
    # two arms of equal skill on 360 images, whose accuracies differ by an image or none: one in five of all
    # comparisons of three seeds would have an interval of width 0 beside the truth
    draw = np.random.default_rng(0)
    for _ in range(60):
        a, b = (
            [make_cell(name, n, {RADIUS: 98 + d / 3.6}, images=360) for n, d in enumerate(draw.integers(0, 2, 3))]
            for name in "ab"
        )
        found = paired(a, b, RADIUS)
        assert math.isnan(found.low) or found.low < found.difference < found.high
    assert found.seeds == 3


def test_the_expanded_bootstrap_is_as_wide_as_students_interval() -> None:
    # sqrt(10/9) * 2.2622 = 2.3845, beyond which a normal value is with probability 2 * 0.00855
    assert expanded_level(10) == pytest.approx(0.98290, abs=1e-5)
    assert expanded_level(10_000) == pytest.approx(0.95, abs=1e-4)
    ratios = []
    for sample in np.random.default_rng(0).normal(size=(60, 10)).tolist():
        found, (_, low, high) = estimate(sample), mean_interval(sample)
        ratios.append((found.high - found.low) / (high - low))
    # at a nominal 95 % it would be 1.96 / 2.38 = 0.82
    assert np.mean(ratios) == pytest.approx(1, abs=0.03)


def test_the_bootstrap_of_ten_normal_values_covers_about_95_percent() -> None:
    draws = np.random.default_rng(0).normal(size=(300, 10))
    hits = [found.low < 0 < found.high for found in map(estimate, draws.tolist())]
    assert 0.925 < np.mean(hits) < 0.975


def test_a_difference_is_counted_image_by_image(make_cell: Make) -> None:
    a = [make_cell("a", 0, {RADIUS: "1100"}), make_cell("a", 1, {RADIUS: "1111"})]
    b = [make_cell("b", 1, {RADIUS: "1000"}), make_cell("b", 0, {RADIUS: "0110"})]
    found = paired(a, b, RADIUS)
    assert found.image_pairs == (1 + 3, 1 + 0)
    assert found.difference == pytest.approx((0 + 75) / 2)
    assert differences(a, b, RADIUS) == {0: 0, 1: 75}
    assert paired(b, a, RADIUS).image_pairs == (1, 4)


def test_only_seeds_that_both_have_are_compared(make_cell: Make) -> None:
    a, b = arm(make_cell, "a", [60, 61, 62, 99]), arm(make_cell, "b", [10, 50, 51, 52], first=-1)
    found = paired(a, b, RADIUS)
    assert (found.seeds, found.difference, found.smallest_p) == (3, pytest.approx(10), 2 / 8)
    assert paired(a, arm(make_cell, "b", [1.0], first=70), RADIUS).seeds == 0
    nothing = paired(a, b, 0.0)
    assert nothing.seeds == 0 and nothing.image_pairs == (0, 0)
    assert all(math.isnan(figure) for figure in (nothing.difference, nothing.p, nothing.low, nothing.probability))


@pytest.mark.parametrize(
    "gaps", [[3, 1, 4, 1, -5, 9], [2, -2], [1, 1, 1, 1, 1], [0, 0, 1], [5, -1, 0, 2, 2, 1, 3, -4, 6, 2]]
)
def test_p_is_the_share_of_sign_flips_as_far_from_zero(make_cell: Make, gaps: list[int]) -> None:
    # 0.1 points an image: as floats, sums that tie would differ
    a, b = arm(make_cell, "a", [50 + gap / 10 for gap in gaps]), arm(make_cell, "b", [50] * len(gaps))
    sums = [abs(sum(np.multiply(signs, gaps))) for signs in itertools.product((1, -1), repeat=len(gaps))]
    found = paired(a, b, RADIUS)
    assert found.p == pytest.approx(np.mean([total >= abs(sum(gaps)) for total in sums]))
    assert found.smallest_p == 2 / 2 ** len(gaps) <= found.p
    assert paired(b, a, RADIUS).p == found.p


def test_p_of_many_seeds_is_sampled_and_repeats(make_cell: Make) -> None:
    a, b = arm(make_cell, "a", [60] * 18), arm(make_cell, "b", [50] * 18)
    found = paired(a, b, RADIUS)
    assert found.smallest_p == pytest.approx(2 / 65537)
    assert found.smallest_p <= found.p < 1e-4
    assert paired(a, b, RADIUS) == found


def test_too_few_seeds_give_no_p_and_no_interval(make_cell: Make) -> None:
    one = paired(arm(make_cell, "a", [60]), arm(make_cell, "b", [50]), RADIUS)
    two = paired(arm(make_cell, "a", [60, 61]), arm(make_cell, "b", [50, 50]), RADIUS)
    assert (one.difference, one.smallest_p, one.probability) == (pytest.approx(10), 1, 1)
    assert math.isnan(one.p) and math.isnan(one.low)
    assert two.p == two.smallest_p == 0.5
    assert math.isnan(two.low) and math.isnan(two.high)


def test_the_difference_has_the_interval_of_an_estimate(make_cell: Make) -> None:
    gaps = [3.0, 1.0, 4.0, 1.5, -5.0, 9.0, 2.0, 6.0, 5.0, 3.5]
    for count in (5, 10):
        a, b = arm(make_cell, "a", [50 + gap for gap in gaps[:count]]), arm(make_cell, "b", [50] * count)
        found, expected = paired(a, b, RADIUS), estimate(gaps[:count])
        assert (found.difference, found.low, found.high) == pytest.approx((expected.mean, *expected[2:4]))


def test_the_probability_of_improvement_counts_all_pairs_of_seeds(make_cell: Make) -> None:
    values_a, values_b = [50.0, 52.0, 54.0, 50.0], [51.0, 50.0, 53.0, 49.0]
    wins = [(a > b) + (a == b) / 2 for a in values_a for b in values_b]
    found = paired(arm(make_cell, "a", values_a), arm(make_cell, "b", values_b), RADIUS)
    assert found.probability == pytest.approx(np.mean(wins)) == 0.625
    assert math.isnan(found.probability_low)


def test_the_interval_of_the_probability_resamples_seeds(make_cell: Make) -> None:
    generator = np.random.default_rng(1)
    values_a, values_b = generator.integers(500, 560, (2, 12)) / 10
    found = paired(arm(make_cell, "a", values_a), arm(make_cell, "b", values_b), RADIUS)
    drawn = generator.integers(0, 12, (4000, 12))
    wins = np.sign(np.round(values_a[:, None] - values_b[None, :], 6)) / 2 + 0.5
    level = expanded_level(12)
    borders = [(1 - level) / 2, (1 + level) / 2]
    twin = np.quantile([wins[np.ix_(rows, rows)].mean() for rows in drawn], borders)
    assert (found.probability_low, found.probability_high) == pytest.approx(twin.tolist(), abs=0.02)
    assert found.probability_low < found.probability < found.probability_high


def test_a_probability_of_1_has_no_interval(make_cell: Make) -> None:
    a, b = ([start + seed / 2 for seed in range(10)] for start in (60, 50))
    found = paired(arm(make_cell, "a", a), arm(make_cell, "b", b[::-1]), RADIUS)
    assert found.probability == 1 and math.isnan(found.probability_low) and math.isnan(found.probability_high)


def test_the_interval_for_other_images_has_the_spread_of_seeds_and_of_images(make_cell: Make) -> None:
    # 16 images, of which every seed's run of a has the same 8 right and b none: seeds do not differ, images do
    a = [make_cell("a", seed, {RADIUS: "1" * 8 + "0" * 8}) for seed in range(3)]
    b = [make_cell("b", seed, {RADIUS: "0" * 16}) for seed in range(3)]
    found, sample = paired(a, b, RADIUS), [100.0] * 8 + [0.0] * 8
    assert math.isnan(found.low)
    assert (found.others_low, found.others_high) == pytest.approx(mean_interval(sample)[1:])
    assert math.isnan(paired(a, a, RADIUS).others_low) and math.isnan(paired(a[:2], b[:2], RADIUS).others_low)
    # a is ahead of b by one image in every seed, and in every image by one seed
    turned = [
        [make_cell(name, n, {RADIUS: "".join(marks[-n:] + marks[:-n])}) for n in range(3)]
        for name, marks in (("a", ["1", "0", "0"]), ("b", ["0", "0", "0"]))
    ]
    assert math.isnan(paired(*turned, RADIUS).others_low)
    # with the mean of two radii an image is one value
    both = [[replace(cell, correct={**cell.correct, 0.0: "1" * 16}) for cell in cells] for cells in (a, b)]
    halved = paired(*both, (0.0, RADIUS))
    assert (halved.others_low, halved.others_high) == pytest.approx([each / 2 for each in mean_interval(sample)[1:]])


def test_the_interval_for_other_images_covers_where_that_over_seeds_does_not(make_cell: Make) -> None:
    # arms of equal skill, each of which finds other images easy in all seeds
    draw, hits, seeds = np.random.default_rng(0), [0, 0], range(8)
    for _ in range(100):
        arms = []
        for name in "ab":
            skill = 1 / (1 + np.exp(-draw.normal(0, 2, 150)))
            outcomes = draw.random((8, 150)) < skill
            arms.append([make_cell(name, n, {RADIUS: "".join(map(str, outcomes[n].astype(int)))}) for n in seeds])
        found = paired(*arms, RADIUS)
        hits[0] += found.low <= 0 <= found.high
        hits[1] += found.others_low <= 0 <= found.others_high
    assert hits[0] < 80 and hits[1] >= 92


def test_runs_that_cannot_be_paired_are_refused(make_cell: Make) -> None:
    a = arm(make_cell, "a", [50, 51])
    with pytest.raises(ValueError, match=r"arm a has a seed twice \(seeds \[0, 0, 1, 1\]\)"):
        paired(a + a, a, RADIUS)
    with pytest.raises(ValueError, match=r"a and b were evaluated on \[100, 1000\] test images"):
        differences(a, [make_cell("b", 0, {RADIUS: 50}, images=100)], RADIUS)


def test_holm_by_hand() -> None:
    # 4 * 0.005, 3 * 0.01, 2 * 0.03, then 0.04 is raised to what 0.03 reached
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.5]) == [1.0, 1.0]
    assert holm([0.02, 0.02, 0.02]) == pytest.approx([0.06] * 3)
    assert holm([0.04]) == [0.04] and holm([]) == []


def test_a_missing_test_counts_in_holms_family() -> None:
    adjusted = holm([math.nan, 0.02, 0.01])
    assert math.isnan(adjusted[0])
    assert adjusted[1:] == pytest.approx([0.04, 0.03])
    with pytest.raises(ValueError, match=r"in \[0, 1\], not \[1\.5\]"):
        holm([0.1, 1.5])


def test_holm_is_never_above_bonferroni_and_keeps_the_order() -> None:
    for ps in np.random.default_rng(0).random((50, 6)) ** 3:
        adjusted = np.array(holm(ps.tolist()))
        assert (adjusted <= np.minimum(1, 6 * ps) + 1e-15).all() and (adjusted >= ps).all()
        assert (np.diff(adjusted[np.argsort(ps)]) >= 0).all()


def compared(cells: Sequence[Cell]) -> ComparisonResult:
    return ComparisonResult("made", "none", cells, {})


def test_the_rank_correlation_is_spearmans_and_zero_where_nothing_is_ranked() -> None:
    draw = np.random.default_rng(0)
    for n in (3, 10, 400):
        one = draw.integers(0, 50, n).astype(float)
        other = one + draw.normal(0, 20, n)
        assert rank_correlation(one, other) == stats.spearmanr(one, other).statistic
    assert rank_correlation([1.0, 2.0, 3.0], [5.0, 5.0, 5.0]) == 0 == rank_correlation([1.0, 1.0], [1.0, 2.0])


def test_the_deciding_place_is_where_the_arms_mean_is_nearest_to_55(make_cell: Make) -> None:
    small, middle, large = 4 / 255, 8 / 255, 16 / 255
    cells = [make_cell("a", seed, {0.0: 55, small: 80, middle: 60, large: 40}) for seed in range(9)]
    # arms weigh alike, however many seeds they have: 56 at the middle and 54.5 at the large radius
    cells += [make_cell("b", 0, {0.0: 55, small: 60, middle: 52, large: 69})]
    assert deciding_place(compared(cells)) == large
    assert deciding_place(compared(cells[:9])) == middle
    # one run without it, and it is no candidate
    cells += [make_cell("b", 1, {0.0: 55, small: 60, middle: 52})]
    assert deciding_place(compared(cells)) == middle


def test_the_deciding_place_is_that_of_the_primary_arms_whoever_stands_beside_them(make_cell: Make) -> None:
    small, large = 4 / 255, 8 / 255
    primary = [make_cell(name, 0, {small: 70, large: 50}) for name in arms_of(PRIMARY)]
    beside = [make_cell("ppo", 0, {small: 57, large: 30}), make_cell("fixed@compute", 0, {small: 40, large: 10})]
    assert deciding_place(compared(primary)) == deciding_place(compared(primary + beside)) == large
    # an arm that lacks an epsilon does not take it from the others
    assert deciding_place(compared([*primary, make_cell("dqn", 0, {small: 57})])) == large
    # without one of the four all arms decide, but those at equal compute
    some = [*primary[:3], beside[0]]
    assert deciding_place(compared([*primary[:1], *(3 * [beside[0]])])) == small
    assert deciding_place(compared(some)) == deciding_place(compared([*some, beside[1]])) == large
    assert deciding_place(compared(beside[1:])) is None


@pytest.mark.parametrize(
    ("accuracies", "expected"), [((80, 20), 4), ((80.5, 20), None), ((85, 30), 8), ((85, 29.5), None), ((60, 50), 4)]
)
def test_no_epsilon_decides_near_the_ends(
    make_cell: Make, accuracies: tuple[float, float], expected: int | None
) -> None:
    cell = make_cell("a", 0, {0.0: 55, **dict(zip((4 / 255, 8 / 255), accuracies, strict=True))})
    assert deciding_place(compared([cell])) == (None if expected is None else expected / 255)


def test_nothing_decides_without_an_attack_or_without_cells(make_cell: Make) -> None:
    assert deciding_place(compared([])) is None
    assert deciding_place(compared([make_cell("a", 0, {0.0: 55})])) is None


def test_the_primary_comparisons_are_fixed() -> None:
    assert PRIMARY == (("reinforce", "random"), ("reinforce", "fixed"), ("reinforce", "fixed-max"))


def test_pareto_by_brute_force() -> None:
    assert pareto([(1, 50), (2, 60), (2, 55), (3, 60), (4, 61)]) == [0, 1, 4]
    assert pareto([(1, 50), (1, 50)]) == [0, 1] and pareto([]) == []
    points = np.random.default_rng(0).integers(0, 12, (60, 2)).tolist()
    front = [
        index
        for index, (cost, worth) in enumerate(points)
        if max(w for c, w in points if c <= cost) == worth and min(c for c, w in points if w == worth) == cost
    ]
    assert pareto([(cost, worth) for cost, worth in points]) == front
    with pytest.raises(ValueError, match="finite"):
        pareto([(1, math.nan)])


def test_an_average_over_epsilons_is_compared_as_one_accuracy(make_cell: Make) -> None:
    a = [make_cell("a", seed, {0.0: 90 + seed, RADIUS: 40 + 3 * seed}, images=1000) for seed in range(4)]
    b = [make_cell("b", seed, {0.0: 95, RADIUS: 30}, images=1000) for seed in range(4)]
    place = (0.0, RADIUS)
    assert a[1].accuracy(place) == pytest.approx((91 + 43) / 2)
    expected = {seed: ((90 + seed - 95) + (40 + 3 * seed - 30)) / 2 for seed in range(4)}
    assert differences(a, b, place) == pytest.approx(expected)
    found = paired(a, b, place)
    assert found.difference == pytest.approx(np.mean(list(expected.values())))
    assert sum(found.image_pairs) == sum(sum(paired(a, b, one).image_pairs) for one in place)
    assert paired(a, [make_cell("b", 0, {RADIUS: 30}, images=1000)], place).seeds == 0


def test_a_world_that_names_its_judge_is_not_judged_by_the_rule(make_cell: Make) -> None:
    small, large = 8 / 255, 16 / 255
    accuracies = {0.0: 99, small: 55, large: 10}
    for settings, expected in (
        ({}, small),
        ({"judge_epsilon": None}, small),
        ({"judge_epsilon": large, "judge_score": "robust"}, large),
        ({"judge_epsilon": large, "judge_score": "mean"}, (0.0, large)),
    ):
        cells = [make_cell(name, 0, accuracies, settings=settings) for name in ("a", "b")]
        assert deciding_place(compared(cells)) == expected


@pytest.mark.parametrize("tests", [1, 2, 3, 6])
def test_the_fewest_seeds_are_those_with_which_all_tests_can_be_shown(tests: int) -> None:
    needed = fewest_seeds(tests, 0.05)
    assert all(p <= 0.05 for p in holm([2 / 2**needed] * tests))
    assert not any(p <= 0.05 for p in holm([2 / 2 ** (needed - 1)] * tests)[:1])
