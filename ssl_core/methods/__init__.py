"""Self-supervised methods by name, or a custom one by a dotted path."""

from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any

from astra_gym.ssl_core.methods.advcl import AdvCL
from astra_gym.ssl_core.methods.air import ACLAIR, DynACLAIR, DynACLAIRPlus
from astra_gym.ssl_core.methods.base import Method, Network, Networks
from astra_gym.ssl_core.methods.contrastive import ACL, ASTrA, ASTrAPlus, SimCLR
from astra_gym.ssl_core.methods.distillation import DAQSDP, DeACL
from astra_gym.ssl_core.methods.dynacl import DynACL, DynACLPlus
from astra_gym.ssl_core.methods.emp import CFAMCSSL, EMPSSL
from astra_gym.ssl_core.methods.fare import FARE
from astra_gym.ssl_core.methods.profeat import ProFeAT
from astra_gym.ssl_core.methods.rocl import RoCL
from astra_gym.ssl_core.methods.targets.barlow import BarlowTwins, CleanBarlowTwins
from astra_gym.ssl_core.methods.targets.dino import DINO, CleanDINO
from astra_gym.ssl_core.methods.targets.moco import CleanMoCo, MoCo
from astra_gym.ssl_core.methods.targets.mocov3 import CleanMoCoV3, MoCoV3
from astra_gym.ssl_core.methods.targets.siamese import BYOL, CleanBYOL, CleanSimSiam, SimSiam
from astra_gym.ssl_core.methods.targets.swav import CleanSwAV, SwAV
from astra_gym.ssl_core.methods.targets.vicreg import CleanVICReg, VICReg
from astra_gym.ssl_core.methods.taro import TARO
from astra_gym.ssl_core.methods.traits import TRAITS, AttackTraits, LossTraits, NetworkTraits, Routes
from astra_gym.ssl_core.utils.import_path import PATH, imported_class
from astra_gym.ssl_core.utils.messages import shown
from astra_gym.ssl_core.utils.overrides import replaced
from astra_gym.ssl_core.utils.registry import pick

METHODS: dict[str, type[Method]] = {
    "simclr": SimCLR,
    "rocl": RoCL,
    "acl": ACL,
    "advcl": AdvCL,
    "deacl": DeACL,
    "dynacl": DynACL,
    "dynacl++": DynACLPlus,
    "acl-air": ACLAIR,
    "dynacl-air": DynACLAIR,
    "dynacl-air++": DynACLAIRPlus,
    "taro": TARO,
    "daq-sdp": DAQSDP,
    "profeat": ProFeAT,
    "fare": FARE,
    "astra": ASTrA,
    "astra++": ASTrAPlus,
    "emp-ssl": EMPSSL,
    "cf-amc-ssl": CFAMCSSL,
    "byol": BYOL,
    "byol-clean": CleanBYOL,
    "simsiam": SimSiam,
    "simsiam-clean": CleanSimSiam,
    "moco": MoCo,
    "moco-clean": CleanMoCo,
    "mocov3": MoCoV3,
    "mocov3-clean": CleanMoCoV3,
    "swav": SwAV,
    "swav-clean": CleanSwAV,
    "barlow": BarlowTwins,
    "barlow-clean": CleanBarlowTwins,
    "dino": DINO,
    "dino-clean": CleanDINO,
    "vicreg": VICReg,
    "vicreg-clean": CleanVICReg,
}
"""All built-in methods, roughly by age, with related ones together."""


def is_own(name: str) -> bool:
    """Whether a method's name is the dotted path of a custom method."""
    return bool(PATH.fullmatch(name))


def find_method(name: str) -> type[Method]:
    """Find the class of a method by its name in `METHODS`, or by a dotted path, my_module:MyMethod.

    Raises:
        ValueError: if there is no such method.
    """
    if not is_own(name):
        return pick(name, METHODS, "method")
    # `Method` is abstract; the class that was found is checked below
    found = imported_class(name, Method, "astra_gym.ssl_core.methods", "method")  # type: ignore[type-abstract]
    if missing := sorted(found.__abstractmethods__):
        raise ValueError(f"method {shown(name)} lacks {', '.join(missing)}: every method has to say these itself")
    if bare := [field.name for field in fields(found) if field.default is field.default_factory is MISSING]:
        raise ValueError(f"method {shown(name)} has no default for {', '.join(bare)}: every option needs one")
    return found


def make_method(name: str, options: Mapping[str, Any] | None = None, **shared: Any) -> Method:
    """Make the method called `name`.

    Args:
        name: as for `find_method`.
        options: the method's options, by field name.
        shared: options offered to every method; those that this one does not have are left out.

    Raises:
        ValueError: if there is no such method or option, the options are out of range or do not fit together, or the
            method has something else in the place of one of its records.
    """
    kind = find_method(name)
    own = {field.name for field in fields(kind)}
    method = kind(**{key: value for key, value in shared.items() if key in own})
    method = replaced(method, options or {}, f"the method {shown(name)}")
    for what, record in TRAITS.items():
        if not isinstance(value := getattr(method, what), record):
            raise ValueError(
                f"{what} of the method {shown(name)} is {shown(value)}: expected a record, {record.__name__}(...)"
            )
    return method


__all__ = [
    "ACL",
    "METHODS",
    "ASTrA",
    "AttackTraits",
    "LossTraits",
    "Method",
    "Network",
    "NetworkTraits",
    "Networks",
    "Routes",
    "SimCLR",
    "find_method",
    "is_own",
    "make_method",
]
