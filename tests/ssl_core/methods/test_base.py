from dataclasses import dataclass
from typing import Any

import pytest

from astra_gym.ssl_core.attacks.pgd import ConstantBudget
from astra_gym.ssl_core.methods import ACL


@dataclass(frozen=True)
class Written(ACL):
    """A method whose budget is what a test says."""

    budget: Any = None

    def default_budget(self, step: int) -> Any:
        return self.budget


def test_a_bare_tuple_is_read_in_the_order_of_0_1_with_a_warning() -> None:
    with pytest.warns(FutureWarning, match=r"Written gives a bare tuple, read as \(epsilon, step_size, steps\)"):
        assert Written(budget=(0.1, 0.02, 5)).budget_at(0) == ConstantBudget(epsilon=0.1, step_size=0.02, steps=5)


@pytest.mark.parametrize("budget", [(0.1, 0.02), None, {"epsilon": 0.1}, 8])
def test_anything_else_is_refused(budget: object) -> None:
    with pytest.raises(ValueError, match=r"default_budget of Written gives .*: expected a ConstantBudget"):
        Written(budget=budget).budget_at(0)


def test_the_named_record_is_returned_as_it_is() -> None:
    own = ConstantBudget(epsilon=0.1, step_size=0.02, steps=5)
    assert Written(budget=own).budget_at(3) is own
    expanded = own.expand(3)
    assert expanded.steps.tolist() == [5, 5, 5] and expanded.epsilon.tolist() == pytest.approx([0.1] * 3)
