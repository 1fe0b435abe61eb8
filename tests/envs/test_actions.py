import numpy as np
import pytest
import torch

from astra_gym.envs.actions import ActionTable, members
from astra_gym.envs.api.action_sets import ActionSets
from astra_gym.ssl_core.attacks.pgd import ConstantBudget


def test_spaces() -> None:
    assert str(ActionTable("factored").space) == "MultiDiscrete([13 12  5])"
    assert ActionTable("flat").space.n == 780
    box = ActionTable("continuous").space
    assert box.shape == (3,) and box.low.min() == -1 and box.high.max() == 1
    assert ActionTable("none").space.n == 1


def test_factored_and_flat_are_the_same_grid_in_full() -> None:
    rows = torch.cartesian_prod(torch.arange(13), torch.arange(12), torch.arange(5))
    factored = ActionTable("factored").decode(rows)
    flat = ActionTable("flat").decode(torch.arange(780))
    for name in ("epsilon", "step_size", "steps"):
        assert torch.equal(getattr(factored, name), getattr(flat, name))
    assert sorted({round(v) for v in (factored.epsilon * 255).tolist()}) == list(range(3, 16))
    assert sorted({round(v) for v in (factored.step_size * 255).tolist()}) == list(range(1, 6))
    assert sorted(set(factored.steps.tolist())) == list(range(3, 15))
    assert len({(a, b, c) for a, b, c in zip(*map(tuple, vars(factored).values()), strict=True)}) == 780


def test_ends_and_middle_of_continuous_actions() -> None:
    budget = ActionTable("continuous").decode(torch.tensor([[-1.0, -1, -1], [1, 1, 1], [0, 0, 0]]))
    torch.testing.assert_close(budget.epsilon * 255, torch.tensor([3.0, 15, 9]))
    torch.testing.assert_close(budget.step_size * 255, torch.tensor([1.0, 5, 3]))
    assert budget.steps.tolist() == [3, 14, 8]


@pytest.mark.parametrize("kind", ["factored", "flat", "continuous"])
def test_encode_is_the_inverse_of_decode(kind: str) -> None:
    table = ActionTable(kind)
    for epsilon, steps, step_size in [(8, 5, 2), (3, 3, 1), (15, 14, 5), (12, 9, 4)]:
        action = table.encode(ConstantBudget(epsilon=epsilon / 255, step_size=step_size / 255, steps=steps))
        assert table.space.contains(action), action
        budget = table.decode(torch.as_tensor(np.asarray(action))[None])
        assert budget.steps.item() == steps
        assert budget.epsilon.item() * 255 == pytest.approx(epsilon)
        assert budget.step_size.item() * 255 == pytest.approx(step_size)


@pytest.mark.parametrize("kind", ["factored", "flat", "continuous"])
@pytest.mark.parametrize(
    ("budget", "name"),
    [((2, 5, 2), "epsilon"), ((16, 5, 2), "epsilon"), ((8, 2, 2), "steps"), ((8, 15, 2), "steps"), ((8, 5, 6), "step")],
)
def test_budgets_out_of_range_are_refused(kind: str, budget: tuple[int, int, int], name: str) -> None:
    epsilon, steps, step_size = budget
    with pytest.raises(ValueError, match=rf"{name}.* is .*expected"):
        ActionTable(kind).encode(ConstantBudget(epsilon=epsilon / 255, step_size=step_size / 255, steps=steps))


@pytest.mark.parametrize(
    ("kind", "actions", "message"),
    [
        ("factored", torch.zeros(4, 2, dtype=torch.int64), "shape"),
        ("factored", torch.zeros(3, dtype=torch.int64), "shape"),
        ("factored", torch.zeros(4, 3), "dtype torch.float32: .*; for floats set actions to continuous$"),
        ("factored", torch.tensor([[13, 0, 0]]), "out of range"),
        ("factored", torch.tensor([[0, 0, -1]]), "out of range"),
        ("flat", torch.zeros(4, 1, dtype=torch.int64), "shape"),
        ("flat", torch.tensor([780]), "out of range"),
        ("flat", torch.tensor([True]), "dtype"),
        ("flat", torch.tensor(3), "shape"),
        ("continuous", torch.zeros(4, 3, dtype=torch.int64), "dtype"),
        ("continuous", torch.full((4, 3), float("nan")), "NaN"),
        ("continuous", torch.full((4, 3), 1.01), "outside"),
        ("none", torch.tensor([1]), "out of range"),
    ],
)
def test_bad_actions_are_refused(kind: str, actions: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ActionTable(kind).decode(actions)


@pytest.mark.parametrize("kind", ["factored", "flat"])
def test_a_budget_off_the_grid_is_refused_where_there_is_a_grid(kind: str) -> None:
    with pytest.raises(ValueError, match=r"epsilon is 8.4/255: the nearest .* is 8/255"):
        ActionTable(kind).encode(ConstantBudget(epsilon=8.4 / 255, step_size=2 / 255, steps=5))
    assert ActionTable("continuous").decode(
        torch.as_tensor(
            ActionTable("continuous").encode(ConstantBudget(epsilon=8.4 / 255, step_size=2 / 255, steps=5))
        )[None]
    ).epsilon.item() == pytest.approx(8.4 / 255)


def test_unknown_kind_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="did you mean 'factored'"):
        ActionTable("factord")


@pytest.mark.parametrize("kind", ["factored", "flat", "continuous"])
def test_steps_that_are_not_whole_have_no_action(kind: str) -> None:
    budget = ConstantBudget(epsilon=8 / 255, step_size=2 / 255, steps=5)
    object.__setattr__(budget, "steps", 5.5)
    with pytest.raises(ValueError, match=r"steps is 5\.5: expected an integer"):
        ActionTable(kind).encode(budget)


WIDE = ActionSets(
    epsilons=members({"from": 0, "to": 96 / 255, "by": 4 / 255}, "epsilons"),
    steps=(0, 1, 2, 4, 8, 14),
    step_sizes=tuple(size / 255 for size in (1, 2, 4, 8, 16, 32, 64)),
)


def test_other_sets_have_their_own_spaces_and_values() -> None:
    assert ActionTable("factored", WIDE).space.nvec.tolist() == [25, 6, 7]
    table = ActionTable("flat", WIDE)
    assert table.space.n == 25 * 6 * 7
    rows = torch.cartesian_prod(torch.arange(25), torch.arange(6), torch.arange(7))
    budget, factored = table.decode(torch.arange(1050)), ActionTable("factored", WIDE).decode(rows)
    for name in ("epsilon", "step_size", "steps"):
        assert torch.equal(getattr(budget, name), getattr(factored, name))
    assert torch.equal(budget.steps, torch.tensor(WIDE.steps)[rows[:, 1]])
    assert torch.equal(budget.step_size, torch.tensor(WIDE.step_sizes)[rows[:, 2]])
    ends = ActionTable("continuous", WIDE).decode(torch.tensor([[-1.0, 1, -1], [1, 1, 1]]))
    torch.testing.assert_close(ends.epsilon * 255, torch.tensor([0.0, 96]))
    assert ends.steps.tolist() == [14, 14]


@pytest.mark.parametrize("kind", ["factored", "flat", "continuous"])
def test_no_steps_leave_a_view_clean(kind: str) -> None:
    table = ActionTable(kind, WIDE)
    action = table.encode(ConstantBudget(epsilon=8 / 255, step_size=2 / 255, steps=0))
    budget = table.decode(torch.as_tensor(np.asarray(action))[None])
    assert (budget.steps.item(), budget.epsilon.item()) == (0, 0.0)


def test_a_range_and_a_list_of_its_values_are_one_set() -> None:
    assert members({"from": 3 / 255, "to": 15 / 255, "by": 1 / 255}, "epsilons") == ActionSets().epsilons
    assert members({"from": 3, "to": 14, "by": 1}, "steps") == ActionSets().steps
    found = members(np.array([0.0, 0.5]), "epsilons")
    assert found == members([0, "1/2"], "epsilons") == (0.0, 0.5) and {type(value) for value in found} == {float}


def test_the_hardest_budget_reaches_every_corner() -> None:
    assert ActionSets().hardest == ConstantBudget(epsilon=15 / 255, step_size=4 / 255, steps=14)
    assert WIDE.hardest == ConstantBudget(epsilon=96 / 255, step_size=32 / 255, steps=14)
    assert ActionSets(steps=(1,), step_sizes=(1 / 255,)).hardest.step_size == 1 / 255


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        ({"epsilons": ()}, "action_epsilons has 0 members"),
        ({"epsilons": (8,)}, "member of action_epsilons is 8"),
        ({"epsilons": (8 / 255, 4 / 255)}, "rising order"),
        ({"steps": (1, 1)}, "rising order"),
        ({"steps": (1, 2.5)}, r"member of action_steps is 2\.5: expected an integer"),
        ({"step_sizes": (float("nan"),)}, "member of action_step_sizes is nan"),
    ],
)
def test_impossible_sets_are_refused(sets: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ActionSets(**sets)


@pytest.mark.parametrize(
    "given",
    [
        {"from": 0, "to": 1},
        {"from": 0, "to": 1, "by": 0},
        {"from": 0, "to": 1, "by": 0.3},
        {"from": 1, "to": 0, "by": 0.5},
        {"from": 0, "to": 1, "by": 1e-6},
        {"from": 0, "to": "1", "by": 0.5},
        0.1,
        "0.1",
        [0.1, None],
    ],
)
def test_impossible_ranges_are_refused(given: dict) -> None:
    with pytest.raises(ValueError, match=r"epsilons.* is .*: expected"):
        members(given, "epsilons")
