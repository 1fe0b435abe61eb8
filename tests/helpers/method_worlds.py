"""A tiny world of each method in float64, where finite differences are exact to many digits."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from astra_gym.ssl_core.methods import METHODS, Method, make_method
from astra_gym.ssl_core.methods.advcl import AdvCL
from astra_gym.ssl_core.methods.air import ACLAIR
from astra_gym.ssl_core.methods.contrastive import ACL, SimCLR
from astra_gym.ssl_core.methods.distillation import DAQSDP, DeACL
from astra_gym.ssl_core.methods.dynacl import DynACL
from astra_gym.ssl_core.methods.emp import EMPSSL
from astra_gym.ssl_core.methods.fare import FARE
from astra_gym.ssl_core.methods.profeat import ProFeAT
from astra_gym.ssl_core.methods.rocl import RoCL
from astra_gym.ssl_core.methods.targets.swav import CleanSwAV
from astra_gym.ssl_core.methods.targets.target import Target
from astra_gym.ssl_core.methods.taro import TARO
from astra_gym.ssl_core.models.heads import build_heads
from astra_gym.ssl_core.models.target_network import TargetNetwork, build_network
from astra_gym.ssl_core.training.learner import TargetLearner
from astra_gym.ssl_core.training.optim import make_optimizer
from astra_gym.ssl_core.utils.rng import Streams
from astra_gym.ssl_core.utils.training_plan import Moment
from tests.helpers.draws import generator

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "simclr": ("simclr", {}),
    # released 256: the regularizer would be lost beside the other term
    "rocl": ("rocl", {"regularizer": 2.0}),
    "acl-ds": ("acl", {}),
    "acl-a2a": ("acl", {"streams": "a2a"}),
    "acl-a2s": ("acl", {"streams": "a2s"}),
    "advcl": ("advcl", {"clusters": (2, 3)}),
    "deacl": ("deacl", {}),
    "dynacl": ("dynacl", {}),
    "dynacl++": ("dynacl++", {}),
    "acl-air-released": ("acl-air", {}),
    "acl-air-kl": ("acl-air", {"form": "kl"}),
    "dynacl-air-released": ("dynacl-air", {}),
    "dynacl-air-kl": ("dynacl-air", {"form": "kl"}),
    "dynacl-air++": ("dynacl-air++", {}),
    "taro": ("taro", {"predictor_hidden": 6, "w2": 0.6}),
    "daq-sdp": ("daq-sdp", {}),
    "profeat": ("profeat", {"projection_weight": 0.3}),
    "fare": ("fare", {}),
    "fare-clean": ("fare", {"clean_weight": 0.4}),
    "astra-pairs": ("astra", {}),
    "astra-views": ("astra", {"mixed_reading": "views"}),
    "astra++": ("astra++", {}),
    "emp-ssl": ("emp-ssl", {"crops": 4}),
    "cf-amc-ssl": ("cf-amc-ssl", {"crops": 4}),
    "byol-ds": ("byol", {"predictor_hidden": 6}),
    "byol-a2a": ("byol", {"predictor_hidden": 6, "streams": "a2a"}),
    "byol-clean": ("byol-clean", {"predictor_hidden": 6}),
    "simsiam-ds": ("simsiam", {"predictor_hidden": 6}),
    "simsiam-a2a": ("simsiam", {"predictor_hidden": 6, "streams": "a2a"}),
    "simsiam-clean": ("simsiam-clean", {"predictor_hidden": 6}),
    "moco-ds": ("moco", {"queue_size": 7}),
    "moco-a2a": ("moco", {"queue_size": 7, "streams": "a2a", "key": "attacked"}),
    "moco-aac": ("moco", {"queue_size": 7, "key": "attacked", "queue": "clean"}),
    "moco-clean": ("moco-clean", {"queue_size": 7}),
    "mocov3": ("mocov3", {"predictor_hidden": 6}),
    "mocov3-clean": ("mocov3-clean", {"predictor_hidden": 6}),
    # without a queue, which by hand would need
    "swav": ("swav", {"prototypes": 4, "queue_size": 0}),
    "swav-clean": ("swav-clean", {"prototypes": 4, "queue_size": 0}),
    "barlow": ("barlow", {"lambda_param": 0.3}),
    "barlow-clean": ("barlow-clean", {"lambda_param": 0.3}),
    "dino": ("dino", {"hidden": 6, "bottleneck": 4, "prototypes": 5}),
    "dino-local": ("dino", {"hidden": 6, "bottleneck": 4, "prototypes": 5, "local_crops": 2}),
    "dino-clean": ("dino-clean", {"hidden": 6, "bottleneck": 4, "prototypes": 5, "local_crops": 3}),
    "vicreg": ("vicreg", {}),
    "vicreg-clean": ("vicreg-clean", {}),
}
PROJECTORS = {"rocl": "rocl", "advcl": "advcl", "taro": "simsiam-2", "byol": "mlp", "simsiam": "simsiam-3"}
PROJECTORS |= {"emp-ssl": "mlp", "cf-amc-ssl": "mlp", "moco": "rocl", "mocov3": "simsiam-2", "swav": "mlp"}
PROJECTORS |= {"profeat": "rocl", "barlow": "mlp-3", "vicreg": "mlp-3", "dino": "none"}
IMAGES = 5
MOMENT = Moment(step=2, epoch=2, epochs=4, progress=0.5)


def encoder_of(method: str, file: str) -> dict[str, str]:
    """The setting that gives a method an encoder's file, by name; empty if it needs none."""
    settings = {"teacher": "teacher", "initial": "init_from"}
    return {settings[name]: file for name in METHODS[method].networks.others if name in settings}


Pass = tuple[str, str, Tensor]
"""Network ("target", "momentum"), route and images of a forward pass."""


def images(n: int, seed: int) -> Tensor:
    # float32, which AdvCL's high frequencies ask for; the network takes them on in float64
    return torch.rand(n, 3, 8, 8, generator=generator(seed))


def network(name: str, routes: tuple[str, ...], seed: int) -> TargetNetwork:
    sizes: dict[str, Any] = {"projector_hidden": 6, "projector_dim": 5, "neck": 6 if "ssl" in name else 0}
    kind = PROJECTORS.get(name.removesuffix("-clean"), "acl")
    made = build_network(generator(seed), arch="resnet10", width=2, routes=routes, projector=kind, **sizes).double()
    unlike(made, seed)
    return made


def unlike(module: nn.Module, seed: int) -> None:
    """Every route gets parameters and statistics of its own."""
    draw = generator(seed + 100)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
            shape = part.running_mean.shape
            part.running_mean.copy_(0.3 * torch.randn(shape, generator=draw))
            part.running_var.copy_(0.5 + torch.rand(shape, generator=draw))
            if part.affine:
                nn.init.uniform_(part.weight, 0.5, 1.5, generator=draw)
                nn.init.uniform_(part.bias, -0.3, 0.5, generator=draw)


class World:
    """A method, its learner, and a batch of views with attacked ones."""

    def __init__(self, case: str) -> None:
        name, options = CASES[case]
        self.case, self.method = case, make_method(name, options)
        target = network(name, self.method.routes.names, 0)
        made = self.method.make_heads(target.feature_dim, target.embedding_dim)
        heads = {key: head.double() for key, head in build_heads(Streams(2), made).items()}
        for head in heads.values():
            unlike(head, 7)
        # the teacher has other routes than its student
        routes = dict.fromkeys(("momentum", "initial"), self.method.routes.names) | {"teacher": ("normal",)}
        others = {key: network(name, routes[key], 1).eval() for key in self.method.networks.others}
        optimizer = make_optimizer("sgd", target, 0.1, 0.0, heads=[(head, False) for head in heads.values()])
        self.learner = TargetLearner(
            target, self.method, optimizer, lambda step: 0.1, heads=heads, others=others, moment=lambda step: MOMENT
        )
        self.learner.make_tables((images(20, 9) * 255).to(torch.uint8), Streams(5))
        self.trained = nn.ModuleList([target, self.learner.heads])
        self.views = images(self.method.views_per_image * IMAGES, 3)
        number = self.method.num_attacked(IMAGES)
        self.adversarial = images(number, 4) if number else None

    def train(self) -> None:
        """The modes of an update."""
        self.learner.train()
        for name, other in self.learner.others.items():
            other.train(name == "momentum")

    def total(self) -> Tensor:
        """The training loss, as `TargetLearner.update` composes it; nothing follows the batch."""
        with self.learner.untracked():
            terms = self.method.losses(self.learner.plain(), self.views, self.adversarial)
        weights = self.method.weights_at(MOMENT)
        return torch.stack([weights[name] * values.mean() for name, values in terms.items()]).sum()

    def passes(self) -> list[Pass]:
        return passes(self.method, self.views, self.views if self.adversarial is None else self.adversarial)


def passes(method: Method, views: Tensor, attacked: Tensor) -> list[Pass]:
    """The forward passes of an update, by the methods' papers and released codes."""
    first, second = views[0::2], views[1::2]
    if isinstance(method, SimCLR):
        return [("target", "normal", views)]
    if isinstance(method, RoCL):
        pair, triple = torch.cat([attacked, second]), torch.cat([first, second, attacked])
        return [("target", "normal", pair), ("target", "normal", triple)]
    if isinstance(method, ACL):
        clean = {"ds": [("target", "normal", views)], "a2a": [], "a2s": [("target", "normal", second)]}
        return [*clean[method.streams], ("target", "pgd", attacked)]
    if isinstance(method, AdvCL):
        parts = method.parts(views)
        partners = [parts.first, parts.second, method.high(parts.weak)]
        own: list[Pass] = [("target", "pgd", attacked[0::2]), ("target", "pgd_ce", attacked[1::2])]
        return [*own, *(("target", "normal", each) for each in partners)]
    if isinstance(method, DeACL):
        return [("target", "normal", torch.stack([views, attacked], dim=1).flatten(0, 1))]
    if isinstance(method, DAQSDP):
        clean, own = zip(("nature", "strongnature"), (first, second), strict=True), (attacked[0::2], attacked[1::2])
        moved = zip(("weak", "strong"), own, strict=True)
        return [("target", route, each) for route, each in (*clean, *moved)]
    if isinstance(method, ProFeAT):
        return [("target", "normal", each) for each in (second, attacked)]
    if isinstance(method, FARE):
        return [("target", "normal", attacked), *[("target", "normal", views)] * bool(method.clean_weight)]
    if isinstance(method, DynACL):
        of = {"target": slice(0, None, 2), "momentum": slice(1, None, 2)}
        streams = (("normal", views), ("pgd", attacked))
        return [(name, route, each[rows]) for route, each in streams for name, rows in of.items()]
    if isinstance(method, ACLAIR):
        strong, original = views[: 2 * IMAGES], views[2 * IMAGES :]
        return [("target", "normal", strong), ("target", "normal", original), ("target", "pgd", attacked)]
    if isinstance(method, TARO):
        return [("target", "normal", each) for each in (first, attacked[0::2], attacked[1::2])]
    if isinstance(method, EMPSSL):
        return [("target", "normal", attacked)]
    assert isinstance(method, Target)
    names = ("target", *method.networks.others)
    if not method.attack.exists or method.streams == "ds":
        wide = method.attacked(views)
        clean = [(name, "normal", wide) for name in names]
        clean += [("target", "normal", views[len(wide) :])] if len(wide) < len(views) else []
    else:
        clean = []
    return [*clean, *((name, "pgd", attacked) for name in names if method.attack.exists)]


def run(learner: TargetLearner, each: Sequence[Pass]) -> list[Tensor]:
    """Embeddings of each pass; with a predictor the target's have predictions before them; SwAV's are scores."""
    outputs = []
    for name, route, batch in each:
        made = learner.network if name == "target" else learner.others[name]
        z = made(batch, route).embeddings
        if name == "target" and "predictor" in learner.heads:
            z = torch.cat([learner.heads["predictor"](z, route), z], dim=1)
        if isinstance(learner.method, CleanSwAV):
            z = learner.heads["prototypes"](z, route)
        outputs.append(z)
    return outputs
