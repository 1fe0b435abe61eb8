"""What is particular about a method, as records: its batch-norm routes, its attack, its networks and its loss."""

from collections.abc import Mapping
from dataclasses import dataclass
from inspect import getattr_static
from typing import Any, Literal, NoReturn, Self, get_args

from astra_gym.ssl_core.utils.finite import check_number
from astra_gym.ssl_core.utils.messages import shown

Mode = Literal["eval", "train"]
OTHERS = ("momentum", "teacher", "initial")
"""Networks that a method may have besides its target."""


@dataclass(frozen=True, kw_only=True)
class Routes:
    """The batch-norm routes of the target network, and what they are for.

    Args:
        names: all routes, the route of clean images first.
        attack: route of attacked images; the attack runs on it too.
        evaluation: route on which the encoder is evaluated.
        needed: whether the method is about its routes, so that it refuses a backbone without batch norm. On such a
            backbone the routes of any other method differ in the projector alone.

    Raises:
        ValueError: if the names are not different words, or a route is not among them.
    """

    names: tuple[str, ...] = ("normal", "pgd")
    attack: str = "pgd"
    evaluation: str = "pgd"
    needed: bool = False

    def __post_init__(self) -> None:
        _check_names("names of routes", self.names)
        for name in ("attack", "evaluation"):
            if (route := getattr(self, name)) not in self.names:
                raise ValueError(f"route of {name} is {shown(route)}: expected one of the names {shown(self.names)}")

    @classmethod
    def single(cls, name: str) -> Self:
        """One route for all images."""
        return cls(names=(name,), attack=name, evaluation=name)

    @property
    def clean(self) -> str:
        """Route of clean images."""
        return self.names[0]


@dataclass(frozen=True, kw_only=True)
class AttackTraits:
    """How a method attacks.

    Args:
        exists: whether the method has an attack.
        mode: mode of the network under attack. In "train", batch norm couples the batch and its running statistics are
            updated by the attacked images.
        start_radius: radius of the uniform random start, in [0, 1]; None: each view's epsilon.
        reference_mode: mode of the network when `objective_for` encodes what attacked views are compared with; None:
            `mode`.
        free: whether training is free adversarial training: one backward pass gives the update and the attack's next
            step, and the perturbations are carried from batch to batch (see `TargetLearner.carry`).

    Raises:
        ValueError: if a value is out of its range, or an attack is free that does not exist.
    """

    exists: bool = True
    mode: Mode = "eval"
    start_radius: float | None = None
    reference_mode: Mode | None = None
    free: bool = False

    def __post_init__(self) -> None:
        for name, none in (("mode", ()), ("reference_mode", (None,))):
            if (mode := getattr(self, name)) not in (*get_args(Mode), *none):
                raise ValueError(f"{name} of the attack is {shown(mode)}: expected 'eval' or 'train'")
        if self.start_radius is not None:
            check_number("start_radius", self.start_radius, 0, 1, "in [0, 1], 8/255 and not 8")
        if self.free and not self.exists:
            raise ValueError("free is true, but exists is false: expected an attack that is free")

    @property
    def has_steps(self) -> bool:
        """Whether there is an attack with gradient steps of its own: a free one has those of the updates."""
        return self.exists and not self.free


@dataclass(frozen=True, kw_only=True)
class NetworkTraits:
    """Which networks a method has, and how they are kept.

    Args:
        others: networks besides the target: "momentum" (its moving average), "teacher" (`--teacher`, frozen), "initial"
            (the target as it started, `--init_from`, frozen).
        evaluated: network that is evaluated: "target", or one of `others`.
        averaged_heads: heads of which "momentum" has a moving average too: the head "momentum_NAME" of the head NAME.
        momentum_first: whether "momentum" averages the weights from before an update (DynACL), not those from after it.
        shares_projector: whether the target's projector is the teacher's, in eval mode, and no update changes it
            (ProFeAT).
        constant_head_lr: whether the heads keep their peak learning rate while the target follows the schedule.

    Raises:
        ValueError: if a network is unknown, or one that is needed is not among the others.
    """

    others: tuple[str, ...] = ()
    evaluated: str = "target"
    averaged_heads: tuple[str, ...] = ()
    momentum_first: bool = False
    shares_projector: bool = False
    constant_head_lr: bool = False

    def __post_init__(self) -> None:
        _check_names("others", self.others, OTHERS)
        _check_names("averaged_heads", self.averaged_heads)
        if self.evaluated not in (known := ("target", *self.others)):
            raise ValueError(f"evaluated is {shown(self.evaluated)}: expected one of {', '.join(known)}")
        needs = {"averaged_heads": "momentum", "momentum_first": "momentum", "shares_projector": "teacher"}
        for name, other in needs.items():
            if getattr(self, name) and other not in self.others:
                raise ValueError(f"{name} is {shown(getattr(self, name))}: expected {other!r} among others")


@dataclass(frozen=True, kw_only=True)
class LossTraits:
    """What others may rely on in a method's loss.

    Args:
        is_objective: whether the loss is the method's `objective`. If not (TARO), the objective serves the attack only,
            and its decrease does not measure the value of an update.
        paired: whether every call of the network in `losses` has rows in pairs, 2k and 2k+1 of one image. An update in
            chunks needs this.
        nt_xent_based: whether the loss consists of NT-Xent terms. Coreset selection (RCS) is defined only for these.
        has_temperature: whether the loss uses the temperature. If not, a given temperature is refused.

    Raises:
        ValueError: if the loss consists of NT-Xents without a temperature.
    """

    is_objective: bool = True
    paired: bool = True
    nt_xent_based: bool = True
    has_temperature: bool = True

    def __post_init__(self) -> None:
        if self.nt_xent_based and not self.has_temperature:
            raise ValueError("has_temperature is false: an NT-Xent has one, expected nt_xent_based=False")


TRAITS: Mapping[str, type] = {
    "routes": Routes,
    "attack": AttackTraits,
    "networks": NetworkTraits,
    "loss": LossTraits,
}
"""The records of a method, by the attribute of `Method`."""
MOVED: Mapping[str, str] = {
    "clean_route": "routes.clean",
    "attack_route": "routes.attack",
    "evaluation_route": "routes.evaluation",
    "needs_routes": "routes.needed",
    "attacks": "attack.exists",
    "attack_mode": "attack.mode",
    "start_radius": "attack.start_radius",
    "reference_mode": "attack.reference_mode",
    "free": "attack.free",
    "others": "networks.others",
    "evaluated": "networks.evaluated",
    "averaged_heads": "networks.averaged_heads",
    "momentum_first": "networks.momentum_first",
    "shares_projector": "networks.shares_projector",
    "constant_lr": "networks.constant_head_lr",
    "objective_is_loss": "loss.is_objective",
    "paired": "loss.paired",
    "nt_xent_based": "loss.nt_xent_based",
    "has_temperature": "loss.has_temperature",
}
"""Where the flags of a class are that earlier versions had one by one."""


class FormerFlags:
    """Base of `Method` that says where a flag of earlier versions is, instead of ignoring it.

    Raises:
        TypeError: if a subclass sets such a flag.
        AttributeError: if one is read.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for flag, place in MOVED.items():
            # not in the class alone: it may come from a class beside `Method`
            if not isinstance(getattr_static(cls, flag), _Moved):
                record = place.partition(".")[0]
                hint = f"set {record} = {TRAITS[record].__name__}(...)"
                raise TypeError(f"{flag} of {cls.__name__} is {place} now: {hint}")


class _Moved:
    """What stands in the place of a flag. Unlike `__getattr__` it hides no error of a property."""

    def __init__(self, flag: str) -> None:
        self.flag = flag

    def __get__(self, method: object, kind: type) -> NoReturn:
        raise AttributeError(f"{self.flag} of {kind.__name__} is {MOVED[self.flag]} now")


for _flag in MOVED:
    setattr(FormerFlags, _flag, _Moved(_flag))


def _check_names(what: str, names: tuple[str, ...], known: tuple[str, ...] = ()) -> None:
    """Raise a ValueError unless the names are a tuple of different strings, all of them known if any are."""
    good = isinstance(names, tuple) and all(isinstance(name, str) for name in names) and len(set(names)) == len(names)
    if not good or not set(names) <= set(known or names):
        raise ValueError(f"{what} are {shown(names)}: expected a tuple of different {', '.join(known) or 'names'}")
