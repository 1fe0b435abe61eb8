"""The section of the settings on the self-supervised method."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from astra_gym.ssl_core.losses.contrastive import MIXED_READINGS
from astra_gym.ssl_core.methods import METHODS, Method, is_own, make_method
from astra_gym.ssl_core.settings.checks import check_options, check_path
from astra_gym.ssl_core.settings.records import Notes, check_choices
from astra_gym.ssl_core.utils.finite import check_number

SHARED: Mapping[str, Any] = {"temperature": 0.5, "mixed_weight": 0.5, "mixed_reading": "pairs"}
"""Options that are settings of their own, with the values of a method that has no own default."""


@dataclass(frozen=True, kw_only=True)
class MethodSection:
    """The self-supervised method.

    Args:
        method: the self-supervised method, or the dotted path of a custom method, my_module:MyMethod.
        method_kwargs: the method's own options, which override its defaults; ASTrA's are method_kwargs.mixed_weight and
            method_kwargs.mixed_reading (pairs: as in its code; views: as in its drawings).
        teacher: a run or checkpoint of this project whose encoder the methods deacl, daq-sdp, profeat and advcl learn
            from.
        temperature: temperature of the contrastive losses; by default the method's own, 0.5 for most.
        mixed_weight: weight of ASTrA's mixed loss; by default 0.5, as in its run, or a custom method's own.
        mixed_reading: reading of ASTrA's mixed loss: pairs (as in its code, the default) or views (as in its drawings).

    Raises:
        ValueError: if a name is unknown or a value is out of its range.
    """

    method: Annotated[str, Notes(choices=METHODS, what="method", custom=True)] = "astra"
    method_kwargs: dict[str, Any] | None = None
    teacher: Annotated[str | None, Notes(unit="RUN")] = None
    temperature: float | None = None
    mixed_weight: Annotated[float | None, Notes(instead="method_kwargs.mixed_weight")] = None
    mixed_reading: Annotated[
        str | None, Notes(choices=MIXED_READINGS, what="mixed reading", instead="method_kwargs.mixed_reading")
    ] = None

    def __post_init__(self) -> None:
        for name, value in SHARED.items():
            if getattr(self, name) is None and not is_own(self.method):
                object.__setattr__(self, name, getattr(METHODS.get(self.method), name, value))
        check_choices(self)
        check_options("method_kwargs", self.method_kwargs)
        check_path("teacher", self.teacher)
        if self.mixed_weight is not None:
            check_number("mixed_weight", self.mixed_weight, 0, math.inf, "0 or more")
        if self.temperature is not None:
            check_number("temperature", self.temperature, 1e-3, math.inf, "0.001 or more")

    @property
    def shared(self) -> dict[str, Any]:
        """The options of `SHARED` that are given, or that are those of a method of ours."""
        return {name: value for name in SHARED if (value := getattr(self, name)) is not None}

    def check_given(self) -> None:
        """Raise a ValueError if a given option has no effect, or is given twice."""
        method, options = self.make(), dict(self.method_kwargs or {})
        usual = {name: (None, value, getattr(type(method), name, value)) for name, value in SHARED.items()}
        for name, given in self.shared.items():
            if name in options and given not in (*usual[name], options[name]):
                raise ValueError(f"{name} is {given} and method_kwargs.{name} {options[name]}: give one of them")
        temperature = options.get("temperature", self.temperature)
        if not method.loss.has_temperature and temperature not in usual["temperature"]:
            raise ValueError(
                f"temperature is {temperature}, but the loss of the method {self.method} has none: leave it out"
            )

    @property
    def idle(self) -> dict[str, str]:
        """Settings that change nothing with this method and its options, each with the reason (`Method.idle`)."""
        method = self.make()
        return {f"method_kwargs.{name}" if hasattr(method, name) else name: why for name, why in method.idle.items()}

    def make(self) -> Method:
        """Make the method.

        Raises:
            ValueError: if an option is unknown, or the options do not fit together.
        """
        return make_method(self.method, self.method_kwargs, **self.shared)
