"""The arms of a comparison that came out of a search, each with what the search cost."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from astra_gym.experiments.comparison.arms import Arm, comparable, settings_of
from astra_gym.experiments.comparison.searches import SearchCost, read_searched
from astra_gym.experiments.config.commands import program
from astra_gym.experiments.config.flag_values import as_text
from astra_gym.experiments.tuning.tuning_file import NONE, FinishedSearch, read_finished
from astra_gym.ssl_core.utils.files import expanded
from astra_gym.ssl_core.utils.messages import shown

TUNED = ("--agent", "--epsilon", "--steps", "--step_size", "--schedule", "--lr", "--strength")
"""Flags that a search sets."""
AGENTS = ("fixed", "schedule")
"""Agents that a search sets; another one's module would be imported."""


def search_costs(
    texts: Sequence[str], arms: Sequence[Arm], trust: bool | None = None, again: str | None = None
) -> list[SearchCost]:
    """Read what the searches of arms cost.

    Args:
        texts: an arm's label and its search's file, as ARM=FILE.
        arms: arms of the comparison.
        trust, again: see `astra_gym.experiments.config.cli.parse`.

    Raises:
        ValueError: if a text has another form, there is no such arm, the file is none of a finished search, the arm has
            other settings than the search's best candidate, or a file of this name already.
    """
    found = list[SearchCost]()
    for text in texts:
        try:
            cost = _search_cost(text, arms, trust, again)
            # by these the plan and the results keep a search
            if (cost.arm, cost.file) in {(one.arm, one.file) for one in found}:
                raise ValueError("the arm has a file of this name already: give each once, under a name of its own")
            found.append(cost)
        except ValueError as error:
            raise ValueError(f"--searched {text}: {error}") from error
    return found


def _search_cost(text: str, arms: Sequence[Arm], trust: bool | None, again: str | None) -> SearchCost:
    label, equals, name = text.partition("=")
    if not equals or not name:
        raise ValueError("expected ARM=FILE")
    of_label = [arm for arm in arms if arm.label == label]
    if not of_label:
        raise ValueError(f"there is no arm {shown(label)}: expected one of {', '.join({arm.label: 0 for arm in arms})}")
    search = read_finished(expanded(name))
    words = _flags(search)
    for arm in of_label:
        if search.worlds == 1 and (there := search.what["settings"].get("preset")) != arm.settings["preset"]:
            raise ValueError(f"it is a search in {shown(there)}, but the arm is in {arm.settings['preset']}")
        best = comparable(settings_of([*arm.flags, *words], trust, again))
        if other := [each for each in best if best[each] != arm.settings.get(each)]:
            raise ValueError(
                f"the search found {shlex.join(words)}, but the arm has {other[0]} {shown(arm.settings.get(other[0]))}"
                "; name the search of this arm"
            )
    head = {"arm": label, "file": Path(name).name, "worlds": search.worlds}
    head |= {name: search.what[name] for name in ("tune", "candidates")}
    return read_searched([head | dict(search.spent)])[0]


def _flags(search: FinishedSearch) -> list[str]:
    """Return the best candidate's flags and values, in turn."""
    if search.best == NONE:
        pairs = [(f"--{name}", as_text(search.what["settings"].get(name))) for name in search.what["tune"]]
        words = [word for pair in pairs for word in pair]
    else:
        words = shlex.split(search.best)
    agents = [value for name, value in zip(words[::2], words[1::2], strict=False) if name == "--agent"]
    if not {*words[::2]} <= {*TUNED} or len(words) % 2 or not {*agents} <= {*AGENTS}:
        raise ValueError(f"its best candidate is {shown(search.best)}: expected flags that {program('tune')} sets")
    return words
