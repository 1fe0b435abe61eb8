"""Checks for settings that would have no effect in a world."""

from collections.abc import Mapping
from typing import Any


def check_effect(settings: Any, defaults: Mapping[str, Any]) -> None:
    """Check that every given option has an effect, see `WorldSettings.check_given`.

    Args:
        settings: settings of a world.
        defaults: default of each setting, by name.

    Raises:
        ValueError: if an option belongs to a part that is left out, or is given twice.
    """
    if settings.coreset == "none":
        for name in ("coreset_fraction", "coreset_warmup", "coreset_every", "coreset_kwargs"):
            if getattr(settings, name) not in (defaults[name], {}):
                raise ValueError(f"{name} is {getattr(settings, name)}, but there is no coreset: add --coreset rcs")
    elif settings.coreset == "random" and settings.coreset_kwargs:
        raise ValueError("coreset_kwargs: a coreset that is drawn at random has no settings: leave them out")
    elif settings.make_coreset(1).divergence == "ot" and "form" in (settings.coreset_kwargs or {}):
        raise ValueError("coreset_kwargs.form is of the divergences kl and js, and not of ot: leave it out")
    elif (first := settings.coreset_epochs[0]) >= settings.epochs:
        raise ValueError(
            f"coreset is {settings.coreset!r}, but the first {first} of {settings.epochs} epochs are on all data: take "
            "more epochs, or a shorter --coreset_warmup"
        )
    if settings.perspective_kwargs and settings.perspective == "none":
        raise ValueError("perspective_kwargs: there is no perspective augmentation: add --perspective moebius")
    method, options = settings.make_method(), dict(settings.method_kwargs or {})
    for name in ("temperature", "mixed_weight", "mixed_reading"):
        if name in options and getattr(settings, name) not in (defaults[name], options[name]):
            raise ValueError(
                f"{name} is {getattr(settings, name)} and method_kwargs.{name} {options[name]}: give one of them"
            )
    temperature = options.get("temperature", settings.temperature)
    if not method.has_temperature and temperature != defaults["temperature"]:
        raise ValueError(
            f"temperature is {temperature}, but the loss of the method {settings.method} has none: leave it out"
        )
