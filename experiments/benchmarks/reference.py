"""Plain twins: ASTrA's attack, optimizer, training step and evaluation, written directly as in its released code.

The benchmark and tests compare with them: they give the same result without any care for speed. They are written from
the algorithm's description alone (ASTrA, ICLR 2025; ACL, NeurIPS 2020). Where the released code spends time on its
language rather than on its algorithm, as in drawing budgets image by image, the twin does not.
"""

import copy
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from pyautoattack import AutoAttack
from torch import Tensor, nn
from torch.optim import Optimizer

from astra_gym.agents.policies import StrategyPolicy
from astra_gym.envs.engine import AttackEngine
from astra_gym.envs.observations import as_pixels
from astra_gym.experiments.benchmarks.workloads import perturbations
from astra_gym.ssl_core.attacks.pgd import Attacked, Budget, Encode, Objective
from astra_gym.ssl_core.methods import Networks
from astra_gym.ssl_core.models.target_network import Encoded, TargetNetwork
from astra_gym.ssl_core.training.optim import make_optimizer
from astra_gym.ssl_core.utils.rng import global_generators_kept

INTERVAL = 10
"""ASTrA's strategy network learns in every tenth step."""
MAX_GRAD_NORM = 1.0
"""Settings of the strategy network."""


def masked_steps(encode: Encode, objective: Objective, images: Tensor, budget: Budget, start: Tensor) -> Tensor:
    """Run PGD as the reference does: all views through every iteration up to the largest number of steps.

    A 0/1 mask keeps a view unchanged when its steps are spent. The parameters' gradients are computed too, unless they
    are frozen.

    Args:
        encode, objective, images, budget: as in `astra_gym.ssl_core.attacks.pgd.pgd`.
        start: perturbations (n, c, h, w).

    Returns:
        The attacked views (n, c, h, w) alone, as in the reference: no forward pass follows the last step.
    """
    rows = torch.arange(len(images))
    epsilon, step_size, steps = (value.view(-1, 1, 1, 1) for value in (budget.epsilon, budget.step_size, budget.steps))
    epsilon, step_size = epsilon.to(images.dtype), step_size.to(images.dtype)
    low, high = (images - epsilon).clamp(min=0), (images + epsilon).clamp(max=1)
    x = (images + start).clamp(0, 1)
    # a view without steps is clipped to its ball too
    x = torch.where(steps == 0, torch.clamp(x, low, high), x)
    for iteration in range(int(steps.max())):
        x.requires_grad_()
        objective(encode(x, rows)).sum().backward()
        with torch.no_grad():
            moved = torch.clamp(x + step_size * x.grad.sign(), low, high)  # type: ignore[union-attr]
            mask = (steps > iteration).to(x.dtype)
            x = moved * mask + x * (1 - mask)
    return x.detach()


def masked_loop(encode: Encode, objective: Objective, images: Tensor, budget: Budget, start: Tensor) -> Attacked:
    """Run `attacks.pgd.pgd` by `masked_steps`; the result also has the attacked views' embeddings."""
    attacked = masked_steps(encode, objective, images, budget, start)
    with torch.no_grad():
        return Attacked(attacked, encode(attacked, torch.arange(len(images))))


class PlainClassifier(nn.Module):
    """A classifier as the reference uses it: unfolded, all images together, in the ordinary memory layout.

    Args:
        network: network that is copied, in float32's full precision.
        route: route of its batch norm.
        head: map from features to logits.
    """

    def __init__(self, network: TargetNetwork, route: str, head: nn.Module) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).to(memory_format=torch.contiguous_format)
        self.network.precision = "fp32"
        self.route = route
        self.head = head
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (n, 3, h, w) in [0, 1] to logits (n, classes)."""
        network = self.network
        return self.head(network.backbone((images - network.mean) / network.std, self.route))


def plain_pgd(
    classifier: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float,
    step_size: float,
    steps: int,
    start: Tensor,
) -> Tensor:
    """Return which images a classifier gets right under PGD, by the loop of DynACL's and ASTrA's evaluation.

    It attacks every image, even those that are wrong anyway.

    Args:
        classifier: map from images (n, 3, h, w) in [0, 1] to logits (n, classes), in eval mode.
        images: (n, 3, h, w), in [0, 1].
        labels: int64 (n,).
        epsilon, step_size: radius and step in the images' unit.
        steps: number of steps.
        start: perturbations (n, 3, h, w) within epsilon.

    Returns:
        Bool (n,).
    """
    delta = start.clone()
    for _ in range(steps):
        delta.requires_grad_()
        loss = F.cross_entropy(classifier(images + delta), labels)
        (gradient,) = torch.autograd.grad(loss, [delta])
        delta = (delta.detach() + step_size * gradient.sign()).clamp(-epsilon, epsilon)
        delta = (images + delta).clamp(0, 1) - images
    with torch.no_grad():
        return classifier(images + delta).argmax(1) == labels


def plain_autoattack(
    classifier: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float,
    seed: int,
    batch_size: int,
    library: type[AutoAttack] = AutoAttack,
) -> Tensor:
    """Return which images a classifier gets right under AutoAttack's first two attacks, in L-infinity, by the library.

    Args:
        classifier, images, labels, epsilon: as in `plain_pgd`.
        seed: seed of the random starts.
        batch_size: images attacked together.
        library: pyautoattack's class.

    Returns:
        Bool (n,).
    """
    made = library(classifier, norm="Linf", eps=epsilon, seed=seed, version="standard", device=images.device)
    made.attacks_to_run = ["apgd-ce", "apgd-t"]
    with global_generators_kept():
        _, found = made.run_standard_evaluation(images, labels, batch_size=batch_size)
    return found == labels


class PlainLARS:
    """`astra_gym.ssl_core.training.optim.LARS` tensor by tensor (ACL's; You et al. 2017).

    Args:
        parameters, lr, momentum, weight_decay, trust: as in `astra_gym.ssl_core.training.optim.LARS`.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 1e-6,
        trust: float = 1e-3,
    ) -> None:
        self.parameters = list(parameters)
        self.lr = lr
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.trust = trust
        self.velocities = [torch.zeros_like(weight) for weight in self.parameters]

    def zero_grad(self) -> None:
        """Clear the gradients."""
        for weight in self.parameters:
            weight.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Update every tensor that has a gradient."""
        for weight, velocity in zip(self.parameters, self.velocities, strict=True):
            if weight.grad is None:
                continue
            size, slope = weight.norm(), weight.grad.norm()
            ratio: Tensor | float = 1.0
            if size >= 1e-15 and slope >= 1e-15:
                ratio = self.trust * size / (slope + self.weight_decay * size)
            velocity.mul_(self.momentum).add_(self.lr * ratio * (weight.grad + self.weight_decay * weight))
            weight.sub_(velocity)


@dataclass
class Strategy:
    """A strategy network and its optimizer.

    Args:
        policy: policy on image observations (the paper's) or on the target network's features (this project's).
        lr: learning rate of LARS.
    """

    policy: StrategyPolicy
    lr: float = 0.1
    optimizer: PlainLARS = field(init=False)

    def __post_init__(self) -> None:
        self.optimizer = PlainLARS(self.policy.parameters(), self.lr)


def _nothing(name: str) -> AbstractContextManager[None]:
    return nullcontext()


class PlainStep:
    """The reference's training step in a world, stage by stage.

    In every step the strategy draws a budget for each view. The views are attacked through the unfolded network in
    float32 and in the ordinary memory layout, with the weights' gradients computed too, and the network is updated.
    Every tenth step starts with four more stages: another draw, with the strategy in train mode; another attack; the
    reward, one number for the batch, from clean and attacked embeddings; a policy-gradient update of the strategy.
    `seconds_per_step` computes the cost of ten steps from the stages' seconds.

    Args:
        engine: source of data, views, method and random streams, which nothing else may use; the twin trains a copy of
            its network.
        strategies: strategies by name.
        part: context `part(name)` around every stage, such as a stopwatch's.

    Attributes:
        views: (n, 3, h, w), clean views of the coming batch.
        started: (n, 3, h, w), the views at the random start of the last attack.
    """

    def __init__(
        self,
        engine: AttackEngine,
        strategies: Mapping[str, Strategy],
        part: Callable[[str], AbstractContextManager[None]] = _nothing,
    ) -> None:
        self.engine = engine
        self.method = engine.method
        self.strategies = strategies
        self.part = part
        settings = engine.settings.optimizer
        self.network: TargetNetwork = copy.deepcopy(engine.learner.network).to(memory_format=torch.contiguous_format)
        self.network.precision = "fp32"
        self.optimizer: PlainLARS | Optimizer
        if settings.optimizer == "lars":
            self.optimizer = PlainLARS(self.network.parameters(), settings.peak_lr, weight_decay=settings.weight_decay)
        else:
            self.optimizer = make_optimizer(settings.optimizer, self.network, settings.peak_lr, settings.weight_decay)
        self.step = 0
        self.views = engine.views.contiguous()
        self.started = self.views

    @torch.no_grad()
    def encoded(self, views: Tensor, route: str) -> Encoded:
        """Return features and embeddings of views (n, 3, h, w) in eval mode."""
        self.network.eval()
        return self.network(views, route)

    def act(self, name: str) -> tuple[Tensor, Tensor]:
        """Return observations (n, ...) of the coming batch and the actions (n, 3) that a strategy draws for them."""
        policy = self.strategies[name].policy
        with self.part(f"{name}: act"):
            if policy.image:
                observation = as_pixels(self.views)
            else:
                look = self.encoded(self.views, self.method.routes.clean)
                raw = torch.cat([look.features, self.method.objective(look.embeddings)[:, None]], dim=1)
                variance, mean = torch.var_mean(raw, dim=0, correction=0)
                scaled = ((raw - mean) / (variance + 1e-6).sqrt()).clamp(-10, 10)
                observation = torch.cat(
                    [scaled, scaled.new_full((len(scaled), 1), 2 * self.engine.progress - 1)], dim=1
                )
            policy.eval()
            return observation, policy.sample(observation, self.engine.streams["twin/actions"])

    def attack(self, budget: Budget) -> Tensor:
        """Attack the coming batch's views (n, 3, h, w)."""
        with self.part("attack"):
            self.network.eval()
            noise = self.engine.streams.on_device("noise")
            start = perturbations(self.views, budget, self.method.attack.start_radius, noise)
            encode = self.method.encode(Networks(self.network))
            adversarial = masked_steps(encode, self.method.objective, self.views, budget, start)
        self.started = (self.views + start).clamp(0, 1)
        return adversarial

    def assess(self, adversarial: Tensor) -> float:
        """Return the reward, one number for the batch: a third of the attacked loss minus the clean one."""
        with self.part("assess"):
            clean = self.method.objective(self.encoded(self.views, self.method.routes.clean).embeddings)
            attacked = self.method.objective(self.encoded(adversarial, self.method.routes.attack).embeddings)
            return float((attacked.mean() - clean.mean()) / 3)

    def learn(self, name: str, observation: Tensor, actions: Tensor, reward: float) -> None:
        """Follow the policy gradient on a batch: minimize `-reward * sum of log-probabilities`."""
        strategy = self.strategies[name]
        with self.part(f"{name}: learn"):
            strategy.policy.train()
            log_prob, _ = strategy.policy.log_prob_entropy(observation, actions)
            strategy.optimizer.zero_grad()
            (-reward * log_prob.sum()).backward()
            nn.utils.clip_grad_norm_(strategy.policy.parameters(), MAX_GRAD_NORM)
            strategy.optimizer.step()

    def update(self, adversarial: Tensor) -> float:
        """Update the target network once on clean and attacked views; return the loss."""
        with self.part("update"):
            self.network.train()
            terms = self.method.losses(Networks(self.network), self.views, adversarial)
            loss = torch.stack([self.method.weights[name] * values.mean() for name, values in terms.items()]).sum()
            rate = self.engine.learner.schedule(self.step)
            if isinstance(self.optimizer, PlainLARS):
                self.optimizer.lr = rate
            else:
                for group in self.optimizer.param_groups:
                    group["lr"] = rate
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.step += 1
            return float(loss.detach())

    def next_batch(self) -> None:
        """Draw the views of the next step."""
        with self.part("next batch"):
            self.engine.draw_batch()
            self.views = self.engine.views.contiguous()


def seconds_per_step(stages: Mapping[str, float], name: str) -> float:
    """Compute the seconds of the twin's step, averaged over ten steps of which one learns, from those of its stages.

    A tenth step is an ordinary one after act, attack, assess and learn. A second attack costs the same as the first,
    since both run to the largest number of steps. So the mean is `act + attack + update + next batch` plus a tenth of
    `act + attack + assess + learn`.

    Args:
        stages: seconds by stage.
        name: name of the strategy.
    """
    shared, own = stages["attack"], stages[f"{name}: act"]
    ordinary = own + shared + stages["update"] + stages["next batch"]
    return ordinary + (own + shared + stages["assess"] + stages[f"{name}: learn"]) / INTERVAL
