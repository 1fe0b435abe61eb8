"""Defaults of version 0.1 that have changed since, for reading files of that version."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from astra_gym.agents.reinforce import SETTINGS
from astra_gym.ssl_core.settings import renamed
from astra_gym.ssl_core.training.coreset import CoresetSettings
from astra_gym.ssl_core.utils.overrides import by_present_names


class Form(NamedTuple):
    """Settings by name whose defaults have changed.

    Args:
        setting, value: the setting and its value with which the form has an effect.
        options: the setting that holds the form's settings, such as `agent_kwargs`.
        now: a record with the present defaults.
        before: the defaults of version 0.1.
    """

    setting: str
    value: str
    options: str
    now: Any
    before: Mapping[str, Any]


FORMS = (
    Form(
        "agent",
        "reinforce-paper",
        "agent_kwargs",
        SETTINGS["reinforce-paper"],
        {"heads": "joint", "second_draw": False},
    ),
    Form("coreset", "rcs", "coreset_kwargs", CoresetSettings(batches=1), {"form": "softmax", "biases": True}),
)
DROP_LAST = True
"""Whether version 0.1 left out the last, smaller batch of an epoch."""


def named_forms(record: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the present defaults of all forms that affect a run and have no value yet, by the setting that holds
    them.

    A run names them in its record, so that a record without them is recognized as an older one.

    Args:
        record: all settings of a run, by name.
    """
    return {form.options: {name: getattr(form.now, name) for name in names} for form, names in _unnamed(record)}


def _unnamed(record: Mapping[str, Any]) -> Iterator[tuple[Form, list[str]]]:
    """Yield the forms that affect a run, with those of their settings that the record does not name."""
    for form in FORMS:
        options = record.get(form.options) or {}
        # optimal transport has only one form
        idle = ("form",) if options.get("divergence") == "ot" else ()
        names = [name for name in form.before if name not in options and name not in idle]
        if record.get(form.setting) == form.value and names:
            yield form, names


def left_out(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that a record of version 0.1 does not name, by flag: `drop_last`, `coreset_kwargs.form`;
    nothing for a newer record.

    Args:
        record: all settings of a run, by name.
    """
    missing = {} if "drop_last" in record else {"drop_last": DROP_LAST}
    for form, names in _unnamed(record):
        missing |= {f"{form.options}.{name}": form.before[name] for name in names}
    return missing


def without_forms(record: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return a run's record as a base for another run, without the forms of the settings that change.

    Args:
        record: all settings of a run, by name.
        changes: changed settings, by name; None if a setting does not change.
    """
    made, changed = dict(record), {name for name, value in changes.items() if value not in (None, record.get(name))}
    for form in FORMS:
        if form.setting in changed and made.get(form.options):
            made[form.options] = {name: v for name, v in made[form.options].items() if name not in form.before} or None
    if changed & {"agent", "env", "coreset", "method"} and not made.get("drop_last", True):
        del made["drop_last"]
    return made


def as_written(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a run's record by present names; settings that it leaves out get the defaults of its version."""
    full = by_present_names(record, renamed.SETTINGS)
    for flag, value in left_out(record).items():
        name, _, option = flag.partition(".")
        full[name] = {**(full.get(name) or {}), option: value} if option else value
    return full
