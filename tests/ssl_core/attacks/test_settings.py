"""The section on the attack: its start, by name or custom."""

import pytest

from astra_gym.ssl_core.attacks.pgd import STARTS
from astra_gym.ssl_core.attacks.settings import AttackSection
from astra_gym.ssl_core.utils.training_plan import TrainingPlan


def test_a_start_is_one_of_the_table_or_the_methods_own() -> None:
    assert AttackSection().find() is None and AttackSection(attack_start="zero").find() is STARTS["zero"]
    message = "unknown attack start 'zeros': choose from uniform, zero; did you mean 'zero'"
    with pytest.raises(ValueError, match=message):
        AttackSection(attack_start="zeros")


def test_a_custom_start_is_imported_when_it_is_looked_for() -> None:
    section = AttackSection(attack_start="no_such_module:start")
    with pytest.raises(ValueError, match="cannot import no_such_module"):
        section.find()


def test_further_steps_after_a_success_come_at_the_sources_epochs_of_120() -> None:
    section = AttackSection(attack_stop="retrieval")
    assert [section.further_steps(epoch / 120) for epoch in (0, 49, 50, 89, 90, 120)] == [0, 0, 1, 1, 2, 2]
    # 5/12 of these updates, whose quotients are a last digit too low
    for epochs, steps in ((7, 12), (11, 12), (7, 60)):
        step = 5 * epochs * steps // 12
        progress = [TrainingPlan(epochs, steps).moment(number).progress for number in (step - 1, step)]
        assert progress[1] < 50 / 120 and [section.further_steps(each) for each in progress] == [0, 1]
    with pytest.raises(ValueError, match=r"unknown end of the attack 'retrival'.*did you mean 'retrieval'"):
        AttackSection(attack_stop="retrival")
