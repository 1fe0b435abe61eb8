"""Frameworks with two branches and no negatives: BYOL and SimSiam, clean and with adversarial streams."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from astra_gym.ssl_core.losses.cosine import symmetric_byol, symmetric_negative_cosine
from astra_gym.ssl_core.methods.base import Method, Networks
from astra_gym.ssl_core.methods.targets.target import AdversarialStreams, Target
from astra_gym.ssl_core.methods.traits import LossTraits, NetworkTraits
from astra_gym.ssl_core.models.ema import cosine_momentum
from astra_gym.ssl_core.models.heads import Predictor
from astra_gym.ssl_core.models.target_network import Encoded
from astra_gym.ssl_core.utils.finite import check_number
from astra_gym.ssl_core.utils.training_plan import Moment


@dataclass(frozen=True)
class Predictive(Method):
    """Base of methods with a predictor: its embeddings join predictions and targets.

    The embeddings that `objective` takes are (n, 2d): predictions p, then targets z. A partner's predictions are
    compared with z.

    Args:
        temperature: not used, these losses have none.
        predictor_hidden: width of the predictor's hidden layer, positive.
    """

    predictor_hidden: int = 512

    loss: ClassVar[LossTraits] = LossTraits(nt_xent_based=False, has_temperature=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("predictor_hidden", self.predictor_hidden, 1, expected="a positive integer", whole=True)

    def make_heads(self, feature_dim: int, embedding_dim: int) -> dict[str, nn.Module]:
        """Make the predictor; its outputs have the length of the embeddings."""
        return {"predictor": Predictor(embedding_dim, self.predictor_hidden, embedding_dim, self.routes.names)}

    def targets(self, networks: Networks, images: Tensor, route: str, embeddings: Tensor) -> Tensor:
        """Targets of the predictions, (n, d); here the network's own embeddings.

        Args:
            networks: the networks.
            images: (n, 3, h, w).
            route: batch-norm route of the images.
            embeddings: (n, d), of the target network.
        """
        return embeddings

    def joined(self, networks: Networks, images: Tensor, route: str) -> Encoded:
        """Encode images (n, 3, h, w) to features (n, f), and to predictions beside targets, (n, 2d)."""
        features, embeddings = networks(images, route)
        predictions = networks.heads["predictor"](embeddings, route)
        return Encoded(features, torch.cat([predictions, self.targets(networks, images, route, embeddings)], dim=1))

    def encoded(self, networks: Networks, images: Tensor, rows: Tensor, attacked: bool) -> Encoded:
        """Encode views to features, and to predictions beside targets, on the route of attacked or of clean images."""
        return self.joined(networks, images, self.routes.attack if attacked else self.routes.clean)


@dataclass(frozen=True)
class Siamese(Predictive, Target):
    """Base of frameworks with a predictor of one view's target from the other view.

    An attack's gradient goes through both branches, predictions and targets: the framework's stop-gradient protects its
    *weights* from collapse, and an attack moves images but no weights.

    Args:
        temperature: not used, these losses have none.
        predictor_hidden: width of the predictor's hidden layer, positive.
    """

    @abstractmethod
    def row_losses(self, predictions: Tensor, targets: Tensor, stop: bool) -> Tensor:
        """The loss of each view's prediction of its partner's target, (2N,).

        Args:
            predictions, targets: (2N, d), rows 2k and 2k+1 those of image k.
            stop: whether to stop the gradient to the targets.
        """

    def objective(self, z: Tensor) -> Tensor:
        """The framework's loss of each view, (2N,).

        Args:
            z: predictions beside targets, (2N, 2d).
        """
        predictions, targets = z.chunk(2, dim=1)
        return self.row_losses(predictions, targets, stop=False)

    def stream(self, networks: Networks, views: Tensor, route: str) -> Tensor:
        """The loss of each view on a route, (2N,), with the stop-gradient."""
        predictions, targets = self.joined(networks, views, route).embeddings.chunk(2, dim=1)
        return self.row_losses(predictions, targets, stop=True)


@dataclass(frozen=True)
class CleanBYOL(Siamese):
    """Bootstrap your own latent (Grill et al. 2020), without an attack.

    This project's target network is BYOL's *online* network, which is trained and evaluated. BYOL's target network is
    "momentum" here: the moving average of backbone and projector, in train mode with its own statistics.
    `L = 2 - 2 cos(p_i, z_partner(i))`, summed over the two views of an image and averaged over the images, with p the
    online predictions and z the moving average's embeddings, without gradient.

    Args:
        temperature: not used, this loss has none.
        predictor_hidden: width of the predictor's hidden layer (4096 in solo-learn's CIFAR settings).
        momentum_start: momentum of the moving average at the first update, in [0, 1]; it rises to 1 along a cosine over
            the training (0.99 in solo-learn's CIFAR settings).
    """

    predictor_hidden: int = 4096
    momentum_start: float = 0.99

    paper: ClassVar[str] = "Grill et al., NeurIPS 2020"
    summary: ClassVar[str] = "byol without an attack"
    networks: ClassVar[NetworkTraits] = NetworkTraits(others=("momentum",))
    scale: ClassVar[float] = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("momentum_start", self.momentum_start, 0, 1)

    def momentum(self, moment: Moment) -> float:
        """`1 - (1 - momentum_start) * (cos(pi * progress) + 1) / 2`, by the progress before it (their section 3.3)."""
        return cosine_momentum(moment.progress, self.momentum_start)

    def targets(self, networks: Networks, images: Tensor, route: str, embeddings: Tensor) -> Tensor:
        """The moving average's embeddings (n, d)."""
        return networks.others["momentum"](images, route).embeddings

    def row_losses(self, predictions: Tensor, targets: Tensor, stop: bool) -> Tensor:
        return symmetric_byol(predictions, targets, stop, reduction="none")


@dataclass(frozen=True)
class BYOL(AdversarialStreams, CleanBYOL):
    """Bootstrap your own latent (Grill et al. 2020): `CleanBYOL` with `AdversarialStreams`.

    The online network is attacked. The reward's `adversarial` and `clean` are `2 - 2 cos(p_i, z_partner(i))` of each
    attacked or clean view, in [0, 4]: 0 where a view predicts its partner's direction.

    Args:
        temperature: not used, this loss has none.
        predictor_hidden, momentum_start: as in `CleanBYOL`.
        streams: "ds" or "a2a", see `AdversarialStreams`.
    """

    summary: ClassVar[str] = "predicts a moving average's view of the image, clean and attacked; no negatives"


@dataclass(frozen=True)
class CleanSimSiam(Siamese):
    """Simple Siamese representations (Chen and He 2021), without an attack: no moving average, a stop-gradient.

    `L` is the mean of `-cos(p_i, z_partner(i))` over all views, with p the predictions and z the embeddings of the same
    network, without gradient. The predictor keeps its peak learning rate.

    Args:
        temperature: not used, this loss has none.
        predictor_hidden: width of the predictor's hidden layer (512).
    """

    paper: ClassVar[str] = "Chen & He, CVPR 2021"
    summary: ClassVar[str] = "simsiam without an attack"
    networks: ClassVar[NetworkTraits] = NetworkTraits(constant_head_lr=True)

    def row_losses(self, predictions: Tensor, targets: Tensor, stop: bool) -> Tensor:
        return symmetric_negative_cosine(predictions, targets, stop, reduction="none")


@dataclass(frozen=True)
class SimSiam(AdversarialStreams, CleanSimSiam):
    """Simple Siamese representations (Chen and He 2021): `CleanSimSiam` with `AdversarialStreams`.

    The reward's `adversarial` and `clean` are `-cos(p_i, z_partner(i))` of each attacked or clean view, in [-1, 1]: -1
    where a view predicts its partner's direction.

    Args:
        temperature: not used, this loss has none.
        predictor_hidden: width of the predictor's hidden layer (512).
        streams: "ds" or "a2a", see `AdversarialStreams`.
    """

    summary: ClassVar[str] = "predicts the other view, clean and attacked; a stop-gradient, no negatives"
