"""The list of everything that can be chosen by name, one line each."""

import inspect
from collections.abc import Sequence

from astra_gym.agents import AGENTS
from astra_gym.envs.observations import OBSERVATIONS
from astra_gym.envs.rewards.registry import REWARD_TERMS
from astra_gym.ssl_core.attacks.pgd import STARTS
from astra_gym.ssl_core.attacks.settings import STOPS
from astra_gym.ssl_core.data.datasets import DATASETS
from astra_gym.ssl_core.methods import METHODS

Line = tuple[str, str, str]


def listing() -> str:
    """Return methods, agents and everything else that has a name, as text: name, summary and paper."""
    methods = [(name, method.summary, method.paper) for name, method in METHODS.items()]
    agents = [(name, entry.summary, entry.paper) for name, entry in AGENTS.items()]
    datasets = [(name, spec.summary, spec.source) for name, spec in DATASETS.items()]
    parts = {"methods (--method)": methods, "agents (--agent)": agents, "data sets (--dataset)": datasets}
    parts["observations (--observation)"] = [(name, kind.summary, "") for name, kind in OBSERVATIONS.items()]
    parts["reward terms (--reward_weights.NAME)"] = [(name, term.summary, "") for name, term in REWARD_TERMS.items()]
    parts["starts of the attack (--attack_start)"] = [(name, first_line(start), "") for name, start in STARTS.items()]
    parts["ends of the attack (--attack_stop)"] = [(name, summary, "") for name, summary in STOPS.items()]
    return "\n".join(_part(title, lines) for title, lines in parts.items())


def first_line(item: object) -> str:
    """Return the first line of an object's docstring, without a capital and a full stop."""
    line = (inspect.getdoc(item) or "").partition("\n")[0].rstrip(".")
    return line[:1].lower() + line[1:]


def _part(title: str, lines: Sequence[Line]) -> str:
    width = max(len(name) for name, _, _ in lines)
    listed = (f"  {name:<{width}}  {summary}" + f" ({paper})" * bool(paper) for name, summary, paper in lines)
    return "\n".join([title, *listed]) + "\n"
