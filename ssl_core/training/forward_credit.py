"""The credit of every view of a batch in one forward-mode pass: its share in the fall of a judge's value.

To first order an update lowers a judge's value by `<d, grad L>`, with `d` the judge's gradient as the optimizer scales
it (`descent`) and L the training loss. Through the embedding z_i of a view this is `<dL/dz_i, dz_i>`, where dz_i is the
derivative of z_i along d: one pass with tangents (Baydin et al. 2018, "Automatic differentiation in machine learning",
section 3.1), and a backward pass of the loss as far as the embeddings only.
"""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim import SGD, AdamW

from astra_gym.ssl_core.models.target_network import Encoded
from astra_gym.ssl_core.training.learner import TargetLearner


def descent(learner: TargetLearner, gradient: Sequence[Tensor]) -> list[Tensor]:
    """Scale a judge's gradient as the next update scales the loss's, for each parameter of the target network.

    AdamW: `lr (1 - beta1) / (1 - beta1^t) g / (sqrt(v / (1 - beta2^(t-1))) + eps)`, the part of the step that comes
    from its own gradient, with v before the step; SGD: `lr g`, with Nesterov's momentum `lr (1 + momentum) g`.
    Parameters that are not trained, or that the loss does not depend on, do not move.

    Raises:
        ValueError: if the optimizer is another one, or AdamW has made no step.
    """
    optimizer, found, lr = learner.optimizer, dict[Tensor, dict[str, Any]](), learner.lr
    for group in optimizer.param_groups:
        found |= dict.fromkeys(group["params"], group)
    if type(optimizer) not in (AdamW, SGD):
        name = type(optimizer).__name__
        raise ValueError(f"credit per view is known for AdamW and SGD, not {name}: give --optimizer adamw or sgd")
    scaled = []
    if isinstance(optimizer, AdamW) and not optimizer.state:
        raise ValueError("AdamW has made no step, so its scale is not known: train for an update or more first")
    for weight, each in zip(learner.network.parameters(), gradient, strict=True):
        group, state = found[weight], optimizer.state.get(weight, {})
        # AdamW has no state of a weight that the loss does not depend on, such as the projector's in FARE
        if not weight.requires_grad or (isinstance(optimizer, AdamW) and "exp_avg_sq" not in state):
            scaled.append(torch.zeros_like(each))
            continue
        if isinstance(optimizer, SGD):
            scaled.append(lr * (1 + group["momentum"] if group["nesterov"] else 1.0) * each)
            continue
        made, (beta1, beta2) = float(state["step"]), group["betas"]
        root = (state["exp_avg_sq"] / (1 - beta2**made)).sqrt() + group["eps"]
        scaled.append(lr * (1 - beta1) / (1 - beta1 ** (made + 1)) * each / root)
    return scaled


class ForwardCredit:
    """The credits of a batch's views on the present weights; the clean views are encoded once.

    Args:
        learner: the learner; nothing of it changes but its networks' modes, as in an update.
        views: all views (v, 3, h, w) of the batch.
        direction: `descent` of a judge's gradient.

    Raises:
        ValueError: if the method perturbs weights, so that the loss's gradient is not taken at the present ones.
    """

    def __init__(self, learner: TargetLearner, views: Tensor, direction: Sequence[Tensor]) -> None:
        if learner.method.weight_perturbation(learner.moment) > 0:
            raise ValueError(f"{type(learner.method).__name__} perturbs weights: credit per view is not defined for it")
        self.learner, self.views = learner, views
        named = dict(learner.network.named_parameters())
        self._along = dict(zip(named, zip(named.values(), direction, strict=True), strict=True))
        self._clean: dict[str, tuple[Encoded, Encoded]] = {}

    def shares(self, adversarial: Tensor) -> Tensor:
        """Return the share (n,) of each attacked view minus that of its clean view, positive if it helps the judge.

        Without the clean view's share, easy images would be paid too.

        Args:
            adversarial: (n, 3, h, w), the attacked views.

        Raises:
            ValueError: if the method's loss does not encode these views as they are.
        """
        learner, method = self.learner, self.learner.method
        calls: list[tuple[Tensor, Encoded, Encoded]] = []

        def encode(images: Tensor, route: str) -> Encoded:
            if images is not self.views:
                primal, tangent = self._pushed(images, route)
            else:
                if route not in self._clean:
                    self._clean[route] = self._pushed(images, route)
                primal, tangent = self._clean[route]
            leaves = Encoded(*(part.detach().requires_grad_() for part in primal))
            calls.append((images, leaves, tangent))
            return leaves

        learner.train()
        with learner.untracked():
            terms, weights = (
                method.losses(learner.plain(encode), self.views, adversarial),
                method.weights_at(learner.moment),
            )
            loss = torch.stack([weights[name] * values.mean() for name, values in terms.items()]).sum()
        leaves = [part for _, encoded, _ in calls for part in encoded]
        slopes = iter(torch.autograd.grad(loss, leaves, allow_unused=True))
        attacked, clean = None, torch.zeros(len(self.views), dtype=adversarial.dtype)
        for images, _, tangents in calls:
            pairs = [(slope, tangent) for slope, tangent in zip([next(slopes), next(slopes)], tangents, strict=True)]
            share = torch.stack([(slope * way).sum(1) for slope, way in pairs if slope is not None]).sum(0)
            if images is adversarial:
                attacked = share if attacked is None else attacked + share
            elif images is self.views:
                clean = clean + share
        if attacked is None:
            raise ValueError(f"the loss of {type(method).__name__} mixes the attacked views: no credit per view")
        return attacked - method.attacked(clean.view(-1, 1, 1, 1)).flatten()

    def _pushed(self, images: Tensor, route: str) -> tuple[Encoded, Encoded]:
        """Encode images; return values and their derivatives along the direction."""
        # only this way of attention has a derivative in forward mode
        with torch.no_grad(), forward_ad.dual_level(), sdpa_kernel(SDPBackend.MATH):
            with warnings.catch_warnings():
                # the first dual imports a part of torch that torch itself calls deprecated
                warnings.simplefilter("ignore", FutureWarning)
                duals = {name: forward_ad.make_dual(*pair) for name, pair in self._along.items()}
            found: Encoded = functional_call(self.learner.network, duals, (images, route))
            unpacked = [forward_ad.unpack_dual(part) for part in found]
        return Encoded(*(each.primal for each in unpacked)), Encoded(*(_tangent(each) for each in unpacked))


def _tangent(found: Any) -> Tensor:
    return torch.zeros_like(found.primal) if found.tangent is None else found.tangent
