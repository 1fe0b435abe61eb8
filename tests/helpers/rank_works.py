"""What ranks do in tests, each the same as a process alone."""

import time
from typing import Any

import torch
from torch import Tensor, nn

from astra_gym.ssl_core.attacks.pgd import Budget
from astra_gym.ssl_core.distributed.ranks import RanksDifferError, current
from astra_gym.ssl_core.distributed.spreading import spread
from astra_gym.ssl_core.models.route_norm import RouteNorm
from astra_gym.ssl_core.models.target_network import Encoded
from tests.helpers.draws import generator
from tests.helpers.method_worlds import CASES, World, images

ROWS = (11, 4, 3, 2)
"""Numbers of rows: of unequal parts, equal ones, and with empty parts on four ranks."""
FIRST_CLASS = ("simclr", "acl-ds", "astra-pairs", "dynacl", "byol-ds")


def exchanges() -> dict[str, Any]:
    """What a rank gets from each exchange, and from a small network that is spread."""
    ranks = current()
    own = torch.tensor([1.0, float(ranks.rank)])
    parts = [torch.full((2, 3), float(ranks.rank)), torch.full((4,), 10.0**ranks.rank).double()]
    ranks.add_up(parts)
    return {
        "rank": ranks.rank,
        "gather": ranks.gather(own),
        "sum": ranks.sum(own),
        "add_up": parts,
        "rows": {n: ranks.gather_rows(torch.arange(n)[ranks.share(n)], n) for n in range(7)},
        "largest": ranks.largest((7 * ranks.rank) % 4),
        "text": [ranks.text_of_first(text) for text in (f"Grüße {ranks.rank}", "" if ranks.first else "x")],
        "same": _differ(b"alike"),
        "differ": _differ(b"2" if ranks.rank == 2 else b"others"),
        "said": ranks.is_first_to_say("the same"),
        "spread": {n: spread_network(n) for n in ROWS},
        "waited": ranks.clock.seconds,
        "last word": _last_word(),
    }


def _last_word() -> float:
    """When rank 0 has said its last word, or another rank has heard it."""
    ranks = current()
    if ranks.first:
        time.sleep(1)
        before = time.monotonic()
        ranks.note_last_word()
        return before
    ranks.await_last_word()
    return time.monotonic()


def _differ(values: bytes) -> str:
    try:
        current().check_same("the values", values)
    except RanksDifferError as error:
        return str(error)
    return ""


class Tiny(nn.Module):
    """Two layers with batch norms of two routes: images to features and embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv2d(3, 5, 3), nn.Linear(5, 4)
        self.norms = nn.ModuleList([RouteNorm(5, ("a", "b")), RouteNorm(4, ("a", "b"), spatial=False, affine=False)])
        for index, weight in enumerate(self.parameters()):
            weight.data = torch.randn(weight.shape, generator=generator(index), dtype=torch.float64) + (
                weight.ndim == 1
            )

    def forward(self, x: Tensor, route: str) -> Encoded:
        features = self.norms[0](self.conv(x), route).relu().mean(dim=(2, 3))
        return Encoded(features, self.norms[1](self.linear(features), route))


def spread_network(n: int) -> dict[str, Tensor]:
    """A spread network's values, gradients and statistics for a loss that couples all rows and two routes."""
    network, ranks = Tiny().double(), current()
    x = torch.rand(n, 3, 6, 6, generator=generator(n), dtype=torch.float64).requires_grad_()
    whole = spread(network, ranks)
    first, second = whole(x, "a"), whole(x.detach() * 2, "b")
    ((first.embeddings @ second.embeddings.T).exp().sum() + first.features.square().sum()).backward()
    gradients = [weight.grad for weight in network.parameters() if weight.grad is not None]
    ranks.add_up(gradients)
    found = {"embeddings": first.embeddings.detach(), "features": second.features.detach(), "images": x.grad}
    found |= {f"gradient {index}": value for index, value in enumerate(gradients)}
    return found | {name: value.clone() for name, value in network.named_buffers()}


def updates_of_methods() -> dict[str, dict[str, Tensor]]:
    """Three updates of every method in float64, each on an attack of its own: all that they leave, by case."""
    return {case: updates(case) for case in CASES}


def updates_of_first_class() -> dict[str, dict[str, Tensor]]:
    """The same of a few methods, of one of them twice."""
    return {case: updates(case) for case in FIRST_CLASS} | {"acl-ds again": updates("acl-ds")}


def updates(case: str) -> dict[str, Tensor]:
    """Three updates of a method."""
    world, found = World(case), dict[str, Tensor]()
    # at the world's own rate VICReg diverges
    learner, world.learner.schedule = world.learner, lambda step: 0.01
    # a free attack carries perturbations from batch to batch
    free = world.method.attack.free
    for step, few in enumerate((5, 5, 5) if free else (5, 3, 2)):
        views, adversarial = images(world.method.views_per_image * few, 20 + step), None
        n = world.method.num_attacked(few)
        if n:
            steps = torch.randint(0, 4, (n,), generator=generator(step))
            budget = Budget(epsilon=torch.full((n,), 8 / 255), step_size=torch.full((n,), 3 / 255), steps=steps)
            attack = learner.carry(views, budget) if free else learner.attack(views, budget, generator(9))
            found |= {f"{step}/attacked": attack.images, f"{step}/embeddings": attack.embeddings}
            adversarial = attack.images
        found |= {f"{step}/{name}": torch.tensor(value) for name, value in learner.update(views, adversarial).items()}
    parts: dict[str, Any] = {"network": learner.network, "heads": learner.heads, "others": learner.others}
    for part, module in parts.items():
        found |= {f"{part}/{name}": value.detach().clone() for name, value in module.state_dict().items()}
    return found
