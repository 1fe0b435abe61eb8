"""The statistics of a comparison of agents: estimates over seeds, paired differences and tests, and a fixed rule.

The unit of every interval and test is the seed, not the test image: images of one seed share one trained network.
SciPy does the statistics. Accuracies are in percent, differences in points.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
from scipy import stats

Array = np.ndarray

FEWEST_SEEDS = 3
"""Least number of seeds for an interval."""
BOOTSTRAP_SEEDS = 10
"""Least number of seeds for a bootstrapped interval."""
LEVEL = 0.05
"""Level of the tests, after Holm."""
RESAMPLES = 9999
PERMUTATIONS = 2**16
"""Largest number of sign flips: with up to 16 seeds the test is exact."""
Pairs = Sequence[tuple[str, str]]
PRIMARY = (("reinforce", "random"), ("reinforce", "fixed"), ("reinforce", "fixed-max"))
"""The pairs of arms that are tested if the plan names no others; all other pairs have intervals only."""
COMPUTE = "@compute"
"""End of the label of an arm that trains longer, until it has spent as many attack steps as the most expensive arm."""
TARGET, LOWEST, HIGHEST = 55.0, 30.0, 80.0
"""Robust accuracy in percent that decides best: far from both ends, where all arms look alike."""


Place = float | tuple[float, ...]
"""Where an accuracy is measured: at an epsilon (a fraction; 0.0: SA), or averaged over several."""


def epsilons_of(place: Place) -> tuple[float, ...]:
    """Return the epsilons over which an accuracy is averaged."""
    return place if isinstance(place, tuple) else (place,)


def arms_of(pairs: Pairs) -> tuple[str, ...]:
    """Return the arms of pairs, each once, in their order."""
    return tuple(dict.fromkeys(arm for pair in pairs for arm in pair))


class Evaluated(Protocol):
    """What is needed of a finished run; `astra_gym.experiments.comparison.cell_results.Cell` has it."""

    @property
    def arm(self) -> str: ...

    @property
    def seed(self) -> int: ...

    @property
    def outcomes(self) -> dict[float, Array]: ...

    @property
    def void(self) -> str: ...

    def accuracy(self, place: Place) -> float: ...


class Compared(Protocol):
    """What is needed of a comparison; `astra_gym.experiments.comparison.cell_results.ComparisonResult` has it."""

    @property
    def cells(self) -> Sequence[Evaluated]: ...

    @property
    def tests(self) -> Pairs: ...

    @property
    def judge(self) -> Place | None: ...


class Estimate(NamedTuple):
    """Mean and interquartile mean over `seeds` values, and the mean's 95 % interval: `bootstrap`, `t` or `none`."""

    mean: float
    iqm: float
    low: float
    high: float
    seeds: int
    interval: str


class Paired(NamedTuple):
    """The difference between arm a and arm b over the seeds that both have.

    `difference`, `low` and `high` are in points. `p` is two-sided, and `smallest_p` the smallest possible with so many
    seeds. `probability` is that of improvement, in [0, 1], with a 95 % interval. `image_pairs` counts the pairs of
    outcomes (seed and test image) in which only a, and only b, was right. `others_low` and `others_high` are the 95 %
    interval in points for other test images too. NaN means that a value cannot be computed.
    """

    difference: float
    low: float
    high: float
    p: float
    smallest_p: float
    probability: float
    seeds: int
    image_pairs: tuple[int, int]
    probability_low: float = math.nan
    probability_high: float = math.nan
    others_low: float = math.nan
    others_high: float = math.nan


def _sample(values: Sequence[float]) -> Array:
    sample = np.asarray(values, dtype=np.float64)
    if sample.ndim != 1 or len(sample) == 0 or not np.isfinite(sample).all():
        raise ValueError(f"expected finite values, one per seed, not {values!r}")
    return sample


def mean_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the mean and the borders of its 95 % interval by Student's t; a single value has no interval (NaN).

    Raises:
        ValueError: if there is no value, or one that is not finite.
    """
    sample = _sample(values)
    mean = float(sample.mean())
    if len(sample) == 1:
        return mean, math.nan, math.nan
    half = float(stats.t.ppf(0.975, len(sample) - 1) * sample.std(ddof=1) / math.sqrt(len(sample)))
    return mean, mean - half, mean + half


def estimate(values: Sequence[float]) -> Estimate:
    """Estimate mean and interquartile mean over seeds, with the mean's 95 % interval.

    The interquartile mean drops the lowest and the highest quarter, rounded down (Agarwal et al. 2021, "Deep RL at the
    edge of the statistical precipice", section 4.3): below four seeds it is the mean. The interval is an expanded
    percentile bootstrap (`expanded_level`) from a fixed generator from `BOOTSTRAP_SEEDS` on, Student's t from
    `FEWEST_SEEDS` on, and NaN below. It is also NaN if all values are equal: accuracies are counts of few images, so
    that three differences often tie, and an interval of width 0 would claim certainty.

    Raises:
        ValueError: if there is no value, or one that is not finite.
    """
    sample = _sample(values)
    mean, low, high = mean_interval(values)
    kind = "t"
    if len(sample) < FEWEST_SEEDS or np.allclose(sample, sample[0], rtol=1e-9, atol=1e-12):
        low, high, kind = math.nan, math.nan, "none"
    elif len(sample) >= BOOTSTRAP_SEEDS:
        found = stats.bootstrap(
            (sample,),
            np.mean,
            n_resamples=RESAMPLES,
            confidence_level=expanded_level(len(sample)),
            method="percentile",
            rng=np.random.default_rng(0),
        )
        low, high = (float(border) for border in found.confidence_interval)
        kind = "bootstrap"
    return Estimate(mean, float(stats.trim_mean(sample, 0.25)), low, high, len(sample), kind)


def expanded_level(seeds: int) -> float:
    """Return the nominal level at which a percentile bootstrap of so many values has about the coverage of 95 %.

    A bootstrap's spread lacks the factor sqrt(n/(n-1)), and its quantiles are the normal's instead of Student's: of ten
    values, a nominal 95 % covers 90 %. The expanded percentile interval (Hesterberg 2015, "What teachers should know
    about the bootstrap") uses the level 1 - a' with a'/2 = Phi(-sqrt(n/(n-1)) t(0.975, n-1)), which is 98.3 % for ten.
    It is derived for a mean; the probability of improvement uses the same level.
    """
    return float(1 - 2 * stats.norm.cdf(-math.sqrt(seeds / (seeds - 1)) * stats.t.ppf(0.975, seeds - 1)))


def paired(cells_a: Sequence[Evaluated], cells_b: Sequence[Evaluated], place: Place) -> Paired:
    """Compare two arms at a place, pairing by equal seed and within a seed by test image and epsilon.

    The test flips the signs of the seeds' differences (Fisher 1935, "The design of experiments", section 21): exact up
    to 16 seeds, sampled from a fixed generator beyond. With n seeds it cannot go below 2/2^n. Its null hypothesis is
    that both arms' runs are alike, not that their means are: skewed differences of mean 0 are found too often. The
    interval of the difference is that of `estimate`. The probability of improvement is P(a > b) + P(a = b)/2 over all
    pairs of the shared seeds (Mann and Whitney 1947; Agarwal et al. 2021, section 4.3); its interval, from
    `BOOTSTRAP_SEEDS` on, resamples seeds, a's and b's together. It has none if every resample has the same probability,
    as 0 and 1 do: of ten seeds, a true 0.92 gives 1 in a ninth of all cases.

    Returns:
        NaN for p with fewer than two shared seeds, for the interval where `estimate` has none, and for everything
        without any.

    Raises:
        ValueError: if an arm has a seed twice, or numbers of test images differ.
    """
    outcomes = _shared(cells_a, cells_b, place)
    only_a = np.array([int((a & ~b).sum()) for a, b in outcomes.values()], dtype=np.int64)
    only_b = np.array([int((b & ~a).sum()) for a, b in outcomes.values()], dtype=np.int64)
    seeds = len(outcomes)
    if seeds == 0:
        return Paired(math.nan, math.nan, math.nan, math.nan, 1.0, math.nan, 0, (0, 0))
    images = len(next(iter(outcomes.values()))[0])
    difference = estimate((100.0 * (only_a - only_b) / images).tolist())
    right_a, right_b = (np.array([pair[side].sum() for pair in outcomes.values()]) for side in (0, 1))
    borders = (math.nan, math.nan)
    if seeds >= BOOTSTRAP_SEEDS:
        borders = stats.bootstrap(
            (right_a, right_b),
            _improvement,
            n_resamples=RESAMPLES,
            confidence_level=expanded_level(seeds),
            method="percentile",
            paired=True,
            vectorized=True,
            rng=np.random.default_rng(0),
        ).confidence_interval
        borders = borders if borders[0] < borders[1] else (math.nan, math.nan)
    gains = np.array([np.subtract(a, b, dtype=np.float64) for a, b in outcomes.values()])
    others = _for_other_images(100.0 * gains.reshape(seeds, len(epsilons_of(place)), -1).mean(1))
    return Paired(
        difference.mean,
        difference.low,
        difference.high,
        p=_sign_flips(only_a - only_b),
        smallest_p=2.0 / min(2**seeds, PERMUTATIONS + 1),
        probability=float(_improvement(right_a, right_b)),
        seeds=seeds,
        image_pairs=(int(only_a.sum()), int(only_b.sum())),
        probability_low=float(borders[0]),
        probability_high=float(borders[1]),
        others_low=others[0],
        others_high=others[1],
    )


def _for_other_images(gains: Array) -> tuple[float, float]:
    """Return the 95 % interval of the mean of (seeds, images) for other seeds and other test images; NaN below
    `FEWEST_SEEDS`, and if neither the seeds' means nor the images' vary.

    Seeds and images are crossed. The variance is that of the seeds' means and that of the images' means, which counts
    what is of neither alone twice (Owen 2007, "The pigeonhole bootstrap"), with Satterthwaite's degrees of freedom
    (1946). Simulated with 3 to 10 seeds and 360 or 2,000 images it covers 93 to 99 %; over seeds alone 78 to 95 %.
    """
    if len(gains) < FEWEST_SEEDS or gains.shape[1] < 2:
        return math.nan, math.nan
    means = [gains.mean(axis) for axis in (1, 0)]
    parts = [each.var(ddof=1) / len(each) for each in means]
    variance = sum(parts)
    # equal means differ by rounding
    if variance < 1e-12:
        return math.nan, math.nan
    freedom = variance**2 / sum(part**2 / (len(each) - 1) for part, each in zip(parts, means, strict=True))
    half = float(stats.t.ppf(0.975, freedom) * math.sqrt(variance))
    return float(gains.mean()) - half, float(gains.mean()) + half


def differences(cells_a: Sequence[Evaluated], cells_b: Sequence[Evaluated], place: Place) -> dict[int, float]:
    """Return the accuracy of a minus that of b in points, by shared seed, rising; raise errors as `paired`."""
    outcomes = _shared(cells_a, cells_b, place)
    return {seed: 100.0 * (int(a.sum()) - int(b.sum())) / len(a) for seed, (a, b) in outcomes.items()}


def _shared(cells_a: Sequence[Evaluated], cells_b: Sequence[Evaluated], place: Place) -> dict[int, tuple[Array, Array]]:
    sides, epsilons = [], epsilons_of(place)
    for cells in (cells_a, cells_b):
        found = [
            (cell.seed, np.concatenate([cell.outcomes[epsilon] for epsilon in epsilons]))
            for cell in cells
            if set(epsilons) <= cell.outcomes.keys()
        ]
        if len(dict(found)) < len(found):
            raise ValueError(
                f"the arm {cells[0].arm} has a seed twice (seeds {sorted(seed for seed, _ in found)}): compare runs "
                f"of one method and preset, a run a seed"
            )
        sides.append(dict(found))
    first, second = sides
    pairs = {seed: (first[seed], second[seed]) for seed in sorted(first.keys() & second.keys())}
    if len(sizes := {len(side) for pair in pairs.values() for side in pair}) > 1:
        raise ValueError(
            f"{cells_a[0].arm} and {cells_b[0].arm} were evaluated on {sorted(sizes)} test images: expected the same "
            f"images in every run"
        )
    return pairs


def _improvement(a: Array, b: Array, axis: int = -1) -> Array:
    one, other = a[..., :, None], b[..., None, :]
    return ((one > other) + 0.5 * (one == other)).mean(axis=(-2, -1))


def sign_flips(values: Sequence[float]) -> float:
    """Return the two-sided p-value of differences, one per seed, by flipping their signs as in `paired`; NaN of fewer
    than two."""
    return _sign_flips(np.rint(1e6 * _sample(values)).astype(np.int64))


def _sign_flips(counts: Array) -> float:
    # whole numbers, not points, since tied sums must not differ by rounding
    if len(counts) < 2:
        return math.nan
    found = stats.permutation_test(
        (counts,),
        lambda sample, axis: sample.sum(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=PERMUTATIONS,
        rng=np.random.default_rng(0),
    )
    return float(found.pvalue)


def holm(ps: Sequence[float]) -> list[float]:
    """Adjust the p-values of a family by Holm's step-down method (1979, "A simple sequentially rejective procedure").

    SciPy only has the procedure for the false discovery rate. A NaN (a test that could not be made) stays NaN and
    counts as 1, so that the family keeps its size.

    Raises:
        ValueError: if a p-value is outside [0, 1].
    """
    if wrong := [p for p in ps if not (math.isnan(p) or 0 <= p <= 1)]:
        raise ValueError(f"expected p-values in [0, 1], not {wrong}")
    adjusted = [math.nan] * len(ps)
    reached = 0.0
    ranked = sorted((p, index) for index, p in enumerate(ps) if not math.isnan(p))
    for rank, (p, index) in enumerate(ranked):
        reached = max(reached, min(1.0, (len(ps) - rank) * p))
        adjusted[index] = reached
    return adjusted


def rank_correlation(one: Sequence[float] | Array, other: Sequence[float] | Array) -> float:
    """Return Spearman's rank correlation of n pairs; 0 where all values of a side are equal, which rank nothing."""
    ranks = np.column_stack([stats.rankdata(one), stats.rankdata(other)])
    return 0.0 if 0 in np.ptp(ranks, axis=0) else float(np.corrcoef(ranks, rowvar=False)[1, 0])


def fewest_seeds(tests: int, level: float) -> int:
    """Return the least number of shared seeds with which each of several tests can be below a level after Holm."""
    return math.ceil(math.log2(2 * tests / level))


def deciding_place(comparison: Compared) -> Place | None:
    """Return where arms are compared: at the place that their world names (the judge), else at the epsilon of a rule
    that does not see who wins.

    The rule: if all arms of the tests have cells, only they count, so that the epsilon does not depend on the other
    arms beside them; else all arms count except those at equal compute (`COMPUTE`). The candidates are the epsilons
    above 0 that all cells of these arms have, cells with void robust accuracies apart. The one with a robust accuracy,
    averaged over the arms' means, nearest to 55 % is taken (of two, the smaller). If that accuracy is not from 30 to
    80 %, the result is None.
    """
    if comparison.judge is not None:
        return comparison.judge
    tested = arms_of(comparison.tests)
    cells = [cell for cell in comparison.cells if cell.arm in tested]
    if {cell.arm for cell in cells} != set(tested):
        cells = [cell for cell in comparison.cells if not cell.arm.endswith(COMPUTE)]
    cells = [cell for cell in cells if not cell.void]
    shared = set.intersection(*(set(cell.outcomes) for cell in cells)) if cells else set()
    candidates = []
    for epsilon in sorted(epsilon for epsilon in shared if epsilon > 0):
        by_arm: dict[str, list[float]] = {}
        for cell in cells:
            by_arm.setdefault(cell.arm, []).append(cell.accuracy(epsilon))
        candidates.append((epsilon, float(np.mean([np.mean(values) for values in by_arm.values()]))))
    if not candidates:
        return None
    epsilon, accuracy = min(candidates, key=lambda candidate: abs(candidate[1] - TARGET))
    return epsilon if LOWEST <= accuracy <= HIGHEST else None


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return the indices of the points (attack compute, accuracy) that no other dominates.

    A point dominates another with no more compute and no less accuracy, one of them strictly.

    Raises:
        ValueError: if a value is not finite.
    """
    if not all(math.isfinite(figure) for point in points for figure in point):
        raise ValueError(f"expected finite pairs of compute and accuracy, not {points!r}")
    return [
        index
        for index, (cost, worth) in enumerate(points)
        if not any(c <= cost and w >= worth and (c, w) != (cost, worth) for c, w in points)
    ]
