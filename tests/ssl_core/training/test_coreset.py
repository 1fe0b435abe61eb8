"""The greedy selection against its own equations, and that nothing is left of it but the rows."""

import copy
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from astra_gym.ssl_core.attacks.pgd import Budget, ConstantBudget
from astra_gym.ssl_core.losses.contrastive import nt_xent
from astra_gym.ssl_core.losses.divergences import representational_divergence
from astra_gym.ssl_core.methods import AttackTraits, Method, make_method
from astra_gym.ssl_core.methods.contrastive import ACL
from astra_gym.ssl_core.models.target_network import build_network
from astra_gym.ssl_core.training import coreset
from astra_gym.ssl_core.training.coreset import CoresetSettings, _maximized, select, validation_rows
from astra_gym.ssl_core.training.learner import NonFiniteLossError, TargetLearner
from astra_gym.ssl_core.training.optim import make_optimizer
from astra_gym.ssl_core.utils.rng import Streams
from tests.helpers.states import same

SIZE = 4
IMAGES = torch.rand(30, 3, 8, 8, generator=torch.Generator().manual_seed(5))
IMAGES *= torch.linspace(0.2, 1, 30).view(-1, 1, 1, 1)
ROWS = torch.arange(30)


@dataclass(frozen=True)
class Unattacked(ACL):
    """ACL whose own attack changes nothing, so that a test can say its gradients."""

    def default_budget(self, step: int) -> ConstantBudget:
        return ConstantBudget(epsilon=0.0, step_size=0.0, steps=0)


def learner(method: Method | None = None, projector: str = "acl") -> TargetLearner:
    method = method or Unattacked()
    network = build_network(
        torch.Generator().manual_seed(0),
        arch="resnet10",
        width=4,
        routes=method.routes.names,
        projector=projector,
        projector_hidden=6,
        projector_dim=5,
    )
    made = TargetLearner(network, method, make_optimizer("sgd", network, 0.1, 0.0), lambda step: 0.1)
    attacked = (IMAGES[:8] + 0.1 * torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(2))).clamp(0, 1)
    # the routes get statistics of their own, and the optimiser a momentum
    for _ in range(3):
        made.update(IMAGES[:8], attacked if method.attack.exists else None)
    return made


def load(rows: torch.Tensor) -> torch.Tensor:
    return IMAGES[rows]


def make_views(images: torch.Tensor) -> torch.Tensor:
    """The images and their mirror images."""
    return torch.stack([images, images.flip(-1)], dim=1).flatten(0, 1)


def parts(streams: Streams) -> tuple[torch.Tensor, torch.Tensor]:
    """The rows that are trained on, and those that are held out."""
    validation = validation_rows(ROWS, streams)
    return ROWS[~torch.isin(ROWS, validation)], validation


def chosen(target: TargetLearner, seed: int = 0, **settings: Any) -> torch.Tensor:
    streams = Streams(seed)
    return select(target, *parts(streams), SIZE, load, make_views, CoresetSettings(**settings), streams)


def divergence_of(clean: torch.Tensor, attacked: torch.Tensor, settings: CoresetSettings) -> torch.Tensor:
    """Its sum over rows, of "kl" and "js" written out."""
    if settings.divergence == "ot":
        return representational_divergence(clean, attacked, "ot", "sum")
    low, span = clean.amin(1, keepdim=True), clean.amax(1, keepdim=True) - clean.amin(1, keepdim=True)
    lowest, extent = attacked.amin(1, keepdim=True), attacked.amax(1, keepdim=True) - attacked.amin(1, keepdim=True)
    p, q = (clean - low) / span, (attacked - lowest) / extent
    if settings.form == "softmax":
        p, q = p.softmax(1), q.softmax(1)
        m = (p + q) / 2
        if settings.divergence == "kl":
            return (p * (p / q).log()).sum()
        return (p * (p / m).log() + q * (q / m).log()).sum() / 2
    if settings.divergence == "kl":
        p, q = p + 1e-8, q + 1e-8
        return (q * (q / p).log()).sum()
    log_p, log_q = clean.log_softmax(1), attacked.log_softmax(1)
    log_m = torch.stack([log_p, log_q]).logsumexp(0) - 0.6931471805599453
    return (log_m.exp() * (2 * log_m - log_p - log_q)).sum() / 2


def reference(target: TargetLearner, settings: CoresetSettings, streams: Streams) -> torch.Tensor:
    """Algorithm 1 by backward passes through the whole of a copy and a plain optimiser, without attack steps."""
    network = copy.deepcopy(target.network).eval()
    linears = list(network.projector.linears)
    parameters = [linear.weight for linear in linears]
    if settings.biases:
        # ACL's projector has one, in its first layer
        parameters.insert(1, linears[0].bias)
    rest, validation = parts(streams)
    dealt = rest[torch.randperm(len(rest), generator=streams["coreset"])]
    batches = [dealt[k : k + SIZE] for k in range(0, len(dealt) - SIZE + 1, SIZE)]
    noise = streams.on_device("coreset/noise")

    def backward(value: torch.Tensor) -> list[torch.Tensor]:
        network.zero_grad()
        value.backward()
        return [p.grad.clone() for p in parameters if p.grad is not None]

    def averaged(gradient: list[torch.Tensor]) -> torch.Tensor:
        return torch.cat([g.mean(0).reshape(-1) for g in gradient])

    full = []
    for batch in batches:
        views = make_views(IMAGES[batch])
        torch.rand(views.shape, generator=noise)  # of an attack within nothing
        clean, attacked = (nt_xent(network(views, route).embeddings) for route in ("normal", "pgd"))
        full.append(backward((clean + attacked) / 2))
    left, picked = list(range(len(batches))), []
    for _ in range(settings.batches):
        gradient = [torch.zeros_like(p) for p in parameters]
        for k in range(0, len(validation), SIZE):
            views = make_views(IMAGES[validation[k : k + SIZE]])
            start = (torch.rand(views.shape, generator=noise) * 2 - 1) * settings.epsilon
            moved = (views + start).clamp(0, 1)
            embeddings = network(views, "normal").embeddings, network(moved, "pgd").embeddings
            part = backward(divergence_of(*embeddings, settings))
            gradient = [a + b for a, b in zip(gradient, part, strict=True)]
        best = max(left, key=lambda b: (averaged(full[b]) @ averaged(gradient)).item())
        picked.append(best)
        left.remove(best)
        with torch.no_grad():
            for p, g in zip(parameters, full[best], strict=True):
                p -= settings.lr * g
    return torch.cat([batches[b] for b in picked])


@pytest.mark.slow
@pytest.mark.parametrize("biases", [False, pytest.param(True, marks=pytest.mark.every_agent)])
@pytest.mark.parametrize(
    ("divergence", "form"),
    [("kl", "released"), ("js", "released"), ("kl", "softmax"), ("js", "softmax"), ("ot", "released")],
)
@pytest.mark.parametrize("lr", [0.01, 30.0])
def test_batches_are_picked_as_the_algorithm_says(divergence: str, form: str, lr: float, biases: bool) -> None:
    target = learner()
    settings = CoresetSettings(batches=4, divergence=divergence, form=form, biases=biases, lr=lr, epsilon=0.1, steps=0)
    rows = select(target, *parts(Streams(3)), SIZE, load, make_views, settings, Streams(3))
    assert torch.equal(rows, reference(target, settings, Streams(3)))


def test_what_version_0_1_picked_is_picked_by_its_form_with_biases() -> None:
    # what its code, which had no other, gives of these images
    picked = [4, 0, 3, 22, 21, 20, 25, 8, 19, 10, 2, 14, 9, 16, 24, 29]
    for divergence in ("kl", "js"):
        rows = chosen(learner(), batches=4, divergence=divergence, form="softmax", biases=True)
        assert rows.tolist() == picked
    assert chosen(learner(), batches=4).tolist() != picked


@pytest.mark.parametrize("biases", [False, True])
def test_gradients_and_virtual_steps_leave_biases_out_by_default(biases: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    target, widths, moved = learner(), [], []
    bias = target.network.projector.linears[0].bias
    assert bias is not None and all(linear.bias is None for linear in target.network.projector.linears[1:])
    began = bias.detach().clone()
    averaged, gradient_of = coreset._averaged, coreset._divergence_gradient
    monkeypatch.setattr(coreset, "_averaged", lambda g: widths.append(len(averaged(g))) or averaged(g))

    def watched(*arguments: Any) -> Any:
        moved.append(not torch.equal(bias, began))
        return gradient_of(*arguments)

    monkeypatch.setattr(coreset, "_divergence_gradient", watched)
    chosen(target, batches=3, lr=1.0, biases=biases)
    # layers of 32 to 6 to 5 to 5: as many weights an output, and the bias as a single number
    assert set(widths) == {32 + 6 + 5 + biases}
    assert moved == [False, biases, biases]
    assert torch.equal(bias, began)


def test_a_virtual_step_counts() -> None:
    picks = {tuple(chosen(learner(), batches=5, lr=lr).tolist()) for lr in (0.0, 1e4)}
    assert len(picks) == 2


def test_without_virtual_steps_and_noise_fewer_picks_are_the_first_of_more() -> None:
    target = learner()
    most = chosen(target, batches=6, lr=0.0, epsilon=0.0)
    assert len(most.unique()) == 6 * SIZE
    for batches in range(1, 6):
        assert torch.equal(chosen(target, batches=batches, lr=0.0, epsilon=0.0), most[: batches * SIZE])


@pytest.mark.slow
def test_held_out_images_are_not_chosen() -> None:
    for kind in ("rcs", "random"):
        for seed in range(4):
            held_out = validation_rows(ROWS, Streams(seed))
            rows = chosen(learner(), seed, kind=kind, batches=6)
            assert rows.dtype == torch.int64 and len(rows.unique()) == 24
            assert not torch.isin(rows, held_out).any()


def test_the_held_out_are_a_hundredth_and_the_same_all_along() -> None:
    streams = Streams(1)
    assert [len(validation_rows(torch.arange(n), streams)) for n in (5, 30, 320, 1000, 3200, 45000)] == [
        *(1, 3, 32, 32, 32, 450),
    ]
    rows = torch.arange(10, 50) * 2
    held_out = validation_rows(rows, streams)
    chosen(learner(), batches=2)
    assert torch.equal(validation_rows(rows, streams), held_out) and torch.isin(held_out, rows).all()
    assert streams.state_dict()["host"] == {}
    assert not torch.equal(validation_rows(rows, Streams(2)), held_out)


def test_the_control_draws_from_the_same_batches() -> None:
    rows = chosen(learner(make_method("simclr")), kind="random", batches=6)
    same = chosen(learner(), kind="rcs", batches=6)

    def sets(given: torch.Tensor) -> set[frozenset[int]]:
        return {frozenset(batch.tolist()) for batch in given.view(-1, SIZE)}

    # all six of six, in another order
    assert sets(rows) == sets(same) and not torch.equal(rows, same)
    few = [chosen(learner(), seed, kind="random", batches=2) for seed in (0, 0, 1)]
    assert torch.equal(few[0], few[1]) and not torch.equal(few[0], few[2])
    assert torch.equal(few[0], rows[:8])


def test_no_more_batches_than_there_are_images() -> None:
    with pytest.raises(ValueError, match="a coreset of 7 batches of 4 was asked for, but there are 27 images"):
        chosen(learner(), batches=7)


@dataclass(frozen=True)
class InTrainMode(ACL):
    attack = AttackTraits(mode="train")


def snapshot(target: TargetLearner) -> dict[str, Any]:
    return copy.deepcopy(
        {
            "state": target.state_dict(),
            "modes": [part.training for part in target.network.modules()],
            "grads": [p.grad for p in target.network.parameters()],
            "needs": [p.requires_grad for p in target.network.parameters()],
            "tracks": [getattr(part, "tracks", None) for part in target.network.modules()],
            "global": torch.get_rng_state(),
        }
    )


@pytest.mark.slow
@pytest.mark.parametrize("method", [ACL(), InTrainMode(), make_method("astra")])
def test_a_selection_leaves_nothing_behind(method: Method) -> None:
    target, streams = learner(method), Streams(0)
    target.network.backbone.eval()
    target.network.backbone.conv.weight.requires_grad_(False)
    before, data = snapshot(target), streams["data"].get_state()
    settings = CoresetSettings(batches=3, lr=10.0)
    rows = select(target, *parts(streams), SIZE, load, make_views, settings, streams)
    assert len(rows) == 12
    assert same(snapshot(target), before)
    assert torch.equal(streams["data"].get_state(), data)
    assert streams.state_dict()["host"].keys() == {"data", "coreset"}
    calls = iter(range(9))

    def failing(images: torch.Tensor) -> torch.Tensor:
        # six batches, one piece of held-out images, and the next after a virtual step
        if next(calls) == 7:
            raise KeyError("disk")
        return make_views(images)

    with pytest.raises(KeyError, match="disk"):
        select(target, *parts(streams), SIZE, load, failing, settings, streams)
    assert same(snapshot(target), before)


def test_whole_numbers_are_figures_too() -> None:
    for whole in (0, 1):
        picked = [
            chosen(learner(), batches=2, epsilon=kind(whole), step_size=kind(whole), lr=kind(0))
            for kind in (int, float)
        ]
        assert torch.equal(*picked)


def test_attacks_are_the_methods_own_and_start_anew() -> None:
    target, seen = learner(ACL()), []
    attack = target.attack

    def watched(views: torch.Tensor, budget: Budget, *rest: Any) -> Any:
        seen.append(budget)
        return attack(views, budget, *rest)

    target.attack = watched  # type: ignore[method-assign]
    chosen(target, batches=3)
    # every batch once, whatever the number of picks
    assert len(seen) == 6
    assert {len(budget) for budget in seen} == {2 * SIZE} and {int(b.steps[0]) for b in seen} == {5}
    assert float(seen[0].epsilon[0]) == pytest.approx(8 / 255)


def test_the_divergence_rises_within_the_ball() -> None:
    # both routes as they began: all that diverges is the attack's doing
    network = build_network(torch.Generator().manual_seed(0), arch="resnet10", width=4, projector_dim=8).eval()
    views = make_views(IMAGES[:6])
    clean = network(views, "normal").embeddings.detach()

    def divergence(steps: int) -> float:
        settings = CoresetSettings(batches=1, steps=steps)
        moved = _maximized(network, views, clean, "pgd", settings, torch.Generator().manual_seed(1))
        assert (moved - views).abs().max() <= 8 / 255 + 1e-6 and moved.min() >= 0 and moved.max() <= 1
        return float(representational_divergence(clean, network(moved, "pgd").embeddings).detach())

    assert divergence(3) > 1.2 * divergence(0)


def test_what_cannot_be_selected_is_refused() -> None:
    with pytest.raises(ValueError, match="SimCLR has no attack: take the selection random"):
        chosen(learner(make_method("simclr")), batches=2)
    with pytest.raises(ValueError, match="projector's linear layers, but it has none"):
        chosen(learner(projector="none"), batches=2)
    broken = learner()
    torch.nn.init.constant_(broken.network.projector.linears[2].weight, float("nan"))
    with pytest.raises(NonFiniteLossError, match="not finite at pick 0"):
        chosen(broken, batches=2)
    with pytest.raises(ValueError, match="selection of a coreset"):
        CoresetSettings(batches=1, kind="best")
    with pytest.raises(ValueError, match="divergence"):
        CoresetSettings(batches=1, divergence="cosine")
    with pytest.raises(ValueError, match="form of a divergence 'soft'"):
        CoresetSettings(batches=1, form="soft")
    for bad, message in (
        ({"batches": 0}, "batches is 0: expected an integer of 1 or more"),
        ({"batches": 2.5}, "batches is 2.5"),
        ({"batches": 1, "steps": -1}, "steps is -1: expected an integer of 0 or more"),
        ({"batches": 1, "biases": 1}, "biases is 1, expected true or false"),
        ({"batches": 1, "lr": float("nan")}, "lr is nan"),
        ({"batches": 1, "epsilon": 8.0}, r"epsilon is 8.0: expected a number in \[0, 1\], 8/255 not 8"),
    ):
        with pytest.raises(ValueError, match=message):
            CoresetSettings(**bad)  # type: ignore[arg-type]
