from typing import Any

import pytest

from astra_gym.ssl_core.evaluation.attack_suite import Attack


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("cw", 0.1), "unknown attack 'cw': choose from none, fgsm, pgd20, autoattack, autoattack-quick, worst"),
        (("pgd20", 8), r"epsilon of pgd20 is 8\.0: expected in \[0, 1\], 8/255 and not 8"),
        (("fgsm", -0.1), "expected in"),
        (("pgd20", float("nan")), "expected in"),
        (("worst", float("inf"), "L2"), "expected"),
        (("pgd20", "8/255"), "expected a number"),
        (("pgd20", True), "expected a number"),
        (("none", 0.1), "epsilon of none is 0.1: expected 0"),
        (("autoattack", 0), "only the clean accuracy"),
        (("autoattack-quick", 8), "8/255 and not 8"),
        (("pgd20", 0.1, "L2"), "norm of pgd20 is 'L2': expected Linf"),
        (("fgsm", 0.1, "L1"), "norm of fgsm"),
        (("autoattack", 0.1, "L0"), "norm of autoattack is 'L0': expected Linf or L2 or L1"),
        (("pgd20", 0.1, "Linf", 0), "restarts of pgd20 are 0: expected an integer of at least 1"),
        (("pgd20", 0.1, "Linf", 1.5), "integer"),
        (("fgsm", 0.1, "Linf", 2), "restarts of fgsm are 2: expected 1, which only pgd20 can raise"),
        (("autoattack", 0.1, "Linf", 2), "only pgd20"),
        (
            ("fgsm", 0.1, "Linf", 1, 2 / 255),
            r"step size of fgsm is 2/255: expected None, since only pgd20 takes one",
        ),
        (("autoattack", 0.1, "Linf", 1, 2 / 255), "only pgd20"),
        (("pgd20", 0.1, "Linf", 1, 2), r"step size of pgd20 is 2: expected in \(0, 1\], 2/255 and not 2"),
        (("pgd20", 0.1, "Linf", 1, 0), "expected in"),
        (("pgd20", 0.1, "Linf", 1, float("nan")), "expected in"),
        (("pgd20", 0.1, "Linf", 1, "2/255"), "expected a number, such as 2/255, or None"),
        (("pgd20", 0.1, "Linf", 1, True), "expected a number"),
    ],
)
def test_an_attack_that_makes_no_sense_is_refused(given: tuple[Any, ...], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Attack(*given)


def test_an_attack_is_its_own_key() -> None:
    assert {Attack("pgd20", 1): 1}[Attack("pgd20", 1.0)] == 1
    assert Attack("autoattack", 0.5, "L2") != Attack("autoattack", 0.5)
    # the step that it would take anyway makes no other attack
    for epsilon, step in ((0, 0.0), (2 / 255, 1 / 255), (8 / 255, 2 / 255), (32 / 255, 4 / 255)):
        assert Attack("pgd20", epsilon, step_size=step) == Attack("pgd20", epsilon)
    other = Attack("pgd20", 32 / 255, step_size=2 / 255)
    assert other != Attack("pgd20", 32 / 255) and other.step_size == 2 / 255
    assert repr(Attack("pgd20", 0.5, step_size=1).step_size) == "1.0"
