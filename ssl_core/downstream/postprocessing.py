"""Label-free post-processing of a trained encoder: adversarial fine-tuning on pseudo labels (DynACL++)."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import cast

from torch import Tensor, nn

from astra_gym.ssl_core.data.image_set import ImageSet
from astra_gym.ssl_core.downstream.finetuning import FineTuneSettings, fine_tune
from astra_gym.ssl_core.downstream.linear_probe import ProbeSettings, train_probe
from astra_gym.ssl_core.models.clustering import assign, encode_features, fit_clusters
from astra_gym.ssl_core.models.target_network import TargetNetwork
from astra_gym.ssl_core.transforms.views import ViewSettings
from astra_gym.ssl_core.utils.finite import check_number
from astra_gym.ssl_core.utils.messages import shown
from astra_gym.ssl_core.utils.rng import Streams, derive_seed


@dataclass(frozen=True)
class PostSettings:
    """Linear probing, then adversarial full fine-tuning, on pseudo labels (LP-AFT); the defaults are DynACL++'s.

    Args:
        clusters: number of pseudo classes, at least 2: 10 in DynACL's code. 0: the number of classes of the data, as in
            AIR's (see `for_classes`).
        starts: runs of k-means; the best one is kept.
        probe_epochs: epochs of linear probing (LP), on the frozen encoder.
        probe_lr: learning rate of LP.
        probe_weight_decay: weight decay of LP.
        epochs: epochs of adversarial fine-tuning (AFT), on all weights.
        lr: learning rate of AFT.
        weight_decay: weight decay of AFT.
        momentum: momentum of SGD, in both.
        milestones: fractions of AFT's epochs after which its learning rate is divided by ten, in rising order.
        batch_size: images per step, at least 2, in both.
        beta: weight of TRADES' robustness term.
        epsilon: radius of the attack's L-infinity ball, in the images' unit (8/255, not 8).
        step_size: step size of the attack, in the same unit.
        steps: steps of the attack.
        start_noise: standard deviation of the normal noise at the attack's start, in the same unit. DynACL's code has
            none: with both sides of TRADES on one route, its first step follows the sign of rounding errors.
        augment: random crop with a padding of 4 pixels and flip, in both; it harms images that fill their frame.

    Raises:
        ValueError: if a value is out of its range.
    """

    clusters: int = 10
    starts: int = 10
    probe_epochs: int = 10
    probe_lr: float = 0.01
    probe_weight_decay: float = 1e-4
    epochs: int = 25
    lr: float = 0.1
    weight_decay: float = 1e-4
    momentum: float = 0.9
    milestones: tuple[float, ...] = (0.4, 0.8)
    batch_size: int = 512
    beta: float = 6.0
    epsilon: float = 8 / 255
    step_size: float = 2 / 255
    steps: int = 10
    start_noise: float = 0.001
    augment: bool = True

    def __post_init__(self) -> None:
        whose = "the post-processing's"
        if self.clusters != 0:
            expected = "at least 2, or 0 for the number of classes"
            check_number(f"{whose} clusters", self.clusters, 2, expected=expected, whole=True)
        for name in ("starts", "probe_epochs", "epochs"):
            check_number(f"{whose} {name}", getattr(self, name), 1, whole=True)
        for name in ("probe_lr", "lr"):
            check_number(f"{whose} {name}", getattr(self, name), above=True)
        for name in ("probe_weight_decay", "weight_decay", "beta"):
            check_number(f"{whose} {name}", getattr(self, name))
        check_number(f"{whose} momentum", self.momentum, 0, 1, below=True)
        expected = "at least 2, since batch norm takes the statistics of a batch"
        check_number(f"{whose} batch_size", self.batch_size, 2, expected=expected, whole=True)
        check_number(f"{whose} steps", self.steps, whole=True)
        for name in ("epsilon", "step_size", "start_noise"):
            expected = "in [0, 1]: it is in the images' unit, 8/255 and not 8"
            check_number(f"{whose} {name}", getattr(self, name), 0, 1, expected)
        rising = list(self.milestones) == sorted(set(self.milestones))
        if not rising or not all(0 < at < 1 for at in self.milestones):
            raise ValueError(
                f"{whose} milestones is {shown(self.milestones)}: expected rising fractions between 0 and 1"
            )

    def for_classes(self, classes: int) -> "PostSettings":
        """The settings with `clusters` set to the number of classes where it is 0.

        Raises:
            ValueError: if it is 0 and there are fewer than two classes.
        """
        if self.clusters:
            return self
        if classes < 2:
            raise ValueError(
                f"the post-processing makes as many clusters as there are classes, and the data have {classes}: say "
                "how many as --post_kwargs.clusters"
            )
        return replace(self, clusters=classes)

    def probe(self) -> ProbeSettings:
        """Settings of linear probing, with a constant learning rate."""
        return ProbeSettings(
            epochs=self.probe_epochs,
            lr=self.probe_lr,
            batch_size=self.batch_size,
            milestones=(),
            momentum=self.momentum,
            weight_decay=self.probe_weight_decay,
            augment=self.augment,
        )

    def fine_tuning(self) -> FineTuneSettings:
        """Settings of adversarial fine-tuning; milestones are rounded to the nearest epoch, and 0 is left out."""
        epochs = sorted({round(at * self.epochs) for at in self.milestones} - {0})
        return FineTuneSettings(
            epochs=self.epochs,
            lr=self.lr,
            batch_size=self.batch_size,
            milestones=tuple(epochs),
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            beta=self.beta,
            epsilon=self.epsilon,
            step_size=self.step_size,
            steps=self.steps,
            start_noise=self.start_noise,
        )

    def views(self) -> ViewSettings:
        """Settings of the augmentation."""
        return ViewSettings() if self.augment else ViewSettings(padding=0, flip=0.0)


def post_process(
    network: TargetNetwork,
    routes: tuple[str, str],
    images: Tensor,
    settings: PostSettings,
    streams: Streams,
    progress: Callable[[str, int, int], None] | None = None,
) -> TargetNetwork:
    """Post-process a network as DynACL++ (Luo et al., ICLR 2023), AIR++ and ASTrA++ do, without labels.

    Pseudo labels: k-means on the features of the un-augmented images, on the clean route. LP: a linear head learns them
    on the attack route of the frozen encoder, by cross entropy on clean weak views. AFT: head and backbone are trained
    together with TRADES on the pseudo labels, batch norm in train mode; both sides of TRADES are on the attack route.
    The head is then discarded.

    The released code continues with two networks: one for linear evaluations, with the attack route's batch norm only,
    and one for full fine-tuning, with both routes, though this stage trained its clean side on the attack route. The
    result here serves both: it has all routes. AFT trained the attack route's batch norm; that of other routes does not
    change. The convolutions are shared, so the features of the other routes change too. So do the projector's inputs,
    but not the projector: its embeddings are no longer meaningful.

    Args:
        network: trained network; it is not changed.
        routes: routes of clean and of attacked images. If they are the same, that route is trained.
        images: uint8 (n, 3, h, w), n >= 2 and at least the number of clusters.
        settings: settings of all stages; `clusters` is not 0 here.
        streams: only their seed (of every draw) and their device (for the work) are used; no stream advances.
        progress: called after every step with the stage ("probe", "fine-tuning"), its steps done and their total.

    Returns:
        A network like the given one, in its modes and on its device. On the CPU the same arguments give the same one
        bit for bit.

    Raises:
        ValueError: if there are too few images, too few distinct features for the clusters, or a route is unknown.
        RuntimeError: if a stage diverges.
    """
    clean, attacked = routes
    for route in routes:
        network.check(images, route)
    own = Streams(derive_seed(streams.seed, "post-processing"), streams.device)
    encoder = copy.deepcopy(network).to(own.device).eval()
    features = encode_features(encoder, images, clean)
    (centroids,) = fit_clusters(features, [settings.clusters], own["clusters"], starts=settings.starts)
    labels = assign(features, centroids).cpu()
    train = ImageSet(images, labels, tuple(f"cluster {index}" for index in range(settings.clusters)), "pseudo labels")

    def told(stage: str) -> Callable[[int, int], None] | None:
        return None if progress is None else lambda done, total: progress(stage, done, total)

    probe = train_probe(
        encoder,
        attacked,
        train,
        settings.probe(),
        settings.views(),
        seed=derive_seed(own.seed, "probe"),
        device=own.device,
        progress=told("probe"),
    )
    tuned = fine_tune(
        encoder,
        (attacked, attacked),
        train,
        settings.fine_tuning(),
        settings.views(),
        seed=derive_seed(own.seed, "fine-tuning"),
        head=cast(nn.Linear, probe.head),
        device=own.device,
        progress=told("fine-tuning"),
    )
    result = copy.deepcopy(network)
    result.load_state_dict(tuned.encoder.state_dict())
    return result
