"""What there is to choose from: methods, agents and data sets, a line each."""

from collections.abc import Sequence

from astra_gym.agents import AGENTS
from astra_gym.ssl_core.data.datasets import DATASETS
from astra_gym.ssl_core.methods import METHODS

Line = tuple[str, str, str]


def listing() -> str:
    """Methods, agents and data sets as text: name, what it is, and the paper."""
    methods = [(name, method.summary, method.paper) for name, method in METHODS.items()]
    agents = [(name, entry.summary, entry.paper) for name, entry in AGENTS.items()]
    datasets = [(name, spec.summary, spec.source) for name, spec in DATASETS.items()]
    parts = {"methods (--method)": methods, "agents (--agent)": agents, "data sets (--dataset)": datasets}
    return "\n".join(_part(title, lines) for title, lines in parts.items())


def _part(title: str, lines: Sequence[Line]) -> str:
    width = max(len(name) for name, _, _ in lines)
    listed = (f"  {name:<{width}}  {summary}" + f" ({paper})" * bool(paper) for name, summary, paper in lines)
    return "\n".join([title, *listed]) + "\n"
