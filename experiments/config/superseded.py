"""Forms of 0.1 that later versions do not have by default: what a file of that version meant by saying nothing."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from astra_gym.agents.reinforce import SETTINGS
from astra_gym.ssl_core.training.coreset import CoresetSettings


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
DROP_LAST = True
"""Whether version 0.1 left out the last, smaller batch of an epoch."""


def named_forms(agent: str, coreset: str) -> dict[str, dict[str, Any]]:
    """The present defaults of all forms that play a part in a run, by the setting that holds them.

    A run names them in its record, so that a record that does not is an older one.
    """
    given = {"agent": agent, "coreset": coreset}
    return {
        form.options: {name: getattr(form.now, name) for name in form.before}
        for form in FORMS
        if given[form.setting] == form.value
    }


def left_out(record: Mapping[str, Any]) -> dict[str, Any]:
    """What the record of a run of version 0.1 does not name, by flag: `drop_last`, `coreset_kwargs.form`; nothing for a
    newer one.

    Args:
        record: all settings of a run, by name.
    """
    missing = {} if "drop_last" in record else {"drop_last": DROP_LAST}
    for form in FORMS:
        if record.get(form.setting) == form.value:
            options = record.get(form.options) or {}
            missing |= {f"{form.options}.{name}": value for name, value in form.before.items() if name not in options}
    return missing


def as_written(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record of a run with what it leaves out, as the version that wrote it had it."""
    full = dict(record)
    for flag, value in left_out(record).items():
        name, _, option = flag.partition(".")
        full[name] = {**(full.get(name) or {}), option: value} if option else value
    return full
