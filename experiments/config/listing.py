"""What there is to choose from: methods, agents and data sets, a line each."""

from collections.abc import Sequence

from astra_gym.agents import AGENTS
from astra_gym.ssl_core.data.datasets import DATASETS
from astra_gym.ssl_core.methods import METHODS

Line = tuple[str, str, str]
SOURCES = {
    "digits": ("1,797 scans of handwritten digits, 8 x 8, embedded", "Alpaydin & Kaynak, UCI 1998, in scikit-learn"),
    "cifar10": ("60,000 photographs of 10 classes, 32 x 32", "Krizhevsky 2009"),
    "cifar100": ("60,000 photographs of 100 classes, 32 x 32", "Krizhevsky 2009"),
    "stl10": (
        "13,000 photographs of 10 classes, 96 x 96: the 5,000 and 8,000 labelled ones only",
        "Coates et al., AISTATS 2011",
    ),
    "folder": ("any folder of images, labelled by sub-folders or not at all", ""),
}
"""What each data set is, and where it comes from."""


def listing() -> str:
    """Methods, agents and data sets as text: name, what it is, and the paper."""
    methods = [(name, method.summary, method.paper) for name, method in METHODS.items()]
    agents = [(name, entry.summary, entry.paper) for name, entry in AGENTS.items()]
    datasets = [(name, *SOURCES[name]) for name in DATASETS]
    parts = {"methods (--method)": methods, "agents (--agent)": agents, "data sets (--dataset)": datasets}
    return "\n".join(_part(title, lines) for title, lines in parts.items())


def _part(title: str, lines: Sequence[Line]) -> str:
    width = max(len(name) for name, _, _ in lines)
    listed = (f"  {name:<{width}}  {summary}" + f" ({paper})" * bool(paper) for name, summary, paper in lines)
    return "\n".join([title, *listed]) + "\n"
