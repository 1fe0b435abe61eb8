import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread
from scipy import stats

from astra_gym.experiments.comparison.cell_results import Cell, ComparisonResult
from astra_gym.experiments.reports.comparison_plots import (
    LINES,
    accuracy_against_compute,
    choice_by_clean_loss,
    choice_over_training,
    choices_of_instances,
    compute_points,
    curve_band,
    highlighted,
    learning_curves,
    mean_shares,
    shares_of_arms,
    without_attack,
)

FIGURES = (learning_curves, shares_of_arms, choice_by_clean_loss, choice_over_training)


def comparison(cells: list[Cell]) -> ComparisonResult:
    return ComparisonResult("made up", "", cells, {})


def curve(reward: list[float], step: list[int]) -> dict[str, Any]:
    return {"curve": {"step": step, "reward": reward}}


def picture(path: Path) -> np.ndarray[Any, Any]:
    """RGB, after checking that the PNG shows something and that nothing is cut off at its border."""
    pixels = np.asarray(imread(path), dtype=np.float64)[..., :3]
    assert 0.01 < float((pixels.min(2) < 0.9).mean()) < 0.9
    for edge in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]):
        assert (edge == 1).all()
    return pixels


def test_a_band_is_the_mean_over_seeds_with_its_t_interval(make_cell) -> None:
    cells = [make_cell(seed=seed, **curve([seed, 2.0], [10, 20])) for seed in range(3)]
    band = curve_band(cells, "reward")
    assert band is not None and band.x.tolist() == [10, 20] and band.mean.tolist() == [1, 2]
    low, high = stats.t.interval(0.95, 2, loc=1, scale=1 / math.sqrt(3))
    assert band.low == pytest.approx([low, 2]) and band.high == pytest.approx([high, 2])


def test_two_seeds_have_no_band_and_no_reward_no_curve(make_cell) -> None:
    cells = [make_cell(seed=seed, **curve([seed, 2.0], [10, 20])) for seed in range(2)]
    band = curve_band(cells, "reward")
    assert band is not None and np.isnan(band.low).all() and np.isnan(band.high).all()
    assert curve_band(cells, "epsilon") is None


def test_curves_of_other_steps_are_interpolated(make_cell) -> None:
    cells = [
        make_cell(seed=0, **curve([0.0, 1.0], [10, 20])),
        make_cell(seed=1, **curve([0.0, 2.0, 4.0], [10, 15, 20])),
    ]
    band = curve_band(cells, "reward")
    assert band is not None and band.mean.tolist() == [0, 2.5]


def test_shares_are_averaged_over_seeds_in_the_windows_of_all(make_cell) -> None:
    one = {"epsilon": {"edges": [0, 10, 20], "values": [3, 4], "share": [[1.0, 0.0], [0.0, 1.0]]}}
    two = {"epsilon": {"edges": [0, 20], "values": [4, 5], "share": [[0.5], [0.5]]}}
    shares = mean_shares([make_cell(seed=0, shares=one), make_cell(seed=1, shares=two)], "epsilon", [3, 4, 5])
    assert shares.edges.tolist() == [0, 10, 20] and shares.values == (3, 4, 5)
    np.testing.assert_allclose(shares.share, [[0.5, 0], [0.25, 0.75], [0.25, 0.25]])


def test_points_are_means_with_an_interval_from_three_seeds_on(make_cell) -> None:
    cells = [make_cell("ppo", seed, {0.1: 50.0 + seed}, attack_steps=1000 * (seed + 1)) for seed in range(3)]
    cells += [make_cell("fixed", 0, {0.1: 40.0}), make_cell("none", 0, {0.1: 1.0}, attack_steps=0)]
    points = compute_points(comparison(cells), 0.1)
    assert points.keys() == {"ppo", "fixed"}
    assert points["ppo"].steps == 2000 and points["ppo"].mean == pytest.approx(51)
    assert points["ppo"].low < 51 < points["ppo"].high
    assert math.isnan(points["fixed"].low)
    assert without_attack(comparison(cells)) == ["none"]


def test_at_most_eight_learning_arms_are_told_apart_those_that_move_the_most(make_cell) -> None:
    cells = [make_cell(f"ppo@{index}", agent="ppo") for index in range(12)] + [make_cell("random")]
    lines = {cell.arm: {"epsilon": (np.arange(2.0), np.array([0.0, index]))} for index, cell in enumerate(cells)}
    assert highlighted(comparison(cells), lines) == [f"ppo@{index}" for index in range(4, 12)]
    # one's own, which is not imported here
    own = [make_cell("own.Mine", agent="nowhere:Mine"), make_cell("fixed")]
    moving = {cell.arm: {"epsilon": (np.arange(2.0), np.arange(2.0))} for cell in own}
    assert highlighted(comparison(own), moving) == ["own.Mine"]
    assert len(LINES) == 8
    assert len({(style["linestyle"], style["marker"]) for style in LINES}) == 8


@pytest.mark.slow
def test_all_figures_of_many_arms_are_drawn_whole(make_cell, tmp_path) -> None:
    arms = ["reinforce", "ppo", "reinforce@reward_cost=0.05", "fixed", "random"]
    cells = [
        make_cell(arm, seed, {0.0: 90.0, 0.1: 50.0 + index + seed}, attack_steps=10**5 * (index % 3 + 1))
        for index, arm in enumerate(arms)
        for seed in range(2)
    ]
    for draw in FIGURES:
        assert draw(comparison(cells), tmp_path / f"{draw.__name__}.png")
    assert accuracy_against_compute(comparison(cells), 0.1, tmp_path / "compute.png")
    pictures = {path.stem: picture(path) for path in tmp_path.iterdir()}
    assert len(pictures) == 5
    assert {pixels.shape[1] for pixels in pictures.values()} == {1280}


@pytest.mark.slow
def test_long_labels_are_drawn_whole(make_cell, tmp_path) -> None:
    arms = [f"a-label-of-the-agent-without-any-blank-but-of-three-lines-{index}" for index in range(9)]
    cells = [make_cell(arm, 0, {0.1: 50.0 + index}, agent="ppo") for index, arm in enumerate(arms)]
    for draw in FIGURES:
        assert draw(comparison(cells), tmp_path / f"{draw.__name__}.png")
    assert accuracy_against_compute(comparison(cells), 0.1, tmp_path / "compute.png")
    for path in tmp_path.iterdir():
        picture(path)


@pytest.mark.parametrize(("percent", "upper"), [(0.0, False), (100.0, True)])
def test_equal_accuracies_lie_in_the_range_of_all(make_cell, tmp_path, percent: float, upper: bool) -> None:
    cells = [make_cell(arm, 0, {0.1: percent}, attack_steps=steps) for arm, steps in (("fixed", 1000), ("ppo", 2000))]
    assert accuracy_against_compute(comparison(cells), 0.1, tmp_path / "a.png")
    blue = np.abs(picture(tmp_path / "a.png")[:, :800] - np.array([0, 114, 178]) / 255).max(2) < 0.01
    share = float(np.flatnonzero(blue.any(1)).mean()) / len(blue)
    assert share < 0.2 if upper else share > 0.7


def test_the_shares_have_the_color_of_their_value_whatever_values_an_arm_has(make_cell, tmp_path) -> None:
    def chosen(value: int, values: list[int]) -> dict[str, Any]:
        share = [[float(entry == value)] for entry in values]
        return {"edges": [0, 10], "values": values, "share": share}

    others = {"steps": chosen(3, [3]), "step_size": chosen(1, [1])}
    cells = [
        make_cell("fixed", shares={"epsilon": chosen(15, list(range(3, 16))), **others}),
        make_cell("ppo", shares={"epsilon": chosen(15, [15]), **others}),
    ]
    assert shares_of_arms(comparison(cells), tmp_path / "a.png")
    yellow = np.abs(picture(tmp_path / "a.png") - np.array([253, 231, 37]) / 255).max(2) < 0.01
    rows = np.flatnonzero(yellow.sum(1) > 200)
    assert len(rows) > 2 * 80
    assert (np.diff(rows) > 1).sum() == 1


def test_arms_without_rewards_actions_or_learning_leave_nothing_to_draw(make_cell, tmp_path) -> None:
    none = make_cell("none", curve={"step": [1, 2]}, shares={}, by_clean_loss={}, attack_steps=0, views=0)
    for draw in FIGURES:
        assert not draw(comparison([none]), tmp_path / "a.png")
    controls = [make_cell("fixed"), replace(make_cell("random"), seed=1)]
    assert not choice_by_clean_loss(comparison(controls), tmp_path / "a.png")
    assert not choice_over_training(comparison(controls), tmp_path / "a.png")
    assert not accuracy_against_compute(comparison([none]), 8 / 255, tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []


def test_arms_that_treat_all_views_alike_are_left_out(make_cell, tmp_path) -> None:
    alike = {"epsilon": [8.0] * 5, "steps": [5.0] * 5, "step_size": [2.0] * 5}
    assert not choice_by_clean_loss(comparison([make_cell(by_clean_loss=alike)]), tmp_path / "a.png")


@pytest.mark.slow
def test_the_choices_in_several_instances_stand_beside_the_constants(make_cell, tmp_path) -> None:
    cells = [make_cell(arm, seed) for arm in ("reinforce", "fixed") for seed in (0, 1, 2)]
    instances = {"small": comparison(cells), "a world with a long name": comparison(cells[1:])}
    assert choices_of_instances(instances, "reinforce", ["fixed", "absent"], tmp_path / "a.png")
    picture(tmp_path / "a.png")
    assert not choices_of_instances(instances, "ppo", ["fixed"], tmp_path / "b.png")
    without = comparison([make_cell(seed=seed, **curve([0.0, 1.0], [10, 20])) for seed in range(3)])
    assert not choices_of_instances({"small": without}, "reinforce", [], tmp_path / "b.png")
    assert not (tmp_path / "b.png").exists()
