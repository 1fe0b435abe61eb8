"""Full fine-tuning: adversarial training of a pre-trained encoder with a linear head, as an evaluation."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from astra_gym.ssl_core.attacks.pgd import Budget, pgd
from astra_gym.ssl_core.data.image_set import ImageSet
from astra_gym.ssl_core.data.labels import required_labels
from astra_gym.ssl_core.downstream.linear_probe import Classifier
from astra_gym.ssl_core.losses.contrastive import kl_divergence, trades
from astra_gym.ssl_core.models.encoder import Encoder, fast_features
from astra_gym.ssl_core.models.modes import frozen
from astra_gym.ssl_core.models.target_network import TargetNetwork
from astra_gym.ssl_core.transforms.views import ViewSettings, as_float, weak_views
from astra_gym.ssl_core.utils.device import ieee_fp32
from astra_gym.ssl_core.utils.finite import check_number
from astra_gym.ssl_core.utils.messages import shown
from astra_gym.ssl_core.utils.rng import Streams

ONE_ROUTE_NOISE = 0.001
"""Start noise of TRADES and ACL, for networks with one route."""


@dataclass(frozen=True)
class FineTuneSettings:
    """Adversarial full fine-tuning (AFF); the defaults are the protocol of DynACL and ASTrA.

    Args:
        epochs: passes over the labeled images.
        lr: learning rate of SGD.
        batch_size: images per step, at least 2, because batch norm is in train mode.
        milestones: numbers of epochs after which the learning rate is divided by ten.
        momentum: momentum of SGD.
        weight_decay: weight decay of SGD, for every trained weight.
        beta: weight of TRADES' robustness term.
        epsilon: radius of the attack's L-infinity ball, in the images' unit (8/255, not 8).
        step_size: step size of the attack, in the same unit.
        steps: steps of the attack.
        start_noise: standard deviation of the normal noise at the attack's start, in the same unit. 0 is the value of
            the released code of DynACL and ASTrA. It starts at the clean image, where the divergence of two different
            routes has a gradient. 0.001 is TRADES' and ACL's (`ONE_ROUTE_NOISE`), and was the default of version 0.1.
            One route needs it: the divergence is minimal at the clean image, where the first step would follow the sign
            of rounding errors.

    Raises:
        ValueError: if a value is out of its range.
    """

    epochs: int = 25
    lr: float = 0.1
    batch_size: int = 128
    milestones: tuple[int, ...] = (15, 20)
    momentum: float = 0.9
    weight_decay: float = 2e-4
    beta: float = 6.0
    epsilon: float = 8 / 255
    step_size: float = 2 / 255
    steps: int = 10
    start_noise: float = 0.0

    def __post_init__(self) -> None:
        check_number("fine-tuning's epochs", self.epochs, 1, whole=True)
        check_number("fine-tuning's lr", self.lr, above=True)
        expected = "at least 2, since batch norm takes the statistics of a batch"
        check_number("fine-tuning's batch_size", self.batch_size, 2, expected=expected, whole=True)
        check_number("fine-tuning's momentum", self.momentum, 0, 1, below=True)
        check_number("fine-tuning's weight_decay", self.weight_decay)
        check_number("fine-tuning's beta", self.beta)
        check_number("fine-tuning's steps", self.steps, whole=True)
        for name in ("epsilon", "step_size", "start_noise"):
            expected = "in [0, 1]: it is in the images' unit, 8/255 and not 8"
            check_number(f"fine-tuning's {name}", getattr(self, name), 0, 1, expected)
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError(f"fine-tuning's milestones is {shown(self.milestones)}: expected epochs in rising order")


@ieee_fp32()
def fine_tune(
    encoder: nn.Module,
    routes: tuple[str, str],
    train: ImageSet,
    settings: FineTuneSettings,
    views: ViewSettings,
    *,
    seed: int,
    head: nn.Linear | None = None,
    device: torch.device | str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> Classifier:
    """Train backbone and linear head with TRADES, each side on its own route: adversarial full fine-tuning (AFF).

    The protocol of DynACL's and ASTrA's `test_AFF.py`. With x a weak view, f on the clean route and g on the attacked
    one, the loss is `CE(f(x), y) + beta * KL(softmax f(x) || softmax g(x'))` in train mode. x' maximizes that
    divergence in eval mode, with f(x) fixed. The last model is kept. On a labeled fraction of the images it is the
    semi-supervised protocol; from the head of a linear probe it is LP-AFF.

    It works on a copy: `encoder` and `head` do not change. Parts that `features` does not use, such as a projector or a
    third route, get no gradient and no weight decay. A last batch of a single image joins the one before, since batch
    norm needs two values for a variance. The same arguments give the same classifier bit for bit on the CPU, unless the
    encoder itself draws random numbers. For the attack a `TargetNetwork` is folded
    (`astra_gym.ssl_core.models.encoder.fast_features`), which changes its features by rounding.

    Args:
        encoder: module with `feature_dim` and `features(images, route)`, such as a `TargetNetwork`.
        routes: batch-norm routes of the clean and of the attacked images, ("normal", "pgd") in the protocol. A network
            with one route makes both passes on it, as TRADES does. Its running statistics are then updated twice per
            step, first by the clean batch, and mix both; its attack needs `start_noise`.
        train: labeled images, at least 2.
        settings: settings of the fine-tuning.
        views: `padding` and `flip` of the augmentation.
        seed: seed of the order of the images, the augmentation and the attack's start.
        head: initial head (feature_dim -> classes), which is copied. None: the head starts at zero. The first attack
            then has no gradient and moves nothing, so the first step trains on the start noise, if any.
        device: device for the work.
        progress: called after every step with the steps done and their total.

    Returns:
        The classifier on the attacked route, which all tests use.

    Raises:
        ValueError: if `train` has no labels, labels outside its classes or too few images, or the head does not fit.
        RuntimeError: if the loss or the weights are not finite.
    """
    labels = required_labels(train, "fine-tuning").to(device)
    if len(train) < 2:
        raise ValueError(f"data set {shown(train.name)} has {len(train)} image: fine-tuning needs 2 or more")
    encoder = copy.deepcopy(encoder)
    own = type(encoder) is TargetNetwork  # other encoders keep their memory format
    if own:
        encoder.to(memory_format=torch.channels_last)
    features = cast(Encoder, encoder).features
    head = _start(cast(Encoder, encoder).feature_dim, len(train.classes), head)
    model = nn.ModuleList([encoder, head]).to(device).train().requires_grad_(True)
    optimizer = torch.optim.SGD(
        model.parameters(), settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay
    )
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, list(settings.milestones), gamma=0.1)
    streams = Streams(seed, device)
    order, crops = streams["finetuning/order"], streams["finetuning/views"]
    noise = streams.on_device("finetuning/noise")
    steps = settings.epochs * len(_batches(torch.arange(len(train)), settings.batch_size))

    watch = torch.zeros((), device=device)  # watches the attack's gradients
    done = 0
    for _ in range(settings.epochs):
        for rows in _batches(torch.randperm(len(train), generator=order), settings.batch_size):
            images = weak_views(as_float(train.images[rows].to(device)), views, crops)
            with frozen(model):
                attacked = _attack(encoder, head, routes, images, settings, noise, watch)
            y = labels[rows.to(device)]
            loss = trades(head(features(images, routes[0])), head(features(attacked, routes[1])), y, settings.beta)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            done += 1
            if not bool(loss.isfinite() & watch.isfinite()) or not _finite(model):
                raise RuntimeError(
                    f"fine-tuning diverged in step {done} of {steps} at learning rate "
                    f"{optimizer.param_groups[0]['lr']:g}, with loss {loss.item():g}: lower its lr, or check that the "
                    "features are finite"
                )
            if progress is not None:
                progress(done, steps)
        schedule.step()
    optimizer.zero_grad()
    if own:
        # the memory format of an encoder that is read from a checkpoint
        encoder.to(memory_format=torch.contiguous_format)
    return Classifier(encoder, routes[1], head)


def _start(inputs: int, classes: int, head: nn.Linear | None) -> nn.Linear:
    """Copy the given head, or make a zero one."""
    if head is None:
        # skip_init, since nn.Linear's own initialization would draw from the global generator.
        head = nn.utils.skip_init(nn.Linear, inputs, classes)
        for parameter in head.parameters():
            nn.init.zeros_(parameter)
        return head
    if (head.in_features, head.out_features) != (inputs, classes):
        raise ValueError(
            f"the head takes {head.in_features} features to {head.out_features} classes: expected {inputs} to "
            f"{classes}, as the encoder and the data set have"
        )
    return copy.deepcopy(head)


def _batches(order: Tensor, size: int) -> list[Tensor]:
    """Split the rows of an epoch into batches; a last one of a single image joins the one before."""
    batches = list(order.split(size))
    if len(batches) > 1 and len(batches[-1]) == 1:
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches


def _attack(
    encoder: nn.Module,
    head: nn.Linear,
    routes: tuple[str, str],
    images: Tensor,
    settings: FineTuneSettings,
    generator: torch.Generator,
    watch: Tensor,
) -> Tensor:
    """Attack images so that their logits on the attacked route diverge from the clean ones, all in eval mode."""
    features = fast_features(encoder, settings.steps)
    with torch.no_grad():
        clean = head(features(images, routes[0]))
    noise = settings.start_noise * torch.randn(images.shape, generator=generator, device=images.device)
    return pgd(
        lambda moved, _: head(features(moved, routes[1])),
        lambda answers: kl_divergence(clean, answers),
        images,
        Budget.uniform(
            len(images),
            epsilon=settings.epsilon,
            step_size=settings.step_size,
            steps=settings.steps,
            device=images.device,
        ),
        # `pgd` clips a given start to the pixels' bounds, but to the ball only from the first step on.
        start=noise.clamp(-settings.epsilon, settings.epsilon),
        watch=watch,
    ).images


def _finite(model: nn.Module) -> bool:
    """Whether weights and running statistics are finite."""
    state = [value for value in model.state_dict().values() if value.is_floating_point()]
    return bool(torch.stack([value.isfinite().all() for value in state]).all())
