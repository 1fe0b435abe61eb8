"""Strategy networks: maps from observations to a distribution over actions."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise

import gymnasium
import torch
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn

from astra_gym.ssl_core.models.backbones.resnet import ResNet
from astra_gym.ssl_core.models.init import initialize
from astra_gym.ssl_core.utils.registry import pick

SMALLEST_IMAGE = 8
IN_BF16 = ("cuda",)
"""Kinds of devices on which ASTrA's strategy network computes in bfloat16 if asked to."""


def is_image(space: gymnasium.Space) -> bool:
    """Return whether the space is one of channel-first uint8 images (channels, height, width)."""
    return isinstance(space, spaces.Box) and len(space.shape) == 3 and space.dtype == "uint8"


class ImageExtractor(nn.Module):
    """Network from images (n, channels, h, w) in [0, 1], of any size from 8 x 8, to features (n, 128).

    Three convolutions of stride 2 without batch norm, so that a sample's actions do not depend on the others.
    """

    feature_dim = 128

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convs = nn.Sequential(
            nn.Conv2d(channels, 16, 3, 2, 1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, 2, 1),
            nn.ReLU(),
            nn.Conv2d(32, 32, 3, 2, 1),
            nn.ReLU(),
        )
        self.linear = nn.Linear(32 * 4, self.feature_dim)

    def forward(self, images: Tensor) -> Tensor:
        # average pooling to 2 x 2 by slices, since the adaptive layer has no deterministic gradient on a GPU
        maps = self.convs(2 * images - 1)
        rows = _halves(maps.shape[2])
        columns = _halves(maps.shape[3])
        pooled = [maps[:, :, row, column].mean((2, 3)) for row in rows for column in columns]
        return torch.tanh(self.linear(torch.cat(pooled, 1)))


def _halves(size: int) -> tuple[slice, slice]:
    """Return two halves, which overlap by one if the size is odd, as in adaptive pooling."""
    return slice(0, (size + 1) // 2), slice(size // 2, size)


class ResNetExtractor(nn.Module):
    """ASTrA's strategy network: a plain ResNet-18 with CIFAR stem and batch norm on images in [0, 1].

    Its features (n, feature_dim) are float32, whatever the precision of its computation.
    """

    def __init__(self, channels: int, width: int = 64) -> None:
        super().__init__()
        if channels != 3:
            raise ValueError(f"the images have {channels} channels: ResNet-18 expects 3")
        self.network = ResNet("resnet18", width, "cifar", ("normal",))
        self.feature_dim = self.network.feature_dim
        self.bf16 = False

    def hasten(self) -> None:
        """Compute in bfloat16 and channels-last from now on, if that is faster on its device."""
        self.bf16 = self.network.conv.weight.device.type in IN_BF16
        if self.bf16:
            self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        if not self.bf16:
            return self.network(images, "normal")
        with torch.autocast(images.device.type, torch.bfloat16):
            return self.network(images.contiguous(memory_format=torch.channels_last), "normal").float()


class MlpExtractor(nn.Module):
    """Network of tanh layers from features (n, inputs) to features (n, hidden[-1])."""

    def __init__(self, inputs: int, hidden: Sequence[int]) -> None:
        super().__init__()
        sizes = (inputs, *hidden)
        layers = (nn.Sequential(nn.Linear(a, b), nn.Tanh()) for a, b in pairwise(sizes))
        self.layers = nn.Sequential(*layers)
        self.feature_dim = sizes[-1]

    def forward(self, features: Tensor) -> Tensor:
        return self.layers(features)


class SeparateHeads(nn.ModuleList):
    """One linear layer for each head, with concatenated outputs, like those of a single layer.

    An optimizer that works number by number, such as Adam, treats them as one layer. LARS has a trust ratio for each
    tensor, so that each head takes steps of its own length.
    """

    def __init__(self, inputs: int, outputs: Sequence[int]) -> None:
        super().__init__(nn.Linear(inputs, each) for each in outputs)

    def forward(self, features: Tensor) -> Tensor:
        return torch.cat([head(features) for head in self], dim=1)


HEADS: Mapping[str, str] = {
    "joint": "one linear layer gives the logits of all heads",
    "separate": "a linear layer for each head, as in ASTrA's released code",
}


class StrategyPolicy(nn.Module):
    """A distribution over actions for every observation.

    MultiDiscrete: independent categoricals (the paper's heads); Discrete: one categorical; Box: a diagonal Gaussian.
    Its draws are clipped to the box when they are sent to the environment.

    Args:
        observation_space: Box (F,) of floats, or Box (channels, h, w) of uint8 images with h, w >= 8.
        action_space: MultiDiscrete, Discrete or one-dimensional Box.
        hidden: layers of the network for feature observations.
        image_network: "small" (`ImageExtractor`) or "resnet18" (the paper's), for image observations.
        width: channels of the ResNet's first stage.
        log_std: initial log standard deviation of the Gaussian, in units of the box.
        heads: a name of `HEADS`; for a single head both names give the same.

    Raises:
        ValueError: if a space is not supported, or a name is unknown.
    """

    def __init__(
        self,
        observation_space: gymnasium.Space,
        action_space: gymnasium.Space,
        hidden: Sequence[int] = (64, 64),
        image_network: str = "small",
        width: int = 64,
        log_std: float = -0.5,
        heads: str = "joint",
    ) -> None:
        super().__init__()
        pick(heads, HEADS, "kind of heads")
        self.image = is_image(observation_space)
        shape = observation_space.shape or ()
        self.extractor: nn.Module
        if self.image:
            if min(shape[1:]) < SMALLEST_IMAGE:
                raise ValueError(f"the images are {shape[1]} x {shape[2]}: expected 8 x 8 or more")
            networks = {"small": lambda: ImageExtractor(shape[0]), "resnet18": lambda: ResNetExtractor(shape[0], width)}
            self.extractor = pick(image_network, networks, "image network")()
        elif isinstance(observation_space, spaces.Box) and len(shape) == 1 and observation_space.dtype != "uint8":
            self.extractor = MlpExtractor(shape[0], hidden)
        else:
            raise ValueError(
                f"the observation space is {observation_space}: expected Box (F,) of floats, or Box (channels, h, w) "
                "of uint8 images"
            )
        self.choices = choices(action_space)
        self.single = isinstance(action_space, spaces.Discrete)
        if self.choices:
            outputs = sum(self.choices)
        elif isinstance(action_space, spaces.Box) and len(action_space.shape) == 1:
            outputs = action_space.shape[0]
            self.log_std = nn.Parameter(torch.full((outputs,), log_std))
        else:
            raise ValueError(f"the action space is {action_space}: expected MultiDiscrete, Discrete or Box (d,)")
        features = int(self.extractor.feature_dim)  # type: ignore[arg-type]
        several = heads == "separate" and len(self.choices) > 1
        self.head = SeparateHeads(features, self.choices) if several else nn.Linear(features, outputs)

    def forward(self, observation: Tensor) -> Tensor:
        """Return the logits of all heads, concatenated, or means: (n, outputs)."""
        scaled = observation.float() / 255 if self.image else observation.float()
        return self.head(self.extractor(scaled))

    @torch.no_grad()
    def sample(self, observation: Tensor, generator: torch.Generator, deterministic: bool = False) -> Tensor:
        """Draw actions: MultiDiscrete (n, heads) int64, Discrete (n,) int64, Box (n, d) float32, unclipped.

        The noise is always drawn on the CPU, so that a run draws the same on every device and its generator can be
        restored on any. Deterministic actions are the most probable ones.
        """
        outputs = self(observation)
        if not self.choices:
            if deterministic:
                return outputs
            noise = torch.randn(outputs.shape, generator=generator).to(outputs.device, non_blocking=True)
            return outputs + noise * self.log_std.exp()
        if not deterministic:
            # Gumbel-max: the argmax of log-probabilities minus the log of exponential noise is an exact draw
            noise = torch.empty(outputs.shape).exponential_(generator=generator).to(outputs.device, non_blocking=True)
            outputs = outputs - noise.log()
        actions = torch.stack([logits.argmax(1) for logits in outputs.split(self.choices, 1)], 1)
        return actions[:, 0] if self.single else actions

    def log_prob_entropy(self, observation: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Return the actions' log-probability and the distribution's entropy, each (n,), summed over heads."""
        outputs = self(observation)
        if not self.choices:
            deviation = (actions - outputs) / self.log_std.exp()
            log_prob = -0.5 * deviation**2 - self.log_std - 0.5 * math.log(2 * math.pi)
            entropy = (self.log_std + 0.5 * math.log(2 * math.pi * math.e)).sum()
            return log_prob.sum(1), entropy.expand(len(outputs))
        log_prob = entropy = outputs.new_zeros(len(outputs))
        for logits, chosen in zip(outputs.split(self.choices, 1), actions.view(len(actions), -1).T, strict=True):
            log_probs = logits.log_softmax(1)
            log_prob = log_prob + log_probs.gather(1, chosen[:, None])[:, 0]
            entropy = entropy - (log_probs.exp() * log_probs).sum(1)
        return log_prob, entropy


def choices(space: gymnasium.Space) -> list[int]:
    """Return the number of choices of each head: one head for Discrete, several for MultiDiscrete, else none."""
    if isinstance(space, spaces.Discrete):
        return [int(space.n)]
    return [int(n) for n in space.nvec] if isinstance(space, spaces.MultiDiscrete) else []


def build_policy(
    generator: torch.Generator,
    observation_space: gymnasium.Space,
    action_space: gymnasium.Space,
    *,
    hidden: Sequence[int] = (64, 64),
    image_network: str = "small",
    width: int = 64,
    log_std: float = -0.5,
    uniform_start: bool = True,
    heads: str = "joint",
) -> StrategyPolicy:
    """Build a `StrategyPolicy` with weights from the generator; torch's global generator is left alone.

    Args:
        generator: a CPU generator.
        uniform_start: orthogonal weights and an output layer near zero, so that the policy starts almost uniform;
            False: as in `initialize`, He initialization (fan-out) for convolutions and torch's own for linear layers.
        others: as in `StrategyPolicy`.
    """
    # constructors draw weights from the global generator; these are replaced, and the generator's state is restored
    with torch.random.fork_rng(devices=[]):
        policy = StrategyPolicy(observation_space, action_space, hidden, image_network, width, log_std, heads)
    initialize(policy.extractor, generator)
    initialize(policy.head, generator)
    if uniform_start:
        last = set(policy.head.modules())
        for part in policy.modules():
            if isinstance(part, nn.Linear | nn.Conv2d):
                gain = 0.01 if part in last else math.sqrt(2)
                nn.init.orthogonal_(part.weight, gain, generator=generator)
                if part.bias is not None:
                    nn.init.zeros_(part.bias)
    return policy


@contextmanager
def batch_statistics(policy: nn.Module) -> Iterator[None]:
    """Run the policy as in training, with batch norm by the batch, but leave its running statistics unchanged.

    Actions of an update step are drawn in this context: their distribution is the one that the update differentiates,
    and only the update's own forward moves the statistics.
    """
    norms = [part for part in policy.modules() if isinstance(part, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    was_training = policy.training
    policy.train()
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        policy.train(was_training)


class Sb3ImageExtractor(BaseFeaturesExtractor):
    """`ImageExtractor` for Stable-Baselines3, whose `CnnPolicy` network cannot take images under 36 x 36.

    Stable-Baselines3 divides uint8 images by 255 before this network (`normalize_images`, its default).
    """

    def __init__(self, observation_space: spaces.Box) -> None:
        if not is_image(observation_space) or min(observation_space.shape[1:]) < SMALLEST_IMAGE:
            raise ValueError(f"the observation space is {observation_space}: expected uint8 images, 8 x 8 or more")
        super().__init__(observation_space, ImageExtractor.feature_dim)
        self.network = ImageExtractor(observation_space.shape[0])

    def forward(self, observations: Tensor) -> Tensor:
        return self.network(observations)
