"""MoCo v3: queries contrasted with the keys of a moving average, without a queue."""

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor, nn

from astra_gym.ssl_core.losses.keys import moco_v3
from astra_gym.ssl_core.methods.base import Networks
from astra_gym.ssl_core.methods.targets.siamese import Siamese
from astra_gym.ssl_core.methods.targets.target import AdversarialStreams
from astra_gym.ssl_core.methods.traits import LossTraits, NetworkTraits
from astra_gym.ssl_core.models.ema import cosine_momentum
from astra_gym.ssl_core.models.heads import Predictor
from astra_gym.ssl_core.utils.finite import check_number
from astra_gym.ssl_core.utils.training_plan import Moment


@dataclass(frozen=True)
class CleanMoCoV3(Siamese):
    """Momentum contrast, version 3 (Chen et al. 2021), without an attack.

    `L = l(q1, k2) + l(q2, k1)`, where `l(q, k)` is 2 * temperature times the cross-entropy of each query's similarities
    to the keys of all N images of the batch. Queries are predictions, keys are the embeddings of "momentum", the moving
    average of backbone and projector, in train mode with its own statistics and without gradient.

    As for ResNets, the predictor has no biases and no batch norm after its last layer. The authors update the moving
    average before they compute keys, which gives the same keys as here, after the update before.

    Args:
        temperature: of the similarities, positive (0.2).
        predictor_hidden: width of the predictor's hidden layer (4096).
        momentum_start: momentum of the moving average at the first update, in [0, 1]; it rises to 1 along a cosine over
            the training (0.99, or 0.996 for 1000 epochs of ImageNet).
    """

    temperature: float = 0.2
    predictor_hidden: int = 4096
    momentum_start: float = 0.99

    paper: ClassVar[str] = "Chen, Xie & He, ICCV 2021"
    summary: ClassVar[str] = "mocov3 without an attack"
    networks: ClassVar[NetworkTraits] = NetworkTraits(others=("momentum",))
    loss: ClassVar[LossTraits] = replace(Siamese.loss, has_temperature=True)
    scale: ClassVar[float] = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("momentum_start", self.momentum_start, 0, 1)

    def make_heads(self, feature_dim: int, embedding_dim: int) -> dict[str, nn.Module]:
        """Make the predictor; its outputs have the length of the embeddings."""
        names = self.routes.names
        return {"predictor": Predictor(embedding_dim, self.predictor_hidden, embedding_dim, names, bias=False)}

    def momentum(self, moment: Moment) -> float:
        """`1 - (1 - momentum_start) * (cos(pi * progress) + 1) / 2`, by the progress before the update."""
        return cosine_momentum(moment.progress, self.momentum_start)

    def targets(self, networks: Networks, images: Tensor, route: str, embeddings: Tensor) -> Tensor:
        """The keys: the moving average's embeddings (n, d)."""
        return networks.others["momentum"](images, route).embeddings

    def row_losses(self, predictions: Tensor, targets: Tensor, stop: bool) -> Tensor:
        return moco_v3(predictions, targets.detach() if stop else targets, self.temperature, reduction="none")


@dataclass(frozen=True)
class MoCoV3(AdversarialStreams, CleanMoCoV3):
    """Momentum contrast, version 3 (Chen et al. 2021): `CleanMoCoV3` with `AdversarialStreams`.

    Each stream has its own queries and keys. The reward's `adversarial` and `clean` are `l_i` of each attacked or clean
    view's query, between 0 and 2 * temperature * log(N) + 4, N being the number of images in a batch.

    Args:
        temperature, predictor_hidden, momentum_start: as in `CleanMoCoV3`.
        streams: "ds" or "a2a", see `AdversarialStreams`.
    """

    temperature: float = 0.2

    summary: ClassVar[str] = "queries find a moving average's keys in the batch, clean and attacked"
