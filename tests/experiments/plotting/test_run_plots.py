import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.image import imread

from astra_gym.envs.api.action_sets import ASTRA_SETS, ActionSets
from astra_gym.envs.records import in_255
from astra_gym.experiments.plotting import run_plots
from astra_gym.experiments.plotting.run_plots import (
    ACTION_SETS,
    accuracy_against_epsilon,
    accuracy_curve,
    action_counts,
    action_shares,
    amplified,
    attack_gallery,
    ends_of,
    losses_and_reward,
    reward_comparison,
    series,
    smoothed,
)
from astra_gym.ssl_core.attacks.pgd import Budget
from astra_gym.ssl_core.evaluation.results import Origin, Row, wilson_interval
from astra_gym.ssl_core.utils.provenance import ROOT


def metrics(updates: int = 50, seed: int = 0, views: int = 64) -> list[dict[str, Any]]:
    """Rows as a run writes them (through JSON): the agent goes from uniform to the strongest epsilon."""
    generator = np.random.default_rng(seed)
    rows = []
    for step in range(1, updates + 1):
        done = step / updates
        clean, attacked = 4 - done, 4.1 - 0.6 * done
        row: dict[str, Any] = {
            "step": step,
            "epoch": step / 11,
            "loss/total": clean + attacked,
            "loss/clean": clean,
            "loss/adversarial": attacked,
            "loss/mixed": clean - 0.5,
            "reward/adversarial": attacked,
            "reward/clean": clean,
            "reward/mean": (attacked - clean) / 3,
        }
        for kind, values in (("epsilon", range(3, 16)), ("steps", range(3, 15)), ("step_size", range(1, 6))):
            chosen = np.where(generator.random(views) < done, values[-1], generator.choice(values, views))
            row[f"actions/{in_255(kind)}"] = {
                str(value): int((chosen == value).sum()) for value in set(chosen.tolist())
            }
        rows.append(row)
    return list(json.loads(json.dumps(rows)))


def without(rows: list[dict[str, Any]], *prefixes: str) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if not key.startswith(prefixes)} for row in rows]


def picture(path: Path) -> np.ndarray[Any, Any]:
    """RGB in [0, 1], after checking that it is a PNG of README width that shows something."""
    assert path.read_bytes().startswith(b"\x89PNG")
    assert [entry.name for entry in path.parent.iterdir()] == [path.name], "temporary files are left over"
    pixels = np.asarray(imread(path), dtype=np.float64)[..., :3]
    assert 0.01 < float((pixels.min(2) < 0.9).mean()) < 0.9
    for edge in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]):
        assert (edge == 1).all(), "something is cut off at the border"
    return pixels


def test_action_counts_are_the_shares_of_each_window() -> None:
    rows: list[dict[str, Any]] = [
        {"step": 1, "actions/epsilon_255": {"3": 30, "15": 10}},
        {"step": 2, "actions/epsilon_255": {"3": 10, "15": 30}},
        {"step": 3},
        {"step": 4, "actions/epsilon_255": {"8": 8}},
        {"step": 5, "actions/epsilon_255": {"9": 24}},
    ]
    shares = action_counts(rows, "epsilon", windows=2)
    assert shares.values == tuple(range(3, 16))
    assert shares.edges.tolist() == [0, 3, 5]
    expected = np.zeros((13, 2))
    expected[[0, 12], 0] = 0.5
    expected[[5, 6], 1] = 0.25, 0.75
    np.testing.assert_allclose(shares.share, expected)


@pytest.mark.parametrize("kind", ["epsilon", "steps", "step_size"])
@pytest.mark.parametrize(("updates", "windows", "expected"), [(50, 60, 50), (200, 60, 60), (1, 60, 1)])
def test_shares_sum_to_one_in_every_window(kind: str, updates: int, windows: int, expected: int) -> None:
    shares = action_counts(metrics(updates), kind, windows)
    assert shares.share.shape == (len(shares.values), expected)
    assert len(shares.edges) == expected + 1
    assert (np.diff(shares.edges) > 0).all()
    assert shares.share.min() >= 0
    np.testing.assert_allclose(shares.share.sum(0), 1, rtol=1e-12)


def test_windows_of_a_single_choice_each_are_joined() -> None:
    """The batch environment makes one choice an update."""
    assert action_counts(metrics(160, views=1), "epsilon").share.shape[1] == 10
    # every value of the world's sets is in the scale, used or not
    assert ends_of(ASTRA_SETS) == ACTION_SETS
    wide = ends_of(ActionSets(epsilons=(0.0, 40 / 255), steps=(1, 10), step_sizes=(0.5 / 255, 32.5 / 255)))
    assert wide == {"epsilon": (0, 40), "steps": (1, 10), "step_size": (0, 33)}
    assert action_counts(metrics(160), "epsilon", ends=wide).values == tuple(range(41))


def test_continuous_actions_go_to_the_nearest_value_and_widen_the_scale_where_needed() -> None:
    rows = [{"step": 1, "actions/step_size_255": {"1.4999": 1, "1.5": 2, "2.5": 4, "4.6": 8, "5.4": 16, "6.8": 1}}]
    shares = action_counts(rows, "step_size")
    assert shares.values == (1, 2, 3, 4, 5, 6, 7)
    np.testing.assert_allclose(32 * shares.share[:, 0], [1, 2, 4, 0, 24, 0, 1])


def test_action_areas_have_the_size_of_their_shares(tmp_path: Path) -> None:
    rows = [
        {
            "step": step,
            "actions/epsilon_255": {"3": 75, "15": 25},
            "actions/steps": {"3": 100},
            "actions/step_size_255": {"5": 9},
        }
        for step in range(1, 40)
    ]
    path = tmp_path / "actions.png"
    action_shares(rows, path)
    pixels = picture(path)
    columns = matplotlib.colormaps["viridis"]
    lowest, highest = (np.array(columns(end)[:3]) for end in (0.0, 1.0))
    line = pixels[:, pixels.shape[1] // 2]
    dark, bright = (int((np.abs(line - color).max(1) < 0.02).sum()) for color in (lowest, highest))
    # Over the three panels: 0.75 + 1 + 0 in the lowest value's color, 0.25 + 0 + 1 in the highest's.
    assert dark / bright == pytest.approx(1.75 / 1.25, rel=0.03)
    assert dark + bright > 0.5 * len(line)


def test_action_shares_of_a_run_without_attack_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no metrics row has 'actions/epsilon_255'"):
        action_shares(without(metrics(), "actions"), tmp_path / "actions.png")
    assert not list(tmp_path.iterdir())


def test_losses_and_reward_leave_out_what_a_method_lacks(tmp_path: Path) -> None:
    heights = []
    for index, prefixes in enumerate(
        (("nothing",), ("reward/clean", "reward/adv"), ("reward", "loss/adv", "loss/mixed", "loss/total"))
    ):
        path = tmp_path / str(index) / "losses.png"
        losses_and_reward(without(metrics(), *prefixes), path)
        heights.append(picture(path).shape[0])
    assert heights == [1420, 1000, 580]
    with pytest.raises(ValueError, match="nothing to draw"):
        losses_and_reward(without(metrics(), "loss"), tmp_path / "none.png")


def test_series_and_running_mean() -> None:
    x, y = series([{"step": 1, "a": 2.0}, {"step": 2}, {"step": 3, "a": 4.0}, {"step": 4, "a": None}], "a")
    assert (x.tolist(), y.tolist()) == ([1, 3], [2, 4])
    ramp = np.arange(90.0)
    np.testing.assert_allclose(smoothed(ramp)[3:-3], ramp[3:-3])
    np.testing.assert_allclose(smoothed(ramp)[[0, -1]], [1.5, 87.5])
    assert smoothed(np.array([5.0])).tolist() == [5.0]


def views(n: int = 9) -> tuple[torch.Tensor, torch.Tensor, Budget]:
    generator = torch.Generator().manual_seed(0)
    clean = torch.rand(n, 3, 16, 16, generator=generator) * 0.5 + 0.25
    budget = Budget(
        epsilon=torch.linspace(3, 15, n) / 255, step_size=torch.full((n,), 2 / 255), steps=torch.arange(3, 3 + n)
    )
    sign = torch.where(torch.rand(clean.shape, generator=generator) < 0.5, -1.0, 1.0)
    return clean, clean + sign * budget.epsilon.view(-1, 1, 1, 1), budget


def test_attack_gallery(tmp_path: Path) -> None:
    path = tmp_path / "gallery.png"
    attack_gallery(*views(), path)
    assert picture(path).shape[1] == 1280
    clean, attacked, budget = views()
    attack_gallery(clean[:1], attacked[:1], Budget.uniform(1, epsilon=3 / 255, step_size=2 / 255, steps=5), path)
    assert picture(path).shape[1] < 600
    with pytest.raises(ValueError, match="with 9 budgets"):
        attack_gallery(clean[:4], attacked[:4], budget, path)
    with pytest.raises(ValueError, match="expected"):
        attack_gallery(clean, attacked[:, :1], budget, path)


def test_perturbations_are_amplified_alike_around_grey() -> None:
    noise = np.zeros((2, 4, 4, 3))
    noise[0, 0, 0], noise[1, 0, 0] = 4 / 255, -15 / 255
    image, gain = amplified(noise)
    assert gain == 8
    assert image[0, 0, 0] == pytest.approx(0.5 + 32 / 255)
    assert image[1, 0, 0] == pytest.approx(0.5 - 120 / 255)
    assert (image[:, 1:] == 0.5).all()
    assert amplified(np.zeros((1, 2, 2, 3)))[1] == 1


def results(values: dict[int, float], n: int = 360) -> list[Row]:
    clean, *_ = values
    return [
        Origin(protocol="slf", route="pgd", seed=0, checkpoint="last", commit="unknown").accuracy(
            "SA" if numerator == clean else "RA",
            round(value * n / 100),
            n,
            attack="none" if numerator == clean else "pgd20",
            epsilon=numerator / 255,
        )
        for numerator, value in values.items()
    ]


TRAINED = {0: 97.5, 16: 80.0, 8: 92.5}


def test_accuracy_curve_is_in_rising_order_with_wilson_intervals() -> None:
    curve = accuracy_curve(results(TRAINED))
    assert curve.epsilon.tolist() == pytest.approx([0, 8, 16])
    assert curve.value.tolist() == [97.5, 92.5, 80.0]
    expected = [wilson_interval(correct, 360) for correct in (351, 333, 288)]
    assert list(zip(curve.low, curve.high, strict=True)) == expected
    with pytest.raises(ValueError, match="one classifier"):
        accuracy_curve(results(TRAINED) + results(TRAINED))
    with pytest.raises(ValueError, match="one classifier"):
        accuracy_curve([])


def test_accuracy_against_epsilon(tmp_path: Path) -> None:
    path = tmp_path / "accuracy.png"
    series_ = {
        "trained": results(TRAINED),
        "random weights": results({0: 60.0, 8: 10.0, 16: 0.0}),
        "raw pixels": results({0: 90.0, 8: 20.0, 16: 100.0}),
        "simclr": results({0: 100.0}),
    }
    for count in (1, 3, 4):
        accuracy_against_epsilon(dict(list(series_.items())[:count]), path)
        picture(path)
    long = [f"SLF cifar10-dynacl++-reinforce-paper-seed{seed}" for seed in range(3)] + ["SLF " + "/a/path/of/a/run" * 5]
    accuracy_against_epsilon(dict.fromkeys(long, results(TRAINED)), path)
    picture(path)
    for wrong in ({}, series_ | {"fifth": results(TRAINED)}):
        with pytest.raises(ValueError, match="expected 1 to 4"):
            accuracy_against_epsilon(wrong, path)


def test_the_radii_below_an_axis_do_not_touch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(run_plots, "save_figure", lambda figure, path: drawn.append(figure))
    for count in (4, 15, 100):
        accuracy_against_epsilon({"run": results(dict.fromkeys(range(count + 1), 50.0))}, tmp_path / "a.png")
        figure = drawn.pop()
        figure.draw_without_rendering()
        names = figure.axes[0].get_xticklabels()
        assert len(names) == (15 if count == 100 else count + 1)
        places = [name.get_window_extent() for name in names]
        assert all(left.x1 < right.x0 for left, right in pairwise(places))


def test_reward_comparison(tmp_path: Path) -> None:
    path = tmp_path / "reward.png"
    reward_comparison(
        {
            "trained": [0.22, 0.23, 0.21, 0.22, 0.24],
            "uniform random": [0.15, 0.14, 0.16, 0.15, 0.15],
            "fixed (8/255, 5 steps, 2/255)": [0.13],
        },
        path,
    )
    picture(path)
    with pytest.raises(ValueError, match="no policy"):
        reward_comparison({}, path)


def test_drawing_leaves_matplotlib_as_it_was(tmp_path: Path) -> None:
    before = dict(matplotlib.rcParams)
    losses_and_reward(metrics(), tmp_path / "losses.png")
    assert dict(matplotlib.rcParams) == before


@pytest.mark.every_agent
def test_drawing_asks_for_no_window_system() -> None:
    code = "import sys, astra_gym.experiments.plotting.run_plots; assert 'matplotlib.pyplot' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
