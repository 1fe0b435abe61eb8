import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from astra_gym.ssl_core.data.image_set import ImageSet
from astra_gym.ssl_core.evaluation import attack_suite, autoattack
from astra_gym.ssl_core.evaluation.attack_suite import Attack, Evaluation, evaluate
from astra_gym.ssl_core.evaluation.results import Origin
from astra_gym.ssl_core.transforms.views import as_float

SHAPE = (3, 5, 5)
ORIGIN = Origin(protocol="slf", route="none", seed=0, checkpoint="last", commit="unknown")
EPSILON = 2 / 255
QUICK, OTHER = Attack("autoattack-quick", EPSILON), Attack("autoattack-quick", 0.05, "L2")


def linear(seed: int = 0) -> nn.Module:
    """Four classes, the fewest that AutoAttack takes."""
    head = nn.Linear(75, 4)
    head.weight.data = 0.4 * torch.randn(4, 75, generator=torch.Generator().manual_seed(seed))
    head.bias.data.zero_()
    return nn.Sequential(nn.Flatten(), head).eval()


def images() -> ImageSet:
    """What the classifier is right about."""
    found = torch.randint(256, (8, *SHAPE), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    return ImageSet(found, linear()(as_float(found)).argmax(1), tuple("abcd"), "linear")


def run(states: Path, attacks: list[Attack], seed: int = 0, model: nn.Module | None = None, **more: Any) -> Evaluation:
    origin = replace(ORIGIN, seed=seed)
    return evaluate(model or linear(), images(), attacks, origin=origin, state_dir=states, **more)


def test_autoattack_goes_on_from_its_state_and_keeps_its_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = tmp_path / "new"
    first = run(states, [QUICK, OTHER], batch_size=5)
    assert {path.name for path in states.iterdir()} == {
        f"autoattack-quick-Linf-{EPSILON!r}-batch5-seed0.json",
        "autoattack-quick-L2-0.05-batch5-seed0.json",
    }
    monkeypatch.setattr(autoattack, "attack_of", None)
    again = run(states, [QUICK, OTHER], batch_size=5)
    assert [row for row in again.rows if row.metric == "RA"] == [row for row in first.rows if row.metric == "RA"]


@pytest.mark.slow
def test_another_batch_size_or_seed_has_a_state_of_its_own(tmp_path: Path) -> None:
    for size, seed in ((5, 0), (256, 0), (5, 1)):
        run(tmp_path, [QUICK], seed, batch_size=size)
    keys = {path.name: json.loads(path.read_text())["key"] for path in tmp_path.iterdir()}
    # 100 is the most that the protocol attacks at once
    expected = {
        f"autoattack-quick-Linf-{EPSILON!r}-batch{size}-seed{seed}.json": (size, seed)
        for size, seed in ((5, 0), (100, 0), (5, 1))
    }
    assert {name: (key["batch_size"], key["seed"]) for name, key in keys.items()} == expected


@pytest.mark.parametrize("damage", [False, True])
def test_a_state_is_refused_before_anything_is_attacked(
    damage: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also the state of the last attack."""
    run(tmp_path, [OTHER])
    [state] = tmp_path.iterdir()
    if damage:
        state.write_text("{")
    for name in ("fgsm_accuracy", "pgd_accuracy", "autoattack_accuracy"):
        monkeypatch.setattr(attack_suite, name, None)
    attacks = [Attack("fgsm", EPSILON), Attack("pgd20", EPSILON), QUICK, OTHER]
    with pytest.raises(ValueError, match="is damaged" if damage else "of another evaluation: another model"):
        run(tmp_path, attacks, model=linear(seed=2))


def test_the_state_of_the_whole_version_is_checked_where_the_quick_one_is_read_off_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = tmp_path / f"autoattack-Linf-{EPSILON!r}-batch100-seed0.json"
    state.write_text("{")
    monkeypatch.setattr(attack_suite, "autoattack_accuracy", None)
    with pytest.raises(ValueError, match="is damaged"):
        run(tmp_path, [QUICK, Attack("autoattack", EPSILON)])
