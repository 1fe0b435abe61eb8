"""The target network in training: it owns network and optimiser, and alone flips modes and batch-norm routes."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ssl_core.attacks import Attacked, Budget, pgd
from ssl_core.folding import FoldedNetwork
from ssl_core.gradcache import ChunkedNetwork
from ssl_core.methods import Method
from ssl_core.networks import Encoded, TargetNetwork

SHAPES = 64
"""At most so many different batch sizes occur in the attacks of a run: preparing for a new one costs a small network as
much as an iteration, while rounding up costs a share of about 1 / SHAPES."""


class NonFiniteLossError(FloatingPointError):
    """The training loss, or the weights after an update, are not finite: training cannot go on from here."""


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Eval mode and no parameter gradients inside; every training flag and `requires_grad` is put back afterwards."""
    modes = [(part, part.training) for part in module.modules()]
    gradients = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
    try:
        module.eval().requires_grad_(False)
        yield
    finally:
        for part, training in modes:
            part.training = training
        for parameter, requires_grad in gradients:
            parameter.requires_grad_(requires_grad)


class TargetLearner:
    """Owns the target network and its optimiser.

    Args:
        network: on its final device.
        method: the self-supervised method.
        optimizer: over the network's parameters.
        schedule: learning rate of update k (0-based).
        update_chunks: in how many chunks an update runs over a batch, to hold fewer activations; with more than one,
            batch norm's statistics are a chunk's own (ghost batch norm), see `ssl_core.gradcache`.
    """

    def __init__(
        self,
        network: TargetNetwork,
        method: Method,
        optimizer: Optimizer,
        schedule: Callable[[int], float],
        update_chunks: int = 1,
    ) -> None:
        self.network = network
        self.method = method
        self.optimizer = optimizer
        self.schedule = schedule
        self.update_chunks = update_chunks
        self.step = 0
        """Number of updates made."""
        self.device = next(network.parameters()).device

    @property
    def lr(self) -> float:
        """Learning rate of the coming update."""
        return self.schedule(self.step)

    def look(self, views: Tensor) -> Encoded:
        """Features and embeddings of clean views (n, 3, h, w), on the clean route, in eval mode, without gradient."""
        with frozen(self.network), torch.no_grad():
            return FoldedNetwork(self.network)(views, self.method.clean_route)

    def attack(self, views: Tensor, budget: Budget, generator: torch.Generator) -> Attacked:
        """The method's attack on the views within the budget; the network is left as it was.

        Args:
            views: (n, 3, h, w) in [0, 1].
            budget: n entries.
            generator: of the random start, on the learner's device.
        """
        start: str | Tensor = "uniform"
        radius = self.method.start_radius
        if radius is not None:
            start = (torch.rand(views.shape, generator=generator, device=views.device) * 2 - 1) * radius
        with frozen(self.network):
            encode = self.method.encode(FoldedNetwork(self.network))
            granularity = -(-len(views) // SHAPES)
            return pgd(
                encode,
                self.method.objective,
                views,
                budget,
                generator=generator,
                start=start,
                granularity=granularity,
            )

    def update(self, views: Tensor, adversarial: Tensor | None) -> dict[str, float]:
        """One optimiser step on clean and attacked views.

        Returns:
            The mean of each named loss term, and "total".

        Raises:
            NonFiniteLossError: if the loss is not finite (nothing was updated then but batch-norm statistics) or the
                weights or these statistics are not, after the update.
        """
        self.network.train()
        chunked = ChunkedNetwork(self.network, self.update_chunks) if self.update_chunks > 1 else None
        terms = self.method.losses(chunked or self.network, views, adversarial)
        means = {name: values.mean() for name, values in terms.items()}
        total = torch.stack([self.method.weights[name] * mean for name, mean in means.items()]).sum()
        values = torch.stack([*means.values(), total]).detach().tolist()
        losses = dict(zip([*means, "total"], values, strict=True))
        self._check_finite(total.detach(), f"the loss of update {self.step + 1} is not finite: {losses}")
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        if chunked is not None:
            chunked.backward()
        self.optimizer.step()
        # a gradient that is not finite shows here too; what was saved before this update is still good. An attack would
        # not show it: a processor's fused ReLU turns NaN into 0
        state = [value for value in self.network.state_dict().values() if value.is_floating_point()]
        norms = torch.stack(torch._foreach_norm(state))
        self._check_finite(norms, f"the weights after update {self.step + 1} are not finite; its loss was {losses}")
        self.step += 1
        return losses

    @staticmethod
    def _check_finite(values: Tensor, message: str) -> None:
        if not bool(values.isfinite().all()):
            raise NonFiniteLossError(message)

    def state_dict(self) -> dict[str, Any]:
        """Network, optimiser and number of updates."""
        return {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict(), "step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` gave."""
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]
