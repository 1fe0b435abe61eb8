"""Pages out of the code: `<!-- from code: KIND -->` in a page becomes a table or an environment's docstring."""

import inspect
import re
from collections.abc import Iterable
from fractions import Fraction
from typing import Any

from sphinx.application import Sphinx

from astra_gym.agents import AGENTS
from astra_gym.envs.attack_step_env import AttackStepVectorEnv
from astra_gym.envs.batch_env import BatchAttackEnvV1
from astra_gym.envs.rewards.registry import REWARD_TERMS
from astra_gym.envs.rewards.settings import RewardSection
from astra_gym.envs.training_run.environment import TrainingRunEnv
from astra_gym.envs.training_run.instances import INSTANCES, cifar10_instances
from astra_gym.envs.view_env import ViewAttackVectorEnvV1
from astra_gym.ssl_core.data.datasets import DATASETS
from astra_gym.ssl_core.methods import METHODS


def environment(made: type) -> str:
    """An environment's docstring as Markdown: its sections are headings already, `Args` and `Raises` become some."""
    text = inspect.getdoc(made) or ""
    for section, title in (("Args", "Arguments"), ("Raises", "Errors")):
        text = re.sub(
            rf"^{section}:\n((?:    .*\n?|\n(?=    ))+)",
            lambda match, title=title: f"## {title}\n\n{_definitions(match[1])}\n",
            text,
            flags=re.MULTILINE,
        )
    return text


def _definitions(entries: str) -> str:
    found = re.findall(r"^    (\w[^:\n]*): (.*(?:\n {8}.*)*)", entries, re.MULTILINE)
    return "\n".join(f"`{name}`\n: {' '.join(text.split())}\n" for name, text in found)


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [list(head)]
    lines += [["---"] * len(lines[0]), *map(list, rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def instances() -> str:
    return table(
        ("set", "instance", "method", "images", "judged radius", "passes"),
        (
            (
                part,
                f"`{name}`",
                f"`{each.settings.method.method}`",
                f"{each.images}",
                f"{255 * each.settings.judge.epsilon:g}/255",
                f"{each.settings.optimizer.passes:g}",
            )
            for part, found in INSTANCES.items()
            for name, each in (found | cifar10_instances(None)[part]).items()
        ),
    )


def methods() -> str:
    return table(
        ("`--method`", "in one line", "source"),
        ((f"`{name}`", method.summary, method.paper) for name, method in METHODS.items()),
    )


def agents() -> str:
    return table(
        ("`--agent`", "in one line", "source", "learns", "actions", "observation"),
        (
            (f"`{name}`", kind.summary, kind.paper, "yes" if kind.learns else "no", kind.actions, kind.observation)
            for name, kind in AGENTS.items()
        ),
    )


def datasets() -> str:
    return table(
        ("`--dataset`", "in one line", "source", "default `--preset`"),
        ((f"`{name}`", spec.summary, spec.source, f"`{spec.preset}`") for name, spec in DATASETS.items()),
    )


def terms() -> str:
    defaults = {name: Fraction(getattr(RewardSection, f"reward_{name}")).limit_denominator(99) for name in REWARD_TERMS}
    return table(
        ("term", "value, for each attacked view", "sign", "default weight"),
        ((f"`{name}`", kind.summary, f"{kind.sign:+}"[0], f"{defaults[name]}") for name, kind in REWARD_TERMS.items()),
    )


MADE = {
    "terms": terms,
    "ViewAttack-v1": lambda: environment(ViewAttackVectorEnvV1),
    "BatchAttack-v1": lambda: environment(BatchAttackEnvV1),
    "TrainingRun-v0": lambda: environment(TrainingRunEnv),
    "AttackStep-v0": lambda: environment(AttackStepVectorEnv),
    "instances": instances,
    "methods": methods,
    "agents": agents,
    "datasets": datasets,
}


def fill(app: Sphinx, page: str, source: list[str]) -> None:
    source[0] = re.sub(r"<!-- from code: (\S+) -->", lambda match: MADE[match[1]](), source[0])


def as_rst(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Docstrings of the API reference: headings and tables of Markdown as rST has them."""
    text = re.sub(r"^#+ (.*)", r".. rubric:: \1\n", "\n".join(lines), flags=re.MULTILINE)
    lines[:] = re.sub(r"^\|.*\n\|[-:| ]+\|\n(?:\|.*\n?)*", _list_table, text, flags=re.MULTILINE).split("\n")


def _list_table(match: re.Match[str]) -> str:
    head, _, *rows = ([cell.strip() for cell in line.strip("|").split(" | ")] for line in match[0].splitlines())
    made = ["", ".. list-table::", "   :header-rows: 1", ""]
    for row in (head, *rows):
        made += [f"   {'*' if not place else ' '} - {cell}" for place, cell in enumerate(row)]
    return "\n".join([*made, "", ""])


def skipped(app: Sphinx, what: str, name: str, thing: Any, skip: bool, options: Any) -> bool | None:
    """Fields of named tuples are left out: the class's docstring describes them."""
    return True if (getattr(thing, "__doc__", None) or "").startswith("Alias for field number") else None


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("source-read", fill)
    app.connect("autodoc-process-docstring", as_rst)
    app.connect("autodoc-skip-member", skipped)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
