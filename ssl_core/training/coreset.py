"""Coresets: batches for later epochs, selected for robustness (RCS, NeurIPS 2023) or at random."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from astra_gym.ssl_core.attacks.pgd import Budget, pgd
from astra_gym.ssl_core.losses.divergences import DIVERGENCES, FORMS, representational_divergence
from astra_gym.ssl_core.methods import Network
from astra_gym.ssl_core.models.folding import FoldedNetwork
from astra_gym.ssl_core.models.modes import frozen
from astra_gym.ssl_core.models.route_norm import Untracked
from astra_gym.ssl_core.training.learner import NonFiniteLossError, TargetLearner
from astra_gym.ssl_core.utils.finite import check_number
from astra_gym.ssl_core.utils.messages import shown
from astra_gym.ssl_core.utils.registry import pick
from astra_gym.ssl_core.utils.rng import Streams, derive_seed

SELECTIONS = {
    "rcs": "the batches whose gradients most lower what an attack changes of held-out images",
    "random": "as many of the same batches, drawn at random: its control",
}
SHARE = 100
"""One image of this many is held out, as in the released code."""
FEWEST = 32
"""Minimum number of held-out images, unless that is over a tenth of all: fewer measure too little."""

Load = Callable[[Tensor], Tensor]
"""`load(rows)`: images (k, 3, h, w) in [0, 1] of rows (k,) int64, on the learner's device."""
MakeViews = Callable[[Tensor], Tensor]
"""`make_views(images)`: the method's views (v, 3, h, w) of images, drawn anew in every call."""
Gradient = list[Tensor]
"""Gradient of a scalar with respect to each selected parameter of the projector's linear layers."""


@dataclass(frozen=True)
class CoresetSettings:
    """Settings of the selection of a coreset; the defaults are the released code's, and the paper's for biases.

    Args:
        batches: number of batches to select, 1 or more.
        kind: a name of `SELECTIONS`.
        divergence: divergence between clean and attacked embeddings, a name of
            `astra_gym.ssl_core.losses.divergences.DIVERGENCES`.
        form: form of the divergence, a name of `astra_gym.ssl_core.losses.divergences.FORMS`: `released`, or `softmax`
            as in version 0.1; not used by the divergence "ot".
        biases: whether gradients and virtual steps include the linear layers' biases, as in version 0.1, or weights
            only, as in the paper. The released code, as available, includes the first layer's bias; ACL's projector has
            no other.
        lr: size of the virtual step of descent along the gradient of a picked batch, 0 or more.
        epsilon: radius of the attack that maximizes the divergence, and of its random start, in [0, 1].
        step_size: step size of that attack, in [0, 1].
        steps: steps of that attack, 0 or more.

    Raises:
        ValueError: if a value is out of its range, a name is unknown, or `biases` is not true or false.
    """

    batches: int
    kind: str = "rcs"
    divergence: str = "kl"
    form: str = "released"
    biases: bool = False
    lr: float = 0.01
    epsilon: float = 8 / 255
    step_size: float = 10 / 255 / 3
    steps: int = 3

    def __post_init__(self) -> None:
        pick(self.kind, SELECTIONS, "selection of a coreset")
        pick(self.divergence, DIVERGENCES, "divergence")
        pick(self.form, FORMS, "form of a divergence")
        if type(self.biases) is not bool:
            raise ValueError(f"coreset: biases is {shown(self.biases)}, expected true or false")
        for name, least in (("batches", 1), ("steps", 0)):
            check_number(f"coreset: {name}", getattr(self, name), least, whole=True)
        check_number("coreset: lr", self.lr)
        for name in ("epsilon", "step_size"):
            check_number(f"coreset: {name}", getattr(self, name), 0, 1, "a number in [0, 1], 8/255 not 8")


def validation_rows(rows: Tensor, streams: Streams) -> Tensor:
    """Select the rows that RCS holds out of training to measure the divergence, the same throughout a run.

    A hundredth, as in the released code, but at least 32 if that is no more than a tenth, and at least one.

    Args:
        rows: all rows, (m,) int64, m >= 1.
        streams: only their seed is used; no stream advances.

    Returns:
        (u,) int64, in the order of `rows`.
    """
    count = max(len(rows) // SHARE, min(FEWEST, len(rows) // 10), 1)
    own = torch.Generator().manual_seed(derive_seed(streams.seed, "coreset/validation"))
    return rows[torch.randperm(len(rows), generator=own)[:count].sort().values]


def select(
    learner: TargetLearner,
    rows: Tensor,
    validation: Tensor,
    batch_size: int,
    load: Load,
    make_views: MakeViews,
    settings: CoresetSettings,
    streams: Streams,
) -> Tensor:
    """Select the rows of the next epochs' batches, on the current weights (RCS, Xu et al. 2023, algorithm 1).

    The rows are split into batches at random. Let L be the method's training loss of a batch on its views and their
    attacks (by the method's default budget). Let RD be the representational divergence between clean and attacked
    embeddings of the held-out images, attacked anew to maximize it. Gradients are with respect to the weights of the
    projector's linear layers (with `biases` also their biases), averaged over the outputs: g_b of L for every batch b,
    G of RD. The batch with the largest <g_b, G> is picked, since a step of descent along its gradient lowers RD most to
    first order. The projector takes that step virtually, G is computed again, and the next batch is picked.

    Differences from the released code, or choices where it is not available: held-out images are augmented (the
    method's views, drawn anew for each pick); for a momentum pair (DynACL) the divergence uses the target network only.

    Everything runs in eval mode. g_b is computed once, on the original projector; only G follows the virtual steps. The
    released code does the same, but it may apply a virtual step twice, since it lists the layers under two names; here
    it is applied once.

    Nothing is learned: weights are restored bit for bit, also after an error; statistics, gradients, training flags and
    the optimizer do not change. The cost is an attack on every batch, and one on the held-out views for each pick. The
    gradients of all batches are held in the host's memory.

    Args:
        learner: the learner, with the method and the weights.
        rows: (m,) int64, rows that may be trained on.
        validation: (u,) int64, other rows, held out to measure the divergence; see `validation_rows`.
        batch_size: images in a batch, 1 or more.
        load: loads images of rows.
        make_views: makes the method's views of images. It is called for every batch in turn, then before each pick for
            the held-out images, at most `batch_size` in a call.
        settings: settings of the selection.
        streams: "coreset" splits the batches, one draw per selection; "coreset/noise" on the device starts the attacks.

    Returns:
        (batches * batch_size,) int64: the batches in the order in which they were picked.

    Raises:
        ValueError: if there are too few rows for the batches; for "rcs", if the method has no attack or the projector
            no linear layers.
        NonFiniteLossError: if gradients are not finite.
    """
    if settings.batches * batch_size > len(rows):
        raise ValueError(
            f"a coreset of {settings.batches} batches of {batch_size} was asked for, but there are {len(rows)} images"
        )
    dealt = rows[torch.randperm(len(rows), generator=streams["coreset"])]
    batches = dealt[: len(dealt) // batch_size * batch_size].view(-1, batch_size)
    if settings.kind == "rcs":
        picked = _greedy(learner, batches, load, make_views, validation, settings, streams.on_device("coreset/noise"))
        return batches[picked].flatten()
    return batches[: settings.batches].flatten()


def _greedy(
    learner: TargetLearner,
    batches: Tensor,
    load: Load,
    make_views: MakeViews,
    validation: Tensor,
    settings: CoresetSettings,
    noise: torch.Generator,
) -> list[int]:
    """Pick batches greedily; return their indices in order."""
    if not learner.method.attack.exists:
        raise ValueError(
            f"the selection rcs compares attacked with clean embeddings, but {type(learner.method).__name__} has no "
            "attack: take the selection random, or none"
        )
    projector = learner.network.projector
    parameters = [
        parameter
        for layer in projector.modules()
        if isinstance(layer, nn.Linear)
        for name, parameter in layer.named_parameters()
        if name == "weight" or settings.biases
    ]
    if not parameters:
        raise ValueError("the selection rcs looks at the projector's linear layers, but it has none: take random")
    size = batches.shape[1]
    with _restored(learner, parameters):
        full: list[Gradient] = []
        for batch in batches:
            gradient = _batch_gradient(learner, make_views(load(batch)), parameters, noise)
            # on the host, since the device may be too small for all gradients beside the network
            full.append([part.cpu() for part in gradient])
        reduced = torch.stack([_averaged(gradient) for gradient in full])
        free = torch.ones(len(batches), dtype=torch.bool)
        picked: list[int] = []
        while True:
            pieces = (make_views(load(piece)) for piece in validation.split(size))
            gain = reduced @ _averaged(_divergence_gradient(learner, pieces, parameters, settings, noise)).cpu()
            if not bool(gain.isfinite().all()):
                raise NonFiniteLossError(f"the gradients of a coreset's selection are not finite at pick {len(picked)}")
            best = int(gain.masked_fill(~free, -torch.inf).argmax())
            picked.append(best)
            free[best] = False
            if len(picked) == settings.batches:
                return picked
            with torch.no_grad():
                for parameter, part in zip(parameters, full[best], strict=True):
                    parameter.sub_(settings.lr * part.to(parameter.device))


@contextmanager
def _restored(learner: TargetLearner, parameters: Sequence[Tensor]) -> Iterator[None]:
    """Restore the parameters' values on exit, and keep batch-norm statistics constant inside."""
    before = [parameter.detach().clone() for parameter in parameters]
    try:
        # an attack in train mode would change the statistics
        with Untracked(nn.ModuleList([learner.network, learner.heads])):
            yield
    finally:
        with torch.no_grad():
            for parameter, value in zip(parameters, before, strict=True):
                parameter.copy_(value)


@contextmanager
def _differentiable(learner: TargetLearner, parameters: Sequence[Tensor]) -> Iterator[None]:
    """Use eval mode, and gradients for these parameters only: a pass stores no activations of the backbone."""
    with frozen(nn.ModuleList([learner.network, learner.heads, learner.others])), torch.enable_grad():
        for parameter in parameters:
            parameter.requires_grad_(True)
        yield


def _batch_gradient(
    learner: TargetLearner, views: Tensor, parameters: Sequence[Tensor], noise: torch.Generator
) -> Gradient:
    """Gradient of the method's loss on a batch's views and their attacks."""
    method = learner.method
    number = len(method.attacked(views))
    budget = method.budget_at(learner.step).expand(number)
    adversarial = learner.attack(views, budget, noise).images
    with _differentiable(learner, parameters):
        terms = method.losses(learner.plain(), views, adversarial)
        weights = method.weights_at(learner.moment)
        total = torch.stack([weights[name] * values.mean() for name, values in terms.items()]).sum()
        gradient = list(torch.autograd.grad(total, list(parameters)))
        learner.complete(parameters, gradient)
        return gradient


def _divergence_gradient(
    learner: TargetLearner,
    pieces: Iterator[Tensor],
    parameters: Sequence[Tensor],
    settings: CoresetSettings,
    noise: torch.Generator,
) -> Gradient:
    """Gradient of the divergence, summed over the attacked views of all pieces.

    A sum picks the same batches as a mean. "ot" compares only the views within a piece.
    """
    total = [torch.zeros_like(parameter) for parameter in parameters]
    method = learner.method
    for views in pieces:
        images = method.attacked(views)
        with frozen(learner.network):
            folded = FoldedNetwork(learner.network)
            with torch.no_grad():
                clean = folded(images, method.routes.clean).embeddings
            watch = learner.watched_gradients()
            attacked = _maximized(folded, images, clean, method.routes.attack, settings, noise, watch)
        with _differentiable(learner, parameters):
            before = learner.network(images, method.routes.clean).embeddings
            after = learner.network(attacked, method.routes.attack).embeddings
            value = representational_divergence(before, after, settings.divergence, "sum", form=settings.form)
            gradients = torch.autograd.grad(value, list(parameters))
            for part, gradient in zip(total, gradients, strict=True):
                part.add_(gradient)
    return total


def _maximized(
    network: Network,
    images: Tensor,
    clean: Tensor,
    route: str,
    settings: CoresetSettings,
    noise: torch.Generator,
    watch: Tensor | None = None,
) -> Tensor:
    """Attack images (n, 3, h, w) so that their embeddings diverge most from the clean ones."""
    budget = Budget.uniform(len(images), epsilon=settings.epsilon, step_size=settings.step_size, steps=settings.steps)

    def encode(moved: Tensor, rows: Tensor) -> Tensor:
        return network(moved, route).embeddings

    def objective(z: Tensor) -> Tensor:
        if settings.divergence == "ot":
            # "ot" is a value of the two sets, not of a row: give it to every row
            return representational_divergence(clean, z, "ot").expand(len(z))
        return representational_divergence(clean, z, settings.divergence, "none", form=settings.form)

    return pgd(encode, objective, images, budget, generator=noise, watch=watch).images


def _averaged(gradient: Gradient) -> Tensor:
    """Join all gradients to one vector, each averaged over the outputs of its layer; a bias gives one number."""
    return torch.cat([part.mean(dim=0).flatten() for part in gradient])
