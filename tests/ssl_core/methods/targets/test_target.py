"""What all targets share: the clean form beside the adversarial one, rows of the loss, the attack, exact resume."""

import copy
import shlex
from pathlib import Path

import pytest
import torch

from astra_gym.experiments.train_agent import main
from astra_gym.ssl_core.attacks.pgd import Budget
from astra_gym.ssl_core.losses.redundancy import barlow_twins_marginal, vicreg_marginal
from astra_gym.ssl_core.methods import METHODS, Routes
from astra_gym.ssl_core.methods.targets.target import AdversarialStreams
from astra_gym.ssl_core.models.modes import frozen
from tests.helpers.draws import generator
from tests.helpers.states import same
from tests.helpers.target_learners import ATTACKED, SMALL, VIEWS, learner

EVERY = pytest.mark.parametrize("name", SMALL)


def test_every_target_is_here_with_a_clean_form() -> None:
    assert SMALL.keys() == {name for name, kind in METHODS.items() if issubclass(kind, AdversarialStreams)}
    assert {f"{name}-clean" for name in SMALL} == {name for name in METHODS if name.endswith("-clean")}


@EVERY
def test_the_clean_form_has_the_loss_of_the_clean_stream(name: str) -> None:
    alone, both = learner(f"{name}-clean"), learner(name)
    assert (alone.method.routes, both.method.routes) == (Routes.single("normal"), Routes())
    assert both.method.attack.exists and not alone.method.attack.exists
    own, terms = alone.update(VIEWS, None), both.update(VIEWS, ATTACKED)
    assert own["clean"] == pytest.approx(terms["clean"], rel=1e-5)
    scale = both.method.scale
    assert own["total"] == pytest.approx(scale * own["clean"])
    assert terms["total"] == pytest.approx(scale * (terms["clean"] + terms["adversarial"]) / 2, rel=1e-5)
    attacked = {"key": "attacked"} if name == "moco" else {}
    one = learner(name, streams="a2a", **attacked)
    assert one.method.routes == Routes.single("pgd") and one.update(VIEWS, ATTACKED).keys() == {"adversarial", "total"}


@EVERY
def test_the_objectives_rows_are_those_of_the_loss(name: str) -> None:
    made = learner(f"{name}-clean")
    made.update(VIEWS, None)
    with frozen(made._parts), torch.no_grad():
        z = made.method.encoded(made.plain(), VIEWS, torch.arange(8), attacked=False).embeddings
        rows = made.method.objective_for(made.plain(), VIEWS)(z)
        assert rows.shape == (8,)
        torch.testing.assert_close(rows, made.method.stream(made.plain(), VIEWS, "normal"))


@EVERY
def test_the_attack_raises_the_loss_and_moves_nothing_else(name: str) -> None:
    made = learner(name)
    for _ in range(3):
        made.update(VIEWS, ATTACKED)
    before = copy.deepcopy(made._parts.state_dict())
    objective, clean = made.objective(VIEWS), made.encode_clean(VIEWS).embeddings
    budgets = (Budget.uniform(8, epsilon=8 / 255, step_size=2 / 255, steps=steps) for steps in (0, 5))
    still, attacked = (made.attack(VIEWS, budget, generator(), objective) for budget in budgets)
    assert objective(attacked.embeddings).mean() > objective(still.embeddings).mean() + 1e-3
    terms = made.method.reward_terms(objective, clean, attacked.embeddings)
    assert same(before, made._parts.state_dict())
    marginal = {"barlow": barlow_twins_marginal, "vicreg": vicreg_marginal}.get(name)
    torch.testing.assert_close(terms["clean"], objective(clean))
    expected = objective(attacked.embeddings)
    if marginal is not None:
        options = {"barlow": (0.2,), "vicreg": ()}[name]
        expected = terms["clean"] + marginal(clean, attacked.embeddings, *options)
    torch.testing.assert_close(terms["adversarial"], expected)


@EVERY
def test_a_loaded_state_goes_on_bit_for_bit(name: str) -> None:
    whole, parted = learner(name), learner(name)
    for step in range(5):
        if step == 3:
            parted.load_state_dict(copy.deepcopy(whole.state_dict()))
            assert parted.step == 3
        whole.update(VIEWS, ATTACKED)
        if step >= 3:
            parted.update(VIEWS, ATTACKED)
    assert same(whole.state_dict(), parted.state_dict())


@pytest.mark.slow
@EVERY
def test_a_clean_target_teaches(name: str, tmp_path: Path) -> None:
    tiny = (
        "--limit=8 --test_limit=20 --batch_size=4 --image_size=8 --width=2 --epochs=1 --evaluate=false --progress=off"
    )
    teacher = tmp_path / "teacher"
    assert main([*shlex.split(tiny), f"--method={name}-clean", f"--run_dir={teacher}"]) == 0
    student = ["--method=deacl", "--agent=fixed", f"--teacher={teacher}", f"--run_dir={tmp_path / 'student'}"]
    assert main([*shlex.split(tiny), *student]) == 0
