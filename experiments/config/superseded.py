"""Forms and names of version 0.1 that later versions do not have: what a file of that version means."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from astra_gym.agents.reinforce import SETTINGS
from astra_gym.ssl_core.training.coreset import CoresetSettings
from astra_gym.ssl_core.utils.overrides import by_present_names


class Form(NamedTuple):
    """Settings by name whose defaults have changed.

    Args:
        setting, value: the setting and its value where the form plays a part.
        options: the setting that holds them, such as `agent_kwargs`.
        now: a record with the present defaults.
        before: what version 0.1 did.
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
RENAMED: Mapping[str, str] = {"normalisation": "normalization", "neighbours": "neighbors"}
"""What settings and flags were called, and what they are called now."""
DROP_LAST = True
"""Whether version 0.1 left out the last, smaller batch of an epoch."""


def named_forms(record: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The present defaults of all forms that play a part in a run and have no value yet, by the setting that holds
    them.

    A run names them in its record, so that a record that does not is an older one.

    Args:
        record: all settings of a run, by name.
    """
    return {form.options: {name: getattr(form.now, name) for name in names} for form, names in _unnamed(record)}


def _unnamed(record: Mapping[str, Any]) -> Iterator[tuple[Form, list[str]]]:
    """The forms that play a part in a run, and which of their settings the record does not name."""
    for form in FORMS:
        options = record.get(form.options) or {}
        # optimal transport has one form
        idle = ("form",) if options.get("divergence") == "ot" else ()
        names = [name for name in form.before if name not in options and name not in idle]
        if record.get(form.setting) == form.value and names:
            yield form, names


def left_out(record: Mapping[str, Any]) -> dict[str, Any]:
    """What the record of a run of version 0.1 does not name, by flag: `drop_last`, `coreset_kwargs.form`; nothing for a
    newer one.

    Args:
        record: all settings of a run, by name.
    """
    missing = {} if "drop_last" in record else {"drop_last": DROP_LAST}
    for form, names in _unnamed(record):
        missing |= {f"{form.options}.{name}": form.before[name] for name in names}
    return missing


def without_forms(record: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The record of a run as a base for another one: without the forms of what changes.

    Args:
        record: all settings of a run, by name.
        changes: other settings, by name; None where there is none.
    """
    made, changed = dict(record), {name for name, value in changes.items() if value not in (None, record.get(name))}
    for form in FORMS:
        if form.setting in changed and made.get(form.options):
            made[form.options] = {name: v for name, v in made[form.options].items() if name not in form.before} or None
    if changed & {"agent", "env", "coreset", "method"} and not made.get("drop_last", True):
        del made["drop_last"]
    return made


def as_written(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record of a run by present names, with what it leaves out, as the version that wrote it had it."""
    full = by_present_names(record, RENAMED)
    for flag, value in left_out(record).items():
        name, _, option = flag.partition(".")
        full[name] = {**(full.get(name) or {}), option: value} if option else value
    return full
