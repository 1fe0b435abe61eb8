"""AutoAugment's policy for CIFAR-10 against torchvision's table; its operations are tested in test_trivial_augment."""

import pytest
import torch
from torch import Tensor
from torchvision.transforms import AutoAugmentPolicy, v2

from astra_gym.ssl_core.transforms.auto_augment import POLICY, SIGNED, auto_augment, draw_auto, strength
from astra_gym.ssl_core.transforms.trivial_augment import NAMES, TrivialParameters, apply_trivial
from tests.helpers.draws import generator


def images(n: int = 6) -> Tensor:
    return torch.rand(n, 3, 20, 24, generator=generator(3))


def test_the_policy_is_torchvisions() -> None:
    theirs = v2.AutoAugment(AutoAugmentPolicy.CIFAR10)
    pairs = [tuple((name, chance, level or 0) for name, chance, level in pair) for pair in theirs._policies]
    assert tuple(pairs) == POLICY
    for name, level in {(name, level) for pair in POLICY for name, _, level in pair}:
        make, signed = theirs._AUGMENTATION_SPACE[name]
        table = make(10, 20, 24)
        expected = 0.0 if table is None else float(table[level])
        assert strength(name, level, 20, 24) == pytest.approx(expected, abs=1e-6)
        assert (name in SIGNED) == signed


def test_pairs_chances_and_signs_are_drawn_as_stated() -> None:
    n = 60_000
    drawn = draw_auto(n, 32, 32, generator(1))
    # of each operation and strength, how often the policy has it
    for place, parameters in enumerate(drawn):
        expected: dict[tuple[int, float], float] = {}
        for pair in POLICY:
            name, chance, level = pair[place]
            kind = NAMES.index("Solarize" if name == "Invert" else name)
            size = strength(name, level, 32, 32)
            for sign in (1, -1) if name in SIGNED and size else (1,):
                key = (kind, round(sign * size, 6))
                expected[key] = expected.get(key, 0) + chance / len(POLICY) / (2 if name in SIGNED and size else 1)
        for (kind, size), share in expected.items():
            found = (parameters.operation == kind) & ((parameters.strength - size).abs() < 1e-5)
            assert found.double().mean().item() == pytest.approx(share, abs=4e-3)
        idle = (parameters.operation == NAMES.index("Identity")).double().mean().item()
        assert idle == pytest.approx(1 - sum(expected.values()), abs=8e-3)


def test_both_operations_are_made_in_turn() -> None:
    batch = images()
    first, second = draw_auto(6, 20, 24, generator(2))
    assert torch.equal(auto_augment(batch, generator(2)), apply_trivial(apply_trivial(batch, first), second))
    assert not torch.equal(auto_augment(images(50), generator(2)), images(50))


def test_an_inversion_is_a_solarization_of_all_values() -> None:
    batch = images()
    operation = torch.full((6,), NAMES.index("Solarize"))
    zero = torch.full((6,), strength("Invert", 0, 20, 24), dtype=torch.float64)
    assert torch.equal(apply_trivial(batch, TrivialParameters(operation, zero)), 1 - batch)
